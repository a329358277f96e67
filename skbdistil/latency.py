"""The time of predictions, measured."""

import gc
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from skbdistil._sklearn_compat import _num_samples, _safe_indexing
from skbdistil._threads import max_threads

__all__ = ["Latency", "compare_latencies", "measure_latency"]


@dataclass(frozen=True)
class Latency:
    """Measured time of a prediction, and how it was measured.

    Attributes
    ----------
    median, low, high : float
        Median, 10th and 90th percentile over the repeats, in seconds per sample.
    batch_size : int
        Rows per call; the time of a call is divided by it.
    n_repeats : int
        Number of calls timed.
    n_threads : int
        Threads that torch, BLAS or OpenMP could use.
    device : str or None
        Device of a torch module; None for another callable, which is not asked.
    what : str
        Name of what was called.

    See Also
    --------
    measure_latency : Measure it.

    Examples
    --------
    >>> from skbdistil.latency import Latency
    >>> print(Latency(2e-4, 1.8e-4, 3e-4, 1, 50, 2, "cpu", "MLP"))
    MLP on cpu: 0.2 ms per sample (10 % to 90 %: 0.18 to 0.3 ms), 50 calls with 1 \
row(s), up to 2 thread(s)
    """

    median: float
    low: float
    high: float
    batch_size: int
    n_repeats: int
    n_threads: int
    device: str | None
    what: str

    def __str__(self):
        where = "" if self.device is None else f" on {self.device}"
        return (
            f"{self.what}{where}: {self.median * 1e3:.3g} ms per sample (10 % to 90 %: "
            f"{self.low * 1e3:.3g} to {self.high * 1e3:.3g} ms), {self.n_repeats} "
            f"calls with {self.batch_size} row(s), up to {self.n_threads} thread(s)"
        )


def measure_latency(
    predict, X, *, batch_size=1, n_warmup=5, n_repeats=50, n_threads=None
):
    """Measure the time of a prediction.

    Parameters
    ----------
    predict : callable or torch.nn.Module
        Called with batches of rows: the method of an estimator, or a module, which
        is called in evaluation and inference mode with tensors that are on its device
        before the clock starts: those of `X` if it is a tensor, else made of its
        numbers in the module's dtype. Its training flags are left as they were.

    X : array-like of shape (n_samples, ...)
        Rows; every call gets the next `batch_size` of them, in a circle.

    batch_size : int, default=1
        Rows per call, at most `n_samples`. Small batches are bound by the overhead
        of the call, large ones by arithmetic and memory: measure what will be run.

    n_warmup : int, default=5
        Calls before those that are timed.

    n_repeats : int, default=50
        Calls that are timed, at least 1.

    n_threads : int or None, default=None
        Limit on the threads of torch, BLAS and OpenMP during the measurement; None
        leaves them as they are.

    Returns
    -------
    latency : Latency

    Raises
    ------
    ValueError
        If a number is out of its range.

    TypeError
        If `predict` cannot be called.

    See Also
    --------
    compare_latencies : Several side by side.

    Notes
    -----
    Accelerators are synchronised before every reading of the clock. The garbage
    collector rests while calls are timed.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from skbdistil.latency import measure_latency
    >>> latency = measure_latency(nn.Linear(4, 2), np.zeros((10, 4)), n_repeats=5)
    >>> latency.low <= latency.median <= latency.high
    True
    >>> latency.batch_size, latency.device
    (1, 'cpu')
    """
    (latency,) = compare_latencies(
        [predict],
        X,
        batch_size=batch_size,
        n_warmup=n_warmup,
        n_repeats=n_repeats,
        n_threads=n_threads,
    )
    return latency


