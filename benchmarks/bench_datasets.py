"""Images decoded when they are read: views against clean rows, speed, and memory.

Run as ``python -m benchmarks.bench_datasets views`` (also ``reading``, ``memory``,
``chunks``, ``teacher_on``) with --results FILE. CIFAR-10 comes as JPEG bytes from the
folder of the environment variable SKBDISTIL_DATA, with the scores of its teacher. What
is in the file is not run again.

``views``: networks of 0.2 million multiply-accumulates, with and without random crops
and flips, on the first --rows images of the training set, tested on the test set.
``reading``: rows per second of passes and of training, and peak memory, for an array
and for datasets. ``memory``: a fit to rows that are 10 times the memory that a process
may take beyond what it has after a fit to 256 of them. ``chunks``: time and memory of a
prediction, by the numbers of a chunk of rows. ``teacher_on``: views of images of
Fashion-MNIST, of which students, and single networks of about their cost, learn what
the teacher says of the clean image, or of the view; and without views. Images are
shifted and flipped, or mixed with others. The teacher is trained here, on the first
6000 images, shifted and flipped; students learn from the first --rows of these.
--report prints its table.
"""

import argparse
import io
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skorch import NeuralNet
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from benchmarks.accuracy_cost.results import append
from benchmarks.records import read, table, with_error
from skbdistil import BDistilClassifier
from skbdistil._boosting import _rows
from skbdistil.datasets import Views
from skbdistil.students import ConvNet2d
from skbdistil.teachers import TorchTeacher


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


