"""The status page: its verdict, its words, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mlops_lib.errors import WriteError
from mlops_lib.programs.notebooks.page import INERT, write_page
from mlops_lib.programs.operate import Status, write_status
from mlops_lib.programs.operate.status import Event, Quality, TickSeen
from mlops_lib.report import Row

CHROMIUM = shutil.which("chromium")
NOW = datetime(2013, 12, 10, 8, 15, tzinfo=UTC)
ALARM = Row("drift of carrier", 0.342, "<= 0.2", "failed", "carrier codes that training hardly knew")
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


def judge(period: str, value: float, *, version: int = 2, limit: float = 0.66) -> Quality:
    held = value >= limit
    return Quality(period, version, "roc_auc", value, value - 0.03, value + 0.03, limit, True, 24_000, held=held)


WAITING = Quality("2013-11", 2, "roc_auc", None, None, None, 0.66, True, 0, estimated=0.695)
GOOD, BAD = judge("2013-10", 0.701), judge("2013-10", 0.641)
DRIFT = pd.DataFrame(
    {
        "psi": [0.05, 0.09, 0.342, np.nan],
        "limit": [0.2, 0.2, 0.2, np.nan],
        "importance": [0.9, 0.02, 0.1, np.nan],
        "largest_move": ["morning 24 % → 31 %", None, "UA 17 % → 29 %", np.nan],
        "failed": [False, False, True, pd.NA],
    },
    index=["hour", "wind", "carrier", "unmeasured"],
)
EVENTS = (
    Event(NOW - timedelta(days=70), "register", "dev", 2, "tick", "retrained", "2013-09"),
    Event(NOW - timedelta(days=69), "promote", "prod", 2, "ana", "5 of 5 gates passed", "2013-10"),
    Event(NOW - timedelta(days=400), "promote", "prod", 1, "ana", "first", "2013-09"),
    Event(NOW - timedelta(days=60), "promote", "staging", 3, "ana", "a look", "2013-10"),
    Event(NOW - timedelta(days=50), "rollback", "prod", 1, "ben", "complaints", "2013-11"),
)
TICKS = (
    TickSeen(NOW - timedelta(days=30), "2013-10", "passed", "scored 27,574 flights", "runs/05.html"),
    TickSeen(NOW, "2013-11", "not_applicable", "labels have not come"),
)


def make_status(**changes: Any) -> Status:
    status = Status(
        project="flight-delays",
        stage="prod",
        version=2,
        description="boosting",
        since=NOW - timedelta(days=69),
        why="5 of 5 gates passed",
        qualities=(judge("2013-09", 0.712, version=1), GOOD),
        drift=DRIFT,
        drift_period="2013-11",
        alarms=(),
        probation="",
        ticks=TICKS,
        events=EVENTS,
        links={"MLflow": "http://127.0.0.1:5000"},
        made_at=NOW,
    )
    return replace(status, **changes)


EMPTY = make_status(
    version=None, description="", since=None, why="", qualities=(), drift=pd.DataFrame(), drift_period="", ticks=(),
    events=(), links={},
)  # fmt: skip


def chart_of(status: Status) -> str:
    """Return the source of the picture in a page."""
    found = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', status._repr_html_())
    assert found is not None
    return base64.b64decode(found[1]).decode()


def words_of(status: Status) -> str:
    """Return what people read of a page."""
    page = re.sub(r"(?s)<style>.*?</style>", "", status._repr_html_())
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


# --- the verdict -------------------------------------------------------------------------------------------------


TOLD = "version 2, ROC AUC 0.701 [0.671, 0.731] in 2013-10, limit 0.660"
TOLD_BAD = "version 2, ROC AUC 0.641 [0.611, 0.671] in 2013-10, limit 0.660"
WELL, ILL = "Production is well: ", "Production needs a look: "


@pytest.mark.parametrize(
    ("changes", "outcome", "headline"),
    [
        ({}, "passed", WELL + TOLD),
        ({"qualities": (GOOD, WAITING)}, "passed", WELL + TOLD),
        ({"qualities": (BAD, GOOD)}, "passed", WELL + TOLD),
        ({"version": 5}, "passed", f"{WELL}version 5; before it {TOLD}"),
        ({"alarms": (ALARM,)}, "failed", f"{ILL}1 alarm (drift of carrier)"),
        ({"alarms": (ALARM, replace(ALARM, name="b"))}, "failed", f"{ILL}2 alarms (drift of carrier, b)"),
        ({"qualities": (GOOD, BAD)}, "failed", ILL + TOLD_BAD),
        ({"qualities": (BAD, WAITING)}, "failed", ILL + TOLD_BAD),
        ({"qualities": (BAD,), "alarms": (ALARM,)}, "failed", f"{ILL}1 alarm (drift of carrier); {TOLD_BAD}"),
        ({"qualities": (WAITING,)}, "not_applicable", "Version 2 is not judged yet"),
        ({"qualities": ()}, "not_applicable", "Version 2 is not judged yet"),
        ({"version": None}, "not_applicable", "Nothing is in production yet"),
        ({"version": None, "alarms": (ALARM,)}, "failed", f"{ILL}1 alarm (drift of carrier)"),
    ],
)
def test_the_verdict_rests_on_open_alarms_and_on_the_newest_period_that_was_judged(
    changes: dict[str, Any], outcome: str, headline: str
) -> None:
    status = make_status(**changes)
    assert (status.outcome, status.headline) == (outcome, headline)
    mark = {"passed": "✓", "failed": "✗", "not_applicable": "–"}[outcome]
    assert str(status).startswith(f"{mark} flight-delays: {headline}\n")
    assert words_of(status).startswith(f"{mark} flight-delays, prod {headline} ")
    assert f'<div class="mlops-verdict mlops-{outcome}">' in status._repr_html_()


def test_the_quality_is_told_below_a_headline_that_is_of_alarms_and_so_is_a_period_without_labels() -> None:
    status = make_status(alarms=(ALARM,), qualities=(GOOD, WAITING))
    assert status.details == [
        "Last judged: version 2, ROC AUC 0.701 [0.671, 0.731] in 2013-10, limit 0.660",
        "2013-11: no labels yet, ROC AUC estimated as 0.695",
    ]
    assert make_status().details == []
    assert all(text in str(status) for text in status.details)


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_answers_in_the_order_in_which_people_ask() -> None:
    words = words_of(make_status(alarms=(ALARM,), costs="4 minutes of computing"))
    parts = ["needs a look", "In production", "Since", "Quality over time", "Open alarms", "Drift in 2013-11"]
    places = [words.index(part) for part in [*parts, "Last ticks", "Latest moves", "MLflow", "Made"]]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "status",
    [
        EMPTY,
        make_status(),
        make_status(qualities=(WAITING,), since=None, why="", description=""),
        make_status(qualities=(replace(GOOD, low=np.nan, high=np.nan, limit=np.nan), replace(GOOD, value=np.nan))),
        make_status(alarms=(replace(ALARM, value=np.nan), replace(ALARM, value=None))),
        make_status(drift=DRIFT.convert_dtypes()),
    ],
)
def test_what_is_missing_is_said_in_words(status: Status) -> None:
    for text in (words_of(status), str(status), chart_of(status) if status.qualities else ""):
        assert not re.search(r"<NA>|\b(nan|NaN|None|NaT|null)\b", text)
    assert "<tbody>\n</tbody>" not in status._repr_html_()


def test_an_empty_page_says_of_each_part_that_there_is_nothing() -> None:
    words = words_of(EMPTY)
    for sentence in (
        "Nothing is in production yet", "No period has been in production yet.", "No alarm is open.",
        "no version is on probation", "No drift has been measured yet.", "No tick has run yet.",
        "The ledger holds no move yet.", "Nothing is linked.",
    ):  # fmt: skip
        assert sentence in words
    assert "<img" not in EMPTY._repr_html_()
    bare = replace(WAITING, estimated=None)
    assert "No period has labels or an estimate yet." in words_of(make_status(qualities=(bare,)))


def test_everything_that_people_wrote_is_escaped() -> None:
    evil = make_status(
        project=EVIL, stage=EVIL, description=EVIL, why=EVIL, probation=EVIL, costs=EVIL, drift_period=EVIL,
        qualities=(judge(EVIL, 0.7), replace(GOOD, metric=EVIL)), alarms=(Row(EVIL, EVIL, EVIL, "failed", EVIL),),
        drift=DRIFT.assign(largest_move=EVIL).rename(index=lambda name: name + EVIL),
        ticks=(TickSeen(NOW, EVIL, "passed", EVIL, EVIL),),
        links={EVIL: EVIL, "b": "JavaScript:alert(1)", "c": "data:x"},
        events=(Event(NOW, "promote", EVIL, 1, EVIL, EVIL, "2013-10"), Event(NOW, EVIL, "dev", 1, EVIL, EVIL)),
    )  # fmt: skip
    page = evil._repr_html_()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert not re.search(r'(?i)href="\s*(javascript|data):', page)
    assert "b: JavaScript:alert(1)" in page
    assert "<script" not in chart_of(evil)
    moving = make_status(why="\x1b[2K", project="a\x1bb", qualities=(judge("\x1bp", 0.7),))
    assert not [text for text in (str(moving), moving._repr_html_(), chart_of(moving)) if "\x1b" in text]


def test_drift_shows_first_what_failed_and_then_what_moved_furthest_and_matters() -> None:
    rows = make_status().rank_drift()
    assert [row["feature"] for row in rows] == ["carrier", "hour", "wind", "unmeasured"]
    assert [row["share"] for row in rows] == [86, 12, 22, 0], "the limit is the middle of a bar"
    assert [row["psi"] for row in rows] == ["0.342", "0.050", "0.090", "not measured"]
    assert rows[1]["importance"] == "90\N{NO-BREAK SPACE}%"
    many = pd.concat([DRIFT] * 5)
    assert len(make_status(drift=many).rank_drift()) == 8


def test_times_are_short_and_of_the_pages_own_time_zone() -> None:
    status = make_status(made_at=NOW.astimezone(timezone(timedelta(hours=1), "CET")))
    assert status.format_time(NOW) == "10 Dec 09:15"
    assert status.format_time(NOW - timedelta(days=400)) == "5 Nov 2012 09:15"
    assert words_of(status).endswith("Made 10 Dec 09:15 CET.")


def test_the_newest_ticks_and_moves_come_first() -> None:
    words = words_of(make_status())
    assert words.index("labels have not come") < words.index("scored 27,574")
    assert words.index("rollback version 1") < words.index("promote version 3") < words.index("register version 2")


# --- the chart ---------------------------------------------------------------------------------------------------


def test_the_chart_marks_what_held_what_missed_and_what_is_only_expected() -> None:
    svg = chart_of(make_status(qualities=(judge("2013-08", 0.7), judge("2013-09", 0.6), GOOD, WAITING)))
    assert re.findall(r'<g class="(\w+)" stroke', svg) == ["held", "missed", "held", "estimated"]
    assert svg.count('class="joint"') == 2, "between measured periods of one version"
    assert svg.count('class="limit"') == 1
    assert "prefers-color-scheme: dark" in svg


def test_the_chart_tells_releases_rollbacks_and_trainings_apart() -> None:
    status = make_status(qualities=(judge("2013-09", 0.7, version=1), GOOD, WAITING))
    svg = chart_of(status)
    assert re.findall(r'<line class="flag (\w+)"', svg) == ["promote", "promote", "rollback"]
    assert re.findall(r'class="flag-text halo"[^>]*>([^<]+)', svg) == ["v1", "v2", "↩ v1"], "not that of staging"
    assert svg.count('d="M-16 222h8l-4-7z"') == 1
    assert all(text in words_of(status) for text in ("released", "rolled back", "trained", "estimated before labels"))
    assert "forced" not in words_of(status), "the legend names what is there"
    assert 'alt="Quality by period: 2013-09 version 1 ROC AUC 0.700 [0.670, 0.730]; ' in status._repr_html_()


def test_months_are_named_in_short_and_other_periods_by_their_names() -> None:
    months = [judge(f"{2012 + n // 12}-{n % 12 + 1:02d}", 0.7) for n in range(30)]
    svg = chart_of(make_status(qualities=tuple(months)))
    assert svg.count('<g class="held"') == 24, "the newest"
    assert re.findall(r">(\d{4})<", svg) == ["2012", "2013", "2014"]
    assert ">Jun<" in svg
    days = [judge(f"2013-11-{n:02d}", 0.7) for n in range(1, 25)]
    svg = chart_of(make_status(qualities=tuple(days)))
    names = re.findall(r"<g( class=\"wide\")?><text[^>]*>(2013-[-\d]+)<", svg)
    assert names[-1] == ("", "2013-11-24")
    assert len(names) == 8
    assert sum(not wide for wide, _ in names) <= 4, "what a telephone has room for"


def test_one_period_with_two_versions_and_no_spread_is_drawn() -> None:
    flat = Quality("p1", 1, "rmse", np.float32(12.0), None, None, None, False, 10)
    svg = chart_of(make_status(qualities=(flat, replace(flat, version=2))))
    assert svg.count('<g class="unjudged"') == 2
    assert "translate(-6 " in svg
    assert 'class="limit"' not in svg


# --- a terminal, a machine, a file -------------------------------------------------------------------------------


def test_a_terminal_shows_the_page_in_about_25_lines() -> None:
    many = tuple(judge(f"2013-{n:02d}", 0.7) for n in range(1, 12))
    status = make_status(qualities=(*many, WAITING), alarms=(ALARM,) * 9, probation="p", costs="c", events=EVENTS * 3)
    lines = str(status).splitlines()
    assert len(lines) <= 27
    assert "Alarms, 9 open" in lines
    assert "  –  2013-11  v2  ROC AUC estimated as 0.695    limit 0.660" in lines
    assert len(str(EMPTY).splitlines()) == 7


def test_a_machine_gets_json() -> None:
    values = json.loads(json.dumps(make_status(alarms=(ALARM,)).to_dict(), allow_nan=False))
    assert (values["outcome"], values["headline"][:10], values["version"]) == ("failed", "Production", 2)
    assert values["drift"][3] == {
        "feature": "unmeasured", "psi": None, "limit": None, "importance": None, "largest_move": None, "failed": None,
    }  # fmt: skip
    assert values["made_at"] == "2013-12-10T08:15:00+00:00"
    assert values["qualities"][0]["held"] is True
    assert json.dumps(EMPTY.to_dict(), allow_nan=False)


def test_a_page_is_written_whole_under_the_policy_of_the_other_pages(tmp_path: Path) -> None:
    path = tmp_path / "pages" / "status.html"
    write_status(make_status(), path)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.index(INERT) < page.index("<title>")
    assert "<title>✓ flight-delays: Production is well" in page
    assert not re.search(r"<script|<link|@import|url\(", page)
    with pytest.raises(WriteError, match=r"no-folder\.html"):
        write_status(make_status(), path / "no-folder.html")
    assert path.read_text(encoding="utf-8") == page


def write_pages(status: Status, folder: Path) -> list[Path]:
    """Write the page by itself, and as a cell's output in the page of a notebook."""
    write_status(status, folder / "status.html")
    outputs = [new_output("execute_result", {"text/html": status._repr_html_()}, execution_count=1)]
    notebook: nbformat.NotebookNode = new_notebook(cells=[new_code_cell("status", outputs=outputs)])
    write_page(notebook, folder / "notebook.html")
    return [folder / "status.html", folder / "notebook.html"]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: run ci/setup-browser as root, or install it")
