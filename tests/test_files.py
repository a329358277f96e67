"""Files and folders that appear when they are complete."""

import pytest

from skbdistil._files import new_folder, write_file


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
