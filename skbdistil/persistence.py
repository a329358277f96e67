"""Save fitted estimators, and load them without running anything from the file.

A file is an uncompressed zip archive of

- ``estimator.json``: versions, parameters, fitted attributes, and the names of what
  the students are built from;
- ``weights.safetensors``: the state of the ensembles;
- ``0.skops``, ``1.skops``, ...: the other steps of pipelines, and teachers.

In the JSON, what JSON does not know is an object with one key that begins with ``$``,
such as ``{"$tuple": [16, 8]}``.
"""

import copy
import inspect
import io
import json
import math
import os
import re
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import torch
from sklearn.base import is_classifier, is_regressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skbdistil._bdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting._game import Certificate
from skbdistil._boosting._rows import resolve_device
from skbdistil._exit_calibration import ExitPath
from skbdistil._exit_rules import RULES
from skbdistil._files import write_file
from skbdistil._optional import required
from skbdistil._sklearn_compat import BaseSearchCV
from skbdistil.costs import Costs, StageCosts
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import (
    Dense,
    Last,
    Lateral,
    ProgressiveEnsemble,
    Residual,
    check_connection,
)
from skbdistil.exceptions import InvalidFileError
from skbdistil.objectives import DistillationObjective
from skbdistil.stages import UNITS, final_estimator
from skbdistil.students import (
    MLP,
    ConvNet1d,
    ConvNet2d,
    RecurrentNet,
    check_ladder,
)

__all__ = ["load", "save"]

# To be raised with every change that this version's `load` cannot read.
_SCHEMA = 1

_JSON = "estimator.json"
_WEIGHTS = "weights.safetensors"
_SKOPS = re.compile(r"[0-9]{1,9}\.skops")

_DISTILLED = (BDistilClassifier, BDistilRegressor)
_SAVABLE = (*_DISTILLED, EarlyExitClassifier, FrozenEstimator, Pipeline)

# What a file can name without the help of the caller.
_ESTIMATORS = {cls.__name__: cls for cls in (*_SAVABLE, DistillationObjective, Lateral)}
_RECORDS = {cls.__name__: cls for cls in (Certificate, Costs, ExitPath, StageCosts)}
_CONVOLUTIONAL = {ConvNet1d, ConvNet2d}
_BACKBONES = {MLP, RecurrentNet, *_CONVOLUTIONAL}
_PARTS = {cls.__name__: cls for cls in (*_BACKBONES, Dense, Last, Residual)}

# Parameters that JSON cannot hold. A folder to cache in is not for a file to choose.
_NOT_SAVED = {"memory", "net", "steps"}

# Fitted attributes that follow from others.
_DERIVED = {"ensemble_", "input_shape_", "n_estimators_", "n_features_in_"}
_DERIVED_OF_EXITS = {"classes_", "feature_names_in_", "n_features_in_"}

_INPUT_SCALING = ["input_factor", "input_offset"]
_OUTPUT_SCALING = ["output_mean", "output_scale"]

# Python types of the items of an array, by the kind of its dtype.
_ITEMS = {
    "b": bool,
    "i": int,
    "u": int,
    "f": (float, int),
    "U": str,
    "O": (str, float, int, type(None)),
}

# Bytes of a string that may be declared, however long the string is.
_SHORT_STRING = 1024


