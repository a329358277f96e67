"""What a prediction costs: operations, memory and time, stage by stage.

Multiply-accumulates are counted while the network runs on an example, with one
formula per layer type. `torch.utils.flop_counter.FlopCounterMode` is not used: it
finds no operations in an LSTM.
"""

import gc
import inspect
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from skbdistil._sklearn_compat import _num_samples, _safe_indexing
from skbdistil._threads import max_threads

__all__ = [
    "Costs",
    "Latency",
    "StageCosts",
    "compare_latencies",
    "measure_latency",
    "module_costs",
    "stage_costs",
]


class Costs(NamedTuple):
    """Cost of one network.

    Attributes
    ----------
    macs : int
        Multiply-accumulates per sample.
    parameters : int
        Number of parameters, shared ones counted once.
    weight_bytes : int
        Bytes of the parameters and buffers, shared ones counted once.

    Examples
    --------
    >>> from skbdistil.costs import Costs
    >>> Costs(macs=12, parameters=15, weight_bytes=60)
    Costs(macs=12, parameters=15, weight_bytes=60)
    """

    macs: int
    parameters: int
    weight_bytes: int


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class StageCosts:
    """Cost of every stage of an ensemble.

    Attributes
    ----------
    macs : ndarray of shape (n_stages,), dtype int64
        Multiply-accumulates per sample of each stage alone, its connection and
        head included.
    parameters : ndarray of shape (n_stages,), dtype int64
        Number of parameters that each stage adds to those before it.
    weight_bytes : ndarray of shape (n_stages,), dtype int64
        Bytes of parameters and buffers that each stage adds.
    activation_bytes : ndarray of shape (n_stages,), dtype int64
        Bytes per sample that each stage leaves in memory for later ones: what
        connections cost beside their operations. 0 without connections. Also the
        last stage leaves them, since more stages may be added, and with the connection
        "last" those stay that no further stage will read.

    See Also
    --------
    stage_costs : Count the costs of an ensemble.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil.costs import StageCosts
    >>> costs = StageCosts(
    ...     macs=np.array([60, 70, 80]),
    ...     parameters=np.array([6, 7, 8]),
    ...     weight_bytes=np.array([24, 28, 32]),
    ...     activation_bytes=np.array([16, 16, 16]),
    ... )
    >>> costs.cumulative_macs
    array([ 60, 130, 210])
    >>> costs[:2].cumulative("weight_bytes")
    array([24, 52])
    >>> len(costs)
    3
    """

    macs: np.ndarray
    parameters: np.ndarray
    weight_bytes: np.ndarray
    activation_bytes: np.ndarray

    def cumulative(self, unit):
        """Cost up to and including each stage.

        Parameters
        ----------
        unit : {"macs", "parameters", "weight_bytes", "activation_bytes"}
            Name of the attribute to sum up.

        Returns
        -------
        costs : ndarray of shape (n_stages,)

        Raises
        ------
        ValueError
            If `unit` is none of these.
        """
        units = [field.name for field in fields(self)]
        if unit not in units:
            raise ValueError(f"'unit' must be one of {units}. Got {unit!r} instead.")
        return np.cumsum(getattr(self, unit))

    @property
    def cumulative_macs(self):
        """Multiply-accumulates per sample up to and including each stage."""
        return self.cumulative("macs")

    @property
    def cumulative_parameters(self):
        """Number of parameters up to and including each stage."""
        return self.cumulative("parameters")

    def __len__(self):
        return len(self.macs)

    def __getitem__(self, stages):
        if not isinstance(stages, slice):
            raise TypeError(
                f"{type(self).__name__} is indexed with a slice of stages, got "
                f"{stages!r}."
            )
        return type(self)(
            **{field.name: getattr(self, field.name)[stages] for field in fields(self)}
        )


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
    >>> from skbdistil.costs import Latency
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


