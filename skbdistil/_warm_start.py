"""An earlier fit that a fit begins with, where `warm_start` holds it."""

from sklearn.frozen import FrozenEstimator

from skbdistil._sklearn_compat import _is_fitted

# State of `partial_fit`, which is dropped, and not taken over from another estimator.
_OWN = {"_updates"}


def begins_with_another(estimator):
    """Whether each fit begins with the students of another estimator."""
    return isinstance(estimator.warm_start, FrozenEstimator)


def n_played(estimator):
    """Number of students that a fit begins with.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor

    Returns
    -------
    n_played : int
    """
    if not estimator.warm_start:
        return 0
    is_other = begins_with_another(estimator)
    first = estimator.warm_start.estimator if is_other else estimator
    return getattr(first, "n_estimators_", 0)


def take_over(estimator):
    """Give an estimator the fitted attributes of the one in its `warm_start`.

    Its own are dropped, so that each fit begins at the same place. Nothing happens
    where `warm_start` holds no estimator.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
        Changed in place. Attributes are shared, not copied, as `fit` replaces them.

    Raises
    ------
    ValueError
        If what is in `warm_start` is no fitted estimator of the same class.
    """
    if not begins_with_another(estimator):
        return
    first = estimator.warm_start.estimator
    name = type(estimator).__name__
    if type(first) is not type(estimator) or not _is_fitted(first):
        raise ValueError(
            f"The 'warm_start' parameter of {name} must be a bool or a FrozenEstimator "
            f"around a fitted {name}. Got FrozenEstimator({first!r})."
        )
    for attribute in [*_fitted(estimator), *_OWN]:
        vars(estimator).pop(attribute, None)
    vars(estimator).update(_fitted(first))


def _fitted(estimator):
    """Attributes that end in an underscore."""
    return {
        name: value
        for name, value in vars(estimator).items()
        if name.endswith("_") and not name.startswith("_")
    }
