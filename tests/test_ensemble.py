"""The ensemble against the definition of its stages, evaluated by hand."""

import copy
import hashlib
import io
import pickle
from functools import cache, partial

import pytest
import torch
from sklearn.base import clone
from torch import nn

from common import raises
from skbdistil.costs import stage_costs
from skbdistil.ensemble import (
    Connection,
    Dense,
    Last,
    Lateral,
    ProgressiveEnsemble,
    Recurrent,
    Wide,
    Window,
    _auto_connection,
    _check_connection,
)
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet

N_OUTPUTS = 3


class Gate(Connection):
    """A connection of a user: a gate from the mean of the earlier features."""

    def __init__(self, n_features, earlier):
        super().__init__(n_features, earlier)
        self.mix = nn.ModuleList(nn.Linear(d, n_features) for d in earlier)

    def forward(self, features, earlier):
        mixed = sum(
            linear(kept) for linear, kept in zip(self.mix, earlier, strict=True)
        )
        return features * torch.sigmoid(mixed)


# Two widths per kind of backbone, as on a ladder. At least four blocks each, so that
# two can be shared.
BACKBONES = {
    "mlp": ((6,), MLP, "hidden", [(5, 4, 6, 3), (7, 3, 5, 4)]),
    "conv2d": ((2, 9, 7), ConvNet2d, "channels", [(2, 3, 4), (3, 4, 2)]),
    "conv1d": ((12, 3), ConvNet1d, "channels", [(3, 2, 4), (4, 3, 3)]),
    "gru": ((5, 3), RecurrentNet, "hidden", [(4, 3, 2, 3), (3, 2, 4, 2)]),
    "padded conv1d": (
        (12, 3),
        partial(ConvNet1d, padding_value=0.0),
        "channels",
        [(3, 2, 4), (4, 3, 3)],
    ),
    "padded gru": (
        (5, 3),
        partial(RecurrentNet, padding_value=0.0),
        "hidden",
        [(4, 3, 2, 3), (3, 2, 4, 2)],
    ),
}
# What students keep of the running mean before them. Nothing comes before the first.
CARRIES = [7.0, 0.5, -0.25, 1.0, 2.0]
CONNECTIONS = {
    "none": None,
    "dense": "dense",
    "last": "last",
    "wide": "wide",
    "lateral": "lateral",
    "lateral_last": Lateral("last"),
    "lateral_shared1": Lateral(shared_blocks=1),
    "lateral_shared2": Lateral("last", shared_blocks=2),
    "lateral_window": Lateral(2, shared_blocks=1),
    "dense_window": Window(2),
    "wide_window": Window(2, connection="wide"),
    "user": Gate,
}


def _factories(kind, n_students=4):
    """Factories of alternating width, and the shape of a row."""
    shape, backbone, parameter, widths = BACKBONES[kind]
    return shape, [
        partial(backbone, **{parameter: widths[(t > 1)]}) for t in range(n_students)
    ]


def _scramble(module):
    """Random weights and batch statistics, none of them special.

    Biases are positive, so that few rectifiers are closed for all rows.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            bounds = (-0.5, 0.5) if parameter.ndim > 1 else (0.2, 0.8)
            parameter.uniform_(*bounds)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)


def _append(ensemble, factory):
    student = ensemble.new_student(factory)
    _scramble(student)
    student.carry.fill_(CARRIES[len(ensemble)])
    ensemble.append(student)
    return student


def _build(kind, connection, *, dtype=torch.float64, n_students=4, **options):
    torch.manual_seed(0)
    shape, factories = _factories(kind, n_students)
    ensemble = ProgressiveEnsemble(shape, N_OUTPUTS, connection=connection, **options)
    for factory in factories:
        _append(ensemble, factory)
        # Later students follow the first; an empty ensemble may hold no tensor.
        ensemble.to(dtype)
    return ensemble.eval()


def _rows(ensemble, n=6, dtype=torch.float64):
    return torch.randn(n, *ensemble.input_shape, dtype=dtype)


def _linear(layer, x):
    return x @ layer.weight.T + layer.bias


def _own_features(backbone, x):
    maps = backbone.prepare(x)
    for block in backbone.blocks:
        maps = block(maps)
    return backbone.pool(maps)


def _joined_by_hand(name, ensemble, x):
    """Scores of the heads of students whose last features are connected."""
    scores, joined = [], []
    for t, student in enumerate(ensemble.students):
        own = h = _own_features(student.backbone, x)
        if t > 0:
            read = joined[-2:] if name.endswith("window") else joined
            if name.startswith("wide"):
                h = torch.cat([h, *read], 1)
            elif name.startswith("dense"):
                h = torch.cat([h, *read], 1)
                h = _linear(student.join.linear, h).clamp(min=0)
            elif name == "last":
                h = torch.cat([h, joined[-1]], 1)
                h = _linear(student.join.linear, h).clamp(min=0)
            elif name == "user":
                terms = [
                    _linear(m, k) for m, k in zip(student.join.mix, joined, strict=True)
                ]
                h = h / (1 + torch.exp(-sum(terms)))
        # What later students read of this one.
        joined.append(own if name.startswith("wide") else h)
        scores.append(_linear(student.head, h))
    return scores


def _within_window(earlier, students):
    """Those of the students before one that it reads."""
    return students[-{"all": 0, "last": 1}.get(earlier, earlier) :]


def _lateral_by_hand(lateral, ensemble, x):
    """Scores of the heads of students that are composed block by block.

    Here every student has the maps of all of its blocks, shared ones included.
    """
    shared = lateral.shared_blocks
    scores, maps = [], []
    for t, student in enumerate(ensemble.students):
        backbone = student.backbone
        blocks = list(backbone.blocks)
        if t > 0 and shared:
            blocks = list(ensemble.students[0].backbone.blocks[:shared]) + blocks
        own, previous = [], backbone.prepare(x)
        readable = _within_window(lateral.earlier, maps)
        for b, block in enumerate(blocks):
            read = [previous]
            # The map of the last shared block is the same for all: it is read once.
            if b > (shared if shared else 0):
                read += [other[b - 1] for other in readable]
            previous = block(torch.cat(read, backbone.channel_dim))
            own.append(previous)
        maps.append(own)
        scores.append(_linear(student.head, backbone.pool(previous)))
    return scores


def _means_by_hand(name, ensemble, x):
    if name.startswith("lateral"):
        scores = _lateral_by_hand(ensemble.connection, ensemble, x)
    else:
        scores = _joined_by_hand(name, ensemble, x)
    return _carried_on_by_hand(scores)


def _carried_on_by_hand(scores):
    """Running means, from the scores of the heads."""
    means = scores[:1]
    for head, carry in zip(scores[1:], CARRIES[1:], strict=False):
        means.append(carry * means[-1] + head)
    return means


def _hash(module):
    """Digest of all parameters and buffers, batch statistics included."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(params=CONNECTIONS)
def name(request):
    return request.param


@pytest.fixture(params=["mlp", "conv2d", "gru"])
def kind(request):
    return request.param


@cache
def _built(kind, name):
    return _build(kind, CONNECTIONS[name])


@pytest.fixture
def ensemble(kind, name):
    torch.manual_seed(1)
    return copy.deepcopy(_built(kind, name))


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


# Stages


@pytest.mark.parametrize("kind", BACKBONES)
def test_stages_are_the_running_means_of_the_definition(ensemble, name):
    x = _rows(ensemble)
    stages = list(ensemble.stages(x))
    expected = _means_by_hand(name, ensemble, x)
    assert len(stages) == len(expected) == 4
    for stage, mean in zip(stages, expected, strict=True):
        _close(stage, mean)
    # Every row and every stage is its own.
    assert torch.stack(stages).std(0).min() > 0
    assert stages[-1].std(0).min() > 0


def test_last_stage_is_forward_to_the_bit(ensemble):
    x = _rows(ensemble)
    *_, last = ensemble.stages(x)
    assert torch.equal(last, ensemble(x))
    state = ensemble.start(x)
    for _ in ensemble.students:
        state.advance()
    assert torch.equal(last, state.output_mean())
    assert state.n_stages == len(ensemble)


