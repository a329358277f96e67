"""Early exit of regressors: thresholds, tolerance, promise, files and export."""

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import raises
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._exit_rules import rule_values
from skbdistil.early_exit import EarlyExitRegressor
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.export import to_onnx
from skbdistil.inspection import EarlyExitDisplay
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

STUDENTS = BDistilRegressor(
    LinearRegression(),
    student=partial(MLP, hidden=(8,)),
    n_estimators=4,
    max_epochs=5,
    edge_tol=np.inf,
    random_state=0,
)


def make_rows(n_targets=1):
    rng = np.random.RandomState(0)
    X = rng.randn(600, 4)
    y = 5 * X[:, :n_targets] + np.abs(X[:, -n_targets:]) + 100
    return X, y[:, 0] if n_targets == 1 else y


@pytest.fixture(scope="module", params=[1, 2], ids=["one target", "two targets"])
def fitted(request):
    X, y = make_rows(request.param)
    return clone(STUDENTS).fit(X[:300], y[:300]), X[300:], y[300:]


@pytest.fixture(scope="module")
def single():
    X, y = make_rows()
    return clone(STUDENTS).fit(X[:300], y[:300]), X[300:], y[300:]


def calibrated(reg, X, tolerance=1.0, **options):
    return EarlyExitRegressor(FrozenEstimator(reg), tolerance, **options).fit(X)


@pytest.mark.parametrize("thresholds", ["shared", "stage"])
def test_rows_leave_with_the_prediction_of_their_stage(fitted, thresholds):
    reg, X, _ = fitted
    early = calibrated(reg, X, max_risk=0.2, thresholds=thresholds)
    stages = early.exit_stages(X)
    # The first stage is no change, so nobody leaves there.
    assert 1 < stages.min() < stages.max() or (stages == stages[0]).all()
    assert stages.min() > 1
    predictions = np.array(list(reg.staged_predict(X)))
    rows = np.arange(len(X))
    assert_allclose(early.predict(X), predictions[stages - 1, rows], rtol=1e-6)
    targets, costs = early.predict_with_cost(X)
    assert_array_equal(targets, early.predict(X))
    assert_array_equal(costs, early.costs_[stages - 1])


def test_chosen_thresholds_keep_the_risk_on_the_calibration_rows(fitted):
    reg, X, _ = fitted
    early = calibrated(reg, X, tolerance=0.8, max_risk=0.1)
    full = reg.predict(X).reshape(len(X), -1)
    off = np.abs(early.predict(X).reshape(full.shape) - full)
    risk = (off > 0.8).any(axis=1).mean()
    path, best = early.path_, early.best_index_
    assert risk == pytest.approx(path.losses[best])
    assert risk <= 0.1
    assert path.costs[best] < early.costs_[-1]
    assert_allclose(path.scores, 1 - path.losses)
    # All within the risk that are cheaper would have been chosen.
    assert path.costs[path.losses <= 0.1].min() == path.costs[best]


def test_one_tolerance_is_that_of_every_target(fitted):
    reg, X, y = fitted
    n_outputs = 1 if y.ndim == 1 else y.shape[1]
    early = calibrated(reg, X, 0.7)
    each = calibrated(reg, X, np.full(n_outputs, 0.7))
    assert_array_equal(early.tolerance_, each.tolerance_)
    assert_array_equal(early.thresholds_, each.thresholds_)


def test_tolerance_is_in_units_of_the_target(single):
    _, X, _ = single
    _, y = make_rows()
    reg = clone(STUDENTS).fit(*(rows[:300] for rows in make_rows()))
    grams = clone(STUDENTS).fit(make_rows()[0][:300], 1000 * y[:300])
    early, early_grams = calibrated(reg, X, 0.8), calibrated(grams, X, 800)
    assert_array_equal(early.exit_stages(X), early_grams.exit_stages(X))


