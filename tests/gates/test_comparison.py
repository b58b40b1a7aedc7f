"""Two versions side by side: what differs is named, what is the same is said, and metrics rest on the same rows."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from conftest import copy_store, make_model, make_project, register_model
from refusals import raises

from mlops_lib import cli, contracts, data, gates, quality, registry, tracking
from mlops_lib.errors import GateError, NotFoundError
from mlops_lib.project import Project
from mlops_lib.registry import Version


def register_other(project: Project, period: str = "p2") -> Version:
    """Register a version trained on another period, with a parameter and a looser contract."""
    rows = data.read_labelled(project, period)
    X = rows[list(project.features)]
    contract = contracts.infer_contract(
        rows.assign(size=rows["size"] * 2), features=project.features, keys=project.keys
    )
    path = project.path("arrivals", period)
    with tracking.start_run(project, inputs={"arrivals": [path]}, params={"C": 0.01}):
        model = make_model(0.01).fit(X, rows[project.target])
        logged = tracking.log_model(project, model, X, contract=contract.to_dict())
    return registry.register(project, logged.model_uri, description="other")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, registered: Project) -> Project:
    """Return a project with the toy version and another one, made once; tests leave it as it is."""
    found = make_project(tmp_path_factory.mktemp("compared"), migrated_store)
    copy_store(registered, found)
    register_other(found)
    return found


@pytest.fixture
def other(project: Project, compared: Project) -> None:
    """Give the project the toy version and another one."""
    copy_store(compared, project)


def log_verdict(project: Project, version: int, period: str) -> None:
    """Judge a version on a period, so that the verdict rests on it."""
    with tracking.start_run(project):
        release = registry.load_model(project, version)
        verdict = gates.check_gates(project, release, None, period)
        registry.log_verdict(project, version, verdict)


def test_metrics_are_measured_on_the_same_rows_with_intervals(project: Project, other: None) -> None:
    found = gates.compare_versions(project, 1, 2, periods=["p3"])
    table = found.tables["metrics"].set_index("metric")
    rows = data.read_labelled(project, "p3")
    scores = [registry.load_model(project, v).model.predict_proba(rows[list(project.features)])[:, 1] for v in (1, 2)]
    expected = quality.compute_paired_interval(rows["broke"], scores[1], scores[0], "roc_auc")
    assert table.loc["roc_auc", "difference"] == str(expected)
    assert table.loc["roc_auc", "version 1"] == str(quality.compute_interval(rows["broke"], scores[0], "roc_auc"))
    assert table.loc["log_loss", "better"] == "lower"
    assert found.n_rows == 1000
    assert "metrics on p3, 1,000 rows, 95 % intervals" in str(found)


def test_what_differs_is_named_and_what_only_one_has_too(project: Project, other: None) -> None:
    tables = gates.compare_versions(project, 1, 2, periods=[]).tables
    assert tables["parameters"].to_numpy().tolist() == [["C", "", "0.01"]]
    assert tables["data"]["what"].tolist() == ["arrivals/p2"]
    assert len(tables["data"]["second"][0]) == 12
    contract = tables["contract"].set_index("column")
    assert "scale" in contract.loc["size", "what"]
    assert tables["environment"].empty


def test_versions_made_in_the_same_way_are_the_same(project: Project, version: Version) -> None:
    register_model(project)
    found = gates.compare_versions(project, 1, 2, periods=[])
    assert all(table.empty for table in found.tables.values())
    for name in ("parameters", "contract", "data", "environment", "code"):
        assert f"\n{name}: same" in str(found)
    assert "metrics: no labelled period to score; name one" in str(found)


def test_another_environment_is_told_by_the_packages_that_the_model_pins(
    project: Project, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_lib.tracking.model.REQUIREMENTS", ("mlflow", "scikit-learn"))
    register_model(project)
    table = gates.compare_versions(project, 1, 2, periods=[]).tables["environment"].set_index("what")
    assert set(table.index) == {"skops", "pandas", "numpy", "scipy"}
    assert table.loc["skops"].tolist() == ["0.16.0", ""]


def test_other_code_is_told_by_commits_and_the_files_between_them(project: Project) -> None:
    def git(*arguments: str) -> None:
        name = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")
        subprocess.run(["git", "-C", str(project.root), *name, *arguments], check=True, capture_output=True)

    git("init")
    for text in ("first", "second"):
        (project.root / "train.py").write_text(text, encoding="utf-8")
        git("add", "train.py")
        git("commit", "-m", text)
        register_model(project)
    table = gates.compare_versions(project, 1, 2, periods=[]).tables["code"]
    assert table["what"].tolist()[0] == "commit"
    assert "train.py" in " ".join(table["second"])
    assert "1 file changed" in " ".join(table["second"])


def test_by_default_the_periods_are_those_of_the_verdict(project: Project, other: None) -> None:
    assert gates.compare_versions(project, 1, 2).periods == ()
    log_verdict(project, 2, "p3")
    found = gates.compare_versions(project, 1, 2)
    assert found.periods == ("p3",)
    assert not found.tables["metrics"].empty


def test_one_version_under_two_names_and_unknown_ones_are_refused(project: Project, other: None) -> None:
    with raises(GateError, "same_version"):
        gates.compare_versions(project, "dev", 2)
    with raises(NotFoundError, "version"):
        gates.compare_versions(project, 1, 9)
    with raises(NotFoundError, "period"):
        gates.compare_versions(project, 1, 2, periods=["p9"])


def test_the_notebook_table_escapes_and_the_json_is_json(project: Project, other: None) -> None:
    found = gates.compare_versions(project, 1, 2, periods=["p3"])
    assert "<table" in found._repr_html_()
    strange = replace(found, first=replace(found.first, name="<img src=x>"))
    assert "<img" not in strange._repr_html_()
    content = json.loads(json.dumps(found.to_dict()))
    assert content["first"] == 1
    assert content["parameters"] == [{"what": "C", "first": "", "second": "0.01"}]


def test_the_command_prints_it(project: Project, other: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_lib.project.load_project", lambda _, **__: project)
    done = CliRunner().invoke(cli.main, ["compare", "1", "dev", "--period", "p3"])
    assert done.exit_code == 0, done.output
    assert "Versions 1 and 2 of 'toy'" in done.output
    refused = CliRunner().invoke(cli.main, ["compare", "2", "dev"])
    assert refused.exit_code == 1
    assert "are both version 2" in refused.output
    assert mlflow.active_run() is None
