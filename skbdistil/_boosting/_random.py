"""Random numbers: one NumPy generator per fit, one seed per round."""

from contextlib import contextmanager

import numpy as np
import torch

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


@contextmanager
def torch_seed(seed, device):
    """Seed torch inside the block and restore its generators afterwards.

    Layers initialise from torch's global generator, so it cannot be avoided; it can
    be left as it was found. All threads of a process share it.

    Parameters
    ----------
    seed : int
    device : torch.device
        Where it is a CUDA device, its generator is seeded and restored too.
    """
    cuda = []
    if device.type == "cuda":
        current = torch.cuda.current_device()
        cuda = [current if device.index is None else device.index]
    # Seeded one by one: seeding all of torch would also reset the generators of
    # devices that are not in use here.
    with torch.random.fork_rng(cuda):
        torch.random.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield
