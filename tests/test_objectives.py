"""What students minimise, against the formulas of the theory page."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from sklearn.base import clone
from torch.nn import functional

from skbdistil._boosting._game import BoostingGame
from skbdistil._boosting._residuals import Residuals
from skbdistil.objectives import (
    _OBJECTIVES,
    DistillationObjective,
    _barrier_logarithms,
    _check_objective,
    _JointLoss,
    _kl,
    _StudentLoss,
)

BOUND = 2.0
PURE = {"distillation": None, "gamma": 1.0}


def _loss(options, *, regression=True, n_previous=1, eta=0.5, log_z=None, n_outputs=1):
    log_z = torch.full((n_outputs,), np.log(2.0)) if log_z is None else log_z
    return _StudentLoss(
        DistillationObjective(**options),
        regression,
        n_previous=n_previous,
        eta=eta,
        scale=BOUND,
        log_normalizer=torch.as_tensor(log_z, dtype=torch.float64),
    )


def _value(loss, scores, teacher, residual_sum=None, **target):
    """Loss of a student of the game with these scores."""
    target["teacher"] = teacher
    target["residual_sum"] = (
        torch.zeros_like(teacher) if residual_sum is None else residual_sum
    )
    total = target["residual_sum"] + scores - teacher
    return loss(teacher + total / (loss.n_previous + 1), target)


def _gradient(loss, scores, *target):
    """Gradient of each row's own loss."""
    scores = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_value(loss, scores, *target), scores)
    return gradient * len(scores)


def _randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _played(n=40, n_outputs=3, eta=0.3, rounds=3, sample_weight=None, seed=0):
    """A game some rounds on, and its arrays as tensors."""
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((n, n_outputs))
    residuals = Residuals(teacher)
    game = BoostingGame(residuals, eta=eta, sample_weight=sample_weight)
    for _ in range(rounds):
        game.update(teacher + rng.standard_normal(teacher.shape))
    return game, torch.from_numpy(teacher), torch.from_numpy(residuals.total)


# The barrier


def _pointwise_minimiser(loss, teacher, residual_sum, largest):
    """The l with abs(l) <= largest where the slope of a convex loss changes sign."""
    low = torch.full_like(teacher, -largest)
    high = -low
    for _ in range(60):
        middle = (low + high) / 2
        rising = _gradient(loss, teacher + middle, teacher, residual_sum) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return low


def test_weighted_barrier_pulls_towards_the_bounded_correction():
    eta = 0.5
    residual_sum = torch.linspace(-2.8, 2.8, 25, dtype=torch.float64)[:, None]
    teacher = _randn(25, 1)
    loss = _loss(PURE, eta=eta, log_z=[0.7])
    actual = _pointwise_minimiser(loss, teacher, residual_sum, 2 * BOUND)
    expected = 2 * BOUND * torch.tanh(-eta * residual_sum)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_weighted_barrier_never_pulls_out_of_the_bound():
    """However far off the ensemble is: abs(u) < 1 for the best u."""
    residual_sum = torch.logspace(-2, 6, 33, dtype=torch.float64)[:, None]
    residual_sum = torch.cat([-residual_sum, residual_sum])
    teacher = torch.zeros_like(residual_sum)
    loss = _loss(PURE, eta=1.0, log_z=[0.7])
    best = _pointwise_minimiser(loss, teacher, residual_sum, 1e3 * BOUND)
    assert (best.abs() < 2 * BOUND).all()
    assert (best * residual_sum < 0).all()


