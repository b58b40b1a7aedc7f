"""How good scores are and whether they still are: metrics, intervals, slices, drift, live quality; figures.

For each task of :mod:`mlops_lib.task`. Pure functions on arrays and tables; nothing here reads or writes a store.

>>> from mlops_lib import quality
>>> quality.compute_metrics([0, 1], [0.2, 0.9])["roc_auc"]
1.0
"""

from mlops_lib.quality.drift import check_drift, compute_drift
from mlops_lib.quality.figures import (
    FIGURE_STYLE,
    new_axes,
    plot_calibration,
    plot_confusion,
    plot_drift,
    plot_live_quality,
    plot_residuals,
    plot_score_threshold,
    plot_slices,
)
from mlops_lib.quality.intervals import Interval, compute_interval, compute_paired_interval
from mlops_lib.quality.live import Limit, check_live_quality, compute_live_quality
from mlops_lib.quality.metrics import Metric, compute_metrics, find_metric
from mlops_lib.quality.profiles import Profile, build_profile
from mlops_lib.quality.slices import (
    ScoreGroup,
    adjust_holm,
    compute_class_metrics,
    compute_score_groups,
    compute_slices,
)

__all__ = [
    "FIGURE_STYLE",
    "Interval",
    "Limit",
    "Metric",
    "Profile",
    "ScoreGroup",
    "adjust_holm",
    "build_profile",
    "check_drift",
    "check_live_quality",
    "compute_class_metrics",
    "compute_drift",
    "compute_interval",
    "compute_live_quality",
    "compute_metrics",
    "compute_paired_interval",
    "compute_score_groups",
    "compute_slices",
    "find_metric",
    "new_axes",
    "plot_calibration",
    "plot_confusion",
    "plot_drift",
    "plot_live_quality",
    "plot_residuals",
    "plot_score_threshold",
    "plot_slices",
]
