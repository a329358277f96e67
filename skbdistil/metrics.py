"""Numbers from the trade between accuracy and cost, and calibration. NumPy only.

Scores are better when they are greater. Costs are cumulative: the cost of a prediction
that ends with the stage.
"""

from numbers import Integral, Real

import numpy as np

__all__ = [
    "accuracy_cost_area",
    "accuracy_cost_curve",
    "calibration_error",
    "cost_at_score",
    "earliness",
    "earliness_harmonic_mean",
    "pareto_optimal",
    "score_at_cost",
]


def accuracy_cost_curve(
    y_true, staged_predictions, costs, *, metric=None, sample_weight=None
):
    """Score and cost of a prediction that ends with each stage.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        True labels or targets.

    staged_predictions : iterable of array-like of shape (n_samples, ...)
        Predictions of each stage, in the form that `metric` takes: labels, or what
        ``staged_predict_proba`` yields.

    costs : array-like of shape (n_stages,)
        Cumulative cost of each stage, in any unit. Costs of further stages may
        follow: an ensemble may be told to use fewer than it has.

    metric : callable or None, default=None
        ``metric(y_true, predictions)``, greater being better, or a scorer made by
        :func:`sklearn.metrics.make_scorer`, whose sign and arguments are used. None
        is accuracy.

    sample_weight : array-like of shape (n_samples,), default=None
        Sample weights, passed on to `metric` as a keyword.

    Returns
    -------
    costs : ndarray of shape (n_stages,)
        Cumulative cost of each stage.

    scores : ndarray of shape (n_stages,)
        Score of each stage.

    Raises
    ------
    ValueError
        If there are no stages, more stages than costs, or a cost that is negative,
        not finite, or less than that of the stage before.

    See Also
    --------
    skbdistil.inspection.AccuracyCostDisplay : Draws the curve.

    Examples
    --------
    >>> from skbdistil.metrics import accuracy_cost_curve
    >>> staged = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    >>> costs, scores = accuracy_cost_curve([0, 1, 1, 0], staged, [10, 25, 45])
    >>> costs
    array([10., 25., 45.])
    >>> scores
    array([0.5 , 0.75, 1.  ])
    """
    y_true = np.asarray(y_true)
    metric = _as_function(metric)
    weight = {} if sample_weight is None else {"sample_weight": sample_weight}
    scores = []
    for stage, predicted in enumerate(staged_predictions, start=1):
        predicted = np.asarray(predicted)
        if len(predicted) != len(y_true):
            raise ValueError(
                f"'staged_predictions' has {len(predicted)} rows at stage {stage}, and "
                f"'y_true' has {len(y_true)}."
            )
        scores.append(metric(y_true, predicted, **weight))
    if not scores:
        raise ValueError("'staged_predictions' is empty; give at least one stage.")
    costs = _check_costs(costs)
    if len(costs) < len(scores):
        raise ValueError(
            f"'costs' has {len(costs)} value(s) for {len(scores)} stages; give one per "
            "stage."
        )
    return costs[: len(scores)], np.asarray(scores, dtype=np.float64)


