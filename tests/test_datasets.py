from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skbdistil import BDistilClassifier
from skbdistil.datasets import make_cube, make_ellipsoid
from skbdistil.students import MLP

MAKERS = [make_ellipsoid, make_cube]


def quadratic_form(X, values):
    """The symmetric matrix A with x @ A @ x nearest to the values."""
    rows, columns = np.triu_indices(X.shape[1])
    coefficients, *_ = np.linalg.lstsq(X[:, rows] * X[:, columns], values, rcond=None)
    upper = np.zeros((X.shape[1], X.shape[1]))
    upper[rows, columns] = coefficients
    return (upper + upper.T) / 2


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("n_samples", "n_classes"), [(64, 2), (101, 3), (66, 4)])
def test_shapes_types_and_balance(make, shuffle, n_samples, n_classes):
    X, y = make(n_samples, 7, n_classes=n_classes, shuffle=shuffle, random_state=0)
    assert X.shape == (n_samples, 7)
    assert X.dtype == np.float64
    assert y.shape == (n_samples,)
    assert y.dtype == np.int64
    counts = np.bincount(y)
    assert len(counts) == n_classes
    assert np.ptp(counts) <= 1


@pytest.mark.parametrize("make", MAKERS)
def test_one_seed_gives_one_data_set(make):
    X, y = make(random_state=0)
    for again in (0, np.random.RandomState(0)):
        X_again, y_again = make(random_state=again)
        assert_array_equal(X_again, X)
        assert_array_equal(y_again, y)
    assert not np.array_equal(make(random_state=1)[0], X)


@pytest.mark.parametrize("make", MAKERS)
def test_shuffle_only_permutes_the_rows(make):
    X, y = make(random_state=0)
    X_sorted, y_sorted = make(shuffle=False, random_state=0)
    assert not np.array_equal(y, y_sorted)
    order, order_sorted = np.argsort(X[:, 0]), np.argsort(X_sorted[:, 0])
    assert_array_equal(X[order], X_sorted[order_sorted])
    assert_array_equal(y[order], y_sorted[order_sorted])


def test_ellipsoids_come_sorted_by_class():
    _, y = make_ellipsoid(shuffle=False, random_state=0)
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("axis_ratio", [1.0, 2.5])
@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_one_quadratic_form_tells_the_ellipsoids_apart(n_features, axis_ratio):
    X, y = make_ellipsoid(
        300,
        n_features,
        n_classes=3,
        axis_ratio=axis_ratio,
        noise=0.0,
        random_state=0,
    )
    form = quadratic_form(X, (y + 1.0) ** 2)
    assert_allclose(np.sqrt(np.einsum("ni,ij,nj->n", X, form, X)), y + 1)
    # The eigenvalues are the inverse squares of the semi-axes.
    axes = np.sort(np.linalg.eigvalsh(form) ** -0.5)
    assert_allclose(axes, np.geomspace(1, axis_ratio, n_features))


def test_ellipsoids_are_rotated_at_random():
    forms = [
        quadratic_form(X, (y + 1.0) ** 2)
        for X, y in (make_ellipsoid(100, 3, noise=0.0, random_state=s) for s in (0, 1))
    ]
    assert np.abs(forms[0] - np.diag(np.diag(forms[0]))).max() > 0.01
    assert np.abs(forms[0] - forms[1]).max() > 0.01


def test_noise_of_the_ellipsoids_has_its_standard_deviation():
    clean, y = make_ellipsoid(2000, 5, noise=0.0, random_state=0)
    noisy, y_noisy = make_ellipsoid(2000, 5, noise=0.3, random_state=0)
    assert_array_equal(y, y_noisy)
    # 10,000 values: four standard errors are 3 %.
    assert_allclose((noisy - clean).std(), 0.3, rtol=0.03)


