"""Notebooks as typed, tracked functions: parameters, run, cache, sweeps, check.

Names are imported on first use, so that a check that finds nothing changed does not pay for papermill and MLflow.

>>> run = notebooks.run_notebook(project, "notebooks/02_train.ipynb", {"family": "logistic"})  # doctest: +SKIP
>>> run.result["version"]  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_lib.programs.notebooks.check import check_notebooks, update_notebooks
    from mlops_lib.programs.notebooks.jobs import run_notebooks
    from mlops_lib.programs.notebooks.run import NotebookRun, reap_dead_runs, run_notebook
    from mlops_lib.programs.notebooks.signature import Parameter, read_signature
    from mlops_lib.programs.notebooks.sweeps import Sweep, sweep
    from mlops_lib.tracking import stop

__all__ = [
    "NotebookRun",
    "Parameter",
    "Sweep",
    "check_notebooks",
    "read_signature",
    "reap_dead_runs",
    "run_notebook",
    "run_notebooks",
    "stop",
    "sweep",
    "update_notebooks",
]
_HOMES = {
    "check_notebooks": "check",
    "update_notebooks": "check",
    "NotebookRun": "run",
    "run_notebook": "run",
    "run_notebooks": "jobs",
    "reap_dead_runs": "run",
    "Parameter": "signature",
    "read_signature": "signature",
    "Sweep": "sweeps",
    "sweep": "sweeps",
    "stop": "",  # of mlops_lib.tracking, which notebooks import anyway
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    home = "mlops_lib.tracking" if name == "stop" else f"mlops_lib.programs.notebooks.{_HOMES[name]}"
    return getattr(importlib.import_module(home), name)
