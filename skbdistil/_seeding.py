"""The global generators of torch, NumPy and Python, seeded for a while."""

import random
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

# The one state that a module of the package keeps. The generators are global to the
# process, so what guards them has to be, too. The same thread may take it again, for
# a fit inside a fit.
_LOCK = RLock()


@contextmanager
def seeded(seed, device):
    """Seed the global generators inside the block and restore them afterwards.

    Layers initialise from torch's global generator, and user code draws from any of
    them, so they cannot be avoided; they can be left as they were found. All threads
    of a process share them: blocks of several threads run one after the other. A
    block must not wait for another thread to enter one.

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
    with _LOCK, torch.random.fork_rng(cuda):
        numpy_state = np.random.get_state()  # noqa: NPY002
        python_state = random.getstate()
        try:
            # Of torch one by one: seeding all of it would also reset the generators of
            # devices that are not in use here.
            torch.random.default_generator.manual_seed(seed)
            for index in cuda:
                with torch.cuda.device(index):
                    torch.cuda.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
