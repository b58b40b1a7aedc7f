"""Signatures: made with a key of the environment, asked for with keys of the project, never with the store's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from conftest import make_model, register_model
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from refusals import raises

from mlops_lib import cli, data, registry, tracking
from mlops_lib.errors import SignatureError
from mlops_lib.models import signing
from mlops_lib.project import Project, load_project

Pair = tuple[Callable[[str], str], str]


def make_pair(folder: Path) -> Pair:
    """Return what signs, and the public key."""
    sign = signing.read_signer(signing.create_keys(folder))
    assert sign is not None
    return sign, (folder / signing.PUBLIC_FILE).read_text().strip()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "ada")


def test_what_a_trusted_key_has_signed_is_accepted(pair: Pair) -> None:
    sign, public = pair
    signing.raise_for_signature("text", sign("text"), [public], subject="The text")
    signing.raise_for_signature("text", sign("text"), ["ed25519:other bob", f"{public} ada@laptop"], subject="The text")


def test_without_trusted_keys_nothing_is_asked() -> None:
    signing.raise_for_signature("text", None, (), subject="The text")


def test_another_text_a_foreign_key_and_no_signature_are_told_apart(pair: Pair, tmp_path: Path) -> None:
    sign, public = pair
    foreign, _ = make_pair(tmp_path / "eve")
    forged = f"{public}:{foreign('text').rpartition(':')[2]}"
    for signature, text, reason in (
        (None, "text", "has no signature"),
        ("", "text", "has no signature"),
        (foreign("text"), "text", "which is no trusted key"),
        ("nonsense", "text", "which is no trusted key"),
        (sign("text"), "texts", "a signature that belongs to something else"),
        (forged, "text", "a signature that belongs to something else"),
        (f"{public}:%", "text", "a signature that belongs to something else"),
        (f"{public}:", "text", "a signature that belongs to something else"),
        (sign("text")[:-8], "text", "a signature that belongs to something else"),
    ):
        with pytest.raises(SignatureError, match=f"^The text .*{reason}"):
            signing.raise_for_signature(text, signature, [public], subject="The text")


def test_a_trusted_key_that_is_none_trusts_nothing(pair: Pair) -> None:
    sign, _ = pair
    proof = sign("text").rpartition(":")[2]
    for broken in ("ed25519:", "ed25519:AAAA", "ed25519:%%"):
        with raises(SignatureError, "untrusted"):
            signing.raise_for_signature("text", f"{broken}:{proof}", [broken], subject="The text")


def test_a_signature_holds_for_one_kind_and_one_name() -> None:
    texts = {signing.manifest_text("a", "b"), signing.manifest_text("b", "a"), "a\nb"}
    assert len(texts) == 3


def test_a_private_key_is_its_owners_alone_and_not_written_over(tmp_path: Path) -> None:
    path = signing.create_keys(tmp_path / "keys")
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(SignatureError, match="exists already"):
        signing.create_keys(tmp_path / "keys")
    assert path.read_bytes() == before
    path.chmod(0o640)
    with pytest.raises(SignatureError, match=r"may be read by others \(mode 640"):
        signing.read_signer(path)


def test_a_file_that_is_no_private_key_of_the_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(SignatureError, match=r"cannot be read \(FileNotFoundError\)"):
        signing.read_signer(path)
    path.touch(mode=0o600)
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    locked = Ed25519PrivateKey.generate()
    for content, reason in (
        (b"", "is no private key in PEM"),
        (foreign.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "is no Ed25519 key"),
        (
            locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
            "without a password",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(SignatureError, match=reason):
            signing.read_signer(path)
    assert signing.read_signer(None) is None


def test_the_command_makes_a_pair_and_says_the_public_key(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["keys", str(tmp_path / "keys")])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == (tmp_path / "keys/signing.pub").read_text().strip()
    assert "MLOPS_SIGNING_KEY=" in done.stderr


def write_project(folder: Path, *, keys: str = "()") -> Path:
    file = folder / "project.py"
    file.write_text(
        "from pathlib import Path\nfrom mlops_lib.project import Project\n"
        "project = Project(name='toy', root=Path(__file__).parent, target='y', keys=('id',), features=('x',), "
        f"arrivals='a/{{period}}', labels='l/{{period}}', trusted_keys={keys})\n"
    )
    return file


def test_keys_come_from_the_project_file_and_the_environment(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_project(tmp_path, keys="('ed25519:mine',)")
    monkeypatch.delenv("MLOPS_SIGNING_KEY", raising=False)
    monkeypatch.delenv("MLOPS_TRUSTED_KEYS", raising=False)
    plain = load_project(file)
    assert (plain.trusted_keys, plain.signing_key) == (("ed25519:mine",), None)
    monkeypatch.setenv("MLOPS_SIGNING_KEY", str(tmp_path / "ada/signing.key"))
    monkeypatch.setenv("MLOPS_TRUSTED_KEYS", str(tmp_path / "ada"))
    named = load_project(file)
    assert named.trusted_keys == ("ed25519:mine", pair[1])
    assert named.signing_key == tmp_path / "ada/signing.key"


@pytest.mark.parametrize("content", [None, ""])
def test_a_folder_of_trusted_keys_without_any_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """Otherwise a folder that was not mounted would switch the question off."""
    if content is not None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys/a.pub").write_text(content)
    monkeypatch.setenv("MLOPS_TRUSTED_KEYS", str(tmp_path / "keys"))
    with pytest.raises(SignatureError, match="holds no public key"):
        load_project(write_project(tmp_path))


def test_a_logged_model_carries_the_signature_of_its_manifest(project: Project, pair: Pair, tmp_path: Path) -> None:
    rows = data.read_labelled(project, "p1")
    X = rows[list(project.features)]
    model = make_model().fit(X, rows[project.target])
    keyed = replace(project, signing_key=tmp_path / "ada/signing.key")
    with tracking.start_run(keyed):
        logged = tracking.log_model(keyed, model, X)
    signature = mlflow.MlflowClient().get_logged_model(logged.model_id).tags[signing.MANIFEST_SIGNATURE_TAG]
    text = signing.manifest_text("toy", logged.digest)
    signing.raise_for_signature(text, signature, [pair[1]], subject="The model")
    with raises(SignatureError, "untrusted"):
        signing.raise_for_signature(signing.manifest_text("toy2", logged.digest), signature, [pair[1]], subject="It")


def test_a_key_that_cannot_be_used_stops_before_anything_is_logged(project: Project, tmp_path: Path) -> None:
    rows = data.read_labelled(project, "p1")
    X = rows[list(project.features)]
    model = make_model().fit(X, rows[project.target])
    keyed = replace(project, signing_key=tmp_path / "nowhere")
    with tracking.start_run(keyed) as run, pytest.raises(SignatureError, match="Nothing was signed"):
        tracking.log_model(keyed, model, X)
    assert not mlflow.MlflowClient().search_logged_models([run.info.experiment_id])


def test_with_trusted_keys_only_signed_models_are_registered_and_loaded(
    project: Project, pair: Pair, tmp_path: Path
) -> None:
    keyed = replace(project, signing_key=tmp_path / "ada/signing.key", trusted_keys=(pair[1],))
    assert register_model(project).version == 1
    with pytest.raises(SignatureError, match=r"Model 'm-.*' has no signature"):
        register_model(replace(keyed, signing_key=None))
    assert register_model(keyed).version == 2
    assert registry.load_model(keyed, 2).digest
    with pytest.raises(SignatureError, match=r"Version 1 of 'toy' has no signature"):
        registry.load_model(keyed, 1)
    client = mlflow.MlflowClient()
    client.set_model_version_tag("toy", "2", signing.MANIFEST_SIGNATURE_TAG, make_pair(tmp_path / "eve")[0]("text"))
    with pytest.raises(SignatureError, match=r"Version 2 of 'toy' was signed with .* no trusted key"):
        registry.load_model(keyed, 2)
