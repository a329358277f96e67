"""What the package costs on top of hand-written torch, as ratios in one run.

Run as ``python -m benchmarks.bench_overhead [--quick]``. Everything runs on one
thread, so that the processor time of the process is what a user waits on an idle
machine; it is less disturbed by other work than the clock on the wall. What is compared
runs in turns, and a ratio is the median of the ratios of these pairs.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear, log_softmax

from skbdistil import BDistilClassifier
from skbdistil.students import MLP, ConvNet2d, RecurrentNet

N_FEATURES = 784
N_OUTPUTS = 10
LEARNING_RATE = 0.005

MEMORY_ESTIMATORS = 3
MEMORY_UNITS = 16


def make_rows(n_rows, seed=0):
    """Float32 rows, and logits of a linear teacher on them."""
    rng = np.random.RandomState(seed)
    X = rng.rand(n_rows, N_FEATURES).astype(np.float32)
    G = (X - 0.5) @ rng.randn(N_FEATURES, N_OUTPUTS).astype(np.float32) / 3
    return X, G - G.mean(axis=1, keepdims=True)


def fit_ours(
    X,
    G,
    *,
    n_estimators,
    epochs,
    n_units=16,
    student=None,
    batch_size=256,
    checkpoint=None,
    device="cpu",
):
    """The estimator, on the same students and teacher scores as `fit_by_hand`."""
    clf = BDistilClassifier(
        "precomputed",
        student=student or partial(MLP, hidden=(n_units,)),
        n_estimators=n_estimators,
        edge_tol=np.inf,
        max_epochs=epochs,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        device=device,
        random_state=0,
        checkpoint=checkpoint,
    )
    return clf.fit(X, np.arange(len(X)) % N_OUTPUTS, teacher_scores=G)


class HandStudent(nn.Module):
    """One hidden layer, joined densely with the features of earlier students."""

    def __init__(self, n_units, n_earlier):
        super().__init__()
        self.backbone = nn.Linear(N_FEATURES, n_units)
        self.join = nn.Linear((n_earlier + 1) * n_units, n_units) if n_earlier else None
        self.head = nn.Linear(n_units, N_OUTPUTS)

    def forward(self, x, earlier):
        features = torch.relu(self.backbone(x))
        if earlier:
            features = torch.relu(self.join(torch.cat([features, *earlier], dim=1)))
        return self.head(features), features


def barrier_logarithm(u):
    inside = u.clamp(-0.95, 0.95)
    return torch.log1p(inside) + (u - inside) / (1 + inside)


def fit_by_hand(X, G, *, n_estimators, epochs, n_units, batch_size, device="cpu"):
    """The same work in plain torch: boosting weights, KL, barrier, cached features."""
    X, G = torch.from_numpy(X).to(device), torch.from_numpy(G).to(device)
    x = (X - X.mean(0)) / X.std(0)
    n_rows = len(x)
    bound = G.abs().max()
    size = G.abs().max(dim=1).values.quantile(0.999)
    eta = min(np.sqrt(np.log(2 * n_rows) / n_estimators), 1) / (2 * bound)
    total = torch.zeros_like(G)  # S
    cached, students = [], []
    for t in range(n_estimators):
        student = HandStudent(n_units, t).to(device)
        # How much of the running mean and of the head the new one is made of.
        shares = [t / (t + 1), 1 / (t + 1)]
        shares = torch.tensor(shares, device=device, requires_grad=bool(t))
        parameters = [*student.parameters(), *([shares] if t else [])]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
        n_batches = -(-n_rows // batch_size)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=LEARNING_RATE, total_steps=epochs * n_batches
        )
        # log Z / 2n, of weights whose mean is then 2
        sums = torch.cat([eta * total, -eta * total]).double().logsumexp(0)
        log_scale = (sums - np.log(2 * n_rows)).float()
        for _ in range(epochs):
            for rows in torch.randperm(n_rows, device=device).split(batch_size):
                g, s = G[rows], total[rows]
                mean, _ = student(x[rows], [h[rows] for h in cached])
                if t:
                    mean = shares[0] * (g + s / t) + shares[1] * mean
                residual = (t + 1) * (mean - g) - s
                log_p = log_softmax(g, dim=1)
                log_q = log_softmax(mean, dim=1)
                loss = (log_p.exp() * (log_p - log_q)).sum(1).mean()
                with torch.no_grad():
                    under = (-eta * s - log_scale).exp()
                    over = (eta * s - log_scale).exp()
                u = residual / (2 * size)
                reward = under * barrier_logarithm(u) + over * barrier_logarithm(-u)
                loss = loss - reward.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                loss.item()  # for a history of losses
        with torch.no_grad():
            student.head.weight -= student.head.weight.mean(0)
            student.head.bias -= student.head.bias.mean()
            mean, features = student(x, cached)
            if t:
                mean = shares[0] * (G + total / t) + shares[1] * mean
            total = (t + 1) * (mean - G)
        cached.append(features)
        students.append(student)
    return students


def predict_by_hand(ensemble):
    """A function over plain copies of perceptrons: rows to running mean, by modules."""
    mean = -ensemble.input_offset / ensemble.input_factor
    scale = 1 / ensemble.input_factor
    parts = []
    for student in ensemble.students:
        backbone = nn.Sequential(*student.backbone.blocks[0])
        join = None
        if student.join is not None:
            join = nn.Sequential(student.join.linear, nn.ReLU())
        parts.append((backbone, join, student.head, float(student.carry)))

    @torch.inference_mode()
    def predict(x):
        x = (x - mean) / scale
        earlier, total = [], 0
        for backbone, join, head, carry in parts:
            features = backbone(x)
            if join is not None:
                features = join(torch.cat([features, *earlier], dim=1))
            earlier.append(features)
            total = carry * total + head(features)
        return total

    return predict


def predict_by_functions(ensemble):
    """The same without modules."""
    offset, factor = ensemble.input_offset, ensemble.input_factor
    parts = [
        [
            None if layer is None else (layer.weight, layer.bias)
            for layer in (
                student.backbone.blocks[0][0],
                student.join and student.join.linear,
                student.head,
            )
        ]
        + [student.carry]
        for student in ensemble.students
    ]

    @torch.inference_mode()
    def predict(x):
        x = torch.addcmul(offset, x, factor)
        earlier, total = [], None
        for first, join, head, carry in parts:
            features = torch.relu(linear(x, *first))
            if join is not None:
                joined = torch.cat([features, *earlier], dim=1)
                features = torch.relu(linear(joined, *join))
            earlier.append(features)
            scores = linear(features, *head)
            total = scores if total is None else torch.addcmul(scores, total, carry)
        return total

    return predict


def predict_by_modules(ensemble):
    """A function over the students themselves, of any kind: rows to running mean."""
    students = list(ensemble.students)
    mean = -ensemble.input_offset / ensemble.input_factor
    scale = 1 / ensemble.input_factor

    @torch.inference_mode()
    def predict(x):
        x = (x - mean) / scale
        earlier, total = [], 0
        for student in students:
            scores, activations = student(x, earlier)
            total = student.carry * total + scores
            earlier.append(activations)
        return total

    return predict


def in_turns(functions, n_repeats, n_calls=1):
    """Seconds of a call of each function, run in turns after a warm-up.

    Where a turn is several calls, one more before them is not counted: what ran before
    has left the caches to itself.

    Returns
    -------
    seconds : ndarray of shape (n_functions, n_repeats)
    """
    seconds = np.empty((len(functions), n_repeats + 1))
    for repeat in range(n_repeats + 1):
        for position, function in enumerate(functions):
            if n_calls > 1:
                function()
            began = time.process_time()
            for _ in range(n_calls):
                function()
            seconds[position, repeat] = (time.process_time() - began) / n_calls
    return seconds[:, 1:]


def exponent(sizes, seconds):
    """Slope of log(seconds) over log(sizes), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def print_row(what, ours, by_hand, value, goal):
    verdict = "" if goal is None else ("met" if value <= goal else "missed")
    goal = "" if goal is None else f"{goal:.2f}"
    print(
        f"{what:<50} {ours:>10} {by_hand:>10} {value:>7.2f} {goal:>5} {verdict}",
        flush=True,
    )


