"""Rows without labels, made from the training rows, for the teacher to answer."""

from abc import ABC, abstractmethod
from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state, gen_batches

from skbdistil._arrays import as_array
from skbdistil._sklearn_compat import Interval

__all__ = ["Munge", "Spunge"]

# Distances that are held at a time where all pairs of rows are compared: 8 MiB.
_PAIRS = 2**20


class _RowMaker(BaseEstimator):
    """What :class:`Munge` and :class:`Spunge` have in common."""

    def __call__(self, X, random_state):
        """Make new rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), pandas or polars DataFrame
            The training rows. Missing values are allowed.

        random_state : int, RandomState instance or None
            The same number gives the same rows. `None` draws from NumPy's global
            generator, as in scikit-learn.

        Returns
        -------
        X_new : ndarray or DataFrame of shape (round(factor * n_samples), n_features)
            Of the same kind as X, with the same columns and dtypes. An array is
            C-contiguous. The rows of a pandas frame are numbered from 0.

        Raises
        ------
        ValueError
            If a parameter is invalid, or if X does not have two axes and at least one
            row.
        """
        self._validate_params()
        rng = check_random_state(random_state)
        columns = _columns(X, type(self).__name__)
        n_samples = len(columns[0].values)
        # Each row the same number of times, and some once more.
        repeats, rest = divmod(round(self.factor * n_samples), n_samples)
        rows = np.concatenate(
            [
                np.tile(np.arange(n_samples), repeats),
                rng.choice(n_samples, rest, replace=False),
            ]
        )
        new = self._new_columns(columns, rows, rng)
        if hasattr(X, "iloc"):
            frame = type(X)(dict(enumerate(new)))
            frame.columns = X.columns
            return frame
        return type(X)(new) if hasattr(X, "get_columns") else np.stack(new, axis=1)


class Munge(_RowMaker):
    """Mix each row with its nearest neighbour.

    Each new row starts as a training row. With probability `swap_probability`, and for
    each column by itself, its value makes way for one of the nearest other row. A
    continuous value is drawn from a normal distribution around the neighbour's value;
    its standard deviation is the difference of the two values, divided by
    `local_variance`. Any other value is the neighbour's own. So the new rows lie where
    the training rows lie, which noise on each column alone would leave. [1]_

    Parameters
    ----------
    factor : float, default=1.0
        Number of new rows per row of X, in `(0, inf)`. All rows start the same number
        of new ones, or some of them one more.

    swap_probability : float, default=0.5
        Probability that a value changes, in `[0, 1]`.

    local_variance : float, default=1.0
        The parameter `s` of the paper, in `(0, inf)`. The larger, the closer a
        continuous value is to that of the neighbour.

    See Also
    --------
    Spunge : Needs no neighbours.

    Notes
    -----
    **Columns.** A column is continuous if it holds numbers and more than two different
    ones. All others are nominal: categories, strings, dates, booleans, and numbers with
    two values, such as those of a one-hot encoding; sparse columns of a frame, too.
    Nominal values are only handed on from row to row, so they are always values of that
    column. Where all values of a continuous column are whole numbers, of whatever
    dtype, the new ones are whole, too: a draw is rounded up with a probability equal to
    its fractional part. No number leaves the range that its column has in X. Where one
    of two values is missing or infinite, the neighbour's is taken as it is.

    **Neighbours.** Rows are compared by the squared differences of their numbers, each
    column being divided by its variance. A different category counts as much as makes
    two random rows as different in this column as in any other, on average. What is
    missing in one of two rows is left out, and the rest is averaged. The neighbour is
    the nearest row that is not equal, so that duplicates do not lead to more of them;
    if all rows are equal, so are the new ones.

    **Cost.** Numbers without missing values go to
    :class:`sklearn.neighbors.NearestNeighbors`, which takes a time proportional to
    ``n_samples * log(n_samples)`` for a few columns and to ``n_samples**2`` for more
    than 15. With categories or missing values it is always the latter, and several
    times as long. Memory is proportional to the size of X.

    **The paper** changes both rows of a pair at once. Here each row starts a pair of
    its own and only that row is made new, from values of the training rows and nothing
    else.

    References
    ----------
    .. [1] C. Bucila, R. Caruana, A. Niculescu-Mizil, "Model Compression", KDD 2006,
       algorithm MUNGE.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil.augmentation import Munge
    >>> X = np.array([[0.0, 5.5], [0.5, 6.0], [9.5, 1.0], [9.0, 2.0]])
    >>> X_new = Munge(factor=2)(X, random_state=0)
    >>> X_new.shape
    (8, 2)

    Where the first number is small, the second one is still large:

    >>> bool(((X_new[:, 0] < 5) == (X_new[:, 1] > 4)).all())
    True
    """

    _parameter_constraints: dict = {
        "factor": [Interval(Real, 0, None, closed="neither")],
        "swap_probability": [Interval(Real, 0, 1, closed="both")],
        "local_variance": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, factor=1.0, *, swap_probability=0.5, local_variance=1.0):
        self.factor = factor
        self.swap_probability = swap_probability
        self.local_variance = local_variance

    def _new_columns(self, columns, rows, rng):
        neighbours = _nearest_others(columns, rows)
        new = []
        for column in columns:
            swapped = rng.uniform(size=len(rows)) < self.swap_probability
            sources = np.where(swapped, neighbours, rows)
            if column.continuous:
                values, others = column.numbers[rows], column.numbers[neighbours]
                # What is beyond the largest float is cut to the range of the column.
                with np.errstate(over="ignore"):
                    deviation = np.abs(values - others) / self.local_variance
                    draws = others + deviation * rng.standard_normal(len(rows))
                drawn = swapped & np.isfinite(values) & np.isfinite(others)
                new.append(column.replaced(sources, drawn, draws, rng))
            else:
                new.append(column.taken(sources))
        return new


