import warnings

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import UndefinedMetricWarning

from mlops_lib import errors, evaluation
from mlops_lib.evaluation import METRICS, Interval


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def scored(n_rows, *, seed=0, signal=1.0, decimals=None):
    """Return labels, and scores that know more about them the larger the signal is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n_rows)
    score = 1 / (1 + np.exp(-rng.normal(signal * (y - 0.5), 1)))
    return y, score if decimals is None else score.round(decimals)


# --- metrics


def test_metrics_are_those_of_scikit_learn_under_prefixed_keys():
    y, score = scored(500)
    found = evaluation.compute_metrics(y, score, prefix="val")
    assert found == {f"val_{name}": metric.compute(y, score) for name, metric in METRICS.items()}
    assert list(evaluation.compute_metrics(y, score)) == ["roc_auc", "average_precision", "log_loss", "brier"]


def test_each_metric_states_its_direction():
    better = {name: metric.greater_is_better for name, metric in METRICS.items()}
    assert better == {"roc_auc": True, "average_precision": True, "log_loss": False, "brier": False}
    y, poor = scored(2000, signal=0.5)
    _, good = scored(2000, signal=3)
    for metric in METRICS.values():
        assert (metric.compute(y, good) > metric.compute(y, poor)) == metric.greater_is_better


@pytest.mark.parametrize("kind", [list, pd.Series, np.array])
def test_labels_may_be_booleans_in_any_container(kind):
    y, score = scored(300)
    assert evaluation.compute_metrics(kind(y == 1), kind(score)) == evaluation.compute_metrics(y, score)
    assert evaluation.compute_metrics(pd.Series(y, dtype="Int64"), score) == evaluation.compute_metrics(y, score)


@pytest.mark.parametrize(
    ("y_true", "y_score", "error", "text"),
    [
        (
            [0, 1, 1],
            [0.1, 0.9],
            errors.ScoreLengthError,
            "There are 3 labels but 2 scores. They are compared by position, so both must come from the same rows in "
            "the same order. Nothing was computed.",
        ),
        (
            [0, 1],
            [[0.9, 0.1], [0.2, 0.8]],
            errors.ScoreLengthError,
            "There are 2 labels but 4 scores. They are compared by position, so both must come from the same rows in "
            "the same order. Nothing was computed.",
        ),
        (
            [],
            [],
            errors.NoRowsError,
            "There are no rows in the labels and scores. At least one is needed. Nothing was computed.",
        ),
        (
            [0, 1, 1],
            [0.1, np.nan, np.inf],
            errors.ScoreValuesError,
            "2 of 3 scores are no probabilities; the first is nan at row 1. Scores are finite and within [0, 1], such "
            "as model.predict_proba(X)[:, 1]. Nothing was computed.",
        ),
        (
            [0, 1],
            [0.1, 1.2],
            errors.ScoreValuesError,
            "1 of 2 scores are no probabilities; the first is 1.2 at row 1. Scores are finite and within [0, 1], such "
            "as model.predict_proba(X)[:, 1]. Nothing was computed.",
        ),
        (
            [0, 1, np.nan, 2],
            [0.1, 0.9, 0.5, 0.5],
            errors.LabelValuesError,
            "Labels hold nan, 2.0, but only 0 and 1 (or False and True) are known. Leave out rows without a label, and "
            "map others to 0 and 1. Nothing was computed.",
        ),
        (
            ["late", "on time"],
            [0.1, 0.9],
            errors.LabelValuesError,
            "Labels hold late, on time, but only 0 and 1 (or False and True) are known. Leave out rows without a "
            "label, and map others to 0 and 1. Nothing was computed.",
        ),
        (
            [1, 1],
            [0.1, 0.9],
            errors.SingleClassError,
            "All 2 rows are of class 1, so ranking metrics have nothing to compare. Use a longer period or a larger "
            "slice. Nothing was computed.",
        ),
    ],
)
def test_what_has_no_answer_is_refused_by_name(y_true, y_score, error, text):
    with pytest.raises(error) as caught:
        evaluation.compute_metrics(y_true, y_score)
    assert str(caught.value) == text
    assert isinstance(caught.value, errors.MlopsError)
    with pytest.raises(error):
        evaluation.compute_interval(y_true, y_score, n_resamples=2)


# --- intervals


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "many ties"])
def test_weighing_rows_by_counts_equals_scikit_learn_on_the_resampled_rows(name, decimals):
    y, score = scored(400, decimals=decimals)
    weighted = METRICS[name].prepare(y, score)
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = rng.integers(len(y), size=len(y))
        counts = np.bincount(rows, minlength=len(y)).astype(float)
        assert weighted(counts) == pytest.approx(METRICS[name].compute(y[rows], score[rows]), rel=1e-12)


def test_log_loss_of_a_certain_and_wrong_score_is_that_of_scikit_learn():
    y, score = np.array([0, 1, 1]), np.array([1.0, 0.0, 1.0])
    assert METRICS["log_loss"].prepare(y, score)(np.ones(3)) == pytest.approx(METRICS["log_loss"].compute(y, score))


def test_interval_holds_the_metric_of_all_rows_and_narrows_with_more_of_them():
    few, many = (evaluation.compute_interval(*scored(n), n_resamples=200) for n in (300, 10_000))
    assert few.value == pytest.approx(METRICS["roc_auc"].compute(*scored(300)))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert (few.n_rows, few.confidence) == (300, 0.95)


def test_interval_agrees_with_the_known_standard_error_of_a_mean():
    y, score = scored(5000)
    losses = (y - score) ** 2
    found = evaluation.compute_interval(y, score, "brier", n_resamples=2000)
    half = 1.96 * losses.std() / np.sqrt(len(y))
    assert (found.low, found.high) == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.1 * half)


def test_same_random_state_gives_the_same_interval_and_another_does_not():
    y, score = scored(300)
    first, again, other = (evaluation.compute_interval(y, score, n_resamples=50, random_state=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_paired_interval_is_narrower_than_either_and_zero_for_the_same_scores():
    y, champion = scored(2000)
    candidate = np.clip(champion + np.random.default_rng(3).normal(0, 0.01, len(y)), 0, 1)
    paired = evaluation.compute_paired_interval(y, candidate, champion, n_resamples=200)
    alone = evaluation.compute_interval(y, candidate, n_resamples=200)
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    same = evaluation.compute_paired_interval(y, champion, champion, n_resamples=20)
    assert (same.low, same.value, same.high) == (0, 0, 0)


@pytest.mark.parametrize("name", METRICS)
def test_paired_interval_is_the_plain_difference_candidate_minus_champion(name):
    y, champion = scored(1000)
    _, candidate = scored(1000, signal=3)
    found = evaluation.compute_paired_interval(y, candidate, champion, name, n_resamples=50)
    metric = METRICS[name]
    assert found.value == pytest.approx(metric.compute(y, candidate) - metric.compute(y, champion))
    assert (found.low > 0) == metric.greater_is_better
    assert (found.high < 0) != metric.greater_is_better


def test_a_resample_without_positives_is_drawn_again_so_no_interval_is_nan():
    y = np.array([1] + [0] * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndefinedMetricWarning)
        found = evaluation.compute_interval(y, np.linspace(0, 1, 31)[::-1], n_resamples=200)
    assert (found.low, found.value, found.high) == (1, 1, 1)


def test_interval_reads_as_value_and_range():
    assert str(Interval(0.7041, 0.7119, 0.72, 0.95, 28_000)) == "0.712 [0.704, 0.720]"


def test_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(errors.UnknownMetricError) as caught:
        evaluation.compute_interval([0, 1], [0.1, 0.9], "roc")
    assert str(caught.value) == (
        "There is no metric 'roc'. Known are roc_auc, average_precision, log_loss, brier. Did you mean 'roc_auc'? "
        "Nothing was computed."
    )
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("settings", [{"n_resamples": 0}, {"confidence": 1.0}])
def test_settings_without_an_interval_are_refused(settings):
    with pytest.raises(errors.ResamplingError, match="At least 1 resample and a confidence between 0 and 1") as caught:
        evaluation.compute_interval([0, 1], [0.1, 0.9], **settings)
    facts = {"n_resamples": 1000, "confidence": 0.95} | settings
    assert str(caught.value) == (
        f"No interval follows from n_resamples={facts['n_resamples']} and confidence={facts['confidence']}. "
        "At least 1 resample and a confidence between 0 and 1 are needed. Nothing was computed."
    )


# --- slices


def sliced(n_rows=2400):
    y, score = scored(n_rows, signal=2)
    by = pd.DataFrame({"airport": np.tile(["JFK", "LGA", "EWR"], n_rows // 3)})
    is_poor = (by["airport"] == "LGA").to_numpy()
    poor = np.where(is_poor, score[::-1], score)
    return y, score, poor, by


def test_slices_are_listed_worst_first_with_their_rows_and_intervals():
    y, _, poor, by = sliced()
    found = evaluation.compute_slices(y, poor, by, n_resamples=100)
    assert found["slice"].iloc[0] == "LGA"
    assert found["value"].is_monotonic_increasing
    assert found["n_rows"].tolist() == [800, 800, 800]
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    rows = (by["airport"] == "LGA").to_numpy()
    assert found.loc[0, "value"] == pytest.approx(METRICS["roc_auc"].compute(y[rows], poor[rows]))
    assert found.loc[0, "positive_share"] == y[rows].mean()


def test_slices_of_a_loss_put_the_largest_first():
    y, _, poor, by = sliced()
    found = evaluation.compute_slices(y, poor, by, metric="log_loss", n_resamples=20)
    assert found["value"].is_monotonic_decreasing
    assert found["slice"].iloc[0] == "LGA"


def test_slices_with_a_champion_are_sorted_by_the_difference():
    y, good, poor, by = sliced()
    found = evaluation.compute_slices(y, poor, by, y_champion=good, n_resamples=100)
    assert found["slice"].iloc[0] == "LGA"
    assert found.loc[0, "difference_high"] < 0
    assert (found.loc[1:, ["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    rows = (by["airport"] == "LGA").to_numpy()
    paired = evaluation.compute_paired_interval(y[rows], poor[rows], good[rows], n_resamples=100)
    assert (found.loc[0, "difference_low"], found.loc[0, "difference_high"]) == (paired.low, paired.high)


def test_slices_that_cannot_be_measured_are_listed_last_with_a_note():
    y, score = scored(900)
    by = pd.DataFrame({"kind": np.where(np.arange(900) < 10, "rare", "common")})
    by.loc[y == 1, "class"] = "only positives"
    found = evaluation.compute_slices(y, score, by, n_resamples=20).set_index("slice")
    assert found.index[0] == "common"
    assert found.loc["rare", "note"] == "fewer than 200 rows"
    assert found.loc["only positives", "note"] == "every label is 1"
    assert found.loc["missing", "note"] == "every label is 0"
    assert found.loc[["rare", "only positives", "missing"], ["value", "low", "high"]].isna().all(axis=None)


def test_a_slice_does_not_depend_on_the_other_slices():
    y, _, poor, by = sliced()
    rows = (by["airport"] == "JFK").to_numpy()
    together = evaluation.compute_slices(y, poor, by, n_resamples=50).set_index("slice").loc["JFK"]
    alone = evaluation.compute_slices(y[rows], poor[rows], by[rows], n_resamples=50).set_index("slice").loc["JFK"]
    assert together.equals(alone)


def test_whole_numbers_keep_their_name_when_some_are_missing():
    y, score = scored(600)
    by = pd.DataFrame({"hour": np.tile([7.0, 8.5, np.nan], 200)})
    assert set(evaluation.compute_slices(y, score, by, n_resamples=5)["slice"]) == {"7", "8.5", "missing"}


def test_slices_need_as_many_rows_as_labels():
    with pytest.raises(errors.ScoreLengthError, match="There are 2 labels but 1 rows to slice by"):
        evaluation.compute_slices([0, 1], [0.1, 0.9], pd.DataFrame({"a": [1]}))


# --- figures


def test_every_figure_has_a_title_and_both_axes_named_and_keeps_the_axes_given():
    y, good, poor, by = sliced()
    slices = evaluation.compute_slices(y, poor, by, n_resamples=20)
    differences = evaluation.compute_slices(y, poor, by, y_champion=good, n_resamples=20)
    for draw in (
        lambda ax: evaluation.plot_roc(y, poor, y_champion=good, ax=ax),
        lambda ax: evaluation.plot_calibration(y, poor, y_champion=good, ax=ax),
        lambda ax: evaluation.plot_score_threshold(y, poor, threshold=0.4, ax=ax),
        lambda ax: evaluation.plot_slices(slices, overall=0.8, ax=ax),
        lambda ax: evaluation.plot_slices(differences, ax=ax),
    ):
        own, given = draw(None), plt.figure().subplots()
        assert draw(given) is given
        assert all((own.get_title(), own.get_xlabel(), own.get_ylabel()))
        own.figure.draw_without_rendering()


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_roc_figure_names_model_and_champion_with_their_areas():
    y, good, poor, _ = sliced()
    assert texts(evaluation.plot_roc(y, good)) == [f"model {METRICS['roc_auc'].compute(y, good):.3f}", "chance 0.500"]
    assert [text.split()[0] for text in texts(evaluation.plot_roc(y, poor, y_champion=good))] == [
        "champion",
        "candidate",
        "chance",
    ]


def test_calibration_figure_counts_every_row_once():
    y, score, _, _ = sliced()
    score[0] = 1.0  # the upper end belongs to the last bin
    ax = evaluation.plot_calibration(y, score)
    assert sum(int(text.get_text().replace(",", "")) for text in ax.texts) == len(y)


def test_threshold_figure_marks_the_operating_point():
    y, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.8])
    assert texts(evaluation.plot_score_threshold(y, score))[-1] == (
        "at 0.5: precision 0.50, recall 0.50, flags 50 % of rows"
    )
    assert texts(evaluation.plot_score_threshold(y, score, threshold=0.9))[-1] == "at 0.9: flags no row"


def test_slice_figure_marks_what_is_worse_beyond_chance_and_says_how_many_are_left_out():
    y, good, poor, by = sliced()
    slices = evaluation.compute_slices(y, poor, by, y_champion=good, n_resamples=50)
    ax = evaluation.plot_slices(slices, max_slices=2)
    assert texts(ax) == ["worse, beyond chance", "no difference"]
    assert ax.get_title() == "Where the candidate differs (worst 2 of 3)"
    assert ax.get_yticklabels()[0].get_text() == "airport: LGA  (800)"
    losses = evaluation.compute_slices(y, poor, by, metric="log_loss", n_resamples=50)
    assert texts(evaluation.plot_slices(losses, metric="log_loss", overall=0.5))[0] == "worse, beyond chance"


def test_slice_figure_shortens_long_names_and_refuses_an_empty_table():
    y, score = scored(400)
    by = pd.DataFrame({"airline": ["a name that is far too long for any axis of any figure"] * 400})
    slices = evaluation.compute_slices(y, score, by, n_resamples=5)
    label = evaluation.plot_slices(slices).get_yticklabels()[0].get_text()
    assert label == "airline: a name that is far too long…  (400)"
    with pytest.raises(errors.NoRowsError, match="no rows in the measured slices"):
        evaluation.plot_slices(evaluation.compute_slices(y, score, by, min_rows=1000))
