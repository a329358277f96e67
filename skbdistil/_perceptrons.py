"""Ensembles of plain perceptrons as bare products of their weights, for prediction.

For few rows, calling modules takes several times as long as computing. What runs here
gives what the modules give, but for rounding.
"""

from itertools import chain
from operator import is_

import numpy as np
import torch
from torch import nn

from skbdistil._module_hooks import has_own_forward, hooks
from skbdistil.ensemble import (
    Dense,
    Last,
    ProgressiveEnsemble,
    StageState,
    Wide,
    Window,
    _first_read,
    _Student,
)
from skbdistil.students import MLP

# From so many rows on, it takes less time to put the first layers of all students
# beside each other and to multiply once.
_WIDE_ROWS = 8


def start(ensemble, x, n_ahead):
    """Begin a pass over students that are perceptrons, as :mod:`skbdistil._forms` says.

    Returns
    -------
    state : StageState or None
        None where this form is not for the students.
    """
    products = ensemble.products
    if products is None or not products.are_current():
        products = _Products(ensemble) if _is_plain(ensemble) else None
        ensemble.products = products
    if products is None:
        return None
    return _ProductState(ensemble, products, x, n_ahead)


def _is_plain(ensemble):
    """Whether all students are perceptrons of the package, and nothing is hooked in."""
    return (
        type(ensemble) is ProgressiveEnsemble
        and len(ensemble.students) > 0
        and (
            ensemble.connection in (None, Dense, Last, Wide)
            or type(ensemble.connection) is Window
        )
        and all(map(_is_perceptron, ensemble.students))
        and not any(hooks(ensemble))
        and not has_own_forward(map(vars, ensemble.modules()))
        and all(map(_is_usual, chain(ensemble.parameters(), ensemble.buffers())))
        and len({tensor.dtype for tensor in ensemble.parameters()}) == 1
    )


def _is_perceptron(student):
    if not (type(student) is _Student and type(student.backbone) is MLP):
        return False
    blocks = [student.head, *student.backbone.blocks]
    if student.join is not None:
        if type(student.join) not in (Dense, Last, Wide):
            return False
        blocks += student.join.children()
    return all(
        [type(layer) for layer in block] == [nn.Linear, nn.ReLU]
        if type(block) is nn.Sequential
        else type(block) is nn.Linear
        for block in blocks
    )


def _is_usual(tensor):
    return tensor.device.type == "cpu" and tensor.dtype in (
        torch.float32,
        torch.float64,
    )


class _Products:
    """Weights of an ensemble, in the memory of its parameters.

    Writing to a parameter changes them, too; where anything else is changed, such as a
    module or its hooks, they are not current any more. A copy of this is None.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Of plain perceptrons.

    Attributes
    ----------
    students : list of _Weights
    n_features : int
        Number of features that a pass needs room for.
    """

    def __init__(self, ensemble):
        modules = list(ensemble.modules())
        self._attributes = list(map(vars, modules))
        self._held = [
            held
            for module in modules
            for held in (module._modules, module._parameters, module._buffers)
            if held
        ]
        self._items = list(_values(self._held))
        self._hooks = hooks(ensemble)
        self._tensors = [item for item in self._items if torch.is_tensor(item)]
        self._memory = self._places()
        self.students = list(_weights(ensemble))
        self.n_features = self.students[-1].passed.stop

    def are_current(self):
        """Whether the ensemble is still made of the same tensors and nothing else."""
        return (
            sum(map(len, self._held)) == len(self._items)
            and all(map(is_, _values(self._held), self._items))
            and not any(self._hooks)
            and not has_own_forward(self._attributes)
            and self._places() == self._memory
        )

    def _places(self):
        """Where the numbers of all tensors are."""
        # What the views hold is not freed, so that no other tensor can be there.
        return [
            *map(torch.Tensor.data_ptr, self._tensors),
            *map(torch.Tensor.stride, self._tensors),
        ]

    def __reduce__(self):
        return type(None), ()


def _values(dicts):
    return chain.from_iterable(map(dict.values, dicts))