def accuracy_cost_area(costs, scores, *, cost_range, scale="log"):
    """Mean score over a range of budgets.

    The area under the curve that gives, for each budget, the best score within it,
    divided by the width of the range. So its unit is that of the score, and it is the
    score to be expected for a budget drawn from the range: uniformly, or uniformly in
    its logarithm.

    Parameters
    ----------
    costs : array-like of shape (n_stages,)
        Cumulative costs.

    scores : array-like of shape (n_stages,)
        Scores, greater being better.

    cost_range : tuple of two floats
        Smallest and largest budget. The smallest is at least the cost of the first
        stage, since below it there is no score. Areas can be compared if their ranges
        are the same.

    scale : {"log", "linear"}, default="log"
        Whether budgets count by their logarithm.

    Returns
    -------
    area : float

    Raises
    ------
    ValueError
        If costs, scores, range or scale are not as above.

    Examples
    --------
    >>> from skbdistil.metrics import accuracy_cost_area
    >>> accuracy_cost_area([1, 10], [0.5, 1.0], cost_range=(1, 100))
    0.75
    >>> accuracy_cost_area([1, 10], [0.5, 1.0], cost_range=(1, 19), scale="linear")
    0.75
    """
    costs, scores = _check_curve(costs, scores)
    if scale not in ("log", "linear"):
        raise ValueError(f"'scale' must be 'log' or 'linear'. Got {scale!r} instead.")
    bounds = np.asarray(cost_range)
    if bounds.shape != (2,) or bounds.dtype.kind not in "iuf":
        raise ValueError(f"'cost_range' must be two costs. Got {cost_range!r} instead.")
    low, high = bounds.astype(np.float64).tolist()
    if not (low < high < np.inf):
        raise ValueError(
            "'cost_range' must be two finite costs, the smaller one first. Got "
            f"{cost_range!r} instead."
        )
    if low < costs[0]:
        raise ValueError(
            f"'cost_range' starts at {low:.15g}, below the cheapest stage's cost of "
            f"{costs[0]:.15g}, where there is no score."
        )
    if scale == "log" and low <= 0:
        raise ValueError("'cost_range' must start above 0 with scale='log'.")
    # The score within the budget changes at the costs of the stages only.
    edges = np.array([low, *costs[(costs > low) & (costs < high)], high])
    heights = [score_at_cost(costs, scores, edge) for edge in edges[:-1]]
    widths = np.diff(np.log(edges) if scale == "log" else edges)
    return float(np.average(heights, weights=widths))


def cost_at_score(costs, scores, target):
    """Cost of the first stage that reaches a score.

    Parameters
    ----------
    costs : array-like of shape (n_stages,)
        Cumulative costs.

    scores : array-like of shape (n_stages,)
        Scores, greater being better.

    target : float
        Score to be reached.

    Returns
    -------
    cost : float
        Infinity if no stage reaches it.

    Raises
    ------
    ValueError
        If costs and scores are no curve, or `target` is NaN.

    Examples
    --------
    >>> from skbdistil.metrics import cost_at_score
    >>> cost_at_score([10, 25, 45], [0.5, 0.75, 1.0], 0.7)
    25.0
    >>> cost_at_score([10, 25, 45], [0.5, 0.75, 0.9], 1.0)
    inf
    """
    costs, scores = _check_curve(costs, scores)
    if not isinstance(target, Real) or np.isnan(target):
        raise ValueError(f"'target' must be a score. Got {target!r} instead.")
    reached = scores >= target
    return float(costs[reached.argmax()]) if reached.any() else np.inf


def score_at_cost(costs, scores, budget):
    """Best score among the stages within a budget.

    Parameters
    ----------
    costs : array-like of shape (n_stages,)
        Cumulative costs.

    scores : array-like of shape (n_stages,)
        Scores, greater being better.

    budget : float
        Largest cost allowed.

    Returns
    -------
    score : float

    Raises
    ------
    ValueError
        If costs and scores are no curve, or no stage is within the budget.

    Examples
    --------
    >>> from skbdistil.metrics import score_at_cost
    >>> score_at_cost([10, 25, 45], [0.5, 0.75, 1.0], 44)
    0.75
    """
    costs, scores = _check_curve(costs, scores)
    return float(scores[: _stage_within(costs, budget)].max())


def pareto_optimal(costs, scores):
    """Mark the points that no other one dominates in cost and score.

    Parameters
    ----------
    costs : array-like of shape (n_points,)
        Costs in any order: concatenate those of the estimators to compare.

    scores : array-like of shape (n_points,)
        Scores, greater being better.

    Returns
    -------
    optimal : ndarray of shape (n_points,), dtype bool
        False where another point costs no more and scores no less, and differs.

    Raises
    ------
    ValueError
        If there are no points, their numbers differ, or one is NaN or of negative or
        infinite cost.

    Examples
    --------
    >>> from skbdistil.metrics import pareto_optimal
    >>> pareto_optimal([10, 20, 30, 20], [0.7, 0.9, 0.8, 0.6])
    array([ True,  True, False, False])
    """
    costs = _check_vector(costs)
    scores = _check_scores(scores, costs)
    # By cost, and the better score first: a point is beaten by the best before it.
    order = np.lexsort((-scores, costs))
    costs, scores = costs[order], scores[order]
    improves = np.concatenate([[True], scores[1:] > np.maximum.accumulate(scores)[:-1]])
    same = (costs[1:] == costs[:-1]) & (scores[1:] == scores[:-1])
    same = np.concatenate([[False], same])
    # Equal points stand or fall together, with the first of them.
    first_of_group = np.flatnonzero(~same)[np.cumsum(~same) - 1]
    optimal = np.empty(len(costs), dtype=bool)
    optimal[order] = improves[first_of_group]
    return optimal


