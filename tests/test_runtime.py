"""Sessions against the estimators that were exported, and against broken folders."""

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_digits, make_classification
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier

import common
import skbdistil
from skbdistil import BDistilClassifier, BDistilRegressor, _exit_runs, export, runtime
from skbdistil._exit_rules import RULES, rule_values
from skbdistil.costs import stage_costs
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.exceptions import InvalidFileError
from skbdistil.export import to_onnx
from skbdistil.runtime import ProgressiveSession
from skbdistil.stages import staged
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet

N_STAGES = 4

SMALL = {
    **common.SMALL,
    "student": partial(MLP, hidden=(8,)),
    "n_estimators": 2,
    "max_epochs": 3,
    "learning_rate": 0.005,  # small logits, of which float32 keeps five decimals
}


@pytest.fixture(scope="module")
def digits():
    """Digits to train on, and ten thousand noisy ones."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    many = np.tile(X, (6, 1))[:10_000]
    return X, y, many + rng.normal(scale=2, size=many.shape)


@pytest.fixture(scope="module")
def data(digits):
    return digits[:2]


@pytest.fixture(scope="module")
def small():
    # Students that may vote, which one of the rules lets them.
    return {**SMALL, "n_estimators": N_STAGES, "combine": "mean"}


@pytest.fixture(scope="module")
def early(clf, digits):
    early = EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.05, temperature=True)
    return early.fit(*digits[:2])


@pytest.fixture(scope="module")
def session(exported):
    """Without early exit."""
    return ProgressiveSession(exported, early_exit=False)


@pytest.fixture(scope="module")
def binary():
    X, y = make_classification(n_samples=80, n_features=6, random_state=0)
    y = np.array(["no", "yes"])[y]
    frame = pd.DataFrame(X, columns=list("abcdef"))
    return frame, BDistilClassifier(LogisticRegression(), **SMALL).fit(frame, y)


@pytest.fixture(scope="module")
def exported_binary(binary, tmp_path_factory):
    directory = tmp_path_factory.mktemp("binary")
    to_onnx(binary[1], directory)
    return directory


@pytest.fixture
def folder(exported_binary, tmp_path):
    """A small export that may be broken."""
    return shutil.copytree(exported_binary, tmp_path / "export")


def change(directory, edit):
    """Edit the manifest."""
    path = Path(directory, "manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def sign(directory, number):
    """Make the checksum of a stage that of its file."""
    content = Path(directory, f"stage_{number}.onnx").read_bytes()

    def edit(manifest):
        digest = hashlib.sha256(content).hexdigest()
        manifest["stages"][number - 1]["sha256"] = digest

    change(directory, edit)


def with_rule(directory, tmp_path, **values):
    """Copy of an export with another exit rule."""
    other = shutil.copytree(directory, tmp_path / "rule")
    change(other, lambda manifest: manifest["early_exit"].update(values))
    return other


# Against the estimator


def assert_close_logits(found, expected):
    """Within what float32 can say of the largest."""
    assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_ten_thousand_rows(clf, session, digits):
    X = digits[2]
    assert len(X) == 10_000
    assert_array_equal(session.predict(X), clf.predict(X))
    assert_array_equal(session.classes_, clf.classes_)
    assert session.input_shape == clf.input_shape_
    assert session.n_stages == N_STAGES
    assert_allclose(session.predict_proba(X), clf.predict_proba(X), rtol=0, atol=1e-5)
    assert_close_logits(session.decision_function(X), clf.decision_function(X))
    assert_array_equal(session.exit_stages(X), np.full(10_000, N_STAGES))


def test_stages(clf, session, digits):
    X = digits[2][:500]
    staged = list(session.staged_predict(X))
    assert_array_equal(staged, list(clf.staged_predict(X)))
    assert_array_equal(staged[-1], session.predict(X))
    probabilities = list(session.staged_predict_proba(X))
    expected = list(clf.staged_predict_proba(X))
    assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    assert_array_equal(probabilities[-1], session.predict_proba(X))


@pytest.mark.parametrize("n_stages", [1, 3])
def test_fewer_stages(clf, exported, digits, n_stages):
    session = ProgressiveSession(exported, n_stages=n_stages, early_exit=False)
    X = digits[2][:500]
    assert_allclose(
        session.predict_proba(X), clf[:n_stages].predict_proba(X), rtol=0, atol=1e-5
    )
    assert len(list(session.staged_predict(X))) == session.n_stages == n_stages


def test_early_exit_with_temperatures(early, exported, digits):
    session = ProgressiveSession(exported)
    X = digits[2]
    stages = session.exit_stages(X)
    assert_same_exits(early, stages, X)
    assert len(np.unique(stages)) > 2
    same = stages == early.exit_stages(X)
    assert_array_equal(session.predict(X)[same], early.predict(X)[same])
    found, expected = session.predict_proba(X), early.predict_proba(X)
    assert_allclose(found[same], expected[same], rtol=0, atol=1e-5)
    found, expected = session.decision_function(X), early.decision_function(X)
    assert_close_logits(found[same], expected[same])
    # Stages are those of the estimator inside.
    first = next(session.staged_predict_proba(X))
    assert_allclose(first, early.estimator_[:1].predict_proba(X), rtol=0, atol=1e-5)


def assert_same_exits(early, stages, X):
    """Rows leave at the same stage, or were within 1e-5 of a threshold."""
    scores = np.array(list(early.estimator_.staged_decision_function(X)))
    close = np.zeros(len(X), dtype=bool)
    for stage, threshold in enumerate(early.thresholds_, start=1):
        values = rule_values(early.rule, scores[:stage], early.temperatures_[stage - 1])
        close |= np.abs(values - threshold) < 1e-5
    assert ((stages == early.exit_stages(X)) | close).all()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(clf, exported, digits, rule, tmp_path):
    early = EarlyExitClassifier(FrozenEstimator(clf), rule=rule, max_drop=0.05)
    early.fit(*digits[:2])
    session = ProgressiveSession(
        with_rule(
            exported,
            tmp_path,
            rule=rule,
            thresholds=early.thresholds_.tolist(),
            temperatures=[1] * N_STAGES,
        )
    )
    X = digits[2][:2000]
    stages = session.exit_stages(X)
    assert_same_exits(early, stages, X)
    assert stages.min() < N_STAGES


def test_fewer_stages_with_early_exit(exported, digits):
    X = digits[2][:500]
    stages = ProgressiveSession(exported).exit_stages(X)
    fewer = ProgressiveSession(exported, n_stages=2).exit_stages(X)
    assert_array_equal(fewer, np.minimum(stages, 2))


def test_infinite_threshold(exported, digits, tmp_path):
    directory = with_rule(exported, tmp_path, thresholds=[None, None, 0])
    stages = ProgressiveSession(directory).exit_stages(digits[2][:100])
    assert_array_equal(stages, np.full(100, 3))


def test_two_classes_with_names(binary, exported_binary):
    X, clf = binary
    session = ProgressiveSession(exported_binary)
    for rows in (X, X.to_numpy(), X.to_numpy().tolist(), X.astype(object)):
        assert_array_equal(session.predict(rows), clf.predict(X))
    assert session.predict(X).dtype == clf.classes_.dtype
    scores = session.decision_function(X)
    assert_allclose(scores, clf.decision_function(X), rtol=0, atol=1e-5)
    assert scores.shape == (len(X),)


@pytest.mark.parametrize("n_targets", [1, 2])
def test_regressor(n_targets, tmp_path):
    X, y = load_diabetes(return_X_y=True)
    # Far from zero, where float32 has no digits left.
    y = np.column_stack([y + 1e9, -y])[:, :n_targets]
    y = y[:, 0] if n_targets == 1 else y
    reg = BDistilRegressor(Ridge(), **SMALL).fit(X, y)
    to_onnx(reg, tmp_path / "reg")
    session = ProgressiveSession(tmp_path / "reg")
    assert session.classes_ is None
    scale = reg.target_scale_.max()
    expected = reg.predict(X)
    assert_allclose(session.predict(X), expected, rtol=0, atol=1e-5 * scale)
    assert session.predict(X).shape == y.shape
    staged = list(session.staged_predict(X))
    assert_allclose(staged, list(reg.staged_predict(X)), rtol=0, atol=1e-5 * scale)
    assert_array_equal(session.predict_within(X, 1e6), session.predict(X))
    for method in ("predict_proba", "decision_function"):
        message = f"holds a regressor, which has no '{method}'"
        with pytest.raises(AttributeError, match=message):
            getattr(session, method)(X)
        with pytest.raises(AttributeError, match=message):
            session.predict_within(X, 1, method=method)
    with pytest.raises(AttributeError, match="which has no 'staged_predict_proba'"):
        next(session.staged_predict_proba(X))


def test_images(tmp_path):
    X, y = load_digits(n_class=3, return_X_y=True)
    X = X.reshape(-1, 1, 8, 8).astype(np.uint8)
    student = partial(ConvNet2d, channels=(2, 3))
    teacher_scores = 2 * np.eye(3)[y]
    clf = BDistilClassifier("precomputed", **{**SMALL, "student": student})
    to_onnx(clf.fit(X, y, teacher_scores=teacher_scores), tmp_path / "images")
    session = ProgressiveSession(tmp_path / "images")
    assert_allclose(session.predict_proba(X), clf.predict_proba(X), rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"needs rows of shape \(1, 8, 8\): X of shape"
    ):
        session.predict(X[:, 0])


# Every kind of export

BACKBONES = {
    "mlp": ((4,), partial(MLP, hidden=(4, 3))),
    "conv1d": ((5, 2), partial(ConvNet1d, channels=(2, 3))),
    "conv2d": ((1, 5, 4), partial(ConvNet2d, channels=(2, 3))),
    "gru": ((4, 2), partial(RecurrentNet, hidden=(3, 2))),
    "lstm": ((4, 2), partial(RecurrentNet, hidden=(3, 2), cell="lstm")),
}
LABELS = {
    "int": np.array([0, 1]),
    "negative int": np.array([-7, -1], dtype=np.int8),
    "bool": np.array([False, True]),
    "str": np.array(["no", "yes"]),
    "object": np.array(["no", "ja"], dtype=object)[::-1],
}


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were exported, once for the same weights: they take the time."""
    graphs = {}
    stage_models = export._stage_models

    def once(rows, ensemble):
        weights = (tensor.numpy() for tensor in ensemble.state_dict().values())
        key = b"".join(values.tobytes() for values in weights)
        if key not in graphs:
            graphs[key] = stage_models(rows, ensemble)
        return graphs[key]

    monkeypatch.setattr(export, "_stage_models", once)
    return graphs


