"""Save fitted estimators, and load them without running anything from the file."""

import copy
import inspect
import json
import os
from collections.abc import Sized
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from sklearn.base import is_classifier, is_regressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skbdistil import __version__
from skbdistil._bdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting._game import Certificate
from skbdistil._boosting._rows import resolve_device
from skbdistil._calibrated import take_features
from skbdistil._exit_calibration import ExitPath
from skbdistil._exit_rules import REGRESSION_RULES, RULES
from skbdistil._files import write_file
from skbdistil._prefixes import is_of_ensemble
from skbdistil._saved_format import (
    BACKBONES,
    CALIBRATED,
    CONVOLUTIONAL,
    DISTILLED,
    EARLY_EXITS,
    ESTIMATORS,
    JSON,
    PARTS,
    RECORDS,
    SAVABLE,
    SCHEMA,
    SKOPS,
    WEIGHTS,
    check_skops,
    forget_caches,
    import_safetensors,
    import_skops,
    is_part,
    is_plain_key,
    open_archive,
    pack,
    saved_parameters,
)
from skbdistil._saved_writer import Writer
from skbdistil._sklearn_compat import BaseSearchCV
from skbdistil._untrusted import (
    ITEM_TYPES,
    ArrayReader,
    brief,
    check_row_shape,
    parse_json,
    read_file,
    require,
)
from skbdistil.cascade import CascadeClassifier
from skbdistil.costs import Costs, StageCosts
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.early_time import _TIME_RULES, _TIME_UNITS, EarlyTimeClassifier
from skbdistil.ensemble import Lateral, ProgressiveEnsemble, _check_connection
from skbdistil.exceptions import InvalidFileError
from skbdistil.objectives import DistillationObjective
from skbdistil.stages import UNITS, _final_estimator, _unwrapped
from skbdistil.students import RecurrentNet, _check_ladder

__all__ = ["load", "save"]

_INPUT_SCALING = ["input_factor", "input_offset"]
_OUTPUT_SCALING = ["output_mean", "output_scale"]

# Tensors in a file, and estimators inside each other: what scikit-learn asks of nested
# pipelines takes three times as long with each.
_MAX_WEIGHTS = 10_000
_MAX_NESTING = 10

# Features of one student: products of such numbers are still sizes that torch can tell.
_MAX_FEATURES = 2**24


# What imputers of scikit-learn hold, and skops does not trust by itself.
_TRUSTED = ("numpy.dtype",)


