"""Teachers that are asked about the views that training sees."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from skorch import NeuralNet
from torch import nn
from torch.utils.data import Dataset

from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil._boosting import _loop
from skbdistil.datasets import Columns, Views
from skbdistil.model_selection import StagedSearchCV
from skbdistil.students import MLP
from skbdistil.teachers import TorchTeacher

N_ROWS, N_FEATURES, N_EPOCHS = 50, 6, 2

X = np.random.default_rng(0).normal(size=(N_ROWS, N_FEATURES)).astype("float32")
Y = (X[:, 0] > 0).astype(int)
TABLE = LogisticRegression().fit(X, Y)


class Rows(Dataset):
    """Rows of an array with labels, with noise of a scale added each time."""

    def __init__(self, rows=X, y=Y, *, noise=0.0):
        self.rows, self.y, self.noise = rows, y, noise

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = torch.from_numpy(self.rows[index])
        return row + self.noise * torch.randn(row.shape), self.y[index]


CLEAN, MOVED = Rows(), Rows(X[:, ::-1] + np.float32(0.5))


def module(n_outputs=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(N_FEATURES, 8), nn.Tanh(), nn.Linear(8, n_outputs)
        )


SETTINGS = {
    "student": partial(MLP, hidden=(4,)),
    "n_estimators": 3,
    "max_epochs": N_EPOCHS,
    "batch_size": 16,
    "edge_tol": np.inf,
    "random_state": 0,
}


def classifier(teacher=None, **parameters):
    teacher = TorchTeacher(module(), batch_size=7) if teacher is None else teacher
    return BDistilClassifier(teacher, **SETTINGS | parameters)


# Of a teacher that is not trained, and of rows that it has seen.
pytestmark = pytest.mark.filterwarnings(
    "ignore::skbdistil.exceptions.DoubtfulTeacherWarning"
)

ON_STUDENT = DistillationObjective(barrier=None, on="student")


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective": "kl"},
        {"objective": "kl", "label_mix": 0.3},
        {"objective": "kl", "refine": "final"},
        {"objective": ON_STUDENT, "combine": "mean"},
        {"objective": ON_STUDENT, "teacher": FrozenEstimator(TABLE)},
        {"objective": ON_STUDENT, "teacher": [module(), FrozenEstimator(TABLE)]},
    ],
    ids=["kl", "label_mix", "refined", "on_student", "frozen", "list"],
)
def test_students_without_barrier_learn_as_if_views_were_the_rows(parameters):
    # Without a barrier, nothing of the game on the clean rows is left in the loss.
    parameters = {"combine": "mean", "input_scaling": None} | parameters
    clf = classifier(**parameters)
    found = clf.fit(Views(CLEAN, MOVED, teacher_on="view")).predict_proba(X)
    expected = clf.fit(Views(MOVED, MOVED)).predict_proba(X)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    of_clean = clf.fit(Views(CLEAN, MOVED)).predict_proba(X)
    assert abs(of_clean - expected).max() > 1e-3


@pytest.mark.parametrize(
    "parameters",
    [{}, {"early_stopping": True}, {"dtype": "float64"}],
    ids=["default", "early_stopping", "float64"],
)
def test_views_that_are_the_rows_change_nothing(parameters):
    clf = classifier(**parameters)
    of_clean, of_view = (
        clf.fit(Views(CLEAN, CLEAN, teacher_on=kind)).predict_proba(X)
        for kind in ("clean", "view")
    )
    np.testing.assert_allclose(of_view, of_clean, atol=1e-5)


def test_regression_and_several_labels_learn_of_views():
    def both(estimator, y):
        rows = Rows(y=y)
        for kind in ("clean", "view"):
            estimator.fit(Views(rows, rows, teacher_on=kind))
            yield estimator.ensemble_(torch.from_numpy(X)).detach().numpy()

    labels = np.c_[Y, X[:, 1] > 0].astype(int)
    np.testing.assert_allclose(*both(classifier(module()), labels), atol=1e-5)
    # In other units than those of the game, and with an output from round 2 on.
    reg = BDistilRegressor(
        module(), output_schedule=[[0], [1]], label_mix=0.2, **SETTINGS
    )
    targets = 100 + 50 * X[:, :2].astype("float64")
    np.testing.assert_allclose(*both(reg, targets), rtol=1e-4)


@pytest.mark.parametrize("columns", [False, True])
def test_number_of_workers_changes_no_bit(columns):
    train = Rows(noise=1.0)
    views = Views(CLEAN, train, teacher_on="view")
    teacher = TorchTeacher(module())
    if columns:
        views = Views(of_columns(CLEAN), Named(train), teacher_on="view")
        teacher = TorchTeacher(ByName())
    scores = []
    for options in ({}, {"iterator_train__num_workers": 2}):
        net = NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW, **options)
        clf = classifier(teacher, net=net, n_estimators=2)
        scores.append(clf.fit(views).predict_proba(X))
    assert np.array_equal(*scores)


class Named(Dataset):
    """The items of a dataset as dicts."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row, label = self.rows[index]
        return {"row": row, "twice": 2 * row, "label": label}


class ByName(nn.Module):
    """Called with what students do not read."""

    def __init__(self):
        super().__init__()
        self.module = module()

    def forward(self, *, twice):
        return self.module(twice / 2)


def of_columns(rows):
    return Columns(Named(rows), students="row", teacher=["twice"], label="label")


