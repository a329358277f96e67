"""Displays: what is drawn, on which axes, and that it can be read."""

import pickle
import re
import subprocess
import sys
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import is_regressor
from sklearn.datasets import make_regression
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    get_scorer,
    log_loss,
    make_scorer,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.early_exit import EarlyExitClassifier, ExitPath
from skbdistil.inspection import (
    AccuracyCostDisplay,
    ConvergenceDisplay,
    EarlyExitDisplay,
)
from skbdistil.model_selection import StagedSearchCV
from skbdistil.stages import UNITS, staged

plt = pytest.importorskip("matplotlib.pyplot")
same_color = pytest.importorskip("matplotlib.colors").same_color

COSTS = [10, 20, 30]
SCORES = [0.7, 0.8, 0.9]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def visible_boxes(ax):
    ax.figure.canvas.draw()
    return [text.get_window_extent() for text in ax.texts if text.get_visible()]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# The curve


def test_constructor_only_stores():
    costs, scores, teacher = object(), object(), object()
    display = AccuracyCostDisplay(
        costs,
        scores,
        cost_label="Euro",
        score_name="Recall",
        estimator_name="mine",
        teacher=teacher,
    )
    assert vars(display) == {
        "costs": costs,
        "scores": scores,
        "cost_label": "Euro",
        "score_name": "Recall",
        "estimator_name": "mine",
        "teacher": teacher,
    }


def test_plot_sets_its_attributes_and_returns_itself():
    display = AccuracyCostDisplay(COSTS, SCORES, estimator_name="mine")
    assert display.plot() is display
    assert_array_equal(display.line_.get_xdata(), COSTS)
    assert_array_equal(display.line_.get_ydata(), SCORES)
    assert display.ax_ is display.line_.axes
    assert display.figure_ is display.ax_.figure
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Cost", "Score")
    assert legend_texts(display.ax_) == ["mine"]
    assert display.band_ is None
    assert display.teacher_line_ is None
    assert display.teacher_point_ is None


def test_plot_uses_the_axes_name_and_style_that_it_is_given():
    _, ax = plt.subplots()
    display = AccuracyCostDisplay(COSTS, SCORES, estimator_name="mine")
    display.plot(ax, name="other", color="red", linestyle=":", marker="s")
    assert display.ax_ is ax
    assert legend_texts(ax) == ["other"]
    assert display.line_.get_color() == "red"
    assert display.line_.get_linestyle() == ":"
    assert display.line_.get_marker() == "s"


def test_no_legend_without_names():
    assert AccuracyCostDisplay(COSTS, SCORES).plot().ax_.get_legend() is None


def test_plot_can_be_repeated():
    display = AccuracyCostDisplay(COSTS, SCORES)
    first = display.plot(relative=False).ax_
    assert display.plot().ax_ is not first
    assert display.costs is COSTS


def test_band_is_one_standard_deviation_around_the_mean():
    scores = np.array([[0.5, 0.7, 0.8], [0.7, 0.8, 0.8]])
    display = AccuracyCostDisplay(COSTS, scores).plot()
    assert_allclose(display.line_.get_ydata(), [0.6, 0.75, 0.8])
    corners = display.band_.get_paths()[0].vertices
    for cost, low, high in zip(COSTS, [0.5, 0.7, 0.8], [0.7, 0.8, 0.8], strict=True):
        heights = corners[corners[:, 0] == cost, 1]
        assert_allclose([heights.min(), heights.max()], [low, high])
    assert same_color(display.band_.get_facecolor()[0, :3], display.line_.get_color())


def test_one_repeat_has_no_band():
    assert AccuracyCostDisplay(COSTS, [SCORES]).plot().band_ is None


# The teacher and relative costs


def test_teacher_is_a_point_and_a_line():
    display = AccuracyCostDisplay(COSTS, SCORES, teacher=(100, 0.95)).plot()
    assert_array_equal(display.teacher_line_.get_ydata(), [0.95, 0.95])
    assert_array_equal(display.teacher_point_.get_xydata(), [[100, 0.95]])
    assert legend_texts(display.ax_) == ["Teacher"]


def test_teacher_of_unknown_cost_is_a_line():
    display = AccuracyCostDisplay(COSTS, SCORES, teacher=(None, 0.95)).plot()
    assert_array_equal(display.teacher_line_.get_ydata(), [0.95, 0.95])
    assert display.teacher_point_ is None


def test_relative_costs_are_shares_of_the_teachers():
    display = AccuracyCostDisplay(
        COSTS, SCORES, teacher=(40, 0.95), cost_label="Euro"
    ).plot(relative=True)
    assert_allclose(display.line_.get_xdata(), [0.25, 0.5, 0.75])
    assert_allclose(display.teacher_point_.get_xdata(), [1])
    assert display.ax_.get_xlabel() == "Euro / teacher's"
    display.figure_.canvas.draw()
    assert "100%" in [tick.get_text() for tick in display.ax_.get_xticklabels()]
    assert display.costs is COSTS


