"""
=======================================================
Reading the certificate: did every student do its part?
=======================================================

A fit keeps what the boosting game saw. This example reads it to answer two questions
that come up when an ensemble is not as good as its teacher: did every student learn
something, and is it the ensemble or the teacher that is at fault?
"""

# %%
# Two ensembles
# -------------
# One has students that are large enough for these data. The other has students of a
# single hidden unit, which can say little.

from functools import partial

import matplotlib.pyplot as plt
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.datasets import make_ellipsoid
from skbdistil.students import MLP

X, y = make_ellipsoid(2000, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
teacher = ExtraTreesClassifier(200, min_samples_leaf=2, random_state=0)
teacher.fit(X_train, y_train)


def distil(n_units):
    clf = BDistilClassifier(
        FrozenEstimator(teacher),
        student=partial(MLP, hidden=(n_units,)),
        n_estimators=4,
        max_epochs=40,
        # Students that are no weak learners are kept, so that they can be looked at.
        edge_tol=float("inf"),
        random_state=0,
    )
    return clf.fit(X_train, y_train)


ensembles = {f"{n_units} unit(s)": distil(n_units) for n_units in (1, 8)}

# %%
# What the fit knows
# ------------------
# ``student_edges_`` has the edge of each student and class: how much, under the weights
# of its round, the student is on the right side of the teacher. A weak learner has
# edges of at least about zero. ``certificate_.mean`` is the mean distance of the
# running mean from the teacher on the training rows, in logits.

figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for name, clf in ensembles.items():
    stages = range(1, len(clf) + 1)
    panels[0].plot(stages, clf.student_edges_.min(axis=1), marker="o", label=name)
    panels[1].plot(stages, clf.certificate_.mean.max(axis=1), marker="o", label=name)
    panels[2].plot(
        stages, list(clf.staged_score(X_test, y_test)), marker="o", label=name
    )
panels[0].axhline(0, color="gray", linestyle=":")
panels[0].set(title="Smallest edge", xlabel="Round")
panels[1].set(title="Mean distance from the teacher", xlabel="Stage", ylim=(0, None))
panels[2].axhline(
    teacher.score(X_test, y_test), color="gray", linestyle="--", label="teacher"
)
panels[2].set(title="Test accuracy", xlabel="Stage")
panels[2].legend()
plt.show()

# %%
# How to read it
# --------------
# Where the distance no longer falls, further students of this kind are of no use: make
# them larger. Where it does fall and the accuracy does not follow, the students are
# close to a teacher that is no better: distil another teacher. The bound of the
# certificate is a worst case over all training rows, and is much larger than the
# distance itself with so few students; compare it between settings.

for name, clf in ensembles.items():
    print(f"{name}: bound", clf.certificate_.bound.max(axis=1).round(1))
    print(f"{name}: largest distance", clf.certificate_.actual.max(axis=1).round(1))
