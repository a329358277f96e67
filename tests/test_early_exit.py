"""Early exit as a user meets it: calibrate, predict, stop in time, search, break."""

import copy
import gc
import pickle
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import Parallel, delayed
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.ensemble import AdaBoostClassifier, HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.utils import get_tags, shuffle
from sklearn.utils._param_validation import InvalidParameterError

import common
from common import CONNECTIONS
from skbdistil import (
    BDistilClassifier,
    BDistilRegressor,
    _calibrated,
    _exit_calibration,
    _exit_runs,
    _perceptrons,
    early_exit,
)
from skbdistil._exit_calibration import (
    calibration_error,
    certified_point,
    exit_path,
    fit_temperatures,
    shared_thresholds,
    stage_thresholds,
)
from skbdistil._exit_rules import RULES, label_probabilities, rule_values
from skbdistil._protocol import StagedEstimator
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.export import to_onnx
from skbdistil.persistence import load, save
from skbdistil.students import MLP, ConvNet2d

N_STAGES = 4

SMALL = {
    **common.SMALL,
    "student": partial(MLP, hidden=(8,)),
    "n_estimators": N_STAGES,
    "max_epochs": 3,
    "learning_rate": 0.005,  # students that are not sure of everything
    "combine": "mean",  # students that may vote
}


@pytest.fixture(scope="module")
def digits():
    # In the order of the writers, rows would not be exchangeable.
    X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
    return X[:600], y[:600], X[600:1200], y[600:1200], X[1200:], y[1200:]


@pytest.fixture(scope="module")
def data(digits):
    return digits[:2]


@pytest.fixture(scope="module")
def small():
    return SMALL


@pytest.fixture(scope="module")
def binary():
    X, y = make_classification(n_samples=300, n_features=6, flip_y=0.1, random_state=0)
    return X, np.array(["no", "yes"])[y]


def calibrated(clf, digits, **options):
    options = {"max_drop": 0.05, "random_state": 0, **options}
    return EarlyExitClassifier(FrozenEstimator(clf), **options).fit(*digits[2:4])


def staged_scores(clf, X):
    return np.array(list(clf.staged_decision_function(X)))


class Staged(ClassifierMixin, BaseEstimator):
    """A fitted ensemble for which a row is its own scores, of all stages in turn."""

    def __init__(self):
        self.classes_ = np.arange(3)

    def __len__(self):
        return N_STAGES

    def fit(self, X, y=None):
        return self

    def staged_predict(self, X):
        yield from self._stage_scores(X).argmax(axis=2)

    def _n_stages_used(self):
        return N_STAGES

    def _stage_scores(self, X):
        return X.reshape(len(X), N_STAGES, 3).swapaxes(0, 1)

    def _stage_states(self, X):
        raise NotImplementedError("It has no students that could run.")


def staged_rows(n_rows, rng, lost=0.07):
    """Rows for `Staged`, and labels that its last stage has right.

    An earlier stage is wrong with probability `lost`, however sure it is.
    """
    y = rng.randint(3, size=n_rows)
    wrong = rng.uniform(size=(N_STAGES, n_rows)) < lost
    wrong[-1] = False
    scale = rng.uniform(1, 5, size=(N_STAGES, n_rows, 1))
    scores = scale * np.eye(3)[np.where(wrong, (y + 1) % 3, y)]
    return scores.swapaxes(0, 1).reshape(n_rows, -1), y


def calibrated_on(X, y=None, **options):
    options = {"random_state": 0, **options}
    return EarlyExitClassifier(
        FrozenEstimator(Staged()),
        cost=lambda clf: np.arange(1, N_STAGES + 1),
        **options,
    ).fit(X, y)


def test_ensemble_of_given_scores_has_what_early_exit_asks_for():
    assert isinstance(Staged(), StagedEstimator)


# Exits


@pytest.mark.parametrize("thresholds", ["shared", "stage"])
@pytest.mark.parametrize("temperature", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_rows_leave_where_the_rule_says(clf, digits, rule, temperature, thresholds):
    early = calibrated(
        clf, digits, rule=rule, temperature=temperature, thresholds=thresholds
    )
    X = digits[4]
    scores = staged_scores(clf, X)
    stages = early.exit_stages(X)
    left = np.zeros(len(X), dtype=bool)
    for stage in range(1, N_STAGES):
        values = rule_values(rule, scores[:stage], early.temperatures_[stage - 1])
        leaves = ~left & (values >= early.thresholds_[stage - 1])
        # The scores of a row differ in the last bits between batches.
        sure = abs(values - early.thresholds_[stage - 1]) > 1e-5
        assert_array_equal((stages == stage)[sure], leaves[sure])
        left |= stages == stage
    assert_array_equal(stages == N_STAGES, ~left)

    expected = scores[stages - 1, np.arange(len(X))]
    assert_allclose(early.decision_function(X), expected, rtol=1e-5, atol=1e-5)
    assert_array_equal(early.predict(X), clf.classes_[expected.argmax(axis=1)])
    proba = np.exp(expected / early.temperatures_[stages - 1, None])
    proba /= proba.sum(axis=1, keepdims=True)
    assert_allclose(early.predict_proba(X), proba, atol=1e-5)


@pytest.fixture(scope="module", params=CONNECTIONS, ids=str)
def of_images(request, digits):
    """Early exit of convolutional students, these students, and images."""
    X, y, X_held_out, y_held_out, X_test, _ = digits
    images = [x.reshape(-1, 1, 8, 8) for x in (X, X_held_out, X_test)]
    clf = BDistilClassifier(
        LogisticRegression(),
        student=partial(ConvNet2d, channels=(2, 2)),
        n_estimators=3,
        max_epochs=4,
        edge_tol=np.inf,
        connection=request.param,
        random_state=0,
    )
    scores = LogisticRegression(max_iter=300).fit(X, y).decision_function(X)
    clf.set_params(teacher="precomputed").fit(images[0], y, teacher_scores=scores)
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.05)
    return early.fit(images[1], y_held_out), clf, images[2]


def test_images(of_images):
    early, clf, images = of_images
    stages = early.exit_stages(images)
    assert len(np.unique(stages)) > 1
    expected = staged_scores(clf, images)[stages - 1, np.arange(len(stages))]
    assert_allclose(early.decision_function(images), expected, atol=1e-5)


def test_images_alone_or_in_a_batch(of_images):
    early, _, images = of_images
    images = images[:40]
    stages = early.exit_stages(images)
    assert len(np.unique(stages)) > 1
    alone = [images[[i]] for i in range(len(images))]
    assert_array_equal([early.exit_stages(image)[0] for image in alone], stages)
    assert_allclose(
        np.vstack([early.decision_function(image) for image in alone]),
        early.decision_function(images),
        atol=1e-5,
    )


