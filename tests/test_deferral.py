"""Deferral to a final model: thresholds, answers, files, exports and audits."""

import copy
import json
import pickle
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_dict_unchanged,
    check_estimators_overwrite_params,
    check_estimators_pickle,
    check_fit2d_1sample,
    check_methods_sample_order_invariance,
    check_methods_subset_invariance,
    check_parameters_default_constructible,
)

import common
from common import raises
from skbdistil import BDistilClassifier
from skbdistil._exit_calibration import (
    ExitPath,
    certified_point,
    exit_path,
    first_point,
)
from skbdistil._exit_rules import exit_stages
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import (
    DeferralError,
    DriftWarning,
    InvalidFileError,
    NothingCertifiedWarning,
)
from skbdistil.export import to_onnx
from skbdistil.monitoring import DeferralMonitor
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

N_STUDENTS = 3
NAMES = np.array(["a", "b", "c"])
RISKS = ["marginal", "selective"]
TARGETS = ["agreement", "accuracy", "error"]


class Teacher:
    """A model behind a call, which counts what it is asked."""

    def __init__(self, model):
        self.model = model
        self.asked = []

    def __call__(self, rows):
        self.asked.append(rows)
        return self.model.predict(np.asarray(rows))


@pytest.fixture(scope="module")
def rows():
    X, y = make_classification(
        2400, 8, n_informative=6, n_classes=3, flip_y=0.05, random_state=0
    )
    y = NAMES[y]
    cuts = [600, 1500]
    return [*zip(np.split(X, cuts), np.split(y, cuts), strict=True)]


@pytest.fixture(scope="module")
def model(rows):
    return ExtraTreesClassifier(30, min_samples_leaf=2, random_state=0).fit(*rows[0])


@pytest.fixture(scope="module")
def clf(rows, model):
    return BDistilClassifier(
        FrozenEstimator(model),
        **{
            **common.SMALL,
            "student": partial(MLP, hidden=(8,)),
            "n_estimators": N_STUDENTS,
            "max_epochs": 8,
        },
    ).fit(*rows[0])


@pytest.fixture
def teacher(model):
    return Teacher(model)


def deferring(clf, final, rows, **params):
    params = {"max_drop": 0.08, "delta": 0.1, "final_cost": 1e5} | params
    early = EarlyExitClassifier(
        FrozenEstimator(clf), final=final, random_state=0, **params
    )
    return early.fit(*rows[1])


@pytest.fixture(scope="module")
def early(clf, model, rows):
    return deferring(clf, FrozenEstimator(model), rows)


# The choice of the thresholds


def a_path(n_answered, n_losses, n=1000):
    """Points with so many local answers, and losses among them."""
    share = np.array([0, *n_answered]) / n
    return ExitPath(
        thresholds=np.arange(len(share))[:, np.newaxis],
        costs=2 - share,
        scores=np.ones(len(share)),
        losses=np.array([0, *n_losses]) / n,
        exits=np.column_stack([share, 1 - share]),
    )


def test_selective_risk_is_tested_given_the_number_answered():
    path = a_path([100, 200, 400], [1, 5, 30])
    passes = [binom.cdf(k, m, 0.05) <= 0.1 for m, k in ((100, 1), (200, 5), (400, 30))]
    assert passes == [True, True, False] or passes == [True, False, False]
    expected = passes.index(False)
    args = path, 1000, 0.05, 0.1
    assert certified_point(*args, risk="selective", first=1) == expected
    # By the marginal risk, 30 losses in 1000 rows are few.
    assert certified_point(*args) == 3


def test_selective_sequence_begins_with_the_surest_point():
    path = a_path([10, 20, 60, 120, 500], [0, 0, 0, 0, 15])
    surest = binom.cdf(path.losses * 1000, path.exits[:, 0] * 1000, 0.05).argmin()
    assert first_point(path, 1000, 0.05, "selective") == surest == 4
    assert first_point(path, 1000, 0.05, "marginal") == 1
    assert certified_point(path, 1000, 0.05, 0.1, risk="selective", first=4) == 5
    # A sequence that begins with few answers ends there.
    assert certified_point(path, 1000, 0.05, 0.1, risk="selective") == 0


