"""What an ensemble costs where it runs: cold start, latency and bytes by form.

Run as ``python -m benchmarks.bench_deploy [--quick]``. Six students of 16 units on
digits are written in every form there is. Latencies are medians on one thread, and what
is compared takes turns in the same run. Goals: one row takes a session no longer than
the torch module, at a fixed stage at most 1.2 times as long as its plain graph, and
with early exit 10 microseconds a stage more than the plain graph of the stage where it
leaves; the package is below 200 kB.
"""

import argparse
import copy
import json
import os
import pickle
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch import nn

from benchmarks.bench_overhead import predict_by_hand
from skbdistil import BDistilClassifier, DistillationObjective
from skbdistil.costs import compare_latencies
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx, to_single_onnx, to_torch, to_torch_export
from skbdistil.persistence import save
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

MAX_BYTES = 200_000

# Run in a process of its own, with a folder as the argument.
COLD_START = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
began = time.perf_counter()
import numpy as np
{imports}
imported = time.perf_counter()
model = {load}
loaded = time.perf_counter()
model.predict(np.load(folder / "x.npy"))
print(json.dumps([imported - began, loaded - imported, time.perf_counter() - loaded]))
"""

COLD_STARTS = {
    "ProgressiveSession": {
        "imports": "from skbdistil.runtime import ProgressiveSession",
        "load": "ProgressiveSession(folder / 'onnx', n_threads=1)",
    },
    "persistence.load": {
        "imports": "from skbdistil.persistence import load",
        "load": "load(folder / 'students.skb')",
    },
    "pickle.loads": {
        # The class, which the pickle would import by itself.
        "imports": "import pickle; from skbdistil import BDistilClassifier",
        "load": "pickle.loads((folder / 'students.pkl').read_bytes())",
    },
}


def fit(quick):
    """Students with early exit, their teacher, and rows held out and to test on."""
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.3, random_state=0, stratify=y
    )
    X, X_held_out, y, y_held_out = train_test_split(
        X, y, test_size=0.3, random_state=0, stratify=y
    )
    teacher = MLPClassifier((256, 256), random_state=0).fit(X, y)
    clf = BDistilClassifier(
        FrozenEstimator(teacher),
        student=partial(MLP, hidden=(16,)),
        max_epochs=3 if quick else "auto",
        edge_tol=np.inf,
        # Those of the figures in the documentation.
        learning_rate=0.005,
        objective=DistillationObjective(gamma=1),
        random_state=0,
    ).fit(X, y)
    early = EarlyExitClassifier(FrozenEstimator(clf), target="accuracy", max_drop=0.005)
    return early.fit(X_held_out, y_held_out), teacher, X_held_out, X_test, y_test


def without_teacher(clf):
    """A copy that does not hold the teacher, which a fitted estimator needs no more."""
    return copy.copy(clf).set_params(teacher="precomputed")


def as_module(teacher):
    """A perceptron of scikit-learn as a torch module."""
    layers = []
    for weights, bias in zip(teacher.coefs_, teacher.intercepts_, strict=True):
        layer = nn.Linear(*weights.shape)
        layer.load_state_dict(
            {"weight": torch.from_numpy(weights.T), "bias": torch.from_numpy(bias)}
        )
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def write_forms(early, folder):
    """Write every form, and print what it takes on disk."""
    clf = early.estimator_.estimator
    save(clf, folder / "students.skb")
    save(early, folder / "early.skb")
    to_onnx(early, folder / "onnx")
    to_onnx(early, folder / "fixed", fixed_stage=len(clf))
    to_single_onnx(clf, folder / "single.onnx")
    torch.save(to_torch(clf).state_dict(), folder / "state.pt")
    torch.export.save(to_torch_export(clf), folder / "program.pt2")
    (folder / "students.pkl").write_bytes(pickle.dumps(without_teacher(clf)))
    (folder / "teacher.pkl").write_bytes(pickle.dumps(clf))
    sizes = {
        "weights alone": int(clf.stage_costs_.cumulative("weight_bytes")[-1]),
        "torch.save of the state": n_bytes(folder / "state.pt"),
        "single ONNX graph": n_bytes(folder / "single.onnx"),
        "ONNX folder, with early exit": n_bytes(folder / "onnx"),
        "ONNX folder, and a fixed stage": n_bytes(folder / "fixed"),
        "persistence.save": n_bytes(folder / "students.skb"),
        "persistence.save, with early exit": n_bytes(folder / "early.skb"),
        "torch.export program": n_bytes(folder / "program.pt2"),
        "pickle without the teacher": n_bytes(folder / "students.pkl"),
        "pickle with the teacher": n_bytes(folder / "teacher.pkl"),
    }
    print(f"\n{'on disk':<40} {'bytes':>9} {'goal':>9}")
    for what, size in sizes.items():
        goal = MAX_BYTES if what.startswith(("ONNX", "persistence")) else None
        print(f"{what:<40} {size:>9} {verdict(size, goal)}")


def n_bytes(path):
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def verdict(value, goal):
    if goal is None:
        return ""
    return f"{goal:>9} {'met' if value <= goal else 'missed'}"


def compare_cold_starts(folder, x, n_repeats):
    """Print what a fresh process takes until its first prediction."""
    np.save(folder / "x.npy", x)
    seconds = {what: [] for what in COLD_STARTS}
    for repeat in range(n_repeats + 1):
        for what, parts in COLD_STARTS.items():
            output = subprocess.run(
                [sys.executable, "-c", COLD_START.format(**parts), str(folder)],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            ).stdout
            if repeat:  # the first fills the file cache of the system
                seconds[what].append(json.loads(output))
    print(
        f"\n{f'fresh process, median of {n_repeats}, ms':<34} {'import':>7} "
        f"{'load':>7} {'predict':>7} {'all':>7} {'ratio':>6}"
    )
    totals = {what: np.sum(values, axis=1) for what, values in seconds.items()}
    base = np.median(totals["persistence.load"])
    for what, total in totals.items():
        parts = [*np.median(seconds[what], axis=0), np.median(total)]
        texts = [f"{1e3 * part:>7.1f}" for part in parts]
        print(f"{what:<34}", *texts, f"{parts[-1] / base:>6.2f}")


def compare_forms(early, teacher, folder, X, n_repeats):
    """Print the latency of every form, with one row and with 256, beside torch."""
    clf = early.estimator_.estimator
    module = to_torch(clf)
    by_hand = predict_by_hand(clf.ensemble_)
    session = partial(ProgressiveSession, folder / "onnx", n_threads=1)
    predicts = {
        "torch module, to_torch": module,
        "the same by hand": lambda x: by_hand(torch.from_numpy(x)),
        "torch.export program": to_torch_export(clf).module(),
        "single ONNX graph": plain_graph(folder / "single.onnx"),
        "session, all stages": session(early_exit=False).predict,
        "session, first stage": session(n_stages=1).predict,
        "session, early exit": session().predict,
        "estimator, all stages": clf.predict,
        "estimator, early exit": early.predict,
        "teacher, predict": teacher.predict,
        "teacher, torch module": as_module(teacher),
    }
    print_latencies(predicts, X, n_repeats, {"session, all stages": 1.0})


def plain_graph(path):
    """Function that runs a graph by onnxruntime, without any check."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = onnxruntime.InferenceSession(path, options)
    return lambda x: graph.run(None, {"x": x})


