"""Images decoded when they are read: views against clean rows, speed, and memory.

Run as ``python -m benchmarks.bench_datasets views`` (also ``reading``, ``memory``) with
--results FILE. CIFAR-10 comes as JPEG bytes from the folder of the environment variable
SKBDISTIL_DATA, with the scores of its teacher. What is in the file is not run again.

``views``: networks of 0.2 million multiply-accumulates, with and without random crops
and flips, on the first --rows images of the training set, tested on the test set.
``reading``: rows per second of passes and of training, and peak memory, for an array
and for datasets. ``memory``: a fit to rows that are 10 times the memory that a process
may take beyond what it has after a fit to 256 of them.
"""

import argparse
import io
import json
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skorch import NeuralNet
from torch.utils.data import Dataset

from benchmarks.accuracy_cost.results import append
from skbdistil import BDistilClassifier
from skbdistil.datasets import Views
from skbdistil.students import ConvNet2d


class Jpegs(Dataset):
    """CIFAR-10 as bytes, of which an image is decoded when it is read."""

    def __init__(self, part, n_rows=None, *, crops=False):
        with np.load(Path(os.environ["SKBDISTIL_DATA"]) / "cifar10_jpeg.npz") as file:
            self.bytes = file[f"jpeg_{part}"]
            self.offsets = file[f"offsets_{part}"]
            self.labels = file[f"y_{part}"][:n_rows]
        self.crops = crops

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        start, stop = self.offsets[index : index + 2]
        image = Image.open(io.BytesIO(self.bytes[start:stop].tobytes()))
        pixels = np.asarray(image).transpose(2, 0, 1)
        if self.crops:
            top, left, flip = torch.randint(9, (3,)).tolist()
            pixels = np.pad(pixels, ((0, 0), (4, 4), (4, 4)))
            pixels = pixels[:, top : top + 32, left : left + 32]
            if flip % 2:
                pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels), self.labels[index]


ROW_BYTES = 3 * 32 * 32 * 4


class Patterns(Dataset):
    """Rows of 12 kB that are made when they are read."""

    def __init__(self, n_rows):
        self.n_rows = n_rows
        self.images = np.random.default_rng(0).normal(size=(2, 3, 32, 32))
        self.images = self.images.astype(np.float32)

    def __len__(self):
        return self.n_rows

    def __getitem__(self, index):
        return self.images[index % 2] * np.float32(1 + index % 7), index % 2


def stored_scores(n_rows):
    with np.load(Path(os.environ["SKBDISTIL_DATA"]) / "cifar10_teacher.npz") as file:
        return file["scores_train"][:n_rows].astype(np.float32)


def classifier(epochs, seed, n_workers=0, **parameters):
    workers = {}
    if n_workers:
        workers = {
            "iterator_train__num_workers": n_workers,
            "iterator_train__persistent_workers": True,
        }
    net = NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW, **workers)
    return BDistilClassifier(
        "precomputed", net=net, max_epochs=epochs, random_state=seed, **parameters
    )


NETWORKS = {
    "4 students": {"n_estimators": 4, "student": ConvNet2d},
    "single network": {
        "n_estimators": 1,
        "student": partial(ConvNet2d, channels=(16, 32, 64)),
    },
}


def views(key):
    clean = Jpegs("train", key["rows"])
    train = Jpegs("train", key["rows"], crops=True) if key["views"] else None
    start = time.perf_counter()
    clf = classifier(key["epochs"], key["seed"], **NETWORKS[key["network"]])
    clf.fit(Views(clean, train), teacher_scores=stored_scores(key["rows"]))
    seconds = time.perf_counter() - start
    test = Jpegs("test", key["test_rows"])
    return {
        "test_accuracy": list(clf.staged_score(test, test.labels)),
        "macs": list(map(int, clf.stage_costs_.cumulative_macs)),
        "seconds": seconds,
    }


def reading(key):
    dataset = Jpegs("train", key["rows"])
    X = dataset
    if key["source"] == "array":
        X = np.stack([dataset[index][0] for index in range(len(dataset))])
    elif key["source"] == "views":
        X = Views(dataset, Jpegs("train", key["rows"], crops=True))
    n_workers = key["workers"]
    clf = classifier(key["epochs"], 0, n_workers, n_estimators=1, student=ConvNet2d)
    start = time.perf_counter()
    clf.fit(X, dataset.labels, teacher_scores=stored_scores(key["rows"]))
    fitted = time.perf_counter()
    clf.predict(X)
    return {
        "fit_rows_per_second": key["rows"] * key["epochs"] / (fitted - start),
        "predict_rows_per_second": key["rows"] / (time.perf_counter() - fitted),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def memory(key):
    allowed = key["allowed_mb"] * 2**20
    # torch imports the half of itself when it trains for the first time.
    fit_patterns(256)
    status = Path("/proc/self/status").read_text().splitlines()
    in_use = next(int(line.split()[1]) for line in status if line[:6] == "VmData")
    limit = in_use * 1024 + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    n_rows = 10 * allowed // ROW_BYTES
    start = time.perf_counter()
    clf = fit_patterns(n_rows)
    return {
        "rows": n_rows,
        "rows_mb": n_rows * ROW_BYTES / 2**20,
        "n_students": len(clf),
        "seconds": time.perf_counter() - start,
    }


def fit_patterns(n_rows):
    labels = np.arange(n_rows) % 2
    # No student reads another, whose feature maps of all rows would be held.
    clf = classifier(
        1,
        0,
        n_estimators=2,
        connection=None,
        student=partial(ConvNet2d, channels=(4, 8)),
    )
    scores = np.where(labels, 3, -3).astype(np.float32)
    return clf.fit(Patterns(n_rows), labels, teacher_scores=scores)


def keys(options):
    if options.part == "views":
        for seed in range(options.seeds):
            for network in NETWORKS:
                for with_views in (False, True):
                    yield {
                        "network": network,
                        "views": with_views,
                        "seed": seed,
                        "rows": options.rows,
                        "test_rows": options.test_rows,
                        "epochs": options.epochs,
                    }
    elif options.part == "reading":
        for source, n_workers in [
            ("array", 0),
            ("dataset", 0),
            ("dataset", 2),
            ("views", 0),
            ("views", 2),
        ]:
            yield {
                "source": source,
                "workers": n_workers,
                "rows": options.rows,
                "epochs": options.epochs,
            }
    else:
        yield {"allowed_mb": options.allowed_mb}


RUNS = {"views": views, "reading": reading, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=RUNS)
    parser.add_argument("--results", default="benchmarks/results/datasets.jsonl")
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--test-rows", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--allowed-mb", type=int, default=160)
    options = parser.parse_args()
    path = Path(options.results)
    lines = path.read_text().splitlines() if path.exists() else []
    done = [json.loads(line)["key"] for line in lines]
    for key in keys(options):
        key = {"part": options.part} | key
        if key in done:
            continue
        # A process of its own, for its peak of memory and its limit.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(RUNS[options.part], key).result()
        append(path, [{"key": key} | found])


if __name__ == "__main__":
    main()
