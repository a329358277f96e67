"""How many threads may be asked for."""

import os

__all__ = ["max_threads"]


def max_threads():
    """Largest `n_threads`: 64, or the number of processors where there are more.

    Threads are made one by one, and those without a processor only wait: a million of
    them would hang.
    """
    return max(64, os.cpu_count() or 1)
