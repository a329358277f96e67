import pickle
import random
from concurrent.futures import ThreadPoolExecutor

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
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
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
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import get_tags
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from common import raises
from skbdistil._seeding import seeded
from skbdistil._teacher_scores import teacher_response, teacher_score_warning
from skbdistil.exceptions import DoubtfulTeacherWarning
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
    # Labels that tell nothing but how many there are.
    X, y = np.zeros((n_rows, 1)), np.full(n_rows, n_classes - 1)
    response = classify("precomputed", X, y, teacher_scores=logits)
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
    # The last call asks for a few labels only.
    assert calls == ["fit", "predict_proba", "predict"]
    assert not hasattr(teacher, "model_")
    proba = LogisticRegression().fit(X, y).predict_proba(X)
    assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-5)


def test_frozen_teacher_is_called_once_and_not_fitted(X, y):
    calls = []
    teacher = Counting(calls).fit(X, y)
    state = pickle.dumps(teacher.model_)
    classify(FrozenEstimator(teacher), X, y[::-1])
    assert calls == ["fit", "predict_proba", "predict"]
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
        ("precomputed", logits),
        ("precomputed", logits.tolist()),
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


# teacher_response: labels that a teacher refuses


class Numbered(ClassifierMixin, BaseEstimator):
    """A classifier that takes no labels but the numbers from 0, as XGBoost does."""

    def __init__(self, calls, random_state=None):
        self.calls = calls
        self.random_state = random_state

    def __sklearn_clone__(self):
        return type(self)(self.calls, self.random_state)

    def fit(self, X, y, sample_weight=None):
        labels = np.unique(y)
        if not np.array_equal(labels, np.arange(len(labels))):
            raise ValueError(f"Invalid classes: {labels}")
        self.calls.append((y.tolist(), self.random_state, sample_weight))
        self.model_ = LogisticRegression().fit(X, y, sample_weight)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return self.model_.predict(X)

    def predict_proba(self, X):
        return self.model_.predict_proba(X)


@pytest.mark.parametrize("labels", [["b", "c", "a"], [7, 9, -3], [1, 2, 3], [4, 2]])
def test_unfitted_teacher_that_needs_numbers_gets_those_of_the_labels(X, y, labels):
    y = np.array(labels)[y % len(labels)]
    weight = np.random.RandomState(0).rand(N)
    calls = []
    teacher = Numbered(calls)
    response = classify(teacher, X, y, sample_weight=weight, random_state=0)
    assert_array_equal(response.classes, np.unique(labels))
    # The same teacher, seeded and weighted, as one that takes the labels.
    ((numbers, seed, weights),) = calls
    assert_array_equal(np.unique(labels)[numbers], y)
    assert seed is not None
    assert weights is weight
    plain = classify(LogisticRegression(), X, y, sample_weight=weight, random_state=0)
    assert_allclose(response.scores, plain.scores, rtol=1e-5, atol=1e-6)


def test_numbers_from_0_reach_the_teacher_as_they_are(X, y):
    calls = []
    response = classify(Numbered(calls), X, y)
    assert calls[0][0] == y.tolist()
    assert_array_equal(response.classes, [0, 1, 2])


def test_labels_that_parameters_of_the_teacher_name_are_kept(X, y):
    # Numbered from 0, they would give the weight of 2 to what is 1 among y.
    y = np.array([1, 2, 3])[y]
    weighted = LogisticRegression(class_weight={2: 50})
    response = classify(weighted, X, y)
    proba = clone(weighted).fit(X, y).predict_proba(X)
    assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-5)


def test_error_of_a_teacher_that_refuses_numbers_too_is_the_first_one(X, y):
    class Broken(LogisticRegression):
        def fit(self, X, y):
            raise ValueError(f"no label {np.unique(y)[0]}")

    with raises("teacher of BDistilClassifier, Broken", "ValueError", "no label a"):
        classify(Broken(), X, np.array(["a", "b", "c"])[y])


