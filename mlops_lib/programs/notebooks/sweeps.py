"""Run a notebook over a grid of its parameters: one parent MLflow run, one child run a trial, on warm kernels.

Every value is checked against the notebook's signature before anything runs. A trial that fails is kept and counted and
stops nothing. What has been run is not run again: the same sweep, called again after it was killed, goes on under the
same parent with the trials that are missing. Refused: a grid without values, and a sweep that another process is at.

>>> results = sweep(project, "02_train", {"family": ["logistic", "boosting"]}, metric="val_roc_auc")  # doctest: +SKIP
>>> results.trials  # one row a trial  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from mlops_lib import data, tracking
from mlops_lib.errors import NotebookError
from mlops_lib.programs.notebooks import cache, keys, remote
from mlops_lib.programs.notebooks.driver import Progress
from mlops_lib.programs.notebooks.jobs import run_each
from mlops_lib.programs.notebooks.run import (
    PARENT_TAG,
    Execution,
    NotebookRun,
    connect,
    find_notebook,
    plan,
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
TRIALS_FILE = "trials.csv"
FIGURE_FILE = "sweep.png"
OUTCOME = ("status", "run_id", "duration_s", "error")


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
    signature = read_signature(read_notebook(path), path)
    combinations = list_combinations(signature, grid, path, sample=sample, random_state=random_state)
    if n_jobs < 1:
        raise NotebookError("grid", notebook=path, reason=f"n_jobs is {n_jobs}", expected="at least 1")
    if master:
        remote.raise_for_local_store(project)
    trials = plan(project, path, combinations, timeout_s=timeout_s)
    key = _compute_key(trials)

    def summarize(run_id: str, n_executed: int = 0) -> Sweep:
        rows = pd.DataFrame([_describe(trial) for trial in trials], dtype=object).infer_objects()
        rows = rows[[*(name for name in rows if name not in OUTCOME), *OUTCOME]]  # a failed trial has no results
        name = _column(metric or _find_metric(trials), grid)
        folder = project.runs_path / f"sweep-{run_id[:8]}"
        return Sweep(path, run_id, tuple(grid), name, greater_is_better, rows, n_executed, folder)

    with _lock(project, path, key, len(trials)):
        reap_dead_runs(project)
        client, experiment_id = connect(project)
        parent = _find_parent(client, experiment_id, key)
        _recall(client, experiment_id, parent, trials=trials, n_jobs=n_jobs)
        missing = [trial for trial in trials if trial.finished is None]
        if parent and parent.info.status == "FINISHED":
            if not missing:
                return _log_results(client, summarize(parent.info.run_id))
            parent = None  # an input has changed: a comparison of its own
        run_id = _reopen(client, parent) if parent else _open(client, experiment_id, key, trials)
        status = "KILLED"
        try:
            ended = _run(client, run_id, missing, n_jobs=n_jobs, fail_fast=fail_fast, master=master)
            with contextlib.closing(ended):
                for n_ended, _ in enumerate(ended, start=len(trials) - len(missing) + 1):
                    if progress:
                        n_failed = sum(trial.error is not None for trial in trials)
                        failed = f", {n_failed} failed" if n_failed else ""
                        progress(n_ended, len(trials), f"{summarize(run_id).best}{failed}")
            n_executed = sum(_describe(trial)["status"] != "CANCELLED" for trial in missing)
            results = _log_results(client, summarize(run_id, n_executed))
            status = "FINISHED" if results.passed else "FAILED"
        finally:
            liveness.close_run(client, run_id, status)
    return results


def _run(
    client: MlflowClient,
    run_id: str,
    trials: Sequence[Execution],
    *,
    n_jobs: int,
    fail_fast: bool,
    master: str | None,
) -> Generator[Execution]:
    """Run trials under their parent, here or on Spark, and yield each when it has ended."""
    for trial in trials:
        label = _label(trial.given)
        trial.tags = {PARENT_TAG: run_id, TRIAL_TAG: label, "mlflow.runName": f"{trial.path.stem} {label}"[:250]}
    with contextlib.ExitStack() as stack:
        run: Callable[[Execution], NotebookRun] = Execution.execute
        if master and trials:
            run = stack.enter_context(remote.open_executors(client, master))
        stack.enter_context(liveness.heartbeat(client, run_id))  # each trial has its own, stopped with it
        yield from run_each(trials, run, n_jobs=n_jobs, fail_fast=fail_fast)


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

    def refusal(reason: str, expected: str) -> NotebookError:
        return NotebookError("grid", notebook=path, reason=reason, expected=expected)

    if not grid:
        raise refusal("it names no parameter", "at least one with its values")
    if sample is not None and sample < 1:
        raise refusal(f"sample is {sample}", "at least 1")
    values: dict[str, list[Any]] = {}
    for name, given in grid.items():
        if isinstance(given, str) or not hasattr(given, "__iter__"):
            raise refusal(f"'{name}' is {given!r}", "a list of values")
        plain = [value.item() if hasattr(value, "item") else value for value in given]
        checked = [check_values(signature, {name: value}, path)[name] for value in plain]
        if not checked:
            raise refusal(f"'{name}' has no values", "at least one")
        values[name] = list({repr(value): value for value in checked}.values())  # 1 and 1.0 are one trial of a float
    shape = [len(each) for each in values.values()]
    numbers: Sequence[int] = range(math.prod(shape))  # of combinations: a grid of millions is never listed
    if sample is not None and sample < len(numbers):
        numbers = sorted(random.Random(random_state).sample(numbers, sample))
    indices = (np.unravel_index(number, shape) for number in numbers)
    return [{name: values[name][i] for name, i in zip(values, index, strict=True)} for index in indices]


def plot_trials(results: Sweep) -> Figure:
    """Draw the metric against each swept parameter: every trial, the mean of each value, the best one."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that a refused sweep does not need

    from mlops_lib.quality.figures import BLUE, GREY, VERMILLION  # noqa: PLC0415 - as above

    trials, rows = results.trials, results.ranking
    names = [name for name in results.parameters if trials[name].map(repr).nunique() > 1] or results.parameters[:1]
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(3.6 * n_columns + 0.4, 3.2 * n_rows + 0.8), layout="constrained")
    for ax, name in zip(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat, names, strict=False):
        is_number = is_numeric_dtype(trials[name]) and not is_bool_dtype(trials[name])
        texts = list(dict.fromkeys(trials[name].map(str)))
        at = rows[name].astype(float) if is_number else rows[name].map(lambda value, t=texts: t.index(str(value)))
        scores = rows[results.metric].astype(float)
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
        ax.set(title=f"{results.metric} by {name}", xlabel=name, ylabel=results.metric)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.25)
    for ax in figure.axes[len(names) :]:
        ax.remove()
    better = "higher" if results.greater_is_better else "lower"
    figure.suptitle(f"{results.notebook.stem}: {len(rows)} of {len(trials)} trials, {better} is better")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _compute_key(trials: Sequence[Execution]) -> str:
    """Return the SHA-256 of what makes a sweep the same: all that makes a run the same, and the combinations."""
    one = trials[0]
    key = cache.compute_key(one.project, one.path, one.notebook, {}, one.kernel_name)
    return keys.digest([key, [_label(trial.given) for trial in trials]])


