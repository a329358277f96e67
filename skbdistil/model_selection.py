"""Model selection that sees the cost of a prediction.

Refit callables and a scorer for the searches of scikit-learn, and searches that read
all stages from one fit.
"""

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Number, Real
from traceback import format_exc

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.utils import get_tags, indexable
from sklearn.utils.parallel import Parallel, delayed
from tqdm.auto import tqdm

from skbdistil._dataset_rows import with_labels
from skbdistil._halving import candidate, final_step, is_over, plan_rungs
from skbdistil._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    _check_method_params,
    _fit_and_score,
    _fit_context,
    _MultimetricScorer,
    _warn_or_raise_about_fit_failures,
)
from skbdistil._warm_start import n_played
from skbdistil.metrics import _search_scores_and_costs, _split_scores
from skbdistil.stages import (
    UNITS,
    _cost_if_known,
    _n_stages_used,
    _stage_views,
    stage_cost,
    stage_latency,
)

__all__ = [
    "HalvingStagedSearchCV",
    "StagedSearchCV",
    "best_under",
    "cheapest_within",
    "cost_scorer",
]

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
        self._check_stage_parameter()
        X, y = with_labels(X, y, getattr(self.estimator, "net", None))
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
        return f"{final_step(self.estimator)[1]}n_stages"

    def _check_stage_parameter(self):
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


