"""Samples with known properties, for the tests of quality."""

import numpy as np
import pandas as pd

from mlops_lib import quality
from mlops_lib.task import binary, multiclass, regression

METRICS = {name: quality.find_metric(binary(), name) for name in binary().metrics}
COLUMNS = ["temp", "rain", "hour", "origin", "dest", "is_weekend", "pressure"]


def scored(n_rows, *, seed=0, signal=1.0, decimals=None):
    """Return labels, and scores that know more about them the larger the signal is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n_rows)
    score = 1 / (1 + np.exp(-rng.normal(signal * (y - 0.5), 1)))
    return y, score if decimals is None else score.round(decimals)


def classes(n_rows, *, seed=0, signal=1.5):
    """Return a task of three classes in an order of their own, labels, and the scores of a champion and a candidate."""
    rng = np.random.default_rng(seed)
    task = multiclass(("b", "c", "a"))
    codes = rng.choice(3, n_rows, p=[0.5, 0.3, 0.2])
    shared = rng.normal(signal * np.eye(3)[codes], 1)
    scores = [np.exp(shared + rng.normal(0, 0.3, shared.shape)) for _ in range(2)]
    champion, candidate = (each / each.sum(axis=1, keepdims=True) for each in scores)
    return task, np.array(task.classes)[codes], champion, candidate


def numbers(n_rows, *, seed=0):
    """Return a task of numbers, targets of a long tail, and the predictions of a champion and a candidate."""
    rng = np.random.default_rng(seed)
    y = rng.lognormal(3, 0.5, n_rows)
    champion, candidate = (y * rng.lognormal(0, 0.3, n_rows) for _ in range(2))
    return regression(), y, champion, candidate


def sliced(n_rows=2400):
    y, score = scored(n_rows, signal=2)
    by = pd.DataFrame({"airport": np.tile(["JFK", "LGA", "EWR"], n_rows // 3)})
    is_poor = (by["airport"] == "LGA").to_numpy()
    poor = np.where(is_poor, score[::-1], score)
    return y, score, poor, by


def table(n_rows, *, seed=0, **columns):
    """Return numeric, mostly-zero, few-valued, boolean and text columns, some of them with missing values."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "temp": rng.normal(50, 10, n_rows),
            "rain": np.where(rng.random(n_rows) < 0.93, 0.0, rng.exponential(1, n_rows)),
            "hour": rng.integers(5, 23, n_rows),
            "origin": rng.choice(["JFK", "LGA", "EWR"], n_rows, p=[0.5, 0.3, 0.2]),
            "dest": rng.choice([f"D{i}" for i in range(60)], n_rows),
            "is_weekend": rng.random(n_rows) < 0.3,
            "pressure": np.where(rng.random(n_rows) < 0.1, np.nan, rng.normal(1015, 5, n_rows)),
        }
    )
    return frame.assign(**columns)


def drift_of(reference, current, **settings):
    """Return the drift of one column, given as two lists of values."""
    profile = quality.build_profile(pd.DataFrame({"x": reference}), columns=["x"], **settings)
    return quality.compute_drift(profile, pd.DataFrame({"x": current})).loc["x"]