@pytest.mark.parametrize(
    ("connection", "combine"),
    [
        (None, "mean"),
        ("dense", "sum"),
        ("dense", "learned"),
        ("last", "learned"),
        ("lateral", "mean"),
    ],
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_session_of_any_student_and_label_predicts_as_the_estimator(
    backbone, connection, combine, graphs, tmp_path
):
    shape, student = BACKBONES[backbone]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, *shape)).astype(np.float32)
    y = (X.reshape(60, -1).mean(axis=1) > 0).astype(int)
    scores = np.where(y[:, np.newaxis] == [0, 1], 2.0, -2.0)
    options = {"student": student, "connection": connection, "combine": combine}
    options["max_epochs"] = 3
    for name, classes in LABELS.items():
        clf = BDistilClassifier("precomputed", **{**SMALL, **options})
        clf.fit(X, classes[y], teacher_scores=scores)
        to_onnx(clf, tmp_path / name)
        session = ProgressiveSession(tmp_path / name, n_threads=1)
        assert_array_equal(session.classes_, clf.classes_)
        assert session.classes_.dtype == clf.classes_.dtype
        labels = list(session.staged_predict(X))
        assert_array_equal(labels, list(clf.staged_predict(X)))
        assert labels[-1].dtype == clf.predict(X).dtype
        found = list(session.staged_predict_proba(X))
        expected = list(clf.staged_predict_proba(X))
        assert_allclose(found, expected, rtol=0, atol=1e-5)
        found = session.predict_proba(X[:1])
        assert_allclose(found, expected[-1][:1], rtol=0, atol=1e-5)
    assert len(graphs) == 1


