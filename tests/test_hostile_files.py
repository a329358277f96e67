"""Files and folders of an attacker: one error that names them, and no harm.

Nothing here is timed. What took minutes or gigabytes is refused, for a reason that is
found before anything is built.
"""

import copy
import hashlib
import io
import json
import os
import shutil
import struct
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.sparse
import skops.io
import torch
from numpy.testing import assert_array_equal
from saved_files import edited, packed, parts, set_item
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skbdistil import BDistilClassifier
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.exceptions import InvalidFileError
from skbdistil.export import to_onnx, to_single_onnx
from skbdistil.persistence import load, save
from skbdistil.precision import lower_precision
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP, ConvNet2d

SMALL = {"n_estimators": 2, "max_epochs": 1, "edge_tol": np.inf, "random_state": 0}
N_FEATURES = 6


@pytest.fixture(scope="module")
def data():
    return make_classification(n_samples=60, n_features=N_FEATURES, random_state=0)


@pytest.fixture(scope="module")
def clf(data):
    student = partial(MLP, hidden=(3,))
    return BDistilClassifier(LogisticRegression(), student=student, **SMALL).fit(*data)


@pytest.fixture(scope="module")
def images():
    X = np.random.RandomState(0).normal(size=(20, 2, 8, 8))
    scores = X.reshape(20, -1)[:, :2]
    student = partial(ConvNet2d, channels=(3, 4))
    clf = BDistilClassifier("precomputed", student=student, connection="dense", **SMALL)
    return clf.fit(X, scores.argmax(axis=1), teacher_scores=scores)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skb"


def assert_refused(path, reason, **options):
    with pytest.raises(InvalidFileError, match=reason) as info:
        load(path, **options)
    message = str(info.value)
    assert message.startswith(f"'{path}' cannot be loaded: ")
    assert len(message) < 2000
    return info.value


def backbone(name, **sizes):
    return {"$partial": [{"$part": name}, [], sizes]}


def tuple_of(*items):
    return {"$tuple": list(items)}


def nested(value, n_levels):
    for _ in range(n_levels):
        value = [value]
    return value


LONG = {"$array": ["<U20000", [20000], ["a" * 20000, *[""] * 19999]]}
MANY = {"$array": ["<U256", [300_000], [""] * 300_000]}
DEEP = backbone("MLP", hidden=tuple_of(*[1] * 20000))
STUDENT = ("ensemble", "students", 0)


def thousands_of_students(node):
    node["ensemble"]["students"] = [backbone("MLP")] * 5000
    node["ensemble"]["n_features"] = [32] * 5000


