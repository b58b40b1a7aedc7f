"""What is done with a model in production: monitor a period, look at everything."""

from mlops_lib.programs.operate.monitor import (
    PeriodSeen,
    examine,
    examine_data,
    live_quality,
    log_period,
    monitor_period,
)

__all__ = [
    "PeriodSeen",
    "examine",
    "examine_data",
    "live_quality",
    "log_period",
    "monitor_period",
]
