"""A project of one's own, written from a table: project file, notebooks, tests, scripts, lock, and this library.

Everything is written beside the place first, loaded once, and moved there whole; a folder that holds anything is
refused.

>>> table = release.read_source("churn.csv")  # doctest: +SKIP
>>> release.create_project(Path("churn"), table, release.survey_table(table.frame, "churned"))  # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_lib import __version__, data, quality
from mlops_lib.errors import SurveyError
from mlops_lib.programs.batch import sources, sql
from mlops_lib.programs.release import wheels
from mlops_lib.programs.release.survey import ColumnSeen, Survey
from mlops_lib.project import load_project
from mlops_lib.project_fields import NAME

TEMPLATES = Path(__file__).with_name("templates")
FILES = {
    "README.md.txt": "README.md",
    "ci.yml.txt": ".github/workflows/ci.yml",
    "demo.py.txt": "ci/demo.py",
    "demo.txt": "ci/demo",
    "environment.yml.txt": "environment.yml",
    "gitignore.txt": ".gitignore",
    "lock.txt": "ci/lock",
    "project.py.txt": "notebooks/project.py",
    "pyproject.toml.txt": "pyproject.toml",
    "sanitize.cfg.txt": "notebooks/sanitize.cfg",
    "setup.txt": "ci/setup",
    "test.txt": "ci/test",
    "test_project.py.txt": "tests/test_project.py",
}
SMALL_BYTES = 2**24  # a table that a git repository can hold
SCORINGS = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "neg_mean_absolute_error"}


@dataclass(frozen=True)
class Table:
    """Where rows come from: the rows, the name that its file gets, and how that file is written into a folder."""

    frame: pd.DataFrame
    file: str
    path: Path | None  # None for a table of a database, of which a snapshot is taken

    def write(self, folder: Path) -> None:
        """Put the file, or folder of files, into a folder."""
        folder.mkdir(parents=True)
        if self.path is None:
            data.write_table(self.frame, folder / self.file)
        elif self.path.is_dir():
            shutil.copytree(self.path, folder / self.file)
        else:
            shutil.copyfile(self.path, folder / self.file)


def read_source(address: Path | str) -> Table:
    """Read a Parquet or CSV file, a folder of Parquet files, or ``URL::TABLE`` of a database, whole.

    Raises
    ------
    NotFoundError, TableError, QualityError
        Nothing was written.
    """
    parts = sources.split_address(address)
    if parts is None:
        path = Path(address)
        return Table(data.read_table(path), path.resolve().name, path)
    url, name = parts
    with sql.connected(url, sql.name_table(url, name), must_exist=True) as connection:
        query = sql.quote(connection, name)
        frame = pd.read_sql(f"SELECT * FROM {query}" if not query.startswith("(") else name, connection)
    return Table(frame.convert_dtypes(dtype_backend="numpy_nullable"), "source.parquet", None)


def create_project(folder: Path, table: Table, survey: Survey) -> Path:
    """Write a complete project for a table into a folder; return the path of its project file.

    Parameters
    ----------
    folder : path
        Not there yet, or empty. Its name becomes that of the project.
    table : Table
    survey : Survey
        Of that table.

    Raises
    ------
    SurveyError, ProjectError, WriteError
        Nothing was written.
    """
    folder = folder.resolve()
    raise_for_folder(folder)
    with data.translate_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            draft = Path(place).resolve()
            _write_project(draft, folder.name, table, survey)
            load_project(draft / "notebooks/project.py")
            shutil.rmtree(draft / "notebooks/__pycache__", ignore_errors=True)
            folder.mkdir(exist_ok=True)
            for child in sorted(draft.iterdir()):
                child.rename(folder / child.name)
    return folder / "notebooks/project.py"


def raise_for_folder(folder: Path) -> None:
    """Raise ``SurveyError`` unless a project can be written into a folder: its name will do and it is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        reason = "is not empty" if folder.is_dir() else "is a file"
        raise SurveyError("folder", folder=folder, reason=reason)
    if not NAME.fullmatch(folder.resolve().name):
        raise SurveyError("folder", folder=folder, reason="has a name that MLflow does not take for a model")


