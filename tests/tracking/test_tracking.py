"""Runs that say what was run, and models logged so that anything can load them."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import FEATURES, make_model
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from refusals import raises
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from mlops_lib import contracts, data, models, registry, tracking
from mlops_lib.errors import ModelError, QualityError, TaskError
from mlops_lib.project import Project
from mlops_lib.task import Task, binary, multiclass, regression
from mlops_lib.tracking import store


def read_run(project: Project, run_id: str) -> Run:
    return store.connect(project.tracking_uri).get_run(run_id)


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(project: Project) -> str:
    """Make the project's root a repository with one commit; return the commit."""
    (project.root / ".gitignore").write_text("mlflow.db*\nmlartifacts/\ndata/\n")
    (project.root / "train.py").write_text("C = 1\n")
    (project.root / "requirements.lock").write_text("click==8.5.0\n")
    git(project.root, "init", "-q")
    git(project.root, "add", ".")
    git(project.root, "commit", "-q", "-m", "first")
    return git(project.root, "rev-parse", "HEAD")


# --- what ran ----------------------------------------------------------------------------------------------------


def test_a_secret_in_a_parameter_is_starred_in_the_store_and_stays_in_the_callers_list(project: Project) -> None:
    names, secret = ["a hunter22 b"], {"MY_TOKEN": "hunter22"}
    with tracking.start_run(
        replace(project, environ=secret), params={"names": names}, tags={"team": "hunter22"}
    ) as run:
        pass
    data = MlflowClient().get_run(run.info.run_id).data
    assert (data.params["names"], data.tags["team"]) == ("['a *** b']", "***")
    assert names == ["a hunter22 b"]


def test_a_run_says_which_commit_ran_and_by_whom(project: Project, repository: str) -> None:
    with tracking.start_run(project, run_name="first", tags={"team": "blue"}, params={"C": 1}) as run:
        pass
    tags = read_run(project, run.info.run_id).data.tags
    assert tags["mlops.commit"] == tags["mlflow.source.git.commit"] == repository
    assert (tags["mlops.dirty"], tags["mlops.actor"], tags["team"]) == ("false", "ada", "blue")
    assert tags["mlops.lock"] == data.fingerprint_file(project.root / "requirements.lock")
    assert read_run(project, run.info.run_id).data.params == {"C": "1"}
    assert not MlflowClient().list_artifacts(run.info.run_id)


@pytest.mark.usefixtures("repository")
def test_a_dirty_tree_is_recorded_with_its_difference(project: Project) -> None:
    (project.root / "train.py").write_text("C = 2\n")
    (project.root / "new.py").touch()
    with tracking.start_run(project) as run:
        pass
    assert read_run(project, run.info.run_id).data.tags["mlops.dirty"] == "true"
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/code/uncommitted.diff")
    assert "-C = 1\n+C = 2" in text
    assert "?? new.py" in text


def test_without_a_repository_nothing_is_claimed_about_code(project: Project) -> None:
    with tracking.start_run(project) as run:
        pass
    assert "mlops.commit" not in read_run(project, run.info.run_id).data.tags


def test_the_notebook_that_runs_is_recorded_with_the_hash_of_its_code(project: Project) -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": "# Train", "metadata": {}},
        {"cell_type": "code", "source": ["x = 1\n", "x"], "metadata": {}, "outputs": [], "execution_count": 1},
    ]
    path = project.root / "notebooks/02_train.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    tags = tracking.describe_code(replace(project, notebook="02_train.ipynb"))
    assert tags["mlops.notebook"] == "notebooks/02_train.ipynb"
    before = tracking.notebook_source(path)
    assert tags["mlops.notebook_source"] == before
    cells[0]["source"], cells[1]["execution_count"] = "# Train better", 7
    path.write_text(json.dumps({"cells": cells}))
    assert tracking.notebook_source(path) == before
    cells[1]["source"] = ["x = 2\n", "x"]
    path.write_text(json.dumps({"cells": cells}))
    assert tracking.notebook_source(path) != before


