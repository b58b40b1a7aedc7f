"""What a candidate must pass, and two versions side by side.

>>> gates.check_gates(project, candidate, champion, frame, inputs=paths)  # doctest: +SKIP
"""

from mlops_lib.gates.behaviour import (
    Change,
    ContractCompatible,
    Directional,
    Invariant,
    ModelSize,
    NoLeakage,
    OneRowLatency,
)
from mlops_lib.gates.checks import FIRST_MODEL, bind, check_gates, measure_slices
from mlops_lib.gates.comparison import SAME, Comparison, compare_versions
from mlops_lib.gates.evidence import NO_CHAMPION, Evidence, Gate, collect_evidence
from mlops_lib.gates.labels import ALPHA, Better, Calibrated, NoSliceWorse, NoWorse, Threshold

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
    "NoWorse",
    "OneRowLatency",
    "Threshold",
    "bind",
    "check_gates",
    "collect_evidence",
    "compare_versions",
    "measure_slices",
]
