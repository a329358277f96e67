"""What is known of a fitted estimator, on one page, for those who will run it."""

import hashlib
import platform
import re
from functools import partial
from html import escape
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import root_mean_squared_error
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import Dataset

from skbdistil import __version__
from skbdistil._arrays import from_torch, update_digest
from skbdistil._protocol import StagedEstimator
from skbdistil._repr_html import _name, _number
from skbdistil.metrics import calibration_error
from skbdistil.stages import _wrapped_estimator
from skbdistil.teachers import TorchTeacher

__all__ = ["ModelCard", "Section", "model_card"]

_UNKNOWN = "unknown"

# Names of classes or features that are written out.
_MAX_NAMES = 20

# Intervals that are measured hold this share of the targets.
_ALPHA = 0.1

_PACKAGES = ("torch", "scikit-learn", "skorch", "numpy")

_TEACHER_HAD_SEEN = {
    "in-sample": "the rows that it was fitted to",
    "out-of-fold": "out of fold",
    "unknown": f"it came trained; {_UNKNOWN} whether it had seen these rows",
    "mixed": "teachers of different kinds",
}

_UNKNOWN_ROWS = (_UNKNOWN, _UNKNOWN, _UNKNOWN)

# What is lost with an answer, and what is asked of all answers together.
_LOSSES = {
    "agreement": "differs from that of {}",
    "accuracy": "is wrong where that of {} is right",
    "error": "is wrong",
}
_DROPS = {
    "agreement": "the share of rows whose label is not that of {}",
    "accuracy": "the loss of accuracy against {}",
}


class Section(NamedTuple):
    """Part of a :class:`ModelCard`, of strings only.

    Attributes
    ----------
    title : str
    header : tuple of str
        Names of the columns. Of two, where it is empty: what is known, and its value.
    rows : list of tuple of str
        Cells.
    notes : list of str
        Sentences below.

    Examples
    --------
    >>> from skbdistil.model_card import Section
    >>> Section("Versions", (), [("skbdistil", "0.2")], []).title
    'Versions'
    """

    title: str
    header: tuple
    rows: list
    notes: list


class ModelCard:
    """What is known of a fitted estimator. Made by :func:`model_card`.

    Text that comes from elsewhere, such as labels and names of columns, is escaped in
    Markdown as in HTML. Cards of the same estimator and rows are the same, to the
    character: there is no date in them.

    Parameters
    ----------
    title : str
    sections : list of :class:`Section`

    See Also
    --------
    model_card : Makes it.

    Examples
    --------
    >>> from skbdistil.model_card import ModelCard, Section
    >>> card = ModelCard("Iris", [Section("Versions", (), [("skbdistil", "0.2")], [])])
    >>> print(card.to_markdown())
    # Iris
    <BLANKLINE>
    ## Versions
    <BLANKLINE>
    - **skbdistil**: 0.2
    <BLANKLINE>
    """

    def __init__(self, title, sections):
        self.title = title
        self.sections = sections

    def to_markdown(self):
        """Card in Markdown, with tables as GitHub has them.

        Returns
        -------
        text : str
        """
        parts = [f"# {_markdown(self.title)}"]
        for section in self.sections:
            parts.append(f"## {_markdown(section.title)}")
            cells = [[_markdown(cell) for cell in row] for row in section.rows]
            if section.header:
                header = [_markdown(cell) for cell in section.header]
                lines = [header, ["---"] * len(header), *cells]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            elif cells:
                parts.append(
                    "\n".join(f"- **{what}**: {value}" for what, value in cells)
                )
            parts += [_markdown(note) for note in section.notes]
        return "\n\n".join(parts) + "\n"

    def to_html(self):
        """Card as a page of its own.

        Returns
        -------
        text : str
        """
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f"<title>{escape(self.title)}</title>\n{self._repr_html_()}</html>\n"
        )

    def _repr_html_(self):
        """The same in a notebook."""
        lines = ["<article>", f"<h1>{escape(self.title)}</h1>"]
        for section in self.sections:
            lines.append(f"<h2>{escape(section.title)}</h2>")
            if section.rows:
                lines.append("<table>")
                if section.header:
                    lines.append(_html_row("th", section.header))
                lines += [_html_row("td", row) for row in section.rows]
                lines.append("</table>")
            lines += [f"<p>{escape(note)}</p>" for note in section.notes]
        return "\n".join([*lines, "</article>", ""])

    def __repr__(self):
        return self.to_markdown()


