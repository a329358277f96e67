import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    fbeta_score,
    get_scorer,
    log_loss,
    make_scorer,
    mean_squared_error,
    r2_score,
)

from skbdistil.metrics import (
    _check_costs,
    _search_scores_and_costs,
    _split_scores,
    _stage_within,
    accuracy_cost_area,
    accuracy_cost_curve,
    calibration_error,
    cost_at_score,
    pareto_optimal,
    score_at_cost,
)

# Scores and costs on a coarse grid, so that ties are common.
scores_of = st.integers(-4, 4).map(lambda score: score / 4)


@st.composite
def curves(draw, first_cost=0):
    """Cumulative costs and scores of 1 to 8 stages, in no order of the scores."""
    increments = draw(st.lists(st.integers(0, 3), min_size=1, max_size=8))
    scores = draw(
        st.lists(scores_of, min_size=len(increments), max_size=len(increments))
    )
    return first_cost + np.cumsum(increments).astype(float), np.array(scores)


@pytest.fixture(scope="module")
def staged():
    """Labels, weights, and the labels and probabilities of four stages."""
    rng = np.random.RandomState(0)
    y = rng.randint(3, size=60)
    sample_weight = rng.uniform(0.5, 2.0, size=60)
    logits = rng.normal(size=(60, 3))
    proba = [
        np.exp(logits + strength * np.eye(3)[y]) for strength in (0.0, 1.0, 2.0, 4.0)
    ]
    proba = [p / p.sum(axis=1, keepdims=True) for p in proba]
    return y, sample_weight, [p.argmax(axis=1) for p in proba], proba


COSTS = [10, 25, 25, 45]


# accuracy_cost_curve


def test_accuracy_is_the_default(staged):
    y, sample_weight, labels, _ = staged
    costs, scores = accuracy_cost_curve(y, labels, COSTS)
    assert_array_equal(costs, COSTS)
    assert costs.dtype == scores.dtype == np.float64
    assert_allclose(scores, [accuracy_score(y, stage) for stage in labels])
    _, scores = accuracy_cost_curve(y, labels, COSTS, sample_weight=sample_weight)
    expected = [accuracy_score(y, p, sample_weight=sample_weight) for p in labels]
    assert_allclose(scores, expected)


def test_labels_that_are_text():
    y = ["no", "yes", "no", "no"]
    _, scores = accuracy_cost_curve(y, [["no"] * 4, y], [1, 2])
    assert_array_equal(scores, [0.75, 1.0])


def test_metric_is_a_function(staged):
    y, _, labels, _ = staged
    _, scores = accuracy_cost_curve(y, labels, COSTS, metric=balanced_accuracy_score)
    assert_allclose(scores, [balanced_accuracy_score(y, stage) for stage in labels])


def test_weights_reach_the_metric_as_a_keyword_if_given():
    seen = []

    def metric(y_true, predictions, **weight):
        assert isinstance(y_true, np.ndarray)
        assert isinstance(predictions, np.ndarray)
        seen.append(weight)
        return 1.0

    accuracy_cost_curve([0, 1], [[0, 1]], [1], metric=metric)
    accuracy_cost_curve([0, 1], [[0, 1]], [1], metric=metric, sample_weight=[1, 2])
    assert seen == [{}, {"sample_weight": [1, 2]}]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("scorer", "function", "uses_proba"),
    [
        (get_scorer("accuracy"), accuracy_score, False),
        (
            make_scorer(fbeta_score, beta=2.0, average="macro"),
            lambda y, labels, **weight: fbeta_score(
                y, labels, beta=2.0, average="macro", **weight
            ),
            False,
        ),
        # Signs are turned.
        (
            get_scorer("neg_log_loss"),
            lambda y, proba, **weight: -log_loss(y, proba, **weight),
            True,
        ),
        (
            make_scorer(mean_squared_error, greater_is_better=False),
            lambda y, labels, **weight: -mean_squared_error(y, labels, **weight),
            False,
        ),
    ],
)
def test_metric_is_a_scorer(staged, scorer, function, uses_proba, weighted):
    y, sample_weight, labels, proba = staged
    weight = {"sample_weight": sample_weight} if weighted else {}
    predictions = proba if uses_proba else labels
    _, scores = accuracy_cost_curve(y, predictions, COSTS, metric=scorer, **weight)
    assert_allclose(scores, [function(y, stage, **weight) for stage in predictions])


