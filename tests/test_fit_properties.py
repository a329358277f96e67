"""What a fit makes of its rows, weights and seeds, checked by hand on the result."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, r2_score
from skorch import NeuralNet
from torch.utils.data import DataLoader

from common import COMBINATIONS, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor, _bdistil
from skbdistil._boosting._plan import split_rows
from skbdistil.exceptions import FitInterruptedWarning
from skbdistil.students import MLP
from skbdistil.teachers import TorchTeacher

N_ROWS, N_FEATURES = 96, 5

# Any student passes: what these tests look at is not the search.
SMALL = {
    "student": partial(MLP, hidden=(4,)),
    "n_estimators": 3,
    "max_epochs": 2,
    "edge_tol": np.inf,
    "random_state": 0,
    "dtype": "float64",
}

ESTIMATORS = pytest.mark.parametrize(
    "estimator", [BDistilClassifier, BDistilRegressor], ids=["classifier", "regressor"]
)


def _rows(n=N_ROWS, seed=0):
    return np.random.default_rng(seed).standard_normal((n, N_FEATURES))


def _scores(X, n_outputs=3):
    """What a teacher might say of the rows; centred in every row."""
    weight = np.random.default_rng(1).standard_normal((X.shape[1], n_outputs))
    scores = np.tanh(X @ weight) * 2
    return scores - scores.mean(axis=1, keepdims=True)


def _weights(n=N_ROWS):
    """Uneven weights whose mean is far from 1."""
    return np.random.default_rng(2).uniform(0.2, 5, n) ** 2


def _fitted(estimator, X, scores, *, y=None, sample_weight=None, **options):
    """Distilled from scores that are given."""
    if y is None:
        y = _labels(estimator, scores)
    model = estimator("precomputed", **{**SMALL, **options})
    return model.fit(X, y, sample_weight=sample_weight, teacher_scores=scores)


def _labels(estimator, scores):
    """What the teacher would say; regressors need nothing."""
    return scores.argmax(axis=1) if estimator is BDistilClassifier else None


def _stages(model, X):
    """Running means in the units of the game, of shape (n_stages, n, n_outputs)."""
    return model._stage_scores(X)


def _in_game(model, scores):
    """The teacher's scores in the units of the game."""
    if isinstance(model, BDistilClassifier):
        return scores
    return (scores - model.target_mean_) / model.target_scale_


def _units(model):
    """Of the certificate, per unit of the game."""
    return 1 if isinstance(model, BDistilClassifier) else model.target_scale_


def _assert_game_by_hand(model, X, scores, weight):
    """Edges and certificate are those of algorithm 1 over rows of these weights."""
    teacher = _in_game(model, scores)
    means = _stages(model, X)
    stages = np.arange(1, len(means) + 1)[:, None, None]
    students = np.diff(means * stages, axis=0, prepend=0)
    total = np.zeros_like(teacher)
    weight = (weight / weight.sum())[:, None]
    for stage, student in enumerate(students):
        deviation = student - teacher
        under, over = (weight * np.exp(s * model.eta_ * total) for s in (-1, 1))
        mass = (under + over).sum(0)
        edges = ((under - over) * deviation).sum(0) / mass
        assert_allclose(model.student_edges_[stage], edges, rtol=1e-8, atol=1e-10)
        total += deviation
        error = np.abs(total) / (stage + 1) * _units(model)
        assert_allclose(
            model.certificate_.mean[stage], (weight * error).sum(0), rtol=1e-8
        )
        assert_allclose(model.certificate_.actual[stage], error.max(0), rtol=1e-8)


@pytest.fixture
def every_fourth_row_held_out(monkeypatch):
    """Numbers of the rows that are trained on, and of those that are held out."""
    number = np.arange(N_ROWS)
    train, valid = number[number % 4 != 0], number[number % 4 == 0]
    monkeypatch.setattr(_bdistil, "split_rows", lambda *args: (train, valid))
    return train, valid


# Sample weights


@ESTIMATORS
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("refine", [None, "final"])
def test_game_is_played_under_the_sample_weights(estimator, refine, combine):
    X, weight = _rows(), _weights()
    scores = _scores(X)
    options = {"eta": 0.3, "refine": refine, "combine": combine}
    model = _fitted(estimator, X, scores, sample_weight=weight, **options)
    _assert_game_by_hand(model, X, scores, weight)
    # Weights that are all alike give another game.
    with pytest.raises(AssertionError):
        _assert_game_by_hand(model, X, scores, np.ones(N_ROWS))


