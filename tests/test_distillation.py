"""The call that searches, judges and advises."""

import pickle
import re
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris, make_classification, make_regression
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from common import raises, student_bits
from skbdistil import (
    BDistilClassifier,
    BDistilRegressor,
    DistillationObjective,
    TorchTeacher,
    distil,
    distillation,
)
from skbdistil.distillation import (
    _advice,
    _cheapest_as_good,
    _factory_of_cost,
    _roc_auc,
    _Rows,
)
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.metrics import calibration_error
from skbdistil.persistence import load, save
from skbdistil.stages import stage_cost
from skbdistil.students import MLP

# One candidate that is there soon.
ONE = {
    "student": partial(MLP, hidden=(4,)),
    "objective": "kl",
    "n_estimators": 2,
    "max_epochs": 2,
    "random_state": 0,
}

# Students of all widths, each of which is there soon.
SEARCH = {"n_estimators": 1, "max_epochs": 1, "edge_tol": np.inf, "random_state": 0}


@pytest.fixture(scope="module")
def named():
    """A frame with names, and labels that are text."""
    bunch = load_iris(as_frame=True)
    return bunch.data, bunch.target_names[bunch.target]


class Recording(ClassifierMixin, BaseEstimator):
    """A classifier that records the rows that it is fitted to and asked about."""

    def __init__(self, fitted, asked):
        self.fitted = fitted
        self.asked = asked

    def __sklearn_clone__(self):
        return type(self)(self.fitted, self.asked)

    def fit(self, X, y):
        self.fitted.append(np.asarray(X))
        self.model_ = LogisticRegression(max_iter=1000).fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return self.model_.predict(X)

    def predict_proba(self, X):
        self.asked.append(np.asarray(X))
        return self.model_.predict_proba(X)


@pytest.fixture(scope="module")
def recorded():
    return Recording([], [])


@pytest.fixture(scope="module")
def result(named, recorded):
    return distil(recorded, *named, price_per_hour=0.36, **ONE)


@pytest.fixture(scope="module")
def estimator(result):
    return result[0]


@pytest.fixture(scope="module")
def report(result):
    return result[1]


@pytest.fixture
def no_rivals(monkeypatch):
    """Leave out what takes time and does not concern the search."""
    monkeypatch.setattr(
        distillation, "_seconds", lambda models, X: np.ones((len(models), 2))
    )
    monkeypatch.setattr(
        distillation,
        "_boosting",
        lambda y, regression, seed: (
            LinearRegression() if regression else LogisticRegression(max_iter=1000)
        ),
    )


# Rows


def test_parts_share_no_row_and_hold_all_of_them(report, named):
    X, y = named
    parts = [report.training_rows, report.validation_rows, report.test_rows]
    assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(X)))
    for part, n_rows in zip(parts, (90, 30, 30), strict=True):
        assert_array_equal(np.unique(y[part], return_counts=True)[1], [n_rows / 3] * 3)


def test_teacher_is_fitted_to_training_rows_and_asked_once_about_each(
    report, recorded, named
):
    X = named[0].to_numpy()
    (fitted,) = recorded.fitted
    assert_array_equal(fitted, X[report.training_rows])
    parts = [report.training_rows, report.validation_rows, report.test_rows]
    assert_array_equal(np.concatenate(recorded.asked), X[np.concatenate(parts)])


@pytest.mark.usefixtures("no_rivals")
def test_test_rows_change_nothing_but_the_report(estimator, report, named, recorded):
    X, y = named
    other = X.copy()
    other.iloc[report.test_rows] += 1.0
    again, report_of_other = distil(clone(recorded), other, y, **ONE)
    assert student_bits(again) == student_bits(estimator)
    assert report_of_other.stage == report.stage
    assert not np.array_equal(
        report_of_other.table["log_loss"], report.table["log_loss"]
    )


@pytest.mark.usefixtures("no_rivals")
def test_candidates_are_scored_on_validation_rows(report, estimator, named):
    X, y = named
    rows = report.validation_rows
    scores = list(clone_with_all(estimator).staged_score(X.iloc[rows], y[rows]))
    assert_allclose(report.candidates["score"], scores)


def clone_with_all(estimator):
    return pickle.loads(pickle.dumps(estimator)).set_params(n_stages=None)


# Table


def test_rows_of_the_table(report, estimator):
    assert report.table["name"].tolist() == [
        "teacher",
        *(f"stage {stage}" for stage in range(1, len(estimator) + 1)),
        "gradient boosting",
        "labels only",
    ]
    assert {len(column) for column in report.table.values()} == {len(estimator) + 3}
    assert len(pd.DataFrame(report.table)) == len(estimator) + 3


@pytest.fixture(scope="module")
def judged(report, estimator, recorded, named):
    """Probabilities of the test rows, computed again, for all but the last model."""
    X, y = named
    train, test = report.training_rows, report.test_rows
    teacher = clone(recorded).fit(X.iloc[train], y[train])
    boosting = HistGradientBoostingClassifier().fit(X.iloc[train], y[train])
    proba = teacher.predict_proba(X.iloc[test])
    return [
        # As students are shown them.
        (1 - 1e-3) * proba + 1e-3 / 3,
        *clone_with_all(estimator).staged_predict_proba(X.iloc[test]),
        boosting.predict_proba(X.iloc[test]),
    ]


