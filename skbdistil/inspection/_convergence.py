"""How the ensemble approaches the teacher."""

import numpy as np

from skbdistil._sklearn_compat import check_matplotlib_support
from skbdistil.inspection._shared import choose_scale
from skbdistil.stages import _final_estimator


class ConvergenceDisplay:
    """How the ensemble approaches the teacher on the training rows, by stage.

    It is recommended to use :meth:`from_estimator` to create a display. All parameters
    are stored as attributes.

    Parameters
    ----------
    actual : ndarray of shape (n_stages, n_outputs)
        Largest absolute deviation of the ensemble from the teacher over the training
        rows, in units of the teacher's scores: logits, or the units of the targets.

    mean : ndarray of shape (n_stages, n_outputs)
        Mean absolute deviation over the training rows.

    bound : ndarray of shape (n_stages, n_outputs)
        What the game proves it to be at most; infinite where it proves nothing.

    edges : ndarray of shape (n_stages, n_outputs)
        Edges of the student of each round.

    estimator_name : str or None, default=None
        Title of the legend; None for no title.

    Attributes
    ----------
    max_line_ : matplotlib Line2D
        Largest deviation over rows and outputs.

    mean_line_ : matplotlib Line2D
        Mean deviation over rows and outputs.

    bound_line_ : matplotlib Line2D or None
        Largest bound over the outputs; None where none is finite.

    edges_ : matplotlib ErrorbarContainer
        Mean and range over the outputs of the edges.

    ax_ : matplotlib Axes
        Axes with the deviations.

    edge_ax_ : matplotlib Axes
        Axes with the edges, which shares the horizontal axis.

    figure_ : matplotlib Figure
        Figure with both.

    See Also
    --------
    skbdistil.BDistilClassifier : Its `certificate_` and `student_edges_` are shown.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from skbdistil.inspection import ConvergenceDisplay
    >>> display = ConvergenceDisplay(
    ...     actual=np.array([[3.0], [2.0], [1.6]]),
    ...     mean=np.array([[0.8], [0.5], [0.4]]),
    ...     bound=np.array([[7.0], [6.5], [np.inf]]),
    ...     edges=np.array([[0.0], [0.2], [0.1]]),
    ... )
    >>> display.plot()
    <...>
    >>> plt.show()
    """

    def __init__(self, actual, mean, bound, edges, *, estimator_name=None):
        self.actual = actual
        self.mean = mean
        self.bound = bound
        self.edges = edges
        self.estimator_name = estimator_name

    @classmethod
    def from_estimator(cls, estimator, *, name=None, ax=None, **kwargs):
        """Plot the convergence of a fitted estimator.

        Parameters
        ----------
        estimator : object
            Fitted estimator of this package, also in a pipeline, in
            :class:`~sklearn.frozen.FrozenEstimator` or in a search.

        name : str or None, default=None
            Title of the legend; None is the name of the class of the estimator with
            the stages.

        ax : matplotlib Axes, default=None
            Axes to plot on; None for a new figure. The legend is on top of it, for
            which ``layout="constrained"`` makes room.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the lines.

        Returns
        -------
        display : :class:`ConvergenceDisplay`

        Raises
        ------
        TypeError
            If the estimator has no stages, or no certificate.

        ValueError
            If `partial_fit` has changed the students since the fit.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from sklearn.datasets import load_iris
        >>> from skbdistil import BDistilClassifier
        >>> from skbdistil.inspection import ConvergenceDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
        >>> ConvergenceDisplay.from_estimator(clf.fit(X, y))
        <...>
        >>> plt.show()
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        final = _final_estimator(estimator)
        if not hasattr(final, "certificate_"):
            raise TypeError(
                f"{type(final).__name__} has no certificate. Pass a BDistilClassifier "
                "or a BDistilRegressor."
            )
        if np.isnan(final.certificate_.mean).all():
            raise ValueError(
                f"{type(final).__name__}.partial_fit has changed the students since "
                "the fit, and nothing is known of their convergence. Fit again."
            )
        display = cls(
            final.certificate_.actual,
            final.certificate_.mean,
            final.certificate_.bound,
            final.student_edges_,
            estimator_name=type(final).__name__ if name is None else name,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, *, name=None, **kwargs):
        """Plot deviations and edges.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None for a new figure. The legend is on top of it, for
            which ``layout="constrained"`` makes room.

        name : str or None, default=None
            Title of the legend; None is `estimator_name`.

        **kwargs : dict
            Keyword arguments of :meth:`matplotlib.axes.Axes.plot` for the lines.

        Returns
        -------
        display : :class:`ConvergenceDisplay`
            Itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            # With a label at its right and the legend on top.
            _, ax = plt.subplots(layout="constrained")
        stages = np.arange(1, len(self.actual) + 1)
        largest_bound = np.max(self.bound, axis=1)
        proved = np.isfinite(largest_bound)
        style = {"marker": "o", "markersize": 4, **kwargs}
        (self.max_line_,) = ax.plot(
            stages, np.max(self.actual, axis=1), label="Largest error", **style
        )
        (self.mean_line_,) = ax.plot(
            stages, np.mean(self.mean, axis=1), label="Mean error", **style
        )
        self.bound_line_ = None
        if proved.any():
            (self.bound_line_,) = ax.plot(
                stages[proved], largest_bound[proved], label="Certificate", **style
            )

        self.edge_ax_ = ax.twinx()
        mean_edge = np.mean(self.edges, axis=1)
        self.edges_ = self.edge_ax_.errorbar(
            stages,
            mean_edge,
            yerr=[
                mean_edge - np.min(self.edges, axis=1),
                np.max(self.edges, axis=1) - mean_edge,
            ],
            color="0.6",
            marker="s",
            markersize=3,
            capsize=3,
            linestyle="none",
            label="Edges",
        )
        # The lines are drawn over the edges, whose axes comes last otherwise.
        ax.set_zorder(self.edge_ax_.get_zorder() + 1)
        ax.patch.set_visible(False)

        choose_scale(ax, ax.yaxis, ax.dataLim.intervaly)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set(xlabel="Stage", ylabel="Deviation from the teacher")
        self.edge_ax_.set_ylabel("Edge of the student")
        handles, labels = ax.get_legend_handles_labels()
        ax.legend(
            [*handles, self.edges_],
            [*labels, self.edges_.get_label()],
            title=self.estimator_name if name is None else name,
            # On top: a place that is free of both kinds is rare.
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=2,
        )
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