@pytest.mark.parametrize("end", [-0.95, 0.95])
def test_barrier_logarithm_goes_on_smoothly(end):
    step = 1e-9
    u = torch.tensor([end - step, end, end + step], dtype=torch.float64)
    (value, slope), _ = _barrier_logarithms(u)
    # Steps of 1e-9 change the value by 1e-9 * slope, the slope by 1e-9 * slope ** 2.
    torch.testing.assert_close(value, value[1].expand(3), rtol=0, atol=3e-8)
    torch.testing.assert_close(slope, slope[1].expand(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(value[1], torch.log1p(u[1]), rtol=1e-12, atol=0)


def test_barrier_logarithm_is_the_logarithm_inside_and_a_line_outside():
    u = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)
    torch.testing.assert_close(_barrier_logarithms(u)[0][0], torch.log1p(u))
    for sign in (-1, 1):
        far = sign * torch.tensor([0.96, 1.0, 3.0, 1e3], dtype=torch.float64)
        (value, slope), _ = _barrier_logarithms(far)
        expected = torch.full_like(far, 1 / (1 + sign * 0.95))
        torch.testing.assert_close(slope, expected)
        (end, _), _ = _barrier_logarithms(torch.tensor(sign * 0.95, dtype=far.dtype))
        torch.testing.assert_close(value, end + (far - sign * 0.95) * expected)


def test_barrier_logarithm_of_the_other_weight_is_its_mirror_image():
    u = torch.linspace(-2, 2, 101)
    up, down = _barrier_logarithms(u)
    mirrored, _ = _barrier_logarithms(-u)
    for of_down, of_mirrored in zip(down, mirrored, strict=True):
        torch.testing.assert_close(of_down, of_mirrored, rtol=0, atol=0)
    assert not torch.equal(up[0], down[0])


@pytest.mark.parametrize("barrier", ["weighted", "indicator"])
def test_round_one_matches_the_teacher(barrier):
    loss = _loss({**PURE, "barrier": barrier}, n_previous=0)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    off = torch.linspace(0.1, 3 * BOUND, 30, dtype=torch.float64)
    above = torch.stack([_value(loss, o.view(1, 1), zero) for o in off])
    below = torch.stack([_value(loss, -o.view(1, 1), zero) for o in off])
    torch.testing.assert_close(above, below)
    assert (torch.diff(above) > 0).all()
    assert _value(loss, zero, zero) == 0 < above[0]
    assert _gradient(loss, zero, zero) == 0


@pytest.mark.parametrize("weighted_rows", [False, True])
def test_mean_mass_over_the_training_rows_is_two(weighted_rows):
    weight = np.random.default_rng(1).uniform(0.2, 3, 40) if weighted_rows else None
    game, _, residual_sum = _played(eta=0.15, sample_weight=weight)
    loss = _loss({}, eta=game.eta, log_z=game.log_normalizer)
    under, over = loss._weights(residual_sum)
    rows = torch.ones(40, 1) if weight is None else torch.from_numpy(weight)[:, None]
    mean = ((under + over) * rows / rows.mean()).mean(0)
    torch.testing.assert_close(mean, torch.full((3,), 2.0).double())
    # They are the weights of the game, whose sum over the rows is 1.
    expected = 2 * torch.from_numpy(np.stack(game.weights()))
    actual = torch.stack([under, over]) * rows / rows.sum()
    torch.testing.assert_close(actual, expected)


def test_indicator_sees_signs_only_and_shares_ties():
    loss = _loss({**PURE, "barrier": "indicator"}, log_z=[123.0])
    under, over = loss._weights(torch.tensor([[-1e-9], [-50.0], [0.0], [2.0], [1e6]]))
    assert under.flatten().tolist() == [2, 2, 1, 0, 0]
    assert over.flatten().tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("eta", [0.15, 3.0, 100.0])
def test_mass_of_a_row_is_that_of_the_game_however_uneven(eta):
    game, _, residual_sum = _played(eta=eta)
    loss = _loss({}, eta=eta, log_z=game.log_normalizer)
    under, over = loss._weights(residual_sum)
    expected = 2 * len(residual_sum) * torch.from_numpy(sum(game.weights()))
    torch.testing.assert_close(under + over, expected)
    # A few rows may own nearly all of it.
    assert ((under + over).max() > 20) == (eta > 1)


def test_mass_beyond_floats_is_cut_for_both_weights_alike():
    """Of validation rows, which are in no game."""
    loss = _loss({}, eta=1.0, log_z=[0.7]).float()
    residual_sum = torch.tensor([[20.0], [50.0], [200.0], [1e6]])
    residual_sum = torch.cat([residual_sum, -residual_sum])
    under, over = loss._weights(residual_sum)
    mass = (under + over).flatten()
    # exp(S) / Z, with room left for the loss beyond it.
    expected = (residual_sum.abs().double() - 0.7 + np.log(2)).exp().flatten()
    torch.testing.assert_close(
        mass[[0, 1]].double(), expected[[0, 1]], rtol=1e-4, atol=0
    )
    assert (mass[[2, 3, 6, 7]] == mass[2]).all()
    assert mass[1] < mass[2] < torch.finfo(torch.float32).max / 1e10
    torch.testing.assert_close(over[:4] / under[:4], torch.full((4, 1), 19.0))
    torch.testing.assert_close(under[4:] / over[4:], torch.full((4, 1), 19.0))


def test_barrier_is_the_formula():
    game, teacher, residual_sum = _played(eta=0.2)
    scores = teacher + _randn(40, 3).clamp(-3, 3)
    under, over = (torch.from_numpy(k) * 80 for k in game.weights())
    u = (scores - teacher) / (2 * BOUND)
    expected = -(under * torch.log1p(u) + over * torch.log1p(-u)).mean() / 0.3
    loss = _loss(
        {"distillation": None, "gamma": 0.3}, eta=0.2, log_z=game.log_normalizer
    )
    torch.testing.assert_close(_value(loss, scores, teacher, residual_sum), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("barrier", ["weighted", "indicator"])
@pytest.mark.parametrize("n_previous", [0, 3])
def test_huge_residual_sums_stay_finite(barrier, dtype, n_previous):
    teacher = torch.zeros(5, 2, dtype=dtype)
    residual_sum = torch.tensor([-1e6, -1, 0, 1, 1e6], dtype=dtype)[:, None].expand(
        5, 2
    )
    # Under a game that saw these rows, and under one that did not (validation).
    for log_z in ([1e6, 1e6], [0.7, 0.7]):
        loss = _loss(
            {"distillation": "squared_error", "barrier": barrier},
            eta=1.0,
            log_z=log_z,
            n_previous=n_previous,
        ).to(dtype)
        scores = torch.full((5, 2), 1e3, dtype=dtype, requires_grad=True)
        value = _value(loss, scores, teacher, residual_sum)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(scores.grad).all()
        assert value.dtype == dtype


def test_constant_teacher_has_a_finite_barrier():
    loss = _StudentLoss(
        DistillationObjective(**PURE),
        True,
        n_previous=0,
        eta=0.0,
        scale=0.0,
        log_normalizer=torch.tensor([np.log(2.0)]),
    )
    zero = torch.zeros(3, 1)
    assert _value(loss, zero, zero) == 0
    assert 0 < _value(loss, zero + 0.1, zero) < _value(loss, zero + 0.2, zero)


# Distillation and label term


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_that_of_scipy(temperature):
    teacher, scores = _randn(6, 4), _randn(6, 4, seed=1)
    p = softmax(teacher.numpy() / temperature, axis=1)
    q = softmax(scores.numpy() / temperature, axis=1)
    expected = rel_entr(p, q).sum(1) * temperature**2
    actual, _ = _kl(teacher, scores, temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-14)
    loss = _loss(
        {"barrier": None, "temperature": temperature}, regression=False, n_previous=0
    )
    torch.testing.assert_close(_value(loss, scores, teacher), actual.mean())


def test_kl_is_zero_only_where_the_softmaxes_agree():
    teacher = _randn(6, 4)
    shift = _randn(6, 1, seed=1)
    torch.testing.assert_close(
        _kl(teacher, teacher + shift, 1.0)[0], torch.zeros(6).double()
    )
    assert (_kl(teacher, teacher + 0.1 * _randn(6, 4, seed=2), 1.0)[0] > 1e-6).all()


def test_kl_gradient_does_not_shrink_with_the_temperature():
    """The factor tau ** 2: for tau -> inf, a squared error of centred scores."""
    teacher, scores = _randn(6, 4), _randn(6, 4, seed=1)
    teacher = teacher - teacher.mean(1, keepdim=True)
    scores = scores - scores.mean(1, keepdim=True)
    limit = (scores - teacher).square().sum(1) / 8
    # Of next order in 1 / tau.
    torch.testing.assert_close(_kl(teacher, scores, 1e4)[0], limit, rtol=1e-3, atol=0)


@pytest.mark.parametrize("distillation", ["kl", "squared_error"])
def test_distillation_looks_at_the_ensemble_or_the_student(distillation):
    teacher = _randn(6, 4)
    students = [_randn(6, 4, seed=seed) for seed in (1, 2, 3)]
    residual_sum = sum(f - teacher for f in students[:2])
    mean = sum(students) / 3

    def distance(scores):
        if distillation == "kl":
            return _kl(teacher, scores, 1.0)[0].mean()
        return functional.mse_loss(scores, teacher)

    for on, looked_at in [("ensemble", mean), ("student", students[-1])]:
        loss = _loss(
            {"distillation": distillation, "barrier": None, "on": on},
            regression=False,
            n_previous=2,
        )
        torch.testing.assert_close(
            _value(loss, students[-1], teacher, residual_sum), distance(looked_at)
        )


@pytest.mark.parametrize("on", ["ensemble", "student"])
@pytest.mark.parametrize("regression", [False, True])
def test_label_term_looks_at_the_ensemble(regression, on):
    teacher = _randn(6, 4)
    students = [_randn(6, 4, seed=seed) for seed in (1, 2)]
    residual_sum = students[0] - teacher
    mean = sum(students) / 2
    if regression:
        label = _randn(6, 4, seed=3)
        term = functional.mse_loss(mean, label)
    else:
        label = torch.tensor([0, 1, 2, 3, 0, 1])
        term = functional.cross_entropy(mean, label)
    options = {"distillation": "squared_error", "on": on}
    values = [
        _value(
            _loss({**options, "alpha": alpha}, regression=regression, n_outputs=4),
            students[-1],
            teacher,
            residual_sum,
            label=label,
        )
        for alpha in (0.0, 0.7)
    ]
    torch.testing.assert_close(values[1] - values[0], 0.7 * term)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"barrier": None, "on": "student"},
        {"distillation": None},
        {"distillation": "squared_error", "barrier": "indicator", "alpha": 0.5},
    ],
)
def test_sample_weights_repeat_rows(options):
    """For one game, a row of weight 2 is two rows."""
    game, teacher, residual_sum = _played(n=5)
    repeats = torch.tensor([1, 3, 2, 1, 4])
    scores = teacher + _randn(5, 3, seed=1)
    label = torch.tensor([0, 1, 2, 0, 1])
    loss = _loss(options, regression=False, eta=game.eta, log_z=game.log_normalizer)
    weighted = _value(
        loss,
        scores,
        teacher,
        residual_sum,
        label=label,
        sample_weight=repeats / repeats.double().mean(),
    )
    repeated = _value(
        loss,
        *(
            rows.repeat_interleave(repeats, 0)
            for rows in (scores, teacher, residual_sum)
        ),
        label=label.repeat_interleave(repeats),
    )
    torch.testing.assert_close(weighted, repeated)
    plain = _value(loss, scores, teacher, residual_sum, label=label)
    assert abs(plain - weighted) > 1e-6


