"""The diagnostic of features that do nothing."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from common import SMALL
from skbdistil import BDistilClassifier
from skbdistil._boosting import _idle
from skbdistil._boosting._idle import idle_features
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.students import MLP, ConvNet2d


class Fixed(nn.Module):
    """The row beside features that are the same for all rows."""

    def __init__(self, input_shape, n_fixed):
        super().__init__()
        self.n_fixed = n_fixed

    def forward(self, x):
        return torch.cat([x, torch.full((len(x), self.n_fixed), 3.0)], dim=1)


def ensemble_of(*factories, input_shape=(2,), connection=None):
    ensemble = ProgressiveEnsemble(input_shape, 3, connection=connection)
    for factory in factories:
        ensemble.append(ensemble.new_student(factory))
    return ensemble.eval()


@pytest.mark.parametrize("chunk", [4096, 3])
def test_idle_share_is_that_of_the_constant_features(chunk, monkeypatch):
    monkeypatch.setattr(_idle, "chunk_rows", lambda shape, device: chunk)
    ensemble = ensemble_of(*(partial(Fixed, n_fixed=n) for n in (0, 2, 6)))
    shares = idle_features(ensemble, torch.randn(10, 2))
    assert_allclose(shares, [0, 2 / 4, 6 / 8])


def test_idle_share_looks_at_rows_from_everywhere(monkeypatch):
    monkeypatch.setattr(_idle, "_MAX_ROWS", 4)
    x = torch.zeros(12, 2)
    x[6:, 0] = 1.0
    shares = idle_features(ensemble_of(partial(Fixed, n_fixed=0)), x)
    assert_allclose(shares, [1 / 2])


def test_idle_share_of_dead_rectifiers_block_by_block():
    student = partial(ConvNet2d, channels=(4, 6), n_features=5)
    ensemble = ensemble_of(
        student, student, input_shape=(1, 8, 8), connection="lateral"
    )
    normalisation = ensemble.students[1].backbone.blocks[-1][-2]
    with torch.no_grad():
        normalisation.bias[:3] = -1e6
        normalisation.bias[3:] = 1e6
    shares = idle_features(ensemble, torch.randn(20, 1, 8, 8))
    assert_allclose(shares[1], 3 / 5)


def test_idle_share_leaves_the_ensemble_as_it_was():
    ensemble = ensemble_of(MLP, MLP)
    idle_features(ensemble, torch.randn(5, 2))
    assert not any(student.head._forward_pre_hooks for student in ensemble.students)


def test_students_that_are_mostly_idle_are_warned_about(data):
    options = {**SMALL, "student": partial(Fixed, n_fixed=20), "connection": None}
    with pytest.warns(UserWarning, match=r"idle_features_.*'learning_rate'"):
        clf = BDistilClassifier(**options).fit(*data)
    n_features = data[0].shape[1]
    share = 20 / (20 + n_features)
    assert_allclose(clf.idle_features_, [share] * 3)
    assert_allclose(clf[:2].idle_features_, [share] * 2)


def test_students_that_are_not_idle_pass_without_a_word(data):
    clf = BDistilClassifier(**SMALL).fit(*data)
    assert clf.idle_features_.shape == (3,)
    assert (clf.idle_features_ <= 0.5).all()
    assert np.isfinite(clf.idle_features_).all()
