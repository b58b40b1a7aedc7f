"""How often do gates promote what they should not, and what they should: ours, MLflow's rule and a plain `>=`.

Pairs of a champion and a candidate are simulated whose true difference is known exactly, and the errors of the two are
correlated, as those of two models of the same features are. Of two classes scores are the posterior of two normal
distributions a known distance apart; of three classes a model is right with a known probability, and else takes either
of the others; of numbers its errors are normal. Every rule judges the same pairs, through the code that a project
calls. The bounds are exact binomial ones (Clopper & Pearson 1934) of 95 %.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit, logit

from mlops_lib import quality
from mlops_lib.gates import ALPHA, Better, Calibrated, Evidence, NoSliceWorse, NoWorse, Threshold
from mlops_lib.quality.figures import BLUE, GREY, ORANGE
from mlops_lib.task import Kind, binary, multiclass, regression

N_ROWS, POSITIVES, CORRELATION, CHAMPION = 8000, 0.25, 0.9, 0.70
MARGIN, SLICE_MARGIN, N_SLICES, N_DAYS = 0.01, 0.02, 20, 30
CLASSES, SHARES, RIGHT = ("bus", "car", "train"), np.array([0.5, 0.3, 0.2]), 0.70  # the champion is right so often
ERROR = 1.0  # the champion's mean absolute error
CHUNK = 50  # pairs that one process simulates at a time


# --- pairs of models of known quality ----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What is true of a pair: how good both are, the harm in the first slice, how much a day matters.

    How good is, of two classes, the area under the ROC curve; of three the share that is right; of numbers the mean
    absolute error.
    """

    candidate: float = CHAMPION
    champion: float = CHAMPION
    in_slice: float | None = None  # the candidate's area in the first of N_SLICES slices, where it differs
    n_rows: int = N_ROWS
    day_spread: float = 0.0  # standard deviation of what the rows of a day share
    inflated: float = 0.0  # by how much the candidate's scores are too high
    kind: Kind = "binary"


def distance(area: float) -> float:
    """Return how far apart the two normal distributions of that area under the ROC curve are."""
    return float(np.sqrt(2) * stats.norm.ppf(area))


def posterior(x: Any, apart: Any) -> Any:
    """Return the probability of class 1 at x."""
    return expit(logit(POSITIVES) + apart * x - apart * apart / 2)


def draw(world: World, rng: np.random.Generator) -> Evidence:
    """Return one sample of labelled rows with both models' scores."""
    return _draw_two_classes(world, rng) if world.kind == "binary" else _draw_others(world, rng)


def _draw_others(world: World, rng: np.random.Generator) -> Evidence:
    """Return three classes or numbers: what is wrong with a row is normal, in parts shared by the models and by days."""
    n = world.n_rows
    days = rng.integers(N_DAYS, size=n)
    frame = pd.DataFrame({"slice": rng.integers(N_SLICES, size=n), "day": days})
    shared, shared_days = rng.normal(size=n), rng.normal(size=N_DAYS)
    noises = []
    for _ in range(2):
        of_day = CORRELATION * shared_days + np.sqrt(1 - CORRELATION**2) * rng.normal(size=N_DAYS)
        of_row = CORRELATION * shared + np.sqrt(1 - CORRELATION**2) * rng.normal(size=n)
        noises.append(world.day_spread * of_day[days] + np.sqrt(1 - world.day_spread**2) * of_row)
    levels = world.candidate, world.champion
    if world.kind == "regression":
        y = rng.lognormal(2, 0.5, n)
        scores = [y + level * np.sqrt(np.pi / 2) * noise for level, noise in zip(levels, noises, strict=True)]
        return Evidence(frame, y, *scores, task=regression())
    codes, others = rng.choice(3, n, p=SHARES), rng.integers(1, 3, n)
    for number, (level, noise) in enumerate(zip(levels, noises, strict=True)):
        predicted = np.where(noise < stats.norm.ppf(level), codes, (codes + others) % 3)
        noises[number] = np.where(predicted[:, None] == np.arange(3), 0.8, 0.1)
    return Evidence(frame, np.array(CLASSES)[codes], *noises, task=multiclass(CLASSES))


