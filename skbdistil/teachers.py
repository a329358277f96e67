"""Teachers: whatever is distilled, brought to scores of shape (n, L).

A teacher runs once per fit, here, and the rest of the package sees its scores only.
"""

import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _is_fitted,
    _num_samples,
    check_is_fitted,
    has_fit_parameter,
)
from skorch import NeuralNet
from torch import nn

from skbdistil.costs import module_costs

__all__ = ["TeacherResponse", "TorchTeacher", "teacher_response"]

# Share of the uniform distribution mixed into probabilities before their logarithm,
# which keeps zeros finite.
_SMOOTHING = 1e-3

# Largest distance from 1 at which the sum of a row still passes for rounding.
_SUM_TOLERANCE = 1e-3


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
        score of the second of two classes.

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
        X, and returns the tensor or array that `module` is called with. So a teacher
        can see other inputs than its students, or raw uint8 images. Floating-point
        results are converted to the dtype of the module's parameters, integers are
        kept. If `None`, rows are converted to the dtype of the module's parameters.

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
        X = _as_array(X)
        dtype = _floating_dtype(self.module)
        device = self._run_device(dtype)
        with torch.no_grad(), _evaluating(self.module, device):
            scores = np.concatenate(
                [
                    self._batch_scores(X[rows], dtype, device)
                    for rows in gen_batches(len(X), self.batch_size)
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
        inputs = self._inputs(_as_array(X)[:1], _floating_dtype(self.module))
        return module_costs(
            self.module, inputs.to(_home_device(self.module)), macs=self.macs
        )

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

    def _run_device(self, dtype):
        if self.device != "auto":
            return torch.device(self.device)
        home = _home_device(self.module)
        if home.type != "cpu":
            return home
        if torch.cuda.is_available():
            return torch.device("cuda")
        # MPS has no float64.
        if torch.backends.mps.is_available() and dtype != torch.float64:
            return torch.device("mps")
        return home

    def _inputs(self, batch, dtype):
        """What the module is called with for a batch of rows."""
        # A copy, because torch warns about read-only memory, and because a transform
        # that works in place must not change the user's X.
        batch = np.array(batch)
        inputs = batch if self.transform is None else self.transform(batch)
        inputs = torch.as_tensor(inputs)
        if self.transform is None or inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return inputs

    def _batch_scores(self, batch, dtype, device):
        inputs = self._inputs(batch, dtype)
        output = self._find_scores(self.module(inputs.to(device)))
        if output.ndim < 2:
            # Also the scalar that squeeze() makes of a batch of one row.
            output = output.reshape(-1, 1)
        if output.ndim != 2 or len(output) != len(batch):
            raise ValueError(
                "The 'module' parameter of TorchTeacher must return scores of shape "
                f"(n, L) for n rows. Got an output of shape {tuple(output.shape)} for "
                f"{len(batch)} rows."
            )
        if output.dtype != torch.float64:
            output = output.float()
        return output.cpu().numpy()

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


class TeacherResponse(NamedTuple):
    """What a teacher says about the training rows.

    Attributes
    ----------
    scores : ndarray of shape (n_samples, n_outputs)
        Classification: logits, with a mean of 0 in every row. Regression: values of
        the targets, in their own units.

    classes : ndarray of shape (n_outputs,) or None
        Label of each column, in the order of the teacher. None for regression.

    module : torch.nn.Module or None
        The network of a torch teacher or frozen skorch net, whose cost can be counted.
        None for other teachers.

    module_input : torch.Tensor or None
        What the module is called with for the first row, on the device of the module.
        None where there is no module.

    macs : int or None
        Multiply-accumulates of the module, where its user has stated them.

    single_output : bool
        Regression: whether the targets are one-dimensional, of shape (n_samples,).
        False for classification.

    See Also
    --------
    teacher_response : Ask a teacher.

    Examples
    --------
    >>> from skbdistil.teachers import teacher_response
    >>> response = teacher_response(
    ...     "precomputed",
    ...     [[0.0], [1.0]],
    ...     teacher_scores=[2.5, 3.5],
    ...     regression=True,
    ...     estimator_name="BDistilRegressor",
    ... )
    >>> response.scores
    array([[2.5],
           [3.5]], dtype=float32)
    >>> response.single_output
    True
    """

    scores: np.ndarray
    classes: np.ndarray | None
    module: nn.Module | None
    module_input: torch.Tensor | None
    macs: int | None
    single_output: bool


def teacher_response(
    teacher,
    X,
    y=None,
    *,
    regression,
    sample_weight=None,
    teacher_scores=None,
    random_state=None,
    dtype=np.float32,
    estimator_name,
):
    """Ask a teacher for its scores of the training rows, once.

    Probabilities become logits as the logarithm of ``(1 - e) * p + e / n_classes``
    with ``e = 1e-3``, which is finite where ``p`` is 0. Logits are centred per row.
    The decision function ``d`` of two classes becomes the columns ``[-d/2, d/2]``.

    Parameters
    ----------
    teacher : estimator, TorchTeacher, torch.nn.Module, "precomputed" or None
        An unfitted scikit-learn estimator is cloned and fitted on `X` and `y`. A
        fitted one is given as ``FrozenEstimator(fitted)``, also for a skorch net. A
        bare module is taken for ``TorchTeacher(module)``. `"precomputed"` takes
        `teacher_scores`. `None` fits extremely randomized trees to the flattened
        rows, with at least two rows per leaf, five for a regression.

    X : array-like of shape (n_samples, ...)
        Training rows as the user passed them, so that a teacher fitted with feature
        names sees them.

    y : ndarray of shape (n_samples,) or (n_samples, n_outputs), default=None
        Labels, or targets of a regression. `None` is allowed if the teacher is not
        fitted here and brings its own classes.

    regression : bool
        Whether the teacher is a regressor.

    sample_weight : array-like of shape (n_samples,), default=None
        Weights for the fit of the teacher. Left out where its `fit` does not take
        them.

    teacher_scores : array-like of shape (n_samples, n_outputs), default=None
        Logits, or values of the targets, for `teacher="precomputed"` only. One column
        for two classes holds the logit of the second one. Shape (n_samples,) is
        allowed for regression.

    random_state : int, RandomState instance or None, default=None
        Seeds a teacher that is fitted here, in its parameters `random_state` that are
        None. If `None` itself, they stay None.

    dtype : dtype, default=np.float32
        Dtype of the scores.

    estimator_name : str
        Name of the estimator that asks, for error messages.

    Returns
    -------
    response : TeacherResponse
        The scores, C-contiguous and finite, and what goes with them.

    Raises
    ------
    TypeError
        If `teacher` is none of the above.

    ValueError
        If the teacher is fitted but not frozen, if `y` is needed and missing, if
        `teacher_scores` is given for another teacher or missing, if the output of the
        teacher is not finite or has the wrong shape, if its probabilities are none, or
        if its classes do not cover `y` or cannot be told.

    See Also
    --------
    TorchTeacher : A pretrained torch module as a teacher.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skbdistil.teachers import teacher_response
    >>> X, y = load_iris(return_X_y=True)
    >>> fitted = LogisticRegression(max_iter=1000).fit(X, y)
    >>> response = teacher_response(
    ...     FrozenEstimator(fitted),
    ...     X,
    ...     regression=False,
    ...     estimator_name="BDistilClassifier",
    ... )
    >>> response.scores.shape
    (150, 3)
    >>> response.classes
    array([0, 1, 2])
    """
    precomputed = isinstance(teacher, str) and teacher == "precomputed"
    if precomputed and teacher_scores is None:
        raise ValueError(
            f"{estimator_name} with teacher='precomputed' requires teacher_scores to "
            "be passed to fit. Got teacher_scores=None."
        )
    if not precomputed and teacher_scores is not None:
        raise ValueError(
            "teacher_scores can only be passed to the fit of "
            f"{estimator_name} with teacher='precomputed'. Got teacher={teacher!r}."
        )

    frozen = isinstance(teacher, FrozenEstimator)
    if frozen:
        teacher = teacher.estimator
    if isinstance(teacher, nn.Module):
        teacher = TorchTeacher(teacher)
    name = "teacher_scores" if precomputed else type(teacher).__name__

    classes = module = module_input = macs = None
    proba = False
    if precomputed:
        values = _check_teacher_scores(teacher_scores, X, regression, estimator_name)
    elif isinstance(teacher, TorchTeacher):
        module = teacher.module
        proba = teacher.output == "proba"
        if proba and regression:
            raise ValueError(
                f"{estimator_name} needs a teacher that returns values. Got a "
                "TorchTeacher with output='proba'; a regression module has "
                "output='logits'."
            )
        values = teacher.decision_function(X)
        module_input = teacher._inputs(_as_array(X)[:1], _floating_dtype(module))
        classes = teacher.classes
        macs = teacher.macs
    else:
        if frozen:
            check_is_fitted(
                teacher,
                msg=f"The 'teacher' parameter of {estimator_name} is a "
                f"FrozenEstimator around an unfitted {name}. Fit that first, or pass "
                "it without FrozenEstimator to have it fitted.",
            )
            X = _net_input(teacher, X)
            if isinstance(teacher, NeuralNet) and isinstance(X, np.ndarray):
                module = teacher.module_
                module_input = torch.from_numpy(np.array(X[:1]))
        elif teacher is None:
            # Extremely randomized trees use all rows in every tree. With small leaves
            # they know these by heart, with probabilities of 0 and 1 or the noise of
            # the targets, and that is what the students would learn.
            if regression:
                teacher = ExtraTreesRegressor(min_samples_leaf=5)
            else:
                teacher = ExtraTreesClassifier(min_samples_leaf=2)
            X = _as_array(X).reshape(_num_samples(X), -1)
        with warnings.catch_warnings():
            # skorch makes tensors of rows that may be read-only, and only reads them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            if not frozen:
                teacher = _fit_clone(
                    teacher, X, y, sample_weight, random_state, estimator_name
                )
            if regression:
                values = _predicted_values(teacher, X, estimator_name)
            else:
                values, proba = _classifier_output(teacher, X, estimator_name)
                classes = getattr(teacher, "classes_", None)
    if classes is not None:
        classes = np.asarray(classes)
    if module is not None:
        module_input = module_input.to(_home_device(module))

    scores = _check_scores(values, _num_samples(X), dtype, name, estimator_name)
    if regression:
        if y is not None:
            single_output = y.ndim == 1
        elif isinstance(teacher, TorchTeacher):
            single_output = scores.shape[1] == 1
        else:
            single_output = scores.ndim == 1
        scores = scores.reshape(len(scores), -1)
        return TeacherResponse(scores, None, module, module_input, macs, single_output)

    if classes is not None and len(classes) < 2:
        among = (
            "" if sample_weight is None else " among the rows that sample_weight keeps"
        )
        raise ValueError(
            f"{estimator_name} needs a teacher with at least 2 classes. Got 1 "
            f"class{among}."
        )
    scores = _class_columns(scores.reshape(len(scores), -1), proba)
    classes = _check_classes(classes, y, scores.shape[1], name, estimator_name)
    if proba:
        _check_proba(scores, teacher, name, estimator_name)
        scores = _log_smoothed(scores)
    return TeacherResponse(
        _centered(scores), classes, module, module_input, macs, False
    )


def _as_array(X):
    """X as a NumPy array in its own dtype, without a copy of arrays and memory maps."""
    return check_array(
        X, ensure_2d=False, allow_nd=True, ensure_all_finite=False, input_name="X"
    )


def _floating_dtype(module):
    """Dtype of the floating-point parameters of a module, or else its buffers."""
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def _home_device(module):
    for tensor in chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def _evaluating(module, device):
    """Have a module in evaluation mode and on `device`, and leave it as it was."""
    training = [(submodule, submodule.training) for submodule in module.modules()]
    home = _home_device(module)
    try:
        module.eval()
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


def _log_smoothed(proba):
    """Logarithm of probabilities mixed with the uniform distribution, in place."""
    proba *= 1 - _SMOOTHING
    proba += _SMOOTHING / proba.shape[1]
    return np.log(proba, out=proba)


def _centered(scores):
    """Scores with a mean of 0 in each row, in place."""
    scores -= scores.mean(axis=1, keepdims=True, dtype=np.float64)
    return scores


def _fit_clone(teacher, X, y, sample_weight, random_state, estimator_name):
    """A clone of a scikit-learn estimator, fitted."""
    if (
        isinstance(teacher, type)
        or not hasattr(teacher, "fit")
        or not hasattr(teacher, "get_params")
    ):
        error = ValueError if isinstance(teacher, str) else TypeError
        raise error(
            f"The 'teacher' parameter of {estimator_name} must be a scikit-learn "
            "estimator, a FrozenEstimator, a TorchTeacher, a torch.nn.Module, "
            f"'precomputed' or None. Got {teacher!r} instead."
        )
    # Not check_is_fitted, to which estimators that can predict without fit are fitted.
    if _is_fitted(teacher):
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} is a fitted "
            f"{type(teacher).__name__}, which would be fitted again. Pass "
            "sklearn.frozen.FrozenEstimator(teacher) to distil it as it is, or "
            "sklearn.base.clone(teacher) to have it fitted to X and y."
        )
    if y is None:
        raise ValueError(
            f"{estimator_name} requires y to be passed, but the target y is None. The "
            f"teacher {type(teacher).__name__} is fitted to it."
        )
    teacher = clone(teacher)
    if random_state is not None:
        random_state = check_random_state(random_state)
        unseeded = [
            name
            for name, value in sorted(teacher.get_params().items())
            if value is None and name.rpartition("__")[2] == "random_state"
        ]
        seeds = random_state.randint(np.iinfo(np.int32).max, size=len(unseeded))
        teacher.set_params(**dict(zip(unseeded, seeds.tolist(), strict=True)))
    if y.ndim == 2 and y.shape[1] == 1:
        # Some estimators warn about a column.
        y = y.ravel()
    if sample_weight is not None and has_fit_parameter(teacher, "sample_weight"):
        return teacher.fit(X, y, sample_weight=sample_weight)
    return teacher.fit(X, y)


