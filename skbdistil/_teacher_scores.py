"""Any teacher, brought to scores of shape (n, L).

A teacher runs once per fit, here, and the rest of the package sees its scores only.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.special import softmax
from sklearn.base import clone, is_classifier
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, has_fit_parameter
from skorch import NeuralNet
from torch import nn

from skbdistil._arrays import (
    LazyRows,
    as_array,
    as_tensor,
    floating_dtype,
    home_device,
    row_chunks,
)
from skbdistil._boosting._rows import chunk_rows
from skbdistil._label_scores import (
    check_label_predictions,
    doubted_label_logits,
    label_columns,
    label_logits,
    odds_of_answers,
    sure_of_labels,
    tells_no_labels,
)
from skbdistil._seeding import seeded, seeded_clone
from skbdistil._sklearn_compat import _is_fitted, _num_samples, _safe_indexing
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.teachers import TorchTeacher, _class_columns, scores_from_labels

# Share of the uniform distribution mixed into probabilities before their logarithm,
# which keeps zeros finite.
_SMOOTHING = 1e-3

# Largest distance from 1 at which the sum of a row still passes for rounding.
_SUM_TOLERANCE = 1e-3

# What a probability of 1, or the error of a target, may lack: relative to its spread.
_DOUBT = 1e-6

# Rows of a single score that are enough to doubt it.
_MIN_DOUBTED = 4

# Rows on which a teacher's own `predict` is compared with its scores.
_COMPARED_ROWS = 100

# What y holds where several classes are turned into questions of yes and no.
_ONE_AGAINST_REST = (
    "OneVsRestClassifier and OneVsOneClassifier pass labels 0 and 1 for their own "
    "classes: a teacher of all classes is distilled without them."
)


class TeacherResponse(NamedTuple):
    """What a teacher says about rows.

    Attributes
    ----------
    scores : ndarray of shape (n_samples, n_outputs)
        Classification: logits, with a mean of 0 in every row. Several labels per row:
        the log-odds of each label, of which `classes` are the numbers. Regression:
        values of the targets, in their own units. NaN in the rows that `teacher_scores`
        leaves out. For a teacher that is asked about other rows than those that it is
        fitted to, these.

    transfer_scores : ndarray of shape (n_transfer, n_outputs) or None
        The same of `transfers`, one after the other. None where there are none.

    classes : ndarray of shape (n_outputs,) or None
        Label of each column, in the order of the teacher. None for regression.

    module : torch.nn.Module or None
        The network of a torch teacher or frozen skorch net, whose cost can be counted.
        None for other teachers.

    module_input : torch.Tensor, tuple or dict of these, or None
        What `module` is called with for the first row. None where `module` is None.

    macs : int or None
        Multiply-accumulates of the module, where its user has stated them.

    single_output : bool
        Whether a regression predicts an array of shape (n_samples,).

    name : str
        Name of the teacher, for messages.

    fitted_here : bool
        Whether the teacher was fitted to the rows.

    warning : DoubtfulTeacherWarning or None
        What speaks against taking the scores for what they are said to be.

    kind : {"in-sample", "out-of-fold", "unknown"}
        Whether the teacher had seen the rows of `scores` in its own fit.

    n_calls : int
        Number of rows that the teacher was asked about.

    predict : callable or None
        What predicts the labels or targets of further rows; None for precomputed
        scores.

    sure : float or None
        Share of the rows for which the teacher leaves no doubt about what y holds: it
        gives the label a probability of 1, or the target itself, but for 1e-6. None
        without y, and for precomputed scores, which are meant to be learnt.

    Examples
    --------
    >>> from skbdistil._teacher_scores import teacher_response
    >>> response = teacher_response(
    ...     "precomputed",
    ...     [[0.0], [1.0]],
    ...     teacher_scores=[2.5, 3.5],
    ...     regression=True,
    ...     estimator_name="BDistilRegressor",
    ... )
    >>> response.scores
    array([[2.5],
           [3.5]], dtype=float32)
    >>> response.single_output
    True
    """

    scores: np.ndarray
    transfer_scores: np.ndarray | None
    classes: np.ndarray | None
    module: nn.Module | None
    module_input: object
    macs: int | None
    single_output: bool
    name: str
    fitted_here: bool
    warning: DoubtfulTeacherWarning | None
    kind: str
    n_calls: int
    predict: Callable | None
    sure: float | None


class _Teacher(NamedTuple):
    """A teacher that is ready to be asked: `ask` takes rows and returns an answer."""

    name: str
    ask: Callable
    predict: Callable | None
    fitted_here: bool


class _Answer(NamedTuple):
    """What a teacher returned, before it is checked."""

    values: object
    proba: bool = False
    classes: object = None
    module: nn.Module | None = None
    module_input: object = None
    macs: int | None = None
    # Some rows, and the column of the label that the teacher predicts for each of them,
    # or with several labels per row what it predicts.
    rows: np.ndarray | None = None
    predicted: np.ndarray | None = None


def teacher_response(
    teacher,
    X,
    y=None,
    *,
    regression,
    multilabel=False,
    sample_weight=None,
    teacher_scores=None,
    X_asked=None,
    y_asked=None,
    transfers=(),
    random_state=None,
    dtype=np.float32,
    compares=True,
    estimator_name,
):
    """Ask a teacher for its scores of rows, once.

    Probabilities become logits as the logarithm of ``(1 - e) * p + e / n_classes``
    with ``e = 1e-3``, which is finite where ``p`` is 0. Logits are centred per row.
    The decision function ``d`` of two classes becomes the columns ``[-d/2, d/2]``.

    A scikit-learn classifier is also asked for the labels of at most 100 rows, which
    must agree with its scores.

    Parameters
    ----------
    teacher : estimator, TorchTeacher, torch.nn.Module, "precomputed" or None
        An unfitted scikit-learn estimator is cloned and fitted on `X` and `y`. A
        fitted one is given as ``FrozenEstimator(fitted)``, also for a skorch net. A
        bare module is taken for ``TorchTeacher(module)``. `"precomputed"` takes
        `teacher_scores`. `None` fits extremely randomized trees to the flattened
        rows, with at least two rows per leaf, five for a regression.

    X : array-like of shape (n_samples, ...)
        Training rows as the user passed them, so that a teacher fitted with feature
        names sees them.

    y : ndarray of shape (n_samples,) or (n_samples, n_outputs), default=None
        Labels, or targets of a regression. `None` is allowed if the teacher is not
        fitted here and brings its own classes. A teacher that is fitted here and
        refuses the labels is fitted to their positions among the sorted labels.

    regression : bool
        Whether the teacher is a regressor.

    multilabel : bool, default=False
        Whether `y`, which must not be None, has several labels per row, and the teacher
        says something of each of them.

    sample_weight : array-like of shape (n_samples,), default=None
        Weights for the fit of the teacher. Left out where its `fit` does not take
        them.

    teacher_scores : array-like or torch.Tensor of shape (n_samples, n_outputs), \
            default=None
        Logits, or values of the targets, for `teacher="precomputed"` only. One column
        for two classes, or shape (n_samples,), holds the log-odds of the second one.
        Shape (n_samples,) is also allowed for regression. Rows of NaN are those that
        the teacher was not asked about.

    X_asked, y_asked : array-like and ndarray, default=None
        Rows to ask about instead of `X`, and what is true of them, for a teacher that
        is fitted to `X` here.

    transfers : sequence of array-like of shape (n_transfer, ...), default=()
        Further rows to ask about, of which nothing else is known. Not with
        "precomputed".

    random_state : int or None, default=None
        Seeds a teacher that is fitted here, in its parameters `random_state` that are
        None, and for any teacher the global generators of torch, NumPy and Python,
        which are restored afterwards. If `None`, all of them stay as they are.

    dtype : dtype, default=np.float32
        Dtype of the scores.

    compares : bool, default=True
        Whether a scikit-learn classifier is asked for labels, too. A few rows cannot
        tell whether these agree with its scores.

    estimator_name : str
        Name of the estimator that asks, for error messages.

    Returns
    -------
    response : TeacherResponse
        The scores, C-contiguous and finite, and what goes with them.

    Raises
    ------
    TypeError
        If `teacher` is none of the above.

    ValueError
        If the teacher is fitted but not frozen, if `y` is needed and missing, if
        `teacher_scores` is given for another teacher or missing, if the output of the
        teacher is not finite or has the wrong shape, if its probabilities are none, if
        its scores say other labels than its `predict`, or if its classes do not cover
        `y` or cannot be told.

    RuntimeError
        If the teacher raises anything but a ValueError.

    See Also
    --------
    skbdistil.teachers.TorchTeacher : A pretrained torch module as a teacher.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skbdistil._teacher_scores import teacher_response
    >>> X, y = load_iris(return_X_y=True)
    >>> fitted = LogisticRegression(max_iter=1000).fit(X, y)
    >>> response = teacher_response(
    ...     FrozenEstimator(fitted),
    ...     X,
    ...     regression=False,
    ...     estimator_name="BDistilClassifier",
    ... )
    >>> response.scores.shape
    (150, 3)
    >>> response.classes
    array([0, 1, 2])
    """
    precomputed = isinstance(teacher, str) and teacher == "precomputed"
    if precomputed and teacher_scores is None:
        raise ValueError(
            f"{estimator_name} with teacher='precomputed' requires teacher_scores to "
            "be passed to fit. Got teacher_scores=None."
        )
    if not precomputed and teacher_scores is not None:
        raise ValueError(
            "teacher_scores can only be passed to the fit of "
            f"{estimator_name} with teacher='precomputed'. Got teacher={teacher!r}."
        )
    frozen = isinstance(teacher, FrozenEstimator)
    if frozen:
        teacher = teacher.estimator
    if isinstance(teacher, nn.Module):
        teacher = TorchTeacher(teacher)
    of_torch = isinstance(teacher, TorchTeacher)
    if precomputed:
        name = "teacher_scores"
        given = as_array(teacher_scores, input_name=name, estimator_name=estimator_name)
        # Asked in this order.
        sizes = [_num_samples(rows) for rows in (X, *transfers)]
        if transfers and len(given) != sum(sizes):
            raise ValueError(
                f"With teacher='precomputed', {estimator_name} has no teacher to ask "
                "about the rows of X_unlabelled or 'augment'. The scores of those of "
                "X_unlabelled must follow those of X in teacher_scores, "
                f"{sum(sizes)} rows in all. Got {len(given)}."
            )
        parts = iter(np.split(given, np.cumsum(sizes)[:-1]))
        ready = _Teacher(
            name, lambda rows: _Answer(next(parts)), None, fitted_here=False
        )
    else:
        ready = _ready(
            teacher,
            X,
            y,
            frozen=frozen,
            regression=regression,
            multilabel=multilabel,
            sample_weight=sample_weight,
            random_state=random_state,
            compares=compares,
            estimator_name=estimator_name,
        )
    name = ready.name
    if X_asked is None:
        X_asked, y_asked = X, y
    answer = ready.ask(X_asked)
    scores = _check_scores(
        answer.values, _num_samples(X_asked), dtype, name, estimator_name
    )
    if regression:
        if y is not None:
            single_output = y.ndim == 1
        elif of_torch:
            single_output = scores.shape[1] == 1
        else:
            single_output = scores.ndim == 1
    else:
        single_output = False
    scores = scores.reshape(len(scores), -1)
    was_asked = slice(None)
    if precomputed and np.isnan(scores).any():
        was_asked = ~np.isnan(scores).all(axis=1)
        _check_finite(scores, name, estimator_name, but=~was_asked)
        if not was_asked.any():
            raise ValueError(
                f"The teacher_scores of {estimator_name} are NaN in all rows; some "
                "must be known."
            )
        scores = scores[was_asked]
        y_asked = None if y_asked is None else y_asked[was_asked]
    _check_finite(scores, name, estimator_name)

    classes = warning = None
    if multilabel:
        if (precomputed or of_torch) and not answer.proba:
            warning = doubted_label_logits(scores, name, estimator_name)
        if scores.shape[1] != y.shape[1]:
            raise ValueError(
                f"The teacher of {estimator_name} must return one score for each of "
                f"the {y.shape[1]} labels of y. Got {scores.shape[1]} columns from "
                f"{name}."
            )
        classes = np.arange(scores.shape[1])
    elif not regression:
        if (precomputed or of_torch) and not answer.proba:
            warning = _logits_warning(scores, name, estimator_name)
        scores = _class_columns(scores, answer.proba)
        classes = answer.classes
        if precomputed and y is None:
            classes = np.arange(scores.shape[1])
        elif classes is None:
            classes = _infer_classes(y, scores.shape[1], name, estimator_name)
        classes = np.asarray(classes)
        _check_classes(classes, y, sample_weight, scores, name, estimator_name)
        if X_asked is X and y is not None:
            # Not of a fold, which may hold some of the labels only.
            _check_meaning(classes, y_asked, scores, name, estimator_name)
        _check_predicted(answer, scores, name, estimator_name)
    naming = {"name": name, "estimator_name": estimator_name}
    if regression:
        as_scores = None
    elif multilabel:
        as_scores = partial(
            label_logits, proba=answer.proba, smoothing=_SMOOTHING, **naming
        )
    else:
        as_scores = partial(_logits, proba=answer.proba, of=teacher, **naming)
    if as_scores is not None:
        scores = as_scores(scores)
    if multilabel and answer.rows is not None:
        check_label_predictions(answer.predicted, scores[answer.rows], **naming)
    sure = None
    if y_asked is not None and not precomputed:
        sure = _sure_share(scores, answer.proba, classes, y_asked)
    n_calls = len(scores)
    if not isinstance(was_asked, slice):
        everywhere = np.full((len(was_asked), scores.shape[1]), np.nan, scores.dtype)
        everywhere[was_asked] = scores
        scores = everywhere

    transfer_scores = []
    for rows in transfers:
        part = _check_scores(
            ready.ask(rows).values, _num_samples(rows), dtype, name, estimator_name
        )
        part = part.reshape(len(part), -1)
        _check_finite(part, name, estimator_name)
        if as_scores is not None:
            part = as_scores(part if multilabel else _class_columns(part, answer.proba))
        n_calls += len(part)
        transfer_scores.append(part)
    return TeacherResponse(
        scores,
        np.concatenate(transfer_scores) if transfers else None,
        classes,
        answer.module,
        answer.module_input,
        answer.macs,
        single_output,
        name,
        ready.fitted_here,
        warning,
        "in-sample" if ready.fitted_here else "unknown",
        n_calls,
        ready.predict,
        sure,
    )


def _logits(scores, *, proba, of, name, estimator_name):
    """Centred logits, of probabilities or of logits."""
    if proba:
        _check_proba(scores, of, name, estimator_name)
        scores = _log_smoothed(scores)
    scores = _centered(scores)
    _check_finite(scores, name, estimator_name)
    return scores


def _sure_share(scores, proba, classes, y):
    """Share of rows for which a teacher leaves no doubt about what y holds, or None."""
    if classes is None:
        y = y.reshape(len(y), -1)
        if y.shape != scores.shape:
            return None
        with np.errstate(over="ignore"):
            is_sure = np.abs(scores - y) <= _DOUBT * np.std(y, axis=0)
        return float(is_sure.all(axis=1).mean())
    smoothing = _SMOOTHING if proba else 0.0
    if y.ndim == 2:
        bar = (1 - smoothing) * (1 - _DOUBT) + smoothing / 2
        return sure_of_labels(scores, y, bar)
    order = np.argsort(classes)
    columns = order[np.searchsorted(classes, y, sorter=order)]
    found = softmax(scores, axis=1)[np.arange(len(y)), columns]
    bar = (1 - smoothing) * (1 - _DOUBT) + smoothing / len(classes)
    return float(np.mean(found >= bar))


def _ready(
    teacher,
    X,
    y,
    *,
    frozen,
    regression,
    multilabel,
    sample_weight,
    random_state,
    compares,
    estimator_name,
):
    """A teacher that can be asked, fitted where it must be."""
    flat = teacher is None
    if flat:
        teacher = _default_teacher(regression)
        X = X if isinstance(X, LazyRows) else _flat(X)

    if isinstance(teacher, TorchTeacher):
        name = f"TorchTeacher({type(teacher.module).__name__})"
        if regression and teacher.output == "proba":
            raise ValueError(
                f"{estimator_name} needs a teacher that returns values. Got a "
                "TorchTeacher with output='proba'; a regression module has "
                "output='logits'."
            )

        def ask(rows):
            with _naming(name, rows, estimator_name):
                return _ask_torch(teacher, rows, random_state)

        predict = teacher.decision_function if regression else teacher.predict
        return _Teacher(name, ask, predict, fitted_here=False)

    name = type(teacher).__name__
    model, labels = teacher, None
    if isinstance(X, LazyRows) and not frozen:
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} is a {name}, which is fitted "
            "to X, and X is a dataset. A teacher of a dataset comes trained: pass a "
            "TorchTeacher, a FrozenEstimator, or 'precomputed' and teacher_scores."
        )
    if frozen:
        check_is_fitted(
            teacher,
            msg=f"The 'teacher' parameter of {estimator_name} is a "
            f"FrozenEstimator around an unfitted {name}. Fit that first, or pass "
            "it without FrozenEstimator to have it fitted.",
        )
    else:
        _check_unfitted(teacher, y, estimator_name)
        with _model_context(teacher, random_state), _naming(name, X, estimator_name):
            model, labels = _fit_clone(
                teacher,
                _own(_net_input(teacher, X)),
                y,
                sample_weight,
                random_state,
                regression,
            )

    def seen(rows):
        return _flat(rows) if flat else rows

    def ask(rows):
        chunks = [(None, rows)]
        if isinstance(rows, LazyRows):
            chunks = row_chunks(rows, chunk_rows(rows.shape[1:]))
        with _model_context(teacher, random_state):
            answers = [
                _ask_model(
                    model,
                    seen(some),
                    labels,
                    frozen=frozen,
                    regression=regression,
                    multilabel=multilabel,
                    compares=compares,
                    name=name,
                    estimator_name=estimator_name,
                )
                for _, some in chunks
            ]
        # Its own labels are compared for rows of the first chunk.
        if len(answers) == 1:
            return answers[0]
        values = np.concatenate([np.asarray(answer.values) for answer in answers])
        return answers[0]._replace(values=values)

    def predict(rows):
        return model.predict(_net_input(model, seen(rows)))

    return _Teacher(name, ask, predict, fitted_here=not frozen)


def _flat(X):
    """Rows as a table, sparse ones as they are."""
    if sparse.issparse(X):
        return X
    return as_array(X).reshape(_num_samples(X), -1)


def teacher_score_warning(
    response, score, y, sample_weight, *, scores=None, estimator_name
):
    """Doubt a teacher that is no better on the rows than a constant.

    Only one that came trained: what is wrong is then most likely how it is used. A
    teacher that is fitted to noise is as good as it can be.

    Parameters
    ----------
    response : TeacherResponse
    score : float
        Accuracy, or R^2, of the scores on `y`.
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Labels or targets.
    sample_weight : ndarray of shape (n_samples,) or None
    scores : ndarray of shape (n_samples, n_labels), default=None
        Needed for several labels per row, which the score does not judge: the most
        frequent set of labels may well be right more often than a good teacher.
    estimator_name : str
        Name of the estimator, for messages.

    Returns
    -------
    warning : DoubtfulTeacherWarning or None
        None where nothing speaks against the teacher.
    """
    labels, positions = np.unique(y, return_inverse=True)
    if response.fitted_here or len(labels) < 2:
        return None
    if response.classes is not None and y.ndim == 2:
        if not tells_no_labels(scores, y):
            return None
        what = "scores that are no higher for the labels of a row than for others"
    elif response.classes is None:
        if not score <= 0:
            return None
        what = f"an R^2 of {score:.3g}: the mean of y is no worse"
    else:
        counts = np.bincount(positions.ravel(), weights=sample_weight)
        share = counts.max() / counts.sum()
        # Equal up to rounding, where it always says the same.
        if score > share + 1e-9:
            return None
        what = (
            f"an accuracy of {score:.3g}: to say {labels[counts.argmax()]!s} each time "
            f"has {share:.3g}"
        )
    return DoubtfulTeacherWarning(
        f"On the rows given to fit, {response.name}, the teacher of {estimator_name}, "
        f"has {what}. Inside a Pipeline a teacher sees the transformed rows: train it "
        "on those, or leave the steps out, or pass teacher='precomputed' and its "
        "scores of the untransformed rows. Otherwise check that its outputs are in the "
        "order of its classes."
    )


def _default_teacher(regression):
    # Extremely randomized trees use all rows in every tree. With small leaves they know
    # these by heart, with probabilities of 0 and 1 or the noise of the targets, and
    # that is what the students would learn.
    if regression:
        return ExtraTreesRegressor(min_samples_leaf=5)
    return ExtraTreesClassifier(min_samples_leaf=2)


@contextmanager
def _naming(name, X, estimator_name):
    """Say of which teacher an error is, and on what rows."""
    try:
        yield
    except (MemoryError, Warning):
        raise
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(
            f"The teacher of {estimator_name}, {name}, raised {type(error).__name__} "
            f"on {_num_samples(X)} row(s) of shape {tuple(np.shape(X)[1:])}: {error}"
        ) from error


def _seeding(random_state, device):
    return nullcontext() if random_state is None else seeded(random_state, device)


# Torch modules


def _ask_torch(teacher, X, random_state):
    teacher._validate_params()
    with _seeding(random_state, teacher._run_device()):
        return _Answer(
            teacher.decision_function(X),
            proba=teacher.output == "proba",
            classes=teacher.classes,
            module=teacher.module,
            module_input=teacher._example(X),
            macs=teacher.macs,
        )


# Models of scikit-learn and skorch


def _check_unfitted(teacher, y, estimator_name):
    """Refuse what cannot be fitted here, or must not be."""
    if (
        isinstance(teacher, type)
        or not hasattr(teacher, "fit")
        or not hasattr(teacher, "get_params")
    ):
        error = ValueError if isinstance(teacher, str) else TypeError
        raise error(
            f"The 'teacher' parameter of {estimator_name} must be a scikit-learn "
            "estimator, a FrozenEstimator, a TorchTeacher, a torch.nn.Module, "
            f"'precomputed' or None. Got {teacher!r} instead."
        )
    # Not check_is_fitted, to which estimators that can predict without fit are fitted.
    if _is_fitted(teacher):
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} is a fitted "
            f"{type(teacher).__name__}, which would be fitted again. Pass "
            "sklearn.frozen.FrozenEstimator(teacher) to distil it as it is, or "
            "sklearn.base.clone(teacher) to have it fitted to X and y."
        )
    if y is None:
        raise ValueError(
            f"{estimator_name} requires y to be passed, but the target y is None. The "
            f"teacher {type(teacher).__name__} is fitted to it."
        )


@contextmanager
def _model_context(model, random_state):
    """What models are fitted and asked in."""
    with _seeding(random_state, _net_device(model)), warnings.catch_warnings():
        # skorch makes tensors of rows that may be read-only, and only reads them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")
        yield


def _ask_model(
    model,
    X,
    labels,
    *,
    frozen,
    regression,
    multilabel,
    compares,
    name,
    estimator_name,
):
    """Ask a fitted scikit-learn estimator or skorch net."""
    module = module_input = classes = rows = predicted = None
    with _naming(name, X, estimator_name):
        X = _net_input(model, X)
    method = _scoring_method(model, regression, estimator_name)
    with _naming(name, X, estimator_name):
        values = getattr(model, method)(_own(X))
    if multilabel:
        if isinstance(values, list):
            values = label_columns(values, getattr(model, "classes_", None))
        if method == "predict":
            values = odds_of_answers(values)
        if compares and hasattr(model, "predict") and _net_of(model) is None:
            rows = _compared_rows(X)
            with _naming(name, X, estimator_name):
                predicted = np.asarray(model.predict(_safe_indexing(_own(X), rows)))
    elif isinstance(values, list):
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} must be a classifier of "
            f"a single output. Got a {name} that predicts {len(values)} outputs. For "
            "several labels per row, pass y as an indicator matrix."
        )
    elif not regression:
        classes = getattr(model, "classes_", None)
        if method == "predict":
            # It says labels and nothing else.
            if classes is None:
                raise ValueError(
                    f"A teacher of {estimator_name} that has only predict must have "
                    f"classes_. Got a {name} without."
                )
            classes = np.unique(classes)
            values = scores_from_labels(values, classes)
        if compares:
            with _naming(name, X, estimator_name):
                rows, predicted = _predicted_columns(model, _own(X), classes)
    if frozen and isinstance(model, NeuralNet) and isinstance(X, np.ndarray):
        module = model.module_
        module_input = as_tensor(np.array(X[:1])).to(home_device(module))
    if labels is not None:
        classes = _decoded(classes, labels)
    return _Answer(
        values,
        proba=method == "predict_proba",
        classes=classes,
        module=module,
        module_input=module_input,
        rows=rows,
        predicted=predicted,
    )


def _own(X):
    """Rows that a model may change, as a scaler with copy=False does."""
    return X.copy() if isinstance(X, np.ndarray) and X.flags.writeable else X


def _net_of(model):
    """The skorch net that a model is, or that is the last step of a pipeline."""
    net = model[-1] if isinstance(model, Pipeline) else model
    return net if isinstance(net, NeuralNet) else None


def _net_device(model):
    net = _net_of(model)
    return torch.device("cpu" if net is None or net.device is None else net.device)


def _net_input(model, X):
    """Rows as a skorch net takes them, which may be the last step of a pipeline.

    Its module takes numbers of the dtype of its parameters only.
    """
    net = _net_of(model)
    if net is None:
        return X
    if net is model:
        # skorch takes lists for several inputs, and frames for named ones.
        X = as_array(X)
    if isinstance(X, np.ndarray):
        rows = as_tensor(X)
        if rows.is_floating_point():
            if net.initialized_:
                module = net.module_
            else:
                options = net.get_params_for("module")
                module = net.initialized_instance(net.module, options)
            rows = rows.to(floating_dtype(module))
        X = rows.numpy()
    return X


def _fit_clone(teacher, X, y, sample_weight, random_state, regression):
    """A clone of a scikit-learn estimator, fitted, and the labels that it numbers.

    Labels are given as they are, since parameters of the teacher may name some. Those
    that it refuses are numbered from 0; None where they are not.
    """
    teacher = seeded_clone(teacher, random_state)
    if y.ndim == 2 and y.shape[1] == 1:
        # Some estimators warn about a column.
        y = y.ravel()
    weights = {}
    if sample_weight is not None and has_fit_parameter(teacher, "sample_weight"):
        weights = {"sample_weight": sample_weight}
    try:
        return clone(teacher).fit(X, y, **weights), None
    except Exception:
        if not regression and y.ndim == 1:
            labels, numbers = np.unique(y, return_inverse=True)
            if not np.array_equal(labels, np.arange(len(labels))):
                with suppress(Exception):
                    return clone(teacher).fit(X, numbers, **weights), labels
        raise


def _decoded(classes, labels):
    """Labels of the columns of a teacher that was fitted to numbers of labels."""
    if classes is None:
        return labels
    # A net may have been told the labels themselves.
    numbered = set(np.asarray(classes).tolist()) <= set(range(len(labels)))
    return labels[np.asarray(classes, dtype=int)] if numbered else classes


def _scoring_method(model, regression, estimator_name):
    """Name of the method that gives the scores."""
    if regression:
        if is_classifier(model) or not hasattr(model, "predict"):
            raise ValueError(
                f"The 'teacher' parameter of {estimator_name} must be a regressor. Got "
                f"a {type(model).__name__} instead."
            )
        return "predict"
    for method in ("predict_proba", "decision_function"):
        if hasattr(model, method):
            return method
    if is_classifier(model) and hasattr(model, "predict"):
        return "predict"
    raise ValueError(
        f"The 'teacher' parameter of {estimator_name} must be a classifier with "
        f"predict_proba, decision_function or predict. Got a {type(model).__name__} "
        "instead."
    )


def _compared_rows(X):
    """Rows on which the scores of a teacher are compared with what it predicts."""
    n_samples = _num_samples(X)
    n_rows = min(n_samples, _COMPARED_ROWS)
    return np.linspace(0, n_samples - 1, n_rows).astype(int)


def _predicted_columns(model, X, classes):
    """Some rows, and the column of the label that a classifier predicts for each.

    None for both where it cannot be told. The labels of a skorch net are the numbers
    of the largest scores, whatever its classes are called.
    """
    if classes is None or not hasattr(model, "predict") or _net_of(model) is not None:
        return None, None
    rows = _compared_rows(X)
    labels = np.asarray(model.predict(_safe_indexing(X, rows)))
    if labels.size != len(rows):
        return None, None
    columns = {
        label: column for column, label in enumerate(np.asarray(classes).tolist())
    }
    predicted = [columns.get(label) for label in labels.ravel().tolist()]
    return (None, None) if None in predicted else (rows, np.array(predicted))


# Checks


def _check_scores(values, n_samples, dtype, name, estimator_name):
    """A C-contiguous copy in `dtype` of what a teacher returned."""
    # What overflows is reported as infinite below.
    with np.errstate(over="ignore"):
        scores = np.array(values, dtype=dtype, order="C")
    if scores.ndim not in (1, 2) or len(scores) != n_samples:
        raise ValueError(
            f"The teacher of {estimator_name} must return one row of scores for each "
            f"of the {n_samples} rows of X. Got an array of shape {scores.shape} from "
            f"{name}."
        )
    return scores


def _check_finite(scores, name, estimator_name, *, but=False):
    """Refuse scores that are not finite, but for those of some rows."""
    finite = np.isfinite(scores.reshape(len(scores), -1)).all(axis=1) | but
    if not finite.all():
        raise ValueError(
            f"The teacher of {estimator_name} must return finite scores. Got NaN, "
            f"infinity or a value too large for {scores.dtype} from {name} in "
            f"{np.sum(~finite)} of {len(scores)} row(s), the first at position "
            f"{finite.argmin()}."
        )


def _logits_warning(scores, name, estimator_name):
    """Doubt logits that look like probabilities."""
    single = scores.shape[1] == 1
    if single:
        # All zeros say nothing at all, and logits of a few rows may be in the range.
        doubtful = (
            len(scores) >= _MIN_DOUBTED and scores.min() >= 0 and 0 < scores.max() <= 1
        )
        what = "all of them are in the range [0, 1]"
    else:
        # Rounded or clipped probabilities do not quite sum to 1, nor does every row.
        sums = scores.sum(axis=1, dtype=np.float64)
        doubtful = (
            scores.min() >= 0
            and scores.max() <= 1
            and np.mean(abs(sums - 1) <= 0.1) >= 0.9
        )
        what = "all of them are in the range [0, 1], and rows sum to 1"
    if not doubtful:
        return None
    if name == "teacher_scores":
        both = "np.c_[1 - p, p]" if single else "p"
        advice = (
            "If they are probabilities p, pass logits as teacher_scores instead: "
            f"np.log({both} + 1e-3)."
        )
    else:
        advice = (
            "If they are probabilities, pass the module as "
            'TorchTeacher(module, output="proba").'
        )
    return DoubtfulTeacherWarning(
        f"The scores of {name}, the teacher of {estimator_name}, are taken for logits, "
        f"but {what}. {advice}"
    )


def _sums_to_1(scores):
    sums = scores.sum(axis=1, dtype=np.float64)
    return abs(sums - 1).max() <= _SUM_TOLERANCE


def _check_predicted(answer, scores, name, estimator_name):
    """Refuse scores that say other labels than the teacher's own `predict`."""
    if answer.rows is None:
        return
    scores = scores[answer.rows]
    predicted = answer.predicted
    agrees = scores[np.arange(len(scores)), predicted] >= scores.max(axis=1)
    # Probabilities may come from another model than labels, as those of an SVC do.
    needed = 0.5 if answer.proba or scores.shape[1] == 2 else 0.9
    if agrees.mean() >= needed:
        return
    if scores.shape[1] == 2:
        # A classifier may have moved the threshold between two classes. Then scores
        # are still higher where it predicts the second one.
        second = predicted == 1
        difference = scores[:, 1] - scores[:, 0]
        if second.all() or not second.any():
            return
        if difference[second].mean() > difference[~second].mean():
            return
    raise ValueError(
        f"The teacher of {estimator_name} must return scores that are largest for the "
        f"label that it predicts. Got another label from the predict of {name} for "
        f"{np.sum(~agrees)} of {len(scores)} rows. Its columns do not stand for its "
        "classes: an SVC, for instance, needs decision_function_shape='ovr'."
    )


