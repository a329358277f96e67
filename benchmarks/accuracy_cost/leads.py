"""What was tried and is not in the package: averages of weights, a last convex step.

Each function takes a :class:`~benchmarks.accuracy_cost.methods.Task` and returns its
stages, with and without the part that is tried.
"""

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from benchmarks.accuracy_cost.methods import _distil
from benchmarks.accuracy_cost.networks import (
    add_students,
    empty_ensemble,
    ensemble_stages,
    train,
)
from skbdistil import DistillationObjective
from skbdistil._boosting._combination import settle_as_mean
from skbdistil.ensemble import _auto_connection
from skbdistil.objectives import _JointLoss


class Averaging(Callback):
    """Leave a student with the mean of its weights after the last epochs.

    Parameters
    ----------
    share : float
        Of the epochs.
    """

    def __init__(self, share):
        self.share = share

    def on_train_begin(self, net, **kwargs):
        self.average_ = AveragedModel(net.module_, use_buffers=True)

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) > (1 - self.share) * net.max_epochs:
            self.average_.update_parameters(net.module_)

    def on_train_end(self, net, **kwargs):
        net.module_.load_state_dict(self.average_.module.state_dict())


def boosted(task, averaged=None, constant=False):
    """Frozen rounds, each student `averaged` over this share of its epochs.

    With `constant`, at half the learning rate all the time.
    """
    net = None
    if averaged is not None:
        callbacks = [("average", Averaging(averaged))]
        if constant:
            callbacks.append(("rate", LRScheduler(LambdaLR, lr_lambda=_half)))
        # Fused, as without a template: other rounding makes other students.
        net = NeuralNet(
            None,
            criterion=None,
            optimizer=torch.optim.AdamW,
            optimizer__fused=True,
            callbacks=callbacks,
        )
    return _stages(task, _rounds(task, net=net))


def corrected(task):
    """Frozen rounds, and then all heads and carries once more, features fixed."""
    ensemble = _rounds(task)
    for student in ensemble.students:
        carry = student.carry
        del student.carry
        student.carry = nn.Parameter(carry)
        names = {name for name, _ in student.named_parameters()}
        student.never_trained = {
            name for name in names if name != "carry" and not name.startswith("head.")
        }
    _train(task, ensemble, _objective())
    for student in ensemble.students:
        carry = student.carry.detach()
        del student.carry
        student.register_buffer("carry", carry)
    return _stages(task, ensemble)


def refined(task, rate_factor=1):
    """Half of the epochs in frozen rounds, as many together."""
    ensemble = _rounds(task)
    _train(task, ensemble, _objective(), rate_factor)
    return _stages(task, ensemble)


def together(task, last_first=0):
    """All students together, for a share of the steps with a loss of the last exit."""
    epochs = task.training["max_epochs"]
    n_students = task.data.n_estimators
    epochs = round(epochs * (n_students + 1) / 2)
    n_rows = len(task.split.y_train)
    steps = epochs * -(-n_rows // task.data.batch_size)
    ensemble = _fresh(task)
    loss = LastThenAll(_objective(), round(last_first * steps))
    _train(task, ensemble, loss, max_epochs=epochs)
    return _stages(task, ensemble)


class LastThenAll(nn.Module):
    """Loss of the last stage for a number of steps, then that of all."""

    def __init__(self, loss, n_steps):
        super().__init__()
        self.loss = loss
        self.n_left = n_steps

    def forward(self, stages, target):
        last_only = self.n_left > 0
        self.n_left -= 1
        return self.loss(stages[-1:] if last_only else stages, target)


def _rounds(task, **settings):
    width, n_students = task.data.width, task.data.n_estimators
    return _distil(task, task.data.student(width), n_students, **settings)


def _fresh(task):
    """The students of a fit, not trained yet, with the mean as their combination."""
    factory = task.data.student(task.data.width)
    X, n_outputs = task.split.X_train, task.teacher.train.shape[1]
    connection = _auto_connection([factory], X.shape[1:], n_outputs)
    ensemble = empty_ensemble(X, n_outputs, connection)
    add_students(ensemble, factory, task.data.n_estimators, task.seed)
    for number, student in enumerate(ensemble.students, start=1):
        settle_as_mean(student, number)
    return ensemble


def _train(task, ensemble, loss, rate_factor=1, **changes):
    training = task.training | changes
    training["learning_rate"] *= rate_factor
    X, scores = task.split.X_train, task.teacher.train
    train(ensemble, X, scores, loss, seed=task.seed + 1, **training)


def _stages(task, ensemble):
    return ensemble_stages(ensemble, task.split.X_test, task.device)


def _objective():
    """What the package minimises where it trains all students together."""
    return _JointLoss(DistillationObjective(), regression=False)


def _half(step):
    return 0.5