def test_figures_are_those_of_scikit_learn(report, judged, named):
    y = named[1][report.test_rows]
    classes = np.unique(y)
    table = {name: column[:-1] for name, column in report.table.items()}
    accuracy = [accuracy_score(y, classes[p.argmax(1)]) for p in judged]
    assert_allclose(table["accuracy"], accuracy)
    right = [classes[p.argmax(1)] == y for p in judged]
    assert_allclose(table["accuracy_se"], np.std(right, axis=1, ddof=1) / len(y) ** 0.5)
    assert_allclose(table["log_loss"], [log_loss(y, p) for p in judged], rtol=1e-5)
    assert_allclose(
        table["calibration_error"],
        [calibration_error(y, p) for p in judged],
        rtol=1e-5,
    )
    assert_allclose(table["retention"], np.divide(accuracy, accuracy[0]))


def test_costs_are_those_of_the_stages(report, estimator):
    macs = report.table["macs"]
    assert_array_equal(macs[1:3], stage_cost(estimator))
    # Nobody counts those of a model of scikit-learn.
    assert np.isnan(macs[[0, 3]]).all()
    # As many students of one's own as are chosen.
    assert macs[4] == macs[report.stage]


def test_times_are_positive_and_grow_with_the_stage(report):
    for name in ("microseconds", "microseconds_batch"):
        times = report.table[name]
        assert (times > 0).all()
        assert times[1] <= times[2]


def test_price_is_that_of_the_time_in_batches(report):
    # Ten thousand times an hour make 3.6e13 microseconds.
    assert_allclose(
        report.table["price_per_million"],
        report.table["microseconds_batch"] * 1e6 * 0.36 / 3.6e9,
    )


@pytest.mark.usefixtures("no_rivals")
def test_no_price_no_column(named):
    _, report = distil(LogisticRegression(max_iter=1000), *named, **ONE)
    assert "price_per_million" not in report.table


def energy(clf):
    return 3e-12 * clf.stage_costs_.cumulative_macs


