import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn
from refusals import raises
from sklearn import metrics

from mlops_lib import errors, quality
from mlops_lib.quality import METRICS, Interval


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
    found = quality.compute_metrics(y, score, prefix="val")
    assert found == {f"val_{name}": metric.compute(y, score) for name, metric in METRICS.items()}
    assert list(quality.compute_metrics(y, score)) == ["roc_auc", "average_precision", "log_loss", "brier"]


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
    assert quality.compute_metrics(kind(y == 1), kind(score)) == quality.compute_metrics(y, score)
    assert quality.compute_metrics(pd.Series(y, dtype="Int64"), score) == quality.compute_metrics(y, score)


@pytest.mark.parametrize(
    ("y_true", "y_score", "error", "text"),
    [
        (
            [0, 1, 1],
            [0.1, 0.9],
            errors.QualityError,
            "There are 3 labels but 2 scores. They are compared by position, so both must come from the same rows in "
            "the same order. Nothing was computed.",
        ),
        (
            [0, 1],
            [[0.9, 0.1], [0.2, 0.8]],
            errors.QualityError,
            "There are 2 labels but 4 scores. They are compared by position, so both must come from the same rows in "
            "the same order. Nothing was computed.",
        ),
        (
            [],
            [],
            errors.QualityError,
            "There are no rows in the labels and scores. At least one is needed. Nothing was computed.",
        ),
        (
            [0, 1, 1],
            [0.1, np.nan, np.inf],
            errors.QualityError,
            "2 of 3 scores are no probabilities; the first is nan at row 1. Scores are finite and within [0, 1], such "
            "as model.predict_proba(X)[:, 1]. Nothing was computed.",
        ),
        (
            [0, 1],
            [0.1, 1.2],
            errors.QualityError,
            "1 of 2 scores are no probabilities; the first is 1.2 at row 1. Scores are finite and within [0, 1], such "
            "as model.predict_proba(X)[:, 1]. Nothing was computed.",
        ),
        (
            [0, 1, np.nan, 2],
            [0.1, 0.9, 0.5, 0.5],
            errors.QualityError,
            "Labels hold nan, 2.0, but only 0 and 1 are known. Leave out rows without a label, or declare the "
            "project's task as what it is. Nothing was computed.",
        ),
        (
            ["late", "on time"],
            [0.1, 0.9],
            errors.QualityError,
            "Labels hold late, on time, but only 0 and 1 are known. Leave out rows without a label, or declare "
            "the project's task as what it is. Nothing was computed.",
        ),
        (
            [1, 1],
            [0.1, 0.9],
            errors.QualityError,
            "All 2 rows are of class 1, so ranking metrics have nothing to compare. Use a longer period or a larger "
            "slice. Nothing was computed.",
        ),
    ],
)
def test_what_has_no_answer_is_refused_by_name(y_true, y_score, error, text):
    with pytest.raises(error) as caught:
        quality.compute_metrics(y_true, y_score)
    assert str(caught.value) == text
    assert isinstance(caught.value, errors.MlopsError)
    with pytest.raises(error):
        quality.compute_interval(y_true, y_score)


# --- intervals


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "many ties"])
def test_influence_is_what_the_metric_changes_by_when_a_row_weighs_more(name, decimals):
    y, score = scored(60, decimals=decimals)
    value, influence = METRICS[name].influence(y, score)
    weighted = {"roc_auc": metrics.roc_auc_score, "average_precision": metrics.average_precision_score}
    weighted |= {"log_loss": metrics.log_loss, "brier": metrics.brier_score_loss}
    assert value == pytest.approx(weighted[name](y, score))
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    for row in range(60):
        more, less = np.ones(60), np.ones(60)
        more[row] += 1e-4
        less[row] -= 1e-4
        slope = (weighted[name](y, score, sample_weight=more) - weighted[name](y, score, sample_weight=less)) / 2e-4
        assert influence[row] == pytest.approx(60 * slope, rel=1e-5, abs=1e-6)