@pytest.mark.parametrize("frozen", [False, True])
def test_teacher_reads_its_own_entries_of_views(frozen):
    views = Views(CLEAN, MOVED, teacher_on="view")
    named = Views(of_columns(CLEAN), Named(MOVED), teacher_on="view")
    of_rows = FrozenEstimator(TABLE) if frozen else TorchTeacher(module())
    by_name = FrozenEstimator(TABLE) if frozen else TorchTeacher(ByName())
    expected = classifier(of_rows).fit(views).predict_proba(X)
    assert np.array_equal(classifier(by_name).fit(named).predict_proba(X), expected)


def test_rows_that_the_teacher_was_asked_about_are_counted():
    views = Views(CLEAN, Rows(noise=1.0), teacher_on="view")
    clf = classifier(refine="final", refine_epochs=3, n_estimators=2).fit(views)
    assert clf.teacher_calls_ == N_ROWS * (1 + 2 * N_EPOCHS + 3)
    assert classifier().fit(Views(CLEAN, MOVED)).teacher_calls_ == N_ROWS
    # Of a mean, each teacher counts.
    clf = classifier([module(), module()], n_estimators=1).fit(views[:20])
    assert clf.teacher_calls_ == 20 * 2 * (1 + N_EPOCHS)


def test_teacher_is_run_in_evaluation_mode_and_left_as_it_was():
    teacher = nn.Sequential(nn.BatchNorm1d(N_FEATURES), nn.Dropout(), module()).train()
    teacher[0].eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    clf = classifier(teacher, n_estimators=1)
    clf.fit(Views(CLEAN, Rows(noise=1.0), teacher_on="view"))
    assert torch.equal(torch.rand(3), expected)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert [part.training for part in teacher] == [False, True, True]
    assert all(weight.grad is None for weight in teacher.parameters())


def test_teacher_moves_to_its_device_once_for_all_views(monkeypatch):
    moves = [torch.device("cpu")]

    class Moving(nn.Linear):
        def to(self, device):
            moves.append(device)

    # Another name of the processor stands for a device.
    monkeypatch.setattr("skbdistil.teachers.home_device", lambda module: moves[-1])
    teacher = TorchTeacher(Moving(N_FEATURES, 2), device=torch.device("cpu", 0))
    views = Views(CLEAN, MOVED, teacher_on="view")
    classifier(teacher, n_estimators=1).fit(views)
    # To ask about the clean rows, and for the training.
    assert [str(device) for device in moves[1:]] == ["cpu:0", "cpu"] * 2


def test_fit_that_was_killed_goes_on_with_views(tmp_path, monkeypatch):
    views = Views(CLEAN, Rows(noise=1.0), teacher_on="view")

    class Drawing(nn.Module):
        """Has numbers of its own for each batch."""

        def __init__(self):
            super().__init__()
            self.module = module()

        def forward(self, x):
            return self.module(x + torch.randn(x.shape))

    clf = classifier(Drawing(), n_estimators=2, max_epochs=1)
    clf.set_params(checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        play = _loop.Boosting._play

        def killed(self, number, seed):
            if number == 2:
                raise SystemExit
            return play(self, number, seed)

        patch.setattr(_loop.Boosting, "_play", killed)
        with pytest.raises(SystemExit):
            clf.fit(views)
    resumed = clf.fit(views)
    calls, found = resumed.teacher_calls_, resumed.predict_proba(X)
    alone = clf.set_params(checkpoint=None).fit(views)
    assert np.array_equal(found, alone.predict_proba(X))
    assert calls == alone.teacher_calls_ == 3 * N_ROWS


def test_checkpoint_tells_teachers_on_views_from_those_on_clean_rows(tmp_path):
    clf = classifier(checkpoint=tmp_path, n_estimators=1, max_epochs=1)
    for kind in ("clean", "view"):
        clf.fit(Views(CLEAN, MOVED, teacher_on=kind))
    assert len(list(tmp_path.iterdir())) == 2


def test_search_asks_about_views():
    search = StagedSearchCV(
        classifier(n_estimators=2, max_epochs=1), {"learning_rate": [0.01]}, cv=2
    ).fit(Views(CLEAN, MOVED, teacher_on="view"))
    assert search.best_estimator_.teacher_calls_ == 3 * N_ROWS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_on": "row"}, "must be 'clean' or 'view'. Got 'row'"),
        ({"teacher_on": "view"}, "needs views: pass 'train'. Got train=None"),
    ],
)
def test_views_with_bad_teacher_on_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Views(CLEAN, **arguments)


@pytest.mark.parametrize(
    ("teacher", "cv", "message"),
    [
        ("precomputed", "auto", "views are not known before.* Got 'precomputed'"),
        (LogisticRegression(), "auto", r"can be asked .* Got LogisticRegression\(\)"),
        ([module(), "precomputed"], "auto", "can be asked where X is Views with"),
        (module(), 3, "cannot be asked out of fold. Got 3"),
    ],
)
def test_teacher_that_cannot_be_asked_about_views_raises(teacher, cv, message):
    clf = classifier(teacher, teacher_cv=cv)
    scores = {"teacher_scores": X[:, :2]} if teacher == "precomputed" else {}
    with pytest.raises(ValueError, match=message):
        clf.fit(Views(CLEAN, MOVED, teacher_on="view"), **scores)


def test_teacher_without_finite_scores_of_views_raises_and_loses_no_fit():
    clf = classifier(n_estimators=1).fit(X, Y)
    before = clf.predict_proba(X)

    class OfSmallRows(nn.Linear):
        def forward(self, x):
            return super().forward(x) / (abs(x[:, :1]) < 50)

    clf.teacher = OfSmallRows(N_FEATURES, 2)
    views = Views(CLEAN, Rows(X * 1000), teacher_on="view")
    with pytest.raises(ValueError, match=r"On a batch of views of X: .* finite scores"):
        clf.fit(views)
    assert np.array_equal(clf.predict_proba(X), before)
