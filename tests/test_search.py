"""FIND-WL: attempts, edge test, ladder."""

from functools import partial

import numpy as np
import pytest
import torch
from boosting_cases import CPU, join
from torch import nn

from skbdistil._boosting._combination import Combination
from skbdistil._boosting._game import BoostingGame
from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import FeatureCache, RowData
from skbdistil._boosting._search import WeakLearnerSearch
from skbdistil._boosting._training import Trainer
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.objectives import DistillationObjective
from skbdistil.students import MLP

pytestmark = pytest.mark.usefixtures("seeded_torch")


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

    def train_student(self, module, criterion, rows, valid, *, seed, **options):
        bias = self.biases[len(self.seeds)]
        with torch.no_grad():
            module.head.weight.zero_()
            module.head.bias.copy_(torch.as_tensor(bias))
        # So that the student of the game is its head.
        Combination(module, rows.residuals.n_rounds + 1, "mean").settle()
        self.seeds.append(seed)
        self.students.append(module)
        return [{"epoch": 1, "train_loss": 0.0}]


class Bar:
    """Stands in for what is told of the epochs."""

    begun = ended = 0

    def begin_attempt(self):
        self.begun += 1

    def end_attempt(self):
        self.ended += 1


def _setting(teacher, x=None, *, connection="dense", first="zero", dtype=np.float32):
    """Rows in a game, after a first student that is the constant 0, or without it."""
    torch.manual_seed(0)
    teacher = np.asarray(teacher, dtype=dtype)
    n, n_outputs = teacher.shape
    x = torch.arange(n, dtype=torch.float32)[:, None] if x is None else x
    ensemble = ProgressiveEnsemble(x.shape[1:], n_outputs, connection=connection)
    residuals = Residuals(teacher)
    rows = RowData(
        ensemble,
        x,
        residuals,
        game=BoostingGame(residuals, eta=0.3),
        device=CPU,
        cache=FeatureCache(ensemble, 9),
    )
    if first is not None:
        student = ensemble.new_student(partial(MLP, hidden=(4,))).to(rows.dtype)
        for parameter in student.head.parameters():
            parameter.data.zero_()
        join(rows, student)
    return rows


def _search(trainer, rows, *, ladder=(Nothing,), **options):
    settings = {
        "objective": DistillationObjective("squared_error"),
        "regression": True,
        "max_epochs": 30,
        "max_attempts": 1,
        "edge_tol": 0.0,
        "bound": float(np.abs(rows.residuals.teacher_scores).max()),
        "scale": 1.0,
        **options,
    }
    return WeakLearnerSearch(ladder=list(ladder), trainer=trainer, **settings)


# One output; after the constant 0 the ensemble is below the teacher in three rows of
# four, so that a constant's edge grows with the constant.
TEACHER = [[1.0], [2.0], [2.0], [-1.0]]


def _edge(game, constant):
    return game.edges(np.full_like(game.residuals.teacher_scores, constant))[0]


def _needed(game):
    """The constant whose edge is 0."""
    at_zero, slope = _edge(game, 0), _edge(game, 1) - _edge(game, 0)
    assert slope > 0 > at_zero
    return -at_zero / slope


def _find(search, rows, *, first=0, seed=5, **options):
    return search.find(
        rows.ensemble, rows.game, rows, None, first=first, seed=seed, **options
    )


def _found(search, rows, **options):
    """The weak learner that must be there."""
    learner, failure = _find(search, rows, **options)
    assert failure is None
    return learner


def _failure(search, rows, **options):
    """Why there is no weak learner."""
    learner, failure = _find(search, rows, **options)
    assert learner is None
    return failure


# Attempts


def test_largest_minimum_edge_wins():
    rows = _setting(TEACHER)
    needed = _needed(rows.game)
    trainer = Scripted([[needed - d] for d in (0.3, 0.1, 0.2)])
    search = _search(trainer, rows, max_attempts=3, edge_tol=1.0)
    learner = _found(search, rows)
    assert learner.student is trainer.students[1]
    assert len(trainer.students) == 3
    assert len(set(trainer.seeds)) == 3
    np.testing.assert_allclose(learner.scores, needed - 0.1, rtol=1e-6)
    np.testing.assert_allclose(learner.edges, rows.game.edges(learner.scores))
    assert learner.position == 0
    assert learner.history == [{"epoch": 1, "train_loss": 0.0}]
    # What later students will read, on the training rows.
    assert [len(maps) for maps in learner.activations] == [4]


