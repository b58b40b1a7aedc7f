"""Every error that this library raises, and its text.

One base, :class:`MlopsError`; each child is also the builtin it resembles. An error takes facts, keeps them as
attributes and builds its own text: what happened, what exists or was expected, what to do next, what did not change.

>>> print(UnknownStageError(stage="prd", stages=("dev", "staging", "prod")))
There is no stage 'prd'. The project declares dev, staging, prod. Did you mean 'prod'? Nothing was changed.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path


def nearest(name: str, options: Iterable[object]) -> str:
    """Return `` Did you mean 'x'?`` for the option nearest to ``name``, or an empty text."""
    found = difflib.get_close_matches(name, [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def listed(items: Iterable[object], *, limit: int = 12) -> str:
    """Join at most ``limit`` items with commas and count the rest; ``none`` when there are none."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more if texts else "none"


class MlopsError(Exception):
    """Base of every error of this library. ``str(error)`` is a complete message for a person."""

    def __post_init__(self) -> None:
        """Keep the facts as ``args`` too, so that an error survives pickling between processes."""
        self.args = tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


# --- report ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ReportFailedError(MlopsError, ValueError):
    """A report that had to pass did not."""

    title: str
    n_failed: int
    n_rows: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """Name the first failures."""
        return f"{self.title}: {self.n_failed} of {self.n_rows} checks failed. {listed(self.failures, limit=5)}."


# --- project -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ProjectNotFoundError(MlopsError, FileNotFoundError):
    """No project file where one was looked for."""

    looked_at: tuple[Path, ...]

    def __str__(self) -> str:
        """List the places."""
        return (
            f"No project file was found. Looked at {listed(self.looked_at)}. "
            "Name one with --project FILE or MLOPS_PROJECT, or run inside the repository. Nothing was run."
        )


@dataclass(eq=False)
class ProjectFileError(MlopsError, ImportError):
    """The project file does not define a usable project."""

    file: Path
    reason: str

    def __str__(self) -> str:
        """Say what the file lacks."""
        return (
            f"Project file '{self.file}' cannot be used: {self.reason}. "
            "It must define one `project = Project(...)` at top level. Nothing was run."
        )


@dataclass(eq=False)
class UnknownStageError(MlopsError, LookupError):
    """A stage that the project does not declare."""

    stage: str
    stages: tuple[str, ...]

    def __str__(self) -> str:
        """List the stages."""
        return (
            f"There is no stage '{self.stage}'. The project declares {listed(self.stages)}."
            f"{nearest(self.stage, self.stages)} Nothing was changed."
        )


@dataclass(eq=False)
class PeriodNotIngestedError(MlopsError, FileNotFoundError):
    """A period whose table was never written."""

    period: str
    table: str
    periods: tuple[str, ...]
    path: Path

    def __str__(self) -> str:
        """List the periods that exist."""
        have = f"Ingested: {listed(self.periods)}." if self.periods else "No period was ingested yet."
        return (
            f"There are no {self.table} for period '{self.period}' (no file '{self.path}'). {have}"
            f"{nearest(self.period, self.periods)} Write them with 'mlops ingest'. Nothing was run."
        )


@dataclass(eq=False)
class PeriodOrderError(MlopsError, ValueError):
    """A span of periods that ends before it begins."""

    first: str
    last: str

    def __str__(self) -> str:
        """Show both ends."""
        return f"No period lies from '{self.first}' to '{self.last}': the first is the later one. Nothing was read."


# --- data --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class TableNotFoundError(MlopsError, FileNotFoundError):
    """A table file that is not there."""

    path: Path
    siblings: tuple[str, ...]

    def __str__(self) -> str:
        """List the files beside it."""
        return (
            f"There is no table '{self.path}'. The folder holds: {listed(self.siblings)}."
            f"{nearest(self.path.name, self.siblings)} Nothing was read or written."
        )


@dataclass(eq=False)
class TableFileError(MlopsError, ValueError):
    """A table file that cannot be read."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Give the reader's own words."""
        return (
            f"Table '{self.path}' cannot be read: {self.reason}. "
            "Write it again from its source; a file cut short keeps no rows. Nothing was written."
        )


@dataclass(eq=False)
class EmptyTableError(MlopsError, ValueError):
    """A table without rows."""

    path: Path | str

    def __str__(self) -> str:
        """Name the file."""
        return f"Table '{self.path}' has no rows. At least one is needed. Nothing was written."


@dataclass(eq=False)
class MissingColumnsError(MlopsError, LookupError):
    """A table without columns that are needed."""

    path: Path | str
    missing: tuple[str, ...]
    columns: tuple[str, ...]

    def __str__(self) -> str:
        """List what is missing and what is there."""
        return (
            f"Table '{self.path}' lacks {listed(self.missing)}. It has {listed(self.columns, limit=30)}."
            f"{nearest(self.missing[0], self.columns)} Nothing was written."
        )