def test_inputs_are_fingerprinted_in_full_and_shown_as_datasets(project: Project) -> None:
    paths = [project.path("arrivals", "p1"), project.path("arrivals", "p2")]
    frame = data.read_labelled(project, "p3")
    with tracking.start_run(project, inputs={"arrivals": paths, "frame": frame, "one": paths[0]}) as run:
        pass
    found = read_run(project, run.info.run_id)
    expected = {
        "mlops.input.arrivals/p1": data.fingerprint_file(paths[0]),
        "mlops.input.arrivals/p2": data.fingerprint_file(paths[1]),
        "mlops.input.frame": data.fingerprint_frame(frame),
        "mlops.input.one/p1": data.fingerprint_file(paths[0]),
    }
    assert {name: value for name, value in found.data.tags.items() if name.startswith("mlops.input")} == expected
    shown = {d.dataset.name: d.dataset.digest for d in found.inputs.dataset_inputs}
    assert set(shown) == {"arrivals/p1", "arrivals/p2", "frame", "one/p1"}
    assert all(expected[f"mlops.input.{name}"].partition(":")[2].startswith(digest) for name, digest in shown.items())


def test_an_empty_list_of_inputs_is_no_input(project: Project) -> None:
    with tracking.start_run(project, inputs={"arrivals": []}) as run:
        pass
    assert read_run(project, run.info.run_id).info.status == "FINISHED"


# --- how it ended ------------------------------------------------------------------------------------------------


def test_plain_mlflow_works_inside(project: Project) -> None:
    with tracking.start_run(project) as run:
        mlflow.log_metric("val_roc_auc", 0.7)
        mlflow.log_text("hello", "note.txt")
    found = read_run(project, run.info.run_id)
    assert found.data.metrics == {"val_roc_auc": 0.7}
    assert found.info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_an_exception_leaves_the_run_failed_and_passes_through(project: Project) -> None:
    with pytest.raises(ZeroDivisionError), tracking.start_run(project) as run:
        _ = 1 / 0
    assert read_run(project, run.info.run_id).info.status == "FAILED"
    assert mlflow.active_run() is None


def test_an_input_that_is_missing_leaves_the_run_failed(project: Project) -> None:
    with pytest.raises(FileNotFoundError), tracking.start_run(project, inputs={"x": Path("/no/such.parquet")}):
        pass
    assert mlflow.active_run() is None
    (run,) = store.connect(project.tracking_uri).search_runs([experiment_of(project)])
    assert run.info.status == "FAILED"


def experiment_of(project: Project) -> str:
    return store.get_experiment_id(store.connect(project.tracking_uri), project.tracking_uri, project.name)


@pytest.fixture
def owned(project: Project) -> Project:
    """Return a project in a kernel for which a runner has opened a run."""
    client = store.connect(project.tracking_uri)
    return replace(project, run_id=client.create_run(experiment_of(project)).info.run_id)


def test_a_run_that_a_runner_owns_stays_open(owned: Project) -> None:
    for value in (1.0, 2.0):
        with tracking.start_run(owned, params={"C": 1}) as run:
            mlflow.log_metric("x", value)
        assert run.info.run_id == owned.run_id
        found = read_run(owned, run.info.run_id)
        assert (found.info.status, found.data.metrics) == ("RUNNING", {"x": value})


def test_a_run_that_a_runner_owns_is_failed_by_an_exception(owned: Project) -> None:
    with pytest.raises(ZeroDivisionError), tracking.start_run(owned):
        _ = 1 / 0
    assert read_run(owned, str(owned.run_id)).info.status == "FAILED"


# --- metrics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.7", None, np.float64("nan"), [0.7]])
def test_a_metric_that_is_no_finite_number_is_refused_and_none_is_logged(project: Project, value: Any) -> None:
    with tracking.start_run(project) as run, raises(QualityError, "metric") as caught:
        tracking.log_metrics({"good": 0.7, "bad": value})
    assert caught.value.name == "bad"
    assert read_run(project, run.info.run_id).data.metrics == {}


def test_numbers_of_numpy_are_numbers(project: Project) -> None:
    values = {"a": np.float64(0.5), "b": np.float32(0.25), "c": np.int64(3), "d": 1, "e": 0.5}
    with tracking.start_run(project) as run:
        tracking.log_metrics(values)
    assert read_run(project, run.info.run_id).data.metrics == {name: float(value) for name, value in values.items()}


# --- models ------------------------------------------------------------------------------------------------------


def contract_of(X: pd.DataFrame) -> dict[str, Any]:
    rows = X.assign(thing_id=range(len(X)))
    return contracts.infer_contract(rows, features=list(X.columns), keys=["thing_id"]).to_dict()


def log_toy(project: Project, X: pd.DataFrame, y: pd.Series[int]) -> tuple[Any, tracking.LoggedModel]:
    model = make_model().fit(X, y)
    with tracking.start_run(project):
        logged = tracking.log_model(project, model, X, contract=contract_of(X), profile={"b": 2})
    return model, logged


