"""The graph of a fixed stage: beside the stages, in sessions and when lowered."""

import copy
import hashlib
import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import common
from skbdistil import BDistilClassifier, BDistilRegressor, runtime
from skbdistil.exceptions import InvalidFileError
from skbdistil.export import to_onnx
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

FIXED = 2
N_STAGES = 3
TWO = {**common.SMALL, "n_estimators": 2}
METHODS = ("predict", "predict_proba", "decision_function")

fixed_session = partial(ProgressiveSession, n_stages=FIXED, early_exit=False)


@pytest.fixture(scope="module")
def data():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def exported(early, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fixed")
    to_onnx(early, directory, fixed_stage=FIXED)
    return directory


@pytest.fixture
def folder(exported, tmp_path):
    """An export that may be changed."""
    return shutil.copytree(exported, tmp_path / "export")


def manifest_of(directory):
    return json.loads(Path(directory, "manifest.json").read_text(encoding="utf-8"))


def rewrite(directory, edit):
    manifest = manifest_of(directory)
    edit(manifest)
    text = json.dumps(manifest)
    Path(directory, "manifest.json").write_text(text, encoding="utf-8")


def change(**values):
    return lambda manifest: manifest["fixed_stage"].update(values)


def replace_graph(folder, edit):
    """Change the graph of the fixed stage, and its checksum."""
    path = folder / manifest_of(folder)["fixed_stage"]["file"]
    model = onnx.load(path)
    edit(model)
    content = model.SerializeToString()
    path.write_bytes(content)
    rewrite(folder, change(sha256=hashlib.sha256(content).hexdigest()))


def without_graph(directory, tmp_path):
    """Copy of a folder whose sessions run stage by stage."""
    other = shutil.copytree(directory, tmp_path / "stages")
    rewrite(other, lambda manifest: manifest.pop("fixed_stage"))
    return other


def uses_graph(session):
    return session._fixed_graph is not None


def assert_same_predictions(directory, X, tmp_path, methods=METHODS, **options):
    """Those of the graph and of the stages, within what exports are held to."""
    whole = ProgressiveSession(directory, **options)
    stages = ProgressiveSession(without_graph(directory, tmp_path), **options)
    assert uses_graph(whole)
    assert not uses_graph(stages)
    for n_rows in (1, 2, len(X)):
        for method in methods:
            found, expected = (getattr(s, method)(X[:n_rows]) for s in (whole, stages))
            assert found.shape == expected.shape
            assert found.dtype == expected.dtype
            if expected.dtype.kind == "f":
                assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            else:
                assert_array_equal(found, expected)
    assert_array_equal(whole.exit_stages(X), stages.exit_stages(X))


# What is written


def test_graph_is_a_file_of_the_manifest(exported):
    entry = manifest_of(exported)["fixed_stage"]
    content = (exported / entry["file"]).read_bytes()
    assert entry["file"] == "fixed_stage_2.onnx"
    assert entry["stage"] == FIXED
    assert entry["precision"] == "float32"
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["file_bytes"] == len(content)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    stages = manifest_of(exported)["stages"][:FIXED]
    n_parameters = sum(stage["parameters"] for stage in stages)
    assert entry["weight_bytes"] >= 4 * n_parameters


def test_folder_grows_by_the_file_and_the_stages_stay(early, exported, tmp_path):
    to_onnx(early, tmp_path / "plain")
    assert manifest_of(tmp_path / "plain")["fixed_stage"] is None
    before = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in exported.iterdir()} - before == {"fixed_stage_2.onnx"}
    stages = manifest_of(exported)["stages"]
    assert stages == manifest_of(tmp_path / "plain")["stages"]


@pytest.mark.parametrize("fixed_stage", [0, N_STAGES + 1, -1, 1.0, "last"])
def test_stage_that_is_not_written_is_refused(early, fixed_stage, tmp_path):
    message = r"'fixed_stage' must be None or an int from 1 to 3, the number of stages"
    with pytest.raises(ValueError, match=message):
        to_onnx(early, tmp_path / "no", fixed_stage=fixed_stage)
    assert list(tmp_path.iterdir()) == []


def test_stage_beyond_those_in_use_is_refused(clf, tmp_path):
    cut = copy.copy(clf).set_params(n_stages=1)
    with pytest.raises(ValueError, match="an int from 1 to 1, the number of stages"):
        to_onnx(cut, tmp_path / "no", fixed_stage=2)


# Against the stages


def test_session_at_the_stage_predicts_as_the_stages(clf, exported, data, tmp_path):
    X = data[0]
    options = {"n_stages": FIXED, "early_exit": False}
    assert_same_predictions(exported, X, tmp_path, **options)
    found = fixed_session(exported).predict_proba(X)
    assert_allclose(found, clf[:FIXED].predict_proba(X), rtol=1e-5, atol=1e-6)


