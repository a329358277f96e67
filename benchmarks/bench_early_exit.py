"""Early exit: what it saves by count, and how much of that the clock sees.

    python -m benchmarks.bench_early_exit rules     # cost at a drop, rule by rule
    python -m benchmarks.bench_early_exit clock     # wall-clock saving by batch size
    python -m benchmarks.bench_early_exit deadline  # how often a deadline is met

Letter and Fashion-MNIST come from the folder of --data, or of the environment variable
SKBDISTIL_DATA; without it they are left out.
"""

import argparse
import copy
import multiprocessing
import os
import time
from contextlib import contextmanager
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

from skbdistil import BDistilClassifier, DistillationObjective
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.metrics import score_at_cost
from skbdistil.students import MLP, ConvNet2d

RULES = ["confidence", "margin", "entropy", "patience", "agreement"]
MAX_DROP = 0.005
# Those of the figures in the documentation.
TRAINING = {
    "learning_rate": 0.005,
    "objective": DistillationObjective(gamma=1),
    "edge_tol": np.inf,
}


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
    """Print mean cost and drop of each rule, and how the fixed stages compare.

    "fixed" is the best stage within the mean cost. "worst" is the smallest lead, over
    all thresholds, of early exit over the line that joins the fixed stages: what a
    random mixture of two stages would give.
    """
    for name, data, teacher, width, n_held_out in available(folder):
        rows = {rule: [] for rule in RULES}
        for seed in range(seeds):
            train, held_out, test = split(*data, n_held_out, seed)
            clf = BDistilClassifier(
                clone(teacher).set_params(random_state=seed),
                student=partial(MLP, hidden=(width,)),
                random_state=seed,
                **TRAINING,
            ).fit(*train)
            stages = list(clf.staged_score(*test))
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
                path = early.exit_path(*test)
                leads = path.scores - np.interp(path.costs, costs, stages)
                rows[rule].append(
                    (spent.mean() / costs[-1], stages[-1], score, fixed, leads.min())
                )
        print(f"\n{name}, {seeds} seeds, {options}")
        print("rule         cost   full  early    drop  fixed   worst")
        for rule, values in rows.items():
            cost, full, score, fixed, worst = np.mean(values, axis=0)
            print(
                f"{rule:10s}  {cost:.3f}  {full:.4f} {score:.4f} {full - score:+.4f} "
                f"{fixed:.4f} {worst:+.4f}"
            )


def convolutional():
    """Six convolutional students on digits of 24 x 24 pixels, and rows held out."""
    X, y = load_digits(return_X_y=True)
    images = np.kron(X.reshape(-1, 1, 8, 8), np.ones((3, 3))).astype(np.float32)
    X, X_held_out, y, y_held_out = train_test_split(
        images, y, test_size=0.5, random_state=0, stratify=y
    )
    clf = BDistilClassifier(
        "precomputed",
        student=ConvNet2d,
        connection="dense",
        max_epochs=3,
        random_state=0,
        **TRAINING,
    ).fit(X, y, teacher_scores=10 * np.eye(10)[y])
    return clf, X_held_out, y_held_out


def compare_clock():
    """Print the saving that the clock sees beside the one that was counted.

    Half of the cost is spent on average. The last column is the price of looking where
    no row leaves.
    """
    clf, X_held_out, y_held_out = convolutional()
    full = clf.stage_costs_.cumulative_macs[-1]
    early = EarlyExitClassifier(FrozenEstimator(clf), max_cost=full / 2)
    early.fit(X_held_out, y_held_out)
    never = copy.deepcopy(early)
    never.thresholds_[:] = 2.0  # of a probability
    X = np.resize(X_held_out, (4096, *X_held_out.shape[1:]))
    counted = 1 - early.predict_with_cost(X)[1].mean() / full
    print(f"saving by count: {counted:.3f}")
    print("rows per call  saving by clock  share  time where no row leaves")
    for batch_size in (1, 64, 4096):
        whole, exits, stays = total_seconds(
            [clf.predict, early.predict, never.predict],
            [X[start : start + batch_size] for start in range(0, 4096, batch_size)],
        )
        measured = 1 - exits / whole
        print(
            f"{batch_size:13d}  {measured:15.3f}  {measured / counted:5.2f}  "
            f"{stays / whole:24.3f}"
        )


def keep_deadlines(n_calls=200):
    """Print how often `predict_within` is in time, with and without other load.

    The load is one busy process per core. No row leaves early, and deadlines are shares
    of the time that all stages take on the idle machine.
    """
    clf, X_held_out, y_held_out = convolutional()
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0)
    early.fit(X_held_out, y_held_out)
    early.thresholds_[:] = 2.0  # of a probability
    print("rows  load  deadline/ms  in time  latest/deadline  mean stage")
    for batch_size in (1, 256):
        X = X_held_out[:batch_size]
        stages = np.array(list(early.anytime(X, "decision_function")))
        (full,) = total_seconds([early.predict], [X], n_repeats=20)
        for load in (0, os.cpu_count()):
            for deadline in np.array([0.25, 0.5, 1, 2]) * full:
                seconds, reached = [], []
                with busy_processes(load):
                    for _ in range(n_calls):
                        began = time.perf_counter()
                        scores = early.predict_within(X, deadline, "decision_function")
                        seconds.append(time.perf_counter() - began)
                        distance = np.abs(stages - scores).sum(axis=2)
                        reached.append(1 + distance.argmin(axis=0).mean())
                print(
                    f"{batch_size:4d}  {load:4d}  {1e3 * deadline:11.2f}  "
                    f"{np.mean(np.array(seconds) <= deadline):7.3f}  "
                    f"{np.max(seconds) / deadline:15.2f}  {np.mean(reached):10.2f}"
                )


@contextmanager
def busy_processes(number):
    processes = [
        multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        for _ in range(number)
    ]
    for process in processes:
        process.start()
    if processes:
        time.sleep(2)  # until they have been imported
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def spin():
    while True:
        pass


def total_seconds(predicts, batches, n_repeats=5):
    """Time of each over all batches, in turns; the median of the repeats.

    Rows differ in cost, so that it is the sum that counts, not a typical call.
    """
    seconds = np.zeros((n_repeats + 1, len(predicts)))
    for repeat in seconds:
        for batch in batches:
            for position, predict in enumerate(predicts):
                began = time.perf_counter()
                predict(batch)
                repeat[position] += time.perf_counter() - began
    return np.median(seconds[1:], axis=0)  # the first warms up


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rules", "clock", "deadline"])
    parser.add_argument("--data", default=os.environ.get("SKBDISTIL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", default="accuracy")
    parser.add_argument("--thresholds", default="shared")
    parser.add_argument("--temperature", action="store_true")
    args = vars(parser.parse_args())
    what = args.pop("what")
    if what == "rules":
        compare_rules(args.pop("data"), args.pop("seeds"), **args)
    elif what == "clock":
        compare_clock()
    else:
        keep_deadlines()
