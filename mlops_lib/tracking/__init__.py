"""The store and what is written to it: runs, their code and data, models, results; which runs are still alive.

>>> with tracking.start_run(project):  # doctest: +SKIP
...     tracking.log_model(project, model, X_train)
"""

from mlops_lib.tracking.code import ask_git, describe_code, find_notebook, log_difference, notebook_source
from mlops_lib.tracking.model import (
    EXAMPLE_ROWS,
    REQUIREMENTS,
    SIGNATURE_ROWS,
    WARMUP_ROWS,
    LoggedModel,
    log_model,
)
from mlops_lib.tracking.result import RESULT_MIME, Result, find_result, record_result
from mlops_lib.tracking.runs import log_input, log_metrics, start_run, stop

__all__ = [
    "EXAMPLE_ROWS",
    "REQUIREMENTS",
    "RESULT_MIME",
    "SIGNATURE_ROWS",
    "WARMUP_ROWS",
    "LoggedModel",
    "Result",
    "ask_git",
    "describe_code",
    "find_notebook",
    "find_result",
    "log_difference",
    "log_input",
    "log_metrics",
    "log_model",
    "notebook_source",
    "record_result",
    "start_run",
    "stop",
]
