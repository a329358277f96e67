"""scikit-learn's battery of estimator checks."""

from functools import partial

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.students import MLP

# Enough to pass the checks of accuracy; the teacher is the default one, fitted inside,
# since a frozen one could not follow the changing numbers of features.
SETTINGS = {
    "student": partial(MLP, hidden=(64,)),
    "n_estimators": 2,
    "max_epochs": 20,
    "learning_rate": 0.02,
    "random_state": 0,
}


def expected_failures(estimator):
    weights = (
        "Rows repeated k times are k chances to be drawn into a batch, a row of weight "
        "k is one: the expected gradient agrees, the sequence of batches does not. "
        "scikit-learn exempts AdaBoost from this check for the like reason."
    )
    expected = {"check_sample_weight_equivalence_on_dense_data": weights}
    if estimator.dtype == "float32":
        expected["check_methods_subset_invariance"] = (
            "Products of matrices of one row and of many differ by the rounding of "
            "float32, about 1e-7, which is what the check allows."
        )
    return expected


# Some checks have labels that are noise: the students rightly fail to follow a forest.
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
@parametrize_with_checks(
    [
        estimator(dtype=dtype, **SETTINGS)
        for estimator in (BDistilClassifier, BDistilRegressor)
        for dtype in ("float64", "float32")
    ],
    expected_failed_checks=expected_failures,
)
def test_estimator_checks(estimator, check):
    check(estimator)