def test_the_minimum_is_over_outputs():
    teacher = np.repeat(TEACHER, 2, axis=1)
    rows = _setting(teacher)
    needed = _needed(rows.game)
    trainer = Scripted([[needed + 9, needed - 0.2], [needed - 0.1, needed - 0.1]])
    learner = _found(_search(trainer, rows, max_attempts=2, edge_tol=1.0), rows)
    assert learner.student is trainer.students[1]


def test_search_stops_at_the_first_attempt_without_a_negative_edge():
    rows = _setting(TEACHER)
    needed = _needed(rows.game)
    trainer = Scripted([[needed - 0.1], [needed + 0.1], [needed + 5]])
    learner = _found(_search(trainer, rows, max_attempts=3), rows)
    assert learner.student is trainer.students[1]
    assert len(trainer.students) == 2


def test_relaxed_condition_is_relative_to_the_bound():
    rows = _setting(TEACHER)
    edge = _edge(rows.game, 0.0)
    bound = 2.0
    for edge_tol, accepted in [
        (-edge / bound * 1.01, True),
        (-edge / bound * 0.99, False),
    ]:
        search = _search(Scripted([[0.0]]), rows, edge_tol=edge_tol)
        learner, failure = _find(search, rows)
        assert (learner is not None) == accepted == (failure is None)


def test_first_round_accepts_any_student():
    rows = _setting(TEACHER, first=None)
    learner = _found(_search(Scripted([[-7.0]]), rows), rows)
    assert learner.edges == pytest.approx(0, abs=1e-12)


def test_infinite_tolerance_accepts_a_constant_teacher():
    """Its bound is 0, and 0 times infinity is no number."""
    rows = _setting(np.zeros((4, 1)))
    search = _search(Scripted([[0.5]]), rows, edge_tol=np.inf)
    assert _found(search, rows).edges == pytest.approx(0, abs=1e-12)


def test_search_begins_where_it_is_told_in_the_ladder():
    rows = _setting(TEACHER)
    trainer = Scripted([[9.0]])
    search = _search(trainer, rows, ladder=[Nothing, partial(MLP, hidden=(3,))])
    learner = _found(search, rows, first=1)
    assert learner.position == 1
    assert isinstance(learner.student.backbone, MLP)


def test_seeds_differ_between_classes_and_rounds():
    rows = _setting(TEACHER)
    seeds = []
    for seed in (5, 6):
        trainer = Scripted([[-9.0]] * 4)
        search = _search(trainer, rows, ladder=[Nothing, Nothing], max_attempts=2)
        assert _failure(search, rows, seed=seed).startswith("The best attempt")
        seeds += trainer.seeds
    assert len(set(seeds)) == 8


def test_attempts_are_fresh_initialisations_that_the_seed_decides():
    rng = np.random.default_rng(0)
    rows = _setting(rng.standard_normal((20, 2)))

    class Collecting:
        device = CPU

        def __init__(self):
            self.weights = []

        def train_student(self, module, *args, **options):
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
        _found(search, rows)
        assert torch.equal(torch.get_rng_state(), state)
        collected.append(trainer.weights)
    first, second = collected
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[1:])


# Divergence


def test_diverged_attempts_are_dropped():
    rows = _setting(TEACHER)
    trainer = Scripted([[np.nan], [np.inf], [9.0]])
    learner = _found(_search(trainer, rows, max_attempts=3), rows)
    assert learner.student is trainer.students[2]


def test_diverged_attempts_are_reported():
    rows = _setting(TEACHER)
    search = _search(Scripted([[np.nan]] * 2), rows, max_attempts=2)
    failure = _failure(search, rows)
    assert failure == "2 attempt(s) diverged to scores that are not finite."

    search = _search(Scripted([[np.nan], [0.0]]), rows, max_attempts=2)
    failure = _failure(search, rows)
    assert failure.startswith("The best attempt has an edge of")
    assert failure.endswith("1 attempt(s) diverged to scores that are not finite.")


# The ladder