def _draw_two_classes(world: World, rng: np.random.Generator) -> Evidence:
    n = world.n_rows
    slices = rng.integers(N_SLICES, size=n)
    days = rng.integers(N_DAYS, size=n)
    shares = expit(logit(POSITIVES) + world.day_spread * rng.normal(size=N_DAYS))
    y = (rng.random(n) < shares[days]).astype(int)
    shared = rng.normal(size=n)
    own = CORRELATION * shared + np.sqrt(1 - CORRELATION**2) * rng.normal(size=n)
    apart = np.full(n, distance(world.candidate))
    if world.in_slice is not None:
        apart[slices == 0] = distance(world.in_slice)
    scores = []
    for noise, far in ((own, apart), (shared, distance(world.champion))):
        of_day = world.day_spread * rng.normal(size=N_DAYS)[days]
        scores.append(posterior(far * y + noise + of_day, far))
    candidate = np.clip(scores[0] + world.inflated, 0, 1)
    return Evidence(pd.DataFrame({"slice": slices, "day": days}), y, candidate, scores[1])


@cache
def truth(metric: str, area: float) -> float:
    """Return the metric's true value for a model that is so good (:class:`World`).

    Of two classes by integration, for calibrated scores.
    """
    if metric in ("roc_auc", "accuracy", "balanced_accuracy_score", "mae"):
        return area
    if metric == "root_mean_squared_error":
        return float(area * np.sqrt(np.pi / 2))
    if metric == "median_absolute_error":
        return float(area * np.sqrt(np.pi / 2) * stats.norm.ppf(0.75))
    if metric == "f1_macro":
        predicted = SHARES * area + (1 - SHARES) * (1 - area) / 2
        return float(np.mean(2 * SHARES * area / (SHARES + predicted)))
    x, apart = np.linspace(-9, 12, 200_001), distance(area)
    negative, positive = (1 - POSITIVES) * stats.norm.pdf(x), POSITIVES * stats.norm.pdf(x, apart)
    if metric == "average_precision":
        found, flagged = (density[::-1].cumsum()[::-1] for density in (positive, positive + negative))
        return float((positive * found / flagged).sum() / positive.sum())
    p = posterior(x, apart)
    losses = {"log_loss": (-np.log(1 - p), -np.log(p)), "brier": (p**2, (1 - p) ** 2)}[metric]
    return float((negative * losses[0] + positive * losses[1]).sum() * (x[1] - x[0]))


def loss(metric: str, area: float, champion: float = CHAMPION) -> float:
    """Return by how much a model that is so good is truly worse than the champion, in the metric's unit."""
    return abs(truth(metric, champion) - truth(metric, area))


# --- rules -------------------------------------------------------------------------------------------------------


def judged_by(*gates: Any) -> Callable[[Evidence], bool]:
    """Return whether all gates pass."""
    return lambda evidence: all(row.status == "passed" for gate in gates for row in gate.check(evidence))


def plain(evidence: Evidence) -> bool:
    """Compare two numbers, as most pipelines do."""
    return areas(evidence)[0] >= areas(evidence)[1]


def mlflow_rule(evidence: Evidence) -> bool:
    """Ask MLflow: an absolute threshold, and better by at least a thousandth (it refuses a change of zero)."""
    import mlflow  # noqa: PLC0415 - only here, and slow
    from mlflow.models import MetricThreshold  # noqa: PLC0415
    from mlflow.models.evaluation.base import EvaluationResult  # noqa: PLC0415
    from mlflow.models.evaluation.validation import ModelValidationFailedException  # noqa: PLC0415

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    candidate, champion = areas(evidence)
    rule = MetricThreshold(threshold=0.6, min_absolute_change=0.001, greater_is_better=True)
    results = [EvaluationResult(metrics={"roc_auc": value}, artifacts={}) for value in (candidate, champion)]
    try:
        mlflow.validate_evaluation_results(
            validation_thresholds={"roc_auc": rule}, candidate_result=results[0], baseline_result=results[1]
        )
    except ModelValidationFailedException:
        return False
    return True


def bootstrap(evidence: Evidence, n_resamples: int = 500) -> bool:
    """Judge like NoWorse, with the paired percentile bootstrap (Efron & Tibshirani 1993) for an interval."""
    y, rng = evidence.y_true, np.random.default_rng(0)
    ranks = [np.unique(score, return_inverse=True)[1] for score in (evidence.candidate, evidence.champion)]
    drawn = np.empty(n_resamples)
    for index in range(n_resamples):
        weights = np.bincount(rng.integers(len(y), size=len(y)), minlength=len(y)).astype(float)
        found = []
        for rank in ranks:
            counts = np.bincount(2 * rank + y, weights, 2 * len(y))
            negative, positive = counts[0::2], counts[1::2]
            below = np.cumsum(negative) - negative / 2
            found.append(positive @ below / (positive.sum() * negative.sum()))
        drawn[index] = found[0] - found[1]
    return bool(np.quantile(drawn, ALPHA) >= -MARGIN)


