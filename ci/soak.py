"""Run the tests marked ``soak`` with many rounds and write benchmarks/<date>-soak.md; called by ci/soak."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from benchmark import ROOT, TODAY, describe_machine, write_report

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:nbmake", "-p", "no:nbval", "-m", "soak", "--rounds", "many"]


def list_tests() -> int:
    """Print the tests, and the report of the last run."""
    done = subprocess.run([*PYTEST, "--collect-only"], cwd=ROOT, check=False)
    reports = sorted((ROOT / "benchmarks").glob("*-soak.md"))
    print(reports[-1].read_text(encoding="utf-8") if reports else "No run has been recorded yet.")
    return done.returncode


def soak(options: list[str]) -> int:
    """Run the tests, each within an hour, and write how long each took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [*PYTEST, "-n", "2", "-o", "timeout=3600", f"--junit-xml={report}", *options]
        done = subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    minutes = (time.monotonic() - began) / 60
    if not options:
        rows = sorted(((float(c.get("time", 0)), f"{c.get('classname')}.{c.get('name')}") for c in cases), reverse=True)
        write_report(
            "soak",
            [
                f"# {len(rows)} tests with many rounds: {'passed' if done.returncode == 0 else 'FAILED'}",
                "",
                f"{TODAY}, `ci/soak`, {describe_machine()}: {minutes:.0f} min in two processes.",
                "",
                "| test | seconds |",
                "|---|---|",
                *(f"| `{name}` | {seconds:.0f} |" for seconds, name in rows),
            ],
        )
    return done.returncode


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(list_tests() if arguments == ["--list"] else soak(arguments))