@contextlib.contextmanager
def _lock(project: Project, path: Path, key: str, n_trials: int) -> Iterator[None]:
    project.runs_path.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(project.runs_path / f".sweep-{key[:12]}.lock").acquire(timeout=0)
    except filelock.Timeout:
        raise NotebookError("sweep_running", notebook=path, n_trials=n_trials) from None
    with lock:
        yield


def _find_parent(client: MlflowClient, experiment_id: str, key: str) -> Run | None:
    """Return the newest parent of this sweep; one that is open is another machine's, whose process we cannot see."""
    parents = client.search_runs(
        [experiment_id],
        f"tags.`{SWEEP_TAG}` = '{key}' and attributes.status != 'RUNNING'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return parents[0] if parents else None


def _recall(
    client: MlflowClient, experiment_id: str, parent: Run | None, *, trials: Sequence[Execution], n_jobs: int
) -> None:
    """Fill in what has been run already: by key with unchanged inputs, or within this unfinished sweep.

    The latter is for notebooks that read what cannot be compared: they are finished once, not once more.
    """
    own: dict[str, Run] = {}
    if parent and parent.info.status != "FINISHED":
        mine = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
        children = client.search_runs([experiment_id], mine, max_results=50_000)
        own = {run.data.tags[TRIAL_TAG]: run for run in children if cache.UNCACHEABLE_TAG in run.data.tags}

    def recall(trial: Execution) -> NotebookRun | None:
        run = own.get(_label(trial.given))
        return trial.recall(run) if run else trial.find_cached()

    with ThreadPoolExecutor(n_jobs) as pool:
        for trial, run in zip(trials, pool.map(recall, trials), strict=True):
            trial.finished = run


def _open(client: MlflowClient, experiment_id: str, key: str, trials: Sequence[Execution]) -> str:
    """Open the parent run."""
    one = trials[0]
    name = f"{one.path.stem} sweep of {len(trials)}"
    tags = tracking.describe_code(one.project) | liveness.open_tags() | {SWEEP_TAG: key, "mlflow.runName": name}
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    grid = {name: dict.fromkeys(repr(trial.given[name]) for trial in trials) for name in one.given}
    client.log_batch(run_id, params=[Param(name, ", ".join(values)[:6000]) for name, values in grid.items()])
    return run_id


def _reopen(client: MlflowClient, parent: Run) -> str:
    """Open an unfinished parent run again."""
    run_id = str(parent.info.run_id)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in liveness.open_tags().items()])
    client.update_run(run_id, status="RUNNING")
    return run_id


