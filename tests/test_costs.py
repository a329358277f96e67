import copy
import itertools
import re
import threading
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from skbdistil import BDistilClassifier, BDistilRegressor, TorchTeacher
from skbdistil import costs as costs_module
from skbdistil.costs import Costs, StageCosts, module_costs, stage_costs
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import Connection, Lateral, ProgressiveEnsemble, Window
from skbdistil.exceptions import CostsUnknownWarning
from skbdistil.stages import stage_cost
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet


class Call(nn.Module):
    """Calls `layer` with a function of the rows, to reach its other arguments."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, *inputs):
        return self.call(self.layer, *inputs)


class Functional(nn.Module):
    """Uses the weights of its layer without a call of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return x @ self.layer.weight.T


def macs(module, *shape):
    return module_costs(module, torch.zeros(shape)).macs


# Layers, by hand


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer = nn.Linear(4, 3, bias=bias)
    n_parameters = 4 * 3 + 3 * bias
    expected = Costs(4 * 3, n_parameters, 4 * n_parameters)
    assert module_costs(layer, torch.zeros(2, 4)) == expected
    # Further axes are positions: 5 of them.
    assert macs(layer, 2, 5, 4) == 5 * 4 * 3


def test_bilinear():
    # (x1 A_j) is 4 * 5 for each of 3 outputs, its product with x2 another 5.
    x1, x2 = torch.zeros(2, 4), torch.zeros(2, 5)
    assert module_costs(nn.Bilinear(4, 5, 3), x1, x2).macs == 3 * (4 * 5 + 5)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # length (10 - 3) / 2 + 1 = 4 after stride 2
        (nn.Conv1d(4, 6, 3, stride=2), (4, 10), (6 * 4) * 4 * 3),
        # two groups: each output channel sees 4 / 2 channels
        (nn.Conv1d(4, 6, 3, groups=2), (4, 10), (6 * 8) * 2 * 3),
        # dilation 3 spans 1 + 2 * 3 = 7 of 10: 4 positions
        (nn.Conv1d(4, 6, 3, dilation=3), (4, 10), (6 * 4) * 4 * 3),
        # height 8 (padded), width (8 - 5) + 1 = 4
        (nn.Conv2d(3, 5, (3, 5), padding=(1, 0)), (3, 8, 8), (5 * 8 * 4) * 3 * 15),
        # depthwise
        (nn.Conv2d(6, 6, 3, groups=6, padding="same"), (6, 7, 7), (6 * 49) * 1 * 9),
        (nn.Conv3d(2, 3, 2), (2, 4, 5, 6), (3 * 3 * 4 * 5) * 2 * 8),
        # each of 4 * 5 inputs is spread over 6 channels and 3 places
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 5), (4 * 5) * 6 * 3),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 5), (4 * 5) * 3 * 3),
        (nn.ConvTranspose2d(4, 2, 3, output_padding=1, stride=2), (4, 5, 5), 1800),
        (nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3), (2 * 27) * 3 * 8),
    ],
)
def test_convolutions(layer, shape, expected):
    assert macs(layer, 2, *shape) == expected


@pytest.mark.parametrize(
    ("recurrent", "n_gates"),
    [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)],
)
def test_recurrent_layers(recurrent, n_gates):
    # 7 steps of 5 inputs, 6 units: each gate reads the input and the last state.
    one = 7 * n_gates * (6 * 5 + 6 * 6)
    assert macs(recurrent(5, 6, batch_first=True), 2, 7, 5) == one
    assert macs(recurrent(5, 6, batch_first=True, bias=False), 2, 7, 5) == one
    # The second layer reads the 6 units of the first.
    two = one + 7 * n_gates * (6 * 6 + 6 * 6)
    assert macs(recurrent(5, 6, num_layers=2, batch_first=True), 2, 7, 5) == two
    # Two directions; the second layer reads both.
    both = 2 * one + 2 * 7 * n_gates * (6 * 12 + 6 * 6)
    layer = recurrent(5, 6, num_layers=2, bidirectional=True, batch_first=True)
    assert macs(layer, 2, 7, 5) == both


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_lstm_with_projection():
    # Units 6, state projected to 4: gates read 5 + 4, the second layer 4 + 4.
    layer = nn.LSTM(5, 6, num_layers=2, proj_size=4, batch_first=True)
    first = 4 * 6 * (5 + 4) + 6 * 4
    second = 4 * 6 * (4 + 4) + 6 * 4
    assert macs(layer, 2, 7, 5) == 7 * (first + second)


def test_recurrent_steps_first():
    network = Call(nn.GRU(5, 6), lambda gru, x: gru(input=x.transpose(0, 1)))
    assert macs(network, 2, 7, 5) == 7 * 3 * (6 * 5 + 6 * 6)


def test_packed_sequences_count_their_own_steps():
    def call(gru, x):
        return gru(pack_padded_sequence(x, lengths=[7, 3], batch_first=True))

    network = Call(nn.GRU(5, 6, batch_first=True), call)
    # (7 + 3) / 2 = 5 steps per row
    assert macs(network, 2, 7, 5) == 5 * 3 * (6 * 5 + 6 * 6)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
    "layer",
    [
        nn.RNN(5, 6, nonlinearity="relu", batch_first=True),
        nn.GRU(5, 6, num_layers=2, batch_first=True),
        nn.LSTM(5, 6, bidirectional=True, batch_first=True),
        nn.LSTM(5, 6, num_layers=2, proj_size=4, batch_first=True),
    ],
)
def test_steps_counted_at_once_are_those_counted_one_by_one(layer):
    def call(layer, x):
        packed = pack_padded_sequence(x, lengths=[7] * len(x), batch_first=True)
        return layer(packed)

    # Packed steps are run one after the other.
    assert macs(layer, 1, 7, 5) == macs(Call(layer, call), 1, 7, 5)


def test_what_follows_a_recurrent_layer_sees_all_its_steps():
    network = Call(
        nn.ModuleList([nn.LSTM(5, 6, batch_first=True), nn.Linear(7 * 6 + 6, 2)]),
        lambda layers, x: layers[1](
            torch.cat([(out := layers[0](x))[0].flatten(1), out[1][0][0]], dim=1)
        ),
    )
    expected = 7 * 4 * (6 * 5 + 6 * 6) + (7 * 6 + 6) * 2
    assert macs(network, 2, 7, 5) == expected


@pytest.mark.parametrize(
    ("cell", "n_gates"),
    [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)],
)
def test_recurrent_cells(cell, n_gates):
    assert macs(cell(5, 6), 2, 5) == n_gates * (6 * 5 + 6 * 6)


def test_embeddings():
    indices = torch.zeros(2, 4, dtype=torch.long)
    assert module_costs(nn.Embedding(10, 3), indices) == Costs(0, 30, 120)
    assert module_costs(nn.EmbeddingBag(10, 3), indices) == Costs(0, 30, 120)
    weighted = Call(
        nn.EmbeddingBag(10, 3, mode="sum"),
        lambda bag, indices: bag(indices, per_sample_weights=torch.ones(2, 4)),
    )
    # 4 weighted lookups of 3 numbers
    assert module_costs(weighted, indices) == Costs(4 * 3, 30, 120)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("n_heads", [1, 2])
