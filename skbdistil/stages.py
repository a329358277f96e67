"""Stages of a fitted estimator, wherever it is: what they predict and what they cost.

The same functions serve the estimators of this package, scikit-learn's staged
ensembles, and what these are wrapped in.
"""

from dataclasses import replace

import numpy as np
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skbdistil._protocol import StagedEstimator, shallow_copy
from skbdistil._sklearn_compat import BaseSearchCV
from skbdistil.latency import compare_latencies
from skbdistil.metrics import _check_costs

__all__ = ["UNITS", "stage_cost", "stage_latency", "staged"]

#: Units of cost that have a name, and the labels of their axes.
UNITS = {
    "macs": "Multiply-accumulates per sample",
    "parameters": "Parameters",
    "weight_bytes": "Bytes of weights",
    "activation_bytes": "Bytes of kept activations per sample",
    "latency": "Seconds per sample",
}

_METHODS = ("predict", "predict_proba", "decision_function")

# More stages than these are not all timed: it would take minutes.
_MAX_TIMED = 20

# What holds the stages of scikit-learn's ensembles, one item per stage each.
_STAGE_ATTRIBUTES = {
    AdaBoostClassifier: ("estimators_", "estimator_weights_", "estimator_errors_"),
    AdaBoostRegressor: ("estimators_", "estimator_weights_", "estimator_errors_"),
    GradientBoostingClassifier: ("estimators_",),
    GradientBoostingRegressor: ("estimators_",),
    HistGradientBoostingClassifier: ("_predictors",),
    HistGradientBoostingRegressor: ("_predictors",),
}


def staged(estimator, X, method="predict"):
    """Predictions of a fitted estimator after each stage.

    Parameters
    ----------
    estimator : object
        Fitted estimator with ``staged_*`` methods: one of this package, or AdaBoost or
        a gradient boosting of scikit-learn. It may be the last step of a pipeline,
        inside :class:`~sklearn.frozen.FrozenEstimator`, or the best one of a search.

    X : array-like of shape (n_samples, ...)
        Rows. The transforms of a pipeline run on them once.

    method : {"predict", "predict_proba", "decision_function"}, default="predict"
        What is predicted.

    Returns
    -------
    predictions : iterator of ndarray
        One array per stage, as `method` of the estimator returns them.

    Raises
    ------
    ValueError
        If `method` is none of these.

    TypeError
        If the estimator has no stages, or not of this method.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import AdaBoostClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skbdistil.stages import staged
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(StandardScaler(), AdaBoostClassifier(n_estimators=3))
    >>> [labels.shape for labels in staged(pipeline.fit(X, y), X)]
    [(150,), (150,), (150,)]
    """
    _check_method(method)
    final = _final_estimator(estimator)
    if not hasattr(final, f"staged_{method}"):
        raise TypeError(f"{type(final).__name__} has no stages of {method!r}.")
    return getattr(final, f"staged_{method}")(_transformed(estimator, X))


def stage_cost(estimator, unit="macs", *, X=None):
    """Cost of a prediction by stage.

    Parameters
    ----------
    estimator : object
        Fitted estimator with stages, as for :func:`staged`.

    unit : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        - "macs", "parameters", "weight_bytes" and "activation_bytes" are those of
          :class:`~skbdistil.costs.StageCosts`, and of this package's estimators only;
        - "latency" is the median time of a prediction of one row in seconds, measured
          as by :func:`stage_latency`;
        - ``unit(estimator)`` is called with the estimator that has the stages, and
          returns the cumulative cost of each in a unit of your own. So you state the
          costs of stages whose operations could not be counted.

    X : array-like of shape (n_samples, ...), default=None
        Rows to measure the latency on; not used for other units.

    Returns
    -------
    costs : ndarray of shape (n_stages,)
        Cumulative: what a prediction costs that ends with the stage. All stages of
        the ensemble, also where `n_stages` tells it to use fewer. Latencies are never
        below that of an earlier stage; of more than 20 stages, those in between are
        interpolated. The transforms of a pipeline are a part of its latency, and of
        no other unit.

    Raises
    ------
    ValueError
        If the unit is unknown or not counted for this estimator, if the operations of
        a stage could not be counted, if `X` is missing, or if the costs of the callable
        are not cumulative costs.

    TypeError
        If the estimator has no stages.

    See Also
    --------
    BDistilClassifier.stage_for : The stage to use for a budget.

    Examples
    --------
    Energy, for a device that takes 3 nJ for a thousand multiply-accumulates:

    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.stages import stage_cost
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> costs = stage_cost(clf.fit(X, y))
    >>> energy = stage_cost(clf, lambda clf: 3e-12 * clf.stage_costs_.cumulative_macs)
    >>> bool((energy == 3e-12 * costs).all())
    True
    """
    costs = _cost_if_known(estimator, unit, X)
    unknown = np.flatnonzero(np.isnan(costs))
    if len(unknown):
        raise ValueError(
            f"The costs of {type(_final_estimator(estimator)).__name__} in {unit!r} "
            f"are not known: the operations of stage {unknown[0] + 1} could not be "
            "counted. Use another unit, such as 'latency', or a callable that returns "
            "the cumulative cost of each stage."
        )
    return costs


