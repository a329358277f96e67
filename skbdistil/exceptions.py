"""Warnings and errors of the package.

They derive from builtins only, so that modules which run on a device can import
them without scikit-learn or torch.
"""

__all__ = [
    "CostsUnknownWarning",
    "DoubtfulTeacherWarning",
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
