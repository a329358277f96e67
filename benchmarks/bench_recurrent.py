"""The recurrent connection beside the others, for recurrent students.

Run as ``python -m benchmarks.bench_recurrent``, and with ``--report`` to print the
tables of what is in the file of results; what is in it is not run again. An LSTM of 128
units is the teacher. Students of every connection are as wide as makes all of them
together cost what those of "dense" cost, to the nearest unit.

Sets: digits read row by row (8 steps), and DSA-19 (activities of people; every second
step and every second row, people 1 to 5 to train on, 6 to choose by and 7 and 8 to test
on) from the folder of --data, or of the environment variable SKBDISTIL_DATA; without
it, it is left out.
"""

import itertools
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.accuracy_cost import data
from benchmarks.accuracy_cost.experiments import Student
from benchmarks.accuracy_cost.networks import ensemble_macs, nearest_width
from benchmarks.accuracy_cost.results import append
from benchmarks.accuracy_cost.teachers import Teacher, respond
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.students import RecurrentNet

N_STUDENTS = 4
TEACHER = partial(RecurrentNet, hidden=(128,), cell="lstm")


class Rows(NamedTuple):
    """Rows to train on, to choose by and to test on."""

    X: list
    y: list
    epochs: int


def dsa19(folder):
    split = data.dsa19(folder, None)
    train = split.groups <= 5
    X = [split.X_train[train], split.X_train[~train], split.X_test]
    y = [split.y_train[train], split.y_train[~train], split.y_test]
    return Rows([part[::2, ::2] for part in X], [part[::2] for part in y], 8)


def digits(folder):
    X, y = load_digits(return_X_y=True)
    X, X_rest, y, y_rest = train_test_split(
        np.float32(X.reshape(-1, 8, 8)), y, test_size=0.4, stratify=y, random_state=0
    )
    X_valid, X_test, y_valid, y_test = train_test_split(
        X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0
    )
    return Rows([X, X_valid, X_test], [y, y_valid, y_test], 20)


SETS = {"digits": digits, "dsa19": dsa19}

# Layers of a student, and the units of each with "dense".
LAYERS = {1: 8, 2: 6}

# Layers, connection, and how students are combined.
METHODS = [
    (1, None, "auto"),
    (1, "dense", "auto"),
    (1, "last", "auto"),
    (1, "wide", "auto"),
    (1, "recurrent", "learned"),
    (1, "recurrent", "mean"),
    (2, "dense", "auto"),
    (2, "lateral", "auto"),
    (2, "recurrent", "learned"),
    (2, "recurrent", "mean"),
]


def experiment(name, seed, rows, teacher):
    """Records of one set and seed."""
    shape, n_outputs = rows.X[0].shape[1:], teacher.train.shape[1]
    for layers, connection, combine in METHODS:
        student = Student(RecurrentNet, "hidden", (1,) * layers)

        def macs(width, connection=connection, student=student):
            factory = student(width)
            return ensemble_macs(shape, n_outputs, factory, N_STUDENTS, connection)

        wanted = macs(LAYERS[layers], "dense")[-1]
        width = nearest_width(wanted, lambda width: macs(width)[-1])
        began = time.perf_counter()
        clf = BDistilClassifier(
            "precomputed",
            student=student(width),
            n_estimators=N_STUDENTS,
            connection=connection,
            combine=combine,
            max_epochs=rows.epochs,
            batch_size=64,
            learning_rate=0.01,
            edge_tol=np.inf,
            random_state=seed,
        ).fit(rows.X[0], rows.y[0], teacher_scores=teacher.train)
        yield {
            "dataset": name,
            "seed": seed,
            "layers": layers,
            "connection": connection,
            "combine": combine,
            "width": width,
            "macs": clf.stage_costs_.cumulative_macs.tolist(),
            "valid": list(clf.staged_score(rows.X[1], rows.y[1])),
            "test": list(clf.staged_score(rows.X[2], rows.y[2])),
            "seconds": time.perf_counter() - began,
        }


def run(path, folder, cache, n_seeds):
    done = {(record["dataset"], record["seed"]) for record in read(path)}
    for seed, name in itertools.product(range(n_seeds), SETS):
        if (name, seed) in done:
            continue
        if name == "dsa19" and not folder:
            print("dsa19: no data folder, left out")
            continue
        rows = SETS[name](folder)
        split = data.Split(rows.X[0], rows.y[0], rows.X[2], rows.y[2])
        teacher = respond(
            Teacher(f"recurrent_{name}", TEACHER, 15, 0.005),
            split,
            folder=folder,
            cache=cache,
            device="cpu",
        )
        records = list(experiment(name, seed, rows, teacher))
        score = np.mean(teacher.test.argmax(axis=1) == rows.y[2])
        for record in records:
            record["teacher"] = float(score)
        append(path, records)
        print(name, seed, flush=True)


def report(records):
    """Print the tables of the documentation."""
    groups = {}
    for record in records:
        keys = ("dataset", "layers", "connection", "combine")
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    for part in ("valid", "test"):
        rows = [
            [
                name,
                f"{layers} x {found[0]['width']}",
                connection or "none",
                combine,
                f"{found[0]['macs'][0] / 1e3:.0f}",
                f"{found[0]['macs'][-1] / 1e3:.0f}",
                *(
                    with_error([record[part][stage] for record in found], 1, 100)
                    for stage in range(N_STUDENTS)
                ),
                with_error([np.mean(record[part]) for record in found], 1, 100),
            ]
            for (name, layers, connection, combine), found in groups.items()
        ]
        table(
            f"Accuracy in % by stage on the {part} rows, mean and standard error of "
            "the seeds; thousands of multiply-accumulates of the first and all stages",
            "set student connection combine first all 1 2 3 4 mean".split(),
            rows,
        )
    print({record["dataset"]: record["teacher"] for record in records})


if __name__ == "__main__":
    parser = command(__doc__, "recurrent.jsonl")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        args.cache.mkdir(parents=True, exist_ok=True)
        with quietly():
            run(args.results, args.data, args.cache, args.seeds)
