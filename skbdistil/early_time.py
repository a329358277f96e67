"""Early prediction in time: a series is read as far as it takes to be sure of it."""

from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skbdistil._bdistil import BDistilClassifier
from skbdistil._boosting._rows import BatchIterator
from skbdistil._dataset_rows import is_dataset
from skbdistil._exit_base import _NumpyState
from skbdistil._exit_rules import RULES
from skbdistil._exit_runs import ExitRun
from skbdistil._prefixes import PrefixState, can_read_on, prefix_macs, prefix_stages
from skbdistil._seeding import seeded
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.metrics import _check_costs
from skbdistil.stages import _final_estimator, _wrapped_estimator
from skbdistil.students import _auto_students, _check_ladder

__all__ = ["EarlyTimeClassifier", "PrefixBatches", "SeriesStream"]

#: What `cost` and `rule` may name.
_TIME_UNITS = ("macs", "steps")
_TIME_RULES = [rule for rule in RULES if rule != "agreement"]


class EarlyTimeClassifier(EarlyExitClassifier):
    """Read each series only as far as it takes to be sure of it.

    Recurrent students can answer after any step. Here a stage is a number of students
    and a number of steps: the first student reads to the first of `steps` and answers,
    then the second, and so on; then all read on to the next of `steps`, from where they
    were. A row leaves, in depth or in time, at the first stage whose value of the rule
    reaches the threshold. Thresholds are chosen, and what they lose is guaranteed, as
    by :class:`~skbdistil.early_exit.EarlyExitClassifier` [1]_.

    Parameters
    ----------
    estimator : estimator
        :class:`~skbdistil.BDistilClassifier` of series of shape (n_steps, n_channels),
        whose students are :class:`~skbdistil.students.RecurrentNet` and whose
        `connection` joins last features: None, "dense", "last", "wide" or a
        :class:`~skbdistil.ensemble.Connection` of your own.
        ``FrozenEstimator(fitted)`` is used as it is, and `fit` takes rows that it was
        not trained on; an unfitted one is cloned and fitted inside `fit`. A transform
        inside it would see later steps, so that there can be none.

    steps : array-like of int
        Numbers of steps after which there is an answer: increasing, at least 1, at most
        the length of the series. At the last one all rows leave.

    rule : {"confidence", "margin", "entropy", "patience"} or callable, \
            default="confidence"
        What is compared with the threshold, as for
        :class:`~skbdistil.early_exit.EarlyExitClassifier`. "patience" counts stages,
        with more students or with more steps, and a callable gets the running means of
        all stages so far.

    target : {"agreement", "accuracy", "error"}, default="agreement"
        What a drop is measured in: agreement with the labels of all students at the
        last of `steps`, or accuracy. "error" only with `final`.

    max_drop : float, default=0.01
        Largest drop of the target against all students at the last of `steps`, from 0
        to less than 1. With `final`, largest `risk`.

    max_cost : float or None, default=None
        Largest mean cost per row, in the unit of `cost`: the thresholds of the best
        target within it are chosen, and `max_drop` is not used.

    delta : float or None, default=None
        Probability with which the drop may exceed `max_drop` all the same, over the
        draw of the calibration rows, between 0 and 1. None for no guarantee.

    thresholds : {"shared", "stage"}, default="stage"
        Whether one threshold serves all stages, or each has its own, at which the
        expected loss is the same.

    temperature : bool, default=False
        Whether the logits of each stage are divided by a temperature of its own, fitted
        by likelihood on the calibration rows.

    cost : {"macs", "steps"} or callable, default="macs"
        Unit of the cost: multiply-accumulates, of which each step costs a student the
        same, or steps read. ``cost(stages)`` is called with `stages_` and returns the
        cumulative cost of each.

    cv : float, int, cross-validation generator, iterable or None, default=0.2
        Calibration rows for an estimator that is fitted here, as for
        :class:`~skbdistil.early_exit.EarlyExitClassifier`. Not used for a frozen one.

    random_state : int, RandomState instance or None, default=None
        Draws the rows that are held out, and those that order the thresholds.

    final : estimator, callable or None, default=None
        Model that rows go to, as whole series, of which no stage is sure, as for
        :class:`~skbdistil.early_exit.EarlyExitClassifier`.

    final_cost : float or None, default=None
        Price of asking `final` about a row, in the unit of `cost`. Needed with `final`.

    risk : {"marginal", "selective"}, default="marginal"
        With `final`, what `max_drop` bounds.

    Attributes
    ----------
    estimator_ : estimator
        What predicts.

    classes_ : ndarray of shape (n_classes,)
        Labels.

    stages_ : ndarray of int of shape (n_stages, 2)
        Numbers of students and of steps of each stage, in the order in which they run.

    thresholds_ : ndarray of shape (n_stages - 1,) or (n_stages,)
        Values of the rule from which on a row leaves; infinite where none does. With
        `final` there is a last one, and rows that do not reach it are deferred.

    costs_ : ndarray of shape (n_stages,) or (n_stages + 1,)
        Cumulative costs of the stages, that of `final` as the last.

    earliness_ : float
        Expected share of the series that is read, from the calibration rows: above 0,
        at most 1, and smaller is earlier.

    mean_cost_ : float
        Expected cost per row, from the calibration rows.

    path_ : ExitPath
        All thresholds that were tried, from careful to cheap, and what they give on the
        calibration rows, as of :class:`~skbdistil.early_exit.EarlyExitClassifier`.

    best_index_ : int
        The chosen one of these.

    rule_ : str or callable
        Rule that the thresholds are for.

    temperatures_ : ndarray of shape (n_stages,)
        1 without `temperature`.

    calibration_errors_ : ndarray of shape (2, n_stages) or None
        Expected calibration error of each stage, before and after the temperature; None
        without.

    final_ : estimator, callable or None
        What rows are deferred to.

    n_features_in_ : int
        Number of features seen in `fit`, where the estimator has it.

    See Also
    --------
    skbdistil.early_exit.EarlyExitClassifier : Leave in depth only, any students.
    skbdistil.metrics.earliness : Share of the series that is read.
    skbdistil.metrics.earliness_harmonic_mean : Accuracy and earliness in one number.

    Notes
    -----
    Students are trained on whole series, unless `net` has :class:`PrefixBatches`, which
    are worth trying first: on two real sets, students that had seen prefixes were right
    more often early on. However they were trained, the calibration finds from which
    value of the rule on an answer to a prefix can be trusted.

    A promise by `delta` holds for series that are drawn as the calibration rows are,
    and that begin where these begin.

    References
    ----------
    .. [1] A. N. Angelopoulos, S. Bates, E. J. Candes, M. I. Jordan, L. Lei, "Learn then
       Test: Calibrating Predictive Algorithms to Achieve Risk Control",
       arXiv:2110.01052.
    .. [2] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference", section 6,
       NeurIPS 2023, arXiv:2302.10093.
    .. [3] P. Schaefer, U. Leser, "TEASER: Early and Accurate Time Series
       Classification", Data Mining and Knowledge Discovery 34, 2020.
    .. [4] D. K. Dennis, C. Pabbaraju, H. V. Simhadri, P. Jain, "Multiple Instance
       Learning for Efficient Sequential Data Classification on Resource-constrained
       Devices" (EMI-RNN), NeurIPS 2018.

    Examples
    --------
    Two kinds of waves, in noise:

    >>> from functools import partial
    >>> import numpy as np
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.early_time import EarlyTimeClassifier
    >>> from skbdistil.students import RecurrentNet
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(400) % 2
    >>> waves = np.sin(np.outer(1 + y, np.arange(20) / 3))
    >>> X = (waves + rng.normal(scale=0.5, size=waves.shape))[:, :, np.newaxis]
    >>> clf = BDistilClassifier(
    ...     "precomputed", student=partial(RecurrentNet, hidden=(8,)), n_estimators=2,
    ...     max_epochs=10, learning_rate=0.02, random_state=0,
    ... )
    >>> early = EarlyTimeClassifier(clf, [5, 10, 20], max_drop=0.02, random_state=0)
    >>> early = early.fit(X, y, teacher_scores=4.0 * np.eye(2)[y])
    >>> labels, stages, costs = early.predict_with_stages(X)
    >>> stages.shape, bool(stages[:, 1].mean() < 20)
    ((400, 2), True)

    As the steps come in:

    >>> stream = early.stream(n_samples=1)
    >>> for step in range(20):
    ...     if stream.update(X[:1, step : step + 1]).all():
    ...         break
    >>> bool(stream.predict()[0] == labels[0] and stream.stages[0, 1] == stages[0, 1])
    True
    """

    _parameter_constraints = {
        **EarlyExitClassifier._parameter_constraints,
        "steps": ["array-like"],
    }

    def __init__(
        self,
        estimator,
        steps,
        *,
        rule="confidence",
        target="agreement",
        max_drop=0.01,
        max_cost=None,
        delta=None,
        thresholds="stage",
        temperature=False,
        cost="macs",
        cv=0.2,
        random_state=None,
        final=None,
        final_cost=None,
        risk="marginal",
    ):
        super().__init__(
            estimator,
            rule=rule,
            target=target,
            max_drop=max_drop,
            max_cost=max_cost,
            delta=delta,
            thresholds=thresholds,
            temperature=temperature,
            cost=cost,
            cv=cv,
            random_state=random_state,
            final=final,
            final_cost=final_cost,
            risk=risk,
        )
        self.steps = steps

    # Before the fit

    def _check_parameters(self, y):
        super()._check_parameters(y)
        estimator_name = type(self).__name__
        if self.rule == "agreement":
            raise ValueError(
                f"The 'rule' parameter of {estimator_name} cannot be 'agreement': from "
                "one number of steps to the next all students answer anew, so that "
                "their votes are not those of one ensemble. Use 'confidence', "
                "'margin', 'entropy', 'patience' or a callable."
            )
        if isinstance(self.estimator, Pipeline) and len(self.estimator) > 1:
            raise ValueError(_no_transforms(estimator_name))
        if _increasing(self.steps) is None:
            raise ValueError(
                f"The 'steps' parameter of {estimator_name} must be a list of "
                f"increasing ints of at least 1. Got {self.steps!r} instead."
            )

    def _check_cost(self):
        is_unit = isinstance(self.cost, str) and self.cost in _TIME_UNITS
        if not (is_unit or callable(self.cost)):
            raise ValueError(
                f"The 'cost' parameter of {type(self).__name__} must be one of "
                f"{list(_TIME_UNITS)} or a callable. Got {self.cost!r} instead."
            )

    def _calibration_rows(self, X, *args, **kwargs):
        if not is_dataset(X):
            input_shape = np.shape(X)[1:]
            self._check_input_shape(input_shape)
            if isinstance(self.estimator, BDistilClassifier):
                # Students that cannot read on are refused before they are trained.
                self._check_students(_untrained(self.estimator, input_shape))
        return super()._calibration_rows(X, *args, **kwargs)

    def _check_input_shape(self, input_shape):
        """Refuse rows that are no series, or too short."""
        estimator_name = type(self).__name__
        if len(input_shape) != 2:
            raise ValueError(
                f"{estimator_name} needs series: X of shape (n_samples, n_steps, "
                f"n_channels). Got rows of shape {tuple(input_shape)}."
            )
        if self.steps[-1] > input_shape[0]:
            raise ValueError(
                f"The 'steps' parameter of {estimator_name} must be at most the length "
                f"of the series, {input_shape[0]}. Got {self.steps!r} instead."
            )

    # The stages

    def _distilled(self, estimator):
        final = super()._distilled(estimator)
        if _has_transforms(estimator) or final.student_transform_ is not None:
            raise ValueError(_no_transforms(type(self).__name__))
        self._check_students(final.ensemble_.students)
        return final

    def _check_students(self, students):
        for student in students:
            if not can_read_on(student):
                raise ValueError(
                    f"The students of {type(self).__name__} must read on step by step: "
                    "the backbone must be skbdistil.students.RecurrentNet without "
                    "padding_value, and the connection one that joins last "
                    "features: None, 'dense', 'last', 'wide' or a subclass of "
                    "skbdistil.ensemble.Connection. Got "
                    f"{type(student.backbone).__name__} in {type(student).__name__}."
                )

    def _stages(self, final):
        """Stages for the parameters."""
        self._check_input_shape(final.input_shape_)
        return prefix_stages(final._n_stages_used(), self.steps)

    def _stage_scores(self, final, X, *, fitted):
        stages = self.stages_ if fitted else self._stages(final)
        chunks = []
        for _, state in _prefix_states(final, X, stages):
            state = _NumpyState(state, type(self).__name__)
            chunks.append([state.step() for _ in stages])
        return np.concatenate(chunks, axis=1)

    def _stage_states(self, final, X):
        return _prefix_states(final, X, self.stages_)

    def _stage_costs(self, estimator, X, n_stages):
        final = self._distilled(estimator)
        stages = self._stages(final)
        if callable(self.cost):
            return _check_costs(self.cost(stages), n_stages)
        if self.cost == "steps":
            return stages[:, 1]
        costs = np.cumsum(prefix_macs(final.ensemble_, stages))
        if np.isnan(costs).any():
            raise ValueError(
                f"The operations of the students of {type(self).__name__} could not be "
                "counted. Use cost='steps', or a callable that returns the cumulative "
                "cost of each stage."
            )
        return costs

    def _stage_macs(self, final):
        if self.cost == "macs":
            return np.diff(self.costs_[: self._n_stages()], prepend=0)
        return np.full(self._n_stages(), np.nan)

    def _as_long(self, scores, estimator):
        # Of each number of steps, as of stages that are students only.
        parts = np.split(scores, len(self.steps))
        long = super()._as_long
        return np.concatenate([long(part, estimator) for part in parts])

    def _candidates(self, estimator, scores, labels, order, tested):
        fitted, *found = super()._candidates(estimator, scores, labels, order, tested)
        return {**fitted, "stages_": self._stages(self._distilled(estimator))}, *found

    def _n_students(self):
        return int(self.stages_[-1, 0])

    @property
    def earliness_(self):
        """Expected share of the series that is read."""
        n_steps = _final_estimator(self.estimator_).input_shape_[0]
        # A final model reads all of them.
        steps = np.append(self.stages_[:, 1], [n_steps] * self._defers())
        return float(self.path_.exits[self.best_index_] @ steps / n_steps)

    @property
    def mean_cost_(self):
        """Expected cost per row."""
        return float(self.path_.costs[self.best_index_])

    # Predicting

    def predict_with_stages(self, X):
        """Prediction of each row, what was run and read for it, and what it cost.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_steps, n_channels)
            Series of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            As of `predict`.

        stages : ndarray of int of shape (n_samples, 2)
            Numbers of students and of steps. Of rows that are deferred, all students
            and all steps of the series, which the final model reads.

        costs : ndarray of shape (n_samples,)
            Cost of each row, as of `predict_with_cost`.

        Raises
        ------
        skbdistil.exceptions.DeferralError
            If the final model fails; it holds the local answers.
        """
        check_is_fitted(self)
        self._final()  # that there is one, before anything is run
        stages, response = self._exits(X)
        n_steps = _final_estimator(self.estimator_).input_shape_[0]
        known = np.vstack([self.stages_, [self._n_students(), n_steps]])
        return (
            self._answers(X, stages, response),
            known[stages - 1],
            self.costs_[stages - 1],
        )

    def stream(self, n_samples=1):
        """Begin to predict series whose steps come in one after the other.

        Parameters
        ----------
        n_samples : int, default=1
            Number of series, which come in together.

        Returns
        -------
        stream : SeriesStream

        Raises
        ------
        ValueError
            If `n_samples` is no positive int, or rows are deferred to a final model:
            this reads whole series, which a stream does not keep.
        """
        check_is_fitted(self)
        if not (isinstance(n_samples, Integral) and n_samples >= 1):
            raise ValueError(
                f"'n_samples' must be a positive int. Got {n_samples!r} instead."
            )
        if self._defers():
            raise ValueError(
                f"This {type(self).__name__} defers rows to a final model, which reads "
                "whole series, and a stream does not keep them. Fit it with final=None."
            )
        return SeriesStream(self, n_samples)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


