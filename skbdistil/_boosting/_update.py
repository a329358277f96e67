"""One pass of joint training over further rows, after a fit."""

import copy
from typing import NamedTuple

import torch
from sklearn.base import clone, is_classifier

from skbdistil._boosting._residuals import Residuals
from skbdistil._boosting._rows import RowData
from skbdistil._boosting._training import Trainer
from skbdistil.objectives import _JointLoss

# The rate of updates, as a share of `learning_rate`, which is the peak of a schedule.
_RATE = 0.3


class Updates(NamedTuple):
    """What the next update goes on from.

    Attributes
    ----------
    n_updates : int
        Number of updates so far.
    optimizer_state : dict or None
        Name of the optimizer, and its state for each weight; None before the first
        update.
    """

    n_updates: int = 0
    optimizer_state: dict | None = None


def updated_ensemble(estimator, x, scores, label, *, device, seed, optimizer_state):
    """Train a copy of the students of a fitted estimator on further rows.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
    x : ndarray or LazyRows of shape (n, ...)
        Rows as the students get them.
    scores : ndarray of shape (n, n_outputs)
        What they learn.
    label : torch.Tensor or None
        For the label term; None leaves it out.
    device : torch.device
    seed : int
    optimizer_state : dict or None
        What this function has returned for the update before.

    Returns
    -------
    ensemble : ProgressiveEnsemble
        Frozen, in evaluation mode.
    optimizer_state : dict

    Raises
    ------
    ValueError
        If weights become infinite or NaN.
    """
    ensemble = copy.deepcopy(estimator.ensemble_).to(device)
    objective = estimator.objective_
    if label is None and objective.alpha:
        objective = clone(objective).set_params(alpha=0.0)
    regression = not is_classifier(estimator)
    trainer = Trainer(
        estimator.net,
        batch_size=min(estimator.batch_size_, len(scores)),
        learning_rate=_RATE * estimator.learning_rate,
        device=device,
        patience=None,
        centres=not (regression or estimator._multilabel),
        combine=estimator.combine_,
    )
    ensemble.unfreeze()
    optimizer_state = trainer.update_jointly(
        ensemble,
        _JointLoss(
            objective,
            regression,
            multilabel=estimator._multilabel,
            first_stages=ensemble.first_stages,
        ),
        RowData(ensemble, x, Residuals(scores), label=label, device=device),
        optimizer_state=optimizer_state,
        seed=seed,
    )
    ensemble.freeze()
    state = ensemble.state_dict().values()
    finite = torch.stack([torch.isfinite(weights).all() for weights in state])
    if not finite.all():
        raise ValueError(
            f"The update of {type(estimator).__name__} diverged to weights that are "
            "not finite; the students stay as they were before it. Lower "
            "'learning_rate'."
        )
    return ensemble.eval(), optimizer_state
