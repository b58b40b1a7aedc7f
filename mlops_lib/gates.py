"""What a candidate must pass before it moves: gates that belong to the project, run on evidence, closed by default.

A gate is a small frozen record with a ``check``. :func:`check_gates` runs all of them on the same rows for candidate
and champion and returns a Report bound to model digest, evaluation data, champion digest, gate definitions and commit;
``registry.promote`` recomputes all of these. An exception, a NaN or a missing metric is a failure with its reason,
never a pass. The first model ever has no champion: gates that compare are then *not applicable*, and say so.

>>> gates = (Threshold("roc_auc", 0.62), NoWorse("roc_auc", margin=0.01))
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import pandas as pd

from mlops_lib import contracts, data, evaluation, integrity, registry, tracking
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row, Status

Floats = npt.NDArray[Any]
NO_CHAMPION = "the first model has no champion to be compared with"


@dataclass(frozen=True)
class Evidence:
    """What gates are run on: the same labelled rows, scored by the candidate and by the champion.

    Parameters
    ----------
    frame : DataFrame of shape (n_rows, n_columns)
        Features, in the contract.
    y_true : ndarray of shape (n_rows,), 0 or 1
    candidate, champion : ndarray of shape (n_rows,), in [0, 1]
        ``champion`` is None where there is none.
    contract_candidate, contract_champion : Contract or None
    """

    frame: pd.DataFrame
    y_true: npt.NDArray[Any]
    candidate: Floats
    champion: Floats | None = None
    contract_candidate: contracts.Contract | None = None
    contract_champion: contracts.Contract | None = None


class Gate(Protocol):
    """Anything with a ``check`` that turns evidence into rows; its ``repr`` is its definition."""

    def check(self, evidence: Evidence) -> Iterable[Row]:
        """Return one row per thing judged."""
        ...


@dataclass(frozen=True)
class Threshold:
    """The metric reaches a value even at the worse end of its 95 % bootstrap interval.

    Parameters
    ----------
    metric : str
        A key of ``evaluation.METRICS``.
    threshold : float
        A minimum where greater is better, else a maximum.
    """

    metric: str
    threshold: float

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate alone."""
        interval = evaluation.compute_interval(evidence.y_true, evidence.candidate, self.metric)
        greater = evaluation.METRICS[self.metric].greater_is_better
        holds = interval.low >= self.threshold if greater else interval.high <= self.threshold
        limit = f"interval {'>=' if greater else '<='} {self.threshold:.3f}"
        yield _row(f"test_{self.metric}", interval.value, limit, holds, f"95 % interval {interval}")


@dataclass(frozen=True)
class NoWorse:
    """The candidate is not worse than the champion by more than a margin: paired bootstrap on the same rows.

    Parameters
    ----------
    metric : str
    margin : float
        The loss that would still be accepted, in the metric's unit; the worse end of the interval of the difference
        must stay within it.
    """

    metric: str
    margin: float

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge candidate minus champion."""
        name = f"{self.metric}_minus_champion"
        greater = evaluation.METRICS[self.metric].greater_is_better
        limit = f"interval >= -{self.margin:.3f}" if greater else f"interval <= {self.margin:.3f}"
        if evidence.champion is None:
            yield Row(name, None, limit, "not_applicable", NO_CHAMPION)
            return
        interval = evaluation.compute_paired_interval(
            evidence.y_true, evidence.candidate, evidence.champion, self.metric
        )
        holds = interval.low >= -self.margin if greater else interval.high <= self.margin
        yield _row(name, interval.value, limit, holds, f"95 % interval {interval}")


@dataclass(frozen=True)
class NoSliceWorse:
    """In no slice of some columns is the candidate certainly worse than the champion by more than a margin.

    Parameters
    ----------
    columns : tuple of str
        Features of few values.
    metric : str
    margin : float
    min_rows : int
        Smaller slices are not judged.
    """

    columns: tuple[str, ...]
    metric: str
    margin: float
    min_rows: int = 500

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the worst slice; its interval must not lie wholly beyond the margin."""
        name = f"worst_slice_{self.metric}_minus_champion"
        greater = evaluation.METRICS[self.metric].greater_is_better
        limit = f"no interval {'<' if greater else '>'} {'-' if greater else ''}{self.margin:.3f}"
        if evidence.champion is None:
            yield Row(name, None, limit, "not_applicable", NO_CHAMPION)
            return
        slices = evaluation.compute_slices(
            evidence.y_true,
            evidence.candidate,
            evidence.frame[list(self.columns)],
            metric=self.metric,
            y_champion=evidence.champion,
            min_rows=self.min_rows,
            n_resamples=400,
        )
        judged = slices[slices["difference"].notna()]
        if judged.empty:
            yield Row(name, None, limit, "failed", f"no slice has {self.min_rows} rows")
            return
        worst = judged.iloc[0]
        beyond = judged["difference_high"] < -self.margin if greater else judged["difference_low"] > self.margin
        interval = f"[{worst['difference_low']:.3f}, {worst['difference_high']:.3f}]"
        reason = f"worst of {len(judged)} slices: {worst['column']} = {worst['slice']}, 95 % interval {interval}"
        yield _row(name, float(worst["difference"]), limit, not beyond.any(), reason)


