import gc
import itertools
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.dummy import DummyClassifier
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from skbdistil import BDistilRegressor, TorchTeacher
from skbdistil import costs as costs_module
from skbdistil.costs import (
    Costs,
    Latency,
    StageCosts,
    compare_latencies,
    measure_latency,
    module_costs,
    stage_costs,
)
from skbdistil.ensemble import Lateral, ProgressiveEnsemble
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


# Formulas, by hand


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
        lambda encoder, x: encoder(x, src_key_padding_mask=mask),
    )
    assert macs(padded, 2, 5, 6) == 3 * expected
    assert torch.backends.mha.get_fastpath_enabled()


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


# What is refused


def refused(module, x, match):
    with pytest.raises(ValueError, match=match):
        module_costs(module, x)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))
        self.register_parameter("offset", None)

    def forward(self, x):
        return self.factor * x


def test_parameters_without_a_formula():
    x = torch.zeros(1, 4)
    refused(Scale(), x, r"of Scale cannot be counted: it has .* its own \(factor\)")
    nested = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Scale()))
    refused(nested, x, r"Scale at '1.0'")
    # Not a leaf either.
    scale = Scale()
    scale.layer = nn.Linear(4, 4)
    refused(scale, x, "Scale")
    # Even where it does not run.
    refused(Call(nn.ModuleList([Scale()]), lambda layers, x: x), x, r"at 'layer.0'")


def test_subclass_with_another_forward():
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(super().forward(x))

    refused(
        nn.Sequential(Twice(4, 4)), torch.zeros(1, 4), r"Twice at '0'.*weight, bias"
    )


def test_instance_with_another_forward():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x
    refused(layer, torch.zeros(1, 4), "Linear cannot be counted")


def test_uninitialised_layer():
    network = nn.Sequential(nn.LazyLinear(3))
    refused(network, torch.zeros(1, 4), "LazyLinear at '0' are not initialised")
    assert nn.parameter.is_lazy(network[0].weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "convert",
    [torch.jit.script, lambda module: torch.jit.trace(module, torch.zeros(1, 4))],
)
def test_scripted_module(convert):
    network = nn.Sequential(nn.ReLU(), convert(nn.Linear(4, 3)))
    refused(network, torch.zeros(1, 4), "at '1' cannot be counted, because scripted")


def test_compiled_module():
    x = torch.zeros(1, 4)
    layer = nn.Linear(4, 3)
    refused(
        nn.Sequential(torch.compile(layer, backend="eager")),
        x,
        r"at '0' .* it is compiled",
    )
    layer.compile(backend="eager")
    refused(layer, x, "Linear cannot be counted, because it is compiled")


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


def test_a_network_whose_weights_a_function_uses_is_no_zero():
    message = (
        "The operations of Functional cannot be counted: none of its layers was "
        "called, such as its Linear."
    )
    refused(Functional(), torch.zeros(1, 4), re.escape(message))
    # It is told by the layers that it calls.
    assert macs(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), 1, 4) == 16
    assert macs(Call(nn.LayerNorm(4), lambda norm, x: x), 1, 4) == 0


def test_teacher_that_cannot_be_counted():
    X = np.random.RandomState(0).randn(20, 4).astype(np.float32)
    reg = BDistilRegressor(
        Functional(),
        student=partial(MLP, hidden=(2,)),
        n_estimators=1,
        max_epochs=1,
        edge_tol=np.inf,
    )
    assert reg.fit(X).teacher_costs_ is None


def test_rows_that_differ_in_cost():
    network = Call(nn.Linear(4, 3), lambda layer, x: layer(x[:1]))
    assert macs(network, 1, 4) == 12
    refused(network, torch.zeros(5, 4), "5 rows differ in cost: 12 multiply")


# What is left behind


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("fastpath", [False, True])
def test_everything_is_restored(fails, fastpath):
    network = nn.Sequential(
        nn.Linear(4, 4),
        nn.BatchNorm1d(4).eval(),
        nn.Dropout(),
        Fails() if fails else nn.Identity(),
    )
    network[0].register_forward_hook(lambda *args: seen.append(torch.is_grad_enabled()))
    seen = []
    flags = [module.training for module in network.modules()]
    hooks = [dict(module._forward_hooks) for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fastpath)
    try:
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                module_costs(network, torch.ones(2, 4))
        else:
            module_costs(network, torch.ones(2, 4))
        assert torch.backends.mha.get_fastpath_enabled() == fastpath
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert seen == [False]
    assert torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == flags
    assert [dict(module._forward_hooks) for module in network.modules()] == hooks
    for module in network.modules():
        assert len(module._forward_hooks_with_kwargs) == 0
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


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


