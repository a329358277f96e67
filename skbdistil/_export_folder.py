"""Folders of exported stages, which appear when they are complete."""

import hashlib
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(path):
    """A folder beside a path, for what is moved there when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as name:
        yield Path(name)


@contextmanager
def new_folder(directory):
    """A folder to fill, which is moved to `directory` if that has not failed."""
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(
            f"'directory' must not exist, or be an empty folder. Got {str(directory)!r}"
            ", where there is something."
        )
    with scratch(directory) as outer:
        # Its own folder, since a temporary one can be read by its owner only.
        folder = outer / "export"
        folder.mkdir()
        yield folder
        if directory.exists():
            directory.rmdir()
        folder.rename(directory)


def write_stages(folder, manifest, contents):
    """Write the files of the stages, and the manifest with their checksums."""
    for stage, content in zip(manifest["stages"], contents, strict=True):
        (folder / stage["file"]).write_bytes(content)
        stage["sha256"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / "manifest.json").write_text(f"{text}\n", encoding="utf-8")