def model_card(estimator, X=None, y=None, *, X_train=None):
    """Write down what is known of a fitted estimator.

    The card says what is predicted, who the teacher was and how good, what the students
    are, cost and promise, how rows leave early or go from one model to the next, and
    what was promised about it. With `X` and `y` it also says how well all stages and
    the whole do on these rows. What is not known is said to be unknown.

    Parameters
    ----------
    estimator : estimator
        Fitted :class:`~skbdistil.BDistilClassifier`,
        :class:`~skbdistil.BDistilRegressor` or
        :class:`~skbdistil.cascade.CascadeClassifier`. The first two may be inside
        :class:`~skbdistil.early_exit.EarlyExitClassifier`,
        :class:`~skbdistil.early_time.EarlyTimeClassifier`,
        :class:`~skbdistil.early_exit.EarlyExitRegressor` and
        :class:`~skbdistil.intervals.SplitConformalRegressor`. All may be the last step
        of a pipeline, frozen, or the best one of a search.

    X : array-like of shape (n_samples, ...), default=None
        Rows to judge it on, which had no part in any fit. None leaves this out. A final
        model is asked about those that are deferred.

    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Their labels or targets; needed with `X`.

    X_train : array-like of shape (n_samples, ...), default=None
        Rows that it was fitted to, of which the card tells the number, the shape and a
        hash. An estimator keeps nothing of its rows, so that None is unknown.

    Returns
    -------
    card : ModelCard

    Raises
    ------
    TypeError
        If there is nothing in the estimator that the card is about.

    ValueError
        If one of `X` and `y` is missing, or they do not fit the estimator.

    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    See Also
    --------
    skbdistil.distillation.DistillationReport : Compares students with other models.
    skbdistil.export.to_onnx : Writes a card beside what is exported.

    Notes
    -----
    The hash of an array is the SHA-256 of its bytes, row after row:
    ``hashlib.sha256(np.ascontiguousarray(X))``. That of a frame is of the name and the
    values of one column after the other, and that of sparse rows of the three arrays of
    their compressed rows. Rows of a dataset are counted only.

    The idea is that of M. Mitchell et al., "Model Cards for Model Reporting", FAT*
    2019, arXiv:1810.03993. What it is meant for only you know: write it above the rest.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import train_test_split
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.model_card import model_card
    >>> X, X_test, y, y_test = train_test_split(
    ...     *load_iris(return_X_y=True), random_state=0
    ... )
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0).fit(X, y)
    >>> card = model_card(clf, X_test, y_test, X_train=X)
    >>> [section.title for section in card.sections]
    ['Task', 'Teacher', 'Students', 'Stages', 'Certificate', 'Measured: stages', \
'Data', 'Versions']
    """
    if (X is None) != (y is None):
        raise ValueError("'X' and 'y' are given together, or neither of them.")
    layers = _layers(estimator)
    final = layers[-1]
    described, measured = [], []
    rows = X
    for layer in layers:
        describe, measure = _parts_of(layer)
        described.append(describe(layer))
        if rows is not None and measure is not None:
            measured.append(measure(layer, rows, y))
        if isinstance(layer, Pipeline) and len(layer) > 1 and rows is not None:
            rows = layer[:-1].transform(rows)
    # From the students to what is around them.
    parts = [section for layer in described[::-1] for section in layer]
    title = " in ".join(type(layer).__name__ for layer in layers[::-1])
    return ModelCard(
        f"Model card: {title}",
        [
            _task(layers[0], final),
            *parts,
            *measured[::-1],
            _data(X_train, X),
            _versions(),
        ],
    )