@pytest.mark.parametrize("n_rows", [1, 2, 7])
def test_connections_belong_to_their_stage(n_rows):
    normalised = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    ensemble = FakeEnsemble(
        [nn.Linear(4, 3) for _ in range(3)],
        connections=[nn.Linear(6, 3), normalised],
    )
    costs = stage_costs(ensemble, torch.zeros(n_rows, 4))
    assert_costs(
        costs,
        [12, 12 + 18, 12 + 18],
        [15, 15 + 21, 15 + 12 + 21],
        buffer_bytes=[0, 0, 4 * 12 + 8],
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
        parameters=3 * 2 * 3 + 2 * 3 + 4 * 3 * 3 + 2 * 4 + (4 * 2) * 4 + 4,
        buffer_bytes=4 * (2 * 3 + 2 * 4) + 2 * 8,
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
        parameters=2 * 9 + 2 * 2 + 3 * 2 * 9 + 2 * 3 + (3 * 4) * 5 + 5,
        buffer_bytes=4 * (2 * 2 + 2 * 3) + 2 * 8,
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
        ("residual", [0, 1, 2]),
        ("last", [0, 1, 1]),
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
        buffer_bytes=backbone.buffer_bytes,
        activation_bytes=0 if connection is None else 4 * d,
    )
    assert_sums_to_the_whole(costs, ensemble, x)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    ("connection", "n_read"), [("lateral", [0, 1, 2]), (Lateral("last"), [0, 1, 1])]
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
        buffer_bytes=backbone.buffer_bytes,
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
        activation_bytes=[4 * (5 + 4), 4 * 4, 4 * 4],
    )
    assert_sums_to_the_whole(costs, ensemble, x)


def test_depthwise_convolutions():
    factory = partial(ConvNet2d, channels=(4,), separable=True, n_features=3)
    ensemble = three_students(factory, (2, 8, 6), None)
    # Each of 2 channels by itself, then across: 4 x 3 pixels.
    macs = (2 * 12) * 9 + (4 * 12) * 2 + (4 * 4) * 3 + 3 * 3
    parameters = 2 * 9 + 4 * 2 + 2 * 4 + ((4 * 4) * 3 + 3) + (3 * 3 + 3)
    costs = stage_costs(ensemble, torch.zeros(1, 2, 8, 6))
    assert_costs(costs, [macs] * 3, [parameters] * 3, buffer_bytes=4 * 2 * 4 + 8)


def test_lstm_students():
    ensemble = three_students(partial(RecurrentNet, cell="lstm"), (7, 5), None)
    macs = 7 * 4 * (16 * 5 + 16 * 16) + 16 * 3
    parameters = 4 * (16 * 5 + 16 * 16 + 2 * 16) + 16 * 3 + 3
    costs = stage_costs(ensemble, torch.zeros(1, 7, 5))
    assert_costs(costs, [macs] * 3, [parameters] * 3)


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
        buffer_bytes=[4 * (6 + 6 + 3 + 3), 0, 0],
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


@pytest.mark.parametrize("connection", [None, "residual", "lateral"])
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


def test_stages_of_an_unknown_type():
    ensemble = FakeEnsemble([nn.Linear(4, 3), Scale()])
    with pytest.raises(ValueError, match=r"Scale at 'students.1'"):
        stage_costs(ensemble, torch.zeros(1, 4))


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


def test_a_stage_whose_weights_a_function_uses_is_no_zero():
    with pytest.raises(ValueError, match=r"Linear at 'students\.0\.layer' cannot be"):
        stage_costs(FakeEnsemble([Functional()]), torch.zeros(1, 4))


# Time


