import pickle
import re
from collections import OrderedDict

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from skbdistil.exceptions import CostsUnknownWarning
from skbdistil.teachers import TorchTeacher, teacher_response

N, D, L = 40, 4, 3


pytestmark = pytest.mark.usefixtures("seeded_torch")


@pytest.fixture
def X():
    return np.random.RandomState(0).randn(N, D).astype(np.float32)


@pytest.fixture
def y(X):
    return X[:, :L].argmax(axis=1)


class Module(nn.Module):
    """Linear scores, passed through `wrap`; remembers how it was called."""

    def __init__(self, n_outputs=L, n_features=D, wrap=None):
        super().__init__()
        self.linear = nn.Linear(n_features, n_outputs)
        self.dropout = nn.Dropout(0.5)
        self.wrap = wrap
        self.sizes = []

    def forward(self, x):
        assert not self.training
        assert not self.dropout.training
        assert not torch.is_grad_enabled()
        self.sizes.append(len(x))
        scores = self.dropout(self.linear(x.flatten(1)))
        return scores if self.wrap is None else self.wrap(scores)


def expected(module, X):
    X = np.asarray(X, dtype=np.float64).reshape(len(X), -1)
    weight, bias = (p.detach().double().numpy() for p in module.linear.parameters())
    return X @ weight.T + bias


class Counting(ClassifierMixin, BaseEstimator):
    """A classifier that counts the calls of its methods."""

    def __init__(self, calls):
        self.calls = calls

    def __sklearn_clone__(self):
        return type(self)(self.calls)

    def fit(self, X, y):
        self.calls.append("fit")
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        self.calls.append("predict")
        return self.model_.predict(X)

    def decision_function(self, X):
        self.calls.append("decision_function")
        return self.model_.decision_function(X)

    def predict_proba(self, X):
        self.calls.append("predict_proba")
        return self.model_.predict_proba(X)


def classify(teacher, X, y=None, **kwargs):
    kwargs = {"regression": False, "estimator_name": "BDistilClassifier"} | kwargs
    return teacher_response(teacher, X, y, **kwargs)


def regress(teacher, X, y=None, **kwargs):
    kwargs = {"regression": True, "estimator_name": "BDistilRegressor"} | kwargs
    return teacher_response(teacher, X, y, **kwargs)


def smoothed(proba):
    return (1 - 1e-3) * proba + 1e-3 / proba.shape[1]


def centered(scores):
    return scores - scores.mean(axis=1, keepdims=True)


def fitted_net(net_class, module, X, y, **kwargs):
    net = net_class(module, train_split=None, verbose=0, max_epochs=2, **kwargs)
    return net.fit(X, y)


def raises(*parts, error=ValueError):
    """Expect an error whose message holds all parts, in any order."""
    lookahead = "".join(f"(?=.*{re.escape(part)})" for part in parts)
    return pytest.raises(error, match=f"(?s){lookahead}")


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


# teacher_response: what holds for every teacher


