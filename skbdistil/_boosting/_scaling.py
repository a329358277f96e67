"""Mean and spread of rows and of targets, which the students see taken out."""

import math

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from skbdistil._arrays import row_chunks
from skbdistil._boosting._rows import chunk_rows
from skbdistil._storage import row_pieces


def input_scaling(x, sample_weight, dtype, estimator_name):
    """Mean and standard deviation per feature or channel, to broadcast against a row.

    Chunk by chunk in float64, so that a memory map stays one.

    Parameters
    ----------
    x : ndarray or LazyRows of shape (n_samples, ...)
    sample_weight : ndarray of shape (n_samples,) or None
    dtype : numpy.dtype
        Of the students.
    estimator_name : str
        For messages.

    Returns
    -------
    mean, scale : ndarray of float64
        The scale of a feature that is constant, but for rounding, is infinite: scaled,
        it is 0 whatever its value.
    notes : list of Warning
    """
    channels_last = x.ndim <= 3
    scaler = StandardScaler()
    for rows, chunk in row_chunks(x, chunk_rows(x.shape[1:])):
        chunk = chunk.astype(np.float64)
        weight = None
        if not channels_last:
            chunk = np.moveaxis(chunk, 1, -1)
        if sample_weight is not None:
            n_values = chunk[0].size // chunk.shape[-1]
            weight = np.repeat(sample_weight[rows], n_values)
        # What overflows is found below.
        with np.errstate(over="ignore", invalid="ignore"):
            scaler.partial_fit(chunk.reshape(-1, chunk.shape[-1]), sample_weight=weight)
    mean, variance = scaler.mean_, scaler.var_
    # What scikit-learn finds to be constant but for rounding, it leaves unscaled.
    scale = np.where(scaler.scale_ == np.sqrt(variance), scaler.scale_, np.inf)
    advice = f"Scale them before {estimator_name}"
    if dtype == np.float32:
        advice += ", or use dtype='float64'"
    with np.errstate(over="ignore"):
        cast = np.array([mean, scaler.scale_, 1 / scaler.scale_]).astype(dtype)
    if not np.isfinite([*cast, variance]).all():
        raise ValueError(
            f"X holds values whose mean or spread is out of the range of {dtype}. "
            f"{advice}."
        )
    notes = []
    # Rows are cast before they are centred; a hundredth of the spread has to be left.
    lost = np.abs(mean) * np.finfo(dtype).eps > scale / 100
    if lost.any():
        notes.append(
            UserWarning(
                f"{lost.sum()} feature(s) of X, the first at position {lost.argmax()}, "
                f"vary too little around a large mean for {dtype}, which loses most of "
                f"what they say. {advice}."
            )
        )
    shape = (-1,) if channels_last else (-1,) + (1,) * (x.ndim - 2)
    return mean.reshape(shape), scale.reshape(shape), notes


def target_scaling(values, sample_weight, estimator_name):
    """Mean and standard deviation of each target; 0 for a constant one.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_outputs)
        Of the teacher, float64.
    sample_weight : ndarray of shape (n_samples,) or None
    estimator_name : str
        For messages.

    Returns
    -------
    mean, scale : ndarray of shape (n_outputs,)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaler = StandardScaler()
        for rows in row_pieces(values):
            weight = None if sample_weight is None else sample_weight[rows]
            scaler.partial_fit(values[rows], sample_weight=weight)
    if not np.isfinite([scaler.mean_, scaler.var_]).all():
        raise ValueError(
            f"The targets that the teacher of {estimator_name} gives are out of the "
            "range in which their spread can be computed. Scale them."
        )
    underflow = (scaler.var_ == 0) & (values.max(axis=0) > values.min(axis=0))
    if underflow.any() and np.abs(values[:, underflow]).max() < 1e-100:
        raise ValueError(
            f"The targets that the teacher of {estimator_name} gives are too small for "
            "their spread to be computed. Scale them."
        )
    spread = np.sqrt(scaler.var_)
    varies = scaler.scale_ == spread
    # The mean of equal numbers may differ from them in the last bit.
    return np.where(varies, scaler.mean_, values[0]), np.where(varies, spread, 0.0)


def check_in_range(x, estimator_name):
    """Refuse rows that are not finite any more after they were cast and scaled.

    Parameters
    ----------
    x : torch.Tensor
        As the students see it.
    estimator_name : str
        For messages.
    """
    if not all_finite(x):
        raise ValueError(
            f"Input X of {estimator_name} contains a value too large for {x.dtype} "
            "once it is scaled as the students see it. Remove or clip such values, "
            "or fit with dtype='float64'."
        )


def check_scores(scores, estimator_name):
    """Refuse scores that are not finite: NaN would pass for a class.

    Parameters
    ----------
    scores : torch.Tensor of shape (..., n_outputs)
    estimator_name : str
        For messages.
    """
    if not all_finite(scores):
        raise ValueError(
            f"The students of {estimator_name} give scores that are not finite: X "
            f"contains values too large for them to compute with in {scores.dtype}. "
            "Remove or clip such values, or fit with dtype='float64'."
        )


def all_finite(x):
    """Whether no number is NaN or infinite.

    Parameters
    ----------
    x : torch.Tensor

    Returns
    -------
    finite : bool
    """
    # The sum is finite where all numbers are, but for sums that overflow.
    return (
        not x.is_floating_point()
        or math.isfinite(x.sum())
        or bool(torch.isfinite(x).all())
    )
