"""Perceptrons without their modules: the same scores, never those of old weights."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from torch import nn

from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor, _forms, _perceptrons
from skbdistil.ensemble import Connection, Dense, ProgressiveEnsemble, Window
from skbdistil.students import MLP, ConvNet2d

CONNECTIONS = [None, "dense", "last", "wide", Window(2), Window(2, connection="wide")]

# Below and above the number of rows from which on first layers are one product.
SIZES = [1, 7, _perceptrons._WIDE_ROWS + 9]

# In units of the largest score, by type.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(params=["NumPy", "torch"])
def form(request, monkeypatch):
    """In what is computed, whatever the threads of torch."""
    threads = 1 if request.param == "NumPy" else 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_perceptrons, "_THREADED_SIZE", 0)


def perceptrons(connection="dense", hidden=((6,), (6,), (6,)), dtype=torch.float32):
    """An untrained ensemble with scaled inputs whose students are of these widths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ensemble = ProgressiveEnsemble(
            (6,),
            4,
            connection=connection,
            input_mean=torch.randn(6),
            input_scale=torch.rand(6) + 1,
        )
        for widths in hidden:
            ensemble.append(ensemble.new_student(partial(MLP, hidden=widths)))
        for student in ensemble.students:
            student.carry.fill_(0.7)
    return ensemble.to(dtype)