TEACHERS = {
    "default": lambda X, y: None,
    "unfitted": lambda X, y: LogisticRegression(),
    "frozen": lambda X, y: FrozenEstimator(LogisticRegression().fit(X, y)),
    "pipeline": lambda X, y: make_pipeline(StandardScaler(), LogisticRegression()),
    "decision function": lambda X, y: RidgeClassifier(),
    "one-hot": lambda X, y: DecisionTreeClassifier(random_state=0),
    "torch": lambda X, y: TorchTeacher(Module(len(np.unique(y)))),
    "one column": lambda X, y: Module(1 if len(np.unique(y)) == 2 else L),
    "torch probabilities": lambda X, y: TorchTeacher(
        nn.Sequential(Module(len(np.unique(y))), nn.Softmax(dim=1)), output="proba"
    ),
    "module": lambda X, y: Module(len(np.unique(y))),
    "skorch": lambda X, y: FrozenEstimator(
        fitted_net(
            NeuralNetClassifier,
            nn.Linear(D, len(np.unique(y))),
            X,
            np.unique(y, return_inverse=True)[1],
            criterion=nn.CrossEntropyLoss,
            classes=np.unique(y),
        )
    ),
    "precomputed": lambda X, y: "precomputed",
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", [[0, 1, 2], [7, -3, 5], ["b", "a", "c"], [4, 2]])
@pytest.mark.parametrize("kind", TEACHERS)
def test_scores_of_every_teacher(X, y, kind, labels, dtype):
    y = np.array(labels)[y % len(labels)]
    teacher = TEACHERS[kind](X, y)
    given = None
    if kind == "precomputed":
        given = np.random.RandomState(1).randn(N, len(labels))
    response = classify(
        teacher, X, y, dtype=dtype, teacher_scores=given, random_state=0
    )
    scores = response.scores
    assert scores.shape == (N, len(labels))
    assert scores.dtype == dtype
    assert scores.flags.c_contiguous
    assert np.isfinite(scores).all()
    assert_allclose(scores.sum(axis=1), 0, atol=1e-5 * abs(scores).max())
    assert_array_equal(response.classes, np.unique(labels))
    assert not response.single_output
    # Bounded by the smoothing, however sure the teacher is.
    if kind in ("default", "one-hot", "torch probabilities"):
        assert np.ptp(scores, axis=1).max() <= np.log(len(labels) * 1e3) + 1e-5


@pytest.mark.parametrize("kind", TEACHERS)
def test_module_whose_cost_counts(X, y, kind):
    teacher = TEACHERS[kind](X, y)
    given = np.eye(L)[y] if kind == "precomputed" else None
    module = classify(teacher, X, y, teacher_scores=given).module
    if isinstance(teacher, nn.Module):
        assert module is teacher
    elif isinstance(teacher, TorchTeacher):
        assert module is teacher.module
    elif kind == "skorch":
        assert module is teacher.estimator.module_
    else:
        assert module is None


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
    response = teacher_response(
        TorchTeacher(module, macs=7), X, regression=True, estimator_name="Reg"
    )
    assert response.macs == 7


@pytest.mark.parametrize("macs", [-1, 1.5, "7"])
def test_stated_costs_are_no_count(macs):
    teacher = TorchTeacher(nn.Linear(2, 3), macs=macs)
    for method in (teacher.costs, teacher.decision_function):
        with pytest.raises(ValueError, match="'macs' parameter of TorchTeacher must"):
            method(np.zeros((1, 2)))


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_probabilities_are_recovered(n_classes):
    rng = np.random.RandomState(0)
    X, y = rng.randn(60, 3), np.arange(60) % n_classes
    # Leaves of one row: all probabilities are 0 or 1.
    for model in [
        LogisticRegression(),
        DecisionTreeClassifier(random_state=0),
        KNeighborsClassifier(),
    ]:
        model.fit(X, y)
        response = classify(FrozenEstimator(model), X, y, dtype=np.float64)
        proba = model.predict_proba(X)
        assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-10)
        assert_array_equal(
            response.classes[response.scores.argmax(axis=1)], model.predict(X)
        )


@settings(deadline=None, max_examples=50)
@given(
    logits=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 8), st.integers(2, 5)),
        elements=st.floats(-1e6, 1e6),
    )
)
def test_logits_are_centered_and_nothing_else(logits):
    n_rows, n_classes = logits.shape
    before = logits.copy()
    X, classes = np.zeros((n_rows, 1)), np.arange(n_classes)
    response = classify(
        "precomputed", X, np.resize(classes, n_rows), teacher_scores=logits
    )
    tolerance = 1e-6 * (1 + abs(logits).max())
    assert_allclose(response.scores, centered(logits), atol=tolerance)
    assert_array_equal(logits, before)


def test_rows_stay_in_their_order(X, y):
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    order = np.random.RandomState(0).permutation(N)
    assert_allclose(
        classify(teacher, X[order]).scores,
        classify(teacher, X).scores[order],
        rtol=1e-5,
        atol=1e-6,
    )


# teacher_response: scikit-learn models


def test_unfitted_teacher_is_cloned_and_called_once(X, y):
    calls = []
    teacher = Counting(calls)
    response = classify(teacher, X, y)
    assert calls == ["fit", "predict_proba"]
    assert not hasattr(teacher, "model_")
    proba = LogisticRegression().fit(X, y).predict_proba(X)
    assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-5)