def save(estimator, path, *, include_teacher=False):
    """Save a fitted estimator to a file.

    The file appears under its name when it is complete and can be read back; a failure
    before that leaves an earlier file of this name as it was.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier`,
        :class:`~skbdistil.BDistilRegressor` or
        :class:`~skbdistil.early_exit.EarlyExitClassifier`; also inside
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
        such as students built by a lambda function.

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
    `teacher_scores` and does not train another teacher unnoticed; `net`, an instance
    as `random_state`, an object as `cv` and the `memory` of a pipeline have their
    defaults.

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
    safetensors = _import_safetensors()
    if isinstance(estimator, BaseSearchCV):
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved. Save its best estimator: "
            "save(search.best_estimator_, path)."
        )
    if type(estimator) not in _SAVABLE:
        raise TypeError(
            f"{type(estimator).__name__} cannot be saved. 'estimator' must be one of "
            f"{[cls.__name__ for cls in _SAVABLE]}, of exactly this class."
        )
    check_is_fitted(estimator)
    writer = _Writer(include_teacher)
    root = writer.node(estimator, "The estimator")
    document = {
        "schema_version": _SCHEMA,
        "package_version": version("skbdistil"),
        "estimator": root,
    }
    members = {
        _JSON: json.dumps(document, allow_nan=False).encode(),
        _WEIGHTS: safetensors.save(writer.weights),
        **writer.skops_members,
    }
    archive = _pack(members)
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

    Examples
    --------
    Backbones of your own are passed as classes::

        clf = load("model.skb", classes=[MyBackbone])
    """
    _import_safetensors()
    parts, trusted = _by_name(classes), list(trusted)
    data = Path(path).read_bytes()
    with _refusing(path):
        members = _unpack(data)
    if any(_SKOPS.fullmatch(name) for name in members):
        # What is missing here is no fault of the file.
        _import_skops()
    with _refusing(path):
        return _Reader(members, parts, trusted).read()


def _by_name(parts):
    """Classes and functions of the user by their qualified name."""
    known = {}
    for part in parts:
        if not _is_part(part):
            raise TypeError(f"'classes' must hold classes and functions. Got {part!r}.")
        if known.setdefault(part.__qualname__, part) is not part:
            raise ValueError(
                f"{known[part.__qualname__]} and {part} have the same name, by which "
                "they would be looked up."
            )
    return known


def _is_part(value):
    return inspect.isclass(value) or inspect.isfunction(value)


def _import_safetensors():
    return required("skbdistil.persistence", "safetensors.torch")


def _import_skops():
    return required("skbdistil.persistence", "skops.io")


@contextmanager
def _refusing(path):
    """Turn whatever a bad file leads to into an error that names it."""
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, InvalidFileError):
            reason = f"it is not what save writes ({type(error).__name__}: {error})."
        raise InvalidFileError(
            f"{os.fspath(path)!r} cannot be loaded: {reason}"
        ) from error


def _require(condition, reason):
    if not condition:
        raise InvalidFileError(reason)


def _require_known(name, value, known):
    _require(
        inspect.isfunction(value) or value in known,
        f"its {name} {value!r} is unknown.",
    )


# The archive


def _pack(members):
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            # Stored, and dated 1980: equal estimators give equal bytes.
            archive.writestr(ZipInfo(name), data)
    return buffer.getbuffer()


def _unpack(data):
    """Parts of an archive by name, together no larger than the archive."""
    with ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        names = {info.filename for info in infos}
        _require(len(names) == len(infos), "a part of it is there twice.")
        stored = all(info.compress_type == ZIP_STORED for info in infos)
        _require(stored, "a part of it is compressed.")
        size = sum(info.file_size for info in infos)
        _require(size <= len(data), "its parts are larger than the file.")
        # To read also compares the checksum.
        return {info.filename: archive.read(info) for info in infos}


