"""How the head of a new student and the earlier students make up the ensemble."""

import torch
from torch import nn


class Combination(nn.Module):
    """A student in training: ``forward`` gives the running mean that includes it.

    The running mean is ``F_t = a F_{t-1} + b head_t``. In the terms of the game, whose
    students are the ``f_t`` with ``F_t`` as their mean, the student is ``f_t = t b
    head_t + (t a - t + 1) F_{t-1}``.

    Parameters
    ----------
    student : torch.nn.Module
        Fresh, as :meth:`~skbdistil.ensemble.ProgressiveEnsemble.new_student` gives it.
        For ``"sum"`` its head is set to 0.

    number : int
        Which one it is, t, from 1 on.

    combine : {"mean", "sum", "learned"}
        ``"mean"``: ``a = (t - 1) / t`` and ``b = 1 / t``, so that ``f_t`` is the head;
        ``"sum"``: ``a = b = 1`` with a head that starts at 0; ``"learned"``: two
        numbers that are trained with the student and start as for ``"mean"``.

    Attributes
    ----------
    student : torch.nn.Module
    """

    def __init__(self, student, number, combine):
        super().__init__()
        self.student = student
        self._is_first = number == 1
        self._a, self._b = (number - 1) / number, 1 / number
        self._shifts = None
        if self._is_first:
            return
        if combine == "sum":
            self._a = self._b = 1.0
            nn.init.zeros_(student.head.weight)
            nn.init.zeros_(student.head.bias)
        elif combine == "learned":
            # What a and b deviate by from where they start: weight decay, which the
            # optimizer may have, then means a deviation that is smaller.
            self._shifts = nn.Parameter(torch.zeros(2).to(student.head.weight))

    def forward(self, x, earlier=(), mean=None):
        """Running mean that includes the student.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)
        earlier : list of tuple of torch.Tensor
        mean : torch.Tensor of shape (n, n_outputs) or None
            ``F_{t-1}``; None for the first student.

        Returns
        -------
        mean : torch.Tensor of shape (n, n_outputs)
            ``F_t``.
        """
        scores, _ = self.student(x, earlier)
        if self._is_first:
            return scores
        a, b = self._factors()
        return a * mean + b * scores

    def _factors(self):
        if self._shifts is None:
            return self._a, self._b
        return self._a + self._shifts[0], self._b + self._shifts[1]

    def settle(self):
        """Leave the factors to the student: b in its head, a as its `carry`."""
        if not self._is_first:
            _settle(self.student, *self._factors())


def settle_as_mean(student, number):
    """Make a student one of those of which the ensemble is the mean.

    Parameters
    ----------
    student : torch.nn.Module
    number : int
        Which one it is, t, from 1 on.
    """
    if number > 1:
        _settle(student, (number - 1) / number, 1 / number)


@torch.no_grad()
def _settle(student, a, b):
    student.head.weight *= b
    student.head.bias *= b
    student.carry.fill_(a)
