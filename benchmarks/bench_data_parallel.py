"""From which size on two processes with one thread each beat one with one thread.

Run on a machine with two cores as ::

    OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 -m benchmarks.bench_data_parallel

and ``python -m benchmarks.bench_data_parallel --report`` to print the table of what is
in the file of results; what is in it is not run again.

Two students are fitted to noise, in turns by the first process alone, while the second
one waits, and by both. The gain is the time of the first over that of the second, from
the call of `fit` to its end; the start of the processes is left out. Where other
programs use the cores, each process waits for the other one as well, so that this is
too small. The same of the processor time of the busier process leaves all waiting out,
so that it is too large.
"""

import itertools
import time
from functools import partial

import numpy as np
import torch
from torch import distributed

from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, read, table
from skbdistil import BDistilClassifier
from skbdistil.parallel import DataParallelNet
from skbdistil.students import MLP, ConvNet2d

N_MEASUREMENTS = 3
BATCH_SIZES = [256, 1024]
N_CLASSES = 10

# What is done once, such as the counting of operations, must not weigh much.
N_ROWS, N_EPOCHS = 4096, 8

# Backbones, and the shape of a row.
STUDENTS = {
    "MLP 16": (partial(MLP, hidden=(16,)), (784,)),
    "MLP 128-128": (partial(MLP, hidden=(128, 128)), (784,)),
    "MLP 512-512": (partial(MLP, hidden=(512, 512)), (784,)),
    "ConvNet2d 8-16-32": (partial(ConvNet2d, channels=(8, 16, 32)), (28, 28)),
    "ConvNet2d 32-64-128": (partial(ConvNet2d, channels=(32, 64, 128)), (28, 28)),
}


def fitted(name, batch_size, net):
    """Fit two students to noise."""
    student, shape = STUDENTS[name]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, *shape)).astype(np.float32)
    scores = rng.normal(size=(N_ROWS, N_CLASSES)).astype(np.float32)
    began = time.perf_counter(), time.process_time()
    BDistilClassifier(
        "precomputed",
        student=student,
        n_estimators=2,
        max_epochs=N_EPOCHS,
        batch_size=batch_size,
        edge_tol=np.inf,
        net=net,
        device="cpu",
        random_state=0,
    ).fit(X, scores.argmax(1), teacher_scores=scores)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measured(name, batch_size):
    """Seconds of one process and of two, of the clock and of the busier processor."""
    alone = fitted(name, batch_size, None) if distributed.get_rank() == 0 else (0, 0)
    distributed.barrier()
    shared = fitted(name, batch_size, DataParallelNet(optimizer__fused=True))
    # The slower process counts.
    seconds = torch.tensor([*alone, *shared])
    distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    names = ["one", "one_processor", "two", "two_processor"]
    return dict(zip(names, seconds.tolist(), strict=True))


def run(path):
    """Measure what is not in the file."""
    distributed.init_process_group("gloo")
    # Read by all before the first one adds to it.
    known = read(path)
    distributed.barrier()
    keys = itertools.product(range(N_MEASUREMENTS), STUDENTS, BATCH_SIZES)
    with quietly():
        for number, name, batch_size in keys:
            key = {"student": name, "batch_size": batch_size, "measurement": number}
            if any(key.items() <= line.items() for line in known):
                continue
            line = key | measured(name, batch_size)
            if distributed.get_rank() == 0:
                append(path, [line])
                print(line, flush=True)
    distributed.destroy_process_group()


def report(lines):
    """Print the table of the documentation."""
    rows = []
    for name, batch_size in itertools.product(STUDENTS, BATCH_SIZES):
        key = {"student": name, "batch_size": batch_size}
        found = [line for line in lines if key.items() <= line.items()]
        ratios, of_processor = (
            np.array([line["one" + what] / line["two" + what] for line in found])
            for what in ("", "_processor")
        )
        rows.append(
            [
                name,
                str(batch_size),
                f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
                f"{np.median(of_processor):.2f}",
            ]
        )
    header = ["Student", "Batch", "Gain", "In processor time"]
    table("Time of a fit in one process over that in two.", header, rows)


def main():
    arguments = command(__doc__, "data_parallel.jsonl").parse_args()
    if arguments.report:
        report(read(arguments.results))
    else:
        run(arguments.results)


if __name__ == "__main__":
    main()
