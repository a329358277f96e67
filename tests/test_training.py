"""Training through skorch, fed with whole batches."""

import copy
import signal
from functools import partial

import numpy as np
import pytest
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader

from skbdistil._game import BoostingGame
from skbdistil._training import (
    JointStudents,
    RowData,
    Trainer,
    _BatchIterator,
    as_tensor,
    check_net,
    n_batches,
    resolve_batch_size,
    resolve_device,
    resolve_epochs,
)
from skbdistil.ensemble import Connection, Lateral, ProgressiveEnsemble
from skbdistil.objectives import DistillationObjective, JointLoss, StudentLoss
from skbdistil.students import MLP, ConvNet2d

CPU = torch.device("cpu")
STUDENT = partial(MLP, hidden=(6, 5))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _rows(
    n=50,
    *,
    connection="dense",
    cache_features=True,
    n_previous=0,
    dtype=torch.float32,
    seed=0,
    ensemble=None,
    cls=RowData,
    **options,
):
    """Rows of an ensemble with `n_previous` students, and their game."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, 4)) * 3 + 1)
    teacher = torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1).sub(1).mul(0.3).to(dtype)
    if ensemble is None:
        ensemble = ProgressiveEnsemble(
            (4,),
            2,
            connection=connection,
            input_mean=torch.ones(4, dtype=dtype),
            input_scale=torch.full((4,), 3, dtype=dtype),
        )
    game = BoostingGame(teacher.numpy(), eta=0.05)
    rows = cls(
        ensemble,
        x,
        teacher,
        torch.from_numpy(game.residual_sum),
        n_students=9,
        device=CPU,
        cache_features=cache_features,
        **options,
    )
    for _ in range(n_previous):
        _join(rows, game, ensemble.new_student(STUDENT))
    return rows, game


def _join(rows, game, student):
    rows.ensemble.append(student)
    scores, kept = rows.run(student)
    game.update(scores)
    rows.keep(kept)


def _loss(rows, game, **options):
    return StudentLoss(
        DistillationObjective("squared_error", **options),
        True,
        n_previous=rows.n_previous,
        eta=game.eta,
        bound=float(rows.teacher.abs().max()),
        log_normalizer=torch.as_tensor(game.log_normalizer, dtype=rows.teacher.dtype),
    )


def _trainer(net=None, *, batch_size=16, learning_rate=0.01, patience=None):
    return Trainer(
        net,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=CPU,
        patience=patience,
    )


def _train(net=None, *, epochs=2, seed=3, valid=None, student=None, rows=None, **kw):
    """Train a student; returns it and its history."""
    rows, game = _rows() if rows is None else rows
    if student is None:
        torch.manual_seed(0)
        student = rows.ensemble.new_student(STUDENT)
    history = _trainer(net, **kw).train(
        student, _loss(rows, game), rows, valid, max_epochs=epochs, seed=seed
    )
    return student, history


def _flat(item):
    """All tensors in nested inputs, with their paths."""
    if isinstance(item, dict):
        pairs = item.items()
    elif isinstance(item, list | tuple):
        pairs = enumerate(item)
    else:
        return {(): item}
    return {
        (key, *path): tensor
        for key, value in pairs
        for path, tensor in _flat(value).items()
    }


def _assert_same(left, right, **tolerance):
    left, right = _flat(left), _flat(right)
    assert left.keys() == right.keys()
    for path in left:
        torch.testing.assert_close(left[path], right[path], **tolerance)


EXACT = {"rtol": 0, "atol": 0}


class _Sum(Connection):
    def forward(self, features, earlier):
        return features + sum(earlier)


CONNECTIONS = [
    None,
    "dense",
    "residual",
    "last",
    "lateral",
    Lateral("last"),
    _Sum,
]

# Rows


@pytest.mark.parametrize("cache_features", [True, False])
@pytest.mark.parametrize("n_previous", [0, 2])
@pytest.mark.parametrize("connection", ["residual", "lateral", None])
def test_all_ways_of_indexing_agree(connection, n_previous, cache_features):
    rows, _ = _rows(
        connection=connection,
        n_previous=n_previous,
        cache_features=cache_features,
        sample_weight=torch.rand(50),
        label=torch.randn(50, 2),
    )
    by_slice = rows[10:14]
    _assert_same(rows[[10, 11, 12, 13]], by_slice, **EXACT)
    _assert_same(rows[torch.arange(10, 14)], by_slice, **EXACT)
    _assert_same(rows[np.arange(10, 14)], by_slice, **EXACT)
    one = _flat(rows[12])
    for path, tensor in _flat(by_slice).items():
        torch.testing.assert_close(one[path], tensor[2])
    _assert_same(rows[-38], rows[12], **EXACT)
    assert len(rows) == 50


def test_targets_are_those_of_the_rows():
    weight, label = torch.rand(50), torch.randn(50, 2)
    rows, game = _rows(n_previous=1, sample_weight=weight, label=label)
    _, targets = rows[5:9]
    assert torch.equal(targets["teacher"], rows.teacher[5:9])
    assert torch.equal(targets["sample_weight"], weight[5:9])
    assert torch.equal(targets["label"], label[5:9])
    np.testing.assert_array_equal(targets["residual_sum"], game.residual_sum[5:9])
    assert targets["residual_sum"].any()
    rows.joint = True
    inputs, targets = rows[5:9]
    assert set(targets) == {"teacher", "sample_weight", "label"}
    # The rows as the user gave them: the ensemble scales them itself.
    assert torch.equal(inputs["x"], rows.x[5:9].float())


def test_absent_targets_are_left_out():
    rows, _ = _rows()
    assert set(rows[:3][1]) == {"teacher", "residual_sum"}


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_cached_and_recomputed_features_agree(connection):
    student = partial(MLP, hidden=(5, 5))

    def prepared(cache_features):
        torch.manual_seed(0)
        rows, game = _rows(connection=connection, cache_features=cache_features)
        for _ in range(3):
            _join(rows, game, rows.ensemble.new_student(student))
        return rows

    cached, recomputed = prepared(True), prepared(False)
    assert bool(cached._cache[0]) == (connection is not None)
    assert recomputed._cache == []
    index = torch.tensor([40, 3, 17])
    # Rounding of matrix products depends on the number of rows.
    _assert_same(cached[index], recomputed[index], rtol=1e-5, atol=1e-6)
    # All rows in one piece are computed as they were for the cache.
    _assert_same(cached[:50], recomputed[:50], **EXACT)


@pytest.mark.parametrize("cache_features", [True, False])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_a_student_trains_on_what_it_will_see_in_the_ensemble(
    connection, cache_features
):
    """Its scores on the rows make the mean of the ensemble that includes it."""
    rows, game = _rows(
        connection=connection, cache_features=cache_features, dtype=torch.float64
    )
    for _ in range(4):
        student = rows.ensemble.new_student(partial(MLP, hidden=(5, 5)))
        _join(rows, game, student)
    stages = list(rows.ensemble.stages(rows.x))
    mean = game.teacher_scores + game.residual_sum / 4
    np.testing.assert_allclose(stages[-1], mean, rtol=1e-10, atol=1e-10)


def test_the_mean_of_earlier_students_comes_from_the_residual_sum():
    rows, _ = _rows(connection="residual", n_previous=3, dtype=torch.float64)
    inputs, _ = rows[7:19]
    expected = rows.ensemble(rows.x[7:19])
    torch.testing.assert_close(inputs["mean"], expected, rtol=1e-10, atol=1e-10)


def test_inputs_are_scaled_and_cast():
    rows, _ = _rows()
    inputs, _ = rows[:5]
    assert rows.x.dtype == torch.float64
    torch.testing.assert_close(inputs["x"], ((rows.x[:5] - 1) / 3).float())
    assert set(inputs) == {"x"}


def test_cached_features_do_not_belong_to_a_graph():
    rows, _ = _rows(n_previous=1)
    rows.ensemble.unfreeze()
    scores, kept = rows.run(rows.ensemble.students[0])
    assert isinstance(scores, np.ndarray)
    assert not any(tensor.requires_grad for tensor in kept)
    assert not any(tensor.is_inference() for tensor in kept)


def test_run_is_in_eval_mode_and_restores_the_mode(monkeypatch):
    monkeypatch.setattr("skbdistil._training._CHUNK_ROWS", 16)
    ensemble = ProgressiveEnsemble((1, 6, 6), 2, connection="lateral")
    x, teacher = torch.randn(50, 1, 6, 6), torch.randn(50, 2)
    rows = RowData(ensemble, x, teacher, torch.zeros(50, 2), n_students=2, device=CPU)
    student = ensemble.new_student(partial(ConvNet2d, channels=(2, 3)))
    before = copy.deepcopy(student.state_dict())
    assert student.training
    scores, kept = rows.run(student)
    assert student.training
    _assert_same(dict(student.state_dict()), dict(before), **EXACT)
    with torch.no_grad():
        expected, expected_kept = student.eval()(x)
    torch.testing.assert_close(torch.from_numpy(scores), expected)
    _assert_same(kept, expected_kept)
    # No later student reads what the last one keeps.
    ensemble.append(student)
    rows.keep(kept)
    last = ensemble.new_student(partial(ConvNet2d, channels=(2, 3)))
    assert rows.run(last)[1] == ()


def test_forget_goes_back_to_the_first_student():
    rows, _ = _rows(n_previous=2)
    rows.forget()
    assert rows.n_previous == 0
    assert set(rows[:3][0]) == {"x"}


def test_read_only_arrays_are_not_copied():
    array = np.arange(6.0)
    tensor = as_tensor(array)
    array[0] = 5
    assert tensor[0] == 5
    array.flags.writeable = False
    assert as_tensor(array).data_ptr() == array.ctypes.data


# Batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("n", "batch_size"),
    [(1, 1), (1, 8), (2, 1), (7, 8), (8, 8), (9, 8), (10, 8), (16, 8), (17, 8)],
)
def test_batches_cover_every_row_once(n, batch_size, shuffle):
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return n

        def __getitem__(self, index):
            assert isinstance(index, torch.Tensor)
            return index

    iterator = _BatchIterator(Numbers(), batch_size, shuffle=shuffle)
    batches = list(iterator)
    assert len(batches) == len(iterator) == n_batches(n, batch_size)
    seen = torch.cat(batches)
    assert sorted(seen.tolist()) == list(range(n))
    if not shuffle:
        assert seen.tolist() == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(batches) - 1)
    if n > 1 and batch_size > 1:
        # A single row has no variance to normalise with; it joins the batch before.
        assert 2 <= sizes[-1] <= batch_size + 1


def test_shuffled_batches_differ_between_epochs():
    rows, _ = _rows(n=64)
    iterator = _BatchIterator(rows, 16)
    first, second = ([inputs["x"] for inputs, _ in iterator] for _ in range(2))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_rows_are_fetched_in_whole_batches():
    class Counting(RowData):
        fetched = ()

        def __getitem__(self, index):
            self.fetched = (*self.fetched, index)
            return super().__getitem__(index)

    rows, game = _rows(cls=Counting)
    valid, _ = _rows(n=20, cls=Counting, ensemble=rows.ensemble)
    _train(rows=(rows, game), valid=valid, epochs=3, batch_size=16)
    # 50 rows: 16, 16, 18.
    assert [len(index) for index in rows.fetched] == [16, 16, 16, 2] * 3
    assert [len(index) for index in valid.fetched] == [16, 4] * 3
    assert rows.fetched[0].tolist() != sorted(rows.fetched[0].tolist())
    assert valid.fetched[0].tolist() == list(range(16))


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 1000, 4000, 20000, 10**6])
def test_auto_batch_size(n):
    size = resolve_batch_size("auto", n, "Owner")
    assert min(n, 32) <= size <= min(n, 256)
    # Larger data never get smaller batches.
    assert size <= resolve_batch_size("auto", 2 * n, "Owner")


def test_batch_size_is_at_most_the_rows():
    assert resolve_batch_size(10, 10, "Owner") == 10
    with pytest.raises(
        ValueError,
        match=r"'batch_size' parameter of Owner is 11.*only 10 training rows",
    ):
        resolve_batch_size(11, 10, "Owner")


@pytest.mark.parametrize(("n", "batch_size"), [(10, 10), (500, 32), (10**6, 256)])
def test_auto_epochs_guarantee_optimizer_steps(n, batch_size):
    epochs = resolve_epochs("auto", n, batch_size)
    assert epochs >= 8
    assert epochs * n_batches(n, batch_size) >= 1000
    assert epochs == 8 or (epochs - 1) * n_batches(n, batch_size) < 1000
    assert resolve_epochs(3, n, batch_size) == 3


def test_device_names():
    assert resolve_device("cpu", torch.float32, "Owner") == CPU
    assert resolve_device(CPU, torch.float32, "Owner") == CPU
    with pytest.raises(ValueError, match=r"'device' parameter of Owner .* Got 'foo'"):
        resolve_device("foo", torch.float32, "Owner")
    expected = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    assert resolve_device("auto", torch.float32, "Owner").type == expected
    assert resolve_device("auto", torch.float64, "Owner").type != "mps"


# The template


class Recording(torch.optim.SGD):
    """Records the learning rate of every step."""

    rates = ()

    def step(self, closure=None):
        type(self).rates = (*self.rates, self.param_groups[0]["lr"])
        return super().step(closure)


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(Recording, "rates", ())
    return Recording


def _template(**settings):
    return NeuralNet(None, criterion=None, **settings)


@pytest.mark.parametrize(
    ("settings", "ours", "name"),
    [
        ({"max_epochs": 3}, "max_epochs", "max_epochs=3"),
        ({"lr": 0.5}, "learning_rate", "lr=0.5"),
        ({"batch_size": 7}, "batch_size", "batch_size=7"),
        ({"device": "cuda"}, "device", "device='cuda'"),
    ],
)
def test_settings_that_would_be_overwritten_are_refused(settings, ours, name):
    with pytest.raises(ValueError, match="'net' parameter of Owner") as error:
        check_net(_template(**settings), "Owner")
    assert f"sets {name};" in str(error.value)
    assert f"set by the parameter '{ours}' of Owner" in str(error.value)


@pytest.mark.parametrize(
    ("net", "ours"),
    [
        (NeuralNet(MLP, criterion=None), "student"),
        (NeuralNet(None, criterion=nn.MSELoss), "objective"),
    ],
)
def test_module_and_criterion_are_refused(net, ours):
    with pytest.raises(ValueError, match=f"set by the parameter '{ours}'"):
        check_net(net, "Owner")


def test_templates_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="'net' parameter of Owner must be None or"):
        check_net(nn.Linear(2, 2), "Owner")
    check_net(None, "Owner")
    check_net(_template(optimizer=torch.optim.SGD, callbacks="disable"), "Owner")


def test_one_cycle_by_default(recording):
    _train(_template(optimizer=recording), epochs=5, learning_rate=0.02)
    rates = np.array(recording.rates)
    assert len(rates) == 5 * 4
    peak = rates.argmax()
    assert rates.max() == pytest.approx(0.02)
    assert 0 < peak < len(rates) / 2
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < rates[0] < 0.02 / 2


@pytest.mark.parametrize("named", [False, True])
def test_schedule_of_the_template_replaces_one_cycle(recording, named):
    schedule = LRScheduler("ExponentialLR", gamma=0.5)
    callbacks = [("mine", schedule) if named else schedule]
    _train(
        _template(optimizer=recording, callbacks=callbacks),
        epochs=3,
        learning_rate=0.02,
    )
    assert recording.rates == (0.02,) * 4 + (0.01,) * 4 + (0.005,) * 4


def test_disabled_callbacks_mean_a_constant_rate(recording):
    _, history = _train(
        _template(optimizer=recording, callbacks="disable"),
        epochs=2,
        learning_rate=0.02,
    )
    assert set(recording.rates) == {0.02}
    assert [row["epoch"] for row in history] == [1, 2]
    assert all("train_loss" in row for row in history)


def test_settings_of_the_template_are_used(recording):
    seen = []

    class Seen(Callback):
        def on_batch_end(self, net, training, **kwargs):
            seen.append(net.optimizer_.param_groups[0]["weight_decay"])

    _train(
        _template(optimizer=recording, optimizer__weight_decay=0.25, callbacks=[Seen]),
        epochs=1,
    )
    assert seen == [0.25] * 4


def test_default_optimizer_is_adamw():
    rows, game = _rows()
    student = rows.ensemble.new_student(STUDENT)
    net = _trainer()._prepared_net(student, _loss(rows, game), rows, None, 1, None)
    net.initialize()
    assert type(net.optimizer_) is torch.optim.AdamW


def test_iterator_of_the_template_is_used():
    """skorch's own way: rows fetched one by one and collated."""
    seen = []

    class Loader(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                seen.append(len(batch[0]["x"]))
                yield batch

    rows = _rows(n_previous=2)
    _train(_template(iterator_train=Loader), rows=rows, epochs=2)
    assert seen == [16, 16, 16, 2] * 2


def test_iterator_of_the_template_may_yield_more_batches():
    """49 rows: we merge the last row into the third batch, a DataLoader does not."""

    class Loader(DataLoader):
        pass

    _, history = _train(_template(iterator_train=Loader), rows=_rows(n=49), epochs=2)
    assert len(history) == 2


def test_mixed_precision_of_the_template_is_used():
    class Autocast(NeuralNet):
        def infer(self, x, **fit_params):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().infer(x, **fit_params)

    rows, game = _rows(n_previous=1)
    student = rows.ensemble.new_student(STUDENT)
    seen = set()
    hook = student.head.register_forward_hook(
        lambda module, args, output: seen.add(output.dtype)
    )
    _, history = _train(
        Autocast(None, criterion=None), rows=(rows, game), student=student
    )
    hook.remove()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert np.isfinite([row["train_loss"] for row in history]).all()
    assert rows.run(student)[0].dtype == np.float32


def test_template_is_left_as_it_was():
    class Counting(Callback):
        count = 0

        def on_batch_end(self, net, **kwargs):
            self.count += 1

    callback = Counting()
    net = _template(optimizer=torch.optim.SGD, callbacks=[callback])
    before = repr(net.get_params(deep=False))
    _train(net, patience=3, valid=_rows(seed=1)[0])
    assert repr(net.get_params(deep=False)) == before
    assert net.callbacks == [callback]
    assert callback.count == 0
    assert not net.initialized_
    assert net.module is None


def test_names_of_callbacks_in_the_template_do_not_clash_with_ours():
    """A schedule of ours, our early stopping and progress bar beside the user's."""

    class Idle(Callback):
        pass

    class Bar:
        count = 0

        def update(self):
            self.count += 1

    bar = Bar()
    rows, game = _rows()
    callbacks = [(name, Idle()) for name in ("lr_scheduler", "progress")]
    callbacks.append(("early_stopping", EarlyStopping(patience=50)))
    history = _trainer(_template(callbacks=callbacks), patience=40).train(
        rows.ensemble.new_student(STUDENT),
        _loss(rows, game),
        rows,
        _rows(seed=1)[0],
        max_epochs=3,
        seed=0,
        bar=bar,
    )
    assert len(history) == bar.count == 3


# Ending early


def test_early_stopping_of_the_template_ends_training():
    stopping = EarlyStopping(monitor="train_loss", patience=2, threshold=0.999)
    _, history = _train(_template(callbacks=[stopping]), epochs=50)
    assert 2 <= len(history) < 50


class _Interrupted(MLP):
    """A backbone during whose third pass somebody presses Ctrl-C."""

    calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
        return super().forward(x)


def test_an_interrupt_is_not_early_stopping():
    state = torch.get_rng_state()
    rows = _rows()
    student = rows[0].ensemble.new_student(partial(_Interrupted, hidden=(3,)))
    torch.set_rng_state(state)
    with pytest.raises(KeyboardInterrupt):
        _train(rows=rows, student=student)
    assert torch.equal(torch.get_rng_state(), state)


def test_ctrl_c_that_hits_a_callback_propagates():
    class Slow(Callback):
        def on_epoch_end(self, net, **kwargs):
            signal.raise_signal(signal.SIGINT)
            return sum(range(1000))

    # Shells have the signal ignored by what they start in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _train(_template(callbacks=[Slow()]))
    finally:
        signal.signal(signal.SIGINT, before)


def test_patience_restores_the_best_state():
    """Without a schedule, a rate that is too large makes the loss go up again."""
    rows, game = _rows(n=40)
    valid, _ = _rows(n=30, seed=1, ensemble=rows.ensemble)
    net = _template(optimizer=torch.optim.AdamW, callbacks="disable")
    student, history = _train(
        net,
        rows=(rows, game),
        valid=valid,
        patience=4,
        epochs=400,
        learning_rate=0.3,
        batch_size=8,
    )
    losses = [row["valid_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) < 400
    assert best == len(history) - 1 - 4
    inputs, targets = valid[:]
    with torch.no_grad():
        loss = _loss(rows, game)(student.eval()(**inputs), targets)
    assert float(loss) == pytest.approx(losses[best], rel=1e-5)
    assert losses[-1] > losses[best] * 1.001


def test_without_patience_the_last_state_is_kept():
    rows, game = _rows(n=40)
    valid, _ = _rows(n=30, seed=1, ensemble=rows.ensemble)
    net = _template(callbacks="disable")
    student, history = _train(
        net, rows=(rows, game), valid=valid, epochs=6, learning_rate=0.1
    )
    assert len(history) == 6
    inputs, targets = valid[:]
    with torch.no_grad():
        loss = _loss(rows, game)(student.eval()(**inputs), targets)
    assert float(loss) == pytest.approx(history[-1]["valid_loss"], rel=1e-5)


# What training does


def test_training_lowers_the_loss_of_rows_and_validation_rows():
    rows, game = _rows(n=200)
    valid, _ = _rows(n=100, seed=1, ensemble=rows.ensemble)
    _, history = _train(rows=(rows, game), valid=valid, epochs=20)
    for name in ("train_loss", "valid_loss"):
        assert history[-1][name] < 0.5 * history[0][name]


@pytest.mark.parametrize("validated", [False, True])
def test_history_holds_plain_numbers(validated):
    valid = _rows(seed=1)[0] if validated else None
    _, history = _train(valid=valid, epochs=3)
    names = {"epoch", "train_loss"} | ({"valid_loss"} if validated else set())
    assert [set(row) for row in history] == [names] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(isinstance(v, int | float) for row in history for v in row.values())


def test_earlier_students_are_not_trained():
    rows, game = _rows(n_previous=2)
    before = copy.deepcopy(dict(rows.ensemble.state_dict()))
    _train(rows=(rows, game), epochs=2)
    _assert_same(dict(rows.ensemble.state_dict()), before, **EXACT)


def test_validation_rows_are_not_trained_on():
    rows = _rows()
    plain, _ = _train(rows=rows)
    looked_at, _ = _train(rows=rows, valid=_rows(seed=1)[0])
    _assert_same(dict(plain.state_dict()), dict(looked_at.state_dict()), **EXACT)


def test_same_seed_same_bits_and_no_trace_in_the_global_generators():
    rows = _rows(n_previous=1)
    student = rows[0].ensemble.new_student(STUDENT)
    trained = []
    for global_seed, seed in [(1, 3), (2, 3), (2, 4)]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        result, history = _train(rows=rows, student=copy.deepcopy(student), seed=seed)
        assert torch.equal(torch.get_rng_state(), torch_state)
        after = np.random.get_state()  # noqa: NPY002
        for left, right in zip(numpy_state, after, strict=True):
            assert np.array_equal(left, right)
        trained.append((dict(result.state_dict()), history))
    _assert_same(trained[0][0], trained[1][0], **EXACT)
    assert trained[0][1] == trained[1][1]
    assert trained[0][1] != trained[2][1]


def test_float64_stays_float64():
    rows = _rows(dtype=torch.float64, n_previous=1)
    student, _ = _train(rows=rows)
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    assert rows[0].run(student)[0].dtype == np.float64


@pytest.mark.parametrize("validated", [False, True])
def test_joint_training_moves_all_students(validated):
    rows, _ = _rows(n=100, n_previous=3)
    data = [rows]
    if validated:
        data.append(_rows(n=40, seed=1, ensemble=rows.ensemble)[0])
    ensemble = rows.ensemble.unfreeze()
    before = copy.deepcopy(dict(ensemble.students.named_parameters()))
    for part in data:
        part.joint = True
    history = _trainer().train(
        JointStudents(ensemble),
        JointLoss(DistillationObjective("squared_error"), True),
        rows,
        data[1] if validated else None,
        max_epochs=8,
        seed=0,
    )
    moved = {
        name
        for name, value in ensemble.students.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == set(before)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    with torch.no_grad():
        stages = [s for s in ensemble.freeze().eval().stages(rows.x.float())]
        for mean, stage in zip(
            JointStudents(ensemble)(rows.x.float()), stages, strict=True
        ):
            assert torch.equal(mean, stage)


def test_joint_students_are_in_the_units_of_the_game():
    ensemble = ProgressiveEnsemble(
        (4,), 2, output_mean=torch.full((2,), 9.0), output_scale=torch.full((2,), 7.0)
    )
    for _ in range(2):
        ensemble.append(ensemble.new_student(STUDENT))
    x = torch.randn(5, 4)
    for mean, stage in zip(JointStudents(ensemble)(x), ensemble.stages(x), strict=True):
        torch.testing.assert_close(9 + 7 * mean, stage)


def test_a_validation_split_of_the_template_is_not_used():
    """The rows that students are validated on must not play the game."""
    _, history = _train(_template(train_split=ValidSplit(5)), epochs=1)
    assert set(history[0]) == {"epoch", "train_loss"}
