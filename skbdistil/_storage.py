"""Arrays of all rows of a fit, in memory or in files, and work on them in pieces."""

import math
import mmap
import os
from tempfile import TemporaryFile

import numpy as np
import torch

__all__ = ["IN_MEMORY", "MAX_BYTES", "Storage", "row_pieces"]

#: Arrays of more bytes than this are files where there is a folder for them, and are
#: worked on in pieces of at most as many, so that no copy of all of them is needed.
MAX_BYTES = 2**24


class Storage:
    """Where a fit keeps arrays with as many rows as it has.

    Files have no name in the folder, or none that outlives them: each is removed with
    the last reference to its array, however the fit ends, and at the latest with the
    process. Several fits may share a folder.

    Parameters
    ----------
    folder : str, path-like or None, default=None
        Where arrays of more than `MAX_BYTES` are files. None keeps all in memory.

    estimator_name : str or None, default=None
        For messages.

    Raises
    ------
    ValueError
        If files cannot be made in the folder.
    """

    def __init__(self, folder=None, estimator_name=None):
        self._folder = folder
        self._name = estimator_name
        if folder is None:
            return
        try:
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"The 'temp_folder' parameter of {estimator_name} must be None or a "
                "folder that is there, and in which files can be made. Got "
                f"{folder!r}: {error.strerror}."
            ) from error

    def empty(self, shape, dtype):
        """An array to be filled.

        Parameters
        ----------
        shape : tuple of int
        dtype : dtype

        Returns
        -------
        array : ndarray

        Raises
        ------
        OSError
            If there is no space for it in the folder.
        """
        dtype = np.dtype(dtype)
        n_bytes = math.prod(shape) * dtype.itemsize
        if self._in_memory(n_bytes):
            return np.empty(shape, dtype)
        return np.frombuffer(self._mapped(n_bytes), dtype).reshape(shape)

    def empty_tensor(self, shape, dtype):
        """A tensor to be filled, on the CPU; see :meth:`empty`.

        Parameters
        ----------
        shape : tuple of int
        dtype : torch.dtype
            May be one that NumPy lacks.

        Returns
        -------
        tensor : torch.Tensor
        """
        n_bytes = math.prod(shape) * dtype.itemsize
        if self._in_memory(n_bytes):
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._mapped(n_bytes), dtype=dtype).reshape(shape)

    def map(self, function, *arrays):
        """What a function makes of rows, called with some of them at a time.

        Parameters
        ----------
        function : callable
            Takes arrays of rows, and makes an array with a row for each.
        *arrays : ndarray
            Of the same length.

        Returns
        -------
        result : ndarray
        """
        pieces = list(row_pieces(*arrays))
        if len(pieces) == 1:
            return function(*arrays)
        parts = (function(*(array[rows] for array in arrays)) for rows in pieces)
        return self.concatenate(parts, len(arrays[0]))

    def copy(self, array, dtype):
        """A C-contiguous copy, in a dtype.

        Parameters
        ----------
        array : ndarray
            Of one dimension at least.
        dtype : dtype

        Returns
        -------
        array : ndarray
        """
        result = self.empty(array.shape, dtype)
        for rows in row_pieces(array):
            result[rows] = array[rows]
        return result

    def take(self, array, rows):
        """A copy of some rows.

        Parameters
        ----------
        array : ndarray
        rows : ndarray of int

        Returns
        -------
        array : ndarray
        """
        result = self.empty((len(rows), *array.shape[1:]), array.dtype)
        for piece in row_pieces(result):
            result[piece] = array[rows[piece]]
        return result

    def concatenate(self, parts, n_rows):
        """Rows of several arrays, one after the other, of the dtype of the first.

        Parameters
        ----------
        parts : iterable of ndarray
            One at least. Each is read when those before it have been copied.
        n_rows : int
            Of all parts.

        Returns
        -------
        array : ndarray of shape (n_rows, ...)

        Raises
        ------
        ValueError
            If parts have rows of other shapes.
        """
        array, stop = None, 0
        for part in parts:
            if array is None:
                array = self.empty((n_rows, *part.shape[1:]), part.dtype)
            elif part.shape[1:] != array.shape[1:]:
                raise ValueError(
                    f"Some rows have the shape {array.shape[1:]}, and others "
                    f"{part.shape[1:]}."
                )
            start, stop = stop, stop + len(part)
            array[start:stop] = part
        return array

    def _in_memory(self, n_bytes):
        return self._folder is None or n_bytes <= MAX_BYTES

    def _mapped(self, n_bytes):
        """The memory of a new file."""
        try:
            with TemporaryFile(dir=self._folder) as file:
                _allocate(file, n_bytes)
                return mmap.mmap(file.fileno(), n_bytes)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}. {self._name} needs another "
                f"{n_bytes / 2**20:.0f} MB in its 'temp_folder', {self._folder!r}",
            ) from error


#: Keeps all in memory.
IN_MEMORY = Storage()


def row_pieces(*arrays):
    """Slices that cover all rows, none of which has more than `MAX_BYTES` of an array.

    Parameters
    ----------
    *arrays : ndarray
        Of the same length.

    Yields
    ------
    rows : slice
        A single one where all rows are few enough, also if there are none.
    """
    n_rows = len(arrays[0])
    widest = max(math.prod(array.shape[1:]) * array.itemsize for array in arrays)
    step = max(1, MAX_BYTES // max(1, widest))
    for start in range(0, max(1, n_rows), step):
        yield slice(start, min(start + step, n_rows))


def _allocate(file, n_bytes):
    """Have a file take up its space, so that a full disk is found now.

    Found when the memory is written to, it would end the process.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return
    zeros = bytes(min(n_bytes, MAX_BYTES))
    for start in range(0, n_bytes, len(zeros)):
        file.write(zeros[: n_bytes - start])
    file.flush()