@pytest.fixture
def training(project: Project) -> tuple[pd.DataFrame, pd.Series[int]]:
    """Return rows with one whole-number column."""
    rows = data.read_labelled(project, "p1")
    return rows[list(FEATURES)].assign(weight=rows["weight"].round().astype("int64")), rows["broke"]


def test_a_logged_model_has_everything_that_scoring_needs(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    _, logged = log_toy(project, *training)
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    content = yaml.safe_load((folder / "MLmodel").read_text())
    kinds = {column["name"]: column["type"] for column in json.loads(content["signature"]["inputs"])}
    assert kinds == {"color": "string", "size": "double", "weight": "double"}, "whole numbers may arrive as floats"
    task = {"kind": "binary", "classes": [0, 1], "positive": 1, "threshold": 0.5}
    assert content["metadata"]["mlops"] == {"features": list(FEATURES), "task": task}
    assert content["flavors"]["sklearn"]["serialization_format"] == "skops"
    assert json.loads((folder / "contract.json").read_text()) == json.loads(json.dumps(contract_of(training[0])))
    profile = json.loads((folder / "profile.json").read_text())
    assert list(profile.pop("scores")["columns"]) == ["score"], "what the drift of predictions is measured against"
    assert profile == {"b": 2}
    assert len(json.loads((folder / "warmup.json").read_text())["predictions"]) == tracking.WARMUP_ROWS
    assert len(json.loads((folder / "input_example.json").read_text())["data"]) == tracking.EXAMPLE_ROWS
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in requirements] == list(tracking.REQUIREMENTS)
    tags = MlflowClient().get_logged_model(logged.model_id).tags
    assert tags[models.DIGEST_TAG] == logged.digest
    assert json.loads(tags[models.MANIFEST_TAG]) == models.compute_manifest(folder)


