"""Saved estimators: the same after loading, and nothing bad gets in by a file."""

import contextlib
import io
import json
import pickle
import re
import runpy
import struct
import sys
import zipfile
from dataclasses import astuple, is_dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from saved_files import edited, packed, parts, set_item
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNet
from torch import nn

from common import COMBINATIONS, CONNECTIONS, raises, student_bits
from skbdistil import (
    BDistilClassifier,
    BDistilRegressor,
    DistillationObjective,
    TorchTeacher,
    _files,
    persistence,
)
from skbdistil.costs import Costs
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import Connection, Lateral
from skbdistil.exceptions import InvalidFileError
from skbdistil.model_selection import StagedSearchCV
from skbdistil.persistence import load, save
from skbdistil.students import MLP, Backbone, ConvNet1d, ConvNet2d, RecurrentNet

N_STAGES = 2

# Any student passes: what these tests look at is not the search.
SMALL = {
    "n_estimators": N_STAGES,
    "max_epochs": 1,
    "edge_tol": np.inf,
    "random_state": 0,
}
TINY = partial(MLP, hidden=(3,))

# Shape of a row, and a backbone of three blocks for it.
BACKBONES = {
    "mlp": ((6,), partial(MLP, hidden=(4, 3, 3))),
    "conv1d": ((12, 2), partial(ConvNet1d, channels=(3, 4), kernel_size=3)),
    "conv2d": ((2, 8, 8), partial(ConvNet2d, channels=(3, 4), separable=True)),
    "gru": ((5, 2), partial(RecurrentNet, hidden=(3, 4, 3))),
    "lstm": ((5, 2), partial(RecurrentNet, hidden=(3, 4, 3), cell="lstm")),
}


# What a user may define at the top level of a module.


class Scaled(Backbone):
    """A backbone with a buffer that no constructor argument tells."""

    def __init__(self, input_shape, *, width=3, activation=nn.ReLU):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(input_shape[0], width), activation())]
        )
        self.widths = (width,)
        self.register_buffer("factor", torch.ones(()))

    def pool(self, maps):
        return maps * self.factor


def plain_network(width, input_shape):
    return nn.Sequential(nn.Linear(*input_shape, width), nn.Tanh())


class Sum(Connection):
    def forward(self, features, earlier):
        return features + sum(earlier)


class HiddenBuffer(Scaled):
    def __init__(self, input_shape):
        super().__init__(input_shape)
        self.register_buffer("hidden", torch.ones(3), persistent=False)


class PlainTensor(Scaled):
    def __init__(self, input_shape):
        super().__init__(input_shape)
        self.weights = torch.ones(3)

    def pool(self, maps):
        return maps * self.weights


class Moody(Scaled):
    """Not the same network every time."""

    activations = [nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU, nn.Tanh]

    def __init__(self, input_shape):
        # The last ones are for the students that are built again.
        kinds = Moody.activations
        super().__init__(
            input_shape, activation=kinds.pop(0) if len(kinds) > 1 else kinds[0]
        )


class Factory:
    def __call__(self, input_shape):
        return MLP(input_shape)


def first_probability(stages):
    return stages[-1][:, 0]


# Data, and what the tests have in common


@pytest.fixture(scope="module")
def data():
    return make_classification(n_samples=60, n_features=6, random_state=0)


@pytest.fixture(scope="module")
def small():
    return {"student": TINY, **SMALL}


@pytest.fixture(scope="module")
def reg():
    X, y = make_regression(n_samples=60, n_features=6, n_targets=2, random_state=0)
    scores = y + np.random.RandomState(0).normal(size=y.shape)
    reg = BDistilRegressor("precomputed", student=TINY, **SMALL)
    return reg.fit(X, y, teacher_scores=scores)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skb"


def round_trip(estimator, path, **options):
    save(estimator, path)
    return load(path, **options)


def assert_same(found, expected):
    """Equal to the bit, whatever is inside."""
    assert type(found) is type(expected)
    if isinstance(expected, nn.Module):
        assert str(found) == str(expected)
        assert_same(dict(found.state_dict()), dict(expected.state_dict()))
        for module, other in zip(found.modules(), expected.modules(), strict=True):
            assert module.training == other.training
        for weight, other in zip(
            found.parameters(), expected.parameters(), strict=True
        ):
            assert weight.requires_grad == other.requires_grad
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert_array_equal(found.numpy(), expected.cpu().numpy())
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert_array_equal(found, expected)
    elif is_dataclass(expected):
        assert_same(astuple(found), astuple(expected))
    elif isinstance(expected, BaseEstimator):
        assert_same(found.get_params(), expected.get_params())
    elif isinstance(expected, partial):
        # Those of partial are not compared by value.
        assert_same(found.func, expected.func)
        assert_same(found.args, expected.args)
        assert_same(found.keywords, expected.keywords)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def fitted_attributes(estimator):
    return {name: v for name, v in vars(estimator).items() if name.endswith("_")}


def fitted(backbone, **options):
    """A classifier of rows that the backbone is for."""
    shape, student = BACKBONES[backbone]
    X = np.random.RandomState(0).normal(size=(20, *shape))
    scores = X.reshape(20, -1)[:, :2]
    clf = BDistilClassifier("precomputed", student=student, **options, **SMALL)
    return clf.fit(X, scores.argmax(axis=1), teacher_scores=scores)


# Round trips


