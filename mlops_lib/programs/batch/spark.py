"""The same batch on Spark, for tables that one machine does not finish in time.

Rows go through :class:`~mlops_lib.programs.batch.rows.BatchScorer`, as on one machine: same contract, quarantine, ids
and account. The model's files are sent to each executor once; each Python worker verifies them by digest before it
loads them, once. In and out are Parquet on a file system that driver and executors share; the output is a folder of
Parquet files.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import re
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mlops_lib import contracts, data, models, registry
from mlops_lib.errors import BatchError, MlopsError, SparkError, TableError
from mlops_lib.programs.batch import cluster
from mlops_lib.programs.batch.batch import Scoring, make_account, make_scorer, name_output
from mlops_lib.programs.batch.result import ScoreResult
from mlops_lib.programs.batch.rows import BatchScorer, Scored
from mlops_lib.programs.batch.sinks import FileSink
from mlops_lib.programs.batch.sources import open_source, split_address
from mlops_lib.project import Project


def score_on_spark(
    project: Project,
    version: int | str,
    input_path: Path | str,
    output_path: Path | str,
    *,
    master: str = cluster.LOCAL,
) -> ScoreResult:
    """Score Parquet files with a version or with what a stage points to, on Spark.

    Parameters
    ----------
    input_path, output_path : path
        A Parquet file or folder; a folder of Parquet files whose name ends in ``.parquet``.
    master : str
        ``local[2]``, ``spark://host:7077``, or ``sc://host`` for Spark Connect.

    Raises
    ------
    SparkError
        Spark is not installed, cannot be reached or failed; and whatever
        :func:`~mlops_lib.programs.batch.batch.score_table` raises. Nothing was written.
    """
    started = time.monotonic()
    if split_address(input_path) or split_address(output_path):
        raise BatchError(
            "output", path=str(output_path), reason="on Spark both ends are Parquet, and one of these is a database"
        )
    with contextlib.ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlops-")))
        release = registry.load_model(project, version, folder=model)
        output = Path(name_output(output_path, release.version))
        scored_at = datetime.now(UTC).replace(microsecond=0)
        scoring = Scoring(make_scorer(release, project, scored_at), release)
        scoring.sink = sink = FileSink(output)
        stack.callback(sink.close)
        source = stack.enter_context(open_source(input_path, scoring.contract.keys))
        if Path(input_path).suffix.lower() == ".csv":
            raise TableError("file", path=Path(input_path), reason="on Spark only Parquet is read")
        source.raise_for_columns([*scoring.contract.keys, *scoring.contract.features])
        fingerprint = source.fingerprint()
        done = sink.find_done(release, fingerprint, None)
        if done is not None:
            return done
        sink.open()
        draft = stack.enter_context(_draft(output))
        durations = {"prepare": time.monotonic() - started}
        with cluster.session(master) as spark:
            spark.conf.set("spark.sql.session.timeZone", "UTC")
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(data.BATCH_ROWS))
            spark.conf.set("spark.sql.execution.arrow.maxBytesPerBatch", str(data.BATCH_BYTES))
            spark.conf.set("spark.sql.sources.partitionColumnTypeInference.enabled", "false")  # the contract types them
            texts = tuple(field.name for field in data.read_schema(input_path) if data.is_text(field))
            shipped = _ship(spark, scoring, project, model, texts)
            _raise_for_refusal(spark, master, shipped)
            _score(spark, Path(input_path), draft, scoring, shipped)
        source.raise_if_changed()
        scoring.raise_for_table(source.name)
        durations["score"] = time.monotonic() - started - durations["prepare"]
        durations["total"] = time.monotonic() - started
        result = make_account(scoring, source, fingerprint, None, durations)
        return sink.publish_folders(result, draft / "good", draft / "bad")


@dataclass(frozen=True)
class Shipped:
    """What a Python worker needs to score: a scorer, whose model it gets and verifies itself."""

    scorer: BatchScorer
    file: str
    manifest: Mapping[str, Any]
    extra: tuple[str, ...]
    texts: tuple[str, ...]  # columns that stand in the names of folders
    repeated: pd.DataFrame

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score a partition's batches."""
        scorer = replace(self.scorer, model=_load(self.file, self.scorer.digest, self))
        for batch in (self.mark(batch) for batch in batches):
            if batch.num_rows:
                yield _structs(scorer.score(batch, contracts.split_batch(scorer.contract, batch), self.repeated))

    def mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Say again which columns are text for want of types: Spark does not hand it on."""
        return pa.record_batch(batch.columns, schema=data.mark_text(batch.schema, self.texts))

    def try_loading(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Load the model and score nothing; answer what was refused, in a row of its own."""
        for _ in batches:
            try:
                _load(self.file, self.scorer.digest, self)
            except MlopsError as error:
                yield pa.record_batch({"refused": [str(error)]})


def _structs(scored: Scored) -> pa.RecordBatch:
    """Return rows scored, rows set aside and, in a row of its own, the batch's tally, each in a column."""
    good, bad = (_plain(table).combine_chunks().to_struct_array() for table in (scored.good, scored.bad))
    good, bad = (
        pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type) for array in (good, bad)
    )
    n_good, n_bad = len(good), len(bad)
    columns = {
        "good": pa.concat_arrays([good, pa.nulls(n_bad + 1, good.type)]),
        "bad": pa.concat_arrays([pa.nulls(n_good, bad.type), bad, pa.nulls(1, bad.type)]),
        "tally": pa.array([*[None] * (n_good + n_bad), pickle.dumps(scored.tally)], pa.binary()),
    }
    return pa.record_batch(columns)