def test_selective_sequence_of_too_few_answers_certifies_nothing():
    path = a_path([10, 20], [0, 0])
    first = first_point(path, 1000, 0.05, "selective")
    assert certified_point(path, 1000, 0.05, 0.1, risk="selective", first=first) == 0


@pytest.mark.parametrize("thresholds", ["shared", "stage"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("risk", RISKS)
def test_path_has_the_losses_that_are_named(clf, model, rows, target, risk, thresholds):
    early = deferring(
        clf, model, rows, target=target, risk=risk, thresholds=thresholds, max_drop=0.2
    )
    X, y = rows[2]
    local = np.array([*clf.staged_predict(X), model.predict(X)])
    path = early.exit_path(X, y)
    assert path.exits.shape[1] == N_STUDENTS + 1
    assert early.best_index_ > 0
    stages = early.exit_stages(X)
    labels = local[stages - 1, np.arange(len(X))]
    is_local = stages <= N_STUDENTS
    is_lost = {
        "agreement": labels != local[-1],
        "accuracy": (labels != y) & (local[-1] == y),
        "error": labels != y,
    }[target] & is_local
    chosen = early.best_index_
    assert_allclose(path.losses[chosen], is_lost.mean())
    assert_allclose(path.scores[chosen], (labels == y).mean())
    assert_allclose(path.exits[chosen, -1], (~is_local).mean())
    # All rows deferred: as good as the final model, and nothing lost.
    assert path.losses[0] == 0
    assert path.exits[0, -1] == 1
    assert_allclose(path.scores[0], (local[-1] == y).mean())


def test_without_final_nothing_changes(clf, rows):
    params = {"max_drop": 0.05, "delta": 0.1, "random_state": 0}
    early = EarlyExitClassifier(FrozenEstimator(clf), **params).fit(*rows[1])
    assert early.thresholds_.shape == (N_STUDENTS - 1,)
    assert early.costs_.shape == (N_STUDENTS,)
    assert early.exit_stages(rows[2][0]).max() == N_STUDENTS
    assert early.final_ is None
    early.set_params(final=Teacher(None))  # not of this fit
    early.predict(rows[2][0])


@pytest.mark.parametrize("params", [{"delta": 0.1}, {"delta": None}])
@pytest.mark.parametrize("risk", RISKS)
def test_all_rows_deferred_is_nothing_certified(clf, rows, risk, params):
    def contrary(X):
        # Never what the students say.
        return NAMES[(np.searchsorted(NAMES, clf.predict(X)) + 1) % 3]

    with pytest.warns(NothingCertifiedWarning, match="certify no local answer"):
        early = deferring(
            clf, contrary, rows, max_drop=0.01, risk=risk, rule="patience", **params
        )
    assert early.best_index_ == 0
    assert np.isinf(early.thresholds_).all()
    assert (early.exit_stages(rows[2][0]) == N_STUDENTS + 1).all()


def test_max_cost_below_the_final_model_answers_locally(clf, model, rows):
    early = deferring(clf, model, rows, delta=None, max_cost=5e4)
    _, costs = early.predict_with_cost(rows[1][0])
    assert costs.mean() <= 5e4
    assert 0 < (costs == early.costs_[-1]).mean() < 0.5


def test_single_student_defers(clf, model, rows):
    one = copy.copy(clf).set_params(n_stages=1)
    early = deferring(one, model, rows, max_drop=0.3)
    assert set(early.exit_stages(rows[2][0])) == {1, 2}


def test_folds_defer(model, rows, clf):
    early = EarlyExitClassifier(
        clone(clf), cv=2, final=FrozenEstimator(model), final_cost=1e5, max_drop=0.2
    ).fit(*rows[0])
    assert early.exit_stages(rows[2][0]).max() == N_STUDENTS + 1


# Predictions


def test_deferred_rows_have_the_answers_of_final_in_one_call(clf, teacher, model, rows):
    early = deferring(clf, teacher, rows)
    teacher.asked.clear()
    X = pd.DataFrame(rows[2][0], columns=[f"x{i}" for i in range(8)])
    labels = early.predict(X.to_numpy())
    is_deferred = early.exit_stages(X.to_numpy()) > N_STUDENTS
    assert 0 < is_deferred.mean() < 1
    (asked,) = teacher.asked
    assert_array_equal(asked, X[is_deferred])
    assert_array_equal(labels[is_deferred], model.predict(asked))
    for stage in range(1, N_STUDENTS + 1):
        left = early.exit_stages(X.to_numpy()) == stage
        shorter = copy.copy(clf).set_params(n_stages=stage)
        assert_array_equal(labels[left], shorter.predict(X.to_numpy()[left]))
    again, costs = early.predict_with_cost(X.to_numpy())
    assert_array_equal(again, labels)
    assert_allclose(early.costs_[-1], early.costs_[-2] + 1e5)
    assert_array_equal(costs == early.costs_[-1], is_deferred)
    # One row, or none that is deferred.
    for is_one in (is_deferred, ~is_deferred):
        row = X.to_numpy()[is_one][:1]
        teacher.asked.clear()
        assert early.predict(row) == labels[is_one][0]
        assert len(teacher.asked) == is_one[is_deferred].any()


def test_final_gets_frames(rows, clf, teacher):
    named = [(pd.DataFrame(X, columns=[f"x{i}" for i in range(8)]), y) for X, y in rows]
    pipeline = make_pipeline(StandardScaler(), clone(clf).set_params(max_epochs=2))
    pipeline.fit(*named[0])
    early = deferring(pipeline, teacher, named, max_drop=0.3)
    assert list(early.feature_names_in_) == list(named[0][0].columns)
    teacher.asked.clear()
    early.predict(named[2][0])
    is_deferred = early.exit_stages(named[2][0]) > N_STUDENTS
    pd.testing.assert_frame_equal(teacher.asked[0], named[2][0][is_deferred])


def test_scores_of_classes_are_not_available(early):
    for method in ("predict_proba", "decision_function"):
        assert not hasattr(early, method)
        with pytest.raises(AttributeError, match=method):
            getattr(early, method)
    with pytest.raises(AttributeError, match="labels only"):
        early.anytime(np.zeros((1, 8)), "predict_proba")


def test_anytime_ends_with_the_final_model(early, clf, rows):
    X = rows[2][0]
    found = list(early.anytime(X))
    assert len(found) == N_STUDENTS + 1
    assert_array_equal(found[-1], early.predict(X))
    assert (found[-2] != found[-1]).any()


def test_predict_within_does_not_ask(clf, teacher, rows):
    early = deferring(clf, teacher, rows)
    teacher.asked.clear()
    labels = early.predict_within(rows[2][0], seconds=60)
    proba = early.predict_within(rows[2][0], seconds=60, method="predict_proba")
    assert_array_equal(NAMES[proba.argmax(axis=1)], labels)
    assert not teacher.asked


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda X: 1 / 0, "ZeroDivisionError"),
        (lambda X: ["d"] * len(X), "not among the classes ['a', 'b', 'c']: 'd'"),
        (lambda X: [0] * len(X), "not among the classes"),
        (lambda X: ["a"], "one label per row"),
        (lambda X: [["a"]] * len(X), "one label per row"),
    ],
)
def test_failure_of_final_keeps_the_local_answers(clf, teacher, rows, answer, what):
    early = deferring(clf, teacher, rows)
    good = early.predict(rows[2][0])
    early.final_ = answer
    with raises("of 900 rows", what, error=DeferralError) as caught:
        early.predict(rows[2][0])
    is_deferred = early.exit_stages(rows[2][0]) > N_STUDENTS
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert_array_equal(error.is_asked, is_deferred)
        assert_array_equal(error.labels[~is_deferred], good[~is_deferred])
        assert len(error.labels) == 900