def test_self_attention(batch_first, n_heads):
    def call(attention, x):
        x = x if batch_first else x.transpose(0, 1)
        return attention(x, x, value=x)

    network = Call(nn.MultiheadAttention(6, n_heads, batch_first=batch_first), call)
    # 5 positions: projections of query, key, value and output; scores and mean
    assert macs(network, 2, 5, 6) == 4 * 5 * 6 * 6 + 2 * 5 * 5 * 6


def test_cross_attention():
    # 5 queries of 6, 7 keys of 3 and values of 4
    layer = nn.MultiheadAttention(6, 2, kdim=3, vdim=4, batch_first=True)
    query, key, value = torch.zeros(2, 5, 6), torch.zeros(2, 7, 3), torch.zeros(2, 7, 4)
    projections = 5 * 6 * 6 + 7 * 3 * 6 + 7 * 4 * 6 + 5 * 6 * 6
    assert module_costs(layer, query, key, value).macs == projections + 2 * 5 * 7 * 6


def test_attention_to_added_keys():
    layer = nn.MultiheadAttention(
        6, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True
    )
    x = torch.zeros(2, 5, 6)
    # The learnt key and the zero key are not projected, but attended to.
    expected = 4 * 5 * 6 * 6 + 2 * 5 * (5 + 2) * 6
    assert module_costs(layer, x, x, x).macs == expected


def test_transformer_encoder_fast_path():
    layer = nn.TransformerEncoderLayer(6, 2, dim_feedforward=9, batch_first=True)
    attention = 4 * 5 * 6 * 6 + 2 * 5 * 5 * 6
    expected = attention + 5 * (6 * 9 + 9 * 6)
    assert macs(layer, 2, 5, 6) == expected
    assert macs(nn.TransformerEncoder(layer, 3), 2, 5, 6) == 3 * expected
    # Padding makes the fast path nest tensors.
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    padded = Call(
        nn.TransformerEncoder(layer, 3),
        lambda encoder, x, mask: encoder(x, src_key_padding_mask=mask),
    )
    assert module_costs(padded, torch.zeros(2, 5, 6), mask).macs == 3 * expected


@pytest.mark.parametrize(
    ("layer", "shape", "n_parameters", "buffer_bytes"),
    [
        # running mean and variance of 4 channels, and an int64 that counts batches
        (nn.BatchNorm1d(4), (4,), 8, 4 * 8 + 8),
        (nn.BatchNorm2d(4), (4, 3, 3), 8, 4 * 8 + 8),
        (nn.BatchNorm3d(4), (4, 3, 3, 3), 8, 4 * 8 + 8),
        (nn.SyncBatchNorm(4), (4, 3), 8, 4 * 8 + 8),
        (nn.BatchNorm1d(4, track_running_stats=False), (4,), 8, 0),
        (nn.InstanceNorm1d(4, affine=True), (4, 3), 8, 0),
        (nn.InstanceNorm2d(4, affine=True), (4, 3, 3), 8, 0),
        (nn.InstanceNorm3d(4, affine=True), (4, 3, 3, 3), 8, 0),
        (nn.LayerNorm(4), (4,), 8, 0),
        (nn.GroupNorm(2, 4), (4, 3), 8, 0),
        (nn.RMSNorm(4), (4,), 4, 0),
        (nn.PReLU(4), (4,), 4, 0),
        (nn.ReLU(), (4,), 0, 0),
        (nn.AvgPool1d(2), (4, 4), 0, 0),
    ],
)
def test_elementwise_layers_are_left_out(layer, shape, n_parameters, buffer_bytes):
    expected = Costs(0, n_parameters, 4 * n_parameters + buffer_bytes)
    assert module_costs(layer, torch.zeros(2, *shape)) == expected


# An independent count


def flops(module, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_convolutions_agree_with_torch(data):
    n_axes = data.draw(st.integers(1, 3))
    transposed = data.draw(st.booleans())
    name = f"Conv{'Transpose' if transposed else ''}{n_axes}d"
    groups = data.draw(st.integers(1, 3))
    layer = getattr(nn, name)(
        groups * data.draw(st.integers(1, 3)),
        groups * data.draw(st.integers(1, 3)),
        kernel_size=data.draw(st.tuples(*[st.integers(1, 3)] * n_axes)),
        stride=data.draw(st.tuples(*[st.integers(1, 3)] * n_axes)),
        padding=data.draw(st.integers(0, 1)),
        dilation=data.draw(st.integers(1, 2)),
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    size = data.draw(st.tuples(*[st.integers(5, 8)] * n_axes))
    n_rows = data.draw(st.integers(1, 3))
    x = torch.zeros(n_rows, layer.in_channels, *size)
    assert 2 * n_rows * module_costs(layer, x).macs == flops(layer, x)


@settings(deadline=None, max_examples=30)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    positions=st.lists(st.integers(1, 4), max_size=2),
    n_rows=st.integers(1, 4),
)
def test_linear_networks_agree_with_torch(widths, positions, n_rows):
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    network = nn.Sequential(*layers)
    x = torch.zeros(n_rows, *positions, widths[0])
    assert 2 * n_rows * module_costs(network, x).macs == flops(network, x)


# Networks


@pytest.mark.parametrize("n_rows", [1, 2, 7])
@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (nn.Linear(4, 3), (4,), 4 * 3),
        (nn.Conv2d(2, 3, 3), (2, 5, 5), 3 * 9 * 2 * 9),
        (nn.LSTM(5, 6, batch_first=True), (7, 5), 7 * 4 * (6 * 5 + 6 * 6)),
        (
            nn.TransformerEncoderLayer(6, 2, dim_feedforward=9, batch_first=True),
            (5, 6),
            4 * 5 * 6 * 6 + 2 * 5 * 5 * 6 + 5 * (6 * 9 + 9 * 6),
        ),
        # One row would be refused in training mode.
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (4,), 4 * 3),
    ],
)
def test_number_of_rows_does_not_matter(network, shape, expected, n_rows):
    assert macs(network, n_rows, *shape) == expected


def test_calls_count_and_parameters_do_not():
    layer = nn.Linear(4, 4)
    x = torch.zeros(1, 4)
    assert module_costs(nn.Sequential(layer, layer), x) == Costs(32, 20, 80)
    # Tied: two layers, one weight.
    other = nn.Linear(4, 4)
    other.weight = layer.weight
    assert module_costs(nn.Sequential(layer, other), x) == Costs(32, 24, 96)


def test_layers_that_do_not_run_have_parameters_only():
    network = Call(
        nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2)), lambda f, x: f[0](x)
    )
    assert module_costs(network, torch.zeros(1, 4)) == Costs(12, 25, 100)


@pytest.mark.parametrize(
    ("dtype", "n_bytes"),
    [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8)],
)
def test_bytes_follow_the_dtype(dtype, n_bytes):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(dtype)
    costs = module_costs(network, torch.zeros(1, 4, dtype=dtype))
    # 15 + 6 parameters, 6 running statistics; the int64 counter stays one
    assert costs == Costs(12, 21, n_bytes * (21 + 6) + 8)


