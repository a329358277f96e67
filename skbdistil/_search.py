"""FIND-WL: the search for a weak learner."""

from dataclasses import dataclass

import numpy as np
import torch

from skbdistil._random import derive_seed, torch_seed
from skbdistil.objectives import StudentLoss


@dataclass(frozen=True)
class WeakLearner:
    """A student that satisfies the weak-learning condition.

    Attributes
    ----------
    student : torch.nn.Module
    scores : ndarray of shape (n_samples, n_outputs)
        On the training rows, in evaluation mode.
    kept : tuple of torch.Tensor
        What it keeps for later students, on the training rows.
    edges : ndarray of shape (n_outputs,)
    rung : int
        Position of its hypothesis class in the ladder.
    history : list of dict
        Losses by epoch.
    """

    student: torch.nn.Module
    scores: np.ndarray
    kept: tuple
    edges: np.ndarray
    rung: int
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
    max_epochs : int
    max_attempts : int
    edge_tol : float
        In units of `bound`.
    max_edge_scale : float
        Largest factor of the edge calibration; 1 for none.
    bound : float
        ``B``, largest absolute teacher score.

    Attributes
    ----------
    failure : str
        After a search without success: which edge failed, and by how much.

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
        max_edge_scale,
        bound,
    ):
        self.ladder = ladder
        self.trainer = trainer
        self.objective = objective
        self.regression = regression
        self.max_epochs = max_epochs
        self.max_attempts = max_attempts
        self.edge_tol = edge_tol
        self.max_edge_scale = max_edge_scale
        self.bound = bound
        self.failure = None

    def find(self, game, rows, valid, *, first_rung, seed, bar=None):
        """Search for the weak learner of one round.

        Parameters
        ----------
        game : BoostingGame
        rows : RowData
        valid : RowData or None
        first_rung : int
            Where in the ladder to begin.
        seed : int
        bar : tqdm or None

        Returns
        -------
        learner : WeakLearner or None
            None when the last class of the ladder has failed.
        """
        best_failed = None
        n_diverged = 0
        allowed = self._allowed()
        for rung in range(first_rung, len(self.ladder)):
            best = None
            for attempt in range(self.max_attempts):
                if bar is not None:
                    bar.reset()
                learner = self._attempt(
                    game, rows, valid, rung, derive_seed(seed, rung, attempt), bar
                )
                if learner is None:
                    n_diverged += 1
                    continue
                if best is None or learner.edges.min() > best.edges.min():
                    best = learner
                if best.edges.min() >= 0:
                    break
            if best is not None and best.edges.min() >= allowed:
                return best
            if best is not None and (
                best_failed is None or best.edges.min() > best_failed.min()
            ):
                best_failed = best.edges
        self.failure = self._describe(best_failed, n_diverged)
        return None

    def _attempt(self, game, rows, valid, rung, seed, bar):
        """Train and judge one candidate; None if its scores are not finite."""
        ensemble = rows.ensemble
        with torch_seed(seed, self.trainer.device):
            student = ensemble.new_student(self.ladder[rung])
        teacher = rows.teacher
        loss = StudentLoss(
            self.objective,
            self.regression,
            n_previous=rows.n_previous,
            eta=game.eta,
            bound=self.bound,
            log_normalizer=torch.as_tensor(game.log_normalizer, dtype=teacher.dtype),
        )
        history = self.trainer.train(
            student, loss, rows, valid, max_epochs=self.max_epochs, seed=seed, bar=bar
        )
        if not self.regression:
            _centre(student.head)
        scores, kept = rows.run(student)
        if not np.isfinite(scores).all():
            return None
        if self.max_edge_scale > 1 and self._calibrate(student, scores, game):
            scores, kept = rows.run(student)
        return WeakLearner(student, scores, kept, game.edges(scores), rung, history)

    def _calibrate(self, student, scores, game):
        """Scale the outputs of the head so that edges become non-negative.

        The smallest factor in [1, max_edge_scale] that does is taken; an output for
        which there is none stays as it is.

        Returns
        -------
        changed : bool
        """
        # The head has to make up for g, or for g - F_{t-1} = -S / (t - 1) where the
        # running mean is added to its output.
        edges = game.edges(scores)
        if student.adds_running_mean:
            wanted = -game.inner(game.residual_sum) / game.n_rounds
        else:
            wanted = game.inner(game.teacher_scores)
        of_head = edges + wanted
        with np.errstate(divide="ignore", invalid="ignore"):
            # A touch more than needed: the scores are rounded.
            factor = wanted / of_head * (1 + 1e-6)
        usable = (of_head > 0) & (factor > 1) & (factor <= self.max_edge_scale)
        if not usable.any():
            return False
        factor = np.where(usable, factor, 1.0)
        with torch.no_grad():
            weight = student.head.weight
            scale = torch.as_tensor(factor, dtype=weight.dtype, device=weight.device)
            weight.mul_(scale[:, None])
            student.head.bias.mul_(scale)
        return True

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


@torch.no_grad()
def _centre(head):
    """Make the logits sum to 0 per row, as the teacher's do.

    Softmax does not see a shift that all logits share, so a distillation term leaves
    it undetermined; the game does see it.
    """
    head.weight -= head.weight.mean(0)
    head.bias -= head.bias.mean()
