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

from skbdistil._arrays import SparseRows, as_tensor, from_torch
from skbdistil._boosting._scaling import all_finite

__all__ = ["READY_DTYPES", "check_row_shape", "fit_transform_rows", "rows_like"]

# Kept as they come, and converted batch by batch.
_INPUT_DTYPES = [np.float32, np.float64, np.float16, np.uint8]
_INPUT_DTYPES += [np.int8, np.int16, np.int32, np.int64]
READY_DTYPES = frozenset(map(np.dtype, _INPUT_DTYPES))


def _options(dtype):
    """How rows are validated; what has another dtype becomes that of the students."""
    return {
        "dtype": [np.dtype(dtype).type, *_INPUT_DTYPES],
        "order": "C",
        "allow_nd": True,
        "accept_sparse": "csr",
    }


def fit_transform_rows(estimator, X, y, *, fitted, reset):
    """Rows of a fit as the students get them, and what makes them so.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
        Gets `n_features_in_` and `feature_names_in_` with `reset`.
    X : array-like of shape (n_samples, ...)
    y : ndarray or None
        Validated.
    fitted : transformer or None
        That of an earlier fit that goes on.
    reset : bool
        Whether this is a first fit.

    Returns
    -------
    x : ndarray or SparseRows of shape (n_samples, ...)
    transform : transformer or None
        Fitted. None where students get the rows as they are.

    Raises
    ------
    ValueError
        If the rows cannot be used.
    """
    estimator_name = type(estimator).__name__
    options = _options(estimator.dtype)
    transform = estimator.student_transform
    if transform is None:
        x = validate_data(
            estimator, X, reset=reset, ensure_all_finite="allow-nan", **options
        )
        has_missing = not sparse.issparse(x) and not all_finite(as_tensor(x))
        if sparse.issparse(x) or x.ndim != 2:
            assert_all_finite(
                x.data if sparse.issparse(x) else x,
                estimator_name=estimator_name,
                input_name="X",
            )
        elif has_missing or fitted is not None:
            # What is not there is unknown to students only: the teacher sees it.
            X = x
            transform = SimpleImputer(
                strategy="median", add_indicator=True, keep_empty_features=True
            )
        if transform is None:
            return _wrapped(x, estimator_name), None
    else:
        X = validate_data(estimator, X, reset=reset, skip_check_array=True)
    if fitted is None:
        if not hasattr(transform, "transform"):
            raise TypeError(
                f"The 'student_transform' parameter of {estimator_name} must be a "
                f"transformer or None. Got {transform!r}."
            )
        fitted = clone(transform).fit(X, y)
    return _transformed(fitted, X, options, estimator_name), fitted


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
    options = _options(dtype)
    if transform is None:
        # Before scikit-learn calls the first axis of a sequence or an image "features".
        if len(input_shape) >= 2:
            shape = getattr(X, "shape", (0, *input_shape))
            check_row_shape(shape, input_shape, estimator_name)
        x = _wrapped(
            validate_data(estimator, X, reset=False, **options), estimator_name
        )
    else:
        X = validate_data(estimator, X, reset=False, skip_check_array=True)
        x = _transformed(transform, X, options, estimator_name)
    check_row_shape(x.shape, input_shape, estimator_name)
    return x


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
    x = transform.transform(X)
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