def module_costs(module, *inputs):
    """Count the multiply-accumulates, parameters and bytes of a network.

    The network runs once on `inputs`, in evaluation mode and without gradients;
    its training flags and hooks are left as they were.

    Parameters
    ----------
    module : torch.nn.Module
        Network to count.
    *inputs : tensors of shape (n_samples, ...)
        What `module` is called with, on its device. One row is enough.

    Returns
    -------
    costs : Costs
        Named tuple of

        - `macs`: multiply-accumulates per sample, that is, those of the whole
          batch divided by the number of rows of the first input;
        - `parameters`: number of parameters, shared ones counted once, and those
          of layers that did not run included;
        - `weight_bytes`: bytes of these parameters and of the buffers.

    Raises
    ------
    ValueError
        If there is no input, or one without rows; if a module inside has
        parameters of its own and is of a type without a formula, is a subclass
        with another `forward`, is not initialised yet, or is scripted, traced or
        compiled; if it has layers, but calls none of them; or if the rows of the
        batch differ in cost, so that the number per sample is not whole.

    TypeError
        If `module` is not a module.

    Notes
    -----
    Multiply-accumulates of matrix products and convolutions are counted, in
    linear, bilinear, (transposed) convolutional, recurrent and multi-head
    attention layers; products with zeros of the padding are among them. Additions
    of biases and everything element by element are left out: activations (PReLU
    too), normalisation, pooling, the products of gates, the scaling of inputs. An
    embedding is a lookup and costs nothing; only an :class:`torch.nn.EmbeddingBag`
    with weights per index multiplies.

    A layer is counted as often as it is called. What a `forward` computes with
    functions (`torch.matmul`, `torch.nn.functional`) instead of calling layers is
    not seen, nor are weights that are no parameters, as those of quantised layers.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skbdistil.costs import module_costs
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> module_costs(network, torch.zeros(1, 4))  # 4 * 8 + 8 * 3
    Costs(macs=56, parameters=67, weight_bytes=268)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            "'module' must be a torch.nn.Module, such as the attribute `module` of a "
            f"TorchTeacher. Got {module!r} instead."
        )
    n_rows = _n_rows(inputs)
    with _counting(module) as calls:
        module(*inputs)
    layers = (part for part in module.modules() if _is_counted(part))
    if not calls and (layer := next(layers, None)) is not None:
        raise ValueError(
            f"The operations of {type(module).__name__} cannot be counted: none of its "
            f"layers was called, such as its {type(layer).__name__}. What functions "
            "compute with their parameters is not seen."
        )
    return Costs(
        macs=_per_row(calls, n_rows),
        parameters=_n_elements(module.parameters()),
        weight_bytes=_n_bytes([*module.parameters(), *module.buffers()]),
    )


def stage_costs(ensemble, x):
    """Count the multiply-accumulates, parameters and bytes of each stage.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Ensemble to count. It runs once on `x`, as in :func:`module_costs`, where
        it is also said what is counted.
    x : tensor of shape (n_samples, ...)
        Input of the ensemble, on its device. One row is enough.

    Returns
    -------
    costs : StageCosts
        Costs of the stages. A parameter that several stages use, as in a shared
        first block, is counted with the first of them, and so are the buffers of the
        ensemble itself. Operations belong to the stage that runs them.

    Raises
    ------
    ValueError
        As in :func:`module_costs`, and if a layer of the ensemble is not called.

    Examples
    --------
    Two students, of which the second also sees the features of the first:

    >>> import torch
    >>> from torch import nn
    >>> from skbdistil.costs import stage_costs
    >>> class Pair(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.students = nn.ModuleList([nn.Linear(4, 3), nn.Linear(7, 3)])
    ...
    ...     def start(self, x):
    ...         return PairState(self.students, x)
    >>> class PairState:
    ...     def __init__(self, students, x):
    ...         self.remaining, self.x, self.earlier = iter(students), x, []
    ...
    ...     def step(self):
    ...         kept = [tensor for (tensor,) in self.earlier]
    ...         scores = next(self.remaining)(torch.cat([self.x, *kept], dim=1))
    ...         self.earlier.append((scores,))
    >>> costs = stage_costs(Pair(), torch.zeros(1, 4))
    >>> costs.macs, costs.parameters
    (array([12, 21]), array([15, 24]))
    >>> costs.activation_bytes  # 3 float32 each
    array([12, 12])
    >>> costs.cumulative_macs
    array([12, 33])
    """
    n_rows = _n_rows([x])
    macs, weights, activation_bytes, seen, ran = [], [], [], set(), set()
    with _counting(ensemble) as calls:
        # What `start` computes is needed from the first stage on, and counted there.
        state = ensemble.start(x)
        used = set(ensemble.buffers(recurse=False))
        for student in ensemble.students:
            state.step()
            macs.append(_per_row(calls, n_rows))
            activation_bytes.append(_n_bytes(state.earlier[-1]) // n_rows)
            # A connection need not be a submodule of the student that it serves.
            for module in (student, *(module for module, _ in calls)):
                used.update(module.parameters(), module.buffers())
            weights.append(used - seen)
            seen |= used
            # Attention calls its own output layer by function, and counts it.
            ran.update(part for module, _ in calls for part in module.modules())
            calls.clear()
    for path, module in ensemble.named_modules():
        if module not in ran and _is_counted(module):
            raise ValueError(
                f"The operations of {type(module).__name__} at {path!r} cannot be "
                "counted: it was not called, so either its parameters are used by a "
                "function, which is not seen, or it is not needed."
            )
    return StageCosts(
        macs=np.array(macs, dtype=np.int64),
        parameters=np.array(
            [
                _n_elements(w for w in new if isinstance(w, nn.Parameter))
                for new in weights
            ],
            dtype=np.int64,
        ),
        weight_bytes=np.array([_n_bytes(new) for new in weights], dtype=np.int64),
        activation_bytes=np.array(activation_bytes, dtype=np.int64),
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
        Limit on the threads of torch, BLAS and OpenMP during the measurement, up to 64,
        or the number of processors where there are more; None leaves them as they are.

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
    >>> from skbdistil.costs import measure_latency
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
        Limit on the number of threads, as in :func:`measure_latency`.

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
    >>> from skbdistil.costs import compare_latencies
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
    if not is_int or value < low or (high and value > high):
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


def _n_elements(tensors):
    return sum(tensor.numel() for tensor in tensors)


def _n_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _n_rows(inputs):
    if not inputs:
        raise ValueError("Costs are counted on an example, but no input was given.")
    if inputs[0].ndim == 0 or len(inputs[0]) == 0:
        raise ValueError(
            "Costs are counted on at least one row, but the (first) input has shape "
            f"{tuple(inputs[0].shape)}."
        )
    return len(inputs[0])


def _per_row(calls, n_rows):
    total = sum(macs for _, macs in calls)
    per_row, remainder = divmod(total, n_rows)
    if remainder:
        raise ValueError(
            f"The {n_rows} rows differ in cost: {total} multiply-accumulates in all "
            "are no whole number per row. Count on one row, or on rows of the same "
            "size."
        )
    return per_row


@contextmanager
def _counting(root):
    """Run `root` for counting; yields the list that the calls are appended to.

    Each call of a layer inside `root` that has a formula appends the tuple (layer,
    multiply-accumulates of the whole batch).
    """
    counted = _counted_modules(root)
    calls = []

    def count(module, args, kwargs, output):
        inputs = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        calls.append((module, counted[module](module, inputs, output)))

    # The fused inference path of nn.TransformerEncoderLayer calls no submodules.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    handles = []
    try:
        for module in counted:
            # First in line, before a hook of the user may replace the output.
            handles.append(
                module.register_forward_hook(count, prepend=True, with_kwargs=True)
            )
        torch.backends.mha.set_fastpath_enabled(False)
        with _evaluating([root]), torch.no_grad():
            yield calls
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for handle in handles:
            handle.remove()


def _counted_modules(root):
    """Map the modules in `root` that have a formula to it; refuse what has none."""
    counted = {}
    for path, module in root.named_modules():
        name = type(module).__name__ + (f" at {path!r}" if path else "")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"The operations of {name} cannot be counted, because scripted and "
                "traced modules do not report the calls of their layers. Count the "
                "module that it was made from."
            )
        # The second form is that of nn.Module.compile.
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(
                f"The operations of {name} cannot be counted, because it is "
                "compiled. Count the module that it was made from."
            )
        own = [key for key, p in module._parameters.items() if p is not None]
        if any(nn.parameter.is_lazy(module._parameters[key]) for key in own):
            raise ValueError(
                f"The parameters of {name} are not initialised. Run the network once "
                "before counting."
            )
        formula = _formula(module)
        if formula is not None:
            counted[module] = formula
        elif own:
            raise ValueError(
                f"The operations of {name} cannot be counted: it has parameters of "
                f"its own ({', '.join(own)}), and there is no formula for its type "
                "and `forward`. Build it from layers of torch.nn."
            )
    return counted


def _is_counted(module):
    """Whether a call of the module costs multiply-accumulates."""
    return _formula(module) not in (None, _no_macs)


def _formula(module):
    base = next((cls for cls in type(module).__mro__ if cls in _FORMULAS), None)
    # A subclass, or an instance, with another `forward` may compute anything.
    if base and getattr(module.forward, "__func__", None) is base.forward:
        return _FORMULAS[base]
    return None


# Formulas: multiply-accumulates of one call, over the whole batch, from the layer,
# its inputs by name and its output.


def _no_macs(layer, inputs, output):
    return 0


def _weight_per_output(layer, inputs, output):
    # Each element of the output is the inner product of the inputs that it sees with
    # one slice weight[j]; of a convolution that slice spans its group only.
    return output.numel() * layer.weight.shape[1:].numel()


def _weight_per_input(layer, inputs, output):
    # Transposed: each element of the input is spread with one slice weight[i].
    return inputs["input"].numel() * layer.weight.shape[1:].numel()


def _bilinear(layer, inputs, output):
    # The first input is contracted with the weight, the result with the second one.
    return output.numel() * (layer.in1_features + 1) * layer.in2_features


def _recurrent(layer, inputs, output):
    return _n_steps(layer, inputs) * sum(
        # Every matrix, of all layers, directions, gates and the projection, is used
        # once per step; biases are vectors.
        weight.numel()
        for weights in layer.all_weights
        for weight in weights
        if weight.ndim == 2
    )


def _recurrent_cell(layer, inputs, output):
    return _n_steps(layer, inputs) * (layer.weight_ih.numel() + layer.weight_hh.numel())


def _n_steps(layer, inputs):
    """Steps summed over the rows, which may differ in length when packed."""
    x = inputs["input"]
    if isinstance(x, PackedSequence):
        x = x.data
    return x.numel() // layer.input_size


def _embedding_bag(layer, inputs, output):
    weights = inputs.get("per_sample_weights")
    return 0 if weights is None else weights.numel() * layer.embedding_dim


def _attention(layer, inputs, output):
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    n_keys = key.shape[-2 if layer.batch_first else 0]
    n_keys += (layer.bias_k is not None) + layer.add_zero_attn
    # `out_proj` is not called as a module, so that it is counted here.
    projections = (2 * query.numel() + key.numel() + value.numel()) * layer.embed_dim
    # Scores and weighted mean: over all heads, `embed_dim` products for each pair of
    # a query and a key.
    products = 2 * query.numel() * n_keys
    return projections + products


_FORMULAS = {
    nn.Linear: _weight_per_output,
    nn.Bilinear: _bilinear,
    nn.Conv1d: _weight_per_output,
    nn.Conv2d: _weight_per_output,
    nn.Conv3d: _weight_per_output,
    nn.ConvTranspose1d: _weight_per_input,
    nn.ConvTranspose2d: _weight_per_input,
    nn.ConvTranspose3d: _weight_per_input,
    nn.RNN: _recurrent,
    nn.GRU: _recurrent,
    nn.LSTM: _recurrent,
    nn.RNNCell: _recurrent_cell,
    nn.GRUCell: _recurrent_cell,
    nn.LSTMCell: _recurrent_cell,
    nn.MultiheadAttention: _attention,
    nn.EmbeddingBag: _embedding_bag,
    nn.Embedding: _no_macs,
    nn.PReLU: _no_macs,
    nn.BatchNorm1d: _no_macs,
    nn.BatchNorm2d: _no_macs,
    nn.BatchNorm3d: _no_macs,
    nn.SyncBatchNorm: _no_macs,
    nn.InstanceNorm1d: _no_macs,
    nn.InstanceNorm2d: _no_macs,
    nn.InstanceNorm3d: _no_macs,
    nn.LayerNorm: _no_macs,
    nn.GroupNorm: _no_macs,
    nn.RMSNorm: _no_macs,
}