def test_students_run_on_the_rows_that_are_left_only(clf, digits):
    early = calibrated(clf, digits)
    X = digits[4]
    stages = early.exit_stages(X)
    rows = []
    handles = [
        student.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        for student in clf.ensemble_.students
    ]
    try:
        early.predict(X)
        assert rows == [(stages >= stage).sum() for stage in range(1, N_STAGES + 1)]
        assert rows[-1] < rows[0]
        rows.clear()
        # Where all rows have left, later students do not run at all.
        early.predict(X[stages == 1])
        assert rows == [(stages == 1).sum()]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("combine", ["sum", "learned"])
def test_students_that_are_no_predictions_do_not_vote(digits, combine):
    options = {**SMALL, "combine": combine, "n_estimators": 2}
    clf = BDistilClassifier(LogisticRegression(max_iter=300), **options)
    clf.fit(*digits[:2])
    with common.raises(
        "'rule' parameter of EarlyExitClassifier is 'agreement'",
        f"combine='{combine}'",
        "Use combine='mean', or another rule",
    ):
        calibrated(clf, digits, rule="agreement")
    assert len(calibrated(clf, digits).thresholds_) == 1


@pytest.mark.parametrize("rule", RULES)
def test_alone_or_in_any_batch(clf, digits, rule):
    early = calibrated(clf, digits, rule=rule)
    X = digits[4][:60]
    together = early.decision_function(X)
    stages = early.exit_stages(X)
    alone = np.vstack([early.decision_function(X[[i]]) for i in range(len(X))])
    assert_array_equal([early.exit_stages(X[[i]])[0] for i in range(len(X))], stages)
    assert_allclose(alone, together, atol=1e-5)
    order = np.random.RandomState(0).permutation(len(X))
    assert_array_equal(early.exit_stages(X[order]), stages[order])
    assert_allclose(early.decision_function(X[order]), together[order], atol=1e-5)


def test_chunks_do_not_show(clf, digits, monkeypatch):
    early = calibrated(clf, digits)
    X = digits[4]
    expected = early.decision_function(X)
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape, device: 37)
    assert_allclose(early.decision_function(X), expected, atol=1e-5)
    for scores in early.anytime(X, "decision_function"):
        last = scores
    assert_allclose(last, expected, atol=1e-5)


def test_cost_is_that_of_the_stages_run(clf, digits):
    early = calibrated(clf, digits)
    X = digits[4]
    labels, costs = early.predict_with_cost(X)
    assert_array_equal(labels, early.predict(X))
    assert_array_equal(early.costs_, clf.stage_costs_.cumulative_macs)
    assert_array_equal(costs, early.costs_[early.exit_stages(X) - 1])
    assert costs.mean() < early.costs_[-1]


def test_cost_of_your_own(clf, digits):
    early = calibrated(clf, digits, cost=lambda clf: np.arange(1, len(clf) + 1) / 10)
    _, costs = early.predict_with_cost(digits[4])
    assert_allclose(costs, early.exit_stages(digits[4]) / 10)
    timed = calibrated(clf, digits, cost="latency")
    assert (np.diff(timed.costs_) >= 0).all()


def test_two_classes(binary):
    X, y = binary
    clf = BDistilClassifier(LogisticRegression(), **SMALL).fit(X[:100], y[:100])
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.2)
    early.fit(X[100:], y[100:])
    scores = early.decision_function(X)
    assert scores.shape == (300,)
    assert_array_equal(early.predict(X), early.classes_[(scores > 0).astype(int)])
    assert_allclose(early.predict_proba(X)[:, 1], 1 / (1 + np.exp(-scores)), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [False, True])
def test_dtype_of_the_estimator(binary, dtype, temperature):
    X, y = binary
    clf = BDistilClassifier(LogisticRegression(), dtype=dtype, **SMALL)
    early = EarlyExitClassifier(clf, temperature=temperature, random_state=0).fit(X, y)
    for method in ("predict_proba", "decision_function"):
        assert getattr(early.estimator_, method)(X).dtype == dtype
        assert getattr(early, method)(X).dtype == dtype


# Calibration


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("target", ["agreement", "accuracy"])
@pytest.mark.parametrize("max_drop", [0, 0.02, 0.2])
def test_drop_is_within_what_is_allowed(clf, digits, rule, target, max_drop):
    early = calibrated(clf, digits, rule=rule, target=target, max_drop=max_drop)
    X, y = digits[2:4]
    full, labels = clf.predict(X), early.predict(X)
    if target == "agreement":
        drop = np.mean(labels != full)
    else:
        drop = np.mean(full == y) - np.mean(labels == y)
    # Rounding may move a row that lies at the threshold.
    assert drop <= max_drop + 1 / len(X)
    path = early.path_
    assert path.costs[early.best_index_] == pytest.approx(
        early.predict_with_cost(X)[1].mean(), rel=0.01
    )
    dropped = path.scores[0] - path.scores
    cheaper = path.costs < path.costs[early.best_index_]
    assert (dropped[cheaper] > max_drop).all()


def test_more_may_be_lost_for_less(clf, digits):
    costs = [
        calibrated(clf, digits, max_drop=drop).predict_with_cost(digits[4])[1].mean()
        for drop in (0, 0.01, 0.05, 0.5)
    ]
    assert (np.diff(costs) <= 0).all()
    assert costs[-1] < costs[0]


def test_best_within_a_mean_cost(clf, digits):
    costs = clf.stage_costs_.cumulative_macs
    for budget in (costs[0], costs[1], costs[-1]):
        early = calibrated(clf, digits, max_cost=float(budget))
        path = early.path_
        point = early.best_index_
        assert path.costs[point] <= budget
        assert path.scores[point] == path.scores[path.costs <= budget].max()
    with pytest.raises(ValueError, match="No thresholds are within max_cost=1:"):
        calibrated(clf, digits, max_cost=1.0)


def test_loss_of_accuracy_by_hand():
    X, y = staged_rows(300, np.random.RandomState(0))
    # The full ensemble is wrong too, and sometimes an earlier stage is right then.
    y[::4] = (y[::4] + 1) % 3
    path = calibrated_on(X, y, target="accuracy").path_
    first, full = Staged()._stage_scores(X)[[0, -1]].argmax(axis=2)
    # At the last point, all rows leave after the first stage.
    assert path.scores[-1] == pytest.approx(np.mean(first == y))
    assert path.losses[-1] == pytest.approx(np.mean((full == y) & (first != y)))
    assert path.losses[-1] > path.scores[0] - path.scores[-1]


def test_thresholds_are_not_a_view_of_the_path(clf, digits):
    early = calibrated(clf, digits)
    assert not np.shares_memory(early.thresholds_, early.path_.thresholds)


def test_labels_are_not_needed_for_agreement(clf, digits):
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.05)
    assert_array_equal(
        early.fit(digits[2]).thresholds_, calibrated(clf, digits).thresholds_
    )
    for options in ({"target": "accuracy"}, {"temperature": True}):
        with pytest.raises(ValueError, match="requires y to be passed, but the target"):
            clone(early).set_params(**options).fit(digits[2])


def test_temperature_reports_the_calibration_error(clf, digits):
    early = calibrated(clf, digits, temperature=True)
    assert early.temperatures_.shape == (N_STAGES,)
    before, after = early.calibration_errors_
    assert after.mean() < before.mean()
    plain = calibrated(clf, digits)
    assert plain.calibration_errors_ is None
    assert_array_equal(plain.temperatures_, np.ones(N_STAGES))