def test_unfitted_net_with_text_labels(X, y):
    y = np.array(["b", "c", "a"])[y]
    net = NeuralNetClassifier(
        nn.Linear(D, L),
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        verbose=0,
        lr=0.5,
        max_epochs=30,
    )
    for teacher in (net, clone(net).set_params(classes=["a", "b", "c"])):
        response = classify(teacher, X, y, random_state=0)
        assert_array_equal(response.classes, ["a", "b", "c"])
        labels = response.classes[response.scores.argmax(axis=1)]
        assert (labels == y).mean() > 0.8


def test_frozen_teacher_that_knows_numbers_of_text_labels(X, y):
    model = FrozenEstimator(LogisticRegression().fit(X, y))
    with raises(
        "teacher classes do not cover y",
        "LogisticRegression",
        "LabelEncoder",
        "'precomputed'",
    ):
        classify(model, X, np.array(["a", "b", "c"])[y])
    # A class that is missing is another mistake.
    model = FrozenEstimator(LogisticRegression().fit(X, y + 3))
    with pytest.raises(ValueError, match=r"also holds \[9\]\.$"):
        classify(model, X, np.where(y == 0, 9, y + 3))


# teacher_response: randomness


class Noisy(nn.Module):
    """Scores that are drawn from the global generators of torch, NumPy and Python."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, L)

    def forward(self, x):
        noise = torch.randn(len(x), L) + torch.from_numpy(noise_of(len(x)))
        return self.linear(x) + noise + random.random()


def noise_of(n_rows):
    return np.random.randn(n_rows, L)  # noqa: NPY002


class NoisyClassifier(ClassifierMixin, BaseEstimator):
    """A classifier whose randomness no parameter controls."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.weight_ = noise_of(X.shape[1])
        return self

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]

    def decision_function(self, X):
        return X @ self.weight_


def random_teachers(X, y):
    net = NeuralNetClassifier(
        nn.Linear,
        module__in_features=D,
        module__out_features=L,
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        verbose=0,
        max_epochs=2,
    )
    with torch.random.fork_rng([]):
        fitted = clone(net).fit(X, y)
    return {
        "module": Noisy(),
        "transform": TorchTeacher(
            Module(), transform=lambda batch: batch + noise_of(len(batch))[:, :1]
        ),
        "net": net,
        "pipeline": make_pipeline(StandardScaler(), net),
        "frozen net": FrozenEstimator(fitted),
        "unfitted": NoisyClassifier(),
        "frozen": FrozenEstimator(NoisyClassifier().fit(X, y)),
        "default": None,
    }


RANDOM_KINDS = list(random_teachers(np.zeros((2, D), np.float32), np.array([0, 1])))


def generators():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().tolist(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        random.getstate(),
    )


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_seed_decides_what_a_random_teacher_says_and_leaves_no_trace(X, y, kind):
    teacher = random_teachers(X, y)[kind]
    before = generators()
    first = classify(teacher, X, y, random_state=0)
    assert generators() == before
    # As if something else had drawn numbers in between.
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    again = classify(teacher, X, y, random_state=0)
    assert_array_equal(first.scores, again.scores)
    if first.module is not None:
        assert torch.equal(first.module_input, again.module_input)
    other = classify(teacher, X, y, random_state=1)
    same = np.array_equal(first.scores, other.scores)
    assert same == (kind in ("frozen net", "frozen"))


def test_teacher_without_a_seed_draws_from_the_generators_as_they_are(X, y):
    with seeded(3, torch.device("cpu")):
        first = classify(Noisy(), X, y).scores
    with seeded(3, torch.device("cpu")):
        assert_array_equal(classify(Noisy(), X, y).scores, first)