def test_loss_is_the_sum_of_its_terms():
    game, teacher, residual_sum = _played()
    scores = teacher + _randn(40, 3, seed=1)
    label = torch.arange(40) % 3

    def value(**options):
        loss = _loss(options, regression=False, eta=game.eta, log_z=game.log_normalizer)
        return _value(loss, scores, teacher, residual_sum, label=label)

    kl = value(barrier=None)
    barrier = value(distillation=None, gamma=1.0)
    label_term = value(barrier=None, alpha=1.0) - kl
    torch.testing.assert_close(
        value(gamma=0.1, alpha=0.4), kl + barrier / 0.1 + 0.4 * label_term
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distillation": "squared_error", "alpha": 0.3},
        {"distillation": None},
        {"barrier": "indicator", "temperature": 2.0, "on": "student"},
    ],
)
def test_gradient_is_that_of_the_value(options):
    game, teacher, residual_sum = _played(n=6)
    label = torch.arange(6) % 3
    loss = _loss(options, regression=False, eta=game.eta, log_z=game.log_normalizer)
    # Some scores lie beyond the logarithms' domain.
    scores = teacher + 3 * _randn(6, 3, seed=4)
    assert ((scores - teacher).abs() > 0.95 * 2 * BOUND).any()
    assert torch.autograd.gradcheck(
        lambda scores: _value(loss, scores, teacher, residual_sum, label=label),
        scores.requires_grad_(),
    )


