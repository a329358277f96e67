"""Callbacks of scikit-learn: what they hear of a fit, and what they may do to it."""

import pickle
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import SMALL, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting import _progress
from skbdistil.cascade import CascadeClassifier
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.exceptions import FitInterruptedWarning
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.model_selection import HalvingStagedSearchCV, StagedSearchCV
from skbdistil.persistence import load, save

callback = pytest.importorskip(
    "sklearn.callback", reason="callbacks are new in scikit-learn 1.9"
)

N_ROUNDS, N_EPOCHS = SMALL["n_estimators"], SMALL["max_epochs"]
GRID = {"learning_rate": [0.01, 0.02]}
EXIT_GRID = {"estimator__learning_rate": [0.01, 0.02]}


class Recording:
    """Records the tasks, and lets a function decide what to do at the end of each."""

    max_propagation_depth = None

    def __init__(self, at_end=None):
        self.at_end = at_end
        self.begun, self.ended, self.torn_down = [], [], 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        self.torn_down += 1

    def on_fit_task_begin(self, estimator, context):
        self.begun.append(context)

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.ended.append((context, fitted_estimator))
        return self.at_end is not None and self.at_end(context)

    def names(self):
        return Counter(context.task_name for context in self.begun)


def data(kind):
    if kind is BDistilClassifier:
        X, y = make_classification(
            60, 6, n_informative=5, n_redundant=0, random_state=0
        )
    else:
        X, y = make_regression(60, 6, random_state=0)
    return X.astype(np.float32), y


def made(kind=BDistilClassifier, **params):
    teacher = LogisticRegression() if kind is BDistilClassifier else LinearRegression()
    return kind(teacher, **{**SMALL, **params})


def at(name, number, act):
    """Act when the task of this name and number ends."""

    def at_end(context):
        if context.task_name == name and context.task_id == number:
            return act()

    return at_end


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise RuntimeError("the callback has failed")


def recorded(monitor, name):
    return [row["score"] for row in monitor.get_logs().data if row["task_name"] == name]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [BDistilClassifier, BDistilRegressor])
def test_scoring_monitor_records_the_staged_scores(kind, weighted):
    X, y = data(kind)
    weight = np.arange(1, len(y) + 1.0) if weighted else None
    metric = get_scorer("accuracy" if kind is BDistilClassifier else "r2")
    monitor = callback.ScoringMonitor(scoring=metric)
    model = made(kind).set_callbacks(monitor).fit(X, y, sample_weight=weight)
    expected = list(model.staged_score(X, y, sample_weight=weight))
    np.testing.assert_allclose(recorded(monitor, "round"), expected, rtol=1e-12)
    np.testing.assert_allclose(recorded(monitor, "fit"), expected[-1:], rtol=1e-12)


@pytest.mark.parametrize(
    ("refine", "n_refinements"), [("final", 1), ("rounds", N_ROUNDS), ("only", 1)]
)
def test_refinement_is_a_task_with_a_score(refine, n_refinements):
    X, y = data(BDistilRegressor)
    monitor = callback.ScoringMonitor(scoring=get_scorer("r2"))
    seen = Recording()
    model = made(BDistilRegressor, refine=refine, refine_epochs=1)
    model.set_callbacks(monitor, seen).fit(X, y)
    scores = recorded(monitor, "refinement")
    assert len(scores) == n_refinements
    assert scores[-1] == pytest.approx(model.score(X, y), rel=1e-12)
    assert seen.names()["round"] == (0 if refine == "only" else N_ROUNDS)
    fit = seen.begun[0]
    assert (
        fit.max_subtasks
        == {"final": N_ROUNDS + 1, "rounds": N_ROUNDS, "only": 1}[refine]
    )


def test_tasks_are_rounds_attempts_and_epochs():
    seen = Recording()
    made().set_callbacks(seen).fit(*data(BDistilClassifier))
    assert seen.names() == {
        "fit": 1,
        "round": N_ROUNDS,
        "attempt": N_ROUNDS,
        "epoch": N_ROUNDS * N_EPOCHS,
    }
    assert {c.task_name: c.parent and c.parent.task_name for c in seen.begun} == {
        "fit": None,
        "round": "fit",
        "attempt": "round",
        "epoch": "attempt",
    }
    assert len(seen.begun) == len(seen.ended)
    most = {c.task_name: c.max_subtasks for c in seen.begun}
    assert most["fit"] == N_ROUNDS
    assert most["attempt"] == N_EPOCHS
    assert most["epoch"] == 0


@pytest.mark.parametrize(("max_attempts", "most"), [(1, 1), (2, None)])
def test_number_of_attempts_is_said_where_it_is_known(max_attempts, most):
    seen = Recording()
    model = made(n_estimators=1, max_attempts=max_attempts).set_callbacks(seen)
    model.fit(*data(BDistilClassifier))
    assert [c.max_subtasks for c in seen.begun if c.task_name == "round"] == [most]


