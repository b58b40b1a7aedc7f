"""How good scores are and whether they still are: metrics, intervals, slices, drift, live quality, estimates; figures.

For each task of :mod:`mlops_lib.task`. Pure functions on arrays and tables; nothing here reads or writes a store.

>>> from mlops_lib import quality
>>> quality.compute_metrics([0, 1], [0.2, 0.9])["roc_auc"]
1.0
"""

from mlops_lib.quality.costs import choose_threshold, compute_costs, cost_metric, list_metrics
from mlops_lib.quality.drift import DriftCounter, check_drift, compute_drift
from mlops_lib.quality.estimated import Calibration, estimate_quality, fit_calibration, measure_importance
from mlops_lib.quality.figures import (
    FIGURE_STYLE,
    new_axes,
    plot_calibration,
    plot_confusion,
    plot_drift,
    plot_live_quality,
    plot_policies,
    plot_residuals,
    plot_score_threshold,
    plot_slices,
)
from mlops_lib.quality.intervals import Interval, compute_interval, compute_paired_interval, name_clusters
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
    "Calibration",
    "DriftCounter",
    "Interval",
    "Limit",
    "Metric",
    "Profile",
    "ScoreGroup",
    "adjust_holm",
    "build_profile",
    "check_drift",
    "check_live_quality",
    "choose_threshold",
    "compute_class_metrics",
    "compute_costs",
    "compute_drift",
    "compute_interval",
    "compute_live_quality",
    "compute_metrics",
    "compute_paired_interval",
    "compute_score_groups",
    "compute_slices",
    "cost_metric",
    "estimate_quality",
    "find_metric",
    "fit_calibration",
    "list_metrics",
    "measure_importance",
    "name_clusters",
    "new_axes",
    "plot_calibration",
    "plot_confusion",
    "plot_drift",
    "plot_live_quality",
    "plot_policies",
    "plot_residuals",
    "plot_score_threshold",
    "plot_slices",
]