def test_shared_buffers_are_counted_once():
    norm = nn.BatchNorm1d(4)
    other = nn.BatchNorm1d(4)
    other.running_mean = norm.running_mean
    x = torch.zeros(1, 4)
    assert module_costs(nn.Sequential(norm, norm), x).weight_bytes == 4 * 16 + 8
    expected = 2 * (4 * 16 + 8) - 4 * 4
    assert module_costs(nn.Sequential(norm, other), x).weight_bytes == expected


def test_subclass_with_the_forward_of_its_base():
    class Narrow(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)

    assert macs(Narrow(), 1, 4) == 8


def test_lazy_layer_that_has_run():
    network = nn.Sequential(nn.LazyLinear(3))
    network(torch.zeros(1, 4))
    assert macs(network, 1, 4) == 12


def test_hook_that_replaces_the_output():
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, args, output: output[:, :1])
    assert macs(layer, 1, 4) == 12


# Whatever calls them


def test_functions_count_as_layers_do():
    assert macs(Functional(), 2, 4) == 4 * 3
    weight, bias = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3))

    def linear(layer, x):
        return F.linear(x, layer.weight, layer.bias)

    assert macs(Call(nn.Linear(4, 3), linear), 2, 4) == 4 * 3
    layer = nn.Module()
    layer.weight, layer.bias = weight, bias
    assert macs(Call(layer, linear), 2, 4) == 4 * 3


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: m[0] @ x[0], 3 * 4),
        (lambda m, x: torch.mv(m[0], x[0]), 3 * 4),
        (lambda m, x: torch.addmv(torch.ones(3), m[0], x[0]), 3 * 4),
        (lambda m, x: x[0] @ x[0], 4),
        (lambda m, x: torch.dot(x[0], x[0]), 4),
        (lambda m, x: torch.vdot(x[0], x[0]), 4),
        (lambda m, x: torch.inner(x, m[0]), 3 * 4),
        (lambda m, x: torch.addbmm(torch.ones(3, 3), m, m.mT), 2 * 3 * 4 * 3),
        (lambda m, x: torch.tensordot(x, m[0], dims=([1], [1])), 3 * 4),
        # Two products: of x with each matrix, and of the results with x.
        (lambda m, x: torch.einsum("ni,kji,ni->nk", x, m, x), None),
        (lambda m, x: torch.vmap(lambda matrix: x @ matrix.T)(m), 2 * 3 * 4),
        (lambda m, x: torch.vmap(lambda row: m[0] @ row)(x), 3 * 4),
        (lambda m, x: torch.vmap(torch.dot)(x, x), 4),
        (lambda m, x: torch.func.vmap(F.linear, (None, 0))(x, m), 2 * 3 * 4),
        # No matrix is multiplied.
        (lambda m, x: torch.outer(x[0], x[0]), 0),
        (lambda m, x: (m[0] * x).sum(dim=1), 0),
        (lambda m, x: torch.addr(torch.ones(4, 4), x[0], x[0]), 0),
    ],
)
def test_products_of_functions(function, expected):
    layer = nn.Module()
    layer.m = nn.Parameter(torch.zeros(2, 3, 4))
    network = Call(layer, lambda layer, x: function(layer.m, x))
    if expected is None:
        assert macs(network, 1, 4) > 0
    else:
        assert macs(network, 1, 4) == expected


class Attention(nn.Module):
    """One layer for query, key and value, and one for the output."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.projections = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.n_heads = n_heads

    def forward(self, x):
        n_rows, n_tokens, _ = x.shape
        heads = self.projections(x).view(n_rows, n_tokens, 3, self.n_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("n_heads", [1, 2])
def test_scaled_dot_product_attention(n_heads):
    # 50 tokens: four projections of 8 x 8, then scores and their weighted mean.
    expected = 50 * 4 * 8 * 8 + 2 * 50 * 50 * 8
    assert expected == 52_800
    assert macs(Attention(8, n_heads), 2, 50, 8) == expected


class PositionalEmbedding(nn.Module):
    """Has a parameter of its own, and counts its tokens while it runs."""

    def __init__(self, input_shape, width=8):
        super().__init__()
        n_tokens, n_channels = input_shape
        self.embed = nn.Linear(n_channels, width)
        self.position = nn.Embedding(n_tokens + 1, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = Attention(width, 2)

    def forward(self, x):
        tokens = self.embed(x)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.position(torch.arange(tokens.shape[1]))
        return self.attention(tokens)[:, 0]


def test_positional_embedding_and_class_token():
    expected = 5 * 3 * 8 + 6 * 4 * 8 * 8 + 2 * 6 * 6 * 8
    assert macs(PositionalEmbedding((5, 3)), 2, 5, 3) == expected


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_parametrized_weights(n_rows):
    normalised = parametrizations.weight_norm(nn.Linear(4, 3))
    assert macs(normalised, n_rows, 4) == 4 * 3
    # The norm is computed anew in every call: a product of the weight with a vector,
    # and of the result with another one.
    spectral = parametrizations.spectral_norm(nn.Linear(4, 3))
    assert macs(spectral, n_rows, 4) == 4 * 3 + (4 * 3 + 3)


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_what_is_computed_from_weights_alone_is_a_part_of_the_call(n_rows):
    layer = nn.Module()
    layer.a = nn.Parameter(torch.zeros(6, 2))
    layer.b = nn.Parameter(torch.zeros(2, 5))
    network = Call(layer, lambda layer, x: x @ (layer.a @ layer.b))
    assert macs(network, n_rows, 6) == 6 * 5 + 6 * 2 * 5


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))
        self.register_parameter("offset", None)

    def forward(self, x):
        return self.factor * x


def test_parameters_of_its_own():
    x = torch.zeros(1, 4)
    assert module_costs(Scale(), x) == Costs(0, 4, 16)
    scale = Scale()
    scale.layer = nn.Linear(4, 3)
    assert module_costs(Call(scale, lambda s, x: s.layer(s(x))), x).macs == 12


class Twice(nn.Linear):
    def forward(self, x):
        return super().forward(super().forward(x))


def test_subclass_with_another_forward():
    assert macs(nn.Sequential(Twice(4, 4)), 1, 4) == 2 * 16


def test_instance_with_another_forward():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x @ torch.ones(4, 2)
    assert macs(layer, 1, 4) == 8


def test_constants_of_the_module_are_its_own():
    layer = nn.Linear(4, 3)
    layer.table = torch.ones(3, 2)
    network = Call(layer, lambda layer, x: layer(x) @ layer.table)
    assert module_costs(network, torch.zeros(1, 4)) == Costs(12 + 6, 15, 60)
    # Made while it runs, too.
    network = Call(nn.Linear(4, 3), lambda layer, x: layer(x) @ torch.ones(3, 2))
    assert macs(network, 1, 4) == 12 + 6


def test_compiled_module_is_the_one_it_was_made_from():
    def fail(graph, inputs):
        raise AssertionError("counting compiles nothing")

    layer = nn.Linear(4, 3)
    inner = nn.Sequential(torch.compile(layer, backend=fail), nn.ReLU())
    assert macs(inner, 2, 4) == 12
    assert macs(torch.compile(inner, backend=fail), 2, 4) == 12
    layer.compile(backend=fail)
    assert macs(layer, 2, 4) == 12
    assert layer._compiled_call_impl is not None


def test_inference_mode_inside():
    @torch.inference_mode()
    def call(layer, x):
        return layer(x)

    assert macs(Call(nn.Linear(4, 3), call), 2, 4) == 12


def test_named_parts_for_the_profiler_are_free():
    def call(layer, x):
        with torch.profiler.record_function("part"):
            return layer(x)

    assert macs(Call(nn.Linear(4, 3), call), 2, 4) == 12


def test_what_is_free_is_not_counted_elsewhere():
    counted = {*flop_registry, *costs_module._formulas()}
    names = {str(packet).removeprefix("aten.") for packet in counted}
    assert "mm" in names
    assert not names & costs_module._FREE


# What is not known


def unknown(module, x, match, *, where=module_costs):
    """Its costs, of which the multiply-accumulates are None."""
    with pytest.warns(CostsUnknownWarning, match=match) as caught:
        costs = where(module, x)
    assert len(caught) == 1
    # The line that asked.
    assert caught[0].filename == __file__
    assert costs.macs is None
    assert costs.parameters == sum(p.numel() for p in module.parameters())
    return costs


@pytest.fixture
def custom_operator():
    """An operator of an extension, which runs without data, too."""
    library = torch.library.Library("test_costs", "FRAGMENT")
    library.define("product(Tensor a, Tensor b) -> Tensor")
    library.impl("product", lambda a, b: a @ b, "CPU")
    library.impl("product", lambda a, b: a.new_empty(len(a), b.shape[1]), "Meta")
    yield torch.ops.test_costs.product
    library._destroy()


def test_operator_of_an_extension(custom_operator, monkeypatch):
    network = Call(nn.Linear(4, 4), lambda layer, x: custom_operator(x, layer(x).T))
    x = torch.zeros(1, 4)
    unknown(network, x, r"no count for the operator\(s\) test_costs.product\.")

    def formula(*args, out_val=None):
        return 2 * args[0].numel() * args[1].shape[1]

    monkeypatch.setitem(flop_registry, custom_operator, formula)
    assert module_costs(network, x).macs == 16 + 4


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.fft.rfft, "aten._fft_r2c"),
        (lambda x: torch.cdist(x, x), "aten._cdist_forward"),
        (lambda x: torch.linalg.matrix_exp(x.mT @ x), "aten.linalg_matrix_exp"),
    ],
)
def test_operator_that_multiplies_otherwise(function, operator):
    network = Call(nn.Linear(4, 4), lambda layer, x: function(layer(x)))
    unknown(network, torch.zeros(1, 4), re.escape(operator))


def decides_by_data(layer, x):
    return layer(x) if x.sum() > 0 else x


def leaves_torch(layer, x):
    return layer(torch.from_numpy(np.tanh(x.numpy())))


def lends_its_address(layer, x):
    assert x.data_ptr() != 0, "another runtime would now read from address 0"
    return layer(x)


def lends_its_storage(layer, x):
    assert x.untyped_storage().data_ptr() != 0
    return layer(x)


CONSTANT = torch.ones(4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (decides_by_data, "RuntimeError: Tensor.item"),
        (lambda layer, x: layer(x * x.max().item()), "RuntimeError: Tensor.item"),
        (lambda layer, x: layer(x[x > 0][:4]), "NotImplementedError|RuntimeError"),
        (leaves_torch, "TypeError: can't convert meta device type tensor to numpy"),
        (lambda layer, x: layer(torch.tensor(x.tolist())), "no data"),
        (lends_its_address, "the address of a tensor is asked for"),
        (lends_its_storage, "the address of a tensor is asked for"),
        (lambda layer, x: layer(x + CONSTANT), "RuntimeError"),
    ],
)
def test_network_that_needs_data(call, match):
    unknown(Call(nn.Linear(4, 3), call), torch.ones(1, 4), match)


class Runtime(nn.Module):
    """Torch knows nothing of what it does."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return torch.from_numpy(self.run(np.asarray(x)))


