"""What users pass as numbers reaches NumPy and torch, whatever its layout and dtype."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import sparse
from torch import nn

from skbdistil._arrays import (
    SparseRows,
    as_array,
    as_tensor,
    floating_dtype,
    home_device,
    in_form_of,
    native_dtype,
    stack_rows,
)


def numbers(dtype=np.float32):
    return np.arange(24).reshape(4, 6).astype(dtype)


def record_field():
    records = np.zeros(4, dtype=[("value", "f4"), ("flag", "i1")])
    records["value"] = [1, 2, 3, 4]
    return records["value"]


def read_only(array):
    array.flags.writeable = False
    return array


REFUSED_BY_TORCH = {
    "reversed rows": numbers()[::-1],
    "reversed features": numbers()[:, ::-1],
    "one reversed row": numbers()[-1:][::-1],
    "one reversed feature": numbers()[:, :1][:, ::-1],
    "one reversed row of several axes": numbers().reshape(4, 1, 3, 2)[:, ::-1],
    "big-endian": numbers(">f4"),
    "big-endian integers": numbers(">i2"),
    "little-endian": numbers("<f8").astype(np.dtype("f8").newbyteorder("S")),
    "long double": numbers(np.longdouble),
    "field of records": record_field(),
    "read-only and reversed": read_only(numbers())[::-1],
}
VIEWED_BY_TORCH = {
    "plain": numbers(),
    "Fortran order": np.asfortranarray(numbers()),
    "strided": numbers()[::2, 1::3],
    "integers": numbers(np.int16),
    "bytes": numbers(np.uint8),
    "truth values": numbers() > 5,
    "read-only": read_only(numbers()),
    "broadcast": np.broadcast_to(numbers()[0], (4, 6)),
    "no rows": numbers()[:0],
}


@pytest.mark.parametrize("kind", REFUSED_BY_TORCH)
def test_as_tensor_of_what_torch_refuses_has_the_same_numbers(kind):
    array = REFUSED_BY_TORCH[kind]
    with pytest.raises((TypeError, ValueError)):
        torch.from_numpy(array)
    before = array.copy()
    tensor = as_tensor(array)
    assert_array_equal(tensor.numpy(), array)
    assert tensor.is_contiguous()
    assert_array_equal(array, before)


@pytest.mark.parametrize("kind", VIEWED_BY_TORCH)
def test_as_tensor_of_what_torch_accepts_is_no_copy(kind):
    array = VIEWED_BY_TORCH[kind]
    tensor = as_tensor(array)
    assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype
    assert tensor.data_ptr() == array.ctypes.data or not array.size


def test_as_tensor_of_a_read_only_memory_map_is_no_copy(tmp_path):
    np.save(tmp_path / "rows.npy", numbers())
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert as_tensor(rows).data_ptr() == rows.ctypes.data


def test_as_tensor_of_a_tensor_is_itself():
    tensor = torch.zeros(2, dtype=torch.bfloat16)
    assert as_tensor(tensor) is tensor


def test_as_tensor_of_lists():
    assert as_tensor([[1, 2]]).dtype == torch.int64
    assert as_tensor([[0.5, 2]]).tolist() == [[0.5, 2]]


@pytest.mark.parametrize("kind", REFUSED_BY_TORCH)
def test_native_dtype_is_one_that_torch_holds(kind):
    dtype = native_dtype(REFUSED_BY_TORCH[kind].dtype)
    assert torch.from_numpy(np.zeros(1, dtype)).numpy().dtype == dtype
    assert native_dtype(dtype) == dtype


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(4.0).bfloat16(),
        torch.arange(4.0, requires_grad=True),
        torch.arange(4.0).to(torch.float8_e4m3fn),
        torch.arange(4.0).half(),
        torch.arange(4.0).neg()._neg_view(),
        torch.arange(4),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_as_array_of_a_tensor_has_its_numbers(tensor):
    assert_array_equal(as_array(tensor), [0, 1, 2, 3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_as_array_of_a_tensor_on_a_gpu():
    assert_array_equal(as_array(torch.arange(4.0, device="cuda")), [0, 1, 2, 3])


def test_as_array_of_an_array_is_no_copy(tmp_path):
    array = numbers(">f4").reshape(4, 3, 2)
    assert np.shares_memory(as_array(array), array)
    assert as_array(array).dtype == array.dtype
    np.save(tmp_path / "rows.npy", array)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.shares_memory(as_array(rows), rows)


def test_as_array_of_a_frame_of_mixed_dtypes():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "c": [True, False]})
    assert_array_equal(as_array(frame), [[1, 0.5, 1], [2, np.nan, 0]])


def test_as_array_of_text_is_an_error():
    with pytest.raises(ValueError, match="not compatible with arrays of bytes/strings"):
        as_array([["a", "b"]])


def test_floating_dtype_passes_integers_over():
    module = nn.Module()
    module.register_buffer("count", torch.zeros(1, dtype=torch.int64))
    assert floating_dtype(module) == torch.get_default_dtype()
    module.register_buffer("mean", torch.zeros(1, dtype=torch.float16))
    assert floating_dtype(module) == torch.float16
    module.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    assert floating_dtype(module) == torch.float64


def test_home_device_of_a_module():
    assert home_device(nn.Linear(2, 2, device="meta")).type == "meta"
    assert home_device(nn.ReLU()).type == "cpu"


# Sparse rows


def test_rows_of_one_array_are_not_copied():
    rows = numbers()
    assert stack_rows([rows]) is rows
    assert in_form_of(rows[:1], rows) is rows


def test_stacked_rows_are_sparse_where_any_of_them_is():
    rows = SparseRows(sparse.csr_array(numbers()))
    for parts in ([rows, numbers()], [numbers(), rows]):
        stacked = stack_rows(parts)
        assert isinstance(stacked, SparseRows)
        assert_array_equal(stacked[:], np.concatenate([numbers(), numbers()]))


@pytest.mark.parametrize(
    ("values", "dtype"), [([[1.0, 2.0]], np.uint8), ([[1.5, 2.0]], np.float64)]
)
def test_rows_take_the_dtype_of_others_if_that_changes_none(values, dtype):
    found = in_form_of(np.zeros((1, 2), np.uint8), np.array(values))
    assert found.dtype == dtype
    assert_array_equal(found, values)