class Clock:
    """Stands still unless it is told to move on."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def takes(self, seconds):
        """Callable that takes the next of these times in each call."""
        seconds = iter(seconds)

        def predict(batch):
            self.now += next(seconds)

        return predict


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(costs_module, "time", clock)
    return clock


def test_percentiles(clock):
    # 1 to 11 s, of which two repeats lie below the 10th percentile or at it
    seconds = np.random.RandomState(0).permutation(np.arange(1.0, 12.0))
    latency = measure_latency(
        clock.takes(seconds), np.zeros((3, 1)), n_warmup=0, n_repeats=11
    )
    assert (latency.median, latency.low, latency.high) == (6.0, 2.0, 10.0)


def test_time_is_given_per_sample(clock):
    latency = measure_latency(
        clock.takes([8.0] * 4), np.zeros((9, 1)), batch_size=4, n_warmup=1, n_repeats=3
    )
    assert (latency.median, latency.low, latency.high) == (2.0, 2.0, 2.0)


def test_calls_for_warming_up_are_not_timed(clock):
    slow_start = clock.takes([100.0, 50.0, 1.0, 1.0, 1.0])
    latency = measure_latency(slow_start, np.zeros((3, 1)), n_warmup=2, n_repeats=3)
    assert latency.high == 1.0


@given(
    seconds=st.lists(st.floats(0, 1e3), min_size=1, max_size=30),
    batch_size=st.integers(1, 5),
)
def test_percentiles_are_in_order(seconds, batch_size):
    clock = Clock()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(costs_module, "time", clock)
        latency = measure_latency(
            clock.takes(seconds),
            np.zeros((5, 1)),
            batch_size=batch_size,
            n_warmup=0,
            n_repeats=len(seconds),
        )
    assert latency.low <= latency.median <= latency.high
    # The clock adds and subtracts, so that its steps are rounded.
    assert min(seconds) - 1e-9 <= latency.low * batch_size
    assert latency.high * batch_size <= max(seconds) + 1e-9


def test_several_take_turns(clock):
    calls = []

    def takes(name, seconds):
        predict = clock.takes(seconds)

        def named(batch):
            calls.append((name, batch[0, 0]))
            predict(batch)

        return named

    X = np.arange(3.0).reshape(-1, 1)
    latencies = compare_latencies(
        [takes("a", [9.0, 1.0, 2.0]), takes("b", [9.0, 10.0, 20.0])],
        X,
        n_warmup=1,
        n_repeats=2,
    )
    # Both see the same rows, one after the other.
    assert calls == [(name, row) for row in range(3) for name in "ab"]
    assert [latency.median for latency in latencies] == [1.5, 15.0]


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "expected"),
    [
        (3, 1, [[0], [1], [2], [0], [1], [2], [0]]),
        (4, 2, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]),
        # Rows from the start fill the last batch.
        (5, 2, [[0, 1], [2, 3], [4, 0], [0, 1], [2, 3], [4, 0], [0, 1]]),
        (3, 3, [[0, 1, 2]] * 7),
        (9, 1, [[0], [1], [2], [3], [4], [5], [6]]),
    ],
)
@pytest.mark.parametrize("n_warmup", [0, 2, 6])
def test_rows_of_the_batches(n_samples, batch_size, expected, n_warmup):
    seen = []
    X = np.arange(n_samples).reshape(-1, 1)
    measure_latency(
        lambda batch: seen.append(batch.ravel().tolist()),
        X,
        batch_size=batch_size,
        n_warmup=n_warmup,
        n_repeats=7 - n_warmup,
    )
    assert seen == expected


class OnCuda(nn.Module):
    """Says that it is on a device that this machine may not have."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device("cuda:1"))

    def forward(self, x):
        self.call(x)


class Stays(torch.Tensor):
    """Rows that need no such device."""

    def to(self, device):
        return self


@pytest.mark.parametrize(
    ("wrap", "device"),
    [
        (lambda call: call, None),
        (lambda call: Call(nn.Linear(1, 1), lambda layer, x: call(x)), None),
        (OnCuda, torch.device("cuda:1")),
    ],
    ids=["callable", "module on the CPU", "module on CUDA"],
)
@pytest.mark.parametrize("accelerators", [{"cuda"}, {"mps"}, {"cuda", "mps"}, set()])
def test_accelerators_are_waited_for(monkeypatch, wrap, device, accelerators):
    events = []
    clock = SimpleNamespace(perf_counter=lambda: events.append("clock") or 0.0)
    monkeypatch.setattr(costs_module, "time", clock)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: "cuda" in accelerators)
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    monkeypatch.setattr(
        torch.backends.mps, "is_available", lambda: "mps" in accelerators
    )
    monkeypatch.setattr(torch.mps, "synchronize", lambda: events.append("mps"))
    rows = torch.zeros(2, 1).as_subclass(Stays)
    latency = measure_latency(
        wrap(lambda batch: events.append("call")), rows, n_warmup=1, n_repeats=2
    )
    waits = [device] * ("cuda" in accelerators) + ["mps"] * ("mps" in accelerators)
    # Also before the first reading: what was queued earlier is not timed.
    assert events == 3 * [*waits, "clock", "call", *waits, "clock"]
    if device is not None:
        assert latency.device == str(device)


