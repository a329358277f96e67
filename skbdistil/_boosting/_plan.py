"""What a fit decides before its first round, where the parameters leave it open."""

import copy
import math
from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.model_selection import train_test_split

from skbdistil import costs
from skbdistil._arrays import LazyRows, row_chunks, stack_rows, take_rows
from skbdistil._boosting._game import LARGEST_STEP, BoostingGame, auto_eta
from skbdistil._boosting._loop import Boosting
from skbdistil._boosting._ranks import ONE_RANK
from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import (
    FeatureCache,
    RowData,
    chunk_rows,
    fits,
    n_batches,
)
from skbdistil._boosting._search import WeakLearnerSearch
from skbdistil._boosting._shared_norm import batch_norms
from skbdistil._boosting._training import Trainer
from skbdistil._seeding import seeded
from skbdistil._storage import IN_MEMORY
from skbdistil.ensemble import Lateral, ProgressiveEnsemble, _auto_connection
from skbdistil.objectives import DistillationObjective, _JointLoss
from skbdistil.students import _auto_students, _check_ladder

# Optimizer steps that max_epochs="auto" guarantees, and epochs it takes at least.
_MIN_STEPS = 1000
_MIN_EPOCHS = 8

# edge_tol="auto", in units of the bound, for students whose objective has a barrier.
_AUTO_EDGE_TOL = 0.1

# Rows, sorted by their largest absolute score, whose scores the barrier is relative to.
_SCALE_QUANTILE = 0.999

# Bytes of activations of earlier students that are held at most.
_MAX_HELD_BYTES = 2**30

# student="auto" aims at this share of the teacher's multiply-accumulates for the whole
# ensemble.
_AUTO_COST_SHARE = 0.5


class FitData(NamedTuple):
    """Rows of a fit, and what is known of them; the first axis of all is n_samples.

    A label that is not known is -1, a target that is not known is NaN.
    """

    x: np.ndarray | LazyRows
    scores: np.ndarray
    label: np.ndarray | None
    sample_weight: np.ndarray | None

    def take(self, rows, storage=IN_MEMORY):
        """Copies of some rows."""

        def taken(part):
            if part is None:
                return None
            is_lazy = isinstance(part, LazyRows)
            return part.take(rows) if is_lazy else storage.take(part, rows)

        return FitData(*map(taken, self))

    def share(self, rows):
        """Successive rows, a slice, without a copy."""
        return FitData(
            *(None if part is None else take_rows(part, rows) for part in self)
        )

    def n_bytes(self):
        """Bytes of what training reads of arrays, with the sums and means of scores."""
        given = sum(part.nbytes for part in self if part is not None)
        return given + 2 * self.scores.nbytes

    def chunks(self):
        """Yield all numbers, a few rows at a time."""
        for part in self:
            if part is not None:
                n_rows = chunk_rows(part.shape[1:])
                yield from (chunk for _, chunk in row_chunks(part, n_rows))

    def extended(self, x, scores, storage=IN_MEMORY):
        """The same with further rows, whose labels are not known, of weight 1."""
        label, weight = self.label, self.sample_weight
        if label is not None:
            unknown = -1 if label.dtype.kind == "i" else np.nan
            shape = (len(x), *label.shape[1:])
            label = np.concatenate([label, np.full(shape, unknown, label.dtype)])
        if weight is not None:
            weight = np.concatenate([weight, np.ones(len(x))])
        return FitData(
            stack_rows([self.x, x]),
            storage.concatenate([self.scores, scores], len(self.scores) + len(scores)),
            label,
            weight,
        )


class Plan(NamedTuple):
    """Parameters of a fit of which none is "auto"; each becomes a fitted attribute."""

    objective: DistillationObjective
    ladder: list[Callable]
    teacher_bound: float
    teacher_scale: float
    eta: float
    edge_tol: float
    combine: str
    batch_size: int
    max_epochs: int
    refine_epochs: int


