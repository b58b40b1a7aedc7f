"""What the fields of a project must be, by themselves and beside each other.

>>> [name for name, _, fits, _ in check_fields(project) if not fits]  # doctest: +SKIP
[]
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

# What MLflow takes as the name of a model and of an experiment, and a file system as that of a folder.
NAME = re.compile(r"""(?![. ])(?!.*(\.\.|\.ledger|[. ]$))[^/:\\'"`%?#]+""")
# What MLflow takes as an alias, and nothing else means already.
STAGE = re.compile(r"(?!(latest|none|all|v?\d+)$)[\w-]{1,200}", re.IGNORECASE)
# Columns that tables of predictions have besides the keys, and those that they have where there are classes.
PREDICTION = re.compile("prediction(_id)?|scored_at|model_(name|version|digest)|features_hash")
SCORE = re.compile("score(_.*)?")
TABLES = ("target", "keys", "features", "arrivals")

# By annotation: whether a value is of the kind, and how it is named.
KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "int": (lambda value: type(value) is int and value > 0, "a whole number above zero"),
    "float": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
        "a number from 0 to less than 1",
    ),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "Path": (lambda value: isinstance(value, Path), "a Path, such as Path(__file__).resolve().parent.parent"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, tuple) and all(isinstance(each, str) and each for each in value),
        "a tuple of texts, such as ('a', 'b') or ('a',)",
    ),
    "tuple[Any, ...]": (lambda value: isinstance(value, tuple), "a tuple, such as (Threshold('roc_auc', 0.6),)"),
    "Callable": (lambda value: value is None or callable(value), "a function, not what it returns"),
    "Literal": (lambda value: value in ("none", "values", "hash"), "'none', 'values' or 'hash'"),
    "Task": (lambda value: hasattr(value, "with_classes"), "binary(…), multiclass() or regression() of mlops_lib.task"),
    "Costs | None": (lambda value: value is None or hasattr(value, "false_alarm"), "a Costs(…) of mlops_lib.project"),
    "Policy": (lambda value: hasattr(value, "cool_down_days"), "a Policy(…) of mlops_lib.project"),
    "Monitoring": (lambda value: hasattr(value, "min_labelled"), "a Monitoring(…) of mlops_lib.project"),
}


@dataclass(frozen=True)
class Monitoring:
    """How far production may move before ``monitor`` says no.

    Quality has failed where the *better* end of the leading metric's interval is beyond its limit: an alarm needs
    evidence, as a gate's pass does, which is judged at the worse end.

    Parameters
    ----------
    max_psi : float
        Of each feature; 0.1 is usually read as a slight and 0.25 as a large shift.
    max_missing_change : float in [0, 1]
        Of the share of missing values of each feature.
    max_loss : float
        How far a classifier's leading metric may fall behind what was measured before registration.
    max_error_growth : float
        How much the error of predicted numbers may grow, as a share of it.
    min_labelled : int
        With fewer labels nothing is judged.
    alarms_a_year : float > 0
        False alarms about drift that are accepted, over all features together.
    periods_a_year : int > 0
        How often it is looked for: 365 for days, 12 for months.
    """

    max_psi: float = 0.25
    max_missing_change: float = 0.05
    max_loss: float = 0.03
    max_error_growth: float = 0.1
    min_labelled: int = 200
    alarms_a_year: float = 1.0
    periods_a_year: int = 365


