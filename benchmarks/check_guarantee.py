"""Whether early exit keeps its guarantee, end to end.

    python -m benchmarks.check_guarantee [--draws 200] [--output FILE] [SETTING ...]

For each setting, students are trained once and frozen. Their thresholds are then chosen
by `fit` on fresh rows, once for each draw, and the true risk of what `predict` returns
is taken on 40,000 rows that are in no draw. Where the setting says so, students are
trained inside `fit` instead, anew for each draw. One line for each setting is appended
to the file; settings that are in it already are not run again.
"""

import argparse
import csv
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binom
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.students import MLP

N_TRAINING = 2000
N_TEST = 40_000
# Always as many, since the distribution of `make_classification` depends on it.
N_ROWS = 525_000

# Good enough to let rows leave, and bad enough to be wrong about some of them.
STUDENTS = BDistilClassifier(
    ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0),
    student=partial(MLP, hidden=(8,)),
    n_estimators=4,
    max_epochs=20,
    edge_tol=np.inf,
    random_state=0,
)
# Trained anew in each draw.
TINY_STUDENTS = BDistilClassifier(
    LogisticRegression(),
    student=partial(MLP, hidden=(4,)),
    n_estimators=3,
    max_epochs=5,
    edge_tol=np.inf,
    random_state=0,
)


# How a draw of rows becomes a fitted EarlyExitClassifier.


def calibrated(estimator, X, y, **options):
    return EarlyExitClassifier(estimator, **options).fit(X, y)


def cheapness(early, X, y):
    return -early.predict_with_cost(X)[1].mean()


def searched_on_others(estimator, X, y, **options):
    """One half of the rows chooses among settings, the other one calibrates."""
    half = len(X) // 2
    search = GridSearchCV(
        EarlyExitClassifier(estimator, **options),
        {"rule": ["confidence", "margin"], "thresholds": ["shared", "stage"]},
        scoring=cheapness,
        refit=False,
        cv=2,
    ).fit(X[:half], y[:half])
    options = {**options, **search.best_params_}
    return calibrated(estimator, X[half:], y[half:], **options)


def searched_on_the_same(estimator, X, y, **options):
    """The cheapest of many on the rows that calibrate, which voids the promise."""
    everything = np.arange(len(X))
    return (
        GridSearchCV(
            EarlyExitClassifier(estimator, **options),
            {"random_state": range(20), "rule": ["confidence", "margin", "entropy"]},
            scoring=cheapness,
            cv=[(everything, everything)],
        )
        .fit(X, y)
        .best_estimator_
    )


def gap(stages):
    """A rule of a user: how far the best logit is ahead of the second."""
    second, first = np.partition(stages[-1], -2, axis=1)[:, -2:].T
    return first - second


class Setting(NamedTuple):
    """What is drawn, and what is promised of it.

    Attributes
    ----------
    n_rows : int
        Rows of each draw.
    max_drop, delta : float
    options : dict
        Other parameters of EarlyExitClassifier.
    data : dict
        Parameters of `make_classification`.
    coarse : bool
        Whether features take three values only, so that many rows are equal.
    inside : bool
        Whether students are trained in each draw.
    fit : callable
    """

    n_rows: int
    max_drop: float
    delta: float = 0.1
    options: dict = {}
    data: dict = {}
    coarse: bool = False
    inside: bool = False
    fit: Callable = calibrated


SETTINGS = {
    "agreement": Setting(300, 0.05),
    "accuracy": Setting(300, 0.05, options={"target": "accuracy"}),
    "accuracy, 88 % in one of 4 classes": Setting(
        900,
        0.01,
        options={"target": "accuracy"},
        data={"weights": [0.88, 0.04, 0.04], "class_sep": 1.5},
    ),
    "agreement, 95 % in one of 2 classes": Setting(
        2400, 0.003, data={"n_classes": 2, "weights": [0.95], "flip_y": 0.0}
    ),
    "agreement, 60 rows": Setting(60, 0.06),
    "agreement, many equal rows": Setting(
        300, 0.05, data={"n_features": 6}, coarse=True
    ),
    "agreement by patience, many ties": Setting(
        300, 0.05, options={"rule": "patience"}
    ),
    "accuracy by entropy, temperature": Setting(
        300,
        0.05,
        options={"target": "accuracy", "rule": "entropy", "temperature": True},
    ),
    "agreement, thresholds per stage": Setting(
        300, 0.05, options={"thresholds": "stage"}
    ),
    "accuracy, thresholds per stage, temperature": Setting(
        150,
        0.05,
        delta=0.3,
        options={"target": "accuracy", "thresholds": "stage", "temperature": True},
    ),
    "accuracy by a callable": Setting(
        300, 0.05, delta=0.05, options={"target": "accuracy", "rule": gap}
    ),
    "agreement, searched on other rows": Setting(600, 0.05, fit=searched_on_others),
    "agreement, trained inside": Setting(400, 0.1, options={"cv": 0.5}, inside=True),
    "accuracy, trained inside, searched on other rows": Setting(
        600,
        0.1,
        options={"cv": 0.5, "target": "accuracy"},
        inside=True,
        fit=searched_on_others,
    ),
}