class SeriesStream:
    """Answers to series whose steps come in one after the other.

    Made by :meth:`EarlyTimeClassifier.stream`. What was fitted then answers, whatever
    is fitted later.

    Parameters
    ----------
    early : EarlyTimeClassifier
        Fitted.

    n_samples : int
        Number of series.

    Attributes
    ----------
    n_steps : int
        Number of steps that have come in, not counting those that came when all series
        had an answer.

    Notes
    -----
    Steps wait until the next of `steps` is reached, and are then read by as many
    students as it takes, each going on from its own state. So no step is read twice, no
    student reads what it need not, and the answers are those of `predict` for the same
    rows.

    Examples
    --------
    With a fitted `early`, and chunks of steps from a sensor::

        stream = early.stream()
        while not stream.update(sensor.read()).all():
            pass
        label, proba = stream.predict(), stream.predict_proba()
    """

    def __init__(self, early, n_samples):
        final = early._calibrated()
        ensemble = final.ensemble_
        self._name = type(self).__name__
        self._ensemble = ensemble
        self._input_shape = (n_samples, *final.input_shape_)
        self._known = np.vstack([np.zeros((1, 2), dtype=int), early.stages_])
        self._costs = np.append(0, early.costs_)
        scores = np.zeros(
            (n_samples, ensemble.n_outputs), final.ensemble_.like().cpu().numpy().dtype
        )
        self._stages = np.zeros(n_samples, dtype=np.intp)
        self._respond = early._response(final, scores, self._stages)
        self.n_steps = 0
        with torch.inference_mode():
            empty = ensemble.example()[:1, :0].repeat(n_samples, 1, 1)
            self._state = PrefixState(ensemble, early.stages_, empty)
        self._run = ExitRun(
            _NumpyState(self._state, self._name),
            slice(0, n_samples),
            scores,
            self._stages,
            rule=early.rule_,
            thresholds=early.thresholds_,
            temperatures=early._stage_temperatures(),
        )

    def update(self, chunk):
        """Read further steps.

        Parameters
        ----------
        chunk : array-like of shape (n_samples, n_steps, n_channels)
            The steps that follow those that have come in, any number of them. Also of
            series that have an answer, of which they are not read.

        Returns
        -------
        decided : ndarray of bool of shape (n_samples,)
            Whether a series has its answer, which further steps do not change.

        Raises
        ------
        ValueError
            If the shape is another one, or there is NaN or infinity. Nothing is read
            then.
        """
        chunk = check_array(
            chunk, allow_nd=True, ensure_min_features=0, input_name="chunk"
        )
        n_samples, _, n_channels = self._input_shape
        if chunk.ndim != 3 or chunk.shape[::2] != (n_samples, n_channels):
            raise ValueError(
                f"This {self._name} takes chunks of shape ({n_samples}, n_steps, "
                f"{n_channels}). Got shape {chunk.shape}."
            )
        run, ensemble = self._run, self._ensemble
        if run.n_left:
            self.n_steps += chunk.shape[1]
            with torch.inference_mode():
                x = torch.from_numpy(np.ascontiguousarray(chunk[run.left]))
                self._state.feed(ensemble.scale(x.to(ensemble.like())))
        known = self._known[1:, 1]
        while run.n_left and known[self._state.n_stages] <= self.n_steps:
            run.step()
            run.write()
        decided = np.ones(n_samples, dtype=bool)
        if run.n_left:
            decided[run.left] = False
        return decided

    @property
    def stages(self):
        """Numbers of students and of steps behind each answer.

        Zeros where there is none yet; of shape (n_samples, 2).
        """
        return self._known[self._stages]

    @property
    def costs(self):
        """Cost of each answer, in the unit of the estimator, of shape (n_samples,)."""
        return self._costs[self._stages]

    def predict(self):
        """Most likely class of each series, by what has been read.

        Returns
        -------
        labels : ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If not enough steps have come in for a first answer.
        """
        return self._response("predict")

    def predict_proba(self):
        """Probabilities of the classes, by what has been read.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)

        Raises
        ------
        ValueError
            If not enough steps have come in for a first answer.
        """
        return self._response("predict_proba")

    def _response(self, method):
        if not self._state.n_stages:
            raise ValueError(
                f"This {self._name} has no answer yet: the first stage needs "
                f"{self._known[1, 1]} steps, and {self.n_steps} have come in."
            )
        return self._respond(method)


