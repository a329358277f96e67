"""Reading what somebody else may have written, within bounds. NumPy only.

A file that does not keep to them raises :class:`~skbdistil.exceptions.InvalidFileError`
with the reason; whoever reads it adds its name.
"""

import json
import math
import os
import re
import stat

import numpy as np

from skbdistil.exceptions import InvalidFileError

__all__ = [
    "ITEM_TYPES",
    "ArrayReader",
    "brief",
    "check_row_shape",
    "parse_json",
    "read_file",
    "require",
]

# Values in a JSON text, and how deep they are inside each other.
_MAX_VALUES = 2**22
_MAX_DEPTH = 100

# Bytes of all arrays that JSON describes, together.
_MAX_ARRAY_BYTES = 2**26

# Numbers and axes of a row of X.
_MAX_ROW = 2**28
_MAX_AXES = 32

_MAX_REASON = 1000

_DTYPE = re.compile(r"[<>|][biufU][0-9]{1,9}|\|O")

#: Python types of the items of an array, by the kind of its dtype.
ITEM_TYPES = {
    "b": {bool},
    "i": {int},
    "u": {int},
    "f": {float, int},
    "U": {str},
    "O": {str, float, int, bool, type(None)},
}


def require(condition, reason):
    if not condition:
        raise InvalidFileError(reason)


def brief(reason):
    """A reason that is no longer than can be read."""
    return reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]} ..."


def read_file(path):
    """Content of a regular file: devices have no end, and pipes may have no writer."""
    with open(path, "rb", opener=_open_at_once) as file:
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        require(is_regular, "it is not a regular file.")
        return file.read()


def _open_at_once(path, flags):
    # Otherwise a pipe is waited for. Windows has none.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_json(content):
    """Value of a JSON text.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    value : object
        Of what JSON has, in moderation: no key twice in an object, no NaN or infinity,
        no int beyond 64 bits, not too many values and none too deep.
    """
    # Before anything is built: all but the first one follow a comma or open something.
    n_values = 1 + sum(content.count(mark) for mark in (b",", b"[", b"{"))
    require(n_values <= _MAX_VALUES, f"its JSON has more than {_MAX_VALUES} values.")
    try:
        value = json.loads(
            content.decode(),
            parse_int=_int,
            parse_float=_float,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
    except InvalidFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"it is not JSON: {error}") from error
    depth, level = 0, [value]
    while level:
        depth += 1
        require(depth <= _MAX_DEPTH, f"its JSON is more than {_MAX_DEPTH} levels deep.")
        level = [item for node in level for item in _items(node)]
    return value


def _items(node):
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _int(text):
    # Python takes its time to read long ones, and refuses still longer ones.
    value = int(text) if len(text) <= 20 else math.inf
    require(-(2**63) <= value < 2**64, "its JSON has an int beyond 64 bits.")
    return value


def _float(text):
    value = float(text)
    require(math.isfinite(value), "its JSON has a number beyond float64.")
    return value


def _no_constant(text):
    raise InvalidFileError(f"its JSON has {text}, which JSON does not know.")


def _object(pairs):
    value = dict(pairs)
    require(len(value) == len(pairs), "its JSON has a key twice in one object.")
    return value


class ArrayReader:
    """Builds the arrays that the JSON of a file describes.

    All arrays together are of a bounded size: one long string makes all items of its
    array long.
    """

    def __init__(self):
        self._n_bytes = 0

    def read(self, dtype, items):
        """An array of one axis.

        Parameters
        ----------
        dtype : str
            As ``ndarray.dtype.str``.
        items : list

        Returns
        -------
        array : ndarray of shape (len(items),)
        """
        known = _DTYPE.fullmatch(dtype)
        require(known, f"an array has the dtype {dtype!r}.")
        dtype = np.dtype(dtype)
        types = ITEM_TYPES[dtype.kind]
        fitting = all(type(item) in types for item in items)
        require(fitting, f"the items of an array are not of the type {dtype}.")
        self._n_bytes += len(items) * dtype.itemsize
        require(
            self._n_bytes <= _MAX_ARRAY_BYTES,
            f"its arrays take more than {_MAX_ARRAY_BYTES} bytes.",
        )
        return np.array(items, dtype=dtype)


def check_row_shape(shape):
    """Refuse a shape that no row of X has; its items are positive ints."""
    require(len(shape) <= _MAX_AXES, f"its rows have {len(shape)} axes.")
    size = math.prod(shape)
    require(size <= _MAX_ROW, f"its rows have {size} numbers, more than {_MAX_ROW}.")
