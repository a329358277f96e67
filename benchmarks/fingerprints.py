"""Hashes of what a fixed set of fits gives, to be compared before and after a change.

A change that moves code and means no other behaviour leaves every line as it was::

    python -m benchmarks.fingerprints > before.txt
    (change the code)
    python -m benchmarks.fingerprints | diff before.txt -

Hashes are those of one machine: other processors and other versions of torch round
differently.
"""

import hashlib
import json
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from skorch import NeuralNet
from torch import nn

from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import Lateral
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet


def _teacher(n_in, n_out, width=64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, n_out)
        )


def _cases():
    """Name, estimator, and arguments of fit of each case."""
    X, y = load_iris(return_X_y=True)
    digits, label = load_digits(return_X_y=True)
    digits, label = digits[:600], label[:600]
    images = digits.reshape(-1, 1, 8, 8)
    series = digits.reshape(-1, 8, 8)
    weight = np.linspace(0, 2, len(y))
    teacher = LogisticRegression(max_iter=1000)
    small = partial(MLP, hidden=(8,))
    deep = partial(MLP, hidden=(8, 8))
    base = dict(student=small, n_estimators=3, max_epochs=15, random_state=0)

    def classifier(**params):
        return BDistilClassifier(teacher, **{**base, **params})

    for connection in (None, "dense", "last", "auto"):
        yield f"connection={connection}", classifier(connection=connection), (X, y)
    for combine in ("mean", "sum", "learned"):
        yield f"combine={combine}", classifier(combine=combine), (X, y)
    for connection in ("lateral", Lateral("last"), Lateral(shared_blocks=1)):
        student = deep if connection == "lateral" else partial(MLP, hidden=(8, 8, 8))
        yield (
            f"{connection}",
            classifier(connection=connection, student=student),
            (X, y),
        )
    for objective in ("kl", "squared_error+barrier", "squared_error", "barrier"):
        yield f"objective={objective}", classifier(objective=objective), (X, y)
    indicator = DistillationObjective(
        barrier="indicator", on="student", temperature=2.0
    )
    yield "indicator", classifier(objective=indicator), (X, y)
    yield "alpha", classifier(objective=DistillationObjective(alpha=0.5)), (X, y)
    yield "eta=0", classifier(eta=0), (X, y)
    yield "eta=0.3", classifier(eta=0.3), (X, y)
    yield "float64", classifier(dtype="float64"), (X, y)
    yield "attempts", classifier(max_attempts=3), (X, y)
    yield "ladder", classifier(student=[partial(MLP, hidden=(1,)), small]), (X, y)
    yield "weights", classifier(), (X, y, weight)
    yield "held out", classifier(early_stopping=True, max_epochs=40), (X, y, weight)
    template = NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)
    yield "template", classifier(net=template, batch_size=16), (X, y)
    yield "default", BDistilClassifier(n_estimators=2, random_state=0), (digits, label)
    for size in (16, 512):
        clf = BDistilClassifier(
            _teacher(64, 10, size), n_estimators=2, max_epochs=5, random_state=0
        )
        yield f"torch teacher of {size}", clf, (digits, label)
    for name, student, rows in (
        ("images", partial(ConvNet2d, channels=(4, 8)), images),
        ("series", partial(ConvNet1d, channels=(4, 8)), series),
        ("recurrent", partial(RecurrentNet, hidden=(6,)), series),
        ("lstm", partial(RecurrentNet, hidden=(4, 4), cell="lstm"), series),
    ):
        clf = BDistilClassifier(
            _teacher(64, 10),
            student=student,
            n_estimators=3,
            max_epochs=4,
            random_state=0,
        )
        yield name, clf, (rows.astype(np.float32), label)
    for refine in ("final", "rounds"):
        yield f"refine={refine}", classifier(refine=refine), (X, y)
    X_reg, y_reg = load_diabetes(return_X_y=True)
    regressor = partial(BDistilRegressor, Ridge(), **base)
    yield "regression", regressor(), (X_reg, y_reg)
    yield "regression refined", regressor(refine="final"), (X_reg, y_reg)
    several = make_regression(200, 5, n_targets=3, random_state=0)
    yield "several targets", regressor(combine="sum"), several


def _digest(*arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def _describe(estimator, X):
    """Digests of what a fitted estimator says."""
    found = {
        "predict": _digest(*estimator.staged_predict(X)),
        "edges": _digest(estimator.student_edges_),
        "certificate": _digest(
            estimator.certificate_.bound,
            estimator.certificate_.actual,
            estimator.certificate_.mean,
            estimator.certificate_.step,
        ),
        "losses": _digest(
            *[row["train_loss"] for rows in estimator.training_history_ for row in rows]
        ),
        "macs": estimator.stage_costs_.cumulative_macs.tolist(),
    }
    if hasattr(estimator, "predict_proba"):
        found["proba"] = _digest(*estimator.staged_predict_proba(X))
        found["decision"] = _digest(*estimator.staged_decision_function(X))
    return found


def main():
    """Print one line per case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, estimator, arguments in _cases():
        fitted = estimator.fit(*arguments)
        print(name, json.dumps(_describe(fitted, arguments[0])), flush=True)
    X, y = load_iris(return_X_y=True)
    grown = BDistilClassifier(
        LogisticRegression(max_iter=1000),
        student=partial(MLP, hidden=(8,)),
        eta=0.1,
        n_estimators=2,
        max_epochs=15,
        random_state=0,
        warm_start=True,
    )
    grown.fit(X, y).set_params(n_estimators=4).fit(X, y)
    print("warm start", json.dumps(_describe(grown, X)))
    print("prefix", json.dumps(_describe(grown[:2], X)))
    early = EarlyExitClassifier(
        BDistilClassifier(
            LogisticRegression(max_iter=1000),
            student=partial(MLP, hidden=(8,)),
            n_estimators=3,
            max_epochs=15,
            random_state=0,
        ),
        random_state=0,
    ).fit(X, y)
    found = _digest(early.predict_proba(X), early.exit_stages(X), early.thresholds_)
    print("early exit", found)


if __name__ == "__main__":
    main()
