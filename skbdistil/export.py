"""Export of fitted estimators to ONNX, stage by stage or in one piece, and to torch.

Estimators are known by their fitted attributes only.
"""

import copy
import logging
import warnings
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skbdistil._files import new_folder, write_file, write_stages
from skbdistil._optional import required
from skbdistil.runtime import SCHEMA_VERSION
from skbdistil.stages import wrapped_estimator

__all__ = ["to_onnx", "to_single_onnx", "to_torch", "to_torch_export"]

# The oldest that the exporter writes without converting it.
_OPSET = 18


def to_torch(estimator, n_stages=None):
    """Students of a fitted estimator as a torch module.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier` or
        :class:`~skbdistil.BDistilRegressor`. It may be the last step of a pipeline,
        inside :class:`~sklearn.frozen.FrozenEstimator` or
        :class:`~skbdistil.early_exit.EarlyExitClassifier`, or the best one of a
        search; the transforms of a pipeline and the exit rule are no part of the
        module.

    n_stages : int or None, default=None
        Number of students, from 1 to those there are. None for as many as the
        estimator predicts with.

    Returns
    -------
    module : torch.nn.Module
        A copy on the CPU, in evaluation mode and without gradients. Called with rows of
        shape (n_samples, ...) in the dtype of the estimator, the input scaling
        included, it returns scores of shape (n_samples, n_outputs): logits in the order
        of `classes_`, or targets in their units.

    Raises
    ------
    TypeError
        If the estimator is none of these.

    ValueError
        If `n_stages` is out of its range.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.export import to_torch
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> module = to_torch(clf.fit(X, y))
    >>> module(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """
    return _cpu_ensemble(_unwrap(estimator).final, n_stages)


def to_torch_export(estimator, n_stages=None):
    """Students of a fitted estimator as a program of :mod:`torch.export`.

    Parameters
    ----------
    estimator : estimator
        As for :func:`to_torch`.

    n_stages : int or None, default=None
        As for :func:`to_torch`.

    Returns
    -------
    program : torch.export.ExportedProgram
        Computes what the module of :func:`to_torch` does, for any number of rows.
        :func:`torch.export.save` writes it to a file.

    Raises
    ------
    TypeError
        If the estimator is none of these.

    ValueError
        If `n_stages` is out of its range.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.export import to_torch_export
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> program = to_torch_export(clf.fit(X, y), n_stages=1)
    >>> program.module()(torch.zeros(7, 4)).shape
    torch.Size([7, 3])
    """
    module = to_torch(estimator, n_stages)
    with _quiet_exporter():
        return _program(module, (module.example(),))


def to_single_onnx(estimator, file, n_stages=None):
    """Write the first students of a fitted estimator as one ONNX graph.

    For runtimes that want one file. There is no early exit in it, and all of its
    students run for every row.

    Parameters
    ----------
    estimator : estimator
        As for :func:`to_torch`.

    file : str or path-like
        File to write; one that is there is replaced, if it may be written to.

    n_stages : int or None, default=None
        As for :func:`to_torch`.

    Raises
    ------
    TypeError
        If the estimator is none of these.

    ValueError
        If `n_stages` is out of its range.

    FileExistsError
        If what is at `file` is not a file: a folder, a pipe or a device.

    ImportError
        If onnx or onnxscript is not installed.

    See Also
    --------
    to_onnx : One graph per stage.

    Notes
    -----
    Input ``x``: rows in the dtype of the estimator, of shape (batch, ...). Output
    ``scores``: float32 of shape (batch, n_outputs), as of :func:`to_torch`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.export import to_single_onnx
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_single_onnx(clf.fit(X, y), Path(folder) / "iris.onnx")
    """
    _check_installed("to_single_onnx")
    ensemble = _cpu_ensemble(_unwrap(estimator).final, n_stages)
    example = ensemble.example()
    module = nn.Sequential(*_split_scaling(ensemble))
    content = _onnx_model(module, (example,), ["x"], ["scores"]).SerializeToString()
    write_file(file, content)


