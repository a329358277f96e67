"""Accuracy against cost, of stages or of the candidates of a search."""

import re
from itertools import count

import numpy as np
from sklearn.metrics import check_scoring

from skbdistil._sklearn_compat import check_matplotlib_support
from skbdistil.inspection._shared import choose_scale, label_of_cost, readable
from skbdistil.metrics import (
    _check_costs,
    _search_scores_and_costs,
    _split_scores,
    accuracy_cost_curve,
    pareto_optimal,
)
from skbdistil.stages import _final_estimator, _stage_views, stage_cost

# About as many stages of a curve get a marker and a number.
_MAX_NUMBERS = 10

# Marks what further curves on the same axis look for.
_TEACHER = "teacher"
_STAGE = "stage"


class AccuracyCostDisplay:
    """Score of each stage against what a prediction costs that ends with it.

    It is recommended to use :meth:`from_estimator`, :meth:`from_predictions` or
    :meth:`from_cv_results` to create a display. All parameters are stored as
    attributes.

    Parameters
    ----------
    costs : array-like of shape (n_stages,)
        Cumulative costs, in any unit.

    scores : array-like of shape (n_stages,) or (n_repeats, n_stages)
        Scores, greater being better. Of several folds or seeds, the mean is drawn and
        a band of one standard deviation to either side.

    cost_label : str or None, default=None
        Label of the axis of costs, their unit; None is "Cost".

    score_name : str or None, default=None
        Label of the axis of scores; None is "Score".

    estimator_name : str or None, default=None
        Name in the legend; None for no entry.

    teacher : tuple of (cost, score) or None, default=None
        The teacher's cost, in the unit of `costs`, and its score. A cost of None is
        unknown.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.

    band_ : matplotlib PolyCollection or None
        Band of one standard deviation, if there are several repeats.

    stage_labels_ : list of matplotlib Annotation
        Numbers of the stages, from 1 on; round ones where they are many. Those without
        room are not visible.

    teacher_line_ : matplotlib Line2D or None
        Line at the teacher's score.

    teacher_point_ : matplotlib Line2D or None
        The teacher's cost and score, if its cost is known.

    ax_ : matplotlib Axes
        Axes with the curve.

    figure_ : matplotlib Figure
        Figure with the curve.

    See Also
    --------
    skbdistil.metrics.accuracy_cost_curve : Computes the curve.
    skbdistil.metrics.accuracy_cost_area : Sums it up in one number.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from skbdistil.inspection import AccuracyCostDisplay
    >>> display = AccuracyCostDisplay(
    ...     [100, 230, 390], [0.91, 0.94, 0.95], teacher=(5200, 0.96)
    ... )
    >>> display.plot()
    <...>
    >>> plt.show()
    """

    def __init__(
        self,
        costs,
        scores,
        *,
        cost_label=None,
        score_name=None,
        estimator_name=None,
        teacher=None,
    ):
        self.costs = costs
        self.scores = scores
        self.cost_label = cost_label
        self.score_name = score_name
        self.estimator_name = estimator_name
        self.teacher = teacher

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        cost="macs",
        scoring=None,
        sample_weight=None,
        teacher=None,
        relative=False,
        annotate=True,
        cost_label=None,
        score_name=None,
        name=None,
        ax=None,
        **kwargs,
    ):
        """Plot score against cost of a fitted estimator.

        All stages are scored from one staged pass.

        Parameters
        ----------
        estimator : object
            Fitted estimator with stages, as for :func:`skbdistil.stages.staged`: one
            of this package, AdaBoost or a gradient boosting of scikit-learn, also in a
            pipeline, in :class:`~sklearn.frozen.FrozenEstimator` or in a search. With
            ``n_stages=k``, the first k stages are shown.

        X : array-like of shape (n_samples, ...)
            Rows.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Labels or targets.

        cost : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} \
                or callable, default="macs"
            Unit of cost, as for :func:`skbdistil.stages.stage_cost`. Latency is
            measured on `X`.

        scoring : str, callable or None, default=None
            Name of a scorer, or ``scorer(estimator, X, y)``. None is the `score` of
            the estimator with the stages; that of a search may be another one.

        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights, passed on to the scorer.

        teacher : tuple of (cost, score) or None, default=None
            The teacher's cost in the same unit, or None, and its score.

        relative : bool, default=False
            Whether to show costs as a share of the teacher's.

        annotate : bool, default=True
            Whether to number the stages.

        cost_label : str or None, default=None
            Label of the axis of costs; None to infer it from `cost`.

        score_name : str or None, default=None
            Label of the axis of scores; None to infer it from `scoring`.

        name : str or None, default=None
            Name in the legend; None is that of the class of the estimator with the
            stages.

        ax : matplotlib Axes, default=None
            Axes to plot on, which may show other curves; None for a new figure.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        display : :class:`AccuracyCostDisplay`

        Raises
        ------
        ValueError
            If the unit is not known for this estimator, or the teacher's cost is
            missing where `relative` needs it.

        TypeError
            If the estimator has no stages.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.ensemble import AdaBoostClassifier
        >>> from skbdistil.inspection import AccuracyCostDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = AdaBoostClassifier(n_estimators=5).fit(X, y)
        >>> AccuracyCostDisplay.from_estimator(clf, X, y, cost="latency")
        <...>
        >>> plt.show()
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        views = _stage_views(estimator, X)
        scorer = check_scoring(views[0], scoring=scoring)
        weight = {} if sample_weight is None else {"sample_weight": sample_weight}
        display = cls(
            stage_cost(estimator, cost, X=X)[: len(views)],
            np.array([scorer(view, X, y, **weight) for view in views]),
            cost_label=label_of_cost(cost) if cost_label is None else cost_label,
            score_name=_score_name(scoring) if score_name is None else score_name,
            estimator_name=(
                type(_final_estimator(estimator)).__name__ if name is None else name
            ),
            teacher=teacher,
        )
        return display.plot(ax, relative=relative, annotate=annotate, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true,
        staged_predictions,
        costs,
        *,
        metric=None,
        sample_weight=None,
        teacher=None,
        relative=False,
        annotate=True,
        cost_label=None,
        score_name=None,
        name=None,
        ax=None,
        **kwargs,
    ):
        """Plot score against cost from the predictions of each stage.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True labels or targets.

        staged_predictions : iterable of array-like of shape (n_samples, ...)
            Predictions of each stage, in the form that `metric` takes.

        costs : array-like of shape (n_stages,)
            Cumulative costs, in any unit.

        metric : callable or None, default=None
            ``metric(y_true, predictions)``, greater being better, or a scorer made by
            :func:`sklearn.metrics.make_scorer`. None is accuracy.

        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights, passed on to `metric`.

        teacher : tuple of (cost, score) or None, default=None
            The teacher's cost in the same unit, or None, and its score.

        relative : bool, default=False
            Whether to show costs as a share of the teacher's.

        annotate : bool, default=True
            Whether to number the stages.

        cost_label : str or None, default=None
            Label of the axis of costs; None is "Cost".

        score_name : str or None, default=None
            Label of the axis of scores; None to infer it from `metric`.

        name : str or None, default=None
            Name in the legend; None for no entry.

        ax : matplotlib Axes, default=None
            Axes to plot on, which may show other curves; None for a new figure.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        display : :class:`AccuracyCostDisplay`

        Raises
        ------
        ValueError
            If predictions or costs are not as above, or the teacher's cost is missing
            where `relative` needs it.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from skbdistil.inspection import AccuracyCostDisplay
        >>> staged = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
        >>> AccuracyCostDisplay.from_predictions([0, 1, 1, 0], staged, [10, 25, 45])
        <...>
        >>> plt.show()
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        costs, scores = accuracy_cost_curve(
            y_true,
            staged_predictions,
            costs,
            metric=metric,
            sample_weight=sample_weight,
        )
        if score_name is None:
            score_name = "Accuracy" if metric is None else _score_name(metric)
        display = cls(
            costs,
            scores,
            cost_label=cost_label,
            score_name=score_name,
            estimator_name=name,
            teacher=teacher,
        )
        return display.plot(ax, relative=relative, annotate=annotate, **kwargs)

    @classmethod
    def from_cv_results(
        cls,
        cv_results,
        *,
        cost="cost",
        score="score",
        pareto_only=True,
        teacher=None,
        relative=False,
        cost_label=None,
        score_name=None,
        name=None,
        ax=None,
        **kwargs,
    ):
        """Plot score against cost of the candidates of a search.

        Candidates are drawn in the order of their costs; those without a score or a
        cost, as after a failed fit, are left out. For the stages of one estimator with
        a band from cross-validation, pass the results of
        ``StagedSearchCV(estimator, {})``.

        Parameters
        ----------
        cv_results : dict
            `cv_results_` of a fitted search.

        cost : str or callable, default="cost"
            Name of the scorer that returns the cost, name of a column, such as
            ``"param_clf__n_stages"``, or ``cost(cv_results)`` that returns one cost
            per candidate.

        score : str, default="score"
            Name of a scorer or of a column of scores. The band is from the splits,
            where these are in `cv_results`.

        pareto_only : bool, default=True
            Whether to leave out candidates that another one beats in cost or score
            without losing in the other.

        teacher : tuple of (cost, score) or None, default=None
            The teacher's cost in the same unit, or None, and its score.

        relative : bool, default=False
            Whether to show costs as a share of the teacher's.

        cost_label : str or None, default=None
            Label of the axis of costs; None to infer it from `cost`.

        score_name : str or None, default=None
            Label of the axis of scores; None to infer it from `score`.

        name : str or None, default=None
            Name in the legend; None for no entry.

        ax : matplotlib Axes, default=None
            Axes to plot on, which may show other curves; None for a new figure.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        display : :class:`AccuracyCostDisplay`

        Raises
        ------
        ValueError
            If a column is missing, no candidate has both a score and a cost, or the
            teacher's cost is missing where `relative` needs it.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import GridSearchCV
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from skbdistil.inspection import AccuracyCostDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> search = GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2, 3]})
        >>> AccuracyCostDisplay.from_cv_results(
        ...     search.fit(X, y).cv_results_, cost="param_max_depth"
        ... )
        <...>
        >>> plt.show()
        """
        check_matplotlib_support(f"{cls.__name__}.from_cv_results")
        means, costs = _search_scores_and_costs(cv_results, score, cost)
        splits = _split_scores(cv_results, score)
        scores = splits if len(splits) else means[np.newaxis]

        order = np.argsort(costs, kind="stable")
        order = order[~np.isnan(costs[order])]
        if pareto_only:
            order = order[pareto_optimal(costs[order], means[order])]
        display = cls(
            costs[order],
            scores[:, order],
            cost_label=label_of_cost(cost) if cost_label is None else cost_label,
            score_name=_score_name(score) if score_name is None else score_name,
            estimator_name=name,
            teacher=teacher,
        )
        # Candidates are no stages, so that numbers would mean nothing.
        return display.plot(ax, relative=relative, annotate=False, **kwargs)

    def plot(self, ax=None, *, name=None, relative=False, annotate=True, **kwargs):
        """Plot the curve.

        Several curves can be drawn on one axes. The teacher is then drawn once, labels
        of the axes stay, and the axis of costs becomes logarithmic when what is on it
        spans more than one and a half decades.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None for a new figure.

        name : str or None, default=None
            Name in the legend; None is `estimator_name`.

        relative : bool, default=False
            Whether to show costs as a share of the teacher's.

        annotate : bool, default=True
            Whether to number the stages, where there is room at the present size of
            the figure.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        display : :class:`AccuracyCostDisplay`
            Itself.

        Raises
        ------
        ValueError
            If costs, scores or teacher are not as the class wants them, or the
            teacher's cost is missing where `relative` needs it.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        costs = _check_costs(self.costs)
        scores = _check_repeats(self.scores, len(costs))
        teacher_cost, teacher_score = _check_teacher(self.teacher)
        if relative:
            if teacher_cost is None:
                raise ValueError(
                    "'relative' needs the teacher's cost. Pass teacher=(cost, score)."
                )
            costs = costs / teacher_cost
            teacher_cost = 1.0
        if ax is None:
            _, ax = plt.subplots()

        mean = scores.mean(axis=0)
        name = self.estimator_name if name is None else name
        style = {"marker": "o", "markersize": 4, "label": name}
        numbered = _numbered_stages(len(costs)) if annotate else []
        if annotate:
            style["markevery"] = [stage - 1 for stage in numbered]
        (self.line_,) = ax.plot(costs, mean, **{**style, **kwargs})
        color = self.line_.get_color()
        self.band_ = None
        if len(scores) > 1:
            deviation = scores.std(axis=0)
            self.band_ = ax.fill_between(
                costs,
                mean - deviation,
                mean + deviation,
                color=color,
                alpha=0.2,
                linewidth=0,
            )
        self.stage_labels_ = _number_stages(ax, numbered, costs, mean, color)
        self.teacher_line_, self.teacher_point_ = _draw_teacher(
            ax, teacher_cost, teacher_score
        )

        label = "Cost" if self.cost_label is None else self.cost_label
        if relative:
            label += " / teacher's"
        if not ax.get_xlabel():
            ax.set_xlabel(label)
        if not ax.get_ylabel():
            ax.set_ylabel("Score" if self.score_name is None else self.score_name)
        ax.margins(0.08)  # room for the numbers
        choose_scale(ax, ax.xaxis, ax.dataLim.intervalx)
        if relative:
            ax.xaxis.set_major_formatter(_percent)
        # The teacher last, whenever it was drawn.
        entries = sorted(
            zip(*ax.get_legend_handles_labels(), strict=True),
            key=lambda entry: getattr(entry[0], "get_gid", str)() == _TEACHER,
        )
        if entries:
            ax.legend(*zip(*entries, strict=True))
        _hide_overlapping(ax)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self


def _check_repeats(scores, n_stages):
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0 or scores.shape[-1] != n_stages:
        raise ValueError(
            "'scores' must be of shape (n_stages,) or (n_repeats, n_stages), with one "
            f"score per cost. Got shape {scores.shape} for {n_stages} cost(s)."
        )
    if not np.isfinite(scores).all():
        raise ValueError("'scores' must be finite.")
    return np.atleast_2d(scores)


def _check_teacher(teacher):
    if teacher is None:
        return None, None
    is_pair = isinstance(teacher, (tuple, list)) and len(teacher) == 2
    if not is_pair or teacher[1] is None:
        raise ValueError(
            "'teacher' must be a tuple (cost, score), of which the cost may be None. "
            f"Got {teacher!r} instead."
        )
    cost, score = teacher
    if cost is not None and not 0 < cost < np.inf:
        raise ValueError(
            f"The cost of 'teacher' must be positive and finite. Got {cost!r} instead."
        )
    return cost, score


def _score_name(scoring):
    if scoring is None:
        return None
    if isinstance(scoring, str):
        return readable(re.sub("^neg_", "negative_", scoring))
    # A scorer of scikit-learn is named by its function.
    function = getattr(scoring, "_score_func", scoring)
    sign = "negative_" if getattr(scoring, "_sign", 1) < 0 else ""
    name = getattr(function, "__name__", "score")
    # No name is that of a lambda.
    return readable(sign + (name if name.isidentifier() else "score"))


def _percent(share, position):
    # As many decimals as it takes: a small network may need 0.1% of its teacher's cost.
    return f"{100 * share:g}%"


def _draw_teacher(ax, cost, score):
    """Line and point of the teacher; those that the axes shows are not repeated."""
    if score is None:
        return None, None
    from matplotlib import rcParams

    # Seen on a dark background, too.
    style = {"color": rcParams["text.color"], "gid": _TEACHER, "zorder": 1.5}
    line = _drawn(ax, [0, 1], score) or ax.axhline(
        score, linestyle="--", linewidth=1, label="Teacher", **style
    )
    if cost is None:
        return line, None
    point = _drawn(ax, [cost], score)
    if point is None:
        (point,) = ax.plot(cost, score, marker="*", markersize=9, **style)
    return line, point


def _drawn(ax, xs, y):
    """What of a teacher the axes shows at these coordinates, or None."""
    for line in ax.lines:
        if line.get_gid() == _TEACHER and np.array_equal(
            line.get_xydata(), [[x, y] for x in xs]
        ):
            return line
    return None


def _numbered_stages(n_stages):
    """First, last and round numbers; the earlier, the more they are to be kept."""
    step = next(
        factor * 10**power
        for power in count()
        for factor in (1, 2, 5)
        if n_stages <= _MAX_NUMBERS * factor * 10**power
    )
    return list(dict.fromkeys([1, n_stages, *range(step, n_stages, step)]))


def _number_stages(ax, stages, costs, scores, color):
    """Write the numbers of stages beside their points, off the line."""
    from matplotlib.patheffects import withStroke

    # Other curves may pass there.
    halo = withStroke(linewidth=2, foreground=ax.get_facecolor())
    falls = np.diff(scores, prepend=scores[0]) < 0
    rises = np.diff(scores, append=scores[-1]) > 0
    labels = []
    for stage in stages:
        fell, rising = falls[stage - 1], rises[stage - 1]
        x, y = 2 * (int(fell) - int(rising)), -4 if fell and rising else 4
        labels.append(
            ax.annotate(
                str(stage),
                (costs[stage - 1], scores[stage - 1]),
                xytext=(x, y),
                textcoords="offset points",
                ha={-2: "right", 0: "center", 2: "left"}[x],
                va="bottom" if y > 0 else "top",
                fontsize="small",
                color=color,
                gid=_STAGE,
                path_effects=[halo],
            )
        )
    return labels


def _hide_overlapping(ax):
    """Hide numbers of stages that would touch others, of all curves on the axes."""
    labels = [text for text in ax.texts if text.get_gid() == _STAGE]
    if not labels:
        return
    for label in labels:
        label.set_visible(True)  # what is hidden has no extent
    # The figure's layout decides how much room there is.
    ax.figure.canvas.figure.draw_without_rendering()
    shown = []
    for label in labels:
        box = label.get_window_extent().padded(1)
        label.set_visible(not any(box.overlaps(other) for other in shown))
        if label.get_visible():
            shown.append(box)