@dataclass(eq=False)
class WriteRefusedError(MlopsError, OSError):
    """A file that could not be written."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Give the system's reason."""
        return (
            f"Cannot write '{self.path}': {self.reason}. Free space or permission in '{self.path.parent}' is needed. "
            "What was there before is unchanged."
        )


@dataclass(eq=False)
class TimeSplitError(MlopsError, ValueError):
    """A table that no moment divides into earlier and later rows."""

    column: str
    reason: str

    def __str__(self) -> str:
        """Give the reason."""
        return f"The table cannot be split by '{self.column}': {self.reason}. Nothing was split or left out."


# --- store -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class StorePermissionError(MlopsError, PermissionError):
    """A server whose account may not do what was asked."""

    uri: str
    reason: str

    def __str__(self) -> str:
        """Say what to ask for."""
        return (
            f"The MLflow server at '{self.uri}' does not let this account do that ({self.reason}). Ask whoever runs it "
            "for EDIT on the model and its experiments (docs/team-server.md). 'mlops history' says what stands."
        )


@dataclass(eq=False)
class ProjectNotLoadedError(MlopsError, ValueError):
    """A project as its file defines it, without what the environment adds."""

    def __str__(self) -> str:
        """Say what adds it."""
        return (
            "This project has no store: it was imported from its file, not loaded. `load_project()` returns it with "
            "the store, the actor and the secrets of this environment. Nothing was changed."
        )


@dataclass(eq=False)
class StoreUnreachableError(MlopsError, ConnectionError):
    """A tracking server or database that does not answer."""

    uri: str
    reason: str
    is_midway: bool = False

    def __str__(self) -> str:
        """Say how to start it or do without, and what may have been written before."""
        if self.is_midway:
            return (
                f"The MLflow store at '{self.uri}' failed in the middle ({self.reason}). What it had confirmed "
                "stands and the next command completes it: look at 'mlops history' before you repeat this one."
            )
        return (
            f"Cannot reach the MLflow store at '{self.uri}' ({self.reason}). Start it, or unset MLFLOW_TRACKING_URI "
            "to use the project's own mlflow.db. Nothing was changed."
        )


@dataclass(eq=False)
class StoreBrokenError(MlopsError, RuntimeError):
    """A database whose schema is not the one this MLflow needs."""

    uri: str
    reason: str

    def __str__(self) -> str:
        """Give the command that moves it out of the way."""
        path = self.uri.removeprefix("sqlite:///")
        return (
            f"The MLflow store '{self.uri}' cannot be used: {self.reason}. Restore it from a backup, or move it away: "
            f"after `mv {shlex.quote(path)} {shlex.quote(path)}.broken` the next command makes a fresh one. "
            "Nothing was changed."
        )


@dataclass(eq=False)
class StoreReadOnlyError(MlopsError, PermissionError):
    """A store that cannot be written."""

    uri: str

    def __str__(self) -> str:
        """Name the store."""
        return (
            f"The MLflow store '{self.uri}' is read-only for this user. Make the file and its folder writable, or set "
            "MLFLOW_TRACKING_URI to a store that is. Nothing was changed."
        )


# --- integrity ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ModelFileError(MlopsError, ValueError):
    """A model whose files are not the registered ones."""

    model: str
    file: str
    reason: str
    is_deserialized: bool = False

    def __str__(self) -> str:
        """Name the file."""
        left = "It was discarded unused" if self.is_deserialized else "Nothing of it was deserialized"
        return (
            f"{self.model} was not loaded: file '{self.file}' {self.reason}. {left}. "
            "Restore the file from a backup, or roll back to another version."
        )


@dataclass(eq=False)
class ModelLimitError(ModelFileError):
    """A model that is larger than anything this library loads."""

    found: int = 0
    limit: int = 0

    def __str__(self) -> str:
        """Give size and limit."""
        return (
            f"{self.model} was not loaded: '{self.file}' {self.reason} {self.found:,}, the limit is {self.limit:,}. "
            "Nothing of it was deserialized. Make the model smaller, or raise the limit in "
            "mlops_lib/integrity/limits.py."
        )


@dataclass(eq=False)
class UntrustedTypesError(MlopsError, TypeError):
    """A model that contains types nobody has reviewed."""

    model: str
    types: tuple[str, ...]

    def __str__(self) -> str:
        """List the types; say of those that no other process could import that naming them would not help."""
        homeless = [kind for kind in self.types if kind.startswith("__main__.") or "<" in kind]
        advice = "If they belong to an installed package that you trust, name them in Project(trusted_types=...)."
        if homeless:
            advice = (
                f"Where the model is loaded nothing can import {listed(homeless)}: put what a notebook defines in an "
                "installed package, give a lambda a name there, and name that in Project(trusted_types=...)."
            )
        return (
            f"{self.model} contains types that are not on the reviewed list: {listed(self.types)}. {advice} "
            "Nothing was saved or loaded."
        )


