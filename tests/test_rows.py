"""Rows as students see them: indexing, held features, batches, devices."""

import copy
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from boosting_cases import (
    CONNECTIONS,
    CPU,
    DEEP_STUDENT,
    EXACT,
    assert_same,
    flat,
    join,
    make_rows,
)

from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import (
    BatchIterator,
    FeatureCache,
    RowData,
    as_tensor,
    chunk_rows,
    n_batches,
    resolve_device,
)
from skbdistil.ensemble import Lateral, ProgressiveEnsemble, Recurrent, Window
from skbdistil.students import ConvNet2d, RecurrentNet

pytestmark = pytest.mark.usefixtures("seeded_torch")


def _for_next_student(rows, index):
    """What the next student and its loss get of some rows."""
    batches = rows.for_round()
    return batches.prepared(batches[index])


# Rows by index


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("n_previous", [0, 2])
@pytest.mark.parametrize("connection", ["dense", "lateral", "last", None])
def test_all_ways_of_indexing_agree(connection, n_previous, held):
    rows = make_rows(
        connection=connection,
        n_previous=n_previous,
        held=held,
        sample_weight=torch.rand(50),
        label=torch.randn(50, 2),
    )
    for batches in (rows.for_round(), rows.for_joint_training()):
        by_slice = batches[10:14]
        assert_same(batches[[10, 11, 12, 13]], by_slice, **EXACT)
        assert_same(batches[torch.arange(10, 14)], by_slice, **EXACT)
        assert_same(batches[np.arange(10, 14)], by_slice, **EXACT)
        one = flat(batches[12])
        for path, tensor in flat(by_slice).items():
            torch.testing.assert_close(one[path], tensor[2])
        assert_same(batches[-38], batches[12], **EXACT)
        assert len(batches) == len(rows) == 50


def test_targets_are_those_of_the_rows():
    weight, label = torch.rand(50), torch.randn(50, 2)
    rows = make_rows(n_previous=1, sample_weight=weight, label=label)
    for batches in (rows.for_round(), rows.for_joint_training()):
        _, targets = batches[5:9]
        names = {"teacher", "residual_sum", "sample_weight", "label"}
        assert set(targets) == names
        teacher = rows.residuals.teacher_scores[5:9]
        np.testing.assert_array_equal(targets["teacher"], teacher)
        total = rows.residuals.total[5:9]
        np.testing.assert_array_equal(targets["residual_sum"], total)
        assert targets["residual_sum"].any()
        assert torch.equal(targets["sample_weight"], weight[5:9])
        assert torch.equal(targets["label"], label[5:9])


def test_targets_follow_the_residuals_without_a_copy():
    rows = make_rows()
    batches = rows.for_round()
    assert not batches[:][1]["residual_sum"].any()
    join(rows, rows.ensemble.new_student(DEEP_STUDENT))
    total = batches[:][1]["residual_sum"]
    assert total.any()
    assert total.data_ptr() == rows.residuals.total.ctypes.data


def test_absent_targets_are_left_out():
    rows = make_rows()
    assert set(rows.for_round()[:3][1]) == {"teacher", "residual_sum"}


def test_inputs_of_a_round_are_scaled_and_cast():
    rows = make_rows()
    inputs, _ = rows.for_round()[:5]
    assert rows.x.dtype == torch.float64
    torch.testing.assert_close(inputs["x"], ((rows.x[:5] - 1) / 3).float())
    assert set(inputs) == {"x"}


@pytest.mark.parametrize("held", [True, False])
def test_inputs_of_joint_training_are_the_rows_as_given(held):
    rows = make_rows(n_previous=2, held=held)
    # The ensemble scales them itself.
    batches = rows.for_joint_training()
    inputs, _ = batches.prepared(batches[5:9])
    assert set(inputs) == {"x"}
    assert torch.equal(inputs["x"], rows.x[5:9].float())


def test_integer_rows_of_an_ensemble_of_integers_stay_integers():
    ensemble = ProgressiveEnsemble((4,), 2, integer_input=True)
    x = torch.arange(24, dtype=torch.uint8).reshape(6, 4)
    rows = RowData(
        ensemble, x, Residuals(np.zeros((6, 2), np.float32)), device=CPU, cache=None
    )
    inputs, _ = _for_next_student(rows, slice(2, 5))
    assert inputs["x"].dtype == torch.int64
    assert torch.equal(inputs["x"], x[2:5].long())


