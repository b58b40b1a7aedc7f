"""What a candidate must pass before it moves: gates that belong to the project, run on evidence, closed by default.

A gate is a small frozen record with a ``check``. :func:`check_gates` runs all of them on the same rows for candidate
and champion and returns a Report bound to model digest, evaluation data, champion digest, gate definitions and commit;
``registry.promote`` recomputes all of these. An exception, a NaN or a missing metric is a failure with its reason,
never a pass. The first model ever has no champion: gates that compare are then *not applicable*, the others must carry
it alone, and the report says so.

Every comparison is a test with a stated chance of being wrong, ``alpha``, one-sided: a model exactly at the limit
passes with that probability (``NoSliceWorse``: is stopped with it). All gates must pass, so passing wrongly is no more
likely for many gates than for one. ``clusters`` names the column of rows that belong together; a column of times counts
by day. Rows of one day share what is not in the table, and to count them as independent makes intervals too narrow.

>>> gates = (Threshold("roc_auc", 0.62), NoWorse("roc_auc", margin=0.01), NoLeakage())
"""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlops_lib import contracts, data, models, quality, registry, tracking
from mlops_lib.errors import GateError, QualityError
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row, Status
from mlops_lib.task import Task, binary

Floats = npt.NDArray[Any]
Change = Callable[[pd.DataFrame], pd.DataFrame]

ALPHA = 0.025  # one-sided; the interval shown is then the usual one of 95 %
NO_CHAMPION = "the first model has no champion to be compared with"
FIRST_MODEL = "There is no champion yet: this model is judged on absolute gates alone, and compared with nothing."


@dataclass(frozen=True)
class Evidence:
    """What gates are run on: the same labelled rows, scored by the candidate and by the champion.

    Parameters
    ----------
    frame : DataFrame of shape (n_rows, n_columns)
        Features, in the contract, and what else the evaluation rows have, under a unique index.
    y_true : ndarray of shape (n_rows,), 0 or 1
    candidate, champion : ndarray of shape (n_rows,), in [0, 1]
        ``champion`` is None where there is none.
    contract_candidate, contract_champion : Contract or None
    release : Release or None
        The candidate itself, for gates that score other rows or look at its files.
    keys : tuple of str
        Columns of ``frame`` that identify a row.
    task : Task
    """

    frame: pd.DataFrame
    y_true: npt.NDArray[Any]
    candidate: Floats
    champion: Floats | None = None
    contract_candidate: contracts.Contract | None = None
    contract_champion: contracts.Contract | None = None
    release: Release | None = None
    keys: tuple[str, ...] = ()
    task: Task = field(default_factory=binary)

    def clusters(self, name: str | None) -> pd.Series[Any] | None:
        """Return the column that says which rows belong together, times by their day (UTC); None for None."""
        if name is None:
            return None
        column = self.columns([name])[name]
        return column.dt.floor("D") if pd.api.types.is_datetime64_any_dtype(column.dtype) else column

    def columns(self, names: Sequence[str]) -> pd.DataFrame:
        """Return some columns of the evaluation rows, or raise ``QualityError`` naming those that are missing."""
        missing = tuple(name for name in names if name not in self.frame)
        if missing:
            raise QualityError(
                "columns", table="evaluation rows", missing=missing, columns=tuple(map(str, self.frame.columns))
            )
        return self.frame[list(names)]

    @property
    def model(self) -> Release:
        """The candidate; a gate that needs it fails without."""
        if self.release is None:
            raise LookupError("the evidence holds scores only, no model")
        return self.release


class Gate(Protocol):
    """Anything with a ``check`` that turns evidence into rows; its ``repr`` is its definition."""

    def check(self, evidence: Evidence) -> Iterable[Row]:
        """Return one row per thing judged."""
        ...


