"""The form in which an ensemble is run for prediction."""

from skbdistil import _perceptrons, _recurrents

__all__ = ["start"]


def start(ensemble, x, n_ahead):
    """Begin a pass over the students, in the fastest form that there is for them.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    x : torch.Tensor of shape (n, ...)
    n_ahead : int
        Number of students that will be run on all rows; 0 where that is not known.

    Returns
    -------
    state : StageState
        To be used in inference mode.
    """
    for form in (_perceptrons, _recurrents):
        state = form.start(ensemble, x, n_ahead)
        if state is not None:
            return state
    return ensemble.start(x)
