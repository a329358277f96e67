"""What students learn of augmented rows, of which nothing is known before."""

import torch

from skbdistil._boosting._random import derive_seed
from skbdistil._dataset_rows import ViewRows


class ViewTargets:
    """What students learn of views: what the teacher says of each, when it is seen.

    Parameters
    ----------
    ask : callable
        Called with rows as the teacher reads them, their labels or None, and a seed.
        Returns what is learnt of them, shape (n, n_outputs), and the number of rows
        that teachers were asked about.
    label : ndarray of shape (n_samples, ...) or None
        Of the clean rows.
    seed : int
        For teachers that draw.

    Attributes
    ----------
    n_calls : int
        Number of rows that teachers were asked about so far.
    """

    def __init__(self, ask, label, seed):
        self._ask = ask
        self._label = label
        self._seed = seed
        self.n_calls = 0

    def of(self, index, x, entries):
        """Targets of views.

        Parameters
        ----------
        index : torch.Tensor of shape (n,)
            Numbers of their rows.
        x : torch.Tensor of shape (n, ...)
            As students read them.
        entries : dict of torch.Tensor or None
            What the teacher reads by name.

        Returns
        -------
        scores : torch.Tensor of shape (n, n_outputs)
        """
        rows = x.numpy()
        if entries is not None:
            named = {name: values.numpy() for name, values in entries.items()}
            rows = ViewRows(rows, named)
        label = None if self._label is None else self._label[index.numpy()]
        # Not the same draws for each batch.
        scores, n_calls = self._ask(rows, label, derive_seed(self._seed, self.n_calls))
        self.n_calls += n_calls
        return torch.from_numpy(scores)