def test_frozen_teacher_is_called_once_and_not_fitted(X, y):
    calls = []
    teacher = Counting(calls).fit(X, y)
    state = pickle.dumps(teacher.model_)
    classify(FrozenEstimator(teacher), X, y[::-1])
    assert calls == ["fit", "predict_proba"]
    assert pickle.dumps(teacher.model_) == state


def test_modules_are_called_once(X, y):
    module = Module()
    for teacher in [module, TorchTeacher(module), FrozenEstimator(module)]:
        module.sizes.clear()
        response = classify(teacher, X, y)
        assert module.sizes == [N]
        assert response.module is module
        assert_allclose(response.scores, centered(expected(module, X)), atol=1e-5)


def test_bare_module_is_left_as_it_was(X, y):
    module = Module().train()
    classify(module, X, y)
    assert module.training
    assert module.dropout.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_decision_function(X, y):
    for model in [RidgeClassifier().fit(X, y), Perceptron().fit(X, y)]:
        response = classify(FrozenEstimator(model), X)
        assert_allclose(
            response.scores, centered(model.decision_function(X)), rtol=1e-4, atol=1e-5
        )


def test_binary_decision_function(X, y):
    labels = np.where(y == 0, "no", "yes")
    model = RidgeClassifier().fit(X, labels)
    decision = model.decision_function(X)
    response = classify(FrozenEstimator(model), X)
    assert_allclose(response.scores, np.c_[-decision / 2, decision / 2], rtol=1e-6)
    assert_array_equal(
        response.classes[response.scores.argmax(axis=1)], model.predict(X)
    )


def test_binary_logits_of_one_column(X, y):
    y = np.where(y == 0, "no", "yes")
    module = Module(1)
    logits = expected(module, X)[:, 0]
    columns = np.c_[-logits / 2, logits / 2]
    for teacher, teacher_scores in [
        (module, None),
        (TorchTeacher(module, classes=["no", "yes"]), None),
        ("precomputed", logits[:, None]),
    ]:
        response = classify(teacher, X, y, teacher_scores=teacher_scores)
        assert_allclose(response.scores, columns, rtol=1e-4, atol=1e-6)
        assert_array_equal(response.classes, ["no", "yes"])

    teacher = TorchTeacher(nn.Sequential(module, nn.Sigmoid()), output="proba")
    proba = smoothed(softmax(columns, axis=1))
    response = classify(teacher, X, y)
    assert_allclose(softmax(response.scores, axis=1), proba, rtol=1e-4)


@pytest.mark.parametrize("to_frame", [pd.DataFrame, pl.DataFrame])
def test_feature_names_reach_the_teacher(X, y, to_frame):
    # Without them, scikit-learn would warn. (Old versions see none in polars frames.)
    frame = to_frame({f"column {j}": X[:, j] for j in range(D)})
    unfitted = RandomForestClassifier(random_state=0)
    fitted = clone(unfitted).fit(frame, y)
    assert to_frame is pl.DataFrame or hasattr(fitted, "feature_names_in_")
    inside = classify(unfitted, frame, y).scores
    assert_array_equal(classify(FrozenEstimator(fitted), frame, y).scores, inside)
    assert np.isfinite(classify(None, frame, y, random_state=0).scores).all()


def test_rows_as_lists(X, y):
    rows = X.tolist()
    for teacher in TEACHERS:
        if teacher != "precomputed":
            classify(TEACHERS[teacher](X, y), rows, y)


def test_sample_weight_reaches_the_teacher(X, y):
    sample_weight = np.random.RandomState(0).rand(N)
    weighted = classify(LogisticRegression(), X, y, sample_weight=sample_weight)
    model = LogisticRegression().fit(X, y, sample_weight=sample_weight)
    frozen = classify(FrozenEstimator(model), X, y, sample_weight=sample_weight)
    assert_array_equal(weighted.scores, frozen.scores)
    plain = classify(LogisticRegression(), X, y)
    assert abs(weighted.scores - plain.scores).max() > 1e-3
    # No sample_weight in its fit
    classify(KNeighborsClassifier(), X, y, sample_weight=sample_weight)


