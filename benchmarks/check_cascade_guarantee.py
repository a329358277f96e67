"""Whether a calibrated cascade keeps its guarantee.

    python -m benchmarks.check_cascade_guarantee [--draws 400] [--output FILE]
    python -m benchmarks.check_cascade_guarantee --report [--tables FOLDER]

Members learn once and are frozen. Thresholds are then chosen by `fit` on fresh rows,
once for each draw, and the true risk of what `predict` returns is taken on 40,000 rows
that are in no draw. What the members say of all rows is stored, so that a draw takes
milliseconds. One line for each setting is appended to the file; settings that are in it
already are not run again.
"""

import csv
import json
import warnings
from itertools import product

import numpy as np
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.tree import DecisionTreeClassifier

from benchmarks.records import command_of_tables, read
from skbdistil.cascade import CascadeClassifier
from skbdistil.exceptions import NothingCertifiedWarning

DELTA = 0.1
N_TRAINING, N_TEST, N_CALIBRATION = 2000, 40_000, 300
# Always as many, since the distribution of `make_classification` depends on it.
N_ROWS = 250_000

# Too much would be lost without a promise, and something can be certified.
MAX_DROP = {"agreement": 0.1, "accuracy": 0.05}


class Stored(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are known; rows are their numbers."""

    def __init__(self, proba):
        self.proba = proba
        self.classes_ = np.arange(proba.shape[1])

    def fit(self, X, y=None):
        return self

    def predict_proba(self, X):
        return self.proba[X[:, 0]]

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


def tiers_of(n_tiers):
    """Frozen members in tiers, and the labels of all rows but those of the training."""
    X, y = make_classification(
        N_ROWS, 8, n_informative=6, n_redundant=0, n_classes=4, random_state=0
    )
    training, others = np.split(np.arange(N_ROWS), [N_TRAINING])

    def stored(model):
        proba = model.fit(X[training], y[training]).predict_proba(X[others])
        return FrozenEstimator(Stored(proba))

    forest = stored(ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0))
    tiers = [
        [
            stored(
                DecisionTreeClassifier(
                    max_depth=depth,
                    max_features=4,
                    min_samples_leaf=5,
                    random_state=seed,
                )
            )
            for seed in range(3)
        ]
        # Before the members of two tiers, shallower ones.
        for depth in ((8,) if n_tiers == 2 else (5, 8))
    ]
    tiers.append(forest)
    return tiers, y[others]


def check(n_tiers, rule, target, n_draws):
    """The line of a setting."""
    tiers, y = tiers_of(n_tiers)
    rows = np.arange(len(y)).reshape(-1, 1)
    test, drawn = (
        rows[:N_TEST],
        np.split(rows[N_TEST : N_TEST + n_draws * N_CALIBRATION], n_draws),
    )
    max_drop = MAX_DROP[target]
    large = tiers[-1].predict(test)

    def risk_of(cascade):
        is_lost = cascade.predict(test) != large
        if target == "accuracy":
            is_lost &= large == y[:N_TEST]
        return is_lost.mean()

    risks, certified, asked = [], [], []
    for draw, rows in enumerate(drawn):
        cascade = CascadeClassifier(
            tiers,
            rule=rule,
            threshold="calibrate",
            costs=[1] * n_tiers,
            target=target,
            max_drop=max_drop,
            delta=DELTA,
            random_state=draw,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingCertifiedWarning)
            cascade.fit(rows, y[rows[:, 0]])
        risks.append(risk_of(cascade))
        certified.append(cascade.best_index_ > 0)
        asked.append(np.mean(cascade.exit_tiers(test) == n_tiers))
    all_leave = CascadeClassifier(tiers, rule=rule, threshold=0, costs=[1] * n_tiers)
    all_leave.fit(test)
    return {
        "tiers": n_tiers,
        "rule": rule,
        "target": target,
        "rows": N_CALIBRATION,
        "max_drop": max_drop,
        "delta": DELTA,
        "draws": n_draws,
        "risk_all_leave": float(risk_of(all_leave)),
        "certified": float(np.mean(certified)),
        "last_tier": float(np.mean(asked)),
        "mean_risk": float(np.mean(risks)),
        "broken": float(np.mean(np.array(risks) > max_drop)),
        "allowed": float(binom.ppf(0.999, n_draws, DELTA) / n_draws),
    }


def run(n_draws, file):
    """Append the lines that the file does not have."""
    keys = ("tiers", "rule", "target")
    done = {tuple(line[key] for key in keys) for line in read(file)}
    for setting in product((2, 3), ("vote", "score", "confidence"), MAX_DROP):
        if setting in done:
            continue
        line = check(*setting, n_draws)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        print(line, flush=True)


def report(lines, folder):
    """Write the table of the documentation."""
    columns = ["tiers", "rule", "target", "max_drop", "risk of all leaving first"]
    columns += ["certified", "last tier", "mean risk", "broken", "allowed"]
    rows = [
        [
            *(line[key] for key in ("tiers", "rule", "target", "max_drop")),
            f"{line['risk_all_leave']:.3f}",
            f"{line['certified']:.2f}",
            f"{line['last_tier']:.2f}",
            f"{line['mean_risk']:.3f}",
            f"{line['broken']:.3f} ± "
            f"{(line['broken'] * (1 - line['broken']) / line['draws']) ** 0.5:.3f}",
            f"{line['allowed']:.3f}",
        ]
        for line in lines
    ]
    path = folder / "cascades_guarantee.csv"
    with path.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    parser = command_of_tables(__doc__, "cascade_guarantee.jsonl")
    parser.add_argument("--draws", type=int, default=400)
    args = parser.parse_args()
    if args.report:
        report(read(args.output), args.tables)
    else:
        run(args.draws, args.output)