def test_warm_start_has_tasks_for_the_rounds_that_are_left():
    seen = Recording()
    X, y = data(BDistilClassifier)
    model = made(n_estimators=1, warm_start=True, eta=0.1).fit(X, y)
    model.set_params(n_estimators=3).set_callbacks(seen).fit(X, y)
    assert seen.begun[0].max_subtasks == seen.names()["round"] == 2


@pytest.mark.parametrize("refine", [None, "rounds"])
def test_estimator_given_to_a_callback_is_a_prefix_of_its_own(refine):
    X, y = data(BDistilClassifier)
    seen = Recording()
    model = made(refine=refine, refine_epochs=1).set_callbacks(seen).fit(X, y)
    given = [found for task, found in seen.ended if task.task_name == "round"]
    assert [len(prefix) for prefix in given] == [1, 2, 3]
    for k, prefix in enumerate(given, 1):
        costs = [found.stage_costs_.cumulative_macs for found in (prefix, model[:k])]
        np.testing.assert_array_equal(*costs)
        same = np.array_equal(prefix.predict_proba(X), model[:k].predict_proba(X))
        # Later refinements change the students of the fit, and not these.
        assert same == (refine is None or k == 3)
    epochs = [found for task, found in seen.ended if task.task_name == "epoch"]
    assert set(epochs) == {None}


@pytest.mark.parametrize("options", [{}, {"refine": "final", "refine_epochs": 1}])
def test_callbacks_leave_the_students_as_they_are(options):
    X, y = data(BDistilClassifier)
    model = made(**options).fit(X, y)
    other = made(**options).set_callbacks(Recording()).fit(X, y)
    assert student_bits(model) == student_bits(other)


def test_callback_may_end_the_rounds():
    seen = Recording(at("round", 1, lambda: True))
    model = made().set_callbacks(seen).fit(*data(BDistilClassifier))
    assert model.n_estimators_ == 2
    assert not model.interrupted_


def test_callback_may_end_the_epochs():
    seen = Recording(at("epoch", 0, lambda: True))
    model = made().set_callbacks(seen).fit(*data(BDistilClassifier))
    assert [len(history) for history in model.training_history_] == [1] * N_ROUNDS


@pytest.mark.parametrize("name", ["round", "attempt", "epoch"])
def test_failing_callback_leaves_an_earlier_fit(name):
    X, y = data(BDistilClassifier)
    model = made().fit(X, y)
    before = student_bits(model)
    seen = Recording(at(name, 0, fail))
    with pytest.raises(RuntimeError, match="callback has failed"):
        model.set_params(random_state=1).set_callbacks(seen).fit(X, y)
    assert student_bits(model) == before
    assert seen.torn_down == 1
    assert model.set_callbacks().fit(X, y).n_estimators_ == N_ROUNDS


def test_callback_that_fails_after_the_fit_takes_nothing_from_it():
    X, y = data(BDistilClassifier)
    model = made().set_callbacks(Recording(at("fit", 0, fail)))
    with pytest.raises(RuntimeError, match="callback has failed"):
        model.fit(X, y)
    assert model.n_estimators_ == N_ROUNDS


@pytest.mark.parametrize("name", ["round", "epoch"])
def test_interrupt_in_a_callback_keeps_the_finished_students(name):
    n_rounds = 0

    def at_end(context):
        nonlocal n_rounds
        n_rounds += context.task_name == "round"
        in_round_2 = n_rounds == (2 if name == "round" else 1)
        if context.task_name == name and in_round_2:
            raise KeyboardInterrupt

    model = made().set_callbacks(Recording(at_end))
    with pytest.warns(FitInterruptedWarning, match="are kept"):
        model.fit(*data(BDistilClassifier))
    assert model.interrupted_
    assert model.n_estimators_ == (2 if name == "round" else 1)


@pytest.mark.parametrize(
    ("outer", "n_fits"),
    [
        (lambda: make_pipeline(StandardScaler(), made()), 1),
        (lambda: GridSearchCV(made(), GRID, cv=2), 5),
        (lambda: StagedSearchCV(made(), GRID, cv=2), 5),
        (lambda: HalvingStagedSearchCV(made(), GRID, cv=2, factor=2), 5),
        (lambda: EarlyExitClassifier(made(), cv=0.5), 1),
        (lambda: EarlyExitClassifier(made(), cv=2), 3),
        (lambda: GridSearchCV(EarlyExitClassifier(made()), EXIT_GRID, cv=2), 5),
        (lambda: CascadeClassifier([[made(), made()], made()], rule="score"), 3),
    ],
    ids=["pipeline", "grid", "staged", "halving", "exit", "folds", "exits", "cascade"],
)
def test_callbacks_of_a_meta_estimator_see_the_rounds(outer, n_fits):
    seen = Recording()
    model = outer().set_callbacks(seen)
    with warnings.catch_warnings():
        # Such as that callbacks are not supported.
        warnings.simplefilter("error", UserWarning)
        model.fit(*data(BDistilClassifier))
    fits = [
        c
        for c in seen.begun
        if c.task_name == "fit" and c.estimator_name == "BDistilClassifier"
    ]
    assert len({id(c) for c in fits}) >= n_fits
    rounds = [c for c in seen.begun if c.task_name == "round"]
    assert {c.parent.estimator_name for c in rounds} == {"BDistilClassifier"}
    assert {_root(c).estimator_name for c in rounds} == {type(model).__name__}
    assert len(seen.begun) == len(seen.ended)
    assert seen.torn_down == 1


