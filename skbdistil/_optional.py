"""Packages of the extra ``deploy``, imported where they are needed."""

from importlib import import_module


def required(owner, name):
    """A module that `owner` needs, or an error that says how to install its package."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{owner} needs {package}, which is not installed. To install it: "
            'pip install "skbdistil[deploy]"'
        ) from error
