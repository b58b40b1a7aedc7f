"""What is done with a model in production: monitor a period, look at everything."""

from mlops_lib.programs.operate.monitor import (
    MAX_QUALITY_LOSS,
    PeriodSeen,
    examine,
    live_quality,
    log_period,
    monitor_period,
)

__all__ = [
    "MAX_QUALITY_LOSS",
    "PeriodSeen",
    "examine",
    "live_quality",
    "log_period",
    "monitor_period",
]
