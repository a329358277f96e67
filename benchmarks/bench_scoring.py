"""Rows a second and core of an exported ensemble on dask, ray and Spark.

Run as ``python -m benchmarks.bench_scoring --results FILE``, with the extra
``distributed`` and pyarrow and, for Spark, pyspark and a Java runtime; what is not
installed is left out, with its reason. ``--report`` prints the table of what is in the
file.

Digits, tiled with noise, are scored by six students of 16 units with early exit, in
partitions of equal size, by as many workers as there are cores, one thread each. Each
engine starts before the clock does and scores all rows once to warm up; the rows are in
memory or, for Spark, in Parquet files of its own. What comes back is the number of rows
of each label and exit stage, so that it is scoring that is timed and not the transport
of answers.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from functools import partial, reduce
from itertools import count
from operator import add
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

N_PARTITIONS = 16
SEEDS = 3


def exported(folder):
    """An ensemble with early exit, as a folder."""
    X, y = load_digits(return_X_y=True)
    X_train, X_rest, y_train, y_rest = train_test_split(
        np.float32(X), y, test_size=0.5, random_state=0
    )
    clf = BDistilClassifier(
        ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0),
        student=partial(MLP, hidden=(16,)),
        random_state=0,
        device="cpu",
    ).fit(X_train, y_train)
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.01)
    to_onnx(early.fit(X_rest, y_rest), folder)


def make_rows(n_rows, seed):
    X, _ = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = np.float32(X)[rng.integers(len(X), size=n_rows)]
    rows += rng.normal(size=rows.shape).astype(np.float32)
    return rows


def tally(session, rows):
    """How many rows have left at each stage."""
    return Counter(session.exit_stages(rows).tolist())


# One process, and each of the engines: a generator that yields a function which scores
# all rows, and cleans up afterwards.


def one_process(session, rows, n_workers):
    parts = np.array_split(rows, N_PARTITIONS)
    yield lambda: reduce(add, (tally(session, part) for part in parts))


def dask(session, rows, n_workers):
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    def score(frame, run):
        counts = tally(session, frame.to_numpy())
        return pd.DataFrame({"stage": [*counts], "n": [*counts.values()]})

    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        frame = dd.from_pandas(pd.DataFrame(rows), npartitions=N_PARTITIONS)
        frame = client.persist(frame)
        meta = {"stage": "int64", "n": "int64"}

        runs = count()

        def run():
            # Of the same task dask might know the result.
            found = frame.map_partitions(score, next(runs), meta=meta).compute()
            return Counter(found.groupby("stage")["n"].sum().to_dict())

        yield run


def ray(session, rows, n_workers):
    import ray

    def score(batch):
        counts = tally(session, batch["data"])
        return {"stage": np.array([*counts]), "n": np.array([*counts.values()])}

    ray.init(num_cpus=n_workers, include_dashboard=False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.from_numpy(np.array_split(rows, N_PARTITIONS)).materialize()

        def run():
            found = data.map_batches(score, batch_size=None).to_pandas()
            return Counter(found.groupby("stage")["n"].sum().to_dict())

        yield run
    finally:
        ray.shutdown()


def spark(session, rows, n_workers):
    from pyspark.sql import SparkSession

    def score(frames):
        for frame in frames:
            counts = tally(session, np.stack(frame["row"].to_numpy()))
            yield pd.DataFrame({"stage": [*counts], "n": [*counts.values()]})

    engine = (
        SparkSession.builder.master(f"local[{n_workers}]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "65536")
        .config("spark.sql.files.maxPartitionBytes", "16m")
        .config("spark.driver.memory", "4g")
        .getOrCreate()
    )
    engine.sparkContext.setLogLevel("ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number, part in enumerate(np.array_split(rows, N_PARTITIONS)):
                pd.DataFrame({"row": list(part)}).to_parquet(
                    f"{folder}/{number}.parquet"
                )
            frame = engine.read.parquet(folder)

            def run():
                found = frame.mapInPandas(score, schema="stage long, n long")
                found = found.groupBy("stage").sum("n").collect()
                return Counter({stage: int(n) for stage, n in found})

            yield run
    finally:
        engine.stop()


ENGINES = {"one process": one_process, "dask": dask, "ray": ray, "spark": spark}


def run(path, n_rows, n_repeats):
    n_workers = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        exported(Path(folder) / "digits")
        session = ProgressiveSession(Path(folder) / "digits", n_threads=1)
        for seed in range(SEEDS):
            rows = make_rows(n_rows, seed)
            expected = tally(session, rows)
            for name, start in ENGINES.items():
                try:
                    engine = start(session, rows, n_workers)
                    score = next(engine)
                    found = score()
                except ImportError as error:
                    print(f"{name}, left out: {error}", flush=True)
                    continue
                if found != expected:
                    raise AssertionError(f"{name}: {found} and not {expected}")
                seconds = []
                for _ in range(n_repeats):
                    began = time.perf_counter()
                    score()
                    seconds.append(time.perf_counter() - began)
                engine.close()
                record = {
                    "engine": name,
                    "seed": seed,
                    "rows": n_rows,
                    "workers": 1 if name == "one process" else n_workers,
                    "mean_stage": sum(k * n for k, n in expected.items()) / n_rows,
                    "seconds": [round(value, 4) for value in seconds],
                }
                print(record, flush=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")


def report(path):
    records = pd.read_json(path, lines=True)
    records["rate"] = [
        rows / np.median(seconds) / workers
        for rows, seconds, workers in zip(
            records["rows"], records["seconds"], records["workers"], strict=True
        )
    ]
    print(".. csv-table:: Rows a second and core, and core hours for a billion rows")
    print('   :header: "engine", "workers", "rows a second and core", "core hours"')
    print()
    for engine, group in records.groupby("engine", sort=False):
        rates = group["rate"].to_numpy()
        error = rates.std(ddof=1) / np.sqrt(len(rates))
        hours = 1e9 / rates.mean() / 3600
        print(
            f'   "{engine}", "{group["workers"].iloc[0]}", '
            f'"{rates.mean():,.0f} ± {error:,.0f}", "{hours:.2f}"'
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results" / "scoring.jsonl",
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        report(args.results)
    else:
        run(args.results, args.rows, args.repeats)
