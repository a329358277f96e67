import gc
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.dummy import DummyClassifier
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from skbdistil import costs
from skbdistil import latency as latency_module
from skbdistil.latency import Latency, compare_latencies, measure_latency


class Call(nn.Module):
    """Calls `layer` with a function of the rows."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, x):
        return self.call(self.layer, x)


def test_public_names_are_also_those_of_costs():
    for name in latency_module.__all__:
        assert getattr(costs, name) is getattr(latency_module, name)
        assert name in costs.__all__


class Clock:
    """Stands still unless it is told to move on."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def takes(self, seconds):
        """Callable that takes the next of these times in each call."""
        seconds = iter(seconds)

        def predict(batch):
            self.now += next(seconds)

        return predict


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency_module, "time", clock)
    return clock


def test_percentiles(clock):
    # 1 to 11 s, of which two repeats lie below the 10th percentile or at it
    seconds = np.random.RandomState(0).permutation(np.arange(1.0, 12.0))
    latency = measure_latency(
        clock.takes(seconds), np.zeros((3, 1)), n_warmup=0, n_repeats=11
    )
    assert (latency.median, latency.low, latency.high) == (6.0, 2.0, 10.0)


def test_time_is_given_per_sample(clock):
    latency = measure_latency(
        clock.takes([8.0] * 4), np.zeros((9, 1)), batch_size=4, n_warmup=1, n_repeats=3
    )
    assert (latency.median, latency.low, latency.high) == (2.0, 2.0, 2.0)


def test_calls_for_warming_up_are_not_timed(clock):
    slow_start = clock.takes([100.0, 50.0, 1.0, 1.0, 1.0])
    latency = measure_latency(slow_start, np.zeros((3, 1)), n_warmup=2, n_repeats=3)
    assert latency.high == 1.0


@given(
    seconds=st.lists(st.floats(0, 1e3), min_size=1, max_size=30),
    batch_size=st.integers(1, 5),
)
def test_percentiles_are_in_order(seconds, batch_size):
    clock = Clock()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(latency_module, "time", clock)
        latency = measure_latency(
            clock.takes(seconds),
            np.zeros((5, 1)),
            batch_size=batch_size,
            n_warmup=0,
            n_repeats=len(seconds),
        )
    assert latency.low <= latency.median <= latency.high
    # The clock adds and subtracts, so that its steps are rounded.
    assert min(seconds) - 1e-9 <= latency.low * batch_size
    assert latency.high * batch_size <= max(seconds) + 1e-9


def test_several_take_turns(clock):
    calls = []

    def takes(name, seconds):
        predict = clock.takes(seconds)

        def named(batch):
            calls.append((name, batch[0, 0]))
            predict(batch)

        return named

    X = np.arange(3.0).reshape(-1, 1)
    latencies = compare_latencies(
        [takes("a", [9.0, 1.0, 2.0]), takes("b", [9.0, 10.0, 20.0])],
        X,
        n_warmup=1,
        n_repeats=2,
    )
    # Both see the same rows, one after the other.
    assert calls == [(name, row) for row in range(3) for name in "ab"]
    assert [latency.median for latency in latencies] == [1.5, 15.0]


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "expected"),
    [
        (3, 1, [[0], [1], [2], [0], [1], [2], [0]]),
        (4, 2, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]),
        # Rows from the start fill the last batch.
        (5, 2, [[0, 1], [2, 3], [4, 0], [0, 1], [2, 3], [4, 0], [0, 1]]),
        (3, 3, [[0, 1, 2]] * 7),
        (9, 1, [[0], [1], [2], [3], [4], [5], [6]]),
    ],
)
@pytest.mark.parametrize("n_warmup", [0, 2, 6])
def test_rows_of_the_batches(n_samples, batch_size, expected, n_warmup):
    seen = []
    X = np.arange(n_samples).reshape(-1, 1)
    measure_latency(
        lambda batch: seen.append(batch.ravel().tolist()),
        X,
        batch_size=batch_size,
        n_warmup=n_warmup,
        n_repeats=7 - n_warmup,
    )
    assert seen == expected