@pytest.mark.parametrize("kind", ["module", "net"])
def test_teachers_in_threads_leave_the_generators_as_they_were(X, y, kind):
    # What they draw is not promised: the generators are global to the process.
    teachers = [random_teachers(X, y)[kind] for _ in range(4)]
    before = generators()
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda seed: classify(teachers[seed], X, y, random_state=seed), range(4)
            )
        )
    assert generators() == before


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


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda X: np.ascontiguousarray(X[::-1])[::-1],
        lambda X: np.ascontiguousarray(X[:, ::-1])[:, ::-1],
        lambda X: X.astype(">f4"),
        lambda X: X.astype(np.longdouble),
        lambda X: X.astype(np.float64),
        lambda X: torch.from_numpy(X),
    ],
    ids=["rows", "features", "big", "longdouble", "double", "tensor"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_net_gets_rows_of_every_layout(X, y, rearranged, frozen):
    net = NeuralNetClassifier(
        nn.Linear,
        module__in_features=D,
        module__out_features=L,
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        verbose=0,
        max_epochs=2,
    )
    if frozen:
        net = FrozenEstimator(net.fit(X, y))
    expected = classify(net, X, y, random_state=0)
    response = classify(net, rearranged(X), y, random_state=0)
    assert_array_equal(response.scores, expected.scores)


def test_unfitted_net_gets_rows_of_the_dtype_of_its_module(X, y):
    class Double(nn.Linear):
        def __init__(self):
            super().__init__(D, L, dtype=torch.float64)

    for module in (Double, Double()):
        net = NeuralNetClassifier(
            module, criterion=nn.CrossEntropyLoss, train_split=None, verbose=0
        )
        assert classify(net, X, y, random_state=0).scores.shape == (N, L)


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


# teacher_response: output that is not what it is said to be


def softmaxed(scores):
    return torch.softmax(scores, dim=1)


def test_probabilities_of_a_module_that_is_said_to_return_logits(X, y):
    module = Module(wrap=softmaxed)
    for teacher in (module, TorchTeacher(module), FrozenEstimator(module)):
        warning = classify(teacher, X, y).warning
        assert isinstance(warning, DoubtfulTeacherWarning)
        for part in ("BDistilClassifier", "TorchTeacher(Module)", 'output="proba"'):
            assert part in str(warning)
    assert classify(TorchTeacher(module, output="proba"), X, y).warning is None
    assert classify(Module(wrap=torch.sigmoid), X, y).warning is None
    assert regress(module, X).warning is None


def test_probabilities_of_one_column_that_are_said_to_be_logits(X, y):
    y = y == 0
    module = Module(1, wrap=torch.sigmoid)
    assert 'output="proba"' in str(classify(module, X, y).warning)
    assert classify(TorchTeacher(module, output="proba"), X, y).warning is None
    assert classify(Module(1), X, y).warning is None


def test_probabilities_passed_as_teacher_scores(X, y):
    proba = LogisticRegression().fit(X, y).predict_proba(X)
    warning = classify("precomputed", X, y, teacher_scores=proba).warning
    assert isinstance(warning, DoubtfulTeacherWarning)
    assert "np.log(p + 1e-3)" in str(warning)
    # What it says helps.
    logits = np.log(proba + 1e-3)
    response = classify("precomputed", X, y, teacher_scores=logits)
    assert response.warning is None
    assert_allclose(softmax(response.scores, axis=1), proba, atol=2e-3)


def test_probabilities_of_the_second_class_passed_as_teacher_scores(X, y):
    y = y == 0
    p = LogisticRegression().fit(X, y).predict_proba(X)[:, 1]
    warning = classify("precomputed", X, y, teacher_scores=p).warning
    assert "np.log(np.c_[1 - p, p] + 1e-3)" in str(warning)
    logits = np.log(np.c_[1 - p, p] + 1e-3)
    response = classify("precomputed", X, y, teacher_scores=logits)
    assert response.warning is None
    assert_allclose(softmax(response.scores, axis=1)[:, 1], p, atol=2e-3)


@pytest.mark.parametrize("kind", TEACHERS)
def test_honest_teachers_are_not_doubted(X, y, kind):
    teacher = TEACHERS[kind](X, y)
    given = np.random.RandomState(1).randn(N, L) if kind == "precomputed" else None
    assert classify(teacher, X, y, teacher_scores=given).warning is None


@pytest.mark.parametrize("labels", [[0, 1, 2], ["b", "a", "c"]])
def test_pairwise_columns_are_no_classes(X, y, labels):
    y = np.array(labels)[y]
    pairwise = SVC(decision_function_shape="ovo")
    for teacher in (pairwise, FrozenEstimator(clone(pairwise).fit(X, y))):
        with raises("BDistilClassifier", "predict of SVC", "'ovr'"):
            classify(teacher, X, y)
    for teacher in (SVC(), FrozenEstimator(SVC().fit(X, y))):
        classify(teacher, X, y)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2], ["a", "b", "c"]])
