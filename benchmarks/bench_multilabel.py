"""Several labels per row: objectives, one ensemble for all labels, or one for each.

Run as ``python -m benchmarks.bench_multilabel --results FILE``, and with ``--report``
to print the table of what is in the file; what is there is not run again. Four networks
distil a forest of all labels. They are compared with an ensemble for each label
(``MultiOutputClassifier``) and with one network that sees labels only, all with about
the same number of multiply-accumulates for a row. Half of the rows are trained on, a
quarter chooses (the objective, the weight decay of the network of labels), and a
quarter tests.
"""

import argparse
import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.records import read
from skbdistil import BDistilClassifier
from skbdistil.exceptions import DoubtfulTeacherWarning, WeakLearnerNotFoundWarning
from skbdistil.students import MLP

OBJECTIVES = ["bce+barrier", "bce", "squared_error+barrier", "squared_error"]
N_STUDENTS = 4
WIDTH = 16
DECAYS = [1e-4, 1e-2, 1.0]
METRICS = ["log_loss", "label_accuracy", "subset_accuracy"]


def generated(seed):
    """Bags of words of eight topics."""
    return make_multilabel_classification(
        2000, 20, n_classes=8, n_labels=3, random_state=seed
    )


def properties_of_digits(seed):
    """Digits: even, above 4, prime, with a loop, of straight lines."""
    X, digit = load_digits(return_X_y=True)
    sets = [{0, 2, 4, 6, 8}, {5, 6, 7, 8, 9}, {2, 3, 5, 7}, {0, 6, 8, 9}, {1, 4, 7}]
    return X, np.stack([np.isin(digit, list(s)) for s in sets], axis=1).astype(int)


SETS = {"generated": generated, "digits": properties_of_digits}


def teacher(seed):
    return RandomForestClassifier(200, min_samples_leaf=2, random_state=seed)


def judge(y, proba):
    """Mean log loss of a label, share of labels and of rows that are right."""
    predicted = (proba > 0.5).astype(int)
    proba = np.clip(proba, 1e-6, 1 - 1e-6)
    return {
        "log_loss": log_loss(y.ravel(), proba.ravel()),
        "label_accuracy": float((predicted == y).mean()),
        "subset_accuracy": accuracy_score(y, predicted),
    }


def distilled(width, seed, **params):
    return BDistilClassifier(
        teacher(seed),
        student=partial(MLP, hidden=(width,)),
        n_estimators=N_STUDENTS,
        random_state=seed,
        **params,
    )


def proba_of_each(several, X):
    return np.stack([p[:, 1] for p in several.predict_proba(X)], axis=1)


def macs_of(estimator):
    return int(estimator.stage_costs_.cumulative_macs[-1])


def of_equal_cost(macs, fit):
    """The fitted model, of width 1, 2, ..., whose cost is nearest."""
    best, width = None, 1
    while True:
        model, cost = fit(width)
        if best is not None and abs(cost - macs) >= abs(best[1] - macs):
            return best
        best, width = (model, cost), width + 1


def runs(train, validation, test, seed):
    """Name, cost and judgement of every model."""
    parts = {"validation": validation, "test": test}

    def line(method, macs, proba, **more):
        judged = {name: judge(y, proba(x)) for name, (x, y) in parts.items()}
        return {"method": method, "macs": macs, **more, **judged}

    model = teacher(seed).fit(*train)
    yield line("teacher", None, partial(proba_of_each, model))
    for objective in OBJECTIVES:
        clf = distilled(WIDTH, seed, objective=objective).fit(*train)
        macs = macs_of(clf)
        stages = [
            {name: judge(y, clf[:k].predict_proba(x)) for name, (x, y) in parts.items()}
            for k in range(1, len(clf) + 1)
        ]
        yield line(objective, macs, clf.predict_proba, stages=stages)

    # What a label costs is known before the fits of all of them.
    def each(width):
        first = distilled(width, seed, max_epochs=1)
        first.fit(train[0], train[1][:, 0])
        return width, macs_of(first) * train[1].shape[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakLearnerNotFoundWarning)
        width, _ = of_equal_cost(macs, each)
    several = MultiOutputClassifier(distilled(width, seed)).fit(*train)
    cost = sum(map(macs_of, several.estimators_))
    yield line("one for each label", cost, partial(proba_of_each, several), width=width)

    n_labels, n_features = train[1].shape[1], train[0].shape[1]
    width = round(macs / (n_features + n_labels))
    for decay in DECAYS:
        network = make_pipeline(
            StandardScaler(),
            MLPClassifier((width,), alpha=decay, max_iter=400, random_state=seed),
        ).fit(*train)
        cost = width * (n_features + n_labels)
        yield line(f"labels only, {decay:g}", cost, network.predict_proba, width=width)


def run(path, seeds):
    done = {(r["set"], r["seed"]) for r in read(path)}
    for name in SETS:
        for seed in range(seeds):
            if (name, seed) in done:
                continue
            X, y = SETS[name](seed)
            split = partial(train_test_split, random_state=seed)
            X_train, X_rest, y_train, y_rest = split(X, y, test_size=0.5)
            X_valid, X_test, y_valid, y_test = split(X_rest, y_rest, test_size=0.5)
            parts = (X_train, y_train), (X_valid, y_valid), (X_test, y_test)
            lines = [
                json.dumps({"set": name, "seed": seed, **found}) + "\n"
                for found in runs(*parts, seed)
            ]
            with path.open("a") as file:
                file.writelines(lines)


def report(path):
    """Means over seeds and standard errors, by set and method."""
    rows = []
    for found in read(path):
        for part in ("validation", "test"):
            keys = {name: found[name] for name in ("set", "method", "seed", "macs")}
            rows.append({"part": part, **keys, **found[part]})
    table = pd.DataFrame(rows)
    for part, of_part in table.groupby("part"):
        grouped = of_part.groupby(["set", "method"], sort=False)
        print(f"\n{part}: mean over seeds, then standard error")
        means = grouped[["macs", *METRICS]].mean()
        errors = grouped[METRICS].sem().add_suffix("_se")
        print(means.join(errors).round(4).to_string())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DoubtfulTeacherWarning)
            run(arguments.results, arguments.seeds)
    report(arguments.results)


if __name__ == "__main__":
    main()