def test_log_loss_of_a_certain_and_wrong_score_is_that_of_scikit_learn():
    y, score = np.array([0, 1, 1]), np.array([1.0, 0.0, 1.0])
    assert METRICS["log_loss"].influence(y, score)[0] == pytest.approx(METRICS["log_loss"].compute(y, score))


@pytest.mark.parametrize("name", METRICS)
def test_intervals_agree_with_the_paired_bootstrap(name):
    """Efron & Tibshirani 1993, chapter 13: the same rows are drawn for both models, with scikit-learn's metric."""
    y, champion = scored(600)
    candidate = np.clip(champion + np.random.default_rng(3).normal(0, 0.1, len(y)), 0.02, 0.98)
    rng = np.random.default_rng(4)
    metric = METRICS[name].compute
    drawn = []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(800):
            rows = rng.integers(len(y), size=len(y))
            drawn.append(metric(y[rows], candidate[rows]) - metric(y[rows], champion[rows]))
    found = quality.compute_paired_interval(y, candidate, champion, name)
    assert found.error == pytest.approx(np.std(drawn), rel=0.1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_interval_holds_the_metric_of_all_rows_and_narrows_with_more_of_them():
    few, many = (quality.compute_interval(*scored(n)) for n in (300, 10_000))
    assert few.value == pytest.approx(METRICS["roc_auc"].compute(*scored(300)))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert (few.n_rows, few.confidence) == (300, 0.95)


def test_interval_agrees_with_the_known_standard_error_of_a_mean():
    y, score = scored(5000)
    losses = (y - score) ** 2
    found = quality.compute_interval(y, score, "brier")
    half = 1.96 * losses.std() / np.sqrt(len(y))
    assert (found.low, found.high) == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.1 * half)


def test_rows_that_were_copied_tell_nothing_new_once_their_cluster_is_named():
    y, score = scored(400)
    copied = np.tile(np.arange(400), 5)
    once, naive, honest = (
        quality.compute_interval(y[rows], score[rows], clusters=clusters)
        for rows, clusters in ((np.arange(400), None), (copied, None), (copied, copied))
    )
    assert naive.error == pytest.approx(once.error / 5**0.5, rel=0.01)
    assert honest.error == pytest.approx(once.error, rel=1e-9)
    assert (honest.low, honest.high) == pytest.approx((once.low, once.high))


def test_clusters_of_one_row_each_are_no_clusters_and_few_clusters_widen_the_interval():
    y, score = scored(400)
    assert quality.compute_interval(y, score, clusters=np.arange(400)) == quality.compute_interval(y, score)
    few = quality.compute_interval(y, score, clusters=np.arange(400) % 10)
    assert (few.high - few.low) / few.error == pytest.approx(2 * 2.262, rel=1e-3)  # Student's t with 9 degrees


def test_clusters_are_compared_by_position_and_may_be_missing_dates_or_text():
    y, score = scored(400)
    days = pd.Series(pd.date_range("2020-01-01", periods=40)).repeat(10)
    by_day = quality.compute_interval(y, score, clusters=days)
    assert by_day == quality.compute_interval(y, score, clusters=days.dt.strftime("%d %b"))
    assert quality.compute_interval(y, score, clusters=days.where(days > days.min())) == by_day
    with pytest.raises(errors.QualityError, match="There are 400 labels but 3 clusters"):
        quality.compute_interval(y, score, clusters=[1, 2, 3])


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "n_clusters", "text"),
    [
        (29, 100, None, "There are 29 rows of class 1, and an interval needs 30."),
        (100, 29, None, "There are 29 rows of class 0, and an interval needs 30."),
        (100, 100, 9, "There are 9 clusters of rows, and an interval needs 10."),
    ],
)
def test_an_interval_of_too_few_rows_is_refused(n_positive, n_negative, n_clusters, text):
    """One positive on top of thirty negatives has an area of 1, and a bootstrap that says it is certain."""
    y = np.repeat([1, 0], [n_positive, n_negative])
    clusters = None if n_clusters is None else np.arange(len(y)) % n_clusters
    with pytest.raises(errors.TooFewRowsError, match=text):
        quality.compute_interval(y, np.linspace(0, 1, len(y)), clusters=clusters)


