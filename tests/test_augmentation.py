import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone

from common import raises
from skbdistil import augmentation
from skbdistil.augmentation import Munge, Spunge

N = 60

MAKERS = [Munge, Spunge]

each_maker = pytest.mark.parametrize("maker", MAKERS)


def columns():
    """One column of each sort, as lists; None is missing."""
    rng = np.random.RandomState(0)

    def with_gaps(values):
        is_there = rng.uniform(size=N) < 0.8
        return np.where(is_there, values.astype(object), None).tolist()

    return {
        "real": rng.randn(N).tolist(),
        "part": with_gaps(rng.randn(N)),
        "count": rng.poisson(3, N).tolist(),
        "flag": (rng.uniform(size=N) < 0.3).tolist(),
        "name": with_gaps(rng.choice(list("abcd"), N)),
    }


def pandas_frame():
    data = columns()
    frame = pd.DataFrame(data, index=np.arange(N) + 100)
    frame["kind"] = pd.Categorical(data["name"], categories=list("abcdz"))
    frame["single"] = frame["real"].astype(np.float32)
    frame["small"] = frame["count"].astype(np.int8)
    frame["nullable"] = pd.array(
        [None if x == 0 else x for x in data["count"]], dtype="Int16"
    )
    frame["nullable real"] = frame["part"].astype("Float32")
    frame["nullable flag"] = frame["flag"].astype("boolean")
    frame["date"] = pd.date_range("2024-01-01", periods=N).repeat(2)[:N]
    frame["sparse"] = pd.arrays.SparseArray(data["count"], fill_value=0)
    return frame


def polars_frame():
    data = columns()
    days = pl.Series(np.arange(N) // 2).cast(pl.Int32).cast(pl.Date)
    return pl.DataFrame(data).with_columns(
        pl.col("name").cast(pl.Categorical).alias("kind"),
        pl.col("name").cast(pl.Enum(list("abcdz"))).alias("enum"),
        pl.col("part").cast(pl.Float32).alias("single"),
        pl.col("count").cast(pl.Int8).alias("small"),
        pl.when(pl.col("count") > 0).then("count").cast(pl.UInt16).alias("nullable"),
        days.alias("date"),
    )


each_frame = pytest.mark.parametrize("make_frame", [pandas_frame, polars_frame])


def known(column):
    """Values of a column that are not missing."""
    values = column.dropna() if isinstance(column, pd.Series) else column.drop_nulls()
    return values.to_list()


# What comes back


@each_maker
@pytest.mark.parametrize("factor", [0.25, 1, 2.5, np.float32(3)])
@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, bool]
)
def test_rows_of_an_array_have_its_dtype_and_the_number_asked_for(maker, factor, dtype):
    X = np.asfortranarray(np.random.RandomState(0).uniform(0, 9, (N, 4)).astype(dtype))
    X_new = maker(factor)(X, 0)
    assert type(X_new) is np.ndarray
    assert X_new.dtype == dtype
    assert X_new.shape == (round(factor * N), 4)
    assert X_new.flags.c_contiguous


@each_maker
@each_frame
def test_rows_of_a_frame_have_its_columns_and_dtypes(maker, make_frame):
    X = make_frame()
    X_new = maker(1.5)(X, 0)
    assert type(X_new) is type(X)
    assert X_new.shape == (90, X.shape[1])
    assert list(X_new.columns) == list(X.columns)
    assert list(X_new.dtypes) == list(X.dtypes)


@each_maker
def test_rows_of_a_pandas_frame_are_numbered_and_columns_may_share_a_name(maker):
    X = pandas_frame()[["real", "real", "name"]]
    X_new = maker()(X, 0)
    assert list(X_new.index) == list(range(N))
    assert list(X_new.columns) == ["real", "real", "name"]