def test_one_pass_runs_every_block_once(ensemble):
    calls = []
    for t, student in enumerate(ensemble.students):
        for b, block in enumerate(student.backbone.blocks):
            block.register_forward_hook(lambda *_, key=(t, b): calls.append(key))
    n_blocks = sum(len(student.backbone.blocks) for student in ensemble.students)
    passes = iter(ensemble.stages(_rows(ensemble)))
    for t in range(len(ensemble)):
        next(passes)
        # Nothing of a later student is computed before its stage is asked for.
        assert max(calls)[0] == t
    assert len(calls) == len(set(calls)) == n_blocks


@pytest.mark.parametrize("as_mask", [True, False])
def test_rows_that_are_kept_go_on_as_in_the_whole_batch(ensemble, as_mask):
    x = _rows(ensemble, 8)
    whole = list(ensemble.stages(x))
    state = ensemble.start(x)
    alive = torch.arange(8)
    for stage, left in enumerate([[0, 1, 3, 4, 5, 7], [1, 2, 4], [0, 2], [1]]):
        _close(state.step(), whole[stage][alive])
        rows = torch.tensor(left)
        alive = alive[rows]
        if as_mask:
            rows = torch.zeros(len(state.mean), dtype=torch.bool)
            rows[left] = True
        state.select(rows)
        _close(state.output_mean(), whole[stage][alive])


def test_rows_can_leave_before_the_first_stage(ensemble):
    x = _rows(ensemble)
    state = ensemble.start(x)
    state.select(torch.tensor([1, 4]))
    for mean in ensemble.stages(x):
        _close(state.step(), mean[[1, 4]])


def test_rows_do_not_see_each_other(ensemble):
    x = _rows(ensemble)
    together = list(ensemble.stages(x))
    by_row = [list(ensemble.stages(row)) for row in x.split(1)]
    alone = [torch.cat(rows) for rows in zip(*by_row, strict=True)]
    for left, right in zip(together, alone, strict=True):
        _close(left, right)


def test_later_students_leave_earlier_stages_alone(kind, name):
    ensemble = _build(kind, CONNECTIONS[name], n_students=2)
    x = _rows(ensemble)
    before = list(ensemble.stages(x))
    digest = _hash(ensemble)
    later = _factories(kind)[1][2:]
    for factory in later:
        ensemble.new_student(factory)
        assert _hash(ensemble) == digest
    for factory in later:
        _append(ensemble, factory)
    after = list(ensemble.stages(x))
    assert len(after) == 4
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))


def test_truncated_is_the_first_stages(ensemble):
    x = _rows(ensemble)
    for k, mean in enumerate(ensemble.stages(x), start=1):
        first = ensemble.truncated(k)
        assert len(first) == k
        assert torch.equal(first(x), mean)
        assert first.students[0] is ensemble.students[0]


def test_an_ensemble_of_one_is_its_student(ensemble):
    x = _rows(ensemble)
    scores, _ = ensemble.students[0](x)
    assert torch.equal(ensemble.truncated(1)(x), scores)


# Copies


def test_copies_compute_the_same_bits(ensemble, kind, name):
    x = _rows(ensemble)
    expected = ensemble(x)
    file = io.BytesIO()
    torch.save(ensemble.state_dict(), file)
    file.seek(0)
    # What is carried on is no tensor; it is built as it was.
    loaded = _build(kind, CONNECTIONS[name])
    for parameter in loaded.parameters():
        parameter.data.zero_()
    assert not torch.equal(loaded(x), expected)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for copied in (
        loaded,
        pickle.loads(pickle.dumps(ensemble)),
        copy.deepcopy(ensemble),
    ):
        assert torch.equal(copied(x), expected)
        assert copied.frozen
        assert not any(p.requires_grad for p in copied.students.parameters())
    # A copy goes on by itself.
    copied = copy.deepcopy(ensemble)
    _append(copied, _factories(kind)[1][0])
    assert (len(copied), len(ensemble)) == (5, 4)


