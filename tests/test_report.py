"""The one record of what was checked: passes only on evidence, reads the same for people and machines."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_lib.errors import ReportFailedError
from mlops_lib.report import STATUSES, Report, Row, format_value, table_lines

PASSED = Row("rows", 1000, ">= 100", "passed")
FAILED = Row("test_roc_auc", 0.671, ">= 0.680", "failed", "below")
SKIPPED = Row("minus_champion", None, ">= -0.010", "not_applicable", "the first model has no champion")


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        ((), False),
        ((SKIPPED,), False),
        ((PASSED,), True),
        ((PASSED, SKIPPED), True),
        ((PASSED, FAILED), False),
        ((FAILED,), False),
    ],
)
def test_report_passes_only_if_something_was_checked_and_nothing_failed(rows: tuple[Row, ...], passed: bool) -> None:
    assert Report("Gates", rows).passed is passed


def test_a_row_of_unknown_status_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"status is 'ok', needs one of"):
        Row("rows", 1, "", "ok")  # type: ignore[arg-type]


def test_raise_for_failures_names_what_failed() -> None:
    with pytest.raises(ReportFailedError, match=r"1 of 3 checks failed. test_roc_auc is 0.671, needs >= 0.680"):
        Report("Gates", (PASSED, FAILED, SKIPPED)).raise_for_failures()


def test_raise_for_failures_does_not_let_an_empty_report_through() -> None:
    with pytest.raises(ReportFailedError, match=r"nothing was checked"):
        Report("Gates", ()).raise_for_failures()


def test_raise_for_failures_is_silent_when_the_report_passed() -> None:
    Report("Gates", (PASSED, SKIPPED)).raise_for_failures()


def test_frame_has_a_row_per_check_and_its_columns_even_when_empty() -> None:
    columns = ["name", "value", "limit", "status", "reason"]
    frame = Report("Gates", (PASSED, FAILED)).frame()
    assert list(frame.columns) == columns
    assert frame["status"].tolist() == ["passed", "failed"]
    assert list(Report("Gates", ()).frame().columns) == columns


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_nan_that_other_parsers_refuse(value: float) -> None:
    def refuse(text: str) -> float:
        raise AssertionError(text)

    text = Report("Gates", (Row("x", value, "", "failed"),), {"share": value, "nested": {"low": [value]}}).to_json()
    assert json.loads(text, parse_constant=refuse)["rows"][0]["value"] == str(value)


@given(
    rows=st.lists(
        st.builds(
            Row,
            st.text(),
            st.none() | st.integers() | st.floats() | st.text(),
            st.text(),
            st.sampled_from(STATUSES),
            st.text(),
        )
    ),
    facts=st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.floats(allow_nan=False)),
)
def test_json_goes_out_and_comes_back_as_the_same_verdict(rows: list[Row], facts: dict[str, object]) -> None:
    report = Report("Gates", tuple(rows), facts)
    back = Report.from_dict(json.loads(report.to_json()))
    assert back.to_json() == report.to_json()
    assert back.passed == report.passed


def test_json_is_canonical_whatever_the_order_of_facts() -> None:
    assert Report("t", (), {"a": 1, "b": 2}).to_json() == Report("t", (), {"b": 2, "a": 1}).to_json()


def test_text_says_the_outcome_first_and_aligns_columns() -> None:
    lines = str(Report("Gates", (PASSED, FAILED, SKIPPED))).splitlines()
    assert lines[0] == "Gates: FAILED"
    assert lines[1].startswith("✓  rows ")
    assert lines[2] == "✗  test_roc_auc    0.671  >= 0.680   below"
    assert len({line.index("=") for line in lines[1:]}) == 1


@pytest.mark.parametrize("rows", [(), (SKIPPED,), (SKIPPED, SKIPPED)])
def test_a_report_in_which_nothing_applied_says_so_and_has_not_passed(
    rows: tuple[Row, ...],
) -> None:
    report = Report("Live quality", rows)
    assert (report.outcome, report.passed) == ("not_applicable", False)
    assert str(report).splitlines()[0] == "Live quality: nothing was judged"
    assert ">nothing was judged</span>" in report._repr_html_()
    assert "fail" not in f"{report}{report._repr_html_()}".lower()
    with pytest.raises(ReportFailedError):
        report.raise_for_failures()


def test_html_escapes_what_a_table_or_a_name_brings_along() -> None:
    evil = "<img src=x onerror=alert(1)>"
    html = Report(evil, (Row(evil, evil, evil, "failed", evil),))._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img") == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "True"),
        (7, "7"),
        ("x", "x"),
        (0.67123456, "0.6712"),
        (123456.7, "123,457"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_values_read_well(value: object, text: str) -> None:
    assert format_value(value) == text


def test_table_lines_of_nothing_is_nothing() -> None:
    assert table_lines([]) == []
    assert table_lines([["a", 1], ["bbb", None]]) == ["a    1", "bbb"]


def test_a_note_stands_under_the_title_and_goes_out_and_comes_back() -> None:
    report = Report("Gates", (PASSED,), note="There is no champion <yet>.")
    assert str(report).splitlines()[1] == "There is no champion <yet>."
    assert "There is no champion &lt;yet&gt;." in report._repr_html_()
    assert Report.from_dict(json.loads(report.to_json())) == report
    assert "note" not in Report("Gates", (PASSED,)).to_dict(), "older reports keep their digest"


def test_html_asks_in_plain_words_and_gives_the_unit_and_the_count() -> None:
    row = Row("model_size", 2.5, "<= 20 MB", "passed", "", "Is it small enough?", "MB")
    html = Report("Gates", (row, FAILED, SKIPPED))._repr_html_()
    assert "Is it small enough?<br><small" in html
    assert "2.5 MB" in html
    assert "1 passed, 1 failed, 1 not applicable" in html
    assert "2.5 MB" in str(Report("Gates", (row,)))
    assert {"question", "unit"} & set(Report("Gates", (PASSED,)).to_dict()["rows"][0]) == set()
    assert Report.from_dict(json.loads(Report("Gates", (row,)).to_json())).rows == (row,)
    assert "nothing was checked" in Report("Gates", ())._repr_html_()
