"""What the package asks of its fitted estimators, and the copy that shares."""

import ast
from functools import partial
from inspect import isfunction
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, is_classifier
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import AdaBoostClassifier
from sklearn.linear_model import LogisticRegression, Ridge

import skbdistil
from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._exit_rules import as_decision, in_units
from skbdistil._protocol import StagedEstimator, UpdatableEstimator, shallow_copy
from skbdistil._sklearn_compat import CallbackSupportMixin

METHODS = {
    name
    for protocol in (StagedEstimator, UpdatableEstimator)
    for name, method in vars(protocol).items()
    if isfunction(method) and not name.startswith("__")
}


def classification(n_classes):
    X, y = make_classification(
        n_samples=60, n_informative=4, n_classes=n_classes, random_state=0
    )
    return BDistilClassifier(LogisticRegression(max_iter=300), **SMALL).fit(X, y), X


def regression(n_targets):
    X, y = make_regression(n_samples=60, n_targets=n_targets, random_state=0)
    return BDistilRegressor(Ridge(), **SMALL).fit(X, y), X


FITTED = [
    pytest.param(partial(classification, 2), 2, id="two classes"),
    pytest.param(partial(classification, 3), 3, id="three classes"),
    pytest.param(partial(regression, 1), 1, id="one target"),
    pytest.param(partial(regression, 2), 2, id="two targets"),
]


@pytest.mark.parametrize("cls", [BDistilClassifier, BDistilRegressor])
def test_estimators_satisfy_the_protocol(cls):
    assert isinstance(cls(), StagedEstimator)


def test_other_staged_estimators_do_not_satisfy_the_protocol():
    assert not isinstance(AdaBoostClassifier(), StagedEstimator)


@pytest.mark.parametrize(("fit", "n_outputs"), FITTED)
@pytest.mark.parametrize("n_stages", [None, 2])
def test_scores_are_those_of_every_stage_in_use(fit, n_outputs, n_stages):
    estimator, X = fit()
    estimator.set_params(n_stages=n_stages)
    n_used = estimator._n_stages_used()
    assert n_used == (n_stages or 3)
    scores = estimator._stage_scores(X)
    assert scores.shape == (n_used, len(X), n_outputs)
    if is_classifier(estimator):
        staged, output = estimator.staged_decision_function, as_decision
    else:
        staged, output = (
            estimator.staged_predict,
            partial(
                in_units,
                mean=estimator.target_mean_,
                scale=estimator.target_scale_,
                single_output=estimator.single_output_,
            ),
        )
    for of_stage, expected in zip(scores, staged(X), strict=True):
        assert_array_equal(output(of_stage), expected)


@pytest.mark.parametrize(("fit", "n_outputs"), FITTED)
def test_states_give_the_same_scores(fit, n_outputs, monkeypatch):
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda shape, device: 25)
    estimator, X = fit()
    expected = estimator._stage_scores(X)
    position = 0
    n_stages = estimator._n_stages_used()
    for rows, state in estimator._stage_states(X, n_ahead=n_stages):
        assert rows.start == position
        position = rows.stop
        with torch.inference_mode():
            for stage in range(n_stages):
                state.advance()
                assert_array_equal(state.mean, expected[stage, rows])
    assert position == len(X)


def test_no_other_private_method_of_the_estimators_is_called_from_outside():
    private = {
        name
        for cls in (BDistilClassifier, BDistilRegressor)
        for name in dir(cls)
        if name.startswith("_") and callable(getattr(cls, name))
        # What Python calls by itself, and what scikit-learn gives estimators.
        if not name.startswith("__")
        if not hasattr(BaseEstimator, name)
        if not hasattr(CallbackSupportMixin, name)
    }
    assert METHODS < private
    root = Path(skbdistil.__file__).parent
    called = set()
    for path in root.rglob("*.py"):
        if path.name == "_bdistil.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_own = isinstance(getattr(node, "value", None), ast.Name) and (
                node.value.id in ("self", "cls")
            )
            if isinstance(node, ast.Attribute) and not is_own:
                called.add(node.attr)
    assert called & private == METHODS


# The copy


class NoPickle:
    """What an estimator does for its pickles is none of the copy's business."""

    def __getstate__(self):
        raise AssertionError("not for pickles")


def test_shallow_copy_shares_attributes_and_sets_its_own():
    original = NoPickle()
    original.weights, original.n_stages = [1, 2], None
    other = shallow_copy(original)
    assert type(other) is NoPickle
    assert other.weights is original.weights
    other.n_stages = 1
    assert original.n_stages is None


def test_shallow_copy_of_a_fitted_estimator_predicts_the_same():
    clf, X = classification(3)
    other = shallow_copy(clf)
    assert other.ensemble_ is clf.ensemble_
    assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
