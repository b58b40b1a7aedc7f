"""A project of one's own from a table: written whole or not at all, and everything in it runs as it was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from conftest import ROOT
from refusals import raises
from sklearn import datasets

from mlops_lib import data
from mlops_lib.cli.commands import main
from mlops_lib.errors import ProjectError, SurveyError
from mlops_lib.programs import release
from mlops_lib.programs.notebooks.check import check_notebooks, update_notebooks
from mlops_lib.programs.release import new
from mlops_lib.project import load_project

TEMPLATES = sorted((new.TEMPLATES / "notebooks").glob("*.txt"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library's wheel, built once."""
    return new.wheels.write_wheel(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(autouse=True)
def _built_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_wheel(folder: Path) -> Path:
        folder.mkdir()
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return folder / wheel.name

    monkeypatch.setattr(new.wheels, "write_wheel", write_wheel)


def messy() -> pd.DataFrame:
    """Return scikit-learn's breast cancer table with gaps, dates, texts, a constant, an id and truth values."""
    table = datasets.load_breast_cancer(as_frame=True).frame.iloc[:, [0, 1, 6, 20, 21, -1]]
    n = range(len(table))
    table["target"] = table["target"].map({0: "malignant", 1: "benign"})
    table["taken"] = [f"{1 + k % 12:02d}/{13 + k % 15}/{2019 + k % 3}" for k in n]
    table["clinic"] = [f"clinic {k * k % 71}" for k in n]
    table["smokes"] = [[True, False, None][k % 3] for k in n]
    table["unit"] = "mm"
    table["patient_id"] = [1000 + k for k in n]
    return table.assign(mean_texture_class=[None if k % 9 == 0 else k % 4 for k in n])


TABLES = {
    "binary": (messy, "target", ()),
    "multiclass": (
        lambda: datasets.load_wine(as_frame=True).frame.replace({"target": {0: "a", 1: "b", 2: "c"}}),
        "target",
        (),
    ),
    "regression": (lambda: datasets.load_diabetes(as_frame=True).frame, "target", ()),
}


def make_project(folder: Path, table: pd.DataFrame, target: str, **options: Any) -> Path:
    """Write a table as a CSV file and make a project of it."""
    source = folder / "source.csv"
    table.to_csv(source, index=False)
    read = release.read_source(source)
    return release.create_project(folder / "mine", read, release.survey_table(read.frame, target, **options))


@pytest.mark.parametrize("kind", TABLES)
def test_every_notebook_of_a_new_project_runs_and_says_the_same_again(kind: str, tmp_path: Path) -> None:
    build, target, _ = TABLES[kind]
    file = make_project(tmp_path, build(), target)
    report = update_notebooks(file)
    assert not report.failures, str(report)
    if kind == "binary":  # the one with everything in it
        report = check_notebooks(file, force=True)
        assert not report.failures, str(report)


def test_a_table_with_time_is_cut_into_periods_and_its_notebooks_run(tmp_path: Path) -> None:
    table = pd.concat([messy()] * 4, ignore_index=True).assign(
        taken=pd.date_range("2021-01-01", periods=4 * 569, freq="4h").strftime("%Y-%m-%d %H:%M"),
        patient_id=range(4 * 569),
    )
    table["mean radius"] += pd.Series(range(len(table))) / 1e6  # no row twice
    file = make_project(tmp_path, table, "target", time="taken")
    project = load_project(file)
    assert project.time == "taken"
    report = update_notebooks(file)
    assert not report.failures, str(report)


def test_the_demo_of_a_new_project_reaches_production_and_its_tests_pass(tmp_path: Path) -> None:
    make_project(tmp_path, messy(), "target")
    folder = tmp_path / "mine"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "MLOPS"))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        options: dict[str, Any] = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.run(command, capture_output=True, check=False, **options)

    done = run("ci/demo.py")
    assert done.returncode == 0, done.stderr
    assert "In prod: version" in done.stdout
    tests = run("-m", "pytest", "-p", "no:cacheprovider")
    assert tests.returncode == 0, tests.stdout
    run("-m", "mlops_lib.cli", "kernels", "stop")