def test_module_around_another_runtime():
    runtime = Runtime(lambda rows: rows @ np.ones((4, 3), dtype=np.float32))
    assert runtime(torch.ones(2, 4)).shape == (2, 3)
    unknown(
        runtime, torch.ones(2, 4), "^The operations of Runtime could not be counted"
    )


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_layers():
    network = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.LayerNorm(3)
    )
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    assert quantised(torch.zeros(1, 4)).shape == (1, 3)
    unknown(quantised, torch.zeros(1, 4), "linear_dynamic")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "convert",
    [torch.jit.script, lambda module: torch.jit.trace(module, torch.zeros(1, 4))],
)
def test_scripted_module(convert):
    network = nn.Sequential(nn.ReLU(), convert(nn.Linear(4, 3)))
    unknown(network, torch.zeros(1, 4), "Module at '1' is scripted or traced")


def test_network_that_cannot_be_copied():
    layer = nn.Linear(4, 3)
    layer.lock = threading.Lock()
    unknown(layer, torch.zeros(1, 4), "TypeError: cannot pickle '_thread.lock' object")


def test_network_that_fails():
    unknown(Fails(), torch.zeros(1, 4), "RuntimeError: on purpose")
    unknown(
        nn.Linear(5, 3),
        torch.zeros(1, 4),
        r"data fails \(RuntimeError: .*\)\. If you know",
    )


def test_part_of_the_truth_is_not_told():
    # The layer is counted, the transform is not.
    network = nn.Sequential(
        nn.Linear(4, 4), Call(nn.Identity(), lambda _, x: torch.fft.rfft(x).real)
    )
    unknown(network, torch.zeros(1, 4), "aten._fft_r2c")


def test_count_that_the_user_states():
    network = Runtime(lambda rows: rows)
    # It is taken as it is, and nothing runs.
    assert module_costs(network, torch.zeros(1, 4), macs=7) == Costs(7, 0, 0)
    assert module_costs(nn.Linear(4, 3), torch.zeros(1, 4), macs=0).macs == 0


def test_rows_that_differ_in_cost():
    def call(rnn, x):
        return rnn(pack_padded_sequence(x, lengths=[7, 4], batch_first=True))

    # 11 steps of 3 products, in 2 rows.
    network = Call(nn.RNN(2, 1, batch_first=True), call)
    unknown(network, torch.zeros(2, 7, 2), "its rows differ in cost")


def test_network_that_takes_no_single_row():
    def call(layer, x):
        # A row of its own would lose its axis.
        return torch.cat([layer(x).squeeze(), x], dim=1)

    assert macs(Call(nn.Linear(4, 3), call), 6, 4) == 12
    unknown(Call(nn.Linear(4, 3), call), torch.zeros(1, 4), "IndexError|RuntimeError")


# What cannot be asked


def refused(module, x, match):
    with pytest.raises(ValueError, match=match):
        module_costs(module, x)


def test_uninitialised_layer():
    network = nn.Sequential(nn.LazyLinear(3))
    refused(network, torch.zeros(1, 4), "LazyLinear at '0' are not initialised")
    assert nn.parameter.is_lazy(network[0].weight)


