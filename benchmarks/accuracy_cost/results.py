"""Results as JSON lines, one for each stage, and files that appear when complete."""

import json
import os
from contextlib import contextmanager


@contextmanager
def replacing(path):
    """Name to write a file under, which takes its place if the block ends well."""
    # The suffix stays last: NumPy would add one.
    temporary = path.with_name(f"{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path):
    """Finished experiments in a file of results.

    Parameters
    ----------
    path : pathlib.Path
        It need not exist.

    Returns
    -------
    experiments : dict
        The records of all stages, in order, by ``(dataset, method, seed,
        fingerprint)``. Lines that are not JSON, left by a killed run, are named and
        left out, and so are experiments that lack a stage.
    """
    stages = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}, line {number}: not JSON, left out")
            continue
        key = tuple(record[k] for k in ("dataset", "method", "seed", "fingerprint"))
        stages.setdefault(key, {})[record["stage"]] = record
    return {
        key: [found[stage] for stage in sorted(found)]
        for key, found in stages.items()
        if len(found) == next(iter(found.values()))["n_stages"]
    }


def append(path, records):
    """Add the records of one experiment in one piece.

    Several processes may add to the same file.
    """
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # a killed run left half a line
                text = "\n" + text
        file.write(text.encode())
