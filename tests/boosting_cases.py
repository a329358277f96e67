"""Small rows, students and games that the tests of ``skbdistil._boosting`` share."""

from functools import partial

import numpy as np
import torch

from skbdistil._boosting._game import BoostingGame
from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import FeatureCache, RowData
from skbdistil.ensemble import Connection, Lateral, ProgressiveEnsemble, Window
from skbdistil.objectives import DistillationObjective, _StudentLoss
from skbdistil.students import MLP

CPU = torch.device("cpu")
EXACT = {"rtol": 0, "atol": 0}

# Two blocks, which lateral connections need.
STUDENT = partial(MLP, hidden=(6, 5))


class Sum(Connection):
    """A connection of a user's own; all students have as many features."""

    def forward(self, features, earlier):
        return features + sum(earlier)


CONNECTIONS = [
    None,
    "dense",
    "last",
    "lateral",
    Lateral("last"),
    Lateral("last", shared_blocks=1),
    Lateral(shared_blocks=1),
    Lateral(2, shared_blocks=1),
    Window(2),
    Sum,
]

# Deep enough for any of the connections.
DEEP_STUDENT = partial(MLP, hidden=(5, 5, 5))


def make_rows(
    n=50,
    *,
    connection="dense",
    held=True,
    plays=True,
    n_previous=0,
    student=STUDENT,
    dtype=torch.float32,
    seed=0,
    ensemble=None,
    centred=False,
    **options,
):
    """Rows of an ensemble with `n_previous` students, which may play the game.

    Parameters
    ----------
    held : bool
        Whether what earlier students computed is held, for up to nine students.
    plays : bool
        Whether the rows take part in a game.
    ensemble : ProgressiveEnsemble or None
        Students of other rows, to which these are added. None makes one.
    centred : bool
        Whether the teacher's scores have a mean of 0 in every row.
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, 4)) * 3 + 1)
    teacher = torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1).sub(1).mul(0.3).to(dtype)
    if centred:
        teacher -= teacher.mean(1, keepdim=True)
    if ensemble is None:
        ensemble = ProgressiveEnsemble(
            (4,),
            2,
            connection=connection,
            input_mean=torch.ones(4, dtype=dtype),
            input_scale=torch.full((4,), 3, dtype=dtype),
        )
    residuals = Residuals(teacher.numpy())
    rows = RowData(
        ensemble,
        x,
        residuals,
        game=BoostingGame(residuals, eta=0.05) if plays else None,
        device=CPU,
        cache=FeatureCache(ensemble, 9) if held else None,
        **options,
    )
    for _ in range(n_previous):
        earlier = ensemble.new_student(student)
        # As of no way to combine, so that none is taken for granted.
        earlier.carry.fill_(0.75)
        join(rows, earlier)
    return rows


def join(rows, student):
    """Add a student to an ensemble, and to the only rows there are."""
    rows.add(*rows.run(student))
    rows.ensemble.append(student)


def student_loss(rows, **options):
    """Loss of the next student, of rows in a game."""
    return _StudentLoss(
        DistillationObjective("squared_error", **{"gamma": 0.3, **options}),
        True,
        n_previous=len(rows.ensemble),
        eta=rows.game.eta,
        scale=float(np.abs(rows.residuals.teacher_scores).max()),
        log_normalizer=torch.as_tensor(rows.game.log_normalizer, dtype=rows.dtype),
    )


def flat(item):
    """All tensors in nested dicts, lists and tuples, by their paths."""
    if isinstance(item, dict):
        pairs = item.items()
    elif isinstance(item, list | tuple):
        pairs = enumerate(item)
    else:
        return {(): item}
    return {
        (key, *path): tensor
        for key, value in pairs
        for path, tensor in flat(value).items()
    }


def assert_same(left, right, **tolerance):
    """The same tensors under the same paths."""
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for path in left:
        torch.testing.assert_close(left[path], right[path], **tolerance)
