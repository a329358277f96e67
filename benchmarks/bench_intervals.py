"""Intervals and early exit of regressors: coverage, widths, cost and broken promises.

    python -m benchmarks.bench_intervals [--seeds 3] [--draws 100] [--output FILE]
    python -m benchmarks.bench_intervals --report [--tables FOLDER]

For each set of rows and seed, students learn once and are frozen. The rows that they
have not seen are then drawn anew many times: some choose the thresholds, as many others
calibrate the intervals, and the rest judge. One line per set and seed is appended to
the file; those that are in it are not run again.

Where targets are several, coverage is the mean over them: each has the promise.
"""

import json
import warnings
from functools import partial

import numpy as np
from scipy.stats import binom
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.frozen import FrozenEstimator

from benchmarks.records import command_of_tables, read, write_table
from skbdistil import BDistilRegressor
from skbdistil.early_exit import EarlyExitRegressor
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.stages import staged
from skbdistil.students import MLP

ALPHA = 0.1
DELTA = 0.1


def friedman(seed):
    """Noise of the same size everywhere."""
    return make_friedman1(7000, noise=1.0, random_state=seed)


def uneven(seed):
    """Two targets, whose noise grows with a feature."""
    X, y = make_friedman1(7000, random_state=seed)
    rng = np.random.RandomState(seed)
    noise = 4 * X[:, [5]] * rng.randn(len(X), 2)
    return X, np.column_stack([y, 10 * X[:, 0] * X[:, 1]]) + noise


def diabetes(seed):
    X, y = load_diabetes(return_X_y=True)
    rows = np.random.RandomState(seed).permutation(len(X))
    return X[rows], y[rows]


# Rows, number of them to train on, for the thresholds (and as many for the intervals),
# the tolerance in standard deviations of the target, and the risk that is allowed.
SETS = {
    "friedman": (friedman, 2000, 500, 0.1, 0.05),
    "uneven, two targets": (uneven, 2000, 500, 0.2, 0.05),
    "diabetes": (diabetes, 182, 80, 0.2, 0.1),
}


def measured(name, seed, n_draws):
    """The line of a set and a seed.

    Parameters
    ----------
    name : str
    seed : int
    n_draws : int

    Returns
    -------
    line : dict
    """
    make, n_training, n_calibration, relative_tolerance, max_risk = SETS[name]
    X, y = make(seed)
    reg = BDistilRegressor(
        ExtraTreesRegressor(100, min_samples_leaf=2, random_state=seed),
        student=partial(MLP, hidden=(16,)),
        n_estimators=6,
        max_epochs=40,
        edge_tol=np.inf,
        random_state=seed,
    ).fit(X[:n_training], y[:n_training])
    frozen = FrozenEstimator(reg)
    X, y = X[n_training:], y[n_training:]
    tolerance = relative_tolerance * reg.target_scale_
    rng = np.random.RandomState(seed)
    draws = []
    for draw in range(n_draws):
        rows = rng.permutation(len(X))
        choose, calibrate, judge = np.split(rows, [n_calibration, 2 * n_calibration])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingCertifiedWarning)
            early = EarlyExitRegressor(
                frozen, tolerance, max_risk=max_risk, delta=DELTA, random_state=draw
            ).fit(X[choose])
        found = judged(early, X, y, calibrate, judge, reg)
        # What not to do: the rows that chose the thresholds.
        same = SplitConformalRegressor(FrozenEstimator(early)).fit(X[choose], y[choose])
        found["coverage_same_rows"] = covered(
            same.predict_interval(X[judge], ALPHA), y[judge]
        )
        draws.append(found)
    line = {"set": name, "seed": seed, "draws": n_draws, "max_risk": max_risk}
    line["risk_all_leave"] = float(early.exit_path(X).losses[-1])
    for key in draws[0]:
        values = np.array([draw[key] for draw in draws], dtype=float)
        line[key] = values.mean(axis=0).tolist()
        line[key + "_se"] = (values.std(axis=0, ddof=1) / n_draws**0.5).tolist()
    line["violations"] = int(sum(draw["risk"] > max_risk for draw in draws))
    return line


def judged(early, X, y, calibrate, judge, reg):
    conformal = SplitConformalRegressor(FrozenEstimator(early))
    conformal.fit(X[calibrate], y[calibrate])
    targets, costs = early.predict_with_cost(X[judge])
    off = np.abs(targets - reg.predict(X[judge])).reshape(len(judge), -1)
    intervals = conformal.predict_interval(X[judge], ALPHA)
    stages = early.exit_stages(X[judge])
    by_exit = [
        covered(intervals[stages == stage], y[judge][stages == stage])
        for stage in np.unique(stages)
        if np.count_nonzero(stages == stage) >= 30
    ]
    n_stages = len(early.costs_)
    return {
        "coverage_stages": [
            covered(found, y[judge])
            for found in conformal.staged_predict_interval(X[judge], ALPHA)
        ],
        "coverage_exit": covered(intervals, y[judge]),
        "worst_exit_stage": min(by_exit),
        "width_stages": [
            relative(2 * conformal.half_widths(ALPHA, stage=stage), reg)
            for stage in range(1, n_stages + 1)
        ],
        "width_exit": relative(2 * conformal.half_widths(ALPHA), reg),
        "width_adaptive": adaptive_width(reg, X, y, calibrate, judge),
        "cost": float(costs.mean() / early.costs_[-1]),
        "certified": early.best_index_ > 0,
        "risk": float((off > early.tolerance_).any(axis=1).mean()),
    }


