"""Early exit: rows that are easy stop early, and are not computed any further."""

from functools import partial
from numbers import Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    is_classifier,
    is_regressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    assert_all_finite,
    check_array,
    check_is_fitted,
    column_or_1d,
)

from skbdistil._calibrated import take
from skbdistil._deferral import answers, audited, check_final, with_final
from skbdistil._exit_base import BaseEarlyExit
from skbdistil._exit_calibration import (
    ExitPath,
    answered,
    best_point,
    calibration_error,
    certified_point,
    cheapest_point,
    first_point,
    fit_temperatures,
    judged,
    shared_thresholds,
    stage_thresholds,
    stage_values,
)
from skbdistil._exit_rules import (
    REGRESSION_RULES,
    RULES,
    as_decision,
    check_rule,
    in_units,
    label_probabilities,
)
from skbdistil._sklearn_compat import (
    Interval,
    StrOptions,
    _is_fitted,
    _num_samples,
)

__all__ = ["EarlyExitClassifier", "EarlyExitRegressor", "ExitPath"]


def _scores_are_answers(early):
    """Whether no rows are deferred, whose final answers are labels only."""
    if early.final is not None or early._defers():
        raise AttributeError(
            f"This {type(early).__name__} has a final model, whose answers are labels "
            "only. Scores of the students are those of its estimator_."
        )
    return True


