"""Half widths of split conformal intervals. NumPy only, for devices."""

import math
import warnings
from fractions import Fraction
from numbers import Real

import numpy as np

from skbdistil.exceptions import InfiniteIntervalWarning

__all__ = ["around", "conformal_rank", "half_widths"]


def conformal_rank(n_samples, alpha, name, stacklevel):
    """Rank of the absolute error that is the half width of an interval.

    Parameters
    ----------
    n_samples : int
        Number of calibration rows.
    alpha : float
        Probability with which intervals may miss.
    name : str
        Of the class that is asked.
    stacklevel : int
        Of the warning, as from the caller of this function.

    Returns
    -------
    rank : int
        From 1 on; ``n_samples + 1``, with a warning, where there are too few rows.

    Raises
    ------
    ValueError
        If `alpha` is not between 0 and 1.
    """
    if not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ValueError(f"'alpha' must be between 0 and 1. Got {alpha!r} instead.")
    # The decimal that was written, since rounding would move the rank by one.
    alpha = Fraction(str(float(alpha)))
    rank = math.ceil((n_samples + 1) * (1 - alpha))
    if rank > n_samples:
        warnings.warn(
            f"{name} has {n_samples} calibration rows, and needs at least "
            f"{math.ceil(1 / alpha) - 1} for alpha={float(alpha):g}: its intervals are "
            "infinite.",
            InfiniteIntervalWarning,
            stacklevel=stacklevel + 1,
        )
    return rank


def half_widths(residuals, rank):
    """Half of the widths of intervals, of shape (n_outputs,).

    Parameters
    ----------
    residuals : ndarray of shape (n, n_outputs)
        Absolute errors on calibration rows, rising in each column.
    rank : int
        Of :func:`conformal_rank`.
    """
    if rank > len(residuals):
        return np.full(residuals.shape[1], np.inf)
    return residuals[rank - 1].copy()


def around(targets, half_widths):
    """Lower and upper ends around targets, along a last axis."""
    half_widths = half_widths.reshape(targets.shape[1:])
    return np.stack([targets - half_widths, targets + half_widths], axis=-1)
