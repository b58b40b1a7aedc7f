"""What `mlops new` sees in a table: task, key, split, and what must stay out of the features, each with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from refusals import raises

from mlops_lib.errors import SurveyError
from mlops_lib.programs import release

N = 600


def make_table(**columns: Any) -> pd.DataFrame:
    """Return a table with everything that tables have, and those columns besides."""
    rng = np.random.default_rng(0)
    joined = pd.Timestamp("2021-01-01") + pd.to_timedelta(rng.integers(0, 700, N), unit="D")
    size = rng.normal(10, 2, N)
    table = pd.DataFrame(
        {
            "size": size,
            "joined": joined.strftime("%Y-%m-%d"),
            "city": rng.choice([f"city {n}" for n in range(80)], N),
            "note": [f"what was said of {n}" for n in range(N)],
            "country": "NL",
            "empty": None,
            "income": np.where(rng.random(N) < 0.2, None, rng.integers(1000, 5000, N).astype(str)),
            "churned": np.where(size + rng.normal(0, 3, N) > 11, "yes", "no"),
        }
    )
    return table.assign(income=pd.to_numeric(table["income"]), **columns)


def look(survey: release.Survey) -> dict[str, tuple[str, str]]:
    return {column.name: (column.role, column.reason) for column in survey.columns}


def test_each_column_gets_a_role_and_a_reason() -> None:
    survey = release.survey_table(make_table(), "churned")
    seen = look(survey)
    assert seen["churned"][0] == "target"
    assert seen["size"] == ("feature", "")
    assert seen["joined"][0] == "date"
    assert seen["city"] == ("feature", "high cardinality: rare ones of its 80 values are pooled")
    assert {name: reason for name, (role, reason) in seen.items() if role == "left out"} == {
        "note": "nearly every row has its own: an id or free text",
        "country": "it is constant",
        "empty": "it is empty",
    }
    assert survey.shares == {"train": 0.5, "validation": 0.2, "test": 0.3}
    assert "hash of their key" in survey.reasons["split"]
    assert survey.keys == ()
    text = str(survey)
    assert "600 rows, 8 columns" in text
    assert "one is made, a hash of each row's content" in text


def test_a_leak_is_named_and_left_out() -> None:
    table = make_table()
    answer = (table["churned"] == "yes").astype(int)
    gone = pd.Series(np.where(answer == 1, "2023-05-01", None))
    survey = release.survey_table(table.assign(refund=answer * 20.0 + 1, left_on=gone), "churned")
    assert {column.name for column in survey.leaks} == {"refund", "left_on"}
    assert "! 'refund' looks like the answer in other words and is left out" in str(survey)


def test_a_date_that_is_known_only_later_is_a_leak() -> None:
    table = make_table(seen=pd.date_range("2021-01-01", periods=N, freq="D").strftime("%Y-%m-%d"))
    later = (pd.to_datetime(table["seen"]) + pd.Timedelta("9D")).dt.strftime("%Y-%m-%d")
    survey = release.survey_table(table.assign(closed=later), "churned", time="seen")
    assert look(survey)["closed"] == ("left out", "LEAK: known only later, after 'seen' in 100% of the rows")


@pytest.mark.parametrize(
    ("values", "kind", "positive"),
    [
        (np.array([True, False]), "binary", True),
        (np.array([0, 1]), "binary", 1),
        (np.array(["Yes", "No", "No"]), "binary", "Yes"),
        (np.array(["cat", "dog", "dog"]), "binary", "cat"),
        (np.array([1, 2]), "binary", 1),
        (np.array([3, 4, 5]), "multiclass", None),
        (np.array(["a", "b", "c"]), "multiclass", None),
        (np.arange(200), "regression", None),
        (np.arange(4) + 0.5, "regression", None),
    ],
)
def test_the_task_follows_from_the_target(values: np.ndarray[Any, Any], kind: str, positive: object) -> None:
    table = make_table(y=np.resize(values, N))
    survey = release.survey_table(table, "y")
    assert survey.task.kind == kind
    assert survey.task.positive == positive
    assert survey.reasons["task"].startswith(kind)


def test_a_named_task_goes_before_the_values() -> None:
    assert release.survey_table(make_table(y=np.resize([1, 2, 3], N)), "y", kind="regression").task.kind == "regression"
    with raises(SurveyError, "target"):
        release.survey_table(make_table(), "churned", kind="regression")
    with raises(SurveyError, "target"):
        release.survey_table(make_table(y=np.resize([1, 2, 3], N)), "y", kind="binary")


def test_classes_with_few_rows_are_left_out_and_counted() -> None:
    survey = release.survey_table(make_table(y=["a", "b", "c"] * 197 + ["rare"] * 9), "y")
    assert survey.rare == ("rare",)
    assert survey.task.classes == ("a", "b", "c")
    assert "9 rows of classes with fewer than 20 rows: rare" in survey.reasons["not used"]


def test_time_gives_periods_and_too_little_of_it_does_not() -> None:
    days = pd.date_range("2013-01-01", periods=365, freq="D")
    rows = make_table().sample(365 * 8, replace=True, random_state=0).assign(day=np.repeat(days, 8))
    survey = release.survey_table(rows, "churned", time="day")
    assert survey.periods[:2] == ("2013-01", "2013-02")
    assert survey.shares == {}
    short = release.survey_table(rows.head(600), "churned", time="day")
    assert (short.time, short.periods) == ("", ("train", "validation", "test"))
    assert "too few for 4 periods" in short.reasons["split"]


def test_keys_are_found_made_or_held_against_the_table() -> None:
    assert release.survey_table(make_table(customer_id=range(N)), "churned").keys == ("customer_id",)
    assert release.survey_table(make_table(amount=np.random.default_rng(0).permutation(N)), "churned").keys == ()
    assert release.survey_table(make_table(a=range(N)), "churned", keys=["a", "city"]).keys == ("a", "city")
    with raises(SurveyError, "keys") as caught:
        release.survey_table(make_table(a=[None, *range(N - 2), 0]), "churned", keys=["a"])
    assert (caught.value.facts["n_again"], caught.value.facts["n_null"]) == (1, 1)


@pytest.mark.parametrize(
    ("case", "table", "options"),
    [
        ("rows", make_table().head(100), {}),
        ("target", make_table(churned="yes"), {}),
        ("time", make_table(), {"time": "size"}),
        ("time", make_table(day=[None, *["2021-01-01"] * (N - 1)]), {"time": "day"}),
        ("features", make_table()[["churned", "country", "note"]], {}),
    ],
)
def test_what_no_project_can_be_made_of_is_refused(case: str, table: pd.DataFrame, options: dict[str, Any]) -> None:
    with raises(SurveyError, case):
        release.survey_table(table, "churned", **options)


@pytest.mark.parametrize(
    ("texts", "date_format"),
    [
        (["31/12/2020", "01/02/2021"], "%d/%m/%Y"),
        (["12/31/2020", "01/02/2021"], "%m/%d/%Y"),
        (["31.12.2020"], "%d.%m.%Y"),
        (["01/02/2020"], ""),  # either: nothing is guessed
        (["2020-01-01", "2020-01-02 10:00"], "ISO"),
        (["2020-13-01"], ""),
        (["1.5"], ""),
    ],
)
def test_dates_are_found_in_texts_where_only_one_reading_fits(texts: list[str], date_format: str) -> None:
    column = look_at_dates(texts)
    assert column.date_format == date_format


def look_at_dates(texts: list[str]) -> Any:
    survey = release.survey_table(make_table(when=np.resize(np.array(texts, dtype=object), N)), "churned")
    return next(column for column in survey.columns if column.name == "when")
