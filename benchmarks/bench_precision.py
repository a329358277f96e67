"""Precision: what schedules, 4 bits and a float32 fallback save, and at what loss.

Run as ``python -m benchmarks.bench_precision``, and with ``--report`` to print the
tables of what is in the file of results; what is in it is not run again. Four students
learn from a perceptron of 256 + 256 units and are exported. Rows are split into half to
train on, an eighth to choose precisions by, an eighth to choose thresholds by and a
quarter to test on. Agreement is that with the float32 stages. Letter and Fashion-MNIST,
12,000 rows of it, come from the folder of --data, or of the environment variable
SKBDISTIL_DATA; without it, they are left out.
"""

import itertools
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import bench_cascades
from benchmarks.accuracy_cost.results import append
from benchmarks.bench_cascades import TEACHER
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil._exit_base import n_order
from skbdistil._exit_calibration import rows_needed
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx
from skbdistil.exported import ExportedClassifier
from skbdistil.precision import _Lowering, _session, lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

N_STAGES = 4
WIDTHS = {"digits": 64, "letter": 128, "Fashion-MNIST": 128}
UNIFORM = ["float16", "int8_dynamic", "int8_static", "int4"]
TARGETS = [0.99, 0.995, 0.999]
SCHEDULES = ["free", "monotone", "reverse"]
MAX_DROPS = [0.01, 0.005, 0.002]
DELTA = 0.1
FALLBACKS = ["int8_static", "int4"]

# Rows of one call each, and how often all of them are timed.
N_ROWS, N_REPEATS = 100, 9


def rows_of(name, seed, folder):
    if name != "Fashion-MNIST":
        return bench_cascades.rows_of(name, folder)
    with np.load(Path(folder) / "fashion_mnist.npz", allow_pickle=False) as file:
        X, y = file["X_train"], file["y_train"]
    rows = np.random.default_rng(seed).permutation(len(X))[:12_000]
    return np.float32(X[rows].reshape(len(rows), -1)) / 255, y[rows]


def split(X, y, share, seed):
    return train_test_split(X, y, test_size=share, stratify=y, random_state=seed)


def timed(predicts, X):
    """Time of each for single rows, as a ratio to the first one's, in turns."""
    rows = [X[row : row + 1] for row in range(min(N_ROWS, len(X)))]
    seconds = np.zeros((N_REPEATS + 1, len(rows), len(predicts)))
    # The first pass loads the stages.
    for repeat, row, number in np.ndindex(seconds.shape):
        began = time.perf_counter()
        predicts[number](rows[row])
        seconds[repeat, row, number] = time.perf_counter() - began
    # Other processes interrupt some calls, which then are not the median of their row.
    seconds = np.median(seconds[1:], axis=0).sum(axis=0)
    return seconds / seconds[0]


