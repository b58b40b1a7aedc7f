import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from samples import COLUMNS, classes, numbers, scored, sliced, table

from mlops_lib import errors, quality
from mlops_lib.quality import Limit
from mlops_lib.quality.figures import VERMILLION
from mlops_lib.task import binary, multiclass, regression


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_every_figure_has_a_title_and_both_axes_named_and_keeps_the_axes_given():
    y, good, poor, by = sliced()
    slices = quality.compute_slices(y, poor, by)
    differences = quality.compute_slices(y, poor, by, y_champion=good)
    three, y3, score3, _ = classes(600)
    number, truth, predicted, _ = numbers(600)
    for draw in (
        lambda ax: quality.plot_calibration(y, poor, y_champion=good, ax=ax),
        lambda ax: quality.plot_score_threshold(y, poor, task=binary(threshold=0.4), ax=ax),
        lambda ax: quality.plot_slices(slices, overall=0.8, ax=ax),
        lambda ax: quality.plot_slices(differences, ax=ax),
        lambda ax: quality.plot_calibration(y3, score3, task=three, ax=ax),
        lambda ax: quality.plot_calibration(truth, predicted, task=number, ax=ax),
        lambda ax: quality.plot_confusion(y3, score3, task=three, ax=ax),
        lambda ax: quality.plot_confusion(y, poor, task=binary(), ax=ax),
        lambda ax: quality.plot_residuals(truth, predicted, task=number, ax=ax),
    ):
        own, given = draw(None), plt.figure().subplots()
        assert draw(given) is given
        assert all((own.get_title(), own.get_xlabel(), own.get_ylabel()))
        own.figure.draw_without_rendering()
        assert not any(ax.spines[side].get_visible() for ax in (own, given) for side in ("top", "right"))


def test_new_axes_have_the_librarys_style_and_leave_that_of_the_process_alone():
    before = dict(mpl.rcParams)
    ax = quality.new_axes("Late by hour", "Hour", "Share late", height=3)
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("Late by hour", "Hour", "Share late")
    assert ax.figure.get_size_inches().tolist() == [7, 3]
    colors = [ax.plot([0, 1])[0].get_color() for _ in range(4)]
    assert colors == ["#0072B2", "#E69F00", "#D55E00", "#7F7F7F"]
    assert dict(mpl.rcParams) == before
    with plt.style.context(quality.FIGURE_STYLE):
        assert mpl.colors.to_hex("C2").upper() == "#D55E00"
        assert not plt.figure().subplots().spines["top"].get_visible()


def test_confusion_figure_shows_the_share_of_each_true_class():
    y = np.array(["cat", "cat", "dog", "cow", "cow", "cow", "cow"])
    task = multiclass(("dog", "cat", "cow"))
    codes = [1, 0, 0, 2, 2, 2, 1]
    ax = quality.plot_confusion(y, np.eye(3)[codes], task=task)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dog", "cat", "cow"]
    assert [text.get_text() for text in ax.texts] == [
        "1.00",
        "0.00",
        "0.00",
        "0.50",
        "0.50",
        "0.00",
        "0.00",
        "0.25",
        "0.75",
    ]
    with pytest.raises(errors.TaskError, match="The task 'regression' has no classes"):
        quality.plot_confusion([1.0, 2.0], [1.0, 2.0], task=regression())


def test_residual_figure_shows_target_minus_prediction():
    ax = quality.plot_residuals([1.0, 5.0, 9.0], [2.0, 4.0, 9.0], task=regression())
    assert sorted(ax.collections[0].get_offsets().tolist()) == [[2, -1], [4, 1], [9, 0]]


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_calibration_figure_draws_the_groups_of_both_models_with_their_intervals_and_counts_every_row_once():
    y, good, poor, _ = sliced()
    ax = quality.plot_calibration(y, poor, y_champion=good)
    assert texts(ax) == ["champion: 2,400 rows in 10 groups", "candidate: 2,400 rows in 10 groups", "perfect"]
    (line,) = [line for line in ax.lines if line.get_label().startswith("candidate")]
    groups = quality.compute_score_groups(y, poor, n_groups=10)
    assert line.get_xydata().tolist() == [[group.mean_score, group.observed] for group in groups]
    ends = np.array([segment[:, 1] for segment in ax.collections[1].get_segments()])
    expected = [[group.mean_score - group.gap.high, group.mean_score - group.gap.low] for group in groups]
    assert ends == pytest.approx(np.array(expected))


def test_threshold_figure_marks_the_operating_point():
    y, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.8])
    assert texts(quality.plot_score_threshold(y, score))[-1] == (
        "at 0.5: precision 0.50, recall 0.50, flags 50 % of rows"
    )
    assert texts(quality.plot_score_threshold(y, score, task=binary(threshold=0.9)))[-1] == "at 0.9: flags no row"
    with pytest.raises(errors.TaskError, match="The task 'regression' has no threshold to draw"):
        quality.plot_score_threshold([1.0, 2.0], [1.0, 2.0], task=regression())


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


def test_drift_figure_shows_limit_numbers_and_columns_that_were_not_compared():
    profile = quality.build_profile(table(2000), columns=COLUMNS)
    drift = quality.compute_drift(profile, table(2000, seed=1, hour=30).drop(columns="rain"))
    ax, given = quality.plot_drift(drift), plt.figure().subplots()
    assert quality.plot_drift(drift, ax=given) is given
    assert all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
    shown = [text.get_text() for text in ax.texts]
    assert shown[0] == "not compared: the column is not in the table"
    assert shown[1].startswith("… ")
    assert shown[1].endswith("above 22: 0 % -> 100 %")
    assert ax.get_legend().get_texts()[0].get_text() == "limit 0.25"
    ax.figure.draw_without_rendering()
    with pytest.raises(errors.QualityError, match="no rows in the measured drift"):
        quality.plot_drift(drift[:0])


def test_drift_figure_marks_what_the_check_fails():
    profile = quality.build_profile(pd.DataFrame({"x": ["a", "b"] * 500}), columns=["x"])
    drift = quality.compute_drift(profile, pd.DataFrame({"x": ["a"] * 15 + ["b"] * 4}))
    for periods_a_year in (365, 12):
        (bar,) = quality.plot_drift(drift, periods_a_year=periods_a_year).patches
        report = quality.check_drift(drift, periods_a_year=periods_a_year)
        assert (to_hex(bar.get_facecolor()).upper() == VERMILLION) is not report.passed


def test_quality_figure_shows_the_metric_by_period_and_its_limits():
    live = pd.DataFrame({"roc_auc": [0.7, 0.6]}, index=pd.DatetimeIndex(["2013-05-01", "2013-05-02"], name="day"))
    ax, given = (
        quality.plot_live_quality(live, limit=Limit(0.65, 0.9)),
        plt.figure().subplots(),
    )
    assert quality.plot_live_quality(live, ax=given) is given
    assert all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["from late labels", "limit 0.65", "limit 0.9"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2013-05-01", "2013-05-02"]
    ax.figure.draw_without_rendering()
    with pytest.raises(errors.QualityError, match=r"The qualities lack auc\. They have roc_auc"):
        quality.plot_live_quality(live, metric="auc")