@dataclass(eq=False)
class UnreviewedVersionError(MlopsError, ImportError):
    """A version of skops or scikit-learn whose types nobody has reviewed."""

    skops: str
    sklearn: str
    reviewed: tuple[str, ...]

    def __str__(self) -> str:
        """Say what to install or to do."""
        return (
            f"The types that a model may contain were not reviewed for skops {self.skops} with scikit-learn "
            f"{self.sklearn}, but for {listed(self.reviewed)}. Install those, or review the new ones as "
            "mlops_lib/integrity/types.py describes. Nothing was saved or loaded."
        )


@dataclass(eq=False)
class ModelNotSavableError(MlopsError, TypeError):
    """A model that skops cannot write."""

    model: str
    reason: str

    def __str__(self) -> str:
        """Give the reason."""
        return (
            f"{self.model} cannot be saved with skops: {self.reason}. Build it from importable functions and classes, "
            "without lambdas or references to itself. Nothing was saved."
        )


@dataclass(eq=False)
class NotCompilableError(MlopsError, NotImplementedError):
    """A part of a pipeline that has no exact scorer in plain Python."""

    what: str
    supported: str

    def __str__(self) -> str:
        """Name the part and what could be in its place."""
        return f"There is no exact scorer for {self.what}: {self.supported}. The pipeline itself is used."


# --- signing -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class SigningKeyError(MlopsError, ValueError):
    """A key, or a folder of keys, that cannot be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Name the file."""
        return (
            f"'{self.path}' {self.reason}. 'mlops keys FOLDER' makes a pair; MLOPS_SIGNING_KEY names a private key, "
            "MLOPS_TRUSTED_KEYS a folder of public ones (*.pub). Nothing was signed or changed."
        )


@dataclass(eq=False)
class SignatureError(MlopsError, PermissionError):
    """A manifest or ledger entry that no trusted key has signed."""

    subject: str
    reason: str

    def __str__(self) -> str:
        """Say where trust comes from."""
        return (
            f"{self.subject} {self.reason}. This project trusts only what a key of Project(trusted_keys=...) or of "
            "MLOPS_TRUSTED_KEYS has signed. Have it logged again by somebody who has such a key, or add the key that "
            "it was signed with. Nothing was loaded or changed."
        )


# --- tracking ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class MetricValueError(MlopsError, ValueError):
    """A metric that is not a finite number."""

    name: str
    value: object

    def __str__(self) -> str:
        """Show the value."""
        return (
            f"Metric '{self.name}' is {self.value}, needs a finite number: MLflow would store infinity as 1.8e308, "
            "which passes every gate. No metric was logged."
        )


# --- registry ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class UnknownVersionError(MlopsError, LookupError):
    """A version that the registry does not have."""

    name: str
    version: str
    versions: tuple[int, ...]

    def __str__(self) -> str:
        """List the versions."""
        return (
            f"There is no version '{self.version}' of '{self.name}'. Registered versions: {listed(self.versions)}. "
            "Nothing was changed."
        )


@dataclass(eq=False)
class EmptyStageError(MlopsError, LookupError):
    """A stage that no version is in."""

    name: str
    stage: str
    filled: tuple[str, ...]

    def __str__(self) -> str:
        """Say which stages are filled."""
        return (
            f"No version of '{self.name}' is in {self.stage}. Stages with a version: {listed(self.filled)}. "
            f"Bring one there with 'mlops promote VERSION {self.stage}'. Nothing was changed."
        )


@dataclass(eq=False)
class NothingToCompareError(MlopsError, ValueError):
    """Two names of one version."""

    name: str
    version: int
    first: str
    second: str

    def __str__(self) -> str:
        """Say that both are the same."""
        return (
            f"'{self.first}' and '{self.second}' are both version {self.version} of '{self.name}'. "
            "Name two versions, or stages that hold different ones. Nothing was compared."
        )


@dataclass(eq=False)
class PromotionRefusedError(MlopsError, ValueError):
    """A move between stages that was not made."""

    name: str
    version: int
    stage: str
    reason: str
    current: int | None

    def __str__(self) -> str:
        """Give the reason and what still stands."""
        still = f"{self.stage} still has version {self.current}" if self.current else f"{self.stage} is still empty"
        return f"Version {self.version} of '{self.name}' was not promoted to {self.stage}: {self.reason}. {still}."


@dataclass(eq=False)
class RollbackRefusedError(MlopsError, ValueError):
    """A rollback that was not made."""

    name: str
    stage: str
    reason: str
    current: int | None

    def __str__(self) -> str:
        """Give the reason and what still stands."""
        still = f"It still has version {self.current}" if self.current else "It is still empty"
        return f"{self.stage} of '{self.name}' was not rolled back: {self.reason}. {still}."


@dataclass(eq=False)
class FreezeRefusedError(MlopsError, ValueError):
    """A stage that was not frozen or unfrozen."""

    name: str
    stage: str
    action: str
    reason: str

    def __str__(self) -> str:
        """Give the reason."""
        return f"{self.action} {self.stage} of '{self.name}' was refused: {self.reason}. Nothing was changed."