def _cost_if_known(estimator, unit, X):
    """As :func:`stage_cost`, with NaN from a stage on that could not be counted."""
    final = _final_estimator(estimator)
    _check_unit(unit)
    if callable(unit):
        return _check_costs(unit(final), _n_stages(final))
    if unit == "latency":
        if X is None:
            raise ValueError("'X' must be given for unit='latency', which is measured.")
        return _latency_cost(estimator, X)
    if not hasattr(final, "stage_costs_"):
        raise ValueError(
            f"{unit!r} is not counted for {type(final).__name__}. Use 'latency' or a "
            "callable."
        )
    return final.stage_costs_.cumulative(unit)


def stage_latency(
    estimator,
    X,
    *,
    stages=None,
    batch_size=1,
    n_warmup=5,
    n_repeats=50,
    n_threads=None,
):
    """Measure the time of `predict` by stage.

    Each stage is timed as an estimator that has been cut to it, transforms of a
    pipeline included. The stages take turns.

    Parameters
    ----------
    estimator : object
        Fitted estimator with stages, as for :func:`staged`.

    X : array-like of shape (n_samples, ...)
        Rows.

    stages : array-like of int or None, default=None
        Numbers of the stages to time, from 1 on; None for all.

    batch_size : int, default=1
        Rows per call.

    n_warmup : int, default=5
        Calls before those that are timed.

    n_repeats : int, default=50
        Calls that are timed, of each stage.

    n_threads : int or None, default=None
        Limit on the number of threads, as in :func:`~skbdistil.costs.measure_latency`.

    Returns
    -------
    latencies : list of :class:`~skbdistil.latency.Latency`
        One for each stage, in seconds per sample.

    Raises
    ------
    ValueError
        If a number is out of its range.

    TypeError
        If the estimator has no stages.

    See Also
    --------
    skbdistil.latency.compare_latencies : Any callables, measured in the same way.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import AdaBoostClassifier
    >>> from skbdistil.stages import stage_latency
    >>> X, y = load_iris(return_X_y=True)
    >>> latencies = stage_latency(
    ...     AdaBoostClassifier(n_estimators=3).fit(X, y), X, n_repeats=5
    ... )
    >>> [latency.what for latency in latencies]
    ['AdaBoostClassifier[:1].predict', 'AdaBoostClassifier[:2].predict', \
'AdaBoostClassifier[:3].predict']
    """
    final = _final_estimator(estimator)
    n_stages = _n_stages(final)
    stages = np.arange(1, n_stages + 1) if stages is None else np.asarray(stages)
    is_list = stages.ndim == 1 and len(stages) and stages.dtype.kind in "iu"
    if not is_list or stages.min() < 1 or stages.max() > n_stages:
        raise ValueError(
            f"'stages' must be a list of numbers of stages from 1 to {n_stages}. Got "
            f"{stages}."
        )
    latencies = compare_latencies(
        [_cut(estimator, stage).predict for stage in stages.tolist()],
        X,
        batch_size=batch_size,
        n_warmup=n_warmup,
        n_repeats=n_repeats,
        n_threads=n_threads,
    )
    name = type(final).__name__
    return [
        replace(latency, what=f"{name}[:{stage}].predict")
        for stage, latency in zip(stages.tolist(), latencies, strict=True)
    ]


def _check_method(method):
    """Refuse what is not the name of a response method."""
    if method not in _METHODS:
        raise ValueError(
            f"'method' must be one of {list(_METHODS)}. Got {method!r} instead."
        )


def _check_unit(unit):
    """Refuse what is neither the name of a unit of cost nor a callable."""
    if not (callable(unit) or (isinstance(unit, str) and unit in UNITS)):
        raise ValueError(
            f"The unit of cost must be one of {list(UNITS)} or a callable. Got "
            f"{unit!r} instead."
        )


def _final_estimator(estimator):
    """Estimator with the stages, taken out of pipelines, searches and the like.

    Parameters
    ----------
    estimator : object
        Fitted estimator.

    Returns
    -------
    final : object
        Fitted estimator with `staged_predict`.

    Raises
    ------
    TypeError
        If the estimator has no stages.
    """
    inner = _unwrapped(estimator)
    if not hasattr(inner, "staged_predict"):
        where = "" if inner is estimator else f", inside {type(estimator).__name__},"
        raise TypeError(
            f"{type(inner).__name__}{where} has no stages: it has no method "
            "'staged_predict'."
        )
    check_is_fitted(inner)
    return inner


def _unwrapped(estimator):
    """What predicts inside pipelines, searches and the like.

    Parameters
    ----------
    estimator : object
        Fitted estimator.

    Returns
    -------
    inner : object
        The estimator itself if it is none of these.
    """
    while (step := _wrapped_estimator(estimator)) is not None:
        estimator = step
    return estimator