@dataclass(frozen=True)
class Policy:
    """When a model is trained again, and what then happens by itself.

    A model is trained again where one of the reasons holds and none of the brakes does.

    Parameters
    ----------
    drifting : int, optional
        Reason: more features than this have drifted, of those that move the predictions. None: drift is no reason.
    quality : bool
        Reason: live quality is beyond its limit with its whole interval.
    max_age_days : float, optional
        Reason: the model in production was trained longer ago than this. None: age is no reason.
    min_rows : int
        Brake: with fewer labelled rows of periods that it has not seen nothing is trained.
    cool_down_days : float
        Brake: since the last training as many days have to pass.
    max_a_month : int
        Brake: so many trainings in 30 days are enough.
    window : int, optional
        How many of the latest periods are trained on, besides the newest, which is validated on. None: all.
    parameters : mapping of str to value
        Given to the training notebook, besides the periods.
    train : str or callable
        The notebook, which takes ``train_from`` and ``train_until`` and records ``version``; or a function of the
        project and the list of periods that runs whatever it needs by ``run_notebook(…, cached=True)`` and returns the
        version.
    validate : str or callable
        The notebook, which takes ``version`` and ``period`` and logs the verdict; or a function of project, version and
        period that does so.
    status : str
        The notebook that is executed at the end, where there is one.
    to_production : bool
        Whether a version that has passed and was smoke-tested goes to production without a person.
    probation_days, probation_labels : float, int
        How long a new version in production is watched: until one of them is reached.
    probation_loss : float
        How much worse than the former version it may be on the same rows, in the leading metric; of an error as a share
        of it. It is sent back where the whole interval of the difference is beyond that.
    hooks : tuple of callables
        Each is called with what a tick came to (a dict) after it; what it raises is noted and stops nothing.
    webhook : str
        Name of the environment variable that holds an address to which the same is posted as JSON, signed with the
        secret in ``<name>_SECRET`` (HMAC-SHA256, header ``X-Mlops-Signature``).
    """

    drifting: int | None = None
    quality: bool = True
    max_age_days: float | None = None
    min_rows: int = 1000
    cool_down_days: float = 7
    max_a_month: int = 4
    window: int | None = 3
    parameters: Mapping[str, Any] = field(default_factory=dict)
    train: str | Callable[[Any, list[str]], int] = "02_train"
    validate: str | Callable[[Any, int, str], object] = "03_validate"
    status: str = "06_status"
    to_production: bool = False
    probation_days: float = 30
    probation_labels: int = 20_000
    probation_loss: float = 0.01
    hooks: tuple[Callable[[Mapping[str, Any]], object], ...] = ()
    webhook: str = ""

    @property
    def fault(self) -> str:
        """What is wrong with it, or nothing."""
        for name in ("drifting", "max_age_days", "min_rows", "cool_down_days", "max_a_month", "window"):
            value, may_be_none = getattr(self, name), name in ("drifting", "max_age_days", "window")
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= (name == "window")
            if not (is_number or (may_be_none and value is None)):
                return f"a number not below {int(name == 'window')} as {name}"
        if not all(callable(hook) for hook in self.hooks):
            return "functions as hooks, not what they return"
        for name in ("train", "validate"):
            if not (callable(getattr(self, name)) or isinstance(getattr(self, name), str)):
                return f"a notebook or a function as {name}"
        return ""


@dataclass(frozen=True)
class Costs:
    """What predictions cost, in one unit of the project's: with two classes by their mistakes, else by a function.

    Parameters
    ----------
    false_alarm, miss : float >= 0
        Of a row that is called positive and is not; of one that is and is not called so.
    capacity : float in (0, 1]
        The largest share of rows that may be called positive.
    function : callable, optional
        Of truths and predictions, arrays of shape (n_rows,): the cost of each row, of the same shape.
    unit : str
        For people, such as ``EUR``.
    """

    false_alarm: float = 0.0
    miss: float = 0.0
    capacity: float = 1.0
    function: Callable[[Any, Any], Any] | None = None
    unit: str = ""

    @property
    def fault(self) -> str:
        """What is wrong with them, or nothing."""
        numbers = (self.false_alarm, self.miss, self.capacity)
        if not all(isinstance(each, int | float) and math.isfinite(each) and each >= 0 for each in numbers):
            return "costs and a capacity that are numbers, and not below zero"
        if not 0 < self.capacity <= 1:
            return "a capacity above 0 and at most 1, the share of rows that may be called positive"
        if self.function is None and not self.false_alarm + self.miss:
            return "a cost of false_alarm or of miss above zero, or a function"
        return "" if self.function is None or callable(self.function) else "a function of truths and predictions"


