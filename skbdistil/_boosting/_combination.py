"""How the head of a new student and the earlier students make up the ensemble."""

import numpy as np
import torch
from torch import nn


class Combination(nn.Module):
    """A student in training: ``forward`` gives the running mean that includes it.

    The running mean is ``F_t = a F_{t-1} + b head_t``. In the terms of the game, whose
    students are the ``f_t`` with ``F_t`` as their mean, the student is ``f_t = t b
    head_t + (t a - t + 1) F_{t-1}``.

    Outputs may start in different rounds; each then has a t of its own. Whatever the
    form, one that starts has ``a = 0`` and ``b = 1``, and one that the round does not
    train has ``a = 1`` and ``b = 0``.

    Parameters
    ----------
    student : torch.nn.Module
        Fresh, as :meth:`~skbdistil.ensemble.ProgressiveEnsemble.new_student` gives it.
        For ``"sum"`` its head is set to 0, but for outputs that start.

    number : int or ndarray of int of shape (n_outputs,)
        Which one it is, t, from 1 on. In an array, 0 for outputs that the round does
        not train.

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
        self._is_whole = np.ndim(number) == 0 and number == 1
        self._shifts = None
        if self._is_whole:
            return
        head = student.head
        self._a, self._b = _factors_of_mean(number, head.weight)
        goes_on = torch.as_tensor(number > 1, device=head.weight.device)
        if combine == "sum":
            self._a, self._b = (
                torch.where(goes_on, 1, factor) for factor in (self._a, self._b)
            )
            with torch.no_grad():
                head.weight.masked_fill_(goes_on.view(-1, 1), 0)
                head.bias.masked_fill_(goes_on, 0)
        elif combine == "learned":
            # What a and b deviate by from where they start: weight decay, which the
            # optimizer may have, then means a deviation that is smaller.
            self._shifts = nn.Parameter(torch.zeros(2).to(head.weight))
            self._shifted = goes_on.to(head.weight)

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
        if self._is_whole:
            return scores
        a, b = self._factors()
        return b * scores if mean is None else a * mean + b * scores

    def _factors(self):
        if self._shifts is None:
            return self._a, self._b
        return (
            torch.addcmul(factor, self._shifted, shift)
            for factor, shift in zip((self._a, self._b), self._shifts, strict=True)
        )

    def settle(self):
        """Leave the factors to the student: b in its head, a as its `carry`."""
        if not self._is_whole:
            _settle(self.student, *self._factors())


def settle_as_mean(student, number):
    """Make a student one of those of which the ensemble is the mean.

    Parameters
    ----------
    student : torch.nn.Module
    number : int or ndarray of int of shape (n_outputs,)
        As for :class:`Combination`.
    """
    Combination(student, number, "mean").settle()


def _factors_of_mean(number, like):
    """The a and b of a mean, of the type of a tensor and where it is."""
    number = torch.as_tensor(number, dtype=torch.float64)
    at_least_1 = number.clamp(min=1)
    a = torch.where(number > 0, (number - 1) / at_least_1, 1)
    b = torch.where(number > 0, 1 / at_least_1, 0)
    return a.to(like), b.to(like)


@torch.no_grad()
def _settle(student, a, b):
    student.head.weight *= b.view(-1, 1)
    student.head.bias *= b
    student.carry.copy_(a)