# --- on labels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """The metric reaches a value even at the worse end of its interval.

    Parameters
    ----------
    metric : str
        See ``quality.find_metric``.
    threshold : float
        A minimum where greater is better, else a maximum.
    alpha : float in (0, 0.5)
        The chance that a model whose true value is exactly ``threshold`` passes.
    clusters : str, optional
        Column of rows that belong together.
    """

    metric: str
    threshold: float
    alpha: float = ALPHA
    clusters: str | None = None

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate alone."""
        interval = quality.compute_interval(
            evidence.y_true, evidence.candidate, self.metric, **_interval_options(self, evidence)
        )
        greater = quality.find_metric(evidence.task, self.metric).greater_is_better
        holds = interval.low >= self.threshold if greater else interval.high <= self.threshold
        limit = f"interval {'>=' if greater else '<='} {self.threshold:.3f}"
        question = f"Is it good enough ({_plain(self.metric)})?"
        reason = _said(interval, self.clusters)
        yield _row(f"test_{self.metric}", interval.value, limit, holds, reason=reason, question=question)


@dataclass(frozen=True)
class NoWorse:
    """The candidate is shown to lose no more than a margin against the champion: non-inferiority on the same rows.

    Few rows show nothing, and do not pass. For a proof that it is better, see :class:`Better`.

    Parameters
    ----------
    metric : str
    margin : float
        The loss that would still be accepted, in the metric's unit; the worse end of the interval of the difference
        must stay within it.
    alpha : float in (0, 0.5)
        The chance that a candidate that is worse by exactly ``margin`` passes.
    clusters : str, optional
        Column of rows that belong together.
    """

    metric: str
    margin: float
    alpha: float = ALPHA
    clusters: str | None = None

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge candidate minus champion."""
        question = f"Is it no worse than the champion ({_plain(self.metric)})?"
        yield _compare(self, evidence, -self.margin, f"{self.metric}_minus_champion", question)


@dataclass(frozen=True)
class Better:
    """The candidate is shown to be better than the champion: superiority on the same rows.

    Parameters
    ----------
    metric : str
    by : float
        The worse end of the interval of the gain must lie beyond it.
    alpha : float in (0, 0.5)
        The chance that a candidate that is better by exactly ``by``, so equally good for 0, passes.
    clusters : str, optional
        Column of rows that belong together.
    """

    metric: str
    by: float = 0.0
    alpha: float = ALPHA
    clusters: str | None = None

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge candidate minus champion."""
        question = f"Is it better than the champion ({_plain(self.metric)})?"
        yield _compare(self, evidence, self.by, f"{self.metric}_better_than_champion", question)


def _compare(gate: NoWorse | Better, evidence: Evidence, gain: float, name: str, question: str) -> Row:
    """Judge whether the interval of candidate minus champion, counted so that more is better, is beyond a gain."""
    greater = quality.find_metric(evidence.task, gate.metric).greater_is_better
    bound = gain if greater else -gain
    limit = f"interval {'>' if greater else '<'}{'' if isinstance(gate, Better) else '='} {bound:.3f}"
    if evidence.champion is None:
        return Row(name, None, limit, "not_applicable", NO_CHAMPION, question)
    interval = quality.compute_paired_interval(
        evidence.y_true, evidence.candidate, evidence.champion, gate.metric, **_interval_options(gate, evidence)
    )
    worse_end = interval.low if greater else -interval.high
    holds = worse_end > gain or (worse_end == gain and isinstance(gate, NoWorse))
    return _row(name, interval.value, limit, holds, reason=_said(interval, gate.clusters), question=question)


