"""Data flows one way: which module of the package may import which."""

import ast
from pathlib import Path

import pytest

import skbdistil

ROOT = Path(skbdistil.__file__).parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "__init__")

# What each module may import from the package.
LAYERS = {
    "exceptions": set(),
    "_random": set(),
    "_game": set(),
    "_exit_rules": set(),
    "_repr_html": set(),
    "datasets": set(),
    "metrics": set(),
    "students": set(),
    "objectives": set(),
    "ensemble": {"students"},
    "costs": {"_threads"},
    "teachers": {"costs", "exceptions"},
    "stages": {"costs", "metrics"},
    "_training": {"_random", "objectives", "exceptions"},
    "_search": {
        "_game",
        "_random",  # for the seed of each attempt
        "_training",
        "ensemble",
        "exceptions",
        "objectives",  # for the loss that the students minimise
        "students",
    },
    "_bdistil": {
        "_exit_rules",
        "_game",
        "_random",
        "_repr_html",
        "_search",
        "_training",
        "costs",
        "datasets",
        "ensemble",
        "exceptions",
        "metrics",
        "objectives",
        "stages",
        "students",
        "teachers",
    },
    "_exit_runs": {"_exit_rules"},
    "_exit_calibration": {"_exit_rules"},
    "early_exit": {
        "_exit_calibration",
        "_exit_rules",
        "_exit_runs",
        "exceptions",
        "stages",
    },
    "model_selection": {"metrics", "stages"},
    "inspection": {"metrics", "stages"},
    "_saved_format": {
        "_bdistil",
        "_exit_calibration",  # the records that are fitted attributes: this one,
        "_game",  # this one
        "_optional",
        "_untrusted",
        "costs",  # and two here
        "early_exit",
        "ensemble",
        "objectives",
        "students",
    },
    "_saved_writer": {"_saved_format", "_untrusted", "early_exit"},
    "persistence": {
        "_bdistil",
        "_exit_calibration",
        "_exit_rules",
        "_files",
        "_game",
        "_saved_format",
        "_saved_writer",
        "_training",  # whether a device can be used here
        "_untrusted",
        "costs",
        "early_exit",
        "ensemble",
        "exceptions",
        "stages",
        "students",
    },
    "_files": set(),
    "_optional": set(),
    "_threads": set(),
    "_untrusted": {"exceptions"},
    "export": {"_files", "_optional", "runtime", "stages"},
    "precision": {"_files", "_optional", "runtime"},
    "runtime": {
        "_exit_rules",
        "_exit_runs",
        "_optional",
        "_threads",
        "_untrusted",
        "exceptions",
    },
}

# These run where torch, skorch and scikit-learn may be missing.
LIGHT = [
    "_exit_rules",
    "_exit_runs",
    "_files",
    "_game",
    "_optional",
    "_threads",
    "_untrusted",
    "exceptions",
    "metrics",
    "precision",
    "runtime",
]

# _training trains with it, teachers recognises its nets, _bdistil checks `net`.
MAY_IMPORT_SKORCH = {"_bdistil", "_training", "teachers"}


def imported_names(module):
    """Dotted names of everything that a module imports, wherever in its text."""
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def third_parties(module):
    return {name.split(".")[0] for name in imported_names(module)}


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers(module):
    assert module in LAYERS, f"add {module} to the table of layers"
    names = {name for name in imported_names(module) if name.startswith("skbdistil")}
    # A bare "import skbdistil" would reach every module unseen.
    assert "skbdistil" not in names
    edges = {name.split(".")[1] for name in names}
    assert edges <= LAYERS[module]


def test_layers_have_no_cycle():
    done = set()
    while len(done) < len(LAYERS):
        ready = {name for name, below in LAYERS.items() if below <= done}
        assert ready > done, f"cycle among {sorted(LAYERS.keys() - done)}"
        done = ready


@pytest.mark.parametrize("module", sorted(set(LIGHT) & set(MODULES)))
def test_light_modules_need_no_framework(module):
    assert not third_parties(module) & {"torch", "skorch", "sklearn"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - MAY_IMPORT_SKORCH))
def test_skorch_stays_in_its_place(module):
    assert "skorch" not in third_parties(module)
