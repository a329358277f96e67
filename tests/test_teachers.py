import pickle
from collections import OrderedDict

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from torch import nn

from common import SMALL, raises
from skbdistil import BDistilClassifier
from skbdistil.exceptions import CostsUnknownWarning
from skbdistil.teachers import TorchTeacher, scores_from_labels
from teacher_modules import D, L, Module, expected

N = 40


pytestmark = pytest.mark.usefixtures("seeded_torch")


@pytest.fixture
def X():
    return np.random.RandomState(0).randn(N, D).astype(np.float32)


@pytest.fixture
def y(X):
    return X[:, :L].argmax(axis=1)


# TorchTeacher: what it returns


@pytest.mark.parametrize("batch_size", [1, 7, N, 1000])
def test_scores_are_those_of_the_module(X, batch_size):
    module = Module()
    scores = TorchTeacher(module, batch_size=batch_size).decision_function(X)
    assert scores.shape == (N, L)
    assert scores.dtype == np.float32
    assert_allclose(scores, expected(module, X), rtol=1e-4, atol=1e-6)
    assert sum(module.sizes) == N
    assert max(module.sizes) <= batch_size


@pytest.mark.parametrize(
    ("module_dtype", "dtype"),
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.bfloat16, np.float32),
    ],
)
@pytest.mark.parametrize("X_dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_dtype_follows_the_module(X, module_dtype, dtype, X_dtype):
    X = np.abs(X * 3).astype(X_dtype)
    module = Module().to(module_dtype)
    scores = TorchTeacher(module).decision_function(X)
    assert scores.dtype == dtype
    tolerance = 0.2 if module_dtype == torch.bfloat16 else 1e-5
    assert_allclose(scores, expected(module, X), atol=tolerance, rtol=tolerance)


def test_module_without_parameters_gets_floats():
    scores = TorchTeacher(nn.Softmax(dim=1)).decision_function([[0, 0], [0, 0]])
    assert_array_equal(scores, np.full((2, 2), 0.5, dtype=np.float32))


@pytest.mark.parametrize("training", [True, False])
def test_module_is_left_as_it_was(X, training):
    module = nn.Sequential(Module(), nn.BatchNorm1d(L)).train(training)
    module[0].dropout.train(not training)
    flags = [submodule.training for submodule in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    identities = [id(parameter) for parameter in module.parameters()]
    rng = torch.get_rng_state()
    TorchTeacher(module).decision_function(X)
    assert [submodule.training for submodule in module.modules()] == flags
    assert [id(parameter) for parameter in module.parameters()] == identities
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_module_is_left_as_it_was_after_an_error(X):
    module = Module().train()
    with pytest.raises(RuntimeError):
        TorchTeacher(module).decision_function(X[:, 1:])
    assert module.training
    assert module.dropout.training


def test_runs_on_the_device_and_returns_home(X, monkeypatch):
    # Without an accelerator at hand, it is enough to see the moves.
    module, moves = Module(), []
    monkeypatch.setattr(module, "to", moves.append)
    TorchTeacher(module, device="cpu").decision_function(X)
    assert moves == []
    with pytest.raises((RuntimeError, NotImplementedError)):
        TorchTeacher(module, device="meta").decision_function(X)
    assert moves == [torch.device("meta"), torch.device("cpu")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("device", ["auto", "cuda", torch.device("cuda:0"), "cpu"])
@pytest.mark.parametrize("home", ["cpu", "cuda:0"])
def test_cuda(X, device, home):
    module = Module().to(home)
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].device.type))
    scores = TorchTeacher(module, device=device).decision_function(X)
    assert set(seen) == {"cpu" if device == "cpu" else "cuda"}
    assert next(module.parameters()).device == torch.device(home)
    assert_allclose(scores, expected(module.cpu(), X), atol=1e-2)


@pytest.mark.parametrize("to_frame", [pd.DataFrame, pl.DataFrame])
def test_frames(X, to_frame):
    teacher = TorchTeacher(Module())
    frame = to_frame({f"column {j}": X[:, j] for j in range(D)})
    assert_array_equal(teacher.predict_proba(frame), teacher.predict_proba(X))