@dataclass(frozen=True)
class ContractCompatible:
    """Tables made for the champion can feed the candidate."""

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the two contracts."""
        limit = "not breaking"
        if evidence.champion is None:
            yield Row("contract", None, limit, "not_applicable", NO_CHAMPION)
        elif evidence.contract_champion is None or evidence.contract_candidate is None:
            yield Row("contract", None, limit, "failed", "a contract is missing")
        else:
            report = contracts.compare_contracts(evidence.contract_champion, evidence.contract_candidate)
            found = str(report.facts["compatibility"])
            reason = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
            yield Row("contract", found, limit, "failed" if found == "breaking" else "passed", reason)


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
    frame = frame.reset_index(drop=True)  # rows are told apart by it, and periods that were concatenated repeat theirs
    if not project.gates:
        rows = [Row("gates", 0, ">= 1", "failed", "the project declares no gates")]
        return Report(_title(candidate, champion), tuple(rows), facts)
    try:
        evidence, rows = _collect(project, candidate, champion, frame)
    except Exception as error:  # noqa: BLE001 - a gate that cannot run has not been passed
        rows = [Row("evidence", None, "scored by both models", "failed", f"{type(error).__name__}: {error}")]
        return Report(_title(candidate, champion), tuple(rows), facts)
    for gate in project.gates:
        rows += _run(gate, evidence)
    return Report(_title(candidate, champion), tuple(rows), {**facts, "n_rows": len(evidence.y_true)})


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


def score_both(
    project: Project, candidate: Release, champion: Release | None, frame: pd.DataFrame
) -> tuple[pd.DataFrame, Floats, Floats | None]:
    """Return the rows that keep the candidate's contract, and both models' scores for them."""
    good = _in_contract(candidate, frame)
    scores = integrity.scorer(candidate.model)(good[candidate.features])
    others = integrity.scorer(champion.model)(good[champion.features]) if champion else None
    return good, scores, others


def _collect(
    project: Project, candidate: Release, champion: Release | None, frame: pd.DataFrame
) -> tuple[Evidence, list[Row]]:
    rows = list(_data_rows(project, candidate, frame))
    good, scores, others = score_both(project, candidate, champion, frame)
    evidence = Evidence(
        frame=good,
        y_true=frame.loc[good.index, project.target].to_numpy(dtype=int),
        candidate=scores,
        champion=others,
        contract_candidate=_contract(candidate),
        contract_champion=_contract(champion) if champion else None,
    )
    return evidence, rows


def _data_rows(project: Project, candidate: Release, frame: pd.DataFrame) -> Iterator[Row]:
    """Judge the evaluation rows themselves: enough of them keep the contract, and each has a label."""
    contract = _contract(candidate)
    if contract is not None:
        report = contracts.check_table(contract, frame)
        failed = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
        share = report.facts.get("n_bad", len(frame)) / max(1, len(frame))
        yield _row("evaluation_rows_in_contract", 1 - share, f">= {1 - contract.max_bad_share:.3f}", not failed, failed)
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
    value: object = row.value
    unsound = value is None or (isinstance(value, numbers.Real) and not math.isfinite(value))
    if row.status == "passed" and unsound:
        return Row(row.name, row.value, row.limit, "failed", f"its value is {row.value}, needs a finite number")
    return row


def _row(name: str, value: float, limit: str, holds: bool, reason: str) -> Row:
    status: Status = "passed" if holds else "failed"
    return Row(name, float(value), limit, status, reason)


def _contract(release: Release) -> contracts.Contract | None:
    stored: Mapping[str, Any] = release.files.contract
    return contracts.Contract.from_dict(stored) if stored else None


def _in_contract(release: Release, frame: pd.DataFrame) -> pd.DataFrame:
    contract = _contract(release)
    return contracts.split_rows(contract, frame).good if contract is not None else frame


def _title(candidate: Release, champion: Release | None) -> str:
    against = f"version {champion.version}" if champion else "no champion"
    return f"Gates of version {candidate.version} of '{candidate.name}' against {against}"
