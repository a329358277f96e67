"""
Regression with several targets: which of them first?
=====================================================

A model of a machine gives four numbers. A small device runs the first student on every
row, and the others when it has time. One number, the load, must be good from the first
student on: it stops the machine. The others may wait.

By default every student learns all targets. ``output_schedule`` gives the first student
to some of them, and lets the others join in later rounds.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from skbdistil import BDistilRegressor
from skbdistil.students import MLP

rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, size=(2000, 8))
targets = {
    "temperature": 40 + 12 * X[:, 0] + 5 * X[:, 1],
    "flow": 3 + np.exp(X[:, 2] + X[:, 3]),
    "noise": 60 + 8 * np.abs(X[:, 4]) + 4 * X[:, 0],
    "load": 100 * np.sin(3 * X[:, 5]) * X[:, 6] + 30 * X[:, 7] ** 2,
}
Y = np.column_stack(list(targets.values()))
X_train, X_test, Y_train, Y_test = train_test_split(X, Y, random_state=0)

# %%
# Units do not matter: targets are standardised inside. The two ensembles differ in
# nothing but the schedule, and so cost the same.

schedules = {
    "all from the first student on": None,
    "load first": [[3], [0, 1, 2]],
}
fitted = {}
for name, schedule in schedules.items():
    fitted[name] = BDistilRegressor(
        ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0),
        student=partial(MLP, hidden=(4,)),
        n_estimators=4,
        output_schedule=schedule,
        max_epochs=20,
        random_state=0,
    ).fit(X_train, Y_train)
    print(name, [f"{score:.2f}" for score in fitted[name].staged_score(X_test, Y_test)])

# %%
# Before its first round a target is predicted as its mean, which has an R^2 of 0.
# ``first_stages_`` says when that is. The certificate counts from there, and says
# nothing of a target before.

reg = fitted["load first"]
print("first stages:", dict(zip(targets, reg.first_stages_.tolist(), strict=True)))
print("bound of the largest error:")
print(np.round(reg.certificate_.potential, 1))

# %%
# So look at the targets one by one, on rows that no one has learnt from. With the
# schedule, the first student is good at the load, and the other targets wait for the
# second. Without a target that must come first there is no reason for a schedule.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for ax, (name, reg) in zip(axes, fitted.items(), strict=True):
    scores = [
        r2_score(Y_test, predicted, multioutput="raw_values")
        for predicted in reg.staged_predict(X_test)
    ]
    costs = reg.stage_costs_.cumulative_macs
    for target, of_target in zip(targets, np.transpose(scores), strict=True):
        width = 2.5 if target == "load" else 1.2
        ax.plot(costs, of_target, marker="o", linewidth=width, label=target)
    ax.set(title=name, xlabel="multiply-accumulates of a row")
axes[0].set(ylabel="R$^2$ on test rows")
axes[1].legend(loc="lower right")
plt.show()