def classifier_by_hand(dtype):
    """As if it were fitted, without input scaling."""
    ensemble = ProgressiveEnsemble((4,), 3)
    for _ in range(2):
        ensemble.append(ensemble.new_student(partial(MLP, hidden=(5,))))
    clf = BDistilClassifier()
    clf.ensemble_ = ensemble.to(dtype)
    clf.classes_ = np.arange(3)
    clf.input_shape_ = (4,)
    clf.student_transform_ = None
    clf.n_estimators_ = 2
    clf.stage_costs_ = stage_costs(ensemble, ensemble.example())
    return clf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("seeded_torch")
def test_ensemble_without_input_scaling(dtype, tmp_path):
    clf = classifier_by_hand(dtype)
    X = np.random.default_rng(0).normal(size=(20, 4)) * 10
    scaler = StandardScaler().fit(X)
    for name, exported, rows in (
        ("alone", clf, X),
        ("in a pipeline", make_pipeline(scaler, clf), scaler.transform(X)),
    ):
        to_onnx(exported, tmp_path / name)
        session = ProgressiveSession(tmp_path / name)
        with torch.no_grad():
            stages = list(clf.ensemble_.stages(torch.tensor(rows, dtype=dtype)))
        expected = [torch.softmax(scores, dim=1) for scores in stages]
        found = list(session.staged_predict_proba(X))
        assert_allclose(found, torch.stack(expected), rtol=0, atol=1e-5)
        assert_overflow_is_found(session, np.full((1, 4), 1e45))


# Transforms of pipelines


@pytest.fixture(scope="module")
def sized():
    """Columns of all sizes, one of them far from zero."""
    X, y = make_classification(
        n_samples=200, n_features=6, n_informative=4, n_classes=3, random_state=0
    )
    return X * [1, 1e-3, 1, 50, 1, 1] + [0, 0, 1e6, 0, -30, 0], y


def pipeline_of(data, *steps, **options):
    teacher = DecisionTreeClassifier(max_depth=4, random_state=0)
    clf = BDistilClassifier(teacher, **{**SMALL, "max_epochs": 30, **options})
    return make_pipeline(*steps, clf).fit(*data)


@pytest.fixture(scope="module")
def scaled(sized, tmp_path_factory):
    """A pipeline whose early exit is inside, and its export."""
    pipeline = pipeline_of(sized, RobustScaler(), StandardScaler())
    X, y = sized
    early = EarlyExitClassifier(FrozenEstimator(pipeline), max_drop=0.1).fit(X, y)
    directory = tmp_path_factory.mktemp("scaled")
    to_onnx(early, directory)
    return early, directory


@pytest.fixture(scope="module")
def rotated(sized, tmp_path_factory):
    """A pipeline of which only the students are exported, and these."""
    pipeline = pipeline_of(sized, StandardScaler(), PCA(4))
    directory = tmp_path_factory.mktemp("rotated")
    to_onnx(pipeline, directory)
    return pipeline, directory


def test_rows_are_scaled_as_by_the_pipeline(scaled, sized):
    X = sized[0]
    early, directory = scaled
    session = ProgressiveSession(directory)
    assert_array_equal(session.predict(X), early.predict(X))
    assert_allclose(session.predict_proba(X), early.predict_proba(X), rtol=0, atol=1e-5)
    assert_array_equal(session.exit_stages(X), early.exit_stages(X))
    assert len(np.unique(early.exit_stages(X))) == 2
    pipeline = early.estimator_
    found = list(session.staged_predict_proba(X))
    expected = list(staged(pipeline, X, "predict_proba"))
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_pipeline_around_an_early_exit(scaled, sized, tmp_path):
    X, y = sized
    pipeline = scaled[0].estimator_.estimator
    early = EarlyExitClassifier(FrozenEstimator(pipeline[-1]), max_drop=0.1)
    outer = make_pipeline(*(FrozenEstimator(step) for step in pipeline[:-1]), early)
    outer.fit(X, y)
    to_onnx(outer, tmp_path)
    session = ProgressiveSession(tmp_path)
    assert_array_equal(session.predict(X), outer.predict(X))
    assert_allclose(session.predict_proba(X), outer.predict_proba(X), rtol=0, atol=1e-5)


