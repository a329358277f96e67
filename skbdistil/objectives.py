"""What a student minimises: barrier, distillation and label terms.

The symbols are those of the theory page: ``f`` the scores of the student, ``g`` those
of the teacher, ``l = f - g``, ``S`` the residual sum of the earlier students, ``F_t``
the running mean that includes the student, ``K+`` and ``K-`` the weights of the
boosting game, ``Q`` the size of the teacher's scores.
"""

import math
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional

from skbdistil._decoding import as_pairs
from skbdistil._exit_calibration import fit_temperatures
from skbdistil._sklearn_compat import Interval, StrOptions

__all__ = ["DistillationObjective"]

# Beyond this |u| the logarithms of the barrier go on linearly: clipping would kill the
# gradient, and the logarithm itself is not defined from 1 on.
_LINEAR_FROM = 0.95

# Logarithm of the largest K+ + K- of one row and output: more than any row of a game
# has, and so much less than what float32 can hold that the loss is finite too.
_LARGEST_LOG_MASS = 60.0

# Largest (K+ - K-) / (K+ + K-) that the barrier sees: its pointwise minimiser in u.
_LARGEST_LEAD = 0.9


# Every term is computed with its gradient, in closed form: differentiating it takes
# longer than a small student.


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient with respect to the scores is there already."""

    @staticmethod
    def forward(ctx, scores, value, gradient):
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None


def _barrier_logarithms(u):
    """Logarithms of 1 + u and of 1 - u with their slopes, linear for |u| > 0.95."""
    inside = u.clamp(-_LINEAR_FROM, _LINEAR_FROM)
    outside = u - inside
    up_slope, down_slope = 1 / (1 + inside), 1 / (1 - inside)
    up = torch.log1p(inside) + outside * up_slope
    down = torch.log1p(-inside) - outside * down_slope
    return (up, up_slope), (down, down_slope)


def _kl(teacher, scores, temperature):
    """Row-wise KL(softmax(g / tau) || softmax(F / tau)) * tau^2, and its gradient."""
    # Each operation counts in small batches, and a temperature of 1 is usual.
    if temperature != 1:
        teacher, scores = teacher / temperature, scores / temperature
    log_p = functional.log_softmax(teacher, dim=1)
    log_q = functional.log_softmax(scores, dim=1)
    p = log_p.exp()
    rows, gradient = (p * (log_p - log_q)).sum(1), log_q.exp() - p
    if temperature != 1:
        rows, gradient = rows * temperature**2, gradient * temperature
    return rows, gradient


def _binary_kl(teacher, scores, temperature):
    """Row-wise mean over labels of the KL of sigmoids times tau^2, and its gradient."""
    teacher, scores = teacher / temperature, scores / temperature
    p = teacher.sigmoid()
    # Of softplus(F) - p F, less what it is at F = g.
    labels = functional.softplus(scores) - functional.softplus(teacher)
    rows = (labels - p * (scores - teacher)).mean(1) * temperature**2
    return rows, (scores.sigmoid() - p) * (temperature / scores.shape[1])


def _binary_cross_entropy(label, scores):
    """Row-wise mean over labels of the cross-entropy of sigmoids, and its gradient.

    Both are 0 where the label is -1, which is not known.
    """
    known = (label >= 0).to(scores.dtype)
    labels = functional.softplus(scores) - label * scores
    gradient = (scores.sigmoid() - label) * known / scores.shape[1]
    return (labels * known).mean(1), gradient


def _squared_error(target, scores):
    """Row-wise mean over outputs of (F - g)^2, and its gradient."""
    error = scores - target
    return error.square().mean(1), error * (2 / error.shape[1])


def _cross_entropy(label, scores):
    """Row-wise cross-entropy of softmax(F) against classes, and its gradient.

    Both are 0 where the class is -1, which is not known.
    """
    log_q = functional.log_softmax(scores, dim=1)
    known = (label >= 0).to(scores.dtype)
    column = label.clamp(min=0)[:, None]
    rows = -log_q.gather(1, column)[:, 0] * known
    gradient = log_q.exp() * known[:, None]
    return rows, gradient.scatter_add(1, column, -known[:, None])


def _row_mean(rows, weight):
    """Mean over rows, with sample weights of mean 1 over the training rows."""
    return rows.mean() if weight is None else (rows * weight).mean()


def _mean_of_rows(rows, gradient, scores, target):
    """Mean of a loss over rows, as a function of the scores."""
    weight = target.get("sample_weight")
    if weight is not None:
        gradient = gradient * weight[:, None]
    value = _row_mean(rows, weight)
    return _KnownGradient.apply(scores, value, gradient / len(scores))


class DistillationObjective(BaseEstimator):
    """The loss that the students of an ensemble minimise.

    The loss of student ``t`` is ``D + barrier / gamma + alpha * label term``, each a
    mean over rows.

    Parameters
    ----------
    distillation : {"kl", "bce", "squared_error"} or None, default="kl"
        The term D. ``"kl"``: ``KL(softmax(g / tau) || softmax(F / tau)) * tau**2``,
        for classification; ``"bce"``: for several labels per row, the same of the
        Bernoulli distributions of ``sigmoid(g / tau)`` and ``sigmoid(F / tau)``, mean
        over labels, which is their binary cross-entropy but for a constant;
        ``"squared_error"``: mean over outputs of ``(F - g)**2``; None: no such term,
        the pure game.

    on : {"ensemble", "student"}, default="ensemble"
        Whether D looks at the running mean of the ensemble (``F = F_t``) or at the
        student alone (``F = f``).

    temperature : float, default=1.0
        The temperature ``tau`` of ``"kl"`` and ``"bce"``, positive.

    barrier : {"weighted", "indicator"} or None, default="weighted"
        The barrier ``-mean(K+ log(1 + u) + K- log(1 - u))`` with ``u = l / 2Q``, where
        Q is the largest absolute teacher score of all but the largest one in a thousand
        rows, and the mean of ``K+ + K-`` over the training rows and outputs is 2.
        Beyond ``|u| = 0.95`` the logarithms go on linearly. ``"weighted"``: the weights
        of the game; ``"indicator"``: only their order counts, that is ``2 * 1[K+ >
        K-]`` and ``2 * 1[K+ < K-]``, ties shared; None: no barrier.

    gamma : float, default=1.0
        The barrier is divided by it; positive. The smaller, the more the weights of
        the game count.

    alpha : float, default=0.0
        Weight of the label term, not negative: the cross-entropy of ``F_t`` against
        the labels (classification; the mean over several labels per row) or its squared
        error against the targets (regression).

    See Also
    --------
    skbdistil.BDistilClassifier : Takes it as its parameter ``objective``.

    Notes
    -----
    The pointwise minimiser of the weighted barrier is ``l = 2Q tanh(-eta S)``, the
    hyperbolic tangent being clipped to [-0.9, 0.9]: match the teacher in round 1,
    later make up for what the ensemble lacks.

    References
    ----------
    .. [1] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference",
       NeurIPS 2023, arXiv:2302.10093.

    Examples
    --------
    >>> from skbdistil import DistillationObjective
    >>> DistillationObjective(gamma=0.3, temperature=2.0)
    DistillationObjective(gamma=0.3, temperature=2.0)
    """

    _parameter_constraints = {
        "distillation": [StrOptions({"kl", "bce", "squared_error"}), None],
        "on": [StrOptions({"ensemble", "student"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "barrier": [StrOptions({"weighted", "indicator"}), None],
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        distillation="kl",
        *,
        on="ensemble",
        temperature=1.0,
        barrier="weighted",
        gamma=1.0,
        alpha=0.0,
    ):
        self.distillation = distillation
        self.on = on
        self.temperature = temperature
        self.barrier = barrier
        self.gamma = gamma
        self.alpha = alpha

    def _looks_at_student(self):
        """Whether a term compares the student alone with the teacher's answer."""
        return self.distillation is not None and self.on == "student"


