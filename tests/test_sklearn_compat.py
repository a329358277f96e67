"""Private names of scikit-learn are imported in one module."""

import ast
from pathlib import Path

import pytest

import skbdistil
from skbdistil import _sklearn_compat

ROOT = Path(skbdistil.__file__).parent
COMPAT = ROOT / "_sklearn_compat.py"
MODULES = sorted(set(ROOT.rglob("*.py")) - {COMPAT})


def imported_from(path, package):
    """Dotted names of what a module imports from a package, wherever in its text."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if f"{name}.".startswith(f"{package}.")}


def private_names(path):
    names = imported_from(path, "sklearn")
    return {name for name in names if "._" in name}


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_private_names_are_imported_in_the_compatibility_module_only(path):
    assert not private_names(path)


def test_compatibility_module_has_the_private_names_in_use_and_no_others():
    used = set()
    for path in MODULES:
        used |= imported_from(path, "skbdistil._sklearn_compat") | private_names(path)
    assert {name.rpartition(".")[2] for name in used} == set(_sklearn_compat.__all__)


def test_compatibility_module_imports_private_names_only():
    assert imported_from(COMPAT, "sklearn") == private_names(COMPAT)