def experiment(name, seed, data, folder):
    """Records of one set and seed, with folders written to `folder`."""
    X, y = rows_of(name, seed, data)
    X, X_rest, y, y_rest = split(X, y, 0.5, seed)
    X_valid, X_test, y_valid, y_test = split(X_rest, y_rest, 0.5, seed)
    X_lower, X_exit, _, _ = split(X_valid, y_valid, 0.5, seed)
    teacher = make_pipeline(
        StandardScaler(),
        MLPClassifier(TEACHER, early_stopping=True, random_state=seed),
    ).fit(X, y)
    clf = BDistilClassifier(
        FrozenEstimator(teacher),
        student=partial(MLP, hidden=(WIDTHS[name],)),
        n_estimators=N_STAGES,
        max_epochs=30,
        edge_tol=np.inf,
        random_state=seed,
    ).fit(X, y)
    source = folder / "float32"
    to_onnx(clf, source, fixed_stage=N_STAGES)
    full = _session(source, False)
    stages = np.array(list(full.staged_predict(X_test)))
    n_bytes = lowered_bytes(full)

    def record(kind, method, session, **details):
        found = np.array(list(session.staged_predict(X_test)))
        agreement = np.mean(found == stages, axis=1)
        # Stage by stage, though float32 has one graph for all of them.
        staged = session._staged_scores
        return {
            "dataset": name,
            "seed": seed,
            "kind": kind,
            "method": method,
            **details,
            "bytes": float(lowered_bytes(session) / n_bytes),
            "latency": float(timed([full._staged_scores, staged], X_test)[1]),
            "worst": float(agreement.min()),
            "last": float(agreement[-1]),
            "accuracy": float(np.mean(found[-1] == y_test)),
        }

    yield record("uniform", "float32", full)
    for precision in UNIFORM:
        lower_precision(source, folder / precision, precision, X=X_lower)
        yield record("uniform", precision, _session(folder / precision, False))
    lowering = _Lowering(full, X_lower, False)
    for target, schedule in itertools.product(TARGETS, SCHEDULES):
        began = time.perf_counter()
        if schedule == "free":
            found = lowering.search(target)
        else:
            order = range(N_STAGES)
            order = order[::-1] if schedule == "monotone" else order
            found = lowering.search_in_order(target, order)
        seconds = time.perf_counter() - began
        precisions, choices = found
        path = folder / f"{schedule}-{target}"
        path.mkdir()
        lowering.write(path, precisions)
        yield record(
            "schedule",
            schedule,
            _session(path, False),
            target=target,
            precisions=precisions,
            seconds=seconds,
            tried=len(choices),
        )
    for found in exits(source, folder, X_lower, X_exit, X_test, y_test):
        yield {"dataset": name, "seed": seed, "kind": "exit", **found}


def lowered_bytes(session):
    """Bytes of the files of all stages."""
    stages = session.manifest["stages"]
    return sum((session._directory / stage["file"]).stat().st_size for stage in stages)


def exits(source, folder, X_lower, X_exit, X_test, y_test):
    """Early exits that lose at most as much against all stages in float32."""
    folders = {"float32": source, "int8_static": folder / "int8_static"}
    folders["int4"] = folder / "int4"
    for precision in FALLBACKS:
        method = f"{precision}, then float32"
        folders[method] = folder / f"{precision}-fallback"
        lower_precision(source, folders[method], precision, X=X_lower, fallback=True)
    exported = {
        method: ExportedClassifier(path).fit() for method, path in folders.items()
    }
    all_bytes = exported["float32"].stage_costs_.cumulative("weight_bytes")[-1]
    reference = exported["float32"].predict(X_exit)
    expected = exported["float32"].predict(X_test)
    n_tested = len(X_exit) - n_order(len(X_exit))
    for max_drop, delta in itertools.product(MAX_DROPS, (None, DELTA)):
        if delta is not None and n_tested < rows_needed(max_drop, delta):
            continue
        found, sessions = [], []
        for (method, estimator), thresholds in itertools.product(
            exported.items(), ("shared", "stage")
        ):
            # What is left of the loss where even all stages lose some.
            left = max_drop - np.mean(estimator.predict(X_exit) != reference)
            is_alone = method in FALLBACKS
            if is_alone and delta is not None:
                continue  # there is no promise about stages that do not run
            early = EarlyExitClassifier(
                FrozenEstimator(estimator),
                target="accuracy",
                max_drop=max(left, 0),
                delta=delta,
                thresholds=thresholds,
                cost="weight_bytes",
                random_state=0,
            ).fit(X_exit, reference)
            path = folder / f"{method}-{thresholds}-{max_drop}-{delta}"
            to_onnx(early, path)
            sessions.append(ProgressiveSession(path, n_threads=1))
            labels, costs = early.predict_with_cost(X_test)
            found.append(
                {
                    "method": method,
                    "thresholds": thresholds,
                    "max_drop": max_drop,
                    "delta": delta,
                    "reached": bool(left >= -1e-12),
                    "bytes": float(costs.mean() / all_bytes),
                    "float32": float(
                        np.mean(early.exit_stages(X_test) > N_STAGES)
                        if len(estimator) > N_STAGES
                        else method == "float32"
                    ),
                    "agreement": float(np.mean(labels == expected)),
                    "accuracy": float(np.mean(labels == y_test)),
                }
            )
        ratios = timed([session.predict for session in sessions], X_test)
        for result, ratio in zip(found, ratios, strict=True):
            yield {**result, "latency": float(ratio)}