def test_regressor_in_a_pipeline(tmp_path):
    X, y = load_diabetes(return_X_y=True)
    pipeline = make_pipeline(
        MinMaxScaler(), SelectKBest(f_regression, k=4), BDistilRegressor(**SMALL)
    )
    pipeline.fit(X, y)
    to_onnx(pipeline, tmp_path)
    found = ProgressiveSession(tmp_path).predict(X)
    atol = 1e-5 * pipeline[-1].target_scale_.max()
    assert_allclose(found, pipeline.predict(X), rtol=0, atol=atol)


def test_float32_rows_far_from_zero_keep_their_digits(sized, scaled):
    early, directory = scaled
    X = sized[0].astype(np.float32)
    found = ProgressiveSession(directory).predict_proba(X)
    # What the pipeline has for these very rows in float64.
    expected = early.predict_proba(X.astype(np.float64))
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_columns_are_by_position(sized, tmp_path):
    X, y = sized
    frame = pd.DataFrame(X, columns=list("abcdef"))
    columns = ColumnTransformer([("some", StandardScaler(), ["e", "a", "c"])])
    pipeline = pipeline_of((frame, y), columns)
    to_onnx(pipeline, tmp_path)
    session = ProgressiveSession(tmp_path)
    expected = pipeline.predict_proba(frame)
    for rows in (frame, X):
        assert_allclose(session.predict_proba(rows), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"columns of X .* in their order: \['a', 'b'"):
        session.predict(frame[list("eacbdf")])


def test_transforms_outside_have_to_be_acknowledged(rotated, sized):
    pipeline, directory = rotated
    message = (
        r"without the transforms of its pipeline: 'standardscaler' \(StandardScaler\), "
        r"'pca' \(PCA\)\. .*transformed=True"
    )
    with pytest.raises(ValueError, match=message):
        ProgressiveSession(directory)
    session = ProgressiveSession(directory, transformed=True)
    found = session.predict_proba(pipeline[:-1].transform(sized[0]))
    assert_allclose(found, pipeline.predict_proba(sized[0]), rtol=0, atol=1e-5)


def test_transforms_inside_are_not_to_be_applied_twice(scaled):
    message = r"apply .* themselves: 'robustscaler' .*, 'standardscaler' \(StandardSca"
    with pytest.raises(ValueError, match=message):
        ProgressiveSession(scaled[1], transformed=True)


def test_without_transforms_there_is_nothing_to_acknowledge(exported):
    ProgressiveSession(exported, transformed=True)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_images_that_a_pipeline_makes(tmp_path):
    X, y = load_digits(n_class=3, return_X_y=True)
    to_images = FunctionTransformer(lambda X: X.reshape(-1, 1, 8, 8))
    options = {**SMALL, "student": partial(ConvNet2d, channels=(2, 3))}
    pipeline = make_pipeline(to_images, BDistilClassifier("precomputed", **options))
    pipeline.fit(X, y, bdistilclassifier__teacher_scores=np.eye(3)[y])
    to_onnx(pipeline, tmp_path)
    with pytest.raises(ValueError, match=r"'functiontransformer' \(FunctionTransfo"):
        ProgressiveSession(tmp_path)
    session = ProgressiveSession(tmp_path, transformed=True)
    found = session.predict_proba(X.reshape(-1, 1, 8, 8))
    assert_allclose(found, pipeline.predict_proba(X), rtol=0, atol=1e-5)


def test_missing_values_where_the_pipeline_takes_them(sized, tmp_path):
    X = sized[0].copy() - [0, 0, 1e6, 0, 0, 0]
    X[::5, 3] = np.nan
    pipeline = pipeline_of((X, sized[1]), SimpleImputer(), StandardScaler())
    to_onnx(pipeline, tmp_path, X=X)
    session = ProgressiveSession(tmp_path)
    found = session.predict_proba(X)
    assert_allclose(found, pipeline.predict_proba(X), rtol=0, atol=1e-5)
    for column, value in ((0, np.inf), (3, np.inf), (3, 1e42)):
        rows = X.copy()
        rows[1, column] = value
        with pytest.raises(ValueError, match="needs finite numbers"):
            session.predict(rows)
    # What is imputed need not have been missing before.
    rows[1, :2] = rows[1, 3] = np.nan
    found = session.predict_proba(rows)
    assert_allclose(found, pipeline.predict_proba(rows), rtol=0, atol=1e-5)


def test_dropped_column_may_be_missing_if_it_was_in_the_rows(sized, tmp_path):
    X = sized[0].copy()
    X[3, 1] = np.nan
    columns = ColumnTransformer([("some", StandardScaler(), [0, 2, 3])])
    pipeline = pipeline_of((X, sized[1]), columns)
    to_onnx(pipeline, tmp_path / "told", X=X)
    found = ProgressiveSession(tmp_path / "told").predict_proba(X)
    assert_allclose(found, pipeline.predict_proba(X), rtol=0, atol=1e-5)
    to_onnx(pipeline, tmp_path / "not told")
    with pytest.raises(ValueError, match="needs finite numbers"):
        ProgressiveSession(tmp_path / "not told").predict(X)


# Overflow


