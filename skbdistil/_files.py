"""Files and folders that appear when they are complete."""

import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path

# What is not complete yet, or never will be, if it is older than a day.
_TEMPORARY = ".skbdistil-{}.tmp"
_DAY = 24 * 60 * 60


def write_file(path, content):
    """Write a file as a whole or not at all; one that is there keeps its mode."""
    with new_file(path) as temporary:
        _write(temporary, content)


@contextmanager
def new_file(path):
    """A path to write a file at, which replaces `path` if that has not failed."""
    # A link stays one.
    target = Path(os.path.realpath(path))
    exists = target.exists()
    if exists:
        if not target.is_file():
            raise FileExistsError(
                f"'path' must be the name of a file. Got {os.fspath(path)!r}, where "
                "there is something else."
            )
        # To replace a file takes no permission to write to it, only to its folder.
        open(target, "r+b").close()
    _remove_leftovers(target.parent)
    temporary = _temporary_name(target.parent)
    try:
        with _renaming(temporary, path):
            yield temporary
            _sync(temporary)
            if exists:
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def new_folder(directory):
    """A folder to fill, which becomes `directory` if that has not failed.

    An empty folder that is there stays the same one, since it may be mounted: files are
    moved into it, the manifest last, without which they are nothing.
    """
    target = Path(os.path.realpath(directory))
    exists = target.exists()
    parent = target if exists else target.parent
    _remove_leftovers(parent)
    if exists:
        _check_empty(target)
        # One name for all, so that one process only can make it.
        folder = parent / _TEMPORARY.format("export")
    else:
        folder = _temporary_name(parent)
    with _renaming(folder, directory):
        try:
            folder.mkdir()
        except FileExistsError:
            raise _taken(target, folder) from None
        try:
            if exists:
                _check_empty(target, but=folder)
            yield folder
            for path in folder.iterdir():
                _sync(path)
            if exists:
                _move_into(target, folder)
            else:
                _rename(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_empty(directory, but=None):
    if not directory.is_dir():
        raise _taken(directory, directory)
    for path in directory.iterdir():
        if path != but:
            raise _taken(directory, path)


def _taken(directory, path):
    return FileExistsError(
        f"'directory' must not exist, or be an empty folder. Got {str(directory)!r}, "
        f"where there is {path.name!r}."
    )


def _rename(folder, directory):
    try:
        folder.rename(directory)
    except OSError:
        # Made meanwhile, and not empty: an empty one would have been replaced.
        if directory.exists():
            raise _taken(directory, directory) from None
        raise


def _move_into(directory, folder):
    files = sorted(folder.iterdir(), key=lambda file: file.name == "manifest.json")
    moved = [directory / file.name for file in files]
    try:
        for file, target in zip(files, moved, strict=True):
            file.replace(target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        raise


def _temporary_name(folder):
    return folder / _TEMPORARY.format(secrets.token_hex(8))


def _remove_leftovers(folder):
    """Remove what processes that were killed have left in a folder."""
    with suppress(OSError):
        for path in list(folder.glob(_TEMPORARY.format("*"))):
            with suppress(OSError):
                status = path.lstat()
                if time.time() - status.st_mtime < _DAY:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()


@contextmanager
def _renaming(temporary, path):
    """Have errors name a path that the caller knows, and not a temporary one."""
    try:
        yield
    except OSError as error:
        name = str(error.filename)
        if error.errno is None or not name.startswith(str(temporary)):
            raise
        name = name.replace(str(temporary), os.fsdecode(path))
        raise OSError(error.errno, error.strerror, name) from None


def _write(path, content):
    with _opened(path, "xb") as file:
        file.write(content)


def _sync(path):
    """Wait until a file is on the disk."""
    with _opened(path, "r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def _opened(path, mode):
    try:
        with open(path, mode) as file:
            yield file
    except OSError as error:
        # That of a full disk does not say where.
        error.filename = str(path)
        raise


def write_stages(folder, manifest, contents):
    """Write the files of a manifest, and the manifest with their checksums.

    The contents are those of the stages, and then that of the graph of a fixed stage,
    if there is one.
    """
    graphs = [*manifest["stages"]]
    if manifest.get("fixed_stage") is not None:
        graphs.append(manifest["fixed_stage"])
    for graph, content in zip(graphs, contents, strict=True):
        _write(folder / graph["file"], content)
        graph["sha256"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(manifest, indent=2, allow_nan=False)
    _write(folder / "manifest.json", f"{text}\n".encode())
