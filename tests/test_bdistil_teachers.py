"""Every kind of teacher through the estimators, as users combine them."""

import pickle
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.dataset import Dataset
from torch import nn

from common import SMALL, raises
from skbdistil import BDistilClassifier, BDistilRegressor, TorchTeacher
from skbdistil.exceptions import CostsUnknownWarning, DoubtfulTeacherWarning

N, D, L = 60, 4, 3
NAMES = [f"feature {i}" for i in range(D)]
LABELS = np.array(["a", "b", "c"])
CV = KFold(2)

# No student of so short a training is turned down.
SETTINGS = {**SMALL, "n_estimators": 2}
classifier = partial(BDistilClassifier, **SETTINGS)
regressor = partial(BDistilRegressor, **SETTINGS)


pytestmark = pytest.mark.usefixtures("seeded_torch")

# Where what counts is not what the teacher knows.
untrained = pytest.mark.filterwarnings(
    "ignore::skbdistil.exceptions.DoubtfulTeacherWarning"
)


@pytest.fixture
def X():
    return np.random.RandomState(0).randn(N, D).astype(np.float32)


@pytest.fixture
def y(X):
    return LABELS[X[:, :L].argmax(axis=1)]


@pytest.fixture
def targets(X):
    return np.c_[X[:, 0] * 100 + 5, X[:, 1] - X[:, 2]].astype(np.float32)


@pytest.fixture
def images():
    # All classes in every fold; brighter images have higher ones.
    rng = np.random.RandomState(0)
    y = np.arange(N) % L
    X = rng.randint(0, 100, (N, 1, 8, 8)) + 50 * y.reshape(N, 1, 1, 1)
    return X.astype(np.uint8), LABELS[y]


class Log(list):
    """A list that copies share, so that a clone of its owner is counted as well."""

    def __deepcopy__(self, memo):
        return self


class Module(nn.Module):
    """One feature per output, passed through `wrap`; notes the rows of each call."""

    def __init__(self, n_outputs=L, wrap=None, log=None):
        super().__init__()
        self.linear = nn.Linear(D, n_outputs)
        nn.init.eye_(self.linear.weight)
        self.wrap = wrap
        self.rows = Log() if log is None else log

    def forward(self, x):
        self.rows.append(len(x))
        scores = self.linear(x)
        return scores if self.wrap is None else self.wrap(scores)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, L)
        )

    def forward(self, x):
        assert x.min() >= 0
        assert x.max() <= 1
        return self.layers(x)


