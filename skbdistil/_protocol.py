"""What this package asks of a fitted ensemble of students, beyond its public methods.

Early exit, export, persistence, streams and the functions on stages rely on these
methods and on no other private one.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class StagedEstimator(Protocol):
    """A fitted estimator whose students run one after the other.

    Both estimators of the package are one. ``isinstance`` looks for the methods only,
    which an estimator has before it is fitted, too.

    Scores are running means of the students, shape (n, L), in the units of the game:
    logits of a classifier, standardised targets of a regressor. T is the number of
    stages that :meth:`_n_stages_used` returns.
    """

    def _n_stages_used(self):
        """Return the number of stages that predict.

        Returns
        -------
        n_stages : int
            From 1 to the number of students; fewer than these where the parameter
            `n_stages` says so.

        Raises
        ------
        ValueError
            If the parameter does not fit the students.
        """

    def _stage_scores(self, X):
        """Scores of rows after each stage, from one pass over the students.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        scores : ndarray of shape (T, n_samples, L)

        Raises
        ------
        ValueError
            If the rows are not those of a fit.
        """

    def _stage_states(self, X):
        """Begin a pass over the students for each chunk of rows.

        No student has run when a state is yielded. It knows all students, of which the
        caller runs the first T at most.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Yields
        ------
        rows : slice
            Positions of the rows in `X`.

        state : skbdistil.ensemble.StageState

        Raises
        ------
        ValueError
            If the rows are not those of a fit.
        """


class UpdatableEstimator(Protocol):
    """A fitted classifier that :mod:`skbdistil.online` goes on to train.

    Its public `partial_fit` is the update; these are for what a stream does besides.
    """

    def _check_updatable(self, X):
        """Refuse rows and parameters that an update does not take into account.

        Raises
        ------
        ValueError
            That names what is not supported.
        """

    def _encode(self, response, y, sample_weight, *, goes_on):
        """Scores of a teacher in the order of the classes; first of what is returned.

        Parameters
        ----------
        response : object
            What :mod:`skbdistil._teacher_scores` returns.

        y, sample_weight : array-like or None

        goes_on : bool
            Whether the classes must be those of the earlier fit.
        """

    def _predicted(self, scores):
        """Labels that scores stand for.

        Parameters
        ----------
        scores : ndarray of shape (n, L)

        Returns
        -------
        labels : ndarray
        """


def shallow_copy(estimator):
    """Return another estimator with the same attributes.

    ``copy.copy`` will not do: it goes through ``__getstate__``, which is made for
    pickles. There an ensemble of this package leaves the GPU, so that the copy would
    have weights of its own on the CPU.

    Parameters
    ----------
    estimator : object
        Fitted or not.

    Returns
    -------
    other : object
        Of the same class. Attributes are shared, not copied; those that are set on one
        of the two are not set on the other.
    """
    other = type(estimator).__new__(type(estimator))
    vars(other).update(vars(estimator))
    return other
