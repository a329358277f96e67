"""Side by side: accuracy and latency of what else one would take, in one run.

Run as ``python -m benchmarks.bench_side_by_side``, and with ``--report`` to write the
tables and the figure of the documentation from the file of results; a set and seed that
are in it are not run again. Three sets: digits, letter (from the folder of --data, or
of the environment variable SKBDISTIL_DATA; left out without it), and a table with the
shape of covertype, which it is not. Besides the package with its extras it needs
LightGBM (``pip install lightgbm``) and TorchEnsemble (``pip install --no-deps
torchensemble``).

Of a set and seed, all models are fitted in one process, which then measures them in
turns: processor time of a call on one thread, pinned to one processor. Validation rows
choose the teacher, the width of the students, the thresholds of early exit, and which
of our points a rival is compared with. Test rows judge once.
"""

import io
import os
import tempfile
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import lightgbm
import numpy as np
import onnxruntime
import skl2onnx
import torch
import torchensemble
from onnx import TensorProto, helper
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.accuracy_cost.results import append
from benchmarks.bench_overhead import in_turns
from benchmarks.covertype_like import make_covertype_like
from benchmarks.records import (
    command,
    quietly,
    read,
    standard_error,
    table,
    with_error,
)
from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx
from skbdistil.runtime import ProgressiveSession
from skbdistil.stages import _cut
from skbdistil.students import MLP

# Hidden units of single networks, trees of boosting, students of ensembles.
SIZES = [(16,), (64,), (256,)]
ITERATIONS = [5, 20, 60]
MARGINS = [0.5, 2.0]
WIDTHS = [32, 128]
N_STUDENTS = 4
STAGES = [1, 2, 4]
EPOCHS = 30
BATCH_SIZE = 128
LEARNING_RATE = 0.005
MAX_DROP = 0.005

# Rows to train on and to choose on, at most; up to N_TEST of the rest are test rows.
N_TRAIN, N_VALID, N_TEST = 4000, 1000, 4000

OURS = "B-DISTIL"


def letter(folder):
    with np.load(Path(folder) / "letter.npz", allow_pickle=False) as file:
        X = np.concatenate([file["X_train"], file["X_test"]])
        return np.float32(X), np.concatenate([file["y_train"], file["y_test"]])


def digits(folder):
    X, y = load_digits(return_X_y=True)
    return np.float32(X), y


def covertype_like(folder):
    X, y, _ = make_covertype_like()
    return X, y


SETS = {"digits": digits, "letter": letter, "covertype-like": covertype_like}


def split(X, y, seed):
    """Rows to train on, to choose on and to test on, as pairs of X and y."""
    n_train = min(N_TRAIN, int(0.6 * len(X)))
    n_valid = min(N_VALID, int(0.15 * len(X)))
    X, X_rest, y, y_rest = train_test_split(
        X, y, train_size=n_train, stratify=y, random_state=seed
    )
    X_valid, X_test, y_valid, y_test = train_test_split(
        X_rest, y_rest, train_size=n_valid, stratify=y_rest, random_state=seed
    )
    return (X, y), (X_valid, y_valid), (X_test[:N_TEST], y_test[:N_TEST])


def perceptron(n_features, n_classes, hidden):
    sizes = (n_features, *hidden)
    layers = []
    for n_inputs, n_outputs in pairwise(sizes):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))


def networks(X, y, seed):
    """Single networks: of scikit-learn, the same in onnxruntime, and of skorch."""
    n_classes = y.max() + 1
    for hidden in SIZES:
        model = make_pipeline(
            StandardScaler(),
            MLPClassifier(
                hidden,
                learning_rate_init=LEARNING_RATE,
                batch_size=BATCH_SIZE,
                max_iter=EPOCHS,
                random_state=seed,
            ),
        ).fit(X, y)
        yield "MLPClassifier", str(hidden), model.predict, model
        yield (
            "MLP, onnxruntime",
            str(hidden),
            in_onnxruntime(graph_of_network(model, X).SerializeToString()),
            None,
        )
        torch.manual_seed(seed)
        net = NeuralNetClassifier(
            perceptron(X.shape[1], n_classes, hidden),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            lr=LEARNING_RATE,
            batch_size=BATCH_SIZE,
            max_epochs=EPOCHS,
            train_split=None,
            verbose=0,
        )
        net.set_params(predict_nonlinearity=None)
        model = make_pipeline(StandardScaler(), net).fit(X, y.astype(np.int64))
        yield "skorch", str(hidden), model.predict, None


