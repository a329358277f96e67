"""What students gain from a teacher: kinds of teachers, sets and ways to ask.

Run as ``python -m benchmarks.bench_teachers --results FILE``, and with ``--report`` to
print the tables of what is in the file. Four networks of 16 units are distilled from
each teacher, and compared with networks of the same cost that see labels only. Rows are
split into half to train on, a quarter to choose settings by (validation) and a quarter
to test on. The order is such that a run that was stopped is of use; what is in the file
is not run again. Letter comes from the folder of --data, or of the environment variable
SKBDISTIL_DATA; without it, it is left out.
"""

import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_wine,
    make_classification,
)
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.accuracy_cost.networks import (
    LabelLoss,
    add_students,
    empty_ensemble,
    ensemble_macs,
    nearest_width,
    one_hot,
    train,
)
from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, standard_error, table, with_error
from skbdistil import BDistilClassifier
from skbdistil.augmentation import Munge, Spunge
from skbdistil.datasets import make_cube, make_ellipsoid
from skbdistil.export import to_onnx
from skbdistil.latency import measure_latency
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

STUDENT = partial(MLP, hidden=(16,))
N_STAGES = 4
BATCH_SIZE = 64
# Optimizer steps of every training, and the fewest epochs.
N_STEPS = 400
MIN_EPOCHS = 8
LEARNING_RATE = 0.01
# Of the probabilities of a teacher, which may be 0, as the package takes them.
SMOOTHING = 1e-3
# More classes than this times so many rows are too much for the Gaussian process.
MAX_CLASSES_GAUSSIAN = 10

SCORES = ["accuracy", "log_loss", "auc"]
FACTOR = 3

# Settings of the estimator, by variant.
VARIANTS = {
    "default": {},
    "in-sample": {"teacher_cv": None, "label_mix": 0.0},
    "out-of-fold, half labels": {"teacher_cv": 5, "label_mix": 0.5},
    "in-sample, half labels": {"teacher_cv": None, "label_mix": 0.5},
    "in-sample, mix .25": {"teacher_cv": None, "label_mix": 0.25},
    "out-of-fold": {"teacher_cv": 5, "label_mix": 0.0},
    "default + munge": {"augment": Munge(factor=FACTOR)},
    "default + spunge": {"augment": Spunge(factor=FACTOR)},
}
# What the default comes to, by the kind of the scores that it has taken.
SAME_AS_DEFAULT = {
    "in-sample": "in-sample",
    "out-of-fold": "out-of-fold, half labels",
}
# Networks that see labels only: as many epochs as a student, or as all students so far.
LABELS = {"labels": False, "labels, longer": True}
FIRST = ["labels", "default", "in-sample", "out-of-fold, half labels"]


class DataSet(NamedTuple):
    """Rows, labels, share of rows to train on, and what is done to rows.

    `one_unit` says whether all features have one unit, so that distances between rows
    need no scaling. `numbers` makes numbers of a table with gaps and categories; None
    where there are numbers only.
    """

    X: object
    y: np.ndarray
    n_train: int
    one_unit: bool
    numbers: object = None


def letter(folder):
    with np.load(Path(folder) / "letter.npz", allow_pickle=False) as file:
        X = np.concatenate([file["X_train"], file["X_test"]])
        y = np.concatenate([file["y_train"], file["y_test"]])
    rows = np.random.default_rng(0).permutation(len(X))[:6000]
    return DataSet(np.float32(X[rows]), y[rows], 2000, one_unit=True)