_NAMED = {
    "kl+barrier": {},
    "kl": {"barrier": None},
    "bce+barrier": {"distillation": "bce"},
    "bce": {"distillation": "bce", "barrier": None},
    "squared_error+barrier": {"distillation": "squared_error"},
    "squared_error": {"distillation": "squared_error", "barrier": None},
    "barrier": {"distillation": None},
}

_OBJECTIVES = frozenset(_NAMED)


def _check_objective(
    objective, *, regression, has_labels, estimator_name, multilabel=False
):
    """Objective as a validated :class:`DistillationObjective`.

    Parameters
    ----------
    objective : str or DistillationObjective
    regression : bool
    has_labels : bool
        Whether y was given.
    estimator_name : str
        Name of the estimator, for messages.
    multilabel : bool, default=False
        Whether rows have several labels.

    Returns
    -------
    objective : DistillationObjective
    """
    if isinstance(objective, str):
        objective = DistillationObjective(**_NAMED[objective])
    objective._validate_params()
    if regression and objective.distillation in ("kl", "bce"):
        raise ValueError(
            f"The 'objective' parameter of {estimator_name} has distillation="
            f"{objective.distillation!r}, which compares class probabilities. Use "
            "'squared_error', 'squared_error+barrier' or 'barrier' for regression."
        )
    if not regression and objective.distillation == ("kl" if multilabel else "bce"):
        kind, use = ("several labels", "bce") if multilabel else ("one label", "kl")
        raise ValueError(
            f"The 'objective' parameter of {estimator_name} has distillation="
            f"{objective.distillation!r}, which is not for rows of {kind}. Use "
            f"{use!r}, '{use}+barrier', 'squared_error', 'squared_error+barrier' or "
            "'barrier'."
        )
    if objective.distillation is None and objective.barrier is None:
        raise ValueError(
            f"The 'objective' parameter of {estimator_name} has neither a distillation "
            "term nor a barrier; set one of them."
        )
    if objective.alpha > 0 and not has_labels:
        raise ValueError(
            f"The 'objective' parameter of {estimator_name} has "
            f"alpha={objective.alpha}, and its label term requires y, but the target y "
            "is None."
        )
    return objective


