"""What a prediction costs, stage by stage: operations and memory.

Multiply-accumulates are counted by running a copy of the network on tensors of torch's
meta device, which have shapes and no data. Every operator that runs is either counted,
or known to be free; where one is neither, or the copy does not run, the count is not
known. Measured times are in :mod:`skbdistil.latency`.
"""

import copy
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from skbdistil.exceptions import CostsUnknownWarning
from skbdistil.latency import (
    Latency,
    _evaluating,
    compare_latencies,
    measure_latency,
)

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
    macs : int or None
        Multiply-accumulates per sample. None where they could not be counted.
    parameters : int
        Number of parameters that torch knows of, shared ones counted once.
    weight_bytes : int
        Bytes of these parameters and of the buffers, shared ones counted once.

    Examples
    --------
    >>> from skbdistil.costs import Costs
    >>> Costs(macs=12, parameters=15, weight_bytes=60)
    Costs(macs=12, parameters=15, weight_bytes=60)
    """

    macs: int | None
    parameters: int
    weight_bytes: int


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class StageCosts:
    """Cost of every stage of an ensemble.

    Attributes
    ----------
    macs : ndarray of shape (n_stages,), dtype int64 or float64
        Multiply-accumulates per sample of each stage alone, its connection and
        head included. NaN where they could not be counted, and float64 only then.
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
            NaN from the first stage on of which it is not known.

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
        parts = {
            field.name: getattr(self, field.name)[stages] for field in fields(self)
        }
        return type(self)(**{**parts, "macs": _integers_if_known(parts["macs"])})


def module_costs(module, *inputs, macs=None):
    """Count the multiply-accumulates, parameters and bytes of a network.

    A copy of the network runs in evaluation mode and without gradients, on tensors
    that have shapes and no data. The network itself is left alone.

    Parameters
    ----------
    module : torch.nn.Module
        Network to count.
    *inputs : tensors of shape (n_samples, ...)
        What `module` is called with: one after the other, or by name where this is one
        mapping of tensors. One row is enough.
    macs : int or None, default=None
        Multiply-accumulates per sample of a network that cannot be counted, as you
        know them; they are taken as they are. None counts them.

    Returns
    -------
    costs : Costs
        Named tuple of

        - `macs`: multiply-accumulates of a call with one row, or None where they
          could not be counted;
        - `parameters`: number of parameters, shared ones counted once, and those
          of layers that did not run included;
        - `weight_bytes`: bytes of these parameters and of the buffers.

    Raises
    ------
    ValueError
        If there is no input, or one without rows, or if a parameter is not
        initialised yet.

    TypeError
        If `module` is not a module.

    Warns
    -----
    CostsUnknownWarning
        If the multiply-accumulates could not be counted. The message says why.

    See Also
    --------
    stage_costs : The same for the stages of an ensemble.

    Notes
    -----
    Multiply-accumulates of matrix products and convolutions are counted, whatever
    calls them: layers of torch.nn, functions such as :func:`torch.matmul`, or a
    transform such as :func:`torch.vmap`. Products with zeros of the padding are among
    them. Additions of biases and everything element by element are left out:
    activations, normalisation, pooling, the products of gates, the scaling of inputs.
    An embedding is a lookup and costs nothing; only an
    :class:`torch.nn.EmbeddingBag` with weights per index multiplies. What is computed
    from weights alone in every call, such as the norm of
    :func:`torch.nn.utils.parametrizations.spectral_norm`, is a part of the call.

    The count is None, and not a part of the truth, where

    - an operator runs that is neither counted nor known to be free, such as one of an
      extension; :func:`torch.utils.flop_counter.register_flop_formula` makes it known;
    - the network needs the data of its input: to decide what it runs, or since what
      runs is not torch, such as NumPy or another runtime;
    - it computes with tensors that are not its own, such as constants of a function, or
      it cannot be copied;
    - it is scripted, traced or quantised. A compiled network is counted as the one that
      it was made from.

    If the network does not take a single row, it runs on the batch, and the count is
    divided by the number of rows of the first input.

    Parameters and bytes are those of :meth:`torch.nn.Module.parameters` and
    :meth:`torch.nn.Module.buffers`. Weights that torch does not know of, such as those
    of another runtime or the packed ones of quantised layers, are not among them.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skbdistil.costs import module_costs
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> module_costs(network, torch.zeros(1, 4))  # 4 * 8 + 8 * 3
    Costs(macs=56, parameters=67, weight_bytes=268)
    """
    inputs = inputs[0] if len(inputs) == 1 else inputs
    costs, problem = _count_module(module, inputs, macs=macs)
    if problem:
        warnings.warn(problem, CostsUnknownWarning, stacklevel=2)
    return costs