def test_path_on_other_rows(clf, digits):
    early = calibrated(clf, digits, target="accuracy")
    X, y = digits[4:]
    path = early.exit_path(X, y)
    labels, costs = early.predict_with_cost(X)
    assert path.costs[early.best_index_] == pytest.approx(costs.mean(), rel=0.01)
    assert path.scores[early.best_index_] == pytest.approx(
        np.mean(labels == y), abs=0.005
    )
    assert path.scores[0] == clf.score(X, y)
    assert (np.diff(path.costs) <= 0).all()
    leaving = np.bincount(early.exit_stages(X), minlength=N_STAGES + 1)[1:]
    assert_allclose(path.exits[early.best_index_], leaving / len(X), atol=0.005)
    for own, measured in zip(early.exit_path(*digits[2:4]), early.path_, strict=True):
        assert_allclose(own, measured)
    # Without labels, the full ensemble is right.
    agreement = early.exit_path(X)
    assert_allclose(agreement.costs, path.costs)
    assert_allclose(agreement.scores, 1 - agreement.losses)
    assert agreement.scores[early.best_index_] == pytest.approx(
        np.mean(labels == clf.predict(X)), abs=0.005
    )


def test_callable_rule(clf, digits):
    def confidence(stages):
        return rule_values("confidence", stages)

    expected = calibrated(clf, digits).exit_stages(digits[4])
    early = calibrated(clf, digits, rule=confidence)
    assert_array_equal(early.exit_stages(digits[4]), expected)
    with pytest.raises(ValueError, match="must return one value per row"):
        calibrated(clf, digits, rule=lambda stages: stages[-1])


# The guarantee


# ceil(ln(delta) / ln(1 - max_drop)) rows to test, which are two thirds: 299, 45, 2.
@pytest.mark.parametrize(
    ("max_drop", "delta", "enough"),
    [(0.01, 0.05, 449), (0.05, 0.1, 68), (0.3, 0.5, 3)],
)
def test_guarantee_needs_rows(max_drop, delta, enough):
    X, _ = staged_rows(enough, np.random.RandomState(0), lost=0)
    assert calibrated_on(X, max_drop=max_drop, delta=delta).best_index_ > 0
    with pytest.raises(
        ValueError,
        match=rf"cannot guarantee max_drop={max_drop} with delta={delta} on "
        rf"{enough - 1} calibration rows: it needs at least {enough}\.",
    ):
        calibrated_on(X[1:], max_drop=max_drop, delta=delta)


@pytest.mark.parametrize("max_drop", [0, 5e-324])
def test_no_number_of_rows_is_enough(clf, digits, max_drop):
    with pytest.raises(
        ValueError,
        match=rf"max_drop={max_drop:g} with delta=0.1 on .* no number of rows is eno",
    ):
        calibrated(clf, digits, max_drop=max_drop, delta=0.1)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.NothingCertifiedWarning")
@pytest.mark.parametrize("thresholds", ["shared", "stage"])
def test_promise_is_kept_through_fit(thresholds):
    max_drop, delta = 0.05, 0.1
    # What is true of the distribution, from more rows than noise could blur.
    X, _ = staged_rows(20000, np.random.RandomState(0))
    scores = Staged()._stage_scores(X)
    values, _, losses = _exit_calibration.judged(
        scores, None, "confidence", np.ones(N_STAGES)
    )
    n_broken = 0
    n_exits = 0
    for seed in range(200):
        X, _ = staged_rows(150, np.random.RandomState(seed + 1))
        early = calibrated_on(
            X,
            thresholds=thresholds,
            max_drop=max_drop,
            delta=delta,
            random_state=seed,
        )
        path = exit_path(
            early.thresholds_[np.newaxis], values, losses, ~losses, early.costs_
        )
        n_broken += path.losses[0] > max_drop
        n_exits += early.best_index_ > 0
    assert n_broken <= binom.ppf(0.999, 200, delta)
    # The promise is not kept by doing nothing.
    assert n_exits > 150


@pytest.mark.parametrize("thresholds", ["shared", "stage"])
def test_rows_that_order_do_not_test(thresholds, monkeypatch):
    spy = Mock(wraps=fit_temperatures)
    monkeypatch.setattr(early_exit, "fit_temperatures", spy)
    X, y = staged_rows(300, np.random.RandomState(0))
    early = calibrated_on(
        X, y, thresholds=thresholds, temperature=True, max_drop=0.1, delta=0.01
    )
    # The draw is that of `fit`; rows are known by their scores.
    scores = Staged()._stage_scores(X)
    known = {tuple(row): i for i, row in enumerate(scores[0])}
    ordering, label = spy.call_args.args
    order = [known[tuple(row)] for row in ordering[0]]
    tested = np.setdiff1d(np.arange(300), order)
    assert len(tested) == 200
    # Drawn, since rows may be sorted.
    assert min(order) < 100
    assert max(order) > 200
    assert_array_equal(label, y[order])

    for scale, errors in zip(
        (np.ones(N_STAGES), early.temperatures_), early.calibration_errors_, strict=True
    ):
        expected = [
            calibration_error(label_probabilities(stage / temperature), y[tested])
            for stage, temperature in zip(scores[:, tested], scale, strict=True)
        ]
        assert_allclose(errors, expected)
    values, correct, losses = _exit_calibration.judged(
        scores, None, "confidence", early.temperatures_
    )
    if thresholds == "shared":
        points = shared_thresholds(values[:, order])
    else:
        points = stage_thresholds(values[:, order], losses[:, order])
    path = exit_path(
        points, values[:, tested], losses[:, tested], correct[:, tested], early.costs_
    )
    for one, other in zip(early.path_, path, strict=True):
        assert_allclose(one, other)
    assert early.best_index_ == certified_point(path, 200, 0.1, 0.01)


def test_guaranteed_thresholds_are_more_careful(clf, digits):
    plain = calibrated(clf, digits, max_drop=0.1)
    sure = calibrated(clf, digits, max_drop=0.1, delta=0.05)
    costs = [early.predict_with_cost(digits[4])[1].mean() for early in (plain, sure)]
    assert costs[0] < costs[1] < clf.stage_costs_.cumulative_macs[-1]
    drop = np.mean(sure.predict(digits[4]) != clf.predict(digits[4]))
    assert drop <= 0.1


def test_nothing_certified(clf, digits):
    # At the first threshold, all rows leave after the first stage.
    with pytest.warns(
        NothingCertifiedWarning, match=r"can guarantee no early exit with"
    ) as record:
        early = calibrated(
            clf,
            digits,
            max_drop=0.01,
            delta=0.05,
            rule=lambda stages: np.zeros(stages.shape[1]),
        )
    # That of the caller of fit.
    assert record[0].filename == __file__
    assert np.isinf(early.thresholds_).all()
    assert_array_equal(early.exit_stages(digits[4]), N_STAGES)
    assert_allclose(
        early.decision_function(digits[4]), clf.decision_function(digits[4]), atol=1e-6
    )


