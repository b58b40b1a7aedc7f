"""How this repository's own notebooks are written: a taste of ours, which ``mlops check`` imposes on nobody."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CELL_LINES, MEDIAN_LINES, PARAGRAPH_WORDS = 15, 5, 60
NAME = re.compile(r"\d\d_[a-z][a-z0-9_]*\.ipynb")
UNWANTED = {
    "%run": r"^\s*%run\b",
    "a shell command": r"^\s*(\w[\w\s,]*=\s*)?!|^\s*(\w[\w\s,]*=\s*)?%(sx|system)\b|^%%(bash|sh|script|system|!)",
    "a warnings filter": r"\b(filterwarnings|simplefilter)\b",
    "a class": r"^class\b",
}


def cells_of(notebook: Any, kind: str) -> list[tuple[int, Any]]:
    """Return the cells of a kind that are not empty, with their numbers from 1."""
    numbered = enumerate(notebook.cells, start=1)
    return [(number, cell) for number, cell in numbered if cell.cell_type == kind and cell.source.strip()]


def find_faults(name: str, notebook: Any) -> Iterator[str]:
    """Return what a person would stumble over in a notebook."""
    if not NAME.fullmatch(name):
        yield f"the name is '{name}', needs NN_verb.ipynb"
    code = cells_of(notebook, "code")
    lines = {number: sum(bool(line.strip()) for line in cell.source.splitlines()) for number, cell in code}
    yield from (f"cell {n} has {count} lines, at most {CELL_LINES}" for n, count in lines.items() if count > CELL_LINES)
    if lines and statistics.median(lines.values()) > MEDIAN_LINES:
        yield f"the median code cell has {statistics.median(lines.values()):g} lines, at most {MEDIAN_LINES}"
    for number, cell in code:
        for what, pattern in UNWANTED.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                yield f"cell {number} has {what}"
        jupyter = cell.metadata.get("jupyter", {})
        if any([cell.metadata.get("collapsed"), jupyter.get("source_hidden"), jupyter.get("outputs_hidden")]):
            yield f"cell {number} is folded"
    for number, cell in cells_of(notebook, "markdown"):
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|>]|\d+\.)\s)", cell.source):
            if len(paragraph.split()) > PARAGRAPH_WORDS:
                yield f"cell {number} has a paragraph of {len(paragraph.split())} words, at most {PARAGRAPH_WORDS}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_committed_notebook_is_written_as_people_can_read_it(path: Path) -> None:
    assert list(find_faults(path.name, nbformat.read(path, as_version=4))) == []


def example() -> Any:
    return new_notebook(cells=[new_markdown_cell("# Make\n\nA table:"), *(new_code_cell("x = 1") for _ in range(3))])


def set_source(number: int, source: str) -> Callable[[Any], object]:
    return lambda notebook: notebook.cells[number - 1].update(source=source)


FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "long cell": (set_source(2, "\n".join(["n"] * 16)), "cell 2 has 16 lines, at most 15"),
    "long paragraph": (set_source(1, "# A\n\n" + "word " * 61), "cell 1 has a paragraph of 61 words, at most 60"),
    "shell": (set_source(2, "!ls"), "cell 2 has a shell command"),
    "run": (set_source(2, "%run 02_read.ipynb"), "cell 2 has %run"),
    "warnings": (set_source(2, "warnings.simplefilter('ignore')"), "cell 2 has a warnings filter"),
    "class": (set_source(2, "class A:\n    pass"), "cell 2 has a class"),
    "folded": (lambda notebook: notebook.cells[1].metadata.update(jupyter={"source_hidden": True}), "cell 2 is folded"),
    "median": (
        lambda notebook: [cell.update(source="n\n" * 6) for cell in notebook.cells[1:]],
        "the median code cell has 6 lines, at most 5",
    ),
}


def test_an_example_has_no_fault() -> None:
    assert list(find_faults("01_make.ipynb", example())) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault: str) -> None:
    change, text = FAULTS[fault]
    notebook = example()
    change(notebook)
    assert list(find_faults("01_make.ipynb", notebook)) == [text]


def test_a_bad_name_is_found() -> None:
    assert list(find_faults("reading.ipynb", example())) == ["the name is 'reading.ipynb', needs NN_verb.ipynb"]
