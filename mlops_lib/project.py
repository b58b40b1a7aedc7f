"""What one project is: its model, data, gates, stages and notebooks, in one frozen record.

The project file (``notebooks/project.py``) builds ``project = Project(...)``, which holds its fields against each other
when it is made: nothing runs on names that the store will not take. :func:`load_project` finds and imports the file and
is the only reader of environment variables in this library. It refuses a file without a project and a period that was
never ingested, with the list of what exists.

>>> from mlops_lib.project import load_project
>>> project = load_project()  # doctest: +SKIP
"""

from __future__ import annotations

import configparser
import contextlib
import getpass
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import unquote, urlsplit

from mlops_lib import redaction
from mlops_lib.errors import MlopsError, NotFoundError, ProjectError, SignatureError
from mlops_lib.project_fields import NAME, Costs, Monitoring, Policy, check_fields

if TYPE_CHECKING:
    from mlops_lib.task import Task

__all__ = ["ONLY_PERIOD", "PROJECT_FILE", "Costs", "Monitoring", "Policy", "Project", "find_project_file"]
__all__ += ["load_project", "sqlite_uri"]

PROJECT_FILE = Path("notebooks/project.py")
ONLY_PERIOD = "all"  # the period of a table that is one file


def _binary() -> Task:
    from mlops_lib.task import binary  # noqa: PLC0415 - it loads pandas, which `mlops check` may do without

    return binary()


