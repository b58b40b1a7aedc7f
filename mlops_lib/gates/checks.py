"""All gates together, closed by default: a verdict on a candidate, bound to everything that it was measured on.

A gate is a small frozen record with a ``check``. :func:`check_gates` runs all of them on the same rows for candidate
and champion and returns a Report bound to model digest, evaluation data, champion digest, gate definitions and commit;
``registry.promote`` recomputes all of these. An exception, a NaN or a missing metric is a failure with its reason,
never a pass. The first model ever has no champion: gates that compare are then *not applicable*, the others must carry
it alone, and the report says so.

>>> gates = (Threshold("roc_auc", 0.62), NoWorse("roc_auc", margin=0.01), NoLeakage())
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_lib import contracts, data, registry, tracking
from mlops_lib.gates.evidence import Evidence, Gate, collect_evidence, read_contract, status_of
from mlops_lib.gates.labels import NoSliceWorse
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row

FIRST_MODEL = "There is no champion yet: this model is judged on absolute gates alone, and compared with nothing."


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


def measure_slices(project: Project, evidence: Evidence) -> tuple[pd.DataFrame, float]:
    """Return the table of slices that the project's gate judges, and the loss that it accepts.

    Without a ``NoSliceWorse`` among the gates it is that of the project's ``slices``, and nothing is accepted.
    """
    default = NoSliceWorse(project.slices, evidence.task.metrics[0], margin=0.0, min_rows=200)
    gate = next((gate for gate in project.gates if isinstance(gate, NoSliceWorse)), default)
    return gate.measure(evidence), gate.margin


def _data_rows(project: Project, candidate: Release, frame: pd.DataFrame) -> Iterator[Row]:
    """Judge the evaluation rows themselves: enough of them keep the contract, and each has a label."""
    contract = read_contract(candidate)
    if contract is not None:
        report = contracts.check_table(contract, frame)
        failed = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
        share = report.facts.get("n_bad", len(frame)) / max(1, len(frame))
        limit, question = f">= {1 - contract.max_bad_share:.3f}", "Are the rows it is judged on sound?"
        yield Row("evaluation_rows_in_contract", 1 - share, limit, status_of(not failed), failed, question)
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


def _title(candidate: Release, champion: Release | None) -> str:
    against = f"version {champion.version}" if champion else "no champion"
    return f"Gates of version {candidate.version} of '{candidate.name}' against {against}"
