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

# From so many numbers on, torch computes in threads, if it may. They spin while they
# wait for more, and for milliseconds those of NumPy's BLAS would not get a processor.
_THREADED_SIZE = 2**15


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
    in_torch, in_numpy : list of _Weights
        One for each student.
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
        self.in_torch, self.in_numpy = (
            list(_weights(ensemble, run.view)) for run in (_InTorch, _InNumpy)
        )
        self.n_features = self.in_numpy[-1].passed.stop

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


def _weights(ensemble, view):
    """Yield the weights of each student, and where its features are."""
    students, connection = ensemble.students, ensemble.connection
    # What student 1, 2, ... leaves begins at these rows. Before the first one there is
    # room for the features of any backbone.
    starts = [max(student.n_features for student in students)]
    n_first = 0
    for position, student in enumerate(students):
        first, n_passed = position, 0
        if connection is not None:
            first, n_passed = _first_read(connection, position), student.n_passed
        weights = _Weights(
            student, view, n_first, starts[first], starts[position], n_passed
        )
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
    view : callable
        Turns a tensor into what the products are made of, in the same memory.
    n_first : int
        Units of the first layers of earlier students.
    start, stop : int
        First row that it reads of earlier students, and the one after the last.
    n_passed : int
        Number of features that it leaves to later students.
    """

    def __init__(self, student, view, n_first, start, stop, n_passed):
        def layer(linear):
            # The bias is a column, as rows are.
            return view(linear.weight), view(linear.bias)[:, None]

        join = student.join
        self.hidden = [layer(linear) for linear, _ in student.backbone.blocks]
        self.join = layer(join.linear) if isinstance(join, Dense) else None
        self.head = [part.T for part in layer(student.head)]
        self.carry = view(student.carry)
        self.passes_own = student.passes_own
        self.first = slice(n_first, n_first + len(self.hidden[0][1]))
        self.own = slice(start - student.n_features, start)
        self.joined = self.own if join is None else slice(self.own.start, stop)
        self.passed = slice(stop, stop + n_passed)


class _InTorch:
    """Products of tensors."""

    view = staticmethod(torch.Tensor.detach)
    beside = staticmethod(torch.cat)

    @staticmethod
    def linear(weight, x, bias, out=None):
        return torch.addmm(bias, weight, x, out=out)

    @staticmethod
    def rectify(x):
        return torch.relu_(x)

    @staticmethod
    def combined(scores, mean, carry):
        return torch.addcmul(scores, mean, carry)

    @staticmethod
    def empty(shape, x):
        return x.new_empty(shape)

    @staticmethod
    def columns(features, rows):
        return features[:, rows]


class _InNumpy:
    """The same of arrays."""

    beside = staticmethod(np.concatenate)

    @staticmethod
    def view(tensor):
        return tensor.detach().numpy()

    @staticmethod
    def linear(weight, x, bias, out=None):
        y = np.dot(weight, x, out=out)
        y += bias
        return y

    @staticmethod
    def rectify(x):
        return np.maximum(x, 0, out=x)

    @staticmethod
    def combined(scores, mean, carry):
        scores += mean * carry
        return scores

    @staticmethod
    def empty(shape, x):
        return np.empty(shape, x.dtype)

    @staticmethod
    def columns(features, rows):
        # Of columns that are indexed, NumPy lays out each as one piece.
        return np.ascontiguousarray(features[:, rows])


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
        # Rows are scaled and checked by torch, and so are the scores of all stages.
        widest = max(self.x.shape[1], len(products.in_numpy) * ensemble.n_outputs)
        is_large = len(x) * widest >= _THREADED_SIZE
        in_threads = is_large and torch.get_num_threads() > 1
        self._run = _InTorch if in_threads else _InNumpy
        self._students = products.in_torch if in_threads else products.in_numpy
        self._n_ahead = n_ahead if len(x) >= _WIDE_ROWS else 0
        self._first = None
        self._features = self._run.empty((products.n_features, len(x)), self._rows)
        self._scores = None

    @property
    def _rows(self):
        return self._run.view(self.x).T

    @property
    def mean(self):
        """Running mean of the students run so far, None before the first one."""
        if isinstance(self._scores, np.ndarray):
            return torch.from_numpy(self._scores)
        return self._scores

    def advance(self):
        """Run the next student."""
        student, features = self._students[self.n_stages], self._features
        own, joined = features[student.own], features[student.joined]
        passed = features[student.passed]
        self._run_backbone(student, own)
        if student.join is not None:
            joined = self._rectified(joined, student.join, out=passed)
        elif len(passed):
            passed[:] = own if student.passes_own else joined
        weight, bias = student.head
        scores = self._run.linear(joined.T, weight, bias)
        if self._scores is not None:
            scores = self._run.combined(scores, self._scores, student.carry)
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
            x = self._rectified(x, layer)
        self._rectified(x, layers[-1], out=own)

    def _rectified(self, x, layer, out=None):
        """Features of rows that are columns of `x`."""
        weight, bias = layer
        return self._run.rectify(self._run.linear(weight, x, bias, out=out))

    def _first_layers(self):
        """First layers of all students that are known to be run."""
        # One wide product is faster than many narrow ones.
        layers = [student.hidden[0] for student in self._students[: self._n_ahead]]
        wide = tuple(map(self._run.beside, zip(*layers, strict=True)))
        return self._rectified(self._rows, wide)

    def select(self, rows):
        """Drop all other rows: they are not computed any further."""
        self.x = self.x[rows]
        rows = self._run.view(rows)
        self._features = self._run.columns(self._features, rows)
        if self._first is not None:
            self._first = self._first[:, rows]
        if self._scores is not None:
            self._scores = self._scores[rows]