SHAPE = ("ensemble", "input_shape")
CLASSES = ("fitted", "classes_")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_item(*STUDENT, to=DEEP), "have 20001 blocks, and there are 12 weights"),
        (
            thousands_of_students,
            r"KeyError: 'students\.2\.head\.weight'",
        ),
        (set_item(*CLASSES, to=LONG), "arrays take more than 67108864 bytes"),
        (set_item(*CLASSES, to=MANY), "arrays take more than 67108864 bytes"),
        (
            set_item(*CLASSES, to={"$array": [",".join(["i4"] * 9999), [1], [1]]}),
            "an array has the dtype 'i4,i4,",
        ),
        (
            set_item(*CLASSES, to={"$array": ["<M8[s]", [1], [1]]}),
            "an array has the dtype",
        ),
        (
            set_item(*CLASSES, to={"$array": ["<i8", [2**40, 2**40, 0], []]}),
            "ValueError",
        ),
        (set_item("params", "student", to=nested(1, 200)), "more than 100 levels deep"),
        (set_item("params", "eta", to=10**4000), "an int beyond 64 bits"),
        (set_item("params", "eta", to=float("nan")), "has NaN, which JSON does not"),
        (set_item("params", "device", to="meta"), "its device is 'meta'"),
        (set_item("ensemble", "n_outputs", to=2**62), "give 4611686018427387904 outp"),
        (set_item(*SHAPE, to=[2**62] * 50_000), "its rows have 50000 axes"),
        (set_item(*SHAPE, to=[2**62] * 3), "its rows have 980"),
        (set_item(*SHAPE, to=[6.0]), "are not positive"),
        (set_item(*SHAPE, to=[True]), "are not positive"),
        (
            set_item(*STUDENT, to=backbone("MLP", hidden=tuple_of(3.0))),
            "'hidden' parameter of MLP must hold positive ints",
        ),
        (
            set_item(*STUDENT, to=backbone("MLP", hidden=tuple_of(3, 0))),
            "'hidden' parameter of MLP must hold positive ints",
        ),
        (
            set_item(*STUDENT, to=backbone("MLP", hidden="aaa")),
            "'hidden' parameter of MLP must hold positive ints",
        ),
    ],
)
def test_small_description_that_asks_for_much_is_refused(edit, reason, clf, path):
    save(clf, path)
    edited(path, edit)
    assert_refused(path, reason)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"stride": -1}, "'stride' parameter of ConvNet2d must be a positive int"),
        ({"stride": 0}, "'stride' parameter"),
        ({"stride": True}, "'stride' parameter"),
        ({"stride": 2.0}, "'stride' parameter"),
        ({"kernel_size": -3}, "'kernel_size' parameter"),
        ({"kernel_size": 2**62}, "factory .* cannot be called with the shape of a row"),
        ({"n_features": -4}, "'n_features' parameter"),
        ({"channels": tuple_of(3, -4)}, "'channels' parameter"),
        ({"channels": tuple_of(*[3] * 20000)}, "have 40000 blocks, and there are"),
    ],
)
def test_sizes_of_convolutions_are_sizes(sizes, reason, images, path):
    """Of those that are not, some fit the weights, and failed in `predict`."""
    save(images, path)
    sizes = {"channels": tuple_of(3, 4), **sizes}
    edited(
        path, set_item("ensemble", "students", to=[backbone("ConvNet2d", **sizes)] * 2)
    )
    assert_refused(path, reason)


def test_key_that_is_there_twice_is_refused(clf, path):
    save(clf, path)
    members = parts(path)
    text = members["estimator.json"]
    members["estimator.json"] = text.replace(b'"eta": ', b'"eta": 0.9, "eta": ', 1)
    path.write_bytes(packed(members))
    assert_refused(path, "a key twice in one object")


def test_many_parts_are_not_read_and_not_listed(clf, path):
    save(clf, path)
    members = {**parts(path), **{f"{number}": b"" for number in range(60_000)}}
    path.write_bytes(packed(members))
    error = assert_refused(path, "belong to nothing")
    assert error.__cause__ is None
    path.write_bytes(packed({f"{number}": b"" for number in range(66_000)}))
    assert_refused(path, "more than 65536 parts")


def test_many_weights_are_refused_before_they_are_read(clf, path):
    save(clf, path)
    members = parts(path)
    weight = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"0.{n}": weight for n in range(20_000)}).encode()
    members["weights.safetensors"] = struct.pack("<Q", len(header)) + header
    path.write_bytes(packed(members))
    assert_refused(path, "it has 20000 weights, which is more than 10000")


@pytest.mark.parametrize("kind", ["FrozenEstimator", "Pipeline"])
def test_estimators_are_nested_ten_times_at_most(kind, clf, path):
    save(clf, path)
    members = parts(path)
    document = json.loads(members["estimator.json"])

    def write(n_levels):
        node = document["estimator"]
        for _ in range(n_levels - 1):
            inner = {"class": kind, "params": {}, "names": ["a"], "last": node}
            if kind == "FrozenEstimator":
                inner = {"class": kind, "params": {"estimator": node}}
            node = {"$estimator": inner}
        text = json.dumps({**document, "estimator": node}).encode()
        path.write_bytes(packed({**members, "estimator.json": text}))

    # Pipelines take scikit-learn three times as long with every level.
    # The innermost one holds its objective.
    write(9 if kind == "FrozenEstimator" else 5)
    assert load(path).predict(np.zeros((2, N_FEATURES))).shape == (2,)
    write(11)
    assert_refused(path, "more than 10 estimators inside each other")


