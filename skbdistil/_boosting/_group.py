"""Rows of a fit that are shared among the processes of torch.distributed."""

import hashlib

import numpy as np
import torch
from torch import distributed

from skbdistil._boosting._ranks import ONE_RANK, OneRank

# What processes meet for.
_SUM, _MAX, _FIRST, _OBJECT, _END = range(5)


def ranks_of(net, estimator_name):
    """The processes that share the rows of a fit.

    Parameters
    ----------
    net : skorch.NeuralNet or None
        Template of the estimator. It says whether rows are shared.
    estimator_name : str
        For messages.

    Returns
    -------
    ranks : OneRank
        A context manager, in which the fit takes place.
    """
    if not getattr(net, "shares_rows", False):
        return ONE_RANK
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            f"The 'net' parameter of {estimator_name} is a DataParallelNet, and there "
            "is no group of processes. Start the script with torchrun, and call "
            "torch.distributed.init_process_group() before fit."
        )
    return ProcessGroup(estimator_name)


class ProcessGroup(OneRank):
    """The default group of torch.distributed.

    Before they exchange anything, processes meet: each says whether it has failed, and
    what comes next. One that has failed says so in place of its next exchange, so that
    the others fail with it and do not wait for it. None leaves the context before all
    have reached its end.

    Parameters
    ----------
    estimator_name : str
        For messages.
    """

    def __init__(self, estimator_name):
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self._name = estimator_name
        # Pairs of a device and what exchanges there. NCCL does so on GPUs only.
        pairs = distributed.get_backend_config().split(",")
        devices = [pair.partition(":")[0] for pair in pairs]
        self._device = torch.device("cpu" if "cpu" in devices else devices[0])
        self._is_open = True

    def __exit__(self, kind, error, trace):
        if not self._is_open:
            return False
        if error is None:
            self._meet(_END)
            return False
        try:
            self._meet(_END, error=error)
        except RuntimeError:
            # Others are gone; what was first is what counts.
            pass
        return False

    def sum(self, array):
        return self._reduced(array, _SUM)

    def max(self, array):
        return self._reduced(array, _MAX)

    def all(self, holds):
        return not self.max(np.array([not holds]))[0]

    def of_first(self, array):
        tensor = torch.from_numpy(np.array(array)).to(self._device)
        self._meet(_FIRST, tensor.nbytes)
        distributed.broadcast(tensor, src=0)
        return tensor.numpy(force=True)

    def object_of_first(self, thing):
        self._meet(_OBJECT)
        things = [thing]
        distributed.broadcast_object_list(things, src=0)
        return things[0]

    def place(self, n_rows):
        counts = np.zeros(self.size)
        counts[self.rank] = n_rows
        ends = np.cumsum(self.sum(counts)).astype(int).tolist()
        return ends[self.rank] - n_rows, ends[-1]

    def check_same(self, what, arrays):
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array))
        # As much of it as float64 holds exactly.
        number = float(int.from_bytes(digest.digest()[:6], "big"))
        largest, smallest = self.max(np.array([number, -number]))
        if largest != -smallest:
            # All of them see it.
            self._is_open = False
            raise ValueError(
                f"{what} of {self._name} are not the same in all {self.size} "
                "processes. Each must be given the same rows and parameters, and run "
                "on the same kind of processor with the same versions."
            )

    def sum_tensor(self, tensor):
        """Sum over the processes, for each entry.

        Parameters
        ----------
        tensor : torch.Tensor

        Returns
        -------
        total : torch.Tensor
            On the device of `tensor`; the same bits in all processes.
        """
        return self._exchanged(tensor, _SUM)

    def _reduced(self, array, purpose):
        tensor = torch.from_numpy(np.array(array, dtype=np.float64, ndmin=1))
        total = self._exchanged(tensor, purpose).numpy()
        return total.reshape(np.shape(array))

    def _exchanged(self, tensor, purpose):
        shared = tensor.to(self._device, copy=True)
        self._meet(purpose, shared.nbytes)
        operation = distributed.ReduceOp.MAX if purpose == _MAX else None
        distributed.all_reduce(shared, operation or distributed.ReduceOp.SUM)
        return shared.to(tensor.device)

    def _meet(self, purpose, n_bytes=0, error=None):
        """Wait for all processes, and fail where one has failed or is elsewhere."""
        status = torch.tensor(
            [error is not None, purpose, -purpose, n_bytes, -n_bytes],
            dtype=torch.int64,
            device=self._device,
        )
        distributed.all_reduce(status, distributed.ReduceOp.MAX)
        failed, *largest = status.tolist()
        if failed:
            self._is_open = False
            self._fail_together(error)
        elif largest[0] != -largest[1] or largest[2] != -largest[3]:
            self._is_open = False
            raise RuntimeError(
                f"The {self.size} processes of {self._name} do not compute the same. "
                "Each must call fit with the same rows and parameters."
            )

    def _fail_together(self, error):
        """Tell the others why this one has failed, or raise why another one has."""
        mine = None
        if error is not None:
            mine = (isinstance(error, ValueError), f"{type(error).__name__}: {error}")
        reasons = [None] * self.size
        distributed.all_gather_object(reasons, mine)
        if error is not None:
            return
        rank = next(rank for rank, reason in enumerate(reasons) if reason)
        is_value_error, message = reasons[rank]
        # A search may go on after a ValueError: then all processes do.
        kind = ValueError if is_value_error else RuntimeError
        raise kind(
            f"{self._name} has failed in process {rank} of {self.size}, which raised "
            f"{message}"
        )