def in_onnxruntime(graph, output="label"):
    """Function that returns what a graph gives, a file or its bytes, by onnxruntime."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, settings)
    name = session.get_inputs()[0].name
    return lambda rows: session.run([output], {name: rows})[0]


def graph_of_network(model, X):
    options = {id(model): {"zipmap": False}}
    return skl2onnx.to_onnx(model, X[:1], options=options)


def graph_of_trees(model, n_features):
    """Boosted trees of scikit-learn as ONNX; skl2onnx 1.20 fails on them."""
    nodes, leaves = [], []
    trees = [
        (label, tree.nodes)
        for trees in model._predictors
        for label, tree in enumerate(trees)
    ]
    for number, (label, tree) in enumerate(trees):
        for position, node in enumerate(tree):
            mode = "LEAF" if node["is_leaf"] else "BRANCH_LEQ"
            ids = [int(node[key]) for key in ("feature_idx", "left", "right")]
            # Float32 features pass a threshold rounded down as they pass it in double.
            threshold = np.float32(node["num_threshold"])
            if threshold > node["num_threshold"]:
                threshold = np.nextafter(threshold, np.float32(-np.inf))
            nodes.append((number, position, mode, *ids, float(threshold)))
            if node["is_leaf"]:
                leaves.append((number, position, label, float(node["value"])))
    keys = ["treeids", "nodeids", "modes", "featureids", "truenodeids"]
    keys = [f"nodes_{key}" for key in [*keys, "falsenodeids", "values"]]
    attributes = dict(zip(keys, map(list, zip(*nodes, strict=True)), strict=True))
    keys = [f"class_{key}" for key in ("treeids", "nodeids", "ids", "weights")]
    attributes |= dict(zip(keys, map(list, zip(*leaves, strict=True)), strict=True))
    n_classes = len(model.classes_)
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_int64s=model.classes_.tolist(),
        base_values=model._baseline_prediction.ravel().tolist(),
        post_transform="NONE",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, n_features])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info(
                "scores", TensorProto.FLOAT, [None, n_classes]
            ),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def boosted_trees(X, y, seed):
    """Trees of scikit-learn, the same in onnxruntime, and of LightGBM."""
    for n_iterations in ITERATIONS:
        model = HistGradientBoostingClassifier(
            max_iter=n_iterations, early_stopping=False, random_state=seed
        ).fit(X, y)
        size = f"{n_iterations} iterations"
        yield "HistGradientBoosting", size, model.predict, model
        graph = graph_of_trees(model, X.shape[1])
        yield (
            "Trees, onnxruntime",
            size,
            in_onnxruntime(graph.SerializeToString()),
            None,
        )
    booster = lightgbm.LGBMClassifier(
        n_estimators=ITERATIONS[-1], n_jobs=1, random_state=seed, verbose=-1
    )
    booster = booster.fit(X, y).booster_

    def labels(rows, **options):
        return booster.predict(rows, num_threads=1, **options).argmax(axis=1)

    for n in ITERATIONS:
        yield "LightGBM", f"{n} iterations", partial(labels, num_iteration=n), None
    for margin in MARGINS:
        early = partial(
            labels,
            pred_early_stop=True,
            pred_early_stop_freq=5,
            pred_early_stop_margin=margin,
        )
        yield "LightGBM, pred_early_stop", f"margin {margin:g}", early, None


class _Scaled(nn.Module):
    """A perceptron that scales its rows; a class, as TorchEnsemble copies instances."""

    def __init__(self, mean, scale, n_classes, hidden):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.network = perceptron(len(mean), n_classes, hidden)

    def forward(self, x):
        return self.network((x - self.mean) / self.scale)


def torch_ensembles(X, y, seed):
    scaler = StandardScaler().fit(X)
    arguments = {
        "mean": torch.tensor(scaler.mean_, dtype=torch.float32),
        "scale": torch.tensor(scaler.scale_, dtype=torch.float32),
        "n_classes": int(y.max()) + 1,
        "hidden": (64,),
    }
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y.astype(np.int64)))
    for name in ("VotingClassifier", "GradientBoostingClassifier"):
        torch.manual_seed(seed)
        model = getattr(torchensemble, name)(
            estimator=_Scaled,
            estimator_args=arguments,
            n_estimators=N_STUDENTS,
            cuda=False,
        )
        model.set_optimizer("AdamW", lr=LEARNING_RATE)
        # Batches are indexed in one piece.
        batches = BatchSampler(RandomSampler(rows), BATCH_SIZE, drop_last=False)
        loader = DataLoader(rows, sampler=batches, batch_size=None)
        with redirect_stdout(io.StringIO()):
            model.fit(loader, epochs=EPOCHS, save_model=False)
        model.eval()
        members = model.estimators_
        for stage in STAGES:
            part = getattr(torchensemble, name)(
                estimator=_Scaled,
                estimator_args=arguments,
                n_estimators=stage,
                cuda=False,
            )
            part.n_outputs = model.n_outputs
            part.estimators_ = members[:stage]
            part.eval()

            @torch.inference_mode()
            def labels(rows, part=part):
                return part(torch.from_numpy(rows)).argmax(dim=1).numpy()

            short = "voting" if name.startswith("Voting") else "boosting"
            yield f"TorchEnsemble, {short}", f"{stage} x (64,)", labels, None


def ours(teacher, X, y, X_valid, y_valid, seed, folder):
    """The estimator and its export, at stages and with early exit."""
    fitted = {
        width: BDistilClassifier(
            FrozenEstimator(teacher),
            student=partial(MLP, hidden=(width,)),
            n_estimators=N_STUDENTS,
            max_epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            edge_tol=np.inf,
            random_state=seed,
        ).fit(X, y)
        for width in WIDTHS
    }
    width = max(WIDTHS, key=lambda width: fitted[width].score(X_valid, y_valid))
    clf = fitted[width]
    early = EarlyExitClassifier(
        FrozenEstimator(clf), target="accuracy", max_drop=MAX_DROP
    ).fit(X_valid, y_valid)
    for stage in STAGES:
        yield f"{OURS}, predict", f"stage {stage}", _cut(clf, stage).predict, width
        exported = folder / f"stage_{stage}"
        to_onnx(clf, exported, fixed_stage=stage)
        session = ProgressiveSession(exported, n_stages=stage, n_threads=1)
        yield f"{OURS}, session", f"stage {stage}", session.predict, width
        scores = in_onnxruntime(
            exported / f"fixed_stage_{stage}.onnx", f"scores_{stage}"
        )

        def labels(rows, scores=scores):
            return clf.classes_[scores(rows).argmax(axis=1)]

        yield f"{OURS}, onnxruntime", f"stage {stage}", labels, width
    yield f"{OURS}, predict, early exit", "", early.predict, width
    to_onnx(early, folder / "early_exit")
    session = ProgressiveSession(folder / "early_exit", n_threads=1)
    yield f"{OURS}, session, early exit", "", session.predict, width


@contextmanager
def pinned():
    """On one processor, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def of_rows(predict, X, n_rows):
    """Function without arguments that predicts the next rows at each call."""
    batches = [X[i : i + n_rows] for i in range(0, min(len(X), 200 * n_rows), n_rows)]
    batches = [batch for batch in batches if len(batch) == n_rows]
    position = 0

    def call():
        nonlocal position
        position += 1
        return predict(batches[position % len(batches)])

    return call