class Spunge(_RowMaker):
    """Perturb each value by itself.

    Each new row starts as a training row. All its continuous values get normal noise,
    in proportion to the standard deviation of the column. A nominal value is replaced
    with probability `resample_probability` by the value of that column in a random
    row, so frequent values are drawn often. The noise knows nothing of how columns
    depend on each other: keep it small.

    Parameters
    ----------
    factor : float, default=1.0
        Number of new rows per row of X, in `(0, inf)`. All rows start the same number
        of new ones, or some of them one more.

    noise : float, default=0.1
        Standard deviation of the noise on continuous values, in standard deviations of
        their column, in `[0, inf)`.

    resample_probability : float, default=0.1
        Probability that a nominal value is drawn anew, in `[0, 1]`. The draw may give
        the same value again.

    See Also
    --------
    Munge : Follows the dependence of columns on each other, and takes longer.

    Notes
    -----
    Continuous, nominal and whole numbers are told apart, and kept in the range of their
    column, as in :class:`Munge`. A missing or infinite continuous value stays; a
    nominal one may be drawn anew, and a draw may be missing. Time and memory are
    proportional to the size of X, but for sorting each column.

    The idea and both defaults are those of the augmentation "spunge" of AutoGluon [1]_,
    which perturbs a part of the continuous values, too. Here all of them are, because
    rows that stay as they are tell nothing new of the teacher.

    References
    ----------
    .. [1] R. Fakoor, J. Mueller, N. Erickson, P. Chaudhari, A. J. Smola, "Fast,
       Accurate, and Simple Models for Tabular Data via Augmented Distillation",
       NeurIPS 2020, arXiv:2006.14284, and the method ``TabularPredictor.distill`` of
       https://auto.gluon.ai.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil.augmentation import Spunge
    >>> X = np.array([[0.0, 5.0], [0.5, 6.0], [9.5, 1.0], [9.0, 2.0]])
    >>> Spunge(factor=0.5)(X, random_state=0).shape
    (2, 2)
    """

    _parameter_constraints: dict = {
        "factor": [Interval(Real, 0, None, closed="neither")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "resample_probability": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(self, factor=1.0, *, noise=0.1, resample_probability=0.1):
        self.factor = factor
        self.noise = noise
        self.resample_probability = resample_probability

    def _new_columns(self, columns, rows, rng):
        n_new, n_samples = len(rows), len(columns[0].values)
        new = []
        for column in columns:
            if column.continuous:
                values = column.numbers[rows]
                # What is beyond the largest float is cut to the range of the column.
                with np.errstate(over="ignore"):
                    deviation = self.noise * column.deviation
                    draws = values + deviation * rng.standard_normal(n_new)
                new.append(column.replaced(rows, np.isfinite(values), draws, rng))
            else:
                again = rng.uniform(size=n_new) < self.resample_probability
                strangers = rng.randint(n_samples, size=n_new)
                new.append(column.taken(np.where(again, strangers, rows)))
        return new


# Cells of new rows are taken from rows of X by their index, in whatever form a column
# has, and only what was drawn is written as numbers. So dtypes, categories and missing
# values stay what they are.


class _Column(ABC):
    """A column of X.

    Parameters
    ----------
    values : ndarray, pandas array or polars Series of shape (n_samples,)
    is_number : bool
    is_integer : bool
        Whether its dtype is one of integers.

    Attributes
    ----------
    numbers : ndarray of float64 of shape (n_samples,) or None
        NaN for missing and infinite values; None for other things than numbers.
    continuous : bool
    whole : bool
        Whether all of its numbers are whole.
    deviation : float
        Standard deviation of its numbers.
    """

    def __init__(self, values, is_number, is_integer):
        self.values = values
        self.numbers = None
        self.continuous = False
        if not is_number:
            return
        self.numbers = self._as_floats()
        self.numbers[np.isinf(self.numbers)] = np.nan
        known = self.numbers[~np.isnan(self.numbers)]
        different = np.unique(known)
        self.continuous = len(different) > 2
        if len(different) == 0:
            self._mean = self.deviation = 0.0
            return
        self.whole = np.array_equal(different, np.floor(different))
        low, high = different[[0, -1]]
        # Sums of numbers near the largest float would be beyond it.
        size = max(abs(low), abs(high)) or 1.0
        self._mean = (known / size).mean() * size
        self.deviation = (known / size).std() * size
        # Where floats have gaps between integers, the next one inside is in the range
        # of the column, and the nearest one may not be.
        if is_integer and abs(low) >= 2**53:
            low = np.nextafter(low, np.inf)
        if is_integer and abs(high) >= 2**53:
            high = np.nextafter(high, -np.inf)
        self._range = low, high

    def standardized(self):
        """Numbers with mean 0 and variance 1, those of a constant column being 0."""
        if self.deviation == 0:
            return 0 * self.numbers
        # Each quotient is finite; a difference of large numbers may not be.
        return self.numbers / self.deviation - self._mean / self.deviation

    def codes(self):
        """A number from 0 for each category, -1 for a missing one."""
        known = {}
        codes = [known.setdefault(label, len(known)) for label in self._as_list()]
        return np.where(self._is_missing(), -1, codes).astype(np.int32)

    def replaced(self, sources, drawn, draws, rng):
        """Values of some rows, some of them replaced by numbers.

        Parameters
        ----------
        sources : ndarray of int of shape (n,)
            Row of X that each value is taken from.
        drawn : ndarray of bool of shape (n,)
            Where a number takes the place of the value.
        draws : ndarray of float64 of shape (n,)
        rng : RandomState

        Returns
        -------
        values : ndarray, pandas array or polars Series of shape (n,)
        """
        draws = np.clip(draws[drawn], *self._range)
        if self.whole:
            below = np.floor(draws)
            draws = below + (rng.uniform(size=len(draws)) < draws - below)
        return self._with_numbers(self.taken(sources), np.flatnonzero(drawn), draws)

    @abstractmethod
    def taken(self, rows):
        """Values of some rows."""


class _ArrayColumn(_Column):
    def __init__(self, values):
        kind = values.dtype.kind
        super().__init__(values, kind in "biuf", kind in "iu")

    def taken(self, rows):
        return self.values[rows]

    def _as_floats(self):
        return self.values.astype(np.float64)

    def _with_numbers(self, values, where, draws):
        values[where] = draws.astype(values.dtype)
        return values


class _PandasColumn(_Column):
    def __init__(self, values):
        kind = values.dtype.kind
        # Nothing can be written to a sparse column, whose dtype lacks this.
        writable = hasattr(values.dtype, "numpy_dtype")
        super().__init__(values, writable and kind in "biuf", kind in "iu")

    def taken(self, rows):
        return self.values.take(rows)

    def _as_floats(self):
        return np.array(self.values.to_numpy(dtype=np.float64, na_value=np.nan))

    def _as_list(self):
        return self.values.tolist()

    def _is_missing(self):
        return np.asarray(self.values.isna())

    def _with_numbers(self, values, where, draws):
        values[where] = draws.astype(values.dtype.numpy_dtype)
        return values


class _PolarsColumn(_Column):
    def __init__(self, values):
        is_integer = values.dtype.is_integer()
        super().__init__(values, is_integer or values.dtype.is_float(), is_integer)

    def taken(self, rows):
        return self.values[rows]

    def _as_floats(self):
        return np.array(self.values.cast(float).to_numpy())

    def _as_list(self):
        return self.values.to_list()

    def _is_missing(self):
        return self.values.is_null().to_numpy()

    def _with_numbers(self, values, where, draws):
        draws = type(values)(draws).cast(values.dtype)
        return values.scatter(where, draws)


def _columns(X, name):
    """Columns of an array or frame."""
    if hasattr(X, "get_columns"):  # polars
        columns = [_PolarsColumn(column) for column in X.get_columns()]
    elif hasattr(X, "iloc") and X.ndim == 2:  # pandas
        columns = [_PandasColumn(X.iloc[:, j].array) for j in range(X.shape[1])]
    else:
        X = as_array(X, estimator_name=name)
        if X.ndim != 2:
            raise ValueError(
                f"{name} makes rows of tables, and X must have the shape (n_samples, "
                f"n_features). Got an array of shape {X.shape}. For images and "
                "sequences, write a function f(X, random_state) that returns new ones."
            )
        columns = [_ArrayColumn(column) for column in X.T]
    if not columns or not len(columns[0].values):
        raise ValueError(
            f"{name} needs at least one row and one column. Got a frame of shape "
            f"{X.shape}."
        )
    return columns


def _nearest_others(columns, rows):
    """Index of the nearest row that is not equal to it, for each of some rows."""
    numbers = [c.standardized() for c in columns if c.numbers is not None]
    codes = [c.codes() for c in columns if c.numbers is None]
    # Equal rows get the same number, from 0.
    group = 0
    for values in (*numbers, *codes):
        different, of_column = np.unique(values, return_inverse=True)
        pairs = group * len(different) + of_column
        _, first, group = np.unique(pairs, return_index=True, return_inverse=True)
    if len(first) == 1:
        return rows
    asked, back = np.unique(group[rows], return_inverse=True)
    if codes or any(np.isnan(values).any() for values in numbers):
        numbers = [values[first] for values in numbers]
        codes = [values[first] for values in codes]
        nearest = _nearest_of_pairs(numbers, codes, asked)
    else:
        points = np.stack(numbers, axis=1)[first]
        search = NearestNeighbors(n_neighbors=2).fit(points)
        near = search.kneighbors(points[asked], return_distance=False)
        # The first of the two is the row itself, or as near by rounding.
        nearest = np.where(near[:, 0] == asked, near[:, 1], near[:, 0])
    return first[nearest][back]


def _nearest_of_pairs(numbers, codes, asked):
    """Nearest other row, by comparing each with all and leaving out what is missing."""
    n_samples = len((numbers or codes)[0])
    numbers = np.array(numbers).reshape(len(numbers), n_samples).T
    known = ~np.isnan(numbers)
    numbers = np.nan_to_num(numbers)
    # The sum of (a - b)^2 over what both rows know is one product of these two.
    left = np.hstack([numbers**2, known, -2 * numbers])
    right = np.hstack([known, numbers**2, numbers]).T
    known = np.column_stack([known, *(values >= 0 for values in codes)]).astype(float)
    weights = [_mismatch_weight(values) for values in codes]
    nearest = np.empty_like(asked)
    for batch in gen_batches(len(asked), max(1, _PAIRS // n_samples)):
        rows = asked[batch]
        distances = left[rows] @ right
        # In float32, which takes half the time.
        mismatches = np.zeros(distances.shape, dtype=np.float32)
        for values, weight in zip(codes, weights, strict=True):
            of_rows = values[rows, None]
            differ = (of_rows != values) & (of_rows >= 0) & (values >= 0)
            mismatches += weight * differ
        distances += mismatches
        n_known = known[rows] @ known.T
        distances[n_known == 0] = np.inf
        distances /= np.maximum(n_known, 1)
        distances[np.arange(len(rows)), rows] = np.inf
        nearest[batch] = distances.argmin(axis=1)
    return nearest


def _mismatch_weight(codes):
    """Squared distance of two categories, so that it is 2 for random rows, on average.

    That of standardised numbers is 2, too.
    """
    shares = np.bincount(codes[codes >= 0]) / max((codes >= 0).sum(), 1)
    mismatches = 1 - (shares**2).sum()
    return np.float32(2 / mismatches if mismatches > 0 else 0)
