"""Files and folders that appear when they are complete."""

import os
import threading
import time
from pathlib import Path

import pytest

from skbdistil._files import new_folder, write_file, write_stages

DAY = 24 * 60 * 60


def fill(folder, names=("stage_1.onnx", "manifest.json")):
    for name in names:
        (folder / name).write_text(name)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_link_to_a_file_stays_one(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    write_file(file, b"old")
    link.symlink_to(file)
    write_file(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert names(tmp_path) == ["file", "link"]


@pytest.mark.parametrize("kind", ["missing", "empty", "link", "dangling link"])
def test_folder_is_filled(tmp_path, kind):
    target = directory = tmp_path / "export"
    if kind == "empty":
        directory.mkdir()
    if "link" in kind:
        target = tmp_path / "target"
        if kind == "link":
            target.mkdir()
        directory.symlink_to(target)
    before = names(tmp_path)
    with new_folder(directory) as folder:
        fill(folder)
    assert names(target) == ["manifest.json", "stage_1.onnx"]
    assert names(tmp_path) == sorted({*before, target.name})


def test_empty_folder_stays_the_same_one(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    with new_folder(".") as folder:
        fill(folder)
    assert tmp_path.stat().st_ino == inode
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == ["manifest.json", "stage_1.onnx"]


@pytest.mark.parametrize("exists", [False, True])
def test_failure_leaves_nothing(tmp_path, exists):
    directory = tmp_path / "export"
    if exists:
        directory.mkdir()

    def fail(directory):
        with new_folder(directory) as folder:
            fill(folder)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail(directory)
    assert directory.exists() == exists
    assert not list(tmp_path.rglob("*.*"))


def test_failure_of_the_last_file_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, target):
        if path.name == "manifest.json":
            raise OSError("No space left on device")
        return path.rename(target)

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space"), new_folder(tmp_path) as folder:
        fill(folder)
    assert names(tmp_path) == []


# Where nothing can be written


def assert_names(error, path):
    """The error is about a path that the caller knows."""
    assert error.filename == str(path)
    assert ".skbdistil-" not in str(error)


def test_missing_folder_is_named_by_the_path_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "nodir" / "e.skb", "nodir/e.skb"):
        with pytest.raises(FileNotFoundError) as info:
            write_file(path, b"new")
        assert_names(info.value, path)
        with pytest.raises(FileNotFoundError) as info, new_folder(path):
            pass
        assert_names(info.value, path)
    assert names(tmp_path) == []


def test_file_in_the_place_of_a_folder_is_named_by_the_path_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    path = tmp_path / "file" / "e.skb"
    with pytest.raises(NotADirectoryError) as info:
        write_file(path, b"new")
    assert_names(info.value, path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "empty", "dot"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    path = {"folder": tmp_path / "folder", "empty": "", "dot": Path()}.get(kind)
    if path is None:
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs pipes that have a name")
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe"
        if kind == "link to a pipe":
            path = tmp_path / "link"
            path.symlink_to("pipe")
    before = names(tmp_path)
    with pytest.raises(FileExistsError, match="'path' must be the name of a file"):
        write_file(path, b"new")
    assert names(tmp_path) == before
    assert names(tmp_path / "folder") == []
    assert kind not in ("pipe", "link to a pipe") or (tmp_path / "pipe").is_fifo()


def test_file_that_may_not_be_written_to_is_not_replaced(strict_folder):
    path = strict_folder / "model.skb"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError) as info:
        write_file(path, b"new")
    assert_names(info.value, os.path.realpath(path))
    assert path.read_bytes() == b"old"
    assert names(strict_folder) == ["model.skb"]


def test_read_only_folder_stays_as_it_is(strict_folder):
    file, empty = strict_folder / "model.skb", strict_folder / "empty"
    file.write_bytes(b"old")
    empty.mkdir()
    empty.chmod(0o555)
    strict_folder.chmod(0o555)
    for path in (file, strict_folder / "new.skb"):
        with pytest.raises(PermissionError) as info:
            write_file(path, b"new")
        assert_names(info.value, path)
    for path in (empty, strict_folder / "export"):
        with pytest.raises(PermissionError) as info, new_folder(path) as folder:
            fill(folder)
        assert_names(info.value, path)
    assert file.read_bytes() == b"old"
    assert names(strict_folder) == ["empty", "model.skb"]
    assert names(empty) == []


def test_full_disk_leaves_the_earlier_file(tmp_path, full_disk):
    path = tmp_path / "model.skb"
    write_file(path, b"old")
    with full_disk(1000), pytest.raises(OSError, match="File too large") as info:
        write_file(path, bytes(2000))
    assert_names(info.value, path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.skb"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("large", ["stage_1.onnx", "manifest.json"])
def test_full_disk_leaves_no_folder(tmp_path, exists, large, full_disk):
    directory = tmp_path / "export"
    if exists:
        directory.mkdir()
    content = bytes(2000 if large == "stage_1.onnx" else 10)
    manifest = {"stages": [{"file": "stage_1.onnx"}], "note": "a" * 2000}

    def export():
        with new_folder(directory) as folder:
            write_stages(folder, manifest, [content])

    with full_disk(1000), pytest.raises(OSError, match="File too large") as info:
        export()
    assert_names(info.value, directory / large)
    assert directory.exists() == exists
    assert not exists or names(directory) == []
    assert names(tmp_path) == ["export"] * exists


# What killed processes leave behind


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, times=(then, then), follow_symlinks=False)


def test_leftovers_of_killed_processes_are_removed_after_a_day(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"mine")
    leftovers = [tmp_path / f".skbdistil-{number}.tmp" for number in range(4)]
    leftovers[0].write_bytes(b"half")
    leftovers[1].mkdir()
    fill(leftovers[1])
    leftovers[2].symlink_to(precious)
    leftovers[3].write_bytes(b"somebody is still writing")
    others = [tmp_path / ".skbdistil-mine", tmp_path / "skbdistil-1.tmp"]
    for path in others:
        path.write_bytes(b"mine")
    for path in (*leftovers[:3], *others, precious):
        age(path, 2 * DAY)
    age(leftovers[3], DAY / 2)
    write_file(tmp_path / "model.skb", b"new")
    kept = [leftovers[3], *others, precious, tmp_path / "model.skb"]
    assert names(tmp_path) == sorted(path.name for path in kept)
    assert (precious / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("exists", [False, True])
def test_folder_with_an_old_leftover_is_empty(tmp_path, exists):
    directory = tmp_path / "export"
    parent = directory if exists else tmp_path
    leftover = parent / ".skbdistil-export.tmp"
    leftover.mkdir(parents=True)
    fill(leftover)
    age(leftover, 2 * DAY)
    with new_folder(directory) as folder:
        fill(folder)
    assert names(directory) == ["manifest.json", "stage_1.onnx"]
    assert names(tmp_path) == ["export"]


# Two at a time


def export(directory, content):
    with new_folder(directory) as folder:
        fill(folder)
        (folder / "stage_1.onnx").write_text(content)


@pytest.mark.parametrize("exists", [False, True])
def test_export_that_another_one_overtakes_is_refused(tmp_path, exists, monkeypatch):
    directory = tmp_path / "export"
    if exists:
        directory.mkdir()
    mkdir = os.mkdir

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(os, "mkdir", mkdir)
        export(directory, "first")
        return mkdir(*args, **kwargs)

    monkeypatch.setattr(os, "mkdir", overtaken)
    with pytest.raises(FileExistsError, match="'directory' must not exist, or be"):
        export(directory, "second")
    assert (directory / "stage_1.onnx").read_text() == "first"
    assert names(directory) == ["manifest.json", "stage_1.onnx"]
    assert names(tmp_path) == ["export"]


def test_export_into_a_folder_that_another_one_fills_is_refused(tmp_path):
    with new_folder(tmp_path) as folder:
        with pytest.raises(FileExistsError, match=r"is '\.skbdistil-export\.tmp'"):
            export(tmp_path, "second")
        fill(folder)
    assert names(tmp_path) == ["manifest.json", "stage_1.onnx"]


@pytest.mark.parametrize("exists", [False, True])
def test_one_of_exports_at_the_same_time_succeeds(tmp_path, exists):
    for number in range(20):
        directory = tmp_path / str(number)
        if exists:
            directory.mkdir()
        barrier = threading.Barrier(3)
        succeeded = []

        def run(content, directory=directory, barrier=barrier, succeeded=succeeded):
            barrier.wait()
            try:
                export(directory, content)
            except FileExistsError:
                return
            succeeded.append(content)

        threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(directory / "stage_1.onnx").read_text()] == succeeded
        assert names(directory) == ["manifest.json", "stage_1.onnx"]