@pytest.mark.parametrize("unit", ["weight_bytes", "latency", energy])
@pytest.mark.usefixtures("no_rivals")
def test_costs_in_another_unit(unit, named):
    teacher = TorchTeacher(nn.Linear(4, 3), classes=np.unique(named[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulTeacherWarning)
        clf, report = distil(teacher, *named, unit=unit, max_cost=1e9, **ONE)
    column = report.table["cost" if callable(unit) else unit]
    if unit == "latency":
        assert column[1] <= column[2]
        assert np.isnan(column[0])
    else:
        assert_array_equal(column[1:3], stage_cost(clf, unit))
        of_teacher = 4 * 15 if unit == "weight_bytes" else np.nan
        assert_array_equal(column[0], of_teacher)


def test_text_shows_all_of_it(report):
    text = str(report)
    lines = text.splitlines()
    for name in report.table["name"]:
        (line,) = (line for line in lines if line[2:].startswith(f"{name} "))
        assert line.startswith("* ") == (name == f"stage {report.stage}")
    assert report.advice in text
    assert "90 rows to fit, 30 to choose, 30 to judge" in text
    assert "Left out" not in text
    assert repr(report) == text


def test_columns_of_the_text_are_aligned(report):
    table = str(report).split("\n\n")[1].splitlines()
    assert len(table) == 1 + len(report.table["name"])
    assert len({len(line) for line in table}) == 1


def test_plot_shows_all_of_it(report):
    ax = report.plot()
    legend = {text.get_text() for text in ax.get_legend().get_texts()}
    assert legend == {
        "Students",
        "Teacher",
        "Gradient boosting",
        "Labels only",
        "Chosen",
    }
    points = np.concatenate([line.get_xydata() for line in ax.lines])
    drawn = {tuple(point) for point in points}
    columns = report.table["microseconds"], report.table["accuracy"]
    assert set(zip(*columns, strict=True)) <= drawn
    assert "Microseconds" in ax.get_xlabel()
    assert ax.get_ylabel() == "Accuracy"
    plt.close(ax.figure)


def test_plot_on_given_axes(report):
    figure, (ax, other) = plt.subplots(2)
    assert report.plot(other) is other
    assert not ax.lines
    plt.close(figure)


# What is returned


def test_estimator_is_as_any_other(estimator, report, named, tmp_path):
    X, y = named
    assert estimator.n_stages == report.stage
    assert_array_equal(estimator.feature_names_in_, X.columns)
    assert set(estimator.predict(X)) <= set(y)
    save(estimator, tmp_path / "clf.skb")
    for other in (
        load(tmp_path / "clf.skb"),
        pickle.loads(pickle.dumps(estimator)),
        estimator[: report.stage],
    ):
        assert_array_equal(other.predict_proba(X), estimator.predict_proba(X))


def test_clone_is_fitted_to_all_rows_with_the_teacher(estimator, named, recorded):
    again = clone(estimator)
    assert isinstance(again.teacher, Recording)
    n_fits = len(recorded.fitted)
    again.fit(*named)
    assert_array_equal(recorded.fitted[n_fits], named[0])


def test_report_can_be_pickled(report):
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


@pytest.mark.usefixtures("no_rivals")
def test_same_seed_same_result(estimator, report, named, recorded):
    again, report_of_again = distil(clone(recorded), *named, **ONE)
    assert student_bits(again) == student_bits(estimator)
    same = report.table["name"] != "gradient boosting"
    for name in ("accuracy", "log_loss", "calibration_error"):
        found, expected = report_of_again.table[name], report.table[name]
        assert_array_equal(found[same], expected[same])
    assert_array_equal(report_of_again.test_rows, report.test_rows)


@pytest.mark.usefixtures("no_rivals")
def test_other_seed_other_rows(report, named):
    teacher = LogisticRegression(max_iter=1000)
    _, other = distil(teacher, *named, **{**ONE, "random_state": 1})
    assert not np.array_equal(other.test_rows, report.test_rows)


# Search


class Clock:
    """A clock that is read by `perf_counter`, and goes on with each fit."""

    def __init__(self, seconds):
        self.seconds = iter(seconds)
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def timed(monkeypatch):
    """Let the fits of students take these seconds."""

    def install(*seconds):
        clock = Clock(seconds)
        fit = BDistilClassifier.fit

        def fit_in_time(self, *args, **kwargs):
            # The network of the labels comes last, out of all measured time.
            clock.now += next(clock.seconds, 0.0)
            return fit(self, *args, **kwargs)

        monkeypatch.setattr(distillation, "perf_counter", clock)
        monkeypatch.setattr(BDistilClassifier, "fit", fit_in_time)

    return install


@pytest.fixture(scope="module")
def hard():
    """Rows of which wider students always know more."""
    return make_classification(
        n_samples=300, n_features=8, n_informative=8, n_redundant=0, random_state=0
    )


@pytest.fixture
def always_better(monkeypatch):
    """Let the score of a candidate grow with its cost."""
    fit = distillation._Search._fit

    def better(self, name, estimator):
        candidate = fit(self, name, estimator)
        n_rows = candidate.scores.shape[1]
        scores = np.arange(n_rows) < candidate.costs[:, None] / 10
        return candidate._replace(scores=scores.astype(float))

    monkeypatch.setattr(distillation._Search, "_fit", better)


WIDTHS = [f"MLP(hidden=({width},))" for width in (16, 32, 64)]


@pytest.mark.usefixtures("no_rivals", "always_better")
def test_all_widths_and_a_label_term_are_tried(hard):
    _, report = distil(LogisticRegression(), *hard, **SEARCH)
    label_term = f"{WIDTHS[-1]}, label term of weight 0.5"
    assert report.candidates["name"].tolist() == [*WIDTHS, label_term]
    assert (np.diff(report.candidates["cost"][:3]) > 0).all()
    assert report.left_out == []


@pytest.mark.usefixtures("no_rivals", "always_better")
def test_time_limit_leaves_out_candidates_and_says_so(hard, timed):
    timed(1.0, 3.0, 8.0)
    # After the second one, 9 seconds are expected, and 8.5 are left.
    _, report = distil(LogisticRegression(), *hard, time_limit=12.5, **SEARCH)
    first, second, label_term = report.candidates["name"]
    assert [first, second] == WIDTHS[:2]
    # The label term takes as long as the fit that it repeats.
    assert label_term.startswith(WIDTHS[1])
    left = "9 s or more, and 8.5 s were left"
    assert report.left_out == [f"{name}: {left}" for name in WIDTHS[2:]]
    assert all(line in str(report) for line in report.left_out)


@pytest.mark.usefixtures("no_rivals")
def test_interrupted_search_ends_with_what_it_has(hard, monkeypatch):
    fit = distillation._Search._fit

    def interrupted(self, name, estimator):
        candidate = fit(self, name, estimator)
        candidate.estimator.interrupted_ = True
        return candidate

    monkeypatch.setattr(distillation._Search, "_fit", interrupted)
    estimator, report = distil(LogisticRegression(), *hard, **SEARCH)
    assert report.candidates["name"].tolist() == WIDTHS[:1]
    assert len(report.left_out) == 3
    assert all("was interrupted" in line for line in report.left_out)
    assert estimator.n_stages == report.stage


@pytest.mark.parametrize(
    ("error", "reason", "n_more"),
    [
        (KeyboardInterrupt(), "the search was interrupted", 2),
        (ValueError("no."), "it could not be fitted. no.", 0),
    ],
)
@pytest.mark.usefixtures("no_rivals", "always_better")
def test_candidate_that_fails_loses_no_other(hard, monkeypatch, error, reason, n_more):
    fit = distillation._Search._fit

    def failing(self, name, estimator):
        if name == WIDTHS[1]:
            raise error
        return fit(self, name, estimator)

    monkeypatch.setattr(distillation._Search, "_fit", failing)
    _, report = distil(LogisticRegression(), *hard, **SEARCH)
    assert report.candidates["name"][0] == WIDTHS[0]
    assert report.left_out[0] == f"{WIDTHS[1]}: {reason}"
    assert len(report.left_out) == 1 + n_more


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_search_without_any_candidate_raises_why(hard, monkeypatch, kind):
    def failing(self, name, estimator):
        raise kind(name)

    monkeypatch.setattr(distillation._Search, "_fit", failing)
    with pytest.raises(kind) as caught:
        distil(LogisticRegression(), *hard, **SEARCH)
    assert caught.value.args == (WIDTHS[0],)


@pytest.mark.usefixtures("no_rivals", "always_better")
def test_first_candidate_is_fitted_whatever_the_time_limit(hard, timed):
    timed(5.0)
    _, report = distil(LogisticRegression(), *hard, time_limit=1e-3, **SEARCH)
    assert report.candidates["name"].tolist() == WIDTHS[:1]
    assert report.candidates["seconds"].tolist() == [5.0]
    assert len(report.left_out) == 3


@pytest.mark.usefixtures("no_rivals")
def test_widths_beyond_one_that_is_no_better_are_left_out(hard, monkeypatch):
    fit = distillation._Search._fit

    def equal(self, name, estimator):
        candidate = fit(self, name, estimator)
        return candidate._replace(scores=np.ones_like(candidate.scores))

    monkeypatch.setattr(distillation._Search, "_fit", equal)
    _, report = distil(LogisticRegression(), *hard, **SEARCH)
    assert report.candidates["name"].tolist()[:2] == WIDTHS[:2]
    left = f"{WIDTHS[1]} was no better than narrower students"
    assert report.left_out == [f"{name}: {left}" for name in WIDTHS[2:]]
    # Of equal scores, the cheapest.
    assert report.table["macs"][report.stage] == report.candidates["cost"].min()


@pytest.mark.usefixtures("no_rivals", "always_better")
def test_stages_above_max_cost_are_not_chosen(hard):
    params = {**SEARCH, "n_estimators": 3}
    # Stages of 8 units cost 80 and more, those of 16 units 160 and more.
    clf, report = distil(LogisticRegression(), *hard, max_cost=170, **params)
    assert stage_cost(clf)[report.stage - 1] <= 170
    assert clf.n_stages == report.stage
    costs = report.candidates["cost"]
    assert report.table["macs"][report.stage] == costs[costs <= 170].max()
    assert report.left_out[0] == (
        f"{WIDTHS[1]}: max_cost is below its first stage (320)"
    )
    assert report.left_out[1:] == [f"{WIDTHS[2]}: wider than what costs too much"]
    # The stages that are not chosen are in the report all the same.
    assert len(report.table["macs"]) == 1 + 3 + 2


def test_max_cost_below_the_cheapest_stage(hard):
    with raises("max_cost=79", "costs 80 in 'macs'"):
        distil(LogisticRegression(), *hard, max_cost=79, **SEARCH)


@pytest.mark.usefixtures("no_rivals")
def test_what_is_passed_is_not_searched(named):
    objective = DistillationObjective(gamma=0.5)
    params = {**ONE, "objective": objective, "edge_tol": np.inf}
    clf, report = distil(LogisticRegression(max_iter=1000), *named, **params)
    assert set(report.candidates["name"]) == {"students as passed"}
    assert clf.objective_.gamma == 0.5
    assert clf.student.keywords == ONE["student"].keywords


scores_by_row = st.lists(
    st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=6
)


@given(scores_by_row, st.data())
def test_choice_is_cheapest_within_one_error_of_the_best(scores, data):
    scores = np.array(scores, dtype=float)
    n = len(scores)
    costs = np.array(data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)))
    chosen = _cheapest_as_good(scores, costs, rows=_Rows(None, None))
    means = scores.mean(axis=1)
    bests = np.flatnonzero(means == means.max())
    best = bests[costs[bests].argmin()]
    assert costs[chosen] <= costs[best]
    difference = scores[best] - scores[chosen]
    assert difference.mean() <= difference.std(ddof=1) / 6**0.5
    for other in np.flatnonzero(costs < costs[chosen]):
        difference = scores[best] - scores[other]
        assert difference.mean() > difference.std(ddof=1) / 6**0.5