@dataclass(eq=False)
class ApprovalRefusedError(MlopsError, ValueError):
    """An approval that was not given."""

    name: str
    version: int
    stage: str
    reason: str

    def __str__(self) -> str:
        """Give the reason."""
        return (
            f"Version {self.version} of '{self.name}' was not approved for {self.stage}: {self.reason}. "
            "Nothing was changed."
        )


@dataclass(eq=False)
class DeletionRefusedError(MlopsError, ValueError):
    """A version that was not deleted."""

    name: str
    version: int
    reason: str

    def __str__(self) -> str:
        """Give the reason."""
        return f"Version {self.version} of '{self.name}' was not deleted: {self.reason}. It is still there."


@dataclass(eq=False)
class NaiveTimeError(MlopsError, ValueError):
    """A time without a zone, where the ledger is asked."""

    time: str

    def __str__(self) -> str:
        """Show how a zone is written."""
        return (
            f"The time '{self.time}' has no zone, so it names no moment. Write it with one, such as "
            "2026-11-01T12:00Z or 2026-11-01T12:00+01:00. Nothing was looked up."
        )


@dataclass(eq=False)
class HeadMovedError(MlopsError, RuntimeError):
    """Somebody else moved a stage first."""

    name: str
    action: str
    winner: str

    def __str__(self) -> str:
        """Name the winner's entry."""
        return (
            f"{self.action} of '{self.name}' was not made: somebody else moved first ({self.winner}). "
            "Look at 'mlops history' and decide again. Nothing was changed by this call."
        )


@dataclass(eq=False)
class ReasonTooLongError(MlopsError, ValueError):
    """A reason that does not fit into an entry of the ledger, with who acts and the operation id."""

    n_characters: int
    limit: int

    def __str__(self) -> str:
        """Give both lengths."""
        return (
            f"The reason, with who acts, takes {self.n_characters} characters as JSON, the ledger keeps {self.limit}. "
            "Shorten it and keep the long form in the run. Nothing was changed."
        )


@dataclass(eq=False)
class LedgerBrokenError(MlopsError, ValueError):
    """A ledger whose chain of hashes does not hold."""

    name: str
    entry: int
    reason: str

    def __str__(self) -> str:
        """Name the entry."""
        return (
            f"The ledger of '{self.name}' is not intact: entry {self.entry} {self.reason}. No stage was moved and none "
            "will be until it is restored from a backup."
        )


@dataclass(eq=False)
class RunNotFinishedError(MlopsError, ValueError):
    """A model whose run did not end well."""

    model_id: str
    reason: str

    def __str__(self) -> str:
        """Say what the run or model is."""
        return (
            f"Model '{self.model_id}' was not registered: {self.reason}. Only a complete model of a run that has not "
            "failed becomes a version."
        )


# --- scoring -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BatchRefusedError(MlopsError, ValueError):
    """A batch with more bad rows than its contract allows."""

    path: Path | str
    n_bad: int
    n_rows: int
    max_bad_share: float
    rules: dict[str, int]

    def __str__(self) -> str:
        """Say which rules were broken most."""
        most = [f"{rule} ({count})" for rule, count in sorted(self.rules.items(), key=lambda item: -item[1])]
        return (
            f"'{self.path}' was not scored: {self.n_bad} of {self.n_rows} rows break the contract, more than the "
            f"{self.max_bad_share:.0%} it allows. Broken most: {listed(most, limit=5)}. Mend the table at its source, "
            "or loosen the contract in the project file and train again. Nothing was written."
        )


@dataclass(eq=False)
class BatchFailedError(MlopsError, ValueError):
    """A table whose rows are good one by one, and that is not what its contract says as a whole."""

    path: Path | str
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """Name what failed."""
        return (
            f"'{self.path}' was not scored: as a whole it breaks the contract. {listed(self.failures, limit=5)}. "
            "Mend the table at its source, or loosen the contract in the project file and train again. "
            "Nothing was written."
        )


@dataclass(eq=False)
class OutputTakenError(MlopsError, FileExistsError):
    """An output that cannot be written without losing something."""

    path: Path | str
    reason: str

    def __str__(self) -> str:
        """Ask for another name."""
        return f"Nothing was scored to '{self.path}': {self.reason}. Name another output. What is there is as it was."


@dataclass(eq=False)
class InputChangedError(MlopsError, RuntimeError):
    """A table that was written to while it was scored."""

    path: Path | str

    def __str__(self) -> str:
        """Ask for a table that stands still."""
        return (
            f"'{self.path}' changed while it was being scored, so that no one table belongs to these scores. "
            "Score it again when it is complete; write it under another name and rename it. Nothing was written."
        )


@dataclass(eq=False)
class RepeatedColumnsError(MlopsError, ValueError):
    """A table with two columns of one name."""

    path: Path | str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        """Name them."""
        return (
            f"Table '{self.path}' has more than one column {listed(self.columns)}. Which one is meant cannot be told: "
            "each name is needed once. Nothing was written."
        )