def to_onnx(estimator, directory):
    """Write a fitted estimator as one ONNX graph per stage and a manifest.

    :class:`skbdistil.runtime.ProgressiveSession` predicts from what is written.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier`,
        :class:`~skbdistil.BDistilRegressor` or
        :class:`~skbdistil.early_exit.EarlyExitClassifier`, whose rule is stored. It may
        be the last step of a pipeline, the transforms of which are only named in the
        manifest: rows have to go through them before. It may be inside
        :class:`~sklearn.frozen.FrozenEstimator`, or the best one of a search. Stages
        beyond `n_stages` of the estimator are not written.

    directory : str or path-like
        Folder to write. It must not exist, or be empty; it appears when all is written.

    Raises
    ------
    TypeError
        If the estimator is none of these, or its classes are neither numbers nor
        strings.

    ValueError
        If the exit rule is a callable, or was calibrated for another number of stages.

    FileExistsError
        If there is something in `directory`, such as what another export is writing.

    ImportError
        If onnx or onnxscript is not installed.

    See Also
    --------
    to_single_onnx : One graph of all stages.

    Notes
    -----
    All arithmetic is float32. Only the rows ``x`` have the dtype of the estimator,
    float32 or float64, in which they are scaled, since features that lie far from zero
    would lose their digits before.

    Stage 1 takes ``x`` and gives ``scores_1`` and the scaled rows, ``scaled``; stage t
    takes ``scaled``, ``scores_{t-1}`` and what it reads of the features that earlier
    stages kept, ``kept_{s}_{i}``, and gives ``scores_t`` and features of its own. What
    no later stage reads is not among the outputs, of which the scores come first. Axis
    0 of all tensors is the batch, of any size from 1 on. ``scores_t`` of shape
    (batch, n_outputs) is the running mean of the students: the logits of the classes,
    or standardised targets.

    ``manifest.json`` has the keys

    - `schema_version`, `package_version`;
    - `kind`: "classifier" or "regressor";
    - `classes`: `values` and their NumPy `dtype`; None for a regressor;
    - `targets`: `mean` and `scale` that bring the scores to the units of the targets,
      and whether predictions have one axis, `single_output`; None for a classifier;
    - `input`: `shape` of a row, `dtype`, and `feature_names` or None;
    - `preprocessing`: `name` and `type` of the transforms to apply before;
    - `stages`, in order: `file`, `sha256`, `precision`, `inputs` and `outputs` with
      `name`, `shape` of a row and `dtype`, `macs`, `parameters` and `weight_bytes`;
    - `early_exit`, or None: `rule`, `thresholds` of all stages but the last (None where
      no row leaves), `temperatures`, cumulative `costs` of the stages in `unit` (None
      for the unit of a callable), and the `mean_cost` on the calibration rows.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.export import to_onnx
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(clf.fit(X, y), Path(folder) / "iris")
    ...     sorted(path.name for path in Path(folder, "iris").iterdir())
    ['manifest.json', 'stage_1.onnx', 'stage_2.onnx']
    """
    _check_installed("to_onnx")
    parts = _unwrap(estimator)
    # What cannot be stored shows before the stages are exported.
    manifest = _manifest(parts)
    ensemble = _cpu_ensemble(parts.final)
    with new_folder(directory) as folder:
        costs = parts.final.stage_costs_
        contents = []
        for number, model in enumerate(_stage_models(ensemble), start=1):
            contents.append(model.SerializeToString())
            manifest["stages"].append(
                {
                    "file": f"stage_{number}.onnx",
                    "precision": "float32",
                    "inputs": _tensors(model.graph.input),
                    "outputs": _tensors(model.graph.output),
                    "macs": int(costs.macs[number - 1]),
                    "parameters": int(costs.parameters[number - 1]),
                    "weight_bytes": sum(
                        len(weights.raw_data) for weights in model.graph.initializer
                    ),
                }
            )
        write_stages(folder, manifest, contents)


# The estimator


class _Parts(NamedTuple):
    """What an estimator is made of.

    Attributes
    ----------
    final : BDistilClassifier or BDistilRegressor
    early : EarlyExitClassifier or None
    transforms : list of (str, transformer)
        Steps of pipelines before `final`.
    """

    final: object
    early: object
    transforms: list


