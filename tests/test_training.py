"""Training through skorch, fed with whole batches."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from boosting_cases import (
    CONNECTIONS,
    CPU,
    DEEP_STUDENT,
    EXACT,
    STUDENT,
    assert_same,
    join,
    make_rows,
    student_loss,
)
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, default_collate

from common import COMBINATIONS
from skbdistil._boosting._combination import Combination
from skbdistil._boosting._rows import RoundBatches
from skbdistil._boosting._training import JointStudents, Trainer, _centre, check_net
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.objectives import DistillationObjective, _JointLoss
from skbdistil.students import MLP

pytestmark = pytest.mark.usefixtures("seeded_torch")


def _trainer(
    net=None,
    *,
    batch_size=16,
    learning_rate=0.01,
    patience=None,
    centres=False,
    combine="mean",
):
    return Trainer(
        net,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=CPU,
        patience=patience,
        centres=centres,
        combine=combine,
    )


def _train(net=None, *, epochs=2, seed=3, valid=None, student=None, rows=None, **kw):
    """Train a student; returns it and its history."""
    rows = make_rows() if rows is None else rows
    if student is None:
        torch.manual_seed(0)
        student = rows.ensemble.new_student(STUDENT)
    history = _trainer(net, **kw).train_student(
        student, student_loss(rows), rows, valid, max_epochs=epochs, seed=seed
    )
    return student, history


def _train_jointly(rows, valid=None, *, epochs=8, net=None, **kw):
    """Train all students; returns the history."""
    return _trainer(net, **kw).train_jointly(
        rows.ensemble,
        _JointLoss(DistillationObjective("squared_error"), True),
        rows,
        valid,
        max_epochs=epochs,
        seed=0,
    )


def _validation_rows(rows, n=30, **options):
    """Rows of the ensemble of others that it has no students for yet."""
    return make_rows(n=n, seed=1, ensemble=rows.ensemble, plays=False, **options)


def _loss_of(student, rows, valid):
    batches = valid.for_round()
    inputs, targets = batches.prepared(batches[:])
    mean = inputs.pop("mean", None)
    with torch.no_grad():
        scores, _ = student.eval()(**inputs)
        if mean is not None:
            scores = scores + student.carry * mean
        return float(student_loss(rows)(scores, targets))


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
    rows = make_rows()
    student = rows.ensemble.new_student(STUDENT)
    trainer = _trainer()
    net = trainer._prepared_net(
        trainer._net(), student, student_loss(rows), rows.for_round()
    )
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

    rows = make_rows(n_previous=2)
    _train(_template(iterator_train=Loader), rows=rows, epochs=2)
    assert seen == [16, 16, 16, 2] * 2


def test_iterator_of_the_template_may_yield_more_batches():
    """49 rows: we merge the last row into the third batch, a DataLoader does not."""

    class Loader(DataLoader):
        pass

    _, history = _train(
        _template(iterator_train=Loader), rows=make_rows(n=49), epochs=2
    )
    assert len(history) == 2


@pytest.fixture
def seen(monkeypatch):
    """The arguments of what is in training, batch by batch, as they come."""
    seen = []

    class Watched(Combination):
        def forward(self, **arguments):
            if self.training:
                seen.append(arguments)
            return super().forward(**arguments)

    monkeypatch.setattr("skbdistil._boosting._training.Combination", Watched)
    return seen


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"num_workers": 1}, [16, 16, 16, 1]),
        ({"drop_last": True}, [16, 16, 16]),
        ({"pin_memory": False}, [16, 16, 16, 1]),
        pytest.param({"collate_fn": default_collate}, [16, 16, 16, 1], id="collate_fn"),
        ({"shuffle": False, "drop_last": True}, [16, 16, 16]),
        # Ours, which leaves no batch of a single row.
        ({"shuffle": False}, [16, 16, 17]),
        ({}, [16, 16, 17]),
    ],
    ids=str,
)
@pytest.mark.parametrize("connection", ["last", "dense"])
def test_options_of_a_loader_are_used(options, sizes, connection, seen):
    rows = make_rows(n=49, n_previous=2, connection=connection)
    student = rows.ensemble.new_student(STUDENT)
    net = _template(**{f"iterator_train__{name}": v for name, v in options.items()})
    _, history = _train(net, rows=rows, student=student, epochs=2)
    assert [len(arguments["x"]) for arguments in seen] == sizes * 2
    assert np.isfinite([row["train_loss"] for row in history]).all()
    # An epoch is shuffled unless the template says that it is not.
    first, second = (
        torch.cat([arguments["x"] for arguments in seen[start:][: len(sizes)]])
        for start in (0, len(sizes))
    )
    assert torch.equal(first, second) == (options.get("shuffle") is False)
    if options.get("shuffle") is False:
        expected = rows.for_round()[: len(first)][0]["x"]
        torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("held", [True, False])
def test_workers_of_a_loader_change_no_bit(held):
    rows = make_rows(n_previous=2, held=held)
    student = rows.ensemble.new_student(STUDENT)
    trained = [
        _train(net, rows=rows, student=copy.deepcopy(student))[0].state_dict()
        for net in (
            _template(iterator_train__num_workers=1),
            # A loader in this process, for an option that changes nothing.
            _template(iterator_train__pin_memory=False),
        )
    ]
    assert_same(*map(dict, trained), **EXACT)


def test_a_sampler_of_the_template_gives_the_order(seen):
    rows = make_rows()
    student = rows.ensemble.new_student(STUDENT)
    net = _template(iterator_train__sampler=SequentialSampler(range(40)))
    _train(net, rows=rows, student=student, epochs=1)
    x = torch.cat([arguments["x"] for arguments in seen])
    torch.testing.assert_close(x, rows.for_round()[:40][0]["x"])


def test_a_collate_function_of_the_template_is_given_single_rows():
    seen = []

    def collate(batch):
        seen.append(len(batch))
        assert batch[0][0]["x"].shape == (4,)
        return default_collate(batch)

    _train(_template(iterator_train__collate_fn=collate), epochs=1)
    assert seen == [16, 16, 16, 2]


# Iterators that change rows


class Doubling(DataLoader):
    """Augmentation that can be computed again."""

    changes_rows = True

    def __iter__(self):
        for inputs, targets in super().__iter__():
            yield {**inputs, "x": 2 * inputs["x"]}, targets


DOUBLING = _template(iterator_train=Doubling, iterator_train__shuffle=False)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_students_behind_changed_rows_see_what_the_earlier_ones_make_of_them(
    connection, seen
):
    rows = make_rows(
        n_previous=3, connection=connection, student=DEEP_STUDENT, held=False
    )
    student = rows.ensemble.new_student(DEEP_STUDENT)
    _train(DOUBLING, rows=rows, student=student, epochs=1, batch_size=50)
    with torch.no_grad():
        state = rows.ensemble.start(2 * rows.x.float())
        for _ in range(3):
            state.advance()
    expected = {"x": state.x, "mean": state.mean}
    if connection is not None:
        expected["earlier"] = state.earlier
    (arguments,) = seen
    assert_same(arguments, expected, **EXACT)


def test_validation_rows_of_an_iterator_that_changes_rows_stay_as_they_are():
    rows = make_rows(held=False)
    valid = _validation_rows(rows, held=False)
    student, history = _train(DOUBLING, rows=rows, valid=valid, epochs=1)
    loss = _loss_of(student, rows, valid)
    assert history[-1]["valid_loss"] == pytest.approx(loss, rel=1e-5)


def test_joint_training_sees_changed_rows():
    rows = make_rows(n_previous=2, held=False)
    seen = []
    first = rows.ensemble.unfreeze().students[0]
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _train_jointly(rows, net=DOUBLING, epochs=1, batch_size=50)
    (x,) = seen
    torch.testing.assert_close(x, rows.ensemble.scale(2 * rows.x.float()))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (None, False),
        (_template(), False),
        (_template(iterator_valid=Doubling), False),
        (DOUBLING, True),
    ],
)
def test_an_iterator_says_whether_it_changes_rows(net, expected):
    assert _trainer(net).changes_rows == expected


def test_mixed_precision_of_the_template_is_used():
    class Autocast(NeuralNet):
        def infer(self, x, **fit_params):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().infer(x, **fit_params)

    rows = make_rows(n_previous=1)
    student = rows.ensemble.new_student(STUDENT)
    seen = set()
    hook = student.head.register_forward_hook(
        lambda module, args, output: seen.add(output.dtype)
    )
    _, history = _train(Autocast(None, criterion=None), rows=rows, student=student)
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
    rows = make_rows()
    _train(net, patience=3, rows=rows, valid=_validation_rows(rows))
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

        def begin_epoch(self):
            pass

        def end_epoch(self):
            self.count += 1

    bar = Bar()
    rows = make_rows()
    callbacks = [(name, Idle()) for name in ("lr_scheduler", "progress")]
    callbacks.append(("early_stopping", EarlyStopping(patience=50)))
    history = _trainer(_template(callbacks=callbacks), patience=40).train_student(
        rows.ensemble.new_student(STUDENT),
        student_loss(rows),
        rows,
        _validation_rows(rows),
        max_epochs=3,
        seed=0,
        bar=bar,
    )
    assert len(history) == bar.count == 3


# Batches


def test_rows_are_fetched_in_whole_batches(monkeypatch):
    fetched = {}

    def batch(self, index):
        fetched.setdefault(self.rows, []).append(index)
        return fetch(self, index)

    fetch = RoundBatches.batch
    monkeypatch.setattr(RoundBatches, "batch", batch)
    rows = make_rows()
    valid = _validation_rows(rows, n=20)
    _train(rows=rows, valid=valid, epochs=3, batch_size=16)
    assert [len(index) for index in fetched[rows]] == [16, 16, 16, 2] * 3
    assert [len(index) for index in fetched[valid]] == [16, 4] * 3
    assert fetched[rows][0].tolist() != sorted(fetched[rows][0].tolist())
    assert fetched[valid][0].tolist() == list(range(16))


# Optimizers


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        (torch.optim.Adagrad, None),
        (torch.optim.Adadelta, None),
        (torch.optim.Rprop, None),
        (torch.optim.LBFGS, None),
        (torch.optim.RMSprop, "momentum"),
        (torch.optim.SGD, "momentum"),
        (torch.optim.AdamW, "betas"),
    ],
)
def test_one_cycle_goes_with_any_optimizer(optimizer, momentum):
    rates, momenta = [], []

    class Watching(Callback):
        def on_batch_begin(self, net, training, **kwargs):
            group = net.optimizer_.param_groups[0]
            rates.append(group["lr"])
            if momentum is not None:
                momenta.append(np.ravel(group[momentum])[0])

    _, history = _train(
        _template(optimizer=optimizer, callbacks=[Watching()]),
        epochs=5,
        learning_rate=0.02,
    )
    assert len(rates) == 5 * 4
    assert max(rates) == pytest.approx(0.02)
    assert rates[0] < max(rates) / 2
    assert rates[-1] < max(rates) / 2
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    if momentum is not None:
        # Least where the rate is largest.
        assert np.argmin(momenta) == np.argmax(rates)
        assert len(set(momenta)) > 2


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
    rows = make_rows()
    student = rows.ensemble.new_student(partial(_Interrupted, hidden=(3,)))
    torch.set_rng_state(state)
    with pytest.raises(KeyboardInterrupt):
        _train(rows=rows, student=student)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("combine", "n_previous"), [("mean", 0), ("mean", 2), ("sum", 2), ("learned", 2)]
)
def test_patience_restores_the_best_state(combine, n_previous):
    """Without a schedule, a rate that is too large makes the loss go up again."""
    rows = make_rows(n=40)
    valid = _validation_rows(rows)
    for _ in range(n_previous):
        student = rows.ensemble.new_student(STUDENT)
        valid.add(*valid.run(student))
        join(rows, student)
    net = _template(optimizer=torch.optim.AdamW, callbacks="disable")
    student, history = _train(
        net,
        rows=rows,
        valid=valid,
        patience=4,
        combine=combine,
        epochs=400,
        learning_rate=0.3,
        batch_size=8,
    )
    losses = [row["valid_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) < 400
    assert best == len(history) - 1 - 4
    loss = _loss_of(student, rows, valid)
    assert loss == pytest.approx(losses[best], rel=1e-5)
    assert losses[-1] > losses[best] * 1.001


class Level(nn.Module):
    """A loss that has the same negative value whatever the student says."""

    def forward(self, output, target):
        return output.sum() * 0 - 5


def test_a_negative_loss_that_does_not_improve_ends_training():
    """A relative threshold would take it for an improvement in every epoch."""
    rows = make_rows()
    history = _trainer(patience=3).train_student(
        rows.ensemble.new_student(STUDENT),
        Level(),
        rows,
        _validation_rows(rows),
        max_epochs=20,
        seed=0,
    )
    assert [row["valid_loss"] for row in history] == [-5] * 4


def test_without_patience_the_last_state_is_kept():
    rows = make_rows(n=40)
    valid = _validation_rows(rows)
    net = _template(callbacks="disable")
    student, history = _train(net, rows=rows, valid=valid, epochs=6, learning_rate=0.1)
    assert len(history) == 6
    loss = _loss_of(student, rows, valid)
    assert loss == pytest.approx(history[-1]["valid_loss"], rel=1e-5)


# What training does


def test_training_lowers_the_loss_of_rows_and_validation_rows():
    rows = make_rows(n=200)
    valid = _validation_rows(rows, n=100)
    _, history = _train(rows=rows, valid=valid, epochs=20)
    for name in ("train_loss", "valid_loss"):
        assert history[-1][name] < 0.5 * history[0][name]


@pytest.mark.parametrize("validated", [False, True])
def test_history_holds_plain_numbers(validated):
    rows = make_rows()
    valid = _validation_rows(rows) if validated else None
    _, history = _train(rows=rows, valid=valid, epochs=3)
    names = {"epoch", "train_loss"} | ({"valid_loss"} if validated else set())
    assert [set(row) for row in history] == [names] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(isinstance(v, int | float) for row in history for v in row.values())


def test_earlier_students_are_not_trained():
    rows = make_rows(n_previous=2)
    before = copy.deepcopy(dict(rows.ensemble.state_dict()))
    _train(rows=rows, epochs=2)
    assert_same(dict(rows.ensemble.state_dict()), before, **EXACT)


def test_validation_rows_are_not_trained_on():
    rows = make_rows()
    plain, _ = _train(rows=rows)
    looked_at, _ = _train(rows=rows, valid=_validation_rows(rows))
    assert_same(dict(plain.state_dict()), dict(looked_at.state_dict()), **EXACT)


def test_same_seed_same_bits_and_no_trace_in_the_global_generators():
    rows = make_rows(n_previous=1)
    student = rows.ensemble.new_student(STUDENT)
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
    assert_same(trained[0][0], trained[1][0], **EXACT)
    assert trained[0][1] == trained[1][1]
    assert trained[0][1] != trained[2][1]


def test_float64_stays_float64():
    rows = make_rows(dtype=torch.float64, n_previous=1)
    student, _ = _train(rows=rows)
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    assert rows.run(student)[0].dtype == np.float64


@pytest.mark.parametrize("validated", [False, True])
def test_joint_training_moves_all_students(validated):
    rows = make_rows(n=100, n_previous=3)
    valid = _validation_rows(rows, n=40) if validated else None
    ensemble = rows.ensemble.unfreeze()
    before = copy.deepcopy(dict(ensemble.students.named_parameters()))
    history = _train_jointly(rows, valid)
    moved = {
        name
        for name, value in ensemble.students.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == set(before)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert ("valid_loss" in history[0]) == validated
    with torch.no_grad():
        stages = list(ensemble.freeze().eval().stages(rows.x.float()))
        for mean, stage in zip(
            JointStudents(ensemble)(rows.x.float()), stages, strict=True
        ):
            assert torch.equal(mean, stage)


class Trunk(MLP):
    """A backbone whose first layer came with weights that are to stay."""

    def __init__(self, input_shape):
        super().__init__(input_shape, hidden=(6, 5))
        next(self.parameters()).requires_grad_(False)


@pytest.mark.parametrize("jointly", [True, False])
def test_what_a_user_has_frozen_is_not_trained(jointly):
    rows = make_rows(n_previous=1, student=Trunk)
    student = rows.ensemble.new_student(Trunk)
    if jointly:
        join(rows, student)
        rows.ensemble.unfreeze()
    before = copy.deepcopy(dict(student.named_parameters()))
    frozen = {name for name, value in before.items() if not value.requires_grad}
    assert frozen == {next(name for name in before if name.startswith("backbone"))}
    if jointly:
        _train_jointly(rows)
    else:
        _train(rows=rows, student=student)
    stayed = {
        name
        for name, value in student.named_parameters()
        if torch.equal(value, before[name])
    }
    assert stayed == frozen


# Centring


def test_centred_heads_leave_the_softmax_alone():
    head = nn.Linear(4, 3).double()
    features = torch.randn(7, 4, dtype=torch.float64)
    before = head(features).softmax(1)
    _centre(head)
    logits = head(features)
    torch.testing.assert_close(logits.sum(1), torch.zeros(7).double())
    torch.testing.assert_close(logits.softmax(1), before)
    # Once is enough.
    again = copy.deepcopy(head)
    _centre(again)
    torch.testing.assert_close(again.weight, head.weight)


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("centres", [False, True])
def test_scores_of_a_trained_student_are_centred_where_asked(
    centres, connection, combine
):
    rows = make_rows(connection=connection, centred=True)
    options = {"centres": centres, "combine": combine, "learning_rate": 1e-4}
    for _ in range(3):
        student = rows.ensemble.new_student(DEEP_STUDENT)
        _train(rows=rows, student=student, **options)
        scores, _ = rows.run(student)
        assert (np.abs(scores.sum(1)).max() < 1e-5) == centres
        join(rows, student)


@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("centres", [False, True])
def test_scores_after_joint_training_are_centred_where_asked(centres, connection):
    rows = make_rows(
        connection=connection, centred=True, n_previous=3, student=DEEP_STUDENT
    )
    rows.ensemble.unfreeze()
    _train_jointly(rows, centres=centres, learning_rate=1e-4)
    with torch.no_grad():
        stages = list(rows.ensemble.freeze().eval().stages(rows.x.float()))
    for mean in stages:
        assert (mean.sum(1).abs().max() < 1e-5) == centres


@pytest.mark.parametrize("jointly", [True, False])
def test_centring_comes_after_the_best_state_is_restored(jointly):
    """The scores that are used are centred, not those of the last epoch."""
    rows = make_rows(n=40, centred=True, n_previous=int(jointly))
    valid = _validation_rows(rows, centred=True)
    net = _template(optimizer=torch.optim.AdamW, callbacks="disable")
    options = {"centres": True, "patience": 3, "learning_rate": 0.3, "batch_size": 8}
    if jointly:
        rows.ensemble.unfreeze()
        (student,) = rows.ensemble.students
        history = _train_jointly(rows, valid, net=net, epochs=100, **options)
        rows.reset()
    else:
        student, history = _train(net, rows=rows, valid=valid, epochs=100, **options)
    assert len(history) < 100
    scores, _ = rows.run(student)
    assert np.abs(scores.sum(1)).max() < 1e-5


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
