"""Successive halving over rounds: rungs, who goes on, and that nothing else changes."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from common import CHECKED, SMALL, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting._search import WeakLearnerSearch
from skbdistil._halving import plan_rungs
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import WeakLearnerNotFoundWarning
from skbdistil.model_selection import (
    HalvingStagedSearchCV,
    StagedSearchCV,
    best_under,
    cheapest_within,
)
from skbdistil.students import MLP

# Three candidates: one of them goes on, and plays the rounds that are left.
GRID = {"learning_rate": [1e-3, 0.03, 0.3]}

# Six candidates, of which two go on.
WIDE_GRID = {"learning_rate": [1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3]}


def small_clf(**params):
    return BDistilClassifier(LogisticRegression(), **{**SMALL, **params})


def rows_of(cv_results, where):
    """Columns of some rows that do not depend on the other rows, or on the clock."""
    left_out = ("rank_test_", "mean_fit_", "std_fit_", "mean_score_", "std_score_")
    return {
        name: np.ma.getdata(np.ma.asarray(column)[where]).tolist()
        for name, column in cv_results.items()
        if not name.startswith((*left_out, "iter", "n_resources"))
    }


def is_part_of(found, expected):
    """Whether all rows of a search by halving are rows of a full search, to the bit."""
    where = [expected["params"].index(params) for params in found["params"]]
    assert repr(rows_of(found, slice(None))) == repr(rows_of(expected, where))


def n_played(search):
    """Stages of each candidate, in the order of the grid."""
    stages = [params["n_stages"] for params in search.cv_results_["params"]]
    starts = [i for i, stage in enumerate(stages) if stage == 1]
    return np.diff([*starts, len(stages)]).tolist()


@pytest.fixture(scope="module")
def search(data):
    return HalvingStagedSearchCV(small_clf(), WIDE_GRID, cv=KFold(3)).fit(*data)


@pytest.fixture(scope="module")
def full(data):
    return StagedSearchCV(small_clf(), WIDE_GRID, cv=KFold(3)).fit(*data)


# Rungs


@pytest.mark.parametrize(
    ("n_rounds", "n_candidates", "factor", "min_rounds", "candidates", "rounds"),
    [
        (6, 20, 3, 1, [20, 6, 2], [1, 2, 6]),
        (9, 20, 3, 1, [20, 6, 2], [1, 3, 9]),
        (20, 20, 3, 1, [20, 6, 2], [2, 7, 20]),
        (20, 20, 3, 5, [20, 6, 2], [5, 7, 20]),
        (20, 20, 3, 7, [20, 6], [7, 20]),
        (20, 20, 3, 20, [20], [20]),
        (6, 20, 4, 1, [20, 5, 1], [1, 2, 6]),
        (6, 2, 3, 1, [2], [6]),
        (6, 3, 3, 1, [3, 1], [2, 6]),
        (2, 100, 3, 1, [100, 33], [1, 2]),
        (1, 100, 3, 1, [100], [1]),
        (4, 100, 1.1, 1, [100, 90, 81, 73], [1, 2, 3, 4]),
    ],
)
def test_rungs_end_with_all_rounds(
    n_rounds, n_candidates, factor, min_rounds, candidates, rounds
):
    rungs = plan_rungs(n_rounds, n_candidates, factor, min_rounds)
    assert rungs == list(zip(candidates, rounds, strict=True))


def test_the_best_go_on_and_the_others_have_the_stages_they_played(search, full):
    assert search.n_candidates_ == [6, 2]
    assert search.n_resources_ == [1, 3]
    first = full.cv_results_["mean_test_score"].reshape(6, 3)[:, 0]
    best = np.argsort(-first, kind="stable")[:2]
    played = np.ones(6, dtype=int)
    played[best] = 3
    assert n_played(search) == played.tolist()
    iters = np.concatenate([[0, 1, 1][:n] for n in played])
    assert_array_equal(search.cv_results_["iter"], iters)
    assert_array_equal(search.cv_results_["n_resources"], np.array([1, 3])[iters])


# What is found is what a full search finds


def test_all_rows_are_those_of_a_full_search(search, full, data):
    is_part_of(search.cv_results_, full.cv_results_)
    best = clone(search.best_estimator_).fit(*data)
    assert student_bits(best) == student_bits(search.best_estimator_)
    assert search.best_params_["n_stages"] == search.best_estimator_.n_stages
    assert len(search.best_estimator_) == 3
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    assert search.score(*data) == search.best_estimator_.score(*data)


# All that depends on the number of rounds: the step, and the widths by the teacher's
# cost; rows held out; classes of a ladder; random order of the rows.
@pytest.mark.parametrize(
    "params",
    [
        {"eta": "auto"},
        {"early_stopping": True, "n_estimators": 5, "max_epochs": 8},
        {"connection": "dense", "combine": "sum"},
        {"connection": "wide", "combine": "mean", "max_attempts": 2, "edge_tol": 0.01},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
def test_going_on_gives_the_students_of_one_fit(data, params):
    clf = small_clf(**{"max_epochs": 4, **params})
    grid = {"learning_rate": [0.003, 0.03], "batch_size": [16]}
    found = HalvingStagedSearchCV(clf, grid, factor=1.4, cv=KFold(3)).fit(*data)
    assert len(found.n_candidates_) == 2
    is_part_of(
        found.cv_results_, StagedSearchCV(clf, grid, cv=KFold(3)).fit(*data).cv_results_
    )


def test_eta_is_planned_for_all_rounds_in_each_rung(data, monkeypatch):
    etas = []
    fit = BDistilClassifier.fit

    def record(self, *args, **kwargs):
        fit(self, *args, **kwargs)
        etas.append(self.eta_)
        return self

    monkeypatch.setattr(BDistilClassifier, "fit", record)
    clf = small_clf(n_estimators=12, max_epochs=1)
    split = ShuffleSplit(1, random_state=0)
    HalvingStagedSearchCV(clf, {"learning_rate": [0.01, 0.1]}, factor=2, cv=split).fit(
        *data
    )
    train, _ = next(split.split(*data))
    full = clone(clf).fit(data[0][train], data[1][train])
    assert etas[:3] == [full.eta_] * 3
    short = clone(clf).set_params(n_estimators=6).fit(data[0][train], data[1][train])
    assert short.eta_ != full.eta_


@pytest.mark.parametrize("n_targets", [1, 2])
def test_regression(n_targets):
    X, y = make_regression(60, n_features=4, n_targets=n_targets, random_state=0)
    reg = BDistilRegressor(Ridge(), **SMALL)
    found = HalvingStagedSearchCV(reg, GRID, cv=2).fit(X, y)
    is_part_of(found.cv_results_, StagedSearchCV(reg, GRID, cv=2).fit(X, y).cv_results_)
    assert found.predict(X).shape == y.shape


def test_no_round_is_played_twice(data, monkeypatch):
    seeds = []
    played = WeakLearnerSearch.find

    def count(self, *args, seed, **kwargs):
        seeds.append(seed)
        return played(self, *args, seed=seed, **kwargs)

    monkeypatch.setattr(WeakLearnerSearch, "find", count)
    HalvingStagedSearchCV(small_clf(), GRID, cv=2, refit=False).fit(*data)
    assert len(seeds) == 2 * (3 * 1 + 1 * 2)


def test_pipeline_with_random_steps_and_no_seeds_goes_on_with_the_same_rows(data):
    seen = []

    def record(X):
        seen.append(X.sum())
        return X

    pipeline = Pipeline(
        [
            ("project", RandomProjection()),
            ("record", FunctionTransformer(record)),
            ("clf", small_clf(random_state=None)),
        ]
    )
    grid = {f"clf__{name}": values for name, values in GRID.items()}
    split = ShuffleSplit(1, random_state=0)
    search = HalvingStagedSearchCV(pipeline, grid, cv=split, refit=False).fit(*data)
    # Rows to train on and to test on, of three candidates and of one of these again.
    *train, again = seen[::2]
    assert len(set(train)) == 3
    assert again in train
    assert list(search.best_params_) == ["clf__learning_rate", "clf__n_stages"]


class RandomProjection(StandardScaler):
    """Rows times other random numbers in each fit without a seed."""

    def __init__(self, random_state=None):
        super().__init__()
        self.random_state = random_state

    def fit(self, X, y=None):
        super().fit(X)
        rng = np.random.mtrand._rand
        if self.random_state is not None:
            rng = np.random.RandomState(self.random_state)
        self.factors_ = rng.uniform(1, 2, X.shape[1])
        return self

    def transform(self, X):
        return X * self.factors_


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_students_without_a_seed_go_on(data, random_state):
    search = HalvingStagedSearchCV(
        small_clf(random_state=random_state), GRID, cv=2, error_score="raise"
    ).fit(*data)
    assert search.n_candidates_ == [3, 1]
    assert sorted(n_played(search)) == [1, 1, 3]
    assert type(search.best_estimator_.random_state) is type(random_state)


def test_pipeline_equals_a_full_search(data):
    pipeline = Pipeline([("scale", StandardScaler()), ("clf", small_clf())])
    grid = {f"clf__{name}": values for name, values in GRID.items()}
    found = HalvingStagedSearchCV(pipeline, grid, cv=2).fit(*data)
    expected = StagedSearchCV(pipeline, grid, cv=2).fit(*data)
    is_part_of(found.cv_results_, expected.cv_results_)


def test_final_estimators_in_the_grid(data):
    pipeline = Pipeline([("clf", small_clf())])
    grid = {"clf": [small_clf(max_epochs=epochs) for epochs in (1, 2, 3)]}
    found = HalvingStagedSearchCV(pipeline, grid, cv=2).fit(*data)
    assert found.n_candidates_ == [3, 1]
    assert not hasattr(grid["clf"][0], "ensemble_")
    pipeline.set_params(clf=small_clf())
    grid["clf"][1] = LogisticRegression()
    message = "'estimator' must be a BDistilClassifier or a BDistilRegressor, or a"
    with pytest.raises(TypeError, match=message):
        HalvingStagedSearchCV(pipeline, grid, cv=2).fit(*data)


def test_candidates_with_fewer_rounds_are_through_earlier(data):
    grid = {"n_estimators": [1, 2, 4], "learning_rate": [0.01, 0.1]}
    found = HalvingStagedSearchCV(small_clf(), grid, factor=1.5, cv=2).fit(*data)
    assert found.n_candidates_ == [6, 4, 2, 1]
    assert found.n_resources_ == [1, 2, 3, 4]
    expected = StagedSearchCV(small_clf(), grid, cv=2).fit(*data)
    is_part_of(found.cv_results_, expected.cv_results_)


# Who goes on


def test_a_budget_decides_who_goes_on(data, full):
    wide = partial(MLP, hidden=(64,))
    grid = {"student": [SMALL["student"], wide, wide]}
    budget = full.cv_results_["mean_test_cost"][2]
    search = HalvingStagedSearchCV(small_clf(), grid, refit=best_under(budget), cv=2)
    search.fit(*data)
    played = [
        (params["student"], params["n_stages"])
        for params in search.cv_results_["params"]
    ]
    assert search.n_candidates_ == [3, 1]
    assert (SMALL["student"], 3) in played
    assert (wide, 2) not in played
    with pytest.raises(ValueError, match="No candidate is within the budget"):
        search.set_params(refit=best_under(1)).fit(*data)


def test_fewer_go_on_where_refit_chooses_no_more(data):
    wide = [partial(MLP, hidden=(width,)) for width in (64, 65, 66, 67, 68)]
    grid = {"student": [SMALL["student"], *wide]}
    search = HalvingStagedSearchCV(small_clf(), grid, refit=best_under(100), cv=2)
    assert search.fit(*data).n_candidates_ == [6, 1]


@pytest.mark.parametrize(
    ("scoring", "refit"),
    [
        (["accuracy", "neg_log_loss"], "neg_log_loss"),
        (["accuracy", "roc_auc"], cheapest_within(0.01, score="roc_auc")),
        (lambda clf, X, y: {"acc": clf.score(X, y), "zero": 0.0}, "acc"),
        ("neg_log_loss", True),
        ("neg_log_loss", False),
        (None, lambda cv_results: int(np.argmin(cv_results["rank_test_score"]))),
        (None, lambda results: list(results["rank_test_score"]).index(1)),
    ],
)
def test_scores_and_refit(data, scoring, refit):
    settings = {
        "scoring": scoring,
        "refit": refit,
        "cv": 2,
        "return_train_score": True,
    }
    found = HalvingStagedSearchCV(small_clf(), GRID, **settings).fit(*data)
    expected = StagedSearchCV(small_clf(), GRID, **settings).fit(*data)
    is_part_of(found.cv_results_, expected.cv_results_)
    assert sorted(n_played(found)) == [1, 1, 3]
    assert found.multimetric_ == expected.multimetric_
    assert repr(found.scorer_) == repr(expected.scorer_)
    assert hasattr(found, "best_estimator_") == bool(refit)
    if refit:
        chosen = found.best_params_
        assert found.best_index_ == found.cv_results_["params"].index(chosen)
    if refit and not (callable(refit) and found.multimetric_):
        assert found.score(*data) <= 1


@pytest.mark.parametrize(
    "scoring",
    [["accuracy", "roc_auc"], lambda clf, X, y: {"acc": clf.score(X, y), "zero": 0.0}],
)
def test_several_scores_need_one_that_decides(data, scoring):
    search = HalvingStagedSearchCV(
        small_clf(), GRID, scoring=scoring, refit=False, cv=2
    )
    with pytest.raises(ValueError, match=r"'refit' must say which .* Got False"):
        search.fit(*data)
    with pytest.raises(ValueError, match="parameter refit must be set to a scorer key"):
        search.set_params(refit=True).fit(*data)


# Fits that fail or end early


@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_candidates_that_fail_do_not_go_on(data):
    grid = {"learning_rate": [-1.0, -2.0, 0.01, -3.0]}
    search = HalvingStagedSearchCV(small_clf(), grid, factor=2, cv=2)
    with pytest.warns(FitFailedWarning, match="6 fits failed out of a total of 8"):
        search.fit(*data)
    # Two are asked for in the second rung.
    assert search.n_candidates_ == [4, 1, 1]
    scores = search.cv_results_["mean_test_score"]
    assert_array_equal(np.isnan(scores), [True, True, False, False, False, True])
    with pytest.raises(ValueError, match="'learning_rate' parameter of BDistil"):
        search.set_params(error_score="raise").fit(*data)


@pytest.mark.filterwarnings("ignore:One or more of the t")
def test_a_failed_fit_is_not_tried_again(data):
    grid = {"learning_rate": [-1.0, 0.01, 0.1]}
    search = HalvingStagedSearchCV(
        small_clf(), grid, factor=1.5, refit=False, error_score=2.0, cv=2
    )
    with pytest.warns(FitFailedWarning) as warned:
        search.fit(*data)
    assert len(warned) == 1
    assert search.n_candidates_ == [3, 2, 1]
    assert search.best_params_ == {"learning_rate": -1.0}
    assert search.best_score_ == 2.0


def test_boosting_that_has_ended_is_not_played_again(data):
    clf = small_clf(
        n_estimators=4,
        connection="dense",
        combine="mean",
        edge_tol=0.01,
        max_epochs=5,
        learning_rate=0.05,
        random_state=1,
    )
    grid = {"batch_size": [16, "auto"]}
    found = HalvingStagedSearchCV(clf, grid, factor=1.4, cv=KFold(3), refit=False)
    expected = StagedSearchCV(clf, grid, cv=KFold(3), refit=False)
    n_warned = []
    for search in (found, expected):
        with pytest.warns(WeakLearnerNotFoundWarning) as warned:
            search.fit(*data)
        n_warned.append(len(warned))
    assert n_warned[0] <= n_warned[1]
    is_part_of(found.cv_results_, expected.cv_results_)


# Refusals


@pytest.mark.parametrize("refine", ["final", "rounds", "only"])
def test_refinement_is_refused(data, refine):
    message = f"'refine' must be None in each candidate: .* Got {refine!r}"
    with pytest.raises(ValueError, match=message):
        HalvingStagedSearchCV(small_clf(refine=refine), GRID).fit(*data)
    with pytest.raises(ValueError, match=message):
        HalvingStagedSearchCV(small_clf(), {"refine": [None, refine]}).fit(*data)


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), EarlyExitClassifier(small_clf())],
    ids=["no stages", "early exit"],
)
def test_estimators_without_stages_are_refused(data, estimator):
    with pytest.raises(TypeError, match="'estimator' must have a parameter 'n_stages'"):
        HalvingStagedSearchCV(estimator, {}).fit(*data)


def test_parameters_are_validated(data):
    for params, message in (
        ({"factor": 1}, "The 'factor' parameter of HalvingStagedSearchCV must be"),
        ({"min_rounds": 0}, "The 'min_rounds' parameter of HalvingStagedSearchCV must"),
        ({"min_rounds": 4}, r"'min_rounds' must be at most n_estimators=3. Got 4"),
        ({"param_grid": {"n_stages": [1]}}, "'param_grid' must not contain 'n_stages'"),
        ({"cv": []}, "'cv' must give at least one split"),
    ):
        search = HalvingStagedSearchCV(small_clf(), GRID).set_params(**params)
        with pytest.raises(ValueError, match=message):
            search.fit(*data)
    for n_estimators in (0, None, 2.5):
        message = f"'n_estimators' must be an int of at least 1 .* Got {n_estimators!r}"
        with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
            HalvingStagedSearchCV(small_clf(), {"n_estimators": [n_estimators]}).fit(
                *data
            )


# As any search


def test_metadata_routing(data):
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
        settings = {"scoring": scorer, "cv": GroupKFold(3)}
        found = HalvingStagedSearchCV(clf, GRID, **settings).fit(X, y, **metadata)
        expected = StagedSearchCV(clf, GRID, **settings).fit(X, y, **metadata)
    is_part_of(found.cv_results_, expected.cv_results_)


def test_rows_of_metadata_are_split_with_the_rows(data):
    X, y = data
    scores = LogisticRegression().fit(X, y).predict_log_proba(X)
    weight = np.random.RandomState(0).uniform(0.1, 1, size=90)
    clf = BDistilClassifier("precomputed", **SMALL)
    metadata = {"teacher_scores": scores, "sample_weight": weight}
    found = HalvingStagedSearchCV(clf, GRID, cv=2).fit(X, y, **metadata)
    expected = StagedSearchCV(clf, GRID, cv=2).fit(X, y, **metadata)
    is_part_of(found.cv_results_, expected.cv_results_)


def test_processes_give_the_same_results(data):
    teacher = FrozenEstimator(LogisticRegression().fit(*data))
    clf = BDistilClassifier(teacher, **SMALL)
    alone = HalvingStagedSearchCV(clf, GRID, cv=2).fit(*data)
    parallel = clone(alone).set_params(n_jobs=2).fit(*data)
    is_part_of(parallel.cv_results_, alone.cv_results_)
    assert parallel.n_candidates_ == alone.n_candidates_
    assert parallel.best_params_ == alone.best_params_


def test_search_in_a_cross_validation(data):
    grid = {"learning_rate": [0.01, 0.03, 0.1]}
    search = HalvingStagedSearchCV(small_clf(), grid, cv=2, error_score="raise")
    found = cross_validate(search, *data, cv=2, return_estimator=True)
    assert [fitted.n_candidates_ for fitted in found["estimator"]] == [[3, 1]] * 2


def test_verbose_search_prints_rungs_and_scores(data, capsys):
    HalvingStagedSearchCV(small_clf(), GRID, cv=2, verbose=3, refit=False).fit(*data)
    printed = capsys.readouterr().out
    assert "Rung 2 of 2: 1 candidate(s) on 2 split(s), up to 3 round(s)" in printed
    assert printed.count("score=") == 8


def test_fitted_search_is_copied_and_stored(search, data):
    loaded = pickle.loads(pickle.dumps(search))
    assert_array_equal(loaded.predict(data[0]), search.predict(data[0]))
    assert not hasattr(clone(search), "cv_results_")
    assert "best_estimator_" in search._repr_html_()


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
# How scikit-learn looks at infinite labels before it refuses them.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@parametrize_with_checks(
    [
        HalvingStagedSearchCV(
            kind(dtype="float64", **CHECKED),
            {},
            cv=2,
            error_score="raise",
        )
        for kind in (BDistilClassifier, BDistilRegressor)
    ],
)
def test_estimator_checks(estimator, check):
    check(estimator)
