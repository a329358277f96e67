"""The estimators as a user meets them: fit, predict by stage, search, save, break."""

import hashlib
import itertools
import math
import pickle
import re
import subprocess
import sys
import textwrap
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping
from torch import nn

from common import COMBINATIONS, Embedded, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil._boosting import _plan, _progress, _rows, _training
from skbdistil.ensemble import Lateral
from skbdistil.exceptions import (
    CostsUnknownWarning,
    FitInterruptedWarning,
    WeakLearnerNotFoundWarning,
)
from skbdistil.students import MLP, ConvNet2d
from skbdistil.teachers import TorchTeacher

N_ROWS, N_FEATURES = 96, 5

# Any student passes: what these tests look at is not the search.
SMALL = {
    "student": partial(MLP, hidden=(4,)),
    "n_estimators": 3,
    "max_epochs": 2,
    "edge_tol": 100.0,
    "random_state": 0,
}

ESTIMATORS = pytest.mark.parametrize(
    "estimator", [BDistilClassifier, BDistilRegressor], ids=["classifier", "regressor"]
)


def linear(n_outputs, n_features=N_FEATURES, seed=0):
    """A teacher network with a single layer."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(n_outputs))
    with torch.random.fork_rng([]):
        module(torch.zeros(2, n_features))
    with torch.no_grad():
        module[1].weight.copy_(torch.randn(n_outputs, n_features, generator=generator))
        module[1].bias.zero_()
    return module


def rows(n=N_ROWS, n_features=N_FEATURES, seed=0):
    return np.random.RandomState(seed).randn(n, n_features).astype(np.float32)


def torch_teacher(estimator, n_outputs=3, **options):
    if estimator is BDistilClassifier and "classes" not in options:
        options["classes"] = np.arange(n_outputs)
    return TorchTeacher(linear(n_outputs), **options)


def fitted(estimator, n_outputs=3, X=None, y=None, fit=None, **options):
    """Distilled from a linear torch teacher of `n_outputs` outputs."""
    options = {**SMALL, **options}
    options.setdefault("teacher", torch_teacher(estimator, n_outputs))
    return estimator(**options).fit(rows() if X is None else X, y, **(fit or {}))


def staged_scores(model, X):
    """Running means in the units of the teacher, (n_stages, n, n_outputs)."""
    with torch.no_grad():
        like = next(model.ensemble_.parameters())
        x = torch.as_tensor(np.asarray(X)).to(like.dtype)
        return np.stack([s.numpy() for s in model.ensemble_.stages(x)])


def hold_nothing(monkeypatch):
    """What earlier students computed is computed again for every batch."""
    monkeypatch.setattr(_plan, "_MAX_HELD_BYTES", -1)


def teacher_logits(module, X):
    with torch.no_grad():
        scores = module(torch.as_tensor(X)).double().numpy()
    return scores - scores.mean(1, keepdims=True)


# Fitting and predicting


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("labels", ["ints", "strings"])
def test_classifier_predictions_agree_with_each_other(n_classes, labels):
    X, y = make_classification(
        n_samples=N_ROWS,
        n_classes=n_classes,
        n_informative=4,
        n_redundant=0,
        n_features=N_FEATURES,
        random_state=0,
    )
    if labels == "strings":
        y = np.array(["pear", "apple", "fig"])[y]
    clf = BDistilClassifier(LogisticRegression(), **SMALL).fit(X, y)
    assert_array_equal(clf.classes_, np.unique(y))
    proba = clf.predict_proba(X)
    decision = clf.decision_function(X)
    assert proba.shape == (N_ROWS, n_classes)
    assert_allclose(proba.sum(1), 1, rtol=1e-6)
    assert_allclose(clf.predict_log_proba(X), np.log(proba), rtol=1e-4, atol=1e-6)
    assert_array_equal(clf.predict(X), clf.classes_[proba.argmax(1)])
    if n_classes == 2:
        assert decision.shape == (N_ROWS,)
        assert_array_equal(clf.predict(X), clf.classes_[(decision > 0).astype(int)])
        log_odds = np.log(proba[:, 1]) - np.log(proba[:, 0])
        assert_allclose(decision, log_odds, rtol=1e-4, atol=1e-5)
    else:
        assert decision.shape == (N_ROWS, n_classes)
        assert_array_equal(clf.predict(X), clf.classes_[decision.argmax(1)])
        # Centred, like the logits of the teacher.
        assert_allclose(decision.sum(1), 0, atol=1e-5)
    assert clf.score(X, y) == accuracy_score(y, clf.predict(X))


def test_students_learn_what_the_teacher_knows():
    X = rows(200)
    module = linear(3)
    clf = BDistilClassifier(
        TorchTeacher(module, classes=[0, 1, 2]),
        student=partial(MLP, hidden=(8,)),
        n_estimators=3,
        max_epochs=40,
        random_state=0,
    ).fit(X)
    assert np.mean(clf.predict(X) == teacher_logits(module, X).argmax(1)) > 0.9
    reg = BDistilRegressor(module, n_estimators=2, max_epochs=40, random_state=0)
    with torch.no_grad():
        wanted = module(torch.from_numpy(X)).numpy()
    assert r2_score(wanted, reg.fit(X).predict(X)) > 0.9


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_y_may_hold_a_subset_of_the_teachers_classes():
    X = rows()
    teacher = torch_teacher(BDistilClassifier, 4, classes=["a", "b", "c", "d"])
    y = np.array(["b", "d"])[np.arange(N_ROWS) % 2]
    clf = BDistilClassifier(teacher, **SMALL).fit(X, y)
    assert clf.classes_.tolist() == ["a", "b", "c", "d"]
    assert clf.predict_proba(X).shape == (N_ROWS, 4)
    # Labels play no part in the default objective.
    unlabelled = BDistilClassifier(teacher, **SMALL).fit(X)
    assert unlabelled.teacher_score_ is None
    assert 0 <= clf.teacher_score_ <= 1
    assert_array_equal(clf.predict_proba(X), unlabelled.predict_proba(X))


def test_columns_follow_the_sorted_classes():
    X = rows()
    module = linear(3)
    order = [2, 0, 1]
    sorted_module = linear(3)
    with torch.no_grad():
        sorted_module[1].weight.copy_(module[1].weight[[1, 2, 0]])
    assert sorted(np.take(["a", "b", "c"], order)) == ["a", "b", "c"]
    unsorted = TorchTeacher(module, classes=np.take(["a", "b", "c"], order))
    clf = BDistilClassifier(unsorted, **SMALL).fit(X)
    ref = BDistilClassifier(TorchTeacher(sorted_module, classes=["a", "b", "c"]))
    ref = ref.set_params(**SMALL).fit(X)
    assert clf.classes_.tolist() == ["a", "b", "c"]
    assert_array_equal(clf.predict_proba(X), ref.predict_proba(X))
    # The certificate is about the same columns.
    assert_allclose(clf.certificate_.actual, ref.certificate_.actual)


@pytest.mark.parametrize("shape", [(N_ROWS,), (N_ROWS, 1), (N_ROWS, 2)])
def test_regressor_predicts_in_the_shape_of_the_targets(shape):
    X, y = rows(), np.random.RandomState(1).randn(*shape)
    reg = BDistilRegressor(LinearRegression(), **SMALL).fit(X, y)
    assert reg.predict(X).shape == shape
    assert all(stage.shape == shape for stage in reg.staged_predict(X))
    assert reg.score(X, y) == pytest.approx(r2_score(y, reg.predict(X)))


def test_regression_is_in_units_of_the_targets():
    X = rows()
    module, scaled = linear(2), linear(2)
    factor = torch.tensor([1024.0, 0.125])  # exact in floats
    with torch.no_grad():
        scaled[1].weight.mul_(factor[:, None])
    reg, other = (fitted(BDistilRegressor, teacher=m) for m in (module, scaled))
    factor = factor.numpy()
    assert_allclose(other.predict(X), reg.predict(X) * factor, rtol=1e-4, atol=1e-4)
    for name in ("bound", "actual", "mean"):
        assert_allclose(
            getattr(other.certificate_, name),
            getattr(reg.certificate_, name) * factor,
            rtol=1e-4,
        )
    assert_allclose(other.student_edges_, reg.student_edges_, rtol=1e-3, atol=1e-5)


# Stages


@ESTIMATORS
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_the_last_stage_is_predict_to_the_bit(estimator, n_outputs):
    if estimator is BDistilClassifier:
        n_outputs = max(n_outputs, 2)
        methods = ["predict", "predict_proba", "decision_function"]
    else:
        methods = ["predict"]
    model = fitted(estimator, n_outputs)
    X = rows(seed=1)
    for method in methods:
        stages = list(getattr(model, f"staged_{method}")(X))
        assert len(stages) == model.n_estimators_ == len(model) == 3
        assert_array_equal(stages[-1], getattr(model, method)(X))
        for k in (1, 2, 3):
            limited = clone(model).fit(rows()).set_params(n_stages=k)
            model.set_params(n_stages=k)
            assert_array_equal(getattr(model, method)(X), stages[k - 1])
            assert_array_equal(getattr(limited, method)(X), stages[k - 1])
            assert len(list(getattr(model, f"staged_{method}")(X))) == k
            model.set_params(n_stages=None)
            assert_array_equal(getattr(model[:k], method)(X), stages[k - 1])
    assert not np.array_equal(stages[0], stages[-1])


@ESTIMATORS
def test_staged_methods_are_lazy_and_need_a_fit(estimator):
    methods = ["predict"]
    if estimator is BDistilClassifier:
        methods += ["predict_proba", "decision_function"]
    model = fitted(estimator)
    for method in methods:
        with pytest.raises(NotFittedError):
            next(getattr(estimator(), f"staged_{method}")(rows()))
        with pytest.raises(NotFittedError):
            getattr(estimator(), method)(rows())
        stages = getattr(model, f"staged_{method}")(rows())
        # Nothing is looked at before the first stage is asked for.
        getattr(model, f"staged_{method}")("no rows at all")
        for _ in stages:
            # A suspended generator must not leave its mode to whoever holds it.
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
    with pytest.raises(NotFittedError):
        next(estimator().staged_score(rows(), None))
    with pytest.raises(NotFittedError):
        len(estimator())
    with pytest.raises(NotFittedError):
        estimator()[:1]


@ESTIMATORS
def test_all_stages_take_one_pass_over_the_students(estimator):
    model = fitted(estimator)
    calls = []
    for number, student in enumerate(model.ensemble_.students):
        student.register_forward_hook(lambda *_, number=number: calls.append(number))
    stages = model.staged_predict(rows())
    assert calls == []
    assert len(list(stages)) == 3
    assert calls == [0, 1, 2]
    model.set_params(n_stages=2).predict(rows())
    assert calls == [0, 1, 2, 0, 1]


@ESTIMATORS
def test_staged_score_is_the_score_of_each_stage(estimator):
    model = fitted(estimator)
    rng = np.random.RandomState(0)
    X = rows()
    y = rng.randint(3, size=N_ROWS)
    if estimator is BDistilRegressor:
        y = rng.randn(N_ROWS, 3)
    for weight in (None, rng.rand(N_ROWS)):
        scores = list(model.staged_score(X, y, sample_weight=weight))
        assert scores[-1] == model.score(X, y, sample_weight=weight)
        assert scores == [
            model[:k].score(X, y, sample_weight=weight) for k in (1, 2, 3)
        ]


@ESTIMATORS
def test_prediction_of_a_row_does_not_depend_on_the_others(estimator, monkeypatch):
    model = fitted(estimator)
    method = "predict" if estimator is BDistilRegressor else "decision_function"
    predict = getattr(model, method)
    X = rows(n=23)
    whole = predict(X)
    alone = np.concatenate([predict(row[None]) for row in X])
    assert_allclose(alone, whole, atol=1e-5, rtol=1e-5)
    order = np.random.RandomState(0).permutation(len(X))
    assert_allclose(predict(X[order]), whole[order], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(_rows, "_CHUNK_ROWS", 4)
    assert_allclose(predict(X), whole, atol=1e-5, rtol=1e-5)
    stages = list(getattr(model, f"staged_{method}")(X))
    assert_array_equal(stages[-1], predict(X))


@ESTIMATORS
def test_small_chunks_in_fit_change_nothing(estimator, monkeypatch):
    X = rows()
    whole = fitted(estimator, dtype="float64")
    monkeypatch.setattr(_rows, "_CHUNK_ROWS", 7)
    chunked = fitted(estimator, dtype="float64")
    assert_allclose(
        staged_scores(chunked, X), staged_scores(whole, X), rtol=1e-7, atol=1e-9
    )


@ESTIMATORS
def test_a_slice_is_a_fitted_copy(estimator):
    model = fitted(estimator, n_stages=3)
    X = rows()
    cut = model[:2]
    assert isinstance(cut, estimator)
    assert len(cut) == cut.n_estimators_ == 2
    assert (
        len(cut.certificate_)
        == len(cut.ladder_positions_)
        == len(cut.training_history_)
        == 2
    )
    assert len(cut.stage_costs_) == len(cut.student_edges_) == 2
    assert_array_equal(cut.stage_costs_.macs, model.stage_costs_.macs[:2])
    assert_array_equal(cut.certificate_.actual, model.certificate_.actual[:2])
    assert cut.n_stages is None
    assert model.n_stages == 3
    assert len(model[:2].set_params(n_stages=1)[:2]) == 2
    before = model.predict(X)
    with torch.no_grad():
        for parameter in cut.ensemble_.parameters():
            parameter.fill_(3.0)
    assert_array_equal(model.predict(X), before)
    assert len(model[:]) == len(model[0:3]) == len(model[:99]) == 3
    assert len(model[:-1]) == 2
    for bad in (slice(1, None), slice(0, 0), slice(None, None, 2), slice(-5, -4)):
        with pytest.raises(ValueError, match=rf"{estimator.__name__} can be cut .*:k"):
            model[bad]
    with pytest.raises(TypeError, match=r"cut by a slice \[:k\]\. Got 0"):
        model[0]
    with pytest.raises(TypeError, match="not iterable"):
        iter(model)


# Fitted attributes


@ESTIMATORS
def test_documented_attributes_exist(estimator):
    names = estimator.__doc__.split("Attributes\n")[1].split("See Also")[0]
    model = fitted(estimator, X=pd.DataFrame(rows(), columns=list("abcde")))
    documented = [
        name.strip()
        for line in names.splitlines()
        if " : " in line and line.startswith("    ") and not line.startswith("     ")
        for name in line.split(" : ")[0].split(",")
    ]
    assert len(documented) > 12
    for name in documented:
        assert hasattr(model, name), name
        assert not hasattr(estimator(), name), name
    fitted_names = {name for name in vars(model) if name.endswith("_")}
    assert fitted_names <= set(documented)


@ESTIMATORS
@pytest.mark.parametrize("connection", [None, "dense"])
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_certificate_is_about_the_ensemble_and_the_training_rows(
    estimator, connection, combine
):
    X = rows()
    module = linear(2)
    options = {"connection": connection, "combine": combine}
    options |= {"max_epochs": 8, "dtype": "float64"}
    if estimator is BDistilClassifier:
        teacher = TorchTeacher(module, classes=[0, 1])
        wanted = teacher_logits(module, X)
    else:
        teacher = module
        with torch.no_grad():
            wanted = module(torch.from_numpy(X)).numpy()
    model = fitted(estimator, teacher=teacher, **options)
    certificate = model.certificate_
    assert certificate.bound.shape == certificate.actual.shape == (3, 2)
    assert certificate.step.shape == (3,)
    error = np.abs(staged_scores(model, X) - wanted)
    assert_allclose(certificate.actual, error.max(axis=1), rtol=1e-5)
    assert_allclose(certificate.mean, error.mean(axis=1), rtol=1e-5)
    assert np.isfinite(certificate.bound).any()
    assert (certificate.bound >= certificate.actual).all()
    assert_array_equal(
        np.isfinite(certificate.bound[:, 0]),
        np.maximum.accumulate(certificate.step) <= 1,
    )
    assert model.student_edges_.shape == (3, 2)
    # Round 1 weighs both sides of all rows alike.
    assert_allclose(model.student_edges_[0], 0, atol=1e-12)
    scale = (
        model.teacher_bound_ if estimator is BDistilRegressor else np.abs(wanted).max()
    )
    assert model.teacher_bound_ == pytest.approx(scale, rel=1e-5)
    wanted_eta = min(math.sqrt(math.log(2 * N_ROWS) / 3), 1) / (
        2 * model.teacher_bound_
    )
    assert model.eta_ == pytest.approx(wanted_eta, rel=1e-9)


def test_regression_is_played_on_standardised_targets():
    X = rows()
    module = linear(2)
    with torch.no_grad():
        module[1].bias.copy_(torch.tensor([100.0, -3.0]))
        g = module(torch.from_numpy(X)).numpy()
    reg = fitted(BDistilRegressor, teacher=module)
    assert_allclose(reg.target_mean_, g.mean(0), rtol=1e-5)
    assert_allclose(reg.target_scale_, g.std(0), rtol=1e-5)
    bound = np.abs((g - g.mean(0)) / g.std(0)).max()
    assert reg.teacher_bound_ == pytest.approx(bound, rel=1e-4)


def test_edges_are_those_of_the_game_replayed_by_hand():
    X = rows()
    module = linear(3)
    clf = fitted(
        BDistilClassifier, teacher=TorchTeacher(module, classes=[0, 1, 2]), eta=0.2
    )
    g = teacher_logits(module, X)
    means = staged_scores(clf, X).astype(float)
    totals = means * np.arange(1, 4)[:, None, None]
    students = np.diff(totals, axis=0, prepend=0)
    S = np.zeros_like(g)
    for t, f in enumerate(students):
        under, over = np.exp(-0.2 * S), np.exp(0.2 * S)
        edges = ((under - over) * (f - g)).sum(0) / (under + over).sum(0)
        assert_allclose(clf.student_edges_[t], edges, atol=1e-5)
        S += f - g


@ESTIMATORS
def test_costs_by_hand(estimator):
    model = fitted(estimator, n_outputs=3)
    # Backbone 5 x 4, dense connection (4 + 4 (t-1)) x 4, head 4 x 3.
    assert model.stage_costs_.macs.tolist() == [20 + 12, 20 + 32 + 12, 20 + 48 + 12]
    backbone, head = 5 * 4 + 4, 4 * 3 + 3
    parameters = [backbone + head, backbone + 36 + head, backbone + 52 + head]
    assert model.stage_costs_.parameters.tolist() == parameters
    assert model.teacher_costs_.macs == 15
    assert model.teacher_costs_.parameters == 18
    X, y = rows(), np.arange(N_ROWS) % 3
    assert estimator(None, **SMALL).fit(X, y).teacher_costs_ is None


@ESTIMATORS
@pytest.mark.parametrize("unit", ["macs", "weight_bytes", "activation_bytes"])
def test_stage_for_budget(estimator, unit):
    model = fitted(estimator, n_outputs=3)
    costs = model.stage_costs_.cumulative(unit)
    for stage, cost in enumerate(costs, start=1):
        assert model.stage_for(cost, unit) == stage
        # Between two stages, the lower one.
        assert model.stage_for(cost + 0.5, unit) == stage
    assert model.stage_for(np.inf, unit) == len(model)
    with pytest.raises(
        ValueError,
        match=f"budget of {costs[0] - 1:g}: the cheapest one costs {costs[0]:g}",
    ):
        model.stage_for(costs[0] - 1, unit)
    # All students are asked, whatever number is in use.
    assert model.set_params(n_stages=1).stage_for(np.inf, unit) == len(model)


def test_stage_for_budget_of_your_own():
    model = fitted(BDistilClassifier, n_outputs=3)
    assert model.stage_for(2.5, lambda clf: np.arange(1, len(clf) + 1)) == 2
    X = rows()
    assert model.stage_for(1e9, "latency", X) == len(model)
    with pytest.raises(ValueError, match="the cheapest one costs"):
        model.stage_for(0, "latency", X)
    with pytest.raises(ValueError, match="unit of cost must be one of"):
        model.stage_for(1, "joule")
    for budget in (np.nan, "10", None):
        with pytest.raises(ValueError, match="'budget' must be a number"):
            model.stage_for(budget)
    with pytest.raises(NotFittedError):
        BDistilClassifier().stage_for(1)


def test_budget_is_kept_by_the_estimator():
    model = fitted(BDistilClassifier, n_outputs=3)
    costs = model.stage_costs_
    stage = model.stage_for(costs.cumulative_macs[1])
    short = model[:stage]
    assert_array_equal(short.stage_costs_.cumulative_macs, costs.cumulative_macs[:2])
    X = rows()
    expected = short.predict_proba(X)
    assert_array_equal(model.set_params(n_stages=stage).predict_proba(X), expected)


def test_teacher_that_cannot_be_counted_has_unknown_costs_and_a_warning():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(N_FEATURES, 3))

        def forward(self, x):
            # What it computes depends on the data.
            return x @ self.weight if x.sum() > 0 else -x @ self.weight

    with pytest.warns(CostsUnknownWarning, match="operations of Odd could not be") as w:
        reg = fitted(BDistilRegressor, teacher=Odd())
    assert reg.teacher_costs_.macs is None
    assert reg.teacher_costs_.parameters == 3 * N_FEATURES
    assert [warning.filename for warning in w] == [__file__]


@ESTIMATORS
def test_nothing_that_grows_with_the_rows_is_kept(estimator):
    sizes = []
    for n in (100, 400):
        model = fitted(estimator, X=rows(n), batch_size=25)
        sizes.append(len(pickle.dumps(model)))
        for name, value in vars(model).items():
            size = value.size if isinstance(value, np.ndarray) else 0
            assert size < 100, name
        assert not any(t.numel() >= 100 for t in model.ensemble_.state_dict().values())
    assert abs(sizes[0] - sizes[1]) < 300


# scikit-learn's machinery


@ESTIMATORS
@pytest.mark.parametrize("dump", [pickle, joblib], ids=["pickle", "joblib"])
def test_dumped_and_loaded_predicts_the_same(estimator, dump, tmp_path):
    model = fitted(
        estimator,
        net=NeuralNet(None, criterion=None, optimizer=torch.optim.SGD),
        objective=DistillationObjective("squared_error", gamma=0.5),
    )
    path = tmp_path / "model"
    with path.open("wb") as file:
        dump.dump(model, file)
    with path.open("rb") as file:
        loaded = dump.load(file)
    X = rows()
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert_array_equal(loaded[:1].predict(X), model[:1].predict(X))
    assert_array_equal(loaded.certificate_.bound, model.certificate_.bound)


@ESTIMATORS
def test_parameters_are_searchable_to_the_bottom(estimator):
    net = NeuralNet(None, criterion=None, optimizer__weight_decay=0.1)
    objective = DistillationObjective("squared_error", gamma=0.5)
    model = estimator(LinearRegression(), net=net, objective=objective)
    params = model.get_params(deep=True)
    assert params["objective__gamma"] == 0.5
    assert params["net__optimizer__weight_decay"] == 0.1
    assert params["teacher__fit_intercept"] is True
    copied = clone(model).set_params(
        objective__gamma=2.0, net__optimizer__weight_decay=0.2, eta=0.1
    )
    assert copied.objective.gamma == 2.0
    assert copied.get_params()["net__optimizer__weight_decay"] == 0.2
    assert objective.gamma == 0.5
    assert model.get_params()["net__optimizer__weight_decay"] == 0.1
    assert model.eta == "auto"


@ESTIMATORS
def test_fit_does_not_touch_parameters(estimator):
    net = NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)
    objective = DistillationObjective("squared_error")
    model = estimator(torch_teacher(estimator), net=net, objective=objective, **SMALL)
    before = {name: id(value) for name, value in model.get_params(False).items()}
    model.fit(rows())
    assert before == {n: id(v) for n, v in model.get_params(False).items()}
    assert not net.initialized_
    assert net.callbacks is None


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_grid_search_in_a_pipeline(n_jobs):
    X = rows().astype(float)
    y = (X[:, 0] > 0).astype(int)
    clf = BDistilClassifier(
        TorchTeacher(linear(2), classes=[0, 1]),
        objective=DistillationObjective(),
        net=NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW),
        **{**SMALL, "n_estimators": 2},
    )
    grid = [
        {"bdistilclassifier__connection": [None, "dense"]},
        {"bdistilclassifier__combine": ["mean", "sum"]},
        {"bdistilclassifier__objective__gamma": [0.5, 2.0]},
        {"bdistilclassifier__net__optimizer__weight_decay": [0.0, 10.0]},
        {"bdistilclassifier__n_stages": [1, 2]},
    ]
    if n_jobs == 2:
        grid = grid[-1]
    pipeline = make_pipeline(StandardScaler(), clf)
    search = GridSearchCV(
        pipeline, grid, cv=2, n_jobs=n_jobs, error_score="raise", scoring="neg_log_loss"
    ).fit(X, y)
    scores = search.cv_results_["mean_test_score"].reshape(-1, 2)
    assert np.isfinite(scores).all()
    # Every parameter reaches the students.
    assert (scores[:, 0] != scores[:, 1]).all()
    best = search.best_estimator_
    assert_array_equal(best.predict(X), search.predict(X))
    assert clf.objective.gamma == DistillationObjective().gamma
    assert not hasattr(clf, "ensemble_")


def test_pipeline_passes_weights_and_stages():
    X = rows()
    y = np.arange(N_ROWS) % 2
    pipeline = make_pipeline(
        StandardScaler(), BDistilClassifier(LogisticRegression(), **SMALL)
    )
    pipeline.fit(X, y, bdistilclassifier__sample_weight=np.ones(N_ROWS))
    last = list(pipeline[-1].staged_predict(pipeline[:-1].transform(X)))[-1]
    assert_array_equal(pipeline.predict(X), last)


# Input


@pytest.mark.parametrize(
    "frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"]
)
@ESTIMATORS
def test_teacher_and_students_see_column_names(estimator, frame):
    if not hasattr(StandardScaler().fit(frame({"a": [1.0, 2.0]})), "feature_names_in_"):
        pytest.skip("This scikit-learn does not see the column names of this polars.")
    seen = []
    base = {BDistilClassifier: ClassifierMixin, BDistilRegressor: RegressorMixin}

    class Teacher(base[estimator], BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def predict(self, X):
            seen.append(X)
            return np.asarray(X)[:, 0]

        def predict_proba(self, X):
            seen.append(X)
            second = 1 / (1 + np.exp(-np.asarray(X)[:, 0]))
            return np.column_stack([1 - second, second])

    y = np.arange(N_ROWS) % 2
    X = frame({name: column for name, column in zip("abcde", rows().T, strict=True)})
    model = estimator(Teacher(), **SMALL).fit(X, y)
    assert model.feature_names_in_.tolist() == list("abcde")
    assert {type(rows_seen) for rows_seen in seen} == {frame}
    plain = clone(model).fit(rows(), y)
    assert not hasattr(plain, "feature_names_in_")
    assert_array_equal(model.predict(X), plain.predict(rows()))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(X[list("edcba")])


@ESTIMATORS
def test_read_only_memmap(estimator, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, rows())
    before = path.read_bytes()
    X = np.load(path, mmap_mode="r")
    model = fitted(estimator, X=X, n_estimators=2, refine="final")
    plain = fitted(estimator, n_estimators=2, refine="final")
    assert_array_equal(model.predict(X), plain.predict(rows()))
    assert path.read_bytes() == before


@ESTIMATORS
@pytest.mark.parametrize(
    "convert",
    [
        *(pytest.param(partial(np.asarray, dtype=d), id=d) for d in ("uint8", "int64")),
        *(pytest.param(partial(np.asarray, dtype=d), id=d) for d in ("i1", "float16")),
        pytest.param(partial(np.asarray, dtype="float64"), id="float64"),
        pytest.param(np.asfortranarray, id="fortran"),
        pytest.param(np.ndarray.tolist, id="list"),
        pytest.param(lambda X: np.repeat(X, 2, axis=0)[::2], id="strided"),
    ],
)
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_dtypes_and_layouts_mean_the_same_rows(estimator, convert):
    X = np.random.RandomState(0).randint(100, size=(N_ROWS, N_FEATURES))
    X = X.astype(np.float32)
    y = (X[:, 0] > 50).astype(int)
    teacher = FrozenEstimator(LinearRegression().fit(X, y))
    if estimator is BDistilClassifier:
        teacher = torch_teacher(estimator, 2)
    options = {"teacher": teacher, "n_estimators": 2, "y": y}
    plain = fitted(estimator, X=X, **options)
    model = fitted(estimator, X=convert(X), **options)
    assert_allclose(model.predict(convert(X)), plain.predict(X), rtol=1e-3, atol=1e-3)


@ESTIMATORS
@pytest.mark.parametrize("shape", [(1, 8, 8), (6, 2)], ids=["images", "sequences"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_rows_of_more_than_one_axis(estimator, shape, dtype):
    n_features = math.prod(shape)
    X = np.random.RandomState(0).randint(255, size=(64, *shape)).astype(dtype)
    teacher = TorchTeacher(
        linear(3, n_features),
        classes=[0, 1, 2] if estimator is BDistilClassifier else None,
        transform=lambda batch: batch / 255,
    )
    model = fitted(estimator, teacher=teacher, X=X, student="auto", n_estimators=2)
    assert model.input_shape_ == shape
    assert model.predict(X).shape[0] == 64
    assert_array_equal(list(model.staged_predict(X))[-1], model.predict(X))
    alone = np.concatenate([staged_scores(model, row[None]) for row in X], axis=1)
    assert_allclose(alone, staged_scores(model, X), atol=1e-5, rtol=1e-4)
    wrong = X.reshape(64, *shape[::-1]) if len(shape) == 2 else X[:, :, :, :4]
    with pytest.raises(ValueError, match=r"was fitted on rows of shape|features"):
        model.predict(wrong)
    # The first axis agrees, so scikit-learn alone would let this pass.
    with pytest.raises(ValueError, match=r"was fitted on rows of shape .* has rows of"):
        model.predict(X[..., :-1])


@ESTIMATORS
def test_dtype_of_the_students(estimator):
    for dtype in ("float32", "float64"):
        model = fitted(estimator, dtype=dtype)
        assert {str(p.dtype) for p in model.ensemble_.parameters()} == {
            f"torch.{dtype}"
        }
        if estimator is BDistilClassifier:
            assert model.predict_proba(rows()).dtype == dtype
            assert model.decision_function(rows()).dtype == dtype
        else:
            # As scikit-learn's regressors do.
            assert model.predict(rows()).dtype == np.float64


# Seeds


def output_bytes(model, X):
    method = model.predict_proba if hasattr(model, "classes_") else model.predict
    return hashlib.sha256(method(X).tobytes()).hexdigest()


@ESTIMATORS
def test_same_seed_same_bits(estimator):
    X, y = rows(), np.arange(N_ROWS) % 3
    options = {**SMALL, "n_estimators": 2, "refine": "final", "early_stopping": True}

    def fit(random_state):
        options["random_state"] = random_state
        # The teacher is fitted inside: its seed counts too.
        return output_bytes(estimator(None, **options).fit(X, y), X)

    assert fit(7) == fit(7) == fit(np.random.RandomState(7))
    assert fit(7) != fit(8)
    # An instance goes on from where the last fit left it.
    instance = np.random.RandomState(7)
    assert fit(instance) != fit(instance)


def test_same_seed_same_bits_in_another_process():
    code = """
    import hashlib, torch
    from functools import partial
    import numpy as np
    from skbdistil import BDistilClassifier, BDistilRegressor
    from skbdistil.students import MLP
    torch.set_num_threads(1)
    X = np.random.RandomState(0).randn(96, 5).astype(np.float32)
    options = dict(
        student=partial(MLP, hidden=(4,)), n_estimators=2, max_epochs=2, edge_tol=100.0,
        random_state=3,
    )
    clf, reg = (
        estimator(None, **options).fit(X, np.arange(96) % 3)
        for estimator in (BDistilClassifier, BDistilRegressor)
    )
    output = clf.predict_proba(X).tobytes() + reg.predict(X).tobytes()
    digest = hashlib.sha256(output).hexdigest()
    """
    code = textwrap.dedent(code)
    here = {}
    exec(code, here)
    there = subprocess.run(
        [sys.executable, "-c", code + "print(digest)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here["digest"]


@ESTIMATORS
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generators_are_left_alone(estimator, fails, random_state):
    def state():
        numpy_state = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:]

    X, y = rows(), np.arange(N_ROWS) % 3
    model = estimator(
        None, **{**SMALL, "n_estimators": 2, "random_state": 0, "refine": "final"}
    )
    model.set_params(random_state=random_state)
    if fails:
        model.set_params(student=Exploding.from_call(3))
    before = state()
    if fails:
        with pytest.raises(ZeroDivisionError):
            model.fit(X, y)
    else:
        model.fit(X, y).predict(X)
    after = state()
    assert after[0] == before[0]
    # None means NumPy's global generator, as everywhere in scikit-learn.
    assert (after[1:] == before[1:]) == (random_state == 0)


class Exploding(MLP):
    """Raises an error at the given call in training mode, counted over all students."""

    @classmethod
    def from_call(cls, number, error=ZeroDivisionError):
        calls = itertools.count(1)

        class Counting(cls):
            def forward(self, x):
                if self.training and next(calls) == number:
                    raise error
                return super().forward(x)

        return partial(Counting, hidden=(4,))


# Warm start


class Constant(nn.Module):
    """A hypothesis class of constants: too weak for a later round."""

    def __init__(self, input_shape):
        super().__init__()

    def forward(self, x):
        return torch.ones_like(x[:, :1])


@ESTIMATORS
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("connection", [None, "dense", "last", "lateral"])
@pytest.mark.parametrize("held", [True, False])
def test_more_rounds_later_are_the_rounds_of_one_longer_fit(
    estimator, connection, combine, held, monkeypatch
):
    if not held:
        hold_nothing(monkeypatch)
    X = rows()
    options = {
        "connection": connection,
        "combine": combine,
        "student": partial(MLP, hidden=(4, 4)),
        "eta": 0.1,
    }
    once = fitted(estimator, n_estimators=4, **options)
    steps = fitted(estimator, n_estimators=2, warm_start=True, **options)
    first = student_bits(steps)
    assert first == student_bits(once[:2])
    steps.set_params(n_estimators=4).fit(X)
    assert len(steps) == 4
    assert student_bits(steps) == student_bits(once)
    assert_array_equal(steps.student_edges_, once.student_edges_)
    assert_array_equal(steps.certificate_.bound, once.certificate_.bound)
    assert steps.training_history_ == once.training_history_
    assert steps.ladder_positions_ == once.ladder_positions_


# Of a few features, or of a constant one, most may do nothing.
IDLE = pytest.mark.filterwarnings("ignore:More than half of the features:UserWarning")

# Constants fall behind more and more; students that match the teacher never do.
LADDER = {
    "student": [Constant, partial(MLP, hidden=(32,))],
    "objective": DistillationObjective("squared_error", on="student"),
    "edge_tol": 0.1,
    "max_epochs": 50,
    "learning_rate": 0.02,
}


@IDLE
def test_warm_start_goes_on_from_the_rung_that_was_climbed_to():
    X = rows()
    options = {**LADDER, "eta": 0.1}
    once = fitted(BDistilClassifier, n_estimators=4, **options)
    assert once.ladder_positions_[0] == 0
    assert once.ladder_positions_[-1] == 1
    climbed = once.ladder_positions_.index(1) + 1
    assert climbed < 4
    steps = fitted(BDistilClassifier, n_estimators=climbed, warm_start=True, **options)
    steps.set_params(n_estimators=4).fit(X)
    assert steps.ladder_positions_ == once.ladder_positions_
    assert student_bits(steps) == student_bits(once)


@ESTIMATORS
def test_warm_start_refuses_what_it_cannot_continue(estimator):
    model = fitted(estimator, warm_start=True)
    before = student_bits(model)
    with pytest.raises(ValueError, match="n_estimators=2 must be larger or equal"):
        model.set_params(n_estimators=2).fit(rows())
    model.set_params(n_estimators=4)
    with pytest.raises(ValueError, match="features"):
        model.fit(rows(n_features=4))
    with pytest.raises(ValueError, match=r"warm_start=True.*shape"):
        model.fit(rows()[:, :, None])
    message = "must have the (classes|targets) of the earlier fit"
    model.set_params(teacher=torch_teacher(estimator, 2))
    with pytest.raises(ValueError, match=message):
        model.fit(rows())
    assert student_bits(model) == before
    assert len(model.predict(rows())) == N_ROWS
    model.set_params(teacher=torch_teacher(estimator, 3), n_estimators=3)
    with pytest.warns(UserWarning, match="without increasing n_estimators"):
        model.fit(rows())
    assert student_bits(model) == before


@ESTIMATORS
@pytest.mark.parametrize(
    ("shape", "student", "connection"),
    [
        ((1, 8, 8), partial(ConvNet2d, channels=(2, 2)), Lateral(shared_blocks=1)),
        ((1, 8, 8), "auto", Lateral(shared_blocks=1)),
        ((64,), partial(MLP, hidden=(4,)), "dense"),
        ((64,), "auto", "dense"),
    ],
)
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_auto_connection_is_that_of_the_backbone(estimator, shape, student, connection):
    X = rows(n_features=64).reshape(-1, *shape)
    scores = rows(n_features=3, seed=1)
    y = np.arange(N_ROWS) % 3 if estimator is BDistilClassifier else scores
    options = {**SMALL, "student": student, "teacher": "precomputed"}
    auto, named = (
        estimator(**options, connection=choice).fit(X, y, teacher_scores=scores)
        for choice in ("auto", connection)
    )
    assert repr(auto.ensemble_.connection) == repr(named.ensemble_.connection)
    assert auto.connection == "auto"
    assert_array_equal(staged_scores(auto, X), staged_scores(named, X))
    # More students are connected as the earlier ones are.
    auto.set_params(warm_start=True, n_estimators=4)
    auto.fit(X, y, teacher_scores=scores)
    assert repr(auto.ensemble_.connection) == repr(named.ensemble_.connection)
    assert len(auto) == 4


@ESTIMATORS
def test_without_warm_start_a_fit_starts_afresh(estimator):
    model = fitted(estimator)
    before = student_bits(model)
    model.fit(rows(seed=1))
    assert len(model) == 3
    assert student_bits(model) != before
    assert student_bits(model.fit(rows())) == before


@ESTIMATORS
def test_warm_start_keeps_what_auto_was_in_the_first_fit(estimator):
    """Sized by a torch teacher and by the number of students of the first fit."""
    X = rows(n_features=32)
    teacher = TorchTeacher(
        nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 4)),
        classes=range(4) if estimator is BDistilClassifier else None,
    )
    options = {**SMALL, "student": "auto", "edge_tol": "auto", "max_epochs": "auto"}
    options |= {"objective": "squared_error", "batch_size": "auto"}
    steps = estimator(teacher, **{**options, "n_estimators": 2}).fit(X)
    resolved = {
        "student": steps.ladder_,
        "eta": steps.eta_,
        "edge_tol": steps.edge_tol_,
        "max_epochs": steps.max_epochs_,
        "batch_size": steps.batch_size_,
        "connection": steps.connection_,
    }
    steps.set_params(n_estimators=4, warm_start=True).fit(X)
    once = estimator(teacher, **{**options, "n_estimators": 4, **resolved}).fit(X)
    assert student_bits(steps) == student_bits(once)
    assert_array_equal(steps.certificate_.bound, once.certificate_.bound)
    # A fit of four students from the start has smaller ones.
    other = estimator(teacher, **{**options, "n_estimators": 4}).fit(X)
    assert other.stage_costs_.macs[0] < steps.stage_costs_.macs[0]


@ESTIMATORS
def test_warm_start_leaves_the_earlier_ensemble_alone(estimator):
    model = fitted(estimator, warm_start=True, refine="final")
    earlier, before = model.ensemble_, student_bits(model)
    model.set_params(n_estimators=4).fit(rows())
    assert model.ensemble_ is not earlier
    model.ensemble_ = earlier
    assert student_bits(model) == before


@ESTIMATORS
def test_warm_start_with_another_input_scaling_is_refused(estimator):
    model = fitted(estimator, warm_start=True)
    model.set_params(n_estimators=4, input_scaling=None)
    with pytest.raises(
        ValueError, match=r"'input_scaling' parameter of .* earlier fit"
    ):
        model.fit(rows())


# Input scaling


@ESTIMATORS
def test_rows_without_scaling_reach_the_students_as_they_are(estimator):
    X = rows() * 50 + 7
    model = fitted(estimator, X=X, input_scaling=None, dtype="float64")
    seen = []
    hook = model.ensemble_.students[0].register_forward_pre_hook(
        lambda student, args: seen.append(args[0])
    )
    model.predict(X)
    hook.remove()
    assert_array_equal(seen[0], X)
    assert seen[0].dtype == torch.float64
    scaled = fitted(estimator, X=X)
    assert staged_scores(scaled, X).shape == staged_scores(model, X).shape


@ESTIMATORS
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_integers_without_scaling_reach_an_embedding(estimator, dtype):
    X = np.random.RandomState(0).randint(10, size=(N_ROWS, N_FEATURES)).astype(dtype)
    model = fitted(estimator, X=X, student=Embedded, input_scaling=None)
    expected = model.predict(X)
    assert len(model) == 3
    # The same numbers in another type are the same rows.
    assert_array_equal(model.predict(X.astype(float)), expected)
    again = pickle.loads(pickle.dumps(model))
    assert_array_equal(again.predict(X), expected)
    assert_array_equal(again[:2].predict(X), model.set_params(n_stages=2).predict(X))
    with pytest.raises(ValueError, match="fitted on integers without input scaling"):
        model.predict(X + 0.5)


@ESTIMATORS
def test_a_backbone_that_cannot_run_on_the_rows_is_named(estimator):
    X = np.arange(N_ROWS * N_FEATURES).reshape(N_ROWS, N_FEATURES)
    with pytest.raises(
        ValueError, match=r"backbone MLP cannot be run on rows of shape"
    ):
        fitted(estimator, X=X, input_scaling=None)


# Refinement


@ESTIMATORS
@pytest.mark.parametrize("refine", ["final", "rounds"])
@pytest.mark.parametrize("held", [True, False])
def test_refinement_improves_the_stages_and_replays_the_game(
    estimator, refine, held, monkeypatch
):
    if not held:
        hold_nothing(monkeypatch)
    X = rows()
    module = linear(3)
    teacher = torch_teacher(estimator)
    options = {"max_epochs": 4, "objective": "squared_error", "combine": "sum"}
    plain = fitted(estimator, teacher=teacher, **options)
    refined = fitted(
        estimator,
        teacher=teacher,
        refine=refine,
        refine_epochs=40,
        **options,
    )
    wanted = teacher_logits(module, X)
    if estimator is BDistilRegressor:
        with torch.no_grad():
            wanted = module(torch.from_numpy(X)).numpy()
    errors = [
        ((staged_scores(model, X) - wanted) ** 2).mean(axis=(1, 2))
        for model in (plain, refined)
    ]
    assert errors[1].mean() < errors[0].mean()
    actual = np.abs(staged_scores(refined, X) - wanted).max(axis=1)
    assert_allclose(refined.certificate_.actual, actual, rtol=1e-4)
    # The first edges too are those of the final students.
    assert_allclose(refined.student_edges_[0], 0, atol=1e-12)
    assert not any(p.requires_grad for p in refined.ensemble_.parameters())
    assert not refined.ensemble_.students.training


@ESTIMATORS
def test_diverged_refinement_restores_the_students(estimator, monkeypatch):
    plain = fitted(estimator)
    train = _training.Trainer.train_jointly

    def diverging(self, ensemble, *args, **kwargs):
        history = train(self, ensemble, *args, **kwargs)
        with torch.no_grad():
            next(ensemble.parameters()).fill_(float("nan"))
        return history

    monkeypatch.setattr(_training.Trainer, "train_jointly", diverging)
    with pytest.warns(RuntimeWarning, match=r"refinement diverged.*learning_rate"):
        refined = fitted(estimator, refine="final")
    assert student_bits(refined) == student_bits(plain)
    assert_array_equal(refined.certificate_.actual, plain.certificate_.actual)


# Interrupts

BATCHES = _rows.n_batches(N_ROWS, 32) * SMALL["max_epochs"]


@ESTIMATORS
def test_interrupt_keeps_finished_students(estimator):
    whole = fitted(estimator, student=Exploding.from_call(10**6), batch_size=32)
    student = Exploding.from_call(BATCHES + 1, KeyboardInterrupt)
    with pytest.warns(FitInterruptedWarning, match="interrupted; the 1 finished") as w:
        model = fitted(estimator, student=student, batch_size=32)
    # At the line that called fit.
    assert [warning.filename for warning in w] == [__file__]
    assert model.interrupted_
    assert not whole.interrupted_
    assert len(model) == len(model.certificate_) == len(model.stage_costs_) == 1
    assert student_bits(model) == student_bits(whole[:1])
    assert_array_equal(model.predict(rows()), whole[:1].predict(rows()))
    assert_array_equal(model.certificate_.actual, whole.certificate_.actual[:1])
    # And it can go on.
    model.set_params(student=SMALL["student"], warm_start=True).fit(rows())
    assert len(model) == 3


@ESTIMATORS
def test_interrupt_of_the_refinement_keeps_the_students_before_it(estimator):
    plain = fitted(estimator, batch_size=32)
    student = Exploding.from_call(3 * BATCHES + 4, KeyboardInterrupt)
    with pytest.warns(FitInterruptedWarning, match="the 3 finished"):
        model = fitted(estimator, student=student, batch_size=32, refine="final")
    assert student_bits(model) == student_bits(plain)
    assert_array_equal(model.certificate_.actual, plain.certificate_.actual)


@ESTIMATORS
def test_interrupt_inside_a_search_goes_up(estimator):
    student = Exploding.from_call(BATCHES + 1, KeyboardInterrupt)
    model = estimator(torch_teacher(estimator), **{**SMALL, "student": student})
    model.set_params(batch_size=32)
    X = rows(2 * N_ROWS)
    y = (
        np.arange(len(X)) % 3
        if estimator is BDistilClassifier
        else np.zeros((len(X), 3))
    )
    search = GridSearchCV(model, {"eta": [0.0, 0.1]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, y)
    assert not hasattr(search, "best_estimator_")


@ESTIMATORS
def test_interrupt_in_round_1_propagates_and_loses_nothing(estimator):
    model = fitted(estimator)
    before, attributes = model.predict(rows()), set(vars(model))
    model.set_params(student=Exploding.from_call(2, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.fit(rows(seed=1))
    assert_array_equal(model.predict(rows()), before)
    assert set(vars(model)) == attributes
    fresh = estimator(torch_teacher(estimator), **SMALL)
    fresh.set_params(student=Exploding.from_call(2, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(rows())
    with pytest.raises(NotFittedError):
        fresh.predict(rows())


def test_early_stopping_of_a_template_is_no_interrupt():
    stopping = EarlyStopping(monitor="train_loss", patience=2, threshold=1e9)
    net = NeuralNet(None, criterion=None, callbacks=[("stop", stopping)])
    clf = fitted(BDistilClassifier, net=net, max_epochs=9)
    assert len(clf) == 3
    assert all(len(history) < 9 for history in clf.training_history_)


# Weak learners


@IDLE
@ESTIMATORS
def test_ladder_climbs_where_no_student_of_a_class_will_do(estimator):
    model = fitted(estimator, n_estimators=4, **LADDER)
    assert len(model) == 4
    assert model.ladder_positions_ == sorted(model.ladder_positions_)
    assert set(model.ladder_positions_) == {0, 1}
    # Never against the rule that made it climb.
    assert (model.student_edges_ >= -LADDER["edge_tol"] * model.teacher_bound_).all()


@IDLE
def test_ladder_runs_out():
    X = rows()
    with pytest.warns(
        WeakLearnerNotFoundWarning,
        match=r"BDistilClassifier found no weak learner in round \d of 6: the last of "
        r"1 hypothesis class\(es\).*edge of -\S+ for output \d, which is \S+ below the "
        r"-\S+ that edge_tol=0.01 allows.*Boosting stops with \d student",
    ):
        clf = fitted(
            BDistilClassifier,
            student=Constant,
            edge_tol=0.01,
            n_estimators=6,
            max_epochs=4,
        )
    assert 1 <= clf.n_estimators_ < 6
    assert len(list(clf.staged_predict(X))) == clf.n_estimators_
    assert len(clf.ladder_positions_) == len(clf.training_history_) == clf.n_estimators_
    assert clf.certificate_.bound.shape == (clf.n_estimators_, 3)


class NotANumber(nn.Module):
    def forward(self, x):
        return x * float("nan")


def diverging_after(n_good):
    """Backbones whose features are NaN once `n_good` students have been built.

    The first three that are built are never trained: `fit` asks the first for its
    kind and counts the cost of the others.
    """
    built = itertools.count(-3)

    def build(input_shape):
        backbone = MLP(input_shape, hidden=(4,))
        if next(built) >= n_good:
            backbone.blocks.append(NotANumber())
        return backbone

    return build


@ESTIMATORS
def test_student_that_diverges_is_dropped_and_reported(estimator):
    with pytest.raises(
        ValueError, match=r"no weak learner in round 1 .*1 attempt\(s\) diverged"
    ):
        fitted(estimator, student=diverging_after(0))
    with pytest.warns(
        WeakLearnerNotFoundWarning,
        match=r"round 2 of 3.* 2 attempt\(s\) diverged to scores that are not finite",
    ):
        model = fitted(estimator, student=diverging_after(1), max_attempts=2)
    assert len(model) >= 1
    assert np.isfinite(staged_scores(model, rows())).all()
    assert np.isfinite(model.student_edges_).all()


# Weights, validation rows, features


@ESTIMATORS
@pytest.mark.parametrize("options", [{}, {"refine": "final", "early_stopping": True}])
def test_weight_zero_is_as_good_as_absent(estimator, options):
    X, rng = rows(), np.random.RandomState(0)
    weight = rng.rand(N_ROWS) + 0.1
    weight[::3] = 0
    y = np.arange(N_ROWS) % 2
    absurd = X.copy()
    absurd[::3] = 1e6
    used = weight > 0
    model = fitted(estimator, X=absurd, fit={"sample_weight": weight}, **options)
    without = fitted(
        estimator, X=X[used], fit={"sample_weight": weight[used]}, **options
    )
    assert student_bits(model) == student_bits(without)
    assert_array_equal(model.certificate_.actual, without.certificate_.actual)
    # Precomputed scores lose their rows as well.
    scores = rng.randn(N_ROWS, 2)
    precomputed = [
        fitted(
            estimator,
            teacher="precomputed",
            X=X[take],
            y=y[take] if estimator is BDistilClassifier else None,
            fit={"sample_weight": weight[take], "teacher_scores": scores[take]},
        )
        for take in (slice(None), used)
    ]
    assert student_bits(precomputed[0]) == student_bits(precomputed[1])


@ESTIMATORS
@pytest.mark.parametrize("batch_size", [N_ROWS + 1, 10**6])
def test_batch_size_above_the_rows_is_clipped_with_a_warning(estimator, batch_size):
    with pytest.warns(UserWarning, match=r"'batch_size' parameter of .* is clipped"):
        clipped = fitted(estimator, batch_size=batch_size)
    assert clipped.batch_size_ == N_ROWS
    assert student_bits(clipped) == student_bits(fitted(estimator, batch_size=N_ROWS))


@ESTIMATORS
def test_held_out_share_that_leaves_no_rows_is_named(estimator):
    with pytest.raises(
        ValueError, match=r"'validation_fraction' parameter of .* 0\.999"
    ):
        fitted(estimator, early_stopping=True, validation_fraction=0.999)


@ESTIMATORS
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_early_stopping_ends_training_early(estimator):
    X = rows()
    noise = np.random.RandomState(1).randn(N_ROWS, 2)
    model = fitted(
        estimator,
        teacher="precomputed",
        y=np.arange(N_ROWS) % 2 if estimator is BDistilClassifier else None,
        fit={"teacher_scores": noise},
        early_stopping=True,
        validation_fraction=0.5,
        max_epochs=60,
        n_estimators=1,
        learning_rate=0.05,
        student=partial(MLP, hidden=(64,)),
    )
    history = model.training_history_[0]
    assert len(history) < 60
    losses = [row["valid_loss"] for row in history]
    assert np.argmin(losses) == len(losses) - 1 - model.n_iter_no_change
    assert np.isfinite(model.predict(X)).all()


@ESTIMATORS
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("connection", ["dense", "last", "lateral"])
def test_features_held_or_computed_again_give_the_same_students(
    estimator, connection, combine, monkeypatch
):
    options = {"connection": connection, "combine": combine}
    options["student"] = partial(MLP, hidden=(4, 4))
    held = fitted(estimator, **options)
    hold_nothing(monkeypatch)
    again = fitted(estimator, **options)
    assert_allclose(
        staged_scores(again, rows()), staged_scores(held, rows()), atol=1e-5
    )
    assert np.abs(np.diff(staged_scores(held, rows()), axis=0)).max() > 1e-3


@ESTIMATORS
def test_verbose(estimator, capsys):
    fitted(estimator)
    assert capsys.readouterr() == ("", "")
    fitted(estimator, verbose=1)
    out, err = capsys.readouterr()
    # No bar where nobody can watch it.
    assert err == ""
    lines = out.strip().splitlines()
    against = (
        "agreement with the teacher"
        if estimator is BDistilClassifier
        else r"R\^2 against the teacher"
    )
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        left = ", about \\d+ s left" if number < 3 else ""
        assert re.fullmatch(
            rf"\[{estimator.__name__}\] round {number} of 3: min edge [+-]\d+\.\d+, "
            rf"RMSE against the teacher \d+\.\d+, {against} -?\d+\.\d+, "
            rf"\d+\.\d s{left}",
            line,
        )


# Bad input


@IDLE
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("connection", ["dense", "lateral"])
def test_features_are_held_up_to_a_limit(connection, dtype, monkeypatch):
    options = {"student": partial(MLP, hidden=(4, 3)), "connection": connection}
    options |= {"dtype": dtype, "n_estimators": 4}
    held = []

    class Recorded(_plan.RowData):
        def __init__(self, *args, cache, **kwargs):
            super().__init__(*args, cache=cache, **kwargs)
            held.append(cache is not None)

    monkeypatch.setattr(_plan, "RowData", Recorded)
    expected = staged_scores(fitted(BDistilClassifier, **options), rows())
    per_row = fitted(BDistilClassifier, **options).stage_costs_.activation_bytes.sum()
    for limit in (N_ROWS * per_row, N_ROWS * per_row - 1):
        monkeypatch.setattr(_plan, "_MAX_HELD_BYTES", limit)
        model = fitted(BDistilClassifier, **options)
        # A batch is rounded otherwise than all rows.
        assert_allclose(staged_scores(model, rows()), expected, rtol=1e-4, atol=1e-5)
    assert held == [True, True, True, False]


@ESTIMATORS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_estimators": 0}, "'n_estimators' parameter of .* must be an int"),
        ({"eta": -0.1}, "'eta' parameter of .* must be"),
        ({"edge_tol": -1}, "'edge_tol' parameter of"),
        ({"n_iter_no_change": 0}, "'n_iter_no_change' parameter of"),
        ({"input_scaling": "robust"}, "'input_scaling' parameter of"),
        ({"learning_rate": 0}, "'learning_rate' parameter of"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter of"),
        ({"dtype": "float16"}, "'dtype' parameter of"),
        ({"refine": "always"}, "'refine' parameter of"),
        ({"objective": "mse"}, "'objective' parameter of"),
        ({"objective": DistillationObjective(gamma=0)}, "'gamma' parameter of"),
        ({"connection": "sparse"}, "'connection' parameter of .* 'sparse'"),
        ({"student": MLP((5,))}, "'student' parameter of .* never an instance.*MLP"),
        ({"student": [MLP((5,))]}, "'student' parameter of .* never an instance"),
        ({"student": []}, "'student' parameter of .* empty list"),
        ({"student": "mlp"}, "'student' parameter of .* must be 'auto'.*'mlp'"),
        ({"student": lambda shape: 3}, "'student' factory .* returned int"),
        (
            {"student": lambda shape: nn.Unflatten(1, (5, 1))},
            r"features of shape \(n, d\)\. The backbone Unflatten",
        ),
        ({"net": 3}, "'net' parameter of .* must be None or a skorch NeuralNet"),
        (
            {"net": NeuralNet(None, criterion=None, lr=0.5)},
            "'net' parameter of .* sets lr=0.5.*'learning_rate'",
        ),
        (
            {"net": NeuralNet(None, criterion=None, max_epochs=3)},
            "'net' parameter of .* sets max_epochs=3.*'max_epochs'",
        ),
        (
            {"objective": DistillationObjective("squared_error", alpha=1.0)},
            "'objective' parameter of .* alpha=1.0.*requires y",
        ),
        (
            {"objective": DistillationObjective(None, barrier=None)},
            "'objective' parameter of .* neither a distillation term nor a barrier",
        ),
    ],
)
def test_bad_parameters_are_named_and_lose_no_fit(estimator, options, message):
    model = fitted(estimator)
    before = {k: id(v) for k, v in vars(model).items() if k.endswith("_")}
    expected = model.predict(rows())
    model.set_params(**options)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(rows())
    if "'gamma'" not in message and "student" not in options:
        assert estimator.__name__ in str(caught.value)
    assert before == {k: id(v) for k, v in vars(model).items() if k.endswith("_")}
    assert_array_equal(model.predict(rows()), expected)


def with_value(value):
    X = rows()
    X[3, 2] = value
    return X


@ESTIMATORS
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("value", "message", "in_fit"),
    [
        # What is missing is for the teacher to judge, and this one gives no score.
        (np.nan, "contains NaN", "Got NaN.*from TorchTeacher"),
        (np.inf, "contains infinity", "contains infinity"),
    ],
)
def test_values_that_are_not_finite(estimator, dtype, value, message, in_fit):
    X = with_value(value).astype(dtype)
    model = fitted(estimator)
    with pytest.raises(ValueError, match=in_fit):
        model.fit(X)
    for call in (model.predict, lambda X: next(model.staged_predict(X))):
        with pytest.raises(ValueError, match=message):
            call(X)
    assert len(model.predict(rows())) == N_ROWS


@ESTIMATORS
def test_bad_shapes(estimator):
    model = fitted(estimator)
    name = estimator.__name__
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        model.fit(np.zeros(9))
    with pytest.raises(ValueError, match=rf"4 features, but {name} is expecting 5"):
        model.predict(rows(n_features=4))
    with pytest.raises(ValueError, match=rf"{name} was fitted on rows of shape"):
        model.predict(rows()[:, :, None])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(rows(), np.zeros(5))
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        model.fit(rows(0))
    assert_array_equal(model.predict(rows()), fitted(estimator).predict(rows()))


@ESTIMATORS
def test_bad_stages(estimator):
    with pytest.raises(ValueError, match=r"at most n_estimators=3\. Got 9"):
        fitted(estimator, n_stages=9)
    model = fitted(estimator).set_params(n_stages=9)
    with pytest.raises(ValueError, match=r"'n_stages' .* is 9, .* has only 3 student"):
        model.predict(rows())
    for bad in (0, -1, 1.5, "all"):
        model.set_params(n_stages=bad)
        with pytest.raises(
            ValueError, match=r"'n_stages' parameter of .* must be None"
        ):
            model.predict(rows())
    with pytest.raises(ValueError, match="'n_stages' parameter of"):
        model.fit(rows())


@ESTIMATORS
def test_bad_weights(estimator):
    model = fitted(estimator)
    with pytest.raises(ValueError, match=r"[Nn]egative values in.*sample_weight"):
        model.fit(rows(), sample_weight=np.linspace(-1, 1, N_ROWS))
    with pytest.raises(ValueError, match=r"zero for all rows|at least one non-zero"):
        model.fit(rows(), sample_weight=np.zeros(N_ROWS))
    with pytest.raises(ValueError, match="sample_weight"):
        model.fit(rows(), sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="sample_weight contains NaN"):
        model.fit(rows(), sample_weight=np.full(N_ROWS, np.nan))


def test_bad_labels_and_targets():
    X = rows()
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    with pytest.raises(ValueError, match="class"):
        clf.fit(X, np.zeros(N_ROWS))
    with pytest.raises(ValueError, match="Unknown label type"):
        clf.fit(X, np.random.RandomState(0).rand(N_ROWS))
    with pytest.raises(ValueError, match="requires y to be passed, but the target y"):
        clf.fit(X)
    # A bare module does not tell its classes.
    with pytest.raises(ValueError, match="requires y to be passed, but the target y"):
        BDistilClassifier(linear(3), **SMALL).fit(X)
    with pytest.raises(ValueError, match="do not cover y"):
        fitted(BDistilClassifier, 3, y=np.arange(N_ROWS) % 4)
    with pytest.raises(ValueError, match="FrozenEstimator"):
        BDistilClassifier(RandomForestClassifier(2).fit(X, X[:, 0] > 0)).fit(
            X, X[:, 0] > 0
        )
    for objective in ("kl", "kl+barrier", DistillationObjective()):
        with pytest.raises(ValueError, match="distillation='kl', which compares class"):
            fitted(BDistilRegressor, objective=objective)
    with pytest.raises(
        ValueError, match=r"y has 2 target\(s\), and the teacher gives 3"
    ):
        fitted(BDistilRegressor, 3, y=np.zeros((N_ROWS, 2)))
    with pytest.raises(ValueError, match="Input y contains NaN"):
        fitted(BDistilRegressor, 1, y=np.full(N_ROWS, np.nan))


# What a review found


def test_targets_far_from_zero_keep_their_digits():
    X, rng = rows(300).astype(np.float64), np.random.RandomState(1)
    y = 1e7 + X @ rng.randn(N_FEATURES)
    reg = BDistilRegressor(Ridge(), **{**SMALL, "max_epochs": 200}).fit(X, y)
    assert reg.teacher_score_ > 0.99
    assert reg.score(X, y) > 0.9
    assert len(np.unique(reg.predict(X))) > 250


@ESTIMATORS
def test_rows_that_the_dtype_cannot_hold(estimator):
    X = rows().astype(np.float64)
    given = {
        "teacher": "precomputed",
        "y": np.arange(N_ROWS) % 3 if estimator is BDistilClassifier else None,
        "fit": {"teacher_scores": np.random.RandomState(0).randn(N_ROWS, 3)},
    }
    with pytest.raises(ValueError, match=r"out of the range of float32\. Scale them"):
        fitted(estimator, X=X * 1e200, **given)
    with pytest.raises(ValueError, match=r"out of the range of float32\. Scale them"):
        fitted(estimator, X=X * 1e-42, **given)
    far = X.copy()
    far[:, 2] += 1e8
    with pytest.warns(
        UserWarning, match=r"1 feature\(s\) of X, .* position 2, vary"
    ) as w:
        fitted(estimator, X=far, **given)
    assert w[0].filename == __file__
    constant = X.copy()
    constant[:, 2] = 1e8
    fitted(estimator, X=constant, **given)
    fitted(estimator, X=far, dtype="float64", **given)


@ESTIMATORS
def test_warm_start_keeps_the_architecture(estimator):
    model = fitted(estimator, warm_start=True)
    with pytest.raises(ValueError, match=r"'connection' parameter .* earlier fit"):
        model.set_params(connection=None, n_estimators=4).fit(rows())
    model.set_params(connection="dense").ladder_positions_[-1] = 1
    with pytest.raises(ValueError, match=r"'student' parameter .* number 2\. Got 1"):
        model.fit(rows())


@ESTIMATORS
def test_warm_start_without_new_rounds_refines_nothing(estimator):
    model = fitted(estimator, warm_start=True, refine="final")
    before = student_bits(model)
    with pytest.warns(UserWarning, match="does not fit new students") as warned:
        model.fit(rows())
    assert student_bits(model) == before
    assert warned[0].filename == __file__


@ESTIMATORS
def test_warnings_point_at_the_caller(estimator):
    with pytest.warns(WeakLearnerNotFoundWarning) as warned:
        model = fitted(estimator, student=diverging_after(1))
    assert warned[0].filename == __file__
    # A number of stages that was asked for and not reached is no reason to fail.
    model.set_params(n_stages=3)
    assert len(list(model.staged_predict(rows()))) == len(model) < 3


@ESTIMATORS
def test_progress_bars_reach_their_totals(estimator, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, desc, **kwargs):
            self.total, self.desc, self.n = total, desc, 0
            bars.append(self)

        def close(self):
            pass

        def update(self):
            self.n += 1

        def reset(self):
            self.n = 0

        @staticmethod
        def write(line):
            pass

    monkeypatch.setattr(_progress, "tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fitted(estimator, verbose=1, refine="final", refine_epochs=3, max_attempts=2)
    assert [(bar.n, bar.total) for bar in bars] == [(2, 2)] * 3 + [(3, 3)]
    assert "refinement" in bars[-1].desc
    assert all(f"round {k} of 3" in bars[k - 1].desc for k in (1, 2, 3))


@pytest.mark.parametrize("connection", [None, "dense", "lateral"])
def test_auto_students_cost_at_most_half_of_the_teacher(connection):
    teacher = TorchTeacher(
        nn.Sequential(nn.Linear(N_FEATURES, 256), nn.ReLU(), nn.Linear(256, 3)),
        classes=np.arange(3),
    )
    options = {**SMALL, "student": "auto", "connection": connection}
    if connection == "lateral":
        X = np.random.RandomState(0).randn(40, 1, 8, 8).astype(np.float32)
        teacher = TorchTeacher(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 2048), nn.Linear(2048, 3)),
            classes=np.arange(3),
        )
    else:
        X = rows()
    clf = BDistilClassifier(teacher, **options).fit(X)
    fraction = clf.stage_costs_.cumulative_macs[-1] / clf.teacher_costs_.macs
    # The next wider class would cost more; widths differ by a factor of about 1.4.
    assert 0.5 / 2.2 < fraction <= 0.5
