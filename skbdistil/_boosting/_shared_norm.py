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
    mean, variance, n_values = _Moments.apply(x, ranks)
    known_mean, known_variance = mean.detach(), variance.detach()
    with torch.no_grad():
        layer.num_batches_tracked += 1
        rate = layer.momentum
        if rate is None:
            rate = 1 / float(layer.num_batches_tracked)
        layer.running_mean.lerp_(known_mean, rate)
        of_sample = known_variance * (n_values / (n_values - 1))
        layer.running_var.lerp_(of_sample, rate)
    # One kernel, for which moments are constants. So they are in its weight and bias,
    # too, by factors of 1 and terms of 0 that have their gradient.
    inverse = (variance + layer.eps).rsqrt()
    weight = inverse / inverse.detach()
    bias = (known_mean - mean) * inverse
    if layer.weight is not None:
        weight, bias = weight * layer.weight, bias * layer.weight
    if layer.bias is not None:
        bias = bias + layer.bias
    return torch.nn.functional.batch_norm(
        x, known_mean, known_variance, weight, bias, training=False, eps=layer.eps
    )


class _Moments(torch.autograd.Function):
    """Mean and variance of each channel over all rows, and how many values it has."""

    @staticmethod
    def forward(ctx, x, ranks):
        # Counts and sums need more than half precision.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(x.ndim) if axis != 1]
        n_here = x.numel() // x.shape[1]
        mean = wide.sum(axes) / max(n_here, 1)
        spread = torch.linalg.vector_norm(wide - _of_channels(mean, x), dim=axes)
        # A line for each process: where a mean is large, sums of squares around 0 would
        # lose digits.
        lines = wide.new_zeros(ranks.size, 1 + 2 * len(mean))
        lines[ranks.rank] = torch.cat([wide.new_tensor([n_here]), mean, spread])
        counts, means, spreads = ranks.sum_tensor(lines).split(
            [1, len(mean), len(mean)], dim=1
        )
        n_values = int(counts.sum())
        if n_values < 2:
            raise ValueError(
                "Expected more than 1 value per channel when training, got 1 in all "
                "processes."
            )
        mean = (counts * means).sum(0) / n_values
        squares = spreads.square() + counts * (means - mean).square()
        ctx.save_for_backward(x, mean)
        ctx.ranks, ctx.n_values = ranks, n_values
        return mean, squares.sum(0) / n_values, n_values

    @staticmethod
    def backward(ctx, of_mean, of_variance, _):
        x, mean = ctx.saved_tensors
        # Each process holds a part of the loss.
        both = torch.stack([of_mean, of_variance])
        of_mean, of_variance = ctx.ranks.sum_tensor(both) / ctx.n_values
        slope = 2 * of_variance
        shift = of_mean - slope * mean
        gradient = torch.addcmul(_of_channels(shift, x), x, _of_channels(slope, x))
        return gradient.to(x.dtype), None


def _of_channels(values, x):
    """Values of the channels, in a shape that goes with `x`."""
    return values.view(-1, *[1] * (x.ndim - 2))