# Where the calibration rows come from


@pytest.mark.parametrize(
    ("cv", "n_judged", "n_trained"),
    [(0.25, [75], 225), (KFold(3), [100, 100, 100], 300)],
    ids=["share", "folds"],
)
def test_rows_are_judged_by_students_that_have_not_seen_them(
    binary, cv, n_judged, n_trained
):
    X, y = binary
    judged = []

    class Spy(BDistilClassifier):
        def fit(self, X, y=None, sample_weight=None, teacher_scores=None):
            self.trained_on_ = X
            return super().fit(X, y, sample_weight, teacher_scores)

        def _stage_scores(self, X, **options):
            judged.append((X[:, 0], self.trained_on_[:, 0]))
            return super()._stage_scores(X, **options)

    clf = Spy(LogisticRegression(), **SMALL)
    early = EarlyExitClassifier(clf, cv=cv, random_state=0).fit(X, y)
    assert [len(rows) for rows, _ in judged] == n_judged
    for rows, trained_on in judged:
        assert len(np.union1d(rows, trained_on)) == len(X)
        assert not len(np.intersect1d(rows, trained_on))
    assert len(early.estimator_.trained_on_) == n_trained
    assert not hasattr(clf, "ensemble_")


@pytest.mark.parametrize(("delta", "balanced"), [(None, True), (0.1, False)])
def test_rows_held_out_are_a_fair_draw_for_a_guarantee(
    binary, monkeypatch, delta, balanced
):
    spy = Mock(wraps=_calibrated.train_test_split)
    monkeypatch.setattr(_calibrated, "train_test_split", spy)
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    EarlyExitClassifier(clf, max_drop=0.3, delta=delta, random_state=0).fit(*binary)
    assert (spy.call_args.kwargs["stratify"] is not None) == balanced


def test_class_of_one_row_is_trained_on(binary):
    X, y = binary[0][:60], binary[1][:60].copy()
    y[0] = "odd"
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    clf.set_params(n_estimators=1, max_epochs=1)
    for seed in range(10):
        early = EarlyExitClassifier(clf, random_state=seed).fit(X, y)
        assert_array_equal(early.classes_, ["no", "odd", "yes"])


def test_fold_without_a_class():
    # Sorted by class, so that each fold holds one of them out.
    X, y = load_iris(return_X_y=True)
    early = EarlyExitClassifier(
        BDistilClassifier(LogisticRegression(max_iter=300), **SMALL), cv=KFold(3)
    )
    with pytest.raises(
        ValueError,
        match=r"must train on all classes\. One has only \[1, 2\] of \[0, 1, 2\]",
    ):
        early.fit(X, y)


def test_cross_validated_calibration_uses_every_row_once(binary):
    X, y = binary
    early = EarlyExitClassifier(
        BDistilClassifier(LogisticRegression(), **SMALL),
        cv=StratifiedKFold(3),
        target="accuracy",
    ).fit(X, y)
    losses = early.path_.scores * len(X)
    assert_allclose(losses, np.rint(losses), atol=1e-8)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
def test_folds_that_stop_early(binary, monkeypatch):
    X, y = binary
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    fit = BDistilClassifier.fit

    def short(self, X, y=None, **params):
        fitted = fit(self, X, y, **params)
        return fitted if len(X) == 300 else fitted[:2]

    monkeypatch.setattr(BDistilClassifier, "fit", short)
    early = EarlyExitClassifier(clf, cv=3).fit(X, y)
    assert early.thresholds_.shape == (N_STAGES - 1,)
    assert early.exit_stages(X).max() <= N_STAGES


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.NothingCertifiedWarning")
def test_class_that_was_held_out_as_a_whole_is_no_matter_for_agreement(binary):
    X, y = binary[0], binary[1].copy()
    y[7] = "odd"
    known = []
    for seed in range(12):
        early = EarlyExitClassifier(
            BDistilClassifier(LogisticRegression(), **SMALL),
            max_drop=0.1,
            delta=0.1,
            random_state=seed,
        )
        known.append("odd" in early.fit(X, y).classes_)
    assert True in known
    assert False in known


def test_stages_in_use(clf, digits):
    frozen = FrozenEstimator(clf[:])
    frozen.estimator.set_params(n_stages=2)
    early = EarlyExitClassifier(frozen, max_drop=0.0).fit(*digits[2:4])
    assert early.exit_stages(digits[4]).max() <= 2
    assert early.thresholds_.shape == (1,)
    frozen.estimator.set_params(n_stages=3)
    for method in (early.predict, early.exit_path):
        with pytest.raises(
            NotFittedError,
            match="was calibrated with 2 students, and its estimator now has 3",
        ):
            method(digits[4])
    frozen.estimator.set_params(n_stages=2)
    assert early.exit_stages(digits[4]).max() <= 2


def test_one_stage(clf, digits):
    early = calibrated(clf[:1], digits)
    assert_array_equal(early.exit_stages(digits[4]), 1)
    assert_array_equal(early.predict(digits[4]), clf[:1].predict(digits[4]))


# Which fit was calibrated


def fitted_again(frozen, early, X, y):
    frozen.estimator.fit(X, y)


def fitted_further(frozen, early, X, y):
    frozen.estimator.set_params(
        warm_start=True, n_estimators=N_STAGES + 1, n_stages=N_STAGES
    ).fit(X, y)


def replaced(frozen, early, X, y):
    early.set_params(estimator__estimator=clone(frozen.estimator).fit(X, y))


def cut(frozen, early, X, y):
    early.set_params(estimator__estimator=frozen.estimator[:])


USES = [
    EarlyExitClassifier.predict,
    EarlyExitClassifier.predict_proba,
    EarlyExitClassifier.decision_function,
    EarlyExitClassifier.exit_stages,
    EarlyExitClassifier.predict_with_cost,
    EarlyExitClassifier.anytime,
    partial(EarlyExitClassifier.predict_within, seconds=1000),
    EarlyExitClassifier.exit_path,
    lambda early, X: early.score(X, early.classes_[:1].repeat(len(X))),
    lambda early, X: save(early, "never.skb"),
    lambda early, X: to_onnx(early, "never"),
]


def refuses(early, X):
    """Whether all that uses the thresholds says that they do not hold."""
    for use in USES:
        with pytest.raises(
            NotFittedError, match=r"has been fitted again or replaced .* fit it again"
        ):
            use(early, X)
    return True


@pytest.mark.parametrize("change", [fitted_again, fitted_further, replaced, cut])
def test_estimator_of_another_fit_is_refused(clf, digits, change):
    X, y, X_held_out, y_held_out, X_test, _ = digits
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(frozen, max_drop=0.05).fit(X_held_out, y_held_out)
    other = {fitted_again: y + 100, replaced: y == 0}.get(change, y)
    change(frozen, early, X, other)
    assert refuses(early, X_test)
    # Labels, thresholds and all are then those of the new fit.
    early.fit(X_held_out)
    assert_array_equal(early.classes_, np.unique(other))
    assert set(early.predict(X_test)) <= set(other)
    full = calibrated(frozen.estimator, digits, max_drop=0.0)
    assert full.exit_path(X_test).scores[0] == 1