def test_figure_can_be_pickled():
    display = AccuracyCostDisplay(COSTS, SCORES, teacher=(10_000, 0.95))
    figure = pickle.loads(pickle.dumps(display.plot(relative=True).figure_))
    assert len(figure.axes[0].lines) == 3


def test_small_shares_are_not_rounded_to_zero():
    display = AccuracyCostDisplay(COSTS, SCORES, teacher=(10_000, 0.95))
    ax = display.plot(relative=True).ax_
    ax.figure.canvas.draw()
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert "0.1%" in labels
    assert "0%" not in labels


# Several curves


def test_overlay_cycles_colours_and_has_one_teacher():
    _, ax = plt.subplots()
    displays = [
        AccuracyCostDisplay(
            np.multiply(COSTS, factor),
            SCORES,
            cost_label=label,
            estimator_name=str(factor),
            teacher=(100, 0.95),
        ).plot(ax)
        for factor, label in ((1, "Euro"), (2, "Cents"), (3, "Cents"))
    ]
    for position, display in enumerate(displays):
        assert same_color(display.line_.get_color(), f"C{position}")
    assert len({display.teacher_line_ for display in displays}) == 1
    assert len({display.teacher_point_ for display in displays}) == 1
    assert len(ax.lines) == 3 + 2
    assert ax.get_xlabel() == "Euro"
    assert legend_texts(ax).count("Teacher") == 1


def test_another_teacher_is_drawn_too():
    _, ax = plt.subplots()
    first = AccuracyCostDisplay(COSTS, SCORES, teacher=(100, 0.95)).plot(ax)
    second = AccuracyCostDisplay(COSTS, SCORES, teacher=(100, 0.97)).plot(ax)
    assert first.teacher_line_ is not second.teacher_line_
    assert first.teacher_point_ is not second.teacher_point_


@pytest.mark.parametrize("with_teacher", [0, 1, 2])
def test_teacher_is_the_last_in_the_legend(with_teacher):
    _, ax = plt.subplots()
    for curve in range(3):
        teacher = (100, 0.95) if curve == with_teacher else None
        display = AccuracyCostDisplay(COSTS, SCORES, teacher=teacher)
        display.plot(ax, name=str(curve))
    assert legend_texts(ax) == ["0", "1", "2", "Teacher"]


def test_entries_of_others_stay_in_the_legend():
    _, ax = plt.subplots()
    ax.bar([10, 20], [0.5, 0.6], label="bars")
    ax.errorbar([10, 20], [0.5, 0.6], yerr=0.1, label="errors")
    AccuracyCostDisplay(COSTS, SCORES, teacher=(100, 0.95)).plot(ax, name="mine")
    texts = legend_texts(ax)
    assert sorted(texts[:-1]) == ["bars", "errors", "mine"]
    assert texts[-1] == "Teacher"


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_teacher_and_chosen_threshold_are_seen_on_any_background(style):
    with plt.style.context(style):
        curve = AccuracyCostDisplay(COSTS, SCORES, teacher=(100, 0.95)).plot()
        early = EarlyExitDisplay(exits(SHARED), 1).plot()
        for line in (curve.teacher_line_, curve.teacher_point_, early.chosen_line_):
            assert same_color(line.get_color(), plt.rcParams["text.color"])
            assert not same_color(line.get_color(), line.axes.get_facecolor())


