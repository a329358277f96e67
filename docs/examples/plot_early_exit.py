"""
================================
Early exit: easy rows stop early
================================

A fixed stage spends the same on every row. Most rows are easy: the first student is
already sure of them. Here a rule decides after each stage which rows may leave, and a
row that has left is not computed any further.
"""

# %%
# Students to exit from
# ---------------------
# Six students of eight units learn from a forest. Rows that they are not trained on are
# set aside twice: to choose the threshold, and to test what comes of it.

from functools import partial

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.inspection import AccuracyCostDisplay, EarlyExitDisplay
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X_train, X_rest, y_train, y_rest = train_test_split(
    X, y, test_size=0.4, stratify=y, random_state=0
)
X_held_out, X_test, y_held_out, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
)
clf = BDistilClassifier(
    ExtraTreesClassifier(200, min_samples_leaf=2, random_state=0),
    student=partial(MLP, hidden=(8,)),
    random_state=0,
).fit(X_train, y_train)

# %%
# Choosing the threshold
# ----------------------
# ``FrozenEstimator`` says that the students are to be used as they are, so that ``fit``
# only calibrates. Of all thresholds of the rule, it takes the one of the smallest mean
# cost that loses at most one point of accuracy against the full ensemble.

early = EarlyExitClassifier(
    FrozenEstimator(clf), rule="confidence", target="accuracy", max_drop=0.01
).fit(X_held_out, y_held_out)

labels, costs = early.predict_with_cost(X_test)
share = costs.mean() / early.costs_[-1]
print(f"threshold of the probability: {early.thresholds_[0]:.3f}")
print(f"accuracy with all students:   {clf.score(X_test, y_test):.3f}")
print(f"accuracy with early exit:     {(labels == y_test).mean():.3f}")
print(f"mean cost:                    {share:.0%} of all students")

# %%
# What the threshold trades
# -------------------------
# On test rows: a higher threshold keeps more rows in, so both score and cost rise. The
# dotted line is the threshold chosen above, the bars are the stages at which rows leave
# with it.

EarlyExitDisplay.from_estimator(early, X_test, y_test)
plt.show()

# %%
# Against fixed stages
# --------------------
# All thresholds together are a curve in the plane of accuracy and cost, beside that of
# the fixed stages. Here it reaches the accuracy of all students at less than a fifth of
# their cost. So does the threshold above, although it was allowed to lose a point.

path = early.exit_path(X_test, y_test)
fig, ax = plt.subplots(layout="constrained")
AccuracyCostDisplay.from_estimator(
    clf, X_test, y_test, score_name="Test accuracy", name="fixed stage", ax=ax
)
AccuracyCostDisplay(
    path.costs[::-1], path.scores[::-1], estimator_name="early exit, mean cost"
).plot(ax, annotate=False, marker="")
ax.plot(costs.mean(), (labels == y_test).mean(), "k*", label="chosen threshold")
ax.legend()
plt.show()

# %%
# A guarantee
# -----------
# The drop above is that on the calibration rows. With ``delta``, thresholds are tested
# one after the other, and the ones that pass lose at most ``max_drop`` on new rows like
# these, unless the calibration rows were an unlucky draw, of probability ``delta`` at
# most. That takes rows: some hundreds of them can certify a drop of three points, not
# of one. With fewer rows than such a test can use, ``fit`` says how many it takes.

certified = EarlyExitClassifier(
    FrozenEstimator(clf), target="accuracy", max_drop=0.03, delta=0.1, random_state=0
).fit(X_held_out, y_held_out)
labels, costs = certified.predict_with_cost(X_test)
share = costs.mean() / certified.costs_[-1]
print(f"certified threshold: {certified.thresholds_[0]:.3f}")
print(f"accuracy:            {(labels == y_test).mean():.3f}")
print(f"mean cost:           {share:.0%} of all students")

# %%
# Anytime
# -------
# What may interrupt is not always known before. ``anytime`` yields the best labels so
# far, and can be left at any moment; ``predict_within`` watches the clock itself.

for stage, labels in enumerate(early.anytime(X_test), start=1):
    print(f"after stage {stage}: {(labels == y_test).mean():.3f}")

labels = early.predict_within(X_test, seconds=0.5)
