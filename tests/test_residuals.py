"""Sums of deviations from the teacher."""

import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skbdistil._boosting._residuals import Residuals


def _played(n_students=3, *, n_samples=23, dtype=np.float64, **options):
    """Residuals of random students, and the scores of teacher and students."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((n_samples, 2)).astype(dtype)
    students = rng.standard_normal((n_students, n_samples, 2)).astype(dtype)
    residuals = Residuals(teacher, **options)
    for scores in students:
        residuals.add(scores)
    return residuals, teacher, students


@pytest.mark.parametrize("chunk_size", [1, 7, 23, 24, 1024])
def test_total_is_the_sum_of_the_deviations(chunk_size):
    residuals, teacher, students = _played(chunk_size=chunk_size)
    assert_allclose(residuals.total, (students - teacher).sum(axis=0), atol=1e-12)
    assert residuals.n_rounds == 3
    assert len(residuals) == 23


@pytest.mark.parametrize("n_students", [1, 2, 5])
def test_mean_is_that_of_the_students(n_students):
    residuals, _, students = _played(n_students)
    assert_allclose(residuals.mean(), students.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
def test_reset_and_the_same_students_give_the_same_bits(chunk_size):
    residuals, _, students = _played(dtype=np.float32, chunk_size=chunk_size)
    before = residuals.total.copy()
    residuals.reset()
    assert residuals.n_rounds == 0
    assert not residuals.total.any()
    for scores in students:
        residuals.add(scores)
    assert_array_equal(residuals.total, before)
    assert residuals.n_rounds == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_total_has_the_dtype_of_the_teacher_and_stays_where_it_is(dtype):
    residuals, _, students = _played(dtype=dtype)
    assert residuals.total.dtype == dtype
    total = residuals.total
    residuals.add(students[0])
    residuals.reset()
    residuals.add(students[1])
    # Others look at it through a view.
    assert residuals.total is total


def test_given_storage_is_cleared_and_used():
    teacher = np.zeros((4, 2))
    total = np.full((4, 2), 9.0)
    residuals = Residuals(teacher, total=total)
    assert residuals.total is total
    assert not total.any()
    residuals.add(np.ones((4, 2)))
    assert (total == 1).all()


def test_teacher_scores_are_neither_copied_nor_written():
    teacher = np.random.default_rng(0).standard_normal((8, 2))
    teacher.flags.writeable = False
    residuals = Residuals(teacher)
    residuals.add(np.zeros((8, 2)))
    assert residuals.teacher_scores is teacher


def test_memory_maps_serve_as_storage(tmp_path):
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((50, 2)).astype(np.float32)
    np.save(tmp_path / "teacher.npy", teacher)
    read = np.load(tmp_path / "teacher.npy", mmap_mode="r")
    total = np.lib.format.open_memmap(
        tmp_path / "total.npy", mode="w+", dtype=np.float32, shape=(50, 2)
    )
    residuals = Residuals(read, total=total, chunk_size=8)
    scores = rng.standard_normal((50, 2)).astype(np.float32)
    residuals.add(scores)
    total.flush()
    assert_allclose(np.load(tmp_path / "total.npy"), scores - teacher, rtol=1e-6)


def test_deviations_are_float64_and_cover_all_rows():
    rng = np.random.default_rng(0)
    teacher, scores = rng.standard_normal((2, 23, 2)).astype(np.float32)
    residuals = Residuals(teacher, chunk_size=5)
    chunks = list(residuals.deviations(scores))
    parts = [deviations for _, deviations in chunks]
    assert {part.dtype for part in parts} == {np.dtype(np.float64)}
    assert [len(part) for part in parts] == [5, 5, 5, 5, 3]
    expected = scores.astype(np.float64) - teacher
    assert_array_equal(np.concatenate(parts), expected)
    for rows, deviations in chunks:
        assert_array_equal(deviations, expected[rows])


def test_temporary_memory_is_that_of_a_chunk():
    teacher, scores = np.zeros((2, 40_000, 4), dtype=np.float32)
    residuals = Residuals(teacher, chunk_size=100)
    tracemalloc.start()
    try:
        residuals.add(scores)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < teacher.nbytes / 10


def test_scores_of_another_shape_are_refused_and_change_nothing():
    residuals, _, _ = _played()
    before = residuals.total.copy()
    for shape in [(23,), (22, 2), (23, 3)]:
        with pytest.raises(ValueError, match=r"scores must have the shape .*\(23, 2\)"):
            residuals.add(np.zeros(shape))
    assert_array_equal(residuals.total, before)
    assert residuals.n_rounds == 3


def test_storage_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"total must have the shape .* got \(3, 2\)"):
        Residuals(np.zeros((4, 2)), total=np.zeros((3, 2)))