def make_plan(estimator, objective, ensemble, train, *, teacher_macs, earlier, notes):
    """Resolve what the parameters of an estimator leave open.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
    objective : DistillationObjective
    ensemble : ProgressiveEnsemble
    train : FitData
    teacher_macs : int or None
        Multiply-accumulates of the teacher per sample, where they are known.
    earlier : estimator or None
        Of an earlier fit that goes on: what is "auto" stays what it was there.
    notes : list of Warning
        Added to.

    Returns
    -------
    plan : Plan

    Raises
    ------
    ValueError
        If parameters do not go together.
    """

    def resolved(name, choose, fitted_name=None):
        value = getattr(estimator, name)
        if not (isinstance(value, str) and value == "auto"):
            return value
        if earlier is not None:
            return getattr(earlier, fitted_name or f"{name}_")
        return choose()

    n_rows = len(train.x)
    bound, scale = sizes(train.scores)
    eta = float(
        resolved("eta", lambda: auto_eta(bound, n_rows, estimator.n_estimators))
    )
    if estimator.eta == "auto" and 2 * eta * bound > LARGEST_STEP:
        notes.append(
            UserWarning(
                f"The scores of the teacher are larger than in the earlier fit, whose "
                f"step eta={eta:.3g} is kept: the certificate proves nothing from the "
                f"first step on that exceeds {LARGEST_STEP}. Set a smaller 'eta', or "
                "fit again without warm_start."
            )
        )
    ladder = resolved(
        "student",
        lambda: auto_ladder(ensemble, estimator.n_estimators, teacher_macs),
        "ladder_",
    )
    batch_size = resolved("batch_size", lambda: auto_batch_size(n_rows))
    if batch_size > n_rows:
        # That of an earlier fit to more rows was not asked for.
        if estimator.batch_size != "auto":
            notes.append(
                UserWarning(
                    f"The 'batch_size' parameter of {type(estimator).__name__} is "
                    f"{batch_size}, and there are {n_rows} training rows. It is "
                    "clipped."
                )
            )
        batch_size = n_rows
    together = estimator.refine == "only"
    if together and estimator.combine not in ("auto", "mean"):
        raise ValueError(
            "With refine='only', the 'combine' parameter of "
            f"{type(estimator).__name__} must be 'auto' or 'mean'. Got "
            f"{estimator.combine!r}."
        )
    combine = resolved(
        "combine", lambda: auto_combine(ensemble.connection, objective, together)
    )
    if objective._looks_at_student() and combine != "mean":
        raise ValueError(
            f"The 'objective' parameter of {type(estimator).__name__} has "
            f"on='student', and with combine={combine!r} a student is no prediction of "
            "its own. Use combine='mean' or on='ensemble'."
        )
    max_epochs = resolved("max_epochs", lambda: auto_epochs(n_rows, batch_size))
    return Plan(
        # A copy, since the parameter may be changed after the fit.
        objective=copy.copy(objective),
        ladder=_checked_ladder(ladder, type(estimator).__name__, earlier),
        teacher_bound=bound,
        teacher_scale=scale,
        eta=eta,
        # These follow from others, also in a warm start.
        edge_tol=(
            auto_edge_tol(objective)
            if estimator.edge_tol == "auto"
            else float(estimator.edge_tol)
        ),
        combine=combine,
        batch_size=int(batch_size),
        max_epochs=int(max_epochs),
        refine_epochs=int(
            auto_refine_epochs(max_epochs, estimator.n_estimators, together)
            if estimator.refine_epochs == "auto"
            else estimator.refine_epochs
        ),
    )


