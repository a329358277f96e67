"""Transforms of fitted pipelines, in forms that can be exported.

Imputers, scalers and selections of columns are one affine map together. Other
transforms are left to skl2onnx. Neither is believed: both are compared with the
transforms themselves.
"""

import copy
import warnings
from importlib import import_module
from typing import NamedTuple

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import SelectorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)

from skbdistil._optional import required

_N_PROBES = 64

# Of what the parts of a sum may lose by rounding, some hundred times over.
_AFFINE_TOLERANCE = 1e-13

# Of the rows as the students see them: what float32 may lose.
_GRAPH_TOLERANCE = 1e-5


def leaves(steps):
    """Transformers of some steps of a pipeline, those of nested pipelines among them.

    Parameters
    ----------
    steps : iterable of (str, transformer)

    Yields
    ------
    step : (str, transformer)
        Out of its :class:`~sklearn.frozen.FrozenEstimator`. Those that hand rows on as
        they are do not count.
    """
    for name, step in steps:
        while isinstance(step, FrozenEstimator):
            step = step.estimator
        if isinstance(step, Pipeline):
            yield from leaves(step.steps)
        elif not _is_identity(step):
            yield name, step


def _is_identity(step):
    # Not a subclass, which may do what it likes.
    is_function = type(step) is FunctionTransformer
    return step in (None, "passthrough") or (is_function and step.func is None)


def named(steps):
    """Steps in the words of a message."""
    return ", ".join(f"{name!r} ({type(step).__name__})" for name, step in steps)


class AffineMap(NamedTuple):
    """``(x - centre) * factor + offset`` of some columns, in float64.

    Attributes
    ----------
    columns : ndarray of int of shape (n,)
    centre, factor, offset : ndarray of shape (n,)
    fill : ndarray of shape (n,)
        What stands for NaN; NaN where nothing does.
    flags : ndarray of bool of shape (n,)
        Where x is not the number in the column, but 1 if it is NaN and else 0.
    """

    columns: np.ndarray
    centre: np.ndarray
    factor: np.ndarray
    offset: np.ndarray
    fill: np.ndarray
    flags: np.ndarray

    @classmethod
    def of(
        cls, columns, *, centre=None, factor=None, offset=None, fill=None, flags=False
    ):
        """Map of some columns, with None for what it does not do."""

        def filled(values, default):
            values = default if values is None else values
            return np.array(np.broadcast_to(values, len(columns)), dtype=np.float64)

        return cls(
            np.asarray(columns, dtype=np.intp),
            filled(centre, 0),
            filled(factor, 1),
            filled(offset, 0),
            filled(fill, np.nan),
            np.array(np.broadcast_to(flags, len(columns))),
        )

    @property
    def imputes(self):
        """Columns of x that may be NaN: all that is read of them is made up for."""
        made_up = self.flags | ~np.isnan(self.fill)
        return np.setdiff1d(self.columns, self.columns[~made_up])

    def read(self, x):
        """What there is of the columns before it is scaled."""
        x = x[:, self.columns]
        is_missing = np.isnan(x)
        return np.where(self.flags, is_missing, np.where(is_missing, self.fill, x))

    def __call__(self, x):
        return (self.read(x) - self.centre) * self.factor + self.offset

    def then(self, other):
        """This map, and another one of what it returns; None if that is no such map."""
        columns, centre, factor, offset, fill, flags = (
            values[other.columns] for values in self
        )
        imputed = other.flags | ~np.isnan(other.fill)
        touched = (centre != 0) | (factor != 1) | (offset != 0) | flags
        if (imputed & (touched | ~np.isnan(fill))).any():
            return None
        return AffineMap(
            columns,
            centre,
            factor * other.factor,
            (offset - other.centre) * other.factor + other.offset,
            np.where(imputed, other.fill, fill),
            flags | other.flags,
        )


