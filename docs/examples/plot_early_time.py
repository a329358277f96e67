"""
=================================================
Early prediction in time: how long to wait for it
=================================================

A device that waits for the end of a series answers late, and computes more. Recurrent
students can answer earlier. How much earlier depends on how many mistakes are allowed:
that is the decision here.
"""

# %%
# Movements that begin at different times
# ---------------------------------------
# Four movements are waves of two channels. Each begins at a moment of its own, in
# noise, so that no fixed number of steps is right for all. A forest that sees whole
# series teaches two recurrent students.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skbdistil import BDistilClassifier
from skbdistil.early_time import EarlyTimeClassifier
from skbdistil.metrics import earliness, earliness_harmonic_mean
from skbdistil.students import RecurrentNet

rng = np.random.default_rng(0)
n_samples, n_steps = 1400, 40
y = np.arange(n_samples) % 4
since = np.arange(n_steps) - rng.integers(0, 25, n_samples)[:, np.newaxis]
frequency = np.where(y % 2, 0.9, 0.5)[:, np.newaxis]
shift = np.where(y // 2, np.pi / 2, 0)[:, np.newaxis]
waves = [np.sin(frequency * since), np.sin(frequency * since + shift)]
X = (np.stack(waves, axis=2) * (since >= 0)[:, :, np.newaxis]).astype(np.float32)
X += rng.normal(scale=0.4, size=X.shape).astype(np.float32)
train, held_out, test = slice(600), slice(600, 1000), slice(1000, None)


def spectra(series):
    """Products of the channels at small delays, which know no beginning."""
    return np.column_stack(
        [
            (series[:, delay:, i] * series[:, : n_steps - delay, j]).mean(axis=1)
            for delay in range(8)
            for i in (0, 1)
            for j in (0, 1)
        ]
    )


teacher = make_pipeline(
    FunctionTransformer(spectra), ExtraTreesClassifier(100, random_state=0)
)
clf = BDistilClassifier(
    teacher,
    teacher_cv=5,  # a forest knows the rows that it was fitted to by heart
    student=partial(RecurrentNet, hidden=(12,)),
    n_estimators=2,
    max_epochs=25,
    batch_size=64,
    learning_rate=0.02,
    edge_tol=np.inf,
    random_state=0,
).fit(X[train], y[train])
print(f"accuracy after the last step: {clf.score(X[test], y[test]):.3f}")

# %%
# What earlier answers lose
# -------------------------
# Every five steps there may be an answer. For each drop of accuracy that is allowed on
# rows held out, thresholds are chosen, and the test rows say what it comes to.

steps = range(5, n_steps + 1, 5)
found = []
for max_drop in (0.0, 0.02, 0.05, 0.1, 0.2):
    early = EarlyTimeClassifier(
        FrozenEstimator(clf), list(steps), target="accuracy", max_drop=max_drop
    ).fit(X[held_out], y[held_out])
    labels, stages, costs = early.predict_with_stages(X[test])
    accuracy = np.mean(labels == y[test])
    share = earliness(stages[:, 1], n_steps)
    found.append((share, accuracy, max_drop))
    print(
        f"allowed {max_drop:.2f}: accuracy {accuracy:.3f}, read {share:.0%}, cost "
        f"{costs.mean() / early.costs_[-1]:.0%}, harmonic mean "
        f"{earliness_harmonic_mean(accuracy, share):.3f}"
    )

# %%
# The alternative is a fixed number of steps for all series. At the same mean share, it
# is more often right to let each series leave when it is sure.

fixed = []
for step in steps:
    at = EarlyTimeClassifier(FrozenEstimator(clf), [step], max_drop=0).fit(X[held_out])
    fixed.append((step / n_steps, at.score(X[test], y[test])))

shares, accuracies, drops = zip(*found, strict=True)
fig, ax = plt.subplots()
ax.plot(*zip(*fixed, strict=True), "s--", label="all series after the same steps")
ax.plot(shares, accuracies, "o-", label="each series when it is sure")
for share, accuracy, drop in found:
    ax.annotate(f"{drop:g}", (share, accuracy), (8, -8), textcoords="offset points")
ax.set(xlabel="Mean share of the series that is read", ylabel="Test accuracy")
ax.legend(title="Numbers: allowed drop")
plt.show()

# %%
# As the steps come in
# --------------------
# In use, steps come one after the other. A stream keeps the states of the students, and
# reads no step twice.

stream = early.stream()
for step in range(n_steps):
    if stream.update(X[test][:1, step : step + 1]).all():
        break
print(f"answer {stream.predict()[0]} after {stream.n_steps} of {n_steps} steps")