def test_max_cost_is_kept_and_excludes_delta(single):
    reg, X, _ = single
    budget = 0.8 * reg.stage_costs_.cumulative_macs[-1]
    early = calibrated(reg, X, max_cost=budget)
    assert early.path_.costs[early.best_index_] <= budget
    with raises("'delta' and 'max_cost' of EarlyExitRegressor", "'max_risk'"):
        calibrated(reg, X, max_cost=budget, delta=0.1)


def test_rule_of_a_callable_sees_standardised_targets(single):
    reg, X, _ = single
    seen = []

    def rule(stages):
        seen.append(stages.shape)
        return -np.abs(stages[-1]).max(axis=1)

    early = calibrated(reg, X, rule=rule, max_risk=0.5)
    assert seen[:3] == [(1, 300, 1), (2, 300, 1), (3, 300, 1)]
    # Such a rule lets rows leave first.
    assert early.path_.exits[-1, 0] == 1


def test_change_is_minus_that_of_the_output_that_changed_most():
    stages = np.array([[[0.0, 0.0]], [[1.0, -3.0]]])
    assert_array_equal(rule_values("change", stages), [-3])
    assert_array_equal(rule_values("change", stages[:1]), [-np.inf])


def test_nothing_certified_warns_and_uses_all_stages(single):
    reg, X, _ = single
    with pytest.warns(NothingCertifiedWarning, match="EarlyExitRegressor .* max_risk="):
        early = calibrated(
            reg, X, 1e-9, delta=0.1, rule=lambda stages: np.zeros(stages.shape[1])
        )
    assert_array_equal(early.exit_stages(X), reg.n_estimators_)
    assert_allclose(early.predict(X), reg.predict(X), rtol=1e-6)


def test_too_few_rows_for_the_guarantee_raise(single):
    reg, X, _ = single
    with raises("cannot guarantee max_risk=0.05 with delta=0.1 on 30", "at least 68"):
        calibrated(reg, X[:30], delta=0.1)


def test_promise_is_kept_over_draws(single):
    reg, _, _ = single
    X = np.random.RandomState(1).randn(24_000, 4)
    test, drawn = X[:20_000], X[20_000:]
    full = reg.predict(test)
    broken = 0
    for draw, rows in enumerate(np.split(drawn, 40)):
        early = calibrated(reg, rows, 0.8, max_risk=0.1, delta=0.2, random_state=draw)
        broken += (np.abs(early.predict(test) - full) > 0.8).mean() > 0.1
    # Of 40 draws with a chance of 0.2, exceeded once in a thousand.
    assert broken <= 17


@pytest.mark.parametrize("cv", [0.3, 2])
def test_unfitted_estimator_is_fitted_inside(cv):
    X, y = make_rows(2)
    X = pd.DataFrame(X, columns=list("abcd"))
    early = EarlyExitRegressor(clone(STUDENTS), [2.0, 1.0], cv=cv, random_state=0)
    early.fit(X, y)
    assert list(early.feature_names_in_) == list("abcd")
    assert early.predict(X).shape == y.shape
    assert early.score(X, y) > 0.5
    assert_array_equal(early.tolerance_, [2, 1])


def test_folds_are_compared_in_the_units_of_all_rows():
    early = EarlyExitRegressor(STUDENTS, 1.0)
    X, y = make_rows()
    whole, fold = clone(STUDENTS).fit(X, y), clone(STUDENTS).fit(X[:200], 3 * y[:200])
    scores = early._comparable(fold._stage_scores(X[:5]), fold, whole)
    targets = scores[-1][:, 0] * whole.target_scale_ + whole.target_mean_
    assert_allclose(targets, fold.predict(X[:5]), rtol=1e-5)


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (0, "'tolerance' parameter of EarlyExitRegressor must be"),
        ([1.0, 2.0], "each of the 1 targets"),
        ([-1.0], "each of the 1 targets"),
        ([np.nan], "each of the 1 targets"),
    ],
)
def test_bad_tolerance_raises(single, tolerance, message):
    reg, X, _ = single
    with raises(message):
        calibrated(reg, X, tolerance)


