"""Exported graphs against the estimators that they come from."""

import copy
import json
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import common
from common import Embedded
from skbdistil import BDistilClassifier, BDistilRegressor, export
from skbdistil.costs import stage_costs
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import Connection, Lateral, ProgressiveEnsemble, Window
from skbdistil.exceptions import CostsUnknownWarning
from skbdistil.export import to_onnx, to_single_onnx, to_torch, to_torch_export
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet

N_OUTPUTS = 3


class FirstOnly(Connection):
    """A connection of a user, which reads the first student only."""

    def __init__(self, n_features, earlier):
        super().__init__(n_features, earlier)
        self.mix = nn.Linear(earlier[0], n_features)

    def forward(self, features, earlier):
        return features * torch.sigmoid(self.mix(earlier[0]))


BACKBONES = {
    "mlp": ((6,), partial(MLP, hidden=(5, 4, 3))),
    "conv2d": ((2, 5, 4), partial(ConvNet2d, channels=(2, 3))),
    "gray": ((5, 4), partial(ConvNet2d, channels=(2, 3), separable=True)),
    "conv1d": ((6, 3), partial(ConvNet1d, channels=(2, 3))),
    "gru": ((3, 2), partial(RecurrentNet, hidden=(3,))),
    "lstm": ((3, 2), partial(RecurrentNet, hidden=(3,), cell="lstm")),
    "deep_gru": ((3, 2), partial(RecurrentNet, hidden=(3, 2, 3))),
}
CONNECTIONS = {
    "none": None,
    "dense": "dense",
    "last": "last",
    "lateral": "lateral",
    "lateral_last": Lateral("last"),
    "lateral_shared": Lateral(shared_blocks=1),
    "recurrent": "recurrent",
    "window": Window(2),
    "user": FirstOnly,
}

# What is in the graphs. Every backbone with every connection is a matter of sessions.
# Connections of features do not see which backbone these come from, but a recurrent
# one takes the size of its initial state from an input; lateral ones see its blocks.
CASES = [
    *[("mlp", name, 3) for name in ("none", "last", "lateral_last", "user")],
    ("mlp", "window", 4),
    ("mlp", "lateral_shared", 2),
    ("conv2d", "lateral_shared", 2),
    ("gray", "dense", 2),
    ("gru", "last", 3),
    ("deep_gru", "lateral_shared", 2),
    ("deep_gru", "recurrent", 3),
]

# Any student passes: the search is not what is tested here.
SMALL = {**common.SMALL, "n_estimators": 2}


def classifier_of(backbone, connection, n_stages=2, *, dtype=torch.float32):
    """A classifier with random weights, as if it were fitted."""
    shape, factory = BACKBONES[backbone]
    channel = (-1,) + (1,) * (len(shape) - 1) if len(shape) == 3 else (-1,)
    n_channels = shape[0] if len(shape) == 3 else shape[-1]
    ensemble = ProgressiveEnsemble(
        shape,
        N_OUTPUTS,
        connection=connection,
        input_mean=torch.randn(n_channels).reshape(channel),
        input_scale=torch.rand(n_channels).reshape(channel) + 0.5,
    )
    for _ in range(n_stages):
        student = ensemble.new_student(factory)
        # Nothing special, which an exporter might leave out.
        with torch.no_grad():
            student.carry.uniform_(0.5, 1.5)
            for parameter in student.parameters():
                parameter.uniform_(-0.8, 0.8)
            for name, buffer in student.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 1.5)
        ensemble.append(student)
    ensemble.to(dtype).eval()
    clf = BDistilClassifier()
    clf.ensemble_ = ensemble
    clf.classes_ = np.arange(N_OUTPUTS)
    clf.input_shape_ = shape
    clf.student_transform_ = None
    clf.n_estimators_ = n_stages
    clf.stage_costs_ = stage_costs(ensemble, ensemble.example())
    return clf


def rows(clf, n_rows):
    example = clf.ensemble_.example()
    return torch.randn(n_rows, *example.shape[1:], dtype=example.dtype)


def assert_same_scores(found, expected):
    """Equal but for rounding: the estimator runs perceptrons without their modules."""
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def expected_scores(clf, x):
    with torch.no_grad():
        return [scores.numpy() for scores in clf.ensemble_.stages(x)]