def calibration_error(y_true, y_proba, *, classes=None, n_bins=15, sample_weight=None):
    """Mean distance between the confidence of a classifier and its accuracy.

    Rows are put into bins of equal width by their largest probability, the confidence.
    The error is the distance between mean confidence and accuracy of a bin, averaged
    over the rows: the expected calibration error of [1]_, in the form of [2]_.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True labels.

    y_proba : array-like of shape (n_samples, n_classes)
        Probabilities of the classes.

    classes : array-like of shape (n_classes,), default=None
        Label of each column; None for the sorted labels of `y_true`.

    n_bins : int, default=15
        Number of bins, at least 1.

    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows, not negative, in the means of the bins and over them.

    Returns
    -------
    error : float
        From 0 to 1. Few rows in a bin make it larger than it would be for many, so
        compare models on the same rows.

    Raises
    ------
    ValueError
        If shapes, probabilities or labels do not fit, or `n_bins` is out of its range.

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well Calibrated
       Probabilities Using Bayesian Binning", AAAI 2015.

    .. [2] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural
       Networks", ICML 2017, section 2.

    Examples
    --------
    Three of four rows are right, with a confidence of 1:

    >>> from skbdistil.metrics import calibration_error
    >>> calibration_error([0, 1, 1, 0], [[1, 0], [0, 1], [0, 1], [0, 1]])
    0.25
    """
    y_true, y_proba = np.asarray(y_true), np.asarray(y_proba, dtype=np.float64)
    if not isinstance(n_bins, Integral) or n_bins < 1:
        raise ValueError(f"'n_bins' must be an int of at least 1. Got {n_bins!r}.")
    if y_true.ndim != 1 or y_proba.ndim != 2 or len(y_true) != len(y_proba):
        raise ValueError(
            "'y_proba' must have one row for each label of 'y_true'. Got shapes "
            f"{y_proba.shape} and {y_true.shape}. Of several labels per row, pass one "
            "with its probabilities p as np.c_[1 - p, p]."
        )
    if len(y_true) == 0:
        raise ValueError("'y_true' is empty; give at least one label.")
    # Not so where one is NaN.
    if not ((y_proba >= 0) & (y_proba <= 1)).all():
        raise ValueError("'y_proba' must hold probabilities, from 0 to 1.")
    classes = np.unique(y_true) if classes is None else np.asarray(classes)
    if classes.shape != (y_proba.shape[1],):
        raise ValueError(
            f"'y_proba' has {y_proba.shape[1]} column(s) for {len(classes)} class(es). "
            "Pass the label of each column as 'classes'."
        )
    confidence = y_proba.max(axis=1)
    right = classes[y_proba.argmax(axis=1)] == y_true
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    weight = np.ones(len(y_true)) if sample_weight is None else sample_weight
    weight = np.asarray(weight, dtype=np.float64)
    if weight.shape != y_true.shape or not (weight >= 0).all() or not weight.any():
        raise ValueError(
            "'sample_weight' must hold a number of at least 0 for each label of "
            f"'y_true', and one above 0. Got an array of shape {weight.shape}."
        )
    excess = np.bincount(bins, weights=weight * (confidence - right))
    return float(np.abs(excess).sum() / weight.sum())


