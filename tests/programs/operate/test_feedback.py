"""Labels that come one by one, by key or by id, and what one prediction rests on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest
from refusals import raises
from world import at_end_of, begin, make_world

from mlops_lib import data
from mlops_lib.errors import NotFoundError, QualityError, TableError
from mlops_lib.programs import operate
from mlops_lib.project import Project


@pytest.fixture
def operated(project: Project) -> Project:
    """Return a project whose week w005 was scored, and has no label table: labels come as feedback alone."""
    world = make_world(project, 6)
    begin(world)
    world.path("labels", "w005").unlink()
    at = at_end_of(world, "w005", days=1)
    operate.run_tick(at)
    return at


def labels_of(project: Project, n_rows: int = 300) -> pd.DataFrame:
    scored = data.read_table(project.predictions_path("w005", 1)).head(n_rows)
    return scored[["thing_id", "prediction_id"]].assign(broke=[0, 1, 1] * (n_rows // 3))


def counts(report: operate.Tick | object) -> dict[str, object]:
    return {row.name: row.value for row in report.rows}  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", ["thing_id", "prediction_id"])
def test_labels_are_joined_by_key_or_by_id_and_once_however_often_they_come(operated: Project, by: str) -> None:
    labels = labels_of(operated)[[by, "broke"]]
    first = operate.add_labels(operated, labels.head(200))
    again = operate.add_labels(operated, labels)
    assert (counts(first)["new labels"], counts(again)["new labels"], counts(again)["told before"]) == (200, 100, 200)
    later = replace(operated, now=operated.clock + timedelta(hours=1))
    tick = operate.run_tick(later)
    assert tick.labelled["w005"] == 300
    quality = operate.read_table(operated, "quality", ["w005"])
    assert quality["n_labelled"].unique().tolist() == [300]


def test_a_correction_counts_from_when_it_is_known_and_both_times_are_kept(operated: Project) -> None:
    labels = labels_of(operated, 3)[["thing_id", "broke"]]
    operate.add_labels(operated, labels)
    later = replace(operated, now=operated.clock + timedelta(hours=1))
    report = operate.add_labels(later, labels.assign(broke=1 - labels["broke"]))
    assert counts(report)["corrected rows"] == 3
    assert data.read_labels(operated, "w005").set_index("thing_id")["broke"].tolist() == labels["broke"].tolist()
    assert data.read_labels(later, "w005").set_index("thing_id")["broke"].tolist() == [1, 0, 0]
    kept = data.read_table(operated.feedback_path("w005"))
    assert kept["labelled_at"].nunique() == kept["received_at"].nunique() == 2


def test_labels_that_contradict_each_other_are_told_and_none_counts(operated: Project) -> None:
    labels = labels_of(operated, 3)[["thing_id", "broke"]]
    report = operate.add_labels(operated, pd.concat([labels, labels.assign(broke=1 - labels["broke"])]))
    assert counts(report)["contradictions"] == 3
    assert not report.passed
    with raises(QualityError, "keys"):
        data.read_labels(operated, "w005")


def test_labels_of_unknown_rows_are_named_and_not_taken(operated: Project) -> None:
    labels = pd.concat([labels_of(operated, 3)[["thing_id", "broke"]], pd.DataFrame({"thing_id": [-1], "broke": [1]})])
    report = operate.add_labels(operated, labels)
    assert (counts(report)["new labels"], counts(report)["unknown rows"]) == (3, 1)
    assert "the first is -1" in str(report)
    assert len(report.failures) == 1


def test_what_is_no_label_is_refused_and_nothing_is_taken(operated: Project) -> None:
    labels = labels_of(operated, 3)[["thing_id", "broke"]]
    for wrong, error in (
        (labels.assign(broke=2), QualityError),
        (labels.drop(columns="thing_id"), TableError),
        (labels.iloc[:0], TableError),
        (labels.assign(labelled_at=pd.Timestamp("2999-01-01", tz="UTC")), TableError),
    ):
        with pytest.raises(error):
            operate.add_labels(operated, wrong)
    assert not operated.feedback_path("w005").exists()


def test_a_prediction_is_followed_to_everything_that_it_rests_on(operated: Project) -> None:
    scored = data.read_table(operated.predictions_path("w005", 1))
    found = operate.trace(operated, scored["prediction_id"].iloc[7])
    assert found.facts["row"] == f"thing_id {scored['thing_id'].iloc[7]} of w005"
    assert found.facts["version"].startswith("1 of 'toy'")
    assert "promote prod" in found.facts["release"]
    assert len(found.facts["verdict"]) == 64
    assert set(found.moved_by.index) == {"color", "size", "weight"}
    row = data.read_table(operated.path("arrivals", "w005")).iloc[7]
    assert (found.moved_by["size"] > 0) == (row["size"] > 10), "larger things break sooner"
    assert str(found).count("\n") > 8


def test_an_id_that_nobody_has_is_named(operated: Project) -> None:
    with raises(NotFoundError, "prediction"):
        operate.trace(operated, "toy/1/none")
