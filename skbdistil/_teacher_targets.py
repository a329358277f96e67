"""What students learn from a teacher: its scores in or out of fold, of one or several.

A teacher that has seen a row may know its label by heart. Then its score of this row
says nothing else.
"""

import math
import warnings
from contextlib import ExitStack, contextmanager
from numbers import Integral

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    check_cv,
)
from sklearn.utils.validation import check_consistent_length

from skbdistil._decoding import as_pairs, of_pairs
from skbdistil._sklearn_compat import _safe_indexing
from skbdistil._teacher_scores import _SMOOTHING, teacher_response
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.teachers import TorchTeacher

# Folds of teacher_cv="auto".
_N_FOLDS = 5

# teacher_cv="auto" looks closer where the teacher leaves no doubt about so many of its
# own rows, and takes scores out of fold where it does so for fewer others.
_SURE = 0.9
_LESS_SURE = 0.2

# A teacher that came trained and leaves no doubt about so many rows is doubted.
_HAS_SEEN = 0.99


def teacher_targets(teacher, X, y, *, cv, groups=None, teacher_scores=None, **options):
    """Ask one teacher or several, about rows that they have seen or not.

    Parameters
    ----------
    teacher : object
        As for :func:`~skbdistil._teacher_scores.teacher_response`, or a list of these,
        whose probabilities, or values, are averaged: by how much better than a constant
        they are where all are asked out of fold, else alike.

    X, y : array-like and ndarray or None
        Training rows, and their labels or targets.

    cv : None, int, splitter, iterable or "auto"
        Folds out of which a teacher that is fitted here is asked. None: it is asked
        about the rows that it is fitted to. ``"auto"``: five folds where it leaves no
        doubt about nine in ten of its own rows, and about a fifth fewer of those of a
        fold that it has not seen; else like None.

    groups : array-like of shape (n_samples,), default=None
        Rows of a group are in one fold.

    teacher_scores : array-like, default=None
        For ``teacher="precomputed"``.

    **options : dict
        Of :func:`~skbdistil._teacher_scores.teacher_response`.

    Returns
    -------
    response : TeacherResponse
        Its `kind` is "out-of-fold" where the scores are.

    notes : list of Warning

    Raises
    ------
    ValueError
        Also if a class is missing in the training rows of a fold, if the folds do not
        hold each row once, or if there are folds for a teacher that came trained.
    """
    estimator_name = options["estimator_name"]
    if isinstance(teacher, list | tuple):
        return _mean_of(
            teacher,
            X,
            y,
            cv=cv,
            groups=groups,
            teacher_scores=teacher_scores,
            **options,
        )
    trained = comes_trained(teacher)
    automatic = isinstance(cv, str)
    if trained:
        if cv is not None and not automatic:
            raise ValueError(
                f"The 'teacher_cv' parameter of {estimator_name} must be 'auto' or "
                "None for a teacher that is not fitted in fit: it cannot be asked out "
                f"of fold. Got {cv!r}."
            )
        response = teacher_response(
            teacher, X, y, teacher_scores=teacher_scores, **options
        )
        return response, _doubts(response, estimator_name, judge=True)
    if teacher_scores is not None or y is None or cv is None or automatic:
        # The first two are errors.
        response = teacher_response(
            teacher, X, y, teacher_scores=teacher_scores, **options
        )
        if cv is None or response.sure is None or response.sure < _SURE:
            return response, _doubts(response, estimator_name)
    folds = _Folds(teacher, X, y, _N_FOLDS if automatic else cv, groups, options)
    if automatic:
        if folds.problem is not None:
            return response, [
                *_doubts(response, estimator_name),
                DoubtfulTeacherWarning(
                    f"{response.name}, the teacher of {estimator_name}, leaves no "
                    f"doubt about {response.sure:.0%} of the rows that it was fitted "
                    f"to: its scores may say no more than y does. {folds.problem}"
                ),
            ]
        first = folds.ask(0)
        if response.sure - first.sure <= _LESS_SURE:
            n_calls = response.n_calls + first.n_calls
            return response._replace(n_calls=n_calls), _doubts(response, estimator_name)
    elif folds.problem is not None:
        raise ValueError(folds.problem)
    found = folds.ask_all()
    transfers = options.pop("transfers", ())
    if automatic:
        found = found._replace(
            transfer_scores=response.transfer_scores,
            n_calls=found.n_calls + response.n_calls,
        )
    elif transfers:
        # By the teacher of all rows.
        first, *others = transfers
        whole = teacher_response(
            teacher, X, y, X_asked=first, transfers=others, **options
        )
        parts = [whole.scores] + [whole.transfer_scores] * bool(others)
        found = found._replace(
            transfer_scores=_columns_like(found, whole, np.concatenate(parts)),
            n_calls=found.n_calls + whole.n_calls,
        )
    notes = _doubts(found, estimator_name)
    if automatic:
        notes.append(
            DoubtfulTeacherWarning(
                f"{found.name}, the teacher of {estimator_name}, leaves no doubt about "
                f"{response.sure:.0%} of the rows that it was fitted to, and about "
                f"{first.sure:.0%} of others: it knows them by heart. The students "
                f"learn from its scores out of {_N_FOLDS} folds. Pass "
                f"teacher_cv={_N_FOLDS} to have these without a warning, or None for "
                "the scores of the rows that it has seen."
            )
        )
    return found, notes