def test_work_to_append_students_grows_with_their_number(monkeypatch):
    n_visits = 0
    train = nn.Module.train

    def counted(module, mode=True):
        nonlocal n_visits
        n_visits += 1
        return train(module, mode)

    monkeypatch.setattr(nn.Module, "train", counted)
    visits = []
    for n_students in (5, 10, 20):
        n_visits = 0
        with torch.device("meta"):
            ensemble = ProgressiveEnsemble((3,), 2, connection=None)
            for _ in range(n_students):
                ensemble.append(ensemble.new_student(MLP, n_features=32))
        visits.append(n_visits)
    assert visits[2] - visits[1] == 2 * (visits[1] - visits[0])
    assert not any(weight.requires_grad for weight in ensemble.parameters())


def test_ensemble_that_was_trained_together_is_frozen_by_another_student():
    ensemble = ProgressiveEnsemble((3,), 2)
    ensemble.append(ensemble.new_student(MLP))
    ensemble.unfreeze().train()
    ensemble.append(ensemble.new_student(MLP))
    assert ensemble.frozen
    assert not any(weight.requires_grad for weight in ensemble.parameters())
    assert not any(module.training for module in ensemble.students.modules())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have a name")
def test_pipe_is_not_loaded(path):
    os.mkfifo(path)
    assert_refused(path, "it is not a regular file")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless device")
def test_device_is_not_loaded():
    assert_refused("/dev/zero", "it is not a regular file")


# What skops reads


@pytest.fixture
def skops_file(clf, data, path):
    """A pipeline, and a function that changes what skops has saved of it."""
    save(make_pipeline(StandardScaler().fit(data[0]), clf), path)

    def change(edit):
        members = parts(path)
        inner = parts(io.BytesIO(members["0.skops"]))
        schema = json.loads(inner["schema.json"])
        edit(schema, inner)
        inner["schema.json"] = json.dumps(schema).encode()
        members["0.skops"] = packed(inner)
        path.write_bytes(packed(members))

    return change


def list_node(number, content):
    return {
        "__class__": "list",
        "__module__": "builtins",
        "__loader__": "ListNode",
        "__id__": number,
        "content": content,
    }


def doubled(n_levels, first_number=1, by_reference=True):
    """Lists each of which holds the one before twice."""
    node = list_node(first_number, [])
    for number in range(first_number + 1, first_number + n_levels):
        again = {"__id__": number - 1} if by_reference else copy.deepcopy(node)
        node = list_node(number, [node, again])
    return node


def test_lists_that_double_are_refused(skops_file, path):
    """Ten of them are read in milliseconds, and forty never."""
    skops_file(lambda schema, _: schema["content"].append(doubled(10)))
    assert_refused(path, "ValueError: zip")  # more steps than names
    skops_file(lambda schema, _: schema["content"].append(doubled(40, 100)))
    assert_refused(path, "has skops build more than 4194304 values")


def test_what_precedes_a_node_of_its_number_does_not_hide_it(skops_file, path):
    def edit(schema, _):
        stubs = [{"__id__": number} for number in range(1, 41)]
        schema["odd"] = stubs
        schema["content"] += [doubled(40), *stubs]

    skops_file(edit)
    assert_refused(path, "has skops build more than 4194304 values")


def test_node_inside_itself_is_refused(skops_file, path):
    skops_file(
        lambda schema, _: schema["content"].append(list_node(5, [{"__id__": 5}]))
    )
    assert_refused(path, "has skops build more than 4194304 values")


@pytest.mark.parametrize("number", [1, 0, None])
def test_part_that_is_read_again_and_again_is_refused(number, skops_file, path):
    def edit(schema, inner):
        inner["large.npy"] = inner[
            next(name for name in inner if name != "schema.json")
        ]
        array = {
            "__class__": "ndarray",
            "__module__": "numpy",
            "__loader__": "NdArrayNode",
            "type": "numpy",
            "file": "large.npy",
        }
        schema["content"] += [
            {**array, "__id__": number and number + position} for position in range(3)
        ]

    skops_file(edit)
    assert_refused(path, "belongs to several objects")


