"""Exported stages in fewer bytes: weights in float16, or arithmetic in int8.

It works on folders of :func:`skbdistil.export.to_onnx`, with NumPy, onnx and
onnxruntime. Neither torch nor scikit-learn is imported here.
"""

import copy
import logging
import statistics
import tempfile
import time
import warnings
from contextlib import contextmanager
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skbdistil._files import new_folder, write_stages
from skbdistil._optional import required
from skbdistil.runtime import ProgressiveSession

__all__ = ["PrecisionChoice", "PrecisionReport", "lower_precision"]

_PRECISIONS = ("float32", "float16", "int8_dynamic", "int8_static")

# Layers whose weights take most of the bytes.
_LAYERS = {"Conv", "Gemm", "GRU", "LSTM", "MatMul"}

_N_WARM_UP = 5
_N_TIMED = 100


class PrecisionChoice(NamedTuple):
    """A choice that ``precision="auto"`` tried, after those taken before it.

    Attributes
    ----------
    stage : int
        Number of the stage, from 1.

    precision : str
        What it was lowered to.

    n_bytes : int
        Size of all files of stages with this choice.

    latency, float32_latency : float
        Seconds for one row with this choice, and in float32, measured in turns.

    agreement : float
        Smallest agreement of a stage with this choice.

    taken : bool
        Whether the agreement reached the target.

    Examples
    --------
    >>> from skbdistil.precision import PrecisionChoice
    >>> PrecisionChoice(1, "float16", 4000, 2e-5, 2e-5, 1.0, True).taken
    True
    """

    stage: int
    precision: str
    n_bytes: int
    latency: float
    float32_latency: float
    agreement: float
    taken: bool


class PrecisionReport(NamedTuple):
    """What :func:`lower_precision` has written.

    Attributes
    ----------
    precisions : tuple of str
        Precision of each stage.

    n_bytes, float32_n_bytes : ndarray of shape (n_stages,)
        Size of the file of each stage, and what it was in float32.

    agreement : ndarray of shape (n_stages,) or None
        Agreement of each stage with the same stage in float32 on `X`, from 0 to 1;
        None without `X`. For a classifier the share of rows with the same label. For a
        regressor one minus the root mean square of the difference, in standard
        deviations of the targets at fit, and 0 where that is negative.

    latency, float32_latency : float
        Seconds for one row through all stages, and in float32: medians on one thread
        of this processor, measured in turns.

    choices : tuple of PrecisionChoice
        What ``precision="auto"`` tried, in order; empty otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil.precision import PrecisionReport
    >>> report = PrecisionReport(
    ...     ("int8_static",),
    ...     np.array([3000]),
    ...     np.array([9000]),
    ...     np.array([0.999]),
    ...     latency=4e-5,
    ...     float32_latency=2e-5,
    ...     choices=(),
    ... )
    >>> report.latency < report.float32_latency
    False
    """

    precisions: tuple
    n_bytes: np.ndarray
    float32_n_bytes: np.ndarray
    agreement: np.ndarray | None
    latency: float
    float32_latency: float
    choices: tuple


