"""JupyterLab and MLflow's pages in a real browser, as a data scientist sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT, register_model
from nbformat.v4 import new_code_cell, new_notebook

from mlops_lib import gates, registry, tracking
from mlops_lib.project import Project, load_project

CHROMIUM = shutil.which("chromium")
MLOPS = str(Path(sys.executable).with_name("mlops"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run ci/setup-browser as root, or install it"),
    pytest.mark.timeout(240),
]
# As root, chromium needs --no-sandbox; the others keep it from asking the internet for anything.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], url: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Start a server, wait until ``url`` answers, and end its whole process group afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(url, timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        break
                    time.sleep(0.1)
            else:
                pytest.fail(f"no answer from {url}: {log.read_text()[-2000:]}")
            assert process.poll() is None, log.read_text()[-2000:]
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


@contextmanager
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        finally:
            browser.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Return where pictures go: MLOPS_SCREENSHOTS, for somebody who wants to look, or a temporary folder."""
    folder = Path(os.environ.get("MLOPS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lab_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which JupyterLab keeps its settings, and we our store, in ``folder``."""
    return {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLOPS_OUTPUTS": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }


@contextmanager
def lab(folder: Path, project_file: Path) -> Iterator[str]:
    """Start `mlops lab` on the project's notebooks; yield its address."""
    port = free_port()
    options = ["--no-browser", f"--port={port}", "--ServerApp.token=", "--ServerApp.port_retries=0", "--allow-root"]
    command = [MLOPS, "--project", str(project_file), "lab", "--", *options]
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/api", lab_environment(folder), folder / "lab.log"):
        yield url


def restart_and_run_all(tab: Any) -> None:
    """Do what a person does, once the kernel is there: the menu, the item, the dialog."""
    tab.get_by_text(re.compile(r"Python 3 \(ipykernel\) \| (Idle|Busy)")).wait_for(timeout=60_000)
    tab.get_by_text("Run", exact=True).first.click()
    tab.get_by_text("Restart Kernel and Run All Cells…").click()
    tab.locator(".jp-Dialog .jp-mod-accept").click()


def test_jupyterlab_runs_all_cells_of_the_training_notebook(tmp_path: Path, screenshots: Path) -> None:
    # `mlops lab` shows the project's own notebooks; a copy of the folder keeps the committed ones as they are.
    copy = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", copy, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    project_file = copy / "project.py"
    source = project_file.read_text().replace("Path(__file__).resolve().parent.parent", f"Path({str(tmp_path)!r})")
    project_file.write_text(source)
    uri = lab_environment(tmp_path)["MLFLOW_TRACKING_URI"]
    stored = replace(load_project(ROOT / "notebooks" / "project.py"), root=tmp_path, tracking_uri=uri)
    with lab(tmp_path, project_file) as url, page() as tab:
        tab.goto(f"{url}/lab/tree/notebooks/02_train.ipynb")
        tab.wait_for_selector(".jp-Notebook-cell", timeout=60_000)
        restart_and_run_all(tab)
        made = wait_for_version(stored, tab)
        tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        tab.screenshot(path=screenshots / "jupyterlab.png")
        tab.keyboard.press("Control+s")
        tab.locator(".jp-Notebook").get_by_text("'version': 1").wait_for(timeout=10_000)
        tab.wait_for_timeout(2000)
    assert [version.stages for version in made] == [("dev",)], "the notebook registered a version in the same store"
    saved = json.loads((copy / "02_train.ipynb").read_text())
    code = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def wait_for_version(project: Project, tab: Any) -> list[registry.Version]:
    """Return the registered versions as soon as there is one; the notebook registers it near its end."""
    for _ in range(240):
        if (project.root / "mlflow.db").exists() and registry.list_versions(project):
            return registry.list_versions(project)
        tab.wait_for_timeout(500)
    pytest.fail("no version was registered within two minutes")


def test_mlflow_pages_show_the_registered_model_with_its_stages(project: Project, screenshots: Path) -> None:
    version = register_model(project)
    candidate = registry.load_model(project, version.version)
    verdict = gates.check_gates(project, candidate, None, "p2")
    with tracking.start_run(project):
        registry.log_verdict(project, version.version, verdict)
    gates.promote(project, version.version, "staging")
    port = free_port()
    project_file = project.root / "notebooks" / "project.py"
    project_file.parent.mkdir()
    project_file.write_text(
        "from pathlib import Path\nfrom mlops_lib.project import Project\n"
        "project = Project(name='toy', root=Path(__file__).parent.parent, target='broke', keys=('thing_id',),\n"
        "    features=('size',), arrivals='a/{period}.parquet', labels='l/{period}.parquet')\n"
    )
    command = [MLOPS, "--project", str(project_file), "ui", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": project.tracking_uri}
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/health", environment, project.root / "ui.log"), page() as tab:
        tab.goto(f"{url}/#/models/toy")
        tab.get_by_text("Version 1").first.wait_for(timeout=60_000)
        tab.get_by_text("staging").first.wait_for(timeout=30_000)
        tab.screenshot(path=screenshots / "mlflow-model.png")
        shown = tab.locator("body").inner_text()
    assert "dev" in shown
    assert "staging" in shown


# JupyterLab's status line may still say Idle then.
LAST_CELL_RUNS = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText);
    return prompts[0] === '[1]:' && prompts[1] === '[2]:' && prompts[2] === '[*]:';
}"""


def write_cells(folder: Path, name: str, *cells: str) -> None:
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}})
    notebook.cells = [new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, folder / name)


def test_warm_kernels_in_jupyterlab_interrupt_restart_and_share_nothing(project: Project, screenshots: Path) -> None:
    folder = project.root / "notebooks"
    folder.mkdir()
    (folder / "project.py").write_text(
        "from pathlib import Path\nfrom mlops_lib.project import Project\n"
        "project = Project(name='toy', root=Path(__file__).parent.parent, target='broke', keys=('thing_id',),\n"
        "    features=('size',), arrivals='a/{period}.parquet', labels='l/{period}.parquet')\n"
    )
    whose = "import os, sys\nprint('warm' if 'mlflow' in sys.modules else 'plain', 'x' in globals())"
    write_cells(folder, "one.ipynb", whose, "x = 1", "import time\nwhile True:\n    time.sleep(0.1)")
    write_cells(folder, "two.ipynb", whose, "print('two is done')")
    with lab(project.root, folder / "project.py") as url, page() as tab:
        tab.goto(f"{url}/lab/tree/notebooks/one.ipynb")
        tab.wait_for_selector(".jp-Notebook-cell", timeout=60_000)
        restart_and_run_all(tab)
        tab.get_by_text("warm False").wait_for(timeout=30_000)
        tab.wait_for_function(LAST_CELL_RUNS, timeout=30_000)

        other = tab.context.new_page()
        other.goto(f"{url}/lab/tree/notebooks/two.ipynb")
        other.wait_for_selector(".jp-Notebook-cell", timeout=60_000)
        restart_and_run_all(other)
        other.get_by_text("two is done", exact=True).wait_for(timeout=30_000)
        other.get_by_text("warm False").wait_for(timeout=30_000)
        other.close()

        tab.bring_to_front()
        tab.get_by_text("Kernel", exact=True).first.click()
        tab.get_by_text("Interrupt Kernel").click()
        tab.get_by_text("KeyboardInterrupt").first.wait_for(timeout=30_000)
        tab.screenshot(path=screenshots / "interrupted.png")
        restart_and_run_all(tab)
        tab.wait_for_function(LAST_CELL_RUNS, timeout=30_000)
        assert tab.get_by_text("warm False").count() == 1
        assert tab.get_by_text("warm True").count() == 0, "a restarted kernel has forgotten x"
