"""A fit that was killed goes on, and gives the bits of one that was not."""

import signal
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, make_regression
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

from common import SMALL
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting import _loop
from skbdistil._boosting._checkpoint import Checkpoint
from skbdistil.exceptions import InvalidFileError
from skbdistil.model_selection import HalvingStagedSearchCV
from skbdistil.persistence import load, save
from skbdistil.students import MLP, ConvNet2d

X, y = (part[:80] for part in load_digits(return_X_y=True))
TEACHER = DecisionTreeClassifier(max_depth=4, random_state=0)
SETTINGS = {**SMALL, "n_estimators": 3, "edge_tol": np.inf}


class Killed(BaseException):
    """What ends a fit like a signal: nothing may catch it."""


def distilled(**params):
    return BDistilClassifier(TEACHER, **{**SETTINGS, **params})


def bits(clf):
    """All that a fit has found out, as bytes and numbers."""
    weights = b"".join(
        tensor.numpy().tobytes() for tensor in clf.ensemble_.state_dict().values()
    )
    return (
        weights,
        clf.student_edges_.tolist(),
        clf.certificate_.bound.tolist(),
        clf.ladder_positions_,
        clf.training_history_,
    )


def fit_and_kill(monkeypatch, number, estimator, *args, **kwargs):
    """Begin a fit, and end it in the middle of a round."""
    play = _loop.Boosting._play

    def killed(self, position, seed):
        if position == number:
            raise Killed
        return play(self, position, seed)

    with monkeypatch.context() as patch:
        patch.setattr(_loop.Boosting, "_play", killed)
        with pytest.raises(Killed):
            estimator.fit(*args, **kwargs)


CASES = {
    "dense": {"connection": "dense"},
    "none": {"connection": None},
    "learned": {"connection": "wide", "combine": "learned"},
    "lateral": {"connection": "lateral", "student": partial(MLP, hidden=(4, 4, 4))},
    "sum": {"combine": "sum"},
    "early_stopping": {"early_stopping": True, "max_epochs": 2},
    "refine_final": {"refine": "final"},
    "refine_rounds": {"refine": "rounds"},
    "refine_and_stop": {"refine": "rounds", "early_stopping": True},
    "attempts": {
        "max_attempts": 2,
        "student": [partial(MLP, hidden=(n,)) for n in (2, 4)],
    },
    "float64": {"dtype": "float64"},
}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_fit_that_was_killed_in_a_round_gives_the_same_bits(
    case, number, tmp_path, monkeypatch
):
    expected = bits(distilled(**CASES[case]).fit(X, y))
    clf = distilled(checkpoint=tmp_path, **CASES[case])
    fit_and_kill(monkeypatch, number, clone(clf), X, y)
    assert bits(clf.fit(X, y)) == expected
    assert len(list(tmp_path.iterdir())) == 1


def test_rounds_that_are_done_are_not_played_again(tmp_path, monkeypatch):
    clf = distilled(checkpoint=str(tmp_path / "made" / "here")).fit(X, y)
    monkeypatch.setattr(_loop.Boosting, "_play", None)
    assert bits(clone(clf).fit(X, y)) == bits(clf)


def test_images_and_sparse_rows_go_on(tmp_path, monkeypatch):
    images = X.reshape(-1, 1, 8, 8)
    for rows, student in (
        (images, partial(ConvNet2d, channels=(4,))),
        (sparse.csr_array(X), partial(MLP, hidden=(4,))),
    ):
        clf = distilled(student=student)
        clf.set_params(teacher=None)
        expected = bits(clone(clf).fit(rows, y))
        clf.set_params(checkpoint=tmp_path)
        fit_and_kill(monkeypatch, 3, clone(clf), rows, y)
        assert bits(clf.fit(rows, y)) == expected


def test_regressor_with_weights_goes_on(tmp_path, monkeypatch):
    rows, targets = make_regression(60, 4, n_targets=2, noise=3, random_state=0)
    weight = np.random.RandomState(0).rand(60)
    reg = BDistilRegressor(Ridge(), **SETTINGS)
    expected = bits(clone(reg).fit(rows, targets, sample_weight=weight))
    reg.set_params(checkpoint=tmp_path)
    fit_and_kill(monkeypatch, 2, clone(reg), rows, targets, sample_weight=weight)
    assert bits(reg.fit(rows, targets, sample_weight=weight)) == expected