def set_up(
    estimator,
    plan,
    ensemble,
    train,
    valid,
    *,
    device,
    progress,
    view_targets=None,
    ranks=ONE_RANK,
    storage=IN_MEMORY,
):
    """The boosting loop, with its game, rows and search, ready to run.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
    plan : Plan
    ensemble : ProgressiveEnsemble
    train : FitData
        All rows, whatever the ranks.
    valid : FitData or None
    device : torch.device
    progress : Progress
    view_targets : ViewTargets or None
        What is learnt of views of the training rows, where it is not the same.
    ranks : OneRank
        Each keeps its share of the rows.
    storage : Storage
        Where sums, scores and features of students are kept.

    Returns
    -------
    boosting : Boosting
    """
    regression = not is_classifier(estimator)
    n_students = estimator.n_estimators
    trainer = Trainer(
        estimator.net,
        batch_size=plan.batch_size,
        learning_rate=estimator.learning_rate,
        device=device,
        patience=estimator.n_iter_no_change if estimator.early_stopping else None,
        # Only the differences of logits of classes count.
        centres=not (regression or estimator._multilabel),
        combine=plan.combine,
        ranks=ranks,
    )
    n_rows = len(train.x)
    # Of the largest share.
    n_held = held_bytes(plan.ladder, ensemble, n_students) * -(-n_rows // ranks.size)
    changes_rows = trainer.changes_rows or getattr(train.x, "changes_rows", False)
    holds = n_held <= _MAX_HELD_BYTES and not changes_rows

    def residuals_of(data):
        total = storage.empty(data.scores.shape, data.scores.dtype)
        return Residuals(data.scores, total=total, first_rounds=ensemble.first_stages)

    def row_data(data, residuals, game=None):
        dtype = torch.from_numpy(data.scores[:0]).dtype
        # Rows that are held out are judged by their labels, too.
        label = data.label if plan.objective.alpha or game is None else None
        weight = data.sample_weight
        return RowData(
            ensemble,
            data.x,
            residuals,
            game=game,
            sample_weight=None if weight is None else torch.as_tensor(weight).to(dtype),
            label=_label_tensor(label, dtype if regression else None),
            device=device,
            resident=resident,
            cache=FeatureCache(ensemble, n_students) if holds else None,
            view_targets=None if game is None else view_targets,
            ranks=ranks,
            storage=storage,
        )

    if ranks is not ONE_RANK:
        _check_shareable(estimator, plan.ladder, ensemble, n_rows, ranks.size)
        first, end = (n_rows * k // ranks.size for k in (ranks.rank, ranks.rank + 1))
        train = train.share(slice(first, end))
    resident = not isinstance(train.x, LazyRows) and fits(
        sum(part.n_bytes() for part in (train, valid) if part is not None)
        + holds * n_held,
        device,
    )

    residuals = residuals_of(train)
    game = BoostingGame(
        residuals, eta=plan.eta, sample_weight=train.sample_weight, ranks=ranks
    )
    return Boosting(
        ensemble,
        game,
        row_data(train, residuals, game),
        None if valid is None else row_data(valid, residuals_of(valid)),
        search=WeakLearnerSearch(
            ladder=plan.ladder,
            trainer=trainer,
            objective=plan.objective,
            regression=regression,
            multilabel=estimator._multilabel,
            max_epochs=plan.max_epochs,
            max_attempts=estimator.max_attempts,
            edge_tol=plan.edge_tol,
            bound=plan.teacher_bound,
            scale=plan.teacher_scale,
        ),
        trainer=trainer,
        joint_loss=_JointLoss(
            plan.objective,
            regression,
            multilabel=estimator._multilabel,
            first_stages=ensemble.first_stages,
        ),
        progress=progress,
        estimator_name=type(estimator).__name__,
        ranks=ranks,
    )


def _check_shareable(estimator, ladder, ensemble, n_rows, n_ranks):
    """Refuse students and rows that processes cannot share."""
    name = type(estimator).__name__
    if n_rows < n_ranks:
        raise ValueError(
            f"{name} has {n_rows} training row(s) for {n_ranks} processes: each needs "
            "one at least."
        )
    for factory in ladder:
        for layer in batch_norms(_sample(ensemble, factory, 1)):
            if layer.running_mean is None:
                raise ValueError(
                    f"The 'student' parameter of {name} gives a {type(layer).__name__} "
                    "without running statistics, which gives a row other scores with "
                    "other rows beside it: a DataParallelNet does not support it. "
                    "Build it with track_running_stats=True."
                )


def auto_connection(
    student, input_shape, n_outputs, estimator_name, *, shared_blocks=1
):
    """Connection that suits the backbones and the number of outputs.

    Parameters
    ----------
    student : "auto", callable or list of callable
    input_shape : tuple of int
    n_outputs : int
    estimator_name : str
        For messages.
    shared_blocks : int, default=1
        Where students are connected block by block.

    Returns
    -------
    connection : type, Lateral or None
    """
    if isinstance(student, str) and student == "auto":
        ladder, _ = _auto_students(input_shape)
    else:
        ladder = _check_ladder(student, estimator_name)
    # What is drawn for the weights must not use up random numbers.
    with seeded(0, torch.device("cpu")):
        return _auto_connection(ladder, input_shape, n_outputs, shared_blocks)


def first_rounds(schedule, n_rounds, estimator_name, *, goes_on=False):
    """Round that trains each output for the first time.

    Parameters
    ----------
    schedule : list of list of int, or None
        Outputs that each round adds.
    n_rounds : int
    estimator_name : str
        For messages.
    goes_on : bool, default=False
        Whether further rounds may follow, so that there may be more groups than rounds.

    Returns
    -------
    first_rounds : ndarray of int of shape (n_outputs,), or None
        From 1 on. None without a schedule.
    """
    if schedule is None:
        return None
    what = f"The 'output_schedule' parameter of {estimator_name}"
    if not schedule or not all(_is_group(group) for group in schedule):
        raise ValueError(
            f"{what} must be a list of groups, each a list of the numbers of one or "
            f"more outputs, such as [[0, 1], [2]]. Got {schedule!r}."
        )
    outputs = [int(output) for group in schedule for output in group]
    if sorted(outputs) != list(range(len(outputs))):
        raise ValueError(
            f"{what} must name each output once, by its number from 0 on: an output "
            f"that is in no group would never be trained. Got {schedule!r}."
        )
    if len(schedule) > n_rounds and not goes_on:
        raise ValueError(
            f"{what} has {len(schedule)} groups, each of which needs a round, and "
            f"n_estimators={n_rounds}. Only with warm_start=True can later fits train "
            "the rest."
        )
    rounds = np.empty(len(outputs), dtype=np.int64)
    for number, group in enumerate(schedule, start=1):
        rounds[list(group)] = number
    return rounds


def _is_group(group):
    """Whether this is a sequence of integers that is not empty."""
    if not isinstance(group, list | tuple | np.ndarray) or not len(group):
        return False
    return all(
        isinstance(output, Integral) and not isinstance(output, bool)
        for output in group
    )


def sizes(scores):
    """Largest absolute score B, and the size Q of all but one row in a thousand.

    A few rows that lie far out decide B. The barrier, relative to it, would be switched
    off for all others. With many classes most scores are small, so that it is the
    largest one of a row that counts.
    """
    of_rows = IN_MEMORY.map(lambda some: np.abs(some).max(axis=1), scores)
    return float(of_rows.max()), float(np.quantile(of_rows, _SCALE_QUANTILE))


def auto_batch_size(n_rows):
    """Rows per step: grows from 32 to 256 with the number of rows, at most all."""
    return min(n_rows, 256, max(32, 2 ** int(np.log2(n_rows / 32 + 1))))


def auto_epochs(n_rows, batch_size):
    """Epochs per student that make enough optimizer steps."""
    steps = n_batches(n_rows, batch_size)
    return max(_MIN_EPOCHS, -(-_MIN_STEPS // steps))


def auto_edge_tol(objective):
    """Tolerance of the weak-learning condition, in units of the bound."""
    # Without a barrier, students do not play the game.
    return math.inf if objective.barrier is None else _AUTO_EDGE_TOL


def auto_refine_epochs(max_epochs, n_students, together):
    """Epochs of joint training: as many as those of a student where it refines.

    Where there are no rounds, as many as cost what a network for each stage would, each
    trained for `max_epochs` and of the cost of the ensemble up to there.
    """
    return math.ceil(max_epochs * (n_students + 1) / 2) if together else max_epochs


def auto_combine(connection, objective, together):
    """How students are combined."""
    # Convolutional students, which are mostly composed block by block, do not learn
    # features where they may lean on what the earlier ones predict.
    by_block = isinstance(connection, Lateral)
    means = together or by_block or objective._looks_at_student()
    return "mean" if means else "learned"


def auto_ladder(ensemble, n_students, teacher_macs):
    """Backbones that suit the rows, and the teacher where its cost is known.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Whose connection and shapes the students will have.
    n_students : int
        Number of students whose costs are added up.
    teacher_macs : int or None
        Multiply-accumulates of the teacher per sample.

    Returns
    -------
    ladder : list of callable
        A backbone, and behind it one of about twice the width where there is one.
    """
    factories, default = _auto_students(ensemble.input_shape)
    chosen = default
    if teacher_macs is not None:
        chosen = 0
        for position, factory in enumerate(factories):
            sample = _sample(ensemble, factory, n_students)
            counted, _ = costs._count_stages(sample, sample.example())
            spent = counted.cumulative_macs[-1]
            if np.isnan(spent):
                # A connection of the user's that cannot be counted.
                chosen = default
            if not spent <= _AUTO_COST_SHARE * teacher_macs:
                break
            chosen = position
    wider = min(chosen + 2, len(factories) - 1)
    return [factories[chosen]] + [factories[wider]] * (wider > chosen)


def held_bytes(ladder, ensemble, n_students):
    """Bytes per row that students leave for later ones during the fit.

    Building a few students of every class also shows here, and not after the training
    of others, which of them cannot be built or connected.

    Parameters
    ----------
    ladder : list of callable
    ensemble : ProgressiveEnsemble
    n_students : int
        Number of students that there will be.

    Returns
    -------
    n_bytes : int
        For students of the first class.
    """
    # Two of them, for the connection.
    samples = [_sample(ensemble, factory, min(2, n_students)) for factory in ladder]
    counted, _ = costs._count_stages(samples[0], samples[0].example())
    of_student = counted.activation_bytes
    # What the last student reads is there at once with what it leaves.
    n_held = len(ensemble.read_by(n_students - 1)) + 1
    n_bytes = int(of_student.sum() + (n_held - len(of_student)) * of_student[-1])
    return n_bytes * ensemble.dtype.itemsize // samples[0].dtype.itemsize


def split_rows(n_samples, label, fraction, seed, estimator_name):
    """Row numbers for training and for validation.

    Parameters
    ----------
    n_samples : int
    label : ndarray of int or None
        Class indices, to have all classes on both sides; None for regression.
    fraction : float
        Share of the validation rows.
    seed : int
    estimator_name : str
        For messages.

    Returns
    -------
    train, valid : ndarray of int
    """
    n_valid = math.ceil(fraction * n_samples)
    if n_valid >= n_samples:
        raise ValueError(
            f"With early_stopping, the 'validation_fraction' parameter of "
            f"{estimator_name} must leave rows to train on. Got {fraction} for "
            f"{n_samples} rows."
        )
    stratify = None
    if label is not None:
        counts = np.bincount(label)
        counts = counts[counts > 0]
        # Where classes are too rare to be on both sides, chance decides.
        if counts.min() > 1 and len(counts) <= min(n_valid, n_samples - n_valid):
            stratify = label
    return train_test_split(
        np.arange(n_samples), test_size=fraction, random_state=seed, stratify=stratify
    )


def _sample(ensemble, factory, n_students):
    """An ensemble of untrained students of one class."""
    sample = ProgressiveEnsemble(
        ensemble.input_shape,
        ensemble.n_outputs,
        connection=ensemble.connection,
        integer_input=ensemble.integer_input,
    )
    # What is drawn for their weights must not use up random numbers.
    with seeded(0, torch.device("cpu")):
        for _ in range(n_students):
            sample.append(sample.new_student(factory))
    return sample


def _checked_ladder(ladder, estimator_name, earlier):
    ladder = _check_ladder(ladder, estimator_name)
    last = -1 if earlier is None else earlier.ladder_positions_[-1]
    if last >= len(ladder):
        raise ValueError(
            f"With warm_start=True, the ladder in the 'student' parameter of "
            f"{estimator_name} must reach the class of the last student, number "
            f"{last + 1}. Got {len(ladder)} class(es)."
        )
    return ladder


def _label_tensor(label, dtype):
    return None if label is None else torch.as_tensor(label, dtype=dtype)