def test_labels_of_the_axes_stay():
    _, ax = plt.subplots()
    ax.set(xlabel="Joule", ylabel="Hits")
    AccuracyCostDisplay(COSTS, SCORES, cost_label="Euro").plot(ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Joule", "Hits")


@pytest.mark.parametrize(
    ("costs", "teacher", "scale"),
    [
        ([10, 20, 300], None, "linear"),
        ([10, 20, 400], None, "log"),
        ([10, 20, 300], (1000, 0.9), "log"),
        ([10, 20, 300], (None, 0.9), "linear"),
        ([0, 20, 4000], None, "linear"),
        ([0, 0, 0], None, "linear"),
    ],
)
def test_axis_is_logarithmic_when_costs_span_decades(costs, teacher, scale):
    display = AccuracyCostDisplay(costs, SCORES, teacher=teacher).plot()
    assert display.ax_.get_xscale() == scale


def test_axis_becomes_logarithmic_for_all_curves_together():
    ax = AccuracyCostDisplay([1, 2, 3], SCORES).plot().ax_
    assert ax.get_xscale() == "linear"
    AccuracyCostDisplay([100, 200, 300], SCORES).plot(ax)
    assert ax.get_xscale() == "log"


# Numbers of stages


@pytest.mark.parametrize("size", [(2.5, 2), (6.4, 4.8), (12, 9)])
@pytest.mark.parametrize("n_stages", [1, 3, 7, 40, 300])
def test_numbers_do_not_overlap(size, n_stages):
    _, ax = plt.subplots(figsize=size, layout="constrained")
    rng = np.random.default_rng(0)
    for factor in (1, 1.05, 20):
        costs = factor * np.cumsum(rng.exponential(size=n_stages))
        scores = 1 - 1 / np.arange(2, n_stages + 2) + rng.normal(0, 0.02, n_stages)
        display = AccuracyCostDisplay(costs, scores, teacher=(500, 1)).plot(ax)
    boxes = visible_boxes(ax)
    assert len(boxes) >= 2
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert len(display.stage_labels_) <= 11


def test_hidden_numbers_come_back_where_there_is_room():
    _, ax = plt.subplots()
    # Next to a far curve all stages of the first one are one spot.
    first = AccuracyCostDisplay([10, 10.1], [0.5, 0.5]).plot(ax)
    AccuracyCostDisplay([10, 30], [0.5, 0.9]).plot(ax)
    assert not first.stage_labels_[1].get_visible()
    ax.set_xlim(9.9, 10.2)
    AccuracyCostDisplay([25, 30], [0.9, 0.9]).plot(ax)
    assert first.stage_labels_[1].get_visible()


def test_numbers_are_at_the_marked_stages():
    display = AccuracyCostDisplay(np.arange(1, 41), np.linspace(0, 1, 40)).plot()
    stages = [int(label.get_text()) for label in display.stage_labels_]
    assert sorted(stages) == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert [label.xy[0] for label in display.stage_labels_] == stages
    assert_array_equal(np.add(display.line_.get_markevery(), 1), stages)


def test_annotate_false():
    display = AccuracyCostDisplay(COSTS, SCORES).plot(annotate=False)
    assert display.stage_labels_ == []
    assert len(display.ax_.texts) == 0


# From an estimator and from predictions


@pytest.mark.parametrize(
    ("scoring", "method"),
    [
        (None, "predict"),
        ("roc_auc", "predict_proba"),
        ("average_precision", "predict_proba"),
        ("neg_log_loss", "predict_proba"),
    ],
)
def test_curve_of_an_estimator_equals_that_of_its_predictions(
    clf, data, scoring, method
):
    X, y = data
    weight = np.arange(len(y))
    of_estimator = AccuracyCostDisplay.from_estimator(
        clf, X, y, scoring=scoring, sample_weight=weight
    )
    of_predictions = AccuracyCostDisplay.from_predictions(
        y,
        staged(clf, X, method),
        clf.stage_costs_.cumulative_macs,
        metric=None if scoring is None else get_scorer(scoring),
        sample_weight=weight,
    )
    assert_array_equal(of_estimator.costs, of_predictions.costs)
    assert_allclose(of_estimator.scores, of_predictions.scores)
    assert_allclose(of_estimator.line_.get_xydata(), of_predictions.line_.get_xydata())


def test_scores_are_those_of_the_scorer(clf, data):
    X, y = data
    display = AccuracyCostDisplay.from_estimator(clf, X, y, scoring="roc_auc")
    expected = [roc_auc_score(y, p[:, 1]) for p in clf.staged_predict_proba(X)]
    assert_allclose(display.scores, expected)
    assert display.ax_.get_ylabel() == "Roc auc"


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        (None, "Accuracy"),
        (f1_score, "F1 score"),
        (make_scorer(f1_score, average="macro"), "F1 score"),
        (partial(f1_score, average="macro"), "Score"),
        (lambda y_true, predicted: 0.5, "Score"),
    ],
)
def test_scores_of_predictions_are_named_by_the_metric(clf, data, metric, label):
    X, y = data
    display = AccuracyCostDisplay.from_predictions(
        y, clf.staged_predict(X), COSTS, metric=metric, name="mine"
    )
    assert display.ax_.get_ylabel() == label
    assert legend_texts(display.ax_) == ["mine"]


def test_negative_scores_say_so(clf, data):
    X, y = data
    by_name = AccuracyCostDisplay.from_estimator(clf, X, y, scoring="neg_log_loss")
    scorer = make_scorer(
        log_loss, greater_is_better=False, response_method="predict_proba"
    )
    by_scorer = AccuracyCostDisplay.from_estimator(clf, X, y, scoring=scorer)
    assert by_name.ax_.get_ylabel() == "Negative log loss"
    assert by_scorer.ax_.get_ylabel() == "Negative log loss"
    assert_array_equal(by_name.scores, by_scorer.scores)


