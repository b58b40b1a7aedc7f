"""A first look at somebody's table: what each column is, what is asked, how rows can be parted, what must stay out.

Every decision has its reason beside it, for whoever reads the report and disagrees: each can be changed by an option of
``mlops new`` or in the project file that it writes.

>>> survey = survey_table(pd.read_csv("adult.csv"), target="income")  # doctest: +SKIP
>>> print(survey)  # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from mlops_lib import data, gates
from mlops_lib.errors import SurveyError
from mlops_lib.report import table_lines
from mlops_lib.task import Task, binary, multiclass, regression
from mlops_lib.wording import listed

Role = Literal["target", "key", "time", "feature", "date", "left out"]
MIN_LABELLED = 150  # with fewer, no part is large enough to judge a model on
MIN_OF_CLASS = 20
MAX_CLASSES = 30
MAX_NUMBERED_CLASSES = 10  # whole numbers with more values than this are amounts
SUSPECT, LEAK = 0.9, 0.99  # of ROC AUC or R², as gates.NoTellingFeature has it
HIGH_CARDINALITY = 50
N_SAMPLED = 20_000  # rows that single features are measured on
ID_NAME = re.compile(r"(^|[_\W])(id|key|uuid|guid|no|nr|number|index|rownames?|unnamed.*)$", re.IGNORECASE)
ISO_DATE = r"\d{4}-\d\d-\d\d([T ].*)?"
DATE_FORMATS = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d")
# Names of positive classes, where a table has one of them and another value.
POSITIVE = {"true", "yes", "y", "t", "1", "1.0", "positive", "pos"}
POSITIVE |= {"bad", "fail", "failed", "churn", "churned", "default"}
# Coarsest first: how a period is named, and how many of them there have to be.
PERIODS = {"year": "%Y", "month": "%Y-%m", "week": "%G-W%V", "day": "%Y-%m-%d"}
MIN_PERIODS, FEWEST_PERIODS, MIN_PER_PERIOD = 6, 4, 150


@dataclass(frozen=True)
class ColumnSeen:
    """One column: of what kind, how full, what it is for and why.

    ``alone`` is what it tells of the target by itself: ROC AUC for classes (one against the rest where there are
    several), R² for numbers; None where that was not measured.
    """

    name: str
    kind: str
    n_distinct: int
    missing_share: float
    role: Role
    reason: str = ""
    alone: float | None = None
    date_format: str = ""


@dataclass(frozen=True)
class Survey:
    """What ``mlops new`` has seen in a table, and what it makes of it.

    Parameters
    ----------
    columns : tuple of ColumnSeen
        In the table's order.
    n_rows, n_labelled : int
        Of the table; with a target.
    keys : tuple of str
        Columns that identify a row; none where a key has to be made.
    time, period : str
        Column of a row's moment, and the format of its period's name; empty where rows are dealt by their key.
    periods : tuple of str
        Their names in order; ``train``, ``validation`` and ``test`` where there is no time.
    shares : mapping of str to float
        Of the keys that each part gets; empty where there is time.
    rare : tuple
        Classes with too few rows to be learnt; their rows are left out.
    reasons : mapping of str to str
        Why this task, this split, this key.
    """

    n_rows: int
    n_labelled: int
    target: str
    task: Task
    columns: tuple[ColumnSeen, ...]
    keys: tuple[str, ...]
    time: str
    period: str
    periods: tuple[str, ...]
    shares: Mapping[str, float]
    rare: tuple[Any, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def named(self, *roles: Role) -> list[ColumnSeen]:
        """Return the columns of some roles, in their order."""
        return [column for column in self.columns if column.role in roles]

    @property
    def leaks(self) -> list[ColumnSeen]:
        """Columns that nearly decide the target or are known only later."""
        return [column for column in self.named("left out") if column.reason.startswith("LEAK")]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **{name: getattr(self, name) for name in ("n_rows", "n_labelled", "target", "keys", "time", "periods")},
            "task": self.task.kind,
            "reasons": dict(self.reasons),
            "shares": dict(self.shares),
            "columns": [vars(column) for column in self.columns],
        }

    def __str__(self) -> str:
        """Return the report for a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.n_rows:,} rows, {len(self.columns)} columns"
        yield ""
        measure = "R² alone" if self.task.kind == "regression" else "AUC alone"
        header = ["column", "kind", "distinct", "missing", measure, "used as", "because"]
        yield from table_lines(
            [
                header,
                *(
                    [
                        c.name[:40],
                        c.kind,
                        f"{c.n_distinct:,}",
                        f"{c.missing_share:.1%}" if c.missing_share else "",
                        "" if c.alone is None else f"{c.alone:.3f}",
                        c.role,
                        c.reason,
                    ]
                    for c in self.columns
                ),
            ]
        )
        yield ""
        yield from table_lines(self.reasons.items())
        for column in self.leaks:
            yield f"! '{column.name}' looks like the answer in other words and is left out: {column.reason[6:]}"


