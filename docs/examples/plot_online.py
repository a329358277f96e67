"""
======================================================
A stream that drifts: how often is the teacher asked?
======================================================

Students were trained for the rows of yesterday, and rows change. The teacher knows the
new ones, too, and each call of it costs. How many calls does it take to keep up? Each
row here is answered first and learnt afterwards, so that the curves show what a user
of the students would have got.
"""

# %%
# The models
# ----------
# The teacher knows digits at any angle up to 60 degrees. The students have seen upright
# ones only, since these were all that came so far. The rows of the stream, which
# neither has seen, are upright in the beginning, are then turned further and further,
# and stay turned in the end.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skbdistil import BDistilClassifier
from skbdistil.online import OnlineBDistil
from skbdistil.students import MLP


def turned(X, degrees):
    images = [
        rotate(image.reshape(8, 8), angle, reshape=False, order=1)
        for image, angle in zip(X, degrees, strict=True)
    ]
    return np.float32(images).reshape(len(X), 64)


X, y = load_digits(return_X_y=True)
X_train, X, y_train, y = train_test_split(X, y, test_size=0.6, random_state=0)
rng = np.random.default_rng(0)
angles = [rng.uniform(0, 60, len(X_train)) for _ in range(4)]
teacher = SVC(random_state=0).fit(
    np.concatenate([turned(X_train, degrees) for degrees in angles]),
    np.tile(y_train, 4),
)
teacher = FrozenEstimator(teacher)
clf = BDistilClassifier(
    teacher,
    student=partial(MLP, hidden=(32,)),
    n_estimators=3,
    max_epochs=30,
    edge_tol=np.inf,
    random_state=0,
).fit(np.float32(X_train))

n_rows = len(X)
rows = np.concatenate([rng.permutation(n_rows) for _ in range(3)])
angle = np.concatenate(
    [np.zeros(n_rows), np.linspace(0, 60, n_rows), np.full(n_rows, 60)]
)
stream, truth = turned(X[rows], angle), y[rows]

# %%
# Three ways to follow
# --------------------
# ``budget=0`` never asks. ``stride=1`` asks about every row. In between, the stride
# grows while the students agree with the teacher, and shrinks when they do not.

ways = {
    "never": {"budget": 0},
    "every row": {"stride": 1},
    "stride 4 to 32": {"stride": (4, 32)},
}
answers, strides, pieces = {}, {}, np.array_split(stream, 80)
for name, params in ways.items():
    online = OnlineBDistil(clf, teacher, random_state=0, **params)
    found, strides[name] = [], []
    for piece in pieces:
        found.append(online.update(piece))
        strides[name].append(online.stride_)
    answers[name] = np.concatenate(found)
    right = np.mean(answers[name] == truth)
    calls = online.n_teacher_calls_ / len(truth)
    print(f"{name}: {right:.1%} right, {calls:.1%} of the rows asked about")

# %%
# What it comes to
# ----------------
# The students that never ask are of no use once the rows are turned. The stride is long
# while nothing changes, and falls to its smallest soon after the rows begin to turn. It
# stays there as long as the students are below the target of 0.9, as they are to the
# end. What is left between the two upper curves is what the other calls would buy:
# compare it with the price of a wrong answer. If that is high, allow a smaller stride;
# if no stride is small enough, take larger students.

figure, panels = plt.subplots(2, 1, sharex=True, layout="constrained", figsize=(7, 6))
width = 200
for name, labels in answers.items():
    right = np.convolve(labels == truth, np.ones(width) / width, mode="valid")
    panels[0].plot(np.arange(width, len(labels) + 1), right, label=name)
panels[0].set(ylabel=f"share right, last {width} rows")
ends = np.cumsum([len(piece) for piece in pieces])
panels[1].step(ends, strides["stride 4 to 32"], where="post", color="C2")
panels[1].set(xlabel="row of the stream", ylabel="rows from call to call")
panels[1].set_yticks([4, 8, 16, 32])
for panel in panels:
    panel.axvspan(n_rows, 2 * n_rows, color="0.9", label="the rows turn")
panels[0].legend(loc="lower left")
plt.show()