def test_rule_of_classifiers_raises(single):
    reg, X, _ = single
    with raises("'rule' parameter of EarlyExitRegressor", "['change']", "'margin'"):
        calibrated(reg, X, rule="margin")


def test_estimator_that_is_no_regressor_of_the_package_raises(single):
    _, X, _ = single
    clf = BDistilClassifier(LogisticRegression(), n_estimators=1, max_epochs=1)
    clf.fit(X, X[:, 0] > 0)
    with raises("must be a BDistilRegressor", error=TypeError):
        calibrated(clf, X)


def test_response_that_a_regressor_lacks_raises(single):
    reg, X, _ = single
    early = calibrated(reg, X)
    for predict in (early.anytime, partial(early.predict_within, seconds=1)):
        with raises("EarlyExitRegressor has no 'predict_proba'"):
            predict(X, method="predict_proba")


def test_anytime_ends_with_the_predictions(single):
    reg, X, _ = single
    early = calibrated(reg, X, max_risk=0.2)
    *_, last = early.anytime(X)
    assert_array_equal(last, early.predict(X))
    assert_array_equal(early.predict_within(X, seconds=60), last)


def test_refit_of_the_frozen_estimator_is_noticed():
    X, y = make_rows()
    reg = clone(STUDENTS).fit(X, y)
    early = calibrated(reg, X)
    reg.fit(X, y)
    with raises("fitted again or replaced", error=NotFittedError):
        early.predict(X)


def test_search_in_a_pipeline_and_display(single):
    reg, X, y = single
    search = GridSearchCV(
        make_pipeline(
            StandardScaler(with_mean=False, with_std=False),
            EarlyExitRegressor(FrozenEstimator(reg), 1.0),
        ),
        {"earlyexitregressor__max_risk": [0.01, 0.5]},
        cv=2,
    ).fit(X, y)
    display = EarlyExitDisplay.from_estimator(search.best_estimator_, X)
    assert display.path.costs[0] == reg.stage_costs_.cumulative_macs[-1]


def test_names_of_features_are_kept_in_files_too(tmp_path):
    X, y = make_rows()
    X, y = pd.DataFrame(X[:100], columns=list("abcd")), y[:100]
    early = EarlyExitRegressor(clone(STUDENTS), 1.0, random_state=0).fit(X, y)
    save(early, tmp_path / "early.skb")
    loaded = load(tmp_path / "early.skb")
    for model in (early, loaded):
        assert list(model.feature_names_in_) == list(X)
        with raises("feature names should match"):
            model.predict(X[X.columns[::-1]])


def test_copies_and_files_predict_the_same(fitted, tmp_path):
    reg, X, _ = fitted
    early = calibrated(reg, X, max_risk=0.2)
    save(early, tmp_path / "early.skb")
    loaded = load(tmp_path / "early.skb")
    for other in (loaded, pickle.loads(pickle.dumps(early))):
        assert_array_equal(other.predict(X), early.predict(X))
        assert_array_equal(other.tolerance_, early.tolerance_)
        assert_array_equal(other.exit_path(X).losses, early.exit_path(X).losses)


def test_session_lets_the_same_rows_leave(tmp_path):
    X, y = make_rows(n_targets=2)
    reg = clone(STUDENTS).fit(X, y)
    early = calibrated(reg, X, max_risk=0.2)
    to_onnx(early, tmp_path / "early")
    session = ProgressiveSession(tmp_path / "early")
    assert_array_equal(session.exit_stages(X), early.exit_stages(X))
    assert_allclose(session.predict(X), early.predict(X), rtol=1e-5)
    assert session.manifest["early_exit"]["rule"] == "change"
    no_exit = ProgressiveSession(tmp_path / "early", early_exit=False)
    assert_allclose(no_exit.predict(X), reg.predict(X), rtol=1e-5)


def test_callable_rule_cannot_be_exported(single, tmp_path):
    reg, X, _ = single
    early = calibrated(reg, X, rule=lambda stages: np.zeros(stages.shape[1]))
    with raises("'rule' parameter of EarlyExitRegressor is a callable"):
        to_onnx(early, tmp_path / "early")