def _unwrap(estimator):
    early, transforms = None, []
    inner, step = None, estimator
    while step is not None:
        inner, step = step, wrapped_estimator(step)
        if isinstance(inner, Pipeline):
            transforms += inner.steps[:-1]
        if step is None and hasattr(inner, "thresholds_"):
            early, step = inner, inner.estimator_
    check_is_fitted(inner)
    if not hasattr(inner, "ensemble_"):
        where = "" if inner is estimator else f" inside {type(estimator).__name__}"
        raise TypeError(
            "What is exported must be a BDistilClassifier, a BDistilRegressor or an "
            f"EarlyExitClassifier. Got {type(inner).__name__}{where} instead."
        )
    return _Parts(inner, early, transforms)


def _cpu_ensemble(final, n_stages=None):
    """Copy of the first students on the CPU, frozen and in evaluation mode."""
    if n_stages is None:
        n_stages = final._n_stages()
    elif not (isinstance(n_stages, Integral) and 1 <= n_stages <= len(final)):
        raise ValueError(
            f"'n_stages' must be None or an int from 1 to {len(final)}, the number of "
            f"students of this {type(final).__name__}. Got {n_stages!r} instead."
        )
    # The copy comes first: the ensemble that is cut would share its students.
    ensemble = copy.deepcopy(final.ensemble_).cpu().truncated(n_stages)
    return ensemble.freeze()


def _manifest(parts):
    """Manifest without the stages."""
    final, early = parts.final, parts.early
    classes = targets = early_exit = None
    if hasattr(final, "classes_"):
        classes = _stored_classes(final.classes_)
    else:
        targets = {
            "mean": final.target_mean_.tolist(),
            "scale": final.target_scale_.tolist(),
            "single_output": final.single_output_,
        }
    if early is not None:
        early_exit = _stored_rule(early)
    names = getattr(final, "feature_names_in_", None)
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": version("skbdistil"),
        "kind": "regressor" if classes is None else "classifier",
        "classes": classes,
        "targets": targets,
        "input": {
            "shape": list(final.input_shape_),
            "dtype": _dtype_name(final.ensemble_.example().dtype),
            "feature_names": None if names is None else names.tolist(),
        },
        "preprocessing": [
            {"name": name, "type": type(transform).__name__}
            for name, transform in parts.transforms
            if transform not in (None, "passthrough")
        ],
        "early_exit": early_exit,
        "stages": [],
    }


def _stored_classes(classes):
    values = classes.tolist()
    kind = classes.dtype.kind
    is_text = kind == "O" and all(isinstance(value, str) for value in values)
    if kind not in "biufU" and not is_text:
        raise TypeError(
            "The classes of an export must be numbers, booleans or strings. Got "
            f"{values} of dtype {classes.dtype} instead."
        )
    return {"values": values, "dtype": classes.dtype.str}


def _stored_rule(early):
    needed_by = type(early).__name__
    early._calibrated()
    if callable(early.rule_):
        raise ValueError(
            f"The 'rule' parameter of {needed_by} is a callable, which cannot be "
            "exported. Use the name of a rule, or export the estimator_ of this "
            f"{needed_by}, which has no early exit."
        )
    return {
        "rule": early.rule_,
        # JSON has no infinity.
        "thresholds": [
            None if threshold == np.inf else threshold
            for threshold in early.thresholds_.tolist()
        ],
        "temperatures": early.temperatures_.tolist(),
        "costs": early.costs_.tolist(),
        "unit": early.cost if isinstance(early.cost, str) else None,
        "mean_cost": float(early.path_.costs[early.best_index_]),
    }


def _dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


# The graphs


class _Scaling(nn.Module):
    """Rows as the students see them, in float32 whatever they were scaled in."""

    def __init__(self, ensemble):
        super().__init__()
        # Without students, which would come along with every graph.
        self.ensemble = ensemble.truncated(0)

    def forward(self, x):
        return self.ensemble.scale(x).to(torch.float32)


def _split_scaling(ensemble):
    """The scaling, and the ensemble without it, in float32."""
    scaling = _Scaling(ensemble)
    ensemble.input_factor = ensemble.input_offset = None
    return scaling, ensemble.float()


