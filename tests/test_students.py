"""Backbones, the "auto" choice and the class ladder."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from skbdistil.costs import module_costs
from skbdistil.students import (
    MLP,
    Backbone,
    ConvNet1d,
    ConvNet2d,
    RecurrentNet,
    _auto_students,
    _check_ladder,
    _grid_pool,
    _PooledFeatures,
)

# Factory, shape of a row, multiply-accumulates per row and parameters by hand.
# Convolutions: output positions * output channels * (input channels / groups) *
# kernel; batch normalisation has two parameters per channel and feature.
COUNTED = {
    "mlp": (partial(MLP, hidden=(5, 4)), (7,), 7 * 5 + 5 * 4, 35 + 5 + 20 + 4),
    "mlp_flattened": (partial(MLP, hidden=(5,)), (2, 3), 6 * 5, 30 + 5),
    "conv2d": (
        # 9 x 7 -> 5 x 4 -> 3 x 2, pooled to 2 x 2.
        partial(ConvNet2d, channels=(4, 6), n_features=5),
        (3, 9, 7),
        20 * 4 * 3 * 9 + 6 * 6 * 4 * 9 + 4 * 6 * 5,
        4 * 3 * 9 + 2 * 4 + 6 * 4 * 9 + 2 * 6 + 4 * 6 * 5 + 2 * 5,
    ),
    "conv2d_separable": (
        partial(ConvNet2d, channels=(4, 6), n_features=5, separable=True),
        (3, 9, 7),
        20 * (3 * 9 + 4 * 3) + 6 * (4 * 9 + 6 * 4) + 4 * 6 * 5,
        3 * 9 + 4 * 3 + 2 * 4 + 4 * 9 + 6 * 4 + 2 * 6 + 4 * 6 * 5 + 2 * 5,
    ),
    "conv2d_gray": (
        # 6 x 6, kernel 5, stride 1: the map keeps its size.
        partial(ConvNet2d, channels=(2,), kernel_size=5, stride=1),
        (6, 6),
        36 * 2 * 25 + 4 * 2 * 2,
        2 * 25 + 2 * 2 + 4 * 2 * 2 + 2 * 2,
    ),
    "conv1d": (
        # 10 -> 5 -> 3 steps, pooled to 2.
        partial(ConvNet1d, channels=(4, 6)),
        (10, 3),
        5 * 4 * 3 * 5 + 3 * 6 * 4 * 5 + 2 * 6 * 6,
        4 * 3 * 5 + 2 * 4 + 6 * 4 * 5 + 2 * 6 + 2 * 6 * 6 + 2 * 6,
    ),
    "conv1d_separable": (
        partial(ConvNet1d, channels=(4,), kernel_size=3, separable=True),
        (10, 3),
        5 * (3 * 3 + 4 * 3) + 2 * 4 * 4,
        3 * 3 + 4 * 3 + 2 * 4 + 2 * 4 * 4 + 2 * 4,
    ),
    "gru": (
        # Three gates read the input and the hidden state, with two biases each.
        partial(RecurrentNet, hidden=(4, 2)),
        (6, 3),
        6 * 3 * (3 * 4 + 4 * 4 + 4 * 2 + 2 * 2),
        3 * (3 * 4 + 4 * 4 + 4 * 2 + 2 * 2) + 3 * 2 * (4 + 2),
    ),
    "lstm": (
        partial(RecurrentNet, hidden=(4,), cell="lstm"),
        (6, 3),
        6 * 4 * (3 * 4 + 4 * 4),
        4 * (3 * 4 + 4 * 4) + 4 * 2 * 4,
    ),
}


@pytest.fixture(params=COUNTED)
def counted(request):
    return COUNTED[request.param]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _trained_looking(module):
    """Give batch normalisation statistics other than those of a fresh layer."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return module


def test_features_have_the_announced_width(counted):
    factory, shape, _, _ = counted
    backbone = factory(shape)
    assert backbone(torch.randn(3, *shape)).shape == (3, backbone.widths[-1])
    assert len(backbone.blocks) == len(backbone.widths)


