"""Estimators that are calibrated on rows which their inner estimators have not seen."""

import math
from numbers import Integral

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)

from skbdistil._sklearn_compat import (
    CallbackSupportMixin,
    _check_method_params,
    _is_fitted,
    _safe_indexing,
)
from skbdistil.stages import _stage_attributes, _wrapped_estimator


class RemembersFit:
    """Mixin: remember which fits of the inner estimators were calibrated.

    By the identity of what a fit makes anew. To compare it takes microseconds and asks
    nothing of the estimator; a digest of the weights would take as long as a small
    student. The objects are held, since the identity of one that is gone may be given
    to another. A copy by pickle or deepcopy has objects of its own: its state says
    whether the old ones were right, and then it remembers the new ones.
    """

    def _inner_estimators(self):
        """What predicts."""
        return [self.estimator_]

    def _made_by_fits(self):
        return [made for inner in self._inner_estimators() for made in _made_by(inner)]

    def _remember_fit(self):
        """Remember that the estimators, as they are now fitted, are calibrated."""
        self._calibrated_fit = self._made_by_fits()

    def _is_calibrated(self):
        found = {id(made) for made in self._made_by_fits()}
        # What has been added since, such as a cache of a transform, does no harm.
        return self._calibrated_fit is not False and (
            {id(made) for made in self._calibrated_fit} <= found
        )

    def __getstate__(self):
        state = dict(super().__getstate__())
        if "_calibrated_fit" in state:
            state["_calibrated_fit"] = self._is_calibrated()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if state.get("_calibrated_fit"):
            self._remember_fit()


class CalibratedEstimator(
    RemembersFit, CallbackSupportMixin, MetaEstimatorMixin, BaseEstimator
):
    """Base: fit the inner estimator or take it as it is, and remember which fit it was.

    A subclass has the parameter `estimator`, and sets `estimator_` in `fit`.
    """

    def _is_frozen(self, params):
        """Whether the estimator is frozen; refuse what cannot be fitted as is asked."""
        estimator_name = type(self).__name__
        if isinstance(self.estimator, FrozenEstimator):
            if params:
                raise ValueError(
                    f"{estimator_name} passes {sorted(params)} to the fit of its "
                    "estimator, and this one is frozen."
                )
            return True
        if _is_fitted(self.estimator):
            raise ValueError(
                f"The 'estimator' parameter of {estimator_name} is a fitted "
                f"{type(self.estimator).__name__}, which would be fitted again. Pass "
                "sklearn.frozen.FrozenEstimator(estimator) to calibrate it as it is, "
                "or sklearn.base.clone(estimator) to have it fitted to X and y."
            )
        return False

    def _fitted_clone(self, X, y, params, task, rows):
        """The estimator fitted to some rows, with parameters of `fit` cut to these."""
        if get_config()["enable_metadata_routing"]:
            params = process_routing(self, "fit", **params).estimator.fit
        return fitted_clone(self, "estimator", self.estimator, X, y, params, task, rows)

    def get_metadata_routing(self):
        """Metadata routing: `fit` passes its parameters on to that of the estimator.

        Returns
        -------
        routing : MetadataRouter
        """
        # For the `sample_weight` of `score`.
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(
            estimator=self.estimator,
            method_mapping=MethodMapping().add(callee="fit", caller="fit"),
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        estimator = self.estimator
        if isinstance(estimator, FrozenEstimator):
            # Its tags are a deep copy, which takes as long as a small student.
            estimator = estimator.estimator
        inner = get_tags(estimator)
        tags.input_tags.three_d_array = inner.input_tags.three_d_array
        tags.input_tags.sparse = inner.input_tags.sparse
        tags.input_tags.allow_nan = inner.input_tags.allow_nan
        return tags


def fitted_clone(outer, name, inner, X, y, params, task, rows):
    """Clone of an inner estimator, fitted to some rows.

    Parameters
    ----------
    outer : estimator
    name : str
        Of the inner one, for callbacks.
    inner : estimator
    X, y : array-like
    params : dict
        Parameters of its `fit`, which are cut to the rows.
    task : CallbackContext
        Of the fit of the outer estimator, a part of which this is.
    rows : ndarray of int

    Returns
    -------
    fitted : estimator
    """
    fitted = clone(inner)
    data = {"X": take(X, rows), "y": take(y, rows)}
    part = task.subcontext(task_name=f"fit-{name}")
    with part.propagate_callback_context(fitted):
        part.call_on_fit_task_begin(estimator=outer, **data)
        fitted.fit(data["X"], data["y"], **params_of_rows(X, params, rows))
    part.call_on_fit_task_end(estimator=outer, **data)
    return fitted


def hold_out(n_samples, y, size, rng, groups):
    """Rows to train on and rows to calibrate on.

    Balanced by the labels if these are given; of other groups if these are.

    Parameters
    ----------
    n_samples : int
    y : ndarray of shape (n_samples,) or None
    size : float or int
        Share or number of rows, or of groups, to calibrate on.
    rng : RandomState
    groups : array-like of shape (n_samples,) or None

    Returns
    -------
    trained, held_out : ndarray of int
    """
    size = size if isinstance(size, Integral) else float(size)
    rows = np.arange(n_samples)
    if groups is not None:
        folds = GroupShuffleSplit(1, test_size=size, random_state=rng)
        return next(folds.split(rows, groups=groups))
    is_lone = np.zeros(n_samples, dtype=bool)
    stratify = None
    if y is not None:
        _, label, counts = np.unique(y, return_inverse=True, return_counts=True)
        n_classes = np.count_nonzero(counts > 1)
        # What a class has only one of, it takes for its training.
        if n_classes:
            is_lone = counts[label] == 1
        n_split = n_samples - np.count_nonzero(is_lone)
        n_held_out = math.ceil(size * n_split)
        # Where there are too few rows for all classes, chance decides.
        if 0 < n_classes <= min(n_held_out, n_split - n_held_out):
            stratify = label[~is_lone]
    trained, held_out = train_test_split(
        rows[~is_lone], test_size=size, random_state=rng, stratify=stratify
    )
    return np.concatenate([trained, rows[is_lone]]), held_out


def take(array, rows):
    return None if array is None else _safe_indexing(array, rows)


def take_features(estimator, inner):
    """Give an estimator what an inner one knows of its features."""
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(inner, name):
            setattr(estimator, name, getattr(inner, name))
        else:
            vars(estimator).pop(name, None)  # that of an earlier fit


def params_of_rows(X, params, rows):
    """Parameters of `fit` for some of the rows of X; `X_unlabelled` has its own."""
    of_rows = {
        name: param
        for name, param in params.items()
        if not name.endswith("X_unlabelled")
    }
    return {**params, **_check_method_params(X, of_rows, indices=rows)}


def _made_by(estimator):
    """What a fit of the estimator, or of a transform before it, makes anew."""
    made = []
    while (inner := _wrapped_estimator(estimator)) is not None:
        if isinstance(estimator, Pipeline):
            for _, transform in estimator.steps[:-1]:
                fitted = getattr(transform, "__dict__", {})  # a step may be text
                made.append(transform)
                made += [value for name, value in fitted.items() if name.endswith("_")]
        estimator = inner
    if hasattr(estimator, "exit_stages"):
        return [*made, estimator.thresholds_, *_made_by(estimator.estimator_)]
    # Of ours and of cascades; of others what classifiers, or what has stages, has.
    names = ["ensemble_", "thresholds_", "classes_"]
    names += _stage_attributes(estimator) or []
    return [*made, *(getattr(estimator, "__dict__", {}).get(name) for name in names)]
