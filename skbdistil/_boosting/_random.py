"""Seeds: one NumPy generator per fit, one seed per round."""

import numpy as np

_MAX_SEED = np.iinfo(np.int32).max


def draw_seeds(random_state, size):
    """Draw one seed per round.

    Parameters
    ----------
    random_state : numpy.random.RandomState
    size : int

    Returns
    -------
    seeds : ndarray of shape (size,)
        The first k of them do not depend on `size`.
    """
    return random_state.randint(_MAX_SEED, size=size)


def derive_seed(*keys):
    """Mix integers into one seed, so that neighbouring keys share nothing.

    Parameters
    ----------
    *keys : int
        Non-negative.

    Returns
    -------
    seed : int
    """
    # The sequence is padded with zeros: without its length, trailing ones are lost.
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1)[0])