@pytest.mark.parametrize("connection", CONNECTIONS, ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [
        (BDistilClassifier, "float32"),
        (BDistilClassifier, "float64"),
        (BDistilRegressor, "float32"),
    ],
)
# Of so few features, most may do nothing.
@pytest.mark.filterwarnings("ignore:More than half of the features:UserWarning")
def test_round_trip(estimator, dtype, backbone, connection, path):
    shape, student = BACKBONES[backbone]
    rng = np.random.RandomState(0)
    X = rng.normal(size=(40, *shape))
    scores = rng.normal(size=(40, 3))
    y = scores.argmax(axis=1) if estimator is BDistilClassifier else scores
    saved = estimator(
        "precomputed", student=student, connection=connection, dtype=dtype, **SMALL
    ).fit(X, y, teacher_scores=scores)

    loaded = round_trip(saved, path)
    assert type(loaded) is type(saved)
    assert_same(fitted_attributes(loaded), fitted_attributes(saved))
    assert str(loaded) == str(saved)
    X = rng.normal(size=(7, *shape))
    assert_array_equal(loaded.predict(X), saved.predict(X))
    assert_array_equal(
        list(loaded.staged_predict(X)), list(saved.staged_predict(X)), strict=True
    )
    again = path.with_name("again")
    save(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_everything_works_after_loading(clf, data, path):
    X, y = data
    loaded = round_trip(clf, path)
    for method in ("predict_proba", "predict_log_proba", "decision_function"):
        assert_array_equal(getattr(loaded, method)(X), getattr(clf, method)(X))
    assert_array_equal(
        list(loaded.staged_predict_proba(X)), list(clf.staged_predict_proba(X))
    )
    assert list(loaded.staged_score(X, y)) == list(clf.staged_score(X, y))
    assert len(loaded) == N_STAGES
    assert_array_equal(loaded[:1].predict_proba(X), clf[:1].predict_proba(X))
    budget = clf.stage_costs_.cumulative_macs[0]
    assert loaded.stage_for(budget) == 1
    loaded.set_params(n_stages=1)
    assert_array_equal(loaded.predict_proba(X), clf[:1].predict_proba(X))
    assert clone(loaded).get_params()["n_stages"] == 1
    copied = pickle.loads(pickle.dumps(loaded))
    assert_array_equal(copied.predict_proba(X), loaded.predict_proba(X))
    assert f"{N_STAGES} student(s)" in loaded._repr_html_()


def test_part_of_an_ensemble(clf, data, path):
    loaded = round_trip(clf[:1], path)
    assert len(loaded) == 1
    assert_array_equal(loaded.predict_proba(data[0]), clf[:1].predict_proba(data[0]))


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_warm_start_goes_on_as_before(clf, data, path):
    X, y = data
    scores = clf.decision_function(X)
    scores = np.column_stack([-scores, scores])
    saved = BDistilClassifier("precomputed", student=TINY, eta=0.1, **SMALL)
    saved.fit(X, y, teacher_scores=scores)
    loaded = round_trip(saved, path)
    for estimator in (saved, loaded):
        estimator.set_params(warm_start=True, n_estimators=3)
        estimator.fit(X, y, teacher_scores=scores)
    assert len(loaded) == 3
    assert_array_equal(loaded.predict_proba(X), saved.predict_proba(X))


def test_students_are_what_they_were_fitted_as(data, path):
    X, y = data
    clf = BDistilClassifier(student=TINY, warm_start=True, **SMALL).fit(X, y)
    clf.set_params(student=[partial(MLP, hidden=(5,))], n_estimators=3).fit(X, y)
    clf.set_params(student="auto", connection=None)
    loaded = round_trip(clf, path)
    assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert loaded.student == "auto"


def test_auto_students(data, path):
    clf = BDistilClassifier(**SMALL).fit(*data)
    loaded = round_trip(clf, path)
    assert_array_equal(loaded.predict_proba(data[0]), clf.predict_proba(data[0]))


@pytest.mark.parametrize(
    "classes",
    [
        np.array(["no", "yes"]),
        np.array(["no", "yes"], dtype="U9"),
        np.array(["nö", "yes\n"], dtype=object),
        np.array([False, True]),
        np.array([-1, 3], dtype=np.int8),
        np.array([0.5, np.inf]),
        np.array([1, 2], dtype=np.float32),
    ],
    ids=lambda classes: str(classes.dtype),
)
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_labels_keep_their_type(classes, clf, data, path):
    X, y = data
    saved = clone(clf).set_params(teacher="precomputed")
    # Labels themselves are what a fit makes of them; here it is what a file does.
    saved.fit(X, y, teacher_scores=np.zeros((60, 2))).classes_ = classes
    loaded = round_trip(saved, path)
    assert loaded.classes_.dtype == classes.dtype
    assert_array_equal(loaded.predict(X), saved.predict(X), strict=True)


def test_numbers_that_json_does_not_know(clf, path):
    saved = clf[:2].set_params(eta=np.float64(0.25), n_stages=np.int64(1))
    saved.certificate_ = saved.certificate_.scaled(np.array([1.0, np.inf]))
    saved.student_edges_ = np.array([[np.nan, -np.inf], [-0.0, 5e-324]])
    loaded = round_trip(saved, path)
    assert_same(loaded.student_edges_, saved.student_edges_)
    assert np.signbit(loaded.student_edges_[1, 0])
    assert np.isinf(loaded.certificate_.bound[:, 1]).all()
    assert loaded.edge_tol == np.inf
    assert (loaded.eta, loaded.n_stages) == (0.25, 1)


def test_parameters_that_are_objects(clf, data, path):
    saved = clf[:2].set_params(
        student=[TINY, MLP],
        connection=Lateral("last"),
        objective=DistillationObjective(gamma=0.7, barrier=None),
        device=torch.device("cpu"),
        net=NeuralNet(None, criterion=None),
        random_state=np.random.RandomState(0),
    )
    loaded = round_trip(saved, path)
    assert loaded.student[1] is MLP
    assert loaded.student[0].func is MLP
    assert loaded.student[0].keywords == {"hidden": (3,)}
    assert str(loaded.connection) == str(saved.connection)
    assert str(loaded.objective) == str(saved.objective)
    assert loaded.device == "cpu"
    # What JSON cannot hold and only fit uses.
    assert loaded.net is None
    assert loaded.random_state is None
    assert loaded.teacher == "precomputed"


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_costs_of_a_torch_teacher(data, path):
    X, y = data
    teacher = TorchTeacher(nn.Linear(6, 2), device="cpu")
    clf = BDistilClassifier(teacher, student=TINY, **SMALL).fit(X, y)
    loaded = round_trip(clf, path)
    assert_same(loaded.teacher_costs_, clf.teacher_costs_)
    assert loaded.teacher_costs_.macs == 12


def test_costs_that_are_not_known(clf, path):
    macs = np.array([12, np.nan])
    clf = clf[:]
    clf.stage_costs_ = replace(clf.stage_costs_, macs=macs)
    clf.teacher_costs_ = Costs(None, 7, 28)
    loaded = round_trip(clf, path)
    assert_same(loaded.stage_costs_, clf.stage_costs_)
    assert loaded.teacher_costs_ == Costs(None, 7, 28)


def test_the_generator_of_torch_is_left_alone(clf, path):
    before = torch.get_rng_state()
    round_trip(clf, path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_device_of_another_machine(clf, data, path):
    loaded = round_trip(clf[:2].set_params(device="cuda"), path)
    assert loaded.device == "auto"
    assert_array_equal(loaded.predict_proba(data[0]), clf.predict_proba(data[0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_weights_are_saved_for_the_cpu(clf, data, path):
    saved = clone(clf).set_params(device="cuda").fit(*data)
    loaded = round_trip(saved, path)
    assert {weight.device.type for weight in loaded.ensemble_.parameters()} == {"cpu"}
    assert next(saved.ensemble_.parameters()).device.type == "cuda"
    loaded.set_params(device="cpu").predict(data[0])


# Classes of the user


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"student": Scaled}, [Scaled]),
        ({"student": partial(Scaled, width=2)}, [Scaled]),
        ({"student": partial(Scaled, activation=nn.Tanh)}, [Scaled, nn.Tanh]),
        ({"student": partial(plain_network, 4)}, [plain_network]),
        ({"student": TINY, "connection": Sum}, [Sum]),
    ],
    ids=["class", "partial", "class as value", "function", "connection"],
)
def test_classes_of_the_user_are_passed(options, classes, data, path):
    clf = BDistilClassifier(**options, **SMALL).fit(*data)
    for student in clf.ensemble_.students:
        if isinstance(student.backbone, Scaled):
            student.backbone.factor.fill_(0.5)
    loaded = round_trip(clf, path, classes=[*classes, Factory])
    assert_array_equal(loaded.predict_proba(data[0]), clf.predict_proba(data[0]))
    for missing in classes:
        others = [part for part in classes if part is not missing]
        with pytest.raises(InvalidFileError, match=missing.__name__) as info:
            load(path, classes=others)
        assert "passed in 'classes'" in str(info.value)


def test_classes_are_found_where_they_are_now(data, path):
    clf = BDistilClassifier(student=Scaled, **SMALL).fit(*data)
    save(clf, path)
    moved = type("Scaled", (Scaled,), {"__module__": "elsewhere"})
    loaded = load(path, classes=[moved])
    assert type(loaded.ensemble_.students[0].backbone) is moved


@pytest.mark.parametrize(
    ("classes", "error", "match"),
    [
        ([Scaled, type("Scaled", (), {})], ValueError, "have the same name"),
        ([MLP((3,))], TypeError, "must hold classes and functions. Got MLP"),
    ],
)
def test_classes_that_cannot_be_looked_up(classes, error, match, clf, path):
    save(clf, path)
    with pytest.raises(error, match=match):
        load(path, classes=classes)


def local_function():
    def network(input_shape):
        return MLP(input_shape)

    return network


@pytest.mark.parametrize(
    ("student", "error", "match"),
    [
        (lambda shape: MLP(shape), ValueError, "test_persistence:<lambda>"),
        (local_function(), ValueError, "local_function.<locals>.network"),
        (Factory(), TypeError, "holds <test_persistence.Factory"),
        (partial(Scaled, activation=Factory()), TypeError, "test_persistence.Factory"),
        (partial(MLP, hidden={3}), TypeError, r"holds \{3\}"),
    ],
)
def test_students_that_could_not_be_built_again(student, error, match, clf, path):
    saved = clf[:2]
    saved.ensemble_.students[1].factory = student
    with pytest.raises(error, match="The parameter 'student' of BDistil.*" + match):
        save(saved, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("student", "match"),
    [
        (HiddenBuffer, "the buffer 'students.0.backbone.hidden' is not persistent"),
        (PlainTensor, "could not be loaded again: .*meta"),
        (Moody, "built again give other scores"),
    ],
)
def test_students_that_would_not_be_the_same(student, match, clf, data, path):
    save(clf, path)
    before = path.read_bytes()
    saved = BDistilClassifier(student=student, **SMALL).fit(*data)
    with pytest.raises(ValueError, match=match):
        save(saved, path)
    assert path.read_bytes() == before


# Teachers


def test_teacher_is_saved_on_request_only(clf, data, path):
    X, y = data
    teacher = LogisticRegression().fit(X, y)
    saved = clf[:2].set_params(teacher=FrozenEstimator(teacher))
    save(saved, path)
    assert set(parts(path)) == {"estimator.json", "weights.safetensors"}
    assert load(path).teacher == "precomputed"

    save(saved, path, include_teacher=True)
    loaded = load(path).teacher
    assert isinstance(loaded, FrozenEstimator)
    assert_array_equal(loaded.predict_proba(X), teacher.predict_proba(X))


def test_a_fit_after_loading_asks_for_the_scores(clf, data, path):
    loaded = round_trip(clf, path)
    with pytest.raises(ValueError, match="teacher_scores"):
        loaded.fit(*data)


@pytest.mark.parametrize("teacher", [None, "precomputed"])
def test_teachers_without_weights_stay(teacher, clf, path):
    assert round_trip(clf[:2].set_params(teacher=teacher), path).teacher == teacher


def test_types_of_a_teacher_have_to_be_trusted(clf, data, path):
    forest = RandomForestClassifier(n_estimators=2, random_state=0).fit(*data)
    saved = clf[:2].set_params(teacher=FrozenEstimator(forest))
    save(saved, path, include_teacher=True)
    with pytest.raises(InvalidFileError, match=r"you trust as 'trusted'.*_tree\.Tree"):
        load(path)
    loaded = load(path, trusted=["sklearn.tree._tree.Tree"])
    assert_array_equal(loaded.teacher.predict(data[0]), forest.predict(data[0]))


def torch_teachers():
    net = NeuralNet(nn.Linear, criterion=nn.MSELoss, module__in_features=6)
    net.set_params(module__out_features=2, verbose=0)
    return [nn.Linear(6, 2), TorchTeacher(nn.Linear(6, 2)), net.initialize()]


@pytest.mark.parametrize("teacher", torch_teachers(), ids=lambda t: type(t).__name__)
def test_torch_teachers_are_not_saved(teacher, clf, path):
    saved = clf[:2].set_params(teacher=teacher)
    with pytest.raises(ValueError, match=r"'teacher' .* Torch modules cannot"):
        save(saved, path, include_teacher=True)
    assert not path.exists()
    assert round_trip(saved, path).teacher == "precomputed"


# Pipelines, early exit, searches


def test_pipeline(data, path):
    X, y = data
    frame = pd.DataFrame(X, columns=list("abcdef"))
    pipeline = Pipeline(
        [
            ("scale", StandardScaler().set_output(transform="pandas")),
            ("skip", "passthrough"),
            ("distil", BDistilClassifier(student=TINY, **SMALL)),
        ],
        memory=None,
        verbose=False,
    ).fit(frame, y)
    loaded = round_trip(pipeline, path)
    assert [name for name, _ in loaded.steps] == ["scale", "skip", "distil"]
    assert_array_equal(loaded.predict_proba(frame), pipeline.predict_proba(frame))
    assert_array_equal(loaded.feature_names_in_, list("abcdef"))
    assert_same(loaded[-1].feature_names_in_, pipeline[-1].feature_names_in_)
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame.rename(columns={"a": "z"}))