def _layers(estimator):
    """The estimator, what is inside it, and so on, to that which is described."""
    layers = []
    while estimator is not None:
        layers.append(estimator)
        inner = _wrapped_estimator(estimator)
        estimator = getattr(estimator, "estimator_", None) if inner is None else inner
    final = layers[-1]
    check_is_fitted(final)
    # Exported stages are staged, too, and know nothing of their fit.
    is_known = isinstance(final, StagedEstimator) and hasattr(final, "certificate_")
    if not (is_known or hasattr(final, "tiers_")):
        where = "" if len(layers) == 1 else f" inside {type(layers[0]).__name__}"
        raise TypeError(
            "A model card is about a BDistilClassifier, a BDistilRegressor or a "
            "CascadeClassifier, or what is around one. Got "
            f"{type(final).__name__}{where} instead. Of exported stages, write the "
            "card of the estimator before it is exported, and pass it to to_onnx."
        )
    return layers


def _parts_of(layer):
    """Functions that describe an estimator without what is inside it, and judge it."""
    if isinstance(layer, Pipeline):
        return _transforms, None
    # These have all attributes of what is inside them.
    if _wrapped_estimator(layer) is not None:
        return lambda layer: [], None
    if isinstance(layer, StagedEstimator):
        return _students, _judged_stages
    if hasattr(layer, "tiers_"):
        return _tiers, _judged_tiers
    if hasattr(layer, "path_"):
        return _early_exit, _judged_early_exit
    if hasattr(layer, "residuals_"):
        return _intervals, _judged_intervals
    return _not_described, None


def _facts(title, facts, notes=()):
    return Section(title, (), [(what, str(value)) for what, value in facts], [*notes])


# What is described


def _task(outer, final):
    if is_classifier(outer):
        several = getattr(final, "multilabel_", False)
        what = "classification" + (" with several labels per row" if several else "")
        facts = [("Task", what), ("Classes", _listed(final.classes_.tolist()))]
    else:
        facts = [("Task", "regression"), ("Targets", final.ensemble_.n_outputs)]
    shape = getattr(final, "input_shape_", None)
    names = getattr(outer, "feature_names_in_", None)
    return _facts(
        "Task",
        [
            *facts,
            ("Features", getattr(outer, "n_features_in_", _UNKNOWN)),
            ("Names of the features", "none" if names is None else _listed(names)),
            (
                "Shape of a row, as students get it",
                _UNKNOWN if shape is None else shape,
            ),
        ],
    )


