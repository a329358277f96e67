"""Torch networks that are trained as a whole, and what every network is asked."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from skbdistil import TorchTeacher
from skbdistil._arrays import as_tensor
from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import RowData, resolve_device
from skbdistil._boosting._scaling import input_scaling
from skbdistil._boosting._training import Trainer
from skbdistil._seeding import seeded
from skbdistil.costs import stage_costs
from skbdistil.ensemble import ProgressiveEnsemble, _auto_connection


class Stage(NamedTuple):
    """What is known of a network, or of the first stages of an ensemble.

    `labels` are those of the test rows; `macs` and `parameters` are those of a
    prediction, None where nothing is multiplied and accumulated; `predict` is None
    where only the labels were kept.
    """

    labels: np.ndarray
    macs: int | None = None
    parameters: int | None = None
    predict: object = None


class LabelLoss(nn.Module):
    """Cross-entropy of all stages against labels, one-hot in place of the teacher."""

    def forward(self, stages, target):
        losses = [cross_entropy(scores, target["teacher"]) for scores in stages]
        return sum(losses) / len(losses)


def torch_device(device):
    """Torch device for the name of one, or for "auto"."""
    return resolve_device(device, torch.float32, "accuracy_cost")


def one_hot(y):
    return np.eye(y.max() + 1, dtype=np.float32)[y]


def empty_ensemble(X, n_outputs, connection=None):
    """An ensemble that scales its input as the estimator does, without students."""
    mean, scale, _ = input_scaling(X, None, np.dtype("float32"), "accuracy_cost")
    return ProgressiveEnsemble(
        X.shape[1:],
        n_outputs,
        connection=connection,
        input_mean=torch.from_numpy(mean),
        input_scale=torch.from_numpy(scale),
    ).float()


def ensemble_macs(input_shape, n_outputs, factory, n_students, connection="auto"):
    """Cumulative multiply-accumulates by stage, without any training."""
    if connection == "auto":
        connection = _auto_connection([factory], input_shape, n_outputs)
    ensemble = ProgressiveEnsemble(input_shape, n_outputs, connection=connection)
    add_students(ensemble, factory, n_students, seed=0)
    return stage_costs(ensemble, ensemble.example()).cumulative_macs


def add_students(ensemble, factory, n_students, seed):
    """Add students that are not trained yet."""
    with seeded(seed, torch.device("cpu")):
        for _ in range(n_students):
            ensemble.append(ensemble.new_student(factory))


def train(
    ensemble, X, scores, loss, *, max_epochs, batch_size, learning_rate, seed, device
):
    """Train all students of an ensemble together, in place, as the package refines.

    AdamW with a one-cycle schedule; `scores` and `loss` say what is learnt.
    """
    device = torch_device(device)
    ensemble.to(device)
    rows = RowData(ensemble, as_tensor(X), Residuals(scores), device=device)
    ensemble.unfreeze()
    trainer = Trainer(
        None,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=device,
        patience=None,
        centres=True,
        combine="mean",
    )
    trainer.train_jointly(ensemble, loss, rows, None, max_epochs=max_epochs, seed=seed)
    ensemble.freeze().eval()


def module_stage(module, X, device):
    """Labels, costs and `predict` of a module that returns scores."""
    wrapped = TorchTeacher(module.eval(), device=torch_device(device))
    costs = wrapped.costs(X)
    return Stage(wrapped.predict(X), costs.macs, costs.parameters, wrapped.predict)


def ensemble_stages(ensemble, X, device):
    """Stages of a trained ensemble."""
    return [
        module_stage(ensemble.truncated(stage), X, device)
        for stage in range(1, len(ensemble) + 1)
    ]


def nearest_width(target, macs_of):
    """Width whose multiply-accumulates are nearest to the target.

    Parameters
    ----------
    target : int
    macs_of : callable
        Multiply-accumulates by width, growing.

    Returns
    -------
    width : int
        At least 1.
    """
    low, high = 0, 1
    while macs_of(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs_of(middle) < target else (low, middle)
    if low and target - macs_of(low) < macs_of(high) - target:
        return low
    return high
