"""Fits and predictions on an accelerator, which is played on the CPU.

What only a real one can show is not tested: pinned memory, copies beside computation,
and time.
"""

import pickle
from collections import Counter
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from simulated_device import DEVICE, SimulatedDevice
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from skorch import NeuralNet

from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil._boosting import _plan, _rows
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.students import MLP, ConvNet2d

N_ROWS, BATCH_SIZE = 70, 32
N_BATCHES = 3


def _data(shape=(5,), n_outputs=3):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, *shape)).astype(np.float32)
    flat = X.reshape(N_ROWS, -1)
    scores = 2 * np.tanh(flat[:, :n_outputs] * flat[:, 1:2] + flat[:, 2:3])
    return X, scores.argmax(1), scores


def _estimator(kind=BDistilClassifier, **params):
    params = {"student": partial(MLP, hidden=(6, 5)), "edge_tol": np.inf} | params
    defaults = {"n_estimators": 3, "max_epochs": 2, "batch_size": BATCH_SIZE}
    return kind("precomputed", **{**defaults, "random_state": 0, **params})


def _fit(X, y, scores, **params):
    weight = params.pop("sample_weight", None)
    estimator = _estimator(**params)
    return estimator.fit(X, y, sample_weight=weight, teacher_scores=scores)


IMAGES = {
    "student": partial(ConvNet2d, channels=(2, 3)),
    "shape": (1, 6, 6),
    "connection": "lateral",
}
CASES = {
    "joined": {"connection": "dense"},
    "alone": {"connection": None, "combine": "sum"},
    "float64": {"dtype": "float64"},
    "images": IMAGES,
    "weights": {"sample_weight": np.linspace(0.1, 2, N_ROWS)},
    "labels": {"objective": DistillationObjective(alpha=0.5)},
    "held out": {"early_stopping": True, "validation_fraction": 0.3},
    "refined": {"refine": "final", "refine_epochs": 2},
    "together": {"refine": "only"},
    "schedule": {"kind": BDistilRegressor, "output_schedule": [[1], [0, 2]]},
    "template": {"net": NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)},
}


def _assert_close(on_device, on_cpu, X):
    """The same students but for rounding: each device has optimizers of its own."""
    for ours, theirs in zip(
        on_device.ensemble_.state_dict().values(),
        on_cpu.ensemble_.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
    scores = [model._stage_scores(X) for model in (on_device, on_cpu)]
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "resident"),
    [(case, True) for case in CASES]
    + [(case, False) for case in ("joined", "images", "held out", "schedule")],
)
def test_students_of_a_device_are_those_of_the_cpu(case, resident, monkeypatch):
    monkeypatch.setattr(_rows, "_ASSUMED_FREE", 2**31 if resident else 0)
    params = dict(CASES[case])
    X, y, scores = _data(params.pop("shape", (5,)))
    if "kind" in params:
        y = scores
    on_cpu = _fit(X, y, scores, device="cpu", **params)
    with SimulatedDevice():
        on_device = _fit(X, y, scores, device=DEVICE, **params)
        assert on_device.ensemble_.device == DEVICE
        _assert_close(on_device, on_cpu, X)
        np.testing.assert_allclose(
            on_device.certificate_.actual, on_cpu.certificate_.actual, rtol=1e-3
        )
    for ours, theirs in zip(
        chain(*on_device.training_history_),
        chain(*on_cpu.training_history_),
        strict=True,
    ):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_model_of_the_device_is_pickled_for_the_cpu():
    X, y, scores = _data()
    with SimulatedDevice():
        clf = _fit(X, y, scores, device=DEVICE)
        expected = clf.predict_proba(X)
        other = pickle.loads(pickle.dumps(clf)).set_params(device="cpu")
    np.testing.assert_allclose(other.predict_proba(X), expected, rtol=1e-5, atol=1e-6)


# What crosses in a fit


def _crossing(n_epochs, **params):
    """What a fit copies, and how many numbers it reads, by the device's record."""
    X, y, scores = _data((4,))
    with SimulatedDevice() as device:
        _fit(X, y, scores, device=DEVICE, max_epochs=n_epochs, **params)
    return device


def _further(more, less):
    """Shapes that one list has more often than another, and how much more often."""
    return dict(Counter(more) - Counter(less))


@pytest.mark.parametrize("params", [{}, {"early_stopping": True}, {"refine": "only"}])
def test_rows_that_fit_are_copied_once_and_batches_send_their_index(params):
    shorter, longer = (_crossing(n_epochs, **params) for n_epochs in (2, 5))
    further = _further(longer.sent, shorter.sent)
    assert further
    assert all(len(shape) == 1 and shape[0] <= BATCH_SIZE + 1 for shape in further)
    n_rows = 63 if "early_stopping" in params else N_ROWS
    assert longer.sent.count((n_rows, 4)) <= 3


def test_no_number_is_read_per_batch_and_losses_once_an_epoch():
    shorter, longer = _crossing(2), _crossing(5)
    assert longer.n_reads == shorter.n_reads
    # Of three epochs of three students.
    assert _further(longer.fetched, shorter.fetched) == {(N_BATCHES,): 9}


def test_rows_that_do_not_fit_are_indexed_on_the_cpu_and_copied(monkeypatch):
    monkeypatch.setattr(_rows, "_ASSUMED_FREE", 0)
    shorter, longer = (_crossing(n, n_estimators=2) for n in (2, 5))
    further = _further(longer.sent, shorter.sent)
    # Three epochs of two students, each of two whole batches and the rest.
    rest = N_ROWS - 2 * BATCH_SIZE
    # Rows, features for the second student, and scores, sums and, for it, means.
    assert further == {
        **{(BATCH_SIZE, 4): 12, (BATCH_SIZE, 5): 6, (BATCH_SIZE, 3): 30},
        **{(rest, 4): 6, (rest, 5): 3, (rest, 3): 15},
    }
    assert longer.n_reads == shorter.n_reads