@pytest.mark.parametrize("outer", [EarlyExitRegressor, SplitConformalRegressor])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_callbacks_of_a_calibrated_regressor_see_its_fit_and_its_score(
    outer, is_frozen
):
    X, y = data(BDistilRegressor)
    inner, params = made(BDistilRegressor), {}
    if is_frozen:
        inner = FrozenEstimator(inner.fit(X, y))
    if outer is EarlyExitRegressor:
        params["tolerance"] = 1e9
    monitor, seen = callback.ScoringMonitor(scoring=get_scorer("r2")), Recording()
    model = outer(inner, random_state=0, **params).set_callbacks(monitor, seen)
    model.fit(X, y)
    assert recorded(monitor, "fit") == [pytest.approx(model.score(X, y), rel=1e-12)]
    assert seen.names()["round"] == (0 if is_frozen else N_ROUNDS)
    assert len(seen.begun) == len(seen.ended)


@pytest.mark.parametrize(
    ("outer", "n_fits"),
    [
        (lambda inner: make_pipeline(StandardScaler(), inner), 1),
        (lambda inner: GridSearchCV(inner, GRID, cv=2), 5),
        (lambda inner: StagedSearchCV(inner, GRID, cv=2), 5),
    ],
    ids=["pipeline", "grid", "staged"],
)
def test_scoring_monitor_of_an_inner_estimator_records_all_fits(outer, n_fits):
    monitor = callback.ScoringMonitor(scoring=get_scorer("accuracy"))
    outer(made().set_callbacks(monitor)).fit(*data(BDistilClassifier))
    rows = [row for log in monitor.get_logs(select="all") for row in log.data]
    names = Counter(row["task_name"] for row in rows)
    assert names == {"round": n_fits * N_ROUNDS, "fit": n_fits}
    assert all(0 <= row["score"] <= 1 for row in rows)


def _root(context):
    while context.parent is not None:
        context = context.parent
    return context


def test_halving_search_has_a_task_for_each_rung():
    seen = Recording()
    grid = {"learning_rate": [0.01, 0.02, 0.03, 0.04]}
    search = HalvingStagedSearchCV(made(n_estimators=4), grid, cv=2, factor=2)
    search.set_callbacks(seen).fit(*data(BDistilClassifier))
    rungs = [c for c in seen.begun if c.task_name == "rung"]
    assert [c.max_subtasks for c in rungs] == [2 * n for n in search.n_candidates_]
    search_task = next(c for c in seen.begun if c.task_name == "search")
    assert search_task.max_subtasks == len(rungs) > 1


def test_halving_search_without_refit_has_no_task_for_it():
    seen = Recording()
    search = HalvingStagedSearchCV(made(), GRID, cv=2, refit=False)
    search.set_callbacks(seen).fit(*data(BDistilClassifier))
    assert seen.begun[0].max_subtasks == 1
    assert seen.names()["refit-with-best-params"] == 0


def test_callbacks_are_cloned_and_pickled_and_not_saved(tmp_path):
    monitor = callback.ScoringMonitor(scoring="accuracy")
    X, y = data(BDistilClassifier)
    model = made().set_callbacks(monitor).fit(X, y)
    assert clone(model)._skl_callbacks == [monitor]
    unpickled = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(unpickled.predict(X), model.predict(X))
    save(model, tmp_path / "model")
    assert not hasattr(load(tmp_path / "model"), "_skl_callbacks")


@pytest.mark.parametrize("with_bar", [False, True])
def test_verbose_draws_no_second_bar(with_bar, monkeypatch):
    bars = []

    class Bar:
        write = staticmethod(lambda line: None)

        def __init__(self, **options):
            bars.append(self)

        reset = update = close = lambda self: None

    class Drawing(Recording, callback.ProgressBar):
        pass

    monkeypatch.setattr(_progress, "tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model = made(verbose=1).set_callbacks(Drawing() if with_bar else Recording())
    model.fit(*data(BDistilClassifier))
    assert len(bars) == (0 if with_bar else N_ROUNDS)