def _net_input(model, X):
    """Rows as a skorch net takes them, which may be the last step of a pipeline.

    Pipelines hand on float64, and a module takes the dtype of its parameters only.
    """
    net = model[-1] if isinstance(model, Pipeline) else model
    if not isinstance(net, NeuralNet):
        return X
    if net is model:
        # skorch takes lists for several inputs, and frames for named ones.
        X = _as_array(X)
    if isinstance(X, np.ndarray) and X.dtype.kind == "f":
        dtype = torch.empty(0, dtype=_floating_dtype(net.module_)).numpy().dtype
        X = X.astype(dtype, copy=False)
    return X


def _predicted_values(model, X, estimator_name):
    if is_classifier(model) or not hasattr(model, "predict"):
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} must be a regressor. Got a "
            f"{type(model).__name__} instead."
        )
    return model.predict(X)


def _classifier_output(model, X, estimator_name):
    """Probabilities, or else scores, and whether they are probabilities."""
    if proba := hasattr(model, "predict_proba"):
        values = model.predict_proba(X)
    elif hasattr(model, "decision_function"):
        values = model.decision_function(X)
    else:
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} must be a classifier with "
            "predict_proba or decision_function. Got a "
            f"{type(model).__name__} without either."
        )
    if isinstance(values, list):
        raise ValueError(
            f"The 'teacher' parameter of {estimator_name} must be a classifier of a "
            f"single output. Got a {type(model).__name__} that predicts {len(values)} "
            "outputs."
        )
    return values, proba