def test_random_state_seeds_teachers_without_seed(X, y):
    nested = make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=3))
    seeded = clone(nested).set_params(randomforestclassifier__random_state=5)
    for teacher in [None, RandomForestClassifier(n_estimators=3), nested]:
        global_state = np.random.get_state()[1].copy()  # noqa: NPY002
        first, again, other = (
            classify(teacher, X, y, random_state=seed).scores for seed in (0, 0, 1)
        )
        assert_array_equal(first, again)
        assert abs(first - other).max() > 0
        now = np.random.get_state()[1]  # noqa: NPY002
        assert_array_equal(now, global_state)
    assert nested[-1].random_state is None
    assert_array_equal(
        classify(seeded, X, y, random_state=0).scores,
        classify(seeded, X, y, random_state=1).scores,
    )


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_default_teacher(shape):
    rng = np.random.RandomState(0)
    X, y = rng.randn(20, *shape), np.arange(20) % 2
    X += y.reshape(20, *[1] * len(shape))
    response = classify(None, X, y, random_state=0)
    assert (response.classes[response.scores.argmax(axis=1)] == y).mean() > 0.8
    targets = np.c_[X.reshape(20, -1).sum(axis=1), y]
    for target in (targets, targets[:, 0], targets[:, :1]):
        response = regress(None, X, target, random_state=0)
        assert response.scores.shape == (20, target.reshape(20, -1).shape[1])
        assert response.single_output == (target.ndim == 1)


def test_default_teacher_is_not_certain_on_its_training_rows():
    X, y = load_iris(return_X_y=True)
    proba = softmax(classify(None, X, y, random_state=0).scores, axis=1)
    assert (proba.max(axis=1) < 0.99).mean() > 0.2


# teacher_response: skorch nets


def test_frozen_net(X, y):
    net = fitted_net(
        NeuralNetClassifier, nn.Linear(D, L), X, y, criterion=nn.CrossEntropyLoss
    )
    state = {name: value.clone() for name, value in net.module_.state_dict().items()}
    proba = net.predict_proba(X)
    frame = pd.DataFrame(X, columns=list("abcd"))
    X.flags.writeable = False
    for rows in (X, X.astype(np.float64), frame, X.tolist()):
        response = classify(FrozenEstimator(net), rows, y)
        assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-5)
        assert_array_equal(
            response.classes[response.scores.argmax(axis=1)], net.predict(X)
        )
    for name, value in net.module_.state_dict().items():
        assert torch.equal(value, state[name])


def test_frozen_pipeline_with_a_net(X, y):
    net = NeuralNetClassifier(
        nn.Linear(D, L), criterion=nn.CrossEntropyLoss, train_split=None, verbose=0
    )
    pipeline = make_pipeline(StandardScaler(), net).fit(X, y)
    response = classify(FrozenEstimator(pipeline), X.astype(np.float64), y)
    proba = pipeline.predict_proba(X)
    assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-5)
    # The module sees scaled rows, so its cost would be counted on wrong ones.
    assert response.module is None


def test_unfitted_net(X, y):
    net = NeuralNetClassifier(
        nn.Linear(D, L), criterion=nn.CrossEntropyLoss, train_split=None, verbose=0
    )
    response = classify(net, X, y, random_state=0)
    assert response.scores.shape == (N, L)
    assert not net.initialized_


def test_net_without_classes(X, y):
    net = fitted_net(NeuralNet, nn.Linear(D, L), X, y, criterion=nn.CrossEntropyLoss)
    labels = np.array(["a", "b", "c"])[y]
    response = classify(FrozenEstimator(net), X, labels)
    assert_array_equal(response.classes, ["a", "b", "c"])