class _FirstStage(nn.Module):
    """``forward(x)`` gives the scores, what is kept, and the scaled rows."""

    def __init__(self, scaling, student):
        super().__init__()
        self.scaling = scaling
        self.student = student

    def forward(self, x):
        x = self.scaling(x)
        return *self.student(x), x


class _LaterStage(nn.Module):
    """``forward(x, mean, earlier)`` gives the running mean and what is kept."""

    def __init__(self, student, number):
        super().__init__()
        self.student = student
        self.number = number

    def forward(self, x, mean, earlier):
        scores, kept = self.student(x, earlier, mean)
        return mean + (scores - mean) / self.number, kept


def _stage_models(ensemble):
    """ONNX models of the stages, with no input or output that is not read."""
    example = ensemble.example()
    scaling, students = _split_scaling(ensemble)
    state = students.start(scaling(example))
    models = []
    for number, student in enumerate(students.students, start=1):
        if number == 1:
            module, args, names = _FirstStage(scaling, student), (example,), ["x"]
        else:
            module = _LaterStage(student, number)
            args = state.x, state.total, list(state.earlier)
            names = ["scaled", f"scores_{number - 1}"]
            for earlier, activations in enumerate(state.earlier, start=1):
                names += _activation_names(earlier, activations)
        state.advance()
        new_names = _activation_names(number, state.earlier[-1])
        outputs = [f"scores_{number}", *new_names, *["scaled"] * (number == 1)]
        models.append(_onnx_model(module, args, names, outputs))
    _prune(models)
    return models


def _activation_names(number, activations):
    """Names in the graphs of what a student leaves for later ones."""
    return [f"kept_{number}_{index}" for index in range(len(activations))]


def _prune(models):
    """Take out inputs that a stage does not read, and outputs that no stage reads."""
    read = set()
    for model in reversed(models):
        graph = model.graph
        # The scores come first; they are what a stage is for.
        _keep(graph.output, read | {graph.output[0].name})
        used = {name for node in _nodes(graph) for name in node.input}
        _keep(graph.input, used)
        read |= used


def _nodes(graph):
    """Nodes of a graph, and of the branches and loops in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def _keep(values, names):
    kept = [value for value in values if value.name in names]
    del values[:]
    values.extend(kept)


def _tensors(values):
    """Manifest entries of the inputs or outputs of a graph."""
    helper = import_module("onnx.helper")
    return [
        {
            "name": value.name,
            "shape": [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]],
            "dtype": helper.tensor_dtype_to_np_dtype(
                value.type.tensor_type.elem_type
            ).name,
        }
        for value in values
    ]


def _onnx_model(module, args, input_names, output_names):
    """ONNX model of a module, the first axis of all tensors being of any size."""
    with _quiet_exporter():
        # Not the module itself: its recurrent layers would become loops over the steps.
        model = torch.onnx.export(
            _program(module, args),
            input_names=input_names,
            output_names=output_names,
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        ).model_proto
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Several times the size of a small student, with paths of the machine among it.
    del graph.value_info[:]
    values = (*graph.initializer, *graph.input, *graph.output)
    for item in (model, *values, *_nodes(graph)):
        del item.metadata_props[:]
    return model


def _program(module, args):
    batch = {0: torch.export.Dim("batch", min=0)}
    shapes = _for_each_tensor(args, batch)
    return torch.export.export(module.eval(), args, dynamic_shapes=shapes)


def _for_each_tensor(args, value):
    if isinstance(args, torch.Tensor):
        return value
    return type(args)(_for_each_tensor(item, value) for item in args)


@contextmanager
def _quiet_exporter():
    """No gradients, and without what the exporter has to say about itself."""

    def says_something(record):
        return "torchvision is not installed" not in record.getMessage()

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(says_something)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning
            )
            # Of recurrent layers; they are put back after the export.
            warnings.filterwarnings(
                "ignore", r"The tensor attributes? .*_flat_weights", UserWarning
            )
            yield
    finally:
        logger.removeFilter(says_something)


def _check_installed(needed_by):
    for name in ("onnx", "onnxscript"):
        required(needed_by, name)