@pytest.mark.parametrize("shape", [(0, 4), ()])
def test_input_without_rows(shape):
    refused(nn.Linear(4, 3), torch.zeros(shape), "at least one row")
    with pytest.raises(ValueError, match="at least one row"):
        stage_costs(FakeEnsemble([nn.Linear(4, 3)]), torch.zeros(shape))


def test_no_input():
    with pytest.raises(ValueError, match="no input"):
        module_costs(nn.Linear(4, 3))


@pytest.mark.parametrize(
    "module", [DummyClassifier(), TorchTeacher(nn.Linear(4, 3)), nn.Linear, None]
)
def test_what_is_no_module(module):
    message = (
        "'module' must be a torch.nn.Module, such as the attribute `module` of a "
        f"TorchTeacher. Got {module!r} instead."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        module_costs(module, torch.zeros(1, 4))


# What is left behind


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("on purpose")


def state_of(network):
    """Everything about a network, and the objects it is made of."""
    return [
        {
            name: (id(value), copy.copy(value))
            for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")
        }
        | {name: id(value) for name, value in module.named_parameters()}
        | {name: id(value) for name, value in module.named_buffers()}
        for module in network.modules()
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_alone(fails):
    seen = []
    network = nn.Sequential(
        nn.Linear(4, 4),
        nn.BatchNorm1d(4).eval(),
        nn.Dropout(),
        Fails() if fails else nn.Identity(),
    )
    network[0].register_forward_hook(
        lambda *args: seen.append((torch.is_grad_enabled(), args[0].training))
    )
    before = state_of(network)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CostsUnknownWarning)
        module_costs(network, torch.ones(1, 4))
    assert seen == [(False, False)]
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert state_of(network) == before
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key])


