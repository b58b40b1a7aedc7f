"""Versions, stages and releases: register, promote on a verdict, roll back, look back, load.

Every move between stages is an entry in one append-only ledger (:mod:`mlops_lib.registry.ledger`); the aliases
``NAME@dev|staging|prod`` that stock tools read only follow it.

Refused: a move without a verdict that passed, a verdict on other bytes, data, gates or champion, a version whose files
have changed, a stage skipped or frozen, a second person who is the first one, the deletion of what is still needed.

>>> registry.promote(project, 7, "staging", verdict=verdict, reason="best of four")  # doctest: +SKIP
"""

from mlops_lib.registry.entries import Entry
from mlops_lib.registry.ledger import as_of, history, read_ledger
from mlops_lib.registry.moves import approve, delete_version, freeze, promote, rollback, unfreeze
from mlops_lib.registry.verdicts import gates_digest, load_verdict, log_verdict
from mlops_lib.registry.verify import check_store, repair_store
from mlops_lib.registry.versions import (
    Release,
    Version,
    current,
    get_version,
    list_versions,
    load_model,
    read_lineage,
    register,
    resolve,
)

__all__ = [
    "Entry",
    "Release",
    "Version",
    "approve",
    "as_of",
    "check_store",
    "current",
    "delete_version",
    "freeze",
    "gates_digest",
    "get_version",
    "history",
    "list_versions",
    "load_model",
    "load_verdict",
    "log_verdict",
    "promote",
    "read_ledger",
    "read_lineage",
    "register",
    "repair_store",
    "resolve",
    "rollback",
    "unfreeze",
]
