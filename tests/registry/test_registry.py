"""Versions, stages and the ledger: nothing moves without proof, and every move can be told and undone."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import workers
from conftest import FEATURES, copy_store, make_model, make_project, make_rows, register_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import FileInfo
from mlflow.tracking import MlflowClient
from refusals import raises
from stages import aliases, bring_to_prod, clone, force_to_prod, judge, ledger_of, registrations_of, standing

from mlops_lib import data, gates, models, registry, tracking
from mlops_lib.errors import (
    LedgerError,
    MlopsError,
    ModelError,
    ModelFileError,
    NotFoundError,
    RefusedError,
    StoreError,
)
from mlops_lib.gates import Threshold, judge_rows
from mlops_lib.project import Project
from mlops_lib.registry import ledger, moves, verdicts
from mlops_lib.report import Report, Row
from mlops_lib.tracking import store
from mlops_lib.wording import visible

# --- registering and finding -------------------------------------------------------------------------------------


def test_a_registered_model_is_version_1_in_dev(project: Project, version: registry.Version) -> None:
    assert (version.version, version.stages, version.metrics) == (1, ("dev",), {"val_roc_auc": 0.75})
    assert version.description == "C=1.0"
    assert version.created_at.endswith("+00:00")
    assert standing(project) == {"dev": 1, "staging": None, "prod": None}
    (entry,) = registry.history(project)
    assert (entry.action, entry.stage, entry.version, entry.actor) == ("register", "dev", 1, "ada")
    assert entry.digest == version.digest
    assert str(entry).startswith("#r1 register dev → version 1 by ada at ")


def test_versions_are_listed_newest_first_with_their_stages(project: Project, version: registry.Version) -> None:
    clone(project, 2)
    force_to_prod(project, 1)
    found = [(v.version, v.stages) for v in registry.list_versions(project)]
    assert found == [(3, ("dev",)), (2, ()), (1, ("staging", "prod"))]


def test_nothing_is_registered_yet(project: Project) -> None:
    assert registry.list_versions(project) == ()
    assert registry.history(project) == ()
    assert standing(project) == {"dev": None, "staging": None, "prod": None}
    with pytest.raises(NotFoundError, match=r"Stages with a version: none"):
        registry.resolve(project, "prod")
    with pytest.raises(NotFoundError, match=r"Registered versions: none"):
        registry.get_version(project, 1)


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("name", [1, "1", "dev"])
def test_a_version_is_found_by_number_and_by_stage(project: Project, name: int | str) -> None:
    assert registry.get_version(project, name).version == 1
    assert registry.load_model(project, name).version == 1


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("name", "case"),
    [
        (2, "version"),
        (0, "version"),
        (-1, "version"),
        ("99", "version"),
        ("²", "stage"),
        ("prod", "version_in_stage"),
        ("prd", "stage"),
        ("Prod", "stage"),
        ("-1", "stage"),
        ("", "stage"),
    ],
)
def test_what_is_no_version_is_refused_with_what_exists(project: Project, name: int | str, case: str) -> None:
    with raises(NotFoundError, case):
        registry.get_version(project, name)


def test_a_loaded_release_knows_what_it_is(project: Project, version: registry.Version) -> None:
    release = registry.load_model(project, "dev")
    assert (release.name, release.version, release.stage, release.digest) == ("toy", 1, "dev", version.digest)
    assert (release.features, release.task.threshold) == (list(FEATURES), 0.5)
    assert registry.load_model(project, 1).stage is None


def test_lineage_tells_run_data_and_parameters(project: Project, version: registry.Version) -> None:
    lineage = registry.read_lineage(project, version)
    assert lineage["run"] == f"{version.run_id} FINISHED"
    assert lineage["actor"] == "ada"


# --- not registrable ---------------------------------------------------------------------------------------------


def log_model(project: Project) -> tracking.LoggedModel:
    rows = data.read_labelled(project, "p1")
    X, y = rows[list(FEATURES)], rows["broke"]
    return tracking.log_model(project, make_model().fit(X, y), X)


def test_a_pending_model_is_no_version(project: Project) -> None:
    client = store.connect(project.tracking_uri)
    experiment_id = store.get_experiment_id(client, project.tracking_uri, project.name)
    model = client.create_logged_model(experiment_id)
    with pytest.raises(ModelError, match=r"PENDING, not READY"):
        registry.register(project, f"models:/{model.model_id}")
    assert registry.list_versions(project) == ()


def test_a_model_of_a_failed_run_is_no_version(project: Project) -> None:
    logged: list[tracking.LoggedModel] = []
    with pytest.raises(ZeroDivisionError), tracking.start_run(project):  # noqa: PT012 - the body is what fails
        logged.append(log_model(project))
        _ = 1 / 0
    with pytest.raises(ModelError, match=r"is FAILED"):
        registry.register(project, logged[0].model_uri)
    assert registry.list_versions(project) == ()


def test_a_model_of_a_deleted_run_is_no_version(project: Project) -> None:
    with tracking.start_run(project) as run:
        logged = log_model(project)
    store.connect(project.tracking_uri).delete_run(run.info.run_id)
    with pytest.raises(ModelError, match=r"is deleted"):
        registry.register(project, logged.model_uri)


def test_a_model_of_a_run_that_still_runs_may_be_registered_and_cannot_be_promoted_yet(project: Project) -> None:
    with tracking.start_run(project):
        version = registry.register(project, log_model(project).model_uri)
        with pytest.raises(RefusedError, match=r"its run is RUNNING, not FINISHED"):
            gates.promote(project, version.version, "staging", force=True, reason="impatient")


def test_a_model_that_plain_mlflow_logged_has_no_manifest_and_is_no_version(project: Project) -> None:
    rows = data.read_labelled(project, "p1")
    X, y = rows[["size", "weight"]], rows["broke"]
    with tracking.start_run(project):
        info = mlflow.sklearn.log_model(make_model()[-1].fit(X, y), name="model", pip_requirements=["scikit-learn"])
    with pytest.raises(ModelError, match=r"no manifest; log it with tracking.log_model"):
        registry.register(project, info.model_uri)


@pytest.mark.parametrize("uri", ["models:/m-0123456789", "file:///nonexistent", "nonsense", ""])
def test_what_is_no_logged_model_is_no_version(project: Project, uri: str) -> None:
    with pytest.raises(ModelError, match=r"was not registered"):
        registry.register(project, uri)


def test_a_model_changed_between_logging_and_registering_is_no_version(project: Project) -> None:
    with tracking.start_run(project):
        logged = log_model(project)
    spoil(logged.model_uri)
    with pytest.raises(ModelFileError, match=r"file 'model.skops' has been changed"):
        registry.register(project, logged.model_uri)
    assert registry.list_versions(project) == ()


def test_a_metric_that_is_no_number_is_not_shown_for_a_version(project: Project) -> None:
    with tracking.start_run(project):
        logged = log_model(project)
    with pytest.raises(MlopsError, match=r"needs a finite number"):
        registry.register(project, logged.model_uri, metrics={"val_roc_auc": float("nan")})
    assert registry.list_versions(project) == ()


def folder_of(model_uri: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(model_uri))


def spoil(model_uri: str) -> None:
    """Flip one byte in the middle of the stored model file."""
    path = folder_of(model_uri) / "model.skops"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- promotion ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_a_version_with_a_passed_verdict_moves_stage_by_stage(project: Project) -> None:
    verdict = judge(project, 1)
    assert verdict.passed
    entry = gates.promote(project, 1, "staging", reason="best of one")
    assert (entry.action, entry.from_version, entry.reason) == ("promote", None, "best of one")
    assert entry.verdict == verdicts.verdict_digest(verdict)
    assert gates.promote(project, 1, "prod").reason == "gates passed"
    assert standing(project) == {"dev": 1, "staging": 1, "prod": 1} == aliases(project)
    assert [e.stage for e in registry.history(project)] == ["dev", "staging", "prod"]
    assert [e.action for e in registry.history(project, "prod")] == ["promote"]


@pytest.mark.usefixtures("version")
def test_what_stock_tools_load_is_what_the_ledger_says(project: Project) -> None:
    bring_to_prod(project, 1)
    rows = make_rows(20, seed=9)[0][list(FEATURES)]
    stock = mlflow.pyfunc.load_model("models:/toy@prod").predict(rows)
    np.testing.assert_array_equal(stock, registry.load_model(project, "prod").model.predict_proba(rows))


@pytest.mark.usefixtures("version")
def test_an_alias_that_somebody_moved_is_ignored_and_repaired_by_the_next_move(project: Project) -> None:
    force_to_prod(project, 1)
    clone(project, 1)
    client = store.connect(project.tracking_uri)
    client.set_registered_model_alias("toy", "prod", "2")
    assert registry.resolve(project, "prod") == 1
    gates.promote(project, 2, "staging", force=True, reason="next")
    assert aliases(project) == {"dev": 2, "staging": 2, "prod": 1}


Spoil = Callable[[Project], Any]


def no_verdict(project: Project) -> None:
    pass


def failed_verdict(project: Project) -> None:
    strict = replace(project, gates=(Threshold("roc_auc", 0.99),))
    judge(strict, 1)


def verdict_of_another_version(project: Project) -> None:
    clone(project, 1)
    judge(project, 2)
    tags = MlflowClient().get_model_version("toy", "2").tags
    for tag in (verdicts.VERDICT_TAG, verdicts.DIGEST_TAG):
        MlflowClient().set_model_version_tag("toy", "1", tag, tags[tag])


def changed_data(project: Project) -> None:
    judge(project, 1)
    rows, _ = make_rows(1000, seed=77, start=1000)
    data.write_table(rows, project.path("arrivals", "p2"))


def missing_data(project: Project) -> None:
    judge(project, 1)
    project.path("labels", "p2").unlink()


def changed_champion(project: Project) -> None:
    clone(project, 1)
    judge(project, 1)
    gates.promote(project, 2, "staging", force=True, reason="urgent")
    gates.promote(project, 2, "prod", force=True, reason="urgent")
    register_model(project, C=0.5)
    judge(project, 3)
    gates.promote(project, 3, "staging")
    gates.promote(project, 3, "prod")


def failed_run(project: Project) -> None:
    judge(project, 1)
    MlflowClient().set_terminated(registry.get_version(project, 1).run_id, "FAILED")


def verdict_without_facts(project: Project) -> None:
    with tracking.start_run(project):
        registry.log_verdict(project, 1, Report("Gates", (Row("x", 1.0, "", "passed"),)))


def verdict_of_rows_at_hand(project: Project) -> None:
    verdict = judge_rows(project, registry.load_model(project, 1), None, data.read_labelled(project, "p2"))
    facts = {"digest": registry.get_version(project, 1).digest, "version": 1, "champion_digest": None}
    verdict = replace(verdict, facts={**facts, "gates": registry.gates_digest(project)})
    with tracking.start_run(project):
        registry.log_verdict(project, 1, verdict)


def edited_verdict(project: Project) -> None:
    """Make a failed verdict pass, and its digest fit: who may edit the run and the version can."""
    hard = replace(project, gates=(Threshold("roc_auc", 0.99), *project.gates))
    verdict = judge(hard, 1)
    kept = tuple(row for row in verdict.rows if row.status != "failed")
    with tracking.start_run(project):
        facts, rows = (
            {**verdict.facts, "gates": registry.gates_digest(project)},
            (*kept, Row("test_f1", 0.9, "", "passed")),
        )
        registry.log_verdict(project, 1, replace(verdict, rows=rows, facts=facts))


def edited_value(project: Project) -> None:
    verdict = judge(project, 1)
    rows = [replace(row, value=float(row.value) + 0.01) if row.name == "test_roc_auc" else row for row in verdict.rows]
    with tracking.start_run(project):
        registry.log_verdict(project, 1, replace(verdict, rows=tuple(rows)))


def edited_file(project: Project) -> None:
    judge(project, 1)
    run_id = MlflowClient().get_model_version("toy", "1").tags[verdicts.VERDICT_TAG]
    path = Path(MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://")) / "verdict.json"
    path.write_text(path.read_text().replace('"passed"', '"passed "', 1).replace('"passed "', '"passed"'))
    stored = json.loads(path.read_text())
    stored["rows"] = stored["rows"][:1]
    path.write_text(json.dumps(stored))


def turned_labels(project: Project) -> None:
    """Judge on labels that stood in the file only while it was judged."""
    path = project.path("labels", "p2")
    labels = data.read_table(path)
    data.write_table(labels.assign(broke=labels["broke"].iloc[::-1].to_numpy()), path)
    judge(replace(project, gates=(Threshold("roc_auc", 0.0),)), 1)
    data.write_table(labels, path)


def another_sample(project: Project) -> None:
    verdict = judge(project, 1)
    with tracking.start_run(project):
        facts = {**verdict.facts, "rows": {**verdict.facts["rows"], "max_rows": 200}}
        registry.log_verdict(project, 1, replace(verdict, facts=facts))


def verdict_file_gone(project: Project) -> None:
    judge(project, 1)
    run_id = MlflowClient().get_model_version("toy", "1").tags[verdicts.VERDICT_TAG]
    (Path(MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://")) / "verdict.json").unlink()


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (no_verdict, r"there is no verdict on it, or not as it was logged; run 03_validate"),
        (failed_verdict, r"gates have changed since the verdict"),
        (verdict_of_another_version, r"about another version or other model files"),
        (changed_data, r"the evaluation rows have changed since the verdict"),
        (missing_data, r"its evaluation rows cannot be read again: .*p2"),
        (edited_verdict, r"other rows than the check done again: test_f1"),
        (edited_value, r"the check was done again, and test_roc_auc is 0\.\d+, not 0\.\d+"),
        (edited_file, r"there is no verdict on it, or not as it was logged"),
        (turned_labels, r"gates have changed|evaluation rows have changed"),
        (another_sample, r"the evaluation rows have changed since the verdict"),
        (changed_champion, r"another champion than the present one"),
        (failed_run, r"its run is FAILED, not FINISHED"),
        (verdict_without_facts, r"about another version or other model files"),
        (verdict_of_rows_at_hand, r"does not say which evaluation rows it rests on"),
        (verdict_file_gone, r"there is no verdict on it"),
    ],
)
def test_a_promotion_without_proof_that_still_holds_is_refused(project: Project, prepare: Spoil, reason: str) -> None:
    prepare(project)
    before = registry.history(project)
    with pytest.raises(RefusedError, match=reason) as caught:
        gates.promote(project, 1, "staging")
    assert str(caught.value).endswith(
        f"staging still has version {standing(project)['staging']}."
        if standing(project)["staging"]
        else "staging is still empty."
    )
    assert registry.history(project) == before


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("is_listed", [False, True])
def test_a_store_that_is_away_is_not_called_a_missing_verdict(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    judge(project, 1)

    class Away:
        def list_artifacts(self) -> list[FileInfo]:
            return [FileInfo(verdicts.VERDICT_FILE, False, 1)] if is_listed else self.reset()

        def download_artifacts(self, name: str, folder: str) -> str:
            return self.reset()

        def reset(self) -> Any:
            raise ConnectionResetError("Connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "get_artifact_repository", lambda location: Away())
        with pytest.raises(StoreError, match="Connection reset by peer"):
            gates.promote(project, 1, "staging")
    assert registry.current(project, "staging") is None
    gates.promote(project, 1, "staging")


@pytest.mark.usefixtures("version")
def test_a_failed_gate_is_told_with_value_and_limit(project: Project) -> None:
    strict = replace(project, gates=(Threshold("roc_auc", 0.99),))
    judge(strict, 1)
    with pytest.raises(RefusedError, match=r"1 of 6 gates failed. test_roc_auc is 0\.\d+, needs interval >= 0.990"):
        gates.promote(strict, 1, "staging")


@pytest.mark.usefixtures("version")
def test_loosening_the_gates_after_the_verdict_does_not_help(project: Project) -> None:
    judge(replace(project, gates=(Threshold("roc_auc", 0.99),)), 1)
    with pytest.raises(RefusedError, match=r"gates have changed"):
        gates.promote(replace(project, gates=(Threshold("roc_auc", 0.1),)), 1, "staging")


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("force", [False, True])
def test_the_order_of_stages_is_kept_even_by_force(project: Project, force: bool) -> None:
    def promote(version: int, stage: str) -> registry.Entry:
        return gates.promote(project, version, stage, force=force, reason="test")

    judge(project, 1)
    with pytest.raises(RefusedError, match=r"it has never been in staging"):
        promote(1, "prod")
    with pytest.raises(RefusedError, match=r"nothing is promoted to it"):
        promote(1, "dev")
    promote(1, "staging")
    with pytest.raises(RefusedError, match=r"it is there already"):
        promote(1, "staging")
    with raises(NotFoundError, "stage"):
        promote(1, "prd")
    with raises(NotFoundError, "version"):
        promote(9, "staging")


@pytest.mark.usefixtures("version")
def test_a_version_that_was_replaced_in_staging_does_not_reach_prod(project: Project) -> None:
    clone(project, 1)
    for version in (1, 2):
        judge(project, version)
        gates.promote(project, version, "staging")
    with pytest.raises(RefusedError, match=r"staging has version 2 by now"):
        gates.promote(project, 1, "prod")


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("reason", ["", "  "])
def test_force_takes_a_reason_and_stays_in_the_history(project: Project, reason: str) -> None:
    with pytest.raises(RefusedError, match=r"forcing takes a reason"):
        gates.promote(project, 1, "staging", force=True, reason=reason)
    entry = gates.promote(project, 1, "staging", force=True, reason="the old one is down")
    assert (entry.action, entry.verdict, entry.reason) == ("force", "", "the old one is down")
    assert registry.history(project)[-1] == entry


@pytest.mark.usefixtures("version")
def test_a_reason_too_long_for_the_ledger_is_refused_before_anything_moves(project: Project) -> None:
    before = registry.history(project)
    for long in ("x" * 4000, "漢" * 1000):
        with raises(LedgerError, "long_reason"):
            gates.promote(project, 1, "staging", force=True, reason=long)
        with raises(LedgerError, "long_reason"):
            registry.rollback(project, "dev", reason=long)
        with raises(LedgerError, "long_reason"):
            registry.register(project, "models:/any", description=long)
    assert registry.history(project) == before


def test_changed_bytes_are_refused_at_every_door(project: Project, version: registry.Version) -> None:
    judge(project, 1)
    spoil(f"models:/{version.model_id}")
    for door in (
        lambda: gates.promote(project, 1, "staging"),
        lambda: gates.promote(project, 1, "staging", force=True, reason="hurry"),
        lambda: registry.load_model(project, 1),
    ):
        with pytest.raises(ModelFileError, match=r"Version 1 of 'toy' .* file 'model.skops' has been changed"):
            door()
    assert standing(project)["staging"] is None


def test_a_model_whose_folder_is_gone_is_refused(project: Project, version: registry.Version) -> None:
    shutil.rmtree(folder_of(f"models:/{version.model_id}"))
    with pytest.raises(ModelFileError):
        registry.load_model(project, 1)


def test_bytes_and_manifest_changed_together_are_still_refused_by_the_ledger(
    project: Project, version: registry.Version
) -> None:
    spoil(f"models:/{version.model_id}")
    manifest = models.compute_manifest(folder_of(f"models:/{version.model_id}"))
    tags = {
        models.MANIFEST_TAG: json.dumps(manifest, sort_keys=True, separators=(",", ":")),
        models.DIGEST_TAG: models.compute_digest(manifest),
    }
    for name, value in tags.items():
        MlflowClient().set_model_version_tag("toy", "1", name, value)
    with pytest.raises(ModelFileError, match=r"file 'manifest' is not the one of its registration"):
        registry.load_model(project, 1)
    with pytest.raises(ModelFileError, match=r"file 'manifest' is not the one of its registration"):
        gates.promote(project, 1, "staging", force=True, reason="hurry")


# --- rollback ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_history(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, registered: Project) -> Project:
    """Versions 1, 2 and 3 have been in prod, in this order; made once, and left as it is."""
    made = make_project(tmp_path_factory.mktemp("history"), migrated_store)
    copy_store(registered, made)
    clone(made, 2)
    for number in (1, 2, 3):
        force_to_prod(made, number)
    return made


@pytest.fixture
def three_in_prod(project: Project, with_history: Project) -> Project:
    """Return a copy of it."""
    copy_store(with_history, project)
    store.connect(project.tracking_uri)
    return project


def test_rollback_goes_back_step_by_step_and_then_forward_again(three_in_prod: Project) -> None:
    project = three_in_prod
    assert registry.rollback(project, "prod", reason="complaints").version == 2
    assert registry.rollback(project, "prod", reason="still").version == 1
    entry = registry.rollback(project, "prod", to=3, reason="it was the data")
    assert (entry.version, entry.from_version, entry.action) == (3, 1, "rollback")
    assert standing(project) == {"dev": 3, "staging": 3, "prod": 3} == aliases(project)
    assert [e.version for e in registry.history(project, "prod")] == [1, 2, 3, 2, 1, 3]


def test_after_a_rollback_a_promotion_starts_from_where_we_are(three_in_prod: Project) -> None:
    project = three_in_prod
    registry.rollback(project, "prod", reason="complaints")
    (four,) = clone(project, 1)
    force_to_prod(project, four)
    assert registry.rollback(project, "prod", reason="again").version == 2


def test_rollback_to_a_version_that_never_was_there_is_refused(three_in_prod: Project) -> None:
    (four,) = clone(three_in_prod, 1)
    with pytest.raises(RefusedError, match=r"it never had version 4; it had 1, 2"):
        registry.rollback(three_in_prod, "prod", to=four, reason="try")
    with pytest.raises(RefusedError, match=r"never had version 3|is there already"):
        registry.rollback(three_in_prod, "prod", to=3, reason="it is there")


@pytest.mark.usefixtures("version")
def test_rollback_of_a_stage_without_a_past_is_refused(project: Project) -> None:
    with pytest.raises(RefusedError, match=r"never had another version. It is still empty"):
        registry.rollback(project, "prod", reason="try")
    force_to_prod(project, 1)
    with pytest.raises(RefusedError, match=r"never had another version. It still has version 1"):
        registry.rollback(project, "prod", reason="try")
    with raises(NotFoundError, "stage"):
        registry.rollback(project, "prd", reason="try")


def test_rollback_to_a_version_whose_files_have_changed_is_refused(
    project: Project, version: registry.Version, second: registry.Version
) -> None:
    force_to_prod(project, 1)
    force_to_prod(project, second.version)
    spoil(f"models:/{version.model_id}")
    with pytest.raises(ModelFileError, match=r"Version 1 of 'toy'"):
        registry.rollback(project, "prod", reason="complaints")
    assert standing(project)["prod"] == second.version


def test_rollback_never_goes_forward_by_itself(three_in_prod: Project) -> None:
    for _ in range(2):
        registry.rollback(three_in_prod, "prod", reason="back")
    with pytest.raises(RefusedError, match=r"the oldest it had; name one of 2, 3 \(--to\)"):
        registry.rollback(three_in_prod, "prod", reason="there is nothing further back")
    assert registry.current(three_in_prod, "prod") == 1


def test_history_and_versions_are_tuples_that_a_notebook_shows_as_tables(project: Project) -> None:
    for records in (registry.history(project), registry.list_versions(project)):
        assert records == ()
        assert records.frame().empty, "with its columns, though there is nothing to show"
    assert registry.history(project).head == ""
    first = register_model(project)
    second = registry.register(project, f"models:/{first.model_id}", metrics={"test_mae": 0.7})
    gates.promote(project, second.version, "staging", force=True, reason="first ever <3")
    entries, versions = registry.history(project), registry.list_versions(project)
    frame = entries.frame()
    assert list(frame.index) == [entry.label for entry in entries] == ["r1", "r2", "1"]
    assert entries.head == f"r2:{entries[1].hash} 1:{entries[2].hash}"
    assert frame["at"].dt.tz is not None
    assert frame.loc["r2", "from_version"] == 1
    assert frame["from_version"].isna().tolist() == [True, False, True]
    assert "first ever &lt;3" in entries._repr_html_()
    assert "first ever <3" in repr(entries)
    frame = versions.frame()
    assert [version.version for version in versions] == list(frame.index) == [2, 1]
    assert frame.loc[2, "stages"] == "dev, staging"
    assert frame.loc[2, "test_mae"] == 0.7
    assert frame["test_mae"].isna().tolist() == [False, True]
    assert versions[0].digest == frame.loc[2, "digest"]


# --- the ledger --------------------------------------------------------------------------------------------------


def write_sql(project: Project, statement: str, *values: object) -> None:
    """Do what only somebody with write access to the database can do."""
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:
        assert database.execute(statement, values).rowcount == 1


def slot_of(project: Project, label: str) -> tuple[str, str]:
    """Return the run and the parameter that hold an entry."""
    run_id = registrations_of(project) if label.startswith("r") else ledger_of(project)
    return run_id, f"{int(label.removeprefix('r')):06d}"


def edit_entry(project: Project, label: str, **changes: object) -> None:
    run_id, key = slot_of(project, label)
    text = MlflowClient().get_run(run_id).data.params[key]
    edited = json.dumps({**json.loads(text), **changes}, sort_keys=True, separators=(",", ":"))
    write_sql(project, "update params set value = ? where run_uuid = ? and key = ?", edited, run_id, key)


@pytest.mark.parametrize(
    ("label", "changes"),
    [
        ("r1", {"reason": "nicer"}),
        ("r3", {"digest": "f" * 64}),
        ("1", {"reason": "nicer"}),
        ("2", {"version": 3}),
        ("4", {"actor": "bob"}),
        ("5", {"number": 6}),
        ("6", {"version": 1}),
    ],
)
def test_an_edited_entry_is_found_by_number(three_in_prod: Project, label: str, changes: dict[str, object]) -> None:
    edit_entry(three_in_prod, label, **changes)
    with raises(LedgerError, "broken") as caught:
        registry.read_ledger(three_in_prod)
    prefix = "r" * label.startswith("r")
    assert caught.value.entry in (label, f"{prefix}{int(label.removeprefix('r')) + 1}")
    with raises(LedgerError, "broken"):
        registry.load_model(three_in_prod, "prod")


@pytest.mark.parametrize("label", ["r2", "1", "4"])
def test_a_removed_entry_is_found_by_number(three_in_prod: Project, label: str) -> None:
    write_sql(three_in_prod, "delete from params where run_uuid = ? and key = ?", *slot_of(three_in_prod, label))
    with pytest.raises(LedgerError, match=rf"entry {label} is missing or out of order"):
        registry.read_ledger(three_in_prod)


@pytest.mark.parametrize("text", ["not json", "[]", "null", '"text"', "{}", '{"number": 3, "surprise": 1}'])
def test_an_entry_that_is_none_is_found(three_in_prod: Project, text: str) -> None:
    sql = "update params set value = ? where run_uuid = ? and key = '000003'"
    write_sql(three_in_prod, sql, text, ledger_of(three_in_prod))
    with pytest.raises(LedgerError, match=r"entry 3 cannot be read"):
        registry.read_ledger(three_in_prod)


def test_a_removed_last_entry_is_found_by_number(three_in_prod: Project) -> None:
    sql = "delete from params where run_uuid = ? and key = '000006'"
    write_sql(three_in_prod, sql, ledger_of(three_in_prod))
    with pytest.raises(LedgerError, match=r"entry 6 is missing"):
        registry.read_ledger(three_in_prod)


def test_an_entry_written_by_other_hands_is_found_even_with_the_same_content(three_in_prod: Project) -> None:
    sql = "update params set value = value || ' ' where run_uuid = ? and key = '000006'"
    write_sql(three_in_prod, sql, ledger_of(three_in_prod))
    with pytest.raises(LedgerError, match=r"entry 6 is not written as this library writes it"):
        registry.read_ledger(three_in_prod)


def test_a_move_that_was_killed_before_its_head_and_alias_were_noted_still_counts(three_in_prod: Project) -> None:
    client = store.connect(three_in_prod.tracking_uri)
    entries = registry.read_ledger(three_in_prod)
    client.set_tag(ledger_of(three_in_prod), ledger.HEAD_TAG, f"5:{entries[-2].hash}")
    client.set_registered_model_alias("toy", "prod", "2")
    assert registry.resolve(three_in_prod, "prod") == 3
    registry.rollback(three_in_prod, "staging", reason="next move")
    assert aliases(three_in_prod) == standing(three_in_prod)


@pytest.mark.parametrize("run_of", [registrations_of, ledger_of])
@pytest.mark.parametrize(
    ("key", "value"), [("note", "hello"), ("000007", "mine"), ("000004", "mine"), ("0", "{}"), ("٠٠٠٠٠٩", "{}")]
)
def test_what_is_no_entry_is_passed_over_and_told(
    three_in_prod: Project, run_of: Callable[[Project], str], key: str, value: str
) -> None:
    run_id, before = run_of(three_in_prod), registry.read_ledger(three_in_prod)
    if key not in MlflowClient().get_run(run_id).data.params:
        MlflowClient().log_param(run_id, key, value)
    assert registry.read_ledger(three_in_prod) == before
    registry.rollback(three_in_prod, "prod", reason="goes on")
    registry.register(three_in_prod, f"models:/{before[0].model_id}")
    assert len(registry.read_ledger(three_in_prod)) == len(before) + 2
    assert registry.load_model(three_in_prod, "prod").version == 2
    report = registry.check_store(three_in_prod)
    assert report.passed, str(report)
    strays = [row.reason for row in report.rows if row.name == "stray parameters"]
    assert all("no entries, written by other hands" in reason for reason in strays)
    assert len(strays) == ((run_of, key) != (ledger_of, "000004"))  # the one that was there is an entry


def test_a_ledger_run_that_somebody_deleted_is_found(three_in_prod: Project) -> None:
    client = store.connect(three_in_prod.tracking_uri)
    client.delete_run(ledger_of(three_in_prod))
    with pytest.raises(LedgerError, match=r"deleted"):
        registry.read_ledger(three_in_prod)


def test_a_model_deleted_and_made_again_under_the_same_name_starts_an_empty_ledger(
    project: Project, version: registry.Version
) -> None:
    force_to_prod(project, 1)
    store.connect(project.tracking_uri).delete_registered_model("toy")
    assert registry.history(project) == ()
    with raises(NotFoundError, "version_in_stage"):
        registry.resolve(project, "prod")
    again = registry.register(project, f"models:/{version.model_id}")
    assert (again.version, standing(project)) == (1, {"dev": 1, "staging": None, "prod": None})
    assert len(registry.history(project)) == 1


def test_a_version_deleted_while_prod_points_to_it_is_told(project: Project, version: registry.Version) -> None:
    force_to_prod(project, 1)
    clone(project, 1)
    store.connect(project.tracking_uri).delete_model_version("toy", "1")
    with pytest.raises(NotFoundError, match=r"There is no version '(prod|1)' of 'toy'"):
        registry.load_model(project, "prod")


def test_a_model_that_plain_mlflow_registered_is_adopted(project: Project) -> None:
    client = store.connect(project.tracking_uri)
    client.create_registered_model("toy")
    assert registry.list_versions(project) == ()
    assert register_model(project).version == 1
    assert len(registry.history(project)) == 1


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reason=st.text(max_size=200))
def test_any_reason_survives_the_ledger(project: Project, version: registry.Version, reason: str) -> None:
    if visible(reason, keep="\n\t") != reason:
        with raises(LedgerError, "unseen"):
            registry.register(project, f"models:/{version.model_id}", description=reason)
        reason = visible(reason)
    registry.register(project, f"models:/{version.model_id}", description=reason)
    assert registry.history(project)[-1].reason == (reason or "registered")


# --- at the same time --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_of_two_promoters_from_one_head_exactly_one_wins(project: Project) -> None:
    numbers = clone(project, 8)
    for pair in zip(numbers[::2], numbers[1::2], strict=True):
        before = len(registry.history(project))
        answers = workers.run_at_once(workers.promote, [(project, number, "staging") for number in pair])
        (winner,) = (answer for answer in answers if isinstance(answer, registry.Entry))
        (loser,) = (answer for answer in answers if not isinstance(answer, registry.Entry))
        assert isinstance(loser, RefusedError)
        assert loser.case == "head_moved"
        assert str(winner) in str(loser)
        assert registry.history(project)[before:] == (winner,)
        assert aliases(project)["staging"] == winner.version


@pytest.mark.usefixtures("version")
def test_a_promoter_that_saw_an_older_head_is_told_who_was_faster(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of the test above with its worst timing, every time."""
    clone(project, 1)
    check = moves.verify_files

    def be_overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(moves, "verify_files", check)
        gates.promote(replace(project, actor="bob"), 2, "staging", force=True, reason="faster")
        check(*arguments)

    monkeypatch.setattr(moves, "verify_files", be_overtaken)
    with pytest.raises(RefusedError, match=r"promote staging|force staging → version 2 by bob"):
        gates.promote(project, 1, "staging", force=True, reason="slower")
    assert standing(project)["staging"] == 2


def test_processes_that_register_the_first_version_at_once_share_one_ledger(project: Project) -> None:
    with tracking.start_run(project):
        logged = log_model(project)
    versions = workers.run_at_once(workers.register, [(project, logged.model_uri)] * 4)
    assert sorted(versions) == [1, 2, 3, 4]  # type: ignore[type-var]
    entries = registry.history(project)
    assert sorted(entry.version for entry in entries) == [1, 2, 3, 4]
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert aliases(project) == {"dev": entries[-1].version}
