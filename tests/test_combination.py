"""How heads of students make up the ensemble: ``F_t = a F_{t-1} + b head_t``."""

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
    assert_same,
    join,
    make_rows,
    student_loss,
)
from numpy.testing import assert_allclose, assert_array_equal
from skorch import NeuralNet

from common import COMBINATIONS, raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil._boosting._combination import Combination
from skbdistil._boosting._training import Trainer
from skbdistil.ensemble import Lateral
from skbdistil.persistence import load, save
from skbdistil.students import MLP

pytestmark = pytest.mark.usefixtures("seeded_torch")

COMBINED = pytest.mark.parametrize("combine", COMBINATIONS)
CONNECTED = pytest.mark.parametrize("connection", CONNECTIONS)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def _prepared(rows):
    """What the next student is given of all rows."""
    batches = rows.for_round()
    inputs, _ = batches.prepared(batches[:])
    return inputs


def _rows(connection="dense", n_previous=2, **options):
    return make_rows(
        connection=connection,
        n_previous=n_previous,
        student=DEEP_STUDENT,
        dtype=torch.float64,
        **options,
    )


def _new(rows):
    return rows.ensemble.new_student(DEEP_STUDENT).to(rows.dtype)


class Watched(Combination):
    """Remembers what it gave on rows, and by which factors, before it is settled."""

    seen = ()

    def settle(self):
        with torch.no_grad():
            mean = self.eval()(**_prepared(self.rows))
        type(self).seen = (*self.seen, (mean, self.extra()))
        super().settle()

    def extra(self):
        """What is trained beside the student."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return [p.detach().clone() for p in self.parameters() if id(p) not in own]


@pytest.fixture
def watched(monkeypatch):
    """Lets `_train` tell what a student was when it had been trained."""
    monkeypatch.setattr(Watched, "seen", ())
    monkeypatch.setattr("skbdistil._boosting._training.Combination", Watched)
    return Watched


def _train(rows, combine, monkeypatch=None, *, net=None, epochs=3):
    """Train the next student, and return it."""
    student = _new(rows)
    Watched.rows = rows
    trainer = Trainer(
        net,
        batch_size=16,
        learning_rate=0.02,
        device=CPU,
        patience=None,
        centres=False,
        combine=combine,
    )
    trainer.train_student(
        student, student_loss(rows), rows, None, max_epochs=epochs, seed=0
    )
    return student


# Where training starts


@CONNECTED
@pytest.mark.parametrize("held", [True, False])
def test_sum_starts_at_the_mean_before_it(connection, held):
    rows = _rows(connection, held=held)
    inputs = _prepared(rows)
    combination = Combination(_new(rows), 3, "sum")
    assert torch.equal(combination(**inputs), inputs["mean"])


@CONNECTED
def test_mean_is_that_of_the_heads(connection):
    rows = _rows(connection)
    student, inputs = _new(rows), _prepared(rows)
    mean = Combination(student, 3, "mean")(**inputs)
    earlier = inputs.pop("mean")
    head, _ = student(**inputs)
    torch.testing.assert_close(mean, (2 * earlier + head) / 3, **CLOSE)


@CONNECTED
def test_learned_starts_as_the_mean_to_the_bit(connection):
    rows = _rows(connection)
    student, inputs = _new(rows), _prepared(rows)
    mean, learned = (
        Combination(copy.deepcopy(student), 3, combine)(**inputs)
        for combine in ("mean", "learned")
    )
    assert torch.equal(learned, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@COMBINED
def test_only_learned_has_more_to_train_than_the_student(combine, dtype):
    rows = make_rows(n_previous=1, dtype=dtype)
    student = rows.ensemble.new_student(DEEP_STUDENT).to(dtype)
    combination = Watched(student, 2, combine)
    extra = combination.extra()
    assert sum(p.numel() for p in extra) == (2 if combine == "learned" else 0)
    assert {p.dtype for p in combination.parameters()} == {dtype}


@COMBINED
def test_first_student_is_its_head(combine):
    rows = _rows(n_previous=0)
    student, inputs = _new(rows), _prepared(rows)
    before = copy.deepcopy(student.state_dict())
    combination = Watched(student, 1, combine)
    assert combination.extra() == []
    assert "mean" not in inputs
    assert torch.equal(combination(**inputs), student(**inputs)[0])
    combination.settle = partial(Combination.settle, combination)
    combination.settle()
    assert_same(dict(student.state_dict()), dict(before), **EXACT)


# What is left of it


@COMBINED
@CONNECTED
@pytest.mark.parametrize("held", [True, False])
def test_what_was_trained_is_what_predicts(combine, connection, held, watched):
    """Also for the game, whose students have the running mean as their mean."""
    rows = _rows(connection, n_previous=0, held=held)
    for number in (1, 2, 3):
        student = _train(rows, combine)
        scores, activations = rows.run(student)
        rows.add(scores, activations)
        rows.ensemble.append(student)
        with torch.no_grad():
            *earlier, mean = rows.ensemble.stages(rows.x)
        trained, _ = watched.seen[-1]
        torch.testing.assert_close(trained, mean, **CLOSE)
        before = earlier[-1] if earlier else torch.zeros_like(mean)
        of_the_game = number * mean - (number - 1) * before
        torch.testing.assert_close(torch.from_numpy(scores), of_the_game, **CLOSE)
        total = number * (mean.numpy() - rows.residuals.teacher_scores)
        assert_allclose(rows.residuals.total, total, **CLOSE)


def _carries(ensemble):
    return [float(student.carry) for student in ensemble.students]


@CONNECTED
def test_factors_are_those_of_the_form(connection, watched):
    for combine, expected in [("mean", [1, 1 / 2, 2 / 3]), ("sum", [1, 1, 1])]:
        rows = _rows(connection, n_previous=0)
        for _ in range(3):
            join(rows, _train(rows, combine))
        assert_allclose(_carries(rows.ensemble), expected, rtol=1e-12)
    assert all(extra == [] for _, extra in watched.seen)


@CONNECTED
def test_learned_factors_move_and_are_kept(connection, watched):
    rows = _rows(connection, n_previous=0)
    for _ in range(3):
        join(rows, _train(rows, "learned"))
    (_, first), *others = watched.seen
    assert first == []
    for number, (_, (shifts,)) in enumerate(others, start=2):
        assert shifts.abs().min() > 1e-4
        start = (number - 1) / number
        carry = float(rows.ensemble.students[number - 1].carry)
        assert carry == pytest.approx(start + float(shifts[0]), rel=1e-12)


def test_decay_of_weights_draws_learned_factors_to_those_of_the_mean(watched):
    moved = []
    for decay in (0.0, 20.0):
        rows = _rows(n_previous=1)
        net = NeuralNet(
            None,
            criterion=None,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=decay,
        )
        _train(rows, "learned", net=net, epochs=8)
        _, (shifts,) = watched.seen[-1]
        moved.append(float(shifts.abs().sum()))
    assert moved[1] < moved[0]


# Fits

ESTIMATORS = pytest.mark.parametrize(
    "estimator", [BDistilClassifier, BDistilRegressor], ids=["classifier", "regressor"]
)
JOINED = pytest.mark.parametrize(
    "connection", [None, "dense", "last", "lateral"], ids=str
)
N_STUDENTS = 3


def _data(n=60, seed=0):
    """Rows, and what a teacher says of them; centred in every row."""
    X = np.random.default_rng(seed).standard_normal((n, 4))
    scores = np.tanh(X @ np.random.default_rng(1).standard_normal((4, 3))) * 2
    return X, scores - scores.mean(axis=1, keepdims=True)


def _fitted(estimator, model=None, **options):
    X, scores = _data()
    if model is None:
        options = {
            "student": partial(MLP, hidden=(5, 5)),
            "n_estimators": N_STUDENTS,
            "max_epochs": 4,
            "edge_tol": np.inf,
            "eta": 0.1,
            "dtype": "float64",
            "random_state": 0,
            **options,
        }
        model = estimator("precomputed", **options)
    y = scores.argmax(axis=1) if estimator is BDistilClassifier else None
    return model.fit(X, y, teacher_scores=scores)


def _outputs(model, X):
    """Running means of all stages in the units of the teacher."""
    if isinstance(model, BDistilClassifier):
        return np.stack(list(model.staged_decision_function(X)))
    return np.stack(list(model.staged_predict(X)))


def _by_hand(model, X):
    """The same from the heads of the students."""
    ensemble = model.ensemble_
    earlier, means = [], []
    x = ensemble.scale(torch.from_numpy(X))
    for number, student in enumerate(ensemble.students):
        read = ensemble.read_by(number)
        given = [maps if k in read else () for k, maps in enumerate(earlier)]
        with torch.no_grad():
            head, activations = student(x, given)
        earlier.append(activations)
        if means:
            head = float(student.carry) * means[-1] + head
        means.append(head)
    means = torch.stack(means).numpy()
    if isinstance(model, BDistilRegressor):
        means = model.target_mean_ + model.target_scale_ * means
    return means


@ESTIMATORS
@COMBINED
@JOINED
def test_stages_are_carried_on_from_head_to_head(
    estimator, combine, connection, tmp_path
):
    model = _fitted(estimator, combine=combine, connection=connection)
    assert model.combine_ == combine
    assert len(model) == N_STUDENTS
    X, _ = _data(seed=5)
    stages = _outputs(model, X)
    assert_allclose(stages, _by_hand(model, X), rtol=1e-10, atol=1e-10)
    assert np.abs(np.diff(stages, axis=0)).max() > 1e-3
    for n_stages in (1, 2, 3):
        part = model[:n_stages]
        assert_array_equal(_outputs(part, X), stages[:n_stages])
    save(model, tmp_path / "model.skb")
    loaded = load(tmp_path / "model.skb")
    assert student_bits(loaded) == student_bits(model)
    assert_array_equal(_outputs(loaded, X), stages)


@ESTIMATORS
@COMBINED
@JOINED
@pytest.mark.parametrize("refine", [None, "final", "rounds"])
def test_certificate_is_about_what_predicts(estimator, combine, connection, refine):
    model = _fitted(
        estimator,
        combine=combine,
        connection=connection,
        refine=refine,
        refine_epochs=2,
    )
    X, scores = _data()
    error = np.abs(_outputs(model, X) - scores)
    assert_allclose(model.certificate_.actual, error.max(axis=1), rtol=1e-9)
    assert_allclose(model.certificate_.mean, error.mean(axis=1), rtol=1e-9)
    stage = np.arange(1, N_STUDENTS + 1)[:, None, None]
    of_the_game = np.diff(stage * _outputs(model, X), axis=0, prepend=0)
    off = np.abs(of_the_game - scores)
    if estimator is BDistilRegressor:
        off /= model.target_scale_
    assert_allclose(model.certificate_.step, 0.1 * off.max(axis=(1, 2)), rtol=1e-9)


@ESTIMATORS
@JOINED
def test_first_student_is_the_same_for_all_forms(estimator, connection):
    fits = [
        _fitted(estimator, combine=combine, connection=connection)
        for combine in COMBINATIONS
    ]
    assert len({student_bits(model[:1]) for model in fits}) == 1
    assert len({student_bits(model[:2]) for model in fits}) == 3
    histories = [model.training_history_ for model in fits]
    assert histories[0][0] == histories[1][0] == histories[2][0]
    assert histories[0][1] != histories[1][1]


@ESTIMATORS
@COMBINED
def test_refinement_leaves_what_is_carried_on(estimator, combine):
    """It trains the heads, whose size is what the factor b has gone into."""
    plain = _fitted(estimator, combine=combine)
    refined = _fitted(estimator, combine=combine, refine="final", refine_epochs=3)
    assert _carries(refined.ensemble_) == _carries(plain.ensemble_)
    assert student_bits(refined) != student_bits(plain)


@ESTIMATORS
@pytest.mark.parametrize("combine", ["sum", "learned"])
def test_another_form_is_refused_in_a_warm_start(estimator, combine):
    model = _fitted(estimator, combine="mean", warm_start=True, n_estimators=2)
    bits = student_bits(model)
    model.set_params(combine=combine, n_estimators=3)
    with raises(
        f"With warm_start=True, the 'combine' parameter of {estimator.__name__} must",
        f"the earlier fit, 'mean'. Got '{combine}'",
    ):
        _fitted(estimator, model)
    assert student_bits(model) == bits


@ESTIMATORS
@COMBINED
def test_a_form_that_was_chosen_is_kept_in_a_warm_start(estimator, combine):
    model = _fitted(estimator, combine=combine, warm_start=True, n_estimators=2)
    model.set_params(combine="auto", n_estimators=3)
    _fitted(estimator, model)
    assert model.combine_ == combine
    once = _fitted(estimator, combine=combine)
    assert student_bits(model) == student_bits(once)


ON_STUDENT = DistillationObjective("squared_error", on="student")


@ESTIMATORS
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"connection": None}, "learned"),
        ({"connection": "dense"}, "learned"),
        ({"connection": "last"}, "learned"),
        ({"connection": "lateral"}, "mean"),
        ({"connection": Lateral("last")}, "mean"),
        ({"connection": "dense", "objective": ON_STUDENT}, "mean"),
        ({"connection": "dense", "refine": "only"}, "mean"),
    ],
)
def test_auto_suits_connection_and_objective(estimator, options, expected):
    found = _fitted(estimator, **options)
    assert found.combine_ == expected
    assert student_bits(found) == student_bits(
        _fitted(estimator, combine=expected, **options)
    )
    assert found.combine == "auto"


@ESTIMATORS
@pytest.mark.parametrize("combine", ["residual", "", None, 1])
def test_unknown_form_is_refused(estimator, combine):
    with pytest.raises(
        ValueError, match=rf"The 'combine' parameter of {estimator.__name__} must be"
    ) as error:
        _fitted(estimator, combine=combine)
    message = str(error.value)
    assert f"Got {combine!r} instead" in message
    for known in ("auto", *COMBINATIONS):
        assert f"'{known}'" in message