def test_pipeline_of_one_step_needs_no_skops(clf, data, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops.io", None)
    loaded = round_trip(FrozenEstimator(make_pipeline(clf)), path)
    assert_array_equal(loaded.predict(data[0]), clf.predict(data[0]))


def test_steps_have_to_be_trusted(clf, data, path):
    step = FunctionTransformer(plain_step)
    pipeline = make_pipeline(step, clf)
    save(pipeline, path)
    with pytest.raises(InvalidFileError, match=r"you trust as 'trusted'.*plain_step"):
        load(path)
    loaded = load(path, trusted=[f"{__name__}.plain_step"])
    assert_array_equal(loaded.predict(data[0]), pipeline.predict(data[0]))


def plain_step(X):
    return X


def test_a_file_does_not_choose_a_folder_to_cache_in(clf, path, tmp_path):
    cached = Pipeline([("distil", clf)], memory=str(tmp_path / "cache"))
    assert round_trip(cached, path).memory is None
    edited(path, lambda pipeline: pipeline["params"].update(memory="elsewhere"))
    with pytest.raises(InvalidFileError, match=r"\['memory'\] of Pipeline"):
        load(path)


@pytest.fixture(scope="module")
def early(clf):
    X, y = make_classification(n_samples=60, n_features=6, random_state=1)
    early = EarlyExitClassifier(
        FrozenEstimator(clf), max_drop=0.02, temperature=True, random_state=0
    )
    return early.fit(X, y)


def test_early_exit(early, data, path):
    X, y = data
    loaded = round_trip(early, path)
    assert len(np.unique(early.exit_stages(X))) == N_STAGES
    assert_array_equal(loaded.exit_stages(X), early.exit_stages(X))
    assert_array_equal(loaded.predict_proba(X), early.predict_proba(X))
    assert_same(loaded.predict_with_cost(X), early.predict_with_cost(X))
    assert_same(loaded.exit_path(X, y), early.exit_path(X, y))
    assert loaded.estimator is loaded.estimator_
    found, expected = fitted_attributes(loaded), fitted_attributes(early)
    del found["estimator_"], expected["estimator_"]
    assert_same(found, expected)
    assert_array_equal(loaded.fit(X, y).predict(X), early.predict(X))


def test_early_exit_that_fits_its_estimator(data, path):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), BDistilClassifier(**SMALL))
    early = EarlyExitClassifier(
        pipeline, rule=first_probability, cv=KFold(2), random_state=0
    ).fit(X, y)
    with pytest.raises(InvalidFileError, match=r"first_probability.*in 'classes'"):
        round_trip(early, path)
    loaded = load(path, classes=[first_probability])
    assert_array_equal(loaded.exit_stages(X), early.exit_stages(X))
    assert loaded.estimator is not loaded.estimator_
    assert not hasattr(loaded.estimator[-1], "ensemble_")
    assert str(loaded.estimator) == str(pipeline)
    assert loaded.cv == EarlyExitClassifier(None).cv