def assert_overflow_is_found(session, X):
    message = "needs finite numbers. X contains NaN, infinity or a value too large for"
    for method in ("predict", "predict_proba", "decision_function", "exit_stages"):
        with pytest.raises(ValueError, match=message):
            getattr(session, method)(X)
    for method in ("staged_predict", "staged_predict_proba"):
        with pytest.raises(ValueError, match=message):
            next(getattr(session, method)(X))
    for seconds in (1e-9, 1e6):
        with pytest.raises(ValueError, match=message):
            session.predict_within(X, seconds)


@pytest.mark.parametrize("early_exit", [True, False])
def test_value_that_overflows_in_the_scaling(scaled, sized, early_exit):
    session = ProgressiveSession(scaled[1], early_exit=early_exit)
    # float64 and finite, and no float32 in units of the column, which are below 1e-3.
    X = sized[0].copy()
    X[-1, 1] = 1e36
    assert_overflow_is_found(session, X)
    X[-1, 1] = 1e200
    assert_overflow_is_found(session, X)


@pytest.mark.parametrize("n_stages", [1, 2])
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_value_that_overflows_in_the_scaling_of_the_estimator(n_stages, tmp_path):
    rng = np.random.default_rng(0)
    X = 1e-3 * rng.normal(size=(60, 5, 1)).astype(np.float32)
    y = (X.mean(axis=(1, 2)) > 0).astype(int)
    # Gates are saturated by infinity, so that the scores are finite.
    student = partial(RecurrentNet, hidden=(3,), cell="lstm")
    clf = BDistilClassifier("precomputed", **{**SMALL, "student": student})
    clf.fit(X, y, teacher_scores=np.eye(2)[y])
    to_onnx(clf[:n_stages], tmp_path)
    X[-1, 0] = 3e38
    assert_overflow_is_found(ProgressiveSession(tmp_path), X)


@pytest.mark.parametrize("early_exit", [True, False])
def test_value_that_overflows_in_a_student(early_exit, tmp_path):
    clf = classifier_by_hand(torch.float32)
    for parameter in clf.ensemble_.parameters():
        parameter.fill_(1)
    to_onnx(clf, tmp_path)
    rule = {"rule": "confidence", "thresholds": [0.1], "temperatures": [1, 1]}
    change(tmp_path, set_to(rule, "early_exit"))
    session = ProgressiveSession(tmp_path, early_exit=early_exit)
    X = np.zeros((3, 4))
    assert_array_equal(session.exit_stages(X), [1 if early_exit else 2] * 3)
    # None of them is infinite as float32, and their sum is.
    X[-1] = 2e38
    assert_overflow_is_found(session, X)


def test_rows_of_an_export_without_scaled_rows_are_checked(binary, tmp_path):
    """As version 0.1 wrote it."""
    to_onnx(binary[1][:1], tmp_path)
    path = tmp_path / "stage_1.onnx"
    model = onnx.load(path)
    (value,) = (value for value in model.graph.output if value.name == "scaled")
    model.graph.output.remove(value)
    path.write_bytes(model.SerializeToString())

    def edit(manifest):
        del manifest["input"]["missing"], manifest["input"]["transforms"]
        (first,) = manifest["stages"]
        first["outputs"] = [e for e in first["outputs"] if e["name"] != "scaled"]

    change(tmp_path, edit)
    sign(tmp_path, 1)
    session = ProgressiveSession(tmp_path)
    X = binary[0].copy()
    assert_array_equal(session.predict(X), binary[1][:1].predict(X))
    X.iloc[3, 2] = 1e39
    assert_overflow_is_found(session, X)


# Rows in chunks


def test_chunks(exported, digits, monkeypatch):
    session = ProgressiveSession(exported)
    X = digits[2][:100]
    expected = session.predict_proba(X), session.exit_stages(X)
    staged = list(session.staged_predict_proba(X))
    lengths = []
    step = runtime._State.step

    def spy(state):
        scores = step(state)
        lengths.append(len(scores))
        return scores

    monkeypatch.setattr(runtime._State, "step", spy)
    monkeypatch.setattr(runtime, "_CHUNK_ROWS", 37)
    assert_allclose(session.predict_proba(X), expected[0], rtol=0, atol=1e-6)
    assert_array_equal(session.exit_stages(X), expected[1])
    assert_allclose(list(session.staged_predict_proba(X)), staged, rtol=0, atol=1e-6)
    assert max(lengths) == 37
    # Rows that have left are not computed.
    assert sum(lengths) < 2 * np.sum(expected[1]) + len(X) * N_STAGES + 1


# What is loaded


def test_stages_are_loaded_when_a_row_reaches_them(exported, digits, tmp_path):
    directory = with_rule(exported, tmp_path, thresholds=[0, 0, 0])
    session = ProgressiveSession(directory)
    for number in range(2, N_STAGES + 1):
        (directory / f"stage_{number}.onnx").unlink()
    assert_array_equal(session.exit_stages(digits[2]), np.ones(10_000))
    with pytest.raises(InvalidFileError, match=r"stage_2\.onnx: there is no such file"):
        next(session.staged_predict(digits[2]))


def test_stage_that_changes_later(exported, digits, tmp_path):
    directory = shutil.copytree(exported, tmp_path / "export")
    session = ProgressiveSession(directory, early_exit=False)
    shutil.copy(directory / "stage_2.onnx", directory / "stage_3.onnx")
    with pytest.raises(InvalidFileError, match=r"stage_3\.onnx: the checksum is not"):
        session.predict(digits[2])
    # What has been loaded stays, and the rest is not needed.
    assert len(ProgressiveSession(directory, n_stages=2).predict(digits[2])) == 10_000