class PrefixBatches(BatchIterator):
    """Batches of prefixes, for students that are to answer early.

    An iterator for the template `net` of :class:`~skbdistil.BDistilClassifier`. All
    rows of a batch are cut after the same number of steps, drawn anew for each batch.
    What is learned of them are the scores of the teacher for the whole series.

    Parameters
    ----------
    dataset : dataset of the training
    batch_size : int

    steps : sequence of int
        Numbers of steps, of which one is drawn for each batch: increasing, at least 1,
        at most the length of the series.

    Raises
    ------
    ValueError
        If `steps` are not as above, or rows are no series.

    Examples
    --------
    >>> import torch
    >>> from skorch import NeuralNet
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.early_time import PrefixBatches
    >>> from skbdistil.students import RecurrentNet
    >>> net = NeuralNet(
    ...     None, criterion=None, optimizer=torch.optim.AdamW,
    ...     iterator_train=PrefixBatches, iterator_train__steps=(25, 50, 100),
    ... )
    >>> clf = BDistilClassifier(student=RecurrentNet, net=net)
    """

    changes_rows = True

    def __init__(self, dataset, batch_size, steps):
        super().__init__(dataset, batch_size)
        self.steps = _increasing(steps)
        if self.steps is None:
            raise ValueError(
                f"The 'steps' of {type(self).__name__}, iterator_train__steps of the "
                f"template, must be a list of increasing ints of at least 1. Got "
                f"{steps!r} instead."
            )

    def __iter__(self):
        for inputs, targets in super().__iter__():
            shape = tuple(inputs["x"].shape[1:])
            if len(shape) != 2 or self.steps[-1] > shape[0]:
                raise ValueError(
                    f"{type(self).__name__} cuts series, rows of shape (n_steps, "
                    f"n_channels) of at least {self.steps[-1]} steps, the last of its "
                    f"'steps'. Got rows of shape {shape}."
                )
            n_steps = self.steps[torch.randint(len(self.steps), ())]
            yield {**inputs, "x": inputs["x"][:, :n_steps]}, targets


