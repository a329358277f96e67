"""scikit-learn's battery of estimator checks."""

import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from common import CHECKED
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.cascade import CascadeClassifier
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.online import OnlineBDistil

EXPECTED_FAILURES = dict.fromkeys(
    (
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    ),
    "A row repeated k times has k chances to be drawn into a batch, a row of weight k "
    "has one: the expected gradient agrees, the sequence of batches does not. "
    "scikit-learn exempts AdaBoost from this check for a like reason.",
)

# Compare a row with itself, elsewhere in a batch. On some processors the product of a
# matrix rounds it otherwise there, and these checks allow what is right for float64.
OF_ROWS_ELSEWHERE = {
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
}


def assert_equal_in_float32(found, expected, *, atol, err_msg):
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=err_msg)


TIERS = [
    [LogisticRegression(), DecisionTreeClassifier(random_state=0)],
    LogisticRegression(C=10),
]


# The teacher is the default one, fitted inside, since a frozen one could not follow the
# changing numbers of features.
# Some checks have labels that are noise: the students rightly fail to follow a forest.
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
@parametrize_with_checks(
    [
        estimator(dtype=dtype, **CHECKED)
        for estimator in (BDistilClassifier, BDistilRegressor)
        for dtype in ("float64", "float32")
    ]
    + [
        EarlyExitClassifier(
            BDistilClassifier(dtype=dtype, **CHECKED), cv=cv, random_state=0
        )
        for dtype, cv in (("float64", 0.2), ("float32", 2))
    ]
    + [
        # It has no stream here, and its teacher is not asked.
        OnlineBDistil(BDistilClassifier(dtype="float64", **CHECKED), teacher=len),
        CascadeClassifier(TIERS),
        CascadeClassifier(
            TIERS,
            rule="confidence",
            threshold="calibrate",
            costs=[1, 9],
            random_state=0,
        ),
        EarlyExitRegressor(BDistilRegressor(**CHECKED), 1.0, random_state=0),
        SplitConformalRegressor(BDistilRegressor(**CHECKED), random_state=0),
    ],
    # The others have no sample weights of their own.
    expected_failed_checks=lambda estimator: (
        EXPECTED_FAILURES
        if isinstance(estimator, BDistilClassifier | BDistilRegressor)
        else {}
    ),
)
def test_estimator_checks(estimator, check, monkeypatch):
    is_float32 = "float32" in estimator.get_params().values()
    if is_float32 and check.func.__name__ in OF_ROWS_ELSEWHERE:
        monkeypatch.setattr(
            estimator_checks, "assert_allclose_dense_sparse", assert_equal_in_float32
        )
    check(estimator)