def compare_latencies(
    predicts, X, *, batch_size=1, n_warmup=5, n_repeats=50, n_threads=None
):
    """Measure the times of several predictions side by side.

    They take turns, so that a change in the load of the machine strikes all of them.
    Each finds the caches as the one before has left them: beside a large model, a small
    one is slower than in a loop of its own.

    Parameters
    ----------
    predicts : list of callables or torch.nn.Module
        As `predict` in :func:`measure_latency`, as are the other parameters.

    X : array-like of shape (n_samples, ...)
        Rows.

    batch_size : int, default=1
        Rows per call.

    n_warmup : int, default=5
        Calls of each before those that are timed.

    n_repeats : int, default=50
        Timed calls of each.

    n_threads : int or None, default=None
        Limit on the number of threads.

    Returns
    -------
    latencies : list of Latency
        One for each of `predicts`.

    Raises
    ------
    ValueError
        If a number is out of its range, or there is nothing to measure.

    TypeError
        If one of `predicts` cannot be called.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from skbdistil.latency import compare_latencies
    >>> small, large = nn.Linear(4, 2), nn.Linear(4, 2000)
    >>> len(compare_latencies([small, large], np.zeros((10, 4)), n_repeats=5))
    2
    """
    n_samples = _num_samples(X)
    if n_samples == 0:
        raise ValueError("'X' has no rows to measure with.")
    _check_count("batch_size", batch_size, 1, n_samples)
    _check_count("n_warmup", n_warmup, 0)
    _check_count("n_repeats", n_repeats, 1)
    if n_threads is not None:
        _check_count("n_threads", n_threads, 1, max_threads())
    if not predicts:
        raise ValueError("'predicts' is empty; give at least one callable.")
    for predict in predicts:
        if not callable(predict):
            raise TypeError(
                "What is measured must be a callable, such as the method `predict` of "
                f"an estimator, or a module. Got {predict!r} instead."
            )
    batches = [
        _safe_indexing(X, np.arange(start, start + batch_size) % n_samples)
        for start in range(0, n_samples, batch_size)[: n_warmup + n_repeats]
    ]
    calls = [_timed_call(predict, batches) for predict in predicts]
    modules = [predict for predict in predicts if isinstance(predict, nn.Module)]
    seconds = np.empty((n_repeats, len(calls)))
    collecting = gc.isenabled()
    gc.disable()
    try:
        with _evaluating(modules), _limited_threads(n_threads):
            for repeat in range(-n_warmup, n_repeats):
                for position, call in enumerate(calls):
                    elapsed = call((repeat + n_warmup) % len(batches))
                    if repeat >= 0:
                        seconds[repeat, position] = elapsed
            pools = [pool["num_threads"] for pool in threadpool_info()]
            used_threads = max([torch.get_num_threads(), *pools])
    finally:
        if collecting:
            gc.enable()
    quantiles = np.quantile(seconds / batch_size, [0.5, 0.1, 0.9], axis=0)
    return [
        Latency(
            *(float(quantile) for quantile in quantiles[:, position]),
            batch_size=int(batch_size),
            n_repeats=int(n_repeats),
            n_threads=used_threads,
            device=_device_name(predict),
            what=_describe(predict),
        )
        for position, predict in enumerate(predicts)
    ]


def _check_count(name, value, low, high=None):
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"'{name}' must be an int {allowed}. Got {value!r} instead.")


def _timed_call(predict, batches):
    """Function that runs the batch at a position and returns the seconds."""
    context, device = nullcontext, None
    if isinstance(predict, nn.Module):
        like = next(predict.parameters(), torch.zeros(()))
        batches = [_as_tensor_like(batch, like) for batch in batches]
        context, device = torch.inference_mode, like.device

    def call(position):
        batch = batches[position]
        _synchronize(device)
        began = time.perf_counter()
        with context():
            predict(batch)
        _synchronize(device)
        return time.perf_counter() - began

    return call


def _as_tensor_like(batch, like):
    if isinstance(batch, torch.Tensor):
        return batch.to(like.device)
    # Copied, since the arrays of data frames may be read-only.
    return torch.tensor(np.asarray(batch)).to(like)


def _synchronize(device):
    """Wait for accelerators; `device` is that of a module, or None if not known."""
    if torch.cuda.is_initialized():
        is_cuda = device is not None and device.type == "cuda"
        torch.cuda.synchronize(device if is_cuda else None)
    if torch.backends.mps.is_available():
        torch.mps.synchronize()


@contextmanager
def _evaluating(roots):
    """Put modules and all inside them into evaluation mode, and back."""
    modules = [module for root in roots for module in root.modules()]
    flags = [module.training for module in modules]
    try:
        # Flag by flag: `train` may be overridden, as where students stay frozen.
        for module in modules:
            module.training = False
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


@contextmanager
def _limited_threads(n_threads):
    if n_threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(int(n_threads))
    try:
        with threadpool_limits(int(n_threads)):
            yield
    finally:
        torch.set_num_threads(before)


def _device_name(predict):
    if not isinstance(predict, nn.Module):
        return None
    return str(next(predict.parameters(), torch.zeros(())).device)


def _describe(predict):
    owner = getattr(predict, "__self__", None)
    if owner is not None:
        return f"{type(owner).__name__}.{predict.__name__}"
    return getattr(predict, "__name__", type(predict).__name__)
