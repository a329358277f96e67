"""Early exit: rows that are easy stop early, and are not computed any further."""

import math
import time
import warnings
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    clone,
    is_classifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GroupShuffleSplit, check_cv, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state, get_tags, indexable
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    assert_all_finite,
    check_is_fitted,
    column_or_1d,
)

from skbdistil._boosting._scaling import check_scores
from skbdistil._deferral import answers, audited, check_final, with_final
from skbdistil._exit_calibration import (
    ExitPath,
    answered,
    best_point,
    calibration_error,
    certified_point,
    cheapest_point,
    exit_path,
    first_point,
    fit_temperatures,
    rows_needed,
    shared_thresholds,
    stage_thresholds,
)
from skbdistil._exit_rules import (
    as_decision,
    check_rule,
    label_probabilities,
    rule_values,
)
from skbdistil._exit_runs import ExitRun, run_within
from skbdistil._protocol import StagedEstimator
from skbdistil._sklearn_compat import (
    HasMethods,
    Interval,
    StrOptions,
    _check_method_params,
    _fit_context,
    _is_fitted,
    _num_samples,
    _safe_indexing,
)
from skbdistil.exceptions import NothingCertifiedWarning
from skbdistil.stages import (
    _check_method,
    _check_unit,
    _final_estimator,
    _transformed,
    _wrapped_estimator,
    stage_cost,
)

__all__ = ["EarlyExitClassifier", "ExitPath"]

# One calibration row in this many is spent by `delta` on the order of the tests.
_ORDERS_ONE_IN = 3


class _NumpyState:
    """A :class:`~skbdistil.ensemble.StageState` in the eyes of an `ExitRun`."""

    def __init__(self, state):
        self._state = state

    @torch.inference_mode()
    def step(self):
        state = self._state
        state.advance()
        scores = state.mean
        check_scores(scores, EarlyExitClassifier.__name__)
        return scores.cpu().numpy()

    @torch.inference_mode()
    def select(self, rows):
        self._state.select(torch.from_numpy(rows).to(self._state.x.device))


