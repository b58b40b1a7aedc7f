"""Gates on behaviour and on the model itself: changed rows, one row's time, size, contract, rows it was trained on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlops_lib import contracts, data, quality
from mlops_lib.errors import GateError, TaskError
from mlops_lib.gates.evidence import NO_CHAMPION, Evidence, status_of
from mlops_lib.report import Row
from mlops_lib.task import Task

Change = Callable[[pd.DataFrame], pd.DataFrame]
# What a feature alone is measured by.
ALONE = {"binary": "roc_auc", "multiclass": "roc_auc_ovr", "regression": "r2"}


@dataclass(frozen=True)
class BehaviourGate:
    """What gates on changed rows have in common.

    Parameters
    ----------
    name : str
        What is changed, in words: ``"another tail number"``.
    change : function of DataFrame to DataFrame
        Takes evaluation rows and returns them, or those of them that it can change, changed, with their index; what it
        returns must keep the contract. A plain function: the hash of its source is part of the gate's definition, so
        that a verdict does not survive a change of it (what it calls is covered by the commit alone).
    """

    name: str
    change: Change = field(repr=False)
    source: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", data.fingerprint_function(self.change))

    def _measure_moves(self, evidence: Evidence) -> npt.NDArray[Any]:
        """Return scores after minus scores before, of the rows that ``change`` returns."""
        frame, name, contract = evidence.frame, self.change.__name__, evidence.contract_candidate
        changed = self.change(frame.copy())
        if not isinstance(changed, pd.DataFrame) or changed.empty:
            what = "no rows" if isinstance(changed, pd.DataFrame) else type(changed)
            raise GateError("changed_rows", function=name, reason=f"it returned {what}")
        positions = frame.index.get_indexer(changed.index)
        if (positions < 0).any() or len(set(positions)) < len(positions):
            reason = "it returned rows that were not among those it was given, or one of them twice"
            raise GateError("changed_rows", function=name, reason=reason)
        if contract is not None:
            split = contracts.split_rows(contract, changed)
            if len(split.bad):
                reason = f"{len(split.bad)} of {len(changed)} changed rows break the contract"
                raise GateError("changed_rows", function=name, reason=reason)
            changed = split.good
        after = evidence.task.check_scores(evidence.model.predict(changed), len(changed))
        moves: npt.NDArray[Any] = after - evidence.candidate[positions]
        return moves


@dataclass(frozen=True)
class Invariant(BehaviourGate):
    """A change that should not matter leaves the candidate's scores where they are; of several classes, all of them.

    Parameters
    ----------
    name, change
        As for every :class:`BehaviourGate`.
    tolerance : float
        A score that moves by no more counts as unmoved; in the target's unit for numbers.
    max_share : float in [0, 1]
        Share of rows that may move further.
    """

    tolerance: float
    max_share: float = 0.0

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate's scores before and after."""
        moves = np.abs(self._measure_moves(evidence))
        largest = moves.reshape(len(moves), -1).max(axis=1)
        share = float((largest > self.tolerance).mean())
        limit = f"share of rows moving by more than {self.tolerance:g} <= {self.max_share:g}"
        reason = f"largest move {largest.max():.4f} on {len(largest):,} rows"
        question = f"Does it ignore what should not matter: {self.name}?"
        yield Row(f"invariant: {self.name}", share, limit, status_of(share <= self.max_share), reason, question)


