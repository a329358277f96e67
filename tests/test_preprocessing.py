"""Affine maps of transforms against the transforms themselves."""

import copy

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)

from skbdistil import _preprocessing
from skbdistil._preprocessing import AffineMap, affine_transforms, leaves

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def data():
    """Columns of all sizes, one of which is far from zero and one constant."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4)) * [1, 1, 100, 0] + [0, 1e6, -5, 3]
    return X, X[:, 0] > 0


def affine_of(fitted, X=None):
    steps = list(leaves([("step", fitted)]))
    return affine_transforms(steps, fitted.transform, X)


def largest(X, y):
    return np.abs(X).max(axis=0)


AFFINE = {
    "standard": StandardScaler(),
    "centred": StandardScaler(with_std=False),
    "scaled": StandardScaler(with_mean=False),
    "neither": StandardScaler(with_mean=False, with_std=False),
    "in place": StandardScaler(copy=False),
    "minmax": MinMaxScaler((-3, 5)),
    "maxabs": MaxAbsScaler(),
    "robust": RobustScaler(),
    "robust, centred": RobustScaler(with_scaling=False),
    "robust, scaled": RobustScaler(with_centering=False, unit_variance=True),
    "threshold": VarianceThreshold(),
    "chain": make_pipeline(
        MaxAbsScaler(), SelectKBest(largest, k=2), "passthrough", StandardScaler()
    ),
    "nested": make_pipeline(
        make_pipeline(None, RobustScaler()), FunctionTransformer(), MinMaxScaler()
    ),
    "by position": ColumnTransformer(
        [
            ("standard", StandardScaler(), [2, 1]),
            ("nothing", MaxAbsScaler(), []),
            ("again", "passthrough", [1]),
            ("drop", "drop", [0]),
        ],
        remainder=make_pipeline(MinMaxScaler(), FunctionTransformer()),
    ),
    "by slice and mask": ColumnTransformer(
        [
            ("slice", StandardScaler(), slice(1, 3)),
            ("mask", RobustScaler(), [True, False, False, True]),
        ]
    ),
}


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_affine_transform_is_found_with_all_its_digits(name, dtype, data):
    X, y = data
    step = clone(AFFINE[name]).fit(X.astype(dtype), y)
    before = X.copy()
    affine = affine_of(step, X)
    assert_array_equal(X, before)
    expected = step.transform(X.copy())
    assert_allclose(affine(X), expected, rtol=0, atol=1e-8)
    frozen = FrozenEstimator(step)
    assert_array_equal(affine_of(frozen)(X), affine(X))


@pytest.mark.parametrize(
    "columns", [["c", "a"], slice("b", "d"), make_column_selector("[ad]")]
)
def test_columns_by_name_are_found_by_position(data, columns):
    frame = pd.DataFrame(data[0], columns=NAMES)
    step = ColumnTransformer([("some", StandardScaler(), columns)])
    step.fit(frame).set_output(transform="pandas")
    assert_allclose(affine_of(step)(data[0]), step.transform(frame), atol=1e-8)


def test_names_without_pandas(data, monkeypatch):
    frame = pd.DataFrame(data[0], columns=NAMES)
    scaler = StandardScaler().fit(frame)
    by_name = ColumnTransformer([("some", StandardScaler(), ["a"])]).fit(frame)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(_preprocessing, "import_module", missing)
    assert affine_of(scaler) is not None
    # It cannot be asked.
    assert affine_of(by_name) is None


class Clipped(StandardScaler):
    def transform(self, X):
        return np.clip(super().transform(X), -3, 3)


class ClippedFarAway(StandardScaler):
    def transform(self, X):
        return np.clip(super().transform(X), -1e9, 1e9)


class Doubled(StandardScaler):
    def transform(self, X):
        return super().transform(X) * (1 + 1e-9)


class Reversed(VarianceThreshold):
    def transform(self, X):
        return super().transform(X)[:, ::-1]


class Squares(FunctionTransformer):
    def transform(self, X):
        return np.square(X)


@pytest.mark.parametrize(
    "step",
    [
        MinMaxScaler(clip=True),
        Normalizer(),
        PCA(2),
        FunctionTransformer(np.log1p),
        make_pipeline(StandardScaler(), Normalizer()),
        ColumnTransformer([("norm", Normalizer(), [0, 1])], remainder="passthrough"),
        ColumnTransformer(
            [("standard", StandardScaler(), [0])], transformer_weights={"standard": 2}
        ),
        Clipped(),
        make_pipeline(StandardScaler(), Clipped()),
        Doubled(),
        Reversed(),
        Squares(),
    ],
    ids=repr,
)
def test_what_is_not_known_to_be_affine_is_not_found(step, data):
    assert affine_of(clone(step).fit(np.abs(data[0]))) is None


def test_rows_of_the_caller_count_too(data):
    X, _ = data
    step = ClippedFarAway().fit(X)
    assert affine_of(step) is not None
    assert affine_of(step, X) is not None
    assert affine_of(step, 1e12 * X) is None
    missing = X.copy()
    missing[0, 0] = np.nan
    assert affine_of(step, missing) is None


def test_map_after_a_map():
    rng = np.random.default_rng(0)
    first = AffineMap.of([3, 0, 0], centre=[1, 2, 3], factor=-2, offset=[1, 0, 5])
    second = AffineMap.of([1, 2], centre=4, factor=[3, 1], offset=-1)
    x = rng.normal(size=(5, 4))
    assert_allclose(first.then(second)(x), second(first(x)), rtol=1e-12)


def test_generator_is_left_alone(data):
    before = copy.deepcopy(np.random.get_state())  # noqa: NPY002
    affine_of(StandardScaler().fit(data[0]))
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