# What earlier students computed


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_held_and_recomputed_features_agree(connection):
    def prepared(held):
        torch.manual_seed(0)
        return make_rows(
            connection=connection, held=held, n_previous=3, student=DEEP_STUDENT
        )

    held, recomputed = prepared(True), prepared(False)
    index = torch.tensor([40, 3, 17])
    # Rounding of matrix products depends on the number of rows.
    assert_same(
        _for_next_student(held, index),
        _for_next_student(recomputed, index),
        rtol=1e-5,
        atol=1e-6,
    )
    # All rows in one piece are computed as they were for the cache. But for the mean:
    # the residuals give it in one case, and the students in the other.
    left, right = (_for_next_student(rows, slice(50)) for rows in (held, recomputed))
    for inputs, targets in (left, right):
        del inputs["mean"], targets["residual_sum"]
    assert_same(left, right, **EXACT)
    assert ("earlier" in left[0]) == (connection is not None)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_a_student_trains_on_what_it_will_see_in_the_ensemble(connection, held):
    """Its scores on the rows make the mean of the ensemble that includes it."""
    rows = make_rows(
        connection=connection,
        held=held,
        dtype=torch.float64,
        n_previous=4,
        student=DEEP_STUDENT,
    )
    stages = list(rows.ensemble.stages(rows.x))
    np.testing.assert_allclose(
        stages[-1], rows.residuals.mean(), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("plays", [True, False])
def test_the_mean_of_earlier_students_comes_from_the_residual_sum(plays):
    rows = make_rows(n_previous=3, dtype=torch.float64, plays=plays)
    inputs, _ = rows.for_round()[7:19]
    expected = rows.ensemble(rows.x[7:19])
    torch.testing.assert_close(inputs["mean"], expected, rtol=1e-10, atol=1e-10)


READ_BY_THE_FIFTH = [
    (None, []),
    ("last", [3]),
    (Lateral("last"), [3]),
    (Lateral("last", shared_blocks=1), [0, 3]),
    (Lateral(2), [2, 3]),
    (Lateral(2, shared_blocks=1), [0, 2, 3]),
    (Lateral(4, shared_blocks=1), [0, 1, 2, 3]),
    (Window("last"), [3]),
    (Window(3), [1, 2, 3]),
    (Window(9), [0, 1, 2, 3]),
    (Window("all", connection="wide"), [0, 1, 2, 3]),
    (Recurrent(), [3]),
    ("dense", [0, 1, 2, 3]),
    (Lateral(shared_blocks=1), [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("connection", "read"), READ_BY_THE_FIFTH)
def test_cache_holds_and_gathers_only_what_is_read(connection, read):
    ensemble = ProgressiveEnsemble((4,), 2, connection=connection)
    cache = FeatureCache(ensemble, n_students=9)
    held = []
    for _ in range(4):
        maps = torch.randn(6, 3)
        cache.extend((maps,))
        held.append(weakref.ref(maps))
        del maps
    assert [k for k, maps in enumerate(held) if maps() is not None] == read
    index = torch.tensor([4, 1])
    taken = cache.take(index, CPU)
    assert [k for k, parts in enumerate(taken) if parts] == read
    for k in read:
        (maps,) = taken[k]
        assert torch.equal(maps, held[k]()[index])
    cache.clear()
    assert all(maps() is None for maps in held)
    assert cache.take(index, CPU) == []


@pytest.mark.parametrize(("connection", "read"), READ_BY_THE_FIFTH)
def test_a_pass_over_the_students_frees_what_is_read_no_more(connection, read):
    shape, student = (4,), DEEP_STUDENT
    if isinstance(connection, Recurrent):
        shape, student = (5, 4), RecurrentNet
    ensemble = ProgressiveEnsemble(shape, 2, connection=connection)
    for _ in range(5):
        ensemble.append(ensemble.new_student(student))
    state = ensemble.start(torch.randn(6, *shape))
    maps = []
    with torch.no_grad():
        for _ in range(4):
            state.advance()
            maps.append([weakref.ref(part) for part in state.earlier[-1]])
    there = [
        k for k, parts in enumerate(maps) if any(ref() is not None for ref in parts)
    ]
    assert there == [k for k, parts in enumerate(state.earlier) if parts] == read
    # The next one has what it reads.
    assert torch.isfinite(state.step()).all()


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_cache_of_the_last_student_wants_nothing(connection):
    ensemble = ProgressiveEnsemble((4,), 2, connection=connection)
    cache = FeatureCache(ensemble, n_students=3)
    wanted = []
    for _ in range(3):
        wanted.append(cache.wants_next())
        cache.extend((torch.zeros(6, 3),))
    assert wanted == [connection is not None, connection is not None, False]
    # After the last student, nothing is read any more.
    assert not any(cache.take(slice(None), CPU))


@pytest.mark.parametrize("connection", [None, "last", "dense"])
def test_run_returns_activations_only_where_a_later_student_reads_them(connection):
    rows = make_rows(connection=connection, n_previous=2)
    _, activations = rows.run(rows.ensemble.new_student(DEEP_STUDENT))
    assert [len(maps) for maps in activations] == [50] * (connection is not None)


def test_held_features_do_not_belong_to_a_graph():
    rows = make_rows()
    student = rows.ensemble.new_student(DEEP_STUDENT)
    assert all(parameter.requires_grad for parameter in student.parameters())
    scores, activations = rows.run(student)
    assert isinstance(scores, np.ndarray)
    assert len(activations) == 1
    assert not any(tensor.requires_grad for tensor in activations)
    assert not any(tensor.is_inference() for tensor in activations)


def test_run_is_in_eval_mode_and_restores_the_mode(monkeypatch):
    monkeypatch.setattr("skbdistil._boosting._rows._CHUNK_ROWS", 16)
    ensemble = ProgressiveEnsemble((1, 6, 6), 2, connection="lateral")
    x, teacher = torch.randn(50, 1, 6, 6), torch.randn(50, 2)
    rows = RowData(
        ensemble,
        x,
        Residuals(teacher.numpy()),
        device=CPU,
        cache=FeatureCache(ensemble, 2),
    )
    student = ensemble.new_student(partial(ConvNet2d, channels=(2, 3)))
    before = copy.deepcopy(student.state_dict())
    assert student.training
    scores, activations = rows.run(student)
    assert student.training
    assert_same(dict(student.state_dict()), dict(before), **EXACT)
    with torch.no_grad():
        expected, expected_activations = student.eval()(x)
    torch.testing.assert_close(torch.from_numpy(scores), expected)
    assert_same(activations, expected_activations)
    # No later student reads what the last one leaves.
    rows.add(scores, activations)
    ensemble.append(student)
    last = ensemble.new_student(partial(ConvNet2d, channels=(2, 3)))
    assert rows.run(last)[1] == ()


@pytest.mark.parametrize("plays", [True, False])
def test_reset_goes_back_to_the_first_student(plays):
    rows = make_rows(n_previous=2, plays=plays)
    del rows.ensemble.students[:]
    rows.reset()
    assert rows.residuals.n_rounds == 0
    assert not rows.residuals.total.any()
    assert set(rows.for_round()[:3][0]) == {"x"}
    if plays:
        assert rows.game.student_edges.shape == (0, 2)


def test_forgotten_activations_leave_the_residuals():
    rows = make_rows(n_previous=2)
    before = rows.residuals.total.copy()
    rows.forget_activations()
    assert rows.cache.take(slice(None), CPU) == []
    assert rows.residuals.n_rounds == 2
    np.testing.assert_array_equal(rows.residuals.total, before)


# Batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("n", "batch_size"),
    [(1, 1), (1, 8), (2, 1), (7, 8), (8, 8), (9, 8), (10, 8), (16, 8), (17, 8)],
)
def test_batches_cover_every_row_once(n, batch_size, shuffle):
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return n

        def __getitem__(self, index):
            assert isinstance(index, torch.Tensor)
            return index

    iterator = BatchIterator(Numbers(), batch_size, shuffle=shuffle)
    batches = list(iterator)
    assert len(batches) == len(iterator) == n_batches(n, batch_size)
    seen = torch.cat(batches)
    assert sorted(seen.tolist()) == list(range(n))
    if not shuffle:
        assert seen.tolist() == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(batches) - 1)
    if n > 1 and batch_size > 1:
        # A single row has no variance to normalise with; it joins the batch before.
        assert 2 <= sizes[-1] <= batch_size + 1


def test_shuffled_batches_differ_between_epochs():
    iterator = BatchIterator(make_rows(n=64).for_round(), 16)
    first, second = ([inputs["x"] for inputs, _ in iterator] for _ in range(2))
    assert not torch.equal(torch.cat(first), torch.cat(second))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3,), 4096), ((2**8,), 4096), ((2, 2**8), 2048), ((2**11, 2**11), 1)],
)
def test_large_rows_are_run_fewer_at_a_time(shape, expected):
    assert chunk_rows(shape) == chunk_rows(shape, torch.device("cpu")) == expected


def test_accelerator_runs_more_of_large_rows_at_a_time():
    assert chunk_rows((2, 2**13), torch.device("meta")) == 2048


# Arrays and devices


def test_read_only_arrays_are_not_copied():
    array = np.arange(6.0)
    tensor = as_tensor(array)
    array[0] = 5
    assert tensor[0] == 5
    array.flags.writeable = False
    assert as_tensor(array).data_ptr() == array.ctypes.data


def test_device_names():
    assert resolve_device("cpu", torch.float32, "Owner") == CPU
    assert resolve_device(CPU, torch.float32, "Owner") == CPU
    with pytest.raises(ValueError, match=r"'device' parameter of Owner .* Got 'foo'"):
        resolve_device("foo", torch.float32, "Owner")
    expected = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    assert resolve_device("auto", torch.float32, "Owner").type == expected
    assert resolve_device("auto", torch.float64, "Owner").type != "mps"