def _weights(ensemble):
    """Yield the weights of each student, and where its features are."""
    students, connection = ensemble.students, ensemble.connection
    # What student 1, 2, ... leaves begins at these rows. Before the first one there is
    # room for the features of any backbone.
    starts = [max((student.n_features for student in students), default=0)]
    n_first = 0
    for position, student in enumerate(students):
        first, n_passed = position, 0
        if connection is not None:
            first, n_passed = _first_read(connection, position), student.n_passed
        weights = _Weights(student, n_first, starts[first], starts[position], n_passed)
        yield weights
        n_first = weights.first.stop
        starts.append(weights.passed.stop)


class _Weights:
    """Weights of a student, each layer as weight and bias, and rows of its features.

    Its own features are put before those that it reads. What is overwritten there is
    not read any more: connections read all earlier students, or the last few.

    Parameters
    ----------
    student : torch.nn.Module
    n_first : int
        Units of the first layers of earlier students.
    start, stop : int
        First row that it reads of earlier students, and the one after the last.
    n_passed : int
        Number of features that it leaves to later students.
    """

    def __init__(self, student, n_first, start, stop, n_passed):
        join = student.join
        self.hidden = [_arrays(linear) for linear, _ in student.backbone.blocks]
        self.join = _arrays(join.linear) if isinstance(join, Dense) else None
        self.head = [array.T for array in _arrays(student.head)]
        self.carry = student.carry.detach().numpy()
        self.passes_own = student.passes_own
        self.first = slice(n_first, n_first + len(self.hidden[0][1]))
        self.own = slice(start - student.n_features, start)
        self.joined = self.own if join is None else slice(self.own.start, stop)
        self.passed = slice(stop, stop + n_passed)


def _arrays(linear):
    """Weight of a layer, and its bias as a column, in the memory of both."""
    return linear.weight.detach().numpy(), linear.bias.detach().numpy()[:, None]


def _rectified(x, weight, bias, out=None):
    """Features of rows that are columns of `x`."""
    y = np.dot(weight, x, out=out)
    y += bias
    return np.maximum(y, 0, out=y)


class _ProductState(StageState):
    """A pass over plain perceptrons.

    Rows are columns here: what a student reads is then one piece of memory.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    products : _Products
    x : torch.Tensor of shape (n, ...)
    n_ahead : int
    """

    def __init__(self, ensemble, products, x, n_ahead):
        self.ensemble = ensemble
        self.n_stages = 0
        self.x = ensemble.scale(x).flatten(1)
        self._students = products.students
        self._n_ahead = n_ahead if len(x) >= _WIDE_ROWS else 0
        self._first = None
        self._features = np.empty((products.n_features, len(x)), self._rows.dtype)
        self._scores = None

    @property
    def _rows(self):
        return self.x.numpy().T

    @property
    def mean(self):
        """Running mean of the students run so far, None before the first one."""
        return None if self._scores is None else torch.from_numpy(self._scores)

    def advance(self):
        """Run the next student."""
        student, features = self._students[self.n_stages], self._features
        own, joined = features[student.own], features[student.joined]
        passed = features[student.passed]
        self._run_backbone(student, own)
        if student.join is not None:
            joined = _rectified(joined, *student.join, out=passed)
        elif len(passed):
            passed[:] = own if student.passes_own else joined
        weight, bias = student.head
        scores = np.dot(joined.T, weight)
        scores += bias
        if self._scores is not None:
            scores += self._scores * student.carry
        self._scores = scores
        self.n_stages += 1

    def _run_backbone(self, student, own):
        """Put the features of the backbone of the next student in their place."""
        layers = student.hidden
        if self.n_stages >= self._n_ahead:
            x = self._rows
        else:
            if self._first is None:
                self._first = self._first_layers()
            x, layers = self._first[student.first], layers[1:]
            if not layers:
                own[:] = x
                return
        for layer in layers[:-1]:
            x = _rectified(x, *layer)
        _rectified(x, *layers[-1], out=own)

    def _first_layers(self):
        """First layers of all students that are known to be run."""
        # One wide product is faster than many narrow ones.
        layers = [student.hidden[0] for student in self._students[: self._n_ahead]]
        return _rectified(self._rows, *map(np.concatenate, zip(*layers, strict=True)))

    def select(self, rows):
        """Drop all other rows: they are not computed any further."""
        self.x = self.x[rows]
        rows = rows.numpy()
        # Of columns that are indexed, NumPy lays out each as one piece.
        self._features = np.ascontiguousarray(self._features[:, rows])
        if self._first is not None:
            self._first = self._first[:, rows]
        if self._scores is not None:
            self._scores = self._scores[rows]