def test_early_exit_in_a_pipeline(data, path):
    X, y = data
    early = EarlyExitClassifier(BDistilClassifier(**SMALL), random_state=0)
    pipeline = make_pipeline(StandardScaler(), early).fit(X, y)
    loaded = round_trip(pipeline, path)
    assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))


@pytest.mark.parametrize("search", [GridSearchCV, StagedSearchCV])
def test_searches_are_not_saved(search, clf, data, path):
    search = search(clone(clf), {"max_epochs": [1]}, cv=2).fit(*data)
    with pytest.raises(TypeError, match=r"save\(search.best_estimator_, path\)"):
        save(search, path)
    loaded = round_trip(search.best_estimator_, path)
    assert_array_equal(loaded.predict(data[0]), search.predict(data[0]))


class Mine(BDistilClassifier):
    pass


@pytest.mark.parametrize(
    ("estimator", "error", "match"),
    [
        (LogisticRegression(), TypeError, "'estimator' must be one of .*BDistilClass"),
        (Mine(), TypeError, "Mine cannot be saved.*of exactly this class"),
        (BDistilClassifier(), NotFittedError, "BDistilClassifier"),
        (EarlyExitClassifier(BDistilClassifier()), NotFittedError, "EarlyExit"),
        (make_pipeline(BDistilClassifier()), NotFittedError, "Pipeline"),
        (
            FrozenEstimator(LogisticRegression().fit([[0], [1]], [0, 1])),
            TypeError,
            "'estimator' of FrozenEstimator cannot be saved",
        ),
        (
            make_pipeline(LogisticRegression()).fit([[0], [1]], [0, 1]),
            TypeError,
            "The last step of Pipeline cannot be saved",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_saved(estimator, error, match, path):
    with pytest.raises(error, match=match):
        save(estimator, path)
    assert not path.exists()


def test_parameters_that_cannot_be_saved(clf, path):
    saved = clf[:2].set_params(eta=1j)
    with pytest.raises(TypeError, match=r"'eta' of BDistilClassifier .* holds 1j"):
        save(saved, path)
    saved.set_params(eta=0.1, n_stages=5)
    with pytest.raises(ValueError, match=r"be loaded again: .*'n_stages'"):
        save(saved, path)


# Files


def test_equal_estimators_give_equal_bytes(clf, data, path):
    save(clf, path)
    save(clone(clf).fit(*data), str(path) + "2")
    assert path.read_bytes() == path.with_name("model.skb2").read_bytes()


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load(path)


def test_link_stays_a_link(clf, path):
    target = path.with_name("target")
    path.symlink_to(target)
    save(clf, path)
    assert path.is_symlink()
    assert path.read_bytes() == target.read_bytes()


class HalfWritten(io.FileIO):
    def write(self, data):
        super().write(bytes(data)[:100])
        raise OSError("No space left on device")


def test_file_that_is_replaced_keeps_its_mode(clf, path):
    save(clf, path)
    path.chmod(0o600)
    save(clf, path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_trusted_is_a_list(clf, path):
    save(clf, path)
    with pytest.raises(TypeError, match="not iterable"):
        load(path, trusted=True)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["open", "os.fsync", "os.replace"])
def test_failure_in_the_middle_keeps_the_old_file(
    step, error, clf, early, data, path, monkeypatch
):
    save(clf, path)
    before = path.read_bytes()

    def fail(*args):
        raise error

    with monkeypatch.context() as patched:
        if step == "open":
            patched.setattr(_files, "open", HalfWritten, raising=False)
            error = OSError
        else:
            patched.setattr(step, fail)
        with pytest.raises(error):
            save(early, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert_array_equal(load(path).predict(data[0]), clf.predict(data[0]))


@pytest.mark.parametrize(
    ("package", "module"), [("safetensors", "safetensors.torch"), ("skops", "skops.io")]
)
def test_missing_dependency(package, module, clf, path, monkeypatch):
    pipeline = make_pipeline(StandardScaler().fit(np.zeros((2, 6))), clf)
    save(pipeline, path)
    monkeypatch.setitem(sys.modules, module, None)
    match = re.escape(
        f'needs {package}, which is not installed. To install it: pip install "skb'
    )
    with pytest.raises(ImportError, match=match):
        save(pipeline, path)
    with pytest.raises(ImportError, match=match):
        load(path)
    runpy.run_path(persistence.__file__)


# Bad files


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "not a zip file"),
        (lambda data: data[: len(data) // 2], "not a zip file"),
        (lambda data: data.replace(b"classes_", b"klasses_"), "Bad CRC-32"),
        (lambda data: pickle.dumps({}), "not a zip file"),
    ],
)
def test_corrupt_file(change, reason, clf, path):
    save(clf, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InvalidFileError, match=f"'{path}' cannot be loaded.*{reason}"):
        load(path)


def with_parts(**changes):
    def change(members):
        members.update(changes)
        return {name: data for name, data in members.items() if data is not None}

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_parts(**{"weights.safetensors": None}), "'weights.safetensors' is miss"),
        (with_parts(**{"estimator.json": None}), "'estimator.json' is missing"),
        (with_parts(**{"estimator.json": b"[]"}), "no JSON object"),
        (with_parts(**{"estimator.json": b"{}"}), "no schema version"),
        (with_parts(**{"estimator.json": b"\xff"}), "it is not JSON: 'utf-8'"),
        (with_parts(**{"estimator.json": b"[" * 100_000}), "it is not JSON: "),
        (with_parts(**{"estimator.json": b"1" * 10_000}), "an int beyond 64 bits"),
        (with_parts(**{"weights.safetensors": b"\0" * 20}), "SafetensorError"),
        (
            with_parts(**{"../../evil": b"x"}),
            r"belong to nothing: \['\.\./\.\./evil'\]",
        ),
        (with_parts(**{"7.skops": b"x"}), r"belong to nothing: \['7\.skops'\]"),
    ],
)
def test_bad_parts(change, reason, clf, path):
    save(clf, path)
    path.write_bytes(packed(change(parts(path))))
    with pytest.raises(InvalidFileError, match=reason):
        load(path)
    assert list(path.parent.iterdir()) == [path]


