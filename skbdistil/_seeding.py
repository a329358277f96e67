"""The global generators of torch, NumPy and Python, seeded for a while."""

import random
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state

# The one state that a module of the package keeps: the generators are global to the
# process, so what puts them back has to be, too. The lock is held for moments only. It
# is never held while code of the user runs, which may wait for another thread's fit.
_LOCK = Lock()
_OPEN = []  # what the blocks found that are open, and the first of them for all


def seeded_clone(estimator, random_state):
    """Clone of an estimator, the parameters `random_state` that are None set to seeds.

    Parameters
    ----------
    estimator : estimator
    random_state : int or None
        None sets no seeds.

    Returns
    -------
    estimator : estimator
    """
    estimator = clone(estimator)
    if random_state is None or not hasattr(estimator, "get_params"):
        return estimator
    unseeded = [
        name
        for name, value in sorted(estimator.get_params().items())
        if value is None and name.rpartition("__")[2] == "random_state"
    ]
    seeds = check_random_state(random_state).randint(
        np.iinfo(np.int32).max, size=len(unseeded)
    )
    return estimator.set_params(**dict(zip(unseeded, seeds.tolist(), strict=True)))


@contextmanager
def seeded(seed, device):
    """Seed the global generators inside the block and restore them afterwards.

    Layers initialise from torch's global generator, and user code draws from any of
    them, so they cannot be avoided; they can be left as they were found. All threads
    of a process share them: blocks in several threads disturb each other's numbers, and
    the last one to end puts back what the first one found.

    Parameters
    ----------
    seed : int
        In the range [0, 2**32 - 1], which is that of NumPy.
    device : torch.device
        Where it is a CUDA device, its generator is seeded and restored, too.
    """
    cuda = []
    if device.type == "cuda":
        current = torch.cuda.current_device()
        cuda = [current if device.index is None else device.index]
    with _LOCK:
        found = _Generators(cuda)
        # Blocks that overlap hand on what the first of them found.
        first = _OPEN[0][1] if _OPEN else found
        _OPEN.append((found, first))
    try:
        seed_generators(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        with _LOCK:
            _OPEN.remove((found, first))
            # The last to end need not be the first that began.
            (found if _OPEN else first).restore()


def seed_generators(seed):
    """Seed the global generators of the CPU, within a block that restores them.

    Parameters
    ----------
    seed : int
        As for :func:`seeded`.
    """
    # Of torch this one only: seeding all of it would also reset the generators of
    # devices that are not in use here.
    torch.random.default_generator.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


class _Generators:
    """States of the global generators, to be restored."""

    def __init__(self, cuda):
        self.torch = torch.get_rng_state()
        self.cuda = {index: torch.cuda.get_rng_state(index) for index in cuda}
        self.numpy = np.random.get_state()  # noqa: NPY002
        self.python = random.getstate()

    def restore(self):
        torch.set_rng_state(self.torch)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)
