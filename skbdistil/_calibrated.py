"""Estimators that are calibrated on rows which their inner estimator has not seen."""

from sklearn import get_config
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)

from skbdistil._sklearn_compat import (
    _check_method_params,
    _is_fitted,
    _safe_indexing,
)
from skbdistil.stages import _wrapped_estimator


class EstimatorAround(MetaEstimatorMixin, BaseEstimator):
    """Base: routing and tags of what has a parameter `estimator`, fitted or frozen."""

    def _routed(self, params):
        """Parameters of `fit` that go to that of the estimator."""
        if get_config()["enable_metadata_routing"]:
            return process_routing(self, "fit", **params).estimator.fit
        return params

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


class CalibratedEstimator(EstimatorAround):
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

    def _fitted_clone(self, X, y, params, rows):
        """The estimator fitted to some rows, with parameters of `fit` cut to these."""
        params_rows = params_of_rows(X, self._routed(params), rows)
        return clone(self.estimator).fit(take(X, rows), take(y, rows), **params_rows)

    # Which fit was calibrated

    def _remember_fit(self):
        """Remember that the estimator, as it is now fitted, is the one calibrated.

        By the identity of what a fit makes anew. To compare it takes microseconds and
        asks nothing of the estimator; a digest of the weights would take as long as a
        small student. The objects are held, since the identity of one that is gone may
        be given to another. A copy by pickle or deepcopy has objects of its own: its
        state says whether the old ones were right, and then it remembers the new ones.
        """
        self._calibrated_fit = _made_by_fit(self.estimator_)

    def _is_calibrated(self):
        found = {id(made) for made in _made_by_fit(self.estimator_)}
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


def _made_by_fit(estimator):
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
        return [*made, estimator.thresholds_, *_made_by_fit(estimator.estimator_)]
    return [*made, getattr(estimator, "ensemble_", None)]