@dataclass(frozen=True)
class NoSliceWorse:
    """No slice is certainly harmed: in none is the candidate shown to be worse than the champion by more than a margin.

    The hypothesis of each slice is "it loses no more than ``margin``"; a slice whose p-value is at or below ``alpha``
    after Holm's correction over all slices of all columns is harmed, and the gate fails. Slices are small: to demand
    the opposite, proof that none is harmed, would stop every candidate. What was too small to be judged is counted.

    Parameters
    ----------
    columns : tuple of str
        Columns of few values.
    metric : str
    margin : float
        The loss in a slice that would still be accepted.
    min_rows : int
        Smaller slices are not judged.
    required : tuple of (column, value as text)
        Slices that must be judged: where one is empty or too small, the gate fails.
    alpha : float in (0, 1)
        The chance that a candidate that loses no more than ``margin`` in any slice is stopped; larger is stricter.
    clusters : str, optional
        Column of rows that belong together.
    """

    columns: tuple[str, ...]
    metric: str
    margin: float
    min_rows: int = 500
    required: tuple[tuple[str, str], ...] = ()
    alpha: float = 0.05
    clusters: str | None = None

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge all slices as one row, which names what is harmed."""
        name = f"worst_slice_{self.metric}_minus_champion"
        greater = quality.find_metric(evidence.task, self.metric).greater_is_better
        limit = f"no slice certainly {'<' if greater else '>'} {-self.margin if greater else self.margin:.3f}"
        question = f"Is no group of rows served worse ({_plain(self.metric)})?"
        if evidence.champion is None:
            yield Row(name, None, limit, "not_applicable", NO_CHAMPION, question)
            return
        slices = self.measure(evidence)
        judged = slices[slices["p_worse"].notna()]
        missing = "; ".join(filter(None, (_unjudged(slices, *each) for each in self.required)))
        if judged.empty or missing:
            yield Row(name, None, limit, "failed", missing or f"no slice has {self.min_rows} rows", question)
            return
        harmed = judged[judged["p_worse"] <= self.alpha]
        worst = "; ".join(_describe(row) for _, row in (judged.head(1) if harmed.empty else harmed).iterrows())
        skipped = f", {len(slices) - len(judged)} too small to judge" if len(slices) > len(judged) else ""
        reason = f"{'worst' if harmed.empty else f'{len(harmed)} harmed'} of {len(judged)} slices{skipped}: {worst}"
        first = judged if harmed.empty else harmed
        yield _row(name, first["difference"].iloc[0], limit, harmed.empty, reason=reason, question=question)

    def measure(self, evidence: Evidence) -> pd.DataFrame:
        """Return the table of slices that is judged, as ``quality.compute_slices`` makes it and plots show it."""
        return quality.compute_slices(
            evidence.y_true,
            evidence.candidate,
            evidence.columns(self.columns),
            task=evidence.task,
            metric=self.metric,
            y_champion=evidence.champion,
            margin=self.margin,
            min_rows=self.min_rows,
            clusters=evidence.clusters(self.clusters),
        )


def _describe(row: pd.Series[Any]) -> str:
    interval = f"[{row['difference_low']:.3f}, {row['difference_high']:.3f}]"
    return f"{row['column']} = {row['slice']} {row['difference']:.3f} {interval}"


def _unjudged(slices: pd.DataFrame, column: str, text: str) -> str:
    """Return why a slice that must be judged was not, or nothing."""
    found = slices[(slices["column"] == column) & (slices["slice"] == text)]
    reason = "no rows" if found.empty else str(found["note"].iloc[0])
    return f"{column} = {text} must be judged but has {reason}" if reason else ""


@dataclass(frozen=True)
class Calibrated:
    """Scores mean what they say: in groups of similar scores, the mean score is shown to be near the observed share.

    Rows are ordered by score and cut into equally large groups; in each, the whole interval of mean score minus
    observed share must lie within ``max_error`` (equivalence in every group). That covers the mean of all scores and
    their slope. The expected calibration error would not do: it is biased upwards, the more so the fewer the rows.

    Parameters
    ----------
    max_error : float in (0, 1)
    n_groups : int
    alpha : float in (0, 0.5)
        The chance that scores which are off by exactly ``max_error`` in one group pass.
    clusters : str, optional
        Column of rows that belong together.
    """

    max_error: float
    n_groups: int = 5
    alpha: float = ALPHA
    clusters: str | None = None

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate's group whose interval reaches furthest from zero."""
        groups = quality.compute_score_groups(
            evidence.y_true, evidence.candidate, n_groups=self.n_groups, **_interval_options(self, evidence)
        )
        worst = max(groups, key=lambda group: max(-group.gap.low, group.gap.high))
        holds = max(-worst.gap.low, worst.gap.high) <= self.max_error
        reason = (
            f"worst of {len(groups)} groups: mean score {worst.mean_score:.3f}, observed share {worst.observed:.3f}, "
            f"{_said(worst.gap, self.clusters)}"
        )
        limit = f"interval within ±{self.max_error:.3f}"
        question = "Do its scores mean what they say?"
        yield _row("calibration_gap", worst.gap.value, limit, holds, reason=reason, question=question)


