"""TEASER of aeon on the rows of :mod:`benchmarks.bench_early_time`.

    python -m benchmarks.bench_early_time --rows FOLDER
    python benchmarks/early_time_teaser.py FOLDER --results FILE

The second line runs in an environment with aeon, which needs neither torch nor this
package. TEASER answers at the same numbers of steps, learns from the rows for training
and for calibration together (it splits them itself), and gets the same test rows. Its
classifier is, as by default, MUSE, or the summary statistics of `--estimator summary`.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np


def classifier(name, seed):
    if name == "muse":
        return None  # the default of TEASER for several channels
    from aeon.classification.feature_based import SummaryClassifier
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(100, random_state=seed)
    return SummaryClassifier(estimator=forest, random_state=seed)


def experiment(path, name, n_rows):
    from aeon.classification.early_classification import TEASER

    dataset, _, seed = path.stem.rpartition("_")
    seed = int(seed)
    with np.load(path) as file:
        steps = file["steps"].tolist()
        X = np.concatenate([file["X_train"], file["X_held_out"]]).transpose(0, 2, 1)
        y = np.concatenate([file["y_train"], file["y_held_out"]])
        X_test, y_test = file["X_test"].transpose(0, 2, 1), file["y_test"]
    rows = np.random.RandomState(seed).permutation(len(y))[:n_rows]
    X, y = np.float64(X[rows]), y[rows]
    began = time.perf_counter()
    teaser = TEASER(
        estimator=classifier(name, seed), classification_points=steps, random_state=seed
    ).fit(X, y)
    mean, accuracy, earliness = teaser.score(np.float64(X_test), y_test)
    return {
        "dataset": dataset,
        "seed": seed,
        "method": "teaser",
        "estimator": name,
        "n_rows": len(y),
        "seconds": time.perf_counter() - began,
        "accuracy": float(accuracy),
        "earliness": float(earliness),
        "harmonic_mean": float(mean),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--estimator", choices=["muse", "summary"], default="summary")
    parser.add_argument("--n-rows", type=int, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    done = {
        (record["dataset"], record["seed"], record.get("estimator"))
        for record in map(json.loads, lines)
    }
    for path in sorted(args.rows.glob("*.npz")):
        dataset, _, seed = path.stem.rpartition("_")
        if (dataset, int(seed), args.estimator) in done:
            continue
        record = experiment(path, args.estimator, args.n_rows)
        with args.results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record, flush=True)