def _increasing(steps):
    """Numbers of steps as a list of int, or None where they are none."""
    try:
        steps = np.asarray(steps)
    except ValueError:  # lists of several lengths
        return None
    if steps.ndim != 1 or not len(steps) or steps.dtype.kind not in "iu":
        return None
    steps = steps.tolist()
    if steps[0] < 1 or any(later <= step for step, later in pairwise(steps)):
        return None
    return steps


def _prefix_states(final, X, stages):
    """Begin a pass over the stages for each chunk of the rows."""
    for rows, state in final._stage_states(X):
        yield rows, PrefixState(state.ensemble, stages, state.x)


def _has_transforms(estimator):
    """Whether a fitted estimator hands on other rows than it gets."""
    while estimator is not None:
        if isinstance(estimator, Pipeline) and len(estimator) > 1:
            return True
        estimator = _wrapped_estimator(estimator)
    return False


def _no_transforms(estimator_name):
    return (
        f"The 'estimator' parameter of {estimator_name} must not transform its rows: a "
        "transform sees whole series, and with them steps that are still to come. The "
        "students scale each channel as fitted; put other transforms that look at "
        f"single steps before {estimator_name}, in a pipeline that ends in it."
    )


def _untrained(estimator, input_shape):
    """Students as the estimator would train them, two of each class."""
    connection = estimator.connection
    ladder = estimator.student
    if isinstance(ladder, str):
        ladder, _ = _auto_students(input_shape)
        ladder = ladder[:1]
    students = []
    # Their weights do not count, and are drawn all the same.
    with seeded(0, torch.device("cpu")):
        for factory in _check_ladder(ladder, type(estimator).__name__):
            ensemble = ProgressiveEnsemble(
                input_shape, 2, connection=None if connection == "auto" else connection
            )
            for _ in range(2):
                ensemble.append(ensemble.new_student(factory))
            students += ensemble.students
    return students
