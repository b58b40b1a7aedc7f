"""Batch scoring: a table in, predictions out, every row accounted for.

A version is resolved once and stands on every row. Rows that break the contract are set aside with rule and reason;
rows in = rows scored + rows quarantined, always. Predictions, quarantine and manifest appear complete or not at all;
the same input with the same version again does nothing; what was scored earlier is never overwritten. A table is read
in batches, in constant memory; one that changes while it is read is refused. Several versions share one pass.

>>> scoring.score_table(project, "prod", "may.parquet", "scored.parquet")  # doctest: +SKIP
>>> scoring.score_versions(project, ["prod", "dev"], "data/", "sqlite:////tmp/p.db::scores")  # doctest: +SKIP
"""

from mlops_lib.programs.batch.batch import Progress, score_table, score_versions
from mlops_lib.programs.batch.result import ScoreResult
from mlops_lib.programs.batch.sinks import manifest_path, quarantine_path

__all__ = ["Progress", "ScoreResult", "manifest_path", "quarantine_path", "score_table", "score_versions"]