def test_unknown_costs_leave_the_choice_to_the_score():
    scores = np.array([[0.0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]])
    assert _cheapest_as_good(scores, np.full(3, np.nan), rows=_Rows(None, None)) == 1


# Teachers


@pytest.mark.parametrize("kind", ["frozen", "pipeline", "precomputed", "none"])
@pytest.mark.usefixtures("no_rivals")
def test_every_kind_of_teacher(kind, named):
    X, y = named
    model = make_pipeline(StandardScaler(), LogisticRegression())
    fitted = clone(model).fit(X, y)
    teacher, options = {
        "frozen": (FrozenEstimator(fitted), {}),
        "pipeline": (model, {}),
        "precomputed": ("precomputed", {"teacher_scores": fitted.decision_function(X)}),
        "none": (None, {}),
    }[kind]
    clf, report = distil(teacher, X, y, **options, **ONE)
    assert report.table["accuracy"][0] > 0.8
    assert clf.teacher is teacher
    if kind in ("frozen", "precomputed"):
        expected = fitted.score(X.iloc[report.test_rows], y[report.test_rows])
        assert_allclose(report.table["accuracy"][0], expected)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list, pl.DataFrame])
@pytest.mark.usefixtures("no_rivals")
def test_every_kind_of_rows(kind):
    X, y = load_iris(return_X_y=True)
    rows = kind(X, schema=list("abcd")) if kind is pl.DataFrame else kind(X)
    labels = y if kind is pl.DataFrame else kind(y)
    teacher = LogisticRegression(max_iter=1000)
    _, report = distil(teacher, rows, labels, **ONE)
    _, expected = distil(teacher, X, y, **ONE)
    for name in ("log_loss", "accuracy"):
        # Columns of a frame are summed in another order.
        assert_allclose(report.table[name], expected.table[name], rtol=1e-4)


