"""Notebooks and a project file for tests, and what their runs have left."""

from __future__ import annotations

import textwrap
from pathlib import Path

import nbformat
from mlflow.entities import Run
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mlops_lib.project import Project
from mlops_lib.tracking import store

PARAMETERS = "alpha: float = 0.5  # strength\nname: str = 'x'  # a text"
PROJECT_SOURCE = (
    "from pathlib import Path\nfrom mlops_lib.project import Project\n"
    "project = Project(name='toy', root=Path(__file__).parent.parent, target='broke', keys=('thing_id',),\n"
    "    features=('color', 'size', 'weight'), arrivals='data/arrivals/{period}.parquet',\n"
    "    labels='data/labels/{period}.parquet')\n"
)


def write_notebook(folder: Path, *cells: str, parameters: str | None = PARAMETERS, name: str = "nb") -> Path:
    """Write a notebook from strings: ``# …`` is markdown, anything else code."""
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}})
    if parameters is not None:
        notebook.cells.append(new_code_cell(textwrap.dedent(parameters), metadata={"tags": ["parameters"]}))
    for cell in cells:
        make = new_markdown_cell if cell.startswith("# ") else new_code_cell
        notebook.cells.append(make(textwrap.dedent(cell)))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def last_run(project: Project) -> Run:
    client = store.connect(project.tracking_uri)
    experiment = client.get_experiment_by_name(project.name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], max_results=1)[0]


def count_runs(project: Project) -> int:
    client = store.connect(project.tracking_uri)
    experiment = client.get_experiment_by_name(project.name)
    return len(client.search_runs([experiment.experiment_id])) if experiment else 0


def statuses(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.metadata.papermill.status for cell in cells if cell.cell_type == "code"]