def _students(final):
    ensemble, costs = final.ensemble_, final.stage_costs_
    score = "Accuracy" if is_classifier(final) else "R^2"
    notes = []
    if final.interrupted_:
        notes.append(
            "The fit was interrupted: there are fewer students than were meant."
        )
    if len(costs) < final.n_estimators and not final.interrupted_:
        notes.append(
            f"The fit ended before its {final.n_estimators} rounds were played: there "
            "was no further weak learner, or rows held out got no better."
        )
    stages = zip(
        range(1, len(costs) + 1),
        ensemble.students,
        costs.macs,
        costs.cumulative_macs,
        costs.parameters,
        costs.cumulative("weight_bytes"),
        strict=True,
    )
    certificate = final.certificate_
    return [
        _facts(
            "Teacher",
            [
                ("Teacher", _teacher(final.teacher)),
                ("Rows that it was asked about", _number(final.teacher_calls_)),
                (f"{score} on the training rows", _teacher_score(final)),
                (
                    "Share of the labels in what students learnt",
                    f"{final.label_mix_:g}",
                ),
                ("Cost", _teacher_cost(final.teacher_costs_)),
            ],
        ),
        _facts(
            "Students",
            [
                ("Students", len(costs)),
                ("Stages that predict", final._n_stages_used()),
                ("Connection", _connection(final.connection_)),
                ("Combination", final.combine_),
                ("Objective", _one_line(final.objective_)),
                ("Refinement", final.refine or "none"),
                ("Step of the game, eta", f"{final.eta_:.4g}"),
                ("Epochs of a round, at most", final.max_epochs_),
                ("Rows per step", final.batch_size_),
                ("Transform of their own", _one_line(final.student_transform_)),
                ("Arithmetic", str(ensemble.dtype).removeprefix("torch.")),
                ("random_state", _one_line(final.random_state)),
            ],
            notes,
        ),
        Section(
            "Stages",
            ("stage", "student", "MACs", "MACs so far", "parameters", "bytes so far"),
            [
                (str(stage), _factory(student.factory), *map(_number, numbers))
                for stage, student, *numbers in stages
            ],
            ["MACs are multiply-accumulates per row; bytes are those of weights."],
        ),
        Section(
            "Certificate",
            ("stage", "bound", "potential", "actual", "mean", "edges"),
            [
                (
                    str(stage),
                    _number_4(bound.max()),
                    _number_4(potential.max()),
                    _number_4(actual.max()),
                    _number_4(mean.mean()),
                    f"{_number_4(edges.min())} to {_number_4(edges.max())}",
                )
                for stage, (bound, potential, actual, mean, edges) in enumerate(
                    zip(
                        certificate.bound,
                        certificate.potential,
                        certificate.actual,
                        certificate.mean,
                        final.student_edges_,
                        strict=True,
                    ),
                    start=1,
                )
            ],
            [
                "Largest deviation of a stage from what it was to learn, over the "
                "training rows and all outputs, as the game bounds it (bound, and "
                "potential, which needs no condition on the steps) and as it is "
                "(actual), and its mean. Edges of the student of the round, from the "
                "least to the largest output; a weak learner has none below "
                f"-{_number_4(final.edge_tol_ * final.teacher_bound_)}."
            ],
        ),
    ]


def _teacher(teacher):
    if teacher is None:
        return "default: extremely randomized trees, fitted to X and y"
    if isinstance(teacher, list | tuple):
        return ", ".join(map(_teacher, teacher))
    if isinstance(teacher, FrozenEstimator):
        return f"{_teacher(teacher.estimator)}, used as it was"
    if isinstance(teacher, TorchTeacher):
        return f"torch module {_name(teacher.module)}"
    if isinstance(teacher, str):
        return f"{_UNKNOWN}: its scores were given ({teacher})"
    if isinstance(teacher, Pipeline):
        return ", ".join(_name(step) for _, step in teacher.steps)
    return _name(teacher)


def _teacher_score(final):
    if final.teacher_score_ is None:
        return f"{_UNKNOWN}: there were no labels"
    return (
        f"{final.teacher_score_:.3f} ({_TEACHER_HAD_SEEN[final.teacher_score_kind_]})"
    )


def _teacher_cost(costs):
    if costs is None:
        return f"{_UNKNOWN}: only that of a torch teacher is counted"
    return f"{_number(costs.macs)} MACs, {_number(costs.parameters)} parameters"


def _connection(connection):
    if connection is None:
        return "none"
    return connection.__name__ if isinstance(connection, type) else repr(connection)


def _factory(factory):
    """A backbone and its parameters, such as ``MLP(hidden=(16,))``."""
    given = factory.keywords if isinstance(factory, partial) else {}
    # The repr of anything else may be another one each time.
    plain = [f"{name}={value}" for name, value in given.items() if _is_plain(value)]
    return f"{_name(factory)}({', '.join(plain)})"


def _is_plain(value):
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _transforms(pipeline):
    steps = [(name, type(step).__name__) for name, step in pipeline.steps[:-1]]
    if not steps:
        return []
    return [_facts("Transforms before", steps)]


def _not_described(layer):
    name = type(layer).__name__
    what = f"{name} is around this. What it does is {_UNKNOWN} to the card."
    return [Section(name, (), [], [what])]