@dataclass(frozen=True)
class Project:
    """One project, as its project file declares it.

    Without target, keys, features, arrivals and labels it is one of notebooks alone.

    Parameters
    ----------
    name : str
        Name of the registered model and of the MLflow experiment, and of a folder.
    root : Path
        Folder that ``arrivals``, ``labels`` and ``notebooks`` are relative to.
    target : str
        Column of the label tables that the model predicts.
    keys : tuple of str
        Columns that identify a row, in arrivals, labels and predictions alike.
    features : tuple of str
        Columns that the model may see.
    arrivals, labels : str
        Path templates with one ``{period}``, for what is known when a row arrives and for what becomes known later; or
        one file each, whose only period is ``all``. Without ``labels`` the arrivals hold the target too.
    period_order : tuple of str
        Periods in their order, where dates and the numbers in names do not give it: those first, then the others.
    predictions : str
        Path template with ``{period}`` and ``{version}``, for what was predicted in between.
    labelled_at : str
        Column of the label tables: when that label became known (UTC). Without it, all labels count at any time.
    gates : tuple
        What a candidate must pass; see :mod:`mlops_lib.gates`.
    min_evaluation_rows : int
        A verdict on fewer rows has failed.
    time : str
        Column of the arrivals that says when a row came; then evaluation rows must all be later than those of training.
    slices : tuple of str
        Feature columns whose values are looked at one by one.
    stages : tuple of str
        In order of trust, two or more; a new version enters the first one.
    may_skip_stages : bool
        Whether a version may go from the first stage to any other at once.
    approvals : tuple of str
        Stages that a version enters only with a second person's approval.
    task : Task
        ``binary(positive=…, threshold=…)``, ``multiclass()`` or ``regression()`` of :mod:`mlops_lib.task`.
    metrics : tuple of str or quality.Metric
        What comparison and monitoring measure besides the task's own: functions of ``sklearn.metrics`` by name, and the
        project's, which gates may then name.
    ingest : callable, optional
        Writes every period's tables; returns the periods written. What ``mlops ingest`` calls.
    trusted_types : tuple of str
        Types of an installed package of yours that a model file may contain.
    trusted_keys : tuple of str
        Public keys (``ed25519:…``, see :mod:`mlops_lib.models.signing`); with any, only what one of them has signed is
        loaded.
    adjust_contract : callable, optional
        Takes the contract inferred from training data and returns the one to use.
    keep_features : {"none", "values", "hash"}
        Whether batch predictions carry the features they were made from, or a 64-bit hash of them.
    costs : Costs, optional
        What mistakes cost: `quality.choose_threshold` goes by it, and gates and reports may name ``mean_cost``.
    monitoring : Monitoring
        How far production may move.
    policy : Policy
        When `mlops operate` trains again, what may go to production by itself, and whom it tells.
    output_limit_mb : int
        How much one cell of a notebook that is run may put out; the rest is counted and dropped.
    chain : bool
        Whether notebooks build on those before them, in the order of their names: `mlops check` then runs them on one
        store, else each on its own.
    notebook_style : bool
        Whether `mlops check` also asks for a parameters cell, a comment for each parameter, and ruff.
    output_tolerance : float
        By how large a share of it a number in a notebook's outputs may differ from the committed one.

    Raises
    ------
    ProjectError, NotFoundError
        For a field that cannot be used as it is. Nothing was run.
    """

    name: str
    root: Path
    target: str = ""
    keys: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    arrivals: str = ""
    labels: str = ""
    period_order: tuple[str, ...] = ()
    predictions: str = "data/predictions/{period}/version-{version}.parquet"
    labelled_at: str = "labelled_at"
    gates: tuple[Any, ...] = ()
    min_evaluation_rows: int = 100
    time: str = ""
    slices: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("dev", "staging", "prod")
    may_skip_stages: bool = False
    approvals: tuple[str, ...] = ()
    task: Task = field(default_factory=_binary)
    metrics: tuple[Any, ...] = ()
    ingest: Callable[[], tuple[str, ...]] | None = None
    trusted_types: tuple[str, ...] = ()
    trusted_keys: tuple[str, ...] = ()
    adjust_contract: Callable[[Any], Any] | None = None
    keep_features: Literal["none", "values", "hash"] = "none"
    costs: Costs | None = None
    monitoring: Monitoring = Monitoring()
    policy: Policy = Policy()
    notebooks: str = "notebooks"
    output_limit_mb: int = 20
    chain: bool = False
    notebook_style: bool = False
    output_tolerance: float = 0.0
    # Filled in by load_project, from the environment of this process.
    file: Path | None = None
    tracking_uri: str = ""
    actor: str = ""
    signing_key: Path | None = None
    run_id: str | None = None
    notebook: str | None = None
    outputs: Path | None = None
    state: Path | None = None
    now: datetime | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise for the first field that cannot be used as it is."""
        for name, value, fits, needs in check_fields(self):
            if not fits:
                raise ProjectError("field", field=name, value=value, needs=needs)
        for column in self.slices:
            if column not in self.features:
                raise NotFoundError("feature", column=column, features=self.features)
        for stage in self.approvals:
            self.raise_for_stage(stage)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must not be written anywhere: of variables named like secrets, and passwords in URLs."""
        return redaction.find_secrets(self.environ, self.tracking_uri)

    @property
    def production(self) -> str:
        """The last stage: the one whose version is the champion."""
        return self.stages[-1]

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that the project has: ``arrivals`` and, where they are a table of their own, ``labels``."""
        return tuple(name for name in ("arrivals", "labels") if getattr(self, name))

    def raise_for_stage(self, stage: str) -> None:
        """Raise ``NotFoundError`` unless the project declares ``stage``."""
        if stage not in self.stages:
            raise NotFoundError("stage", stage=stage, stages=self.stages)

    def periods(self, table: str = "arrivals", first: str | None = None, last: str | None = None) -> tuple[str, ...]:
        """Return the periods that ``arrivals`` or ``labels`` exist for, in order; from ``first`` to ``last`` if named.

        Raises
        ------
        NotFoundError, ProjectError
            For a named period that was not ingested, and where ``first`` is the later one.
        """
        template = self._template(table)
        head, has_period, tail = template.partition("{period}")
        if has_period:
            paths = glob.glob(f"{glob.escape(head)}*{glob.escape(tail)}", root_dir=self.root)  # noqa: PTH207 - a template may be absolute
            known = tuple(sorted((path[len(head) : -len(tail) or None] for path in paths), key=self._place))
        else:
            known = (ONLY_PERIOD,) if template and (self.root / template).is_file() else ()
        for period in filter(None, (first, last)):
            self.path(table, period)
        start, end = known.index(first) if first else 0, known.index(last) if last else len(known) - 1
        if first and last and start > end:
            raise ProjectError("periods", first=first, last=last)
        return known[start : end + 1]

    def _template(self, table: str) -> str:
        """Return the path template of ``arrivals`` or ``labels``, which may stand in one table."""
        return self.labels or self.arrivals if table == "labels" else str(getattr(self, table))

    def _place(self, period: str) -> tuple[int, list[int | str]]:
        """Return what periods are sorted by: as listed, then by the numbers in their names, ``9`` before ``10``."""
        if period in self.period_order:
            return 0, [self.period_order.index(period)]
        return 1, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", period, flags=re.ASCII)]

    def path(self, table: str, period: str) -> Path:
        """Return the existing file of one period of ``arrivals`` or ``labels``.

        Raises
        ------
        NotFoundError
            If there is no such file.
        """
        path = self.root / self._template(table).format(period=period)
        periods = self.periods(table)
        if period not in periods or not path.is_file():  # a name such as '../x' is no period, though it may be a file
            raise NotFoundError("period", period=period, table=table, periods=periods, path=path)
        return path

    def paths(self, table: str, first: str, last: str) -> list[Path]:
        """Return the files of the periods from ``first`` to ``last``, both included and both ingested.

        Raises
        ------
        NotFoundError, ProjectError
        """
        return [self.path(table, period) for period in self.periods(table, first, last)]

    def predictions_path(self, period: str, version: int) -> Path:
        """Return where a version's predictions for a period go, whether or not they are there."""
        return (self.outputs or self.root) / self.predictions.format(period=period, version=version)

    @property
    def runs_path(self) -> Path:
        """Folder of executed notebooks."""
        return (self.outputs or self.root) / "runs"

    @property
    def operated_path(self) -> Path:
        """Folder of what `mlops operate` has seen and done: its tables, and a record of each tick."""
        return (self.outputs or self.root) / "data" / "operate"

    def feedback_path(self, period: str) -> Path:
        """Return where labels that came as feedback for a period's rows are, whether or not there are any."""
        return self.root / "data" / "feedback" / f"{period}.parquet"

    @property
    def clock(self) -> datetime:
        """The time: that of a simulation, or of this machine."""
        return self.now or datetime.now(UTC)


