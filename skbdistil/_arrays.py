"""What users pass as numbers, in a form that NumPy and torch can use."""

import warnings
from itertools import chain

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_array

from skbdistil._sklearn_compat import _safe_indexing

# Kept as they come, and converted batch by batch.
INPUT_DTYPES = [np.float32, np.float64, np.float16, np.uint8]
INPUT_DTYPES += [np.int8, np.int16, np.int32, np.int64]
READY_DTYPES = frozenset(map(np.dtype, INPUT_DTYPES))

# Bytes of an array that are hashed at once.
_DIGEST_BYTES = 2**26


def as_array(array, *, input_name="X", estimator_name=None):
    """Anything that holds numbers as a NumPy array.

    Arrays and memory maps are not copied and keep their dtype.

    Parameters
    ----------
    array : array-like, frame or torch.Tensor
        A tensor may be on any device, require a gradient, or have a dtype that NumPy
        lacks, such as bfloat16, which becomes float32.

    input_name : str, default="X"
        Name of the array, for messages.

    estimator_name : str or None, default=None
        Name of the estimator, for messages.

    Returns
    -------
    array : ndarray or LazyRows of shape (n_samples, ...)
        May hold values that are not finite. Lazy rows are returned as they are.

    Raises
    ------
    ValueError
        If these are no numbers.
    """
    if isinstance(array, LazyRows):
        return array
    return check_array(
        from_torch(array),
        ensure_2d=False,
        allow_nd=True,
        ensure_all_finite=False,
        input_name=input_name,
        estimator=estimator_name,
    )


class LazyRows:
    """Rows that become an array when they are indexed, as arrays are.

    A subclass has `shape`, `dtype`, `__len__`, `__getitem__`, which takes a slice, a
    list, an array or a tensor and gives an ndarray, and `take`, which gives some rows
    in the same form.
    """

    # Whether training sees other rows than those that are indexed, and whether the
    # teacher is asked about these.
    changes_rows = asks_about_views = False

    @property
    def ndim(self):
        """Number of axes, with that of the rows."""
        return len(self.shape)

    def chunks(self, n_rows):
        """Yield all rows in order: a slice, and an array of these rows.

        Parameters
        ----------
        n_rows : int
            Rows of a chunk.
        """
        return _chunks(self, n_rows)


class SparseRows(LazyRows):
    """Rows of a sparse matrix, which become dense when some of them are taken.

    Parameters
    ----------
    matrix : sparse matrix or array of shape (n_samples, n_features)
        In CSR format.
    """

    def __init__(self, matrix):
        self.matrix = matrix

    @property
    def shape(self):
        return self.matrix.shape

    @property
    def dtype(self):
        return self.matrix.dtype

    def __len__(self):
        return self.matrix.shape[0]

    def __getitem__(self, index):
        if isinstance(index, torch.Tensor):
            index = index.numpy()
        return self.matrix[index].toarray()

    def take(self, rows):
        """Some rows, in the same form."""
        return SparseRows(self.matrix[rows])


def row_chunks(x, n_rows):
    """Yield rows in order, some at a time: a slice, and these rows.

    Parameters
    ----------
    x : ndarray, torch.Tensor or LazyRows
    n_rows : int
        Rows of a chunk.
    """
    return x.chunks(n_rows) if isinstance(x, LazyRows) else _chunks(x, n_rows)


def _chunks(x, n_rows):
    for start in range(0, len(x), n_rows):
        rows = slice(start, min(start + n_rows, len(x)))
        yield rows, x[rows]


