"""Model selection that sees the cost of a prediction.

Refit callables and a scorer for the searches of scikit-learn, and a search that reads
all stages from one fit.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from numbers import Number, Real
from traceback import format_exc

import numpy as np
from sklearn.model_selection import GridSearchCV, ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from skbdistil._sklearn_compat import StrOptions, _fit_context, _MultimetricScorer
from skbdistil.metrics import _search_scores_and_costs, _split_scores
from skbdistil.stages import (
    UNITS,
    _cost_if_known,
    _n_stages_used,
    _stage_views,
    stage_cost,
    stage_latency,
)

__all__ = ["StagedSearchCV", "best_under", "cheapest_within", "cost_scorer"]

# Of a mean of some ten or hundred numbers, relative to it.
_ROUNDING = 100 * np.finfo(np.float64).eps

_COST_IS_TAKEN = (
    "'scoring' must not name a scorer 'cost': cv_results_ has the cost of each stage "
    "under that name."
)


@dataclass(frozen=True)
class cheapest_within:
    """Choose the cheapest candidate that is about as good as the best one.

    An object for the parameter `refit` of :class:`StagedSearchCV` or of a search of
    scikit-learn. Candidates of equal cost are chosen from by score. Those without a
    score or cost, because a fit failed, are never chosen.

    Parameters
    ----------
    tolerance : float or "1se", default=0.0
        How much less than the best mean test score is allowed, at least 0. "1se" is
        one standard error of the best candidate's mean over the splits [1]_, which
        must be two or more.

    cost : str or callable, default="cost"
        Name of a scorer that returns a cost, such as :func:`cost_scorer`, whose mean
        over the test splits is used; or of any column of `cv_results_`; or
        ``cost(cv_results)``, which returns one cost per candidate. The default is
        the cost that :class:`StagedSearchCV` adds.

    score : str, default="score"
        Name of the scorer; "score" in a search with only one.

    Raises
    ------
    ValueError
        If `tolerance` is out of its range; and in a search if `cv_results_` lacks a
        column, has too few splits, or no candidate with a score and a cost.

    See Also
    --------
    best_under : Chooses the best candidate within a budget.

    References
    ----------
    .. [1] L. Breiman, J. Friedman, R. Olshen and C. Stone, "Classification and
       Regression Trees", section 3.4.3, Wadsworth, 1984.

    Examples
    --------
    >>> from skbdistil.model_selection import cheapest_within
    >>> cv_results = {
    ...     "mean_test_score": [0.80, 0.91, 0.92],
    ...     "mean_test_cost": [10, 25, 45],
    ... }
    >>> cheapest_within(0.02)(cv_results)
    1
    >>> cheapest_within()(cv_results)
    2
    """

    tolerance: float | str = 0.0
    _: KW_ONLY
    cost: str | Callable = "cost"
    score: str = "score"

    def __post_init__(self):
        is_number = isinstance(self.tolerance, Real) and self.tolerance >= 0
        if not is_number and self.tolerance != "1se":
            raise ValueError(
                "'tolerance' must be a number of at least 0 or '1se'. Got "
                f"{self.tolerance!r} instead."
            )

    def __call__(self, cv_results):
        """Index of the candidate.

        Parameters
        ----------
        cv_results : dict of ndarrays
            As the attribute `cv_results_` of a search.

        Returns
        -------
        index : int
        """
        scores, costs = _search_scores_and_costs(cv_results, self.score, self.cost)
        tolerance = self.tolerance
        if tolerance == "1se":
            splits = _split_scores(cv_results, self.score)
            if len(splits) < 2:
                raise ValueError(
                    "tolerance='1se' needs the scores of at least 2 splits. Got "
                    f"{len(splits)}."
                )
            of_best = splits[:, np.nanargmax(scores)]
            tolerance = 0.0  # from infinity
            if np.isfinite(of_best).all():
                tolerance = np.std(of_best, ddof=1) / np.sqrt(len(of_best))
        return _cheapest(scores, costs, tolerance)


@dataclass(frozen=True)
class best_under:
    """Choose the best candidate within a budget.

    An object for the parameter `refit` of :class:`StagedSearchCV` or of a search of
    scikit-learn. Candidates of equal score are chosen from by cost. Those without a
    score or cost, because a fit failed, are never chosen.

    Parameters
    ----------
    budget : float
        Largest cost allowed.

    cost : str or callable, default="cost"
        Name of a scorer that returns a cost, such as :func:`cost_scorer`, whose mean
        over the test splits is used; or of any column of `cv_results_`; or
        ``cost(cv_results)``, which returns one cost per candidate. The default is
        the cost that :class:`StagedSearchCV` adds.

    score : str, default="score"
        Name of the scorer; "score" in a search with only one.

    Raises
    ------
    ValueError
        If `budget` is no number; and in a search if `cv_results_` lacks a column, or
        no candidate with a score is within the budget.

    See Also
    --------
    cheapest_within : Chooses the cheapest candidate that is about as good as the best.

    Examples
    --------
    >>> from skbdistil.model_selection import best_under
    >>> cv_results = {
    ...     "mean_test_score": [0.80, 0.91, 0.92],
    ...     "mean_test_cost": [10, 25, 45],
    ... }
    >>> best_under(40)(cv_results)
    1
    """

    budget: float
    _: KW_ONLY
    cost: str | Callable = "cost"
    score: str = "score"

    def __post_init__(self):
        if not isinstance(self.budget, Real) or np.isnan(self.budget):
            raise ValueError(f"'budget' must be a number. Got {self.budget!r} instead.")

    def __call__(self, cv_results):
        """Index of the candidate.

        Parameters
        ----------
        cv_results : dict of ndarrays
            As the attribute `cv_results_` of a search.

        Returns
        -------
        index : int
        """
        scores, costs = _search_scores_and_costs(cv_results, self.score, self.cost)
        cheapest = np.nanmin(costs)
        if cheapest > self.budget:
            raise ValueError(
                f"No candidate is within the budget of {self.budget:.15g}: the "
                f"cheapest one costs {cheapest:.15g}."
            )
        # The best score, and the cheapest of those that share it.
        return _cheapest(np.where(costs <= self.budget, scores, np.nan), costs, 0.0)


@dataclass(frozen=True)
class cost_scorer:
    """Scorer that returns the cost of a prediction.

    In a search with several scorers it gives `cv_results_` a column of costs, for
    :class:`cheapest_within` and :class:`best_under` to choose by. It returns the cost
    itself, so its rank has the most expensive candidate first: do not let a search
    refit by it.

    Parameters
    ----------
    unit : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        Unit of the cost, as for :func:`skbdistil.stages.stage_cost`. Latency is
        measured on the rows that are scored.

    Raises
    ------
    ValueError
        If the unit is unknown.

    See Also
    --------
    StagedSearchCV : Search that has a column of costs without it.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.model_selection import cost_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> cost = cost_scorer("parameters")
    >>> bool(cost(clf.fit(X, y), X) == clf.stage_costs_.cumulative("parameters")[-1])
    True
    >>> bool(cost(clf.set_params(n_stages=1), X) == clf.stage_costs_.parameters[0])
    True
    """

    unit: str | Callable = "macs"

    def __post_init__(self):
        if not callable(self.unit) and self.unit not in UNITS:
            raise ValueError(
                f"'unit' must be one of {list(UNITS)} or a callable. Got "
                f"{self.unit!r} instead."
            )

    def __call__(self, estimator, X, y=None, sample_weight=None):
        """Cost of a prediction with the stages that the estimator uses.

        Parameters
        ----------
        estimator : object
            Fitted estimator with stages, as for :func:`skbdistil.stages.staged`.

        X : array-like of shape (n_samples, ...)
            Rows to measure the latency on; not used for other units.

        y : object, default=None
            Not used.

        sample_weight : object, default=None
            Not used. Searches warn of scorers that do not take it.

        Returns
        -------
        cost : float
        """
        n_stages = _n_stages_used(estimator)
        if self.unit == "latency":
            (latency,) = stage_latency(estimator, X, stages=[n_stages])
            return latency.median
        return float(stage_cost(estimator, self.unit)[n_stages - 1])

    def _accept_sample_weight(self):
        # scikit-learn 1.7 asks this of every scorer that is one of several.
        return True


class StagedSearchCV(GridSearchCV):
    """Grid search that chooses the stage as well, from one fit per candidate.

    The same as :class:`~sklearn.model_selection.GridSearchCV` with all values of
    `n_stages` in its grid, without fitting again for each: all stages are scored from
    one pass over the students. `cv_results_` has one row for each candidate and stage,
    and the cost of each in its column "mean_test_cost".

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilClassifier`, :class:`~skbdistil.BDistilRegressor`, or
        a pipeline that ends in one. If its own `n_stages` is set, stages beyond are
        not considered.

    param_grid : dict or list of dicts
        Values to try of each parameter but `n_stages`. With ``{}`` only the stage is
        chosen.

    cost : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        Unit of the cost, as for :func:`skbdistil.stages.stage_cost`. Latency is
        measured on the rows of each test split; with `n_jobs` above 1 the other jobs
        slow it down.

    scoring : str, callable, list, tuple or dict, default=None
        Scores to compute, as for :class:`~sklearn.model_selection.GridSearchCV`; None
        for the `score` of the estimator. None of them may be named "cost".

    n_jobs : int or None, default=None
        Number of jobs. None is 1, and -1 all processors.

    refit : bool, str or callable, default=True
        Whether, or by which scorer, to refit the best candidate on all rows. True
        chooses by score alone; :class:`cheapest_within` and :class:`best_under` are
        callables that look at the cost.

    cv : int, cross-validation generator, iterable or None, default=None
        Splits, as for :class:`~sklearn.model_selection.GridSearchCV`; None for 5 folds.

    verbose : int, default=0
        How much is printed. The scores printed are those of the last stage.

    pre_dispatch : int or str, default="2*n_jobs"
        Number of jobs dispatched at a time.

    error_score : "raise" or float, default=np.nan
        Score of all stages if a fit fails, whose cost is NaN, and of a stage that a
        scorer fails to score. "raise" raises the error.

    return_train_score : bool, default=False
        Whether to score the training rows, too.

    Attributes
    ----------
    cv_results_ : dict of numpy (masked) ndarrays
        As that of :class:`~sklearn.model_selection.GridSearchCV`, with the columns
        "param_n_stages" ("param_<step>__n_stages" in a pipeline), "mean_test_cost",
        "std_test_cost" and "split0_test_cost" to the last split. Fit and score times
        are those of all stages together, the same in each row of a candidate.

    best_estimator_ : estimator
        Fitted on all rows, all students of it, with `n_stages` set. Not there if
        ``refit=False``.

    best_score_ : float
        Mean test score of the best candidate. Not there if `refit` is a callable.

    best_params_ : dict
        Parameters of the best candidate, `n_stages` being one of them.

    best_index_ : int
        Its row in `cv_results_`.

    scorer_ : callable or dict
        What scores, or by name if there are several.

    n_splits_ : int
        Number of splits.

    refit_time_ : float
        Seconds for the last fit. Not there if ``refit=False``.

    multimetric_ : bool
        Whether there are several scores.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if refitted on rows that have them.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : Fits for each value of `n_stages`.
    BDistilClassifier.stage_for : The stage of a fitted estimator for a budget.

    Notes
    -----
    A candidate has as many rows as the longest of its ensembles has stages. Where
    boosting stopped earlier in another split, the score and cost of that ensemble's
    last stage are repeated: with a larger `n_stages` it predicts with all that it has.
    The same holds for `best_estimator_`.

    `classes_` and `n_features_in_` are those of `best_estimator_`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.model_selection import StagedSearchCV, cheapest_within
    >>> X, y = load_iris(return_X_y=True)
    >>> search = StagedSearchCV(
    ...     BDistilClassifier(n_estimators=3, max_epochs=50, random_state=0),
    ...     {"connection": [None, "dense"]},
    ...     refit=cheapest_within(0.01),
    ...     cv=3,
    ... )
    >>> search = search.fit(X, y)
    >>> sorted(search.best_params_)
    ['connection', 'n_stages']
    >>> search.predict(X).shape
    (150,)
    """

    _parameter_constraints: dict = {
        **GridSearchCV._parameter_constraints,
        "cost": [StrOptions(set(UNITS)), callable],
    }

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        cost="macs",
        scoring=None,
        n_jobs=None,
        refit=True,
        cv=None,
        verbose=0,
        pre_dispatch="2*n_jobs",
        error_score=np.nan,
        return_train_score=False,
    ):
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.cost = cost

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Fit each candidate on each split, and the best one on all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or targets.

        **params : dict of str -> object
            Passed to `fit` of the estimator, to the scorers and to the splitter.
            What has one item per row, such as `teacher_scores`, is split as the rows.

        Returns
        -------
        self : object
            Fitted search.

        Raises
        ------
        ValueError
            If `param_grid` contains `n_stages`, a scorer is named "cost", or all fits
            fail.

        TypeError
            If the estimator has no parameter `n_stages`.
        """
        name = self._stage_parameter()
        if name not in self.estimator.get_params():
            raise TypeError(
                "'estimator' must have a parameter 'n_stages', or be a pipeline whose "
                f"last step has. Got {self.estimator!r} instead."
            )
        if any(name in grid for grid in ParameterGrid(self.param_grid).param_grid):
            raise ValueError(
                f"'param_grid' must not contain {name!r}: all stages are compared."
            )
        super().fit(X, y, **params)
        if isinstance(self.scorer_, _StagedScorer):
            self.scorer_ = self.scorer_.__wrapped__
        return self

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        target_tags = get_tags(self.estimator).target_tags
        tags.target_tags.multi_output = target_tags.multi_output
        return tags

    def _stage_parameter(self):
        """Name of `n_stages` among the parameters of the estimator."""
        prefix, estimator = "", self.estimator
        while isinstance(estimator, Pipeline):
            step, estimator = estimator.steps[-1]
            prefix += f"{step}__"
        return f"{prefix}n_stages"

    def _get_scorers(self):
        scorers, refit_metric = super()._get_scorers()
        if not isinstance(scorers, _MultimetricScorer):
            staged = _StagedScorer(scorers, self.cost, self.error_score)
        elif "cost" in scorers._scorers:
            raise ValueError(_COST_IS_TAKEN)
        else:
            staged = _StagedMultimetricScorer(scorers, self.cost, self.error_score)
        return staged, refit_metric

    def _format_results(self, candidate_params, n_splits, out, more_results=None):
        _name_all_scores(out)
        scores = out[0]["test_scores"]
        if isinstance(scores, dict) and "cost" in scores:
            # Of a callable that returns several scores, known only now.
            raise ValueError(_COST_IS_TAKEN)
        name = self._stage_parameter()
        params_by_row, out_by_row, costs = [], [], []
        for index, params in enumerate(candidate_params):
            # The fits of a candidate follow each other.
            folds = out[index * n_splits : (index + 1) * n_splits]
            known = [_with_stages(fold["test_scores"]) for fold in folds]
            # A score of 0 is as good as any: ask for None.
            n_stages = max(
                0 if scores is None else len(scores.costs) for scores in known
            )
            # Where all fits have failed, nobody knows how many stages there are.
            for stage in range(1, n_stages + 1) or [None]:
                params_by_row.append(
                    params if stage is None else {**params, name: stage}
                )
                out_by_row.extend(_fold_at(fold, stage) for fold in folds)
                costs.append(
                    [
                        np.nan if scores is None else scores.cost_at(stage)
                        for scores in known
                    ]
                )
        costs = np.array(costs)
        columns = {f"split{i}_test_cost": costs[:, i] for i in range(n_splits)}
        columns["mean_test_cost"] = costs.mean(axis=1)
        columns["std_test_cost"] = costs.std(axis=1)
        return super()._format_results(
            params_by_row, n_splits, out_by_row, {**(more_results or {}), **columns}
        )


class _StageScores(float):
    """Scores and costs of all stages, in the guise of the last stage's score.

    That is what lets them pass through scikit-learn's function that fits and scores,
    which takes numbers only, and with several scorers a dict of numbers.

    Parameters
    ----------
    scores : list of float
    costs : ndarray of shape (n_stages,)
    """

    def __new__(cls, scores, costs):
        self = super().__new__(cls, scores[-1])
        self.scores = [float(score) for score in scores]
        self.costs = costs
        return self

    def __getnewargs__(self):
        return self.scores, self.costs

    def at(self, stage):
        """Score of a stage, or of the last one if there is no such stage."""
        return self.scores[:stage][-1]

    def cost_at(self, stage):
        """Cost of a stage, or of the last one if there is no such stage."""
        return self.costs[:stage][-1]


class _StagedScorer:
    """Scorer of all stages, from one pass over the rows for each response method.

    Parameters
    ----------
    scorer : callable
        What scores a fitted estimator. It is kept as `__wrapped__`, so that its
        signature is found by those who ask for it.
    cost : str or callable
        Unit of the cost.
    error_score : "raise" or float
        Score of a stage for which the scorer fails.
    """

    def __init__(self, scorer, cost, error_score):
        self.__wrapped__ = scorer
        self.cost = cost
        self.error_score = error_score

    def __call__(self, estimator, X, *args, **kwargs):
        views = _stage_views(estimator, X)
        stages = []
        for view in views:
            try:
                score = self.__wrapped__(view, X, *args, **kwargs)
            except Exception:
                if self.error_score == "raise":
                    raise
                score = format_exc()
            else:
                numbers = score.values() if isinstance(score, dict) else [score]
                if any(isinstance(number, str) for number in numbers):
                    return score  # for scikit-learn to refuse
            stages.append(score)
        costs = _costs(estimator, X, self.cost, len(views), self.error_score)
        by_name = next((score for score in stages if isinstance(score, dict)), None)
        if by_name is None:
            return _joined(stages, costs, self.error_score)
        stages = [
            dict.fromkeys(by_name, score) if isinstance(score, str) else score
            for score in stages
        ]
        for score in stages:
            if not isinstance(score, dict) or score.keys() != by_name.keys():
                raise ValueError(
                    "'scoring' must return scores of the same names for all stages. "
                    f"Got {by_name} and {score}."
                )
        return {
            name: _joined([score[name] for score in stages], costs, self.error_score)
            for name in by_name
        }

    def __getattr__(self, name):
        # Which metadata it wants, and what it is called, is as in the scorer.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __repr__(self):
        return repr(self.__wrapped__)


class _StagedMultimetricScorer(_MultimetricScorer):
    """Several scorers of all stages, from the same pass over the rows.

    Parameters
    ----------
    scorers : _MultimetricScorer
    cost : str or callable
        Unit of the cost.
    error_score : "raise" or float
        Score of a stage for which a scorer fails.
    """

    def __init__(self, scorers, cost, error_score):
        super().__init__(scorers=scorers._scorers, raise_exc=scorers._raise_exc)
        self.cost = cost
        self.error_score = error_score

    def __call__(self, estimator, X, *args, **kwargs):
        score = super().__call__
        views = _stage_views(estimator, X)
        stages = [score(view, X, *args, **kwargs) for view in views]
        costs = _costs(estimator, X, self.cost, len(views), self.error_score)
        return {
            name: _joined([stage[name] for stage in stages], costs, self.error_score)
            for name in self._scorers
        }


def _costs(estimator, X, cost, n_stages, error_score):
    """Costs of the first stages; NaN, with a warning, if they cannot be had."""
    try:
        # What could not be counted is NaN, and is not worth the scores.
        return _cost_if_known(estimator, cost, X)[:n_stages]
    except Exception:
        if error_score == "raise":
            raise
        warnings.warn(
            "The costs on this split are NaN, since they could not be computed:\n"
            f"{format_exc()}"
        )
        return np.full(n_stages, np.nan)


def _joined(stages, costs, error_score):
    """Scores of all stages in one, of which text says that a stage has failed.

    What is no number is returned as it is, for scikit-learn to refuse.
    """
    scores = []
    for score in stages:
        if hasattr(score, "item"):
            # More than one item is no number either.
            with suppress(ValueError):
                score = score.item()
        if not isinstance(score, Number | str):
            return score
        scores.append(error_score if isinstance(score, str) else score)
    failed = [i for i, score in enumerate(stages) if isinstance(score, str)]
    if failed:
        warnings.warn(
            f"Scoring failed at stage(s) {[i + 1 for i in failed]} of {len(stages)} on "
            f"this split. Their score is set to {error_score}. At the first of them:\n"
            f"{stages[failed[0]]}"
        )
    return _StageScores(scores, costs)


def _name_all_scores(folds):
    """Give folds whose callable `scoring` has failed the names of the others."""
    for key in ("test_scores", "train_scores"):
        scores = [fold[key] for fold in folds if key in fold]
        by_name = next((score for score in scores if isinstance(score, dict)), None)
        if by_name is not None:
            for fold in folds:
                if not isinstance(fold[key], dict):
                    fold[key] = dict.fromkeys(by_name, fold[key])


def _with_stages(scores):
    """One of the scores of a fold that knows of the stages, or None if all failed."""
    scores = scores.values() if isinstance(scores, dict) else [scores]
    return next((score for score in scores if isinstance(score, _StageScores)), None)


def _fold_at(fold, stage):
    """What is known of a fit and its scores, with the scores of one stage."""
    scores = {
        key: _at(fold[key], stage)
        for key in ("test_scores", "train_scores")
        if key in fold
    }
    return {**fold, **scores}


def _at(scores, stage):
    if isinstance(scores, dict):
        return {name: _at(score, stage) for name, score in scores.items()}
    return scores.at(stage) if isinstance(scores, _StageScores) else scores


def _cheapest(scores, costs, tolerance):
    """Index of the cheapest candidate within a tolerance of the best score."""
    best = np.nanmax(scores)
    if tolerance == np.inf:
        threshold = -np.inf
    elif np.isinf(best):
        threshold = best
    else:
        # Means of the same scores in another order differ in their last digits.
        rounding = _ROUNDING * max(abs(best), tolerance)
        threshold = best - tolerance - rounding
    (within,) = np.nonzero(scores >= threshold)
    return int(within[np.lexsort((-scores[within], costs[within]))[0]])
