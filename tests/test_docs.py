"""What docs/ shows runs as it stands there."""

from __future__ import annotations

import configparser
import os
import re
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mlops_lib.project import Policy, Project

TEXT = (Path(__file__).parents[1] / "docs/project.md").read_text(encoding="utf-8")
FILLED_IN = {"file", "tracking_uri", "actor", "signing_key", "run_id", "notebook", "outputs", "state", "environ", "now"}


def test_the_examples_of_the_project_file_run_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    customers = pd.DataFrame(
        {
            "customer_id": range(400),
            "plan": rng.choice(["basic", "plus"], 400),
            "spent": rng.normal(50, 9, 400),
            "joined": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, 400), unit="D"),
            "churned": rng.choice(["yes", "no"], 400),
        }
    )
    customers.to_csv(tmp_path / "customers.csv", index=False)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("documented_project")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look their names up
    known: dict[str, Any] = vars(module)
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        file = tmp_path / f"block_{number}.py"  # functions are found by their source
        file.write_text(block, encoding="utf-8")
        exec(compile(block, str(file), "exec"), known)
    assert len(blocks) == 9
    assert known["task"].threshold == pytest.approx(0.65)
    assert {path.stem for path in (tmp_path / "data").glob("*.parquet")} == {"train", "validation", "test"}
    assert known["project"].chain


def test_every_field_of_a_project_has_an_example() -> None:
    code = "".join(re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
    names = [each.name for each in fields(Project) if each.name not in FILLED_IN]
    assert [name for name in names if f"`{name}`" not in TEXT and f"{name}=" not in code] == []


OPERATE = (Path(__file__).parents[1] / "docs/operate.md").read_text(encoding="utf-8")


def test_the_policy_of_the_docs_is_one_and_names_every_field() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", OPERATE, re.MULTILINE | re.DOTALL)
    known: dict[str, Any] = {}
    exec(compile(block, "operate.md", "exec"), known)
    assert known["policy"].fault == ""
    assert [each.name for each in fields(Policy) if f"{each.name}=" not in OPERATE] == ["validate", "status"]


def test_every_schedule_of_the_docs_calls_the_one_line_and_can_be_read() -> None:
    (cron,) = re.findall(r"^```cron\n(.*?)^```", OPERATE, re.MULTILINE | re.DOTALL)
    assert re.fullmatch(r"(\S+ ){5}cd /\S+ && \S+=\S+ ci/operate\n", cron)
    (workflow,) = re.findall(r"^```yaml\n(.*?)^```", OPERATE, re.MULTILINE | re.DOTALL)
    steps = yaml.safe_load(workflow)["jobs"]["operate"]["steps"]
    assert steps[-1]["run"].endswith("ci/operate")
    timer, service = (configparser.ConfigParser() for _ in range(2))
    for parser, text in zip((timer, service), re.findall(r"^```ini\n(.*?)^```", OPERATE, re.M | re.S), strict=True):
        parser.read_string(text)
    assert timer["Timer"]["OnCalendar"] == "hourly"
    assert service["Service"]["ExecStart"].endswith("/ci/operate")
    script = Path(__file__).parents[1] / "ci/operate"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().endswith('mlops operate "$@"')