def lower_precision(
    source, directory, precision="auto", *, X=None, target=0.995, transformed=False
):
    """Write a copy of an export with stages of lower precision.

    Parameters
    ----------
    source : str or path-like
        Folder that :func:`skbdistil.export.to_onnx` has written.

    directory : str or path-like
        Folder to write. It must not exist, or be empty; it appears when all is written.

    precision : {"auto", "float32", "float16", "int8_dynamic", "int8_static"} or \
            list of these but "auto", default="auto"
        Precision of all stages, or one for each.

        - "float16": weights of layers are stored as float16 and brought back to float32
          when the stage is loaded. It saves bytes of the file only.
        - "int8_dynamic": dense, convolutional and LSTM layers compute in int8. The
          range of what they read is found in each batch, so that the scores of a row
          depend on the rows beside it, if little.
        - "int8_static": dense and convolutional layers compute in int8. The ranges
          are those seen with `X` in float32.
        - "auto": stage by stage, as long as the agreement allows.

        Layers that are not named stay in float32: GRU layers always do but for
        "float16".

    X : array-like of shape (n_samples, ...), default=None
        Calibration rows, as the session of `source` takes them. They need no labels.
        Needed for "int8_static" and "auto", and for the agreement to be measured.

    target : float, default=0.995
        Smallest agreement that "auto" allows at any stage, from 0 to 1.

    transformed : bool, default=False
        As for :class:`~skbdistil.runtime.ProgressiveSession`: whether `X` has been
        through the transforms that are not exported.

    Returns
    -------
    report : PrecisionReport
        Precision and bytes of each stage, agreement with float32, and latency beside
        that of float32.

    Raises
    ------
    ValueError
        If a parameter is not as above, a stage of `source` is not in float32, or a
        stage cannot be lowered as asked: it has no layer of the kind, or a weight
        beyond the range of float16.

    InvalidFileError
        If `source` is damaged.

    FileExistsError
        If there is something in `directory`.

    ImportError
        If onnx or onnxruntime is not installed.

    Warns
    -----
    UserWarning
        If the graph of a fixed stage is left out of the copy.

    See Also
    --------
    skbdistil.runtime.ProgressiveSession : Predicts from the folder.

    Notes
    -----
    Inputs and outputs of the stages and the running mean of the scores stay in float32.

    The graph of a fixed stage, `fixed_stage` of :func:`~skbdistil.export.to_onnx`, is
    copied where the stages up to this one stay in float32, and lowered with them where
    all of them are in float16. Otherwise it is left out, with a warning. Bytes,
    agreement and latency of the report are those of the stages.

    "auto" looks at bytes and agreement; latencies are only reported. It measures the
    loss of agreement of each precision of each stage alone. Then it goes through them,
    smallest loss first and more saved bytes first among equals, adds each that makes
    the file of its stage smaller, and keeps it if the agreement of every stage stays at
    least `target`. `X` runs at most six times per stage through the ensemble.

    The agreement is measured on `X`, which has chosen the precisions as well: expect
    a little less on other rows. The thresholds of an early exit are copied as they
    are: the agreement is that of the stages, and not of the exits, so check accuracy
    and :meth:`~skbdistil.runtime.ProgressiveSession.exit_stages` on rows with labels,
    or calibrate again. A guarantee is about the stages in float32, and so are
    intervals, which are left out.

    In int8, all features that a layer reads share one range. A few rows far from the
    others take most of it, as do those of a nearly constant feature, since it is scaled
    to unit variance: drop such features, or use "float16".

    For stages as small as these, int8 is often slower than float32, since it has to
    quantise what each layer reads: compare the latencies of the report, on the
    processor that will predict. Weights have 7 of 8 bits, so that sums do not saturate
    on processors without VNNI instructions. A small file may even grow by the nodes
    that are added; "auto" leaves such a stage as it was.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_digits
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.export import to_onnx
    >>> from skbdistil.precision import lower_precision
    >>> from skbdistil.students import MLP
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = BDistilClassifier(
    ...     student=partial(MLP, hidden=(64,)),
    ...     n_estimators=2,
    ...     max_epochs=20,
    ...     random_state=0,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, directory = Path(folder, "float32"), Path(folder, "lower")
    ...     to_onnx(clf.fit(X, y), source)
    ...     report = lower_precision(source, directory, X=X, target=0.99)
    >>> bool(report.agreement.min() >= 0.99)
    True
    >>> report.n_bytes < report.float32_n_bytes
    array([ True,  True])
    """
    required("lower_precision", "onnx")
    required("lower_precision", "onnxruntime")
    full = _session(source, transformed)
    precisions = _check_precision(precision, full)
    if X is None and (precisions is None or "int8_static" in precisions):
        raise ValueError(
            "'X' must be calibration rows with precision 'auto' or 'int8_static'. Got "
            "None instead."
        )
    if not (isinstance(target, Real) and 0 <= target <= 1):
        raise ValueError(f"'target' must be from 0 to 1. Got {target!r} instead.")
    with new_folder(directory) as folder:
        lowering = _Lowering(full, X, transformed)
        choices = ()
        if precisions is None:
            precisions, choices = lowering.search(target)
        lowering.write(folder, precisions)
        lowering.warn_of_dropped(precisions)
        lowered = _session(folder, transformed)
        latency, float32_latency = _latencies(X, lowered, full)
        return PrecisionReport(
            tuple(precisions),
            lowering.n_bytes(precisions),
            lowering.n_bytes(["float32"] * full.n_stages),
            lowering.agreement(lowered),
            latency,
            float32_latency,
            choices,
        )


def _check_precision(precision, full):
    """Precision of each stage; None for "auto"."""
    stored = [stage.get("precision") for stage in full.manifest["stages"]]
    if any(found != "float32" for found in stored):
        raise ValueError(
            f"'source' must hold stages in float32. Got the precisions {stored}."
        )
    if isinstance(precision, str):
        if precision == "auto":
            return None
        precisions = [precision] * full.n_stages
    else:
        precisions = precision
    if (
        not isinstance(precisions, list | tuple)
        or len(precisions) != full.n_stages
        or any(name not in _PRECISIONS for name in precisions)
    ):
        raise ValueError(
            f"'precision' must be 'auto', one of {list(_PRECISIONS)}, or a list of "
            f"these for {full.n_stages} stages. Got {precision!r} instead."
        )
    return precisions