def test_fit_that_fails_leaves_the_thresholds_valid(clf, digits):
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(frozen, max_drop=0.05).fit(*digits[2:4])
    expected = early.predict_proba(digits[4])
    with pytest.raises(ValueError, match="NaN"):
        frozen.estimator.fit(np.full((5, 64), np.nan), np.arange(5))
    assert_array_equal(early.predict_proba(digits[4]), expected)


def test_estimator_that_was_fitted_inside_is_watched_as_well(binary):
    X, y = binary
    early = EarlyExitClassifier(
        BDistilClassifier(LogisticRegression(), **SMALL), random_state=0
    ).fit(X, y)
    early.estimator_.fit(X, y)
    with pytest.raises(NotFittedError, match="fit it again"):
        early.predict(X)


def pipeline_fitted_again(pipeline, X, y):
    pipeline.fit(X, y)


def transform_fitted_again(pipeline, X, y):
    pipeline[1].fit(10 * X)


def transform_replaced(pipeline, X, y):
    pipeline.set_params(standardscaler=MinMaxScaler().fit(X))


def transform_left_out(pipeline, X, y):
    pipeline.set_params(standardscaler="passthrough")


@pytest.mark.parametrize(
    "change",
    [
        pipeline_fitted_again,
        transform_fitted_again,
        transform_replaced,
        transform_left_out,
    ],
)
def test_pipeline_of_another_fit_is_refused(binary, change):
    X, y = binary
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    pipeline = make_pipeline("passthrough", StandardScaler(), clf).fit(X, y)
    early = EarlyExitClassifier(FrozenEstimator(pipeline), max_drop=0.05).fit(X)
    early.predict(X)
    change(pipeline, X, y)
    with pytest.raises(NotFittedError, match="fit it again"):
        early.predict(X)
    early.fit(X).predict(X)


class Caching(FunctionTransformer):
    """Loads something when it is first used, and does not pickle it."""

    def transform(self, X):
        if not hasattr(self, "model_"):
            self.model_ = object()
        return super().transform(X)

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("model_", None)
        return state


def test_cache_of_a_transform_is_no_fit(binary):
    X, y = binary
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    early = EarlyExitClassifier(FrozenEstimator(make_pipeline(Caching(), clf)))
    early.estimator.estimator.fit(X, y)
    early.fit(X)
    loaded = pickle.loads(pickle.dumps(early))
    expected = early.predict(X)
    for _ in range(2):
        assert_array_equal(loaded.predict(X), expected)


def test_search_that_was_fitted_again_is_refused(binary):
    X, y = binary
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    search = GridSearchCV(clf, {"n_estimators": [2]}, cv=2).fit(X, y)
    early = EarlyExitClassifier(FrozenEstimator(search), max_drop=0.05).fit(X)
    early.predict(X)
    search.fit(X, y)
    with pytest.raises(NotFittedError, match="fit it again"):
        early.predict(X)


def saved(early, tmp_path):
    path = tmp_path / "early.skb"
    save(early, path)
    return load(path)


def of_a_worker(early, tmp_path):
    (early,) = Parallel(n_jobs=2)(delayed(copy.copy)(early) for _ in range(1))
    return early