def comes_trained(teacher):
    """Whether a teacher is used as it is, and not fitted in fit."""
    return isinstance(teacher, FrozenEstimator | TorchTeacher | torch.nn.Module | str)


def all_trained(teacher):
    """Whether a teacher, or each of several, can be asked at any time."""
    if isinstance(teacher, list | tuple):
        return bool(teacher) and all(map(all_trained, teacher))
    return comes_trained(teacher) and not isinstance(teacher, str)


@contextmanager
def at_hand(teacher):
    """Have teachers of torch where they run, while they are asked again and again.

    Parameters
    ----------
    teacher : object
        One that comes trained, or a list of these.
    """
    with ExitStack() as stack:
        for one in teacher if isinstance(teacher, list | tuple) else [teacher]:
            if isinstance(one, torch.nn.Module):
                one = TorchTeacher(one)
            if isinstance(one, TorchTeacher):
                stack.enter_context(one._at_hand())
        yield


def further_answers(
    teacher,
    X,
    *,
    teacher_scores=None,
    classes,
    n_outputs,
    multilabel,
    dtype,
    random_state,
    estimator_name,
):
    """Ask a teacher that comes trained about rows after a fit.

    Parameters
    ----------
    teacher : object
        As for :func:`teacher_targets`, or ``"precomputed"``.

    X : array-like of shape (n_samples, ...)

    teacher_scores : array-like, default=None
        For ``teacher="precomputed"``, in the order of `classes`.

    classes : ndarray or None
        Those of the fit, all of which the teacher must know; None for a regression.

    n_outputs : int

    multilabel : bool

    dtype, random_state, estimator_name
        As for :func:`~skbdistil._teacher_scores.teacher_response`.

    Returns
    -------
    response : TeacherResponse

    notes : list of Warning
    """
    given = teacher_scores is not None
    # Instead of labels, of which a few rows need not have all.
    labels = np.zeros((1, n_outputs), dtype=int) if multilabel else classes
    response, notes = teacher_targets(
        teacher,
        X if given else None,
        None if given and not multilabel else labels,
        cv=None,
        teacher_scores=teacher_scores,
        X_asked=None if given else X,
        regression=classes is None,
        multilabel=multilabel,
        dtype=dtype,
        random_state=random_state,
        compares=False,
        estimator_name=estimator_name,
    )
    if given:
        check_consistent_length(X, response.scores)
        if response.scores.shape[1] != n_outputs:
            raise ValueError(
                f"The teacher_scores of {estimator_name} must have the {n_outputs} "
                f"columns of the fit. Got shape {np.shape(teacher_scores)}."
            )
        response = response._replace(classes=classes)
    return response, notes


def _doubts(response, estimator_name, *, judge=False):
    """Warnings about a teacher; whether it has seen the rows is to be judged or not."""
    notes = [] if response.warning is None else [response.warning]
    if judge and response.sure is not None and response.sure >= _HAS_SEEN:
        notes.append(
            DoubtfulTeacherWarning(
                f"{response.name}, the teacher of {estimator_name}, leaves no doubt "
                f"about {response.sure:.0%} of the rows, and is right: it says no more "
                "than y does. If it was trained on these rows, pass others, without y "
                "or with it, or an unfitted teacher and teacher_cv=5."
            )
        )
    return notes