class _Lowering:
    """Stages of a folder in every precision that is asked for.

    Parameters
    ----------
    full : ProgressiveSession
        All stages, in float32.
    X : array-like or None
    transformed : bool
    """

    def __init__(self, full, X, transformed):
        self._full = full
        self._X = X
        self._transformed = transformed
        self._predictions = None if X is None else list(full.staged_predict(X))
        # All stages are loaded here, if they can be.
        full._staged_scores(_row(full, X))
        self._fixed = None
        if full._export.fixed is not None:
            full._open(full._export.fixed)
            self._fixed = full._verified(full._export.fixed)
        self._contents = {
            (number, "float32"): full._verified(stage)
            for number, stage in enumerate(full._stages)
        }

    def n_bytes(self, precisions):
        return np.array([len(self._content(*key)) for key in enumerate(precisions)])

    def agreement(self, session):
        """Agreement of each stage with that in float32."""
        if self._X is None:
            return None
        pairs = zip(session.staged_predict(self._X), self._predictions, strict=True)
        if session.classes_ is not None:
            return np.array([np.mean(found == full) for found, full in pairs])
        scale = np.array(session.manifest["targets"]["scale"])
        errors = [
            (found - full).reshape(-1, len(scale)) / scale for found, full in pairs
        ]
        return np.maximum(0, 1 - np.sqrt(np.mean(np.square(errors), axis=(1, 2))))

    def search(self, target):
        """Precisions that reach the target, and the choices that were tried."""
        precisions = ["float32"] * self._full.n_stages
        candidates = []
        for stage in range(self._full.n_stages):
            for precision in _PRECISIONS[1:]:
                content = self._lowered(stage, precision)
                if content is not None:
                    with self._trial(_replaced(precisions, stage, precision)) as trial:
                        loss = 1 - self.agreement(trial).min()
                    saved = len(self._content(stage, "float32")) - len(content)
                    candidates.append((loss, -saved, stage, precision))
        choices = []
        for _, _, stage, precision in sorted(candidates):
            changed = _replaced(precisions, stage, precision)
            n_bytes = self.n_bytes(changed).sum()
            if n_bytes >= self.n_bytes(precisions).sum():
                continue
            with self._trial(changed) as trial:
                agreement = self.agreement(trial).min()
                latencies = _latencies(self._X, trial, self._full)
            taken = bool(agreement >= target)
            choices.append(
                PrecisionChoice(
                    stage + 1,
                    precision,
                    int(n_bytes),
                    *latencies,
                    float(agreement),
                    taken,
                )
            )
            if taken:
                precisions = changed
        return precisions, tuple(choices)

    def write(self, folder, precisions):
        manifest = copy.deepcopy(self._full.manifest)
        manifest.pop("intervals", None)  # of the errors of float32
        contents = []
        for number, precision in enumerate(precisions):
            content = self._content(number, precision)
            contents.append(content)
            if precision != "float32":
                manifest["stages"][number].update(
                    precision=precision, weight_bytes=_weight_bytes(content)
                )
        if self._fixed is not None:
            content = self.fixed_content(precisions)
            if content is None:
                manifest["fixed_stage"] = None
            else:
                contents.append(content)
                manifest["fixed_stage"].update(
                    precision=precisions[0],
                    weight_bytes=_weight_bytes(content),
                    file_bytes=len(content),
                )
        write_stages(folder, manifest, contents)

    def fixed_content(self, precisions):
        """Content of the graph of the fixed stage; None if it cannot be kept.

        It has to predict as the stages do. In int8 its ranges would be others, and one
        graph has one precision.
        """
        (precision, *others) = set(precisions[: self._full._export.fixed_stage])
        if others or precision not in ("float32", "float16"):
            return None
        return self._fixed if precision == "float32" else _float16(self._fixed)

    def warn_of_dropped(self, precisions):
        if self._fixed is not None and self.fixed_content(precisions) is None:
            fixed = self._full._export
            warnings.warn(
                f"{fixed.fixed.file}, the graph of the fixed stage "
                f"{fixed.fixed_stage}, is not in the copy: the stages up to it are "
                "neither all in float32 nor all in float16, and it would not predict "
                "as they do.",
                UserWarning,
                stacklevel=3,
            )

    @contextmanager
    def _trial(self, precisions):
        """A session with these precisions."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder), precisions)
            yield _session(folder, self._transformed)

    def _content(self, stage, precision):
        content = self._lowered(stage, precision)
        if content is None:
            raise ValueError(
                f"Stage {stage + 1} cannot be lowered to {precision!r}: it has no "
                "layer of the kinds that can be, or a weight beyond float16."
            )
        return content

    def _lowered(self, stage, precision):
        """Content of the file of a stage; None if it has nothing to lower."""
        key = stage, precision
        if key not in self._contents:
            content = self._contents[stage, "float32"]
            if precision == "float16":
                lowered = _float16(content)
            elif precision == "int8_dynamic":
                lowered = _int8(content)
            else:
                lowered = _int8(content, _Feeds(self._full._feeds(self._X, stage)))
            self._contents[key] = lowered
        return self._contents[key]


def _session(folder, transformed):
    return ProgressiveSession(
        folder, early_exit=False, n_threads=1, transformed=transformed
    )


def _row(session, X):
    # Transforms need not take zeros.
    return np.zeros((1, *session.input_shape)) if X is None else np.asarray(X[:1])


def _replaced(values, index, value):
    return [*values[:index], value, *values[index + 1 :]]


def _latencies(X, *sessions):
    """Median seconds that the stages of each session take for one row, in turns."""
    row = _row(sessions[0], X)
    seconds = [[] for _ in sessions]
    for _ in range(_N_WARM_UP + _N_TIMED):
        for session, found in zip(sessions, seconds, strict=True):
            began = time.perf_counter()
            session._staged_scores(row)
            found.append(time.perf_counter() - began)
    return [statistics.median(found[_N_WARM_UP:]) for found in seconds]


# The graphs


def _float16(content):
    """Weights of layers in float16, with a cast before they are used."""
    onnx = import_module("onnx")
    model = onnx.load_from_string(content)
    graph = model.graph
    used = {
        name for node in graph.node if node.op_type in _LAYERS for name in node.input
    }
    casts = []
    for weights in graph.initializer:
        # A bias is too short for the cast to pay.
        is_matrix = (
            weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) > 1
        )
        if is_matrix and weights.name in used:
            name = f"{weights.name}_float16"
            with np.errstate(over="ignore"):
                values = onnx.numpy_helper.to_array(weights).astype(np.float16)
            if not np.isfinite(values).all():
                return None
            casts.append(
                onnx.helper.make_node(
                    "Cast", [name], [weights.name], to=onnx.TensorProto.FLOAT
                )
            )
            weights.CopyFrom(onnx.numpy_helper.from_array(values, name))
    if not casts:
        return None
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


class _Feeds:
    """Calibration data, as onnxruntime reads them.

    Parameters
    ----------
    feeds : iterator of dict
    """

    def __init__(self, feeds):
        self._feeds = feeds

    def get_next(self):
        return next(self._feeds, None)


def _int8(content, feeds=None):
    """Layers in int8, with ranges from the feeds or, without any, of each batch."""
    onnx = import_module("onnx")
    quantization = import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, _kept_log():
        source, prepared, lowered = (
            str(Path(folder, f"{name}.onnx")) for name in ("float32", "shapes", "int8")
        )
        Path(source).write_bytes(content)
        # The shapes are all that is needed; symbolic ones would take another package.
        quantization.quant_pre_process(
            source, prepared, skip_optimization=True, skip_symbolic_shape=True
        )
        if feeds is None:
            quantization.quantize_dynamic(
                prepared,
                lowered,
                op_types_to_quantize=["Conv", "LSTM", "MatMul"],
                reduce_range=True,
                # Convolutions take half the time that they take with QInt8.
                weight_type=quantization.QuantType.QUInt8,
            )
        else:
            quantization.quantize_static(
                prepared,
                lowered,
                feeds,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                # The scores among them; it saves nodes as well.
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]
                },
            )
        model = onnx.load(lowered)
    int8 = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    if not any(
        weights.data_type in int8 and len(weights.dims) > 1
        for weights in model.graph.initializer
    ):
        return None
    # Of no use when it runs, and larger than a small stage.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    return model.SerializeToString()


@contextmanager
def _kept_log():
    """Keep the root logger, to which the quantizer would add a handler."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def _weight_bytes(content):
    onnx = import_module("onnx")
    graph = onnx.load_from_string(content).graph
    return sum(onnx.numpy_helper.to_array(w).nbytes for w in graph.initializer)