@ESTIMATORS
@pytest.mark.parametrize("refine", [None, "final"])
def test_students_learn_the_weighted_mean_of_rows_that_contradict_each_other(
    estimator, refine
):
    X = np.repeat(_rows(48), 2, axis=0)
    sign = np.tile([1.0, -1.0], 48)
    scores = np.column_stack([sign, -sign])
    weight = np.where(sign > 0, 9.0, 1.0)
    model = _fitted(
        estimator,
        X,
        scores,
        sample_weight=weight,
        objective="squared_error",
        n_estimators=1,
        max_epochs=60,
        refine=refine,
    )
    predicted = _stages(model, X)[-1]
    if estimator is BDistilRegressor:
        predicted = model.predict(X)
    # (9 - 1) / (9 + 1); without weights it would be 0.
    assert_allclose(predicted, np.tile([0.8, -0.8], (96, 1)), atol=0.2)


@ESTIMATORS
@pytest.mark.parametrize("shape", [(5,), (4, 2), (2, 3, 3)])
def test_rows_are_standardised_under_their_weights(estimator, shape):
    weight = _weights()
    X = np.random.default_rng(3).standard_normal((N_ROWS, *shape)) * 7 + 3
    # Heavy rows lie elsewhere and farther apart.
    X *= weight.reshape(-1, *[1] * len(shape))
    scores = _scores(_rows())
    model = _fitted(estimator, X, scores, sample_weight=weight, student=MLP)
    scaled = model.ensemble_.scale(torch.from_numpy(X)).numpy()
    channel = 1 if len(shape) == 3 else -1
    scaled = np.moveaxis(scaled, channel, -1)
    columns = scaled.reshape(N_ROWS, -1, scaled.shape[-1])
    mean = np.average(columns, axis=0, weights=weight).mean(axis=0)
    square = np.average(columns**2, axis=0, weights=weight).mean(axis=0)
    assert_allclose(mean, 0, atol=1e-9)
    assert_allclose(square, 1, rtol=1e-9)


def test_targets_are_standardised_under_the_weights():
    X, weight = _rows(), _weights()
    scores = _scores(X) * 5 + 100
    model = _fitted(BDistilRegressor, X, scores, sample_weight=weight)
    mean = np.average(scores, axis=0, weights=weight)
    variance = np.average((scores - mean) ** 2, axis=0, weights=weight)
    assert_allclose(model.target_mean_, mean, rtol=1e-10)
    assert_allclose(model.target_scale_, np.sqrt(variance), rtol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_on_rows_held_out_is_weighted(weighted, every_fourth_row_held_out):
    train, valid = every_fourth_row_held_out
    X = _rows()
    scores = _scores(X)
    weight = _weights() if weighted else np.ones(N_ROWS)
    model = _fitted(
        BDistilRegressor,
        X,
        scores,
        sample_weight=weight if weighted else None,
        objective="squared_error",
        n_estimators=1,
        max_epochs=1,
        early_stopping=True,
    )
    error = (_stages(model, X)[0] - _in_game(model, scores)) ** 2
    # Of mean 1 over the rows that are trained on.
    by_row = error.mean(axis=1) * weight / weight[train].mean()
    (epoch,) = model.training_history_[0]
    assert epoch["valid_loss"] == pytest.approx(by_row[valid].mean(), rel=1e-8)


@ESTIMATORS
def test_score_of_the_teacher_is_weighted(estimator):
    X, weight = _rows(), _weights()
    y = X[:, 0] + np.random.default_rng(4).standard_normal(N_ROWS)
    if estimator is BDistilClassifier:
        y = (y > 0).astype(int)
        teacher, metric = LogisticRegression().fit(X, y), accuracy_score
    else:
        teacher, metric = LinearRegression().fit(X, y), r2_score
    model = estimator(FrozenEstimator(teacher), **SMALL)
    model.fit(X, y, sample_weight=weight)
    expected = metric(y, teacher.predict(X), sample_weight=weight)
    assert model.teacher_score_ == pytest.approx(expected, rel=1e-9)
    assert abs(expected - metric(y, teacher.predict(X))) > 1e-3
    plain = estimator(FrozenEstimator(teacher), **SMALL).fit(X, y)
    assert plain.teacher_score_ == pytest.approx(metric(y, teacher.predict(X)))


# Plain descent, whose steps are as long as the loss is large.
DESCENT = NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)


@ESTIMATORS
@pytest.mark.parametrize("options", [{}, {"early_stopping": True, "refine": "rounds"}])
def test_size_of_the_weights_does_not_matter(estimator, options):
    X, weight = _rows(), _weights()
    options = {"net": DESCENT, **options}
    fits = [
        _fitted(estimator, X, _scores(X), sample_weight=factor * weight, **options)
        # Exact in floats.
        for factor in (1, 4, 2.0**-20)
    ]
    assert len({student_bits(model) for model in fits}) == 1
    assert fits[0].training_history_ == fits[1].training_history_
    assert_array_equal(fits[0].certificate_.mean, fits[1].certificate_.mean)


