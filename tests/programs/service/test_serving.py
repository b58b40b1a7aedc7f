"""The HTTP service: MLflow's forms and numbers, the contract of batch scoring, nothing echoed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import FEATURES, make_rows
from fastapi.testclient import TestClient

from mlops_lib import registry
from mlops_lib.errors import ServiceError
from mlops_lib.programs import service
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.tracking import store

ROW = {"color": "red", "size": 11.0, "weight": 5.0}


@pytest.fixture(scope="module")
def release(registered: Project) -> Release:
    """Return version 1, loaded."""
    return registry.load_model(registered, 1)


@pytest.fixture(scope="module")
def client(release: Release) -> Iterator[TestClient]:
    """Return a client of the service."""
    with TestClient(service.create_app(release), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def rows() -> pd.DataFrame:
    """Return 20 good rows."""
    return make_rows(20, seed=9)[0][list(FEATURES)]


def forms_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the rows in each of MLflow's forms."""
    split = rows.to_dict("split")
    return {
        "dataframe_records": rows.to_dict("records"),
        "dataframe_split": {"columns": split["columns"], "data": split["data"]},
        "inputs": rows.to_dict("list"),
        "instances": rows.to_dict("records"),
    }


def ask(client: TestClient, **payload: Any) -> httpx.Response:
    return client.post("/invocations", json=payload)


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", service.FORMS)
def test_every_form_of_mlflow_gets_the_numbers_of_stock_mlflow(
    client: TestClient, registered: Project, release: Release, rows: pd.DataFrame, form: str
) -> None:
    store.connect(registered.tracking_uri)
    answer = ask(client, **{form: forms_of(rows)[form]})
    assert answer.status_code == 200, answer.text
    stock = mlflow.pyfunc.load_model(f"models:/{release.model_id}").predict(rows)
    np.testing.assert_array_equal(answer.json()["predictions"], stock)
    assert set(answer.json()) == {"predictions"}


def test_one_row_is_answered_by_the_exact_scorer_with_the_bits_of_stock_mlflow(
    registered: Project, release: Release, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.connect(registered.tracking_uri)
    stock = mlflow.pyfunc.load_model(f"models:/{release.model_id}")
    expected = [stock.predict(rows.iloc[[i]])[0].tolist() for i in range(len(rows))]

    def refuse(*_: Any) -> None:
        raise AssertionError("the pipeline was asked")

    with TestClient(service.create_app(release)) as client:
        monkeypatch.setattr(type(release.model), "predict_proba", refuse)
        answers = [ask(client, dataframe_records=[row]).json()["predictions"][0] for row in rows.to_dict("records")]
    assert answers == expected


def test_without_a_verdict_the_pipeline_answers(release: Release, rows: pd.DataFrame) -> None:
    plain = replace(release, files=replace(release.files, compiled={"equal": False, "reason": "told"}))
    with TestClient(service.create_app(plain)) as client:
        answers = ask(client, dataframe_records=rows.head(1).to_dict("records")).json()["predictions"]
    assert answers == release.model.predict_proba(rows.head(1)).tolist()


def test_every_answer_says_which_version_gave_it(client: TestClient, release: Release) -> None:
    answers = [
        client.get("/ping"),
        client.get("/health"),
        client.get("/version"),
        ask(client, dataframe_records=[ROW]),
        ask(client, dataframe_records=[{**ROW, "color": None}]),
        client.post("/invocations", content=b"{"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 422, 400]
    for answer in answers:
        assert answer.headers["X-Model-Version"] == "1", answer.request.url
        assert answer.headers["X-Model-Digest"] == release.digest
    assert answers[2].json() == {"name": "toy", "version": 1, "stage": None, "digest": release.digest}


def test_columns_may_come_in_any_order_and_with_others(client: TestClient) -> None:
    plain = ask(client, dataframe_records=[ROW]).json()
    assert ask(client, dataframe_records=[dict(reversed(ROW.items()))]).json() == plain
    assert ask(client, dataframe_records=[{**ROW, "note": "x", "thing_id": 7}]).json() == plain


def test_whole_numbers_are_numbers(client: TestClient) -> None:
    assert (
        ask(client, dataframe_records=[{**ROW, "size": 11, "weight": 5}]).json()
        == ask(client, dataframe_records=[ROW]).json()
    )


def test_pages_that_show_the_inside_are_closed(client: TestClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/"):
        assert client.get(path).status_code == 404


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"color": None},
        {"color": 5},
        {"color": {"a": 1}},
        {"color": ["red"]},
        {"size": None},
        {"size": "s3cret-1.5"},
        {"size": True},
        {"size": [1.0]},
        {"size": 1e300},
        {"weight": 10**400},
    ],
)
def test_a_bad_row_is_refused_by_number_and_rule_and_never_echoed(client: TestClient, change: dict[str, Any]) -> None:
    answer = ask(client, dataframe_records=[ROW, {**ROW, **change}])
    assert answer.status_code == 422, answer.text
    (bad,) = answer.json()["rows"]
    assert bad["row"] == 1
    assert bad["rule"].startswith(next(iter(change)))
    assert answer.json()["error"] == "1 of 2 rows break the contract. Nothing was scored."
    assert "s3cret" not in answer.text
    assert "11.0" not in answer.text