def _early_exit(early):
    early._calibrated()
    path, point = early.path_, early.best_index_
    defers = early._defers()
    names = _exit_names(early)
    # All rows leave at the last one.
    thresholds = [*map(_number_4, early.thresholds_), "none"]
    rule = early.rule_ if isinstance(early.rule_, str) else _name(early.rule_)
    facts = [
        ("Rule", rule),
        ("Unit of cost", early.cost if isinstance(early.cost, str) else "of the user"),
        ("Mean cost on the calibration rows", _number_4(path.costs[point])),
        ("Mean loss on the calibration rows", _number_4(path.losses[point])),
    ]
    if hasattr(early, "stages_"):
        share = f"{early.earliness_:.1%}"
        facts.append(("Share of a series that is read, on these rows", share))
    if defers:
        facts.append(("Final model", _teacher_or_function(early.final)))
    if is_classifier(early):
        facts.append(("Temperatures", _listed(map(_number_4, early.temperatures_))))
        errors = early.calibration_errors_
        if errors is not None:
            before, after = (_listed(map(_number_4, stages)) for stages in errors)
            facts.append(("Calibration error before, by stage", before))
            facts.append(("Calibration error after, by stage", after))
    else:
        facts.append(("Tolerance", _listed(map(_number_4, early.tolerance_))))
    return [
        _facts("Early exit", facts, [_exit_promise(early, defers)]),
        Section(
            "Exits",
            ("stage", "threshold", "cost", "share of the calibration rows"),
            [
                (name, threshold, _number_4(cost), f"{share:.1%}")
                for name, threshold, cost, share in zip(
                    names, thresholds, early.costs_, path.exits[point], strict=True
                )
            ],
            [],
        ),
    ]


def _exit_names(early):
    """Name of each stage that rows leave at, the final model as the last."""
    n_stages = len(early.costs_)
    names = [str(stage) for stage in range(1, n_stages + 1)]
    # Those of students that read series step by step.
    for index, (stage, n_steps) in enumerate(getattr(early, "stages_", ())):
        names[index] = f"{stage}, after {n_steps} steps"
    if early._defers():
        names[-1] = "final model"
    return names


def _teacher_or_function(final):
    if final is None:
        return f"{_UNKNOWN}: it is no part of a file"
    return _teacher(final)


def _exit_promise(early, defers):
    """What was asked of the thresholds, and what is promised of them."""
    if defers:
        lost = _LOSSES[early.target].format("the final model")
        if early.risk == "selective":
            bounded = f"of the rows that students answer, the share whose answer {lost}"
        else:
            bounded = f"the share of rows that students answer and whose answer {lost}"
    elif is_classifier(early):
        last = "all students"
        if hasattr(early, "stages_"):
            last += f" after {early.stages_[-1, 1]} steps"
        bounded = _DROPS[early.target].format(last)
    else:
        bounded = "the share of predictions off by more than the tolerance"
    return _promise(early, bounded, getattr(early, early._allowed))


def _promise(calibrated, bounded, allowed):
    """Sentence on thresholds that were calibrated.

    Parameters
    ----------
    calibrated : estimator
        Early exit or cascade, with the parameters of the choice.
    bounded : str
        What is at most `allowed`.
    allowed : float
    """
    if calibrated.max_cost is not None:
        return (
            "Thresholds were chosen for a mean cost of at most "
            f"{calibrated.max_cost:g} on the calibration rows. Nothing is promised "
            "about other rows."
        )
    if calibrated.delta is None:
        return (
            f"Thresholds were chosen so that {bounded} is at most {allowed:g} on the "
            "calibration rows. Nothing is promised about other rows."
        )
    if calibrated.best_index_ == 0:
        return (
            f"That {bounded} is at most {allowed:g}, but for a probability of "
            f"{calibrated.delta:g}, could not be promised of any thresholds: no row "
            "leaves before the last stage."
        )
    return (
        f"It is promised that {bounded} is at most {allowed:g}. The promise may be "
        f"broken with a probability of {calibrated.delta:g} over the draw of the "
        "calibration rows, and holds as long as rows to come are drawn as these were."
    )


