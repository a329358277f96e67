"""A final model as the last stage: what deferral costs, and whether it keeps its word.

    python -m benchmarks.bench_deferral trade    # accuracy and cost by share deferred
    python -m benchmarks.bench_deferral promise  # how often the promise is broken
    python -m benchmarks.bench_deferral start    # where a selective sequence begins
    python -m benchmarks.bench_deferral monitor  # false alarms, and delay after a drift
    python -m benchmarks.bench_deferral weights  # when the bets of a monitor begin
    python -m benchmarks.bench_deferral tables   # CSV files for the documentation

Results are lines of JSON in --output; what is in the file is not run again. ``trade``
reads letter and Fashion-MNIST from the folder of --data, or of the environment variable
SKBDISTIL_DATA; without it they are left out.
"""

import argparse
import json
import os
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import binom
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from benchmarks.check_guarantee import N_ROWS, N_TEST, N_TRAINING, STUDENTS, allowed
from benchmarks.records import write_table
from skbdistil import BDistilClassifier, monitoring
from skbdistil._exit_calibration import (
    certified_point,
    exit_path,
    first_point,
    shared_thresholds,
)
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import DriftWarning, NothingCertifiedWarning
from skbdistil.monitoring import DeferralMonitor
from skbdistil.students import MLP

RISKS = ["marginal", "selective"]
TARGETS = ["agreement", "accuracy", "error"]
DELTA = 0.1
# Price of the final model, in full passes of all students.
PRICE = 50


class Lines:
    """Results in a file, by what was run."""

    def __init__(self, file):
        self.file = file
        self.known = []
        if file.exists():
            text = file.read_text(encoding="utf-8")
            self.known = [json.loads(line) for line in text.splitlines()]

    def has(self, **key):
        return any(key.items() <= line.items() for line in self.known)

    def add(self, **line):
        line = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in line.items()
        }
        self.known.append(line)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        print(line, flush=True)