def _log_results(client: MlflowClient, results: Sweep) -> Sweep:
    """Log the table, the figure and the best value to the parent."""
    with data.atomic_write(results.folder / TRIALS_FILE, "w") as file:
        results.trials.to_csv(file, index=False)
    client.log_artifact(results.run_id, str(results.folder / TRIALS_FILE))
    if not results.ranking.empty:
        with data.atomic_write(results.folder / FIGURE_FILE, "wb") as file:
            plot_trials(results).savefig(file, format="png", dpi=120)
        client.log_artifact(results.run_id, str(results.folder / FIGURE_FILE))
        best = results.ranking.iloc[0]
        metrics = [Metric(results.metric, float(best[results.metric]), int(time.time() * 1000), 0)]
        client.log_batch(results.run_id, metrics=metrics, tags=[RunTag("mlops.best_run", str(best["run_id"]))])
    return results


def _find_metric(trials: Sequence[Execution]) -> str:
    """Return the name of the first float that a trial recorded."""
    results = (trial.finished.result for trial in trials if trial.finished)
    return next((name for result in results for name, value in result.items() if isinstance(value, float)), "")


def _describe(trial: Execution) -> dict[str, Any]:
    """Return a trial's row of the table."""
    run = trial.finished
    results = {_column(name, trial.given): value for name, value in run.result.items()} if run else {}
    outcome = {
        "status": "FINISHED" if run else trial.status or ("FAILED" if trial.error else "CANCELLED"),
        "run_id": run.run_id if run else trial.run_id,
        "duration_s": round(run.duration_s if run else trial.duration_s, 3),
        "error": str(trial.error or ""),
    }
    return {**trial.given, **results, **outcome}


def _label(values: Mapping[str, Any]) -> str:
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    return ", ".join(f"{name}={value!r}" for name, value in plain.items())


def _column(name: str, parameters: Iterable[str]) -> str:
    """Return the column of a result, which may be called like a parameter."""
    return f"result.{name}" if name in {*parameters, *OUTCOME} else name