def test_newer_schema_is_said_first(path):
    document = {"schema_version": 3, "package_version": "9.1"}
    path.write_bytes(packed({"estimator.json": json.dumps(document), "new": b""}))
    with pytest.raises(InvalidFileError, match=r"version is 3.*by skbdistil 9\.1"):
        load(path)


def test_file_of_an_older_schema_names_the_version_that_reads_it():
    path = Path(__file__).parent / "data" / "iris_0_1.skb"
    with raises(
        "its schema version is 1, and this version of skbdistil reads 2 only",
        "It was written by skbdistil 0.1.0; install that version",
        error=InvalidFileError,
    ):
        load(path)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_students_carry_on_as_before(combine, data, path):
    X, y = data
    saved = BDistilClassifier(student=TINY, combine=combine, **SMALL).fit(X, y)
    loaded = round_trip(saved, path)
    assert loaded.combine_ == combine
    assert student_bits(loaded) == student_bits(saved)
    assert_array_equal(
        list(loaded.staged_predict_proba(X)), list(saved.staged_predict_proba(X))
    )


def without_sizes(node):
    del node["ensemble"]["n_features"]


def sizes(*numbers):
    return set_item("ensemble", "n_features", to=list(numbers))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (without_sizes, "TypeError: .*'n_features'"),
        (set_item("ensemble", "n_features", to=None), "of its students do not fit"),
        (set_item("ensemble", "n_features", to={}), "of its students do not fit"),
        (sizes(), "of its students do not fit"),
        (sizes(3), "of its students do not fit"),
        (sizes(3, 3, 3), "of its students do not fit"),
        (sizes(3, 3.0), "of its students do not fit"),
        (sizes(3, True), "of its students do not fit"),
        (sizes(3, 0), "of its students do not fit"),
        (sizes(3, -3), "of its students do not fit"),
        (sizes(3, 2**24), "of its students do not fit"),
        (sizes(3, None), "of its students do not fit"),
        (sizes(3, 4), "of a student do not fit its backbone"),
    ],
)
def test_number_of_features_is_there_for_each_student(edit, reason, clf, path):
    save(clf, path)
    edited(path, edit)
    with pytest.raises(InvalidFileError, match=reason):
        load(path)


