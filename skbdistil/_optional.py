"""Packages of the extra ``deploy``, imported where they are needed."""

from importlib import import_module


def required(needed_by, name):
    """A module, or an error that says who needs it and how to install its package."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{needed_by} needs {package}, which is not installed. To install it: "
            'pip install "skbdistil[deploy]"'
        ) from error
