"""Lowered stages against the float32 ones, as a session sees both."""

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
LOWER = ["float16", "int8_dynamic", "int8_static", "int4"]

# What a precision leaves in float32 of a stage, and warns of.
KEPT = {
    ("conv1d", "int4"): "Conv",
    ("conv2d", "int4"): "Conv",
    ("gru", "int8_dynamic"): "GRU",
    ("gru", "int8_static"): "GRU",
    ("gru", "int4"): "GRU",
    ("lstm", "int8_static"): "LSTM",
    ("lstm", "int4"): "LSTM",
}

# From many bits to few.
BITS = {"float32": 32, "float16": 16, "int8_dynamic": 8, "int8_static": 8, "int4": 4}

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
    estimators = {}

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
            estimators[name] = clf
        return folders[name], X[300:]

    get.estimators = estimators
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
    kept = KEPT.get((name, lower))
    warns = nullcontext()
    if kept is not None:
        warns = pytest.warns(
            UserWarning, match=f"float32: {kept} of stage 1; {kept} of stage 2"
        )
    with warns:
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
    # Most bytes of such a stage are in the layers that stay.
    if kept is None:
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
    # In 4 bits, 32 weights share a scale of 32 bits.
    bits = 5 if lower == "int4" else BITS[lower]
    assert 0.9 < new["weight_bytes"] / old["weight_bytes"] / (bits / 32) < 1.3
    for key in ("file", "inputs", "outputs", "macs", "parameters"):
        assert new[key] == old[key]
    assert (tmp_path / "stage_1.onnx").read_bytes() == (
        source / "stage_1.onnx"
    ).read_bytes()


@pytest.mark.parametrize("lower", LOWER)
def test_graphs_are_valid_and_in_the_precision(export, lower, tmp_path):
    source, X = export("mlp" if lower == "int4" else "conv2d")
    lower_precision(source, tmp_path, lower, X=X)
    types = onnx.TensorProto
    expected = {
        "float16": {types.FLOAT16},
        "int8_dynamic": {types.UINT8},
        "int8_static": {types.INT8},
        "int4": {types.UINT8},
    }[lower]
    # Units, blocks, and pairs of weights in 4 bits.
    n_axes = 3 if lower == "int4" else 2
    for path in tmp_path.glob("*.onnx"):
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert not model.graph.value_info
        found = {w.data_type for w in model.graph.initializer if len(w.dims) == n_axes}
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
    costs = dict(zip(BITS, [0, 0.01, 0.02, 0.05, 0.5], strict=True))

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


# Schedules


@pytest.mark.parametrize("name", ["mlp", "lstm"])
@pytest.mark.parametrize("target", [0, 0.99, 0.998, 1.0])
def test_monotone_schedule_never_gets_more_precise(export, name, target, tmp_path):
    source, X = export(name)
    report = lower_precision(source, tmp_path, X=X, target=target, schedule="monotone")
    bits = [BITS[precision] for precision in report.precisions]
    assert bits == sorted(bits, reverse=True)
    assert report.agreement.min() >= target
    assert_array_equal(report.agreement, agreement(source, tmp_path, X))
    # Of all that was tried and reached the target it is the smallest.
    tried = [choice.n_bytes for choice in report.choices if choice.taken]
    assert report.n_bytes.sum() == min([*tried, report.float32_n_bytes.sum()])
    assert len(report.choices) <= 4 * N_STAGES


def test_monotone_schedule_lowers_the_last_stage_first(export, tmp_path, monkeypatch):
    source, X = export("mlp")
    seen = []

    def agreement(lowering, found):
        precisions = [stage["precision"] for stage in found.manifest["stages"]]
        seen.append(precisions)
        # The first stage has to stay in float16 at least, whatever the last one is in.
        return np.array([BITS[precisions[0]] >= 16])

    monkeypatch.setattr(precision._Lowering, "agreement", agreement)
    report = lower_precision(source, tmp_path, X=X, target=1, schedule="monotone")
    assert report.precisions == ("float16", "int4")
    assert seen[:2] == [["float32", "float16"], ["float16", "float16"]]
    assert [choice.stage for choice in report.choices[:2]] == [2, 1]


def test_monotone_schedule_stops_where_a_stage_cannot_be_lowered(export, tmp_path):
    source, X = export("mlp")
    source = edited(source, tmp_path / "source", hide_weights)
    report = lower_precision(
        source, tmp_path / "lower", X=X, target=0, schedule="monotone"
    )
    assert report.precisions == ("float32", "int4")


@pytest.mark.parametrize("schedule", ["reverse", None, ["free"]])
def test_unknown_schedule(export, schedule, tmp_path):
    source, X = export("mlp")
    message = r"'schedule' must be one of \['free', 'monotone'\]\. Got .* instead"
    with pytest.raises(ValueError, match=message):
        lower_precision(source, tmp_path / "lower", X=X, schedule=schedule)
    assert not list(tmp_path.iterdir())


# 4 bits


