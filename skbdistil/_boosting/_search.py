"""FIND-WL: the search for a weak learner."""

from dataclasses import dataclass

import numpy as np
import torch

from skbdistil._boosting._random import derive_seed
from skbdistil._seeding import seeded
from skbdistil.objectives import _StudentLoss


@dataclass(frozen=True)
class WeakLearner:
    """A student that satisfies the weak-learning condition.

    Attributes
    ----------
    student : torch.nn.Module
    scores : ndarray of shape (n_samples, n_outputs)
        On the training rows, in evaluation mode.
    activations : tuple of torch.Tensor of shape (n_samples, ...)
        What later students read, on the training rows.
    edges : ndarray of shape (n_outputs,)
    position : int
        Of its hypothesis class in the ladder.
    history : list of dict
        Losses by epoch.
    """

    student: torch.nn.Module
    scores: np.ndarray
    activations: tuple
    edges: np.ndarray
    position: int
    history: list


class WeakLearnerSearch:
    """Train candidates until one satisfies the weak-learning condition.

    An attempt is a fresh initialisation. It is accepted when every edge is at least
    ``-edge_tol * bound``; the search goes on through the attempts of a hypothesis class
    until an edge is nowhere negative, and takes the accepted attempt with the largest
    minimum edge. Where no attempt is accepted, the ladder moves on to the next class.

    Parameters
    ----------
    ladder : list of callable
        Backbone factories.
    trainer : Trainer
    objective : DistillationObjective
    regression : bool
    multilabel : bool, default=False
    max_epochs : int
    max_attempts : int
    edge_tol : float
        In units of `bound`.
    bound : float
        ``B``, largest absolute teacher score.
    scale : float
        ``Q``, size of the teacher's scores that the barrier is relative to.

    References
    ----------
    .. [1] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference",
       algorithm 1 and section 4, NeurIPS 2023, arXiv:2302.10093.
    """

    def __init__(
        self,
        *,
        ladder,
        trainer,
        objective,
        regression,
        max_epochs,
        max_attempts,
        edge_tol,
        bound,
        scale,
        multilabel=False,
    ):
        self.ladder = ladder
        self.trainer = trainer
        self.objective = objective
        self.regression = regression
        self.multilabel = multilabel
        self.max_epochs = max_epochs
        self.max_attempts = max_attempts
        self.edge_tol = edge_tol
        self.bound = bound
        self.scale = scale

    def find(self, ensemble, game, rows, valid, *, first, seed, bar=None):
        """Search for the weak learner of one round.

        Parameters
        ----------
        ensemble : ProgressiveEnsemble
            The students so far.
        game : BoostingGame
        rows : RowData
        valid : RowData or None
        first : int
            Where in the ladder to begin.
        seed : int
        bar : Epochs or None

        Returns
        -------
        learner : WeakLearner or None
            None when the last class of the ladder has failed.
        failure : str or None
            Why there is none: which edge failed, and by how much.
        """
        best_failed = None
        n_diverged = 0
        allowed = self._allowed()
        for position in range(first, len(self.ladder)):
            best = None
            for attempt in range(self.max_attempts):
                if bar is not None:
                    bar.begin_attempt()
                attempt_seed = derive_seed(seed, position, attempt)
                learner = self._attempt(
                    ensemble, game, rows, valid, position, attempt_seed, bar
                )
                if bar is not None:
                    bar.end_attempt()
                if learner is None:
                    n_diverged += 1
                    continue
                if best is None or learner.edges.min() > best.edges.min():
                    best = learner
                if best.edges.min() >= 0:
                    break
            if best is not None and best.edges.min() >= allowed:
                return best, None
            if best is not None and (
                best_failed is None or best.edges.min() > best_failed.min()
            ):
                best_failed = best.edges
        return None, self._describe(best_failed, n_diverged)

    def _attempt(self, ensemble, game, rows, valid, position, seed, bar):
        """Train and judge one candidate; None if its scores are not finite."""
        with seeded(seed, self.trainer.device):
            student = ensemble.new_student(self.ladder[position])
        # An ensemble without scaling and students has no device and no dtype.
        student.to(rows.device, rows.dtype)
        loss = _StudentLoss(
            self.objective,
            self.regression,
            multilabel=self.multilabel,
            n_previous=game.residuals.rounds_of_outputs(len(ensemble) + 1) - 1,
            eta=game.eta,
            scale=self.scale,
            log_normalizer=torch.as_tensor(game.log_normalizer, dtype=rows.dtype),
        )
        history = self.trainer.train_student(
            student, loss, rows, valid, max_epochs=self.max_epochs, seed=seed, bar=bar
        )
        scores, activations = rows.run(student)
        if not rows.all_finite(scores):
            return None
        edges = game.edges(scores)
        return WeakLearner(student, scores, activations, edges, position, history)

    def _allowed(self):
        """Smallest edge of a weak learner."""
        # Not a product where the tolerance is infinite: the bound may be 0.
        return -np.inf if np.isinf(self.edge_tol) else -self.edge_tol * self.bound

    def _describe(self, edges, n_diverged):
        diverged = (
            f" {n_diverged} attempt(s) diverged to scores that are not finite."
            if n_diverged
            else ""
        )
        if edges is None:
            return diverged.strip()
        worst = int(edges.argmin())
        allowed = self._allowed()
        return (
            f"The best attempt has an edge of {edges[worst]:.3g} for output {worst}, "
            f"which is {allowed - edges[worst]:.3g} below the {allowed:.3g} that "
            f"edge_tol={self.edge_tol:g} allows.{diverged}"
        )