def find_project_file(file: str | Path | None = None) -> Path:
    """Find the project file: ``notebooks/project.py`` here or in a parent folder, unless one is named.

    Parameters
    ----------
    file : path, optional
        The file or its project's folder; by default what ``MLOPS_PROJECT`` names.

    Raises
    ------
    ProjectError
        With every place that was looked at.
    """
    named, here = file or os.environ.get("MLOPS_PROJECT"), Path.cwd()
    candidates = [folder / PROJECT_FILE for folder in (here, *here.parents)]
    if named:
        place = Path(named).resolve()
        candidates = [place / PROJECT_FILE, place / PROJECT_FILE.name] if place.is_dir() else [place]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ProjectError("not_found", looked_at=tuple(candidates))


def load_project(file: str | Path | None = None, *, or_here: bool = False) -> Project:
    """Import the project file and complete its project from the environment.

    ``MLFLOW_TRACKING_URI`` names the store (default: ``sqlite:///<root>/mlflow.db``). On a server, who acts is the user
    that it knows (``MLFLOW_TRACKING_USERNAME`` or ``~/.mlflow/credentials``), elsewhere ``MLOPS_ACTOR`` or the login
    name. ``MLOPS_OUTPUTS`` is a folder for predictions and executed notebooks (default: the root),
    ``MLOPS_SIGNING_KEY`` is the file of a private key that signs what this process logs, ``MLOPS_TRUSTED_KEYS`` a
    folder of public keys (``*.pub``) besides the project's own, ``MLFLOW_RUN_ID`` is the run that a runner has opened
    for this process, and ``MLOPS_NOTEBOOK`` or JupyterLab's ``JPY_SESSION_NAME`` the notebook that it executes. In a
    replay of the past ``MLOPS_NOW`` is the simulated time, after which no label is known, and ``MLOPS_STAGES`` names
    the stages of one of its policies.

    Parameters
    ----------
    file : path, optional
        As for :func:`find_project_file`.
    or_here : bool
        Where no project file is named or found, return a project of the working folder's notebooks alone: its
        experiment has the folder's name, its store stands in it.

    Raises
    ------
    ProjectError, SignatureError
        Nothing was run.
    """
    try:
        path = find_project_file(file)
    except ProjectError:
        if not or_here or file or os.environ.get("MLOPS_PROJECT"):
            raise
        here = Path.cwd()
        plain = re.sub(r"[^\w -]+|^[ -]+|[ -]+$", "", here.name) or "notebooks"
        return _complete(Project(here.name if NAME.fullmatch(here.name) else plain, here, notebooks="."), None)
    spec = importlib.util.spec_from_file_location(f"mlops_project_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ProjectError("file", file=path, reason="it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    try:
        with _kept_apart():
            spec.loader.exec_module(module)
    except MlopsError:
        raise
    except (Exception, SystemExit) as error:
        raise ProjectError("file", file=path, reason=f"{type(error).__name__}: {error}") from error
    project = getattr(module, "project", None)
    if not isinstance(project, Project):
        reason = "it defines no `project`" if project is None else "`project` is not a Project"
        raise ProjectError("file", file=path, reason=reason)
    return _complete(project, path)


def _complete(project: Project, path: Path | None) -> Project:
    """Return a project with what the environment says of store, actor, keys and run."""
    uri, environ = _tracking_uri(project.root), dict(os.environ)
    signing_key, outputs = environ.get("MLOPS_SIGNING_KEY"), environ.get("MLOPS_OUTPUTS")
    if stages := environ.get("MLOPS_STAGES"):
        project = replace(project, stages=tuple(stages.split(",")), approvals=())
    return replace(
        project,
        file=path,
        tracking_uri=uri,
        actor=_account_name(uri) or environ.get("MLOPS_ACTOR") or _login_name(),
        signing_key=Path(signing_key).resolve() if signing_key else None,
        trusted_keys=(*project.trusted_keys, *_read_trusted_keys()),
        run_id=environ.get("MLOPS_RUN_ID") or environ.get("MLFLOW_RUN_ID") or None,  # a first call of MLflow takes its
        notebook=environ.get("MLOPS_NOTEBOOK") or environ.get("JPY_SESSION_NAME") or None,
        outputs=Path(outputs).resolve() if outputs else None,
        state=_state_folder(),
        now=_simulated_time(environ.get("MLOPS_NOW")),
        environ=environ,
    )


def _simulated_time(text: str | None) -> datetime | None:
    """Return the time that a replay pretends it is, in UTC."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ProjectError("clock", text=text) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _state_folder() -> Path | None:
    """Return where this user's clients remember what they have seen; None for an empty ``MLOPS_STATE_DIR``."""
    named, standard = os.environ.get("MLOPS_STATE_DIR"), os.environ.get("XDG_STATE_HOME")
    if named is not None:
        return Path(named).resolve() if named else None
    try:
        return (Path(standard) if standard else Path.home() / ".local" / "state") / "mlops"
    except RuntimeError:  # nobody's home
        return None


@contextlib.contextmanager
def _kept_apart() -> Iterator[None]:
    """Let a project file neither answer nor end in a command's place: what it prints goes to stderr."""
    owner, end, answers = os.getpid(), os._exit, os.dup(1)

    def refuse(code: int) -> NoReturn:
        if os.getpid() == owner:
            raise SystemExit(f"os._exit({code})")
        end(code)  # a process that it has forked

    os.dup2(2, 1)
    os._exit = refuse  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os._exit = end
        os.dup2(answers, 1)
        os.close(answers)


def _account_name(uri: str) -> str | None:
    """Return the name that MLflow's client gives to a server: nobody moves anything under another one."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    stored = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        stored.read(Path("~/.mlflow/credentials").expanduser(), encoding="utf-8")
    named = stored.get("mlflow", "mlflow_tracking_username", fallback=None)
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or named or parts.username


def _read_trusted_keys() -> tuple[str, ...]:
    """Return the public keys in the folder that ``MLOPS_TRUSTED_KEYS`` names; naming one without keys is a mistake."""
    named = os.environ.get("MLOPS_TRUSTED_KEYS")
    if not named:
        return ()
    texts = (path.read_text(encoding="utf-8").strip() for path in sorted(Path(named).glob("*.pub")))
    keys = tuple(text for text in texts if text)
    if not keys:
        raise SignatureError("key", path=Path(named), reason="holds no public key")
    return keys


def _login_name() -> str:
    """Return the login name, or the user's number where a container knows no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _tracking_uri(root: Path) -> str:
    """Return the store's URI; a relative SQLite path is made absolute, since MLflow would follow the working folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(root / "mlflow.db")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return sqlite_uri(Path(unquote(uri.removeprefix("sqlite:///"))).resolve())
    return uri


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite file, as SQLAlchemy reads it: unquoted, as far as a ``?``.

    MLflow makes the folder that stands in a ``sqlite:///`` as it stands there, quoted: with the driver's name it does
    not.
    """
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite{'' if quoted == str(path) else '+pysqlite'}:///{quoted}"