def areas(evidence: Evidence) -> tuple[float, float]:
    """Return both areas under the ROC curve."""
    compute = quality.find_metric(binary(), "roc_auc").compute
    return tuple(compute(evidence.y_true, score) for score in (evidence.candidate, evidence.champion))  # type: ignore[return-value]


SLICES = NoSliceWorse(("slice",), "roc_auc", margin=SLICE_MARGIN, min_rows=300)
RULES: dict[str, Callable[[Evidence], bool]] = {
    "`Better`": judged_by(Better("roc_auc")),
    f"`NoWorse({MARGIN})`": judged_by(NoWorse("roc_auc", MARGIN)),
    f"`NoWorse({MARGIN})` + `NoSliceWorse({SLICE_MARGIN})`": judged_by(NoWorse("roc_auc", MARGIN), SLICES),
    "MLflow `MetricThreshold`": mlflow_rule,
    "plain `>=`": plain,
}
STYLES = {  # colour and line of the rules in the figure
    "plain `>=`": (GREY, ":"),
    "MLflow `MetricThreshold`": (ORANGE, "-."),
    f"`NoWorse({MARGIN})`": (BLUE, "--"),
    "`Better`": (BLUE, "-"),
}
WORLDS = {
    "equally good": World(),
    f"worse by the margin, {MARGIN}": World(CHAMPION - MARGIN),
    f"better by the declared effect, {MARGIN}": World(CHAMPION + MARGIN),
    "better by 0.02, but 0.15 worse in a slice of 5 % of the rows": World(CHAMPION + 0.02, in_slice=CHAMPION - 0.15),
}


@dataclass(frozen=True)
class Boundary:
    """A gate at the edge of its null hypothesis, where it is wrong as often as it ever is: with probability alpha."""

    name: str
    gate: Any
    world: World
    wrong: bool = True  # passing is what it must not do; for NoSliceWorse, failing
    rule: Callable[[Evidence], bool] = field(default=lambda _: True)


def boundaries() -> list[Boundary]:
    """Return every gate with an alpha, at the edge."""
    worse, found = CHAMPION - MARGIN, []
    for metric in binary().metrics:
        margin = loss(metric, worse)
        found.append(Boundary(f"worse by exactly the margin ({margin:.4f})", NoWorse(metric, margin), World(worse)))
    found += [Boundary("equally good", Better(metric), World()) for metric in binary().metrics]
    by = loss("log_loss", CHAMPION + MARGIN)
    found += [
        Boundary(f"better by exactly {MARGIN}", Better("roc_auc", by=MARGIN), World(CHAMPION + MARGIN)),
        Boundary(f"better by exactly {by:.4f}", Better("log_loss", by=by), World(CHAMPION + MARGIN)),
        Boundary("exactly at the threshold", Threshold("roc_auc", CHAMPION), World()),
        Boundary("exactly at the threshold", Threshold("log_loss", truth("log_loss", CHAMPION)), World()),
        Boundary("too high by exactly the error", Calibrated(0.05), World(inflated=0.05)),
        Boundary(f"equally good in {N_SLICES} slices", _slices(0.0), World(), wrong=False),
        Boundary(f"worse by exactly the margin in {N_SLICES}", _slices(MARGIN), World(worse), wrong=False),
        Boundary("worse by exactly the margin, 200 rows", NoWorse("roc_auc", MARGIN), World(worse, n_rows=200)),
        Boundary("worse by exactly the margin, 1,000 rows", NoWorse("roc_auc", MARGIN), World(worse, n_rows=1000)),
        Boundary(
            "the same, decided by a bootstrap of rows", NoWorse("roc_auc", MARGIN), World(worse, n_rows=1000),
            rule=bootstrap,
        ),
        Boundary(f"equally good, {N_DAYS} days that differ", Better("roc_auc", clusters="day"), World(day_spread=0.5)),
        Boundary("the same, the days not named", Better("roc_auc"), World(day_spread=0.5)),
    ]  # fmt: skip
    classes, numbers = World(RIGHT, RIGHT, kind="multiclass"), World(ERROR, ERROR, kind="regression")
    for metric, equal, level in (
        ("f1_macro", classes, RIGHT - MARGIN),
        ("mae", numbers, ERROR + MARGIN),
        ("median_absolute_error", numbers, ERROR + MARGIN),
        ("balanced_accuracy_score", replace(classes, n_rows=1000), RIGHT - MARGIN),
        ("root_mean_squared_error", replace(numbers, n_rows=1000), ERROR + MARGIN),
    ):
        margin, rows = loss(metric, level, equal.champion), "" if equal.n_rows == N_ROWS else ", 1,000 rows"
        name = f"worse by exactly the margin ({margin:.4f}){rows}"
        found.append(Boundary(name, NoWorse(metric, margin), replace(equal, candidate=level)))
        gate, with_days = Better(metric, clusters="day"), replace(equal, day_spread=0.5)
        found += [Boundary(f"equally good{rows}", Better(metric), equal)]
        found += [Boundary(f"equally good, {N_DAYS} days that differ{rows}", gate, with_days)]
    return found


