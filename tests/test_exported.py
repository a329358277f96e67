"""Folders of exported stages as estimators, and the early exit chosen for them."""

import json
import pickle
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._exit_calibration import rows_needed
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.exceptions import InvalidFileError
from skbdistil.export import to_onnx, to_torch
from skbdistil.exported import ExportedClassifier, ExportedRegressor
from skbdistil.persistence import save
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.stages import stage_cost, staged
from skbdistil.students import MLP

N_STAGES = 3


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True, as_frame=True)
    clf = BDistilClassifier(
        "precomputed",
        student=partial(MLP, hidden=(16,)),
        n_estimators=N_STAGES,
        max_epochs=3,
        edge_tol=np.inf,
        random_state=0,
    )
    return clf.fit(X[:600], y[:600], teacher_scores=10 * np.eye(10)[y[:600]]), X[600:]


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits") / "float32"
    to_onnx(digits[0], directory, fixed_stage=N_STAGES)
    return directory


@pytest.fixture(scope="module")
def fallback(digits, folder, tmp_path_factory):
    """Stages in 4 bits, and all of them in float32 at the end."""
    directory = tmp_path_factory.mktemp("digits") / "fallback"
    lower_precision(folder, directory, "int4", fallback=True)
    return directory


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    X, y = load_diabetes(return_X_y=True)
    reg = BDistilRegressor(
        Ridge(),
        student=partial(MLP, hidden=(8,)),
        n_estimators=N_STAGES,
        max_epochs=3,
        edge_tol=np.inf,
        random_state=0,
    ).fit(X, y)
    directory = tmp_path_factory.mktemp("diabetes") / "float32"
    to_onnx(reg, directory, fixed_stage=N_STAGES)
    return reg, X, directory


# Predictions


def test_classifier_predicts_as_the_session(digits, folder):
    clf, X = digits
    exported = ExportedClassifier(folder).fit()
    session = ProgressiveSession(folder, early_exit=False)
    assert is_classifier(exported)
    assert len(exported) == N_STAGES
    assert_array_equal(exported.classes_, clf.classes_)
    assert exported.n_features_in_ == 64
    assert_array_equal(exported.feature_names_in_, X.columns)
    assert_array_equal(exported.predict(X), session.predict(X))
    for method in ("predict_proba", "decision_function"):
        assert_array_equal(getattr(exported, method)(X), getattr(session, method)(X))
        *_, last = staged(exported, X, method)
        assert_array_equal(last, getattr(exported, method)(X))
    pairs = zip(staged(exported, X), session.staged_predict(X), strict=True)
    for found, expected in pairs:
        assert_array_equal(found, expected)
    assert exported.score(X, clf.predict(X)) == 1


def test_regressor_predicts_as_the_session(regressor):
    _, X, directory = regressor
    exported = ExportedRegressor(directory).fit()
    session = ProgressiveSession(directory)
    assert is_regressor(exported)
    assert not hasattr(exported, "feature_names_in_")
    assert_array_equal(exported.predict(X), session.predict(X))
    pairs = zip(exported.staged_predict(X), session.staged_predict(X), strict=True)
    for found, expected in pairs:
        assert_array_equal(found, expected)


@pytest.mark.parametrize("n_stages", [1, N_STAGES])
def test_fewer_stages(digits, folder, n_stages):
    _, X = digits
    exported = ExportedClassifier(folder, n_stages=n_stages).fit()
    session = ProgressiveSession(folder, n_stages=n_stages, early_exit=False)
    assert_array_equal(exported.predict(X), session.predict(X))
    assert len(list(exported.staged_predict(X))) == n_stages


def test_costs_are_those_of_the_manifest(digits, folder, fallback):
    clf, X = digits
    costs = ExportedClassifier(folder).fit().stage_costs_
    assert_array_equal(costs.macs, clf.stage_costs_.macs)
    assert_array_equal(costs.parameters, clf.stage_costs_.parameters)
    lowered = ExportedClassifier(fallback).fit()
    assert lowered.precisions_ == ["int4"] * N_STAGES + ["float32"]
    in_bytes = lowered.stage_costs_.weight_bytes
    assert (in_bytes[:-1] < 0.5 * costs.weight_bytes).all()
    # The fallback has the weights of all stages.
    assert_allclose(in_bytes[-1], costs.weight_bytes.sum(), rtol=0.01)
    for unit in ("macs", "weight_bytes", "latency"):
        found = stage_cost(lowered, unit, X=X)
        assert len(found) == N_STAGES + 1
        assert (np.diff(found) >= 0).all()