# --- on behaviour ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Invariant:
    """A change that should not matter leaves the candidate's scores where they are.

    Parameters
    ----------
    name : str
        What is changed, in words: ``"another tail number"``.
    change : function of DataFrame to DataFrame
        Takes evaluation rows and returns them, or those of them that it can change, changed, with their index; what it
        returns must keep the contract. A plain function: the hash of its source is part of the gate's definition, so
        that a verdict does not survive a change of it (what it calls is covered by the commit alone).
    tolerance : float
        A score that moves by no more counts as unmoved.
    max_share : float in [0, 1]
        Share of rows that may move further.
    """

    name: str
    change: Change = field(repr=False)
    tolerance: float
    max_share: float = 0.0
    source: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", _hash_source(self.change))

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate's scores before and after."""
        moved = np.abs(_score_changes(evidence, self.change))
        share = float((moved > self.tolerance).mean())
        limit = f"share of rows moving by more than {self.tolerance:g} <= {self.max_share:g}"
        reason = f"largest move {moved.max():.4f} on {len(moved):,} rows"
        question = f"Does it ignore what should not matter: {self.name}?"
        yield _row(f"invariant: {self.name}", share, limit, share <= self.max_share, reason=reason, question=question)


@dataclass(frozen=True)
class Directional:
    """A change with a known effect moves the candidate's scores that way: on average, and for most rows.

    Parameters
    ----------
    name, change
        As for :class:`Invariant`.
    sign : 1 or -1
        Whether the change makes class 1 more or less likely.
    tolerance : float
        A score that moves the other way by no more is not counted.
    max_share : float in [0, 1]
        Share of rows that may move the other way.
    """

    name: str
    change: Change = field(repr=False)
    sign: Literal[1, -1]
    tolerance: float = 0.0
    max_share: float = 0.05
    source: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", _hash_source(self.change))

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate's scores before and after."""
        moved = _score_changes(evidence, self.change)
        share = float((self.sign * moved < -self.tolerance).mean())
        holds = share <= self.max_share and bool(self.sign * moved.mean() > 0)
        way = "up" if self.sign > 0 else "down"
        limit = f"mean {way}, share of rows moving the other way <= {self.max_share:g}"
        reason = f"mean move {moved.mean():+.4f} on {len(moved):,} rows"
        question = f"Does it move the right way: {self.name}?"
        yield _row(f"directional: {self.name}", share, limit, holds, reason=reason, question=question)


def _hash_source(function: Any) -> str:
    """Return the SHA-256 of a function's source text; what a hash of the text cannot cover is refused."""
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.isfunction(function):
        raise GateError("source", function=name, reason="it is no plain function")
    if function.__closure__:
        raise GateError("source", function=name, reason="it depends on variables of the function that made it")
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise GateError("source", function=name, reason="its source cannot be read") from error
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"


