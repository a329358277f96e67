"""Early prediction in time: accuracy against the share of the series that is read.

    python -m benchmarks.bench_early_time                # students
    python -m benchmarks.bench_early_time --rows FOLDER  # rows for TEASER, as files
    python -m benchmarks.bench_early_time --report       # tables of what is there

What is in the file of results is not run again. :mod:`benchmarks.early_time_teaser`
adds the results of TEASER, in an environment of its own.

DSA-19: sensors on people who do sports; students learn from persons 1 to 5, thresholds
are chosen on person 6, persons 7 and 8 judge. Spoken digits stand in for Google-13,
which is not here: log-mel frames, and the test rows of the file. Of both, some rows
and every second step are taken. The teacher, which
sees whole series, is a forest on their means, deviations and extremes by quarter. Both
sets come from the folder of --data, or of the environment variable SKBDISTIL_DATA.
"""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNet

from benchmarks.accuracy_cost import data
from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.early_time import EarlyTimeClassifier, PrefixBatches
from skbdistil.metrics import earliness, earliness_harmonic_mean
from skbdistil.students import RecurrentNet

STEPS = {
    "dsa19": (6, 12, 25, 37, 50, 63),
    "spoken_digits": (5, 10, 20, 30, 40, 49),
}
TRAININGS = ["whole", "prefixes"]
MAX_DROPS = [0.01, 0.02, 0.05]
N_TRAIN, N_CALIBRATE, N_TEST = 1000, 500, 600


def some(X, y, n_samples, seed):
    """Some rows, balanced, and every second step of them."""
    if len(y) > n_samples:
        X, _, y, _ = train_test_split(
            X, y, train_size=n_samples, stratify=y, random_state=seed
        )
    return np.float32(X[:, ::2]), y


def rows_of(name, seed, folder):
    """Rows to train on, to calibrate on and to test on."""
    if name == "dsa19":
        X, y, X_test, y_test, person = data.dsa19(folder, None)
        held_out = person == 6
        X, y, X_held_out, y_held_out = (
            X[~held_out],
            y[~held_out],
            X[held_out],
            y[held_out],
        )
    else:
        X, y, X_test, y_test, *_ = data.fsdd(folder, None)
        X, X_held_out, y, y_held_out = train_test_split(
            X, y, test_size=N_CALIBRATE, stratify=y, random_state=seed
        )
    return (
        some(X, y, N_TRAIN, seed),
        some(X_held_out, y_held_out, N_CALIBRATE, seed),
        some(X_test, y_test, N_TEST, seed),
    )


def summary(X):
    """Means, deviations and extremes of each channel, by quarter of the series."""
    parts = np.array_split(X, 4, axis=1)
    functions = (np.mean, np.std, np.min, np.max)
    return np.hstack([f(part, axis=1) for part in parts for f in functions])


def experiment(name, seed, training, folder):
    """Records of one set and seed, and of students that are trained in one way."""
    (X, y), (X_held_out, y_held_out), (X_test, y_test) = rows_of(name, seed, folder)
    steps = STEPS[name]
    teacher = make_pipeline(
        FunctionTransformer(summary),
        ExtraTreesClassifier(200, bootstrap=True, oob_score=True, random_state=seed),
    ).fit(X, y)
    # What its trees have not learned by heart.
    scores = np.log(np.clip(teacher[-1].oob_decision_function_, 1e-3, None))

    def record(method, labels, n_steps_read, **details):
        accuracy = accuracy_score(y_test, labels)
        share = earliness(n_steps_read, steps[-1])
        return {
            "dataset": name,
            "seed": seed,
            "training": training,
            "method": method,
            **details,
            "accuracy": accuracy,
            "earliness": share,
            "harmonic_mean": earliness_harmonic_mean(accuracy, share),
        }

    whole = np.full(len(X_test), steps[-1])
    yield record("teacher", teacher.predict(X_test), whole)
    net = NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW)
    if training == "prefixes":
        net.set_params(iterator_train=PrefixBatches, iterator_train__steps=steps)
    clf = BDistilClassifier(
        "precomputed",
        student=partial(RecurrentNet, hidden=(16,)),
        n_estimators=3,
        max_epochs=24,
        batch_size=128,
        learning_rate=0.02,
        edge_tol=np.inf,
        net=net,
        random_state=seed,
    ).fit(X, y, teacher_scores=scores)
    for n_steps in steps:
        fixed = EarlyTimeClassifier(FrozenEstimator(clf), [n_steps], max_drop=0)
        fixed.fit(X_held_out)
        fixed.thresholds_[:] = np.inf
        labels, stages, costs = fixed.predict_with_stages(X_test)
        cost_of_all = costs.mean()
        yield record("fixed", labels, stages[:, 1], n_steps=n_steps)
    for thresholds, max_drop in itertools.product(("shared", "stage"), MAX_DROPS):
        early = EarlyTimeClassifier(
            FrozenEstimator(clf),
            steps,
            target="accuracy",
            thresholds=thresholds,
            max_drop=max_drop,
        ).fit(X_held_out, y_held_out)
        labels, stages, costs = early.predict_with_stages(X_test)
        yield record(
            "early",
            labels,
            stages[:, 1],
            thresholds=thresholds,
            max_drop=max_drop,
            n_students=float(stages[:, 0].mean()),
            share_of_cost=float(costs.mean() / cost_of_all),
        )