class Caches(nn.Module):
    """Keeps what it computes in its first call, and what it saw last."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.table = None
        self.tables = {}

    def forward(self, x):
        if self.table is None:
            self.table = self.tables["cos"] = torch.arange(4.0).cos()
        self.last = self.layer(x * self.table + self.tables["cos"])
        return self.last


def test_caches_hold_no_tensors_without_data():
    network = Caches()
    assert macs(network, 2, 4) == 12
    assert network.table is None
    assert network.tables == {}
    assert network(torch.ones(2, 4)).device.type == "cpu"
    # Filled ones are those of the network that is counted.
    assert macs(network, 2, 4) == 12
    assert network.table.device.type == "cpu"
    assert network.last.device.type == "cpu"


def test_counting_draws_no_random_numbers():
    network = nn.Sequential(
        nn.Linear(4, 3),
        Call(nn.Identity(), lambda _, x: x + torch.randn(3) + torch.rand_like(x)),
    )
    before = torch.get_rng_state()
    assert macs(network, 1, 4) == 12
    assert torch.equal(torch.get_rng_state(), before)


def test_network_predicts_in_another_thread_while_it_is_counted():
    network = nn.Sequential(nn.Linear(4, 3), Call(nn.Identity(), lambda _, x: peek(x)))
    predictions = []

    def predict():
        predictions.append(network(torch.ones(2, 4)))

    def peek(x):
        if x.is_meta:
            thread = threading.Thread(target=predict)
            thread.start()
            thread.join()
        return x

    assert macs(network, 1, 4) == 12
    assert torch.equal(predictions[0], network(torch.ones(2, 4)))


# Stages

UNITS = ("macs", "parameters", "weight_bytes", "activation_bytes")


class FakeEnsemble(nn.Module):
    """Students of 3 scores; the later ones may read the scores of the one before."""

    def __init__(self, students, connections=None, stem=None):
        super().__init__()
        self.students = nn.ModuleList(students)
        self.connections = nn.ModuleList(connections or [])
        self.stem = stem or nn.Identity()

    def start(self, x):
        return FakeState(self, self.stem(x))


class FakeState:
    def __init__(self, ensemble, x):
        self.ensemble, self.x, self.earlier = ensemble, x, []

    def step(self):
        t = len(self.earlier)
        scores = self.ensemble.students[t](self.x)
        if t and self.ensemble.connections:
            joined = torch.cat([scores, *self.earlier[-1]], dim=1)
            scores = self.ensemble.connections[t - 1](joined)
        self.earlier.append((scores,) if self.ensemble.connections else ())


def assert_costs(costs, macs, parameters, *, buffer_bytes=0, activation_bytes=0):
    """All four costs, of networks whose parameters are float32."""
    assert_array_equal(costs.macs, macs)
    assert_array_equal(costs.parameters, parameters)
    assert_array_equal(costs.weight_bytes, 4 * np.array(parameters) + buffer_bytes)
    assert_array_equal(
        costs.activation_bytes, np.broadcast_to(activation_bytes, len(costs))
    )
    for unit in UNITS:
        assert getattr(costs, unit).dtype == np.int64


@pytest.mark.parametrize("n_rows", [1, 2, 7])
def test_stages_are_counted_alone(n_rows):
    students = [
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        nn.Linear(4, 3),
    ]
    ensemble = FakeEnsemble(students)
    ensemble.train()
    costs = stage_costs(ensemble, torch.zeros(n_rows, 4))
    assert_costs(
        costs,
        [12, 20 + 15, 12],
        [15, 25 + 10 + 18, 15],
        buffer_bytes=[0, 4 * 10 + 8, 0],
    )
    assert all(module.training for module in ensemble.modules())


def test_operations_belong_to_the_stage_that_runs_them():
    normalised = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    ensemble = FakeEnsemble(
        [nn.Linear(4, 3) for _ in range(3)],
        connections=[nn.Linear(6, 3), normalised],
    )
    costs = stage_costs(ensemble, torch.zeros(2, 4))
    assert_costs(
        costs,
        [12, 12 + 18, 12 + 18],
        # What no student has is needed from the start.
        [15 + 21 + 12 + 21, 15, 15],
        buffer_bytes=[4 * 12 + 8, 0, 0],
        activation_bytes=4 * 3,
    )
    n_parameters = sum(p.numel() for p in ensemble.parameters())
    assert costs.cumulative_parameters[-1] == n_parameters


def test_what_starts_belongs_to_the_first_stage():
    students = [nn.Linear(4, 3) for _ in range(2)]
    stem = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    ensemble = FakeEnsemble(students, stem=stem)
    ensemble.register_buffer("centre", torch.zeros(6, dtype=torch.float64))
    costs = stage_costs(ensemble, torch.zeros(2, 6))
    assert_costs(
        costs,
        [24 + 12, 12],
        [28 + 8 + 15, 15],
        buffer_bytes=[(4 * 8 + 8) + 8 * 6, 0],
    )


def test_shared_parameters_and_buffers_belong_to_their_first_stage():
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    students = [nn.Sequential(block, nn.Linear(4, 3)) for _ in range(2)]
    # Run again, but not stored again.
    costs = stage_costs(FakeEnsemble(students), torch.zeros(1, 4))
    assert_costs(
        costs, [16 + 12, 16 + 12], [20 + 8 + 15, 15], buffer_bytes=[4 * 8 + 8, 0]
    )


# Students keep one number by which they carry the ensemble on.
CARRY_BYTES = 4

# Of three students, each with 3 scores: what the backbone of one costs by itself, and
# what is added to it for every earlier student whose maps it reads block by block.
BACKBONES = {
    "MLP": SimpleNamespace(
        factory=partial(MLP, hidden=(5, 4)),
        input_shape=(2, 3),
        macs=6 * 5 + 5 * 4,
        parameters=6 * 5 + 5 + 5 * 4 + 4,
        buffer_bytes=0,
        n_features=4,
        n_in_maps=5,
        lateral_macs=5 * 4,
        lateral_parameters=5 * 4,
    ),
    # Maps of 3 channels and (10 + 2 - 3) // 2 + 1 = 5 steps, then 4 and 3; 2 cells.
    "ConvNet1d": SimpleNamespace(
        factory=partial(ConvNet1d, channels=(3, 4), kernel_size=3),
        input_shape=(10, 2),
        macs=(3 * 5) * 2 * 3 + (4 * 3) * 3 * 3 + (4 * 2) * 4,
        parameters=3 * 2 * 3 + 2 * 3 + 4 * 3 * 3 + 2 * 4 + (4 * 2) * 4 + 2 * 4,
        buffer_bytes=4 * (2 * 3 + 2 * 4 + 2 * 4) + 3 * 8,
        n_features=4,
        n_in_maps=3 * 5 + 4 * 3,
        lateral_macs=(4 * 3) * 3 * 3 + (4 * 2) * 4,
        lateral_parameters=4 * 3 * 3 + (4 * 2) * 4,
    ),
    # Maps of 2 channels and 4 x 3 pixels, then 3 and 2 x 2; 2 x 2 cells.
    "ConvNet2d": SimpleNamespace(
        factory=partial(ConvNet2d, channels=(2, 3), n_features=5),
        input_shape=(8, 6),
        macs=(2 * 12) * 9 + (3 * 4) * 2 * 9 + (3 * 4) * 5,
        parameters=2 * 9 + 2 * 2 + 3 * 2 * 9 + 2 * 3 + (3 * 4) * 5 + 2 * 5,
        buffer_bytes=4 * (2 * 2 + 2 * 3 + 2 * 5) + 3 * 8,
        n_features=5,
        n_in_maps=2 * 12 + 3 * 4,
        lateral_macs=(3 * 4) * 2 * 9 + (3 * 4) * 5,
        lateral_parameters=3 * 2 * 9 + (3 * 4) * 5,
    ),
    # Three gates; two vectors of biases each.
    "RecurrentNet": SimpleNamespace(
        factory=partial(RecurrentNet, hidden=(6, 4)),
        input_shape=(7, 5),
        macs=7 * 3 * (6 * 5 + 6 * 6) + 7 * 3 * (4 * 6 + 4 * 4),
        parameters=3 * (6 * 5 + 6 * 6 + 2 * 6) + 3 * (4 * 6 + 4 * 4 + 2 * 4),
        buffer_bytes=0,
        n_features=4,
        n_in_maps=7 * 6,
        lateral_macs=7 * 3 * (4 * 6),
        lateral_parameters=3 * (4 * 6),
    ),
}


def three_students(factory, input_shape, connection, **scaling):
    ensemble = ProgressiveEnsemble(
        input_shape, n_outputs=3, connection=connection, **scaling
    )
    for _ in range(3):
        ensemble.append(ensemble.new_student(factory))
    return ensemble


def assert_sums_to_the_whole(costs, ensemble, x):
    whole = module_costs(ensemble, x)
    for unit in ("macs", "parameters", "weight_bytes"):
        assert costs.cumulative(unit)[-1] == getattr(whole, unit)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    ("connection", "n_read"),
    [
        (None, [0, 0, 0]),
        # features of the earlier students that the map of a connection reads
        ("dense", [0, 1, 2]),
        ("last", [0, 1, 1]),
        (Window(1), [0, 1, 1]),
        (Window(2), [0, 1, 2]),
    ],
)
def test_students_joined_by_their_features(name, connection, n_read):
    backbone = BACKBONES[name]
    ensemble = three_students(backbone.factory, backbone.input_shape, connection)
    x = torch.zeros(2, *backbone.input_shape)
    costs = stage_costs(ensemble, x)
    d = backbone.n_features
    joined = np.array([(1 + n) * d * d if n else 0 for n in n_read])
    biases = np.array([d if n else 0 for n in n_read])
    assert_costs(
        costs,
        backbone.macs + joined + d * 3,
        backbone.parameters + joined + biases + d * 3 + 3,
        buffer_bytes=backbone.buffer_bytes + CARRY_BYTES,
        activation_bytes=0 if connection is None else 4 * d,
    )
    assert_sums_to_the_whole(costs, ensemble, x)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    ("connection", "n_read"),
    [
        ("lateral", [0, 1, 2]),
        (Lateral("last"), [0, 1, 1]),
        (Lateral(1), [0, 1, 1]),
        (Lateral(2), [0, 1, 2]),
    ],
)
def test_students_joined_block_by_block(name, connection, n_read):
    backbone = BACKBONES[name]
    ensemble = three_students(backbone.factory, backbone.input_shape, connection)
    x = torch.zeros(2, *backbone.input_shape)
    costs = stage_costs(ensemble, x)
    n_read, head = np.array(n_read), backbone.n_features * 3
    assert_costs(
        costs,
        backbone.macs + n_read * backbone.lateral_macs + head,
        backbone.parameters + n_read * backbone.lateral_parameters + head + 3,
        buffer_bytes=backbone.buffer_bytes + CARRY_BYTES,
        # The map of the last block is read by the head only.
        activation_bytes=4 * backbone.n_in_maps,
    )
    assert_sums_to_the_whole(costs, ensemble, x)


def test_blocks_that_are_shared():
    factory = partial(MLP, hidden=(5, 4, 3))
    ensemble = three_students(factory, (6,), Lateral(shared_blocks=1))
    x = torch.zeros(2, 6)
    costs = stage_costs(ensemble, x)
    # Block 0 is run once and kept; later students keep what block 1 gives.
    assert_costs(
        costs,
        [
            6 * 5 + 5 * 4 + 4 * 3 + 3 * 3,
            5 * 4 + (4 + 4) * 3 + 3 * 3,
            5 * 4 + (4 + 8) * 3 + 3 * 3,
        ],
        [
            (6 * 5 + 5) + (5 * 4 + 4) + (4 * 3 + 3) + (3 * 3 + 3),
            (5 * 4 + 4) + ((4 + 4) * 3 + 3) + (3 * 3 + 3),
            (5 * 4 + 4) + ((4 + 8) * 3 + 3) + (3 * 3 + 3),
        ],
        buffer_bytes=CARRY_BYTES,
        activation_bytes=[4 * (5 + 4), 4 * 4, 4 * 4],
    )
    assert_sums_to_the_whole(costs, ensemble, x)


def test_depthwise_convolutions():
    factory = partial(ConvNet2d, channels=(4,), separable=True, n_features=3)
    ensemble = three_students(factory, (2, 8, 6), None)
    # Each of 2 channels by itself, then across: 4 x 3 pixels.
    macs = (2 * 12) * 9 + (4 * 12) * 2 + (4 * 4) * 3 + 3 * 3
    parameters = 2 * 9 + 4 * 2 + 2 * 4 + ((4 * 4) * 3 + 2 * 3) + (3 * 3 + 3)
    costs = stage_costs(ensemble, torch.zeros(1, 2, 8, 6))
    buffer_bytes = 4 * (2 * 4 + 2 * 3) + 2 * 8 + CARRY_BYTES
    assert_costs(costs, [macs] * 3, [parameters] * 3, buffer_bytes=buffer_bytes)


def test_lstm_students():
    ensemble = three_students(partial(RecurrentNet, cell="lstm"), (7, 5), None)
    macs = 7 * 4 * (16 * 5 + 16 * 16) + 16 * 3
    parameters = 4 * (16 * 5 + 16 * 16 + 2 * 16) + 16 * 3 + 3
    costs = stage_costs(ensemble, torch.zeros(1, 7, 5))
    assert_costs(costs, [macs] * 3, [parameters] * 3, buffer_bytes=CARRY_BYTES)


def test_scaling_of_inputs_and_outputs_belongs_to_the_first_stage():
    ensemble = three_students(
        partial(MLP, hidden=(4,)),
        (6,),
        "last",
        input_mean=torch.zeros(6),
        input_scale=torch.ones(6),
        output_mean=torch.zeros(3),
        output_scale=torch.ones(3),
    )
    x = torch.zeros(2, 6)
    costs = stage_costs(ensemble, x)
    assert_costs(
        costs,
        [24 + 12, 24 + 32 + 12, 24 + 32 + 12],
        [28 + 15, 28 + 36 + 15, 28 + 36 + 15],
        buffer_bytes=np.array([4 * (6 + 6 + 3 + 3), 0, 0]) + CARRY_BYTES,
        activation_bytes=4 * 4,
    )
    assert_sums_to_the_whole(costs, ensemble, x)


def test_double_precision_doubles_the_bytes():
    backbone = BACKBONES["MLP"]
    ensemble = three_students(backbone.factory, backbone.input_shape, "dense")
    single = stage_costs(ensemble, torch.zeros(1, 2, 3))
    double = stage_costs(ensemble.double(), torch.zeros(1, 2, 3).double())
    assert_array_equal(double.macs, single.macs)
    assert_array_equal(double.parameters, single.parameters)
    assert_array_equal(double.weight_bytes, 2 * single.weight_bytes)
    assert_array_equal(double.activation_bytes, 2 * single.activation_bytes)


@pytest.mark.parametrize("connection", [None, "dense", "lateral"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_stages_cost_the_same_in_a_shorter_ensemble(connection, n_rows):
    backbone = BACKBONES["ConvNet1d"]
    ensemble = three_students(backbone.factory, backbone.input_shape, connection)
    x = torch.zeros(n_rows, *backbone.input_shape)
    costs = stage_costs(ensemble, x)
    for n_stages in (1, 2, 3):
        shorter = stage_costs(ensemble.truncated(n_stages), x)
        for unit in UNITS:
            assert_array_equal(getattr(shorter, unit), getattr(costs[:n_stages], unit))


def test_no_stages():
    costs = stage_costs(FakeEnsemble([]), torch.zeros(1, 4))
    assert_costs(costs, [], [])
    assert len(costs) == 0
    assert_array_equal(costs.cumulative("weight_bytes"), [])


def four_costs(macs):
    macs = np.array(macs, dtype=np.int64)
    return StageCosts(
        macs=macs,
        parameters=macs + 1,
        weight_bytes=4 * (macs + 1),
        activation_bytes=macs + 2,
    )


@given(
    macs=st.lists(st.integers(0, 2**40), max_size=6),
    stages=st.slices(6),
)
def test_cumulative_and_sliced(macs, stages):
    costs = four_costs(macs)
    assert len(costs) == len(macs)
    assert_array_equal(costs.cumulative_macs, costs.cumulative("macs"))
    assert_array_equal(costs.cumulative_parameters, costs.cumulative("parameters"))
    for unit in UNITS:
        alone, cumulative = getattr(costs, unit), costs.cumulative(unit)
        assert_array_equal(np.diff(cumulative, prepend=0), alone)
        assert_array_equal(getattr(costs[stages], unit), alone[stages])
        for k in range(len(macs) + 1):
            assert_array_equal(costs[:k].cumulative(unit), cumulative[:k])


def test_indexed_with_slices_only():
    with pytest.raises(TypeError, match=r"StageCosts is indexed with a slice.* got 0"):
        four_costs([1, 2])[0]


@pytest.mark.parametrize("unit", ["flops", "cumulative_macs", "__len__", None])
def test_unknown_unit(unit):
    with pytest.raises(ValueError, match="'unit' must be one of") as raised:
        four_costs([1, 2]).cumulative(unit)
    assert repr(list(UNITS)) in str(raised.value)
    assert str(raised.value).endswith(f"Got {unit!r} instead.")


def test_costs_are_not_changed():
    costs = four_costs([1, 2])
    with pytest.raises(AttributeError):
        costs.macs = np.array([3, 4])
    costs.cumulative("macs")[:] = 0
    assert_array_equal(costs.macs, [1, 2])


class Transform(nn.Module):
    """Nobody has said what it costs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(torch.fft.rfft(x).real)