def test_rows_of_several_chunks_keep_their_order(exported, data, monkeypatch):
    expected = fixed_session(exported).decision_function(data[0])
    monkeypatch.setattr(runtime, "_CHUNK_ROWS", 7)
    found = fixed_session(exported).decision_function(data[0])
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_other_predictions_run_the_stages(exported, data):
    session = fixed_session(exported)
    # Nothing of it is left to run.
    session._fixed_graph.stage = session._fixed_graph.stage._replace(file="missing")
    assert len(list(session.staged_predict(data[0]))) == FIXED
    assert len(list(session.staged_predict_proba(data[0]))) == FIXED
    assert len(session.predict_within(data[0], 1e6)) == len(data[0])
    with pytest.raises(InvalidFileError, match="missing: there is no such file"):
        session.predict(data[0])


def test_sessions_in_which_rows_may_leave_earlier_or_later_run_the_stages(exported):
    assert not uses_graph(ProgressiveSession(exported, n_stages=FIXED))
    assert not uses_graph(ProgressiveSession(exported, early_exit=False))
    assert not uses_graph(ProgressiveSession(exported, n_stages=1, early_exit=False))


def test_thresholds_that_no_row_reaches_keep_their_temperatures(folder, data, tmp_path):
    def edit(manifest):
        manifest["early_exit"].update(
            thresholds=[None] * (N_STAGES - 1), temperatures=[1, 3, 1]
        )

    rewrite(folder, edit)
    assert_same_predictions(folder, data[0], tmp_path, n_stages=FIXED)


@pytest.mark.parametrize("n_targets", [1, 2])
def test_regressor_far_from_zero_keeps_its_digits(n_targets, tmp_path):
    X, y = (part[:60] for part in load_diabetes(return_X_y=True))
    y = np.column_stack([y + 1e9, -y])[:, :n_targets]
    reg = BDistilRegressor(Ridge(), **TWO).fit(X, y)
    to_onnx(reg, tmp_path / "reg", fixed_stage=2)
    assert_same_predictions(tmp_path / "reg", X, tmp_path, methods=["predict"])
    found = ProgressiveSession(tmp_path / "reg").predict(X)
    scale = 1e-5 * reg.target_scale_.max()
    assert_allclose(found, reg.predict(X), rtol=0, atol=scale)


@pytest.mark.parametrize("step", [StandardScaler(), PCA(3)], ids=["affine", "skl2onnx"])
def test_transforms_are_part_of_the_graph(step, data, tmp_path):
    X, y = data
    X = X * 1e-3 + 1e3
    clf = BDistilClassifier(dtype="float64", **TWO)
    pipeline = make_pipeline(step, clf).fit(X, y)
    to_onnx(pipeline, tmp_path / "pipe", X=X, fixed_stage=2)
    session = ProgressiveSession(tmp_path / "pipe")
    assert_allclose(
        session.predict_proba(X), pipeline.predict_proba(X), rtol=0, atol=1e-5
    )
    assert_same_predictions(tmp_path / "pipe", X, tmp_path)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_rows_that_the_stages_refuse_are_refused(name, data, tmp_path):
    clf = BDistilClassifier(dtype=name, **{**common.SMALL, "n_estimators": 1})
    clf.fit(data[0] * 1e-3, data[1])
    to_onnx(clf, tmp_path / "clf", fixed_stage=1)
    session = ProgressiveSession(tmp_path / "clf")
    assert uses_graph(session)
    # The last one is finite in float32, and is not once it is scaled.
    for value in (np.nan, np.inf, -np.inf, 1e39, 3e38):
        X = data[0][:3].copy()
        X[1, 2] = value
        for predict in (session.predict, session.staged_predict):
            with pytest.raises(
                ValueError, match=r"needs finite numbers\. X contains N"
            ):
                list(predict(X))


# Folders of others


def test_folder_without_the_entry_is_read(folder, data):
    rewrite(folder, lambda manifest: manifest.pop("fixed_stage"))
    assert len(fixed_session(folder).predict(data[0])) == len(data[0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda manifest: manifest.update(fixed_stage=[]),
            "'fixed_stage' that is not an object or null",
        ),
        (lambda m: m["fixed_stage"].pop("stage"), "'fixed_stage' lacks 'stage'"),
        (change(stage=0), "'stage' that is not a positive int"),
        (change(stage=True), "'stage' that is not a positive int"),
        (change(stage=1.0), "'stage' that is not a positive int"),
        (change(stage=4), "is stage 4, and there are 3"),
        (change(stage=2**63), "is stage 9223372036854775808, and there are 3"),
        (lambda m: m["fixed_stage"].pop("file"), "'fixed_stage' lacks 'file'"),
        (change(file="../x.onnx"), "which is not a plain name"),
        (change(file="/tmp/x.onnx"), "which is not a plain name"),
        (change(file="stage_1.onnx"), "'stage_1.onnx', which is that of a stage"),
        (change(file="other.onnx"), r"other\.onnx: there is no such file"),
        (lambda m: m["fixed_stage"].pop("sha256"), "'fixed_stage' lacks 'sha256'"),
        (change(sha256=None), "'sha256' that is not a string"),
        (change(sha256="0" * 64), r"fixed_stage_2\.onnx: the checksum is not"),
    ],
)
def test_broken_entry_is_refused(edit, message, folder):
    rewrite(folder, edit)
    with pytest.raises(InvalidFileError, match=message):
        fixed_session(folder)


