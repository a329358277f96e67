"""The boosting game of B-DISTIL: weights of the rows, edges of the students and
what they certify about the ensemble.

NumPy only. Arrays with one row per sample are read chunk by chunk, so that the
teacher's scores and the residuals may be memory maps larger than memory.
"""

from dataclasses import dataclass
from math import log, sqrt
from typing import NamedTuple

import numpy as np

from skbdistil._boosting._ranks import ONE_RANK

# exp(-x) <= 1 - x + x ** 2 holds for x >= -1.79328.
LARGEST_STEP = 1.7932


def auto_eta(bound, n_samples, n_estimators):
    """Step of the Hedge update that balances the two terms of the certificate.

    The step is ``min(sqrt(ln(2 n_samples) / n_estimators), 1) / (2 bound)``. The
    cap keeps ``eta * 2 * bound <= 1``, the condition under which the certificate
    of a student with scores in ``[-bound, bound]`` holds. Without the cap, few
    students on many rows would make the weights overshoot.

    Parameters
    ----------
    bound : float
        Largest absolute teacher score, in ``[0, inf)``.

    n_samples : int
        Number of training rows, in ``[1, inf)``.

    n_estimators : int
        Number of rounds to be played, in ``[1, inf)``.

    Returns
    -------
    eta : float
        The step, in units of one over a score; 0.0 for a constant teacher
        (``bound`` of 0), which leaves nothing to boost.
    """
    if bound == 0:
        return 0.0
    return min(sqrt(log(2 * n_samples) / n_estimators), 1.0) / (2.0 * float(bound))


@dataclass(frozen=True, eq=False)
class Certificate:
    """What the game proves about the ensemble after each stage.

    Parameters
    ----------
    bound : ndarray of shape (n_stages, n_outputs)
        Upper bound on the largest deviation of the ensemble from the teacher, in
        units of the scores. It is infinite from the first stage whose step exceeds
        1.7932, everywhere if ``eta`` is 0, and for an output before the first round
        that trains it: nothing is proved there.

    potential : ndarray of shape (n_stages, n_outputs)
        Upper bound on the same deviation from the weights of the game alone, in units
        of the scores. It holds whatever the steps were. It is infinite if ``eta`` is 0,
        and for an output before the first round that trains it.

    actual : ndarray of shape (n_stages, n_outputs)
        The largest absolute deviation of the ensemble from the teacher over the
        training rows of positive weight, in units of the scores.

    mean : ndarray of shape (n_stages, n_outputs)
        The mean absolute deviation over the training rows, under their sample
        weights, in units of the scores.

    step : ndarray of shape (n_stages,)
        ``eta`` times the largest deviation of the student of each round from the
        teacher, over rows of positive weight and all outputs. Without unit.
    """

    bound: np.ndarray
    potential: np.ndarray
    actual: np.ndarray
    mean: np.ndarray
    step: np.ndarray

    def __len__(self):
        """Number of stages."""
        return len(self.step)

    def __getitem__(self, stages):
        """Certificate of a range of stages.

        Parameters
        ----------
        stages : slice
            The stages to keep.

        Returns
        -------
        certificate : Certificate
            A certificate whose arrays are views of this one's.
        """
        return Certificate(
            self.bound[stages],
            self.potential[stages],
            self.actual[stages],
            self.mean[stages],
            self.step[stages],
        )

    def scaled(self, scale):
        """Certificate in other units, one factor per output.

        Parameters
        ----------
        scale : ndarray of shape (n_outputs,)
            Units of the new certificate per unit of this one, in ``[0, inf)``: for
            standardised regression targets, their standard deviations.

        Returns
        -------
        certificate : Certificate
            A certificate whose arrays but ``step`` are scaled. Where nothing is proved,
            bounds stay infinite even if the scale is 0.
        """

        def scaled(bound):
            result = np.full_like(bound, np.inf)
            return np.multiply(bound, scale, out=result, where=np.isfinite(bound))

        return Certificate(
            scaled(self.bound),
            scaled(self.potential),
            self.actual * scale,
            self.mean * scale,
            self.step,
        )


class _Round(NamedTuple):
    """What is recorded of a round, per output."""

    edge: np.ndarray
    moment: np.ndarray  # sum over the rows of (K+ + K-) (f - g)^2
    largest: np.ndarray  # of |f - g|, over rows in the game
    peak: np.ndarray  # largest |S| after the round, over rows in the game
    log_mass: np.ndarray  # log Z after the round, less eta * peak
    mean: np.ndarray  # of |S| after the round, under the sample weights