def manifest_of(directory):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = Path(directory, "manifest.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def run_stages(directory, x):
    """Scores of the stages, by the manifest."""
    tensors = {"x": x}
    for number, stage in enumerate(manifest_of(directory)["stages"], start=1):
        session = onnxruntime.InferenceSession(directory / stage["file"])
        feed = {entry["name"]: tensors[entry["name"]] for entry in stage["inputs"]}
        names = [entry["name"] for entry in stage["outputs"]]
        found = session.run(names, feed)
        for entry, tensor in zip(stage["outputs"], found, strict=True):
            assert tensor.shape == (len(x), *entry["shape"])
            assert tensor.dtype == entry["dtype"]
        tensors.update(zip(names, found, strict=True))
        yield tensors[f"scores_{number}"]


def names_of(entries):
    return {entry["name"] for entry in entries}


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def data(iris):
    return iris


@pytest.fixture(scope="module")
def small():
    return SMALL


@pytest.fixture(scope="module")
def reg():
    X, y = load_diabetes(return_X_y=True)
    return BDistilRegressor(Ridge(), **SMALL).fit(X, y)


@pytest.fixture
def no_graphs(monkeypatch):
    """For what only looks at the manifest: graphs take most of the time."""
    monkeypatch.setattr(export, "_stage_models", lambda rows, ensemble: [])


# Stages


@pytest.mark.parametrize(("backbone", "connection", "n_stages"), CASES)
@pytest.mark.usefixtures("seeded_torch")
def test_every_stage_is_that_of_the_estimator(
    backbone, connection, n_stages, tmp_path, capfd
):
    clf = classifier_of(backbone, CONNECTIONS[connection], n_stages)
    to_onnx(clf, tmp_path)
    assert capfd.readouterr() == ("", "")
    for n_rows in (1, 2, 7):
        x = rows(clf, n_rows)
        expected = expected_scores(clf, x)
        found = list(run_stages(tmp_path, x.numpy()))
        assert_allclose(found, expected, rtol=0, atol=1e-5)
        # The stages differ, by more than that.
        assert np.ptp(expected, axis=0).max() > 1e-2
    # What no later stage reads is no output, but for the scaled rows.
    stages = manifest_of(tmp_path)["stages"]
    read = [names_of(stage["inputs"]) for stage in stages]
    for number, stage in enumerate(stages, start=1):
        given = names_of(stage["outputs"]) - {f"scores_{number}", "scaled"}
        assert given <= set().union(*read[number:])
        assert ("scaled" in names_of(stage["outputs"])) == (number == 1)
    # Nor is it an input where a stage does not read it.
    kept = {
        "none": [],
        "last": [f"kept_{n_stages - 1}_0"],
        "user": ["kept_1_0"],
        "lateral_last": [f"kept_{n_stages - 1}_0", f"kept_{n_stages - 1}_1"],
        "recurrent": [f"kept_{n_stages - 1}_{layer}" for layer in range(3)],
        "window": [f"kept_{stage}_0" for stage in (n_stages - 2, n_stages - 1)],
    }
    if connection in kept:
        scores = f"scores_{n_stages - 1}"
        assert read[-1] == {"scaled", scores, *kept[connection]}
    assert ("scaled" in read[-1]) == (connection != "lateral_shared")


@pytest.mark.usefixtures("seeded_torch")
def test_float64_rows_are_scaled_before_they_are_cast(tmp_path):
    # Runtimes have no convolutions in float64.
    clf = classifier_of("conv2d", "dense", dtype=torch.float64)
    clf.ensemble_.input_offset -= 1e7
    to_onnx(clf, tmp_path / "stages")
    to_single_onnx(clf, tmp_path / "one.onnx")
    x = rows(clf, 4) + 1e7 / clf.ensemble_.input_factor
    expected = expected_scores(clf, x)
    found = list(run_stages(tmp_path / "stages", x.numpy()))
    assert_allclose(found, expected, rtol=0, atol=1e-5)
    (scores,) = onnxruntime.InferenceSession(tmp_path / "one.onnx").run(
        None, {"x": x.numpy()}
    )
    assert scores.dtype == np.float32
    assert_allclose(scores, expected[-1], rtol=0, atol=1e-5)
    first, second = manifest_of(tmp_path / "stages")["stages"]
    assert {entry["dtype"] for entry in first["inputs"]} == {"float64"}
    for entry in (*first["outputs"], *second["inputs"], *second["outputs"]):
        assert entry["dtype"] == "float32"


class Branches(nn.Module):
    def forward(self, x, y):
        return torch.cond(x.sum() > 0, torch.add, torch.mul, (x, y))


def test_what_only_a_branch_reads_stays_an_input():
    rows = torch.ones(2, 4)
    model = export._onnx_model(Branches(), (rows, rows.clone()), ["x", "y"], ["z"])
    export._prune([model])
    assert [value.name for value in model.graph.input] == ["x", "y"]
    assert b".py" not in model.SerializeToString()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for x in (rows.numpy(), -rows.numpy()):
        (z,) = session.run(None, {"x": x, "y": 3 * x})
        assert_array_equal(z, x + 3 * x if x.sum() > 0 else x * 3 * x)


def test_files_are_small_and_private(exported):
    for path in exported.glob("*.onnx"):
        content = path.read_bytes()
        assert len(content) < 3000
        for word in (b"skbdistil", b"site-packages", b".py"):
            assert word not in content
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert not any(
            weights.HasField("data_location") for weights in model.graph.initializer
        )
    assert sorted(path.name for path in exported.iterdir()) == [
        "manifest.json",
        "stage_1.onnx",
        "stage_2.onnx",
    ]


# The manifest


def test_manifest_of_a_classifier(clf, early, exported):
    manifest = manifest_of(exported)
    assert manifest["kind"] == "classifier"
    assert manifest["classes"] == {"values": [0, 1, 2], "dtype": "<i8"}
    assert manifest["input"] == {
        "shape": [4],
        "dtype": "float32",
        "feature_names": None,
        "missing": [],
        "transforms": [],
    }
    assert manifest["preprocessing"] == []
    costs = clf.stage_costs_
    for number, stage in enumerate(manifest["stages"]):
        assert stage["precision"] == "float32"
        assert stage["macs"] == costs.macs[number]
        assert stage["parameters"] == costs.parameters[number]
        assert stage["weight_bytes"] >= 4 * costs.parameters[number]
    assert manifest["early_exit"] == {
        "rule": "confidence",
        "thresholds": early.thresholds_.tolist(),
        "temperatures": [1, 1],
        "costs": early.costs_.tolist(),
        "unit": "macs",
        "mean_cost": early.path_.costs[early.best_index_],
    }


def test_manifest_of_stages_that_could_not_be_counted(clf, tmp_path):
    clf = copy.copy(clf)
    known = int(clf.stage_costs_.macs[0])
    clf.stage_costs_ = replace(clf.stage_costs_, macs=np.array([known, np.nan]))
    to_onnx(clf, tmp_path)
    assert [stage["macs"] for stage in manifest_of(tmp_path)["stages"]] == [known, None]


@pytest.mark.parametrize(
    "classes",
    [
        np.array([-1, 0, 2], dtype=np.int8),
        np.array(["a", "bc", "ä"]),
        np.array(["a", "b", "c"], dtype=object),
        np.array([0.5, 1.0, 1e300]),
        np.array([False, True, True]),
    ],
    ids=lambda classes: str(classes.dtype),
)
@pytest.mark.usefixtures("no_graphs")
def test_classes_keep_value_and_type(clf, classes, tmp_path):
    clf = copy.copy(clf)
    clf.classes_ = classes
    to_onnx(clf, tmp_path)
    stored = manifest_of(tmp_path)["classes"]
    found = np.array(stored["values"], dtype=stored["dtype"])
    assert_array_equal(found, classes)
    assert found.dtype == classes.dtype


@pytest.mark.parametrize(
    "classes", [np.array([b"a", b"b", b"c"]), np.array([1, "b", 2.5], dtype=object)]
)
def test_classes_that_json_does_not_know(clf, classes, tmp_path):
    clf = copy.copy(clf)
    clf.classes_ = classes
    with pytest.raises(TypeError, match="must be numbers, booleans or strings"):
        to_onnx(clf, tmp_path / "export")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_graphs")
def test_manifest_of_a_regressor(reg, tmp_path):
    to_onnx(reg, tmp_path)
    manifest = manifest_of(tmp_path)
    assert manifest["kind"] == "regressor"
    assert manifest["classes"] is None
    assert manifest["targets"] == {
        "mean": reg.target_mean_.tolist(),
        "scale": reg.target_scale_.tolist(),
        "single_output": True,
    }


@pytest.mark.usefixtures("no_graphs")
def test_infinite_threshold_and_unit_of_your_own(clf, iris, tmp_path):
    early = EarlyExitClassifier(
        FrozenEstimator(clf), max_drop=0, cost=lambda clf: np.arange(len(clf)) + 1.0
    ).fit(iris[0])
    early.thresholds_ = np.array([np.inf])
    to_onnx(early, tmp_path)
    stored = manifest_of(tmp_path)["early_exit"]
    assert stored["thresholds"] == [None]
    assert stored["unit"] is None
    assert stored["costs"] == [1, 2]


def test_callable_rule(early, tmp_path):
    early = copy.copy(early)
    early.rule_ = lambda stages: stages[-1].max(axis=1)
    with pytest.raises(ValueError, match=r"'rule' parameter .* is a callable, which"):
        to_onnx(early, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_rule_for_another_number_of_stages(clf, iris, tmp_path):
    clf = copy.copy(clf)
    early = EarlyExitClassifier(FrozenEstimator(clf)).fit(iris[0])
    clf.set_params(n_stages=1)
    with pytest.raises(ValueError, match="was calibrated with 2 students, and its e"):
        to_onnx(early, tmp_path / "export")


@pytest.mark.usefixtures("no_graphs")
def test_feature_names(tmp_path):
    X, y = load_iris(return_X_y=True, as_frame=True)
    clf = BDistilClassifier(
        LogisticRegression(max_iter=300), **{**SMALL, "n_estimators": 1}
    )
    to_onnx(clf.fit(X, y), tmp_path)
    assert manifest_of(tmp_path)["input"]["feature_names"] == X.columns.tolist()


def test_stages_in_use_only(clf, tmp_path):
    to_onnx(copy.copy(clf).set_params(n_stages=1), tmp_path)
    (stage,) = manifest_of(tmp_path)["stages"]
    assert names_of(stage["outputs"]) == {"scores_1", "scaled"}


# One graph


def test_one_graph_of_the_first_stages(clf, iris, tmp_path):
    X = iris[0].astype(np.float32)
    file = tmp_path / "clf.onnx"
    file.write_bytes(b"an older one")
    for n_stages, expected in enumerate(clf.staged_decision_function(X), start=1):
        to_single_onnx(clf, file, n_stages=n_stages)
        session = onnxruntime.InferenceSession(file)
        assert [value.name for value in session.get_inputs()] == ["x"]
        assert [value.name for value in session.get_outputs()] == ["scores"]
        for n_rows in (1, 2, 7):
            (scores,) = session.run(None, {"x": X[:n_rows]})
            assert_allclose(scores, expected[:n_rows], rtol=0, atol=1e-5)
    assert list(tmp_path.iterdir()) == [file]


def test_one_graph_of_a_regressor_gives_targets(reg, tmp_path):
    X, _ = load_diabetes(return_X_y=True)
    to_single_onnx(reg, tmp_path / "reg.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "reg.onnx")
    (targets,) = session.run(None, {"x": X.astype(np.float32)})
    assert_allclose(targets[:, 0], reg.predict(X), rtol=1e-6)


# Torch


def test_module_is_a_copy_of_the_first_students(clf, iris):
    x = torch.as_tensor(iris[0], dtype=torch.float32)
    module = to_torch(clf, n_stages=1)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert_same_scores(module(x), next(clf.staged_decision_function(iris[0])))
    before = clf.predict_proba(iris[0])
    for parameter in module.parameters():
        parameter.zero_()
    assert_array_equal(clf.predict_proba(iris[0]), before)


def test_module_honours_the_stages_in_use(clf, early, iris):
    x = torch.as_tensor(iris[0], dtype=torch.float32)
    shorter = copy.copy(clf).set_params(n_stages=1)
    expected = shorter.decision_function(iris[0])
    assert_same_scores(to_torch(shorter)(x), expected)
    assert_same_scores(to_torch(shorter, n_stages=2)(x), clf.decision_function(iris[0]))
    assert_same_scores(to_torch(early)(x), clf.decision_function(iris[0]))


@pytest.mark.parametrize("backbone", ["mlp", "conv1d", "gru", "lstm"])
@pytest.mark.usefixtures("seeded_torch")
def test_program_takes_any_number_of_rows(backbone, tmp_path, capfd):
    clf = classifier_of(backbone, "dense")
    with warnings.catch_warnings():
        # torch.export.save copies what it writes.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        torch.export.save(to_torch_export(clf), tmp_path / "program.pt2")
        program = torch.export.load(tmp_path / "program.pt2").module()
    assert capfd.readouterr() == ("", "")
    for n_rows in (0, 1, 2, 7):
        x = rows(clf, n_rows)
        with torch.no_grad():
            expected = clf.ensemble_(x)
        assert_allclose(program(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_stages", [0, 3, -1, 1.0, "all"])
@pytest.mark.parametrize("function", [to_torch, to_torch_export])
def test_stages_that_there_are_not(clf, function, n_stages):
    with pytest.raises(ValueError, match="'n_stages' must be None or an int from 1 to"):
        function(clf, n_stages)


# What may be exported, and what is left alone


@pytest.mark.parametrize("wrapper", ["frozen", "search", "nested"])
def test_wrappers(clf, iris, wrapper):
    frozen = FrozenEstimator(clf)
    search = GridSearchCV(frozen, {})
    search.best_estimator_ = frozen
    outer = {
        "frozen": frozen,
        "search": search,
        "nested": FrozenEstimator(make_pipeline(frozen)),
    }[wrapper]
    x = torch.as_tensor(iris[0], dtype=torch.float32)
    assert_same_scores(to_torch(outer)(x), clf.decision_function(iris[0]))


def test_other_estimators(iris):
    forest = RandomForestClassifier(n_estimators=2).fit(*iris)
    with pytest.raises(TypeError, match="Got RandomForestClassifier instead"):
        to_torch(forest)
    message = "Got RandomForestClassifier inside Pipeline instead"
    with pytest.raises(TypeError, match=message):
        to_torch(make_pipeline(StandardScaler(), forest))


@pytest.mark.parametrize(
    "estimator", [BDistilClassifier(), EarlyExitClassifier(BDistilClassifier())]
)
def test_unfitted(estimator, tmp_path):
    with pytest.raises(NotFittedError):
        to_onnx(estimator, tmp_path / "export")
    with pytest.raises(NotFittedError):
        to_torch(estimator)


@pytest.mark.usefixtures("seeded_torch")
def test_estimator_and_generators_are_left_alone(tmp_path):
    clf = classifier_of("gru", "dense", n_stages=1)
    clf.ensemble_.unfreeze().train()
    before = copy.deepcopy(clf.ensemble_.state_dict())
    modes = [module.training for module in clf.ensemble_.modules()]
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1]  # noqa: NPY002
    to_onnx(clf, tmp_path / "stages")
    assert_array_equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert [module.training for module in clf.ensemble_.modules()] == modes
    assert all(parameter.requires_grad for parameter in clf.ensemble_.parameters())
    for name, weights in clf.ensemble_.state_dict().items():
        assert_array_equal(weights, before[name])


# Transforms of pipelines


@pytest.fixture(scope="module")
def wine():
    """Of all sizes, one column far from zero."""
    X, y = load_wine(return_X_y=True)
    X[:, 3] += 1e6
    return X, y


def pipeline_of(wine, *steps, **options):
    teacher = DecisionTreeClassifier(max_depth=3, random_state=0)
    clf = BDistilClassifier(teacher, **{**SMALL, **options})
    return make_pipeline(*steps, clf).fit(*wine)


@pytest.fixture(scope="module")
def scaled(wine):
    columns = ColumnTransformer(
        [("robust", RobustScaler(), [5, 3, 12]), ("rest", MinMaxScaler(), [0, 7])]
    )
    return pipeline_of(wine, columns, StandardScaler())


@pytest.fixture(scope="module")
def rotated(wine):
    return pipeline_of(wine, StandardScaler(), PCA(5))


def names_of_steps(entries):
    return [(entry["name"], entry["type"]) for entry in entries]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scalers_and_selections_are_part_of_every_export(dtype, wine, tmp_path):
    X = wine[0]
    pipeline = pipeline_of(
        wine, StandardScaler(), "passthrough", VarianceThreshold(), dtype=dtype
    )
    expected = pipeline.decision_function(X)
    # The scaling matters here, and the selection after it keeps all columns.
    assert np.abs(pipeline[-1].decision_function(X) - expected).max() > 1

    to_onnx(pipeline, tmp_path / "stages")
    manifest = manifest_of(tmp_path / "stages")
    assert manifest["preprocessing"] == []
    assert names_of_steps(manifest["input"]["transforms"]) == [
        ("standardscaler", "StandardScaler"),
        ("variancethreshold", "VarianceThreshold"),
    ]
    assert manifest["input"]["shape"] == [13]
    *_, found = run_stages(tmp_path / "stages", X)
    assert_allclose(found, expected, rtol=0, atol=1e-5)

    to_single_onnx(pipeline, tmp_path / "one.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "one.onnx").run(None, {"x": X})
    assert_allclose(found, expected, rtol=0, atol=1e-5)

    x = torch.from_numpy(X)
    assert_allclose(to_torch(pipeline)(x), expected, rtol=0, atol=1e-5)
    program = to_torch_export(pipeline).module()
    assert_allclose(program(x), expected, rtol=0, atol=1e-5)


def test_selected_columns_come_from_rows_of_the_pipeline(scaled, wine, tmp_path):
    X = wine[0]
    expected = scaled.decision_function(X)
    # What is not selected is not read.
    others = X.copy()
    others[:, [1, 2, 4, 6, 8, 9, 10, 11]] = 0
    assert_allclose(to_torch(scaled)(torch.from_numpy(others)), expected, atol=1e-5)
    to_onnx(scaled, tmp_path / "stages")
    assert manifest_of(tmp_path / "stages")["input"]["shape"] == [13]
    *_, found = run_stages(tmp_path / "stages", others)
    assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_graphs")
def test_steps_that_do_nothing_leave_rows_of_any_shape(tmp_path):
    clf = classifier_of("conv2d", "dense")
    identity = FunctionTransformer().fit(np.zeros((2, *clf.input_shape_)))
    pipeline = make_pipeline("passthrough", FrozenEstimator(identity), clf)
    to_onnx(pipeline, tmp_path)
    manifest = manifest_of(tmp_path)
    assert manifest["preprocessing"] == manifest["input"]["transforms"] == []
    assert manifest["input"]["shape"] == list(clf.input_shape_)
    assert manifest["input"]["dtype"] == "float32"


def test_pipelines_within_and_around_an_early_exit(wine, tmp_path):
    X, y = wine
    scaled = MinMaxScaler().fit_transform(X)
    inner = pipeline_of((scaled, y), StandardScaler())
    early = EarlyExitClassifier(FrozenEstimator(inner), max_drop=0.5)
    outer = make_pipeline(MinMaxScaler(), early).fit(X, y)
    to_onnx(outer, tmp_path)
    manifest = manifest_of(tmp_path)
    assert names_of_steps(manifest["input"]["transforms"]) == [
        ("minmaxscaler", "MinMaxScaler"),
        ("standardscaler", "StandardScaler"),
    ]
    assert manifest["early_exit"] is not None
    expected = list(inner[-1].staged_decision_function(inner[:-1].transform(scaled)))
    assert_allclose(list(run_stages(tmp_path, X)), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_graphs")
def test_other_transforms_are_named_and_left_out(rotated, wine, tmp_path):
    to_onnx(rotated, tmp_path)
    manifest = manifest_of(tmp_path)
    assert names_of_steps(manifest["preprocessing"]) == [
        ("standardscaler", "StandardScaler"),
        ("pca", "PCA"),
    ]
    assert manifest["input"] == {
        "shape": [5],
        "dtype": "float32",
        "feature_names": None,
        "missing": [],
        "transforms": [],
    }


EXPORTS = {
    "to_torch": lambda estimator, path, **options: to_torch(estimator, **options),
    "to_torch_export": lambda estimator, path, **options: to_torch_export(
        estimator, **options
    ).module(),
    "to_single_onnx": to_single_onnx,
}


@pytest.mark.parametrize("name", EXPORTS)
def test_export_without_a_manifest_has_to_be_told(name, rotated, wine, tmp_path):
    path = tmp_path / "clf.onnx"
    message = (
        rf"{name} cannot export .* 'standardscaler' \(Stand.*\), 'pca' \(PCA\): to"
    )
    with pytest.raises(ValueError, match=message):
        EXPORTS[name](rotated, path)
    module = EXPORTS[name](rotated, path, transformed=True)
    rows = rotated[:-1].transform(wine[0]).astype(np.float32)
    if module is None:
        (found,) = onnxruntime.InferenceSession(path).run(None, {"x": rows})
    else:
        found = module(torch.from_numpy(rows))
    assert_allclose(found, rotated.decision_function(wine[0]), rtol=0, atol=1e-5)


def test_transforms_can_be_left_out_of_a_module(scaled, wine):
    rows = torch.from_numpy(scaled[:-1].transform(wine[0])).float()
    found = to_torch(scaled, transformed=True)(rows)
    assert_same_scores(found, scaled.decision_function(wine[0]))


@pytest.mark.usefixtures("no_graphs")
def test_feature_names_are_those_of_the_pipeline(tmp_path):
    X, y = load_wine(return_X_y=True, as_frame=True)
    columns = ColumnTransformer(
        [("some", StandardScaler(), ["hue", "ash"])], verbose_feature_names_out=False
    )
    pipeline = pipeline_of((X, y), columns.set_output(transform="pandas"))
    to_onnx(pipeline, tmp_path / "inside")
    stored = manifest_of(tmp_path / "inside")["input"]
    assert stored["feature_names"] == X.columns.tolist()
    # Rows that are transformed have other columns.
    pca = PCA(2).set_output(transform="pandas")
    pipeline = pipeline_of((X, y), pca)
    to_onnx(pipeline, tmp_path / "outside")
    stored = manifest_of(tmp_path / "outside")["input"]
    assert stored["feature_names"] == ["pca0", "pca1"]


# Transforms that skl2onnx writes


def test_other_transforms_are_exported_with_rows_to_compare(rotated, wine, tmp_path):
    X = wine[0]
    to_onnx(rotated, tmp_path / "stages", X=X)
    to_single_onnx(rotated, tmp_path / "one.onnx", X=X)
    manifest = manifest_of(tmp_path / "stages")
    assert manifest["preprocessing"] == []
    assert names_of_steps(manifest["input"]["transforms"]) == [
        ("standardscaler", "StandardScaler"),
        ("pca", "PCA"),
    ]
    # The column far from zero needs the digits.
    assert manifest["input"]["dtype"] == "float64"
    expected = list(rotated[-1].staged_decision_function(rotated[:-1].transform(X)))
    for n_rows in (1, 7):
        found = list(run_stages(tmp_path / "stages", X[:n_rows]))
        assert_allclose(found, np.array(expected)[:, :n_rows], rtol=0, atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    (found,) = session.run(None, {"x": X})
    assert_allclose(found, expected[-1], rtol=0, atol=1e-5)
    for path in (tmp_path / "one.onnx", *(tmp_path / "stages").glob("*.onnx")):
        onnx.checker.check_model(onnx.load(path), full_check=True)


def test_steps_of_the_same_name_are_exported(wine, tmp_path):
    inner = make_pipeline(MinMaxScaler(clip=True), StandardScaler())
    outer = pipeline_of(wine, inner, MinMaxScaler(clip=True))
    nested = make_pipeline(MinMaxScaler(), FrozenEstimator(outer)).fit(*wine)
    to_single_onnx(nested, tmp_path / "one.onnx", X=wine[0])
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    (found,) = session.run(None, {"x": wine[0]})
    expected = nested.decision_function(wine[0])
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_converter_without_float64_gets_float32(tmp_path):
    X, y = load_iris(return_X_y=True)
    X[::7, 2] = np.nan
    pipeline = pipeline_of((X, y), SimpleImputer(), PolynomialFeatures(2))
    to_onnx(pipeline, tmp_path, X=X)
    stored = manifest_of(tmp_path)["input"]
    assert stored["dtype"] == "float32"
    assert stored["missing"] == [2]
    *_, found = run_stages(tmp_path, X.astype(np.float32))
    assert_allclose(found, pipeline.decision_function(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        # Nothing is known of a function.
        ([FunctionTransformer(np.square)], "RuntimeError: FunctionTransformer is not"),
        # It has no converter in float64, and float32 is not enough.
        ([PowerTransformer()], "what skl2onnx has written gives other rows than they"),
    ],
)
def test_transforms_that_cannot_be_exported(steps, reason, wine, tmp_path):
    pipeline = pipeline_of(wine, *steps, dtype="float64")
    for function in (to_onnx, to_single_onnx):
        message = rf"{function.__name__} cannot export the transforms .*: {reason}"
        with pytest.raises(ValueError, match=message):
            function(pipeline, tmp_path / "export", X=wine[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e100])
def test_rows_to_compare_must_be_rows_of_the_pipeline(value, wine, tmp_path):
    X = wine[0].copy()
    pipeline = pipeline_of(wine, FunctionTransformer(np.square), dtype="float64")
    X[0, 0] = value
    message = r"'X' of to_onnx must be rows .* Got 178 rows, which have to be finite"
    with pytest.raises(ValueError, match=message):
        to_onnx(pipeline, tmp_path / "export", X=X)
    with pytest.raises(ValueError, match=r"Got 0 rows"):
        to_onnx(pipeline, tmp_path / "export", X=X[:0])


def test_missing_skl2onnx(rotated, wine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    message = r'to_onnx needs skl2onnx, .*pip install "skbdistil\[deploy\]"'
    with pytest.raises(ImportError, match=message):
        to_onnx(rotated, tmp_path / "export", X=wine[0])
    # Nor is it needed for scalers.
    to_torch(pipeline_of(wine, StandardScaler()))


# The folder


def test_folder_must_be_empty(clf, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(FileExistsError, match="'directory' must not exist, or be"):
            to_onnx(clf, path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_folder_of_the_folder_must_exist(clf, tmp_path):
    with pytest.raises(FileNotFoundError, match="no"):
        to_onnx(clf, tmp_path / "no" / "export")


class NotExportable(MLP):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else 0 * x


def test_failure_leaves_nothing(iris, tmp_path):
    clf = BDistilClassifier(
        LogisticRegression(max_iter=300), **{**SMALL, "student": NotExportable}
    )
    with pytest.warns(CostsUnknownWarning):
        clf.fit(*iris)
    with pytest.raises(RuntimeError, match=r"[Dd]ata-dependent"):
        to_onnx(clf, tmp_path / "export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
@pytest.mark.parametrize("function", [to_onnx, to_single_onnx])
def test_missing_dependency(clf, function, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    message = rf'{function.__name__} needs {name}, .*pip install "skbdistil\[deploy\]"'
    with pytest.raises(ImportError, match=message):
        function(clf, tmp_path / "export")
    # They need none of them.
    to_torch_export(clf)


def test_students_of_integers_are_exported(tmp_path):
    X = np.random.RandomState(0).randint(10, size=(40, 5))
    clf = BDistilClassifier(
        None, **{**SMALL, "student": Embedded}, input_scaling=None
    ).fit(X, X[:, 0] % 2)
    module = to_torch(clf)
    with torch.no_grad():
        scores = module(torch.from_numpy(X)).numpy()
    assert_array_equal(clf.classes_[scores.argmax(axis=1)], clf.predict(X))
    to_onnx(clf, tmp_path / "exported")
    session = ProgressiveSession(tmp_path / "exported")
    found = list(session.staged_predict_proba(X.astype(float)))
    assert_allclose(found, list(clf.staged_predict_proba(X)), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="numbers that are not integers"):
        session.predict(X + 0.5)


def test_transforms_before_students_of_integers_are_left_out():
    X = np.random.RandomState(0).randint(10, size=(40, 5))
    clf = BDistilClassifier(None, **{**SMALL, "student": Embedded}, input_scaling=None)
    pipeline = make_pipeline(VarianceThreshold(), clf).fit(X, X[:, 0] % 2)
    with pytest.raises(ValueError, match="cannot export the transforms"):
        to_torch(pipeline)
