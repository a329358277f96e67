"""What somebody else may have written: read within bounds, or refused."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skbdistil._untrusted import (
    ArrayReader,
    brief,
    check_row_shape,
    parse_json,
    read_file,
)
from skbdistil.exceptions import InvalidFileError


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [True, False, None, "\u00fc,[{", 0.1, -0.0, 1e308, 5e-324],
        [-(2**63), 2**64 - 1],
        {"a": [{"a": 1}, {"a": 2}]},
        json.loads("[" * 100 + "]" * 100),
    ],
)
def test_json_is_read_as_it_is(value):
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON: "),
        (b"{", "it is not JSON: "),
        (b"\xff", "it is not JSON: "),
        (b"\xef\xbb\xbf1", "it is not JSON: "),
        ("1".encode("utf-16"), "it is not JSON: "),
        (b"[" * 100_000 + b"]" * 100_000, "it is not JSON: "),
        (b"[" * 101 + b"]" * 101, "more than 100 levels deep"),
        (b'{"a":' * 100 + b"[]" + b"}" * 100, "more than 100 levels deep"),
        (b'{"a": 1, "a": 1}', "a key twice"),
        (b"[NaN]", "has NaN, which JSON does not know"),
        (b"[-Infinity]", "has -Infinity, which"),
        (b"1e999", "a number beyond float64"),
        (str(2**64).encode(), "an int beyond 64 bits"),
        (str(-(2**63) - 1).encode(), "an int beyond 64 bits"),
        (b"1" * 5000, "an int beyond 64 bits"),
    ],
)
def test_json_that_is_refused(content, reason):
    with pytest.raises(InvalidFileError, match=reason):
        parse_json(content)


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"0,", b"[", b'{"":'])
def test_many_values_are_refused_before_they_are_built(piece):
    content = piece * 5_000_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFileError, match="more than 4194304 values"):
            parse_json(content)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "values",
    [
        np.array([], dtype="<i8"),
        np.array([True, False]),
        np.array([-1, 127], dtype="i1"),
        np.array([2**64 - 1], dtype="<u8"),
        np.array([0.1, np.inf, np.nan]),
        np.array([1, 2], dtype=">f4"),
        np.array(["", "\u00fc", "abc"]),
        np.array(["a", 1, 0.5, None, True], dtype=object),
    ],
    ids=lambda values: values.dtype.str,
)
def test_arrays_are_read_as_they_are(values):
    found = ArrayReader().read(values.dtype.str, values.tolist())
    assert found.dtype == values.dtype
    assert_array_equal(found, values)


@pytest.mark.parametrize(
    "dtype",
    [
        "V8",
        "|V8",
        "<M8[s]",
        "<c16",
        "S3",
        "i4,i4",
        "(2,)i4",
        "O",
        "",
        "<f8 ",
        "<i\u0664",
    ],
)
def test_dtypes_that_are_refused(dtype):
    with pytest.raises(InvalidFileError, match="an array has the dtype"):
        ArrayReader().read(dtype, [1])


@pytest.mark.parametrize(
    ("dtype", "item"),
    [
        ("<i8", 1.0),
        ("<i8", True),
        ("<f8", True),
        ("<f8", "1"),
        ("|b1", 1),
        ("<U3", 1),
        ("|O", [1]),
        ("|O", {}),
    ],
)
def test_items_of_another_type_are_refused(dtype, item):
    with pytest.raises(InvalidFileError, match="the items of an array are not of"):
        ArrayReader().read(dtype, [item])


def test_one_long_string_does_not_make_all_items_long():
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFileError, match="more than 67108864 bytes"):
            ArrayReader().read("<U20000", ["a" * 20_000, *[""] * 20_000])
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_all_arrays_of_a_file_count_together():
    reader = ArrayReader()
    for _ in range(4):
        reader.read("<U4194304", [""])
    with pytest.raises(InvalidFileError, match="more than 67108864 bytes"):
        reader.read("<i8", [1])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ([2**28 + 1], "its rows have 268435457 numbers"),
        ([2**40] * 3, "its rows have 13292"),
        ([2**63] * 100_000, "its rows have 100000 axes"),
    ],
)
def test_shapes_that_no_row_has_are_refused(shape, reason):
    check_row_shape([2**28])
    with pytest.raises(InvalidFileError, match=reason):
        check_row_shape(shape)


def test_reasons_can_be_read():
    assert brief("short") == "short"
    assert len(brief("a" * 10**6)) < 1100


def test_regular_files_and_links_to_them_are_read(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"content")
    link.symlink_to(file)
    assert read_file(file) == read_file(link) == b"content"
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(OSError, match=path.name):
            read_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have a name")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidFileError, match="it is not a regular file"):
        read_file(tmp_path / "pipe")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless device")
def test_devices_are_not_read():
    with pytest.raises(InvalidFileError, match="it is not a regular file"):
        read_file("/dev/zero")