def test_paired_interval_is_narrower_than_either_and_zero_for_the_same_scores():
    y, champion = scored(2000)
    candidate = np.clip(champion + np.random.default_rng(3).normal(0, 0.01, len(y)), 0, 1)
    paired = quality.compute_paired_interval(y, candidate, champion)
    alone = quality.compute_interval(y, candidate)
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    same = quality.compute_paired_interval(y, champion, champion)
    assert (same.low, same.value, same.high) == (0, 0, 0)


@pytest.mark.parametrize("name", METRICS)
def test_paired_interval_is_the_plain_difference_candidate_minus_champion(name):
    y, champion = scored(1000)
    _, candidate = scored(1000, signal=3)
    found = quality.compute_paired_interval(y, candidate, champion, name)
    metric = METRICS[name]
    assert found.value == pytest.approx(metric.compute(y, candidate) - metric.compute(y, champion))
    assert (found.low > 0) == metric.greater_is_better
    assert (found.high < 0) != metric.greater_is_better


def test_p_values_say_on_which_side_of_a_limit_the_value_certainly_is():
    found = Interval(0.60, 0.70, 0.80, 0.95, 1000, error=0.05, degrees=1000)
    assert found.p_below(0.70) == pytest.approx(0.5)
    assert found.p_below(0.80) == pytest.approx(0.023, abs=1e-3)
    assert found.p_above(0.60) == pytest.approx(0.023, abs=1e-3)
    certain = Interval(0.7, 0.7, 0.7, 0.95, 1000)
    assert [certain.p_below(limit) for limit in (0.6, 0.7, 0.8)] == [1, 1, 0]
    assert [certain.p_above(limit) for limit in (0.6, 0.7, 0.8)] == [0, 1, 1]


def test_interval_reads_as_value_and_range():
    assert str(Interval(0.7041, 0.7119, 0.72, 0.95, 28_000)) == "0.712 [0.704, 0.720]"