class Shifted(Dataset):
    """Images of an array, shifted and flipped anew each time that they are read."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return shifted(self.images[index : index + 1])[0]


class Mixed(Shifted):
    """Images, each with up to a half of another one of these."""

    def __getitem__(self, index):
        share = torch.rand(()) / 2
        other = torch.randint(len(self), ())
        return torch.lerp(self.images[index], self.images[other], share)


def shifted(images, most=2):
    """Images, each moved by up to so many pixels and flipped or not."""
    n, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4)
    top, left = torch.randint(2 * most + 1, (2, n, 1))
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    lines = top + torch.arange(height)
    numbers = torch.arange(n)[:, None, None]
    return padded[numbers, :, lines[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def fashion(part, n_rows):
    with np.load(Path(os.environ["SKBDISTIL_DATA"]) / "fashion_mnist.npz") as file:
        images, labels = file[f"X_{part}"][:n_rows], file[f"y_{part}"][:n_rows]
    return np.float32(images.reshape(-1, 1, 28, 28)) / 255, np.int64(labels)


@cache
def fashion_teacher(seed, epochs=8):
    """Convolutional network, trained on shifted and flipped images."""
    images, labels = fashion("train", 6000)
    torch.manual_seed(seed)
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.AdamW(module.parameters())
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(shifted(x[batch])), y[batch]).backward()
            optimizer.step()
    return module.eval()


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
    elif options.part == "teacher_on":
        for seed in range(options.seeds):
            for network in SMALL_NETWORKS:
                for kind in KINDS_OF_VIEWS:
                    yield {
                        "network": network,
                        **kind,
                        "seed": seed,
                        "rows": options.rows,
                        "epochs": options.epochs,
                    }
    elif options.part == "chunks":
        for side in (32, 96):
            for exponent in (18, 20, 22, 25):
                yield {"side": side, "chunk_size": 2**exponent}
    else:
        yield {"allowed_mb": options.allowed_mb}


def chunks(key):
    """Processor time of a prediction of images, by the numbers that run at once."""
    torch.set_num_threads(1)
    _rows._CHUNK_SIZE = key["chunk_size"]
    shape = (3, key["side"], key["side"])
    images = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
    scores = np.where(np.arange(64) % 2, 3, -3).astype(np.float32)
    clf = classifier(1, 0, n_estimators=1, student=ConvNet2d, edge_tol=np.inf)
    clf.fit(images, np.arange(64) % 2, teacher_scores=scores)
    n_rows = 2**23 // images[0].size
    X = np.resize(images, (n_rows, *shape))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        clf.predict(X)
        seconds.append(time.process_time() - start)
    return {
        "microseconds_per_row": 1e6 * min(seconds) / n_rows,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


SMALL_NETWORKS = {
    "3 students": {
        "n_estimators": 3,
        "student": partial(ConvNet2d, channels=(4, 8, 16)),
    },
    "single network": {
        "n_estimators": 1,
        "student": partial(ConvNet2d, channels=(8, 16, 32)),
    },
}


KINDS_OF_VIEWS = [
    {"views": views, "teacher_on": teacher_on}
    for views, teacher_on in [
        (None, None),
        ("shifts", "clean"),
        ("shifts", "view"),
        ("mixtures", "clean"),
        ("mixtures", "view"),
    ]
]


def teacher_on(key):
    torch.set_num_threads(1)
    images, labels = fashion("train", key["rows"])
    X_test, y_test = fashion("test", 10000)
    teacher = fashion_teacher(key["seed"])
    clf = BDistilClassifier(
        TorchTeacher(teacher),
        max_epochs=key["epochs"],
        random_state=key["seed"],
        **SMALL_NETWORKS[key["network"]],
    )
    rows = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    if key["views"] is not None:
        train = {"shifts": Shifted, "mixtures": Mixed}[key["views"]](images)
        rows = Views(rows, train, teacher_on=key["teacher_on"])
    start = time.process_time()
    clf.fit(rows)
    seconds = time.process_time() - start
    predicted = TorchTeacher(teacher).predict(X_test)
    return {
        "teacher_accuracy": float(np.mean(predicted == y_test)),
        "test_accuracy": list(clf.staged_score(X_test, y_test)),
        "macs": list(map(int, clf.stage_costs_.cumulative_macs)),
        "teacher_calls": clf.teacher_calls_,
        "processor_seconds": seconds,
    }


def report(lines):
    """Test accuracy of each stage by what the teacher was asked about, and gains."""
    lines = [line for line in lines if line["key"]["part"] == "teacher_on"]
    for n_rows, epochs in sorted(
        {(line["key"]["rows"], line["key"]["epochs"]) for line in lines}
    ):
        rows, stages = [], None
        for network, kind in product(SMALL_NETWORKS, KINDS_OF_VIEWS):
            wanted = {"network": network, "rows": n_rows, "epochs": epochs, **kind}
            found = [line for line in lines if wanted.items() <= line["key"].items()]
            if found:
                before = stages
                stages = np.transpose([line["test_accuracy"] for line in found])
                seconds = [line["processor_seconds"] for line in found]
                cells = [*_cells(stages), with_error(seconds, 0), len(found)]
                rows.append([network, *kind.values(), *cells])
                if kind["teacher_on"] == "view" and before.shape == stages.shape:
                    gains = _cells(stages - before, sign="+")
                    rows.append([network, kind["views"], "gain", *gains, "", ""])
        header = ["network", "views", "teacher on", "1", "2", "3", "s", "seeds"]
        table(f"{n_rows} rows, {epochs} epochs", header, rows)


def _cells(stages, **options):
    """What there is of three stages, as text."""
    cells = [with_error(stage, 3, **options) for stage in stages]
    return cells + [""] * (3 - len(cells))


RUNS = {
    "chunks": chunks,
    "views": views,
    "reading": reading,
    "memory": memory,
    "teacher_on": teacher_on,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=RUNS)
    parser.add_argument("--results", default="benchmarks/results/datasets.jsonl")
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--test-rows", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--allowed-mb", type=int, default=160)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    path = Path(options.results)
    lines = read(path)
    if options.report:
        report(lines)
        return
    done = [line["key"] for line in lines]
    for key in keys(options):
        key = {"part": options.part} | key
        if key in done:
            continue
        if options.part == "teacher_on":
            found = teacher_on(key)
        else:
            # A process of its own, for its peak of memory and its limit.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(RUNS[options.part], key).result()
        append(path, [{"key": key} | found])


if __name__ == "__main__":
    main()
