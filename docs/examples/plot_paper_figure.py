"""
===========================
The paper's figure in small
===========================

The main figure of the paper shows accuracy against the cost of a prediction: one
ensemble that can stop after any student, beside networks that are each trained for one
cost, and beside students that know nothing of each other. The decision behind it: one
model for all budgets, or one model for each?
"""

# %%
# The protocol
# ------------
# Points inside or outside an ellipsoid in 32 dimensions. A wide network is the teacher.
# Students are small networks of one layer. Single networks have the cost of a stage,
# and learn from the same teacher, for as many epochs as a student. Independent students
# have no connection, no game, and a mean of their scores. All of it is done three
# times, with other rows and other weights.

import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier

from skbdistil import BDistilClassifier, DistillationObjective
from skbdistil.datasets import make_ellipsoid
from skbdistil.students import MLP

WIDTH, N_STUDENTS, N_SEEDS = 8, 4, 3
# What they have in common; a single network is an ensemble of one.
protocol = partial(BDistilClassifier, max_epochs=15, edge_tol=np.inf)


def width_of(macs, n_features):
    """Width of a network of one layer and two outputs that costs so much."""
    return round(macs / (n_features + 2))


def experiment(seed):
    """Costs of the stages, and accuracies."""
    X, y = make_ellipsoid(9000, random_state=seed)
    X_train, X_test, y_train, y_test = X[:5000], X[5000:], y[:5000], y[5000:]
    teacher = MLPClassifier((256,), max_iter=20, random_state=seed)
    # Twenty epochs are enough for a teacher here; the warning says they are few.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        frozen = FrozenEstimator(teacher.fit(X_train, y_train))

    def student(width):
        return partial(MLP, hidden=(width,))

    clf = protocol(
        frozen, student=student(WIDTH), n_estimators=N_STUDENTS, random_state=seed
    ).fit(X_train, y_train)
    macs = clf.stage_costs_.cumulative_macs
    singles = [
        protocol(
            frozen,
            student=student(width_of(cost, X.shape[1])),
            n_estimators=1,
            random_state=seed,
        )
        .fit(X_train, y_train)
        .score(X_test, y_test)
        for cost in macs
    ]
    independent = protocol(
        frozen,
        student=student(WIDTH),
        n_estimators=N_STUDENTS,
        connection=None,
        combine="mean",
        objective=DistillationObjective(on="student", barrier=None),
        eta=0,
        random_state=seed,
    ).fit(X_train, y_train)
    return macs, {
        "B-DISTIL, one ensemble": list(clf.staged_score(X_test, y_test)),
        "single networks, one each": singles,
        "independent students": list(independent.staged_score(X_test, y_test)),
        "teacher": [teacher.score(X_test, y_test)],
    }


runs = [experiment(seed) for seed in range(N_SEEDS)]
macs, found = runs[0]
curves = {name: np.array([curves[name] for _, curves in runs]) for name in found}
for name, found in curves.items():
    print(f"{name:26}", np.round(found.mean(axis=0), 3))

# %%
# What it shows
# -------------
# Bars are standard errors. The curves of the ensemble and of the single networks are
# within a point of each other: one model gives what four networks give, and a device
# can change its mind about the budget from row to row. Independent students, drawn at
# the costs of the stages, cost a little less, since none reads another. They stay
# behind: what all of them get wrong, their mean gets wrong, too.

fig, ax = plt.subplots(layout="constrained")
teacher = curves.pop("teacher").mean()
for name, found in curves.items():
    error = found.std(axis=0, ddof=1) / np.sqrt(N_SEEDS)
    ax.errorbar(macs, found.mean(axis=0), error, fmt="o-", capsize=3, label=name)
ax.axhline(teacher, color="k", ls="--", label="teacher")
ax.set(xlabel="Multiply-accumulates of a prediction", ylabel="Accuracy on test rows")
ax.legend()
plt.show()
