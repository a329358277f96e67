"""
============================================
Quickstart: from one teacher to six students
============================================

A torch network that reads handwritten digits is distilled into six small students. Any
number of them can be run, so accuracy is bought with inference cost at the time of
prediction rather than of training.
"""

# %%
# The teacher
# -----------
# Any trained classifier can be the teacher. Here it is a torch network, trained the
# usual way on scaled pixels.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skbdistil import BDistilClassifier, TorchTeacher
from skbdistil.students import MLP

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype(np.float32), y, test_size=0.3, stratify=y, random_state=0
)
scaler = MinMaxScaler().fit(X_train)

torch.manual_seed(0)
module = torch.nn.Sequential(
    torch.nn.Linear(64, 256),
    torch.nn.ReLU(),
    torch.nn.Linear(256, 256),
    torch.nn.ReLU(),
    torch.nn.Linear(256, 10),
)
inputs = torch.from_numpy(scaler.transform(X_train))
labels = torch.from_numpy(y_train)
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
for _ in range(40):
    for batch in torch.randperm(len(inputs)).split(64):
        loss = torch.nn.functional.cross_entropy(module(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

teacher = TorchTeacher(module, classes=np.arange(10))

# %%
# Six students
# ------------
# The estimator is an ordinary classifier, so it stands at the end of a pipeline. The
# teacher was trained on pixels scaled by ``scaler``; both are used as they are, which
# is what ``FrozenEstimator`` says of the scaler. ``verbose=1`` shows a progress bar and
# a line about every round of the boosting game.

pipeline = make_pipeline(
    FrozenEstimator(scaler),
    BDistilClassifier(
        teacher,
        student=partial(MLP, hidden=(16,)),
        n_estimators=6,
        random_state=0,
        verbose=1,
    ),
)
pipeline.fit(X_train, y_train)

# %%
# What each stage costs, and what it is worth
# -------------------------------------------
# One pass over the students gives the predictions of all stages. Costs are
# multiply-accumulates per sample.

clf = pipeline[-1]
scaled = scaler.transform(X_test)
of_teacher = teacher.predict(scaled)
macs = clf.stage_costs_.cumulative_macs
fraction = macs / clf.teacher_costs_.macs
staged = list(clf.staged_predict(scaled))
accuracy = [accuracy_score(y_test, predicted) for predicted in staged]
agreement = [accuracy_score(of_teacher, predicted) for predicted in staged]
teacher_accuracy = accuracy_score(y_test, of_teacher)

print(f"\n{'students':>8} {'MACs':>8} {'of teacher':>10} {'accuracy':>9} {'agrees':>7}")
for stage in range(len(clf)):
    print(
        f"{stage + 1:>8} {macs[stage]:>8} {fraction[stage]:>10.1%} "
        f"{accuracy[stage]:>9.3f} {agreement[stage]:>7.3f}"
    )
print(
    f"{'teacher':>8} {clf.teacher_costs_.macs:>8} {1:>10.1%} {teacher_accuracy:>9.3f}"
)

# %%
# Accuracy against cost
# ---------------------

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(fraction, accuracy, marker="o", label="students, running mean")
ax.axhline(teacher_accuracy, color="black", linestyle="--", label="teacher")
for stage, aligned in ((0, "left"), (1, "left"), (5, "right")):
    ax.annotate(
        f"{stage + 1} student{'s' if stage else ''}",
        (fraction[stage], accuracy[stage]),
        textcoords="offset points",
        xytext=(8, -15) if aligned == "left" else (0, -30),
        ha=aligned,
    )
ax.set(
    xlabel="Multiply-accumulates as a fraction of the teacher's",
    ylabel="Test accuracy",
    title="Digits: six students of 16 units",
)
ax.margins(0.08, 0.15)
ax.xaxis.set_major_formatter("{x:.0%}")
ax.legend(loc="lower right")
fig.savefig("quickstart.png", dpi=120)

# %%
# Tuning
# ------
# Everything is a parameter: of the ensemble, of the objective, of the training. After
# the search, ``n_stages`` chooses how many students predict, without another fit.

search = GridSearchCV(
    pipeline.set_params(
        bdistilclassifier__n_estimators=3,
        bdistilclassifier__max_epochs=20,
        bdistilclassifier__verbose=0,
    ),
    {
        "bdistilclassifier__connection": [None, "dense"],
        "bdistilclassifier__objective": ["kl+barrier", "kl"],
    },
    cv=2,
)
search.fit(X_train, y_train)
print(f"\nbest of the search: {search.best_params_}, {search.best_score_:.3f}")
print(f"three students: {search.score(X_test, y_test):.3f}")
one = search.best_estimator_.set_params(bdistilclassifier__n_stages=1)
print(f"one student:    {one.score(X_test, y_test):.3f}")