@dataclass(eq=False)
class TableAddressError(MlopsError, ValueError):
    """The address of a database without a table."""

    address: str

    def __str__(self) -> str:
        """Show the form."""
        return (
            f"'{self.address}' names no table. Write a path, or URL::TABLE such as sqlite:////data/a.db::arrivals; "
            "an input may be URL::SELECT … too. Nothing was read or written."
        )


@dataclass(eq=False)
class SqlTableError(MlopsError, ConnectionError):
    """A table of a database that cannot be read or written."""

    name: str
    reason: str

    def __str__(self) -> str:
        """Give the database's own words."""
        return (
            f"'{self.name}' cannot be used: {self.reason}. The database, its table and the right to use it are needed. "
            "Nothing was committed."
        )


@dataclass(eq=False)
class SparkError(MlopsError, RuntimeError):
    """Spark is missing, out of reach, or failed."""

    master: str
    reason: str

    def __str__(self) -> str:
        """Give Spark's own words."""
        return (
            f"Spark ('{self.master}') did not do it: {self.reason}. It needs 'mlops-lib[spark]' here and on every "
            "executor, and a Java 17 (ci/setup-spark installs both). Without --on, this machine does it. "
            "No output was written."
        )


@dataclass(eq=False)
class LocalStoreError(MlopsError, ValueError):
    """Work for other machines whose store is a file of this one."""

    tracking_uri: str

    def __str__(self) -> str:
        """Name the store and what to set."""
        return (
            f"The store '{self.tracking_uri}' is a file, which trials on other machines cannot share. Set "
            "MLFLOW_TRACKING_URI to a server (ci/server starts one). Nothing was run."
        )


@dataclass(eq=False)
class VersionsOutputError(MlopsError, ValueError):
    """One file for the predictions of several versions."""

    output: str
    versions: tuple[int, ...]

    def __str__(self) -> str:
        """Show the placeholder."""
        return (
            f"Versions {listed(self.versions)} cannot all be scored to '{self.output}'. Write {{version}} where the "
            "number goes, such as scores/{version}.parquet, or name a SQL table, which takes all. Nothing was scored."
        )


# --- notebooks ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class NotebookNotFoundError(MlopsError, FileNotFoundError):
    """A notebook that is not there."""

    notebook: str
    notebooks: tuple[str, ...]

    def __str__(self) -> str:
        """List the notebooks."""
        return (
            f"There is no notebook '{self.notebook}'. The project has {listed(self.notebooks)}."
            f"{nearest(Path(self.notebook).name, self.notebooks)} Nothing was run."
        )


@dataclass(eq=False)
class NotebookFileError(MlopsError, ValueError):
    """A file that is no notebook."""

    notebook: Path
    reason: str

    def __str__(self) -> str:
        """Give the reader's own words."""
        return f"'{self.notebook}' is not a notebook that can be run: {self.reason}. Nothing was run."


@dataclass(eq=False)
class ParameterCellError(MlopsError, ValueError):
    """A parameters cell that is no signature."""

    notebook: Path
    reason: str
    expected: str

    def __str__(self) -> str:
        """Say what the cell must hold."""
        return (
            f"The parameters cell of '{self.notebook}' cannot be used: {self.reason}; expected {self.expected}. "
            "Nothing was run."
        )


@dataclass(eq=False)
class UnknownParameterError(MlopsError, LookupError):
    """A parameter that the notebook does not declare."""

    notebook: Path
    name: str
    declared: tuple[str, ...]

    def __str__(self) -> str:
        """List the parameters."""
        return (
            f"Notebook '{self.notebook}' has no parameter '{self.name}'. It declares {listed(self.declared)}."
            f"{nearest(self.name, self.declared)} Nothing was run."
        )


@dataclass(eq=False)
class ParameterValueError(MlopsError, TypeError):
    """A parameter value of another type than declared."""

    notebook: Path
    name: str
    annotation: str
    value: object
    reason: str

    def __str__(self) -> str:
        """Show value and type."""
        return (
            f"Parameter '{self.name}' of notebook '{self.notebook}' is {self.value!r}, needs {self.annotation} "
            f"({self.reason}). Nothing was run."
        )


@dataclass(eq=False)
class SecretParameterError(MlopsError, ValueError):
    """A secret on its way into a notebook file."""

    notebook: Path
    name: str

    def __str__(self) -> str:
        """Point to the environment."""
        return (
            f"Parameter '{self.name}' of notebook '{self.notebook}' looks like a secret, and parameters are written "
            "into notebook, report and store. Use an environment variable. Nothing was run."
        )


@dataclass(eq=False)
class ResultValueError(MlopsError, TypeError):
    """A result that JSON cannot carry."""

    name: str
    type_name: str

    def __str__(self) -> str:
        """Name the type."""
        return (
            f"Result '{self.name}' is a {self.type_name}, needs a number, text, list or dict without NaN. "
            "Log tables and models as artifacts. No result was recorded."
        )


