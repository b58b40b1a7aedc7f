"""What a batch came to: the account that stands beside its predictions."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field

LIBRARIES = ("mlops-lib", "scikit-learn", "pandas", "numpy", "pyarrow", "mlflow", "skops")


@dataclass(frozen=True)
class ScoreResult:
    """What a batch came to; also written beside the predictions, as ``.manifest.json`` or a row of ``…_batches``.

    Parameters
    ----------
    stage : str or None
        The stage that was asked for; several, joined by commas, when they point to this one version.
    input, output : str
        Path or ``URL::table``, without its password.
    input_fingerprint, output_fingerprint : str
        Of the bytes that were scored and of the predictions.
    n_rows, n_scored, n_quarantined : int
        ``n_rows == n_scored + n_quarantined``.
    bad_by_rule : dict
        Rows set aside, by the rule they broke first.
    durations : dict
        Seconds of each phase.
    libraries : dict
        Versions of what computed the scores.
    already_done : bool
        Whether the output was there from an earlier call with the same input, version and rows.
    rows : int or None
        The limit that was asked for: predictions of a smoke test are not those of the table.
    """

    name: str
    version: int
    stage: str | None
    digest: str
    input: str
    input_fingerprint: str
    output: str
    output_fingerprint: str
    quarantine: str | None
    n_rows: int
    n_scored: int
    n_quarantined: int
    bad_by_rule: dict[str, int]
    contract: str
    scored_at: str
    duration_s: float
    already_done: bool = False
    rows: int | None = None
    durations: dict[str, float] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line for people."""
        rules = ", ".join(f"{rule} {count}" for rule, count in self.bad_by_rule.items())
        aside = f"{self.n_quarantined:,} set aside ({rules})" if self.n_quarantined else "none set aside"
        done = "already scored" if self.already_done else "scored"
        return f"{self.n_scored:,} of {self.n_rows:,} rows {done} with version {self.version} of '{self.name}', {aside}"


def read_libraries() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a score depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}
