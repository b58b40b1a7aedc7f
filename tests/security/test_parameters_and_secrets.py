"""What a notebook is given, says and shows: no name runs, no secret stays, no markup acts."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import nbformat
import papermill
import pytest
from nbconvert import HTMLExporter
from notebook_files import count_runs, last_run, write_notebook
from playwright.sync_api import Page, sync_playwright
from refusals import raises
from test_browser import CHROMIUM, FLAGS

from mlops_lib import registry, tracking
from mlops_lib.errors import NotebookError, NotFoundError, ParameterError
from mlops_lib.programs import notebooks
from mlops_lib.project import Project
from mlops_lib.report import Report, Row
from mlops_lib.tracking import store

CANARY = "canary-4711-of-the-coal-mine"


class Acting(HTMLParser):
    """Collects what a browser would run: scripts, handlers, frames, javascript links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.found.append(f"{tag} {name}={value}")
        if tag in ("iframe", "object", "embed"):
            self.found.append(tag)

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.found.append(f"script {data}")
        self.text += data


def find_acting(html: str, *, needle: str = "PWN") -> list[str]:
    """Return what in a page would run and mentions the needle."""
    page = Acting()
    page.feed(html)
    return [found for found in page.found if needle in found]


# --- parameters --------------------------------------------------------------------------------------------------


def test_a_name_that_carries_code_an_unknown_one_and_a_wrong_type_run_nothing(
    project: Project, tmp_path: Path, record: Callable[..., None]
) -> None:
    path, sentinel = write_notebook(tmp_path / "nb", "1"), tmp_path / "sentinel"
    names = {f"x=1; open({str(sentinel)!r}, 'w').close(); y": 1}
    papermill.execute_notebook(path, tmp_path / "out.ipynb", names, progress_bar=False)
    assert sentinel.exists(), "papermill pastes names as they are"
    sentinel.unlink()
    papermill.execute_notebook(path, tmp_path / "out.ipynb", {"prnt": 1, "name": 5}, progress_bar=False)
    for given, error, case in (
        (names, NotFoundError, "parameter"),
        ({"prnt": 1}, NotFoundError, "parameter"),
        ({"alpha": "high"}, ParameterError, "value"),
        ({"name": 5}, ParameterError, "value"),
    ):
        with raises(error, case):
            notebooks.run_notebook(project, path, given)
    assert not sentinel.exists()
    assert count_runs(project) == 0
    record(
        29,
        plain="papermill runs the code in a name, and takes unknown names and wrong types",
        ours="refused with the nearest name before a kernel starts; no run is made",
    )


# --- secrets -----------------------------------------------------------------------------------------------------


def find_in_store(project: Project, needle: str) -> list[str]:
    """Return every file below the project and every table of its store that holds ``needle``."""
    files = [str(f) for f in project.root.rglob("*") if f.is_file() and needle.encode() in f.read_bytes()]
    with sqlite3.connect(store.sqlite_path(project.tracking_uri) or "") as database:
        dump = [line for line in database.iterdump() if needle in line]
    return files + [line[:80] for line in dump]


