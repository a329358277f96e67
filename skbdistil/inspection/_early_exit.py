"""What the thresholds of early exit trade."""

import numpy as np

from skbdistil._sklearn_compat import check_matplotlib_support
from skbdistil.inspection._shared import label_of_cost
from skbdistil.stages import _transformed, _unwrapped


class EarlyExitDisplay:
    """What the threshold of early exit trades, and where the rows leave.

    It is recommended to use :meth:`from_estimator` to create a display. All parameters
    are stored as attributes.

    Parameters
    ----------
    path : :class:`~skbdistil.early_exit.ExitPath`
        Thresholds from careful to cheap, and what they give.

    best_index : int
        The chosen one of these.

    cost_label : str or None, default=None
        Label of the axis of mean costs, their unit; None is "Cost".

    score_name : str or None, default=None
        Label of the axis of scores; None is "Score".

    estimator_name : str or None, default=None
        Title of the legend; None for no title.

    Attributes
    ----------
    score_line_ : matplotlib Line2D
        Score against the threshold, or, with thresholds per stage, against the mean
        stage at which the rows leave.

    full_line_ : matplotlib Line2D
        Line at the score of the full ensemble.

    cost_line_ : matplotlib Line2D
        Mean cost against the same.

    chosen_line_ : matplotlib Line2D or None
        Line at the chosen thresholds; None where they are infinite, so that no row
        leaves.

    bars_ : matplotlib BarContainer
        Share of the rows that leave at each stage with the chosen thresholds.

    axes_ : ndarray of shape (2,) of matplotlib Axes
        Axes of the threshold and axes of the stages.

    cost_ax_ : matplotlib Axes
        Axes of the mean cost, which shares the horizontal axis of the first.

    figure_ : matplotlib Figure
        Figure with all of them.

    See Also
    --------
    AccuracyCostDisplay : Also draws score against mean cost of early exit.
    skbdistil.early_exit.EarlyExitClassifier : What is shown.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from skbdistil.early_exit import ExitPath
    >>> from skbdistil.inspection import EarlyExitDisplay
    >>> path = ExitPath(
    ...     thresholds=np.array([[np.inf], [0.9], [0.4]]),
    ...     costs=np.array([300.0, 180.0, 100.0]),
    ...     scores=np.array([0.95, 0.95, 0.90]),
    ...     losses=np.array([0.0, 0.01, 0.06]),
    ...     exits=np.array([[0.0, 1.0], [0.6, 0.4], [1.0, 0.0]]),
    ... )
    >>> EarlyExitDisplay(path, 1).plot()
    <...>
    >>> plt.show()
    """

    def __init__(
        self, path, best_index, *, cost_label=None, score_name=None, estimator_name=None
    ):
        self.path = path
        self.best_index = best_index
        self.cost_label = cost_label
        self.score_name = score_name
        self.estimator_name = estimator_name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y=None,
        *,
        cost_label=None,
        score_name=None,
        name=None,
        ax=None,
        **kwargs,
    ):
        """Plot what the thresholds give on rows.

        Parameters
        ----------
        estimator : object
            Fitted :class:`~skbdistil.early_exit.EarlyExitClassifier`, also in a
            pipeline, in :class:`~sklearn.frozen.FrozenEstimator` or in a search.

        X : array-like of shape (n_samples, ...)
            Rows.

        y : array-like of shape (n_samples,), default=None
            Labels; None for the agreement with the full ensemble in place of accuracy.

        cost_label : str or None, default=None
            Label of the axis of mean costs; None to infer it from the estimator.

        score_name : str or None, default=None
            Label of the axis of scores; None is "Accuracy", or "Agreement" without
            labels.

        name : str or None, default=None
            Title of the legend; None is the name of the class of the estimator.

        ax : array-like of two matplotlib Axes, default=None
            Axes to plot on; None for a new figure. The legend is on top of the first,
            for which ``layout="constrained"`` makes room.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the lines.

        Returns
        -------
        display : :class:`EarlyExitDisplay`

        Raises
        ------
        TypeError
            If the estimator has no early exit.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from sklearn.datasets import load_iris
        >>> from skbdistil import BDistilClassifier
        >>> from skbdistil.early_exit import EarlyExitClassifier
        >>> from skbdistil.inspection import EarlyExitDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
        >>> early = EarlyExitClassifier(clf, random_state=0).fit(X, y)
        >>> EarlyExitDisplay.from_estimator(early, X, y)
        <...>
        >>> plt.show()
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        early = _unwrapped(estimator)
        if not hasattr(early, "exit_path"):
            raise TypeError(
                f"{type(early).__name__} has no early exit. Pass an "
                "EarlyExitClassifier."
            )
        path = early.exit_path(_transformed(estimator, X), y)
        if score_name is None:
            score_name = "Agreement" if y is None else "Accuracy"
        display = cls(
            path,
            early.best_index_,
            cost_label=label_of_cost(early.cost) if cost_label is None else cost_label,
            score_name=score_name,
            estimator_name=type(early).__name__ if name is None else name,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, *, name=None, **kwargs):
        """Plot the trade and the stages.

        Parameters
        ----------
        ax : array-like of two matplotlib Axes, default=None
            Axes to plot on; None for a new figure. The legend is on top of the first,
            for which ``layout="constrained"`` makes room.

        name : str or None, default=None
            Title of the legend; None is `estimator_name`.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the lines.

        Returns
        -------
        display : :class:`EarlyExitDisplay`
            Itself.

        Raises
        ------
        ValueError
            If there is one stage only, or `ax` is not two axes.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        path = self.path
        n_stages = path.exits.shape[1]
        if n_stages < 2:
            raise ValueError("Early exit needs at least two stages. Got 1.")
        if ax is None:
            _, ax = plt.subplots(ncols=2, figsize=(9, 4), layout="constrained")
        axes = np.asarray(ax, dtype=object)
        if axes.shape != (2,):
            raise ValueError(f"'ax' must be two axes. Got {ax!r} instead.")
        self.axes_ = axes
        threshold_ax, stage_ax = axes

        stages = np.arange(1, n_stages + 1)
        position, label = path.thresholds[:, 0], "Threshold"
        shared = (path.thresholds == position[:, np.newaxis]).all()
        if not shared:
            # Thresholds per stage are no single number; what they amount to is.
            position, label = path.exits @ stages, "Mean stage at which rows leave"
        drawn = np.isfinite(position)
        style = {"drawstyle": "steps-pre" if shared else "default", **kwargs}
        self.cost_ax_ = threshold_ax.twinx()
        (self.score_line_,) = threshold_ax.plot(
            position[drawn], path.scores[drawn], color="C0", label="Score", **style
        )
        self.full_line_ = threshold_ax.axhline(
            path.scores[0],
            color="C0",
            linestyle="--",
            linewidth=1,
            label="Score without early exit",
        )
        (self.cost_line_,) = self.cost_ax_.plot(
            position[drawn], path.costs[drawn], color="C1", label="Mean cost", **style
        )
        self.chosen_line_ = None
        if drawn[self.best_index]:
            self.chosen_line_ = threshold_ax.axvline(
                position[self.best_index],
                color=plt.rcParams["text.color"],
                linestyle=":",
                linewidth=1,
                label="Chosen",
            )
        threshold_ax.set_xlabel(label)
        threshold_ax.set_ylabel(
            "Score" if self.score_name is None else self.score_name, color="C0"
        )
        cost_label = self.cost_label or "Cost"
        self.cost_ax_.set_ylabel(
            f"Mean {cost_label[:1].lower()}{cost_label[1:]}", color="C1"
        )
        handles, labels = threshold_ax.get_legend_handles_labels()
        threshold_ax.legend(
            [*handles, self.cost_line_],
            [*labels, self.cost_line_.get_label()],
            title=self.estimator_name if name is None else name,
            # On top: a place that is free of both lines is rare.
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=2,
        )

        self.bars_ = stage_ax.bar(stages, path.exits[self.best_index], color="0.6")
        stage_ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        stage_ax.yaxis.set_major_formatter(PercentFormatter(1))
        stage_ax.set(xlabel="Stage", ylabel="Rows that leave")
        self.figure_ = threshold_ax.figure
        return self
