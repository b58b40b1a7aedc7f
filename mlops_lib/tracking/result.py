"""A notebook's result: the small dict that it records as its last act."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlops_lib.errors import NotebookError

RESULT_MIME = "application/vnd.mlops.result+json"


class Result(dict[str, Any]):
    """A result on its way into the notebook: JupyterLab shows the dict, the runner reads the JSON beside it."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {RESULT_MIME: dict(self), "text/plain": "\n".join(f"{k}: {v}" for k, v in self.items())}


def record_result(**values: Any) -> Result:
    """Record what a notebook found; call it as the last expression of the last cell.

    Parameters
    ----------
    **values : JSON values
        Small: numbers, texts, lists, dicts. NumPy scalars become Python numbers.

    Raises
    ------
    NotebookError
        For a value that JSON cannot carry. Nothing was recorded.
    """
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    for name, value in plain.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise NotebookError("result", name=name, type_name=type(value).__name__) from error
    return Result(plain)


def find_result(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last result that an executed notebook recorded, or an empty dict."""
    for cell in reversed(notebook["cells"]):
        for output in reversed(cell.get("outputs", [])):
            found = output.get("data", {}).get(RESULT_MIME)
            if found is not None:
                return dict(found)
    return {}