def test_what_a_latency_tells():
    latency = measure_latency(
        nn.Linear(4, 2), np.zeros((9, 4)), batch_size=3, n_threads=1
    )
    assert isinstance(latency, Latency)
    assert (latency.batch_size, latency.n_repeats) == (3, 50)
    assert latency.n_threads == 1
    assert (latency.device, latency.what) == ("cpu", "Linear")
    assert 0 < latency.low <= latency.median <= latency.high
    for name in ("median", "low", "high"):
        assert type(getattr(latency, name)) is float


def named(batch):
    pass


class Named:
    def __call__(self, batch):
        pass


@pytest.mark.parametrize(
    ("predict", "what"),
    [
        (DummyClassifier().fit([[0.0]], [1]).predict, "DummyClassifier.predict"),
        (named, "named"),
        (Named(), "Named"),
        (partial(named), "partial"),
    ],
)
def test_callables_are_not_asked_for_their_device(predict, what):
    latency = measure_latency(predict, np.zeros((3, 1)), n_warmup=0, n_repeats=1)
    assert (latency.what, latency.device) == (what, None)


def test_latency_as_text():
    latency = Latency(2.5e-3, 1e-3, 4e-3, 8, 20, 1, "cuda:0", "MLP")
    assert str(latency) == (
        "MLP on cuda:0: 2.5 ms per sample (10 % to 90 %: 1 to 4 ms), 20 calls with "
        "8 row(s), up to 1 thread(s)"
    )
    unplaced = Latency(2.5e-3, 1e-3, 4e-3, 8, 20, 1, None, "predict")
    assert str(unplaced).startswith("predict: 2.5 ms")


def blas_and_openmp_threads():
    return [(lib["filepath"], lib["num_threads"]) for lib in threadpool_info()]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    with threadpool_limits(2):
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_limited_during_the_measurement(fails):
    seen = []

    def predict(batch):
        seen.append((torch.get_num_threads(), blas_and_openmp_threads()))
        if fails:
            raise RuntimeError("on purpose")

    before = blas_and_openmp_threads()
    measure = partial(
        measure_latency, predict, np.zeros((3, 1)), n_repeats=1, n_threads=1
    )
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            measure()
    else:
        assert measure().n_threads == 1
    for torch_threads, libraries in seen:
        assert torch_threads == 1
        assert {n_threads for _, n_threads in libraries} <= {1}
    assert torch.get_num_threads() == 2
    assert blas_and_openmp_threads() == before


@pytest.mark.usefixtures("two_threads")
def test_threads_are_left_as_they_are():
    seen = []
    latency = measure_latency(
        lambda batch: seen.append(torch.get_num_threads()), np.zeros((3, 1))
    )
    assert set(seen) == {2}
    assert latency.n_threads == 2


@pytest.mark.parametrize(
    ("pools", "expected"), [([3, 5], 5), ([1], 2), ([], 2)], ids=str
)
@pytest.mark.usefixtures("two_threads")
def test_threads_are_those_of_torch_or_of_a_library(monkeypatch, pools, expected):
    monkeypatch.setattr(
        costs_module,
        "threadpool_info",
        lambda: [{"num_threads": n_threads} for n_threads in pools],
    )
    latency = measure_latency(named, np.zeros((3, 1)), n_repeats=1)
    assert latency.n_threads == expected


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_garbage_collector_rests(enabled, fails):
    seen = []

    def predict(batch):
        seen.append(gc.isenabled())
        if fails:
            raise RuntimeError("on purpose")

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                measure_latency(predict, np.zeros((3, 1)))
        else:
            measure_latency(predict, np.zeros((3, 1)))
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert set(seen) == {False}
    assert after == enabled


class Observed(nn.Module):
    """Records what it is called with."""

    def __init__(self, dtype=torch.float32, fails=False):
        super().__init__()
        self.layer = nn.Linear(4, 2, dtype=dtype)
        self.norm = nn.BatchNorm1d(2, dtype=dtype).eval()
        self.fails = fails
        self.seen = []

    def forward(self, x):
        self.seen.append((x, self.training or self.layer.training))
        assert torch.is_inference_mode_enabled()
        if self.fails:
            raise RuntimeError("on purpose")
        return self.norm(self.layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda rows: np.asarray(rows, dtype=np.float32),
        lambda rows: np.asarray(rows, dtype=np.int64),
        list,
    ],
)
def test_modules_get_tensors_of_their_dtype(dtype, convert):
    module = Observed(dtype)
    rows = np.arange(12.0).reshape(3, 4)
    measure_latency(module, convert(rows), batch_size=2, n_warmup=0, n_repeats=2)
    for (x, _), expected in zip(module.seen, [rows[:2], rows[[2, 0]]], strict=True):
        assert x.dtype == dtype
        assert x.device == torch.device("cpu")
        assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("network", [nn.Linear(4, 2), nn.Identity()])
