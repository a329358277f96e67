"""Cascades: what tiers that agree save, beside confidence and early exit.

Run as ``python -m benchmarks.bench_cascades``, and with ``--report`` to print the
tables of what is in the file of results; what is in it is not run again. A large
network is the teacher and the last tier. Three ensembles of four students learn from it
with other seeds, and are the members of earlier tiers. Rows are split into half to
train on, a quarter to choose thresholds by (validation) and a quarter to test on.
Letter comes from the folder of --data, or of the environment variable SKBDISTIL_DATA;
without it, it is left out.
"""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import bench_teachers
from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.cascade import CascadeClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.students import MLP

WIDTH = 16
TEACHER = (256, 256)
MAX_DROPS = [0, 0.005, 0.01]
SETS = ["classification", "digits", "letter"]

# Goal of the paper: the accuracy of the large model at a third of its cost.
GOAL = 1 / 3


def rows_of(name, folder):
    if name != "letter":
        data = bench_teachers.DATA[name](folder)
        return data.X, data.y
    with np.load(Path(folder) / "letter.npz", allow_pickle=False) as file:
        return np.float32(file["X_train"]), file["y_train"]


def cascades(members, teacher):
    """Tiers and rule by name; each ends with the teacher."""
    a = members[0]
    full, first, half = (
        [FrozenEstimator(member[:n]) for member in members] for n in (4, 1, 2)
    )
    return {
        "confidence, one ensemble": ([FrozenEstimator(a), teacher], "confidence"),
        "vote": ([full, teacher], "vote"),
        "score": ([full, teacher], "score"),
        "confidence, three": ([full, teacher], "confidence"),
        "prefixes, vote": ([half, teacher], "vote"),
        "prefixes, score": ([half, teacher], "score"),
        "prefixes, then all, score": ([first, full, teacher], "score"),
    }


def experiment(name, seed, folder):
    """Records of one set and seed."""
    X, y = rows_of(name, folder)
    X, X_rest, y, y_rest = train_test_split(
        X, y, test_size=0.5, stratify=y, random_state=seed
    )
    X_valid, X_test, y_valid, y_test = train_test_split(
        X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=seed
    )
    teacher = make_pipeline(
        StandardScaler(),
        MLPClassifier(TEACHER, early_stopping=True, random_state=seed),
    ).fit(X, y)
    large = sum(weights.size for weights in teacher[-1].coefs_)
    teacher = FrozenEstimator(teacher)
    members = [
        BDistilClassifier(
            teacher,
            student=partial(MLP, hidden=(WIDTH,)),
            n_estimators=4,
            max_epochs=30,
            edge_tol=np.inf,
            random_state=100 * seed + number,
        ).fit(X, y)
        for number in range(3)
    ]

    def record(method, labels, cost, **details):
        return {
            "dataset": name,
            "seed": seed,
            "method": method,
            **details,
            "accuracy": accuracy_score(y_test, labels),
            "cost": float(np.mean(cost) / large),
        }

    yield record("teacher", teacher.predict(X_test), large)
    own = members[0].stage_costs_.cumulative_macs[-1]
    yield record("one ensemble", members[0].predict(X_test), own)
    mean = np.mean([member.predict_proba(X_test) for member in members], axis=0)
    labels = members[0].classes_[mean.argmax(axis=1)]
    yield record("three ensembles side by side", labels, own)
    for max_drop in MAX_DROPS:
        early = EarlyExitClassifier(
            FrozenEstimator(members[0]), target="accuracy", max_drop=max_drop
        ).fit(X_valid, y_valid)
        labels, cost = early.predict_with_cost(X_test)
        yield record("early exit, one ensemble", labels, cost, max_drop=max_drop)
    tried = itertools.product(cascades(members, teacher).items(), (True, False))
    for (method, (tiers, rule)), parallel in tried:
        costs = [
            [
                member.stage_costs_.cumulative_macs[-1]
                for member in (tier if isinstance(tier, list) else [tier])
            ]
            for tier in tiers[:-1]
        ]
        thresholds = [("calibrate", max_drop) for max_drop in MAX_DROPS]
        if rule == "vote":
            thresholds += [(1.0, None), (2 / 3, None)]
        for threshold, max_drop in thresholds:
            cascade = CascadeClassifier(
                tiers,
                rule=rule,
                threshold=threshold,
                costs=[*costs, large],
                parallel=parallel,
                target="accuracy",
                max_drop=max_drop or 0,
            ).fit(X_valid, y_valid)
            labels, cost = cascade.predict_with_cost(X_test)
            details = {
                "parallel": parallel,
                "threshold": threshold,
                "max_drop": max_drop,
                "large": float(np.mean(cascade.exit_tiers(X_test) == len(tiers))),
            }
            yield record(method, labels, cost, **details)


