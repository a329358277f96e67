"""Compare settings on validation rows, to choose the defaults of the package.

Validation rows are a fifth of the training rows, or of the people in them. Options are
those of ``python -m benchmarks.accuracy_cost``; with ``--summary`` nothing is run.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.accuracy_cost import __main__ as runner
from benchmarks.accuracy_cost import leads, methods, results
from benchmarks.accuracy_cost.experiments import DATA_SETS, Method
from benchmarks.records import standard_error, with_error
from skbdistil import DistillationObjective

# For leads, on which the whole set would take too long.
_images = next(data for data in DATA_SETS if data.name == "fashion_mnist_conv")
FEW_IMAGES = replace(
    _images,
    name="fashion_mnist_conv_8000",
    label="Fashion-MNIST, convolutional, 8000 rows",
    n_train=8000,
)

RESULTS = Path(__file__).parent / "results" / "search.jsonl"

# What the others are compared with.
SINGLE = "single networks"

# Beside those of the data sets.
RATES = (0.005, 0.02, 0.04)


def _setting(name, **settings):
    return Method(name, name, methods.distil, settings)


def _combined(combine, gamma, suffix="", **settings):
    objective = DistillationObjective(gamma=gamma)
    return _setting(
        f"{combine} {gamma}{suffix}", combine=combine, objective=objective, **settings
    )


def _lead(name, run, epochs=1, **settings):
    return Method(name, name, run, settings, epochs=epochs)


SETTINGS = [
    Method(SINGLE, SINGLE, methods.single_students),
    *(
        _combined(combine, gamma)
        for combine in ("mean", "sum", "learned")
        for gamma in (0.3, 1, 3)
    ),
    *(
        _setting(f"{combine} {objective}", combine=combine, objective=objective)
        for combine in ("mean", "learned")
        for objective in ("kl", "barrier")
    ),
    *(
        _combined("learned", 1, f", {factor} eta", eta_factor=factor)
        for factor in (0, 3)
    ),
    _setting("default"),
    _setting("indicator", objective=DistillationObjective(barrier="indicator")),
    _setting("temperature 2", objective=DistillationObjective(temperature=2)),
    _setting("alpha 0.5", objective=DistillationObjective(alpha=0.5)),
    _setting("no connection", connection=None, same_cost=True),
    _setting("together", refine="only"),
    *(_setting(f"rate {rate}", learning_rate=rate) for rate in RATES),
    *(
        Method(name, name, methods.single_students, {"learning_rate": rate})
        for rate in RATES
        for name in [f"{SINGLE}, rate {rate}"]
    ),
    Method(
        f"{SINGLE}, alpha 0.5",
        SINGLE,
        methods.single_students,
        {"objective": DistillationObjective(alpha=0.5)},
    ),
    *(
        Method(f"{name}, twice the epochs", name, run, epochs=2)
        for name, run in [
            ("default", methods.distil),
            (SINGLE, methods.single_students),
        ]
    ),
]


# What is compared with a baseline of the same code and training, not with the others.
LEADS = [
    _lead("default, later", leads.boosted),
    _lead("averaged", leads.boosted, averaged=0.25),
    _lead("averaged, constant rate", leads.boosted, averaged=0.25, constant=True),
    _lead("corrected", leads.corrected),
    _lead("refined", leads.refined, epochs=0.5),
    _lead("refined, half the rate", leads.refined, epochs=0.5, rate_factor=0.5),
    _lead("together, later", leads.together),
    _lead("together, last exit first", leads.together, last_first=0.5),
]
BASELINES = {
    "averaged": "default, later",
    "averaged, constant rate": "default, later",
    "corrected": "default, later",
    "refined, half the rate": "refined",
    "together, last exit first": "together, later",
}


def summary(path):
    """Print points above single networks, by data set and stage."""
    scores = defaultdict(list)
    for records in results.read(path).values():
        for record in records:
            key = record["dataset"], record["method"], record["stage"]
            scores[key].append(100 * record["accuracy"])
    for dataset in DATA_SETS:
        stages = range(1, dataset.n_estimators + 1)
        rows = [
            (method.name, [scores[dataset.name, method.name, t] for t in stages])
            for method in SETTINGS
        ]
        rows = [(name, found) for name, found in rows if all(found)]
        if not rows or rows[0][0] != SINGLE:
            continue
        print(f"\n{dataset.label}")
        single = np.array([np.mean(found) for found in rows[0][1]])
        for name, found in rows:
            means = np.array([np.mean(stage) for stage in found])
            gains = " ".join(f"{gain:+5.1f}" for gain in means - single)
            print(
                f"  {name:28} {len(found[0])} seed(s)  {means[0]:.1f} to "
                f"{means[-1]:.1f}  {gains}  mean from stage 2 on "
                f"{(means - single)[1:].mean():+.2f}"
            )


def summary_of_leads(path):
    """Print what each lead gains over its baseline, on the same seeds."""
    scores = defaultdict(dict)
    for (dataset, method, seed, _), records in results.read(path).items():
        accuracies = [100 * record["accuracy"] for record in records]
        scores[dataset, method][seed] = np.array(accuracies)
    print("\nPoints above the same without it: mean from stage 2 on, and last stage")
    for name, baseline in BASELINES.items():
        means = []
        for dataset in (*DATA_SETS, FEW_IMAGES):
            with_it, without = (scores[dataset.name, key] for key in (name, baseline))
            gains = np.array([with_it[s] - without[s] for s in with_it if s in without])
            if len(gains) < 2:
                continue
            means.append((gains[:, 1:].mean(axis=1), gains[:, -1]))
            shown = [with_error(gain, 2, sign="+") for gain in means[-1]]
            print(f"  {name:28} {dataset.name:20} {'   '.join(shown)}")
        if means:
            shown = [
                f"{np.mean([gain.mean() for gain in gains]):+.2f} ± "
                f"{np.linalg.norm([*map(standard_error, gains)]) / len(gains):.2f}"
                for gains in zip(*means, strict=True)
            ]
            print(f"  {name:28} {'average':20} {'   '.join(shown)}")


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--summary" not in arguments:
        runner.main(
            ["--full", "--validation", "--results", str(RESULTS), *arguments],
            [*SETTINGS, *LEADS],
            [*DATA_SETS, FEW_IMAGES],
        )
    summary(RESULTS)
    summary_of_leads(RESULTS)


if __name__ == "__main__":
    main()
