"""The boosting game: identities of its weights, edges and certificate."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from skbdistil._boosting._game import (
    LARGEST_STEP,
    BoostingGame,
    Certificate,
    auto_eta,
)
from skbdistil._boosting._residuals import Residuals

property_test = settings(deadline=None)

seeds = st.integers(0, 2**32 - 1)
etas = st.floats(1e-3, 1e3)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 3))


def new_game(teacher_scores, *, total=None, chunk_size=1024, **params):
    residuals = Residuals(teacher_scores, total=total, chunk_size=chunk_size)
    return BoostingGame(residuals, **params)


def play(teacher_scores, rounds, **params):
    """Play the rounds of `rounds`, an array (n_rounds, n_samples, n_outputs)."""
    game = new_game(teacher_scores, **params)
    for scores in rounds:
        game.update(scores)
    return game


def random_game(seed, *, n_samples=30, n_outputs=3, n_rounds=4):
    """Teacher scores and rounds of student scores."""
    rng = np.random.default_rng(seed)
    teacher_scores = rng.normal(size=(n_samples, n_outputs))
    # The sizes of the deviations differ between rows and rounds by decades.
    scale = 10.0 ** rng.uniform(-3, 1, size=(n_rounds, n_samples, 1))
    deviation = rng.normal(size=(n_rounds, n_samples, n_outputs)) * scale
    return teacher_scores, teacher_scores + deviation


def assert_same_game(one, other, rtol=1e-9):
    """Two games agree in edges, normalisers and certificates."""
    assert_allclose(one.student_edges, other.student_edges, rtol=rtol, atol=rtol * 10.0)
    assert_allclose(one.log_normalizer, other.log_normalizer, rtol=rtol)
    mine, theirs = one.certificate(), other.certificate()
    assert_allclose(mine.bound, theirs.bound, rtol=rtol)
    assert_allclose(mine.actual, theirs.actual, rtol=rtol)
    assert_allclose(mine.mean, theirs.mean, rtol=rtol)
    assert_allclose(mine.step, theirs.step, rtol=rtol)


# Weights


@property_test
@given(
    residual=hnp.arrays(
        np.float64,
        shapes,
        elements=st.one_of(
            st.floats(-1e6, 1e6), st.floats(-1, 1), st.floats(-1e-6, 1e-6)
        ),
    ),
    eta=st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 1.0)),
    chunk_size=st.integers(1, 5),
)
def test_weights_are_a_distribution_over_rows(residual, eta, chunk_size):
    game = play(np.zeros_like(residual), [residual], eta=eta, chunk_size=chunk_size)

    weight_under, weight_over = game.weights()

    assert np.isfinite(game.log_normalizer).all()
    assert (weight_under >= 0).all()
    assert (weight_over >= 0).all()
    assert_allclose((weight_under + weight_over).sum(axis=0), 1.0, rtol=1e-12)


@property_test
@given(seed=seeds, eta=st.floats(1e-3, 2.0))
def test_weights_follow_their_definition(seed, eta):
    teacher_scores, rounds = random_game(seed)
    rng = np.random.default_rng(seed)
    sample_weight = rng.uniform(0.1, 3.0, size=len(teacher_scores))
    game = play(teacher_scores, rounds, eta=eta, sample_weight=sample_weight)
    prior = (sample_weight / sample_weight.sum())[:, np.newaxis]
    residual_sum = (rounds - teacher_scores).sum(axis=0)
    normalizer = (prior * 2 * np.cosh(eta * residual_sum)).sum(axis=0)

    weight_under, weight_over = game.weights()

    assert_allclose(game.residuals.total, residual_sum, atol=1e-12)
    assert_allclose(game.log_normalizer, np.log(normalizer), rtol=1e-10)
    assert_allclose(
        weight_under, prior * np.exp(-eta * residual_sum) / normalizer, rtol=1e-9
    )
    assert_allclose(
        weight_over, prior * np.exp(eta * residual_sum) / normalizer, rtol=1e-9
    )


@property_test
@given(
    sample_weight=hnp.arrays(
        np.float64, st.integers(1, 10), elements=st.floats(0, 1e6, width=32)
    ),
    eta=etas,
)
def test_first_round_repeats_the_sample_weights(sample_weight, eta):
    assume(sample_weight.any())
    game = new_game(
        np.ones((len(sample_weight), 2)), eta=eta, sample_weight=sample_weight
    )

    expected = np.broadcast_to(
        sample_weight[:, np.newaxis] / sample_weight.sum() / 2, (len(sample_weight), 2)
    )
    for weight in game.weights():
        assert_allclose(weight, expected, rtol=1e-12)


@pytest.mark.parametrize("n_samples", [1, 7])
def test_first_round_is_uniform(n_samples):
    game = new_game(np.ones((n_samples, 2)), eta=0.5)

    for weight in game.weights():
        assert_allclose(weight, np.full((n_samples, 2), 1 / (2 * n_samples)))
    assert_allclose(game.log_normalizer, np.log(2))
    # So the first student is trained by plain distillation.
    assert_array_equal(game.edges(np.arange(2.0 * n_samples).reshape(-1, 2)), [0, 0])


def test_weight_moves_to_the_side_of_the_deviation():
    game = play(np.zeros((3, 1)), [np.array([[-1.0], [0.0], [2.0]])], eta=0.5)

    weight_under, weight_over = game.weights()

    assert np.argmax(weight_under) == 0
    assert np.argmax(weight_over) == 2
    # A student that corrects the ensemble is a weak learner, its opposite is not.
    assert game.edges(-game.residuals.total) > 0
    assert game.edges(game.residuals.total) < 0


@property_test
@given(seed=seeds)
def test_weights_of_some_rows(seed):
    teacher_scores, rounds = random_game(seed)
    sample_weight = np.random.default_rng(seed).integers(0, 3, len(teacher_scores))
    sample_weight[0] = 1
    game = play(teacher_scores, rounds, eta=0.3, sample_weight=sample_weight)

    for rows in (slice(3, 20), np.array([5, 2, 2, 17])):
        for some, every in zip(game.weights(rows), game.weights(), strict=True):
            assert_array_equal(some, every[rows])


@property_test
@given(seed=seeds)
def test_permuting_rows_permutes_weights(seed):
    teacher_scores, rounds = random_game(seed)
    order = np.random.default_rng(seed).permutation(len(teacher_scores))

    game = play(teacher_scores, rounds, eta=0.3)
    permuted = play(teacher_scores[order], rounds[:, order], eta=0.3)

    for weight, other in zip(game.weights(), permuted.weights(), strict=True):
        assert_allclose(weight[order], other, rtol=1e-11)
    assert_same_game(game, permuted)


# Edges


@property_test
@given(seed=seeds)
def test_edges_follow_their_definition(seed):
    teacher_scores, rounds = random_game(seed)
    *earlier, scores = rounds
    game = play(teacher_scores, earlier, eta=0.3, chunk_size=7)
    weight_under, weight_over = game.weights()

    terms = (weight_under - weight_over) * (scores - teacher_scores)
    atol = 1e-12 * np.abs(terms).sum(axis=0).max()

    assert_allclose(game.edges(scores), terms.sum(axis=0), atol=atol)


@property_test
@given(seed=seeds)
def test_update_records_the_edges_before_it(seed):
    teacher_scores, rounds = random_game(seed)
    game = new_game(teacher_scores, eta=0.3)

    expected = []
    for scores in rounds:
        expected.append(game.edges(scores))
        game.update(scores)

    assert game.residuals.n_rounds == len(rounds)
    assert_array_equal(game.student_edges, expected)


@property_test
@given(seed=seeds, size=st.sampled_from([1e-12, 1e-6, 1.0, 1e3]))
def test_duplicated_rows_leave_the_edges(seed, size):
    rng = np.random.default_rng(seed)
    teacher_scores = np.zeros((20, 2))
    first, second = rng.normal(size=(2, 20, 2)) * size
    game = play(teacher_scores, [first], eta=0.3)
    double = play(np.tile(teacher_scores, (2, 1)), [np.tile(first, (2, 1))], eta=0.3)
    # K+ - K- without the cancellation of a subtraction.
    weight = sum(game.weights()) * np.tanh(-0.3 * first)

    difference = game.edges(second) - double.edges(np.tile(second, (2, 1)))

    assert (np.abs(difference) <= 1e-12 * np.abs(weight * second).sum(axis=0)).all()


# Sample weights


@property_test
@given(seed=seeds)
def test_integer_sample_weights_equal_repeated_rows(seed):
    teacher_scores, rounds = random_game(seed)
    repeats = np.random.default_rng(seed).integers(1, 4, size=len(teacher_scores))
    repeated = np.repeat(teacher_scores, repeats, axis=0)

    weighted = play(teacher_scores, rounds, eta=0.3, sample_weight=repeats)
    plain = play(repeated, np.repeat(rounds, repeats, axis=1), eta=0.3)

    assert_allclose(weighted.student_edges, plain.student_edges, rtol=1e-9, atol=1e-9)
    assert_allclose(weighted.log_normalizer, plain.log_normalizer, rtol=1e-9)
    for weight, other in zip(weighted.weights(), plain.weights(), strict=True):
        starts = np.cumsum(repeats) - repeats
        assert_allclose(weight, np.add.reduceat(other, starts, axis=0), rtol=1e-9)
    # The bounds differ: a row repeated k times is k light rows to the adversary.
    assert_allclose(weighted.certificate().actual, plain.certificate().actual)
    assert_allclose(weighted.certificate().mean, plain.certificate().mean)


@property_test
@given(seed=seeds, intruder=st.sampled_from([1.0, 1e3, 1e8]))
def test_rows_of_weight_zero_equal_their_removal(seed, intruder):
    teacher_scores, rounds = random_game(seed)
    sample_weight = np.random.default_rng(seed).uniform(0.5, 2.0, len(teacher_scores))
    sample_weight[::3] = 0.0
    rounds[:, ::3] += intruder
    kept = sample_weight > 0

    game = play(teacher_scores, rounds, eta=0.3, sample_weight=sample_weight)
    without = play(
        teacher_scores[kept],
        rounds[:, kept],
        eta=0.3,
        sample_weight=sample_weight[kept],
    )

    assert_same_game(game, without)
    for weight, other in zip(game.weights(), without.weights(), strict=True):
        assert_array_equal(weight[~kept], 0.0)
        assert_allclose(weight[kept], other, rtol=1e-9)


@property_test
@given(seed=seeds, factor=st.floats(1e-6, 1e6))
def test_scale_of_the_sample_weights_does_not_matter(seed, factor):
    teacher_scores, rounds = random_game(seed)
    sample_weight = np.random.default_rng(seed).uniform(0.5, 2.0, len(teacher_scores))

    assert_same_game(
        play(teacher_scores, rounds, eta=0.3, sample_weight=sample_weight),
        play(teacher_scores, rounds, eta=0.3, sample_weight=factor * sample_weight),
    )


# Certificate


def adversary(name, game, rng, step):
    """Deviation of the next student, at most step / eta in absolute value."""
    limit = step / game.eta
    shape = game.residuals.teacher_scores.shape
    if name == "random":
        return rng.uniform(-limit, limit, size=shape)
    if name == "one row":
        deviation = np.zeros(shape)
        deviation[-1] = limit
        return deviation
    if name == "against the weights":
        weight_under, weight_over = game.weights()
        return np.where(weight_under > weight_over, -limit, limit)
    if name == "worst edge":
        candidates = rng.choice([-limit, 0.0, limit], size=(10, *shape))
        edges = [
            game.edges(game.residuals.teacher_scores + each).sum()
            for each in candidates
        ]
        return candidates[np.argmin(edges)]
    raise ValueError(name)


@property_test
@given(
    seed=seeds,
    names=st.lists(
        st.sampled_from(["random", "one row", "against the weights", "worst edge"]),
        min_size=1,
        max_size=3,
    ),
    n_samples=st.integers(1, 20),
    n_rounds=st.integers(1, 25),
    eta=etas,
    # From steps that make the bound tight to one just below the largest it allows.
    step=st.sampled_from([0.03, 0.3, 1.0, 1.79]),
    weighted=st.booleans(),
)
def test_certificate_holds_against_adversaries(
    seed, names, n_samples, n_rounds, eta, step, weighted
):
    rng = np.random.default_rng(seed)
    sample_weight = 10.0 ** rng.uniform(-6, 0, size=n_samples) if weighted else None
    # With a teacher of zeros, eta * abs(f - g) is at most the step, up to rounding.
    game = new_game(
        np.zeros((n_samples, 2)), eta=eta, sample_weight=sample_weight, chunk_size=8
    )
    ensemble = np.zeros((n_samples, 2))
    for stage in range(n_rounds):
        scores = adversary(names[stage % len(names)], game, rng, step)
        game.update(scores)
        ensemble += scores

        certificate = game.certificate()
        assert len(certificate) == stage + 1
        deviation = np.abs(ensemble) / (stage + 1)
        assert_allclose(certificate.actual[-1], deviation.max(axis=0))
        assert_allclose(
            certificate.mean[-1], np.average(deviation, axis=0, weights=sample_weight)
        )
    assert np.isfinite(certificate.bound).all()
    assert (certificate.step <= LARGEST_STEP).all()
    assert (certificate.actual <= certificate.bound).all()
    # The weights sum to 1 up to rounding.
    assert (certificate.mean <= certificate.actual * (1 + 1e-12)).all()


@property_test
@given(seed=seeds, weighted=st.booleans())
def test_certificate_follows_its_definition(seed, weighted):
    teacher_scores, rounds = random_game(seed)
    n_samples, n_rounds, eta = len(teacher_scores), len(rounds), 0.01
    rng = np.random.default_rng(seed)
    sample_weight = rng.uniform(0.1, 3.0, size=n_samples) if weighted else None
    lightest = sample_weight.min() / sample_weight.sum() if weighted else 1 / n_samples
    game = new_game(teacher_scores, eta=eta, sample_weight=sample_weight)
    moments = 0.0
    for scores in rounds:
        moments += (sum(game.weights()) * (scores - teacher_scores) ** 2).sum(axis=0)
        game.update(scores)

    certificate = game.certificate()
    regret = np.log(2 / lightest) / eta + eta * moments
    deviation = np.abs(rounds - teacher_scores)
    mean_deviation = np.abs(rounds.mean(axis=0) - teacher_scores)

    assert_allclose(
        certificate.bound[-1], (regret - game.student_edges.sum(axis=0)) / n_rounds
    )
    assert_allclose(certificate.actual[-1], mean_deviation.max(axis=0))
    assert_allclose(
        certificate.mean[-1], np.average(mean_deviation, axis=0, weights=sample_weight)
    )
    assert_allclose(certificate.step, eta * deviation.max(axis=(1, 2)))


@pytest.mark.parametrize("lightest", [None, 0.5, 1e-3, 1e-9])
@pytest.mark.parametrize("sign", [-1, 1])
def test_certificate_is_nearly_tight(lightest, sign):
    # Many small steps on the row that is cheapest for the adversary leave of the
    # bound only the second-order terms: a smaller constant would be wrong.
    sample_weight = None if lightest is None else [1 - lightest, lightest]
    n_samples, n_rounds, step = (1 if lightest is None else 2), 1500, 0.02
    deviation = np.zeros((n_samples, 1))
    deviation[-1] = sign * step
    game = play(
        np.zeros((n_samples, 1)),
        [deviation] * n_rounds,
        eta=1.0,
        sample_weight=sample_weight,
    )
    certificate = game.certificate()

    slack = n_rounds * (certificate.bound - certificate.actual)[-1, 0]

    # Per round at most x ** 2 of the moments; 1e-6 for what is not yet on the row.
    assert 0 <= slack <= n_rounds * step**2 + 1e-6


@property_test
@given(seed=seeds, breach=st.integers(0, 4), excess=st.floats(1e-9, 10.0))
def test_certificate_is_infinite_beyond_its_condition(seed, breach, excess):
    rng = np.random.default_rng(seed)
    rounds = rng.uniform(-1, 1, size=(5, 6, 2))
    rounds[breach, 3, 1] = -LARGEST_STEP
    within = play(np.zeros((6, 2)), rounds, eta=1.0).certificate()
    rounds[breach, 3, 1] -= excess
    beyond = play(np.zeros((6, 2)), rounds, eta=1.0).certificate()

    assert np.isfinite(within.bound).all()
    assert within.step[breach] == LARGEST_STEP
    assert_array_equal(beyond.bound[:breach], within.bound[:breach])
    # Neither output: the condition is on the student.
    assert_array_equal(beyond.bound[breach:], np.inf)
    assert_allclose(beyond.step[breach], LARGEST_STEP + excess)
    # The potential needs no condition.
    assert (beyond.actual <= beyond.potential).all()


def test_largest_step_is_where_the_inequality_of_the_certificate_ends():
    def gap(x):
        return 1 - x + x**2 - np.exp(-x)

    x = np.linspace(-LARGEST_STEP, 50, 100_001)
    # Of rounding near x = 0, where both sides are 1.
    assert (gap(x) >= -1e-15).all()
    assert gap(-LARGEST_STEP - 1e-4) < 0


@property_test
@given(seed=seeds, eta=st.floats(1e-3, 50.0), weighted=st.booleans())
def test_potential_bounds_the_deviation_whatever_the_steps(seed, eta, weighted):
    teacher_scores, rounds = random_game(seed)
    n_samples = len(teacher_scores)
    rng = np.random.default_rng(seed)
    sample_weight = rng.uniform(0.1, 3.0, size=n_samples) if weighted else None
    weights = np.full(n_samples, 1.0) if sample_weight is None else sample_weight
    weights = weights / weights.sum()
    game = play(teacher_scores, rounds, eta=eta, sample_weight=sample_weight)

    certificate = game.certificate()

    assert (certificate.actual <= certificate.potential * (1 + 1e-12)).all()
    expected = (game.log_normalizer - np.log(weights.min())) / (eta * len(rounds))
    assert_allclose(certificate.potential[-1], expected)


def test_certificate_of_a_step_close_to_zero_is_infinite_without_a_warning():
    rounds = np.random.default_rng(0).uniform(-1, 1, size=(3, 6, 2))
    certificate = play(np.zeros((6, 2)), rounds, eta=1e-310).certificate()
    assert_array_equal(certificate.bound, np.inf)
    assert_array_equal(certificate.potential, np.inf)
    assert np.isfinite(certificate.actual).all()


def test_certificate_needs_its_condition():
    # One row in a thousand, 30 steps away: the formula would promise less than 10,
    # for the row is too light for its deviation to show in the moment.
    deviation = np.zeros((1000, 1))
    deviation[0] = 30.0
    game = new_game(np.zeros((1000, 1)), eta=1.0)
    weight = sum(game.weights())
    formula = np.log(2 * 1000) + (weight * deviation**2).sum() - game.edges(deviation)
    game.update(deviation)

    assert formula < 10
    assert_allclose(game.certificate().actual, [[30.0]])
    assert_array_equal(game.certificate().bound, [[np.inf]])


@property_test
@given(
    seed=seeds,
    bound=st.floats(1e-3, 1e3),
    n_samples=st.integers(1, 50),
    n_rounds=st.integers(1, 20),
)
def test_weak_learners_reach_the_rate_of_the_paper(seed, bound, n_samples, n_rounds):
    """Edges of at least 0 give O(B sqrt(ln n / T)).

    With abs(l) <= 2 B, a moment is at most 4 B ** 2, so that the bound is at most
    ln(2n) / (eta T) + 4 eta B ** 2. Write r = sqrt(ln(2n) / T). Where the step is
    eta = r / 2B, this is 4 B r; where it is capped, eta = 1 / 2B and r >= 1, it is
    2 B (r ** 2 + 1) <= 4 B r ** 2.
    """
    rng = np.random.default_rng(seed)
    teacher_scores = rng.uniform(-bound, bound, size=(n_samples, 2))
    eta = auto_eta(bound, n_samples, n_rounds)
    game = new_game(teacher_scores, eta=eta)
    for _ in range(n_rounds):
        deviation = rng.choice([-1.9, 1.0, 1.9], size=teacher_scores.shape) * bound
        sign = np.where(game.edges(teacher_scores + deviation) >= 0, 1, -1)
        game.update(teacher_scores + sign * deviation)

    rate = np.sqrt(np.log(2 * n_samples) / n_rounds)
    certificate = game.certificate()

    assert (game.student_edges >= -1e-9 * bound).all()
    assert (certificate.actual <= certificate.bound).all()
    assert (certificate.bound[-1] <= 4 * bound * max(rate, rate**2) * (1 + 1e-9)).all()


def test_certificate_before_the_first_round_is_empty():
    game = new_game(np.zeros((4, 3)), eta=0.5)

    assert game.residuals.n_rounds == len(game.certificate()) == 0
    assert game.student_edges.shape == game.certificate().bound.shape == (0, 3)
    assert game.certificate().mean.shape == (0, 3)


def test_certificate_of_leading_stages():
    teacher_scores, rounds = random_game(0)
    game = play(teacher_scores, rounds, eta=0.01)
    leading = play(teacher_scores, rounds[:2], eta=0.01)

    certificate = game.certificate()[:2]

    assert len(certificate) == 2
    assert_array_equal(certificate.bound, leading.certificate().bound)
    assert_array_equal(certificate.potential, leading.certificate().potential)
    assert_array_equal(certificate.actual, leading.certificate().actual)
    assert_array_equal(certificate.mean, leading.certificate().mean)
    assert_array_equal(certificate.step, leading.certificate().step)


def test_scaled_certificate_is_in_the_units_of_the_targets():
    certificate = Certificate(
        bound=np.array([[2.0, 3.0], [np.inf, np.inf]]),
        potential=np.array([[4.0, 6.0], [5.0, np.inf]]),
        actual=np.array([[1.0, 0.5], [4.0, 5.0]]),
        mean=np.array([[0.5, 0.25], [3.0, 2.0]]),
        step=np.array([0.5, 2.0]),
    )

    scaled = certificate.scaled(np.array([10.0, 0.0]))

    assert_array_equal(scaled.bound, [[20.0, 0.0], [np.inf, np.inf]])
    assert_array_equal(scaled.potential, [[40.0, 0.0], [50.0, np.inf]])
    assert_array_equal(scaled.actual, [[10.0, 0.0], [40.0, 0.0]])
    assert_array_equal(scaled.mean, [[5.0, 0.0], [30.0, 0.0]])
    assert_array_equal(scaled.step, certificate.step)
    assert_array_equal(certificate.bound, [[2.0, 3.0], [np.inf, np.inf]])


# The step


@property_test
@given(
    bound=st.floats(1e-100, 1e100),
    n_samples=st.integers(1, 10**9),
    n_rounds=st.integers(1, 1000),
)
def test_auto_eta_keeps_the_condition_of_the_certificate(bound, n_samples, n_rounds):
    eta = auto_eta(bound, n_samples, n_rounds)
    rate = np.sqrt(np.log(2 * n_samples) / n_rounds)

    assert 0 < eta * 2 * bound <= 1
    assert_allclose(eta * 2 * bound, min(rate, 1))


def test_constant_teacher_leaves_the_weights_alone():
    teacher_scores = np.zeros((5, 3))
    eta = auto_eta(np.abs(teacher_scores).max(), 5, 2)
    game = play(teacher_scores, np.ones((2, 5, 3)), eta=eta)

    assert eta == 0
    for weight in game.weights():
        assert_allclose(weight, np.full((5, 3), 0.1))
    assert_array_equal(game.student_edges, np.zeros((2, 3)))
    assert_array_equal(game.certificate().bound, np.full((2, 3), np.inf))
    assert_array_equal(game.certificate().actual, np.ones((2, 3)))
    assert_allclose(game.certificate().mean, np.ones((2, 3)))
    assert_array_equal(game.certificate().step, [0, 0])


# Storage


@property_test
@given(seed=seeds, chunk_size=st.integers(1, 40))
def test_chunk_size_does_not_matter(seed, chunk_size):
    teacher_scores, rounds = random_game(seed)

    chunked = play(teacher_scores, rounds, eta=0.3, chunk_size=chunk_size)
    whole = play(teacher_scores, rounds, eta=0.3, chunk_size=1000)

    assert_same_game(chunked, whole)
    assert_array_equal(chunked.residuals.total, whole.residuals.total)


def test_memory_maps_give_the_same_game(tmp_path):
    teacher_scores, rounds = random_game(0)
    teacher_scores, rounds = teacher_scores.astype("f4"), rounds.astype("f4")
    np.save(tmp_path / "teacher.npy", teacher_scores)
    on_disk = np.load(tmp_path / "teacher.npy", mmap_mode="r")
    storage = np.lib.format.open_memmap(
        tmp_path / "sum.npy", mode="w+", dtype="f4", shape=teacher_scores.shape
    )

    mapped = play(on_disk, rounds, eta=0.3, total=storage, chunk_size=7)
    in_memory = play(teacher_scores, rounds, eta=0.3, chunk_size=7)

    assert mapped.residuals.teacher_scores is on_disk
    assert mapped.residuals.total is storage
    storage.flush()
    assert_array_equal(np.load(tmp_path / "sum.npy"), in_memory.residuals.total)
    assert_array_equal(mapped.student_edges, in_memory.student_edges)
    assert_array_equal(mapped.certificate().bound, in_memory.certificate().bound)
    assert_array_equal(mapped.certificate().mean, in_memory.certificate().mean)
    for weight, other in zip(mapped.weights(), in_memory.weights(), strict=True):
        assert type(weight) is np.ndarray
        assert_array_equal(weight, other)


@property_test
@given(seed=seeds)
def test_reset_then_replay_gives_the_same_game(seed):
    teacher_scores, rounds = random_game(seed)
    game = play(teacher_scores, rounds, eta=0.3)
    game.reset()

    assert game.residuals.n_rounds == 0
    assert not game.residuals.total.any()
    assert_allclose(game.log_normalizer, np.log(2))

    for scores in rounds:
        game.update(scores)
    once = play(teacher_scores, rounds, eta=0.3)
    assert_same_game(game, once, rtol=0)


@property_test
@given(seed=seeds)
def test_float32_storage_costs_the_rounding_of_the_sum(seed):
    teacher_scores, rounds = random_game(seed)
    teacher_scores, rounds = teacher_scores.astype("f4"), rounds.astype("f4")
    eta = 0.3

    single = play(teacher_scores, rounds, eta=eta)
    double = play(teacher_scores, rounds, eta=eta, total=np.zeros(teacher_scores.shape))
    sizes = np.abs(np.cumsum(rounds.astype("f8") - teacher_scores, axis=0)).max()
    # Each round rounds S once; log-weights move by eta times that, twice with log Z.
    rounding = len(rounds) * np.finfo("f4").eps * sizes
    largest = np.abs(rounds.astype("f8") - teacher_scores).max()

    assert single.residuals.total.dtype == np.float32
    assert single.log_normalizer.dtype == np.float64
    assert_allclose(
        single.residuals.total, double.residuals.total, rtol=0, atol=rounding
    )
    assert_allclose(
        single.student_edges,
        double.student_edges,
        rtol=0,
        atol=np.expm1(2 * eta * rounding) * largest,
    )
    for weight, other in zip(single.weights(), double.weights(), strict=True):
        assert weight.dtype == np.float64
        assert_allclose(weight, other, rtol=np.expm1(2 * eta * rounding))
        assert_allclose(sum(single.weights()).sum(axis=0), 1.0, rtol=1e-12)


@property_test
@given(seed=seeds)
def test_float32_storage_is_read_in_float64(seed):
    teacher_scores, rounds = random_game(seed)
    teacher_scores, rounds = teacher_scores.astype("f4"), rounds.astype("f4")
    *earlier, scores = rounds
    single = play(teacher_scores, earlier, eta=0.3)
    stored = single.residuals.total.astype("f8")
    double = play(np.zeros_like(stored), [stored], eta=0.3)
    deviation = scores.astype("f8") - teacher_scores

    assert_allclose(single.log_normalizer, double.log_normalizer, rtol=1e-12)
    for weight, other in zip(single.weights(), double.weights(), strict=True):
        assert_allclose(weight, other, rtol=1e-12)
    # Weights sum to 1, so an edge is rounded by at most that of the largest term.
    atol = 1e-13 * np.abs(deviation).max()
    assert_allclose(
        single.edges(scores), double.edges(deviation), rtol=1e-12, atol=atol
    )


def test_temporary_memory_does_not_grow_with_the_rows():
    n_samples, n_outputs, chunk_size = 50_000, 4, 100
    scores = np.zeros((n_samples, n_outputs), dtype="f4")
    game = new_game(scores, eta=0.3, chunk_size=chunk_size)

    tracemalloc.start()
    try:
        game.update(scores)
        game.edges(scores)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Measured: about 6 float64 temporaries per chunk, and NumPy's cast buffers.
    assert peak < 40 * chunk_size * n_outputs * 8 < scores.nbytes / 4


# Errors


@pytest.mark.parametrize("eta", [-0.1, np.inf, np.nan])
def test_eta_out_of_range(eta):
    with pytest.raises(ValueError, match="eta must be non-negative and finite"):
        new_game(np.zeros((3, 2)), eta=eta)


@pytest.mark.parametrize(
    ("sample_weight", "message"),
    [
        ([1.0, 1.0], r"must have shape \(3,\)"),
        ([1.0, -1.0, 1.0], "non-negative and finite"),
        ([1.0, np.nan, 1.0], "non-negative and finite"),
        ([0.0, 0.0, 0.0], "at least one positive entry"),
    ],
)
def test_invalid_sample_weight(sample_weight, message):
    with pytest.raises(ValueError, match=message):
        new_game(np.zeros((3, 2)), eta=0.5, sample_weight=sample_weight)


def test_shapes_must_agree():
    game = new_game(np.zeros((3, 2)), eta=0.5)
    # An array of one column would broadcast in silence.
    column = np.zeros((3, 1))

    for method in (game.update, game.edges):
        with pytest.raises(ValueError, match="must have the shape of teacher_scores"):
            method(column)
    with pytest.raises(ValueError, match="total must have the shape"):
        new_game(np.zeros((3, 2)), eta=0.5, total=column)
