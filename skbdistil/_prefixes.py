"""A pass over students and steps, in which recurrent students read on. Plain torch."""

import numpy as np
import torch

from skbdistil.costs import stage_costs
from skbdistil.ensemble import _Student
from skbdistil.students import RecurrentNet


def can_read_on(student):
    """Whether a student can go on from where it has read to.

    Its backbone is recurrent, and its connection reads the last features of the earlier
    students, not their states step by step. It has no padding, which is known at the
    end of a row only.
    """
    return (
        type(student) is _Student
        and type(student.backbone) is RecurrentNet
        and student.backbone.padding_value is None
    )


def prefix_stages(n_students, steps):
    """Stages in the order in which they are run.

    Parameters
    ----------
    n_students : int
    steps : sequence of int
        Numbers of steps, increasing.

    Returns
    -------
    stages : ndarray of int of shape (n_students * len(steps), 2)
        Numbers of students and of steps: all students, one after the other, at the
        first number of steps, then at the next.
    """
    students, steps = np.meshgrid(np.arange(1, n_students + 1), steps)
    return np.column_stack([students.ravel(), steps.ravel()])


def is_of_ensemble(stages, ensemble):
    """Whether these are stages of this ensemble, as :func:`prefix_stages` gives them.

    Parameters
    ----------
    stages : ndarray of int of shape (n_stages, 2)
    ensemble : ProgressiveEnsemble

    Returns
    -------
    answer : bool
    """
    if not len(stages):
        return False
    n_students, n_steps = stages.max(axis=0).tolist()
    known = n_students <= len(ensemble) and n_steps <= ensemble.input_shape[0]
    return (
        known
        and stages.min() >= 1
        and np.array_equal(stages, prefix_stages(n_students, np.unique(stages[:, 1])))
        and all(map(can_read_on, ensemble.students))
    )


def prefix_macs(ensemble, stages):
    """Multiply-accumulates per row that each stage adds, where no step is read twice.

    Each step costs a recurrent student the same; connection and head cost the same at
    every stage.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    stages : ndarray of shape (n_stages, 2)
        As :func:`prefix_stages` returns them.

    Returns
    -------
    macs : ndarray of shape (n_stages,)
        NaN where they could not be counted.
    """
    example = ensemble.example()
    one, two = (
        stage_costs(ensemble, example[:, [0] * n_steps]).macs.astype(float)
        for n_steps in (1, 2)
    )
    per_step = two - one
    students, steps = stages.T
    lengths = np.unique(steps)
    further = np.diff(lengths, prepend=0)[np.searchsorted(lengths, steps)]
    return per_step[students - 1] * further + (one - per_step)[students - 1]


class PrefixState:
    """What a pass over students and steps has computed so far.

    A :class:`~skbdistil.ensemble.StageState` whose stages are those of
    :func:`prefix_stages`. Each student keeps its recurrent states, and no step is read
    twice by any of them.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Whose students :func:`can_read_on`.
    stages : ndarray of int of shape (n_stages, 2)
    x : torch.Tensor of shape (n, n_steps, channels)
        Steps of the rows, scaled. Those that are missing come by `feed`.

    Attributes
    ----------
    x : torch.Tensor of shape (n, n_steps, channels)
        The steps that were read last.
    mean : torch.Tensor of shape (n, n_outputs) or None
        Running mean of the students at these steps. None before the first stage.
    n_stages : int
        Number of stages run.
    """

    def __init__(self, ensemble, stages, x):
        self._students = list(ensemble.students)[: stages[-1, 0]]
        self._read_by = [ensemble.read_by(k) for k in range(len(self._students))]
        self._lengths = np.diff(np.unique(stages[:, 1]), prepend=0).tolist()
        self._states = [None] * len(self._students)
        self._passed = []
        self._waiting = [x]
        self.x = x[:, :0]
        self.mean = None
        self.n_stages = 0

    def feed(self, x):
        """Take further steps of the rows, scaled, which stages read when it is time."""
        self._waiting.append(x)

    def advance(self):
        """Run the next stage, whose steps must be there."""
        length, position = divmod(self.n_stages, len(self._students))
        if position == 0:
            waiting = torch.cat(self._waiting, dim=1)
            # In one piece, however they have come.
            self.x = waiting[:, : self._lengths[length]].contiguous()
            self._waiting = [waiting[:, self._lengths[length] :]]
            self._passed = []
        student = self._students[position]
        features, self._states[position] = student.backbone.advance(
            self.x, self._states[position]
        )
        read = self._read_by[position]
        earlier = [
            parts if index in read else () for index, parts in enumerate(self._passed)
        ]
        scores, parts = student.joined(features, earlier)
        self._passed.append(parts)
        if position:
            scores = torch.addcmul(scores, self.mean, student.carry)
        self.mean = scores
        self.n_stages += 1

    def select(self, rows):
        """Drop all other rows: they are not computed any further.

        Parameters
        ----------
        rows : torch.Tensor of int
            Indices of the rows that stay.
        """
        self.x = self.x[rows]
        self.mean = self.mean[rows]
        self._waiting = [x[rows] for x in self._waiting]
        self._passed = [tuple(part[rows] for part in parts) for parts in self._passed]
        self._states = [
            None if states is None else [_rows_of(state, rows) for state in states]
            for states in self._states
        ]


def _rows_of(state, rows):
    if isinstance(state, tuple):
        return tuple(part[:, rows] for part in state)
    return state[:, rows]