def test_unknown_metric_is_refused_with_the_nearest_name():
    with raises(errors.NotFoundError, "metric") as caught:
        quality.compute_interval([0, 1], [0.1, 0.9], "roc")
    assert str(caught.value) == (
        "There is no metric 'roc'. Known are roc_auc, average_precision, log_loss, brier. Did you mean 'roc_auc'? "
        "Nothing was computed."
    )


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_without_an_interval_is_refused(confidence):
    with raises(errors.QualityError, "confidence") as caught:
        quality.compute_interval(*scored(300), confidence=confidence)
    assert str(caught.value) == (
        f"No interval follows from confidence={confidence}. It lies between 0 and 1, such as 0.95. "
        "Nothing was computed."
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
    found = quality.compute_slices(y, poor, by)
    assert found["slice"].iloc[0] == "LGA"
    assert found["value"].is_monotonic_increasing
    assert found["n_rows"].tolist() == [800, 800, 800]
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    rows = (by["airport"] == "LGA").to_numpy()
    assert found.loc[0, "value"] == pytest.approx(METRICS["roc_auc"].compute(y[rows], poor[rows]))
    assert found.loc[0, "positive_share"] == y[rows].mean()


def test_slices_of_a_loss_put_the_largest_first():
    y, _, poor, by = sliced()
    found = quality.compute_slices(y, poor, by, metric="log_loss")
    assert found["value"].is_monotonic_decreasing
    assert found["slice"].iloc[0] == "LGA"


def test_slices_with_a_champion_are_sorted_by_the_difference():
    y, good, poor, by = sliced()
    found = quality.compute_slices(y, poor, by, y_champion=good)
    assert found["slice"].iloc[0] == "LGA"
    assert found.loc[0, "difference_high"] < 0
    assert (found.loc[1:, ["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    rows = (by["airport"] == "LGA").to_numpy()
    paired = quality.compute_paired_interval(y[rows], poor[rows], good[rows])
    assert (found.loc[0, "difference_low"], found.loc[0, "difference_high"]) == (paired.low, paired.high)


def test_slices_that_cannot_be_measured_are_listed_last_with_a_note():
    y, score = scored(900)
    by = pd.DataFrame({"kind": np.where(np.arange(900) < 10, "rare", "common")})
    by.loc[y == 1, "class"] = "only positives"
    found = quality.compute_slices(y, score, by).set_index("slice")
    assert found.index[0] == "common"
    assert found.loc["rare", "note"] == "fewer than 200 rows"
    assert found.loc["only positives", "note"] == "every label is 1"
    assert found.loc["missing", "note"] == "every label is 0"
    mixed = quality.compute_slices(
        y, score, pd.DataFrame({"a": np.where((y == 1).cumsum() > 20, "x", "y")}), min_rows=5
    )
    assert mixed.set_index("slice").loc["y", "note"] == "20 rows of class 1"
    assert found.loc[["rare", "only positives", "missing"], ["value", "low", "high"]].isna().all(axis=None)


def test_a_slice_does_not_depend_on_the_other_slices():
    y, _, poor, by = sliced()
    rows = (by["airport"] == "JFK").to_numpy()
    together = quality.compute_slices(y, poor, by).set_index("slice").loc["JFK"]
    alone = quality.compute_slices(y[rows], poor[rows], by[rows]).set_index("slice").loc["JFK"]
    assert together.equals(alone)


def test_whole_numbers_keep_their_name_when_some_are_missing():
    y, score = scored(600)
    by = pd.DataFrame({"hour": np.tile([7.0, 8.5, np.nan], 200)})
    assert set(quality.compute_slices(y, score, by)["slice"]) == {"7", "8.5", "missing"}


def test_slices_need_as_many_rows_as_labels():
    with pytest.raises(errors.QualityError, match="There are 2 labels but 1 rows to slice by"):
        quality.compute_slices([0, 1], [0.1, 0.9], pd.DataFrame({"a": [1]}))


def test_a_slice_is_called_worse_only_beyond_the_margin_and_after_correction_for_the_number_of_slices():
    y, good, poor, by = sliced()
    found = quality.compute_slices(y, poor, by, y_champion=good).set_index("slice")
    assert found.loc["LGA", "p_worse"] < 0.001
    assert (found.loc[["JFK", "EWR"], "p_worse"] == 1).all()
    loss = -found.loc["LGA", "difference"]
    tolerant = quality.compute_slices(y, poor, by, y_champion=good, margin=loss).set_index("slice")
    assert tolerant.loc["LGA", "p_worse"] == 1  # 0.5, three times
    more = by.assign(everything="all")
    assert quality.compute_slices(y, poor, more, y_champion=good).set_index("slice").loc[
        "LGA", "p_worse"
    ] == pytest.approx(found.loc["LGA", "p_worse"] * 4 / 3)


def test_holm_corrects_by_rank_and_leaves_out_what_was_not_measured():
    found = quality.adjust_holm([0.01, np.nan, 0.04, 0.03, 0.5])
    assert found[[0, 2, 3, 4]] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert np.isnan(found[1])
    assert quality.adjust_holm([0.9, 0.8]).tolist() == [1, 1]


# --- groups of scores


def test_score_groups_of_honest_scores_have_no_gap_and_those_of_inflated_ones_do():
    rng = np.random.default_rng(0)
    score = rng.random(5000)
    y = (rng.random(5000) < score).astype(int)
    honest = quality.compute_score_groups(y, score)
    assert [len(honest), sum(group.gap.n_rows for group in honest)] == [5, 5000]
    assert all(group.gap.low < 0 < group.gap.high for group in honest)
    assert [group.low_score for group in honest] == sorted(group.low_score for group in honest)
    inflated = quality.compute_score_groups(y, np.minimum(score + 0.1, 1))
    assert all(group.gap.low > 0 for group in inflated[:4])
    assert inflated[0].gap.value == pytest.approx(inflated[0].mean_score - inflated[0].observed)


def test_a_group_without_a_positive_is_not_certain_for_that():
    score = np.r_[np.full(200, 0.01), np.full(200, 0.9)]
    y = np.r_[np.zeros(200), np.arange(200) < 180].astype(int)
    first = quality.compute_score_groups(y, score)[0]
    assert first.observed == 0
    assert first.gap.error == pytest.approx((0.01 * 0.99 / 200) ** 0.5)


def test_scores_that_are_all_the_same_are_one_group():
    y = np.arange(400) % 4 == 0
    (group,) = quality.compute_score_groups(y, np.full(400, 0.25))
    assert (group.gap.value, group.gap.n_rows) == (0, 400)


# --- figures


def test_every_figure_has_a_title_and_both_axes_named_and_keeps_the_axes_given():
    y, good, poor, by = sliced()
    slices = quality.compute_slices(y, poor, by)
    differences = quality.compute_slices(y, poor, by, y_champion=good)
    for draw in (
        lambda ax: quality.plot_roc(y, poor, y_champion=good, ax=ax),
        lambda ax: quality.plot_calibration(y, poor, y_champion=good, ax=ax),
        lambda ax: quality.plot_score_threshold(y, poor, threshold=0.4, ax=ax),
        lambda ax: quality.plot_slices(slices, overall=0.8, ax=ax),
        lambda ax: quality.plot_slices(differences, ax=ax),
    ):
        own, given = draw(None), plt.figure().subplots()
        assert draw(given) is given
        assert all((own.get_title(), own.get_xlabel(), own.get_ylabel()))
        own.figure.draw_without_rendering()


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_roc_figure_names_model_and_champion_with_their_areas():
    y, good, poor, _ = sliced()
    assert texts(quality.plot_roc(y, good)) == [f"model {METRICS['roc_auc'].compute(y, good):.3f}", "chance 0.500"]
    assert [text.split()[0] for text in texts(quality.plot_roc(y, poor, y_champion=good))] == [
        "champion",
        "candidate",
        "chance",
    ]


def test_calibration_figure_counts_every_row_once():
    y, score, _, _ = sliced()
    score[0] = 1.0  # the upper end belongs to the last bin
    ax = quality.plot_calibration(y, score)
    assert sum(int(text.get_text().replace(",", "")) for text in ax.texts) == len(y)


def test_threshold_figure_marks_the_operating_point():
    y, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.8])
    assert texts(quality.plot_score_threshold(y, score))[-1] == (
        "at 0.5: precision 0.50, recall 0.50, flags 50 % of rows"
    )
    assert texts(quality.plot_score_threshold(y, score, threshold=0.9))[-1] == "at 0.9: flags no row"


def test_slice_figure_marks_what_is_worse_beyond_chance_and_says_how_many_are_left_out():
    y, good, poor, by = sliced()
    slices = quality.compute_slices(y, poor, by, y_champion=good)
    ax = quality.plot_slices(slices, max_slices=2)
    assert texts(ax) == ["worse, beyond chance", "no difference"]
    assert ax.get_title() == "Where the candidate differs (worst 2 of 3)"
    assert ax.get_yticklabels()[0].get_text() == "airport: LGA  (800)"
    tolerant = quality.compute_slices(y, poor, by, y_champion=good, margin=0.05)
    expected = ["worse by more than 0.05, beyond chance", "no difference", "accepted loss"]
    assert texts(quality.plot_slices(tolerant, margin=0.05)) == expected
    losses = quality.compute_slices(y, poor, by, metric="log_loss")
    assert texts(quality.plot_slices(losses, metric="log_loss", overall=0.5))[0] == "worse, beyond chance"


def test_slice_figure_shortens_long_names_and_refuses_an_empty_table():
    y, score = scored(400)
    by = pd.DataFrame({"airline": ["a name that is far too long for any axis of any figure"] * 400})
    slices = quality.compute_slices(y, score, by)
    label = quality.plot_slices(slices).get_yticklabels()[0].get_text()
    assert label == "airline: a name that is far too long…  (400)"
    with pytest.raises(errors.QualityError, match="no rows in the measured slices"):
        quality.plot_slices(quality.compute_slices(y, score, by, min_rows=1000))