class Given(ClassifierMixin, BaseEstimator):
    """Its rows are its probabilities."""

    def __init__(self, classes):
        self.classes_ = np.array(classes)

    def predict_proba(self, X):
        return X


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("scorer", "classes"),
    [
        (get_scorer("roc_auc"), [0, 1]),
        (get_scorer("roc_auc"), ["a", "b"]),
        (get_scorer("neg_log_loss"), ["a", "b"]),
        (get_scorer("neg_brier_score"), [0, 1]),
        (get_scorer("average_precision"), [-1, 1]),
        # The class that counts as positive, 1, is the first one.
        (get_scorer("average_precision"), [1, 2]),
        (
            make_scorer(
                average_precision_score, response_method="predict_proba", pos_label="a"
            ),
            ["a", "b"],
        ),
    ],
)
def test_scorers_of_two_probabilities(staged, scorer, classes, weighted):
    y, sample_weight, _, proba = staged
    weight = {"sample_weight": sample_weight} if weighted else {}
    y = np.take(classes, y > 0)
    proba = [np.column_stack([p[:, 0], 1 - p[:, 0]]) for p in proba]
    _, scores = accuracy_cost_curve(y, proba, COSTS, metric=scorer, **weight)
    assert_allclose(scores, [scorer(Given(classes), p, y, **weight) for p in proba])


def test_several_targets():
    y = np.arange(8.0).reshape(4, 2)
    _, scores = accuracy_cost_curve(y, [y + 1, y], [1, 2], metric=r2_score)
    assert_allclose(scores, [r2_score(y, y + 1), 1.0])


def test_costs_of_stages_that_are_not_used(staged):
    y, _, labels, _ = staged
    costs, scores = accuracy_cost_curve(y, labels[:2], COSTS)
    assert_array_equal(costs, [10, 25])
    assert len(scores) == 2


def test_stages_may_come_from_a_generator(staged):
    y, _, labels, _ = staged
    alive = []

    def stages():
        for stage in labels:
            alive.append("predicted")
            yield stage

    def metric(y_true, predictions):
        alive.append("scored")
        return accuracy_score(y_true, predictions)

    _, scores = accuracy_cost_curve(y, stages(), COSTS, metric=metric)
    assert_array_equal(scores, accuracy_cost_curve(y, labels, COSTS)[1])
    # One stage at a time: predictions of all of them need not fit into memory.
    assert alive == ["predicted", "scored"] * 4


def test_accuracy_of_several_labels():
    y, predicted = [[0, 1], [1, 1]], [[0, 1], [1, 0]]
    _, scores = accuracy_cost_curve(y, [predicted], [1], sample_weight=[1, 3])
    assert_array_equal(scores, [accuracy_score(y, predicted, sample_weight=[1, 3])])


@pytest.mark.parametrize("predicted", [np.eye(3), np.zeros((3, 1)), np.zeros((3, 2))])
def test_accuracy_of_what_are_no_labels(predicted):
    message = f"'y_true' have shapes {predicted.shape} and (3,)."
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracy_cost_curve([0, 1, 1], [predicted], [1])


def test_weights_take_the_place_of_those_of_the_scorer():
    scorer = make_scorer(accuracy_score, sample_weight=[1, 1])
    _, scores = accuracy_cost_curve(
        [0, 1], [[0, 0]], [1], metric=scorer, sample_weight=[3, 1]
    )
    assert_array_equal(scores, [0.75])


def test_refused_predictions():
    with pytest.raises(ValueError, match="'staged_predictions' is empty; give at"):
        accuracy_cost_curve([0, 1], [], [1])
    message = "'staged_predictions' has 3 rows at stage 2, and 'y_true' has 2."
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracy_cost_curve([0, 1], [[0, 1], [0, 1, 1]], [1, 2])
    message = "'costs' has 1 value(s) for 2 stages; give one per stage."
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracy_cost_curve([0, 1], [[0, 1], [0, 1]], [1])


