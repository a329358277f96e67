"""The boosting game of B-DISTIL: weights of the rows, edges of the students and
what they certify about the ensemble.

NumPy only. Arrays with one row per sample are read chunk by chunk, so that the
teacher's scores and the residual sum may be memory maps larger than memory.
"""

from dataclasses import dataclass
from math import log, sqrt

import numpy as np


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
        1, and everywhere if ``eta`` is 0: nothing is proved there.

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
            A certificate with scaled ``bound``, ``actual`` and ``mean``. Where nothing
            is proved, the bound stays infinite even if the scale is 0.
        """
        bound = np.full_like(self.bound, np.inf)
        np.multiply(self.bound, scale, out=bound, where=np.isfinite(self.bound))
        return Certificate(bound, self.actual * scale, self.mean * scale, self.step)


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
    teacher_scores : ndarray or memmap of shape (n_samples, n_outputs)
        Scores of the teacher, float32 or float64. Read, never copied or written.

    eta : float
        Step of the Hedge update, in ``[0, inf)`` and units of one over a score. 0
        keeps the weights at the sample weights.

    sample_weight : array-like of shape (n_samples,), default=None
        Weight of each row in the first round, non-negative, up to a common factor.
        Rows of weight 0 leave the game: their weights stay 0 and their deviations
        do not count. `None` weights all rows alike.

    residual_sum : ndarray or memmap of shape (n_samples, n_outputs), default=None
        Storage for the residual sum, set to 0 here and updated in place. `None`
        allocates an array of the dtype of `teacher_scores`.

    chunk_size : int, default=1024
        Number of rows handled at a time, in ``[1, inf)``. Temporary memory is
        proportional to ``chunk_size * n_outputs``.

    Attributes
    ----------
    teacher_scores : ndarray or memmap of shape (n_samples, n_outputs)
        The scores of the teacher.

    residual_sum : ndarray or memmap of shape (n_samples, n_outputs)
        Sum over the students of their deviations from the teacher, ``S`` above.

    eta : float
        Step of the Hedge update.

    n_rounds : int
        Number of rounds played.

    log_normalizer : ndarray of shape (n_outputs,)
        Logarithm of ``Z``, float64.

    student_edges : ndarray of shape (n_rounds, n_outputs)
        Edge of each student under the weights of its round.

    Raises
    ------
    ValueError
        If `eta` is negative or not finite, if `sample_weight` has another length,
        a negative or non-finite entry or no positive one, or if `residual_sum` has
        another shape than `teacher_scores`.

    References
    ----------
    .. [1] D. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith,
           "Progressive Ensemble Distillation: Building Ensembles for Efficient
           Inference", NeurIPS 2023, Algorithm 1. arXiv:2302.10093.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil._game import BoostingGame
    >>> teacher_scores = np.array([[1.0], [-1.0]])
    >>> game = BoostingGame(teacher_scores, eta=0.5)
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

    def __init__(
        self,
        teacher_scores,
        *,
        eta,
        sample_weight=None,
        residual_sum=None,
        chunk_size=1024,
    ):
        if not 0 <= eta < np.inf:
            raise ValueError(f"eta must be non-negative and finite, got {eta!r}.")
        if residual_sum is None:
            residual_sum = np.empty(teacher_scores.shape, teacher_scores.dtype)
        elif residual_sum.shape != teacher_scores.shape:
            raise ValueError(
                "residual_sum must have the shape of teacher_scores, "
                f"{teacher_scores.shape}, got {residual_sum.shape}."
            )
        self.teacher_scores = teacher_scores
        self.residual_sum = residual_sum
        self.eta = eta
        self.chunk_size = chunk_size
        self._log_prior = _log_prior(sample_weight, len(teacher_scores))
        self.reset()

    @property
    def n_rounds(self):
        return len(self._edges)

    @property
    def log_normalizer(self):
        return self.eta * self._peak + self._log_mass

    @property
    def student_edges(self):
        return self._history(self._edges)

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
        residual_sum = np.asarray(self.residual_sum[rows], dtype=np.float64)
        log_scale = self._log_prior[rows, np.newaxis] - self._log_mass
        # Peak and sum meet before anything else is added: log_normalizer as a single
        # number of size 1e6 would leave ten digits of the weights.
        weight_under = np.exp(log_scale - self.eta * (self._peak + residual_sum))
        weight_over = np.exp(log_scale - self.eta * (self._peak - residual_sum))
        return weight_under, weight_over

    def inner(self, values):
        """Inner product of ``weight_under - weight_over`` with `values`.

        Parameters
        ----------
        values : ndarray or memmap of shape (n_samples, n_outputs)
            One finite number per row and output.

        Returns
        -------
        product : ndarray of shape (n_outputs,)
            Sum over the rows; float64.

        Raises
        ------
        ValueError
            If `values` has another shape than the teacher's scores.
        """
        self._check_shape(values, "values")
        product = np.zeros(values.shape[1])
        for rows in self._chunks():
            _, difference = self._mass(rows)
            product += np.einsum("ij,ij->j", difference, values[rows])
        return product

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
        self._check_shape(scores, "scores")
        edges = np.zeros(scores.shape[1])
        for rows in self._chunks():
            _, difference = self._mass(rows)
            edges += np.einsum("ij,ij->j", difference, self._residual(scores, rows))
        return edges

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
        The round is recorded when it is complete. An interrupted call leaves the
        edges and the certificate of the earlier rounds as they were, but part of
        `residual_sum` updated: to play on, `reset` the game and replay it.
        """
        self._check_shape(scores, "scores")
        n_outputs = scores.shape[1]
        edge = np.zeros(n_outputs)
        moment = np.zeros(n_outputs)
        largest = np.zeros(n_outputs)
        peak = np.zeros(n_outputs)
        mean = np.zeros(n_outputs)
        mass = np.zeros(n_outputs)
        for rows in self._chunks():
            log_prior = self._log_prior[rows, np.newaxis]
            in_game = log_prior > -np.inf

            residual = self._residual(scores, rows)
            total, difference = self._mass(rows)
            edge += np.einsum("ij,ij->j", difference, residual)
            moment += np.einsum("ij,ij->j", total * residual, residual)
            largest = np.maximum(largest, _column_max(np.abs(residual), in_game))

            self.residual_sum[rows] += residual
            # Read back what was stored: in float32 it is what the next weights see.
            size = np.abs(self.residual_sum[rows], dtype=np.float64)
            mean += np.einsum("i,ij->j", np.exp(log_prior[:, 0]), size)
            # A running logsumexp over the rows: the mass so far is relative to the
            # largest size so far.
            previous_peak = peak
            peak = np.maximum(peak, _column_max(size, in_game))
            mass *= np.exp(self.eta * (previous_peak - peak))
            mass += np.exp(log_prior - self.eta * (peak - size)).sum(axis=0)
            mass += np.exp(log_prior - self.eta * (peak + size)).sum(axis=0)

        self._peak = peak
        self._log_mass = np.log(mass)
        self._edges.append(edge)
        self._moments.append(moment)
        self._peaks.append(peak)
        self._means.append(mean)
        self._steps.append(self.eta * largest.max())

    def certificate(self):
        """Certificate of the rounds played so far.

        Returns
        -------
        certificate : Certificate
            Bound and actual deviation of the ensemble from the teacher.

        Notes
        -----
        Write l for the deviations of a round's student from the teacher. If ``eta
        * abs(l) <= 1``, then ``exp(-x) <= 1 - x + x ** 2`` with ``x = eta * l`` and
        ``ln(1 + a) <= a`` give, for each output::

            ln Z(t) <= ln Z(t - 1) - eta * edge(t) + eta ** 2 * moment(t)

        where the moment is the sum over the rows of ``(weight_under + weight_over)
        * l ** 2``. From ``Z(0) = 2`` and ``Z(T) >= min(w) * exp(eta * abs(S))``::

            T * max(abs(F - g)) <= ln(2 / min(w)) / eta
                                   + eta * (sum of moments) - (sum of edges)

        for any students at all, weak learners or not.
        """
        stage = np.arange(1, self.n_rounds + 1)[:, np.newaxis]
        actual = self._history(self._peaks) / stage
        mean = self._history(self._means) / stage
        step = np.array(self._steps, dtype=np.float64)
        bound = np.full_like(actual, np.inf)
        if self.eta > 0:
            lightest = self._log_prior.min(
                where=self._log_prior > -np.inf, initial=np.inf
            )
            potential = (log(2) - lightest) / self.eta
            growth = self.eta * self._history(self._moments) - self.student_edges
            proved = np.logical_and.accumulate(step <= 1)
            bound[proved] = ((potential + np.cumsum(growth, axis=0)) / stage)[proved]
        return Certificate(bound, actual, mean, step)

    def reset(self):
        """Forget all rounds, for instance to replay the game with refined students."""
        self.residual_sum[...] = 0
        n_outputs = self.teacher_scores.shape[1]
        # log Z is kept as eta * peak + log_mass, peak being the largest abs(S).
        self._peak = np.zeros(n_outputs)
        self._log_mass = np.full(n_outputs, log(2))
        self._edges = []
        self._moments = []
        self._peaks = []
        self._means = []
        self._steps = []

    def _chunks(self):
        for start in range(0, len(self.teacher_scores), self.chunk_size):
            yield slice(start, start + self.chunk_size)

    def _residual(self, scores, rows):
        return np.subtract(scores[rows], self.teacher_scores[rows], dtype=np.float64)

    def _mass(self, rows):
        """Sum and difference of the weights of some rows."""
        weight_under, weight_over = self.weights(rows)
        total = weight_under + weight_over
        # Subtracting the weights would leave only rounding where S is near 0.
        residual_sum = np.asarray(self.residual_sum[rows], dtype=np.float64)
        return total, total * np.tanh(-self.eta * residual_sum)

    def _history(self, per_round):
        return np.reshape(per_round, (self.n_rounds, self.teacher_scores.shape[1]))

    def _check_shape(self, array, name):
        if array.shape != self.teacher_scores.shape:
            raise ValueError(
                f"{name} must have the shape of teacher_scores, "
                f"{self.teacher_scores.shape}, got {array.shape}."
            )


def _log_prior(sample_weight, n_samples):
    """Logarithm of the sample weights, normalised to sum to 1; -inf for 0."""
    if sample_weight is None:
        # A broadcast scalar: no memory that grows with the rows.
        return np.broadcast_to(-log(n_samples), n_samples)
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
    return log_prior - log(sample_weight.sum())


def _column_max(array, in_game):
    """Largest entry of each column of a non-negative array over rows in the game."""
    return array.max(axis=0, where=in_game, initial=0.0)
