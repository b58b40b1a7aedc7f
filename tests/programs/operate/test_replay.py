"""A past played again under several policies, and a year that is simulated day by day or week by week."""

from __future__ import annotations

import pytest
from refusals import raises
from rounds import rounds
from world import at_end_of, begin, make_world

from mlops_lib import registry
from mlops_lib.errors import NotFoundError, OperateError
from mlops_lib.programs import operate
from mlops_lib.project import Project


def test_policies_are_played_side_by_side_and_again_the_same_at_once(project: Project) -> None:
    world = make_world(project, 13, drift_at=6, drifting=0, window=2)
    played = operate.replay(world, "w003", "w012", ["never", "on-drift"])
    assert list(played.table.index) == ["never", "on-drift"]
    assert played.table.loc["never", "trainings"] == 0
    assert played.table.loc["on-drift", "trainings"] > 0
    assert played.table.loc["on-drift", "mean quality"] > played.table.loc["never", "mean quality"]
    assert played.table.loc["never", ["true alarms", "false alarms"]].tolist() == [7, 0]
    assert not (world.root / "data/operate").exists(), "what is in production is as it was"
    n_runs = len(list(played.folder.rglob("*.json")))
    again = operate.replay(world, "w003", "w012", ["never", "on-drift"])
    assert again.table.equals(played.table)
    assert again.folder == played.folder
    assert len(list(played.folder.rglob("*.json"))) == n_runs, "nothing was run again"


def test_what_cannot_be_replayed_is_told(project: Project) -> None:
    with raises(OperateError, "replay"):
        operate.replay(project, "p2", "p3")
    world = make_world(project, 4)
    with raises(NotFoundError, "policy"):
        operate.replay(world, "w002", "w003", ["montly"])
    with raises(OperateError, "replay") as caught:
        operate.replay(world, "w001", "w003")
    assert "1 periods before 'w001'" in str(caught.value)


@pytest.mark.parametrize("drift_at", [20, 10**6], ids=["drift", "no drift"])
def test_a_year_is_operated_without_a_storm_and_ends_with_the_right_version(project: Project, drift_at: int) -> None:
    """Labels late, twice and corrected. Weeks in ci/test, days in ci/soak; only the clock is not real."""
    days, n_periods = (1, 365) if rounds(0, 1) else (7, 52)
    drift = drift_at * 7 // days if drift_at < 10**6 else drift_at
    world = make_world(project, n_periods, drift_at=drift, days=days, drifting=0, window=3, cool_down_days=14)
    first = begin(world)
    ticks = [operate.run_tick(at_end_of(world, period, days=0.5)) for period in world.periods()[5:]]
    trained = [tick for tick in ticks if tick.trained]
    assert all(each["n_scored"] == 300 for tick in ticks for each in tick.scored.values())
    if drift_at == 10**6:
        alarms = [row.name for tick in ticks for row in tick.alarms]
        assert len(alarms) <= 3, alarms
        assert len(trained) <= 2
        return
    noticed = next(tick for tick in ticks if "drift" in str(tick.reasons) and tick.time > ticks[drift - 5].time)
    assert world.periods().index(noticed.periods[-1]) - drift <= 1, "noticed in the first period or the next"
    assert 1 <= len(trained) <= 8, "no storm"
    assert registry.current(world, "prod") != first
    held = operate.read_table(world, "quality")
    last = held[(held["metric"] == "roc_auc") & held["period"].isin(world.periods()[-4:])]
    assert (last["value"] > 0.6).all(), "the version at the end knows the new world"
