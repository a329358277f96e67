"""Lowered stages against the float32 ones, as a session sees both."""

import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skbdistil
from skbdistil import BDistilClassifier, BDistilRegressor, precision
from skbdistil.exceptions import InvalidFileError
from skbdistil.export import to_onnx
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet

N_STAGES = 2
LOWER = ["float16", "int8_dynamic", "int8_static"]

# Wide enough for weights to outweigh the names of nodes in a file.
STUDENTS = {
    "mlp": ((64,), partial(MLP, hidden=(48, 32)), "dense", "mean"),
    "sum": ((64,), partial(MLP, hidden=(48,)), "dense", "sum"),
    "lateral": ((64,), partial(MLP, hidden=(48, 32)), "lateral", "mean"),
    "conv2d": ((1, 8, 8), partial(ConvNet2d, channels=(8, 32)), "dense", "mean"),
    "conv1d": ((8, 8), partial(ConvNet1d, channels=(8, 32)), "last", "mean"),
    "gru": ((8, 8), partial(RecurrentNet, hidden=(32,)), "dense", "learned"),
    "lstm": ((8, 8), partial(RecurrentNet, hidden=(32,), cell="lstm"), None, "mean"),
}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    # No pixel is nearly constant, which after scaling would need a range of its own.
    X = X + np.random.default_rng(0).normal(scale=2, size=X.shape)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def export(digits, tmp_path_factory):
    """Folder of an export by name of the students, and rows for it."""
    folders = {}

    def get(name):
        shape, student, connection, combine = STUDENTS[name]
        X, y = digits[0].reshape(-1, *shape), digits[1]
        if name not in folders:
            clf = BDistilClassifier(
                "precomputed",
                student=student,
                n_estimators=N_STAGES,
                connection=connection,
                combine=combine,
                max_epochs=4,
                edge_tol=np.inf,
                random_state=0,
            ).fit(X[:300], y[:300], teacher_scores=10 * np.eye(10)[y[:300]])
            folders[name] = tmp_path_factory.mktemp(name) / "float32"
            to_onnx(clf, folders[name])
        return folders[name], X[300:]

    return get


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    X, y = load_diabetes(return_X_y=True)
    reg = BDistilRegressor(
        Ridge(),
        student=partial(MLP, hidden=(48, 48)),
        n_estimators=N_STAGES,
        max_epochs=4,
        edge_tol=np.inf,
        random_state=0,
    ).fit(X, np.column_stack([y, 100 * y + X[:, 0]]))
    directory = tmp_path_factory.mktemp("regressor") / "float32"
    to_onnx(reg, directory)
    return directory, X


def session(directory):
    return ProgressiveSession(directory, early_exit=False)


def scores_of(directory, X):
    return np.array([np.log(p) for p in session(directory).staged_predict_proba(X)])


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def agreement(source, directory, X):
    pairs = zip(
        session(source).staged_predict(X),
        session(directory).staged_predict(X),
        strict=True,
    )
    return [np.mean(full == found) for full, found in pairs]