def test_the_limit_is_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(
        torch.accelerator, "get_memory_info", lambda device: (1000, 5000)
    )
    assert _rows.fits(500, DEVICE)
    assert not _rows.fits(501, DEVICE)
    # There, nothing is copied.
    assert _rows.fits(501, torch.device("cpu"))


def test_all_that_training_reads_counts_for_the_limit(monkeypatch):
    asked = []
    monkeypatch.setattr(
        _plan, "fits", lambda n_bytes, device: asked.append(n_bytes) or True
    )
    X, y, scores = _data()
    clf = _fit(X, y, scores, device="cpu", sample_weight=np.ones(N_ROWS))
    held = N_ROWS * clf.stage_costs_.activation_bytes.sum()
    # Of rows, scores, sums, means, labels and weights.
    of_row = 4 * (5 + 3 * 3) + 8 + 8
    assert asked == [N_ROWS * of_row + held]


def test_an_update_looks_for_infinite_weights_in_one_reduction():
    X, y, scores = _data()
    with SimulatedDevice() as device:
        clf = _fit(X, y, scores, device=DEVICE)
        reads = []
        for _ in range(2):
            device.clear()
            clf.partial_fit(X, y, teacher_scores=scores)
            reads.append(device.n_reads)
    # One for the weights, one for each of the rows in range and the answer to it.
    assert reads == [2, 2]


# Predictions


def test_chunks_leave_the_device_together_where_they_fit(monkeypatch):
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda *_: 20)
    X, y, scores = _data()
    with SimulatedDevice() as device:
        clf = _fit(X, y, scores, device=DEVICE)
        device.clear()
        whole = clf._stage_scores(X)
        assert device.fetched == [(3, N_ROWS, 3)]
        assert device.sent == [(20, 5)] * 3 + [(10, 5)]
        device.clear()
        monkeypatch.setattr(_rows, "_ASSUMED_FREE", 2 * (3 * 20 * 3 * 4))
        in_parts = clf._stage_scores(X)
        assert (3, N_ROWS, 3) not in device.fetched
    np.testing.assert_array_equal(in_parts, whole)


def test_early_exits_of_a_device_are_those_of_the_cpu():
    X, y, scores = _data()
    on_cpu = _fit(X, y, scores, device="cpu")
    max_cost = 0.7 * on_cpu.stage_costs_.cumulative_macs[-1]
    with SimulatedDevice():
        on_device = pickle.loads(pickle.dumps(on_cpu)).set_params(device=DEVICE)
        stages = [
            EarlyExitClassifier(FrozenEstimator(clf), max_cost=max_cost)
            .fit(X, y)
            .exit_stages(X)
            for clf in (on_cpu, on_device)
        ]
        assert on_device.ensemble_.device == DEVICE
    np.testing.assert_array_equal(*stages)
    assert len(set(stages[0])) > 1


# Mixed precision and compilation, by the template


class AutocastNet(NeuralNet):
    """Runs students in bfloat16 where torch holds that to be safe."""

    def infer(self, x, **fit_params):
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16):
            return super().infer(x, **fit_params)


@pytest.fixture(scope="module")
def distilled():
    """Fits to digits with a template, and the score of each on other rows."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    teacher = FrozenEstimator(LogisticRegression(max_iter=300).fit(X[:800], y[:800]))

    def fit(net, **params):
        clf = BDistilClassifier(
            teacher,
            student=partial(MLP, hidden=(16,)),
            n_estimators=2,
            net=net(None, criterion=None, optimizer=torch.optim.AdamW),
            device="cpu",
            random_state=0,
            **params,
        ).fit(X[:800], y[:800])
        return clf, clf.predict_proba(X), clf.score(X[800:], y[800:])

    return fit


def test_students_trained_in_bfloat16_predict_in_float32_as_well(distilled):
    dtypes = set()

    class Watched(AutocastNet):
        def get_loss(self, y_pred, *args, **kwargs):
            stages = y_pred if isinstance(y_pred, list) else [y_pred]
            dtypes.update(stage.dtype for stage in stages)
            return super().get_loss(y_pred, *args, **kwargs)

    # Students by themselves, and all of them together.
    params = {"max_epochs": 5, "refine": "final", "refine_epochs": 3}
    _, usual, usual_score = distilled(NeuralNet, **params)
    clf, mixed, mixed_score = distilled(Watched, **params)
    assert torch.bfloat16 in dtypes
    assert {weight.dtype for weight in clf.ensemble_.parameters()} == {torch.float32}
    assert mixed.dtype == np.float32
    assert mixed_score == pytest.approx(usual_score, abs=0.02)
    assert usual_score > 0.8
    assert not np.array_equal(usual, mixed)


# The compiler of torch warns of what it does itself.
@pytest.mark.filterwarnings("ignore")
def test_compiled_students_are_those_of_the_same_net(distilled):
    # A backend that needs no compiler of C++.
    compiled = partial(NeuralNet, compile=True, compile__backend="aot_eager")
    _, usual, _ = distilled(NeuralNet, max_epochs=2)
    clf, probabilities, _ = distilled(compiled, max_epochs=2)
    np.testing.assert_allclose(probabilities, usual, rtol=1e-3, atol=1e-5)
    assert type(clf.ensemble_.students[0].backbone) is MLP