COPIES = {
    "pickle": lambda early, tmp_path: pickle.loads(pickle.dumps(early)),
    "deepcopy": lambda early, tmp_path: copy.deepcopy(early),
    "worker": of_a_worker,
    "file": saved,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copy_is_calibrated_for_its_own_estimator(clf, digits, copied, tmp_path):
    X, y, *_, X_test, _ = digits
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(frozen, max_drop=0.05).fit(*digits[2:4])
    expected = early.predict_proba(X_test)
    other = copied(early, tmp_path)
    another = copied(other, tmp_path)
    assert_array_equal(other.predict_proba(X_test), expected)
    # Each goes its own way.
    other.estimator_.estimator.set_params(teacher=LogisticRegression(max_iter=300))
    other.estimator_.estimator.fit(X, y + 100)
    assert refuses(other, X_test)
    frozen.estimator.fit(X, y + 100)
    assert refuses(early, X_test)
    assert_array_equal(another.predict_proba(X_test), expected)


@pytest.mark.parametrize(
    "copied", [COPIES[name] for name in ("pickle", "deepcopy", "worker")]
)
def test_copy_of_what_does_not_hold_does_not_hold(clf, digits, copied, tmp_path):
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(frozen, max_drop=0.05).fit(*digits[2:4])
    frozen.estimator.fit(*digits[:2])
    other = copied(copied(early, tmp_path), tmp_path)
    assert refuses(other, digits[4])
    other.fit(*digits[2:4]).predict(digits[4])
    assert refuses(early, digits[4])


def test_shallow_copy_shares_the_estimator(clf, digits):
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(frozen, max_drop=0.05).fit(*digits[2:4])
    other = copy.copy(early)
    assert_array_equal(other.predict(digits[4]), early.predict(digits[4]))
    frozen.estimator.fit(*digits[:2])
    assert refuses(other, digits[4])
    early.fit(*digits[2:4])
    assert refuses(other, digits[4])


def test_pickle_holds_the_ensemble_once(clf, digits):
    early = calibrated(clf, digits)
    added = len(pickle.dumps(early)) - len(pickle.dumps(clf))
    assert added - len(pickle.dumps(early.path_)) < 3000
    # Nor is it another one that is copied.
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(frozen, max_drop=0.05).fit(*digits[2:4])
    size = len(pickle.dumps(early))
    frozen.estimator.fit(*digits[:2])
    assert abs(len(pickle.dumps(early)) - size) < 3000


def test_what_leaves_the_fit_alone_leaves_the_thresholds_valid(clf, digits):
    own = clf[:]
    early = calibrated(own, digits)
    expected = early.predict_proba(digits[4])
    own[:2].predict(digits[4])
    clone(own)
    pickle.dumps(own)
    copy.deepcopy(early)
    own.set_params(device="cpu", random_state=3)
    own.ensemble_.to("cpu")
    assert_array_equal(early.predict_proba(digits[4]), expected)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_anytime_goes_on_with_the_fit_that_it_began_with(clf, digits, method):
    X, y, X_held_out, y_held_out, X_test, _ = digits
    frozen = FrozenEstimator(clf[:])
    early = EarlyExitClassifier(
        frozen, max_drop=0.05, target="accuracy", temperature=True
    ).fit(X_held_out, y_held_out)
    expected = list(early.anytime(X_test, method))
    predictions = early.anytime(X_test, method)
    found = [next(predictions)]
    frozen.estimator.fit(X, (y == 0) + 100)
    found.append(next(predictions))
    early.fit(X_held_out, (y_held_out == 0) + 100)
    found += predictions
    for one, other in zip(found, expected, strict=True):
        assert_array_equal(one, other)


# Time


def test_anytime(clf, digits):
    early = calibrated(clf, digits)
    X = digits[4]
    stages = early.exit_stages(X)
    scores = staged_scores(clf, X)
    found = list(early.anytime(X, "decision_function"))
    assert len(found) == stages.max()
    for stage, now in enumerate(found, start=1):
        expected = scores[np.minimum(stages, stage) - 1, np.arange(len(X))]
        assert_allclose(now, expected, atol=1e-5)
    labels = list(early.anytime(X))
    assert_array_equal(labels[-1], early.predict(X))
    # What was given out does not change later.
    assert_array_equal(labels[0], clf[:1].predict(X))


def test_anytime_can_be_left(clf, digits):
    early = calibrated(clf, digits)
    iterator = early.anytime(digits[4])
    first = next(iterator)
    iterator.close()
    assert_array_equal(first, clf[:1].predict(digits[4]))
    # What cannot work is refused at the call, not at the first of the iterator.
    with pytest.raises(ValueError, match="'method' must be one of"):
        early.anytime(digits[4], "transform")
    with pytest.raises(ValueError, match="X has 5 features"):
        early.anytime(digits[4][:, :5])


@pytest.mark.parametrize("begun", [False, True])
def test_anytime_that_is_left_lets_go_of_what_it_held(clf, digits, monkeypatch, begun):
    states = []
    start = _perceptrons.start

    def seen(*args):
        states.append(weakref.ref(state := start(*args)))
        return state

    monkeypatch.setattr(_perceptrons, "start", seen)
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape, device: 100)
    early = calibrated(clf, digits, max_drop=0.0)
    states.clear()
    predictions = early.anytime(digits[4])
    if begun:
        next(predictions)
    assert len(states) == -(-len(digits[4]) // 100)
    assert all(state() is not None for state in states)
    # Another prediction in between is none of its business.
    assert_array_equal(early.predict(digits[4]), clf.predict(digits[4]))
    del predictions
    gc.collect()
    assert all(state() is None for state in states)


def test_inference_mode_does_not_leak(clf, digits, monkeypatch):
    early = calibrated(clf, digits, max_drop=0.0)
    abandoned = early.anytime(digits[4])
    next(abandoned)
    assert not torch.is_inference_mode_enabled()
    interrupted = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(_perceptrons._ProductState, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        early.predict(digits[4])
    # Frames live on with the traceback, as after an interrupt at a prompt.
    assert not torch.is_inference_mode_enabled()
    del interrupt
    with pytest.raises(KeyboardInterrupt):
        next(abandoned)
    assert not torch.is_inference_mode_enabled()


class Clock:
    """A clock that each step of a run moves on."""

    def __init__(self, monkeypatch, per_step=0.0, per_row=0.0):
        self.now = 0.0
        step = _exit_runs.ExitRun.step

        def slow(run):
            self.now += per_step + per_row * run.n_left
            step(run)

        monkeypatch.setattr(_exit_runs.ExitRun, "step", slow)
        monkeypatch.setattr(_exit_runs.time, "perf_counter", lambda: self.now)


# By agreement, no row leaves at the first stage.
@pytest.mark.parametrize(
    ("connection", "rule"), [(None, "confidence"), ("dense", "agreement")]
)
def test_predict_within(digits, monkeypatch, connection, rule):
    clf = BDistilClassifier(
        LogisticRegression(max_iter=300), **SMALL, connection=connection
    ).fit(*digits[:2])
    early = calibrated(clf, digits, rule=rule, max_drop=0.0)
    X = digits[4]
    stages = list(early.anytime(X))
    # What is not written must not be right by what the memory has held before.
    monkeypatch.setattr(torch, "empty", partial(torch.full, fill_value=np.nan))
    clock = Clock(monkeypatch, per_step=1.0)
    seen = set()
    for seconds in (0.1, 1, 2, 4, 8, 1000):
        clock.now = 0.0
        labels = early.predict_within(X, seconds)
        # The first stage is run however long it takes.
        assert clock.now <= max(seconds, 1)
        n_stages = int(clock.now)
        seen.add(n_stages)
        assert_array_equal(labels, stages[n_stages - 1])
    assert {1, len(stages)} <= seen


def test_predict_within_counts_chunks(clf, digits, monkeypatch):
    early = calibrated(clf, digits, max_drop=0.0)
    X = digits[4]
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape, device: 100)
    first, second, *_ = early.anytime(X)
    clock = Clock(monkeypatch, per_step=1.0)
    n_chunks = -(-len(X) // 100)
    growth = np.divide(*clf.stage_costs_.macs[1::-1])
    # Time for two chunks to go on, and a little less than that.
    for seconds, n_on in [(2, 2), (1.99, 1)]:
        clock.now = 0.0
        labels = early.predict_within(X, n_chunks - 1 + seconds + 1.5 * growth)
        assert clock.now == n_chunks + n_on
        assert_array_equal(labels[: n_on * 100], second[: n_on * 100])
        assert_array_equal(labels[n_on * 100 :], first[n_on * 100 :])


def test_predict_within_goes_on_where_a_chunk_has_no_rows_left(
    clf, digits, monkeypatch
):
    early = calibrated(clf, digits)
    stages = early.exit_stages(digits[4])
    easy, hard = digits[4][stages == 1][:50], digits[4][stages > 1][:10]
    X = np.vstack([easy, hard])
    assert len(X) == 60
    _, second, *_ = early.anytime(X)
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape, device: 50)
    clock = Clock(monkeypatch, per_row=1.0)
    growth = np.divide(*clf.stage_costs_.macs[1::-1])
    # Time for the second chunk to go on, which would not be enough for the first.
    labels = early.predict_within(X, 60 + 1.5 * 10 * growth)
    assert clock.now == 70
    assert_array_equal(labels, second)


def test_predict_within_expects_less_of_fewer_rows(clf, digits, monkeypatch):
    early = calibrated(clf, digits)
    stages = early.exit_stages(digits[4])
    easy, hard = digits[4][stages == 1][:10], digits[4][stages == N_STAGES][:40]
    X = np.vstack([easy, hard])
    assert len(X) == 50
    _, _, third, _ = early.anytime(X)
    clock = Clock(monkeypatch, per_row=1.0)
    growth = np.divide(*clf.stage_costs_.macs[2:0:-1])
    # Time for a third step of 40 rows, which would not be enough for one of 50.
    labels = early.predict_within(X, 50 + 40 + 1.5 * 40 * growth)
    assert clock.now == 50 + 40 + 40
    assert_array_equal(labels, third)


def test_predict_within_without_knowing_the_costs(clf, digits, monkeypatch):
    early = calibrated(clf, digits, max_drop=0.0)
    unknown = np.full(N_STAGES, np.nan)
    costs = replace(clf.stage_costs_, macs=unknown)
    monkeypatch.setattr(clf, "stage_costs_", costs)
    first, second, *_ = early.anytime(digits[4])
    clock = Clock(monkeypatch, per_step=1.0)
    # A stage is expected to take as long as the one before, and half as much again.
    for seconds, expected in [(2.4, first), (2.6, second)]:
        clock.now = 0.0
        assert_array_equal(early.predict_within(digits[4], seconds), expected)


@pytest.mark.parametrize("seconds", [0, -1, np.nan, "1", None])
def test_no_time(clf, digits, seconds):
    with pytest.raises(ValueError, match="'seconds' must be positive"):
        calibrated(clf, digits).predict_within(digits[4], seconds)
    with pytest.raises(ValueError, match="'method' must be one of"):
        calibrated(clf, digits).predict_within(digits[4], 1, "transform")


def test_threads(clf, digits):
    early = calibrated(clf, digits, temperature=True)
    X = digits[4]
    methods = [
        early.decision_function,
        early.predict_proba,
        early.exit_stages,
        partial(early.predict_within, seconds=1000),
    ]
    expected = [method(X) for method in methods]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda method: method(X), methods * 8))
    for one, other in zip(found, expected * 8, strict=True):
        assert_array_equal(one, other)


