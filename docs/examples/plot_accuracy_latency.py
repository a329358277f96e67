"""
======================================================
Accuracy against latency: students, boosting, networks
======================================================

Multiply-accumulates cannot compare networks with trees. Seconds can, on one machine and
for one batch size at a time. Here the stages of this package and of three boosting
methods of scikit-learn, single networks, and the forest that taught them share a plot.
"""

# %%
# The teacher
# -----------
# A forest of 300 trees: accurate, and slow when rows come one at a time. All models
# below are fitted on its training rows and scored on the same test rows.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeClassifier

from skbdistil import BDistilClassifier
from skbdistil.costs import compare_latencies, measure_latency
from skbdistil.inspection import AccuracyCostDisplay
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    (X / 16).astype(np.float32), y, test_size=0.3, stratify=y, random_state=0
)
teacher = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=0)
teacher.fit(X_train, y_train)
latency = measure_latency(teacher.predict, X_test)
print(latency)

# %%
# What is compared
# ----------------
# Boosting methods have the numbers of rounds that are scikit-learn's defaults. AdaBoost
# has trees of depth 8, since stumps are too weak for ten classes. A single network is
# an ensemble of one student: it is distilled in the same way, and the widest of the
# three takes about as many multiply-accumulates as the six students together.


def distil(width, n_estimators):
    return BDistilClassifier(
        FrozenEstimator(teacher),
        student=partial(MLP, hidden=(width,)),
        n_estimators=n_estimators,
        random_state=0,
    )


staged = {
    "Six students of 16 units": distil(16, 6),
    "AdaBoost": AdaBoostClassifier(DecisionTreeClassifier(max_depth=8), random_state=0),
    "Gradient boosting": GradientBoostingClassifier(random_state=0),
    "Histogram gradient boosting": HistGradientBoostingClassifier(random_state=0),
}
widths = (16, 64, 160)
single = [distil(width, 1) for width in widths]
for model in (*staged.values(), *single):
    model.fit(X_train, y_train)

# %%
# One plot
# --------
# The latency is that of ``predict`` for one row, checks of the input included. Each
# display measures its estimator cut to several stages, which take turns; of more than
# 20 stages, 20 are timed. Single networks are no stages of each other, so they are
# measured by ``compare_latencies`` and drawn as points. Only the students are numbered.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, model in staged.items():
    students = isinstance(model, BDistilClassifier)
    AccuracyCostDisplay.from_estimator(
        model,
        X_test,
        y_test,
        cost="latency",
        teacher=(latency.median, teacher.score(X_test, y_test)),
        score_name="Test accuracy",
        name=name,
        annotate=students,
        marker="o" if students else "",
        ax=ax,
    )
latencies = compare_latencies([network.predict for network in single], X_test)
ax.plot(
    [latency.median for latency in latencies],
    [network.score(X_test, y_test) for network in single],
    "D",
    fillstyle="none",
    label="Single networks of 16, 64 and 160 units",
)
ax.set_title("Digits, one row at a time")
ax.legend(loc="lower right")
plt.show()

# %%
# How to read it
# --------------
# Most of the time of a small network is not spent in the network, as the measurement
# below shows, which calls the torch module itself. So a wider network is hardly slower
# here, and a single wide one is hard to beat where it need not be interrupted or sent
# in parts. What the sequence of students adds is the choice of a stage after training.
# Accuracies that differ by less than 0.01 differ by five of the 540 test rows or fewer,
# from one split and one seed: they are no evidence of an order.

print(measure_latency(single[0].predict, X_test))
print(measure_latency(single[0].ensemble_, X_test))

# %%
# The horizontal axis is that of one machine. Another processor, another version of a
# library or another number of threads moves the curves, and not all by the same factor.
# So does the batch size: the rows of a large batch share the overhead, and arithmetic
# counts for more.

models = {
    "Forest (teacher)": teacher,
    **staged,
    "Single network of 160 units": single[-1],
}
print(f"{'microseconds per row':<28} {'1 row':>8} {'500 rows':>9}")
for name, model in models.items():
    one, many = (
        measure_latency(model.predict, X_test, batch_size=size, n_repeats=20)
        for size in (1, 500)
    )
    print(f"{name:<28} {one.median * 1e6:>8.0f} {many.median * 1e6:>9.1f}")