@pytest.mark.parametrize("metric", ["accuracy", 3])
def test_refused_metric(metric):
    message = (
        "'metric' must be None, a callable(y_true, predictions) or a scorer of "
        f"scikit-learn. Got {metric!r} instead."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracy_cost_curve([0, 1], [[0, 1]], [1], metric=metric)


# accuracy_cost_area

# Every range starts at the cost of the first stage or above it.
ranges = st.tuples(
    st.floats(0, 10), st.floats(0.25, 10), st.sampled_from(["log", "linear"])
)


def area(curve, low, high, scale):
    return accuracy_cost_area(*curve, cost_range=(low, high), scale=scale)


@given(curve=curves(first_cost=1), range_=ranges, score=scores_of)
def test_area_of_a_constant_score_is_the_score(curve, range_, score):
    costs, _ = curve
    offset, width, scale = range_
    low = costs[0] + offset
    constant = (costs, np.full(len(costs), score))
    assert_allclose(area(constant, low, low + width, scale), score, atol=1e-12)


@given(curve=curves(first_cost=1), range_=ranges)
def test_area_lies_between_the_scores_at_its_ends(curve, range_):
    offset, width, scale = range_
    low = curve[0][0] + offset
    mean = area(curve, low, low + width, scale)
    assert score_at_cost(*curve, low) - 1e-12 <= mean
    assert mean <= score_at_cost(*curve, low + width) + 1e-12


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_area_is_a_mean_over_budgets(scale):
    costs, scores = [1, 3, 3, 8, 90], [0.5, 0.4, 0.7, 0.6, 0.9]
    space = np.geomspace if scale == "log" else np.linspace
    budgets = space(2, 100, 20_001)
    expected = np.mean([score_at_cost(costs, scores, budget) for budget in budgets])
    assert_allclose(area((costs, scores), 2, 100, scale), expected, atol=1e-4)


@given(curve=curves(first_cost=1), range_=ranges)
def test_log_area_is_the_linear_area_of_log_costs(curve, range_):
    costs, scores = curve
    offset, width, _ = range_
    low, high = costs[0] + offset, costs[0] + offset + width
    # Strictly inside: the logarithm rounds, so that edges might fall apart.
    assume(not np.isin([low, high], costs[1:]).any())
    assume(low > costs[0])
    expected = area((np.log(costs), scores), np.log(low), np.log(high), "linear")
    assert_allclose(area(curve, low, high, "log"), expected, atol=1e-9)


@given(curve=curves(first_cost=1), range_=ranges, factor=st.integers(-20, 20))
def test_log_area_does_not_depend_on_the_unit_of_cost(curve, range_, factor):
    costs, scores = curve
    offset, width, scale = range_
    low, high = costs[0] + offset, costs[0] + offset + width
    # Powers of two scale exactly.
    unit = 2.0**factor
    scaled = area((unit * costs, scores), unit * low, unit * high, scale)
    assert_allclose(scaled, area(curve, low, high, scale), atol=1e-9)


@given(curve=curves(first_cost=1), range_=ranges, further=st.floats(0.25, 10))
def test_areas_of_adjacent_ranges_add_up(curve, range_, further):
    offset, width, scale = range_
    low = curve[0][0] + offset
    middle, high = low + width, low + width + further
    position = np.log if scale == "log" else np.asarray
    parts = position(middle) - position(low), position(high) - position(middle)
    expected = np.average(
        [area(curve, low, middle, scale), area(curve, middle, high, scale)],
        weights=parts,
    )
    assert_allclose(area(curve, low, high, scale), expected, atol=1e-9)


@given(curve=curves(first_cost=1), range_=ranges, data=st.data())
def test_better_scores_do_not_lose_area(curve, range_, data):
    costs, scores = curve
    offset, width, scale = range_
    low = costs[0] + offset
    gains = data.draw(
        st.lists(st.floats(0, 1), min_size=len(scores), max_size=len(scores))
    )
    before = area(curve, low, low + width, scale)
    assert area((costs, scores + gains), low, low + width, scale) >= before - 1e-12
    # Nor do cheaper stages.
    cheaper = (costs / 2, scores)
    assert area(cheaper, low, low + width, scale) >= before - 1e-12


def test_stages_outside_of_the_range():
    costs, scores = [1, 2, 50], [0.5, 0.8, 1.0]
    for scale in ("log", "linear"):
        # The last one that costs no more than the range's start counts from there on.
        assert area((costs, scores), 3, 50, scale) == pytest.approx(0.8)
    assert area(([0, 1], [0.5, 1.0]), 0, 2, "linear") == 0.75


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"scale": "sqrt"}, r"'scale' must be 'log' or 'linear'\. Got 'sqrt' instead"),
        ({"cost_range": (2, 2)}, r"two finite costs, the smaller .* Got \(2, 2\) inst"),
        ({"cost_range": (3, 2)}, "'cost_range' must be two finite costs"),
        ({"cost_range": (1, np.inf)}, "'cost_range' must be two finite costs"),
        ({"cost_range": (np.nan, 2)}, "'cost_range' must be two finite costs"),
        (
            {"cost_range": (0.5, 2)},
            "starts at 0.5, below the cheapest stage's cost of 1, where there is no",
        ),
    ],
)
def test_refused_range(parameters, match):
    with pytest.raises(ValueError, match=match):
        accuracy_cost_area([1, 2], [0.5, 1.0], **{"cost_range": (1, 2), **parameters})


