"""What a candidate must pass, and two versions side by side.

>>> gates.check_gates(project, candidate, champion, frame, inputs=paths)  # doctest: +SKIP
"""

from mlops_lib.gates.checks import (
    ALPHA,
    FIRST_MODEL,
    NO_CHAMPION,
    Better,
    Calibrated,
    Change,
    ContractCompatible,
    Directional,
    Evidence,
    Gate,
    Invariant,
    ModelSize,
    NoLeakage,
    NoSliceWorse,
    NoWorse,
    OneRowLatency,
    Threshold,
    bind,
    check_gates,
    collect_evidence,
)
from mlops_lib.gates.comparison import SAME, Comparison, compare_versions

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
]