def test_a_telephone_shows_the_page_without_scrolling_sideways_in_light_and_dark(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    word = "a_name_without_any_place_to_break_" * 4
    status = make_status(
        qualities=tuple(judge(f"2013-{n:02d}", 0.7) for n in range(1, 13)),
        project=word,
        why=word,
        alarms=(replace(ALARM, name=word),),
        drift=DRIFT.rename(index={"hour": word}),
        links={word: "http://x"},
    )
    papers = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for path in write_pages(status, tmp_path):
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
                tab = context.new_page()
                refused: list[str] = []
                tab.on("console", lambda message, refused=refused: refused.append(message.text))
                tab.goto(path.as_uri())
                tab.locator("summary").click()
                assert tab.evaluate("document.scrollingElement.scrollWidth") <= 390, (path.name, scheme)
                assert tab.locator(".mlops-chart").evaluate("img => img.naturalWidth > 0 && img.clientHeight == 260")
                paper = "el => getComputedStyle(el).backgroundColor"
                papers[path.name, scheme] = tab.locator(".mlops-status").evaluate(paper)
                if path.name == "status.html":
                    assert refused == []
                context.close()
        browser.close()
    white, dark = "rgb(255, 255, 255)", "rgb(13, 17, 23)"
    assert [papers["status.html", "light"], papers["status.html", "dark"]] == [white, dark]
    assert [papers["notebook.html", "light"], papers["notebook.html", "dark"]] == [white, white], "as the rest of it"
