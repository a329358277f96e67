"""Split conformal intervals: ranks, coverage, stages, early exit and bad input."""

import copy
import json
import pickle
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import raises
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.early_exit import EarlyExitRegressor
from skbdistil.exceptions import InfiniteIntervalWarning, InvalidFileError
from skbdistil.export import to_onnx
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.persistence import load, save
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.stages import staged
from skbdistil.students import MLP

STUDENTS = BDistilRegressor(
    LinearRegression(),
    student=partial(MLP, hidden=(4,)),
    n_estimators=3,
    max_epochs=3,
    edge_tol=np.inf,
    random_state=0,
)


def make_rows(n_rows=600, n_targets=1, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.randn(n_rows, 3)
    y = 5 * X[:, :n_targets] + rng.randn(n_rows, n_targets)
    return X, y[:, 0] if n_targets == 1 else y


@pytest.fixture(scope="module", params=[1, 2], ids=["one target", "two targets"])
def fitted(request):
    X, y = make_rows(n_targets=request.param)
    return clone(STUDENTS).fit(X[:300], y[:300]), X[300:], y[300:]


def conformal_of(reg, X, y):
    return SplitConformalRegressor(FrozenEstimator(reg)).fit(X, y)


@pytest.mark.parametrize(
    ("n_rows", "alpha", "rank"),
    # ceil((n + 1)(1 - alpha)), where floats would round 0.29 * 100 down.
    [(9, 0.1, 9), (19, 0.1, 18), (99, 0.29, 71), (100, 0.05, 96), (3, 0.25, 3)],
)
def test_half_width_is_the_residual_of_the_conformal_rank(fitted, n_rows, alpha, rank):
    reg, X, y = fitted
    conformal = conformal_of(reg, X[:n_rows], y[:n_rows])
    residuals = np.abs(y - reg.predict(X))[:n_rows].reshape(n_rows, -1)
    expected = np.sort(residuals, axis=0)[rank - 1]
    assert_allclose(conformal.half_widths(alpha), expected)


def test_intervals_surround_the_predictions_at_every_stage(fitted):
    reg, X, y = fitted
    conformal = conformal_of(reg, X, y)
    intervals = conformal.predict_interval(X, alpha=0.2)
    assert intervals.shape == (*y.shape, 2)
    assert_allclose(intervals.mean(axis=-1), reg.predict(X))
    found = list(conformal.staged_predict_interval(X, alpha=0.2))
    assert_array_equal(found[-1], intervals)
    for stage, (interval, targets) in enumerate(
        zip(found, reg.staged_predict(X), strict=True), start=1
    ):
        half_widths = conformal.half_widths(0.2, stage=stage)
        widths = np.broadcast_to(2 * half_widths, (len(X), len(half_widths)))
        assert_allclose(
            (interval[..., 1] - interval[..., 0]).reshape(widths.shape), widths
        )
        assert_allclose(interval.mean(axis=-1), targets)
        # On its own rows at least the quantile itself.
        is_in = (interval[..., 0] <= y + 1e-9) & (y - 1e-9 <= interval[..., 1])
        assert (is_in.mean(axis=0) >= 0.8).all()


def test_coverage_over_draws_is_what_is_promised(fitted):
    reg, _, y = fitted
    n_targets = 1 if y.ndim == 1 else y.shape[1]
    X, y = make_rows(40 * 60, n_targets, seed=1)
    covered = []
    for rows in np.split(np.arange(len(X)), 40):
        conformal = conformal_of(reg, X[rows[:30]], y[rows[:30]])
        ends = conformal.predict_interval(X[rows[30:]], alpha=0.2)
        truth = y[rows[30:]]
        covered.append(((ends[..., 0] <= truth) & (truth <= ends[..., 1])).mean())
    # From 1 - alpha to 1 - alpha + 1 / (n + 1), within 4 standard errors.
    error = np.std(covered, ddof=1) / 40**0.5
    assert 0.8 - 4 * error <= np.mean(covered) <= 0.8 + 1 / 31 + 4 * error


@pytest.mark.parametrize(
    "ask",
    [
        lambda conformal, X: conformal.half_widths(1e-6),
        lambda conformal, X: conformal.predict_interval(X, 1e-6),
        lambda conformal, X: list(conformal.staged_predict_interval(X, 1e-6)),
    ],
    ids=["half_widths", "predict_interval", "staged_predict_interval"],
)
def test_warning_of_infinite_intervals_points_at_the_caller(fitted, ask):
    reg, X, y = fitted
    with pytest.warns(InfiniteIntervalWarning) as found:
        ask(conformal_of(reg, X, y), X)
    assert {warning.filename for warning in found} == {__file__}


def test_too_few_rows_warn_and_are_infinite(fitted):
    reg, X, y = fitted
    conformal = conformal_of(reg, X[:18], y[:18])
    message = "has 18 calibration rows, and needs at least 19 for alpha=0.05"
    with pytest.warns(InfiniteIntervalWarning, match=message):
        intervals = conformal.predict_interval(X, alpha=0.05)
    assert_array_equal(np.isinf(intervals), True)
    with pytest.warns(InfiniteIntervalWarning, match=message):
        assert np.isinf(list(conformal.staged_predict_interval(X, 0.05))).all()
    assert np.isfinite(conformal.predict_interval(X, alpha=0.1)).all()


def test_unfitted_early_exit_never_sees_the_rows_of_the_intervals(monkeypatch):
    X, y = make_rows()
    X = pd.DataFrame(X, columns=list("abc"))
    seen = []
    fit = EarlyExitRegressor.fit

    def spied(self, X, y):
        seen.append(set(X.index))
        return fit(self, X, y)

    monkeypatch.setattr(EarlyExitRegressor, "fit", spied)
    early = EarlyExitRegressor(clone(STUDENTS), 1.0, random_state=0)
    conformal = SplitConformalRegressor(early, random_state=0).fit(X, y)
    (rows,) = seen
    assert len(rows) == 480
    held_out = sorted(set(X.index) - rows)
    residuals = np.abs(y - conformal.predict(X))[held_out]
    # The students compute in float32, in batches of other sizes.
    assert_allclose(conformal.residuals_[:, 0], np.sort(residuals), atol=1e-5)
    assert list(conformal.feature_names_in_) == list("abc")


def test_early_exit_has_intervals_of_its_own_and_of_its_stages(fitted):
    reg, X, y = fitted
    early = EarlyExitRegressor(FrozenEstimator(reg), 2.0, max_risk=0.3).fit(X[:100])
    conformal = conformal_of(early, X[100:], y[100:])
    assert_allclose(conformal.predict_interval(X).mean(axis=-1), early.predict(X))
    found = list(conformal.staged_predict_interval(X))
    for ends, targets in zip(found, reg.staged_predict(X), strict=True):
        assert_allclose(ends.mean(axis=-1), targets)
    # New thresholds are another policy.
    early.fit(X[:50])
    with raises("fitted again or replaced", error=NotFittedError):
        conformal.predict_interval(X)


def test_pipelines_and_scikit_learns_boosting_have_intervals():
    X, y = make_rows()
    boosting = GradientBoostingRegressor(n_estimators=3, random_state=0)
    pipeline = make_pipeline(StandardScaler(), boosting)
    conformal = SplitConformalRegressor(pipeline, random_state=0).fit(X, y)
    assert conformal.stage_residuals_.shape == (3, 120, 1)
    found = list(conformal.staged_predict_interval(X))
    for ends, targets in zip(found, staged(conformal.estimator_, X), strict=True):
        assert_allclose(ends.mean(axis=-1), targets)
    assert cross_val_score(conformal, X, y, cv=2).min() > 0.1


def test_number_of_calibration_rows_and_seed():
    X, y = make_rows()
    conformal = SplitConformalRegressor(
        clone(STUDENTS), calibration_size=50, random_state=0
    )
    residuals = conformal.fit(X, y).residuals_
    assert residuals.shape == (50, 1)
    assert_array_equal(residuals, clone(conformal).fit(X, y).residuals_)


def test_copies_have_the_same_intervals(fitted):
    reg, X, y = fitted
    conformal = conformal_of(reg, X, y)
    other = pickle.loads(pickle.dumps(conformal))
    assert_array_equal(other.predict_interval(X), conformal.predict_interval(X))


@pytest.fixture(scope="module")
def exiting():
    """Intervals of an early exit around a pipeline, and their rows."""
    X, y = make_rows()
    early = EarlyExitRegressor(
        make_pipeline(StandardScaler(), clone(STUDENTS)), 2.0, max_risk=0.3
    )
    return SplitConformalRegressor(early, random_state=0).fit(X, y), X


@pytest.fixture(scope="module")
def exported(exiting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("intervals")
    to_onnx(exiting[0], folder)
    return folder


@pytest.mark.parametrize("kind", ["early exit", "pipeline", "frozen"])
def test_saved_intervals_are_the_same(kind, fitted, exiting, tmp_path):
    reg, X, y = fitted
    model = {
        "early exit": exiting[0],
        "pipeline": make_pipeline(StandardScaler(), conformal_of(reg, X, y)),
        "frozen": FrozenEstimator(conformal_of(reg, X, y)),
    }[kind]
    save(model, tmp_path / "model.skb")
    loaded = load(tmp_path / "model.skb")
    if kind == "pipeline":
        model, loaded = model[-1], loaded[-1]
    elif kind == "frozen":
        model, loaded = model.estimator, loaded.estimator
    expected = model.predict_interval(X, 0.2)
    assert_array_equal(loaded.predict_interval(X, 0.2), expected)
    assert_array_equal(loaded.half_widths(stage=2), model.half_widths(stage=2))
    assert loaded.n_features_in_ == 3


def test_saving_finds_each_fit_of_the_same_students(tmp_path):
    X, y = make_rows(100)
    students = clone(STUDENTS)
    conformal = SplitConformalRegressor(students, random_state=0).fit(X, y)
    students.fit(X[:50], y[:50])  # the parameter now is fitted, too, otherwise
    save(conformal, tmp_path / "model.skb")
    loaded = load(tmp_path / "model.skb")
    assert_array_equal(loaded.predict(X), conformal.predict(X))
    assert_array_equal(loaded.estimator.predict(X), students.predict(X))


def test_exported_intervals_are_the_same(exiting, exported):
    model, X = exiting
    session = ProgressiveSession(exported)
    # float32, where the estimators compute in float64 in part.
    assert_allclose(
        session.predict_interval(X, 0.2), model.predict_interval(X, 0.2), atol=1e-4
    )
    stages = list(model.staged_predict_interval(X, 0.2))
    for n_stages in (2, None):
        session = ProgressiveSession(exported, n_stages=n_stages, early_exit=False)
        expected = stages[session.n_stages - 1]
        assert_allclose(session.predict_interval(X, 0.2), expected, atol=1e-4)


def test_exported_intervals_of_several_targets_are_the_same(tmp_path):
    X, y = make_rows(n_targets=2)
    conformal = conformal_of(clone(STUDENTS).fit(X, y)[:1], X, y)
    to_onnx(conformal, tmp_path / "model")
    found = ProgressiveSession(tmp_path / "model").predict_interval(X)
    assert_allclose(found, conformal.predict_interval(X), atol=1e-4)


def with_intervals(exported, folder, change):
    """A copy of the export whose intervals are changed."""
    shutil.copytree(exported, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_session_without_intervals_for_what_is_asked_raises(
    exported, exiting, tmp_path
):
    _, X = exiting
    session = ProgressiveSession(exported, n_stages=2)
    with raises("leave within 3 stages", "n_stages=2"):
        session.predict_interval(X)
    session = ProgressiveSession(exported)
    with raises("'alpha' must be between 0 and 1"):
        session.predict_interval(X, 1.5)
    with pytest.warns(InfiniteIntervalWarning) as found:
        assert np.isinf(session.predict_interval(X, 1e-6)).all()
    assert [warning.filename for warning in found] == [__file__]
    older = with_intervals(exported, tmp_path / "older", lambda m: m.pop("intervals"))
    with raises("holds no intervals", error=AttributeError):
        ProgressiveSession(older).predict_interval(X)


def test_copy_of_lower_precision_has_no_intervals(exported, exiting, tmp_path):
    _, X = exiting
    lower_precision(exported, tmp_path / "half", "float16")
    session = ProgressiveSession(tmp_path / "half")
    assert session.predict(X).shape == (len(X),)
    with raises("holds no intervals", error=AttributeError):
        session.predict_interval(X)


def test_writing_intervals_that_do_not_hold_raises(tmp_path):
    X, y = make_rows(100)
    reg = clone(STUDENTS).fit(X, y)
    conformal = conformal_of(reg, X, y)
    reg.fit(X[:50], y[:50])
    for write in (save, to_onnx):
        with raises("fitted again or replaced", error=NotFittedError):
            write(conformal, tmp_path / "conformal")
        assert not (tmp_path / "conformal").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda errors: errors[::-1],
        lambda errors: errors - 1,
        lambda errors: errors[:-1],
        lambda errors: errors[:0],
        lambda errors: np.append(errors[:-1], [[np.inf]], axis=0),
    ],
    ids=["falling", "negative", "one less", "none", "infinite"],
)
def test_tampered_errors_are_refused(change, exiting, exported, tmp_path):
    conformal = copy.deepcopy(exiting[0])
    conformal.residuals_ = change(conformal.residuals_)
    with pytest.raises(ValueError, match="could not be loaded again"):
        save(conformal, tmp_path / "model.skb")

    def tamper(manifest):
        manifest["intervals"]["residuals"] = conformal.residuals_.tolist()

    with pytest.raises(InvalidFileError):
        ProgressiveSession(with_intervals(exported, tmp_path / "model", tamper))


def test_manifest_with_intervals_of_classes_is_refused(exported, tmp_path):
    def tamper(manifest):
        manifest["kind"] = "classifier"
        manifest["classes"] = {"values": [0], "dtype": "<i8"}
        manifest["early_exit"] = None

    with raises("has intervals, and is of kind 'classifier'", error=InvalidFileError):
        ProgressiveSession(with_intervals(exported, tmp_path / "model", tamper))


def test_intervals_around_what_is_not_ours_cannot_be_saved(tmp_path):
    X, y = make_rows(100)
    boosting = GradientBoostingRegressor(n_estimators=3, random_state=0)
    conformal = SplitConformalRegressor(boosting, random_state=0).fit(X, y)
    for write in (save, to_onnx):
        with raises("GradientBoostingRegressor", error=TypeError):
            write(conformal, tmp_path / "conformal")


def test_groups_are_either_trained_or_calibrated_on():
    X, y = make_rows(120)
    groups = np.repeat(np.arange(30), 4)
    conformal = SplitConformalRegressor(STUDENTS, random_state=0)
    conformal.fit(pd.DataFrame(X), y, groups=groups)
    errors = np.abs(y - conformal.predict(X))
    is_held_out = (np.abs(errors[:, np.newaxis] - conformal.residuals_.T) < 1e-4).any(1)
    assert is_held_out.sum() == 24
    assert len(np.unique(groups[is_held_out])) == 6


def test_search_in_a_pipeline_keeps_names_and_routes_weights():
    X, y = make_rows(100)
    X = pd.DataFrame(X, columns=list("abc"))
    pipeline = make_pipeline(StandardScaler(), SplitConformalRegressor(STUDENTS))
    pipeline.set_output(transform="pandas")
    grid = {"splitconformalregressor__estimator__n_estimators": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    conformal = search.best_estimator_[-1]
    assert list(conformal.feature_names_in_) == list("abc")
    n_stages = search.best_params_.popitem()[1]
    assert len(conformal.stage_residuals_) == n_stages
    with config_context(enable_metadata_routing=True):
        students = clone(STUDENTS).set_fit_request(sample_weight=True)
        weighted = SplitConformalRegressor(students, random_state=0)
        weighted.fit(X, y, sample_weight=np.arange(100))
        alike = clone(weighted).fit(X, y)
    assert not np.array_equal(weighted.residuals_, alike.residuals_)


def test_boosting_of_scikit_learn_that_is_fitted_again_raises():
    X, y = make_rows(100)
    boosting = GradientBoostingRegressor(n_estimators=3).fit(X, y)
    conformal = conformal_of(boosting, X, y)
    conformal.predict(X)
    boosting.fit(X[:50], y[:50])
    with raises("fitted again or replaced", error=NotFittedError):
        conformal.predict(X)


def test_refit_and_other_number_of_stages_are_noticed():
    X, y = make_rows()
    reg = clone(STUDENTS).fit(X, y)
    conformal = conformal_of(reg, X, y)
    reg.n_stages = 1
    with raises("calibrated with 3 stages", error=NotFittedError):
        conformal.predict(X)
    reg.n_stages = None
    conformal.predict(X)
    reg.fit(X, y)
    with raises("fitted again or replaced", error=NotFittedError):
        conformal.half_widths()


@pytest.mark.parametrize("alpha", [0, 1, -0.1, np.nan, "0.1", None])
def test_alpha_out_of_range_raises(fitted, alpha):
    reg, X, y = fitted
    conformal = conformal_of(reg, X, y)
    with raises("'alpha' must be between 0 and 1"):
        conformal.predict_interval(X, alpha)


@pytest.mark.parametrize("stage", [0, 4, 1.0])
def test_stage_out_of_range_raises(fitted, stage):
    reg, X, y = fitted
    with raises("'stage' must be None or an int from 1 to 3"):
        conformal_of(reg, X, y).half_widths(stage=stage)


def test_bad_input_of_fit_raises(fitted):
    reg, X, y = fitted
    with raises("requires y to be passed, but the target y is None"):
        conformal_of(reg, X, None)
    with raises("inconsistent numbers of samples"):
        conformal_of(reg, X, y[:-1])
    with raises("contains NaN"):
        conformal_of(reg, X, np.full_like(y, np.nan))
    with raises("needs targets of the shape of the predictions"):
        conformal_of(reg, X, np.ones((len(X), 3)))
    with raises("is a fitted BDistilRegressor, which would be fitted again"):
        SplitConformalRegressor(reg).fit(X, y)
    with raises("'calibration_size' parameter"):
        SplitConformalRegressor(STUDENTS, calibration_size=1.5).fit(X, y)
    with raises("has no stages", error=TypeError):
        SplitConformalRegressor(LinearRegression()).fit(X, y)
    with raises("not fitted yet", error=NotFittedError):
        SplitConformalRegressor(STUDENTS).predict_interval(X)


def test_classifier_raises():
    with pytest.raises(TypeError, match="must be a regressor"):
        SplitConformalRegressor(BDistilClassifier()).fit(np.eye(4), [0, 1, 0, 1])
