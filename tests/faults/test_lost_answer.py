"""The server commits, its answer is lost, the client asks again: still one effect."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from conftest import log_toy_model, make_project, register_model
from mlflow.tracking import MlflowClient

from mlops_lib import gates, registry
from mlops_lib.project import Project
from mlops_lib.registry.verify import check_store

Record = Callable[..., None]


@dataclass
class Proxy:
    """Passes requests on, and drops the first answer to each path in ``lose``, after the server has done its work."""

    address: str = ""
    lose: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@pytest.fixture
def proxy(server_uri: str) -> Iterator[Proxy]:
    state = Proxy()
    upstream = server_uri.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection(upstream, timeout=120)
            connection.request(self.command, self.path, body, {**dict(self.headers), "Host": upstream})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            name = self.path.partition("?")[0].partition("/mlflow/")[2]
            if name in state.lose:
                state.lose.remove(name)
                state.lost.append(name)
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.address = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


@pytest.fixture
def behind_proxy(project: Project, proxy: Proxy) -> Project:
    return replace(project, tracking_uri=proxy.address, name=f"toy-{uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def model_uri(server_uri: str, tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> str:
    """Return a model logged once, without losses: each test registers it under a name of its own."""
    elsewhere = make_project(tmp_path_factory.mktemp("logged"), migrated_store)
    return log_toy_model(replace(elsewhere, tracking_uri=server_uri, name=f"logged-{uuid4().hex[:8]}")).model_uri


def test_mlflow_alone_makes_two_versions(proxy: Proxy, record: Record) -> None:
    client, name = MlflowClient(proxy.address, proxy.address), f"plain-{uuid4().hex[:8]}"
    client.create_registered_model(name)
    model = client.create_logged_model("0")
    proxy.lose.append("model-versions/create")
    made = client.create_model_version(name, source=f"models:/{model.model_id}", model_id=model.model_id)
    assert proxy.lost == ["model-versions/create"]
    assert int(made.version) == 2
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    record(6, plain="a lost answer makes two versions")


@pytest.mark.parametrize(
    "path",
    [
        "runs/create",
        "registered-models/create",
        "model-versions/create",
        "runs/log-parameter",
        "registered-models/alias",
    ],
)
def test_a_registration_whose_answer_is_lost_is_one_registration(
    behind_proxy: Project, proxy: Proxy, model_uri: str, record: Record, path: str
) -> None:
    proxy.lose.append(path)
    # The first run that is made is the training's.
    made = register_model(behind_proxy) if path == "runs/create" else registry.register(behind_proxy, model_uri)
    assert proxy.lost == [path]
    entries = registry.history(behind_proxy)
    assert [(entry.action, entry.version) for entry in entries] == [("register", made.version)]
    assert registry.current(behind_proxy, "dev") == made.version
    assert check_store(behind_proxy).passed
    record(6, ours="one registration, one promotion")


def test_a_registration_whose_answer_is_lost_leaves_no_twin(
    behind_proxy: Project, proxy: Proxy, model_uri: str
) -> None:
    proxy.lose.append("model-versions/create")
    made = registry.register(behind_proxy, model_uri)
    assert [version.version for version in registry.list_versions(behind_proxy)] == [made.version]


@pytest.mark.parametrize("path", ["runs/log-parameter", "registered-models/alias"])
def test_a_promotion_whose_answer_is_lost_is_one_promotion(
    behind_proxy: Project, proxy: Proxy, model_uri: str, record: Record, path: str
) -> None:
    made = registry.register(behind_proxy, model_uri)
    proxy.lose.append(path)
    gates.promote(behind_proxy, made.version, "staging", force=True, reason="good")
    assert proxy.lost == [path]
    moves = registry.history(behind_proxy, "staging")
    assert [(entry.action, entry.version) for entry in moves] == [("force", made.version)]
    assert check_store(behind_proxy).passed
    record(6, ours="one registration, one promotion")