def _check_readable(archive, writer, estimator_name):
    """Read back what is to be written."""
    try:
        reader = _Reader(_unpack(archive), _by_name(writer.parts), writer.skops_types)
        reader.read()
        for saved, ensemble in zip(writer.ensembles, reader.ensembles, strict=True):
            _require(
                _same_scores(copy.deepcopy(saved).cpu(), ensemble),
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


# From the estimator to the parts of the archive


class _Writer:
    """Describes an estimator in JSON, and collects what JSON does not hold.

    Parameters
    ----------
    include_teacher : bool

    Attributes
    ----------
    ensembles : list of ProgressiveEnsemble
    weights : dict of torch.Tensor
        Their state, the names beginning with the number of the ensemble.
    parts : list
        Classes and functions of the user.
    skops_members : dict of bytes
    skops_types : list of str
        What skops does not trust by itself.
    """

    def __init__(self, include_teacher):
        self.include_teacher = include_teacher
        self.ensembles = []
        self.weights = {}
        self.parts = []
        self.skops_members = {}
        self.skops_types = []

    def node(self, value, what):
        """A value in JSON; `what` names it in messages."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": str(value)}
        if isinstance(value, list):
            return [self.node(item, what) for item in value]
        if isinstance(value, dict) and all(_is_plain_key(key) for key in value):
            return {key: self.node(item, what) for key, item in value.items()}
        if type(value) in _RECORDS.values():
            return {"$record": [type(value).__name__, self.node(_fields(value), what)]}
        if isinstance(value, tuple):
            return {"$tuple": self.node(list(value), what)}
        if isinstance(value, np.ndarray) and value.dtype.kind in _ITEMS:
            if value.dtype.kind == "U" and value.dtype.itemsize > _SHORT_STRING:
                value = np.array(value.tolist())  # no longer than its strings
            dtype = value.dtype.newbyteorder("=").str
            items = self.node(value.ravel().tolist(), what)
            return {"$array": [dtype, list(value.shape), items]}
        if isinstance(value, partial):
            call = [value.func, list(value.args), value.keywords]
            return {"$partial": self.node(call, what)}
        if isinstance(value, torch.device):
            return str(value)
        if type(value) in _ESTIMATORS.values():
            return {"$estimator": self._estimator(value)}
        if _is_part(value):
            return {"$part": self._name(value, what)}
        raise TypeError(f"{what} cannot be saved: it is or holds {value!r}.")

    def _name(self, part, what):
        if part in _PARTS.values():
            return part.__name__
        name = f"{part.__module__}:{part.__qualname__}"
        if "<" in name:
            raise ValueError(
                f"{what} cannot be saved: it is or holds {name}, which could not be "
                "looked up again. Define it at the top level of a module."
            )
        self.parts.append(part)
        return name

    def _estimator(self, estimator):
        cls = type(estimator)
        node = {"class": cls.__name__}
        params = {
            name: value
            for name, value in estimator.get_params(deep=False).items()
            if name not in _NOT_SAVED and not isinstance(value, np.random.RandomState)
        }
        if cls in _DISTILLED:
            teacher = params.pop("teacher")
            if hasattr(estimator, "ensemble_"):
                node["ensemble"] = self._ensemble(estimator)
                node["fitted"] = self._fitted(estimator, _DERIVED)
        elif cls is EarlyExitClassifier:
            if not isinstance(params["cv"], Real):
                del params["cv"]
            if hasattr(estimator, "estimator_"):
                # What is loaded counts as calibrated.
                estimator._calibrated()
                if params["estimator"] is estimator.estimator_:
                    del params["estimator"]
                node["fitted"] = self._fitted(estimator, _DERIVED_OF_EXITS)
        elif cls is Pipeline:
            *steps, last = [step for _, step in estimator.steps]
            node["names"] = [name for name, _ in estimator.steps]
            node["last"] = self.node(last, "The last step of Pipeline")
            if steps:
                node["steps"] = self._skops(steps, "The list of steps")
        node["params"] = {
            name: self.node(value, f"The parameter {name!r} of {cls.__name__}")
            for name, value in params.items()
        }
        if cls in _DISTILLED:
            node["params"]["teacher"] = self._teacher(teacher, cls.__name__)
        return node

    def _fitted(self, estimator, derived):
        return {
            name: self.node(value, f"The attribute {name!r}")
            for name, value in vars(estimator).items()
            if name.endswith("_") and name not in derived
        }

    def _teacher(self, teacher, estimator_name):
        if teacher is None or isinstance(teacher, str):
            return teacher
        if not self.include_teacher:
            return "precomputed"
        return self._skops(teacher, f"The parameter 'teacher' of {estimator_name}")

    def _skops(self, value, what):
        skops = _import_skops()
        try:
            data = skops.dumps(value)
            types = skops.get_untrusted_types(data=data)
        except Exception as error:
            raise ValueError(f"{what} {_NO_SKOPS} skops says: {error}") from error
        foreign = [name for name in types if name.startswith(("skorch.", "torch."))]
        if foreign:
            raise ValueError(f"{what} {_NO_SKOPS} It holds {foreign}.")
        self.skops_types += types
        member = f"{len(self.skops_members)}.skops"
        self.skops_members[member] = data
        return {"$skops": member}

    def _ensemble(self, estimator):
        ensemble = estimator.ensemble_
        number = len(self.ensembles)
        self.ensembles.append(ensemble)
        for name, tensor in ensemble.state_dict().items():
            # A copy, since safetensors refuses tensors that share memory.
            self.weights[f"{number}.{name}"] = tensor.cpu().clone(
                memory_format=torch.contiguous_format
            )
        what = f"The parameter 'student' of {type(estimator).__name__}"
        return {
            "number": number,
            "input_shape": list(ensemble.input_shape),
            "n_outputs": ensemble.n_outputs,
            "connection": self.node(ensemble.connection, "The connection"),
            "integer_input": ensemble.integer_input,
            "students": [
                self.node(student.factory, what) for student in ensemble.students
            ],
        }


_NO_SKOPS = (
    "cannot be saved. Torch modules cannot, since their code is the caller's, nor can "
    "what is neither scikit-learn's nor defined at the top level of a module."
)


def _is_plain_key(key):
    return isinstance(key, str) and not key.startswith("$")


def _fields(record):
    if is_dataclass(record):
        return {field.name: getattr(record, field.name) for field in fields(record)}
    return record._asdict()


# From the parts of the archive to the estimator


class _Reader:
    """Builds an estimator from the parts of an archive, which it uses up.

    Parameters
    ----------
    members : dict of bytes
    parts : dict
        Classes and functions of the user, by name.
    trusted : list
        What skops may build.

    Attributes
    ----------
    weights : dict of torch.Tensor
        What is left of them.
    ensembles : list of ProgressiveEnsemble
    """

    def __init__(self, members, parts, trusted):
        self.members = members
        self.parts = parts
        self.trusted = trusted
        self.weights = {}
        self.ensembles = []

    def read(self):
        # First, since nothing else need be the same in another version.
        document = json.loads(self._member(_JSON))
        _require(isinstance(document, dict), f"{_JSON} is no JSON object.")
        schema = document.get("schema_version")
        _require(type(schema) is int and schema > 0, "it has no schema version.")
        _require(
            schema <= _SCHEMA,
            f"its schema version is {schema}, and this version of skbdistil reads up "
            f"to {_SCHEMA}. It was written by skbdistil "
            f"{document.get('package_version')}; install that or a newer version.",
        )
        self.weights = _import_safetensors().load(self._member(_WEIGHTS))
        estimator = _savable(self.value(document.get("estimator")))
        check_is_fitted(estimator)
        unused = [*self.members, *self.weights]
        _require(not unused, f"its parts {unused} belong to nothing.")
        return estimator

    def _member(self, name):
        _require(name in self.members, f"its part {name!r} is missing.")
        return self.members.pop(name)

    def value(self, node):
        match node:
            case list():
                return [self.value(item) for item in node]
            case {"$float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"$tuple": list(items)}:
                return tuple(self.value(items))
            case {"$array": [str(dtype), list(shape), list(items)]}:
                return _array(dtype, shape, self.value(items))
            case {"$record": [str(name), dict(values)]} if name in _RECORDS:
                return _RECORDS[name](**self.value(values))
            case {"$partial": [func, list(args), dict(keywords)]}:
                return partial(
                    self.value(func), *self.value(args), **self.value(keywords)
                )
            case {"$part": str(name)}:
                return self._part(name)
            case {"$skops": str(name)} if _SKOPS.fullmatch(name):
                return self._skops(self._member(name))
            case {"$estimator": {"class": str(name), "params": dict(params), **rest}}:
                return self._estimator(name, params, rest)
            case dict():
                odd = [key for key in node if not _is_plain_key(key)]
                _require(not odd, f"{_JSON} makes no sense at {odd}.")
                return {key: self.value(item) for key, item in node.items()}
        return node

    def _part(self, name):
        part = _PARTS.get(name) or self.parts.get(name.partition(":")[2])
        _require(
            part is not None,
            f"it names {name!r}, which has to be passed in 'classes'. Got "
            f"{sorted(self.parts)}.",
        )
        return part

    def _skops(self, data):
        skops = _import_skops()
        _unpack(data)  # refuses what would be larger than it says
        try:
            return skops.loads(data, trusted=self.trusted)
        except skops.exceptions.UntrustedTypesFoundException as error:
            raise InvalidFileError(
                f"pass the types that you trust as 'trusted'. {error}"
            ) from error

    def _estimator(self, name, params, rest):
        cls = _ESTIMATORS.get(name)
        _require(cls is not None, f"its class {name!r} is unknown.")
        params = self.value(params)
        extra = params.keys() - (set(cls._get_param_names()) - _NOT_SAVED)
        _require(not extra, f"parameters {sorted(extra)} of {name} are not expected.")
        if cls is Pipeline:
            return self._pipeline(params, **rest)
        if cls is EarlyExitClassifier:
            return self._early_exit(params, **rest)
        if cls in _DISTILLED:
            return self._distilled(cls, params, **rest)
        _require(not rest, f"entries {sorted(rest)} of {name} are not expected.")
        if cls is FrozenEstimator:
            return FrozenEstimator(_savable(params.get("estimator")))
        return _built(cls, params)

    def _pipeline(self, params, *, names, last, steps=None):
        steps = [*self.value(steps or []), _savable(self.value(last))]
        pipeline = Pipeline(list(zip(names, steps, strict=True)), **params)
        pipeline._validate_steps()
        return pipeline

    def _early_exit(self, params, *, fitted=None):
        fitted = self.value(fitted)
        if fitted is not None:
            params.setdefault("estimator", fitted["estimator_"])
        estimator = _built(EarlyExitClassifier, params)
        _require_known("rule", estimator.rule, RULES)
        _require_known("cost", estimator.cost, UNITS)
        if fitted is not None:
            _set_exits(estimator, fitted)
        return estimator

    def _distilled(self, cls, params, *, fitted=None, ensemble=None):
        estimator_name = cls.__name__
        estimator = _built(cls, params)
        if not (isinstance(estimator.student, str) and estimator.student == "auto"):
            check_ladder(estimator.student, estimator_name)
        check_connection(estimator.connection, estimator_name, auto=True)
        if estimator.device != "auto":
            torch.device(estimator.device)  # whether there is such a thing at all
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
    ):
        sizes = [number + 1, n_outputs, len(students), len(input_shape), *input_shape]
        _require(
            all(type(size) is int and size > 0 for size in sizes),
            "the sizes of its ensemble are not positive.",
        )
        prefix = f"{number}."
        weights = {
            # Copies, which are aligned as torch does it.
            name.removeprefix(prefix): self.weights.pop(name).clone()
            for name in list(self.weights)
            if name.startswith(prefix)
        }
        if _INPUT_SCALING[0] in weights:
            scaling = _INPUT_SCALING + scaling
        _require(type(integer_input) is bool, "the type of its rows is not known.")
        # On the meta device nothing is allocated, whatever the file says.
        with torch.device("meta"):
            ensemble = ProgressiveEnsemble(
                input_shape,
                n_outputs,
                connection=self.value(connection),
                integer_input=integer_input,
            )
            for name in scaling:
                setattr(ensemble, name, weights[name].to("meta"))
            for position, factory in enumerate(self.value(students)):
                head = weights[f"students.{position}.head.weight"]
                ensemble.append(ensemble.new_student(factory, n_features=head.shape[1]))
            _check_students(ensemble)
        _check_weights(ensemble, weights)
        ensemble.load_state_dict(weights, assign=True)
        for name, tensor in ensemble.named_buffers():
            _require(not tensor.is_meta, f"the buffer {name!r} is not persistent.")
        self.ensembles.append(ensemble)
        return ensemble.eval()


def _savable(value):
    _require(
        type(value) in _SAVABLE,
        f"there is a {type(value).__name__} in the place of an estimator.",
    )
    return value


def _built(cls, params):
    estimator = cls(**params)
    estimator._validate_params()
    return estimator


def _array(dtype, shape, items):
    dtype = np.dtype(dtype)
    known = dtype.kind in _ITEMS and all(
        isinstance(item, _ITEMS[dtype.kind]) for item in items
    )
    _require(known, f"the items of an array are not of the type {dtype}.")
    if dtype.kind == "U":
        # What is longer than its strings takes memory for nothing.
        longest = max((len(item) for item in items), default=0)
        _require(
            dtype.itemsize <= max(4 * longest, _SHORT_STRING),
            f"an array of strings of up to {longest} characters has the type {dtype}.",
        )
    return np.array(items, dtype=dtype).reshape(shape)


def _check_students(ensemble):
    """Whether students fit the rows and each other, beyond what weights tell."""
    kinds = {type(student.backbone) for student in ensemble.students}
    if RecurrentNet in kinds:
        _require(len(ensemble.input_shape) == 2, "its rows are no sequences.")
    for student in ensemble.students:
        # The features of other backbones are known to themselves only.
        _require(
            type(student.backbone) not in _BACKBONES
            or student.backbone.widths[-1] == student.head.in_features,
            "a head does not fit its backbone.",
        )
    # Sizes of maps show when students are run; on the meta device, a recurrent one
    # would take milliseconds for every step.
    if isinstance(ensemble.connection, Lateral) and kinds & _CONVOLUTIONAL:
        _require(RecurrentNet not in kinds, "its students do not fit each other.")
        ensemble(ensemble.example())


def _check_weights(ensemble, weights):
    """Compare names, shapes and dtypes with those of an ensemble on the meta device."""
    dtype = weights["students.0.head.weight"].dtype
    _require(dtype in (torch.float32, torch.float64), f"its weights are {dtype}.")
    ensemble.to(dtype)
    for name in _INPUT_SCALING * (ensemble.input_factor is not None):
        shape = np.broadcast_shapes(weights[name].shape, ensemble.input_shape)
        _require(shape == ensemble.input_shape, f"{name!r} does not fit the rows.")
    if ensemble.output_scale is not None:
        for name in _OUTPUT_SCALING:
            shape = (ensemble.n_outputs,)
            _require(weights[name].shape == shape, f"{name!r} does not fit.")
    expected = ensemble.state_dict()
    odd = expected.keys() ^ weights.keys()
    _require(not odd, f"its weights lack, or should not have, {sorted(odd)}.")
    for name, tensor in expected.items():
        found = weights[name]
        _require(
            found.shape == tensor.shape and found.dtype == tensor.dtype,
            f"the weights {name!r} are {found.dtype} of shape {tuple(found.shape)}, "
            f"and should be {tensor.dtype} of shape {tuple(tensor.shape)}.",
        )


# What fitted attributes are: a type; the kinds and the shape of an array; a record
# with its fields; or a list of such alternatives.


def _set_ensemble(estimator, ensemble, fitted):
    """Give an estimator its fitted attributes."""
    n_stages, n_outputs = len(ensemble), ensemble.n_outputs
    n_features = ensemble.input_shape[0]
    of_stages, of_outputs = (n_stages,), (n_stages, n_outputs)
    expected = {
        "certificate_": (
            Certificate,
            {
                "bound": ("f", of_outputs),
                "actual": ("f", of_outputs),
                "mean": ("f", of_outputs),
                "step": ("f", of_stages),
            },
        ),
        "student_edges_": ("f", of_outputs),
        "objective_": DistillationObjective,
        "ladder_": list,
        "ladder_positions_": list,
        "teacher_bound_": float,
        "eta_": float,
        "edge_tol_": float,
        "batch_size_": int,
        "max_epochs_": int,
        "refine_epochs_": int,
        "interrupted_": bool,
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
    }
    if is_classifier(estimator):
        expected["classes_"] = ("".join(_ITEMS), (n_outputs,))
    else:
        expected["target_mean_"] = expected["target_scale_"] = ("f", (n_outputs,))
        expected["single_output_"] = bool
    if "feature_names_in_" in fitted:
        expected["feature_names_in_"] = ("O", (n_features,))
    _check_attributes(fitted, expected)
    for name, kind in {"ladder_positions_": int, "training_history_": list}.items():
        items = fitted[name]
        fits = len(items) == n_stages and all(type(item) is kind for item in items)
        _require(fits, f"its attribute {name!r} does not fit.")
    ladder = check_ladder(fitted["ladder_"], type(estimator).__name__)
    fits = all(0 <= position < len(ladder) for position in fitted["ladder_positions_"])
    _require(fits, "a student is of no class of its ladder.")
    if is_classifier(estimator):
        classes = fitted["classes_"]
        in_order = np.array_equal(np.unique(classes), classes)
        _require(in_order, "its classes are not in order.")
    else:
        single = n_outputs == 1 or not fitted["single_output_"]
        _require(single, "it has more than a single output.")
    vars(estimator).update(
        fitted,
        ensemble_=ensemble,
        input_shape_=ensemble.input_shape,
        n_estimators_=n_stages,
        n_features_in_=n_features,
    )
    estimator._n_stages_used()  # whether the parameter fits


def _set_exits(estimator, fitted):
    """Give an EarlyExitClassifier its fitted attributes."""
    inner = fitted["estimator_"]
    final = final_estimator(inner)
    thresholds = np.asarray(fitted["thresholds_"])
    n_stages = len(thresholds) + 1
    _require(
        type(final) is BDistilClassifier and n_stages <= len(final),
        "its stages are not those of its estimator.",
    )
    n_points = len(fitted["path_"].costs)
    points = ("f", (n_points,))
    expected = {
        "estimator_": object,
        "rule_": object,
        "thresholds_": ("f", (n_stages - 1,)),
        "temperatures_": ("f", (n_stages,)),
        "calibration_errors_": [type(None), ("f", (2, n_stages))],
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
    _check_attributes(fitted, expected)
    _require(0 <= fitted["best_index_"] < n_points, "its best index is out of range.")
    _require(not np.isnan(thresholds).any(), "a threshold is no number.")
    _require_known("rule", fitted["rule_"], RULES)
    _require((fitted["temperatures_"] > 0).all(), "a temperature is not positive.")
    vars(estimator).update(fitted, classes_=inner.classes_)
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(inner, name):
            setattr(estimator, name, getattr(inner, name))
    estimator._remember_fit()


def _check_attributes(found, expected):
    odd = found.keys() ^ expected.keys()
    _require(not odd, f"it lacks, or should not have, the attributes {sorted(odd)}.")
    for name, value in found.items():
        _require(_fits(value, expected[name]), f"its attribute {name!r} does not fit.")


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
    return isinstance(value, expected)
