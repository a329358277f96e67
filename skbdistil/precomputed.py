"""Scores of a trained teacher, asked once for many fits."""

import warnings
from contextlib import nullcontext
from numbers import Integral

import numpy as np
from scipy import sparse
from sklearn.utils import gen_batches
from torch import nn

from skbdistil._arrays import from_torch
from skbdistil._files import new_file
from skbdistil._sklearn_compat import (
    Interval,
    _num_samples,
    _safe_indexing,
    validate_params,
)
from skbdistil._teacher_scores import teacher_response
from skbdistil._teacher_targets import comes_trained
from skbdistil.teachers import TorchTeacher

__all__ = ["precompute_scores"]


@validate_params(
    {
        "teacher": "no_validation",
        "X": "no_validation",
        "path": "no_validation",
        "regression": ["boolean"],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    },
    prefer_skip_nested_validation=True,
)
def precompute_scores(teacher, X, path=None, *, regression=False, batch_size=4096):
    """Ask a trained teacher about rows, once, for ``teacher="precomputed"``.

    A fit that gets these scores gives the students that it would give with the teacher
    itself. In a search, each task would carry the teacher, and ask it anew; these
    scores are cut along with the rows.

    Not for teachers of several labels per row, whose log-odds are passed as
    `teacher_scores` as they are.

    Parameters
    ----------
    teacher : FrozenEstimator, TorchTeacher or torch.nn.Module
        A teacher that comes trained.

    X : array-like or sparse matrix of shape (n_samples, ...)
        Rows as the teacher takes them.

    path : str or path-like, default=None
        Name of a file with the extension ``.npy`` to write the scores to, batch by
        batch; one that is there is replaced when all scores are known. None keeps them
        in memory.

    regression : bool, default=False
        Whether the teacher predicts values.

    batch_size : int, default=4096
        Rows that the teacher is asked about at once.

    Returns
    -------
    scores : ndarray or memmap of shape (n_samples, n_outputs)
        Logits in float32, whose columns stand for the sorted labels of the teacher; or
        values in float64. With `path`, a read-only map of the file.

    Raises
    ------
    ValueError
        If the teacher is not trained, or gives what no fit would take. No file is
        written then.

    Warns
    -----
    DoubtfulTeacherWarning
        If what should be logits looks like probabilities.

    See Also
    --------
    skbdistil.teachers.scores_from_labels : Scores of a teacher that only says labels.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.precomputed import precompute_scores
    >>> X, y = load_iris(return_X_y=True)
    >>> forest = RandomForestClassifier(random_state=0).fit(X[::2], y[::2])
    >>> scores = precompute_scores(FrozenEstimator(forest), X)
    >>> scores.shape
    (150, 3)
    >>> clf = BDistilClassifier(
    ...     "precomputed", n_estimators=2, max_epochs=20, random_state=0
    ... ).fit(X, y, teacher_scores=scores)
    >>> len(clf)
    2
    """
    if isinstance(teacher, str) or not comes_trained(teacher):
        raise ValueError(
            "The 'teacher' parameter of precompute_scores must come trained: a "
            "FrozenEstimator, a TorchTeacher or a torch.nn.Module. Got "
            f"{teacher!r} instead."
        )
    X = from_torch(X)
    X = X.tocsr() if sparse.issparse(X) else X
    if not regression:
        teacher = _with_classes(teacher, X)
    n_samples = _num_samples(X)
    if n_samples == 0:
        raise ValueError("precompute_scores needs at least one row. Got X without any.")
    scores = None
    with nullcontext() if path is None else new_file(path) as file:
        for rows in gen_batches(n_samples, batch_size):
            response = teacher_response(
                teacher,
                _safe_indexing(X, rows),
                regression=regression,
                dtype=np.float64 if regression else np.float32,
                estimator_name="precompute_scores",
            )
            if scores is None:
                if response.warning is not None:
                    warnings.warn(response.warning, stacklevel=2)
                scores = _empty(file, (n_samples, *response.scores.shape[1:]), response)
            columns = response.scores
            if response.classes is not None:
                columns = columns[:, np.argsort(response.classes)]
            scores[rows] = columns
        if file is not None:
            scores.flush()
    return scores if path is None else np.load(path, mmap_mode="r")


def _with_classes(teacher, X):
    """A torch teacher whose columns are numbered, unless it has labels for them."""
    if isinstance(teacher, nn.Module):
        teacher = TorchTeacher(teacher)
    if not isinstance(teacher, TorchTeacher) or teacher.classes is not None:
        return teacher
    n_columns = teacher.decision_function(_safe_indexing(X, slice(0, 1))).shape[1]
    params = teacher.get_params(deep=False)
    return TorchTeacher(**{**params, "classes": np.arange(max(n_columns, 2))})


def _empty(file, shape, response):
    dtype = response.scores.dtype
    if file is None:
        return np.empty(shape, dtype)
    # Opened here, since it would add an extension to the name.
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
