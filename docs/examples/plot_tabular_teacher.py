"""
=================================
Distil a tabular foundation model
=================================

A tabular foundation model such as TabPFN or TabICL is not trained on your rows: it
keeps them, and looks at all of them for every prediction. That makes it accurate, slow,
and a teacher that knows its training rows by heart. The decision here is what the
students learn from: what it says of rows that it keeps, or of rows that it has not
seen.
"""

# %%
# The teacher
# -----------
# To use TabICL, ``pip install tabicl``, and name the file of its weights, about 100 MB,
# in ``TABICL_CHECKPOINT``. ``TabPFNClassifier()`` of ``tabpfn`` goes in the same place;
# its weights can be had after its licence was accepted. Neither was at hand for this
# page. All figures on it are those of a stand-in that keeps its rows, too: the 25
# nearest neighbours, weighted by distance. It is less accurate than the two would be.

import os
import textwrap
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from skbdistil import BDistilClassifier
from skbdistil.costs import measure_latency
from skbdistil.students import MLP

X, y = make_classification(
    n_samples=4500,
    n_features=20,
    n_informative=8,
    n_classes=3,
    class_sep=0.7,
    random_state=0,
)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=1500, stratify=y, random_state=0
)

checkpoint = os.environ.get("TABICL_CHECKPOINT")
if checkpoint:
    from tabicl import TabICLClassifier

    unfitted = TabICLClassifier(model_path=checkpoint, allow_auto_download=False)
else:
    unfitted = KNeighborsClassifier(25, weights="distance")

teacher = clone(unfitted).fit(X_train, y_train)
sure = teacher.predict_proba(X_train).max(axis=1)
of_others = teacher.predict_proba(X_test)
teacher_loss = log_loss(y_test, of_others)
print(f"largest probability, mean of training rows: {sure.mean():.3f}")
print(f"largest probability, mean of test rows:     {of_others.max(axis=1).mean():.3f}")
print(f"accuracy on training rows: {teacher.score(X_train, y_train):.3f}")
print(f"accuracy on test rows:     {teacher.score(X_test, y_test):.3f}")

# %%
# The default
# -----------
# A training row is its own nearest neighbour, at a distance of 0, so the teacher
# repeats its label. With ``teacher_cv="auto"``, ``fit`` finds this out: it asks about
# one fold of rows that the teacher was not fitted to, and compares how often it leaves
# no doubt. Here it then takes the scores out of five folds, and says so in a warning.
# Such scores are those of a teacher with fewer rows, which is wrong about some labels
# that are known. So the students learn the mean of scores and labels (``label_mix_``).


def students(**params):
    return BDistilClassifier(
        unfitted,
        student=partial(MLP, hidden=(16,)),
        n_estimators=4,
        batch_size=128,
        max_epochs=40,
        random_state=0,
        **params,
    )


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    default = students().fit(X_train, y_train)
for warning in caught:
    print(textwrap.fill(f"{warning.category.__name__}: {warning.message}", 80))
print("share of labels:", default.label_mix_)
print(f"accuracy of the teacher, {default.teacher_score_kind_}:", end=" ")
print(f"{default.teacher_score_:.3f}")

# %%
# The test of the default is a strict one: a teacher leaves no doubt where a probability
# is 1 but for a millionth. A foundation model that is merely too sure of its own rows
# may pass it. If you know that your teacher keeps its rows, do not wait for the
# warning, and pass ``teacher_cv=5``. It costs five fits, which for such a teacher are
# cheap, and one prediction a row.

# %%
# The alternatives
# ----------------
# ``teacher_cv=None`` takes the scores of the rows that the teacher keeps, which here
# are the labels. ``label_mix=0`` takes the scores out of fold and no labels.

runs = {
    "out of fold, half labels (default)": default,
    "out of fold, no labels": students(teacher_cv=5, label_mix=0).fit(X_train, y_train),
    "rows that it keeps": students(teacher_cv=None).fit(X_train, y_train),
}
losses = {
    name: [log_loss(y_test, proba) for proba in clf.staged_predict_proba(X_test)]
    for name, clf in runs.items()
}
print(f"{'log loss on test rows by stage':<36} {'1':>6} {'2':>6} {'3':>6} {'4':>6}")
for name, loss in losses.items():
    print(f"{name:<36}", *(f"{value:>6.3f}" for value in loss))
print(f"{'teacher':<36} {teacher_loss:>6.3f}")
print(f"\n{'accuracy on test rows by stage':<36} {'1':>6} {'2':>6} {'3':>6} {'4':>6}")
for name, clf in runs.items():
    scores = clf.staged_score(X_test, y_test)
    print(f"{name:<36}", *(f"{value:>6.3f}" for value in scores))
print(f"{'teacher':<36} {teacher.score(X_test, y_test):>6.3f}")

# %%
# The accuracies hardly tell the default from the scores of rows that the teacher keeps.
# The log loss does: the more students learn that every label is certain, the surer they
# get, and of the test rows they are wrong about, too. A single student of 16 units
# cannot remember many rows. Alone, it needs no folds: it is slightly better without.
#
# Folds without labels bring the students as far as this teacher, and no further. That
# the labels help so much is because networks suit these rows better than neighbours do;
# a foundation model would have more to say. Beyond two students next to nothing is
# gained, whatever they learn.

# %%
# What it saves
# -------------
# Microseconds a row, one row at a time and 500 at once. The teacher looks at all of its
# 1500 rows. Neighbours do that fast; a transformer takes far longer, and there the
# ratio is the reason to distil.

print(f"{'microseconds a row':<20} {'1 row':>8} {'500 rows':>9}")
models = {f"{stage} of 4 students": default[:stage] for stage in (1, 2, 4)}
for name, model in {**models, "teacher": teacher}.items():
    one, many = (
        measure_latency(model.predict_proba, X_test, batch_size=size, n_repeats=20)
        for size in (1, 500)
    )
    print(f"{name:<20} {one.median * 1e6:>8.0f} {many.median * 1e6:>9.1f}")

# %%
# Out of fold or not
# ------------------

fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for (name, loss), marker in zip(losses.items(), "osD", strict=True):
    ax.plot(np.arange(1, len(loss) + 1), loss, marker=marker, label=name)
ax.axhline(teacher_loss, color="black", linestyle="--", label="teacher")
ax.set(
    xlabel="Students",
    ylabel="Log loss on test rows (lower is better)",
    title="What students learn from a teacher that keeps its rows",
    xticks=np.arange(1, 5),
)
ax.set_ylim(bottom=0.4)
ax.legend(loc="upper left")
plt.show()

# %%
# Use the folds where probabilities are used: for thresholds, for costs, for early exit.
# Where only the most likely class counts, or one small student is all there is, ask for
# ``teacher_cv=None`` and save the fits. In any case, compare with students of labels
# alone, which is what the rows that this teacher keeps amount to. The best of their
# stages is hardly worse than the best of the default: this teacher adds next to
# nothing, and only the figures said so.
