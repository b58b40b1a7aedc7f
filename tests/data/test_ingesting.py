"""From one table to a file a period: parts by a hash of the key, keys, dates, and what is written again when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import raises

from mlops_lib import data
from mlops_lib.errors import ProjectError, TableError
from mlops_lib.programs import operate
from mlops_lib.project import Project

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@given(order=st.permutations(range(40)))
def test_a_row_is_in_the_same_part_wherever_it_stands_and_whoever_stands_beside_it(order: list[int]) -> None:
    table = pd.DataFrame({"id": range(40), "size": np.arange(40) / 7})
    parts = data.deal_rows(table, ["id"], SHARES)
    shuffled = data.deal_rows(table.iloc[order[:20]], ["id"], SHARES)
    assert shuffled.equals(parts.loc[shuffled.index])


def test_parts_have_their_shares_and_rows_of_one_key_stay_together() -> None:
    table = pd.DataFrame({"customer": np.arange(20_000) % 5_000})
    parts = data.deal_rows(table, ["customer"], SHARES)
    assert parts.groupby(table["customer"]).nunique().max() == 1
    shares = parts.value_counts(normalize=True)
    assert all(abs(shares[name] - share) < 0.03 for name, share in SHARES.items())


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.2, "test": -0.2}])
def test_shares_that_do_not_add_up_are_refused(shares: dict[str, float]) -> None:
    with raises(TableError, "shares"):
        data.deal_rows(pd.DataFrame({"id": [1]}), ["id"], shares)


def test_keys_that_are_made_are_unique_and_do_not_depend_on_the_order_of_rows() -> None:
    table = pd.DataFrame({"size": [1.5, 2.5, 1.5, None], "color": ["red", None, "red", "blue"]})
    keys = data.key_rows(table)
    assert keys.is_unique
    assert keys[2] == f"{keys[0]}-1"
    assert {*data.key_rows(table.iloc[::-1])} == {*keys}


def test_dates_become_numbers_and_missing_stays_missing() -> None:
    table = pd.DataFrame({"born": ["2020-02-29", None, "2019-12-31T23:00"], "seen": pd.to_datetime(["2020-03-02"] * 3)})
    plain = data.expand_dates(table, ["born"])
    assert plain["born_year"].tolist()[::2] == [2020.0, 2019.0]
    assert plain["born_day_of_week"].tolist()[::2] == [5.0, 1.0]
    assert plain.loc[1, ["born_year", "born_month"]].isna().all()
    before = data.expand_dates(table, ["born"], until="seen")
    assert before["born_days_before"].tolist()[0] == 2.0
    assert "born_year" not in before
    with raises(TableError, "time"):
        data.expand_dates(table.assign(born="soon"), ["born"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return data.write_table(pd.DataFrame({"id": range(300), "broke": [0, 1, None] * 100}), tmp_path / "source.parquet")


def _ingest(source: Path, shares: dict[str, float] = SHARES) -> tuple[tuple[str, ...], int]:
    """Ingest; return the periods and how often the source was read."""
    n_reads = 0

    def read() -> pd.DataFrame:
        nonlocal n_reads
        n_reads += 1
        table = data.read_table(source)
        return table.assign(part=data.deal_rows(table, ["id"], shares))

    return data.write_periods(source.parent / "data/{period}.parquet", source, read, by="part"), n_reads


def test_files_are_written_once_and_again_when_the_source_changes_or_one_is_gone(source: Path) -> None:
    periods, n_reads = _ingest(source)
    assert {*periods} == {*SHARES}
    assert n_reads == 1
    assert _ingest(source) == (periods, 0)
    (source.parent / "data/test.parquet").unlink()
    assert _ingest(source) == (periods, 1)
    data.write_table(pd.DataFrame({"id": range(500)}), source)
    assert _ingest(source)[1] == 1
    tables = {period: data.read_table(source.parent / f"data/{period}.parquet") for period in periods}
    assert sum(map(len, tables.values())) == 500
    assert all(list(table) == ["id"] for table in tables.values())


def test_periods_that_are_no_longer_there_go_and_rows_without_one_are_refused(source: Path) -> None:
    _ingest(source)
    data.write_table(pd.DataFrame({"id": range(300)}), source)
    assert _ingest(source, {"train": 1.0})[0] == ("train",)
    assert [path.name for path in sorted(source.parent.glob("data/*.parquet"))] == ["train.parquet"]
    with raises(TableError, "time"):
        data.write_periods(
            source.parent / "data/{period}.parquet",
            data.write_table(pd.DataFrame({"id": [1]}), source),
            lambda: pd.DataFrame({"id": [1], "part": [None]}),
            by="part",
        )
    assert (source.parent / "data/train.parquet").exists()


def _one_table(source: Path, **changes: object) -> Project:
    _ingest(source)
    made = Project(
        name="one",
        root=source.parent,
        target="broke",
        keys=("id",),
        features=("size",),
        arrivals="data/{period}.parquet",
        period_order=tuple(SHARES),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_one_table_holds_the_labels_too_and_periods_come_as_listed(source: Path) -> None:
    project = _one_table(source)
    assert project.tables == ("arrivals",)
    assert project.periods() == project.periods("labels") == ("train", "validation", "test")
    assert project.periods(first="validation") == ("validation", "test")
    with raises(ProjectError, "periods"):
        project.periods("labels", "test", "train")
    rows = data.read_labelled(project, project.periods())
    assert sorted(rows["id"]) == [n for n in range(300) if n % 3 < 2]
    assert list(rows) == ["id", "broke"]
    assert len(data.read_labels(project, "train")) == len(data.read_labelled(project, "train"))


def test_without_a_column_of_times_every_label_counts_at_any_time(source: Path) -> None:
    as_of = pd.Timestamp("2020-01-01", tz="UTC").to_pydatetime()
    assert len(data.read_labels(_one_table(source, labelled_at=""), "train", as_of=as_of))
    with raises(TableError, "columns"):
        data.read_labels(_one_table(source), "train", as_of=as_of)


def test_doctor_reads_the_one_table(source: Path) -> None:
    project = _one_table(source, features=("size",))
    with raises(TableError, "columns"):
        operate.examine_data(project)
    table = data.read_table(source)
    data.write_table(table.assign(size=1.0), source)
    assert "labelled rows in test" in operate.examine_data(_one_table(source))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["part-10", "part-2"], ["part-2", "part-10"]),
        (["2013-10", "2013-1", "2013-2"], ["2013-1", "2013-2", "2013-10"]),
        (["2013-04-01", "2012-12-31", "b", "a9"], ["2012-12-31", "2013-04-01", "a9", "b"]),
    ],
)
def test_periods_are_ordered_by_the_numbers_in_their_names(names: list[str], order: list[str], tmp_path: Path) -> None:
    for name in names:
        data.write_table(pd.DataFrame({"id": [1]}), tmp_path / f"data/{name}.parquet")
    project = Project(
        name="one", root=tmp_path, target="y", keys=("id",), features=("x",), arrivals="data/{period}.parquet"
    )
    assert list(project.periods()) == order
    assert list(project.periods(last=order[1])) == order[:2]
