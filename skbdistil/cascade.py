"""Cascades: tiers of classifiers, where a row goes on until a tier agrees on it."""

import warnings
from functools import partial
from numbers import Real

import numpy as np
from sklearn import get_config
from sklearn.base import ClassifierMixin, MetaEstimatorMixin, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch, check_random_state, get_tags, indexable
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
    has_fit_parameter,
)

from skbdistil._calibrated import (
    RemembersFit,
    fitted_clone,
    hold_out,
    take,
    take_features,
)
from skbdistil._deferral import check_kind_of_labels
from skbdistil._exit_base import check_enough, n_order
from skbdistil._exit_calibration import (
    chosen_point,
    exit_path,
    judged,
    shared_thresholds,
)
from skbdistil._exit_runs import ExitRun
from skbdistil._protocol import StagedEstimator
from skbdistil._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    _BaseComposition,
    _fit_context,
    _is_fitted,
    _num_samples,
    _safe_indexing,
    _VisualBlock,
)
from skbdistil.exceptions import CostsUnknownWarning, NothingCertifiedWarning
from skbdistil.stages import _unwrapped

__all__ = ["CascadeClassifier"]


def _top(stages):
    """Largest support in the last of some tiers, which the threshold is for."""
    return stages[-1].max(axis=1)


class _TierState:
    """A pass over the tiers in the eyes of an `ExitRun`."""

    def __init__(self, tiers, X, support):
        self._tiers = iter(tiers)
        self._X = X
        self._support = support

    def step(self):
        return self._support(next(self._tiers), self._X)

    def select(self, rows):
        self._X = _safe_indexing(self._X, rows)


def _has_probabilities(cascade):
    rule = getattr(cascade, "rule_", cascade.rule)
    if rule == "score":
        raise AttributeError(
            f"{type(cascade).__name__} has no predict_proba with rule='score', which "
            "takes the label from the votes and the value from the probabilities. Use "
            "another rule."
        )
    return True


