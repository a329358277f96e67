"""Fits that share their rows give what one process gives, and fail together."""

import multiprocessing
import os
import subprocess
import sys
import weakref
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNet
from skorch.callbacks import GradientNormClipping
from torch import distributed
from torch.utils.data import TensorDataset

from common import raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil.parallel import DataParallelNet
from skbdistil.students import MLP, Backbone, ConvNet1d

# Each process imports torch anew, which takes longer than the fits.
pytestmark = pytest.mark.engines

# A number of rows that two processes do not share evenly.
X, y = (part[::3][:49] for part in load_iris(return_X_y=True))
_RNG = np.random.RandomState(0)
SCORES = 3 * np.eye(3)[y] + _RNG.normal(size=(len(y), 3))
WEIGHT = _RNG.uniform(0.5, 2, size=len(y))
TARGETS = X @ np.arange(8.0).reshape(4, 2)

# After which processes that wait for each other fail the test.
_SECONDS = 120


def estimator(of=BDistilClassifier, *, shares=True, **params):
    """A small one in float64."""
    adamw = NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW)
    params = {
        "student": partial(MLP, hidden=(4,)),
        "n_estimators": 3,
        "max_epochs": 2,
        "batch_size": 8,
        "edge_tol": np.inf,
        "net": DataParallelNet() if shares else adamw,
        "dtype": "float64",
        "device": "cpu",
        "random_state": 0,
    } | params
    return of("precomputed", **params)


def _run_here(rank, size, store, task, answers):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_SECONDS),
    )
    answer = task(rank)
    distributed.barrier()
    world = weakref.ref(distributed.group.WORLD)
    distributed.destroy_process_group()
    # Threads of a group that is still held abort the process when it ends.
    answers.put((rank, answer, world() is None))