class _EnsembleTerms(nn.Module):
    """Distillation and label term of given scores, shared by both losses."""

    def __init__(self, objective, regression, *, multilabel=False):
        super().__init__()
        self.objective = objective
        self.regression = regression
        self.multilabel = multilabel

    def _distillation(self, name, scores, target):
        if name == "kl":
            return _kl(target["teacher"], scores, self.objective.temperature)
        if name == "bce":
            return _binary_kl(target["teacher"], scores, self.objective.temperature)
        return _squared_error(target["teacher"], scores)

    def _label(self, scores, target):
        if self.multilabel:
            return _binary_cross_entropy(target["label"], scores)
        if not self.regression:
            return _cross_entropy(target["label"], scores)
        # A target that is not known asks for nothing.
        label = target["label"]
        return _squared_error(torch.where(label.isnan(), scores, label), scores)


def _of_outputs(outputs, scores, target):
    """Scores and targets of some outputs; `outputs` is None for all of them.

    In the dtype of the teacher's scores, where autocast has given scores of another.
    """
    scores = scores.to(target["teacher"].dtype)
    if outputs is None:
        return scores, target
    # What has one axis is of the rows.
    target = {
        name: part[:, outputs] if part.ndim == 2 else part
        for name, part in target.items()
    }
    return scores[:, outputs], target


class _StudentLoss(_EnsembleTerms):
    """Loss of the student of one round.

    Parameters
    ----------
    objective : DistillationObjective
    regression : bool
    multilabel : bool, default=False
        Whether outputs are labels that do not exclude each other.
    n_previous : int or ndarray of int of shape (n_outputs,)
        Number of earlier students that were trained for an output. -1 for outputs that
        this one is not trained for, and which have no part in the loss.
    eta : float
        Step of the game.
    scale : float
        ``Q``, size of the teacher's scores.
    log_normalizer : torch.Tensor of shape (n_outputs,)
        ``log Z`` of the game, with initial weights of sum 1.
    """

    def __init__(
        self,
        objective,
        regression,
        *,
        n_previous,
        eta,
        scale,
        log_normalizer,
        multilabel=False,
    ):
        super().__init__(objective, regression, multilabel=multilabel)
        self.goes_on = bool(np.any(n_previous > 0))
        self.outputs = None
        if np.ndim(n_previous) == 0:
            self.n_previous = n_previous
        else:
            self.outputs = np.flatnonzero(n_previous >= 0)
            log_normalizer = log_normalizer[self.outputs]
            self.register_buffer(
                "n_previous", torch.as_tensor(n_previous[self.outputs])
            )
        self.eta = eta
        # A constant teacher has Q = 0: nothing can be said relative to it.
        self.scale = scale if scale > 0 else 1.0
        # Half of Z is what leaves both weights at 1 in round 1, their mean at 2.
        self.register_buffer("log_scale", log_normalizer - math.log(2))

    def forward(self, output, target):
        """Mean loss of a batch.

        Parameters
        ----------
        output : torch.Tensor of shape (n, n_outputs)
            Running mean that includes the student.
        target : dict of torch.Tensor
            ``teacher`` and ``residual_sum`` of shape (n, n_outputs); ``sample_weight``
            of shape (n,) and ``label`` where there are any.
        """
        output, target = _of_outputs(self.outputs, output, target)
        with torch.no_grad():
            rows, gradient = self._of_rows(output, target)
        return _mean_of_rows(rows, gradient, output, target)

    def _of_rows(self, output, target):
        """Loss of each row and its gradient with respect to the running mean."""
        objective, number = self.objective, self.n_previous + 1
        rows, gradient = 0.0, 0.0
        # That of the student of which F_t is the mean with the earlier ones.
        residual = output - target["teacher"]
        if self.goes_on:
            residual = number * residual - target["residual_sum"]
        if objective.distillation is not None:
            on_student = objective.on == "student"
            scores = target["teacher"] + residual if on_student else output
            rows, gradient = self._distillation(objective.distillation, scores, target)
            if on_student:
                gradient = number * gradient
        if objective.barrier is not None:
            term, slope = self._barrier(residual, target)
            rows = rows + term / objective.gamma
            gradient = gradient + slope * (number / objective.gamma)
        if objective.alpha:
            term, slope = self._label(output, target)
            rows = rows + objective.alpha * term
            gradient = gradient + objective.alpha * slope
        return rows, gradient

    def _barrier(self, residual, target):
        u = residual / (2 * self.scale)
        under, over = self._weights(target["residual_sum"])
        (up, up_slope), (down, down_slope) = _barrier_logarithms(u)
        gradient = over * down_slope - under * up_slope
        gradient = gradient / (2 * self.scale * u.shape[1])
        return -(under * up + over * down).mean(1), gradient

    def _weights(self, residual_sum):
        """K+ and K- of a batch, sample weights aside, with mean mass 2."""
        if self.objective.barrier == "indicator":
            sign = (self.eta * residual_sum).sign()
            return 1 - sign, 1 + sign
        exponent = self.eta * residual_sum
        log_mass = torch.logaddexp(exponent, -exponent) - self.log_scale
        # Rows that are not in the game (validation) may be beyond the range of floats.
        mass = log_mass.clamp(max=_LARGEST_LOG_MASS).exp()
        # Where one weight is 39 times the other, the slope of its linear part wins
        # for ever and the barrier has no minimum; this keeps one, at |u| = 0.9.
        lead = torch.tanh(-exponent).clamp(-_LARGEST_LEAD, _LARGEST_LEAD)
        half = mass / 2
        return half * (1 + lead), half * (1 - lead)


