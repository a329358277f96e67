"""The schedules of the paper's figure 4: latency of students run in other orders.

Run as ``python -m benchmarks.bench_schedules``, and with ``--report`` to print the
tables of what is in the file of results; what is in it is not run again. Four students
that are joined by "dense", so that backbones do not wait for each other, on 1 and on 64
rows:

- in torch: one after the other; backbones in two threads, all or two at a time; and as
  ``predict`` runs them, which takes steps of narrow recurrent students together;
- exported: stage by stage; as the one graph of a fixed stage, by one thread and by two;
  and backbones in two threads. All calls of onnxruntime use one thread but for those.

With ``--groups``, how many units recurrent students that take their steps together may
have, and on how many rows: processor time of one thread, as a ratio to one after the
other (``results/schedule_groups.jsonl``).

Times are otherwise of the wall clock. Calls take turns in random order, and ratios are
taken within a turn: their median, and the ratio of the 10th percentiles, which are of
turns in which both cores were free. The floor is the longest path: the dearest backbone
and all connections and heads. Goal: a schedule is kept where it is faster on a measured
size.
"""

import argparse
import copy
import gc
import itertools
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from threadpoolctl import threadpool_limits

from benchmarks.accuracy_cost.results import append
from benchmarks.records import read, table
from skbdistil import BDistilClassifier, _forms, _recurrents
from skbdistil.costs import module_costs, stage_costs
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.export import _onnx_model, to_onnx
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet

N_STUDENTS, N_OUTPUTS = 4, 10
N_ROWS = [1, 64]

STUDENTS = {
    "GRU of 8, 125 x 45": ((125, 45), partial(RecurrentNet, hidden=(8,))),
    "GRU of 16, 125 x 45": ((125, 45), partial(RecurrentNet, hidden=(16,))),
    "LSTM of 8, 125 x 45": ((125, 45), partial(RecurrentNet, hidden=(8,), cell="lstm")),
    "perceptron, 64 to 16": ((64,), partial(MLP, hidden=(16,))),
    "perceptron, 784 to 256, 256": ((784,), partial(MLP, hidden=(256, 256))),
    "convolutions, 3 x 32 x 32": ((3, 32, 32), ConvNet2d),
    "convolutions, 125 x 45": ((125, 45), ConvNet1d),
}

IN_ORDER, STAGES = "torch, in order", "session, stage by stage"


def classifier(shape, factory, n_students=N_STUDENTS):
    """A classifier with random weights, as if it were fitted."""
    torch.manual_seed(0)
    ensemble = ProgressiveEnsemble(shape, N_OUTPUTS)
    for _ in range(n_students):
        ensemble.append(ensemble.new_student(factory))
    clf = BDistilClassifier()
    clf.ensemble_ = ensemble.eval()
    clf.classes_ = np.arange(N_OUTPUTS)
    clf.input_shape_ = shape
    clf.student_transform_ = None
    clf.n_estimators_ = n_students
    clf.stage_costs_ = stage_costs(ensemble, ensemble.example())
    return clf


class Connected(torch.nn.Module):
    """Running mean of all students, from the features of their backbones."""

    def __init__(self, students):
        super().__init__()
        self.students = students

    def forward(self, features):
        earlier, mean = [], None
        for student, own in zip(self.students, features, strict=True):
            scores, kept = student.joined(own, earlier)
            mean = scores if mean is None else scores + student.carry * mean
            earlier.append(kept)
        return mean


def floor(clf):
    """Multiply-accumulates of the longest path, as a share of all."""
    students = clf.ensemble_.students
    x = clf.ensemble_.example()
    backbones = [module_costs(student.backbone, x).macs for student in students]
    total = clf.stage_costs_.cumulative_macs[-1]
    return float((max(backbones) + total - sum(backbones)) / total)