@ESTIMATORS
def test_weights_of_one_are_no_weights(estimator):
    X = _rows()
    plain, ones = (
        _fitted(estimator, X, _scores(X), sample_weight=weight, net=DESCENT)
        for weight in (None, np.full(N_ROWS, 3.0))
    )
    assert_allclose(_stages(ones, X), _stages(plain, X), rtol=1e-9, atol=1e-10)
    assert_allclose(ones.student_edges_, plain.student_edges_, rtol=1e-7, atol=1e-10)
    for left, right in zip(
        ones.training_history_, plain.training_history_, strict=True
    ):
        losses = [[row["train_loss"] for row in history] for history in (left, right)]
        assert_allclose(*losses, rtol=1e-9)


# Rows held out


@ESTIMATORS
@pytest.mark.parametrize("weighted", [False, True])
def test_game_is_over_the_training_rows_only(
    estimator, weighted, every_fourth_row_held_out
):
    train, valid = every_fourth_row_held_out
    X = _rows()
    scores = _scores(X)
    # The farthest row is held out.
    scores[valid[3]] *= 20
    weight = _weights() if weighted else np.ones(N_ROWS)
    model = _fitted(
        estimator,
        X,
        scores,
        sample_weight=weight if weighted else None,
        early_stopping=True,
        batch_size="auto",
        max_epochs="auto",
        n_estimators=2,
    )
    bound = np.abs(_in_game(model, scores)[train]).max()
    assert model.teacher_bound_ == pytest.approx(bound, rel=1e-12)
    step = min(math.sqrt(math.log(2 * len(train)) / 2), 1) / (2 * bound)
    assert model.eta_ == pytest.approx(step, rel=1e-12)
    # 72 rows in batches of 32 are three steps.
    assert (model.batch_size_, model.max_epochs_) == (32, 334)
    _assert_game_by_hand(model, X[train], scores[train], weight[train])


@pytest.mark.parametrize("n_estimators", [1, 64])
@ESTIMATORS
def test_step_counts_the_training_rows_only(estimator, n_estimators, monkeypatch):
    """Where the cap on the step does not hide their number."""
    monkeypatch.setattr(
        _bdistil, "split_rows", lambda *args: (np.arange(8), np.arange(8, N_ROWS))
    )
    X = _rows()
    scores = _scores(X)
    model = _fitted(
        estimator,
        X,
        scores,
        early_stopping=True,
        n_estimators=n_estimators,
        max_epochs=1,
        connection=None,
    )
    bound = np.abs(_in_game(model, scores)[:8]).max()
    step = min(math.sqrt(math.log(16) / n_estimators), 1) / (2 * bound)
    assert model.eta_ == pytest.approx(step, rel=1e-12)
    assert model.batch_size_ == 8


@ESTIMATORS
def test_loss_on_rows_held_out_looks_at_the_ensemble(
    estimator, every_fourth_row_held_out
):
    _, valid = every_fourth_row_held_out
    X = _rows()
    scores = _scores(X)
    model = _fitted(
        estimator,
        X,
        scores,
        objective="squared_error",
        max_epochs=1,
        early_stopping=True,
    )
    error = ((_stages(model, X) - _in_game(model, scores)) ** 2).mean(axis=2)
    losses = [history[-1]["valid_loss"] for history in model.training_history_]
    if estimator is BDistilRegressor:
        assert_allclose(losses, error[:, valid].mean(axis=1), rtol=1e-8)
    else:
        # Centred after it was trained, which takes the part of the error that all
        # classes share; earlier students are centred already.
        assert (losses >= error[:, valid].mean(axis=1) * (1 - 1e-9)).all()
        assert losses[-1] < 1.5 * error[-1, valid].mean()


@pytest.fixture
def splits(monkeypatch):
    """Collects row numbers (train, valid) of all fits."""
    seen = []

    def split(*args):
        seen.append(split_rows(*args))
        return seen[-1]

    monkeypatch.setattr(_bdistil, "split_rows", split)
    return seen


def test_rows_held_out_have_the_classes_in_their_proportions(splits):
    codes = np.repeat([0, 1, 2], [64, 24, 8])
    for seed in range(3):
        _fitted(
            BDistilClassifier,
            _rows(),
            4 * np.eye(3)[codes] - 1,
            y=np.array(["a", "b", "c"])[codes],
            early_stopping=True,
            validation_fraction=0.125,
            random_state=seed,
            n_estimators=1,
        )
    assert len(splits) == 3
    for _, valid in splits:
        assert np.bincount(codes[valid]).tolist() == [8, 3, 1]


