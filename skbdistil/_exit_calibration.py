"""Choice of thresholds for early exit, from staged scores of rows held out.

Rows are described by the values of the rule at each stage but the last, shape
(T - 1, n), and by their loss at every stage, shape (T, n). A final model that rows are
deferred to is the last of the T stages.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binom, rankdata
from sklearn.isotonic import IsotonicRegression

from skbdistil._exit_rules import exit_stages, rule_values
from skbdistil._storage import IN_MEMORY

# Thresholds that are tried, from none to all rows leaving at the first stage.
_N_POINTS = 200


class ExitPath(NamedTuple):
    """Thresholds from careful to cheap, and what they give.

    Attributes
    ----------
    thresholds : ndarray of shape (n_points, T - 1)
        Those of the first point are infinite: no row leaves early.
    costs : ndarray of shape (n_points,)
        Mean cost per row.
    scores : ndarray of shape (n_points,)
        Mean score per row.
    losses : ndarray of shape (n_points,)
        Mean loss per row.
    exits : ndarray of shape (n_points, T)
        Share of the rows that leave at each stage.
    """

    thresholds: np.ndarray
    costs: np.ndarray
    scores: np.ndarray
    losses: np.ndarray
    exits: np.ndarray


def shared_thresholds(values):
    """One threshold for all stages: quantiles of the values, falling.

    Parameters
    ----------
    values : ndarray of shape (T - 1, n)

    Returns
    -------
    thresholds : ndarray of shape (n_points, T - 1)
    """
    levels = _quantiles(values)[::-1]
    if len(levels):
        levels = _between(levels, values)
    return _with_infinity([np.full(len(values), level) for level in levels], values)


def stage_thresholds(values, losses):
    """Thresholds per stage, where rows at the threshold have the same expected loss.

    The expected loss given the value is a monotone function of it, fitted for each
    stage by isotonic regression. A point of the path is a bound on it.

    Parameters
    ----------
    values : ndarray of shape (T - 1, n)
    losses : ndarray of shape (T, n)

    Returns
    -------
    thresholds : ndarray of shape (n_points, T - 1)
    """
    risks = []
    for value, loss in zip(values, losses[:-1], strict=True):
        risk = IsotonicRegression(increasing=False).fit(value, loss).predict(value)
        # Within a step of the fit, the surer rows leave first.
        risks.append(risk - 1e-9 * rankdata(value) / len(value))
    points = [
        [
            value[risk <= level].min(initial=np.inf)
            for value, risk in zip(values, risks, strict=True)
        ]
        for level in _quantiles(risks)
    ]
    points = _with_infinity(points, values)
    for stage, value in enumerate(values):
        points[:, stage] = _between(points[:, stage], value)
    return points


def _quantiles(numbers):
    numbers = np.ravel(numbers)
    if not len(numbers):
        return numbers
    grid = np.linspace(0, 1, _N_POINTS)
    return np.unique(np.quantile(numbers, grid, method="inverted_cdf"))


def _between(thresholds, values):
    """Thresholds halfway down to the next value: the same rows reach them.

    At a value itself, rounding, as in another batch or runtime, would decide where its
    row leaves.
    """
    known = np.unique(values)
    # Also below the smallest, by a little of the range.
    known = np.concatenate([[known[0] - 1e-3 * (known[-1] - known[0])], known])
    below = np.searchsorted(known, thresholds) - 1
    return (thresholds + known[np.maximum(below, 0)]) / 2


def _with_infinity(points, values):
    return np.array([np.full(len(values), np.inf), *points])


def judged(scores, label, rule, temperatures, final_label=None, target="accuracy"):
    """Values of the rule, whether a row is right, and whether the exit loses it.

    Right is, without labels, what the full ensemble says, or the final model.

    Parameters
    ----------
    scores : ndarray of shape (T, n, L)
        Of the stages.
    label : ndarray of int of shape (n,) or None
        Columns of the labels.
    rule : str or callable
    temperatures : ndarray of shape (T,)
    final_label : ndarray of int of shape (n,), default=None
        Columns of the answers of a final model, which then is a stage of its own.
    target : {"agreement", "accuracy", "error"}, default="accuracy"
        What is a loss with a final model.

    Returns
    -------
    values : ndarray of shape (T - 1, n), or (T, n) with a final model
    correct, losses : ndarray of bool, with a row more
    """
    labels = scores.argmax(axis=2)
    if final_label is not None:
        labels = np.vstack([labels, final_label])
    values = stage_values(rule, scores, temperatures, len(labels) - 1)
    correct = labels == (labels[-1] if label is None else label)
    if final_label is None or label is None or target == "accuracy":
        return values, correct, correct[-1] & ~correct
    losses = ~correct if target == "error" else labels != labels[-1]
    losses[-1] = False  # is not answered locally
    return values, correct, losses


def stage_values(rule, scores, temperatures, n_stages):
    """Values of the rule at the first stages, shape (n_stages, n)."""
    return np.array(
        [
            rule_values(rule, scores[:stage], temperatures[stage - 1])
            for stage in range(1, n_stages + 1)
        ]
    ).reshape(n_stages, scores.shape[1])


def exit_path(thresholds, values, losses, correct, costs):
    """What each point of a path gives on rows.

    Parameters
    ----------
    thresholds : ndarray of shape (n_points, T - 1)
    values : ndarray of shape (T - 1, n)
    losses, correct : ndarray of shape (T, n)
    costs : ndarray of shape (T,)
        Cumulative.

    Returns
    -------
    path : ExitPath
    """
    n_stages, n_samples = losses.shape
    rows = np.arange(n_samples)
    scores, lost, exits = [], [], []
    for point in thresholds:
        stage = exit_stages(values, point) - 1
        scores.append(correct[stage, rows].mean())
        lost.append(losses[stage, rows].mean())
        exits.append(np.bincount(stage, minlength=n_stages) / n_samples)
    return ExitPath(
        thresholds=np.asarray(thresholds),
        costs=np.array(exits) @ costs,
        scores=np.array(scores),
        losses=np.array(lost),
        exits=np.array(exits),
    )


def cheapest_point(path, max_drop, *, drops=None):
    """Point of the smallest mean cost with a score within `max_drop` of the first.

    Parameters
    ----------
    path : ExitPath
    max_drop : float
    drops : ndarray of shape (n_points,), default=None
        What is to be within `max_drop` in place of the drop of the score.

    Returns
    -------
    point : int
    """
    if drops is None:
        drops = path.scores[0] - path.scores
    # Rounding must not shut out a drop of exactly `max_drop`.
    allowed = drops <= max_drop + 1e-12
    return int(np.where(allowed, path.costs, np.inf).argmin())


def best_point(path, max_cost):
    """Point of the best score within a mean cost, and of these the cheapest.

    Parameters
    ----------
    path : ExitPath
    max_cost : float

    Returns
    -------
    point : int

    Raises
    ------
    ValueError
        If the cheapest point is dearer.
    """
    allowed = path.costs <= max_cost
    if not allowed.any():
        raise ValueError(
            f"No thresholds are within max_cost={max_cost:g}: where all rows leave "
            f"first, the mean cost is {path.costs.min():g}."
        )
    return int(np.lexsort((path.costs, -np.where(allowed, path.scores, -np.inf)))[0])


def answered(path, risk):
    """Share of the rows that a risk is a mean over.

    Parameters
    ----------
    path : ExitPath
    risk : {"marginal", "selective"}
        Over all rows, or over those that do not reach the last stage.

    Returns
    -------
    shares : ndarray of shape (n_points,)
    """
    if risk == "marginal":
        return np.ones(len(path.exits))
    return path.exits[:, :-1].sum(axis=1)


def first_point(path, n_samples, max_drop, risk):
    """Point that a sequence of tests begins with.

    The selective risk of careful points, at which few rows are answered, cannot be
    certified even without any loss, and a sequence that begins there ends there. It
    begins with the point whose expected numbers of answers and losses would be the
    surest to pass.

    Parameters
    ----------
    path : ExitPath
        On rows that take no part in the tests.
    n_samples : int
        Number of the rows that do.
    max_drop : float
    risk : {"marginal", "selective"}

    Returns
    -------
    point : int
        At least 1.
    """
    if risk == "marginal":
        return 1
    n_answered = np.floor(answered(path, risk) * n_samples)
    n_losses = np.ceil(path.losses * n_samples)
    return 1 + int(binom.cdf(n_losses, n_answered, max_drop)[1:].argmin())


def certified_point(path, n_samples, max_drop, delta, *, risk="marginal", first=1):
    """Last point of the path that a fixed sequence of tests certifies.

    Each point is tested for a mean loss above `max_drop` by the binomial tail, at level
    `delta`, from the first on until one is not rejected [1]_. The number of rows that
    are answered is random; given this number, their losses are binomial.

    Parameters
    ----------
    path : ExitPath
        Thresholds that do not depend on the rows it was evaluated on, which are
        exchangeable with those to come. Losses are 0 or 1 per row.
    n_samples : int
        Number of these rows.
    max_drop : float
    delta : float
    risk : {"marginal", "selective"}, default="marginal"
        What the mean is taken over, as for :func:`answered`.
    first : int, default=1
        Point that the sequence begins with, chosen without these rows.

    Returns
    -------
    point : int
        0 if none but the first, without early exit, is certified.

    References
    ----------
    .. [1] A. N. Angelopoulos, S. Bates, E. J. Candes, M. I. Jordan, L. Lei, "Learn then
       Test: Calibrating Predictive Algorithms to Achieve Risk Control", section 2,
       arXiv:2110.01052.
    """
    n_losses = np.rint(path.losses * n_samples)
    n_answered = np.rint(answered(path, risk) * n_samples)
    rejected = binom.cdf(n_losses, n_answered, max_drop) <= delta
    # The first point is without loss, and needs no test.
    rejected[:first] = True
    last = len(rejected) - 1 if rejected.all() else int(rejected.argmin()) - 1
    return last if last >= first else 0


def chosen_point(path, n_samples, max_drop, max_cost, delta):
    """Point of a path that the parameters of an estimator choose.

    Parameters
    ----------
    path : ExitPath
    n_samples : int
        Number of rows of the path.
    max_drop : float
    max_cost : float or None
        None for the cheapest one within `max_drop`.
    delta : float or None
        None for no guarantee.

    Returns
    -------
    point : int
    """
    if max_cost is not None:
        return best_point(path, max_cost)
    if delta is None:
        return cheapest_point(path, max_drop)
    return certified_point(path, n_samples, max_drop, delta)


def rows_needed(max_drop, delta):
    """Rows without any loss that certify a drop of at most `max_drop`.

    Parameters
    ----------
    max_drop : float
    delta : float

    Returns
    -------
    n_samples : int or inf
    """
    if max_drop == 0:
        return math.inf
    needed = math.log(delta) / math.log1p(-max_drop)
    return math.ceil(needed) if needed < math.inf else needed


def fit_temperatures(scores, label):
    """Temperature of each stage with the largest likelihood.

    Parameters
    ----------
    scores : ndarray of shape (T, n, L)
    label : ndarray of shape (n,)
        Columns of the true classes.

    Returns
    -------
    temperatures : ndarray of shape (T,)
        Between 1/20 and 20.
    """

    def best(stage):
        def loss(logarithm):
            def found(some, column):
                tempered = log_softmax(some / np.exp(logarithm), axis=1)
                return tempered[np.arange(len(some)), column]

            return -IN_MEMORY.map(found, stage, label).mean()

        return np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)

    return np.array([best(stage) for stage in scores])


def calibration_error(proba, label):
    """Expected calibration error of the top probability, in 15 bins of equal width.

    Parameters
    ----------
    proba : ndarray of shape (n, L)
    label : ndarray of shape (n,)

    Returns
    -------
    error : float
        Between 0 and 1.
    """
    confidence = proba.max(axis=1)
    correct = proba.argmax(axis=1) == label
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=15)
    return float(np.abs(gaps).sum() / len(label))