def test_time_of_precomputed_scores_is_not_known(named):
    X, y = named
    scores = LogisticRegression(max_iter=1000).fit(X, y).decision_function(X)
    _, report = distil("precomputed", X, y, teacher_scores=scores, **ONE)
    assert np.isnan(report.table["microseconds"][0])
    assert np.isfinite(report.table["microseconds"][1:]).all()
    ax = report.plot()
    (line,) = (line for line in ax.lines if line.get_label() == "Teacher")
    assert line.get_ydata()[0] == report.table["accuracy"][0]
    plt.close(ax.figure)


@pytest.mark.usefixtures("no_rivals")
def test_columns_of_a_teacher_in_another_order(named):
    X, y = named
    order = [2, 0, 1]
    classes = np.unique(y)[order]
    fitted = LogisticRegression(max_iter=1000).fit(X, y)
    linear = nn.Linear(4, 3).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(fitted.coef_[order]))
        linear.bias.copy_(torch.tensor(fitted.intercept_[order]))
    clf, report = distil(TorchTeacher(linear, classes=classes), X, y, **ONE)
    rows = report.test_rows
    assert_allclose(report.table["accuracy"][0], fitted.score(X.iloc[rows], y[rows]))
    proba = softmax(fitted.decision_function(X.iloc[rows]), axis=1)
    assert_allclose(report.table["log_loss"][0], log_loss(y[rows], proba), rtol=1e-5)
    assert report.table["macs"][0] == clf.teacher_costs_.macs == 12


def test_fitted_teacher_must_be_frozen(named):
    with raises("distil", "FrozenEstimator(teacher)"):
        distil(LogisticRegression(max_iter=1000).fit(*named), *named, **ONE)


def test_class_of_the_teacher_without_rows(named):
    X, y = named
    teacher = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
    two = np.flatnonzero(y != "setosa")
    with raises("each class that the teacher knows", "['setosa']"):
        distil(teacher, X.iloc[two], y[two], **ONE)


@pytest.mark.usefixtures("no_rivals")
def test_doubts_about_a_teacher_are_said_once_at_the_call(named):
    X, y = named
    module = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    nn.init.zeros_(module[0].weight)
    teacher = TorchTeacher(module, classes=np.unique(y))
    with pytest.warns(DoubtfulTeacherWarning) as caught:
        distil(teacher, X, y, **ONE)
    logits, constant = caught
    assert "are taken for logits" in str(logits.message)
    assert "TorchTeacher(Sequential), the teacher of distil" in str(constant.message)
    assert {logits.filename, constant.filename} == {__file__}


# Regression


@pytest.mark.parametrize("n_targets", [1, 2])
def test_figures_of_regression(n_targets):
    X, y = make_regression(
        n_samples=100, n_features=5, n_targets=n_targets, noise=10, random_state=0
    )
    y = y + 1000
    params = {**ONE, "objective": "squared_error"}
    reg, report = distil(Ridge(), X, y, **params)
    assert isinstance(reg, BDistilRegressor)
    train, test = report.training_rows, report.test_rows
    teacher = Ridge().fit(X[train], y[train])
    predicted = [
        teacher.predict(X[test]),
        *clone_with_all(reg).staged_predict(X[test]),
    ]
    assert reg.predict(X).shape == y.shape
    table = {name: column[:3] for name, column in report.table.items()}
    assert_allclose(table["r2"], [r2_score(y[test], p) for p in predicted], rtol=1e-5)
    rmse = [root_mean_squared_error(y[test], p) for p in predicted]
    assert_allclose(table["rmse"], rmse, rtol=1e-5)
    assert {"accuracy", "log_loss", "calibration_error"}.isdisjoint(table)
    assert report.table["name"][-2] == "gradient boosting"
    ax = report.plot()
    assert ax.get_ylabel() == "R^2"
    plt.close(ax.figure)


