"""Exact scorers: a fitted pipeline as one plain Python function, proven bit-equal or not used.

scikit-learn spends nearly all of a one-row prediction on plumbing, and in large batches walks each tree for each row.
This package writes the arithmetic of a fitted pipeline as Python source with the same additions in the same order, and
boosted trees as tables that numpy looks up. It costs part of a second when a model is logged and 0.1 s when it is
loaded. Whatever it does not cover, or cannot prove, is scored by the pipeline itself: it may be left unread.

The door is three functions. :func:`prove` compares with the pipeline, bit for bit, on training rows and on edge cases;
its verdict is stored beside the model, the source never is. :func:`scorer_for` (few rows) and :func:`batches_for`
(many) make a *stand-in* of the verified model again, or return None where the verdict does not hold here. No text out
of a store is ever executed, and rows that a stand-in is not sure of go to the pipeline.

The caller tells ``prove`` by which method the model is asked, ``"predict_proba"`` or ``"predict"``, and a stand-in has
just this one: it is put in the model's place, and returns what the model would, the probability of each class of shape
(n_rows, n_classes), or numbers of shape (n_rows,). Which class is the positive one, it does not know.

Equal means: to the pipeline called with that one row. Where the pipeline gives a row other bits among other rows
(a dense linear model: BLAS adds in another order), the scorer answers for one row at a time only.

>>> scorer = exact.scorer_for(release.model, release.files.compiled)  # doctest: +SKIP
>>> (scorer or release.model).predict_proba(rows)[:, 1]  # doctest: +SKIP
array([0.73105858])
>>> scorer.predict_row({"color": "red", "size": 11.0, "weight": None})  # doctest: +SKIP
(0.2689414213699951, 0.7310585786300049)
"""

from mlops_lib.engines.exact.scorer import Scorer, StandIn
from mlops_lib.engines.exact.verdict import batches_for, prove, scorer_for

__all__ = ["Scorer", "StandIn", "batches_for", "prove", "scorer_for"]
