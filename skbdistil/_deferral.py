"""Rows of which no stage is sure, and the final model that they go to. NumPy only."""

import numpy as np

from skbdistil.exceptions import DeferralError
from skbdistil.monitoring import DeferralMonitor

__all__ = [
    "answers",
    "audited",
    "check_final",
    "check_kind_of_labels",
    "rows_of",
    "with_final",
]


def check_final(final, name):
    """Refuse what can neither predict nor be called.

    Parameters
    ----------
    final : object
    name : str
        Of the class whose parameter it is.
    """
    if isinstance(final, type) or not (callable(final) or hasattr(final, "predict")):
        raise TypeError(
            f"The 'final' parameter of {name} must be a fitted estimator or a callable "
            f"that takes rows and returns their labels. Got {final!r} instead."
        )


def answers(final, X, n_rows, classes):
    """Labels that the final model gives, as positions among the classes.

    Parameters
    ----------
    final : estimator or callable
    X : array-like of shape (n_rows, ...)
    n_rows : int
    classes : ndarray of shape (L,)

    Returns
    -------
    columns : ndarray of shape (n_rows,)

    Raises
    ------
    ValueError
        If the answers are not one known label per row.
    """
    labels = np.asarray(final.predict(X) if hasattr(final, "predict") else final(X))
    if labels.shape != (n_rows,):
        raise ValueError(
            f"'final' must return one label per row, of shape ({n_rows},). Got shape "
            f"{labels.shape}."
        )
    columns = {label: column for column, label in enumerate(classes.tolist())}
    labels = labels.tolist()
    unknown = sorted({repr(label) for label in labels if label not in columns})
    if unknown:
        raise ValueError(
            f"'final' returned labels that are not among the classes {list(columns)}: "
            f"{', '.join(unknown[:5])}."
        )
    return np.array([columns[label] for label in labels], dtype=np.intp)


def check_kind_of_labels(y, classes, name):
    """Refuse strings where classes are numbers, and numbers where they are strings.

    No answer would ever be right.

    Parameters
    ----------
    y : array-like of shape (n,)
    classes : ndarray of shape (L,)
    name : str
        Of the class that got them.
    """
    y = np.asarray(y)
    if len(y) and isinstance(y[0], str) != isinstance(classes[0], str):
        raise ValueError(
            f"{name} got labels such as {y[0]!r}, and the classes are "
            f"{classes.tolist()}: strings are never equal to numbers."
        )


def rows_of(X, rows):
    """Rows of an array or a frame, which stays a frame."""
    return X.iloc[rows] if hasattr(X, "iloc") else np.asarray(X)[rows]


def with_final(final, take, labels, is_asked, classes):
    """Labels with those of the final model in the place of some.

    Parameters
    ----------
    final : estimator or callable
    take : callable
        ``take(rows)`` returns rows by their positions, in the form of the user.
    labels : ndarray of shape (n,)
        Local answers.
    is_asked : ndarray of shape (n,) of bool
        Rows that go to the final model, in one call if there are any.
    classes : ndarray of shape (L,)

    Returns
    -------
    labels : ndarray of shape (n,)

    Raises
    ------
    DeferralError
        If the final model fails. It holds the local answers.
    """
    rows = np.flatnonzero(is_asked)
    if not len(rows):
        return labels
    try:
        columns = answers(final, take(rows), len(rows), classes)
    # Whatever a server or its client raises.
    except Exception as error:
        raise DeferralError(
            f"'final' has no answers for {len(rows)} of {len(labels)} rows: "
            f"{type(error).__name__}: {error} The local answers to all rows are the "
            "'labels' of this error, and 'is_asked' says which rows it was asked "
            "about.",
            labels=labels,
            is_asked=is_asked,
        ) from error
    labels = labels.copy()
    labels[rows] = classes[columns]
    return labels


def audited(monitor, passed, final, take, classes, *, n_rows, target, risk, y):
    """Answers to rows some of which are audited, and the monitor told of these.

    Parameters
    ----------
    monitor : DeferralMonitor
    passed : callable
        Returns the local answers and whether each row is deferred. It is called when
        the audited rows have been drawn.
    final, take, classes
        As for :func:`with_final`.
    n_rows : int
    target : {"agreement", "accuracy", "error"}
    risk : {"marginal", "selective"}
    y : array-like of shape (n,) or None

    Returns
    -------
    labels : ndarray of shape (n,)
    """
    if not isinstance(monitor, DeferralMonitor):
        raise TypeError(
            f"'monitor' must be a DeferralMonitor. Got {monitor!r} instead."
        )
    if monitor.risk != risk:
        raise ValueError(
            f"The monitor is for the {monitor.risk} risk, and the promise is about the "
            f"{risk} one."
        )
    if target == "agreement":
        y = None
    elif y is None:
        raise ValueError(
            f"An audit for target={target!r} needs 'y', the labels of the rows. Where "
            "they come later, audit the rows then."
        )
    if y is not None:
        y = np.asarray(y)
        if y.shape != (n_rows,):
            raise ValueError(
                f"'y' must be one label per row, of shape ({n_rows},). Got shape "
                f"{y.shape}."
            )
        check_kind_of_labels(y, classes, "audit")
    is_audited = monitor.draw(n_rows)
    if y is not None and any(
        label is None or label != label for label in y[is_audited].tolist()
    ):
        raise ValueError(
            "An audited row has no label: 'y' holds None or NaN there, which would "
            "count as a loss. Audit the rows when their labels are known."
        )
    labels, is_deferred = passed()
    if monitor.drift_ and monitor.on_drift == "defer":
        return with_final(final, take, labels, np.ones(n_rows, dtype=bool), classes)
    found = with_final(final, take, labels, is_deferred | is_audited, classes)
    if target == "agreement":
        is_lost = labels != found
    else:
        is_lost = labels != y
        if target == "accuracy":
            is_lost &= found == y
    counted = is_audited
    if risk == "selective":
        counted = is_audited & ~is_deferred
    monitor._count((is_lost & ~is_deferred)[counted], stacklevel=4)
    return found