def test_gradient_flows_into_the_scores_only():
    teacher, residual_sum, scores = (
        _randn(4, 2, seed=seed).requires_grad_() for seed in range(3)
    )
    target = {"teacher": teacher, "residual_sum": residual_sum}
    _loss(PURE, n_outputs=2)(scores, target).backward()
    assert scores.grad.any()
    assert teacher.grad is None
    assert residual_sum.grad is None


# Joint training


@pytest.mark.parametrize(
    ("regression", "distillation"),
    [
        (False, "kl"),
        (False, "squared_error"),
        (False, None),
        (True, "squared_error"),
        (True, None),
    ],
)
def test_joint_loss_is_the_mean_over_stages(regression, distillation):
    teacher = _randn(6, 4)
    stages = [_randn(6, 4, seed=seed) for seed in (1, 2, 3)]
    weight = torch.tensor([1.0, 2, 0.5, 0.5, 1, 1]).double()
    objective = DistillationObjective(distillation, temperature=2.0)

    def rows(scores):
        if distillation == "squared_error" or regression:
            return (scores - teacher).square().mean(1)
        return _kl(teacher, scores, 2.0)[0]

    for target, row_weight in [({}, 1.0), ({"sample_weight": weight}, weight)]:
        value = _JointLoss(objective, regression)(
            stages, {"teacher": teacher, **target}
        )
        expected = sum((rows(scores) * row_weight).mean() for scores in stages) / 3
        torch.testing.assert_close(value, expected)


