"""Teachers that scikit-learn has no class for: torch modules, and answers in labels."""

from collections.abc import Mapping
from contextlib import contextmanager
from numbers import Integral, Real

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator
from torch import nn

from skbdistil._arrays import (
    as_array,
    as_tensor,
    floating_dtype,
    home_device,
    native_dtype,
    take_rows,
)
from skbdistil._dataset_rows import dataset_rows, whole_chunks
from skbdistil._sklearn_compat import Interval, StrOptions, validate_params
from skbdistil.costs import _call_module, module_costs

__all__ = ["TorchTeacher", "scores_from_labels"]


class TorchTeacher(BaseEstimator):
    """A pretrained torch module as a teacher.

    The module is run in evaluation mode, without gradients, batch by batch. After
    each call it is as it was before: the training flag of every submodule and the
    device are restored.

    The teacher is never trained: :meth:`fit` does nothing, and
    :func:`sklearn.base.clone` returns the teacher itself. It may stand wherever
    scikit-learn clones, such as in a grid search over an estimator that holds it.

    Parameters
    ----------
    module : torch.nn.Module
        The pretrained module. It returns one row of L numbers per row of X. Shape
        (n,) or (n, 1) is a single number per row: the value of a regression, or the
        score of the second of two classes. A program of ``torch.export`` is given as
        ``program.module()``; its mode is the one that it was exported in, so export
        in evaluation mode.

    output : {"logits", "proba"}, default="logits"
        What the numbers are: logits (up to a constant per row) or probabilities. A
        regression module returns its values as they are, and `output` stays
        `"logits"`.

    classes : array-like of shape (n_classes,), default=None
        The class label of each column, in their order; two labels for a single
        column. If `None`, :meth:`predict` numbers the columns from 0, and an
        estimator distilled from the teacher takes the classes from its `y`.

    key : int or str, default=None
        Where to find the numbers in a module that returns a tuple or list (int) or a
        mapping (str), such as the outputs of the transformers library. `None` for a
        module that returns a tensor.

    transform : callable, default=None
        Called with every batch of rows of X, a writeable NumPy array of the dtype of
        X in native byte order, and returns what `module` is called with: a tensor or
        array, a tuple of these for several arguments, or a dict for named ones. So a
        teacher can see other inputs than its students: raw uint8 images, or token ids
        with a mask. Floating-point results are converted to the dtype of the module's
        parameters, integers are kept. If `None`, rows are converted to the dtype of the
        module's parameters. Rows of :class:`~skbdistil.datasets.Columns` come as a dict
        of arrays, with which `module` is called by name if `transform` is `None`.

    batch_size : int, default=1024
        Number of rows per call of the module, in `[1, inf)`.

    device : str or torch.device, default="auto"
        Where the module runs. `"auto"` leaves a module that is on an accelerator
        there, and otherwise takes CUDA, then MPS, then the CPU.

    macs : int, default=None
        Multiply-accumulates of the module per row, in `[0, inf)`, where you know them
        and they cannot be counted, as those of a quantised module. If `None`, they are
        counted.

    See Also
    --------
    sklearn.frozen.FrozenEstimator : The same for fitted scikit-learn models.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skbdistil.teachers import TorchTeacher
    >>> module = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = module.weight.copy_(torch.eye(2))
    >>> teacher = TorchTeacher(module, classes=["cat", "dog"])
    >>> X = np.array([[1, 0], [0, 1]])
    >>> teacher.decision_function(X)
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    >>> teacher.predict(X).tolist()
    ['cat', 'dog']

    Images stay uint8 until the teacher gets a batch of them:

    >>> teacher = TorchTeacher(module, transform=lambda batch: batch / 255)
    >>> teacher.decision_function(np.array([[255, 0]], dtype=np.uint8))
    array([[1., 0.]], dtype=float32)

    A module that is called as ``module(ids=..., mask=...)``:

    >>> class MeanToken(torch.nn.Module):
    ...     def forward(self, ids, mask):
    ...         return (ids * mask).sum(1) / mask.sum(1)
    >>> def ids_and_mask(batch):
    ...     return {"ids": batch, "mask": batch > 0}
    >>> teacher = TorchTeacher(MeanToken(), transform=ids_and_mask)
    >>> teacher.decision_function(np.array([[4, 2, 0, 0]]))
    array([[3.]], dtype=float32)
    """

    _parameter_constraints: dict = {
        "module": [nn.Module],
        "output": [StrOptions({"logits", "proba"})],
        "classes": ["array-like", None],
        "key": [Integral, str, None],
        "transform": [callable, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "macs": [Interval(Integral, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        module,
        *,
        output="logits",
        classes=None,
        key=None,
        transform=None,
        batch_size=1024,
        device="auto",
        macs=None,
    ):
        self.module = module
        self.output = output
        self.classes = classes
        self.key = key
        self.transform = transform
        self.batch_size = batch_size
        self.device = device
        self.macs = macs

    def fit(self, X=None, y=None):
        """Do nothing: the module is trained already.

        Parameters
        ----------
        X : object, default=None
            Ignored.

        y : object, default=None
            Ignored.

        Returns
        -------
        self : TorchTeacher
            The teacher itself.
        """
        return self

    def decision_function(self, X):
        """Numbers that the module returns.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of any shape: arrays, memory maps, pandas or polars frames.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_outputs)
            The output of the module: float64 if the module returns that, else
            float32. A single number per row makes one column, also for two classes.

        Raises
        ------
        ValueError
            If a parameter is invalid, if the module returns anything but one row of
            numbers per row of X, or if `key` or `classes` do not fit its output.
        """
        self._validate_params()
        X = as_array(dataset_rows(X), estimator_name="TorchTeacher")
        dtype = floating_dtype(self.module)
        device = self._run_device()
        with torch.no_grad(), self._at_hand():
            scores = np.concatenate(
                [
                    self._batch_scores(batch, rows.stop - rows.start, dtype, device)
                    for rows, batch in whole_chunks(X, self.batch_size)
                ]
            )
        # Found here, a wrong length is reported before the labels are needed.
        self._column_labels(scores.shape[1])
        return scores

    def predict_proba(self, X):
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of any shape, as for :meth:`decision_function`.

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
            The output of the module if `output="proba"`, else its softmax. Two
            columns where the module returns one.
        """
        columns = self._class_columns(X)
        return columns if self.output == "proba" else softmax(columns, axis=1)

    def predict(self, X):
        """Label of the class of the largest score.

        For a regression module, use :meth:`decision_function`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of any shape, as for :meth:`decision_function`.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Labels from `classes`, or the number of the column.
        """
        columns = self._class_columns(X)
        return self._column_labels(columns.shape[1])[columns.argmax(axis=1)]

    def costs(self, X):
        """Multiply-accumulates, parameters and bytes of the module.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of any shape, as for :meth:`decision_function`; the first is used.

        Returns
        -------
        costs : :class:`~skbdistil.costs.Costs`

            Its `macs` are those of the parameter where that is not None.

        Raises
        ------
        ValueError
            As in :func:`skbdistil.costs.module_costs`, and if a parameter is invalid.
        """
        self._validate_params()
        return module_costs(self.module, self._example(X), macs=self.macs)

    def _class_columns(self, X):
        return _class_columns(self.decision_function(X), self.output == "proba")

    def _column_labels(self, n_columns):
        """Labels of the columns, those of a single column being two."""
        n_classes = max(n_columns, 2)
        if self.classes is None:
            return np.arange(n_classes)
        classes = np.asarray(self.classes)
        if classes.shape != (n_classes,) or len(np.unique(classes)) < n_classes:
            raise ValueError(
                "The 'classes' parameter of TorchTeacher must hold one distinct label "
                f"for each of the {n_classes} classes that the module tells apart. "
                f"Got {self.classes!r} instead."
            )
        return classes

    def _at_hand(self):
        """Have the module in evaluation mode where it runs, and leave it as it was."""
        return _evaluating(self.module, self._run_device())

    def _run_device(self):
        """Where the module runs."""
        if self.device != "auto":
            return torch.device(self.device)
        home = home_device(self.module)
        if home.type != "cpu":
            return home
        if torch.cuda.is_available():
            return torch.device("cuda")
        # MPS has no float64.
        if (
            torch.backends.mps.is_available()
            and floating_dtype(self.module) != torch.float64
        ):
            return torch.device("mps")
        return home

    def _example(self, X):
        """What the module is called with for the first row, where its weights are."""
        X = as_array(dataset_rows(X), estimator_name="TorchTeacher")
        _, batch = next(iter(whole_chunks(take_rows(X, np.arange(1)), 1)))
        dtype, device = floating_dtype(self.module), home_device(self.module)
        return self._inputs(batch, dtype, device)

    def _inputs(self, batch, dtype, device):
        """What the module is called with for a batch of rows."""

        # A copy: what works in place, a module or a transform, must not change the
        # user's X.
        def copied(array):
            return np.array(array, dtype=native_dtype(array.dtype))

        inputs = _each(copied, batch)
        if self.transform is not None:
            inputs = self.transform(inputs)
        keeps_integers = self.transform is not None or isinstance(batch, Mapping)

        def ready(array):
            tensor = as_tensor(array)
            if tensor.is_floating_point() or not keeps_integers:
                tensor = tensor.to(dtype)
            return tensor.to(device)

        return _each(ready, inputs)

    def _batch_scores(self, batch, n_rows, dtype, device):
        inputs = self._inputs(batch, dtype, device)
        output = self._find_scores(_call_module(self.module, inputs))
        if output.ndim < 2:
            # squeeze() leaves one number of each row, or all numbers of a single row.
            output = output.reshape((1, -1) if n_rows == 1 else (-1, 1))
        if output.ndim != 2 or len(output) != n_rows:
            raise ValueError(
                "The 'module' parameter of TorchTeacher must return scores of shape "
                f"(n, L) for n rows. Got an output of shape {tuple(output.shape)} for "
                f"{n_rows} rows."
            )
        if output.dtype != torch.float64:
            output = output.float()
        return output.numpy(force=True)

    def _find_scores(self, output):
        """The tensor of scores in what the module returned."""
        key = self.key
        if isinstance(output, Mapping):
            allowed = f"one of the keys {list(output)}"
            found = key in output
        elif isinstance(output, tuple | list):
            allowed = f"an int in the range [0, {len(output) - 1}]"
            found = isinstance(key, Integral) and -len(output) <= key < len(output)
        else:
            allowed = "None"
            found = key is None
        if not found:
            raise ValueError(
                f"The module of TorchTeacher returns a {type(output).__name__}, so the "
                f"'key' parameter must be {allowed}. Got {key!r} instead."
            )
        if key is not None:
            output = output[key]
        if not isinstance(output, torch.Tensor):
            raise ValueError(
                "The module of TorchTeacher must return a tensor, or a tuple or "
                "mapping that holds one at 'key'. Got an object of type "
                f"{type(output).__name__} for key={key!r}."
            )
        return output

    def __sklearn_clone__(self):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        # No estimator type: classifiers of scikit-learn have `classes_` and a
        # one-dimensional decision function for two classes, and the module may as
        # well be a regressor.
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


def _each(function, inputs):
    """A function of an array, of those in a tuple, or of those in a mapping."""
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(function, inputs))
    return function(inputs)


@contextmanager
def _evaluating(module, device):
    """Have a module in evaluation mode and on `device`, and leave it as it was."""
    training = [(submodule, submodule.training) for submodule in module.modules()]
    home = home_device(module)
    try:
        try:
            module.eval()
        except NotImplementedError:
            # It is a program of torch.export, which keeps the mode that it was exported
            # in, or holds one; the other submodules must not stay in training mode.
            for submodule, _ in training:
                submodule.training = False
        if device != home:
            module.to(device)
        yield
    finally:
        if device != home:
            module.to(home)
        # One by one, because `train` would set all submodules alike.
        for submodule, flag in training:
            submodule.training = flag


def _class_columns(values, proba):
    """One column per class, where a single one stands for two classes."""
    if values.shape[1] > 1:
        return values
    if proba:
        return np.hstack([1 - values, values])
    return np.hstack([-values / 2, values / 2])


@validate_params(
    {
        "answers": ["array-like"],
        "classes": ["array-like", None],
        "smoothing": [Interval(Real, 0, None, closed="neither")],
    },
    prefer_skip_nested_validation=True,
)
def scores_from_labels(answers, classes=None, *, smoothing=0.1):
    """Scores of a teacher that says labels and nothing else.

    Such as a language model, a service or people that vote. The scores are what
    ``teacher="precomputed"`` takes: the logarithms of the shares that the classes have
    among the answers to a row, up to a constant per row. The shares are smoothed,
    because an answer that was not given is not impossible.

    Parameters
    ----------
    answers : array-like of shape (n_samples,) or (n_samples, n_answers)
        Labels: one answer for each row, or several in any order, such as samples of a
        language model. `None`, NaN, or NA in a pandas object stands for an answer that
        is missing, so rows may have different numbers of them.

    classes : array-like of shape (n_classes,), default=None
        All labels there are, in any order. If `None`, those among the answers. Pass it
        where a class may have got no answer, because the scores need a column for every
        label in `y`.

    smoothing : float, default=0.1
        Number of answers, in `(0, inf)`, that are added to each row in equal parts to
        all classes. The smaller, the surer the teacher.

    Returns
    -------
    scores : ndarray of float64 of shape (n_samples, n_classes)
        Logits with mean 0 in each row; the columns are in the order of the sorted
        labels, whatever the order of `classes`. Rows without any answer are NaN
        throughout.

    Raises
    ------
    ValueError
        If a parameter is invalid, if there are no answers or fewer than two classes, if
        an answer is not among the classes, if a class is missing or there twice, if
        labels cannot be sorted, or if the answers have any other shape.

    See Also
    --------
    skbdistil.BDistilClassifier : Its `fit` takes `teacher_scores`.

    Notes
    -----
    With `c` of `k` answers and `L` classes, the share is
    ``(c + smoothing / L) / (k + smoothing)``. That is the mean of the posterior under a
    symmetric Dirichlet prior whose parameters have the sum `smoothing`. With one answer
    to each row, the default is about what label smoothing of 0.1 is [1]_. Students
    average over many rows by themselves: with 1800 rows of one answer the log loss of
    three students was .73, and .92 for a smoothing of 1. With 200 rows of nine answers
    it was 1.13, and .97 (the gallery's example of labels).

    Where the teacher is known to be right with probability `q`, the share of a single
    answer is `q` for ``smoothing=(1 - q) / (q - 1 / L)``.

    Without `y`, the classes of the fitted students are the numbers of the columns.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the
       Inception Architecture for Computer Vision", CVPR 2016, section 7.

    Examples
    --------
    >>> from scipy.special import softmax
    >>> from skbdistil.teachers import scores_from_labels
    >>> answers = [["spam", "spam", "spam"], ["ham", "spam", None], [None, None, None]]
    >>> scores = scores_from_labels(answers, classes=["spam", "ham"], smoothing=1)
    >>> softmax(scores, axis=1)
    array([[0.125, 0.875],
           [0.5  , 0.5  ],
           [  nan,   nan]])

    A student of these answers:

    >>> import numpy as np
    >>> from skbdistil import BDistilClassifier
    >>> X, y = np.arange(20.0)[:, None], np.repeat(["ham", "spam"], 10)
    >>> scores = scores_from_labels(y)
    >>> clf = BDistilClassifier(
    ...     "precomputed", n_estimators=1, max_epochs=100, random_state=0
    ... )
    >>> clf.fit(X, y, teacher_scores=scores).predict([[0.0], [19.0]]).tolist()
    ['ham', 'spam']
    """
    labels = _labels(answers, "answers")
    if labels.ndim not in (1, 2):
        raise ValueError(
            "The 'answers' parameter of scores_from_labels must have the shape "
            f"(n_samples,) or (n_samples, n_answers). Got an array of shape "
            f"{labels.shape}."
        )
    given = {label for label in labels.flat if label is not None}
    if not given:
        raise ValueError(
            "The 'answers' parameter of scores_from_labels must hold at least one "
            f"answer. Got none, and {labels.size} missing ones."
        )
    labels = labels.reshape(len(labels), -1)
    known = given if classes is None else _distinct(classes)
    if len(known) < 2:
        raise ValueError(
            f"scores_from_labels needs at least two classes. Got {list(known)!r}. "
            "Where all answers are the same, pass all labels as 'classes'."
        )
    if given - known:
        examples = ", ".join(sorted(map(repr, given - known))[:5])
        raise ValueError(
            "The 'answers' parameter of scores_from_labels must hold only labels of "
            f"'classes', or None. Got {len(given - known)} other labels, such as "
            f"{examples}."
        )
    try:
        columns = {label: column for column, label in enumerate(sorted(known))}
    except TypeError as error:
        raise ValueError(
            "scores_from_labels needs labels that can be sorted, all strings or all "
            f"numbers. {error}."
        ) from error
    counts = np.zeros((len(labels), len(columns)))
    for row, label in zip(np.indices(labels.shape)[0].flat, labels.flat, strict=True):
        if label is not None:
            counts[row, columns[label]] += 1
    # The number of answers is the same for all classes and goes with the mean.
    scores = np.log(counts + smoothing / len(columns))
    scores -= scores.mean(axis=1, keepdims=True)
    scores[counts.sum(axis=1) == 0] = np.nan
    return scores


def _labels(array, name):
    """Labels as an array of objects, with None for what is missing."""
    if hasattr(array, "isna"):
        # NA of pandas is not even different from itself.
        missing = np.asarray(array.isna())
        array = np.array(array, dtype=object)
        array[missing] = None
    array = np.array(array, dtype=object)
    if any(isinstance(label, list | tuple | np.ndarray) for label in array.flat):
        raise ValueError(
            f"The '{name}' parameter of scores_from_labels must have rows of one "
            "length. Got rows of different lengths; fill them up with None."
        )
    array[array != array] = None  # NaN
    return array


def _distinct(classes):
    """Labels of 'classes' as a set, none of them lost."""
    labels = _labels(classes, "classes")
    distinct = set(labels.flat)
    if labels.ndim != 1 or len(distinct) < len(labels) or None in distinct:
        raise ValueError(
            "The 'classes' parameter of scores_from_labels must hold distinct labels "
            f"in one dimension, and no missing ones. Got {classes!r}."
        )
    return distinct