def test_threads_share_a_session(exported, digits):
    X = digits[2][:1000]
    expected = ProgressiveSession(exported).predict_proba(X)
    session = ProgressiveSession(exported, n_threads=1)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(session.predict_proba, [X] * 32):
            assert_array_equal(found, expected)


ISOLATED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import numpy as np
from skbdistil.runtime import ProgressiveSession

X = np.load({rows!r})
session = ProgressiveSession({directory!r})
np.save({found!r}, session.predict_proba(X))
session.predict_within(X, 1e6)
list(session.staged_predict(X))
"""


def test_numpy_and_onnxruntime_are_enough(exported, digits, tmp_path):
    np.save(tmp_path / "rows.npy", digits[2][:100])
    code = ISOLATED.format(
        missing={
            *("joblib", "onnx", "onnxscript", "pandas", "scipy", "sklearn"),
            *("skorch", "threadpoolctl", "torch", "tqdm"),
        },
        rows=str(tmp_path / "rows.npy"),
        directory=str(exported),
        found=str(tmp_path / "found.npy"),
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        cwd=Path(skbdistil.__file__).parents[1],
    )
    expected = ProgressiveSession(exported).predict_proba(digits[2][:100])
    assert_array_equal(np.load(tmp_path / "found.npy"), expected)


def test_missing_onnxruntime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = r'needs onnxruntime, .*pip install "skbdistil\[deploy\]"'
    with pytest.raises(ImportError, match=message):
        ProgressiveSession(exported)


# Time


class Clock:
    """A clock that each step of a run moves on."""

    def __init__(self, monkeypatch, seconds):
        self.now = 0.0
        step = _exit_runs.ExitRun.step

        def slow(run):
            step(run)
            self.now += seconds

        monkeypatch.setattr(_exit_runs.ExitRun, "step", slow)
        monkeypatch.setattr(_exit_runs.time, "perf_counter", lambda: self.now)


def test_within_no_time_is_the_first_stage(exported, digits):
    session = ProgressiveSession(exported)
    X = digits[2][:500]
    expected = ProgressiveSession(exported, n_stages=1).predict_proba(X)
    found = session.predict_within(X, 1e-9, method="predict_proba")
    assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_within_much_time_is_all_stages(exported, digits, method):
    session = ProgressiveSession(exported)
    X = digits[2][:500]
    found = session.predict_within(X, 1e6, method=method)
    assert_array_equal(found, getattr(session, method)(X))


def test_within_some_time(exported, digits, monkeypatch):
    session = ProgressiveSession(exported, early_exit=False)
    X = digits[2][:100]
    first, second = list(session.staged_predict_proba(X))[:2]
    Clock(monkeypatch, seconds=1)
    monkeypatch.setattr(runtime, "_CHUNK_ROWS", 50)
    # Two chunks of stage 1, and one of stage 2, with room for what it was expected.
    found = session.predict_within(X, 4.5, method="predict_proba")
    assert_allclose(found[:50], second[:50], rtol=0, atol=1e-6)
    assert_allclose(found[50:], first[50:], rtol=0, atol=1e-6)


def test_within_some_time_without_knowing_the_costs(folder, binary, monkeypatch):
    X = np.asarray(binary[0], dtype=np.float32)
    change(folder, set_to(None, "stages", 1, "macs"))
    session = ProgressiveSession(folder)
    first, second = list(session.staged_predict_proba(X))[:2]
    Clock(monkeypatch, seconds=1)
    # The second stage is expected to take as long as the first, and half as much again.
    for seconds, expected in [(2.4, first), (2.6, second)]:
        found = session.predict_within(X, seconds, method="predict_proba")
        assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seconds", [0, -1, np.nan, "1", None])
def test_seconds_must_be_positive(session, digits, seconds):
    with pytest.raises(ValueError, match=r"'seconds' must be positive\. Got"):
        session.predict_within(digits[0], seconds)


def test_unknown_method(session, digits):
    with pytest.raises(ValueError, match=r"'method' must be one of \['predict', "):
        session.predict_within(digits[0], 1, method="transform")


# Rows


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 63)), r"rows of shape \(64,\): X .*, 64\)\. Got .* \(3, 63\)"),
        (np.zeros(64), r"rows of shape \(64,\).*Got X of shape \(64,\)"),
        (np.zeros((3, 8, 8)), r"rows of shape \(64,\).*Got X of shape \(3, 8, 8\)"),
        (1.0, r"rows of shape \(64,\).*Got X of shape \(\)"),
        (np.zeros((0, 64)), "needs at least one row"),
        (np.full((3, 64), np.nan), "needs finite numbers. X contains NaN, inf"),
        (np.full((3, 64), -np.inf), "needs finite numbers. X contains NaN, inf"),
        (np.full((3, 64), 1e39), "or a value too large for float32"),
        (np.full((3, 64), "1"), "needs numbers. Got X of dtype <U1"),
        (np.zeros((3, 64), dtype=complex), "needs numbers. Got X of dtype complex128"),
    ],
)
def test_rows_that_cannot_be_used(session, X, message):
    for method in ("predict", "predict_proba", "exit_stages"):
        with pytest.raises(ValueError, match=message):
            getattr(session, method)(X)
    with pytest.raises(ValueError, match=message):
        next(session.staged_predict(X))
    with pytest.raises(ValueError, match=message):
        session.predict_within(X, 1)


def test_last_row_counts_too(session, digits, monkeypatch):
    monkeypatch.setattr(runtime, "_CHUNK_ROWS", 10)
    X = digits[0][:101].copy()
    X[-1, -1] = np.nan
    with pytest.raises(ValueError, match="needs finite numbers"):
        session.predict(X)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64]
)
def test_dtypes_of_rows(clf, session, digits, dtype):
    X = digits[0].astype(dtype)
    found, expected = session.predict_proba(X), clf.predict_proba(X)
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_rows_stay_as_they_are(session, digits):
    X = digits[0].astype(np.float32)
    before = X.copy()
    X.flags.writeable = False
    session.predict(X)
    assert_array_equal(X, before)


def test_columns_in_another_order(binary, exported_binary):
    X, _ = binary
    session = ProgressiveSession(exported_binary)
    with pytest.raises(ValueError, match=r"columns of X .* in their order: \['a', 'b'"):
        session.predict(X[list("bacdef")])


# Parameters


@pytest.mark.parametrize("n_stages", [0, N_STAGES + 1, -1, 1.0, True, "all"])
def test_number_of_stages(exported, n_stages):
    with pytest.raises(ValueError, match="'n_stages' must be None or an int from 1 to"):
        ProgressiveSession(exported, n_stages=n_stages)


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, "all", 10**6, 2**40])
def test_number_of_threads(exported, n_threads):
    with pytest.raises(ValueError, match=r"'n_threads' must be None .* from 1 to \d+"):
        ProgressiveSession(exported, n_threads=n_threads)


def test_number_of_threads_of_numpy(exported, digits):
    session = ProgressiveSession(exported, n_threads=np.int64(1))
    assert len(session.predict(digits[0])) == len(digits[0])


# Broken folders


def set_to(value, *keys):
    def edit(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit


def without(*keys):
    def edit(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return edit


FIRST = ("stages", 0)
LOOSE_END = [{"name": "kept_9_0", "shape": [8], "dtype": "float32"}]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("stages"), "the manifest lacks 'stages'"),
        (without("schema_version"), "the manifest lacks 'schema_version'"),
        (set_to(3, "schema_version"), "schema version 3, and this version of skbdist"),
        (
            set_to("1", "schema_version"),
            "has 'schema_version' that is not a positive int",
        ),
        (set_to("ranker", "kind"), "is of unknown kind 'ranker'"),
        (set_to("regressor", "kind"), "'targets' that is not an object"),
        (set_to([], "stages"), "the manifest has no stages"),
        (set_to([1], "stages"), "'stages' that is not a list of objects"),
        (without(*FIRST, "file"), "number 1 of 'stages' in the manifest lacks 'file'"),
        (set_to("../stage_1.onnx", *FIRST, "file"), "is not a plain name"),
        (set_to("/tmp/stage_1.onnx", *FIRST, "file"), "is not a plain name"),
        (set_to("..\\stage_1.onnx", *FIRST, "file"), "is not a plain name"),
        (set_to("C:stage_1.onnx", *FIRST, "file"), "is not a plain name"),
        (set_to("..", *FIRST, "file"), "is not a plain name"),
        (set_to("a" * 300, *FIRST, "file"), "is not a plain name"),
        (set_to("", *FIRST, "file"), "is not a plain name"),
        (set_to("stage_1.onnx\0", *FIRST, "file"), "is not a plain name"),
        (set_to("stage_9.onnx", *FIRST, "file"), r"stage_9\.onnx: there is no such f"),
        (
            set_to("0" * 64, *FIRST, "sha256"),
            r"stage_1\.onnx: the checksum is not",
        ),
        (set_to(0, *FIRST, "macs"), "'macs' that is not a positive int"),
        (
            set_to(LOOSE_END, *FIRST, "inputs"),
            "reads .*kept_9_0.* no earlier stage",
        ),
        (set_to(True, "input", "shape"), "'shape' that is not a list of positive ints"),
        (set_to([7], "input", "shape"), "reads .*'x'.* no earlier stage gives"),
        (
            set_to("int8", "input", "dtype"),
            "dtype 'int8', which is not float32, ",
        ),
        (
            set_to(["no"], "classes", "values"),
            "'classes' are 1, and there are 2 outputs",
        ),
        (set_to(["no", 1], "classes", "values"), "'classes': the items of an"),
        (set_to("V8", "classes", "dtype"), "'classes': an array has the dtype 'V8'"),
        (set_to("<i8", "classes", "dtype"), "'classes': the items of an array are"),
        (set_to([], "early_exit"), "'early_exit' that is not an object or null"),
        (
            set_to({"rule": "luck"}, "early_exit"),
            "has the rule 'luck', which is not one",
        ),
        (
            set_to({"rule": "margin", "thresholds": [0, 0]}, "early_exit"),
            "has 2 thresholds, and needs 1",
        ),
        (
            set_to({"rule": "margin", "thresholds": [True]}, "early_exit"),
            "'thresholds' that is not a list of finite numbers and nulls",
        ),
    ],
)
def test_broken_manifest(folder, edit, message):
    change(folder, edit)
    with pytest.raises(InvalidFileError, match=message):
        ProgressiveSession(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}']
)
def test_manifest_that_is_none(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"manifest\.json: "):
        ProgressiveSession(folder)


def test_folder_that_is_not_there(tmp_path):
    for directory in (tmp_path / "no", tmp_path):
        with pytest.raises(InvalidFileError, match=r"manifest\.json: there is no such"):
            ProgressiveSession(directory)


def test_changed_file(folder):
    path = folder / "stage_2.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"stage_2\.onnx: the checksum is not"):
        ProgressiveSession(folder)
    # A stage that is not used is not looked at.
    assert ProgressiveSession(folder, n_stages=1).n_stages == 1


@pytest.mark.parametrize("name", ["stage_1.onnx", "manifest.json"])
def test_link_out_of_the_folder(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(InvalidFileError, match="it is a link that leaves the folder"):
        ProgressiveSession(folder)


def test_link_to_the_folder(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    session = ProgressiveSession(link)
    expected = ProgressiveSession(folder).predict(np.zeros((1, 6)))
    # A release: the stages of the session are those of its own folder.
    link.unlink()
    link.symlink_to(tmp_path)
    assert_array_equal(session.predict(np.zeros((1, 6))), expected)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_signed_file_that_is_cut_off(folder, share, capfd):
    path = folder / "stage_1.onnx"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    sign(folder, 1)
    session = ProgressiveSession(folder)
    with pytest.raises(InvalidFileError, match=r"stage_1\.onnx: onnxruntime cannot"):
        session.predict(np.zeros((1, 6)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["absolute", "working directory", "same folder"])
def test_signed_file_that_reads_another_one(folder, tmp_path, monkeypatch, where):
    """Its scores would be what is in that file."""
    secret = (folder if where == "same folder" else tmp_path) / "secret.bin"
    np.arange(16, dtype=np.float32).tofile(secret)
    monkeypatch.chdir(tmp_path)
    path = folder / "stage_1.onnx"
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if "scores_1" in node.output)
    node.output[list(node.output).index("scores_1")] = "inner"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ArgMax", ["inner"], ["row"], axis=1, keepdims=0),
            onnx.helper.make_node("Gather", ["secret", "row"], ["scores_1"], axis=0),
        ]
    )
    weights = model.graph.initializer.add()
    weights.name, weights.data_type = "secret", onnx.TensorProto.FLOAT
    # A smaller one would fail in an optimisation.
    weights.dims.extend([8, 2])
    weights.data_location = onnx.TensorProto.EXTERNAL
    location = str(secret) if where == "absolute" else secret.name
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    sign(folder, 1)
    with pytest.raises(InvalidFileError, match=r"stage_1\.onnx: onnxruntime cannot"):
        ProgressiveSession(folder).predict(np.zeros((1, 6)))


def freeze_batch(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def widen(model):
    value = copy.deepcopy(model.graph.input[0])
    value.name = "more"
    model.graph.input.append(value)


def add_a_scalar(model):
    tensor = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [], [1.0])
    node = onnx.helper.make_node("Constant", [], ["scalar"], value=tensor)
    model.graph.node.append(node)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("scalar", onnx.TensorProto.FLOAT, [])
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (freeze_batch, "the inputs are not those of the manifest: .*'x of 1 rows'"),
        (widen, "the inputs are not those of the manifest: .*'more'"),
        (lambda model: model.graph.output.pop(), "the outputs are not those of the"),
        (
            add_a_scalar,
            "the outputs are not those of the manifest: .*'scalar of 0 rows",
        ),
    ],
)
def test_signed_file_of_another_form(folder, edit, message):
    path = folder / "stage_1.onnx"
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())
    sign(folder, 1)
    with pytest.raises(InvalidFileError, match=message):
        ProgressiveSession(folder).predict(np.zeros((1, 6)))


def places(value, keys=()):
    """Where the values of a manifest are."""
    if keys:
        yield keys
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*keys, key))


JUNK = [None, True, -1, 0, 10**400, 1.5, float("nan"), "", "../x", [], [[]], {}]


def test_no_manifest_raises_anything_else(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["early_exit"] = {
        "rule": "margin",
        "thresholds": [0.5],
        "temperatures": [1, 2],
    }
    n_used = n_refused = 0
    for keys in places(manifest):
        for edit in (without(*keys), *(set_to(junk, *keys) for junk in JUNK)):
            other = copy.deepcopy(manifest)
            edit(other)
            path.write_text(json.dumps(other), encoding="utf-8")
            try:
                ProgressiveSession(folder).predict(np.zeros((2, 6)))
            except InvalidFileError:
                n_refused += 1
            else:
                n_used += 1
    # What is only there to be read, as the version, may be anything.
    assert 0 < n_used < n_refused


# Pickles


def test_pickled_session_predicts_the_same(exported, digits):
    X = digits[0][:100]
    session = ProgressiveSession(exported, n_stages=2, n_threads=1)
    loaded = pickle.loads(pickle.dumps(session))
    assert loaded.n_stages == 2
    assert_array_equal(loaded.predict_proba(X), session.predict_proba(X))


def test_pickles_of_one_session_share_one_where_they_are_loaded(folder):
    pickled = pickle.dumps(ProgressiveSession(folder))
    assert len(pickled) < 1000
    assert pickle.loads(pickled) is pickle.loads(pickled)
    other = pickle.dumps(ProgressiveSession(folder, n_stages=1))
    assert pickle.loads(other).n_stages == 1


def test_pickle_whose_folder_has_moved_raises(folder):
    pickled = pickle.dumps(ProgressiveSession(folder))
    folder.rename(folder.parent / "elsewhere")
    with pytest.raises(InvalidFileError, match="path of its folder, which must be the"):
        pickle.loads(pickled)


def test_pickle_whose_folder_holds_another_export_raises(folder):
    pickled = pickle.dumps(ProgressiveSession(folder))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "package_version": "9"}), encoding="utf-8")
    with pytest.raises(InvalidFileError, match="another export than when"):
        pickle.loads(pickled)