def test_columns_in_another_order_than_the_classes(X, y, labels):
    class Reordered(LogisticRegression):
        def predict_proba(self, X):
            return np.roll(super().predict_proba(X), 1, axis=1)

    y = np.array(labels)[y % len(labels)]
    with raises("BDistilClassifier", "predict of Reordered"):
        classify(Reordered(), X, y)
    with raises("BDistilClassifier", "predict of Reordered"):
        classify(FrozenEstimator(Reordered().fit(X, y)), X)


@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.8, 0.99])
def test_moved_threshold_is_no_disagreement(X, y, threshold):
    y = (y == 0).astype(int)
    model = FixedThresholdClassifier(LogisticRegression(), threshold=threshold)
    proba = clone(model).fit(X, y).predict_proba(X)
    response = classify(model, X, y)
    assert_allclose(softmax(response.scores, axis=1), smoothed(proba), rtol=1e-5)


def test_teacher_that_cannot_decide_is_no_disagreement(X, y):
    # It draws its labels, and all its scores are equal.
    classify(DummyClassifier(strategy="uniform", random_state=0), X, y)


def test_some_disagreement_is_allowed(X, y):
    class Stubborn(LogisticRegression):
        def predict(self, X):
            predicted = super().predict(X)
            predicted[: len(X) // 3] = 0
            return predicted

    classify(Stubborn(), X, y)


def test_labels_are_asked_of_few_rows():
    class Patient(LogisticRegression):
        def predict(self, X):
            asked.append(X)
            return super().predict(X)

    asked = []
    rng = np.random.RandomState(0)
    X, y = rng.randn(1000, D), np.arange(1000) // 500
    classify(Patient(), X, y)
    (rows,) = asked
    assert len(rows) == 100
    # From all over the rows, which may be sorted.
    positions = [np.flatnonzero((X == row).all(axis=1))[0] for row in rows]
    assert_allclose(np.diff(positions), 10, atol=1)


# teacher_response: classes turned into yes and no


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2, 3], ["a", "b", "c"]])
def test_multiclass_teacher_and_one_class_against_the_rest(X, y, labels):
    y = np.array(labels)[y]
    model = FrozenEstimator(LogisticRegression().fit(X, y))
    with raises("LogisticRegression", "BDistilClassifier", "OneVsRestClassifier"):
        classify(model, X, (y == labels[0]).astype(int))
    with raises("LogisticRegression", "BDistilClassifier", "OneVsOneClassifier"):
        pair = y != labels[1]
        classify(model, X[pair], (y[pair] == labels[2]).astype(int))


def test_rows_of_two_of_the_classes_are_not_one_class_against_the_rest(X, y):
    model = FrozenEstimator(LogisticRegression().fit(X, y))
    known = y < 2
    assert_array_equal(classify(model, X[known], y[known]).classes, [0, 1, 2])
    # Even where the teacher is no better than a constant.
    rare = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:1]]
    weak = FrozenEstimator(LogisticRegression(C=1e-6).fit(X, y))
    classify(weak, X[rare], y[rare])


# teacher_score_warning


def doubt(response, score, y, sample_weight=None):
    return teacher_score_warning(
        response, score, y, sample_weight, estimator_name="BDistilClassifier"
    )


def test_teacher_no_better_than_the_most_frequent_class(X, y):
    model = LogisticRegression().fit(X, y)
    response = classify(FrozenEstimator(model), X, y)
    y = np.repeat(["a", "b"], [30, 10])
    for score in (0.0, 0.5, 0.75, 0.75 + 1e-12):
        warning = doubt(response, score, y)
        assert isinstance(warning, DoubtfulTeacherWarning)
        for part in ("BDistilClassifier", "LogisticRegression", "Pipeline", "say a"):
            assert part in str(warning)
    assert doubt(response, 0.76, y) is None
    assert doubt(response, 1.0, y) is None


