"""Verdicts: the evidence that a promotion rests on, and what each is bound to.

A verdict is an artifact of the candidate's validation run (JSON for us, HTML for people), and its digest stands in the
ledger. It carries a promotion only while everything that it was measured on is still what it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from mlops_lib import data
from mlops_lib.project import Project
from mlops_lib.registry.entries import Entry, sha256
from mlops_lib.report import Report
from mlops_lib.tracking import store

VERDICT_TAG = "mlops.verdict_run"
VERDICT_FILE = "verdict.json"


def verdict_digest(verdict: Report | None) -> str:
    """Return the SHA-256 of a verdict's canonical JSON; nothing for no verdict."""
    return sha256(verdict.to_json()) if verdict else ""


@store.translate_errors
def log_verdict(project: Project, version: int, verdict: Report) -> str:
    """Log a verdict (JSON and HTML) to the active run and point the version at it; return its digest."""
    client = store.connect(project.tracking_uri)
    run = mlflow.active_run()
    if run is None:
        raise ValueError("a verdict is logged inside `with tracking.start_run(project)`")
    client.log_text(run.info.run_id, verdict.to_json(), VERDICT_FILE)
    client.log_text(run.info.run_id, f'<meta charset="utf-8">{verdict._repr_html_()}', "verdict.html")
    client.set_model_version_tag(project.name, str(version), VERDICT_TAG, run.info.run_id)
    return verdict_digest(verdict)


@store.translate_errors
def load_verdict(project: Project, version: int) -> Report | None:
    """Return the verdict that was last logged for a version, or None."""
    client = store.connect(project.tracking_uri)
    return read_verdict(client, client.get_model_version(project.name, str(version)))


def read_verdict(client: MlflowClient, model_version: ModelVersion) -> Report | None:
    """Return the verdict that a version points at, or None; a store that does not answer is no answer."""
    run_id = model_version.tags.get(VERDICT_TAG)
    if not run_id:
        return None
    with store.ignore_codes(*store.MISSING), contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = store.read_artifact(str(client.get_run(run_id).info.artifact_uri), VERDICT_FILE)
        return Report.from_dict(json.loads(text))
    return None  # gone or cut short: there is no verdict that could carry anything


def why_not(  # noqa: PLR0911 - one return per reason reads better than a chain
    project: Project, draft: Entry, verdict: Report | None, standing: Mapping[str, Entry]
) -> str | None:
    """Return why a verdict does not carry a promotion that is about to be written, or None if it does.

    Everything is recomputed: the model's digest, the champion's, the evaluation data, the definitions of the gates. The
    verdict's ``commit`` is kept as evidence and is no lock: another commit may promote exactly when the gates are the
    same there, and :func:`gates_digest` says so, since a gate's ``repr`` holds its parameters and the source text of
    the functions that a project gave it. ``dirty`` needs no rule of its own for the same reason.
    """
    if verdict is None:
        return "there is no verdict on it; run 03_validate"
    facts = verdict.facts
    if (facts.get("digest"), facts.get("version")) != (draft.digest, draft.version):
        return "the verdict is about another version or other model files"
    champion = standing.get(project.production)
    if facts.get("champion_digest") != (champion.digest if champion else None):
        return "the verdict compares it with another champion than the present one"
    if facts.get("gates") != gates_digest(project):
        return "the project's gates have changed since the verdict"
    if not facts.get("inputs"):
        return "the verdict does not say which evaluation data it rests on"
    for name, fingerprint in dict(facts["inputs"]).items():
        path = project.root / name
        if not path.is_file() or data.fingerprint_file(path) != fingerprint:
            return f"the evaluation data '{name}' is gone or has changed since the verdict"
    if not verdict.passed:
        rows = verdict.failures
        text = ". ".join(f"{row.name} is {_short(row.value)}, needs {row.limit}" for row in rows[:3])
        return f"{len(rows)} of {len(verdict.rows)} gates failed. {text}"
    return None


def gates_digest(project: Project) -> str:
    """Return the SHA-256 of the definitions of the project's gates, and of its own metrics, which they may name."""
    own = [
        each if isinstance(each, str) else (each.name, each.greater_is_better, data.fingerprint_function(each.compute))
        for each in project.metrics
    ]
    return sha256(repr((project.gates, own)))


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
