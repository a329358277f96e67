import ctypes
import os
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import settings
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from common import SMALL
from skbdistil import BDistilClassifier
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx

# Two pytest workers share two cores; with threads of their own they would wait for
# each other.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def seeded_torch():
    """The same weights in every run, and torch's generator as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# What follows is fitted once for each module of tests, so that none sees what another
# one did to it. A module may define its own `data` or `small`; the rest follows.


@pytest.fixture(scope="module")
def data():
    """Rows and labels of two classes."""
    return make_classification(n_samples=90, n_features=6, flip_y=0.2, random_state=0)


@pytest.fixture(scope="module")
def small():
    """Parameters of the students."""
    return SMALL


@pytest.fixture(scope="module")
def clf(data, small):
    return BDistilClassifier(LogisticRegression(max_iter=300), **small).fit(*data)


@pytest.fixture(scope="module")
def early(clf, data):
    return EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.1).fit(*data)


@pytest.fixture(scope="module")
def exported(early, tmp_path_factory):
    """Folder with an export of `early`."""
    directory = tmp_path_factory.mktemp("early")
    to_onnx(early, directory)
    return directory


@pytest.fixture
def strict_folder(tmp_path):
    """A folder whose permissions count, for root too."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs the permissions of POSIX")
    folder = tmp_path / "strict"
    folder.mkdir()
    with obeying_permissions() if os.geteuid() == 0 else nullcontext():
        try:
            yield folder
        finally:
            folder.chmod(0o700)


@contextmanager
def obeying_permissions():
    """Give up root's right to write where permissions forbid it; Linux only.

    Not by becoming somebody else, who may not read an interpreter or an environment
    that only its owner can enter.
    """
    libc = ctypes.CDLL(None)
    # Version 3 of the interface, and this thread.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    # Of two halves each: what is in effect, what is permitted, what is inherited.
    rights = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, rights) == 0
    before = rights[0]
    rights[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, rights) == 0
    try:
        yield
    finally:
        rights[0] = before
        assert libc.capset(header, rights) == 0


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond a number of bytes."""
    resource = pytest.importorskip("resource", reason="needs the limits of POSIX")

    @contextmanager
    def limited(n_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
