"""Prediction intervals of regressors by split conformal prediction."""

from numbers import Integral, Real

import numpy as np
from sklearn.base import RegressorMixin, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state, indexable
from sklearn.utils.validation import check_array, check_is_fitted

from skbdistil._calibrated import (
    CalibratedEstimator,
    hold_out,
    take,
    take_features,
)
from skbdistil._conformal import around, conformal_rank, half_widths
from skbdistil._protocol import StagedEstimator
from skbdistil._sklearn_compat import (
    HasMethods,
    Interval,
    _fit_context,
    _num_samples,
)
from skbdistil.stages import _transformed, _unwrapped, staged

__all__ = ["SplitConformalRegressor"]


class SplitConformalRegressor(RegressorMixin, CalibratedEstimator):
    """Put intervals around the predictions of a regressor, at every stage.

    Rows that the regressor has not seen tell how far it is off. The interval of a new
    row is its prediction plus and minus a quantile of these distances, and holds the
    target with a probability of at least ``1 - alpha``, whatever the regressor and the
    distribution are [1]_ [2]_.

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilRegressor`,
        :class:`~skbdistil.early_exit.EarlyExitRegressor`, or a pipeline that ends in
        one. ``FrozenEstimator(fitted)`` is used as it is, and `fit` takes rows that
        it has not seen, neither for its students nor for its thresholds. An unfitted
        one is cloned, and fitted inside `fit` on the rows that are not held out, so
        that an early exit takes its own calibration rows out of these.

    calibration_size : float or int, default=0.2
        Rows that are held out of the fit of `estimator`: their share, between 0 and 1,
        or their number. Not used for a frozen one.

    random_state : int, RandomState instance or None, default=None
        Draws the rows that are held out.

    Attributes
    ----------
    estimator_ : estimator
        What predicts.

    residuals_ : ndarray of shape (n_calibration, n_outputs)
        Absolute errors of `predict` on the calibration rows, rising in each column.

    stage_residuals_ : ndarray of shape (n_stages, n_calibration, n_outputs)
        The same for every stage as it predicts all rows.

    n_features_in_ : int
        Number of features seen in `fit`, where the estimator has it.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where the estimator has them.

    See Also
    --------
    skbdistil.early_exit.EarlyExitRegressor : Rows leave at different stages.

    Notes
    -----
    The promise is about all rows together, and about the draw of the calibration rows
    as well as that of the new one. It needs them to be exchangeable, as rows that are
    drawn independently from one distribution are. It says nothing about groups of rows:
    neither about those of one region, nor about those that leave at one stage of an
    early exit.

    Each stage has a promise of its own. To look at the widths of all stages and then to
    use the narrowest is a choice on the calibration rows, and voids it.

    Of several targets each is covered with a probability of at least ``1 - alpha``. All
    of them together are with at least ``1 - n_outputs * alpha``: for a joint promise
    divide `alpha` by their number.

    Intervals are as wide for one row as for any other. They hold for the fit that they
    were calibrated for: where the frozen estimator is fitted again, predictions raise
    :class:`~sklearn.exceptions.NotFittedError`.

    References
    ----------
    .. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World",
       Springer 2005.
    .. [2] J. Lei, M. G'Sell, A. Rinaldo, R. J. Tibshirani, L. Wasserman,
       "Distribution-Free Predictive Inference for Regression", section 2.2,
       arXiv:1604.04173.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import RandomForestRegressor
    >>> from skbdistil import BDistilRegressor
    >>> from skbdistil.intervals import SplitConformalRegressor
    >>> from skbdistil.students import MLP
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = BDistilRegressor(
    ...     RandomForestRegressor(20, random_state=0),
    ...     student=partial(MLP, hidden=(8,)), n_estimators=3, max_epochs=5,
    ...     random_state=0,
    ... )
    >>> conformal = SplitConformalRegressor(reg, random_state=0).fit(X, y)
    >>> conformal.predict_interval(X, alpha=0.1).shape
    (442, 2)
    """

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict"])],
        "calibration_size": [
            Interval(Real, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "random_state": ["random_state"],
    }

    def __init__(self, estimator, *, calibration_size=0.2, random_state=None):
        self.estimator = estimator
        self.calibration_size = calibration_size
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, **params):
        """Calibrate the intervals, and fit the estimator where it is not frozen.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows: those to calibrate on for a frozen estimator, which it must not have
            seen; else those to train and to calibrate on.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.

        **params : dict
            Passed to the `fit` of the estimator; arrays with one item per row are cut
            to its rows. In the calibration all rows count alike, whatever their
            `sample_weight`. Rows of one of the `groups` are either trained or
            calibrated on, and `calibration_size` is then about the groups; since rows
            of a group are not drawn independently, coverage is not exactly what was
            promised.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the input is unusable.

        TypeError
            If the estimator is no regressor, or has no stages.
        """
        estimator_name = type(self).__name__
        if not is_regressor(self.estimator):
            raise TypeError(
                f"The 'estimator' parameter of {estimator_name} must be a regressor. "
                f"Got {self.estimator!r}."
            )
        if y is None:
            raise ValueError(
                f"{estimator_name} requires y to be passed, but the target y is None."
            )
        X, y = indexable(X, y)
        y = check_array(
            y,
            ensure_2d=False,
            dtype="numeric",
            input_name="y",
            estimator=estimator_name,
        )
        params = {name: param for name, param in params.items() if param is not None}
        data = {"X": X, "y": y}
        task = self._init_callback_context(max_subtasks=None)
        task.call_on_fit_task_begin(estimator=self, **data)
        if self._is_frozen(params):
            estimator = self.estimator
        else:
            # Drawn at random: rows that are balanced by anything are no fair draw.
            trained, held_out = hold_out(
                _num_samples(X),
                None,
                self.calibration_size,
                check_random_state(self.random_state),
                params.get("groups"),
            )
            estimator = self._fitted_clone(X, y, params, task, trained)
            X, y = take(X, held_out), y[held_out]
        residuals = self._residuals(y, estimator.predict(X))
        stage_residuals = np.array(
            [self._residuals(y, targets) for targets in _staged(estimator, X)]
        )
        self.estimator_ = estimator
        self.residuals_ = residuals
        self.stage_residuals_ = stage_residuals
        take_features(self, estimator)
        self._remember_fit()
        task.call_on_fit_task_end(estimator=self, **data, reconstruction_attributes={})
        return self

    def _residuals(self, y, predictions):
        """Sorted absolute errors, shape (n, n_outputs)."""
        if y.shape != predictions.shape:
            raise ValueError(
                f"{type(self).__name__} needs targets of the shape of the predictions, "
                f"{predictions.shape}. Got y of shape {y.shape}."
            )
        return np.sort(np.abs(y - predictions).reshape(len(y), -1), axis=0)

    def _calibrated(self):
        check_is_fitted(self)
        if not self._is_calibrated():
            raise NotFittedError(
                f"The estimator of this {type(self).__name__} has been fitted again or "
                "replaced since the intervals were calibrated: fit it again."
            )
        inner = _unwrapped(self.estimator_)
        n_stages = len(self.stage_residuals_)
        # An early exit looks to its own.
        if isinstance(inner, StagedEstimator) and inner._n_stages_used() != n_stages:
            raise NotFittedError(
                f"This {type(self).__name__} was calibrated with {n_stages} stages, "
                f"and its estimator now has {inner._n_stages_used()}: fit it again."
            )

    def predict(self, X):
        """Targets of each row, as the estimator predicts them.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        targets : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        self._calibrated()
        return self.estimator_.predict(X)

    def half_widths(self, alpha=0.1, *, stage=None):
        """Half of the widths of the intervals.

        All that another runtime needs for intervals is to add these to its predictions
        and to subtract them.

        Parameters
        ----------
        alpha : float, default=0.1
            Probability with which an interval may miss the target, between 0 and 1.

        stage : int or None, default=None
            The stage as it predicts all rows, from 1 to `n_stages`; None for `predict`.

        Returns
        -------
        half_widths : ndarray of shape (n_outputs,)
            In the units of the targets. Infinite, with a warning, where there are fewer
            than ``1 / alpha - 1`` calibration rows.

        Raises
        ------
        ValueError
            If `alpha` or `stage` is out of its range.

        Warns
        -----
        InfiniteIntervalWarning
            If there are too few calibration rows for this `alpha`.
        """
        return self._half_widths(alpha, stage, stacklevel=3)

    def _half_widths(self, alpha, stage, stacklevel):
        """As `half_widths`; `stacklevel` is that of the warning, from here."""
        self._calibrated()
        residuals = self.residuals_
        if stage is not None:
            n_stages = len(self.stage_residuals_)
            if not (isinstance(stage, Integral) and 1 <= stage <= n_stages):
                raise ValueError(
                    f"'stage' must be None or an int from 1 to {n_stages}. Got "
                    f"{stage!r} instead."
                )
            residuals = self.stage_residuals_[stage - 1]
        return half_widths(residuals, self._rank(alpha, stacklevel + 1))

    def _rank(self, alpha, stacklevel):
        name = type(self).__name__
        return conformal_rank(len(self.residuals_), alpha, name, stacklevel + 1)

    def predict_interval(self, X, alpha=0.1):
        """Intervals that hold the targets with a probability of at least 1 - alpha.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        alpha : float, default=0.1
            As for `half_widths`.

        Returns
        -------
        intervals : ndarray of shape (n_samples, 2) or (n_samples, n_outputs, 2)
            Lower and upper ends around `predict`, in the units of the targets.

        Raises
        ------
        ValueError
            If `alpha` is out of its range.

        Warns
        -----
        InfiniteIntervalWarning
            As `half_widths`.
        """
        half = self._half_widths(alpha, None, stacklevel=3)
        return around(self.estimator_.predict(X), half)

    def staged_predict_interval(self, X, alpha=0.1):
        """Intervals around the predictions of every stage for all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        alpha : float, default=0.1
            As for `half_widths`.

        Yields
        ------
        intervals : ndarray of shape (n_samples, 2) or (n_samples, n_outputs, 2)
            As of `predict_interval`.

        Raises
        ------
        ValueError
            If `alpha` is out of its range.

        Warns
        -----
        InfiniteIntervalWarning
            As `half_widths`.
        """
        self._calibrated()
        rank = self._rank(alpha, stacklevel=2)
        for targets, residuals in zip(
            _staged(self.estimator_, X), self.stage_residuals_, strict=True
        ):
            yield around(targets, half_widths(residuals, rank))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _staged(estimator, X):
    """Predictions of all rows after each stage, also inside an early exit."""
    inner = _unwrapped(estimator)
    if hasattr(inner, "exit_stages"):
        return _staged(inner.estimator_, _transformed(estimator, X))
    return staged(estimator, X)