@pytest.mark.parametrize("cost", [unit for unit in UNITS if unit != "latency"])
def test_costs_are_those_of_the_unit(clf, data, cost):
    display = AccuracyCostDisplay.from_estimator(clf, *data, cost=cost)
    assert_array_equal(display.costs, clf.stage_costs_.cumulative(cost))
    assert display.ax_.get_xlabel() == UNITS[cost]


def test_cost_callable(clf, data):
    display = AccuracyCostDisplay.from_estimator(
        clf, *data, cost=lambda fitted: 2.0 * np.arange(1, len(fitted) + 1)
    )
    assert_array_equal(display.costs, [2, 4, 6])
    assert display.ax_.get_xlabel() == "Cost"


def test_labels_that_are_given_are_used(clf, data):
    display = AccuracyCostDisplay.from_estimator(
        clf, *data, cost_label="Joule", score_name="Hits", name="mine"
    )
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Joule", "Hits")
    assert legend_texts(display.ax_) == ["mine"]


def test_only_the_stages_in_use_are_shown(clf, data):
    display = AccuracyCostDisplay.from_estimator(clf[:3].set_params(n_stages=2), *data)
    assert_array_equal(display.costs, clf.stage_costs_.cumulative_macs[:2])
    assert len(display.scores) == 2


def wrappings(clf, X, y):
    search = GridSearchCV(BDistilClassifier(LogisticRegression(), **SMALL), {}, cv=2)
    return {
        "pipeline": make_pipeline(StandardScaler(with_std=False), clf),
        "frozen": FrozenEstimator(clf),
        "search": search.fit(X, y),
    }


@pytest.mark.parametrize("kind", ["pipeline", "frozen", "search"])
def test_wrapped_estimators_show_what_they_predict(clf, data, kind):
    X, y = data
    wrapped = wrappings(clf, X, y)[kind]
    if kind == "pipeline":
        wrapped[0].fit(X)
    display = AccuracyCostDisplay.from_estimator(
        wrapped, X, y, teacher=(1000, 0.9), relative=True
    )
    assert_array_equal(display.costs, clf.stage_costs_.cumulative_macs)
    assert display.scores[-1] == wrapped.score(X, y)
    assert legend_texts(display.ax_) == ["BDistilClassifier", "Teacher"]


@pytest.mark.parametrize(
    "boosting",
    [
        AdaBoostClassifier(n_estimators=3),
        GradientBoostingClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
        HistGradientBoostingRegressor(max_iter=3),
    ],
    ids=lambda boosting: type(boosting).__name__,
)
def test_boosting_of_scikit_learn_by_latency(clf, data, boosting):
    X, y = data
    boosting.fit(X, y)
    ax = AccuracyCostDisplay.from_estimator(clf, X, y, cost="latency").ax_
    display = AccuracyCostDisplay.from_estimator(boosting, X, y, cost="latency", ax=ax)
    assert display.ax_ is ax
    metric = r2_score if is_regressor(boosting) else accuracy_score
    assert_allclose(
        display.scores, [metric(y, stage) for stage in boosting.staged_predict(X)]
    )
    assert len(display.costs) == 3
    assert (np.diff(display.costs) >= 0).all()
    assert ax.get_xlabel() == "Seconds per sample"
    assert legend_texts(ax) == ["BDistilClassifier", type(boosting).__name__]


def test_regressor():
    X, y = make_regression(n_samples=60, n_features=4, random_state=0)
    reg = BDistilRegressor(Ridge(), **SMALL).fit(X, y)
    display = AccuracyCostDisplay.from_estimator(reg, X, y)
    assert_allclose(display.scores[-1], reg.score(X, y))
    assert ConvergenceDisplay.from_estimator(reg).max_line_ is not None


def test_estimator_without_stages(data):
    tree = DecisionTreeClassifier().fit(*data)
    with pytest.raises(TypeError, match="DecisionTreeClassifier has no stages"):
        AccuracyCostDisplay.from_estimator(tree, *data)


# From a search


CV_RESULTS = {
    "param_clf__n_stages": np.ma.array([3, 1, 2], dtype=object),
    "mean_test_cost": np.array([30.0, 10.0, 20.0]),
    "split0_test_score": np.array([0.9, 0.7, 0.6]),
    "split1_test_score": np.array([0.7, 0.5, 0.4]),
    "mean_test_score": np.array([0.8, 0.6, 0.5]),
    "split0_test_f1": np.array([0.3, 0.1, 0.2]),
    "split1_test_f1": np.array([0.3, 0.1, 0.2]),
    "mean_test_f1": np.array([0.3, 0.1, 0.2]),
    "mean_train_score": np.array([1.0, 0.8, 0.9]),
}