def test_failure_of_final_in_fit_keeps_the_earlier_fit(clf, teacher, rows):
    early = deferring(clf, teacher, rows)
    before = vars(early).copy()
    early.set_params(final=lambda X: ["d"] * len(X))
    with raises("not among the classes"):
        early.fit(*rows[1])
    del before["final"]
    assert {name: vars(early)[name] for name in before} == before


# Parameters


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"final_cost": None}, "needs 'final_cost'"),
        ({"final": None}, "'final_cost' parameter of EarlyExitClassifier"),
        ({"final": None, "final_cost": None, "risk": "selective"}, "'risk' parameter"),
        ({"final": None, "final_cost": None, "target": "error"}, "needs a 'final'"),
        ({"final_cost": -1}, "'final_cost' parameter"),
        ({"risk": "mean"}, "'risk' parameter"),
        ({"max_drop": 0.001}, "it needs at least 3453"),
    ],
)
def test_parameters_that_do_not_fit_raise(clf, model, rows, params, message):
    with raises(message):
        deferring(clf, **{"final": model, "rows": rows} | params)


@pytest.mark.parametrize("final", [3, "teacher", LogisticRegression])
def test_final_that_cannot_answer_raises(clf, rows, final):
    with raises("'final' parameter of EarlyExitClassifier", error=TypeError):
        deferring(clf, final, rows)


