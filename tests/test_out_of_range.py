"""Numbers and shapes that students cannot compute with are refused, or harmless."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import Connection
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.students import MLP, Backbone, ConvNet1d

X, Y = load_iris(return_X_y=True)
X = X + 0.01 * np.random.RandomState(0).randn(*X.shape)

SMALL = {
    "student": partial(MLP, hidden=(6, 6)),
    "n_estimators": 3,
    "max_epochs": 20,
    "edge_tol": 100.0,
    "random_state": 0,
}


def classifier(**options):
    teacher = LogisticRegression(max_iter=1000)
    return BDistilClassifier(teacher, **{**SMALL, **options})


def regressor(**options):
    return BDistilRegressor(Ridge(), **{**SMALL, **options})


def with_entry(value):
    changed = X.copy()
    changed[3, 2] = value
    return changed


TOO_LARGE = "contains a value too large for torch.float32"

# Finite in float64: the first overflows the dtype of the students, the second, which
# float32 holds, is out of its range once it is scaled.
HUGE = pytest.mark.parametrize("value", [1e39, -1e39, 3.3e38])


@HUGE
@pytest.mark.parametrize(
    "predict",
    [
        lambda clf, X: clf.predict(X),
        lambda clf, X: clf.predict_proba(X),
        lambda clf, X: clf.decision_function(X),
        lambda clf, X: list(clf.staged_predict(X)),
        lambda clf, X: list(clf.staged_predict_proba(X)),
        lambda clf, X: EarlyExitClassifier(FrozenEstimator(clf)).fit(X, Y),
        lambda clf, X: (
            EarlyExitClassifier(FrozenEstimator(clf)).fit(globals()["X"], Y).predict(X)
        ),
    ],
)
def test_rows_that_overflow_the_students_at_prediction_are_refused(predict, value):
    clf = classifier(max_epochs=2).fit(X / X.std(0) * 0.1, Y)
    with pytest.raises(ValueError, match=TOO_LARGE):
        predict(clf, with_entry(value))


@HUGE
def test_rows_that_overflow_a_regressor_at_prediction_are_refused(value):
    reg = regressor(max_epochs=2).fit(X / X.std(0) * 0.1, X[:, 0])
    for predict in (reg.predict, lambda rows: list(reg.staged_predict(rows))):
        with pytest.raises(ValueError, match=TOO_LARGE):
            predict(with_entry(value))


@pytest.mark.parametrize("scaling", ["standard", None])
@pytest.mark.parametrize("make", [BDistilClassifier, BDistilRegressor])
def test_rows_that_overflow_the_students_in_fit_are_refused(make, scaling):
    scores = np.random.RandomState(0).randn(len(X), 3)
    given = {"y": Y if make is BDistilClassifier else scores, "teacher_scores": scores}
    model = make("precomputed", **SMALL, input_scaling=scaling)
    with pytest.raises(ValueError, match=TOO_LARGE):
        model.fit(with_entry(1e39), **given)


def test_rows_that_float32_cannot_hold_are_used_in_float64():
    clf = classifier(dtype="float64", max_epochs=2).fit(X, Y)
    assert np.isfinite(clf.predict_proba(with_entry(1e39))).all()


class Squares(nn.Module):
    """Features that overflow where their input is far from doing so."""

    def __init__(self, input_shape):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], 4)

    def forward(self, x):
        return self.linear(x) ** 2


def test_scores_that_overflow_are_refused_and_do_not_become_a_label():
    clf = classifier(student=Squares).fit(X, Y)
    early = EarlyExitClassifier(FrozenEstimator(clf)).fit(X, Y)
    for predict in (clf.predict, clf.predict_proba, early.predict, early.exit_stages):
        with pytest.raises(ValueError, match="scores that are not finite"):
            predict(with_entry(1e25))
    reg = regressor(student=Squares).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="scores that are not finite"):
        list(reg.staged_predict(with_entry(1e25)))


# Constants and sizes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e18, 1e25])
def test_constant_columns_change_nothing_whatever_their_value(dtype, value):
    def proba(column):
        rows = np.hstack([X, np.full((len(X), 1), column)])
        scores = LogisticRegression(max_iter=1000).fit(X, Y).decision_function(X)
        clf = BDistilClassifier("precomputed", **SMALL, dtype=dtype)
        return clf.fit(rows, Y, teacher_scores=scores).predict_proba(rows)

    assert_array_equal(proba(value), proba(0.0))


def test_column_that_was_constant_in_fit_does_not_count_at_prediction():
    rows = np.hstack([X, np.full((len(X), 1), 3.0)])
    clf = classifier().fit(rows, Y)
    other = rows.copy()
    other[:, -1] = np.linspace(-50, 50, len(X))
    assert_array_equal(clf.predict_proba(other), clf.predict_proba(rows))


@pytest.mark.parametrize("value", [0.0, 7.0, -1e-8, 1e12])
def test_constant_targets_come_back_to_the_bit(value):
    targets = np.stack([np.full(len(X), value), X[:, 0]], axis=1)
    scores = targets.copy()
    reg = BDistilRegressor("precomputed", **SMALL)
    reg.fit(X, targets, teacher_scores=scores)
    for predicted in reg.staged_predict(X):
        assert_array_equal(predicted[:, 0], value)
        assert np.ptp(predicted[:, 1]) > 1
    assert_array_equal(reg.certificate_.actual[:, 0], 0)
    assert reg.target_scale_[0] == 0


@pytest.mark.parametrize("size", [2.0**-1000, 2.0**-40, 2.0**40, 2.0**1000])
@pytest.mark.parametrize("make", [BDistilClassifier, BDistilRegressor])
def test_size_of_all_sample_weights_does_not_matter(make, size):
    weight = np.random.RandomState(0).randint(1, 5, len(X)) / 4
    weight[0] = 1  # the largest, by which extreme ones are divided
    targets = Y if make is BDistilClassifier else 1e6 + X[:, 0]
    fits = [
        make(None, **SMALL).fit(X, targets, sample_weight=factor * weight)
        for factor in (1, size)
    ]
    # Powers of 2 leave all digits as they are.
    assert_array_equal(fits[1].predict(X), fits[0].predict(X))
    assert fits[1].teacher_score_ == fits[0].teacher_score_ > 0.9


def test_targets_whose_spread_overflows_are_refused():
    with pytest.raises(
        ValueError, match="targets that the teacher of BDistilRegressor"
    ):
        regressor().fit(X, X[:, 0] * 1e200)


def test_targets_whose_spread_underflows_are_refused():
    scores = X[:, :1] * 1e-170
    with pytest.raises(ValueError, match="too small for their spread"):
        BDistilRegressor("precomputed", **SMALL).fit(X, teacher_scores=scores)


@pytest.mark.parametrize("convert", [np.ndarray.tolist, lambda rows: rows.astype("O")])
def test_float64_keeps_the_digits_of_rows_of_any_container(convert):
    rows = np.c_[1.7e9 + np.arange(150), X]
    label = np.arange(150) // 75
    clf = BDistilClassifier("precomputed", **SMALL, dtype="float64")
    clf.fit(rows, label, teacher_scores=5.0 * np.c_[1 - 2 * label, 2 * label - 1])
    assert_array_equal(clf.predict_proba(convert(rows)), clf.predict_proba(rows))


def test_teacher_that_works_in_place_leaves_the_rows_alone():
    rows = X * 100 + 50
    teacher = make_pipeline(StandardScaler(copy=False), LinearRegression())
    reg = BDistilRegressor(teacher, **SMALL).fit(rows, X[:, 0])
    assert_array_equal(rows, X * 100 + 50)
    assert reg.teacher_score_ > 0.99


@pytest.mark.parametrize("change", [lambda p: p.round(2), lambda p: p.clip(0.01)])
def test_probabilities_that_do_not_quite_sum_to_1_are_doubted(change):
    proba = LogisticRegression(max_iter=1000).fit(X, Y).predict_proba(X)
    with pytest.warns(DoubtfulTeacherWarning, match="are taken for logits"):
        BDistilClassifier("precomputed", **SMALL).fit(
            X, Y, teacher_scores=change(proba)
        )


def test_images_whose_channels_come_last_are_doubted():
    images = np.random.RandomState(0).rand(len(X), 8, 8, 3)
    with pytest.warns(UserWarning, match=r"\(8, 8, 3\) are read as \(channels"):
        BDistilClassifier(None, **SMALL).fit(images, Y)


# Backbones and connections that write to what others read


class Halving(nn.Module):
    """Scales its input in place."""

    def __init__(self, input_shape):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], 4)

    def forward(self, x):
        x *= 0.5
        return torch.relu(self.linear(x))


class HalvingBlocks(Backbone):
    """The same, block by block."""

    def __init__(self, input_shape, *, extra=(0, 0)):
        super().__init__()
        self.widths = (4, 4)
        self.blocks = nn.ModuleList(
            [nn.Linear(input_shape[0] + extra[0], 4), nn.Linear(4 + extra[1], 4)]
        )

    def prepare(self, x):
        return x.mul_(0.5)


class Clamping(Connection):
    """Writes to the features of an earlier student."""

    def forward(self, features, earlier):
        return features + earlier[0].clamp_(min=0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"student": Halving}, "Halving"),
        ({"student": Halving, "connection": None}, "Halving"),
        ({"student": HalvingBlocks, "connection": "lateral"}, "HalvingBlocks"),
        ({"connection": Clamping}, "MLP or its connection"),
    ],
)
def test_what_writes_to_its_input_is_refused_by_name(options, name):
    with pytest.raises(ValueError, match=rf"{name}.* writes to its input"):
        classifier(**options).fit(X, Y)


# Shapes


def test_shape_of_sequences_and_images_is_named_as_a_whole():
    series = np.random.RandomState(0).randn(len(X), 10, 4)
    clf = classifier(student=partial(ConvNet1d, channels=(3,)), max_epochs=1)
    clf.set_params(teacher=None)
    clf.fit(series, Y)
    for other in (series[:, :7], series[:, :, :2], series[:, 0]):
        expected = f"rows of shape (10, 4), and X has rows of shape {other.shape[1:]}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            clf.predict(other)
        with pytest.raises(ValueError, match=re.escape(expected)):
            next(clf.staged_predict(other))


def test_rows_without_numbers_are_refused():
    with pytest.raises(ValueError, match=r"at least one number.* \(150, 0, 4\)"):
        classifier().fit(np.zeros((150, 0, 4)), Y)


def test_targets_of_strings_are_refused_by_the_regressor():
    with pytest.raises(ValueError, match=r"BDistilRegressor needs targets .* numbers"):
        regressor().fit(X, np.array(["low", "high", "low"] * 50))


def test_backbone_that_cannot_be_built_for_the_rows_is_named():
    with pytest.raises(ValueError, match=r"'student' factory .*ConvNet1d.* \(4,\)"):
        classifier(student=ConvNet1d).fit(X, Y)
