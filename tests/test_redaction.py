"""What counts as a secret, and stars in its place."""

from __future__ import annotations

import pytest

from mlops_lib.redaction import find_passwords, find_secrets, is_secret_name, redact


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("GITHUB_TOKEN", True),
        ("db_password", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("api_key", True),
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
    assert find_secrets(environ, "http://ada:pg@server") == ("longer-one", "hunter22", "pg")


def test_secrets_are_starred_in_texts_lists_and_dicts_and_other_values_stay() -> None:
    outputs = [{"text": ["a hunter22 b", "c"], "n": 7}, "hunter22hunter22"]
    assert redact(outputs, ("hunter22",)) == [{"text": ["a *** b", "c"], "n": 7}, "******"]
    assert redact("hunter22", ()) == "hunter22"