def test_final_that_is_not_fitted_raises(clf, rows):
    for final in (LogisticRegression(), FrozenEstimator(LogisticRegression())):
        with raises("must be fitted", "FrozenEstimator", error=NotFittedError):
            deferring(clf, final, rows)


@pytest.mark.parametrize("target", ["accuracy", "error"])
def test_target_without_labels_raises(clf, model, rows, target):
    early = EarlyExitClassifier(
        FrozenEstimator(clf), final=model, final_cost=1, target=target
    )
    with raises("requires y"):
        early.fit(rows[1][0])


class Learning:
    """A final model that learns with the estimator, for the checks of scikit-learn."""

    def __init__(self):
        self.model = None

    def __call__(self, X):
        return self.model.predict(X)

    def __deepcopy__(self, memo):
        return self


LEARNING = Learning()


class Taught(EarlyExitClassifier):
    """Fits its final model, which otherwise comes fitted."""

    def fit(self, X, y=None, **params):
        LEARNING.model = DummyClassifier(strategy="most_frequent").fit(
            np.zeros((len(y), 1)), y
        )
        return super().fit(X, y, **params)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.NothingCertifiedWarning")
@pytest.mark.parametrize(
    "check",
    [
        check_dict_unchanged,
        check_estimators_overwrite_params,
        check_estimators_pickle,
        check_fit2d_1sample,
        check_methods_sample_order_invariance,
        check_methods_subset_invariance,
        check_parameters_default_constructible,
    ],
)
def test_estimator_check(check):
    small = {**common.SMALL, "n_estimators": 2}
    check("Taught", Taught(BDistilClassifier(**small), final=LEARNING, final_cost=1.0))


def test_search_and_clone_keep_a_frozen_final(clf, model, rows):
    early = EarlyExitClassifier(
        FrozenEstimator(clf), final=FrozenEstimator(model), final_cost=1e5
    )
    search = GridSearchCV(early, {"max_drop": [0.02, 0.2]}, cv=2).fit(*rows[1])
    assert search.best_estimator_._defers()
    deferred = [
        clone(early).set_params(max_drop=max_drop).fit(*rows[1]).path_.exits[:, -1]
        for max_drop in (0.02, 0.2)
    ]
    assert_array_equal(*deferred)
    assert "final__estimator" in early.get_params()


# Files


def test_pickle_has_the_final_model(early, rows):
    again = pickle.loads(pickle.dumps(early))
    assert_array_equal(again.predict(rows[2][0]), early.predict(rows[2][0]))


def test_file_lacks_the_final_model_and_says_so(early, model, rows, tmp_path):
    save(early, tmp_path / "early.skb")
    loaded = load(tmp_path / "early.skb")
    X = rows[2][0]
    assert loaded.final is None
    for call in (
        loaded.predict,
        loaded.predict_with_cost,
        loaded.anytime,
        loaded.exit_path,
        lambda X: loaded.audit(X, DeferralMonitor(0.08)),
    ):
        with raises("set_params(final=...)", error=NotFittedError):
            call(X)
    assert not hasattr(loaded, "predict_proba")
    assert_array_equal(loaded.exit_stages(X), early.exit_stages(X))
    loaded.set_params(final=model)
    assert_array_equal(loaded.predict(X), early.predict(X))
    for name in ("thresholds_", "costs_", "best_index_", "risk", "final_cost"):
        assert_array_equal(getattr(loaded, name), getattr(early, name))
    save(loaded, tmp_path / "again.skb")  # and once more


