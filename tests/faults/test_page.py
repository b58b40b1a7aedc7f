"""docs/reliability.md says what the tests saw, or CI stops."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def reliability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "ci" / "reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "docs" / "reliability.md")
    return module


def write_observations(file: Path, *observations: dict[str, object]) -> str:
    file.write_text("".join(json.dumps(o) + "\n" for o in observations), encoding="utf-8")
    return str(file)


def test_the_page_is_written_from_what_was_seen_and_then_agrees(reliability: Any, tmp_path: Path) -> None:
    seen = write_observations(
        tmp_path / "seen",
        {"case": 4, "plain": "both win", "ours": None},
        {"case": 4, "plain": None, "ours": "one wins"},
        {"case": 4, "plain": None, "ours": "one wins"},
        {"case": 1, "plain": None, "ours": "all succeed"},
    )
    assert reliability.main(seen, "--update") == 0
    assert reliability.main(seen) == 0
    rows = reliability.PAGE.read_text(encoding="utf-8").splitlines()[-2:]
    assert rows[0].endswith("| — | all succeed |")
    assert rows[1].endswith("| both win | one wins |")


def test_a_case_that_was_not_seen_or_seen_otherwise_is_named(
    reliability: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reliability.main(write_observations(tmp_path / "seen", {"case": 4, "plain": "both win", "ours": "one"}), "--update")
    assert reliability.main(write_observations(tmp_path / "other", {"case": 4, "plain": None, "ours": "none"})) == 1
    said = capsys.readouterr().err
    assert "only the page says: | 4 | Two people promote from the same champion | both win | one |" in said
    assert "only the tests saw: | 4 | Two people promote from the same champion | — | none |" in said
    assert reliability.main(str(tmp_path / "nothing")) == 1


def test_a_fault_of_the_tools_that_needs_luck_is_told_when_it_is_not_seen_and_fails_nothing(
    reliability: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reliability.main(write_observations(tmp_path / "seen", {"case": 4, "plain": "both win", "ours": "one"}), "--update")
    assert reliability.main(write_observations(tmp_path / "now", {"case": 4, "plain": None, "ours": "one"})) == 0
    assert "not seen of the tools alone this time: | 4 |" in capsys.readouterr().err
    assert reliability.main(write_observations(tmp_path / "now", {"case": 4, "plain": "one wins", "ours": "one"})) == 1