def _tiers(cascade):
    facts = [("Rule", cascade.rule_), ("Unit of cost", "of the user")]
    if cascade.costs is None:
        facts[1] = ("Unit of cost", "multiply-accumulates")
    promise = "The threshold was given, and nothing is promised of it."
    if cascade.path_ is not None:
        path, point = cascade.path_, cascade.best_index_
        facts.append(
            ("Mean cost on the calibration rows", _number_4(path.costs[point]))
        )
        facts.append(
            ("Mean loss on the calibration rows", _number_4(path.losses[point]))
        )
        bounded = _DROPS[cascade.target].format("the last tier")
        promise = _promise(cascade, bounded, cascade.max_drop)
    thresholds = [*map(_number_4, cascade.thresholds_), "none"]
    return [
        _facts("Cascade", facts, [promise]),
        Section(
            "Tiers",
            ("tier", "members", "threshold", "cost", "cost so far"),
            [
                (
                    str(tier),
                    ", ".join(map(_teacher, members)),
                    threshold,
                    _number_4(cost),
                    _number_4(total),
                )
                for tier, (members, threshold, cost, total) in enumerate(
                    zip(
                        cascade.tiers_,
                        thresholds,
                        cascade.tier_costs_,
                        cascade.costs_,
                        strict=True,
                    ),
                    start=1,
                )
            ],
            [],
        ),
    ]


def _intervals(conformal):
    n_samples, n_outputs = conformal.residuals_.shape
    needed = 1 / _ALPHA - 1
    widths = "infinite: there are too few calibration rows"
    if n_samples >= needed:
        widths = _listed(map(_number_4, conformal.half_widths(_ALPHA)))
    together = " Of several targets each is, by itself." if n_outputs > 1 else ""
    return [
        _facts(
            "Intervals",
            [
                ("Calibration rows", n_samples),
                (f"Half widths for alpha={_ALPHA:g}", widths),
            ],
            [
                "It is promised that a target is within its interval with a "
                "probability of at least 1 - alpha, over the draw of the calibration "
                f"rows and the new one, as long as they are drawn alike.{together}"
            ],
        )
    ]


# What is measured


def _judged_stages(final, X, y):
    scores = list(final.staged_score(X, y))
    n_samples = len(np.asarray(y))
    used = final._n_stages_used()
    stages = [str(stage) for stage in range(1, used + 1)]
    if not is_classifier(final):
        errors = [
            root_mean_squared_error(y, predicted)
            for predicted in final.staged_predict(X)
        ]
        rows = [
            (stage, f"{score:.4f}", _number_4(error))
            for stage, score, error in zip(stages, scores, errors, strict=True)
        ]
        return Section("Measured: stages", ("stage", "R^2", "RMSE"), rows, [])
    rows = [
        (stage, _share(score, n_samples))
        for stage, score in zip(stages, scores, strict=True)
    ]
    header = ("stage", "accuracy")
    if not final.multilabel_:
        header += ("calibration error",)
        rows = [
            (*row, _calibration(y, proba, final.classes_))
            for row, proba in zip(rows, final.staged_predict_proba(X), strict=True)
        ]
    return Section("Measured: stages", header, rows, [])


def _judged_early_exit(early, X, y):
    predicted, costs = early.predict_with_cost(X)
    stages = early.exit_stages(X)
    exits = [
        (f"Share that left at stage {name}", f"{np.mean(stages == stage):.1%}")
        for stage, name in enumerate(_exit_names(early), start=1)
    ]
    if early._defers():
        exits[-1] = ("Share that went to the final model", exits[-1][1])
    facts = [*_scored(early, X, y, predicted), ("Mean cost", _number_4(costs.mean()))]
    return _facts("Measured: early exit", [*facts, *exits])