@pytest.mark.parametrize(
    "cost_range", [(1,), (1, 2, 3), 5, None, "12", ("1", "2"), (None, 2), [[1], [2]]]
)
def test_range_that_is_no_two_costs(cost_range):
    message = f"'cost_range' must be two costs. Got {cost_range!r} instead."
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracy_cost_area([1, 2], [0.5, 1.0], cost_range=cost_range)


@pytest.mark.parametrize("as_range", [list, np.array, np.float32])
def test_range_may_be_any_array_of_two(as_range):
    assert area(([1, 10], [0.5, 1.0]), *as_range([1, 100]), "log") == 0.75
    cost_range = as_range([1, 100])
    assert accuracy_cost_area([1, 10], [0.5, 1.0], cost_range=cost_range) == 0.75


def test_logarithm_of_zero_is_refused():
    with pytest.raises(ValueError, match="must start above 0 with scale='log'"):
        accuracy_cost_area([0, 1], [0.5, 1.0], cost_range=(0, 2))


# cost_at_score, score_at_cost


@given(curve=curves(), target=scores_of)
def test_cost_at_score_is_the_smallest_budget_that_reaches_it(curve, target):
    costs, scores = curve
    cost = cost_at_score(costs, scores, target)
    assert type(cost) is float
    if cost == np.inf:
        assert target > scores.max()
        return
    assert score_at_cost(costs, scores, cost) >= target
    if cost > costs[0]:
        below = np.nextafter(cost, -np.inf)
        assert score_at_cost(costs, scores, below) < target


@given(curve=curves(), extra=st.floats(0, 30))
def test_score_at_cost_is_the_best_that_is_affordable(curve, extra):
    costs, scores = curve
    budget = costs[0] + extra
    score = score_at_cost(costs, scores, budget)
    assert type(score) is float
    assert score == max(scores[costs <= budget])
    assert cost_at_score(costs, scores, score) <= budget


def test_scores_that_fall():
    costs, scores = [10, 25, 45], [0.5, 0.9, 0.7]
    assert score_at_cost(costs, scores, 100) == 0.9
    assert score_at_cost(costs, scores, np.inf) == 0.9
    assert cost_at_score(costs, scores, 0.7) == 25
    assert cost_at_score(costs, scores, -np.inf) == 10


@pytest.mark.parametrize("target", [np.nan, None, "0.5", [0.5]])
def test_target_is_no_score(target):
    message = f"'target' must be a score. Got {target!r} instead."
    with pytest.raises(ValueError, match=re.escape(message)):
        cost_at_score([1], [0.5], target)