def test_graph_that_is_not_used_is_not_looked_at(folder):
    (folder / "fixed_stage_2.onnx").unlink()
    assert ProgressiveSession(folder).n_stages == N_STAGES
    with pytest.raises(InvalidFileError, match="there is no such file"):
        fixed_session(folder)


def test_graph_behind_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    path = folder / "fixed_stage_2.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(InvalidFileError, match="a link that leaves the folder"):
        fixed_session(folder)


def test_file_that_changes_after_it_was_verified_is_not_run(folder, data):
    session = fixed_session(folder)
    (folder / "fixed_stage_2.onnx").write_bytes(b"other")
    with pytest.raises(InvalidFileError, match=r"_2\.onnx: the checksum is not"):
        session.predict(data[0])


def drop_scaled(model):
    del model.graph.output[1]


def freeze_batch(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def read_more(model):
    value = copy.deepcopy(model.graph.input[0])
    value.name = "more"
    model.graph.input.append(value)


def give_two_batches(model):
    (node,) = (node for node in model.graph.node if "scores_2" in node.output)
    node.output[list(node.output).index("scores_2")] = "inner"
    twice = onnx.helper.make_node("Concat", ["inner", "inner"], ["scores_2"], axis=0)
    model.graph.node.append(twice)


def give_infinity(model):
    (node,) = (node for node in model.graph.node if "scores_2" in node.output)
    node.output[list(node.output).index("scores_2")] = "inner"
    value = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [], [np.inf])
    model.graph.node.append(
        onnx.helper.make_node("Constant", [], ["infinity"], value=value)
    )
    add = onnx.helper.make_node("Add", ["inner", "infinity"], ["scores_2"])
    model.graph.node.append(add)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (drop_scaled, InvalidFileError, "the outputs are not those of the manifest"),
        (freeze_batch, InvalidFileError, "the inputs are not those of the manifest"),
        (read_more, InvalidFileError, "the inputs are not those of the manifest"),
        (
            give_two_batches,
            InvalidFileError,
            r"_2\.onnx: for 2 rows it gives 'scores_2' of shape \(4, 3\)",
        ),
        (give_infinity, ValueError, "needs finite numbers"),
    ],
)
def test_signed_graph_of_another_form_is_refused(edit, error, message, folder):
    replace_graph(folder, edit)
    with pytest.raises(error, match=message):
        fixed_session(folder).predict(np.zeros((2, 4)))


def test_signed_file_that_is_no_graph_is_refused(folder, tmp_path):
    path = folder / "fixed_stage_2.onnx"
    path.write_bytes(b"no graph")
    digest = hashlib.sha256(b"no graph").hexdigest()
    rewrite(folder, change(sha256=digest))
    with pytest.raises(InvalidFileError, match=r"_2\.onnx: onnxruntime cannot load"):
        fixed_session(folder).predict(np.zeros((2, 4)))
    with pytest.raises(InvalidFileError, match=r"_2\.onnx: onnxruntime cannot load"):
        lower_precision(folder, tmp_path / "lower", "float32")


# In other precisions


@pytest.fixture(scope="module")
def wide(data, tmp_path_factory):
    """Students that have something to lower."""
    options = {**common.SMALL, "student": partial(MLP, hidden=(32,))}
    clf = BDistilClassifier(**options).fit(*data)
    directory = tmp_path_factory.mktemp("wide")
    to_onnx(clf, directory, fixed_stage=FIXED)
    return directory


@pytest.mark.parametrize("lower", ["float32", "float16", "int4"])
def test_graph_is_lowered_with_the_stages_up_to_it(lower, wide, data, tmp_path):
    X = data[0].astype(np.float32)
    precisions = [lower, lower, "int8_dynamic"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lower_precision(wide, tmp_path / "lower", precisions)
    entry = manifest_of(tmp_path / "lower")["fixed_stage"]
    content = (tmp_path / "lower" / entry["file"]).read_bytes()
    assert entry["precision"] == lower
    assert entry["file_bytes"] == len(content)
    full = manifest_of(wide)["fixed_stage"]
    assert (entry["weight_bytes"] < full["weight_bytes"]) == (lower != "float32")
    assert_same_predictions(tmp_path / "lower", X, tmp_path, n_stages=FIXED)


@pytest.mark.parametrize(
    "precisions",
    [["int8_dynamic"] * 3, ["float16", "float32", "float32"]],
    ids=["int8", "mixed"],
)
def test_graph_that_would_predict_otherwise_is_left_out_by_name(
    precisions, wide, data, tmp_path
):
    with pytest.warns(UserWarning, match=r"fixed_stage_2\.onnx, .* not in the copy"):
        lower_precision(wide, tmp_path / "lower", precisions)
    assert manifest_of(tmp_path / "lower")["fixed_stage"] is None
    assert not (tmp_path / "lower" / "fixed_stage_2.onnx").exists()
    session = fixed_session(tmp_path / "lower")
    assert not uses_graph(session)
    assert len(session.predict(data[0])) == len(data[0])