@each_maker
def test_array_list_and_frames_of_the_same_numbers_get_the_same_rows(maker):
    X = np.random.RandomState(0).randn(N, 3)
    X_new = maker()(X, 0)
    names = list("abc")
    assert_array_equal(maker()(X.tolist(), 0), X_new)
    assert_array_equal(maker()(pd.DataFrame(X, columns=names), 0), X_new)
    assert_array_equal(maker()(pl.DataFrame(X, schema=names), 0), X_new)


@each_maker
def test_pandas_and_polars_frames_of_all_sorts_get_the_same_rows(maker):
    rows = maker()(pd.DataFrame(columns()).astype({"name": object}), 0)
    same = maker()(pl.DataFrame(columns()), 0)
    for name in columns():
        theirs = pd.Series(same[name].to_list())
        assert_array_equal(rows[name].isna(), theirs.isna())
        assert known(rows[name]) == known(same[name])


@each_maker
def test_X_is_left_as_it_was(maker):
    X = np.random.RandomState(0).randn(N, 3)
    X.setflags(write=False)
    maker(2)(X, 0)
    frame, copy = pandas_frame(), pandas_frame()
    maker(2)(frame, 0)
    pd.testing.assert_frame_equal(frame, copy)


@each_maker
def test_same_random_state_gives_the_same_rows(maker):
    X = np.random.RandomState(0).randn(N, 3)
    X_new = maker()(X, 7)
    assert_array_equal(maker()(X, 7), X_new)
    assert_array_equal(maker()(X, np.random.RandomState(7)), X_new)
    assert (maker()(X, 8) != X_new).any()


@each_maker
def test_global_generator_is_left_alone(maker):
    before = np.random.get_state()  # noqa: NPY002
    maker()(pandas_frame(), 0)
    after = np.random.get_state()  # noqa: NPY002
    assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


@pytest.mark.parametrize(
    "unchanged",
    [Munge(2.5, swap_probability=0), Spunge(2.5, noise=0, resample_probability=0)],
    ids=["munge", "spunge"],
)
def test_every_row_starts_as_many_new_rows_but_for_one(unchanged):
    X = np.random.RandomState(0).randn(N, 2)
    rows, counts = np.unique(unchanged(X, 0), axis=0, return_counts=True)
    assert_array_equal(rows, np.unique(X, axis=0))
    assert_array_equal(np.unique(counts, return_counts=True), [[2, 3], [N / 2, N / 2]])


# What values are allowed


@each_maker
@each_frame
def test_new_values_of_nominal_columns_are_among_the_old_ones(maker, make_frame):
    X = make_frame()
    X_new = maker(5)(X, 0)
    nominal = {"flag", "name", "kind", "enum", "nullable flag", "date", "sparse"}
    for name in nominal.intersection(X.columns):
        assert set(known(X_new[name])) <= set(known(X[name])), name


@each_maker
@each_frame
def test_new_numbers_stay_in_the_range_of_their_column(maker, make_frame):
    X = make_frame()
    X_new = maker(20)(X, 0)
    numbers = {"real", "part", "count", "single", "small", "nullable", "nullable real"}
    for name in numbers.intersection(X.columns):
        new, old = known(X_new[name]), known(X[name])
        assert min(old) <= min(new), name
        assert max(new) <= max(old), name
    assert len(set(known(X_new["single"]))) > N


@each_maker
def test_whole_numbers_in_a_float_column_stay_whole(maker):
    rng = np.random.RandomState(0)
    X = np.column_stack([rng.poisson(20, N), rng.randn(N)]).astype(np.float32)
    X_new = maker(20)(X, 0)
    assert_array_equal(X_new[:, 0], np.round(X_new[:, 0]))
    assert set(X_new[:, 0]) > set(X[:, 0])
    assert (X_new[:, 1] != np.round(X_new[:, 1])).any()