def test_costs_weighted_by_precision(fallback):
    bits = {"int4": 4, "float32": 32}

    def bit_operations(exported):
        macs = exported.stage_costs_.macs
        weights = [bits[precision] for precision in exported.precisions_]
        return np.cumsum(macs * weights)

    exported = ExportedClassifier(fallback).fit()
    costs = stage_cost(FrozenEstimator(exported), bit_operations)
    macs = exported.stage_costs_.macs
    assert_array_equal(costs[:-1], 4 * macs[:-1].cumsum())
    assert costs[-1] == (4 + 32) * macs[-1]


def test_costs_that_the_manifest_lacks_are_unknown(folder, tmp_path):
    directory = shutil.copytree(folder, tmp_path / "edited")
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["stages"][1]["macs"] = None
    del manifest["stages"][1]["parameters"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    exported = ExportedClassifier(directory).fit()
    for unit in ("macs", "parameters"):
        with pytest.raises(ValueError, match=r"operations of stage 2 could not be"):
            stage_cost(exported, unit)


def test_clone_and_pickle(digits, folder):
    _, X = digits
    exported = ExportedClassifier(folder).fit()
    copied = clone(exported)
    with pytest.raises(NotFittedError):
        copied.predict(X)
    expected = exported.predict(X)
    assert_array_equal(copied.fit(X).predict(X), expected)
    assert_array_equal(pickle.loads(pickle.dumps(exported)).predict(X), expected)


# Early exit


def test_early_exit_falls_back_to_float32(digits, folder, fallback, tmp_path):
    _, X = digits
    full = ProgressiveSession(folder, early_exit=False)
    early = EarlyExitClassifier(
        FrozenEstimator(ExportedClassifier(fallback).fit()),
        max_drop=0.05,
        delta=0.1,
        cost="weight_bytes",
        random_state=0,
    ).fit(X[:600])
    labels, costs = early.predict_with_cost(X)
    stages = early.exit_stages(X)
    # Rows that reach the last stage have the labels of float32.
    is_last = stages == N_STAGES + 1
    assert 0 < is_last.mean() < 1
    assert_array_equal(labels[is_last], full.predict(X)[is_last])
    assert np.mean(labels == full.predict(X)) >= 0.95
    assert_array_equal(costs, early.costs_[stages - 1])
    # The guarantee is that of all early exits, with the same number of rows.
    assert early.path_.losses[early.best_index_] <= 0.05
    with pytest.raises(ValueError, match=r"cannot guarantee max_drop=0\.05 with delta"):
        clone(early).fit(X[: rows_needed(0.05, 0.1)])

    to_onnx(early, tmp_path / "early")
    session = ProgressiveSession(tmp_path / "early")
    assert_array_equal(session.exit_stages(X), stages)
    assert_array_equal(session.predict(X), labels)
    assert_allclose(session.predict_proba(X), early.predict_proba(X), atol=1e-6)
    assert session.manifest["early_exit"]["costs"] == early.costs_.tolist()
    # One row at a time, rows leave as they do together.
    assert_array_equal(
        [session.exit_stages(X[i : i + 1])[0] for i in range(40)], stages[:40]
    )
    *_, anytime = early.anytime(X)
    assert_array_equal(anytime, labels)
    assert_array_equal(early.predict_within(X, 60), labels)
    assert_array_equal(pickle.loads(pickle.dumps(early)).predict(X), labels)


def test_folder_keeps_its_stages_and_gets_the_rule(digits, folder, tmp_path):
    _, X = digits
    exported = ExportedClassifier(folder, n_stages=2).fit()
    early = EarlyExitClassifier(FrozenEstimator(exported), max_drop=0.1).fit(X[:400])
    to_onnx(early, tmp_path / "early")
    for number in (1, 2):
        file = f"stage_{number}.onnx"
        assert (tmp_path / "early" / file).read_bytes() == (folder / file).read_bytes()
    session = ProgressiveSession(tmp_path / "early")
    assert session.n_stages == 2
    assert session.manifest["fixed_stage"] is None
    assert_array_equal(session.predict(X), early.predict(X))
    # The early exit of a folder is not used when it is calibrated again.
    again = ExportedClassifier(tmp_path / "early").fit()
    assert_array_equal(again.predict(X), exported.predict(X))


def test_rows_are_deferred_after_the_last_stage(digits, folder, tmp_path):
    clf, X = digits
    early = EarlyExitClassifier(
        FrozenEstimator(ExportedClassifier(folder).fit()),
        final=clf.predict,
        final_cost=10**6,
        max_drop=0.01,
    ).fit(X[:600])
    to_onnx(early, tmp_path / "early")
    session = ProgressiveSession(tmp_path / "early", final=clf.predict)
    assert session.manifest["schema_version"] == 2
    assert_array_equal(session.predict(X), early.predict(X))


def test_early_exit_of_a_regressor(regressor, tmp_path):
    _, X, directory = regressor
    lower_precision(directory, tmp_path / "lower", "int8_static", X=X, fallback=True)
    exported = ExportedRegressor(tmp_path / "lower").fit()
    early = EarlyExitRegressor(FrozenEstimator(exported), tolerance=20).fit(X)
    stages = early.exit_stages(X)
    full = ProgressiveSession(directory).predict(X)
    is_last = stages == N_STAGES + 1
    assert_allclose(early.predict(X)[is_last], full[is_last], rtol=1e-6)
    assert np.mean(np.abs(early.predict(X) - full) <= 20) >= 0.95
    to_onnx(early, tmp_path / "early")
    session = ProgressiveSession(tmp_path / "early")
    assert_array_equal(session.exit_stages(X), stages)
    assert_allclose(session.predict(X), early.predict(X), rtol=1e-6)


def test_fit_in_the_place_of_training(digits, folder):
    # Nothing is trained, and the rows held out are those that calibrate.
    _, X = digits
    early = EarlyExitClassifier(ExportedClassifier(folder), random_state=0)
    y = ExportedClassifier(folder).fit().predict(X)
    assert early.fit(X, y).score(X, y) > 0.9


# What is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_stages": 0}, "'n_stages' parameter of ExportedClassifier must be an int"),
        ({"n_threads": 0}, "'n_threads' parameter of ExportedClassifier must be an"),
        ({"transformed": 1}, "'transformed' parameter of ExportedClassifier must be"),
        ({"directory": 1}, "'directory' parameter of ExportedClassifier must be"),
        ({"transformed": True, "n_threads": 10**6}, "'n_threads' must be None or an"),
    ],
)
def test_parameter_out_of_range(folder, params, message):
    exported = ExportedClassifier(**{"directory": folder, **params})
    with pytest.raises(ValueError, match=message):
        exported.fit()