def _score_changes(evidence: Evidence, change: Change) -> Floats:
    """Return score after minus score before, of the rows that ``change`` returns."""
    release, frame, name = evidence.model, evidence.frame, change.__name__
    changed = change(frame.copy())
    if not isinstance(changed, pd.DataFrame) or changed.empty:
        raise GateError(
            "changed_rows",
            function=name,
            reason=f"it returned {'no rows' if isinstance(changed, pd.DataFrame) else type(changed)}",
        )
    positions = frame.index.get_indexer(changed.index)
    if (positions < 0).any() or len(set(positions)) < len(positions):
        raise GateError(
            "changed_rows",
            function=name,
            reason="it returned rows that were not among those it was given, or one of them twice",
        )
    if evidence.contract_candidate is not None:
        n_bad = len(contracts.split_rows(evidence.contract_candidate, changed).bad)
        if n_bad:
            raise GateError(
                "changed_rows", function=name, reason=f"{n_bad} of {len(changed)} changed rows break the contract"
            )
    after = np.asarray(models.scorer(release.model)(changed[release.features]), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(after))
    if len(bad):
        raise QualityError(
            "scores", n_bad=len(bad), n_rows=len(after), first_row=int(bad[0]), first_value=float(after[bad[0]])
        )
    moves: Floats = after - evidence.candidate[positions]
    return moves


# --- on the model itself -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneRowLatency:
    """Scoring a single row takes no longer than a budget: the median of repeated calls in this process.

    Parameters
    ----------
    max_ms : float
        Milliseconds. The machine that validates is rarely the one that serves: leave room.
    n_repeats : int
    """

    max_ms: float
    n_repeats: int = 50

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Time the candidate, after a few calls that do not count."""
        release, score = evidence.model, models.scorer(evidence.model.model)
        rows = evidence.frame[release.features]
        taken = []
        for repeat in range(self.n_repeats + 5):
            row = rows.iloc[[repeat % len(rows)]]
            started = time.perf_counter()
            score(row)
            taken.append(1000 * (time.perf_counter() - started))
        median = statistics.median(taken[5:])
        reason = f"median of {self.n_repeats} calls, rounded up"
        holds, limit = median <= self.max_ms, f"<= {self.max_ms:g} ms"
        question = "Is it fast enough for a single row?"
        yield Row("one_row_latency", math.ceil(median), limit, _status(holds), reason, question, "ms")


@dataclass(frozen=True)
class ModelSize:
    """All files of the model together stay within a size.

    Parameters
    ----------
    max_mb : float
        Megabytes of 1,000,000 bytes, as they are stored.
    """

    max_mb: float

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Look at the manifest."""
        size = evidence.model.files.n_bytes / 1e6
        holds = 0 < size <= self.max_mb
        reason = "" if size else "the manifest lists no files"
        limit, question = f"<= {self.max_mb:g} MB", "Is it small enough?"
        yield Row("model_size", round(size, 1), limit, _status(holds), reason, question, "MB")


@dataclass(frozen=True)
class ContractCompatible:
    """Tables made for the champion can feed the candidate."""

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Count what the two contracts differ in so that tables of today would break."""
        name, limit, question = "contract", "no breaking change", "Do tables made for the champion fit it?"
        if evidence.champion is None:
            yield Row(name, None, limit, "not_applicable", NO_CHAMPION, question)
        elif evidence.contract_champion is None or evidence.contract_candidate is None:
            yield Row(name, None, limit, "failed", "a contract is missing", question)
        else:
            report = contracts.compare_contracts(evidence.contract_champion, evidence.contract_candidate)
            found = str(report.facts["compatibility"])
            broken = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
            holds = found != "breaking"
            yield Row(name, len(report.failures), limit, _status(holds), broken or found, question)


@dataclass(frozen=True)
class NoLeakage:
    """The evaluation rows are none of the rows that the candidate was trained on: by key, and by content.

    ``tracking.log_model`` stores a hash of each training row's key and content beside the model. By key not a single
    row may be found again. By content some rows are found by chance where features are coarse, as often as training
    rows repeat one another: the share of training rows that are not unique is what a fresh sample of the same kind
    would show, and the share found may exceed it by ``max_share`` at most. It finds training rows under other keys.

    Parameters
    ----------
    max_share : float in [0, 1]
    """

    max_share: float = 0.01

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Look the evaluation rows up among the training rows."""
        release, question = evidence.model, "Was it judged on rows it has never seen?"
        stored = release.files.training_rows
        if stored is None:
            reason = "the model does not say which rows it was trained on; log it anew with tracking.log_model"
            yield Row("training_rows", None, "known", "failed", reason, question)
            return
        name, limit = "training_keys_in_evaluation", "0 rows"
        if "key" in (stored.dtype.names or ()):
            found = int(np.isin(data.hash_rows(evidence.columns(evidence.keys)), stored["key"]).sum())
            reason = f"{found:,} of {len(evidence.frame):,} evaluation rows, {len(stored):,} training rows"
            yield Row(name, found, limit, _status(not found), reason, question)
        else:
            reason = "the model was logged without keys; pass keys= to tracking.log_model"
            yield Row(name, None, limit, "failed", reason, question)
        again = np.isin(data.hash_rows(evidence.columns(release.features)), stored["content"])
        _, counts = np.unique(stored["content"], return_counts=True)
        expected = float(counts[counts > 1].sum() / max(1, len(stored)))
        reason = f"{expected:.4f} expected: that many training rows repeat one another"
        limit = f"<= {min(1.0, expected + self.max_share):.4f}"
        holds = len(again) > 0 and bool(again.mean() <= expected + self.max_share)
        yield _row("training_content_in_evaluation", again.mean(), limit, holds, reason=reason, question=question)