def run(path, folder, n_seeds):
    done = {(record["dataset"], record["seed"]) for record in read(path)}
    for seed, name in itertools.product(range(n_seeds), SETS):
        if (name, seed) in done:
            continue
        if name == "letter" and not folder:
            print("letter: no data folder, left out")
            continue
        append(path, list(experiment(name, seed, folder)))
        print(name, seed, flush=True)


def report(records):
    """Print the tables of the documentation."""
    teachers = {
        (record["dataset"], record["seed"]): record["accuracy"]
        for record in records
        if record["method"] == "teacher"
    }
    groups = {}
    for record in records:
        keys = ("dataset", "method", "parallel", "threshold", "max_drop")
        group = tuple(record.get(key) for key in keys)
        groups.setdefault(group, []).append(record)

    def cells(group):
        found = groups[group]
        drops = [
            teachers[record["dataset"], record["seed"]] - record["accuracy"]
            for record in found
        ]
        cost = [record["cost"] for record in found]
        return [with_error(drops, 1, 100, "+"), with_error(cost, 3)], drops, cost

    rows = []
    for name in dict.fromkeys(name for name, _ in teachers):
        scores = [score for (other, _), score in teachers.items() if other == name]
        rows.append([name, "teacher", with_error(scores, 1, 100), "1"])
        for alone in ("one ensemble", "three ensembles side by side"):
            rows.append(["", alone, *cells((name, alone, None, None, None))[0]])
    table(
        "Test rows: accuracy of the teacher in %, and what ensembles without it lose "
        "against it in points",
        ["set", "model", "accuracy, or loss", "share of cost"],
        rows,
    )

    rows, kept = [], {}
    for group in groups:
        name, method, parallel, threshold, max_drop = group
        if threshold != "calibrate" and method != "early exit, one ensemble":
            continue
        text, drops, cost = cells(group)
        kept.setdefault((method, max_drop), {}).setdefault(parallel, []).append(
            bool(np.mean(drops) <= max_drop and np.mean(cost) <= GOAL)
        )
        if max_drop == 0.005 and parallel is not False:
            asked = [f"{100 * record.get('large', 0):.0f}" for record in groups[group]]
            in_turn = (name, method, False, threshold, max_drop)
            other = cells(in_turn)[0][1] if in_turn in groups else ""
            rows.append([name, method, *text, other, " / ".join(asked)])
    table(
        "Test rows: loss against the teacher in points and mean cost as a share of "
        "its own, thresholds chosen for a loss of half a point on validation rows",
        ["set", "method", "loss", "side by side", "in turn", "at the teacher, %"],
        rows,
    )

    rows = [
        [name, method, f"{threshold:.2f}", *cells(group)[0]]
        for group in groups
        for name, method, parallel, threshold, _ in [group]
        if isinstance(threshold, float) and parallel
    ]
    table(
        "Test rows: thresholds of the paper, not calibrated, members side by side",
        ["set", "method", "threshold", "loss", "share of cost"],
        rows,
    )

    rows = [
        [
            method,
            f"{100 * max_drop:g}",
            *(
                f"{sum(found[parallel])} of {len(found[parallel])}"
                for parallel in (found if None in found else (True, False))
            ),
        ]
        for (method, max_drop), found in kept.items()
    ]
    table(
        "On how many sets the mean loss on test rows is within the one allowed on "
        "validation rows, in points, at a third of the cost of the teacher or less",
        ["method", "loss allowed", "side by side", "in turn"],
        [row if len(row) == 4 else [*row, ""] for row in rows],
    )


if __name__ == "__main__":
    parser = command(__doc__, "cascades.jsonl")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        with quietly():
            run(args.results, args.data, args.seeds)
