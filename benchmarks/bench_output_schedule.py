"""A watermark detector taken over group by group, and ensembles made one network.

Run as ``python -m benchmarks.bench_output_schedule``, and with ``--report`` to print
the tables of what is in the file of results; what is in it is not run again.

The task is not that of a paper on watermarks of speech. The log-mel frames of spoken
digits (fsdd_logmel.npz, in the folder of --data or of the environment variable
SKBDISTIL_DATA) carry a message of eight bits, each of which adds or subtracts a pattern
of its own: four patterns are the same in all frames, four change their sign every few
frames. The teacher is a convolutional network that is trained here, on frames that are
clean, noisy, stretched in time or quantised. It says whether there is a mark, and what
each bit is, as numbers between -1 and 1: a vector of nine values.

Students take it over with all outputs at once or by groups, from rows of full
distortion or from clean to distorted (a warm start for each round, with another
`augment`). All ensembles have as many students, rows and epochs. Settings were tried on
training rows; test rows judge once.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional

from benchmarks.accuracy_cost.results import append
from benchmarks.records import command, quietly, read, table, with_error
from skbdistil import BDistilRegressor
from skbdistil.costs import module_costs
from skbdistil.ensemble import Lateral
from skbdistil.students import ConvNet1d
from skbdistil.teachers import TorchTeacher

N_BITS = 8
STEPS = 64
STRENGTH = 0.18
FLOOR = -13.5
PRESENCE, STEADY, CHANGING = [8], [0, 1, 2, 3], [4, 5, 6, 7]
OUTPUTS = {"presence": PRESENCE, "steady bits": STEADY, "changing bits": CHANGING}

N_STUDENTS = 4
EPOCHS = 6
STUDENT = partial(ConvNet1d, channels=(8, 12))
COMPACT = partial(ConvNet1d, channels=(14, 24))
LAST = "network of at once, by the recipe"
RESULTS = Path(__file__).parent / "results" / "output_schedule.jsonl"

SCHEDULES = {
    "at once": None,
    "easy first": [PRESENCE, STEADY, CHANGING],
    "hard first": [CHANGING, STEADY, PRESENCE],
}


# Marks and what happens to them


def patterns():
    """What each bit adds to the frames, shape (n_bits, steps, bands)."""
    rng = np.random.RandomState(0)
    bands = rng.choice([-1.0, 1.0], size=(N_BITS, 1, 32))
    signs = np.ones((N_BITS, STEPS, 1))
    for number, bit in enumerate(CHANGING):
        period = 6 + 2 * number
        signs[bit, :, 0] = np.where(np.arange(STEPS) % period < period // 2, 1, -1)
    return bands * signs


def marked(X, rng, share=0.8):
    """Rows of which a share carries messages, and what the messages are.

    Bits of rows without a mark are 0.
    """
    bits = rng.choice([-1.0, 1.0], size=(len(X), N_BITS))
    bits *= rng.random_sample(len(X))[:, None] < share
    mark = STRENGTH * np.tensordot(bits, patterns(), axes=1)
    # There is nothing to change where all is silent.
    X = np.where(X > FLOOR, X + mark, X).astype(np.float32)
    presence = np.where(bits.any(axis=1), 1.0, -1.0)
    return X, np.column_stack([bits, presence])


def noisy(x, level, rng):
    """Noise in the frames, as loud as speech less 8 to 4."""
    loud = x[x > FLOOR].mean() if (x > FLOOR).any() else x.mean()
    noise = loud - 8 + 4 * level + 0.5 * rng.standard_normal(x.shape)
    return np.logaddexp(x, noise)


def stretched(x, level, rng):
    """Faster or slower by up to a fifth."""
    factor = np.exp(0.2 * level * rng.choice([-1, 1]))
    place = np.clip(np.arange(STEPS) * factor, 0, STEPS - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, STEPS - 1)
    part = (place - low)[:, None]
    return x[low] * (1 - part) + x[high] * part


def quantised(x, level, rng):
    """Rounded to multiples of up to 2."""
    step = 2 * level
    return x if step == 0 else step * np.round(x / step)


DISTORTIONS = {"noise": noisy, "time stretch": stretched, "quantisation": quantised}


class Distort:
    """A further copy of each row, with one of the distortions.

    Parameters
    ----------
    level : float
        From 0, as they are, to 1.
    kinds : list of callable or None
        None: all of them.
    """

    def __init__(self, level, kinds=None):
        self.level = level
        self.kinds = list(DISTORTIONS.values()) if kinds is None else kinds

    def __call__(self, X, seed):
        rng = np.random.RandomState(seed)
        chosen = rng.randint(len(self.kinds), size=len(X))
        rows = [
            self.kinds[kind](x, self.level, rng)
            for x, kind in zip(X, chosen, strict=True)
        ]
        return np.asarray(rows, dtype=np.float32)


# The networks


def train(net, batches, n_steps, *, rate):
    """Train a network by the gradients of `batches`, which yields losses."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=n_steps
    )
    net.train()
    for loss in batches:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


