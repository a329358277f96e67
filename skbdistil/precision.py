"""Exported stages in fewer bytes: weights in float16 or 4 bits, arithmetic in int8.

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

_PRECISIONS = ("float32", "float16", "int8_dynamic", "int8_static", "int4")

# What follows float32, from more bits to fewer.
_LEVELS = (("float16",), ("int8_dynamic", "int8_static"), ("int4",))

_SCHEDULES = ("free", "monotone")

# Layers whose weights take most of the bytes.
_LAYERS = {"Conv", "Gemm", "GRU", "LSTM", "MatMul"}

# Weights of one unit that share a scale in 4 bits.
_BLOCK_SIZE = 32

_N_WARM_UP = 5
_N_TIMED = 100


class PrecisionChoice(NamedTuple):
    """A choice that ``precision="auto"`` tried, after those taken before it.

    Attributes
    ----------
    stage : int
        Number of the stage, from 1. With ``schedule="monotone"`` all later ones have
        been lowered with it.

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
    source,
    directory,
    precision="auto",
    *,
    X=None,
    target=0.995,
    schedule="free",
    fallback=False,
    transformed=False,
):
    """Write a copy of an export with stages of lower precision.

    Parameters
    ----------
    source : str or path-like
        Folder that :func:`skbdistil.export.to_onnx` has written.

    directory : str or path-like
        Folder to write. It must not exist, or be empty; it appears when all is written.

    precision : {"auto", "float32", "float16", "int8_dynamic", "int8_static", "int4"} \
            or list of these but "auto", default="auto"
        Precision of all stages, or one for each.

        - "float16": weights of layers are stored as float16 and brought back to float32
          when the stage is loaded. It saves bytes of the file only.
        - "int8_dynamic": dense, convolutional and LSTM layers compute in int8. The
          range of what they read is found in each batch, so that the scores of a row
          depend on the rows beside it, if little.
        - "int8_static": dense and convolutional layers compute in int8. The ranges
          are those seen with `X` in float32.
        - "int4": weights of dense layers are stored in 4 bits, 32 of them with a scale
          in float32, and stay so when the stage is loaded. Layers compute in float32.
          The graph has operators of onnxruntime that other runtimes may lack.
        - "auto": stage by stage, as long as the agreement allows.

        Layers that are not named stay in float32: GRU layers always do but for
        "float16". Where a precision is asked for, a warning names them.

    X : array-like of shape (n_samples, ...), default=None
        Calibration rows, as the session of `source` takes them. They need no labels.
        Needed for "int8_static" and "auto", and for the agreement to be measured.

    target : float, default=0.995
        Smallest agreement that "auto" allows at any stage, from 0 to 1.

    schedule : {"free", "monotone"}, default="free"
        What "auto" looks for; not used for other precisions.

        - "free": any precision of any stage;
        - "monotone": no stage has more bits than one before it [1]_, so that one number
          per precision is searched, the stage from which on it is used.

    fallback : bool, default=False
        Whether one more stage follows, which runs all students once more in float32,
        from the row on. It is for the rows that no other stage is sure of, so it needs
        an early exit, which :class:`~skbdistil.exported.ExportedClassifier` lets you
        choose. Needs the graph of all stages in `source`: `fixed_stage` of
        :func:`~skbdistil.export.to_onnx` with the number of the last one.

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
        If the graph of a fixed stage is left out of the copy, layers of a stage stay
        in float32 where another precision was asked for, or the costs of an early exit
        are bytes or seconds in float32.

    See Also
    --------
    skbdistil.runtime.ProgressiveSession : Predicts from the folder.
    skbdistil.exported.ExportedClassifier : Lets an early exit be chosen for it.

    Notes
    -----
    Inputs and outputs of the stages and the running mean of the scores stay in float32.

    The graph of a fixed stage, `fixed_stage` of :func:`~skbdistil.export.to_onnx`, is
    copied where the stages up to this one stay in float32, and lowered with them where
    all of them are in float16, or all in int4. Otherwise it is left out, with a
    warning. With `fallback` it becomes the last stage. Bytes, agreement and latency of
    the report are those of the stages before that.

    "auto" looks at bytes and agreement; latencies are only reported. With the free
    schedule, it measures the loss of agreement of each precision of each stage alone.
    Then it goes through them, smallest loss first and more saved bytes first among
    equals, adds each that makes the file of its stage smaller, and keeps it if the
    agreement of every stage stays at least `target`. `X` runs at most eight times per
    stage through the ensemble. With the monotone schedule, it lowers the last stage,
    then the one before it and so on, for as long as `target` is reached: to float16
    first, from there to int8 of either kind, and from there to 4 bits. Of all that
    reach it, the smallest is kept. `X` runs at most four times per stage.

    The agreement is measured on `X`, which has chosen the precisions as well: expect
    a little less on other rows. The thresholds of an early exit are copied as they
    are: the agreement is that of the stages, and not of the exits, so check accuracy
    and :meth:`~skbdistil.runtime.ProgressiveSession.exit_stages` on rows with labels,
    or calibrate again with :class:`~skbdistil.exported.ExportedClassifier`. A guarantee
    is about the stages in float32, and so are intervals, which are left out.

    In int8, all features that a layer reads share one range. A few rows far from the
    others take most of it, as do those of a nearly constant feature, since it is scaled
    to unit variance: drop such features, or use "float16".

    For stages as small as these, int8 is often slower than float32, since it has to
    quantise what each layer reads: compare the latencies of the report, on the
    processor that will predict. Weights have 7 of 8 bits, so that sums do not saturate
    on processors without VNNI instructions. A small file may even grow by the nodes
    that are added; "auto" leaves such a stage as it was.

    References
    ----------
    .. [1] H. M. Chen et al., "Progressive Mixed-Precision Decoding for Efficient LLM
       Inference", ICLR 2025, arXiv:2410.13461.

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
    if not (isinstance(schedule, str) and schedule in _SCHEDULES):
        raise ValueError(
            f"'schedule' must be one of {list(_SCHEDULES)}. Got {schedule!r} instead."
        )
    if fallback:
        _check_fallback(source, full)
    with new_folder(directory) as folder:
        lowering = _Lowering(full, X, transformed)
        choices = ()
        if precisions is not None:
            lowering.warn_of_float32(precisions)
        elif schedule == "free":
            precisions, choices = lowering.search(target)
        else:
            order = range(full.n_stages)[::-1]
            precisions, choices = lowering.search_in_order(target, order)
        lowering.write(folder, precisions, fallback=fallback)
        lowering.warn_of_costs(precisions)
        if not fallback:
            lowering.warn_of_dropped(precisions)
        lowered = _session(folder, transformed, full.n_stages)
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


def _check_fallback(source, full):
    """Refuse a source that lacks the graph of all stages, or has an early exit."""
    fixed = full._export.fixed_stage
    if fixed != full.n_stages:
        raise ValueError(
            "fallback=True needs the graph of all stages in 'source': write it by "
            f"to_onnx(..., fixed_stage={full.n_stages}). {source} holds "
            f"{'none' if fixed is None else f'that of stage {fixed}'}."
        )
    if full.manifest["early_exit"] is not None:
        raise ValueError(
            f"fallback=True adds a stage, and the early exit in {source} has no "
            "threshold for it. Export the estimator without early exit, and choose one "
            "for the copy by skbdistil.exported."
        )


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
            if self.n_bytes(changed).sum() >= self.n_bytes(precisions).sum():
                continue
            choices.append(self._tried(changed, stage, target))
            if choices[-1].taken:
                precisions = changed
        return precisions, tuple(choices)

    def search_in_order(self, target, order):
        """As :meth:`search`, lowering one stage after the other, in this order."""
        precisions = ["float32"] * self._full.n_stages
        choices = []
        for level in _LEVELS:
            found = [precisions]
            for precision in level:
                changed = precisions
                for stage in order:
                    if self._lowered(stage, precision) is None:
                        break
                    changed = _replaced(changed, stage, precision)
                    choices.append(self._tried(changed, stage, target))
                    if not choices[-1].taken:
                        break
                    found.append(changed)
            precisions = min(found, key=lambda tried: self.n_bytes(tried).sum())
        return precisions, tuple(choices)

    def _tried(self, precisions, stage, target):
        """What lowering a stage has led to."""
        with self._trial(precisions) as trial:
            agreement = self.agreement(trial).min()
            latencies = _latencies(self._X, trial, self._full)
        return PrecisionChoice(
            stage + 1,
            precisions[stage],
            int(self.n_bytes(precisions).sum()),
            *latencies,
            float(agreement),
            bool(agreement >= target),
        )

    def write(self, folder, precisions, *, fallback=False):
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
        if fallback:
            entry, content = self._fallback()
            manifest["stages"].append(entry)
            manifest["fixed_stage"] = None
            contents.append(content)
        elif self._fixed is not None:
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
        if others:
            return None
        lowered = {
            "float32": lambda content: content,
            "float16": _float16,
            "int4": _int4,
        }.get(precision)
        return None if lowered is None else lowered(self._fixed)

    def _fallback(self):
        """Entry of the manifest and content of a stage of all students in float32."""
        stages, fixed = self._full.manifest["stages"], self._full._export.fixed
        scores = stages[-1]["outputs"][0]
        # Its name is that of the last stage, which gives it already.
        again = f"{scores['name']}_float32"
        content = _with_output(self._fixed, scores["name"], again)
        macs = [stage["macs"] for stage in stages]
        entry = {
            "file": fixed.file,
            "precision": "float32",
            "inputs": [{**fixed.inputs[0]._asdict()}],
            "outputs": [{**scores, "name": again}],
            "macs": None if None in macs else sum(macs),
            "parameters": sum(stage["parameters"] for stage in stages),
            "weight_bytes": _weight_bytes(content),
        }
        return entry, content

    def warn_of_float32(self, precisions):
        """Name the layers that stay as they were though their stage is lowered."""
        kept = [
            f"{', '.join(kinds)} of stage {number}"
            for number, precision in enumerate(precisions, start=1)
            if precision != "float32"
            and (kinds := _float32_layers(self._content(number - 1, precision)))
        ]
        if kept:
            warnings.warn(
                f"Layers that cannot be lowered as asked stay in float32: "
                f"{'; '.join(kept)}.",
                UserWarning,
                stacklevel=3,
            )

    def warn_of_costs(self, precisions):
        early_exit = self._full.manifest["early_exit"] or {}
        unit = early_exit.get("unit")
        if unit not in (None, "macs") and set(precisions) != {"float32"}:
            warnings.warn(
                f"The costs of the early exit in the copy, in {unit}, are those of "
                "float32. Choose an early exit for the copy by skbdistil.exported.",
                UserWarning,
                stacklevel=3,
            )

    def warn_of_dropped(self, precisions):
        if self._fixed is not None and self.fixed_content(precisions) is None:
            fixed = self._full._export
            warnings.warn(
                f"{fixed.fixed.file}, the graph of the fixed stage "
                f"{fixed.fixed_stage}, is not in the copy: the stages up to it are "
                "not all in float32, all in float16 or all in int4, and it would not "
                "predict as they do.",
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
            elif precision == "int4":
                lowered = _int4(content)
            elif precision == "int8_dynamic":
                lowered = _int8(content)
            else:
                lowered = _int8(content, _Feeds(self._full._feeds(self._X, stage)))
            self._contents[key] = lowered
        return self._contents[key]


def _session(folder, transformed, n_stages=None):
    return ProgressiveSession(
        folder,
        n_stages=n_stages,
        early_exit=False,
        n_threads=1,
        transformed=transformed,
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


def _int4(content):
    """Weights of dense layers in 4 bits, each block of them with a scale."""
    onnx = import_module("onnx")
    model = onnx.load_from_string(content)
    graph = model.graph
    stored = {weights.name: weights for weights in graph.initializer}
    nodes, lowered = [], {}
    for node in graph.node:
        found = _dense_weights(node, stored)
        if found is None:
            nodes.append(node)
            continue
        values, scales = _blocks(found)
        parts = {f"{node.input[1]}_int4": values, f"{node.input[1]}_scales": scales}
        lowered.update(parts)
        bias = node.input[2:]
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(
            onnx.helper.make_node(
                "MatMulNBits",
                [node.input[0], *parts],
                [product],
                domain="com.microsoft",
                N=found.shape[0],
                K=found.shape[1],
                bits=4,
                block_size=_BLOCK_SIZE,
            )
        )
        if bias:
            nodes.append(onnx.helper.make_node("Add", [product, *bias], node.output))
    if not lowered:
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [weights for name, weights in stored.items() if name in read]
    kept += [onnx.numpy_helper.from_array(*part[::-1]) for part in lowered.items()]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model.SerializeToString()


def _dense_weights(node, stored):
    """Weights of a dense layer, of shape (units, inputs), or None."""
    if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in stored:
        return None
    onnx = import_module("onnx")
    weights = stored[node.input[1]]
    if weights.data_type != onnx.TensorProto.FLOAT or len(weights.dims) != 2:
        return None
    values = onnx.numpy_helper.to_array(weights)
    if node.op_type == "MatMul":
        return values.T
    given = {
        attr.name: onnx.helper.get_attribute_value(attr) for attr in node.attribute
    }
    if (
        given.get("transA", 0)
        or given.get("alpha", 1) != 1
        or given.get("beta", 1) != 1
    ):
        return None
    return values if given.get("transB", 0) else values.T


def _blocks(weights):
    """Blocks of 4-bit integers and their scales, as MatMulNBits reads them.

    The value of the largest magnitude in a block becomes -8; 8 is added to all, and the
    first of two neighbours is in the lower bits.
    """
    n_units, n_inputs = weights.shape
    n_blocks = -(-n_inputs // _BLOCK_SIZE)
    padding = n_blocks * _BLOCK_SIZE - n_inputs
    blocks = np.pad(weights, ((0, 0), (0, padding)))
    blocks = blocks.reshape(n_units, n_blocks, _BLOCK_SIZE)
    largest = np.abs(blocks).argmax(axis=2)[..., np.newaxis]
    scales = np.take_along_axis(blocks, largest, axis=2) / np.float32(-8)
    steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    steps = np.clip(np.rint(steps), -8, 7).astype(np.int8) + 8
    values = steps.astype(np.uint8)
    return values[..., ::2] | values[..., 1::2] << 4, scales.ravel()


@contextmanager
def _kept_log():
    """Keep the root logger, to which the quantizer would add a handler."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def _float32_layers(content):
    """Kinds of nodes whose weights are matrices in float32."""
    onnx = import_module("onnx")
    graph = onnx.load_from_string(content).graph
    matrices = {
        weights.name
        for weights in graph.initializer
        if weights.data_type == onnx.TensorProto.FLOAT
        and sum(size > 1 for size in weights.dims) > 1
    }
    nodes = (node for node in graph.node if matrices.intersection(node.input))
    return sorted({node.op_type for node in nodes})


def _with_output(content, name, new_name):
    """Graph with one output, under another name."""
    onnx = import_module("onnx")
    model = onnx.load_from_string(content)
    graph = model.graph
    for node in graph.node:
        node.input[:] = [new_name if old == name else old for old in node.input]
        node.output[:] = [new_name if old == name else old for old in node.output]
    (output,) = (value for value in graph.output if value.name == name)
    output = copy.deepcopy(output)
    output.name = new_name
    del graph.output[:]
    graph.output.append(output)
    return model.SerializeToString()


def _weight_bytes(content):
    onnx = import_module("onnx")
    graph = onnx.load_from_string(content).graph
    return sum(onnx.numpy_helper.to_array(w).nbytes for w in graph.initializer)
