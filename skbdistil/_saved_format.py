"""What saved files are made of, for those who write and who read them.

A file is an uncompressed zip archive of

- ``estimator.json``: versions, parameters, fitted attributes, and the names of what
  the students are built from;
- ``weights.safetensors``: the state of the ensembles;
- ``0.skops``, ``1.skops``, ...: the other steps of pipelines, transforms for the
  students, and teachers.

In the JSON, what JSON does not know is an object with one key that begins with ``$``,
such as ``{"$tuple": [16, 8]}``.
"""

import inspect
import io
import math
import os
import re
from collections import defaultdict
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skbdistil._bdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting._game import Certificate
from skbdistil._exit_calibration import ExitPath
from skbdistil._optional import required
from skbdistil._untrusted import parse_json, require
from skbdistil.augmentation import Munge, Spunge
from skbdistil.costs import Costs, StageCosts
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.early_time import EarlyTimeClassifier
from skbdistil.ensemble import Dense, Last, Lateral, Recurrent, Wide, Window
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.objectives import DistillationObjective
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, EmbeddingNet, RecurrentNet

__all__ = [
    "BACKBONES",
    "CALIBRATED",
    "CONVOLUTIONAL",
    "DISTILLED",
    "EARLY_EXITS",
    "ESTIMATORS",
    "JSON",
    "PARTS",
    "RECORDS",
    "SAVABLE",
    "SCHEMA",
    "SKOPS",
    "WEIGHTS",
    "check_skops",
    "forget_caches",
    "import_safetensors",
    "import_skops",
    "is_part",
    "is_plain_key",
    "open_archive",
    "pack",
    "saved_parameters",
]

#: To be raised with every change that this version's `load` cannot read.
SCHEMA = 2

JSON = "estimator.json"
WEIGHTS = "weights.safetensors"
SKOPS = re.compile(r"[0-9]{1,9}\.skops")

DISTILLED = (BDistilClassifier, BDistilRegressor)
EARLY_EXITS = (EarlyExitClassifier, EarlyExitRegressor, EarlyTimeClassifier)
CALIBRATED = (*EARLY_EXITS, SplitConformalRegressor)
SAVABLE = (*DISTILLED, *CALIBRATED, FrozenEstimator, Pipeline)

#: What a file can name without the help of the caller.
_PARAMETERS = (DistillationObjective, Lateral, Munge, Recurrent, Spunge, Window)
ESTIMATORS = {cls.__name__: cls for cls in (*SAVABLE, *_PARAMETERS)}
RECORDS = {cls.__name__: cls for cls in (Certificate, Costs, ExitPath, StageCosts)}
CONVOLUTIONAL = {ConvNet1d, ConvNet2d}
BACKBONES = {MLP, RecurrentNet, EmbeddingNet, *CONVOLUTIONAL}
PARTS = {cls.__name__: cls for cls in (*BACKBONES, Dense, Last, Wide)}

#: Parameters that JSON cannot hold. A folder to write to is not for a file to choose,
#: nor is a model to ask.
NOT_SAVED = {"checkpoint", "final", "memory", "net", "temp_folder"}

# With what an entry in the directory of a zip archive begins; those of archives that
# are stored in this one count, too.
_ENTRY = b"PK\x01\x02"
_MAX_ENTRIES = 2**16

# Values that skops may have to build.
_MAX_BUILT = 2**22

# Sparse matrices are compressed: so many times, from so many bytes on.
_MAX_RATIO = 20
_SMALL_MATRIX = 2**24


def saved_parameters(cls):
    """Names of the parameters of an estimator that its part of the JSON holds."""
    apart = {"steps"} if cls is Pipeline else set()
    return set(cls._get_param_names()) - NOT_SAVED - apart


def import_safetensors():
    return required("skbdistil.persistence", "safetensors.torch")


def import_skops():
    return required("skbdistil.persistence", "skops.io")


def is_part(value):
    return inspect.isclass(value) or inspect.isfunction(value)


def is_plain_key(key):
    return isinstance(key, str) and not key.startswith("$")


# The archive


def pack(members):
    """Archive of parts by name."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            # Stored, and dated 1980: equal estimators give equal bytes.
            archive.writestr(ZipInfo(name), data)
    return buffer.getvalue()


def open_archive(data):
    """Archive whose parts are together no larger than it is."""
    require(
        data.count(_ENTRY) <= _MAX_ENTRIES, f"it has more than {_MAX_ENTRIES} parts."
    )
    archive = ZipFile(io.BytesIO(data))
    infos = archive.infolist()
    require(len(set(archive.namelist())) == len(infos), "a part of it is there twice.")
    stored = all(info.compress_type == ZIP_STORED for info in infos)
    require(stored, "a part of it is compressed.")
    size = sum(info.file_size for info in infos)
    require(size <= len(data), "its parts are larger than the file.")
    return archive


# What skops writes


def check_skops(data):
    """Refuse what skops would take long, or much memory, to build."""
    archive = open_archive(data)
    schema = parse_json(archive.read("schema.json"))
    nodes = defaultdict(list)
    readers = defaultdict(set)
    level = [schema]
    while level:
        for node in level:
            if isinstance(node, dict):
                number = _number(node)
                nodes[number].append(node)
                if isinstance(file := node.get("file"), str):
                    # What has a number is built once.
                    readers[file].add(number or id(node))
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
    require(
        all(len(numbers) == 1 for numbers in readers.values()),
        "one of its parts of skops belongs to several objects.",
    )
    require(
        _n_built(schema, nodes, {}) <= _MAX_BUILT,
        f"it has skops build more than {_MAX_BUILT} values.",
    )
    for name in archive.namelist():
        with archive.open(name) as part:
            if part.read(2) == b"PK":
                part.seek(0)
                _check_matrix(part, archive.getinfo(name).file_size)


def _number(node):
    # A dict of the user may have this key, too; its value is a node.
    number = node.get("__id__")
    return None if isinstance(number, dict | list) else number


def _n_built(node, nodes, known):
    """Values of a node, those that it refers to among them.

    To skops, what has the number of a node is this node, whatever else is in it. Ten
    nodes that hold the one before twice are a thousand.
    """
    if isinstance(node, list):
        return 1 + sum(_n_built(item, nodes, known) for item in node)
    if not isinstance(node, dict):
        return 1
    number = _number(node)
    same = [node]
    if number:
        if number in known:
            return known[number]
        known[number] = math.inf  # where it is inside itself
        same = nodes[number]
    n_built = max(
        1 + sum(_n_built(item, nodes, known) for item in other.values())
        for other in same
    )
    if number:
        known[number] = n_built
    return n_built


def _check_matrix(file, n_bytes):
    with ZipFile(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
    require(
        size <= max(_MAX_RATIO * n_bytes, _SMALL_MATRIX),
        f"{n_bytes} bytes of a sparse matrix would become {size}.",
    )


def forget_caches(value):
    """Take the folder to cache in from all estimators in a value, however deep."""
    seen, left = set(), [value]
    while left:
        item = left.pop()
        if id(item) in seen or inspect.isclass(item) or inspect.ismodule(item):
            continue
        seen.add(id(item))
        if isinstance(item, BaseEstimator) and _is_cache(getattr(item, "memory", None)):
            item.memory = None
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            left += item
        elif isinstance(item, np.ndarray) and item.dtype.hasobject:
            left += item.ravel().tolist()
        left += getattr(item, "__dict__", {}).values()


def _is_cache(memory):
    # As scikit-learn knows it.
    return isinstance(memory, str | os.PathLike) or hasattr(memory, "cache")