def test_students_are_built_again_without_running_them(ensemble, name):
    again = ProgressiveEnsemble(
        ensemble.input_shape, N_OUTPUTS, connection=CONNECTIONS[name]
    ).double()
    with nn.modules.module.register_module_forward_pre_hook(_fail):
        for student in ensemble.students:
            again.append(
                again.new_student(student.factory, n_features=student.n_features)
            )
    again.load_state_dict(ensemble.state_dict())
    x = _rows(ensemble).float()
    assert torch.equal(again.float()(x), ensemble.float()(x))


def _fail(module, args):
    raise AssertionError(f"{type(module).__name__} was run")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_students_follow_the_dtype_of_the_ensemble(kind, name, dtype):
    ensemble = _build(kind, CONNECTIONS[name], dtype=dtype)
    assert {p.dtype for p in ensemble.parameters()} == {dtype}
    assert ensemble.example().dtype == dtype
    assert ensemble(_rows(ensemble, dtype=dtype)).dtype == dtype


# Freezing


def test_frozen_students_do_not_change(ensemble, kind):
    x = 3 + _rows(ensemble)
    digest = _hash(ensemble)
    expected = ensemble(x)
    ensemble.train()
    assert ensemble.training
    assert not any(m.training for m in ensemble.students.modules())
    assert torch.equal(ensemble(x), expected)
    assert _hash(ensemble) == digest
    # The next student is in training mode and trains alone.
    student = ensemble.new_student(_factories(kind)[1][0])
    assert all(m.training for m in student.modules())
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in ensemble.students.parameters())
    assert _hash(ensemble) == digest


def test_unfrozen_students_train_together(ensemble):
    ensemble.train()
    ensemble.unfreeze()
    assert all(m.training for m in ensemble.modules())
    ensemble(_rows(ensemble, 32)).square().sum().backward()
    for student in ensemble.students:
        assert student.head.weight.grad.any()
    ensemble.freeze()
    assert not any(m.training for m in ensemble.students.modules())
    assert not any(p.requires_grad for p in ensemble.parameters())


def test_unfrozen_batch_statistics_move():
    """So that the hash of the frozen ones is able to differ."""
    ensemble = _build("conv2d", "lateral").unfreeze().train()
    digest = _hash(ensemble)
    ensemble(_rows(ensemble))
    assert _hash(ensemble) != digest


def test_eval_reaches_unfrozen_students():
    ensemble = _build("conv2d", "dense").unfreeze().train().eval()
    assert not any(m.training for m in ensemble.modules())


# Scaling


def _with_scaling(ensemble, kind, name, **stats):
    """A copy of an ensemble that scales."""
    scaled = _build(kind, CONNECTIONS[name], **stats)
    scaled.students.load_state_dict(ensemble.students.state_dict())
    return scaled


def test_input_is_standardised(ensemble, kind, name):
    shape = BACKBONES[kind][0]
    stat_shape = (shape[-1],) if len(shape) < 3 else (shape[0], 1, 1)
    mean = torch.randn(stat_shape, dtype=torch.float64)
    scale = torch.rand(stat_shape, dtype=torch.float64) + 0.5
    scaled = _with_scaling(ensemble, kind, name, input_mean=mean, input_scale=scale)
    x = _rows(ensemble)
    _close(scaled.scale(x), (x - mean) / scale)
    _close(scaled(x), ensemble((x - mean) / scale))
    assert torch.equal(ensemble.scale(x), x)


def test_output_is_in_the_units_of_the_target(ensemble, kind, name):
    mean = torch.randn(N_OUTPUTS, dtype=torch.float64)
    scale = torch.rand(N_OUTPUTS, dtype=torch.float64) + 0.5
    scaled = _with_scaling(ensemble, kind, name, output_mean=mean, output_scale=scale)
    x = _rows(ensemble)
    for inside, outside in zip(ensemble.stages(x), scaled.stages(x), strict=True):
        _close(outside, mean + scale * inside)


def test_scaling_belongs_to_the_state_and_to_the_first_stages():
    stats = {
        "input_mean": torch.randn(6, dtype=torch.float64),
        "input_scale": torch.rand(6, dtype=torch.float64) + 0.5,
        "output_mean": torch.randn(3, dtype=torch.float64),
        "output_scale": torch.rand(3, dtype=torch.float64) + 0.5,
    }
    ensemble = _build("mlp", "dense", **stats)
    other = _build("mlp", "dense", **{k: torch.ones_like(v) for k, v in stats.items()})
    x = _rows(ensemble)
    assert not torch.equal(other(x), ensemble(x))
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(other(x), ensemble(x))
    for k, mean in enumerate(ensemble.stages(x), start=1):
        assert torch.equal(ensemble.truncated(k)(x), mean)


