"""Distil in one call, and say what it is worth."""

import warnings
from dataclasses import dataclass
from functools import partial
from numbers import Real
from time import perf_counter
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import softmax
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from skbdistil import costs
from skbdistil._arrays import from_torch
from skbdistil._bdistil import (
    _AUTO_LABEL_MIX,
    BDistilClassifier,
    BDistilRegressor,
    _mean_1,
)
from skbdistil._boosting._plan import _sample
from skbdistil._boosting._random import draw_seeds
from skbdistil._sklearn_compat import (
    Interval,
    StrOptions,
    _check_sample_weight,
    _num_samples,
    _safe_indexing,
    check_matplotlib_support,
    validate_params,
)
from skbdistil._teacher_scores import (
    _log_smoothed,
    teacher_response,
    teacher_score_warning,
)
from skbdistil._teacher_targets import teacher_targets
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.exceptions import CostsUnknownWarning, DoubtfulTeacherWarning
from skbdistil.inspection import AccuracyCostDisplay
from skbdistil.latency import measure_latency
from skbdistil.metrics import calibration_error
from skbdistil.objectives import DistillationObjective
from skbdistil.stages import UNITS, _cost_if_known, _cut, stage_cost
from skbdistil.students import MLP, _auto_students

__all__ = ["DistillationReport", "distil"]

# Fewer rows say nothing about a difference between two models.
_MIN_ROWS = 10

# Weight of the label term in the objective that is tried beside the default one.
_ALPHA = 0.5

# Rows per call where the time of many rows is measured.
_BATCH_SIZE = 256

_BOOSTING, _LABELS = "gradient boosting", "labels only"

_HEADERS = {
    "name": "",
    "accuracy": "accuracy",
    "accuracy_se": "+-",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss",
    "calibration_error": "calibr. error",
    "r2": "R^2",
    "r2_se": "+-",
    "rmse": "RMSE",
    "retention": "retention",
    "roc_auc_retention": "of AUC",
    "macs": "MACs",
    "microseconds": "us a row",
    "microseconds_batch": "us in batches",
    "price_per_million": "price of 1e6",
}

# How the numbers of a column are printed, where they are not given four digits.
_STYLES = {
    **dict.fromkeys(("accuracy", "accuracy_se", "r2", "r2_se"), ".3f"),
    **dict.fromkeys(("roc_auc", "log_loss", "calibration_error"), ".3f"),
    **dict.fromkeys(("retention", "roc_auc_retention"), ".1%"),
    **dict.fromkeys(("macs", "parameters", "weight_bytes", "activation_bytes"), ".0f"),
    **dict.fromkeys(("microseconds", "microseconds_batch", "price_per_million"), ".3g"),
}