@given(
    n_units=st.integers(1, 5), n_inputs=st.integers(1, 70), seed=st.integers(0, 2**16)
)
def test_blocks_of_four_bits_are_within_a_step(n_units, n_inputs, seed):
    rng = np.random.default_rng(seed)
    weights = rng.standard_cauchy((n_units, n_inputs)).astype(np.float32)
    weights[0] = 0  # a block without a scale
    values, scales = precision._blocks(weights)
    n_blocks = -(-n_inputs // 32)
    assert values.shape == (n_units, n_blocks, 16)
    steps = np.stack([values & 15, values >> 4], axis=-1).reshape(n_units, -1, 32)
    scales = scales.reshape(n_units, n_blocks, 1)
    found = ((steps.astype(int) - 8) * scales).reshape(n_units, -1)[:, :n_inputs]
    each = np.repeat(np.abs(scales[..., 0]), 32, axis=1)[:, :n_inputs]
    # Half a step, or a whole one where a value is cut off at 7.
    assert (np.abs(found - weights) <= each * (1 + 1e-6)).all()
    is_largest = np.abs(weights) > 7.5 * each
    assert_allclose(found[~is_largest], weights[~is_largest], atol=0.501 * each.max())


def graph_of(node, weights, bias=None):
    parts = [onnx.numpy_helper.from_array(weights, "weights")]
    if bias is not None:
        parts.append(onnx.numpy_helper.from_array(bias, "bias"))
    rows, scores = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", None])
        for name in ("rows", "scores")
    )
    graph = onnx.helper.make_graph([node], "layer", [rows], [scores], parts)
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"), [("Gemm", {"transB": 1}), ("Gemm", {}), ("MatMul", {})]
)
def test_layer_in_four_bits_computes_with_its_blocks(kind, options, has_bias):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 40)).astype(np.float32)
    has_bias &= kind == "Gemm"
    bias = rng.normal(size=6).astype(np.float32) if has_bias else None
    inputs = ["rows", "weights", *["bias"] * has_bias]
    node = onnx.helper.make_node(kind, inputs, ["scores"], **options)
    stored = weights if options else np.ascontiguousarray(weights.T)
    content = precision._int4(graph_of(node, stored, bias).SerializeToString())
    values, scales = precision._blocks(weights)
    steps = np.stack([values & 15, values >> 4], axis=-1).reshape(6, 2, 32) - 8.0
    lowered = (steps * scales.reshape(6, 2, 1)).reshape(6, -1)[:, :40]
    rows = rng.normal(size=(5, 40)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(content).run(None, {"rows": rows})
    expected = rows @ lowered.T + (bias if has_bias else 0)
    assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"transA": 1}, {"alpha": 2.0}, {"beta": 0.5}])
def test_layer_with_factors_stays_in_float32(options):
    node = onnx.helper.make_node("Gemm", ["rows", "weights"], ["scores"], **options)
    content = graph_of(node, np.ones((6, 40), dtype=np.float32)).SerializeToString()
    assert precision._int4(content) is None
    assert precision._float32_layers(content) == ["Gemm"]


# Fallback


@pytest.fixture(scope="module")
def whole(export, tmp_path_factory):
    """The export of perceptrons with the graph of all stages."""
    _, X = export("mlp")
    directory = tmp_path_factory.mktemp("whole") / "float32"
    to_onnx(export.estimators["mlp"], directory, fixed_stage=N_STAGES)
    return directory, X


@pytest.mark.parametrize("lower", ["int8_static", "int4", "auto"])
def test_fallback_is_all_stages_in_float32(whole, lower, tmp_path):
    source, X = whole
    report = lower_precision(source, tmp_path / "lower", lower, X=X, fallback=True)
    found, full = session(tmp_path / "lower"), session(source)
    assert len(report.precisions) == len(report.n_bytes) == N_STAGES
    assert found.n_stages == N_STAGES + 1
    *lowered, last = found.manifest["stages"]
    assert [stage["precision"] for stage in lowered] == list(report.precisions)
    assert last["precision"] == "float32"
    for key in ("macs", "parameters"):
        assert last[key] == sum(stage[key] for stage in lowered)
    assert found.manifest["fixed_stage"] is None
    assert_allclose(found.decision_function(X), full.decision_function(X), atol=1e-6)
    without = ProgressiveSession(
        tmp_path / "lower", n_stages=N_STAGES, early_exit=False
    )
    assert_array_equal(
        report.agreement[-1], np.mean(without.predict(X) == full.predict(X))
    )


def edited_manifest(source, directory, edit):
    shutil.copytree(source, directory)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return directory


@pytest.mark.parametrize(("stage", "held"), [(None, "none"), (1, "that of stage 1")])
def test_fallback_without_the_graph_of_all_stages(whole, stage, held, tmp_path):
    def edit(manifest):
        fixed = manifest["fixed_stage"]
        manifest["fixed_stage"] = None if stage is None else {**fixed, "stage": stage}

    source = edited_manifest(whole[0], tmp_path / "source", edit)
    message = rf"to_onnx\(\.\.\., fixed_stage=2\)\. .* holds {held}\."
    with pytest.raises(ValueError, match=message):
        lower_precision(source, tmp_path / "lower", "int4", fallback=True)
    assert not (tmp_path / "lower").exists()


def test_fallback_of_a_source_with_early_exit(whole, tmp_path):
    def edit(manifest):
        manifest["early_exit"] = {
            "rule": "margin",
            "thresholds": [0.5],
            "temperatures": [1.0, 1.0],
        }

    source = edited_manifest(whole[0], tmp_path / "source", edit)
    with pytest.raises(ValueError, match=r"the early exit in .* has no threshold for"):
        lower_precision(source, tmp_path / "lower", "int4", fallback=True)
    assert not (tmp_path / "lower").exists()


def test_costs_of_an_early_exit_in_float32_warn(whole, tmp_path):
    def edit(manifest):
        manifest["early_exit"] = {
            "rule": "margin",
            "thresholds": [0.5],
            "temperatures": [1.0, 1.0],
            "costs": [10.0, 20.0],
            "unit": "weight_bytes",
            "mean_cost": 12.0,
        }

    source = edited_manifest(whole[0], tmp_path / "source", edit)
    with pytest.warns(UserWarning, match="in weight_bytes, are those of float32"):
        lower_precision(source, tmp_path / "lower", "int4")


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
        (hide_weights, "int4"),
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
