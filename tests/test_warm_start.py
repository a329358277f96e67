"""The last stages trained anew, while the first ones stay as they are."""

import pickle
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import COMBINATIONS, CONNECTIONS, SMALL, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.ensemble import Lateral
from skbdistil.export import to_onnx
from skbdistil.model_selection import HalvingStagedSearchCV, StagedSearchCV
from skbdistil.persistence import load, save
from skbdistil.students import MLP

DEEP = partial(MLP, hidden=(4, 4, 4))

# What the last stages are trained with.
OTHER = {"learning_rate": 0.05, "max_epochs": 3, "batch_size": 16}

ESTIMATORS = pytest.mark.parametrize(
    ("estimator", "teacher", "objective"),
    [
        (BDistilClassifier, LogisticRegression(), "kl"),
        (BDistilRegressor, LinearRegression(), "squared_error"),
    ],
    ids=["classifier", "regressor"],
)
GRID = {"learning_rate": [0.003, 0.03, 0.3]}


@pytest.fixture
def going_on(clf):
    """Trains two rounds behind the first student of another fit."""
    return clone(clf).set_params(warm_start=FrozenEstimator(clf[:1]), **OTHER)


# The first students


@ESTIMATORS
@pytest.mark.parametrize(
    ("connection", "combine"),
    [
        *((connection, "learned") for connection in CONNECTIONS),
        *(("dense", combine) for combine in COMBINATIONS[:2]),
        (Lateral(shared_blocks=1), "mean"),
    ],
    ids=str,
)
def test_last_stages_are_trained_anew_and_the_first_keep_their_bits(
    data, estimator, teacher, objective, connection, combine
):
    options = {**SMALL, "student": DEEP, "connection": connection, "combine": combine}
    model = estimator(teacher, **options).fit(*data)
    kept = model[:1]
    other = {**OTHER, "objective": objective, "student": partial(MLP, hidden=(4, 4, 3))}
    by_hand = model[:1].set_params(warm_start=True, **other).fit(*data)
    held = clone(model).set_params(warm_start=FrozenEstimator(kept), **other)
    held.fit(*data)
    assert len(by_hand) == len(held) == 3
    assert student_bits(held[:1]) == student_bits(by_hand[:1]) == student_bits(kept)
    assert student_bits(held) == student_bits(by_hand) != student_bits(model)
    # The game is planned for as many rounds as before, and what it says of the first
    # students stays true.
    assert held.eta_ == model.eta_
    assert_array_equal(held.certificate_.bound[:1], model.certificate_.bound[:1])
    assert_array_equal(held.student_edges_[:1], model.student_edges_[:1])
    first, again = (next(iter(m.staged_predict(data[0]))) for m in (model, held))
    assert_array_equal(first, again)


def test_same_settings_give_the_same_last_stages(clf, data):
    held = clone(clf).set_params(warm_start=FrozenEstimator(clf[:2])).fit(*data)
    assert student_bits(held) == student_bits(clf)


def test_each_fit_begins_with_the_same_students(clf, data, going_on):
    before = student_bits(clf)
    first = student_bits(going_on.fit(*data))
    # A fit of its own would have nothing left to train.
    assert student_bits(going_on.fit(*data)) == first
    assert student_bits(clone(going_on).fit(*data)) == first
    assert student_bits(going_on.warm_start.estimator) == student_bits(clf[:1])
    assert student_bits(clf) == before
    # Students that were there before are dropped.
    own = clone(clf).fit(data[0], data[1][::-1])
    own.set_params(warm_start=going_on.warm_start, **OTHER)
    assert student_bits(own.fit(*data)) == first


def test_fit_that_fails_keeps_what_was_fitted_before(data, going_on):
    before = student_bits(going_on.fit(*data))
    with pytest.raises(ValueError, match="shape"):
        going_on.fit(data[0][:, :, None], data[1])
    assert student_bits(going_on) == before
    going_on.set_params(warm_start=FrozenEstimator(LogisticRegression()))
    with pytest.raises(ValueError, match="around a fitted BDistilClassifier"):
        going_on.fit(*data)
    assert student_bits(going_on) == before


def test_first_students_from_a_file(clf, data, going_on, tmp_path):
    expected = student_bits(going_on.fit(*data))
    save(clf, tmp_path / "model")
    # The teacher is not in the file.
    loaded = load(tmp_path / "model")[:1].set_params(teacher=clf.teacher)
    assert student_bits(loaded.set_params(warm_start=True, **OTHER).fit(*data)) == (
        expected
    )
    save(going_on, tmp_path / "going on")
    for again in (load(tmp_path / "going on"), pickle.loads(pickle.dumps(going_on))):
        assert student_bits(again) == expected
        again.set_params(teacher=clf.teacher)
        assert student_bits(clone(again).fit(*data)) == expected


