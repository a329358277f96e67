"""Features that do nothing: the same number for all rows."""

import numpy as np
import torch

from skbdistil._arrays import as_tensor, row_chunks, take_rows
from skbdistil._boosting._rows import chunk_rows, to_device

# Rows to look at. What is the same for all of these is hardly of use for the others.
_MAX_ROWS = 2**12


@torch.no_grad()
def idle_features(ensemble, x):
    """Share of the features that are constant, student by student.

    A rectifier whose input is negative for all rows gives zeros, and no gradient that
    could bring it back.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        In evaluation mode.
    x : ndarray or LazyRows of shape (n, ...)
        Rows, of which at most 2**12 are looked at.

    Returns
    -------
    shares : ndarray of shape (n_students,)
        Of what the head of each student reads, in the range [0, 1]; NaN for a single
        row.
    """
    if len(x) < 2:
        return np.full(len(ensemble), np.nan)
    step = -(-len(x) // _MAX_ROWS)
    lowest, highest = {}, {}

    def look(head, arguments):
        low, high = torch.aminmax(arguments[0], dim=0)
        lowest[head] = torch.minimum(low, lowest.get(head, low))
        highest[head] = torch.maximum(high, highest.get(head, high))

    heads = [student.head for student in ensemble.students]
    hooks = [head.register_forward_pre_hook(look) for head in heads]
    seen = take_rows(x, slice(None, None, step))
    try:
        n_rows = chunk_rows(x.shape[1:], ensemble.device)
        for _, rows in row_chunks(seen, n_rows):
            ensemble(to_device(as_tensor(rows), ensemble.device, ensemble.input_dtype))
    finally:
        for hook in hooks:
            hook.remove()
    constant = torch.cat([lowest[head] == highest[head] for head in heads])
    parts = constant.cpu().split([len(lowest[head]) for head in heads])
    return np.array([part.double().mean().item() for part in parts])