@ESTIMATORS
def test_rows_held_out_are_those_of_the_random_state(estimator, splits):
    X = _rows()
    for seed in (0, 0, 1):
        _fitted(
            estimator,
            X,
            _scores(X),
            early_stopping=True,
            random_state=seed,
            n_estimators=1,
        )
    first, again, other = (sorted(valid) for _, valid in splits)
    assert first == again
    assert first != other


def test_rows_of_a_class_of_one_row_are_held_out_by_chance(splits):
    y = np.repeat([0, 1, 2], [1, 48, 47])
    model = _fitted(
        BDistilClassifier, _rows(), 4 * np.eye(3)[y] - 1, early_stopping=True
    )
    assert len(model) == 3
    assert model.classes_.tolist() == [0, 1, 2]
    ((train, valid),) = splits
    assert sorted([*train, *valid]) == list(range(N_ROWS))
    assert len(valid) == 10
    assert all(
        "valid_loss" in row for history in model.training_history_ for row in history
    )


# Constant teachers


def _says(*values):
    """A network that says the same of every row."""
    module = torch.nn.Linear(N_FEATURES, len(values)).double()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor(values))
    return module


@ESTIMATORS
@pytest.mark.parametrize("options", [{}, {"objective": "squared_error"}])
def test_a_constant_teacher_is_learnt_and_leaves_nothing_to_boost(estimator, options):
    X = _rows()
    teacher = TorchTeacher(
        _says(3.0, 3.0), classes=[0, 1] if estimator is BDistilClassifier else None
    )
    options = {**SMALL, "max_epochs": 100, "edge_tol": "auto", **options}
    model = estimator(teacher, **options).fit(X)
    assert len(model) == 3
    assert model.eta_ == 0
    assert model.teacher_bound_ == 0
    assert np.isfinite(model.student_edges_).all()
    # Nothing is proved with steps of 0.
    assert np.isposinf(model.certificate_.bound).all()
    assert (model.certificate_.actual < 0.1).all()
    if estimator is BDistilRegressor:
        assert_allclose(model.predict(X), 3.0, atol=0.1)
    else:
        assert_allclose(model.predict_proba(X), 0.5, atol=0.05)


def test_a_teacher_of_constant_logits_is_learnt():
    X = _rows()
    teacher = TorchTeacher(_says(2.0, -1.0, -1.0), classes=[0, 1, 2])
    clf = BDistilClassifier(teacher, **{**SMALL, "max_epochs": 100}).fit(X)
    assert clf.teacher_bound_ == 2
    expected = softmax([2.0, -1.0, -1.0])
    assert_allclose(clf.predict_proba(X), np.tile(expected, (N_ROWS, 1)), atol=0.1)


# Centring, frozen weights


