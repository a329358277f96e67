"""Early exit: what it saves by count, and how much of that the clock sees.

    python -m benchmarks.bench_early_exit rules     # cost at a drop, rule by rule
    python -m benchmarks.bench_early_exit clock     # wall-clock saving by batch size

Letter and Fashion-MNIST come from the folder of --data, or of the environment variable
SKBDISTIL_DATA; without it they are left out.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skbdistil import BDistilClassifier
from skbdistil.costs import compare_latencies
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.metrics import score_at_cost
from skbdistil.students import MLP, ConvNet2d

RULES = ["confidence", "margin", "entropy", "patience", "agreement"]
MAX_DROP = 0.005


def digits(folder):
    X, y = load_digits(return_X_y=True)
    return X, y, None, None


def stored(name, folder):
    with np.load(Path(folder) / f"{name}.npz", allow_pickle=False) as file:
        X, y, X_test, y_test = (
            file[key] for key in ("X_train", "y_train", "X_test", "y_test")
        )
    flat = [np.float32(x).reshape(len(x), -1) for x in (X, X_test)]
    return flat[0], y, flat[1], y_test


# Loader, teacher, width of the students, number of rows held out to calibrate.
DATA = {
    "digits": (digits, MLPClassifier((128,), max_iter=300), 16, 400),
    "letter": (
        partial(stored, "letter"),
        ExtraTreesClassifier(300, min_samples_leaf=2, n_jobs=2),
        32,
        4000,
    ),
    "fashion_mnist": (
        partial(stored, "fashion_mnist"),
        ExtraTreesClassifier(100, min_samples_leaf=2, n_jobs=2),
        16,
        10000,
    ),
}


def available(folder):
    for name, (load, *settings) in DATA.items():
        if name == "digits" or (folder and (Path(folder) / f"{name}.npz").exists()):
            yield name, load(folder), *settings
        else:
            print(f"{name}: no file in the data folder, left out")


def split(X, y, X_test, y_test, n_held_out, seed):
    """Rows to train on, to calibrate on and to test on."""
    if X_test is None:
        X, X_test, y, y_test = train_test_split(
            X, y, test_size=n_held_out, random_state=seed, stratify=y
        )
    X, X_held_out, y, y_held_out = train_test_split(
        X, y, test_size=n_held_out, random_state=seed, stratify=y
    )
    return (X, y), (X_held_out, y_held_out), (X_test, y_test)


def compare_rules(folder, seeds, **options):
    """Print mean cost and drop of each rule, and the best fixed stage at that cost."""
    for name, data, teacher, width, n_held_out in available(folder):
        rows = {rule: [] for rule in RULES}
        for seed in range(seeds):
            train, held_out, test = split(*data, n_held_out, seed)
            clf = BDistilClassifier(
                clone(teacher).set_params(random_state=seed),
                student=partial(MLP, hidden=(width,)),
                random_state=seed,
                tol=np.inf,
            ).fit(*train)
            stages = [
                accuracy_score(test[1], labels) for labels in clf.staged_predict(test[0])
            ]
            costs = clf.stage_costs_.cumulative_macs
            for rule in RULES:
                early = EarlyExitClassifier(
                    FrozenEstimator(clf),
                    rule=rule,
                    max_drop=MAX_DROP,
                    random_state=seed,
                    **options,
                ).fit(*held_out)
                labels, spent = early.predict_with_cost(test[0])
                score = accuracy_score(test[1], labels)
                fixed = score_at_cost(costs, stages, max(spent.mean(), costs[0]))
                rows[rule].append(
                    (spent.mean() / costs[-1], stages[-1], score, fixed)
                )
        print(f"\n{name}, {seeds} seeds, {options}")
        print("rule        cost     full  early   drop  fixed stage")
        for rule, values in rows.items():
            cost, full, score, fixed = np.mean(values, axis=0)
            print(
                f"{rule:10s} {cost:5.3f}   {full:.4f} {score:.4f} {full - score:+.4f} "
                f"{fixed:.4f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rules", "clock"])
    parser.add_argument("--data", default=os.environ.get("SKBDISTIL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", default="accuracy")
    parser.add_argument("--thresholds", default="shared")
    parser.add_argument("--temperature", action="store_true")
    args = parser.parse_args()
    compare_rules(args.data, args.seeds, target=args.target, thresholds=args.thresholds, temperature=args.temperature)
