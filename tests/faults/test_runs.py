"""Runs that end badly: what the tools alone say of them, and what a killed training process leaves behind.

What the runner says of a notebook that ends badly is in tests/programs/notebooks/test_notebooks.py.
"""

from __future__ import annotations

from collections.abc import Callable

import nbformat
import papermill
import pytest
import workers
from conftest import register_model
from mlflow.entities import LoggedModelStatus
from mlflow.tracking import MlflowClient
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from refusals import raises

from mlops_lib import gates, registry
from mlops_lib.errors import ModelError, RefusedError
from mlops_lib.project import Project
from mlops_lib.registry.verify import check_store, repair_store
from mlops_lib.tracking import store

Record = Callable[..., None]


@pytest.fixture
def client(project: Project) -> MlflowClient:
    return store.connect(project.tracking_uri)


# --- the tools alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "seen"),
    [
        ("1 / 0", (8, "raises", "FINISHED", "the run is FINISHED")),
        ("import sys; sys.exit(0)", (9, "succeeds", "FINISHED", "papermill succeeds and the run is FINISHED")),
        ("import os; os.kill(os.getpid(), 9)", (10, "raises", "RUNNING", "the run of a killed kernel stays RUNNING")),
    ],
)
def test_what_stock_papermill_and_mlflow_say_of_a_notebook_that_ends_badly(
    project: Project, monkeypatch: pytest.MonkeyPatch, record: Record, cell: str, seen: tuple[int, str, str, str]
) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in ("import mlflow\nmlflow.start_run()", cell, "'never'")]
    path = project.root / "nb.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # MLflow leaves its last one in the environment
    try:
        papermill.execute_notebook(path, None, kernel_name="python3", progress_bar=False)
        ended = "succeeds"
    except (PapermillExecutionError, DeadKernelError):
        ended = "raises"
    (run,) = store.connect(project.tracking_uri).search_runs(["0"])
    case, *_, plain = seen
    assert seen == (case, ended, run.info.status, plain)
    record(case, plain=plain)


def test_mlflow_alone_registers_a_model_that_was_never_logged(
    project: Project, client: MlflowClient, record: Record
) -> None:
    model = client.create_logged_model("0")
    client.create_registered_model("plain")
    made = client.create_model_version("plain", source=f"models:/{model.model_id}", model_id=model.model_id)
    assert (made.status, model.status) == ("READY", LoggedModelStatus.PENDING)
    with raises(ModelError, "run"):
        registry.register(project, f"models:/{model.model_id}")
    record(21, plain="a model that was never logged is registered, READY", ours="refused, with the reason")


# --- killed while it trains, logs or registers -------------------------------------------------------------------

POINTS = {
    "while it trains": "mlops_lib.models.list_trusted_types",
    "before the first file": "mlflow.sklearn.save_model",
    "before MLflow says READY": "mlflow.tracking.client.MlflowClient.finalize_logged_model",
    "before our files are beside it": "mlops_lib.models.warmup_json",
    "before it has a manifest": "mlflow.tracking.client.MlflowClient.set_logged_model_tags",
}
CREATE_VERSION = "mlflow.tracking.client.MlflowClient.create_model_version"


@pytest.mark.parametrize("point", POINTS)
def test_a_training_process_that_is_killed_leaves_nothing_that_can_be_promoted(
    project: Project, client: MlflowClient, record: Record, point: str
) -> None:
    victim = workers.start(workers.train_and_die, project, POINTS[point])
    victim.join()
    assert victim.exitcode == -9, "the point was never reached"
    report = check_store(project)
    assert report.failures[0].name == "dead runs"
    experiment_id = client.get_experiment_by_name(project.name).experiment_id
    assert len(repair_store(project)) in {1, 2}
    (run,) = client.search_runs([experiment_id])
    assert run.info.status == "KILLED"
    for model in client.search_logged_models([experiment_id]):
        assert model.status != LoggedModelStatus.PENDING
        with raises(ModelError, "run"):
            registry.register(project, f"models:/{model.model_id}")
    assert registry.list_versions(project) == ()
    assert check_store(project).passed
    record(
        7,
        plain="the run stays RUNNING",
        ours="the run is marked KILLED by `mlops verify --repair`, and its model cannot be registered",
    )


def test_a_process_that_is_killed_before_it_registers_leaves_a_model_that_can_be(
    project: Project, client: MlflowClient
) -> None:
    victim = workers.start(workers.train_and_die, project, CREATE_VERSION)
    victim.join()
    assert victim.exitcode == -9, "the point was never reached"
    assert check_store(project).passed
    experiment_id = client.get_experiment_by_name(project.name).experiment_id
    (model,) = client.search_logged_models([experiment_id])
    assert registry.register(project, f"models:/{model.model_id}").version == 1


def test_a_process_that_is_killed_between_version_and_ledger_leaves_a_version_that_cannot_be_promoted(
    project: Project, client: MlflowClient, record: Record
) -> None:
    victim = workers.start(
        workers.train_and_die, project, "mlflow.tracking.client.MlflowClient.create_model_version", True
    )
    victim.join()
    assert victim.exitcode == -9, "the point was never reached"
    orphan = int(client.search_model_versions(f"name = '{project.name}'")[0].version)
    with raises(RefusedError, "promotion"):
        gates.promote(project, orphan, "staging", force=True, reason="try")
    repair_store(project)
    later = register_model(project)
    assert later.version == orphan + 1
    assert registry.current(project, "dev") == later.version
    assert check_store(project).passed
    record(7, ours="a version that is not in the ledger cannot be promoted")