def test_frame_of_mixed_dtypes():
    frame = pd.DataFrame(
        {"a": [1, 2], "b": [0.5, 1.5], "c": [True, False], "d": [3, 4]}
    ).astype({"d": "Int64"})
    module = Module()
    scores = TorchTeacher(module).decision_function(frame)
    rows = [[1, 0.5, 1, 3], [2, 1.5, 0, 4]]
    assert_allclose(scores, expected(module, rows), rtol=1e-4, atol=1e-6)


def test_read_only_memmap_of_images(tmp_path):
    images = np.random.RandomState(0).randint(256, size=(9, 2, 3, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    X = np.load(tmp_path / "images.npy", mmap_mode="r")
    module = Module(n_features=18)
    scores = TorchTeacher(module, batch_size=4).decision_function(X)
    assert_allclose(scores, expected(module, images), rtol=1e-4, atol=1e-3)

    def normalize(batch):
        assert isinstance(batch, np.ndarray)
        assert batch.dtype == np.uint8
        assert batch.shape[1:] == (2, 3, 3)
        return batch / 255

    def normalize_tensor(batch):
        return torch.from_numpy(batch).div(255)

    def normalize_in_place(batch):
        batch //= 255
        return batch.astype(np.float64)

    for transform, scaled in [
        (normalize, images / 255),
        (normalize_tensor, images / 255),
        (normalize_in_place, images // 255),
    ]:
        teacher = TorchTeacher(module, transform=transform, batch_size=4)
        assert_allclose(
            teacher.decision_function(X), expected(module, scaled), rtol=1e-4, atol=1e-5
        )
        assert_allclose(
            teacher.decision_function(images), expected(module, scaled), atol=1e-5
        )
    assert_array_equal(X, images)


def test_transform_in_place_does_not_change_X(X):
    def shift(batch):
        batch += 1
        return batch

    before = X.copy()
    TorchTeacher(Module(), transform=shift).decision_function(X)
    assert_array_equal(X, before)


def test_integers_from_a_transform_are_kept():
    tokens = np.array([[0, 1], [2, 2]])
    module = nn.Sequential(nn.Embedding(3, L), nn.AvgPool2d((2, 1)), nn.Flatten())
    teacher = TorchTeacher(module, transform=torch.from_numpy)
    embedding = module[0].weight.detach().numpy()
    assert_allclose(teacher.decision_function(tokens), embedding[tokens].mean(axis=1))


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda scores: (None, scores), 1),
        (lambda scores: (None, scores), -1),
        (lambda scores: [scores, scores + 1], 0),
        (lambda scores: {"loss": None, "logits": scores}, "logits"),
        (lambda scores: OrderedDict(logits=scores), "logits"),
    ],
)
def test_key_finds_the_scores(X, wrap, key):
    module = Module(wrap=wrap)
    scores = TorchTeacher(module, key=key).decision_function(X)
    assert_allclose(scores, expected(module, X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrap", [None, torch.squeeze])
@pytest.mark.parametrize("batch_size", [1, N - 1])
def test_single_column(X, wrap, batch_size):
    # The last batch has one row, of which squeeze() makes a scalar.
    module = Module(1, wrap=wrap)
    scores = TorchTeacher(module, batch_size=batch_size).decision_function(X)
    assert_allclose(scores, expected(module, X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", [None, ["b", "a", "c"], np.array([5, 7, 6])])
def test_probabilities_and_labels(X, classes):
    module = Module()
    teacher = TorchTeacher(module, classes=classes)
    scores = teacher.decision_function(X)
    proba = teacher.predict_proba(X)
    assert_allclose(proba, softmax(scores, axis=1), rtol=1e-6)
    labels = np.arange(L) if classes is None else np.asarray(classes)
    assert_array_equal(teacher.predict(X), labels[scores.argmax(axis=1)])

    softmax_module = nn.Sequential(module, nn.Softmax(dim=1))
    teacher = TorchTeacher(softmax_module, output="proba", classes=classes)
    assert_allclose(teacher.predict_proba(X), proba, rtol=1e-5)
    assert_array_equal(teacher.predict(X), labels[scores.argmax(axis=1)])


def test_binary_classes_from_one_column(X):
    module = Module(1)
    teacher = TorchTeacher(module, classes=["no", "yes"])
    logits = teacher.decision_function(X)
    proba = 1 / (1 + np.exp(-logits[:, 0]))
    assert_allclose(teacher.predict_proba(X), np.c_[1 - proba, proba], rtol=1e-4)
    labels = np.where(logits[:, 0] > 0, "yes", "no")
    assert_array_equal(teacher.predict(X), labels)

    teacher = TorchTeacher(
        nn.Sequential(module, nn.Sigmoid()), output="proba", classes=["no", "yes"]
    )
    assert_allclose(teacher.predict_proba(X), np.c_[1 - proba, proba], rtol=1e-4)
    assert_array_equal(teacher.predict(X), labels)


@pytest.mark.parametrize("n_outputs", [2, L])
@pytest.mark.parametrize("batch_size", [1, 3, N - 1, N])
def test_squeezed_rows_of_several_columns(X, n_outputs, batch_size):
    # squeeze() takes the axis of the rows from a last batch of one row.
    module = Module(n_outputs, wrap=torch.squeeze)
    scores = TorchTeacher(module, batch_size=batch_size).decision_function(X)
    assert_allclose(scores, expected(module, X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda X: np.ascontiguousarray(X[::-1])[::-1],
        lambda X: np.ascontiguousarray(X[:, ::-1])[:, ::-1],
        lambda X: X.astype(">f4"),
        lambda X: X.astype(np.dtype("f8").newbyteorder("S")),
        lambda X: X.astype(np.longdouble),
        lambda X: torch.from_numpy(X),
        lambda X: torch.from_numpy(X).requires_grad_(),
    ],
    ids=["rows", "features", "big", "swapped", "longdouble", "tensor", "gradient"],
)
def test_rows_mean_the_same_in_every_layout(X, rearranged):
    module = Module()
    rows = rearranged(X)
    for teacher in (TorchTeacher(module), TorchTeacher(module, transform=np.abs)):
        scores = teacher.decision_function(rows)
        assert_allclose(scores, teacher.decision_function(X), rtol=1e-6)


def test_rows_of_a_dtype_that_numpy_lacks(X):
    module = Module()
    rows = torch.from_numpy(X).bfloat16()
    scores = TorchTeacher(module).decision_function(rows)
    assert_allclose(scores, expected(module, rows.float()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("X_dtype", [">f4", np.longdouble, ">i2", np.uint8])
def test_transform_sees_rows_that_torch_accepts(X, X_dtype):
    seen = []

    def transform(batch):
        seen.append(batch.dtype)
        batch += 1
        return torch.from_numpy(batch).float()

    X = (10 * X).astype(X_dtype)
    module = Module()
    scores = TorchTeacher(module, transform=transform).decision_function(X)
    assert seen[0].isnative
    assert_allclose(scores, expected(module, X + 1), rtol=1e-4, atol=1e-4)


def test_transform_may_return_a_reversed_view(X):
    def flip(batch):
        return batch[:, ::-1]

    module = Module()
    scores = TorchTeacher(module, transform=flip).decision_function(X)
    assert_allclose(scores, expected(module, X[:, ::-1]), rtol=1e-4, atol=1e-6)


@pytest.fixture
def program():
    """A program of torch.export, and the module that it was made of."""
    module = nn.Sequential(nn.Linear(D, L), nn.Dropout(0.5)).eval()
    rows = torch.export.Dim("rows")
    exported = torch.export.export(
        module, (torch.zeros(8, D),), dynamic_shapes=({0: rows},)
    )
    return exported.module(), module


def test_exported_program(X, program):
    exported, module = program
    teacher = TorchTeacher(exported, batch_size=7)
    scores = teacher.decision_function(X)
    assert_allclose(scores, TorchTeacher(module).decision_function(X), rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_exported_program_as_a_part_leaves_no_other_part_in_training(
    X, program, training
):
    class Parts(nn.Module):
        def __init__(self, exported):
            super().__init__()
            # After the program in the order in which modes are set, and before it.
            self.before = nn.Dropout(0.5)
            self.exported = exported
            self.after = nn.Dropout(0.5)
            self.before.training = self.after.training = self.training = training

        def forward(self, x):
            assert not self.training
            return self.after(self.exported(self.before(x)))

    exported, module = program
    parts = Parts(exported)
    flags = [part.training for part in parts.modules()]
    scores = TorchTeacher(parts).decision_function(X)
    assert_allclose(scores, TorchTeacher(module).decision_function(X), rtol=1e-5)
    assert [part.training for part in parts.modules()] == flags


# TorchTeacher: a scikit-learn estimator


class Holder(BaseEstimator):
    def __init__(self, teacher=None):
        self.teacher = teacher


def test_clone_and_params():
    module = Module()
    teacher = TorchTeacher(module, classes=["a", "b", "c"], batch_size=3)
    assert clone(teacher) is teacher
    holder = Holder(teacher)
    assert clone(holder).teacher is teacher
    assert clone([teacher])[0] is teacher
    params = holder.get_params(deep=True)
    assert params["teacher"] is teacher
    assert params["teacher__module"] is module
    assert params["teacher__batch_size"] == 3
    assert TorchTeacher(**teacher.get_params()).get_params() == teacher.get_params()


def test_pickle(X):
    teacher = TorchTeacher(Module(), transform=np.negative, classes=["a", "b", "c"])
    loaded = pickle.loads(pickle.dumps(teacher))
    assert_array_equal(loaded.decision_function(X), teacher.decision_function(X))
    assert_array_equal(loaded.predict(X), teacher.predict(X))


def test_tags_and_fit(X, y):
    module = Module()
    teacher = TorchTeacher(module)
    before = vars(teacher).copy()
    check_is_fitted(teacher)
    assert not get_tags(teacher).requires_fit
    assert not is_classifier(teacher)
    assert teacher.fit(X, y) is teacher
    assert teacher.fit() is teacher
    assert vars(teacher) == before
    assert module.sizes == []
    assert repr(teacher).startswith("TorchTeacher(")
    check_is_fitted(FrozenEstimator(teacher))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("module", "resnet"),
        ("module", nn.Linear),
        ("output", "probabilities"),
        ("classes", 3),
        ("key", 1.5),
        ("transform", "normalize"),
        ("batch_size", 0),
        ("device", 0.5),
    ],
)
def test_invalid_parameters(X, name, value):
    teacher = TorchTeacher(Module()).set_params(**{name: value})
    with raises(f"'{name}'", "TorchTeacher", f"Got {value!r}"):
        teacher.decision_function(X)


@pytest.mark.parametrize(
    "classes", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "b"], [["a", "b", "c"]]]
)
@pytest.mark.parametrize("method", ["decision_function", "predict", "predict_proba"])
def test_invalid_classes(X, classes, method):
    teacher = TorchTeacher(Module(), classes=classes)
    with raises("'classes'", "TorchTeacher", "3 classes", f"Got {classes!r}"):
        getattr(teacher, method)(X)


@pytest.mark.parametrize(
    ("wrap", "key", "parts"),
    [
        (lambda scores: (scores, scores), None, ["tuple", "[0, 1]", "Got None"]),
        (lambda scores: (scores, scores), 2, ["tuple", "[0, 1]", "Got 2"]),
        (lambda scores: [scores], "logits", ["list", "[0, 0]", "Got 'logits'"]),
        (lambda scores: {"a": scores}, None, ["dict", "['a']", "Got None"]),
        (lambda scores: {"a": scores}, "b", ["dict", "['a']", "Got 'b'"]),
        (lambda scores: {"a": scores}, 0, ["dict", "['a']", "Got 0"]),
        (None, 0, ["Tensor", "must be None", "Got 0"]),
    ],
)
def test_invalid_key(X, wrap, key, parts):
    with raises("TorchTeacher", "'key'", *parts):
        TorchTeacher(Module(wrap=wrap), key=key).decision_function(X)


@pytest.mark.parametrize(
    ("wrap", "key", "parts"),
    [
        (lambda scores: scores[:, None], None, [f"({N}, 1, {L})"]),
        (lambda scores: scores[1:], None, [f"({N - 1}, {L})", f"{N} rows"]),
        (lambda scores: scores.sum(), None, ["(1, 1)", f"{N} rows"]),
        (lambda scores: None, None, ["NoneType"]),
        (lambda scores: {"a": 1.0}, "a", ["float", "key='a'"]),
    ],
)
def test_invalid_output(X, wrap, key, parts):
    with raises("TorchTeacher", "module", *parts):
        TorchTeacher(Module(wrap=wrap), key=key).decision_function(X)


# TorchTeacher: its costs


def test_costs_of_the_module():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = np.zeros((5, 2, 2), dtype=np.uint8)
    assert TorchTeacher(module).costs(images) == (4 * 3, 4 * 3 + 3, 8 * (4 * 3 + 3))
    # Teacher and student may see different rows.
    halved = TorchTeacher(nn.Linear(2, 3), transform=lambda X: X[:, 0] / 255)
    assert halved.costs(images).macs == 2 * 3


class DecidesByData(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


def test_costs_of_a_module_that_cannot_be_counted_are_stated():
    module, X = DecidesByData(), np.zeros((1, 2))
    with pytest.warns(CostsUnknownWarning, match="operations of DecidesByData could"):
        assert TorchTeacher(module).costs(X) == (None, 9, 36)
    assert TorchTeacher(module, macs=7).costs(X) == (7, 9, 36)


@pytest.mark.parametrize("macs", [-1, 1.5, "7"])
def test_stated_costs_are_no_count(macs):
    teacher = TorchTeacher(nn.Linear(2, 3), macs=macs)
    for method in (teacher.costs, teacher.decision_function):
        with pytest.raises(ValueError, match="'macs' parameter of TorchTeacher must"):
            method(np.zeros((1, 2)))


# Answers in labels


def test_scores_of_answers_are_logits_of_smoothed_shares():
    answers = [["b", "b", "a", "b"], ["c", "c", "c", "c"], ["a", "b", "c", "c"]]
    scores = scores_from_labels(answers, smoothing=1.5)
    assert scores.dtype == np.float64
    counts = np.array([[1, 3, 0], [0, 0, 4], [1, 1, 2]])
    shares = (counts + 1.5 / 3) / (4 + 1.5)
    assert_allclose(softmax(scores, axis=1), shares)
    assert_allclose(scores.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_tenth_of_an_answer_is_added_whatever_the_number_of_classes(n_classes):
    scores = scores_from_labels([[0] * 9], classes=range(n_classes))
    shares = softmax(scores, axis=1)[0]
    assert_allclose(shares[0], (9 + 0.1 / n_classes) / 9.1)
    assert_allclose(shares[1:], 0.1 / n_classes / 9.1)


def test_smoothing_for_a_teacher_that_is_right_with_a_probability():
    right, n_classes = 0.9, 4
    smoothing = (1 - right) / (right - 1 / n_classes)
    scores = scores_from_labels([2, 0], range(n_classes), smoothing=smoothing)
    assert_allclose(softmax(scores, axis=1)[[0, 1], [2, 0]], right)


@pytest.mark.parametrize(
    "answers",
    [
        [["a", "b"], ["b", None], [None, None]],
        [["a", "b"], [np.nan, "b"], [np.nan, None]],
        pd.DataFrame([["a", "b"], ["b", pd.NA], [pd.NA, pd.NA]], dtype="string"),
        pd.DataFrame([["a", "b"], ["b", None], [None, None]], dtype="category"),
        pl.DataFrame([["a", "b"], ["b", None], [None, None]], orient="row"),
    ],
    ids=["None", "NaN", "NA", "category", "polars"],
)
def test_missing_answers_do_not_count_and_rows_without_any_are_nan(answers):
    scores = scores_from_labels(answers, smoothing=1)
    assert_allclose(softmax(scores[:2], axis=1), [[0.5, 0.5], [0.25, 0.75]])
    assert np.isnan(scores[2]).all()


@pytest.mark.parametrize(
    "answers",
    [
        [1, 0, None],
        np.array([1, 0, np.nan], dtype=np.float32),
        pd.Series([True, False, None]),
        pd.Series([1, 0, None], dtype="Int8"),
        pl.Series([1, 0, None]),
        pd.Categorical([1, 0, None]),
        [[1], [0], [None]],
    ],
)
def test_one_answer_for_each_row_may_come_without_a_second_axis(answers):
    scores = scores_from_labels(answers, smoothing=1)
    assert_allclose(softmax(scores[:2], axis=1), [[0.25, 0.75], [0.75, 0.25]])
    assert np.isnan(scores[2]).all()


def test_columns_are_in_the_order_of_the_sorted_labels():
    scores = scores_from_labels(["b", "b"], classes=["c", "b", "a"])
    assert_array_equal(scores.argmax(axis=1), [1, 1])
    assert scores.shape == (2, 3)
    labels = np.array([10, 9, 100])
    scores = scores_from_labels(labels)
    assert_array_equal(np.unique(labels)[scores.argmax(axis=1)], labels)


def test_order_of_answers_does_not_matter():
    answers = np.random.RandomState(0).choice(["a", "b", None], (20, 5))
    scores = scores_from_labels(answers)
    assert_array_equal(scores_from_labels(answers[:, ::-1]), scores)


def test_answers_are_left_as_they_were():
    answers = np.array([["a", np.nan], ["b", None]], dtype=object)
    scores_from_labels(answers)
    assert np.isnan(answers[0, 1])


def test_student_of_answers_learns_them():
    X = np.linspace(-1, 1, 40)[:, None]
    labels = np.where(X[:, 0] > 0, "yes", "no")
    # One answer in four is wrong.
    answers = np.array([labels, labels, labels, labels[::-1]]).T
    clf = BDistilClassifier("precomputed", **SMALL)
    clf.set_params(max_epochs=50, learning_rate=0.05)
    clf.fit(X, labels, teacher_scores=scores_from_labels(answers, ["yes", "no"]))
    assert clf.score(X, labels) > 0.9
    assert clf.predict_proba(X).max() < 0.9


@pytest.mark.parametrize(
    ("answers", "classes", "parts"),
    [
        (np.zeros((2, 2, 2)), None, ["'answers'", "(n_samples, n_ans", "(2, 2, 2)"]),
        ([["a", "b"], ["a"]], None, ["'answers'", "one length", "None"]),
        ([], None, ["'answers'", "at least one", "none, and 0 missing"]),
        ([[None, np.nan]], ["a", "b"], ["'answers'", "none, and 2 missing"]),
        (["a", "a"], None, ["two classes", "['a']", "'classes'"]),
        (["a", "a"], ["a"], ["two classes", "['a']"]),
        (["a", "x", "y"], ["a", "b"], ["'answers'", "2 other", "'x', 'y'"]),
        (["a", 1], None, ["sorted", "all strings or all numbers"]),
        (["a"], ["a", "b", "a"], ["'classes'", "distinct", "['a', 'b', 'a']"]),
        (["a"], ["a", "b", None], ["'classes'", "no missing", "None"]),
        (["a"], [["a", "b"]], ["'classes'", "one dimension", "[['a', 'b']]"]),
        ("ab", None, ["'answers'", "array-like", "'ab'"]),
    ],
)
def test_invalid_answers(answers, classes, parts):
    with raises("scores_from_labels", *parts):
        scores_from_labels(answers, classes)


@pytest.mark.parametrize("smoothing", [0, -1, "auto"])
def test_invalid_smoothing(smoothing):
    with raises("'smoothing'", "scores_from_labels", f"Got {smoothing!r}"):
        scores_from_labels(["a", "b"], smoothing=smoothing)