def experiment(name, seed, folder, temporary):
    """Records of one set and seed."""
    (X, y), (X_valid, y_valid), (X_test, y_test) = split(*SETS[name](folder), seed)
    models = [
        entry
        for make in (networks, boosted_trees, torch_ensembles)
        for entry in make(X, y, seed)
    ]
    # The best one of the networks and trees of scikit-learn.
    teacher = max(
        (model for *_, model in models if model is not None),
        key=lambda model: model.score(X_valid, y_valid),
    )
    taught_by = next(method for method, *_, model in models if model is teacher)
    own = list(ours(teacher, X, y, X_valid, y_valid, seed, temporary))
    width = own[0][-1]
    models += own
    predicts = [predict for _, _, predict, _ in models]
    # Rows one after the other until there are a thousand: digits has fewer to test on.
    many = np.resize(np.arange(len(X_test)), 1000)
    with pinned():
        one = in_turns([of_rows(p, X_test, 1) for p in predicts], 15, n_calls=8)
        thousand = in_turns([of_rows(p, X_test[many], 1000) for p in predicts], 5)
    for position, (method, size, predict, _) in enumerate(models):
        yield {
            "dataset": name,
            "seed": seed,
            "method": method,
            "size": size,
            "teacher": taught_by,
            "width": width,
            "n_train": len(X),
            "n_valid": len(X_valid),
            "n_test": len(X_test),
            "valid": float(np.mean(predict(X_valid) == y_valid)),
            "accuracy": float(np.mean(predict(X_test) == y_test)),
            "one_row": float(np.median(one[position])),
            "thousand_rows": float(np.median(thousand[position])),
        }


