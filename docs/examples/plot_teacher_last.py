"""
============================================
How many rows may go to the expensive model?
============================================

Students answer at once and for little. The teacher is better, and has a price: a
server, a licence, a second of waiting. Here rows of which no student is sure go to the
teacher, and the question is how many of them that takes.
"""

# %%
# Students and their teacher
# --------------------------
# The teacher is not asked about its own training rows: on these it would be right too
# often, and the promise below is about new ones.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.monitoring import DeferralMonitor
from skbdistil.students import MLP

X, y = make_classification(
    8000, 10, n_informative=8, n_classes=4, flip_y=0.02, random_state=0
)
X_train, X_rest, y_train, y_rest = train_test_split(
    X, y, train_size=3000, random_state=0
)
X_held_out, X_test, y_held_out, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, random_state=0
)
teacher = SVC(C=10).fit(X_train, y_train)
clf = BDistilClassifier(
    FrozenEstimator(teacher),
    student=partial(MLP, hidden=(8,)),
    n_estimators=3,
    max_epochs=10,
    random_state=0,
).fit(X_train, y_train)
print(f"accuracy of the students: {clf.score(X_test, y_test):.3f}")
print(f"accuracy of the teacher:  {teacher.score(X_test, y_test):.3f}")

# %%
# The price of a promise
# ----------------------
# The promise: of all rows, at most the share ``max_drop`` is answered locally *and*
# wrongly where the teacher is right. ``delta`` is the probability that the calibration
# rows mislead. Costs are in euros here: the students are nearly free, the teacher takes
# a cent a row.


def euros(clf):
    return 1e-9 * clf.stage_costs_.cumulative_macs


early = EarlyExitClassifier(
    FrozenEstimator(clf),
    final=FrozenEstimator(teacher),
    final_cost=0.01,
    cost=euros,
    target="accuracy",
    max_drop=0.02,
    delta=0.1,
    random_state=0,
).fit(X_held_out, y_held_out)
labels, costs = early.predict_with_cost(X_test)
is_deferred = early.exit_stages(X_test) > 3
print(f"rows that go to the teacher: {is_deferred.mean():.0%}")
print(f"price of a thousand rows:    {1000 * costs.mean():.2f} euros")
print(f"accuracy of the whole:       {(labels == y_test).mean():.3f}")

# %%
# How many rows it takes
# ----------------------
# Each promise has its share. On the left, what is promised against what is lost on
# test rows: below the dotted line the promise is kept. On the right, what the shares
# buy. The line has all thresholds, and the points are those that were certified, with
# their ``max_drop``. Each of them is promised, but only to who asked for it before: to
# pick the best of five afterwards takes other rows than those that calibrate.

promises = [0.01, 0.02, 0.03, 0.04, 0.06]
found = []
for max_drop in promises:
    early.set_params(max_drop=max_drop).fit(X_held_out, y_held_out)
    path = early.exit_path(X_test, y_test)
    chosen = early.best_index_
    found.append((path.exits[chosen, -1], path.losses[chosen], path.scores[chosen]))
shares, losses, scores = np.transpose(found)

fig, (risk_ax, score_ax) = plt.subplots(ncols=2, figsize=(9, 4), layout="constrained")
risk_ax.plot(promises, losses, "o-", label="on test rows")
risk_ax.plot(promises, promises, "k:", label="promised")
risk_ax.set(xlabel="max_drop", ylabel="Rows lost to local answers")
risk_ax.legend()
score_ax.plot(path.exits[:, -1], path.scores, label="all thresholds")
score_ax.plot(shares, scores, "o", label="certified")
for max_drop, point in zip(promises, zip(shares, scores, strict=True), strict=True):
    score_ax.annotate(
        f"{max_drop:g}", point, (0, -14), textcoords="offset points", ha="left"
    )
score_ax.axhline(
    teacher.score(X_test, y_test), color="k", linestyle=":", label="teacher alone"
)
score_ax.set(xlabel="Share of the rows that go to the teacher", ylabel="Accuracy")
score_ax.legend()
plt.show()

# %%
# Does it still hold?
# -------------------
# In use, one row in ten goes to the teacher whatever the students say, and a monitor
# compares. It may be looked at after every row, and still raises a false alarm with
# probability 0.1 at most, ever. Without labels it is about agreement with the teacher.

early.set_params(target="agreement", max_drop=0.05).fit(X_held_out)
monitor = DeferralMonitor(early.max_drop, audit=0.1, random_state=0)
early.audit(X_test, monitor)
low, high = monitor.interval()
print(f"{monitor.n_losses_} losses in {monitor.n_audited_} audited rows")
print(f"risk between {low:.3f} and {high:.3f}, drift: {monitor.drift_}")

# %%
# Then sensors give twice the number that they should. Students are surer of larger
# numbers, so more rows stay with them, and are more often answered otherwise than by
# the teacher. The monitor notices, and warns.

for rows in np.array_split(2 * X_test, 40):
    early.audit(rows, monitor)
    if monitor.drift_:
        break
print(f"drift: {monitor.drift_}, after {monitor.n_audited_} audited rows in all")
