"""Exact scorers: a fitted pipeline as one plain Python function, proven bit-equal or not used.

scikit-learn spends nearly all of a one-row prediction on plumbing. :func:`generate` writes the arithmetic of a fitted
pipeline as Python source with the same additions in the same order; :func:`prove` compares it bit for bit with the
pipeline on training rows and on edge cases. The verdict is stored beside the model, the source never is: whoever loads
the verified model generates it again (:func:`scorer_for`), and uses it only where its SHA-256 is that of the verdict.
No text out of a store is ever executed, and a row that the scorer is not sure of goes to the pipeline.

Equal means: to the pipeline called with that one row. Where the pipeline gives a row other bits among other rows
(a dense linear model: BLAS adds in another order), the scorer answers for one row at a time only.

>>> scorer = compiled.scorer_for(release.model, release.files.compiled)  # doctest: +SKIP
>>> scorer.score_row({"color": "red", "size": 11.0, "weight": None})  # doctest: +SKIP
0.7310585786300049
"""

from mlops_lib.engines.exact.scorer import Scorer, generate, predict
from mlops_lib.engines.exact.verdict import Comparison, batches_for, check_exact, make_edge_cases, prove, scorer_for

__all__ = [
    "Comparison",
    "Scorer",
    "batches_for",
    "check_exact",
    "generate",
    "make_edge_cases",
    "predict",
    "prove",
    "scorer_for",
]