@dataclass(eq=False)
class NotebookCellError(MlopsError, RuntimeError):
    """A cell that raised."""

    notebook: Path
    cell: int
    n_cells: int
    duration_s: float
    ename: str
    evalue: str
    line_number: int | None
    line: str
    executed_path: Path

    def __str__(self) -> str:
        """Name cell, exception, source line and copy."""
        where = f" (line {self.line_number}: {self.line})" if self.line else ""
        return (
            f"Cell {self.cell} of {self.n_cells} in '{self.notebook}' failed after {self.duration_s} s: "
            f"{self.ename}: {self.evalue}{where}. Executed copy: {self.executed_path}"
        )


@dataclass(eq=False)
class KernelDiedError(MlopsError, RuntimeError):
    """A kernel that died under a cell."""

    notebook: Path
    cell: int
    n_cells: int
    ended: str
    peak_memory_mb: int
    last_line: str
    executed_path: Path

    def __str__(self) -> str:
        """Name cell, memory and the kernel's last words."""
        said = f" Its last words: {self.last_line}." if self.last_line else ""
        return (
            f"The kernel died in cell {self.cell} of {self.n_cells} of '{self.notebook}' ({self.ended}, peak memory "
            f"{self.peak_memory_mb} MB).{said} Later cells did not run. Executed copy: {self.executed_path}"
        )


@dataclass(eq=False)
class KernelNotFoundError(MlopsError, LookupError):
    """A kernel that is not installed."""

    notebook: Path
    kernel: str
    kernels: tuple[str, ...]

    def __str__(self) -> str:
        """List the kernels that are."""
        return (
            f"'{self.notebook}' asks for kernel '{self.kernel}', which is not installed. Installed: "
            f"{listed(self.kernels)}.{nearest(self.kernel, self.kernels)} Nothing was run."
        )


@dataclass(eq=False)
class NotebooksFailedError(MlopsError, RuntimeError):
    """Several notebooks were run and some of them failed."""

    failed: tuple[str, ...]
    n_notebooks: int

    def __str__(self) -> str:
        """Name those that failed."""
        return (
            f"{len(self.failed)} of {self.n_notebooks} notebooks failed: {', '.join(self.failed)}. "
            "What stopped each is told above and on its run. The others have finished."
        )


@dataclass(eq=False)
class NothingRaisedError(MlopsError, AssertionError):
    """A cell that was expected to raise and did not."""

    notebook: Path
    cell: int
    n_cells: int
    executed_path: Path

    def __str__(self) -> str:
        """Name the cell."""
        return (
            f"Cell {self.cell} of {self.n_cells} in '{self.notebook}' has the tag 'raises-exception' and raised "
            f"nothing. Its run is FAILED. Executed copy: {self.executed_path}"
        )


@dataclass(eq=False)
class NotebookTimeoutError(MlopsError, TimeoutError):
    """A notebook that did not end in time."""

    notebook: Path
    cell: int
    n_cells: int
    timeout_s: float
    executed_path: Path

    def __str__(self) -> str:
        """Name the cell that was running."""
        return (
            f"'{self.notebook}' was stopped at its deadline of {self.timeout_s:g} s, in cell {self.cell} of "
            f"{self.n_cells}. Later cells did not run. Executed copy: {self.executed_path}"
        )


@dataclass(eq=False)
class NotebookStoppedError(MlopsError, RuntimeError):
    """A notebook that somebody stopped."""

    notebook: Path
    cell: int
    n_cells: int
    signal: str
    executed_path: Path

    def __str__(self) -> str:
        """Name the signal."""
        return (
            f"'{self.notebook}' was stopped by {self.signal} in cell {self.cell} of {self.n_cells}. Later cells did "
            f"not run; its run is KILLED. Executed copy: {self.executed_path}"
        )


@dataclass(eq=False)
class IncompleteNotebookError(MlopsError, RuntimeError):
    """A notebook that ended before its last cell."""

    notebook: Path
    cell: int
    n_cells: int
    n_skipped: int
    executed_path: Path

    def __str__(self) -> str:
        """Name the first cell that did not run."""
        return (
            f"'{self.notebook}' ended early: {self.n_skipped} cells from cell {self.cell} of {self.n_cells} on never "
            f"ran (did a cell call exit()?). Its run is FAILED. Executed copy: {self.executed_path}"
        )


@dataclass(eq=False)
class SweepGridError(MlopsError, ValueError):
    """A grid that cannot be swept."""

    notebook: Path
    reason: str
    expected: str

    def __str__(self) -> str:
        """Say what a grid must hold."""
        return f"'{self.notebook}' cannot be swept: {self.reason}, needs {self.expected}. Nothing was run."


