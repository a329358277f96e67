"""Backbones: the part of a student that sees the input.

A backbone maps ``(n, *input_shape)`` to features ``(n, d)``. What joins the features
of several students, and the linear head, belong to :mod:`skbdistil.ensemble`.
"""

import math
from collections.abc import Iterable
from functools import partial
from numbers import Integral, Real

import torch
from torch import nn

__all__ = [
    "MLP",
    "Backbone",
    "ConvNet1d",
    "ConvNet2d",
    "EmbeddingNet",
    "RecurrentNet",
]


class Backbone(nn.Module):
    """Base class of backbones that expose their blocks.

    Any ``torch.nn.Module`` that maps ``(n, *input_shape)`` to ``(n, d)`` can be a
    student's backbone. One that derives from this class and fills in the attributes
    below can also be composed block by block (``connection="lateral"``): then block
    ``b`` reads, besides the map of its own block ``b - 1``, the maps of block
    ``b - 1`` of earlier students, concatenated along ``channel_dim``.

    Attributes
    ----------
    blocks : torch.nn.ModuleList
        Applied one after the other.

    widths : tuple of int
        Number of channels of the map that each block returns.

    channel_dim : int
        Axis of the channels in these maps.

    padding_value : float or None
        What fills up short rows. `None` in backbones that do not look for it; others
        refuse rows that are scaled.

    See Also
    --------
    MLP, ConvNet2d, ConvNet1d, RecurrentNet, EmbeddingNet : The backbones of the
        package.

    Notes
    -----
    A subclass for lateral composition takes ``(input_shape, *, ..., extra=None)``,
    where ``extra[b]`` is the number of channels that block ``b`` reads in addition to
    those of block ``b - 1``. The number may be negative where block ``b`` reads a
    narrower map of a shared block instead.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.students import Backbone
    >>> class Linear(Backbone):
    ...     def __init__(self, input_shape):
    ...         super().__init__()
    ...         self.widths = (4,)
    ...         self.blocks = torch.nn.ModuleList([torch.nn.Linear(input_shape[0], 4)])
    >>> Linear((3,))(torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    channel_dim = 1

    padding_value = None

    def prepare(self, x):
        """Bring the input into the layout that block 0 reads."""
        return x

    def pool(self, maps):
        """Turn the map of the last block into features ``(n, d)``."""
        return maps

    def forward(self, x):
        """Features of the rows of ``x``.

        Parameters
        ----------
        x : torch.Tensor of shape (n, ...)

        Returns
        -------
        features : torch.Tensor of shape (n, d)
        """
        maps = self.prepare(x)
        for block in self.blocks:
            maps = block(maps)
        return self.pool(maps)


def _is_size(value):
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    return is_int and value > 0


def _check_size(value, name, backbone):
    """Refuse what is no size, such as a stride; `name` is that of the parameter."""
    if not _is_size(value):
        raise ValueError(
            f"The {name!r} parameter of {type(backbone).__name__} must be a positive "
            f"int. Got {value!r} instead."
        )


def _widths(values, name, backbone):
    """Sizes, one for each block."""
    widths = tuple(values) if isinstance(values, Iterable) else ()
    if not widths or not all(map(_is_size, widths)):
        raise ValueError(
            f"The {name!r} parameter of {type(backbone).__name__} must hold positive "
            f"ints, one for each block. Got {values!r} instead."
        )
    return widths


def _inputs_of_blocks(n_channels, widths, extra):
    """Channels that each block reads."""
    extra = (0,) * len(widths) if extra is None else extra
    return [
        before + more
        for before, more in zip((n_channels, *widths), extra, strict=False)
    ]


def _rectified_layers(inputs, widths):
    """Linear maps between these numbers of units, each followed by a rectifier."""
    return [
        nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU())
        for n_in, n_out in zip(inputs, widths, strict=True)
    ]


class MLP(Backbone):
    """Fully connected backbone; input of more than one axis is flattened.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one row.

    hidden : tuple of int, default=(32,)
        Units of each hidden layer, a linear map followed by a rectifier. The last
        one gives the features.

    extra : tuple of int or None, default=None
        See :class:`Backbone`.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.students import MLP
    >>> MLP((8,), hidden=(16, 4))(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(self, input_shape, *, hidden=(32,), extra=None):
        super().__init__()
        self.widths = _widths(hidden, "hidden", self)
        inputs = _inputs_of_blocks(math.prod(input_shape), self.widths, extra)
        self.blocks = nn.ModuleList(_rectified_layers(inputs, self.widths))

    def prepare(self, x):
        """Flatten all but the first axis."""
        return x if x.ndim == 2 else x.flatten(1)


class _MeanEmbedding(nn.Module):
    """Mean of the vectors of the tokens of a row, without those that are padding."""

    def __init__(self, num_embeddings, embedding_dim, padding_idx):
        super().__init__()
        # The vector of the padding is 0, and stays so in training.
        self.embedding = nn.Embedding(
            num_embeddings, embedding_dim, padding_idx=padding_idx
        )

    def forward(self, ids):
        table = self.embedding
        # In an ONNX graph, negative numbers would count from the end.
        known = torch.where(ids < 0, table.num_embeddings, ids)
        try:
            total = table(known).sum(1)
        except IndexError as error:
            raise ValueError(
                "EmbeddingNet reads token ids from 0 to num_embeddings - 1 = "
                f"{table.num_embeddings - 1}. Got ids from {int(ids.min())} to "
                f"{int(ids.max())}."
            ) from error
        if table.padding_idx is None:
            return total / ids.shape[1]
        n_tokens = (ids != table.padding_idx).sum(1, keepdim=True)
        return total / n_tokens.clamp(min=1)


class EmbeddingNet(Backbone):
    """Backbone for rows of token ids: mean of their embeddings, and rectified layers.

    The order of the tokens does not matter. Padding is left out of the mean, wherever
    it is in the row; the mean of a row of nothing else is 0.

    Rows must reach it as integers: X has an integer type (int8 to int64, or uint8), and
    the estimator ``input_scaling=None``. Others are refused.

    Parameters
    ----------
    input_shape : tuple of int (steps,)
        Shape of one row.

    num_embeddings : int
        Number of token ids, which are 0 to ``num_embeddings - 1``.

    embedding_dim : int, default=32
        Size of the vector of a token.

    hidden : tuple of int, default=(32,)
        Units of each hidden layer, a linear map followed by a rectifier. The last
        one gives the features.

    padding_idx : int or None, default=0
        Token id that fills up short rows. `None` if there is none.

    extra : tuple of int or None, default=None
        See :class:`Backbone`. The first block is the mean of the embeddings, which
        ``Lateral(shared_blocks=1)`` computes once for all students.

    Notes
    -----
    A lookup multiplies nothing, so that the multiply-accumulates of
    :attr:`~skbdistil.BDistilClassifier.stage_costs_` are those of the layers. The table
    is counted in parameters and bytes.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.students import EmbeddingNet
    >>> backbone = EmbeddingNet((4,), num_embeddings=100, hidden=(8,))
    >>> ids = torch.tensor([[5, 7, 0, 0], [7, 0, 5, 0]])
    >>> features = backbone(ids)
    >>> features.shape
    torch.Size([2, 8])
    >>> torch.equal(features[0], features[1])
    True
    """

    def __init__(
        self,
        input_shape,
        *,
        num_embeddings,
        embedding_dim=32,
        hidden=(32,),
        padding_idx=0,
        extra=None,
    ):
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(
                "EmbeddingNet reads rows of token ids, of shape (steps,). Got rows of "
                f"shape {tuple(input_shape)}."
            )
        _check_size(num_embeddings, "num_embeddings", self)
        _check_size(embedding_dim, "embedding_dim", self)
        if padding_idx is not None and padding_idx not in range(num_embeddings):
            raise ValueError(
                "The 'padding_idx' parameter of EmbeddingNet must be None or an int in "
                f"the range [0, {num_embeddings - 1}]. Got {padding_idx!r} instead."
            )
        hidden = _widths(hidden, "hidden", self)
        self.widths = (embedding_dim, *hidden)
        _, *inputs = _inputs_of_blocks(embedding_dim, self.widths, extra)
        self.blocks = nn.ModuleList(
            [_MeanEmbedding(num_embeddings, embedding_dim, padding_idx)]
        )
        self.blocks.extend(_rectified_layers(inputs, hidden))

    def prepare(self, x):
        """Refuse what are no integers."""
        if x.is_floating_point():
            raise ValueError(
                "EmbeddingNet reads token ids, which are integers. Got rows of "
                f"{x.dtype}. Pass X of an integer type (int8 to int64, or uint8), and "
                "input_scaling=None, which leaves it as it is."
            )
        return x


class _PooledFeatures(nn.Sequential):
    """A pooling, a linear map, a rectifier.

    The linear map is batch-normalised: without it, most features die in training.

    Parameters
    ----------
    pool : torch.nn.Module
    n_pooled : int
        Numbers that it leaves of a row.
    n_features : int
    """

    def __init__(self, pool, n_pooled, n_features):
        super().__init__(
            pool,
            nn.Flatten(),
            nn.Linear(n_pooled, n_features, bias=False),
            nn.BatchNorm1d(n_features),
            nn.ReLU(),
        )


def _grid_pool(size):
    """Average over a grid of at most 2 cells a side, and the number of cells.

    The size of the map is known when the student is built, so the pooling has a
    fixed window: adaptive pooling does not export to every runtime.
    """
    cells = [min(2, side) for side in size]
    stride = [side // n for side, n in zip(size, cells, strict=True)]
    window = [
        side - (n - 1) * step for side, n, step in zip(size, cells, stride, strict=True)
    ]
    pool = nn.AvgPool1d if len(size) == 1 else nn.AvgPool2d
    return pool(tuple(window), tuple(stride)), math.prod(cells)


class _Masked(nn.Module):
    """A block whose maps have a mask of the real steps as their first channel.

    Parameters
    ----------
    block : torch.nn.Module
        Gets the other channels.
    channel_dim : int
    stride : int, default=1
        Of the block along the last axis.
    """

    def __init__(self, block, channel_dim, stride=1):
        super().__init__()
        self.block = block
        self.channel_dim = channel_dim
        self.stride = stride

    def forward(self, maps):
        mask, maps = _split_mask(maps, self.channel_dim)
        if self.stride > 1:
            mask = mask[..., :: self.stride]
        return torch.cat([mask, self.block(maps) * mask], dim=self.channel_dim)


def _split_mask(maps, channel_dim):
    return maps.split([1, maps.shape[channel_dim] - 1], dim=channel_dim)


def _with_mask(x, padding_value):
    """Sequences (n, steps, channels) with the mask as first channel, 0 where they end.

    What ends a row and is the padding value in all channels is no real step.
    """
    real = (x != padding_value).any(dim=2, keepdim=True)
    # Not where a real step follows.
    mask = (real.flip(1).cumsum(1).flip(1) > 0).to(x.dtype)
    return torch.cat([mask, x * mask], dim=2)


def _check_padding_value(value, backbone):
    # Rows hold finite numbers only, so that no other would ever be found in one.
    if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
        raise ValueError(
            f"The 'padding_value' parameter of {type(backbone).__name__} must be a "
            f"finite number or None. Got {value!r} instead."
        )


class _MeanOfSteps(nn.Module):
    """Mean of maps (n, channels, steps) over the real steps; 0 if there are none."""

    def forward(self, maps):
        mask, maps = _split_mask(maps, 1)
        return maps.sum(2) / mask.sum(2).clamp(min=1)


def _convolution(n_in, n_out, kernel_size, stride, *, conv, norm, separable):
    """A strided convolution that halves odd and even sides alike, normalised."""
    options = {"padding": kernel_size // 2, "stride": stride, "bias": False}
    if separable:
        layers = [
            conv(n_in, n_in, kernel_size, groups=n_in, **options),
            conv(n_in, n_out, 1, bias=False),
        ]
    else:
        layers = [conv(n_in, n_out, kernel_size, **options)]
    return nn.Sequential(*layers, norm(n_out), nn.ReLU())


class _ConvNet(Backbone):
    """What one- and two-dimensional convolutional backbones share."""

    def _build(
        self,
        n_channels,
        size,
        *,
        conv,
        norm,
        channels,
        kernel_size,
        stride,
        separable,
        n_features,
        extra,
        masked=False,
    ):
        channels = _widths(channels, "channels", self)
        n_features = channels[-1] if n_features is None else n_features
        _check_size(kernel_size, "kernel_size", self)
        _check_size(stride, "stride", self)
        _check_size(n_features, "n_features", self)
        # The mask is a channel that no block computes with.
        self.widths = (*(width + masked for width in channels), n_features)
        *inputs, n_last = _inputs_of_blocks(n_channels + masked, self.widths, extra)
        blocks = []
        for n_in, n_out in zip(inputs, channels, strict=True):
            block = _convolution(
                n_in - masked,
                n_out,
                kernel_size,
                stride,
                conv=conv,
                norm=norm,
                separable=separable,
            )
            blocks.append(_Masked(block, self.channel_dim, stride) if masked else block)
            size = [
                (side + 2 * (kernel_size // 2) - kernel_size) // stride + 1
                for side in size
            ]
        pool, n_cells = (_MeanOfSteps(), 1) if masked else _grid_pool(size)
        n_pooled = (n_last - masked) * n_cells
        blocks.append(_PooledFeatures(pool, n_pooled, n_features))
        self.blocks = nn.ModuleList(blocks)


class ConvNet2d(_ConvNet):
    """Convolutional backbone for images.

    Blocks of a strided convolution, batch normalisation and a rectifier; the last
    map is averaged over a grid of 2 x 2 cells and mapped linearly to the features,
    which is the last block.

    Parameters
    ----------
    input_shape : tuple of int (channels, height, width)
        Shape of one row. Two axes (height, width) are taken as one channel.

    channels : tuple of int, default=(8, 16, 32)
        Output channels of each convolution.

    kernel_size : int, default=3
        Side of the kernels, odd.

    stride : int, default=2
        Stride of every convolution.

    separable : bool, default=False
        Whether each convolution is split into one per channel (depthwise) and a
        1 x 1 convolution across channels, which needs fewer multiply-accumulates.

    n_features : int or None, default=None
        Number of features; None takes the channels of the last convolution.

    extra : tuple of int or None, default=None
        See :class:`Backbone`.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.students import ConvNet2d
    >>> ConvNet2d((3, 32, 32))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        input_shape,
        *,
        channels=(8, 16, 32),
        kernel_size=3,
        stride=2,
        separable=False,
        n_features=None,
        extra=None,
    ):
        super().__init__()
        self._gray = len(input_shape) == 2
        n_channels, *size = (1, *input_shape) if self._gray else input_shape
        self._build(
            n_channels,
            size,
            conv=nn.Conv2d,
            norm=nn.BatchNorm2d,
            channels=channels,
            kernel_size=kernel_size,
            stride=stride,
            separable=separable,
            n_features=n_features,
            extra=extra,
        )

    def prepare(self, x):
        """Add the channel axis that images without one lack."""
        return x.unsqueeze(1) if self._gray else x


class ConvNet1d(_ConvNet):
    """Convolutional backbone for sequences.

    Like :class:`ConvNet2d`, along the steps of a sequence.

    Parameters
    ----------
    input_shape : tuple of int (steps, channels)
        Shape of one row.

    channels : tuple of int, default=(16, 32)
        Output channels of each convolution.

    kernel_size : int, default=5
        Length of the kernels in steps, odd.

    stride : int, default=2
        Stride of every convolution in steps.

    separable : bool, default=False
        See :class:`ConvNet2d`.

    n_features : int or None, default=None
        Number of features; None takes the channels of the last convolution.

    padding_value : float or None, default=None
        What fills up the rows of sequences that are shorter than `steps`, at their
        end and in all channels. Then the scores of a row do not depend on how much of
        it there is: maps are 0 there, and the mean is that over the other steps. Needs
        ``input_scaling=None``. `None` if all steps count.

    extra : tuple of int or None, default=None
        See :class:`Backbone`.

    Notes
    -----
    With `padding_value`, the first channel of the maps is the mask, 1 for steps that
    count. Batch normalisation sees the steps that do not in training.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.students import ConvNet1d
    >>> ConvNet1d((125, 45))(torch.zeros(2, 125, 45)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        input_shape,
        *,
        channels=(16, 32),
        kernel_size=5,
        stride=2,
        separable=False,
        n_features=None,
        padding_value=None,
        extra=None,
    ):
        super().__init__()
        _check_padding_value(padding_value, self)
        self.padding_value = padding_value
        steps, n_channels = input_shape
        self._build(
            n_channels,
            [steps],
            conv=nn.Conv1d,
            norm=nn.BatchNorm1d,
            channels=channels,
            kernel_size=kernel_size,
            stride=stride,
            separable=separable,
            n_features=n_features,
            extra=extra,
            masked=padding_value is not None,
        )

    def prepare(self, x):
        """Move the channels in front of the steps, where convolutions want them."""
        if self.padding_value is not None:
            x = _with_mask(x, self.padding_value)
        return x.transpose(1, 2)


class _RecurrentLayer(nn.Module):
    """One recurrent layer that returns the hidden states of all steps."""

    def __init__(self, cell, n_in, n_out):
        super().__init__()
        self.rnn = cell(n_in, n_out, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


class RecurrentNet(Backbone):
    """Recurrent backbone for sequences; the features are the last hidden state.

    Parameters
    ----------
    input_shape : tuple of int (steps, channels)
        Shape of one row.

    hidden : tuple of int, default=(16,)
        Hidden units of each layer.

    cell : {"gru", "lstm"}, default="gru"
        Kind of the recurrent layers.

    padding_value : float or None, default=None
        What fills up the rows of sequences that are shorter than `steps`, at their
        end and in all channels. Then the features are the hidden state of the last step
        before it, and 0 if there is none. Needs ``input_scaling=None``. `None` if all
        steps count.

    extra : tuple of int or None, default=None
        See :class:`Backbone`.

    Notes
    -----
    With `padding_value`, the first channel of the maps is the mask, 1 for steps that
    count.

    Examples
    --------
    >>> import torch
    >>> from skbdistil.students import RecurrentNet
    >>> RecurrentNet((125, 45), hidden=(8,))(torch.zeros(2, 125, 45)).shape
    torch.Size([2, 8])
    """

    channel_dim = 2

    def __init__(
        self, input_shape, *, hidden=(16,), cell="gru", padding_value=None, extra=None
    ):
        super().__init__()
        _check_padding_value(padding_value, self)
        self.padding_value = padding_value
        masked = padding_value is not None
        cells = {"gru": nn.GRU, "lstm": nn.LSTM}
        if cell not in cells:
            raise ValueError(
                f"The 'cell' parameter of RecurrentNet must be one of {sorted(cells)}."
                f" Got {cell!r} instead."
            )
        hidden = _widths(hidden, "hidden", self)
        # The mask is a channel that no layer computes with, and no feature.
        self.widths = (*(width + masked for width in hidden[:-1]), hidden[-1])
        inputs = _inputs_of_blocks(input_shape[-1] + masked, self.widths, extra)
        self.blocks = nn.ModuleList()
        for n_in, n_out in zip(inputs, hidden, strict=True):
            layer = _RecurrentLayer(cells[cell], n_in - masked, n_out)
            self.blocks.append(_Masked(layer, self.channel_dim) if masked else layer)

    def prepare(self, x):
        """Add the mask, where there is one."""
        if self.padding_value is None:
            return x
        return _with_mask(x, self.padding_value)

    def advance(self, x, states=None):
        """Read further steps of the rows, from where they were left.

        Parameters
        ----------
        x : torch.Tensor of shape (n, steps, channels)
            The further steps only, at least one.

        states : list or None, default=None
            What the last call returned; None at the first step.

        Returns
        -------
        features : torch.Tensor of shape (n, d)
            As of :meth:`forward` for all steps read so far.

        states : list
            One item per layer: the hidden state of shape (1, n, units), and for "lstm"
            a tuple of it and the cell state.

        Raises
        ------
        ValueError
            With `padding_value`, since what ends a row is not known before its end.
        """
        if self.padding_value is not None:
            raise ValueError(
                f"{type(self).__name__} with padding_value={self.padding_value!r} "
                "cannot read rows bit by bit: what ends a row is known at its end only."
            )
        if states is None:
            states = [None] * len(self.blocks)
        maps, kept = x, []
        for block, state in zip(self.blocks, states, strict=True):
            maps, state = block.rnn(maps, state)
            kept.append(state)
        return self.pool(maps), kept

    def pool(self, maps):
        """Keep the hidden state of the last step."""
        if self.padding_value is not None:
            mask, maps = _split_mask(maps, self.channel_dim)
            # That of the steps that are followed by none that counts.
            last = mask - torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
            return (maps * last).sum(1)
        # A view would hold the states of all steps in memory.
        return maps[:, -1].clone()


def _auto_students(input_shape):
    """Backbones of growing cost that suit the shape of the input.

    Parameters
    ----------
    input_shape : tuple of int
        ``(features,)``, ``(steps, channels)`` or ``(channels, height, width)``.

    Returns
    -------
    factories : list of callable
        Called with the input shape; neighbours differ in width by a factor of about
        1.4.

    default : int
        Position of the one to take where the cost of the teacher is not known.
    """
    if len(input_shape) == 1:
        widths = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
        return [partial(MLP, hidden=(width,)) for width in widths], 4
    if len(input_shape) == 2:
        widths = (4, 6, 8, 12, 16, 24, 32, 48, 64)
        return [partial(ConvNet1d, channels=(w, 2 * w)) for w in widths], 4
    if len(input_shape) == 3:
        widths = (4, 6, 8, 12, 16, 24, 32, 48)
        # Every block halves the sides; at least 2 x 2 cells are left to be pooled.
        n_blocks = max(1, min(3, round(math.log2(min(input_shape[1:]))) - 1))
        return [
            partial(ConvNet2d, channels=tuple(w * 2**b for b in range(n_blocks)))
            for w in widths
        ], 2
    raise ValueError(
        "student='auto' is for rows of shape (features,), (steps, channels) or "
        f"(channels, height, width), and the rows of X have shape {input_shape}. Pass "
        "a backbone class or factory as 'student'."
    )


def _check_ladder(student, estimator_name):
    """Hypothesis classes as a list of factories, from the `student` parameter.

    Parameters
    ----------
    student : type, callable or list of these
        A backbone class or factory, or a list of them: the class ladder.

    estimator_name : str
        Name of the estimator, for messages.

    Returns
    -------
    ladder : list of callable
    """
    ladder = student if isinstance(student, list | tuple) else [student]
    if not ladder:
        raise ValueError(
            f"The 'student' parameter of {estimator_name} is an empty list; a class "
            "ladder needs at least one backbone."
        )
    for rung in ladder:
        if isinstance(rung, torch.nn.Module):
            raise ValueError(
                f"The 'student' parameter of {estimator_name} must be a backbone class "
                "or a factory, never an instance, since every student needs weights of "
                f"its own. Got an instance of {type(rung).__name__}; pass the class, "
                "or functools.partial(cls, ...)."
            )
        if not callable(rung):
            raise ValueError(
                f"The 'student' parameter of {estimator_name} must be 'auto', a "
                "backbone class or factory called with the input shape, or a list of "
                f"these. Got {rung!r} instead."
            )
    return list(ladder)