# These promise nothing, and show that the check would see it.
CONTROLS = {
    "control: no delta": Setting(300, 0.05, delta=None),
    "control: searched on the same rows": Setting(300, 0.05, fit=searched_on_the_same),
}


class Result(NamedTuple):
    """What the draws gave.

    Attributes
    ----------
    first : float
        True risk if all rows left at the first stage they can leave at, in the last
        draw.
    certified : float
        Share of the draws in which rows may leave early.
    cost : float
        Mean cost as a share of that of all stages.
    risk : float
        Mean true risk.
    violations : int
        Draws whose true risk is above `max_drop`.
    """

    first: float
    certified: float
    cost: float
    risk: float
    violations: int


def check(setting, n_draws):
    """Run a setting.

    Parameters
    ----------
    setting : Setting
    n_draws : int

    Returns
    -------
    result : Result
    """
    data = {"n_features": 8, "n_classes": 4, "flip_y": 0.02, **setting.data}
    X, y = make_classification(
        N_ROWS, n_informative=6, n_redundant=0, random_state=0, **data
    )
    if setting.coarse:
        X = np.clip(np.rint(X / 2), -1, 1)
    ends = np.cumsum([N_TRAINING, N_TEST, n_draws * setting.n_rows])
    training, test, drawn, _ = np.split(np.arange(N_ROWS), ends)
    if setting.inside:
        estimator = TINY_STUDENTS
    else:
        estimator = FrozenEstimator(STUDENTS.fit(X[training], y[training]))
    found = []
    for draw, rows in enumerate(np.split(drawn, n_draws)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingCertifiedWarning)
            early = setting.fit(
                estimator,
                X[rows],
                y[rows],
                max_drop=setting.max_drop,
                delta=setting.delta,
                random_state=draw,
                **setting.options,
            )
        full = early.estimator_.predict(X[test])
        labels, costs = early.predict_with_cost(X[test])
        # At least the drop, since nothing is gained where the full ensemble is wrong.
        is_lost = labels != full
        if early.target == "accuracy":
            is_lost &= full == y[test]
        found.append(
            (early.best_index_ > 0, costs.mean() / early.costs_[-1], is_lost.mean())
        )
    certified, costs, risks = np.transpose(found)
    labels = y[test] if early.target == "accuracy" else None
    return Result(
        early.exit_path(X[test], labels).losses[-1],
        certified.mean(),
        costs.mean(),
        risks.mean(),
        np.count_nonzero(risks > setting.max_drop),
    )


def allowed(delta, n_draws):
    """Violations that chance exceeds once in a thousand, if the promise is kept."""
    return int(binom.ppf(0.999, n_draws, delta))


COLUMNS = [
    "setting",
    "rows",
    "max_drop",
    "delta",
    "risk of all leaving first",
    "certified",
    "cost",
    "mean risk",
    "violations",
    "allowed",
]


def run(names, n_draws, file):
    """Append the lines of the settings that the file does not have."""
    done = set()
    if file.exists():
        with file.open(newline="", encoding="utf-8") as lines:
            done = {line["setting"] for line in csv.DictReader(lines)}
    for name, setting in {**SETTINGS, **CONTROLS}.items():
        if name in done or (names and name not in names):
            continue
        result = check(setting, n_draws)
        promised = setting.delta is not None
        line = [
            name,
            setting.n_rows,
            setting.max_drop,
            setting.delta if promised else "",
            f"{result.first:.4f}",
            f"{result.certified:.2f}",
            f"{result.cost:.2f}",
            f"{result.risk:.4f}",
            f"{result.violations / n_draws:.3f}",
            f"{allowed(setting.delta, n_draws) / n_draws:.3f}" if promised else "",
        ]
        is_new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow(line)
        print(*line, sep="  ", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="SETTING")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("docs/guarantee.csv"))
    args = parser.parse_args()
    run(args.settings, args.draws, args.output)
