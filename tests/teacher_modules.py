"""A torch module whose scores are known, and how errors are expected."""

import numpy as np
import torch
from torch import nn

D, L = 4, 3


class Module(nn.Module):
    """Linear scores, passed through `wrap`; remembers how it was called."""

    def __init__(self, n_outputs=L, n_features=D, wrap=None):
        super().__init__()
        self.linear = nn.Linear(n_features, n_outputs)
        self.dropout = nn.Dropout(0.5)
        self.wrap = wrap
        self.sizes = []

    def forward(self, x):
        assert not self.training
        assert not self.dropout.training
        assert not torch.is_grad_enabled()
        self.sizes.append(len(x))
        scores = self.dropout(self.linear(x.flatten(1)))
        return scores if self.wrap is None else self.wrap(scores)


def expected(module, X):
    X = np.asarray(X, dtype=np.float64).reshape(len(X), -1)
    weight, bias = (p.detach().double().numpy() for p in module.linear.parameters())
    return X @ weight.T + bias
