"""Export of fitted estimators to ONNX, stage by stage or in one piece, and to torch.

Estimators are known by their fitted attributes only.
"""

import copy
import logging
import warnings
from contextlib import contextmanager
from importlib import import_module
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skbdistil import __version__
from skbdistil._files import new_folder, write_file, write_stages
from skbdistil._optional import required
from skbdistil._preprocessing import (
    AffineMap,
    affine_transforms,
    leaves,
    named,
    transforms_graph,
)
from skbdistil._protocol import StagedEstimator
from skbdistil.early_time import EarlyTimeClassifier
from skbdistil.exported import ExportedClassifier, ExportedRegressor
from skbdistil.model_card import ModelCard
from skbdistil.runtime import _DEFERRING_SCHEMA
from skbdistil.stages import _transformed as through_pipelines
from skbdistil.stages import _wrapped_estimator

__all__ = ["to_onnx", "to_single_onnx", "to_torch", "to_torch_export"]

# Are in a folder already.
_EXPORTED = (ExportedClassifier, ExportedRegressor)

# The oldest that the exporter writes without converting it.
_OPSET = 18

# Rows after a graph of transforms, and as the students see them.
_TRANSFORMED = "transformed"
_SCALED = "scaled"


def to_torch(estimator, n_stages=None, *, transformed=False):
    """Students of a fitted estimator as a torch module.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier` or
        :class:`~skbdistil.BDistilRegressor`. It may be the last step of a pipeline,
        inside :class:`~sklearn.frozen.FrozenEstimator` or
        :class:`~skbdistil.early_exit.EarlyExitClassifier`,
        :class:`~skbdistil.early_exit.EarlyExitRegressor` or
        :class:`~skbdistil.intervals.SplitConformalRegressor`, or the best one of a
        search. Neither the exit rule nor the intervals are part of the module.

    n_stages : int or None, default=None
        Number of students, from 1 to those there are. None for as many as the
        estimator predicts with.

    transformed : bool, default=False
        What the rows are that the module is called with, if there are transforms in
        pipelines.

        - If False, rows as the pipeline gets them. The transforms have to be scalers
          and selections of columns, as described in :func:`to_onnx`.
        - If True, rows that have been through the transforms, which are no part of the
          module.

    Returns
    -------
    module : torch.nn.Module
        A copy on the CPU, in evaluation mode and without gradients. Called with rows of
        shape (n_samples, ...), in float64 if there are transforms in it and in the
        dtype of the estimator otherwise, it scales them and returns scores of shape
        (n_samples, n_outputs): logits in the order of `classes_`, or targets in their
        units.

    Raises
    ------
    TypeError
        If the estimator is none of these.

    ValueError
        If `n_stages` is out of its range, or there are other transforms and
        `transformed` is False.

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
    module, _ = _module("to_torch", estimator, n_stages, transformed)
    return module


def to_torch_export(estimator, n_stages=None, *, transformed=False):
    """Students of a fitted estimator as a program of :mod:`torch.export`.

    Parameters
    ----------
    estimator : estimator
        As for :func:`to_torch`.

    n_stages : int or None, default=None
        As for :func:`to_torch`.

    transformed : bool, default=False
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
        As of :func:`to_torch`.

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
    module, example = _module("to_torch_export", estimator, n_stages, transformed)
    with _quiet_exporter():
        return _program(module, (example,))


def _module(needed_by, estimator, n_stages, transformed):
    """Module from rows to scores, and two rows for it."""
    rows, ensemble = _one_piece(needed_by, estimator, n_stages, transformed)
    transform, example = _transform(rows, ensemble)
    if transform is not None:
        return nn.Sequential(transform, ensemble).eval(), example
    return ensemble, example


