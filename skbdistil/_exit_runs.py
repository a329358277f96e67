"""Passes over the stages in which rows leave. NumPy only, whatever runs the stages."""

import time
from itertools import pairwise

import numpy as np

from skbdistil._exit_rules import rule_values

# By how much a step may take longer than the last one makes expect.
_TIME_MARGIN = 1.5


class ExitRun:
    """A pass over the stages on some rows, which leave one after the other.

    Parameters
    ----------
    state : object
        What a pass has computed so far: ``step()`` runs the next stage and returns the
        running means of the rows that are left, shape (n, L); ``select(rows)`` drops
        all but those at these positions.
    rows : slice
        Positions of the rows in `scores` and `stages`.
    scores : ndarray of shape (n_samples, L)
    stages : ndarray of shape (n_samples,)
        Of all rows; the run writes to them what rows leave with.
    rule : str or callable
    thresholds : ndarray of shape (T - 1,) or (T,)
        With a last one, rows that do not reach it are deferred: their stage is T + 1.
    temperatures : ndarray of shape (T,)

    Attributes
    ----------
    n_left : int
        Number of rows that have not left.
    left : slice or ndarray of int
        Their positions; while there are none, of those that were the last to leave.
    """

    def __init__(self, state, rows, scores, stages, *, rule, thresholds, temperatures):
        self._state = state
        # A slice is fast, for as long as it is all of them.
        self.left = rows
        self.n_left = rows.stop - rows.start
        self._history = []
        self._scores = scores
        self._stages = stages
        self._rule = rule
        self._thresholds = thresholds
        self._temperatures = temperatures

    def step(self):
        """Run the next stage on the rows that are left."""
        self._history.append(self._state.step())
        stage = len(self._history)
        if stage > len(self._thresholds):
            self.write()
            self.n_left = 0
            return
        threshold = self._thresholds[stage - 1]
        is_last = stage == len(self._temperatures)
        if threshold == np.inf and not is_last:
            return
        values = rule_values(self._rule, self._history, self._temperatures[stage - 1])
        # Values of scores that have overflowed are NaN.
        leaves = values >= threshold
        if is_last:
            self.write()
            self._stages[self.left] += ~leaves
            self.n_left = 0
            return
        n_leaves = np.count_nonzero(leaves)
        if not n_leaves:
            return
        self.write()
        if n_leaves < self.n_left:
            stays = np.flatnonzero(~leaves)
            if isinstance(self.left, slice):
                self.left = np.arange(self.left.start, self.left.stop)
            self.left = self.left[stays]
            self._history = [scores[stays] for scores in self._history]
            self._state.select(stays)
        self.n_left -= n_leaves

    def write(self):
        """Write what is known of the rows that are left."""
        if self.n_left:
            self._scores[self.left] = self._history[-1]
            self._stages[self.left] = len(self._history)


def run_within(runs, costs, seconds, began):
    """Run as many stages as the time allows.

    All runs make their first step. Further ones are made run by run, as long as the
    time of the next, expected from the last, is left.

    Parameters
    ----------
    runs : list of ExitRun
    costs : sequence of T numbers
        Of each stage alone. Where one is NaN, which is not known, a stage is expected
        to take as long as the one before.
    seconds : float
    began : float
        Reading of `time.perf_counter` from which on they count.
    """
    now = time.perf_counter()
    durations = {}
    for run in runs:
        run.step()
        run.write()
        durations[run], now = time.perf_counter() - now, time.perf_counter()
    for before, cost in pairwise(costs):
        # Rows only leave, so that a step takes longer where the stage is larger.
        growth = cost / before
        growth = growth if growth > 1 else 1  # also where it is NaN
        for run in runs:
            if not run.n_left:
                continue
            if now - began + _TIME_MARGIN * durations[run] * growth > seconds:
                return
            run.step()
            run.write()
            durations[run] = time.perf_counter() - now
            now = time.perf_counter()
