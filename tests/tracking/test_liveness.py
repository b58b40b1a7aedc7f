"""Heartbeats, leases and who may close a run that somebody else has opened."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import workers
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mlops_lib import tracking
from mlops_lib.project import Project
from mlops_lib.tracking import liveness, store


@pytest.fixture
def client(project: Project) -> MlflowClient:
    return store.connect(project.tracking_uri)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def open_run(
    client: MlflowClient, *, host: str = "elsewhere", heard: timedelta | None = None, word: str = "running"
) -> Run:
    """Open a run as another host has, which was last heard of some time ago, or never."""
    tag = liveness.describe_runner(word).split(" ")
    tags = {liveness.RUNNER_TAG: " ".join([tag[0], host, *tag[2:]])}
    if heard is not None:
        tags[liveness.HEARTBEAT_TAG] = (datetime.now(UTC) - heard).isoformat(timespec="seconds")
    return client.create_run("0", tags=tags)


def reap(client: MlflowClient) -> list[str]:
    return [dead.run_id for dead in liveness.reap_runs(client, ["0"], everywhere=True)]


LONG_AGO = timedelta(seconds=liveness.LEASE_S + liveness.CLOCKS_S + 5)
SOON_AGO = timedelta(seconds=liveness.LEASE_S + liveness.CLOCKS_S - 60)


# --- leases ------------------------------------------------------------------------------------------------------


def test_a_run_of_another_host_whose_lease_has_expired_is_killed(client: MlflowClient) -> None:
    run = open_run(client, heard=LONG_AGO)
    assert not liveness.reap_runs(client, ["0"]), "only whoever asks for every host judges by leases"
    assert reap(client) == [run.info.run_id]
    found = client.get_run(run.info.run_id)
    assert found.info.status == "KILLED"
    assert "of host 'elsewhere' was last heard of at" in found.data.tags[liveness.REAPED_TAG]
    assert reap(client) == []


def test_a_run_that_said_how_it_ends_before_its_host_went_down_is_closed_so(client: MlflowClient) -> None:
    run = open_run(client, heard=LONG_AGO, word="FINISHED")
    assert reap(client) == [run.info.run_id]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("heard", [SOON_AGO, -SOON_AGO, None], ids=["lease and clocks", "clock ahead", "no heartbeat"])
def test_a_run_of_another_host_that_may_be_alive_is_left_alone(client: MlflowClient, heard: timedelta | None) -> None:
    open_run(client, heard=heard)
    assert reap(client) == []


def test_a_live_process_of_this_host_needs_no_heartbeat(client: MlflowClient) -> None:
    here = liveness.describe_runner("running").split(" ")[1]
    open_run(client, host=here, heard=LONG_AGO)
    assert reap(client) == []


def test_a_heartbeat_that_is_no_time_is_no_reason_to_kill(client: MlflowClient) -> None:
    run = open_run(client, heard=LONG_AGO)
    client.set_tag(run.info.run_id, liveness.HEARTBEAT_TAG, "yesterday")
    assert reap(client) == []


def test_a_run_that_is_heard_of_between_two_looks_is_left_alone(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(client, heard=LONG_AGO)
    find = liveness.find_dead_runs

    def find_and_be_slow(*arguments: object, **options: object) -> object:
        found = find(*arguments, **options)  # type: ignore[arg-type]
        client.set_tag(run.info.run_id, liveness.HEARTBEAT_TAG, datetime.now(UTC).isoformat())
        return found

    monkeypatch.setattr(liveness, "find_dead_runs", find_and_be_slow)
    assert reap(client) == []


# --- heartbeats --------------------------------------------------------------------------------------------------


def test_a_heartbeat_is_written_while_the_block_runs(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    run_id = client.create_run("0", tags=liveness.open_tags()).info.run_id
    client.set_tag(run_id, liveness.HEARTBEAT_TAG, "never")
    n_threads = threading.active_count()
    with liveness.heartbeat(client, run_id):
        wait_for(lambda: client.get_run(run_id).data.tags[liveness.HEARTBEAT_TAG] != "never")
    assert threading.active_count() == n_threads


def test_a_runner_that_cannot_write_for_the_lease_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Down:
        def set_tag(self, *_: str) -> None:
            raise ConnectionError

    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(liveness, "LEASE_S", 0.2)
    said: list[str] = []
    with liveness.heartbeat(Down(), "r", said.append):  # type: ignore[arg-type]
        wait_for(lambda: said)
        time.sleep(0.1)
    assert said == ["the loss of its store (no heartbeat for 0.2 s)"]


def test_a_runner_whose_store_hangs_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow's HTTP client does, which tries for four minutes."""
    answer = threading.Event()

    class Hanging:
        def set_tag(self, *_: str) -> None:
            answer.wait(60)

    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(liveness, "LEASE_S", 0.2)
    said: list[str] = []
    with liveness.heartbeat(Hanging(), "r", said.append):  # type: ignore[arg-type]
        wait_for(lambda: said)
        answer.set()
    assert len(said) == 1


def test_a_runner_whose_run_was_marked_dead_is_told_to_stop(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    run_id = client.create_run("0", tags=liveness.open_tags()).info.run_id
    said: list[str] = []
    with liveness.heartbeat(client, run_id, said.append):
        client.set_tag(run_id, liveness.RUNNER_TAG, liveness.describe_runner("KILLED"))
        wait_for(lambda: said)
    assert said == ["another process, which found it dead"]


# --- closing -----------------------------------------------------------------------------------------------------


def test_a_run_that_was_marked_dead_stays_so(project: Project, client: MlflowClient) -> None:
    with tracking.start_run(project) as run:
        client.set_tag(run.info.run_id, liveness.RUNNER_TAG, liveness.describe_runner("KILLED"))
    assert client.get_run(run.info.run_id).info.status == "KILLED"


@pytest.mark.parametrize(("raises", "status"), [(False, "FINISHED"), (True, "FAILED")])
def test_a_run_outside_a_runner_says_how_it_ended(
    project: Project, client: MlflowClient, raises: bool, status: str
) -> None:
    with contextlib.suppress(ZeroDivisionError), tracking.start_run(project) as run:
        opened = client.get_run(run.info.run_id).data.tags
        assert 1 / (not raises)
    found = client.get_run(run.info.run_id)
    assert opened[liveness.RUNNER_TAG].startswith("running ")
    assert found.info.status == status
    assert found.data.tags[liveness.RUNNER_TAG].startswith(f"{status} ")


def test_a_script_that_is_killed_in_its_run_is_found_dead(
    project: Project, client: MlflowClient, tmp_path: Path
) -> None:
    file = tmp_path / "run"
    process = workers.start(wait_in_a_run, project, file)
    wait_for(lambda: file.exists() and file.read_text())
    run_id = file.read_text()
    experiment_id = client.get_run(run_id).info.experiment_id
    before = liveness.find_dead_runs(client, [experiment_id])
    process.kill()
    process.join()
    assert before == []
    (dead,) = liveness.reap_runs(client, [experiment_id])
    assert (dead.run_id, client.get_run(run_id).info.status) == (run_id, "KILLED")


def wait_in_a_run(project: Project, file: Path) -> None:
    """Run in another process."""
    with tracking.start_run(project) as run:
        file.write_text(run.info.run_id)
        time.sleep(600)
