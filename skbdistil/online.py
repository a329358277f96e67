"""Students that follow a stream, and the teacher who is asked now and then."""

import sys
import warnings
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.base import ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skbdistil._arrays import from_torch
from skbdistil._bdistil import BDistilClassifier
from skbdistil._boosting._random import draw_seeds
from skbdistil._calibrated import EstimatorAround, take_features
from skbdistil._protocol import shallow_copy
from skbdistil._sklearn_compat import (
    HasMethods,
    Interval,
    RealNotInt,
    _fit_context,
    _is_fitted,
    _num_samples,
    _safe_indexing,
)
from skbdistil._teacher_scores import _logits_warning
from skbdistil._teacher_targets import all_trained, further_answers
from skbdistil.exceptions import DoubtfulTeacherWarning

__all__ = ["OnlineBDistil"]


class _Answer(NamedTuple):
    """What the teacher says of a row.

    Attributes
    ----------
    row : array-like of shape (1, ...)
    scores : ndarray of shape (1, n_outputs)
        Of the teacher.
    agreement : float
        Share of the labels that the students, which had not seen the row, had given it.
        NaN where the committee chose the row.
    """

    row: object
    scores: np.ndarray
    agreement: float


class _State(NamedTuple):
    """Where a stream is; replaced as a whole when rows have been taken in.

    Attributes
    ----------
    since : int
        Rows since the last one whose turn it was, that one included.
    answers : tuple of _Answer
        Those of the batch that is not complete.
    memory : tuple of _Answer
        An even sample of all before.
    """

    since: int
    answers: tuple = ()
    memory: tuple = ()