@dataclass(eq=False)
class SweepRunningError(MlopsError, RuntimeError):
    """A sweep that another process is at."""

    notebook: Path
    n_trials: int

    def __str__(self) -> str:
        """Say what to do: wait, or end the other one."""
        return (
            f"This sweep of '{self.notebook}' ({self.n_trials} trials) is already running in another process. Wait for "
            "it, or end it and start again: trials that have finished are not run twice. Nothing was run."
        )


# --- serving -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PayloadError(MlopsError, ValueError):
    """A request body that is none of MLflow's forms."""

    reason: str
    forms: tuple[str, ...]

    def __str__(self) -> str:
        """List the forms, without a word of the body's rows."""
        return (
            f"The request cannot be read: {self.reason}. Send a JSON object with exactly one of {listed(self.forms)}. "
            "Nothing was scored."
        )


@dataclass(eq=False)
class ServedContractError(MlopsError, ValueError):
    """A version that does not take the rows which the callers of a service send."""

    version: int
    served: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """Give the differences."""
        return (
            f"Version {self.version} does not take the rows that version {self.served} takes "
            f"({'; '.join(self.reasons)}). Version {self.served} goes on answering. Roll the stage back, or restart "
            "the service once its callers have changed."
        )


@dataclass(eq=False)
class PortTakenError(MlopsError, OSError):
    """A port that somebody else listens on."""

    host: str
    port: int

    def __str__(self) -> str:
        """Ask for another port."""
        return f"Port {self.port} on {self.host} is taken. Name another with --port. Nothing was started."


# --- evaluation --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class NoRowsError(MlopsError, ValueError):
    """Nothing to compute on."""

    what: str

    def __str__(self) -> str:
        """Say what was empty."""
        return f"There are no rows in {self.what}. At least one is needed. Nothing was computed."


@dataclass(eq=False)
class ScoreLengthError(MlopsError, ValueError):
    """Labels and scores of different lengths."""

    n_true: int
    n_score: int
    what: str = "scores"

    def __str__(self) -> str:
        """Give both lengths."""
        return (
            f"There are {self.n_true} labels but {self.n_score} {self.what}. They are compared by position, "
            "so both must come from the same rows in the same order. Nothing was computed."
        )


@dataclass(eq=False)
class ScoreValuesError(MlopsError, ValueError):
    """Scores that are no probabilities."""

    n_bad: int
    n_rows: int
    first_row: int
    first_value: float | str

    def __str__(self) -> str:
        """Show the first of them."""
        return (
            f"{self.n_bad} of {self.n_rows} scores are no probabilities; the first is {self.first_value} at row "
            f"{self.first_row}. Scores are finite and within [0, 1], such as model.predict_proba(X)[:, 1]. "
            "Nothing was computed."
        )


@dataclass(eq=False)
class LabelValuesError(MlopsError, ValueError):
    """Labels other than 0 and 1."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        """List the values that are neither."""
        return (
            f"Labels hold {listed(self.values, limit=5)}, but only 0 and 1 (or False and True) are known. "
            "Leave out rows without a label, and map others to 0 and 1. Nothing was computed."
        )


@dataclass(eq=False)
class SingleClassError(MlopsError, ValueError):
    """Rows of one class only, where two are compared."""

    value: int
    n_rows: int

    def __str__(self) -> str:
        """Name the class."""
        return (
            f"All {self.n_rows} rows are of class {self.value}, so ranking metrics have nothing to compare. "
            "Use a longer period or a larger slice. Nothing was computed."
        )


@dataclass(eq=False)
class UnknownMetricError(MlopsError, LookupError):
    """A metric that is not in ``METRICS``."""

    metric: str
    metrics: tuple[str, ...]

    def __str__(self) -> str:
        """List the metrics."""
        return (
            f"There is no metric '{self.metric}'. Known are {listed(self.metrics)}."
            f"{nearest(self.metric, self.metrics)} Nothing was computed."
        )


@dataclass(eq=False)
class ConfidenceError(MlopsError, ValueError):
    """A confidence that gives no interval."""

    confidence: float

    def __str__(self) -> str:
        """Give the bounds."""
        return (
            f"No interval follows from confidence={self.confidence}. It lies between 0 and 1, such as 0.95. "
            "Nothing was computed."
        )


@dataclass(eq=False)
class TooFewRowsError(MlopsError, ValueError):
    """Fewer rows of a class, or fewer clusters, than an interval can be trusted with."""

    n_rows: int
    what: str
    needed: int

    def __str__(self) -> str:
        """Give both numbers."""
        return (
            f"There are {self.n_rows} {self.what}, and an interval needs {self.needed}. Use a longer period or a "
            "larger slice. Nothing was computed."
        )


# --- gates -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class FunctionSourceError(MlopsError, TypeError):
    """A function whose source a gate's definition cannot contain."""

    function: str
    reason: str

    def __str__(self) -> str:
        """Say why its source is needed."""
        return (
            f"'{self.function}' cannot be the change of a gate: {self.reason}. A verdict is bound to the source of "
            "this function, so write it with 'def' at the top level of a file or cell. No gate was made."
        )


