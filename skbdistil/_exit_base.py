"""Early exit of classifiers and of regressors: what both have in common."""

import math
import time
import warnings
from abc import ABCMeta, abstractmethod
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state, indexable
from sklearn.utils.validation import check_is_fitted

from skbdistil._boosting._scaling import check_scores
from skbdistil._calibrated import (
    CalibratedEstimator,
    hold_out,
    take,
    take_features,
)
from skbdistil._dataset_rows import as_views, with_labels
from skbdistil._exit_calibration import chosen_point, exit_path, rows_needed
from skbdistil._exit_runs import ExitRun, run_within
from skbdistil._protocol import StagedEstimator
from skbdistil._sklearn_compat import (
    HasMethods,
    Interval,
    StrOptions,
    _fit_context,
    _num_samples,
)
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.stages import (
    _check_method,
    _check_unit,
    _final_estimator,
    _transformed,
    stage_cost,
)

# One calibration row in this many is spent by `delta` on the order of the tests.
_ORDERS_ONE_IN = 3


class _NumpyState:
    """A :class:`~skbdistil.ensemble.StageState` in the eyes of an `ExitRun`."""

    def __init__(self, state, estimator_name):
        self._state = state
        self._estimator_name = estimator_name

    @torch.inference_mode()
    def step(self):
        state = self._state
        state.advance()
        scores = state.mean.cpu()
        check_scores(scores, self._estimator_name)
        return scores.numpy()

    @torch.inference_mode()
    def select(self, rows):
        state = self._state
        state.select(torch.from_numpy(rows).to(state.mean.device))