def test_nothing_within_the_budget():
    message = "No stage is within the budget of 9.5: the cheapest one costs 10."
    with pytest.raises(ValueError, match=re.escape(message)):
        score_at_cost([10, 20], [0.5, 1.0], 9.5)
    # Large numbers are not rounded.
    message = "budget of 1234567: the cheapest one costs 1234568."
    with pytest.raises(ValueError, match=re.escape(message)):
        score_at_cost([1234568], [0.5], 1234567)


# pareto_optimal


def beaten(costs, scores, point):
    no_worse = (costs <= costs[point]) & (scores >= scores[point])
    differs = (costs != costs[point]) | (scores != scores[point])
    return (no_worse & differs).any()


points = st.lists(st.tuples(st.integers(0, 5), scores_of), min_size=1, max_size=25)


@given(points=points)
def test_pareto_optimal_by_definition(points):
    costs, scores = np.array(points, dtype=float).T
    optimal = pareto_optimal(costs, scores)
    assert optimal.dtype == bool
    expected = [not beaten(costs, scores, point) for point in range(len(costs))]
    assert_array_equal(optimal, expected)


def test_pareto_optimal_with_infinite_scores():
    assert pareto_optimal([1], [-np.inf]).all()
    assert_array_equal(pareto_optimal([1, 2], [-np.inf, -np.inf]), [True, False])


@given(points=points, random=st.randoms(use_true_random=False))
def test_pareto_optimal_in_any_order(points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    costs, scores = np.array(points, dtype=float).T
    expected = pareto_optimal(costs, scores)[order]
    assert_array_equal(pareto_optimal(costs[order], scores[order]), expected)


@given(points=points)
def test_what_is_pareto_optimal_remains_so_by_itself(points):
    costs, scores = np.array(points, dtype=float).T
    optimal = pareto_optimal(costs, scores)
    assert optimal[scores == scores.max()].any()
    assert optimal[costs == costs.min()].any()
    assert pareto_optimal(costs[optimal], scores[optimal]).all()


# Results of a search


CV_RESULTS = {
    "split0_test_recall": np.array([0.5, 0.7, np.nan, 0.8]),
    "split1_test_recall": np.array([0.7, 0.9, 0.9, 0.6]),
    "mean_test_recall": np.array([0.6, 0.8, np.nan, 0.7]),
    "mean_test_macs": np.array([10, 20, 30, 40]),
    "param_width": np.ma.array([4, 0, 8, 16], mask=[False, True, False, False]),
    # As scikit-learn has them where values are not of one type.
    "param_depth": np.ma.array(
        [1, None, 2.5, 3], mask=[False, True, False, False], dtype=object
    ),
}


@pytest.mark.parametrize("score", ["recall", "mean_test_recall"])
@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ("macs", [10, 20, np.nan, 40]),
        ("mean_test_macs", [10, 20, np.nan, 40]),
        ("param_width", [4, np.nan, np.nan, 16]),
        ("param_depth", [1, np.nan, np.nan, 3]),
        (lambda cv_results: [np.nan, 2, 3, 4], [np.nan, 2, np.nan, 4]),
    ],
)
def test_scores_and_costs_are_missing_together(score, cost, expected):
    scores, costs = _search_scores_and_costs(CV_RESULTS, score, cost)
    assert_array_equal(costs, expected)
    assert_array_equal(
        scores, np.where(np.isnan(expected), np.nan, CV_RESULTS["mean_test_recall"])
    )
    assert scores.dtype == costs.dtype == np.float64
    assert type(scores) is type(costs) is np.ndarray


@pytest.mark.parametrize("costs", [1, [1, 2, 3], [[1], [2], [3], [4]]])
def test_costs_of_a_callable_are_one_per_candidate(costs):
    message = f"each of the 4 candidates. Got shape {np.shape(costs)}."
    with pytest.raises(ValueError, match=re.escape(message)):
        _search_scores_and_costs(CV_RESULTS, "recall", lambda cv_results: costs)