class HalvingStagedSearchCV(StagedSearchCV, CallbackSupportMixin):
    """Grid search over parameters and stages that gives up on candidates early.

    All candidates play a few rounds of boosting. The best of them, one in `factor`, go
    on and play more, and so forth, until the last ones have played all `n_estimators`
    rounds: successive halving [1]_, [2]_ with rounds as the resource. Nothing is
    trained twice: a candidate goes on with the students it has. As all that depends on
    the number of rounds is planned for all of them, `eta` for one, its stages are those
    that :class:`StagedSearchCV` has.

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilClassifier`, :class:`~skbdistil.BDistilRegressor`, or
        a pipeline that ends in one, without refinement. If its own `n_stages` is set,
        stages beyond are not considered.

    param_grid : dict or list of dicts
        Values to try of each parameter but `n_stages`.

    factor : float, default=3
        One in so many candidates goes on after each rung, rounded down to at least
        one. The number of rounds grows by it from rung to rung. Above 1.

    min_rounds : int, default=1
        Rounds that all candidates play, at least. The first rung has more of them where
        the last candidates are reached all the same. Where `warm_start` of the
        estimator holds the first students, rounds are those that follow.

    cost : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        Unit of the cost, as for :class:`StagedSearchCV`.

    scoring : str, callable, list, tuple or dict, default=None
        Scores to compute, as for :class:`~sklearn.model_selection.GridSearchCV`; None
        for the `score` of the estimator. None of them may be named "cost".

    n_jobs : int or None, default=None
        Number of jobs. None is 1, and -1 all processors.

    refit : bool, str or callable, default=True
        Whether, or by which scorer, to refit the best candidate on all rows, as for
        :class:`StagedSearchCV`. It also decides who goes on: those whose rows
        of `cv_results_` it would choose, one after the other. With False that is
        decided by the score, of which there must be one only.

    cv : int, cross-validation generator, iterable or None, default=None
        Splits, as for :class:`~sklearn.model_selection.GridSearchCV`; None for 5 folds.
        They are made once.

    verbose : int, default=0
        How much is printed: from 1 on a line about each rung, from 2 on about each fit.

    pre_dispatch : int or str, default="2*n_jobs"
        Number of jobs dispatched at a time.

    error_score : "raise" or float, default=np.nan
        Score of all stages if a fit fails, as for :class:`StagedSearchCV`. Such a fit
        is not tried again.

    return_train_score : bool, default=False
        Whether to score the training rows, too.

    Attributes
    ----------
    cv_results_ : dict of numpy (masked) ndarrays
        As that of :class:`StagedSearchCV`, without the rows of stages that were not
        played. "iter" is the rung in which the stage was played, from 0 on, and
        "n_resources" the rounds that had been played at the end of it. Times are those
        of all rungs of the candidate together.

    n_candidates_ : list of int
        Number of candidates of each rung.

    n_resources_ : list of int
        Rounds that these have played at the end of it, with those of first students in
        `warm_start`.

    best_estimator_ : estimator
        Fitted on all rows, all students of it, with `n_stages` set. Not there if
        ``refit=False``.

    best_score_ : float
        Mean test score of the best candidate. Not there if `refit` is a callable.

    best_params_ : dict
        Parameters of the best candidate, `n_stages` being one of them.

    best_index_ : int
        Its row in `cv_results_`. It is chosen from all rows: the stages of candidates
        that did not go on are what they would be in a full fit.

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
    StagedSearchCV : Plays all rounds of all candidates.
    sklearn.model_selection.HalvingGridSearchCV : Fits anew in each rung.

    Notes
    -----
    Rows of the last rung are those of :class:`StagedSearchCV` to the bit, if
    `random_state` is an int in each candidate. Where it is none, the search draws one
    for each candidate and split, as it does for the other steps of a pipeline.

    Each rung fits what comes before the boosting again: a teacher that is not fitted
    yet, and the steps of a pipeline before the last. To do so once, pass a fitted
    teacher in :class:`~sklearn.frozen.FrozenEstimator` or ``teacher="precomputed"``
    with `teacher_scores`, and set `memory` of the pipeline.

    Rounds are those of the candidate with the most; one with fewer `n_estimators` is
    through when it has played these. With `early_stopping`, a rung may end with fewer
    stages than rounds: those that did not pay so far are played again. For an
    :class:`~skbdistil.early_exit.EarlyExitClassifier`, search its `estimator`.

    `classes_` and `n_features_in_` are those of `best_estimator_`.

    References
    ----------
    .. [1] Z. Karnin, T. Koren, O. Somekh, "Almost Optimal Exploration in Multi-Armed
       Bandits", ICML 2013.

    .. [2] K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and
       Hyperparameter Optimization", AISTATS 2016, arXiv:1502.07943.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.model_selection import HalvingStagedSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> search = HalvingStagedSearchCV(
    ...     BDistilClassifier(n_estimators=4, max_epochs=20, random_state=0),
    ...     {"learning_rate": [0.001, 0.01, 0.1], "connection": [None, "dense"]},
    ...     cv=2,
    ... )
    >>> search = search.fit(X, y)
    >>> search.n_candidates_, search.n_resources_
    ([6, 2], [1, 4])
    >>> sorted(search.best_params_)
    ['connection', 'learning_rate', 'n_stages']
    >>> len(search.best_estimator_)
    4
    """

    _parameter_constraints: dict = {
        **StagedSearchCV._parameter_constraints,
        "factor": [Interval(Real, 1, None, closed="neither")],
        "min_rounds": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        factor=3,
        min_rounds=1,
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
            cost=cost,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.factor = factor
        self.min_rounds = min_rounds

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Fit candidates on each split, rung by rung, and the best one on all rows.

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
            If `param_grid` contains `n_stages`, a scorer is named "cost", all fits of a
            rung fail, a candidate has `refine`, `min_rounds` is larger than the number
            of rounds to play, there are several scores and ``refit=False``, or `refit`
            chooses nothing.

        TypeError
            If the estimator is none of this package, or no pipeline that ends in one.
        """
        self._check_stage_parameter()
        scorer, _ = self._get_scorers()
        if isinstance(scorer, _MultimetricScorer):
            self._deciding_score(scorer._scorers)

        X, y = with_labels(X, y, getattr(self.estimator, "net", None))
        X, y = indexable(X, y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        weight = params.get("sample_weight")
        data = {
            "X": X,
            "y": y,
            "metadata": None if weight is None else {"sample_weight": weight},
        }
        # As the searches of scikit-learn name and nest them.
        task = self._init_callback_context(max_subtasks=1 + bool(self.refit))
        task.call_on_fit_task_begin(estimator=self, **data)
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(cv.split(X, y, **routed.splitter.split))
        if not splits:
            raise ValueError("'cv' must give at least one split. Got none.")
        self.n_splits_ = len(splits)

        grid = list(ParameterGrid(self.param_grid))
        # The fits of a candidate follow each other, here and in `folds`.
        fits = [candidate(self.estimator, params) for params in grid for _ in splits]
        folds = [None] * len(fits)
        n_rounds = max(final_step(fit)[0].n_estimators for fit in fits)
        # Students of an earlier fit that candidates begin with.
        n_before = max(n_played(final_step(fit)[0]) for fit in fits)
        if self.min_rounds > n_rounds - n_before:
            before = f" less the {n_before} of 'warm_start'" if n_before else ""
            raise ValueError(
                f"'min_rounds' must be at most n_estimators={n_rounds}{before}. Got "
                f"{self.min_rounds}."
            )
        rungs = [
            (n_left, n_before + rounds)
            for n_left, rounds in plan_rungs(
                n_rounds - n_before, len(grid), self.factor, self.min_rounds
            )
        ]
        playing = np.arange(len(grid))
        results = metric = None
        self.n_candidates_, self.n_resources_ = [], []
        search_task = task.subcontext(task_name="search", max_subtasks=len(rungs))
        search_task.call_on_fit_task_begin(estimator=self)
        with Parallel(n_jobs=self.n_jobs, pre_dispatch=self.pre_dispatch) as parallel:
            for n_left, rounds in rungs:
                if results is not None:
                    playing = self._best_candidates(results, metric, playing, n_left)
                self.n_candidates_.append(len(playing))
                self.n_resources_.append(rounds)
                if self.verbose:
                    tqdm.write(
                        f"Rung {len(self.n_resources_)} of {len(rungs)}: "
                        f"{len(playing)} candidate(s) on {len(splits)} split(s), up to "
                        f"{rounds} round(s)"
                    )
                self._play(
                    parallel,
                    fits,
                    folds,
                    playing,
                    rounds,
                    X,
                    y,
                    splits,
                    scorer,
                    routed,
                    search_task,
                )
                results = self._format_results(grid, len(splits), folds)
                first_scores = folds[0]["test_scores"]
                metric = self._deciding_score(first_scores)
        search_task.call_on_fit_task_end(estimator=self)

        self.multimetric_ = isinstance(first_scores, dict)
        self.best_index_ = self._select_best_index(self.refit, metric, results)
        if not callable(self.refit):
            self.best_score_ = results[f"mean_test_{metric}"][self.best_index_]
        self.best_params_ = results["params"][self.best_index_]
        if self.refit:
            self.best_estimator_ = clone(self.estimator).set_params(
                **clone(self.best_params_, safe=False)
            )
            began = time.time()
            rows = (X,) if y is None else (X, y)
            refit_task = task.subcontext(task_name="refit-with-best-params")
            with refit_task.propagate_callback_context(self.best_estimator_):
                refit_task.call_on_fit_task_begin(estimator=self, **data)
                self.best_estimator_.fit(*rows, **routed.estimator.fit)
            self.refit_time_ = time.time() - began
            refit_task.call_on_fit_task_end(estimator=self, **data)
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        if isinstance(scorer, _MultimetricScorer):
            self.scorer_ = scorer._scorers
        else:
            self.scorer_ = scorer.__wrapped__
        self.cv_results_ = results
        task.call_on_fit_task_end(estimator=self, **data)
        return self

    def _play(
        self,
        parallel,
        fits,
        folds,
        playing,
        rounds,
        X,
        y,
        splits,
        scorer,
        routed,
        search_task,
    ):
        """Let candidates play up to a number of rounds.

        `fits`, one estimator per candidate and split, and `folds`, what is known of
        each, are updated.
        """
        n_splits = len(splits)
        under_way = [
            number
            for index in playing
            for number in range(index * n_splits, (index + 1) * n_splits)
            if folds[number] is None
            or not is_over(final_step(fits[number])[0], folds[number])
        ]
        for number in under_way:
            final_step(fits[number])[0]._round_limit = rounds
        rung_task = search_task.subcontext(
            task_name="rung",
            max_subtasks=len(under_way),
            sequential_subtasks=False,
        ).call_on_fit_task_begin(estimator=self)
        # All of them before the fits are sent to other processes.
        tasks = [
            rung_task.subcontext(
                task_name="candidate-split-evaluation", task_id=position
            )
            for position in range(len(under_way))
        ]
        found = parallel(
            delayed(_fit_and_score)(
                fits[number],
                X,
                y,
                scorer=scorer,
                train=splits[number % n_splits][0],
                test=splits[number % n_splits][1],
                verbose=self.verbose,
                # It has them.
                parameters=None,
                fit_params=routed.estimator.fit,
                score_params=routed.scorer.score,
                return_train_score=self.return_train_score,
                return_n_test_samples=True,
                return_times=True,
                return_estimator=True,
                split_progress=(number % n_splits, n_splits),
                candidate_progress=(number // n_splits, len(fits) // n_splits),
                error_score=self.error_score,
                caller=self,
                callback_ctx=task,
            )
            for number, task in zip(under_way, tasks, strict=True)
        )
        rung_task.call_on_fit_task_end(estimator=self)
        _warn_or_raise_about_fit_failures(found, self.error_score)
        for number, fold in zip(under_way, found, strict=True):
            fitted = fold.pop("estimator")
            # From another process it comes with a teacher of its own, which may be
            # large: the one that all candidates share is kept.
            teacher = final_step(fits[number])[0].teacher
            final_step(fitted)[0].teacher = teacher
            fits[number] = fitted
            if folds[number] is not None:
                for key in ("fit_time", "score_time"):
                    fold[key] += folds[number][key]
            folds[number] = fold

    def _deciding_score(self, scores):
        """Name of the score that decides, given the scores of a fit or the scorers."""
        if not isinstance(scores, dict):
            return "score"
        if not self.refit:
            raise ValueError(
                "With several scores, 'refit' must say which candidates go on: the "
                f"name of a score, or a callable. Got {self.refit!r}."
            )
        self._check_refit_for_multimetric(scores)
        return self.refit

    def _best_candidates(self, results, metric, playing, n):
        """Candidates that `refit` would choose, one after the other.

        Parameters
        ----------
        results : dict of ndarrays
            As `cv_results_`, of all candidates.
        metric : str or callable
            Name of the score that decides.
        playing : ndarray of int
            Indices of the candidates to choose from.
        n : int

        Returns
        -------
        best : ndarray of int
            At most `n`, in increasing order. Those without a score are not chosen, and
            one is in any case.
        """
        of_row = np.cumsum(self._stages(results) == 1) - 1
        best = []
        while len(best) < min(n, len(playing)):
            rows = np.flatnonzero(np.isin(of_row, np.setdiff1d(playing, best)))
            if not callable(self.refit) and best:
                known = ~np.isnan(results[f"mean_test_{metric}"][rows])
                rows = rows[known]
                if not len(rows):
                    break
            left = {
                name: [column[row] for row in rows]
                if isinstance(column, list)
                else column[rows]
                for name, column in results.items()
            }
            for name in left:
                if name.startswith("rank_test_"):
                    left[name] = left[name] - left[name].min() + 1
            try:
                row = rows[self._select_best_index(self.refit, metric, left)]
            except ValueError:
                # None that is left will do, as when all are over the budget.
                if not best:
                    raise
                break
            best.append(of_row[row])
        return np.sort(best)

    def _stages(self, results):
        """Stage of each row; 1 where all fits of a candidate have failed."""
        name = self._stage_parameter()
        return np.array([params.get(name, 1) for params in results["params"]])

    def _format_results(self, candidate_params, n_splits, out, more_results=None):
        results = super()._format_results(candidate_params, n_splits, out, more_results)
        rungs = np.searchsorted(self.n_resources_, self._stages(results))
        results["iter"] = rungs
        results["n_resources"] = np.take(self.n_resources_, rungs)
        return results


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