def test_most_frequent_class_is_that_of_the_most_weight(X, y):
    response = classify(Module(), X, y)
    y, weight = np.repeat(["a", "b"], [30, 10]), np.repeat([0.1, 1.7], [30, 10])
    share = 17 / 20
    assert doubt(response, share, y, weight) is not None
    assert "say b" in str(doubt(response, 0.8, y, weight))
    assert doubt(response, 0.8, y) is None
    assert doubt(response, share + 0.01, y, weight) is None


def test_regression_no_better_than_the_mean(X):
    targets = X[:, :1]
    response = regress(Module(1), X, targets)
    for score in (-3.0, 0.0):
        assert "Pipeline" in str(doubt(response, score, targets))
    assert doubt(response, 0.01, targets) is None


def test_scores_of_labels_that_are_all_alike_say_nothing(X, y):
    assert doubt(classify(Module(), X, y), 1.0, np.zeros(N)) is None
    assert doubt(regress(Module(1), X), 0.0, np.ones((N, 1))) is None


def test_teacher_fitted_to_noise_is_not_doubted(X, y):
    for teacher in (None, DummyClassifier()):
        assert doubt(classify(teacher, X, y), 0.1, y) is None
    assert doubt(regress(None, X, X[:, 0]), -1.0, X[:, 0]) is None


# teacher_response: errors


class Failing(ClassifierMixin, BaseEstimator):
    """A classifier that raises in the method of a name."""

    def __init__(self, method, error):
        self.method = method
        self.error = error

    def _fail_in(self, method):
        if method == self.method:
            raise self.error

    def fit(self, X, y):
        self._fail_in("fit")
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        self._fail_in("predict_proba")
        return np.full((len(X), L), 1 / L)

    def predict(self, X):
        self._fail_in("predict")
        return np.full(len(X), self.classes_[0])


@pytest.mark.parametrize("method", ["fit", "predict_proba", "predict"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("too cold"), ValueError),
        (KeyError("too cold"), RuntimeError),
        (TypeError("too cold"), RuntimeError),
    ],
)
def test_error_of_a_teacher_names_it(X, y, method, error, kind):
    parts = [f"{N} row(s) of shape ({D},)", type(error).__name__, "too cold"]
    with raises("teacher of BDistilClassifier, Failing", *parts, error=kind) as caught:
        classify(Failing(method, error), X, y)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, type(error))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, DeprecationWarning])
def test_what_is_no_error_of_the_teacher_goes_up_as_it_is(X, y, error):
    with pytest.raises(error):
        classify(Failing("predict_proba", error("stop")), X, y)


def test_torch_teacher_of_rows_of_another_shape(X, y):
    net = fitted_net(
        NeuralNetClassifier, nn.Linear(D, L), X, y, criterion=nn.CrossEntropyLoss
    )
    what = f"{N} row(s) of shape ({D - 1},)"
    for teacher, name in [
        (Module(), "TorchTeacher(Module)"),
        (TorchTeacher(Module()), "TorchTeacher(Module)"),
        (FrozenEstimator(net), "NeuralNetClassifier"),
    ]:
        with raises("BDistilClassifier", name, what, "mat1", error=RuntimeError):
            classify(teacher, X[:, 1:], y)
    with raises("BDistilRegressor", "TorchTeacher(Module)", what, error=RuntimeError):
        regress(Module(), X[:, 1:])


def test_rows_without_finite_scores_are_counted(X, y):
    scores = np.zeros((N, L))
    scores[[3, 7], 1] = np.nan
    with raises("teacher_scores", f"2 of {N} row(s)", "position 3"):
        classify("precomputed", X, y, teacher_scores=scores)
    with raises("Module", f"1 of {N} row(s)", "position 5"):
        regress(Module(1, wrap=lambda s: s / (torch.arange(N) != 5)[:, None] * 0), X)


