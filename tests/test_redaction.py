"""What counts as a secret, and stars in its place."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse
from pathlib import Path

import pytest

from mlops_lib.redaction import find_passwords, find_secrets, is_secret_name, redact


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("GITHUB_TOKEN", True),
        ("db_password", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("api_key", True),
        ("GITHUB_PAT", True),
        ("MYSQL_PWD", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("PGPASS", False),
        ("PATH", False),
        ("PWD_LIMIT", True),
        ("key", False),
        ("n_passes", False),
        ("SORT_KEY", False),
        ("author", False),
        ("HOME", False),
    ],
)
def test_a_name_tells_whether_it_holds_a_secret(name: str, is_secret: bool) -> None:
    assert is_secret_name(name) is is_secret


def test_a_password_is_found_as_it_is_written_and_as_it_is_meant() -> None:
    assert find_passwords("postgresql://ada:s%3Acret@db/mlflow") == {"s%3Acret", "s:cret"}
    for nothing in ("postgresql://ada@db", "ada:s3cret@db", "http://[broken", ""):
        assert find_passwords(nothing) == set()


def test_the_stores_password_counts_whatever_its_length_and_others_from_six_characters() -> None:
    environ = {
        "API_TOKEN": "short",
        "OTHER_TOKEN": "longer-one",
        "DB": "postgresql://ada:hunter22@db",
        "HOME": "/home/ada",
    }
    found = find_secrets(environ, "http://ada:pg@server")
    assert {"longer-one", "hunter22", "pg"} <= set(found)
    assert not {"short", "/home/ada"} & set(found)
    assert list(found) == sorted(found, key=len, reverse=True)


RANDOM = "q8Zr2LxV0pTnYw7KdB4h"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("STRIPE_KEY", "sk_live_" + "a1B2" * 6, "sk_live_" + "a1B2" * 6),
        ("MAPS_KEY", RANDOM[:12], RANDOM[:12]),
        ("ANYTHING", "ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
        ("ANYTHING", RANDOM, RANDOM),
        ("DB", "jdbc:postgresql://db/x?user=ada&password=hunter22", "hunter22"),
        ("AZURE", "DefaultEndpointsProtocol=https;AccountKey=abc123/+=;EndpointSuffix=x", "abc123/+="),
        ("ODBC", "Driver={SQL};Server=db;Uid=ada;Pwd={hunter22};", "hunter22"),
        (
            "PEM",
            "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----",
            "kqhkiG9w0BAQEF",
        ),
    ],
)
def test_a_secret_is_known_by_its_form_too(name: str, value: str, secret: str) -> None:
    text = redact(f"before {secret} after", find_secrets({name: value}, ""))
    assert text == "before *** after"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOME", "/home/ada/Projects/Flights2013"),
        ("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef"),
        ("VERSION", "3.11.7+build2026.11.26"),
        ("SORT_KEY", "departure_time"),
        ("HOST", "ip-10-0-0-12.eu-central-1.compute.internal"),
        ("LANG", "en_US.UTF-8"),
        ("NAME", "a-very-long-name-of-a-container-x7"),
        ("SSH_KEY", "~/.ssh/id_ed25519"),
        ("N_KEY", "12"),
        ("URL", "https://example.org/Some/Path2026?page=3"),
    ],
)
def test_paths_words_ids_and_versions_are_no_secrets(name: str, value: str) -> None:
    assert find_secrets({name: value}, "") == ()


@pytest.mark.parametrize("secret", ['it\'s "quoted" & more', "tab\tand\nline", "plus+slash/é", "back\\slash"])
def test_a_secret_is_starred_however_it_is_written(secret: str) -> None:
    secrets = find_secrets({"MY_TOKEN": secret}, "")
    for write in (
        str,
        repr,
        json.dumps,
        html.escape,
        urllib.parse.quote_plus,
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: f"{{'token': {text!r}}}",
    ):
        written = write(secret)
        assert "***" in redact(written, secrets), written
        assert not any(form in redact(written, secrets) for form in secrets)


def test_secrets_are_starred_in_texts_lists_and_dicts_and_other_values_stay() -> None:
    outputs = [{"text": ["a hunter22 b", "c"], "n": 7}, "hunter22hunter22"]
    assert redact(outputs, ("hunter22",)) == [{"text": ["a *** b", "c"], "n": 7}, "******"]
    assert redact("hunter22", ()) == "hunter22"


def test_a_place_on_this_machine_is_no_secret_whatever_its_variable_is_called(tmp_path: Path) -> None:
    """A shell's PWD would have starred the folder in every output; a password that begins like a path counts."""
    named = {"PWD": str(tmp_path), "SSH_AUTH_SOCK": str(tmp_path), "MLOPS_SIGNING_KEY": str(tmp_path / "key.pem")}
    (tmp_path / "key.pem").touch()
    assert find_secrets(named, "") == ()
    assert "/hunter2/x" in find_secrets({"DB_PWD": "/hunter2/x"}, "")
