"""``ci/server``: nobody without an account, no foreign host name, and secrets for its user only."""

from __future__ import annotations

import contextlib
import http.client
import stat
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import servers
from conftest import register_model
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from werkzeug.security import generate_password_hash

from mlops_lib import gates, registry, tracking
from mlops_lib.errors import ModelFileError, RefusedError, StoreError
from mlops_lib.gates import Threshold
from mlops_lib.project import Project
from mlops_lib.registry.ledger import open_ledger
from mlops_lib.tracking import store

Record = Callable[..., None]
SERVER = servers.ROOT / "ci/server"


@dataclass(frozen=True)
class Team:
    """A running ``ci/server`` and its state."""

    address: str
    state: Path
    postgres: servers.Postgres
    database: str

    def hash_once(self, account: str, password: str) -> None:
        """Store an account's password by one round of its hash: each request costs 0.4 s of the usual ones."""
        hashed = generate_password_hash(password, method="pbkdf2:sha256:1")
        self.postgres.execute(
            f"update users set password_hash = '{hashed}' where username = '{account}'", self.database
        )

    @property
    def password(self) -> str:
        return (self.state / "admin-password").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def team(postgres: servers.Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    state, uri = tmp_path_factory.mktemp("team"), postgres.create()
    with servers.run_server(uri, state) as address:
        found = Team(address, state, postgres, uri.partition("@/")[2].partition("?")[0])
        found.hash_once("admin", found.password)
        yield found


def ask(
    address: str, path: str, *, method: str = "GET", host: str | None = None, account: str = "", body: bytes = b""
) -> int:
    """Return the status of one request, with a ``Host`` header and an account of our choice."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    headers = {"Host": host or parts.netloc}
    if account:
        headers["Authorization"] = f"Basic {b64encode(account.encode()).decode()}"
    connection.request(method, path, body=body, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


IGNORED = "ignore:starlette.middleware.wsgi is deprecated"  # what MLflow's client of accounts imports
LIST = "/api/2.0/mlflow/registered-models/search"


def artifact_path(project: Project, version: registry.Version, file: str) -> str:
    """Return the path that the artifact proxy has for a file of a registered model."""
    uri = store.connect(project.tracking_uri).get_logged_model(version.model_id).artifact_location
    return f"/api/2.0/mlflow-artifacts/artifacts/{urlsplit(uri).path.strip('/')}/{file}"


@pytest.mark.parametrize(
    "path", [LIST, "/", "/ajax-api/2.0/mlflow/experiments/search", "/graphql", "/api/2.0/mlflow/users/list"]
)
def test_nobody_without_an_account_gets_an_answer(team: Team, path: str) -> None:
    assert ask(team.address, path) == 401
    assert ask(team.address, path, account="admin:a wrong password") == 401


def test_the_account_that_was_made_gets_one(team: Team, plain_server: str, record: Record) -> None:
    assert ask(team.address, LIST, account=f"admin:{team.password}") == 200
    assert ask(plain_server, LIST) == 200
    record(30, plain="anybody reads without an account", ours="no answer without an account")


@pytest.mark.parametrize(
    "host", ["evil.com", "10.evil.com", "192.168.evil.com:5000", "localhost.evil.com", "127.0.0.1"]
)
def test_a_foreign_host_name_is_refused(team: Team, host: str) -> None:
    assert ask(team.address, LIST, host=host, account=f"admin:{team.password}") == 403


def test_a_host_name_that_looks_like_a_private_address_is_refused(
    team: Team, plain_server: str, record: Record
) -> None:
    assert ask(team.address, LIST, host="10.evil.com", account=f"admin:{team.password}") == 403
    assert ask(plain_server, LIST, host="10.evil.com") == 200
    record(30, plain="`Host: 10.evil.com` is answered", ours="`Host: 10.evil.com` is refused")


def test_a_stranger_replaces_no_model_file(
    team: Team, plain_server: str, project: Project, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", team.password)
    ours = replace(project, tracking_uri=team.address)
    made = register_model(ours)
    path = artifact_path(ours, made, "model.skops")
    assert ask(team.address, path, method="PUT", body=b"another model") == 401
    assert ask(team.address, path, method="DELETE") == 401
    assert registry.load_model(ours, made.version).digest == made.digest

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    theirs = replace(project, tracking_uri=plain_server)
    made = register_model(theirs)
    assert ask(plain_server, artifact_path(theirs, made, "model.skops"), method="PUT", body=b"another model") == 200
    with pytest.raises(ModelFileError, match=r"'model.skops' has been changed"):
        registry.load_model(theirs, made.version)
    record(30, plain="anybody replaces a registered model's file", ours="no file is replaced without an account")


@pytest.mark.filterwarnings(IGNORED)
def test_an_account_may_look_but_moves_nothing_until_it_is_granted(
    team: Team, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/team-server.md says it; the name in the history is the account's."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", team.password)
    ours = replace(project, name="granted", tracking_uri=team.address, actor="admin")
    made = register_model(ours)
    client = store.connect(team.address)
    experiments = [client.get_experiment_by_name(name).experiment_id for name in ("granted", "granted.ledger")]
    server = get_app_client("basic-auth", team.address)
    server.create_user("ada", "twelve characters")
    team.hash_once("ada", "twelve characters")

    def promote() -> registry.Entry:
        return gates.promote(replace(ours, actor="ada"), made.version, "staging", force=True, reason="looks good")

    with monkeypatch.context() as as_ada:
        as_ada.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        as_ada.setenv("MLFLOW_TRACKING_PASSWORD", "twelve characters")
        assert registry.load_model(ours, made.version).digest == made.digest
        with pytest.raises(StoreError, match=r"does not let this account do that .*Permission denied"):
            promote()
    assert registry.current(ours, "staging") is None
    for experiment_id in experiments:
        server.grant_user_permission("ada", "experiment", experiment_id, "EDIT")
    server.grant_user_permission("ada", "registered_model", "granted", "EDIT")
    with monkeypatch.context() as as_ada:
        as_ada.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        as_ada.setenv("MLFLOW_TRACKING_PASSWORD", "twelve characters")
        promote()
    assert registry.history(ours, "staging")[0].actor == "ada"


@dataclass(frozen=True)
class People:
    """A project that was founded by the admin, and two people: who trains, and who promotes."""

    team: Team
    ours: Project
    patch: pytest.MonkeyPatch

    @contextlib.contextmanager
    def acting_as(self, name: str) -> Iterator[Project]:
        """Let MLflow's client send this account's password."""
        with self.patch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", name)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", "twelve characters" if name != "admin" else self.team.password)
            yield replace(self.ours, actor=name)


@pytest.fixture(scope="module")
def people(team: Team, tmp_path_factory: pytest.TempPathFactory, registered: Project) -> Iterator[People]:
    """Grant what docs/team-server.md says, word for word."""
    with pytest.MonkeyPatch.context() as patch:
        ours = replace(registered, name="parted", tracking_uri=team.address)
        found = People(team, ours, patch)
        with found.acting_as("admin") as project:
            registry.found(project)
            server, client = get_app_client("basic-auth", team.address), store.connect(team.address)
            ids = {name: client.get_experiment_by_name(name).experiment_id for name in ("parted", "parted.ledger")}
            for person, experiments in (("tom", ["parted"]), ("pia", ["parted", "parted.ledger"])):
                server.create_user(person, "twelve characters")
                team.hash_once(person, "twelve characters")
                server.grant_user_permission(person, "registered_model", "parted", "EDIT")
                for name in experiments:
                    server.grant_user_permission(person, "experiment", ids[name], "EDIT")
        with found.acting_as("tom") as project:
            register_model(project)
        yield found


@pytest.mark.filterwarnings(IGNORED)
def test_who_trains_registers_and_does_not_promote_and_who_promotes_does(people: People) -> None:
    with people.acting_as("tom") as project:
        assert registry.current(project, "dev") == 1
        with pytest.raises(StoreError, match=r"does not let this account do that .*Permission denied"):
            gates.promote(project, 1, "staging", force=True, reason="looks good to me")
    with people.acting_as("pia") as project:
        assert registry.current(project, "staging") is None
        gates.promote(project, 1, "staging", force=True, reason="looks good to me, too")
        assert [(e.label, e.actor) for e in registry.history(project)] == [("r1", "tom"), ("1", "pia")]
        assert registry.check_store(project).passed


@pytest.mark.filterwarnings(IGNORED)
def test_a_trainer_cannot_forge_moves_and_what_is_forged_beside_them_counts_for_nobody(people: People) -> None:
    with people.acting_as("tom") as project:
        client, before = store.connect(project.tracking_uri), open_ledger(project)[1]
        moves = client.get_run(before.moves.run_id)
        claims = [found for found in client.search_experiments() if found.name.startswith("parted.ledger.")]
        forged = replace(before.registrations.entries[0], action="force", stage="prod", number=2)
        refused: list[Callable[[], object]] = [
            lambda: client.create_run(moves.info.experiment_id, start_time=2**41),
            lambda: client.log_param(moves.info.run_id, "000002", forged.to_json()),
            lambda: client.log_param(moves.info.run_id, "note", "hello"),
            lambda: client.set_tag(moves.info.run_id, "mlops.ledger_head", "0:"),
            lambda: client.delete_run(moves.info.run_id),
            lambda: client.set_experiment_tag(claims[0].experiment_id, "mlops.ledger", "elsewhere elsewhere"),
            lambda: client.delete_experiment(moves.info.experiment_id),
            lambda: client.delete_registered_model("parted"),
        ]
        for attempt in refused:
            with pytest.raises(MlflowException, match="Permission denied"):
                attempt()
        mine = client.get_run(before.registrations.run_id).info.experiment_id  # where trainers may write
        for _ in range(3):
            run_id = client.create_run(mine, start_time=2**41).info.run_id
            for key, text in moves.data.params.items():
                client.log_param(run_id, key, text.replace("pia", "tom"))
        client.set_registered_model_alias("parted", "prod", "1")
        assert open_ledger(project)[1].entries == before.entries
        assert registry.current(project, "prod") is None
    with people.acting_as("pia") as project:
        (row,) = [row for row in registry.check_store(project).failures if row.name == "alias prod"]
        assert row.reason == "the ledger has no version there"
    with people.acting_as("admin") as project:
        store.connect(project.tracking_uri).delete_registered_model_alias("parted", "prod")


@pytest.mark.filterwarnings(IGNORED)
def test_a_verdict_that_a_trainer_edited_carries_no_promotion(people: People) -> None:
    """The server lets trainers write verdicts; the promoter's own check says what they are worth."""
    high = (Threshold("roc_auc", 0.99),)
    with people.acting_as("tom") as trainers:
        project = replace(trainers, gates=high)
        made = register_model(project, C=0.5)
        release = registry.load_model(project, made.version)
        verdict = gates.check_gates(project, release, None, "p2")
        assert not verdict.passed
        edited = replace(verdict, rows=tuple(replace(row, status="passed") for row in verdict.rows))
        with tracking.start_run(project):
            registry.log_verdict(project, made.version, edited)
    with people.acting_as("pia") as promoters, pytest.raises(RefusedError, match="the check was done again, and"):
        gates.promote(replace(promoters, gates=high), made.version, "staging")


def test_secrets_are_for_one_user_and_survive_a_restart(team: Team) -> None:
    files = [team.state / name for name in ("admin-password", "secret-key", "basic_auth.ini")]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    assert len(team.password) >= 12
    assert team.password not in (team.state / "log").read_text(encoding="utf-8")


def test_it_says_what_to_set(team: Team) -> None:
    said = (team.state / "log").read_text(encoding="utf-8")
    assert f"export MLFLOW_TRACKING_URI={team.address}\n" in said
    assert "export MLFLOW_TRACKING_USERNAME=admin\n" in said
    assert f'export MLFLOW_TRACKING_PASSWORD="$(cat {team.state}/admin-password)"' in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["postgresql://db/x", "--state", "s", "--host", "0.0.0.0", "--no-auth"],
            "--no-auth is for loopback addresses",
        ),
        (["postgresql://db/x", "--state", "s", "--host", "192.0.2.7", "--no-auth"], "anybody could replace a model's"),
        (["postgresql://db/x", "--state", "s", "--host", "0.0.0.0"], "--name says which host names clients use"),
        (["postgresql://db/x", "--state", "s", "--name", "*.example.org"], "not '*.example.org'"),
        (["postgresql://db/x", "--state", "s", "--name", "a.example.org,*"], "not 'a.example.org,*'"),
        (["sqlite:////tmp/mlflow.db", "--state", "s"], "a team's store is in PostgreSQL, not in 'sqlite'"),
        (["--state", "s"], "name the database, as an argument or in MLFLOW_BACKEND_STORE_URI"),
        (["postgresql://db/x"], "required: --state"),
    ],
)
def test_a_wrong_use_is_told_and_starts_nothing(tmp_path: Path, options: list[str], said: str) -> None:
    done = subprocess.run([str(SERVER), *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_database_that_is_down_is_told(tmp_path: Path) -> None:
    uri = f"postgresql+psycopg://mlops:s3cret@127.0.0.1:{servers.free_port()}/mlflow"
    command = [str(SERVER), uri, "--state", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Cannot reach the MLflow store at 'postgresql+psycopg://mlops:***@" in done.stderr
    assert "s3cret" not in done.stderr


def test_help_gives_an_example() -> None:
    done = subprocess.run([str(SERVER), "--help"], capture_output=True, text=True, check=True)
    assert "ci/server postgresql+psycopg://" in done.stdout
