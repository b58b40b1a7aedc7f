"""Outputs of notebooks: how two runs of a cell differ, and how a file is brought up to date with the least change.

Text, tables and streams are compared as nbval does, with the rules of its sanitizer file; figures as pictures.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlops_lib.programs.notebooks import formats
from mlops_lib.report import Row

FIGURE_SIZE, FIGURE_MEAN, FIGURE_BLOCK = 0.01, 0.005, 0.2  # shares: of width and height, of full contrast
IMAGES = ("image/png", "image/jpeg")
NOT_COMPARED = {"metadata", "traceback", "prompt_number", "output_type", "name", "execution_count"}
NOT_COMPARED.add("application/vnd.jupyter.widget-view+json")  # ids of widgets are random
# What a rule that hides ids and times must leave to be seen.
_MEASURED = ("0.7213", "27", "12,345", "1e-05", "42.9%", "passed")
Patterns = Sequence[tuple[str, str]]
# What no two runs have in common: the file that a warning names for its cell, and addresses of objects.
ALWAYS = [
    (r"ipykernel_\d+/\d+\.py", "CELL"),
    (r"\b0x[0-9a-fA-F]{6,16}\b", "ADDRESS"),
    (r"(?i)\b(pid|process)([ =:#]+)\d+", r"\1\2PID"),
    (r"(/tmp|/var/folders|/private/var|/dev/shm)/[^\s'\"<>,;)\]]+", "TEMPORARY"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:?\d\d|Z)?", "TIME"),
    (r"\b\d\d:\d\d:\d\d(\.\d+)?\b", "TIME"),
    (r"\b\d\d? (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)( \d{4})? \d\d:\d\d( [A-Z]{2,5})?\b", "TIME"),
    (r"(?m)^(CPU times|Wall time): .*$", r"\1: DURATION"),  # %time
    (r"[\d.]+ [mnµu]?s ± .* per loop \(.*\)", "DURATION"),  # %timeit
    (r"\[\d\d:\d\d<(\d\d:\d\d|\?)(, [^\]]*)?\]", "RATE"),  # tqdm
]
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w.])")


def find_differences(
    old: Sequence[Any], new: Sequence[Any], patterns: Patterns, tolerance: float = 0.0
) -> list[tuple[str, str]]:
    """Return MIME type and description of each way in which two lists of outputs differ, plain text first.

    Numbers in texts may differ by ``tolerance``, a share of the larger one.
    """
    before, after = _flatten(old), _flatten(new)
    differences = []
    for key in sorted(before.keys() | after.keys(), key=lambda key: (key != "text/plain", key)):
        pairs = list(zip(before[key], after[key], strict=False))
        if not after[key] or not before[key]:
            where = "committed, not produced" if before[key] else "produced, not committed"
            differences.append((key, f"{key} is {where}"))
        elif len(before[key]) != len(after[key]):
            differences.append((key, f"{len(before[key])} {key} are committed, {len(after[key])} produced"))
        else:
            clean = ((_sanitize(was, patterns), _sanitize(now, patterns)) for was, now in pairs)
            texts = ("" if _are_near(a, b, tolerance) else _compare_values(key, a, b) for a, b in clean)
            differences += [(key, text) for text in texts if text][:1]
    return differences


def _flatten(outputs: Sequence[Any]) -> defaultdict[str, list[Any]]:
    """Return the values of each MIME type or field in order, streams merged and fields left out as nbval does it."""
    from nbval.plugin import coalesce_streams, transform_streams_for_comparison  # noqa: PLC0415 - loads pytest

    values: defaultdict[str, list[Any]] = defaultdict(list)
    for output in transform_streams_for_comparison(coalesce_streams(copy.deepcopy(list(outputs)))):
        for key, value in {**output, **output.get("data", {})}.items():
            if key not in NOT_COMPARED and key != "data":
                values[key].append(value)
    return values


def _sanitize(value: Any, patterns: Patterns) -> Any:
    for regex, replacement in patterns if isinstance(value, str) else ():
        value = re.sub(regex, replacement, value)
    return value


def _are_near(was: Any, now: Any, tolerance: float) -> bool:
    """Whether two texts differ in numbers only, and these by no more than a share of the larger one."""
    if not tolerance or not (isinstance(was, str) and isinstance(now, str)):
        return False
    if _NUMBER.sub("#", was).split() != _NUMBER.sub("#", now).split():  # a longer number moves columns
        return False
    pairs = zip(_NUMBER.findall(was), _NUMBER.findall(now), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=tolerance) for a, b in pairs)


def _compare_values(key: str, was: Any, now: Any) -> str:
    """Describe how a value has changed; empty if it has not."""
    if was == now:
        return ""
    if key in IMAGES:
        return _compare_figures(key, was, now)
    old, new = ([*str(value).splitlines(), ""] for value in (was, now))
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    return f"{key} line {at + 1} is '{new[at].strip()[:80]}', committed '{old[at].strip()[:80]}'"


def _compare_figures(key: str, was: str, now: str) -> str:
    """Compare two pictures in blocks of 8 x 8 pixels, in which other edges of letters average out and data does not."""
    import numpy as np  # noqa: PLC0415 - only where bytes differ
    from PIL import Image  # noqa: PLC0415 - comes with matplotlib

    try:
        old, new = (Image.open(io.BytesIO(base64.b64decode(value))).convert("RGB") for value in (was, now))
    except (OSError, ValueError) as error:
        return f"{key} cannot be read ({error})"
    if any(abs(a - b) > max(1, FIGURE_SIZE * a) for a, b in zip(old.size, new.size, strict=True)):
        return "the figure is {} x {} pixels, committed {} x {}".format(*new.size, *old.size)
    blocks = (np.asarray(image.resize(old.size).reduce(8), dtype=float) / 255 for image in (old, new))
    a, b = blocks
    mean, most = np.abs(a - b).mean(), np.abs(a - b).max()
    if mean <= FIGURE_MEAN and most <= FIGURE_BLOCK:
        return ""
    return f"the figure differs by {mean:.2%} on average, {most:.0%} where it differs most"


# --- rules that hide ids and times ---------------------------------------------------------------------------------


def check_sanitizer(path: Path) -> tuple[Row, list[tuple[str, str]]]:
    """Hold the sanitizer file to what nbval reads of it, which drops a malformed pair without a word; return the rules.

    A rule that would hide a measurement is a fault too.
    """
    if not path.is_file():
        reason = "there is none: outputs are compared as they are"
        return Row(f"{path.stem}: rules", None, "", "not_applicable", reason), ALWAYS
    text = path.read_text(encoding="utf-8")
    lines, faults, patterns = ["", *text.splitlines(), ""], list[str](), [*ALWAYS]
    for number, line in enumerate(lines):
        key, _, value = line.partition(": ")
        after, before = lines[(number + 1) % len(lines)], lines[number - 1]
        if key == "regex" and not after.startswith("replace: "):
            faults.append(f"line {number}: 'replace: …' must stand in the next line")
        elif key == "regex":
            try:
                hidden = [sample for sample in _MEASURED if re.search(value, sample)]
                faults += [f"line {number}: {value} would hide what was measured, such as {s}" for s in hidden[:1]]
                patterns.append((value, after.removeprefix("replace: ")))
            except re.error as error:
                faults.append(f"line {number}: {value} is no regular expression ({error})")
        elif key == "replace" and ": " in line and not before.startswith("regex: "):
            faults.append(f"line {number}: 'regex: …' must stand in the line before")
        elif line.strip() and not line.startswith(("[", "#", "replace: ")):
            faults.append(f"line {number} is no 'regex: …', 'replace: …', '[title]' or comment: {line[:40]}")
    return report_faults(f"{path.stem}: rules", faults), patterns


def report_faults(name: str, faults: Sequence[str], reason: str = "") -> Row:
    """Return the row of a check: failed with its first faults, or passed with a remark."""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    text = "; ".join(faults[:3]) + more if faults else reason
    return Row(name, len(faults), "0 faults", "failed" if faults else "passed", text)


# --- rewriting ---------------------------------------------------------------------------------------------------


def rewrite(text: str, committed: Any, executed: Any, patterns: Patterns, tolerance: float = 0.0) -> tuple[str, int]:
    """Return a notebook file's text with its outputs brought up to date, and how many cells that has changed."""
    raw, split = json.loads(text), formats.load_nbformat().v4.rwbase.split_lines(copy.deepcopy(executed))
    disk = json.loads(json.dumps(split, sort_keys=True))
    cells = zip(raw["cells"], committed.cells, executed.cells, disk["cells"], strict=True)
    count = n_changed = 0
    for cell, before, after, written in cells:
        was = copy.deepcopy(cell)
        for name in ("execution", "papermill"):
            cell["metadata"].pop(name, None)
        if cell["cell_type"] == "code":
            count += formats.runs(before)
            cell["execution_count"] = count if formats.runs(before) else None
            if find_differences(before.outputs, after.outputs, patterns, tolerance):
                _keep_equal(cell["outputs"], before.outputs, after.outputs, written["outputs"], (patterns, tolerance))
                cell["outputs"] = written["outputs"]
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = cell["execution_count"]
        n_changed += cell != was
    raw["metadata"].pop("papermill", None)
    raw["metadata"].get("language_info", {}).pop("version", None)
    if raw == json.loads(text):
        return text, 0
    return formats.write_like(text, raw), n_changed


def _keep_equal(
    raw: Sequence[Any], old: Sequence[Any], new: Sequence[Any], written: list[Any], rules: tuple[Patterns, float]
) -> None:
    """Put back, in place, the bytes of what compares equal, output by output and MIME type by MIME type."""
    if len(raw) != len(written):
        return
    for index, (stored, before, after) in enumerate(zip(raw, old, new, strict=True)):
        if before.output_type != after.output_type:
            continue
        differing = {key for key, _ in find_differences([before], [after], *rules)}
        if not differing:
            written[index] = stored
        for mime in set(stored.get("data", {})) & set(written[index].get("data", {})) - differing:
            written[index]["data"][mime] = stored["data"][mime]