def run(path, data, n_seeds):
    done = {(record["dataset"], record["seed"]) for record in read(path)}
    for seed, name in itertools.product(range(n_seeds), WIDTHS):
        if (name, seed) in done:
            continue
        if name != "digits" and not data:
            print(f"{name}: no data folder, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            append(path, list(experiment(name, seed, data, Path(folder))))
        print(name, seed, flush=True)


def report(records):
    """Print the tables of the documentation."""

    def by(shares, unit):
        return [f"bytes, {100 * share:g}{unit}" for share in shares]

    def groups(kind, **chosen):
        found = {}
        for record in records:
            if record["kind"] == kind and chosen.items() <= record.items():
                group = record["dataset"], record["method"]
                found.setdefault(group, []).append(record)
        return found.items()

    def cell(found, key, digits, factor=1, **chosen):
        found = [record for record in found if chosen.items() <= record.items()]
        return with_error([record[key] for record in found], digits, factor)

    rows = [
        [
            *group,
            cell(found, "bytes", 3),
            cell(found, "latency", 2),
            cell(found, "worst", 2, 100),
            cell(found, "last", 2, 100),
            cell(found, "accuracy", 2, 100),
        ]
        for group, found in groups("uniform")
    ]
    table(
        "All stages in one precision: bytes of the files and latency of one row as "
        "ratios to float32; test rows with the label of float32, and accuracy, in %",
        ["set", "precision", "bytes", "latency", "worst stage", "last", "accuracy"],
        rows,
    )
    rows = []
    for group, found in groups("schedule"):
        missed = sum(record["worst"] < record["target"] for record in found)
        rows.append(
            [
                *group,
                *(cell(found, "bytes", 3, target=target) for target in TARGETS),
                cell(found, "worst", 2, 100, target=TARGETS[0]),
                cell(found, "seconds", 1),
                f"{missed} of {len(found)}",
            ]
        )
    table(
        "Schedules by the target on the rows that choose: bytes as ratios to float32; "
        "test rows with the label of float32 at the worst stage for the first target, "
        "in %; seconds of a search; how often the target is missed on test rows",
        ["set", "schedule", *by(TARGETS, " %"), "worst stage", "seconds", "missed"],
        rows,
    )
    for delta in (None, DELTA):
        rows = []
        for group, found in groups("exit", delta=delta, thresholds="stage"):
            row = [*group]
            for drop in MAX_DROPS:
                chosen = [record for record in found if record["max_drop"] == drop]
                kept = sum(record["reached"] for record in chosen)
                text = cell(chosen, "bytes", 3) if chosen else ""
                row.append(text if kept == len(chosen) else f"{text} ({kept})")
            first = {"max_drop": MAX_DROPS[0]}
            row.append(cell(found, "latency", 2, **first))
            row.append(cell(found, "agreement", 2, 100, **first))
            missed = sum(r["agreement"] < 1 - r["max_drop"] for r in found)
            rows.append([*row, f"{missed} of {len(found)}"])
        promise = "without a promise" if delta is None else f"with delta={delta:g}"
        table(
            f"Early exit {promise} and thresholds per stage, by the loss against all "
            "float32 stages that is allowed, in points: bytes of weights read per row "
            "as a ratio to all float32 stages, and in brackets how many seeds can keep "
            "to it where not all can; for the first of them, latency of one row as a "
            "ratio to early exit in float32 with a shared threshold and test rows with "
            "the label of float32, in %; how often the loss is larger on test rows",
            ["set", "stages", *by(MAX_DROPS, ""), "latency", "same label", "missed"],
            rows,
        )


if __name__ == "__main__":
    parser = command(__doc__, "precision.jsonl")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        with quietly():
            run(args.results, args.data, args.seeds)