def affine_transforms(steps, transform, X=None):
    """The affine map that transforms are, if they are one.

    Parameters
    ----------
    steps : list of (str, transformer)
        As :func:`leaves` yields them.
    transform : callable
        All of them; the map is compared with it, on rows of all sizes.
    X : array-like of shape (n_samples, n_columns) or None
        Further rows to compare them on.

    Returns
    -------
    affine : AffineMap or None
    """
    first = steps[0][1]
    if not hasattr(first, "n_features_in_"):
        return None
    affine = _chained(steps, first.n_features_in_)
    if affine is None:
        return None
    probes = _probes(affine, first.n_features_in_)
    frame = _as_seen_in_fit(probes, first)
    try:
        agrees = _agrees(affine, transform, frame)
    except ValueError:
        # Columns that go by name, and pandas is not there.
        agrees = False
    if agrees and X is not None:
        agrees = _agrees(affine, transform, X)
    return affine if agrees else None


def _affine(step, n_columns):
    """Affine map of one transformer, of what it says about itself; None if unknown."""
    columns = np.arange(n_columns)
    if isinstance(step, FrozenEstimator | Pipeline) or _is_identity(step):
        return _chained(leaves([("", step)]), n_columns)
    if isinstance(step, ColumnTransformer):
        return _side_by_side(step)
    if isinstance(step, SelectorMixin):
        return AffineMap.of(step.get_support(indices=True))
    if isinstance(step, StandardScaler):
        return AffineMap.of(
            columns,
            centre=step.mean_ if step.with_mean else None,
            factor=_reciprocal(step.scale_) if step.with_std else None,
        )
    if isinstance(step, RobustScaler):
        return AffineMap.of(
            columns,
            centre=step.center_ if step.with_centering else None,
            factor=_reciprocal(step.scale_) if step.with_scaling else None,
        )
    if isinstance(step, MaxAbsScaler):
        return AffineMap.of(columns, factor=_reciprocal(step.scale_))
    if isinstance(step, MinMaxScaler):
        return AffineMap.of(columns, factor=step.scale_, offset=step.min_)
    if isinstance(step, SimpleImputer):
        return _imputing(step)
    return None


def _imputing(step):
    """Affine map of an imputer of numbers."""
    try:
        fill = np.asarray(step.statistics_, dtype=np.float64)
    except ValueError:  # strings
        return None
    if not _is_nan(step.missing_values):
        return None
    # Columns without any number are left out.
    kept = np.flatnonzero(~np.isnan(fill))
    flagged = np.array([], dtype=int)
    if step.add_indicator:
        flagged = step.indicator_.features_
    return AffineMap.of(
        np.concatenate([kept, flagged]),
        fill=np.concatenate([fill[kept], np.full(len(flagged), np.nan)]),
        flags=np.repeat([False, True], [len(kept), len(flagged)]),
    )


def _is_nan(value):
    return isinstance(value, float) and np.isnan(value)


def _reciprocal(scale):
    # Scales of a scaler that was fitted on float32 are float32.
    return np.reciprocal(scale, dtype=np.float64)


def _chained(steps, n_columns):
    result = AffineMap.of(np.arange(n_columns))
    for _, step in steps:
        following = _affine(step, len(result.columns))
        if following is None:
            return None
        result = result.then(following)
        if result is None:
            return None
    return result


def _side_by_side(step):
    """Affine map of a ColumnTransformer."""
    parts = []
    for name, transformer, _ in step.transformers_:
        # The same columns in `transformers_` may be names, masks or slices.
        columns = step._transformer_to_input_indices[name]
        if len(columns) == 0 or transformer == "drop":
            continue
        part = _affine(transformer, len(columns))
        if part is None:
            return None
        parts.append(AffineMap.of(columns).then(part))
    return AffineMap(*map(np.concatenate, zip(*parts, strict=True)))