def _search_scores_and_costs(cv_results, score, cost):
    """Mean score and cost of each candidate of a search.

    Parameters
    ----------
    cv_results : dict
        Attribute `cv_results_` of a search.
    score : str
        Name of a scorer or of a column.
    cost : str or callable
        The same, or ``cost(cv_results)``, which returns one cost per candidate.

    Returns
    -------
    scores, costs : ndarray of shape (n_candidates,)
        Both NaN where one of them is missing.

    Raises
    ------
    ValueError
        If a column is missing, the costs of the callable are not one per candidate, or
        no candidate has both.
    """
    scores = _search_column(cv_results, "score", score)
    if callable(cost):
        costs = np.asarray(cost(cv_results), dtype=np.float64)
        if costs.shape != scores.shape:
            raise ValueError(
                "'cost' must return one cost for each of the "
                f"{len(scores)} candidates. Got shape {costs.shape}."
            )
    else:
        costs = _search_column(cv_results, "cost", cost)
    missing = np.isnan(scores) | np.isnan(costs)
    if missing.all():
        raise ValueError(
            "There is no candidate with both a score and a cost. Operations that could "
            "not be counted are NaN; use another unit of cost, such as latency, or a "
            "callable."
        )
    return np.where(missing, np.nan, scores), np.where(missing, np.nan, costs)


def _search_column(cv_results, parameter, name):
    for column in (f"mean_test_{name}", name):
        if column in cv_results:
            column = np.ma.asarray(cv_results[column])
            # Columns of parameters are masked where a candidate has none.
            return column.astype(np.float64).filled(np.nan)
    raise ValueError(
        f"'{parameter}' must be the name of a scorer or a column of 'cv_results', "
        f"which has {list(cv_results)}. Got {name!r} instead."
    )


def _split_scores(cv_results, score):
    """Scores of the candidates of a search by split.

    Parameters
    ----------
    cv_results : dict
        Attribute `cv_results_` of a search.
    score : str
        Name of a scorer, or of a column of mean scores.

    Returns
    -------
    scores : ndarray of shape (n_splits, n_candidates)
        Without splits if there is no such scorer.
    """
    score = score.removeprefix("mean_test_")
    splits = []
    while (column := f"split{len(splits)}_test_{score}") in cv_results:
        splits.append(cv_results[column])
    return np.array(splits, dtype=np.float64)


def _check_costs(costs, n_stages=None):
    """Cumulative costs of stages as an array.

    Parameters
    ----------
    costs : array-like of shape (n_stages,)
    n_stages : int or None, default=None
        Number of costs that there must be; None for any.

    Returns
    -------
    costs : ndarray of shape (n_stages,), dtype float64

    Raises
    ------
    ValueError
        If there are none or too few or many, or one is negative, not finite, or less
        than the one before.
    """
    costs = _check_vector(costs)
    if n_stages is not None and len(costs) != n_stages:
        raise ValueError(
            f"'costs' has {len(costs)} value(s) for {n_stages} stage(s); give one per "
            "stage."
        )
    if (np.diff(costs) < 0).any():
        raise ValueError(
            "'costs' must be cumulative, each at least that of the stage before. Got "
            f"{costs}."
        )
    return costs


def _stage_within(costs, budget):
    """Number of the last stage within a budget.

    Parameters
    ----------
    costs : ndarray of shape (n_stages,)
        As :func:`_check_costs` returns them.
    budget : float

    Returns
    -------
    stage : int
        From 1 on.

    Raises
    ------
    ValueError
        If not even the first stage is within it.
    """
    if not isinstance(budget, Real) or np.isnan(budget):
        raise ValueError(f"'budget' must be a number. Got {budget!r} instead.")
    stage = int(np.searchsorted(costs, budget, side="right"))
    if stage == 0:
        raise ValueError(
            f"No stage is within the budget of {budget:.15g}: the cheapest one costs "
            f"{costs[0]:.15g}."
        )
    return stage


def earliness(n_steps_read, n_steps):
    """Mean share of the series that was read.

    Parameters
    ----------
    n_steps_read : array-like of shape (n_samples,)
        Number of steps that were read of each series, from 0 to its length.

    n_steps : int or array-like of int of shape (n_samples,)
        Length of the series, positive; one for all, or one for each.

    Returns
    -------
    share : float
        Between 0 and 1. Smaller is earlier.

    Raises
    ------
    ValueError
        If there are no series, or more steps were read than there are.

    See Also
    --------
    earliness_harmonic_mean : In one number with the accuracy.

    References
    ----------
    .. [1] P. Schaefer, U. Leser, "TEASER: Early and Accurate Time Series
       Classification", section 2, Data Mining and Knowledge Discovery 34, 2020.

    Examples
    --------
    >>> from skbdistil.metrics import earliness
    >>> earliness([25, 50, 100, 25], 100)
    0.5
    """
    read = np.asarray(n_steps_read, dtype=np.float64)
    length = np.asarray(n_steps, dtype=np.float64)
    if read.ndim != 1 or not len(read) or length.shape not in ((), read.shape):
        raise ValueError(
            "'n_steps_read' must have one number for each of at least one series, and "
            f"'n_steps' one for all or one for each. Got shapes {read.shape} and "
            f"{length.shape}."
        )
    # Also where one of them is NaN.
    if not ((read >= 0) & (read <= length) & (length > 0)).all():
        raise ValueError(
            "'n_steps_read' must be from 0 to 'n_steps', which must be positive."
        )
    return float(np.mean(read / length))