@pytest.mark.usefixtures("no_rivals")
def test_retention_of_a_teacher_that_explains_nothing_is_not_known():
    X, y = make_regression(n_samples=80, n_features=3, random_state=0)
    params = {**ONE, "objective": "squared_error"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulTeacherWarning)
        _, report = distil("precomputed", X, y, teacher_scores=-y, **params)
    assert report.table["r2"][0] < 0
    assert np.isnan(report.table["retention"]).all()
    assert re.search(r"teacher .* - ", str(report))


@pytest.mark.parametrize(
    ("teacher", "task", "expected"),
    [
        (LinearRegression(), None, BDistilRegressor),
        (None, "regression", BDistilRegressor),
        (None, None, BDistilClassifier),
        (LogisticRegression(), None, BDistilClassifier),
    ],
)
@pytest.mark.usefixtures("no_rivals")
def test_task_is_that_of_the_teacher_or_of_y(teacher, task, expected):
    X = np.random.RandomState(0).normal(size=(90, 3))
    y = np.digitize(X[:, 0], [-0.5, 0.5]).astype(float)
    params = {**ONE, "objective": "squared_error"}
    model, _ = distil(teacher, X, y, task=task, **params)
    assert type(model) is expected


# Weights, groups and rows without labels


@pytest.fixture(scope="module")
def binary():
    return make_classification(n_samples=120, n_features=4, random_state=0)


@pytest.mark.usefixtures("no_rivals")
def test_figures_with_sample_weight_are_weighted(named):
    X, y = named
    weight = np.random.RandomState(0).uniform(0.1, 2.0, len(y))
    teacher = LogisticRegression(max_iter=1000)
    clf, report = distil(teacher, X, y, sample_weight=weight, **ONE)
    train, choose, test = report.training_rows, report.validation_rows, report.test_rows
    fitted = clone(teacher).fit(X.iloc[train], y[train], sample_weight=weight[train])
    figures = {name: column[0] for name, column in report.table.items()}
    options = {"sample_weight": weight[test]}
    score = fitted.score(X.iloc[test], y[test], **options)
    assert_allclose(figures["accuracy"], score)
    proba = 0.999 * fitted.predict_proba(X.iloc[test]) + 1e-3 / 3
    auc = roc_auc_score(y[test], proba, multi_class="ovr", **options)
    assert_allclose(figures["roc_auc"], auc)
    loss = log_loss(y[test], proba, **options)
    assert_allclose(figures["log_loss"], loss, rtol=1e-5)
    error = calibration_error(y[test], proba, **options)
    assert_allclose(figures["calibration_error"], error, rtol=1e-5)
    staged = clone_with_all(clf).staged_score(X.iloc[choose], y[choose], weight[choose])
    assert_allclose(report.candidates["score"], list(staged))
    assert report.weighted
    assert "rows are weighted" in str(report)


@pytest.mark.usefixtures("no_rivals")
def test_rows_of_weight_0_are_as_if_they_were_not_there(binary):
    X, y = binary
    weight = np.arange(len(y)) % 4 > 0
    used = np.flatnonzero(weight)
    clf, report = distil(LogisticRegression(), X, y, sample_weight=weight, **ONE)
    of_used, report_of_used = distil(
        LogisticRegression(), X[used], y[used], sample_weight=weight[used], **ONE
    )
    assert student_bits(clf) == student_bits(of_used)
    assert_array_equal(report.test_rows, used[report_of_used.test_rows])
    assert_array_equal(report.table["log_loss"], report_of_used.table["log_loss"])


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.usefixtures("no_rivals")
def test_groups_are_in_one_part_each(binary, task):
    X, y = binary
    groups = np.random.RandomState(0).permutation(np.arange(len(y)) // 4).astype(str)
    params = {**ONE, "objective": "squared_error"}
    _, report = distil(None, X, y, task=task, groups=groups, **params)
    parts = [report.training_rows, report.validation_rows, report.test_rows]
    assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(y)))
    held = [set(groups[part]) for part in parts]
    assert sum(map(len, held)) == len(set(groups))
    assert [len(part) for part in parts[1:]] == pytest.approx([24, 24], abs=4)
    assert report.n_test_groups == len(held[2])
    assert f"standard error over {len(held[2])} groups" in str(report)


@given(st.lists(st.integers(0, 1), min_size=4, max_size=8), st.integers(2, 4))
def test_repeated_rows_in_groups_leave_the_error_as_it_is(right, n_times):
    scores = np.array(right, dtype=float)
    repeated = _Rows(None, None, groups=np.repeat(np.arange(len(right)), n_times))
    found = repeated.difference(np.repeat(scores, n_times), 0.0)
    expected = scores.mean(), scores.std(ddof=1) / len(right) ** 0.5
    assert_allclose(found, expected, atol=1e-12)
    assert_allclose(_Rows(None, None).difference(scores, 0.0), expected, atol=1e-12)
    # As one row of that weight.
    weight = np.full(len(right), float(n_times))
    weighted = _Rows(None, None, weight)
    assert_allclose(weighted.difference(scores, 0.0), expected, atol=1e-12)


