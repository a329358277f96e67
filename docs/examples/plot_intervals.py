"""
=========================================
Intervals: is a prediction good enough?
=========================================

A device predicts the load of a machine and has to slow it down before the load exceeds
a limit. The truth is noisy, so the prediction alone is no basis for that. An interval
is: slow down where its upper end is above the limit. Rows leave the students early
where more of these would not change the answer.
"""

# %%
# One fit splits the rows
# -----------------------
# The conformal regressor holds out rows for the intervals, the early exit holds out
# others for its thresholds, and the students learn from the rest.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_friedman1
from sklearn.ensemble import ExtraTreesRegressor

from skbdistil import BDistilRegressor
from skbdistil.early_exit import EarlyExitRegressor
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.students import MLP

X, y = make_friedman1(6000, noise=1.0, random_state=0)
X, X_test, y, y_test = X[:4000], X[4000:], y[:4000], y[4000:]
reg = BDistilRegressor(
    ExtraTreesRegressor(50, min_samples_leaf=2, random_state=0),
    student=partial(MLP, hidden=(16,)),
    n_estimators=6,
    max_epochs=20,
    edge_tol=np.inf,
    random_state=0,
)
early = EarlyExitRegressor(reg, tolerance=0.5, max_risk=0.05, delta=0.1, random_state=0)
conformal = SplitConformalRegressor(early, random_state=0).fit(X, y)

# %%
# What leaving early costs
# ------------------------
# Few rows are off by more than half a unit from what all students would say, and their
# share is guaranteed.

early = conformal.estimator_
targets, costs = early.predict_with_cost(X_test)
full = early.estimator_.predict(X_test)
print(f"cost: {costs.mean() / early.costs_[-1]:.0%} of all students")
print(f"off by more than 0.5: {(abs(targets - full) > 0.5).mean():.1%} of the rows")

# %%
# Coverage and width by stage
# ---------------------------
# Each stage, and the early exit, has an interval of its own. All cover about 90 % of
# the test rows; better stages do so with narrower intervals.

names, coverage, widths = [], [], []
staged = [
    *conformal.staged_predict_interval(X_test),
    conformal.predict_interval(X_test),
]
for number, (lower, upper) in enumerate((ends.T for ends in staged), start=1):
    names.append(f"stage {number}" if number < len(staged) else "early exit")
    coverage.append(((lower <= y_test) & (y_test <= upper)).mean())
    widths.append((upper - lower).mean())

_, (left, right) = plt.subplots(ncols=2, figsize=(9, 3.5), layout="constrained")
left.barh(names, widths)
left.set(xlabel="Width of the interval", title="Narrower is better")
left.invert_yaxis()
right.plot(coverage, names, "o")
right.axvline(0.9, color="gray", linestyle="--", label="promised")
right.set(xlabel="Coverage on test rows", xlim=(0.8, 1))
right.invert_yaxis()
right.legend()

# %%
# The decision
# ------------
# The load must not exceed 20. Slowing down by the prediction misses many of the rows
# that do, as the crosses above the limit and left of it show. Slowing down where the
# upper end of the interval exceeds the limit misses few. How few, and how often the
# machine is slowed down for it, ``alpha`` decides: on the right, each point is one.

limit = 20
exceeds = y_test > limit


def slowed_and_missed(load):
    """Share of the time, and of what exceeds the limit."""
    slowed = load > limit
    return slowed.mean(), (exceeds & ~slowed).sum() / exceeds.sum()


alphas = [0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02]
shares = [
    slowed_and_missed(conformal.predict_interval(X_test, alpha=alpha)[:, 1])
    for alpha in alphas
]
for name, (slowed, missed) in {
    "prediction": slowed_and_missed(targets),
    "upper end, alpha=0.1": shares[alphas.index(0.1)],
}.items():
    print(
        f"by the {name}: slows down {slowed:.0%} of the time, misses {missed:.0%} "
        "of what exceeds the limit"
    )

_, (left, right) = plt.subplots(ncols=2, figsize=(9, 4), layout="constrained")
order = np.argsort(targets)[-400::8]
half_width = conformal.half_widths(alpha=0.1)
left.errorbar(range(len(order)), targets[order], half_width, fmt=".", label="interval")
left.plot(y_test[order], "x", label="truth")
left.axhline(limit, color="gray", linestyle="--", label="limit")
left.set(xlabel="Rows with high predictions, in their order", ylabel="Load")
left.legend()
right.plot(*np.transpose(shares), "o-", label="upper end of the interval")
for alpha, point in zip(alphas, shares, strict=True):
    right.annotate(f"{alpha:g}", point, (4, 4), textcoords="offset points")
right.plot(*slowed_and_missed(targets), "s", label="prediction")
right.set(
    xlabel="Share of the time slowed down", ylabel="Missed, of what exceeds the limit"
)
right.legend(title="numbers are alpha")
plt.show()