def print_times(what, ours, by_hand, goal):
    """A line with the medians and the median ratio of paired seconds."""
    texts = [f"{np.median(seconds) * 1e3:.3f} ms" for seconds in (ours, by_hand)]
    print_row(what, *texts, np.median(ours / by_hand), goal)


def bench_fit(n_rows, n_repeats):
    """Time of fit against the hand-written loop."""
    X, G = make_rows(n_rows)
    for batch_size, epochs in [(32, 1), (256, 4)]:
        for n_units in (16, 64):
            options = {
                "n_units": n_units,
                "n_estimators": 3,
                "epochs": epochs,
                "batch_size": batch_size,
            }
            ours, by_hand = in_turns(
                [partial(fit, X, G, **options) for fit in (fit_ours, fit_by_hand)],
                n_repeats,
            )
            what = f"fit, {n_rows} rows, batches of {batch_size}, 3 x {n_units} units"
            print_times(what, ours, by_hand, 1.0)


def bench_growth(n_rows, n_repeats):
    """How the time of fit grows with the students and with the rows."""
    X, G = make_rows(n_rows)
    numbers = [2, 4, 8]
    sizes = [n_rows // 4, n_rows // 2, n_rows]

    def both(rows, n_estimators):
        options = {
            "n_units": 16,
            "n_estimators": n_estimators,
            "epochs": 1,
            "batch_size": 256,
        }
        return [partial(fit, *rows, **options) for fit in (fit_ours, fit_by_hand)]

    by_number = [both((X, G), n_estimators) for n_estimators in numbers]
    by_size = [both((X[:size], G[:size]), 3) for size in sizes]
    for what, pairs, grid in [
        ("students (2, 4, 8)", by_number, numbers),
        (f"rows ({', '.join(map(str, sizes))})", by_size, sizes),
    ]:
        seconds = in_turns([fit for pair in pairs for fit in pair], n_repeats)
        medians = np.median(seconds, axis=1)
        ours, by_hand = (exponent(grid, medians[side::2]) for side in (0, 1))
        print_row(
            f"fit, exponent in {what}", f"{ours:.2f}", f"{by_hand:.2f}", ours, 1.05
        )


def bench_checkpoints(n_rows, n_repeats):
    """What it costs to write each round, and to go on from what was written."""
    X, G = make_rows(n_rows)
    fit = partial(fit_ours, X, G, n_estimators=6, epochs=4)
    with tempfile.TemporaryDirectory() as root:

        def fit_anew():
            with tempfile.TemporaryDirectory(dir=root) as folder:
                fit(checkpoint=folder)

        found = Path(root, "found")
        fit(checkpoint=found)
        seconds = in_turns([fit_anew, fit, partial(fit, checkpoint=found)], n_repeats)
        (file,) = found.iterdir()
        n_bytes = file.stat().st_size
    print_times("fit with checkpoint / without, 6 rounds", *seconds[:2], 1.05)
    print_times("  all 6 found in the file / without", seconds[2], seconds[1], None)
    print(f"  bytes of a round {n_bytes / 6:.0f}, of its students alone ", end="")
    print(4 * sum(w.numel() for w in fit().ensemble_.students.parameters()) // 6)


def all_stages(clf, rows):
    """Predictions of every stage."""
    return list(clf.staged_predict(rows))


def bench_predict(n_repeats):
    """Time of predict against the bare modules, and of all stages against one."""
    X, G = make_rows(4096)
    perceptrons = fit_ours(X, G, n_estimators=6, epochs=1)
    images = X.reshape(-1, 28, 28)
    cases = [("perceptrons", perceptrons, X, predict_by_hand, (0.7, 0.6, 0.5))]
    for name, student in [
        ("convolutional", partial(ConvNet2d, channels=(4, 8))),
        ("recurrent", partial(RecurrentNet, hidden=(8,))),
    ]:
        clf = fit_ours(
            images[:1024], G[:1024], n_estimators=3, epochs=1, student=student
        )
        cases.append((name, clf, images, predict_by_modules, (1.2, 1.05, 1.0)))
    for name, clf, rows, baseline, goals in cases:
        by_hand = baseline(clf.ensemble_)
        functions = [by_hand]
        if name == "perceptrons":
            functions.append(predict_by_functions(clf.ensemble_))
        for function in functions:
            assert np.allclose(
                function(torch.from_numpy(rows)), clf.decision_function(rows), atol=1e-3
            )
        for n_rows, goal in zip((1, 64, 4096), goals, strict=True):
            chosen = rows[:n_rows]
            x = torch.from_numpy(chosen)
            seconds = in_turns(
                [
                    partial(clf.predict, chosen),
                    partial(all_stages, clf, chosen),
                    *(partial(function, x) for function in functions),
                ],
                max(3, n_repeats // (1 + n_rows // 1000)),
                n_calls=max(1, 512 // n_rows),
            )
            title = f"{name}, {n_rows} row(s)"
            print_times(f"predict, {title}", seconds[0], seconds[2], goal)
            if len(functions) > 1:
                print_times("  against functions", seconds[0], seconds[3], None)
            print_times(f"  all {len(clf)} stages / one predict", *seconds[1::-1], 1.05)


def measure_memory(sizes):
    """Peak memory of fit by number of rows, X being a read-only memory map."""
    # So that glibc gives freed arrays back to the system: its heap would keep some,
    # a number that has little to do with the rows.
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "X.npy")
        X = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(max(sizes), N_FEATURES)
        )
        for start in range(0, len(X), 10000):
            chunk = X[start : start + 10000]
            chunk[:] = np.random.RandomState(start).rand(*chunk.shape)
        X.flush()
        del X
        peaks = [
            int(
                subprocess.run(
                    [sys.executable, "-m", __spec__.name, "--peak", str(path), str(n)],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=os.environ | settings,
                ).stdout
            )
            for n in sizes
        ]
    return sizes, peaks


def print_memory(sizes, peaks):
    """What the peak grows by with every row, and what it consists of."""
    slope = np.polyfit(sizes, peaks, 1)[0]
    parts = [
        ("measured, without the memory map of X", slope),
        ("g and S, float32", 2 * 4 * N_OUTPUTS),
        ("features of the students, float32", MEMORY_ESTIMATORS * 4 * MEMORY_UNITS),
        ("teacher_scores and y of the caller", 4 * N_OUTPUTS + 8),
    ]
    print(f"\nPeak memory of fit, bytes per row, at {', '.join(map(str, sizes))} rows")
    print(f"with {MEMORY_ESTIMATORS} x {MEMORY_UNITS} units:")
    for what, size in parts:
        print(f"  {what:<44} {size:>10.0f}")


def memory_in_use():
    """Bytes of this process that no file backs, None where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) * 1024 for x in lines if "RssAnon" in x), None)


def print_peak(path, n_rows):
    """In a process of its own: fit on the first rows and print the peak in bytes.

    The pages of a memory map are left out where that is possible: they count as memory
    of the process until the system takes them back, whenever that is.
    """
    X = np.load(path, mmap_mode="r")[:n_rows]
    G = np.random.default_rng(0).random((n_rows, N_OUTPUTS), dtype=np.float32)
    seen, finished = [0], threading.Event()

    def watch():
        while not finished.wait(0.002):
            seen[0] = max(seen[0], memory_in_use() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    fit_ours(X, G, n_units=MEMORY_UNITS, n_estimators=MEMORY_ESTIMATORS, epochs=1)
    finished.set()
    watcher.join()
    if not seen[0]:
        # In kilobytes but on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        seen[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        seen[0] -= X.nbytes
    print(seen[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="few rows and repeats: does it run?"
    )
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.peak[0], int(options.peak[1]))
        return
    quick = options.quick
    # First of all: on Linux a process starts with the peak of the one that started it.
    memory = measure_memory([5000, 10000, 20000] if quick else [20000, 40000, 80000])
    n_rows = 4000 if quick else 20000
    print(__doc__.splitlines()[0])
    print(f"Rows of {N_FEATURES} float32, one thread, medians of paired ratios.\n")
    header = f"{'what':<50} {'ours':>10} {'by hand':>10} {'ratio':>7} {'goal':>5}"
    print(header)
    bench_fit(n_rows, 1 if quick else 5)
    bench_growth(n_rows, 1 if quick else 3)
    bench_checkpoints(n_rows, 1 if quick else 5)
    bench_predict(5 if quick else 50)
    print_memory(*memory)


if __name__ == "__main__":
    main()
