"""Refit callables, scorer and search that see the cost of a prediction."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, get_scorer, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from common import CHECKED, SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.costs import Latency
from skbdistil.model_selection import (
    StagedSearchCV,
    best_under,
    cheapest_within,
    cost_scorer,
)
from skbdistil.stages import UNITS, stage_cost, staged
from skbdistil.students import MLP

N_STAGES = SMALL["n_estimators"]

GRID = {"learning_rate": [0.01, 0.1]}


def small_clf(**params):
    return BDistilClassifier(LogisticRegression(), **{**SMALL, **params})


@pytest.fixture(scope="module")
def search(data):
    return StagedSearchCV(small_clf(), GRID, cv=KFold(3)).fit(*data)


def results(scores, costs, **columns):
    return {"mean_test_score": scores, "mean_test_cost": costs, **columns}


def same_scores(found, expected):
    """Whether two searches have the same columns of scores and parameters."""
    assert found["params"] == expected["params"]
    timed = [name for name in expected if name.endswith("_time")]
    for name in set(expected) - {"params", *timed}:
        if name.startswith("param_"):
            assert_array_equal(found[name].mask, expected[name].mask)
            assert_array_equal(found[name].compressed(), expected[name].compressed())
        else:
            assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


# Refit callables


@pytest.mark.parametrize(
    ("tolerance", "index"), [(0, 3), (0.01, 2), (0.05, 2), (0.1, 0), (np.inf, 0)]
)
def test_cheapest_within_a_tolerance(tolerance, index):
    found = cheapest_within(tolerance)(results([0.86, 0.7, 0.94, 0.95], [1, 2, 3, 4]))
    assert found == index
    assert isinstance(found, int)


def test_a_candidate_at_the_tolerance_is_within_it():
    # 0.95 - 0.94 is more than 0.01 in floating point.
    assert cheapest_within(0.01)(results([0.94, 0.95], [1, 2])) == 0
    assert cheapest_within(0.0)(results([0.1 + 0.2, 0.3], [2, 1])) == 1


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9, 1e15])
def test_a_worse_score_is_not_within_no_tolerance_at_any_scale(scale):
    scores = scale * np.array([1 - 1e-12, 1.0])
    assert cheapest_within()(results(scores, [1, 2])) == 1
    assert cheapest_within()(results(-1 / scores, [1, 2])) == 1
    assert best_under(2)(results(scores, [1, 2])) == 1


@pytest.mark.parametrize("n_splits", [20, 100])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_order_of_the_splits_does_not_matter(n_splits, scale):
    splits = scale * np.random.RandomState(0).uniform(size=(n_splits, 50))
    orders = np.random.default_rng(1).permuted(splits[:, [0] * 50], axis=0)
    assert len(np.unique(orders.mean(axis=0))) > 1
    choose = cheapest_within()
    assert choose(results(orders.mean(axis=0), np.arange(50)[::-1])) == 49


@pytest.mark.parametrize(
    ("scores", "tolerance", "index"),
    [
        ([0.5, np.inf, np.inf], 0.0, 1),
        ([0.5, np.inf, np.inf], 1e300, 1),
        ([0.5, np.inf, np.inf], np.inf, 0),
        ([-np.inf, 0.5, 0.6], 0.2, 1),
        ([-np.inf, 0.5, 0.6], np.inf, 0),
        ([np.nan, -np.inf, -np.inf], 0.1, 1),
    ],
)
def test_infinite_scores(scores, tolerance, index):
    assert cheapest_within(tolerance)(results(scores, [1, 2, 3])) == index


def test_an_infinite_score_has_no_standard_error():
    splits = np.array([[0.5, 0.6], [np.inf, 1.0], [1.0, np.inf]])
    columns = {f"split{i}_test_score": splits[:, i] for i in range(2)}
    cv_results = results(splits.mean(axis=1), [1, 2, 3], **columns)
    assert cheapest_within("1se")(cv_results) == 1
    assert best_under(3)(cv_results) == 1


def test_equal_costs_are_decided_by_the_score():
    assert cheapest_within(0.5)(results([0.6, 0.8, 0.7, 0.9], [1, 1, 1, 2])) == 1


@pytest.mark.parametrize(("budget", "index"), [(10, 0), (44.9, 1), (45, 2), (1e9, 2)])
def test_best_under_a_budget(budget, index):
    found = best_under(budget)(results([0.8, 0.9, 0.95], [10, 25, 45]))
    assert found == index
    assert isinstance(found, int)


def test_equal_scores_are_decided_by_the_cost():
    assert best_under(4)(results([0.3, 0.1 + 0.2, 0.3, 0.2], [3, 4, 2, 1])) == 2


@pytest.mark.parametrize("choose", [cheapest_within(np.inf), best_under(100)])
def test_candidates_without_score_or_cost_are_not_chosen(choose):
    scores, costs = [np.nan, 0.9, 0.8], [1, np.nan, 3]
    assert choose(results(scores, costs)) == 2
    with pytest.raises(ValueError, match="no candidate with both a score and a cost"):
        choose(results(scores[:2], costs[:2]))


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_what_is_chosen_is_not_beaten(candidates, tolerance):
    scores, costs = np.array(candidates, dtype=float).T
    index = cheapest_within(tolerance)(results(scores, costs))
    within = scores >= scores.max() - tolerance
    assert within[index]
    assert costs[index] == costs[within].min()
    assert scores[index] == scores[within & (costs == costs[index])].max()

    budget = costs.min() + tolerance
    index = best_under(budget)(results(scores, costs))
    assert scores[index] == scores[costs <= budget].max()
    assert costs[index] == costs[scores == scores[index]].min()


def test_one_standard_error_of_the_best_candidate():
    splits = np.array([[0.7, 0.7, 0.7], [0.85, 0.86, 0.84], [0.8, 0.9, 0.94]])
    error = np.std(splits[2], ddof=1) / np.sqrt(3)
    means = splits.mean(axis=1)
    assert means[0] < means[2] - error < means[1]
    columns = {f"split{i}_test_score": splits[:, i] for i in range(3)}
    cv_results = results(means, [1, 2, 3], **columns)
    for score in ("score", "mean_test_score"):
        assert cheapest_within("1se", score=score)(cv_results) == 1
        assert cheapest_within(score=score)(cv_results) == 2


@pytest.mark.parametrize("n_splits", [0, 1])
def test_one_standard_error_needs_splits(n_splits):
    columns = {f"split{i}_test_score": [0.5] for i in range(n_splits)}
    with pytest.raises(ValueError, match=f"at least 2 splits. Got {n_splits}"):
        cheapest_within("1se")(results([0.5], [1], **columns))


def test_costs_by_name_column_or_callable():
    cv_results = {
        "mean_test_accuracy": np.array([0.8, 0.9, 0.9]),
        "mean_test_macs": np.array([1, 3, 2]),
        "mean_fit_time": np.array([1, 2, 3]),
        "param_hidden": np.ma.array([1, 4, 2], mask=[True, False, False], dtype=object),
    }

    def index(cost):
        choose = cheapest_within(np.inf, cost=cost, score="accuracy")
        return choose(cv_results)

    assert index("macs") == index("mean_test_macs") == index("mean_fit_time") == 0
    assert index("param_hidden") == 2  # masked where there is no such parameter
    assert index(lambda cv_results: -cv_results["mean_fit_time"]) == 2
    assert best_under(2, cost="macs", score="accuracy")(cv_results) == 2


@pytest.mark.parametrize("choose", [cheapest_within, partial(best_under, 9)])
def test_refit_callables_name_what_cv_results_has(choose):
    cv_results = results([0.5, 0.6], [1, 2])
    has = re.escape("['mean_test_score', 'mean_test_cost']. Got 'macs' instead.")
    with pytest.raises(ValueError, match=f"'cost' must be the name of a .* {has}"):
        choose(cost="macs")(cv_results)
    with pytest.raises(ValueError, match=f"'score' must be the name of a .* {has}"):
        choose(score="macs")(cv_results)
    with pytest.raises(ValueError, match=r"each of the 2 candidates. Got shape \(1,\)"):
        choose(cost=lambda cv_results: [1])(cv_results)


@pytest.mark.parametrize("tolerance", [-0.1, np.nan, None, "2se"])
def test_tolerance_is_checked(tolerance):
    message = f"'tolerance' must be a number of at least 0 or '1se'. Got {tolerance!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        cheapest_within(tolerance)


@pytest.mark.parametrize("budget", [np.nan, None, "5"])
def test_budget_is_checked(budget):
    with pytest.raises(ValueError, match=f"'budget' must be a number. Got {budget!r}"):
        best_under(budget)


def test_budget_below_all_candidates():
    # The very cheapest has no score.
    cv_results = results([0.8, 0.9, np.nan], [10, 25, 5])
    with pytest.raises(ValueError, match=r"budget of 9\.5: the cheapest one costs 10"):
        best_under(9.5)(cv_results)
    # Large numbers are not rounded.
    with pytest.raises(ValueError, match="of 1234567: the cheapest one costs 1234568"):
        best_under(1234567)(results([0.8], [1234568]))


@pytest.mark.parametrize(
    ("choose", "text"),
    [
        (cheapest_within("1se"), "tolerance='1se', cost='cost', score='score'"),
        (best_under(3, cost="macs"), "budget=3, cost='macs', score='score'"),
        (cost_scorer("parameters"), "unit='parameters'"),
    ],
)
def test_parts_of_a_search_are_read_copied_and_stored(choose, text):
    assert repr(choose) == f"{type(choose).__name__}({text})"
    assert pickle.loads(pickle.dumps(choose)) == choose
    search = clone(StagedSearchCV(small_clf(), {}, refit=choose))
    assert search.refit == choose


# Cost scorer


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "latency"])
def test_cost_of_the_stage_that_predicts(clf, data, unit):
    X, y = data
    costs = stage_cost(clf, unit)
    assert cost_scorer(unit)(clf, X, y) == costs[-1]
    for stage in range(1, N_STAGES + 1):
        shorter = clf[:].set_params(n_stages=stage)
        wrappers = [shorter, make_pipeline("passthrough", shorter)]
        for estimator in [*wrappers, *map(FrozenEstimator, wrappers)]:
            assert cost_scorer(unit)(estimator, X) == costs[stage - 1]
        assert cost_scorer(unit)(clf[:stage], X) == costs[stage - 1]


def test_cost_of_more_stages_than_there_are(clf, data):
    shorter = clf[:2].set_params(n_stages=N_STAGES)
    assert cost_scorer()(shorter, data[0]) == stage_cost(clf)[1]


def test_cost_in_a_unit_of_your_own(clf, data):
    ada = AdaBoostClassifier(n_estimators=2).fit(*data)
    stumps = cost_scorer(lambda estimator: np.arange(1, 3))
    assert stumps(ada, data[0]) == 2
    assert cost_scorer("latency")(clf, data[0]) > 0


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("wrap", [lambda clf: clf, make_pipeline, FrozenEstimator])
def test_only_the_stage_that_predicts_is_timed(clf, data, monkeypatch, stage, wrap):
    X = data[0]
    calls = []

    def compare(predicts, X, **options):
        calls.extend(predicts)
        return [Latency(0.5, 0.4, 0.6, 1, 50, 1, None, "predict") for _ in predicts]

    monkeypatch.setattr("skbdistil.stages.compare_latencies", compare)
    assert cost_scorer("latency")(wrap(clf[:].set_params(n_stages=stage)), X) == 0.5
    (predict,) = calls
    assert_array_equal(predict(X), list(staged(clf, X))[stage - 1])


def test_cost_unit_is_checked():
    message = f"'unit' must be one of {list(UNITS)} or a callable. Got 'flops' instead."
    with pytest.raises(ValueError, match=re.escape(message)):
        cost_scorer("flops")


def test_cost_is_a_column_of_a_grid_search(data):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), small_clf()),
        {"bdistilclassifier__n_stages": [1, 2, 3]},
        scoring={"accuracy": "accuracy", "macs": cost_scorer()},
        refit=best_under(1000, cost="macs", score="accuracy"),
        cv=2,
    )
    # Weights reach the scorers of scikit-learn 1.7 and later.
    search.fit(*data, bdistilclassifier__sample_weight=np.ones(90))
    costs = search.cv_results_["mean_test_macs"]
    assert_array_equal(costs, stage_cost(search))
    assert (search.cv_results_["std_test_macs"] == 0).all()
    search = search.set_params(
        refit=best_under(costs[1], cost="macs", score="accuracy")
    )
    assert search.fit(*data).best_index_ <= 1


# Search over stages


def test_search_equals_a_grid_search_over_stages(search, data):
    grid = {"learning_rate": GRID["learning_rate"], "n_stages": [1, 2, 3]}
    expected = GridSearchCV(small_clf(), grid, cv=KFold(3)).fit(*data)
    same_scores(search.cv_results_, expected.cv_results_)
    assert search.best_index_ == expected.best_index_
    assert search.best_params_ == expected.best_params_
    assert search.best_score_ == expected.best_score_
    assert search.score(*data) == expected.score(*data)
    assert_array_equal(search.classes_, expected.classes_)
    assert search.n_splits_ == 3
    assert search.multimetric_ is False
    assert_array_equal(search.predict_proba(data[0]), expected.predict_proba(data[0]))


def falls_to_zero(clf, X, y):
    return float(N_STAGES - clf.n_stages)


def spoils(clf, X, y):
    """Changes the predictions that it gets."""
    predicted = clf.predict(X)
    score = accuracy_score(y, predicted)
    predicted[:] = y
    clf.predict_proba(X)[:] = 0.5
    return score


def looks_around(clf, X, y):
    """Asks for more than predictions, of a classifier or a pipeline with one."""
    if hasattr(clf, "named_steps"):
        prefix, last, rows = "clf__", clf.named_steps["clf"], clf[:-1].transform(X)
    else:
        prefix, last, rows = "", clf, X
    return {
        "log_proba": clf.predict_log_proba(X)[:, 0].mean(),
        "first": next(last.staged_score(rows, y)),
        "last": list(last.staged_score(rows, y))[-1],
        "length": len(clf),
        "n_stages": clf.get_params()[f"{prefix}n_stages"],
    }


@pytest.mark.parametrize(
    ("scoring", "refit"),
    [
        ("neg_log_loss", True),
        (falls_to_zero, True),
        ({"zero": falls_to_zero, "accuracy": "accuracy"}, "accuracy"),
        ({"spoils": spoils, "acc": "accuracy", "loss": "neg_log_loss"}, "acc"),
        (looks_around, "log_proba"),
        (["accuracy", "roc_auc", "neg_log_loss"], "roc_auc"),
        ({"acc": "accuracy", "own": make_scorer(accuracy_score)}, "own"),
        (lambda clf, X, y: clf.score(X, y), True),
        (lambda clf, X, y: {"acc": clf.score(X, y), "zero": 0.0}, "acc"),
        (["accuracy", "roc_auc"], False),
    ],
)
def test_scorers_give_what_they_give_in_a_grid_search(data, scoring, refit):
    settings = {
        "scoring": scoring,
        "refit": refit,
        "cv": 2,
        "return_train_score": True,
    }
    found = StagedSearchCV(small_clf(), {}, **settings).fit(*data)
    grid = {"n_stages": [1, 2, 3]}
    expected = GridSearchCV(small_clf(), grid, **settings).fit(*data)
    same_scores(found.cv_results_, expected.cv_results_)
    assert np.isfinite(found.cv_results_["mean_test_cost"]).all()
    assert found.multimetric_ == expected.multimetric_
    assert hasattr(found, "best_index_") == hasattr(expected, "best_index_")
    assert repr(found.scorer_) == repr(expected.scorer_)
    if refit:
        assert found.best_params_ == expected.best_params_
        assert found.score(*data) == expected.score(*data)


def test_single_metric_without_refit_has_a_best_index(data):
    search = StagedSearchCV(small_clf(), {}, refit=False, cv=2).fit(*data)
    assert search.best_params_ == search.cv_results_["params"][search.best_index_]
    assert not hasattr(search, "best_estimator_")


@pytest.mark.parametrize("n_targets", [1, 2])
def test_regression(n_targets):
    X, y = make_regression(60, n_features=4, n_targets=n_targets, random_state=0)
    reg = BDistilRegressor(Ridge(), **SMALL)
    found = StagedSearchCV(reg, {}, cv=2).fit(X, y)
    expected = GridSearchCV(reg, {"n_stages": [1, 2, 3]}, cv=2).fit(X, y)
    same_scores(found.cv_results_, expected.cv_results_)
    assert_array_equal(found.predict(X), expected.predict(X))


def test_costs_are_those_of_the_stages(search):
    cv_results = search.cv_results_
    costs = stage_cost(search)
    for column in ("mean_test_cost", "split0_test_cost", "split2_test_cost"):
        assert_array_equal(cv_results[column], np.tile(costs, 2))
    assert_array_equal(cv_results["std_test_cost"], 0)


def energy(clf):
    return 1e-9 * clf.stage_costs_.cumulative_macs


@pytest.mark.parametrize("cost", ["parameters", energy])
def test_unit_of_the_cost(data, cost):
    search = StagedSearchCV(small_clf(), {}, cost=cost, cv=2).fit(*data)
    assert_allclose(search.cv_results_["mean_test_cost"], stage_cost(search, cost))


def test_measured_latency_is_a_cost(data):
    search = StagedSearchCV(small_clf(n_estimators=2), {}, cost="latency", cv=2)
    costs = search.fit(*data).cv_results_["mean_test_cost"]
    assert 0 < costs[0] <= costs[1]


def test_one_fit_per_candidate_and_fold_and_one_pass_per_method(data, monkeypatch):
    calls = []

    def counted(name):
        method = getattr(BDistilClassifier, name)

        def count(self, *args, **kwargs):
            calls.append(name)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(BDistilClassifier, name, count)

    for name in ("fit", "staged_predict", "staged_decision_function", "predict"):
        counted(name)

    def transform(X):
        calls.append("transform")
        return X

    pipeline = Pipeline(
        [("same", FunctionTransformer(transform)), ("clf", small_clf())]
    )
    search = StagedSearchCV(
        pipeline,
        {"clf__learning_rate": GRID["learning_rate"]},
        scoring=["accuracy", "balanced_accuracy", "roc_auc"],
        refit="accuracy",
        cv=3,
    )
    search.fit(*data)
    assert calls.count("fit") == 2 * 3 + 1
    assert calls.count("staged_predict") == 2 * 3
    assert calls.count("staged_decision_function") == 2 * 3
    assert calls.count("predict") == 0
    # Each fit, and each of the two methods that the scorers call.
    assert calls.count("transform") == 2 * 3 * 3 + 1


def test_best_estimator_has_all_students_and_predicts_with_the_best_stage(search, data):
    best = search.best_estimator_
    stage = search.best_params_["n_stages"]
    assert best.n_stages == stage
    assert len(best) == N_STAGES
    predictions = list(staged(best, data[0]))
    assert len(predictions) == stage
    assert_array_equal(search.predict(data[0]), predictions[-1])


@pytest.mark.parametrize(
    "refit", [cheapest_within(1.0), cheapest_within("1se"), best_under(np.inf)]
)
def test_refit_callables(search, data, refit):
    chosen = clone(search).set_params(refit=refit).fit(*data)
    assert chosen.best_index_ == refit(search.cv_results_)
    assert chosen.best_params_ == search.cv_results_["params"][chosen.best_index_]
    assert not hasattr(chosen, "best_score_")
    assert chosen.score(*data) == chosen.best_estimator_.score(*data)


def test_the_cheapest_stage_is_chosen_if_any_score_will_do(search, data):
    chosen = clone(search).set_params(refit=cheapest_within(np.inf)).fit(*data)
    assert chosen.best_params_["n_stages"] == 1
    costs = search.cv_results_["mean_test_cost"]
    with pytest.raises(ValueError, match=f"cheapest one costs {costs[0]:g}"):
        chosen.set_params(refit=best_under(costs[0] - 1)).fit(*data)


@pytest.mark.parametrize(
    ("scoring", "refit"), [(None, True), (looks_around, "log_proba")]
)
def test_pipeline(data, scoring, refit):
    pipeline = Pipeline([("scale", StandardScaler()), ("clf", small_clf())])
    settings = {"scoring": scoring, "refit": refit, "cv": 2}
    found = StagedSearchCV(pipeline, {}, **settings).fit(*data)
    grid = {"clf__n_stages": [1, 2, 3]}
    expected = GridSearchCV(pipeline, grid, **settings).fit(*data)
    same_scores(found.cv_results_, expected.cv_results_)
    assert found.best_params_ == expected.best_params_
    assert found.best_estimator_[-1].n_stages == found.best_params_["clf__n_stages"]


def test_search_in_a_cross_validation(data):
    found = cross_validate(StagedSearchCV(small_clf(), {}, cv=2), *data, cv=2)
    expected = cross_validate(
        GridSearchCV(small_clf(), {"n_stages": [1, 2, 3]}, cv=2), *data, cv=2
    )
    assert_array_equal(found["test_score"], expected["test_score"])


def test_search_in_a_search(data):
    pipeline = Pipeline([("scale", StandardScaler()), ("clf", small_clf())])
    rates = {"estimator__clf__learning_rate": [0.1]}
    searches = [
        RandomizedSearchCV(inner, rates, n_iter=1, cv=2).fit(*data)
        for inner in (
            StagedSearchCV(pipeline, {}, cv=2),
            GridSearchCV(pipeline, {"clf__n_stages": [1, 2, 3]}, cv=2),
        )
    ]
    found, expected = searches
    assert found.best_score_ == expected.best_score_
    assert found.best_params_ == expected.best_params_
    assert found.best_estimator_.best_params_ == expected.best_estimator_.best_params_
    assert_array_equal(found.predict(data[0]), expected.predict(data[0]))
    assert len(stage_cost(found)) == N_STAGES


def test_frames_and_labels_that_are_text(data):
    pandas = pytest.importorskip("pandas")
    X, y = data
    frame = pandas.DataFrame(X, columns=[f"x{i}" for i in range(6)])
    text = np.array(["no", "yes"])[y]
    found = StagedSearchCV(small_clf(), {}, cv=2).fit(frame, pandas.Series(text))
    expected = StagedSearchCV(small_clf(), {}, cv=2).fit(X, y)
    same_scores(found.cv_results_, expected.cv_results_)
    assert_array_equal(found.classes_, ["no", "yes"])
    assert_array_equal(found.feature_names_in_, frame.columns)
    predicted = found.predict(frame)
    assert_array_equal(predicted, np.array(["no", "yes"])[expected.predict(X)])


def test_pipeline_in_a_pipeline(data):
    pipeline = Pipeline([("outer", Pipeline([("inner", small_clf())]))])
    search = StagedSearchCV(pipeline, {}, cv=2).fit(*data)
    assert list(search.best_params_) == ["outer__inner__n_stages"]


def test_candidates_of_different_lengths(data):
    grid = [{"n_estimators": [1, 3]}, {"learning_rate": [0.1], "n_estimators": [2]}]
    cv_results = StagedSearchCV(small_clf(), grid, cv=2).fit(*data).cv_results_
    assert_array_equal(cv_results["param_n_estimators"], [1, 3, 3, 3, 2, 2])
    assert_array_equal(cv_results["param_n_stages"], [1, 1, 2, 3, 1, 2])
    assert_array_equal(cv_results["param_learning_rate"].mask, [True] * 4 + [False] * 2)
    assert sorted(cv_results["rank_test_score"])[0] == 1
    assert all(len(column) == 6 for column in cv_results.values())


def test_times_are_those_of_the_one_fit(search):
    for column in ("mean_fit_time", "std_fit_time", "mean_score_time"):
        times = search.cv_results_[column].reshape(2, N_STAGES)
        assert (times == times[:, :1]).all()


def test_stages_of_the_estimator_are_the_limit(data):
    search = StagedSearchCV(small_clf(n_stages=2), {}, cv=2).fit(*data)
    assert_array_equal(search.cv_results_["param_n_stages"], [1, 2])


class StopsEarly(BDistilClassifier):
    """Finds as many students as the last column of its first row says."""

    def fit(self, X, y):
        found = super().fit(X, y)[: int(X[0, -1])]
        vars(self).update(vars(found))
        return self


def test_boosting_that_stops_early_repeats_its_last_stage(data):
    X, y = data
    X = np.column_stack([X, np.full(len(X), 2)])
    X[30, -1] = 1  # the first row that the first of three folds is trained on
    clf = StopsEarly(LogisticRegression(), **SMALL)
    search = StagedSearchCV(clf, {}, cv=KFold(3)).fit(X, y)
    expected = GridSearchCV(clf, {"n_stages": [1, 2]}, cv=KFold(3)).fit(X, y)
    same_scores(search.cv_results_, expected.cv_results_)
    first, second = search.cv_results_["split0_test_cost"]
    assert first == second
    first, second = search.cv_results_["split1_test_cost"]
    assert first < second


# Of the three folds of `data`, they find 1, 3 and 3 students.
FAILING_LADDER = {
    "n_estimators": 4,
    "connection": "dense",
    "combine": "mean",
    "edge_tol": 0.01,
    "max_epochs": 5,
    "learning_rate": 0.05,
    "random_state": 1,
}


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
@pytest.mark.parametrize(
    ("scoring", "refit"),
    [
        (None, True),
        (["accuracy", "roc_auc"], "roc_auc"),
        (lambda clf, X, y: {"acc": clf.score(X, y), "zero": 0.0}, "acc"),
        (
            {"accuracy": "accuracy", "macs": cost_scorer()},
            cheapest_within(0.1, cost="macs", score="accuracy"),
        ),
        (
            {"accuracy": "accuracy", "macs": cost_scorer()},
            best_under(80, cost="macs", score="accuracy"),
        ),
    ],
)
def test_ladder_that_fails_gives_what_a_grid_search_gives(data, scoring, refit):
    clf = small_clf(**FAILING_LADDER)
    settings = {
        "scoring": scoring,
        "refit": refit,
        "cv": KFold(3),
        "return_train_score": True,
    }
    found = StagedSearchCV(clf, {}, **settings).fit(*data)
    # What no fold has found is no stage of this search.
    grid = {"n_stages": [1, 2, 3]}
    expected = GridSearchCV(clf, grid, **settings).fit(*data)
    same_scores(found.cv_results_, expected.cv_results_)
    assert found.best_params_ == expected.best_params_
    assert_array_equal(found.predict(data[0]), expected.predict(data[0]))
    costs = [found.cv_results_[f"split{i}_test_cost"] for i in range(3)]
    assert len(np.unique(costs[0])) == 1
    assert_array_equal(costs[1], costs[2])
    three = small_clf(n_estimators=3, connection="dense").fit(*data)
    assert_array_equal(costs[1], stage_cost(three))
    if isinstance(scoring, dict):
        assert_allclose(
            found.cv_results_["mean_test_cost"], found.cv_results_["mean_test_macs"]
        )


class FailsOnAFold(BDistilClassifier):
    """Cannot be fitted to rows that begin with a zero."""

    def fit(self, X, y, sample_weight=None):
        if not X[0].any():
            raise ValueError("these rows will not do")
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize("error_score", [np.nan, 0.0])
@pytest.mark.parametrize(
    ("scoring", "refit"),
    [
        (None, True),
        (["accuracy", "roc_auc"], "accuracy"),
        (lambda clf, X, y: {"acc": clf.score(X, y), "zero": 0.0}, "acc"),
    ],
)
@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_fold_whose_fit_fails_scores_as_in_a_grid_search(
    data, scoring, refit, error_score
):
    X, y = data[0].copy(), data[1]
    X[30] = 0  # the first row that the first of three folds is trained on
    settings = {
        "scoring": scoring,
        "refit": refit,
        "cv": KFold(3),
        "error_score": error_score,
    }
    clf = FailsOnAFold(LogisticRegression(), **SMALL)
    found = StagedSearchCV(clf, {}, **settings)
    expected = GridSearchCV(clf, {"n_stages": [1, 2, 3]}, **settings)
    for search in (found, expected):
        with pytest.warns(FitFailedWarning, match="these rows will not do"):
            search.fit(X, y)
    same_scores(found.cv_results_, expected.cv_results_)
    assert found.best_params_ == expected.best_params_
    # The cost of what was not fitted is not known, whatever its score is said to be.
    assert np.isnan(found.cv_results_["split0_test_cost"]).all()
    assert np.isnan(found.cv_results_["mean_test_cost"]).all()
    assert np.isfinite(found.cv_results_["split1_test_cost"]).all()
    name = refit if isinstance(refit, str) else "score"
    found.set_params(refit=best_under(np.inf, score=name))
    with (
        pytest.warns(FitFailedWarning),
        pytest.raises(ValueError, match="no candidate with both a score and a cost"),
    ):
        found.fit(X, y)


@pytest.mark.parametrize("scoring", [None, ["accuracy", "roc_auc"]])
def test_groups_go_to_the_splitter(data, scoring):
    settings = {
        "scoring": scoring,
        "refit": "roc_auc" if scoring else True,
        "cv": GroupKFold(3),
    }
    groups = np.arange(90) % 7
    found = StagedSearchCV(small_clf(), {}, **settings).fit(*data, groups=groups)
    expected = GridSearchCV(small_clf(), {"n_stages": [1, 2, 3]}, **settings)
    expected.fit(*data, groups=groups)
    same_scores(found.cv_results_, expected.cv_results_)
    with pytest.raises(ValueError, match="'groups' parameter should not be None"):
        found.fit(*data)


@pytest.mark.parametrize(
    ("refit", "error", "message"),
    [
        (lambda cv_results: 3, IndexError, "index out of range"),
        (lambda cv_results: 1.0, TypeError, "is not an integer"),
    ],
)
def test_refit_callable_that_chooses_no_row_is_refused(data, refit, error, message):
    with pytest.raises(error, match=message):
        StagedSearchCV(small_clf(), {}, refit=refit, cv=2).fit(*data)


@pytest.mark.parametrize("scoring", [None, ["accuracy", "roc_auc"]])
@pytest.mark.parametrize("error_score", [np.nan, 0.25])
@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_candidates_whose_fit_fails(data, scoring, error_score):
    search = StagedSearchCV(
        small_clf(),
        {"n_estimators": [-1, 2]},
        scoring=scoring,
        refit=cheapest_within(1.0, score="accuracy" if scoring else "score"),
        error_score=error_score,
        cv=2,
    )
    with pytest.warns(FitFailedWarning, match="2 fits failed out of a total of 4"):
        search.fit(*data)
    cv_results = search.cv_results_
    assert_array_equal(cv_results["param_n_stages"].mask, [True, False, False])
    score = "mean_test_accuracy" if scoring else "mean_test_score"
    assert_array_equal(cv_results[score][0], error_score)
    assert np.isnan(cv_results["mean_test_cost"][0])
    assert search.best_params_ == {"n_estimators": 2, "n_stages": 1}


def test_fit_failures_are_raised_on_request(data):
    search = StagedSearchCV(small_clf(n_estimators=-1), {}, error_score="raise", cv=2)
    with pytest.raises(ValueError, match="'n_estimators' parameter"):
        search.fit(*data)


def failing_scorer(clf, X, y):
    raise RuntimeError("no score today")


@pytest.mark.parametrize(
    "scoring", [failing_scorer, {"accuracy": "accuracy", "fails": failing_scorer}]
)
@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_scorers_that_fail(data, scoring):
    search = StagedSearchCV(small_clf(), {}, scoring=scoring, refit=False, cv=2)
    with pytest.warns(UserWarning, match="no score today"):
        search.fit(*data)
    if callable(scoring):
        assert np.isnan(search.cv_results_["mean_test_score"]).all()
    else:
        assert np.isnan(search.cv_results_["mean_test_fails"]).all()
        assert np.isfinite(search.cv_results_["mean_test_accuracy"]).all()
    with pytest.raises(RuntimeError, match="no score today"):
        search.set_params(error_score="raise").fit(*data)


def fails_at_two(clf, X, y):
    if clf.n_stages == 2:
        raise RuntimeError("no score of two students")
    return clf.score(X, y)


@pytest.mark.parametrize("error_score", [np.nan, 0.0])
@pytest.mark.parametrize(
    ("scoring", "refit"),
    [(fails_at_two, True), ({"fails": fails_at_two, "acc": "accuracy"}, "fails")],
)
@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_scorer_that_fails_at_a_stage_fails_for_this_stage_only(
    data, scoring, refit, error_score
):
    settings = {
        "scoring": scoring,
        "refit": refit,
        "cv": 2,
        "error_score": error_score,
        "return_train_score": True,
    }
    found = StagedSearchCV(small_clf(), {}, **settings)
    with pytest.warns(UserWarning, match=r"stage\(s\) \[2\] of 3 .*") as warned:
        found.fit(*data)
    assert "no score of two students" in str(warned[0].message)
    expected = GridSearchCV(small_clf(), {"n_stages": [1, 2, 3]}, **settings)
    with pytest.warns(UserWarning, match="no score of two students"):
        expected.fit(*data)
    same_scores(found.cv_results_, expected.cv_results_)
    assert found.best_params_ == expected.best_params_
    with pytest.raises(RuntimeError, match="no score of two students"):
        found.set_params(error_score="raise").fit(*data)


def several_that_fail_at_two(clf, X, y):
    return {"acc": fails_at_two(clf, X, y), "zero": 0.0}


def several_that_fail_on_a_fold(clf, X, y):
    if not X[0].any():
        raise RuntimeError("no score of this fold")
    return {"acc": clf.score(X, y), "zero": 0.0}


@pytest.mark.parametrize(
    "scoring", [several_that_fail_at_two, several_that_fail_on_a_fold]
)
@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_callable_of_several_scores_that_fails_gives_the_error_score(data, scoring):
    X, y = data[0].copy(), data[1]
    X[0] = 0  # the first row that the first fold is tested on
    search = StagedSearchCV(
        small_clf(), {}, scoring=scoring, refit="zero", error_score=-1.0, cv=KFold(2)
    )
    with pytest.warns(UserWarning, match=r"Their score is set to -1\.0"):
        search.fit(X, y)
    folds = np.array([search.cv_results_[f"split{i}_test_acc"] for i in range(2)])
    failed = np.zeros((2, 3), dtype=bool)
    if scoring is several_that_fail_at_two:
        failed[:, 1] = True
    else:
        failed[0] = True
    assert_array_equal(folds == -1, failed)
    assert_array_equal(search.cv_results_["split0_test_zero"] == -1, failed[0])


@pytest.mark.parametrize(
    "score", ["high", None, np.array([0.5, 1.0]), {"acc": "high"}], ids=repr
)
def test_scores_that_are_no_numbers_are_refused_as_in_a_grid_search(data, score):
    for search in (
        StagedSearchCV(small_clf(), {}, scoring=lambda *args: score, cv=2),
        GridSearchCV(small_clf(), {"n_stages": [1]}, scoring=lambda *args: score, cv=2),
    ):
        with pytest.raises(ValueError, match="scoring must return a number, got"):
            search.fit(*data)


@pytest.mark.parametrize("several", [False, True])
def test_arrays_of_one_score_are_scores(data, several):
    def scoring(clf, X, y):
        score = np.array([clf.score(X, y)])
        return {"acc": score} if several else score

    settings = {"refit": "acc" if several else True, "cv": 2}
    found = StagedSearchCV(small_clf(), {}, scoring=scoring, **settings).fit(*data)
    grid = {"n_stages": [1, 2, 3]}
    expected = GridSearchCV(small_clf(), grid, scoring=scoring, **settings).fit(*data)
    same_scores(found.cv_results_, expected.cv_results_)


@pytest.mark.parametrize("other", [1.0, {"loss": 1.0}], ids=repr)
def test_scores_must_have_the_same_names_at_all_stages(data, other):
    search = StagedSearchCV(
        small_clf(),
        {},
        scoring=lambda clf, X, y: {"acc": 1.0} if clf.n_stages == 1 else other,
        refit=False,
        error_score="raise",
        cv=2,
    )
    with pytest.raises(ValueError, match="of the same names for all stages") as error:
        search.fit(*data)
    assert str(other) in str(error.value)


def failing_cost(clf):
    raise RuntimeError("no cost today")


@pytest.mark.parametrize("scoring", ["accuracy", ["accuracy", "roc_auc"]])
def test_costs_that_fail_are_not_known_and_the_scores_are(data, scoring):
    settings = {"scoring": scoring, "refit": False, "cv": 2}
    search = StagedSearchCV(small_clf(), {}, cost=failing_cost, **settings)
    with pytest.warns(UserWarning, match="no cost today"):
        search.fit(*data)
    expected = GridSearchCV(small_clf(), {"n_stages": [1, 2, 3]}, **settings)
    same_scores(search.cv_results_, expected.fit(*data).cv_results_)
    assert np.isnan(search.cv_results_["mean_test_cost"]).all()
    with pytest.raises(RuntimeError, match="no cost today"):
        search.set_params(error_score="raise").fit(*data)


class DecidesByData(MLP):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.CostsUnknownWarning")
@pytest.mark.parametrize("scoring", ["accuracy", ["accuracy", "roc_auc"]])
def test_costs_that_are_not_known_leave_the_scores(data, scoring):
    search = StagedSearchCV(
        small_clf(student=DecidesByData), {}, scoring=scoring, refit=False, cv=2
    )
    search.fit(*data)
    name = "score" if scoring == "accuracy" else "accuracy"
    assert np.isfinite(search.cv_results_[f"mean_test_{name}"]).all()
    assert np.isnan(search.cv_results_["mean_test_cost"]).all()
    # There is no choosing by them.
    match = "no candidate with both a score and a cost. Operations that could not be"
    for choose in (cheapest_within(0.0, score=name), best_under(1e9, score=name)):
        with pytest.raises(ValueError, match=match):
            search.set_params(refit=choose).fit(*data)
    search.set_params(cost="parameters").fit(*data)
    assert search.best_params_["n_stages"] in range(1, N_STAGES + 1)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.CostsUnknownWarning")
def test_candidates_that_could_not_be_counted_are_not_chosen_by_cost(data):
    grid = {"student": [DecidesByData, SMALL["student"]]}
    search = StagedSearchCV(small_clf(), grid, refit=cheapest_within(1.0), cv=2)
    search.fit(*data)
    assert search.best_params_ == {"student": SMALL["student"], "n_stages": 1}


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        AdaBoostClassifier(),
        FrozenEstimator(small_clf()),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
)
def test_estimators_without_stages_are_refused(data, estimator):
    message = "'estimator' must have a parameter 'n_stages', or be a pipeline"
    with pytest.raises(TypeError, match=message):
        StagedSearchCV(estimator, {}).fit(*data)


@pytest.mark.parametrize("grid", [{"n_stages": [1]}, [{}, {"n_stages": [1]}]])
def test_stages_in_the_grid_are_refused(data, grid):
    with pytest.raises(ValueError, match="'param_grid' must not contain 'n_stages'"):
        StagedSearchCV(small_clf(), grid).fit(*data)
    grid = {"clf__n_stages": [1]}
    with pytest.raises(ValueError, match="must not contain 'clf__n_stages'"):
        StagedSearchCV(Pipeline([("clf", small_clf())]), grid).fit(*data)


@pytest.mark.parametrize(
    "scoring",
    [
        {"accuracy": "accuracy", "cost": cost_scorer()},
        lambda clf, X, y: {"accuracy": clf.score(X, y), "cost": 1.0},
    ],
)
def test_a_scorer_named_cost_is_refused(data, scoring):
    search = StagedSearchCV(small_clf(), {}, scoring=scoring, refit="accuracy", cv=2)
    with pytest.raises(ValueError, match="'scoring' must not name a scorer 'cost'"):
        search.fit(*data)


def test_other_costs_by_scorers(data):
    search = StagedSearchCV(
        small_clf(),
        {},
        scoring={
            "accuracy": "accuracy",
            "parameters": cost_scorer("parameters"),
            "energy": cost_scorer(energy),
            "seconds": cost_scorer("latency"),
        },
        refit=cheapest_within(1.0, cost="parameters", score="accuracy"),
        cv=2,
    ).fit(*data)
    assert_array_equal(
        search.cv_results_["mean_test_parameters"], stage_cost(search, "parameters")
    )
    assert_allclose(search.cv_results_["mean_test_energy"], stage_cost(search, energy))
    seconds = search.cv_results_["mean_test_seconds"]
    assert (seconds > 0).all()
    assert np.isfinite(seconds).all()
    assert search.best_params_ == {"n_stages": 1}


def test_parameters_are_validated(data):
    with pytest.raises(ValueError, match="The 'cost' parameter of StagedSearchCV must"):
        StagedSearchCV(small_clf(), {}, cost="flops").fit(*data)
    with pytest.raises(ValueError, match="'param_grid' parameter of StagedSearchCV"):
        StagedSearchCV(small_clf(), 3).fit(*data)
    with pytest.raises(ValueError, match="parameter refit must be set to a scorer key"):
        StagedSearchCV(small_clf(), {}, scoring=["accuracy"]).fit(*data)


def test_teacher_scores_are_split_with_the_rows(data):
    X, y = data
    scores = LogisticRegression().fit(X, y).predict_log_proba(X)
    clf = BDistilClassifier("precomputed", **SMALL)
    found = StagedSearchCV(clf, {}, cv=2).fit(X, y, teacher_scores=scores)
    grid = {"n_stages": [1, 2, 3]}
    expected = GridSearchCV(clf, grid, cv=2).fit(X, y, teacher_scores=scores)
    same_scores(found.cv_results_, expected.cv_results_)
    assert_array_equal(found.predict(X), expected.predict(X))


@pytest.mark.parametrize("scoring", [None, ["accuracy"], get_scorer("accuracy")])
def test_sample_weight(data, scoring):
    weight = np.random.RandomState(0).uniform(0.1, 1, size=90)
    refit = "accuracy" if isinstance(scoring, list) else True
    settings = {"scoring": scoring, "refit": refit, "cv": 2}
    found = StagedSearchCV(small_clf(), {}, **settings)
    found.fit(*data, sample_weight=weight)
    expected = GridSearchCV(small_clf(), {"n_stages": [1, 2, 3]}, **settings)
    expected.fit(*data, sample_weight=weight)
    same_scores(found.cv_results_, expected.cv_results_)


@pytest.mark.parametrize("n_scorers", [1, 2])
def test_metadata_routing(data, n_scorers):
    X, y = data
    scores = LogisticRegression().fit(X, y).predict_log_proba(X)
    metadata = {
        "teacher_scores": scores,
        "sample_weight": np.random.RandomState(0).uniform(0.1, 1, size=90),
        "groups": np.arange(90) % 9,
    }
    with config_context(enable_metadata_routing=True):
        clf = BDistilClassifier("precomputed", **SMALL).set_fit_request(
            teacher_scores=True, sample_weight=False
        )
        scorer = get_scorer("accuracy").set_score_request(sample_weight=True)
        unweighted = get_scorer("accuracy").set_score_request(sample_weight=False)
        several = {"weighted": scorer, "unweighted": unweighted}
        settings = {
            "scoring": scorer if n_scorers == 1 else several,
            "refit": True if n_scorers == 1 else "weighted",
            "cv": GroupKFold(3),
        }
        found = StagedSearchCV(clf, {}, **settings).fit(X, y, **metadata)
        grid = {"n_stages": [1, 2, 3]}
        expected = GridSearchCV(clf, grid, **settings).fit(X, y, **metadata)
        same_scores(found.cv_results_, expected.cv_results_)
        weight = metadata["sample_weight"]
        assert found.score(X, y, sample_weight=weight) == expected.score(
            X, y, sample_weight=weight
        )
    if n_scorers == 2:
        cv_results = found.cv_results_
        assert (
            cv_results["mean_test_weighted"] != cv_results["mean_test_unweighted"]
        ).any()


@pytest.mark.parametrize("scoring", [None, ["accuracy", "roc_auc"]])
def test_processes_give_the_same_results(data, scoring):
    search = StagedSearchCV(
        small_clf(), GRID, scoring=scoring, refit="roc_auc" if scoring else True, cv=2
    ).fit(*data)
    parallel = clone(search).set_params(n_jobs=2).fit(*data)
    same_scores(parallel.cv_results_, search.cv_results_)
    assert parallel.best_params_ == search.best_params_


def test_verbose_search_prints_scores(data, capsys):
    StagedSearchCV(small_clf(), {}, cv=2, verbose=3).fit(*data)
    printed = capsys.readouterr().out
    assert "totalling 2 fits" in printed
    assert printed.count("score=") == 2


def test_fitted_search_is_copied_and_stored(search, data):
    loaded = pickle.loads(pickle.dumps(search))
    assert_array_equal(loaded.predict(data[0]), search.predict(data[0]))
    same_scores(loaded.cv_results_, search.cv_results_)
    assert not hasattr(clone(search), "cv_results_")
    assert "best_estimator_" in search._repr_html_()


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
# How scikit-learn looks at infinite labels before it refuses them.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@parametrize_with_checks(
    [
        StagedSearchCV(
            BDistilClassifier(dtype="float64", **CHECKED), {}, cv=2, error_score="raise"
        ),
        StagedSearchCV(
            BDistilRegressor(dtype="float64", **CHECKED), {}, cv=2, error_score="raise"
        ),
    ],
)
def test_estimator_checks(estimator, check):
    check(estimator)