# Costs


def _mlp_stage_by_hand(name, t, shape, widths):
    """Multiply-accumulates and biases of student t, whose predecessors have `widths`.

    Returns
    -------
    macs : int
    n_biases : int
    """
    own = widths[t]
    inputs, outputs = [shape[0], *own[:-1]], list(own)
    if name.startswith("lateral"):
        lateral = CONNECTIONS[name]
        lateral = Lateral() if lateral == "lateral" else lateral
        shared = lateral.shared_blocks
        read = _within_window(lateral.earlier, widths[:t])
        for b in range(max(shared, 0) + 1, len(own)):
            inputs[b] += sum(other[b - 1] for other in read)
        if shared and t > 0:
            inputs[shared] = widths[0][shared - 1]
            inputs, outputs = inputs[shared:], outputs[shared:]
    last = [other[-1] for other in widths[:t]]
    last = last[-2:] if name.endswith("window") else last
    if t > 0 and name.startswith(("dense", "last", "user")):
        if name == "user":
            inputs += last
            outputs += [own[-1]] * t
        else:
            inputs.append(own[-1] + (last[-1] if name == "last" else sum(last)))
            outputs.append(own[-1])
    # What the head reads.
    inputs.append(own[-1] + (sum(last) if name.startswith("wide") else 0))
    outputs.append(N_OUTPUTS)
    macs = sum(i * o for i, o in zip(inputs, outputs, strict=True))
    return macs, sum(outputs)


def test_costs_of_mlp_students_by_hand(name):
    ensemble = _built("mlp", name)
    shape, _, _, (narrow, wide) = BACKBONES["mlp"]
    widths = [narrow, narrow, wide, wide]
    counts = stage_costs(ensemble, _rows(ensemble, 2))
    for t in range(4):
        macs, n_biases = _mlp_stage_by_hand(name, t, shape, widths)
        assert counts.macs[t] == macs
        # Every weight of a fully connected layer is used once per row.
        assert counts.parameters[t] == macs + n_biases
    # Shared blocks are counted once.
    assert counts.cumulative_parameters[-1] == sum(
        p.numel() for p in ensemble.parameters()
    )


def test_cost_of_last_is_constant_and_that_of_dense_grows():
    def macs(connection):
        ensemble = ProgressiveEnsemble((6,), N_OUTPUTS, connection=connection)
        for _ in range(5):
            ensemble.append(ensemble.new_student(partial(MLP, hidden=(4,))))
        return stage_costs(ensemble, ensemble.example()).macs[1:].tolist()

    step = 4 * 4
    base = 6 * 4 + 2 * 4 * 4 + 4 * N_OUTPUTS
    assert macs("last") == [base] * 4
    assert macs("dense") == [base + k * step for k in range(4)]
    assert macs(None) == [base - 2 * step] * 4


def test_costs_of_shared_convolutions_by_hand():
    """Channels 2 and 3 on 6 x 6 images, stem shared, maps of 3 x 3 and 2 x 2 cells."""
    ensemble = ProgressiveEnsemble(
        (1, 6, 6), N_OUTPUTS, connection=Lateral(shared_blocks=1)
    )
    for _ in range(3):
        ensemble.append(ensemble.new_student(partial(ConvNet2d, channels=(2, 3))))
    counts = stage_costs(ensemble, ensemble.example())
    stem = 9 * 2 * 9
    second = 4 * 3 * 2 * 9
    pooled = 4 * 3 * 3
    head = 3 * N_OUTPUTS
    assert counts.macs.tolist() == [
        stem + second + pooled + head,
        second + 2 * pooled + head,
        second + 3 * pooled + head,
    ]
    # Weights, two numbers per channel and feature of batch normalisation, a bias.
    own = 3 * 2 * 9 + 2 * 3 + 2 * 3 + head + N_OUTPUTS
    assert counts.parameters.tolist() == [
        2 * 9 + 2 * 2 + own + pooled,
        own + 2 * pooled,
        own + 3 * pooled,
    ]