class _JointLoss(_EnsembleTerms):
    """Loss of all students together: the mean over the stages of D(F_k, g).

    Without a distillation term in the objective, the one that is usual for the task
    stands in for it; the barrier has no place where the earlier students move too.

    Parameters
    ----------
    objective : DistillationObjective
    regression : bool
    multilabel : bool, default=False
        Whether outputs are labels that do not exclude each other.
    first_stages : ndarray of int of shape (n_outputs,), default=None
        Stage from which an output counts, from 1 on. None: the first one.
    """

    def __init__(self, objective, regression, *, multilabel=False, first_stages=None):
        super().__init__(objective, regression, multilabel=multilabel)
        self.first_stages = first_stages

    @property
    def _distillation_name(self):
        if self.objective.distillation is not None:
            return self.objective.distillation
        if self.regression:
            return "squared_error"
        return "bce" if self.multilabel else "kl"

    def held_out(self, scores, target):
        """Loss of one stage on rows held out.

        That of the labels where they are known: a teacher may have seen these rows. In
        classification it is that of the logits at their best temperature, since those
        of a teacher may be too large or too small throughout.

        Parameters
        ----------
        scores : torch.Tensor of shape (n, n_outputs)
        target : dict of torch.Tensor

        Returns
        -------
        loss : torch.Tensor of shape ()
        """
        if "label" not in target:
            rows, _ = self._distillation(self._distillation_name, scores, target)
        else:
            if not self.regression:
                logits, label = scores.numpy(), target["label"].numpy()
                if self.multilabel:
                    logits, label = as_pairs(logits), label.ravel()
                scores = scores / float(fit_temperatures(logits[None], label)[0])
            rows, _ = self._label(scores, target)
        return _row_mean(rows, target.get("sample_weight"))

    def forward(self, stages, target):
        """Mean loss of a batch.

        Parameters
        ----------
        stages : list of torch.Tensor of shape (n, n_outputs)
            Running means F_1..F_T.
        target : dict of torch.Tensor
            As for :class:`_StudentLoss`; the residual sum is not used.
        """
        alpha, loss = self.objective.alpha, 0.0
        for scores, part in self._trained(stages, target):
            with torch.no_grad():
                name = self._distillation_name
                rows, gradient = self._distillation(name, scores, part)
                if alpha:
                    term, slope = self._label(scores, part)
                    rows, gradient = rows + alpha * term, gradient + alpha * slope
            loss = loss + _mean_of_rows(rows, gradient, scores, part)
        return loss / len(stages)

    def _trained(self, stages, target):
        """Yield scores and targets of each stage, of the outputs that it is about."""
        for number, scores in enumerate(stages, start=1):
            outputs = None
            if self.first_stages is not None:
                outputs = np.flatnonzero(self.first_stages <= number)
            yield _of_outputs(outputs, scores, target)