def save(estimator, path, *, include_teacher=False):
    """Save a fitted estimator to a file.

    The file appears under its name when it is complete and can be read back; a failure
    before that leaves an earlier file of this name as it was. A file that is there is
    replaced, if it may be written to.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier`,
        :class:`~skbdistil.BDistilRegressor`,
        :class:`~skbdistil.early_exit.EarlyExitClassifier`,
        :class:`~skbdistil.early_exit.EarlyExitRegressor`,
        :class:`~skbdistil.early_time.EarlyTimeClassifier` or
        :class:`~skbdistil.intervals.SplitConformalRegressor`; also inside
        :class:`~sklearn.frozen.FrozenEstimator`, or as the last step of a
        :class:`~sklearn.pipeline.Pipeline`, whose other steps skops saves. Of a search,
        save ``best_estimator_``.

    path : str or path-like
        Name of the file.

    include_teacher : bool, default=False
        Whether to save the `teacher` parameter too, with skops. For scikit-learn
        teachers: torch modules cannot be saved, since their code is the caller's.

    Raises
    ------
    TypeError, ValueError
        If the estimator is of another kind, or holds what could not be loaded again,
        such as students built by a lambda function, or more than :func:`load` reads.

    FileExistsError
        If what is at `path` is not a file: a folder, a pipe or a device.

    OSError
        If the file cannot be written. An earlier one stays as it was.

    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    ImportError
        If safetensors, or skops where it is needed, is not installed.

    See Also
    --------
    load : Load the file.

    Notes
    -----
    What only `fit` uses and JSON cannot hold is not saved. After loading, a `teacher`
    that was an object is ``"precomputed"``, so that another `fit` asks for
    `teacher_scores` and does not train another teacher unnoticed, and its `teacher_cv`
    is the default; `net`, an instance as `random_state`, an object as `cv` or
    `teacher_cv`, a function as `augment`, and the `memory` of a pipeline, its steps and
    the teacher have their defaults. The `final` model that an
    :class:`~skbdistil.early_exit.EarlyExitClassifier` defers rows to is None after
    loading, and predictions raise :class:`~sklearn.exceptions.NotFittedError` until
    ``set_params(final=...)`` gives it again.

    The students are built again by calling what `student` was: a class of
    :mod:`skbdistil.students`, a class or function of your own that is defined at the
    top level of a module, or a :func:`functools.partial` of one with plain values.
    Such a class must be one that can be built on torch's meta device, and that keeps
    what it computes with in parameters and persistent buffers. Before the file gets
    its name, it is read back, and must give the same scores.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.persistence import load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> clf = clf.fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "iris.skb"
    ...     save(clf, path)
    ...     loaded = load(path)
    >>> bool((loaded.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    safetensors = import_safetensors()
    if isinstance(estimator, BaseSearchCV):
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved. Save its best estimator: "
            "save(search.best_estimator_, path)."
        )
    if type(estimator) not in (*SAVABLE, CascadeClassifier):
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved. 'estimator' must be one of "
            f"{[cls.__name__ for cls in SAVABLE]}, of exactly this class."
        )
    check_is_fitted(estimator)
    writer = Writer(include_teacher)
    # Of a cascade it says what to do, wherever that is.
    root = writer.node(estimator, "The estimator")
    document = {
        "schema_version": SCHEMA,
        "package_version": __version__,
        "estimator": root,
    }
    members = {
        JSON: json.dumps(document, allow_nan=False).encode(),
        WEIGHTS: safetensors.save(writer.weights),
        **writer.skops_members,
    }
    archive = pack(members)
    _check_readable(archive, writer, type(estimator).__name__)
    write_file(path, archive)


def load(path, *, classes=(), trusted=()):
    """Load an estimator that :func:`save` has saved.

    No code comes from the file. It names classes: those of this package, which are
    known, and those in `classes` and `trusted`.

    Parameters
    ----------
    path : str or path-like
        Name of the file.

    classes : list of type or function, default=()
        What was used in the training and is defined outside of this package:
        backbones and functions that build them, connections, and rules of early exit.
        They are found by their ``__qualname__``, in whatever module they are now.

    trusted : list of str or type, default=()
        Types that skops may build in the steps of a pipeline or a teacher, besides
        those that it trusts by itself. Trees are among those that have to be named:
        ``["sklearn.tree._tree.Tree"]``.

    Returns
    -------
    estimator : estimator
        Fitted estimator whose predictions are those of the saved one. Its weights are
        on the CPU until it predicts. A `device` that torch cannot use here is
        ``"auto"``.

    Raises
    ------
    skbdistil.exceptions.InvalidFileError
        If the file is corrupt, was changed or comes from a newer version of the
        package, or if it names a class that is missing in `classes` or `trusted`.

    OSError
        If the file cannot be read.

    ImportError
        If safetensors, or skops where it is needed, is not installed.

    See Also
    --------
    save : Save an estimator, and what is not saved.

    Notes
    -----
    A small file cannot ask for much. A file has at most 10,000 weight tensors, and
    students with at most twice as many blocks; 2**22 values in its JSON, which are at
    most 100 levels deep; 64 MiB in arrays that are not weights; 10 estimators inside
    each other; and rows of at most 2**28 numbers. Devices and pipes are not read.

    Examples
    --------
    Backbones of your own are passed as classes::

        clf = load("model.skb", classes=[MyBackbone])
    """
    import_safetensors()
    parts, trusted = _by_name(classes), list(trusted)
    with _refusing(path, but=OSError):
        data = read_file(path)
    with _refusing(path):
        archive = open_archive(data)
    if any(SKOPS.fullmatch(name) for name in archive.namelist()):
        # What is missing here is no fault of the file.
        import_skops()
    with _refusing(path):
        return _Reader(archive, parts, trusted).read()


def _by_name(parts):
    """Classes and functions of the user by their qualified name."""
    known = {}
    for part in parts:
        if not is_part(part):
            raise TypeError(f"'classes' must hold classes and functions. Got {part!r}.")
        if known.setdefault(part.__qualname__, part) is not part:
            raise ValueError(
                f"{known[part.__qualname__]} and {part} have the same name, by which "
                "they would be looked up."
            )
    return known


@contextmanager
def _refusing(path, but=()):
    """Turn whatever a bad file leads to into an error that names it."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        reason, cause = str(error), error.__cause__
        if not isinstance(error, InvalidFileError):
            reason = f"it is not what save writes ({type(error).__name__}: {error})."
            cause = error
        raise InvalidFileError(
            f"{os.fspath(path)!r} cannot be loaded: {brief(reason)}"
        ) from cause