def test_the_rows_that_were_trained_on_are_stored_as_hashes_in_the_manifest(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    X, y = training
    keys = data.read_labelled(project, "p1")[["thing_id"]]
    with tracking.start_run(project):
        logged = tracking.log_model(project, make_model().fit(X, y), X, keys=keys)
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    rows = np.load(folder / models.TRAINING_FILE, allow_pickle=False)
    assert rows["content"].tolist() == data.hash_rows(X).tolist()
    assert rows["key"].tolist() == data.hash_rows(keys).tolist()
    tags = MlflowClient().get_logged_model(logged.model_id).tags
    assert models.TRAINING_FILE in json.loads(tags[models.MANIFEST_TAG])


def test_requirements_are_stated_and_not_inferred_in_another_process(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    popen = subprocess.Popen.__init__

    def watch(self: Any, arguments: Any, *rest: Any, **options: Any) -> None:
        started.append(arguments[0])
        popen(self, arguments, *rest, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watch)
    log_toy(project, *training)
    assert {Path(program).name for program in started} <= {"git"}


def test_stock_mlflow_gives_the_same_probabilities(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    X, _ = training
    model, logged = log_toy(project, *training)
    stock = mlflow.pyfunc.load_model(logged.model_uri)
    as_floats = X.astype({"weight": "float64"})
    np.testing.assert_array_equal(stock.predict(as_floats), model.predict_proba(X))
    assert mlflow.sklearn.load_model(logged.model_uri).predict(X).tolist() == model.predict(X).tolist()


def test_a_regression_is_logged_with_its_prediction(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    X, y = training[0][["size", "weight"]], training[1]
    model = LinearRegression().fit(X, y)
    with tracking.start_run(project):
        logged = tracking.log_model(replace(project, task=regression()), model, X)
    stock = mlflow.pyfunc.load_model(logged.model_uri)
    np.testing.assert_allclose(stock.predict(X.astype("float64")), model.predict(X))


def shout(X: pd.DataFrame) -> pd.DataFrame:
    return X


def test_a_model_with_a_function_of_the_notebook_is_refused_before_anything_is_written(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    X, y = training[0][["size"]], training[1]
    model = make_pipeline(FunctionTransformer(shout), LinearRegression()).fit(X, y)
    with tracking.start_run(project), pytest.raises(ModelError, match=r"test_tracking.shout"):
        tracking.log_model(replace(project, task=regression()), model, X)
    assert not store.connect(project.tracking_uri).search_logged_models([experiment_of(project)])


def nothing_was_logged(project: Project) -> bool:
    return not store.connect(project.tracking_uri).search_logged_models([experiment_of(project)])


OF_ANOTHER_TASK = [
    (binary(), Ridge, [0.5, 1.5], "is no classifier, and the project's task is binary"),
    (regression(), GaussianNB, [0, 1], "is a classifier, and the project's task is regression"),
    (binary(), GaussianNB, [0], r"knows the classes \(0,\), and the project's task is binary"),
    (binary(), GaussianNB, [0, 1, 2], r"knows the classes \(0, 1, 2\)"),
    (binary(), GaussianNB, ["0", "1"], r"knows the classes \('0', '1'\), and the project's task has \(0, 1\)"),
    (binary(positive="yes"), GaussianNB, ["no", "Yes"], "and the positive one is 'yes'"),
    (multiclass(), GaussianNB, [0, 1], "task is multiclass"),
    (multiclass("abc"), GaussianNB, ["a", "b", "d"], r"the project's task has \('a', 'b', 'c'\)"),
    (binary(), LinearSVC, [0, 1], "gives no probabilities; wrap it in sklearn.calibration"),
    (regression(), Ridge, [[0.5, 1.5], [1.5, 0.5]], r"returns scores of shape \(1000, 2\)"),
    (regression(), RandomForestRegressor, [[0.5, 1.5], [1.5, 0.5]], "has several outputs; train one model for each"),
]


@pytest.mark.parametrize("case", OF_ANOTHER_TASK, ids=lambda case: case[-1])
def test_a_model_of_another_task_is_refused_before_anything_is_written(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]], case: tuple[Task, Any, list[Any], str]
) -> None:
    task, make, target, reason = case
    X = training[0][["size", "weight"]]
    model = make().fit(X, np.resize(target, (len(X), *np.shape(target)[1:])))
    with tracking.start_run(project), pytest.raises(TaskError, match=reason):
        tracking.log_model(replace(project, task=task), model, X)
    assert nothing_was_logged(project)


def test_a_model_that_scoring_would_hand_other_types_is_refused_before_anything_is_written(project: Project) -> None:
    rows = data.read_labelled(project, "p1")
    X = rows[["size", "weight"]]
    single, model = X.astype("float32"), make_pipeline(StandardScaler(), LogisticRegression())
    with tracking.start_run(project):
        with pytest.raises(
            TaskError, match=r"has read them as other types \('size' float32 -> float64, 'weight' float32"
        ):
            tracking.log_model(project, model.fit(single, rows["broke"]), single, contract=contract_of(X))
        assert nothing_was_logged(project)
        assert tracking.log_model(project, model.fit(X, rows["broke"]), X, contract=contract_of(X)).digest


def test_a_contract_that_refuses_what_the_model_was_trained_on_is_refused(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    X, y = training
    contract = contract_of(X.assign(size=X["size"] + 1e6))
    with tracking.start_run(project), pytest.raises(TaskError, match=r"The contract refuses every one of 1000 rows"):
        tracking.log_model(project, make_model().fit(X, y), X, contract=contract)
    assert nothing_was_logged(project)


def test_a_type_that_does_not_come_back_from_json_is_refused_before_anything_is_written(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]]
) -> None:
    X = training[0][["size"]].assign(at=pd.Timestamp("2020-01-01"))
    model = make_pipeline(make_column_transformer(("passthrough", ["size"])), LogisticRegression()).fit(X, training[1])
    with tracking.start_run(project), pytest.raises(TaskError, match=r"types that JSON cannot hold .*'at' datetime64"):
        tracking.log_model(project, model, X)
    assert nothing_was_logged(project)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_threshold_that_the_model_brings_counts_and_is_said(
    project: Project, training: tuple[pd.DataFrame, pd.Series[int]], tuned: bool
) -> None:
    X, y = training
    model = FixedThresholdClassifier(make_model(), threshold=0.2)
    if tuned:
        model = TunedThresholdClassifierCV(make_model(), scoring="f1", cv=2)
    model.fit(X, y)
    own = model.best_threshold_ if tuned else 0.2
    with tracking.start_run(project):
        logged = tracking.log_model(project, model, X)
    version = registry.register(project, logged.model_uri)
    release = registry.load_model(project, version.version)
    assert release.task.threshold == own
    np.testing.assert_array_equal(release.task.decide(release.predict(X)), model.predict(X))
    assert f"1 from a score of {own:g} on" in registry.read_lineage(project, version)["task"]


def test_few_rows_are_enough(project: Project, training: tuple[pd.DataFrame, pd.Series[int]]) -> None:
    X, y = training
    model = make_model().fit(X, y)
    with tracking.start_run(project):
        assert tracking.log_model(project, model, X.head(3)).digest