def covered(intervals, y):
    """Share of the targets in their intervals."""
    is_in = (intervals[..., 0] <= y) & (y <= intervals[..., 1])
    return float(is_in.mean())


def relative(widths, reg):
    """Mean width in standard deviations of the targets."""
    return float(np.mean(widths / reg.target_scale_))


def adaptive_width(reg, X, y, calibrate, judge):
    """Mean width at the last stage if it follows the spread of the stages.

    Residuals are divided by this spread plus its median, and quantiles multiplied by
    it; the width as of `relative`.
    """

    def predicted(rows):
        stages = np.array(list(staged(reg, X[rows]))).reshape(
            reg.n_estimators_, len(rows), -1
        )
        return stages[-1], stages.std(axis=0)

    last, spread = predicted(calibrate)
    middle = np.median(spread, axis=0)
    scores = np.sort(
        np.abs(y[calibrate].reshape(last.shape) - last) / (spread + middle), axis=0
    )
    rank = int(np.ceil((len(calibrate) + 1) * (1 - ALPHA)))
    _, spread = predicted(judge)
    widths = 2 * scores[rank - 1] * (spread + middle)
    return relative(widths.mean(axis=0), reg)


def run(n_seeds, n_draws, file):
    """Append the lines that the file does not have."""
    done = {(line["set"], line["seed"]) for line in read(file)}
    for seed in range(n_seeds):
        for name in SETS:
            if (name, seed) in done:
                continue
            line = measured(name, seed, n_draws)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
            print(name, seed, line["coverage_exit"], line["cost"], flush=True)


def report(lines, folder):
    """Write the tables of the documentation.

    Means over the seeds, and the standard error over these.
    """
    stages, exits, promises = [], [], []
    for name in SETS:
        of_set = [line for line in lines if line["set"] == name]

        def mean(key, form="{:.3f}", of_set=of_set):
            values = np.array([line[key] for line in of_set])
            return form.format(values.mean())

        def with_error(key, of_set=of_set):
            values = np.array([line[key] for line in of_set])
            error = values.std(axis=0, ddof=1) / len(values) ** 0.5
            return [
                f"{value:.3f} ± {e:.3f}"
                for value, e in zip(
                    np.atleast_1d(values.mean(axis=0)),
                    np.atleast_1d(error),
                    strict=True,
                )
            ]

        for number, (coverage, width) in enumerate(
            zip(
                with_error("coverage_stages"),
                np.mean([line["width_stages"] for line in of_set], axis=0),
                strict=True,
            ),
            start=1,
        ):
            stages.append([name, number, coverage, f"{width:.2f}"])
        stages.append(
            [
                name,
                "early exit",
                *with_error("coverage_exit"),
                mean("width_exit", "{:.2f}"),
            ]
        )
        exits.append(
            [
                name,
                *with_error("coverage_exit"),
                *with_error("worst_exit_stage"),
                *with_error("coverage_same_rows"),
                f"{np.mean([line['width_stages'][-1] for line in of_set]):.2f}",
                mean("width_adaptive", "{:.2f}"),
            ]
        )
        n_draws = sum(line["draws"] for line in of_set)
        violations = sum(line["violations"] for line in of_set)
        promises.append(
            [
                name,
                of_set[0]["max_risk"],
                mean("risk_all_leave"),
                mean("certified", "{:.2f}"),
                *with_error("cost"),
                mean("risk"),
                f"{violations / n_draws:.3f}",
                f"{int(binom.ppf(0.999, n_draws, DELTA)) / n_draws:.3f}",
            ]
        )
    tables = {
        "intervals_stages": (["set", "stage", "coverage", "width"], stages),
        "intervals_exits": (
            [
                "set",
                "early exit",
                "worst stage of exit",
                "same rows",
                "width",
                "width by spread",
            ],
            exits,
        ),
        "intervals_promises": (
            [
                "set",
                "max_risk",
                "risk of all leaving first",
                "certified",
                "cost",
                "mean risk",
                "violations",
                "allowed",
            ],
            promises,
        ),
    }
    for stem, (columns, rows) in tables.items():
        write_table(folder / f"{stem}.csv", columns, rows)


if __name__ == "__main__":
    parser = command_of_tables(__doc__, "intervals.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=100)
    args = parser.parse_args()
    if args.report:
        report(read(args.output), args.tables)
    else:
        run(args.seeds, args.draws, args.output)