def test_net_that_returns_logits(X, y):
    class Loss(nn.CrossEntropyLoss):
        pass

    # skorch applies the softmax for the losses it knows; this one hides in a module.
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = Loss()

        def forward(self, scores, y):
            return self.loss(scores, y)

    net = fitted_net(NeuralNetClassifier, nn.Linear(D, L), X, y, criterion=Hidden)
    with raises(
        "BDistilClassifier",
        "probabilities",
        "NeuralNetClassifier",
        'TorchTeacher(net.module_, output="logits")',
    ):
        classify(FrozenEstimator(net), X, y)
    response = classify(TorchTeacher(net.module_, output="logits"), X, y)
    assert_allclose(response.scores, centered(net.predict_proba(X)), atol=1e-6)


def test_net_regressor(X):
    targets = X[:, :2]
    net = fitted_net(NeuralNetRegressor, nn.Linear(D, 2), X, targets)
    response = regress(FrozenEstimator(net), X.astype(np.float64), targets)
    assert_allclose(response.scores, net.predict(X), rtol=1e-6)
    assert response.module is net.module_


# teacher_response: classes


def test_own_classes_may_be_more_than_y(X, y):
    model = LogisticRegression().fit(X, np.array(["a", "b", "c"])[y])
    labels = np.where(y == 0, "a", "c")
    assert_array_equal(
        classify(FrozenEstimator(model), X, labels).classes, model.classes_
    )
    teacher = TorchTeacher(Module(), classes=["c", "b", "a"])
    assert_array_equal(classify(teacher, X, labels).classes, ["c", "b", "a"])


def test_own_classes_need_no_y(X, y):
    model = FrozenEstimator(LogisticRegression().fit(X, y))
    assert_array_equal(
        classify(model, X).scores, classify(model, X, np.zeros(N, int)).scores
    )
    response = classify(TorchTeacher(Module(), classes=["c", "b", "a"]), X)
    assert_array_equal(response.classes, ["c", "b", "a"])


@pytest.mark.parametrize("teacher", [Module(), TorchTeacher(Module()), "precomputed"])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([7, 9, 8], [7, 8, 9]),
        (["b", "c", "a"], ["a", "b", "c"]),
        ([0, 2], [0, 1, 2]),
        ([1], [0, 1, 2]),
    ],
)
def test_classes_from_y(X, teacher, labels, classes):
    y = np.resize(labels, N)
    given = np.zeros((N, L)) if isinstance(teacher, str) else None
    response = classify(teacher, X, y, teacher_scores=given)
    assert_array_equal(response.classes, classes)


@pytest.mark.parametrize("labels", [[1, 3], [-1, 2], ["a", "b"], [0, 1, 2, 3]])
def test_classes_that_y_does_not_tell(X, labels):
    parts = ["BDistilClassifier", "3 columns", f"{len(labels)} distinct", "classes=..."]
    with raises(*parts):
        classify(Module(), X, np.resize(labels, N))


@pytest.mark.parametrize(
    ("classes", "labels", "missing"),
    [
        ([0, 1, 2], [0, 3, 4], "[3, 4]"),
        (["a", "b", "c"], ["a", "z"], "['z']"),
        (["0", "1", "2"], [0, 1], "[0, 1]"),
    ],
)
def test_classes_that_do_not_cover_y(X, classes, labels, missing):
    y = np.resize(labels, N)
    model = LogisticRegression().fit(X, np.resize(classes, N))
    for teacher in [FrozenEstimator(model), TorchTeacher(Module(), classes=classes)]:
        with raises("teacher classes do not cover y", "BDistilClassifier", missing):
            classify(teacher, X, y)


def test_one_class(X):
    y = np.full(N, 5)
    model = RandomForestClassifier(n_estimators=3)
    for teacher in [None, model, FrozenEstimator(clone(model).fit(X, y))]:
        with raises("BDistilClassifier", "at least 2 classes", "Got 1 class"):
            classify(teacher, X, y)


# teacher_response: regression


def test_regression_values_are_not_changed(X):
    targets = X @ np.random.RandomState(1).randn(D, 2) * 100 + 1000
    for target in (targets, targets[:, 0], targets[:, :1]):
        model = LinearRegression().fit(X, target)
        values = model.predict(X).reshape(N, -1)
        for teacher in (LinearRegression(), FrozenEstimator(model)):
            response = regress(teacher, X, target, dtype=np.float64)
            assert_allclose(response.scores, values)
            assert response.scores.flags.c_contiguous
            assert response.classes is None
            assert response.module is None
            assert response.single_output == (target.ndim == 1)
        assert regress(FrozenEstimator(model), X).single_output == (target.ndim == 1)