def _plain(table: pa.Table) -> pa.Table:
    """Write dictionaries out: Spark has no such type."""
    kinds = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in table.schema]
    return table.cast(pa.schema(list(zip(table.schema.names, kinds, strict=True))))


_loaded: dict[str, Any] = {}  # models of this Python worker, by digest


def _load(file: str, digest: str, shipped: Shipped) -> Any:
    """Load the model that was sent to this executor, once in each Python worker, after comparing every file."""
    if digest not in _loaded:
        from pyspark import SparkFiles  # noqa: PLC0415 - only on an executor

        with tempfile.TemporaryDirectory(prefix="mlops-") as folder:
            with zipfile.ZipFile(SparkFiles.get(file)) as archive:
                archive.extractall(folder)
            name = f"Version {shipped.scorer.version} of '{shipped.scorer.name}' on an executor"
            files = models.load_model_files(Path(folder), shipped.manifest, name=name, extra=shipped.extra)
        _loaded[digest] = files.model
    return _loaded[digest]


_sent: list[tempfile.TemporaryDirectory[str]] = []  # an executor that joins later asks for all that was ever sent


def _ship(spark: Any, scoring: Scoring, project: Project, model: Path, texts: tuple[str, ...]) -> Shipped:
    """Send the files in ``model``, from which the release was loaded, to the executors, which compare them again."""
    _sent.append(tempfile.TemporaryDirectory(prefix="mlops-"))
    folder, manifest = Path(_sent[-1].name), scoring.release.files.manifest
    file = f"mlops-{scoring.release.digest[:16]}-{uuid.uuid4().hex[:8]}.zip"  # a session takes each name once
    with zipfile.ZipFile(folder / file, "w") as archive:
        for name in manifest:
            archive.write(model / name, name)
    spark.addArtifacts(str(folder / file), file=True)
    scorer = replace(scoring.scorer, model=None)
    return Shipped(scorer, file, manifest, project.trusted_types, texts, pd.DataFrame())


def _raise_for_refusal(spark: Any, master: str, shipped: Shipped) -> None:
    """Let one executor load the model before any row is read.

    A refusal that is raised in a task ends its Python worker, and Spark tries again three times, each in a new one.
    """
    refusals = spark.range(0, 1, 1, 1).mapInArrow(shipped.try_loading, "refused string").collect()
    if refusals:
        raise SparkError(master=master, reason=refusals[0]["refused"].rstrip("."))


def _score(spark: Any, source: Path, draft: Path, scoring: Scoring, shipped: Shipped) -> None:
    """Write rows scored and set aside into two folders, and count them."""
    from pyspark import StorageLevel  # noqa: PLC0415 - 1 s, and only --on spark needs it
    from pyspark.sql import functions as F  # noqa: N812, PLC0415 - as everybody writes it
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema  # noqa: PLC0415

    # By name: a folder as Spark lists it has others. Its names are patterns.
    files = [re.sub(r"([\\{}\[\]*?])", r"\\\1", str(file)) for file in data.list_files(source)]
    root = source if source.is_dir() else source.parent
    frame, contract = spark.read.option("basePath", str(root)).parquet(*files), scoring.contract
    keys = list(contract.keys)
    known = functools.reduce(lambda one, other: one & other, [F.col(key).isNotNull() for key in keys])
    again = frame.where(known).groupBy(*keys).count().where("count > 1").select(*keys)
    found = again.toArrow()
    repeated = contracts.read_keys(contract, found.cast(data.mark_text(found.schema, shipped.texts)))
    columns = to_arrow_schema(frame.schema, timezone="UTC")
    none = pa.record_batch([pa.array([], field.type) for field in columns], schema=columns)
    none = shipped.mark(none)
    nothing = scoring.scorer.score(none, contracts.split_batch(contract, none), pd.DataFrame())
    schema = from_arrow_schema(_structs(nothing).schema)
    scored = frame.mapInArrow(replace(shipped, repeated=repeated), schema)
    scored = scored.persist(StorageLevel.DISK_ONLY)
    try:
        scored.where("good is not null").select("good.*").write.parquet(str(draft / "good"))
        scored.where("bad is not null").select("bad.*").write.parquet(str(draft / "bad"))
        rows = scored.where("tally is null").groupBy("bad.rule").count().collect()
        scoring.rules.update({row["rule"]: row["count"] for row in rows if row["rule"]})
        scoring.n_scored = sum(row["count"] for row in rows if not row["rule"])
        scoring.n_rows = scoring.n_scored + scoring.rules.total()
        for row in scored.where("tally is not null").select("tally").collect():
            scoring.tally += pickle.loads(bytes(row["tally"]))
    finally:
        scored.unpersist()


@contextlib.contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """Yield a hidden folder beside the output; what a killed job left in it is removed first, all of it at the end."""
    folder = output.with_name(f".{output.name}.spark")
    shutil.rmtree(folder, ignore_errors=True)
    with data.translate_write_errors(output):
        folder.mkdir()  # a link would be followed
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
