"""What a fit decides before its first round."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from boosting_cases import CONNECTIONS, CPU, DEEP_STUDENT, STUDENT, join, make_rows
from skorch import NeuralNet
from torch.utils.data import DataLoader

from common import COMBINATIONS
from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil._boosting._plan import (
    FitData,
    auto_batch_size,
    auto_edge_tol,
    auto_epochs,
    held_bytes,
    make_plan,
    set_up,
    sizes,
    split_rows,
)
from skbdistil._boosting._rows import FeatureCache, n_batches
from skbdistil.ensemble import ProgressiveEnsemble

# Batches and epochs


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 1000, 4000, 20000, 10**6])
def test_auto_batch_size_grows_with_the_rows(n):
    size = auto_batch_size(n)
    assert isinstance(size, int)
    assert min(n, 32) <= size <= min(n, 256)
    # Larger data never get smaller batches.
    assert size <= auto_batch_size(2 * n)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 10), (500, 32), (10**6, 256)])
def test_auto_epochs_guarantee_optimizer_steps(n, batch_size):
    epochs = auto_epochs(n, batch_size)
    assert epochs >= 8
    assert epochs * n_batches(n, batch_size) >= 1000
    assert epochs == 8 or (epochs - 1) * n_batches(n, batch_size) < 1000


@pytest.mark.parametrize(
    ("barrier", "expected"), [("weighted", 0.1), ("indicator", 0.1), (None, math.inf)]
)
def test_auto_tolerance_is_a_tenth_of_the_bound_with_a_barrier(barrier, expected):
    assert auto_edge_tol(DistillationObjective(barrier=barrier)) == expected


# The plan


def _fit_data(n=12):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 4)).astype(np.float32)
    scores = rng.standard_normal((n, 2)).astype(np.float32)
    return FitData(x, scores, None, None)


def _plan(notes=None, earlier=None, **parameters):
    estimator = BDistilRegressor(**{"student": STUDENT, **parameters})
    return make_plan(
        estimator,
        DistillationObjective("squared_error"),
        ProgressiveEnsemble((4,), 2),
        _fit_data(),
        teacher_macs=None,
        earlier=earlier,
        notes=[] if notes is None else notes,
    )


def test_batch_size_is_at_most_the_rows():
    notes = []
    assert _plan(notes, batch_size=12).batch_size == 12
    assert notes == []
    assert _plan(notes, batch_size=13).batch_size == 12
    (note,) = notes
    assert isinstance(note, UserWarning)
    assert str(note).startswith("The 'batch_size' parameter of BDistilRegressor is 13")
    assert "there are 12 training rows" in str(note)


def test_epochs_follow_the_batch_size_that_is_used():
    with_all_rows = _plan(batch_size=12, max_epochs="auto").max_epochs
    assert with_all_rows == 1000
    assert _plan(batch_size=99, max_epochs="auto").max_epochs == with_all_rows
    assert _plan(batch_size=4, max_epochs="auto").max_epochs == 334


def test_refinement_takes_the_epochs_of_a_student_unless_told():
    assert _plan(max_epochs=7).refine_epochs == 7
    assert _plan(max_epochs=7, refine_epochs=3).refine_epochs == 3


def test_bound_is_the_largest_score_of_the_training_rows():
    plan = _plan(n_estimators=4)
    bound = float(np.abs(_fit_data().scores).max())
    assert plan.teacher_bound == bound
    step = min(math.sqrt(math.log(2 * 12) / 4), 1) / (2 * bound)
    assert plan.eta == pytest.approx(step, rel=1e-12)


def test_auto_combination_is_one_of_those_there_are():
    assert _plan(combine="auto").combine in COMBINATIONS
    for combine in COMBINATIONS:
        assert _plan(combine=combine).combine == combine


# Values that no rule of this package would choose for these rows.
EARLIER = {
    "eta": 0.123,
    "batch_size": 5,
    "max_epochs": 17,
    "combine": "otherwise",
}


LADDER = [STUDENT, DEEP_STUDENT]


def _earlier():
    """What is left of an earlier fit, as far as a plan looks at it."""
    values = {f"{name}_": value for name, value in EARLIER.items()}
    return SimpleNamespace(**values, ladder_=LADDER, ladder_positions_=[0, 1])


@pytest.mark.parametrize("name", [*EARLIER, "ladder"])
def test_what_is_auto_stays_what_it_was_in_the_earlier_fit(name):
    parameter = "student" if name == "ladder" else name
    expected = LADDER if name == "ladder" else EARLIER[name]
    automatic = {"student": "auto", parameter: "auto"}
    assert getattr(_plan(earlier=_earlier(), **automatic), name) == expected
    # Without an earlier fit it is something else; what is given is used as it is.
    assert getattr(_plan(**automatic), name) != expected
    given = LADDER[::-1] if name == "ladder" else 2
    plan = _plan(earlier=_earlier(), **{**automatic, parameter: given})
    assert getattr(plan, name) == given


def test_what_follows_from_others_is_not_kept_from_the_earlier_fit():
    plan = _plan(earlier=_earlier(), student="auto", max_epochs=7)
    assert plan.refine_epochs == 7
    assert plan.edge_tol == auto_edge_tol(plan.objective)


def test_batch_size_of_an_earlier_fit_to_more_rows_is_clipped_without_a_word():
    earlier, notes = _earlier(), []
    earlier.batch_size_ = 32
    plan = _plan(notes, earlier=earlier, student="auto", batch_size="auto")
    assert plan.batch_size == 12
    assert notes == []


def test_ladder_must_reach_the_class_of_the_last_student():
    with pytest.raises(ValueError, match=r"'student' parameter .* number 2\. Got 1"):
        _plan(earlier=_earlier(), student=[STUDENT])


def test_objective_of_the_plan_is_a_copy():
    objective = DistillationObjective("squared_error", gamma=0.7)
    plan = make_plan(
        BDistilRegressor(student=STUDENT),
        objective,
        ProgressiveEnsemble((4,), 2),
        _fit_data(),
        teacher_macs=None,
        earlier=None,
        notes=[],
    )
    objective.gamma = 5.0
    assert plan.objective.gamma == 0.7


# What is held of earlier students


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("n_students", [1, 2, 6])
def test_held_bytes_are_those_that_the_fit_holds(connection, n_students, dtype):
    rows = make_rows(connection=connection, dtype=dtype)
    rows.cache = FeatureCache(rows.ensemble, n_students)
    n_held, of_one = (
        held_bytes([DEEP_STUDENT], rows.ensemble, n) * len(rows)
        for n in (n_students, 1)
    )
    largest = 0
    for _ in range(n_students):
        student = rows.ensemble.new_student(DEEP_STUDENT)
        _, activations = rows.run(student)
        # All that is there at once, before what is read no more is dropped.
        there = [*rows.cache.take(slice(None), CPU), activations]
        maps = [part for parts in there for part in parts]
        size = sum(part.numel() * part.element_size() for part in maps)
        largest = max(largest, size)
        join(rows, student)
    # Those of the last student are counted, and not held.
    assert largest <= n_held <= largest + of_one


def _boosting(net=None, **parameters):
    estimator = BDistilRegressor(
        student=STUDENT, net=net, n_estimators=3, max_epochs=1, **parameters
    )
    ensemble = ProgressiveEnsemble((4,), 2)
    plan = make_plan(
        estimator,
        DistillationObjective("squared_error"),
        ensemble,
        _fit_data(),
        teacher_macs=None,
        earlier=None,
        notes=[],
    )
    return set_up(
        estimator, plan, ensemble, _fit_data(), _fit_data(), device=CPU, progress=None
    )


def test_rows_and_validation_rows_have_residuals_and_features_of_their_own():
    boosting = _boosting()
    assert boosting.game.residuals is boosting.rows.residuals
    assert boosting.rows.game is boosting.game
    assert boosting.valid.residuals is not boosting.rows.residuals
    assert boosting.valid.game is None
    assert None not in (boosting.rows.cache, boosting.valid.cache)
    assert boosting.rows.cache is not boosting.valid.cache


class Changed(DataLoader):
    changes_rows = True


class Unchanged(DataLoader):
    pass


@pytest.mark.parametrize(("iterator", "held"), [(Changed, False), (Unchanged, True)])
def test_nothing_is_held_where_the_iterator_changes_rows(iterator, held):
    net = NeuralNet(None, criterion=None, iterator_train=iterator)
    boosting = _boosting(net)
    assert (boosting.rows.cache is not None) == held
    assert (boosting.valid.cache is not None) == held


@pytest.mark.parametrize("estimator", [BDistilClassifier, BDistilRegressor])
def test_scores_of_classifiers_are_centred_and_those_of_regressors_are_not(estimator):
    model = estimator(student=STUDENT, n_estimators=3, max_epochs=1)
    ensemble = ProgressiveEnsemble((4,), 2)
    objective = DistillationObjective("squared_error")
    plan = make_plan(
        model,
        objective,
        ensemble,
        _fit_data(),
        teacher_macs=None,
        earlier=None,
        notes=[],
    )
    boosting = set_up(
        model, plan, ensemble, _fit_data(), None, device=CPU, progress=None
    )
    assert boosting.trainer.centres == (estimator is BDistilClassifier)
    assert boosting.valid is None


@pytest.mark.parametrize(("early_stopping", "patience"), [(False, None), (True, 4)])
def test_patience_is_that_of_early_stopping(early_stopping, patience):
    boosting = _boosting(early_stopping=early_stopping, n_iter_no_change=4)
    assert boosting.trainer.patience == patience


# Rows held out


def _split(label=None, *, n=60, fraction=0.25, seed=0):
    return split_rows(n, label, fraction, seed, "Owner")


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.9])
def test_every_row_is_on_one_side(fraction):
    train, valid = _split(fraction=fraction)
    assert sorted([*train, *valid]) == list(range(60))
    assert len(valid) == math.ceil(fraction * 60)


def test_split_is_decided_by_the_seed():
    label = np.arange(60) % 3
    for labels in (None, label):
        sides = [_split(labels, seed=seed)[1].tolist() for seed in (0, 0, 1)]
        assert sides[0] == sides[1]
        assert sorted(sides[0]) != sorted(sides[2])


@pytest.mark.parametrize("seed", range(5))
def test_split_has_the_classes_in_their_proportions(seed):
    label = np.repeat([0, 1, 2], [40, 16, 4])
    train, valid = _split(label, seed=seed)
    assert np.bincount(label[valid]).tolist() == [10, 4, 1]
    assert np.bincount(label[train]).tolist() == [30, 12, 3]


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_no_row_has_do_not_keep_the_others_from_being_split(seed):
    """The teacher may know classes that are not in y."""
    label = np.repeat([1, 4], [40, 20])
    _, valid = _split(label, seed=seed)
    assert np.bincount(label[valid]).tolist() == [0, 10, 0, 0, 5]


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(np.minimum(np.arange(60), 1), id="a class of one row"),
        pytest.param(np.arange(60) // 2, id="more classes than rows held out"),
    ],
)
def test_chance_decides_where_classes_are_too_rare(label):
    train, valid = _split(label)
    assert sorted([*train, *valid]) == list(range(60))
    by_chance = _split()
    np.testing.assert_array_equal(train, by_chance[0])
    np.testing.assert_array_equal(valid, by_chance[1])


def test_more_classes_than_training_rows_are_split_by_chance():
    label = np.arange(60) // 2
    train, _ = _split(label, fraction=0.9)
    np.testing.assert_array_equal(train, _split(fraction=0.9)[0])


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.1), (10, 0.95), (2, 0.6)])
def test_split_that_leaves_no_training_rows_is_refused(n, fraction):
    with pytest.raises(
        ValueError,
        match=rf"'validation_fraction' parameter of Owner .* Got {fraction} for {n} "
        "rows",
    ):
        _split(n=n, fraction=fraction)


def test_the_size_of_the_scores_is_not_that_of_an_outlier():
    scores = np.random.default_rng(0).standard_normal((4000, 3))
    bound, scale = sizes(scores)
    assert bound == np.abs(scores).max()
    assert 2.5 < scale < bound
    scores[7] = 1e6
    assert sizes(scores)[0] == 1e6
    np.testing.assert_allclose(sizes(scores)[1], scale, rtol=0.05)


@pytest.mark.parametrize("n_classes", [2, 10, 101, 1000])
def test_the_size_of_sure_logits_is_that_of_the_labels(n_classes):
    """However many classes there are that a row is not of."""
    label = np.arange(2000) % n_classes
    scores = np.log(np.where(np.arange(n_classes) == label[:, np.newaxis], 1.0, 1e-5))
    scores -= scores.mean(axis=1, keepdims=True)
    bound, scale = sizes(scores)
    np.testing.assert_allclose(scale, bound)


def test_the_size_of_targets_that_are_mostly_zero_is_that_of_the_others():
    target = np.zeros((2000, 1))
    target[:13] = 10.0
    assert sizes(target) == (10.0, 10.0)
    assert sizes(np.zeros((4, 1))) == (0.0, 0.0)