def _probes(affine, n_columns):
    """Rows whose images are near zero, ordinary and far away: clipping shows."""
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.integers(-2, 4, size=(_N_PROBES, 1))
    images = size * rng.normal(size=(_N_PROBES, len(affine.columns)))
    rows = rng.normal(size=(_N_PROBES, n_columns))
    rows[:, affine.columns] = (images - affine.offset) / affine.factor + affine.centre
    missing = rng.random((_N_PROBES, len(affine.imputes))) < 0.5
    rows[:, affine.imputes] = np.where(missing, np.nan, rows[:, affine.imputes])
    return rows


def _as_seen_in_fit(rows, first):
    """Rows with the names of the columns, by which a transformer may look for them."""
    names = getattr(first, "feature_names_in_", None)
    if names is None:
        return rows
    try:
        pandas = import_module("pandas")
    except ImportError:
        return rows
    return pandas.DataFrame(rows, columns=names)


def _agrees(affine, transform, rows):
    x = np.array(rows, dtype=np.float64)
    with warnings.catch_warnings():
        # That the rows have no names, without pandas.
        warnings.simplefilter("ignore", UserWarning)
        # A copy, on which a scaler may work in place.
        expected = np.asarray(transform(copy.copy(rows)))
    size = (np.abs(affine.read(x)) + np.abs(affine.centre)) * affine.factor
    tolerance = _AFFINE_TOLERANCE * (np.abs(size) + np.abs(affine.offset) + 1)
    found = affine(x)
    return found.shape == expected.shape and bool(
        (np.abs(found - expected) <= tolerance).all()
    )


def transforms_graph(steps, transform, X, *, seen, opset, needed_by):
    """ONNX model of transforms, written by skl2onnx.

    Parameters
    ----------
    steps : list of (str, transformer)
        As :func:`leaves` yields them.
    transform : callable
        All of them; the model is compared with it.
    X : array-like of shape (n_samples, n_columns)
        Rows to compare them on.
    seen : callable
        What the students see of transformed rows.
    opset : int
        Opset of the model.
    needed_by : str
        Function that is called, for messages.

    Returns
    -------
    model : onnx.ModelProto
        It has one input, ``x``, of float64 if there is a converter for it, and one
        output.

    Raises
    ------
    ImportError
        If skl2onnx or onnxruntime is not installed.

    ValueError
        If there is no such model.
    """
    skl2onnx = required(needed_by, "skl2onnx")
    types = required(needed_by, "skl2onnx.common.data_types")
    runtime = required(needed_by, "onnxruntime")
    transformed = transform(copy.copy(X))
    expected = seen(transformed)
    if not (len(expected) and np.isfinite(expected).all()):
        raise ValueError(
            f"The 'X' of {needed_by} must be rows that the pipeline takes. Got "
            f"{len(expected)} rows, which have to be finite after the transforms."
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    # Steps of several pipelines may have the same name.
    pipeline = Pipeline([(str(number), step) for number, (_, step) in enumerate(steps)])
    for dtype, kind in (
        (np.float64, types.DoubleTensorType),
        (np.float32, types.FloatTensorType),
    ):
        with np.errstate(over="ignore"):
            rows = np.asarray(X, dtype=dtype)
        try:
            model = skl2onnx.convert_sklearn(
                pipeline,
                initial_types=[("x", kind([None, *rows.shape[1:]]))],
                target_opset=opset,
            )
            # An older opset may have been enough; this one is what will run.
            for imported in model.opset_import:
                if not imported.domain:
                    imported.version = opset
            session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            (found,) = session.run(None, {"x": rows})
        # The errors of neither have a base class of their own.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if found.shape == transformed.shape:
            off = np.abs(seen(found) - expected)
            if (off <= _GRAPH_TOLERANCE * (1 + abs(expected))).all():
                return model
        reason = "what skl2onnx has written gives other rows than they do"
    raise ValueError(
        f"{needed_by} cannot export the transforms {named(steps)}: {reason}"
    )
