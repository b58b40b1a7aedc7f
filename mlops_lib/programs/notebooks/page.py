"""The page that is kept of every executed notebook: outputs and text, code hidden, fit to send to someone.

Outputs are shown as they are, since taking markup away would spoil diagrams and styled tables; instead the page's first
line tells the browser to run nothing and to load nothing from elsewhere.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from mlops_lib import data
from mlops_lib.engines.warm import without_grammar

with without_grammar():
    import nbformat

# No script, handler, frame, form or foreign picture: what a notebook's output holds came from data and from packages.
INERT = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
    """style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'">"""
)
_lock = threading.Lock()  # one exporter writes one page at a time


def write_page(nb: nbformat.NotebookNode, path: Path) -> None:
    """Write the page of an executed notebook."""
    exporter = load_exporter()
    with _lock:
        body, _ = exporter.from_notebook_node(nb, resources={"metadata": {"name": path.stem}})
    before, head, after = body.partition("<head>")
    with data.atomic_write(path, "w") as file:
        file.write(f"{before}{head}{INERT}{after}")


def load_exporter() -> Any:
    """Return the one exporter of this process, its templates compiled: 0.4 s once, then 0.01 s a page."""
    with _lock:
        return _make_exporter()


@functools.cache
def _make_exporter() -> Any:
    from nbconvert import HTMLExporter  # noqa: PLC0415 - only where a notebook runs

    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("")]))
    return exporter