def fitted(estimator, X, y=None):
    """Fit without the warning that nothing is certified, which the results show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingCertifiedWarning)
        return estimator.fit(X, y)


def judged(early, local, final, y, stages):
    """Share deferred, realised risk and accuracy, by the labels of each stage."""
    n_students, n_samples = local.shape
    is_local = stages <= n_students
    labels = np.array([*local, final])[stages - 1, np.arange(n_samples)]
    is_lost = {
        "agreement": labels != final,
        "accuracy": (labels != y) & (final == y),
        "error": labels != y,
    }[early.target] & is_local
    risk = is_lost.mean()
    if early.risk == "selective":
        risk = is_lost.sum() / max(is_local.sum(), 1)
    return 1 - is_local.mean(), risk, (labels == y).mean()


# What deferral costs


def stored(name, folder):
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        X = np.concatenate([file["X_train"], file["X_test"]])
        y = np.concatenate([file["y_train"], file["y_test"]])
    return np.float32(X).reshape(len(X), -1), y


def synthetic(folder):
    return make_classification(
        20_000, 12, n_informative=8, n_classes=4, flip_y=0.02, random_state=0
    )


# Loader and width of the students.
DATA = {
    "synthetic": (synthetic, 8),
    "letter": (partial(stored, "letter"), 32),
    "fashion_mnist": (partial(stored, "fashion_mnist"), 16),
}
MAX_DROPS = [0.01, 0.02, 0.05]
TABULATED = 0.02


def trade(lines, n_seeds, folder):
    for (name, (load, width)), seed in product(DATA.items(), range(n_seeds)):
        if lines.has(run="trade", data=name, seed=seed, last=True):
            continue
        if name != "synthetic" and not (folder and (folder / f"{name}.npz").exists()):
            continue
        X, y = load(folder)
        # At random and not by class, as the promise needs.
        X_train, X_rest, y_train, y_rest = train_test_split(
            X, y, train_size=0.5, random_state=seed
        )
        X_held_out, X_test, y_held_out, y_test = train_test_split(
            X_rest, y_rest, test_size=0.5, random_state=seed
        )
        if name == "fashion_mnist":
            X_train, y_train = X_train[:15_000], y_train[:15_000]
        teacher = ExtraTreesClassifier(
            100, min_samples_leaf=2, n_jobs=1, random_state=seed
        ).fit(X_train, y_train)
        clf = BDistilClassifier(
            FrozenEstimator(teacher),
            student=partial(MLP, hidden=(width,)),
            n_estimators=4,
            max_epochs=30,
            learning_rate=0.005,
            edge_tol=np.inf,
            random_state=seed,
        ).fit(X_train, y_train)
        full_cost = clf.stage_costs_.cumulative_macs[-1]
        local = np.array(list(clf.staged_predict(X_test)))
        # The final model is asked once, not by each of the fits.
        final, on_held_out = teacher.predict(X_test), teacher.predict(X_held_out)
        for risk, target, max_drop in product(RISKS, TARGETS, MAX_DROPS):
            early = EarlyExitClassifier(
                FrozenEstimator(clf),
                target=target,
                risk=risk,
                max_drop=max_drop,
                delta=DELTA,
                final=lambda X, labels=on_held_out: labels,
                final_cost=float(PRICE * full_cost),
                random_state=seed,
            )
            fitted(early, X_held_out, y_held_out)
            stages = early.exit_stages(X_test)
            share, realised, accuracy = judged(early, local, final, y_test, stages)
            lines.add(
                run="trade",
                data=name,
                seed=seed,
                risk=risk,
                target=target,
                max_drop=max_drop,
                certified=early.best_index_ > 0,
                deferred=share,
                realised=realised,
                accuracy=accuracy,
                # As a share of asking the final model about all rows.
                cost=early.costs_[stages - 1].mean() / early.final_cost,
                accuracy_final=(final == y_test).mean(),
                accuracy_local=(local[-1] == y_test).mean(),
                last=(risk, target, max_drop)
                == (RISKS[-1], TARGETS[-1], MAX_DROPS[-1]),
            )


# Whether the promise is kept


def promise(lines, n_draws):
    """True risks over draws of the calibration rows, for each risk and loss."""
    X, y = make_classification(
        N_ROWS,
        8,
        n_informative=6,
        n_redundant=0,
        n_classes=4,
        flip_y=0.02,
        random_state=0,
    )
    training, test = np.split(np.arange(N_TRAINING + N_TEST), [N_TRAINING])
    clf = clone(STUDENTS).fit(X[training], y[training])
    # Other than the teacher of the students, and better.
    final = ExtraTreesClassifier(30, min_samples_leaf=2, random_state=1)
    final.fit(X[-20_000:], y[-20_000:])
    local = np.array(list(clf.staged_predict(X[test])))
    answers = final.predict(X[test])
    for risk, target, thresholds in product(RISKS, TARGETS, ["shared", "stage"]):
        key = {"risk": risk, "target": target, "thresholds": thresholds}
        if lines.has(run="promise", **key):
            continue
        max_drop = 0.2 if target == "error" else 0.1
        n_rows = 400
        found = []
        for draw in range(n_draws):
            begin = N_TRAINING + N_TEST + draw * n_rows
            rows = slice(begin, begin + n_rows)
            early = EarlyExitClassifier(
                FrozenEstimator(clf),
                **key,
                max_drop=max_drop,
                delta=DELTA,
                final=final,
                final_cost=1.0,
                random_state=draw,
            )
            fitted(early, X[rows], y[rows])
            stages = early.exit_stages(X[test])
            share, realised, _ = judged(early, local, answers, y[test], stages)
            found.append((early.best_index_ > 0, share, realised))
        certified, shares, risks = np.transpose(found)
        broken = (risks > max_drop).mean()
        lines.add(
            run="promise",
            **key,
            rows=n_rows,
            max_drop=max_drop,
            delta=DELTA,
            draws=n_draws,
            certified=certified.mean(),
            deferred=shares.mean(),
            mean_risk=risks.mean(),
            broken=broken,
            standard_error=np.sqrt(broken * (1 - broken) / n_draws),
            allowed=allowed(DELTA, n_draws) / n_draws,
        )


# Where the sequence of tests for the selective risk begins


def by_number(path, n_samples, max_drop):
    """First point whose expected number answered is enough if none is lost."""
    n_answered = np.floor((1 - path.exits[:, -1]) * n_samples)
    enough = binom.cdf(0, n_answered, max_drop) <= DELTA
    return int(enough.argmax()) if enough.any() else len(enough)


def start(lines, n_draws):
    """Share of the rows that is answered, for two beginnings of the sequence."""
    begins = {
        "number answered": by_number,
        "surest": partial(first_point, risk="selective"),
    }
    for n_rows, max_drop in ((300, 0.05), (900, 0.05), (900, 0.02), (3000, 0.02)):
        if lines.has(run="start", rows=n_rows, max_drop=max_drop):
            continue
        rng = np.random.default_rng(0)
        found = {name: [] for name in begins}
        for _ in range(n_draws):
            value = rng.random(n_rows)[np.newaxis]
            is_lost = rng.random(n_rows) < 0.004 + 0.6 * (1 - value[0]) ** 6
            losses = np.array([is_lost, np.zeros(n_rows, dtype=bool)])
            order, tested = slice(0, n_rows // 3), slice(n_rows // 3, None)
            thresholds = shared_thresholds(value[:, order])
            ordered, path = (
                exit_path(
                    thresholds, value[:, r], losses[:, r], ~losses[:, r], [0.0, 1.0]
                )
                for r in (order, tested)
            )
            n_tested = n_rows - n_rows // 3
            for name, begin in begins.items():
                point = certified_point(
                    path,
                    n_tested,
                    max_drop,
                    DELTA,
                    risk="selective",
                    first=begin(ordered, n_tested, max_drop),
                )
                found[name].append(path.exits[point, 0])
        for name, shares in found.items():
            lines.add(
                run="start",
                rows=n_rows,
                max_drop=max_drop,
                begins=name,
                draws=n_draws,
                answered=np.mean(shares),
                nothing=np.mean(np.array(shares) == 0),
            )


# The monitor


def monitor(lines, n_runs):
    """Alarms of monitors that are looked at after each audited row."""
    max_drop, horizon = 0.05, 2000
    for before, after, drift_at in (
        (0.05, 0.05, 0),  # at the promise itself: all alarms are false
        (0.03, 0.03, 0),
        (0.03, 0.1, 0),
        (0.03, 0.1, 1000),
        (0.03, 0.2, 0),
        (0.03, 0.2, 1000),
    ):
        key = {"before": before, "after": after, "drift_at": drift_at}
        if lines.has(run="monitor", **key):
            continue
        rng = np.random.default_rng(0)
        alarms, fixed_alarms, delays, missed = [], [], [], []
        for _ in range(n_runs):
            risks = np.where(np.arange(horizon) < drift_at, before, after)
            losses = rng.random(horizon) < risks
            watched = DeferralMonitor(max_drop, DELTA)
            alarm, is_missed = None, False
            for number, is_lost in enumerate(losses, start=1):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DriftWarning)
                    watched.update([is_lost])
                if watched.drift_ and alarm is None:
                    alarm = number
                if before == after and number % 10 == 0:
                    low, high = watched.interval()
                    is_missed |= not low <= after <= high
                if alarm is not None and before != after:
                    break
            # What a test of a fixed number of rows says if it is repeated.
            counts = np.arange(1, horizon + 1)
            repeated = binom.sf(np.cumsum(losses) - 1, counts, max_drop) <= DELTA
            fixed_alarms.append(repeated.any())
            is_false = alarm is not None and (before == after or alarm <= drift_at)
            alarms.append(is_false)
            missed.append(is_missed)
            if before != after and not is_false:
                delays.append(np.inf if alarm is None else alarm - drift_at)
        rate = np.mean(alarms)
        lines.add(
            run="monitor",
            **key,
            max_drop=max_drop,
            delta=DELTA,
            runs=n_runs,
            false_alarms=rate,
            standard_error=np.sqrt(rate * (1 - rate) / n_runs),
            fixed_test_alarms=np.mean(fixed_alarms) if before == after else None,
            interval_missed=np.mean(missed) if before == after else None,
            found=np.mean(np.isfinite(delays)) if delays else None,
            median_delay=float(np.median(delays)) if delays else None,
            ninetieth_delay=float(np.quantile(delays, 0.9, method="higher"))
            if delays
            else None,
        )


def weights(lines, n_runs):
    """Delay after a drift by the weights of the rows that bets begin with."""
    horizon, max_drop = 2000, 0.05
    kept, lost = monitoring._log_factors(max_drop)
    row = np.arange(1, horizon + 1)
    begins = {
        "j ** -1.2": row**-monitoring._DECAY / monitoring._ZETA,
        "1 / (j (j + 1))": 1 / (row * (row + 1.0)),
        "first row": (row == 1).astype(float),
    }
    rng = np.random.default_rng(0)
    for drift_at, after in ((0, 0.1), (1000, 0.1), (1000, 0.2)):
        risks = np.where(row <= drift_at, 0.03, after)
        losses = rng.random((n_runs, horizon)) < risks
        for name, weight in begins.items():
            if lines.has(run="weights", begins=name, drift_at=drift_at, after=after):
                continue
            wealth = np.full((n_runs, len(kept)), -np.inf)
            alarms = np.full(n_runs, np.inf)
            with np.errstate(divide="ignore"):
                log_weight = np.log(weight)
            for number in range(horizon):
                factors = np.where(losses[:, number, np.newaxis], lost, kept)
                wealth = np.logaddexp(wealth, log_weight[number]) + factors
                evidence = np.logaddexp.reduce(wealth, axis=1) - np.log(len(kept))
                is_alarm = (evidence >= -np.log(DELTA)) & np.isinf(alarms)
                alarms[is_alarm] = number + 1
            delays = alarms[alarms > drift_at] - drift_at
            lines.add(
                run="weights",
                begins=name,
                drift_at=drift_at,
                after=after,
                runs=n_runs,
                median_delay=np.median(delays),
                found=np.isfinite(delays).mean(),
            )


# Tables of the documentation


def tables(lines, folder):
    found = [line for line in lines.known if line["run"] == "trade"]
    groups = sorted(
        {(row["data"], row["risk"], row["target"], row["max_drop"]) for row in found},
        key=lambda group: (list(DATA).index(group[0]), *group[1:]),
    )
    table = []
    for data, risk, target, max_drop in groups:
        if max_drop != TABULATED:
            continue
        key = {"data": data, "risk": risk, "target": target, "max_drop": max_drop}
        rows = [row for row in found if key.items() <= row.items()]

        def mean(name, rows=rows):
            values = [row[name] for row in rows]
            return f"{np.mean(values):.3f}"

        error = np.std([row["realised"] for row in rows], ddof=1) / np.sqrt(len(rows))
        above = sum(row["realised"] > max_drop for row in rows)
        table.append(
            [
                data,
                risk,
                target,
                mean("deferred"),
                f"{mean('realised')} ± {error:.3f}",
                f"{above}/{len(rows)}",
                mean("accuracy"),
                mean("accuracy_local"),
                mean("accuracy_final"),
                mean("cost"),
            ]
        )
    head = "data,risk,target,deferred,realised risk,above,accuracy,"
    head += "students,final,cost"
    write_table(folder / "deferral_trade.csv", head.split(","), table)
    head = "risk,target,thresholds,max_drop,certified,deferred,mean risk,broken,allowed"
    table = [
        [
            *(row[name] for name in ("risk", "target", "thresholds", "max_drop")),
            f"{row['certified']:.2f}",
            f"{row['deferred']:.2f}",
            f"{row['mean_risk']:.3f}",
            f"{row['broken']:.3f} ± {row['standard_error']:.3f}",
            f"{row['allowed']:.3f}",
        ]
        for row in lines.known
        if row["run"] == "promise"
    ]
    write_table(folder / "deferral_promise.csv", head.split(","), table)


SIMULATIONS = {"start": start, "monitor": monitor, "weights": weights}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["trade", "promise", "tables", *SIMULATIONS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SKBDISTIL_DATA") or None
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/deferral.jsonl")
    )
    args = parser.parse_args()
    known = Lines(args.output)
    if args.what == "trade":
        trade(known, args.seeds, args.data and Path(args.data))
    elif args.what == "tables":
        tables(known, Path("docs"))
    else:
        {"promise": promise, **SIMULATIONS}[args.what](known, args.draws)