def to_single_onnx(estimator, file, n_stages=None, *, X=None, transformed=False):
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

    X : array-like of shape (n_samples, n_columns), default=None
        As for :func:`to_onnx`.

    transformed : bool, default=False
        As for :func:`to_torch`, but that other transforms are exported as well if `X`
        is given.

    Raises
    ------
    TypeError
        If the estimator is none of these.

    ValueError
        If `n_stages` is out of its range, or there are transforms that are not exported
        and `transformed` is False.

    FileExistsError
        If what is at `file` is not a file: a folder, a pipe or a device.

    ImportError
        If a package is not installed: onnx and onnxscript, or what `X` needs.

    See Also
    --------
    to_onnx : One graph per stage.

    Notes
    -----
    Input ``x``: rows of shape (batch, ...) in the dtype that `input` in the manifest of
    :func:`to_onnx` has. Output ``scores``: float32 of shape (batch, n_outputs), as of
    :func:`to_torch`.

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
    rows, ensemble = _one_piece("to_single_onnx", estimator, n_stages, transformed, X)
    model = _whole_model(rows, ensemble, "scores")
    _keep(model.graph.output, {"scores"})
    write_file(file, model.SerializeToString())


def to_onnx(estimator, directory, *, X=None, fixed_stage=None, card=None):
    """Write a fitted estimator as one ONNX graph per stage and a manifest.

    :class:`skbdistil.runtime.ProgressiveSession` predicts from what is written.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier`,
        :class:`~skbdistil.BDistilRegressor`,
        :class:`~skbdistil.early_exit.EarlyExitClassifier` or
        :class:`~skbdistil.early_exit.EarlyExitRegressor`, whose rule is stored, or
        :class:`~skbdistil.intervals.SplitConformalRegressor` around a regressor of
        these, whose absolute errors are. It may be the last step of a pipeline, whose
        transforms are exported as described in the Notes. It may be inside
        :class:`~sklearn.frozen.FrozenEstimator`, or the best one of a search. Stages
        beyond `n_stages` of the estimator are not written. Of an early exit around
        :class:`~skbdistil.exported.ExportedClassifier` or
        :class:`~skbdistil.exported.ExportedRegressor`, the stages are copied from
        their folder.

    directory : str or path-like
        Folder to write. It must not exist, or be empty; it appears when all is written.

    X : array-like of shape (n_samples, n_columns), default=None
        Rows of numbers as the pipeline gets them, on which exported transforms are
        compared with the pipeline. Needed for transforms other than scalers and
        selections of columns to be exported. NaN is allowed in a session in those
        columns in which `X` has some.

    fixed_stage : int or None, default=None
        A stage, from 1 to those that are written, that gets a graph of all students up
        to it besides. A session that predicts at this stage for all rows runs it in
        one call, where it otherwise makes one per stage. The folder grows by about the
        files of these stages. None for no such graph.

    card : :class:`~skbdistil.model_card.ModelCard` or None, default=None
        What is known of the estimator, written to ``model_card.md`` in the folder. No
        session reads it. None writes none.

    Raises
    ------
    TypeError
        If the estimator is none of these, its classes are neither numbers nor strings,
        or `card` is no model card.

    ValueError
        If the exit rule is a callable, or was calibrated for another number of stages,
        if `fixed_stage` is out of its range, or if `X` is given and there are
        transforms that cannot be exported. If stages are copied, and `X` or
        `fixed_stage` is given or there are transforms.

    FileExistsError
        If there is something in `directory`, such as what another export is writing.

    ImportError
        If a package is not installed: onnx and onnxscript, or skl2onnx and onnxruntime
        where transforms need them.

    See Also
    --------
    to_single_onnx : One graph of all stages.

    Notes
    -----
    All arithmetic of the students is float32. Rows ``x`` are scaled before they are
    cast, since features that lie far from zero would lose their digits. Their dtype is
    that of the estimator, float32 or float64, and float64 where transforms are
    exported. Students that take integers, fitted with ``input_scaling=None``, get
    int64, and transforms before them are not exported.

    Transforms of pipelines are part of the first stage, which then takes rows as the
    pipeline gets them, with columns by position:

    - Scalers (:class:`~sklearn.preprocessing.StandardScaler`,
      :class:`~sklearn.preprocessing.RobustScaler`,
      :class:`~sklearn.preprocessing.MinMaxScaler` and
      :class:`~sklearn.preprocessing.MaxAbsScaler` that do not clip), selections of
      columns (:class:`~sklearn.compose.ColumnTransformer` of these, feature selection)
      and any sequence of them always are. Together they are one affine map of the
      columns in float64, which has to agree with the pipeline on simulated rows.
    - Others are if `X` is given: skl2onnx writes them, in float64 if it can. They have
      to agree with the pipeline on `X`.
    - Otherwise no transform is exported, and the manifest names all of them. Rows have
      to go through them before, and
      :class:`~skbdistil.runtime.ProgressiveSession` has to be told.

    Stage 1 takes ``x`` and gives ``scores_1`` and the scaled rows, ``scaled``, in which
    values that have overflowed show; stage t takes ``scaled``, ``scores_{t-1}`` and
    what it reads of the features that earlier stages kept, ``kept_{s}_{i}``, and gives
    ``scores_t`` and features of its own. Features that no later stage reads are not
    among the outputs, of which the scores come first. Axis 0 of all tensors is the
    batch, of any size from 1 on. ``scores_t`` of shape (batch, n_outputs) is the
    running mean of the students: the logits of the classes, or standardised targets.

    ``manifest.json`` has the keys

    - `schema_version`, `package_version`;
    - `kind`: "classifier", "multilabel_classifier", whose scores are the log-odds of
      labels that do not exclude each other, or "regressor";
    - `classes`: `values` and their NumPy `dtype`; None for a regressor;
    - `targets`: `mean` and `scale` that bring the scores to the units of the targets,
      and whether predictions have one axis, `single_output`; None for a classifier;
    - `input`: `shape` of a row, `dtype`, `feature_names` or None, `missing`, the
      positions of columns that may hold NaN, and `transforms`, with `name` and `type`
      of those that the first stage applies;
    - `preprocessing`: `name` and `type` of the transforms to apply before, if they are
      not exported;
    - `stages`, in order: `file`, `sha256`, `precision`, `inputs` and `outputs` with
      `name`, `shape` of a row and `dtype`, `macs` (None where they could not be
      counted), `parameters` and `weight_bytes`;
    - `fixed_stage`, or None: `stage`, `file`, `sha256`, `precision`, `weight_bytes` and
      `file_bytes`, by which the folder has grown. This graph takes ``x`` and gives
      ``scores_t`` of its stage and ``scaled``, as the stages do;
    - `early_exit`, or None: `rule`, `thresholds` of all stages but the last (None where
      no row leaves), `temperatures`, which are 1 of a regressor, cumulative `costs` of
      the stages in `unit` (None for the unit of a callable), and the `mean_cost` on the
      calibration rows. Where rows are deferred, also `deferral`: the `threshold` below
      which a row that has seen all stages goes to a final model (None where all do),
      the `cost` of a row that does, that of the stages included, the `share` of the
      calibration rows that did, and `target`, `risk`, `max_drop` and `delta` of the
      promise. The final model is not exported, and `schema_version` is 2, which
      versions that would not ask it refuse;
    - `intervals`, only of intervals: `residuals`, the absolute errors on the
      calibration rows in the units of the targets, rising, a row with one for each
      target; and `stage_residuals`, the same for each stage. They take some 20 bytes
      for each row, stage and target.

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
    if not (card is None or isinstance(card, ModelCard)):
        raise TypeError(
            "'card' must be None or what skbdistil.model_card.model_card returns. Got "
            f"{type(card).__name__} instead."
        )
    parts = _unwrap(estimator)
    if isinstance(parts.final, _EXPORTED):
        _check_copied(parts, X, fixed_stage)
        with new_folder(directory) as folder:
            _write_card(folder, card)
            _write_copy(folder, parts)
        return
    _check_installed("to_onnx")
    rows = _rows(parts, "to_onnx", X=X)
    # What cannot be stored shows before the stages are exported.
    manifest = _manifest(parts, rows)
    if fixed_stage is not None:
        n_written = parts.final._n_stages_used()
        _check_stage("fixed_stage", fixed_stage, n_written, "stages that are written")
        fixed_stage = int(fixed_stage)
    ensemble = _cpu_ensemble(parts.final)
    with new_folder(directory) as folder:
        costs = parts.final.stage_costs_
        contents = []
        for number, model in enumerate(_stage_models(rows, ensemble), start=1):
            contents.append(model.SerializeToString())
            macs = costs.macs[number - 1]
            manifest["stages"].append(
                {
                    "file": f"stage_{number}.onnx",
                    "precision": "float32",
                    "inputs": _tensors(model.graph.input),
                    "outputs": _tensors(model.graph.output),
                    "macs": None if np.isnan(macs) else int(macs),
                    "parameters": int(costs.parameters[number - 1]),
                    "weight_bytes": _weight_bytes(model),
                }
            )
        if fixed_stage is not None:
            # Another copy: its scaling is taken out of the ensemble.
            ensemble = _cpu_ensemble(parts.final, fixed_stage)
            # Standardised targets, as the stages give; the session brings them back.
            ensemble.output_mean = ensemble.output_scale = None
            model = _whole_model(rows, ensemble, f"scores_{fixed_stage}")
            contents.append(model.SerializeToString())
            manifest["fixed_stage"] = {
                "stage": fixed_stage,
                "file": f"fixed_stage_{fixed_stage}.onnx",
                "precision": "float32",
                "weight_bytes": _weight_bytes(model),
                "file_bytes": len(contents[-1]),
            }
        _write_card(folder, card)
        write_stages(folder, manifest, contents)


def _write_card(folder, card):
    if card is not None:
        write_file(folder / "model_card.md", card.to_markdown().encode())


# The estimator


class _Parts(NamedTuple):
    """What an estimator is made of.

    Attributes
    ----------
    outer : estimator
        The whole.
    final : BDistilClassifier or BDistilRegressor
    early : EarlyExitClassifier, EarlyExitRegressor or None
    conformal : SplitConformalRegressor or None
    steps : list of (str, transformer)
        Transforms of pipelines before `final`, and its own.
    """

    outer: object
    final: object
    early: object
    conformal: object
    steps: list

    def transform(self, X):
        """Rows as the students get them."""
        X = through_pipelines(self.outer, X)
        for wrapper in (self.conformal, self.early):
            if wrapper is not None:
                X = through_pipelines(wrapper.estimator_, X)
        if self.final.student_transform_ is not None:
            X = self.final.student_transform_.transform(X)
        return X


def _unwrap(estimator):
    early = conformal = None
    steps = []
    inner, step = None, estimator
    while step is not None:
        inner, step = step, _wrapped_estimator(step)
        if isinstance(inner, Pipeline):
            steps += leaves(inner.steps[:-1])
        if step is None and hasattr(inner, "exit_stages"):
            check_is_fitted(inner)
            early, step = inner, inner.estimator_
        elif step is None and hasattr(inner, "stage_residuals_"):
            conformal, step = inner, inner.estimator_
    if isinstance(early, EarlyTimeClassifier):
        raise TypeError(
            f"{type(early).__name__} cannot be exported: the graphs of the students "
            "take whole series, and do not keep their states from one step to the "
            "next. Export its estimator_, which answers after the last step, or use "
            "its stream() with torch."
        )
    check_is_fitted(inner)
    if not isinstance(inner, StagedEstimator):
        where = "" if inner is estimator else f" inside {type(estimator).__name__}"
        raise TypeError(
            "What is exported must be a BDistilClassifier, a BDistilRegressor, an "
            "EarlyExitClassifier, an EarlyExitRegressor or a SplitConformalRegressor. "
            f"Got {type(inner).__name__}{where} instead."
        )
    transform = getattr(inner, "student_transform_", None)
    steps += leaves([("student_transform", transform)])
    return _Parts(estimator, inner, early, conformal, steps)


def _check_copied(parts, X, fixed_stage):
    """Refuse what a folder that is there already cannot be given."""
    name = type(parts.final).__name__
    if parts.early is None:
        raise TypeError(
            f"{name} is a folder already. to_onnx writes it again with the rule of an "
            "EarlyExitClassifier or EarlyExitRegressor around it."
        )
    if parts.steps:
        raise ValueError(
            f"to_onnx cannot export the transforms {named(parts.steps)}: the stages of "
            f"{name} are written as they are."
        )
    if X is not None or fixed_stage is not None:
        raise ValueError(
            f"to_onnx writes the stages of {name} as they are: neither 'X' nor "
            "'fixed_stage' can be given."
        )


def _write_copy(folder, parts):
    """Write the stages of a folder with another rule."""
    final, session = parts.final, parts.final.session_
    n_stages, export = final._n_stages_used(), session._export
    manifest = copy.deepcopy(session.manifest)
    manifest["stages"] = manifest["stages"][:n_stages]
    graphs = [*export.stages[:n_stages]]
    if export.fixed is not None and export.fixed_stage <= n_stages:
        graphs.append(export.fixed)
    else:
        manifest["fixed_stage"] = None
    manifest["early_exit"] = _stored_rule(parts.early)
    manifest["schema_version"] = _schema(manifest["early_exit"])
    manifest.pop("intervals", None)  # of another rule
    manifest |= _stored_intervals(parts.conformal)
    write_stages(folder, manifest, [session._verified(graph) for graph in graphs])


def _cpu_ensemble(final, n_stages=None):
    """Copy of the first students on the CPU, frozen and in evaluation mode."""
    if n_stages is None:
        n_stages = final._n_stages_used()
    else:
        what = f"students of this {type(final).__name__}"
        _check_stage("n_stages", n_stages, len(final), what)
    # The copy comes first: the ensemble that is cut would share its students.
    ensemble = copy.deepcopy(final.ensemble_).cpu().truncated(n_stages)
    return ensemble.freeze()


def _check_stage(name, stage, most, what):
    if not (isinstance(stage, Integral) and 1 <= stage <= most):
        raise ValueError(
            f"{name!r} must be None or an int from 1 to {most}, the number of {what}. "
            f"Got {stage!r} instead."
        )


def _manifest(parts, rows):
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
    return {
        "schema_version": _schema(early_exit),
        "package_version": __version__,
        "kind": _kind(final),
        "classes": classes,
        "targets": targets,
        "input": {
            "shape": list(rows.shape),
            "dtype": rows.dtype,
            "feature_names": rows.feature_names,
            "missing": rows.missing,
            "transforms": _stored_steps(rows.inside),
        },
        "preprocessing": _stored_steps(rows.outside),
        "early_exit": early_exit,
        "stages": [],
        "fixed_stage": None,
        **_stored_intervals(parts.conformal),
    }


def _stored_intervals(conformal):
    """What a manifest says of intervals: nothing where there are none."""
    if conformal is None:
        return {}
    conformal._calibrated()
    return {
        "intervals": {
            "residuals": conformal.residuals_.tolist(),
            "stage_residuals": conformal.stage_residuals_.tolist(),
        }
    }


def _schema(early_exit):
    """Version of a manifest with this rule, or with none."""
    return _DEFERRING_SCHEMA if "deferral" in (early_exit or {}) else 1


def _kind(final):
    if not hasattr(final, "classes_"):
        return "regressor"
    several = getattr(final, "multilabel_", False)
    return "multilabel_classifier" if several else "classifier"


def _stored_steps(steps):
    return [{"name": name, "type": type(step).__name__} for name, step in steps]


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
    # JSON has no infinity.
    thresholds = [
        None if threshold == np.inf else threshold
        for threshold in early.thresholds_.tolist()
    ]
    costs = early.costs_.tolist()
    deferral = None
    if early._defers():
        deferral = {
            "threshold": thresholds.pop(),
            "cost": costs.pop(),
            "share": float(early.path_.exits[early.best_index_, -1]),
            "target": early.target,
            "risk": early.risk,
            "max_drop": float(early.max_drop),
            "delta": None if early.delta is None else float(early.delta),
        }
    stored = {
        "rule": early.rule_,
        "thresholds": thresholds,
        "temperatures": early._stage_temperatures().tolist(),
        "costs": costs,
        "unit": early.cost if isinstance(early.cost, str) else None,
        "mean_cost": float(early.path_.costs[early.best_index_]),
    }
    return stored if deferral is None else {**stored, "deferral": deferral}


# The rows


class _Rows(NamedTuple):
    """Rows as what is exported takes them.

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    dtype : str
    feature_names : list of str or None
    missing : list of int
        Positions of columns that may hold NaN.
    inside, outside : list of (str, transformer)
        Transforms that are exported, or have to be applied before.
    affine : AffineMap or None
        What is exported of them, either this
    graph : onnx.ModelProto or None
        or that.
    """

    shape: tuple
    dtype: str
    feature_names: list | None
    missing: list
    inside: list
    outside: list
    affine: AffineMap | None = None
    graph: object = None


def _rows(parts, needed_by, *, X=None, transformed=False):
    """Rows of an export that has the transforms in it, if it can."""
    final, steps = parts.final, parts.steps
    affine = graph = None
    # Transforms give floats, which a graph would round without a word.
    if steps and not transformed and not final.ensemble_.integer_input:
        affine = affine_transforms(steps, parts.transform, X)
        if affine is None and X is not None:
            graph = _graph(parts, X, needed_by)
    if affine is None and graph is None:
        dtype = str(final.ensemble_.example().dtype).removeprefix("torch.")
        names = _names(final) if final.student_transform_ is None else None
        return _Rows(final.input_shape_, dtype, names, [], [], steps)
    first, missing = steps[0][1], []
    if X is not None:
        is_missing = np.isnan(np.asarray(X, dtype=np.float64)).any(axis=0)
        missing = np.flatnonzero(is_missing)
    if affine is not None:
        missing = np.union1d(missing, affine.imputes)
    missing = [int(column) for column in missing]
    shape, dtype = (int(first.n_features_in_),), "float64"
    if graph is not None:
        (x,) = _tensors(graph.graph.input)
        shape, dtype = x["shape"], x["dtype"]
    return _Rows(shape, dtype, _names(first), missing, steps, [], affine, graph)


def _graph(parts, X, needed_by):
    """ONNX model of the transforms."""
    ensemble = parts.final.ensemble_
    scaling = _Scaling(copy.deepcopy(ensemble.truncated(0)).cpu())

    def seen(rows):
        rows = torch.tensor(np.asarray(rows), dtype=ensemble.example().dtype)
        return scaling(rows).numpy()

    return transforms_graph(
        parts.steps, parts.transform, X, seen=seen, opset=_OPSET, needed_by=needed_by
    )


def _one_piece(needed_by, estimator, n_stages, transformed, X=None):
    """Rows and ensemble of an export that cannot say what has to be done before."""
    parts = _unwrap(estimator)
    if isinstance(parts.final, _EXPORTED):
        raise TypeError(
            f"{needed_by} needs the students, and {type(parts.final).__name__} holds "
            "graphs that have been exported."
        )
    rows = _rows(parts, needed_by, X=X, transformed=transformed)
    if rows.outside and not transformed:
        raise ValueError(
            f"{needed_by} cannot export the transforms {named(rows.outside)}: together "
            "they are not a scaling and selection of columns. With transformed=True "
            "they are left out, and rows have to go through them before."
        )
    return rows, _cpu_ensemble(parts.final, n_stages)


def _names(estimator):
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else names.tolist()


# The graphs


class _Affine(nn.Module):
    """Transforms of pipelines that are an affine map, and a cast of what they give."""

    def __init__(self, affine, n_columns, dtype):
        super().__init__()
        for name, values in affine._asdict().items():
            self.register_buffer(name, torch.from_numpy(values))
        self.imputes = len(affine.imputes) > 0
        self.selects = not np.array_equal(affine.columns, np.arange(n_columns))
        self.dtype = dtype

    def forward(self, x):
        if self.selects:
            x = x.index_select(1, self.columns)
        if self.imputes:
            is_missing = x.isnan()
            x = torch.where(is_missing, self.fill, x)
            x = torch.where(self.flags, is_missing.to(x.dtype), x)
        return ((x - self.centre) * self.factor + self.offset).to(self.dtype)


def _transform(rows, ensemble):
    """Module of the transforms, or None, and two rows for it and the ensemble."""
    example = ensemble.example()
    if rows.affine is None:
        return None, example
    module = _Affine(rows.affine, *rows.shape, example.dtype)
    return module, torch.zeros((2, *rows.shape), dtype=torch.float64)


class _Scaling(nn.Module):
    """Rows as the students see them: integers, or float32 whatever they came in."""

    def __init__(self, ensemble, transform=None):
        super().__init__()
        # Without students, which would come along with every graph.
        self.ensemble = ensemble.truncated(0)
        self.transform = transform

    def forward(self, x):
        if self.transform is not None:
            x = self.transform(x)
        x = self.ensemble.scale(x)
        return x if self.ensemble.integer_input else x.to(torch.float32)


def _split_scaling(transform, ensemble):
    """The scaling after the transforms, and the ensemble without it, in float32."""
    scaling = _Scaling(ensemble, transform)
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

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x, mean, earlier):
        scores, kept = self.student(x, earlier)
        return torch.addcmul(scores, mean, self.student.carry), kept


class _AllStages(nn.Module):
    """``forward(x)`` gives the scores after the last student, and the scaled rows."""

    def __init__(self, scaling, students):
        super().__init__()
        self.scaling = scaling
        self.students = students

    def forward(self, x):
        x = self.scaling(x)
        return self.students(x), x


def _whole_model(rows, ensemble, scores):
    """ONNX model of all students of an ensemble; `scores` is the name of its scores."""
    transform, example = _transform(rows, ensemble)
    module = _AllStages(*_split_scaling(transform, ensemble))
    model = _onnx_model(module, (example,), ["x"], [scores, _SCALED])
    return _with_transforms(rows.graph, model)


def _stage_models(rows, ensemble):
    """ONNX models of the stages, with no input or output that is not read."""
    transform, example = _transform(rows, ensemble)
    scaling, students = _split_scaling(transform, ensemble)
    state = students.start(scaling(example))
    models = []
    for number, student in enumerate(students.students, start=1):
        if number == 1:
            module, args, names = _FirstStage(scaling, student), (example,), ["x"]
        else:
            module = _LaterStage(student)
            args = state.x, state.mean, list(state.earlier)
            names = [_SCALED, f"scores_{number - 1}"]
            for earlier, activations in enumerate(state.earlier, start=1):
                names += _activation_names(earlier, activations)
        state.advance()
        new_names = _activation_names(number, state.earlier[-1])
        outputs = [f"scores_{number}", *new_names, *[_SCALED] * (number == 1)]
        models.append(_onnx_model(module, args, names, outputs))
    models[0] = _with_transforms(rows.graph, models[0])
    _prune(models)
    return models


def _with_transforms(transforms, model):
    """Model whose input goes through the graph of the transforms first."""
    if transforms is None:
        return model
    helper, compose = import_module("onnx.helper"), import_module("onnx.compose")
    # The nodes of both may have the same names.
    first = compose.add_prefix(transforms, "transforms.", rename_inputs=False)
    graph = model.graph
    (old_x,), (x,), (result,) = graph.input, first.graph.input, first.graph.output
    cast = helper.make_node(
        "Cast", [result.name], [_TRANSFORMED], to=old_x.type.tensor_type.elem_type
    )
    for node in _nodes(graph):
        names = [_TRANSFORMED if name == old_x.name else name for name in node.input]
        node.input[:] = names
    nodes = [*first.graph.node, cast, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(first.graph.initializer)
    old_x.CopyFrom(x)
    old_x.type.tensor_type.shape.dim[0].dim_param = "batch"
    for opset in first.opset_import:
        if opset.domain not in {known.domain for known in model.opset_import}:
            model.opset_import.append(opset)
    return model


def _activation_names(number, activations):
    """Names in the graphs of what a student leaves for later ones."""
    return [f"kept_{number}_{index}" for index in range(len(activations))]


def _prune(models):
    """Take out inputs that a stage does not read, and outputs that no one reads."""
    # Runners look for values in it that have overflowed.
    read = {_SCALED}
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


def _weight_bytes(model):
    helper = import_module("onnx.numpy_helper")
    return sum(helper.to_array(weights).nbytes for weights in model.graph.initializer)


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