def test_noise_on_whole_numbers_has_mean_zero():
    X = np.array([[0], [10], [20]])
    X_new = Spunge(20000, noise=0.03)(X, 0)
    middle = X_new.reshape(-1, 3)[:, 1]
    # Rounded to the nearest one, the noise would vanish.
    assert 0.1 < (middle != 10).mean() < 0.3
    assert abs(middle.mean() - 10) < 0.02


@each_maker
def test_two_values_of_a_number_are_never_mixed(maker):
    rng = np.random.RandomState(0)
    X = np.column_stack([rng.choice([-0.3, 2.9], N), rng.randn(N)])
    X_new = maker(20)(X, 0)
    assert set(X_new[:, 0]) == {-0.3, 2.9}


@each_maker
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_near_the_largest_float_stay_finite(maker, dtype):
    largest = np.finfo(dtype).max
    shares = np.random.RandomState(0).uniform(-1, 1, (N, 2))
    X = np.vstack([shares, [[1, -1], [-1, 1]]]).astype(dtype) * largest
    X_new = maker(20)(X, 0)
    assert np.isfinite(X_new).all()
    assert len(np.unique(X_new)) > 10 * N


@each_maker
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_beyond_those_of_floats_stay_in_range(maker, dtype):
    info = np.iinfo(dtype)
    X = np.linspace(info.min / 2, info.max / 2, N).astype(dtype)[:, None]
    X[0], X[-1] = info.min, info.max
    spread = {"noise": 5} if maker is Spunge else {"local_variance": 0.01}
    X_new = maker(20, **spread)(X, 0)
    # What wraps around would come out at the other end.
    ends = (X_new < X[1] // 2) | (X_new > X[-2])
    assert ends.any()
    assert len(np.unique(X_new)) > 2 * N


@each_maker
@pytest.mark.parametrize("value", [3.25, 7, "a", None, np.nan])
def test_constant_column_stays_constant(maker, value):
    X = pd.DataFrame({"same": [value] * N, "real": columns()["real"]})
    X_new = maker(3)(X, 0)
    assert_array_equal(X_new["same"].isna(), pd.isna(value))
    assert set(known(X_new["same"])) == set(known(X["same"]))


@each_maker
def test_equal_rows_are_all_there_is_to_come(maker):
    X = np.full((5, 3), 2.5)
    assert_array_equal(maker(2)(X, 0), np.full((10, 3), 2.5))
    assert_array_equal(maker(2)(X[:1], 0), np.full((2, 3), 2.5))


# Munge


def nearest_other(X):
    """Nearest row of each that is not equal, by comparing them one by one."""
    known = ~np.isnan(X)
    Z = (X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0)
    found = []
    for row in range(len(X)):
        both = known[row] & known
        parts = np.where(both, (Z[row] - Z) ** 2, 0).sum(axis=1)
        distances = np.full(len(X), np.inf)
        np.divide(parts, both.sum(axis=1), out=distances, where=both.any(axis=1))
        equal = (np.isnan(X[row]) & np.isnan(X)) | (X[row] == X)
        distances[equal.all(axis=1)] = np.inf
        found.append(distances.argmin())
    return np.array(found)


# All that changes is that each row becomes its neighbour.
become_neighbour = Munge(swap_probability=1, local_variance=1e15)


@pytest.mark.parametrize("share_missing", [0, 0.2])
@pytest.mark.parametrize("n_features", [2, 20])
def test_munge_draws_around_the_nearest_row(share_missing, n_features):
    rng = np.random.RandomState(0)
    X = rng.randn(N, n_features) * np.logspace(-2, 2, n_features)
    missing = rng.uniform(size=X.shape) < share_missing
    missing[missing.all(axis=1)] = False
    X[missing] = np.nan
    assert_allclose(become_neighbour(X, 0), X[nearest_other(X)])


def test_munge_of_duplicates_finds_rows_that_differ():
    X = np.repeat(np.random.RandomState(0).randn(5, 2), 10, axis=0)
    X_new = become_neighbour(X, 0)
    assert (np.abs(X_new - X) > 1e-3).all()
    assert_allclose(X_new, X[nearest_other(X)])


def test_munge_compares_categories_like_numbers_with_two_values():
    rng = np.random.RandomState(0)
    flags = rng.uniform(size=(N, 3)) < [0.5, 0.3, 0.1]
    numbers = rng.randn(N, 2)
    by_number = become_neighbour(np.hstack([numbers, flags]), 0)
    columns = [*numbers.T, *np.where(flags, "yes", "no").T]
    by_name = become_neighbour(pd.DataFrame(dict(enumerate(columns))), 0)
    assert_allclose(by_name[[0, 1]], by_number[:, :2])
    assert_array_equal(by_name[[2, 3, 4]] == "yes", by_number[:, 2:] == 1)


def test_munge_of_strings_alone_prefers_rows_that_share_most():
    X = pl.DataFrame({"a": list("xxyy"), "b": list("ppqq"), "c": list("1234")})
    X_new = become_neighbour(X, 0)
    assert X_new.rows() == [("x", "p", c) for c in "21"] + [("y", "q", c) for c in "43"]


def test_munge_leaves_missing_categories_out_of_the_distance():
    X = pd.DataFrame({"a": ["x", None, "y", "y"], "b": [0.0, 0.1, 5.0, 9.0]})
    X_new = become_neighbour(X, 0)
    assert_allclose(X_new["b"], [0.1, 0.0, 9.0, 5.0], atol=1e-9)
    assert X_new["a"].isna().tolist() == [True, False, False, False]


def test_munge_finds_the_same_neighbours_in_batches_of_any_size(monkeypatch):
    X = pandas_frame()
    X_new = Munge()(X, 0)
    monkeypatch.setattr(augmentation, "_PAIRS", 7 * N)
    pd.testing.assert_frame_equal(Munge()(X, 0), X_new)


@pytest.mark.parametrize("local_variance", [0.5, 2])
def test_munge_draws_with_the_difference_over_the_local_variance(local_variance):
    # The outer rows leave room on either side.
    X = np.array([[-999.5], [0.5], [2.5], [999.5]])
    munge = Munge(10000, swap_probability=1, local_variance=local_variance)
    _, first, second, _ = munge(X, 0).reshape(-1, 4).T
    for draws, centre in ((first, 2.5), (second, 0.5)):
        assert_allclose(draws.mean(), centre, atol=0.2)
        assert_allclose(draws.std(), 2 / local_variance, rtol=0.05)


@pytest.mark.parametrize("swap_probability", [0, 0.3, 1])
def test_munge_changes_each_value_by_itself_with_the_probability(swap_probability):
    # The outer rows leave room on either side.
    X = pd.DataFrame({"name": list("abcd"), "real": [-99.5, 0.5, 1.5, 99.5]})
    X_new = Munge(10000, swap_probability=swap_probability)(X, 0)
    name, real = (
        (X_new[column].to_numpy() != np.tile(X[column], 10000)).reshape(-1, 4)[:, 1:3]
        for column in X
    )
    assert_allclose(name.mean(), swap_probability, atol=0.02)
    assert_allclose(real.mean(), swap_probability, atol=0.02)
    assert_allclose((name & real).mean(), swap_probability**2, atol=0.02)


def test_munge_takes_missing_and_infinite_values_over_from_the_neighbour():
    X = np.array([[0, 1.5], [0.1, np.nan], [50, np.inf], [50.1, 7.5], [90, 2.5]])
    X_new = become_neighbour(X, 0)
    assert_array_equal(X_new[:4, 1], [np.nan, 1.5, 7.5, np.inf])
    assert np.isfinite(X_new[:, 0]).all()


def test_munge_follows_a_curve_that_noise_leaves():
    angles = np.random.RandomState(0).uniform(0, 2 * np.pi, 500)
    X = np.column_stack([np.cos(angles), np.sin(angles)])

    def distance(X):
        return np.abs(np.hypot(*X.T) - 1).mean()

    assert distance(Munge()(X, 0)) < 0.02
    assert distance(Spunge(noise=0.1)(X, 0)) > 0.04


# Spunge


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_spunge_noise_has_the_share_of_the_spread(noise):
    X = np.random.RandomState(0).randn(4000, 2) * [1, 100] + [1000, 0]
    change = Spunge(noise=noise)(X, 0) - X
    assert_allclose(change.std(axis=0) / X.std(axis=0), noise, rtol=0.05)
    assert_allclose(change.mean(axis=0) / X.std(axis=0), 0, atol=0.01)


@pytest.mark.parametrize("resample_probability", [0, 0.2, 1])
def test_spunge_draws_categories_by_their_frequency(resample_probability):
    X = pd.DataFrame({"name": ["a"] * 15 + ["b"] * 5})
    spunge = Spunge(1000, resample_probability=resample_probability)
    was_a, is_a = np.tile(X["name"] == "a", 1000), spunge(X, 0)["name"] == "a"
    assert_allclose(is_a.mean(), 0.75, atol=0.02)
    # A draw is the other category with the share of that.
    assert_allclose(1 - is_a[was_a].mean(), resample_probability / 4, atol=0.02)


def test_spunge_keeps_missing_and_infinite_numbers_in_place():
    X = np.random.RandomState(0).randn(N, 2)
    X[::3, 0], X[::4, 1] = np.nan, -np.inf
    X_new = Spunge()(X, 0)
    assert_array_equal(np.isnan(X_new), np.isnan(X))
    assert_array_equal(np.isinf(X_new), np.isinf(X))
    finite = np.isfinite(X)
    assert (X_new[finite] != X[finite]).mean() > 0.9


def test_spunge_may_draw_a_missing_category():
    X = pl.DataFrame({"name": ["a", "b", None, None]})
    X_new = Spunge(1000, resample_probability=1)(X, 0)
    assert_allclose(X_new["name"].null_count() / 4000, 0.5, atol=0.03)


# Parameters and bad input


@each_maker
def test_maker_is_cloned_and_shown_by_its_parameters(maker):
    assert clone(maker(3.0)).get_params() == maker(3.0).get_params()
    assert repr(maker(3.0)) == f"{maker.__name__}(factor=3.0)"


@pytest.mark.parametrize(
    ("maker", "name", "value"),
    [
        (Munge, "factor", 0),
        (Spunge, "factor", "all"),
        (Munge, "swap_probability", 1.1),
        (Munge, "local_variance", 0),
        (Spunge, "noise", -0.1),
        (Spunge, "resample_probability", -1),
    ],
)
def test_invalid_parameters(maker, name, value):
    with raises(f"'{name}'", maker.__name__, f"Got {value!r}"):
        maker().set_params(**{name: value})([[0.0], [1.0]], 0)


@each_maker
@pytest.mark.parametrize("shape", [(4,), (4, 3, 8, 8)])
def test_other_shapes_than_tables_are_refused(maker, shape):
    with raises(maker.__name__, "(n_samples, n_features)", str(shape), "f(X, random"):
        maker()(np.zeros(shape), 0)


@each_maker
@pytest.mark.parametrize("X", [pd.DataFrame(), pl.DataFrame({"a": []})])
def test_frame_without_rows_or_columns_is_refused(maker, X):
    with raises(maker.__name__, "at least one row", str(X.shape)):
        maker()(X, 0)


@each_maker
@pytest.mark.parametrize("X", [np.array([["a"]]), np.array([[1j]])])
def test_array_without_numbers_is_refused(maker, X):
    with pytest.raises(ValueError, match=r"dtype='numeric'|Complex data"):
        maker()(X, 0)


@each_maker
def test_sparse_matrix_is_refused(maker):
    with pytest.raises(TypeError, match="Sparse data"):
        maker()(sparse.eye(3, format="csr"), 0)
