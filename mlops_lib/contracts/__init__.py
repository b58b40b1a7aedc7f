"""What production rows must look like: learnt from training data, then owned by the project.

A :class:`Contract` refuses what a model would swallow in silence: ``1.5`` in an integer column, ``"false"`` in a
boolean, ``2**63``, an epoch for a time, a repeated key, temperatures times ten. It accepts every lossless form of the
same data (integers where numbers are due, categories, Arrow, nullable types, the text of a CSV) and never coerces with
a loss. A bad *row* is set aside with its reasons (:func:`split_rows`); a bad *batch* (shares, scale) fails its report.
One function judges a DataFrame, an Arrow batch, a CSV and JSON, so that a row has one verdict wherever it comes from.

>>> import pandas as pd
>>> train = pd.DataFrame({"id": [1, 2, 3], "temp": [30.0, 41.5, 55.0]})
>>> split = split_rows(infer_contract(train, features=["temp"], keys=["id"]), train.assign(temp=[30.0, 415.0, 55.0]))
>>> split.bad["reason"].tolist()
['temp is 415.0, needs 2.5 to 82.5']
"""

from __future__ import annotations

from mlops_lib.contracts.checking import Split, Tally, check_table, read_keys, split_batch, split_rows
from mlops_lib.contracts.comparing import compare_contracts
from mlops_lib.contracts.contract import Column, Contract
from mlops_lib.contracts.learning import infer_contract
from mlops_lib.contracts.rules import Rule

__all__ = [
    "Column",
    "Contract",
    "Rule",
    "Split",
    "Tally",
    "check_table",
    "compare_contracts",
    "infer_contract",
    "read_keys",
    "split_batch",
    "split_rows",
]
