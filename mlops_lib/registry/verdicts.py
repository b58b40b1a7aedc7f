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
DIGEST_TAG = "mlops.verdict_digest"  # of the version and of the run
COUNT_TAG = "mlops.verdicts"  # how often this version was judged
VERDICT_FILE = "verdict.json"


def verdict_digest(verdict: Report | None) -> str:
    """Return the SHA-256 of a verdict's canonical JSON; nothing for no verdict."""
    return sha256(verdict.to_json()) if verdict else ""


@store.translate_errors
def log_verdict(project: Project, version: int, verdict: Report) -> str:
    """Log a verdict (JSON and HTML) to the active run and point the version at it; return its digest.

    Each is counted: who tries samples until one passes leaves the number of them in the history.
    """
    client = store.connect(project.tracking_uri, create=False)
    run = mlflow.active_run()
    if run is None:
        raise ValueError("a verdict is logged inside `with tracking.start_run(project)`")
    client.log_text(run.info.run_id, verdict.to_json(), VERDICT_FILE)
    client.log_text(run.info.run_id, f'<meta charset="utf-8">{verdict._repr_html_()}', "verdict.html")
    digest, before = verdict_digest(verdict), client.get_model_version(project.name, str(version))
    client.set_tag(run.info.run_id, DIGEST_TAG, digest)
    facts = {VERDICT_TAG: run.info.run_id, DIGEST_TAG: digest, COUNT_TAG: str(read_count(before) + 1)}
    for tag, value in facts.items():
        client.set_model_version_tag(project.name, str(version), tag, value)
    return digest


def read_count(model_version: ModelVersion) -> int:
    """Return how many verdicts were logged for a version, as its tag says."""
    count = model_version.tags.get(COUNT_TAG, "0")
    return int(count) if count.isdecimal() else 0


@store.translate_errors
def count_verdicts(project: Project, version: int) -> int:
    """Return how many verdicts were logged for a version."""
    return read_count(store.connect(project.tracking_uri, create=False).get_model_version(project.name, str(version)))


@store.translate_errors
def load_verdict(project: Project, version: int) -> Report | None:
    """Return the verdict that was last logged for a version, or None."""
    client = store.connect(project.tracking_uri, create=False)
    return read_verdict(client, client.get_model_version(project.name, str(version)))


def read_verdict(client: MlflowClient, model_version: ModelVersion) -> Report | None:
    """Return the verdict that a version points at, or None; a store that does not answer is no answer.

    A file that does not give the digest which was written when it was logged is no verdict.
    """
    run_id = model_version.tags.get(VERDICT_TAG)
    if not run_id:
        return None
    with store.ignore_codes(*store.MISSING), contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = store.read_artifact(str(client.get_run(run_id).info.artifact_uri), VERDICT_FILE)
        verdict = Report.from_dict(json.loads(text))
        return verdict if verdict_digest(verdict) == model_version.tags.get(DIGEST_TAG) else None
    return None  # gone or cut short: there is no verdict that could carry anything


def why_not(  # noqa: PLR0911 - one return per reason reads better than a chain
    project: Project, draft: Entry, verdict: Report | None, standing: Mapping[str, Entry]
) -> str | None:
    """Return why a verdict does not carry a promotion that is about to be written, or None if it does.

    This is what can be told without rows and models: the model's digest, the champion's, the definitions of the gates;
    ``gates.promote`` does the whole check again. The verdict's ``commit`` is kept as evidence and is no lock: another
    commit may promote exactly when the gates are the same there, and :func:`gates_digest` says so. ``dirty`` needs no
    rule of its own for the same reason.
    """
    if verdict is None:
        return "there is no verdict on it, or not as it was logged; run 03_validate"
    facts = verdict.facts
    if (facts.get("digest"), facts.get("version")) != (draft.digest, draft.version):
        return "the verdict is about another version or other model files"
    champion = standing.get(project.production)
    if facts.get("champion_digest") != (champion.digest if champion else None):
        return "the verdict compares it with another champion than the present one"
    if facts.get("gates") != gates_digest(project):
        return "the project's gates have changed since the verdict"
    if not facts.get("rows"):
        return "the verdict does not say which evaluation rows it rests on"
    if not verdict.passed:
        rows = verdict.failures
        text = ". ".join(f"{row.name} is {_short(row.value)}, needs {row.limit}" for row in rows[:3])
        return f"{len(rows)} of {len(verdict.rows)} gates failed. {text}"
    return None


def gates_digest(project: Project) -> str:
    """Return the SHA-256 of the project's gates and of its own metrics and costs, which they may name.

    Of a gate count its parameters and the source of its class, with what it inherits.
    """
    own = [
        each if isinstance(each, str) else (each.name, each.greater_is_better, data.fingerprint_function(each.compute))
        for each in project.metrics
    ]
    sources = [data.fingerprint_class(type(gate)) for gate in project.gates]
    facts = [project.gates, sources, own, project.min_evaluation_rows]
    if costs := project.costs:
        function = data.fingerprint_function(costs.function) if costs.function else None
        facts.append((costs.false_alarm, costs.miss, costs.capacity, function))
    return sha256(repr(tuple(facts)))


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
