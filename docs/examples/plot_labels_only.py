"""
================================
A teacher that only gives labels
================================

A language model that is asked what a row is says a label, not a probability. Asked
again, it may say another one, and each answer costs money. How many answers a row are
worth paying for? A share of several answers says more than one does, but the same money
buys an answer for each of more rows.
"""

# %%
# Who answers
# -----------
# A function stands for the language model. A network that was trained on 6000 rows of
# its own knows probabilities, and every answer is drawn from them. One in ten is
# missing, as if it could not be read. Here, unlike in practice, the probabilities can
# be looked at, so that the students can be compared with what they could be at best.

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_classification
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neural_network import MLPClassifier

from skbdistil import BDistilClassifier
from skbdistil.students import MLP
from skbdistil.teachers import scores_from_labels

X, y = make_classification(
    n_samples=10_000,
    n_features=20,
    n_informative=10,
    n_classes=4,
    flip_y=0.05,
    random_state=0,
)
names = np.array(["billing", "delivery", "other", "refund"])
y = names[y]
X_model, X_rows, X_test = np.split(X, [6000, 7800])
y_model, _, y_test = np.split(y, [6000, 7800])
model = MLPClassifier((64,), alpha=1, early_stopping=True, random_state=0)
model.fit(X_model, y_model)
model_loss = log_loss(y_test, model.predict_proba(X_test))
print(f"the model: accuracy {model.score(X_test, y_test):.3f}, loss {model_loss:.3f}")


def ask(X, n_answers, random_state=0):
    """Labels of shape (n_samples, n_answers), None where there is no answer."""
    rng = np.random.default_rng(random_state)
    below = model.predict_proba(X).cumsum(axis=1)[:, :-1]
    draws = rng.uniform(size=(len(X), n_answers))
    answers = names[(draws[:, :, None] > below[:, None]).sum(axis=2)].astype(object)
    answers[rng.uniform(size=answers.shape) < 0.1] = None
    return answers


for row in ask(X_rows[:3], n_answers=9):
    print(row.tolist())

# %%
# From answers to scores
# ----------------------
# ``scores_from_labels`` counts. ``smoothing`` is the number of answers that are added
# to each row in equal parts to all classes, so that a class without an answer is
# unlikely rather than impossible. A row of which all answers are missing has NaN for
# scores; without y, ``fit`` leaves it out. Classes are then the numbers of the columns,
# which are in the order of the sorted labels.


def distil(X, scores):
    clf = BDistilClassifier(
        "precomputed",
        student=partial(MLP, hidden=(16,)),
        n_estimators=3,
        batch_size=64,
        max_epochs=round(400 / (len(X) / 64)),
        random_state=0,
    )
    clf.fit(X, teacher_scores=scores)
    losses = [log_loss(y_test, proba) for proba in clf.staged_predict_proba(X_test)]
    labels = (np.unique(names)[columns] for columns in clf.staged_predict(X_test))
    accuracies = [accuracy_score(y_test, label) for label in labels]
    return losses, accuracies


def report(name, result):
    losses, accuracies = result
    print(f"{name:<36}", *(f"{loss:>6.3f}" for loss in losses), end="   ")
    print(*(f"{accuracy:>6.3f}" for accuracy in accuracies))


# %%
# More answers, same rows
# -----------------------
# All figures are of test rows and their true labels, after one, two and three students
# of about 400 optimizer steps each.

answers = ask(X_rows, n_answers=9)
more_answers = {}
print(f"{'1800 rows':<36} {'log loss by stage':<20}   accuracy by stage")
for n_answers in (1, 3, 9):
    scores = scores_from_labels(answers[:, :n_answers], names)
    more_answers[f"{n_answers} a row"] = distil(X_rows, scores)
with np.errstate(divide="ignore"):
    exact = np.maximum(np.log(model.predict_proba(X_rows)), -20)
more_answers["probabilities"] = distil(X_rows, exact)
for name, result in more_answers.items():
    report(name, result)

# %%
# Three answers take the students more than half of the way from one answer to the
# probabilities themselves, and nine take them most of it. That is all that answers can
# buy: the distance that is left to the model that answers is for larger students, or
# more rows, to cover. With one answer a row, a third student is one too many: it learns
# chance.

# %%
# More answers, fewer rows
# ------------------------
# The price of 1800 answers buys one for each of 1800 rows, three for 600 or nine for
# 200.

same_price = {"1800 rows, 1 a row": more_answers["1 a row"]}
for n_rows, n_answers in ((600, 3), (200, 9)):
    scores = scores_from_labels(answers[:n_rows, :n_answers], names)
    same_price[f"{n_rows} rows, {n_answers} a row"] = distil(X_rows[:n_rows], scores)
print(f"{'1800 answers':<36} {'log loss by stage':<20}   accuracy by stage")
for name, result in same_price.items():
    report(name, result)

# %%
# One answer for each of many rows is best by far. Students take the mean over rows that
# are alike, so a wrong answer about one of them is outvoted by its neighbours, and a
# new row says more than the same row again.

# %%
# How much to smooth
# ------------------
# The above has a tenth of an answer added to each row, which is the default. A whole
# one suits a single row that is looked at by itself.

print(f"{'smoothing=1':<36} {'log loss by stage':<20}   accuracy by stage")
for n_rows, n_answers in ((1800, 1), (1800, 9), (200, 9)):
    scores = scores_from_labels(answers[:n_rows, :n_answers], names, smoothing=1)
    report(f"{n_rows} rows, {n_answers} a row", distil(X_rows[:n_rows], scores))

# %%
# With 1800 rows, the default makes the log loss worse and leaves the accuracy. Students
# learn the mean over rows, and every row is drawn towards equal shares: one answer of
# four classes becomes a share of 0.625, and no student learns to be surer than that.
# With 200 rows it is the other way round, as students come to know single rows by
# heart. These are test rows, so the tenth is no more than a value to try: choose it by
# the log loss on held-out rows with labels.

# %%
# How many answers?
# -----------------

fig, axes = plt.subplots(1, 2, figsize=(8.4, 4), sharey=True, layout="constrained")
for ax, results, title in (
    (axes[0], more_answers, "More answers about the same 1800 rows"),
    (axes[1], same_price, "1800 answers in all"),
):
    for (name, (losses, _)), marker in zip(results.items(), "osDx", strict=False):
        ax.plot(np.arange(1, len(losses) + 1), losses, marker=marker, label=name)
    ax.axhline(model_loss, color="black", linestyle="--", label="who answers")
    ax.set(title=title, xlabel="Students", xticks=[1, 2, 3])
    ax.legend(loc="upper left")
axes[0].set_ylim(0.45, 1.4)
axes[0].set_ylabel("Log loss on test rows (lower is better)")
plt.show()

# %%
# Ask once about each row while there are rows that have not been asked about. Only when
# they run out, ask again: three answers each, and then more. A model that repeats
# itself on nearly every row need not be asked again. And where it reports the
# probabilities that its answers are drawn from, take these: they are worth a little
# more than nine answers, for the price of one.