def test_parts_are_stored_once(clf, path):
    save(clf, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("0.skops", bytes(10_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidFileError, match="a part of it is compressed"):
        load(path)
    save(clf, path)
    with zipfile.ZipFile(path, "a") as archive:
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("estimator.json", b"{}")
    with pytest.raises(InvalidFileError, match="a part of it is there twice"):
        load(path)


def test_parts_are_no_larger_than_the_file(clf, path):
    save(clf, path)
    data = path.read_bytes()
    # The sizes in the directory, compressed or not, of the last part.
    start = data.rindex(b"PK\x01\x02") + 20
    size = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data[:start] + size + data[start + 8 :])
    with pytest.raises(InvalidFileError, match="are larger than the file"):
        load(path)


HUGE = {"$partial": [{"$part": "MLP"}, [], {"hidden": {"$tuple": [10**9, 10**5]}}]}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_item("class", to="Exploit"), "class 'Exploit' is unknown"),
        (
            set_item("class", to="Lateral"),
            r"\['augment', 'batch_size',.*are not expected",
        ),
        (set_item("params", "foo", to=1), r"\['foo'\] of BDistilClassifier are not"),
        (set_item("params", "eta", to=-1.0), "'eta' parameter of BDistilClassifier"),
        (set_item("params", "student", to=3), "'student' parameter"),
        (set_item("params", "connection", to="x"), "'connection' parameter"),
        (set_item("params", "device", to="abacus"), "device"),
        (set_item("params", "n_stages", to=9), "'n_stages' parameter"),
        (set_item("params", "objective", to={"$pickle": "x"}), "makes no sense"),
        (set_item("params", "student", to={"$part": "os:system"}), "'os:system'"),
        (set_item("fitted", to=None), "TypeError"),
        (set_item("fitted", "eta_", to=0), "'eta_' does not fit"),
        (set_item("fitted", "foo_", to=0), r"attributes \['foo_'\]"),
        (
            set_item("fitted", "ladder_positions_", to=[0]),
            "'ladder_positions_' does not fit",
        ),
        (
            set_item("fitted", "classes_", to={"$array": ["<i8", [3], [0, 1, 2]]}),
            "'classes_' does not fit",
        ),
        (
            set_item("fitted", "classes_", to={"$array": ["<i8", [2], [1, 0]]}),
            "classes are not in order",
        ),
        (
            set_item("fitted", "classes_", to={"$array": ["<U99999999", [1], ["a"]]}),
            "arrays take more than 67108864 bytes",
        ),
        (
            set_item("fitted", "classes_", to={"$array": ["<i8", [2], [0.5, 1]]}),
            "not of the type int64",
        ),
        (set_item("ensemble", "n_outputs", to=0), "are not positive"),
        (set_item("ensemble", "n_outputs", to=10**12), "give 1000000000000 outputs"),
        (set_item("ensemble", "input_shape", to=[1]), "does not fit the rows"),
        (set_item("ensemble", "number", to=1), "there are 0 weights"),
        (set_item("ensemble", "connection", to=None), "'students.1.head.weight' are"),
        (set_item("ensemble", "connection", to={"$part": "Dense"}), "weights lack"),
        (set_item("ensemble", "connection", to={"$part": "MLP"}), "'connection'"),
        (set_item("ensemble", "students", 0, to=HUGE), "do not fit its backbone"),
        (set_item("ensemble", "students", 0, to={"$part": "Last"}), "ensemble.Last"),
        (set_item("ensemble", "students", 0, to={"$part": "x:MLP"}), "'x:MLP'"),
    ],
)
def test_tampered_description(edit, reason, clf, path):
    save(clf, path)
    edited(path, edit)
    with pytest.raises(InvalidFileError, match=reason):
        load(path)


