"""papermill's engine interface: ``papermill --engine mlops in.ipynb out.ipynb`` runs through the same code.

A module of its own, because papermill imports its engines while it is itself being imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermill.engines import Engine

if TYPE_CHECKING:
    import nbformat


class MlopsEngine(Engine):  # type: ignore[misc] # papermill ships no types
    """Run a notebook that papermill has loaded and parameterized."""

    @classmethod
    def execute_notebook(
        cls,
        nb: nbformat.NotebookNode,
        kernel_name: str,
        output_path: str | None = None,
        input_path: str | None = None,
        **_: Any,
    ) -> nbformat.NotebookNode:
        """Run ``nb``; unlike papermill's own manager, never stamp a cell that did not run as completed."""
        from mlops_lib.programs.notebooks import run  # noqa: PLC0415 - see above

        execution = run.prepare_execution(nb, Path(str(input_path)), kernel_name)
        execution.run(nb, kernel_name, Path(output_path) if output_path else None)
        return nb
