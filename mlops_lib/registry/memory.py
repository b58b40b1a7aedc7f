"""What this user's clients have seen of a ledger, kept outside the store: so that missing is never taken for empty.

One small file for each store and model, in ``MLOPS_STATE_DIR`` or the user's state folder; where none can be written,
nothing is remembered. An old database that was put back, a last entry that was cut off and a ledger that was made anew
fit their own hashes; they do not fit this.
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_lib.data import reads
from mlops_lib.errors import LedgerError
from mlops_lib.project import Project
from mlops_lib.registry.entries import sha256
from mlops_lib.registry.rules import Ledger


def look(project: Project, ledger: Ledger) -> None:
    """Hold a ledger to what was seen of it before, and note how far it has come; what cannot be written is not noted.

    Raises
    ------
    LedgerError
        The store lacks an entry that was seen in it, or has another in its place.
    """
    seen, path = _recall(project)
    heads: dict[str, list[str]] = {}
    for key, chain in zip(("registrations", "moves"), ledger.chains, strict=True):
        heads[key] = [f"{chain.prefix}{chain.number}", chain.head]
        label, hash_ = seen.get(key, ("0", ""))
        number = int(label.removeprefix("r"))
        if number and chain.hash_of(number) != hash_:
            raise LedgerError("missing", name=project.name, entry=label, seen_at=seen["seen_at"], path=path)
    if path is None or not ledger.entries or heads == {key: seen.get(key) for key in heads}:
        return
    facts = {"name": project.name, **heads, "seen_at": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(facts), encoding="utf-8")
        draft.replace(path)


def _recall(project: Project) -> tuple[dict[str, Any], Path | None]:
    """Return what was noted, and where; nothing where nothing can be read."""
    if project.state is None:
        return {}, None
    path = project.state / f"{sha256(f'{project.tracking_uri} {project.name}')[:32]}.json"
    with contextlib.suppress(OSError, ValueError), reads.ours():
        return dict(json.loads(path.read_text(encoding="utf-8"))), path
    return {}, path
