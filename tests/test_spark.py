"""Batches on Spark: the same rows as on one machine, through separate executors that verify the model themselves."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import make_rows, register_model

from mlops_lib import cli, data, scoring
from mlops_lib.errors import BatchRefusedError, MissingColumnsError, OutputTakenError, SparkError, TableFileError
from mlops_lib.project import Project
from mlops_lib.scoring import spark

HAS_SPARK = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None
needs_spark = pytest.mark.skipif(not HAS_SPARK, reason="Spark or Java is missing: run ci/setup-spark")
MASTER = "local-cluster[2,1,1024]"  # two executors, each a process of its own
COLUMNS = ["thing_id", "prediction", "prediction_id", "model_name", "model_version", "model_digest"]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """Return one Spark for all tests of this file; its JVMs live too briefly to be worth the second compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        with spark._session(MASTER) as found:
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
    one = scoring.score_table(project, "dev", source, here)
    other = spark.score_on_spark(project, "dev", source, there, master=MASTER)
    found, expected = read_sorted(there), read_sorted(here)
    assert found.columns.tolist() == expected.columns.tolist()
    pd.testing.assert_frame_equal(found[COLUMNS], expected[COLUMNS])
    pd.testing.assert_series_equal(found["score"], expected["score"], rtol=1e-12)
    aside, expected_aside = (read_sorted(scoring.quarantine_path(path)) for path in (there, here))
    columns = [name for name in expected_aside.columns if name != "arrived_at"]
    pd.testing.assert_frame_equal(aside[columns], expected_aside[columns])
    for name in ("n_rows", "n_scored", "n_quarantined", "bad_by_rule", "digest", "contract", "input_fingerprint"):
        assert getattr(one, name) == getattr(other, name), name
    assert other.n_rows == other.n_scored + other.n_quarantined == 4000
    again = spark.score_on_spark(project, "dev", source, there, master=MASTER)
    assert again.already_done
    assert not [path for path in project.root.iterdir() if path.name.startswith(".there")]
    register_model(project, C=0.1)
    with pytest.raises(OutputTakenError, match="holds predictions of version 1"):
        spark.score_on_spark(project, 2, source, there, master=MASTER)


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
    with pytest.raises(BatchRefusedError, match="500 of 500 rows"):
        spark.score_on_spark(project, 1, bad, output, master=MASTER)
    narrow = data.write_table(frame.drop(columns="size"), project.root / "narrow.parquet")
    with pytest.raises(MissingColumnsError):
        spark.score_on_spark(project, 1, narrow, output, master=MASTER)
    frame.to_csv(project.root / "rows.csv", index=False)
    with pytest.raises(TableFileError, match="only Parquet"):
        spark.score_on_spark(project, 1, project.root / "rows.csv", output, master=MASTER)
    with pytest.raises(OutputTakenError, match="one of these is a database"):
        spark.score_on_spark(project, 1, bad, "sqlite:////tmp/a.db::scores", master=MASTER)
    assert not output.parent.exists()


@pytest.mark.parametrize("options", [["--on", "fire"], ["--on", "spark", "--rows", "5"]])
def test_spark_is_asked_for_by_its_name(project: Project, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_project", lambda ctx: project)
    done = CliRunner().invoke(cli.main, ["score", "a.parquet", "b.parquet", *options])
    assert done.exit_code == 2
    assert "--on takes spark" in done.output


@pytest.mark.usefixtures("version")
def test_a_missing_spark_is_told_with_what_to_do(
    project: Project, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spark.sys.modules, "pyspark.errors", None)
    with pytest.raises(SparkError, match=r"it is not installed.*mlops-lib\[spark\]"):
        spark.score_on_spark(project, 1, source, project.root / "s.parquet")
