"""Arrays of all rows in files of a folder, and a fit that keeps them there."""

import errno
import pickle
from functools import partial
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from common import SMALL, raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor, _storage, _teacher_targets
from skbdistil._storage import IN_MEMORY, Storage, row_pieces
from skbdistil.model_selection import StagedSearchCV
from skbdistil.persistence import load, save
from skbdistil.students import MLP
from skbdistil.teachers import TorchTeacher

# Bytes of the largest array that is kept in memory here, and of a piece.
FEW = 256

X, y = (part[:80] for part in load_digits(return_X_y=True))
X = X.astype(np.float32)
SCORES = np.random.RandomState(0).normal(size=(80, 10)) + 2 * np.eye(10)[y]
TARGETS = X[:, 20:24] @ np.ones((4, 3)) + SCORES[:, :3]


@pytest.fixture
def maps(monkeypatch):
    """Maps that there are, after a reduction of what is kept in memory."""
    alive = WeakSet()
    mapped = Storage._mapped

    def recorded(self, n_bytes):
        memory = mapped(self, n_bytes)
        alive.add(memory)
        return memory

    monkeypatch.setattr(Storage, "_mapped", recorded)
    monkeypatch.setattr(_storage, "MAX_BYTES", FEW)
    monkeypatch.setattr(_teacher_targets, "MAX_BYTES", FEW)
    return alive


class Look(Callback):
    """Calls a function at the end of each epoch."""

    def __init__(self, function):
        self.function = function

    def on_epoch_end(self, net, **kwargs):
        self.function()


def looking(function):
    return NeuralNet(
        None, criterion=None, optimizer=torch.optim.AdamW, callbacks=[Look(function)]
    )


@given(st.integers(0, 40), st.integers(0, 70), st.sampled_from(["f4", "f8", "i8"]))
def test_pieces_cover_all_rows_in_order(n_rows, n_columns, dtype):
    array = np.zeros((n_rows, n_columns), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_storage, "MAX_BYTES", FEW)
        pieces = list(row_pieces(array))
    covered = np.concatenate([np.arange(n_rows)[rows] for rows in pieces])
    np.testing.assert_array_equal(covered, np.arange(n_rows))
    assert all(array[rows].nbytes <= FEW or len(array[rows]) == 1 for rows in pieces)


def test_operations_in_files_give_what_they_give_in_memory(tmp_path, maps):
    storage, rows = Storage(tmp_path), np.arange(60)[::3]
    pairs = [
        (storage.copy(SCORES.T, np.float32), SCORES.T.astype(np.float32)),
        (storage.take(SCORES, rows), SCORES[rows]),
        (storage.concatenate(iter([SCORES, X[:, :10]]), 160)[80:], X[:, :10]),
        (
            storage.map(lambda a, b: a[:, :9] + b[:, None], SCORES, y),
            SCORES[:, :9] + y[:, None],
        ),
    ]
    assert len(maps) == 4
    for found, expected in pairs:
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous
        assert found.flags.writeable
    tensor = storage.empty_tensor((30, 7), torch.bfloat16)
    assert tensor.shape == (30, 7)
    assert tensor.dtype == torch.bfloat16
    assert len(maps) == 5


def test_files_are_gone_with_their_arrays(tmp_path, maps):
    array = Storage(tmp_path).empty((100, 3), float)
    view = array[5:]
    del array
    assert len(maps) == 1
    del view
    assert not maps
    assert not any(tmp_path.iterdir())


