"""Fashion-MNIST by the protocol of the paper's main figure.

Run as ``python -m benchmarks.bench_fashion_mnist --data DIR --seeds 3``. A small
convolutional teacher is trained once. Students of 16 units are then distilled from its
scores by the settings of the package and by the paper's two baselines: RESCHED,
independent students that are averaged, and NO-RESCHED, for each stage a single student
whose width is about what the ensemble has spent by then.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from skbdistil import BDistilClassifier, DistillationObjective, TorchTeacher
from skbdistil.students import MLP

N_STAGES = 6
N_CLASSES = 10
EPOCHS = 6
BATCH_SIZE = 128

# Test accuracy by stage of the prototype that the package has to reach: KL + barrier,
# with the capped step of the game.
PROTOTYPE = [0.856, 0.868, 0.874, 0.877, 0.879, 0.880]

# Units of the single students of NO-RESCHED, by the stage they are compared with.
WIDTHS = {1: 16, 2: 32, 3: 48, 4: 64, 6: 96}

STUDENT = partial(MLP, hidden=(16,))
SETTINGS = {
    "default": {},
    "RESCHED": {
        "connection": None,
        "eta": 0,
        "objective": DistillationObjective("kl", on="student", barrier=None),
    },
    "refine='final'": {"refine": "final"},
}


def to_image(rows):
    """What the teacher sees of uint8 rows."""
    return rows.reshape(-1, 1, 28, 28) / np.float32(255)


def train_teacher(X, y, seed=0):
    """A convolutional network with about 91 % test accuracy."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, N_CLASSES),
    )
    images, labels = torch.from_numpy(to_image(X)), torch.from_numpy(y).long()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.002)
    n_batches = -(-len(images) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.002, total_steps=EPOCHS * n_batches
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = cross_entropy(module(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return TorchTeacher(module, transform=to_image)


def teacher_scores(X_train, y_train, X_test, cache):
    """Scores of the teacher on the training and the test rows, cached if asked for."""
    if cache is not None and cache.exists():
        with np.load(cache) as scores:
            return scores["train"], scores["test"]
    teacher = train_teacher(X_train, y_train)
    train, test = (teacher.decision_function(X) for X in (X_train, X_test))
    if cache is not None:
        # Not to a path, to which NumPy would add a suffix.
        with cache.open("wb") as file:
            np.savez(file, train=train, test=test)
    return train, test


def print_stages(name, values, errors=None):
    """A line of values by stage; NaN where there is none."""
    cells = []
    for stage, value in enumerate(values):
        error = "" if errors is None else f" ({errors[stage]:.4f})"
        cells.append(" " * 16 if np.isnan(value) else f"{value:7.4f}{error:<9}")
    print(f"{name:<24}" + "".join(cells).rstrip())


def mean_and_error(by_seed):
    """Mean over the seeds and its standard error, NaN for a single seed."""
    by_seed = np.asarray(by_seed)
    if len(by_seed) == 1:
        return by_seed[0], None
    return by_seed.mean(0), by_seed.std(0, ddof=1) / np.sqrt(len(by_seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SKBDISTIL_DATA"),
        help="folder with fashion_mnist.npz; default: $SKBDISTIL_DATA",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--cache", type=Path, help="npz file that keeps the scores of the teacher"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)

    path = None if options.data is None else Path(options.data) / "fashion_mnist.npz"
    if path is None or not path.exists():
        print(
            "fashion_mnist.npz was not found: pass its folder as --data or in the "
            "environment variable SKBDISTIL_DATA. Nothing was measured."
        )
        sys.exit(0)
    with np.load(path) as data:
        X_train, y_train, X_test, y_test = (
            data[name] for name in ("X_train", "y_train", "X_test", "y_test")
        )
    X_train, X_test = (X.reshape(len(X), -1) for X in (X_train, X_test))

    began = time.perf_counter()
    train, test = teacher_scores(X_train, y_train, X_test, options.cache)
    print(
        f"Teacher: {np.mean(test.argmax(1) == y_test):.4f} test accuracy, "
        f"{time.perf_counter() - began:.0f} s"
    )

    def accuracies(seed, **settings):
        settings = {"student": STUDENT, "n_estimators": N_STAGES} | settings
        clf = BDistilClassifier("precomputed", random_state=seed, **settings)
        clf.fit(X_train, y_train, teacher_scores=train)
        found = list(clf.staged_score(X_test, y_test))
        # Where boosting stopped early, the last stage is what there is.
        return found + found[-1:] * (clf.n_estimators - len(found))

    print(f"Test accuracy by stage: mean of {options.seeds} seed(s) (standard error)")
    print(f"{'':<24}" + "".join(f"{k:>7}{'':<9}" for k in range(1, N_STAGES + 1)))
    print_stages("prototype", PROTOTYPE)
    seeds = range(options.seeds)
    results = {}
    for name, settings in SETTINGS.items():
        began = time.perf_counter()
        results[name] = np.array([accuracies(seed, **settings) for seed in seeds])
        print_stages(name, *mean_and_error(results[name]))
        spent = (time.perf_counter() - began) / len(seeds)
        print(f"{'':<24}{spent:7.0f} s a fit and its test", flush=True)
    single = np.full((len(seeds), N_STAGES), np.nan)
    for stage, width in WIDTHS.items():
        student = partial(MLP, hidden=(width,))
        for row, seed in enumerate(seeds):
            found = accuracies(seed, student=student, n_estimators=1)
            single[row, stage - 1] = found[0]
    print_stages("NO-RESCHED", *mean_and_error(single))
    # Of the same seed, so that the errors are those of differences.
    for name in ("RESCHED", "prototype", "NO-RESCHED"):
        other = {"prototype": PROTOTYPE, "NO-RESCHED": single}.get(name)
        other = results[name] if other is None else other
        difference = results["default"] - other
        print_stages(f"default - {name}", *mean_and_error(difference))


if __name__ == "__main__":
    main()
