"""Compare the ledger with what the store says: what was edited, moved or deleted behind its back."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow.entities.model_registry import ModelVersion

from mlops_lib import models
from mlops_lib.errors import LedgerError
from mlops_lib.project import Project
from mlops_lib.registry.ledger import Ledger, answered, open_ledger
from mlops_lib.registry.versions import search_versions
from mlops_lib.report import Report, Row
from mlops_lib.tracking import store


@answered
def check_ledger(project: Project) -> Report:
    """Check the chain, its head, each alias and each version against the ledger; nothing is repaired.

    A projection that a killed command left behind is a failure here until somebody looks (``mlops history``). Versions
    that stock tools registered are not in the ledger: they cannot be promoted, which is no fault.
    """
    client = store.connect(project.tracking_uri)
    title = f"Ledger of '{project.name}'"
    try:
        ledger = open_ledger(project, client)
    except LedgerError as error:
        return Report(title, (Row("chain", None, "hashes follow", "failed", str(error)),))
    stored = {int(made.version): made for made in search_versions(project, client)}
    rows = [
        Row("chain", len(ledger.entries), "hashes follow", "passed"),
        _check_head(ledger),
        *(_check_alias(ledger, stage) for stage in project.stages),
        *_check_versions(ledger, stored),
    ]
    facts = {"name": project.name, "run_id": ledger.run_id, "entries": len(ledger.entries), "head": ledger.head}
    return Report(title, tuple(rows), facts)


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


def _check_versions(ledger: Ledger, stored: dict[int, ModelVersion]) -> Iterator[Row]:
    """Yield a row for each version that is not as registered, and one that counts the others."""
    registered = {entry.version: entry for entry in ledger.entries if entry.action == "register"}
    n_sound = 0
    for number, entry in sorted(registered.items()):
        name, made = f"version {number}", stored.get(number)
        if number in ledger.deleted:
            if made is not None:
                reason = "its deletion was cut off; 'mlops history' completes it"
                yield Row(name, None, "deleted", "failed", reason)
        elif made is None:
            yield Row(name, None, "in the store", "failed", "deleted behind the ledger's back")
        elif made.tags.get(models.DIGEST_TAG) != entry.digest:
            yield Row(
                name, None, f"digest {entry.digest[:12]}", "failed", "its digest tag is not the one in the ledger"
            )
        elif str(made.source).removeprefix("models:/") != entry.model_id:
            yield Row(name, None, f"model {entry.model_id}", "failed", f"the store says it is {made.source}")
        else:
            n_sound += 1
    for number in sorted(set(stored) - set(registered) - ledger.deleted):
        reason = "not in the ledger: registered by another tool, or by a command that was cut off"
        yield Row(f"version {number}", None, "registered here", "not_applicable", reason)
    if n_sound:
        yield Row("versions", n_sound, "as registered", "passed")
