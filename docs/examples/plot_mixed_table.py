"""
=========================================
A table with categories and missing cells
=========================================

Boosted trees read categories and missing cells as they are; students are networks, and
want numbers. ``student_transform`` makes these for the students only, and the teacher
goes on to see the frame. The decision here is how to fill the holes: with the mean of
the column alone, or with a column beside it that says where something was missing.
"""

# %%
# A frame with holes
# ------------------
# Customers of four cities. Income is missing more often where it is high, as in
# surveys, so that a hole says something.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder

from skbdistil import BDistilClassifier
from skbdistil.students import MLP

NUMBERS = ["income", "age", "visits"]


def make_customers(n_samples, seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "city": pd.Categorical(
                rng.choice(["Oslo", "Rome", "Lima", "Bonn"], n_samples)
            ),
            "income": rng.normal(3, 1, n_samples),
            "age": rng.uniform(18, 80, n_samples),
            "visits": rng.poisson(4, n_samples).astype(float),
        }
    )
    far = frame["city"].isin(["Lima", "Oslo"])
    value = frame["income"] * np.where(far, 0.4, 1.5) + 0.3 * frame["visits"]
    value += (frame["age"] - 45).abs() / 20
    buys = (value + rng.normal(0, 0.3, n_samples) > 5.2).to_numpy()
    frame.loc[rng.random(n_samples) < 0.5 * (frame["income"] > 3.2), "income"] = np.nan
    frame.loc[rng.random(n_samples) < 0.1, "age"] = np.nan
    return frame, np.where(buys, "buys", "leaves")


frame, y = make_customers(4000, seed=0)
X_train, X_test, y_train, y_test = train_test_split(frame, y, random_state=0)
print(X_train.head().to_string())

# %%
# The teacher sees the frame
# --------------------------

teacher = HistGradientBoostingClassifier(random_state=0).fit(X_train, y_train)
print(f"teacher: {teacher.score(X_test, y_test):.3f}")

# %%
# What students see
# -----------------
# Each is fitted on the training rows inside ``fit``, saved with the students, and used
# in every prediction.


def to_numbers(add_indicator):
    return make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["city"]),
        (SimpleImputer(add_indicator=add_indicator), NUMBERS),
    )


ways = {"mean": to_numbers(False), "mean and indicator": to_numbers(True)}
curves = {name: [] for name in ways}
for name, transform in ways.items():
    for seed in range(3):
        clf = BDistilClassifier(
            FrozenEstimator(teacher),
            student=partial(MLP, hidden=(8,)),
            student_transform=transform,
            n_estimators=4,
            max_epochs=12,
            random_state=seed,
        ).fit(X_train, y_train)
        curves[name].append(list(clf.staged_score(X_test, y_test)))
    print(f"{name:19}", np.round(np.mean(curves[name], axis=0), 3))

# %%
# Which to take
# -------------
# An indicator costs the first layer a weight per unit, and is worth it where a hole is
# no accident, as here. Where cells are missing by chance it does nothing, and students
# are smaller without it. With it, these students end a little above their teacher. Bars
# are standard errors over three seeds of the students, on the same rows.

fig, ax = plt.subplots(layout="constrained")
stages = np.arange(1, 5)
for name, found in curves.items():
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    ax.errorbar(stages, np.mean(found, axis=0), error, fmt="o-", capsize=3, label=name)
ax.axhline(teacher.score(X_test, y_test), color="k", ls="--", label="teacher")
ax.set(xlabel="Stage", ylabel="Accuracy on test rows", xticks=stages)
ax.legend(title="Students' holes filled with")
plt.show()