class BoostingGame:
    """Two-player game between students and an adversary that weights the rows.

    For every output the adversary plays Hedge over two experts per row: one gains
    where the ensemble is below the teacher, the other where it is above. With
    ``S`` the sum over students of their deviations from the teacher, the weights
    of row i and output j are::

        weight_under = w[i] * exp(-eta * S[i, j]) / Z[j]
        weight_over  = w[i] * exp(+eta * S[i, j]) / Z[j]
        Z[j] = sum over i of w[i] * 2 cosh(eta * S[i, j])

    where ``w`` are the sample weights, normalised to sum to 1. Both weights
    together sum to 1 over the rows.

    Parameters
    ----------
    residuals : Residuals
        The sums ``S``, which the game resets now and updates with every round.

    eta : float
        Step of the Hedge update, in ``[0, inf)`` and units of one over a score. 0
        keeps the weights at the sample weights.

    sample_weight : array-like of shape (n_samples,), default=None
        Weight of each row in the first round, non-negative, up to a common factor.
        Rows of weight 0 leave the game: their weights stay 0 and their deviations
        do not count. `None` weights all rows alike.

    ranks : OneRank
        Where the other rows of the game are, if they are not here: what is summed or
        compared over the rows goes through it. `residuals` and `sample_weight` are
        about the rows that are here.

    Attributes
    ----------
    residuals : Residuals

    eta : float
        Step of the Hedge update.

    log_normalizer : ndarray of shape (n_outputs,)
        Logarithm of ``Z``, float64.

    student_edges : ndarray of shape (n_rounds, n_outputs)
        Edge of each student under the weights of its round.

    Raises
    ------
    ValueError
        If `eta` is negative or not finite, or if `sample_weight` has another length,
        a negative or non-finite entry or no positive one.

    References
    ----------
    .. [1] D. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
           Ensemble Distillation: Building Ensembles for Efficient Inference",
           NeurIPS 2023, Algorithm 1. arXiv:2302.10093.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil._boosting._game import BoostingGame
    >>> from skbdistil._boosting._residuals import Residuals
    >>> teacher_scores = np.array([[1.0], [-1.0]])
    >>> game = BoostingGame(Residuals(teacher_scores), eta=0.5)
    >>> game.update(np.array([[0.0], [-1.0]]))
    >>> weight_under, weight_over = game.weights()
    >>> bool(weight_under[0, 0] > weight_over[0, 0])
    True
    >>> certificate = game.certificate()
    >>> certificate.actual
    array([[1.]])
    >>> bool((certificate.actual <= certificate.bound).all())
    True
    """

    def __init__(self, residuals, *, eta, sample_weight=None, ranks=ONE_RANK):
        if not 0 <= eta < np.inf:
            raise ValueError(f"eta must be non-negative and finite, got {eta!r}.")
        self.residuals = residuals
        self.eta = eta
        self._ranks = ranks
        self._log_prior = _log_prior(sample_weight, len(residuals), ranks)
        self.reset()

    @property
    def _n_outputs(self):
        return self.residuals.total.shape[1]

    @property
    def log_normalizer(self):
        return self.eta * self._peak + self._log_mass

    @property
    def student_edges(self):
        return self._history("edge")

    def weights(self, rows=slice(None)):
        """Weights of the adversary.

        Parameters
        ----------
        rows : slice or array of int, default=slice(None)
            The rows to weight. All of them by default.

        Returns
        -------
        weight_under : ndarray of shape (n_rows, n_outputs)
            Weight of each row and output if the ensemble is below the teacher
            there, K+ in the paper; float64.

        weight_over : ndarray of shape (n_rows, n_outputs)
            The same if the ensemble is above the teacher, K- in the paper.
        """
        total = np.asarray(self.residuals.total[rows], dtype=np.float64)
        log_scale = self._log_prior[rows, np.newaxis] - self._log_mass
        # Peak and sum meet before anything else is added: log_normalizer as a single
        # number of size 1e6 would leave ten digits of the weights.
        weight_under = np.exp(log_scale - self.eta * (self._peak + total))
        weight_over = np.exp(log_scale - self.eta * (self._peak - total))
        return weight_under, weight_over

    def edges(self, scores):
        """Edges of a student under the current weights.

        A student with edges of at least 0 is a weak learner: where the ensemble is
        below the teacher, it tends to be above. In the first round the edges of
        every student are 0.

        Parameters
        ----------
        scores : ndarray or memmap of shape (n_samples, n_outputs)
            Scores of the student.

        Returns
        -------
        edges : ndarray of shape (n_outputs,)
            Sum over the rows of ``(weight_under - weight_over) * (scores -
            teacher_scores)``, in units of the scores; float64.

        Raises
        ------
        ValueError
            If `scores` has another shape than the teacher's scores.
        """
        edges = np.zeros(self._n_outputs)
        for rows, deviations in self.residuals.deviations(scores):
            _, difference = self._mass(rows)
            edges += np.einsum("ij,ij->j", difference, deviations)
        return self._ranks.sum(edges)

    def update(self, scores):
        """Play a round: a student joins the ensemble and the weights follow.

        Parameters
        ----------
        scores : ndarray or memmap of shape (n_samples, n_outputs)
            Scores of the student.

        Raises
        ------
        ValueError
            If `scores` has another shape than the teacher's scores.

        Notes
        -----
        After an interrupted call, `reset` the game and play all rounds again.
        """
        edge, moment, largest = self._judge(scores)
        self.residuals.add(scores)
        mean = self._reweight()
        self._rounds.append(
            _Round(edge, moment, largest, self._peak, self._log_mass, mean)
        )

    def _judge(self, scores):
        """Edge, second moment and largest deviation of a student, per output."""
        edge = np.zeros(self._n_outputs)
        moment = np.zeros_like(edge)
        largest = np.zeros_like(edge)
        for rows, deviations in self.residuals.deviations(scores):
            mass, difference = self._mass(rows)
            edge += np.einsum("ij,ij->j", difference, deviations)
            moment += np.einsum("ij,ij->j", mass * deviations, deviations)
            size = _column_max(np.abs(deviations), self._in_game(rows))
            largest = np.maximum(largest, size)
        ranks = self._ranks
        return ranks.sum(edge), ranks.sum(moment), ranks.max(largest)

    def _reweight(self):
        """Normalise the weights that the residuals give; returns the mean of |S|."""
        peak = np.zeros_like(self._peak)
        mass = np.zeros_like(peak)
        mean = np.zeros_like(peak)
        for rows in self.residuals.chunks():
            log_prior = self._log_prior[rows, np.newaxis]
            size = np.abs(self.residuals.total[rows], dtype=np.float64)
            mean += np.einsum("i,ij->j", np.exp(log_prior[:, 0]), size)
            # A running logsumexp over the rows: the mass so far is relative to the
            # largest size so far.
            previous_peak = peak
            peak = np.maximum(peak, _column_max(size, self._in_game(rows)))
            mass *= np.exp(self.eta * (previous_peak - peak))
            mass += np.exp(log_prior - self.eta * (peak - size)).sum(axis=0)
            mass += np.exp(log_prior - self.eta * (peak + size)).sum(axis=0)
        self._peak = self._ranks.max(peak)
        # The masses of all ranks, relative to the largest size of all.
        mass *= np.exp(self.eta * (peak - self._peak))
        self._log_mass = np.log(self._ranks.sum(mass))
        return self._ranks.sum(mean)

    def certificate(self):
        """Certificate of the rounds played so far.

        Returns
        -------
        certificate : Certificate
            Bound and actual deviation of the ensemble from the teacher.

        Notes
        -----
        Write l for the deviations of a round's student from the teacher. If ``eta
        * abs(l) <= 1.7932``, then ``exp(-x) <= 1 - x + x ** 2`` with ``x = eta * l``
        and ``ln(1 + a) <= a`` give, for each output::

            ln Z(t) <= ln Z(t - 1) - eta * edge(t) + eta ** 2 * moment(t)

        where the moment is the sum over the rows of ``(weight_under + weight_over)
        * l ** 2``. From ``Z(0) = 2`` and ``Z(T) >= min(w) * exp(eta * abs(S))``::

            T * max(abs(F - g)) <= ln(2 / min(w)) / eta
                                   + eta * (sum of moments) - (sum of edges)

        for any students at all, weak learners or not. The last inequality on ``Z(T)``
        alone gives the potential, for steps of any size::

            T * max(abs(F - g)) <= (ln Z(T) - ln min(w)) / eta
        """
        stage = self._stages_of_outputs()
        started = stage > 0
        stage = np.maximum(stage, 1)
        actual = self._history("peak") / stage
        mean = self._history("mean") / stage
        step = self.eta * self._history("largest").max(axis=1, initial=0.0)
        bound = np.full_like(actual, np.inf)
        potential = bound.copy()
        if self.eta > 0:
            lightest = self._log_prior.min(
                where=self._log_prior > -np.inf, initial=np.inf
            )
            lightest = -self._ranks.max(-lightest)
            growth = self.eta * self._history("moment") - self.student_edges
            proved = np.logical_and.accumulate(step <= LARGEST_STEP)
            log_mass = self._history("log_mass") - lightest
            # A step close to 0 proves nothing either.
            with np.errstate(over="ignore"):
                start = (log(2) - lightest) / self.eta
                bound[proved] = ((start + np.cumsum(growth, axis=0)) / stage)[proved]
                potential = actual + log_mass / (self.eta * stage)
        if not started.all():
            bound[~started] = potential[~started] = np.inf
            largest, weighted = self._sizes_of_teacher()
            actual = np.where(started, actual, largest)
            mean = np.where(started, mean, weighted)
        return Certificate(bound, potential, actual, mean, step)

    def _stages_of_outputs(self):
        """Number of rounds that have trained each output, after each stage."""
        numbers = [
            np.broadcast_to(self.residuals.rounds_of_outputs(stage), self._n_outputs)
            for stage in range(1, len(self._rounds) + 1)
        ]
        return np.reshape(numbers, (len(numbers), self._n_outputs))

    def _sizes_of_teacher(self):
        """Largest and mean absolute score of the teacher, per output."""
        largest = np.zeros(self._n_outputs)
        mean = np.zeros_like(largest)
        for rows in self.residuals.chunks():
            size = np.abs(self.residuals.teacher_scores[rows], dtype=np.float64)
            largest = np.maximum(largest, _column_max(size, self._in_game(rows)))
            mean += np.einsum("i,ij->j", np.exp(self._log_prior[rows]), size)
        return self._ranks.max(largest), self._ranks.sum(mean)

    def reset(self):
        """Forget all rounds, for instance to replay the game with refined students."""
        self.residuals.reset()
        # log Z is kept as eta * peak + log_mass, peak being the largest abs(S).
        self._peak = np.zeros(self._n_outputs)
        self._log_mass = np.full(self._n_outputs, log(2))
        self._rounds = []

    def _in_game(self, rows):
        return self._log_prior[rows, np.newaxis] > -np.inf

    def _mass(self, rows):
        """Sum and difference of the weights of some rows."""
        weight_under, weight_over = self.weights(rows)
        mass = weight_under + weight_over
        # Subtracting the weights would leave only rounding where S is near 0.
        total = np.asarray(self.residuals.total[rows], dtype=np.float64)
        return mass, mass * np.tanh(-self.eta * total)

    def _history(self, name):
        """One entry of the record of all rounds, shape (n_rounds, n_outputs)."""
        rounds = [getattr(played, name) for played in self._rounds]
        return np.reshape(rounds, (len(rounds), self._n_outputs))


def _log_prior(sample_weight, n_samples, ranks):
    """Logarithm of the sample weights, normalised to sum to 1; -inf for 0."""
    if sample_weight is None:
        # A broadcast scalar: no memory that grows with the rows.
        _, n_total = ranks.place(n_samples)
        return np.broadcast_to(-log(n_total), n_samples)
    sample_weight = np.asarray(sample_weight, dtype=np.float64)
    if sample_weight.shape != (n_samples,):
        raise ValueError(
            f"sample_weight must have shape ({n_samples},), got {sample_weight.shape}."
        )
    if not (np.isfinite(sample_weight).all() and (sample_weight >= 0).all()):
        raise ValueError("sample_weight must be non-negative and finite.")
    if not sample_weight.any():
        raise ValueError("sample_weight must have at least one positive entry.")
    log_prior = np.full(n_samples, -np.inf)
    np.log(sample_weight, out=log_prior, where=sample_weight > 0)
    return log_prior - log(ranks.sum(sample_weight.sum()))


def _column_max(array, in_game):
    """Largest entry of each column of a non-negative array over rows in the game."""
    return array.max(axis=0, where=in_game, initial=0.0)
