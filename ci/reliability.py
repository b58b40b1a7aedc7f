"""Write docs/reliability.md from what the tests have seen, or compare it with that.

    ci/reliability.py FILE            compare; exit 1 when the page says something else than the tests have seen
    ci/reliability.py FILE --update   write the page

FILE is what a run of the tests with ``MLOPS_RELIABILITY=FILE`` has left: one JSON line for each observation, written by
the fixture ``record`` of tests/conftest.py after the assertions before it have held.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
CASES = {
    1: "Two or six processes use a fresh SQLite store at once",
    2: "The first use of a store is killed",
    3: "Many processes register versions at once",
    4: "Two people promote from the same champion",
    5: "A promotion or rollback dies between any two of its steps",
    6: "The server commits, its answer is lost, the client asks again",
    7: "A training process is killed while it logs or registers",
    8: "A notebook cell raises after it has opened a run",
    9: "A notebook leaves early with `sys.exit(0)`",
    10: "The kernel is killed, hangs, or its runner is told to stop",
    11: "The disk is full",
    12: "One bit of a model file flips",
    13: "A model file is added, removed, linked elsewhere or swapped",
    14: "A registered version's files are gone",
    15: "A model's metadata asks for code to be run",
    16: "A tree in a model file points outside itself",
    17: "A small model file inflates without end",
    18: "Thirty common scikit-learn estimators are logged and loaded",
    19: "The version in prod is deleted; the model is deleted and made again",
    20: "A gate's metric is NaN, infinite, missing or no number",
    21: "The model of a run that failed, was deleted or never ended is to be registered",
    22: "A row has a wrong type, an overflow, an epoch, an unknown or repeated name",
    23: "Valid data comes as integers, categories or dates in a CSV",
    24: "A column has another unit, unseen categories or no values",
    25: "A request is malformed, nested without end, huge or slow",
    26: "A model predicts NaN or infinity",
    27: "The service is told to load a bad version while it serves",
    28: "Going back while the store is down or the old files are gone",
    29: "A parameter's name carries code, is unknown, or its value has a wrong type",
    30: "Secrets, markup in names, foreign hosts, anonymous writers",
}
HEAD = """# What happens when things go wrong

Each row is a test in `tests/faults` or `tests/security`; both columns say what that test saw when it last passed, here
and with the MLflow, papermill and scikit-learn that `requirements.lock` pins. `ci/test` fails when this page says
something else; a fault of the tools that needs luck to be seen may be missing in one run. "—" means that the tools
alone have no such operation, or that the comparison was not made. Case 25 is the service's, and not here yet.

| # | case | the tools alone | here |
|---:|---|---|---|
"""


def render(observations: list[dict[str, object]]) -> str:
    """Return the page: one row for each case that was seen, each distinct sentence once, in the order of its text."""
    seen: dict[int, dict[str, set[str]]] = {}
    for observation in observations:
        row = seen.setdefault(int(str(observation["case"])), {"plain": set(), "ours": set()})
        for column in ("plain", "ours"):
            if observation.get(column):
                row[column].add(str(observation[column]))
    lines = []
    for number in sorted(seen):
        plain, ours = ("; ".join(sorted(seen[number][column])) or "—" for column in ("plain", "ours"))
        lines.append(f"| {number} | {CASES[number]} | {plain} | {ours} |")
    return HEAD + "\n".join(lines) + "\n"


def main(file: str, *options: str) -> int:
    """Update or compare."""
    lines = Path(file).read_text(encoding="utf-8").splitlines() if Path(file).exists() else []
    page = render([json.loads(line) for line in lines])
    if "--update" in options:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
        return 0
    stands = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    then, now = set(stands.splitlines()), set(page.splitlines())
    unlucky = {
        line for line in then - now if _without_plain(line) in now
    }  # what tools do wrong may need luck to be seen
    for line in sorted(unlucky):
        print(f"not seen of the tools alone this time: {line}", file=sys.stderr)
    failed = (then ^ now) - unlucky - {_without_plain(line) for line in unlucky}
    for line in sorted(failed):
        print(f"{'only the page says' if line in then else 'only the tests saw'}: {line}", file=sys.stderr)
    return int(bool(failed) or not stands)


def _without_plain(line: str) -> str:
    """Return a row as it is where nothing was seen of the tools alone."""
    cells = line.split(" | ")
    return " | ".join([*cells[:2], "—", *cells[3:]])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