@pytest.mark.parametrize("name", ["parameters", "weight_bytes", "activation_bytes"])
def test_only_multiply_accumulates_may_be_unknown(name, clf, path):
    clf = clf[:]
    costs = {name: np.array([12, np.nan])}
    clf.stage_costs_ = replace(clf.stage_costs_, **costs)
    with pytest.raises(ValueError, match="'stage_costs_' does not fit"):
        save(clf, path)


def test_unknown_records_are_no_classes(clf, path):
    save(clf, path)
    costs = {"$record": ["Popen", {"args": "true"}]}
    edited(path, set_item("fitted", "stage_costs_", to=costs))
    with pytest.raises(InvalidFileError, match="makes no sense"):
        load(path)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_item("params", "rule", to="luck"), "rule 'luck' is unknown"),
        (set_item("params", "rule", to={"$part": "MLP"}), "rule .*MLP.* is unknown"),
        (set_item("params", "cost", to="euro"), "cost 'euro' is unknown"),
        (set_item("fitted", "best_index_", to=10**6), "best index is out of range"),
        (
            set_item("fitted", "thresholds_", to={"$array": ["<f8", [3], [0.5] * 3]}),
            "stages are not those of its estimator",
        ),
        (
            set_item(
                "fitted",
                "thresholds_",
                to={"$array": ["<f8", [1], [{"$float": "nan"}]]},
            ),
            "a threshold is no number",
        ),
        (
            set_item("fitted", "temperatures_", to={"$array": ["<f8", [2], [1, 0]]}),
            "'temperatures_' is not positive",
        ),
        (
            set_item("fitted", "costs_", to={"$array": ["<f8", [3], [1, 2, 3]]}),
            "'costs_' does not fit",
        ),
    ],
)
def test_tampered_early_exit(edit, reason, early, path):
    save(early, path)
    edited(path, edit)
    with pytest.raises(InvalidFileError, match=reason):
        load(path)


def header_and_rest(data):
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header, rest):
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + rest


@pytest.mark.parametrize("number", [1, 2])
def test_students_without_what_they_carry_on_are_refused(number, clf, path):
    save(clf, path)
    members = parts(path)
    header, rest = header_and_rest(members["weights.safetensors"])
    name = f"0.students.{number - 1}.carry"
    header[f"0.students.{number - 1}.other"] = header.pop(name)
    members["weights.safetensors"] = with_header(header, rest)
    path.write_bytes(packed(members))
    with pytest.raises(InvalidFileError, match=rf"lack, .*{re.escape(name[2:])}"):
        load(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": [6, 3]}, r"of shape \(6, 3\), and should be .* \(3, 6\)"),
        ({"dtype": "I32"}, "are torch.int32 of shape"),
        ({"shape": [10**9, 10**9]}, "SafetensorError"),
        ({"data_offsets": [0, 10**12]}, "SafetensorError"),
    ],
)
def test_tampered_weights(change, reason, clf, path):
    save(clf, path)
    members = parts(path)
    header, rest = header_and_rest(members["weights.safetensors"])
    header["0.students.0.backbone.blocks.0.0.weight"].update(change)
    members["weights.safetensors"] = with_header(header, rest)
    path.write_bytes(packed(members))
    with pytest.raises(InvalidFileError, match=reason):
        load(path)


@pytest.mark.parametrize(
    ("backbone", "input_shape"),
    [
        ("mlp", [2, 3]),
        ("conv1d", [2]),
        ("conv2d", [8, 2]),
        ("gru", [2]),
        ("gru", [1, 5, 2]),
    ],
)
def test_rows_of_another_kind(backbone, input_shape, path):
    save(fitted(backbone), path)
    edited(path, set_item("ensemble", "input_shape", to=input_shape))
    with pytest.raises(InvalidFileError):
        load(path)


@pytest.mark.parametrize("backbone", ["conv1d", "conv2d", "gru"])
def test_sizes_that_no_weight_tells(backbone, path):
    """They are not computed with before a row of that size is passed."""
    save(fitted(backbone), path)
    shape, _ = BACKBONES[backbone]
    large = [10**7, shape[-1]] if len(shape) == 2 else [2, 10**4, 10**4]
    edited(path, set_item("ensemble", "input_shape", to=large))
    assert load(path).input_shape_ == tuple(large)
    huge = [10**9, shape[-1]] if len(shape) == 2 else [2, 10**6, 10**6]
    edited(path, set_item("ensemble", "input_shape", to=huge))
    with pytest.raises(InvalidFileError, match=r"its rows have 20{8,} numbers"):
        load(path)


