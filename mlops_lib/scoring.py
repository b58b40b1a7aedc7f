"""Batch scoring: a table in, predictions out, every row accounted for.

The version is resolved once and stands on every row. Rows that break the contract are set aside in a quarantine file
with rule and reason; rows in = rows scored + rows quarantined, always. Output, quarantine and manifest appear complete
or not at all, and scoring the same input with the same version again does nothing. Above the contract's share of bad
rows the batch is refused as a whole.

>>> scoring.score_table(project, "prod", "may.parquet", "scored.parquet")  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlops_lib import contracts, data, integrity, registry
from mlops_lib.errors import BatchRefusedError, OutputTakenError
from mlops_lib.project import Project
from mlops_lib.registry import Release

UNFINISHED = "unfinished"
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class ScoreResult:
    """What a batch came to; also written beside the predictions as ``.manifest.json``.

    Parameters
    ----------
    n_rows, n_scored, n_quarantined : int
        ``n_rows == n_scored + n_quarantined``.
    bad_by_rule : dict
        Rows set aside, by the rule they broke first.
    already_done : bool
        Whether the output was there from an earlier call with the same input, version and rows.
    rows : int or None
        The limit that was asked for: predictions of a smoke test are not those of the table.
    """

    name: str
    version: int
    stage: str | None
    digest: str
    input: str
    input_fingerprint: str
    output: str
    output_fingerprint: str
    quarantine: str | None
    n_rows: int
    n_scored: int
    n_quarantined: int
    bad_by_rule: dict[str, int]
    contract: str
    scored_at: str
    duration_s: float
    already_done: bool = False
    rows: int | None = None

    def __str__(self) -> str:
        """Return one line for people."""
        rules = ", ".join(f"{rule} {count}" for rule, count in self.bad_by_rule.items())
        aside = f"{self.n_quarantined:,} set aside ({rules})" if self.n_quarantined else "none set aside"
        done = "already scored" if self.already_done else "scored"
        return f"{self.n_scored:,} of {self.n_rows:,} rows {done} with version {self.version} of '{self.name}', {aside}"


def score_table(
    project: Project,
    version: int | str,
    input_path: Path | str,
    output_path: Path | str,
    *,
    rows: int | None = None,
    progress: Progress | None = None,
) -> ScoreResult:
    """Score a Parquet or CSV file in batches, with a version or with what a stage points to.

    Parameters
    ----------
    version : int or str
        A number or a stage; resolved and verified once.
    input_path : path
        Keys and features; other columns are ignored.
    output_path : path
        Parquet: keys, ``score``, ``prediction``, ``prediction_id``, model name, version, digest and time.
    rows : int, optional
        Score only the first so many rows, as a smoke test does.
    progress : callable, optional
        Called with rows done and rows in all (None where unknown) after each batch.

    Raises
    ------
    BatchRefusedError, OutputTakenError, ContractColumnsError, TableFileError, EmptyTableError, ModelFileError
        Nothing was written.
    """
    started = time.monotonic()
    source, output = Path(input_path), Path(output_path)
    if output.suffix != ".parquet":
        raise OutputTakenError(output, "its name does not end in .parquet")
    data.raise_for_columns(source, ())
    release = registry.load_model(project, version)
    fingerprint = data.fingerprint_file(source)
    done = _find_done(release, output, fingerprint, rows)
    if done:
        return done
    contract = contracts.Contract.from_dict(release.files.contract)
    data.raise_for_columns(source, [*contract.keys, *contract.features])
    scored_at = datetime.now(UTC).replace(microsecond=0)
    counts = {"n_rows": 0, "n_scored": 0, "n_quarantined": 0}
    rules: dict[str, int] = {}
    total = data.count_rows(source)
    total = min(total, rows) if total and rows else total
    duplicated = _find_duplicates(source, contract, rows)
    with _writers(output) as (write_good, write_bad):
        for frame, form in _frames(source, rows):
            split = contracts.split_rows(contract, frame, source=form)
            good, bad = _set_duplicates_aside(split.good, split.bad, frame, contract.keys, duplicated)
            if len(good):
                write_good(_predict(release, contract, good, scored_at))
            if len(bad):
                write_bad(bad)
                for rule, count in bad["rule"].value_counts().items():
                    rules[str(rule)] = rules.get(str(rule), 0) + int(count)
            counts["n_rows"] += len(frame)
            counts["n_scored"] += len(good)
            counts["n_quarantined"] += len(bad)
            if progress:
                progress(counts["n_rows"], total)
        share = counts["n_quarantined"] / counts["n_rows"]
        if share > contract.max_bad_share:
            raise BatchRefusedError(source, counts["n_quarantined"], counts["n_rows"], contract.max_bad_share, rules)
        result = ScoreResult(
            name=release.name,
            version=release.version,
            stage=release.stage,
            digest=release.digest,
            input=str(source),
            input_fingerprint=fingerprint,
            output=str(output),
            output_fingerprint=UNFINISHED,
            quarantine=str(quarantine_path(output)) if counts["n_quarantined"] else None,
            bad_by_rule=rules,
            contract=contract.digest,
            scored_at=scored_at.isoformat(),
            duration_s=round(time.monotonic() - started, 3),
            rows=rows,
            n_rows=counts["n_rows"],
            n_scored=counts["n_scored"],
            n_quarantined=counts["n_quarantined"],
        )
        _write_account(output, result)  # before the predictions: whoever is killed now leaves nothing unexplained
    if not counts["n_quarantined"]:
        quarantine_path(output).unlink(missing_ok=True)  # of an earlier batch whose predictions were taken away
    result = replace(result, output_fingerprint=data.fingerprint_file(output))
    _write_account(output, result)
    return result


def _write_account(output: Path, result: ScoreResult) -> None:
    with data.atomic_write(manifest_path(output), "w") as file:
        json.dump(asdict(result), file, indent=1)


def quarantine_path(output: Path) -> Path:
    """Return where the rows that were set aside go."""
    return output.with_name(f"{output.stem}.quarantine.parquet")


def manifest_path(output: Path) -> Path:
    """Return where the account of a batch goes."""
    return output.with_name(f"{output.stem}.manifest.json")


def _find_done(release: Release, output: Path, fingerprint: str, rows: int | None) -> ScoreResult | None:
    """Return the result of the same batch, done before; refuse an output that is of something else."""
    if not output.exists():
        return None
    try:
        account = ScoreResult(**json.loads(manifest_path(output).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise OutputTakenError(output, "it was not written by a finished batch") from None
    same = (account.input_fingerprint, account.digest) == (fingerprint, release.digest)
    if not same or account.rows != rows:
        first = f"the first {account.n_rows} rows of " if account.rows is not None else ""
        reason = f"it holds predictions of version {account.version} for {first}'{account.input}'"
        raise OutputTakenError(output, reason)
    if account.output_fingerprint == UNFINISHED:
        return None  # the same batch, killed between its predictions and its account: do it again
    if data.fingerprint_file(output) != account.output_fingerprint:
        raise OutputTakenError(output, "it has been changed since it was written")
    return replace(account, already_done=True)


def _frames(source: Path, rows: int | None) -> Iterator[tuple[pd.DataFrame, contracts.Source]]:
    left = rows
    for batch in data.read_batches(source):
        frame, form = contracts.read_batch(batch if left is None else batch.slice(0, left))
        yield frame, form
        if left is not None:
            left -= len(frame)
            if left <= 0:
                return


def _find_duplicates(source: Path, contract: contracts.Contract, rows: int | None) -> pd.DataFrame:
    """Return the keys that come more than once in the whole file; only the key columns are read for it."""
    table = pa.Table.from_batches(list(data.read_batches(source, columns=list(contract.keys)))).slice(0, rows)
    keys = contracts.read_keys(contract, table)
    return keys[keys.duplicated()].drop_duplicates()


def _set_duplicates_aside(
    good: pd.DataFrame, bad: pd.DataFrame, frame: pd.DataFrame, keys: tuple[str, ...], duplicated: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Set rows aside whose key comes again in another batch; within a batch the contract has found them."""
    if duplicated.empty or good.empty:
        return good, bad
    wanted = pd.MultiIndex.from_frame(duplicated)
    again = pd.MultiIndex.from_frame(good[list(keys)]).isin(wanted)
    name = ", ".join(keys)
    moved = frame.loc[good.index[again]].assign(rule=f"{name}.duplicated", reason=f"{name} comes more than once")
    return good[~again], pd.concat([bad, moved])


