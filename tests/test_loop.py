"""The boosting loop: rounds, refinement, interrupts and the replay of the game."""

import copy

import numpy as np
import pytest
import torch
from boosting_cases import (
    CONNECTIONS,
    CPU,
    DEEP_STUDENT,
    EXACT,
    assert_same,
    make_rows,
)

from skbdistil import BDistilRegressor
from skbdistil._boosting._game import BoostingGame
from skbdistil._boosting._loop import Boosting, Round
from skbdistil._boosting._progress import FitTasks, Progress
from skbdistil._boosting._random import draw_seeds
from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import FeatureCache, RowData
from skbdistil._boosting._search import WeakLearnerSearch
from skbdistil.ensemble import Lateral, ProgressiveEnsemble
from skbdistil.exceptions import FitInterruptedWarning, WeakLearnerNotFoundWarning
from skbdistil.objectives import DistillationObjective, _JointLoss

pytestmark = pytest.mark.usefixtures("seeded_torch")

N_ROUNDS = 3
SEEDS = draw_seeds(np.random.RandomState(0), N_ROUNDS)


class Nudging:
    """Stands in for training: the seed decides where the weights are moved to."""

    device = CPU

    def __init__(self):
        self.seeds = {"student": [], "refinement": []}

    def train_student(self, student, criterion, rows, valid, *, seed, **options):
        self.seeds["student"].append(seed)
        student.carry.fill_(np.random.default_rng(seed).uniform(0.5, 1))
        return self._nudge(student, seed)

    def train_jointly(self, ensemble, criterion, rows, valid, *, seed, **options):
        self.seeds["refinement"].append(seed)
        assert all(p.requires_grad for p in ensemble.parameters())
        # What is held would be out of date.
        caches = [part.cache for part in (rows, valid) if part.cache is not None]
        assert [cache.take(slice(None), CPU) for cache in caches] == [[]] * len(caches)
        return self._nudge(ensemble, seed)

    @torch.no_grad()
    def _nudge(self, module, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return [{"epoch": 1, "train_loss": float(seed)}]


@pytest.fixture(autouse=True)
def rounds_pay(monkeypatch):
    """Students here are nudged, not trained: where to stop is for another module."""
    monkeypatch.setattr(
        Boosting,
        "_losses_held_out",
        lambda self: [-len(self.rounds)] * bool(self.rounds),
    )


def _boosting(trainer=None, *, rounds=(), kind=Boosting, **options):
    """A loop over 20 rows and 10 validation rows, with students that are nudged."""
    trainer = Nudging() if trainer is None else trainer
    options = {"held": True, "connection": "dense", **options}
    rows = make_rows(n=20, **options)
    valid = make_rows(n=10, seed=1, plays=False, ensemble=rows.ensemble, **options)
    boosting = kind(
        rows.ensemble,
        rows.game,
        rows,
        valid,
        search=WeakLearnerSearch(
            ladder=[DEEP_STUDENT],
            trainer=trainer,
            objective=DistillationObjective("squared_error"),
            regression=True,
            max_epochs=1,
            max_attempts=1,
            edge_tol=np.inf,
            bound=1.0,
            scale=1.0,
        ),
        trainer=trainer,
        joint_loss=_JointLoss(DistillationObjective("squared_error"), True),
        progress=Progress(
            0, "Owner", N_ROUNDS, None, "", FitTasks(BDistilRegressor(), N_ROUNDS)
        ),
        estimator_name="Owner",
    )
    boosting.rounds.extend(rounds)
    return boosting


def _run(boosting, refine=None):
    boosting.run(SEEDS, refine=refine, refine_epochs=1)
    return boosting


def _state(boosting):
    """All that a loop knows of its students, as tensors of its own."""

    def tensors(arrays):
        return [torch.tensor(np.asarray(array)) for array in arrays]

    certificate = boosting.game.certificate()
    state = {
        "students": {
            name: tensor.clone()
            for name, tensor in boosting.ensemble.state_dict().items()
        },
        "game": tensors(
            [
                boosting.game.student_edges,
                boosting.game.log_normalizer,
                *boosting.game.weights(),
                certificate.bound,
                certificate.actual,
                certificate.mean,
                certificate.step,
            ]
        ),
    }
    for name, rows in (("rows", boosting.rows), ("valid", boosting.valid)):
        state[name] = {"total": tensors([rows.residuals.total])}
        if rows.cache is not None:
            state[name]["held"] = rows.cache.take(slice(None), CPU)
    return state


def _assert_in_agreement(boosting):
    """Every count is that of the rounds, and no student is in training."""
    n = len(boosting.rounds)
    students = list(boosting.ensemble.students)
    assert len(students) == n
    for student, played in zip(students, boosting.rounds, strict=True):
        assert student is played.student
    assert boosting.game.student_edges.shape == (n, 2)
    assert len(boosting.game.certificate()) == n
    for rows in (boosting.rows, boosting.valid):
        assert rows.residuals.n_rounds == n
        if rows.cache is not None:
            assert len(rows.cache.take(slice(None), CPU)) == n
    assert boosting.game.residuals is boosting.rows.residuals
    assert boosting.ensemble.frozen
    assert not any(p.requires_grad for p in boosting.ensemble.parameters())
    assert not any(module.training for module in boosting.ensemble.students.modules())


def _assert_equal_to_a_replay(boosting, **options):
    other = _boosting(rounds=copy.deepcopy(boosting.rounds), **options)
    other.replay()
    _assert_in_agreement(other)
    assert_same(_state(boosting), _state(other), **EXACT)


# Rounds


@pytest.mark.parametrize("refine", [None, "rounds"])
@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("held", [True, False])
def test_replay_is_the_game_as_it_was_to_the_bit(connection, held, refine, monkeypatch):
    # Chunks whose last one is smaller.
    monkeypatch.setattr("skbdistil._boosting._rows._CHUNK_ROWS", 7)
    boosting = _run(_boosting(connection=connection, held=held), refine)
    assert len(boosting.rounds) == N_ROUNDS
    _assert_in_agreement(boosting)
    before = _state(boosting)
    assert boosting.rows.residuals.total.any()
    assert boosting.valid.residuals.total.any()
    boosting.replay()
    _assert_in_agreement(boosting)
    assert_same(_state(boosting), before, **EXACT)


@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("refine", [None, "rounds"])
def test_residuals_of_both_kinds_of_rows_are_those_of_the_ensemble(connection, refine):
    boosting = _run(_boosting(connection=connection, dtype=torch.float64), refine)
    for rows in (boosting.rows, boosting.valid):
        with torch.no_grad():
            mean = boosting.ensemble(rows.x)
        np.testing.assert_allclose(rows.residuals.mean(), mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_before", [1, 2])
@pytest.mark.parametrize("connection", [None, "last", "dense"])
def test_rounds_that_go_on_are_those_of_one_longer_run(n_before, connection):
    whole = _run(_boosting(connection=connection))
    first = _boosting(connection=connection)
    first.run(SEEDS[:n_before], refine=None, refine_epochs=1)
    assert len(first.rounds) == n_before
    later = _boosting(connection=connection, rounds=copy.deepcopy(first.rounds))
    later.replay()
    _run(later)
    assert_same(_state(later), _state(whole), **EXACT)
    assert [r.history for r in later.rounds] == [r.history for r in whole.rounds]


@pytest.mark.parametrize("refine", ["final", "rounds"])
def test_students_without_new_ones_are_not_refined_again(refine):
    boosting = _run(_boosting())
    before = _state(boosting)
    _run(boosting, refine)
    assert_same(_state(boosting), before, **EXACT)


def test_every_training_has_a_seed_of_its_own():
    boosting = _run(_boosting(), "rounds")
    seeds = boosting.trainer.seeds
    assert [len(seeds[name]) for name in ("student", "refinement")] == [3, 3]
    assert len({*SEEDS.tolist(), *seeds["student"], *seeds["refinement"]}) == 9
    final = _run(_boosting(), "final").trainer.seeds
    assert final["student"] == seeds["student"]
    # The last refinement is that after the last round.
    assert final["refinement"] == seeds["refinement"][-1:]


class Scripted:
    """Stands in for the search: students of given positions, None for a failure."""

    max_epochs = max_attempts = 1
    ladder = ("one", "two", "three")

    def __init__(self, search, positions):
        self.search = search
        self.positions = iter(positions)
        self.firsts = []

    def find(self, *args, first, **options):
        self.firsts.append(first)
        position = next(self.positions)
        if position is None:
            return None, "That is why."
        learner, failure = self.search.find(*args, first=0, **options)
        object.__setattr__(learner, "position", position)
        return learner, failure


def test_search_begins_with_the_class_of_the_last_student():
    boosting = _boosting()
    boosting.search = Scripted(boosting.search, [0, 2, 2])
    _run(boosting)
    assert boosting.search.firsts == [0, 0, 2]
    assert [played.position for played in boosting.rounds] == [0, 2, 2]


@pytest.mark.parametrize("refine", [None, "final"])
def test_boosting_stops_at_the_round_without_a_weak_learner(refine):
    boosting = _boosting()
    boosting.search = Scripted(boosting.search, [0, 1, None])
    _run(boosting, refine)
    assert len(boosting.rounds) == 2
    _assert_in_agreement(boosting)
    _assert_equal_to_a_replay(boosting)
    assert not boosting.interrupted
    (note,) = boosting.notes
    assert isinstance(note, WeakLearnerNotFoundWarning)
    assert str(note).startswith(
        "Owner found no weak learner in round 3 of 3: the last of 3 hypothesis "
        "class(es) has failed. That is why. Boosting stops with 2 student(s)."
    )
    # What has been found is refined all the same.
    assert len(boosting.trainer.seeds["refinement"]) == (refine == "final")


def test_no_weak_learner_in_round_1_is_an_error():
    boosting = _boosting()
    boosting.search = Scripted(boosting.search, [None])
    with pytest.raises(ValueError, match=r"round 1 of 3: .* That is why\. Train the"):
        _run(boosting)
    assert boosting.notes == []


# Refinement


class Diverging(Nudging):
    """Stands in for training that ends with weights that are not finite."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def train_jointly(self, ensemble, *args, **options):
        super().train_jointly(ensemble, *args, **options)
        with torch.no_grad():
            # One weight of the last student, of all.
            ensemble.students[-1].head.bias[-1] = self.value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("refine", "n_times"), [("final", 1), ("rounds", 3)])
@pytest.mark.parametrize("held", [True, False])
def test_students_stay_as_they_were_before_a_refinement_that_diverges(
    value, refine, n_times, held
):
    plain = _run(_boosting(held=held))
    boosting = _run(_boosting(Diverging(value), held=held), refine)
    _assert_in_agreement(boosting)
    assert_same(_state(boosting), _state(plain), **EXACT)
    assert not boosting.interrupted
    assert len(boosting.notes) == n_times
    for note in boosting.notes:
        assert isinstance(note, RuntimeWarning)
        assert "refinement diverged" in str(note)
        assert "'learning_rate'" in str(note)


def test_students_stay_as_they_were_before_a_refinement_that_fails():
    class Failing(Nudging):
        def train_jointly(self, *args, **options):
            super().train_jointly(*args, **options)
            raise ZeroDivisionError

    boosting = _boosting(Failing())
    with pytest.raises(ZeroDivisionError):
        _run(boosting, "final")
    students = _state(_run(_boosting()))["students"]
    assert_same(_state(boosting)["students"], students, **EXACT)


# Interrupts


class Interrupting:
    """Raises KeyboardInterrupt at one of the calls of the loop's parts.

    Parameters
    ----------
    number : int or None
        Number of the call; None only counts them.
    """

    watched = [
        (Nudging, "train_student"),
        (Nudging, "train_jointly"),
        (RowData, "run"),
        (RowData, "add"),
        (RowData, "forget_activations"),
        (Residuals, "add"),
        (Residuals, "reset"),
        (BoostingGame, "edges"),
        (BoostingGame, "update"),
        (BoostingGame, "_reweight"),
        (FeatureCache, "extend"),
        (FeatureCache, "clear"),
        (ProgressiveEnsemble, "new_student"),
        (ProgressiveEnsemble, "append"),
        (ProgressiveEnsemble, "freeze"),
        (ProgressiveEnsemble, "unfreeze"),
        (Progress, "report"),
    ]

    def __init__(self, monkeypatch, number=None):
        self.monkeypatch = monkeypatch
        self.number = number
        self.n_calls = 0

    def __enter__(self):
        self.context = self.monkeypatch.context()
        patch = self.context.__enter__()
        for owner, name in self.watched:
            patch.setattr(owner, name, self._interrupting(getattr(owner, name)))
        return self

    def __exit__(self, *error):
        return self.context.__exit__(*error)

    def _interrupting(self, function):
        def call(*args, **kwargs):
            self.n_calls += 1
            if self.n_calls == self.number:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call


def _bits(boosting):
    """The weights of all students as bytes, and what they carry on."""
    values = boosting.ensemble.state_dict().values()
    return b"".join(value.numpy().tobytes() for value in values)


class Recorded(Boosting):
    """Remembers the students after every round and every refinement."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.finished = []

    def _play(self, *args):
        won = super()._play(*args)
        self.finished.append((len(self.rounds), _bits(self)))
        return won

    def _refine(self, *args):
        super()._refine(*args)
        self.finished.append((len(self.rounds), _bits(self)))


@pytest.mark.parametrize(
    ("connection", "held", "refine"),
    [
        ("dense", True, None),
        ("dense", False, None),
        ("last", True, "rounds"),
        ("dense", False, "rounds"),
        (Lateral("last", shared_blocks=1), True, "final"),
    ],
    ids=str,
)
def test_an_interrupt_at_any_call_leaves_all_parts_in_agreement(
    connection, held, refine, monkeypatch
):
    options = {"connection": connection, "held": held}

    reference = _boosting(kind=Recorded, **options)
    with Interrupting(monkeypatch) as counter:
        _run(reference, refine)
    kept = []
    for number in range(1, counter.n_calls + 1):
        boosting = _boosting(**options)
        with Interrupting(monkeypatch, number):
            try:
                _run(boosting, refine)
            except KeyboardInterrupt:
                assert boosting.rounds == []
                kept.append(0)
                continue
        kept.append(len(boosting.rounds))
        assert boosting.interrupted
        (note,) = boosting.notes
        assert isinstance(note, FitInterruptedWarning)
        assert f"the {kept[-1]} finished student(s) are kept" in str(note)
        _assert_in_agreement(boosting)
        _assert_equal_to_a_replay(boosting, **options)
        # No student is half trained.
        assert (kept[-1], _bits(boosting)) in reference.finished
    assert kept == sorted(kept)
    assert set(kept) == {*range(N_ROUNDS + 1)}


def test_a_run_that_was_interrupted_can_go_on(monkeypatch):
    boosting = _boosting()
    with Interrupting(monkeypatch) as counter:
        whole = _state(_run(_boosting()))
    with Interrupting(monkeypatch, 2 * counter.n_calls // 3):
        _run(boosting)
    assert len(boosting.rounds) == 2
    assert_same(_state(_run(boosting)), whole, **EXACT)


def test_an_uninterrupted_run_says_so():
    boosting = _run(_boosting(), "rounds")
    assert not boosting.interrupted
    assert boosting.notes == []


def test_rounds_hold_what_has_been_won():
    boosting = _run(_boosting())
    for played, student in zip(
        boosting.rounds, boosting.ensemble.students, strict=True
    ):
        assert isinstance(played, Round)
        assert played.student is student
        assert played.position == 0
        assert [row["epoch"] for row in played.history] == [1]