def test_a_missing_column_is_told(client: TestClient) -> None:
    answer = ask(client, dataframe_records=[{"color": "red", "size": 1.0}])
    assert answer.status_code == 400
    assert "lacks weight" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"dataframe_records": []}',
        b'{"dataframe_records": {}}',
        b'{"dataframe_records": [7]}',
        b'{"dataframe_records": null}',
        b'{"inputs": {}}',
        b'{"inputs": {"color": []}}',
        b'{"inputs": 7}',
        b'{"rows": [{"color": "red"}]}',
        b'{"dataframe_records": [{"color": "red"}], "instances": [{"color": "red"}]}',
        b'{"dataframe_records": [{"color": "red"}], "surprise": 1}',
        b'{"dataframe_records": [{"color": "red", "size": NaN, "weight": 1}]}',
        b'{"dataframe_records": [{"color": "red", "size": Infinity, "weight": 1}]}',
        b'{"dataframe_records": [{"color": "red", "size": 1e999, "weight": 1}]}',
        b'{"dataframe_records": [{"color": "red", "size": 1, "weight": 1}, {"color": "red"}]}',
        b'{"dataframe_records": [{"color": "red", "color": "s3cret", "size": 1, "weight": 1}]}',
        b'{"dataframe_split": {"columns": ["color"], "data": []}}',
        b'{"dataframe_split": {"columns": ["color", "size"], "data": [["red"]]}}',
        b'{"dataframe_split": {"columns": ["color", "color"], "data": [["red", "s3cret"]]}}',
        b'{"dataframe_split": {"columns": [["color"]], "data": [["red"]]}}',
        b'{"dataframe_split": {"columns": [["color"], ["size"], ["weight"]], "data": [["red", 1, 1]]}}',
        b'{"dataframe_split": {"columns": ["color", {"a": 1}, "weight"], "data": [["red", 1, 1]]}}',
        b'{"dataframe_split": {"columns": ["color", 5, "weight"], "data": [["red", 1, 1]]}}',
        b'{"dataframe_split": {"columns": "cs", "data": [["red", 1]]}}',
        b'{"dataframe_records": [{"color": "red", "size": 1, "weight": 1, "\\ud800": 1}]}',
        b'{"dataframe_split": {"columns": ["color", "\\udfff", "weight"], "data": [["red", 1, 1]]}}',
        b'{"\\ud800": []}',
        b'{"dataframe_split": {"data": [["red"]]}}',
        b'{"dataframe_split": [["red"]]}',
        b'{"inputs": {"color": ["red", "red"], "size": [1], "weight": [1]}}',
        b'{"inputs": {"color": "red", "size": 1, "weight": 1}}',
    ],
)
def test_a_body_that_is_none_of_the_forms_is_refused_without_echo(client: TestClient, body: bytes) -> None:
    answer = client.post("/invocations", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].strip()
    assert "s3cret" not in answer.text
    assert "Traceback" not in answer.text
    assert ask(client, dataframe_records=[ROW]).status_code == 200, "the service lives on"


def test_half_a_character_in_a_value_is_the_fault_of_its_row(client: TestClient) -> None:
    body = json.dumps({"dataframe_records": [ROW, {**ROW, "color": "\udfff"}]})
    answer = client.post("/invocations", content=body)
    assert answer.status_code == 422, answer.text
    assert [(bad["row"], bad["rule"]) for bad in answer.json()["rows"]] == [(1, "color.kind")]


