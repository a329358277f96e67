"""
=======================
Is distilling worth it?
=======================

``distil`` makes all choices in one call, and then judges them: it compares the students
with their teacher, with gradient boosting and with an ordinary network of the same cost
that has never seen the teacher. Here the answer is yes in one case and no in another.
"""

# %%
# A teacher that knows more than we do
# ------------------------------------
# Somebody has trained a large network on 9000 rows. We have the network and 4000 other
# rows. Each class consists of four clusters, of which our rows show less.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbdistil import distil

X, y = make_classification(
    n_samples=13_000,
    n_features=20,
    n_informative=12,
    n_classes=3,
    n_clusters_per_class=4,
    random_state=0,
)
X = X.astype(np.float32)
X_theirs, X, y_theirs, y = train_test_split(X, y, test_size=4000, random_state=0)
large = make_pipeline(
    StandardScaler(), MLPClassifier((256, 256), early_stopping=True, random_state=0)
).fit(X_theirs, y_theirs)

# %%
# One call
# --------
# A prediction may take 10,000 multiply-accumulates, and an hour of a core costs 5
# cents. The rows are parted once: to fit, to choose and to judge. All figures of the
# report are about the last part, which had no say in anything before. Without
# ``max_epochs`` and ``batch_size`` the search takes about a minute.

estimator, report = distil(
    FrozenEstimator(large),
    X,
    y,
    max_cost=10_000,
    time_limit=60,
    price_per_hour=0.05,
    n_estimators=3,
    max_epochs=10,
    batch_size=64,
    random_state=0,
)
print(report)

# %%
# The plot shows the same in seconds. Bars are one standard error of the score; what the
# advice goes by are the differences between two models, row by row, which are known
# better.

_, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
report.plot(ax)
plt.show()

# %%
# What to deploy
# --------------
# The estimator predicts with the chosen stage. It still has the later ones, so that
# ``n_stages`` can be changed; a slice is a copy without them.

small = estimator[: report.stage]
rows = report.test_rows
print(f"{len(small)} student(s), {small.stage_costs_.cumulative_macs[-1]} MACs")
print(f"accuracy on the test rows: {small.score(X[rows], y[rows]):.3f}")

# %%
# A teacher that knows what we know
# ---------------------------------
# This forest is fitted to our own training rows, whose labels the students could be
# shown as well. There is no need to search for long, either: what is not tried within
# the time limit is named in the report.

_, report = distil(
    RandomForestClassifier(),
    X,
    y,
    max_cost=10_000,
    time_limit=3,
    n_estimators=3,
    max_epochs=10,
    batch_size=64,
    random_state=0,
)
print(report)
