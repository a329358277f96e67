"""Which rows to ask a teacher about when it may be asked about some of them only.

Half of the calls are drawn at random. The others go to rows whose two best classes are
close for a student of the first half (margin), or are drawn at random, too. The other
rows have labels, or are left out. Run::

    python -m benchmarks.bench_teacher_calls --data $SKBDISTIL_DATA

Prints the accuracy of three students on test rows: mean and standard error over seeds.
"""

import argparse
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, make_classification
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.students import MLP


def data_sets(folder):
    """Name, rows and labels."""
    letter = folder / "letter.npz"
    if letter.exists():
        with np.load(letter) as file:
            yield "letter", file["X_train"][:9000], file["y_train"][:9000]
    yield "digits", *load_digits(return_X_y=True)
    yield (
        "generated",
        *make_classification(
            6000, 20, n_informative=8, n_classes=3, class_sep=0.7, random_state=0
        ),
    )


def accuracies(X, y, seed):
    """Accuracy by share of calls, whether labels are known, and choice of rows."""
    X_teacher, X, y_teacher, y = train_test_split(
        X, y, test_size=0.6, random_state=seed, stratify=y
    )
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.4, random_state=seed, stratify=y
    )
    teacher = ExtraTreesClassifier(200, random_state=0).fit(X_teacher, y_teacher)
    answers = np.log(teacher.predict_proba(X) + 1e-3)
    order = np.random.RandomState(seed).permutation(len(X))

    def fitted(asked, has_labels, n_estimators):
        clf = BDistilClassifier(
            "precomputed",
            student=partial(MLP, hidden=(16,)),
            n_estimators=n_estimators,
            max_epochs=30,
            random_state=seed,
        )
        if not has_labels:
            return clf.fit(X[asked], y[asked], teacher_scores=answers[asked])
        scores = np.full_like(answers, np.nan)
        scores[asked] = answers[asked]
        return clf.fit(X, y, teacher_scores=scores)

    for share in (0.1, 0.25):
        n_calls = int(share * len(X))
        half, rest = order[: n_calls // 2], order[n_calls // 2 :]
        for has_labels in (False, True):
            proba = np.sort(fitted(half, has_labels, 1).predict_proba(X[rest]), axis=1)
            close = rest[np.argsort(proba[:, -1] - proba[:, -2])]
            for choice, more in (("random", rest), ("margin", close)):
                asked = np.concatenate([half, more[: n_calls - len(half)]])
                score = fitted(asked, has_labels, 3).score(X_test, y_test)
                yield (share, has_labels, choice), score


def main():
    """Print one line per data set and case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SKBDISTIL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, X, y in data_sets(Path(options.data or ".")):
        runs = [dict(accuracies(X, y, seed)) for seed in range(options.seeds)]
        for case in runs[0]:
            scores = [run[case] for run in runs]
            error = np.std(scores, ddof=1) / np.sqrt(len(scores))
            share, has_labels, choice = case
            others = "labels" if has_labels else "left out"
            print(
                f"{name:10} {share:.0%} asked by {choice}, others {others:8} "
                f"{np.mean(scores):.4f} +- {error:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