def run(path, folder, n_seeds):
    done = {(record["dataset"], record["seed"]) for record in read(path)}
    for seed, name in product(range(n_seeds), SETS):
        if (name, seed) in done:
            continue
        if name == "letter" and not folder:
            print("letter: no data folder, left out")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            append(path, list(experiment(name, seed, folder, Path(temporary))))
        print(name, seed, flush=True)


class Point:
    """Means over seeds of one method and size on one set.

    Attributes
    ----------
    accuracy, valid : ndarray of shape (n_seeds,)
    one_row, thousand_rows : float
        Seconds of a call, geometric means over the seeds.
    """

    def __init__(self, method, size, records):
        self.method, self.size = method, size
        records = sorted(records, key=lambda record: record["seed"])
        self.accuracy = np.array([record["accuracy"] for record in records])
        self.valid = np.array([record["valid"] for record in records])
        self.one_row, self.thousand_rows = (
            float(np.exp(np.mean([np.log(record[key]) for record in records])))
            for key in ("one_row", "thousand_rows")
        )
        self.is_ours = method.startswith(OURS)


def points_of(records):
    """Points of each set, in the order in which they were measured."""
    found = {}
    for record in records:
        group = found.setdefault(record["dataset"], {})
        group.setdefault((record["method"], record["size"]), []).append(record)
    return {
        name: [Point(*key, some) for key, some in found[name].items()]
        for name in SETS
        if name in found
    }


def compared(points):
    """Each rival, what it is compared with, and its gains in accuracy by seed.

    That is the one of ours that takes no longer for one row and is best on validation
    rows; our fastest one where all take longer.
    """
    own = [point for point in points if point.is_ours]
    fastest = min(own, key=lambda point: point.one_row)
    for rival in points:
        if not rival.is_ours:
            no_slower = [point for point in own if point.one_row <= rival.one_row]
            other = max(no_slower, key=lambda p: p.valid.mean(), default=fastest)
            yield rival, other, rival.accuracy - other.accuracy


def is_clear(gain):
    """Whether a gain by seed is above two standard errors; one seed has none."""
    return len(gain) > 1 and gain.mean() > 2 * standard_error(gain)