def test_secrets_that_a_notebook_prints_returns_logs_and_raises_stay_in_no_file_and_no_row(
    project: Project, tmp_path: Path, record: Callable[..., None]
) -> None:
    password = "hunter2-of-the-database"
    path = write_notebook(
        tmp_path / "nb",
        "import os, sys\ntoken, url = os.environ['WEATHER_TOKEN'], os.environ['DATABASE_URL']\nprint(token, url)",
        "print(token, file=sys.stderr)\n{'token': token, 'url': url}",
        "from IPython.display import HTML\nHTML(f'<b>{token}</b>')",
        "import warnings\nwarnings.warn(token)",
        "raise ConnectionError(f'{url} refused {token}')",
    )
    environment = {
        **os.environ,
        "WEATHER_TOKEN": CANARY,
        "DATABASE_URL": f"postgresql://ada:{password}@db.example/mlflow",
    }
    with raises(NotebookError, "cell") as error:
        notebooks.run_notebook(replace(project, environ=environment), path)
    assert last_run(project).info.status == "FAILED"
    for secret in (CANARY, password):
        assert secret not in str(error.value)
        assert find_in_store(project, secret) == []
    found = find_in_store(project, "***")
    assert any(name.endswith(".ipynb") for name in found), "the outputs themselves are kept"
    assert any(name.endswith(".html") for name in found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEATHER_TOKEN", CANARY)
        patch.setenv("DATABASE_URL", environment["DATABASE_URL"])
        with pytest.raises(papermill.PapermillExecutionError):
            papermill.execute_notebook(path, tmp_path / "out.ipynb", progress_bar=False)
    assert (tmp_path / "out.ipynb").read_text().count(CANARY) > 3
    record(
        30,
        plain="papermill keeps every secret that a notebook prints or raises",
        ours="secrets of the environment are stars in every file and row",
    )


# --- markup ------------------------------------------------------------------------------------------------------

EVIL = "<img src=x onerror=alert('PWN')>"


def test_a_report_shows_names_as_text(project: Project, version: registry.Version) -> None:
    report = Report(EVIL, (Row(EVIL, EVIL, EVIL, "failed", EVIL),), {"model": EVIL})
    assert find_acting(report._repr_html_()) == []
    assert report._repr_html_().count("&lt;img src=x onerror=") == 5
    with tracking.start_run(project) as run:
        registry.log_verdict(project, 1, report)
    client = store.connect(project.tracking_uri)
    text = mlflow.artifacts.load_text(f"{client.get_run(run.info.run_id).info.artifact_uri}/verdict.html")
    assert find_acting(text) == []
    assert "&lt;img src=x" in text


ACTING_CELLS = (
    "from IPython.display import HTML, Javascript, Markdown, SVG, display",
    "display(HTML(\"<script>alert('PWN')</script><b>bold</b><iframe src='javascript:PWN'></iframe>\"))",
    "display(HTML(\"<img src=x onerror=alert('PWN')><a href='javascript:alert(1)//PWN'>link</a>\"))",
    "display(Javascript(\"alert('PWN')\"))",
    "display(Markdown(\"<script>alert('PWN')</script> *slanted*\"))",
    "display(SVG(\"<svg xmlns='http://www.w3.org/2000/svg' onload=\\\"alert('PWN')\\\"><circle r='3'/></svg>\"))",
    "print(\"<script>alert('PWN')</script>\")",
    "import pandas as pd\npd.DataFrame({'<script>alert(\"PWN\")</script>': [1, 2]})",
)


SHOWN_CELLS = (
    "import matplotlib\nmatplotlib.use('module://matplotlib_inline.backend_inline')\n"
    "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    "from mlops_lib.report import Report, Row\nReport('Gates', (Row('roc_auc', 0.7, '>= 0.6', 'passed', 'enough'),))",
)


def open_page(page: Page, path: Path) -> tuple[list[str], set[str]]:
    """Open a file in a browser; return what its scripts said, and why what it wanted of other hosts did not come."""
    said: list[str] = []
    refused: set[str] = set()
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: refused.add(str(request.failure)))
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_timeout(300)
    return said, refused


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run ci/setup-browser as root, or install it")
def test_what_a_notebook_shows_is_inert_in_its_report_and_still_shown(
    project: Project, tmp_path: Path, record: Callable[..., None]
) -> None:
    path = write_notebook(tmp_path / "nb", *ACTING_CELLS, "# <script>alert('PWN')</script> a heading", *SHOWN_CELLS)
    run = notebooks.run_notebook(project, path)
    html = run.html_path.read_text(encoding="utf-8")
    assert html.index("Content-Security-Policy") < html.index("<script"), "the policy comes first"
    plain, _ = HTMLExporter().from_notebook_node(nbformat.read(run.executed_path, as_version=4))
    assert find_acting(plain)
    (tmp_path / "plain.html").write_text(plain, encoding="utf-8")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        said, _ = open_page(browser.new_page(), tmp_path / "plain.html")
        assert "PWN" in said
        page = browser.new_page()
        said, refused = open_page(page, run.html_path)
        assert (said, refused - {"csp"}) == ([], set()), "what is left is refused by the policy, not by the network"
        assert page.locator("b", has_text="bold").is_visible()
        assert page.locator("h1", has_text="a heading").is_visible()
        width = "els => els.map(el => el.naturalWidth).filter(width => width > 100).length"
        assert page.locator("img[src^='data:image/png']").evaluate_all(width) == 1, "the figure is there"
        assert page.locator("img[src^='data:image/svg']").count() == 1
        mark = page.locator("td", has_text="passed").first
        assert mark.evaluate("el => getComputedStyle(el).color") == "rgb(27, 120, 55)", "the table has its colours"
        browser.close()
    record(
        30,
        plain="nbconvert's page runs the scripts that a notebook's outputs hold",
        ours="names and outputs act in no report, and load nothing from elsewhere",
    )


def test_the_needle_would_be_found() -> None:
    for acting in ("<script>PWN</script>", EVIL, "<a href='javascript:PWN'>x</a>"):
        assert find_acting(acting), acting
    assert find_acting("<p>PWN</p>") == []
