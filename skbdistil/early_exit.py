"""Early exit: rows that are easy stop early, and are not computed any further."""

import math
import time
import warnings
from numbers import Integral, Real

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    _fit_context,
    clone,
    is_classifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import check_cv, train_test_split
from sklearn.utils import (
    Bunch,
    _safe_indexing,
    check_random_state,
    get_tags,
    indexable,
)
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_method_params,
    _is_fitted,
    _num_samples,
    assert_all_finite,
    check_is_fitted,
    column_or_1d,
)

from skbdistil._exit_calibration import (
    ExitPath,
    best_point,
    calibration_error,
    certified_point,
    cheapest_point,
    exit_path,
    fit_temperatures,
    rows_needed,
    shared_thresholds,
    stage_thresholds,
)
from skbdistil._exit_rules import check_rule, rule_values
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.stages import final_estimator, stage_cost, transformed

__all__ = ["EarlyExitClassifier", "ExitPath"]

# Share of the rows that `delta` takes for the order of the tests.
_PATH_SHARE = 1 / 3

_METHODS = ("predict", "predict_proba", "decision_function")

# By how much a step may take longer than the last one makes expect.
_TIME_MARGIN = 1.5


class _Run:
    """A pass over the students on some rows, which leave one after the other.

    Parameters
    ----------
    clf : EarlyExitClassifier
    rows : slice
        Positions of the rows.
    state : StageState
    out : Bunch
        `scores` of shape (n_samples, n_classes) and `stages` of shape (n_samples,),
        of all rows, which the run writes to.
    """

    def __init__(self, clf, rows, state, out):
        self._clf = clf
        self._left = np.arange(rows.start, rows.stop)
        self._state = state
        self._history = []
        self._out = out

    @property
    def n_left(self):
        """Number of rows that have not left."""
        return len(self._left)

    @torch.inference_mode()
    def step(self):
        """Run the next student on the rows that are left."""
        clf, state, out = self._clf, self._state, self._out
        state.advance()
        scores = (state.total / state.n_stages).cpu().numpy()
        # Also of rows that stay, in case there is no time for another stage.
        out.scores[self._left] = scores
        out.stages[self._left] = stage = state.n_stages
        if stage > len(clf.thresholds_):
            self._left = self._left[:0]
            return
        self._history.append(scores)
        threshold = clf.thresholds_[stage - 1]
        if threshold == np.inf:
            return
        values = rule_values(clf.rule, self._history, clf.temperatures_[stage - 1])
        stays = np.flatnonzero(~(values >= threshold))
        if len(stays) == len(values):
            return
        self._left = self._left[stays]
        if len(stays):
            self._history = [scores[stays] for scores in self._history]
            state.keep(torch.from_numpy(stays).to(state.x.device))


class EarlyExitClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Let each row leave after the first stage that is sure of it.

    A fixed stage for all rows wastes cost on easy ones. Here a rule looks at the scores
    of the stages so far, and a row leaves where its value reaches a threshold; it is
    not computed any further. Thresholds are chosen on rows that the students were not
    trained on, for the smallest mean cost at a drop that is allowed, and on request so
    that this drop is guaranteed [1]_.

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilClassifier`, or a pipeline that ends in one.
        ``FrozenEstimator(fitted)`` is used as it is, and `fit` takes rows that it was
        not trained on; an unfitted one is cloned and fitted inside `fit`.

    rule : {"confidence", "margin", "entropy", "patience", "agreement"} or callable, \
            default="confidence"
        What is compared with the threshold; the greater, the surer.

        - "confidence": probability of the label;
        - "margin": probability of the label less that of the second best [2]_;
        - "entropy": 1 less the entropy of the probabilities divided by ln L [3]_;
        - "patience": number of stages in a row with the same label [4]_;
        - "agreement": share of the students so far whose own label is that of their
          mean [5]_;
        - ``rule(stages)`` is called with the running means of the stages so far, an
          array of logits of shape (t, n_rows, n_classes), and returns one value per
          row.

    target : {"agreement", "accuracy"}, default="agreement"
        What a drop is measured in: agreement with the labels of the full ensemble, for
        which the rows need no labels, or accuracy.

    max_drop : float, default=0.01
        Largest drop of the target against the full ensemble, from 0 to less than 1.
        The thresholds of the smallest mean cost within it are chosen.

    max_cost : float or None, default=None
        Largest mean cost per row, in the unit of `cost`: the thresholds of the best
        target within it are chosen, and `max_drop` is not used.

    delta : float or None, default=None
        Probability with which the drop may exceed `max_drop` all the same, over the
        draw of the calibration rows, between 0 and 1. None for no guarantee: the drop
        is that on the calibration rows. A third of these then serve to order the
        thresholds, the rest to test them.

    thresholds : {"shared", "stage"}, default="shared"
        Whether one threshold serves all stages, or each has its own, at which the
        expected loss is the same.

    temperature : bool, default=False
        Whether the logits of each stage are divided by a temperature, fitted by
        likelihood on the calibration rows [6]_. For "confidence", "margin" and
        "entropy", and for `predict_proba`.

    cost : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        Unit of the cost, as for :func:`skbdistil.stages.stage_cost`.

    cv : float, int, cross-validation generator or iterable, default=0.2
        Calibration rows for an estimator that is fitted here: the share of the rows
        that is held out of its training, between 0 and 1; or the folds, so that the
        estimator is fitted once for each and once more on all rows, without a
        guarantee. Not used for a frozen one.

    random_state : int, RandomState instance or None, default=None
        Draws the rows that are held out, and those that order the thresholds.

    Attributes
    ----------
    estimator_ : estimator
        What predicts.

    classes_ : ndarray of shape (n_classes,)
        Labels.

    thresholds_ : ndarray of shape (n_stages - 1,)
        Values of the rule from which on a row leaves; infinite where none does.

    temperatures_ : ndarray of shape (n_stages,)
        1 without `temperature`.

    calibration_errors_ : ndarray of shape (2, n_stages) or None
        Expected calibration error of each stage, in 15 bins, before and after the
        temperature; None without.

    costs_ : ndarray of shape (n_stages,)
        Cumulative costs of the stages.

    path_ : ExitPath
        All thresholds that were tried, from careful to cheap: `thresholds` of shape
        (n_points, n_stages - 1), mean `costs`, `scores` and `losses` of shape
        (n_points,) on the calibration rows, and the share of these that leave at each
        stage, `exits` of shape (n_points, n_stages). A loss is a row that the full
        ensemble has right, by the target, and the early answer wrong.

    best_index_ : int
        The chosen one of these.

    n_features_in_ : int
        Number of features seen in `fit`, where the estimator has it.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where the estimator has them.

    See Also
    --------
    skbdistil.inspection.EarlyExitDisplay : What the thresholds trade.
    sklearn.model_selection.TunedThresholdClassifierCV : Its model in scikit-learn.

    Notes
    -----
    With `delta`, the promise is that of "Learn then Test" [1]_: thresholds are tested
    in a fixed order, each by the binomial tail of its losses, until one fails. It holds
    if the calibration rows and those to come are exchangeable, and for the loss, whose
    mean is at least the drop. It says nothing about single classes or about rows that
    drift.

    References
    ----------
    .. [1] A. N. Angelopoulos, S. Bates, E. J. Candes, M. I. Jordan, L. Lei, "Learn then
       Test: Calibrating Predictive Algorithms to Achieve Risk Control",
       arXiv:2110.01052.
    .. [2] T. Scheffer, C. Decomain, S. Wrobel, "Active Hidden Markov Models for
       Information Extraction", IDA 2001.
    .. [3] S. Teerapittayanon, B. McDanel, H. T. Kung, "BranchyNet: Fast Inference via
       Early Exiting from Deep Neural Networks", ICPR 2016.
    .. [4] W. Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early
       Exit", NeurIPS 2020.
    .. [5] S. Kolawole, D. Dennis, A. Talwalkar, "Revisiting Cascaded Ensembles for
       Efficient Inference", arXiv:2407.02348.
    .. [6] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural
       Networks", ICML 2017.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.early_exit import EarlyExitClassifier
    >>> from skbdistil.students import MLP
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = BDistilClassifier(
    ...     LogisticRegression(max_iter=1000), student=partial(MLP, hidden=(16,)),
    ...     n_estimators=3, max_epochs=5, random_state=0,
    ... )
    >>> early = EarlyExitClassifier(clf, random_state=0).fit(X, y)
    >>> labels, costs = early.predict_with_cost(X)
    >>> bool(costs.mean() < early.costs_[-1])
    True
    """

    _parameter_constraints = {
        # Rule, cost and estimator have messages of their own.
        "estimator": "no_validation",
        "rule": "no_validation",
        "target": [StrOptions({"agreement", "accuracy"})],
        "max_drop": [Interval(Real, 0, 1, closed="left")],
        "max_cost": [Interval(Real, 0, None, closed="neither"), None],
        "delta": [Interval(Real, 0, 1, closed="neither"), None],
        "thresholds": [StrOptions({"shared", "stage"})],
        "temperature": ["boolean"],
        "cost": "no_validation",
        "cv": [Interval(Real, 0, 1, closed="neither"), "cv_object"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator,
        *,
        rule="confidence",
        target="agreement",
        max_drop=0.01,
        max_cost=None,
        delta=None,
        thresholds="shared",
        temperature=False,
        cost="macs",
        cv=0.2,
        random_state=None,
    ):
        self.estimator = estimator
        self.rule = rule
        self.target = target
        self.max_drop = max_drop
        self.max_cost = max_cost
        self.delta = delta
        self.thresholds = thresholds
        self.temperature = temperature
        self.cost = cost
        self.cv = cv
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Choose the thresholds, and fit the estimator where it is not frozen.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows: those to calibrate on for a frozen estimator, which it must not have
            been trained on; else those to train and to calibrate on.

        y : array-like of shape (n_samples,), default=None
            Labels. Needed for ``target="accuracy"``, a temperature, and where the
            estimator needs them.

        **params : dict
            Passed to the `fit` of the estimator; arrays with one item per row are cut
            to its rows.

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
        """
        owner = type(self).__name__
        check_rule(self.rule, owner)
        if self.delta is not None and self.max_cost is not None:
            raise ValueError(
                f"The parameters 'delta' and 'max_cost' of {owner} exclude each other: "
                "what can be guaranteed is 'max_drop'."
            )
        if y is None and (self.target == "accuracy" or self.temperature):
            raise ValueError(
                f"{owner} requires y to be passed, but the target y is None. It is "
                "needed for target='accuracy' and for a temperature."
            )
        X, y = indexable(X, y)
        if y is not None:
            y = column_or_1d(y, warn=True)
            assert_all_finite(y, input_name="y", estimator_name=owner)
            check_classification_targets(y)
        rng = check_random_state(self.random_state)
        estimator, x, scores, label = self._calibration_rows(X, y, rng, params, owner)
        if not np.isfinite(scores).all():
            raise ValueError(
                f"{owner} needs finite scores. Those of {type(estimator).__name__} are "
                "not."
            )
        costs = np.asarray(stage_cost(estimator, self.cost, X=x), dtype=float)
        costs = costs[: len(scores)]

        n_samples = scores.shape[1]
        order = tested = np.arange(n_samples)
        if self.delta is not None:
            order, tested = self._split_rows(n_samples, rng, owner)
        temperatures = np.ones(len(scores))
        errors = None
        if self.temperature:
            temperatures = fit_temperatures(scores[:, order], label[order])
            errors = np.array(
                [
                    [
                        calibration_error(softmax(s / t, axis=1), label[tested])
                        for s, t in zip(scores[:, tested], scale, strict=True)
                    ]
                    for scale in (np.ones(len(scores)), temperatures)
                ]
            )
        values, correct, losses = self._judged(
            scores, label if self.target == "accuracy" else None, temperatures
        )
        if self.thresholds == "shared":
            thresholds = shared_thresholds(values[:, order])
        else:
            thresholds = stage_thresholds(values[:, order], losses[:, order])
        path = exit_path(
            thresholds, values[:, tested], losses[:, tested], correct[:, tested], costs
        )
        if self.max_cost is not None:
            point = best_point(path, self.max_cost)
        elif self.delta is None:
            point = cheapest_point(path, self.max_drop)
        else:
            point = certified_point(path, len(tested), self.max_drop, self.delta)
            if point == 0 and len(scores) > 1:
                warnings.warn(
                    f"{owner} can guarantee no early exit with max_drop="
                    f"{self.max_drop:g} and delta={self.delta:g} on {len(tested)} "
                    "calibration rows: all rows will use the full ensemble.",
                    NothingCertifiedWarning,
                    stacklevel=3,  # the caller of fit
                )

        self.estimator_ = estimator
        self.classes_ = estimator.classes_
        self.thresholds_ = path.thresholds[point]
        self.temperatures_ = temperatures
        self.calibration_errors_ = errors
        self.costs_ = costs
        self.path_ = path
        self.best_index_ = point
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        return self

    def _calibration_rows(self, X, y, rng, params, owner):
        """The fitted estimator, and rows, scores and labels to calibrate on."""
        if isinstance(self.estimator, FrozenEstimator):
            if params:
                raise ValueError(
                    f"{owner} passes {sorted(params)} to the fit of its estimator, "
                    "and this one is frozen."
                )
            return self.estimator, X, *self._scored(self.estimator, X, y, owner)
        if _is_fitted(self.estimator):
            raise ValueError(
                f"The 'estimator' parameter of {owner} is a fitted "
                f"{type(self.estimator).__name__}, which would be fitted again. Pass "
                "sklearn.frozen.FrozenEstimator(estimator) to calibrate it as it is, "
                "or sklearn.base.clone(estimator) to have it fitted to X and y."
            )
        if _routing_enabled():
            params = process_routing(self, "fit", **params).estimator.fit

        def fitted(rows):
            X_rows, y_rows = _take(X, rows), _take(y, rows)
            params_rows = _check_method_params(X, params, indices=rows)
            return clone(self.estimator).fit(X_rows, y_rows, **params_rows)

        n_samples = _num_samples(X)
        if isinstance(self.cv, Real) and not isinstance(self.cv, Integral):
            trained, held_out = _hold_out(n_samples, y, self.cv, rng)
            estimator, x = fitted(trained), _take(X, held_out)
            return estimator, x, *self._scored(estimator, x, _take(y, held_out), owner)
        if self.delta is not None:
            raise ValueError(
                f"With 'delta', the 'cv' parameter of {owner} must be the share of "
                "rows held out: what cross-validation calibrates on is not what "
                f"predicts, so that nothing can be guaranteed. Got cv={self.cv!r}."
            )
        estimator = fitted(np.arange(n_samples))
        n_stages = len(self._staged(estimator, _take(X, np.arange(1))))
        folds = []
        for trained, held_out in check_cv(self.cv, y, classifier=True).split(X, y):
            x, fold = _take(X, held_out), fitted(trained)
            scores, label = self._scored(fold, x, _take(y, held_out), owner)
            # Where boosting stopped early, the last stage is that of all later ones.
            stages = np.minimum(np.arange(n_stages), len(scores) - 1)
            folds.append((scores[stages], label))
        scores, labels = zip(*folds, strict=True)
        label = None if y is None else np.concatenate(labels)
        return estimator, X, np.concatenate(scores, axis=1), label

    def _scored(self, estimator, X, y, owner):
        """Scores of all stages, shape (T, n, L), and the columns of the labels."""
        final = final_estimator(estimator)
        if not (hasattr(final, "ensemble_") and is_classifier(final)):
            raise TypeError(
                f"The 'estimator' parameter of {owner} must be a BDistilClassifier, or "
                f"a pipeline that ends in one. Got {self.estimator!r} instead."
            )
        if _num_samples(X) == 0:
            raise ValueError(f"{owner} needs calibration rows. Got none.")
        scores = self._staged(estimator, X)
        if y is None:
            return scores, None
        unseen = np.setdiff1d(y, estimator.classes_)
        if len(unseen):
            raise ValueError(
                f"The calibration rows of {owner} have labels {unseen.tolist()} that "
                f"the estimator does not know. It knows {estimator.classes_.tolist()}."
            )
        return scores, np.searchsorted(estimator.classes_, y)

    @staticmethod
    def _staged(estimator, X):
        final = final_estimator(estimator)
        return final._staged_scores(transformed(estimator, X), all_stages=True)

    def _judged(self, scores, label, temperatures):
        """Values of the rule, whether a row is right, and whether the exit loses it.

        Right is, without labels, what the full ensemble says.
        """
        values = np.array(
            [
                rule_values(self.rule, scores[:stage], temperatures[stage - 1])
                for stage in range(1, len(scores))
            ]
        ).reshape(len(scores) - 1, scores.shape[1])
        labels = scores.argmax(axis=2)
        correct = labels == (labels[-1] if label is None else label)
        return values, correct, correct[-1] & ~correct

    def _split_rows(self, n_samples, rng, owner):
        """Rows that order the thresholds, and those that test them."""
        n_order = round(n_samples * _PATH_SHARE)
        needed = rows_needed(self.max_drop, self.delta)
        if n_samples - n_order < needed:
            advice = (
                f"it needs at least {math.ceil(needed / (1 - _PATH_SHARE))}"
                if needed < math.inf
                else "no number of rows is enough for max_drop=0"
            )
            raise ValueError(
                f"{owner} cannot guarantee max_drop={self.max_drop:g} with "
                f"delta={self.delta:g} on {n_samples} calibration rows: {advice}."
            )
        rows = rng.permutation(n_samples)
        return rows[:n_order], rows[n_order:]

    # Predicting

    def _begin(self, X):
        """Passes over the rows, chunk by chunk, and the arrays that they fill."""
        final = final_estimator(self.estimator_)
        X = transformed(self.estimator_, X)
        n_samples = _num_samples(X)
        out = Bunch(
            scores=np.empty((n_samples, len(self.classes_)), dtype=final.dtype),
            stages=np.empty(n_samples, dtype=np.intp),
        )
        return out, (
            _Run(self, rows, state, out) for rows, state in final._chunk_states(X)
        )

    def _exits(self, X):
        out, runs = self._begin(X)
        for run in runs:
            while run.n_left:
                run.step()
        return out

    def _response(self, out, method):
        if method == "predict":
            return self.classes_[out.scores.argmax(axis=1)]
        if method == "predict_proba":
            temperatures = self.temperatures_[out.stages - 1]
            return softmax(out.scores / temperatures[:, np.newaxis], axis=1)
        if len(self.classes_) == 2:
            return out.scores[:, 1] - out.scores[:, 0]
        return out.scores.copy()

    def predict(self, X):
        """Most likely class of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        return self._response(self._exits(X), "predict")

    def predict_proba(self, X):
        """Probabilities of the classes, at the stage where each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        check_is_fitted(self)
        return self._response(self._exits(X), "predict_proba")

    def decision_function(self, X):
        """Logits at the stage where each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            As of `decision_function` of the estimator; no temperature divides them.
        """
        check_is_fitted(self)
        return self._response(self._exits(X), "decision_function")

    def exit_stages(self, X):
        """Stage at which each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        stages : ndarray of shape (n_samples,)
            From 1 to the number of stages.
        """
        check_is_fitted(self)
        return self._exits(X).stages

    def predict_with_cost(self, X):
        """Most likely class of each row, and what it cost.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)

        costs : ndarray of shape (n_samples,)
            Cost of the stages that were run for each row, from `costs_`.
        """
        check_is_fitted(self)
        out = self._exits(X)
        return self._response(out, "predict"), self.costs_[out.stages - 1]

    def anytime(self, X, method="predict"):
        """Predictions that get better while there is time.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit. What the students keep for later ones is held
            in memory for all rows that are left.

        method : {"predict", "predict_proba", "decision_function"}, default="predict"
            What is predicted.

        Returns
        -------
        predictions : iterator of ndarray
            One array per stage, of what is best for each row by then; ends when all
            rows have left. May be abandoned at any moment.

        Raises
        ------
        ValueError
            If `method` is none of these.
        """
        check_is_fitted(self)
        _check_method(method)
        return self._anytime(*self._begin(X), method)

    def _anytime(self, out, runs, method):
        runs = list(runs)
        while any(run.n_left for run in runs):
            for run in runs:
                if run.n_left:
                    run.step()
            yield self._response(out, method)

    def predict_within(self, X, seconds, method="predict"):
        """Predictions as good as the time allows.

        All rows get the first stage, however long it takes. Further stages are run
        chunk by chunk of the rows, as long as the time of the next one, expected from
        the last, is left.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        seconds : float
            Time for the whole call, positive.

        method : {"predict", "predict_proba", "decision_function"}, default="predict"
            What is predicted.

        Returns
        -------
        predictions : ndarray
            Of `method`.

        Raises
        ------
        ValueError
            If `seconds` is not positive, or `method` is none of these.
        """
        began = time.perf_counter()
        check_is_fitted(self)
        _check_method(method)
        if not isinstance(seconds, Real) or not seconds > 0:
            raise ValueError(f"'seconds' must be positive. Got {seconds!r} instead.")
        out, runs = self._begin(X)
        runs = list(runs)
        macs = final_estimator(self.estimator_).stage_costs_.macs
        # Rows only leave, so that a step takes longer where the student is larger.
        growth = np.maximum(macs[1:] / macs[:-1], 1)
        now = time.perf_counter()
        durations = {}
        for run in runs:
            run.step()
            durations[run], now = time.perf_counter() - now, time.perf_counter()
        for stage in range(1, len(self.costs_)):
            for run in runs:
                expected = _TIME_MARGIN * durations[run] * growth[stage - 1]
                if now - began + expected > seconds:
                    return self._response(out, method)
                if run.n_left:
                    run.step()
                    durations[run] = time.perf_counter() - now
                    now = time.perf_counter()
        return self._response(out, method)

    def exit_path(self, X, y=None):
        """What the thresholds of `path_` give on other rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        y : array-like of shape (n_samples,), default=None
            Labels. None for the agreement with the full ensemble in place of accuracy.

        Returns
        -------
        path : ExitPath
            As `path_`, whatever the `target` was.

        Examples
        --------
        The curve of early exit for
        :class:`~skbdistil.inspection.AccuracyCostDisplay`, from cheap to careful::

            path = early.exit_path(X_test, y_test)
            AccuracyCostDisplay(path.costs[::-1], path.scores[::-1]).plot()
        """
        check_is_fitted(self)
        X, y = indexable(X, y)
        scores, label = self._scored(self.estimator_, X, y, type(self).__name__)
        scores = scores[: len(self.costs_)]
        values, correct, losses = self._judged(scores, label, self.temperatures_)
        return exit_path(self.path_.thresholds, values, losses, correct, self.costs_)

    def get_metadata_routing(self):
        """Metadata routing: `fit` passes its parameters on to that of the estimator.

        Returns
        -------
        routing : MetadataRouter
        """
        return MetadataRouter(owner=self).add(
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


def _check_method(method):
    if method not in _METHODS:
        raise ValueError(
            f"'method' must be one of {list(_METHODS)}. Got {method!r} instead."
        )


def _take(array, rows):
    return None if array is None else _safe_indexing(array, rows)


def _hold_out(n_samples, y, share, rng):
    """Rows to train on and rows to calibrate on, the classes balanced if possible."""
    rows = np.arange(n_samples)
    stratify = y
    if y is not None:
        n_held_out = math.ceil(share * n_samples)
        _, counts = np.unique(y, return_counts=True)
        # Where classes are too rare to be on both sides, chance decides.
        if counts.min() < 2 or len(counts) > min(n_held_out, n_samples - n_held_out):
            stratify = None
    return train_test_split(rows, test_size=share, random_state=rng, stratify=stratify)