class OnCuda(nn.Module):
    """Says that it is on a device that this machine may not have."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device("cuda:1"))

    def forward(self, x):
        self.call(x)


class Stays(torch.Tensor):
    """Rows that need no such device."""

    def to(self, device):
        return self


@pytest.mark.parametrize(
    ("wrap", "device"),
    [
        (lambda call: call, None),
        (lambda call: Call(nn.Linear(1, 1), lambda layer, x: call(x)), None),
        (OnCuda, torch.device("cuda:1")),
    ],
    ids=["callable", "module on the CPU", "module on CUDA"],
)
@pytest.mark.parametrize("accelerators", [{"cuda"}, {"mps"}, {"cuda", "mps"}, set()])
def test_accelerators_are_waited_for(monkeypatch, wrap, device, accelerators):
    events = []
    clock = SimpleNamespace(perf_counter=lambda: events.append("clock") or 0.0)
    monkeypatch.setattr(latency_module, "time", clock)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: "cuda" in accelerators)
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    monkeypatch.setattr(
        torch.backends.mps, "is_available", lambda: "mps" in accelerators
    )
    monkeypatch.setattr(torch.mps, "synchronize", lambda: events.append("mps"))
    rows = torch.zeros(2, 1).as_subclass(Stays)
    latency = measure_latency(
        wrap(lambda batch: events.append("call")), rows, n_warmup=1, n_repeats=2
    )
    waits = [device] * ("cuda" in accelerators) + ["mps"] * ("mps" in accelerators)
    # Also before the first reading: what was queued earlier is not timed.
    assert events == 3 * [*waits, "clock", "call", *waits, "clock"]
    if device is not None:
        assert latency.device == str(device)


def test_what_a_latency_tells():
    latency = measure_latency(
        nn.Linear(4, 2), np.zeros((9, 4)), batch_size=3, n_threads=1
    )
    assert isinstance(latency, Latency)
    assert (latency.batch_size, latency.n_repeats) == (3, 50)
    assert latency.n_threads == 1
    assert (latency.device, latency.what) == ("cpu", "Linear")
    assert 0 < latency.low <= latency.median <= latency.high
    for name in ("median", "low", "high"):
        assert type(getattr(latency, name)) is float


def named(batch):
    pass


class Named:
    def __call__(self, batch):
        pass


@pytest.mark.parametrize(
    ("predict", "what"),
    [
        (DummyClassifier().fit([[0.0]], [1]).predict, "DummyClassifier.predict"),
        (named, "named"),
        (Named(), "Named"),
        (partial(named), "partial"),
    ],
)
def test_callables_are_not_asked_for_their_device(predict, what):
    latency = measure_latency(predict, np.zeros((3, 1)), n_warmup=0, n_repeats=1)
    assert (latency.what, latency.device) == (what, None)


def test_latency_as_text():
    latency = Latency(2.5e-3, 1e-3, 4e-3, 8, 20, 1, "cuda:0", "MLP")
    assert str(latency) == (
        "MLP on cuda:0: 2.5 ms per sample (10 % to 90 %: 1 to 4 ms), 20 calls with "
        "8 row(s), up to 1 thread(s)"
    )
    unplaced = Latency(2.5e-3, 1e-3, 4e-3, 8, 20, 1, None, "predict")
    assert str(unplaced).startswith("predict: 2.5 ms")


def blas_and_openmp_threads():
    return [(lib["filepath"], lib["num_threads"]) for lib in threadpool_info()]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    with threadpool_limits(2):
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_limited_during_the_measurement(fails):
    seen = []

    def predict(batch):
        seen.append((torch.get_num_threads(), blas_and_openmp_threads()))
        if fails:
            raise RuntimeError("on purpose")

    before = blas_and_openmp_threads()
    measure = partial(
        measure_latency, predict, np.zeros((3, 1)), n_repeats=1, n_threads=1
    )
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            measure()
    else:
        assert measure().n_threads == 1
    for torch_threads, libraries in seen:
        assert torch_threads == 1
        assert {n_threads for _, n_threads in libraries} <= {1}
    assert torch.get_num_threads() == 2
    assert blas_and_openmp_threads() == before


@pytest.mark.usefixtures("two_threads")
def test_threads_are_left_as_they_are():
    seen = []
    latency = measure_latency(
        lambda batch: seen.append(torch.get_num_threads()), np.zeros((3, 1))
    )
    assert set(seen) == {2}
    assert latency.n_threads == 2


@pytest.mark.parametrize(
    ("pools", "expected"), [([3, 5], 5), ([1], 2), ([], 2)], ids=str
)
@pytest.mark.usefixtures("two_threads")
def test_threads_are_those_of_torch_or_of_a_library(monkeypatch, pools, expected):
    monkeypatch.setattr(
        latency_module,
        "threadpool_info",
        lambda: [{"num_threads": n_threads} for n_threads in pools],
    )
    latency = measure_latency(named, np.zeros((3, 1)), n_repeats=1)
    assert latency.n_threads == expected


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_garbage_collector_rests(enabled, fails):
    seen = []

    def predict(batch):
        seen.append(gc.isenabled())
        if fails:
            raise RuntimeError("on purpose")

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                measure_latency(predict, np.zeros((3, 1)))
        else:
            measure_latency(predict, np.zeros((3, 1)))
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert set(seen) == {False}
    assert after == enabled


class Observed(nn.Module):
    """Records what it is called with."""

    def __init__(self, dtype=torch.float32, fails=False):
        super().__init__()
        self.layer = nn.Linear(4, 2, dtype=dtype)
        self.norm = nn.BatchNorm1d(2, dtype=dtype).eval()
        self.fails = fails
        self.seen = []

    def forward(self, x):
        self.seen.append((x, self.training or self.layer.training))
        assert torch.is_inference_mode_enabled()
        if self.fails:
            raise RuntimeError("on purpose")
        return self.norm(self.layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda rows: np.asarray(rows, dtype=np.float32),
        lambda rows: np.asarray(rows, dtype=np.int64),
        list,
    ],
)
def test_modules_get_tensors_of_their_dtype(dtype, convert):
    module = Observed(dtype)
    rows = np.arange(12.0).reshape(3, 4)
    measure_latency(module, convert(rows), batch_size=2, n_warmup=0, n_repeats=2)
    for (x, _), expected in zip(module.seen, [rows[:2], rows[[2, 0]]], strict=True):
        assert x.dtype == dtype
        assert x.device == torch.device("cpu")
        assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("network", [nn.Linear(4, 2), nn.Identity()])
def test_tensors_keep_their_dtype(network, dtype):
    seen = []
    module = Call(network, lambda layer, x: seen.append(x))
    rows = torch.arange(12).reshape(3, 4).to(dtype)
    measure_latency(module, rows, n_warmup=0, n_repeats=3)
    assert {x.dtype for x in seen} == {dtype}
    assert_array_equal(torch.cat(seen).numpy(), rows.numpy())


def test_embedding_gets_indices():
    rows = torch.arange(8).reshape(2, 4)
    module = nn.Sequential(nn.Embedding(8, 3), nn.Flatten(), nn.Linear(12, 2))
    assert measure_latency(module, rows, n_repeats=2).median > 0


def test_modules_without_parameters_get_single_precision():
    seen = []
    module = Call(nn.Identity(), lambda layer, x: seen.append(x.dtype))
    assert measure_latency(module, np.zeros((3, 4))).device == "cpu"
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_restored(fails):
    module = Observed(fails=fails)
    flags = [part.training for part in module.modules()]
    assert set(flags) == {False, True}
    measure = partial(compare_latencies, [module, module], np.zeros((3, 4)))
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            measure()
    else:
        measure()
    assert not any(training for _, training in module.seen)
    assert [part.training for part in module.modules()] == flags


def test_frames_stay_frames():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]})
    seen = []
    measure_latency(seen.append, X, batch_size=2, n_warmup=0, n_repeats=2)
    pandas.testing.assert_frame_equal(seen[0], X.iloc[[0, 1]])
    pandas.testing.assert_frame_equal(seen[1], X.iloc[[2, 0]])
    # A module gets the numbers.
    module = Observed()
    numbers = pandas.DataFrame(np.arange(12.0).reshape(3, 4))
    measure_latency(module, numbers, n_warmup=0, n_repeats=1)
    assert_array_equal(module.seen[0][0].numpy(), [[0.0, 1.0, 2.0, 3.0]])


@pytest.mark.parametrize("measure", [measure_latency, compare_latencies])
@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"batch_size": 0}, r"'batch_size' must be an int from 1 to 3\. Got 0"),
        ({"batch_size": 4}, r"'batch_size' must be an int from 1 to 3\. Got 4"),
        ({"batch_size": 1.0}, r"'batch_size' must be an int from 1 to 3\. Got 1\.0"),
        ({"n_warmup": -1}, r"'n_warmup' must be an int at least 0\. Got -1 instead\."),
        ({"n_warmup": None}, r"'n_warmup' must be an int at least 0\. Got None"),
        ({"n_repeats": 0}, r"'n_repeats' must be an int at least 1\. Got 0 instead\."),
        ({"n_threads": 0}, r"'n_threads' must be an int from 1 to \d+\. Got 0 instead"),
        ({"n_threads": "1"}, r"'n_threads' must be an int from 1 to \d+\. Got '1'"),
        ({"n_threads": 2**40}, r"'n_threads' must be an int from 1 to \d+\. Got 10995"),
        ({"n_threads": 10**6}, r"'n_threads' must be an int from 1 to \d+\. Got 10000"),
    ],
)
def test_numbers_out_of_range(measure, parameters, match):
    predict = named if measure is measure_latency else [named]
    with pytest.raises(ValueError, match=match):
        measure(predict, np.zeros((3, 1)), **parameters)


def test_integers_of_numpy():
    one = np.int64(1)
    latency = measure_latency(
        named,
        np.zeros((3, 1)),
        batch_size=one,
        n_warmup=one,
        n_repeats=one,
        n_threads=one,
    )
    assert (latency.batch_size, latency.n_repeats, latency.n_threads) == (1, 1, 1)


@pytest.mark.parametrize("what", [DummyClassifier(), "predict", None])
def test_what_cannot_be_called(what):
    message = (
        "must be a callable, such as the method `predict` of an estimator, or a "
        f"module. Got {what!r} instead."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        measure_latency(what, np.zeros((3, 1)))
    with pytest.raises(TypeError, match=re.escape(message)):
        compare_latencies([named, what], np.zeros((3, 1)))


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="'predicts' is empty; give at least one"):
        compare_latencies([], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="'X' has no rows to measure with"):
        measure_latency(named, np.zeros((0, 1)))