# Other connections and backbones


@pytest.mark.parametrize("connection", ["dense", "last", Gate, None])
def test_plain_modules_are_backbones(connection):
    """Neither a base class nor exposed blocks are needed to join last layers."""
    ensemble = ProgressiveEnsemble((2, 3), N_OUTPUTS, connection=connection)
    for d in (4, 5):
        ensemble.append(
            ensemble.new_student(
                lambda shape, d=d: nn.Sequential(nn.Flatten(), nn.Linear(6, d))
            )
        )
    assert [f.shape for f in ensemble.stages(torch.randn(7, 2, 3))] == [(7, 3)] * 2


def test_lateral_students_may_have_different_numbers_of_blocks():
    torch.manual_seed(0)
    ensemble = ProgressiveEnsemble((6,), N_OUTPUTS, connection="lateral")
    depths = [(5, 4), (4, 3, 5), (3, 4)]
    for hidden in depths:
        _append(ensemble, partial(MLP, hidden=hidden))
        ensemble.double()
    x = _rows(ensemble)
    scores, maps = [], []
    for student in ensemble.eval().students:
        own = [x]
        for b, block in enumerate(student.backbone.blocks):
            # What a later student reads are the maps below the last block.
            read = [o[b] for o in maps if 0 < b < len(o) - 1]
            own.append(block(torch.cat([own[-1], *read], 1)))
        maps.append(own)
        scores.append(_linear(student.head, own[-1]))
    for mean, expected in zip(
        ensemble.stages(x), _carried_on_by_hand(scores), strict=True
    ):
        _close(mean, expected)


def test_a_fresh_student_adds_its_head_to_the_mean():
    ensemble = ProgressiveEnsemble((6,), N_OUTPUTS)
    heads = []
    x = torch.randn(5, 6)
    for _ in range(3):
        student = ensemble.new_student(partial(MLP, hidden=(4,)))
        assert student.carry == 1
        student.join = None
        heads.append(student(x)[0])
        ensemble.append(student)
    for k, mean in enumerate(ensemble.stages(x), start=1):
        torch.testing.assert_close(mean, sum(heads[:k]))


def test_names_of_connections():
    assert _check_connection("dense", "Owner") is Dense
    assert _check_connection("last", "Owner") is Last
    assert _check_connection(None, "Owner") is None
    assert _check_connection(Gate, "Owner") is Gate
    assert _check_connection("lateral", "Owner").get_params() == {
        "earlier": "all",
        "shared_blocks": 0,
    }
    mine = Lateral("last", shared_blocks=1)
    assert _check_connection(mine, "Owner") is mine
    assert clone(mine).get_params() == mine.get_params()
    assert isinstance(_check_connection("recurrent", "Owner"), Recurrent)
    for mine in (Recurrent(), Window(3), Window("all", connection=Gate)):
        assert _check_connection(mine, "Owner") is mine


narrow, wide = (partial(ConvNet2d, channels=widths) for widths in ((2, 3), (4, 6)))


@pytest.mark.parametrize(
    ("ladder", "input_shape"),
    [
        ([narrow], (3, 8, 8)),
        ([narrow, wide], (8, 8)),
        ([partial(ConvNet1d, channels=(2, 3, 4))], (16, 3)),
    ],
)
def test_convolutional_backbones_are_composed_block_by_block(ladder, input_shape):
    connection = _auto_connection(ladder, input_shape, 2)
    assert connection.get_params() == {"earlier": "all", "shared_blocks": 1}
    ensemble = ProgressiveEnsemble(input_shape, 2, connection=connection)
    for factory in (*ladder, *ladder):
        ensemble.append(ensemble.new_student(factory))
    assert len(list(ensemble.stages(ensemble.example()))) == 2 * len(ladder)