def _require_known(name, value, known):
    require(
        inspect.isfunction(value) or value in known,
        f"its {name} {value!r} is unknown.",
    )


def _check_readable(archive, writer, estimator_name):
    """Read back what is to be written."""
    try:
        reader = _Reader(
            open_archive(archive), _by_name(writer.parts), writer.skops_types
        )
        reader.read()
        for number, saved in enumerate(writer.ensembles):
            require(
                _same_scores(copy.deepcopy(saved).cpu(), reader.ensembles[number]),
                "the students that are built again give other scores.",
            )
    except Exception as error:
        raise ValueError(
            f"{estimator_name} cannot be saved, since it could not be loaded again: "
            f"{error}"
        ) from error


@torch.inference_mode()
def _same_scores(ensemble, other):
    x = ensemble.example()
    # Not zeros, at which many a function gives the same; before it is scaled.
    if not ensemble.integer_input:
        x = torch.linspace(-2, 2, x.numel(), dtype=x.dtype).view_as(x)
    if ensemble.input_factor is not None:
        # A constant feature has a factor of 0.
        x = (x - ensemble.input_offset) / ensemble.input_factor
        x = x.nan_to_num(0, 0, 0)
    pairs = zip(ensemble.stages(x), other.stages(x), strict=True)
    return all(torch.equal(scores, others) for scores, others in pairs)


# From the parts of the archive to the estimator


