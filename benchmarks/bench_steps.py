"""How few optimizer steps are enough: accuracy and time by steps and batch size.

Run as ``python -m benchmarks.bench_steps --data DIR``, and with ``--report`` to print
the tables of what is in the file of results; what is in it is not run again. All
settings that are not varied are the defaults. Scores are those of validation rows; the
test rows of the other benchmarks are not looked at. Letter comes from the folder of
--data, or of the environment variable SKBDISTIL_DATA; without it, it is left out.

``--what ranks`` asks whether short fits rank the candidates of a search as full fits
do, and ``--what last`` what a fit of the last stages costs beside one of all.
"""

import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from sklearn.base import is_classifier
from sklearn.datasets import make_classification, make_friedman1
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import ParameterGrid, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy_cost.results import append
from benchmarks.bench_teachers import DATA as TEACHERS_DATA
from benchmarks.bench_teachers import DataSet
from benchmarks.records import command, quietly, read, standard_error, table, with_error
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting._plan import auto_batch_size
from skbdistil._boosting._rows import n_batches
from skbdistil.students import MLP


class Variant(NamedTuple):
    """Optimizer steps of a student at least, and multiple of the batch size."""

    steps: int
    batch: int = 1

    def __str__(self):
        return f"{self.steps}" + f", batch x {self.batch}" * (self.batch != 1)


DEFAULT = Variant(1000)
OTHERS = [
    *(Variant(steps) for steps in (2000, 500, 250, 125)),
    Variant(500, batch=2),
    Variant(250, batch=4),
]
# The dearest last: a run that was stopped is of use.
PASSES = [[DEFAULT, *OTHERS[1:]], OTHERS[:1]]
# What a set may lose in the mean of the stages, in points, beyond two standard errors.
ALLOWED = 0.3
N_STAGES = 6

# Candidates of a search, and the steps at which they are ranked.
GRID = {
    "student": [partial(MLP, hidden=(width,)) for width in (8, 32)],
    "learning_rate": [0.003, 0.01, 0.03],
    "connection": [None, "dense"],
}
RANK_STEPS = [1000, 250, 125]
# Students that are kept where the last stages are trained anew.
KEPT = [3, 5]


def network(seed):
    return make_pipeline(
        StandardScaler(),
        MLPClassifier(
            (128, 128), early_stopping=True, learning_rate_init=0.003, random_state=seed
        ),
    )


def table_of(n_train, n_features, folder):
    X, y = make_classification(
        n_train + 4000,
        n_features,
        n_informative=n_features * 2 // 3,
        n_classes=3,
        class_sep=0.8,
        random_state=0,
    )
    return DataSet(np.float32(X), y, n_train, one_unit=True)


def letter(folder):
    """Without the rows that others test on."""
    with np.load(Path(folder) / "letter.npz", allow_pickle=False) as file:
        return DataSet(np.float32(file["X_train"]), file["y_train"], 10_000, True)


def friedman(folder):
    X, y = make_friedman1(5000, noise=1.0, random_state=0)
    return DataSet(np.float32(X), y, 1000, one_unit=True)


class Case(NamedTuple):
    """Rows, and the teacher by seed; None for the default one."""

    load: object
    teacher: object = None
    estimator: type = BDistilClassifier


CASES = {
    "1125 x 7": Case(partial(table_of, 1125, 7)),
    "10000 x 20": Case(partial(table_of, 10_000, 20)),
    "breast cancer": Case(TEACHERS_DATA["breast_cancer"]),
    "digits": Case(TEACHERS_DATA["digits"]),
    "digits, network": Case(TEACHERS_DATA["digits"], network),
    "ellipsoid, network": Case(TEACHERS_DATA["ellipsoid"], network),
    "cube, network": Case(TEACHERS_DATA["cube"], network),
    "letter, 2000 rows": Case(TEACHERS_DATA["letter"]),
    "letter, 10000 rows": Case(letter),
    "Friedman 1": Case(friedman, estimator=BDistilRegressor),
}
RANKED = ["1125 x 7", "digits"]


def split(case, seed, folder):
    """Training and validation rows; the rest are test rows elsewhere."""
    data = case.load(folder)
    X, y = data.X, data.y
    stratified = is_classifier(case.estimator())
    X, X_rest, y, y_rest = train_test_split(
        X,
        y,
        train_size=data.n_train,
        random_state=seed,
        stratify=y if stratified else None,
    )
    X_valid, _, y_valid, _ = train_test_split(
        X_rest,
        y_rest,
        test_size=0.5,
        random_state=seed,
        stratify=y_rest if stratified else None,
    )
    return X, y, X_valid, y_valid


