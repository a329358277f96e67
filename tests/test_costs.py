import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from skbdistil.costs import Costs, StageCosts, module_costs, stage_costs


class Call(nn.Module):
    """Calls `layer` with a function of the rows, to reach its other arguments."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, *inputs):
        return self.call(self.layer, *inputs)


def macs(module, *shape):
    return module_costs(module, torch.zeros(shape)).macs


# Formulas, by hand


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer = nn.Linear(4, 3, bias=bias)
    assert module_costs(layer, torch.zeros(2, 4)) == Costs(4 * 3, 4 * 3 + 3 * bias)
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
    assert module_costs(nn.Embedding(10, 3), indices) == Costs(0, 30)
    assert module_costs(nn.EmbeddingBag(10, 3), indices) == Costs(0, 30)
    weighted = Call(
        nn.EmbeddingBag(10, 3, mode="sum"),
        lambda bag, indices: bag(indices, per_sample_weights=torch.ones(2, 4)),
    )
    # 4 weighted lookups of 3 numbers
    assert module_costs(weighted, indices) == Costs(4 * 3, 30)


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
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm2d(4), (4, 3, 3)),
        (nn.BatchNorm3d(4), (4, 3, 3, 3)),
        (nn.SyncBatchNorm(4), (4, 3)),
        (nn.InstanceNorm1d(4, affine=True), (4, 3)),
        (nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
        (nn.InstanceNorm3d(4, affine=True), (4, 3, 3, 3)),
        (nn.LayerNorm(4), (4,)),
        (nn.GroupNorm(2, 4), (4, 3)),
        (nn.RMSNorm(4), (4,)),
        (nn.PReLU(4), (4,)),
        (nn.ReLU(), (4,)),
        (nn.AvgPool1d(2), (4, 4)),
    ],
)
def test_elementwise_layers_are_left_out(layer, shape):
    n_parameters = sum(p.numel() for p in layer.parameters())
    assert module_costs(layer, torch.zeros(2, *shape)) == Costs(0, n_parameters)


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
    assert module_costs(nn.Sequential(layer, layer), torch.zeros(1, 4)) == Costs(32, 20)
    # Tied: two layers, one weight.
    other = nn.Linear(4, 4)
    other.weight = layer.weight
    assert module_costs(nn.Sequential(layer, other), torch.zeros(1, 4)) == Costs(32, 24)


def test_layers_that_do_not_run_have_parameters_only():
    network = Call(
        nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2)), lambda f, x: f[0](x)
    )
    assert module_costs(network, torch.zeros(1, 4)) == Costs(12, 15 + 10)


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
        self.ensemble, self.x, self.scores = ensemble, x, []

    def step(self):
        t = len(self.scores)
        scores = self.ensemble.students[t](self.x)
        if t and self.ensemble.connections:
            joined = torch.cat([scores, self.scores[-1]], dim=1)
            scores = self.ensemble.connections[t - 1](joined)
        self.scores.append(scores)
        return torch.stack(self.scores).mean(dim=0)


def assert_costs(costs, macs, parameters):
    assert_array_equal(costs.macs, macs)
    assert_array_equal(costs.parameters, parameters)
    assert costs.macs.dtype == costs.parameters.dtype == np.int64


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
    assert_costs(costs, [12, 20 + 15, 12], [15, 25 + 10 + 18, 15])
    assert all(module.training for module in ensemble.modules())


def test_connections_belong_to_their_stage():
    ensemble = FakeEnsemble(
        [nn.Linear(4, 3) for _ in range(3)],
        connections=[nn.Linear(6, 3), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))],
    )
    costs = stage_costs(ensemble, torch.zeros(2, 4))
    assert_costs(costs, [12, 12 + 18, 12 + 18], [15, 15 + 21, 15 + 12 + 21])
    n_parameters = sum(p.numel() for p in ensemble.parameters())
    assert costs.cumulative_parameters[-1] == n_parameters


def test_what_starts_belongs_to_the_first_stage():
    students = [nn.Linear(4, 3) for _ in range(2)]
    costs = stage_costs(FakeEnsemble(students, stem=nn.Linear(6, 4)), torch.zeros(2, 6))
    assert_costs(costs, [24 + 12, 12], [28 + 15, 15])


def test_shared_parameters_belong_to_their_first_stage():
    block = nn.Linear(4, 4)
    students = [nn.Sequential(block, nn.Linear(4, 3)) for _ in range(2)]
    # Run again, but not stored again.
    costs = stage_costs(FakeEnsemble(students), torch.zeros(1, 4))
    assert_costs(costs, [16 + 12, 16 + 12], [20 + 15, 15])


def test_stages_of_an_unknown_type():
    ensemble = FakeEnsemble([nn.Linear(4, 3), Scale()])
    with pytest.raises(ValueError, match=r"Scale at 'students.1'"):
        stage_costs(ensemble, torch.zeros(1, 4))


def test_no_stages():
    costs = stage_costs(FakeEnsemble([]), torch.zeros(1, 4))
    assert_costs(costs, [], [])
    assert len(costs) == 0


@given(
    macs=st.lists(st.integers(0, 2**40), max_size=6),
    stages=st.slices(6),
)
def test_cumulative_and_sliced(macs, stages):
    macs = np.array(macs, dtype=np.int64)
    costs = StageCosts(macs=macs, parameters=macs + 1)
    assert len(costs) == len(macs)
    assert_array_equal(np.diff(costs.cumulative_macs, prepend=0), costs.macs)
    assert_array_equal(
        np.diff(costs.cumulative_parameters, prepend=0), costs.parameters
    )
    assert_costs(costs[stages], macs[stages], macs[stages] + 1)
    for k in range(len(macs) + 1):
        assert_array_equal(costs[:k].cumulative_macs, costs.cumulative_macs[:k])


def test_indexed_with_slices_only():
    costs = StageCosts(macs=np.array([1, 2]), parameters=np.array([3, 4]))
    with pytest.raises(TypeError, match=r"StageCosts is indexed with a slice.* got 0"):
        costs[0]


def test_a_layer_whose_weights_a_function_uses_is_no_zero():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight)

    class State:
        def __init__(self, students, x):
            self.students, self.x = iter(students), x

        def step(self):
            return next(self.students)(self.x)

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.students = nn.ModuleList([Functional()])

        def start(self, x):
            return State(self.students, x)

    with pytest.raises(ValueError, match=r"Linear at 'students\.0\.layer' cannot be"):
        stage_costs(Ensemble(), torch.zeros(1, 4))