# Each precision


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("lower", LOWER)
def test_every_precision_predicts(export, name, lower, tmp_path, capfd):
    source, X = export(name)
    before = contents(source)
    report = lower_precision(source, tmp_path / "lower", lower, X=X)
    assert capfd.readouterr() == ("", "")
    assert contents(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["lower"]
    assert report.precisions == (lower,) * N_STAGES
    assert report.choices == ()
    assert_array_equal(report.agreement, agreement(source, tmp_path / "lower", X))
    # Far above chance, which is 0.1, and below what any sound lowering reaches.
    assert report.agreement.min() > 0.9
    assert report.latency > 0
    assert report.float32_latency > 0
    for number in range(N_STAGES):
        file = f"stage_{number + 1}.onnx"
        assert report.n_bytes[number] == (tmp_path / "lower" / file).stat().st_size
        assert report.float32_n_bytes[number] == len(before[file])
    # Most bytes of a recurrent stage are in its GRU or LSTM.
    if (name, lower) not in {
        ("gru", "int8_dynamic"),
        ("gru", "int8_static"),
        ("lstm", "int8_static"),
    }:
        assert (report.n_bytes < 0.8 * report.float32_n_bytes).all()
    # One row is a batch as well.
    assert session(tmp_path / "lower").predict(X[:1]).shape == (1,)


@pytest.mark.parametrize("name", STUDENTS)
def test_float16_is_close(export, name, tmp_path):
    source, X = export(name)
    lower_precision(source, tmp_path, "float16")
    full, found = scores_of(source, X), scores_of(tmp_path, X)
    # Weights are rounded by at most 2^-11 of themselves, and the layers pass on sums of
    # these errors: ten times that, for the few layers there are.
    assert_allclose(found, full, rtol=0, atol=10 * 2**-11 * np.abs(full).max())
    assert np.abs(found - full).max() > 0


@pytest.mark.parametrize("lower", LOWER)
def test_manifest(export, lower, tmp_path):
    source, X = export("mlp")
    lower_precision(source, tmp_path, ["float32", lower], X=X)
    before, after = (
        json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for folder in (source, tmp_path)
    )
    old, new = before["stages"].pop(), after["stages"].pop()
    assert after == before
    assert new["precision"] == lower
    content = (tmp_path / new["file"]).read_bytes()
    assert new["sha256"] == hashlib.sha256(content).hexdigest()
    bits = {"float16": 16}.get(lower, 8)
    assert 0.9 < new["weight_bytes"] / old["weight_bytes"] / (bits / 32) < 1.3
    for key in ("file", "inputs", "outputs", "macs", "parameters"):
        assert new[key] == old[key]
    assert (tmp_path / "stage_1.onnx").read_bytes() == (
        source / "stage_1.onnx"
    ).read_bytes()


@pytest.mark.parametrize("lower", LOWER)
def test_graphs_are_valid_and_in_the_precision(export, lower, tmp_path):
    source, X = export("conv2d")
    lower_precision(source, tmp_path, lower, X=X)
    types = onnx.TensorProto
    expected = {
        "float16": {types.FLOAT16},
        "int8_dynamic": {types.UINT8},
        "int8_static": {types.INT8},
    }[lower]
    for path in tmp_path.glob("*.onnx"):
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert not model.graph.value_info
        found = {w.data_type for w in model.graph.initializer if len(w.dims) == 2}
        assert found == expected


def test_float32_is_a_copy(export, tmp_path):
    source, _ = export("mlp")
    report = lower_precision(source, tmp_path, "float32")
    assert contents(tmp_path) == contents(source)
    assert report.agreement is None


def test_static_ranges_come_from_the_rows(export, tmp_path):
    source, X = export("mlp")
    for name, rows in (("all", X), ("again", X), ("dark", X * 0.01)):
        lower_precision(source, tmp_path / name, "int8_static", X=rows)
    assert contents(tmp_path / "all") == contents(tmp_path / "again")
    exact = scores_of(source, X)
    errors = [
        np.abs(scores_of(tmp_path / name, X) - exact).max() for name in ("all", "dark")
    ]
    # What is larger than all that was seen is cut off.
    assert errors[1] > 5 * errors[0]


def test_early_exit_is_kept(export, tmp_path):
    source, X = export("mlp")
    with_rule = shutil.copytree(source, tmp_path / "rule")
    path = with_rule / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    rule = {"rule": "confidence", "thresholds": [0.5], "temperatures": [1.0, 2.0]}
    manifest["early_exit"] = rule
    path.write_text(json.dumps(manifest), encoding="utf-8")
    lower_precision(with_rule, tmp_path / "lower", "int8_dynamic", X=X)
    found = ProgressiveSession(tmp_path / "lower")
    assert found.manifest["early_exit"] == rule
    assert set(found.exit_stages(X)) == {1, 2}


@pytest.mark.parametrize("lower", LOWER)
def test_agreement_of_a_regressor(regressor, lower, tmp_path):
    source, X = regressor
    report = lower_precision(source, tmp_path, lower, X=X)
    scale = session(source).manifest["targets"]["scale"]
    for number, (full, found) in enumerate(
        zip(
            session(source).staged_predict(X),
            session(tmp_path).staged_predict(X),
            strict=True,
        )
    ):
        deviation = np.sqrt(np.mean(((found - full) / scale) ** 2))
        assert_allclose(report.agreement[number], 1 - deviation)
        assert 0.9 < report.agreement[number] < 1


# Auto


@pytest.mark.parametrize("name", ["mlp", "conv2d", "lstm"])
@pytest.mark.parametrize("target", [0, 0.99, 1.0])
def test_auto_reaches_its_target(export, name, target, tmp_path):
    source, X = export(name)
    report = lower_precision(source, tmp_path, X=X, target=target)
    assert report.agreement.min() >= target
    assert_array_equal(report.agreement, agreement(source, tmp_path, X))
    manifest = session(tmp_path).manifest
    assert report.precisions == tuple(s["precision"] for s in manifest["stages"])
    # The choices that were taken, in order, give what was written.
    precisions = ["float32"] * N_STAGES
    n_bytes = report.float32_n_bytes.sum()
    for choice in report.choices:
        assert choice.taken == (choice.agreement >= target)
        assert choice.n_bytes < n_bytes
        if choice.taken:
            precisions[choice.stage - 1] = choice.precision
            n_bytes = choice.n_bytes
            last = choice.agreement
    assert report.precisions == tuple(precisions)
    assert report.n_bytes.sum() == n_bytes
    assert report.agreement.min() == last


def test_auto_without_quality_is_the_smallest(export, tmp_path):
    source, X = export("mlp")
    report = lower_precision(source, tmp_path / "auto", X=X, target=0)
    smallest = np.min(
        [
            lower_precision(source, tmp_path / lower, lower, X=X).n_bytes
            for lower in LOWER
        ],
        axis=0,
    )
    assert_array_equal(report.n_bytes, smallest)
    assert "float32" not in report.precisions
    assert all(choice.taken for choice in report.choices)


def test_auto_of_a_regressor(regressor, tmp_path):
    source, X = regressor
    report = lower_precision(source, tmp_path, X=X, target=0.995)
    assert report.agreement.min() >= 0.995
    assert "float32" not in report.precisions


def test_auto_goes_from_small_to_large_losses(export, tmp_path, monkeypatch):
    source, X = export("mlp")
    # What each precision takes from the agreement; it all shows at the first stage.
    costs = {"float32": 0, "float16": 0.01, "int8_dynamic": 0.02, "int8_static": 0.05}

    def agreement(lowering, found):
        stages = found.manifest["stages"]
        return (
            1 - np.array([costs[stage["precision"]] for stage in stages]).cumsum()[::-1]
        )

    monkeypatch.setattr(precision._Lowering, "agreement", agreement)
    report = lower_precision(source, tmp_path, X=X, target=0.969)
    tried = report.choices[:4]
    assert [choice.precision for choice in tried] == 2 * ["float16"] + 2 * [
        "int8_dynamic"
    ]
    assert [choice.taken for choice in tried] == [True, True, True, False]
    # Among equals, what saves more comes first.
    saved = -np.diff([report.float32_n_bytes.sum(), *(c.n_bytes for c in tried[:2])])
    assert saved[0] > saved[1]
    assert {choice.stage for choice in tried[:2]} == {1, 2}


# What cannot be lowered


def with_first_stage(source, directory, content):
    """Copy of an export with another first stage, signed."""
    shutil.copytree(source, directory)
    (directory / "stage_1.onnx").write_bytes(content)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["stages"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return directory


def edited(source, directory, edit):
    model = onnx.load(source / "stage_1.onnx")
    edit(model.graph)
    return with_first_stage(source, directory, model.SerializeToString())


def enlarge(graph):
    for weights in graph.initializer:
        if len(weights.dims) == 2:
            values = onnx.numpy_helper.to_array(weights) * np.float32(1e6)
            weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


def hide_weights(graph):
    """Weights that are computed, so that no layer has constant ones."""
    for weights in graph.initializer:
        if len(weights.dims) == 2:
            name = weights.name
            weights.name = f"{name}_stored"
            graph.node.insert(0, onnx.helper.make_node("Neg", [weights.name], [name]))


@pytest.mark.parametrize(
    ("edit", "lower"),
    [
        (enlarge, "float16"),
        (hide_weights, "float16"),
        (hide_weights, "int8_dynamic"),
        (hide_weights, "int8_static"),
    ],
)
def test_stage_that_cannot_be_lowered(export, edit, lower, tmp_path):
    source, X = export("mlp")
    source = edited(source, tmp_path / "source", edit)
    message = f"Stage 1 cannot be lowered to '{lower}': it has no layer of the kinds"
    with pytest.raises(ValueError, match=message):
        lower_precision(source, tmp_path / "lower", lower, X=X)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_auto_leaves_what_cannot_be_lowered(export, tmp_path):
    source, X = export("mlp")
    source = edited(source, tmp_path / "source", hide_weights)
    report = lower_precision(source, tmp_path / "lower", X=X, target=0)
    assert report.precisions[0] == "float32"
    assert report.precisions[1] != "float32"


# Bad input


@pytest.mark.parametrize(
    ("lower", "message"),
    [
        ("int8", r"'precision' must be 'auto', one of \['float32', .* Got 'int8'"),
        ("", r"\. Got ''"),
        (None, r"for 2 stages\. Got None"),
        (np.array(["float16"] * 2), r"for 2 stages\. Got array"),
        (["float16"], r"for 2 stages\. Got \['float16'\]"),
        (["float16"] * 3, r"for 2 stages\. Got"),
        (["float16", "auto"], r"for 2 stages\. Got \['float16', 'auto'\]"),
        ([], r"for 2 stages\. Got \[\]"),
    ],
)
def test_unknown_precision(export, lower, message, tmp_path):
    source, X = export("mlp")
    with pytest.raises(ValueError, match=message):
        lower_precision(source, tmp_path / "lower", lower, X=X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lower", ["auto", "int8_static", ["float16", "int8_static"]])
def test_missing_rows(export, lower, tmp_path):
    source, _ = export("mlp")
    with pytest.raises(ValueError, match=r"'X' must be calibration rows with"):
        lower_precision(source, tmp_path / "lower", lower)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 63)), r"needs rows of shape \(64,\).*Got X of shape \(3, 63\)"),
        (np.zeros((0, 64)), "needs at least one row"),
        (np.full((3, 64), np.nan), "needs finite numbers"),
    ],
)
def test_rows_that_cannot_be_used(export, X, message, tmp_path):
    source, _ = export("mlp")
    with pytest.raises(ValueError, match=message):
        lower_precision(source, tmp_path / "lower", "int8_static", X=X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", [-0.1, 1.1, np.nan, "1", None])
def test_target_out_of_range(export, target, tmp_path):
    source, X = export("mlp")
    with pytest.raises(ValueError, match=r"'target' must be from 0 to 1\. Got"):
        lower_precision(source, tmp_path / "lower", X=X, target=target)
    assert not list(tmp_path.iterdir())


def test_folder_must_be_empty(export, tmp_path):
    source, _ = export("mlp")
    (tmp_path / "note.txt").write_text("mine")
    for directory in (tmp_path, tmp_path / "note.txt", source):
        with pytest.raises(FileExistsError, match="'directory' must not exist, or be"):
            lower_precision(source, directory, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_source_must_be_in_float32(export, tmp_path):
    source, _ = export("mlp")
    lower_precision(source, tmp_path / "once", ["float32", "float16"])
    message = r"'source' must hold stages in float32\. Got .* \['float32', 'float16'\]"
    with pytest.raises(ValueError, match=message):
        lower_precision(tmp_path / "once", tmp_path / "twice", "int8_dynamic")
    assert [path.name for path in tmp_path.iterdir()] == ["once"]


def test_damaged_source(export, tmp_path):
    source = shutil.copytree(export("mlp")[0], tmp_path / "source")
    (source / "stage_2.onnx").write_bytes(b"")
    with pytest.raises(InvalidFileError, match=r"stage_2\.onnx: the checksum is not"):
        lower_precision(source, tmp_path / "lower", "float16")
    with pytest.raises(InvalidFileError, match=r"manifest\.json: there is no such"):
        lower_precision(tmp_path, tmp_path / "lower", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_signed_source_that_is_no_graph(export, tmp_path):
    source = with_first_stage(export("mlp")[0], tmp_path / "source", b"no graph")
    with pytest.raises(InvalidFileError, match=r"stage_1\.onnx: onnxruntime cannot"):
        lower_precision(source, tmp_path / "lower", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_missing_dependency(export, name, tmp_path, monkeypatch):
    source, _ = export("mlp")
    monkeypatch.setitem(sys.modules, name, None)
    message = rf'lower_precision needs {name}, .*pip install "skbdistil\[deploy\]"'
    with pytest.raises(ImportError, match=message):
        lower_precision(source, tmp_path / "lower", "float16")


def test_needs_no_framework(export, tmp_path):
    source, X = export("mlp")
    np.save(tmp_path / "X.npy", X)
    code = f"""
import logging, sys
for name in ("torch", "sklearn", "skorch", "scipy"):
    sys.modules[name] = None
import numpy as np
from skbdistil.precision import lower_precision
lower_precision({str(source)!r}, {str(tmp_path / "lower")!r},
                X=np.load({str(tmp_path / "X.npy")!r}))
# Under pytest there is a handler, and none would be added.
assert not logging.root.handlers
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        cwd=Path(skbdistil.__file__).parents[1],
    )
    assert_array_equal(session(tmp_path / "lower").classes_, np.arange(10))


# Transforms of pipelines


@pytest.fixture(scope="module")
def pipeline(digits):
    """Pixels without one that is always zero, rotated: no affine map of columns."""
    X, y = digits
    clf = BDistilClassifier(
        "precomputed",
        student=STUDENTS["mlp"][1],
        n_estimators=N_STAGES,
        max_epochs=4,
        edge_tol=np.inf,
        random_state=0,
    )
    pipeline = make_pipeline(StandardScaler(), PCA(20), clf)
    scores = 10 * np.eye(10)[y]
    return pipeline.fit(X, y, bdistilclassifier__teacher_scores=scores)


@pytest.mark.parametrize("lower", LOWER)
def test_transforms_of_the_first_stage_stay(pipeline, digits, lower, tmp_path):
    X = digits[0]
    to_onnx(pipeline, tmp_path / "float32", X=X)
    report = lower_precision(tmp_path / "float32", tmp_path / "lower", lower, X=X)
    assert report.precisions == (lower,) * N_STAGES
    assert min(report.agreement) > 0.9
    found = session(tmp_path / "lower").predict(X)
    assert np.mean(found == pipeline.predict(X)) == report.agreement[-1]


def test_transforms_outside_have_to_be_acknowledged(pipeline, digits, tmp_path):
    to_onnx(pipeline, tmp_path / "float32")
    rows = pipeline[:-1].transform(digits[0])
    with pytest.raises(ValueError, match=r"'pca' \(PCA\).*transformed=True"):
        lower_precision(tmp_path / "float32", tmp_path / "lower", X=rows)
    report = lower_precision(
        tmp_path / "float32", tmp_path / "lower", "auto", X=rows, transformed=True
    )
    assert min(report.agreement) >= 0.995