class _Reader:
    """Builds an estimator from the parts of an archive, which it uses up.

    Parameters
    ----------
    archive : zipfile.ZipFile
    parts : dict
        Classes and functions of the user, by name.
    trusted : list
        What skops may build.

    Attributes
    ----------
    weights : dict of torch.Tensor
        What is left of them.
    ensembles : dict of ProgressiveEnsemble
        By their number in the file, which is not the order in which they are read.
    """

    def __init__(self, archive, parts, trusted):
        self.archive = archive
        self.unread = set(archive.namelist())
        self.parts = parts
        self.trusted = trusted
        self.arrays = ArrayReader()
        self.weights = {}
        self.ensembles = {}
        self.nesting = 0

    def read(self):
        # First, since nothing else need be the same in another version.
        document = parse_json(self._member(JSON))
        require(isinstance(document, dict), f"{JSON} is no JSON object.")
        schema = document.get("schema_version")
        require(type(schema) is int and schema > 0, "it has no schema version.")
        writer = f"It was written by skbdistil {document.get('package_version')}"
        require(
            schema <= SCHEMA,
            f"its schema version is {schema}, and this version of skbdistil reads "
            f"{SCHEMA}. {writer}; install that or a newer version.",
        )
        require(
            schema == SCHEMA,
            f"its schema version is {schema}, and this version of skbdistil reads "
            f"{SCHEMA} only. {writer}; install that version to predict with it, or "
            "fit again.",
        )
        self.weights = self._weights()
        estimator = _savable(self.value(document.get("estimator")))
        check_is_fitted(estimator)
        unused = [*sorted(self.unread), *self.weights]
        require(not unused, f"it has parts that belong to nothing: {unused}.")
        return estimator

    def _member(self, name):
        require(name in self.unread, f"its part {name!r} is missing.")
        self.unread.remove(name)
        # To read also compares the checksum.
        return self.archive.read(name)

    def _weights(self):
        data = self._member(WEIGHTS)
        size = int.from_bytes(data[:8], "little")
        # One object for each, before any is built.
        n_weights = data[8 : 8 + size].count(b"{") - 1
        require(
            n_weights <= _MAX_WEIGHTS,
            f"it has {n_weights} weights, which is more than {_MAX_WEIGHTS}.",
        )
        return import_safetensors().load(data)

    def value(self, node):
        match node:
            case list():
                return [self.value(item) for item in node]
            case {"$float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"$tuple": list(items)}:
                return tuple(self.value(items))
            case {"$array": [str(dtype), list(shape), list(items)]}:
                return self.arrays.read(dtype, self.value(items)).reshape(shape)
            case {"$record": [str(name), dict(values)]} if name in RECORDS:
                return RECORDS[name](**self.value(values))
            case {"$partial": [func, list(args), dict(keywords)]}:
                return partial(
                    self.value(func), *self.value(args), **self.value(keywords)
                )
            case {"$part": str(name)}:
                return self._part(name)
            case {"$skops": str(name)} if SKOPS.fullmatch(name):
                return self._skops(self._member(name))
            case {"$estimator": {"class": str(name), "params": dict(params), **rest}}:
                self.nesting += 1
                require(
                    self.nesting <= _MAX_NESTING,
                    f"it has more than {_MAX_NESTING} estimators inside each other.",
                )
                estimator = self._estimator(name, params, rest)
                self.nesting -= 1
                return estimator
            case dict():
                odd = [key for key in node if not is_plain_key(key)]
                require(not odd, f"{JSON} makes no sense at {odd}.")
                return {key: self.value(item) for key, item in node.items()}
        return node

    def _part(self, name):
        part = PARTS.get(name) or self.parts.get(name.partition(":")[2])
        require(
            part is not None,
            f"it names {name!r}, which has to be passed in 'classes'. Got "
            f"{sorted(self.parts)}.",
        )
        return part

    def _skops(self, data):
        skops = import_skops()
        check_skops(data)
        try:
            value = skops.loads(data, trusted=[*self.trusted, *_TRUSTED])
        except skops.exceptions.UntrustedTypesFoundException as error:
            raise InvalidFileError(
                f"pass the types that you trust as 'trusted'. {error}"
            ) from error
        forget_caches(value)
        return value

    def _estimator(self, name, params, rest):
        cls = ESTIMATORS.get(name)
        require(cls is not None, f"its class {name!r} is unknown.")
        params = self.value(params)
        extra = params.keys() - saved_parameters(cls)
        require(not extra, f"parameters {sorted(extra)} of {name} are not expected.")
        if cls is Pipeline:
            return self._pipeline(params, **rest)
        if cls in CALIBRATED:
            return self._calibrated(cls, params, **rest)
        if cls in DISTILLED:
            return self._distilled(cls, params, **rest)
        require(not rest, f"entries {sorted(rest)} of {name} are not expected.")
        if cls is FrozenEstimator:
            return FrozenEstimator(_savable(params.get("estimator")))
        return _built(cls, params)

    def _pipeline(self, params, *, names, last, steps=None):
        steps = [*self.value(steps or []), _savable(self.value(last))]
        pipeline = Pipeline(list(zip(names, steps, strict=True)), **params)
        pipeline._validate_steps()
        return pipeline

    def _calibrated(self, cls, params, *, fitted=None):
        fitted = self.value(fitted)
        if fitted is not None:
            params.setdefault("estimator", fitted["estimator_"])
        estimator = _built(cls, params)
        is_exiting = cls in EARLY_EXITS
        if is_exiting:
            _require_known("rule", estimator.rule, _rules(cls))
            units = _TIME_UNITS if cls is EarlyTimeClassifier else UNITS
            _require_known("cost", estimator.cost, units)
        if fitted is not None:
            check = _check_exits if is_exiting else _check_intervals
            check(estimator, fitted)
            vars(estimator).update(fitted)
            take_features(estimator, estimator.estimator_)
            estimator._remember_fit()
        return estimator

    def _distilled(self, cls, params, *, fitted=None, ensemble=None):
        estimator_name = cls.__name__
        if isinstance(params.get("class_weight"), tuple):
            params["class_weight"] = dict(params["class_weight"])
        estimator = _built(cls, params)
        if not (isinstance(estimator.student, str) and estimator.student == "auto"):
            _check_ladder(estimator.student, estimator_name)
        _check_connection(estimator.connection, estimator_name, auto=True)
        if estimator.device != "auto":
            # Whether there is such a thing at all, and it holds numbers.
            is_meta = torch.device(estimator.device).type == "meta"
            require(not is_meta, "its device is 'meta', which is for no predictions.")
            try:
                resolve_device(estimator.device, torch.float32, estimator_name)
            except ValueError:
                estimator.device = "auto"
        if ensemble is not None:
            scaling = _OUTPUT_SCALING * is_regressor(estimator)
            ensemble = self._ensemble(scaling, **ensemble)
            _set_ensemble(estimator, ensemble, self.value(fitted))
        return estimator

    def _ensemble(
        self,
        scaling,
        *,
        number,
        input_shape,
        n_outputs,
        connection,
        integer_input,
        students,
        n_features,
        first_stages=None,
    ):
        sizes = [number + 1, n_outputs, len(students), len(input_shape), *input_shape]
        require(
            all(type(size) is int and size > 0 for size in sizes),
            "the sizes of its ensemble are not positive.",
        )
        check_row_shape(input_shape)
        prefix = f"{number}."
        weights = {
            # Copies, which are aligned as torch does it.
            name.removeprefix(prefix): self.weights.pop(name).clone()
            for name in list(self.weights)
            if name.startswith(prefix)
        }
        if _INPUT_SCALING[0] in weights:
            scaling = _INPUT_SCALING + scaling
        require(type(integer_input) is bool, "the type of its rows is not known.")
        fits = isinstance(n_features, list) and len(n_features) == len(students)
        require(
            fits and all(type(n) is int and 0 < n < _MAX_FEATURES for n in n_features),
            "the numbers of features of its students do not fit.",
        )
        first_stages = self.value(first_stages)
        fits = first_stages is None or (
            _fits(first_stages, ("i", (n_outputs,))) and first_stages.min() > 0
        )
        require(fits, "the first stages of its outputs do not fit.")
        # On the meta device nothing is allocated, whatever the file says.
        with torch.device("meta"):
            ensemble = ProgressiveEnsemble(
                input_shape,
                n_outputs,
                connection=self.value(connection),
                integer_input=integer_input,
                first_stages=first_stages,
            )
            for name in scaling:
                setattr(ensemble, name, weights[name].to("meta"))
            factories = self.value(students)
            _check_numbers_of_blocks(factories, len(weights))
            for position, factory in enumerate(factories):
                head = weights[f"students.{position}.head.weight"]
                require(
                    head.ndim == 2 and len(head) == n_outputs,
                    f"a head does not give {n_outputs} outputs.",
                )
                size = n_features[position]
                ensemble.append(ensemble.new_student(factory, n_features=size))
            _check_students(ensemble)
        _check_weights(ensemble, weights)
        ensemble.load_state_dict(weights, assign=True)
        for name, tensor in ensemble.named_buffers():
            require(not tensor.is_meta, f"the buffer {name!r} is not persistent.")
        self.ensembles[number] = ensemble
        return ensemble.eval()


def _savable(value):
    require(
        type(value) in SAVABLE,
        f"there is a {type(value).__name__} in the place of an estimator.",
    )
    return value


def _built(cls, params):
    estimator = cls(**params)
    estimator._validate_params()
    return estimator


def _check_numbers_of_blocks(factories, n_weights):
    """Whether backbones of this package have no more blocks than they can have."""
    arguments = [
        value
        for factory in factories
        if isinstance(factory, partial) and factory.func in BACKBONES
        for value in (*factory.args, *factory.keywords.values())
    ]
    n_blocks = sum(len(value) for value in arguments if isinstance(value, Sized))
    # A block has a weight at least; some are there twice, since they are shared.
    require(
        n_blocks <= 2 * n_weights,
        f"its students have {n_blocks} blocks, and there are {n_weights} weights.",
    )


def _check_students(ensemble):
    """Whether students fit the rows and each other, beyond what weights tell."""
    kinds = {type(student.backbone) for student in ensemble.students}
    if RecurrentNet in kinds:
        require(len(ensemble.input_shape) == 2, "its rows are no sequences.")
    for student in ensemble.students:
        # The features of other backbones are known to themselves only.
        require(
            type(student.backbone) not in BACKBONES
            or student.backbone.widths[-1] == student.n_features,
            "the features of a student do not fit its backbone.",
        )
    # Sizes of maps show when students are run; on the meta device, a recurrent one
    # would take milliseconds for every step.
    if isinstance(ensemble.connection, Lateral) and kinds & CONVOLUTIONAL:
        require(RecurrentNet not in kinds, "its students do not fit each other.")
        ensemble(ensemble.example())


def _check_weights(ensemble, weights):
    """Compare names, shapes and dtypes with those of an ensemble on the meta device."""
    dtype = weights["students.0.head.weight"].dtype
    require(dtype in (torch.float32, torch.float64), f"its weights are {dtype}.")
    ensemble.to(dtype)
    for name in _INPUT_SCALING * (ensemble.input_factor is not None):
        shape = np.broadcast_shapes(weights[name].shape, ensemble.input_shape)
        require(shape == ensemble.input_shape, f"{name!r} does not fit the rows.")
    if ensemble.output_scale is not None:
        for name in _OUTPUT_SCALING:
            shape = (ensemble.n_outputs,)
            require(weights[name].shape == shape, f"{name!r} does not fit.")
    expected = ensemble.state_dict()
    odd = expected.keys() ^ weights.keys()
    require(not odd, f"its weights lack, or should not have, {sorted(odd)}.")
    for name, tensor in expected.items():
        found = weights[name]
        require(
            found.shape == tensor.shape and found.dtype == tensor.dtype,
            f"the weights {name!r} are {found.dtype} of shape {tuple(found.shape)}, "
            f"and should be {tensor.dtype} of shape {tuple(tensor.shape)}.",
        )


# What fitted attributes are: a type; the kinds and the shape of an array; a record
# with its fields; or a list of such alternatives.


def _set_ensemble(estimator, ensemble, fitted):
    """Give an estimator its fitted attributes."""
    n_stages, n_outputs = len(ensemble), ensemble.n_outputs
    of_stages, of_outputs = (n_stages,), (n_stages, n_outputs)
    expected = {
        "certificate_": (
            Certificate,
            {
                "bound": ("f", of_outputs),
                "potential": ("f", of_outputs),
                "actual": ("f", of_outputs),
                "mean": ("f", of_outputs),
                "step": ("f", of_stages),
            },
        ),
        "student_edges_": ("f", of_outputs),
        "idle_features_": ("f", of_stages),
        "eta_": float,
        "objective_": DistillationObjective,
        "ladder_": list,
        "teacher_bound_": float,
        "teacher_scale_": float,
        "edge_tol_": float,
        "combine_": str,
        "batch_size_": int,
        "max_epochs_": int,
        "refine_epochs_": int,
        "interrupted_": bool,
        "ladder_positions_": list,
        "training_history_": list,
        "stage_costs_": (
            StageCosts,
            {
                **{field.name: ("i", of_stages) for field in fields(StageCosts)},
                "macs": ("if", of_stages),  # NaN is not known
            },
        ),
        "teacher_costs_": [
            type(None),
            (Costs, {**dict.fromkeys(Costs._fields, int), "macs": int | None}),
        ],
        "teacher_score_": float | None,
        "teacher_score_kind_": str,
        "teacher_calls_": int,
        "label_mix_": float,
        "student_transform_": object,
    }
    if is_classifier(estimator):
        expected["classes_"] = ("".join(ITEM_TYPES), (n_outputs,))
        expected["multilabel_"] = bool
    else:
        expected["target_mean_"] = expected["target_scale_"] = ("f", (n_outputs,))
        expected["single_output_"] = bool
    transform, n_features = None, ensemble.input_shape[0]
    if "student_transform_" in fitted:
        transform = fitted["student_transform_"]
    if transform is not None:
        expected["n_features_in_"] = int
        n_features = fitted.get("n_features_in_")
    if "feature_names_in_" in fitted:
        expected["feature_names_in_"] = ("O", (n_features,))
    _check_attributes(fitted, expected)
    require(
        transform is None or hasattr(transform, "transform"),
        "its 'student_transform' does not transform.",
    )
    for name, kind in {"ladder_positions_": int, "training_history_": list}.items():
        items = fitted[name]
        fits = len(items) == n_stages and all(type(item) is kind for item in items)
        require(fits, f"its attribute {name!r} does not fit.")
    ladder = _check_ladder(fitted["ladder_"], type(estimator).__name__)
    fits = all(0 <= position < len(ladder) for position in fitted["ladder_positions_"])
    require(fits, "a student is of no class of its ladder.")
    if is_classifier(estimator):
        classes = fitted["classes_"]
        in_order = np.array_equal(np.unique(classes), classes)
        require(in_order, "its classes are not in order.")
        numbered = np.array_equal(classes, np.arange(n_outputs))
        require(numbered or not fitted["multilabel_"], "its labels have no numbers.")
    else:
        single = n_outputs == 1 or not fitted["single_output_"]
        require(single, "it has more than a single output.")
    vars(estimator).update(
        fitted,
        ensemble_=ensemble,
        input_shape_=ensemble.input_shape,
        n_estimators_=n_stages,
        n_features_in_=n_features,
    )
    estimator._n_stages_used()  # whether the parameter fits


def _check_exits(estimator, fitted):
    """Check the fitted attributes of an early exit, and add those that follow."""
    inner = fitted["estimator_"]
    final = _final_estimator(inner)
    thresholds = np.asarray(fitted["thresholds_"])
    # A final model that rows are deferred to is a stage of the path.
    n_stages = len(thresholds) + 1
    is_classifying = is_classifier(estimator)
    n_local = len(np.atleast_1d(fitted.get("temperatures_", fitted["costs_"])))
    require(
        type(final) is (BDistilClassifier if is_classifying else BDistilRegressor)
        and not getattr(final, "multilabel_", False)
        and n_local in ((n_stages, n_stages - 1) if is_classifying else (n_stages,)),
        "its stages are not those of its estimator.",
    )
    if isinstance(estimator, EarlyTimeClassifier):
        stages = fitted.get("stages_")
        of_ensemble = _fits(stages, ("i", (n_local, 2))) and is_of_ensemble(
            stages, final.ensemble_
        )
    else:
        of_ensemble = n_local <= len(final)
    require(of_ensemble, "its stages are not those of its estimator.")
    n_points = len(fitted["path_"].costs)
    points = ("f", (n_points,))
    expected = {
        "estimator_": object,
        "rule_": object,
        "thresholds_": ("f", (n_stages - 1,)),
        "costs_": ("f", (n_stages,)),
        "path_": (
            ExitPath,
            {
                "thresholds": ("f", (n_points, n_stages - 1)),
                "costs": points,
                "scores": points,
                "losses": points,
                "exits": ("f", (n_points, n_stages)),
            },
        ),
        "best_index_": int,
    }
    if is_classifying:
        expected |= {
            "temperatures_": ("f", (n_local,)),
            "calibration_errors_": [type(None), ("f", (2, n_local))],
        }
        if isinstance(estimator, EarlyTimeClassifier):
            expected["stages_"] = ("i", (n_local, 2))
    else:
        expected["tolerance_"] = ("f", (final.ensemble_.n_outputs,))
    _check_attributes(fitted, expected)
    require(0 <= fitted["best_index_"] < n_points, "its best index is out of range.")
    require(not np.isnan(thresholds).any(), "a threshold is no number.")
    _require_known("rule", fitted["rule_"], _rules(type(estimator)))
    # Neither is NaN.
    for name in fitted.keys() & {"temperatures_", "tolerance_"}:
        require((fitted[name] > 0).all(), f"{name!r} is not positive.")
    if is_classifying:
        fitted |= {"final_": None, "classes_": inner.classes_}


def _check_intervals(estimator, fitted):
    """Check the fitted attributes of intervals."""
    inner = _unwrapped(fitted["estimator_"])
    exits = isinstance(inner, EarlyExitRegressor)
    require(
        exits or isinstance(inner, BDistilRegressor),
        "its intervals are around what has none.",
    )
    n_stages = inner._n_stages() if exits else inner._n_stages_used()
    final = _final_estimator(inner.estimator_ if exits else inner)
    residuals = np.asarray(fitted["residuals_"])
    of_rows = len(np.atleast_1d(residuals)), final.ensemble_.n_outputs
    _check_attributes(
        fitted,
        {
            "estimator_": object,
            "residuals_": ("f", of_rows),
            "stage_residuals_": ("f", (n_stages, *of_rows)),
        },
    )
    require(len(residuals) > 0, "its intervals were calibrated on no rows.")
    for name in ("residuals_", "stage_residuals_"):
        values = fitted[name]
        rises = (np.diff(values, axis=-2) >= 0).all()
        require(
            rises and (values >= 0).all() and np.isfinite(values).all(),
            f"{name!r} are no absolute errors in rising order.",
        )


def _rules(cls):
    if cls is EarlyTimeClassifier:
        return _TIME_RULES
    return RULES if cls is EarlyExitClassifier else REGRESSION_RULES


def _check_attributes(found, expected):
    odd = found.keys() ^ expected.keys()
    require(not odd, f"it lacks, or should not have, the attributes {sorted(odd)}.")
    for name, value in found.items():
        require(_fits(value, expected[name]), f"its attribute {name!r} does not fit.")


def _fits(value, expected):
    match expected:
        case list():
            return any(_fits(value, alternative) for alternative in expected)
        case (str(kinds), tuple(shape)):
            return (
                isinstance(value, np.ndarray)
                and value.dtype.kind in kinds
                and value.shape == shape
            )
        case (record, dict(values)):
            return isinstance(value, record) and all(
                _fits(getattr(value, name), kind) for name, kind in values.items()
            )
    # A bool is an int only to Python.
    return isinstance(value, expected) and (expected is not int or type(value) is int)