# Exports


@pytest.fixture(scope="module")
def exported(early, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deferral") / "export"
    to_onnx(early, folder, fixed_stage=N_STUDENTS)
    return folder


def test_session_defers_as_the_estimator(early, exported, model, rows):
    teacher = Teacher(model)
    session = ProgressiveSession(exported, final=teacher)
    frame = pd.DataFrame(rows[2][0])
    assert_array_equal(session.predict(frame), early.predict(rows[2][0]))
    (asked,) = teacher.asked
    stages = session.exit_stages(rows[2][0])
    assert_array_equal(stages, early.exit_stages(rows[2][0]))
    pd.testing.assert_frame_equal(asked, frame[stages > N_STUDENTS])
    session.predict_within(rows[2][0], seconds=60)
    session.predict_within(rows[2][0], seconds=60, method="predict_proba")
    for method in ("predict_proba", "decision_function"):
        with raises("labels only", method, error=AttributeError):
            getattr(session, method)(rows[2][0])
    assert len(teacher.asked) == 1
    deferral = session.manifest["early_exit"]["deferral"]
    assert session.manifest["schema_version"] == 2
    assert deferral["threshold"] == early.thresholds_[-1]
    assert deferral["cost"] == early.costs_[-1]
    assert deferral["share"] == early.path_.exits[early.best_index_, -1]
    assert (deferral["max_drop"], deferral["delta"]) == (0.08, 0.1)


def test_session_is_pickled_with_its_final(exported, model, rows):
    session = ProgressiveSession(exported, final=model)
    again = pickle.loads(pickle.dumps(session))
    assert_array_equal(again.predict(rows[2][0]), session.predict(rows[2][0]))


def test_session_without_final_raises(exported, clf, model, rows):
    with raises("pass ProgressiveSession(..., final=...)"):
        ProgressiveSession(exported)
    with raises("'final' parameter of ProgressiveSession", error=TypeError):
        ProgressiveSession(exported, final=3)
    with raises("all its 3 stages"):
        ProgressiveSession(exported, final=model, n_stages=2)
    local = ProgressiveSession(exported, early_exit=False)
    assert_array_equal(local.predict(rows[2][0]), clf.predict(rows[2][0]))
    with raises("defers none"):
        ProgressiveSession(exported, early_exit=False, final=model)
    with raises("no final model"):
        local.audit(rows[2][0], DeferralMonitor(0.08))


def test_session_failure_keeps_the_local_answers(exported, early, rows):
    session = ProgressiveSession(exported, final=lambda X: 1 / 0)
    with raises("ZeroDivisionError", error=DeferralError) as caught:
        session.predict(rows[2][0])
    is_deferred = early.exit_stages(rows[2][0]) > N_STUDENTS
    assert_array_equal(caught.value.is_asked, is_deferred)


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", "high"), ("risk", "mean"), ("target", 3), ("threshold", None)],
)
def test_session_checks_the_deferral(exported, model, rows, tmp_path, key, value):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["early_exit"]["deferral"][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    if value is None:
        session = ProgressiveSession(tmp_path, final=model)
        assert session.exit_stages(rows[2][0]).max() == N_STUDENTS + 1
        return
    with raises(key, error=InvalidFileError):
        ProgressiveSession(tmp_path, final=model)


# Audits


def test_audit_predicts_and_counts(early, exported, model, rows):
    X = rows[2][0]
    is_local = early.exit_stages(X) <= N_STUDENTS
    local = clf_answers(early, X)
    session = ProgressiveSession(exported, final=model)
    before = pickle.dumps(early)
    for predictor in (early, session):
        monitor = DeferralMonitor(0.08, audit=0.3, random_state=1)
        drawn = DeferralMonitor(0.08, audit=0.3, random_state=1).draw(len(X))
        labels = predictor.audit(X, monitor)
        final = model.predict(X)
        assert_array_equal(labels, np.where(drawn | ~is_local, final, local))
        assert monitor.n_audited_ == drawn.sum()
        assert monitor.n_losses_ == (drawn & is_local & (local != final)).sum()
    assert pickle.dumps(early) == before


def clf_answers(early, X):
    """Local answers, those with which rows leave."""
    stages = np.minimum(early.exit_stages(X), N_STUDENTS)
    staged = np.array(list(early.estimator_.estimator.staged_predict(X)))
    return staged[stages - 1, np.arange(len(X))]


@pytest.mark.parametrize("target", ["accuracy", "error"])
def test_selective_audit_counts_local_answers_only(clf, model, rows, target):
    max_drop = {"accuracy": 0.1, "error": 0.2}[target]
    params = {"target": target, "risk": "selective", "max_drop": max_drop}
    early = deferring(clf, model, rows, **params)
    X, y = rows[2]
    monitor = DeferralMonitor(max_drop, risk="selective", audit=1.0)
    assert_array_equal(early.audit(X, monitor, y), model.predict(X))
    is_local = early.exit_stages(X) <= N_STUDENTS
    assert 0 < is_local.sum() < len(X)
    is_lost = is_local & (clf_answers(early, X) != y)
    if target == "accuracy":
        is_lost &= model.predict(X) == y
    assert (monitor.n_audited_, monitor.n_losses_) == (is_local.sum(), is_lost.sum())
    with raises("needs 'y'"):
        early.audit(X, monitor)
    with raises("one label per row"):
        early.audit(X, monitor, y[:-1])
    n_audited = monitor.n_audited_
    with raises("labels such as", "strings are never equal to numbers"):
        early.audit(X, monitor, np.arange(len(y)))
    for missing in (np.nan, None):
        with_gap = y.astype(object)
        with_gap[-1] = missing
        with raises("An audited row has no label"):
            early.audit(X, monitor, with_gap)
    assert monitor.n_audited_ == n_audited
    with raises("marginal risk", "selective one"):
        early.audit(X, DeferralMonitor(0.2), y)
    with raises("must be a DeferralMonitor", error=TypeError):
        early.audit(X, None, y)


def test_audit_that_fails_counts_nothing(clf, teacher, rows):
    early = deferring(clf, teacher, rows)
    early.final_ = lambda X: 1 / 0
    monitor = DeferralMonitor(0.08, audit=0.5)
    with pytest.raises(DeferralError):
        early.audit(rows[2][0], monitor)
    assert monitor.n_audited_ == 0


def test_audit_without_final_raises(clf, rows):
    early = EarlyExitClassifier(FrozenEstimator(clf)).fit(rows[1][0])
    with raises("no final model"):
        early.audit(rows[2][0], DeferralMonitor(0.08))


def test_drift_is_found_and_falls_back(clf, model, rows):
    early = deferring(clf, model, rows)
    X = rows[2][0][np.argsort(early.exit_stages(rows[2][0]))][:300]  # all local
    # The teacher has changed its mind.
    early.final_ = lambda X: NAMES[(np.searchsorted(NAMES, model.predict(X)) + 1) % 3]
    monitor = DeferralMonitor(0.08, audit=0.2, on_drift="defer", random_state=0)
    with pytest.warns(DriftWarning, match="All rows passed to audit go to the final"):
        labels = early.audit(X, monitor)
    assert monitor.drift_
    assert (labels != early.final_(X)).any()
    n_audited = monitor.n_audited_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(early.audit(X, monitor), early.final_(X))
    assert monitor.n_audited_ == n_audited
    assert pickle.loads(pickle.dumps(monitor)).drift_


# The monitor


def test_evidence_has_mean_one_at_the_promise():
    # Over all sequences of eight rows, weighted by their probabilities.
    means = []
    for p in (0.3, 0.2):
        mean = 0
        for code in range(2**8):
            losses = code >> np.arange(8) & 1
            monitor = DeferralMonitor(0.3, delta=1e-9)
            monitor.update(losses)
            mean += monitor.e_value_ * np.prod(np.where(losses, p, 1 - p))
        means.append(mean)
    assert_allclose(means[0], 1)
    assert means[1] < 1


def test_monitor_alarms_no_more_often_than_promised_under_continuous_watch():
    rng = np.random.default_rng(0)
    n_runs, delta = 60, 0.2
    alarms = missed = 0
    for _ in range(n_runs):
        monitor = DeferralMonitor(0.1, delta)
        missed_once = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DriftWarning)
            for losses in np.split(rng.random(600) < 0.1, 60):
                monitor.update(losses)
                low, high = monitor.interval()
                missed_once |= not low <= 0.1 <= high
        alarms += monitor.drift_
        missed += missed_once
    allowed = binom.ppf(0.999, n_runs, delta)
    assert alarms <= allowed
    assert missed <= allowed