# In scikit-learn


def test_in_a_pipeline_and_around_one(digits):
    X, y, X_held_out, y_held_out, X_test, _ = digits
    clf = BDistilClassifier(LogisticRegression(max_iter=300), **SMALL)
    inside = make_pipeline(MinMaxScaler(), EarlyExitClassifier(clf, random_state=0))
    assert inside.fit(X, y).score(X, y) > 0.5
    pipeline = make_pipeline(MinMaxScaler(), clone(clf)).fit(X, y)
    around = EarlyExitClassifier(FrozenEstimator(pipeline), max_drop=0.05)
    around.fit(X_held_out, y_held_out)
    scaled = EarlyExitClassifier(FrozenEstimator(pipeline[-1]), max_drop=0.05)
    scaled.fit(pipeline[0].transform(X_held_out), y_held_out)
    assert_array_equal(
        around.exit_stages(X_test),
        scaled.exit_stages(pipeline[0].transform(X_test)),
    )
    unfitted = EarlyExitClassifier(make_pipeline(MinMaxScaler(), clf), random_state=0)
    assert_array_equal(unfitted.fit(X, y).classes_, np.arange(10))


def test_search(binary):
    X, y = binary
    search = GridSearchCV(
        EarlyExitClassifier(
            BDistilClassifier(LogisticRegression(), **SMALL), random_state=0
        ),
        {"rule": ["confidence", "patience"], "estimator__n_estimators": [2, 3]},
        cv=2,
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert len(best.costs_) == search.best_params_["estimator__n_estimators"]


def test_search_for_the_drop(clf, digits):
    search = GridSearchCV(
        EarlyExitClassifier(FrozenEstimator(clf)),
        {"max_drop": [0.0, 0.05, 0.5]},
        scoring=lambda early, X, y: -early.predict_with_cost(X)[1].mean(),
        cv=2,
    ).fit(*digits[2:4])
    careful, _, cheap = search.cv_results_["mean_test_score"]
    assert careful < cheap
    assert search.best_params_ == {"max_drop": 0.5}
    # Frozen students are shared, not copied.
    assert search.best_estimator_.estimator_.estimator is clf


class Follower(BDistilClassifier):
    """Refuses scores that are not those of its rows: the first feature."""

    def fit(self, X, y=None, sample_weight=None, teacher_scores=None):
        assert_array_equal(teacher_scores[:, 0], X[:, 0])
        return super().fit(X, y, sample_weight, teacher_scores)


@pytest.mark.parametrize("cv", [0.2, 3])
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_fit_parameters_follow_the_rows(binary, cv):
    X, y = binary
    early = EarlyExitClassifier(Follower("precomputed", **SMALL), cv=cv)
    early.fit(X, y, teacher_scores=np.c_[X[:, 0], -X[:, 0]])
    assert isinstance(early.estimator_, Follower)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_metadata_routing(binary):
    X, y = binary
    weight = np.random.RandomState(0).uniform(size=len(X))
    with config_context(enable_metadata_routing=True):
        clf = Follower("precomputed", **SMALL).set_fit_request(teacher_scores=True)
        early = EarlyExitClassifier(clf, random_state=0)
        pipeline = make_pipeline(FunctionTransformer(), early)
        pipeline.fit(X, y, teacher_scores=np.c_[X[:, 0], -X[:, 0]])
        right = pipeline.predict(X) == y
        assert pipeline.score(X, y) == pytest.approx(right.mean())
        early.set_score_request(sample_weight=True)
        assert pipeline.score(X, y, sample_weight=weight) == pytest.approx(
            np.average(right, weights=weight)
        )


def test_fit_parameters_of_a_frozen_estimator(clf, digits):
    early = EarlyExitClassifier(FrozenEstimator(clf))
    early.fit(*digits[2:4], sample_weight=None)
    with pytest.raises(ValueError, match=r"passes \['sample_weight'\] to the fit of"):
        early.fit(*digits[2:4], sample_weight=np.ones(600))


# Each says yes to another one of the three.
@pytest.mark.parametrize(
    "estimator",
    [BDistilClassifier(), LogisticRegression(), HistGradientBoostingClassifier()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_tags_of_the_estimator(estimator):
    expected = get_tags(estimator).input_tags
    for inner in (estimator, FrozenEstimator(estimator)):
        tags = get_tags(EarlyExitClassifier(inner)).input_tags
        for name in ("three_d_array", "sparse", "allow_nan"):
            assert getattr(tags, name) == getattr(expected, name)


def test_feature_names(binary):
    X, y = binary
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(6)])
    early = EarlyExitClassifier(
        BDistilClassifier(LogisticRegression(), **SMALL), random_state=0
    ).fit(frame, y)
    assert_array_equal(early.feature_names_in_, frame.columns)
    assert early.n_features_in_ == 6
    with pytest.raises(ValueError, match="feature names"):
        early.predict(frame[frame.columns[::-1]])
    # Rows without names leave none of the last fit.
    assert not hasattr(early.fit(X, y), "feature_names_in_")


def test_pickle(clf, digits):
    early = calibrated(clf, digits)
    loaded = pickle.loads(pickle.dumps(early))
    assert_array_equal(
        loaded.decision_function(digits[4]), early.decision_function(digits[4])
    )


def test_failed_fit_keeps_what_was_fitted(clf, digits):
    early = calibrated(clf, digits)
    before = early.decision_function(digits[4])
    with pytest.raises(ValueError, match="'max_drop' parameter of EarlyExitClassifier"):
        early.set_params(max_drop=1.5).fit(*digits[2:4])
    early.set_params(max_drop=0.1)
    with pytest.raises(ValueError, match="have labels"):
        early.set_params(target="accuracy").fit(digits[2], np.full(600, 77))
    with pytest.raises(ValueError, match="'rule' parameter of EarlyExitClassifier"):
        early.set_params(rule="luck").fit(*digits[2:4])
    assert_array_equal(early.decision_function(digits[4]), before)


def test_rule_is_that_of_the_last_fit(clf, digits):
    early = calibrated(clf, digits)
    scores, path = early.decision_function(digits[4]), early.exit_path(digits[4])
    early.set_params(rule="patience")
    assert_array_equal(early.decision_function(digits[4]), scores)
    for one, other in zip(early.exit_path(digits[4]), path, strict=True):
        assert_array_equal(one, other)


# What cannot work


@pytest.mark.parametrize("max_drop", [-0.1, 1, 2, "small", np.nan])
def test_bad_max_drop(clf, digits, max_drop):
    with pytest.raises(ValueError, match=r"'max_drop' parameter .* in the range \[0"):
        calibrated(clf, digits, max_drop=max_drop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "luck"}, "'rule' parameter of EarlyExitClassifier must be one of"),
        ({"rule": np.array(["confidence"])}, r"'rule' parameter .* Got array\(\['conf"),
        ({"target": "f1"}, "'target' parameter of EarlyExitClassifier must be"),
        ({"delta": 0.0}, "'delta' parameter of EarlyExitClassifier must be"),
        ({"delta": 0.1, "max_cost": 5.0}, "'delta' and 'max_cost' of EarlyExitClass"),
        ({"delta": 0.1, "cv": 3}, "With 'delta', the 'cv' parameter of EarlyExitClass"),
        (
            {"delta": 0.05, "cv": 0.25},
            r"on 75 calibration rows: it needs at least 449, and cv=0\.25 holds out",
        ),
        ({"delta": 0.1, "max_drop": 1.5e-308}, "1.5e-308 .* needs at least [0-9]+"),
        ({"cost": "joule"}, "unit of cost must be one of"),
        ({"thresholds": "mine"}, "'thresholds' parameter of EarlyExitClassifier must"),
    ],
)
def test_bad_parameters_are_refused_before_any_training(
    binary, monkeypatch, options, message
):
    fit = Mock()
    monkeypatch.setattr(BDistilClassifier, "fit", fit)
    with pytest.raises(ValueError, match=message):
        EarlyExitClassifier(BDistilClassifier(), **options).fit(*binary)
    fit.assert_not_called()


