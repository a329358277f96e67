"""What `verbose` shows while a fit goes on."""

import sys
import time
from contextlib import nullcontext

import numpy as np
from tqdm.auto import tqdm


class Progress:
    """Bars over the epochs on a terminal, and one line about each round.

    Parameters
    ----------
    verbose : bool
        False shows nothing.
    estimator_name : str
    n_rounds : int
        Number of rounds, those of an earlier fit included.
    agreement : callable
        Called with the scores of the teacher and those of the ensemble.
    agreement_name : str
    """

    def __init__(self, verbose, estimator_name, n_rounds, agreement, agreement_name):
        self.verbose = verbose
        self.estimator_name = estimator_name
        self.n_rounds = n_rounds
        self.agreement = agreement
        self.agreement_name = agreement_name

    def start(self, n_done):
        """Begin with the rounds after those that are done."""
        self._began = time.perf_counter()
        self._n_before = n_done

    def bar(self, n_epochs, what):
        """Progress bar over the epochs of a round, or of a refinement."""
        # In a file, a bar would leave a line every time it is drawn.
        if not (self.verbose and sys.stderr.isatty()):
            return nullcontext()
        return tqdm(
            total=n_epochs,
            desc=f"[{self.estimator_name}] {what}",
            unit="epoch",
            leave=False,
        )

    def name_of(self, number):
        """Words for a round."""
        return f"round {number} of {self.n_rounds}"

    def report(self, game, seconds):
        """Print one line about the last round.

        Parameters
        ----------
        game : BoostingGame
        seconds : float
            Time of the round.
        """
        if not self.verbose:
            return
        residuals = game.residuals
        number = residuals.n_rounds
        teacher, mean = residuals.teacher_scores, residuals.mean()
        error = np.sqrt(np.mean((mean - teacher) ** 2))
        line = (
            f"[{self.estimator_name}] {self.name_of(number)}: "
            f"min edge {game.student_edges[-1].min():+.3f}, "
            f"RMSE against the teacher {error:.3f}, "
            f"{self.agreement_name} {self.agreement(teacher, mean):.4f}, "
            f"{seconds:.1f} s"
        )
        if number < self.n_rounds:
            per_round = (time.perf_counter() - self._began) / (number - self._n_before)
            left = per_round * (self.n_rounds - number)
            line += f", about {left:.0f} s left"
        tqdm.write(line)