@pytest.mark.parametrize("weight", [None, np.arange(120) % 5])
@pytest.mark.usefixtures("no_rivals")
def test_rows_without_labels_are_for_students_only(binary, weight):
    X, y = binary
    other = X[::-1] + 0.5
    fitted = LogisticRegression().fit(X, y)
    options = {"sample_weight": weight, "X_unlabelled": other, **ONE}
    clf, report = distil(FrozenEstimator(fitted), X, y, **options)
    assert report.n_unlabelled == len(other)
    assert "and 120 without labels" in str(report)
    without, _ = distil(
        FrozenEstimator(fitted), X, y, **{**options, "X_unlabelled": None}
    )
    assert student_bits(clf) != student_bits(without)
    scores = fitted.decision_function(np.concatenate([X, other]))
    scores = np.c_[-scores, scores] / 2
    precomputed, _ = distil("precomputed", X, y, teacher_scores=scores, **options)
    for stage, expected in zip(
        clone_with_all(precomputed).staged_predict_proba(X),
        clone_with_all(clf).staged_predict_proba(X),
        strict=True,
    ):
        # The scores of a frozen one are logarithms of probabilities.
        assert_allclose(stage, expected, atol=0.01)


def test_scores_that_do_not_fit_the_rows_without_labels(binary):
    X, y = binary
    scores = np.c_[-X[:, 0], X[:, 0]]
    options = {"teacher_scores": scores, "X_unlabelled": X[:7], **ONE}
    with raises("X_unlabelled", "127 rows in all", "Got 120"):
        distil("precomputed", X, y, **options)


@pytest.mark.usefixtures("no_rivals")
def test_sparse_rows_that_cannot_be_indexed(binary):
    X, y = binary
    _, report = distil(LogisticRegression(), sparse.coo_array(X), y, **ONE)
    assert len(report.table["name"]) == 4


def test_share_of_the_auc_is_above_chance(report):
    auc = report.table["roc_auc"]
    expected = (auc - 0.5) / (auc[0] - 0.5)
    assert_allclose(report.table["roc_auc_retention"], expected)


def test_auc_without_rows_of_a_class_is_not_known():
    classes = np.arange(3)
    rows = _Rows(None, np.array([0, 1, 1]))
    assert np.isnan(_roc_auc(rows, np.eye(3), classes))


# Images


@pytest.mark.usefixtures("no_rivals")
def test_images_have_no_gradient_boosting():
    rng = np.random.RandomState(0)
    y = np.repeat([0, 1], 40)
    X = (rng.normal(size=(80, 1, 6, 6)) + y[:, None, None, None]).astype(np.float32)
    _, report = distil(None, X, y, batch_size=16, **SEARCH)
    assert report.candidates["name"][0].startswith("ConvNet2d(channels=(4,")
    assert report.table["name"].tolist() == ["teacher", "stage 1", "labels only"]
    assert "radient boosting" not in report.advice
    # No student is cheaper.
    assert report.table["macs"][2] == report.table["macs"][1]


@pytest.mark.parametrize("input_shape", [(7,), (6, 2), (1, 8, 8)])
def test_network_of_labels_costs_no_more(input_shape):
    for macs in (700, 3000, 20000):
        factory = _factory_of_cost(input_shape, 3, macs)
        ensemble = distillation.ProgressiveEnsemble(input_shape, 3)
        network = distillation._sample(ensemble, factory, 1)
        spent, _ = distillation.costs._count_stages(network, network.example())
        cheapest = factory.keywords in ({"hidden": (1,)}, {"channels": (4, 8)})
        assert spent.macs[0] <= macs or cheapest
        if len(input_shape) == 1:
            assert spent.macs[0] > macs - 10


# Advice

WORTH = "Distilling is worth it."
NOT_WORTH = "Distilling is not worth it."
NOT_SHOWN = "Nothing shows that distilling is worth it."

NAMES = ["teacher", "stage 1", "stage 2", "gradient boosting", "labels only"]


def advice(teacher, students, boosting, labels, *, slow=(9, 9, 9)):
    """Advice for so many right rows of 1000 and times relative to the students."""
    right = [teacher, 0, students, boosting, labels]
    scores = (np.arange(1000) < np.array(right)[:, None]).astype(float)
    seconds = np.outer([slow[0], 1, 1, slow[1], slow[2]], [1.0, 1.0])
    rows = _Rows(None, None)
    return _advice(NAMES, scores, seconds, stage=2, rows=rows).splitlines()


def test_advice_where_students_are_better_than_everything_else():
    verdict, teacher, boosting, labels = advice(950, 940, 800, 850)
    assert verdict == WORTH
    assert teacher == "The teacher is better than the students by 0.010 +- 0.003."
    assert boosting.startswith("Gradient boosting is worse than the students by 0.140")
    assert "labels alone, is worse than the students by 0.090" in labels


@pytest.mark.parametrize(("labels", "expected"), [(940, NOT_SHOWN), (970, NOT_WORTH)])
def test_advice_where_the_teacher_adds_nothing(labels, expected):
    verdict, *_, found = advice(980, 940, 800, labels)
    assert verdict == expected
    assert found.endswith("The teacher adds nothing that shows: train that instead.")


