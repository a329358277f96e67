"""Ensembles of plain perceptrons as bare products of their weights, for prediction.

For few rows, calling modules takes several times as long as computing. What runs here
gives what the modules give, but for rounding.
"""

from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.nn import functional

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

# NumPy takes less time to call, torch less time to compute: from so many rows on, the
# latter counts.
_TORCH_ROWS = 256


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
        self._items = list(chain.from_iterable(map(dict.values, self._held)))
        self._ids = list(map(id, self._items))
        self._hooks = hooks(ensemble)
        self._tensors = [item for item in self._items if torch.is_tensor(item)]
        self._memory = self._places()
        self.in_torch, self.in_numpy = (
            [_Weights(student, view) for student in ensemble.students]
            for view in (torch.Tensor.detach, _as_array)
        )

    def are_current(self):
        """Whether the ensemble is still made of the same tensors and nothing else."""
        return (
            list(map(id, chain.from_iterable(map(dict.values, self._held))))
            == self._ids
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


def _as_array(tensor):
    # Transposed as NumPy wants it.
    return tensor.detach().numpy().T


class _Weights:
    """Weights of a student, each layer as weight and bias.

    Parameters
    ----------
    student : torch.nn.Module
    view : callable
        Turns a tensor into what the products are made of, in the same memory.
    """

    def __init__(self, student, view):
        def layer(linear):
            return view(linear.weight), view(linear.bias)

        join = student.join
        self.hidden = [layer(linear) for linear, _ in student.backbone.blocks]
        self.join = layer(join.linear) if isinstance(join, Dense) else None
        self.is_joined = join is not None
        self.passes_own = student.passes_own
        self.head = layer(student.head)
        self.carry = view(student.carry)


class _InTorch:
    """Products of tensors."""

    linear = functional.linear
    rectify = torch.relu_

    @staticmethod
    def beside(features):
        return torch.cat(features, dim=1)

    @staticmethod
    def combined(scores, mean, carry):
        return torch.addcmul(scores, mean, carry)


class _InNumpy:
    """The same of arrays."""

    @staticmethod
    def linear(x, weight, bias):
        y = np.dot(x, weight)
        y += bias
        return y

    @staticmethod
    def rectify(x):
        return np.maximum(x, 0, out=x)

    @staticmethod
    def beside(features):
        return np.concatenate(features, axis=1)

    @staticmethod
    def combined(scores, mean, carry):
        scores += mean * carry
        return scores


class _ProductState(StageState):
    """A pass over plain perceptrons.

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
        in_numpy = len(x) < _TORCH_ROWS
        self._run = _InNumpy if in_numpy else _InTorch
        self._weights = products.in_numpy if in_numpy else products.in_torch
        self._take(ensemble.scale(x).flatten(1))
        self._scores = None
        self._earlier = []
        self._first = []
        if n_ahead and not in_numpy:
            # One wide product is faster than many narrow ones.
            layers = [weights.hidden[0] for weights in self._weights[:n_ahead]]
            weight, bias = map(torch.cat, zip(*layers, strict=True))
            maps = torch.relu_(functional.linear(self.x, weight, bias))
            self._first = maps.split([len(bias) for _, bias in layers], dim=1)

    def _take(self, x):
        """Go on with these rows, in the form in which they are computed with."""
        self.x = x
        self._rows = x.numpy() if self._run is _InNumpy else x

    @property
    def mean(self):
        """Running mean of the students run so far, None before the first one."""
        if isinstance(self._scores, np.ndarray):
            return torch.from_numpy(self._scores)
        return self._scores

    def advance(self):
        """Run the next student."""
        weights, run = self._weights[self.n_stages], self._run
        layers = weights.hidden
        if self.n_stages < len(self._first):
            own = self._first[self.n_stages]
        else:
            own = run.rectify(run.linear(self._rows, *layers[0]))
        for layer in layers[1:]:
            own = run.rectify(run.linear(own, *layer))
        joined = own
        if weights.is_joined:
            joined = run.beside([own, *self._earlier])
        if weights.join is not None:
            joined = run.rectify(run.linear(joined, *weights.join))
        scores = run.linear(joined, *weights.head)
        if self._scores is not None:
            scores = run.combined(scores, self._scores, weights.carry)
        self._scores = scores
        self._pass_on(own if weights.passes_own else joined)
        self.n_stages += 1

    def _pass_on(self, features):
        """Keep what later students read."""
        connection = self.ensemble.connection
        if connection is not None:
            self._earlier.append(features)
            # Of the students so far, those that the next one reads.
            first = _first_read(connection, self.n_stages + 1)
            del self._earlier[: len(self._earlier) - (self.n_stages + 1 - first)]

    def select(self, rows):
        """Drop all other rows: they are not computed any further."""
        self._take(self.x[rows])
        if self._run is _InNumpy:
            rows = rows.numpy()
        self._earlier = [part[rows] for part in self._earlier]
        self._first = [part[rows] for part in self._first]
        if self._scores is not None:
            self._scores = self._scores[rows]