# --- all of them together ----------------------------------------------------------------------------------------


def check_gates(
    project: Project,
    candidate: Release,
    champion: Release | None,
    frame: pd.DataFrame,
    *,
    inputs: Sequence[Path] = (),
) -> Report:
    """Run the project's gates on labelled rows; return the verdict.

    Parameters
    ----------
    candidate : Release
    champion : Release or None
        The version in the last stage, as it stands now.
    frame : DataFrame of shape (n_rows, n_columns)
        Keys, features and target.
    inputs : sequence of Path
        The files that ``frame`` was read from; the verdict is bound to their bytes.

    Returns
    -------
    Report
        Fails closed: rows that break the contract beyond its share, exceptions and NaN are failures.
    """
    facts = bind(project, candidate, champion, inputs)
    frame = frame.reset_index(drop=True)  # rows are told apart by it; periods that were concatenated repeat theirs
    if not project.gates:
        rows = [Row("gates", 0, ">= 1", "failed", "the project declares no gates")]
        return Report(_title(candidate, champion), tuple(rows), facts)
    note = "" if champion else FIRST_MODEL
    try:
        rows = list(_data_rows(project, candidate, frame))
        evidence = collect_evidence(project, candidate, champion, frame)
    except Exception as error:  # noqa: BLE001 - a gate that cannot run has not been passed
        rows = [Row("evidence", None, "scored by both models", "failed", f"{type(error).__name__}: {error}")]
        return Report(_title(candidate, champion), tuple(rows), facts, note)
    judged = [row for gate in project.gates for row in _run(gate, evidence)]
    if all(row.status == "not_applicable" for row in judged):
        reason = "no gate judges a model without a champion; declare a Threshold"
        judged.append(Row("absolute_gates", 0, ">= 1", "failed", reason))
    return Report(_title(candidate, champion), (*rows, *judged), {**facts, "n_rows": len(evidence.y_true)}, note)


def bind(project: Project, candidate: Release, champion: Release | None, inputs: Sequence[Path]) -> dict[str, Any]:
    """Return the facts that a verdict holds for; ``registry.promote`` compares them with what it finds."""
    code = tracking.describe_code(project)
    root = project.root.resolve()
    resolved = [path.resolve() for path in inputs]
    names = {(path.relative_to(root) if path.is_relative_to(root) else path).as_posix(): path for path in resolved}
    return {
        "name": candidate.name,
        "version": candidate.version,
        "digest": candidate.digest,
        "champion_version": champion.version if champion else None,
        "champion_digest": champion.digest if champion else None,
        "gates": registry.gates_digest(project),
        "inputs": {name: data.fingerprint_file(path) for name, path in names.items()},
        "commit": code.get("mlops.commit", ""),
        "dirty": code.get("mlops.dirty", ""),
    }