@pytest.mark.parametrize(("boosting", "expected"), [(940, NOT_SHOWN), (970, NOT_WORTH)])
def test_advice_where_gradient_boosting_is_no_worse_and_fast(boosting, expected):
    verdict, _, found, _ = advice(970, 940, boosting, 800, slow=(9, 1, 1))
    assert verdict == expected
    assert found.endswith("It is no slower, either: use it instead.")


@pytest.mark.parametrize("boosting", [942, 960])
def test_advice_where_gradient_boosting_is_no_worse_and_slow(boosting):
    verdict, _, found, _ = advice(970, 940, boosting, 800, slow=(9, 30, 1))
    assert verdict == WORTH
    assert "takes 30 times as long, and 30 times in batches" in found


@pytest.mark.parametrize(("teacher", "expected"), [(940, NOT_SHOWN), (970, NOT_WORTH)])
def test_advice_where_the_teacher_is_fast(teacher, expected):
    verdict, found, *_ = advice(teacher, 940, 800, 800, slow=(0.5, 9, 1))
    assert verdict == expected
    assert found.endswith("It is no slower, either: use the teacher itself.")


def test_advice_where_the_time_of_the_teacher_is_not_known():
    verdict, *_ = advice(940, 940, 800, 800, slow=(np.nan, 9, 1))
    assert verdict == WORTH


def test_advice_where_gradient_boosting_is_the_better_teacher():
    lines = advice(900, 890, 950, 800)
    assert lines[3] == (
        "Gradient boosting is better than the teacher by 0.050 +- 0.007: it is the one "
        "to distil."
    )


def test_advice_does_not_take_noise_for_a_difference():
    # 3 of 1000 rows: 0.003 +- 0.0017.
    _, teacher, *_ = advice(943, 940, 800, 800)
    assert "as good as the students for all that can be told (0.003" in teacher


# Bad input


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"time_limit": 0}, ["'time_limit' parameter of distil", "0"]),
        ({"time_limit": -1.5}, ["'time_limit' parameter of distil", "-1.5"]),
        ({"max_cost": 0}, ["'max_cost' parameter of distil"]),
        ({"unit": "joules"}, ["'unit' parameter of distil", "'macs'", "'joules'"]),
        ({"price_per_hour": -1}, ["'price_per_hour' parameter of distil"]),
        ({"test_size": 1.0}, ["'test_size' parameter of distil"]),
        ({"task": "ranking"}, ["'task' parameter of distil", "'ranking'"]),
        ({"n_stages": 1}, ["distil chooses 'n_stages'", "'max_cost'"]),
        ({"y": None}, ["'y' parameter of distil"]),
        ({"y": ["a"] * 150}, ["distil needs rows of at least 2 classes", "a only"]),
        ({"augment": "munge"}, ["'augment' cannot be passed", "'X_unlabelled'"]),
        ({"groups": [0] * 150}, ["distil needs at least 2 groups", "Got 1 groups"]),
        ({"groups": np.arange(150) % 4}, ["at least 2 groups", "Got 4 groups"]),
        ({"groups": np.arange(150) // 50}, ["at least 2 groups", "Got 3 groups"]),
        ({"groups": [0, 1]}, ["inconsistent numbers of samples"]),
        ({"test_size": 0.7, "groups": np.arange(150)}, ["at most about half"]),
        ({"sample_weight": np.zeros(150)}, ["weight"]),
        ({"sample_weight": -np.ones(150)}, ["Negative values", "sample_weight"]),
        ({"test_size": 0.05}, ["at least 10 rows", "test_size=0.05", "makes 8"]),
        ({"test_size": 0.7, "validation_size": 0.3}, ["makes 0"]),
        ({"teacher": "forest"}, ["'teacher' parameter of distil", "'forest'"]),
    ],
)
def test_bad_input(options, parts, named):
    X, y = named
    arguments = {"teacher": LogisticRegression(), "X": X, "y": y, **ONE, **options}
    with raises(*parts):
        distil(**arguments)


def test_unknown_parameter_of_the_estimator(named):
    with raises("unexpected keyword argument 'n_student'", error=TypeError):
        distil(None, *named, n_student=2)


def test_different_numbers_of_rows(named):
    X, y = named
    with raises("inconsistent numbers of samples"):
        distil(None, X, y[:-1], **ONE)


def test_classes_of_too_few_rows():
    X = np.zeros((40, 2))
    y = np.array(["a"] * 38 + ["b"] * 2)
    with raises("at least 3 rows of each class", "2 of class b", "task='regression'"):
        distil(None, X, y, **ONE)


def test_constant_target():
    X = np.random.RandomState(0).normal(size=(60, 2))
    params = {**ONE, "objective": "squared_error"}
    with raises("the same in all training rows"):
        distil(None, X, np.c_[X[:, 0], np.ones(60)], task="regression", **params)


def test_teacher_of_another_number_of_targets():
    X = np.random.RandomState(0).normal(size=(60, 2))
    params = {**ONE, "objective": "squared_error", "task": "regression"}
    with raises("y has 1 target(s), and the teacher gives 2"):
        distil("precomputed", X, X[:, 0], teacher_scores=X, **params)