class _Folds:
    """Rows in folds, each to be asked about by a teacher that has not seen it.

    Attributes
    ----------
    problem : str or None
        Why these folds will not do.
    """

    def __init__(self, teacher, X, y, cv, groups, options):
        self.teacher, self.X, self.y = teacher, X, y
        self.options = {k: v for k, v in options.items() if k != "transfers"}
        self.sample_weight = self.options.pop("sample_weight", None)
        regression, multilabel = options["regression"], options.get("multilabel")
        estimator_name = options["estimator_name"]
        self.problem, self.folds, self.responses = None, [], {}
        if isinstance(cv, Integral):
            # Rows may come sorted.
            shuffled = {"shuffle": True, "random_state": options["random_state"]}
            if regression or multilabel:
                cv = KFold(cv, **shuffled) if groups is None else GroupKFold(cv)
            else:
                kind = StratifiedKFold if groups is None else StratifiedGroupKFold
                cv = kind(cv, **shuffled)
        try:
            with warnings.catch_warnings():
                # A class that has fewer rows than there are folds is in some of them.
                warnings.filterwarnings("ignore", "The least populated class in y")
                self.folds = list(check_cv(cv).split(np.zeros(len(y)), y, groups))
        except ValueError as error:
            self.problem = (
                f"The folds of the 'teacher_cv' of {estimator_name} cannot be made of "
                f"{len(y)} rows: {error}"
            )
            return
        held_out = [test for _, test in self.folds] or [np.array([], int)]
        if not np.array_equal(np.sort(np.concatenate(held_out)), np.arange(len(y))):
            self.problem = (
                f"The folds of the 'teacher_cv' of {estimator_name} must hold each of "
                f"the {len(y)} rows once. Got {sum(map(len, held_out))} in "
                f"{len(self.folds)} folds."
            )
            return
        # Of a label that is missing, or in all rows, a teacher says just that.
        if regression or multilabel:
            return
        labels = set(y.tolist())
        for number, (train, _) in enumerate(self.folds, start=1):
            if missing := labels - set(y[train].tolist()):
                self.problem = (
                    f"With 'teacher_cv', {estimator_name} needs rows of each class in "
                    f"the training rows of every fold. Got none of {missing.pop()!s} "
                    f"in fold {number}. Use fewer folds, other ones, or "
                    "teacher_cv=None."
                )
                return

    def ask(self, position):
        """Response to the rows of one fold."""
        if position not in self.responses:
            train, test = self.folds[position]
            weight = self.sample_weight
            try:
                self.responses[position] = teacher_response(
                    self.teacher,
                    _safe_indexing(self.X, train),
                    self.y[train],
                    sample_weight=None if weight is None else weight[train],
                    X_asked=_safe_indexing(self.X, test),
                    y_asked=self.y[test],
                    **self.options,
                )
            except (ValueError, RuntimeError) as error:
                raise type(error)(
                    f"In fold {position + 1} of 'teacher_cv': {error}"
                ) from error
        return self.responses[position]

    def ask_all(self):
        """Response to all rows, each by the teacher that has not seen it."""
        responses = [self.ask(position) for position in range(len(self.folds))]
        first = responses[0]
        scores = np.empty((len(self.y), first.scores.shape[1]), first.scores.dtype)
        for (_, test), response in zip(self.folds, responses, strict=True):
            scores[test] = _columns_like(first, response, response.scores)
        n_rows = [len(test) for _, test in self.folds]
        sure = [response.sure for response in responses]
        return first._replace(
            scores=scores,
            kind="out-of-fold",
            n_calls=sum(response.n_calls for response in responses),
            sure=float(np.average(sure, weights=n_rows)),
        )


def _columns_like(first, other, scores):
    """Scores of another response, with columns in the order of those of a first one."""
    if first.classes is None or np.array_equal(first.classes, other.classes):
        return scores
    positions = {label: column for column, label in enumerate(other.classes.tolist())}
    return scores[:, [positions[label] for label in first.classes.tolist()]]


