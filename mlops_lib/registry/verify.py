"""Is everything that a stage rests on still as it was written? Our ``fsck``: database, ledger, files, runs.

:func:`check_ledger` compares the ledger with what the store says and finds what was edited, moved or deleted behind its
back; :func:`check_store` looks at all the rest too. Both change nothing. :func:`repair_store` sets right what can be
without losing anything: aliases follow the ledger, runs whose process is dead are closed, models that were never logged
to their end are FAILED. An edited ledger or a changed file is named and left alone: only a backup, or a roll-back,
helps.

>>> check_store(project, everything=True).passed  # doctest: +SKIP
True
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import NullPool, create_engine, text

from mlops_lib import models
from mlops_lib.errors import LedgerError, MlopsError, ModelFileError, SignatureError
from mlops_lib.project import Project
from mlops_lib.registry.entries import Ledger
from mlops_lib.registry.ledger import open_ledger, translate_errors
from mlops_lib.registry.reading import repair_aliases
from mlops_lib.registry.versions import resolve, search_versions, verify_files
from mlops_lib.report import Report, Row, Status
from mlops_lib.tracking import liveness, store


@translate_errors
def check_store(project: Project, version: int | str | None = None, *, everything: bool = False) -> Report:
    """Check the project's store, its ledger, versions, aliases and runs.

    Parameters
    ----------
    version : int or str, optional
        The version (by number or stage) whose files are compared with their manifest; by default each that a stage has.
    everything : bool
        Compare the files of every version.

    Returns
    -------
    Report
        Every fault is a failed row; what is not ours to judge is not applicable.
    """
    title = f"Store of '{project.name}'"
    try:
        client = store.connect(project.tracking_uri)
    except MlopsError as error:
        return Report(title, (Row("store", None, "reachable, schema of this MLflow", "failed", str(error)),))
    ledger, ledger_rows = _read_and_check(project, client)
    rows = [_check_database(project.tracking_uri), *ledger_rows]
    numbers = _choose(project, client, ledger, version, everything)
    ledger = ledger or Ledger(project.name)  # of a broken one nothing counts: the versions say what is registered
    rows += [row for number in numbers for row in _check_version(project, client, ledger, number)]
    experiments = _experiments(project, client)
    dead = liveness.find_dead_runs(client, experiments, everywhere=True) if experiments else []
    rows += [_check_runs(client, experiments, dead), _check_models(client, experiments, dead)]
    return Report(title, tuple(rows), {"store": store.without_password(project.tracking_uri), "versions": numbers})


@translate_errors
def repair_store(project: Project) -> tuple[str, ...]:
    """Repair what can be repaired without losing anything; return what was done, a sentence each."""
    client = store.connect(project.tracking_uri)
    done = []
    with contextlib.suppress(LedgerError):  # its aliases are left as they are; the check names it
        done += [f"{what} follows the ledger again" for what in repair_aliases(project)]
    experiments = _experiments(project, client)
    reaped = liveness.reap_runs(client, experiments, everywhere=True) if experiments else []
    done += [f"run '{dead.run_id}' is {dead.status}: {dead.reason}" for dead in reaped]
    for model in _abandoned_models(client, experiments, reaped):
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        done.append(f"model '{model.model_id}' is FAILED: it was never logged to its end")
    return tuple(done)


# --- the ledger --------------------------------------------------------------------------------------------------


@translate_errors
def check_ledger(project: Project) -> Report:
    """Check the chain, its head, each alias and each version against the ledger; nothing is repaired.

    A projection that a killed command left behind is a failure here until somebody looks (``mlops history``). Versions
    that stock tools registered are not in the ledger: they cannot be promoted, which is no fault.
    """
    ledger, rows = _read_and_check(project, store.connect(project.tracking_uri))
    facts = {}
    if ledger is not None:
        facts = {"name": project.name, "run_id": ledger.run_id, "entries": len(ledger.entries), "head": ledger.head}
    return Report(f"Ledger of '{project.name}'", tuple(rows), facts)


def _read_and_check(project: Project, client: MlflowClient) -> tuple[Ledger | None, list[Row]]:
    """Return the ledger, or None where it is broken, and a row for each thing that was checked."""
    try:
        ledger = open_ledger(project, client)
    except LedgerError as error:
        return None, [Row("chain", None, "hashes follow", "failed", str(error))]
    model_versions = {int(stored.version): stored for stored in search_versions(project, client)}
    return ledger, [
        Row("chain", len(ledger.entries), "hashes follow", "passed"),
        _check_head(ledger),
        *(_check_alias(ledger, stage) for stage in project.stages),
        *_check_versions(ledger, model_versions),
    ]


def _check_head(ledger: Ledger) -> Row:
    limit = f"noted up to {len(ledger.entries)}"
    if ledger.noted == len(ledger.entries):
        return Row("head", ledger.noted, limit, "passed")
    return Row("head", ledger.noted, limit, "failed", "a command was cut off; 'mlops history' completes it")


def _check_alias(ledger: Ledger, stage: str) -> Row:
    alias, entry = ledger.aliases.get(stage), ledger.standing.get(stage)
    name, value = f"alias {stage}", int(alias) if alias else None
    if entry is None:
        reason = "the ledger has no version there" if alias else "empty"
        return Row(name, value, "none", "failed" if alias else "not_applicable", reason)
    if value == entry.version:
        return Row(name, value, f"version {entry.version}", "passed")
    reason = "moved by other hands or cut off; 'mlops history' puts it right"
    return Row(name, value, f"version {entry.version}", "failed", reason)


def _check_versions(ledger: Ledger, model_versions: dict[int, ModelVersion]) -> Iterator[Row]:
    """Yield a row for each version that is not as registered, and one that counts the others."""
    registered = {entry.version: entry for entry in ledger.entries if entry.action == "register"}
    n_sound = 0
    for number, entry in sorted(registered.items()):
        name, stored = f"version {number}", model_versions.get(number)
        if number in ledger.deleted:
            if stored is not None:
                reason = "its deletion was cut off; 'mlops history' completes it"
                yield Row(name, None, "deleted", "failed", reason)
        elif stored is None:
            yield Row(name, None, "in the store", "failed", "deleted behind the ledger's back")
        elif stored.tags.get(models.DIGEST_TAG) != entry.digest:
            yield Row(
                name, None, f"digest {entry.digest[:12]}", "failed", "its digest tag is not the one in the ledger"
            )
        elif str(stored.source).removeprefix("models:/") != entry.model_id:
            yield Row(name, None, f"model {entry.model_id}", "failed", f"the store says it is {stored.source}")
        else:
            n_sound += 1
    for number in sorted(set(model_versions) - set(registered) - ledger.deleted):
        reason = "not in the ledger: registered by another tool, or by a command that was cut off"
        yield Row(f"version {number}", None, "registered here", "not_applicable", reason)
    if n_sound:
        yield Row("versions", n_sound, "as registered", "passed")


# --- the database ------------------------------------------------------------------------------------------------


def _check_database(uri: str) -> Row:
    limit = "whole, one schema version"
    if urlsplit(uri).scheme in ("http", "https"):
        return Row(
            "database", None, limit, "not_applicable", "behind a server: verify on its host, or ask whoever runs it"
        )
    path, faults = store.sqlite_path(uri), []
    if path is not None:
        with contextlib.closing(sqlite3.connect(path)) as database:
            faults = [line for (line,) in database.execute("pragma integrity_check(5)") if line != "ok"]
    with store.translate_connect_errors(uri), create_engine(uri, poolclass=NullPool).connect() as connection:
        heads = [str(head) for head in connection.scalars(text("select version_num from alembic_version"))]
    if len(heads) != 1:
        faults.append(f"{len(heads)} schema versions")
    if faults:
        return Row("database", None, limit, "failed", f"{'; '.join(faults)}. Restore it from a backup")
    return Row("database", heads[0], limit, "passed")


# --- versions ----------------------------------------------------------------------------------------------------


def _choose(
    project: Project, client: MlflowClient, ledger: Ledger | None, version: int | str | None, everything: bool
) -> list[int]:
    """Return the versions to look at; all of them where a broken ledger cannot say what the stages have."""
    if version is not None:
        return [resolve(project, version)]
    if ledger is not None and not everything:
        return sorted({entry.version for stage, entry in ledger.standing.items() if stage in project.stages})
    return sorted(int(stored.version) for stored in search_versions(project, client))


def _check_version(project: Project, client: MlflowClient, ledger: Ledger, number: int) -> Iterator[Row]:
    stored = None
    with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
        stored = client.get_model_version(project.name, str(number))
    if stored is None:
        yield Row(f"version {number}", None, "in the store", "failed", "it is not there")
        return
    yield _row(f"version {number} files", "as registered", lambda: verify_files(project, stored, ledger)[:12])
    yield _row(f"version {number} run", "FINISHED", lambda: _find_run_status(client, stored))


def _row(name: str, limit: str, look: Callable[[], str]) -> Row:
    """Return what ``look`` finds, or the reason that it raises."""
    try:
        return Row(name, look(), limit, "passed")
    except (ModelFileError, SignatureError) as error:
        return Row(name, None, limit, "failed", str(error))


def _find_run_status(client: MlflowClient, stored: ModelVersion) -> str:
    name = f"Version {stored.version} of '{stored.name}'"
    try:
        info = client.get_run(str(stored.run_id)).info
    except MlflowException as error:
        if error.error_code not in store.MISSING:
            raise
        reason = f"'{stored.run_id}' is not in the store"
        raise ModelFileError("unread", model=name, file="its run", reason=reason) from error
    status = str(info.status) if info.lifecycle_stage == "active" else "deleted"
    if status != "FINISHED":
        raise ModelFileError("unread", model=name, file="its run", reason=f"is {status}")
    return status


# --- runs and models ---------------------------------------------------------------------------------------------


def _experiments(project: Project, client: MlflowClient) -> list[str]:
    experiment = client.get_experiment_by_name(project.name)
    return [str(experiment.experiment_id)] if experiment else []


def _check_runs(client: MlflowClient, experiments: list[str], dead: Sequence[liveness.DeadRun]) -> Row:
    """Return how many open runs nobody will close; those without our tag are not ours to judge."""
    name, limit = "dead runs", "none open"
    if not experiments:
        return Row(name, 0, limit, "passed")
    if dead:
        reasons = "; ".join(f"'{run.run_id}' ({run.reason})" for run in dead[:3])
        return Row(name, len(dead), limit, "failed", f"{reasons}. 'mlops verify --repair' closes them")
    opened = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    others = sum(liveness.RUNNER_TAG not in run.data.tags for run in opened)
    reason = f"{others} open runs of other tools may be dead or alive: they name no process" if others else ""
    return Row(name, 0, limit, "passed", reason)


def _check_models(client: MlflowClient, experiments: list[str], dead: Sequence[liveness.DeadRun]) -> Row:
    abandoned = _abandoned_models(client, experiments, dead)
    names = ", ".join(f"'{model.model_id}'" for model in abandoned[:3])
    reason = f"{names} of runs that are over. 'mlops verify --repair' marks them FAILED" if abandoned else ""
    status: Status = "failed" if abandoned else "passed"
    return Row("PENDING models", len(abandoned), "none of a run that is over", status, reason)


def _abandoned_models(
    client: MlflowClient, experiments: list[str], dead: Sequence[liveness.DeadRun]
) -> list[LoggedModel]:
    """Return the models that are PENDING although their run is over or dead."""
    if not experiments:
        return []
    dead_ids = {run.run_id for run in dead}
    page = client.search_logged_models(experiments)  # a filter by status fails on PostgreSQL and finds none on SQLite
    models = list(page)
    while page.token:
        page = client.search_logged_models(experiments, page_token=page.token)
        models += page

    def is_over(run_id: str) -> bool:
        return run_id in dead_ids or client.get_run(run_id).info.status != "RUNNING"

    pending = [model for model in models if model.status == LoggedModelStatus.PENDING]
    return [model for model in pending if is_over(str(model.source_run_id))]
