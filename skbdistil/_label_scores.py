"""What a teacher says of several labels per row, brought to log-odds of shape (n, L).

Scores of classes are logits of a softmax; those of labels that do not exclude each
other are the log-odds of having each of them.
"""

import numpy as np

from skbdistil._storage import IN_MEMORY, row_pieces
from skbdistil.exceptions import DoubtfulTeacherWarning

__all__ = [
    "check_label_predictions",
    "doubted_label_logits",
    "label_columns",
    "label_logits",
    "odds_of_answers",
    "sure_of_labels",
    "tells_no_labels",
]


def label_columns(values, classes):
    """Probabilities of the labels, of one array per label as forests return them.

    Parameters
    ----------
    values : list of ndarray of shape (n_samples, n_classes)
        The last axis is 1 where the teacher has seen a label in all rows or in none.
    classes : list of ndarray of shape (n_classes,), or None
        What the columns of each stand for; None for 0 and 1.

    Returns
    -------
    proba : ndarray of shape (n_samples, n_labels)
    """
    columns = []
    for number, part in enumerate(map(np.asarray, values)):
        known = [0, 1] if classes is None else np.asarray(classes[number]).tolist()
        columns.append(part[:, known.index(1)] if 1 in known else np.zeros(len(part)))
    return np.stack(columns, axis=1)


def odds_of_answers(answers, smoothing=0.1):
    """Log-odds of a teacher that says which labels a row has and nothing else.

    As of :func:`~skbdistil.teachers.scores_from_labels` for each label.
    """
    answers = np.asarray(answers, dtype=np.float64)
    share = (answers + smoothing / 2) / (1 + smoothing)
    return np.log(share) - np.log1p(-share)


def label_logits(values, *, proba, smoothing, name, estimator_name, storage=IN_MEMORY):
    """Log-odds, of probabilities mixed with 1 / 2 or of log-odds.

    Raises
    ------
    ValueError
        If probabilities are none.
    """
    if not proba:
        return values
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"The teacher of {estimator_name} must return probabilities of the labels, "
            f"in the range [0, 1]. Got values from {values.min():.3g} to "
            f"{values.max():.3g} from {name}. If these are the logits of a torch "
            'module, pass TorchTeacher(module, output="logits").'
        )

    def log_odds(proba):
        share = (1 - smoothing) * proba.astype(np.float64) + smoothing / 2
        return (np.log(share) - np.log1p(-share)).astype(proba.dtype)

    return storage.map(log_odds, values)


def doubted_label_logits(scores, name, estimator_name):
    """Doubt logits of labels that look like probabilities, or None."""
    if scores.min() < 0 or not 0 < scores.max() <= 1:
        return None
    if name == "teacher_scores":
        advice = "pass scipy.special.logit of them, clipped to [1e-3, 1 - 1e-3]"
    else:
        advice = 'pass the module as TorchTeacher(module, output="proba")'
    return DoubtfulTeacherWarning(
        f"The scores of {name}, the teacher of {estimator_name}, are taken for the "
        "logits of the labels, but all of them are in the range [0, 1]. If they are "
        f"probabilities, {advice}."
    )


def check_label_predictions(predicted, scores, name, estimator_name):
    """Refuse a teacher whose own `predict` is no indicator matrix of these labels.

    Parameters
    ----------
    predicted : ndarray
        What it predicts for some rows.
    scores : ndarray of shape (n_rows, n_labels)
        Log-odds of these.
    """
    if predicted.shape != scores.shape:
        raise ValueError(
            f"The teacher of {estimator_name} must predict an indicator matrix of the "
            f"{scores.shape[1]} labels of y. Got an array of shape {predicted.shape} "
            f"for {len(scores)} rows from {name}."
        )
    agrees = (scores > 0) == (predicted == 1)
    if agrees.mean() < 0.5:
        raise ValueError(
            f"The teacher of {estimator_name} must return scores that are positive for "
            f"the labels that it predicts. Those of {name} are not, for "
            f"{np.sum(~agrees)} of {agrees.size} labels of {len(scores)} rows."
        )


def sure_of_labels(scores, y, bar):
    """Share of rows in which no label that y holds is in doubt.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_labels)
        Log-odds.
    y : ndarray of shape (n_samples, n_labels)
        Labels, 0 or 1.
    bar : float
        Probability from which there is no doubt.
    """
    # The probability reaches the bar where the log-odds reach those of the bar.
    needed = np.log(bar) - np.log1p(-bar)

    def is_sure(scores, y):
        return (np.where(y == 1, scores, -scores) >= needed).all(axis=1)

    return float(IN_MEMORY.map(is_sure, scores, y).mean())


def tells_no_labels(scores, y):
    """Whether scores are no higher where rows have the labels than where they do not.

    In the mean over labels that some rows have and others do not.
    """
    n_ones = y.sum(axis=0)
    told = (n_ones > 0) & (n_ones < len(y))
    if not told.any():
        return False
    with_label = without = 0
    for rows in row_pieces(scores, y):
        some, has = scores[rows, told], y[rows, told]
        with_label += (some * has).sum(axis=0)
        without += (some * (1 - has)).sum(axis=0)
    n_ones = n_ones[told]
    return bool(np.mean(with_label / n_ones - without / (len(y) - n_ones)) <= 0)