@pytest.mark.parametrize("wrap", [None, torch.squeeze])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_torch_regression(X, wrap, n_outputs):
    module = Module(n_outputs, wrap=wrap)
    for teacher in (module, TorchTeacher(module, batch_size=7)):
        response = regress(teacher, X)
        assert_allclose(response.scores, expected(module, X), rtol=1e-4, atol=1e-5)
        assert response.single_output == (n_outputs == 1)
        assert response.module is module
        assert not regress(teacher, X, np.zeros((N, n_outputs))).single_output


def test_precomputed_regression(X):
    values = np.random.RandomState(0).randn(N, 2) * 10
    values.flags.writeable = False
    response = regress("precomputed", X, teacher_scores=values)
    assert_allclose(response.scores, values, rtol=1e-6)
    assert not response.single_output
    response = regress("precomputed", X, teacher_scores=values[:, 0].tolist())
    assert_allclose(response.scores, values[:, :1], rtol=1e-6)
    assert response.single_output


def test_classifier_is_no_regressor(X, y):
    for teacher in [LogisticRegression(), FrozenEstimator(StandardScaler().fit(X))]:
        with raises("'teacher'", "BDistilRegressor", "regressor"):
            regress(teacher, X, y.astype(float))
    teacher = TorchTeacher(Module(), output="proba")
    with raises("BDistilRegressor", "TorchTeacher", "output='proba'"):
        regress(teacher, X)


# teacher_response: errors


@pytest.mark.parametrize(
    ("teacher", "error"),
    [
        (5, TypeError),
        (LogisticRegression, TypeError),
        (torch.nn.functional.relu, TypeError),
        ([LogisticRegression()], TypeError),
        ("forest", ValueError),
    ],
)
def test_unknown_teacher(X, y, teacher, error):
    parts = ["'teacher'", "BDistilClassifier", "FrozenEstimator", "TorchTeacher"]
    with raises(*parts, f"Got {teacher!r}", error=error):
        classify(teacher, X, y)


def test_fitted_teacher_must_be_frozen(X, y):
    net = fitted_net(
        NeuralNetClassifier, nn.Linear(D, L), X, y, criterion=nn.CrossEntropyLoss
    )
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    for teacher in [LogisticRegression().fit(X, y), pipeline.fit(X, y), net]:
        parts = ["'teacher'", "BDistilClassifier", type(teacher).__name__, "fitted"]
        with raises(*parts, "FrozenEstimator(teacher)"):
            classify(teacher, X, y)
        classify(FrozenEstimator(teacher), X, y)


def test_estimator_that_predicts_unfitted_is_fitted_inside(X):
    target = X[:, 0].astype(np.float64)
    teacher = GaussianProcessRegressor(alpha=0.1, optimizer=None)
    assert not get_tags(teacher).requires_fit
    assert_allclose(
        regress(teacher, X, target).scores[:, 0],
        clone(teacher).fit(X, target).predict(X),
        rtol=1e-4,
        atol=1e-5,
    )
    with raises("fitted GaussianProcessRegressor", "FrozenEstimator"):
        regress(teacher.fit(X, target), X, target)


def test_frozen_but_not_fitted(X, y):
    parts = ["'teacher'", "BDistilClassifier", "unfitted LogisticRegression"]
    with raises(*parts, error=NotFittedError):
        classify(FrozenEstimator(LogisticRegression()), X, y)


@pytest.mark.parametrize("teacher", [None, LogisticRegression(), Module()])
def test_y_is_needed(X, teacher):
    with raises("BDistilClassifier requires y to be passed, but the target y is None"):
        classify(teacher, X)


def test_y_is_needed_for_precomputed_logits_and_regressors(X):
    with raises("requires y to be passed, but the target y is None"):
        classify("precomputed", X, teacher_scores=np.zeros((N, L)))
    for teacher in [None, LinearRegression()]:
        with raises("requires y to be passed, but the target y is None"):
            regress(teacher, X)