def test_warm_start_goes_on(tmp_path, monkeypatch):
    expected = bits(distilled(warm_start=True).fit(X, y))
    clf = distilled(warm_start=True, n_estimators=1, checkpoint=tmp_path).fit(X, y)
    clf.set_params(n_estimators=3, eta=clf.eta_)
    fit_and_kill(monkeypatch, 3, clf, X, y)
    assert len(clf) == 1
    clf.fit(X, y)
    other = distilled(warm_start=True, n_estimators=1).fit(X, y)
    other.set_params(n_estimators=3, eta=other.eta_).fit(X, y)
    assert bits(clf) == bits(other)
    assert bits(clf)[0][:100] == expected[0][:100]


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"n_estimators": 4},
        {"random_state": 1},
        {"teacher": DecisionTreeClassifier(max_depth=3, random_state=0)},
        {"class_weight": "balanced"},
        {"label_mix": 0.5},
    ],
    ids=str,
)
def test_other_fit_does_not_go_on_with_what_is_there(change, tmp_path):
    distilled(checkpoint=tmp_path).fit(X, y)
    clf = distilled(checkpoint=tmp_path).set_params(**change).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 2
    assert bits(clf) == bits(distilled().set_params(**change).fit(X, y))


def test_one_other_number_in_a_row_is_another_fit(tmp_path):
    distilled(checkpoint=tmp_path).fit(X, y)
    rows = X.copy()
    rows[-1, -1] += 1e-3
    # The tree does not look at it.
    distilled(checkpoint=tmp_path).fit(rows, y)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", [{"verbose": 1}, {"n_stages": 2}], ids=str)
def test_parameter_without_effect_on_students_goes_on(change, tmp_path, capsys):
    distilled(checkpoint=tmp_path).fit(X, y)
    distilled(checkpoint=tmp_path, **change).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 1
    assert ("3 round(s) of 3 found in" in capsys.readouterr().out) == (
        "verbose" in change
    )


def test_fits_of_a_search_share_a_folder(tmp_path, monkeypatch):
    grid = {"learning_rate": [0.01, 0.02]}
    clf = distilled(n_estimators=1, checkpoint=tmp_path)
    search = GridSearchCV(clf, grid, cv=2, refit=False).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(_loop.Boosting, "_play", None)
    again = clone(search).fit(X, y)
    assert (
        again.cv_results_["mean_test_score"].tolist()
        == search.cv_results_["mean_test_score"].tolist()
    )


def test_rungs_of_a_search_play_no_further_than_they_should(tmp_path):
    grid = {"learning_rate": [0.01, 0.02, 0.03]}

    def searched(checkpoint, min_rounds):
        search = HalvingStagedSearchCV(
            distilled(checkpoint=checkpoint),
            grid,
            cv=2,
            factor=3,
            min_rounds=min_rounds,
            refit=False,
        )
        return search.fit(X, y).cv_results_["mean_test_score"].tolist()

    searched(tmp_path, 2)
    assert searched(tmp_path, 1) == searched(None, 1)


class Projected(MLP):
    """Computes with numbers that are not in its state."""

    def __init__(self, input_shape):
        super().__init__(input_shape, hidden=(4,))
        self.weights = torch.randn(len(X[0]), len(X[0]))

    def forward(self, x):
        return super().forward(x @ self.weights)


