"""Rows as the user passes them, and as students get them."""

import numpy as np
from scipy import sparse
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.utils import check_array
from sklearn.utils.validation import (
    assert_all_finite,
    check_consistent_length,
    validate_data,
)

from skbdistil._arrays import (
    INPUT_DTYPES,
    SparseRows,
    as_tensor,
    from_torch,
    stack_rows,
    take_rows,
)
from skbdistil._boosting._scaling import all_finite
from skbdistil._dataset_rows import DatasetRows, dataset_rows, is_dataset
from skbdistil._seeding import seeded_clone
from skbdistil._sklearn_compat import _safe_indexing

__all__ = [
    "check_row_shape",
    "check_rows",
    "fit_transform_rows",
    "rows_like",
]


def _options(dtype):
    """How rows are validated; what has another dtype becomes that of the students."""
    return {
        "dtype": [np.dtype(dtype).type, *INPUT_DTYPES],
        "order": "C",
        "allow_nd": True,
        "accept_sparse": "csr",
    }


def check_rows(estimator, X, *, reset):
    """Rows of a fit, checked as far as the students are to get them as they are.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
        Gets `n_features_in_` and `feature_names_in_` with `reset`.
    X : array-like of shape (n_samples, ...)
    reset : bool
        Whether this is a first fit.

    Returns
    -------
    X : ndarray, sparse matrix or DatasetRows of shape (n_samples, ...)
        May hold NaN where it is a table. With a `student_transform`, X itself.
    """
    if is_dataset(X):
        return _checked_dataset(estimator, X, reset=reset)
    if estimator.student_transform is not None:
        return validate_data(estimator, X, reset=reset, skip_check_array=True)
    return _checked(estimator, X, reset=reset, dtype=estimator.dtype)


def _checked_dataset(estimator, X, *, reset):
    """Rows of a dataset, which are checked when they are read."""
    if estimator.student_transform is not None:
        raise ValueError(
            f"The 'student_transform' parameter of {type(estimator).__name__} needs "
            "rows that are an array, and X is a dataset. Transform its items."
        )
    x = dataset_rows(X, estimator.net)
    return validate_data(estimator, x, reset=reset, skip_check_array=True)


def _checked(estimator, X, *, reset, dtype):
    """Rows as an array, which holds NaN in tables only."""
    x = validate_data(
        estimator, X, reset=reset, ensure_all_finite="allow-nan", **_options(dtype)
    )
    if sparse.issparse(x) or x.ndim != 2:
        assert_all_finite(
            x.data if sparse.issparse(x) else x,
            estimator_name=type(estimator).__name__,
            input_name="X",
        )
    return x


def fit_transform_rows(
    estimator, X, y, *, train_rows, valid_rows, fitted, goes_on, random_state
):
    """Rows of a fit as the students get them, and what makes them so.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
    X : ndarray, sparse matrix or array-like of shape (n_samples, ...)
        As :func:`check_rows` returns them.
    y : ndarray or None
    train_rows, valid_rows : ndarray of int or None
        What the transform is fitted to, and the other rows; None for all and none.
    fitted : transformer or None
        That of an earlier fit.
    goes_on : bool
        Whether there is an earlier fit, to which this one adds.
    random_state : int
        Seeds what is random in the transform and has no seed.

    Returns
    -------
    x : ndarray or SparseRows of shape (n_samples, ...)
    transform : transformer or None
        Fitted. None where students get the rows as they are.

    Raises
    ------
    ValueError
        If the rows cannot be used, or the transform is not that of the earlier fit.
    """
    estimator_name = type(estimator).__name__
    transform = estimator.student_transform
    if transform is None and not isinstance(X, DatasetRows) and _has_missing(X):
        # What is missing is for the teacher to see.
        transform = _imputer()
    if goes_on:
        if transform is None and fitted is not None:
            transform = _imputer()
        if _without_seeds(transform) != _without_seeds(fitted):
            raise ValueError(
                f"With warm_start=True, the 'student_transform' of {estimator_name} "
                f"must be that of the earlier fit, {fitted!r}; where that is None, "
                f"rows may hold NaN only if they did before. Got {transform!r}."
            )
    if transform is None:
        return _wrapped(X, estimator_name), None
    options = _options(estimator.dtype)
    if goes_on:
        return _transformed(fitted, X, options, estimator_name), fitted
    if isinstance(transform, type) or not hasattr(transform, "transform"):
        raise TypeError(
            f"The 'student_transform' parameter of {estimator_name} must be a "
            f"transformer or None. Got {transform!r}."
        )
    transform = seeded_clone(transform, random_state)

    def first(X, y):
        # What fits to y may transform these rows in another way than further ones.
        if hasattr(transform, "fit_transform"):
            return transform.fit_transform(X, y)
        return transform.fit(X, y).transform(X)

    if train_rows is None:
        return _as_rows(first(X, y), X, transform, options, estimator_name), transform
    train, valid = (_safe_indexing(X, rows) for rows in (train_rows, valid_rows))
    y_train = None if y is None else y[train_rows]
    x = stack_rows(
        [
            _as_rows(first(train, y_train), train, transform, options, estimator_name),
            _transformed(transform, valid, options, estimator_name),
        ]
    )
    return take_rows(x, np.argsort(np.concatenate([train_rows, valid_rows]))), transform


