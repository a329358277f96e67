"""What the scores of a classifier say: of classes, or of labels. NumPy only.

Classes exclude each other, and scores of them are logits of a softmax. Labels do not,
and the score of each is the log-odds of having it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from skbdistil._exit_rules import as_decision, label_probabilities

__all__ = ["CLASSES", "LABELS", "Decoding", "as_pairs", "of_pairs", "sigmoid"]


class Decoding(NamedTuple):
    """How scores of shape (n, L) become predictions.

    Attributes
    ----------
    predict : callable
        Called with the scores and the L classes.
    probabilities : callable
        Called with the scores; what it returns has their shape.
    decision : callable
        Called with the scores; what `decision_function` returns.
    """

    predict: Callable
    probabilities: Callable
    decision: Callable


def sigmoid(scores):
    """Probabilities of log-odds."""
    # The power of a large negative score would overflow.
    powers = np.exp(-np.abs(scores))
    return np.where(scores > 0, 1, powers) / (1 + powers)


def as_pairs(scores):
    """Log-odds of shape (n, L) as logits of two classes, shape (n * L, 2)."""
    half = np.reshape(scores, -1) / 2
    return np.stack([-half, half], axis=1)


def of_pairs(pairs, n_labels):
    """Log-odds of shape (n, L), of what :func:`as_pairs` returns."""
    return (pairs[:, 1] - pairs[:, 0]).reshape(-1, n_labels)


#: Of classes that exclude each other.
CLASSES = Decoding(
    predict=lambda scores, classes: classes[scores.argmax(axis=1)],
    probabilities=label_probabilities,
    decision=as_decision,
)

#: Of labels that do not: whether a row has each of them, 0 or 1.
LABELS = Decoding(
    predict=lambda scores, classes: (scores > 0).astype(np.int64),
    probabilities=sigmoid,
    decision=lambda scores: scores,
)