def test_stages_that_a_device_has_are_exported_to_the_same_bytes(
    clf, data, going_on, tmp_path
):
    to_onnx(clf[:2], tmp_path / "before")
    to_onnx(going_on.set_params(n_estimators=2).fit(*data), tmp_path / "after")
    before, after = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("*.onnx"))]
        for name in ("before", "after")
    )
    assert len(before) == len(after) == 2
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


def test_checkpoint_of_the_last_stages(data, going_on, tmp_path):
    expected = student_bits(going_on.fit(*data))
    going_on.set_params(checkpoint=tmp_path)
    assert student_bits(going_on.fit(*data)) == expected
    assert student_bits(going_on.fit(*data)) == expected
    (path,) = tmp_path.iterdir()
    # As by a warm start of the estimator itself.
    by_hand = going_on.warm_start.estimator[:1].set_params(
        warm_start=True, checkpoint=tmp_path, **OTHER
    )
    assert student_bits(by_hand.fit(*data)) == expected
    assert list(tmp_path.iterdir()) == [path]


# Searches


@pytest.mark.parametrize(
    "search", [GridSearchCV, StagedSearchCV, HalvingStagedSearchCV]
)
def test_search_over_the_last_stages(clf, data, going_on, search):
    found = search(going_on, GRID, cv=KFold(2)).fit(*data)
    best = found.best_estimator_
    assert len(best) == 3
    assert student_bits(best[:1]) == student_bits(clf[:1])
    params = {"learning_rate": found.best_params_["learning_rate"]}
    assert student_bits(clone(going_on).set_params(**params).fit(*data)) == (
        student_bits(best)
    )
    # And once more, behind what the search has found.
    best = best[:2].set_params(n_stages=None, warm_start=True, max_epochs=1).fit(*data)
    assert student_bits(best[:2]) == student_bits(found.best_estimator_[:2])


def test_halving_counts_the_rounds_that_are_left(data, going_on):
    going_on = make_pipeline(StandardScaler(), going_on.set_params(n_estimators=5))
    grid = {f"bdistilclassifier__{name}": values for name, values in GRID.items()}
    full = StagedSearchCV(going_on, grid, cv=KFold(2)).fit(*data)
    found = HalvingStagedSearchCV(going_on, grid, cv=KFold(2)).fit(*data)
    # One round of the four, and then all of them.
    assert (found.n_candidates_, found.n_resources_) == ([3, 1], [2, 5])
    scores = dict(
        zip(map(str, full.cv_results_["params"]), scores_of(full), strict=True)
    )
    assert scores_of(found) == [scores[str(p)] for p in found.cv_results_["params"]]
    with pytest.raises(ValueError, match="n_estimators=5 less the 1 of 'warm_start'"):
        HalvingStagedSearchCV(going_on, grid, min_rounds=5).fit(*data)


def scores_of(search):
    return search.cv_results_["mean_test_score"].tolist()


# What is refused


@pytest.mark.parametrize(
    "first", [LogisticRegression(), BDistilClassifier(), BDistilRegressor()], ids=str
)
def test_what_is_no_earlier_fit_raises(clf, data, first):
    model = clone(clf).set_params(warm_start=FrozenEstimator(first))
    with pytest.raises(ValueError, match=r"'warm_start'.*fitted BDistilClassifier"):
        model.fit(*data)


def test_earlier_fit_that_clone_would_strip_raises(clf, data):
    with pytest.raises(ValueError, match=r"'warm_start'.*FrozenEstimator"):
        clone(clf).set_params(warm_start=clf[:1]).fit(*data)


def test_other_rows_than_those_of_the_earlier_fit_raise(data, going_on):
    with pytest.raises(ValueError, match="5 features"):
        going_on.fit(data[0][:, 1:], data[1])


def test_schedule_that_ends_before_all_outputs_have_joined_raises():
    X, y = make_regression(40, n_features=4, n_targets=2, random_state=0)
    reg = BDistilRegressor(
        LinearRegression(),
        **{**SMALL, "n_estimators": 1},
        output_schedule=[[0], [1]],
        warm_start=True,
    ).fit(X, y)
    held = clone(reg).set_params(warm_start=FrozenEstimator(reg))
    with pytest.raises(ValueError, match="has 2 groups"):
        held.fit(X, y)
    assert np.isfinite(held.set_params(n_estimators=2).fit(X, y).predict(X)).all()