@dataclass(frozen=True, eq=False, repr=False)  # of arrays, which have no truth value
class DistillationReport:
    """What :func:`distil` found out. ``print(report)`` shows all of it.

    Attributes
    ----------
    table : dict of str to ndarray
        Columns of the table, as ``pandas.DataFrame`` takes them. There is one row for
        the teacher, for each stage of the students, for gradient boosting (tables only)
        and for one network of the cost of the chosen stage that was fitted to the
        labels alone. All figures are of the test rows. NaN is not known.

        - ``name``: what the row is about;
        - ``accuracy`` or ``r2``: the score, and ``accuracy_se`` or ``r2_se``, its
          standard error over the test rows, or over their groups;
        - ``roc_auc`` of a classifier: :func:`~sklearn.metrics.roc_auc_score`, for
          several classes the mean of each against the rest [1]_. NaN where a class has
          no test row;
        - ``log_loss`` and :func:`calibration_error \
          <skbdistil.metrics.calibration_error>` of a classifier. The teacher's
          probabilities are those that students are shown, in which a thousandth of the
          uniform distribution is mixed;
        - ``rmse`` of a regressor, in the units of the targets;
        - ``retention``: the score as a share of the teacher's. NaN where the teacher's
          is not positive;
        - ``roc_auc_retention`` of a classifier: the same of ``2 * roc_auc - 1``, the
          Gini coefficient [1]_, so that guessing is a share of 0;
        - the cost, under the name of its unit; "cost" for a callable;
        - ``microseconds``: median time of ``predict`` for one row in a call of its own,
          on one thread, and ``microseconds_batch``: the same for one of 256 rows in a
          call, or of all test rows where they are fewer. Later stages are never faster
          than earlier ones;
        - ``price_per_million``: what a million rows cost in such batches, in the
          currency of `price_per_hour`. Only with that.

    stage : int
        The chosen stage, from 1 on; `n_stages` of the estimator.

    candidates : dict of str to ndarray
        Columns about the search, one row for each stage that was compared: ``name`` of
        the candidate, ``stage``, ``score`` on the validation rows, ``cost``, and
        ``seconds`` that the fit of all its stages took.

    left_out : list of str
        Candidates that were not compared, and why.

    advice : str
        What the figures say about whether distilling is worth it, one finding a line.
        A difference counts if it is more than two standard errors over the test rows,
        row by row, or group by group where there are `groups`.

    training_rows, validation_rows, test_rows : ndarray of int
        Numbers of the rows that models were fitted to, that chose, and that judged.
        Rows of weight 0 are in none.

    n_unlabelled : int
        Number of further rows that the candidates were fitted to, `X_unlabelled`.

    weighted : bool
        Whether `sample_weight` was passed. All scores are weighted by it then.

    n_test_groups : int or None
        Number of groups of the test rows. None without `groups`.

    See Also
    --------
    distil : Makes it.

    References
    ----------
    .. [1] T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters
       27(8), 2006, sections 7 and 9.2.

    Examples
    --------
    See :func:`distil`.
    """

    table: dict
    stage: int
    candidates: dict
    left_out: list
    advice: str
    training_rows: np.ndarray
    validation_rows: np.ndarray
    test_rows: np.ndarray
    n_unlabelled: int
    weighted: bool
    n_test_groups: int | None

    def __str__(self):
        chosen = _stage_name(self.stage)
        columns = [_column(name, self.table[name]) for name in self.table]
        marks = ["*" if name == chosen else " " for name in self.table["name"]]
        lines = [" ".join(cells) for cells in zip([" ", *marks], *columns, strict=True)]
        unlabelled = (
            f" and {self.n_unlabelled} without labels" if self.n_unlabelled else ""
        )
        parts = [
            f"{len(self.training_rows)} rows to fit{unlabelled}, "
            f"{len(self.validation_rows)} to choose, {len(self.test_rows)} to judge: "
            "the table is about the last",
            "\n".join(lines),
            "* chosen; +- is one standard error"
            + (
                ""
                if self.n_test_groups is None
                else f" over {self.n_test_groups} groups of test rows"
            )
            + ("; rows are weighted" if self.weighted else ""),
        ]
        if self.left_out:
            parts.append("\n  ".join(["Left out:", *self.left_out]))
        return "\n\n".join([*parts, self.advice])

    __repr__ = __str__

    def plot(self, ax=None):
        """Plot the score against the time of one row.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None for a new figure.

        Returns
        -------
        ax : matplotlib Axes
            The curve of the students, a ring around the chosen stage, and points for
            the teacher, gradient boosting and the network of the labels. Bars are one
            standard error. A teacher whose time is not known is a line only.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        names, score = self.table["name"].tolist(), _score_name(self.table)
        columns = (self.table[name] for name in ("microseconds", score, f"{score}_se"))
        points = dict(zip(names, zip(*columns, strict=True), strict=True))
        for name, label, style in (
            (_BOOSTING, "Gradient boosting", {"fmt": "s"}),
            (_LABELS, "Labels only", {"fmt": "^"}),
            (
                _stage_name(self.stage),
                "Chosen",
                {"fmt": "o", "markersize": 11, "markerfacecolor": "none"},
            ),
        ):
            if name in points:
                ax.errorbar(*points[name], label=label, elinewidth=0.8, **style)
        time, teacher_score, _ = points["teacher"]
        stages = [points[name][:2] for name in names if name.startswith("stage ")]
        AccuracyCostDisplay(
            *zip(*stages, strict=True),
            cost_label="Microseconds per row, one thread",
            score_name=_HEADERS[score].capitalize(),
            estimator_name="Students",
            teacher=(None if np.isnan(time) else time, teacher_score),
        ).plot(ax)
        return ax


@validate_params(
    {
        "y": ["array-like"],
        "sample_weight": ["array-like", None],
        "X_unlabelled": ["array-like", "sparse matrix", None],
        "groups": ["array-like", None],
        "task": [StrOptions({"classification", "regression"}), None],
        "time_limit": [Interval(Real, 0, None, closed="neither"), None],
        "max_cost": [Interval(Real, 0, None, closed="neither"), None],
        "unit": [StrOptions(set(UNITS)), callable],
        "price_per_hour": [Interval(Real, 0, None, closed="neither"), None],
        "test_size": [Interval(Real, 0, 1, closed="neither")],
        "validation_size": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def distil(
    teacher,
    X,
    y,
    *,
    task=None,
    time_limit=None,
    max_cost=None,
    unit="macs",
    price_per_hour=None,
    test_size=0.2,
    validation_size=0.2,
    teacher_scores=None,
    sample_weight=None,
    X_unlabelled=None,
    groups=None,
    random_state=None,
    **params,
):
    """Distil a teacher without choosing anything, and see whether it was worth it.

    The rows are parted in three, once: models are fitted to the training rows, the
    validation rows choose among them, and the report is about the test rows, which had
    no part in anything before.

    The teacher is fitted where it must be, to the training rows, and asked once for the
    scores of all rows; out of fold for training rows that it knows by heart, as by the
    `fit` of the estimators. Then ensembles are fitted to the scores of the training
    rows, the cheapest students first, the width doubling while that helps; and one more
    of the best width with a label term in the objective. Of all stages of all of them
    the cheapest is chosen whose distance to the best one on the validation rows is
    within one standard error of this distance, row by row.

    Parameters
    ----------
    teacher : estimator, :class:`~skbdistil.teachers.TorchTeacher`, \
            torch.nn.Module, "precomputed" or None
        As for :class:`~skbdistil.BDistilClassifier`. A fitted estimator is given as
        ``FrozenEstimator(fitted)``. If it was trained on some of these rows, its own
        figures are better than they would be on new ones.

    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Rows: a table, sequences or images, as for
        :meth:`BDistilClassifier.fit <skbdistil.BDistilClassifier.fit>`.

    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Labels or targets. Of each class there must be at least 3 rows.

    task : {"classification", "regression"} or None, default=None
        What `y` holds. None asks the teacher; where it does not tell, `y` is taken for
        targets if it has numbers that are not whole, else for labels.

    time_limit : float or None, default=None
        Seconds after the call in which the search should end, greater than 0. A
        candidate that would take longer, going by those before it, is left out and
        named in the report. The teacher's answer and the first candidate take the time
        that they take, and the comparisons in the report come on top: gradient
        boosting, one network and the measured times. None for no limit.

    max_cost : float or None, default=None
        Largest cost of a prediction, greater than 0. None for no limit.

    unit : {"macs", "parameters", "weight_bytes", "activation_bytes", "latency"} or \
            callable, default="macs"
        Unit of the cost, as for :func:`skbdistil.stages.stage_cost`. "latency" is
        measured on the validation rows.

    price_per_hour : float or None, default=None
        Price of an hour of one core, in any currency, for the price of a million
        predictions. None leaves it out.

    test_size, validation_size : float, default=0.2
        Shares of all rows. Rows of each class are parted in proportion. With `groups`
        a part is one of ``round(1 / size)`` folds, so shares are met about.

    teacher_scores : array-like of shape (n_samples, n_outputs), default=None
        With ``teacher="precomputed"``: logits, or values for regression. Rows of
        `X_unlabelled` follow those of `X`.

    sample_weight : array-like of shape (n_samples,), default=None
        Not negative. Weighs rows in all fits, in the choice and in all figures; rows of
        weight 0 are left out. Passed on to a teacher that is fitted here and takes it.

    X_unlabelled : array-like of shape (n_unlabelled, ...), default=None
        Further rows for the fits of the candidates, like those of `X`, of which y says
        nothing. They choose and judge nothing.

    groups : array-like of shape (n_samples,), default=None
        Rows that belong together, such as those of one patient. All rows of a group are
        in one part, and in one fold where the teacher is asked out of fold. Standard
        errors are over groups [1]_. There must be at least 2 groups in each part; of
        fewer than about 40, standard errors tend to be too small.

    random_state : int, RandomState instance or None, default=None
        Seed of the parts, of a teacher that is fitted here, of the students and of
        gradient boosting. An int gives the same estimator twice, unless the clock
        decided which candidates to leave out, or measured the costs.

    **params : dict
        Parameters of :class:`~skbdistil.BDistilClassifier` or
        :class:`~skbdistil.BDistilRegressor`, such as `n_estimators`, `max_epochs` or
        `device`. A `student` or `objective` that is given is not searched.

    Returns
    -------
    estimator : :class:`~skbdistil.BDistilClassifier` or \
            :class:`~skbdistil.BDistilRegressor`
        Fitted to the training rows, with `n_stages` set to the chosen stage; later
        stages are there, too. ``estimator[:report.stage]`` is a copy without them.
        Its parameter `teacher` is the one passed, so that
        ``clone(estimator).fit(X, y)`` fits the chosen students to all rows.

    report : :class:`DistillationReport`

    Raises
    ------
    ValueError
        If a parameter is out of its range, there are too few rows or groups, a target
        is constant, no stage is within `max_cost`, no candidate can be fitted, or the
        teacher is unusable.

    Warns
    -----
    UserWarning
        As in the `fit` of the estimators.

    See Also
    --------
    skbdistil.model_selection.StagedSearchCV : Search over a grid of your own.

    Notes
    -----
    Gradient boosting is scikit-learn's histogram gradient boosting with its defaults,
    on rows of one axis only. The network of labels is an ordinary one: a single student
    of at most the cost of the chosen stage, trained like the others, but to the labels.
    If you passed a `student`, it is as many of these, trained one after the other.

    A candidate that cannot be fitted is left out and named in the report, as are those
    that an interrupt (Ctrl-C) prevents. The first one must be finished.

    The teacher is asked once, so `augment` cannot be passed. Pass the rows that it
    would make as `X_unlabelled`.

    References
    ----------
    .. [1] A. C. Cameron, D. L. Miller, "A Practitioner's Guide to Cluster-Robust
       Inference", Journal of Human Resources 50(2), 2015, section II.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from skbdistil import distil
    >>> X, y = load_iris(return_X_y=True)
    >>> estimator, report = distil(
    ...     RandomForestClassifier(), X, y, max_cost=200, max_epochs=20, random_state=0
    ... )
    >>> estimator.n_stages == report.stage
    True
    >>> bool(estimator.stage_costs_.cumulative_macs[report.stage - 1] <= 200)
    True
    >>> len(report.training_rows), len(report.validation_rows), len(report.test_rows)
    (90, 30, 30)
    >>> report.table["name"][[0, 1, -2, -1]].tolist()
    ['teacher', 'stage 1', 'gradient boosting', 'labels only']
    """
    began = perf_counter()
    X, X_unlabelled = _indexable(X), _indexable(X_unlabelled)
    check_consistent_length(X, y, groups)
    regression = _is_regression(task, teacher, y)
    y = _checked_targets(y, regression)
    X, y, sample_weight, groups, teacher_scores, used = _rows_that_count(
        X, y, sample_weight, groups, teacher_scores
    )
    classes = None if regression else np.unique(y)
    if classes is not None and len(classes) < 2:
        raise ValueError(
            f"distil needs rows of at least 2 classes. Got {classes[0]!s} only."
        )
    if "n_stages" in params:
        raise ValueError(
            "distil chooses 'n_stages', so it cannot be passed. To limit the cost, "
            "pass 'max_cost'."
        )
    if params.get("augment") is not None:
        raise ValueError(
            "distil asks the teacher once, so 'augment' cannot be passed. Pass the "
            "rows that it would make as 'X_unlabelled'."
        )
    split_seed, teacher_seed, student_seed, boosting_seed = draw_seeds(
        check_random_state(random_state), 4
    ).tolist()
    teacher_cv = params.pop("teacher_cv", "auto")
    template = (BDistilRegressor if regression else BDistilClassifier)(
        "precomputed", random_state=student_seed, **params
    )
    ladder = _ladder(X.shape[1:], max_cost, params)
    parts = _parts(y, classes, groups, test_size, validation_size, split_seed)
    training, validation, test = [
        _Rows(
            *(
                None if values is None else _safe_indexing(values, part)
                for values in (X, y, sample_weight, groups)
            )
        )
        for part in parts
    ]

    options = {
        "regression": regression,
        "random_state": teacher_seed,
        "dtype": np.float64 if regression else np.float32,
        "estimator_name": "distil",
    }
    unlabelled = [] if X_unlabelled is None else [X_unlabelled]
    if teacher_scores is None and not isinstance(teacher, str):
        weight = training.weight
        response, notes = teacher_targets(
            teacher,
            training.X,
            training.y,
            cv=teacher_cv,
            groups=training.groups,
            # As in the fit of the estimators.
            sample_weight=_mean_1(weight)
            if teacher is None and weight is not None
            else weight,
            transfers=[validation.X, test.X, *unlabelled],
            **options,
        )
        scores = _in_order_of_labels(response, response.scores, classes, y)
        others = _in_order_of_labels(response, response.transfer_scores, classes, y)
        _, test_scores, others = np.split(
            others, np.cumsum([len(validation.y), len(test.y)])
        )
    else:
        response = teacher_response(
            teacher,
            X,
            y,
            teacher_scores=teacher_scores,
            transfers=unlabelled,
            **options,
        )
        notes = [response.warning]
        scores = _in_order_of_labels(response, response.scores, classes, y)
        if np.isnan(scores).any():
            raise ValueError(
                "distil needs 'teacher_scores' of all rows. Got rows of NaN."
            )
        scores, test_scores = scores[parts[0]], scores[parts[2]]
        others = scores[:0]
        if unlabelled:
            others = _in_order_of_labels(response, response.transfer_scores, classes, y)
    if response.kind == "out-of-fold":
        # As the estimators try it. A network of the labels alone is among the rivals.
        template.set_params(**{"label_mix": _AUTO_LABEL_MIX, **params})
    notes.append(
        teacher_score_warning(
            response,
            training.mean(_row_scores(training, scores, classes)),
            training.y,
            training.weight,
            estimator_name="distil",
        )
    )
    teacher_costs = None
    if response.module is not None:
        teacher_costs, problem = costs._count_module(
            response.module, response.module_input, macs=response.macs
        )
        notes.append(problem and CostsUnknownWarning(problem))
    for note in notes:
        if note is not None:
            # Behind what validates the parameters is the caller.
            warnings.warn(note, stacklevel=3)

    search = _Search(
        training,
        np.concatenate([scores, others]),
        validation,
        classes,
        X_unlabelled=X_unlabelled,
        deadline=None if time_limit is None else began + time_limit,
        max_cost=max_cost,
        unit=unit,
    )
    search.climb(template, ladder)
    if "objective" not in params:
        search.add_label_term()
    chosen, stage = search.choice()
    estimator = chosen.estimator

    models = [
        _Model(
            "teacher",
            response.predict,
            test_scores if regression else softmax(test_scores, axis=1),
            _cost_of_teacher(teacher_costs, unit),
        )
    ]
    models += [
        _Model(_stage_name(number), _cut(estimator, number).predict, predicted, cost)
        for number, (predicted, cost) in enumerate(
            zip(_staged(estimator, test.X), chosen.costs, strict=True), start=1
        )
    ]
    if len(X.shape) == 2 and not sparse.issparse(X):
        boosting = _boosting(y, regression, boosting_seed)
        weights = training.weights
        if template.student_transform is not None:
            # It may not take the rows as they are.
            boosting = make_pipeline(clone(template.student_transform), boosting)
            weights = {f"{boosting.steps[-1][0]}__{k}": w for k, w in weights.items()}
        boosting.fit(training.X, training.y, **weights)
        models.append(_Model.of(_BOOSTING, boosting, test.X, np.nan))
    network = _label_network(estimator, stage, classes, own="student" in params)
    network.fit(
        training.X,
        training.y,
        teacher_scores=_scores_of_labels(training.y, classes),
        **training.weights,
    )
    cost = _cost_if_known(network, unit, validation.X)[-1]
    models.append(_Model.of(_LABELS, network, test.X, cost))

    # What clone fits again is what the user passed.
    estimator.set_params(teacher=teacher, teacher_cv=teacher_cv, n_stages=stage)
    estimator.teacher_costs_ = teacher_costs
    row_scores = np.array(
        [_row_scores(test, model.predicted, classes) for model in models]
    )
    seconds = _seconds(models, test.X)
    names = [model.name for model in models]
    return estimator, DistillationReport(
        table=_table(models, row_scores, seconds, test, classes, unit, price_per_hour),
        stage=stage,
        candidates=search.table(),
        left_out=search.left_out,
        advice=_advice(names, row_scores, seconds, stage, rows=test),
        training_rows=used[parts[0]],
        validation_rows=used[parts[1]],
        test_rows=used[parts[2]],
        n_unlabelled=len(others),
        weighted=sample_weight is not None,
        n_test_groups=None if groups is None else len(np.unique(test.groups)),
    )


# Rows


class _Rows(NamedTuple):
    """Rows of one part, and what is known of them."""

    X: object
    y: np.ndarray
    weight: np.ndarray | None = None
    groups: np.ndarray | None = None

    @property
    def weights(self):
        """Argument of a fit or a metric."""
        return {} if self.weight is None else {"sample_weight": self.weight}

    def mean(self, row_scores):
        return np.average(row_scores, axis=-1, weights=self.weight)

    def difference(self, first, second):
        """Mean of what one is better by, row by row, and its standard error.

        Influences of rows on the mean are independent, or those of groups.
        """
        difference = first - second
        mean = self.mean(difference)
        weight = np.ones(difference.shape[-1]) if self.weight is None else self.weight
        influence = (difference - mean[..., None]) * (weight / weight.sum())
        if self.groups is not None:
            _, group = np.unique(self.groups, return_inverse=True)
            influence = influence @ np.eye(group.max() + 1)[group]
        n = influence.shape[-1]
        return mean, np.sqrt((influence**2).sum(axis=-1) * n / (n - 1))


def _indexable(X):
    """Rows of which some can be taken."""
    X = from_torch(X)
    if sparse.issparse(X):
        # Not all formats can.
        return X.tocsr()
    return X if X is None or hasattr(X, "shape") else np.asarray(X)


def _is_regression(task, teacher, y):
    if task is not None:
        return task == "regression"
    if hasattr(teacher, "__sklearn_tags__") and not isinstance(teacher, type):
        if is_regressor(teacher):
            return True
        if is_classifier(teacher):
            return False
    return type_of_target(y).startswith("continuous")


def _checked_targets(y, regression):
    if regression:
        return check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    if np.ndim(y) == 2 and np.shape(y)[1] > 1:
        raise ValueError(
            "distil takes one label per row. Got y of shape "
            f"{np.shape(y)}. For several labels per row, fit a BDistilClassifier to "
            "the indicator matrix, or distil each label. If these are targets of a "
            "regression, pass task='regression'."
        )
    check_classification_targets(y)
    return column_or_1d(y)


def _rows_that_count(X, y, sample_weight, groups, teacher_scores):
    """All of these without rows of weight 0, and the numbers of the others."""
    n_rows = len(y)
    used = np.arange(n_rows)
    if teacher_scores is not None and _num_samples(teacher_scores) < n_rows:
        check_consistent_length(X, teacher_scores)
    if groups is not None:
        groups = column_or_1d(groups)
    if sample_weight is None:
        return X, y, None, groups, teacher_scores, used
    sample_weight = _check_sample_weight(
        sample_weight, y, dtype=np.float64, ensure_non_negative=True
    )
    used = np.flatnonzero(sample_weight)
    if len(used) == 0:
        raise ValueError("sample_weight is zero for all rows; some must count.")
    X, y, sample_weight, groups = (
        None if values is None else _safe_indexing(values, used)
        for values in (X, y, sample_weight, groups)
    )
    if teacher_scores is not None:
        teacher_scores = np.asarray(from_torch(teacher_scores))
        # Those of X_unlabelled are the last.
        teacher_scores = np.concatenate([teacher_scores[used], teacher_scores[n_rows:]])
    return X, y, sample_weight, groups, teacher_scores, used


def _parts(y, classes, groups, test_size, validation_size, seed):
    """Numbers of the training, the validation and the test rows, each sorted."""
    n_test = int(np.ceil(test_size * len(y)))
    n_valid = int(np.ceil(validation_size * len(y)))
    smallest = min(n_test, n_valid, len(y) - n_test - n_valid)
    needed = _MIN_ROWS
    if classes is not None:
        labels, counts = np.unique(y, return_counts=True)
        rarest = counts.argmin()
        if counts[rarest] < 3:
            raise ValueError(
                "distil needs at least 3 rows of each class, to fit, to choose and to "
                f"judge. Got {counts[rarest]} of class {labels[rarest]!s}. If y holds "
                "targets of a regression, pass task='regression'."
            )
        needed = max(needed, len(classes))
    if smallest < needed:
        raise ValueError(
            f"distil needs at least {needed} rows to fit, to choose and to judge each. "
            f"Got {len(y)} rows with test_size={test_size} and "
            f"validation_size={validation_size}, which makes {smallest} in the "
            "smallest part."
        )
    rest = np.arange(len(y))
    parts = []
    for size in (n_test, n_valid):
        rest, part = _split(rest, y, classes, groups, size, seed)
        parts.insert(0, np.sort(part))
    parts.insert(0, np.sort(rest))
    for part, name in zip(parts, ("training", "validation", "test"), strict=True):
        if classes is None and (np.ptp(y[part], axis=0) == 0).any():
            raise ValueError(
                f"y holds a target that is the same in all {name} rows: there is "
                "nothing to be explained."
            )
        n_groups = None if groups is None else len(np.unique(groups[part]))
        if n_groups is not None and (n_groups < 2 or len(part) < _MIN_ROWS):
            raise ValueError(
                f"distil needs at least 2 groups and {_MIN_ROWS} rows to fit, to "
                f"choose and to judge each. Got {len(np.unique(groups))} groups, which "
                f"makes {n_groups} of {len(part)} {name} rows."
            )
    if classes is not None:
        missing = np.setdiff1d(classes, y[parts[0]])
        if len(missing):
            raise ValueError(
                "distil needs rows of each class to fit. Got none of class "
                f"{missing[0]!s} among the training rows, since its rows are few"
                + (" or in few groups." if groups is not None else ".")
            )
    return parts


def _split(rest, y, classes, groups, size, seed):
    """Numbers of the rows that stay, and of about `size` others."""
    strata = None if classes is None else y[rest]
    if groups is None:
        return train_test_split(
            rest, test_size=size, random_state=seed, stratify=strata
        )
    n_folds = round(len(rest) / size)
    if n_folds < 2:
        raise ValueError(
            "With groups, test_size and validation_size must be at most about half of "
            f"the rows that they are taken of. Got {size} of {len(rest)} rows."
        )
    if strata is None:
        strata = np.zeros(len(rest), dtype=int)
    n_groups = len(np.unique(groups[rest]))
    if n_groups < 2:
        raise ValueError(
            "distil needs at least 2 groups to fit, to choose and to judge each. Got "
            f"{len(np.unique(groups))} groups."
        )
    folds = StratifiedGroupKFold(
        min(n_folds, n_groups), shuffle=True, random_state=seed
    )
    with warnings.catch_warnings():
        # A class of fewer rows than folds is looked for afterwards.
        warnings.simplefilter("ignore", UserWarning)
        stay, part = next(folds.split(rest, strata, groups[rest]))
    return rest[stay], rest[part]


def _in_order_of_labels(response, scores, classes, y):
    """Scores of the teacher, a column for each of the sorted labels in `y`."""
    if classes is None:
        if scores.shape[1] != y.reshape(len(y), -1).shape[1]:
            raise ValueError(
                f"y has {y.reshape(len(y), -1).shape[1]} target(s), and the teacher "
                f"gives {scores.shape[1]}."
            )
        return scores.reshape(-1, *y.shape[1:])
    known, order = np.unique(response.classes, return_index=True)
    if not np.array_equal(known, classes):
        missing = sorted(set(known.tolist()) - set(classes.tolist()))
        raise ValueError(
            "distil needs rows of each class that the teacher knows, to judge by. y "
            f"holds none of {missing}."
        )
    return scores[:, order]


# Search


class _Candidate(NamedTuple):
    """An ensemble that was fitted, and what the choice is made by.

    ``costs`` is of shape (n_stages,), ``scores`` of the validation rows of shape
    (n_stages, n_rows).
    """

    name: str
    estimator: object
    seconds: float
    costs: np.ndarray
    scores: np.ndarray


def _ladder(input_shape, max_cost, params):
    """Names and parameters of the candidates, the cheapest first."""
    if "student" in params:
        return {"students as passed": {}}
    factories, default = _auto_students(input_shape)
    ladder = {}
    # The smallest ones only where cost is scarce.
    first = max(0, default - 2) if max_cost is None else 0
    # Every second one, so that the width doubles.
    for position in range(first, default + 3, 2):
        # As with student="auto", one of twice the width stands by.
        classes = [factories[i] for i in (position, position + 2) if i < len(factories)]
        ladder[_name_of(factories[position])] = {"student": classes}
    return ladder


def _name_of(factory):
    options = ", ".join(f"{name}={value}" for name, value in factory.keywords.items())
    return f"{factory.func.__name__}({options})"


class _Search:
    """Fit one candidate after another while there is time.

    Parameters
    ----------
    training, validation : _Rows
    teacher_scores : ndarray
        Of the training rows, and then those of `X_unlabelled`.
    X_unlabelled : array-like or None
    classes : ndarray or None
        Sorted labels; None for regression.
    deadline : float or None
        Reading of the clock by which the last fit should have ended.
    max_cost, unit
        As for :func:`distil`.
    """

    def __init__(
        self,
        training,
        teacher_scores,
        validation,
        classes,
        *,
        X_unlabelled,
        deadline,
        max_cost,
        unit,
    ):
        self.training = training
        self.teacher_scores = teacher_scores
        self.validation = validation
        self.X_unlabelled = X_unlabelled
        self.classes = classes
        self.deadline = deadline
        self.max_cost = np.inf if max_cost is None else max_cost
        self.unit = unit
        self.fitted = []
        self.left_out = []
        self.failure = None
        self.interrupted = False

    def climb(self, template, ladder):
        """Fit candidates of growing cost while that pays and may be done."""
        names = list(ladder)
        for position, name in enumerate(names):
            problem = self._no_time(self._next_seconds())
            if problem is not None:
                self._leave_out(names[position:], problem)
                return
            candidate = self._try(name, clone(template).set_params(**ladder[name]))
            if candidate is None:
                continue
            cheapest = candidate.costs[0]
            if cheapest > self.max_cost:
                if not self.fitted:
                    # Perhaps a cheaper one could not be fitted.
                    raise self.failure or ValueError(
                        f"max_cost={self.max_cost} is below the cheapest stage, which "
                        f"costs {cheapest:.15g} in {self.unit!r}."
                    )
                problem = f"max_cost is below its first stage ({cheapest:.4g})"
                self._leave_out([name], problem)
                self._leave_out(names[position + 1 :], "wider than what costs too much")
                return
            self.fitted.append(candidate)
            best = [self._scores_within(fitted).max() for fitted in self.fitted]
            if len(best) > 1 and best[-1] <= max(best[:-1]):
                problem = f"{name} was no better than narrower students"
                self._leave_out(names[position + 1 :], problem)
                return
        if not self.fitted:
            raise self.failure

    def add_label_term(self):
        """Fit the best candidate again with a label term in its objective."""
        best, _ = self.choice()
        name = f"{best.name}, label term of weight {_ALPHA}"
        problem = self._no_time(best.seconds)
        if problem is not None:
            self._leave_out([name], problem)
            return
        distillation = "squared_error" if self.classes is None else "kl"
        objective = DistillationObjective(distillation, alpha=_ALPHA)
        candidate = self._try(
            name, clone(best.estimator).set_params(objective=objective)
        )
        if candidate is not None:
            self.fitted.append(candidate)

    def choice(self):
        """Candidate and number of the stage that is chosen."""
        stages = [
            (candidate, number)
            for candidate in self.fitted
            for number in range(1, len(self._scores_within(candidate)) + 1)
        ]
        scores = [candidate.scores[number - 1] for candidate, number in stages]
        spent = [candidate.costs[number - 1] for candidate, number in stages]
        position = _cheapest_as_good(
            np.array(scores), np.array(spent), rows=self.validation
        )
        return stages[position]

    def table(self):
        """Columns of what was compared."""
        rows = [
            (candidate.name, stage, mean, cost, candidate.seconds)
            for candidate in self.fitted
            for stage, (mean, cost) in enumerate(
                zip(
                    self.validation.mean(candidate.scores), candidate.costs, strict=True
                ),
                start=1,
            )
        ]
        names = ("name", "stage", "score", "cost", "seconds")
        return {
            name: np.array(column)
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }

    def _scores_within(self, candidate):
        """Mean scores of the stages within `max_cost`, which are the first ones."""
        # Costs that are not known are above no limit.
        means = self.validation.mean(candidate.scores)
        return means[~(candidate.costs > self.max_cost)]

    def _leave_out(self, names, problem):
        self.left_out += [f"{name}: {problem}" for name in names]

    def _next_seconds(self):
        """Seconds that a candidate of the next width is likely to take."""
        seconds = [candidate.seconds for candidate in self.fitted]
        if len(seconds) < 2:
            # What the width adds, the first fit has spent on what is loaded once.
            return sum(seconds)
        return seconds[-1] * max(1.0, seconds[-1] / seconds[-2])

    def _no_time(self, seconds):
        """Why a fit of so many seconds is not begun; None for the first one."""
        if self.interrupted:
            return "the search was interrupted"
        if not self.fitted or self.deadline is None:
            return None
        left = self.deadline - perf_counter()
        if seconds <= left:
            return None
        return f"{seconds:.2g} s or more, and {max(left, 0):.2g} s were left"

    def _try(self, name, estimator):
        """A candidate, or None where it cannot be fitted and why is noted."""
        try:
            candidate = self._fit(name, estimator)
        except KeyboardInterrupt:
            if not self.fitted:
                raise
            self.interrupted = True
            self._leave_out([name], "the search was interrupted")
            return None
        except ValueError as error:
            self.failure = self.failure or error
            self._leave_out([name], f"it could not be fitted. {error}")
            return None
        self.interrupted = candidate.estimator.interrupted_
        return candidate

    def _fit(self, name, estimator):
        began = perf_counter()
        with warnings.catch_warnings():
            # Said once, of the teacher by its name.
            warnings.simplefilter("ignore", DoubtfulTeacherWarning)
            training = self.training
            estimator.fit(
                training.X,
                training.y,
                teacher_scores=self.teacher_scores,
                X_unlabelled=self.X_unlabelled,
                **training.weights,
            )
        seconds = perf_counter() - began
        X = self.validation.X
        if self.max_cost == np.inf:
            stage_costs = _cost_if_known(estimator, self.unit, X)
        else:
            stage_costs = stage_cost(estimator, self.unit, X=X)
        scores = [
            _row_scores(self.validation, predicted, self.classes)
            for predicted in _staged(estimator, X)
        ]
        return _Candidate(
            name,
            estimator,
            seconds,
            stage_costs,
            np.array(scores),
        )


def _cheapest_as_good(scores, stage_costs, *, rows):
    """Position of the cheapest within one standard error of the best.

    Parameters
    ----------
    scores : ndarray of shape (n_candidates, n_rows)
    stage_costs : ndarray of shape (n_candidates,)
        NaN, which comes last, where it is not known.
    rows : _Rows
        What was scored.
    """
    best = np.lexsort((stage_costs, -rows.mean(scores)))[0]
    gap, error = rows.difference(scores[best], scores)
    (within,) = np.nonzero(gap <= error)
    return within[np.lexsort((gap[within], stage_costs[within]))[0]]


# Rivals


def _boosting(y, regression, seed):
    if not regression:
        return HistGradientBoostingClassifier(random_state=seed)
    boosting = HistGradientBoostingRegressor(random_state=seed)
    return boosting if y.ndim == 1 else MultiOutputRegressor(boosting)


def _label_network(estimator, stage, classes, *, own):
    """An unfitted network of the cost of a stage, to be fitted to labels."""
    macs = estimator.stage_costs_.cumulative_macs[stage - 1]
    # Nobody knows how to make other students of one's own, or what is not counted.
    student, n_estimators = estimator.student, stage
    if not (own or np.isnan(macs)):
        ensemble = estimator.ensemble_
        student = _factory_of_cost(ensemble.input_shape, ensemble.n_outputs, macs)
        n_estimators = 1
    return clone(estimator).set_params(
        student=student,
        n_estimators=n_estimators,
        label_mix=0.0,
        # To labels, "kl" is cross-entropy. Without a game, any student will do.
        objective="squared_error" if classes is None else "kl",
        edge_tol=np.inf,
    )


def _factory_of_cost(input_shape, n_outputs, macs):
    """Largest backbone of a single network of at most so many multiply-accumulates."""
    if len(input_shape) == 1:
        width = max(1, int(macs // (input_shape[0] + n_outputs)))
        return partial(MLP, hidden=(width,))
    factories, _ = _auto_students(input_shape)
    empty = ProgressiveEnsemble(input_shape, n_outputs)
    chosen = factories[0]
    for factory in factories[1:]:
        network = _sample(empty, factory, 1)
        counted, _ = costs._count_stages(network, network.example())
        if counted.macs[0] > macs:
            break
        chosen = factory
    return chosen


def _scores_of_labels(y, classes):
    """What a teacher would say that knew the labels."""
    if classes is None:
        return y
    return _log_smoothed(np.eye(len(classes))[np.searchsorted(classes, y)])


# Report


class _Model(NamedTuple):
    """One row of the table.

    ``predicted`` holds probabilities or targets of the test rows, ``cost`` is NaN where
    it is not known, and ``predict`` None where there is none.
    """

    name: str
    predict: object
    predicted: np.ndarray
    cost: float

    @classmethod
    def of(cls, name, estimator, X, cost):
        method = "predict_proba" if is_classifier(estimator) else "predict"
        return cls(name, estimator.predict, getattr(estimator, method)(X), cost)


def _stage_name(stage):
    return f"stage {stage}"


def _staged(estimator, X):
    method = "predict_proba" if is_classifier(estimator) else "predict"
    return getattr(estimator, f"staged_{method}")(X)


def _cost_of_teacher(teacher_costs, unit):
    known = None if callable(unit) else getattr(teacher_costs, unit, None)
    return np.nan if known is None else known


def _row_scores(rows, predicted, classes):
    """One number per row, the weighted mean of which is the accuracy or R^2."""
    y = rows.y
    if classes is not None:
        return (classes[predicted.argmax(axis=1)] == y).astype(np.float64)
    y, predicted = y.reshape(len(y), -1), predicted.reshape(len(y), -1)
    centred = y - np.average(y, axis=0, weights=rows.weight)
    variance = np.average(centred**2, axis=0, weights=rows.weight)
    return 1 - ((y - predicted) ** 2 / variance).mean(axis=1)


def _roc_auc(rows, proba, classes):
    """Area under the curve, of each class against the rest; NaN if one has no row."""
    if not np.array_equal(np.unique(rows.y), classes) or len(classes) < 2:
        return np.nan
    if len(classes) == 2:
        return roc_auc_score(rows.y == classes[1], proba[:, 1], **rows.weights)
    return np.mean(
        [
            roc_auc_score(rows.y == label, column, **rows.weights)
            for label, column in zip(classes, proba.T, strict=True)
        ]
    )


def _share_of_first(values):
    """Values as a share of that of the teacher; a share of nothing is not known."""
    return values / values[0] if values[0] > 0 else np.full(len(values), np.nan)


def _seconds(models, X):
    """Median seconds of a row alone and of one in a batch, shape (n_models, 2)."""
    alone = {"batch_size": 1, "n_warmup": 5, "n_repeats": 50}
    batch_size = min(_BATCH_SIZE, _num_samples(X))
    in_batch = {"batch_size": batch_size, "n_warmup": 1, "n_repeats": 7}
    # Each in a loop of its own, as where it is used: what a large model leaves in the
    # caches would slow down a small one.
    seconds = np.array(
        [
            [
                np.nan
                if model.predict is None
                else measure_latency(model.predict, X, n_threads=1, **options).median
                for options in (alone, in_batch)
            ]
            for model in models
        ]
    )
    stages = [i for i, model in enumerate(models) if model.name.startswith("stage ")]
    # More stages are not faster; what the clock says otherwise is noise.
    seconds[stages] = np.maximum.accumulate(seconds[stages])
    return seconds


def _score_name(table):
    return "accuracy" if "accuracy" in table else "r2"


def _table(models, row_scores, seconds, rows, classes, unit, price_per_hour):
    score = "r2" if classes is None else "accuracy"
    means, errors = rows.difference(row_scores, 0.0)
    table = {
        "name": np.array([model.name for model in models]),
        score: means,
        f"{score}_se": errors,
    }
    y, weights = rows.y, rows.weights
    predicted = [model.predicted for model in models]
    if classes is None:
        table["rmse"] = np.array(
            [root_mean_squared_error(y, values, **weights) for values in predicted]
        )
    else:
        table["roc_auc"] = np.array([_roc_auc(rows, p, classes) for p in predicted])
        table["log_loss"] = np.array(
            [log_loss(y, p, labels=classes, **weights) for p in predicted]
        )
        table["calibration_error"] = np.array(
            [calibration_error(y, p, classes=classes, **weights) for p in predicted]
        )
    table["retention"] = _share_of_first(means)
    if classes is not None:
        table["roc_auc_retention"] = _share_of_first(2 * table["roc_auc"] - 1)
    cost = unit if isinstance(unit, str) else "cost"
    table[cost] = np.array([model.cost for model in models], dtype=np.float64)
    table["microseconds"], table["microseconds_batch"] = 1e6 * seconds.T
    if price_per_hour is not None:
        # A million rows take as many seconds as one takes microseconds.
        table["price_per_million"] = table["microseconds_batch"] * price_per_hour / 3600
    return table


def _advice(names, row_scores, seconds, stage, *, rows):
    """What the figures say, one finding a line."""
    students = names.index(_stage_name(stage))

    def against(name):
        """How the students compare: words, and whether they are better or worse."""
        other = names.index(name)
        gap, error = rows.difference(row_scores[students], row_scores[other])
        figures = f"{abs(gap):.3f} +- {error:.3f}"
        if gap > 2 * error:
            return f"worse than the students by {figures}", 1
        if gap < -2 * error:
            return f"better than the students by {figures}", -1
        return f"as good as the students for all that can be told ({figures})", 0

    def slowness(name):
        """How many times the seconds of the students, alone and in a batch."""
        return seconds[names.index(name)] / seconds[students]

    found, against_it = [], []
    words, sign = against("teacher")
    found.append(f"The teacher is {words}.")
    # False where its time is not known.
    if sign <= 0 and (slowness("teacher") <= 1).all():
        against_it.append(sign)
        found[-1] += " It is no slower, either: use the teacher itself."
    if _BOOSTING in names:
        words, sign = against(_BOOSTING)
        found.append(f"Gradient boosting is {words}.")
        if sign <= 0 and (slowness(_BOOSTING) <= 1).all():
            against_it.append(sign)
            found[-1] += " It is no slower, either: use it instead."
        elif sign <= 0:
            alone, in_batch = slowness(_BOOSTING)
            found[-1] += (
                f" A row takes {alone:.3g} times as long, and {in_batch:.3g} times in "
                "batches: use it instead where that does not matter."
            )
        gap, error = rows.difference(
            row_scores[names.index(_BOOSTING)], row_scores[names.index("teacher")]
        )
        if gap > 2 * error:
            found.append(
                f"Gradient boosting is better than the teacher by {gap:.3f} +- "
                f"{error:.3f}: it is the one to distil."
            )
    words, sign = against(_LABELS)
    found.append(f"A network of the same cost, fitted to the labels alone, is {words}.")
    if sign <= 0:
        against_it.append(sign)
        found[-1] += " The teacher adds nothing that shows: train that instead."
    if not against_it:
        verdict = "Distilling is worth it."
    elif min(against_it) < 0:
        verdict = "Distilling is not worth it."
    else:
        verdict = "Nothing shows that distilling is worth it."
    return "\n".join([verdict, *found])


def _column(name, values):
    """Cells of a column of the printed table, of equal width."""
    style = _STYLES.get(name, ".4g")
    cells = [_HEADERS.get(name, name)]
    if name == "name":
        cells += values.tolist()
    else:
        cells += ["-" if np.isnan(value) else f"{value:{style}}" for value in values]
    width = max(map(len, cells))
    return [
        cell.ljust(width) if name == "name" else cell.rjust(width + 1) for cell in cells
    ]
