"""FIND-WL: attempts, edge test, calibration, ladder."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from skbdistil._game import BoostingGame
from skbdistil._search import WeakLearnerSearch, _centre
from skbdistil._training import RowData, Trainer
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.objectives import DistillationObjective
from skbdistil.students import MLP

CPU = torch.device("cpu")


class Nothing(nn.Module):
    """A hypothesis class of constants: its feature is 1 for every row."""

    def __init__(self, input_shape):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.ones_like(x[:, :1]) + 0 * self.anchor


class Scripted:
    """Stands in for training: every attempt gets the next of the given biases."""

    device = CPU

    def __init__(self, biases):
        self.biases = list(biases)
        self.seeds = []
        self.students = []

    def train(self, module, criterion, rows, valid, *, max_epochs, seed, bar=None):
        bias = self.biases[len(self.seeds)]
        with torch.no_grad():
            module.head.weight.zero_()
            module.head.bias.copy_(torch.as_tensor(bias))
        self.seeds.append(seed)
        self.students.append(module)
        return [{"epoch": 1, "train_loss": 0.0}]


class Untrained:
    """Stands in for training: students stay as they were initialised."""

    device = CPU

    def train(self, module, criterion, rows, valid, *, max_epochs, seed, bar=None):
        return []


def _setting(
    teacher, x=None, *, connection="dense", eta=0.3, dtype=torch.float32, first="zero"
):
    """Game and rows after a first student: the constant 0, or a random one."""
    torch.manual_seed(0)
    teacher = torch.as_tensor(teacher, dtype=dtype)
    n, n_outputs = teacher.shape
    x = torch.arange(n, dtype=dtype)[:, None] if x is None else x.to(dtype)
    ensemble = ProgressiveEnsemble(x.shape[1:], n_outputs, connection=connection)
    game = BoostingGame(teacher.numpy(), eta=eta)
    rows = RowData(
        ensemble,
        x,
        teacher,
        torch.from_numpy(game.residual_sum),
        n_students=9,
        device=CPU,
    )
    if first is not None:
        student = ensemble.new_student(partial(MLP, hidden=(4,))).to(dtype)
        if first == "zero":
            for parameter in student.head.parameters():
                parameter.data.zero_()
        ensemble.append(student)
        scores, kept = rows.run(student)
        game.update(scores)
        rows.keep(kept)
    return game, rows


def _search(trainer, rows, *, ladder=(Nothing,), **options):
    settings = {
        "objective": DistillationObjective("squared_error"),
        "regression": True,
        "max_epochs": 30,
        "max_attempts": 1,
        "edge_tol": 0.0,
        "max_edge_scale": 1.0,
        "bound": float(rows.teacher.abs().max()),
        **options,
    }
    return WeakLearnerSearch(ladder=list(ladder), trainer=trainer, **settings)


# One output; after the constant 0 the ensemble is below the teacher in three rows of
# four, so that a constant's edge grows with the constant.
TEACHER = [[1.0], [2.0], [2.0], [-1.0]]


def _edge(game, constant):
    return game.edges(np.full_like(game.teacher_scores, constant))[0]


def _needed(game):
    """The constant whose edge is 0."""
    at_zero, slope = _edge(game, 0), _edge(game, 1) - _edge(game, 0)
    assert slope > 0 > at_zero
    return -at_zero / slope


def _find(search, game, rows, **options):
    return search.find(game, rows, None, first_rung=0, seed=5, **options)


# Attempts


def test_largest_minimum_edge_wins():
    game, rows = _setting(TEACHER)
    needed = _needed(game)
    trainer = Scripted([[needed - d] for d in (0.3, 0.1, 0.2)])
    search = _search(trainer, rows, max_attempts=3, edge_tol=1.0)
    learner = _find(search, game, rows)
    assert learner.student is trainer.students[1]
    assert len(trainer.students) == 3
    assert len(set(trainer.seeds)) == 3
    np.testing.assert_allclose(learner.scores, needed - 0.1, rtol=1e-6)
    np.testing.assert_allclose(learner.edges, game.edges(learner.scores))
    assert learner.rung == 0
    assert learner.history == [{"epoch": 1, "train_loss": 0.0}]
    # What later students will read, on the training rows.
    assert [len(kept) for kept in learner.kept] == [4]


def test_the_minimum_is_over_outputs():
    teacher = np.repeat(TEACHER, 2, axis=1)
    game, rows = _setting(teacher)
    needed = _needed(game)
    trainer = Scripted([[needed + 9, needed - 0.2], [needed - 0.1, needed - 0.1]])
    learner = _find(_search(trainer, rows, max_attempts=2, edge_tol=1.0), game, rows)
    assert learner.student is trainer.students[1]


def test_search_stops_at_the_first_attempt_without_a_negative_edge():
    game, rows = _setting(TEACHER)
    needed = _needed(game)
    trainer = Scripted([[needed - 0.1], [needed + 0.1], [needed + 5]])
    learner = _find(_search(trainer, rows, max_attempts=3), game, rows)
    assert learner.student is trainer.students[1]
    assert len(trainer.students) == 2


def test_relaxed_condition_is_relative_to_the_bound():
    game, rows = _setting(TEACHER)
    edge = _edge(game, 0.0)
    bound = 2.0
    for edge_tol, accepted in [
        (-edge / bound * 1.01, True),
        (-edge / bound * 0.99, False),
    ]:
        search = _search(Scripted([[0.0]]), rows, edge_tol=edge_tol)
        assert (_find(search, game, rows) is not None) == accepted


def test_first_round_accepts_any_student():
    game, rows = _setting(TEACHER, first=None)
    learner = _find(_search(Scripted([[-7.0]]), rows), game, rows)
    assert learner.edges == pytest.approx(0, abs=1e-12)


def test_infinite_tolerance_accepts_a_constant_teacher():
    """Its bound is 0, and 0 times infinity is no number."""
    game, rows = _setting(np.zeros((4, 1)))
    search = _search(Scripted([[0.5]]), rows, edge_tol=np.inf)
    assert _find(search, game, rows) is not None


def test_first_rung_is_where_the_search_begins():
    game, rows = _setting(TEACHER)
    trainer = Scripted([[9.0]])
    search = _search(trainer, rows, ladder=[Nothing, partial(MLP, hidden=(3,))])
    learner = search.find(game, rows, None, first_rung=1, seed=5)
    assert learner.rung == 1
    assert isinstance(learner.student.backbone, MLP)


def test_seeds_differ_between_rungs_and_rounds():
    game, rows = _setting(TEACHER)
    seeds = []
    for seed in (5, 6):
        trainer = Scripted([[-9.0]] * 4)
        search = _search(trainer, rows, ladder=[Nothing, Nothing], max_attempts=2)
        assert search.find(game, rows, None, first_rung=0, seed=seed) is None
        seeds += trainer.seeds
    assert len(set(seeds)) == 8


def test_attempts_are_fresh_initialisations_that_the_seed_decides():
    rng = np.random.default_rng(0)
    game, rows = _setting(rng.standard_normal((20, 2)))

    class Collecting(Untrained):
        def __init__(self):
            self.weights = []

        def train(self, module, *args, **kwargs):
            self.weights.append(module.head.weight.clone())
            return []

    collected = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        trainer = Collecting()
        search = _search(
            trainer,
            rows,
            ladder=[partial(MLP, hidden=(3,))],
            max_attempts=3,
            edge_tol=100,
        )
        search.find(game, rows, None, first_rung=0, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        collected.append(trainer.weights)
    first, second = collected
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[1:])


# Divergence


def test_diverged_attempts_are_dropped():
    game, rows = _setting(TEACHER)
    trainer = Scripted([[np.nan], [np.inf], [9.0]])
    learner = _find(_search(trainer, rows, max_attempts=3), game, rows)
    assert learner.student is trainer.students[2]


def test_diverged_attempts_are_reported():
    game, rows = _setting(TEACHER)
    search = _search(Scripted([[np.nan]] * 2), rows, max_attempts=2)
    assert _find(search, game, rows) is None
    assert search.failure == "2 attempt(s) diverged to scores that are not finite."

    search = _search(Scripted([[np.nan], [0.0]]), rows, max_attempts=2)
    assert _find(search, game, rows) is None
    assert search.failure.startswith("The best attempt has an edge of")
    assert search.failure.endswith(
        "1 attempt(s) diverged to scores that are not finite."
    )


# The ladder

# After the constant 0, the weights of both rows differ by as much, with opposite
# signs: they sum to 0, and no constant has another edge than 0 has.
SYMMETRIC = [[1.0], [-1.0]] * 8


def _real_trainer():
    return Trainer(None, batch_size=16, learning_rate=0.1, device=CPU, patience=None)


def test_ladder_climbs_where_a_class_holds_no_weak_learner():
    x = torch.tensor([[1.0], [-1.0]] * 8)
    # Without a connection, by which a constant would read the first student's features.
    game, rows = _setting(SYMMETRIC, x, connection=None)
    constants = game.edges(np.full((16, 1), 3.0, np.float32))
    np.testing.assert_allclose(constants, _edge(game, -3.0), rtol=1e-6)
    assert constants < -0.1
    search = _search(
        _real_trainer(),
        rows,
        ladder=[Nothing, partial(MLP, hidden=(8,))],
        max_attempts=2,
        max_epochs=40,
    )
    learner = _find(search, game, rows)
    assert learner.rung == 1
    assert learner.edges.min() >= 0


def test_ladder_runs_out_and_says_what_was_missing():
    # The first output can be satisfied: all its teacher scores are alike.
    teacher = np.concatenate([np.ones((16, 1)), SYMMETRIC], axis=1)
    game, rows = _setting(teacher)
    trainer = Scripted([[2.0, 0.0], [2.0, 9.0], [2.0, -9.0], [2.0, 1.0]])
    search = _search(
        trainer, rows, ladder=[Nothing, Nothing], edge_tol=0.01, max_attempts=2
    )
    assert _find(search, game, rows) is None
    edge = _edge_of_zero(game)[1]
    assert f"edge of {edge:.3g} for output 1" in search.failure
    assert f"{-0.01 - edge:.3g} below the -0.01" in search.failure
    assert "edge_tol=0.01" in search.failure


def _edge_of_zero(game):
    return game.edges(np.zeros_like(game.teacher_scores))


def test_failure_describes_the_best_attempt_of_all_rungs():
    game, rows = _setting(TEACHER)
    needed = _needed(game)
    trainer = Scripted([[needed - d] for d in (0.4, 0.3, 0.1, 0.2)])
    search = _search(trainer, rows, ladder=[Nothing, Nothing], max_attempts=2)
    assert _find(search, game, rows) is None
    edge = _edge(game, np.float32(needed - 0.1))
    assert f"edge of {edge:.3g} for output 0" in search.failure


def test_no_student_joins_by_being_searched():
    game, rows = _setting(TEACHER)
    before = copy.deepcopy(game.residual_sum)
    _find(_search(Scripted([[9.0]]), rows), game, rows)
    _find(_search(Scripted([[-9.0]]), rows), game, rows)
    assert (len(rows.ensemble), rows.n_previous, game.n_rounds) == (1, 1, 1)
    np.testing.assert_array_equal(game.residual_sum, before)


# Calibration


class LeastSquares(Untrained):
    """Stands in for training: the best head for random features, then shrunk.

    Some outputs are shrunk little, some more than calibration may make up for, some
    are too large and some have the wrong sign.
    """

    def train(self, module, criterion, rows, valid, *, max_epochs, seed, bar=None):
        features = []
        hook = module.head.register_forward_pre_hook(
            lambda head, args: features.append(args[0])
        )
        inputs, targets = rows[:]
        with torch.no_grad():
            module(**inputs)
            hook.remove()
            design = torch.cat([features[0], torch.ones_like(features[0][:, :1])], 1)
            # The mean of the earlier students, where it is added, is not the head's.
            wanted = targets["teacher"] - inputs.get("mean", 0)
            design, wanted = design.double(), wanted.double()
            # A ridge: features may be dead or alike.
            gram = design.T @ design + 1e-3 * torch.eye(design.shape[1])
            solution = torch.linalg.solve(gram, design.T @ wanted)
            shrink = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1, 0.01, 1.5, -1])
            solution *= shrink
            module.head.weight.copy_(solution[:-1].T)
            module.head.bias.copy_(solution[-1])
        return []


def _attempts(connection, seed, max_edge_scale, dtype):
    """The same candidate, without and with calibration."""
    candidate = partial(MLP, hidden=(6, 6))
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((60, 5)))
    teacher = 2 * torch.tanh(x @ torch.from_numpy(rng.standard_normal((5, 8))))
    game, rows = _setting(teacher, x, connection=connection, dtype=dtype, first=None)
    # Something for the residual connection to add.
    for student_seed in (1, 2):
        torch.manual_seed(student_seed)
        student = rows.ensemble.new_student(candidate).to(dtype)
        rows.ensemble.append(student)
        scores, kept = rows.run(student)
        game.update(scores)
        rows.keep(kept)
    found = []
    for scale in (1.0, max_edge_scale):
        search = _search(
            LeastSquares(), rows, ladder=[candidate], edge_tol=1e9, max_edge_scale=scale
        )
        found.append(search.find(game, rows, None, first_rung=0, seed=seed))
    return game, rows, *found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("connection", [None, "dense", "residual", "lateral"])
def test_calibration_scales_outputs_by_the_smallest_factor(connection, dtype):
    n_scaled = n_left = 0
    for seed in range(12):
        game, rows, plain, calibrated = _attempts(connection, seed, 5.0, dtype)
        under, over = game.weights()
        difference = under - over
        teacher = game.teacher_scores.astype(np.float64)
        wanted, head = teacher, plain.scores.astype(np.float64)
        if connection == "residual":
            mean = teacher + game.residual_sum / game.n_rounds
            wanted, head = teacher - mean, head - mean
        wanted, of_head = (difference * wanted).sum(0), (difference * head).sum(0)
        factor = wanted / of_head
        usable = (of_head > 0) & (factor > 1) & (factor <= 5)
        n_scaled += usable.sum()
        n_left += (~usable).sum()

        after, before = calibrated.student.head, plain.student.head
        expected = torch.from_numpy(np.where(usable, factor, 1.0)).to(dtype)
        torch.testing.assert_close(
            after.weight, before.weight * expected[:, None], rtol=1e-4, atol=0
        )
        torch.testing.assert_close(
            after.bias, before.bias * expected, rtol=1e-4, atol=0
        )
        # Exactly the same where there is no usable factor.
        left = torch.from_numpy(~usable)
        assert torch.equal(after.weight[left], before.weight[left])
        assert torch.equal(after.bias[left], before.bias[left])
        # Smaller factors would not do: the edge is 0 but for rounding.
        assert (plain.edges[usable] < 0).all()
        assert (calibrated.edges[usable] >= 0).all()
        rounding = 1e-5 * np.abs(difference * head).sum(0)
        assert (calibrated.edges <= rounding)[usable].all()
        # Edges are those of the student as it is now.
        scores, _ = rows.run(calibrated.student)
        np.testing.assert_array_equal(scores, calibrated.scores)
        np.testing.assert_array_equal(game.edges(scores), calibrated.edges)
    assert min(n_scaled, n_left) > 20


def test_no_calibration_where_the_factor_is_too_large():
    for seed in range(12):
        _, _, plain, calibrated = _attempts("dense", seed, 1 + 1e-9, torch.float32)
        assert torch.equal(calibrated.student.head.weight, plain.student.head.weight)
        np.testing.assert_array_equal(calibrated.edges, plain.edges)


def test_calibration_rescues_an_attempt():
    game, rows = _setting(TEACHER)
    needed = _needed(game)
    constants = [[needed / 1.5]]
    assert _find(_search(Scripted(constants), rows), game, rows) is None
    search = _search(Scripted(constants), rows, max_edge_scale=2.0)
    learner = _find(search, game, rows)
    np.testing.assert_allclose(learner.scores, needed, rtol=1e-5)


# Centring


def test_centred_heads_leave_the_softmax_alone():
    torch.manual_seed(0)
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


@pytest.mark.parametrize("connection", ["dense", "residual", "lateral"])
@pytest.mark.parametrize("regression", [False, True])
def test_classifiers_are_centred_and_regressors_are_not(regression, connection):
    torch.manual_seed(0)
    x = torch.randn(30, 5)
    teacher = torch.randn(30, 3)
    teacher -= teacher.mean(1, keepdim=True)
    game, rows = _setting(teacher, x, connection=connection, first=None)
    for _ in range(3):
        search = _search(
            Untrained(),
            rows,
            ladder=[partial(MLP, hidden=(6, 6))],
            edge_tol=1e9,
            regression=regression,
        )
        learner = search.find(game, rows, None, first_rung=0, seed=game.n_rounds)
        largest = np.abs(learner.scores.sum(1)).max()
        assert (largest < 1e-5) == (not regression)
        rows.ensemble.append(learner.student)
        game.update(learner.scores)
        rows.keep(learner.kept)