def test_small_arrays_are_kept_in_memory(tmp_path, maps):
    storage = Storage(tmp_path)
    assert storage.empty((FEW // 8,), float).base is None
    assert IN_MEMORY.empty((FEW,), float).base is None
    assert not maps


def test_rows_of_other_shapes_raise():
    with raises("(10,)", "(64,)"):
        IN_MEMORY.concatenate([SCORES, X], 160)


@pytest.mark.parametrize(
    ("connection", "combine"),
    [(None, "mean"), ("dense", "learned"), ("wide", "sum"), ("lateral", "mean")],
)
@pytest.mark.parametrize(
    "params",
    [
        {"early_stopping": True, "refine": "final"},
        {"refine": "rounds", "label_mix": 0.3},
    ],
    ids=str,
)
def test_students_of_a_folder_are_those_of_memory(
    params, connection, combine, tmp_path, maps, monkeypatch
):
    student = partial(MLP, hidden=(4, 4))
    params = params | {"connection": connection, "combine": combine}
    clf = BDistilClassifier(
        "precomputed", **{**SMALL, **params, "student": student, "n_estimators": 2}
    )
    found = clone(clf).set_params(temp_folder=tmp_path).fit(X, y, teacher_scores=SCORES)
    # In one piece.
    monkeypatch.undo()
    clf.fit(X, y, teacher_scores=SCORES)
    assert student_bits(found) == student_bits(clf)
    assert found.teacher_score_ == clf.teacher_score_


MULTILABEL = make_multilabel_classification(80, 4, n_classes=6, random_state=0)
NET = nn.Linear(64, 10)
LABELS = np.array(["b", "a", *"cdefghij"])

TEACHERS = {
    "default": (BDistilClassifier(), (X, y)),
    "out of fold": (BDistilClassifier(KNeighborsClassifier(1)), (X[:60], y[:60] % 3)),
    "several": (BDistilClassifier([GaussianNB(), GaussianNB()]), (X, y)),
    "frozen": (
        BDistilClassifier(FrozenEstimator(DecisionTreeClassifier().fit(X, y))),
        (X, y),
    ),
    "module": (BDistilClassifier(TorchTeacher(NET, classes=LABELS)), (X, LABELS[y])),
    "single column": (
        BDistilClassifier(TorchTeacher(nn.Linear(64, 1), classes=[0, 1])),
        (X, y % 2),
    ),
    "labels": (
        BDistilClassifier(DecisionTreeClassifier(max_depth=3), early_stopping=True),
        MULTILABEL,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TEACHERS)
def test_scores_of_any_teacher_may_be_in_a_folder(case, tmp_path, maps, monkeypatch):
    clf, (rows, labels) = TEACHERS[case]
    clf = clone(clf).set_params(**{**SMALL, "n_estimators": 2})
    found = clone(clf).set_params(temp_folder=tmp_path).fit(rows, labels)
    monkeypatch.undo()
    clf.fit(rows, labels)
    assert student_bits(found) == student_bits(clf)
    assert found.teacher_score_ == clf.teacher_score_
    assert found.label_mix_ == clf.label_mix_


@pytest.mark.parametrize(
    "params", [{"early_stopping": True}, {"label_mix": 0.3, "verbose": 1}], ids=str
)
def test_regressor_of_a_folder_is_that_of_memory(params, tmp_path, maps):
    weight = np.arange(80) % 4
    reg = BDistilRegressor(LinearRegression(), **{**SMALL, **params})
    found = clone(reg).set_params(temp_folder=tmp_path)
    found.fit(X, TARGETS, sample_weight=weight)
    reg.fit(X, TARGETS, sample_weight=weight)
    assert student_bits(found) == student_bits(reg)
    np.testing.assert_array_equal(found.target_scale_, reg.target_scale_)


def test_scaling_and_score_in_pieces_are_those_in_one(tmp_path, maps, monkeypatch):
    reg = BDistilRegressor(LinearRegression(), **SMALL, temp_folder=tmp_path)
    weight = np.arange(80) % 4
    found = clone(reg).fit(X, TARGETS, sample_weight=weight)
    monkeypatch.undo()
    reg.fit(X, TARGETS, sample_weight=weight)
    for name in ("target_mean_", "target_scale_", "teacher_score_"):
        expected = getattr(reg, name)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12)


def test_rows_without_scores_and_unlabelled_rows_stay_what_they_are(
    tmp_path, maps, monkeypatch
):
    scores = SCORES.copy()
    scores[:60:7] = np.nan
    clf = BDistilClassifier("precomputed", **SMALL, label_mix=0.2)
    data = {"teacher_scores": scores, "X_unlabelled": X[60:]}
    found = clone(clf).set_params(temp_folder=tmp_path).fit(X[:60], y[:60], **data)
    monkeypatch.undo()
    clf.fit(X[:60], y[:60], **data)
    assert student_bits(found) == student_bits(clf)


def test_warm_start_and_checkpoint_go_on_in_a_folder(tmp_path, maps):
    files = tmp_path / "files"
    files.mkdir()
    clf = BDistilClassifier("precomputed", **SMALL, checkpoint=tmp_path / "rounds")
    clf.fit(X, y, teacher_scores=SCORES)
    # The rounds of a fit that kept all in memory are found.
    again = clone(clf).set_params(temp_folder=files).fit(X, y, teacher_scores=SCORES)
    assert student_bits(again) == student_bits(clf)
    assert len(list((tmp_path / "rounds").iterdir())) == 1
    more = {"warm_start": True, "n_estimators": 4, "checkpoint": None}
    for model in (clf, again):
        model.set_params(**more).fit(X, y, teacher_scores=SCORES)
    assert student_bits(again) == student_bits(clf)


def test_arrays_are_maps_while_fit_runs_and_none_are_left(tmp_path, maps):
    seen = []
    clf = BDistilClassifier(
        "precomputed",
        **SMALL,
        connection="dense",
        net=looking(lambda: seen.append(len(maps))),
        temp_folder=tmp_path,
    )
    clf.fit(X, y, teacher_scores=SCORES)
    # Scores of the teacher and the residuals, and later what students have computed.
    assert seen == [2, 2, 3, 3, 4, 4]
    assert not maps
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_files_are_in_the_folder(tmp_path, maps):
    seen = []

    def look():
        lines = Path("/proc/self/maps").read_text().splitlines()
        seen.append(sum(str(tmp_path) in line for line in lines))

    BDistilClassifier(
        "precomputed", **SMALL, net=looking(look), temp_folder=str(tmp_path)
    ).fit(X, y, teacher_scores=SCORES)
    assert min(seen) >= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_fit_that_fails_leaves_no_files(error, tmp_path, maps):
    def fail():
        assert maps
        raise error

    clf = BDistilClassifier(
        "precomputed", **SMALL, net=looking(fail), temp_folder=tmp_path
    )
    try:
        clf.fit(X, y, teacher_scores=SCORES)
    except error:
        pass
    assert not hasattr(clf, "ensemble_")
    assert not maps
    assert not any(tmp_path.iterdir())


def test_full_disk_raises_and_keeps_what_was_fitted(tmp_path, maps, monkeypatch):
    clf = BDistilClassifier("precomputed", **SMALL, temp_folder=tmp_path)
    clf.fit(X, y, teacher_scores=SCORES)
    before = student_bits(clf)

    def full(file, n_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_storage, "_allocate", full)
    parts = ("No space left", "BDistilClassifier", "'temp_folder'", str(tmp_path), "MB")
    with raises(*parts, error=OSError) as caught:
        clf.fit(X, y, teacher_scores=SCORES)
    assert caught.value.errno == errno.ENOSPC
    assert student_bits(clf) == before


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_files_take_up_their_space_at_once(has_fallocate, tmp_path, monkeypatch):
    if not has_fallocate:
        monkeypatch.delattr(_storage.os, "posix_fallocate", raising=False)
    monkeypatch.setattr(_storage, "MAX_BYTES", FEW)
    with open(tmp_path / "file", "w+b") as file:
        _storage._allocate(file, 3 * FEW + 1)
    assert (tmp_path / "file").read_bytes() == bytes(3 * FEW + 1)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_folder_that_cannot_be_used_raises(name, tmp_path):
    (tmp_path / "file").touch()
    clf = BDistilClassifier(LogisticRegression(), **SMALL, temp_folder=tmp_path / name)
    with raises("'temp_folder'", "BDistilClassifier", name):
        clf.fit(X, y)
    with raises("'temp_folder'", "Got 3"):
        clf.set_params(temp_folder=3).fit(X, y)


def test_folder_is_a_parameter_that_no_saved_file_holds(tmp_path):
    clf = BDistilClassifier(GaussianNB(), **SMALL, temp_folder=str(tmp_path))
    model = make_pipeline(StandardScaler(), clf).fit(X, y)
    copy = pickle.loads(pickle.dumps(model))
    assert clone(copy)[-1].temp_folder == str(tmp_path)
    save(model, tmp_path / "model.skbdistil")
    assert str(tmp_path).encode() not in (tmp_path / "model.skbdistil").read_bytes()
    loaded = load(tmp_path / "model.skbdistil")
    assert loaded[-1].temp_folder is None
    np.testing.assert_array_equal(loaded.predict(X), copy.predict(X))


def test_fits_of_a_search_share_the_folder(tmp_path, maps):
    clf = BDistilClassifier(GaussianNB(), **SMALL)
    search = StagedSearchCV(clf, {"learning_rate": [0.01, 0.03]}, cv=2)
    expected = clone(search).fit(X, y % 2)
    folder = {"estimator__temp_folder": tmp_path}
    found = search.set_params(**folder).fit(X, y % 2)
    np.testing.assert_array_equal(
        found.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )
    assert not any(tmp_path.iterdir())