def compare_fixed_stage(folder, X, n_repeats):
    """Print the latency of a session at a fixed stage beside the same network."""
    stages = ProgressiveSession(folder / "onnx", early_exit=False, n_threads=1)
    fixed = ProgressiveSession(folder / "fixed", early_exit=False, n_threads=1)
    predicts = {
        "single ONNX graph": plain_graph(folder / "single.onnx"),
        "session, fixed stage": fixed.predict,
        "the same, predict_proba": fixed.predict_proba,
        "session, stage by stage": stages.predict,
    }
    print_latencies(predicts, X, n_repeats, {"session, fixed stage": 1.2})
    distance = np.abs(fixed.decision_function(X) - stages.decision_function(X)).max()
    print(f"logits of the fixed stage within {distance:.1e} of those stage by stage")


def compare_exits(early, folder, X, n_repeats):
    """Print what rows that leave take beside the plain graph of their stage."""
    session = ProgressiveSession(folder / "onnx", n_threads=1)
    stages = session.exit_stages(X)
    print(
        f"\n{'one row, one thread, microseconds':<33} {'plain':>6} {'exit':>6} a stage"
    )
    for stage in np.unique(stages):
        path = folder / f"plain_{stage}.onnx"
        to_single_onnx(early, path, n_stages=int(stage))
        rows = X[stages == stage]
        plain, left = (
            1e6 * latency.median
            for latency in compare_latencies(
                [plain_graph(path), session.predict],
                rows,
                n_warmup=20,
                n_repeats=n_repeats,
                n_threads=1,
            )
        )
        extra = (left - plain) / stage
        what = f"leaves at stage {stage}, {len(rows)} rows"
        print(
            f"{what:<33} {plain:>6.1f} {left:>6.1f} {extra:>7.1f} {verdict(extra, 10)}"
        )


