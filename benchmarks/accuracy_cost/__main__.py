"""Measure what is missing in the file of results.

Nothing is measured twice: a run that was stopped goes on where it was, and several may
share a file when each has its own ``--datasets``.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit, train_test_split

import skbdistil
from benchmarks.accuracy_cost import results
from benchmarks.accuracy_cost.experiments import DATA_SETS, METHODS, fingerprint
from benchmarks.accuracy_cost.methods import Task
from benchmarks.accuracy_cost.networks import torch_device
from benchmarks.accuracy_cost.teachers import respond
from skbdistil.costs import compare_latencies

HERE = Path(__file__).parent


def experiments(dataset, methods, seeds, done):
    """Methods and seeds that a data set lacks; its teacher has one seed."""
    for seed in seeds:
        for method in methods:
            key = (dataset.name, method.name, seed, fingerprint(dataset, method))
            if method.fits(dataset) and key not in done:
                if seed == 0 or method.name != "teacher":
                    yield method, seed


def run(method, task):
    """Records of one experiment, one for each stage."""
    began = time.perf_counter()
    stages = method.run(task, **method.settings)
    seconds = time.perf_counter() - began
    latencies = [None] * len(stages)
    if stages[0].predict is not None:
        measured = compare_latencies(
            [stage.predict for stage in stages],
            task.split.X_test,
            batch_size=min(256, len(task.split.X_test)),
            n_warmup=1,
            n_repeats=7,
            n_threads=1,
        )
        latencies = [latency.median for latency in measured]
    taught = task.teacher.test.argmax(axis=1)
    shared = {
        "dataset": task.data.name,
        "method": method.name,
        "seed": task.seed,
        "n_stages": len(stages),
        "fit_seconds": round(seconds, 2),
        "epochs": method.epochs and task.epochs,
        "fingerprint": fingerprint(task.data, method),
        "versions": {
            "python": platform.python_version(),
            "skbdistil": skbdistil.__version__,
        }
        | {
            package: importlib.metadata.version(package)
            for package in ("torch", "scikit-learn", "skorch", "numpy")
        },
        "device": torch_device(task.device).type,
    }
    return [
        shared
        | {
            "stage": number,
            "accuracy": float(np.mean(stage.labels == task.split.y_test)),
            "agreement": float(np.mean(stage.labels == taught)),
            "macs": stage.macs,
            "parameters": stage.parameters,
            "latency": latency,
        }
        for number, (stage, latency) in enumerate(
            zip(stages, latencies, strict=True), start=1
        )
    ]


def seen_rows(split, teacher, n_train, validation):
    """Rows that students are trained and tested on, and the teacher's scores of them.

    With `validation` the test rows are a fifth of the training rows, or of the groups
    of these.
    """
    train = np.arange(len(split.y_train))
    if validation:
        if split.groups is None:
            train, test = train_test_split(
                train, test_size=0.2, stratify=split.y_train, random_state=0
            )
        else:
            # What is tested on is as new to the students as test rows are.
            folds = GroupShuffleSplit(1, test_size=0.2, random_state=0)
            train, test = next(folds.split(train, groups=split.groups))
        split = split._replace(X_test=split.X_train[test], y_test=split.y_train[test])
        teacher = teacher._replace(test=teacher.train[test])
    train = train[:n_train]
    split = split._replace(X_train=split.X_train[train], y_train=split.y_train[train])
    return split, teacher._replace(train=teacher.train[train])


def chosen(items, names):
    """Those of these names, or all of them."""
    known = [item.name for item in items]
    if unknown := set(names or ()) - set(known):
        sys.exit(f"Unknown: {sorted(unknown)}. There are {known}.")
    return [item for item in items if names is None or item.name in names]


def main(arguments=None, table=None, datasets=None):
    """Run what a command line asks for, by default of METHODS and DATA_SETS."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy_cost", description=__doc__.splitlines()[0]
    )
    extent = parser.add_mutually_exclusive_group(required=True)
    extent.add_argument("--quick", action="store_true", help="what needs no data")
    extent.add_argument("--full", action="store_true", help="whatever has its data")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SKBDISTIL_DATA", "."),
        help="folder of the data; default: $SKBDISTIL_DATA",
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="test on a fifth of the training rows, which no student sees",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--datasets", nargs="+", metavar="NAME")
    parser.add_argument("--methods", nargs="+", metavar="NAME")
    parser.add_argument("--results", type=Path, help="file; default: in results/")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = Path(options.data)
    extent = "quick" if options.quick else "full"
    extent += "_validation" * options.validation
    path = options.results or HERE / "results" / f"{extent}.jsonl"
    options.cache.mkdir(parents=True, exist_ok=True)
    datasets = chosen(DATA_SETS if datasets is None else datasets, options.datasets)
    methods = chosen(METHODS if table is None else table, options.methods)
    if options.quick:
        datasets = [dataset for dataset in datasets if "quick" in dataset.traits]
        methods = [method for method in methods if method.quick]

    failed = 0
    done = results.read(path)
    for dataset in datasets:
        missing = [name for name in dataset.files if not (folder / name).exists()]
        if missing:
            print(f"{dataset.name}: {', '.join(missing)} not found, left out")
            continue
        todo = list(experiments(dataset, methods, range(options.seeds), done))
        if not todo:
            continue
        split = dataset.load(folder, options.cache)
        teacher = respond(
            dataset.teacher,
            split,
            folder=folder,
            cache=options.cache,
            device=options.device,
        )
        split, teacher = seen_rows(split, teacher, dataset.n_train, options.validation)
        for method, seed in todo:
            epochs = max(1, round(dataset.max_epochs * (method.epochs or 1)))
            task = Task(dataset, split, teacher, epochs, seed, options.device)
            title = f"{dataset.name:18} {method.name:22} {seed}"
            try:
                records = run(method, task)
            except ImportError as error:
                print(f"{title}  left out: {error}")
                continue
            except ValueError as error:
                # Such as no weak learner in round 1: the other experiments go on.
                print(f"{title}  failed: {error}")
                failed += 1
                continue
            results.append(path, records)
            accuracies = " ".join(f"{record['accuracy']:.4f}" for record in records)
            print(
                f"{title}  {accuracies}  {records[0]['fit_seconds']:.0f} s", flush=True
            )
    if failed:
        sys.exit(f"{failed} experiment(s) failed")


if __name__ == "__main__":
    main()