def test_scores_that_overflow_where_they_are_centred(X, y):
    scores = np.where(np.eye(L)[y] > 0, 3e38, -3e38)
    with raises("BDistilClassifier", "finite", "teacher_scores", "float32"):
        classify("precomputed", X, y, teacher_scores=scores)
    response = classify("precomputed", X, y, teacher_scores=scores, dtype=np.float64)
    assert np.isfinite(response.scores).all()


@pytest.mark.parametrize("kind", ["bfloat16", "gradient", "big-endian", "reversed"])
@pytest.mark.parametrize("regression", [False, True])
def test_teacher_scores_of_every_kind_of_array(X, y, kind, regression):
    values = np.round(np.random.RandomState(0).randn(N, L), 1).astype(np.float32)
    # Exact in bfloat16.
    values = np.round(values * 8) / 8
    given = {
        "bfloat16": torch.from_numpy(values).bfloat16(),
        "gradient": torch.from_numpy(values).requires_grad_(),
        "big-endian": values.astype(">f8"),
        "reversed": np.ascontiguousarray(values[::-1])[::-1],
    }[kind]
    ask = regress if regression else classify
    response = ask("precomputed", X, None if regression else y, teacher_scores=given)
    expected = values if regression else centered(values)
    assert_allclose(response.scores, expected, atol=1e-6)


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


def test_y_is_needed_for_regressors_that_are_fitted(X):
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


def test_teacher_scores_of_one_dimension_for_three_classes(X, y):
    labels = np.array(["a", "b", "c"])[y]
    with raises("BDistilClassifier", "2 columns", "3 distinct labels"):
        classify("precomputed", X, labels, teacher_scores=np.zeros(N))


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


def test_scores_of_a_teacher_that_only_predicts_are_those_of_its_labels(X, y):
    teacher = VotingClassifier([("ridge", RidgeClassifier())])
    response = classify(teacher, X, y)
    labels = clone(teacher).fit(X, y).predict(X)
    assert_allclose(response.scores, scores_from_labels(labels, np.unique(y)))
    assert_array_equal(response.classes, np.unique(y))


def test_teacher_that_predicts_no_labels(X, y):
    parts = ["'teacher'", "BDistilClassifier", "predict_proba, decision_function or"]
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


# Rows that the teacher is fitted to, and further rows


@pytest.mark.parametrize(
    "teacher", [LogisticRegression(), make_pipeline(StandardScaler(), SVC())]
)
def test_unfitted_teacher_is_fitted_to_some_rows_and_asked_about_others(teacher, X, y):
    rows, others = np.arange(0, N, 2), np.arange(1, N, 2)
    fitted = FrozenEstimator(clone(teacher).fit(X[rows], y[rows]))
    found = classify(
        teacher, X[rows], y[rows], X_asked=X[others], y_asked=y[others], transfers=[X]
    )
    assert_array_equal(found.scores, classify(fitted, X[others], y[others]).scores)
    assert_array_equal(found.transfer_scores, classify(fitted, X, y).scores)
    assert found.fitted_here
    assert found.n_calls == len(others) + N


@pytest.mark.parametrize("name", sorted(TEACHERS.keys() - {"precomputed"}))
def test_response_predicts_labels_of_further_rows(name, X, y):
    response = classify(TEACHERS[name](X, y), X, y, random_state=0)
    predicted = response.predict(X[:7])
    assert_array_equal(predicted, response.classes[response.scores[:7].argmax(axis=1)])


@pytest.mark.parametrize("teacher", [LinearRegression(), Module(1), None])
def test_response_predicts_targets_of_further_rows(teacher, X):
    y = X[:, 0].astype(float)
    response = regress(teacher, X, y, random_state=0)
    predicted = response.predict(X[:7])
    assert_allclose(predicted.reshape(7, 1), response.scores[:7], rtol=1e-6)


def test_precomputed_scores_predict_nothing_further(y):
    scores = np.eye(L)[y]
    assert classify("precomputed", y, y, teacher_scores=2 * scores).predict is None


def test_default_teacher_predicts_images():
    X = np.random.RandomState(0).rand(N, 1, 3, 3)
    y = (X[:, 0, 1, 1] > 0.5).astype(int)
    response = classify(None, X, y)
    assert response.predict(X[:2]).shape == (2,)
