"""Arrivals with their labels: joined on keys, as they were known at a moment, and evenly thinned."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from refusals import raises

from mlops_lib import data
from mlops_lib.errors import NotFoundError, QualityError, TableError
from mlops_lib.project import Project


def rewrite(project: Project, table: str, change: object) -> None:
    path = project.path(table, "p1")
    data.write_table(change(data.read_table(path)), path)  # type: ignore[operator]


def test_arrivals_come_in_their_order_with_target_and_time_of_the_label(project: Project) -> None:
    rewrite(project, "labels", lambda labels: labels.sample(frac=1, random_state=0).assign(note="x"))
    rows = data.read_labelled(project, "p1")
    arrivals = data.read_table(project.path("arrivals", "p1"))
    assert list(rows) == [*arrivals, "broke", "labelled_at"]
    pd.testing.assert_frame_equal(rows[list(arrivals)], arrivals)
    labels = data.read_table(project.path("labels", "p1")).set_index("thing_id")
    assert rows["broke"].tolist() == labels.loc[rows["thing_id"], "broke"].tolist()


def test_only_rows_with_a_label_are_left_and_periods_stand_one_below_the_other(project: Project) -> None:
    rewrite(project, "labels", lambda labels: labels.iloc[10:].assign(broke=labels["broke"].where(labels.index >= 20)))
    rows = data.read_labelled(project, ["p1", "p2"], columns=["size"])
    assert list(rows) == ["thing_id", "size", "broke", "labelled_at"]
    assert rows["thing_id"].tolist() == [*range(20, 1000), *range(1000, 2000)]
    assert rows.index.tolist() == list(range(1980))


def test_only_labels_known_by_then_count(project: Project) -> None:
    rows = data.read_labelled(project, "p1")
    moment = rows["labelled_at"].iloc[99].to_pydatetime()
    assert len(data.read_labelled(project, "p1", as_of=moment)) == 100
    assert len(data.read_labels(project, "p1", as_of=moment.replace(tzinfo=None))) == 100, "without a zone it is UTC"


@pytest.mark.parametrize("max_rows", [1, 3, 333, 999, 1000, 2000])
def test_no_more_rows_than_asked_for_at_even_distances_and_the_same_ones_every_time(
    project: Project, max_rows: int
) -> None:
    rows = data.read_labelled(project, "p1", max_rows=max_rows)
    assert len(rows) == min(max_rows, 1000)
    distances = rows["thing_id"].diff().dropna()
    assert distances.empty or distances.max() - distances.min() <= 1
    pd.testing.assert_frame_equal(rows, data.read_labelled(project, "p1", max_rows=max_rows))


@pytest.mark.parametrize("table", ["arrivals", "labels"])
def test_a_key_that_names_two_rows_is_refused(project: Project, table: str) -> None:
    again = {"broke": lambda rows: 1 - rows["broke"]} if table == "labels" else {}
    rewrite(project, table, lambda rows: pd.concat([rows, rows.head(2).assign(**again)]))
    with raises(QualityError, "keys") as caught:
        data.read_labelled(project, "p1")
    assert str(caught.value).startswith(f"2 rows of the {table} repeat a key (thing_id); the first is 0.")


def test_labels_need_no_time_until_somebody_asks_for_it(project: Project) -> None:
    untimed = replace(project, labelled_at="known_at")
    assert list(data.read_labels(untimed, "p1")) == ["thing_id", "broke"]
    with raises(TableError, "columns"):
        data.read_labels(untimed, "p1", as_of=pd.Timestamp("2020-01-01"))


def test_what_is_not_there_is_told(project: Project) -> None:
    with raises(NotFoundError, "period"):
        data.read_labelled(project, "p9")
    with raises(QualityError, "no_rows"):
        data.read_labelled(project, ["p1", "p2"], as_of=pd.Timestamp("2000-01-01"))
