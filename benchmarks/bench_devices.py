"""Fits on one device: against a loop by hand, in bfloat16, and compiled.

Run as ``python -m benchmarks.bench_devices [--device cuda]``, and with ``--report`` to
print what is in the file of results; what is in it is not run again. Students of digits
are trained by the package's own net, by one of skorch, by one that uses bfloat16 and by
one that is compiled, from the same seeds; accuracies are those of rows that no fit has
seen. Compiling needs a compiler of C++ on a CPU.
"""

import time
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from skorch import NeuralNet

from benchmarks.accuracy_cost.results import append
from benchmarks.bench_overhead import fit_by_hand, fit_ours, make_rows
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.students import MLP

STUDENT = partial(MLP, hidden=(64,))
N_STUDENTS = 3


class AutocastNet(NeuralNet):
    """Runs students in bfloat16 where torch holds that to be safe."""

    def infer(self, x, **fit_params):
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            return super().infer(x, **fit_params)


def templates():
    """What may be passed as `net`, by its name."""
    adam = {"module": None, "criterion": None, "optimizer": torch.optim.AdamW}
    return {
        "package": None,
        "skorch": NeuralNet(**adam),
        "bfloat16": AutocastNet(**adam),
        "compiled": NeuralNet(**adam, compile=True),
    }


def timed(device, function):
    """Seconds of a call on the wall, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    if device != "cpu":
        torch.accelerator.synchronize()
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
    }


def digits(seed):
    """Rows to fit, rows to judge on, and a teacher."""
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.4, stratify=y, random_state=seed
    )
    teacher = SVC(probability=True, random_state=seed).fit(X, y)
    return (X, y), (X_test, y_test), FrozenEstimator(teacher)


def of_template(net, device, seed):
    """Record of a template on digits."""
    train, test, teacher = digits(seed)
    # Compiled forms of earlier students count for a limit of torch's.
    torch.compiler.reset()
    clf = BDistilClassifier(
        teacher,
        student=STUDENT,
        n_estimators=N_STUDENTS,
        net=net,
        max_epochs=20,
        device=device,
        random_state=seed,
    )
    seconds = timed(device, partial(clf.fit, *train))
    return {**seconds, "test": list(clf.staged_score(*test))}


def of_rows(fit, device, seed):
    """Record of a fit to rows that are drawn at random, for its time."""
    X, G = make_rows(20_000, seed)
    options = {"n_estimators": 3, "epochs": 4, "n_units": 64, "batch_size": 256}
    # What is loaded by a first fit is there.
    fit(X[:512], G[:512], device=device, **options)
    return timed(device, partial(fit, X, G, device=device, **options))


def run(path, device, n_seeds):
    ways = {
        "ours": partial(of_rows, fit_ours),
        "by hand": partial(of_rows, fit_by_hand),
        **{name: partial(of_template, net) for name, net in templates().items()},
    }
    done = {(one["device"], one["what"], one["seed"]) for one in read(path)}
    for what, way in ways.items():
        for seed in range(n_seeds):
            if (device, what, seed) not in done:
                record = {"device": device, "what": what, "seed": seed}
                append(path, [record | way(device, seed)])
                print(what, seed, flush=True)


def report(records):
    """Print the results as a table, for each device."""
    for device in dict.fromkeys(record["device"] for record in records):
        groups = {}
        for record in records:
            if record["device"] == device:
                groups.setdefault(record["what"], []).append(record)
        table(
            f"On {device}: seconds of a fit, and accuracy in % of the last stage",
            ["", "on the wall", "of the processor", "accuracy"],
            [
                [
                    what,
                    *(
                        with_error([record[key] for record in found], 2)
                        for key in ("wall", "processor")
                    ),
                    with_error([record["test"][-1] for record in found], 2, 100)
                    if "test" in found[0]
                    else "",
                ]
                for what, found in groups.items()
            ],
        )


if __name__ == "__main__":
    parser = command(__doc__, "devices.jsonl")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        with quietly():
            run(args.results, args.device, args.seeds)
