"""Every message, word for word: what a person reads when something is refused."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_lib import errors, wording

# Made with facts as the library gives them, beside the text that a person gets.
MESSAGES: list[tuple[errors.MlopsError, str]] = [
    (
        errors.ReportFailedError(
            title="Gates", n_failed=1, n_rows=5, failures=("test_roc_auc is 0.671, needs >= 0.680",)
        ),
        "Gates: 1 of 5 checks failed. test_roc_auc is 0.671, needs >= 0.680.",
    ),
    (
        errors.ProjectError("not_found", looked_at=(Path("/a/notebooks/project.py"), Path("/notebooks/project.py"))),
        "No project file was found. Looked at /a/notebooks/project.py, /notebooks/project.py. Name one with "
        "--project FILE or MLOPS_PROJECT, or run inside the repository. Nothing was run.",
    ),
    (
        errors.ProjectError("file", file=Path("project.py"), reason="it defines no `project`"),
        "Project file 'project.py' cannot be used: it defines no `project`. It must define one `project = "
        "Project(...)` at top level. Nothing was run.",
    ),
    (
        errors.ProjectError("not_loaded"),
        "This project has no store: it was imported from its file, not loaded. `load_project()` returns it with the "
        "store, the actor and the secrets of this environment. Nothing was changed.",
    ),
    (
        errors.NotFoundError("stage", stage="prd", stages=("dev", "staging", "prod")),
        "There is no stage 'prd'. The project declares dev, staging, prod. Did you mean 'prod'? Nothing was changed.",
    ),
    (
        errors.NotFoundError(
            "period",
            period="2013-13",
            table="arrivals",
            periods=("2013-01", "2013-02"),
            path=Path("data/2013-13.parquet"),
        ),
        "There are no arrivals for period '2013-13' (no file 'data/2013-13.parquet'). Ingested: 2013-01, 2013-02."
        " Did you mean '2013-01'? Write them with 'mlops ingest'. Nothing was run.",
    ),
    (
        errors.NotFoundError("period", period="2013-13", table="labels", periods=(), path=Path("data/2013-13.parquet")),
        "There are no labels for period '2013-13' (no file 'data/2013-13.parquet'). No period was ingested yet. "
        "Write them with 'mlops ingest'. Nothing was run.",
    ),
    (
        errors.ProjectError("periods", first="2013-10", last="2013-01"),
        "No period lies from '2013-10' to '2013-01': the first is the later one. Nothing was read.",
    ),
    (
        errors.NotFoundError("table", path=Path("data/may.parquet"), siblings=("may-1.parquet", "june.parquet")),
        "There is no table 'data/may.parquet'. The folder holds: may-1.parquet, june.parquet. Did you mean "
        "'may-1.parquet'? Nothing was read or written.",
    ),
    (
        errors.TableError("file", path=Path("data/may.parquet"), reason="Parquet magic bytes not found in footer"),
        "Table 'data/may.parquet' cannot be read: Parquet magic bytes not found in footer. Write it again from "
        "its source; a file cut short keeps no rows. Nothing was written.",
    ),
    (
        errors.TableError("no_rows", path=Path("data/may.parquet")),
        "Table 'data/may.parquet' has no rows. At least one is needed. Nothing was written.",
    ),
    (
        errors.TableError("columns", path=Path("data/may.parquet"), missing=("is_late",), columns=("id", "late")),
        "Table 'data/may.parquet' lacks is_late. It has id, late. Did you mean 'late'? Nothing was written.",
    ),
    (
        errors.WriteError(path=Path("data/may.parquet"), reason="No space left on device"),
        "Cannot write 'data/may.parquet': No space left on device. Free space or permission in 'data' is needed. "
        "What was there before is unchanged.",
    ),
    (
        errors.QualityError("capacity", capacity=0.1, n_flagged=30),
        "Every threshold flags more rows than the capacity of 0.1 allows: at least 30 have the highest score, 1. Raise "
        "the capacity, or calibrate the model. Nothing was chosen.",
    ),
    (
        errors.ModelError("foreign", uri="models:/old/3", reason="it has the flavors pytorch, and 'sklearn' is needed"),
        "'models:/old/3' is not adopted: it has the flavors pytorch, and 'sklearn' is needed. No version was made.",
    ),
    (
        errors.SurveyError("folder", folder=Path("churn"), reason="holds 3 files"),
        "'churn' holds 3 files. A new project needs a folder that is empty or not there yet. Nothing was written.",
    ),
    (
        errors.SurveyError("rows", n_rows=12, target="churned", minimum=150),
        "12 rows have a 'churned', and 150 are needed to train on some and judge on others. Nothing was written.",
    ),
    (
        errors.SurveyError("target", target="name", reason="812 different values that are no numbers"),
        "'name' cannot be predicted as it is: 812 different values that are no numbers. Name another column with "
        "--target, or what is asked with --task binary, multiclass or regression. Nothing was written.",
    ),
    (
        errors.SurveyError("time", column="seen", reason="2.0% of its rows are empty"),
        "'seen' says no row's time: 2.0% of its rows are empty. Dates are needed in every row, such as 2013-04-30. "
        "Leave out --time to have rows dealt by their key. Nothing was written.",
    ),
    (
        errors.SurveyError("keys", keys=("name", "day"), n_again=3, n_null=1),
        "name, day does not identify a row: 3 rows have the key of another one, 1 have none. Name further columns with "
        "--key, or leave it out to have a key made. Nothing was written.",
    ),
    (
        errors.SurveyError("features", target="churned", left_out=("id", "note")),
        "No column is left to predict 'churned' from. Left out were id, note. Nothing was written.",
    ),
    (
        errors.TableError("shares", shares="train 0.5"),
        "Rows cannot be dealt by the shares train 0.5: each has to be above 0, and together they have to be 1. "
        "Nothing was written.",
    ),
    (
        errors.TableError("time", column="departs", reason="1 of 100 rows have no time"),
        "The table cannot be split by 'departs': 1 of 100 rows have no time. Nothing was split or left out.",
    ),
    (
        errors.StoreError("permission", uri="http://127.0.0.1:5000", reason="Permission denied"),
        "The MLflow server at 'http://127.0.0.1:5000' does not let this account do that (Permission denied). Ask "
        "whoever runs it for EDIT on the model and its experiments (docs/team-server.md). 'mlops history' says what "
        "stands.",
    ),
    (
        errors.StoreError("unreachable", uri="http://127.0.0.1:5000", reason="Connection refused"),
        "Cannot reach the MLflow store at 'http://127.0.0.1:5000' (Connection refused). Start it, or unset "
        "MLFLOW_TRACKING_URI to use the project's own mlflow.db. Nothing was changed.",
    ),
    (
        errors.StoreError(
            "broken",
            path="/a/mlflow.db",
            uri="sqlite:////a/mlflow.db",
            reason="it is a SQLite file but not an MLflow store",
        ),
        "The MLflow store 'sqlite:////a/mlflow.db' cannot be used: it is a SQLite file but not an MLflow store. "
        "Restore it from a backup, or move it away: after `mv /a/mlflow.db /a/mlflow.db.broken` the next command makes "
        "a fresh one. Nothing was changed.",
    ),
    (
        errors.StoreError("read_only", uri="sqlite:////a/mlflow.db"),
        "The MLflow store 'sqlite:////a/mlflow.db' is read-only for this user. Make the file and its folder "
        "writable, or set MLFLOW_TRACKING_URI to a store that is. Nothing was changed.",
    ),
    (
        errors.ModelFileError("unread", model="Version 7 of 'toy'", file="model.skops", reason="is missing"),
        "Version 7 of 'toy' was not loaded: file 'model.skops' is missing. Nothing of it was deserialized. "
        "Restore the file from a backup, or roll back to another version.",
    ),
    (
        errors.ModelFileError(
            "discarded", model="Version 7 of 'toy'", file="model.skops", reason="does not give its stored predictions"
        ),
        "Version 7 of 'toy' was not loaded: file 'model.skops' does not give its stored predictions. It was "
        "discarded unused. Restore the file from a backup, or roll back to another version.",
    ),
    (
        errors.ModelError("types", model="The model", types=("mine.Model",), homeless=()),
        "The model contains types that are not on the reviewed list: mine.Model. If they belong to an installed "
        "package that you trust, name them in Project(trusted_types=...). Nothing was saved or loaded.",
    ),
    (
        errors.ModelFileError(
            "limit",
            model="Version 7 of 'toy'",
            file="model.skops",
            what="inflates to bytes:",
            found=3 << 30,
            limit=2 << 30,
        ),
        "Version 7 of 'toy' was not loaded: 'model.skops' inflates to bytes: 3,221,225,472, the limit is "
        "2,147,483,648. Nothing of it was deserialized. Make the model smaller, or raise the limit in "
        "mlops_lib/models/limits.py.",
    ),
    (
        errors.ModelFileError("no_room", model="Version 7 of 'toy'", needed=123_456, folder=Path("/tmp")),
        "Version 7 of 'toy' was not loaded: its 123,456 bytes do not fit into '/tmp', whose disk is full. Make room "
        "there, or name another folder in TMPDIR. The files in the store are as they were.",
    ),
    (
        errors.ModelError(
            "types",
            model="The model",
            types=("__main__.Scale", "mine.<lambda>", "mine.Model"),
            homeless=("__main__.Scale", "mine.<lambda>"),
        ),
        "The model contains types that are not on the reviewed list: __main__.Scale, mine.<lambda>, mine.Model. Where "
        "the model is loaded nothing can import __main__.Scale, mine.<lambda>: put what a notebook defines in an "
        "installed package, give a lambda a name there, and name that in Project(trusted_types=...). "
        "Nothing was saved or loaded.",
    ),
    (
        errors.ModelError(
            "versions", skops="0.17.0", sklearn="1.9.1", reviewed=("skops 0.16.0 with scikit-learn 1.9",)
        ),
        "The types that a model may contain were not reviewed for skops 0.17.0 with scikit-learn 1.9.1, but for skops "
        "0.16.0 with scikit-learn 1.9. Install those, or review the new ones as mlops_lib/models/types.py "
        "describes. Nothing was saved or loaded.",
    ),
    (
        errors.ModelError("not_savable", model="The model", reason="it refers to itself"),
        "The model cannot be saved with skops: it refers to itself. Build it from importable functions and classes, "
        "without lambdas or references to itself. Nothing was saved.",
    ),
    (
        errors.NotExactError(what="PCA", supported="transformers are Pipeline, ColumnTransformer"),
        "There is no exact scorer for PCA: transformers are Pipeline, ColumnTransformer. The pipeline itself is used.",
    ),
    (
        errors.SignatureError("key", path=Path("/keys/signing.key"), reason="is no Ed25519 key"),
        "'/keys/signing.key' is no Ed25519 key. 'mlops keys FOLDER' makes a pair; MLOPS_SIGNING_KEY names a private "
        "key, MLOPS_TRUSTED_KEYS a folder of public ones (*.pub). Nothing was signed or changed.",
    ),
    (
        errors.SignatureError("untrusted", subject="Version 7 of 'toy'", reason="has no signature"),
        "Version 7 of 'toy' has no signature. This project trusts only what a key of Project(trusted_keys=...) or of "
        "MLOPS_TRUSTED_KEYS has signed. Have it logged again by somebody who has such a key, or add the key that it "
        "was signed with. Nothing was loaded or changed.",
    ),
    (
        errors.QualityError("metric", name="test_roc_auc", value=float("inf")),
        "Metric 'test_roc_auc' is inf, needs a finite number: MLflow would store infinity as 1.8e308, which "
        "passes every gate. No metric was logged.",
    ),
    (
        errors.NotFoundError("version", name="toy", version="9", versions=(1, 2, 3)),
        "There is no version '9' of 'toy'. Registered versions: 1, 2, 3. Nothing was changed.",
    ),
    (
        errors.NotFoundError("version_in_stage", name="toy", stage="prod", filled=("dev",)),
        "No version of 'toy' is in prod. Stages with a version: dev. Bring one there with 'mlops promote VERSION "
        "prod'. Nothing was changed.",
    ),
    (
        errors.GateError("same_version", name="toy", version=7, first="staging", second="7"),
        "'staging' and '7' are both version 7 of 'toy'. Name two versions, or stages that hold different ones. "
        "Nothing was compared.",
    ),
    (
        errors.RefusedError("promotion", name="toy", version=7, stage="prod", reason="1 of 5 gates failed", current=6),
        "Version 7 of 'toy' was not promoted to prod: 1 of 5 gates failed. prod still has version 6.",
    ),
    (
        errors.RefusedError(
            "rollback", name="toy", stage="prod", reason="it has never had another version", current=None
        ),
        "prod of 'toy' was not rolled back: it has never had another version. It is still empty.",
    ),
    (
        errors.RefusedError(
            "promotion", name="toy", version=7, stage="prod", reason="it is there already", current=None
        ),
        "Version 7 of 'toy' was not promoted to prod: it is there already. prod is still empty.",
    ),
    (
        errors.RefusedError("rollback", name="toy", stage="prod", reason="it never had version 9; it had 6", current=7),
        "prod of 'toy' was not rolled back: it never had version 9; it had 6. It still has version 7.",
    ),
    (
        errors.StoreError("midway", uri="http://127.0.0.1:5000", reason="connection refused"),
        "The MLflow store at 'http://127.0.0.1:5000' failed in the middle (connection refused). What it had confirmed "
        "stands and the next command completes it: look at 'mlops history' before you repeat this one.",
    ),
    (
        errors.RefusedError("freeze", name="flight-delays", stage="prod", action="unfreeze", reason="it is not frozen"),
        "unfreeze prod of 'flight-delays' was refused: it is not frozen. Nothing was changed.",
    ),
    (
        errors.RefusedError("approval", name="flight-delays", version=7, stage="prod", reason="ada is its author"),
        "Version 7 of 'flight-delays' was not approved for prod: ada is its author. Nothing was changed.",
    ),
    (
        errors.RefusedError("deletion", name="flight-delays", version=7, reason="prod has it"),
        "Version 7 of 'flight-delays' was not deleted: prod has it. It is still there.",
    ),
    (
        errors.LedgerError("naive_time", time="2026-11-01 12:00:00"),
        "The time '2026-11-01 12:00:00' has no zone, so it names no moment. Write it with one, such as "
        "2026-11-01T12:00Z or 2026-11-01T12:00+01:00. Nothing was looked up.",
    ),
    (
        errors.RefusedError(
            "head_moved", name="toy", action="promote to prod", winner="#4 promote prod → version 3 by bob at noon"
        ),
        "promote to prod of 'toy' was not made: somebody else moved first (#4 promote prod → version 3 by bob at "
        "noon). Look at 'mlops history' and decide again. Nothing was changed by this call.",
    ),
    (
        errors.LedgerError("long_reason", n_characters=6000, limit=4000),
        "The reason, with who acts, takes 6000 characters as JSON, the ledger keeps 4000. Shorten it and keep the long "
        "form in the run. Nothing was changed.",
    ),
    (
        errors.LedgerError("missing", name="toy", entry="r3", seen_at="2026-11-01T12:00:00+00:00", path="/s/a.json"),
        "The ledger of 'toy' lacks entry r3, which was seen in this store at 2026-11-01T12:00:00+00:00: it was put "
        "back, cut off or made anew. Restore it from a backup; if that was meant, delete '/s/a.json'. Nothing was "
        "changed.",
    ),
    (
        errors.LedgerError("old", name="toy", n_runs=1),
        "The ledger of 'toy' is not in two runs (its claim names 1): it was written by an earlier version of this "
        "library, or edited. Register the models anew, in another store or under another name. Nothing was changed.",
    ),
    (
        errors.LedgerError("clock", minutes=180, limit=10),
        "This machine's clock is 180 minutes ahead of the store's (10 are allowed), and all later entries would bear "
        "that time. Set the clock. Nothing was changed.",
    ),
    (
        errors.LedgerError("unseen", word="reason", text="fine\\r"),
        "The reason 'fine\\r' has control characters, which would write over what a terminal shows. Leave them out. "
        "Nothing was changed.",
    ),
    (
        errors.StoreError("missing", uri="sqlite:////srv/mlflow.db"),
        "There is no MLflow store at 'sqlite:////srv/mlflow.db' yet: nothing was run or registered there. The first "
        "run makes it ('mlops run'). Nothing was created.",
    ),
    (
        errors.StoreError("moved", uri="sqlite:////srv/mlflow.db", location="file:///old/mlartifacts"),
        "The artifacts of the MLflow store 'sqlite:////srv/mlflow.db' were in 'file:///old/mlartifacts', which is "
        "gone: the store's folder was moved. 'mlops verify --repair' finds them beside it. Nothing was run.",
    ),
    (
        errors.LedgerError("broken", name="toy", entry=3, reason="does not follow from the entry before it"),
        "The ledger of 'toy' is not intact: entry 3 does not follow from the entry before it. No stage was moved "
        "and none will be until it is restored from a backup.",
    ),
    (
        errors.ModelError("run", model_id="m-1", reason="it is PENDING, not READY"),
        "Model 'm-1' was not registered: it is PENDING, not READY. Only a complete model of a run that has not "
        "failed becomes a version.",
    ),
    (
        errors.BatchError(
            "bad_rows",
            path=Path("may.parquet"),
            n_bad=30,
            n_rows=100,
            max_bad_share=0.05,
            rules=["color.type (29)", "size.missing (1)"],
        ),
        "'may.parquet' was not scored: 30 of 100 rows break the contract, more than the 5% it allows. Broken "
        "most: color.type (29), size.missing (1). Mend the table at its source, or loosen the contract in the "
        "project file and train again. Nothing was written.",
    ),
    (
        errors.BatchError(
            "bad_table",
            path=Path("may.parquet"),
            failures=("size.scale: large values are about 100, were 10 in training",),
        ),
        "'may.parquet' was not scored: as a whole it breaks the contract. size.scale: large values are about 100, were "
        "10 in training. Mend the table at its source, or loosen the contract in the project file and train again. "
        "Nothing was written.",
    ),
    (
        errors.BatchError("output", path=Path("out.parquet"), reason="it was not written by a finished batch"),
        "Nothing was scored to 'out.parquet': it was not written by a finished batch. Name another output. What "
        "is there is as it was.",
    ),
    (
        errors.BatchError("input_changed", path=Path("may.parquet")),
        "'may.parquet' changed while it was being scored, so that no one table belongs to these scores. Score it again "
        "when it is complete; write it under another name and rename it. Nothing was written.",
    ),
    (
        errors.TableError("repeated_columns", path=Path("may.parquet"), columns=("size", "color")),
        "Table 'may.parquet' has more than one column size, color. Which one is meant cannot be told: each name is "
        "needed once. Nothing was written.",
    ),
    (
        errors.TableError("address", address="sqlite:////data/a.db"),
        "'sqlite:////data/a.db' names no table. Write a path, or URL::TABLE such as sqlite:////data/a.db::arrivals; an "
        "input may be URL::SELECT … too. Nothing was read or written.",
    ),
    (
        errors.TableError("database", name="sqlite:////data/a.db::arrivals", reason="no such table: arrivals"),
        "'sqlite:////data/a.db::arrivals' cannot be used: no such table: arrivals. The database, its table and the "
        "right to use it are needed. Nothing was committed.",
    ),
    (
        errors.NotebookError("local_store", tracking_uri="sqlite:////home/ada/mlflow.db"),
        "The store 'sqlite:////home/ada/mlflow.db' is a file, which trials on other machines cannot share. Set "
        "MLFLOW_TRACKING_URI to a server (ci/server starts one). Nothing was run.",
    ),
    (
        errors.SparkError(master="local[2]", reason="it is not installed (No module named 'pyspark')"),
        "Spark ('local[2]') did not do it: it is not installed (No module named 'pyspark'). It needs "
        "'mlops-lib[spark]' here and on every executor, and a Java 17 (ci/setup-spark installs both). Without --on, "
        "this machine does it. No output was written.",
    ),
    (
        errors.BatchError("one_output", output="scores.parquet", versions=(3, 4)),
        "Versions 3, 4 cannot all be scored to 'scores.parquet'. Write {version} where the number goes, such as "
        "scores/{version}.parquet, or name a SQL table, which takes all. Nothing was scored.",
    ),
    (
        errors.NotFoundError("notebook", notebook=Path("02_tran"), notebooks=("01_explore.ipynb", "02_train.ipynb")),
        "There is no notebook '02_tran'. The project has 01_explore.ipynb, 02_train.ipynb. Did you mean "
        "'02_train.ipynb'? Nothing was run.",
    ),
    (
        errors.NotebookError("file", notebook=Path("a.ipynb"), reason="it is no JSON"),
        "'a.ipynb' is not a notebook that can be run: it is no JSON. Nothing was run.",
    ),
    (
        errors.ParameterError("cell", notebook=Path("a.ipynb"), reason="line 2 is a call", expected="literals"),
        "The parameters cell of 'a.ipynb' cannot be used: line 2 is a call; expected literals. Nothing was run.",
    ),
    (
        errors.NotFoundError(
            "parameter", notebook=Path("a.ipynb"), name="n_estimator", declared=("train_until", "n_estimators")
        ),
        "Notebook 'a.ipynb' has no parameter 'n_estimator'. It declares train_until, n_estimators. Did you mean "
        "'n_estimators'? Nothing was run.",
    ),
    (
        errors.ParameterError(
            "value",
            notebook=Path("a.ipynb"),
            name="n_estimators",
            annotation="int",
            value="ten",
            reason="not a whole number",
        ),
        "Parameter 'n_estimators' of notebook 'a.ipynb' is 'ten', needs int (not a whole number). Nothing was run.",
    ),
    (
        errors.ParameterError("secret", notebook=Path("a.ipynb"), name="api_token"),
        "Parameter 'api_token' of notebook 'a.ipynb' looks like a secret, and parameters are written into "
        "notebook, report and store. Use an environment variable. Nothing was run.",
    ),
    (
        errors.NotebookError(
            "grid", notebook=Path("a.ipynb"), reason="the grid is empty", expected="at least one value"
        ),
        "'a.ipynb' cannot be swept: the grid is empty, needs at least one value. Nothing was run.",
    ),
    (
        errors.NotebookError("several", failed=("a.ipynb", "b.ipynb"), n_failed=2, n_notebooks=12),
        "2 of 12 notebooks failed: a.ipynb, b.ipynb. What stopped each is told above and on its run. The others have "
        "finished.",
    ),
    (
        errors.NotebookError("sweep_running", notebook=Path("a.ipynb"), n_trials=6),
        "This sweep of 'a.ipynb' (6 trials) is already running in another process. Wait for it, or end it and start "
        "again: trials that have finished are not run twice. Nothing was run.",
    ),
    (
        errors.NotebookError("result", name="table", type_name="DataFrame"),
        "Result 'table' is a DataFrame, needs a number, text, list or dict without NaN. Log tables and models as "
        "artifacts. No result was recorded.",
    ),
    (
        errors.NotebookError(
            "cell",
            notebook=Path("a.ipynb"),
            cell=7,
            n_cells=14,
            duration_s=12.4,
            ename="ValueError",
            evalue="Input X contains NaN",
            line_number=3,
            line="model.fit(X, y)",
            executed_path=Path("runs/a.ipynb"),
        ),
        "Cell 7 of 14 in 'a.ipynb' failed after 12.4 s: ValueError: Input X contains NaN (line 3: model.fit(X, "
        "y)). Executed copy: runs/a.ipynb",
    ),
    (
        errors.NotebookError(
            "kernel_died",
            notebook=Path("a.ipynb"),
            cell=7,
            n_cells=14,
            ended="SIGKILL",
            peak_memory_mb=512,
            last_line="Killed",
            executed_path=Path("runs/a.ipynb"),
        ),
        "The kernel died in cell 7 of 14 of 'a.ipynb' (SIGKILL, peak memory 512 MB). Its last words: Killed. "
        "Later cells did not run. Executed copy: runs/a.ipynb",
    ),
    (
        errors.NotFoundError("operated", table="qualty", tables=("quality", "drift", "labels", "ticks")),
        "There is no table 'qualty' of what was operated. There are quality, drift, labels, ticks. Did you mean "
        "'quality'? Nothing was read.",
    ),
    (
        errors.NotFoundError("policy", policy="montly", policies=("never", "monthly")),
        "There is no policy 'montly'. There are never, monthly. Did you mean 'monthly'? Nothing was run.",
    ),
    (
        errors.NotFoundError("prediction", prediction_id="toy/1/9", folder="data/{period}.parquet"),
        "There is no prediction 'toy/1/9' among those in 'data/{period}.parquet'. An id is that of the column "
        "prediction_id, such as flight-delays/3/1234. Nothing was changed.",
    ),
    (
        errors.OperateError("running", holder="process 7, since 2026-11-27 10:00", path=Path("data/operate/lock")),
        "Another tick is running: process 7, since 2026-11-27 10:00. It holds 'data/operate/lock' until it ends, or "
        "dies. Nothing was changed.",
    ),
    (
        errors.OperateError("clock", now="2013-05-01", last="2013-06-01"),
        "It is 2013-05-01 here, and the last tick was at 2013-06-01: the clock has gone back. Set it right; ticks of "
        "the past are for 'mlops replay'. Nothing was changed.",
    ),
    (
        errors.OperateError("record", path=Path("records/000001.json"), reason="Expecting value"),
        "The record 'records/000001.json' cannot be read: Expecting value. Move it away to forget the tick. Nothing "
        "was changed.",
    ),
    (
        errors.OperateError("replay", reason="the project names no time column"),
        "The past cannot be replayed: the project names no time column. Nothing was run.",
    ),
    (
        errors.ProjectError("clock", text="June"),
        "MLOPS_NOW is 'June', and a time such as 2013-06-01T00:00+00:00 is needed. Nothing was run.",
    ),
    (
        errors.NotFoundError("kernel", notebook=Path("a.ipynb"), kernel="pyton3", kernels=("mlops", "python3")),
        "'a.ipynb' asks for kernel 'pyton3', which is not installed. Installed: mlops, python3. Did you mean "
        "'python3'? Nothing was run.",
    ),
    (
        errors.NotebookError(
            "nothing_raised", notebook=Path("a.ipynb"), cell=7, n_cells=14, executed_path=Path("runs/a.ipynb")
        ),
        "Cell 7 of 14 in 'a.ipynb' has the tag 'raises-exception' and raised nothing. Its run is FAILED. "
        "Executed copy: runs/a.ipynb",
    ),
    (
        errors.NotebookError(
            "deadline", notebook=Path("a.ipynb"), cell=7, n_cells=14, timeout_s=60.0, executed_path=Path("runs/a.ipynb")
        ),
        "'a.ipynb' was stopped at its deadline of 60 s, in cell 7 of 14. Later cells did not run. Executed copy: "
        "runs/a.ipynb",
    ),
    (
        errors.NotebookStoppedError(
            notebook=Path("a.ipynb"), cell=7, n_cells=14, signal="SIGTERM", executed_path=Path("runs/a.ipynb")
        ),
        "'a.ipynb' was stopped by SIGTERM in cell 7 of 14. Later cells did not run; its run is KILLED. Executed "
        "copy: runs/a.ipynb",
    ),
    (
        errors.NotebookError(
            "ended_early", notebook=Path("a.ipynb"), cell=7, n_cells=14, n_skipped=8, executed_path=Path("runs/a.ipynb")
        ),
        "'a.ipynb' ended early: 8 cells from cell 7 of 14 on never ran (did a cell call exit()?). Its run is "
        "FAILED. Executed copy: runs/a.ipynb",
    ),
    (
        errors.ServiceError("payload", reason="the body is no JSON object", forms=("inputs", "instances")),
        "The request cannot be read: the body is no JSON object. Send a JSON object with exactly one of inputs, "
        "instances. Nothing was scored.",
    ),
    (
        errors.ServiceError("host", host="far.example", port=5001, reason="Name or service not known"),
        "Nothing can listen on port 5001 of 'far.example': Name or service not known. Name an address of this machine, "
        "such as 127.0.0.1, and a port that this user may open. Nothing was started.",
    ),
    (
        errors.StoreError("deleted", name="toy", uri="sqlite:////a/mlflow.db", experiment_id="7"),
        "Experiment 'toy' of the MLflow store at 'sqlite:////a/mlflow.db' has been deleted. Restore it with "
        "'MLFLOW_TRACKING_URI=sqlite:////a/mlflow.db mlflow experiments restore --experiment-id 7', or give the "
        "project another name. Nothing was run.",
    ),
    (
        errors.TableError("times", column="labelled_at", reason="3 of 9 are in the future, 0 are none"),
        "Column 'labelled_at' does not say when each label became known: 3 of 9 are in the future, 0 are none. A time "
        "not later than now is expected in every row. Nothing was changed.",
    ),
    (
        errors.NotFoundError("feature", column="sise", features=("size", "color")),
        "Project(slices=…) names 'sise', which is no feature. Features are size, color. Did you mean 'size'? Nothing "
        "was run.",
    ),
    (
        errors.ProjectError("field", field="keys", value="id", needs="a tuple of texts, such as ('a', 'b') or ('a',)"),
        "Project(keys='id') cannot be used: it needs a tuple of texts, such as ('a', 'b') or ('a',). Nothing was run.",
    ),
    (
        errors.ServiceError("prediction", version=3),
        "Version 3 gave a prediction that is no finite number. No prediction was returned. If it goes on, roll the "
        "stage back.",
    ),
    (
        errors.ServiceError("contract", version=3, served=2, reasons="size: is new"),
        "Version 3 does not take the rows that version 2 takes (size: is new). Version 2 goes on answering. Roll the "
        "stage back, or restart the service once its callers have changed.",
    ),
    (
        errors.ServiceError("port", host="127.0.0.1", port=5001),
        "Port 5001 on 127.0.0.1 is taken. Name another with --port. Nothing was started.",
    ),
    (
        errors.QualityError("no_rows", what="y_true"),
        "There are no rows in y_true. At least one is needed. Nothing was computed.",
    ),
    (
        errors.QualityError("lengths", n_true=10, n_score=9, what="scores"),
        "There are 10 labels but 9 scores. They are compared by position, so both must come from the same rows in"
        " the same order. Nothing was computed.",
    ),
    (
        errors.QualityError("scores", n_bad=2, n_rows=10, first_row=4, first_value=1.5),
        "2 of 10 scores are no probabilities; the first is 1.5 at row 4. Scores are finite and within [0, 1], "
        "such as model.predict_proba(X)[:, 1]. Nothing was computed.",
    ),
    (
        errors.QualityError("labels", values=("2", "nan"), known="0 and 1"),
        "Labels hold 2, nan, but only 0 and 1 are known. Leave out rows without a label, or declare the project's task "
        "as what it is. Nothing was computed.",
    ),
    (
        errors.QualityError("numbers", n_bad=1, n_rows=10, first_value="nan", first_row=3),
        "1 of 10 predictions are no finite numbers; the first is nan at row 3. Nothing was computed.",
    ),
    (
        errors.QualityError("classes", n_columns=2, n_classes=3),
        "Scores have 2 columns, and the task has 3 classes; one column each is needed, in the task's order. Nothing "
        "was computed.",
    ),
    (
        errors.TaskError(subject="The model", reason="is no classifier, and the project's task is binary"),
        "The model is no classifier, and the project's task is binary. Nothing was logged or changed.",
    ),
    (
        errors.QualityError("one_class", value=1, n_rows=10),
        "All 10 rows are of class 1, so ranking metrics have nothing to compare. Use a longer period or a larger "
        "slice. Nothing was computed.",
    ),
    (
        errors.NotFoundError("metric", metric="roc_acu", metrics=("roc_auc", "log_loss")),
        "There is no metric 'roc_acu'. Known are roc_auc, log_loss. Did you mean 'roc_auc'? Nothing was computed.",
    ),
    (
        errors.QualityError("no_value", metric="r2", n_rows=30, reason="every target is 7"),
        "Metric 'r2' has no value on these 30 rows: every target is 7. Nothing was computed.",
    ),
    (
        errors.QualityError("no_direction", metric="mean_error"),
        "Metric 'mean_error' is best near zero, so that neither of two models is the worse one by it. Name another. "
        "Nothing was computed.",
    ),
    (
        errors.QualityError("function", function="fbeta_score", reason="it needs beta"),
        "'fbeta_score' of scikit-learn cannot be used by its name: it needs beta. Give the project a quality.Metric of "
        "it. Nothing was computed.",
    ),
    (
        errors.QualityError("confidence", confidence=1.0),
        "No interval follows from confidence=1.0. It lies between 0 and 1, such as 0.95. Nothing was computed.",
    ),
    (
        errors.QualityError("alarms", alarms_a_year=0, periods_a_year=365),
        "No level follows from alarms_a_year=0, periods_a_year=365. Both lie above 0, such as 1 and 365. Nothing was "
        "checked.",
    ),
    (
        errors.TooFewRowsError(n_rows=12, what="rows of class 1", needed=30),
        "There are 12 rows of class 1, and an interval needs 30. Use a longer period or a larger slice. Nothing was "
        "computed.",
    ),
    (
        errors.GateError("source", function="later", reason="its source cannot be read"),
        "'later' cannot be the change of a gate: its source cannot be read. A verdict is bound to the source of this "
        "function, so write it with 'def' at the top level of a file or cell. No gate was made.",
    ),
    (
        errors.GateError("changed_rows", function="later", reason="3 of 900 changed rows break the contract"),
        "The rows changed by 'later' cannot be judged: 3 of 900 changed rows break the contract. It returns the rows "
        "that it can change, with their index, and within the contract. Nothing was computed.",
    ),
    (
        errors.QualityError("columns", table="labels", missing=("brok",), columns=("thing_id", "broke")),
        "The labels lack brok. They have thing_id, broke. Did you mean 'broke'? Nothing was computed.",
    ),
    (
        errors.QualityError("profile", column="tags", reason="it holds lists"),
        "Column 'tags' cannot be profiled: it holds lists. No profile was built.",
    ),
    (
        errors.QualityError("keys", table="labels", key=("thing_id",), n_duplicates=2, first="7"),
        "2 rows of the labels repeat a key (thing_id); the first is 7. One key must name one row, or rows are "
        "counted twice in the join. Nothing was computed.",
    ),
    (
        errors.ContractError("columns", missing=("size",), duplicated=("color",), expected=("color", "size")),
        "The table lacks size and has more than one color. The contract expects each once: color, size. Fix where"
        " the table is made. Nothing was scored.",
    ),
    (
        errors.NotFoundError("contract_column", name="colour", columns=("color", "size")),
        "The contract has no column 'colour'. Its columns are color, size. Did you mean 'color'? The contract is "
        "unchanged.",
    ),
    (
        errors.ContractError("inference", subject="column 'size'", reason="is missing in every row"),
        "No contract was learnt: column 'size' is missing in every row. Clean the training data, or leave the "
        "column out.",
    ),
    (
        errors.ContractError("name", subject="Column 'x'", what="field", name="kin", names=("kind", "low")),
        "Column 'x' has no field 'kin', needs one of kind, low. Did you mean 'kind'? No contract was made or changed.",
    ),
    (
        errors.ContractError("definition", subject="max_bad_share", found="is 2", expected="a number from 0 to 1"),
        "max_bad_share is 2, needs a number from 0 to 1. No contract was made or changed.",
    ),
    (
        errors.NotFoundError("contract", name="toy", version=3),
        "Version 3 of 'toy' has no contract beside its model. Train again with tracking.log_model(…, "
        "contract=infer_contract(…).to_dict()), as 02_train does. Nothing was changed.",
    ),
    (
        errors.WarmKernelError("fork", reason="the server did not answer"),
        "No warm kernel: the server did not answer.",
    ),
    (
        errors.WarmKernelError("later"),
        "No warm kernel: its server is only getting ready.",
    ),
    (
        errors.WarmKernelError("command", command="mlops run 02_train"),
        "The warm server that ran 'mlops run 02_train' has ended, and the command with it. What it had written by "
        "then stays; look before you give it again. MLOPS_WARM=0 runs commands without the server.",
    ),
    (
        errors.WarmKernelError("folder", path=Path("/tmp/k"), reason="belongs to another user"),
        "The folder for kernel sockets '/tmp/k' belongs to another user. Set MLOPS_RUNTIME_DIR to a folder of "
        "your own. No warm kernel was started or stopped.",
    ),
]


CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.MlopsError) and value is not errors.MlopsError
}
TEXTS = {(name, case) for name, kind in CLASSES.items() for case in kind.texts}
ROOT = Path(__file__).resolve().parent.parent


def find_errors(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield class and case of every error that a source makes, and what is wrong with its facts."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and getattr(node.exc, "id", "") in CLASSES:
            yield node.exc.id, "", "is raised without facts"
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CLASSES:
            case = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            text = CLASSES[name].texts.get(case)
            facts = {keyword.arg for keyword in node.keywords}
            if len(node.args) > 1 or text is None:
                yield name, case, "has no such case"
            elif facts != wording.facts_of(text):
                differing = sorted(map(str, facts ^ wording.facts_of(text)))
                yield name, case, f"line {node.lineno}: {differing} are missing or too many"
            else:
                yield name, case, ""


def read_sources() -> Iterator[str]:
    for folder in ("mlops_lib", "ci", "notebooks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.read_text(encoding="utf-8")


each_message = pytest.mark.parametrize(
    ("error", "message"),
    MESSAGES,
    ids=[f"{type(error).__name__}-{error.case or n}" for n, (error, _) in enumerate(MESSAGES)],
)


@each_message
def test_error_says_exactly_this(error: errors.MlopsError, message: str) -> None:
    assert str(error) == message


@each_message
def test_error_crosses_a_process_border_with_its_facts(error: errors.MlopsError, message: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == message
    assert vars(copy) == vars(error)


@each_message
def test_message_is_whole_sentences_without_empty_words(error: errors.MlopsError, message: str) -> None:
    for word in ("please", "invalid", "something went wrong", "oops", "unfortunately"):
        assert word not in message.lower()
    assert "\n" not in message, "the command line prints one line"
    assert message.endswith((".", ".ipynb")), "a path at the end stays clickable without a dot"
    assert "  " not in message
    assert ".. " not in message


def test_no_text_is_missing_from_this_table() -> None:
    assert {(type(error).__name__, error.case) for error, _ in MESSAGES} == TEXTS


def test_every_error_is_made_with_the_facts_of_its_text_and_every_text_is_used() -> None:
    found = [error for source in read_sources() for error in find_errors(source)]
    assert [error for error in found if error[2]] == []
    assert {(name, case) for name, case, _ in found} == TEXTS


@pytest.mark.parametrize(
    "source",
    [
        "raise WriteError",
        "raise WriteError(path=path)",
        "raise errors.WriteError(path=path, reason=reason, uri=uri)",
        "raise WriteError(**facts)",
        "raise StoreError(uri=uri, reason=reason)",
        "raise StoreError('gone', uri=uri, reason=reason)",
        "def refuse(why): return StoreError('read_only', why)",
    ],
)
def test_an_error_with_other_facts_than_those_of_its_text_is_found(source: str) -> None:
    ((_, _, fault),) = find_errors(source)
    assert fault


def test_an_error_is_not_made_with_other_facts_than_those_of_its_text() -> None:
    with pytest.raises(TypeError, match=r"StoreError has no case 'gone', but unreachable, midway"):
        errors.StoreError("gone", uri="sqlite:////a.db")
    with pytest.raises(TypeError, match=r"StoreError\('read_only'\) takes uri, not uri, reason"):
        errors.StoreError("read_only", uri="sqlite:////a.db", reason="mode 444")


def test_facts_are_found_wherever_a_text_names_them() -> None:
    text = "{path.name:near siblings} {missing[0]!r} {value:.2f} {line:if  (line {number}: %)|nowhere} {{not}} {a}{a}"
    assert wording.facts_of(text) == {"path", "siblings", "missing", "value", "line", "number", "a"}


def test_an_error_keeps_its_facts_and_its_notes() -> None:
    error = errors.StoreError("read_only", uri="sqlite:////a.db")
    error.add_note("while it was copied")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.case, copy.uri, copy.facts) == ("read_only", "sqlite:////a.db", {"uri": "sqlite:////a.db"})
    assert copy.__notes__ == ["while it was copied"]


def test_a_fact_is_never_read_as_a_template() -> None:
    error = errors.WarmKernelError("fork", reason="{uri} 100% | {path:list}")
    assert str(error) == "No warm kernel: {uri} 100% | {path:list}."
    line = {"ename": "E", "evalue": "v", "line_number": 1, "line": "x = '%s|{}' % y"}
    where = {"notebook": Path("a"), "cell": 1, "n_cells": 1, "duration_s": 1.0, "executed_path": Path("b")}
    assert "(line 1: x = '%s|{}' % y)" in str(errors.NotebookError("cell", **where, **line))


def test_nearest_proposes_nothing_for_a_name_unlike_all_others() -> None:
    assert wording.nearest("prd", ("dev", "prod")) == " Did you mean 'prod'?"
    assert wording.nearest("xyz", ("dev", "prod")) == ""


def test_long_lists_are_cut_and_counted() -> None:
    assert wording.listed(range(15), limit=3) == "0, 1, 2 and 12 more"
    assert wording.listed([]) == "none"