def test_candidates_of_a_search_are_drawn_by_cost():
    display = AccuracyCostDisplay.from_cv_results(CV_RESULTS, pareto_only=False)
    assert_array_equal(display.costs, [10, 20, 30])
    assert_allclose(display.scores, [[0.7, 0.6, 0.9], [0.5, 0.4, 0.7]])
    assert display.band_ is not None
    assert display.stage_labels_ == []
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Cost", "Score")


def test_beaten_candidates_are_left_out():
    display = AccuracyCostDisplay.from_cv_results(CV_RESULTS, name="search")
    assert_array_equal(display.costs, [10, 30])
    assert_allclose(display.line_.get_ydata(), [0.6, 0.8])
    assert legend_texts(display.ax_) == ["search"]


@pytest.mark.parametrize(
    ("cost", "label"),
    [
        ("mean_test_cost", "Cost"),
        ("param_clf__n_stages", "Clf n stages"),
        (lambda cv_results: cv_results["mean_test_cost"], "Cost"),
    ],
)
def test_cost_of_candidates(cost, label):
    display = AccuracyCostDisplay.from_cv_results(CV_RESULTS, cost=cost, score="f1")
    assert_array_equal(np.argsort(display.costs), [0, 1, 2])
    assert display.scores.shape == (2, 3)
    assert display.ax_.get_xlabel() == label
    assert display.ax_.get_ylabel() == "F1"


def test_score_column_without_splits_has_no_band():
    display = AccuracyCostDisplay.from_cv_results(CV_RESULTS, score="mean_train_score")
    assert_array_equal(display.line_.get_ydata(), [0.8, 0.9, 1.0])
    assert display.band_ is None


def test_failed_candidates_are_left_out():
    failed = {**CV_RESULTS, "mean_test_score": np.array([0.8, np.nan, 0.5])}
    failed["split0_test_score"] = np.array([0.9, np.nan, 0.6])
    display = AccuracyCostDisplay.from_cv_results(failed)
    assert_array_equal(display.costs, [20, 30])


def test_candidates_without_a_cost_are_left_out():
    # What a failed fit leaves with error_score=0.25.
    failed = {**CV_RESULTS, "mean_test_cost": np.array([np.nan, 10.0, 20.0])}
    failed["mean_test_score"] = np.array([0.25, 0.6, 0.7])
    display = AccuracyCostDisplay.from_cv_results(failed)
    assert_array_equal(display.costs, [10, 20])
    masked = np.ma.array([3, 1, 2], mask=[True, False, False], dtype=object)
    failed["param_clf__n_stages"] = masked
    display = AccuracyCostDisplay.from_cv_results(failed, cost="param_clf__n_stages")
    assert_array_equal(display.costs, [1, 2])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_stages_of_a_search_have_a_band_over_its_folds(clf, data):
    estimator = BDistilClassifier(LogisticRegression(), **SMALL)
    search = StagedSearchCV(estimator, {}, cv=2).fit(*data)
    display = AccuracyCostDisplay.from_cv_results(search.cv_results_, pareto_only=False)
    assert_array_equal(display.costs, clf.stage_costs_.cumulative_macs)
    folds = [search.cv_results_[f"split{fold}_test_score"] for fold in range(2)]
    assert_array_equal(display.scores, folds)
    assert display.band_ is not None

    search.set_params(param_grid={"n_estimators": [-1, 3]}, error_score=0.25)
    search.fit(*data)
    display = AccuracyCostDisplay.from_cv_results(search.cv_results_, pareto_only=False)
    assert_array_equal(display.scores, folds)


def test_results_of_a_real_search(data):
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]})
    results = search.fit(*data).cv_results_
    display = AccuracyCostDisplay.from_cv_results(
        results, cost="param_max_depth", pareto_only=False, cost_label="Depth"
    )
    assert display.scores.shape == (5, 2)
    assert_allclose(display.line_.get_ydata(), results["mean_test_score"])
    assert display.ax_.get_xlabel() == "Depth"


# Messages


