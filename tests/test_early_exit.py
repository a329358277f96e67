"""Early exit as a user meets it: calibrate, predict, stop in time, search, break."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import shuffle

from skbdistil import BDistilClassifier, BDistilRegressor, early_exit
from skbdistil._exit_rules import RULES, rule_values
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import Lateral
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.students import MLP, ConvNet2d

N_STAGES = 4

SMALL = {
    "student": partial(MLP, hidden=(8,)),
    "n_estimators": N_STAGES,
    "max_epochs": 3,
    "tol": np.inf,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def digits():
    # In the order of the writers, rows would not be exchangeable.
    X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
    return X[:600], y[:600], X[600:1200], y[600:1200], X[1200:], y[1200:]


@pytest.fixture(scope="module")
def clf(digits):
    return BDistilClassifier(LogisticRegression(max_iter=300), **SMALL).fit(*digits[:2])


@pytest.fixture(scope="module")
def binary():
    X, y = make_classification(n_samples=300, n_features=6, flip_y=0.1, random_state=0)
    return X, np.array(["no", "yes"])[y]


def calibrated(clf, digits, **options):
    options = {"max_drop": 0.05, "random_state": 0, **options}
    return EarlyExitClassifier(FrozenEstimator(clf), **options).fit(*digits[2:4])


def staged_scores(clf, X):
    return np.array(list(clf.staged_decision_function(X)))


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


CONNECTIONS = [None, "dense", "residual", "last", "lateral", Lateral(shared_blocks=1)]


@pytest.mark.parametrize("connection", CONNECTIONS, ids=str)
def test_images(connection, digits):
    X, y, X_held_out, y_held_out, X_test, _ = digits
    images = [x.reshape(-1, 1, 8, 8) for x in (X, X_held_out, X_test)]
    clf = BDistilClassifier(
        LogisticRegression(),
        student=partial(ConvNet2d, channels=(2, 2)),
        n_estimators=3,
        max_epochs=4,
        tol=np.inf,
        connection=connection,
        random_state=0,
    )
    scores = LogisticRegression(max_iter=300).fit(X, y).decision_function(X)
    clf.set_params(teacher="precomputed").fit(images[0], y, teacher_scores=scores)
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.05)
    early.fit(images[1], y_held_out)
    stages = early.exit_stages(images[2])
    assert len(np.unique(stages)) > 1
    expected = staged_scores(clf, images[2])[stages - 1, np.arange(len(stages))]
    assert_allclose(early.decision_function(images[2]), expected, atol=1e-4)


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
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape: 37)
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


def test_guarantee_needs_rows(clf, digits):
    # ceil(ln .05 / ln .99) = 299 rows to test, which are two thirds.
    with pytest.raises(
        ValueError,
        match=r"cannot guarantee max_drop=0.01 with delta=0.05 on 100 calibration rows"
        r": it needs at least 449\.",
    ):
        EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.01, delta=0.05).fit(
            digits[2][:100]
        )
    EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.5, delta=0.05).fit(
        digits[2][:100]
    )
    with pytest.raises(ValueError, match="no number of rows is enough for max_drop=0"):
        calibrated(clf, digits, max_drop=0, delta=0.1)


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
        NothingCertifiedWarning, match=r"can guarantee no early exit wit"
    ):
        early = calibrated(
            clf,
            digits,
            max_drop=0.01,
            delta=0.05,
            rule=lambda stages: np.zeros(stages.shape[1]),
        )
    assert np.isinf(early.thresholds_).all()
    assert_array_equal(early.exit_stages(digits[4]), N_STAGES)
    assert_allclose(
        early.decision_function(digits[4]), clf.decision_function(digits[4]), atol=1e-6
    )


# Where the calibration rows come from


def test_rows_held_out_take_no_part_in_training(binary):
    X, y = binary
    seen = []

    class Spy(BDistilClassifier):
        def fit(self, X, y=None, sample_weight=None, teacher_scores=None):
            seen.append(X)
            return super().fit(X, y, sample_weight, teacher_scores)

    early = EarlyExitClassifier(
        Spy(LogisticRegression(), **SMALL), cv=0.25, random_state=0
    ).fit(X, y)
    (trained,) = seen
    assert len(trained) == 225
    assert not hasattr(early.estimator, "ensemble_")
    assert isinstance(early.estimator_, Spy)

    seen.clear()
    early.set_params(cv=KFold(3)).fit(X, y)
    assert [len(rows) for rows in seen] == [300, 200, 200, 200]
    assert_array_equal(seen[0], X)


def test_cross_validated_calibration_uses_every_row_once(binary):
    X, y = binary
    early = EarlyExitClassifier(
        BDistilClassifier(LogisticRegression(), **SMALL),
        cv=StratifiedKFold(3),
        target="accuracy",
    ).fit(X, y)
    losses = early.path_.scores * len(X)
    assert_allclose(losses, np.rint(losses), atol=1e-8)


def test_cross_validated_calibration_gives_no_guarantee(binary):
    early = EarlyExitClassifier(BDistilClassifier(**SMALL), cv=3, delta=0.1)
    with pytest.raises(
        ValueError, match="With 'delta', the 'cv' parameter of EarlyExi"
    ):
        early.fit(*binary)


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


def test_stages_in_use(clf, digits):
    frozen = FrozenEstimator(clf[:])
    frozen.estimator.set_params(n_stages=2)
    early = EarlyExitClassifier(frozen, max_drop=0.0).fit(*digits[2:4])
    assert early.exit_stages(digits[4]).max() <= 2
    assert early.thresholds_.shape == (1,)


def test_one_stage(clf, digits):
    early = calibrated(clf[:1], digits)
    assert_array_equal(early.exit_stages(digits[4]), 1)
    assert_array_equal(early.predict(digits[4]), clf[:1].predict(digits[4]))


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
    with pytest.raises(ValueError, match="'method' must be one of"):
        early.anytime(digits[4], "transform")


class Clock:
    """A clock that each step of a run moves on."""

    def __init__(self, monkeypatch, seconds):
        self.now = 0.0
        step = early_exit._Run.step

        def slow(run):
            step(run)
            self.now += seconds

        monkeypatch.setattr(early_exit._Run, "step", slow)
        monkeypatch.setattr(early_exit.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("connection", [None, "dense"])
def test_predict_within(digits, monkeypatch, connection):
    clf = BDistilClassifier(
        LogisticRegression(max_iter=300), **SMALL, connection=connection
    ).fit(*digits[:2])
    early = calibrated(clf, digits, max_drop=0.0)
    X = digits[4]
    stages = list(early.anytime(X))
    clock = Clock(monkeypatch, 1.0)
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
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape: 100)
    first, second, *_ = early.anytime(X)
    clock = Clock(monkeypatch, 1.0)
    # Six chunks, and time for two of them to go on.
    n_chunks = -(-len(X) // 100)
    growth = np.divide(*clf.stage_costs_.macs[1::-1])
    labels = early.predict_within(X, n_chunks + 1 + 1.5 * growth)
    assert clock.now == n_chunks + 2
    assert_array_equal(labels[:200], second[:200])
    assert_array_equal(labels[200:], first[200:])


@pytest.mark.parametrize("seconds", [0, -1, np.nan, "1", None])
def test_no_time(clf, digits, seconds):
    with pytest.raises(ValueError, match="'seconds' must be positive"):
        calibrated(clf, digits).predict_within(digits[4], seconds)
    with pytest.raises(ValueError, match="'method' must be one of"):
        calibrated(clf, digits).predict_within(digits[4], 1, "transform")


def test_threads(clf, digits):
    early = calibrated(clf, digits)
    X = digits[4]
    expected = early.decision_function(X)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(early.decision_function, [X] * 16):
            assert_array_equal(scores, expected)


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


def test_precomputed_scores_follow_the_rows(binary):
    X, y = binary
    scores = LogisticRegression().fit(X, y).predict_log_proba(X)
    early = EarlyExitClassifier(BDistilClassifier("precomputed", **SMALL), cv=3)
    early.fit(X, y, teacher_scores=scores)
    assert early.score(X, y) > 0.6
    with pytest.raises(ValueError, match=r"passes \['teacher_scores'\] to the fit of"):
        EarlyExitClassifier(FrozenEstimator(early.estimator_)).fit(
            X, y, teacher_scores=scores
        )


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


def test_pickle(clf, digits):
    early = calibrated(clf, digits)
    loaded = pickle.loads(pickle.dumps(early))
    assert_array_equal(
        loaded.decision_function(digits[4]), early.decision_function(digits[4])
    )


def test_failed_fit_keeps_what_was_fitted(clf, digits):
    early = calibrated(clf, digits)
    before = early.predict(digits[4])
    with pytest.raises(ValueError, match="'max_drop' parameter of EarlyExitClassifier"):
        early.set_params(max_drop=1.5).fit(*digits[2:4])
    early.set_params(max_drop=0.1)
    with pytest.raises(ValueError, match="have labels"):
        early.fit(digits[2], np.full(600, 77))
    assert_array_equal(early.predict(digits[4]), before)


# What cannot work


@pytest.mark.parametrize("max_drop", [-0.1, 1, 2, "small", np.nan])
def test_bad_max_drop(clf, digits, max_drop):
    with pytest.raises(ValueError, match=r"'max_drop' parameter .* in the range \[0"):
        calibrated(clf, digits, max_drop=max_drop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "luck"}, "'rule' parameter of EarlyExitClassifier must be one of"),
        ({"target": "f1"}, "'target' parameter of EarlyExitClassifier must be"),
        ({"delta": 0.0}, "'delta' parameter of EarlyExitClassifier must be"),
        ({"delta": 0.1, "max_cost": 5.0}, "'delta' and 'max_cost' of EarlyExitClass"),
        ({"cost": "joule"}, "unit of cost must be one of"),
        ({"thresholds": "mine"}, "'thresholds' parameter of EarlyExitClassifier must"),
    ],
)
def test_bad_parameters(clf, digits, options, message):
    with pytest.raises(ValueError, match=message):
        calibrated(clf, digits, **options)


def test_estimator_without_stages(binary):
    X, y = binary
    with pytest.raises(
        TypeError, match="LogisticRegression, inside FrozenEstimator, h"
    ):
        EarlyExitClassifier(FrozenEstimator(LogisticRegression().fit(X, y))).fit(X, y)
    with pytest.raises(TypeError, match="LogisticRegression has no stages"):
        EarlyExitClassifier(LogisticRegression()).fit(X, y)
    boosting = AdaBoostClassifier(n_estimators=2)
    with pytest.raises(TypeError, match="must be a BDistilClassifier, or a pipeline"):
        EarlyExitClassifier(boosting).fit(X, y)
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
    with pytest.raises(ValueError, match="needs calibration rows"):
        EarlyExitClassifier(FrozenEstimator(clf)).fit(digits[2][:0], digits[3][:0])


def test_unseen_class(clf, digits):
    y = digits[3].copy()
    y[:3] = 11
    with pytest.raises(ValueError, match=r"have labels \[11\] that the estimator does"):
        EarlyExitClassifier(FrozenEstimator(clf)).fit(digits[2], y)


def test_scores_that_are_not_finite(clf, digits):
    broken = clf[:]
    broken.ensemble_.students[1].head.bias.data[0] = np.inf
    with pytest.raises(ValueError, match="needs finite scores"):
        calibrated(broken, digits)
