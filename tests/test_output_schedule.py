"""Outputs that join round by round."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from saved_files import edited, set_item
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import COMBINATIONS, SMALL, raises, student_bits
from skbdistil import BDistilRegressor, DistillationObjective
from skbdistil._boosting import _loop
from skbdistil._boosting._game import BoostingGame
from skbdistil._boosting._residuals import Residuals
from skbdistil.ensemble import Lateral
from skbdistil.exceptions import FitInterruptedWarning, InvalidFileError
from skbdistil.export import to_onnx, to_torch
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP, ConvNet1d

X, Y = make_regression(120, 6, n_targets=5, random_state=0)
# Not linear, so that students and teacher differ.
Y = np.tanh(Y / 100) * [1, 10, 1, 1, 100] + 7
TEACHER = Ridge().fit(X, Y).predict(X)

SCHEDULE = [[3], [0, 1], [2, 4]]
FIRST = np.array([2, 2, 3, 1, 3])
N_STAGES = 4


def distilled(**params):
    settings = {**SMALL, "n_estimators": N_STAGES, "output_schedule": SCHEDULE}
    return BDistilRegressor(Ridge(), **{**settings, **params})


@pytest.fixture(scope="module")
def reg():
    return distilled().fit(X, Y)


def stages(reg):
    return np.array(list(reg.staged_predict(X)))


FORMS = [
    *[
        {"combine": form, "refine": how}
        for form in COMBINATIONS
        for how in (None, "final")
    ],
    {"refine": "rounds"},
    {"refine": "only"},
    {"connection": None},
    {"connection": "wide", "dtype": "float64"},
    {"connection": "lateral", "student": partial(MLP, hidden=(4, 4, 4))},
    {"objective": "squared_error", "eta": 0},
    {"early_stopping": True},
    {"objective": DistillationObjective("squared_error", on="student", alpha=0.5)},
    {"max_attempts": 2, "edge_tol": "auto", "max_epochs": 20},
]


@pytest.mark.parametrize("params", FORMS, ids=str)
def test_outputs_before_their_round_are_the_mean_of_the_teacher(params):
    reg = distilled(**params).fit(X, Y)
    assert reg.n_estimators_ >= 3
    assert_array_equal(reg.first_stages_, FIRST)
    for stage, predicted in enumerate(stages(reg), start=1):
        waits = FIRST > stage
        constant = np.broadcast_to(reg.target_mean_, Y.shape)
        assert_array_equal(predicted[:, waits], constant[:, waits])
        assert (np.ptp(predicted[:, ~waits], axis=0) > 0).all()


def test_mean_is_that_of_the_heads_from_the_first_round_of_an_output_on():
    reg = distilled(combine="mean", dtype="float64").fit(X, Y)
    ensemble = reg.ensemble_
    heads, state = [], ensemble.start(torch.from_numpy(X))
    with torch.no_grad():
        for number, student in enumerate(ensemble.students, start=1):
            scores, _ = student(state.x, state.earlier)
            own = np.maximum(number + 1 - FIRST, 0)
            # What is left in the head is b times the head.
            heads.append(scores.numpy() * own)
            state.advance()
            for output in np.flatnonzero(own):
                of_output = [head[:, output] for head in heads[FIRST[output] - 1 :]]
                assert_allclose(
                    state.mean[:, output], np.mean(of_output, axis=0), rtol=1e-9
                )


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_factors_of_an_output_follow_its_own_round(combine):
    reg = distilled(combine=combine).fit(X, Y)
    for number, student in enumerate(reg.ensemble_.students, start=1):
        carry, weight = student.carry.numpy(), student.head.weight
        own = number + 1 - FIRST
        assert_array_equal(carry[own < 1], 1)
        assert_array_equal(carry[own == 1], 0)
        assert_array_equal((weight == 0).all(dim=1), own < 1)
        if combine == "mean":
            assert_allclose(carry[own > 1], 1 - 1 / own[own > 1], rtol=1e-6)
        elif combine == "sum":
            assert_array_equal(carry[own > 1], 1)


@pytest.mark.parametrize("params", [{}, {"eta": 0}, {"refine": "final"}], ids=str)
def test_certificate_holds_for_every_output_and_stage(params):
    reg = distilled(**params).fit(X, Y)
    certificate = reg.certificate_
    off = np.abs(stages(reg) - TEACHER)
    assert_allclose(certificate.actual, off.max(axis=1), rtol=1e-4)
    assert_allclose(certificate.mean, off.mean(axis=1), rtol=1e-4)
    waits = FIRST > np.arange(1, N_STAGES + 1)[:, None]
    for bound in (certificate.bound, certificate.potential):
        assert np.isinf(bound[waits]).all()
        assert (certificate.actual <= bound * (1 + 1e-6)).all()
    if params.get("eta") != 0:
        assert np.isfinite(certificate.potential[~waits]).all()


def test_game_of_an_output_is_a_game_that_begins_in_its_round():
    rng = np.random.RandomState(0)
    teacher = rng.randn(30, 2)
    scores = [teacher + rng.randn(30, 2) for _ in range(4)]
    weight = rng.randint(3, size=30).astype(float)
    game = BoostingGame(
        Residuals(teacher, first_rounds=np.array([1, 3]), chunk_size=7),
        eta=0.1,
        sample_weight=weight,
    )
    later = BoostingGame(Residuals(teacher[:, [1]]), eta=0.1, sample_weight=weight)
    for number, student in enumerate(scores, start=1):
        edges = game.edges(student)
        if number < 3:
            assert edges[1] == 0
        else:
            assert_allclose(edges[1:], later.edges(student[:, [1]]))
            later.update(student[:, [1]])
        game.update(student)
        for ours, theirs in zip(game.weights(), later.weights(), strict=True):
            assert_allclose(ours[:, [1]], theirs)
    whole, part = game.certificate(), later.certificate()
    for name in ("potential", "actual", "mean"):
        assert_allclose(getattr(whole, name)[2:, [1]], getattr(part, name))
    assert_allclose(whole.bound[2:, [1]], part.bound)
    counted = weight > 0
    assert_allclose(whole.actual[:2, 1], np.abs(teacher[counted, 1]).max())
    mean = np.average(np.abs(teacher[:, 1]), weights=weight)
    assert_allclose(whole.mean[:2, 1], mean)


def test_residuals_before_the_first_round_are_not_those_of_a_perfect_student():
    residuals = Residuals(np.ones((3, 2)), first_rounds=np.array([1, 2]))
    residuals.add(np.full((3, 2), 3.0))
    assert_array_equal(residuals.mean(), [[3, 0]] * 3)
    residuals.add(np.full((3, 2), 5.0))
    assert_array_equal(residuals.mean(), [[4, 5]] * 3)


@pytest.mark.parametrize("schedule", [[[0, 1, 2, 3, 4]], [[4, 3, 2, 1, 0]]])
def test_schedule_of_one_group_is_none(schedule):
    expected = distilled(output_schedule=None).fit(X, Y)
    reg = distilled(output_schedule=schedule).fit(X, Y)
    assert student_bits(reg) == student_bits(expected)
    assert_array_equal(reg.first_stages_, np.ones(5))


def test_numbers_of_numpy_are_a_schedule(reg):
    schedule = tuple(np.array(group) for group in SCHEDULE)
    assert student_bits(distilled(output_schedule=schedule).fit(X, Y)) == (
        student_bits(reg)
    )


def test_held_rows_and_rows_run_again_give_the_same_students(reg, monkeypatch):
    monkeypatch.setattr("skbdistil._boosting._plan._MAX_HELD_BYTES", 0)
    again = distilled().fit(X, Y)
    assert_allclose(stages(again), stages(reg), rtol=1e-4, atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], "a list of groups"),
        ([[]], "a list of groups"),
        ([0, 1, 2, 3, 4], "a list of groups"),
        ([[0.0], [1, 2, 3, 4]], "a list of groups"),
        ([[True], [0, 2, 3, 4]], "a list of groups"),
        (["01", "234"], "a list of groups"),
        ([[0, 1], [1, 2, 3, 4]], "name each output once"),
        ([[0, 1], [3, 4]], "name each output once"),
        ([[-1, 0], [1, 2, 3]], "name each output once"),
        (
            [[0], [1], [2], [3], [4]],
            "has 5 groups",
        ),
        ([[0, 1], [2]], "names 3 output(s), and the teacher has 5"),
        ([[0, 1, 2]], "names 3 output(s), and the teacher has 5"),
        ([[0, 1], [2, 3, 4, 5]], "names 6 output(s), and the teacher has 5"),
    ],
    ids=str,
)
def test_bad_schedule_raises(schedule, message):
    reg = distilled(output_schedule=schedule)
    with raises("'output_schedule' parameter of BDistilRegressor", message):
        reg.fit(X, Y)
    assert not hasattr(reg, "ensemble_")


def test_schedule_of_another_type_raises():
    with raises("output_schedule", "'easy first'"):
        distilled(output_schedule="easy first").fit(X, Y)


def test_single_target_takes_a_schedule_of_one_output():
    reg = distilled(output_schedule=[[0]]).fit(X, Y[:, 0])
    assert reg.predict(X).shape == (len(X),)


# Rounds that are not played


def test_outputs_whose_round_is_not_reached_are_named(monkeypatch):
    play = _loop.Boosting._play

    def interrupted(self, number, seed):
        if number == 2:
            raise KeyboardInterrupt
        return play(self, number, seed)

    monkeypatch.setattr(_loop.Boosting, "_play", interrupted)
    with (
        pytest.warns(FitInterruptedWarning),
        pytest.warns(UserWarning, match=r"not trained the output\(s\) \[0, 1, 2, 4\]"),
    ):
        reg = distilled().fit(X, Y)
    assert len(reg) == 1


def test_held_out_loss_does_not_end_boosting_before_all_outputs_are_trained():
    # No target can be learnt, so that every round makes the loss larger.
    noise = np.random.RandomState(0).randn(60, 5)
    reg = distilled(
        early_stopping=True,
        output_schedule=[[0], [1], [2], [3], [4]],
        n_estimators=9,
        max_epochs=30,
        validation_fraction=0.5,
    )
    reg.fit(X[:60], noise)
    assert 5 <= reg.n_estimators_ < 9


# What goes on with a fit


def test_more_rounds_later_are_those_of_one_longer_fit(reg):
    grown = distilled(n_estimators=1, warm_start=True, eta=reg.eta_).fit(X, Y)
    assert_array_equal(grown.first_stages_, FIRST)
    for n_estimators in (2, N_STAGES):
        grown.set_params(n_estimators=n_estimators).fit(X, Y)
    assert student_bits(grown) == student_bits(reg)
    assert_array_equal(grown.certificate_.actual, reg.certificate_.actual)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_update_trains_outputs_from_their_round_on(combine):
    reg = distilled(combine=combine).fit(X, Y)
    before = stages(reg)
    for output_schedule in (SCHEDULE, None):
        # What counts is the schedule of the fit.
        reg.set_params(output_schedule=output_schedule).partial_fit(-X, Y)
    after = stages(reg)
    for stage in range(1, N_STAGES + 1):
        changed = (after[stage - 1] != before[stage - 1]).any(axis=0)
        assert_array_equal(changed, stage >= FIRST)


def test_outputs_that_are_not_trained_may_wait_for_another_round():
    reg = distilled(n_estimators=2, warm_start=True).fit(X, Y)
    reg.set_params(n_estimators=4, output_schedule=[[3], [0, 1], [4], [2]]).fit(X, Y)
    assert_array_equal(reg.first_stages_, [2, 2, 4, 1, 3])
    assert_array_equal(stages(reg)[2][:, 2], np.full(len(X), reg.target_mean_[2]))


@pytest.mark.parametrize(
    "schedule", [None, [[0, 1, 2, 3, 4]], [[0], [3, 1], [2, 4]], [[3], [0, 1, 2], [4]]]
)
def test_warm_start_with_another_past_raises(schedule):
    reg = distilled(n_estimators=2, warm_start=True).fit(X, Y)
    before = student_bits(reg)
    reg.set_params(n_estimators=4, output_schedule=schedule)
    with raises("'output_schedule' parameter", "[[3], [0, 1]]", "from round 3 on"):
        reg.fit(X, Y)
    assert student_bits(reg) == before


def test_warm_start_of_a_fit_without_schedule_takes_none():
    reg = distilled(n_estimators=2, warm_start=True, output_schedule=None).fit(X, Y)
    with raises("'output_schedule' parameter", "[[0, 1, 2, 3, 4]]"):
        reg.set_params(n_estimators=3, output_schedule=SCHEDULE).fit(X, Y)


def test_slice_keeps_the_schedule_and_its_bits(reg):
    for n_stages in (1, 2):
        part = reg[:n_stages]
        assert_array_equal(part.first_stages_, FIRST)
        assert_array_equal(part.predict(X), stages(reg)[n_stages - 1])


def test_staged_score_is_about_all_outputs(reg):
    # R^2 of an output that is its mean is 0 on the training rows, but for what the
    # teacher's mean differs from that of y.
    first = next(reg.staged_score(X, Y))
    own = next(reg.staged_predict(X))[:, 3]
    r2 = 1 - ((Y[:, 3] - own) ** 2).sum() / ((Y[:, 3] - Y[:, 3].mean()) ** 2).sum()
    assert first == pytest.approx(r2 / 5, abs=1e-6)
    assert list(reg.staged_score(X, Y))[-1] == reg.score(X, Y)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_fit_goes_on_with_the_same_bits(number, reg, tmp_path, monkeypatch):
    play = _loop.Boosting._play

    def killed(self, position, seed):
        if position == number:
            raise SystemExit
        return play(self, position, seed)

    again = distilled(checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_loop.Boosting, "_play", killed)
        with pytest.raises(SystemExit):
            again.fit(X, Y)
    again.fit(X, Y)
    assert student_bits(again) == student_bits(reg)
    # Another schedule is another fit.
    other = distilled(checkpoint=tmp_path, output_schedule=SCHEDULE[::-1]).fit(X, Y)
    assert student_bits(other) != student_bits(reg)


# Files and other runtimes


def test_saved_estimator_is_the_same_and_can_go_on(tmp_path):
    reg = distilled(n_estimators=2, warm_start=True).fit(X, Y)
    save(reg, tmp_path / "reg.skb")
    loaded = load(tmp_path / "reg.skb")
    assert_array_equal(stages(loaded), stages(reg))
    assert_array_equal(loaded.first_stages_, FIRST)
    assert loaded.output_schedule == SCHEDULE
    loaded.set_params(teacher=Ridge())
    for each in (reg, loaded):
        each.set_params(n_estimators=3).fit(X, Y)
    assert student_bits(loaded) == student_bits(reg)


@pytest.mark.parametrize(
    "first_stages", [None, [1, 1, 2], [0, 1, 1, 1, 1], [1.5] * 5, "late"]
)
def test_file_with_other_first_stages_is_refused(first_stages, reg, tmp_path):
    path = tmp_path / "reg.skb"
    save(reg, path)

    if isinstance(first_stages, list):
        array = np.array(first_stages)
        first_stages = {"$array": [array.dtype.str, list(array.shape), first_stages]}
    edited(path, set_item("ensemble", "first_stages", to=first_stages))
    with pytest.raises(InvalidFileError, match=r"carry|first stages"):
        load(path)


def test_exported_stages_give_the_same(tmp_path):
    reg = distilled(n_estimators=2, output_schedule=[[3], [0, 1, 2, 4]]).fit(X, Y)
    expected = stages(reg)
    to_onnx(reg, tmp_path / "reg")
    session = ProgressiveSession(tmp_path / "reg")
    for found, values in zip(session.staged_predict(X), expected, strict=True):
        assert_allclose(found, values, rtol=1e-4, atol=1e-4)
    module = to_torch(reg)
    assert_allclose(module(torch.from_numpy(np.float32(X))), expected[-1], rtol=1e-4)


def test_single_rows_and_many_rows_predict_the_same(reg):
    """Few rows are computed by NumPy, many by torch."""
    many = np.concatenate([X] * 3)
    assert_allclose(reg.predict(many)[:2], reg.predict(X[:2]), rtol=1e-4)
    one = np.concatenate([reg.predict(X[[row]]) for row in range(3)])
    assert_allclose(one, reg.predict(X[:3]), rtol=1e-4)


def test_schedule_goes_through_clone_pipeline_and_search():
    search = GridSearchCV(
        make_pipeline(StandardScaler(), distilled(n_estimators=2, max_epochs=1)),
        {"bdistilregressor__output_schedule": [None, [[3], [0, 1, 2, 4]]]},
        cv=2,
        error_score="raise",
    ).fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert clone(distilled()).output_schedule == SCHEDULE


def test_convolutional_students_share_no_first_block():
    rows = X.reshape(len(X), 6, 1)
    params = {"student": partial(ConvNet1d, channels=(3, 4)), "n_estimators": 3}
    reg = distilled(**params).set_params(teacher="precomputed")
    reg.fit(rows, Y, teacher_scores=TEACHER)
    assert reg.connection_.shared_blocks == 0
    reg.set_params(output_schedule=None).fit(rows, Y, teacher_scores=TEACHER)
    assert isinstance(reg.connection_, Lateral)
    assert reg.connection_.shared_blocks == 1
