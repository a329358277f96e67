"""Searches on joblib's engines give what they give in one process."""

from contextlib import contextmanager

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_info

from common import SMALL
from skbdistil import BDistilClassifier
from skbdistil.model_selection import HalvingStagedSearchCV, StagedSearchCV
from skbdistil.precomputed import precompute_scores

# The engines warn of themselves and of each other.
pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("default")]

X, y = load_iris(return_X_y=True)
GRID = {"learning_rate": [0.01, 0.02]}


@contextmanager
def loky():
    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield


@contextmanager
def dask():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@contextmanager
def ray():
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    try:
        with joblib.parallel_config(backend="ray", n_jobs=2):
            yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module", params=[loky, dask, ray], ids=["loky", "dask", "ray"])
def engine(request):
    with request.param():
        yield


def assert_same_results(found, expected):
    """All columns but those of times."""
    for key, column in expected.cv_results_.items():
        if "time" not in key:
            assert_array_equal(found.cv_results_[key], column, err_msg=key)


@pytest.mark.parametrize("of", [GridSearchCV, StagedSearchCV, HalvingStagedSearchCV])
@pytest.mark.usefixtures("engine")
def test_results_equal_those_of_one_process(of, tmp_path):
    teacher = FrozenEstimator(LogisticRegression(max_iter=500).fit(X[::2], y[::2]))
    scores = precompute_scores(teacher, X, tmp_path / "scores.npy")
    search = of(BDistilClassifier("precomputed", **SMALL), GRID, cv=2)
    found = clone(search).fit(X, y, teacher_scores=scores)
    with joblib.parallel_config(backend="sequential"):
        expected = search.fit(X, y, teacher_scores=np.array(scores))
    assert_same_results(found, expected)


@pytest.mark.usefixtures("engine")
def test_two_workers_share_the_processors():
    # Those of the libraries that a worker has loaded for the fits above.
    found = joblib.Parallel()(joblib.delayed(threadpool_info)() for _ in range(4))
    threads = [library["num_threads"] for worker in found for library in worker]
    assert threads
    assert max(threads) <= max(1, joblib.cpu_count() // 2)
