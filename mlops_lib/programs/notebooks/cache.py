"""When a notebook need not run again: the key of a run, and whether what it read is still the same.

The key covers what can be known beforehand: code cells, parameters, kernel, project file, library, packages, lock,
Python. What a run read is recorded while it runs (:mod:`mlops_lib.data.reads`) and stored with it. A finished run with
the same key whose inputs are all unchanged is returned instead of running; markdown, outputs and names do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mlops_lib import registry
from mlops_lib.data import reads
from mlops_lib.programs.notebooks import keys
from mlops_lib.project import Project
from mlops_lib.tracking import store

KEY_TAG = "mlops.key"
UNCACHEABLE_TAG = "mlops.uncacheable"
INPUTS_FILE = "inputs.json"
# Tags that change what a cell does when it runs.
_TAGS = ("parameters", "raises-exception", "skip-execution")


def compute_key(
    project: Project, path: Path, notebook: Mapping[str, Any], values: Mapping[str, Any], kernel_name: str
) -> str:
    """Return the SHA-256 of everything but the inputs that a run depends on."""
    cells = [
        ["".join(cell["source"]), [tag for tag in cell["metadata"].get("tags", ()) if tag in _TAGS]]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]
    facts = {
        "name": path.name,  # of the executed copy, which is not in the run of another notebook with the same cells
        "cells": cells,
        "parameters": {name: repr(value) for name, value in values.items()},
        "kernel": kernel_name,
        **({"now": project.now.isoformat()} if project.now else {}),
    }
    files = [path for path in (project.file, project.root / "requirements.lock") if path]
    return keys.compute_key(facts, files)


def find_run(project: Project, client: MlflowClient, experiment_id: str, key: str) -> Run | None:
    """Return the newest finished run with ``key`` whose inputs are all unchanged, or None."""
    runs = client.search_runs(
        [experiment_id],
        f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=20,
    )
    for run in runs:
        try:
            inputs = json.loads(store.read_artifact(run.info.artifact_uri, INPUTS_FILE))
        except FileNotFoundError:  # somebody has deleted what it read and wrote
            continue
        if all(_is_unchanged(project, entry) for entry in inputs):
            return run
    return None


def _is_unchanged(project: Project, entry: Mapping[str, Any]) -> bool:
    if entry["kind"] == "file":
        return bool(keys.fingerprint(Path(entry["name"])) == entry["content"])
    if entry["kind"] == "folder":
        return bool(reads.fingerprint_folder(entry["name"]) == entry["content"])
    if entry["kind"] == "stage":
        name = entry["name"]  # of another policy's stages, where a past is replayed
        return name in project.stages and bool(registry.current(project, name) == entry["content"])
    if entry["kind"] == "made version":  # one that is gone again was not made
        found = {str(each.version): each.digest for each in registry.list_versions(project)}
        return bool(found.get(entry["name"]) == entry["content"])
    return bool(registry.read_ledger(project).head == entry["content"])