def _check_proba(proba, teacher, name, estimator_name):
    if proba.min() >= 0 and _sums_to_1(proba):
        return
    sums = proba.sum(axis=1, dtype=np.float64)
    module = "net.module_" if isinstance(teacher, NeuralNet) else "module"
    raise ValueError(
        f"The teacher of {estimator_name} must return probabilities: rows that are not "
        f"negative and sum to 1. Got a smallest value of {proba.min():.3g} and sums of "
        f"rows from {sums.min():.3g} to {sums.max():.3g} from {name}. If these are the "
        f'logits of a torch module, pass TorchTeacher({module}, output="logits").'
    )


def _check_classes(classes, y, sample_weight, scores, name, estimator_name):
    """Compare the labels of the columns with their number, and with those of y."""
    n_columns = scores.shape[1]
    if len(classes) < 2:
        among = (
            "" if sample_weight is None else " among the rows that sample_weight keeps"
        )
        raise ValueError(
            f"{estimator_name} needs a teacher with at least 2 classes. Got 1 "
            f"class{among}."
        )
    if len(classes) != n_columns:
        raise ValueError(
            f"The teacher of {estimator_name} must return one score per class. Got "
            f"{n_columns} columns for {len(classes)} classes from {name}."
        )
    if y is None:
        return
    labels = np.unique(y).tolist()
    # Sets of Python objects, because NumPy would find the label 1 in ["0", "1"].
    missing = set(labels).difference(classes.tolist())
    if missing:
        if labels == [0, 1] and len(classes) > 2:
            advice = f" {_ONE_AGAINST_REST}"
        elif np.array_equal(classes, np.arange(len(classes))):
            advice = (
                f" If {name} was trained on numbers that stand for labels, fit "
                f"{estimator_name} to these numbers as well, for example those of "
                "sklearn.preprocessing.LabelEncoder, or pass teacher='precomputed' "
                "and teacher_scores, whose columns are in the order of the sorted "
                "labels."
            )
        else:
            advice = ""
        raise ValueError(
            f"The teacher classes do not cover y: {name}, the teacher of "
            f"{estimator_name}, knows the classes {classes.tolist()}, and y also "
            f"holds {sorted(missing)}.{advice}"
        )