def _slices(margin: float) -> NoSliceWorse:
    return NoSliceWorse(("slice",), "roc_auc", margin=margin, min_rows=300)


# --- counting ----------------------------------------------------------------------------------------------------


def count(world: World, rules: Iterable[Callable[[Evidence], bool]], n_pairs: int, seed: int) -> list[int]:
    """Return how many pairs each rule promotes."""
    rng = np.random.default_rng(seed)
    counts: Counter[int] = Counter()
    rules = list(rules)
    for _ in range(n_pairs):
        evidence = draw(world, rng)
        counts.update(index for index, rule in enumerate(rules) if rule(evidence))
    return [counts[index] for index in range(len(rules))]


def bounds(k: int, n: int) -> tuple[float, float]:
    """Return the exact binomial interval of 95 %."""
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def _count_world(task: tuple[World, int]) -> list[int]:
    return count(task[0], RULES.values(), CHUNK, task[1])


def _count_power(task: tuple[World, int]) -> list[int]:
    return count(task[0], [RULES[name] for name in STYLES], CHUNK, task[1])


def _count_boundary(task: tuple[int, int]) -> list[int]:
    index, seed = task
    boundary = boundaries()[index]
    rule = boundary.rule if boundary.rule is bootstrap else judged_by(boundary.gate)
    [passed] = count(boundary.world, [rule], CHUNK, seed)
    return [passed if boundary.wrong else CHUNK - passed]


def measure(pool: ProcessPoolExecutor, function: Any, cases: Iterable[Any], n_pairs: int) -> list[list[int]]:
    """Return the counts of each case over ``n_pairs`` pairs, in chunks that the processes share."""
    cases = list(cases)
    chunks = n_pairs // CHUNK
    tasks = [(case, 1000 * number + chunk) for number, case in enumerate(cases) for chunk in range(chunks)]
    results = list(pool.map(function, tasks))
    return [np.sum(results[at : at + chunks], axis=0).tolist() for at in range(0, len(results), chunks)]


# --- the report --------------------------------------------------------------------------------------------------