def test_monitor_finds_a_late_drift():
    rng = np.random.default_rng(0)
    monitor = DeferralMonitor(0.05)
    monitor.update(rng.random(2000) < 0.02)
    assert not monitor.drift_
    with pytest.warns(DriftWarning, match="Calibrate again"):
        monitor.update(rng.random(300) < 0.2)
    # All rows together hardly tell.
    assert monitor.interval()[0] < 0.05


def test_interval_holds_the_share_and_shrinks():
    monitor = DeferralMonitor(0.5)
    assert monitor.interval() == (0, 1)
    widths = []
    for _ in range(3):
        monitor.update(np.arange(400) % 10 == 0)
        low, high = monitor.interval()
        assert low < 0.1 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_monitor_that_sees_only_losses_has_a_finite_logarithm():
    monitor = DeferralMonitor(1e-6)
    with pytest.warns(DriftWarning):
        monitor.update(np.ones(2000, dtype=bool))
    assert monitor.e_value_ == np.inf
    assert monitor.interval()[0] > 0.9


def test_repr_of_a_monitor_makes_its_like():
    monitor = DeferralMonitor(0.05, risk="selective", audit=0.5, random_state=3)
    assert repr(monitor) == (
        "DeferralMonitor(0.05, 0.1, risk='selective', audit=0.5, on_drift='warn', "
        "random_state=3)"
    )
    assert_array_equal(eval(repr(monitor)).draw(9), monitor.draw(9))