class BaseEarlyExit(CalibratedEstimator, metaclass=ABCMeta):
    """Base of the early exits: calibrate thresholds, and predict with them."""

    _parameter_constraints = {
        # Rule and cost have messages of their own.
        "estimator": [HasMethods(["fit"])],
        "rule": "no_validation",
        "max_cost": [Interval(Real, 0, None, closed="neither"), None],
        "delta": [Interval(Real, 0, 1, closed="neither"), None],
        "thresholds": [StrOptions({"shared", "stage"})],
        "cost": "no_validation",
        "cv": [Interval(Real, 0, 1, closed="neither"), "cv_object"],
        "random_state": ["random_state"],
    }

    # What classifiers and regressors do each in their way

    @abstractmethod
    def _check_parameters(self, y):
        """Refuse parameters that are unusable, also for want of `y`."""

    @abstractmethod
    def _check_y(self, y):
        """Refuse labels or targets that are none."""

    @abstractmethod
    def _is_distilled(self, final):
        """Whether a fitted estimator is the one of this package that is needed."""

    def _check_fitted(self, estimator):
        """Refuse an estimator that the rule does not suit."""

    def _calibrates_on_y(self):
        """Whether the calibration looks at `y`, which may be anything otherwise."""
        return False

    def _check_fold(self, fold, estimator):
        """Refuse the estimator of a fold that is not alike the one of all rows."""

    def _comparable(self, scores, fold, estimator):
        """Scores of the estimator of a fold as those of the one of all rows."""
        return scores

    def _columns_of(self, y, estimator):
        """What `_judged` needs of the labels."""
        return None

    def _final_given(self):
        """The final model that rows are deferred to, before the fit; None for none."""
        return None

    def _defers(self):
        """Whether it has been fitted with a final model."""
        return False

    def _final(self):
        """The final model of the fit."""
        return None

    def _final_columns(self, final, X, estimator):
        """What `_judged` needs of the answers of the final model."""
        return None

    def _path_costs(self, costs):
        """Cumulative costs of all stages, that of the final model as the last."""
        return costs

    def _check_cost(self):
        """Refuse a unit of cost that is none."""
        _check_unit(self.cost)

    def _stage_costs(self, estimator, X, n_stages):
        """Cumulative costs of the stages, without a final model."""
        return stage_cost(estimator, self.cost, X=X)[:n_stages]

    def _stage_macs(self, final):
        """Multiply-accumulates of each stage alone, NaN where they are not known."""
        return final.stage_costs_.macs[: self._n_stages()]

    def _stage_scores(self, final, X, *, fitted):
        """Scores of all stages, of shape (T, n, L), those of the fit where `fitted`."""
        return final._stage_scores(X)

    def _stage_states(self, final, X):
        """Begin a pass over the stages of the fit for each chunk of the rows."""
        return final._stage_states(X)

    def _as_long(self, scores, estimator):
        """Scores of a fold for the stages of the estimator of all rows.

        Where boosting stopped early, the last stage is that of all later ones.
        """
        stages = np.arange(self._distilled(estimator)._n_stages_used())
        return scores[np.minimum(stages, len(scores) - 1)]

    def _answers(self, X, stages, response):
        """Predictions of all rows, those that are deferred by the final model."""
        return response("predict")

    def _deferred(self, X, stages, response):
        """Yield the predictions again, if there are rows to defer."""
        return iter(())

    @abstractmethod
    def _candidates(self, estimator, scores, labels, order, tested):
        """Fitted attributes, what `_judged` returns, and the thresholds to try.

        Rows `order` may be looked at for the thresholds, rows `tested` may not.
        """

    @abstractmethod
    def _judged(self, estimator, scores, labels):
        """Values of the rule, whether a row is right, and whether the exit loses it.

        Of shapes (T - 1, n), (T, n) and (T, n). A final model is the last of T stages.
        """

    def _point(self, path, path_on_order, n_tested):
        """The chosen point of the path, and what is wrong with it, or None.

        `path_on_order` gives the path on the rows that order the thresholds.
        """
        allowed = getattr(self, self._allowed)
        point = chosen_point(path, n_tested, allowed, self.max_cost, self.delta)
        if self.delta is None or point or not path.thresholds.shape[1]:
            return point, None
        return point, (
            f"can guarantee no early exit with {self._allowed}={allowed:g} and delta="
            f"{self.delta:g} on {n_tested} calibration rows: all rows will use the "
            "full ensemble."
        )

    def _n_stages(self):
        """Number of stages that were calibrated."""
        return len(self.costs_)

    def _n_students(self):
        """Number of students that were calibrated."""
        return self._n_stages()

    def _stage_temperatures(self):
        return np.ones(self._n_stages())

    @abstractmethod
    def _response(self, final, scores, stages):
        """Function from a method to its response, read from these arrays."""

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Choose the thresholds, and fit the estimator where it is not frozen.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows: those to calibrate on for a frozen estimator, which it must not have
            been trained on; else those to train and to calibrate on.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or targets. Needed where the estimator needs them, and by a
            classifier for ``target="accuracy"`` or "error" and a temperature.

        **params : dict
            Passed to the `fit` of the estimator; arrays with one item per row are cut
            to its rows, but for `X_unlabelled`. Rows of one of the `groups` are either
            trained or calibrated on. In the calibration all rows count alike, whatever
            their `sample_weight`.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the input is unusable, among it too few rows for the
            guarantee.

        Warns
        -----
        NothingCertifiedWarning
            If no early exit can be guaranteed; all rows then use the full ensemble.
            With a final model, if no local answer can be; all rows are then deferred.
        """
        estimator_name = type(self).__name__
        X, y = with_labels(X, y, getattr(self.estimator, "net", None))
        self._check_parameters(y)
        self._check_cost()
        if self.delta is not None and self.max_cost is not None:
            raise ValueError(
                f"The parameters 'delta' and 'max_cost' of {estimator_name} exclude "
                f"each other: what can be guaranteed is {self._allowed!r}."
            )
        X, y = self._indexable(X, y)
        if y is not None:
            self._check_y(y)
        rng = check_random_state(self.random_state)
        # Folds may be any number.
        task = self._init_callback_context(max_subtasks=None)
        task.call_on_fit_task_begin(estimator=self, X=X, y=y)
        estimator, x, scores, labels = self._calibration_rows(
            X, y, rng, params, task, estimator_name
        )
        if not np.isfinite(scores).all():
            raise ValueError(
                f"{estimator_name} needs finite scores. Those of "
                f"{type(estimator).__name__} are not."
            )
        self._check_fitted(estimator)
        costs = np.asarray(self._stage_costs(estimator, x, len(scores)), dtype=float)
        costs = self._path_costs(costs)

        n_samples = scores.shape[1]
        order = tested = np.arange(n_samples)
        if self.delta is not None:
            order, tested = np.split(rng.permutation(n_samples), [n_order(n_samples)])
        fitted, judged, thresholds = self._candidates(
            estimator, scores, labels, order, tested
        )

        def path_on(rows):
            values, correct, losses = (part[:, rows] for part in judged)
            return exit_path(thresholds, values, losses, correct, costs)

        path = path_on(tested)
        point, problem = self._point(path, lambda: path_on(order), len(tested))
        if problem is not None:
            warnings.warn(
                f"{estimator_name} {problem}",
                NothingCertifiedWarning,
                stacklevel=3,  # the caller of fit
            )

        self.estimator_ = estimator
        self.rule_ = self.rule
        self.thresholds_ = path.thresholds[point].copy()
        self.costs_ = costs
        self.path_ = path
        vars(self).update(fitted)
        self.best_index_ = point
        take_features(self, estimator)
        self._remember_fit()
        task.call_on_fit_task_end(
            estimator=self, X=X, y=y, reconstruction_attributes={}
        )
        return self

    def _calibration_rows(self, X, y, rng, params, task, estimator_name):
        """The fitted estimator, and rows, scores and labels to calibrate on."""
        n_samples = _num_samples(X)
        known = y if self._calibrates_on_y() else None
        params = {name: param for name, param in params.items() if param is not None}
        groups = params.get("groups")
        if self._is_frozen(params):
            self._check_enough(n_samples, estimator_name)
            return (
                self.estimator,
                X,
                *self._scored(self.estimator, X, known, self._final_given()),
            )
        fitted = partial(self._fitted_clone, X, y, params, task)
        if isinstance(self.cv, Real) and not isinstance(self.cv, Integral):
            # Rows that are balanced by class are no fair draw, as a guarantee needs.
            balanced = y if self.delta is None and is_classifier(self) else None
            trained, held_out = hold_out(n_samples, balanced, self.cv, rng, groups)
            self._check_enough(len(held_out), estimator_name)
            estimator, x = fitted(trained), take(X, held_out)
            return (
                estimator,
                x,
                *self._scored(estimator, x, take(known, held_out), self._final_given()),
            )
        if self.delta is not None:
            raise ValueError(
                f"With 'delta', the 'cv' parameter of {estimator_name} must be the "
                "share of rows held out: what cross-validation calibrates on is not "
                f"what predicts, so that nothing can be guaranteed. Got cv={self.cv!r}."
            )
        estimator = fitted(np.arange(n_samples))
        folds = []
        splitter = check_cv(self.cv, y, classifier=is_classifier(self))
        for trained, held_out in splitter.split(X, y, groups):
            x, fold = take(X, held_out), fitted(trained)
            self._check_fold(fold, estimator)
            scores, labels = self._scored(
                fold, x, take(known, held_out), self._final_given()
            )
            scores = self._comparable(scores, fold, estimator)
            folds.append((self._as_long(scores, estimator), labels))
        if not folds:
            raise ValueError(f"The 'cv' parameter of {estimator_name} has no folds.")
        scores, labels = zip(*folds, strict=True)
        labels = tuple(
            None if parts[0] is None else np.concatenate(parts)
            for parts in zip(*labels, strict=True)
        )
        return estimator, X, np.concatenate(scores, axis=1), labels

    def _distilled(self, estimator):
        """The estimator with the stages in a fitted one."""
        final = _final_estimator(estimator)
        if not (isinstance(final, StagedEstimator) and self._is_distilled(final)):
            kind = "Classifier" if is_classifier(self) else "Regressor"
            raise TypeError(
                f"The 'estimator' parameter of {type(self).__name__} must be a "
                f"BDistil{kind}, or a pipeline that ends in one. Got {estimator!r} "
                "instead."
            )
        return final

    def _scored(self, estimator, X, y, final, *, fitted=False):
        """Scores of all stages, and what `_judged` needs of y and of the final model.

        The scores are of shape (T, n, L). What there is not is None.
        """
        scores = self._stage_scores(
            self._distilled(estimator), _transformed(estimator, X), fitted=fitted
        )
        return scores, (
            None if y is None else self._columns_of(y, estimator),
            None if final is None else self._final_columns(final, X, estimator),
        )

    def _indexable(self, X, y):
        X, y = indexable(as_views(X), y)
        if _num_samples(X) == 0:
            raise ValueError(f"{type(self).__name__} needs calibration rows. Got none.")
        return X, y

    def _check_enough(self, n_samples, estimator_name):
        """Refuse calibration rows that are too few for the guarantee."""
        if self.delta is not None:
            allowed = {self._allowed: getattr(self, self._allowed)}
            share = None if isinstance(self.estimator, FrozenEstimator) else self.cv
            check_enough(n_samples, self.delta, estimator_name, share, **allowed)

    def _calibrated(self):
        """The estimator with the stages, if they are those that were calibrated."""
        final = _final_estimator(self.estimator_)
        if not self._is_calibrated():
            raise NotFittedError(
                f"The estimator of this {type(self).__name__}, or a transform before "
                "it, has been fitted again or replaced since the thresholds were "
                "chosen. They, and what they guarantee, do not hold for it: fit it "
                "again."
            )
        if final._n_stages_used() != self._n_students():
            raise NotFittedError(
                f"This {type(self).__name__} was calibrated with {self._n_students()} "
                f"students, and its estimator now has {final._n_stages_used()}: fit it "
                "again."
            )
        return final

    # Predicting

    def _check_response(self, method, *, asks_final):
        """Refuse a method that the estimator, or its final model, does not have."""
        _check_method(method)
        if method != "predict" and not is_classifier(self):
            raise ValueError(f"{type(self).__name__} has no {method!r}.")

    def _begin(self, X):
        """Begin a pass over the stages for each chunk of the rows.

        Returns the passes, the stages that they write, and a function that reads the
        response to a method from what they have written so far. A fit in the meantime
        changes none of these.
        """
        final = self._calibrated()
        X = as_views(_transformed(self.estimator_, X))
        n_samples = _num_samples(X)
        dtype = final.ensemble_.dtype
        shape = n_samples, final.ensemble_.n_outputs
        scores = torch.empty(shape, dtype=dtype).numpy()
        stages = np.empty(n_samples, dtype=np.intp)
        runs = (
            ExitRun(
                _NumpyState(state, type(self).__name__),
                rows,
                scores,
                stages,
                rule=self.rule_,
                thresholds=self.thresholds_,
                temperatures=self._stage_temperatures(),
            )
            for rows, state in self._stage_states(final, X)
        )
        response = self._response(final, scores, stages)
        return runs, stages, response

    def _exits(self, X):
        """Stages at which the rows leave, and the function of the responses."""
        runs, stages, response = self._begin(X)
        for run in runs:
            while run.n_left:
                run.step()
        return stages, response

    def exit_stages(self, X):
        """Stage at which each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        stages : ndarray of shape (n_samples,)
            From 1 to the number of stages, and one more for rows that are deferred;
            the final model is not asked about them.
        """
        check_is_fitted(self)
        stages, _ = self._exits(X)
        return stages

    def predict_with_cost(self, X):
        """Prediction of each row, and what it cost.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            As of `predict`.

        costs : ndarray of shape (n_samples,)
            Cost of the stages that were run for each row, from `costs_`, and of the
            final model where it was asked.

        Raises
        ------
        skbdistil.exceptions.DeferralError
            If the final model fails; it holds the local answers.
        """
        check_is_fitted(self)
        self._final()  # that there is one, before anything is run
        stages, response = self._exits(X)
        return self._answers(X, stages, response), self.costs_[stages - 1]

    def anytime(self, X, method="predict"):
        """Predictions that get better while there is time.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit. What the students keep for later ones is held
            in memory for all rows that are left.

        method : {"predict", "predict_proba", "decision_function"}, default="predict"
            What is predicted; by a regressor, only "predict".

        Returns
        -------
        predictions : iterator of ndarray
            One array per stage, of what is best for each row by then; ends when all
            rows have left. May be abandoned at any moment. All come from what was
            fitted at the call. With a final model, one more with its answers if there
            are rows to defer.

        Raises
        ------
        ValueError
            If `method` is none of these, or not one of the estimator.
        """
        check_is_fitted(self)
        self._check_response(method, asks_final=True)
        self._final()
        runs, stages, response = self._begin(X)
        last = self._deferred(X, stages, response)
        # Begun here, so that rows which are no input raise here.
        return _anytime(list(runs), partial(response, method), last)

    def predict_within(self, X, seconds, method="predict"):
        """Predictions as good as the time allows.

        All rows get the first stage, however long it takes. Further stages are run
        chunk by chunk of the rows, as long as the time of the next one, expected from
        the last, is left. A final model, whose time is not known, is not asked: its
        rows are answered locally, and there is no promise about them.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        seconds : float
            Time for the whole call, positive.

        method : {"predict", "predict_proba", "decision_function"}, default="predict"
            What is predicted; by a regressor, only "predict".

        Returns
        -------
        predictions : ndarray
            Of `method`.

        Raises
        ------
        ValueError
            If `seconds` is not positive, or `method` is none of these or not one of
            the estimator.
        """
        began = time.perf_counter()
        check_is_fitted(self)
        self._check_response(method, asks_final=False)
        if not isinstance(seconds, Real) or not seconds > 0:
            raise ValueError(f"'seconds' must be positive. Got {seconds!r} instead.")
        runs, _, response = self._begin(X)
        macs = self._stage_macs(_final_estimator(self.estimator_))
        run_within(list(runs), macs, seconds, began)
        return response(method)

    def exit_path(self, X, y=None):
        """What the thresholds of `path_` give on other rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        y : array-like of shape (n_samples,), default=None
            Labels for the accuracy of a classifier. None for the agreement with the
            full ensemble; a regressor does not use it.

        Returns
        -------
        path : ExitPath
            As `path_`, whatever the `target` was; but with `y` and a final model, which
            is asked about all rows, losses are those of the `target`.

        Examples
        --------
        The curve of early exit for
        :class:`~skbdistil.inspection.AccuracyCostDisplay`, from cheap to careful::

            path = early.exit_path(X_test, y_test)
            AccuracyCostDisplay(path.costs[::-1], path.scores[::-1]).plot()
        """
        check_is_fitted(self)
        X, y = self._indexable(X, y)
        self._calibrated()
        scores, labels = self._scored(self.estimator_, X, y, self._final(), fitted=True)
        values, correct, losses = self._judged(self.estimator_, scores, labels)
        return exit_path(self.path_.thresholds, values, losses, correct, self.costs_)


def _anytime(runs, response, last):
    while any(run.n_left for run in runs):
        for run in runs:
            if run.n_left:
                run.step()
                run.write()
        yield response()
    yield from last


def n_order(n_samples):
    """Number of calibration rows that order the thresholds, and do not test them."""
    return math.ceil(n_samples / _ORDERS_ONE_IN)


def check_enough(n_samples, delta, estimator_name, share, **allowed):
    """Refuse calibration rows that are too few for a guarantee.

    They are a share of those that were given, or all of them where it is None. What is
    allowed comes under the name of its parameter.
    """
    ((name, value),) = allowed.items()
    needed = rows_needed(value, delta)
    if n_samples - n_order(n_samples) >= needed:
        return
    advice = "no number of rows is enough for it"
    if needed < math.inf:
        # Rounded up; an int, however large.
        enough = -(-needed * _ORDERS_ONE_IN // (_ORDERS_ONE_IN - 1))
        advice = f"it needs at least {enough}"
        if share is not None:
            advice += f", and cv={share:g} holds out these"
    raise ValueError(
        f"{estimator_name} cannot guarantee {name}={value:g} with delta={delta:g} on "
        f"{n_samples} calibration rows: {advice}."
    )
