"""Boosting that ends where the rows held out say so."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import log_loss

from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting import _loop
from skbdistil._boosting._loop import Boosting

STOPPING = {
    **SMALL,
    "n_estimators": 8,
    "early_stopping": True,
    "validation_fraction": 0.3,
}


@pytest.fixture
def losses(monkeypatch):
    """What the rounds of a fit are made to lose on the rows held out."""
    planned = []

    def held_out(self):
        return [planned[len(self.rounds) - 1]] if self.rounds else []

    monkeypatch.setattr(Boosting, "_losses_held_out", held_out)
    return planned


@pytest.mark.parametrize(
    ("planned", "n_kept"),
    [
        ([5, 4, 3, 2, 1, 0.9, 0.8, 0.7], 8),
        ([5, 4, 4.5, 4.2, 0, 0, 0, 0], 2),
        ([5, 6, 7, 0, 0, 0, 0, 0], 1),
        # One round without a gain is no reason to stop, but the last one is dropped.
        ([5, 6, 4, 4.1, 3, 3.5, 2, 2.5], 7),
        # An equal loss is no gain.
        ([5, 5, 5, 0, 0, 0, 0, 0], 1),
    ],
)
def test_boosting_keeps_the_students_up_to_the_lowest_loss(
    planned, n_kept, losses, data
):
    losses += planned
    clf = BDistilClassifier(**STOPPING).fit(*data)
    assert len(clf) == n_kept
    assert len(clf.ensemble_) == len(clf.training_history_) == n_kept
    assert len(clf.student_edges_) == len(clf.certificate_) == n_kept
    assert len(clf.stage_costs_) == len(clf.idle_features_) == n_kept


def test_students_that_are_kept_are_those_of_a_shorter_fit(losses, data):
    losses += [3, 2, 9, 9, 9, 9, 9, 9]
    stopped = BDistilClassifier(**STOPPING).fit(*data)
    losses[:] = [3, 2]
    # What is "auto" depends on the number of students that there might be.
    options = {**STOPPING, "n_estimators": 2, "eta": stopped.eta_}
    short = BDistilClassifier(**options).fit(*data)
    assert_array_equal(stopped.predict_proba(data[0]), short.predict_proba(data[0]))
    assert_array_equal(stopped.certificate_.bound, short.certificate_.bound)


def test_a_warm_start_never_drops_students_of_the_earlier_fit(losses, data):
    losses += [3, 2, 9, 9]
    clf = BDistilClassifier(**{**STOPPING, "n_estimators": 2}).fit(*data)
    before = clf.predict_proba(data[0])
    clf.set_params(n_estimators=4, warm_start=True).fit(*data)
    assert len(clf) == 2
    assert_array_equal(clf.predict_proba(data[0]), before)


def test_rows_held_out_are_judged_by_their_labels(monkeypatch):
    X, y = make_classification(
        400, 10, n_informative=4, flip_y=0.3, n_classes=3, random_state=0
    )
    seen = []
    actual = _loop.Boosting._losses_held_out

    def looked_at(self):
        found = actual(self)
        if found:
            scores = self.valid.residuals.mean()
            label = self.valid.targets(slice(None))["label"].numpy()
            # At the best of many temperatures.
            losses = [
                log_loss(label, softmax(scores / temperature, axis=1))
                for temperature in np.logspace(-1.3, 1.3, 500)
            ]
            seen.append((found[0], min(losses)))
        return found

    monkeypatch.setattr(_loop.Boosting, "_losses_held_out", looked_at)
    # Leaves of one row: the teacher knows all rows, those held out among them.
    teacher = ExtraTreesClassifier(random_state=0)
    options = {**STOPPING, "max_epochs": 20, "teacher_cv": None}
    clf = BDistilClassifier(teacher, **options).fit(X, y)
    assert seen
    assert_allclose(*zip(*seen, strict=True), rtol=1e-4)
    assert len(clf) == 1 + int(np.argmin([loss for loss, _ in seen]))


def test_a_teacher_that_is_too_sure_does_not_end_boosting_early():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 5))
    scores = np.tanh(X @ rng.standard_normal((5, 3)) * 2)
    noise = rng.random(600) < 0.25
    y = np.where(noise, rng.integers(0, 3, 600), scores.argmax(axis=1))
    options = {**STOPPING, "n_estimators": 4, "max_epochs": 40}
    clf = BDistilClassifier("precomputed", **options)
    clf.fit(X, y, teacher_scores=20 * (scores - scores.mean(axis=1, keepdims=True)))
    assert len(clf) > 1


@pytest.mark.parametrize("refine", [None, "rounds"])
def test_the_ensemble_that_is_kept_is_the_one_that_was_judged(
    refine, data, monkeypatch
):
    planned, seen = [3, 2, 1, 5, 6], []

    def held_out(self):
        if not self.rounds:
            return []
        seen.append(self.valid.residuals.mean())
        return [planned[len(self.rounds) - 1]]

    replay = Boosting.replay

    def replayed(self):
        finite = replay(self)
        kept.append(self.valid.residuals.mean())
        return finite

    kept = []
    monkeypatch.setattr(Boosting, "_losses_held_out", held_out)
    monkeypatch.setattr(Boosting, "replay", replayed)
    clf = BDistilClassifier(**STOPPING, refine=refine).fit(*data)
    assert len(clf) == 3
    # Refinement after rounds 4 and 5 has moved all of them in between.
    assert_allclose(kept[-1], seen[2], rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_a_number_is_not_the_lowest(losses, data):
    losses += [3, np.nan, 2, 1, 0.9, 0.8, 0.7, 0.6]
    assert len(BDistilClassifier(**STOPPING).fit(*data)) == 8


def test_regressors_stop_too():
    X, y = make_regression(120, 4, noise=200, random_state=0)
    reg = BDistilRegressor(**{**STOPPING, "max_epochs": 60}).fit(X, y)
    assert 1 <= len(reg) < 8


def test_without_rows_held_out_all_rounds_are_played(data):
    assert (
        len(BDistilClassifier(**{**STOPPING, "early_stopping": False}).fit(*data)) == 8
    )
