"""From a fitted estimator to the parts of a saved file."""

import copy
import math
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Real

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from skbdistil._saved_format import (
    CALIBRATED,
    DISTILLED,
    ESTIMATORS,
    NOT_SAVED,
    PARTS,
    RECORDS,
    forget_caches,
    import_skops,
    is_part,
    is_plain_key,
)
from skbdistil._untrusted import ITEM_TYPES
from skbdistil.augmentation import Munge, Spunge
from skbdistil.cascade import CascadeClassifier

__all__ = ["Writer"]

# Fitted attributes that follow from others.
_DERIVED = {"ensemble_", "input_shape_", "n_estimators_"}
_DERIVED_OF_CALIBRATED = {"classes_", "feature_names_in_", "final_", "n_features_in_"}

_NO_SKOPS = (
    "cannot be saved. Torch modules cannot, since their code is the caller's, nor can "
    "what is neither scikit-learn's nor defined at the top level of a module."
)


class Writer:
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
        if isinstance(value, dict) and all(is_plain_key(key) for key in value):
            return {key: self.node(item, what) for key, item in value.items()}
        if type(value) in RECORDS.values():
            return {"$record": [type(value).__name__, self.node(_fields(value), what)]}
        if isinstance(value, tuple):
            return {"$tuple": self.node(list(value), what)}
        if isinstance(value, np.ndarray) and value.dtype.kind in ITEM_TYPES:
            dtype = value.dtype.newbyteorder("=").str
            items = self.node(value.ravel().tolist(), what)
            return {"$array": [dtype, list(value.shape), items]}
        if isinstance(value, partial):
            call = [value.func, list(value.args), value.keywords]
            return {"$partial": self.node(call, what)}
        if isinstance(value, torch.device):
            return str(value)
        if type(value) in ESTIMATORS.values():
            return {"$estimator": self._estimator(value)}
        if is_part(value):
            return {"$part": self._name(value, what)}
        if isinstance(value, CascadeClassifier):
            raise TypeError(
                f"{type(value).__name__} cannot be saved, since its members may be any "
                "classifiers. Pickle it, as with joblib, or save its members and put "
                "them into a new one as FrozenEstimator(load(path))."
            )
        raise TypeError(f"{what} cannot be saved: it is or holds {value!r}.")

    def _name(self, part, what):
        if part in PARTS.values():
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
            if name not in NOT_SAVED and not isinstance(value, np.random.RandomState)
        }
        if cls in DISTILLED:
            teacher = params.pop("teacher")
            transform = params.pop("student_transform")
            for name in ("teacher_cv", "augment"):
                if not isinstance(params[name], Real | str | None | Munge | Spunge):
                    del params[name]
            if isinstance(params.get("class_weight"), dict):
                # Labels need not be strings.
                params["class_weight"] = tuple(params["class_weight"].items())
            if hasattr(estimator, "ensemble_"):
                node["ensemble"] = self._ensemble(estimator)
                derived = _DERIVED
                if estimator.student_transform_ is None:
                    derived = _DERIVED | {"n_features_in_"}
                node["fitted"] = self._fitted(estimator, derived)
        elif cls in CALIBRATED:
            if not isinstance(params.get("cv", 0), Real):
                del params["cv"]
            if hasattr(estimator, "estimator_"):
                # What is loaded counts as calibrated.
                estimator._calibrated()
                if params["estimator"] is estimator.estimator_:
                    del params["estimator"]
                node["fitted"] = self._fitted(estimator, _DERIVED_OF_CALIBRATED)
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
        if cls in DISTILLED:
            node["params"]["teacher"] = self._teacher(teacher, cls.__name__)
            if node["params"]["teacher"] == "precomputed":
                # There is no one to ask out of fold.
                node["params"].pop("teacher_cv", None)
            node["params"]["student_transform"] = self._transform(transform)
        return node

    def _fitted(self, estimator, derived):
        return {
            name: (
                self._transform(value)
                if name == "student_transform_"
                else self.node(value, f"The attribute {name!r}")
            )
            for name, value in vars(estimator).items()
            if name.endswith("_") and name not in derived
        }

    def _transform(self, transform):
        if transform is None:
            return None
        return self._skops(transform, "The 'student_transform'")

    def _teacher(self, teacher, estimator_name):
        if teacher is None or isinstance(teacher, str):
            return teacher
        if not self.include_teacher:
            return "precomputed"
        return self._skops(teacher, f"The parameter 'teacher' of {estimator_name}")

    def _skops(self, value, what):
        skops = import_skops()
        try:
            value = copy.deepcopy(value)
            forget_caches(value)
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
            "n_features": [student.n_features for student in ensemble.students],
        }


def _fields(record):
    if is_dataclass(record):
        return {field.name: getattr(record, field.name) for field in fields(record)}
    return record._asdict()
