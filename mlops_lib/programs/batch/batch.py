"""Score a table with one or several versions in one pass, batch by batch, in constant memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from mlops_lib import contracts, registry
from mlops_lib.errors import BatchError
from mlops_lib.programs.batch.keys import find_repeated
from mlops_lib.programs.batch.result import ScoreResult, read_libraries
from mlops_lib.programs.batch.rows import BatchScorer, Scored
from mlops_lib.programs.batch.sinks import Sink, open_sink
from mlops_lib.programs.batch.sources import Source, open_source, split_address
from mlops_lib.project import Project
from mlops_lib.registry import Release

Progress = Callable[[int, int | None], None]
MAX_WORKERS = 4  # each holds a batch: more would need more memory, and the reader could not feed them
TRIM_BATCHES = 8  # after so many, memory that was freed goes back to the system


def score_table(
    project: Project,
    version: int | str,
    input_path: Path | str,
    output_path: Path | str,
    *,
    rows: int | None = None,
    progress: Progress | None = None,
) -> ScoreResult:
    """Score a table in batches, with a version or with what a stage points to.

    Parameters
    ----------
    version : int or str
        A number or a stage; resolved and verified once.
    input_path : path or str
        A Parquet or CSV file, a folder of Parquet files (``key=value`` in a path is a column), or ``URL::table`` or
        ``URL::select …`` of a database. Keys and features are needed; other columns are ignored.
    output_path : path or str
        A Parquet file or ``URL::table``: keys, predictions (``task.to_columns``), ``prediction_id``, name, version,
        digest and time; features as ``project.keep_features`` says. ``{version}`` stands for the version's number.
    rows : int, optional
        Score only the first so many rows, as a smoke test does.
    progress : callable, optional
        Called with rows done and rows in all (None where unknown) after each batch.

    Raises
    ------
    BatchError, TableError, WriteError, ModelFileError
        For more bad rows than the contract allows or a table that breaks it as a whole, an output that is taken or
        cannot be written, an input that cannot be read, lacks columns or changes meanwhile. Nothing was written.
    """
    return score_versions(project, [version], input_path, output_path, rows=rows, progress=progress)[0]


def score_versions(
    project: Project,
    versions: Sequence[int | str],
    input_path: Path | str,
    output_path: Path | str,
    *,
    rows: int | None = None,
    progress: Progress | None = None,
) -> list[ScoreResult]:
    """Score a table with several versions or stages in one pass, each held to its own contract.

    Parameters are those of :func:`score_table`; ``output_path`` holds ``{version}`` or is a SQL table. Stages that
    point to one version are one result.

    Raises
    ------
    BatchError
        One file was named for several versions; and whatever :func:`score_table` raises. Nothing was written.
    """
    started = time.monotonic()
    releases = load_releases(project, versions)
    outputs = [name_output(output_path, release.version) for release in releases]
    if len(set(map(str, outputs))) < len(releases) and split_address(output_path) is None:
        raise BatchError("one_output", output=str(output_path), versions=tuple(release.version for release in releases))
    scored_at = datetime.now(UTC).replace(microsecond=0)
    scorings = [Scoring(make_scorer(release, project, scored_at), release) for release in releases]
    with contextlib.ExitStack() as stack:
        for scoring, output in zip(scorings, outputs, strict=True):
            scoring.sink = open_sink(output)
            stack.callback(scoring.sink.close)
        source = stack.enter_context(open_source(input_path, scorings[0].contract.keys))
        for scoring in scorings:
            source.raise_for_columns([*scoring.contract.keys, *scoring.contract.features])
        fingerprint = source.fingerprint()
        for scoring in scorings:
            scoring.done = scoring.sink.find_done(scoring.release, fingerprint, rows)
        waiting = [scoring for scoring in scorings if scoring.done is None]
        durations = {"prepare": time.monotonic() - started}
        if waiting:
            _score(source, waiting, rows, progress, durations)
        for scoring in waiting:
            durations["total"] = time.monotonic() - started
            scoring.done = scoring.sink.publish(make_account(scoring, source, fingerprint, rows, durations))
    return [scoring.done for scoring in scorings if scoring.done is not None]


@dataclass
class Scoring:
    """One version's part of a pass."""

    scorer: BatchScorer
    release: Release
    sink: Sink = field(init=False)
    done: ScoreResult | None = None
    n_rows: int = 0
    n_scored: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    tally: contracts.Tally = field(default_factory=contracts.Tally)

    @property
    def contract(self) -> contracts.Contract:
        """What this version holds rows to."""
        return self.scorer.contract

    def take(self, scored: Scored) -> None:
        """Write a batch's rows and count them."""
        self.sink.write(scored.good, scored.bad)
        self.n_rows += scored.good.num_rows + scored.bad.num_rows
        self.n_scored += scored.good.num_rows
        self.rules.update(scored.bad_by_rule)
        self.tally += scored.tally

    def raise_for_table(self, name: str, *, is_whole: bool = True) -> None:
        """Raise if too many rows are bad, or if the whole table (a sample may differ) breaks the contract."""
        contract, n_bad = self.contract, self.n_rows - self.n_scored
        if n_bad > contract.max_bad_share * self.n_rows:
            raise BatchError(
                "bad_rows",
                path=name,
                n_bad=n_bad,
                n_rows=self.n_rows,
                max_bad_share=contract.max_bad_share,
                rules=[f"{rule} ({count})" for rule, count in self.rules.most_common()],
            )
        report = self.tally.report(contract)
        failures = tuple(f"{row.name}: {row.reason}" for row in report.rows if row.status == "failed")
        if is_whole and failures:
            raise BatchError("bad_table", path=name, failures=failures)


