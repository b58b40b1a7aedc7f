"""Versions, stages and releases: register, move, roll back, look back, load.

Every registration and every move between stages is an entry in an append-only ledger
(:mod:`mlops_lib.registry.ledger`); the aliases ``NAME@dev|staging|prod`` that stock tools read only follow it.

Refused: a move without a verdict that passed, a verdict on other bytes, data, gates or champion, a version whose files
have changed, a stage skipped or frozen, a second person who is the first one, the deletion of what is still needed.

>>> registry.rollback(project, "prod", reason="complaints from EWR")  # doctest: +SKIP
"""

from mlops_lib.registry.entries import Entry
from mlops_lib.registry.ledger import as_of, found, history, read_ledger
from mlops_lib.registry.moves import approve, delete_version, freeze, move_up, rollback, unfreeze
from mlops_lib.registry.verdicts import count_verdicts, gates_digest, load_verdict, log_verdict
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
    standing,
)

__all__ = [
    "Entry",
    "Release",
    "Version",
    "approve",
    "as_of",
    "check_store",
    "count_verdicts",
    "current",
    "delete_version",
    "found",
    "freeze",
    "gates_digest",
    "get_version",
    "history",
    "list_versions",
    "load_model",
    "load_verdict",
    "log_verdict",
    "move_up",
    "read_ledger",
    "read_lineage",
    "register",
    "repair_store",
    "resolve",
    "rollback",
    "standing",
    "unfreeze",
]