def update_digest(digest, array):
    """Add the numbers of an array, however large, to a digest, row after row.

    Parameters
    ----------
    digest : hash object of hashlib
    array : ndarray or LazyRows
    """
    n_rows = max(1, _DIGEST_BYTES // max(1, array[:1].nbytes))
    for _, rows in row_chunks(array, n_rows):
        digest.update(np.ascontiguousarray(rows))


def take_rows(x, rows):
    """Some rows of an array or of :class:`LazyRows`, in the same form.

    Parameters
    ----------
    x : ndarray or LazyRows
    rows : ndarray

    Returns
    -------
    x : ndarray or LazyRows
    """
    return x.take(rows) if isinstance(x, LazyRows) else x[rows]


def take_samples(X, rows):
    """Some rows of what a user passed, or of :class:`LazyRows`, in the same form.

    Parameters
    ----------
    X : array-like or LazyRows
    rows : ndarray

    Returns
    -------
    X : array-like or LazyRows
    """
    return X.take(rows) if isinstance(X, LazyRows) else _safe_indexing(X, rows)


def stack_rows(parts):
    """Rows of several arrays, one after the other; sparse where any of them is.

    Parameters
    ----------
    parts : list of ndarray or SparseRows

    Returns
    -------
    x : ndarray or SparseRows
    """
    if len(parts) == 1:
        return parts[0]
    if not any(isinstance(part, SparseRows) for part in parts):
        return np.concatenate(parts)
    matrices = [part.matrix if isinstance(part, SparseRows) else part for part in parts]
    return SparseRows(sparse.vstack(matrices, format="csr"))


def in_form_of(like, x):
    """Rows, sparse or dense as others are, and in their dtype if that changes none.

    Parameters
    ----------
    like, x : ndarray or SparseRows

    Returns
    -------
    x : ndarray or SparseRows
    """
    if isinstance(x, SparseRows) and not isinstance(like, SparseRows):
        x = x[:]
    elif isinstance(like, SparseRows) and not isinstance(x, SparseRows):
        x = SparseRows(sparse.csr_array(x))
    if x.dtype == like.dtype:
        return x
    values = x.matrix if isinstance(x, SparseRows) else x
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(like.dtype)
    if (cast != values).sum():
        return x
    return SparseRows(cast) if isinstance(x, SparseRows) else cast


def from_torch(array):
    """A tensor as a NumPy array, in float32 where NumPy lacks its dtype.

    Parameters
    ----------
    array : object

    Returns
    -------
    array : object
        What is not a tensor is returned as it is.
    """
    if not isinstance(array, torch.Tensor):
        return array
    known = (torch.float16, torch.float32, torch.float64)
    if array.is_floating_point() and array.dtype not in known:
        array = array.float()
    return array.numpy(force=True)


def native_dtype(dtype):
    """Dtype in which torch can hold the numbers of a NumPy dtype.

    Parameters
    ----------
    dtype : numpy.dtype

    Returns
    -------
    dtype : numpy.dtype
        In the byte order of the machine; float64 for long double.
    """
    # Not by comparison: where long double is no longer than double, they are equal,
    # and torch refuses it all the same.
    return np.dtype(np.float64) if dtype.char == "g" else dtype.newbyteorder("=")


def as_tensor(array):
    """View an array as a tensor, or copy it where torch cannot.

    What torch refuses is copied to a contiguous array of :func:`native_dtype`:
    negative strides, a foreign byte order, long double. Memory that is read-only is
    viewed without a warning, so the tensor must not be written to.

    Parameters
    ----------
    array : array-like or torch.Tensor
        A tensor is returned as it is.

    Returns
    -------
    tensor : torch.Tensor
    """
    if isinstance(array, torch.Tensor):
        return array
    array = np.asarray(array)
    dtype = native_dtype(array.dtype)
    # An axis of length 1 may have a negative stride in an array that NumPy calls
    # contiguous, and a field of a record may have one that is no multiple of its size.
    strided = any(step < 0 or step % array.itemsize for step in array.strides)
    if strided or dtype.char != array.dtype.char or not array.dtype.isnative:
        array = np.array(array, dtype=dtype, order="C")
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)


def floating_dtype(module):
    """Dtype of the floating-point parameters of a module, or else its buffers.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    dtype : torch.dtype
        torch's default where the module has neither.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def home_device(module):
    """Device of a module's first parameter or buffer; the CPU where it has neither.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    device : torch.device
    """
    for tensor in chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")