class CascadeClassifier(
    RemembersFit,
    CallbackSupportMixin,
    ClassifierMixin,
    MetaEstimatorMixin,
    _BaseComposition,
):
    """Ask a cheap tier of classifiers first, and a dearer one where they disagree.

    A tier is one classifier or several. A row is answered by the first tier whose
    members agree on it, and by the last one in any case. Later tiers do not see it.
    This is agreement-based cascading [1]_.

    Parameters
    ----------
    tiers : list
        Tiers from cheap to dear. Each is a classifier or a list of classifiers, its
        members, which must know the same classes. ``FrozenEstimator(fitted)`` is used
        as it is, for example ``FrozenEstimator(clf[:2])``; unfitted ones are cloned and
        fitted inside `fit`. The parameters of the second member of the first tier are
        those of `tier1_2`, as in ``set_params(tier1_2__max_depth=3)``.

    rule : {"vote", "score", "confidence"}, default="vote"
        The label that a tier gives, and the value that is compared with the threshold.
        Of k members, let :math:`v_c` vote for class c, and let :math:`p_c` be the mean
        of their probabilities of it. Where classes are equal, the first in `classes_`
        is taken.

        - "vote": the class c with the most votes, and the share :math:`v_c / k`; the
          vote-based rule of [1]_. One member always agrees with itself, so that a tier
          of one answers all rows.
        - "score": the class c with the most votes, and :math:`p_c`; what we take the
          score-based rule of [1]_ to be, whose text was not at hand. A member votes for
          its class of the largest probability.
        - "confidence": the class c of the largest :math:`p_c`, and :math:`p_c`; with
          one member, this is confidence-based deferral [2]_.

    threshold : float or "calibrate", default=1.0
        A tier answers a row whose value is at least this. With "vote", 1.0 asks for
        all votes, and ``2 / 3`` for two of three. Probabilities rarely reach 1, so that
        the other rules need less. No row stops early at a threshold above 1, all stop
        at 0. "calibrate" chooses it on rows that the members were not trained on; the
        parameters from `target` on are for this only.

    costs : list or None, default=None
        Cost per row of each tier, in any unit: multiply-accumulates, seconds, bytes
        that are sent, the price of a call. An item is the number of the tier, or a list
        of numbers, one for each member. None for the multiply-accumulates of members
        that are B-DISTIL ensembles; a tier with any other member is then NaN, unknown.

    parallel : bool, default=True
        Whether the members of a tier run side by side, so that it costs as much as the
        dearest, or one after the other, so that it costs their sum.

    target : {"agreement", "accuracy"}, default="agreement"
        What a drop is measured in: agreement with the labels of the last tier, for
        which the calibration rows need no labels, or accuracy.

    max_drop : float, default=0.01
        Largest drop of the target against the last tier, from 0 to less than 1. The
        threshold of the smallest mean cost within it is chosen.

    max_cost : float or None, default=None
        Largest mean cost per row: the threshold of the best target within it is chosen,
        and `max_drop` is not used.

    delta : float or None, default=None
        Probability with which the drop may exceed `max_drop` all the same, over the
        draw of the calibration rows, between 0 and 1. None for no guarantee: the drop
        is that on the calibration rows. The guarantee is that of
        :class:`~skbdistil.early_exit.EarlyExitClassifier`, with the last tier in place
        of the full ensemble.

    cv : float, default=0.2
        Share of the rows that is held out to calibrate where members are fitted here,
        between 0 and 1. Where all members are frozen, all rows calibrate.

    random_state : int, RandomState instance or None, default=None
        Draws the rows that are held out, and those that order the thresholds. Members
        have their own.

    Attributes
    ----------
    tiers_ : list of list of estimators
        Fitted members.

    classes_ : ndarray of shape (n_classes,)
        Labels.

    rule_ : str
        Rule that the thresholds are for.

    thresholds_ : ndarray of shape (n_tiers - 1,)
        Value from which on each tier but the last answers; infinite where none does.

    tier_costs_ : ndarray of shape (n_tiers,)
        Cost per row of each tier; NaN where it is unknown.

    costs_ : ndarray of shape (n_tiers,)
        Cumulative: what a row costs that the tier answers.

    path_ : ExitPath or None
        All thresholds that were tried, with mean costs, scores and losses on the
        calibration rows, as in :class:`~skbdistil.early_exit.EarlyExitClassifier`;
        None without calibration.

    best_index_ : int or None
        The chosen one of these.

    n_features_in_ : int
        Number of features seen in `fit`, where the first member has it.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where the first member has them.

    See Also
    --------
    skbdistil.early_exit.EarlyExitClassifier : Stops inside one ensemble, whose stages
        use what earlier ones computed.
    sklearn.ensemble.VotingClassifier : All members answer all rows.

    Notes
    -----
    Classes, costs and thresholds are those of the members as they are fitted in `fit`.
    Where a frozen member is fitted again or replaced, or predicts with another number
    of stages, predictions raise :class:`~sklearn.exceptions.NotFittedError` until the
    cascade is fitted again. Copies by pickle remember it too; members that are changed
    in place are not noticed.

    References
    ----------
    .. [1] S. Kolawole, D. Dennis, A. Talwalkar, V. Smith, "Agreement-Based Cascading
       for Efficient Inference", Transactions on Machine Learning Research, 2025,
       arXiv:2407.02348.
    .. [2] W. Jitkrittum et al., "When Does Confidence-Based Cascade Deferral Suffice?",
       NeurIPS 2023, arXiv:2307.02764.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from skbdistil.cascade import CascadeClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> trees = [DecisionTreeClassifier(max_features=8, random_state=i) for i in (0, 1)]
    >>> forest = RandomForestClassifier(random_state=0)
    >>> cascade = CascadeClassifier([trees, forest], costs=[1, 50])
    >>> labels, costs = cascade.fit(X[:1000], y[:1000]).predict_with_cost(X[1000:])
    >>> sorted(set(costs.tolist()))
    [1.0, 51.0]
    """

    _parameter_constraints = {
        # Members and costs have messages of their own.
        "tiers": "no_validation",
        "rule": [StrOptions({"vote", "score", "confidence"})],
        "threshold": [
            Interval(Real, 0, None, closed="left"),
            StrOptions({"calibrate"}),
        ],
        "costs": "no_validation",
        "parallel": ["boolean"],
        "target": [StrOptions({"agreement", "accuracy"})],
        "max_drop": [Interval(Real, 0, 1, closed="left")],
        "max_cost": [Interval(Real, 0, None, closed="neither"), None],
        "delta": [Interval(Real, 0, 1, closed="neither"), None],
        "cv": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        tiers,
        *,
        rule="vote",
        threshold=1.0,
        costs=None,
        parallel=True,
        target="agreement",
        max_drop=0.01,
        max_cost=None,
        delta=None,
        cv=0.2,
        random_state=None,
    ):
        self.tiers = tiers
        self.rule = rule
        self.threshold = threshold
        self.costs = costs
        self.parallel = parallel
        self.target = target
        self.max_drop = max_drop
        self.max_cost = max_cost
        self.delta = delta
        self.cv = cv
        self.random_state = random_state

    # Names of the members

    @property
    def _members(self):
        """Pairs of name and member, as scikit-learn's compositions have them."""
        if not isinstance(self.tiers, list | tuple):
            return []
        return [
            (f"tier{tier}_{position}", member)
            for tier, members in enumerate(self.tiers, start=1)
            for position, member in enumerate(_as_tier(members), start=1)
        ]

    @_members.setter
    def _members(self, members):
        new = iter([member for _, member in members])
        self.tiers = [
            [next(new) for _ in tier] if isinstance(tier, list | tuple) else next(new)
            for tier in self.tiers
        ]

    def get_params(self, deep=True):
        """Parameters, those of the members among them.

        Parameters
        ----------
        deep : bool, default=True
            Whether to return members, `tier1_1` for the first one of the first tier,
            and their parameters, `tier1_1__max_depth`.

        Returns
        -------
        params : dict
        """
        return self._get_params("_members", deep=deep)

    def set_params(self, **params):
        """Set parameters, those of the members among them.

        Parameters
        ----------
        **params : dict
            Named as `get_params` names them.

        Returns
        -------
        self : object
        """
        if "tiers" in params:  # before its members
            self.tiers = params.pop("tiers")
        self._set_params("_members", **params)
        return self

    # Fitting

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Fit the members that are not frozen, and choose the threshold if asked to.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows to train on and, with ``threshold="calibrate"``, to calibrate on; where
            all members are frozen, to calibrate on only.

        y : array-like of shape (n_samples,), default=None
            Labels. Not needed where all members are frozen, but for
            ``target="accuracy"``.

        **params : dict
            `sample_weight`, passed to the `fit` of all members that are not frozen;
            with metadata routing, what they request. In the calibration all rows count
            alike. Rows of one of the `groups`, if a member requests them, are either
            trained or calibrated on.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the input is unusable; members know different classes, or
            one of them is fitted and not frozen; the rule needs probabilities that a
            member does not have; costs are missing where the threshold is chosen by
            them; or calibration rows are too few for the guarantee.

        Warns
        -----
        NothingCertifiedWarning
            If no threshold can be guaranteed; all rows then go to the last tier.

        UserWarning
            If later tiers are never asked, since one member votes alone.
        """
        name = type(self).__name__
        calibrates = self.threshold == "calibrate"
        self._check_members()
        if calibrates and self.delta is not None and self.max_cost is not None:
            raise ValueError(
                f"The parameters 'delta' and 'max_cost' of {name} exclude each other: "
                "what can be guaranteed is 'max_drop'."
            )
        all_frozen = all(_is_frozen(member) for _, member in self._members)
        needs_label = calibrates and self.target == "accuracy"
        if y is None and (needs_label or not all_frozen):
            raise ValueError(
                f"{name} requires y to be passed, but the target y is None. It is "
                "needed for target='accuracy' and to fit members."
            )
        X, y = indexable(X, y)
        if y is not None:
            if np.ndim(y) == 2 and np.shape(y)[1] > 1:
                raise ValueError(
                    f"{name} takes one label per row. Got y of shape {np.shape(y)}; "
                    "for several, use sklearn.multioutput.MultiOutputClassifier."
                )
            y = column_or_1d(y, warn=True)
            assert_all_finite(y, input_name="y", estimator_name=name)
            check_classification_targets(y)
        rng = check_random_state(self.random_state)
        trained = held_out = np.arange(_num_samples(X))
        if calibrates and not all_frozen:
            # Rows that are balanced by class are no fair draw, as a guarantee needs.
            balanced = y if self.delta is None else None
            trained, held_out = hold_out(
                len(trained), balanced, self.cv, rng, params.get("groups")
            )
        if calibrates and self.delta is not None:
            cv = None if all_frozen else self.cv
            check_enough(len(held_out), self.delta, name, cv, max_drop=self.max_drop)
        data = {"X": X, "y": y}
        task = self._init_callback_context(max_subtasks=None)
        task.call_on_fit_task_begin(estimator=self, **data)
        tiers = self._fit_members(X, y, trained, params, task)
        classes = _common_classes(tiers, name)
        tier_costs = self._tier_costs(tiers)
        costs = np.cumsum(tier_costs)
        path = point = None
        if calibrates:
            label = take(y, held_out) if needs_label else None
            path, point = self._calibrated_path(
                tiers, classes, take(X, held_out), label, costs, rng
            )
            thresholds = path.thresholds[point].copy()
        else:
            thresholds = np.full(len(tiers) - 1, float(self.threshold))
        alone = [len(tier) for tier in tiers[:-1]]
        if self.rule == "vote" and 1 in alone and np.all(thresholds <= 1):
            warnings.warn(
                f"Tier {alone.index(1) + 1} of this {name} has one member, whose vote "
                "is always unanimous: later tiers are never asked. Use "
                "rule='confidence', or give it more members.",
                UserWarning,
                stacklevel=3,  # the caller of fit
            )

        self.tiers_ = tiers
        self.classes_ = classes
        self.rule_ = self.rule
        self.thresholds_ = thresholds
        self.tier_costs_ = tier_costs
        self.costs_ = costs
        self.path_ = path
        self.best_index_ = point
        self._stages_of_members = [_n_stages(m) for m in self._inner_estimators()]
        take_features(self, tiers[0][0])
        self._remember_fit()
        task.call_on_fit_task_end(estimator=self, **data, reconstruction_attributes={})
        return self

    def _check_members(self):
        """Refuse tiers that cannot be fitted, before any is."""
        name = type(self).__name__
        if not self._members or not all(_as_tier(tier) for tier in self.tiers):
            raise ValueError(
                f"The 'tiers' parameter of {name} must be a list of tiers, each a "
                f"classifier or a list of at least one. Got {self.tiers!r}."
            )
        for label, member in self._members:
            if (
                isinstance(member, type)
                or not (hasattr(member, "fit") and hasattr(member, "predict"))
                or not is_classifier(member)
            ):
                raise ValueError(
                    f"The members of the 'tiers' of {name} must be classifiers. "
                    f"{label} is {member!r}."
                )
            if self.rule != "vote" and not hasattr(member, "predict_proba"):
                raise ValueError(
                    f"rule={self.rule!r} of {name} needs probabilities, and {label}, "
                    f"{member!r}, has no predict_proba. Use rule='vote', or wrap it in "
                    "sklearn.calibration.CalibratedClassifierCV."
                )
            if not _is_frozen(member) and _is_fitted(member):
                raise ValueError(
                    f"{label} of the 'tiers' of {name} is a fitted "
                    f"{type(member).__name__}, which would be fitted again. Pass "
                    "sklearn.frozen.FrozenEstimator(estimator) to use it as it is, or "
                    "sklearn.base.clone(estimator) to have it fitted to X and y."
                )

    def _fit_members(self, X, y, rows, params, task):
        """Members in tiers, those that are not frozen fitted to some of the rows."""
        name = type(self).__name__
        params = {key: param for key, param in params.items() if param is not None}
        routing = get_config()["enable_metadata_routing"]
        if routing:
            routed = process_routing(self, "fit", **params)
        elif unknown := sorted(set(params) - {"sample_weight"}):
            raise ValueError(
                f"{name}.fit takes {unknown} with metadata routing only, see "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        else:
            routed = {label: Bunch(fit=params) for label, _ in self._members}
        if params and all(_is_frozen(member) for _, member in self._members):
            raise ValueError(
                f"{name} passes {sorted(params)} to the fit of its members, and all of "
                "these are frozen."
            )

        def fitted(label, member):
            if _is_frozen(member):
                check_is_fitted(member)
                return member
            of_fit = routed[label].fit
            if (
                not routing
                and "sample_weight" in of_fit
                and not has_fit_parameter(member, "sample_weight")
            ):
                raise ValueError(
                    f"{label} of the 'tiers' of {name}, {member!r}, does not take "
                    "'sample_weight'."
                )
            return fitted_clone(self, label, member, X, y, of_fit, task, rows)

        members = iter([fitted(*pair) for pair in self._members])
        return [[next(members) for _ in _as_tier(tier)] for tier in self.tiers]

    def _tier_costs(self, tiers):
        """Cost of each tier."""
        costs = self.costs
        if costs is None:
            costs = [[_macs(member) for member in tier] for tier in tiers]
        is_listed = isinstance(costs, list | tuple | np.ndarray)
        if not is_listed or len(costs) != len(tiers):
            raise ValueError(
                f"The 'costs' parameter of {type(self).__name__} must be a list with "
                f"an item for each of the {len(tiers)} tiers. Got {costs!r}."
            )
        combine = np.max if self.parallel else np.sum
        of_tiers = []
        for number, (cost, tier) in enumerate(zip(costs, tiers, strict=True), start=1):
            cost = np.asarray(cost)
            is_number = np.issubdtype(cost.dtype, np.number)
            if (
                not is_number
                or cost.shape not in ((), (len(tier),))
                or np.any((cost < 0) | np.isinf(cost))
            ):
                raise ValueError(
                    f"Item {number} of the 'costs' parameter of {type(self).__name__} "
                    f"must be a number that is not negative, or {len(tier)} of them, "
                    f"one for each member. Got {cost.tolist()!r}."
                )
            of_tiers.append(float(combine(cost)))
        return np.array(of_tiers)

    def _calibrated_path(self, tiers, classes, X, y, costs, rng):
        """All thresholds on the calibration rows, and which of them is chosen."""
        name = type(self).__name__
        if self.delta is None and np.isnan(costs).any():
            raise ValueError(
                f"{name} chooses the threshold by its mean cost, and the costs of its "
                f"tiers are {np.diff(costs, prepend=0).tolist()}. State them by the "
                "'costs' parameter."
            )
        values, correct, losses = _judge(tiers, X, y, self.rule, classes)
        n_samples = values.shape[1]
        order = tested = np.arange(n_samples)
        if self.delta is not None:
            order, tested = np.split(rng.permutation(n_samples), [n_order(n_samples)])
        path = exit_path(
            shared_thresholds(values[:, order]),
            values[:, tested],
            losses[:, tested],
            correct[:, tested],
            costs,
        )
        point = chosen_point(
            path, len(tested), self.max_drop, self.max_cost, self.delta
        )
        if self.delta is not None and point == 0 and len(tiers) > 1:
            warnings.warn(
                f"{name} can guarantee no threshold with max_drop={self.max_drop:g} "
                f"and delta={self.delta:g} on {len(tested)} calibration rows: all rows "
                "will go to the last tier.",
                NothingCertifiedWarning,
                stacklevel=4,  # the caller of fit
            )
        return path, point

    # Predicting

    def _inner_estimators(self):
        return [member for tier in self.tiers_ for member in tier]

    def _calibrated(self):
        """Refuse members that are not those of the fit."""
        check_is_fitted(self)
        members = self._inner_estimators()
        if not (
            self._is_calibrated()
            and [_n_stages(member) for member in members] == self._stages_of_members
        ):
            raise NotFittedError(
                f"A member of this {type(self).__name__} has been fitted again or "
                "replaced, or predicts with another number of stages, since the fit. "
                "Costs and thresholds do not hold for it: fit the cascade again."
            )

    def _exits(self, X):
        """Supports with which rows are answered, and the tiers that answer."""
        self._calibrated()
        (X,) = indexable(X)
        n_samples = _num_samples(X)
        supports = np.empty((n_samples, len(self.classes_)))
        tiers = np.empty(n_samples, dtype=np.intp)
        run = ExitRun(
            _TierState(
                self.tiers_,
                X,
                partial(_support, rule=self.rule_, classes=self.classes_),
            ),
            slice(0, n_samples),
            supports,
            tiers,
            rule=_top,
            thresholds=self.thresholds_,
            temperatures=np.ones(len(self.tiers_)),
        )
        run.step()  # also without rows, which the members refuse
        while run.n_left:
            run.step()
        return supports, tiers

    def predict(self, X):
        """Label of each row, by the tier that answers it.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        supports, _ = self._exits(X)
        return self.classes_[supports.argmax(axis=1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X):
        """Probabilities of the classes, by the tier that answers each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Shares of the votes with ``rule="vote"``, means over the members with
            ``rule="confidence"``; not available with ``rule="score"``.
        """
        supports, _ = self._exits(X)
        return supports

    def exit_tiers(self, X):
        """Tier that answers each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        tiers : ndarray of shape (n_samples,)
            From 1 to the number of tiers.
        """
        _, tiers = self._exits(X)
        return tiers

    def predict_with_cost(self, X):
        """Label of each row, and what it cost.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)

        costs : ndarray of shape (n_samples,)
            Cost of the tiers that saw each row, from `costs_`; NaN where it is unknown.

        Warns
        -----
        CostsUnknownWarning
            If any of them is unknown.
        """
        supports, tiers = self._exits(X)
        costs = self.costs_[tiers - 1]
        if np.isnan(costs).any():
            warnings.warn(
                f"The costs of the tiers are {self.tier_costs_.tolist()}. State them "
                f"by the 'costs' parameter of {type(self).__name__}.",
                CostsUnknownWarning,
                stacklevel=2,
            )
        return self.classes_[supports.argmax(axis=1)], costs

    def exit_path(self, X, y=None):
        """What thresholds give on rows, all of which go through all tiers.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        y : array-like of shape (n_samples,), default=None
            Labels. None for the agreement with the last tier in place of accuracy.

        Returns
        -------
        path : ExitPath
            Of the thresholds of `path_` or, without calibration, of all that differ on
            these rows. It has the mean `costs`, the `scores`, and the share of the rows
            that each tier answers, `exits`.
        """
        self._calibrated()
        X, y = indexable(X, y)
        y = None if y is None else column_or_1d(y, warn=True)
        values, correct, losses = _judge(self.tiers_, X, y, self.rule_, self.classes_)
        thresholds = (
            shared_thresholds(values) if self.path_ is None else self.path_.thresholds
        )
        return exit_path(thresholds, values, losses, correct, self.costs_)

    # What scikit-learn asks

    def get_metadata_routing(self):
        """Metadata routing: `fit` passes on what the members request.

        Returns
        -------
        routing : MetadataRouter
        """
        # For the `sample_weight` of `score`.
        router = MetadataRouter(owner=self).add_self_request(self)
        mapping = MethodMapping().add(callee="fit", caller="fit")
        return router.add(**dict(self._members), method_mapping=mapping)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        members = [
            # The tags of a frozen estimator are a deep copy of it.
            member.estimator if _is_frozen(member) else member
            for _, member in self._members
            if hasattr(member, "get_params") and not isinstance(member, type)
        ]
        inner = [get_tags(member).input_tags for member in members]
        for name in ("three_d_array", "sparse", "allow_nan"):
            setattr(tags.input_tags, name, all(getattr(tag, name) for tag in inner))
        return tags

    def _sk_visual_block_(self):
        names, members = zip(*self._members, strict=True) if self._members else ([], [])
        return _VisualBlock("parallel", members, names=names)


def _as_tier(tier):
    return tier if isinstance(tier, list | tuple) else [tier]


def _is_frozen(member):
    return isinstance(member, FrozenEstimator)


def _common_classes(tiers, name):
    """Classes of all members."""
    classes = tiers[0][0].classes_
    for number, tier in enumerate(tiers, start=1):
        for position, member in enumerate(tier, start=1):
            if isinstance(member.classes_, list):
                raise ValueError(
                    f"{name} takes members with one label per row. tier{number}_"
                    f"{position}, a {type(member).__name__}, predicts "
                    f"{len(member.classes_)} outputs."
                )
            if not np.array_equal(member.classes_, classes):
                raise ValueError(
                    f"The members of {name} must know the same classes. tier1_1 knows "
                    f"{classes.tolist()}, and tier{number}_{position} "
                    f"{member.classes_.tolist()}."
                )
    return classes


def _n_stages(member):
    """Number of stages that a B-DISTIL ensemble predicts with; None of anything else.

    An early exit looks to its own.
    """
    final = _unwrapped(member)
    return final._n_stages_used() if isinstance(final, StagedEstimator) else None


def _macs(member):
    """Multiply-accumulates of a B-DISTIL ensemble by row; NaN of anything else."""
    n_stages = _n_stages(member)
    if n_stages is None:
        return np.nan
    return _unwrapped(member).stage_costs_.cumulative_macs[n_stages - 1]


def _support(tier, X, rule, classes):
    """What a tier says: its label has the largest support, which is its value.

    Parameters
    ----------
    tier : list of k estimators
    X : array-like of shape (n, ...)
    rule : {"vote", "score", "confidence"}
    classes : ndarray of shape (L,)

    Returns
    -------
    support : ndarray of shape (n, L)
        Shares of votes, or mean probabilities; with "score" only the mean probability
        of the class with the most votes, and 0 for others.
    """
    if rule == "vote":
        return sum(_votes(member, X, classes) for member in tier) / len(tier)
    proba = np.array([_probabilities(member, X, classes) for member in tier])
    mean = proba.mean(axis=0)
    if rule == "confidence":
        return mean
    # Votes by the probabilities, so that each member runs once.
    columns = np.arange(len(classes))
    votes = (proba.argmax(axis=2)[:, :, np.newaxis] == columns).sum(axis=0)
    return np.where(columns == votes.argmax(axis=1)[:, np.newaxis], mean, 0)


def _votes(member, X, classes):
    """1 for the class that a member predicts, and 0 for others, shape (n, L)."""
    labels = np.asarray(member.predict(X))
    shape = (_num_samples(X),)
    if labels.shape != shape:
        raise _no_answer(
            member, f"must predict labels of shape {shape}. Got shape {labels.shape}."
        )
    votes = labels[:, np.newaxis] == classes
    is_known = votes.any(axis=1)
    if not is_known.all():
        raise _no_answer(
            member,
            f"predicted {labels[~is_known].tolist()[0]!r}, which is not among its "
            f"classes {classes.tolist()}.",
        )
    return votes.astype(int)


def _probabilities(member, X, classes):
    """Probabilities of a member, shape (n, L)."""
    proba = np.asarray(member.predict_proba(X), dtype=float)
    shape = _num_samples(X), len(classes)
    found = None
    if proba.shape != shape:
        found = f"shape {proba.shape}"
    elif not np.isfinite(proba).all():
        found = "NaN or infinity"
    if found is not None:
        raise _no_answer(
            member, f"must give finite probabilities of shape {shape}. Got {found}."
        )
    return proba


def _no_answer(member, what):
    name = type(_unwrapped(member)).__name__
    return ValueError(f"{name}, a member of {CascadeClassifier.__name__}, {what}")


def _judge(tiers, X, y, rule, classes):
    """Values, whether rows are right, and losses, of all tiers on all rows.

    Right is, without labels, what the last tier says.
    """
    supports = np.array([_support(tier, X, rule, classes) for tier in tiers])
    column = None
    if y is not None:
        check_kind_of_labels(y, classes, CascadeClassifier.__name__)
        # No tier is right about a class that none knows. Labels are compared as Python
        # objects, since NumPy would compare 1 and "1" as strings.
        columns = {label: number for number, label in enumerate(classes.tolist())}
        column = np.array([columns.get(label, -1) for label in np.asarray(y).tolist()])
    return judged(supports, column, _top, np.ones(len(tiers)))