def test_student_that_its_weights_do_not_make_again_raises(tmp_path):
    clf = distilled(student=Projected, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="in parameters and persistent buffers"):
        clf.fit(X, y)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_going_on_keeps_no_student_without_its_weights(
    tmp_path, monkeypatch
):
    clf = distilled(checkpoint=tmp_path)
    fit_and_kill(monkeypatch, 3, clone(clf), X, y)
    loaded = torch.nn.Module.load_state_dict
    states = []

    def interrupted(module, state, *args, **kwargs):
        states.append(state)
        if len(states) == 2:
            raise KeyboardInterrupt
        return loaded(module, state, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "load_state_dict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clone(clf).fit(X, y)
    assert bits(clf.fit(X, y)) == bits(distilled().fit(X, y))


@pytest.mark.parametrize("task_name", ["round", "epoch"])
def test_round_that_a_callback_has_cut_short_is_not_kept(task_name, tmp_path):
    pytest.importorskip("sklearn.callback", reason="new in scikit-learn 1.9")

    class Stopping:
        def setup(self, estimator, context):
            pass

        teardown = on_fit_task_begin = setup

        def on_fit_task_end(self, estimator, context):
            if context.task_name != task_name:
                return False
            task = context if task_name == "round" else context.parent.parent
            return task.task_id == 1

    clf = distilled(checkpoint=tmp_path)
    with pytest.warns(RuntimeWarning, match="has cut round 2 of BDistilClassifier"):
        clone(clf).set_callbacks(Stopping()).fit(X, y)
    (path,) = tmp_path.iterdir()
    assert len(Checkpoint(tmp_path, path.stem).read()["rounds"]) == 1
    assert bits(clf.fit(X, y)) == bits(distilled().fit(X, y))


def test_damaged_file_raises_and_says_what_to_do(tmp_path):
    clf = distilled(checkpoint=tmp_path).fit(X, y)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InvalidFileError, match=r"is damaged\. Remove it to begin anew"):
        clone(clf).fit(X, y)


def test_file_that_would_run_code_is_not_loaded(tmp_path):
    clf = distilled(checkpoint=tmp_path).fit(X, y)
    (path,) = tmp_path.iterdir()
    torch.save({"rounds": partial(print, "run")}, path)
    with pytest.raises(InvalidFileError, match="is damaged"):
        clone(clf).fit(X, y)


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_random_state_that_is_no_int_raises(random_state, tmp_path):
    with pytest.raises(ValueError, match="'random_state' of BDistilClassifier must be"):
        distilled(checkpoint=tmp_path, random_state=random_state).fit(X, y)


def test_file_in_place_of_a_folder_raises(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ValueError, match="must be a folder"):
        distilled(checkpoint=path).fit(X, y)
    assert path.read_text() == "precious"


def test_joint_training_without_rounds_raises(tmp_path):
    with pytest.raises(ValueError, match="has no rounds"):
        distilled(checkpoint=tmp_path, refine="only").fit(X, y)


def test_student_that_pickle_cannot_name_raises(tmp_path):
    clf = distilled(checkpoint=tmp_path, student=lambda shape: MLP(shape, hidden=(4,)))
    with pytest.raises(ValueError, match="must be such that pickle can write them"):
        clf.fit(X, y)


def test_folder_is_not_saved(tmp_path):
    clf = distilled(checkpoint=tmp_path / "rounds").fit(X, y)
    save(clf, tmp_path / "clf.skb")
    assert load(tmp_path / "clf.skb").checkpoint is None


SCRIPT = """
    import os, signal, sys
    from skbdistil._boosting import _checkpoint
    import test_checkpoint as t

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    when, folder = sys.argv[1:]
    write = _checkpoint.Checkpoint.write
    replace = os.replace

    def in_the_second_write(source, target):
        if os.path.exists(target):
            with open(source, "r+b") as file:
                file.truncate(100)
            kill()
        replace(source, target)

    def after_the_second_round(self, state):
        write(self, state)
        if len(state["rounds"]) == 2:
            kill()

    if when == "write":
        os.replace = in_the_second_write
    else:
        _checkpoint.Checkpoint.write = after_the_second_round
    t.distilled(checkpoint=folder).fit(t.X, t.y)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("when", "n_kept"), [("write", 1), ("round", 2)])
def test_killed_process_loses_the_round_under_way_and_no_other(
    when, n_kept, tmp_path, request
):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), when, str(tmp_path)],
        cwd=request.path.parent,
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    (path,) = tmp_path.glob("*.rounds")
    kept = Checkpoint(tmp_path, path.stem).read()["rounds"]
    assert len(kept) == n_kept
    found = distilled(checkpoint=tmp_path).fit(X, y)
    assert bits(found) == bits(distilled().fit(X, y))