def _call_module(module, inputs):
    """Call a module with a tensor, a tuple of several, or a mapping of these by name.

    Parameters
    ----------
    module : callable
    inputs : torch.Tensor, tuple or Mapping

    Returns
    -------
    output : object
    """
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def _count_module(module, inputs, macs=None):
    """Costs of a network, and what could not be counted.

    Parameters
    ----------
    module, macs
        As for :func:`module_costs`.
    inputs : torch.Tensor, tuple or Mapping
        As for :func:`_call_module`.

    Returns
    -------
    costs : Costs
    problem : str or None
        Text for a warning.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            "'module' must be a torch.nn.Module, such as the attribute `module` of a "
            f"TorchTeacher. Got {module!r} instead."
        )
    problem = None
    if macs is None:
        names = None
        if isinstance(inputs, Mapping):
            names, inputs = tuple(inputs), tuple(inputs.values())
        elif not isinstance(inputs, tuple):
            inputs = (inputs,)
        call = partial(_call, names=names)
        (macs,), (reason,) = _count(module, inputs, call, 1)
        if reason:
            problem = (
                f"The operations of {type(module).__name__} could not be counted: "
                f"{reason}. If you know its multiply-accumulates, pass them as 'macs'."
            )
    costs = Costs(
        macs=macs,
        parameters=_n_elements(module.parameters()),
        weight_bytes=_n_bytes([*module.parameters(), *module.buffers()]),
    )
    return costs, problem


def stage_costs(ensemble, x):
    """Count the multiply-accumulates, parameters and bytes of each stage.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Ensemble to count. A copy of it runs without data, as in :func:`module_costs`,
        where it is also said what is counted. The ensemble itself runs once on `x`, in
        evaluation mode, to see what it keeps.
    x : tensor of shape (n_samples, ...)
        Input of the ensemble, on its device. One row is enough.

    Returns
    -------
    costs : StageCosts
        Costs of the stages. A parameter that several students have, as in a shared
        first block, is counted with the first of them. What no student has, such as
        the buffers of the ensemble itself, belongs to the first stage. Operations
        belong to the stage that runs them.

    Raises
    ------
    ValueError
        If `x` has no rows, or if a parameter is not initialised yet.

    Warns
    -----
    CostsUnknownWarning
        If the multiply-accumulates of a stage could not be counted. They are NaN, and
        the message says why.

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
    costs, problem = _count_stages(ensemble, x)
    if problem:
        warnings.warn(problem, CostsUnknownWarning, stacklevel=2)
    return costs


def _count_stages(ensemble, x):
    """Costs of the stages of an ensemble, and what could not be counted.

    Parameters
    ----------
    ensemble, x
        As for :func:`stage_costs`.

    Returns
    -------
    costs : StageCosts
    problem : str or None
        Text for a warning.
    """
    n_stages = len(ensemble.students)
    macs, reasons = _count(ensemble, [x], _run_stages, n_stages)
    weights = _weights_by_stage(ensemble)
    costs = StageCosts(
        macs=_integers_if_known(np.array(macs, dtype=np.float64)),
        parameters=np.array(
            [
                _n_elements(w for w in new if isinstance(w, nn.Parameter))
                for new in weights
            ],
            dtype=np.int64,
        ),
        weight_bytes=np.array([_n_bytes(new) for new in weights], dtype=np.int64),
        activation_bytes=np.array(_kept_bytes(ensemble, x), dtype=np.int64),
    )
    problem = "; ".join(
        f"stage(s) {_stages_with(reason, reasons)}, since {reason}"
        for reason in dict.fromkeys(reasons)
        if reason
    )
    if not problem:
        return costs, None
    return costs, (
        f"The operations of some students could not be counted: {problem}. Budgets "
        "need another unit, such as latency, or a callable that returns the costs of "
        "the stages."
    )