def _scores_are_answers(early):
    """Whether no rows are deferred, whose final answers are labels only."""
    if early.final is not None or early._defers():
        raise AttributeError(
            f"This {type(early).__name__} has a final model, whose answers are labels "
            "only. Scores of the students are those of its estimator_."
        )
    return True


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
        # Rule and cost have messages of their own.
        "estimator": [HasMethods(["fit"])],
        "rule": "no_validation",
        "target": [StrOptions({"agreement", "accuracy", "error"})],
        "max_drop": [Interval(Real, 0, 1, closed="left")],
        "max_cost": [Interval(Real, 0, None, closed="neither"), None],
        "delta": [Interval(Real, 0, 1, closed="neither"), None],
        "thresholds": [StrOptions({"shared", "stage"})],
        "temperature": ["boolean"],
        "cost": "no_validation",
        "cv": [Interval(Real, 0, 1, closed="neither"), "cv_object"],
        "random_state": ["random_state"],
        "final": "no_validation",
        "final_cost": [Interval(Real, 0, None, closed="left"), None],
        "risk": [StrOptions({"marginal", "selective"})],
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

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Choose the thresholds, and fit the estimator where it is not frozen.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows: those to calibrate on for a frozen estimator, which it must not have
            been trained on; else those to train and to calibrate on.

        y : array-like of shape (n_samples,), default=None
            Labels. Needed for ``target="accuracy"`` or "error", a temperature, and
            where the estimator needs them.

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
            With `final`, if no local answer can be; all rows are then deferred.
        """
        estimator_name = type(self).__name__
        check_rule(self.rule, estimator_name)
        _check_unit(self.cost)
        self._check_deferral(estimator_name)
        if self.delta is not None and self.max_cost is not None:
            raise ValueError(
                f"The parameters 'delta' and 'max_cost' of {estimator_name} exclude "
                "each other: what can be guaranteed is 'max_drop'."
            )
        if y is None and self._needs_labels():
            raise ValueError(
                f"{estimator_name} requires y to be passed, but the target y is None. "
                "It is needed for target='accuracy' and 'error' and for a temperature."
            )
        X, y = self._indexable(X, y)
        if y is not None:
            assert_all_finite(y, input_name="y", estimator_name=estimator_name)
            check_classification_targets(y)
        rng = check_random_state(self.random_state)
        estimator, x, scores, label, final_label = self._calibration_rows(
            X, y, rng, params, estimator_name
        )
        if not np.isfinite(scores).all():
            raise ValueError(
                f"{estimator_name} needs finite scores. Those of "
                f"{type(estimator).__name__} are not."
            )
        combine = getattr(_distilled(estimator, estimator_name), "combine_", "mean")
        if self.rule == "agreement" and combine != "mean":
            raise ValueError(
                f"The 'rule' parameter of {estimator_name} is 'agreement', which lets "
                f"students vote, and with combine={combine!r}, which 'auto' may stand "
                "for, a student is no prediction of its own. Use combine='mean', or "
                "another rule."
            )
        costs = np.asarray(stage_cost(estimator, self.cost, X=x), dtype=float)
        costs = costs[: len(scores)]
        if self.final is not None:
            costs = np.append(costs, costs[-1] + self.final_cost)

        n_samples = scores.shape[1]
        order = tested = np.arange(n_samples)
        if self.delta is not None:
            order, tested = np.split(rng.permutation(n_samples), [_n_order(n_samples)])
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
        values, correct, losses = _judged(
            scores,
            None if self.target == "agreement" else label,
            self.rule,
            temperatures,
            final_label,
            self.target,
        )
        if self.thresholds == "shared":
            thresholds = shared_thresholds(values[:, order])
        else:
            thresholds = stage_thresholds(values[:, order], losses[:, order])
        paths = (
            exit_path(thresholds, values[:, r], losses[:, r], correct[:, r], costs)
            for r in (tested, order)
        )
        path = next(paths)
        point = self._point(path, paths, len(tested), estimator_name)

        self.estimator_ = estimator
        self.classes_ = estimator.classes_
        self.rule_ = self.rule
        self.thresholds_ = path.thresholds[point].copy()
        self.final_ = self.final
        self.temperatures_ = temperatures
        self.calibration_errors_ = errors
        self.costs_ = costs
        self.path_ = path
        self.best_index_ = point
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
            else:
                vars(self).pop(name, None)  # that of an earlier fit
        self._remember_fit()
        return self

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

    def _needs_labels(self):
        return self.target != "agreement" or self.temperature

    def _point(self, path, rest, n_tested, estimator_name):
        """The chosen point of the path, with a warning if nothing is answered early.

        `rest` has the path on the rows that order the thresholds.
        """
        if self.max_cost is not None:
            point = best_point(path, self.max_cost)
        elif self.delta is None:
            drops = None
            if self.final is not None:
                # Nothing is lost where nothing is answered.
                shares = np.maximum(answered(path, self.risk), 1 / n_tested)
                drops = path.losses / shares
            point = cheapest_point(path, self.max_drop, drops=drops)
        else:
            first = 1
            if self.risk == "selective":
                first = first_point(next(rest), n_tested, self.max_drop, self.risk)
            point = certified_point(
                path, n_tested, self.max_drop, self.delta, risk=self.risk, first=first
            )
        is_careful = point == 0 and path.thresholds.shape[1] > 0
        what, then = "guarantee no early exit", "use the full ensemble"
        if self.final is not None:
            # Other points of the path may answer no row either.
            is_careful = not path.exits[point, :-1].any()
            what, then = "certify no local answer", "go to the final model"
        elif self.delta is None:
            return point
        if not is_careful:
            return point
        if self.max_cost is None:
            bound = f"max_drop={self.max_drop:g}"
        else:
            bound = f"max_cost={self.max_cost:g}"
        if self.delta is not None:
            bound += f" and delta={self.delta:g}"
        warnings.warn(
            f"{estimator_name} can {what} with {bound} on {n_tested} calibration rows: "
            f"all rows will {then}.",
            NothingCertifiedWarning,
            stacklevel=4,  # the caller of fit
        )
        return 0

    def _calibration_rows(self, X, y, rng, params, estimator_name):
        """The fitted estimator, and rows, scores and labels to calibrate on."""
        n_samples = _num_samples(X)
        # Labels that calibrate nothing may be any.
        known = y if self._needs_labels() else None
        params = {name: param for name, param in params.items() if param is not None}
        groups = params.get("groups")
        if isinstance(self.estimator, FrozenEstimator):
            if params:
                raise ValueError(
                    f"{estimator_name} passes {sorted(params)} to the fit of its "
                    "estimator, and this one is frozen."
                )
            self._check_enough(n_samples, estimator_name)
            return (
                self.estimator,
                X,
                *self._scored(self.estimator, X, known, self.final, estimator_name),
            )
        if _is_fitted(self.estimator):
            raise ValueError(
                f"The 'estimator' parameter of {estimator_name} is a fitted "
                f"{type(self.estimator).__name__}, which would be fitted again. Pass "
                "sklearn.frozen.FrozenEstimator(estimator) to calibrate it as it is, "
                "or sklearn.base.clone(estimator) to have it fitted to X and y."
            )
        if get_config()["enable_metadata_routing"]:
            params = process_routing(self, "fit", **params).estimator.fit

        def fitted(rows):
            X_rows, y_rows = _take(X, rows), _take(y, rows)
            of_rows = {
                name: param
                for name, param in params.items()
                if not name.endswith("X_unlabelled")
            }
            params_rows = params | _check_method_params(X, of_rows, indices=rows)
            return clone(self.estimator).fit(X_rows, y_rows, **params_rows)

        if isinstance(self.cv, Real) and not isinstance(self.cv, Integral):
            # Rows that are balanced by class are no fair draw, as a guarantee needs.
            balanced = y if self.delta is None else None
            trained, held_out = _hold_out(n_samples, balanced, self.cv, rng, groups)
            self._check_enough(len(held_out), estimator_name)
            estimator, x = fitted(trained), _take(X, held_out)
            known = _take(known, held_out)
            return (
                estimator,
                x,
                *self._scored(estimator, x, known, self.final, estimator_name),
            )
        if self.delta is not None:
            raise ValueError(
                f"With 'delta', the 'cv' parameter of {estimator_name} must be the "
                "share of rows held out: what cross-validation calibrates on is not "
                f"what predicts, so that nothing can be guaranteed. Got cv={self.cv!r}."
            )
        estimator = fitted(np.arange(n_samples))
        n_stages = _distilled(estimator, estimator_name)._n_stages_used()
        folds = []
        splitter = check_cv(self.cv, y, classifier=True)
        for trained, held_out in splitter.split(X, y, groups):
            x, fold = _take(X, held_out), fitted(trained)
            if not np.array_equal(fold.classes_, estimator.classes_):
                raise ValueError(
                    f"Each fold of {estimator_name} must train on all classes. One has "
                    f"only {fold.classes_.tolist()} of {estimator.classes_.tolist()}."
                )
            scores, *labels = self._scored(
                fold, x, _take(known, held_out), self.final, estimator_name
            )
            # Where boosting stopped early, the last stage is that of all later ones.
            stages = np.minimum(np.arange(n_stages), len(scores) - 1)
            folds.append((scores[stages], *labels))
        if not folds:
            raise ValueError(f"The 'cv' parameter of {estimator_name} has no folds.")
        scores, *labels = zip(*folds, strict=True)
        joined = (None if of[0] is None else np.concatenate(of) for of in labels)
        return estimator, X, np.concatenate(scores, axis=1), *joined

    def _scored(self, estimator, X, y, final, estimator_name):
        """Scores of all stages, shape (T, n, L), and the columns of the labels.

        Of the labels in `y` and of those of the final model, each None if there are
        none.
        """
        staged = _distilled(estimator, estimator_name)
        scores = staged._stage_scores(_transformed(estimator, X))
        final_label = None
        if final is not None:
            final_label = answers(final, X, _num_samples(X), estimator.classes_)
        if y is None:
            return scores, None, final_label
        unseen = np.setdiff1d(y, estimator.classes_)
        if len(unseen):
            raise ValueError(
                f"The rows that {estimator_name} got have labels {unseen.tolist()} "
                "that the estimator does not know. It knows "
                f"{estimator.classes_.tolist()}."
            )
        return scores, np.searchsorted(estimator.classes_, y), final_label

    def _indexable(self, X, y):
        X, y = indexable(X, y)
        if _num_samples(X) == 0:
            raise ValueError(f"{type(self).__name__} needs calibration rows. Got none.")
        return X, None if y is None else column_or_1d(y, warn=True)

    def _check_enough(self, n_samples, estimator_name):
        """Refuse calibration rows that are too few for the guarantee."""
        if self.delta is None:
            return
        needed = rows_needed(self.max_drop, self.delta)
        if n_samples - _n_order(n_samples) < needed:
            advice = "no number of rows is enough for it"
            if needed < math.inf:
                # Rounded up; an int, however large.
                enough = -(-needed * _ORDERS_ONE_IN // (_ORDERS_ONE_IN - 1))
                advice = f"it needs at least {enough}"
                if not isinstance(self.estimator, FrozenEstimator):
                    advice += f", and cv={self.cv:g} holds out these"
            raise ValueError(
                f"{estimator_name} cannot guarantee max_drop={self.max_drop:g} with "
                f"delta={self.delta:g} on {n_samples} calibration rows: {advice}."
            )

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
        if final._n_stages_used() != len(self.temperatures_):
            raise NotFittedError(
                f"This {type(self).__name__} was calibrated with "
                f"{len(self.temperatures_)} "
                f"stages, and its estimator now has {final._n_stages_used()}: fit it "
                "again."
            )
        return final

    # The final model

    def _defers(self):
        """Whether it has been fitted with a final model."""
        fitted = vars(self)
        return "thresholds_" in fitted and (
            len(self.thresholds_) == len(self.temperatures_)
        )

    def _final(self):
        """The final model, None where no rows are deferred."""
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

    def _is_deferred(self, stages):
        return stages > len(self.temperatures_)

    def _labels(self, final, X, stages, response):
        """Labels, the deferred ones by the final model if there is one."""
        labels = response("predict")
        if final is None:
            return labels
        take = partial(_take, X)
        return with_final(final, take, labels, self._is_deferred(stages), self.classes_)

    # Predicting

    def _begin(self, X):
        """Begin a pass over the stages for each chunk of the rows.

        Returns the passes, the stages that they write, and a function that reads the
        response to a method from what they have written so far. A fit in the meantime
        changes none of these.
        """
        final = self._calibrated()
        X = _transformed(self.estimator_, X)
        n_samples = _num_samples(X)
        dtype = final.ensemble_.dtype
        scores = torch.empty((n_samples, len(self.classes_)), dtype=dtype).numpy()
        stages = np.empty(n_samples, dtype=np.intp)
        runs = (
            ExitRun(
                _NumpyState(state),
                rows,
                scores,
                stages,
                rule=self.rule_,
                thresholds=self.thresholds_,
                temperatures=self.temperatures_,
            )
            for rows, state in final._stage_states(X)
        )
        response = partial(_response, scores, stages, self.classes_, self.temperatures_)
        return runs, stages, response

    def _exits(self, X):
        """Stages at which the rows leave, and the function of the responses."""
        runs, stages, response = self._begin(X)
        for run in runs:
            while run.n_left:
                run.step()
        return stages, response

    def predict(self, X):
        """Most likely class of each row.

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
        final = self._final()
        return self._labels(final, X, *self._exits(X))

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
        """Most likely class of each row, and what it cost.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)

        costs : ndarray of shape (n_samples,)
            Cost of the stages that were run for each row, from `costs_`, and of the
            final model where it was asked.

        Raises
        ------
        skbdistil.exceptions.DeferralError
            If the final model fails; it holds the local answers.
        """
        check_is_fitted(self)
        final = self._final()
        stages, response = self._exits(X)
        return self._labels(final, X, stages, response), self.costs_[stages - 1]

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
            partial(_take, X),
            self.classes_,
            n_rows=_num_samples(X),
            target=self.target,
            risk=self.risk,
            y=y,
        )

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
            rows have left. May be abandoned at any moment. All come from what was
            fitted at the call. With a final model, which gives labels only, one more
            with its answers if there are rows to defer.

        Raises
        ------
        ValueError
            If `method` is none of these.
        """
        check_is_fitted(self)
        _check_method(method)
        if method != "predict":
            _scores_are_answers(self)
        final = self._final()
        runs, stages, response = self._begin(X)

        def deferred():
            if final is not None and self._is_deferred(stages).any():
                yield self._labels(final, X, stages, response)

        # Begun here, so that rows which are no input raise here.
        return _anytime(list(runs), partial(response, method), deferred())

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
        runs, _, response = self._begin(X)
        macs = _final_estimator(self.estimator_).stage_costs_.macs
        macs = macs[: len(self.temperatures_)]
        run_within(list(runs), macs, seconds, began)
        return response(method)

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
        scores, label, final_label = self._scored(
            self.estimator_, X, y, self._final(), type(self).__name__
        )
        values, correct, losses = _judged(
            scores, label, self.rule_, self.temperatures_, final_label, self.target
        )
        return exit_path(self.path_.thresholds, values, losses, correct, self.costs_)

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


def _distilled(estimator, estimator_name):
    """The BDistilClassifier in a fitted estimator."""
    final = _final_estimator(estimator)
    if not (isinstance(final, StagedEstimator) and is_classifier(final)):
        raise TypeError(
            f"The 'estimator' parameter of {estimator_name} must be a "
            f"BDistilClassifier, or a pipeline that ends in one. Got {estimator!r} "
            "instead."
        )
    return final


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
    return [*made, getattr(estimator, "ensemble_", None)]


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


def _anytime(runs, response, last):
    while any(run.n_left for run in runs):
        for run in runs:
            if run.n_left:
                run.step()
                run.write()
        yield response()
    yield from last


def _judged(scores, label, rule, temperatures, final_label=None, target="accuracy"):
    """Values of the rule, whether a row is right, and whether the exit loses it.

    Right is, without labels, what the full ensemble says, or the final model.
    """
    labels = scores.argmax(axis=2)
    if final_label is not None:
        labels = np.vstack([labels, final_label])
    values = np.array(
        [
            rule_values(rule, scores[:stage], temperatures[stage - 1])
            for stage in range(1, len(labels))
        ]
    ).reshape(len(labels) - 1, scores.shape[1])
    correct = labels == (labels[-1] if label is None else label)
    if final_label is None or label is None or target == "accuracy":
        return values, correct, correct[-1] & ~correct
    losses = ~correct if target == "error" else labels != labels[-1]
    losses[-1] = False  # is not answered locally
    return values, correct, losses


def _n_order(n_samples):
    """Number of calibration rows that order the thresholds, and do not test them."""
    return math.ceil(n_samples / _ORDERS_ONE_IN)


def _take(array, rows):
    return None if array is None else _safe_indexing(array, rows)


def _hold_out(n_samples, y, share, rng, groups):
    """Rows to train on and rows to calibrate on.

    Balanced by the labels if these are given; of other groups if these are.
    """
    rows = np.arange(n_samples)
    if groups is not None:
        folds = GroupShuffleSplit(1, test_size=float(share), random_state=rng)
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
        n_held_out = math.ceil(share * n_split)
        # Where there are too few rows for all classes, chance decides.
        if 0 < n_classes <= min(n_held_out, n_split - n_held_out):
            stratify = label[~is_lone]
    trained, held_out = train_test_split(
        rows[~is_lone], test_size=float(share), random_state=rng, stratify=stratify
    )
    return np.concatenate([trained, rows[is_lone]]), held_out
