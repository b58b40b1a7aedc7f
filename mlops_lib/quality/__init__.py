"""How good scores are and whether they still are: metrics, intervals, slices, drift, live quality; figures.

Pure functions on arrays and tables; nothing here reads or writes a store.

>>> from mlops_lib import quality
>>> quality.compute_metrics([0, 1], [0.2, 0.9])["roc_auc"]
1.0
"""

from mlops_lib.quality.evaluation import (
    METRICS,
    MIN_CLUSTERS,
    MIN_PER_CLASS,
    Interval,
    Metric,
    ScoreGroup,
    adjust_holm,
    compute_interval,
    compute_metrics,
    compute_paired_interval,
    compute_score_groups,
    compute_slices,
    plot_calibration,
    plot_roc,
    plot_score_threshold,
    plot_slices,
)
from mlops_lib.quality.monitoring import (
    FALSE_ALARM_RATE,
    MAX_CATEGORIES,
    Calibration,
    ColumnProfile,
    Limit,
    Profile,
    build_profile,
    check_drift,
    check_live_quality,
    compute_drift,
    compute_live_quality,
    estimate_roc_auc,
    fit_calibration,
    plot_drift,
    plot_live_quality,
)

__all__ = [
    "FALSE_ALARM_RATE",
    "MAX_CATEGORIES",
    "METRICS",
    "MIN_CLUSTERS",
    "MIN_PER_CLASS",
    "Calibration",
    "ColumnProfile",
    "Interval",
    "Limit",
    "Metric",
    "Profile",
    "ScoreGroup",
    "adjust_holm",
    "build_profile",
    "check_drift",
    "check_live_quality",
    "compute_drift",
    "compute_interval",
    "compute_live_quality",
    "compute_metrics",
    "compute_paired_interval",
    "compute_score_groups",
    "compute_slices",
    "estimate_roc_auc",
    "fit_calibration",
    "plot_calibration",
    "plot_drift",
    "plot_live_quality",
    "plot_roc",
    "plot_score_threshold",
    "plot_slices",
]
