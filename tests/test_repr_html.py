"""The estimator in a notebook."""

import re
from functools import partial
from html import unescape

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skbdistil import BDistilClassifier, BDistilRegressor, TorchTeacher
from skbdistil.students import MLP

# Whether the students have a good teacher does not matter here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::skbdistil.exceptions.DoubtfulTeacherWarning"
)

STUDENT = partial(MLP, hidden=(4,))


def texts(estimator):
    """Visible labels of the diagram, in order."""
    html = re.sub(r"<(style|script).*?</\1>", "", estimator._repr_html_(), flags=re.S)
    labels = re.findall(r"<label[^>]*>(.*?)</label>", html, flags=re.S)
    return [
        re.sub(r"\s+", " ", unescape(re.sub("<[^>]+>", " ", label))).strip()
        for label in labels
    ]


def fitted(teacher, estimator=BDistilClassifier, student=STUDENT):
    X = np.random.RandomState(0).randn(40, 3)
    y = (X[:, 0] > 0).astype(int)
    return estimator(
        teacher, student=student, n_estimators=2, max_epochs=1, edge_tol=np.inf
    ).fit(X, y)


@pytest.mark.parametrize(
    ("student", "name"),
    [("auto", "auto"), (MLP, "MLP"), (STUDENT, "MLP"), ([STUDENT, MLP], "MLP, MLP")],
)
def test_unfitted(student, name):
    found = texts(BDistilClassifier(student=student))
    assert found[0].startswith("BDistilClassifier")
    assert found[1:] == ["Teacher", "default", "At most 6 student(s)", name]


def test_teachers():
    assert "precomputed" in texts(BDistilClassifier("precomputed"))
    assert "Linear" in texts(BDistilClassifier(nn.Linear(3, 2)))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    found = " ".join(texts(BDistilClassifier(pipeline)))
    assert "StandardScaler" in found
    assert "LogisticRegression" in found


def test_fitted_shows_what_was_counted():
    found = texts(fitted(TorchTeacher(nn.Linear(3, 2), classes=[0, 1])))
    assert "Teacher: 6 multiply-accumulates (MACs), 8 parameters" in found
    # 3 * 4 + 4 * 2, and for the second 4 * 2 more, since its head reads the features
    # of the first, too.
    assert "2 student(s): 48 multiply-accumulates (MACs), 60 parameters" in found
    assert {"1: 20 MACs", "2: 28 MACs"} <= set(found)


class DecidesByData(nn.Module):
    def __init__(self, input_shape=(3,)):
        super().__init__()
        self.layer = nn.Linear(*input_shape, 1)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.CostsUnknownWarning")
def test_fitted_shows_what_could_not_be_counted():
    found = texts(fitted(DecidesByData(), BDistilRegressor, student=DecidesByData))
    assert "Teacher: unknown multiply-accumulates (MACs), 4 parameters" in found
    assert any(
        text.startswith("2 student(s): unknown multiply-accumulates (MACs), ")
        for text in found
    )
    assert {"1: unknown MACs", "2: unknown MACs"} <= set(found)


def test_fitted_regressor():
    found = texts(fitted(nn.Linear(3, 1), BDistilRegressor))
    assert found[0].startswith("BDistilRegressor")
    assert "Teacher: 3 multiply-accumulates (MACs), 4 parameters" in found
    assert "2 student(s): 36 multiply-accumulates (MACs), 46 parameters" in found
    assert {"1: 16 MACs", "2: 20 MACs"} <= set(found)


def test_students_that_predict():
    clf = fitted(LogisticRegression()).set_params(n_stages=1)
    found = texts(clf)
    label = "2 student(s), of which the first 1 predict: 48 multiply-accumulates (MACs)"
    assert any(text.startswith(label) for text in found)
    assert {"1: 20 MACs", "2: 28 MACs"} <= set(found)
    # Where there are not as many as asked for, all predict.
    found = texts(clf[:1].set_params(n_stages=2))
    assert any(text.startswith("1 student(s): 20") for text in found)


def test_fitted_without_costs_of_the_teacher():
    found = texts(fitted(LogisticRegression()))
    assert found[1] == "Teacher"
    assert found[2].startswith("LogisticRegression")


def test_in_a_pipeline():
    found = " ".join(texts(make_pipeline(StandardScaler(), BDistilClassifier())))
    assert "bdistilclassifier: BDistilClassifier Teacher default" in found
