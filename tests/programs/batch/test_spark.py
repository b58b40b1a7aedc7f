"""Batches on Spark: the same rows as on one machine, through separate executors that verify the model themselves."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from conftest import make_rows, register_model
from contract_inputs import CONTRACT, SPARK, Input
from model_types import PAIRS, project_of, train_many
from notebook_files import PROJECT_SOURCE, write_notebook
from refusals import raises
from rounds import rounds
from test_contract_paths import numbered, to_arrow

from mlops_lib import cli, contracts, data
from mlops_lib.errors import (
    BatchError,
    NotebookError,
    SparkError,
    TableError,
)
from mlops_lib.programs import batch, notebooks
from mlops_lib.programs.batch import cluster, spark
from mlops_lib.programs.notebooks.sweeps import PARENT_TAG
from mlops_lib.project import Project
from mlops_lib.tracking import store

HAS_SPARK = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None
needs_spark = pytest.mark.skipif(not HAS_SPARK, reason="Spark or Java is missing: run ci/setup-spark")
MASTER = "local-cluster[2,1,1024]"  # two executors, each a process of its own
COLUMNS = ["thing_id", "prediction", "prediction_id", "model_name", "model_version", "model_digest"]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """Return one Spark for all tests of this file; its JVMs live too briefly to be worth the second compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        with cluster.session(MASTER) as found:
            found.sparkContext.setLogLevel("OFF")
            found.conf.set("spark.sql.shuffle.partitions", "2")
            yield found


@pytest.fixture
def source(project: Project) -> Path:
    """Return a folder of four files with bad rows, and a key that comes in two of them."""
    frame, _ = make_rows(4000, seed=5)
    frame.loc[::100, "size"] = None
    frame.loc[3900, "thing_id"] = frame.loc[5, "thing_id"]
    for number in range(4):
        data.write_table(frame[number * 1000 : (number + 1) * 1000], project.root / f"many/part-{number}.parquet")
    return project.root / "many"


def read_sorted(path: Path) -> pd.DataFrame:
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return data.read_table(paths).sort_values(["thing_id", *COLUMNS[2:3]][:1], ignore_index=True)


@needs_spark
@pytest.mark.usefixtures("version", "session")
def test_spark_gives_the_rows_that_one_machine_gives(project: Project, source: Path) -> None:
    here, there = project.root / "here.parquet", project.root / "there.parquet"
    one = batch.score_table(project, "dev", source, here)
    other = spark.score_on_spark(project, "dev", source, there, master=MASTER)
    found, expected = read_sorted(there), read_sorted(here)
    assert found.columns.tolist() == expected.columns.tolist()
    pd.testing.assert_frame_equal(found[COLUMNS], expected[COLUMNS])
    pd.testing.assert_series_equal(found["score"], expected["score"], rtol=1e-12)
    aside, expected_aside = (read_sorted(batch.quarantine_path(path)) for path in (there, here))
    columns = [name for name in expected_aside.columns if name != "arrived_at"]
    pd.testing.assert_frame_equal(aside[columns], expected_aside[columns])
    for name in ("n_rows", "n_scored", "n_quarantined", "bad_by_rule", "digest", "contract", "input_fingerprint"):
        assert getattr(one, name) == getattr(other, name), name
    assert other.n_rows == other.n_scored + other.n_quarantined == 4000
    again = spark.score_on_spark(project, "dev", source, there, master=MASTER)
    assert again.already_done
    assert not [path for path in project.root.iterdir() if path.name.startswith(".there")]
    register_model(project, C=0.1)
    with pytest.raises(BatchError, match="holds predictions of version 1"):
        spark.score_on_spark(project, 2, source, there, master=MASTER)


