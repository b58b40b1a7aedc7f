"""How long "Restart Kernel and Run All Cells" takes in a real browser's JupyterLab, plain kernel beside warm kernel.

The first cell imports mlflow, sklearn and pandas. Timed from the click on the dialog's button to the cell's output in
the page; rounds of both kinds alternate. Writes benchmarks/<date>-lab.md. Needs chromium (ci/setup-browser).
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import benchmark
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Page, sync_playwright

from mlops_lib.engines import warm

ROUNDS = 7
CELL = """\
import time; began = time.perf_counter()
import mlflow, sklearn, pandas
print('imports', 'took', round(time.perf_counter() - began, 3))"""


def start_lab(folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Start JupyterLab on a folder; return the process and its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", f"--port={port}", "--ServerApp.token=", "--ServerApp.port_retries=0", "--allow-root"]
    command = [str(Path(sys.executable).with_name("jupyter")), "lab", str(folder), *options]
    settings = {"JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces")}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env={**os.environ, **settings, **environment}, stdout=quiet, stderr=quiet)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).close()
            break
        except OSError:
            time.sleep(0.1)
    return process, f"http://127.0.0.1:{port}"


def time_restart(tab: Page, round_: int) -> dict[str, float]:
    """Restart and run all once; return seconds until the output is there, and what the imports took in the kernel."""
    tab.get_by_text("Run", exact=True).first.click()
    tab.get_by_text("Restart Kernel and Run All Cells…").click()
    tab.locator(".jp-Dialog .jp-mod-accept").wait_for()
    tab.evaluate("() => document.querySelectorAll('.jp-OutputArea-output').forEach(output => output.remove())")
    began = time.perf_counter()
    tab.locator(".jp-Dialog .jp-mod-accept").click()
    shown = tab.get_by_text("imports took")
    shown.wait_for(timeout=60_000)
    total = time.perf_counter() - began
    imports = float(shown.inner_text().split()[-1])
    tab.wait_for_timeout(1500)  # the next round starts on an idle kernel
    print(f"round {round_}: {total:.2f} s, imports {imports:.2f} s", file=sys.stderr)
    return {"total": total, "imports": imports}


def measure() -> dict[str, list[dict[str, float]]]:
    """Return the rounds of each kind; one warm-up round of each is dropped."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "warm": []}
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        labs: dict[str, Any] = {}
        for kind, environment in (("plain", {}), ("warm", warm.environment())):
            folder = Path(scratch) / kind
            folder.mkdir()
            notebook = new_notebook(
                metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
            )
            notebook.cells = [new_code_cell(CELL)]
            nbformat.write(notebook, folder / "bench.ipynb")
            process, url = start_lab(folder, environment)
            tab = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
            tab.goto(f"{url}/lab/tree/bench.ipynb")
            tab.wait_for_selector(".jp-Notebook-cell", timeout=60_000)
            tab.get_by_text("| Idle").wait_for(timeout=60_000)
            labs[kind] = (process, tab)
        for round_ in range(ROUNDS + 1):
            for kind, (_, tab) in labs.items():
                tab.bring_to_front()
                seen = time_restart(tab, round_)
                if round_:
                    found[kind].append(seen)
        browser.close()
        for process, _ in labs.values():
            process.terminate()
            process.wait()
    return found


def main() -> None:
    """Measure, print and write the table."""
    found = measure()
    median = {kind: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} for kind, rounds in found.items()}
    ratio = median["plain"]["total"] / median["warm"]["total"]
    machine = f"{benchmark.describe_machine()}, load average {os.getloadavg()[0]:.1f}"
    text = f"""# Restart and run all in JupyterLab, {benchmark.TODAY}

`ci/bench lab`: {ROUNDS} alternating rounds after one to warm up, medians. Debian's chromium, headless; {machine}.

| kernel | click to output in the page | of it the cell: `import mlflow, sklearn, pandas` |
|---|---|---|
| plain | {median["plain"]["total"]:.2f} s | {median["plain"]["imports"]:.2f} s |
| warm | {median["warm"]["total"]:.2f} s | {median["warm"]["imports"]:.3f} s |
| ratio | {ratio:.1f} | |"""
    benchmark.write_report("lab", [text])


if __name__ == "__main__":
    main()
