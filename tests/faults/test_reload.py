"""The service while its stage moves: every request is answered, by a version that the ledger had there."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import register_model
from fastapi.testclient import TestClient
from rounds import rounds, soak, wait_until
from stages import clone, force_to_prod

from mlops_lib import registry
from mlops_lib.programs import service
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.tracking import store

N_CLIENTS, N_RELOADS = 4, rounds(6, 20)
ROW = {"color": "red", "size": 11.0, "weight": 5.0}
pytestmark = pytest.mark.usefixtures("version")


@pytest.fixture
def follower(project: Project) -> service.Follower:
    """Return what follows prod, where version 1 is; version 2 is the same model."""
    clone(project, 1)
    force_to_prod(project, 1)
    return service.Follower(project, "prod", registry.load_model(project, "prod"))


@pytest.fixture
def client(follower: service.Follower) -> Iterator[TestClient]:
    with TestClient(service.create_app(follower.served.release, follower)) as client:
        yield client


def spoil(project: Project, version: int) -> Path:
    """Flip a byte of a version's model."""
    model_id = registry.get_version(project, version).model_id
    (path,) = (project.root / "mlartifacts").rglob(f"{model_id}/artifacts/model.skops")
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    return path


@soak
def test_no_request_fails_while_versions_come_and_go(
    project: Project, follower: service.Follower, client: TestClient, record: Callable[..., None]
) -> None:
    register_model(project, C=0.1)  # version 3, whose files get spoilt
    whole = shutil.copytree(project.root / "mlartifacts", project.root / "whole")
    answers: list[tuple[int, str, str]] = []
    ended = threading.Event()

    def call() -> None:
        while not ended.wait(0.05):
            answer = client.post("/invocations", json={"dataframe_records": [ROW]})
            answers.append((answer.status_code, answer.headers["X-Model-Version"], answer.headers["X-Model-Digest"]))

    callers = [threading.Thread(target=call) for _ in range(N_CLIENTS)]
    for caller in callers:
        caller.start()
    expected = []
    for n in range(N_RELOADS):
        version = (2, 3, 1, 3)[n % 4]
        if version == 3:
            shutil.copytree(whole, project.root / "mlartifacts", dirs_exist_ok=True)
        force_to_prod(project, version)
        if version == 3:
            spoil(project, version)
        follower.look()
        expected.append(version if version != 3 else expected[-1])
        assert follower.served.release.version == expected[-1]
        assert ("model.skops" in follower.waiting) == (version == 3)
    ended.set()
    for caller in callers:
        caller.join()
    digests = {str(v): registry.get_version(project, v).digest for v in (1, 2, 3)}
    assert len(answers) > N_RELOADS
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == {"1", "2"}
    assert all(digest == digests[version] for _, version, digest in answers)
    assert client.get("/version").json()["waiting"] == follower.waiting
    record(27, ours="the old version goes on answering, and says why; no request fails, each names its version")


def test_a_version_that_takes_other_rows_is_not_served_to_the_same_callers(
    project: Project, follower: service.Follower, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_to_prod(project, 2)
    load = registry.load_model

    def load_other(*arguments: Any, **options: Any) -> Release:
        found = load(*arguments, **options)
        columns = [{**column, "nullable": False} for column in found.files.contract["columns"]]
        more = {**columns[-1], "name": "height"}
        contract = {**found.files.contract, "columns": [*columns, more]}
        return replace(found, files=replace(found.files, contract=contract))

    monkeypatch.setattr(registry, "load_model", load_other)
    follower.look()
    assert "Version 2 does not take the rows that version 1 takes (height" in follower.waiting
    assert client.post("/invocations", json={"dataframe_records": [ROW]}).headers["X-Model-Version"] == "1"
    monkeypatch.undo()
    follower.look()
    assert (follower.served.release.version, follower.waiting) == (2, "")


def test_a_refused_version_is_loaded_ever_less_often(
    project: Project, follower: service.Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, loads = [1000.0], []

    def refuse(*_: Any) -> Release:
        loads.append(now[0] - 1000)
        raise OSError("no such file")

    force_to_prod(project, 2)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(registry, "load_model", refuse)
    monkeypatch.setattr(registry, "current", lambda *_: 2)
    for _ in range(400):
        follower.look()
        now[0] += service.LOOK_S
    assert loads[:6] == [0, 10, 20, 50, 120, 270]
    assert max(b - a for a, b in itertools.pairwise(loads)) == service.MAX_PAUSE_S
    assert follower.waiting == "no such file"
    monkeypatch.undo()
    clone(project, 1)
    force_to_prod(project, 3)
    follower.look()
    assert (follower.served.release.version, follower.waiting) == (3, ""), "another version waits for nothing"


def test_a_store_that_is_away_and_a_stage_that_is_empty_change_nothing(
    project: Project, follower: service.Follower, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    follower.project = replace(project, tracking_uri="http://127.0.0.1:9", environ={"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    follower.look()
    follower.look()
    assert "127.0.0.1:9" in follower.waiting
    assert capsys.readouterr().err.count("still serving version 1") == 1, "said once, not every ten seconds"
    follower.project = project
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "standing", lambda _: {"prod": None})
        follower.look()
    assert (follower.served.release.version, follower.waiting) == (1, "stage 'prod' is empty")
    follower.look()
    assert follower.waiting == ""
    assert client.get("/ping").text == "OK"


def test_it_looks_by_itself(project: Project, follower: service.Follower) -> None:
    force_to_prod(project, 2)
    with follower.looking(0.05):
        wait_until(lambda: follower.served.release.version == 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "follower"]


def test_a_model_made_again_with_the_numbers_of_the_old_one_is_noticed_by_its_digest(
    project: Project, follower: service.Follower
) -> None:
    old = follower.served.release
    store.connect(project.tracking_uri).delete_registered_model("toy")
    made = register_model(project, C=0.05)
    assert (made.version, made.digest == old.digest) == (old.version, False)
    follower.look()
    assert (follower.served.release.digest, "is empty" in follower.waiting) == (old.digest, True)
    force_to_prod(project, 1)
    follower.look()
    assert (follower.served.release.version, follower.served.release.digest) == (1, made.digest)
