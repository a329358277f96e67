"""Students that no round has trained: ``refine="only"``."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from torch import nn

from common import SMALL, raises
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting._loop import Boosting
from skbdistil.students import MLP, ConvNet2d

JOINT = {**SMALL, "refine": "only"}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600]


def test_joint_students_are_played_through_the_game(data):
    X, _ = data
    scores = np.stack([X[:, 0] - X[:, 1], X[:, 1] - X[:, 0]], axis=1)
    y = scores.argmax(axis=1)
    clf = BDistilClassifier("precomputed", **JOINT).fit(X, y, teacher_scores=scores)
    assert len(clf) == JOINT["n_estimators"]
    assert clf.student_edges_.shape == (3, 2)
    assert_array_equal(clf.student_edges_[0], 0)
    reg = BDistilRegressor("precomputed", **JOINT).fit(X, scores, teacher_scores=scores)
    off = [np.abs(stage - scores).max(axis=0) for stage in reg.staged_predict(X)]
    assert_allclose(reg.certificate_.actual, off, rtol=1e-4)


def test_joint_epochs_cost_what_a_network_for_each_stage_would(data):
    clf = BDistilClassifier(**{**JOINT, "max_epochs": 3, "n_estimators": 4}).fit(*data)
    assert clf.refine_epochs_ == 8  # 3 * (4 + 1) / 2, rounded up
    few = BDistilClassifier(**JOINT, refine_epochs=1).fit(*data)
    assert few.refine_epochs_ == 1


def test_joint_students_learn(digits):
    clf = BDistilClassifier(
        student=partial(MLP, hidden=(8,)),
        n_estimators=3,
        max_epochs=10,
        refine="only",
        random_state=0,
    ).fit(*digits)
    scores = list(clf.staged_score(*digits))
    assert min(scores) > 0.9
    # All of them: none is as it was before the training.
    carries = [float(student.carry) for student in clf.ensemble_.students]
    assert_allclose(carries, [1, 1 / 2, 2 / 3])


def test_joint_fit_is_the_same_for_the_same_seed(data):
    first, second, other = (
        BDistilClassifier(**{**JOINT, "random_state": seed}).fit(*data)
        for seed in (0, 0, 1)
    )
    X, _ = data
    assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert not np.array_equal(first.predict_proba(X), other.predict_proba(X))


def test_joint_warm_start_trains_earlier_students_too(data):
    clf = BDistilClassifier(**{**JOINT, "n_estimators": 2}).fit(*data)
    before = [student.head.weight.clone() for student in clf.ensemble_.students]
    clf.set_params(n_estimators=3, warm_start=True).fit(*data)
    assert len(clf) == 3
    for student, weight in zip(clf.ensemble_.students, before, strict=False):
        assert not torch.equal(student.head.weight, weight)


@pytest.mark.parametrize("combine", ["sum", "learned"])
def test_joint_training_refuses_other_combinations(combine, data):
    with raises("'combine'", "refine='only'", repr(combine)):
        BDistilClassifier(**JOINT, combine=combine).fit(*data)


class Exploding(nn.Module):
    """Gives infinity once it is trained."""

    def __init__(self, input_shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * torch.where(self.scale == 1, self.scale, torch.inf)


def test_joint_training_that_diverges_is_an_error(data):
    with raises("together", "not finite", "'learning_rate'"):
        BDistilClassifier(**{**JOINT, "student": Exploding}).fit(*data)


def test_joint_training_that_is_interrupted_leaves_nothing_untrained(data, monkeypatch):
    clf = BDistilClassifier(**{**JOINT, "n_estimators": 2}).fit(*data)
    expected = clf.predict_proba(data[0])

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Boosting, "_refine", interrupt)
    with pytest.raises(KeyboardInterrupt):
        BDistilClassifier(**JOINT).fit(*data)
    with pytest.raises(KeyboardInterrupt):
        clf.set_params(n_estimators=3, warm_start=True).fit(*data)
    assert len(clf) == 2
    assert_array_equal(clf.predict_proba(data[0]), expected)


@pytest.mark.parametrize("refine", [None, "only"])
def test_batches_of_one_row_are_refused_where_they_are_normalised(refine):
    X = np.random.default_rng(0).standard_normal((6, 1, 8, 8))
    y = np.array([0, 1] * 3)
    options = {**SMALL, "student": partial(ConvNet2d, channels=(2, 3)), "batch_size": 1}
    with raises("Batch normalisation", "'batch_size' to 2 or more"):
        BDistilClassifier("precomputed", **options, refine=refine).fit(
            X, y, teacher_scores=np.where(y[:, None] == [0, 1], 1.0, -1.0)
        )
