"""How many earlier students a dense connection should read: accuracy and cost.

Run as ``python -m benchmarks.bench_window --data DIR``, and with ``--report`` to print
the table of what is in the file of results; what is in it is not run again. Sixteen
students of 16 units on letter, from the folder of --data or of the environment variable
SKBDISTIL_DATA; a fifth of the training rows are validation rows, on which the accuracy
is measured. Costs are counted for 16 and for 64 students.
"""

from functools import partial

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy_cost.networks import ensemble_macs
from benchmarks.accuracy_cost.results import append
from benchmarks.bench_cascades import rows_of
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.ensemble import Window
from skbdistil.students import MLP

N_STUDENTS = 16
STUDENT = partial(MLP, hidden=(16,))
WINDOWS = [None, 1, 2, 4, 8, "all"]


def connection(earlier):
    return None if earlier is None else Window(earlier)


def experiment(seed, folder):
    """Records of one seed."""
    X, y = rows_of("letter", folder)
    X, X_valid, y, y_valid = train_test_split(
        X, y, test_size=0.2, stratify=y, random_state=seed
    )
    teacher = make_pipeline(
        StandardScaler(),
        MLPClassifier((256,), early_stopping=True, max_iter=30, random_state=seed),
    ).fit(X, y)
    for earlier in WINDOWS:
        clf = BDistilClassifier(
            FrozenEstimator(teacher),
            student=STUDENT,
            n_estimators=N_STUDENTS,
            connection=connection(earlier),
            max_epochs=5,
            batch_size=128,
            learning_rate=0.01,
            edge_tol=np.inf,
            random_state=seed,
        ).fit(X, y)
        yield {
            "seed": seed,
            "earlier": earlier,
            "valid": list(clf.staged_score(X_valid, y_valid)),
            "teacher": teacher.score(X_valid, y_valid),
        }


def run(path, folder, n_seeds):
    done = {record["seed"] for record in read(path)}
    for seed in range(n_seeds):
        if seed not in done:
            append(path, list(experiment(seed, folder)))
            print(seed, flush=True)


def report(records):
    """Print the table of the documentation."""
    groups = {}
    for record in records:
        groups.setdefault(record["earlier"], []).append(record)
    rows = []
    for earlier, found in groups.items():
        macs = ensemble_macs((16,), 26, STUDENT, 64, connection(earlier))
        scores = np.array([record["valid"] for record in found])
        reference = [record["valid"][-1] for record in groups["all"]]
        rows.append(
            [
                "none" if earlier is None else earlier,
                f"{macs[15] / 1e3:.1f}",
                f"{macs[63] / 1e3:.1f}",
                *(with_error(scores[:, stage - 1], 1, 100) for stage in (2, 4, 8, 16)),
                with_error(scores[:, -1] - reference, 1, 100, "+"),
            ]
        )
    table(
        "Letter, students of 16 units: thousands of multiply-accumulates of 16 and of "
        "64 students, accuracy in % on validation rows by stage, and against all",
        ["earlier", "16", "64", "stage 2", "4", "8", "16", "against all"],
        rows,
    )


if __name__ == "__main__":
    parser = command(__doc__, "window.jsonl")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    elif not args.data:
        parser.error("needs the folder of the data, --data or SKBDISTIL_DATA")
    else:
        with quietly():
            run(args.results, args.data, args.seeds)
