"""Progressive ensemble distillation for scikit-learn.

Public names are imported when they are first used, so that ``import skbdistil`` is
fast and needs neither torch nor scikit-learn.
"""

from importlib import import_module

__version__ = "0.2.0.dev0"

_MODULE_OF = {
    "BDistilClassifier": "skbdistil._bdistil",
    "BDistilRegressor": "skbdistil._bdistil",
    "DistillationObjective": "skbdistil.objectives",
    "TorchTeacher": "skbdistil.teachers",
    "distil": "skbdistil.distillation",
}
_SUBMODULES = [
    "augmentation",
    "cascade",
    "costs",
    "datasets",
    "distillation",
    "early_exit",
    "early_time",
    "ensemble",
    "exceptions",
    "export",
    "exported",
    "inspection",
    "intervals",
    "latency",
    "metrics",
    "model_card",
    "model_selection",
    "monitoring",
    "objectives",
    "online",
    "parallel",
    "persistence",
    "precomputed",
    "precision",
    "runtime",
    "stages",
    "students",
    "teachers",
]

__all__ = [
    *_MODULE_OF,
    *_SUBMODULES,
]


def __getattr__(name):
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__():
    return sorted({*globals(), *__all__})