def test_no_candidate_with_both():
    with pytest.raises(ValueError, match="no candidate with both a score and a cost"):
        _search_scores_and_costs(
            CV_RESULTS, "recall", lambda cv_results: [np.nan, np.nan, 3, np.nan]
        )


@pytest.mark.parametrize("score", ["recall", "mean_test_recall"])
def test_scores_by_split(score):
    expected = [CV_RESULTS["split0_test_recall"], CV_RESULTS["split1_test_recall"]]
    assert_array_equal(_split_scores(CV_RESULTS, score), expected)


@pytest.mark.parametrize("score", ["macs", "param_width", "split0_test_recall"])
def test_columns_without_splits(score):
    assert len(_split_scores(CV_RESULTS, score)) == 0


# Checks

CURVE_FUNCTIONS = [
    lambda costs, scores: accuracy_cost_area(costs, scores, cost_range=(9, 10)),
    lambda costs, scores: cost_at_score(costs, scores, 0.5),
    lambda costs, scores: score_at_cost(costs, scores, 10),
]


def test_costs_become_an_array():
    costs = _check_costs([1, 2, 2], n_stages=3)
    assert_array_equal(costs, [1, 2, 2])
    assert costs.dtype == np.float64
    assert_array_equal(_check_costs((0,)), [0])


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([], "'costs' must be one number for each of at least one stage. Got shape "),
        ([[1, 2]], "at least one stage. Got shape (1, 2)."),
        (3.0, "at least one stage. Got shape ()."),
        ([1, np.nan], "'costs' must be finite and not negative. Got [ 1. nan]."),
        ([1, np.inf], "'costs' must be finite and not negative. Got [ 1. inf]."),
        ([-1, 1], "'costs' must be finite and not negative. Got [-1.  1.]."),
        (
            [1, 3, 2],
            "'costs' must be cumulative, each at least that of the stage before. Got "
            "[1. 3. 2.].",
        ),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        lambda costs, scores: _check_costs(costs),
        lambda costs, scores: accuracy_cost_curve([0], [[0]], costs),
        *CURVE_FUNCTIONS,
    ],
)
def test_refused_costs(function, costs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(costs, np.zeros(np.shape(costs)))


def test_number_of_costs():
    message = "'costs' has 2 value(s) for 3 stage(s); give one per stage."
    with pytest.raises(ValueError, match=re.escape(message)):
        _check_costs([1, 2], n_stages=3)


@pytest.mark.parametrize(
    ("costs", "match"),
    [
        ([], "at least one stage"),
        ([1, np.inf], "finite and not negative"),
        ([-1, 1], "finite and not negative"),
    ],
)
def test_refused_costs_of_points(costs, match):
    with pytest.raises(ValueError, match=match):
        pareto_optimal(costs, np.zeros(len(costs)))
    # In any order, though.
    assert pareto_optimal([2, 1], [1.0, 0.0]).all()


@pytest.mark.parametrize("function", [*CURVE_FUNCTIONS, pareto_optimal])
def test_refused_scores(function):
    message = "'scores' must have one value per cost. Got shape (1,) for 2 cost(s)."
    with pytest.raises(ValueError, match=re.escape(message)):
        function([1, 2], [0.5])
    with pytest.raises(ValueError, match=r"'scores' must not be NaN\."):
        function([1, 2], [0.5, np.nan])


# _stage_within


@given(curve=curves(), budget=st.integers(0, 50))
def test_stage_within_by_definition(curve, budget):
    costs, _ = curve
    assume(budget >= costs[0])
    stage = _stage_within(costs, budget)
    assert type(stage) is int
    assert costs[stage - 1] <= budget
    assert (costs[stage:] > budget).all()


@pytest.mark.parametrize(
    ("budget", "stage"),
    [
        (10, 1),
        (24.9, 1),
        # Equal costs: the last of these stages.
        (25, 3),
        (np.float32(26), 3),
        (np.int64(45), 4),
        (np.inf, 4),
    ],
)
def test_stage_within(budget, stage):
    assert _stage_within(_check_costs(COSTS), budget) == stage


@pytest.mark.parametrize("budget", [np.nan, "25", None, [25]])
def test_budget_is_no_number(budget):
    message = f"'budget' must be a number. Got {budget!r} instead."
    with pytest.raises(ValueError, match=re.escape(message)):
        _stage_within(_check_costs(COSTS), budget)


@pytest.mark.parametrize("budget", [9.99, -1, -np.inf])
def test_budget_below_the_first_stage(budget):
    message = f"budget of {budget:g}: the cheapest one costs 10."
    with pytest.raises(ValueError, match=re.escape(message)):
        _stage_within(_check_costs(COSTS), budget)


# calibration_error


def test_calibration_error_by_hand():
    # Confidences of 0.6 and 0.8 are in a bin each; 0.7 is not right.
    proba = [[0.6, 0.4], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]
    y = [0, 0, 0, 1]
    # Bins of a width of 0.1: one of two right of 0.6, none of 0.7, one of 0.8.
    expected = (2 * abs(0.5 - 0.6) + 0.7 + 0.2) / 4
    assert_allclose(calibration_error(y, proba, n_bins=10), expected)


def test_calibration_error_with_weights_is_that_of_repeated_rows():
    rng = np.random.RandomState(0)
    y, first, weight = rng.randint(2, size=20), rng.uniform(size=20), np.arange(20) % 4
    proba = np.c_[first, 1 - first]
    repeated = np.repeat(np.arange(20), weight)
    found = calibration_error(y, proba, sample_weight=weight)
    assert_allclose(found, calibration_error(y[repeated], proba[repeated]))


@pytest.mark.parametrize("weight", [[1.0], [-1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_calibration_error_with_bad_weights_raises(weight):
    with pytest.raises(ValueError, match=r"'sample_weight' must hold .* at least 0"):
        calibration_error([0, 1], np.eye(2), sample_weight=weight)


def test_calibration_error_in_one_bin_is_distance_of_means(staged):
    y, _, labels, proba = staged
    for predicted, p in zip(labels, proba, strict=True):
        expected = abs(p.max(axis=1).mean() - np.mean(predicted == y))
        assert_allclose(calibration_error(y, p, n_bins=1), expected)


@given(st.integers(1, 30))
def test_calibration_error_is_between_that_of_one_bin_and_1(n_bins):
    rng = np.random.RandomState(n_bins)
    proba = rng.dirichlet([1, 1, 1], size=50)
    y = rng.permutation(np.arange(50) % 3)
    error = calibration_error(y, proba, n_bins=n_bins)
    assert calibration_error(y, proba, n_bins=1) - 1e-12 <= error <= 1


@pytest.mark.parametrize(("right", "expected"), [(True, 0.0), (False, 1.0)])
def test_calibration_error_of_certainty(right, expected):
    proba = np.eye(2)[[0, 1, 1]]
    y = np.array(["no", "yes", "yes"])
    y = y if right else np.where(y == "no", "yes", "no")
    assert calibration_error(y, proba) == expected


def test_calibration_error_with_classes_in_another_order(staged):
    y, _, _, proba = staged
    order = [2, 0, 1]
    for p in proba:
        assert calibration_error(y, p[:, order], classes=order) == calibration_error(
            y, p
        )


@pytest.mark.parametrize(
    ("y", "proba", "options", "message"),
    [
        ([0, 1], [[0.5, 0.5]], {}, r"Got shapes \(1, 2\) and \(2,\)"),
        ([0, 1], [0.5, 0.5], {}, r"Got shapes \(2,\) and \(2,\)"),
        ([], np.empty((0, 2)), {}, "'y_true' is empty"),
        ([0, 1], [[2.0, -1.0]] * 2, {}, "from 0 to 1"),
        ([0, 1], [[np.nan, 1.0]] * 2, {}, "from 0 to 1"),
        ([0, 0], [[0.5, 0.5]] * 2, {}, r"2 column\(s\) for 1 class\(es\)"),
        ([0, 1], [[0.5, 0.5]] * 2, {"n_bins": 0}, "'n_bins' .* Got 0"),
    ],
)
def test_calibration_error_of_bad_input(y, proba, options, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(y, proba, **options)