def rows(n_rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn((n_rows, 6), generator=generator).to(dtype)


@torch.inference_mode()
def fast_stages(ensemble, x, n_ahead=0):
    state = _forms.start(ensemble, x, n_ahead)
    return torch.stack([state.step().clone() for _ in ensemble.students])


@torch.inference_mode()
def module_stages(ensemble, x):
    return torch.stack(list(ensemble.stages(x)))


def assert_as_modules(ensemble, x, n_ahead=0):
    expected = module_stages(ensemble, x)
    found = fast_stages(ensemble, x, n_ahead)
    atol = TOLERANCES[x.dtype] * max(1, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    two, labels = found.topk(2, dim=2)
    clear = two[..., 0] - two[..., 1] > 2 * atol
    assert_array_equal(labels[..., 0][clear], expected.argmax(dim=2)[clear])


def is_fast(ensemble):
    _forms.start(ensemble, rows(1, ensemble.dtype), 0)
    return ensemble.products is not None


# What is computed


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n_rows", SIZES)
@pytest.mark.parametrize("n_ahead", [0, 2, 3])
@pytest.mark.parametrize("connection", CONNECTIONS, ids=str)
@pytest.mark.parametrize(
    "hidden", [[(6,)], [(6,)] * 4, [(3,), (5, 4), (8, 2, 7)]], ids=str
)
def test_scores_are_those_of_the_modules(connection, hidden, n_ahead, n_rows, dtype):
    ensemble = perceptrons(connection, hidden, dtype)
    assert is_fast(ensemble)
    assert_as_modules(ensemble, rows(n_rows, dtype), min(n_ahead, len(hidden)))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("n_rows", SIZES)
@pytest.mark.parametrize("connection", CONNECTIONS, ids=str)
def test_rows_that_are_selected_go_on_as_before(connection, n_rows):
    ensemble, x = perceptrons(connection), rows(n_rows)
    expected = fast_stages(ensemble, x)
    kept = torch.arange(0, n_rows, 2)
    with torch.inference_mode():
        for n_ahead in (0, 3):
            state = _forms.start(ensemble, x, n_ahead)
            state.advance()
            state.select(kept)
            assert len(state.x) == len(kept)
            for stage in (1, 2):
                found = state.step()
                torch.testing.assert_close(found, expected[stage, kept])


def test_row_of_more_than_one_axis_is_flattened():
    ensemble = ProgressiveEnsemble((2, 3), 2)
    for _ in range(2):
        ensemble.append(ensemble.new_student(partial(MLP, hidden=(4,))))
    assert is_fast(ensemble)
    assert_as_modules(ensemble, torch.randn(5, 2, 3))


@pytest.mark.parametrize(
    ("n_threads", "n_rows", "threaded"),
    [(1, 10_000, False), (2, 10, False), (2, 10_000, True)],
)
def test_products_are_those_of_numpy_unless_torch_has_threads_for_them(
    n_threads, n_rows, threaded, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    products, multiplied = torch.addmm, []

    def addmm(*args, **options):
        multiplied.append(args)
        return products(*args, **options)

    monkeypatch.setattr(torch, "addmm", addmm)
    ensemble, x = perceptrons(), rows(n_rows)
    fast_stages(ensemble, x, 3)
    assert bool(multiplied) == threaded


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("n_rows", [3, 400])
def test_last_stage_is_the_prediction_to_the_bit(n_rows):
    X = np.random.default_rng(0).normal(size=(500, 5))
    clf = BDistilClassifier(**SMALL).fit(X, (X[:, 0] > 0).astype(int))
    *_, last = clf.staged_predict_proba(X[:n_rows])
    assert clf.ensemble_.products is not None
    assert_array_equal(last, clf.predict_proba(X[:n_rows]))


def test_targets_are_in_their_own_units():
    X = np.random.default_rng(0).normal(size=(200, 5))
    reg = BDistilRegressor(**SMALL).fit(X, 1e6 * X[:, 0] + 1e8)
    expected = reg.ensemble_(torch.from_numpy(X).float()).detach().numpy()[:, 0]
    np.testing.assert_allclose(reg.predict(X), expected, rtol=1e-5)


# What is changed afterwards


def _replace(parameter_of):
    def change(ensemble):
        layer, name = parameter_of(ensemble)
        new = nn.Parameter(torch.randn_like(getattr(layer, name)))
        setattr(layer, name, new)

    return change


def _double_head(ensemble):
    with torch.no_grad():
        ensemble.students[1].head.weight *= 2


def _write_behind_autograd(ensemble):
    ensemble.students[1].join.linear.weight.data.mul_(2)


def _write_with_numpy(ensemble):
    ensemble.students[0].backbone.blocks[0][0].bias.detach().numpy()[:] = 1


def _swap_data(ensemble):
    weight = ensemble.students[0].backbone.blocks[0][0].weight
    weight.data = torch.randn_like(weight)


def _transpose_in_place(ensemble):
    weight = ensemble.students[0].backbone.blocks[0][0].weight
    weight.data = weight.data.T


def _load(ensemble):
    other = {name: 2 * value for name, value in ensemble.state_dict().items()}
    ensemble.load_state_dict(other)


def _carry(ensemble):
    ensemble.students[2].carry.fill_(-1.0)


def _rescale(ensemble):
    ensemble.input_factor = 3 * ensemble.input_factor


def _other_layer(ensemble):
    ensemble.students[1].head = nn.Linear(6, 4)


def _one_more_layer(ensemble):
    ensemble.students[1].backbone.blocks[0].append(nn.Tanh())


def _other_student(ensemble):
    ensemble.students[2] = perceptrons(hidden=((9,), (9,), (9,))).students[0]


def _fewer_students(ensemble):
    ensemble.students = ensemble.students[:2]


def _hook(ensemble):
    ensemble.students[1].head.register_forward_hook(lambda *args: args[-1] + 1)


def _pre_hook(ensemble):
    block = ensemble.students[1].backbone.blocks[0]
    block.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def _forward(ensemble):
    ensemble.students[1].head.forward = lambda x: x[:, :4]


def _parametrize(ensemble):
    nn.utils.parametrizations.weight_norm(ensemble.students[1].head)
    ensemble.students[1].head.parametrizations.weight.original0.data.mul_(2)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("n_rows", SIZES)
@pytest.mark.parametrize(
    "change",
    [
        _double_head,
        _write_behind_autograd,
        _write_with_numpy,
        _swap_data,
        _transpose_in_place,
        _load,
        _carry,
        _rescale,
        _other_layer,
        _one_more_layer,
        _other_student,
        _fewer_students,
        _hook,
        _pre_hook,
        _forward,
        _parametrize,
        lambda ensemble: ensemble.double(),
    ],
    ids=lambda change: change.__name__,
)
def test_whatever_is_changed_is_seen(change, n_rows):
    ensemble = perceptrons()
    before = fast_stages(ensemble, rows(n_rows))
    assert ensemble.products is not None
    change(ensemble)
    x = rows(n_rows, ensemble.dtype)
    found = fast_stages(ensemble, x)
    torch.testing.assert_close(found, module_stages(ensemble, x), rtol=1e-5, atol=1e-5)
    assert_as_modules(ensemble, x)
    if found.dtype == before.dtype and len(found) == len(before):
        assert not torch.allclose(found, before)


def test_hook_that_is_gone_leaves_the_fast_form():
    ensemble = perceptrons()
    handle = ensemble.students[0].register_forward_hook(lambda *_: None)
    assert not is_fast(ensemble)
    handle.remove()
    assert is_fast(ensemble)


def test_global_hook_is_run():
    ensemble, seen = perceptrons(), []
    assert is_fast(ensemble)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(module)
    )
    try:
        fast_stages(ensemble, rows(2))
    finally:
        handle.remove()
    assert ensemble.students[0].head in seen


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda ensemble: pickle.loads(pickle.dumps(ensemble))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copy_has_weights_of_its_own(copied):
    ensemble = perceptrons()
    before = fast_stages(ensemble, rows(2))
    other = copied(ensemble)
    if copied is not copy.copy:  # which shares the students
        _double_head(other)
        torch.testing.assert_close(fast_stages(ensemble, rows(2)), before)
    assert_as_modules(other, rows(2))


def test_products_take_no_room_in_a_pickle():
    ensemble = perceptrons()
    size = len(pickle.dumps(ensemble))
    assert is_fast(ensemble)
    assert len(pickle.dumps(ensemble)) <= size + 100
    assert pickle.loads(pickle.dumps(ensemble)).products is None


# What has no such form


class _Doubled(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


class _Sum(Connection):
    def forward(self, features, earlier):
        return features + sum(earlier)


class _Signed(Dense):
    def forward(self, features, earlier):
        return -super().forward(features, earlier)


@pytest.mark.parametrize(
    ("connection", "factory"),
    [
        ("dense", _Doubled),
        (_Sum, MLP),
        (_Signed, MLP),
        (Window(1, connection=_Signed), MLP),
        ("lateral", partial(MLP, hidden=(4, 4))),
    ],
)
def test_other_students_are_run_as_modules(connection, factory):
    ensemble = ProgressiveEnsemble((6,), 4, connection=connection)
    for _ in range(2):
        ensemble.append(ensemble.new_student(factory))
    assert not is_fast(ensemble)
    assert_array_equal(fast_stages(ensemble, rows(5)), module_stages(ensemble, rows(5)))


def test_convolutional_students_are_run_as_modules():
    ensemble = ProgressiveEnsemble((8, 8), 4)
    ensemble.append(ensemble.new_student(partial(ConvNet2d, channels=(4, 4))))
    x = torch.randn(3, 8, 8)
    assert_array_equal(fast_stages(ensemble, x), module_stages(ensemble, x))


# Rows that skip scikit-learn's validation


@pytest.fixture(scope="module")
def clf():
    X = np.random.default_rng(0).normal(size=(60, 3))
    return BDistilClassifier(**SMALL).fit(X, np.arange(60) % 2)


def outcome(clf, X):
    """Scores, or the error and its message."""
    try:
        return clf.decision_function(X).tolist()
    except ValueError as error:
        return type(error), str(error)


SHAPES = st.sampled_from([(2, 3), (1, 3), (0, 3), (3,), (2, 4), (2, 1, 3), (2, 3, 1)])
DTYPES = st.sampled_from(
    ["f2", "f4", "f8", "g", ">f4", "i1", "u1", "i8", "u8", "?", "O", "U4", "c8"]
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_ready_rows_are_treated_as_validated_ones(clf, data):
    dtype = np.dtype(data.draw(DTYPES))
    elements = None
    if dtype.kind == "O":
        elements = st.one_of(st.floats(), st.none(), st.text(max_size=2))
    X = data.draw(hnp.arrays(dtype, data.draw(SHAPES), elements=elements))
    X = data.draw(st.sampled_from([X, np.asfortranarray(X), X[::-1], X.copy()]))
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        found = outcome(clf, X)
        patch.setattr(BDistilClassifier, "_is_ready", lambda self, X: False)
        assert found == outcome(clf, X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_rows", [1, 5000])
def test_value_that_is_not_finite_is_named(clf, value, n_rows):
    X = np.zeros((n_rows, 3), dtype=np.float32)
    X[-1, 1] = value
    with pytest.raises(ValueError, match="NaN" if np.isnan(value) else "infinity"):
        clf.predict(X)


def test_missing_feature_names_are_warned_about():
    pd = pytest.importorskip("pandas")
    X = np.random.default_rng(0).normal(size=(60, 3))
    clf = BDistilClassifier(**SMALL)
    clf.fit(pd.DataFrame(X, columns=list("abc")), np.arange(60) % 2)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(X)
