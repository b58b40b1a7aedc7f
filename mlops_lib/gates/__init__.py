"""What a candidate must pass, the way up on it, and two versions side by side.

>>> gates.check_gates(project, candidate, champion, "2013-04", max_rows=8_000)  # doctest: +SKIP
"""

from mlops_lib.gates.behaviour import (
    Change,
    ContractCompatible,
    Directional,
    Invariant,
    ModelSize,
    NoLeakage,
    NoTellingFeature,
    OneRowLatency,
    measure_alone,
)
from mlops_lib.gates.checks import FIRST_MODEL, check_gates, judge_rows, measure_slices
from mlops_lib.gates.comparison import SAME, Comparison, compare_versions
from mlops_lib.gates.evidence import NO_CHAMPION, Evidence, Gate, collect_evidence
from mlops_lib.gates.labels import ALPHA, Better, Calibrated, NoSliceWorse, NoWorse, Threshold
from mlops_lib.gates.promotion import promote

__all__ = [
    "ALPHA",
    "FIRST_MODEL",
    "NO_CHAMPION",
    "SAME",
    "Better",
    "Calibrated",
    "Change",
    "Comparison",
    "ContractCompatible",
    "Directional",
    "Evidence",
    "Gate",
    "Invariant",
    "ModelSize",
    "NoLeakage",
    "NoSliceWorse",
    "NoTellingFeature",
    "NoWorse",
    "OneRowLatency",
    "Threshold",
    "check_gates",
    "collect_evidence",
    "compare_versions",
    "judge_rows",
    "measure_alone",
    "measure_slices",
    "promote",
]