def judge_on_executors(contract: contracts.Contract) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return what holds batches to a contract; the last column tells a row by its number."""

    def judge(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part in batches:
            numbers = part.column(part.num_columns - 1)
            split = contracts.split_batch(contract, part.select(range(part.num_columns - 1)))
            rules = dict(zip(split.bad.index.tolist(), split.bad["rule"].tolist(), strict=True))
            found = [rules.get(row, "") for row in range(split.n_rows)]
            yield pa.record_batch({"number": numbers, "rule": pa.array(found)})

    return judge


def write_inputs(folder: Path) -> tuple[list[Input], list[Path]]:
    """Write the inputs that Parquet holds, a file for each set of types; the last column numbers them."""
    inputs, tables = numbered("parquet"), {}
    for number, given in enumerate(inputs):
        row = pa.table({**{name: to_arrow(value) for name, value in given.row.items()}, "number": [number]})
        tables.setdefault(str(row.schema), []).append(row)
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, rows in zip(paths, tables.values(), strict=True):
        pa.parquet.write_table(pa.concat_tables(rows), path)
    return inputs, paths


@needs_spark
def test_every_input_of_the_table_gets_its_verdict_on_spark(session: Any, tmp_path: Path) -> None:
    from pyspark.errors import AnalysisException

    inputs, paths = write_inputs(tmp_path)
    found: dict[str, str | None] = {}
    frames, judge = [], judge_on_executors(CONTRACT)
    for path in paths:
        try:
            frames.append(session.read.parquet(str(path)).mapInArrow(judge, "number long, rule string"))
        except AnalysisException:
            numbers = pa.parquet.read_table(path)["number"].to_pylist()
            found.update({inputs[number].name: None for number in numbers})
    rows = functools.reduce(lambda one, other: one.union(other), frames).collect()
    found.update({inputs[row["number"]].name: row["rule"] for row in rows})
    assert found == {given.name: given.expected(SPARK) for given in inputs}
    assert sum(rule is not None for rule in found.values()) >= 100


@needs_spark
@pytest.mark.usefixtures("version", "session")
def test_an_executor_refuses_a_model_that_changed_on_its_way(
    project: Project, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_model(project, C=0.3)  # a digest that no worker has loaded yet
    write = spark.zipfile.ZipFile.write

    def spoil(archive: Any, path: Path, name: str) -> None:
        if name == "MLmodel":
            path.write_text(path.read_text() + "\n# changed")
        write(archive, path, name)

    monkeypatch.setattr(spark.zipfile.ZipFile, "write", spoil)
    with pytest.raises(SparkError, match=r"on an executor.*'MLmodel'.*has been changed"):
        spark.score_on_spark(project, 2, source, project.root / "s.parquet", master=MASTER)
    assert not [path for path in project.root.iterdir() if "s.parquet" in path.name]


@needs_spark
@pytest.mark.usefixtures("version", "session")
def test_what_is_refused_on_one_machine_is_refused_on_spark(project: Project, source: Path) -> None:
    output = project.root / "out/s.parquet"
    frame, _ = make_rows(500, seed=6)
    bad = data.write_table(frame.assign(size=1e9), project.root / "bad.parquet")
    with pytest.raises(BatchError, match="500 of 500 rows"):
        spark.score_on_spark(project, 1, bad, output, master=MASTER)
    narrow = data.write_table(frame.drop(columns="size"), project.root / "narrow.parquet")
    with raises(TableError, "columns"):
        spark.score_on_spark(project, 1, narrow, output, master=MASTER)
    frame.to_csv(project.root / "rows.csv", index=False)
    with pytest.raises(TableError, match="only Parquet"):
        spark.score_on_spark(project, 1, project.root / "rows.csv", output, master=MASTER)
    with pytest.raises(BatchError, match="one of these is a database"):
        spark.score_on_spark(project, 1, bad, "sqlite:////tmp/a.db::scores", master=MASTER)
    assert not output.parent.exists()


@needs_spark
@pytest.mark.usefixtures("session")
def test_a_model_of_any_type_of_column_scores_on_spark_as_it_was_trained(project: Project) -> None:
    project, n_scored = project_of(project), 0
    for name, trained in train_many(project, PAIRS[:: rounds(70, 3)]):
        path = data.write_table(trained.rows, project.root / "tables" / f"{trained.version}.parquet")
        output = project.root / f"{trained.version}.parquet"
        if name.startswith("float16"):
            with pytest.raises(SparkError, match="FLOAT16"):  # half precision is no type of Spark's
                spark.score_on_spark(project, trained.version, path, output, master=MASTER)
            continue
        spark.score_on_spark(project, trained.version, path, output, master=MASTER)
        np.testing.assert_array_equal(read_sorted(output)["score"], trained.scores, name)
        n_scored += 1
    assert n_scored >= rounds(2, 40)


SCORE = "from mlops_lib import tracking\nassert kind != 'bad', 'a bad kind'\ntracking.record_result(score=alpha * n)"


@pytest.fixture
def shared_project(project: Project, plain_server: str) -> Project:
    """Return a project with a file, a notebook, and its store on a server: here the trials run elsewhere."""
    name = f"toy-{uuid.uuid4().hex[:8]}"
    folder = project.root / "notebooks"
    parameters = "alpha: float = 0.5  # strength\nn: int = 1  # how many\nkind: str = 'good'  # or bad"
    write_notebook(folder, SCORE, parameters=parameters)
    (folder / "project.py").write_text(PROJECT_SOURCE.replace("'toy'", repr(name)))
    return replace(project, name=name, tracking_uri=plain_server, file=folder / "project.py", actor="ada")


@needs_spark
@pytest.mark.usefixtures("session")
def test_a_sweep_on_spark_finds_what_one_machine_finds(shared_project: Project) -> None:
    grid = {"alpha": [0.1, 0.2], "kind": ["good", "bad"]}
    there = notebooks.sweep(shared_project, "nb", grid, master=MASTER)
    assert there.trials["status"].tolist() == ["FINISHED", "FAILED"] * 2, there.trials["error"].tolist()
    assert there.trials["score"].tolist()[::2] == [0.1, 0.2]
    assert "a bad kind" in there.trials["error"].iloc[1]
    client = store.connect(shared_project.tracking_uri)
    for run_id, status in zip(there.trials["run_id"], there.trials["status"], strict=True):
        run = client.get_run(run_id)
        assert (run.info.status, run.data.tags[PARENT_TAG]) == (status, there.run_id)
        assert run.data.tags["mlops.actor"] == "ada"
    again = notebooks.sweep(shared_project, "nb", grid, master=MASTER)
    assert (again.run_id, again.n_executed) == (there.run_id, 2), "those that failed, and no other"
    here = notebooks.sweep(shared_project, "nb", {"alpha": [0.1, 0.2]})
    assert here.trials["score"].tolist() == [0.1, 0.2]


@needs_spark
def test_a_sweep_that_is_stopped_leaves_no_open_run_on_spark(shared_project: Project, session: Any) -> None:
    write_notebook(
        shared_project.root / "notebooks", "import time\ntime.sleep(600)", parameters="n: int = 1  # how many"
    )
    client = store.connect(shared_project.tracking_uri)

    def stop_the_first() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            experiment = client.get_experiment_by_name(shared_project.name)
            found = client.search_runs([experiment.experiment_id], "tags.`mlops.task` != ''") if experiment else ()
            if found:
                session.interruptAll()
                return
            time.sleep(0.2)

    watcher = threading.Thread(target=stop_the_first)
    watcher.start()
    found = notebooks.sweep(shared_project, "nb", {"n": [1]}, master=MASTER)
    watcher.join()
    assert found.trials["status"].tolist() == ["FAILED"]
    assert "cancelled" in found.trials["error"].iloc[0].lower()
    experiment = client.get_experiment_by_name(shared_project.name)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} <= {"KILLED", "FAILED"}


def test_a_store_that_is_a_file_is_no_store_for_trials_elsewhere(project: Project) -> None:
    write_notebook(project.root / "notebooks", parameters="n: int = 1  # how many")
    with pytest.raises(NotebookError, match=r"is a file.*Nothing was run"):
        notebooks.sweep(project, "nb", {"n": [1]}, master=MASTER)


@pytest.mark.parametrize("options", [["--on", "fire"], ["--on", "spark", "--rows", "5"]])
def test_spark_is_asked_for_by_its_name(project: Project, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_lib.project.load_project", lambda file, **_: project)
    done = CliRunner().invoke(cli.main, ["score", "a.parquet", "b.parquet", *options])
    assert done.exit_code == 2
    assert "--on takes spark" in done.output


@pytest.mark.usefixtures("version")
def test_a_missing_spark_is_told_with_what_to_do(
    project: Project, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(SparkError, match=r"it is not installed.*mlops-lib\[spark\]"):
        spark.score_on_spark(project, 1, source, project.root / "s.parquet")
