"""Students of quantiles: what a teacher of quantiles passes on, and what is missed.

    python -m benchmarks.bench_quantiles [--seeds 3] [--output FILE]
    python -m benchmarks.bench_quantiles --report [--tables FOLDER]

Gradient boosting predicts the quantiles .05, .5 and .95, one model for each, and the
students learn all three as targets. One part of the rows trains, one moves the ends of
the intervals (conformalised quantile regression), one calibrates intervals of one width
around the same students' median, and the rest judges. One line per set and seed is
appended to the file; those that are in it are not run again.
"""

import csv
import json
from functools import partial

import numpy as np
from sklearn.datasets import make_friedman1
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_pinball_loss

from benchmarks.bench_intervals import diabetes, friedman
from benchmarks.records import command_of_tables, read
from skbdistil import BDistilRegressor
from skbdistil.students import MLP

LEVELS = (0.05, 0.5, 0.95)
ALPHA = 0.1


def uneven(seed):
    """Noise that grows with a feature."""
    X, y = make_friedman1(7000, random_state=seed)
    return X, y + 4 * X[:, 5] * np.random.RandomState(seed).randn(len(X))


# Rows, the number of them to train on, and to calibrate on.
SETS = {
    "friedman": (friedman, 2000, 500),
    "uneven": (uneven, 2000, 500),
    "diabetes": (diabetes, 242, 100),
}


def measured(name, seed):
    """The line of a set and a seed.

    Parameters
    ----------
    name : str
    seed : int

    Returns
    -------
    line : dict
    """
    make, n_training, n_calibration = SETS[name]
    X, y = make(seed)
    X_train, X_calibration, X = np.split(X, [n_training, n_training + n_calibration])
    y_train, y_calibration, y = np.split(y, [n_training, n_training + n_calibration])
    teachers = [
        HistGradientBoostingRegressor(
            loss="quantile", quantile=level, max_iter=50, random_state=seed
        ).fit(X_train, y_train)
        for level in LEVELS
    ]

    def taught(rows):
        return np.column_stack([teacher.predict(rows) for teacher in teachers])

    targets = taught(X_train)
    reg = BDistilRegressor(
        "precomputed",
        student=partial(MLP, hidden=(16,)),
        n_estimators=6,
        max_epochs=40,
        edge_tol=np.inf,
        random_state=seed,
    ).fit(X_train, targets, teacher_scores=targets)
    line = {"set": name, "seed": seed}
    for who, predict in (("teacher", taught), ("students", reg.predict)):
        quantiles = predict(X)
        line[f"crossed_{who}"] = float((np.diff(quantiles) < 0).any(axis=1).mean())
        quantiles = np.sort(quantiles, axis=1)
        line[f"pinball_{who}"] = float(
            np.mean(
                [
                    mean_pinball_loss(y, quantiles[:, column], alpha=level)
                    for column, level in enumerate(LEVELS)
                ]
            )
            / y.std()
        )
        line |= judged(who, quantiles[:, [0, 2]], y)
    ends = np.sort(reg.predict(X_calibration), axis=1)
    moved = conformal(
        np.maximum(ends[:, 0] - y_calibration, y_calibration - ends[:, 2])
    )
    half_width = conformal(np.abs(y_calibration - ends[:, 1]))
    low, middle, high = quantiles.T
    # The halves of the rows by what is predicted about their noise.
    is_noisy = high - low > np.median(high - low)
    for who, intervals in {
        "moved": np.column_stack([low - moved, high + moved]),
        "one_width": np.column_stack([middle - half_width, middle + half_width]),
    }.items():
        line |= judged(who, intervals, y)
        line[f"coverage_{who}_quiet"] = covered(intervals[~is_noisy], y[~is_noisy])
        line[f"coverage_{who}_noisy"] = covered(intervals[is_noisy], y[is_noisy])
    return line


def conformal(scores):
    """The score of the rank that split conformal prediction takes."""
    rank = int(np.ceil((len(scores) + 1) * (1 - ALPHA)))
    return np.sort(scores)[rank - 1]


def judged(who, intervals, y):
    return {
        f"coverage_{who}": covered(intervals, y),
        f"width_{who}": float(np.ptp(intervals, axis=1).mean() / y.std()),
    }


def covered(intervals, y):
    """Share of the targets in their intervals."""
    return float(((intervals[:, 0] <= y) & (y <= intervals[:, 1])).mean())


def run(n_seeds, file):
    """Append the lines that the file does not have."""
    done = {(line["set"], line["seed"]) for line in read(file)}
    for seed in range(n_seeds):
        for name in SETS:
            if (name, seed) in done:
                continue
            line = measured(name, seed)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
            print(line, flush=True)


def report(lines, folder):
    """Write the table of the documentation.

    Means over the seeds, and the standard error over these.
    """
    rows = []
    for name in SETS:
        of_set = [line for line in lines if line["set"] == name]

        def with_error(key, of_set=of_set):
            values = np.array([line.get(key, np.nan) for line in of_set])
            error = values.std(ddof=1) / len(values) ** 0.5
            return f"{values.mean():.3f} ± {error:.3f}"

        for who, label in (
            ("teacher", "quantiles of the teacher"),
            ("students", "quantiles of the students"),
            ("moved", "the same, ends moved"),
            ("one_width", "one width around the median"),
        ):
            is_moved = who in ("moved", "one_width")
            rows.append(
                [
                    name,
                    label,
                    with_error(f"coverage_{who}"),
                    with_error(f"coverage_{who}_quiet") if is_moved else "",
                    with_error(f"coverage_{who}_noisy") if is_moved else "",
                    with_error(f"width_{who}"),
                    "" if is_moved else with_error(f"pinball_{who}"),
                    "" if is_moved else with_error(f"crossed_{who}"),
                ]
            )
    columns = [
        "set",
        "intervals",
        "coverage",
        "quiet half",
        "noisy half",
        "width",
        "pinball loss",
        "crossed",
    ]
    path = folder / "intervals_quantiles.csv"
    with path.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    parser = command_of_tables(__doc__, "quantiles.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.report:
        report(read(args.output), args.tables)
    else:
        run(args.seeds, args.output)