def of_sklearn(load, one_unit, folder):
    X, y = load(return_X_y=True)
    return DataSet(np.float32(X), y, len(X) // 2, one_unit)


def generated(make, folder):
    """Half as many rows to train on as for each of validation and test."""
    X, y = make(n_samples=5500, random_state=0)
    return DataSet(np.float32(X), y, 1500, one_unit=True)


def mixed(folder):
    """Six numbers and four categories, a tenth missing, and a rule with noise."""
    rng = np.random.default_rng(0)
    n_samples = 5500
    numbers = rng.normal(size=(n_samples, 6))
    numbers[:, 1] = np.exp(numbers[:, 1])
    codes = np.stack([rng.integers(n, size=n_samples) for n in (3, 4, 5, 6)], axis=1)
    effects = rng.normal(size=(4, 6))
    score = (
        numbers[:, 0] * np.where(codes[:, 0] == 0, 2.0, -1.0)
        + np.minimum(numbers[:, 1], 3)
        + np.abs(numbers[:, 2])
        - numbers[:, 3] * numbers[:, 4]
        + effects[np.arange(4), codes].sum(axis=1)
        + rng.normal(scale=0.7, size=n_samples)
    )
    y = np.searchsorted(np.quantile(score, [0.4, 0.75]), score)
    numbers[rng.random(numbers.shape) < 0.1] = np.nan
    X = pd.DataFrame(numbers, columns=[f"number_{i}" for i in range(6)])
    for i, column in enumerate(codes.T):
        known = pd.Series([f"value_{code}" for code in column])
        X[f"category_{i}"] = known.mask(rng.random(n_samples) < 0.1).astype("category")
    transform = ColumnTransformer(
        [
            (
                "numbers",
                make_pipeline(
                    SimpleImputer(strategy="median", add_indicator=True),
                    StandardScaler(),
                ),
                list(X.columns[:6]),
            ),
            (
                "categories",
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                list(X.columns[6:]),
            ),
        ]
    )
    return DataSet(X, y, 1500, one_unit=False, numbers=transform)


DATA = {
    "classification": partial(
        generated,
        partial(
            make_classification,
            n_features=20,
            n_informative=8,
            n_classes=3,
            class_sep=0.7,
        ),
    ),
    "wine": partial(of_sklearn, load_wine, False),
    "breast_cancer": partial(of_sklearn, load_breast_cancer, False),
    "mixed": mixed,
    "digits": partial(of_sklearn, load_digits, True),
    "ellipsoid": partial(generated, partial(make_ellipsoid, n_features=16)),
    "cube": partial(generated, partial(make_cube, n_features=16)),
    "letter": letter,
}


class Skipped(Exception):
    """Why a teacher is left out."""


def boosted_trees(data, seed):
    model = HistGradientBoostingClassifier(
        max_iter=60,
        early_stopping=False,
        categorical_features="from_dtype",
        random_state=seed,
    )
    return model


def forest(data, seed):
    return _of_numbers(data, RandomForestClassifier(200, random_state=seed))


def neighbours(data, seed):
    model = KNeighborsClassifier(25, weights="distance")
    return _of_numbers(data, model, scaled=not data.one_unit)


def gaussian_process(data, seed):
    n_classes = len(np.unique(data.y))
    if n_classes > MAX_CLASSES_GAUSSIAN:
        raise Skipped(f"{n_classes} classes take too long")
    # The kernel is not searched: that takes minutes a fit.
    kernel = ConstantKernel(10.0) * RBF(np.sqrt(data.X.shape[1]))
    model = GaussianProcessClassifier(kernel, optimizer=None, random_state=seed)
    return _of_numbers(data, model, scaled=True)


def network_ensemble(data, seed):
    networks = [
        (
            f"network_{i}",
            MLPClassifier(
                (128,), learning_rate_init=0.005, max_iter=50, random_state=3 * seed + i
            ),
        )
        for i in range(3)
    ]
    return _of_numbers(data, VotingClassifier(networks, voting="soft"), scaled=True)


def foundation_model(data, seed):
    reasons = []
    for package, name in [
        ("tabpfn", "TabPFNClassifier"),
        ("tabicl", "TabICLClassifier"),
    ]:
        try:
            model = getattr(__import__(package), name)(random_state=seed)
            model = _of_numbers(data, model)
            # Weights may be missing.
            clone(model).fit(data.X[:50], data.y[:50])
        except Exception as error:
            reasons.append(f"{package}: {type(error).__name__}: {error}")
        else:
            return model
    raise Skipped("; ".join(reasons))


def _of_numbers(data, model, scaled=False):
    steps = [clone(data.numbers)] if data.numbers is not None else []
    steps += [StandardScaler()] if scaled else []
    return make_pipeline(*steps, model) if steps else model


TEACHERS = {
    "boosted trees": boosted_trees,
    "forest": forest,
    "nearest neighbours": neighbours,
    "Gaussian process": gaussian_process,
    "network ensemble": network_ensemble,
    "foundation model": foundation_model,
}


class Remembering(ClassifierMixin, BaseEstimator):
    """A classifier that keeps what it has said in a folder, since many variants ask.

    Parameters
    ----------
    estimator : estimator
        Its random state must be an int.
    folder : pathlib.Path
    """

    seconds = 0.0

    def __init__(self, estimator, folder):
        self.estimator = estimator
        self.folder = folder

    def fit(self, X, y):
        self.rows_ = X, y
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        self.key_ = joblib.hash((self.estimator, X, y))
        self.fitted_ = None
        return self

    def predict_proba(self, X):
        began = time.perf_counter()
        file = self.folder / f"{joblib.hash((self.key_, X))}.npy"
        if not file.exists():
            if self.fitted_ is None:
                self.fitted_ = clone(self.estimator).fit(*self.rows_)
            np.save(file, self.fitted_.predict_proba(X))
        proba = np.load(file)
        Remembering.seconds += time.perf_counter() - began
        return proba

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class Task(NamedTuple):
    """One data set and seed: its rows in three parts."""

    data: DataSet
    seed: int
    train: tuple
    valid: tuple
    test: tuple

    @classmethod
    def of(cls, data, seed):
        _, y = np.unique(data.y, return_inverse=True)
        X, X_rest, y, y_rest = train_test_split(
            data.X, y, train_size=data.n_train, random_state=seed, stratify=y
        )
        X_valid, X_test, y_valid, y_test = train_test_split(
            X_rest, y_rest, test_size=0.5, random_state=seed, stratify=y_rest
        )
        return cls(data, seed, (X, y), (X_valid, y_valid), (X_test, y_test))

    def epochs(self, n_rows):
        return max(MIN_EPOCHS, round(N_STEPS * BATCH_SIZE / n_rows))

    def scores(self, staged):
        """Scores of all stages on validation and test rows, rounded."""
        return {
            part: [
                [round(score, 5) for score in scores_of(y, proba)]
                for proba in staged(X)
            ]
            for part, (X, y) in (("valid", self.valid), ("test", self.test))
        }


def scores_of(y, proba):
    """Accuracy, log loss and area under the ROC curve, one class against the rest."""
    k = proba.shape[1]
    auc = (
        roc_auc_score(y, proba[:, 1])
        if k == 2
        else roc_auc_score(y, proba, multi_class="ovr", labels=np.arange(k))
    )
    loss = log_loss(y, proba, labels=np.arange(k))
    return accuracy_score(y, proba.argmax(axis=1)), float(loss), float(auc)


def smoothed(proba):
    return (1 - SMOOTHING) * proba + SMOOTHING / proba.shape[1]


def run_labels(task, longer):
    """For each stage, one network of the cost of the students so far."""
    X, y = task.train
    transform = task.data.numbers
    as_numbers = np.float32
    if transform is not None:
        transform = clone(transform).fit(X)

        def as_numbers(X):
            return np.float32(transform.transform(X))

    x, targets = as_numbers(X), one_hot(y)
    n_classes = targets.shape[1]
    macs = partial(ensemble_macs, x.shape[1:], n_classes)
    networks = []
    for stage, cost in enumerate(macs(STUDENT, N_STAGES), start=1):
        width = nearest_width(cost, lambda n: macs(partial(MLP, hidden=(n,)), 1)[-1])
        network = empty_ensemble(x, n_classes)
        add_students(network, partial(MLP, hidden=(width,)), 1, task.seed)
        train(
            network,
            x,
            targets,
            LabelLoss(),
            seed=task.seed,
            max_epochs=task.epochs(len(x)) * (stage if longer else 1),
            batch_size=min(BATCH_SIZE, len(x)),
            learning_rate=LEARNING_RATE,
            device="cpu",
        )
        networks.append(network)

    @torch.inference_mode()
    def staged(X):
        rows = torch.from_numpy(as_numbers(X))
        return [torch.softmax(net(rows), dim=1).numpy() for net in networks]

    return task.scores(staged)


def distilled(task, teacher, settings):
    """Fitted students."""
    X, y = task.train
    n_rows = len(X) * (1 + FACTOR * ("augment" in settings))
    clf = BDistilClassifier(
        teacher,
        student=STUDENT,
        student_transform=task.data.numbers,
        n_estimators=N_STAGES,
        max_epochs=task.epochs(n_rows),
        batch_size=min(BATCH_SIZE, len(X)),
        learning_rate=LEARNING_RATE,
        random_state=task.seed,
        device="cpu",
        **settings,
    )
    return clf.fit(X, y)


def measure(clf, X):
    """Microseconds a row on one thread, of the estimator, the module and ONNX."""
    rows = np.resize(np.arange(len(X)), 2000)
    X = X.iloc[rows] if hasattr(X, "iloc") else X[rows]
    predicts = {"estimator": (clf.predict_proba, X)}
    x = X if clf.student_transform_ is None else clf.student_transform_.transform(X)
    x = np.float32(x)
    predicts["module"] = clf.ensemble_, torch.from_numpy(x)
    with tempfile.TemporaryDirectory() as folder:
        if clf.student_transform_ is None:
            to_onnx(clf, Path(folder) / "onnx")
            session = ProgressiveSession(Path(folder) / "onnx", n_threads=1)
            predicts["session"] = session.predict_proba, x
        found = {}
        for (name, (predict, rows)), size in itertools.product(
            predicts.items(), (1, 1000)
        ):
            latency = measure_latency(
                predict,
                rows,
                batch_size=size,
                n_threads=1,
                n_repeats=200 if size == 1 else 20,
            )
            found[f"{name}, {size}"] = round(1e6 * latency.median, 2)
    return found


def key_of(record):
    return tuple(record[name] for name in ("dataset", "teacher", "variant", "seed"))


def read(path):
    """Records by their key; half a line that a killed run has left is left out."""
    records = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                print(f"not JSON, left out: {line[:60]}")
            else:
                records[key_of(record)] = record
    return records


def order(n_seeds):
    """Seed, set, teacher and variants, what matters most first."""
    rest = [name for name in [*LABELS, *VARIANTS] if name not in FIRST]
    phases = [(seed, FIRST) for seed in range(n_seeds)]
    for seed in range(n_seeds):
        first = rest.index("default + munge")
        phases += [(seed, rest[:first]), (seed, rest[first:])]
    for seed, variants in phases:
        for name, teacher in itertools.product(DATA, TEACHERS):
            yield seed, name, teacher, variants


def run(path, folder, cache, n_seeds, deadline):
    done, tasks = read(path), {}

    def add(seed, dataset, teacher, variant, **values):
        record = {
            "dataset": dataset,
            "teacher": teacher,
            "variant": variant,
            "seed": seed,
            **values,
        }
        append(path, [record])
        done[key_of(record)] = record

    sets, skipped = {}, set()
    for name, load in DATA.items():
        if name == "letter" and not (folder and (Path(folder) / "letter.npz").exists()):
            print("letter: no file in the data folder, left out")
        else:
            sets[name] = load(folder)
    for seed, name, teacher_name, variants in order(n_seeds):
        if name not in sets or (name, teacher_name) in skipped:
            continue
        missing = [
            variant
            for variant in variants
            if (name, None if variant in LABELS else teacher_name, variant, seed)
            not in done
        ]
        if not missing:
            continue
        task = tasks.setdefault((name, seed), Task.of(sets[name], seed))
        for variant in set(missing) & set(LABELS):
            began = time.perf_counter()
            scores = run_labels(task, LABELS[variant])
            seconds = round(time.perf_counter() - began, 2)
            add(seed, name, None, variant, seconds=seconds, **scores)
        missing = [variant for variant in missing if variant in VARIANTS]
        if not missing:
            continue
        try:
            model = TEACHERS[teacher_name](sets[name], seed)
        except Skipped as reason:
            print(f"{name}, {teacher_name}, left out: {reason}", flush=True)
            skipped.add((name, teacher_name))
            continue
        teacher = Remembering(model, cache)
        if (name, teacher_name, "teacher", seed) not in done:
            Remembering.seconds = 0.0
            fitted = clone(teacher).fit(*task.train)
            scores = task.scores(lambda X, t=fitted: [smoothed(t.predict_proba(X))])
            seconds = round(Remembering.seconds, 2)
            add(seed, name, teacher_name, "teacher", seconds=seconds, **scores)
        for variant in missing:
            if (name, teacher_name, variant, seed) in done:
                continue  # the same as the default
            if time.time() > deadline:
                print("out of time", flush=True)
                return
            Remembering.seconds, began = 0.0, time.perf_counter()
            clf = distilled(task, teacher, VARIANTS[variant])
            values = {
                # Without what the teacher takes, which other variants may have paid.
                "seconds": round(time.perf_counter() - began - Remembering.seconds, 2),
                "teacher_score": round(clf.teacher_score_, 5),
                "kind": clf.teacher_score_kind_,
                "label_mix": clf.label_mix_,
                **task.scores(lambda X, clf=clf: list(clf.staged_predict_proba(X))),
            }
            if variant == "default":
                add(
                    seed,
                    name,
                    teacher_name,
                    SAME_AS_DEFAULT[clf.teacher_score_kind_],
                    **values,
                )
                if (name, None, "latency", 0) not in done:
                    found = measure(clf, task.test[0])
                    add(0, name, None, "latency", microseconds=found)
            add(seed, name, teacher_name, variant, **values)


class Results:
    """Records as arrays of shape (n_stages, n_scores).

    Parameters
    ----------
    records : dict
        As :func:`read` returns them.
    """

    def __init__(self, records):
        self.records = records
        self.cases = sorted(
            {
                (dataset, teacher, seed)
                for dataset, teacher, variant, seed in records
                if variant == "default"
            },
            key=lambda case: (
                list(DATA).index(case[0]),
                list(TEACHERS).index(case[1]),
                case[2],
            ),
        )
        self.teachers = [
            name for name in TEACHERS if any(case[1] == name for case in self.cases)
        ]

    def scores(self, case, variant, part):
        """Scores by stage; where boosting has stopped, those of the last stage."""
        dataset, teacher, seed = case
        key = dataset, None if variant in LABELS else teacher, variant, seed
        if key not in self.records:
            return None
        found = np.array(self.records[key][part])
        n_stages = 1 if variant == "teacher" else N_STAGES
        return found[np.minimum(np.arange(n_stages), len(found) - 1)]

    def gains(self, cases, variant, other, part):
        """Differences between two variants, of shape (n_cases, n_stages, n_scores)."""
        return np.array(
            [
                self.scores(case, variant, part) - self.scores(case, other, part)
                for case in cases
            ]
        )

    def complete(self, variants, part="valid"):
        """Cases that all of these variants have been run on."""
        return [
            case
            for case in self.cases
            if all(self.scores(case, name, part) is not None for name in variants)
        ]


def report(records):
    results = Results(records)
    by_set = [
        (
            (dataset, teacher),
            [case for case in results.cases if case[:2] == (dataset, teacher)],
        )
        for dataset, teacher in itertools.product(DATA, results.teachers)
    ]
    by_set = [(names, cases) for names, cases in by_set if cases]
    rows = []
    for names, cases in by_set:
        last = [
            np.array([results.scores(case, name, "test")[-1] for case in cases])
            for name in ("teacher", "labels", "default")
        ]
        rows.append(
            [
                *names,
                *(with_error(values[:, 0], 1, 100) for values in last),
                *(f"{values[:, 1].mean():.3f}" for values in last),
                {
                    results.records[(*cases[0][:2], "default", cases[0][2])]["kind"]
                }.pop(),
            ]
        )
    table(
        "Test rows, last stage: accuracy in % and log loss, means over seeds",
        [
            "set",
            "kind of teacher",
            "teacher",
            "labels",
            "default",
            "loss of teacher",
            "of labels",
            "of default",
            "scores of the teacher",
        ],
        rows,
    )

    name = ["accuracy in points", "log loss", "area under the curve in points"]
    units = [(100, 2), (1, 3), (100, 2)]
    # Rows with made ones take longest and may be missing.
    shown = [*(name for name in VARIANTS if "+" not in name), "labels, longer"]
    complete = results.complete(shown)
    groups = [*results.teachers, "all"]
    by_teacher = [
        (teacher, [case for case in complete if teacher in (case[1], "all")])
        for teacher in groups
    ]
    for position in (0, 1):
        rows = []
        for teacher, cases in by_teacher:
            for variant in shown if cases else []:
                gains = results.gains(cases, variant, "labels", "valid")[..., position]
                rows.append(
                    [
                        teacher,
                        variant,
                        *(
                            with_error(
                                gain, units[position][1], units[position][0], "+"
                            )
                            for gain in gains.T
                        ),
                        len(cases),
                    ]
                )
        table(
            f"Validation rows, each variant less labels: {name[position]}, by stage",
            ["teacher", "variant"]
            + [f"stage {i + 1}" for i in range(N_STAGES)]
            + ["sets and seeds"],
            rows,
        )
    rows = []
    for teacher, variant in itertools.product(groups, [*VARIANTS, *LABELS]):
        cases = [
            case
            for case in results.complete(["default", variant])
            if teacher in (case[1], "all")
        ]
        if cases and variant != "default":
            gains = results.gains(cases, variant, "default", "valid")
            gains = gains[:, 1:].mean(axis=1)
            columns = zip(gains.T, units, strict=True)
            rows.append(
                [
                    teacher,
                    variant,
                    *(
                        with_error(gain, digits, factor, "+")
                        for gain, (factor, digits) in columns
                    ),
                    len(cases),
                ]
            )
    table(
        "Validation rows, each variant less the default, means of stages from 2 on",
        ["teacher", "variant", *name, "sets and seeds"],
        rows,
    )

    rows = []
    for teacher in results.teachers:
        cases = [case for case in results.cases if case[1] == teacher]
        areas = np.array(
            [
                [
                    results.scores(case, name, "test")[-1, 2]
                    for name in ("default", "teacher", "labels")
                ]
                for case in cases
            ]
        )
        better = []
        for (_, name), group in by_set:
            if name == teacher:
                gains = results.gains(group, "default", "labels", "test")[:, 1:]
                gains[..., 1] *= -1
                mean = gains.mean(axis=0)
                error = 2 * standard_error(gains) if len(group) > 1 else 0 * mean
                better.append([mean >= 0, mean >= -error])
        # Of shape (n_sets, 2, n_stages - 1, n_scores).
        share = np.mean(better, axis=(0, 2))
        ratio = areas[:, 0] / areas[:, 1]
        rows.append(
            [
                teacher,
                f"{100 * np.mean((areas[:, 0] - 0.5) / (areas[:, 1] - 0.5)):.1f}",
                f"{100 * ratio.mean():.1f}",
                f"{100 * ratio.min():.1f}",
                f"{100 * np.mean((areas[:, 2] - 0.5) / (areas[:, 1] - 0.5)):.1f}",
                *(
                    f"{share[0, i]:.0%} ({share[1, i]:.0%})".replace("%", "")
                    for i in range(2)
                ),
            ]
        )
    table(
        "Test rows, default: what is kept of the teacher's area under the curve (AUC), "
        "in %, and share, in %, of sets and stages from 2 on that are at or above "
        "labels (in brackets: within two standard errors)",
        [
            "teacher",
            "(AUC - 0.5) kept",
            "AUC kept",
            "least AUC kept",
            "(AUC - 0.5) of labels",
            "accuracy at or above",
            "log loss at or below",
        ],
        rows,
    )
    found = {
        key[0]: record["microseconds"]
        for key, record in records.items()
        if key[2] == "latency"
    }
    forms = [
        f"{form}, {n}" for form in ("estimator", "module", "session") for n in (1, 1000)
    ]
    table(
        "Microseconds a row on one thread, by rows a call",
        ["set", *forms],
        [
            [name, *(times.get(form, "") for form in forms)]
            for name, times in found.items()
        ],
    )


if __name__ == "__main__":
    parser = command(__doc__, "teachers.jsonl")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "bench_teachers",
        help="folder for what the teachers say",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=np.inf)
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    else:
        args.cache.mkdir(parents=True, exist_ok=True)
        with quietly(args.threads):
            run(
                args.results,
                args.data,
                args.cache,
                args.seeds,
                time.time() + 60 * args.minutes,
            )