def test_more_stages_than_there_are(digits, folder):
    exported = ExportedClassifier(folder, n_stages=N_STAGES + 1).fit()
    message = r"'n_stages' parameter of ExportedClassifier must be .* from 1 to 3"
    with pytest.raises(ValueError, match=message):
        exported.predict(digits[1])


def test_folder_of_another_kind(folder, regressor):
    message = r"ExportedRegressor needs the folder of a regressor\. .* a classifier"
    with pytest.raises(ValueError, match=message):
        ExportedRegressor(folder).fit()
    message = r"ExportedClassifier needs the folder of a classifier\. .* a regressor"
    with pytest.raises(ValueError, match=message):
        ExportedClassifier(regressor[2]).fit()


def test_no_folder(tmp_path):
    with pytest.raises(InvalidFileError, match="there is no such file"):
        ExportedClassifier(tmp_path).fit()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 63)), r"needs rows of shape \(64,\)"),
        (np.full((3, 64), np.nan), "needs finite numbers"),
    ],
)
def test_rows_that_cannot_be_used(folder, X, message):
    with pytest.raises(ValueError, match=message):
        ExportedClassifier(folder).fit().predict(X)


def test_missing_onnxruntime(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="needs onnxruntime"):
        ExportedClassifier(folder).fit()


def test_rule_that_lets_students_vote(digits, folder):
    exported = FrozenEstimator(ExportedClassifier(folder).fit())
    with pytest.raises(ValueError, match="'agreement', which lets students vote"):
        EarlyExitClassifier(exported, rule="agreement").fit(digits[1])


def test_what_is_not_written(digits, folder, tmp_path):
    _, X = digits
    exported = ExportedClassifier(folder).fit()
    early = EarlyExitClassifier(FrozenEstimator(exported)).fit(X)
    with pytest.raises(TypeError, match="ExportedClassifier is a folder already"):
        to_onnx(exported, tmp_path / "folder")
    with pytest.raises(ValueError, match="neither 'X' nor 'fixed_stage'"):
        to_onnx(early, tmp_path / "folder", fixed_stage=1)
    with pytest.raises(TypeError, match="to_torch needs the students, and Exported"):
        to_torch(early)
    with pytest.raises(TypeError, match="cannot be saved: it is or holds Exported"):
        save(early, tmp_path / "file.skb")
    scaled = make_pipeline(StandardScaler().fit(X), FrozenEstimator(exported))
    early = EarlyExitClassifier(FrozenEstimator(scaled)).fit(X)
    with pytest.raises(ValueError, match="cannot export the transforms 'standardscal"):
        to_onnx(early, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
