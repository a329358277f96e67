"""
==========================================
Precision: how few bytes a row has to read
==========================================

On a small device, weights that are read from memory cost more than arithmetic does.
Fewer bits per weight help, and change some labels. Which precision is safe, and what
becomes of the rows that it is not safe for?
"""

# %%
# Students and their folder
# -------------------------
# Digits with noise, as from a poor sensor. Half of the rows that no student is trained
# on choose precisions and thresholds, half are left to judge by.

import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx
from skbdistil.exported import ExportedClassifier
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X = X + np.random.default_rng(0).normal(scale=4, size=X.shape)
X = X.astype(np.float32)
X_train, X_rest, y_train, y_rest = train_test_split(
    X, y, test_size=0.6, stratify=y, random_state=0
)
X_held_out, X_test, _, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
)
clf = BDistilClassifier(
    ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0),
    student=partial(MLP, hidden=(64,)),
    n_estimators=4,
    max_epochs=20,
    random_state=0,
).fit(X_train, y_train)
work = tempfile.TemporaryDirectory()
folder = Path(work.name)
to_onnx(clf, folder / "float32")

# %%
# One precision for all stages
# ----------------------------
# What each saves and what it loses shows in its report. The agreement is that of the
# worst stage with the same stage in float32.

for precision in ("float16", "int8_dynamic", "int8_static", "int4"):
    report = lower_precision(
        folder / "float32", folder / precision, precision, X=X_held_out
    )
    share = report.n_bytes.sum() / report.float32_n_bytes.sum()
    print(f"{precision:<13} {share:.2f} of the bytes, {report.agreement.min():.3f}")

# %%
# A precision for each stage
# --------------------------
# Let a target choose. With the monotone schedule no stage is more precise than one
# before it, since errors of early stages reach all later ones.

for target in (0.99, 0.999):
    report = lower_precision(
        folder / "float32",
        folder / f"monotone-{target}",
        X=X_held_out,
        target=target,
        schedule="monotone",
    )
    share = report.n_bytes.sum() / report.float32_n_bytes.sum()
    print(f"{target}: {share:.2f} of the bytes,", *report.precisions)

# %%
# Two precisions for one row
# --------------------------
# Or let the row choose. With ``fallback=True`` the last stage is all students in
# float32, for which the export has to hold their graph. The early exit that decides
# which rows go there is calibrated on the folder as it is, and written with it. A
# threshold for each stage lets few rows go from the last stage in int8 to float32,
# which is dear, and more from the first stage to the second, which is cheap.

to_onnx(clf, folder / "whole", fixed_stage=len(clf))
lower_precision(
    folder / "whole", folder / "both", "int8_static", X=X_held_out, fallback=True
)
names = {
    "float32": "float32",
    "int8_static": "int8",
    "int4": "4 bits",
    "both": "int8, then float32",
}
expected = clf.predict(X_test)
paths = {}
for name, title in names.items():
    early = EarlyExitClassifier(
        FrozenEstimator(ExportedClassifier(folder / name).fit()),
        thresholds="stage",
        max_drop=0.01,
        cost="weight_bytes",
    ).fit(X_held_out)
    to_onnx(early, folder / f"{name}-exits")
    session = ProgressiveSession(folder / f"{name}-exits")
    n_bytes = early.costs_[session.exit_stages(X_test) - 1].mean()
    agreement = np.mean(session.predict(X_test) == expected)
    print(f"{title:<18} {n_bytes:6.0f} bytes per row, {agreement:.3f} of the labels")
    paths[title] = early.exit_path(X_test, expected)

# %%
# What to choose
# --------------
# Each point of a curve is a set of thresholds. Where a few labels in a hundred may
# differ from those of float32, the lowest precision is the cheapest. Each precision
# ends at an agreement that it cannot exceed. Beyond that, int8 with the fallback reads
# a part of what early exit in float32 does. It needs space for both on the disk.
# Whether it saves time as well depends on the processor: compare the latencies of the
# sessions.

figure, axes = plt.subplots(layout="constrained")
for title, path in paths.items():
    axes.plot(path.costs / 1000, path.scores, marker=".", label=title)
axes.set_xscale("log")
axes.set_xlabel("Kilobytes of weights read per row")
axes.set_ylabel("Agreement with all stages in float32")
axes.legend()
plt.show()

# %%
work.cleanup()
