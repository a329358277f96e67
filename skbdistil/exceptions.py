"""Warnings and errors of the package.

They derive from builtins only, so that modules which run on a device can import
them without scikit-learn or torch.
"""

from functools import partial

__all__ = [
    "CostsUnknownWarning",
    "DeferralError",
    "DoubtfulTeacherWarning",
    "DriftWarning",
    "FitInterruptedWarning",
    "InfiniteIntervalWarning",
    "InvalidFileError",
    "NothingCertifiedWarning",
    "WeakLearnerNotFoundWarning",
]


class CostsUnknownWarning(UserWarning):
    """The multiply-accumulates of a network could not be counted.

    They are None, or NaN in an array, and never a guess. The message says what could
    not be counted. Everything else, such as a fit, goes on.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import CostsUnknownWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", CostsUnknownWarning)
    """


class WeakLearnerNotFoundWarning(UserWarning):
    """No student satisfied the weak-learning condition, so boosting stopped early.

    Raised as a warning by ``fit`` when every attempt of the last hypothesis class
    failed. The message names the output whose edge failed and by how much; the
    students of the earlier rounds are kept.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import WeakLearnerNotFoundWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", WeakLearnerNotFoundWarning)
    """


class DoubtfulTeacherWarning(UserWarning):
    """The scores of the teacher are hardly what they are taken for.

    Raised as a warning by ``fit`` where scores that are said to be logits look like
    probabilities, and where a teacher that came trained is no better on the rows than
    a constant. The message says what to do.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import DoubtfulTeacherWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", DoubtfulTeacherWarning)
    """


class FitInterruptedWarning(UserWarning):
    """``fit`` was interrupted; the students finished before that are kept.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import FitInterruptedWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", FitInterruptedWarning)
    """


class NothingCertifiedWarning(UserWarning):
    """No early exit could be guaranteed, so every row uses the full ensemble.

    With a final model, no local answer could be, so every row goes to that.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import NothingCertifiedWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", NothingCertifiedWarning)
    """


class InfiniteIntervalWarning(UserWarning):
    """There are too few calibration rows for intervals that are finite.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import InfiniteIntervalWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", InfiniteIntervalWarning)
    """


class DriftWarning(UserWarning):
    """Audited rows say that the risk is above what was promised.

    Examples
    --------
    >>> import warnings
    >>> from skbdistil.exceptions import DriftWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", DriftWarning)
    """


class DeferralError(RuntimeError):
    """The final model, which rows were deferred to, failed or gave unusable answers.

    Parameters
    ----------
    message : str
        What happened.

    labels : ndarray of shape (n_samples,)
        The local answers to all rows, also those that were not sure enough.

    is_asked : ndarray of shape (n_samples,) of bool
        Rows that the final model was asked about.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil.exceptions import DeferralError
    >>> try:
    ...     raise DeferralError(
    ...         "The server is down.",
    ...         labels=np.array(["cat", "dog"]),
    ...         is_asked=np.array([False, True]),
    ...     )
    ... except DeferralError as error:
    ...     sure = error.labels[~error.is_asked]
    >>> print(sure)
    ['cat']
    """

    def __init__(self, message, *, labels, is_asked):
        super().__init__(message)
        self.labels = labels
        self.is_asked = is_asked

    def __reduce__(self):
        rebuild = partial(type(self), labels=self.labels, is_asked=self.is_asked)
        return rebuild, self.args


class InvalidFileError(ValueError):
    """A saved or exported file cannot be used.

    It is corrupt, truncated, tampered with, or was written by a newer version of the
    package. The message names the file and the reason.

    Examples
    --------
    >>> from skbdistil.exceptions import InvalidFileError
    >>> try:
    ...     raise InvalidFileError("model.skb cannot be loaded: it is not a zip file.")
    ... except ValueError as error:
    ...     print(error)
    model.skb cannot be loaded: it is not a zip file.
    """
