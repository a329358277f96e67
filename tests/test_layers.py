"""Data flows one way: which module of the package may import which."""

import ast
from pathlib import Path

import pytest

import skbdistil

ROOT = Path(skbdistil.__file__).parent


def _module_name(path):
    """Dotted name within the package; a package goes by the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {_module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
del PATHS[""]  # it imports its modules lazily

# What each module imports from the package, no more and no less.
LAYERS = {
    "_boosting": set(),
    "_boosting._combination": set(),
    "_boosting._random": set(),
    "_boosting._ranks": set(),
    "_boosting._residuals": set(),
    "_boosting._shared_norm": set(),
    "_exit_rules": set(),
    "_files": set(),
    "_module_hooks": set(),
    "_optional": set(),
    "_protocol": set(),
    "_seeding": set(),
    "_sklearn_compat": set(),
    "_threads": set(),
    "exceptions": set(),
    "metrics": set(),
    "students": set(),
    "_arrays": {"_sklearn_compat"},
    "_boosting._game": {"_boosting._ranks"},
    "_boosting._group": {"_boosting._ranks"},
    "_boosting._loop": {
        "_boosting._combination",
        "_boosting._random",
        "_boosting._ranks",
        "_seeding",
        "exceptions",
    },
    "_boosting._progress": {"_sklearn_compat"},
    "_conformal": {"exceptions"},
    "_decoding": {"_exit_rules"},
    "_exit_calibration": {"_exit_rules"},
    "_exit_runs": {"_exit_rules"},
    "_label_scores": {"exceptions"},
    "_preprocessing": {"_optional"},
    "_repr_html": {"_sklearn_compat"},
    "_untrusted": {"exceptions"},
    "_warm_start": {"_sklearn_compat"},
    "datasets": {"_sklearn_compat"},
    "ensemble": {"_sklearn_compat", "students"},
    "latency": {"_sklearn_compat", "_threads"},
    "monitoring": {"exceptions"},
    "parallel": {"_boosting._shared_norm"},
    "_boosting._checkpoint": {"_arrays", "_boosting._ranks", "_files", "exceptions"},
    "_boosting._rows": {"_arrays", "_boosting._ranks"},
    "_dataset_rows": {"_arrays", "_seeding", "datasets"},
    "_deferral": {"exceptions", "monitoring"},
    "_halving": {"_warm_start"},
    "_perceptrons": {"_module_hooks", "ensemble", "students"},
    "_recurrents": {"_module_hooks", "ensemble", "students"},
    "augmentation": {"_arrays", "_sklearn_compat"},
    "costs": {"exceptions", "latency"},
    "objectives": {"_decoding", "_exit_calibration", "_sklearn_compat"},
    "stages": {"_protocol", "_sklearn_compat", "latency", "metrics"},
    "_boosting._idle": {"_arrays", "_boosting._rows"},
    "_boosting._scaling": {"_arrays", "_boosting._rows"},
    "_boosting._search": {"_boosting._random", "_seeding", "objectives"},
    "_boosting._training": {
        "_boosting._combination",
        "_boosting._ranks",
        "_boosting._rows",
        "_dataset_rows",
        "_seeding",
    },
    "_boosting._view_targets": {"_boosting._random", "_dataset_rows"},
    "_calibrated": {"_sklearn_compat", "stages"},
    "_forms": {"_perceptrons", "_recurrents"},
    "_prefixes": {"costs", "ensemble", "students"},
    "inspection._shared": {"stages"},
    "model_selection": {
        "_dataset_rows",
        "_halving",
        "_sklearn_compat",
        "_warm_start",
        "metrics",
        "stages",
    },
    "runtime": {
        "_conformal",
        "_decoding",
        "_deferral",
        "_exit_rules",
        "_exit_runs",
        "_optional",
        "_threads",
        "_untrusted",
        "exceptions",
    },
    "teachers": {"_arrays", "_dataset_rows", "_sklearn_compat", "costs"},
    "_boosting._plan": {
        "_arrays",
        "_boosting._game",
        "_boosting._loop",
        "_boosting._ranks",
        "_boosting._residuals",
        "_boosting._rows",
        "_boosting._search",
        "_boosting._shared_norm",
        "_boosting._training",
        "_seeding",
        "costs",
        "ensemble",
        "objectives",
        "students",
    },
    "_boosting._update": {
        "_boosting._residuals",
        "_boosting._rows",
        "_boosting._training",
        "objectives",
    },
    "_exit_base": {
        "_boosting._scaling",
        "_calibrated",
        "_dataset_rows",
        "_exit_calibration",
        "_exit_runs",
        "_protocol",
        "_sklearn_compat",
        "exceptions",
        "stages",
    },
    "_student_rows": {
        "_arrays",
        "_boosting._scaling",
        "_dataset_rows",
        "_seeding",
        "_sklearn_compat",
    },
    "_teacher_scores": {
        "_arrays",
        "_boosting._rows",
        "_label_scores",
        "_seeding",
        "_sklearn_compat",
        "exceptions",
        "teachers",
    },
    "exported": {"_exit_rules", "_sklearn_compat", "costs", "runtime"},
    "inspection._accuracy_cost": {
        "_sklearn_compat",
        "inspection._shared",
        "metrics",
        "stages",
    },
    "inspection._convergence": {"_sklearn_compat", "inspection._shared", "stages"},
    "inspection._early_exit": {"_sklearn_compat", "inspection._shared", "stages"},
    "intervals": {
        "_calibrated",
        "_conformal",
        "_protocol",
        "_sklearn_compat",
        "stages",
    },
    "model_card": {
        "_arrays",
        "_protocol",
        "_repr_html",
        "metrics",
        "stages",
        "teachers",
    },
    "precision": {"_files", "_optional", "runtime"},
    "_teacher_targets": {
        "_decoding",
        "_sklearn_compat",
        "_teacher_scores",
        "exceptions",
        "teachers",
    },
    "cascade": {
        "_calibrated",
        "_deferral",
        "_exit_base",
        "_exit_calibration",
        "_exit_runs",
        "_protocol",
        "_sklearn_compat",
        "exceptions",
        "stages",
    },
    "early_exit": {
        "_calibrated",
        "_deferral",
        "_exit_base",
        "_exit_calibration",
        "_exit_rules",
        "_sklearn_compat",
    },
    "inspection": {
        "inspection._accuracy_cost",
        "inspection._convergence",
        "inspection._early_exit",
    },
    "_bdistil": {
        "_arrays",
        "_boosting._checkpoint",
        "_boosting._group",
        "_boosting._idle",
        "_boosting._loop",
        "_boosting._plan",
        "_boosting._progress",
        "_boosting._random",
        "_boosting._ranks",
        "_boosting._rows",
        "_boosting._scaling",
        "_boosting._training",
        "_boosting._update",
        "_boosting._view_targets",
        "_dataset_rows",
        "_decoding",
        "_exit_rules",
        "_forms",
        "_protocol",
        "_repr_html",
        "_seeding",
        "_sklearn_compat",
        "_student_rows",
        "_teacher_scores",
        "_teacher_targets",
        "_warm_start",
        "augmentation",
        "costs",
        "ensemble",
        "exceptions",
        "metrics",
        "objectives",
        "stages",
    },
    "precomputed": {
        "_arrays",
        "_files",
        "_sklearn_compat",
        "_teacher_scores",
        "_teacher_targets",
        "teachers",
    },
    "distillation": {
        "_arrays",
        "_bdistil",
        "_boosting._plan",
        "_boosting._random",
        "_sklearn_compat",
        "_teacher_scores",
        "_teacher_targets",
        "costs",
        "ensemble",
        "exceptions",
        "inspection",
        "latency",
        "metrics",
        "objectives",
        "stages",
        "students",
    },
    "early_time": {
        "_bdistil",
        "_boosting._rows",
        "_dataset_rows",
        "_exit_base",
        "_exit_rules",
        "_exit_runs",
        "_prefixes",
        "_seeding",
        "early_exit",
        "ensemble",
        "metrics",
        "stages",
        "students",
    },
    "online": {
        "_arrays",
        "_bdistil",
        "_boosting._random",
        "_calibrated",
        "_protocol",
        "_sklearn_compat",
        "_teacher_scores",
        "_teacher_targets",
        "exceptions",
    },
    "_saved_format": {
        "_bdistil",
        "_boosting._game",
        "_exit_calibration",
        "_optional",
        "_untrusted",
        "augmentation",
        "costs",
        "early_exit",
        "early_time",
        "ensemble",
        "intervals",
        "objectives",
        "students",
    },
    "export": {
        "_files",
        "_optional",
        "_preprocessing",
        "_protocol",
        "early_time",
        "exported",
        "model_card",
        "runtime",
        "stages",
    },
    "_saved_writer": {"_saved_format", "_untrusted", "augmentation", "cascade"},
    "persistence": {
        "_bdistil",
        "_boosting._game",
        "_boosting._rows",
        "_calibrated",
        "_exit_calibration",
        "_exit_rules",
        "_files",
        "_prefixes",
        "_saved_format",
        "_saved_writer",
        "_sklearn_compat",
        "_untrusted",
        "cascade",
        "costs",
        "early_exit",
        "early_time",
        "ensemble",
        "exceptions",
        "objectives",
        "stages",
        "students",
    },
}

# These run where torch, skorch and scikit-learn may be missing.
LIGHT = [
    "_boosting",
    "_boosting._game",
    "_boosting._residuals",
    "_exit_rules",
    "_exit_runs",
    "_files",
    "_optional",
    "_threads",
    "exceptions",
    "metrics",
    "precision",
    "runtime",
]

# _training trains with it, _teacher_scores recognises its nets, parallel has one.
MAY_IMPORT_SKORCH = {"_boosting._training", "_teacher_scores", "parallel"}


def imported_names(module):
    """Dotted names of everything that a module imports, wherever in its text."""
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(module):
    """Modules of the package that a module imports."""
    names = {name for name in imported_names(module) if name.startswith("skbdistil")}
    # A bare "import skbdistil" would reach every module unseen.
    assert "skbdistil" not in names
    # A string, which is in no module.
    names.discard("skbdistil.__version__")
    edges = set()
    for name in names:
        parts = name.split(".")[1:]
        # The longest prefix that is a module; what is behind it is in it.
        while ".".join(parts) not in PATHS:
            parts.pop()
        edges.add(".".join(parts))
    return edges


def third_parties(module):
    return {name.split(".")[0] for name in imported_names(module)}


def test_every_module_has_a_layer():
    assert LAYERS.keys() == PATHS.keys()


@pytest.mark.parametrize("module", PATHS)
def test_imports_of_a_module_are_those_of_the_table(module):
    assert imported_modules(module) == LAYERS[module]


def test_layers_have_no_cycle():
    done = set()
    while len(done) < len(LAYERS):
        ready = {name for name, below in LAYERS.items() if below <= done}
        assert ready > done, f"cycle among {sorted(LAYERS.keys() - done)}"
        done = ready


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_need_no_framework(module):
    assert not third_parties(module) & {"torch", "skorch", "sklearn"}


@pytest.mark.parametrize("module", sorted(PATHS.keys() - MAY_IMPORT_SKORCH))
def test_skorch_stays_in_its_place(module):
    assert "skorch" not in third_parties(module)
