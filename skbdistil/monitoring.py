"""Whether the promise of a deferral still holds. NumPy only, for devices."""

import math
import warnings
from numbers import Integral, Real
from threading import Lock

import numpy as np

from skbdistil.exceptions import DriftWarning

__all__ = ["DeferralMonitor"]

# Bets on a greater risk, as shares of what can be lost in one row.
_BETS = np.geomspace(1e-4, 0.5, 40)

# Weights of the rows j that they begin with: j ** -_DECAY, divided by the sum of all.
_DECAY = 1.2
_ZETA = 5.591582441177752

_RISKS = ("marginal", "selective")
_REACTIONS = ("warn", "defer")


class DeferralMonitor:
    """Test while it is used whether rows that are answered locally keep the promise.

    A random share of the rows goes to the final model as well, and a test compares the
    answers. It may be looked at after each row: the probability that it ever raises an
    alarm while the risk is at most `max_drop` is at most `delta`.

    Parameters
    ----------
    max_drop : float
        Risk that was promised, between 0 and 1.

    delta : float, default=0.1
        Probability of a false alarm, ever; between 0 and 1.

    risk : {"marginal", "selective"}, default="marginal"
        Risk that was promised, see :class:`~skbdistil.early_exit.EarlyExitClassifier`.

    audit : float, default=0.02
        Share of the rows that are audited, above 0 and at most 1. Which ones is drawn
        before they are answered, and whatever the answer.

    on_drift : {"warn", "defer"}, default="warn"
        What an alarm does: a warning, or a warning and from then on all rows that are
        passed to `audit` go to the final model.

    random_state : int or None, default=None
        Draws the audited rows.

    Attributes
    ----------
    n_audited_ : int
        Number of audited rows that count; for ``risk="selective"``, those that were
        answered locally.

    n_losses_ : int
        Number of losses among these.

    e_value_ : float
        Evidence against the promise, 1 in the beginning; infinite where it is too large
        for a float.

    drift_ : bool
        Whether the evidence has ever reached 1 / `delta`. It stays so.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    See Also
    --------
    skbdistil.early_exit.EarlyExitClassifier.audit : Predicts, and tells a monitor.
    skbdistil.runtime.ProgressiveSession.audit : The same of an exported ensemble.

    Notes
    -----
    For the i-th audited row, :math:`x_i` is 1 if it is lost and 0 otherwise. A gambler
    who bets the share :math:`c` of what they have on losses multiplies it by
    :math:`1 + c (x_i / m - 1)`, which has a mean of at most 1 as long as the risk is at
    most :math:`m`, whatever has happened before [1]_. The evidence is the mean of such
    gamblers over 40 shares c from 0.0001 to 0.5, and over all rows j that they may
    begin with, of weight :math:`w_j = j^{-1.2} / \\zeta(1.2)`:

    .. math::

       S_i(c) = (S_{i-1}(c) + w_i)
       \\Bigl(1 + c \\Bigl(\\frac{x_i}{m} - 1\\Bigr)\\Bigr), \\qquad
       E_i = \\frac{1}{40} \\sum_c S_i(c) + \\sum_{j > i} w_j .

    It is a nonnegative supermartingale that begins with 1, so that it ever reaches
    :math:`1 / \\delta` with probability at most :math:`\\delta` (Ville). Gamblers who
    begin late have lost nothing before, so that a drift after a long time is still
    found soon [2]_.

    `interval` is a confidence sequence by the same bets [3]_. It is about a risk that
    stays the same, where `drift_` allows any risks of at most `max_drop`.

    Several threads may use one monitor. It can be pickled; copies draw the same rows,
    and each has a `delta` of its own. A call in which the final model fails is not
    counted: the promise is tested on the calls that succeed.

    References
    ----------
    .. [1] I. Waudby-Smith, A. Ramdas, "Estimating Means of Bounded Random Variables by
       Betting", Journal of the Royal Statistical Society B 86, 2024.
    .. [2] J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: A Nonparametric Framework for
       Sequential Change Detection", New England Journal of Statistics in Data Science,
       2023.
    .. [3] S. R. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-Uniform,
       Nonparametric, Nonasymptotic Confidence Sequences", Annals of Statistics 49,
       2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil.monitoring import DeferralMonitor
    >>> monitor = DeferralMonitor(max_drop=0.05, on_drift="defer")
    >>> monitor.update(np.zeros(400, dtype=bool))
    >>> monitor.drift_
    False
    >>> low, high = monitor.interval()
    >>> bool(low == 0 and high < 0.05)
    True
    """

    def __init__(
        self,
        max_drop,
        delta=0.1,
        *,
        risk="marginal",
        audit=0.02,
        on_drift="warn",
        random_state=None,
    ):
        name = type(self).__name__
        for parameter, value, top in (
            ("max_drop", max_drop, "below 1"),
            ("delta", delta, "below 1"),
            ("audit", audit, "at most 1"),
        ):
            is_share = isinstance(value, Real) and 0 < value <= 1
            if not is_share or (value == 1 and top == "below 1"):
                raise ValueError(
                    f"The {parameter!r} parameter of {name} must be a number above 0 "
                    f"and {top}. Got {value!r} instead."
                )
        for parameter, value, allowed in (
            ("risk", risk, _RISKS),
            ("on_drift", on_drift, _REACTIONS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"The {parameter!r} parameter of {name} must be one of "
                    f"{list(allowed)}. Got {value!r} instead."
                )
        if random_state is not None and not (
            isinstance(random_state, Integral) and random_state >= 0
        ):
            raise ValueError(
                f"The 'random_state' parameter of {name} must be None or an int from 0 "
                f"on. Got {random_state!r} instead."
            )
        self.max_drop = float(max_drop)
        self.delta = float(delta)
        self.risk = risk
        self.audit = float(audit)
        self.on_drift = on_drift
        self.random_state = random_state
        self.n_audited_ = 0
        self.n_losses_ = 0
        self.drift_ = False
        self._rng = np.random.default_rng(random_state)
        # Logarithms of what gamblers have, by their bets.
        self._log_wealth = np.full(len(_BETS), -np.inf)
        # Weight of those who have not begun.
        self._unspent = 1.0
        self._log_factors = _log_factors(self.max_drop)
        self._lock = Lock()

    def __repr__(self):
        return (
            f"{type(self).__name__}({self.max_drop:g}, {self.delta:g}, "
            f"risk={self.risk!r}, audit={self.audit:g}, on_drift={self.on_drift!r}, "
            f"random_state={self.random_state!r})"
        )

    def __getstate__(self):
        with self._lock:
            return {**vars(self), "_lock": None}

    def __setstate__(self, state):
        vars(self).update(state, _lock=Lock())

    @property
    def e_value_(self):
        with self._lock, np.errstate(over="ignore"):
            return float(np.exp(self._log_evidence()))

    def _log_evidence(self):
        wealth = np.logaddexp.reduce(self._log_wealth) - math.log(len(_BETS))
        return np.logaddexp(wealth, math.log(self._unspent))

    def draw(self, n_rows):
        """Draw which of the rows to come are audited.

        Parameters
        ----------
        n_rows : int

        Returns
        -------
        is_audited : ndarray of shape (n_rows,) of bool
        """
        with self._lock:
            return self._rng.random(n_rows) < self.audit

    def update(self, losses):
        """Count audited rows.

        Parameters
        ----------
        losses : array-like of shape (n_rows,) of bool
            Whether each of them is a loss, in the order in which they came. For
            ``risk="selective"``, only of those that were answered locally.

        Raises
        ------
        ValueError
            If these are not 0 or 1.

        Warns
        -----
        DriftWarning
            Once, when the evidence reaches 1 / `delta`.
        """
        self._count(losses, stacklevel=3)

    def _count(self, losses, stacklevel):
        """As `update`; `stacklevel` is that of the warning."""
        losses = np.asarray(losses)
        if losses.ndim != 1 or not np.isin(losses, (0, 1)).all():
            raise ValueError(
                f"'losses' of {type(self).__name__}.update must be one truth value per "
                f"row. Got {losses!r}."
            )
        with self._lock:
            before = self.drift_
            for is_lost in losses.astype(bool).tolist():
                self.n_audited_ += 1
                self.n_losses_ += is_lost
                weight = self.n_audited_**-_DECAY / _ZETA
                self._unspent -= weight
                self._log_wealth = (
                    np.logaddexp(self._log_wealth, math.log(weight))
                    + self._log_factors[int(is_lost)]
                )
                self.drift_ |= bool(self._log_evidence() >= -math.log(self.delta))
            is_new = self.drift_ and not before
        if is_new:
            warnings.warn(
                f"The {self.risk} risk is above max_drop={self.max_drop:g}, which was "
                f"promised: {self.n_losses_} losses in {self.n_audited_} audited rows "
                f"(probability of a false alarm at most {self.delta:g}). "
                + (
                    "All rows passed to audit go to the final model from now on."
                    if self.on_drift == "defer"
                    else "Calibrate again, on rows of now."
                ),
                DriftWarning,
                stacklevel=stacklevel,
            )

    def interval(self):
        """Confidence interval of the risk, which holds at all times together.

        A confidence sequence: the probability that it ever misses a risk that
        stays the same is at most `delta`.

        Returns
        -------
        low, high : float
        """
        with self._lock:
            n_losses, n_kept = self.n_losses_, self.n_audited_ - self.n_losses_
        level = math.log(2 / self.delta)
        low = _lower_bound(n_losses, n_kept, level)
        return low, 1 - _lower_bound(n_kept, n_losses, level)


def _log_factors(mean):
    """Logarithms of what bets are multiplied by for a row without and with a loss."""
    return np.log1p(-_BETS), np.log1p(_BETS * (1 / mean - 1))


def _lower_bound(n_losses, n_kept, level):
    """Largest mean against which the evidence of the counts reaches a level."""
    low, high = 0.0, 1.0
    if not n_losses:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        kept, lost = _log_factors(middle)
        evidence = np.logaddexp.reduce(n_losses * lost + n_kept * kept)
        # It falls with the mean.
        if evidence - math.log(len(_BETS)) >= level:
            low = middle
        else:
            high = middle
    return low