def _wrapped_estimator(estimator):
    """The estimator that a wrapper hands its predictions on from, or None."""
    if isinstance(estimator, Pipeline):
        return estimator[-1]
    if isinstance(estimator, FrozenEstimator):
        return estimator.estimator
    if isinstance(estimator, BaseSearchCV):
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise ValueError(
                f"{type(estimator).__name__} has no best estimator, since it was "
                "fitted with refit=False."
            )
        return estimator.best_estimator_
    if isinstance(estimator, _StageView):
        return estimator._shorter
    return None


def _transformed(estimator, X):
    """Rows as the estimator with the stages gets them.

    Parameters
    ----------
    estimator : object
        Fitted estimator.
    X : array-like of shape (n_samples, ...)

    Returns
    -------
    X : array-like of shape (n_samples, ...)
        After the transforms of pipelines.
    """
    while (step := _wrapped_estimator(estimator)) is not None:
        if isinstance(estimator, Pipeline) and len(estimator) > 1:
            X = estimator[:-1].transform(X)
        estimator = step
    return X


def _cut(estimator, stage):
    """A fitted estimator that predicts as this one with its first stages does."""
    if isinstance(estimator, Pipeline):
        shorter = shallow_copy(estimator)
        name, last = estimator.steps[-1]
        shorter.steps = [*estimator.steps[:-1], (name, _cut(last, stage))]
        return shorter
    inner = _wrapped_estimator(estimator)
    if inner is not None:
        return _cut(inner, stage)
    shorter = shallow_copy(estimator)
    names = _stage_attributes(estimator)
    if names is None:
        shorter.n_stages = stage
    else:
        for name in names:
            setattr(shorter, name, getattr(estimator, name)[:stage])
    return shorter


def _stage_attributes(final):
    """Names of what holds the stages of an ensemble of scikit-learn, or None."""
    for kind, names in _STAGE_ATTRIBUTES.items():
        if isinstance(final, kind):
            return names
    return None


def _n_stages(final):
    names = _stage_attributes(final)
    return len(final) if names is None else len(getattr(final, names[0]))


def _n_stages_used(estimator):
    """Number of stages that an estimator predicts with."""
    final = _final_estimator(estimator)
    if isinstance(final, StagedEstimator):
        return final._n_stages_used()
    return _n_stages(final)


def _latency_cost(estimator, X):
    n_stages = _n_stages(_final_estimator(estimator))
    n_timed = min(n_stages, _MAX_TIMED)
    timed = np.linspace(1, n_stages, n_timed).round().astype(int)
    medians = [latency.median for latency in stage_latency(estimator, X, stages=timed)]
    # More stages are not faster; what the clock says otherwise is noise.
    medians = np.maximum.accumulate(medians)
    return np.interp(np.arange(1, n_stages + 1), timed, medians)


def _stage_views(estimator, X):
    """The stages of an estimator in the eyes of a scorer.

    Parameters
    ----------
    estimator : object
        Fitted estimator with stages, as for :func:`staged`.

    X : array-like of shape (n_samples, ...)
        Rows that the scorers will get, the same object.

    Returns
    -------
    views : list
        For each stage that the estimator predicts with, what can be passed to any
        scorer in the place of a fitted estimator. All share one staged pass per
        method.
    """
    passes = {}
    return [
        _StageView(estimator, stage, X, passes)
        for stage in range(1, _n_stages_used(estimator) + 1)
    ]


def _has_staged(method):
    return lambda view: hasattr(_final_estimator(view), f"staged_{method}")


class _StageView:
    """A fitted estimator cut after a stage, of which predictions are at hand.

    Parameters
    ----------
    estimator : object
        As the user knows it.
    stage : int
    X : array-like
        Rows whose predictions all views share.
    passes : dict
        Predictions of all stages, by method.
    """

    def __init__(self, estimator, stage, X, passes):
        self._estimator = estimator
        self._shorter = _cut(estimator, stage)
        self._stage = stage
        self._X = X
        self._passes = passes

    def _response(self, method, X):
        if X is not self._X:
            # A scorer may look at a part of the rows only.
            return getattr(self._shorter, method)(X)
        if method not in self._passes:
            self._passes[method] = list(staged(self._estimator, X, method))
        # A scorer may change what it gets.
        return self._passes[method][self._stage - 1].copy()

    def predict(self, X):
        return self._response("predict", X)

    @available_if(_has_staged("predict_proba"))
    def predict_proba(self, X):
        return self._response("predict_proba", X)

    @available_if(_has_staged("decision_function"))
    def decision_function(self, X):
        return self._response("decision_function", X)

    def score(self, *args, **kwargs):
        # As the estimator scores, but with the predictions at hand.
        return type(_final_estimator(self)).score(self, *args, **kwargs)

    def __getattr__(self, name):
        # Whatever else a scorer asks for is that of the shorter estimator.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._shorter, name)

    def __len__(self):
        return len(self._shorter)

    def __getitem__(self, key):
        return self._shorter[key]

    def __sklearn_tags__(self):
        return self._shorter.__sklearn_tags__()

    def __sklearn_is_fitted__(self):
        return True
