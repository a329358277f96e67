"""
=========================
A million unlabelled rows
=========================

Labels are dear, rows often are not. A teacher can answer about any row, so students may
learn from rows that nobody has labelled. Is it worth it to collect them? That depends
on who is better: the teacher, or a student that learns from the labelled rows alone.
"""

# %%
# Two tables
# ----------
# Both have 500 labelled rows, 8000 unlabelled ones and 3000 to test, so that this page
# is built in seconds. In the first table, thresholds on five of 16 numbers decide about
# the class, and one label in twenty is drawn at random. Trees find thresholds. In the
# second one, classes lie on ellipsoids, which networks find more easily.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator

from skbdistil import BDistilClassifier
from skbdistil.augmentation import Munge
from skbdistil.datasets import make_ellipsoid
from skbdistil.students import MLP

N_LABELLED, N_UNLABELLED, N_TEST = 500, 8000, 3000
N_ALL = N_LABELLED + N_UNLABELLED + N_TEST


def make_thresholds(n_samples, random_state):
    rng = np.random.default_rng(random_state)
    X = rng.normal(size=(n_samples, 16))
    first = (X[:, 0] > 0.2) ^ ((X[:, 1] > -0.1) & (X[:, 2] < 0.5))
    second = (X[:, 3] > 0) & (X[:, 4] > -0.5)
    y = 2 * first + second
    random = rng.uniform(size=n_samples) < 0.05
    return X, np.where(random, rng.integers(4, size=n_samples), y)


tables = {
    "thresholds": make_thresholds(N_ALL, random_state=0),
    "ellipsoids": make_ellipsoid(N_ALL, n_classes=3, random_state=0),
}

# %%
# The same number of steps
# ------------------------
# More rows at the same number of epochs would mean longer training. To compare rows and
# nothing else, every student gets about 400 optimizer steps, whatever the number of
# rows. The teacher is fitted once to the labelled rows, and frozen. It is asked about
# these and about all others. Without others, students learn what it says of the rows
# that it was fitted to, and that is little more than their labels.

N_STEPS, BATCH_SIZE = 400, 64


def distil(teacher, X, y, *, n_more, **params):
    steps_per_epoch = -(-(len(X) + n_more) // BATCH_SIZE)
    return BDistilClassifier(
        FrozenEstimator(teacher),
        student=partial(MLP, hidden=(32,)),
        n_estimators=2,
        batch_size=BATCH_SIZE,
        max_epochs=round(N_STEPS / steps_per_epoch),
        random_state=0,
        **params,
    )


def rate(clf, teacher, X, y):
    predicted = clf.predict(X)
    return np.mean(predicted == y), np.mean(predicted == teacher.predict(X))


# %%
# No rows, rows, and rows that are made up
# ----------------------------------------
# ``X_unlabelled`` holds further rows of the same kind. With ``augment``, they are made
# up: :class:`~skbdistil.augmentation.Munge` mixes each labelled row with its nearest
# neighbour. ``augment="munge"`` makes one row of each; here it is 16.

factors = (0, 1, 4, 16)
results, made_up, of_teacher = {}, {}, {}
print(f"{'table':<12} {'rows more':<14} {'accuracy':>8} {'agrees with teacher':>20}")
for name, (X, y) in tables.items():
    X_train, y_train = X[:N_LABELLED], y[:N_LABELLED]
    X_more = X[N_LABELLED:-N_TEST]
    X_test, y_test = X[-N_TEST:], y[-N_TEST:]
    teacher = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    teacher.fit(X_train, y_train)
    of_teacher[name] = teacher.score(X_test, y_test)
    results[name] = []
    for factor in factors:
        n_more = factor * N_LABELLED
        more = {"X_unlabelled": X_more[:n_more]} if n_more else {}
        clf = distil(teacher, X_train, y_train, n_more=n_more)
        clf.fit(X_train, y_train, **more)
        results[name].append(rate(clf, teacher, X_test, y_test))
        print(
            f"{name:<12} {n_more:<14}", "{:>8.3f} {:>20.3f}".format(*results[name][-1])
        )
    n_more = 16 * N_LABELLED
    clf = distil(teacher, X_train, y_train, n_more=n_more, augment=Munge(factor=16))
    clf.fit(X_train, y_train)
    made_up[name] = rate(clf, teacher, X_test, y_test)
    print(
        f"{name:<12} {f'{n_more} made up':<14}",
        "{:>8.3f} {:>20.3f}".format(*made_up[name]),
    )
    print(f"{name:<12} {'teacher':<14} {of_teacher[name]:>8.3f}")

# %%
# Is it worth it?
# ---------------

fig, axes = plt.subplots(1, 2, figsize=(8.4, 4), sharey=True, layout="constrained")
places = np.arange(len(factors))
for ax, (name, rates) in zip(axes, results.items(), strict=True):
    accuracy, agreement = zip(*rates, strict=True)
    ax.plot(places, accuracy, "o-", color="C0", label="accuracy")
    ax.plot(places, agreement, "s--", color="C1", label="agreement with the teacher")
    ax.plot(len(factors), made_up[name][0], "o", color="C0", fillstyle="none")
    ax.plot(len(factors), made_up[name][1], "s", color="C1", fillstyle="none")
    ax.axhline(of_teacher[name], color="black", ls=":", label="accuracy of the teacher")
    ax.set(title=name.capitalize(), xlabel="Further rows, of which no label is known")
    ax.set_xticks(
        [*places, len(factors)],
        [*(f"{factor * N_LABELLED}" for factor in factors), "8000\nmade up"],
    )
axes[0].set_ylabel("Share of test rows")
axes[0].legend(loc="lower right")
plt.show()

# %%
# More rows always bring the students closer to the teacher. What that is worth differs:
#
# - Thresholds: the teacher is far better than students of 500 rows, and 8000 more
#   close two thirds of the gap, the first 2000 of them most of it. Longer training
#   makes more of the last ones: with 600 steps, 8000 rows reached 0.81. 8000 rows that
#   are made up do as much as 2000 real ones, and cost only the teacher's answers.
# - Ellipsoids: students of 500 rows are better than the teacher. More rows teach them
#   its mistakes, and accuracy falls while agreement rises. Whoever looks at agreement
#   alone takes this for progress. Made-up rows do less harm, and no good either.
#
# So before collecting rows, hold out some labelled ones, and score the teacher and
# students without further rows. If the teacher is not clearly ahead, its answers are
# not what is missing. If it is, try made-up rows first: they take no collecting, and
# here they help in the table in which real rows do, though less.

# %%
# What grows with a million rows
# ------------------------------
# The teacher is asked once about each row. Rows and scores are held in memory: a
# million rows of 16 numbers and 4 classes in float32 take 80 MB. What earlier students
# computed is held, too, up to 1 GiB. The training takes as long as its steps do, so the
# time need not grow. But ``max_epochs="auto"`` is at least 8 epochs, which for a
# million rows are 31,000 steps per student: set it to fewer, as above, if the loss no
# longer falls.
