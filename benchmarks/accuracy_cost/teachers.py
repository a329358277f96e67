"""Teachers: trained once, on all rows of a data set, and remembered by their scores."""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from benchmarks.accuracy_cost.networks import (
    LabelLoss,
    add_students,
    empty_ensemble,
    one_hot,
    torch_device,
    train,
)
from benchmarks.accuracy_cost.results import replacing
from skbdistil import TorchTeacher
from skbdistil._teacher_scores import teacher_response


@dataclass(frozen=True)
class Teacher:
    """How a teacher is made.

    Parameters
    ----------
    name : str
        Of its file in the cache. Data sets of the same rows may share a teacher.
    model : callable, estimator or str
        Backbone factory that is trained on the labels, scikit-learn classifier, or
        name of a file of the data folder with the scores of one.
    max_epochs : int or None
    learning_rate : float or None
        Peak of the one-cycle schedule.
    """

    name: str
    model: object
    max_epochs: int | None = None
    learning_rate: float | None = None


class Response(NamedTuple):
    """Logits of a teacher on all rows; its costs are None where nothing is counted."""

    train: np.ndarray
    test: np.ndarray
    macs: int | None
    parameters: int | None


class PooledConvNet(nn.Sequential):
    """Backbone of the teacher of Fashion-MNIST, rows flat or images."""

    def __init__(self, input_shape):
        side = math.isqrt(math.prod(input_shape))
        super().__init__(
            nn.Flatten(),
            nn.Unflatten(1, (1, side, side)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (side // 4) ** 2, 128),
            nn.ReLU(),
        )


def respond(teacher, split, *, folder, cache, device):
    """Scores and costs of a teacher, from the cache where it has been before.

    Parameters
    ----------
    teacher : Teacher
    split : Split
    folder, cache : pathlib.Path
    device : str

    Returns
    -------
    response : Response
    """
    # Rows may be flat or not. That they are others shows in their labels.
    labels = [_digest(np.asarray(y, np.int64)) for y in (split.y_train, split.y_test)]
    settings = _digest(repr((teacher, labels)).encode())
    path = cache / f"teacher_{teacher.name}_{settings}.npz"
    if not path.exists():
        response = _make(teacher, split, folder, device)
        with replacing(path) as temporary:
            known = {k: v for k, v in response._asdict().items() if v is not None}
            np.savez(temporary, **known)
    with np.load(path) as file:
        macs, parameters = (
            int(file[name]) if name in file else None for name in ("macs", "parameters")
        )
        return Response(file["train"], file["test"], macs, parameters)


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:8]


def _make(teacher, split, folder, device):
    model, macs, parameters = teacher.model, None, None
    if isinstance(model, str):
        with np.load(folder / model) as file:
            scores = [np.float32(file[f"scores_{part}"]) for part in ("train", "test")]
            scores = [rows - rows.mean(axis=1, keepdims=True) for rows in scores]
            return Response(*scores, int(file["macs"]), None)
    if isinstance(model, BaseEstimator):
        fitted = FrozenEstimator(clone(model).fit(split.X_train, split.y_train))
    else:
        labels = one_hot(split.y_train)
        ensemble = empty_ensemble(split.X_train, labels.shape[1])
        add_students(ensemble, model, 1, seed=0)
        train(
            ensemble,
            split.X_train,
            labels,
            LabelLoss(),
            max_epochs=teacher.max_epochs,
            batch_size=128,
            learning_rate=teacher.learning_rate,
            seed=0,
            device=device,
        )
        fitted = TorchTeacher(ensemble, device=torch_device(device))
        macs, parameters, _ = fitted.costs(split.X_test)
    scores = [
        teacher_response(
            fitted, X, y, regression=False, estimator_name="accuracy_cost"
        ).scores
        for X, y in ((split.X_train, split.y_train), (split.X_test, split.y_test))
    ]
    return Response(*scores, macs, parameters)