def _mean_of(teachers, X, y, *, teacher_scores, **options):
    """Mean of the probabilities, or of the values, of several teachers."""
    estimator_name = options["estimator_name"]
    if not teachers or any(isinstance(teacher, str) for teacher in teachers):
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} must be a teacher or a list "
            f"of teachers, none of which is 'precomputed'. Got {teachers!r}."
        )
    cv, random_state = options.pop("cv"), options.pop("random_state")
    asked = [
        teacher_targets(
            teacher,
            X,
            y,
            # Those that came trained cannot be asked out of fold.
            cv="auto" if comes_trained(teacher) else cv,
            teacher_scores=teacher_scores,
            # Two teachers of one kind are two.
            random_state=None if random_state is None else random_state + position,
            **options,
        )
        for position, teacher in enumerate(teachers)
    ]
    responses = [response for response, _ in asked]
    first = responses[0]
    for other in responses[1:]:
        same_columns = other.scores.shape == first.scores.shape
        if first.classes is not None:
            same_columns &= set(first.classes.tolist()) == set(other.classes.tolist())
        if not same_columns:
            raise ValueError(
                f"The teachers of {estimator_name} must have the same classes or "
                f"targets. Those of {first.name} and {other.name} differ."
            )
    weights = _weights(responses, y, options.get("sample_weight"))

    def mean(parts):
        if first.classes is None:
            return np.average(parts, axis=0, weights=weights).astype(first.scores.dtype)
        shares = np.log(np.maximum(weights, np.finfo(np.float64).tiny))[:, None, None]
        if options.get("multilabel"):
            pairs = logsumexp(
                log_softmax([as_pairs(part) for part in parts], axis=2) + shares, axis=0
            )
            return of_pairs(pairs, len(first.classes)).astype(first.scores.dtype)
        scores = logsumexp(log_softmax(parts, axis=2) + shares, axis=0)
        scores -= scores.mean(axis=1, keepdims=True)
        return scores.astype(first.scores.dtype)

    transfer = None
    if first.transfer_scores is not None:
        transfer = mean(
            [
                _columns_like(first, response, response.transfer_scores)
                for response in responses
            ]
        )
    kinds = {response.kind for response in responses}
    return first._replace(
        scores=mean(
            [_columns_like(first, response, response.scores) for response in responses]
        ),
        transfer_scores=transfer,
        module=None,
        module_input=None,
        macs=None,
        predict=None,
        name=" and ".join(response.name for response in responses),
        fitted_here=any(response.fitted_here for response in responses),
        warning=None,
        n_calls=sum(response.n_calls for response in responses),
        sure=None,
        kind=kinds.pop() if len(kinds) == 1 else "mixed",
    ), [note for _, notes in asked for note in notes]


def _weights(responses, y, sample_weight):
    """Weights of teachers, of sum 1: how much better they are than a constant."""
    if any(response.kind != "out-of-fold" for response in responses):
        return np.full(len(responses), 1 / len(responses))
    if responses[0].classes is None:
        gains = [
            r2_score(y, response.scores, sample_weight=sample_weight)
            for response in responses
        ]
    elif y.ndim == 2:
        # Right about so many more labels than whoever says the same of all rows.
        shares = np.average(y, axis=0, weights=sample_weight)
        constant = np.maximum(shares, 1 - shares).mean()
        gains = [
            np.average((response.scores > 0) == y, axis=0, weights=sample_weight).mean()
            - constant
            for response in responses
        ]
    else:
        _, label = np.unique(y, return_inverse=True)
        shares = np.bincount(label, weights=sample_weight)
        gains = [
            accuracy_score(
                y,
                response.classes[response.scores.argmax(axis=1)],
                sample_weight=sample_weight,
            )
            - shares.max() / shares.sum()
            for response in responses
        ]
    gains = np.maximum(gains, 0.0)
    if not gains.any():
        gains[:] = 1.0
    return gains / gains.sum()


def _is_indicator(label):
    return label.ndim == 2 and label.dtype.kind == "i"


def mixed_with_labels(scores, label, share):
    """Targets that are partly what the teacher says, partly what is true.

    Probabilities are mixed, ``(1 - m) p + m y``, and values of a regression alike.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_outputs)
        Centred logits, log-odds of labels, or standardised values.
    label : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Positions of classes, labels as integers 0 and 1, or targets in the units of the
        scores.
    share : float
        The share m, in [0, 1).

    Returns
    -------
    scores : ndarray of shape (n_samples, n_outputs)
    """
    if _is_indicator(label):
        pairs = mixed_with_labels(as_pairs(scores), label.ravel(), share)
        return of_pairs(pairs, label.shape[1])
    if label.ndim == 2:
        return (1 - share) * scores + share * label
    logarithm = log_softmax(scores, axis=1) + math.log1p(-share)
    rows = np.arange(len(label))
    logarithm[rows, label] = np.logaddexp(logarithm[rows, label], math.log(share))
    return logarithm - logarithm.mean(axis=1, keepdims=True)


def scores_of_labels(label, known):
    """What stands in for a teacher that was not asked: what is true, as it would say.

    Parameters
    ----------
    label : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Positions of classes, labels as integers 0 and 1, or targets in the units of the
        scores.
    known : ndarray of shape (n_known, n_outputs)
        Scores of other rows. Logits are no larger than the largest of these, which
        decides the step of the game.

    Returns
    -------
    scores : ndarray of shape (n_samples, n_outputs)
    """
    if _is_indicator(label):
        pairs = scores_of_labels(label.ravel(), as_pairs(known))
        return of_pairs(pairs, label.shape[1])
    if label.ndim == 2:
        return label
    # As probabilities of 0 and 1 become scores.
    nothing = np.zeros((len(label), known.shape[1]), known.dtype)
    scores = mixed_with_labels(nothing, label, 1 - _SMOOTHING)
    return scores * min(1.0, float(np.abs(known).max() / np.abs(scores).max()))
