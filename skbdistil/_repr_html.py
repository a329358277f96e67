"""How a distilled ensemble looks in a notebook."""

from functools import partial

import numpy as np

from skbdistil._sklearn_compat import _is_fitted, _VisualBlock


def visual_block(estimator):
    """Teacher and students, with their costs where they are known.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor

    Returns
    -------
    block : object
        From which scikit-learn draws its diagram.
    """
    teacher = estimator.teacher
    if teacher is None:
        teacher = _box("default", "Extremely randomized trees, fitted to X and y")
    elif not hasattr(teacher, "get_params"):
        teacher = _box(_name(teacher), teacher)
    what = "Teacher"
    if _is_fitted(estimator):
        if estimator.teacher_costs_ is not None:
            what += f": {_amount(*estimator.teacher_costs_[:2])}"
        costs = estimator.stage_costs_
        total = _amount(costs.macs.sum(), costs.parameters.sum())
        used = ""
        if estimator.n_stages in range(1, len(costs)):
            used = f", of which the first {estimator.n_stages} predict"
        label = f"{len(costs)} student(s){used}: {total}"
        students = [
            _box(f"{number}: {_number(macs)} MACs", student)
            for number, (student, macs) in enumerate(
                zip(estimator.ensemble_.students, costs.macs, strict=True), start=1
            )
        ]
    else:
        label = f"At most {estimator.n_estimators} student(s)"
        students = [_box(_name(estimator.student), estimator.student)]
    return _VisualBlock(
        "serial",
        [
            _VisualBlock("serial", [teacher], dash_wrapped=False),
            _VisualBlock("parallel", students, dash_wrapped=False),
        ],
        names=[what, label],
        dash_wrapped=False,
    )


def _box(label, details):
    return _VisualBlock("single", None, names=label, name_details=str(details))


def _amount(macs, parameters):
    return f"{_number(macs)} multiply-accumulates (MACs), {parameters:,} parameters"


def _number(macs):
    """A count, of which only some may be known."""
    if macs is None or np.isnan(macs):
        return "unknown"
    return f"{int(macs):,}"


def _name(obj):
    """Name of a class, a factory or an instance; a word stands for itself."""
    if isinstance(obj, str):
        return obj
    if isinstance(obj, list):
        return ", ".join(_name(item) for item in obj)
    if isinstance(obj, partial):
        obj = obj.func
    return getattr(obj, "__name__", type(obj).__name__)