def check_fields(p: Any) -> Iterator[tuple[str, object, bool, str]]:
    """Yield name, value, whether it will do and what is needed instead, for each rule of a ``Project``.

    What comes later relies on what came before.
    """
    for each in fields(p):
        value, kind = getattr(p, each.name), str(each.type)
        is_kind, needs = KINDS.get(kind) or KINDS.get(kind.partition("[")[0]) or (lambda _: True, "")
        yield each.name, value, is_kind(value), needs
    is_name = NAME.fullmatch(p.name) and p.name.isprintable() and len(p.name.encode()) <= 200
    letters = "up to 200 letters, digits, '-', '_', with blanks and dots between them, no '..' and no '.ledger'"
    yield "name", p.name, bool(is_name), letters
    for stage in p.stages:
        needs = "letters, digits, '-' and '_', and no number, 'v1', 'latest', 'none' or 'all'"
        yield "stages", stage, bool(STAGE.fullmatch(stage)), needs
    yield "stages", p.stages, len(p.stages) > 1, "two or more: what is registered would be in production at once"
    lists = {"keys": p.keys, "features": p.features, "period_order": p.period_order}
    for name, names in {**lists, "stages": [each.casefold() for each in p.stages]}.items():
        yield name, getattr(p, name), len({*names}) == len(names), "each name once"
    yield "policy", p.policy, not p.policy.fault, p.policy.fault
    if p.costs:
        yield "costs", p.costs, not p.costs.fault, p.costs.fault
        is_of_task = p.task.kind == "binary" or p.costs.function is not None
        yield "costs", p.costs, is_of_task, f"a function of truths and predictions, since the task is {p.task.kind}"
    budget = (p.monitoring.alarms_a_year, p.monitoring.periods_a_year)
    is_budget = all(isinstance(each, int | float) and 0 < each < math.inf for each in budget)
    yield "monitoring", p.monitoring, is_budget, "alarms_a_year and periods_a_year above zero"
    for gate in p.gates:
        parameters = getattr(type(gate), "__dataclass_params__", None)
        is_frozen = parameters is not None and parameters.frozen
        yield "gates", gate, is_frozen, "frozen records: write @dataclass(frozen=True) above the gate's class"
    for name, method, records in (
        ("gates", "check", p.gates),
        ("metrics", "compute", [each for each in p.metrics if not isinstance(each, str)]),
    ):
        for record in records:
            is_record = callable(getattr(record, method, None)) and not isinstance(record, type)
            yield name, record, is_record, "records such as Threshold('roc_auc', 0.6) or quality.Metric(…)"

    for name in TABLES if p.labels or any(getattr(p, name) for name in TABLES) else ():
        yield name, getattr(p, name), bool(getattr(p, name)), f"to be given, or none of {', '.join(TABLES)}"
    for name, column in (("target", p.target), ("labelled_at", p.labelled_at)):
        yield name, column, column not in p.features, "a column that is no feature: when a row arrives it is not known"
        yield name, column, column not in p.keys, "a column that is no key"
    yield "labelled_at", p.labelled_at, p.labelled_at != p.target, "another column than the target"
    kept = p.features if p.keep_features == "values" else ()
    for name, columns in (("keys", p.keys), ("target", (p.target,)), ("features", kept)):
        for column in columns:
            is_taken = PREDICTION.fullmatch(column) or (p.task.is_classifier and SCORE.fullmatch(column))
            yield name, column, not is_taken, "another name: tables of predictions have a column of this one"
    for name, needed in (("arrivals", ["period"]), ("labels", ["period"]), ("predictions", ["period", "version"])):
        placeholders = _read_placeholders(getattr(p, name))
        is_template = sorted(placeholders) == needed or (name != "predictions" and not placeholders)
        yield name, getattr(p, name), is_template, f"a path with {' and '.join(f'{{{each}}}' for each in needed)}, once"
    is_pair = not p.labels or ("{period}" in p.arrivals) == ("{period}" in p.labels)
    yield "labels", p.labels, is_pair, "a {period} where arrivals have one, and only there"
    yield "labels", p.labels, not p.labels or p.labels != p.arrivals, "another file than arrivals"


def _read_placeholders(template: str) -> list[str]:
    """Return what stands in the braces of a path template."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:  # a single brace
        return [str(error)]
    return [f"{name}{conversion or ''}{spec}" for _, name, spec, conversion in parts if name is not None]