# After the constant 0, the weights of both rows differ by as much, with opposite
# signs: they sum to 0, and no constant has another edge than 0 has.
SYMMETRIC = [[1.0], [-1.0]] * 8


def _real_trainer():
    return Trainer(
        None,
        batch_size=16,
        learning_rate=0.1,
        device=CPU,
        patience=None,
        centres=False,
        combine="mean",
    )


def test_ladder_climbs_where_a_class_holds_no_weak_learner():
    x = torch.tensor([[1.0], [-1.0]] * 8)
    # Without a connection, by which a constant would read the first student's features.
    rows = _setting(SYMMETRIC, x, connection=None)
    constants = rows.game.edges(np.full((16, 1), 3.0, np.float32))
    np.testing.assert_allclose(constants, _edge(rows.game, -3.0), rtol=1e-6)
    assert constants < -0.1
    search = _search(
        _real_trainer(),
        rows,
        ladder=[Nothing, partial(MLP, hidden=(8,))],
        max_attempts=2,
        max_epochs=40,
    )
    learner = _found(search, rows)
    assert learner.position == 1
    assert learner.edges.min() >= 0


def test_ladder_runs_out_and_says_what_was_missing():
    # The first output can be satisfied: all its teacher scores are alike.
    teacher = np.concatenate([np.ones((16, 1)), SYMMETRIC], axis=1)
    rows = _setting(teacher)
    trainer = Scripted([[2.0, 0.0], [2.0, 9.0], [2.0, -9.0], [2.0, 1.0]])
    search = _search(
        trainer, rows, ladder=[Nothing, Nothing], edge_tol=0.01, max_attempts=2
    )
    failure = _failure(search, rows)
    edge = _edge_of_zero(rows.game)[1]
    assert f"edge of {edge:.3g} for output 1" in failure
    assert f"{-0.01 - edge:.3g} below the -0.01" in failure
    assert "edge_tol=0.01" in failure


def _edge_of_zero(game):
    return game.edges(np.zeros_like(game.residuals.teacher_scores))


def test_failure_describes_the_best_attempt_of_all_classes():
    rows = _setting(TEACHER)
    needed = _needed(rows.game)
    trainer = Scripted([[needed - d] for d in (0.4, 0.3, 0.1, 0.2)])
    search = _search(trainer, rows, ladder=[Nothing, Nothing], max_attempts=2)
    failure = _failure(search, rows)
    edge = _edge(rows.game, np.float32(needed - 0.1))
    assert f"edge of {edge:.3g} for output 0" in failure


def test_no_student_joins_by_being_searched():
    rows = _setting(TEACHER)
    before = rows.residuals.total.copy()
    _found(_search(Scripted([[9.0]]), rows), rows)
    _failure(_search(Scripted([[-9.0]]), rows), rows)
    n_held = len(rows.cache.take(slice(None), CPU))
    n_judged = len(rows.game.student_edges)
    assert (len(rows.ensemble), rows.residuals.n_rounds) == (1, 1)
    assert (n_held, n_judged) == (1, 1)
    np.testing.assert_array_equal(rows.residuals.total, before)


# What is trained, and on what


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_students_are_trained_against_the_state_of_the_game(dtype):
    rows = _setting(np.array(TEACHER) * 3, dtype=dtype)
    valid, bar = object(), Bar()

    class Looking(Scripted):
        def train_student(self, module, criterion, given, given_valid, **options):
            assert given is rows
            assert given_valid is valid
            assert options == {"max_epochs": 30, "seed": options["seed"], "bar": bar}
            assert criterion.n_previous == 1
            assert criterion.eta == 0.3
            assert criterion.scale == 1.0
            expected = rows.game.log_normalizer - np.log(2)
            np.testing.assert_allclose(criterion.log_scale, expected, rtol=1e-6)
            assert criterion.log_scale.numpy().dtype == dtype
            assert {p.dtype for p in module.parameters()} == {rows.dtype}
            return super().train_student(
                module, criterion, given, given_valid, **options
            )

    search = _search(Looking([[0.0], [99.0]]), rows, max_attempts=2)
    learner, _ = search.find(
        rows.ensemble, rows.game, rows, valid, first=0, seed=5, bar=bar
    )
    assert learner.student is search.trainer.students[1]
    # The bar starts again with every attempt.
    assert bar.begun == bar.ended == 2