def _check_meaning(classes, y, scores, name, estimator_name):
    """Refuse labels 0 and 1 that stand for a class of the teacher and all others.

    That is so where another class than its 1 tells the rows of label 1 best, and
    better than no teacher at all.
    """
    if len(classes) <= 2 or np.unique(y).tolist() != [0, 1]:
        return
    columns = scores.argmax(axis=1)
    n_zeros, n_ones = (
        np.bincount(columns[y == label], minlength=len(classes)) for label in (0, 1)
    )
    # Right where "1 if it says this class", less the rows of label 0.
    gains = n_ones - n_zeros
    best = gains.argmax()
    constant = max(0, n_ones.sum() - n_zeros.sum())
    if gains[best] > max(gains[classes == 1].max(), constant):
        raise ValueError(
            f"y holds only the labels 0 and 1, and what is 1 in y is the class "
            f"{classes[best]!s} of {name}, the teacher of {estimator_name}, which "
            f"knows the classes {classes.tolist()}. {_ONE_AGAINST_REST}"
        )


def _infer_classes(y, n_classes, name, estimator_name):
    """Labels in `y`, if all classes are there, or else the numbers of the columns."""
    if y is None:
        raise ValueError(
            f"{estimator_name} requires y to be passed, but the target y is None. It "
            f"tells the classes of {name}; a torch module is given them as "
            "TorchTeacher(module, classes=...)."
        )
    labels = np.unique(y)
    if len(labels) == n_classes:
        return labels
    if labels.dtype.kind in "iu" and labels[0] >= 0 and labels[-1] < n_classes:
        return np.arange(n_classes)
    raise ValueError(
        f"The teacher of {estimator_name} must say which classes its {n_classes} "
        f"columns stand for, because y holds {len(labels)} distinct labels, which are "
        f"not integers in the range [0, {n_classes - 1}]. A torch module is given its "
        "classes as TorchTeacher(module, classes=...)."
    )


def _log_smoothed(proba):
    """Logarithm of probabilities mixed with the uniform distribution, in place."""
    proba *= 1 - _SMOOTHING
    proba += _SMOOTHING / proba.shape[1]
    return np.log(proba, out=proba)


def _centered(scores):
    """Scores with a mean of 0 in each row, in place."""
    # What overflows is found by the caller.
    with np.errstate(over="ignore"):
        scores -= scores.mean(axis=1, keepdims=True, dtype=np.float64)
    return scores