def test_a_folder_that_holds_anything_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with raises(SurveyError, "folder"):
        make_project(tmp_path, messy(), "target")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    for name in ("a/b:c", "thesis.tex"):
        with raises(SurveyError, "folder"):
            new.raise_for_folder(tmp_path / "mine" / name)


def test_what_the_project_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    table = messy().rename(columns={"mean radius": "prediction"})  # a column that predictions have
    with raises(ProjectError, "field"):
        make_project(tmp_path, table, "prediction", kind="regression")
    assert [path.name for path in tmp_path.iterdir()] == ["source.csv"]


def test_columns_that_a_table_has_already_are_not_written_over(tmp_path: Path) -> None:
    table = messy().drop(columns="patient_id").rename(columns={"clinic": "period", "mean radius": "row_id"})
    project = load_project(make_project(tmp_path, table, "target"))
    assert project.ingest is not None
    project.ingest()
    rows = data.read_table(project.paths("arrivals", "train", "test"))
    assert {*rows["period"]} == {*table["period"]}
    assert project.keys == ("mlops_row_id",)


def test_a_table_of_a_database_is_kept_as_a_snapshot(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    messy().to_sql("patients", sa.create_engine(url), index=False)
    read = release.read_source(f"{url}::patients")
    assert (len(read.frame), read.file) == (569, "source.parquet")
    file = release.create_project(tmp_path / "mine", read, release.survey_table(read.frame, "target"))
    project = load_project(file)
    assert project.ingest is not None
    assert {*project.ingest()} == {"train", "validation", "test"}
    assert len(data.read_labelled(project, project.periods())) == 569


def test_the_command_reports_first_and_writes_nothing_on_a_dry_run(tmp_path: Path) -> None:
    messy().to_csv(tmp_path / "source.csv", index=False)
    arguments = ["new", str(tmp_path / "mine"), "--data", str(tmp_path / "source.csv"), "--target", "target"]
    shown = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert shown.exit_code == 0
    assert "569 rows, 12 columns" in shown.output
    machine = CliRunner().invoke(main, [*arguments, "--dry-run", "--json"])
    assert json.loads(machine.stdout)["task"] == "binary"
    assert not (tmp_path / "mine").exists()
    wrong = CliRunner().invoke(main, [*arguments[:-1], "tarqet", "--dry-run"])
    assert wrong.exit_code == 1
    assert "Did you mean 'target'?" in wrong.output


def test_the_lock_holds_the_wheel_by_its_hash(wheel: Path) -> None:
    lock = new.wheels.lock_with(wheel)
    assert lock.startswith((ROOT / "requirements.lock").read_text(encoding="utf-8").rstrip())
    assert f"mlops-lib=={new.__version__} \\\n    --hash=sha256:" in lock


def _calls(cells: list[str]) -> set[str]:
    """Return the functions of this library that cells call."""
    import re

    wings = "batch|contracts|data|gates|operate|quality|registry|tracking"
    return {match[0] for text in cells for match in re.finditer(rf"\b(?:{wings})\.\w+(?=\()", text)}


@pytest.mark.parametrize("template", TEMPLATES[1:], ids=lambda path: path.stem)
def test_templates_and_the_hand_written_notebooks_have_one_skeleton(template: Path) -> None:
    """Their sections are the same ones, and they call the same functions; only what is about flights is more."""
    values = dict.fromkeys(("time", "binary", "slices"), "x")
    cells = list(new.read_cells(template.read_text(encoding="utf-8"), _Filled(values)))
    ours = json.loads((ROOT / f"notebooks/{template.stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in ours]
    of_costs = {"quality.choose_threshold"}  # which flights state none of
    assert _calls([text for kind, text in cells if kind != "md"]) <= _calls(texts) | of_costs
    titles = [text.splitlines()[0] for kind, text in cells if kind == "md" and text.startswith("#")]
    known = {line for text in texts for line in text.splitlines() if line.startswith("#")}
    more = {"## Is it worth more than the baseline?", "# Score a period"}
    assert [title for title in titles if title not in known | more] == []


class _Filled(dict[str, Any]):
    """Values of a template, each name that is not there being its own."""

    def __missing__(self, name: str) -> str:
        return name