def test_maps_that_do_not_fit_each_other(path):
    save(fitted("conv2d", connection="lateral"), path)

    def edit(estimator):
        student = estimator["ensemble"]["students"][1]["$partial"]
        student[2]["stride"] = 1

    edited(path, edit)
    with pytest.raises(InvalidFileError, match="RuntimeError"):
        load(path)


# Fuzzing: whatever a file holds, loading it gives the one error or an estimator.


VALUES = [
    None, True, -1, 0, 1, 2, 3, 10**6, 10**30, 0.5, -1.5, 1e308, "", "auto", "cpu",
    "MLP", [], [1], {}, {"a": 1}, {"$": 1}, {"$float": "nan"}, {"$float": "inf"},
    {"$tuple": [2]}, {"$tuple": [10**9]}, {"$part": "MLP"}, {"$part": "os:system"},
    {"$skops": "0.skops"}, {"$array": ["<U9", [2], ["a", "b"]]},
    {"$array": ["<f8", [1, 2], [1.0, 2.0]]}, {"$array": ["V8", [1], [1]]},
    {"$partial": [{"$part": "MLP"}, [[]], {"hidden": [2]}]},
    {"$estimator": {"class": "Lateral", "params": {}}},
    {"$estimator": {"class": "Recurrent", "params": {}}},
    {"$estimator": {"class": "Window", "params": {"earlier": 2}}},
]  # fmt: skip


def nested_places(node, places):
    keys = node if isinstance(node, dict) else range(len(node))
    for key in keys:
        places.append((node, key))
        if isinstance(node[key], dict | list):
            nested_places(node[key], places)
    return places


def mutate_bits(rng, data):
    data = bytearray(data)
    for position in rng.randint(len(data), size=rng.randint(1, 9)):
        data[position] ^= 1 << rng.randint(8)
    return bytes(data)


def mutate_length(rng, data):
    start, stop = np.sort(rng.randint(len(data) + 1, size=2))
    return rng.choice([data[:start], data[start:], data[:start] + data[stop:]])


def mutate_order(rng, data):
    start, stop, to = rng.randint(len(data), size=3)
    piece = data[start : start + stop % 100]
    overwritten = len(piece) * rng.randint(2)
    return data[:to] + piece + data[to + overwritten :]


def mutate_description(rng, data):
    members = read(data)
    document = json.loads(members["estimator.json"])
    for _ in range(rng.randint(1, 3)):
        places = nested_places(document, [])
        node, key = places[rng.randint(len(places))]
        kind = rng.randint(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(["foo", "$tuple", "params", "eta_"])] = node.pop(key)
        elif kind == 2:
            other, other_key = places[rng.randint(len(places))]
            node[key] = json.loads(json.dumps(other[other_key]))
        else:
            node[key] = VALUES[rng.randint(len(VALUES))]
    members["estimator.json"] = json.dumps(document).encode()
    return packed(members)


def mutate_weights(rng, data):
    members = read(data)
    header, rest = header_and_rest(members["weights.safetensors"])
    name = rng.choice(sorted(header))
    kind = rng.randint(6)
    if kind == 0:
        rest = mutate_bits(rng, rest)
    elif kind == 1:
        header[rng.choice(sorted(header)).replace("0", "1")] = header.pop(name)
    elif kind == 2:
        header[name]["dtype"] = str(rng.choice(["F64", "F16", "I32", "BOOL", "X"]))
    elif kind == 3:
        header[name]["shape"] = rng.randint(-1, 4, size=rng.randint(4)).tolist()
    elif kind == 4:
        header[name]["data_offsets"] = rng.randint(-4, len(rest) + 4, size=2).tolist()
    else:
        rest = mutate_length(rng, rest)
    members["weights.safetensors"] = with_header(header, rest)
    return packed(members)


def mutate_parts(rng, data):
    members = read(data)
    name = rng.choice(sorted(members))
    kind = rng.randint(4)
    if kind == 0:
        members[rng.choice(["../x", "/x", "0.skops", "x" * 300])] = members.pop(name)
    elif kind == 1:
        members[name] = mutate_bits(rng, members[name])
    elif kind == 2:
        members[name] = mutate_length(rng, members[name])
    else:
        members[name] = mutate_order(rng, members[name])
    return packed(members)


def read(data):
    return parts(io.BytesIO(data))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["classifier", "early exit"])
@pytest.mark.parametrize(
    ("mutate", "n_files"),
    [
        (mutate_bits, 200),
        (mutate_length, 100),
        (mutate_order, 100),
        (mutate_description, 500),
        (mutate_weights, 200),
        (mutate_parts, 200),
    ],
)
def test_mutated_files(mutate, n_files, kind, clf, early, path):
    save(clf if kind == "classifier" else early, path)
    data = path.read_bytes()
    rng = np.random.RandomState(0)
    rows = np.linspace(-1, 1, 18).reshape(3, 6)
    reasons = []
    for _ in range(n_files):
        path.write_bytes(mutate(rng, data))
        try:
            loaded = load(path)
        except InvalidFileError as error:
            reasons.append(str(error))
        else:
            with np.errstate(all="ignore"):  # weights may be infinite
                assert loaded.predict(rows).shape == (3,)
    assert all(reason.startswith(f"'{path}' cannot be") for reason in reasons)
    assert len(reasons) > n_files / 10


def test_mutated_pipelines(clf, data, path):
    pipeline = make_pipeline(StandardScaler().fit(data[0]), clf)
    save(pipeline, path)
    data = path.read_bytes()
    rng = np.random.RandomState(0)
    for _ in range(100):
        path.write_bytes(mutate_parts(rng, data))
        with contextlib.suppress(InvalidFileError):
            load(path)