def test_tensors_keep_their_dtype(network, dtype):
    seen = []
    module = Call(network, lambda layer, x: seen.append(x))
    rows = torch.arange(12).reshape(3, 4).to(dtype)
    measure_latency(module, rows, n_warmup=0, n_repeats=3)
    assert {x.dtype for x in seen} == {dtype}
    assert_array_equal(torch.cat(seen).numpy(), rows.numpy())


def test_embedding_gets_indices():
    rows = torch.arange(8).reshape(2, 4)
    module = nn.Sequential(nn.Embedding(8, 3), nn.Flatten(), nn.Linear(12, 2))
    assert measure_latency(module, rows, n_repeats=2).median > 0


def test_modules_without_parameters_get_single_precision():
    seen = []
    module = Call(nn.Identity(), lambda layer, x: seen.append(x.dtype))
    assert measure_latency(module, np.zeros((3, 4))).device == "cpu"
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_restored(fails):
    module = Observed(fails=fails)
    flags = [part.training for part in module.modules()]
    assert set(flags) == {False, True}
    measure = partial(compare_latencies, [module, module], np.zeros((3, 4)))
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            measure()
    else:
        measure()
    assert not any(training for _, training in module.seen)
    assert [part.training for part in module.modules()] == flags


def test_frames_stay_frames():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]})
    seen = []
    measure_latency(seen.append, X, batch_size=2, n_warmup=0, n_repeats=2)
    pandas.testing.assert_frame_equal(seen[0], X.iloc[[0, 1]])
    pandas.testing.assert_frame_equal(seen[1], X.iloc[[2, 0]])
    # A module gets the numbers.
    module = Observed()
    numbers = pandas.DataFrame(np.arange(12.0).reshape(3, 4))
    measure_latency(module, numbers, n_warmup=0, n_repeats=1)
    assert_array_equal(module.seen[0][0].numpy(), [[0.0, 1.0, 2.0, 3.0]])


@pytest.mark.parametrize("measure", [measure_latency, compare_latencies])
@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"batch_size": 0}, r"'batch_size' must be an int from 1 to 3\. Got 0"),
        ({"batch_size": 4}, r"'batch_size' must be an int from 1 to 3\. Got 4"),
        ({"batch_size": 1.0}, r"'batch_size' must be an int from 1 to 3\. Got 1\.0"),
        ({"n_warmup": -1}, r"'n_warmup' must be an int at least 0\. Got -1 instead\."),
        ({"n_warmup": None}, r"'n_warmup' must be an int at least 0\. Got None"),
        ({"n_repeats": 0}, r"'n_repeats' must be an int at least 1\. Got 0 instead\."),
        ({"batch_size": True}, r"'batch_size' must be an int from 1 to 3\. Got True"),
        ({"n_threads": 0}, r"'n_threads' must be an int from 1 to \d+\. Got 0 instead"),
        ({"n_threads": "1"}, r"'n_threads' must be an int from 1 to \d+\. Got '1'"),
        ({"n_threads": 2**40}, r"'n_threads' must be an int from 1 to \d+\. Got 10995"),
        ({"n_threads": 10**6}, r"'n_threads' must be an int from 1 to \d+\. Got 10000"),
    ],
)
def test_numbers_out_of_range(measure, parameters, match):
    predict = named if measure is measure_latency else [named]
    with pytest.raises(ValueError, match=match):
        measure(predict, np.zeros((3, 1)), **parameters)


def test_integers_of_numpy():
    one = np.int64(1)
    latency = measure_latency(
        named,
        np.zeros((3, 1)),
        batch_size=one,
        n_warmup=one,
        n_repeats=one,
        n_threads=one,
    )
    assert (latency.batch_size, latency.n_repeats, latency.n_threads) == (1, 1, 1)


@pytest.mark.parametrize("what", [DummyClassifier(), "predict", None])
def test_what_cannot_be_called(what):
    message = (
        "must be a callable, such as the method `predict` of an estimator, or a "
        f"module. Got {what!r} instead."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        measure_latency(what, np.zeros((3, 1)))
    with pytest.raises(TypeError, match=re.escape(message)):
        compare_latencies([named, what], np.zeros((3, 1)))


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="'predicts' is empty; give at least one"):
        compare_latencies([], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="'X' has no rows to measure with"):
        measure_latency(named, np.zeros((0, 1)))