class Scaled(nn.Module):
    """A network of rows that are centred and scaled."""

    def __init__(self, X, backbone, squash):
        super().__init__()
        self.register_buffer("mean", torch.tensor(X.mean((0, 1), keepdims=True)))
        self.register_buffer("scale", torch.tensor(X.std((0, 1), keepdims=True)))
        self.backbone = backbone((STEPS, 32))
        self.head = nn.Linear(self.backbone.widths[-1], N_BITS + 1)
        self.squash = squash

    def forward(self, x):
        scores = self.head(self.backbone((x - self.mean) / self.scale))
        return torch.tanh(scores / 2) if self.squash else scores


def teacher_of(X, seed, n_epochs=16, batch_size=64):
    """A detector, trained on marks and distortions that are drawn anew."""
    torch.manual_seed(seed)
    rng = np.random.RandomState(seed)
    net = Scaled(X, partial(ConvNet1d, channels=(32, 64, 64)), squash=False)

    def batches():
        for _ in range(n_epochs):
            rows, truth = marked(X[rng.permutation(len(X))], rng)
            half = len(rows) // 3
            rows[half:] = Distort(1.0)(rows[half:], rng.randint(2**31 - 1))
            order = rng.permutation(len(rows))
            for start in range(0, len(rows), batch_size):
                index = order[start : start + batch_size]
                target = torch.tensor(truth[index], dtype=torch.float32)
                losses = functional.binary_cross_entropy_with_logits(
                    net(torch.tensor(rows[index])), (target + 1) / 2, reduction="none"
                )
                # A row without a mark has no bits to be right about.
                yield (losses * (target != 0)).mean()

    n_steps = n_epochs * -(-len(X) // batch_size)
    train(net, batches(), n_steps, rate=0.004)
    net.squash = True
    return net


def ensemble(teacher, X, schedule, seed, *, curriculum=False, shared_blocks=0):
    """Students of the teacher.

    Parameters
    ----------
    teacher : torch.nn.Module
    X : ndarray
        Clean rows, with marks; each is also distorted.
    schedule : list of list of int or None
    seed : int
    curriculum : bool
        Whether the distortion grows with the rounds.
    shared_blocks : int
        First blocks of student 1 that serve all students.
    """
    reg = BDistilRegressor(
        TorchTeacher(teacher),
        student=STUDENT,
        n_estimators=N_STUDENTS,
        connection=Lateral(shared_blocks=shared_blocks),
        output_schedule=schedule,
        augment=Distort(1.0),
        max_epochs=EPOCHS,
        batch_size=128,
        edge_tol=np.inf,
        random_state=seed,
    )
    if not curriculum:
        return reg.fit(X)
    reg.set_params(warm_start=True)
    for number in range(1, N_STUDENTS + 1):
        level = (number - 1) / (N_STUDENTS - 1)
        reg.set_params(n_estimators=number, augment=Distort(level)).fit(X)
    return reg


def compact(targets, X, seed):
    """One network, cheaper than an ensemble, trained for as many steps.

    Parameters
    ----------
    targets : list of ndarray of shape (n_samples, n_outputs)
        What the network learns, one after the other for as many epochs each.
    X : ndarray
        Rows, distorted ones among them.
    seed : int
    """
    torch.manual_seed(seed)
    rng = np.random.RandomState(seed)
    targets = [torch.tensor(target, dtype=torch.float32) for target in targets]
    rows = torch.tensor(X)
    n_epochs = N_STUDENTS * EPOCHS

    def batches():
        for epoch in range(n_epochs):
            target = targets[epoch * len(targets) // n_epochs]
            order = rng.permutation(len(X))
            for start in range(0, len(X), 128):
                index = order[start : start + 128]
                yield functional.mse_loss(net(rows[index]), target[index])

    net = Scaled(X, COMPACT, squash=False)
    return train(net, batches(), n_epochs * -(-len(X) // 128), rate=0.01)


# What is measured


def conditions(X, seed):
    """Marked test rows, clean and under each distortion, and the truth."""
    rng = np.random.RandomState(seed)
    rows, truth = marked(np.concatenate([X] * 4), rng)
    yield "clean", rows, truth
    for name, kind in DISTORTIONS.items():
        yield name, Distort(1.0, [kind])(rows, seed), truth


def accuracies(predicted, truth):
    """Share of outputs with the right sign, by group; bits of marked rows only."""
    found = {}
    for name, outputs in OUTPUTS.items():
        known = truth[:, outputs] != 0
        right = np.sign(predicted[:, outputs]) == truth[:, outputs]
        if name == "presence":
            # Most rows are marked: both kinds count alike.
            sides = [right[truth[:, outputs] == sign].mean() for sign in (-1, 1)]
            found[name] = float(np.mean(sides))
        else:
            found[name] = float(right[known].mean())
    return found


def records_of(method, seed, staged, tests, costs):
    for condition, rows, truth in tests:
        for stage, predicted in enumerate(staged(rows), start=1):
            yield {
                "method": method,
                "seed": seed,
                "condition": condition,
                "stage": stage,
                "macs": costs[stage - 1],
                **accuracies(predicted, truth),
            }


def predict_with(net, rows):
    with torch.inference_mode():
        return [net(torch.tensor(rows)).numpy()]


def macs_of(net, X):
    return [module_costs(net, torch.tensor(X[:1])).macs]


def experiment(seed, folder):
    """Yield name, cost of the stages and predictions by stage of each method.

    Predictions are a function of rows.
    """
    with np.load(Path(folder) / "fsdd_logmel.npz", allow_pickle=False) as file:
        X = np.float32(file["X_train"][:, :STEPS])
    teacher = teacher_of(X, seed)
    yield "teacher", macs_of(teacher, X), partial(predict_with, teacher)
    # Other messages than those that the teacher has seen.
    X, _ = marked(np.concatenate([X] * 2), np.random.RandomState(100 + seed))
    found = {}
    for how, (options, schedules) in {
        "": ({}, SCHEDULES),
        ", clean to distorted": ({"curriculum": True}, ["at once", "hard first"]),
        ", first block shared": ({"shared_blocks": 1}, SCHEDULES),
    }.items():
        for name in schedules:
            reg = ensemble(teacher, X, SCHEDULES[name], seed, **options)
            costs = reg.stage_costs_.cumulative_macs.tolist()
            yield name + how, costs, reg.staged_predict
            found[name + how] = reg
    rows = np.concatenate([X, Distort(1.0)(X, seed)])
    net = compact(predict_with(teacher, rows), rows, seed)
    yield "network of the teacher", macs_of(net, X), partial(predict_with, net)
    for name in ("at once", "hard first"):
        stages = list(found[name].staged_predict(rows))
        for how, targets in (("last stage", stages[-1:]), ("stage by stage", stages)):
            net = compact(targets, rows, seed)
            method = f"network of {name}, {how}"
            yield method, macs_of(net, X), partial(predict_with, net)
    recipe = BDistilRegressor(
        FrozenEstimator(found["at once"]),
        student=COMPACT,
        n_estimators=1,
        max_epochs=N_STUDENTS * EPOCHS,
        batch_size=128,
        random_state=seed,
    ).fit(rows)
    costs = recipe.stage_costs_.cumulative_macs.tolist()
    yield LAST, costs, recipe.staged_predict


def run(path, folder, n_seeds):
    with np.load(Path(folder) / "fsdd_logmel.npz", allow_pickle=False) as file:
        X_test = np.float32(file["X_test"][:, :STEPS])
    for seed in range(n_seeds):
        done = [record["method"] for record in read(path) if record["seed"] == seed]
        if LAST in done:
            continue
        tests = list(conditions(X_test, 1000 + seed))
        for method, costs, staged in experiment(seed, folder):
            if method not in done:
                records = records_of(method, seed, staged, tests, costs)
                append(path, list(records))
                print(seed, method, flush=True)


def report(records):
    """Print the tables of the documentation."""
    found = {}
    complete = {record["seed"] for record in records if record["method"] == LAST}
    for record in records:
        if record["seed"] not in complete:
            continue
        n_outputs = {name: len(outputs) for name, outputs in OUTPUTS.items()}
        # Of an output, whatever its group.
        right = sum(record[name] * n for name, n in n_outputs.items())
        key = (record["method"], record["condition"], record["stage"])
        of_seed = {**record, "all outputs": right / sum(n_outputs.values())}
        found.setdefault(key, {})[record["seed"]] = of_seed

    def values(method, conditions, stage, group):
        """Means over conditions, one for each seed."""
        seeds = sorted(found[method, "clean", stage])
        return np.array(
            [
                np.mean([found[method, c, stage][seed][group] for c in conditions])
                for seed in seeds
            ]
        )

    n_stages = {}
    for method, _, stage in found:
        n_stages[method] = max(stage, n_stages.get(method, 0))
    stages = range(1, N_STUDENTS + 1)
    on_stages = [f"stage {stage}" for stage in stages]
    distorted = list(DISTORTIONS)

    rows = [
        [
            method,
            group,
            *(
                with_error(values(method, distorted, stage, group), 1, 100)
                for stage in range(1, n_stages[method] + 1)
            ),
            *[""] * (N_STUDENTS - n_stages[method]),
        ]
        for group in OUTPUTS
        for method in ("teacher", *SCHEDULES)
    ]
    table(
        "Accuracy in % on distorted test rows, mean over the distortions. The teacher "
        "has one stage",
        ["method", "outputs", *on_stages],
        rows,
    )

    rows = []
    for name, conditions in {"clean": ["clean"], **{d: [d] for d in distorted}}.items():
        for method in ("easy first", "hard first"):
            cells = [
                with_error(
                    values(method, conditions, stage, "all outputs")
                    - values("at once", conditions, stage, "all outputs"),
                    1,
                    100,
                    "+",
                )
                for stage in stages
            ]
            rows.append([method, name, *cells])
    table(
        "What a schedule changes against all outputs at once: accuracy in points, mean "
        "over all outputs",
        ["schedule", "test rows", *on_stages],
        rows,
    )

    rows = []
    for change in (", clean to distorted", ", first block shared"):
        for name in SCHEDULES:
            if name + change not in n_stages:
                continue
            cells = [
                with_error(
                    values(name + change, distorted, stage, "all outputs")
                    - values(name, distorted, stage, "all outputs"),
                    1,
                    100,
                    "+",
                )
                for stage in stages
            ]
            rows.append([name, change.removeprefix(", "), *cells])
    table(
        "What another curriculum or connection changes for the same schedule: accuracy "
        "on distorted test rows in points, mean over all outputs",
        ["schedule", "change", *on_stages],
        rows,
    )

    rows = []
    for method, last in n_stages.items():
        if method in SCHEDULES or method.startswith("network") or method == "teacher":
            macs = next(iter(found[method, "clean", last].values()))["macs"]
            cells = [
                with_error(values(method, [condition], last, "all outputs"), 1, 100)
                for condition in ("clean", *distorted)
            ]
            rows.append([method, f"{macs / 1000:.0f}", *cells])
    table(
        "Ensembles as one network: accuracy in %, mean over all outputs, and thousands "
        "of multiply-accumulates of a row",
        ["model", "cost", "clean", *distorted],
        rows,
    )


if __name__ == "__main__":
    parser = command(__doc__, "output_schedule.jsonl")
    args = parser.parse_args()
    if args.report:
        report(read(args.results))
    elif not args.data:
        print("There is no data folder: pass --data or set SKBDISTIL_DATA.")
    else:
        with quietly():
            run(args.results, args.data, args.seeds)