@dataclass(eq=False)
class ChangedRowsError(MlopsError, ValueError):
    """Changed rows that cannot be compared with the rows that they come from."""

    function: str
    reason: str

    def __str__(self) -> str:
        """Say what a change returns."""
        return (
            f"The rows changed by '{self.function}' cannot be judged: {self.reason}. It returns the rows that it can "
            "change, with their index, and within the contract. Nothing was computed."
        )


# --- end of evaluation -------------------------------------------------------------------------------------------


# --- monitoring --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class TableColumnsError(MlopsError, LookupError):
    """Columns that a table needs and lacks."""

    table: str
    missing: tuple[str, ...]
    columns: tuple[str, ...]

    def __str__(self) -> str:
        """List what is missing and what is there."""
        return (
            f"The {self.table} lack {listed(self.missing)}. They have {listed(self.columns)}."
            f"{nearest(self.missing[0], self.columns)} Nothing was computed."
        )


@dataclass(eq=False)
class ProfileColumnError(MlopsError, TypeError):
    """A column that no profile can describe."""

    column: str
    reason: str

    def __str__(self) -> str:
        """Say why not."""
        return f"Column '{self.column}' cannot be profiled: {self.reason}. No profile was built."


@dataclass(eq=False)
class DuplicateKeysError(MlopsError, ValueError):
    """Rows that share a key which should name one row."""

    table: str
    key: tuple[str, ...]
    n_duplicates: int
    first: str

    def __str__(self) -> str:
        """Show the first of them."""
        return (
            f"{self.n_duplicates} rows of the {self.table} repeat a key ({listed(self.key)}); "
            f"the first is {self.first}. One key must name one row, or rows are counted twice in the join. "
            "Nothing was computed."
        )


# --- end of monitoring -------------------------------------------------------------------------------------------


# --- contracts ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ContractColumnsError(MlopsError, ValueError):
    """A table whose columns do not fit the contract as a whole."""

    missing: tuple[str, ...]
    duplicated: tuple[str, ...]
    expected: tuple[str, ...]

    def __str__(self) -> str:
        """Name the columns that are missing or there twice."""
        faults = [f"lacks {listed(self.missing)}"] if self.missing else []
        faults += [f"has more than one {listed(self.duplicated)}"] if self.duplicated else []
        return (
            f"The table {' and '.join(faults)}. The contract expects each once: {listed(self.expected)}. "
            "Fix where the table is made. Nothing was scored."
        )


@dataclass(eq=False)
class ContractColumnUnknownError(MlopsError, LookupError):
    """A column that the contract does not know."""

    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        """List the columns of the contract."""
        return (
            f"The contract has no column '{self.name}'. Its columns are {listed(self.columns)}."
            f"{nearest(self.name, self.columns)} The contract is unchanged."
        )


@dataclass(eq=False)
class ContractInferenceError(MlopsError, ValueError):
    """Training data from which no contract can be learnt."""

    subject: str
    reason: str

    def __str__(self) -> str:
        """Say what is wrong with which column."""
        return (
            f"No contract was learnt: {self.subject} {self.reason}. Clean the training data, or leave the column out."
        )


@dataclass(eq=False)
class ContractDefinitionError(MlopsError, ValueError):
    """A contract that contradicts itself or asks for what does not exist."""

    subject: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        """Say what was given and what a contract needs."""
        return f"{self.subject} {self.found}, needs {self.expected}.{self.hint} No contract was made or changed."


@dataclass(eq=False)
class NoContractError(MlopsError, LookupError):
    """A version that was registered without a contract."""

    name: str
    version: int

    def __str__(self) -> str:
        """Say how a version gets one."""
        return (
            f"Version {self.version} of '{self.name}' has no contract beside its model. Train again with "
            "tracking.log_model(…, contract=infer_contract(…).to_dict()), as 02_train does. Nothing was changed."
        )


# --- kernels -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class WarmKernelError(MlopsError, RuntimeError):
    """A kernel that could not be forked. The provisioner catches it and starts a plain one."""

    reason: str

    def __str__(self) -> str:
        """Give the reason."""
        return f"No warm kernel: {self.reason}."


@dataclass(eq=False)
class CommandLostError(MlopsError, RuntimeError):
    """A command whose warm server was ended."""

    command: str

    def __str__(self) -> str:
        """Name the command and what is left of it."""
        return (
            f"The warm server that ran '{self.command}' has ended, and the command with it. What it had written by "
            "then stays; look before you give it again. MLOPS_WARM=0 runs commands without the server."
        )


@dataclass(eq=False)
class RuntimeDirectoryError(MlopsError, PermissionError):
    """A folder for kernel sockets that others could get at, or that cannot hold a socket."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Say what is wrong with it and how to choose another."""
        return (
            f"The folder for kernel sockets '{self.path}' {self.reason}. "
            "Set MLOPS_RUNTIME_DIR to a folder of your own. No warm kernel was started or stopped."
        )


# --- end of kernels ----------------------------------------------------------------------------------------------
