"""Early exit: what it saves by count, and how much of that the clock sees.

    python -m benchmarks.bench_early_exit rules     # cost at a drop, rule by rule
    python -m benchmarks.bench_early_exit clock     # wall-clock saving by batch size
    python -m benchmarks.bench_early_exit deadline  # how often a deadline is met

Letter and Fashion-MNIST come from the folder of --data, or of the environment variable
SKBDISTIL_DATA; without it they are left out. ``rules --report`` writes the tables of
the documentation from the file of results; what is in it is not run again.

The goal of ``rules`` is the accuracy of version 0.1, whose lines have to be there
first. It had no release, so that the commit is named:

    git archive 0aadc68 skbdistil | tar -x -C DIR
    cd DIR && PYTHONPATH=CHECKOUT python -m benchmarks.bench_early_exit rules
"""

import copy
import itertools
import multiprocessing
import os
import time
from collections import defaultdict
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

import skbdistil
from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, read, with_error, write_table
from skbdistil import BDistilClassifier, DistillationObjective
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.metrics import score_at_cost
from skbdistil.students import MLP, ConvNet2d

# Of these, a vote needs students that predict, those of combine="mean".
RULES = ["confidence", "margin", "entropy", "patience", "agreement"]
SCALED = ("confidence", "margin", "entropy")  # by a temperature
MAX_DROP = 0.005
GOAL = 0.2
OLD = "version 0.1"
OLD_COMMIT = "0aadc68"
# The defaults of the first students.
FIRST = {"learning_rate": 0.005, "objective": DistillationObjective(gamma=1)}
TRAINING = FIRST | {"edge_tol": np.inf}
SETTINGS = {
    "default": {},
    "mean": {"combine": "mean"},
    "rate 0.02": {"learning_rate": 0.02},
}
if skbdistil.__version__ == "0.1.0":
    SETTINGS = {OLD: FIRST | {"tol": np.inf}}


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


def compare_rules(path, folder, seeds):
    """Add what is missing to the file of results, one line for each early exit."""
    for name, data, teacher, width, n_held_out in available(folder):
        for seed in range(seeds):
            records = [
                record
                for record in read(path)
                if (record["dataset"], record["seed"]) == (name, seed)
            ]
            done = {record["setting"] for record in records}
            todo = [setting for setting in SETTINGS if setting not in done]
            if not todo:
                continue
            train, held_out, test = split(*data, n_held_out, seed)
            taught = clone(teacher).set_params(random_state=seed).fit(*train)
            old = next((r for r in records if r["setting"] == OLD), None)
            for setting in todo:
                clf = BDistilClassifier(
                    FrozenEstimator(taught),
                    student=partial(MLP, hidden=(width,)),
                    random_state=seed,
                    **SETTINGS[setting],
                ).fit(*train)
                shared = {"dataset": name, "seed": seed, "setting": setting}
                shared["version"] = skbdistil.__version__
                if setting == OLD:
                    shared["commit"] = OLD_COMMIT
                exits = list(early_exits(clf, held_out, test, old, seed))
                append(path, [shared | record for record in exits])
                print(name, seed, setting, flush=True)


def early_exits(clf, held_out, test, old, seed):
    """Records of all rules; thresholds are chosen on rows that are held out.

    "fixed" is the best stage within the mean cost. "worst" is the smallest lead, over
    all thresholds, of early exit over the line that joins the fixed stages: what a
    random mixture of two stages would give.
    """
    stages = list(clf.staged_score(*test))
    costs = clf.stage_costs_.cumulative_macs
    full = clf.score(*held_out)
    # What may be lost, against these students and against those of version 0.1.
    allowed = {"own": MAX_DROP}
    if old is not None:
        allowed[OLD] = full - (old["held_out_full"] - MAX_DROP)
    rules = [
        rule
        for rule in RULES
        if rule != "agreement" or getattr(clf, "combine_", "mean") == "mean"
    ]
    for rule, thresholds in itertools.product(rules, ["shared", "stage"]):
        for temperature in (False, True) if rule in SCALED else (False,):
            for against, max_drop in allowed.items():
                early = EarlyExitClassifier(
                    FrozenEstimator(clf),
                    rule=rule,
                    target="accuracy",
                    max_drop=max(0, max_drop),
                    thresholds=thresholds,
                    temperature=temperature,
                    random_state=seed,
                ).fit(*held_out)
                labels, spent = early.predict_with_cost(test[0])
                path = early.exit_path(*test)
                leads = path.scores - np.interp(path.costs, costs, stages)
                best = early.best_index_
                yield {
                    "rule": rule,
                    "thresholds": thresholds,
                    "temperature": temperature,
                    "against": against,
                    "full_cost": int(costs[-1]),
                    "held_out_full": full,
                    "full": stages[-1],
                    "held_out_accuracy": float(early.path_.scores[best]),
                    "held_out_cost": float(early.path_.costs[best]),
                    "accuracy": accuracy_score(test[1], labels),
                    "cost": float(spent.mean()),
                    "fixed": score_at_cost(costs, stages, max(spent.mean(), costs[0])),
                    "worst": float(leads.min()),
                }


