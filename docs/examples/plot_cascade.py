"""
=================================================
Cascades: how often does the large model run?
=================================================

A large model answers all rows, and each call costs. Three small models that learned
from it can answer the rows on which they agree. How many rows are left for the large
model, and what is lost? Here the cost is the price of a call, in cents: the small
models run on a machine that is there anyway, and the large one is rented.
"""

# %%
# The models
# ----------
# A forest is the large model. Three students of four units each learn from it, with
# other seeds. Rows that no model was trained on are set aside twice: to choose the
# threshold, and to test what comes of it.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.cascade import CascadeClassifier
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X_train, X_rest, y_train, y_rest = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)
X_held_out, X_test, y_held_out, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
)
large = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=0)
large = FrozenEstimator(large.fit(X_train, y_train))
small = [
    FrozenEstimator(
        BDistilClassifier(
            large,
            student=partial(MLP, hidden=(4,)),
            n_estimators=1,
            max_epochs=20,
            random_state=seed,
        ).fit(X_train, y_train)
    )
    for seed in range(3)
]

# %%
# All of them have to agree
# -------------------------
# Without calibration, a row is answered by the small models if all three give the same
# label. Frozen members are not trained again, and labels are not needed.

CENTS = [0.1, 2.0]
cascade = CascadeClassifier([small, large], costs=CENTS).fit(X_held_out)
labels, cents = cascade.predict_with_cost(X_test)
share = np.mean(cascade.exit_tiers(X_test) == 2)
print(f"rows for the large model: {share:.0%}")
print(f"cents a row:              {cents.mean():.2f} instead of {CENTS[1]:.2f}")
print(f"accuracy:                 {np.mean(labels == y_test):.3f}")
print(f"of the large model:       {large.score(X_test, y_test):.3f}")

# %%
# A loss that is allowed
# ----------------------
# With ``threshold="calibrate"``, it is the cheapest threshold that loses at most half a
# point of accuracy on the rows held out. The rule "score" looks at the probability of
# the label that most members vote for, so there are more thresholds than with votes.

curves = {}
for rule in ("vote", "score", "confidence"):
    curves[rule] = CascadeClassifier(
        [small, large],
        rule=rule,
        threshold="calibrate",
        costs=CENTS,
        target="accuracy",
        max_drop=0.005,
    ).fit(X_held_out, y_held_out)

# %%
# What is lost, and what is paid
# ------------------------------
# All thresholds of each rule on the test rows, and the one that was chosen as a star;
# those of "score" and "confidence" are in one place. Three votes have four thresholds
# only, and each but the first lost more than half a point on the rows held out, so all
# rows go to the large model and the small ones are paid for nothing. With
# probabilities, half of the price is enough. To the right of the star, money is spent
# on rows that the small models know.

fig, ax = plt.subplots(layout="constrained")
for rule, chosen in curves.items():
    path = chosen.exit_path(X_test, y_test)
    (line,) = ax.plot(path.costs, path.scores, ".-", label=f"rule {rule!r}")
    labels, cents = chosen.predict_with_cost(X_test)
    ax.plot(
        cents.mean(), np.mean(labels == y_test), "*", markersize=14, c=line.get_color()
    )
ax.axhline(large.score(X_test, y_test), c="0.5", ls=":", label="large model alone")
ax.axvline(CENTS[1], c="0.5", ls=":")
ax.set(xlabel="Cents a row", ylabel="Test accuracy")
ax.legend(loc="lower right")
plt.show()