def test_no_folds(binary):
    with pytest.raises(ValueError, match=r"'cv' parameter .* has no folds"):
        EarlyExitClassifier(
            BDistilClassifier(LogisticRegression(), **SMALL), cv=[]
        ).fit(*binary)


def test_share_of_any_type(binary):
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    one, other = (
        EarlyExitClassifier(clf, cv=cv, random_state=0).fit(*binary)
        for cv in (0.25, np.float32(0.25))
    )
    assert_array_equal(one.path_.scores, other.path_.scores)


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_path_of_labels_in_a_column(clf, digits):
    early = calibrated(clf, digits, target="accuracy")
    for one, other in zip(
        early.exit_path(digits[4], digits[5].reshape(-1, 1)),
        early.exit_path(*digits[4:]),
        strict=True,
    ):
        assert_array_equal(one, other)


@pytest.mark.parametrize("estimator", ["clf", None, 3])
def test_no_estimator(binary, estimator):
    with pytest.raises(
        InvalidParameterError,
        match="'estimator' parameter of EarlyExitClassifier must be an object impl",
    ):
        EarlyExitClassifier(estimator).fit(*binary)


def test_estimator_without_stages(binary):
    X, y = binary
    with pytest.raises(
        TypeError, match="LogisticRegression, inside FrozenEstimator, h"
    ):
        EarlyExitClassifier(FrozenEstimator(LogisticRegression().fit(X, y))).fit(X, y)
    with pytest.raises(TypeError, match="LogisticRegression has no stages"):
        EarlyExitClassifier(LogisticRegression()).fit(X, y)
    boosting = AdaBoostClassifier(n_estimators=2)
    for cv in (0.2, 3):
        with pytest.raises(TypeError, match="must be a BDistilClassifier, or a pipel"):
            EarlyExitClassifier(boosting, cv=cv).fit(X, y)
    regressor = BDistilRegressor(Ridge(), **SMALL).fit(X, X[:, 0])
    with pytest.raises(TypeError, match="must be a BDistilClassifier, or a pipeline"):
        EarlyExitClassifier(FrozenEstimator(regressor)).fit(X, y)


def test_unfitted_and_frozen(binary):
    with pytest.raises(NotFittedError, match="BDistilClassifier"):
        EarlyExitClassifier(FrozenEstimator(BDistilClassifier())).fit(*binary)


def test_fitted_and_not_frozen(clf, digits):
    with pytest.raises(ValueError, match=re.escape("sklearn.frozen.FrozenEstimator(")):
        EarlyExitClassifier(clf).fit(*digits[2:4])


def test_unfitted():
    early = EarlyExitClassifier(BDistilClassifier())
    for method in ("predict", "exit_stages", "predict_with_cost", "anytime"):
        with pytest.raises(NotFittedError):
            getattr(early, method)([[0.0]])
    with pytest.raises(NotFittedError):
        early.predict_within([[0.0]], 1)


def test_no_calibration_rows(clf, digits):
    for estimator in (FrozenEstimator(clf), clone(clf)):
        with pytest.raises(ValueError, match="needs calibration rows"):
            EarlyExitClassifier(estimator).fit(digits[2][:0], digits[3][:0])


def test_unseen_class(clf, digits):
    y = digits[3].copy()
    y[:3] = 11
    early = EarlyExitClassifier(FrozenEstimator(clf))
    message = r"rows .* have labels \[11\] that the estimator does not know"
    for options in ({"target": "accuracy"}, {"temperature": True}):
        with pytest.raises(ValueError, match=message):
            clone(early).set_params(**options).fit(digits[2], y)
    early.fit(digits[2], y)
    expected = clone(early).fit(digits[2])
    for one, other in zip(early.path_, expected.path_, strict=True):
        assert_array_equal(one, other)
    with pytest.raises(ValueError, match=message):
        early.exit_path(digits[2], y)


def test_scores_that_are_not_finite(clf, digits):
    broken = clf[:]
    broken.ensemble_.students[1].head.bias.data[0] = np.inf
    with pytest.raises(ValueError, match="scores that are not finite"):
        calibrated(broken, digits)


@pytest.mark.parametrize("cv", [0.25, GroupKFold(2)])
def test_groups_are_kept_together(cv):
    rng = np.random.RandomState(0)
    X, y, groups = rng.randn(80, 3), np.arange(80) % 2, np.arange(80) // 4
    seen = []

    class Recorded(LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            seen.append(set(X[:, -1]))
            return super().fit(X, y)

    clf = BDistilClassifier(Recorded(), **SMALL)
    early = EarlyExitClassifier(clf, cv=cv, random_state=0)
    rows = np.column_stack([X, groups])
    early.fit(rows, y, groups=groups, X_unlabelled=rows)
    for part in seen:
        inside = np.isin(groups, list(part))
        assert set(groups[inside]).isdisjoint(groups[~inside])
    assert min(map(len, seen)) < 20
    # Its own rows, and all of those without labels.
    assert early.estimator_.teacher_calls_ >= 80 + 4 * min(map(len, seen))