class EarlyExitClassifier(ClassifierMixin, BaseEarlyExit):
    """Let each row leave after the first stage that is sure of it.

    A fixed stage for all rows wastes cost on easy ones. Here a rule looks at the scores
    of the stages so far, and a row leaves where its value reaches a threshold; it is
    not computed any further. Thresholds are chosen on rows that the students were not
    trained on, for the smallest mean cost at a drop that is allowed, and on request so
    that this drop is guaranteed [1]_.

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilClassifier` or
        :class:`~skbdistil.exported.ExportedClassifier`, or a pipeline that ends in one.
        ``FrozenEstimator(fitted)`` is used as it is, and `fit` takes rows that it was
        not trained on; an unfitted one is cloned and fitted inside `fit`.

    rule : {"confidence", "margin", "entropy", "patience", "agreement"} or callable, \
            default="confidence"
        What is compared with the threshold; the greater, the surer.

        - "confidence": probability of the label [7]_;
        - "margin": probability of the label less that of the second best [2]_;
        - "entropy": 1 less the entropy of the probabilities divided by ln L [3]_;
        - "patience": number of stages in a row with the same label [4]_;
        - "agreement": share of the students so far whose own label is that of their
          mean [5]_, for estimators with ``combine="mean"``;
        - ``rule(stages)`` is called with the running means of the stages so far, an
          array of logits of shape (t, n_rows, n_classes), and returns one value per
          row.

    target : {"agreement", "accuracy", "error"}, default="agreement"
        What a drop is measured in: agreement with the labels of the full ensemble, for
        which the rows need no labels, or accuracy. With `final`, that takes the place
        of the full ensemble, and a loss is a row that is answered locally and

        - "agreement": otherwise than by `final`;
        - "accuracy": wrong, where `final` is right;
        - "error": wrong, whatever `final` says. Only with `final`.

    max_drop : float, default=0.01
        Largest drop of the target against the full ensemble, from 0 to less than 1.
        The thresholds of the smallest mean cost within it are chosen. With `final`,
        largest `risk`, the mean loss.

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
        Unit of the cost, as for :func:`skbdistil.stages.stage_cost`. By a callable you
        state the costs of stages whose operations could not be counted.

    cv : float, int, cross-validation generator, iterable or None, default=0.2
        Calibration rows for an estimator that is fitted here: the share of the rows
        that is held out of its training, between 0 and 1; or the folds, 5 for None, so
        that the estimator is fitted once for each and once more on all rows, without a
        guarantee. Not used for a frozen one.

    random_state : int, RandomState instance or None, default=None
        Draws the rows that are held out, and those that order the thresholds.

    final : estimator, callable or None, default=None
        Model, such as the teacher, that rows go to of which no stage is sure:
        ``FrozenEstimator(fitted)``, or ``final(rows)`` that returns one label per row,
        all of them known to the estimator. It gets the rows in the form of the caller,
        all that are deferred in one call, and must not have been trained on the
        calibration rows, about all of which `fit` asks it. A fitted estimator that is
        not frozen is used as it is, but :func:`~sklearn.base.clone`, and with it a
        search, would forget its fit.

    final_cost : float or None, default=None
        Price of asking `final` about a row, in the unit of `cost`. Needed with `final`.

    risk : {"marginal", "selective"}, default="marginal"
        With `final`, what `max_drop` bounds: the probability that a row is answered
        locally and is a loss, or that of a loss given that it is answered locally [8]_.

    Attributes
    ----------
    estimator_ : estimator
        What predicts.

    classes_ : ndarray of shape (n_classes,)
        Labels.

    rule_ : str or callable
        Rule that the thresholds are for.

    thresholds_ : ndarray of shape (n_stages - 1,) or (n_stages,)
        Values of the rule from which on a row leaves; infinite where none does. With
        `final` there is a last one, and rows that do not reach it are deferred.

    final_ : estimator, callable or None
        What they are deferred to. None after loading from a file; then `final` is,
        which ``set_params(final=...)`` gives again.

    temperatures_ : ndarray of shape (n_stages,)
        1 without `temperature`.

    calibration_errors_ : ndarray of shape (2, n_stages) or None
        Expected calibration error of each stage, in 15 bins, before and after the
        temperature; None without.

    costs_ : ndarray of shape (n_stages,) or (n_stages + 1,)
        Cumulative costs of the stages, that of `final` as the last.

    path_ : ExitPath
        All thresholds that were tried, from careful to cheap: `thresholds` of shape
        (n_points, n_stages - 1), mean `costs`, `scores` and `losses` of shape
        (n_points,) on the calibration rows, and the share of these that leave at each
        stage, `exits` of shape (n_points, n_stages). A loss is a row that the full
        ensemble has right, by the target, and the early answer wrong. With `final`,
        which counts as a stage, see `target`.

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
    Thresholds hold for the fit that they were chosen for. Where the frozen estimator,
    or a transform before it, is fitted again or replaced, predictions raise
    :class:`~sklearn.exceptions.NotFittedError` until the thresholds are chosen again by
    `fit`. Copies and files remember which fit it was; weights that are changed in place
    are not noticed.

    With `delta`, the promise is that of "Learn then Test" [1]_: thresholds are tested
    in a fixed order, each by the binomial tail of its losses, until one fails. It holds
    if the calibration rows and those to come are exchangeable, which is to say drawn
    alike and independently, and for the loss, whose mean is at least the drop. It says
    nothing about single classes or about rows that drift, and it is void if the rule or
    another parameter was chosen on the same rows, as a search does.

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
    .. [7] Y. Geifman, R. El-Yaniv, "Selective Classification for Deep Neural Networks",
       section 4, NeurIPS 2017.
    .. [8] R. El-Yaniv, Y. Wiener, "On the Foundations of Noise-free Selective
       Classification", Journal of Machine Learning Research 11, 2010.

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

    Rows that are not sure go to the teacher, which here is fitted to other rows:

    >>> from sklearn.frozen import FrozenEstimator
    >>> teacher = LogisticRegression(max_iter=1000).fit(X[:600], y[:600])
    >>> deferring = EarlyExitClassifier(
    ...     FrozenEstimator(clf.fit(X[:600], y[:600])), final=FrozenEstimator(teacher),
    ...     final_cost=10_000, max_drop=0.05, delta=0.1, random_state=0,
    ... ).fit(X[600:1200])
    >>> stages = deferring.exit_stages(X[1200:])  # 4 are the deferred ones
    >>> bool(0 < (stages == 4).mean() < 1)
    True
    """

    _parameter_constraints = {
        **BaseEarlyExit._parameter_constraints,
        "target": [StrOptions({"agreement", "accuracy", "error"})],
        "max_drop": [Interval(Real, 0, 1, closed="left")],
        "temperature": ["boolean"],
        "final": "no_validation",
        "final_cost": [Interval(Real, 0, None, closed="left"), None],
        "risk": [StrOptions({"marginal", "selective"})],
    }

    # The parameter that bounds the mean loss.
    _allowed = "max_drop"

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
        final=None,
        final_cost=None,
        risk="marginal",
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
        self.final = final
        self.final_cost = final_cost
        self.risk = risk

    def _check_parameters(self, y):
        estimator_name = type(self).__name__
        check_rule(self.rule, RULES, estimator_name)
        self._check_deferral(estimator_name)
        if y is None and self._calibrates_on_y():
            raise ValueError(
                f"{estimator_name} requires y to be passed, but the target y is None. "
                "It is needed for target='accuracy' and 'error' and for a temperature."
            )

    def _check_deferral(self, estimator_name):
        """Refuse parameters that do not go with a final model, or with none."""
        if self.final is None:
            for name, default in (("final_cost", None), ("risk", "marginal")):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"The {name!r} parameter of {estimator_name} is for rows that "
                        "are deferred, and there is no 'final' to defer them to. Got "
                        f"{name}={getattr(self, name)!r}."
                    )
            if self.target == "error":
                raise ValueError(
                    f"target='error' of {estimator_name} needs a 'final' model: "
                    "without one, all errors are local."
                )
            return
        check_final(self.final, estimator_name)
        if isinstance(self.final, BaseEstimator) and not _is_fitted(self.final):
            raise NotFittedError(
                f"The 'final' parameter of {estimator_name} must be fitted. Got "
                f"{self.final!r}, which is not: clones, as of a search, forget their "
                "fit. Pass sklearn.frozen.FrozenEstimator(fitted)."
            )
        if self.final_cost is None:
            raise ValueError(
                f"{estimator_name} needs 'final_cost', the price of asking 'final' "
                f"about a row in the unit of cost={self.cost!r}; state it in other "
                "units by a callable 'cost'."
            )

    def _indexable(self, X, y):
        X, y = super()._indexable(X, y)
        if y is None:
            return X, None
        if np.ndim(y) == 2 and np.shape(y)[1] > 1:
            raise ValueError(_several_labels(type(self).__name__))
        return X, column_or_1d(y, warn=True)

    def _check_y(self, y):
        assert_all_finite(y, input_name="y", estimator_name=type(self).__name__)
        check_classification_targets(y)

    def _is_distilled(self, final):
        return is_classifier(final)

    def _calibrates_on_y(self):
        return self.target != "agreement" or self.temperature

    def _check_fitted(self, estimator):
        final = self._distilled(estimator)
        if getattr(final, "multilabel_", False):
            raise ValueError(_several_labels(type(self).__name__))
        combine = getattr(final, "combine_", "mean")
        if self.rule == "agreement" and combine != "mean":
            raise ValueError(
                f"The 'rule' parameter of {type(self).__name__} is 'agreement', which "
                f"lets students vote, and with combine={combine!r}, which 'auto' may "
                "stand for, a student is no prediction of its own. Use combine='mean', "
                "or another rule."
            )

    def _check_fold(self, fold, estimator):
        if not np.array_equal(fold.classes_, estimator.classes_):
            raise ValueError(
                f"Each fold of {type(self).__name__} must train on all classes. One "
                f"has only {fold.classes_.tolist()} of {estimator.classes_.tolist()}."
            )

    def _columns_of(self, y, estimator):
        unseen = np.setdiff1d(y, estimator.classes_)
        if len(unseen):
            raise ValueError(
                f"The rows that {type(self).__name__} got have labels "
                f"{unseen.tolist()} that the estimator does not know. It knows "
                f"{estimator.classes_.tolist()}."
            )
        return np.searchsorted(estimator.classes_, y)

    def _final_given(self):
        return self.final

    def _final_columns(self, final, X, estimator):
        return answers(final, X, _num_samples(X), estimator.classes_)

    def _path_costs(self, costs):
        if self.final is None:
            return costs
        return np.append(costs, costs[-1] + self.final_cost)

    def _candidates(self, estimator, scores, labels, order, tested):
        label, final_label = labels
        temperatures = np.ones(len(scores))
        errors = None
        if self.temperature:
            temperatures = fit_temperatures(scores[:, order], label[order])
            errors = np.array(
                [
                    [
                        calibration_error(label_probabilities(s / t), label[tested])
                        for s, t in zip(scores[:, tested], scale, strict=True)
                    ]
                    for scale in (np.ones(len(scores)), temperatures)
                ]
            )
        found = judged(
            scores,
            None if self.target == "agreement" else label,
            self.rule,
            temperatures,
            final_label,
            self.target,
        )
        values, _, losses = found
        if self.thresholds == "shared":
            thresholds = shared_thresholds(values[:, order])
        else:
            thresholds = stage_thresholds(values[:, order], losses[:, order])
        fitted = {
            "classes_": estimator.classes_,
            "temperatures_": temperatures,
            "calibration_errors_": errors,
            "final_": self.final,
        }
        return fitted, found, thresholds

    def _judged(self, estimator, scores, labels):
        label, final_label = labels
        return judged(
            scores, label, self.rule_, self.temperatures_, final_label, self.target
        )

    def _point(self, path, path_on_order, n_tested):
        if self.final is None:
            return super()._point(path, path_on_order, n_tested)
        # Nothing is lost where nothing is answered.
        shares = np.maximum(answered(path, self.risk), 1 / n_tested)
        if self.max_cost is not None:
            point = best_point(path, self.max_cost)
            bound = f"max_cost={self.max_cost:g}"
        elif self.delta is None:
            point = cheapest_point(path, self.max_drop, drops=path.losses / shares)
            bound = f"max_drop={self.max_drop:g}"
        else:
            first = 1
            if self.risk == "selective":
                first = first_point(path_on_order(), n_tested, self.max_drop, self.risk)
            point = certified_point(
                path, n_tested, self.max_drop, self.delta, risk=self.risk, first=first
            )
            bound = f"max_drop={self.max_drop:g} and delta={self.delta:g}"
        # Other points than the first may answer no row either.
        if path.exits[point, :-1].any():
            return point, None
        return 0, (
            f"can certify no local answer with {bound} on {n_tested} calibration rows: "
            "all rows will go to the final model."
        )

    def _n_stages(self):
        return len(self.temperatures_)

    def _stage_temperatures(self):
        return self.temperatures_

    # The final model

    def _defers(self):
        fitted = vars(self)
        return "thresholds_" in fitted and (
            len(self.thresholds_) == len(self.temperatures_)
        )

    def _final(self):
        if not self._defers():
            return None
        final = self.final if self.final_ is None else self.final_
        if final is None:
            raise NotFittedError(
                f"This {type(self).__name__} defers rows to a final model, which is no "
                "part of the file that it was loaded from. Give it by "
                "set_params(final=...)."
            )
        check_final(final, type(self).__name__)
        return final

    def _check_response(self, method, *, asks_final):
        super()._check_response(method, asks_final=asks_final)
        if asks_final and method != "predict":
            _scores_are_answers(self)

    def _is_deferred(self, stages):
        return stages > self._n_stages()

    def _answers(self, X, stages, response):
        labels, final = response("predict"), self._final()
        if final is None:
            return labels
        rows = partial(take, X)
        return with_final(final, rows, labels, self._is_deferred(stages), self.classes_)

    def _deferred(self, X, stages, response):
        # Those of the call, whatever is fitted before the last answer is asked for.
        final, classes, n_stages = self._final(), self.classes_, self._n_stages()

        def again():
            is_deferred = stages > n_stages
            if final is not None and is_deferred.any():
                labels = response("predict")
                yield with_final(final, partial(take, X), labels, is_deferred, classes)

        return again()

    # Predicting

    def _response(self, final, scores, stages):
        return partial(_response, scores, stages, self.classes_, self.temperatures_)

    def predict(self, X):
        """Most likely class of each row, at the stage where it leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)

        Raises
        ------
        skbdistil.exceptions.DeferralError
            If the final model fails; it holds the local answers.
        """
        check_is_fitted(self)
        self._final()  # that there is one, before anything is run
        return self._answers(X, *self._exits(X))

    @available_if(_scores_are_answers)
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
        _, response = self._exits(X)
        return response("predict_proba")

    @available_if(_scores_are_answers)
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
        _, response = self._exits(X)
        return response("decision_function")

    def audit(self, X, monitor, y=None):
        """Most likely class of each row, and whether the promise still holds.

        As `predict`, but a random share of the rows goes to the final model in any
        case, and the monitor is told whether the local answers to these were losses.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        monitor : :class:`~skbdistil.monitoring.DeferralMonitor`
            Keeps the counts, which is why nothing of this estimator changes. Of the
            same `risk`.

        y : array-like of shape (n_samples,), default=None
            Labels, needed for ``target="accuracy"`` and "error". Those of rows that are
            not audited are not looked at.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Those of the final model for all rows that it was asked about.

        Raises
        ------
        ValueError
            If there is no final model, the monitor is for another risk, or labels are
            needed.

        skbdistil.exceptions.DeferralError
            If the final model fails; it holds the local answers, and the monitor counts
            none of the rows.

        Warns
        -----
        DriftWarning
            If the monitor finds that the promise does not hold any more.

        Examples
        --------
        With the teacher as the final model of `early`::

            monitor = DeferralMonitor(early.max_drop, early.delta, audit=0.02)
            labels = early.audit(X, monitor)
            monitor.drift_
        """
        check_is_fitted(self)
        final = self._final()
        if final is None:
            raise ValueError(
                f"This {type(self).__name__} has no final model to audit with."
            )

        def passed():
            stages, response = self._exits(X)
            return response("predict"), self._is_deferred(stages)

        return audited(
            monitor,
            passed,
            final,
            partial(take, X),
            self.classes_,
            n_rows=_num_samples(X),
            target=self.target,
            risk=self.risk,
            y=y,
        )