def _write_project(draft: Path, name: str, table: Table, survey: Survey) -> None:
    wheel = wheels.write_wheel(draft / "wheels")
    values = _describe(name, table, survey)
    values |= {"wheel": wheel.name, "version": __version__}
    table.write(draft / "data")
    size = sum(file.stat().st_size for file in (draft / "data").rglob("*") if file.is_file())
    values["small"] = size <= SMALL_BYTES
    for template, file in FILES.items():
        path = draft / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            render((TEMPLATES / "project" / template).read_text(encoding="utf-8"), values), encoding="utf-8"
        )
        if path.parent.name == "ci" and not path.suffix:
            path.chmod(0o755)
    for cells in sorted((TEMPLATES / "notebooks").glob("*.txt")):
        notebook = build_notebook(cells.read_text(encoding="utf-8"), values)
        path = draft / "notebooks" / f"{cells.stem}.ipynb"
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (draft / "requirements.lock").write_text(wheels.lock_with(wheel), encoding="utf-8")
    _format(draft)


def _format(folder: Path) -> None:
    """Let ruff write the Python as `mlops check` wants it, where it is installed."""
    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    if ruff:
        for call in (["check", "--fix-only", "--select", "I"], ["format"]):
            subprocess.run(
                [ruff, *call, "--quiet", "--no-cache", "."], cwd=folder, check=False, stdin=subprocess.DEVNULL
            )


# --- templates ---------------------------------------------------------------------------------------------------


def render(text: str, values: Mapping[str, Any]) -> str:
    """Fill a template: ``{{name}}``, and ``{{if name}}…{{else}}…{{end}}`` or ``{{if !name}}…{{end}}``, not nested.

    >>> render("{{if time}}by {{time}}{{else}}dealt{{end}}", {"time": "day"})
    'by day'
    """

    def choose(match: re.Match[str]) -> str:
        return match["then"] if _holds(match["name"], values) else match["otherwise"] or ""

    conditions = r"\{\{if (?P<name>!?\w+)\}\}(?P<then>.*?)(?:\{\{else\}\}(?P<otherwise>.*?))?\{\{end\}\}"
    chosen = re.sub(conditions, choose, text, flags=re.DOTALL)
    return re.sub(r"\{\{(\w+)\}\}", lambda match: str(values[match[1]]), chosen)


def _holds(condition: str, values: Mapping[str, Any]) -> bool:
    return bool(values.get(condition.removeprefix("!"))) != condition.startswith("!")