@pytest.fixture
def run(tmp_path):
    """Run a function of the rank in two processes; returns both answers."""

    def run(task):
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        store = (tmp_path / "store").as_uri()
        processes = [
            context.Process(target=_run_here, args=(rank, 2, store, task, answers))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        try:
            found, released = {}, []
            for _ in processes:
                rank, found[rank], is_released = answers.get(timeout=_SECONDS)
                released.append(is_released)
            assert all(released)
            for process in processes:
                process.join(_SECONDS)
        finally:
            for process in processes:
                process.kill()
        return found[0], found[1]

    return run


@pytest.fixture
def group(tmp_path):
    """A group of this process alone."""
    store = (tmp_path / "store").as_uri()
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


# The same as in one process


def fit(rows=X, *, sample_weight=None, **params):
    model = estimator(**params)
    return model.fit(rows, y, sample_weight, teacher_scores=SCORES)


def fit_twice(**params):
    """Students of a warm start."""
    model = fit(n_estimators=1, warm_start=True, **params)
    return model.set_params(n_estimators=3).fit(X, y, teacher_scores=SCORES)


def fit_regressor(**params):
    model = estimator(BDistilRegressor, **params)
    return model.fit(X, TARGETS, teacher_scores=TARGETS)


def fit_trees(**params):
    """With a teacher that each process fits, and rows that it makes."""
    model = estimator(augment="munge", **params).set_params(teacher=None)
    return model.fit(X, y)


def fit_with_sgd(rows=X, *, shares, callbacks=None, **params):
    kind = DataParallelNet if shares else NeuralNet
    net = kind(None, criterion=None, optimizer=torch.optim.SGD, callbacks=callbacks)
    return fit(rows, net=net, **params)


def fit_convolutions(**params):
    student = partial(ConvNet1d, channels=(2, 3))
    params = {"student": student, "n_estimators": 2} | params
    # AdamW would turn the rounding of gradients that are 0, of which there are some
    # before a layer that normalises, into steps.
    return fit_with_sgd(X[:, :, np.newaxis], **params)


class Normalised(Backbone):
    """Normalises with the options that torch has, and rows whose mean is far from 0."""

    def __init__(self, input_shape):
        super().__init__()
        norm = torch.nn.BatchNorm1d
        self.blocks = torch.nn.ModuleList(
            [
                norm(4, momentum=None),
                torch.nn.Linear(4, 3),
                norm(3, affine=False),
                norm(3, bias=False),
            ]
        )
        self.widths = [4, 3, 3, 3]

    def prepare(self, x):
        return x + 100


def fit_stopped(**params):
    """Students that end before their last epoch, and rounds before the last."""
    model = fit(
        early_stopping=True,
        validation_fraction=0.3,
        n_iter_no_change=1,
        max_epochs=10,
        n_estimators=6,
        learning_rate=0.1,
        **params,
    )
    assert model.n_estimators_ < 6
    assert min(map(len, model.training_history_)) < 10
    return model


CASES = {
    "dense": partial(fit, connection="dense"),
    "independent": partial(fit, connection=None, combine="learned"),
    "weighted": partial(fit, sample_weight=WEIGHT),
    "refined": partial(fit, refine="final", refine_epochs=2),
    "together": partial(fit, refine="only", refine_epochs=2),
    "labels": partial(fit, objective=DistillationObjective(alpha=0.5)),
    # One of the processes has no rows of many of the batches.
    "few rows a batch": partial(fit, batch_size=2, max_epochs=1),
    "sparse": partial(fit, sparse.csr_matrix(X)),
    "warm start": fit_twice,
    "regression": fit_regressor,
    "trees": fit_trees,
    "clipped": partial(fit_with_sgd, callbacks=[GradientNormClipping(0.1)]),
    "convolutions": fit_convolutions,
    # A layer that normalises runs without rows, too.
    "few rows a batch, normalised": partial(fit_convolutions, batch_size=4),
    "refined convolutions": partial(
        fit_convolutions, refine="final", refine_epochs=2, connection="dense"
    ),
    "normalised otherwise": partial(fit_with_sgd, student=Normalised),
    "stopped early": fit_stopped,
}


def numbers(model):
    """What a fit has found."""
    losses = [
        [epoch["train_loss"] for epoch in epochs] for epochs in model.training_history_
    ]
    return [
        *(value.numpy() for value in model.ensemble_.state_dict().values()),
        model.student_edges_,
        *vars(model.certificate_).values(),
        np.array(losses),
    ]


class Counting(MLP):
    """Counts the rows that it is trained on in this process."""

    n_rows = 0

    def prepare(self, x):
        type(self).n_rows += len(x) * self.training
        return super().prepare(x)


def all_cases(rank):
    models = [fit_shared(shares=True) for fit_shared in CASES.values()]
    fit(student=partial(Counting, hidden=(4,)), n_estimators=1)
    found = [(student_bits(model), numbers(model)) for model in models]
    return found, Counting.n_rows


def test_fit_of_two_processes_equals_that_of_one(run):
    (first, first_rows), (second, second_rows) = run(all_cases)
    assert [first_rows, second_rows] == [2 * 24, 2 * 25]
    for case, *shared in zip(CASES, first, second, strict=True):
        (bits, found), (other_bits, _) = shared
        assert bits == other_bits, case
        alone = numbers(CASES[case](shares=False))
        for value, expected in zip(found, alone, strict=True):
            assert_allclose(value, expected, rtol=1e-12, atol=1e-12, err_msg=case)


# Processes that fail, or differ


class Failing(MLP):
    """Raises in the training of one process, after some batches."""

    rank = None
    n_batches = 0

    def forward(self, x, *earlier):
        if self.training:
            kind = type(self)
            if kind.n_batches == 0 and distributed.get_rank() == kind.rank:
                raise ZeroDivisionError("in this process alone")
            kind.n_batches -= 1
        return super().forward(x, *earlier)


class FailingNormalised(Normalised):
    """Raises in one process, while the other one waits for it in a layer."""

    def prepare(self, x):
        if self.training and distributed.get_rank():
            raise ZeroDivisionError("before a layer")
        return super().prepare(x)


class Unbounded(Backbone):
    """Gives infinity on the rows of the second process, from the first epoch on."""

    def __init__(self, input_shape):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.widths = [4]

    def prepare(self, x):
        far = float("inf") if not self.training and distributed.get_rank() else 0.0
        return x + far


class Noisy(MLP):
    """Draws numbers in training, as many as there are rows here."""

    def prepare(self, x):
        x = super().prepare(x)
        return x + 0.01 * torch.randn_like(x) if self.training else x


def failing(rank):
    Failing.rank = 1
    fit(student=partial(Failing, hidden=(4,)))


FAILURES = {
    "raises": (failing, "ZeroDivisionError: in this process alone"),
    "raises in a pass": (
        lambda rank: fit(student=FailingNormalised),
        "ZeroDivisionError: before a layer",
    ),
    "infinite": (lambda rank: fit(student=Unbounded), "diverged to scores"),
    "labels": (
        lambda rank: estimator().fit(X, y[: len(y) - rank], teacher_scores=SCORES),
        "inconsistent numbers of samples",
    ),
    "other rows": (lambda rank: fit(X + rank), "The training rows of"),
    "fewer rows": (
        lambda rank: estimator().fit(X[rank:], y[rank:], teacher_scores=SCORES[rank:]),
        "do not compute the same",
    ),
    "other rate": (
        lambda rank: fit(learning_rate=0.01 * (rank + 1)),
        "The students of",
    ),
    "other batches": (
        lambda rank: fit(batch_size=8 + 8 * rank),
        "do not compute the same",
    ),
}


def all_failures(rank):
    messages = []
    for task, _ in FAILURES.values():
        try:
            task(rank)
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
        else:
            messages.append("")
    # What has failed leaves nothing behind; seeds and permutations are of the first.
    noisy = fit(student=partial(Noisy, hidden=(4,)), random_state=None)
    return messages, student_bits(noisy)


def test_processes_fail_together(run):
    (first, first_bits), (second, second_bits) = run(all_failures)
    for (case, (_, expected)), *messages in zip(
        FAILURES.items(), first, second, strict=True
    ):
        for message in messages:
            assert expected in message, case
    assert "has failed in process 1 of 2" in first[0]
    assert second[0].startswith("ZeroDivisionError")
    assert first_bits == second_bits


def go_on(rank, folder):
    """Bits of a fit that goes on after its second round has failed, and of a whole one.

    And in how many batches each was trained.
    """
    student = partial(Failing, hidden=(4,))
    # A folder for each process, of which only the first one is used.
    params = {"student": student, "checkpoint": folder / str(rank)}
    Failing.rank, Failing.n_batches = 1, 15
    with raises("in this process alone", error=(RuntimeError, ZeroDivisionError)):
        fit(**params)
    Failing.rank, Failing.n_batches = None, 0
    bits = student_bits(fit(**params))
    n_batches, Failing.n_batches = -Failing.n_batches, 0
    return bits, student_bits(fit(student=student)), n_batches, -Failing.n_batches


def test_fit_of_two_processes_goes_on(run, tmp_path):
    folder = tmp_path / "checkpoints"
    for bits, expected, n_batches, n_of_whole in run(partial(go_on, folder=folder)):
        assert bits == expected
        assert 0 < n_batches < n_of_whole
    (of_first,) = folder.iterdir()
    assert of_first.name == "0"
    assert [path.suffix for path in of_first.iterdir()] == [".rounds"]


# Commands that start processes

SCRIPT = """
import sys
from torch import distributed
from common import student_bits
from test_parallel import fit

distributed.init_process_group("gloo")
assert distributed.get_world_size() == 2
with open(f"{sys.argv[1]}/{distributed.get_rank()}", "wb") as file:
    file.write(student_bits(fit()))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    "command",
    [
        "torch.distributed.run --standalone --nproc-per-node=2",
        # Which starts them without GPUs, too; with --cpu it would start one.
        "accelerate.commands.launch --multi_gpu --num_processes=2 "
        "--main_process_port=0",
    ],
)
def test_command_starts_processes_that_share_a_fit(command, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, "-m", *command.split(), script, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        timeout=_SECONDS,
        check=True,
    )
    first, second = ((tmp_path / rank).read_bytes() for rank in "01")
    assert first == second


# One process


@pytest.mark.usefixtures("group")
def test_search_of_one_process_sets_options_of_the_template():
    search = GridSearchCV(
        estimator(n_estimators=1), {"net__optimizer__weight_decay": [0.0, 0.5]}, cv=2
    )
    search.fit(X, y, teacher_scores=SCORES)
    net = clone(search.best_estimator_).net
    assert type(net) is DataParallelNet
    assert net.optimizer__weight_decay in (0.0, 0.5)


def test_template_without_a_group_raises():
    with raises("DataParallelNet", "torchrun", "init_process_group"):
        fit()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"net": DataParallelNet(optimizer=torch.optim.LBFGS)}, "LBFGS"),
        ({"net": DataParallelNet(iterator_train__num_workers=2)}, "iterator_train"),
        ({"net": DataParallelNet(iterator_valid=list)}, "iterator_valid"),
    ],
)
def test_what_is_not_supported_raises(params, what):
    with raises("DataParallelNet", "does not support", what):
        fit(**params)


@pytest.mark.usefixtures("group")
def test_dataset_raises():
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    with raises("DataParallelNet", "a dataset as X"):
        estimator().fit(rows, teacher_scores=SCORES)


class Unsettled(Backbone):
    """Normalises by the rows at hand in prediction, too."""

    def __init__(self, input_shape):
        super().__init__()
        norm = torch.nn.BatchNorm1d(4, track_running_stats=False)
        self.blocks = torch.nn.ModuleList([norm])
        self.widths = [4]


@pytest.mark.usefixtures("group")
def test_batch_normalisation_without_running_statistics_raises():
    with raises("BatchNorm1d", "'student' parameter of BDistilClassifier", "running"):
        fit(student=Unsettled)


@pytest.mark.usefixtures("group")
def test_batch_normalisation_of_single_rows_raises():
    with raises("one row", "'batch_size'"):
        fit(student=Normalised, batch_size=1)


@pytest.mark.usefixtures("group")
def test_layers_keep_their_own_forward():
    student = partial(ConvNet1d, channels=(2, 3))
    model = fit(X[:, :, np.newaxis], student=student, n_estimators=1)
    layers = [
        part
        for part in model.ensemble_.modules()
        if isinstance(part, torch.nn.BatchNorm1d)
    ]
    assert len(layers) == 3
    assert not any("forward" in vars(layer) for layer in layers)
    assert all(layer.num_batches_tracked > 0 for layer in layers)


def test_net_with_an_accelerator_raises():
    net = NeuralNet(None, criterion=None)
    net.accelerator = object()
    with raises("'net' parameter of BDistilClassifier", "DataParallelNet"):
        fit(net=net)