class DecidesByData(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


def test_a_stage_whose_weights_a_function_uses_is_counted():
    assert_costs(stage_costs(FakeEnsemble([Functional()]), torch.zeros(1, 4)), 12, [15])


def test_stage_with_an_unknown_operator():
    connections = [nn.Linear(6, 3), nn.Linear(6, 3)]
    students = [nn.Linear(4, 3), Transform(), nn.Linear(4, 3)]
    ensemble = FakeEnsemble(students, connections)
    match = (
        r"stage\(s\) 2, since there is no count for the operator\(s\) aten._fft_r2c\."
    )
    with pytest.warns(CostsUnknownWarning, match=match) as caught:
        costs = stage_costs(ensemble, torch.zeros(2, 4))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    # The others are known, and so is all but the operations.
    assert_array_equal(costs.macs, [12, np.nan, 12 + 18])
    assert_array_equal(costs.parameters, [15 + 2 * 21, 12, 15])
    assert_array_equal(costs.activation_bytes, [12, 12, 12])
    assert_array_equal(costs.cumulative_macs, [12, np.nan, np.nan])
    for unit in UNITS[1:]:
        assert getattr(costs, unit).dtype == np.int64


def test_stage_that_does_not_run_without_data():
    students = [nn.Linear(4, 3), DecidesByData(), nn.Linear(4, 3), nn.Linear(4, 3)]
    with pytest.warns(
        CostsUnknownWarning, match=r"stage\(s\) 2, 3, 4, since running"
    ) as all_:
        costs = stage_costs(FakeEnsemble(students), torch.zeros(2, 4))
    assert len(all_) == 1
    assert_array_equal(costs.macs, [12, np.nan, np.nan, np.nan])
    assert_array_equal(costs.parameters, [15] * 4)
    assert_array_equal(costs.weight_bytes, [60] * 4)


def test_stages_before_the_unknown_one_have_whole_numbers():
    students = [nn.Linear(4, 3), nn.Linear(4, 3), Transform()]
    with pytest.warns(CostsUnknownWarning):
        costs = stage_costs(FakeEnsemble(students), torch.zeros(2, 4))
    assert costs.macs.dtype == np.float64
    assert_costs(costs[:2], [12, 12], [15, 15])
    assert_array_equal(costs[1:].macs, [12, np.nan])


@pytest.mark.parametrize("fails", [False, True])
def test_ensemble_is_left_as_it_was(fails):
    students = [nn.Sequential(nn.Linear(4, 3), nn.Dropout()), nn.Linear(4, 3)]
    ensemble = FakeEnsemble([*students, Fails()] if fails else students)
    ensemble.students[0].eval()
    before = state_of(ensemble)
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            stage_costs(ensemble, torch.zeros(2, 4))
    else:
        stage_costs(ensemble, torch.zeros(2, 4))
    assert state_of(ensemble) == before
    assert torch.is_grad_enabled()


# In a fit


class WithAuxiliaryHead(nn.Module):
    def __init__(self, input_shape):
        super().__init__()
        self.layer = nn.Linear(*input_shape, 5)
        self.auxiliary = nn.Linear(5, 2)

    def forward(self, x):
        features = torch.relu(self.layer(x))
        if self.training:
            self.seen = self.auxiliary(features)
        return features


class LinearOfItsOwn(nn.Linear):
    def __init__(self, input_shape):
        super().__init__(*input_shape, 5)

    def forward(self, x):
        return torch.relu(super().forward(x))


def parametrized(how, input_shape):
    return nn.Sequential(how(nn.Linear(*input_shape, 5)), nn.ReLU())


def by_function(input_shape):
    return Call(
        nn.Linear(*input_shape, 5),
        lambda layer, x: torch.relu(F.linear(x, layer.weight, layer.bias)),
    )


def small(estimator=BDistilRegressor, **options):
    return estimator(
        **{
            "teacher": nn.Linear(4, 3),
            "n_estimators": 2,
            "connection": None,
            "max_epochs": 1,
            "edge_tol": np.inf,
            "random_state": 0,
            **options,
        }
    )


def rows(*shape):
    return np.random.RandomState(0).randn(20, *shape).astype(np.float32)


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (WithAuxiliaryHead, 4 * 5),
        (LinearOfItsOwn, 4 * 5),
        (by_function, 4 * 5),
        (partial(parametrized, parametrizations.weight_norm), 4 * 5),
        (partial(parametrized, parametrizations.spectral_norm), 2 * 4 * 5 + 5),
    ],
)
def test_students_of_all_kinds_are_fitted_and_counted(student, expected):
    reg = small(student=student).fit(rows(4))
    assert_array_equal(reg.stage_costs_.macs, [expected + 5 * 3] * 2)
    assert reg.teacher_costs_ == Costs(12, 15, 60)


