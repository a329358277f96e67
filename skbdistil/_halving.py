"""Successive halving over rounds: what a candidate is, and which rounds it plays.

A candidate goes on from the students it has by a warm start. So that it has, in the
end, the students of one fit, all that depends on the number of rounds is planned for
all of them from the start, and each of its fits sees the same rows and teacher.
"""

from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from skbdistil._warm_start import take_over


def plan_rungs(n_rounds, n_candidates, factor, min_rounds):
    """Who plays how many rounds.

    Parameters
    ----------
    n_rounds : int
        Of a full fit.
    n_candidates : int
    factor : float
        Above 1. From rung to rung the number of candidates is divided by it, and that
        of rounds multiplied.
    min_rounds : int
        Rounds of the first rung, at least; at most `n_rounds`.

    Returns
    -------
    rungs : list of tuple of int
        Candidates of each rung, and the rounds they have played at its end, which are
        `n_rounds` in the last. There are fewer rungs where there are too few rounds to
        tell them apart.
    """
    candidates, rounds = [n_candidates], [n_rounds]
    planned = float(n_rounds)
    while (n_left := int(candidates[-1] / factor)) and rounds[0] > min_rounds:
        candidates.append(n_left)
        planned /= factor
        rounds.insert(0, max(min_rounds, min(int(planned + 0.5), rounds[0] - 1)))
    return list(zip(candidates, rounds, strict=True))


def final_step(estimator):
    """The last step of a pipeline, and the prefix of its parameters there.

    Parameters
    ----------
    estimator : estimator
        A pipeline, or anything else, which is its own last step.

    Returns
    -------
    final : estimator
    prefix : str
    """
    prefix = ""
    while isinstance(estimator, Pipeline):
        step, estimator = estimator.steps[-1]
        prefix += f"{step}__"
    return estimator, prefix


def candidate(estimator, params):
    """An estimator that can be fitted rung by rung.

    Parameters
    ----------
    estimator : estimator
        Not changed.
    params : dict of str -> object
        Parameters of the candidate.

    Returns
    -------
    candidate : estimator

    Raises
    ------
    TypeError
        If its last step is no estimator of this package.

    ValueError
        If a parameter does not go with rungs.
    """
    copied = clone(estimator).set_params(**clone(params, safe=False))
    final, prefix = final_step(copied)
    if not hasattr(final, "_round_limit"):
        raise TypeError(
            "'estimator' must be a BDistilClassifier or a BDistilRegressor, or a "
            f"pipeline that ends in one, in each candidate. Got {copied!r} instead."
        )
    if final.refine is not None:
        raise ValueError(
            "'refine' must be None in each candidate: a candidate goes on with the "
            f"students it has, and refinement changes them. Got {final.refine!r}."
        )
    if not isinstance(final.n_estimators, Integral) or final.n_estimators < 1:
        raise ValueError(
            "'n_estimators' must be an int of at least 1 in each candidate. Got "
            f"{final.n_estimators!r}."
        )
    # The first rung begins with the students in `warm_start`; later rungs go on with
    # those of the rung before.
    take_over(final)
    final.warm_start = True
    own = f"{prefix}random_state"
    for name, value in copied.get_params().items():
        # What is inside the last step, such as its teacher, gets seeds from there.
        if name != own and name.startswith(prefix):
            continue
        if name.split("__")[-1] == "random_state" and not isinstance(value, Integral):
            seed = check_random_state(value).randint(np.iinfo(np.int32).max)
            copied.set_params(**{name: seed})
    return copied


def is_over(final, fold):
    """Whether a longer fit would have no other students.

    Parameters
    ----------
    final : BDistilClassifier or BDistilRegressor
        As the last rung has left it.
    fold : dict
        What is known of that fit.

    Returns
    -------
    is_over : bool
    """
    if fold["fit_error"] is not None or final._round_limit >= final.n_estimators:
        return True
    # Rows held out may have taken back a round that has to be played again.
    return not final.early_stopping and len(final) < final._round_limit