def print_latencies(predicts, X, n_repeats, goals):
    """Medians beside that of the first one; goals are for one row."""
    print(
        f"\n{'one thread, median':<33} {'1 row':>9} {'ratio':>6} {'256 rows':>9}"
        f" {'ratio':>6}  goal for 1 row"
    )
    columns = [
        [
            1e3 * batch_size * latency.median
            for latency in compare_latencies(
                list(predicts.values()),
                X,
                batch_size=batch_size,
                n_warmup=20,
                n_repeats=n_repeats,
                n_threads=1,
            )
        ]
        for batch_size in (1, 256)
    ]
    for what, one, many in zip(predicts, *columns, strict=True):
        ratios = one / columns[0][0], many / columns[1][0]
        goal = verdict(ratios[0], goals.get(what))
        print(
            f"{what:<33} {one:>6.3f} ms {ratios[0]:>6.2f} {many:>6.3f} ms "
            f"{ratios[1]:>6.2f} {goal}"
        )


def compare_labels(early, folder, X, y):
    """Print how far the exported stages are from the estimator."""
    session = ProgressiveSession(folder / "onnx", n_threads=1)
    distance = np.abs(session.predict_proba(X) - early.predict_proba(X)).max()
    print(
        f"\nsession and estimator with early exit, {len(X)} rows: "
        f"{np.mean(session.predict(X) == early.predict(X)):.4f} of the labels equal, "
        f"probabilities within {distance:.1e}, accuracy "
        f"{np.mean(session.predict(X) == y):.4f}, mean stage "
        f"{session.exit_stages(X).mean():.2f}"
    )


def compare_precisions(folder, X_held_out, X, n_repeats):
    """Print latency, bytes and agreement with float32 of stages in lower precision."""
    session = partial(ProgressiveSession, early_exit=False, n_threads=1)
    folders = {"float32": folder / "onnx"}
    for precision in ("float16", "int8_dynamic", "int8_static", "int4", "auto"):
        folders[precision] = folder / precision
        report = lower_precision(
            folders["float32"], folders[precision], precision, X=X_held_out
        )
    sessions = {what: session(path) for what, path in folders.items()}
    predicts = {what: session.predict for what, session in sessions.items()}
    print_latencies(predicts, X, n_repeats, {})
    print("\nauto:", *report.precisions)
    print(f"{'all stages':<33} {'bytes':>9}  same labels: worst stage, last")
    stages = np.array(list(sessions["float32"].staged_predict(X)))
    for what, session in sessions.items():
        found = np.array(list(session.staged_predict(X)))
        agreement = (found == stages).mean(axis=1)
        print(
            f"{what:<33} {n_bytes(folders[what]):>9}  "
            f"{agreement.min():.4f}  {agreement[-1]:.4f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="few epochs and repeats: does it run?"
    )
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    early, teacher, X_held_out, X, y = fit(quick)
    print(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_forms(early, folder)
        compare_cold_starts(folder, X[:1], 1 if quick else 9)
        compare_forms(early, teacher, folder, X, 5 if quick else 500)
        compare_fixed_stage(folder, X, 5 if quick else 500)
        compare_exits(early, folder, X, 5 if quick else 500)
        compare_labels(early, folder, X, y)
        compare_precisions(folder, X_held_out, X, 5 if quick else 500)


if __name__ == "__main__":
    main()
