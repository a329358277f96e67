"""Files and folders that appear when they are complete."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


def write_file(path, content):
    """Write a file as a whole or not at all; one that is there keeps its mode."""
    # A link stays one.
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".skbdistil-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(directory):
    """A folder to fill, which becomes `directory` if that has not failed.

    An empty folder that is there stays the same one, since it may be mounted: files are
    moved into it, the manifest last, without which they are nothing.
    """
    directory = Path(os.path.realpath(directory))
    exists = directory.exists()
    if exists and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(
            f"'directory' must not exist, or be an empty folder. Got {str(directory)!r}"
            ", where there is something."
        )
    outer = tempfile.TemporaryDirectory(
        dir=directory if exists else directory.parent, prefix=".skbdistil-"
    )
    with outer as name:
        # Its own folder, since a temporary one can be read by its owner only.
        folder = Path(name) / "export"
        folder.mkdir()
        yield folder
        if exists:
            _move_into(directory, folder)
        else:
            folder.rename(directory)


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


def write_stages(folder, manifest, contents):
    """Write the files of the stages, and the manifest with their checksums."""
    for stage, content in zip(manifest["stages"], contents, strict=True):
        (folder / stage["file"]).write_bytes(content)
        stage["sha256"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / "manifest.json").write_text(f"{text}\n", encoding="utf-8")