@dataclass(frozen=True)
class Directional(BehaviourGate):
    """A change with a known effect moves the candidate's scores that way: on average, and for most rows.

    Parameters
    ----------
    name, change
        As for every :class:`BehaviourGate`.
    sign : 1 or -1
        Whether the change makes the class ``of`` more or less likely, or the predicted number larger or smaller.
    tolerance : float
        A score that moves the other way by no more is not counted; in the target's unit for numbers.
    max_share : float in [0, 1]
        Share of rows that may move the other way.
    of : str, int, float or bool, optional
        The class whose probability moves: of two the positive one by default; of several it has to be named.
    """

    sign: Literal[1, -1]
    tolerance: float = 0.0
    max_share: float = 0.05
    of: Any = None

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate's scores before and after."""
        moves = self._choose_class(evidence.task, self._measure_moves(evidence))
        share = float((self.sign * moves < -self.tolerance).mean())
        holds = share <= self.max_share and bool(self.sign * moves.mean() > 0)
        way = "up" if self.sign > 0 else "down"
        limit = f"mean {way}, share of rows moving the other way <= {self.max_share:g}"
        reason = f"mean move {moves.mean():+.4f} on {len(moves):,} rows"
        question = f"Does it move the right way: {self.name}?"
        yield Row(f"directional: {self.name}", share, limit, status_of(holds), reason, question)

    def _choose_class(self, task: Task, moves: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the moves of the one score that the change is about."""
        if self.of is None and task.kind != "multiclass":
            return moves
        if self.of not in task.classes:
            reason = f"has of={self.of!r}, needs one of the classes {task.classes}"
            raise TaskError(subject=f"The gate '{self.name}'", reason=reason)
        if task.kind == "binary":
            return moves if self.of == task.positive else -moves
        return moves[:, task.classes.index(self.of)]


# --- on the model itself -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneRowLatency:
    """Scoring a single row takes no longer than a budget: the median of repeated calls in this process.

    Parameters
    ----------
    max_ms : float
        Milliseconds. The machine that validates is rarely the one that serves: leave room.
    n_repeats : int
    """

    max_ms: float
    n_repeats: int = 50

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Time the candidate, after a few calls that do not count."""
        release = evidence.model
        rows = evidence.frame[release.features]
        taken = []
        for repeat in range(self.n_repeats + 5):
            row = rows.iloc[[repeat % len(rows)]]
            started = time.perf_counter()
            release.task.predict(release.model, row)
            taken.append(1000 * (time.perf_counter() - started))
        median = statistics.median(taken[5:])
        reason = f"median of {self.n_repeats} calls, rounded up"
        holds, limit = median <= self.max_ms, f"<= {self.max_ms:g} ms"
        question = "Is it fast enough for a single row?"
        yield Row("one_row_latency", math.ceil(median), limit, status_of(holds), reason, question, "ms")


@dataclass(frozen=True)
class ModelSize:
    """All files of the model together stay within a size.

    Parameters
    ----------
    max_mb : float
        Megabytes of 1,000,000 bytes, as they are stored.
    """

    max_mb: float

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Look at the manifest."""
        size = evidence.model.files.n_bytes / 1e6
        holds = 0 < size <= self.max_mb
        reason = "" if size else "the manifest lists no files"
        limit, question = f"<= {self.max_mb:g} MB", "Is it small enough?"
        yield Row("model_size", round(size, 1), limit, status_of(holds), reason, question, "MB")


@dataclass(frozen=True)
class ContractCompatible:
    """Tables made for the champion can feed the candidate."""

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Count what the two contracts differ in so that tables of today would break."""
        name, limit, question = "contract", "no breaking change", "Do tables made for the champion fit it?"
        if evidence.champion is None:
            yield Row(name, None, limit, "not_applicable", NO_CHAMPION, question)
        elif evidence.contract_champion is None or evidence.contract_candidate is None:
            yield Row(name, None, limit, "failed", "a contract is missing", question)
        else:
            report = contracts.compare_contracts(evidence.contract_champion, evidence.contract_candidate)
            found = str(report.facts["compatibility"])
            broken = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
            holds = found != "breaking"
            yield Row(name, len(report.failures), limit, status_of(holds), broken or found, question)


@dataclass(frozen=True)
class NoLeakage:
    """The evaluation rows are none of the rows that the candidate was trained on: by key, by content and by time.

    ``tracking.log_model`` stores a hash of each training row's key and content beside the model. By key not a single
    row may be found again. By content some rows are found by chance where features are coarse, as often as training
    rows repeat one another: the share of training rows that are not unique is what a fresh sample of the same kind
    would show, give or take three standard errors, and the share found may exceed that by ``max_share`` at most. It
    finds training rows under other keys.
    Where the project says when a row arrived (``Project.time``), all of them arrived after the last training row.

    Parameters
    ----------
    max_share : float in [0, 1]
    """

    max_share: float = 0.01

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Look the evaluation rows up among the training rows."""
        release, question = evidence.model, "Was it judged on rows it has never seen?"
        stored = release.files.training_rows
        if stored is None:
            reason = "the model does not say which rows it was trained on; log it anew with tracking.log_model"
            yield Row("training_rows", None, "known", "failed", reason, question)
            return
        name, limit = "training_keys_in_evaluation", "0 rows"
        if "key" in (stored.dtype.names or ()):
            found = int(np.isin(data.hash_rows(evidence.columns(evidence.keys)), stored["key"]).sum())
            reason = f"{found:,} of {len(evidence.frame):,} evaluation rows, {len(stored):,} training rows"
            yield Row(name, found, limit, status_of(not found), reason, question)
        else:
            reason = "the model was logged without keys; pass keys= to tracking.log_model"
            yield Row(name, None, limit, "failed", reason, question)
        again = np.isin(data.hash_rows(evidence.columns(release.features)), stored["content"])
        _, counts = np.unique(stored["content"], return_counts=True)
        expected = float(counts[counts > 1].sum() / max(1, len(stored)))
        n_rows = 1 / (1 / max(1, len(again)) + 1 / max(1, len(stored)))
        chance = 3 * math.sqrt(expected * (1 - expected) / n_rows)  # standard errors of their difference
        by_chance = f", give or take {chance:.4f}" if chance else ""
        reason = f"{expected:.4f} expected: that many training rows repeat one another{by_chance}"
        most = expected + chance + self.max_share
        limit, status = f"<= {min(1.0, most):.4f}", status_of(len(again) > 0 and bool(again.mean() <= most))
        yield Row("training_content_in_evaluation", float(again.mean()), limit, status, reason, question)
        if evidence.time:
            yield self._look_at_time(evidence)

    def _look_at_time(self, evidence: Evidence) -> Row:
        name, limit = "evaluation_rows_within_training_time", "0 rows"
        question, until = (
            "Did all of it happen after training?",
            evidence.model.files.metadata["mlops"].get("trained_until"),
        )
        if until is None:
            reason = "the model does not say until when it was trained; pass times= to tracking.log_model"
            return Row(name, None, limit, "failed", reason, question)
        times = pd.to_datetime(data.parse_times(evidence.columns([evidence.time])[evidence.time]), utc=True)
        found = int((~(times > pd.Timestamp(until))).sum())  # a row without a time counts
        return Row(name, found, limit, status_of(not found), f"trained on rows until {until}", question)


@dataclass(frozen=True)
class NoTellingFeature:
    """No single feature nearly decides the target by itself: one that does is most often the answer in other words.

    A small tree is grown on half of the evaluation rows, with one feature, and measured on the rest: ROC AUC for
    classes (one against the rest where there are several), R² for numbers.

    Parameters
    ----------
    max_score : float
        Where one feature may rightly tell so much, such as on a sum of two columns, set it higher, to 1 at most.
    """

    max_score: float = 0.99

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Measure each feature alone, and tell the one that tells most."""
        task, features = evidence.task, evidence.model.features
        y = task.encode(evidence.y_true)
        metric = evidence.metric(ALONE[task.kind])
        scores = measure_alone(task, evidence.frame[list(features)], y)
        name, score = scores.index[-1], float(scores.iloc[-1])
        holds, reason = score <= self.max_score, f"most told by '{name}'; is it known when a row arrives?"
        limit, question = f"{metric.name} <= {self.max_score:g}", "Does no single feature give the answer away?"
        yield Row("telling_feature", score, limit, status_of(holds), "" if holds else reason, question)


def measure_alone(task: Task, frame: pd.DataFrame, y: npt.NDArray[Any]) -> pd.Series[float]:
    """Return how well each column by itself predicts the target, the one that tells most at the end.

    Parameters
    ----------
    task : Task
        With its classes.
    frame : DataFrame of shape (n_rows, n_columns)
    y : ndarray of shape (n_rows,)
        As ``task.encode`` returns it.

    Returns
    -------
    Series of shape (n_columns,)
        ROC AUC for classes (one against the rest where there are several), R² for numbers, measured on rows that the
        column's small tree has not seen.
    """
    metric = quality.find_metric(task, ALONE[task.kind])
    return pd.Series(
        {name: _score_alone(task, metric, frame[name], y) for name in frame}, dtype="float64"
    ).sort_values()


def _score_alone(task: Task, metric: quality.Metric, feature: pd.Series[Any], y: npt.NDArray[Any]) -> float:
    """Return how well one feature predicts the target on rows that its tree has not seen."""
    from sklearn import tree  # noqa: PLC0415 - 0.7 s, and listing versions needs none

    unseen, seen = np.array_split(np.random.default_rng(0).permutation(len(y)), 2)  # whatever order the rows are in
    if pd.api.types.is_numeric_dtype(feature.dtype):
        x = feature.to_numpy(dtype="float64", na_value=np.nan)
    elif pd.api.types.is_datetime64_any_dtype(feature.dtype):
        x = feature.astype("int64").to_numpy(dtype="float64")
    else:  # values in the order of their mean target: what a tree can part
        means = pd.Series(y[seen]).groupby(feature.astype("str").to_numpy()[seen]).mean()
        x = feature.astype("str").map(means).to_numpy(dtype="float64")
    is_several = task.kind == "multiclass"
    targets = np.eye(len(task.classes))[y] if is_several else y  # the mean of a class's share is its probability
    model = tree.DecisionTreeRegressor(max_leaf_nodes=64, min_samples_leaf=3, random_state=0)
    return metric.measure(task, y[unseen], model.fit(x[seen, None], targets[seen]).predict(x[unseen, None]))