def test_widths_are_the_channels_of_the_maps(counted):
    factory, shape, _, _ = counted
    backbone = factory(shape)
    maps = backbone.prepare(torch.randn(3, *shape))
    for block, width in zip(backbone.blocks, backbone.widths, strict=True):
        maps = block(maps)
        channel_dim = backbone.channel_dim if maps.ndim > 2 else 1
        assert maps.shape[channel_dim] == width


def test_cost_is_that_of_a_count_by_hand(counted):
    factory, shape, macs, parameters = counted
    costs = module_costs(factory(shape), torch.zeros(2, *shape))
    assert (costs.macs, costs.parameters) == (macs, parameters)


def test_rows_are_independent_in_eval_mode(counted):
    factory, shape, _, _ = counted
    backbone = _trained_looking(factory(shape)).double().eval()
    x = torch.randn(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        features = backbone(x)
        one_by_one = torch.cat([backbone(row[None]) for row in x])
        others = backbone(torch.cat([x[:1], 100 * torch.randn_like(x[1:])]))
    torch.testing.assert_close(one_by_one, features, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(others[0], features[0], rtol=1e-12, atol=1e-12)
    # Not because every row has the same features.
    assert features.std(0).max() > 1e-3


def test_gradients_reach_every_parameter(counted):
    factory, shape, _, _ = counted
    backbone = factory(shape)
    # Summed over many rows, so that no rectifier is closed for all of them.
    backbone(torch.randn(64, *shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


@pytest.mark.parametrize("name", [name for name in COUNTED if "conv" in name])
def test_no_feature_of_convolutions_can_be_driven_out_of_its_range(name):
    """What the rectifier gets is normalised, whatever becomes of the weights."""
    factory, shape, _, _ = COUNTED[name]
    backbone = factory(shape).double()
    (pooled,) = (m for m in backbone.modules() if isinstance(m, _PooledFeatures))
    with torch.no_grad():
        # The maps are positive: without normalisation, all features would be 0.
        pooled[2].weight.copy_(-10 * pooled[2].weight.abs())
    features = backbone(torch.randn(64, *shape, dtype=torch.float64))
    assert (features > 0).any(0).all()


@pytest.mark.parametrize(
    "size", [(1,), (2,), (3,), (7,), (8,), (1, 1), (1, 5), (2, 3), (4, 4), (7, 6)]
)
def test_fixed_pooling_window_is_adaptive_pooling(size):
    maps = torch.randn(2, 3, *size)
    pool, _ = _grid_pool(size)
    cells = tuple(min(2, side) for side in size)
    adaptive = {1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d}
    torch.testing.assert_close(pool(maps), adaptive[len(size)](maps, cells))


@pytest.mark.parametrize("side", range(1, 12))
def test_convolutions_halve_odd_and_even_sides(side):
    for backbone, shape in [
        (ConvNet2d, (1, side, side)),
        (ConvNet1d, (side, 1)),
    ]:
        net = backbone(shape, channels=(2,)).eval()
        maps = net.blocks[0](net.prepare(torch.zeros(2, *shape)))
        assert maps.shape[-1] == (side + 1) // 2


@pytest.mark.parametrize("backbone", [ConvNet1d, ConvNet2d])
def test_separable_convolutions_are_smaller_and_cheaper(backbone):
    shape = (16, 8) if backbone is ConvNet1d else (8, 16, 16)
    x = torch.zeros(1, *shape)
    plain = module_costs(backbone(shape), x)
    separable = module_costs(backbone(shape, separable=True), x)
    assert separable.parameters < plain.parameters
    assert separable.macs < plain.macs


def test_gray_images_need_no_channel_axis():
    gray = ConvNet2d((8, 6), channels=(3,)).eval()
    with_axis = ConvNet2d((1, 8, 6), channels=(3,)).eval()
    with_axis.load_state_dict(gray.state_dict())
    x = torch.randn(4, 8, 6)
    assert torch.equal(gray(x), with_axis(x[:, None]))


def test_conv1d_slides_along_steps():
    """A shift of a sequence by one stride shifts the map by one position."""
    net = ConvNet1d((16, 3), channels=(4,), kernel_size=3, stride=2).eval()
    x = torch.randn(2, 16, 3)
    shifted = torch.roll(x, 2, dims=1)
    first = net.blocks[0]
    before, after = first(net.prepare(x)), first(net.prepare(shifted))
    torch.testing.assert_close(after[:, :, 2:], before[:, :, 1:-1])


@pytest.mark.parametrize(("cell", "layer"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_features_are_the_last_hidden_state(cell, layer):
    net = RecurrentNet((5, 3), hidden=(4, 2), cell=cell)
    x = torch.randn(2, 5, 3)
    hidden = x
    for block in net.blocks:
        assert type(block.rnn) is layer
        hidden, _ = block.rnn(hidden)
    assert torch.equal(net(x), hidden[:, -1])


def test_unknown_cell_is_named():
    with pytest.raises(
        ValueError, match=r"'cell' parameter of RecurrentNet .*\['gru', 'lstm'\].*'rnn'"
    ):
        RecurrentNet((5, 3), cell="rnn")


def test_extra_channels_widen_what_blocks_read():
    net = MLP((7,), hidden=(5, 4, 3), extra=(0, 2, -1))
    assert [block[0].in_features for block in net.blocks] == [7, 7, 3]
    assert [block[0].out_features for block in net.blocks] == [5, 4, 3]


def test_backbone_runs_blocks_of_a_subclass():
    class Two(Backbone):
        def __init__(self, input_shape):
            super().__init__()
            self.widths = (3, 2)
            self.blocks = nn.ModuleList([nn.Linear(input_shape[0], 3), nn.Linear(3, 2)])

    net = Two((4,))
    x = torch.randn(5, 4)
    assert torch.equal(net(x), net.blocks[1](net.blocks[0](x)))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((9,), MLP),
        ((1,), MLP),
        ((20, 3), ConvNet1d),
        ((1, 1), ConvNet1d),
        ((3, 32, 32), ConvNet2d),
        ((1, 8, 5), ConvNet2d),
        ((1, 1, 1), ConvNet2d),
    ],
)
def test_auto_students_suit_the_shape_and_grow_in_cost(shape, kind):
    factories, default = _auto_students(shape)
    assert 0 <= default < len(factories)
    x = torch.randn(2, *shape)
    macs = []
    for factory in factories:
        backbone = factory(shape)
        assert isinstance(backbone, kind)
        assert backbone(x).shape == (2, backbone.widths[-1])
        macs.append(module_costs(backbone, x).macs)
    assert all(a < b for a, b in pairwise(macs))


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 5)])
def test_auto_students_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match=r"student='auto'.*Pass a backbone") as error:
        _auto_students(shape)
    assert f"have shape {shape}" in str(error.value)


def test_ladder_is_a_list_of_factories():
    factory = partial(MLP, hidden=(4,))
    assert _check_ladder(factory, "Owner") == [factory]
    assert _check_ladder(MLP, "Owner") == [MLP]
    rungs = [MLP, factory]
    ladder = _check_ladder(rungs, "Owner")
    assert ladder == rungs
    assert ladder is not rungs
    assert _check_ladder((MLP, factory), "Owner") == rungs


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (MLP((3,)), "never an instance.*Got an instance of MLP"),
        ([MLP, nn.Linear(3, 2)], "never an instance.*Got an instance of Linear"),
        ([], "'student' parameter of Owner is an empty list"),
        ("mlp", "'student' parameter of Owner must be 'auto'.*Got 'mlp' instead"),
        (3, "'student' parameter of Owner must be 'auto'.*Got 3 instead"),
        ([MLP, None], "'student' parameter of Owner must be 'auto'.*Got None instead"),
    ],
)
def test_ladder_errors_say_what_was_got(student, message):
    with pytest.raises(ValueError, match=message):
        _check_ladder(student, "Owner")