def test_a_probe_may_ask_for_the_head_alone(client: TestClient) -> None:
    answers = [client.head(path) for path in ("/ping", "/health")]
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, ""), (200, "")]


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_body_that_is_packed_is_refused_by_name(client: TestClient, encoding: str) -> None:
    content = gzip.compress(json.dumps({"dataframe_records": [ROW]}).encode())
    answer = client.post("/invocations", content=content, headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert "Content-Encoding" in answer.json()["error"]


def test_other_methods_and_paths_are_refused(client: TestClient) -> None:
    assert client.get("/invocations").status_code == 405
    assert client.post("/other", json={}).status_code == 404


class GivesNan:
    def predict_proba(self, rows: pd.DataFrame) -> Any:
        return np.full((len(rows), 2), np.nan)


def test_a_model_that_gives_no_number_is_an_error_and_no_invalid_json(
    release: Release, record: Callable[..., None]
) -> None:
    broken = replace(release, files=replace(release.files, model=GivesNan()))
    with TestClient(service.create_app(broken), raise_server_exceptions=False) as client:
        answer = ask(client, dataframe_records=[ROW])
    assert answer.status_code == 500
    assert "Version 1 gave a prediction that is no finite number" in answer.json()["error"]


class Breaks:
    def predict_proba(self, rows: pd.DataFrame) -> Any:
        raise RuntimeError(f"s3cret {rows}")


def test_a_model_that_breaks_is_an_error_in_json_without_a_word_of_the_row(
    release: Release, record: Callable[..., None]
) -> None:
    broken = replace(release, files=replace(release.files, model=Breaks()))
    with TestClient(service.create_app(broken), raise_server_exceptions=False) as client:
        answer = ask(client, dataframe_records=[ROW])
    assert answer.status_code == 500
    assert "s3cret" not in answer.json()["error"]
    record(26, ours="the service answers with an error, in JSON")


def test_payloads_are_read_with_values_as_they_came() -> None:
    body = json.dumps({"instances": [{"flag": True, "n": 3, "x": 0.1, "text": "1"}]}).encode()
    assert service.read_payload(body).iloc[0].tolist() == [True, 3, 0.1, "1"]
    with pytest.raises(ServiceError, match=r"exactly one of dataframe_records"):
        service.read_payload(b"{}")


# --- a real server -----------------------------------------------------------------------------------------------


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_taken_port_is_told(free_port: int) -> None:
    service.raise_for_port("127.0.0.1", free_port)
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(ServiceError, match=f"Port {free_port}"):
        service.raise_for_port("127.0.0.1", free_port)


PROJECT_FILE = """
from pathlib import Path
from mlops_lib.project import Project
project = Project(
    name="toy", root=Path({root!r}), target="broke", keys=("thing_id",), features=("color", "size", "weight"),
    arrivals="data/arrivals/{{period}}.parquet", labels="data/labels/{{period}}.parquet",
)
"""


@pytest.mark.usefixtures("version")
def test_the_command_serves_until_it_is_interrupted(project: Project, free_port: int, tmp_path: Path) -> None:
    file = tmp_path / "project.py"
    file.write_text(PROJECT_FILE.format(root=str(project.root)))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": project.tracking_uri}
    command = [sys.executable, "-m", "mlops_lib.cli", "--project", str(file), "serve", "--stage", "dev"]
    with subprocess.Popen(
        [*command, "--port", str(free_port)], env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            answer = wait_for(f"http://127.0.0.1:{free_port}", server)
        finally:
            server.terminate()
        _, said = server.communicate()
    assert answer.headers["X-Model-Version"] == "1"
    assert len(answer.json()["predictions"][0]) == 2
    assert f"version 1 of 'toy' on http://127.0.0.1:{free_port}/invocations" in said
    assert "Traceback" not in said


def wait_for(address: str, server: subprocess.Popen[str]) -> httpx.Response:
    """Ask until the server answers or ends."""
    while server.poll() is None:  # how long it may take is the limit of the test
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(f"{address}/invocations", json={"dataframe_records": [ROW]}, trust_env=False)
        time.sleep(0.1)
    raise AssertionError("the server ended before it answered")