@pytest.mark.parametrize("refine", [None, "final", "rounds"])
@pytest.mark.parametrize(
    ("connection", "combine"), [(None, "mean"), ("dense", "sum"), ("last", "learned")]
)
@pytest.mark.parametrize("objective", ["auto", "squared_error"])
def test_scores_of_all_stages_are_centred(refine, connection, combine, objective):
    X = _rows()
    model = _fitted(
        BDistilClassifier,
        X,
        _scores(X),
        refine=refine,
        connection=connection,
        combine=combine,
        objective=objective,
    )
    for decision in model.staged_decision_function(_rows(seed=5)):
        assert_allclose(decision.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("refine", [None, "final"])
def test_values_of_a_regressor_are_not_centred(refine):
    X = _rows()
    model = _fitted(BDistilRegressor, X, _scores(X) + X[:, :1], refine=refine)
    assert np.abs(_stages(model, X).sum(axis=2)).max() > 0.1


class Trunk(MLP):
    """A backbone whose first layer came with weights that are to stay."""

    def __init__(self, input_shape):
        super().__init__(input_shape, hidden=(6, 5))
        first = next(self.parameters())
        torch.nn.init.constant_(first, 0.25)
        first.requires_grad_(False)


@ESTIMATORS
@pytest.mark.parametrize("refine", ["final", "rounds"])
def test_refinement_leaves_alone_what_the_user_has_frozen(estimator, refine):
    X = _rows()
    model = _fitted(estimator, X, _scores(X), student=Trunk, refine=refine)
    plain = _fitted(estimator, X, _scores(X), student=Trunk)
    assert len(model) == 3
    for student in model.ensemble_.students:
        assert (next(student.backbone.parameters()) == 0.25).all()
    # All else is refined.
    unrefined = dict(plain.ensemble_.named_parameters())
    moved = [
        name
        for name, value in model.ensemble_.named_parameters()
        if not torch.equal(value, unrefined[name])
    ]
    assert len(moved) == len(unrefined) - 3


# Going on, and being stopped


@ESTIMATORS
@pytest.mark.parametrize("refine", [None, "final"])
def test_a_warm_start_trains_an_ensemble_of_its_own(estimator, refine):
    X = _rows()
    model = _fitted(estimator, X, _scores(X), warm_start=True, refine=refine)
    earlier, before, n_before = model.ensemble_, student_bits(model), len(model)
    y = _labels(estimator, _scores(X))
    model.set_params(n_estimators=5).fit(X, y, teacher_scores=_scores(X))
    assert len(model) == 5
    assert model.ensemble_ is not earlier
    model.ensemble_ = earlier
    assert len(earlier) == n_before
    assert student_bits(model) == before


class Stopping(MLP):
    """Raises an error in a pass of training."""

    def __init__(self, input_shape, *, error, passes):
        super().__init__(input_shape, hidden=(4,))
        self.error, self.passes = error, passes

    def forward(self, x):
        if self.training:
            self.passes[0] -= 1
            if self.passes[0] < 0:
                raise self.error
        return super().forward(x)


@ESTIMATORS
@pytest.mark.parametrize("refine", [None, "final"])
def test_a_warm_start_that_fails_leaves_the_earlier_fit(estimator, refine):
    X = _rows()
    model = _fitted(estimator, X, _scores(X), warm_start=True, refine=refine)
    before, n_attributes = student_bits(model), len(vars(model))
    y = _labels(estimator, _scores(X))
    # In the first new round, or in the refinement after two of them.
    n_passes = 1 if refine is None else 2 * 2 * 3 + 2
    student = partial(Stopping, error=ZeroDivisionError(), passes=[n_passes])
    model.set_params(n_estimators=5, student=student)
    with pytest.raises(ZeroDivisionError):
        model.fit(X, y, teacher_scores=_scores(X))
    assert len(model) == len(model.ensemble_) == 3
    assert student_bits(model) == before
    assert len(vars(model)) == n_attributes


@ESTIMATORS
def test_a_fit_says_whether_it_was_interrupted(estimator):
    X = _rows()
    student = partial(Stopping, error=KeyboardInterrupt(), passes=[2 * 3 + 1])
    with pytest.warns(FitInterruptedWarning, match="the 1 finished student"):
        model = _fitted(estimator, X, _scores(X), student=student)
    assert model.interrupted_ is True
    assert len(model) == 1
    _assert_game_by_hand(model, X, _scores(X), np.ones(N_ROWS))
    whole = _fitted(estimator, X, _scores(X))
    assert whole.interrupted_ is False
    assert student_bits(whole[:1]) == student_bits(model)


# Rows that are changed, rows out of range


class Doubling(DataLoader):
    """Augmentation that can be computed again."""

    changes_rows = True

    def __iter__(self):
        for inputs, targets in super().__iter__():
            yield {**inputs, "x": 2 * inputs["x"]}, targets


@ESTIMATORS
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("connection", ["last", "dense"])
def test_a_fit_on_changed_rows_is_judged_on_the_rows_as_they_are(
    estimator, connection, combine
):
    X = _rows()
    scores = _scores(X)
    net = NeuralNet(None, criterion=None, iterator_train=Doubling)
    plain_net = NeuralNet(None, criterion=None, iterator_train__pin_memory=False)
    model, plain = (
        _fitted(
            estimator,
            X,
            scores,
            connection=connection,
            combine=combine,
            net=template,
        )
        for template in (net, plain_net)
    )
    _assert_game_by_hand(model, X, scores, np.ones(N_ROWS))
    assert student_bits(model) != student_bits(plain)


@ESTIMATORS
@pytest.mark.parametrize("value", [3e38, -3e38])
def test_rows_that_overflow_once_scaled_are_refused(estimator, value):
    X = (_rows() * 1e-3).astype(np.float32)
    model = _fitted(estimator, X, _scores(X), dtype="float32")
    bad = X.copy()
    bad[7, 2] = value
    methods = [model.predict, lambda rows: next(model.staged_predict(rows))]
    if estimator is BDistilClassifier:
        methods += [model.predict_proba, model.decision_function]
    for method in methods:
        with pytest.raises(
            ValueError, match=rf"X of {estimator.__name__} contains a value too large"
        ):
            method(bad)
    assert np.isfinite(_stages(model, X)).all()