def test_matrix_that_grows_when_it_is_read_is_refused(skops_file, path):
    def edit(schema, inner):
        buffer = io.BytesIO()
        scipy.sparse.save_npz(buffer, scipy.sparse.csr_matrix(np.ones((1, 4_000_000))))
        inner["7.npz"] = buffer.getvalue()
        assert len(inner["7.npz"]) < 1e7
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("more.npy", bytes(200_000_000))
        inner["7.npz"] = buffer.getvalue()
        schema["content"].append(
            {
                "__class__": "spmatrix",
                "__module__": "scipy.sparse._matrix",
                "__loader__": "SparseMatrixNode",
                "type": "scipy",
                "file": "7.npz",
                "__id__": 7,
            }
        )

    skops_file(edit)
    assert_refused(path, "bytes of a sparse matrix would become 2[0-9]{8}")


def test_schema_of_skops_is_read_within_bounds(skops_file, path):
    skops_file(lambda schema, _: schema["content"].append(nested({}, 200)))
    assert_refused(path, "more than 100 levels deep")


def test_what_is_no_skops_is_refused(clf, data, path):
    save(make_pipeline(StandardScaler().fit(data[0]), clf), path)
    for content in (b"", b"PK\5\6" + bytes(18), packed({"schema.json": b"[]"})):
        path.write_bytes(packed({**parts(path), "0.skops": content}))
        assert_refused(path, "it is not what save writes")


@pytest.mark.parametrize(
    "teacher",
    [
        RandomForestClassifier(20),
        KNeighborsClassifier(),
        StackingClassifier([("a", LogisticRegression()), ("b", LogisticRegression())]),
    ],
    ids=lambda teacher: type(teacher).__name__,
)
def test_what_scikit_learn_holds_is_read(teacher, clf, data, path):
    X, y = data
    teacher = teacher.fit(scipy.sparse.csr_matrix(X), y)
    saved = clf[:2].set_params(teacher=FrozenEstimator(teacher))
    save(saved, path, include_teacher=True)
    types = skops.io.get_untrusted_types(data=parts(path)["0.skops"])
    found = load(path, trusted=types).teacher
    assert_array_equal(found.predict_proba(X), teacher.predict_proba(X))


def test_words_of_a_vocabulary_are_no_keys_of_skops(clf, path):
    words = TfidfVectorizer(vocabulary=["memory", "__id__", "file", "content"])
    teacher = make_pipeline(words, LogisticRegression())
    teacher.fit(["memory of a file", "content memory"], [0, 1])
    saved = clf[:2].set_params(teacher=FrozenEstimator(teacher))
    save(saved, path, include_teacher=True)
    found = load(path).teacher.estimator[0]
    assert found.vocabulary_ == words.vocabulary_


# Folders to cache in


def caching(folder):
    return Pipeline([("scale", StandardScaler())], memory=str(folder))


def transforms(folder):
    return [
        ("plain", caching(folder)),
        ("columns", ColumnTransformer([("some", caching(folder), [0, 1, 2])])),
        ("rest", StandardScaler()),
    ]


def memories(pipeline):
    """Of the pipelines in what comes before the last step."""
    plain, columns = pipeline[0], pipeline[1]
    fitted = columns.transformers_[0][1]
    return [step.memory for step in (plain, columns.transformers[0][1], fitted)]


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_no_step_keeps_a_folder_to_cache_in(data, path, tmp_path):
    X, y = data
    folder = tmp_path / "cache"
    last = ("distil", BDistilClassifier(LogisticRegression(), **SMALL))
    pipeline = Pipeline([*transforms(folder), last], memory=str(folder)).fit(X, y)
    save(pipeline, path)
    # What is saved stays as it is.
    assert memories(pipeline) == [str(folder)] * 3
    assert str(folder).encode() not in parts(path)["0.skops"]
    shutil.rmtree(folder)
    loaded = load(path)
    assert memories(loaded) == [None] * 3
    assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))
    loaded.fit(X, y, distil__teacher_scores=np.eye(2)[y])
    assert not folder.exists()