def table_of_worlds(pool: ProcessPoolExecutor, n_pairs: int) -> list[str]:
    """Return the rows of the first table."""
    lines = [f"| true state | {' | '.join(RULES)} |", "|---|" + "---:|" * len(RULES)]
    for name, counts in zip(WORLDS, measure(pool, _count_world, WORLDS.values(), n_pairs), strict=True):
        cells = []
        for k in counts:
            low, high = bounds(k, n_pairs)
            cells.append(f"{k / n_pairs:.1%} [{low:.1%}, {high:.1%}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def table_of_boundaries(pool: ProcessPoolExecutor, n_pairs: int) -> list[str]:
    """Return the rows of the second table."""
    lines = ["| gate | true state | stated alpha | wrong | alpha in bounds |", "|---|---|---:|---:|---|"]
    cases = boundaries()
    for case, (k,) in zip(cases, measure(pool, _count_boundary, range(len(cases)), n_pairs), strict=True):
        low, high = bounds(k, n_pairs)
        said = "yes" if low <= case.gate.alpha <= high else "below" if high < case.gate.alpha else "**no, above**"
        text = f"{k / n_pairs:.2%} [{low:.2%}, {high:.2%}]"
        lines.append(f"| `{type(case.gate).__name__}` {case.gate.__dict__.get('metric', 'scores')} | {case.name} | "
                     f"{case.gate.alpha:.1%} | {text} | {said} |")  # fmt: skip
    return lines


def compare_times(n_rows: int = 25_000, n_rounds: int = 5) -> list[str]:
    """Return a sentence on both ways to an interval for the same rows, taking turns."""
    evidence = draw(World(n_rows=n_rows), np.random.default_rng(0))
    gate, seconds = judged_by(NoWorse("roc_auc", MARGIN)), {"ours": [], "bootstrap": []}
    for _ in range(n_rounds):
        for name, rule in (("ours", gate), ("bootstrap", lambda each: bootstrap(each, 1000))):
            started = time.process_time()  # of the processor: this machine may be busy with something else
            rule(evidence)
            seconds[name].append(time.process_time() - started)
    ours, other = (float(np.median(seconds[name])) for name in ("ours", "bootstrap"))
    return [
        f"One decision on {n_rows:,} rows, in turns, medians of {n_rounds}: {1000 * ours:.0f} ms of CPU, and "
        f"{1000 * other:.0f} ms for a bootstrap of 1,000 resamples ({other / ours:.0f} times as long)."
    ]


def plot_power(pool: ProcessPoolExecutor, n_pairs: int, path: Path) -> None:
    """Draw how often each rule promotes against the true difference."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    differences = np.round(np.arange(-0.02, 0.0201, 0.0025), 4)
    worlds = [World(round(CHAMPION + difference, 4)) for difference in differences]
    shares = np.array(measure(pool, _count_power, worlds, n_pairs)) / n_pairs
    _, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for column, (name, (color, line)) in enumerate(STYLES.items()):
        ax.plot(differences, 100 * shares[:, column], line, color=color, lw=2, label=name.replace("`", ""))
    for x in (-MARGIN, 0):
        ax.axvline(x, color="#BBBBBB", lw=1, zorder=0)
    ax.axhline(100 * ALPHA, color="#BBBBBB", lw=1, zorder=0)
    ax.annotate(f"alpha, {100 * ALPHA:g} %", (0.02, 100 * ALPHA + 1.5), ha="right", color="#555555", size=8)
    ax.set(title=f"How often a candidate is promoted ({N_ROWS:,} rows)", ylim=(-2, 102))
    ax.set(xlabel="True ROC AUC, candidate minus champion", ylabel="Promoted (% of simulated pairs)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)


def main() -> None:
    """Simulate, write the report and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000, help="simulated pairs of each case")
    n_pairs = parser.parse_args().pairs
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        worlds = table_of_worlds(pool, n_pairs)
        print("\n".join(worlds), file=sys.stderr)
        edges = table_of_boundaries(pool, n_pairs)
        plot_power(pool, max(CHUNK, n_pairs // 5), benchmark.ROOT / "docs" / "images" / "gates-power.png")
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    minutes = sum(each.ru_utime + each.ru_stime for each in usage) / 60
    lines = [
        "# How often gates promote what they should not",
        "",
        f"{benchmark.TODAY}, {benchmark.describe_command('gates')}, {n_pairs:,} simulated pairs of each case, "
        f"{minutes:.0f} min of CPU in two processes.",
        f"{benchmark.describe_machine()}.",
        "",
        f"{N_ROWS:,} labelled rows unless said otherwise, {POSITIVES:.0%} positive; the champion's true ROC AUC is "
        f"{CHAMPION:.2f}; errors of both models",
        f"correlate by {CORRELATION}; {N_SLICES} slices of equal size. Shares of pairs with exact binomial bounds of "
        "95 %.",
        f"Macro F1 and balanced accuracy are of three classes ({', '.join(f'{share:.0%}' for share in SHARES)}), of "
        f"which a champion gets {RIGHT:.0%} right; the errors are",
        f"of numbers, with a champion whose mean absolute error is {ERROR:.2f}. Balanced accuracy and root mean squared "
        "error are scikit-learn's functions by",
        "their names, whose intervals come from leaving out rows or days.",
        "",
        "## Promoted",
        "",
        *worlds,
        "",
        f"`Better` asks for proof of improvement, `NoWorse` for proof of no harm beyond the margin; both at alpha "
        f"{ALPHA:.1%}.",
        "MLflow's rule: `MetricThreshold(threshold=0.6, min_absolute_change=0.001, greater_is_better=True)`.",
        "",
        "## Wrong at the edge",
        "",
        "Each gate where it is wrong most often: the truth lies exactly at its limit. For `NoSliceWorse`, wrong is to",
        "stop a candidate that loses no more than the margin in any slice.",
        "",
        *edges,
        "",
        *compare_times(),
        "",
        "![Share promoted against the true difference](../docs/images/gates-power.png)",
    ]
    benchmark.write_report("gates", lines)


if __name__ == "__main__":
    main()