class OfItsOwn(nn.Module):
    """Has parameters of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(D, L))

    def forward(self, x):
        return x @ self.weight


class Counting(ClassifierMixin, BaseEstimator):
    """A classifier that notes the calls of its methods and their rows."""

    def __init__(self, calls):
        self.calls = calls

    def fit(self, X, y):
        self.calls.append(("fit", len(X)))
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        self.calls.append(("predict", len(X)))
        return self.model_.predict(X)

    def decision_function(self, X):
        self.calls.append(("decision_function", len(X)))
        return self.model_.decision_function(X)

    def predict_proba(self, X):
        self.calls.append(("predict_proba", len(X)))
        return self.model_.predict_proba(X)


class CountingRegressor(RegressorMixin, BaseEstimator):
    """A regressor that notes the calls of its methods and their rows."""

    def __init__(self, calls):
        self.calls = calls

    def fit(self, X, y):
        self.calls.append(("fit", len(X)))
        self.model_ = Ridge().fit(X, y)
        return self

    def predict(self, X):
        self.calls.append(("predict", len(X)))
        return self.model_.predict(X)


def to_unit(batch):
    return batch / np.float32(255)


def in_tuple(scores):
    return None, scores


def in_mapping(scores):
    return {"hidden": None, "logits": scores}


def to_proba(scores):
    return torch.softmax(scores, dim=1)


def fitted_net(net_class, module, X, y, **kwargs):
    net = net_class(module, train_split=None, verbose=0, max_epochs=2, **kwargs)
    return net.fit(np.array(X), y)


def fitted_classifier_net(X, y, module=None):
    # skorch learns the numbers of the classes, and is told what they stand for.
    return fitted_net(
        NeuralNetClassifier,
        Module() if module is None else module,
        X,
        np.searchsorted(LABELS, y),
        criterion=nn.CrossEntropyLoss,
        classes=list(LABELS),
    )


def by_names(X, model):
    """A pipeline that finds the columns of a frame by their names."""
    names = NAMES if isinstance(X, pd.DataFrame) else range(D)
    picked = [(StandardScaler(), list(names[:2])), ("passthrough", list(names[2:]))]
    return make_pipeline(make_column_transformer(*picked), model)


# What makes a teacher, given the rows and labels that it is fitted to.
CLASSIFIERS = {
    "unfitted forest": lambda X, y: RandomForestClassifier(n_estimators=3),
    "unfitted pipeline": lambda X, y: by_names(X, LogisticRegression()),
    "unfitted decision": lambda X, y: LinearSVC(),
    "default": lambda X, y: None,
    "frozen forest": lambda X, y: FrozenEstimator(
        RandomForestClassifier(n_estimators=3, random_state=0).fit(X, y)
    ),
    "frozen pipeline": lambda X, y: FrozenEstimator(
        by_names(X, LogisticRegression()).fit(X, y)
    ),
    "frozen net": lambda X, y: FrozenEstimator(fitted_classifier_net(X, y)),
    "logits": lambda X, y: TorchTeacher(Module(), classes=LABELS),
    "probabilities": lambda X, y: TorchTeacher(
        Module(wrap=to_proba), output="proba", classes=LABELS
    ),
    "tuple": lambda X, y: TorchTeacher(Module(wrap=in_tuple), key=1, classes=LABELS),
    "mapping": lambda X, y: TorchTeacher(
        Module(wrap=in_mapping), key="logits", classes=LABELS
    ),
    "module": lambda X, y: Module(),
}
REGRESSORS = {
    "unfitted forest": lambda X, y: RandomForestRegressor(n_estimators=3),
    "unfitted pipeline": lambda X, y: by_names(X, Ridge()),
    "default": lambda X, y: None,
    "frozen ridge": lambda X, y: FrozenEstimator(Ridge().fit(X, y)),
    "frozen pipeline": lambda X, y: FrozenEstimator(by_names(X, Ridge()).fit(X, y)),
    "frozen net": lambda X, y: FrozenEstimator(
        fitted_net(NeuralNetRegressor, Module(2), X, y, lr=1e-6)
    ),
    "torch": lambda X, y: TorchTeacher(Module(2)),
    "tuple": lambda X, y: TorchTeacher(Module(2, wrap=in_tuple), key=1),
    "module": lambda X, y: Module(2),
}
KINDS = [("classifier", kind) for kind in CLASSIFIERS]
KINDS += [("regressor", kind) for kind in REGRESSORS]


def made(task, kind, X, y, targets):
    """Estimator around a fresh teacher of a kind, and what to fit it to."""
    if task == "classifier":
        return classifier(CLASSIFIERS[kind](X, y)), y
    return regressor(REGRESSORS[kind](X, targets)), targets


def state_of(module):
    return pickle.dumps([p.detach().numpy().copy() for p in module.parameters()])


# Every kind: clone, search, pickle, names of columns


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_clone_and_pickle(task, kind, X, y, targets):
    estimator, y = made(task, kind, X, y, targets)
    estimator = clone(estimator)
    fitted = estimator.fit(X, y)
    predicted = fitted.predict(X)
    assert predicted.shape == y.shape
    assert_array_equal(clone(fitted).fit(X, y).predict(X), predicted)
    for loaded in (pickle.loads(pickle.dumps(fitted)), deepcopy(fitted)):
        assert_array_equal(loaded.predict(X), predicted)
        assert_array_equal(loaded.fit(X, y).predict(X), predicted)


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_search(task, kind, X, y, targets):
    estimator, y = made(task, kind, X, y, targets)
    search = GridSearchCV(
        estimator, {"n_estimators": [1, 2]}, cv=CV, error_score="raise"
    ).fit(X, y)
    assert search.best_estimator_.teacher_score_ is not None
    assert search.predict(X).shape == y.shape
    assert isinstance(pickle.loads(pickle.dumps(search)), GridSearchCV)


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_pandas(task, kind, X, y, targets):
    frame = pd.DataFrame(X, columns=NAMES)
    estimator, y = made(task, kind, frame, y, targets)
    estimator.fit(frame, y)
    assert_array_equal(estimator.feature_names_in_, NAMES)
    assert estimator.predict(frame).shape == y.shape
    with raises("feature names should match"):
        estimator.predict(frame[NAMES[::-1]])


# What the students see of a teacher


def test_zero_probabilities(X, y):
    teacher = RandomForestClassifier(n_estimators=3, random_state=0).fit(X, y)
    assert (teacher.predict_proba(X) == 0).any()
    clf = classifier(FrozenEstimator(teacher)).fit(X, y)
    # A probability of 0 counts as 1e-3 / 3.
    assert np.isfinite(clf.teacher_bound_)
    assert clf.teacher_bound_ <= np.log(3e3)
    assert np.isfinite(clf.decision_function(X)).all()


def test_logits_and_probabilities_agree(X, y):
    torch.manual_seed(1)
    module = Module()
    proba = deepcopy(module)
    proba.wrap = to_proba
    fits = [
        classifier(TorchTeacher(teacher, output=output, classes=LABELS)).fit(X, y)
        for teacher, output in [(module, "logits"), (proba, "proba")]
    ]
    first, second = (fit.decision_function(X) for fit in fits)
    # But for the smoothing of probabilities.
    assert_allclose(first, second, atol=0.05)


@pytest.mark.parametrize(
    ("wrap", "key"), [(in_tuple, 1), (in_tuple, -1), (in_mapping, "logits")]
)
def test_outputs_by_key(X, y, wrap, key):
    module = Module()
    expected = classifier(TorchTeacher(module, classes=LABELS)).fit(X, y)
    wrapped = deepcopy(module)
    wrapped.wrap = wrap
    clf = classifier(TorchTeacher(wrapped, key=key, classes=LABELS)).fit(X, y)
    assert_array_equal(clf.decision_function(X), expected.decision_function(X))
    with raises("'key' parameter", "Got None"):
        classifier(TorchTeacher(wrapped, classes=LABELS)).fit(X, y)


def test_classes_of_the_teacher_are_sorted_with_their_columns(X):
    module = Module()
    expected = module.linear(torch.from_numpy(X)).detach().numpy()
    teacher = TorchTeacher(module, classes=["c", "a", "b"])
    labels = np.array(["c", "a", "b"])[expected.argmax(axis=1)]
    clf = classifier(teacher, max_epochs=100).fit(X, labels)
    assert_array_equal(clf.classes_, LABELS)
    assert clf.teacher_score_ == 1
    assert clf.score(X, labels) > 0.8


def test_classes_that_only_the_teacher_knows(X, y):
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    known = y != "b"
    clf = classifier(teacher).fit(X[known], y[known])
    assert_array_equal(clf.classes_, LABELS)
    assert clf.predict_proba(X).shape == (N, L)


@untrained
@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (64,)])
def test_uint8_images(images, shape):
    X, y = images
    X = X.reshape(N, *shape)
    # It looks at its data, so that it cannot be counted.
    macs = 2 * 36 * 9 + 72 * 3
    teacher = TorchTeacher(Convolution(), transform=to_image, classes=LABELS, macs=macs)
    clf = clone(classifier(teacher))
    search = GridSearchCV(clf, {"n_estimators": [1, 2]}, cv=CV, error_score="raise")
    search.fit(X, y)
    best = search.best_estimator_
    assert best.input_shape_ == shape
    assert best.teacher is teacher
    assert best.teacher_costs_.macs == macs
    assert_array_equal(pickle.loads(pickle.dumps(search)).predict(X), best.predict(X))
    assert best.teacher_score_ == accuracy_score(y, teacher.predict(X))


def to_image(batch):
    return to_unit(batch).reshape(-1, 1, 8, 8)


# The default teacher


@pytest.mark.parametrize("shape", [(8, 2), (1, 4, 4)])
def test_default_teacher_of_rows_of_several_axes(shape):
    X = np.random.RandomState(0).randn(N, *shape)
    y = np.arange(N) % 2
    X += y.reshape(N, *[1] * len(shape))
    clf = classifier(student="auto").fit(X, y)
    assert clf.teacher_score_ > 0.9
    assert clf.predict(X).shape == (N,)
    values = np.c_[X.reshape(N, -1).sum(axis=1), y, -y]
    reg = regressor(student="auto").fit(X, values)
    assert reg.predict(X).shape == values.shape
    assert reg.teacher_score_ > 0.5


@pytest.mark.parametrize("columns", [slice(None), slice(1), 0])
def test_default_teacher_of_targets(X, targets, columns):
    values = targets[:, columns]
    reg = regressor().fit(X, values)
    assert reg.predict(X).shape == values.shape
    assert reg.teacher_score_ > 0.5
    assert reg.teacher_costs_ is None


# The teacher is called once per fit, and left as it was


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("options", [{}, {"refine": "rounds", "early_stopping": True}])
def test_scikit_learn_teacher_is_called_once(X, y, targets, frozen, options):
    for make, counting, target, method in [
        (classifier, Counting, y, "predict_proba"),
        (regressor, CountingRegressor, targets, "predict"),
    ]:
        calls = Log()
        teacher = counting(calls)
        if frozen:
            teacher = FrozenEstimator(teacher.fit(X, target))
            calls.clear()
        make(teacher, n_estimators=3, **options).fit(X, target)
        asked = [(method, N)]
        if make is classifier:
            # For a few labels, with which its probabilities must agree.
            asked += [("predict", N)]
        assert calls == [("fit", N)] * (not frozen) + asked


TORCH_KINDS = ["module", "TorchTeacher", "frozen net"]


def torch_teacher(kind, module, X, y):
    if kind == "module":
        return module
    if kind == "TorchTeacher":
        return TorchTeacher(module, batch_size=16)
    net = fitted_classifier_net(X, y, module)
    module.zero_grad()
    module.rows.clear()
    return FrozenEstimator(net)


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("options", [{}, {"refine": "rounds", "early_stopping": True}])
def test_torch_teacher_is_called_once(X, y, kind, options):
    module = Module()
    teacher = torch_teacher(kind, module, X, y)
    classifier(teacher, n_estimators=3, **options).fit(X, y)
    # One row more: its multiply-accumulates are counted by running it.
    assert sum(module.rows) == N + 1
    assert module.rows.count(1) == 1


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_search_leaves_a_torch_teacher_alone(X, y, kind):
    module = Module()
    teacher = torch_teacher(kind, module, X, y)
    before, training = state_of(module), module.training
    search = GridSearchCV(classifier(teacher), {"n_estimators": [1, 2]}, cv=CV)
    search.fit(X, y)
    assert state_of(module) == before
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    if kind != "frozen net":
        # skorch leaves its module in evaluation mode.
        assert module.training == training
    # Two folds of half the rows, twice, and all rows; five single ones for the costs.
    assert sum(module.rows) == 3 * N + 5
    used = search.best_estimator_.teacher
    if kind == "module":
        # scikit-learn copies parameters that are not estimators.
        assert state_of(used) == before
    else:
        assert used is teacher


def test_search_leaves_a_frozen_teacher_alone(X, y):
    calls = Log()
    fitted = Counting(calls).fit(X, y)
    model, coefficients = fitted.model_, fitted.model_.coef_.copy()
    calls.clear()
    teacher = FrozenEstimator(fitted)
    search = GridSearchCV(classifier(teacher), {"n_estimators": [1, 2]}, cv=CV)
    search.fit(X, y)
    assert search.best_estimator_.teacher is teacher
    assert search.best_estimator_.teacher.estimator is fitted
    assert fitted.model_ is model
    assert_array_equal(model.coef_, coefficients)
    asked = [("predict_proba", N // 2), ("predict", N // 2)] * 4
    assert calls == [*asked, ("predict_proba", N), ("predict", N)]


def test_unfitted_teacher_stays_unfitted_and_out_of_the_pickle(X, y):
    teacher = RandomForestClassifier(n_estimators=3)
    clf = classifier(teacher).fit(X, y)
    assert not hasattr(teacher, "classes_")
    larger = classifier(RandomForestClassifier(n_estimators=200)).fit(X, y)
    assert abs(len(pickle.dumps(larger)) - len(pickle.dumps(clf))) < 100


def test_parameters_of_the_teacher_are_searched(X, y):
    search = GridSearchCV(
        classifier(RandomForestClassifier(n_estimators=2)),
        [{"teacher__max_depth": [1, 3]}, {"teacher": [None, LogisticRegression()]}],
        cv=CV,
        error_score="raise",
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 4


# Precomputed scores


@pytest.fixture
def G(X):
    """Scores whose largest entry tells which rows they are of."""
    scores = X[:, :L].copy()
    scores[np.arange(N), X[:, :L].argmax(axis=1)] += 10 + np.arange(N)[::-1] % 31
    return scores


def bound_of(scores):
    return np.abs(scores - scores.mean(axis=1, keepdims=True)).max()


class Recorder:
    """A scorer that keeps the bound of what it scores."""

    def __init__(self):
        self.bounds = []

    def __call__(self, estimator, X, y):
        estimator = estimator[-1] if hasattr(estimator, "steps") else estimator
        self.bounds.append(estimator.teacher_bound_)
        return estimator.n_estimators_


def expected_bounds(X, G, n_candidates):
    return np.tile([bound_of(G[train]) for train, _ in CV.split(X)], n_candidates)


def test_precomputed(X, y, G):
    clf = clone(classifier("precomputed")).fit(X, y, teacher_scores=G)
    assert clf.teacher_score_ == 1
    assert clf.teacher_costs_ is None
    assert_allclose(clf.teacher_bound_, bound_of(G), rtol=1e-6)
    shifted = classifier("precomputed").fit(
        pd.DataFrame(X, columns=NAMES),
        y,
        teacher_scores=pd.DataFrame(G.astype(np.float64)),
    )
    assert_allclose(
        shifted.decision_function(pd.DataFrame(X, columns=NAMES)),
        clf.decision_function(X),
        atol=1e-4,
    )
    loaded = pickle.loads(pickle.dumps(clf))
    assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    # The scores are not kept.
    assert not any(getattr(v, "shape", ())[:1] == (N,) for v in vars(clf).values())


def test_precomputed_values(X, targets):
    for values in (targets, targets[:, :1], targets[:, 0]):
        reg = clone(regressor("precomputed")).fit(X, values, teacher_scores=values)
        assert reg.predict(X).shape == values.shape
        assert reg.teacher_score_ == pytest.approx(1)
        without_y = regressor("precomputed").fit(X, teacher_scores=values)
        assert without_y.teacher_score_ is None
        assert_array_equal(without_y.predict(X), reg.predict(X))


@pytest.mark.parametrize("use_pipeline", [False, True])
def test_precomputed_in_a_search(X, y, G, use_pipeline):
    estimator, prefix = classifier("precomputed"), ""
    if use_pipeline:
        estimator = make_pipeline(StandardScaler(), estimator)
        prefix = "bdistilclassifier__"
        estimator.fit(X, y, **{f"{prefix}teacher_scores": G})
        assert_allclose(estimator[-1].teacher_bound_, bound_of(G), rtol=1e-6)
    recorder = Recorder()
    grid = {f"{prefix}n_estimators": [1, 2]}
    search = GridSearchCV(
        estimator, grid, cv=CV, scoring=recorder, error_score="raise"
    ).fit(X, y, **{f"{prefix}teacher_scores": G})
    # Every fold got the scores of its own rows.
    assert_allclose(recorder.bounds, expected_bounds(X, G, 2), rtol=1e-6)
    assert search.predict(X).shape == (N,)


def test_precomputed_with_metadata_routing(X, y, G):
    with config_context(enable_metadata_routing=True):
        estimator = classifier("precomputed").set_fit_request(teacher_scores=True)
        pipeline = make_pipeline(StandardScaler(), estimator)
        recorder = Recorder()
        search = GridSearchCV(
            pipeline,
            {"bdistilclassifier__n_estimators": [1, 2]},
            cv=CV,
            scoring=recorder,
            error_score="raise",
        ).fit(X, y, teacher_scores=G)
        assert_allclose(recorder.bounds, expected_bounds(X, G, 2), rtol=1e-6)
        best = search.best_estimator_[-1]
        assert_allclose(best.teacher_bound_, bound_of(G), rtol=1e-6)
        results = cross_validate(
            clone(pipeline), X, y, cv=CV, params={"teacher_scores": G}, scoring=recorder
        )
        assert len(results["test_score"]) == 2
        assert_array_equal(
            pickle.loads(pickle.dumps(search)).predict(X), search.predict(X)
        )
        # Without the request scikit-learn says what is missing.
        unasked = make_pipeline(StandardScaler(), classifier("precomputed"))
        with raises("teacher_scores", "set_fit_request", error=Exception):
            unasked.fit(X, y, teacher_scores=G)


def test_precomputed_values_with_metadata_routing(X, targets):
    with config_context(enable_metadata_routing=True):
        estimator = regressor("precomputed").set_fit_request(teacher_scores=True)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), estimator),
            {"bdistilregressor__n_estimators": [1, 2]},
            cv=CV,
            error_score="raise",
        ).fit(X, targets, teacher_scores=targets)
    assert search.predict(X).shape == targets.shape


def test_precomputed_scores_leave_with_their_rows(X, y, G):
    weight = np.ones(N)
    weight[::3] = 0
    used = weight > 0
    clf = classifier("precomputed").fit(X, y, weight, teacher_scores=G)
    other = classifier("precomputed").fit(X[used], y[used], teacher_scores=G[used])
    assert clf.teacher_bound_ == other.teacher_bound_
    assert_allclose(clf.decision_function(X), other.decision_function(X), atol=1e-4)


# The teacher's own score and costs


def test_teacher_score(X, y, targets):
    rng = np.random.RandomState(1)
    noisy = np.where(rng.rand(N) < 0.2, "a", y)
    weight = rng.rand(N)
    teachers = [
        FrozenEstimator(LogisticRegression().fit(X, noisy)),
        FrozenEstimator(by_names(X, LogisticRegression()).fit(X, noisy)),
        TorchTeacher(Module(), classes=LABELS),
    ]
    for teacher in teachers:
        expected = teacher.predict(X)
        clf = classifier(teacher).fit(X, noisy)
        assert clf.teacher_score_ == accuracy_score(noisy, expected)
        clf = classifier(teacher).fit(X, noisy, sample_weight=weight)
        assert clf.teacher_score_ == pytest.approx(
            accuracy_score(noisy, expected, sample_weight=weight)
        )
        assert classifier(teacher).fit(X).teacher_score_ is None
    for target in (targets, targets[:, 0]):
        ridge = Ridge(alpha=50).fit(X, target)
        reg = regressor(FrozenEstimator(ridge))
        assert reg.fit(X, target).teacher_score_ == pytest.approx(
            r2_score(target, ridge.predict(X)), abs=1e-5
        )
        assert reg.fit(X, target, weight).teacher_score_ == pytest.approx(
            r2_score(target, ridge.predict(X), sample_weight=weight), abs=1e-5
        )
        assert reg.fit(X).teacher_score_ is None


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_teacher_costs(X, y, kind):
    teacher = torch_teacher(kind, Module(), X, y)
    clf = classifier(teacher, student="auto").fit(X, y)
    assert clf.teacher_costs_ == (D * L, D * L + L, 4 * (D * L + L))


def test_teacher_costs_of_a_regression(X, targets):
    net = fitted_net(NeuralNetRegressor, Module(2), X, targets, lr=1e-6)
    for teacher in [Module(2), TorchTeacher(Module(2)), FrozenEstimator(net)]:
        reg = regressor(teacher).fit(X, targets)
        assert reg.teacher_costs_.macs == D * 2
        assert reg.teacher_costs_.parameters == D * 2 + 2


def test_costs_of_a_teacher_with_parameters_of_its_own(X, y):
    for teacher in [OfItsOwn(), TorchTeacher(OfItsOwn())]:
        clf = classifier(teacher, student="auto").fit(X, y)
        assert clf.teacher_costs_ == (D * L, D * L, 4 * D * L)


def test_teacher_that_is_no_network_has_no_costs(X, y):
    clf = classifier(LogisticRegression(), student="auto").fit(X, y)
    assert clf.teacher_costs_ is None
    assert clf.predict(X).shape == (N,)


def test_teacher_behind_a_step_that_it_was_not_trained_with(X, y):
    raw = X + np.float32([20, 0, 0, 0])
    teacher = FrozenEstimator(LogisticRegression(max_iter=1000).fit(raw, y))
    pipeline = make_pipeline(StandardScaler(), classifier(teacher))
    with pytest.warns(DoubtfulTeacherWarning, match="Pipeline") as caught:
        pipeline.fit(raw, y)
    assert pipeline[-1].teacher_score_ < 0.5
    assert len(caught) == 1
    assert classifier(teacher).fit(raw, y).teacher_score_ > 0.9


def test_doubts_are_of_the_line_that_calls_fit(X, y, targets):
    with pytest.warns(DoubtfulTeacherWarning) as caught:
        classifier(Module(wrap=torch.neg)).fit(X, y)
    with pytest.warns(DoubtfulTeacherWarning) as more:
        regressor(Module(2, wrap=torch.neg)).fit(X, targets)
    with pytest.warns(DoubtfulTeacherWarning, match='output="proba"') as most:
        classifier(Module(wrap=to_proba)).fit(X, y)
    for warning in (*caught, *more, *most):
        assert warning.filename == __file__


def test_default_teacher_of_noise_is_not_doubted():
    rng = np.random.RandomState(0)
    for n in (4, 8, 20):
        X = rng.randn(n, 2)
        classifier().fit(X, np.arange(n) % 2)
        regressor().fit(X, rng.randn(n))
        # Too few rows for any split: R^2 of exactly 0.
        regressor(Ridge(alpha=1e12)).fit(X, rng.randn(n))


@pytest.mark.parametrize("exponent", [-1074, -1000, 0, 100, 1000])
@pytest.mark.parametrize("kind", ["default", "unfitted forest"])
@pytest.mark.parametrize("task", ["classifier", "regressor"])
def test_scale_of_the_weights_does_not_matter(task, kind, exponent, X, y, targets):
    estimator, y = made(task, kind, X, y, targets)
    weight = np.random.RandomState(0).randint(1, 8, N)
    expected = clone(estimator).fit(X, y, weight)
    # By powers of 2, which change no digit.
    fitted = clone(estimator).fit(X, y, np.ldexp(weight.astype(float), exponent))
    assert fitted.teacher_score_ == expected.teacher_score_
    assert fitted.teacher_score_ > 0.5
    assert_array_equal(fitted.predict(X), expected.predict(X))


def test_weights_reach_a_teacher_of_the_users_as_they_are(X, y):
    class Weighed(LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            weights.append(sample_weight)
            return super().fit(X, y, sample_weight)

    weights = Log()
    weight = np.random.RandomState(0).rand(N)
    weight[::3] = 0
    classifier(Weighed()).fit(X, y, weight)
    # It is fitted as the user would fit it: regularisation depends on the scale.
    assert_array_equal(weights[0], weight[weight > 0])


class Numbered(ClassifierMixin, BaseEstimator):
    """A classifier that takes no labels but the numbers from 0, as XGBoost does."""

    def fit(self, X, y):
        labels = np.unique(y)
        if not np.array_equal(labels, np.arange(len(labels))):
            raise ValueError(f"Invalid classes: {labels}")
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return self.model_.predict(X)

    def predict_proba(self, X):
        return self.model_.predict_proba(X)


def test_labels_that_the_teacher_refuses(X, y):
    clf = classifier(Numbered()).fit(X, y)
    plain = classifier(LogisticRegression()).fit(X, y)
    assert_array_equal(clf.classes_, LABELS)
    assert clf.teacher_score_ == plain.teacher_score_
    assert_allclose(clf.predict_proba(X), plain.predict_proba(X), atol=1e-4)
    search = GridSearchCV(
        classifier(Numbered()), {"n_estimators": [1, 2]}, cv=CV, error_score="raise"
    ).fit(X, y)
    assert set(search.predict(X)) <= set(LABELS)


def test_frozen_teacher_that_knows_numbers_of_the_labels(X, y):
    numbers = np.searchsorted(LABELS, y)
    model = LogisticRegression().fit(X, numbers)
    with raises("do not cover y", "LogisticRegression", "'precomputed'"):
        classifier(FrozenEstimator(model)).fit(X, y)
    # Either way out of the message leads to the same students.
    scores = np.log(model.predict_proba(X) + 1e-3)
    clf = classifier("precomputed").fit(X, y, teacher_scores=scores)
    numbered = classifier(FrozenEstimator(model)).fit(X, numbers)
    assert clf.teacher_score_ == numbered.teacher_score_
    assert_allclose(clf.predict_proba(X), numbered.predict_proba(X), atol=0.01)


@pytest.mark.parametrize("meta", [OneVsRestClassifier, OneVsOneClassifier])
@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2, 3], ["a", "b", "c"]])
def test_multiclass_teacher_inside_of_binary_questions(X, y, meta, labels):
    y = np.array(labels)[np.searchsorted(LABELS, y)]
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    with raises("LogisticRegression", "BDistilClassifier", meta.__name__):
        meta(classifier(teacher)).fit(X, y)
    # One that is fitted to each question has its two classes.
    assert meta(classifier(LogisticRegression())).fit(X, y).predict(X).shape == (N,)


@pytest.mark.parametrize("kind", ["bfloat16", "gradient"])
def test_teacher_scores_may_be_a_tensor(X, y, kind):
    scores = torch.from_numpy(np.round(X[:, :L] * 8) / 8)
    given = scores.bfloat16() if kind == "bfloat16" else scores.requires_grad_()
    weight = np.arange(N) % 3
    expected = classifier("precomputed")
    expected.fit(X, y, weight, teacher_scores=scores.detach().numpy())
    clf = classifier("precomputed").fit(X, y, weight, teacher_scores=given)
    assert_array_equal(clf.decision_function(X), expected.decision_function(X))
    search = GridSearchCV(
        classifier("precomputed"), {"n_estimators": [1, 2]}, cv=CV, error_score="raise"
    )
    assert search.fit(X, y, teacher_scores=given).predict(X).shape == (N,)


def test_log_odds_of_two_classes(X):
    odds = X[:, 0] - X[:, 1]
    y = np.where(odds > 0, "yes", "no")
    clf = classifier("precomputed").fit(X, y, teacher_scores=odds)
    both = np.c_[-odds / 2, odds / 2]
    expected = classifier("precomputed").fit(X, y, teacher_scores=both)
    assert clf.teacher_score_ == 1
    assert_array_equal(clf.classes_, ["no", "yes"])
    assert_array_equal(clf.decision_function(X), expected.decision_function(X))


def test_exported_program(X, y):
    module = nn.Linear(D, L, bias=False)
    nn.init.eye_(module.weight)
    rows = torch.export.Dim("rows")
    exported = torch.export.export(
        module.eval(), (torch.zeros(8, D),), dynamic_shapes=({0: rows},)
    ).module()
    expected = classifier(module).fit(X, y)
    for teacher in (exported, TorchTeacher(exported)):
        clf = classifier(teacher).fit(X, y)
        assert_array_equal(clf.decision_function(X), expected.decision_function(X))
    search = GridSearchCV(
        classifier(TorchTeacher(exported)),
        {"n_estimators": [1, 2]},
        cv=CV,
        error_score="raise",
    )
    assert search.fit(X, y).best_estimator_.teacher_score_ > 0.9


def test_unfitted_net_follows_the_seed_and_leaves_the_generators(X, y):
    net = NeuralNetClassifier(
        nn.Linear,
        module__in_features=D,
        module__out_features=L,
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        verbose=0,
        max_epochs=2,
    )
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    clf = classifier(net).fit(X.astype(np.float64), y)
    now = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert_array_equal(now[0], before[0])
    assert_array_equal(now[1], before[1])
    torch.rand(3)
    again = classifier(net).fit(X.astype(np.float64), y)
    assert_array_equal(clf.predict_proba(X), again.predict_proba(X))
    other = classifier(net, random_state=1).fit(X.astype(np.float64), y)
    assert clf.teacher_bound_ != other.teacher_bound_


# Without y


@pytest.mark.parametrize("kind", ["frozen forest", "frozen pipeline", "logits"])
def test_unlabelled_rows(X, y, kind):
    teacher = CLASSIFIERS[kind](X, y)
    clf = clone(classifier(teacher)).fit(X)
    assert_array_equal(clf.classes_, LABELS)
    labelled = classifier(teacher).fit(X, y)
    assert_array_equal(clf.predict_proba(X), labelled.predict_proba(X))
    search = GridSearchCV(
        classifier(teacher), {"n_estimators": [1, 2]}, cv=CV, scoring=Unlabelled()
    ).fit(X)
    assert search.best_params_ == {"n_estimators": 2}


class Unlabelled:
    def __call__(self, estimator, X, y=None):
        return estimator.n_estimators_


@pytest.mark.parametrize(
    "teacher", [None, LogisticRegression(), Module(), TorchTeacher(Module())]
)
def test_y_is_needed(X, teacher):
    with raises("BDistilClassifier requires y to be passed, but the target y is None"):
        classifier(teacher).fit(X)


def test_classes_of_scores_without_y_are_the_numbers_of_columns(X, G):
    clf = classifier("precomputed").fit(X, teacher_scores=G)
    assert_array_equal(clf.classes_, np.arange(G.shape[1]))


@pytest.mark.parametrize("teacher", [None, Ridge()])
def test_regressor_needs_y(X, teacher):
    with raises("BDistilRegressor requires y to be passed, but the target y is None"):
        regressor(teacher).fit(X)


# Errors, and what they leave behind


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((N - 1, L), f"{N} rows"),
        ((N, L, 1), f"({N}, {L}, 1)"),
        ((N,), "2 columns stand for, because y holds 3"),
    ],
)
def test_shape_of_teacher_scores(X, y, shape, message):
    with raises("BDistilClassifier", message):
        classifier("precomputed").fit(X, y, teacher_scores=np.zeros(shape))


def test_columns_of_teacher_scores(X, y, targets):
    with raises("BDistilClassifier", "4 columns", "3 distinct labels"):
        classifier("precomputed").fit(X, y, teacher_scores=np.zeros((N, 4)))
    with raises("2 target(s)", "teacher gives 3"):
        regressor("precomputed").fit(X, targets, teacher_scores=np.zeros((N, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_teacher_scores_are_finite(X, y, G, bad):
    G[3, 1] = bad
    with raises("teacher_scores", "BDistilClassifier", "finite"):
        classifier("precomputed").fit(X, y, teacher_scores=G)
    with raises("teacher_scores", "BDistilRegressor", "finite"):
        regressor("precomputed").fit(X, teacher_scores=G)


def test_teacher_scores_belong_to_precomputed(X, y, G):
    with raises("teacher_scores", "'precomputed'", "BDistilClassifier"):
        classifier("precomputed").fit(X, y)
    for teacher in [None, LogisticRegression(), Module(), TorchTeacher(Module())]:
        with raises("teacher_scores", "'precomputed'", "BDistilClassifier"):
            classifier(teacher).fit(X, y, teacher_scores=G)


def test_classes_that_do_not_cover_y(X, y):
    known = y != "b"
    model = LogisticRegression().fit(X[known], y[known])
    teachers = [
        FrozenEstimator(model),
        TorchTeacher(Module(2), classes=["a", "c"]),
    ]
    for teacher in teachers:
        with raises("teacher classes do not cover y", "BDistilClassifier", "['b']"):
            classifier(teacher).fit(X, y)


@pytest.mark.parametrize("make", [classifier, regressor])
def test_fitted_teacher_must_be_frozen(X, y, targets, make):
    if make is classifier:
        net = fitted_classifier_net(X, y)
        fitted = [LogisticRegression().fit(X, y), net]
    else:
        y = targets
        net = fitted_net(NeuralNetRegressor, Module(2), X, y, lr=1e-6)
        fitted = [Ridge().fit(X, y), net]
    fitted.append(clone(make()).fit(X, y))
    for teacher in fitted:
        with raises("fitted", type(teacher).__name__, "FrozenEstimator(teacher)"):
            make(teacher).fit(X, y)


def test_frozen_teacher_must_be_fitted(X, y):
    with raises("FrozenEstimator", "unfitted", error=NotFittedError):
        classifier(FrozenEstimator(LogisticRegression())).fit(X, y)


def test_teacher_of_the_other_task(X, y, targets):
    codes = np.searchsorted(LABELS, y).astype(np.float32)
    fitted = LogisticRegression().fit(X, codes)
    for teacher in [LogisticRegression(), FrozenEstimator(fitted)]:
        with raises("'teacher'", "BDistilRegressor", "regressor", "LogisticRegression"):
            regressor(teacher).fit(X, codes)
    with raises("BDistilRegressor", "TorchTeacher", "output='proba'"):
        regressor(TorchTeacher(Module(1), output="proba")).fit(X, codes)
    with raises("'teacher'", "BDistilClassifier", "classifier", "Ridge"):
        classifier(Ridge()).fit(X, codes.astype(int))


@pytest.mark.parametrize("teacher", ["forest", 5, LogisticRegression])
def test_no_teacher(X, y, teacher):
    with raises("'teacher'", "BDistilClassifier", error=(ValueError, TypeError)):
        classifier(teacher).fit(X, y)


def test_module_that_gives_no_scores(X, y):
    flat = TorchTeacher(Module(wrap=torch.flatten), classes=LABELS)
    with raises("TorchTeacher", "shape (n, L)"):
        classifier(flat).fit(X, y)
    broken = TorchTeacher(Module(wrap=torch.log), classes=LABELS)
    with raises("BDistilClassifier", "finite", "TorchTeacher"):
        classifier(broken).fit(X, y)
    logits = TorchTeacher(Module(), output="proba", classes=LABELS)
    with raises("BDistilClassifier", "probabilities", 'output="logits"'):
        classifier(logits).fit(X, y)


def test_failed_fit_leaves_nothing(X, y, G):
    clf = classifier("precomputed")
    with raises("teacher_scores"):
        clf.fit(X, y)
    assert vars(clf) == vars(classifier("precomputed"))
    clf.fit(X, y, teacher_scores=G)
    predicted = clf.predict_proba(X)
    with raises("teacher_scores"):
        clf.fit(X[:, :2], y, teacher_scores=G[:5])
    assert_array_equal(clf.predict_proba(X), predicted)
    assert_allclose(softmax(clf.decision_function(X), axis=1), predicted, rtol=1e-6)


@untrained
def test_frozen_net_whose_dataset_reshapes_rows_is_not_counted():
    class Reshaped(Dataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x.reshape(1, 2, -1), y

    class Network(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.LazyLinear(2))

    X = np.random.RandomState(0).randn(40, 6).astype(np.float32)
    y = (X[:, 0] > 0).astype(np.int64)
    net = NeuralNetClassifier(
        Network,
        criterion=nn.CrossEntropyLoss,
        dataset=Reshaped,
        train_split=None,
        max_epochs=1,
        verbose=0,
    )
    with torch.random.fork_rng([]):
        net.initialize().module_(torch.zeros(2, 1, 2, 3))
        net.partial_fit(X, y)
    clf = BDistilClassifier(
        FrozenEstimator(net), n_estimators=1, max_epochs=1, random_state=0
    )
    with pytest.warns(CostsUnknownWarning, match="operations of Network could not"):
        clf.fit(X, y)
    assert clf.teacher_costs_.macs is None
    assert clf.teacher_costs_.parameters == sum(
        p.numel() for p in net.module_.parameters()
    )
