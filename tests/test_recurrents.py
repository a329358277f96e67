"""Recurrent students that take their steps together: the scores of their modules."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn.utils import prune

from common import SMALL
from skbdistil import BDistilClassifier, _forms, _recurrents
from skbdistil.ensemble import Connection, ProgressiveEnsemble, Window
from skbdistil.students import MLP, ConvNet1d, RecurrentNet

SHAPE = (5, 3)
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-14}


class Sum(Connection):
    """A connection of a user's."""

    def forward(self, features, earlier):
        return features + sum(kept.mean(1, keepdim=True) for kept in earlier)


def ensemble_of(*factories, connection="dense", dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ensemble = ProgressiveEnsemble(SHAPE, 2, connection=connection)
        for factory in factories:
            student = ensemble.new_student(factory)
            student.carry.fill_(0.7)
            ensemble.append(student)
    return ensemble.to(dtype).eval()


def gru(*hidden, cell="gru"):
    return partial(RecurrentNet, hidden=hidden, cell=cell)


def rows(n=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((n, *SHAPE), generator=generator, dtype=dtype)


@torch.inference_mode()
def stages(ensemble, x, n_ahead=None):
    n_ahead = len(ensemble) if n_ahead is None else n_ahead
    state = _forms.start(ensemble, x, n_ahead)
    return torch.stack([state.step() for _ in ensemble.students]).numpy()


@torch.inference_mode()
def module_stages(ensemble, x):
    return torch.stack(list(ensemble.stages(x))).numpy()


def sizes_of_groups(ensemble):
    return [len(group) for group in _recurrents._groups(ensemble.students)]


def runs_together(ensemble, n_rows=4, n_ahead=None):
    n_ahead = len(ensemble) if n_ahead is None else n_ahead
    state = _forms.start(ensemble, rows(n_rows), n_ahead)
    return isinstance(state, _recurrents._GroupedState)


# What is computed


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "connection", [None, "dense", "last", "wide", Window(2), Sum], ids=str
)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_scores_are_those_of_the_modules(cell, connection, dtype):
    widths = [(4, 3), (2, 5), (6, 1), (3, 3)]
    ensemble = ensemble_of(
        *(gru(*hidden, cell=cell) for hidden in widths),
        connection=connection,
        dtype=dtype,
    )
    assert sizes_of_groups(ensemble) == [4]
    x = rows(dtype=dtype)
    expected = module_stages(ensemble, x)
    for n_ahead in (2, 3, 4):
        assert_allclose(
            stages(ensemble, x, n_ahead), expected, rtol=0, atol=TOLERANCES[dtype]
        )
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_rows_that_are_selected_go_on_as_before():
    ensemble, x = ensemble_of(gru(4), gru(3), gru(2)), rows(6)
    expected = module_stages(ensemble, x)
    kept = torch.tensor([5, 0, 2])
    with torch.inference_mode():
        state = _forms.start(ensemble, x, 3)
        state.step()
        state.select(kept)
        for stage in expected[1:]:
            assert_allclose(state.step(), stage[kept], rtol=0, atol=1e-6)


def test_groups_are_neighbours_of_one_kind_and_not_too_wide():
    lstm = gru(4, cell="lstm")
    cases = [
        ([gru(32)] * 5, [2, 2, 1]),
        ([gru(64), gru(65), gru(1), gru(63), gru(1)], [1, 1, 2, 1]),
        ([gru(4), lstm, lstm, gru(4, 4), gru(4, 40), gru(4, 40)], [1, 2, 2, 1]),
        ([gru(4), MLP, gru(4), gru(4)], [1, 1, 2]),
        ([MLP, MLP, ConvNet1d], [1, 1, 1]),
    ]
    for factories, sizes in cases:
        ensemble = ensemble_of(*factories)
        assert sizes_of_groups(ensemble) == sizes
        x = rows()
        assert_allclose(
            stages(ensemble, x), module_stages(ensemble, x), rtol=0, atol=1e-6
        )


def test_last_stage_is_the_prediction_to_the_bit():
    X = np.random.RandomState(0).randn(300, *SHAPE)
    scores = X.sum(axis=1)
    clf = BDistilClassifier("precomputed", **{**SMALL, "student": gru(4)})
    clf.fit(X, scores.argmax(axis=1), teacher_scores=scores)
    for n_rows in (1, 5, 300):
        *_, last = clf.staged_predict_proba(X[:n_rows])
        assert_array_equal(last, clf.predict_proba(X[:n_rows]))


def test_weights_that_are_written_to_are_used():
    ensemble, x = ensemble_of(gru(4), gru(3)), rows()
    before = stages(ensemble, x)
    ensemble.students[1].backbone.blocks[0].rnn.weight_hh_l0.data.mul_(3)
    after = stages(ensemble, x)
    assert np.abs(after[1] - before[1]).min() > 0
    assert_allclose(after, module_stages(ensemble, x), rtol=0, atol=1e-6)


# Where students are run as modules


def test_students_run_alone_where_that_is_faster_or_more_are_not_wanted():
    ensemble = ensemble_of(gru(4), gru(4))
    assert runs_together(ensemble)
    assert not runs_together(ensemble, n_ahead=0)
    assert not runs_together(ensemble, n_ahead=1)
    assert not runs_together(ensemble, n_rows=_recurrents._MANY_ROWS)
    assert not runs_together(ensemble_of(gru(40), gru(40)))
    # They read what is not there before the step.
    assert not runs_together(ensemble_of(gru(4), gru(4), connection="recurrent"))
    assert not runs_together(ensemble_of(gru(4, 4), gru(4, 4), connection="lateral"))


class _Reversed(RecurrentNet):
    def forward(self, x):
        return super().forward(x.flip(1))


def _with_hook(ensemble):
    ensemble.students[0].backbone.register_forward_hook(lambda *_: None)


def _with_own_forward(ensemble):
    backbone = ensemble.students[0].backbone
    backbone.forward = lambda x: torch.zeros(len(x), 4)


def _with_both_ways(ensemble):
    block = ensemble.students[0].backbone.blocks[0]
    block.rnn = nn.GRU(3, 2, batch_first=True, bidirectional=True)


def _with_pruning(ensemble):
    rnn = ensemble.students[0].backbone.blocks[0].rnn
    rnn.flatten_parameters = lambda: None
    prune.l1_unstructured(rnn, "weight_hh_l0", 0.5)


@pytest.mark.parametrize(
    "change", [_with_hook, _with_own_forward, _with_both_ways, _with_pruning]
)
def test_students_that_were_changed_are_run_as_modules(change):
    ensemble = ensemble_of(gru(4), gru(4))
    change(ensemble)
    assert not runs_together(ensemble)
    assert_array_equal(stages(ensemble, rows()), module_stages(ensemble, rows()))


def test_subclass_with_a_forward_of_its_own_is_run_as_a_module():
    ensemble = ensemble_of(*[partial(_Reversed, hidden=(4,))] * 2)
    assert not runs_together(ensemble)
    assert_array_equal(stages(ensemble, rows()), module_stages(ensemble, rows()))