def run(path, folder, n_seeds):
    keys = ("dataset", "seed", "training")
    done = {tuple(record.get(key) for key in keys) for record in read(path)}
    for seed, name, training in itertools.product(range(n_seeds), STEPS, TRAININGS):
        if (name, seed, training) not in done:
            append(path, list(experiment(name, seed, training, folder)))
            print(name, seed, training, flush=True)


def write_rows(target, folder, n_seeds):
    """Write the rows of each set and seed for TEASER, which has no use for torch."""
    for seed, name in itertools.product(range(n_seeds), STEPS):
        train, held_out, test = rows_of(name, seed, folder)
        parts = {"train": train, "held_out": held_out, "test": test}
        arrays = {
            f"{letter}_{part}": array
            for part, pair in parts.items()
            for letter, array in zip("Xy", pair, strict=True)
        }
        np.savez(Path(target) / f"{name}_{seed}.npz", steps=STEPS[name], **arrays)


def report(records):
    """Print the tables of the documentation."""

    def cells(names, **wanted):
        found = [
            record
            for record in records
            if all(record.get(name) == value for name, value in wanted.items())
        ]
        return [with_error([record[name] for record in found], 3) for name in names]

    scores = ["accuracy", "earliness", "harmonic_mean"]
    for name, steps in STEPS.items():
        rows = [
            [f"{n_steps / steps[-1]:.2f}"]
            + [
                cells(
                    ["accuracy"],
                    dataset=name,
                    method="fixed",
                    training=training,
                    n_steps=n_steps,
                )[0]
                for training in TRAININGS
            ]
            for n_steps in steps
        ]
        teacher = cells(["accuracy"], dataset=name, method="teacher", training="whole")
        table(
            f"{name}: test accuracy of all students by the share of the series that "
            "is read, trained on whole series and on prefixes",
            ["share", "whole series", "prefixes"],
            [*rows, ["the teacher, all of it", *teacher, ""]],
        )
        rows = []
        for training, thresholds, max_drop in itertools.product(
            TRAININGS, ("shared", "stage"), MAX_DROPS
        ):
            found = cells(
                [*scores, "share_of_cost"],
                dataset=name,
                method="early",
                training=training,
                thresholds=thresholds,
                max_drop=max_drop,
            )
            rows.append([f"students, {training}", thresholds, f"{max_drop:g}", *found])
        found = cells(scores, dataset=name, method="teaser")
        rows.append(["TEASER", "", "", *found, ""])
        table(
            f"{name}: test rows, where thresholds allow a drop on calibration rows",
            ["method", "thresholds", "drop", *scores, "share of cost"],
            rows,
        )


if __name__ == "__main__":
    parser = command(__doc__, "early_time.jsonl")
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    elif not args.data:
        parser.error("the data come from --data or SKBDISTIL_DATA")
    elif args.rows:
        write_rows(args.rows, args.data, args.seeds)
    else:
        with quietly():
            run(args.results, args.data, args.seeds)