def _stages_with(reason, reasons):
    return ", ".join(str(t) for t, other in enumerate(reasons, 1) if other == reason)


def _integers_if_known(macs):
    return macs if np.isnan(macs).any() else macs.astype(np.int64)


def _weights_by_stage(ensemble):
    """Sets of the parameters and buffers that each stage adds."""
    of_students = [{*s.parameters(), *s.buffers()} for s in ensemble.students]
    elsewhere = {*ensemble.parameters(), *ensemble.buffers()}.difference(*of_students)
    weights, seen = [], set()
    for of_student in of_students:
        weights.append((of_student | elsewhere) - seen)
        seen |= weights[-1]
    return weights


def _kept_bytes(ensemble, x):
    """Bytes per row that each stage leaves for later ones."""
    kept = []
    with _evaluating([ensemble]), torch.no_grad():
        state = ensemble.start(x)
        for _ in ensemble.students:
            state.step()
            kept.append(_n_bytes(state.earlier[-1]) // len(x))
    return kept


def _n_elements(tensors):
    return sum(tensor.numel() for tensor in tensors)


def _n_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# Counting


def _call(module, *inputs, names):
    """Run a network as a single stage."""
    _call_module(
        module, inputs if names is None else dict(zip(names, inputs, strict=True))
    )
    yield


def _run_stages(ensemble, x):
    """Run the stages of an ensemble one by one."""
    # What `start` computes is needed from the first stage on, and counted there.
    state = ensemble.start(x)
    for _ in ensemble.students:
        state.step()
        yield


def _count(root, inputs, run, n_stages):
    """Count the multiply-accumulates of a row.

    Parameters
    ----------
    root : torch.nn.Module
    inputs : sequence of tensors of shape (n_samples, ...)
    run : callable
        ``run(root, *inputs)`` is a generator that yields after each stage.
    n_stages : int

    Returns
    -------
    macs : list of int or None
        Of each stage.
    reasons : list of str or None
        Why the count of a stage is None.
    """
    n_rows = _n_rows(inputs)
    for path, module in root.named_modules():
        where = f"{type(module).__name__}{f' at {path!r}' if path else ''}"
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise ValueError(
                f"The parameters of {where} are not initialised. Run the network once "
                "before counting."
            )
        if isinstance(module, torch.jit.ScriptModule):
            reason = f"{where} is scripted or traced"
            return [None] * n_stages, [reason] * n_stages
    # Of a batch, the part of a row in what is computed once for all rows is no whole
    # number. But not every network takes a single row.
    for n in dict.fromkeys([1, n_rows]):
        macs, reasons = [], []
        operations = _Operations()
        try:
            with (
                warnings.catch_warnings(),
                torch.no_grad(),
                torch.device("meta"),
                _WithoutData(operations),
            ):
                # What the network warns of, it says when it runs with data.
                warnings.simplefilter("ignore")
                stages = run(
                    _copy_without_data(root),
                    *(_rows_without_data(x, n) for x in inputs),
                )
                with operations:
                    for _ in stages:
                        total, reason = operations.take()
                        if reason is None and total % n:
                            reason = "its rows differ in cost"
                        macs.append(None if reason else total // n)
                        reasons.append(reason)
            return macs, reasons
        except Exception as error:  # whatever a network may do
            text = str(error).partition("\n")[0].rstrip(".")
            failure = f"running without data fails ({type(error).__name__}: {text})"
    n_missing = n_stages - len(macs)
    return macs + [None] * n_missing, reasons + [failure] * n_missing


def _n_rows(inputs):
    if not inputs:
        raise ValueError("Costs are counted on an example, but no input was given.")
    if inputs[0].ndim == 0 or len(inputs[0]) == 0:
        raise ValueError(
            "Costs are counted on at least one row, but the (first) input has shape "
            f"{tuple(inputs[0].shape)}."
        )
    return len(inputs[0])


def _rows_without_data(x, n):
    return x[:n].to("meta")


def _copy_without_data(root):
    """Copy of a network whose parameters and buffers have no data."""
    memo = {}
    for parameter in root.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    for buffer in root.buffers():
        memo[id(buffer)] = buffer.to("meta")
    # Inner modules first, as compiled ones may be inside others.
    for module in reversed([*root.modules()]):
        # A module around the one that was compiled; running it would compile again.
        if "_orig_mod" in module._modules:
            memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    twin = copy.deepcopy(root, memo)
    for module in twin.modules():
        # Flag by flag: `train` may be overridden, as where students stay frozen.
        module.training = False
        # Nested tensors do not run without data.
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return twin


class _Operations(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        mode = FlopCounterMode(display=False, custom_mapping=_formulas())
        self._formulas = mode.flop_registry
        self._flops = 0
        self._unknown = {}
        self._n_repeats = 1

    def take(self):
        """Multiply-accumulates since the last call, and why they are not known."""
        flops, unknown = self._flops, self._unknown
        self._flops, self._unknown = 0, {}
        reason = None
        if unknown:
            reason = f"there is no count for the operator(s) {', '.join(unknown)}"
        return flops // 2, reason

    @contextmanager
    def repeated(self, n_repeats):
        """Count what runs inside as often as this."""
        before = self._n_repeats
        self._n_repeats = before * n_repeats
        try:
            yield
        finally:
            self._n_repeats = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = self._formulas.get(func._overloadpacket)
        if formula is None and not _is_free(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self._unknown[str(func._overloadpacket)] = None
        result = func(*args, **kwargs)
        if formula is not None:
            flops = formula(*args, **kwargs, out_val=result)
            self._flops += self._n_repeats * flops
        return result


class _WithoutData(TorchFunctionMode):
    """What functions of torch do for tensors without data.

    Parameters
    ----------
    operations : _Operations
    """

    def __init__(self, operations):
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__deepcopy__:
            # Neither parameter nor buffer, such as a constant.
            return args[0].detach().to("meta")
        if func in _ADDRESSES:
            # It would be 0, and another runtime would read from there.
            raise RuntimeError("the address of a tensor is asked for")
        if func in _RECURRENT and isinstance(args[3], bool):
            return self._run_one_step(func, *args)
        return func(*args, **(kwargs or {}))

    def _run_one_step(self, recurrent, x, *args):
        """Run one step and count it for all: each of them costs the same."""
        axis = 1 if args[-1] else 0  # batch_first
        n_steps = x.shape[axis]
        with self._operations.repeated(n_steps):
            output, *states = recurrent(x.narrow(axis, 0, 1), *args)
        shape = [*output.shape]
        shape[axis] = n_steps
        return output.new_empty(shape), *states


_ADDRESSES = {
    torch.Tensor.data_ptr,
    torch.Tensor.storage,
    torch.Tensor.untyped_storage,
}

# Called with all steps of rows of equal length, or, with a list in the place of the
# fourth argument, with the packed steps of rows of any length.
_RECURRENT = {torch.gru, torch.lstm, torch.rnn_relu, torch.rnn_tanh}


def _formulas():
    """Operations of operators that torch does not count, two for a multiply-accumulate.

    They are called with shapes in the place of tensors.
    """
    aten = torch.ops.aten

    def mv(matrix, vector, **kwargs):
        return 2 * matrix.numel()

    def addmv(x, matrix, vector, **kwargs):
        return 2 * matrix.numel()

    def dot(a, b, **kwargs):
        return 2 * a.numel()

    def addbmm(x, a, b, **kwargs):
        return 2 * a.numel() * b[2]

    def trilinear(a, weight, b, *args, **kwargs):
        # Of nn.Bilinear: the first input is contracted with the weight, and the result
        # with the second one.
        n_out, n_a, n_b = weight
        return 2 * a[0] * n_out * (n_a + 1) * n_b

    def embedding_bag(
        weight, indices, offsets, scale, mode, sparse, weights=None, *args, **kwargs
    ):
        return 0 if weights is None else 2 * weights.numel() * weight[1]

    return {
        aten.mv: mv,
        aten.addmv: addmv,
        aten.dot: dot,
        aten.vdot: dot,
        aten.addbmm: addbmm,
        aten._trilinear: trilinear,
        aten._embedding_bag: embedding_bag,
        aten._embedding_bag_forward_only: embedding_bag,
    }


def _is_free(func):
    """Whether an operator is known to multiply no matrices."""
    tags = func.tags
    if torch.Tag.pointwise in tags or torch.Tag.inplace_view in tags:
        return True
    aliases = [value.alias_info for value in func._schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        return True  # a view
    namespace, name = func.name().split(".")[0].split("::")
    if namespace == "aten":
        return name.removesuffix("_") in _FREE
    return namespace == "profiler"


# What is free beside views, and beside the operators that torch calls pointwise.
_FREE = {
    # element by element, or a scan
    *"addr complex cummax cummin cumprod cumsum".split(),
    *"fake_quantize_per_channel_affine_cachemask".split(),
    *"fake_quantize_per_tensor_affine_cachemask floor_divide gelu glu".split(),
    *"hardswish isin linalg_cross log_sigmoid_forward logcumsumexp".split(),
    *"masked_fill mish polar _prelu_kernel _weight_norm_interface".split(),
    # reductions
    *"all amax amin aminmax any argmax argmin count_nonzero dist".split(),
    *"linalg_vector_norm logsumexp max mean median min nanmedian nansum".split(),
    *"norm prod std std_mean sum trace var var_mean".split(),
    # normalisation
    *"_batch_norm_no_update _fused_rms_norm _log_softmax _masked_softmax".split(),
    *"native_batch_norm _native_batch_norm_legit".split(),
    *"_native_batch_norm_legit_no_training native_group_norm".split(),
    *"native_layer_norm renorm _safe_softmax _softmax".split(),
    # pooling and interpolation
    *"_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d".split(),
    *"adaptive_max_pool3d avg_pool2d avg_pool3d fractional_max_pool2d".split(),
    *"fractional_max_pool3d grid_sampler_2d grid_sampler_3d".split(),
    *"max_pool2d_with_indices max_pool3d_with_indices max_unpool2d".split(),
    *"max_unpool3d upsample_bicubic2d _upsample_bicubic2d_aa".split(),
    *"upsample_bilinear2d _upsample_bilinear2d_aa upsample_linear1d".split(),
    *"upsample_nearest1d upsample_nearest2d upsample_nearest3d".split(),
    *"_upsample_nearest_exact1d _upsample_nearest_exact2d".split(),
    *"_upsample_nearest_exact3d upsample_trilinear3d".split(),
    # copies, lookups and orders
    *"bucketize cat channel_shuffle clone col2im constant_pad_nd copy".split(),
    *"diag_embed embedding flip gather im2col index index_add index_copy".split(),
    *"index_fill index_put index_select kthvalue lift_fresh_copy".split(),
    *"masked_scatter narrow_copy _pack_padded_sequence pixel_shuffle".split(),
    *"pixel_unshuffle put reflection_pad1d reflection_pad2d".split(),
    *"reflection_pad3d repeat repeat_interleave replication_pad1d".split(),
    *"replication_pad2d replication_pad3d roll rot90 scatter scatter_add".split(),
    *"scatter_reduce searchsorted select_scatter slice_scatter sort".split(),
    *"split_with_sizes stack take _to_copy topk tril triu _unsafe_index".split(),
    *"unsafe_split unsafe_split_with_sizes _unsafe_view".split(),
    # new tensors, random ones among them
    *"arange bernoulli empty empty_like empty_permuted empty_strided".split(),
    *"exponential eye fill full full_like linspace logspace multinomial".split(),
    *"native_dropout new_empty new_empty_strided new_full new_ones".split(),
    *"new_zeros normal normal_functional ones ones_like poisson rand".split(),
    *"rand_like randint randint_like randn randn_like random randperm".split(),
    *"rrelu_with_noise scalar_tensor tril_indices triu_indices uniform".split(),
    *"zero zeros zeros_like".split(),
    # questions and checks
    *"_assert_async _assert_scalar _assert_tensor_metadata".split(),
    *"_fused_sdp_choice is_same_size _local_scalar_dense".split(),
}