@pytest.mark.parametrize(
    ("ladder", "input_shape"),
    [
        ([partial(MLP, hidden=(4, 4, 4))], (3, 8, 8)),
        ([partial(RecurrentNet, hidden=(4, 4, 4))], (8, 3)),
        # No block is left after the shared one and before the last.
        ([partial(ConvNet2d, channels=(2,))], (3, 8, 8)),
        ([narrow, MLP], (3, 8, 8)),
        # Maps of other sizes, or another number of blocks.
        ([narrow, partial(ConvNet2d, channels=(2, 3), stride=1)], (3, 8, 8)),
        ([narrow, partial(ConvNet2d, channels=(2,))], (3, 8, 8)),
        ([lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 4))], (8, 8)),
    ],
)
def test_other_backbones_join_their_last_features(ladder, input_shape):
    assert _auto_connection(ladder, input_shape, 3) is Dense
    assert _auto_connection(ladder, input_shape, 2) is Wide
    assert _auto_connection(ladder, input_shape, 1) is Wide


# Messages


def test_auto_is_a_connection_only_where_it_is_allowed():
    assert _check_connection("auto", "Owner", auto=True) == "auto"
    with pytest.raises(ValueError, match=r"must be None, .*Got 'auto' instead"):
        _check_connection("auto", "Owner")
    with pytest.raises(ValueError, match="must be 'auto', None, 'dense'"):
        _check_connection("densest", "Owner", auto=True)


@pytest.mark.parametrize(
    "connection",
    ["densest", "residual", 3, nn.Linear, Gate(2, [2]), ["dense"], Connection],
)
def test_unknown_connection_is_named(connection):
    if connection is Connection:
        assert _check_connection(connection, "Owner") is Connection
        return
    with pytest.raises(ValueError, match="'connection' parameter of Owner") as error:
        _check_connection(connection, "Owner")
    assert "'lateral'" in str(error.value)
    assert f"Got {connection!r} instead" in str(error.value)


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        (Lateral("first"), "'earlier' parameter of Lateral"),
        (Lateral(shared_blocks=-1), "'shared_blocks' parameter of Lateral"),
        (Lateral(shared_blocks=0.5), "'shared_blocks' parameter of Lateral"),
        (Lateral(0), "'earlier' parameter of Lateral"),
        (Window(0), "'earlier' parameter of Window"),
        (Window(1.5), "'earlier' parameter of Window"),
        (Window(None), "'earlier' parameter of Window"),
        (Window(2, connection="last"), "must be 'dense', 'wide' or .*Got 'last'"),
        (Window(2, connection=Last), "reads all earlier students. Got .*Last"),
        (Window(2, connection=Lateral()), r"must be 'dense', .*Got Lateral\(\)"),
        (Window(2, connection=None), "must be 'dense', .*Got None"),
    ],
)
def test_objects_that_connect_are_validated(connection, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveEnsemble((6,), N_OUTPUTS, connection=connection)


def test_window_of_all_or_of_one_is_the_connection_by_name():
    for window, name in ((Window("all"), "dense"), (Window(1), "last")):
        ensemble, expected = _build("mlp", window), _build("mlp", name)
        x = _rows(ensemble)
        for mean, other in zip(ensemble.stages(x), expected.stages(x), strict=True):
            assert torch.equal(mean, other)
        assert _hash(ensemble) == _hash(expected)


class _Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value(x)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda x: x[:, :, None], r"shape \(2, 6, 1\)"),
        (lambda x: x.sum(1), r"shape \(2,\)"),
        (lambda x: x[:1], r"shape \(1, 6\)"),
        (lambda x: (x, x), "tuple"),
    ],
)
def test_backbone_output_must_be_features(value, got):
    ensemble = ProgressiveEnsemble((6,), N_OUTPUTS)
    with pytest.raises(ValueError, match=rf"\(n, d\).*_Returns returned {got}.*\(6,\)"):
        ensemble.new_student(lambda shape: _Returns(value))


@pytest.mark.parametrize("connection", ["dense", "lateral"])
def test_factory_must_return_a_module(connection):
    ensemble = ProgressiveEnsemble((6,), N_OUTPUTS, connection=connection)
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module.*returned int"):
        ensemble.new_student(lambda shape: 3)