def _predict(release: Release, contract: contracts.Contract, good: pd.DataFrame, scored_at: datetime) -> pd.DataFrame:
    score = integrity.scorer(release.model)(good[release.features])
    out = good[list(contract.keys)].copy()
    out["score"] = score
    out["prediction"] = (score >= release.threshold).astype("int8")
    out["prediction_id"] = f"{release.name}/{release.version}"
    for key in contract.keys:
        out["prediction_id"] += "/" + out[key].astype("str")
    out["model_name"] = release.name
    out["model_version"] = release.version
    out["model_digest"] = release.digest
    out["scored_at"] = pd.Timestamp(scored_at)
    return out


@contextlib.contextmanager
def _writers(output: Path) -> Iterator[tuple[Callable[[pd.DataFrame], None], Callable[[pd.DataFrame], None]]]:
    """Yield writers of predictions and quarantined rows; both files appear at the end, or neither."""
    with contextlib.ExitStack() as stack:
        # Entered first, so renamed last: predictions are never visible before the rows that were set aside.
        good = stack.enter_context(_writer(output, always=True))
        bad = stack.enter_context(_writer(quarantine_path(output), always=False))
        yield good, bad


@contextlib.contextmanager
def _writer(path: Path, *, always: bool) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a writer of frames to one Parquet file, which exists only if something was written or ``always``."""
    with contextlib.ExitStack() as stack:
        opened: list[pq.ParquetWriter] = []

        def write(frame: pd.DataFrame) -> None:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if not opened:
                file = stack.enter_context(data.atomic_write(path))
                opened.append(stack.enter_context(pq.ParquetWriter(file, table.schema, **data.PARQUET)))
            opened[0].write_table(table.cast(opened[0].schema))

        yield write
        if always and not opened:
            raise ValueError("no row was written")