def opened(model, n_threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    if not isinstance(model, Path):
        model = model.SerializeToString()
    return onnxruntime.InferenceSession(model, options)


class Graphs:
    """The ensemble of a classifier as graphs of onnxruntime.

    Parameters
    ----------
    clf : BDistilClassifier
    folder : pathlib.Path
        To export to.
    """

    def __init__(self, clf, folder):
        students = clf.ensemble_.students
        to_onnx(clf, folder / "all", fixed_stage=N_STUDENTS)
        self.session = ProgressiveSession(folder / "all", n_threads=1)
        path = folder / "all" / f"fixed_stage_{N_STUDENTS}.onnx"
        self.by_threads = {n_threads: opened(path, n_threads) for n_threads in (1, 2)}
        x = (clf.ensemble_.example(),)
        self.backbones = [
            opened(_onnx_model(copy.deepcopy(student.backbone), x, ["x"], ["h"]))
            for student in students
        ]
        features = [torch.zeros(2, student.n_features) for student in students]
        self.names = [f"h_{number}" for number in range(N_STUDENTS)]
        connected = Connected(copy.deepcopy(students))
        self.joined = opened(
            _onnx_model(connected, (features,), self.names, ["scores"])
        )


def calls(clf, graphs, x, pool):
    """What is timed, by name; all of them return the same scores."""
    ensemble = clf.ensemble_
    students = list(ensemble.students)
    connected = Connected(ensemble.students)
    array = x.numpy()

    def in_turn(start):
        with torch.inference_mode():
            state = start(x)
            for _ in students:
                state.advance()
            return state.mean

    def features_of(student):
        with torch.inference_mode():
            return student.backbone(x)

    def in_threads(n_together):
        features = []
        for first in range(0, N_STUDENTS, n_together):
            group = students[first : first + n_together]
            features += pool.map(features_of, group)
        with torch.inference_mode():
            return connected(features)

    def graph(n_threads):
        found = graphs.by_threads[n_threads]
        return lambda: found.run([f"scores_{N_STUDENTS}"], {"x": array})[0]

    def joined(features):
        feed = dict(zip(graphs.names, features, strict=True))
        return graphs.joined.run(None, feed)[0]

    def features_in(graph):
        return graph.run(None, {"x": array})[0]

    def graphs_in_threads():
        return joined(pool.map(features_in, graphs.backbones))

    def longest_chain():
        return joined([features_in(graphs.backbones[0])] * N_STUDENTS)

    def longest_chain_in_torch():
        with torch.inference_mode():
            return connected([features_of(students[0])] * N_STUDENTS)

    ahead = partial(_forms.start, ensemble, n_ahead=N_STUDENTS)
    return {
        IN_ORDER: lambda: in_turn(ensemble.start),
        "torch, all in threads": lambda: in_threads(N_STUDENTS),
        "torch, pairs in threads": lambda: in_threads(2),
        "torch, as predict": lambda: in_turn(ahead),
        "torch, longest chain": longest_chain_in_torch,
        STAGES: lambda: graphs.session._staged_scores(array)[-1],
        "session, one graph": graph(1),
        "session, one graph, two threads": graph(2),
        "session, all in threads": graphs_in_threads,
        "session, longest chain": longest_chain,
    }


def measure(timed, n_turns, clock=time.perf_counter):
    """Seconds of shape (n_turns, n_calls)."""
    seconds = np.empty((n_turns, len(timed)))
    generator = np.random.default_rng(0)
    gc.disable()
    for turn in range(-3, n_turns):
        for position in generator.permutation(len(timed)):
            began = clock()
            timed[position]()
            if turn >= 0:
                seconds[turn, position] = clock() - began
    gc.enable()
    return seconds


def run(path, n_turns):
    done = {(record["students"], record["rows"]) for record in read(path)}
    for name, (shape, factory) in STUDENTS.items():
        sizes = [n_rows for n_rows in N_ROWS if (name, n_rows) not in done]
        if not sizes:
            continue
        clf = classifier(shape, factory)
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
            graphs = Graphs(clf, Path(folder))
            for n_rows in sizes:
                x = torch.randn(n_rows, *shape)
                timed = calls(clf, graphs, x, pool)
                expected = np.asarray(timed[IN_ORDER]())
                for what, call in timed.items():
                    if "chain" not in what:
                        np.testing.assert_allclose(call(), expected, atol=1e-4)
                columns = measure(list(timed.values()), n_turns).T
                append(path, list(records_of(clf, n_rows, timed, columns, name)))
                print(name, n_rows, flush=True)


def records_of(clf, n_rows, names, columns, students):
    columns = dict(zip(names, columns, strict=True))
    for what, column in columns.items():
        base = columns[IN_ORDER if what.startswith("torch") else STAGES]
        low, low_base = np.quantile([column, base], 0.1, axis=1)
        yield {
            "students": students,
            "rows": n_rows,
            "what": what,
            "median": float(np.median(column)),
            "ratio": float(np.median(column / base)),
            "low_ratio": float(low / low_base),
            "floor_macs": floor(clf),
        }


def groups(path, n_turns):
    """Time of recurrent students by the units of a group, 0 for no groups."""
    before = _recurrents._MAX_UNITS, _recurrents._MANY_ROWS
    cases = itertools.product(
        ("gru", "lstm"),
        ((4, 8), (4, 16), (8, 8), (4, 32), (4, 64)),
        (1, 16, 64, 256, 1024),
    )
    for cell, (n_students, width), n_rows in cases:
        factory = partial(RecurrentNet, hidden=(width,), cell=cell)
        ensemble = classifier((100, 45), factory, n_students).ensemble_
        x = torch.randn(n_rows, 100, 45)

        @torch.inference_mode()
        def scores(max_units, ensemble=ensemble, x=x, n_students=n_students):
            _recurrents._MAX_UNITS, _recurrents._MANY_ROWS = max_units, np.inf
            state = _recurrents.start(ensemble, x, n_students)
            for _ in range(n_students):
                state.advance()

        units = [0, 32, 64, 128]
        timed = [partial(scores, max_units) for max_units in units]
        try:
            seconds = measure(timed, n_turns, time.process_time)
        finally:
            _recurrents._MAX_UNITS, _recurrents._MANY_ROWS = before
        ratios = np.median(seconds / seconds[:, :1], axis=0)
        record = {
            "cell": cell,
            "n_students": n_students,
            "width": width,
            "rows": n_rows,
            "milliseconds": 1e3 * float(np.median(seconds[:, 0])),
            "ratios": dict(zip(map(str, units[1:]), ratios[1:].tolist(), strict=True)),
        }
        append(path, [record])


def report(records):
    """Print the tables of the documentation."""
    for side in ("torch", "session"):
        groups = {}
        for record in records:
            if record["what"].startswith(side):
                key = record["students"], record["rows"]
                groups.setdefault(key, []).append(record)
        rows = [
            [
                *key,
                f"{1e3 * first['median']:.2f}",
                *(f"{one['ratio']:.2f} ({one['low_ratio']:.2f})" for one in others),
                f"{first['floor_macs']:.2f}",
            ]
            for key, (first, *others) in groups.items()
        ]
        names = [one["what"].partition(", ")[2] for one in next(iter(groups.values()))]
        table(
            f"{side}: milliseconds {names[0]}, and ratios to it: medians, and in "
            "brackets of the 10th percentiles; multiply-accumulates of the longest "
            "path as a share of all",
            ["students", "rows", *names, "floor"],
            rows,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results" / "schedules.jsonl",
    )
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            if args.groups:
                groups(args.results.with_name("schedule_groups.jsonl"), args.turns)
            else:
                run(args.results, args.turns)