def report(records, folder):
    """Write the tables of the documentation.

    Parameters
    ----------
    records : list of dict
    folder : pathlib.Path
    """
    groups = defaultdict(list)
    for record in records:
        keys = ("dataset", "setting", "rule", "thresholds", "temperature", "against")
        groups[tuple(record[key] for key in keys)].append(record)
    header = [
        *("data", "rule", "six students", "cost", "lost", "fixed stage"),
        *("cost, per stage", "lost"),
    ]
    write_table(folder / "early_exit_savings.csv", header, savings(groups))
    old = {
        (record["dataset"], record["seed"]): record
        for record in records
        if record["setting"] == OLD
    }
    header = [
        *("data", "students", "rule", "thresholds"),
        *("cost on held-out rows", "cost", "points above the target"),
    ]
    write_table(folder / "early_exit_goal.csv", header, against_goal(groups, old))


def savings(groups):
    """Rows of the table of what early exit saves with the defaults."""
    for name, rule in itertools.product(DATA, RULES):
        setting = "mean" if rule == "agreement" else "default"
        shared, stage = (
            groups[name, setting, rule, thresholds, False, "own"]
            for thresholds in ("shared", "stage")
        )
        if shared:
            yield [
                name,
                rule,
                with_error([record["full"] for record in shared], 4),
                *cost_and_loss(shared),
                with_error([record["fixed"] for record in shared], 4),
                *cost_and_loss(stage),
            ]


def cost_and_loss(found):
    """As shares of the cost of all students, and in points of their accuracy."""
    losses = [record["full"] - record["accuracy"] for record in found]
    costs = [record["cost"] / record["full_cost"] for record in found]
    return with_error(costs, 3), with_error(losses, 2, 100, "+")


def against_goal(groups, old):
    """Rows of the table of what it costs to be as good as version 0.1, less MAX_DROP.

    Rules are chosen by the mean cost on the rows held out, among those that reach the
    goal there on every seed.
    """

    def before(record):
        return old[record["dataset"], record["seed"]]

    def reaches(record):
        target = before(record)["held_out_full"] - MAX_DROP
        return record["held_out_accuracy"] >= target - 1e-9

    def costs(found, key):
        return [record[key] / before(record)["full_cost"] for record in found]

    def row(students, group):
        found = groups[group]
        above = [
            record["accuracy"] - (before(record)["full"] - MAX_DROP) for record in found
        ]
        name, _, rule, thresholds, temperature, _ = group
        return [
            name,
            students,
            rule + ", temperature" * temperature,
            thresholds,
            with_error(costs(found, "held_out_cost"), 3),
            with_error(costs(found, "cost"), 3),
            with_error(above, 2, 100, "+"),
        ]

    everywhere = defaultdict(list)
    for name in DATA:
        usual = [
            (name, setting, "confidence", "shared", False, against)
            for setting, against in ((OLD, "own"), ("default", OLD))
        ]
        for group in usual:
            if group in groups:
                yield row(group[1] + ", default rule", group)
        best = {}
        for group, found in list(groups.items()):
            of, setting, *_, against = group
            if (of, against) != (name, "own" if setting == OLD else OLD):
                continue
            if all(map(reaches, found)):
                best[group] = np.mean(costs(found, "held_out_cost"))
                everywhere[group[1:]].append(best[group])
        for setting in (OLD, *SETTINGS):
            of_setting = [group for group in best if group[1] == setting]
            if of_setting:
                yield row(setting + ", best rule", min(of_setting, key=best.get))
    # One choice for all sets.
    everywhere = {
        choice: np.mean(found)
        for choice, found in everywhere.items()
        if len(found) == len(DATA)
    }
    for setting in (OLD, *SETTINGS):
        of_setting = [choice for choice in everywhere if choice[0] == setting]
        if of_setting:
            choice = min(of_setting, key=everywhere.get)
            for name in DATA:
                yield row(setting + ", one rule for all", (name, *choice))


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
    parser = command(__doc__, "early_exit.jsonl")
    parser.add_argument("what", choices=["rules", "clock", "deadline"])
    parser.add_argument("--tables", type=Path, default=Path("docs"))
    args = parser.parse_args()
    if args.what == "clock":
        compare_clock()
    elif args.what == "deadline":
        keep_deadlines()
    elif args.report:
        report(read(args.results), args.tables)
    else:
        with quietly():
            compare_rules(args.results, args.data, args.seeds)