def read_cells(template: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield kind (``md``, ``code`` or ``parameters``) and text of the cells whose conditions hold.

    A cell begins with ``%% kind condition…``, all of which have to hold.
    """
    for part in re.split(r"^%% ", template, flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        kind, *conditions = head.split()
        if all(_holds(condition, values) for condition in conditions):
            yield kind, render(text.strip("\n"), values)


def build_notebook(template: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the notebook, without outputs, that a template gives."""
    cells: list[dict[str, Any]] = []
    for kind, text in read_cells(template, values):
        lines = text.splitlines(keepends=True)
        cell: dict[str, Any] = {"id": f"cell-{len(cells) + 1:02d}", "metadata": {}, "source": lines}
        if kind == "md":
            cells.append({"cell_type": "markdown", **cell})
        else:
            cell["metadata"] = {"tags": ["parameters"]} if kind == "parameters" else {}
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


# --- what templates are filled with ------------------------------------------------------------------------------


def quoted(value: Any) -> str:
    """Return a value as Python source, texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(quoted, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quoted(name)}: {quoted(item)}' for name, item in value.items())}}}"
    return repr(value)


def _describe(name: str, table: Table, survey: Survey) -> dict[str, Any]:
    """Return what the templates name."""
    kind, task = survey.task.kind, survey.task
    periods, is_timed = survey.periods, bool(survey.time)
    last = min(max(round(len(periods) * 0.6), 2), len(periods) - 2) - 1 if is_timed else 0
    keys = survey.keys or (_new_name("row_id", survey),)
    by = _new_name("period", survey)
    slices = _choose_slices(survey, table)
    features = list(_name_features(survey))
    metric, *_ = task.metrics
    is_better = ">" if quality.find_metric(task).greater_is_better else "<"
    family = {"binary": "Classifier", "multiclass": "Classifier", "regression": "Regressor"}[kind]
    positive = quoted(task.positive)
    scored = periods[last + 2] if is_timed else "test"
    gates = list(_choose_gates(survey, table, slices))
    package = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "table"
    return {
        "name": name, "name_text": quoted(name), "package": package, "package_text": quoted(package),
        "description": quoted(f"Predicts {survey.target} from {table.file}."),
        "source": table.file, "source_path": quoted(f"data/{table.file}"),
        "target": survey.target, "target_text": quoted(survey.target), "keys": quoted(keys),
        "time": survey.time, "time_text": quoted(survey.time), "period_format": quoted(survey.period),
        "shares": quoted(dict(survey.shares)), "rare": survey.rare, "rare_values": quoted(survey.rare),
        "kind": kind, **{each: each == kind for each in SCORINGS},
        "task": {
            "binary": f"binary(positive={positive}, negative={quoted(task.negative)})",
            "multiclass": f"multiclass({quoted(task.classes)})", "regression": "regression()",
        }[kind],
        "positive": positive.replace('"', "`"), "why_task": survey.reasons["task"],
        "metric": metric, "metric_text": quoted(metric), "scoring": SCORINGS[kind],
        "greater_is_better": is_better == ">",
        "measure": "R²" if kind == "regression" else "ROC AUC", "nothing": "0" if kind == "regression" else "0.5",
        "baseline_says": "the mean" if kind == "regression" else "the share of each class",
        "compare_baseline": f'is_better = metrics["val_{metric}"] {is_better} baseline["{metric}"]',
        "Dummy": f"Dummy{family}", "Boosting": f"HistGradientBoosting{family}",
        "Linear": "Ridge" if kind == "regression" else "LogisticRegression",
        "linear": "Ridge(alpha=regularization)" if kind == "regression"
        else "LogisticRegression(C=1 / regularization, max_iter=1000)",
        "min_frequency": max(2, min(50, survey.n_labelled // 200)),
        "features": "\n".join(f"    {quoted(each)},{note and f'  # {note}'}" for each, note in features),
        "left_out": "\n".join(_name_left_out(survey)), "by": quoted(by),
        "steps": "\n".join(_list_steps(survey, keys, by)),
        "slices": slices, "slices_text": quoted(slices), "gates": "\n".join(f"        {gate}," for gate in gates),
        "gate_imports": "\n".join(f"    {each}," for each in sorted({gate.partition("(")[0] for gate in gates})),
        "min_rows": min(100, max(30, int(0.7 * _count_judged(survey)))),
        "first_period": periods[0], "train_period": periods[last],
        "validate_period": periods[last + 1] if is_timed else "test", "score_period": scored,
        "first_text": quoted(periods[0]), "last_text": quoted(periods[-1]),
        "validate_text": quoted(periods[last + 1] if is_timed else "test"), "score_text": quoted(scored),
        "score_path": f"data/periods/{scored}.parquet",
        "prediction_columns": {"binary": '"score", "prediction"', "multiclass": '"prediction", "score"'}.get(
            kind, '"prediction"'
        ),
    }  # fmt: skip


def _count_judged(survey: Survey) -> float:
    """Return about how many labelled rows a candidate is judged on."""
    return survey.n_labelled * survey.shares["test"] if survey.shares else survey.n_labelled / len(survey.periods)


def _name_features(survey: Survey) -> Iterator[tuple[str, str]]:
    """Yield each feature, and a note on it."""
    span = len(survey.periods)
    is_long = {"%Y": span > 2, "%Y-%m": span >= 20, "%G-W%V": span >= 88, "%Y-%m-%d": span >= 600}
    if survey.time and is_long[survey.period]:  # training sees a whole year
        yield f"{survey.time}_month", "when the row arrives"
    for column in survey.named("feature", "date"):
        if column.role == "date":
            since = f"{column.name}_days_before" if survey.time else f"{column.name}_year"
            yield from ((each, "") for each in (since, f"{column.name}_month", f"{column.name}_day_of_week"))
        else:
            yield column.name, _note(column)


def _note(column: ColumnSeen) -> str:
    missing = f", {column.missing_share:.1%} missing" if column.missing_share else ""
    return f"{f'{column.n_distinct} values' if column.kind == 'text' else column.kind}{missing}"


def _name_left_out(survey: Survey) -> Iterator[str]:
    for column in survey.named("left out"):
        yield f"#   {quoted(column.name)}: {column.reason}"
    if not survey.named("left out"):
        yield "#   nothing"


def _new_name(name: str, survey: Survey) -> str:
    """Return the name of a column that the table does not have."""
    return f"mlops_{name}" if any(column.name == name for column in survey.columns) else name


def _list_steps(survey: Survey, keys: Sequence[str], by: str) -> Iterator[str]:
    """Yield the lines that make of the source what the project reads."""
    dates = survey.named("date", "time")
    if survey.rare:
        yield "    table = table[~table[TARGET].isin(RARE)]"
    for column in dates:
        if column.date_format not in ("", "ISO"):
            call = f"pd.to_datetime(table[{quoted(column.name)}], format={quoted(column.date_format)}, utc=True)"
            yield f"    table[{quoted(column.name)}] = {call}"
    for kind, dtype in (("number", "float64"), ("boolean", "str")):  # as they are with gaps, and without
        if names := tuple(column.name for column in survey.named("feature") if column.kind == kind):
            yield f'    table = table.astype(dict.fromkeys({quoted(names)}, "{dtype}"))'
    if survey.keys == ():
        yield f"    table[{quoted(keys[0])}] = data.key_rows(table.drop(columns=TARGET))"
    if survey.time:
        yield "    table[TIME] = pd.to_datetime(table[TIME], utc=True)"
    expanded = tuple(column.name for column in dates if column.role == "date")
    if survey.time and any(name == f"{survey.time}_month" for name, _ in _name_features(survey)):
        yield "    table = data.expand_dates(table, (TIME,))"
    if expanded:
        yield f"    table = data.expand_dates(table, {quoted(expanded)}{', until=TIME' if survey.time else ''})"
    if survey.time:
        yield f"    table[{quoted(by)}] = table[TIME].dt.strftime(PERIOD)"
    else:
        alike = "" if survey.keys else f".assign({keys[0]}=table[{quoted(keys[0])}].str[:16])"  # together
        yield f"    table[{quoted(by)}] = data.deal_rows(table{alike}, KEYS, SHARES)"


def _choose_slices(survey: Survey, table: Table) -> tuple[str, ...]:
    """Return up to two columns of few texts, each with enough rows to be looked at one by one."""
    enough = 0.05 * len(table.frame)
    few = [
        column.name
        for column in survey.named("feature")
        if column.kind == "text"
        and 2 <= column.n_distinct <= 10
        and table.frame[column.name].value_counts().min() >= enough
    ]
    return tuple(few[:2]) if _count_judged(survey) >= 1000 else ()


def _choose_gates(survey: Survey, table: Table, slices: tuple[str, ...]) -> Iterator[str]:
    """Yield the calls of the gates; absolute limits are what a model without any knowledge reaches."""
    labels = table.frame[survey.target].dropna()
    clusters = ", clusters=TIME" if survey.period in ("%Y", "%Y-%m") else ""
    metric, margin = survey.task.metrics[0], 0.02
    half_width = 2.2 * (5 / _count_judged(survey)) ** 0.5 / 2  # of a share, in each of five groups
    yield "NoLeakage()"
    if survey.task.kind == "regression":
        spread = float(labels.astype("float64").std())
        margin = round_up(0.05 * spread)
        yield f'Threshold("r2", 0.0{clusters})'
        yield f"Calibrated(max_error={round_up((0.2 + 2 * half_width) * spread):g}{clusters})"
    elif survey.task.kind == "binary":
        yield f'Threshold("roc_auc", 0.5{clusters})'
        yield f"Calibrated(max_error={round_up(0.1 + half_width):g}{clusters})"
    else:
        share = float(labels.value_counts(normalize=True).iloc[0])  # of who always says the most frequent class
        yield f'Threshold("accuracy", {round_up(share, digits=2):g}{clusters})'
    yield f'NoWorse("{metric}", margin={margin:g}{clusters})'
    if slices:
        yield f'NoSliceWorse({quoted(slices)}, "{metric}", margin={margin:g}, min_rows=200{clusters})'
    yield "OneRowLatency(max_ms=500)"
    yield "ModelSize(max_mb=50)"
    yield "ContractCompatible()"


def round_up(value: float, digits: int = 1) -> float:
    """Return a limit a little above a value, with few significant digits: 0.1234 becomes 0.2."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return round(math.ceil(value / unit) * unit, 12)