def survey_table(
    table: pd.DataFrame, target: str, *, time: str = "", keys: Sequence[str] = (), kind: str | None = None
) -> Survey:
    """Look at a table and decide how a project would use it.

    Parameters
    ----------
    table : DataFrame of shape (n_rows, n_columns)
        As :func:`mlops_lib.data.read_table` reads it.
    target : str
        Column to predict; rows without it count as not labelled yet.
    time : str, optional
        Column of the moment at which a row arrives.
    keys : sequence of str, optional
        Columns that together identify a row.
    kind : {"binary", "multiclass", "regression"}, optional
        What is asked, where the target's values do not say it.

    Raises
    ------
    QualityError, SurveyError, TableError
        A column is not there; the target, the key or the time cannot be used as such. Nothing was written.
    """
    names = list(map(str, table))
    data.raise_for_columns("the table", [target, *keys, *([time] if time else [])], names)
    labelled = table[table[target].notna()]
    if len(labelled) < MIN_LABELLED:
        raise SurveyError("rows", n_rows=len(labelled), target=target, minimum=MIN_LABELLED)
    task, rare, why_task = decide_task(labelled[target], kind or "")
    labelled = labelled[~labelled[target].isin(list(rare))]
    seen = {name: _look(table[name], name) for name in names}
    times = _read_times(table[time], seen[time]) if time else None
    keys, why_key = _decide_keys(table, seen, [name for name in names if name not in (target, time)], tuple(keys))
    period, periods, why_split = _decide_periods(times[labelled.index]) if times is not None else ("", (), "")
    shares: dict[str, float] = {}
    if not period:
        shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
        if len(labelled) < 2000:
            shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
        dealt = " / ".join(f"{share:.0%} {name}" for name, share in shares.items())
        why_split = f"{why_split or 'no time column was named'}: rows are dealt by a hash of their key, {dealt}"
        periods = tuple(shares)
    given: dict[str, Role] = {target: "target", **dict.fromkeys(keys, "key"), **({time: "time"} if time else {})}
    columns = [
        replace(column, role=given[name]) if name in given else _decide_role(column, times, table[name])
        for name, column in seen.items()
    ]
    sample = labelled.iloc[:: max(len(labelled) // N_SAMPLED, 1)]
    known = task.learn_classes(sample[target])
    measured = sample[[column.name for column in columns if column.role in ("feature", "date")]]
    alone = gates.measure_alone(known, measured, known.encode(sample[target]))
    columns = [_judge_alone(each, float(alone[each.name])) if each.name in alone else each for each in columns]
    reasons = {"task": why_task, "split": why_split, "key": why_key}
    if len(labelled) < len(table):
        n_rare = int(table[target].isin(list(rare)).sum())
        reasons["not used"] = f"{len(table) - len(labelled) - n_rare:,} rows without '{target}'" + (
            f", {n_rare:,} rows of classes with fewer than {MIN_OF_CLASS} rows: {listed(map(str, rare))}"
            if rare
            else ""
        )
    survey = Survey(
        len(table), len(labelled), target, task, tuple(columns), keys, time if period else "", period, periods,
        shares, rare, reasons,
    )  # fmt: skip
    if not survey.named("feature", "date"):
        raise SurveyError("features", target=target, left_out=tuple(column.name for column in survey.named("left out")))
    return survey


def decide_task(target: pd.Series[Any], kind: str = "") -> tuple[Task, tuple[Any, ...], str]:
    """Return the task that a target without gaps asks for, its classes that are too rare, and the reason.

    Raises
    ------
    SurveyError
        The target has one value, or values of no task, or not of the one that is named.
    """
    counts = target.value_counts()
    values, name = counts.index.tolist(), str(target.name)
    is_number = pd.api.types.is_numeric_dtype(target.dtype) and not pd.api.types.is_bool_dtype(target.dtype)
    is_whole = is_number and _is_whole(target)
    if len(values) < 2:
        raise SurveyError("target", target=name, reason=f"all {len(target)} rows hold {values[0]!r}")
    if not kind:
        most = (MAX_NUMBERED_CLASSES if is_whole else 0) if is_number else MAX_CLASSES
        is_class = len(values) <= most
        kind = "binary" if len(values) == 2 else "multiclass" if is_class else "regression"
    if kind == "regression":
        if not is_number:
            raise SurveyError("target", target=name, reason=f"{len(values)} different values that are no numbers")
        return regression(), (), f"regression, since '{name}' is a number with {len(values):,} different values"
    rare = tuple(value for value, n in counts.items() if n < MIN_OF_CLASS)
    values = [value for value in values if value not in rare]
    if kind == "binary":
        if len(values) != 2:
            raise SurveyError("target", target=name, reason=f"{len(values)} classes with {MIN_OF_CLASS} rows or more")
        named = [value for value in values if str(value).lower() in POSITIVE]
        positive = named[0] if len(named) == 1 else values[-1]  # the rarer one
        share = counts[positive] / counts.sum()
        negative = next(value for value in values if value != positive)
        return (
            binary(positive=positive, negative=negative),
            rare,
            f"binary, since '{name}' has two values; positive is {positive!r} ({share:.1%} of the rows)",
        )
    if len(values) < 3 or len(values) > MAX_CLASSES:
        reason = f"{len(values)} classes with {MIN_OF_CLASS} rows or more, needs 3 to {MAX_CLASSES}"
        raise SurveyError("target", target=name, reason=reason)
    task = multiclass().learn_classes(target[target.isin(values)])
    return task, rare, f"multiclass, since '{name}' has {len(values)} values: {listed(map(str, values))}"


def _is_whole(values: pd.Series[Any]) -> bool:
    """Whether all numbers of a column are whole."""
    return bool((values.dropna().astype("float64") % 1 == 0).all())


def _look(values: pd.Series[Any], name: str) -> ColumnSeen:
    """Return a column's kind and how full it is; its role is decided later."""
    filled = values.dropna()
    kind, date_format = "text", ""
    if pd.api.types.is_bool_dtype(values.dtype):
        kind = "boolean"
    elif pd.api.types.is_numeric_dtype(values.dtype):
        kind = "number"
    elif pd.api.types.is_datetime64_any_dtype(values.dtype):
        kind = "date"
    elif not all(isinstance(value, str) for value in filled):
        kind = "mixed"
    elif len(filled):
        date_format = _find_date_format(filled)
        kind = "date" if date_format else kind
    try:
        n_distinct = int(filled.nunique())
    except TypeError:  # lists and dicts
        kind, n_distinct = "nested", len(filled)
    return ColumnSeen(name, kind, n_distinct, float(values.isna().mean()), "feature", date_format=date_format)


def _find_date_format(texts: pd.Series[Any]) -> str:
    """Return ``ISO``, or the one format of days that all texts have, or nothing: 01/02/2020 alone may be either."""
    first = str(texts.iloc[0])
    if re.fullmatch(ISO_DATE, first):
        return "ISO" if pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True).notna().all() else ""
    if not re.match(r"\d{1,4}[./]\d", first):
        return ""
    fitting = [f for f in DATE_FORMATS if pd.to_datetime(texts, format=f, errors="coerce").notna().all()]
    return fitting[0] if len(fitting) == 1 else ""


def _read_times(values: pd.Series[Any], column: ColumnSeen) -> pd.Series[Any]:
    """Return a column's moments in UTC, all of them there."""
    if column.kind != "date":
        raise SurveyError("time", column=column.name, reason=f"it holds {column.kind}")
    if column.missing_share:
        reason = f"{column.missing_share:.1%} of its rows are empty"
        raise SurveyError("time", column=column.name, reason=reason)
    return _parse_dates(values, column.date_format)


def _parse_dates(values: pd.Series[Any], date_format: str) -> pd.Series[Any]:
    """Return dates, or texts of one format, as moments in UTC."""
    return pd.to_datetime(values, format="ISO8601" if date_format == "ISO" else date_format or None, utc=True)


def _decide_keys(
    table: pd.DataFrame, seen: Mapping[str, ColumnSeen], names: Sequence[str], given: tuple[str, ...]
) -> tuple[tuple[str, ...], str]:
    """Return the columns that identify a row, and why: those given, one that looks like it, or none."""
    if given:
        n_again = int(table.duplicated(list(given)).sum())
        n_null = int(table[list(given)].isna().any(axis=1).sum())
        if n_again or n_null:
            raise SurveyError("keys", keys=given, n_again=n_again, n_null=n_null)
        return given, "as it was given"
    for name in names:
        column = seen[name]
        is_whole = column.kind == "number" and _is_whole(table[name])
        if column.n_distinct == len(table) and (column.kind == "text" or is_whole):
            counts_up = is_whole and bool(table[name].is_monotonic_increasing)
            if ID_NAME.search(name) or counts_up:
                return (name,), f"'{name}': each row has its own, and it {'counts up' if counts_up else 'is named so'}"
    return (), "none was found: one is made, a hash of each row's content"


def _decide_periods(times: pd.Series[Any]) -> tuple[str, tuple[str, ...], str]:
    """Return the format of the coarsest periods of which there are enough, their names, and why; no format if none."""
    for fewest, (name, form) in itertools.product((MIN_PERIODS, FEWEST_PERIODS), PERIODS.items()):
        counts = times.dt.strftime(form).value_counts()
        if len(counts) >= fewest and (counts >= MIN_PER_PERIOD).mean() >= 0.8:
            why = f"by '{times.name}', {len(counts)} periods of a {name}: trained on the earlier, judged on later ones"
            return form, tuple(sorted(counts.index)), why
    span = times.max() - times.min()
    return (
        "",
        (),
        f"{len(times):,} rows over {span.days} days are too few for {FEWEST_PERIODS} periods of {MIN_PER_PERIOD} rows",
    )


def _decide_role(  # noqa: PLR0911 - one return for each reason
    column: ColumnSeen, times: pd.Series[Any] | None, values: pd.Series[Any]
) -> ColumnSeen:
    """Return a column, that is neither target nor key nor time, with its role and the reason."""
    share = column.n_distinct / max(round(len(values) * (1 - column.missing_share)), 1)
    is_whole = column.kind == "number" and _is_whole(values)
    if column.n_distinct == 0:
        return _with(column, "left out", "it is empty")
    if column.n_distinct == 1 and not column.missing_share:
        return _with(column, "left out", "it is constant")
    if column.kind in ("mixed", "nested"):
        return _with(column, "left out", f"it holds {column.kind} values")
    if share > 0.98 and ((is_whole and ID_NAME.search(column.name)) or column.kind == "text"):
        return _with(column, "left out", "nearly every row has its own: an id or free text")
    if column.kind == "text" and share > 0.5:
        return _with(column, "left out", "free text: most of its values are there once")
    if column.kind == "date":
        if times is not None:
            later = (_parse_dates(values, column.date_format) > times).mean()
            if later > 0.5:
                reason = f"LEAK: known only later, after '{times.name}' in {later:.0%} of the rows"
                return _with(column, "left out", reason)
        return _with(column, "date", "as numbers: see expand_dates in project.py")
    if column.kind == "text" and column.n_distinct > HIGH_CARDINALITY:
        return _with(column, "feature", f"high cardinality: rare ones of its {column.n_distinct:,} values are pooled")
    return column


def _with(column: ColumnSeen, role: Role, reason: str) -> ColumnSeen:
    return replace(column, role=role, reason=reason)


def _judge_alone(column: ColumnSeen, alone: float) -> ColumnSeen:
    """Return a feature with what it tells by itself, left out where that is too much or nothing."""
    column = replace(column, alone=alone)
    if alone >= LEAK:
        return _with(column, "left out", "LEAK: by itself it nearly decides the target")
    if column.n_distinct == 1:
        return _with(column, "left out", "it is constant where it is filled")
    if alone >= SUSPECT and not column.reason:
        return _with(column, column.role, "tells very much: is it known when a row arrives?")
    return column