def fitted(case, rows, teacher, seed, variant, **parameters):
    """An estimator, and the seconds of processor time that its fit took."""
    X, y, *_ = rows
    batch_size = min(len(X), variant.batch * auto_batch_size(len(X)))
    estimator = case.estimator(
        None if teacher is None else FrozenEstimator(teacher),
        batch_size=batch_size,
        max_epochs=-(-variant.steps // n_batches(len(X), batch_size)),
        random_state=seed,
        **parameters,
    )
    began = time.process_time()
    estimator.fit(X, y)
    return estimator, time.process_time() - began


def record(estimator, seconds, rows):
    _, _, X, y = rows
    losses = None
    if is_classifier(estimator):
        losses = [
            log_loss(y, proba, labels=estimator.classes_)
            for proba in estimator.staged_predict_proba(X)
        ]
    return {
        "rows": len(rows[0]),
        "batch_size": estimator.batch_size_,
        "epochs": estimator.max_epochs_,
        "students": estimator.n_estimators_,
        "seconds": round(seconds, 3),
        "score": [round(score, 5) for score in estimator.staged_score(X, y)],
        "log_loss": losses and [round(loss, 5) for loss in losses],
    }


def keys(records, what, *names):
    """Lines of one experiment, by what was run."""
    return {
        tuple(line[name] for name in names): line
        for line in records
        if line["what"] == what
    }


def run_steps(path, folder, n_seeds):
    done = keys(read(path), "steps", "case", "seed", *Variant._fields)
    for variants in PASSES:
        for seed, (name, case) in product(range(n_seeds), CASES.items()):
            left = [
                variant for variant in variants if (name, seed, *variant) not in done
            ]
            if not left or (name.startswith("letter") and not folder):
                continue
            rows = split(case, seed, folder)
            teacher = case.teacher and case.teacher(seed).fit(*rows[:2])
            for variant in left:
                found = fitted(case, rows, teacher, seed, variant)
                key = {"case": name, "seed": seed, **variant._asdict()}
                append(path, [{"what": "steps", **key, **record(*found, rows)}])
            print(seed, name, flush=True)


def run_ranks(path, folder, n_seeds):
    grid = list(ParameterGrid(GRID))
    done = keys(read(path), "ranks", "case", "seed", "steps")
    for seed, name, steps in product(range(n_seeds), RANKED, RANK_STEPS):
        if (name, seed, steps) in done:
            continue
        rows = split(CASES[name], seed, folder)
        lines = []
        for number, parameters in enumerate(grid):
            parameters = {**parameters, "n_estimators": 4}
            found = fitted(CASES[name], rows, None, seed, Variant(steps), **parameters)
            key = {"case": name, "seed": seed, "steps": steps, "candidate": number}
            lines.append({"what": "ranks", **key, **record(*found, rows)})
        append(path, lines)
        print(seed, name, steps, flush=True)


def run_last(path, folder, n_seeds):
    done = keys(read(path), "last", "case", "seed")
    for seed, name in product(range(n_seeds), RANKED):
        if (name, seed) in done:
            continue
        rows = split(CASES[name], seed, folder)
        teacher = ExtraTreesClassifier(min_samples_leaf=2, random_state=seed)
        teacher.fit(*rows[:2])
        run = partial(fitted, CASES[name], rows, teacher, seed, DEFAULT)
        full, seconds = run()
        times = [run(warm_start=FrozenEstimator(full[:k]))[1] for k in KEPT]
        key = {"case": name, "seed": seed}
        append(path, [{"what": "last", **key, "full": seconds, "behind": times}])
        print(seed, name, flush=True)


def stages(line, what):
    """Numbers of all stages; where boosting has stopped, those of the last one."""
    found = line[what]
    return found + [found[-1]] * (N_STAGES - len(found))


def report(records):
    """Print the tables of the documentation."""
    by_key = keys(records, "steps", "case", "seed", *Variant._fields)

    def differences(case, variant, what):
        """Against the default, of all stages, in 100ths, one row for each seed."""
        found = []
        for (name, seed, *of_line), line in by_key.items():
            default = by_key.get((name, seed, *DEFAULT))
            if name == case and tuple(of_line) == variant and default and line[what]:
                difference = np.subtract(stages(line, what), stages(default, what))
                found.append(100 * difference)
        return np.array(found)

    header = ["", *map(str, OTHERS)]
    for what, stage in product(("score", "log_loss"), ("mean", 1, N_STAGES)):
        rows, columns = [], {variant: [] for variant in OTHERS}
        for case in CASES:
            cells = [case]
            for variant, means in columns.items():
                found = differences(case, variant, what)
                if len(found) < 2:
                    cells.append("")
                    continue
                found = found.mean(axis=1) if stage == "mean" else found[:, stage - 1]
                cells.append(with_error(found, 2, sign="+"))
                means.append((found.mean(), standard_error(found)))
            rows.append(cells)
        in_mean, too_low = ["mean"], ["sets that lose too much"]
        for means in columns.values():
            if not means:
                in_mean.append("")
                too_low.append("")
                continue
            mean, errors = np.transpose(means)
            error = np.sqrt((errors**2).sum()) / len(errors)
            in_mean.append(f"{mean.mean():+.2f} ± {error:.2f}")
            too_low.append(int((-mean - 2 * errors > ALLOWED).sum()))
        rows += [in_mean, too_low] if what == "score" else [in_mean]
        unit = "points" if what == "score" else "100ths"
        where = "the mean of the stages" if stage == "mean" else f"stage {stage}"
        table(f"{what} against {DEFAULT} steps at {where}, in {unit}", header, rows)
    rows = []
    for case in CASES:
        cells = [case]
        for variant in (DEFAULT, *OTHERS):
            found = [
                (line["seconds"], line["students"])
                for (name, _, *of_line), line in by_key.items()
                if name == case and tuple(of_line) == variant
            ]
            if not found:
                cells.append("")
                continue
            seconds, students = np.mean(found, axis=0)
            cells.append(f"{seconds:.1f} ({students:.1f})")
        rows.append(cells)
    table("Seconds of a fit, and students", ["", str(DEFAULT), *header[1:]], rows)
    report_ranks(keys(records, "ranks", "case", "steps", "seed", "candidate"))
    report_last(keys(records, "last", "case", "seed"))


def report_ranks(lines):
    """How short fits rank the candidates, and what the one they choose is worth."""
    found = {}
    for (*key, _), line in sorted(lines.items()):
        found.setdefault(tuple(key), []).append((line["score"][-1], line["seconds"]))
    rows = []
    for case, steps in product(RANKED, RANK_STEPS):
        values = []
        for (name, n_steps, seed), full in found.items():
            # Full fits are compared with those of the next seed.
            is_full = steps == RANK_STEPS[0]
            other = found.get((case, steps, seed + 1 if is_full else seed))
            if (name, n_steps) == (case, RANK_STEPS[0]) and other:
                full_score, full_seconds = np.transpose(full)
                score, seconds = np.transpose(other)
                lost = full_score.max() - full_score[score.argmax()]
                correlation = spearmanr(score, full_score)[0]
                share = seconds.sum() / full_seconds.sum()
                values.append((correlation, 100 * lost, share))
        if values:
            correlation, lost, share = np.transpose(values)
            cells = with_error(correlation, 2), with_error(lost, 2)
            rows.append([case, steps, *cells, f"{share.mean():.2f}"])
    table(
        f"Candidates by short fits, and by {RANK_STEPS[0]} steps on another split: "
        "rank correlation, points of validation accuracy lost, share of the time",
        ["", "steps", "rank correlation", "lost", "time"],
        rows,
    )


def report_last(lines):
    """What a fit of the last stages takes, as a share of the fit of all."""
    rows = []
    for case in RANKED:
        shares = [
            np.divide(line["behind"], line["full"])
            for (name, _), line in lines.items()
            if name == case
        ]
        if shares:
            rows.append(
                [case, *(with_error(share, 2) for share in np.transpose(shares))]
            )
    header = [f"{N_STAGES - k} of {N_STAGES}" for k in KEPT]
    table("Time of a fit of the last stages, of that of all", ["", *header], rows)


if __name__ == "__main__":
    runs = {"steps": run_steps, "ranks": run_ranks, "last": run_last}
    parser = command(__doc__, "steps.jsonl")
    parser.add_argument("--what", choices=list(runs), default="steps")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        with quietly():
            runs[args.what](args.results, args.data, args.seeds)