def test_teacher_scores_and_teacher_go_together(X, y):
    with raises("BDistilClassifier", "'precomputed'", "teacher_scores=None"):
        classify("precomputed", X, y)
    for teacher in [None, LogisticRegression(), Module(), "forest"]:
        with raises("teacher_scores", "BDistilClassifier", "Got teacher="):
            classify(teacher, X, y, teacher_scores=np.zeros((N, L)))


@pytest.mark.parametrize("regression", [True, False])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((N - 1, L), f"{N} rows"), ((N, L, 1), f"({N}, {L}, 1)")],
)
def test_shape_of_teacher_scores(X, y, regression, shape, message):
    ask = regress if regression else classify
    with raises("teacher_scores", message):
        ask("precomputed", X, y, teacher_scores=np.zeros(shape))


def test_teacher_scores_of_one_dimension(X, y):
    with raises("teacher_scores", "BDistilClassifier", "(n_samples, n_classes)"):
        classify("precomputed", X, y, teacher_scores=np.zeros(N))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_scores_must_be_finite(X, y, bad):
    scores = np.zeros((N, L))
    scores[3, 1] = bad
    with raises("BDistilClassifier", "finite", "teacher_scores", "float32"):
        classify("precomputed", X, y, teacher_scores=scores)
    with raises("BDistilRegressor", "finite", "teacher_scores"):
        regress("precomputed", X, teacher_scores=scores)
    if bad == 1e300:
        classify("precomputed", X, y, teacher_scores=scores, dtype=np.float64)
    for output in ("logits", "proba"):
        module = Module(wrap=lambda scores: torch.full_like(scores.double(), bad))
        with raises("BDistilClassifier", "finite", "TorchTeacher"):
            classify(TorchTeacher(module, output=output), X, y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda scores: scores,
        lambda scores: torch.sigmoid(scores),
        lambda scores: torch.log_softmax(scores, dim=1),
        lambda scores: torch.softmax(scores, dim=1) * 1.01,
    ],
)
def test_probabilities_must_be_some(X, y, wrap):
    teacher = TorchTeacher(Module(wrap=wrap), output="proba")
    parts = ["BDistilClassifier", "probabilities", "TorchTeacher"]
    with raises(*parts, 'TorchTeacher(module, output="logits")'):
        classify(teacher, X, y)


def test_rounded_probabilities_pass(X, y):
    module = Module(wrap=lambda scores: torch.softmax(scores, dim=1).half())
    response = classify(TorchTeacher(module, output="proba"), X, y, dtype=np.float64)
    log_proba = log_softmax(expected(module, X), axis=1)
    assert_allclose(
        softmax(response.scores, axis=1), smoothed(np.exp(log_proba)), atol=1e-3
    )


def test_teacher_that_only_predicts(X, y):
    teacher = VotingClassifier([("ridge", RidgeClassifier())])
    parts = ["'teacher'", "BDistilClassifier", "predict_proba or decision_function"]
    with raises(*parts, "VotingClassifier"):
        classify(teacher, X, y)
    with raises(*parts, "LinearRegression"):
        classify(LinearRegression(), X, y)


def test_multioutput_teacher(X, y):
    model = RandomForestClassifier(n_estimators=2).fit(X, np.c_[y, y])
    with raises("'teacher'", "BDistilClassifier", "single output", "2 outputs"):
        classify(FrozenEstimator(model), X, y)
    multilabel = OneVsRestClassifier(LogisticRegression()).fit(
        X, np.eye(L, dtype=int)[y]
    )
    with raises("BDistilClassifier", "probabilities", "OneVsRestClassifier"):
        classify(FrozenEstimator(multilabel), X, y)


def test_columns_and_classes_must_match(X, y):
    class Broken(LogisticRegression):
        def predict_proba(self, X):
            return super().predict_proba(X)[:, :2]

    with raises("BDistilClassifier", "2 columns for 3 classes", "Broken"):
        classify(Broken(), X, y)
