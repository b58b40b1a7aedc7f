"""Is everything that a stage rests on still as it was written? Our ``fsck``: database, ledger, files, runs.

:func:`check_store` compares the ledger with what the store says, finds what was edited, moved or deleted behind its
back, and looks at all the rest too. It changes nothing. :func:`repair_store` sets right what can be without losing
anything: aliases follow the ledger, runs whose process is dead are closed, models that were never logged to their end
are FAILED. An edited ledger or a changed file is named and left alone: only a backup, or a roll-back, helps.

>>> check_store(project, everything=True).passed  # doctest: +SKIP
True
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from sqlalchemy import NullPool, create_engine, text

from mlops_lib import models
from mlops_lib.errors import LedgerError, MlopsError, ModelFileError, SignatureError
from mlops_lib.project import Project
from mlops_lib.registry.entries import Entry, History
from mlops_lib.registry.ledger import CLOCK_MIN, find_ledger, follow
from mlops_lib.registry.rules import Ledger, Rules
from mlops_lib.registry.versions import find_run_state, resolve, search_versions, verify_files
from mlops_lib.report import Report, Row
from mlops_lib.tracking import liveness, store
from mlops_lib.wording import listed, visible

SHORT = 12  # characters of a hash that tell entries apart


@store.translate_errors
def check_store(
    project: Project, version: int | str | None = None, *, everything: bool = False, heads: Sequence[str] = ()
) -> Report:
    """Check the project's store, its ledger, versions, aliases and runs.

    A projection that a killed command left behind is a failure here until somebody looks (``mlops history``). Versions
    that stock tools registered are not in the ledger: they cannot be promoted, which is no fault.

    Parameters
    ----------
    version : int or str, optional
        The version (by number or stage) whose files are compared with their manifest; by default each that a stage has.
    everything : bool
        Compare the files of every version.
    heads : sequence of str
        Entries that have to be there, ``LABEL:HASH`` as ``history`` ends with: what was noted elsewhere finds what fits
        its own hashes, such as an old database that was put back.

    Returns
    -------
    Report
        Every fault is a failed row; what is not ours to judge is not applicable.
    """
    title = f"Store of '{project.name}'"
    try:
        client = store.connect(project.tracking_uri, create=False)
    except MlopsError as error:
        return Report(title, (_row("store", None, "reachable, schema of this MLflow", str(error)),))
    stored = {int(each.version): each for each in search_versions(project)}
    rows, numbers = [_check_database(project.tracking_uri)], sorted(stored)
    try:
        ledger = find_ledger(project, client)
    except LedgerError as error:
        rows.append(_row("chain", None, "hashes follow, rules held", str(error)))
        # Of a broken one nothing counts: the versions say what is registered.
        ledger = Ledger.begin(project.name)
    else:
        rows += _check_ledger(project, ledger, stored)
        rows += [_check_head(ledger, head) for head in heads]
        if not everything:
            numbers = sorted({entry.version for name, entry in ledger.state.standing.items() if name in project.stages})
    if version is not None:
        numbers = [resolve(project, version)]
    rows += [row for number in numbers for row in _check_version(project, client, ledger, number, stored.get(number))]
    rows += _check_runs(client, _find_experiments(project, client))
    facts = {"store": store.without_password(project.tracking_uri), "versions": numbers}
    return Report(title, tuple(rows), {**facts, "head": History(ledger.entries).head or "none"})


@store.translate_errors
def repair_store(project: Project) -> tuple[str, ...]:
    """Repair what can be repaired without losing anything; return what was done, a sentence each."""
    client = store.connect(project.tracking_uri, create=False)
    done = store.relocate_artifacts(project.tracking_uri)
    with contextlib.suppress(LedgerError):  # its aliases are left as they are; the check names it
        done += [f"{what} follows the ledger again" for what in follow(client, find_ledger(project, client))]
    experiments = _find_experiments(project, client)
    reaped = liveness.reap_runs(client, experiments, everywhere=True)
    done += [f"run '{dead.run_id}' is {dead.status}: {dead.reason}" for dead in reaped]
    for model in _find_abandoned_models(client, experiments, reaped):
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        done.append(f"model '{model.model_id}' is FAILED: it was never logged to its end")
    return tuple(done)


def _row(name: str, value: int | str | None, limit: str, reason: str = "") -> Row:
    """Return a row that failed if there is a reason."""
    return Row(name, value, limit, "failed" if reason else "passed", reason)


def _check_database(uri: str) -> Row:
    name, limit = "database", "whole, one schema version"
    if store.is_remote(uri):
        reason = "behind a server: verify on its host, or ask whoever runs it"
        return Row(name, None, limit, "not_applicable", reason)
    path, faults = store.sqlite_path(uri), []
    if path is not None:
        with contextlib.closing(sqlite3.connect(path)) as database:
            faults = [line for (line,) in database.execute("pragma integrity_check(5)") if line != "ok"]
    with store.translate_connect_errors(uri), create_engine(uri, poolclass=NullPool).connect() as connection:
        heads = [str(head) for head in connection.scalars(text("select version_num from alembic_version"))]
    if len(heads) != 1:
        faults.append(f"{len(heads)} schema versions")
    if faults:
        return _row(name, None, limit, f"{'; '.join(faults)}. Restore it from a backup")
    return _row(name, heads[0], limit)


def _check_ledger(project: Project, ledger: Ledger, stored: Mapping[int, ModelVersion]) -> Iterator[Row]:
    """Yield a row for the chain, its head, each alias, each version that is not as registered, and the others."""
    yield _row("chain", len(ledger.entries), "hashes follow, rules held")
    noted, numbers = [tuple(getattr(chain, what) for chain in ledger.chains) for what in ("noted", "number")]
    reason = "a command was cut off; 'mlops history' completes it" if noted != numbers else ""
    yield _row("head", f"r{noted[0]}, {noted[1]}", f"noted up to r{numbers[0]}, {numbers[1]}", reason)
    strays = [f"'{visible(key)[:40]}'" for chain in ledger.chains for key in chain.strays]
    if strays:
        reason = f"{listed(strays)}: no entries, written by other hands, and passed over"
        yield Row("stray parameters", len(strays), "none", "passed", reason)
    others = [move.label for move in ledger.moves.entries if move.rules != Rules.of(project).to_text()]
    if others:
        reason = f"made under other stages or approvals than the project has now: {listed(others)}"
        yield Row("rules of moves", len(others), "the project's", "passed", reason)
    clock = store.read_clock(project.tracking_uri) + timedelta(minutes=CLOCK_MIN)
    ahead = [entry.label for entry in ledger.entries if entry.time > clock]
    if ahead:
        yield Row("times", len(ahead), "none in the future", "passed", f"a clock was ahead: {listed(ahead)}")
    yield from _check_aliases(project, ledger)
    registered = ledger.state.registered
    n_sound = 0
    for number, entry in sorted(registered.items()):
        limit, reason = _find_fault(entry, stored.get(number), number in ledger.state.deleted)
        if reason:
            yield _row(f"version {number}", None, limit, reason)
        elif number not in ledger.state.deleted:
            n_sound += 1
    for number in sorted(set(stored) - set(registered) - ledger.state.deleted):
        reason = "not in the ledger: registered by another tool, or by a command that was cut off"
        yield Row(f"version {number}", None, "registered here", "not_applicable", reason)
    if n_sound:
        yield _row("versions", n_sound, "as registered")


def _check_aliases(project: Project, ledger: Ledger) -> Iterator[Row]:
    """Yield a row for the alias of each stage."""
    if ledger.aliases is None:
        yield Row("aliases", None, "none", "not_applicable", "this registry keeps none")
        return
    for stage in project.stages:
        alias, current = int(ledger.aliases.get(stage, 0)) or None, ledger.state.current(stage)
        if alias is None and current is None:
            yield Row(f"alias {stage}", None, "none", "not_applicable", "empty")
        elif current is None:
            yield _row(f"alias {stage}", alias, "none", "the ledger has no version there")
        else:
            reason = "moved by other hands or cut off; 'mlops history' puts it right" if alias != current else ""
            yield _row(f"alias {stage}", alias, f"version {current}", reason)


def _check_head(ledger: Ledger, head: str) -> Row:
    """Return whether the entry that was noted elsewhere is still there."""
    label, _, noted = head.partition(":")
    chain, digits = (ledger.registrations if label.startswith("r") else ledger.moves), label.removeprefix("r")
    found = chain.hash_of(int(digits)) if digits.isascii() and digits.isdigit() else None
    is_same = found is not None and len(noted) >= SHORT and found.startswith(noted)
    reason = "" if is_same else "it is missing" if found is None else "it is another one"
    return _row(f"entry {label}", None, f"hash {noted[:12]}", reason)


def _find_fault(entry: Entry, stored: ModelVersion | None, is_deleted: bool) -> tuple[str, str]:
    """Return what the store should have of a registered version, and what is wrong with what it has."""
    if is_deleted:
        return "deleted", "its deletion was cut off; 'mlops history' completes it" if stored is not None else ""
    if stored is None:
        return "in the store", "deleted behind the ledger's back"
    if stored.tags.get(models.DIGEST_TAG) != entry.digest:
        return f"digest {entry.digest[:12]}", "its digest tag is not the one in the ledger"
    is_same = entry.model_id in str(stored.source).split("/")  # models:/ID, or where a workspace has put its files
    return f"model {entry.model_id}", "" if is_same else f"the store says it is {stored.source}"


def _check_version(
    project: Project, client: MlflowClient, ledger: Ledger, number: int, stored: ModelVersion | None
) -> Iterator[Row]:
    name = f"version {number}"
    if stored is None:
        yield _row(name, None, "in the store", "it is not there")
        return
    try:
        yield _row(f"{name} files", verify_files(project, stored, ledger)[:12], "as registered")
    except (ModelFileError, SignatureError) as error:
        yield _row(f"{name} files", None, "as registered", str(error))
    state = ""
    with store.ignore_codes(*store.MISSING):
        state = find_run_state(client, stored.run_id)
    reason = f"is {state}" if state else f"'{stored.run_id}' is not in the store"
    fault = ModelFileError("unread", model=f"Version {number} of '{project.name}'", file="its run", reason=reason)
    if state == "FINISHED":
        yield _row(f"{name} run", state, "FINISHED")
    else:
        yield _row(f"{name} run", None, "FINISHED", str(fault))


def _find_experiments(project: Project, client: MlflowClient) -> list[str]:
    experiment = client.get_experiment_by_name(project.name)
    return [str(experiment.experiment_id)] if experiment else []


def _check_runs(client: MlflowClient, experiments: list[str]) -> Iterator[Row]:
    """Yield how many open runs nobody will close (those without our tag are not ours to judge), and how many models."""
    dead = liveness.find_dead_runs(client, experiments, everywhere=True)
    reasons = "; ".join(f"'{run.run_id}' ({run.reason})" for run in dead[:3])
    if dead:
        yield _row("dead runs", len(dead), "none open", f"{reasons}. 'mlops verify --repair' closes them")
    else:
        opened = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
        others = sum(liveness.RUNNER_TAG not in run.data.tags for run in opened)
        reason = f"{others} open runs of other tools may be dead or alive: they name no process" if others else ""
        yield Row("dead runs", 0, "none open", "passed", reason)
    abandoned = _find_abandoned_models(client, experiments, dead)
    names = ", ".join(f"'{model.model_id}'" for model in abandoned[:3])
    reason = f"{names} of runs that are over. 'mlops verify --repair' marks them FAILED" if abandoned else ""
    yield _row("PENDING models", len(abandoned), "none of a run that is over", reason)


def _find_abandoned_models(
    client: MlflowClient, experiments: list[str], dead: Sequence[liveness.DeadRun]
) -> list[LoggedModel]:
    """Return the models that are PENDING although their run is over or dead."""
    if not experiments:  # MLflow would look at the default one
        return []
    logged = mlflow.search_logged_models(experiments, output_format="list")  # by status a search fails or finds none
    pending = [model for model in logged if model.status == LoggedModelStatus.PENDING]
    dead_ids = {run.run_id for run in dead}
    statuses = {model.model_id: client.get_run(str(model.source_run_id)).info.status for model in pending}
    return [m for m in pending if m.source_run_id in dead_ids or statuses[m.model_id] != "RUNNING"]
