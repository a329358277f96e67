"""Stages of estimators of the package and of scikit-learn, bare and wrapped."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import is_classifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer, make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.costs import Latency
from skbdistil.stages import (
    UNITS,
    _final_estimator,
    _n_stages_used,
    _stage_views,
    stage_cost,
    stage_latency,
    staged,
)

N_STAGES = SMALL["n_estimators"]
COUNTED = [unit for unit in UNITS if unit != "latency"]


@pytest.fixture(scope="module")
def reg(data):
    return BDistilRegressor(Ridge(), **SMALL).fit(*data)


def boostings(kind):
    if kind == "classifier":
        return [
            AdaBoostClassifier(n_estimators=N_STAGES),
            GradientBoostingClassifier(n_estimators=N_STAGES),
            HistGradientBoostingClassifier(max_iter=N_STAGES),
        ]
    return [
        AdaBoostRegressor(n_estimators=N_STAGES),
        GradientBoostingRegressor(n_estimators=N_STAGES),
        HistGradientBoostingRegressor(max_iter=N_STAGES),
    ]


SKLEARN = [*boostings("classifier"), *boostings("regressor")]


def wrapped(estimator):
    """Fitted wrappers that predict as the fitted estimator, with its stages."""
    frozen = FrozenEstimator(estimator)
    identity = FunctionTransformer()
    search = GridSearchCV(frozen, {})
    search.best_estimator_ = frozen
    return {
        "frozen": frozen,
        "pipeline": Pipeline([("same", identity), ("last", estimator)]),
        "pipeline of one": make_pipeline(estimator),
        "frozen pipeline": FrozenEstimator(make_pipeline(identity, estimator)),
        "search": search,
    }


WRAPPERS = [
    "frozen",
    "pipeline",
    "pipeline of one",
    "frozen pipeline",
    "search",
]


# Predictions


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_give_the_stages_of_what_is_inside(clf, data, wrapper, method):
    outer = wrapped(clf)[wrapper]
    expected = list(getattr(clf, f"staged_{method}")(data[0]))
    found = list(staged(outer, data[0], method))
    assert_array_equal(found, expected)
    assert len(found) == N_STAGES
    assert _final_estimator(outer) is clf


def test_regressor(reg, data):
    assert_array_equal(list(staged(reg, data[0])), list(reg.staged_predict(data[0])))


def test_fitted_search(data):
    X, y = data
    search = GridSearchCV(
        make_pipeline(StandardScaler(), BDistilClassifier(**SMALL)),
        {"bdistilclassifier__max_epochs": [1, 2]},
        cv=2,
    ).fit(X, y)
    *_, last = staged(search, X, "predict_proba")
    assert_array_equal(last, search.predict_proba(X))


@pytest.mark.parametrize("boosting", SKLEARN, ids=lambda e: type(e).__name__)
def test_boosting_of_scikit_learn(boosting, data):
    X, y = data
    boosting.fit(X, y)
    found = list(staged(boosting, X))
    assert_array_equal(found, list(boosting.staged_predict(X)))
    assert_array_equal(found[-1], boosting.predict(X))


def test_transforms_run_once(clf, data):
    calls = []

    def transform(X):
        calls.append(len(X))
        return 2 * X

    pipeline = make_pipeline(FunctionTransformer(transform), clf)
    found = list(staged(pipeline, data[0]))
    assert calls == [len(data[0])]
    assert_array_equal(found, list(clf.staged_predict(2 * data[0])))


def test_stages_in_use_only(data):
    clf = BDistilClassifier(LogisticRegression(), **SMALL).fit(*data)
    clf.set_params(n_stages=2)
    assert len(list(staged(clf, data[0]))) == 2
    assert len(_stage_views(clf, data[0])) == 2
    # A curve may be cut to them; the budget is asked for all.
    assert len(stage_cost(clf)) == N_STAGES


def test_estimator_without_stages(data):
    forest = RandomForestClassifier(n_estimators=2).fit(*data)
    message = "RandomForestClassifier has no stages: it has no method 'staged_predict'"
    for function in (staged, stage_latency, _stage_views):
        with pytest.raises(TypeError, match=message):
            function(forest, data[0])
    with pytest.raises(TypeError, match=message):
        stage_cost(forest)
    message = "RandomForestClassifier, inside Pipeline, has no stages"
    with pytest.raises(TypeError, match=message):
        staged(make_pipeline(StandardScaler(), forest), data[0])


def test_method_without_stages(reg, data):
    with pytest.raises(TypeError, match="BDistilRegressor has no stages of 'predict_"):
        staged(reg, data[0], "predict_proba")


def test_unknown_method(clf, data):
    with pytest.raises(
        ValueError, match=r"'method' must be one of \['predict', .* Got"
    ):
        staged(clf, data[0], "transform")


def test_unfitted():
    with pytest.raises(NotFittedError):
        staged(BDistilClassifier(), [[0.0]])
    with pytest.raises(NotFittedError):
        staged(GridSearchCV(BDistilClassifier(), {}), [[0.0]])


def test_search_without_refit(data):
    search = GridSearchCV(
        BDistilClassifier(**SMALL), {"max_epochs": [1]}, cv=2, refit=False
    ).fit(*data)
    with pytest.raises(ValueError, match="GridSearchCV has no best estimator"):
        staged(search, data[0])


# Costs


@pytest.mark.parametrize("unit", COUNTED)
def test_counted_cost(clf, unit):
    costs = stage_cost(clf, unit)
    assert_array_equal(costs, np.cumsum(getattr(clf.stage_costs_, unit)))
    assert (np.diff(costs) > 0).all()
    for outer in wrapped(clf).values():
        assert_array_equal(stage_cost(outer, unit), costs)
    assert_array_equal(stage_cost(clf[:2], unit), costs[:2])


def test_cost_of_your_own(clf, data):
    def energy(estimator):
        assert estimator is clf
        return 3e-12 * estimator.stage_costs_.cumulative_macs

    expected = 3e-12 * stage_cost(clf)
    assert_array_equal(stage_cost(make_pipeline(clf), energy), expected)
    boosting = AdaBoostClassifier(n_estimators=N_STAGES).fit(*data)
    euros = [0.1, 0.2, 0.3]
    assert_array_equal(stage_cost(boosting, lambda estimator: euros), euros)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([], "'costs' must be one number for each of at least one stage"),
        ([1, 2], r"'costs' has 2 value\(s\) for 3 stage\(s\)"),
        ([1, np.nan, 3], "'costs' must be finite and not negative"),
        ([-1, 2, 3], "'costs' must be finite and not negative"),
        ([1, 3, 2], "'costs' must be cumulative"),
    ],
)
def test_bad_costs_of_your_own(clf, costs, message):
    with pytest.raises(ValueError, match=message):
        stage_cost(clf, lambda estimator: costs)


def test_operations_that_could_not_be_counted(clf):
    clf = copy.copy(clf)
    known = clf.stage_costs_.macs
    macs = np.where([False, True, False], np.nan, known)
    clf.stage_costs_ = replace(clf.stage_costs_, macs=macs)
    match = (
        r"The costs of BDistilClassifier in 'macs' are not known: the operations of "
        r"stage 2 could not be counted\. Use another unit, such as 'latency', or a "
        r"callable"
    )
    for budget in (stage_cost, lambda clf: clf.stage_for(1e9)):
        with pytest.raises(ValueError, match=match):
            budget(clf)
    assert_array_equal(stage_cost(clf[:1]), known[:1])
    assert stage_cost(clf[:1]).dtype == np.int64
    assert_array_equal(stage_cost(clf, lambda clf: [1, 2, 3]), [1, 2, 3])
    assert len(stage_cost(clf, "parameters")) == 3
    with pytest.raises(ValueError, match="Number 2 is not known"):
        stage_cost(clf, lambda clf: 2 * clf.stage_costs_.cumulative_macs)


def test_unknown_unit(clf):
    with pytest.raises(
        ValueError, match=r"must be one of \['macs', .*, 'latency'\] or a callable. Got"
    ):
        stage_cost(clf, "joule")


def test_unit_that_is_not_counted(data):
    boosting = AdaBoostClassifier(n_estimators=2).fit(*data)
    with pytest.raises(
        ValueError, match="'macs' is not counted for AdaBoostClassifier"
    ):
        stage_cost(boosting)


def test_latency_needs_rows(clf):
    with pytest.raises(ValueError, match="'X' must be given for unit='latency'"):
        stage_cost(clf, "latency")


# Latency


@pytest.fixture
def timed(monkeypatch):
    """Clock that counts the rows of predictions instead of seconds, stage by stage."""
    calls = []

    def compare(predicts, X, **options):
        calls.append((predicts, options))
        return [
            Latency(float(k), k - 0.5, k + 0.5, 1, 50, 1, None, "predict")
            # Falls at the end, as noise may.
            for k in [*range(1, len(predicts)), len(predicts) - 2]
        ]

    monkeypatch.setattr("skbdistil.stages.compare_latencies", compare)
    return calls


def test_what_is_timed_predicts_as_the_stages_do(clf, reg, data, timed):
    X, y = data
    estimators = [clf, reg, *(boosting.fit(X, y) for boosting in SKLEARN)]
    for estimator in [
        *estimators,
        *wrapped(clf).values(),
        *wrapped(SKLEARN[0]).values(),
    ]:
        before = estimator.predict(X)
        stage_latency(estimator, X)
        predicts, _ = timed.pop()
        assert_array_equal(
            [predict(X) for predict in predicts], list(staged(estimator, X))
        )
        assert_array_equal(estimator.predict(X), before)


def test_transforms_are_timed(clf, data, timed):
    calls = []
    pipeline = make_pipeline(FunctionTransformer(lambda X: calls.append(1) or X), clf)
    stage_latency(pipeline, data[0])
    predicts, _ = timed.pop()
    for predict in predicts:
        predict(data[0])
    assert len(calls) == N_STAGES


def test_some_stages_are_timed(clf, data, timed):
    latencies = stage_latency(clf, data[0], stages=[1, 3], batch_size=7, n_threads=1)
    assert [latency.what for latency in latencies] == [
        "BDistilClassifier[:1].predict",
        "BDistilClassifier[:3].predict",
    ]
    ((predicts, options),) = timed
    assert len(predicts) == 2
    assert options == {
        "batch_size": 7,
        "n_warmup": 5,
        "n_repeats": 50,
        "n_threads": 1,
    }


@pytest.mark.parametrize("wrap", [lambda clf: clf, make_pipeline, FrozenEstimator])
def test_all_stages_are_timed_where_fewer_are_in_use(clf, data, timed, wrap):
    X = data[0]
    stage_latency(wrap(clf[:].set_params(n_stages=1)), X)
    ((predicts, _),) = timed
    for predict, expected in zip(predicts, clf.staged_predict(X), strict=True):
        assert_array_equal(predict(X), expected)


def test_what_is_timed_has_the_weights_of_the_estimator(clf, data, timed):
    stage_latency(make_pipeline("passthrough", clf), data[0])
    ((predicts, _),) = timed
    for predict in predicts:
        final = _final_estimator(predict.__self__)
        assert final.ensemble_ is clf.ensemble_
    assert clf.n_stages is None


@pytest.mark.parametrize("stages", [[0], [4], [1.5], ["a"], [], 2, [[1, 2]]])
def test_stages_that_are_not_there(clf, data, stages):
    with pytest.raises(
        ValueError, match="'stages' must be a list of numbers of stages from 1 to 3"
    ):
        stage_latency(clf, data[0], stages=stages)


def test_latency_as_cost_never_falls(clf, data, timed):
    assert_array_equal(stage_cost(clf, "latency", X=data[0]), [1, 2, 2])


def test_latency_of_many_stages_is_interpolated(data, timed):
    X, y = data
    boosting = GradientBoostingClassifier(n_estimators=58, max_depth=1).fit(X, y)
    costs = stage_cost(boosting, "latency", X=X)
    ((predicts, _),) = timed
    assert len(predicts) == 20
    assert len(costs) == 58
    # Timed are 1, 4, 7, ..., and what this clock says grows by 1 from one to the next.
    assert_allclose(costs[:52], 1 + np.arange(52) / 3)


def test_measured_latency(clf, data):
    X, _ = data
    latencies = stage_latency(clf, X, n_repeats=30, n_threads=1)
    # Noise apart, more students take longer.
    first, last = latencies[0], latencies[-1]
    assert last.high >= first.low
    assert all(latency.low <= latency.median <= latency.high for latency in latencies)
    costs = stage_cost(clf, "latency", X=X)
    assert costs.shape == (N_STAGES,)
    assert (costs > 0).all()
    assert (np.diff(costs) >= 0).all()


# What a scorer sees

SCORERS = [
    "accuracy",
    "neg_log_loss",
    "roc_auc",
    "neg_brier_score",
    "f1",
    "balanced_accuracy",
]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
def test_scorers_see_the_estimator_cut(clf, data, name, wrapper):
    X, y = data
    outer = clf if wrapper is None else wrapped(clf)[wrapper]
    scorer = get_scorer(name)
    found = [scorer(view, X, y) for view in _stage_views(outer, X)]
    assert_allclose(found, [scorer(clf[:k], X, y) for k in range(1, N_STAGES + 1)])


@pytest.mark.parametrize("boosting", SKLEARN, ids=lambda e: type(e).__name__)
def test_views_of_scikit_learn(boosting, data):
    X, y = data
    boosting.fit(X, y)
    views = _stage_views(boosting, X)
    assert len(views) == N_STAGES
    assert views[-1].score(X, y) == boosting.score(X, y)
    assert is_classifier(views[0]) == is_classifier(boosting)
    assert hasattr(views[0], "predict_proba") == hasattr(boosting, "predict_proba")


def test_own_score_with_weights(clf, reg, data):
    X, y = data
    weight = np.linspace(0, 1, len(X))
    for estimator in (clf, reg):
        found = [
            view.score(X, y, sample_weight=weight)
            for view in _stage_views(estimator, X)
        ]
        assert_allclose(found, list(estimator.staged_score(X, y, sample_weight=weight)))


def test_one_pass_per_method(clf, data, monkeypatch):
    X, y = data
    calls = []
    monkeypatch.setattr(
        "skbdistil.stages.staged",
        lambda estimator, X, method: (
            calls.append(method) or staged(estimator, X, method)
        ),
    )
    for view in _stage_views(clf, X):
        for name in ("accuracy", "f1", "neg_log_loss", "roc_auc"):
            get_scorer(name)(view, X, y)
    assert sorted(calls) == ["decision_function", "predict", "predict_proba"]


def test_scorer_of_some_rows(clf, data):
    X, y = data

    def first_half(estimator, X, y):
        return roc_auc_score(y[:40], estimator.predict_proba(X[:40])[:, 1])

    found = [first_half(view, X, y) for view in _stage_views(clf, X)]
    expected = [first_half(clf[:k], X, y) for k in range(1, N_STAGES + 1)]
    assert_allclose(found, expected)


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
def test_a_view_is_the_estimator_cut(clf, data, wrapper, monkeypatch):
    X = data[0]

    def no_copy(self):
        raise AssertionError("the weights would come from the GPU")

    # By which estimators are copied and stored.
    monkeypatch.setattr(BDistilClassifier, "__getstate__", no_copy)
    outer = clf if wrapper is None else wrapped(clf)[wrapper]
    for stage, view in enumerate(_stage_views(outer, X), start=1):
        assert _n_stages_used(view) == stage
        assert_array_equal(list(staged(view, X)), list(staged(clf, X))[:stage])
        assert len(_stage_views(view, X)) == stage
        final = _final_estimator(view)
        assert type(final) is BDistilClassifier
        assert final.n_stages == stage
        weights = zip(
            final.ensemble_.parameters(), clf.ensemble_.parameters(), strict=True
        )
        assert all(one is other for one, other in weights)
    assert clf.n_stages is None


@pytest.mark.parametrize("boosting", SKLEARN, ids=lambda e: type(e).__name__)
def test_a_view_of_scikit_learn_is_the_ensemble_cut(boosting, data):
    X, y = data
    boosting.fit(X, y)
    for stage, view in enumerate(_stage_views(boosting, X), start=1):
        assert _n_stages_used(view) == stage
        assert_array_equal(list(staged(view, X)), list(staged(boosting, X))[:stage])
    assert _n_stages_used(boosting) == N_STAGES


def test_views_tell_their_stage(clf, data):
    views = _stage_views(clf, data[0])
    assert [view.n_stages for view in views] == [1, 2, 3]
    assert_array_equal(views[0].classes_, clf.classes_)
    assert views[0].n_features_in_ == 6
    with pytest.raises(AttributeError):
        views[0].no_such_attribute  # noqa: B018


def test_scorer_that_needs_what_is_not_there(reg, data):
    X, y = data
    scorer = make_scorer(roc_auc_score, response_method="predict_proba")
    with pytest.raises(AttributeError, match=re.escape("predict_proba")):
        scorer(_stage_views(reg, X)[0], X, y)