class OnlineBDistil(ClassifierMixin, EstimatorAround):
    """Let students follow a stream by asking their teacher about a few of its rows.

    Rows are answered by the students as they come. Every `stride` rows the teacher is
    asked about one, and its answer is compared with that of the students. A batch of
    such answers that meets the target doubles the stride. Each answer by which a batch
    misses it halves the stride, and at the end of such a batch all students are trained
    together on its rows and on earlier ones. This is online model distillation [1]_,
    whose student is one network and whose frames of a video are single rows here.

    Parameters
    ----------
    estimator : BDistilClassifier, or FrozenEstimator of a fitted one
        The students. A fitted one is copied, and stays as it is; it follows the stream
        from the first call of `update` on. One that is not fitted is cloned, and fitted
        by `fit`.

    teacher : FrozenEstimator, :class:`~skbdistil.teachers.TorchTeacher`, \
            torch.nn.Module, list of these or callable
        Who is asked. A function takes rows and returns logits, shape (n_samples,
        n_classes), in the order of `classes_`. Others are as for
        :class:`~skbdistil.BDistilClassifier`; none is fitted here.

    stride : int or tuple of two int, default=(8, 64)
        Smallest and largest number of rows from one that the teacher is asked about to
        the next. It begins with the smallest. An int keeps it fixed.

    target : float, default=0.9
        Share of the answers of the teacher that the students are to meet, above 0 and
        at most 1.

    max_updates : int, default=8
        Largest number of updates in a row, each a call of
        :meth:`~skbdistil.BDistilClassifier.partial_fit`. They end when the students
        meet the target on the rows that they are trained on.

    batch_size : int, default=16
        Number of answers in a batch, at least 1. Students change after whole batches
        only.

    replay : float, default=3.0
        Earlier rows in each update, for each new one; not negative. They are drawn from
        `memory_size` rows.

    memory_size : int, default=1000
        Rows that are kept with the answers of the teacher: an even sample of all of
        which it was asked.

    committee : float or None, default=None
        Share of the stages before the last one, above 0 and at most 1. Where so many of
        them predict something else than the last one does, the teacher is asked, too.
        None does not look at the stages.

    budget : int, float or None, default=None
        Largest number of rows that the teacher is asked about, as an int; or their
        largest share of the rows so far, as a float above 0 and at most 1. None sets no
        limit.

    random_state : int, RandomState instance or None, default=None
        Draws the rows of the memory, and seeds the students where these have no
        `random_state` of their own.

    Attributes
    ----------
    estimator_ : BDistilClassifier
        The students as they are now.

    classes_ : ndarray of shape (n_classes,)
        Those of the students.

    n_features_in_, feature_names_in_
        As of the students.

    n_samples_seen_ : int
        Number of rows of the stream.

    n_teacher_calls_ : int
        Number of rows that the teacher has been asked about.

    n_updates_ : int
        Number of updates.

    stride_ : int
        Rows from one that the teacher is asked about to the next, as it is now.

    stride_history_ : list of int
        That stride at the end of each batch of answers.

    agreement_history_ : list of float
        Share of each batch on which students agreed with the teacher, before they were
        trained on it. Rows that the committee chose do not count, since they are
        harder; NaN where there were no others. Where rows have several labels, the
        share of labels.

    See Also
    --------
    skbdistil.BDistilClassifier.partial_fit : One update.
    skbdistil.monitoring.DeferralMonitor : Tests whether a promise still holds.

    Notes
    -----
    In [1]_ a frame, which has many answers, is a batch of its own, and the stride
    follows the agreement after the updates. Here it is that before them: after several
    updates to a few rows students agree with the teacher about these rows whether they
    would about the next ones or not. With n answers in a batch and the target a, up to
    (1 - a) n answers may differ. Since a batch takes n times the stride, the stride is
    halved at each further one at once, and not at the end of the batch.

    What was calibrated on the students before says nothing of those after an update.

    References
    ----------
    .. [1] R. T. Mullapudi, S. Chen, K. Zhang, D. Ramanan, K. Fatahalian, "Online Model
       Distillation for Efficient Video Inference", algorithm 1, ICCV 2019,
       arXiv:1812.02699.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.online import OnlineBDistil
    >>> from skbdistil.students import MLP
    >>> X, y = load_digits(return_X_y=True)
    >>> teacher = LogisticRegression(max_iter=1000).fit(X[:900], y[:900])
    >>> teacher = FrozenEstimator(teacher)
    >>> clf = BDistilClassifier(
    ...     teacher, student=partial(MLP, hidden=(8,)), n_estimators=2, max_epochs=5,
    ...     edge_tol=float("inf"), random_state=0,
    ... ).fit(X[:200])
    >>> online = OnlineBDistil(clf, teacher, random_state=0)
    >>> answers = online.update(X[900:])
    >>> answers.shape, online.n_teacher_calls_
    ((897,), 112)
    """

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "predict"])],
        # Teacher and stride have messages of their own.
        "teacher": "no_validation",
        "stride": "no_validation",
        "target": [Interval(Real, 0, 1, closed="right")],
        "max_updates": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "replay": [Interval(Real, 0, None, closed="left")],
        "memory_size": [Interval(Integral, 1, None, closed="left")],
        "committee": [Interval(Real, 0, 1, closed="right"), None],
        "budget": [
            Interval(Integral, 0, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            None,
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator,
        teacher,
        *,
        stride=(8, 64),
        target=0.9,
        max_updates=8,
        batch_size=16,
        replay=3.0,
        memory_size=1000,
        committee=None,
        budget=None,
        random_state=None,
    ):
        self.estimator = estimator
        self.teacher = teacher
        self.stride = stride
        self.target = target
        self.max_updates = max_updates
        self.batch_size = batch_size
        self.replay = replay
        self.memory_size = memory_size
        self.committee = committee
        self.budget = budget
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Fit the students, unless they are frozen, and go to the start of the stream.

        Not needed where the estimator is fitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows that the students are fitted to. They are not in the stream.

        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Their labels.

        **params : dict
            Passed to the `fit` of the estimator.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If a parameter or the input is unusable.
        """
        if isinstance(self.estimator, FrozenEstimator):
            students = self._fitted_students()
        elif _is_fitted(self.estimator):
            raise ValueError(
                f"The 'estimator' parameter of {type(self).__name__} is a fitted "
                f"{type(self.estimator).__name__}, which would be fitted again. To "
                "have it follow a stream, call update without fit, or pass "
                "sklearn.frozen.FrozenEstimator(estimator)."
            )
        else:
            self._check_students(self.estimator)
            students = clone(self.estimator)
            self._check_parameters(students)
            students.fit(X, y, **self._routed(params))
        self._start(students)
        return self

    def update(self, X):
        """Predict rows of the stream, and learn from those the teacher is asked about.

        Each row is predicted before it is learnt. How a stream is cut into calls makes
        no difference, but that students predict rows of a call together.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            The next rows.

        Returns
        -------
        labels : ndarray of shape (n_samples,) or (n_samples, n_labels)
            By the students, as of :meth:`~skbdistil.BDistilClassifier.predict`.

        Raises
        ------
        ValueError
            If a parameter or the input is unusable, or an update diverges.

        Notes
        -----
        If this fails, for example since the teacher cannot be reached, everything is as
        it was before the call, and the same rows can be passed again.
        """
        # Each time: they may have been set since.
        self._validate_params()
        X = from_torch(X)
        X = X.tocsr() if sparse.issparse(X) else X
        stream = shallow_copy(self)
        if not hasattr(self, "estimator_"):
            stream._start(self._fitted_students())
        else:
            self._check_parameters(self.estimator_)
            # Its own, which updates change.
            stream.estimator_ = shallow_copy(self.estimator_)
            stream._rng = _copied(self._rng)
        labels = stream._follow(X)
        vars(self).update(vars(stream))
        return labels

    def _follow(self, X):
        """Take in rows; what is changed of `self` is replaced, and never in place."""
        n_samples, first = _num_samples(X), 0
        found = []
        if not n_samples:
            # Its message.
            self.estimator_.predict(X)
        while first < n_samples:
            # Rows that these students are to predict as far as is known.
            # One at least: parameters may be smaller now than they were.
            n_wanted = max(self._batch_size() - len(self._state.answers), 1)
            n_rows = min(n_wanted * self.stride_, n_samples - first)
            rows = _safe_indexing(X, np.arange(first, first + n_rows))
            labels = self._follow_unchanged(rows)
            found.append(labels)
            first += len(labels)
            if len(self._state.answers) >= self._batch_size():
                self._learn()
        return np.concatenate(found)

    def _predicted(self, rows):
        """Labels of the last stage, and whether the committee wants to know better."""
        if self.committee is None:
            labels = self.estimator_.predict(rows)
            return labels, np.zeros(len(labels), dtype=bool)
        *earlier, labels = self.estimator_.staged_predict(rows)
        differs = np.array(earlier) != labels
        if differs.ndim == 3:
            differs = differs.any(axis=2)
        return labels, differs.mean(axis=0) >= self.committee

    def _follow_unchanged(self, rows):
        """Predict rows, and ask the teacher, until the students are to be changed."""
        labels, doubtful = self._predicted(rows)
        for place, is_doubtful in enumerate(doubtful.tolist()):
            self.n_samples_seen_ += 1
            since, answers, memory = self._state
            is_turn = since >= self.stride_
            self._state = _State(1 if is_turn else since + 1, answers, memory)
            if (is_turn or is_doubtful) and self._may_ask():
                here = np.arange(place, place + 1)
                row = _safe_indexing(rows, here)
                self._take_in(row, labels[here], by_stride=is_turn)
                if len(self._state.answers) >= self._batch_size():
                    return labels[: place + 1]
        return labels

    def _may_ask(self):
        """Whether one more row is within the budget."""
        if self.budget is None:
            return True
        n_calls = self.n_teacher_calls_ + 1
        if isinstance(self.budget, Integral):
            return n_calls <= self.budget
        return n_calls <= self.budget * self.n_samples_seen_

    def _batch_size(self):
        """Answers after which students are changed: the last may be fewer."""
        if not isinstance(self.budget, Integral):
            return self.batch_size
        left = max(self.budget - self.n_teacher_calls_, 0) + len(self._state.answers)
        return min(self.batch_size, left) if left else self.batch_size

    def _take_in(self, row, predicted, *, by_stride):
        """Ask the teacher about a row, and halve the stride where that is due."""
        scores = self._ask(row)
        self.n_teacher_calls_ += 1
        agreement = np.nan
        if by_stride:
            agreement = float(np.mean(predicted == self.estimator_._predicted(scores)))
        since, answers, memory = self._state
        answers = (*answers, _Answer(row, scores, agreement))
        self._state = _State(since, answers, memory)
        # Whatever else this batch brings, it cannot meet the target.
        if by_stride and agreement < 1 and self._n_missed() > self._n_allowed():
            self._set_stride(self.stride_ // 2)

    def _n_missed(self):
        """Answers that the students had not given, among those of the batch."""
        agreements = np.array([answer.agreement for answer in self._state.answers])
        return np.nansum(1 - agreements)

    def _n_allowed(self):
        """How many of them a batch may have."""
        # But for rounding: 1 - 0.9 is more than 0.1 by one part in 10 ** 16.
        return (1 - self.target) * self.batch_size * (1 + 1e-9)

    def _set_stride(self, stride):
        low, high = self._stride_bounds()
        self.stride_ = min(max(stride, low), high)

    def _learn(self):
        """Compare a batch of answers with those of the students, and train these."""
        since, answers, memory = self._state
        students = self.estimator_
        X = _stacked([answer.row for answer in answers])
        scores = np.concatenate([answer.scores for answer in answers])
        of_teacher = students._predicted(scores)
        is_binary = len(self.classes_) == 2 and not students.multilabel_
        if is_binary and not all_trained(self.teacher):
            # A single score of a single row says too little.
            doubt = _logits_warning(
                scores[:, 1:] - scores[:, :1], "teacher_scores", type(self).__name__
            )
            if doubt is not None:
                warnings.warn(doubt, stacklevel=4)  # the caller of update
        by_stride = [a.agreement for a in answers if not np.isnan(a.agreement)]
        agreement = float(np.mean(by_stride)) if by_stride else np.nan
        meets = agreement >= self.target
        if meets:
            self._set_stride(2 * self.stride_)
        elif by_stride and self._n_missed() <= self._n_allowed():
            # Not seen before the end, of fewer answers than a whole batch.
            self._set_stride(self.stride_ // 2)
        n_updates = 0
        while not meets and n_updates < self.max_updates:
            replayed = self._replayed(memory, len(answers))
            with warnings.catch_warnings():
                # A doubt about the scores has been raised when the teacher was asked.
                warnings.simplefilter("ignore", DoubtfulTeacherWarning)
                students.partial_fit(
                    _stacked([X, *(answer.row for answer in replayed)]),
                    teacher_scores=np.concatenate(
                        [scores, *(answer.scores for answer in replayed)]
                    ),
                )
            n_updates += 1
            meets = np.mean(students.predict(X) == of_teacher) >= self.target
        self.n_updates_ += n_updates
        self._state = _State(since, (), self._remembered(memory, answers))
        self.agreement_history_ = [*self.agreement_history_, agreement]
        self.stride_history_ = [*self.stride_history_, self.stride_]

    def _ask(self, X):
        """Logits of the teacher in the order of the classes."""
        students = self.estimator_
        seed = int(draw_seeds(self._rng, 1)[0])
        scores = None
        if not all_trained(self.teacher):
            scores = self.teacher(X)
            if scores is None:
                raise ValueError(
                    f"The 'teacher' parameter of {type(self).__name__} is a function "
                    "that must return logits, and it returned None."
                )
        response, notes = further_answers(
            self.teacher if scores is None else "precomputed",
            X,
            teacher_scores=scores,
            classes=students.classes_,
            n_outputs=len(students.classes_),
            multilabel=students.multilabel_,
            dtype=students.ensemble_.example().numpy(force=True).dtype,
            random_state=seed,
            estimator_name=type(self).__name__,
        )
        for note in notes:
            warnings.warn(note, stacklevel=6)  # the caller of update
        return students._encode(response, None, None, goes_on=True)[0]

    def _replayed(self, memory, n_new):
        """Earlier rows for an update."""
        n_rows = min(len(memory), round(self.replay * n_new))
        chosen = self._rng.choice(len(memory), n_rows, replace=False) if n_rows else ()
        return [memory[i] for i in chosen]

    def _remembered(self, memory, answers):
        """The memory with further rows: each row so far is in it alike likely."""
        memory = list(memory)
        first = self.n_teacher_calls_ - len(answers) + 1
        for number, item in enumerate(answers, first):
            if len(memory) < self.memory_size:
                memory.append(item)
                continue
            place = self._rng.randint(number)
            if place < self.memory_size:
                memory[place] = item
        return tuple(memory)

    def _start(self, students):
        """Go to the start of a stream with fitted students."""
        self._check_parameters(students)
        seed = draw_seeds(check_random_state(self.random_state), 1)[0]
        rng = np.random.RandomState(seed)
        if students.random_state is None:
            students.random_state = int(draw_seeds(rng, 1)[0])
        self.estimator_ = students
        self.classes_ = students.classes_
        take_features(self, students)
        self.n_samples_seen_ = self.n_teacher_calls_ = self.n_updates_ = 0
        self.stride_ = self._stride_bounds()[0]
        self.stride_history_, self.agreement_history_ = [], []
        self._state, self._rng = _State(since=self.stride_), rng

    def _fitted_students(self):
        """A copy of the estimator, which must be fitted."""
        estimator = self.estimator
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        self._check_students(estimator)
        check_is_fitted(
            estimator,
            msg=f"The 'estimator' of {type(self).__name__} is a %(name)s that is not "
            "fitted. Fit it first, or call fit.",
        )
        return shallow_copy(estimator)

    def _check_students(self, estimator):
        if not isinstance(estimator, BDistilClassifier):
            raise ValueError(
                f"The 'estimator' parameter of {type(self).__name__} must be a "
                "BDistilClassifier, or a FrozenEstimator around one. Got "
                f"{type(estimator).__name__}."
            )

    def _check_parameters(self, students):
        """Refuse what would fail later in the stream."""
        name = type(self).__name__
        self._stride_bounds()
        students._check_updatable(None)
        if self.committee is not None and _is_fitted(students):
            if students._n_stages_used() < 2:
                raise ValueError(
                    f"The 'committee' parameter of {name} needs two stages at least "
                    "that predict. Its estimator has one."
                )
        teacher = self.teacher
        is_function = callable(teacher) and not hasattr(teacher, "fit")
        if not (all_trained(teacher) or is_function):
            raise ValueError(
                f"The 'teacher' parameter of {name} must come trained: a "
                "FrozenEstimator around a fitted estimator, a TorchTeacher, a "
                "torch.nn.Module, a list of these, or a function of rows that returns "
                f"logits. Got {teacher!r}."
            )

    def _stride_bounds(self):
        stride = self.stride
        if isinstance(stride, Integral):
            stride = (stride, stride)
        fits = isinstance(stride, tuple | list) and len(stride) == 2
        fits = fits and all(isinstance(rows, Integral) for rows in stride)
        if not (fits and 1 <= stride[0] <= stride[1]):
            raise ValueError(
                f"The 'stride' parameter of {type(self).__name__} must be an int of at "
                "least 1, or two of them of which the second is not smaller. Got "
                f"{self.stride!r}."
            )
        return stride

    # Predicting, without learning

    def predict(self, X):
        """Labels by the students as they are now; the stream does not go on.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        labels : ndarray of shape (n_samples,) or (n_samples, n_labels)
        """
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def predict_proba(self, X):
        """Probabilities by the students as they are now; the stream does not go on.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "estimator_")


def _copied(rng):
    """A generator in the same state."""
    other = np.random.RandomState()
    other.set_state(rng.get_state())
    return other


def _form(rows):
    """What can be put together with rows of the same form, as a word."""
    if sparse.issparse(rows):
        return "a sparse matrix"
    return f"a {type(rows).__name__}" if hasattr(rows, "columns") else "an array"


def _stacked(parts):
    """Rows one after the other, in the form in which they came."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    forms = dict.fromkeys(map(_form, parts))
    if len(forms) > 1:
        raise ValueError(
            "The rows of a stream must all come in the same form, since later updates "
            f"train on earlier rows too. OnlineBDistil got {' and '.join(forms)}."
        )
    if sparse.issparse(first):
        return sparse.vstack(parts, format="csr")
    if hasattr(first, "columns"):
        # pandas and polars both have it.
        library = sys.modules[type(first).__module__.partition(".")[0]]
        return library.concat(parts)
    return np.concatenate(parts)
