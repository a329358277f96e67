"""
How wide, and how many students?
================================

The width decides what the *first* answer costs, and the number of students how far the
curve goes on. All stages of one fit can be looked at, so only the width takes further
fits. One ensemble for each width:
"""

from functools import partial

import matplotlib.pyplot as plt
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.datasets import make_ellipsoid
from skbdistil.metrics import score_at_cost
from skbdistil.students import MLP

X, y = make_ellipsoid(3000, random_state=0)
X_train, X_rest, y_train, y_rest = train_test_split(X, y, random_state=0)
X_valid, X_test, y_valid, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, random_state=0
)
teacher = FrozenEstimator(RandomForestClassifier(random_state=0).fit(X_train, y_train))

curves = {}
for width, n_students in [(3, 8), (6, 5), (24, 2)]:
    clf = BDistilClassifier(
        teacher,
        student=partial(MLP, hidden=(width,)),
        n_estimators=n_students,
        max_epochs=30,
        random_state=0,
    ).fit(X_train, y_train)
    curves[width] = clf, list(clf.staged_score(X_valid, y_valid))

# %%
# Narrow students begin cheaper, and stay behind wider ones from the cost on that these
# begin with. So take the widest students of which the first is within the smallest
# budget: few wide ones for a single large budget, more and narrower ones where some
# callers have little. Validation rows decide.

fig, ax = plt.subplots()
for width, (clf, scores) in curves.items():
    costs = clf.stage_costs_.cumulative_macs
    ax.plot(costs, scores, "o-", label=f"{len(clf)} students of {width} units")
ax.axhline(teacher.score(X_valid, y_valid), color="gray", ls="--", label="Teacher")
ax.set(xscale="log", xlabel="Multiply-accumulates per row", ylabel="Accuracy")
ax.legend(loc="lower right")
fig.tight_layout()

# %%
# The choice for a budget is the best stage within it, of all widths. Test rows had no
# part in it, and say what it is worth:

budget = 300
affordable = {
    width: score_at_cost(clf.stage_costs_.cumulative_macs, scores, budget)
    for width, (clf, scores) in curves.items()
    if clf.stage_costs_.cumulative_macs[0] <= budget
}
best = max(affordable, key=affordable.get)
chosen = curves[best][0]
chosen.set_params(n_stages=chosen.stage_for(budget))
print(
    f"{chosen.n_stages} student(s) of {best} units: {chosen.score(X_test, y_test):.3f}"
)