def collect_evidence(project: Project, candidate: Release, champion: Release | None, frame: pd.DataFrame) -> Evidence:
    """Score the rows of ``frame`` (keys, features, target) that keep the candidate's contract with both models."""
    contract = _contract(candidate)
    frame = frame.reset_index(drop=True)
    good = contracts.split_rows(contract, frame).good if contract is not None else frame
    others = [name for name in frame.columns if name not in good]
    scored = pd.concat([good, frame.loc[good.index, others]], axis=1)
    return Evidence(
        frame=scored,
        y_true=frame.loc[good.index, project.target].to_numpy(),
        candidate=models.scorer(candidate.model)(scored[candidate.features]),
        champion=models.scorer(champion.model)(scored[champion.features]) if champion else None,
        contract_candidate=contract,
        contract_champion=_contract(champion) if champion else None,
        release=candidate,
        keys=project.keys,
    )


def _data_rows(project: Project, candidate: Release, frame: pd.DataFrame) -> Iterator[Row]:
    """Judge the evaluation rows themselves: enough of them keep the contract, and each has a label."""
    contract = _contract(candidate)
    if contract is not None:
        report = contracts.check_table(contract, frame)
        failed = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
        share = report.facts.get("n_bad", len(frame)) / max(1, len(frame))
        limit, question = f">= {1 - contract.max_bad_share:.3f}", "Are the rows it is judged on sound?"
        yield _row("evaluation_rows_in_contract", 1 - share, limit, not failed, reason=failed, question=question)
    missing = int(frame[project.target].isna().sum())
    if missing:
        yield Row("labels", missing, "none missing", "failed", "rows without a label cannot be evaluated")


def _run(gate: Gate, evidence: Evidence) -> list[Row]:
    """Run one gate; what it raises, or a passed row without a finite value, becomes a failure."""
    name = type(gate).__name__
    try:
        rows = list(gate.check(evidence))
    except Exception as error:  # noqa: BLE001 - a gate that cannot run has not been passed
        return [Row(name, None, repr(gate), "failed", f"{type(error).__name__}: {error}")]
    if not rows:
        return [Row(name, None, repr(gate), "failed", "it judged nothing")]
    return [_closed(row) for row in rows]


def _closed(row: Row) -> Row:
    """Return a row as it is, or failed where it passed without a finite number: text, a truth value, NaN, nothing."""
    value: Any = row.value
    sound = not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
    if row.status == "passed" and not sound:
        return Row(row.name, row.value, row.limit, "failed", f"its value is {value!r}, needs a finite number")
    return row


def _row(name: str, value: float, limit: str, holds: bool, *, reason: str, question: str) -> Row:
    return Row(name, float(value), limit, _status(holds), reason, question)


def _status(holds: bool) -> Status:
    return "passed" if holds else "failed"


def _interval_options(gate: Threshold | NoWorse | Better | Calibrated, evidence: Evidence) -> dict[str, Any]:
    """Return how a gate's interval is made: one of its ends is a one-sided test at the gate's ``alpha``."""
    clusters = evidence.clusters(gate.clusters)
    return {"task": evidence.task, "clusters": clusters, "confidence": 1 - 2 * gate.alpha}


def _said(interval: quality.Interval, clusters: str | None) -> str:
    by = f", {interval.degrees + 1:.0f} clusters of {clusters}" if clusters else ""
    return f"{100 * interval.confidence:g} % interval {interval}{by}"


def _plain(metric: str) -> str:
    return {"roc_auc": "ROC AUC", "brier": "Brier score"}.get(metric, metric.replace("_", " "))


def _contract(release: Release) -> contracts.Contract | None:
    stored: Mapping[str, Any] = release.files.contract
    return contracts.Contract.from_dict(stored) if stored else None


def _title(candidate: Release, champion: Release | None) -> str:
    against = f"version {champion.version}" if champion else "no champion"
    return f"Gates of version {candidate.version} of '{candidate.name}' against {against}"