def _response(scores, stages, classes, temperatures, method):
    """Response to a method, from the scores and stages with which rows leave."""
    if method == "predict":
        return classes[scores.argmax(axis=1)]
    if method == "predict_proba":
        # Rows that would be deferred have the scores of the last stage.
        stages = np.minimum(stages, len(temperatures))
        temperatures = temperatures.astype(scores.dtype)[stages - 1]
        return label_probabilities(scores / temperatures[:, np.newaxis])
    # A copy, since further stages may be written to it.
    return as_decision(scores.copy())


def _several_labels(estimator_name):
    return (
        f"{estimator_name} takes one label per row: its rules look at the class that "
        "is most likely, and the labels of a row with several are certain at different "
        "stages. Let all rows leave at one stage: BDistilClassifier(n_stages=...), or "
        "clf[:k]. For rules, fit it around the BDistilClassifier of each label, in "
        "sklearn.multioutput.MultiOutputClassifier."
    )


class EarlyExitRegressor(RegressorMixin, BaseEarlyExit):
    """Let each row leave after the first stage that no longer changes its prediction.

    The rule looks at the last change of the running prediction. Thresholds are chosen
    on rows that the students were not trained on, for the smallest mean cost at which
    few predictions differ from those of all students by more than a tolerance. On
    request their share is guaranteed [1]_.

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilRegressor` or
        :class:`~skbdistil.exported.ExportedRegressor`, or a pipeline that ends in one.
        ``FrozenEstimator(fitted)`` is used as it is, and `fit` takes rows that it was
        not trained on; an unfitted one is cloned and fitted inside `fit`.

    tolerance : float or array-like of shape (n_outputs,)
        How far a prediction may be from that of all students, in the units of the
        target and positive. One number for all targets, or one for each.

    rule : "change" or callable, default="change"
        What is compared with the threshold; the greater, the surer.

        - "change": minus the absolute change of the prediction by the last stage, in
          standard deviations of the target in the training rows; of several targets,
          that of the one that changed most. The first stage has no change, so rows
          leave after the second one at the earliest;
        - ``rule(stages)`` is called with the running predictions of the stages so far,
          an array of standardised targets of shape (t, n_rows, n_outputs), and returns
          one value per row.

    max_risk : float, default=0.05
        Largest share of the rows whose prediction is off by more than `tolerance`, in
        any target, from 0 to less than 1. The thresholds of the smallest mean cost
        within it are chosen.

    max_cost : float or None, default=None
        Largest mean cost per row, in the unit of `cost`: the thresholds of the smallest
        risk within it are chosen, and `max_risk` is not used.

    delta : float or None, default=None
        Probability with which the risk may exceed `max_risk` all the same, over the
        draw of the calibration rows, between 0 and 1. None for no guarantee: the risk
        is that on the calibration rows. A third of these then serve to order the
        thresholds, the rest to test them.

    thresholds : {"shared", "stage"}, default="shared"
        Whether one threshold serves all stages, or each has its own, at which the
        expected loss is the same.

    cost : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        Unit of the cost, as for :func:`skbdistil.stages.stage_cost`.

    cv : float, int, cross-validation generator, iterable or None, default=0.2
        Calibration rows for an estimator that is fitted here: the share of the rows
        that is held out of its training, between 0 and 1; or the folds, 5 for None, so
        that the estimator is fitted once for each and once more on all rows, without a
        guarantee. Not used for a frozen one.

    random_state : int, RandomState instance or None, default=None
        Draws the rows that are held out, and those that order the thresholds.

    Attributes
    ----------
    estimator_ : estimator
        What predicts.

    rule_ : str or callable
        Rule that the thresholds are for.

    tolerance_ : ndarray of shape (n_outputs,)
        Tolerance of each target.

    thresholds_ : ndarray of shape (n_stages - 1,)
        Values of the rule from which on a row leaves; infinite where none does.

    costs_ : ndarray of shape (n_stages,)
        Cumulative costs of the stages.

    path_ : ExitPath
        All thresholds that were tried, from careful to cheap: `thresholds` of shape
        (n_points, n_stages - 1), mean `costs`, `scores` and `losses` of shape
        (n_points,) on the calibration rows, and the share of these that leave at each
        stage, `exits` of shape (n_points, n_stages). A loss is a row that is off by
        more than the tolerance; a score is 1 less the loss.

    best_index_ : int
        The chosen one of these.

    n_features_in_ : int
        Number of features seen in `fit`, where the estimator has it.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where the estimator has them.

    See Also
    --------
    EarlyExitClassifier : The same for classes.
    skbdistil.intervals.SplitConformalRegressor : Intervals around the predictions.
    skbdistil.inspection.EarlyExitDisplay : What the thresholds trade.

    Notes
    -----
    The calibration needs no targets: what is compared are predictions. Whether all
    students are right is another question, which intervals answer.

    With `delta`, the promise is that of "Learn then Test" [1]_, under the conditions
    that the Notes of :class:`EarlyExitClassifier` state. The loss is 0 or 1 per row,
    and need not grow as thresholds fall.

    Thresholds hold for the fit that they were chosen for, as for
    :class:`EarlyExitClassifier`.

    References
    ----------
    .. [1] A. N. Angelopoulos, S. Bates, E. J. Candes, M. I. Jordan, L. Lei, "Learn then
       Test: Calibrating Predictive Algorithms to Achieve Risk Control",
       arXiv:2110.01052.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import RandomForestRegressor
    >>> from skbdistil import BDistilRegressor
    >>> from skbdistil.early_exit import EarlyExitRegressor
    >>> from skbdistil.students import MLP
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = BDistilRegressor(
    ...     RandomForestRegressor(20, random_state=0),
    ...     student=partial(MLP, hidden=(8,)), n_estimators=4, max_epochs=5,
    ...     random_state=0,
    ... )
    >>> early = EarlyExitRegressor(reg, tolerance=20, random_state=0).fit(X, y)
    >>> targets, costs = early.predict_with_cost(X)
    >>> bool(costs.mean() <= early.costs_[-1])
    True
    """

    _parameter_constraints = {
        **BaseEarlyExit._parameter_constraints,
        "tolerance": [Interval(Real, 0, None, closed="neither"), "array-like"],
        "max_risk": [Interval(Real, 0, 1, closed="left")],
    }

    # The parameter that bounds the mean loss.
    _allowed = "max_risk"

    def __init__(
        self,
        estimator,
        tolerance,
        *,
        rule="change",
        max_risk=0.05,
        max_cost=None,
        delta=None,
        thresholds="shared",
        cost="macs",
        cv=0.2,
        random_state=None,
    ):
        self.estimator = estimator
        self.tolerance = tolerance
        self.rule = rule
        self.max_risk = max_risk
        self.max_cost = max_cost
        self.delta = delta
        self.thresholds = thresholds
        self.cost = cost
        self.cv = cv
        self.random_state = random_state

    def _check_parameters(self, y):
        check_rule(self.rule, REGRESSION_RULES, type(self).__name__)

    def _check_y(self, y):
        check_array(
            y,
            ensure_2d=False,
            dtype=None,
            input_name="y",
            estimator=type(self).__name__,
        )

    def _is_distilled(self, final):
        return is_regressor(final)

    def _check_fitted(self, estimator):
        self._tolerance(self._distilled(estimator))

    def _tolerance(self, final):
        """Tolerance of each target."""
        n_outputs = final.ensemble_.n_outputs
        tolerance = np.asarray(self.tolerance, dtype=float)
        if tolerance.ndim == 0:
            tolerance = np.full(n_outputs, tolerance)
        if (
            tolerance.shape != (n_outputs,)
            or not ((tolerance > 0) & np.isfinite(tolerance)).all()
        ):
            raise ValueError(
                f"The 'tolerance' parameter of {type(self).__name__} must be a "
                f"positive number, or one for each of the {n_outputs} targets. Got "
                f"{self.tolerance!r} instead."
            )
        return tolerance

    def _comparable(self, scores, fold, estimator):
        fold, final = self._distilled(fold), self._distilled(estimator)
        targets = scores * fold.target_scale_ + fold.target_mean_
        varies = final.target_scale_ > 0
        standardised = np.zeros_like(targets)
        return np.divide(
            targets - final.target_mean_,
            final.target_scale_,
            out=standardised,
            where=varies,
        )

    def _candidates(self, estimator, scores, labels, order, tested):
        final = self._distilled(estimator)
        tolerance = self._tolerance(final)
        found = _changes(scores, self.rule, tolerance, final.target_scale_)
        values, _, losses = found
        # At the first stage nothing has changed yet.
        n_skipped = min(int(self.rule == "change"), len(values))
        values, losses = values[n_skipped:, order], losses[n_skipped:, order]
        if self.thresholds == "shared":
            thresholds = shared_thresholds(values)
        else:
            thresholds = stage_thresholds(values, losses)
        never = np.full((len(thresholds), n_skipped), np.inf)
        return {"tolerance_": tolerance}, found, np.hstack([never, thresholds])

    def _judged(self, estimator, scores, labels):
        scale = self._distilled(estimator).target_scale_
        return _changes(scores, self.rule_, self.tolerance_, scale)

    def _response(self, final, scores, stages):
        units = final.target_mean_, final.target_scale_, final.single_output_
        # No other method is there.
        return lambda method: in_units(scores, *units)

    def predict(self, X):
        """Targets of each row, at the stage where it leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        targets : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        check_is_fitted(self)
        _, response = self._exits(X)
        return response("predict")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _changes(scores, rule, tolerance, scale):
    """Values of the rule, whether a row is within the tolerance, and whether not."""
    values = stage_values(rule, scores, np.ones(len(scores)), len(scores) - 1)
    lost = (np.abs(scores - scores[-1]) * scale > tolerance).any(axis=2)
    return values, ~lost, lost