def _check_teacher_scores(teacher_scores, X, regression, estimator_name):
    values = check_array(
        teacher_scores,
        ensure_2d=False,
        allow_nd=True,
        ensure_all_finite=False,
        input_name="teacher_scores",
        estimator=estimator_name,
    )
    if values.ndim == 1 and not regression:
        raise ValueError(
            f"teacher_scores passed to the fit of {estimator_name} must have the shape "
            f"(n_samples, n_classes). Got the shape {values.shape}."
        )
    return values


def _check_scores(values, n_samples, dtype, name, estimator_name):
    """A C-contiguous copy in `dtype` of what a teacher returned."""
    # What overflows is reported as infinite below.
    with np.errstate(over="ignore"):
        scores = np.array(values, dtype=dtype, order="C")
    if scores.ndim not in (1, 2) or len(scores) != n_samples:
        raise ValueError(
            f"The teacher of {estimator_name} must return one row of scores for each "
            f"of the {n_samples} rows of X. Got an array of shape {scores.shape} from "
            f"{name}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"The teacher of {estimator_name} must return finite scores. Got NaN, "
            f"infinity or a value too large for {np.dtype(dtype)} from {name}."
        )
    return scores


def _check_proba(proba, teacher, name, estimator_name):
    sums = proba.sum(axis=1, dtype=np.float64)
    if proba.min() >= 0 and abs(sums - 1).max() <= _SUM_TOLERANCE:
        return
    module = "net.module_" if isinstance(teacher, NeuralNet) else "module"
    raise ValueError(
        f"The teacher of {estimator_name} must return probabilities: rows that are not "
        f"negative and sum to 1. Got a smallest value of {proba.min():.3g} and sums of "
        f"rows from {sums.min():.3g} to {sums.max():.3g} from {name}. If these are the "
        f'logits of a torch module, pass TorchTeacher({module}, output="logits").'
    )


