"""Private names of scikit-learn are imported in one module."""

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer

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


def test_compatibility_module_imports_private_or_new_names_only():
    new = {"sklearn.callback.CallbackSupportMixin", "sklearn.callback.ProgressBar"}
    assert imported_from(COMPAT, "sklearn") == private_names(COMPAT) | new


def test_stand_ins_for_callbacks_do_nothing(monkeypatch):
    # What an older scikit-learn says.
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    spec = importlib.util.spec_from_file_location("compat_without_callbacks", COMPAT)
    old = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(old)

    estimator = old.CallbackSupportMixin()
    assert not hasattr(estimator, "set_callbacks")
    task = estimator._init_callback_context(max_subtasks=1)
    inner = task.subcontext(task_name="round").call_on_fit_task_begin(estimator=None)
    with inner.propagate_callback_context(None):
        assert inner.call_on_fit_task_end(estimator=None) is False
    assert vars(estimator) == {}
    assert not isinstance(task, old.ProgressBar)
    fold = old._fit_and_score(
        LogisticRegression(),
        np.array([[0.0], [1.0]] * 2),
        [0, 1] * 2,
        scorer=get_scorer("accuracy"),
        train=[0, 1],
        test=[2, 3],
        verbose=0,
        parameters=None,
        fit_params=None,
        score_params=None,
        caller=None,
        callback_ctx=task,
    )
    assert fold["test_scores"] == 1