@pytest.mark.parametrize("n_informative", [5, 6, 40])
def test_clusters_are_distinct_vertices_of_one_class_each(n_informative):
    X, y = make_cube(
        320,
        50,
        n_informative=n_informative,
        n_classes=4,
        n_clusters_per_class=8,
        noise=0.0,
        random_state=0,
    )
    X = X[:, :n_informative]
    assert_array_equal(np.abs(X), 1)
    vertices, cluster, counts = np.unique(
        X, axis=0, return_inverse=True, return_counts=True
    )
    assert len(vertices) == 32
    assert_array_equal(counts, 10)
    classes_of = [np.unique(y[cluster == c]) for c in range(len(vertices))]
    assert {len(classes) for classes in classes_of} == {1}
    assert_array_equal(np.bincount(np.concatenate(classes_of)), 8)


@pytest.mark.parametrize("n_clusters_per_class", [4, 8])
def test_vertices_get_their_classes_at_random(n_clusters_per_class):
    # 8 are all the vertices: then only their classes can differ.
    labelled = set()
    for seed in range(5):
        X, y = make_cube(
            16,
            4,
            n_informative=4,
            n_classes=2,
            n_clusters_per_class=n_clusters_per_class,
            noise=0.0,
            random_state=seed,
        )
        labelled.add(frozenset(map(tuple, np.column_stack([X, y]))))
    assert len(labelled) == 5


def test_noise_of_the_cube_has_its_standard_deviation():
    X, _ = make_cube(2000, 12, n_informative=5, noise=0.1, random_state=0)
    informative, rest = X[:, :5], X[:, 5:]
    # Vertices are 20 standard deviations apart.
    assert_allclose((informative - np.sign(informative)).std(), 0.1, rtol=0.03)
    assert_allclose(rest.std(), 1.0, rtol=0.03)


@pytest.mark.parametrize("make", MAKERS)
def test_a_linear_model_is_nearer_to_chance_than_to_certainty(make):
    X, y = make(random_state=0)
    chance = 1 / len(np.unique(y))
    assert LogisticRegression().fit(X, y).score(X, y) < (1 + chance) / 2


@pytest.mark.parametrize("make", MAKERS)
def test_one_small_student_fails_where_six_succeed(make):
    X, y = make(4000, random_state=0)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.5, stratify=y, random_state=0
    )
    teacher = MLPClassifier((64, 64, 64), early_stopping=True, random_state=0)
    teacher.fit(X_train, y_train)
    model = BDistilClassifier(
        FrozenEstimator(teacher), student=partial(MLP, hidden=(6,)), random_state=0
    ).fit(X_train, y_train)
    error_of_teacher = 1 - teacher.score(X_test, y_test)
    errors = 1 - np.array(list(model.staged_score(X_test, y_test)))
    assert error_of_teacher < 0.1
    assert len(errors) == 6
    assert errors[0] > error_of_teacher + 0.1
    assert errors[-1] < error_of_teacher + 0.03


@pytest.mark.parametrize(
    ("make", "params", "message"),
    [
        (
            make_ellipsoid,
            {"n_samples": 2, "n_classes": 3},
            "n_samples=2 must be at least n_classes=3",
        ),
        (
            make_ellipsoid,
            {"axis_ratio": 0.5},
            "'axis_ratio' parameter of make_ellipsoid must be a float in the range",
        ),
        (make_ellipsoid, {"noise": -1.0}, "'noise' parameter of make_ellipsoid"),
        (make_ellipsoid, {"n_classes": 1}, "'n_classes' parameter of make_ellipsoid"),
        (
            make_cube,
            {"n_features": 5, "n_informative": 6},
            "n_informative=6 must be at most n_features=5",
        ),
        (
            make_cube,
            {"n_informative": 3, "n_classes": 3, "n_clusters_per_class": 3},
            r"n_classes \* n_clusters_per_class=9 must be at most the number of "
            r"vertices, 2\*\*n_informative=8",
        ),
        (
            make_cube,
            {"n_samples": 31},
            r"n_samples=31 must be at least n_classes \* n_clusters_per_class=32",
        ),
        (make_cube, {"noise": -1.0}, "'noise' parameter of make_cube"),
        (
            make_cube,
            {"n_clusters_per_class": 0},
            "'n_clusters_per_class' parameter of make_cube",
        ),
    ],
)
def test_bad_input_is_named(make, params, message):
    with pytest.raises(ValueError, match=message):
        make(**params)