def earliness_harmonic_mean(accuracy, earliness):
    """Harmonic mean of the accuracy and of the share that was not read.

    With accuracy A and earliness E, it is ``2 (1 - E) A / ((1 - E) + A)`` [1]_. Reading
    whole series gives 0, however accurate.

    Parameters
    ----------
    accuracy : float
        Between 0 and 1.

    earliness : float
        As :func:`earliness` returns it, between 0 and 1.

    Returns
    -------
    mean : float
        Between 0 and 1, greater being better. 0 if both are 0.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] P. Schaefer, U. Leser, "TEASER: Early and Accurate Time Series
       Classification", section 2, Data Mining and Knowledge Discovery 34, 2020.

    Examples
    --------
    >>> from skbdistil.metrics import earliness_harmonic_mean
    >>> earliness_harmonic_mean(0.75, 0.25)
    0.75
    """
    for name, value in (("accuracy", accuracy), ("earliness", earliness)):
        if not (isinstance(value, Real) and 0 <= value <= 1):
            raise ValueError(
                f"{name!r} must be a number between 0 and 1. Got {value!r} instead."
            )
    unread = 1 - earliness
    total = unread + accuracy
    return float(2 * unread * accuracy / total) if total else 0.0


def _as_function(metric):
    if metric is None:
        return _accuracy
    # A scorer of scikit-learn takes an estimator; the function inside is wanted here.
    if hasattr(metric, "_score_func"):

        def signed(y_true, predicted, **weight):
            if y_true.ndim == 1 and predicted.ndim == 2 and predicted.shape[1] == 2:
                # Of two probabilities, scorers look at that of the positive class.
                classes = np.unique(y_true)
                first = len(classes) == 2 and metric._get_pos_label() == classes[0]
                predicted = predicted[:, 0 if first else 1]
            keywords = {**metric._kwargs, **weight}
            return metric._sign * metric._score_func(y_true, predicted, **keywords)

        return signed
    if not callable(metric):
        raise ValueError(
            "'metric' must be None, a callable(y_true, predictions) or a scorer of "
            f"scikit-learn. Got {metric!r} instead."
        )
    return metric


def _accuracy(y_true, predicted, sample_weight=None):
    if predicted.shape != y_true.shape:
        raise ValueError(
            "Accuracy compares labels, but 'staged_predictions' and 'y_true' have "
            f"shapes {predicted.shape} and {y_true.shape}."
        )
    # Of several labels per row, all must be right.
    right = (y_true == predicted).reshape(len(y_true), -1).all(axis=1)
    return np.average(right, weights=sample_weight)


def _check_curve(costs, scores):
    costs = _check_costs(costs)
    return costs, _check_scores(scores, costs)


def _check_scores(scores, costs):
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != costs.shape:
        raise ValueError(
            "'scores' must have one value per cost. Got shape "
            f"{scores.shape} for {len(costs)} cost(s)."
        )
    if np.isnan(scores).any():
        raise ValueError("'scores' must not be NaN.")
    return scores


def _check_vector(costs):
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 1 or len(costs) == 0:
        raise ValueError(
            "'costs' must be one number for each of at least one stage. Got shape "
            f"{costs.shape}."
        )
    if not np.isfinite(costs).all() or (costs < 0).any():
        message = f"'costs' must be finite and not negative. Got {costs}."
        if np.isnan(costs).any():
            message += (
                f" Number {np.isnan(costs).argmax() + 1} is not known, like operations "
                "that could not be counted. Use another unit of cost, such as latency, "
                "or state the costs yourself."
            )
        raise ValueError(message)
    return costs
