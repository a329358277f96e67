"""Batch normalisation where the rows of a batch are shared among processes."""

from contextlib import contextmanager
from functools import partial

import torch
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module):
    """The layers of a module that normalise by the statistics of a batch.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    layers : list of torch.nn.Module
    """
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def shared_statistics(module, ranks):
    """Let the layers of a module normalise by all rows of a batch, wherever they are.

    Unlike those of ``torch.nn.SyncBatchNorm``, processes may be on CPUs, and one may
    have no rows of a batch. It must then run the module on none, since each layer is
    an exchange. The layers stay what they are but for their `forward`.

    Parameters
    ----------
    module : torch.nn.Module
    ranks : ProcessGroup
    """
    layers = batch_norms(module)
    try:
        for layer in layers:
            layer.forward = partial(_normalised, layer, ranks)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _normalised(layer, ranks, x):
    """What a layer gives, as ``torch.nn.functional.batch_norm`` computes it."""
    if not layer.training:
        return type(layer).forward(layer, x)
    layer._check_input_dim(x)
    # Counts and sums need more than half precision.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, variance, n_values = _moments(wide, ranks)
    with torch.no_grad():
        layer.num_batches_tracked += 1
        rate = layer.momentum
        if rate is None:
            rate = 1 / float(layer.num_batches_tracked)
        layer.running_mean.lerp_(mean, rate)
        layer.running_var.lerp_(variance * (n_values / (n_values - 1)), rate)
    scale = (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    shift = -mean * scale
    if layer.bias is not None:
        shift = shift + layer.bias
    return torch.addcmul(_of_channels(shift, x), wide, _of_channels(scale, x)).to(x)


def _moments(x, ranks):
    """Mean and variance of each channel over all rows, and how many values it has."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    n_here = x.numel() // x.shape[1]
    mean = x.sum(axes) / max(n_here, 1)
    squares = (x - _of_channels(mean, x)).square().sum(axes)
    # A line for each process. Sums of squares around 0 would lose digits where a mean is
    # large.
    lines = x.new_zeros(ranks.size, 1 + 2 * len(mean))
    lines[ranks.rank] = torch.cat([x.new_tensor([n_here]), mean, squares])
    lines = _Sum.apply(lines, ranks)
    counts = lines[:, :1].detach()
    means, squares = lines[:, 1:].chunk(2, dim=1)
    n_values = int(counts.sum())
    if n_values < 2:
        raise ValueError(
            "Expected more than 1 value per channel when training, got 1 in all "
            "processes."
        )
    mean = (counts * means).sum(0) / n_values
    squares = squares + counts * (means - mean).square()
    return mean, squares.sum(0) / n_values, n_values


def _of_channels(values, x):
    """Values of the channels, in a shape that goes with `x`."""
    return values.view(-1, *[1] * (x.ndim - 2))


class _Sum(torch.autograd.Function):
    """Sum over the processes. Each holds a part of the loss, so that the gradient of
    what went into the sum is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor, ranks):
        ctx.ranks = ranks
        return ranks.sum_tensor(tensor)

    @staticmethod
    def backward(ctx, gradient):
        # With the same strides everywhere.
        return ctx.ranks.sum_tensor(gradient.contiguous()), None
