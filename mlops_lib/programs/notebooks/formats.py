"""Notebook files of any age and tool, read as nbformat 4.5: what is upgraded is upgraded in memory.

>>> parse(text).cells[0].source  # doctest: +SKIP
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from mlops_lib.engines.warm import without_grammar


def load_nbformat() -> Any:
    """Return nbformat, which is heavy, once somebody needs it."""
    with without_grammar():
        import nbformat  # noqa: PLC0415
    return nbformat


def parse(text: str) -> Any:
    """Return a notebook file's content as a valid ``NotebookNode`` of nbformat 4.

    Older major versions are upgraded; cell ids of nbformat 4.5 under an older number are taken as what they are; what
    is missing or repeated among fields without meaning is filled in. A notebook that names no language is Python's.

    Raises
    ------
    Exception
        Whatever is wrong with the file, as nbformat or Python says it.
    """
    nbformat, raw, ids = load_nbformat(), json.loads(text), set[str]()
    cells = raw["cells"] if raw["nbformat"] >= 4 else ()  # nbformat.reads() judges a file before it can be mended
    if raw["nbformat"] >= 4 and raw.setdefault("nbformat_minor", 0) < 5 and any("id" in cell for cell in cells):
        raw["nbformat_minor"] = 5
    raw.setdefault("metadata", {})
    for cell in cells:
        cell.setdefault("metadata", {})
        if cell["cell_type"] == "code":
            cell.setdefault("outputs", [])
            cell.setdefault("execution_count", None)
        if raw["nbformat_minor"] >= 5:
            if cell.get("id") in (None, *ids):
                cell["id"] = uuid.uuid4().hex[:8]
            ids.add(cell["id"])
    notebook = nbformat.from_dict(nbformat.convert(nbformat.reader.reads(json.dumps(raw)), 4))
    nbformat.validate(notebook)
    spec = notebook.metadata.setdefault(
        "kernelspec", nbformat.from_dict({"name": "python3", "display_name": "Python 3"})
    )
    if "language_info" not in notebook.metadata:
        spec.setdefault("language", "python")
    return notebook


def write_like(text: str, content: Any) -> str:
    """Return ``content`` as JSON in the form of ``text``, from which it was changed: indent, separators, escapes, ends.

    A file in which numbers or escapes are mixed as no one program writes them gets the nearest form.
    """
    body = text.replace("\r\n", "\n")
    found = re.match(r"\{\n([ \t]*)", body)
    indent = (found[1] if "\t" in found[1] else len(found[1])) if found else None
    compact, loose = (",", ":"), (",", ": ") if found else (", ", ": ")
    forms = [(separators, is_ascii) for separators in (loose, compact) for is_ascii in (False, True)]

    def dump(value: Any, separators: tuple[str, str], is_ascii: bool) -> str:
        return json.dumps(value, indent=indent, separators=separators, ensure_ascii=is_ascii)

    was = json.loads(body)
    form = next((f for f in forms if dump(was, *f) == body.strip()), (loose, body.isascii() and "\\u" in body))
    changed = dump(content, *form) + body[len(body.rstrip()) :]
    return changed.replace("\n", "\r\n") if "\r\n" in text else changed


def is_current(text: str, notebook: Any) -> bool:
    """Return whether the file has the format that it was read as."""
    raw = json.loads(text)
    return (raw.get("nbformat"), raw.get("nbformat_minor")) == (notebook.nbformat, notebook.nbformat_minor)


def runs(cell: Any) -> bool:
    """Return whether a cell is code that is run: not blank, and not skipped by nbclient's tag."""
    tags = cell.metadata.get("tags", ())
    return cell.cell_type == "code" and bool(cell.source.strip()) and "skip-execution" not in tags
