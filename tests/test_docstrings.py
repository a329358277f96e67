"""What twins have in common is documented in the same words."""

import inspect
from functools import wraps

import pytest
from numpydoc.docscrape import NumpyDocString
from sklearn.utils._testing import assert_docstring_consistency

from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.inspection import (
    AccuracyCostDisplay,
    ConvergenceDisplay,
    EarlyExitDisplay,
)
from skbdistil.metrics import accuracy_cost_area, cost_at_score, score_at_cost
from skbdistil.model_selection import best_under, cheapest_within
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession

ESTIMATORS = [BDistilClassifier, BDistilRegressor]

# What the two estimators say in words of their own.
OWN_PARAMETERS = ["dtype", "objective", "teacher"]
OWN_ATTRIBUTES = ["certificate_", "student_edges_", "teacher_bound_", "teacher_score_"]


def documented(cls, section):
    return {entry.name for entry in NumpyDocString(inspect.getdoc(cls))[section]}


def shared(section):
    """Names of what both estimators document, sorted."""
    classifier, regressor = (documented(cls, section) for cls in ESTIMATORS)
    return sorted(classifier & regressor)


def test_estimators_have_the_same_parameters():
    classifier, regressor = (inspect.signature(cls).parameters for cls in ESTIMATORS)
    both = classifier.keys() & regressor.keys()
    assert set(classifier) == {*both, "class_weight"}
    assert set(regressor) == {*both, "output_schedule"}
    assert all(classifier[name] == regressor[name] for name in both)
    assert shared("Parameters") == sorted(both)


@pytest.mark.parametrize("name", shared("Parameters"))
def test_parameters_of_the_estimators_are_documented_alike(name):
    if name in OWN_PARAMETERS:
        # Else it needs no exemption any more.
        with pytest.raises(AssertionError, match=name):
            assert_docstring_consistency(ESTIMATORS, include_params=[name])
    else:
        assert_docstring_consistency(ESTIMATORS, include_params=[name])


@pytest.mark.parametrize("name", shared("Attributes"))
def test_attributes_of_the_estimators_are_documented_alike(name):
    if name in OWN_ATTRIBUTES:
        with pytest.raises(AssertionError, match=name):
            assert_docstring_consistency(ESTIMATORS, include_attrs=[name])
    else:
        assert_docstring_consistency(ESTIMATORS, include_attrs=[name])


def test_exemptions_are_of_what_both_estimators_have():
    assert set(OWN_PARAMETERS) <= set(shared("Parameters"))
    assert set(OWN_ATTRIBUTES) <= set(shared("Attributes"))


def named_in_full(function):
    """A stand-in under the qualified name, by which scikit-learn tells them apart.

    It says that it returns what the function yields.
    """

    @wraps(function)
    def stand_in():
        raise NotImplementedError

    doc = inspect.getdoc(function)
    stand_in.__doc__ = doc.replace("Yields\n------", "Returns\n-------")
    stand_in.__name__ = function.__qualname__
    return stand_in


def methods(cls, *names):
    return [getattr(cls, name) for name in names]


FROM = ("from_estimator", "from_predictions", "from_cv_results")
RESPONSES = ("predict", "predict_proba", "decision_function")
STAGED = ("staged_predict", "staged_predict_proba", "staged_decision_function")


@pytest.mark.parametrize(
    ("functions", "names"),
    [
        (
            [
                *methods(BDistilClassifier, *RESPONSES, *STAGED, "predict_log_proba"),
                *methods(BDistilRegressor, "predict", "staged_predict"),
                *methods(EarlyExitClassifier, *RESPONSES, "exit_stages", "exit_path"),
                *methods(EarlyExitClassifier, "predict_with_cost", "predict_within"),
                EarlyExitRegressor.predict,
            ],
            ["X"],
        ),
        (
            methods(
                ProgressiveSession,
                *RESPONSES,
                "staged_predict",
                "staged_predict_proba",
                "exit_stages",
                "predict_within",
            ),
            ["X"],
        ),
        (methods(EarlyExitClassifier, "anytime", "predict_within"), ["method"]),
        (
            methods(AccuracyCostDisplay, *FROM),
            ["teacher", "relative", "ax", "**kwargs"],
        ),
        (methods(AccuracyCostDisplay, *FROM, "plot"), ["relative", "**kwargs"]),
        (methods(ConvergenceDisplay, "from_estimator", "plot"), ["ax", "**kwargs"]),
        (methods(EarlyExitDisplay, "from_estimator", "plot"), ["ax", "**kwargs"]),
        ([ConvergenceDisplay.plot, EarlyExitDisplay.plot], ["name", "**kwargs"]),
        ([ConvergenceDisplay, EarlyExitDisplay], ["estimator_name"]),
        ([accuracy_cost_area, cost_at_score, score_at_cost], ["costs", "scores"]),
        ([best_under, cheapest_within], ["cost", "score"]),
        ([save, load], ["path"]),
    ],
    ids=lambda item: item[0].__qualname__ if callable(item[0]) else "-".join(item),
)
def test_parameters_of_twins_are_documented_alike(functions, names):
    stand_ins = [named_in_full(function) for function in functions]
    assert_docstring_consistency(stand_ins, include_params=names)


@pytest.mark.parametrize("response", RESPONSES)
def test_responses_of_classifiers_have_the_same_type(response):
    stand_ins = [
        named_in_full(function)
        for function in (
            *methods(BDistilClassifier, response, f"staged_{response}"),
            getattr(EarlyExitClassifier, response),
        )
    ]
    # Each describes them in its own words.
    assert_docstring_consistency(
        stand_ins, include_returns=True, descr_regex_pattern="^"
    )


def test_predictions_of_regressors_have_the_same_type():
    stand_ins = map(
        named_in_full, methods(BDistilRegressor, "predict", "staged_predict")
    )
    assert_docstring_consistency(list(stand_ins), include_returns=True)