def _check_classes(classes, y, n_classes, name, estimator_name):
    """Labels of the columns: those of the teacher, or else what `y` allows."""
    if classes is None:
        return _infer_classes(y, n_classes, name, estimator_name)
    if len(classes) != n_classes:
        raise ValueError(
            f"The teacher of {estimator_name} must return one score per class. Got "
            f"{n_classes} columns for {len(classes)} classes from {name}."
        )
    if y is not None:
        # Sets of Python objects, because NumPy would find the label 1 in ["0", "1"].
        missing = set(np.unique(y).tolist()).difference(classes.tolist())
        if missing:
            raise ValueError(
                f"The teacher classes do not cover y: {name}, the teacher of "
                f"{estimator_name}, knows the classes {classes.tolist()}, and y also "
                f"holds {sorted(missing)}."
            )
    return classes


def _infer_classes(y, n_classes, name, estimator_name):
    """Labels in `y`, if all classes are there, or else the numbers of the columns."""
    if y is None:
        raise ValueError(
            f"{estimator_name} requires y to be passed, but the target y is None. It "
            f"tells the classes of {name}; a torch module is given them as "
            "TorchTeacher(module, classes=...)."
        )
    labels = np.unique(y)
    if len(labels) == n_classes:
        return labels
    if labels.dtype.kind in "iu" and labels[0] >= 0 and labels[-1] < n_classes:
        return np.arange(n_classes)
    raise ValueError(
        f"The teacher of {estimator_name} must say which classes its {n_classes} "
        f"columns stand for, because y holds {len(labels)} distinct labels, which are "
        f"not integers in the range [0, {n_classes - 1}]. A torch module is given its "
        "classes as TorchTeacher(module, classes=...)."
    )
