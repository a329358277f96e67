"""The recurrent connection against a loop over the steps, and wherever students go."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from saved_files import edited, set_item
from sklearn.frozen import FrozenEstimator

from common import SMALL, raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting import _plan
from skbdistil.costs import stage_costs
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import ProgressiveEnsemble, Recurrent, _auto_connection
from skbdistil.exceptions import InvalidFileError
from skbdistil.export import to_torch_export
from skbdistil.persistence import load, save
from skbdistil.students import MLP, ConvNet1d, RecurrentNet

N_STEPS, N_CHANNELS, N_OUTPUTS = 6, 3, 2
CELLS = ["gru", "lstm"]

# Students of other widths and numbers of layers: the second has a layer more than the
# first, of which the third reads one and has a layer of its own, and so on.
WIDTHS = [(4,), (3, 5), (2, 3, 4), (4, 2), (3,)]


def ensemble_of(cell="gru", widths=WIDTHS, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ensemble = ProgressiveEnsemble(
            (N_STEPS, N_CHANNELS), N_OUTPUTS, connection="recurrent"
        )
        for hidden in widths:
            factory = partial(RecurrentNet, hidden=hidden, cell=cell)
            student = ensemble.new_student(factory)
            student.carry.fill_(0.7)
            ensemble.append(student)
    return ensemble.to(dtype).eval()


def sequences(n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((n, N_STEPS, N_CHANNELS), generator=generator, dtype=dtype)
    return 2 * x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_by_hand(rnn, x, h, c):
    """Hidden state and cell of a layer after one step, as torch defines them."""
    weights = [p.numpy() for p in (rnn.weight_ih_l0, rnn.weight_hh_l0)]
    biases = [p.numpy() for p in (rnn.bias_ih_l0, rnn.bias_hh_l0)]
    of_x, of_h = (a @ w.T + b for a, w, b in zip((x, h), weights, biases, strict=True))
    n = h.shape[1]
    if isinstance(rnn, torch.nn.LSTM):
        gates = of_x + of_h
        i, f, g, o = (gates[:, n * k : n * (k + 1)] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    r, z = (sigmoid((of_x + of_h)[:, n * k : n * (k + 1)]) for k in range(2))
    new = np.tanh(of_x[:, 2 * n :] + r * of_h[:, 2 * n :])
    return (1 - z) * new + z * h, c


def means_by_hand(ensemble, x):
    """Running means, from all students taking each step at the same time."""
    x = x.numpy()
    layers = [
        [block.rnn for block in student.backbone.blocks]
        for student in ensemble.students
    ]
    states = [
        [(np.zeros((len(x), rnn.hidden_size)),) * 2 for rnn in of_student]
        for of_student in layers
    ]
    for step in range(x.shape[1]):
        # What is read of other students was there before this step.
        before = copy.deepcopy(states)
        for t, of_student in enumerate(layers):
            maps = x[:, step]
            for b, rnn in enumerate(of_student):
                if t and b < len(layers[t - 1]):
                    maps = np.concatenate([maps, before[t - 1][b][0]], axis=1)
                states[t][b] = step_by_hand(rnn, maps, *before[t][b])
                maps = states[t][b][0]
    means = []
    for student, of_student in zip(ensemble.students, states, strict=True):
        head = student.head
        mean = of_student[-1][0] @ head.weight.numpy().T + head.bias.numpy()
        if means:
            mean = mean + student.carry.numpy() * means[-1]
        means.append(mean)
    return means


def rows(n=24):
    return np.random.RandomState(0).randn(n, N_STEPS, N_CHANNELS).astype(np.float32)


def fitted(estimator=BDistilClassifier, hidden=(4,), n_rows=24, **options):
    X = rows(n_rows)
    scores = X.sum(axis=1)[:, :2].astype(np.float64)
    is_classifier = estimator is BDistilClassifier
    model = estimator(
        "precomputed",
        **{**SMALL, "student": partial(RecurrentNet, hidden=hidden), **options},
        connection="recurrent",
    )
    y = scores.argmax(axis=1) if is_classifier else scores
    return model.fit(X, y, teacher_scores=scores)


ESTIMATORS = pytest.mark.parametrize("estimator", [BDistilClassifier, BDistilRegressor])


def stages_of(model, X):
    if hasattr(model, "classes_"):
        return np.array(list(model.staged_decision_function(X)))
    return np.array(list(model.staged_predict(X)))


# What is computed


@pytest.mark.parametrize("cell", CELLS)
def test_stages_are_those_of_a_loop_over_the_steps(cell):
    ensemble, x = ensemble_of(cell), sequences()
    with torch.no_grad():
        found = [mean.numpy() for mean in ensemble.stages(x)]
        assert_array_equal(ensemble(x), found[-1])
    expected = means_by_hand(ensemble, x)
    assert_allclose(found, expected, rtol=0, atol=1e-12)
    # Every student reads the one before: with states of zeros it says something else.
    for t in range(1, len(ensemble)):
        others = copy.deepcopy(ensemble)
        others.students[t - 1].backbone.blocks[0].rnn.bias_ih_l0.data += 1
        others.students[t - 1].head.weight.data.zero_()
        ensemble.students[t - 1].head.weight.data.zero_()
        change = others(x) - ensemble(x)
        assert change.abs().min() > 0


def test_last_step_of_an_earlier_student_is_not_read():
    """It is there too late, and so nobody has to wait for it."""
    ensemble, x = ensemble_of(), sequences()
    with torch.no_grad():
        _, states = ensemble.students[0](x)
        expected, _ = ensemble.students[1](x, [states])
        for step, is_read in ((-1, False), (-2, True), (0, True)):
            changed = states[0].clone()
            changed[:, step] += 1
            found, _ = ensemble.students[1](x, [(changed,)])
            assert torch.equal(found, expected) != is_read


def test_rows_that_are_kept_go_on_as_in_the_whole_batch():
    ensemble, x = ensemble_of(), sequences(7)
    with torch.no_grad():
        expected = list(ensemble.stages(x))
        state = ensemble.start(x)
        state.step()
        kept = torch.tensor([5, 0, 2])
        state.select(kept)
        for stage in expected[1:]:
            assert_allclose(state.step(), stage[kept], rtol=0, atol=1e-12)
        # Only the last student's states are held.
        assert [len(states) for states in state.earlier] == [0, 0, 0, 0, 1]


def test_truncated_is_the_first_stages():
    ensemble, x = ensemble_of(), sequences()
    with torch.no_grad():
        for k, mean in enumerate(ensemble.stages(x), start=1):
            assert_array_equal(ensemble.truncated(k)(x), mean)


@pytest.mark.parametrize(("cell", "n_gates"), [("gru", 3), ("lstm", 4)])
def test_costs_are_those_of_a_count_by_hand(cell, n_gates):
    ensemble = ensemble_of(cell, [(4,), (3, 5), (2,)], torch.float32)
    costs = stage_costs(ensemble, sequences(1, torch.float32))
    inputs = [[(3, 4)], [(3 + 4, 3), (3, 5)], [(3 + 3, 2)]]
    macs, parameters = [], []
    for layers in inputs:
        n_last = layers[-1][1]
        products = sum(n_gates * n * (n_in + n) for n_in, n in layers)
        biases = sum(2 * n_gates * n for _, n in layers)
        macs.append(N_STEPS * products + n_last * N_OUTPUTS)
        parameters.append(products + biases + (n_last + 1) * N_OUTPUTS)
    assert_array_equal(costs.macs, macs)
    assert_array_equal(costs.parameters, parameters)
    # The states of all steps, in float32.
    assert_array_equal(costs.activation_bytes, [4 * N_STEPS * n for n in (4, 8, 2)])


# Students that it is for


@pytest.mark.parametrize("factory", [MLP, ConvNet1d])
def test_students_that_are_not_recurrent_raise(factory):
    model = BDistilClassifier("precomputed", student=factory, connection="recurrent")
    with raises(
        "Recurrent connections need students that derive from "
        "skbdistil.students.RecurrentNet",
        f"The backbone {factory.__name__} does not",
    ):
        scores = 4 * np.eye(2)[np.arange(24) % 2]
        model.fit(rows(), np.arange(24) % 2, teacher_scores=scores)


def test_factory_that_takes_no_extra_inputs_raises():
    ensemble = ProgressiveEnsemble((N_STEPS, 3), 2, connection=Recurrent())

    def factory(input_shape):
        return RecurrentNet(input_shape, hidden=(4,))

    ensemble.append(ensemble.new_student(factory))
    with raises("recurrent connections need a backbone that takes the keyword 'extra'"):
        ensemble.new_student(factory)


def test_auto_takes_another_connection():
    found = _auto_connection([RecurrentNet], (N_STEPS, N_CHANNELS), 5)
    assert not isinstance(found, Recurrent)


# Estimators


@ESTIMATORS
def test_fit_predicts_and_is_sliced(estimator):
    model, X = fitted(estimator, hidden=(4, 3)), rows()
    assert repr(model.connection_) == "Recurrent()"
    stages = stages_of(model, X)
    assert len(stages) == 3
    assert np.abs(np.diff(stages, axis=0)).max() > 1e-3
    for k in (1, 2):
        assert_array_equal(stages_of(model[:k], X), stages[:k])
    again = pickle.loads(pickle.dumps(model))
    assert_array_equal(stages_of(again, X), stages)
    # `read_by` of the fit, not of the definition above: one student and no more.
    assert [model.ensemble_.read_by(t) for t in range(3)] == [[], [0], [1]]


@ESTIMATORS
def test_states_held_or_computed_again_give_the_same_students(estimator, monkeypatch):
    held = fitted(estimator)
    monkeypatch.setattr(_plan, "_MAX_HELD_BYTES", 0)
    again = fitted(estimator)
    assert_allclose(stages_of(again, rows()), stages_of(held, rows()), atol=1e-5)


@ESTIMATORS
def test_warm_start_goes_on_where_the_fit_has_ended(estimator):
    X = rows()
    model = fitted(estimator, n_estimators=2, warm_start=True, eta=0.1)
    bits = student_bits(model)
    scores = X.sum(axis=1)[:, :2].astype(np.float64)
    y = scores.argmax(axis=1) if estimator is BDistilClassifier else scores
    model.set_params(n_estimators=3).fit(X, y, teacher_scores=scores)
    assert len(model) == 3
    assert student_bits(model[:2]) == bits
    whole = fitted(estimator, n_estimators=3, eta=0.1)
    assert student_bits(whole) == student_bits(model)


def test_students_are_refined_together():
    model = fitted(refine="final", refine_epochs=1)
    assert np.isfinite(stages_of(model, rows())).all()
    assert student_bits(model) != student_bits(fitted())


def test_early_exit_runs_what_predict_does():
    model = fitted()
    y = model.predict(rows())
    early = EarlyExitClassifier(FrozenEstimator(model), max_drop=0, random_state=0)
    early.fit(rows(), y).thresholds_ = np.full(2, np.inf)
    assert_array_equal(early.predict(rows()), y)
    assert set(early.exit_stages(rows())) == {3}


# Files


@ESTIMATORS
def test_saved_and_loaded_gives_the_same_bits(estimator, tmp_path):
    model, X = fitted(estimator, hidden=(4, 3)), rows()
    path = tmp_path / "model.skb"
    save(model, path)
    loaded = load(path)
    assert repr(loaded.connection_) == repr(Recurrent())
    assert_array_equal(stages_of(loaded, X), stages_of(model, X))


def test_file_with_other_backbones_raises(tmp_path):
    path = tmp_path / "model.skb"
    save(fitted(), path)
    student = {"$partial": [{"$part": "MLP"}, [], {"hidden": {"$tuple": [4]}}]}
    edited(path, set_item("ensemble", "students", 1, to=student))
    with pytest.raises(InvalidFileError, match="Recurrent connections need students"):
        load(path)


@pytest.mark.parametrize("cell", CELLS)
def test_exported_program_gives_the_same_scores(cell):
    student = partial(RecurrentNet, hidden=(3, 2), cell=cell)
    model, X = fitted(BDistilRegressor, student=student, n_estimators=2), rows(7)
    program = to_torch_export(model).module()
    with torch.no_grad():
        scores = program(torch.from_numpy(X)).numpy()
    assert_allclose(scores, model.predict(X), rtol=0, atol=1e-5)