def test_drawn_rows_are_a_share():
    monitor = DeferralMonitor(0.1, audit=0.25, random_state=0)
    assert abs(monitor.draw(10_000).mean() - 0.25) < 0.02
    assert monitor.draw(0).shape == (0,)


@pytest.mark.parametrize(
    "params",
    [
        {"max_drop": 0},
        {"max_drop": 1},
        {"delta": 1.0},
        {"delta": None},
        {"audit": 0},
        {"audit": 1.1},
        {"audit": np.nan},
        {"risk": "mean"},
        {"on_drift": "raise"},
        {"random_state": -1},
        {"random_state": "0"},
    ],
)
def test_monitor_with_bad_parameter_raises(params):
    (name,) = params
    with raises(f"{name!r} parameter of DeferralMonitor"):
        DeferralMonitor(**{"max_drop": 0.1} | params)


@pytest.mark.parametrize("losses", [[0.5], [[True]], True, [np.nan]])
def test_monitor_with_bad_losses_raises(losses):
    monitor = DeferralMonitor(0.1)
    with raises("one truth value per row"):
        monitor.update(losses)
    assert monitor.n_audited_ == 0


def test_exit_path_of_all_points_matches_exit_stages():
    rng = np.random.default_rng(0)
    values = rng.random((3, 50))
    thresholds = np.sort(rng.random((4, 3)), axis=0)[::-1]
    losses = np.vstack([rng.random((3, 50)) < 0.2, np.zeros((1, 50), bool)])
    path = exit_path(thresholds, values, losses, ~losses, np.arange(1.0, 5))
    for point, threshold in enumerate(thresholds):
        stages = exit_stages(values, threshold)
        assert_allclose(path.costs[point], stages.mean())
        assert_allclose(path.exits[point, -1], (stages == 4).mean())