def test_student_with_positions_and_a_class_token_is_fitted_and_counted():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(15, 3))
    reg = small(teacher=teacher, student=PositionalEmbedding).fit(rows(5, 3))
    expected = macs(PositionalEmbedding((5, 3)), 1, 5, 3) + 8 * 3
    assert_array_equal(reg.stage_costs_.macs, [expected] * 2)


def opaque(input_shape):
    """A student that needs data to decide what it runs."""
    return nn.Sequential(DecidesByData(), nn.ReLU())


def stated(reg):
    return 100.0 * np.arange(1, len(reg) + 1)


def test_students_that_cannot_be_counted_are_fitted():
    reg = small(student=[opaque, partial(MLP, hidden=(5,))])
    with pytest.warns(CostsUnknownWarning, match=r"stage\(s\) 1, 2, since") as caught:
        reg.fit(rows(4))
    assert len(caught) == 1
    assert_array_equal(reg.stage_costs_.macs, [np.nan, np.nan])
    assert reg.predict(rows(4)).shape == (20, 3)
    # A budget in this unit is one that nobody knows.
    match = (
        "The costs of BDistilRegressor in 'macs' are not known: the operations of "
        "stage 1 could not be counted. Use another unit, such as 'latency', or a "
        "callable"
    )
    with pytest.raises(ValueError, match=match):
        stage_cost(reg)
    with pytest.raises(ValueError, match=match):
        reg.stage_for(1000)
    with pytest.raises(ValueError, match="Number 1 is not known, like operations"):
        stage_cost(reg, lambda reg: reg.stage_costs_.cumulative_macs)
    # In another one, or as the user states it, there are budgets.
    assert reg.stage_for(1000, unit="weight_bytes") == 2
    assert reg.stage_for(150, unit=stated) == 1


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_early_exit_with_costs_that_the_user_states():
    X, y = rows(4), np.arange(20) % 3
    clf = small(BDistilClassifier, student=opaque)
    with pytest.warns(CostsUnknownWarning):
        clf.fit(X, y)
    frozen = FrozenEstimator(clf)
    with pytest.raises(ValueError, match="in 'macs' are not known: the operations of"):
        EarlyExitClassifier(frozen).fit(X, y)
    early = EarlyExitClassifier(frozen, cost=stated).fit(X, y)
    assert_array_equal(early.costs_, [100, 200])
    # All stages are run that the time allows.
    assert_array_equal(early.predict_within(X, 1e9), clf.predict(X))
    assert_array_equal(early.predict_within(X, 1e-9), clf[:1].predict(X))


class Warned(nn.Linear):
    def forward(self, x):
        warnings.warn("This layer is deprecated.", FutureWarning)
        return super().forward(x)


def test_network_that_warns_is_counted_whatever_is_done_with_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module_costs(Warned(4, 3), torch.zeros(1, 4)).macs == 12


def widths(reg):
    """Features of the backbones of an ensemble."""
    return [student.head.in_features for student in reg.ensemble_.students]


def test_auto_students_of_a_teacher_that_cannot_be_counted_are_the_default():
    reg = small(teacher=DecidesByData(), student="auto")
    match = "The operations of DecidesByData could not be counted.* pass them as 'macs'"
    with pytest.warns(CostsUnknownWarning, match=match) as caught:
        reg.fit(rows(4))
    assert len(caught) == 1
    assert reg.teacher_costs_ == Costs(None, 15, 60)
    # As for a teacher that has no such costs.
    scores = rows(3)
    default = small(teacher="precomputed", student="auto")
    assert widths(reg) == widths(default.fit(rows(4), teacher_scores=scores))
    # Of a teacher whose cost is stated, they are a share.
    teacher = TorchTeacher(DecidesByData(), macs=500)
    reg = small(teacher=teacher, student="auto").fit(rows(4))
    assert reg.teacher_costs_ == Costs(500, 15, 60)
    assert widths(reg) < widths(default)
    assert reg.stage_costs_.cumulative_macs[-1] <= 500 / 2


class UnknownConnection(Connection):
    def forward(self, features, earlier):
        return features + torch.fft.fft(earlier[0]).real


def test_auto_students_that_cannot_be_counted_are_the_default():
    reg = small(teacher=nn.Linear(4, 3), student="auto", connection=UnknownConnection)
    with pytest.warns(CostsUnknownWarning, match=r"stage\(s\) 2, since") as caught:
        reg.fit(rows(4))
    assert len(caught) == 1
    default = small(teacher="precomputed", student="auto")
    assert widths(reg) == widths(default.fit(rows(4), teacher_scores=rows(3)))