def _judged_tiers(cascade, X, y):
    predicted, tiers = cascade.predict(X), cascade.exit_tiers(X)
    costs = cascade.costs_[tiers - 1]
    return _facts(
        "Measured: cascade",
        [
            *_scored(cascade, X, y, predicted),
            ("Mean cost", _number_4(costs.mean())),
            *(
                (f"Share that tier {tier} answered", f"{np.mean(tiers == tier):.1%}")
                for tier in range(1, len(cascade.tiers_) + 1)
            ),
        ],
    )


def _scored(estimator, X, y, predicted):
    """Facts on the predictions of a whole."""
    if not is_classifier(estimator):
        return [("RMSE", _number_4(root_mean_squared_error(y, predicted)))]
    y = np.asarray(y)
    facts = [("Accuracy", _share(np.mean(predicted == y), len(y)))]
    # With a final model, or members that vote, there are none.
    if hasattr(estimator, "predict_proba"):
        error = _calibration(y, estimator.predict_proba(X), estimator.classes_)
        facts.append(("Calibration error", error))
    return facts


def _judged_intervals(conformal, X, y):
    ends = conformal.predict_interval(X, _ALPHA)
    y = np.asarray(y).reshape(ends.shape[:-1])
    within = ((ends[..., 0] <= y) & (y <= ends[..., 1])).reshape(len(y), -1)
    shares = _listed(f"{share:.1%}" for share in within.mean(axis=0))
    return _facts(
        "Measured: intervals", [(f"Targets within, for alpha={_ALPHA:g}", shares)]
    )


def _share(share, n_samples):
    """A share of rows, and its standard error."""
    return f"{share:.4f} +- {np.sqrt(share * (1 - share) / n_samples):.4f}"


def _calibration(y, proba, classes):
    return f"{calibration_error(y, proba, classes=classes):.4f}"


# Data and versions


def _data(X_train, X):
    parts = [("Training", X_train), ("Measured", X)]
    rows = [(what, *_UNKNOWN_ROWS) for what, given in parts if given is None]
    rows += [(what, *_fingerprint(given)) for what, given in parts if given is not None]
    return Section(
        "Data",
        ("rows", "shape", "dtype", "SHA-256"),
        rows,
        ["+- is one standard error over the rows."] if X is not None else [],
    )


def _fingerprint(X):
    """Shape, dtype and hash of rows."""
    if isinstance(X, Dataset):
        return f"({len(X)}, ...)", _UNKNOWN, f"{_UNKNOWN}: rows of a dataset"
    digest = hashlib.sha256()
    if hasattr(X, "columns"):
        dtype = "frame"
        for name in X.columns:
            digest.update(str(name).encode())
            digest.update(_bytes(np.asarray(X[name])))
    elif sparse.issparse(X):
        X = X.tocsr()
        dtype = f"{X.dtype}, sparse"
        for part in (X.data, X.indices, X.indptr):
            update_digest(digest, part)
    else:
        X = np.asarray(from_torch(X))
        dtype = str(X.dtype)
        if X.dtype.hasobject:
            digest.update(_bytes(X))
        else:
            update_digest(digest, X)
    return str(tuple(map(int, X.shape))), dtype, digest.hexdigest()


def _bytes(array):
    """Bytes of an array; of objects those of their text, since theirs are addresses."""
    return repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()


def _versions():
    return _facts(
        "Versions",
        [
            ("skbdistil", __version__),
            *((name, version(name)) for name in _PACKAGES),
            ("Python", platform.python_version()),
        ],
        ["These are the versions that wrote this card. Those of the fit are not kept."],
    )


# Text


def _number_4(value):
    if np.isnan(value):
        return _UNKNOWN
    if np.isinf(value):
        return "infinite"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def _listed(values):
    values = [str(value) for value in values]
    more = len(values) - _MAX_NAMES
    text = ", ".join(values[:_MAX_NAMES])
    return f"{text} and {more} more" if more > 0 else text


def _one_line(value):
    return "none" if value is None else re.sub(r"\s+", " ", repr(value))


def _html_row(tag, cells):
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _markdown(text):
    """Text of which Markdown makes nothing but text."""
    line = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(line, quote=False))