def _without_seeds(transform):
    """What a transform is, but for the seeds that it was given."""
    if transform is None:
        return None
    transform = clone(transform)
    for name in transform.get_params() if hasattr(transform, "get_params") else ():
        if name.rpartition("__")[2] == "random_state":
            transform.set_params(**{name: None})
    return repr(transform)


def _imputer():
    return SimpleImputer(
        strategy="median", add_indicator=True, keep_empty_features=True
    )


def _has_missing(x):
    """Whether an array that has no infinity holds NaN."""
    return not sparse.issparse(x) and not all_finite(as_tensor(x))


def rows_like(estimator, X, *, transform, input_shape, dtype):
    """Further rows as the students get them.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
        Knows the features of the fit.
    X : array-like of shape (n_samples, ...)
    transform : transformer or None
        Fitted.
    input_shape : tuple of int
        Of a row that students get.
    dtype : str
        Of the students.

    Returns
    -------
    x : ndarray or SparseRows of shape (n_samples, *input_shape)
    """
    estimator_name = type(estimator).__name__
    if is_dataset(X):
        x = _checked_dataset(estimator, X, reset=False)
        check_row_shape(x.shape, input_shape, estimator_name)
        return x
    options = _options(dtype)
    # Before scikit-learn calls the first axis of a sequence or an image "features".
    if transform is None and len(input_shape) >= 2:
        shape = getattr(X, "shape", (0, *input_shape))
        check_row_shape(shape, input_shape, estimator_name)
    if transform is None or _imputes_by_itself(transform):
        x = _checked(estimator, X, reset=False, dtype=dtype)
        if transform is not None:
            x = _transformed(transform, x, options, estimator_name)
        elif _has_missing(x):
            raise ValueError(
                f"Input X contains NaN, and {estimator_name} was fitted to rows that "
                "did not, so that nothing stands for it. Fit with "
                "student_transform=SimpleImputer(), or impute X before."
            )
        else:
            x = _wrapped(x, estimator_name)
    else:
        X = validate_data(estimator, X, reset=False, skip_check_array=True)
        x = _transformed(transform, X, options, estimator_name)
    check_row_shape(x.shape, input_shape, estimator_name)
    return x


def _imputes_by_itself(transform):
    """Whether it is an imputer that was fitted to an array, as the automatic one is."""
    named = hasattr(transform, "feature_names_in_")
    return type(transform) is SimpleImputer and not named


def check_row_shape(shape, input_shape, estimator_name):
    """Compare the shape of rows with that of those that students were fitted on.

    Parameters
    ----------
    shape : tuple of int
        Of all rows.
    input_shape : tuple of int
        Of a row.
    estimator_name : str
        For messages.
    """
    if tuple(shape[1:]) != input_shape:
        raise ValueError(
            f"{estimator_name} was fitted on rows of shape {input_shape}, and X has "
            f"rows of shape {tuple(shape[1:])}."
        )


def _transformed(transform, X, options, estimator_name):
    return _as_rows(transform.transform(X), X, transform, options, estimator_name)


def _as_rows(x, X, transform, options, estimator_name):
    """What a transform has made of rows, checked."""
    name = f"the rows that {type(transform).__name__}, the 'student_transform', gives"
    x = check_array(from_torch(x), estimator=estimator_name, input_name=name, **options)
    check_consistent_length(X, x)
    return _wrapped(x, estimator_name)


def _wrapped(x, estimator_name):
    """Rows with at least one number, sparse ones as :class:`SparseRows`."""
    if 0 in x.shape[1:]:
        raise ValueError(
            f"{estimator_name} needs rows with at least one number. Got X of shape "
            f"{x.shape}."
        )
    return SparseRows(x) if sparse.issparse(x) else x