def test_joint_loss_has_the_label_term():
    teacher, label = _randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    stages = [_randn(6, 4, seed=seed) for seed in (1, 2)]
    target = {"teacher": teacher, "label": label}
    without = _JointLoss(DistillationObjective(), False)(stages, target)
    value = _JointLoss(DistillationObjective(alpha=0.5), False)(stages, target)
    term = sum(functional.cross_entropy(scores, label) for scores in stages) / 2
    torch.testing.assert_close(value - without, 0.5 * term)


# Gradients


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_previous", [0, 2])
@pytest.mark.parametrize("on", ["ensemble", "student"])
@pytest.mark.parametrize("barrier", ["weighted", "indicator", None])
@pytest.mark.parametrize(
    ("regression", "distillation"),
    [(False, "kl"), (False, "squared_error"), (True, "squared_error"), (True, None)],
)
def test_gradient_is_that_of_finite_differences(
    regression, distillation, barrier, on, n_previous, weighted
):
    options = {
        "distillation": distillation,
        "barrier": barrier,
        "on": on,
        "temperature": 1.7,
        "gamma": 0.6,
        "alpha": 0.4,
    }
    loss = _loss(
        options, regression=regression, n_previous=n_previous, eta=0.3, n_outputs=4
    )
    target = {
        "teacher": _randn(5, 4),
        "residual_sum": n_previous * _randn(5, 4, seed=1),
        "label": torch.tensor([0, 1, 2, 3, 0]),
    }
    if regression:
        target["label"] = _randn(5, 4, seed=2)
    if weighted:
        target["sample_weight"] = _randn(5, seed=3).abs()
    # Some of them are where the barrier is a line.
    scores = 3 * _randn(5, 4, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), scores)
    joint = _JointLoss(loss.objective, regression)
    assert torch.autograd.gradcheck(
        lambda scores: 2 * joint([scores, scores**2], target), scores
    )


# The parameter


@pytest.mark.parametrize(
    ("name", "distillation", "barrier"),
    [
        ("kl+barrier", "kl", "weighted"),
        ("kl", "kl", None),
        ("squared_error+barrier", "squared_error", "weighted"),
        ("squared_error", "squared_error", None),
        ("barrier", None, "weighted"),
    ],
)
def test_named_objectives(name, distillation, barrier):
    objective = _check_objective(
        name, regression=False, has_labels=False, estimator_name="Owner"
    )
    assert name in _OBJECTIVES
    assert objective.distillation == distillation
    assert objective.barrier == barrier
    assert objective.on == "ensemble"
    assert objective.alpha == 0


def test_objects_are_used_as_they_are():
    objective = DistillationObjective(None, gamma=2.0)
    checked = _check_objective(
        objective, regression=True, has_labels=False, estimator_name="Owner"
    )
    assert checked is objective
    assert clone(objective).get_params() == objective.get_params()


@pytest.mark.parametrize(
    ("objective", "regression", "message"),
    [
        ("kl", True, "'objective' parameter of Owner has distillation='kl'.*'squared"),
        ("kl+barrier", True, "'objective' parameter of Owner has distillation='kl'"),
        (
            DistillationObjective(None, barrier=None),
            False,
            "'objective' parameter of Owner has neither",
        ),
        (
            DistillationObjective(alpha=0.5),
            False,
            "'objective' parameter of Owner has alpha=0.5.*target y is None",
        ),
    ],
)
def test_impossible_objectives_are_refused(objective, regression, message):
    with pytest.raises(ValueError, match=message):
        _check_objective(
            objective, regression=regression, has_labels=False, estimator_name="Owner"
        )


def test_label_term_is_allowed_with_labels():
    _check_objective(
        DistillationObjective(alpha=0.5),
        regression=False,
        has_labels=True,
        estimator_name="Owner",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distillation", "cross_entropy"),
        ("on", "teacher"),
        ("temperature", 0),
        ("temperature", -1.0),
        ("barrier", "log"),
        ("gamma", 0.0),
        ("alpha", -0.1),
        ("alpha", "much"),
    ],
)
def test_parameters_are_validated(name, value):
    with pytest.raises(
        ValueError,
        match=rf"'{name}' parameter of DistillationObjective .*Got {value!r}",
    ):
        _check_objective(
            DistillationObjective(**{name: value}),
            regression=False,
            has_labels=True,
            estimator_name="Owner",
        )