def load_releases(project: Project, versions: Sequence[int | str]) -> list[Release]:
    """Load each version once; stages that point to the same one are joined."""
    stages: dict[int, list[str]] = {}
    for version in versions:
        named = stages.setdefault(registry.resolve(project, version), [])
        if version in project.stages and version not in named:
            named.append(str(version))
    # Loaded by number: a stage that moves meanwhile does not move this batch.
    return [
        replace(registry.load_model(project, version), stage=", ".join(names) or None)
        for version, names in stages.items()
    ]


def name_output(output: Path | str, version: int) -> Path | str:
    """Put a version's number where ``{version}`` stands."""
    named = str(output).replace("{version}", str(version))
    return Path(named) if isinstance(output, Path) else named


def make_scorer(release: Release, project: Project, scored_at: datetime) -> BatchScorer:
    """Return what scores batches with a release."""
    return BatchScorer(
        name=release.name,
        version=release.version,
        digest=release.digest,
        task=release.task,
        features=release.features,
        model=release.model,
        contract=contracts.Contract.from_dict(release.files.contract),
        scored_at=scored_at,
        keep_features=project.keep_features,
        verdict=release.files.compiled,
    )


def _score(
    source: Source,
    scorings: Sequence[Scoring],
    rows: int | None,
    progress: Progress | None,
    durations: dict[str, float],
) -> None:
    """Read once; check and predict in threads; write in order; refuse before anything is shown."""
    started = time.monotonic()
    folders = [scoring.sink.open() for scoring in scorings]
    digests = [scoring.contract.digest for scoring in scorings]
    by_contract = dict(zip(digests, (scoring.contract for scoring in scorings), strict=True))
    repeated = {
        digest: find_repeated(partial(_read_keys, source, contract, rows), folders[0])
        for digest, contract in by_contract.items()
    }
    durations["keys"] = time.monotonic() - started
    n_rows = source.n_rows
    total = min(n_rows, rows) if n_rows and rows else n_rows

    def work(batch: pa.RecordBatch) -> list[Scored]:
        splits = {digest: contracts.split_batch(contract, batch) for digest, contract in by_contract.items()}
        both = zip(scorings, digests, strict=True)
        return [scoring.scorer.score(batch, splits[digest], repeated[digest]) for scoring, digest in both]

    n_workers = 1 if all(scoring.scorer.is_compiled for scoring in scorings) else min(_count_cpus(), MAX_WORKERS)
    for n_batches, results in enumerate(_in_threads(work, _read(source, None, rows), n_workers)):
        for scoring, scored in zip(scorings, results, strict=True):
            scoring.take(scored)
        if n_batches % TRIM_BATCHES == 0:
            _trim_memory()
        if progress:
            progress(scorings[0].n_rows, total)
    source.raise_if_changed()
    durations["score"] = time.monotonic() - started - durations["keys"]
    for scoring in scorings:
        scoring.raise_for_table(source.name, is_whole=rows is None)


def _count_cpus() -> int:
    """Return how many CPUs this process may use, where the system says so, or has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _trim_memory() -> None:
    """Give freed memory back to the system, where its C library is glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _in_threads(
    work: Callable[[pa.RecordBatch], list[Scored]], batches: Iterator[pa.RecordBatch], n_workers: int
) -> Iterator[list[Scored]]:
    """Yield results in the order of the batches, a few of them ahead, while others are read and written.

    Each thread has one OpenMP thread, as two OpenMP teams at once would wait for one another. What is compiled takes
    many short steps in numpy: two threads of it would wait for the interpreter, and gain nothing.
    """
    pending: deque[Future[list[Scored]]] = deque()
    pool = ThreadPoolExecutor(n_workers, initializer=threadpool_limits, initargs=(1, "openmp"))
    try:
        for batch in batches:
            pending.append(pool.submit(work, batch))
            if len(pending) > n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: Source, columns: Sequence[str] | None, rows: int | None) -> Iterator[pa.RecordBatch]:
    """Yield the source's batches, up to so many rows."""
    left = rows
    for batch in source.batches(columns):
        yield batch if left is None else batch.slice(0, left)
        if left is not None:
            left -= batch.num_rows
            if left <= 0:
                return


def _read_keys(source: Source, contract: contracts.Contract, rows: int | None) -> Iterator[pd.DataFrame]:
    for batch in _read(source, contract.keys, rows):
        yield contracts.read_keys(contract, batch)


def make_account(
    scoring: Scoring, source: Source, fingerprint: str, rows: int | None, durations: Mapping[str, float]
) -> ScoreResult:
    """Return the account of a pass that took ``durations`` (seconds, ``total`` among them), but for the sink's part."""
    rounded = {name: round(seconds, 3) for name, seconds in durations.items()}
    return ScoreResult(
        name=scoring.release.name,
        version=scoring.release.version,
        stage=scoring.release.stage,
        digest=scoring.release.digest,
        input=source.name,
        input_fingerprint=fingerprint,
        output=scoring.sink.name,
        output_fingerprint="",
        quarantine=None,
        n_rows=scoring.n_rows,
        n_scored=scoring.n_scored,
        n_quarantined=scoring.n_rows - scoring.n_scored,
        bad_by_rule=dict(scoring.rules),
        contract=scoring.contract.digest,
        scored_at=scoring.scorer.scored_at.isoformat(),
        duration_s=rounded["total"],
        rows=rows,
        durations=rounded,
        libraries=read_libraries(),
    )
