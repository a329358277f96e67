import os

import pytest
import torch
from hypothesis import settings

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