@pytest.mark.parametrize(
    ("costs", "scores", "teacher", "message"),
    [
        ([], [], None, "at least one stage"),
        ([1, np.nan, 3], SCORES, None, "'costs' must be finite and not negative"),
        ([-1, 2, 3], SCORES, None, "'costs' must be finite and not negative"),
        ([3, 2, 1], SCORES, None, "'costs' must be cumulative"),
        (COSTS, [1, 2], None, r"Got shape \(2,\) for 3 cost"),
        (COSTS, np.ones((3, 2)), None, r"Got shape \(3, 2\) for 3 cost"),
        (COSTS, np.ones((0, 3)), None, r"Got shape \(0, 3\) for 3 cost"),
        (COSTS, [1, np.nan, 1], None, "'scores' must be finite"),
        (COSTS, SCORES, 0.9, r"must be a tuple \(cost, score\).* Got 0.9 instead"),
        (COSTS, SCORES, (1, None), r"must be a tuple \(cost, score\)"),
        (COSTS, SCORES, (0, 0.9), "cost of 'teacher' must be positive .* Got 0"),
        (COSTS, SCORES, (np.nan, 0.9), "cost of 'teacher' must be positive"),
    ],
)
def test_bad_curves_are_refused_before_a_figure_is_made(
    costs, scores, teacher, message
):
    with pytest.raises(ValueError, match=message):
        AccuracyCostDisplay(costs, scores, teacher=teacher).plot()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("teacher", [None, (None, 0.9)])
def test_relative_needs_the_cost_of_the_teacher(teacher):
    with pytest.raises(ValueError, match=re.escape("Pass teacher=(cost, score).")):
        AccuracyCostDisplay(COSTS, SCORES, teacher=teacher).plot(relative=True)


