"""
=============================
Choosing a stage for a budget
=============================

How many students may a device run, and how wide may they be? A fitted ensemble answers
the first question for a budget in any unit. The second one needs a search, and here it
is asked of scikit-learn's own ``GridSearchCV`` and then of ``StagedSearchCV``, which
compares all stages of each candidate without further fits.
"""

# %%
# A frozen teacher
# ----------------
# The teacher was trained on rows of its own. The students see others, on which it is
# not surer than it should be, and the test rows are new to both.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier

from skbdistil import BDistilClassifier
from skbdistil.inspection import AccuracyCostDisplay
from skbdistil.model_selection import (
    StagedSearchCV,
    best_under,
    cheapest_within,
    cost_scorer,
)
from skbdistil.stages import stage_cost
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_teacher, X, y_teacher, y = train_test_split(
    X, y, train_size=700, stratify=y, random_state=0
)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=400, stratify=y, random_state=0
)
teacher = MLPClassifier((256, 256), random_state=0).fit(X_teacher, y_teacher)
print(f"teacher: test accuracy {teacher.score(X_test, y_test):.3f}")

# %%
# One ensemble, several budgets
# -----------------------------
# ``stage_for`` returns the largest stage within a budget. Operations, parameters and
# bytes are counted; seconds are measured on the rows that are given, one at a time; and
# a function of the fitted estimator can return any other cost, such as the energy of a
# chip that takes 3 nJ for a thousand multiply-accumulates.

clf = BDistilClassifier(
    FrozenEstimator(teacher),
    student=partial(MLP, hidden=(16,)),
    n_estimators=4,
    max_epochs=20,
    random_state=0,
)
clf.fit(X_train, y_train)


def joules(clf):
    return 3e-12 * clf.stage_costs_.cumulative_macs


print(f"{'stage':>5} {'MACs':>6} {'bytes':>6} {'seconds':>8} {'accuracy':>8}")
for row in zip(
    range(1, len(clf) + 1),
    stage_cost(clf, "macs"),
    stage_cost(clf, "weight_bytes"),
    stage_cost(clf, "latency", X=X_test),
    clf.staged_score(X_test, y_test),
    strict=True,
):
    print("{:>5} {:>6} {:>6} {:>8.1e} {:>8.3f}".format(*row))

print("at most 3000 MACs:", clf.stage_for(3000))
print("at most 20 kB:    ", clf.stage_for(20_000, unit="weight_bytes"))
print("at most 15 nJ:    ", clf.stage_for(15e-9, unit=joules))

# %%
# Two ways to use the answer: the same estimator told to run fewer students, which can
# be undone, or a copy that no longer has the others, which is what to deploy.

stage = clf.stage_for(3000)
clf.set_params(n_stages=stage)
small = clf[:stage]
assert (clf.predict(X_test) == small.predict(X_test)).all()
print(f"{len(clf)} students, of which {clf.n_stages} predict; {len(small)} in the copy")

# %%
# A grid search that sees cost
# ----------------------------
# Wider students cost more. ``cost_scorer`` adds a column of costs to ``cv_results_``,
# and a callable for ``refit`` chooses with both columns in view: here the cheapest
# candidate within one standard error of the best score.

grid = {"student": [partial(MLP, hidden=(width,)) for width in (8, 16, 32)]}
clf.set_params(n_stages=None)
search = GridSearchCV(
    clf,
    grid,
    scoring={"accuracy": "accuracy", "cost": cost_scorer("macs")},
    refit=cheapest_within("1se", score="accuracy"),
    cv=3,
)
search.fit(X_train, y_train)

# %%
# The callables are functions of ``cv_results_``. So another question about the same
# search takes no more than a call.


def describe(cv_results, index):
    params = cv_results["params"][index]
    (width,) = params["student"].keywords["hidden"]
    return (
        f"{width:>2} units, {params.get('n_stages', 'all')} students, "
        f"{cv_results['mean_test_cost'][index]:.0f} MACs"
    )


within = best_under(5000, score="accuracy")(search.cv_results_)
print("within one standard error:", describe(search.cv_results_, search.best_index_))
print("best under 5000 MACs:     ", describe(search.cv_results_, within))

# %%
# All stages from one fit per candidate
# -------------------------------------
# Each ensemble that was just fitted contains all the shorter ones. ``StagedSearchCV``
# scores them, too: it fits as often as the search above and compares four times as many
# candidates. The column of costs is there without a scorer.

staged_search = StagedSearchCV(clf, grid, refit=cheapest_within("1se"), cv=3)
staged_search.fit(X_train, y_train)

within = best_under(5000)(staged_search.cv_results_)
for name, found in (("grid search", search), ("staged search", staged_search)):
    print(f"{name}: {len(found.cv_results_['params'])} candidates")
print(
    "within one standard error:",
    describe(staged_search.cv_results_, staged_search.best_index_),
)
print("best under 5000 MACs:     ", describe(staged_search.cv_results_, within))

# %%
# Candidates that are cheaper than all better ones make up the curve. The band is one
# standard deviation over the three splits.

fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
AccuracyCostDisplay.from_cv_results(
    staged_search.cv_results_, name="StagedSearchCV: widths and stages", ax=ax
)
ax.plot(
    search.cv_results_["mean_test_cost"],
    search.cv_results_["mean_test_accuracy"],
    "s",
    label="GridSearchCV: widths",
)
chosen = staged_search.best_index_
ax.plot(
    staged_search.cv_results_["mean_test_cost"][chosen],
    staged_search.cv_results_["mean_test_score"][chosen],
    "o",
    markersize=12,
    markerfacecolor="none",
    markeredgecolor="black",
    label="chosen: within one standard error",
)
ax.set(xlabel="Multiply-accumulates per sample", ylabel="Accuracy, mean of 3 splits")
ax.legend(loc="lower right")
plt.show()

# %%
# The chosen estimator
# --------------------
# It was fitted again on all training rows, with all of its students, of which
# ``n_stages`` predict. The test rows have had no part in the choice.

best = staged_search.best_estimator_
print(f"{len(best)} students, of which {best.n_stages} predict")
deployed = best[: best.n_stages]
print(
    f"deployed: {deployed.stage_costs_.cumulative_macs[-1]} MACs, "
    f"test accuracy {deployed.score(X_test, y_test):.3f}"
)
