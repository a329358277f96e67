"""
=======================================
Deployment: from fit to a folder to run
=======================================

Students are trained where torch is, and often run where it is not. Here six of them
learn digits, are saved and loaded, and are then written as ONNX graphs, one per stage,
from which NumPy and onnxruntime predict.
"""

# %%
# Students with early exit
# ------------------------
# Six students of 5 units learn from a forest, and a rule for early exit is calibrated
# on rows that they are not trained on.

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from onnxruntime import InferenceSession
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.costs import compare_latencies
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X = X.astype(np.float32)
X_train, X_rest, y_train, y_rest = train_test_split(
    X, y, test_size=0.4, stratify=y, random_state=0
)
X_held_out, X_test, y_held_out, y_test = train_test_split(
    X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
)
clf = BDistilClassifier(
    ExtraTreesClassifier(200, min_samples_leaf=2, random_state=0),
    student=partial(MLP, hidden=(5,)),
    random_state=0,
).fit(X_train, y_train)
early = EarlyExitClassifier(
    FrozenEstimator(clf), target="accuracy", max_drop=0.005
).fit(X_held_out, y_held_out)

# %%
# Saving and loading
# ------------------
# To work on with the estimator elsewhere, save it. The file holds numbers and names;
# unlike a pickle, nothing in it is run when it is loaded.

work = tempfile.TemporaryDirectory()
folder = Path(work.name)

save(early, folder / "digits.skb")
loaded = load(folder / "digits.skb")
print("equal after loading:", (loaded.predict(X_test) == early.predict(X_test)).all())

# %%
# One graph per stage
# -------------------
# To run the students elsewhere, export them. The folder says about itself what a runner
# has to know, and may be copied as it is.

to_onnx(early, folder / "digits")
for path in sorted((folder / "digits").iterdir()):
    print(f"{path.name}: {path.stat().st_size / 1000:.1f} kB")

# %%
# Where the students run
# ----------------------
# From here on only NumPy and onnxruntime are needed. On a device, the package is
# installed with ``pip install --no-deps skbdistil``; neither torch nor scikit-learn is
# imported. The rule for early exit has come along.

session = ProgressiveSession(folder / "digits", n_threads=1)
labels_of_session = session.predict(X_test)
print(f"labels as before: {(labels_of_session == early.predict(X_test)).mean():.1%}")
print(f"accuracy:         {(labels_of_session == y_test).mean():.3f}")
stages = session.exit_stages(X_test)
for stage, count in zip(*np.unique(stages, return_counts=True), strict=True):
    print(f"leave after stage {stage}:    {count / len(X_test):.1%} of the rows")

# %%
# Loaded when they are needed
# ---------------------------
# A stage is loaded when the first row reaches it. So an easy row does not wait for
# later stages, and the first hard one does.

session = ProgressiveSession(folder / "digits", n_threads=1)
for name, row in [("easy", stages.argmin()), ("hard", stages.argmax())]:
    for call in ("first call", "second call"):
        began = time.perf_counter()
        session.predict(X_test[row : row + 1])
        seconds = time.perf_counter() - began
        print(f"{name} row, {call + ':':13}{1e3 * seconds:6.2f} ms")

# %%
# With a deadline
# ---------------
# ``predict_within`` runs as many stages as the time allows, and at least the first.
# Without early exit, as here, the last line has all six stages for all rows.

session = ProgressiveSession(folder / "digits", n_threads=1, early_exit=False)
for seconds in (1e-6, 1e-1):
    labels = session.predict_within(X_test, seconds)
    print(f"within {seconds:g} s: accuracy {(labels == y_test).mean():.3f}")

# %%
# Without the package
# -------------------
# The folder needs no Python either. This is the loop that a runner in C++ has, of calls
# that onnxruntime has in every language: a graph per stage, tensors by name, and a
# threshold after each stage. The manifest says the rest.

manifest = json.loads((folder / "digits" / "manifest.json").read_text())
rule = manifest["early_exit"]
graphs = [
    InferenceSession(folder / "digits" / stage["file"]) for stage in manifest["stages"]
]


def label_of(row):
    """Label of one row, and the stage after which it left."""
    tensors = {"x": row[np.newaxis]}
    for number, graph in enumerate(graphs, start=1):
        stage = manifest["stages"][number - 1]
        inputs = {tensor["name"]: tensors[tensor["name"]] for tensor in stage["inputs"]}
        names = [tensor["name"] for tensor in stage["outputs"]]
        tensors |= zip(names, graph.run(names, inputs), strict=True)
        scores = tensors[f"scores_{number}"][0]
        confidence = (
            1 / np.exp((scores - scores.max()) / rule["temperatures"][number - 1]).sum()
        )
        # The last stage has no threshold.
        threshold = [*rule["thresholds"], 0][number - 1]
        if threshold is not None and confidence >= threshold:
            return manifest["classes"]["values"][scores.argmax()], number


assert manifest["kind"] == "classifier"
assert rule["rule"] == "confidence"
found = np.array([label_of(row) for row in X_test])
print("labels as those of the session:", (found[:, 0] == labels_of_session).all())
print("stages as those of the session:", (found[:, 1] == stages).all())

# %%
# What a row takes
# ----------------
# One row at a time, most of what an estimator takes is not arithmetic but the checks of
# scikit-learn and the calls of torch. A session has little of either. Both are timed on
# one thread, cut to each stage.


def latencies(predicts):
    """Median of one row in milliseconds, of predictions that take turns."""
    results = compare_latencies(predicts, X_test, n_repeats=200, n_threads=1)
    return [1e3 * latency.median for latency in results]


numbers = range(1, len(clf) + 1)
of_estimator = latencies([clf[:n].predict for n in numbers])
of_session = latencies(
    [
        ProgressiveSession(
            folder / "digits", n_stages=n, early_exit=False, n_threads=1
        ).predict
        for n in numbers
    ]
)

fig, ax = plt.subplots(layout="constrained")
ax.plot(numbers, of_estimator, "o-", label="estimator")
ax.plot(numbers, of_session, "o-", label="ProgressiveSession")
ax.set(xlabel="Stages", ylabel="Median latency of one row (ms)", ylim=(0, None))
ax.legend()
plt.show()

# %%
work.cleanup()