@pytest.mark.parametrize("parameter", ["cost", "score"])
def test_missing_column_is_named(parameter):
    message = (
        f"'{parameter}' must be the name of a scorer or a column of 'cv_results', "
        f"which has {list(CV_RESULTS)}. Got 'price' instead."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        AccuracyCostDisplay.from_cv_results(CV_RESULTS, **{parameter: "price"})


def test_search_without_scores():
    failed = {**CV_RESULTS, "mean_test_score": np.full(3, np.nan)}
    with pytest.raises(ValueError, match="no candidate with both a score and a cost"):
        AccuracyCostDisplay.from_cv_results(failed)


def test_costs_of_a_callable_are_one_per_candidate():
    message = "each of the 3 candidates. Got shape (2,)."
    with pytest.raises(ValueError, match=re.escape(message)):
        AccuracyCostDisplay.from_cv_results(CV_RESULTS, cost=lambda results: [1, 2])
    assert plt.get_fignums() == []


# Convergence


def test_convergence_of_an_estimator(clf, data):
    pipeline = make_pipeline(StandardScaler().fit(data[0]), clf)
    display = ConvergenceDisplay.from_estimator(pipeline)
    certificate = clf.certificate_
    assert_array_equal(display.max_line_.get_xdata(), [1, 2, 3])
    assert_array_equal(display.max_line_.get_ydata(), certificate.actual.max(axis=1))
    assert_array_equal(display.mean_line_.get_ydata(), certificate.mean.mean(axis=1))
    assert_array_equal(display.edges_.lines[0].get_ydata(), clf.student_edges_.mean(1))
    assert display.edge_ax_.get_shared_x_axes().joined(display.ax_, display.edge_ax_)
    assert display.figure_ is display.ax_.figure
    assert display.ax_.get_legend().get_title().get_text() == "BDistilClassifier"


def convergence(bound):
    n_stages = len(bound)
    actual = np.array([[3.0, 1.0], [2.0, 1.5], [1.0, 1.5]])[:n_stages]
    mean = np.array([[1.0, 0.5], [0.75, 0.5], [0.5, 0.25]])[:n_stages]
    edges = np.array([[0.0, 0.0], [0.1, 0.3], [0.2, 0.1]])[:n_stages]
    return ConvergenceDisplay(actual, mean, np.array(bound), edges)


def test_convergence_lines_are_over_the_outputs():
    display = convergence([[7.0, 8.0], [6.0, 5.0], [np.inf, 4.0]]).plot(linewidth=3)
    assert_array_equal(display.max_line_.get_ydata(), [3, 2, 1.5])
    assert_array_equal(display.mean_line_.get_ydata(), [0.75, 0.625, 0.375])
    assert_array_equal(display.bound_line_.get_xydata(), [[1, 8], [2, 6]])
    ranges = [segment[:, 1] for segment in display.edges_.lines[2][0].get_segments()]
    assert_allclose(ranges, [[0, 0], [0.1, 0.3], [0.1, 0.2]])
    assert display.max_line_.get_linewidth() == 3
    assert legend_texts(display.ax_) == [
        "Largest error",
        "Mean error",
        "Certificate",
        "Edges",
    ]
    assert display.ax_.get_yscale() == "linear"


@pytest.mark.parametrize("n_stages", [1, 2, 3])
def test_stages_are_whole_numbers(n_stages):
    display = convergence(np.full((n_stages, 2), np.inf)).plot()
    display.figure_.canvas.draw()
    ticks = display.ax_.get_xticks()
    low, high = display.ax_.get_xlim()
    shown = ticks[(low <= ticks) & (ticks <= high)]
    assert_array_equal(shown, np.arange(1, n_stages + 1))


@pytest.mark.parametrize("estimator", [BDistilClassifier, BDistilRegressor])
def test_mean_error_is_that_of_the_stages_on_the_training_rows(data, estimator):
    X = data[0]
    # Logits of a classifier are centred.
    scores = X[:, :3] - X[:, :3].mean(axis=1, keepdims=True)
    if estimator is BDistilRegressor:
        scores *= [1, 10, 100]
    y = scores.argmax(axis=1) if estimator is BDistilClassifier else scores
    weight = np.arange(len(X)) % 3
    model = estimator("precomputed", dtype="float64", **SMALL)
    model.fit(X, y, teacher_scores=scores, sample_weight=weight)
    with torch.no_grad():
        stages = torch.stack(list(model.ensemble_.stages(torch.tensor(X)))).numpy()
    expected = np.average(np.abs(stages - scores), axis=1, weights=weight)
    assert_allclose(model.certificate_.mean, expected)
    display = ConvergenceDisplay.from_estimator(model)
    assert_allclose(display.mean_line_.get_ydata(), expected.mean(axis=1))


def test_infinite_bounds_are_not_drawn():
    _, ax = plt.subplots()
    display = convergence(np.full((3, 2), np.inf)).plot(ax, name="mine")
    assert display.ax_ is ax
    assert display.bound_line_ is None
    assert "Certificate" not in legend_texts(ax)
    assert ax.get_legend().get_title().get_text() == "mine"


def test_deviations_over_decades_are_on_a_logarithmic_axis():
    assert convergence(np.full((3, 2), 100.0)).plot().ax_.get_yscale() == "log"


def test_convergence_constructor_only_stores():
    actual, mean, bound, edges = (object() for _ in range(4))
    display = ConvergenceDisplay(actual, mean, bound, edges, estimator_name="mine")
    assert vars(display) == {
        "actual": actual,
        "mean": mean,
        "bound": bound,
        "edges": edges,
        "estimator_name": "mine",
    }


def test_convergence_needs_a_certificate(data):
    boosting = AdaBoostClassifier(n_estimators=2).fit(*data)
    message = "AdaBoostClassifier has no certificate. Pass a BDistilClassifier"
    with pytest.raises(TypeError, match=message):
        ConvergenceDisplay.from_estimator(boosting)


# Early exit


def exits(thresholds):
    return ExitPath(
        thresholds=np.array(thresholds),
        costs=np.array([300.0, 180.0, 100.0]),
        scores=np.array([0.95, 0.96, 0.90]),
        losses=np.array([0.0, 0.01, 0.06]),
        exits=np.array([[0.0, 0.0, 1.0], [0.6, 0.1, 0.3], [1.0, 0.0, 0.0]]),
    )


SHARED = [[np.inf, np.inf], [0.9, 0.9], [0.4, 0.4]]
PER_STAGE = [[np.inf, np.inf], [np.inf, 0.9], [0.4, 0.2]]


@pytest.mark.parametrize("kind", ["bare", "pipeline", "frozen", "search"])
def test_early_exit_of_an_estimator(early, data, kind):
    X, y = data
    estimator = early
    if kind == "pipeline":
        estimator = make_pipeline("passthrough", early)
    if kind == "frozen":
        estimator = FrozenEstimator(make_pipeline("passthrough", early))
    if kind == "search":
        pipeline = make_pipeline("passthrough", FrozenEstimator(early))
        estimator = GridSearchCV(pipeline, {}, cv=2).fit(X, y)
    display = EarlyExitDisplay.from_estimator(estimator, X, y)
    path = early.exit_path(X, y)
    assert_array_equal(display.score_line_.get_xdata(), path.thresholds[1:, 0])
    assert_array_equal(display.score_line_.get_ydata(), path.scores[1:])
    assert_array_equal(display.cost_line_.get_ydata(), path.costs[1:])
    assert_array_equal(display.full_line_.get_ydata(), 2 * [path.scores[0]])
    assert_array_equal(display.chosen_line_.get_xdata(), 2 * [early.thresholds_[0]])
    heights = [bar.get_height() for bar in display.bars_]
    assert_array_equal(heights, path.exits[early.best_index_])
    threshold_ax, stage_ax = display.axes_
    assert threshold_ax.get_ylabel() == "Accuracy"
    assert display.cost_ax_.get_ylabel() == "Mean multiply-accumulates per sample"
    assert display.cost_ax_.get_shared_x_axes().joined(threshold_ax, display.cost_ax_)
    assert display.figure_ is stage_ax.figure
    title = threshold_ax.get_legend().get_title().get_text()
    assert title == "EarlyExitClassifier"


def test_early_exit_without_labels_shows_the_agreement(early, data):
    display = EarlyExitDisplay.from_estimator(early, data[0])
    assert display.axes_[0].get_ylabel() == "Agreement"
    assert_array_equal(display.path.scores, early.exit_path(data[0]).scores)


def test_early_exit_labels_that_are_given_are_used(early, data):
    _, axes = plt.subplots(ncols=2)
    display = EarlyExitDisplay.from_estimator(
        early,
        *data,
        cost_label="Joule",
        score_name="Hits",
        name="mine",
        ax=axes,
        linewidth=3,
    )
    assert list(display.axes_) == list(axes)
    assert axes[0].get_ylabel() == "Hits"
    assert display.cost_ax_.get_ylabel() == "Mean joule"
    assert axes[0].get_legend().get_title().get_text() == "mine"
    assert display.score_line_.get_linewidth() == 3


def test_early_exit_thresholds_per_stage_show_by_the_mean_stage():
    display = EarlyExitDisplay(exits(PER_STAGE), 1).plot()
    assert_allclose(
        display.score_line_.get_xydata(), [[3, 0.95], [1.7, 0.96], [1, 0.9]]
    )
    assert_allclose(display.chosen_line_.get_xdata(), 2 * [1.7])


def test_early_exit_of_no_row_has_no_chosen_threshold():
    display = EarlyExitDisplay(exits(SHARED), 0).plot()
    assert display.chosen_line_ is None
    assert "Chosen" not in legend_texts(display.axes_[0])
    assert [bar.get_height() for bar in display.bars_] == [0, 0, 1]


def test_early_exit_constructor_only_stores():
    path, index = object(), object()
    display = EarlyExitDisplay(path, index, cost_label="cost", estimator_name="mine")
    assert vars(display) == {
        "path": path,
        "best_index": index,
        "cost_label": "cost",
        "score_name": None,
        "estimator_name": "mine",
    }


def test_early_exit_of_what_has_none(clf, data):
    message = "BDistilClassifier has no early exit. Pass an EarlyExitClassifier"
    with pytest.raises(TypeError, match=message):
        EarlyExitDisplay.from_estimator(clf, *data)


def test_early_exit_needs_two_stages(clf, data):
    early = EarlyExitClassifier(FrozenEstimator(clf[:1])).fit(*data)
    with pytest.raises(ValueError, match="needs at least two stages"):
        EarlyExitDisplay.from_estimator(early, *data)


@pytest.mark.parametrize("n_axes", [1, 3])
def test_early_exit_needs_two_axes(n_axes):
    _, ax = plt.subplots(ncols=n_axes)
    with pytest.raises(ValueError, match="'ax' must be two axes"):
        EarlyExitDisplay(exits(SHARED), 1).plot(ax)


def test_curve_of_early_exit_beside_that_of_the_stages(clf, early, data):
    fixed = AccuracyCostDisplay.from_estimator(clf, *data, name="stages")
    path = early.exit_path(*data)
    curve = AccuracyCostDisplay(path.costs[::-1], path.scores[::-1])
    curve.plot(fixed.ax_, annotate=False, name="exits")
    assert legend_texts(fixed.ax_) == ["stages", "exits"]
    # Where all rows leave first, and where none does, they meet.
    for end in (0, -1):
        assert_allclose(curve.line_.get_xydata()[end], fixed.line_.get_xydata()[end])


# matplotlib


def test_matplotlib_is_imported_when_something_is_plotted():
    code = "import sys, skbdistil.inspection; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("caller", "call"),
    [
        (
            "AccuracyCostDisplay.plot",
            lambda: AccuracyCostDisplay(COSTS, SCORES).plot(),
        ),
        (
            "AccuracyCostDisplay.from_estimator",
            lambda: AccuracyCostDisplay.from_estimator(None, None, None),
        ),
        (
            "AccuracyCostDisplay.from_predictions",
            lambda: AccuracyCostDisplay.from_predictions(None, None, None),
        ),
        (
            "AccuracyCostDisplay.from_cv_results",
            lambda: AccuracyCostDisplay.from_cv_results(None),
        ),
        ("ConvergenceDisplay.plot", lambda: ConvergenceDisplay(0, 0, 0, 0).plot()),
        (
            "ConvergenceDisplay.from_estimator",
            lambda: ConvergenceDisplay.from_estimator(None),
        ),
        ("EarlyExitDisplay.plot", lambda: EarlyExitDisplay(0, 0).plot()),
        (
            "EarlyExitDisplay.from_estimator",
            lambda: EarlyExitDisplay.from_estimator(None, None),
        ),
    ],
)
def test_missing_matplotlib_is_named(monkeypatch, caller, call):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=f"{caller} requires matplotlib"):
        call()
