"""Recurrent students that take their steps together, for prediction.

A step of a narrow recurrent layer takes longer to call than to compute. Students whose
backbones see the rows only do not wait for each other, so that neighbours can be one
layer that has the units of all of them, and zeros where one would see another. This is
the parallel schedule of the paper's figure 4, or the hybrid one where there are several
groups. The numbers are the same but for rounding.
"""

import torch
from torch import nn

from skbdistil._module_hooks import has_own_forward, hooks
from skbdistil.ensemble import ProgressiveEnsemble, StageState, _Student
from skbdistil.students import RecurrentNet, _RecurrentLayer

__all__ = ["start"]

# Units of a group: the zeros are multiplied, too.
_MAX_UNITS = 64

# From so many rows on, computing a step takes longer than calling it.
_MANY_ROWS = 256

_N_GATES = {nn.GRU: 3, nn.LSTM: 4}

_PARAMETERS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


def start(ensemble, x, n_ahead):
    """Begin a pass in which narrow recurrent students run together, as for `_forms`.

    Returns
    -------
    state : StageState or None
        None where this form is not for the students.
    """
    if n_ahead > 1 and len(x) < _MANY_ROWS:
        groups = _groups(list(ensemble.students)[:n_ahead])
        # Looking at all modules takes time, which others need not spend.
        if len(groups) < n_ahead and _is_plain(ensemble):
            return _GroupedState(ensemble, x, groups)
    return None


def _is_plain(ensemble):
    """Whether students can be run without the calls of their modules."""
    return (
        type(ensemble) is ProgressiveEnsemble
        and ensemble.device.type == "cpu"
        and not any(hooks(ensemble))
        and not has_own_forward(map(vars, ensemble.modules()))
    )


def _groups(students):
    """Neighbours that run together, as lists; a student of another kind is alone."""
    groups, kind, n_units = [], None, 0
    for student in students:
        kind_before, kind = kind, _kind(student)
        widest = max(student.backbone.widths) if kind else 0
        n_units += widest
        if kind is None or kind != kind_before or n_units > _MAX_UNITS:
            groups.append([])
            n_units = widest
        groups[-1].append(student)
    return groups


def _kind(student):
    """Type and number of its layers, or None where they cannot be joined."""
    if type(student) is not _Student or type(student.backbone) is not RecurrentNet:
        return None
    layers = list(student.backbone.blocks)
    cells = {type(layer.rnn) for layer in layers if type(layer) is _RecurrentLayer}
    if len(cells) == 1 and all(map(_is_usual, layers)):
        return *cells, len(layers)
    return None


def _is_usual(layer):
    # A layer that goes both ways, or is pruned, has others.
    return (
        type(layer) is _RecurrentLayer
        and type(layer.rnn) in _N_GATES
        and list(layer.rnn._parameters) == _PARAMETERS
        and layer.rnn.batch_first
    )


class _GroupedState(StageState):
    """A pass in which the backbones of a group run when the first one is needed.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    x : torch.Tensor of shape (n, ...)
    groups : list of list of torch.nn.Module
        The first students.
    """

    def __init__(self, ensemble, x, groups):
        super().__init__(ensemble, x)
        self._groups = iter(groups)
        self._ready = []

    def _run(self, student):
        if not self._ready:
            self._ready = _features(next(self._groups, [student]), self.x)
        return student.joined(self._ready.pop(0), self.earlier)

    def select(self, rows):
        """Drop all other rows: they are not computed any further."""
        super().select(rows)
        self._ready = [features[rows] for features in self._ready]


def _features(students, x):
    """Features of the backbones of a group, in one pass over the steps."""
    backbones = [student.backbone for student in students]
    if len(backbones) == 1:
        return [backbones[0](x)]
    maps = x
    for position, layers in enumerate(zip(*[b.blocks for b in backbones], strict=True)):
        rnns = [layer.rnn for layer in layers]
        n_gates = _N_GATES[type(rnns[0])]
        # Of each parameter, by gate.
        of_x, of_h, *biases = (
            [getattr(rnn, name).unflatten(0, (n_gates, -1)) for rnn in rnns]
            for name in _PARAMETERS
        )
        weights = [
            # All of them read the rows, and each its own layer below.
            _diagonal(of_x) if position else torch.cat(of_x, dim=1),
            _diagonal(of_h),
            *(torch.cat(bias, dim=1) for bias in biases),
        ]
        weights = [weight.flatten(0, 1) for weight in weights]
        states = maps.new_zeros(1, len(maps), len(weights[1]) // n_gates)
        # Biases, layers, dropout, training, both ways, and the axis of the batch.
        options = True, 1, 0.0, False, False, True
        if isinstance(rnns[0], nn.GRU):
            maps, *_ = torch.gru(maps, states, weights, *options)
        else:
            maps, *_ = torch.lstm(maps, [states, states], weights, *options)
    sizes = [backbone.widths[-1] for backbone in backbones]
    return list(maps[:, -1].split(sizes, dim=1))


def _diagonal(blocks):
    """Matrices of each gate along the diagonals of larger ones."""
    n_rows, n_columns = (sum(block.shape[axis] for block in blocks) for axis in (1, 2))
    joined = blocks[0].new_zeros(len(blocks[0]), n_rows, n_columns)
    row = column = 0
    for block in blocks:
        _, height, width = block.shape
        joined[:, row : row + height, column : column + width] = block
        row, column = row + height, column + width
    return joined
