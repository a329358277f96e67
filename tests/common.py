"""What several test modules share that is no fixture."""

import re
from functools import partial

import numpy as np
import pytest
from torch import nn

from skbdistil.ensemble import Lateral, Window
from skbdistil.students import MLP

# Students that are there soon; any of them passes the search.
SMALL = {
    "student": partial(MLP, hidden=(4,)),
    "n_estimators": 3,
    "max_epochs": 2,
    "edge_tol": np.inf,
    "random_state": 0,
}

# Enough to pass the checks of accuracy in scikit-learn's battery.
CHECKED = {
    "student": partial(MLP, hidden=(16,)),
    "n_estimators": 2,
    "max_epochs": 20,
    "learning_rate": 0.02,
    "random_state": 0,
}

CONNECTIONS = [
    *(None, "dense", "last", "lateral"),
    Lateral(shared_blocks=1),
    Window(1, connection="wide"),
]

COMBINATIONS = ["mean", "sum", "learned"]


class Embedded(nn.Module):
    """Indices of at most 9 to features."""

    def __init__(self, input_shape):
        super().__init__()
        self.embedding = nn.EmbeddingBag(10, 6)

    def forward(self, x):
        return self.embedding(x)


def student_bits(model):
    """All numbers of the students of a fitted model."""
    ensemble = model.ensemble_
    weights = ensemble.state_dict().values()
    return b"".join(value.numpy().tobytes() for value in weights)


def raises(*parts, error=ValueError):
    """Expect an error whose message has all of these parts, in any order."""
    lookahead = "".join(f"(?=.*{re.escape(part)})" for part in parts)
    return pytest.raises(error, match=f"(?s){lookahead}")
