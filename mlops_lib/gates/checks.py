"""All gates together, closed by default: a verdict on a candidate, bound to everything that it was measured on.

A gate is a small frozen record with a ``check``. :func:`check_gates` reads the rows itself, runs all gates on the same
rows for candidate and champion, and returns a Report that names what it holds for: rows, model, champion, contract,
gates with their source, library and commit; :func:`~mlops_lib.gates.promote` does it again and compares. An exception,
a NaN or a missing metric is a failure with its reason, never a pass. The first model ever has no champion: gates that
compare are then *not applicable*, the others must carry it alone, and the report says so.

>>> gates = (Threshold("roc_auc", 0.62), NoWorse("roc_auc", margin=0.01), NoLeakage())
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from mlops_lib import __version__, contracts, data, registry, tracking
from mlops_lib.gates.behaviour import NoLeakage, NoTellingFeature
from mlops_lib.gates.evidence import Evidence, Gate, collect_evidence, read_contract, status_of
from mlops_lib.gates.labels import NoSliceWorse
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row

ALWAYS: tuple[Gate, ...] = (NoLeakage(), NoTellingFeature())  # unless the project declares one of the same class
FIRST_MODEL = "There is no champion yet: this model is judged on absolute gates alone, and compared with nothing."


def check_gates(
    project: Project,
    candidate: Release,
    champion: Release | None,
    periods: str | Sequence[str],
    *,
    max_rows: int | None = None,
    as_of: datetime | None = None,
) -> Report:
    """Read labelled rows and run the project's gates on them; return the verdict.

    Parameters
    ----------
    candidate : Release
    champion : Release or None
        The version in the last stage, as it stands now.
    periods, max_rows, as_of
        Which rows, as for ``data.read_labelled``. The verdict names them and what was read.

    Returns
    -------
    Report
        Fails closed: rows that break the contract beyond its share, exceptions and NaN are failures.

    Raises
    ------
    NotFoundError, QualityError, TableError
        When the rows cannot be read. Nothing was judged.
    """
    chosen = [periods] if isinstance(periods, str) else list(periods)
    frame = data.read_labelled(project, chosen, max_rows=max_rows, as_of=as_of)
    asked = {"periods": chosen, "max_rows": max_rows, "as_of": as_of.isoformat() if as_of else None}
    code = tracking.describe_code(project)
    facts = {
        "name": candidate.name,
        "version": candidate.version,
        "digest": candidate.digest,
        "champion_version": champion.version if champion else None,
        "champion_digest": champion.digest if champion else None,
        "contract": contracts.Contract.from_dict(candidate.files.contract).digest if candidate.files.contract else None,
        "gates": registry.gates_digest(project),
        "rows": {**asked, "n_rows": len(frame), "digest": data.fingerprint_frame(frame)},
        "library": __version__,
        "commit": code.get("mlops.commit", ""),
        "dirty": code.get("mlops.dirty", ""),
    }
    judged = judge_rows(project, candidate, champion, frame)
    return Report(judged.title, judged.rows, {**judged.facts, **facts}, judged.note)


def judge_rows(project: Project, candidate: Release, champion: Release | None, frame: pd.DataFrame) -> Report:
    """Run the project's gates on rows at hand, to look at them: what nothing names carries no promotion.

    Parameters
    ----------
    candidate, champion
        As for :func:`check_gates`.
    frame : DataFrame of shape (n_rows, n_columns)
        Keys, features and target.
    """
    title = _title(candidate, champion)
    frame = frame.reset_index(drop=True)  # rows are told apart by it; periods that were concatenated repeat theirs
    if not project.gates:
        return Report(title, (Row("gates", 0, ">= 1", "failed", "the project declares no gates"),))
    note = "" if champion else FIRST_MODEL
    try:
        rows = list(_data_rows(project, candidate, frame))
        evidence = collect_evidence(project, candidate, champion, frame)
    except Exception as error:  # noqa: BLE001 - a gate that cannot run has not been passed
        row = Row("evidence", None, "scored by both models", "failed", f"{type(error).__name__}: {error}")
        return Report(title, (row,), {}, note)
    judged = [row for gate in project.gates for row in _run(gate, evidence)]
    if all(row.status == "not_applicable" for row in judged):
        reason = "no gate judges a model without a champion; declare a Threshold"
        judged.append(Row("absolute_gates", 0, ">= 1", "failed", reason))
    present = {type(gate) for gate in project.gates}
    rows += [row for gate in ALWAYS if type(gate) not in present for row in _run(gate, evidence)]
    return Report(title, (*rows, *judged), {"n_rows": len(evidence.y_true)}, note)


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
    n_rows, needed = len(frame), project.min_evaluation_rows
    reason = "" if n_rows >= needed else f"there are {n_rows}; the project states the smallest number"
    question = "Are there enough rows to tell?"
    yield Row("evaluation_rows", n_rows, f">= {needed}", status_of(n_rows >= needed), reason, question)
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
