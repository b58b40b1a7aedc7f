"""What is done with a model in production: ticks that score, judge, retrain and send back; a past replayed; health."""

from mlops_lib.programs.operate.decide import Decision, Situation, decide
from mlops_lib.programs.operate.feedback import Trace, add_labels, trace
from mlops_lib.programs.operate.monitor import (
    PeriodSeen,
    examine,
    examine_data,
    live_quality,
    log_period,
    monitor_period,
)
from mlops_lib.programs.operate.overview import read_status
from mlops_lib.programs.operate.record import Tick, read_ticks
from mlops_lib.programs.operate.replay import Replay, replay
from mlops_lib.programs.operate.status import Status, write_status
from mlops_lib.programs.operate.tables import read_table
from mlops_lib.programs.operate.tick import run_tick

__all__ = [
    "Decision",
    "PeriodSeen",
    "Replay",
    "Situation",
    "Status",
    "Tick",
    "Trace",
    "add_labels",
    "decide",
    "examine",
    "examine_data",
    "live_quality",
    "log_period",
    "monitor_period",
    "read_status",
    "read_table",
    "read_ticks",
    "replay",
    "run_tick",
    "trace",
    "write_status",
]
