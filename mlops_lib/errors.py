"""Every error that this library raises, and its text.

One base, :class:`MlopsError`, and a class for each kind of thing that a caller can do something about. A class has one
or several texts, each under the word for its *case*; an error is made of a case and, by keyword, the facts that its
text names, all of them and no others. It keeps both as attributes and survives pickling. The classes stand in the order
of the floors, from words to engines.

A text says what happened, with values; what exists or was expected; what to do next; what did not change. To add one
is to add a line to ``texts`` (and one to ``tests/test_errors.py``, which also looks at every place that raises).

>>> error = NotFoundError("stage", stage="prd", stages=("dev", "staging", "prod"))
>>> print(error)
There is no stage 'prd'. The project declares dev, staging, prod. Did you mean 'prod'? Nothing was changed.
>>> error.case, error.stage
('stage', 'prd')
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from mlops_lib.wording import Template, facts_of, listed


class MlopsError(Exception):
    """Base of every error of this library. ``str(error)`` is a complete message for a person.

    Parameters
    ----------
    case : str
        Which of the class's ``texts`` it is; left out where there is only one.
    **facts
        What the text names. They are attributes of the error, and all of them its ``facts``.

    Raises
    ------
    TypeError
        For a case that the class does not have, and for facts that are missing or too many.
    """

    texts: ClassVar[Mapping[str, str]] = {}

    def __init__(self, case: str = "", /, **facts: Any) -> None:
        if case not in self.texts:
            raise TypeError(f"{type(self).__name__} has no case '{case}', but {listed(self.texts)}")
        expected = facts_of(self.texts[case])
        if facts.keys() != expected:
            raise TypeError(f"{type(self).__name__}('{case}') takes {listed(sorted(expected))}, not {listed(facts)}")
        super().__init__(case, facts)
        self.case, self.facts = case, facts
        vars(self).update(facts)

    def __str__(self) -> str:
        return Template(self.facts).format(self.texts[self.case], **self.facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), self.case, **self.facts), (), vars(self)


class NotFoundError(MlopsError):
    """A name that is not among those that exist."""

    texts: ClassVar[Mapping[str, str]] = {
        "stage": "There is no stage '{stage}'. The project declares {stages:list}.{stage:near stages} Nothing was "
        "changed.",
        "period": "There are no {table} for period '{period}' (no file '{path}'). {periods:if Ingested: %.|No period "
        "was ingested yet.}{period:near periods} Write them with 'mlops ingest'. Nothing was run.",
        "table": "There is no table '{path}'. The folder holds: {siblings:list}.{path.name:near siblings} Nothing was "
        "read or written.",
        "metric": "There is no metric '{metric}'. Known are {metrics:list}.{metric:near metrics} Nothing was computed.",
        "contract_column": "The contract has no column '{name}'. Its columns are {columns:list}.{name:near columns} "
        "The contract is unchanged.",
        "feature": "Project(slices=…) names '{column}', which is no feature. Features are "
        "{features:list}.{column:near features} Nothing was run.",
        "contract": "Version {version} of '{name}' has no contract beside its model. Train again with "
        "tracking.log_model(…, contract=infer_contract(…).to_dict()), as 02_train does. Nothing was changed.",
        "version": "There is no version '{version}' of '{name}'. Registered versions: {versions:list}. Nothing was "
        "changed.",
        "version_in_stage": "No version of '{name}' is in {stage}. Stages with a version: {filled:list}. Bring one "
        "there with 'mlops promote VERSION {stage}'. Nothing was changed.",
        "notebook": "There is no notebook '{notebook}'. The project has "
        "{notebooks:list}.{notebook.name:near notebooks} Nothing was run.",
        "parameter": "Notebook '{notebook}' has no parameter '{name}'. It declares "
        "{declared:list}.{name:near declared} Nothing was run.",
        "operated": "There is no table '{table}' of what was operated. There are {tables:list}.{table:near tables} "
        "Nothing was read.",
        "policy": "There is no policy '{policy}'. There are {policies:list}.{policy:near policies} Nothing was run.",
        "prediction": "There is no prediction '{prediction_id}' among those in '{folder}'. An id is that of the column "
        "prediction_id, such as flight-delays/3/1234. Nothing was changed.",
        "kernel": "'{notebook}' asks for kernel '{kernel}', which is not installed. Installed: "
        "{kernels:list}.{kernel:near kernels} Nothing was run.",
    }


class ReportFailedError(MlopsError):
    """A report that had to pass did not."""

    texts: ClassVar[Mapping[str, str]] = {"": "{title}: {n_failed} of {n_rows} checks failed. {failures:list 5}."}


class ProjectError(MlopsError):
    """A project that is not there, or that cannot be used as it was asked for."""

    texts: ClassVar[Mapping[str, str]] = {
        "not_found": "No project file was found. Looked at {looked_at:list}. Name one with --project FILE or "
        "MLOPS_PROJECT, or run inside the repository. Nothing was run.",
        "file": "Project file '{file}' cannot be used: {reason}. It must define one `project = Project(...)` at top "
        "level. Nothing was run.",
        "field": "Project({field}={value!r}) cannot be used: it needs {needs}. Nothing was run.",
        "not_loaded": "This project has no store: it was imported from its file, not loaded. `load_project()` returns "
        "it with the store, the actor and the secrets of this environment. Nothing was changed.",
        "clock": "MLOPS_NOW is '{text}', and a time such as 2013-06-01T00:00+00:00 is needed. Nothing was run.",
        "periods": "No period lies from '{first}' to '{last}': the first is the later one. Nothing was read.",
    }


class TableError(MlopsError):
    """A table that cannot be read, or that does not have what is asked of it."""

    texts: ClassVar[Mapping[str, str]] = {
        "file": "Table '{path}' cannot be read: {reason}. Write it again from its source; a file cut short keeps no "
        "rows. Nothing was written.",
        "address": "'{address}' names no table. Write a path, or URL::TABLE such as sqlite:////data/a.db::arrivals; an "
        "input may be URL::SELECT … too. Nothing was read or written.",
        "database": "'{name}' cannot be used: {reason}. The database, its table and the right to use it are needed. "
        "Nothing was committed.",
        "no_rows": "Table '{path}' has no rows. At least one is needed. Nothing was written.",
        "columns": "Table '{path}' lacks {missing:list}. It has {columns:list 30}.{missing[0]:near columns} Nothing "
        "was written.",
        "repeated_columns": "Table '{path}' has more than one column {columns:list}. Which one is meant cannot be "
        "told: each name is needed once. Nothing was written.",
        "times": "Column '{column}' does not say when each label became known: {reason}. A time not later than now is "
        "expected in every row. Nothing was changed.",
        "shares": "Rows cannot be dealt by the shares {shares}: each has to be above 0, and together they have to be "
        "1. Nothing was written.",
        "time": "The table cannot be split by '{column}': {reason}. Nothing was split or left out.",
    }


class WriteError(MlopsError):
    """A file that could not be written."""

    texts: ClassVar[Mapping[str, str]] = {
        "": "Cannot write '{path}': {reason}. Free space or permission in '{path.parent}' is needed. What was there "
        "before is unchanged.",
    }


class ContractError(MlopsError):
    """A table whose columns do not fit a contract, or a contract that cannot be made."""

    expected: Any
    missing: tuple[str, ...]
    duplicated: tuple[str, ...]
    texts: ClassVar[Mapping[str, str]] = {
        "columns": "The table{missing:if  lacks %}{duplicated:if {missing:if  and} has more than one %}. The contract "
        "expects each once: {expected:list}. Fix where the table is made. Nothing was scored.",
        "inference": "No contract was learnt: {subject} {reason}. Clean the training data, or leave the column out.",
        "definition": "{subject} {found}, needs {expected}. No contract was made or changed.",
        "name": "{subject} has no {what} '{name}', needs one of {names:list}.{name:near names} No contract was made or "
        "changed.",
    }


class QualityError(MlopsError):
    """Rows, labels, scores or metrics that nothing can be made of."""

    texts: ClassVar[Mapping[str, str]] = {
        "no_rows": "There are no rows in {what}. At least one is needed. Nothing was computed.",
        "columns": "The {table} lack {missing:list}. They have {columns:list}.{missing[0]:near columns} Nothing was "
        "computed.",
        "keys": "{n_duplicates} rows of the {table} repeat a key ({key:list}); the first is {first}. One key must name "
        "one row, or rows are counted twice in the join. Nothing was computed.",
        "lengths": "There are {n_true} labels but {n_score} {what}. They are compared by position, so both must come "
        "from the same rows in the same order. Nothing was computed.",
        "labels": "Labels hold {values:list 5}, but only {known} are known. Leave out rows without a label, or declare "
        "the project's task as what it is. Nothing was computed.",
        "scores": "{n_bad} of {n_rows} scores are no probabilities; the first is {first_value} at row {first_row}. "
        "Scores are finite and within [0, 1], such as model.predict_proba(X)[:, 1]. Nothing was computed.",
        "numbers": "{n_bad} of {n_rows} predictions are no finite numbers; the first is {first_value} at row "
        "{first_row}. Nothing was computed.",
        "classes": "Scores have {n_columns} columns, and the task has {n_classes} classes; one column each is needed, "
        "in the task's order. Nothing was computed.",
        "capacity": "Every threshold flags more rows than the capacity of {capacity:g} allows: at least {n_flagged} "
        "have the highest score, 1. Raise the capacity, or calibrate the model. Nothing was chosen.",
        "one_class": "All {n_rows} rows are of class {value}, so ranking metrics have nothing to compare. Use a longer "
        "period or a larger slice. Nothing was computed.",
        "metric": "Metric '{name}' is {value}, needs a finite number: MLflow would store infinity as 1.8e308, which "
        "passes every gate. No metric was logged.",
        "no_value": "Metric '{metric}' has no value on these {n_rows} rows: {reason}. Nothing was computed.",
        "no_direction": "Metric '{metric}' is best near zero, so that neither of two models is the worse one by it. "
        "Name another. Nothing was computed.",
        "function": "'{function}' of scikit-learn cannot be used by its name: {reason}. Give the project a "
        "quality.Metric of it. Nothing was computed.",
        "confidence": "No interval follows from confidence={confidence}. It lies between 0 and 1, such as 0.95. "
        "Nothing was computed.",
        "alarms": "No level follows from alarms_a_year={alarms_a_year}, periods_a_year={periods_a_year}. Both lie "
        "above 0, such as 1 and 365. Nothing was checked.",
        "profile": "Column '{column}' cannot be profiled: {reason}. No profile was built.",
    }


class TaskError(MlopsError):
    """A task that contradicts itself, or a model that is of another one."""

    texts: ClassVar[Mapping[str, str]] = {"": "{subject} {reason}. Nothing was logged or changed."}


class TooFewRowsError(QualityError):
    """Fewer rows of a class, or fewer clusters, than an interval can be trusted with."""

    n_rows: int
    what: str
    texts: ClassVar[Mapping[str, str]] = {
        "": "There are {n_rows} {what}, and an interval needs {needed}. Use a longer period or a larger slice. Nothing "
        "was computed.",
    }


class ModelFileError(MlopsError):
    """A model whose files are not the registered ones, or larger than anything this library loads."""

    texts: ClassVar[Mapping[str, str]] = {
        "unread": "{model} was not loaded: file '{file}' {reason}. Nothing of it was deserialized. Restore the file "
        "from a backup, or roll back to another version.",
        "discarded": "{model} was not loaded: file '{file}' {reason}. It was discarded unused. Restore the file from a "
        "backup, or roll back to another version.",
        "limit": "{model} was not loaded: '{file}' {what} {found:,}, the limit is {limit:,}. Nothing of it was "
        "deserialized. Make the model smaller, or raise the limit in mlops_lib/models/limits.py.",
        "no_room": "{model} was not loaded: its {needed:,} bytes do not fit into '{folder}', whose disk is full. Make "
        "room there, or name another folder in TMPDIR. The files in the store are as they were.",
    }


class ModelError(MlopsError):
    """A model that cannot be saved, trusted or registered as it is."""

    texts: ClassVar[Mapping[str, str]] = {
        "not_savable": "{model} cannot be saved with skops: {reason}. Build it from importable functions and classes, "
        "without lambdas or references to itself. Nothing was saved.",
        "types": "{model} contains types that are not on the reviewed list: {types:list}. {homeless:if Where the model "
        "is loaded nothing can import %: put what a notebook defines in an installed package, give a lambda a name "
        "there, and name that in Project(trusted_types=...).|If they belong to an installed package that you trust, "
        "name them in Project(trusted_types=...).} Nothing was saved or loaded.",
        "versions": "The types that a model may contain were not reviewed for skops {skops} with scikit-learn "
        "{sklearn}, but for {reviewed:list}. Install those, or review the new ones as mlops_lib/models/types.py "
        "describes. Nothing was saved or loaded.",
        "foreign": "'{uri}' is not adopted: {reason}. No version was made.",
        "run": "Model '{model_id}' was not registered: {reason}. Only a complete model of a run that has not failed "
        "becomes a version.",
    }


class SignatureError(MlopsError):
    """A manifest or ledger entry that no trusted key has signed, or a key that cannot be used."""

    texts: ClassVar[Mapping[str, str]] = {
        "untrusted": "{subject} {reason}. This project trusts only what a key of Project(trusted_keys=...) or of "
        "MLOPS_TRUSTED_KEYS has signed. Have it logged again by somebody who has such a key, or add the key that it "
        "was signed with. Nothing was loaded or changed.",
        "key": "'{path}' {reason}. 'mlops keys FOLDER' makes a pair; MLOPS_SIGNING_KEY names a private key, "
        "MLOPS_TRUSTED_KEYS a folder of public ones (*.pub). Nothing was signed or changed.",
    }


class StoreError(MlopsError):
    """A tracking server or database that does not answer, or not as it should."""

    texts: ClassVar[Mapping[str, str]] = {
        "unreachable": "Cannot reach the MLflow store at '{uri}' ({reason}). Start it, or unset MLFLOW_TRACKING_URI to "
        "use the project's own mlflow.db. Nothing was changed.",
        "midway": "The MLflow store at '{uri}' failed in the middle ({reason}). What it had confirmed stands and the "
        "next command completes it: look at 'mlops history' before you repeat this one.",
        "permission": "The MLflow server at '{uri}' does not let this account do that ({reason}). Ask whoever runs it "
        "for EDIT on the model and its experiments (docs/team-server.md). 'mlops history' says what stands.",
        "read_only": "The MLflow store '{uri}' is read-only for this user. Make the file and its folder writable, or "
        "set MLFLOW_TRACKING_URI to a store that is. Nothing was changed.",
        "missing": "There is no MLflow store at '{uri}' yet: nothing was run or registered there. The first run "
        "makes it ('mlops run'). Nothing was created.",
        "moved": "The artifacts of the MLflow store '{uri}' were in '{location}', which is gone: the store's folder "
        "was moved. 'mlops verify --repair' finds them beside it. Nothing was run.",
        "deleted": "Experiment '{name}' of the MLflow store at '{uri}' has been deleted. Restore it with "
        "'MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {experiment_id}', or give the project "
        "another name. Nothing was run.",
        "broken": "The MLflow store '{uri}' cannot be used: {reason}. Restore it from a backup, or move it away: after "
        "`mv {path} {path}.broken` the next command makes a fresh one. Nothing was changed.",
    }


class RefusedError(MlopsError):
    """A move of a version or a stage that is answered with no."""

    texts: ClassVar[Mapping[str, str]] = {
        "promotion": "Version {version} of '{name}' was not promoted to {stage}: {reason}. {stage} {current:if still "
        "has version %|is still empty}.",
        "rollback": "{stage} of '{name}' was not rolled back: {reason}. It {current:if still has version %|is still "
        "empty}.",
        "freeze": "{action} {stage} of '{name}' was refused: {reason}. Nothing was changed.",
        "approval": "Version {version} of '{name}' was not approved for {stage}: {reason}. Nothing was changed.",
        "deletion": "Version {version} of '{name}' was not deleted: {reason}. It is still there.",
        "head_moved": "{action} of '{name}' was not made: somebody else moved first ({winner}). Look at 'mlops "
        "history' and decide again. Nothing was changed by this call.",
    }


class LedgerError(MlopsError):
    """A ledger that is not intact, or that cannot be written or asked like that."""

    texts: ClassVar[Mapping[str, str]] = {
        "broken": "The ledger of '{name}' is not intact: entry {entry} {reason}. No stage was moved and none will be "
        "until it is restored from a backup.",
        "missing": "The ledger of '{name}' lacks entry {entry}, which was seen in this store at {seen_at}: it was put "
        "back, cut off or made anew. Restore it from a backup; if that was meant, delete '{path}'. Nothing was "
        "changed.",
        "old": "The ledger of '{name}' is not in two runs (its claim names {n_runs}): it was written by an earlier "
        "version of this library, or edited. Register the models anew, in another store or under another name. Nothing "
        "was changed.",
        "clock": "This machine's clock is {minutes} minutes ahead of the store's ({limit} are allowed), and all later "
        "entries would bear that time. Set the clock. Nothing was changed.",
        "unseen": "The {word} '{text}' has control characters, which would write over what a terminal shows. Leave "
        "them out. Nothing was changed.",
        "long_reason": "The reason, with who acts, takes {n_characters} characters as JSON, the ledger keeps {limit}. "
        "Shorten it and keep the long form in the run. Nothing was changed.",
        "naive_time": "The time '{time}' has no zone, so it names no moment. Write it with one, such as "
        "2026-11-01T12:00Z or 2026-11-01T12:00+01:00. Nothing was looked up.",
    }


class GateError(MlopsError):
    """A gate or a comparison that cannot be made."""

    texts: ClassVar[Mapping[str, str]] = {
        "source": "'{function}' cannot be the change of a gate: {reason}. A verdict is bound to the source of this "
        "function, so write it with 'def' at the top level of a file or cell. No gate was made.",
        "changed_rows": "The rows changed by '{function}' cannot be judged: {reason}. It returns the rows that it can "
        "change, with their index, and within the contract. Nothing was computed.",
        "same_version": "'{first}' and '{second}' are both version {version} of '{name}'. Name two versions, or stages "
        "that hold different ones. Nothing was compared.",
    }


class ParameterError(MlopsError):
    """A parameters cell that is no signature, or a value that a notebook is not given."""

    reason: str
    expected: str
    texts: ClassVar[Mapping[str, str]] = {
        "cell": "The parameters cell of '{notebook}' cannot be used: {reason}; expected {expected}. Nothing was run.",
        "value": "Parameter '{name}' of notebook '{notebook}' is {value!r}, needs {annotation} ({reason}). Nothing was "
        "run.",
        "secret": "Parameter '{name}' of notebook '{notebook}' looks like a secret, and parameters are written into "
        "notebook, report and store. Use an environment variable. Nothing was run.",
    }


class SurveyError(MlopsError):
    """A table that no project can be made of as it was asked for, or a place where none can be written."""

    texts: ClassVar[Mapping[str, str]] = {
        "folder": "'{folder}' {reason}. A new project needs a folder that is empty or not there yet. Nothing was "
        "written.",
        "rows": "{n_rows} rows have a '{target}', and {minimum} are needed to train on some and judge on others. "
        "Nothing was written.",
        "target": "'{target}' cannot be predicted as it is: {reason}. Name another column with --target, or what is "
        "asked with --task binary, multiclass or regression. Nothing was written.",
        "time": "'{column}' says no row's time: {reason}. Dates are needed in every row, such as 2013-04-30. Leave out "
        "--time to have rows dealt by their key. Nothing was written.",
        "keys": "{keys:list} does not identify a row: {n_again} rows have the key of another one, {n_null} have none. "
        "Name further columns with --key, or leave it out to have a key made. Nothing was written.",
        "features": "No column is left to predict '{target}' from. Left out were {left_out:list}. Nothing was written.",
    }


class NotebookError(MlopsError):
    """A notebook that cannot be run, or that did not run to its end."""

    texts: ClassVar[Mapping[str, str]] = {
        "file": "'{notebook}' is not a notebook that can be run: {reason}. Nothing was run.",
        "cell": "Cell {cell} of {n_cells} in '{notebook}' failed after {duration_s} s: {ename}: {evalue}{line:if  "
        "(line {line_number}: %)}. Executed copy: {executed_path}",
        "nothing_raised": "Cell {cell} of {n_cells} in '{notebook}' has the tag 'raises-exception' and raised nothing. "
        "Its run is FAILED. Executed copy: {executed_path}",
        "kernel_died": "The kernel died in cell {cell} of {n_cells} of '{notebook}' ({ended}, peak memory "
        "{peak_memory_mb} MB).{last_line:if  Its last words: %.} Later cells did not run. Executed copy: "
        "{executed_path}",
        "deadline": "'{notebook}' was stopped at its deadline of {timeout_s:g} s, in cell {cell} of {n_cells}. Later "
        "cells did not run. Executed copy: {executed_path}",
        "ended_early": "'{notebook}' ended early: {n_skipped} cells from cell {cell} of {n_cells} on never ran (did a "
        "cell call exit()?). Its run is FAILED. Executed copy: {executed_path}",
        "result": "Result '{name}' is a {type_name}, needs a number, text, list or dict without NaN. Log tables and "
        "models as artifacts. No result was recorded.",
        "several": "{n_failed} of {n_notebooks} notebooks failed: {failed:list 100}. What stopped each is told above "
        "and on its run. The others have finished.",
        "grid": "'{notebook}' cannot be swept: {reason}, needs {expected}. Nothing was run.",
        "sweep_running": "This sweep of '{notebook}' ({n_trials} trials) is already running in another process. Wait "
        "for it, or end it and start again: trials that have finished are not run twice. Nothing was run.",
        "local_store": "The store '{tracking_uri}' is a file, which trials on other machines cannot share. Set "
        "MLFLOW_TRACKING_URI to a server (ci/server starts one). Nothing was run.",
    }


class NotebookStoppedError(NotebookError):
    """A notebook that somebody stopped; its run is KILLED."""

    texts: ClassVar[Mapping[str, str]] = {
        "": "'{notebook}' was stopped by {signal} in cell {cell} of {n_cells}. Later cells did not run; its run is "
        "KILLED. Executed copy: {executed_path}",
    }


class BatchError(MlopsError):
    """A batch that was not scored."""

    texts: ClassVar[Mapping[str, str]] = {
        "bad_rows": "'{path}' was not scored: {n_bad} of {n_rows} rows break the contract, more than the "
        "{max_bad_share:.0%} it allows. Broken most: {rules:list 5}. Mend the table at its source, or loosen the "
        "contract in the project file and train again. Nothing was written.",
        "bad_table": "'{path}' was not scored: as a whole it breaks the contract. {failures:list 5}. Mend the table at "
        "its source, or loosen the contract in the project file and train again. Nothing was written.",
        "input_changed": "'{path}' changed while it was being scored, so that no one table belongs to these scores. "
        "Score it again when it is complete; write it under another name and rename it. Nothing was written.",
        "output": "Nothing was scored to '{path}': {reason}. Name another output. What is there is as it was.",
        "one_output": "Versions {versions:list} cannot all be scored to '{output}'. Write {{version}} where the number "
        "goes, such as scores/{{version}}.parquet, or name a SQL table, which takes all. Nothing was scored.",
    }


class OperateError(MlopsError):
    """A tick or a replay that cannot begin."""

    texts: ClassVar[Mapping[str, str]] = {
        "running": "Another tick is running: {holder}. It holds '{path}' until it ends, or dies. Nothing was changed.",
        "clock": "It is {now} here, and the last tick was at {last}: the clock has gone back. Set it right; ticks of "
        "the past are for 'mlops replay'. Nothing was changed.",
        "record": "The record '{path}' cannot be read: {reason}. Move it away to forget the tick. Nothing was changed.",
        "replay": "The past cannot be replayed: {reason}. Nothing was run.",
    }


class SparkError(MlopsError):
    """Spark is missing, out of reach, or failed."""

    texts: ClassVar[Mapping[str, str]] = {
        "": "Spark ('{master}') did not do it: {reason}. It needs 'mlops-lib[spark]' here and on every executor, and a "
        "Java 17 (ci/setup-spark installs both). Without --on, this machine does it. No output was written.",
    }


class ServiceError(MlopsError):
    """A service that cannot start, or cannot answer; its text has not a word of a request's rows."""

    texts: ClassVar[Mapping[str, str]] = {
        "host": "Nothing can listen on port {port} of '{host}': {reason}. Name an address of this machine, such as "
        "127.0.0.1, and a port that this user may open. Nothing was started.",
        "port": "Port {port} on {host} is taken. Name another with --port. Nothing was started.",
        "payload": "The request cannot be read: {reason}. Send a JSON object with exactly one of {forms:list}. Nothing "
        "was scored.",
        "prediction": "Version {version} gave a prediction that is no finite number. No prediction was returned. If it "
        "goes on, roll the stage back.",
        "contract": "Version {version} does not take the rows that version {served} takes ({reasons}). Version "
        "{served} goes on answering. Roll the stage back, or restart the service once its callers have changed.",
    }


class NotExactError(MlopsError):
    """A part of a pipeline that has no exact scorer in plain Python."""

    texts: ClassVar[Mapping[str, str]] = {
        "": "There is no exact scorer for {what}: {supported}. The pipeline itself is used.",
    }


class WarmKernelError(MlopsError):
    """A kernel, or a command, that could not be forked or whose server has ended. Who asks does without."""

    texts: ClassVar[Mapping[str, str]] = {
        "fork": "No warm kernel: {reason}.",
        "later": "No warm kernel: its server is only getting ready.",
        "folder": "The folder for kernel sockets '{path}' {reason}. Set MLOPS_RUNTIME_DIR to a folder of your own. No "
        "warm kernel was started or stopped.",
        "command": "The warm server that ran '{command}' has ended, and the command with it. What it had written by "
        "then stays; look before you give it again. MLOPS_WARM=0 runs commands without the server.",
    }
