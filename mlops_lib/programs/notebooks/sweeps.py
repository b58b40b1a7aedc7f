"""Run a notebook over a grid of its parameters: one parent MLflow run, one child run a trial, on warm kernels.

Every value is checked against the notebook's signature before anything runs. A trial that fails is kept and counted and
stops nothing. What has been run is not run again: the same sweep, called again after it was killed, goes on under the
same parent with the trials that are missing. Refused: a grid without values, and a sweep that another process is at.

>>> found = sweep(project, "02_train", {"family": ["logistic", "boosting"]}, metric="val_roc_auc")  # doctest: +SKIP
>>> found.trials  # one row a trial  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pandas as pd
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from mlops_lib import data, tracking
from mlops_lib.errors import NotebookError, NotebookStoppedError
from mlops_lib.programs.notebooks import cache, remote
from mlops_lib.programs.notebooks.jobs import Job, execute_here, run_jobs
from mlops_lib.programs.notebooks.run import (
    NotebookRun,
    _Execution,
    _kernel_of,
    connect,
    find_notebook,
    read_notebook,
    reap_dead_runs,
)
from mlops_lib.programs.notebooks.signature import Parameter, check_values, read_signature
from mlops_lib.project import Project
from mlops_lib.tracking import liveness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP_TAG = "mlops.sweep"
TRIAL_TAG = "mlops.trial"
PARENT_TAG = "mlflow.parentRunId"  # what MLflow's own pages nest runs by
TRIALS_FILE = "trials.csv"
FIGURE_FILE = "sweep.png"
OUTCOME = ("status", "run_id", "duration_s", "error")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Parameters
    ----------
    notebook : Path
    run_id : str
        The parent run.
    parameters : tuple of str
        The swept ones.
    metric : str
        The result that trials are compared by; empty when no trial recorded a float and none was named.
    greater_is_better : bool
    trials : DataFrame
        One row a trial, in the grid's order: parameters, results, then ``status`` (FINISHED, FAILED, KILLED or
        CANCELLED), ``run_id``, ``duration_s`` and ``error``.
    n_executed : int
        Trials that this call has run; the others had been run already or were cancelled.
    folder : Path
        With ``trials.csv`` and ``sweep.png``, which are artifacts of the parent run too.
    """

    notebook: Path
    run_id: str
    parameters: tuple[str, ...]
    metric: str
    greater_is_better: bool
    trials: pd.DataFrame
    n_executed: int
    folder: Path

    @property
    def passed(self) -> bool:
        """Whether every trial finished."""
        return bool((self.trials["status"] == "FINISHED").all())

    @property
    def ranking(self) -> pd.DataFrame:
        """The trials that recorded the metric, best first."""
        if self.metric not in self.trials:
            return self.trials.iloc[:0]
        values = pd.to_numeric(self.trials[self.metric], errors="coerce")
        known = values[values.abs() < math.inf].sort_values(ascending=not self.greater_is_better, kind="stable")
        return self.trials.loc[known.index]

    @property
    def best(self) -> str:
        """The best trial in words."""
        if self.ranking.empty:
            return f"no trial recorded '{self.metric}'" if self.metric else "no trial recorded a metric"
        row = self.ranking.iloc[0]
        return f"best {self.metric} {row[self.metric]:.6g} ({_label({name: row[name] for name in self.parameters})})"

    def __str__(self) -> str:
        """Return one line for people."""
        counts = ", ".join(f"{n} {str(status).lower()}" for status, n in self.trials["status"].value_counts().items())
        return f"{len(self.trials)} trials of {self.notebook.name}: {counts}, {self.n_executed} run now; {self.best}"


class _Trial(Job):
    """One combination of values, and what has become of it."""

    @property
    def label(self) -> str:
        return _label({name: self.execution.values[name] for name in self.given})

    @property
    def status(self) -> str:
        if self.run:
            return "FINISHED"
        if self.error:
            is_stopped = self.execution.stopped or isinstance(self.error, NotebookStoppedError)
            return "KILLED" if is_stopped else "FAILED"
        return "CANCELLED"

    @property
    def row(self) -> dict[str, Any]:
        values = {name: self.execution.values[name] for name in self.given}
        results = dict(self.run.result) if self.run else {}
        outcome = {
            "status": self.status,
            "run_id": self.run.run_id if self.run else self.execution.run_id,
            "duration_s": round(self.run.duration_s if self.run else self.execution.duration_s, 3),
            "error": str(self.error or ""),
        }
        return values | {_column(name, values): value for name, value in results.items()} | outcome