def test_a_file_brings_no_folder_to_cache_in(clf, data, path, tmp_path):
    X, y = data
    steps = Pipeline(transforms(tmp_path / "cache")).fit(X, y)
    save(make_pipeline(StandardScaler(), clf).fit(X, y), path)
    members = parts(path)
    members["0.skops"] = skops.io.dumps([*(step for _, step in steps.steps)])
    document = json.loads(members["estimator.json"])
    document["estimator"]["$estimator"]["names"] = ["a", "b", "c", "d"]
    members["estimator.json"] = json.dumps(document).encode()
    path.write_bytes(packed(members))
    assert str(tmp_path / "cache").encode() in path.read_bytes()
    assert memories(load(path)) == [None] * 3


def test_teacher_keeps_no_folder_to_cache_in(clf, data, path, tmp_path):
    folder = tmp_path / "cache"
    teacher = make_pipeline(caching(folder), LogisticRegression(), memory=str(folder))
    saved = clf[:2].set_params(teacher=FrozenEstimator(teacher.fit(*data)))
    save(saved, path, include_teacher=True)
    found = load(path).teacher.estimator
    assert (found.memory, found[0].memory) == (None, None)
    assert (teacher.memory, teacher[0].memory) == (str(folder), str(folder))


# Exported folders


@pytest.fixture(scope="module")
def exported(clf, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "folder"
    to_onnx(clf, directory)
    return directory


@pytest.fixture
def folder(exported, tmp_path):
    """An export that may be changed."""
    return shutil.copytree(exported, tmp_path / "folder")


def rewrite(folder, edit):
    """Change the manifest of a folder."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def replace_graph(folder, edit):
    """Change the first graph of a folder, and its checksum."""
    path = folder / "stage_1.onnx"
    model = onnx.load(path)
    edit(model)
    content = model.SerializeToString()
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    rewrite(folder, set_item("stages", 0, "sha256", to=digest))


def assert_folder_refused(folder, name, reason):
    with pytest.raises(InvalidFileError, match=reason) as info:
        ProgressiveSession(folder).predict(np.zeros((3, N_FEATURES)))
    message = str(info.value)
    assert message.startswith(f"{folder / name}: ")
    assert len(message) < 2000


def with_many_classes(manifest):
    values = [f"{number:05}" for number in range(50_000)]
    manifest["classes"] = {"values": values, "dtype": "<U9999"}
    for stage in manifest["stages"]:
        stage["outputs"][0]["shape"] = [50_000]
    manifest["stages"][1]["inputs"] = [
        {**tensor, "shape": [50_000] if "scores" in tensor["name"] else tensor["shape"]}
        for tensor in manifest["stages"][1]["inputs"]
    ]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (with_many_classes, "'classes': its arrays take more than 67108864 bytes"),
        (
            set_item("classes", "dtype", to="<M8[s]"),
            "'classes': an array has the dtype",
        ),
        (set_item("input", "shape", to=[2**62] * 50_000), "its rows have 50000 axes"),
        (set_item("input", "shape", to=[2**62] * 3), "its rows have 980"),
        (set_item("stages", 1, "file", to="stage_1.onnx"), "of an earlier stage"),
        (set_item("stages", 0, "macs", to=10**400), "an int beyond 64 bits"),
        (set_item("note", to=nested(1, 200)), "more than 100 levels deep"),
        (set_item("note", to=float("inf")), "has Infinity, which JSON does not know"),
        (set_item("note", to=[0] * 5_000_000), "more than 4194304 values"),
    ],
)
def test_small_manifest_that_asks_for_much_is_refused(edit, reason, folder):
    rewrite(folder, edit)
    assert_folder_refused(folder, "manifest.json", reason)


def test_key_of_a_manifest_that_is_there_twice_is_refused(folder):
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("{", '{"kind": "regressor",', 1), encoding="utf-8")
    assert_folder_refused(folder, "manifest.json", "a key twice")


def test_memory_for_stages_grows_with_their_number(folder):
    def edit(manifest):
        template = manifest["stages"][1]
        for number in range(3, 2000):
            stage = copy.deepcopy(template)
            stage["file"] = f"stage_{number}.onnx"
            stage["inputs"] = [
                *template["inputs"],
                {**SCORES, "name": f"k{number - 1}"},
            ]
            stage["outputs"] = [
                {**template["outputs"][0], "name": f"scores_{number}"},
                {**SCORES, "name": f"k{number}"},
            ]
            if number == 3:
                stage["inputs"].pop()
            manifest["stages"].append(stage)

    rewrite(folder, edit)
    tracemalloc.start()
    try:
        assert_folder_refused(folder, "stage_3.onnx", "there is no such file")
        assert tracemalloc.get_traced_memory()[1] < 3e7
    finally:
        tracemalloc.stop()


SCORES = {"shape": [2], "dtype": "float32"}


def test_file_larger_than_any_graph_is_not_read(folder):
    os.truncate(folder / "stage_2.onnx", 2**31 + 1)
    tracemalloc.start()
    try:
        assert_folder_refused(folder, "stage_2.onnx", "larger than a graph can be")
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have a name")
@pytest.mark.parametrize("name", ["manifest.json", "stage_1.onnx"])
def test_pipe_in_a_folder_is_not_read(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert_folder_refused(folder, name, "there is no such file")


@pytest.mark.parametrize("name", ["manifest.json", "stage_1.onnx"])
def test_links_that_lead_nowhere_are_not_read(folder, name):
    (folder / name).unlink()
    for target in (name, "missing", folder, folder.parent):
        (folder / name).symlink_to(target)
        assert_folder_refused(folder, name, "there is no such file")
        (folder / name).unlink()


def scores_node(model):
    """Give the scores another name, and the node that made them back."""
    (node,) = (node for node in model.graph.node if "scores_1" in node.output)
    node.output[list(node.output).index("scores_1")] = "inner"
    return node


def append(model, *nodes):
    scores_node(model)
    model.graph.node.extend(nodes)


def node(kind, *inputs, **attributes):
    return onnx.helper.make_node(kind, list(inputs), ["scores_1"], **attributes)


def shape_at_run_time(*shape):
    """Nodes of a shape that is not known before the graph runs."""
    one = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [2], shape)
    make = onnx.helper.make_node
    return [
        make("Sub", ["inner", "inner"], ["zeros"]),
        make("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        make("Cast", ["zero"], ["nothing"], to=onnx.TensorProto.INT64),
        make("Constant", [], ["numbers"], value=one),
        make("Add", ["numbers", "nothing"], ["shape"]),
    ]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            [*shape_at_run_time(7, 7), node("Reshape", "inner", "shape")],
            "onnxruntime cannot run it",
        ),
        (
            [*shape_at_run_time(2, 3), node("Reshape", "inner", "shape")],
            r"for 3 rows it gives 'scores_1' of shape \(2, 3\)",
        ),
        (
            [node("Concat", "inner", "inner", axis=0)],
            r"for 3 rows it gives 'scores_1' of shape \(6, 2\)",
        ),
    ],
    ids=["fails", "shape", "rows"],
)
def test_replaced_graph_that_gives_something_else_is_refused(nodes, reason, folder):
    """Its outputs are only declared to be those of the manifest."""
    replace_graph(folder, lambda model: append(model, *nodes))
    assert_folder_refused(folder, "stage_1.onnx", reason)


def secret(location):
    """A tensor that is in another file, or in the graph without a location."""
    values = np.arange(2, dtype=np.float32)
    tensor = onnx.numpy_helper.from_array(values, "secret")
    if location is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": "8"}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return tensor


def constant_of(tensor):
    made = onnx.helper.make_node("Constant", [], ["secret"])
    attribute = made.attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.CopyFrom(tensor)
    return made


def in_constant(model, tensor):
    append(model, constant_of(tensor), node("Add", "inner", "secret"))


def in_branch(model, tensor):
    def branch(name):
        graph = onnx.GraphProto(name=name)
        weights = graph.initializer.add()
        weights.CopyFrom(tensor)
        weights.name = f"secret_{name}"
        made = onnx.helper.make_node("Add", ["inner", weights.name], [f"sum_{name}"])
        graph.node.append(made)
        graph.output.append(
            onnx.helper.make_tensor_value_info(
                f"sum_{name}", onnx.TensorProto.FLOAT, ["batch", 2]
            )
        )
        return graph

    condition = onnx.helper.make_tensor("value", onnx.TensorProto.BOOL, [], [True])
    append(
        model,
        onnx.helper.make_node("Constant", [], ["condition"], value=condition),
        node("If", "condition", then_branch=branch("yes"), else_branch=branch("no")),
    )


def in_function(model, tensor):
    add = onnx.helper.make_node("Add", ["a", "secret"], ["b"])
    opset = onnx.helper.make_opsetid("", 18)
    function = onnx.helper.make_function(
        "mine", "AddSecret", ["a"], ["b"], [constant_of(tensor), add], [opset]
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    append(model, node("AddSecret", "inner", domain="mine"))


@pytest.mark.parametrize("hide", [in_constant, in_branch, in_function])
@pytest.mark.parametrize("where", ["absolute", "working directory", "parent", "folder"])
def test_replaced_graph_that_reads_another_file_is_refused(
    hide, where, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, folder):
        (place / "secret.bin").write_bytes(np.arange(2, dtype=np.float32).tobytes())
    location = {"absolute": str(tmp_path / "secret.bin"), "parent": "../secret.bin"}
    location = location.get(where, "secret.bin")
    replace_graph(folder, lambda model: hide(model, secret(location)))
    assert_folder_refused(folder, "stage_1.onnx", "onnxruntime cannot load it")
    with pytest.raises(InvalidFileError, match=r"stage_1\.onnx: onnxruntime cannot lo"):
        lower_precision(folder, tmp_path / "lower", "float16")
    assert not (tmp_path / "lower").exists()


@pytest.mark.parametrize("hide", [in_constant, in_branch, in_function])
def test_the_same_graph_with_its_own_weights_runs(hide, folder):
    """What is refused above is the other file, and not the graph."""
    replace_graph(folder, lambda model: hide(model, secret(None)))
    session = ProgressiveSession(folder, n_stages=1)
    assert session.predict(np.zeros((3, N_FEATURES))).shape == (3,)


# Where nothing can be written


def write_all(clf, exported, parent):
    """Everything that writes, with the path that it writes to."""
    return {
        parent / "model.skb": partial(save, clf),
        parent / "single.onnx": partial(to_single_onnx, clf),
        parent / "stages": partial(to_onnx, clf),
        parent / "lower": lambda path: lower_precision(exported, path, "float16"),
    }


def contents(folder):
    return {
        str(path.relative_to(folder)): path.is_file() and path.read_bytes()
        for path in Path(folder).rglob("*")
    }


def test_full_disk_leaves_everything_as_it_was(clf, exported, tmp_path, full_disk):
    for name in ("model.skb", "single.onnx"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "stages").mkdir()
    before = contents(tmp_path)
    for path, write in write_all(clf, exported, tmp_path).items():
        with full_disk(500), pytest.raises(OSError, match="File too large") as info:
            write(path)
        assert info.value.filename.startswith(str(path))
        assert contents(tmp_path) == before


def test_read_only_folder_is_left_as_it_is(clf, strict_folder):
    (strict_folder / "model.skb").write_bytes(b"old")
    (strict_folder / "stages").mkdir()
    (strict_folder / "stages").chmod(0o555)
    strict_folder.chmod(0o555)
    before = contents(strict_folder)
    readable = strict_folder / "no"
    for path, write in write_all(clf, readable, strict_folder).items():
        if path.name == "lower":
            continue
        with pytest.raises(PermissionError) as info:
            write(path)
        assert info.value.filename == str(path)
        assert contents(strict_folder) == before