@pytest.mark.parametrize(
    ("factory", "shared", "who"),
    [
        (lambda shape: nn.Linear(6, 4), 0, "Linear"),
        (partial(MLP, hidden=(4,)), 0, "MLP"),
        (partial(MLP, hidden=(4, 4)), 1, "MLP"),
    ],
)
def test_lateral_needs_blocks(factory, shared, who):
    ensemble = ProgressiveEnsemble(
        (6,), N_OUTPUTS, connection=Lateral(shared_blocks=shared)
    )
    with pytest.raises(
        ValueError, match=rf"at least two blocks.*= {shared + 2} in all.*backbone {who}"
    ):
        ensemble.new_student(factory)


def test_lateral_maps_must_fit():
    ensemble = ProgressiveEnsemble((1, 9, 9), N_OUTPUTS, connection="lateral")
    ensemble.append(ensemble.new_student(partial(ConvNet2d, channels=(2, 3))))
    with pytest.raises(ValueError, match=r"same size in every student.*ConvNet2d"):
        ensemble.new_student(partial(ConvNet2d, channels=(2, 3), stride=1))
    assert len(ensemble) == 1


def test_connection_must_keep_the_shape():
    class Wrong(Connection):
        def forward(self, features, earlier):
            return torch.cat([features, *earlier], 1)

    ensemble = ProgressiveEnsemble((6,), N_OUTPUTS, connection=Wrong)
    ensemble.append(ensemble.new_student(partial(MLP, hidden=(4,))))
    with pytest.raises(ValueError, match=r"Wrong must .*\(n, 4\).*\(2, 8\)"):
        ensemble.new_student(partial(MLP, hidden=(4,)))


@pytest.mark.parametrize("connection", ["dense", "last"])
def test_a_new_connection_hands_on_the_students_own_features(connection):
    ensemble = ProgressiveEnsemble((6,), N_OUTPUTS, connection=connection)
    for _ in range(2):
        _append(ensemble, partial(MLP, hidden=(4,)))
    student = ensemble.new_student(partial(MLP, hidden=(4,)))
    own = torch.rand(5, 4)
    absent = [torch.zeros(5, 4)] * len(ensemble.read_by(2))
    bias = student.join.linear.bias
    assert torch.equal(student.join(own, absent), torch.relu(own + bias))


def test_a_part_left_in_training_mode_is_put_back():
    ensemble = ProgressiveEnsemble((1, 8, 8), N_OUTPUTS)
    _append(ensemble, partial(ConvNet2d, channels=(2,)))
    ensemble.students[0].backbone.train()
    ensemble.eval()
    assert not any(module.training for module in ensemble.modules())


def test_connection_may_return_another_number_of_features():
    class Halved(Connection):
        """Averages neighbours; later students read the whole."""

        passes_on = "own"

        def __init__(self, n_features, earlier):
            super().__init__(n_features, earlier)
            assert earlier == [6] * len(earlier)
            self.n_joined = n_features // 2

        def forward(self, features, earlier):
            return features.unflatten(1, (-1, 2)).mean(2)

    ensemble = ProgressiveEnsemble((4,), N_OUTPUTS, connection=Halved)
    for _ in range(3):
        ensemble.append(ensemble.new_student(partial(MLP, hidden=(6,))))
    assert [s.head.in_features for s in ensemble.students] == [6, 3, 3]
    assert [s.n_features for s in ensemble.students] == [6, 6, 6]
    assert ensemble(torch.randn(5, 4)).shape == (5, N_OUTPUTS)


@pytest.mark.parametrize(("name", "value"), [("reads", "first"), ("passes_on", "all")])
def test_attributes_of_a_connection_are_checked(name, value):
    mine = type("Mine", (Dense,), {name: value})
    with raises(f"'{name}' of Mine", repr(value)):
        ProgressiveEnsemble((4,), N_OUTPUTS, connection=mine)


def test_connection_with_features_it_does_not_promise_is_refused():
    class Odd(Connection):
        def forward(self, features, earlier):
            return features[:, 1:]

    ensemble = ProgressiveEnsemble((4,), N_OUTPUTS, connection=Odd)
    ensemble.append(ensemble.new_student(MLP))
    with raises("The connection Odd", "n_joined", "(n, 32)", "(2, 31)"):
        ensemble.new_student(MLP)