def sweep(
    project: Project,
    notebook: Path | str,
    grid: Mapping[str, Sequence[Any]],
    *,
    sample: int | None = None,
    random_state: int = 0,
    n_jobs: int = 2,
    metric: str | None = None,
    greater_is_better: bool = True,
    fail_fast: bool = False,
    timeout_s: float | None = None,
    master: str | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Run a notebook once for every combination of parameter values, and compare the results.

    Parameters
    ----------
    project : Project
    notebook : path
        As in :func:`mlops_lib.programs.notebooks.run_notebook`.
    grid : mapping of str to sequence
        The values of each swept parameter.
    sample : int, optional
        Run only so many combinations, drawn without replacement by ``random_state``.
    n_jobs : int
        Trials at a time.
    metric : str, optional
        Key of the notebook's result; by default the first float in it.
    greater_is_better : bool
    fail_fast : bool
        Begin no other trial after the first failure; those that are running are let finish.
    timeout_s : float, optional
        For each trial, in seconds.
    master : str, optional
        Run each trial as a task of this Spark (``local[2]``, ``spark://host:7077``, ``sc://host``), with the store on a
        server and the project's folder on every executor; as many at a time as ``n_jobs`` and Spark's cores allow.
    progress : callable, optional
        Called whenever a trial has ended with trials done, trials in all, and a text with the best so far.

    Raises
    ------
    NotebookError, NotFoundError, ParameterError
        Nothing was run.
    SparkError
        Spark is missing or out of reach; called again, the sweep goes on.
    """
    path = find_notebook(project, notebook)
    source = read_notebook(path)
    signature = read_signature(source, path)
    combinations = list_combinations(signature, grid, path, sample=sample, random_state=random_state)
    if n_jobs < 1:
        raise NotebookError("grid", notebook=path, reason=f"n_jobs is {n_jobs}", expected="at least 1")
    if master:
        remote.raise_for_local_store(project)
    kernel_name = _kernel_of(source, path, None)
    trials = [
        _Trial(
            _Execution(project, path, check_values(signature, given, path), timeout_s),
            source,
            given=given,
            kernel_name=kernel_name,
        )
        for given in combinations
    ]
    key = _compute_key(project, source, trials, kernel_name)

    def summarize(run_id: str, n_executed: int = 0) -> Sweep:
        rows = pd.DataFrame([trial.row for trial in trials], dtype=object).infer_objects()
        rows = rows[[*(name for name in rows if name not in OUTCOME), *OUTCOME]]  # a failed trial has no results
        name = _column(metric or _find_metric(trials), grid)
        folder = project.runs_path / f"sweep-{run_id[:8]}"
        return Sweep(path, run_id, tuple(grid), name, greater_is_better, rows, n_executed, folder)

    with _locked(project, path, key, len(trials)):
        reap_dead_runs(project)
        client, experiment_id = connect(project)
        parent = _find_parent(client, experiment_id, key)
        _recall(client, experiment_id, parent, trials=trials, n_jobs=n_jobs)
        missing = [trial for trial in trials if trial.run is None]
        if parent and parent.info.status == "FINISHED":
            if not missing:
                found = summarize(parent.info.run_id)
                _log_results(client, found)
                return found
            parent = None  # an input has changed: a comparison of its own
        run_id = _open_parent(project, client, experiment_id, parent, path=path, key=key, trials=trials)
        status = "KILLED"
        try:
            for trial in missing:
                name = f"{path.stem} {trial.label}"[:250]
                trial.execution.tags = {PARENT_TAG: run_id, TRIAL_TAG: trial.label, "mlflow.runName": name}
            run_one: Callable[[Job], NotebookRun] = execute_here
            with contextlib.ExitStack() as stack:
                if master and missing:
                    run_one = stack.enter_context(remote.executors(client, master))
                stack.enter_context(liveness.heartbeat(client, run_id))  # each trial has its own, stopped with it
                ended = run_jobs(missing, n_jobs=n_jobs, fail_fast=fail_fast, run_one=run_one)
                for n_ended, _ in enumerate(ended, start=1):
                    if progress:
                        text = summarize(run_id).best
                        n_failed = sum(trial.error is not None for trial in trials)
                        n_done = len(trials) - len(missing) + n_ended
                        progress(n_done, len(trials), f"{text}, {n_failed} failed" if n_failed else text)
            found = summarize(run_id, sum(trial.status != "CANCELLED" for trial in missing))
            _log_results(client, found)
            status = "FINISHED" if found.passed else "FAILED"
        finally:
            liveness.close_run(client, run_id, status)
    return found


def list_combinations(
    signature: Mapping[str, Parameter],
    grid: Mapping[str, Sequence[Any]],
    path: Path,
    *,
    sample: int | None = None,
    random_state: int = 0,
) -> list[dict[str, Any]]:
    """Return the combinations of a grid in order, the last name fastest, or a random sample of them; all checked.

    Raises
    ------
    NotebookError, NotFoundError, ParameterError
    """
    if not grid:
        raise NotebookError(
            "grid", notebook=path, reason="it names no parameter", expected="at least one with its values"
        )
    if sample is not None and sample < 1:
        raise NotebookError("grid", notebook=path, reason=f"sample is {sample}", expected="at least 1")
    values: dict[str, list[Any]] = {}
    for name, given in grid.items():
        if isinstance(given, str) or not hasattr(given, "__iter__"):
            raise NotebookError("grid", notebook=path, reason=f"'{name}' is {given!r}", expected="a list of values")
        plain = [value.item() if hasattr(value, "item") else value for value in given]
        checked = [check_values(signature, {name: value}, path)[name] for value in plain]
        if not checked:
            raise NotebookError("grid", notebook=path, reason=f"'{name}' has no values", expected="at least one")
        values[name] = list({repr(value): value for value in checked}.values())  # 1 and 1.0 are one trial of a float
    n_combinations = math.prod(len(each) for each in values.values())
    chosen: Sequence[int] = range(n_combinations)
    if sample is not None and sample < n_combinations:
        chosen = sorted(random.Random(random_state).sample(chosen, sample))
    return [_pick(values, number) for number in chosen]


def plot_trials(found: Sweep) -> Figure:
    """Draw the metric against each swept parameter: every trial, the mean of each value, the best one."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that a refused sweep does not need

    from mlops_lib.quality.evaluation import BLUE, GREY, VERMILLION  # noqa: PLC0415 - as above

    rows = found.ranking
    names = [name for name in found.parameters if found.trials[name].map(repr).nunique() > 1] or found.parameters[:1]
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(3.6 * n_columns + 0.4, 3.2 * n_rows + 0.8), layout="constrained")
    for ax, name in zip(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat, names, strict=False):
        is_number = is_numeric_dtype(found.trials[name]) and not is_bool_dtype(found.trials[name])
        texts = list(dict.fromkeys(found.trials[name].map(str)))
        at = rows[name].astype(float) if is_number else rows[name].map(lambda value, t=texts: t.index(str(value)))
        scores = rows[found.metric].astype(float)
        means = scores.groupby(at).mean()
        ax.plot(
            means.index, means, "_-" if is_number else "_", color=GREY, lw=1, ms=20, label="mean of a value", zorder=1
        )
        ax.plot(at, scores, "o", color=BLUE, ms=5, alpha=0.6, label="one trial")
        ax.plot(at.iloc[:1], scores.iloc[:1], "*", color=VERMILLION, ms=13, label="best trial")
        if not is_number:
            ax.set_xticks(range(len(texts)), [text if len(text) < 15 else f"{text[:14]}…" for text in texts])
            ax.set_xlim(-0.5, len(texts) - 0.5)
        elif min(at) > 0 and max(at) / min(at) >= 50:
            ax.set_xscale("log")
        elif len(means) <= 6:
            ax.set_xticks(means.index)
        ax.set(title=f"{found.metric} by {name}", xlabel=name, ylabel=found.metric)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
    for ax in figure.axes[len(names) :]:
        ax.remove()
    better = "higher" if found.greater_is_better else "lower"
    figure.suptitle(f"{found.notebook.stem}: {len(rows)} of {len(found.trials)} trials, {better} is better")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _pick(values: dict[str, list[Any]], number: int) -> dict[str, Any]:
    """Return one combination by its number, so that a grid of millions is never listed."""
    picked: dict[str, Any] = {}
    for name in reversed(values):
        number, index = divmod(number, len(values[name]))
        picked[name] = values[name][index]
    return {name: picked[name] for name in values}


def _compute_key(project: Project, source: Mapping[str, Any], trials: Sequence[_Trial], kernel_name: str) -> str:
    """Return the SHA-256 of what makes a sweep the same: all that makes a run the same, and the combinations."""
    path = trials[0].execution.path
    facts = [cache.compute_key(project, path, source, {}, kernel_name), [trial.label for trial in trials]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextlib.contextmanager
def _locked(project: Project, path: Path, key: str, n_trials: int) -> Iterator[None]:
    project.runs_path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(project.runs_path / f".sweep-{key[:12]}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise NotebookError("sweep_running", notebook=path, n_trials=n_trials) from None
    try:
        yield
    finally:
        lock.release()


def _find_parent(client: MlflowClient, experiment_id: str, key: str) -> Run | None:
    """Return the newest parent of this sweep; one that is open is another machine's, whose process we cannot see."""
    found = client.search_runs(
        [experiment_id],
        f"tags.`{SWEEP_TAG}` = '{key}' and attributes.status != 'RUNNING'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0] if found else None


def _recall(
    client: MlflowClient,
    experiment_id: str,
    parent: Run | None,
    *,
    trials: Sequence[_Trial],
    n_jobs: int,
) -> None:
    """Fill in what has been run already: by key with unchanged inputs, or within this unfinished sweep.

    The latter is for notebooks that read what cannot be compared: they are finished once, not once more.
    """
    own: dict[str, Run] = {}
    if parent and parent.info.status != "FINISHED":
        mine = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
        children = client.search_runs([experiment_id], mine, max_results=50_000)
        own = {run.data.tags[TRIAL_TAG]: run for run in children if cache.UNCACHEABLE_TAG in run.data.tags}

    def recall(trial: _Trial) -> NotebookRun | None:
        run = own.get(trial.label)
        return trial.execution.recall(run) if run else trial.execution.find_cached(trial.source, trial.kernel_name)

    with ThreadPoolExecutor(n_jobs) as pool:
        for trial, run in zip(trials, pool.map(recall, trials), strict=True):
            trial.run = run


def _open_parent(
    project: Project,
    client: MlflowClient,
    experiment_id: str,
    parent: Run | None,
    *,
    path: Path,
    key: str,
    trials: Sequence[_Trial],
) -> str:
    """Open the parent run, or open an unfinished one again."""
    runner = liveness.open_tags()
    if parent:
        run_id = str(parent.info.run_id)
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in runner.items()])
        client.update_run(run_id, status="RUNNING")
        return run_id
    name = f"{path.stem} sweep of {len(trials)}"
    tags = tracking.describe_code(project) | runner | {SWEEP_TAG: key, "mlflow.runName": name}
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    grid = {name: {repr(t.execution.values[name]): None for t in trials} for name in trials[0].given}
    client.log_batch(run_id, params=[Param(name, ", ".join(values)[:6000]) for name, values in grid.items()])
    return run_id


def _log_results(client: MlflowClient, found: Sweep) -> None:
    """Log the table, the figure and the best value to the parent."""
    with data.atomic_write(found.folder / TRIALS_FILE, "w") as file:
        found.trials.to_csv(file, index=False)
    client.log_artifact(found.run_id, str(found.folder / TRIALS_FILE))
    if found.ranking.empty:
        return
    with data.atomic_write(found.folder / FIGURE_FILE, "wb") as file:
        plot_trials(found).savefig(file, format="png", dpi=120)
    client.log_artifact(found.run_id, str(found.folder / FIGURE_FILE))
    best = found.ranking.iloc[0]
    metrics = [Metric(found.metric, float(best[found.metric]), int(time.time() * 1000), 0)]
    client.log_batch(found.run_id, metrics=metrics, tags=[RunTag("mlops.best_run", str(best["run_id"]))])


def _find_metric(trials: Sequence[_Trial]) -> str:
    """Return the name of the first float that a trial recorded."""
    results = (trial.run.result for trial in trials if trial.run)
    return next((name for result in results for name, value in result.items() if isinstance(value, float)), "")


def _label(values: Mapping[str, Any]) -> str:
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    return ", ".join(f"{name}={value!r}" for name, value in plain.items())


def _column(name: str, parameters: Iterable[str]) -> str:
    """Return the column of a result, which may be called like a parameter."""
    return f"result.{name}" if name in {*parameters, *OUTCOME} else name
