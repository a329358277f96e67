"""When a row may leave: rules on the scores of the stages so far. NumPy only.

A rule looks at the running means ``F_1, ..., F_t`` of the rows that are left, logits of
shape (t, n, L), or standardised targets, and returns one value per row. A row leaves at
the first stage whose value reaches the threshold of that stage, and at the last one in
any case.
"""

import numpy as np

__all__ = [
    "REGRESSION_RULES",
    "RULES",
    "as_decision",
    "check_rule",
    "exit_stages",
    "in_units",
    "label_probabilities",
    "rule_values",
]


def top_probability(proba):
    """Probability of the label, from 1 / L to 1."""
    return np.maximum.reduce(proba, axis=1)


def margin(proba):
    """Probability of the label less that of the second best, from 0 to 1."""
    second, first = np.partition(proba, -2, axis=1)[:, -2:].T
    return first - second


def certainty(proba):
    """1 less the entropy of the probabilities in units of ln L, from 0 to 1."""
    # 0 log 0 is 0.
    entropy = -np.sum(proba * np.log(np.where(proba > 0, proba, 1)), axis=1)
    return 1 - entropy / np.log(proba.shape[1])


def patience(stages):
    """Number of stages in a row, the present one included, with the present label."""
    labels = stages.argmax(axis=2)
    same = np.logical_and.accumulate(labels[::-1] == labels[-1], axis=0)
    return same.sum(axis=0).astype(float)


def agreement(stages):
    """Share of the students so far whose own label is that of their mean.

    0 at the first stage: a single student has nobody to agree with.
    """
    n_stages = len(stages)
    if n_stages == 1:
        return np.zeros(stages.shape[1])
    totals = stages * np.arange(1, n_stages + 1).reshape(-1, 1, 1)
    students = np.diff(totals, axis=0, prepend=0)
    votes = students.argmax(axis=2) == stages[-1].argmax(axis=1)
    return votes.mean(axis=0)


def change(stages):
    """Minus the change by the last stage, of the output that changed most.

    Minus infinity at the first stage, which is no change.
    """
    if len(stages) == 1:
        return np.full(stages.shape[1], -np.inf)
    return -np.abs(stages[-1] - stages[-2]).max(axis=1)


# Functions of the probabilities of the last stage, shape (n, L).
_OF_PROBABILITIES = {
    "confidence": top_probability,
    "margin": margin,
    "entropy": certainty,
}

# Functions of the logits of all stages so far, shape (t, n, L).
_OF_STAGES = {"patience": patience, "agreement": agreement, "change": change}

# Of regressors, and of classifiers.
REGRESSION_RULES = ["change"]
RULES = [
    rule for rule in (*_OF_PROBABILITIES, *_OF_STAGES) if rule not in REGRESSION_RULES
]


def check_rule(rule, rules, estimator_name):
    """Refuse what is neither the name of one of the rules nor a callable."""
    if not (callable(rule) or (isinstance(rule, str) and rule in rules)):
        raise ValueError(
            f"The 'rule' parameter of {estimator_name} must be one of {sorted(rules)} "
            f"or a callable. Got {rule!r} instead."
        )


def rule_values(rule, stages, temperature=1.0):
    """Values of a rule.

    Parameters
    ----------
    rule : str or callable
    stages : sequence of t arrays of shape (n, L)
        Running means of the stages so far.
    temperature : float, default=1.0
        What the logits of the last of these are divided by, for rules that look at
        probabilities.

    Returns
    -------
    values : ndarray of shape (n,)

    Raises
    ------
    ValueError
        If the values of a callable are not one finite number per row.
    """
    if not callable(rule) and rule in _OF_PROBABILITIES:
        return _OF_PROBABILITIES[rule](label_probabilities(stages[-1] / temperature))
    stages = np.asarray(stages)
    if not callable(rule):
        return _OF_STAGES[rule](stages)
    values = np.asarray(rule(stages), dtype=float)
    if values.shape != stages.shape[1:2]:
        raise ValueError(
            "The 'rule' callable must return one value per row, of shape "
            f"{stages.shape[1:2]}. Got shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError("The 'rule' callable returned NaN or infinity.")
    return values


def exit_stages(values, thresholds):
    """Stage at which each row leaves.

    Parameters
    ----------
    values : ndarray of shape (T - 1, n)
        Values of the rule at each stage but the last.
    thresholds : ndarray of shape (T - 1,)

    Returns
    -------
    stages : ndarray of shape (n,)
        From 1 to T.
    """
    leaves = np.ones((len(values) + 1, *values.shape[1:]), dtype=bool)
    leaves[:-1] = values >= np.asarray(thresholds)[:, np.newaxis]
    return leaves.argmax(axis=0) + 1


def label_probabilities(scores):
    """Softmax of logits of shape (n, L)."""
    # NumPy is slow along a last axis that is short, and in its methods for one row.
    scores = np.ascontiguousarray(scores.T)
    powers = np.exp(scores - np.maximum.reduce(scores, axis=0))
    return (powers / np.add.reduce(powers, axis=0)).T


def as_decision(scores):
    """Logits of shape (n, L) as `decision_function` returns them.

    For two classes, the log-odds of the second one, of shape (n,).
    """
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def in_units(scores, mean, scale, single_output):
    """Targets in their own units, from standardised ones of shape (n, L)."""
    targets = scores.astype(np.float64) * scale + mean
    return targets[:, 0] if single_output else targets
