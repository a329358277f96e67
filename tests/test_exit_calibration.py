"""Choice of the thresholds, and the guarantee by simulation."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from skbdistil._exit_calibration import (
    ExitPath,
    best_point,
    calibration_error,
    certified_point,
    cheapest_point,
    exit_path,
    fit_temperatures,
    rows_needed,
    shared_thresholds,
    stage_thresholds,
)
from skbdistil._exit_rules import exit_stages

COSTS = np.array([1.0, 2.5, 4.5])


def simulated(n_rows, rng, errors=(0.2, 0.05)):
    """Values and losses of two early stages; what is sure is rarely lost."""
    values = rng.uniform(size=(2, n_rows))
    lost = rng.uniform(size=(2, n_rows)) < 2 * np.array(errors)[:, None] * (1 - values)
    losses = np.vstack([lost, np.zeros((1, n_rows), dtype=bool)])
    return values, losses


@pytest.fixture
def rows():
    return simulated(500, np.random.RandomState(0))


@pytest.fixture(params=["shared", "stage"])
def thresholds(request, rows):
    if request.param == "shared":
        return shared_thresholds(rows[0])
    return stage_thresholds(*rows)


# Paths


def test_path_goes_from_careful_to_cheap(rows, thresholds):
    values, losses = rows
    assert np.isinf(thresholds[0]).all()
    assert (np.diff(thresholds[1:], axis=0) <= 0).all()
    path = exit_path(thresholds, values, losses, ~losses, COSTS)
    assert path.costs[0] == COSTS[-1]
    assert path.losses[0] == 0
    assert (np.diff(path.costs) <= 0).all()
    # All rows leave at once.
    assert path.costs[-1] == COSTS[0]


def test_path_by_hand(rows, thresholds):
    values, losses = rows
    correct = np.random.RandomState(1).uniform(size=losses.shape) < 0.7
    path = exit_path(thresholds, values, losses, correct, COSTS)
    for point in (0, 1, len(thresholds) // 2, -1):
        stages = exit_stages(values, thresholds[point])
        columns = range(len(stages))
        assert path.costs[point] == pytest.approx(COSTS[stages - 1].mean())
        assert path.losses[point] == pytest.approx(losses[stages - 1, columns].mean())
        assert path.scores[point] == pytest.approx(correct[stages - 1, columns].mean())
        assert_allclose(path.exits[point], [np.mean(stages == s) for s in (1, 2, 3)])
    assert_allclose(path.exits.sum(axis=1), 1)


def test_shared_threshold_is_the_same_for_all_stages(rows):
    thresholds = shared_thresholds(rows[0])
    assert_array_equal(thresholds[:, 0], thresholds[:, 1])


def test_thresholds_lie_between_the_values(rows, thresholds):
    values, _ = rows
    for threshold, value in zip(thresholds.T, values, strict=True):
        assert not np.isin(threshold, value).any()
    # So noise far below the gaps moves no row.
    noise = 1e-12 * np.random.RandomState(0).choice([-1, 1], size=values.shape)
    for point in thresholds:
        assert_array_equal(
            exit_stages(values + noise, point), exit_stages(values, point)
        )


def test_stage_thresholds_ask_more_of_the_worse_stage(rows):
    values, losses = rows
    thresholds = stage_thresholds(values, losses)
    middle = thresholds[len(thresholds) // 2]
    # Stage 1 loses four times as many rows at the same value.
    assert middle[0] > middle[1]


def test_stage_thresholds_save_more_at_the_same_loss():
    values, losses = simulated(20000, np.random.RandomState(0))
    spent = {
        name: exit_path(thresholds, values, losses, ~losses, COSTS)
        for name, thresholds in [
            ("shared", shared_thresholds(values)),
            ("stage", stage_thresholds(values, losses)),
        ]
    }
    cost = {
        name: path.costs[cheapest_point(path, 0.03)] for name, path in spent.items()
    }
    assert cost["stage"] < cost["shared"]


def test_stage_thresholds_are_as_fine_where_no_row_is_lost(rows):
    values, losses = rows
    shared = shared_thresholds(values)
    assert len(shared) > 100
    # All rows have the same expected loss: what tells them apart is the value.
    by_stage = stage_thresholds(values, np.zeros_like(losses))
    assert len(by_stage) == pytest.approx(len(shared), rel=0.05)


def test_ensemble_of_one_stage():
    values, losses = np.empty((0, 5)), np.zeros((1, 5), dtype=bool)
    for thresholds in (shared_thresholds(values), stage_thresholds(values, losses)):
        assert thresholds.shape == (1, 0)
        path = exit_path(thresholds, values, losses, ~losses, COSTS[:1])
        assert_array_equal(path.costs, [1])


# Points


def some_path(costs, scores, losses=None):
    scores = np.array(scores)
    losses = scores[0] - scores if losses is None else np.array(losses)
    exits = np.zeros((len(costs), 2))
    return ExitPath(np.zeros((len(costs), 1)), np.array(costs), scores, losses, exits)


def test_cheapest_point():
    path = some_path([4, 3, 2, 1], [0.90, 0.91, 0.89, 0.80])
    assert cheapest_point(path, 0.0) == 1
    assert cheapest_point(path, 0.01) == 2
    assert cheapest_point(path, 0.099) == 2
    assert cheapest_point(path, 0.1) == 3


def test_best_point():
    path = some_path([4, 3, 2, 1], [0.90, 0.91, 0.89, 0.80])
    assert best_point(path, 10) == 1
    assert best_point(path, 2.9) == 2
    assert best_point(path, 1) == 3
    # The cheapest of equal scores.
    assert best_point(some_path([4, 3, 2, 1], [0.90, 0.91, 0.91, 0.80]), 10) == 2
    with pytest.raises(ValueError, match=r"within max_cost=0.5: .* mean cost is 1\."):
        best_point(path, 0.5)


def test_certified_point_stops_at_the_first_that_fails():
    n = 1000
    # 0 and 2 losses pass at 1 %, 12 do not, and what comes after is not looked at.
    path = some_path([4, 3, 2, 1], [1, 1, 1, 1], [0, 0.002, 0.012, 0.0])
    assert binom.cdf(2, n, 0.01) < 0.1 < binom.cdf(12, n, 0.01)
    assert certified_point(path, n, 0.01, 0.1) == 1
    assert certified_point(path, 10, 0.01, 0.1) == 0
    assert certified_point(path, n, 0.1, 0.1) == 3


@pytest.mark.parametrize("max_drop", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_rows_needed(max_drop, delta):
    n = rows_needed(max_drop, delta)
    path = some_path([2, 1], [1, 1])
    assert certified_point(path, n, max_drop, delta) == 1
    assert n == 1 or certified_point(path, n - 1, max_drop, delta) == 0


@pytest.mark.parametrize("max_drop", [0, 5e-324])
def test_no_number_of_rows_certifies_no_drop_at_all(max_drop):
    assert rows_needed(max_drop, 0.1) == np.inf


@pytest.mark.parametrize("kind", ["shared", "stage"])
@pytest.mark.parametrize(
    ("max_drop", "delta", "errors"),
    [(0.05, 0.1, (0.2, 0.05)), (0.02, 0.3, (0.1, 0.1)), (0.1, 0.1, (0.4, 0.0))],
)
def test_promise_is_kept(kind, max_drop, delta, errors):
    rng = np.random.RandomState(0)
    n_broken = 0
    n_exits = 0
    # What is true of the distribution, from more rows than noise could blur.
    all_values, all_losses = simulated(50000, rng, errors)
    for _ in range(200):
        values, losses = simulated(600, rng, errors)
        order, tested = slice(0, 200), slice(200, None)
        if kind == "shared":
            thresholds = shared_thresholds(values[:, order])
        else:
            thresholds = stage_thresholds(values[:, order], losses[:, order])
        path = exit_path(
            thresholds,
            values[:, tested],
            losses[:, tested],
            ~losses[:, tested],
            COSTS,
        )
        point = certified_point(path, 400, max_drop, delta)
        true = exit_path(
            thresholds[[point]], all_values, all_losses, ~all_losses, COSTS
        )
        n_broken += true.losses[0] > max_drop
        n_exits += point > 0
    assert n_broken <= binom.ppf(0.999, 200, delta)
    # The promise is not kept by doing nothing.
    assert n_exits > 150


# Temperature


def test_temperature_is_recovered():
    rng = np.random.RandomState(0)
    logits = 2 * rng.randn(3, 20000, 4)
    temperatures = np.array([0.5, 1.0, 3.0])
    label = np.array([rng.choice(4, p=p) for p in softmax(logits[0], axis=1)])
    scores = logits[[0]] * temperatures.reshape(-1, 1, 1)
    assert_allclose(fit_temperatures(scores, label), temperatures, rtol=0.05)


def test_temperature_does_not_lower_the_likelihood():
    rng = np.random.RandomState(0)
    scores, label = 5 * rng.randn(3, 200, 4), rng.randint(4, size=200)
    found = fit_temperatures(scores, label)

    def likelihood(temperature, stage):
        return log_softmax(scores[stage] / temperature, axis=1)[
            range(200), label
        ].mean()

    for stage, temperature in enumerate(found):
        assert likelihood(temperature, stage) >= likelihood(1.0, stage)


def test_calibration_error_by_hand():
    proba = np.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    # Bins of 1/15: the two rows of .9, one of them right; .5, right; 1, wrong.
    expected = (abs(1 - 1.8) + abs(1 - 0.5) + abs(0 - 1)) / 4
    assert calibration_error(proba, np.array([0, 1, 0, 0])) == pytest.approx(expected)


def test_calibration_error_of_the_truth_is_small():
    rng = np.random.RandomState(0)
    proba = softmax(2 * rng.randn(20000, 3), axis=1)
    label = np.array([rng.choice(3, p=p) for p in proba])
    assert calibration_error(proba, label) < 0.02
    assert calibration_error(proba**3 / (proba**3).sum(1, keepdims=True), label) > 0.05
