"""Scores that are asked once give what the teacher itself gives."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.datasets import load_iris, make_regression
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import nn

from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.precomputed import precompute_scores
from skbdistil.teachers import TorchTeacher

X, NUMBERS = load_iris(return_X_y=True)
LABELS = np.array(["c", "a", "b"])[NUMBERS]


class Reversed(LogisticRegression):
    """Columns in another order than that of the sorted labels."""

    def fit(self, X, y):
        super().fit(X, y)
        self.classes_ = self.classes_[::-1].copy()
        return self

    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def torch_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh())


def frozen(model, y=LABELS):
    return FrozenEstimator(model.fit(X, y))


TEACHERS = {
    "proba": lambda: frozen(RandomForestClassifier(5, max_depth=2, random_state=0)),
    "order": lambda: frozen(Reversed(max_iter=500)),
    "module": torch_module,
    "classes": lambda: TorchTeacher(torch_module(), classes=["b", "c", "a"]),
}


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
@pytest.mark.parametrize("name", TEACHERS)
def test_fit_with_the_scores_equals_that_with_the_teacher(name, tmp_path):
    teacher = TEACHERS[name]()
    scores = precompute_scores(teacher, X, tmp_path / "scores.npy", batch_size=40)
    settings = {**SMALL, "edge_tol": np.inf}
    with_scores = BDistilClassifier("precomputed", **settings)
    with_scores.fit(X, LABELS, teacher_scores=scores)
    with_teacher = BDistilClassifier(teacher, **settings).fit(X, LABELS)
    assert with_scores.teacher_score_ == with_teacher.teacher_score_
    assert_allclose(
        with_scores.predict_proba(X), with_teacher.predict_proba(X), rtol=0, atol=1e-4
    )


def test_fit_of_a_regressor_with_the_scores_equals_that_with_the_teacher():
    X, y = make_regression(60, 4, n_targets=2, noise=5, random_state=0)
    y += 1e6
    teacher = FrozenEstimator(LinearRegression().fit(X, y))
    scores = precompute_scores(teacher, X, regression=True, batch_size=7)
    assert_array_equal(scores, teacher.predict(X))
    reg = BDistilRegressor("precomputed", **SMALL).fit(X, y, teacher_scores=scores)
    assert_array_equal(
        reg.predict(X), BDistilRegressor(teacher, **SMALL).fit(X, y).predict(X)
    )


@pytest.mark.parametrize("of", [sparse.coo_array, pd.DataFrame, torch.tensor, list])
def test_rows_of_any_kind_give_the_same_scores(of):
    teacher = frozen(LogisticRegression(max_iter=500))
    expected = precompute_scores(teacher, X)
    found = precompute_scores(teacher, of(X), batch_size=64)
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_file_is_a_map_and_one_that_is_there_is_replaced(tmp_path):
    path = tmp_path / "scores.npy"
    path.write_bytes(b"old")
    scores = precompute_scores(torch_module(), X, path, batch_size=100)
    assert isinstance(scores, np.memmap)
    assert not scores.flags.writeable
    assert_array_equal(scores, precompute_scores(torch_module(), X))
    assert [file.name for file in tmp_path.iterdir()] == ["scores.npy"]


def test_failure_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "scores.npy"
    path.write_bytes(b"old")
    bad = X.copy()
    bad[120] = np.nan
    with pytest.raises(ValueError, match="must return finite scores"):
        precompute_scores(torch_module(), bad, path, batch_size=100)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.npy"]


def test_search_cuts_the_scores_with_the_rows(tmp_path):
    scores = precompute_scores(
        frozen(LogisticRegression(max_iter=500)), X, tmp_path / "scores.npy"
    )
    grid = {"learning_rate": [0.01, 0.02]}
    search = GridSearchCV(BDistilClassifier("precomputed", **SMALL), grid, cv=2)
    search.fit(X, LABELS, teacher_scores=scores)
    teacher = frozen(LogisticRegression(max_iter=500))
    other = GridSearchCV(BDistilClassifier(teacher, **SMALL), grid, cv=2)
    other.fit(X, LABELS)
    assert_allclose(
        search.cv_results_["mean_test_score"],
        other.cv_results_["mean_test_score"],
        rtol=0,
        atol=0.02,
    )


@pytest.mark.parametrize("teacher", [LogisticRegression(), "precomputed", None, []])
def test_teacher_that_is_not_trained_raises(teacher):
    with pytest.raises(ValueError, match="precompute_scores must come trained"):
        precompute_scores(teacher, X)


def test_no_rows_raise():
    with pytest.raises(ValueError, match="at least one row"):
        precompute_scores(frozen(LogisticRegression(max_iter=500)), X[:0])


def test_probabilities_that_are_taken_for_logits_warn():
    module = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    with pytest.warns(DoubtfulTeacherWarning, match="taken for logits"):
        precompute_scores(module, X, batch_size=50)


def test_batch_size_of_zero_raises():
    with pytest.raises(ValueError, match="batch_size"):
        precompute_scores(torch_module(), X, batch_size=0)