def judge_table(name, points):
    """Rivals that lie above our curve at one row."""
    rows = [
        [
            rival.method,
            rival.size,
            with_error(rival.accuracy, 1, 100),
            f"{1e6 * rival.one_row:.0f}",
            f"{other.method}, {other.size}",
            f"{1e6 * other.one_row:.0f}",
            with_error(gain, 1, 100, "+"),
            "yes" if is_clear(gain) else "no",
        ]
        for rival, other, gain in compared(points)
        if gain.mean() > 0
    ]
    header = ["rival", "size", "accuracy in %", "µs"]
    header += ["compared with", "its µs", "points above", "clearly"]
    title = f"{name}: what lies above our curve at one row"
    table(title, header, rows or [["none", *[""] * 7]])


def summary_table(points_of_sets):
    rows = []
    for name, points in points_of_sets.items():
        n_seeds = len(points[0].accuracy)
        found = list(compared(points))
        above = [triple for triple in found if triple[-1].mean() > 0]
        counts = [
            len(found),
            len(above),
            sum(is_clear(gain) for *_, gain in above),
            sum(rival.one_row < other.one_row for rival, other, _ in above),
        ]
        rows.append([name, n_seeds, *counts, "missed" if above else "met"])
    header = ["set", "seeds", "points of rivals", "above our curve", "of these clearly"]
    header += ["of these faster than all of ours", "goal: none above"]
    table("At one row", header, rows)


def full_table(name, points):
    rows = [
        [
            point.method,
            point.size,
            with_error(point.accuracy, 1, 100),
            f"{1e6 * point.one_row:.0f}",
            f"{1e3 * point.thousand_rows:.2f}",
        ]
        for point in points
    ]
    header = ["method", "size", "accuracy in %", "µs, 1 row", "ms, 1000 rows"]
    table(f"{name}: accuracy on test rows, and processor time of a call", header, rows)


def draw(points_of_sets, path):
    """Accuracy against the latency of one row, one panel for each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(points_of_sets), 5), layout="constrained")
    panels = figure.subplots(1, len(points_of_sets), squeeze=False)[0]
    methods = list(dict.fromkeys(p.method for p in next(iter(points_of_sets.values()))))
    rivals = [method for method in methods if not method.startswith(OURS)]
    own_styles = zip("osD^v", ("-", "-", "-", "--", "--"), strict=True)
    styles = {
        method: {"color": f"C{position}", "marker": "x", "alpha": 0.8}
        for position, method in enumerate(rivals)
    } | {
        method: {"color": "black", "marker": marker, "linestyle": line, "zorder": 3}
        for method, (marker, line) in zip(
            (m for m in methods if m.startswith(OURS)), own_styles, strict=True
        )
    }
    for panel, (name, points) in zip(panels, points_of_sets.items(), strict=True):
        for method in methods:
            some = sorted(
                (point for point in points if point.method == method),
                key=lambda point: point.one_row,
            )
            panel.plot(
                [1e6 * point.one_row for point in some],
                [point.accuracy.mean() for point in some],
                label=method,
                markersize=5,
                **styles[method],
            )
        panel.set(title=name, xscale="log", xlabel="Microseconds for one row")
        # What is far below the best says little.
        best = max(point.accuracy.mean() for point in points)
        lowest = min(point.accuracy.mean() for point in points)
        panel.set_ylim(max(best - 0.25, lowest) - 0.01, best + 0.01)
    panels[0].set_ylabel("Test accuracy")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def report(records, output):
    """Write the figure and the tables below the folder of the documentation."""
    points_of_sets = points_of(records)
    draw(points_of_sets, output / "_static" / "side_by_side.png")
    text = io.StringIO()
    with redirect_stdout(text):
        print(".. Written by benchmarks.bench_side_by_side.\n")
        print(".. begin summary\n")
        summary_table(points_of_sets)
        print(".. end summary\n\n.. begin judged\n")
        for name, points in points_of_sets.items():
            judge_table(name, points)
        print(".. end judged\n\n.. begin all\n")
        for name, points in points_of_sets.items():
            full_table(name, points)
        print(".. end all")
    path = output / "side_by_side_tables.inc"
    path.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    parser = command(__doc__, "side_by_side.jsonl")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="of --report")
    args = parser.parse_args()
    if args.report:
        report(read(args.results), args.output)
    else:
        with quietly():
            run(args.results, args.data, args.seeds)
