"""Warnings of the package, and the page that explains them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = " ".join(
    (ROOT / "docs" / "troubleshooting.rst").read_text(encoding="utf-8").split()
)


def first_words(message):
    """First few words of a message in the source that do not vary; None without any."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    for part in parts:
        # What is left between two values may be a word or two.
        if isinstance(part, ast.Constant) and len(words := part.value.split()) > 2:
            return " ".join(words[:5])
    return None


def warnings_of(path):
    """Calls that make or issue a warning: line and first words."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        message = node.args[0]
        is_text = isinstance(message, ast.JoinedStr) or (
            isinstance(message, ast.Constant) and isinstance(message.value, str)
        )
        if is_text and (name == "warn" or name.endswith("Warning")):
            yield node.lineno, first_words(message)


FOUND = [
    pytest.param(words, id=f"{path.stem}:{line}")
    for path in sorted((ROOT / "skbdistil").rglob("*.py"))
    for line, words in warnings_of(path)
    if words is not None
]


def test_warnings_are_found_in_the_source():
    assert len(FOUND) > 20


@pytest.mark.parametrize("words", FOUND)
def test_warning_has_an_entry_in_troubleshooting(words):
    assert words in PAGE
