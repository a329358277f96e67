"""Datasets as rows: the same fit as an array, views, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNet
from skorch.helper import SliceDataset
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._boosting import _loop
from skbdistil.datasets import Views
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.model_selection import HalvingStagedSearchCV, StagedSearchCV
from skbdistil.teachers import TorchTeacher

N_ROWS = 61


def images(seed=0):
    return np.random.default_rng(seed).normal(size=(N_ROWS, 1, 6, 6)).astype("float32")


X = images()
Y = (X.mean((1, 2, 3)) > 0).astype(int)
SCORES = np.c_[-X.mean((1, 2, 3)), X.mean((1, 2, 3))] * 5
DATASET = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


class Noisy(Dataset):
    """Draws from all three generators, and counts nothing."""

    def __len__(self):
        return N_ROWS

    def __getitem__(self, index):
        image, label = DATASET[index]
        return image + torch.randn(image.shape) * float(np.random.rand()), label  # noqa: NPY002


class Items(Dataset):
    """Items as a function makes them."""

    def __init__(self, make, n_rows=N_ROWS):
        self.make, self.n_rows = make, n_rows

    def __len__(self):
        return self.n_rows

    def __getitem__(self, index):
        return self.make(index)


DICTS = Items(lambda number: {"image": X[number], "label": int(Y[number])})


def template(**options):
    return NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW, **options)


WORKERS = {
    "iterator_train__num_workers": 2,
    "iterator_train__persistent_workers": True,
}


def fitted(rows, y=None, teacher="precomputed", **parameters):
    parameters = {"n_estimators": 2, "max_epochs": 1, "batch_size": 16} | parameters
    scores = {"teacher_scores": SCORES} if teacher == "precomputed" else {}
    clf = BDistilClassifier(teacher, random_state=0, **parameters)
    return clf.fit(rows, y, **scores)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"early_stopping": True, "refine": "final"}, {"input_scaling": None}],
)
def test_fit_to_dataset_equals_fit_to_array(parameters):
    of_array, of_dataset = fitted(X, Y, **parameters), fitted(DATASET, **parameters)
    expected = of_array.predict_proba(X)
    assert np.array_equal(of_dataset.predict_proba(X), expected)
    assert np.array_equal(of_dataset.predict_proba(DATASET), expected)
    assert of_dataset.n_features_in_ == of_array.n_features_in_
    assert of_dataset.input_shape_ == of_array.input_shape_
    assert list(of_dataset.staged_score(DATASET, Y)) == list(
        of_array.staged_score(X, Y)
    )


def test_score_takes_the_labels_of_a_dataset():
    clf = fitted(DATASET)
    assert clf.score(DATASET) == clf.score(X, Y)
    assert list(clf.staged_score(DATASET)) == list(clf.staged_score(X, Y))
    targets = X.mean((1, 2, 3)).astype("float64")
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(targets))
    reg = BDistilRegressor(
        "precomputed", n_estimators=1, max_epochs=1, edge_tol=np.inf, random_state=0
    ).fit(rows, teacher_scores=targets)
    assert reg.score(rows) == reg.score(X, targets)


@pytest.mark.parametrize("rows", [X, TensorDataset(torch.from_numpy(X))])
def test_score_without_labels_raises(rows):
    clf = fitted(DATASET)
    with pytest.raises(ValueError, match="scored by y, but the target y is None"):
        clf.score(rows)
    with pytest.raises(ValueError, match="scored by y, but the target y is None"):
        next(clf.staged_score(rows))


@pytest.mark.parametrize("rows", [DATASET, Views(DATASET, Noisy())])
def test_number_of_workers_changes_no_bit(rows):
    alone, helped = (
        fitted(rows, net=template(**options)).predict_proba(X)
        for options in ({}, WORKERS)
    )
    assert np.array_equal(alone, helped)


def test_views_train_other_students_and_leave_generators_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, second = (fitted(Views(DATASET, Noisy())) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    clean = fitted(DATASET)
    assert not np.array_equal(first.predict_proba(X), clean.predict_proba(X))
    # Scaling and the teacher's score are those of the clean rows.
    assert torch.equal(first.ensemble_.input_factor, clean.ensemble_.input_factor)
    assert first.teacher_score_ == clean.teacher_score_


def test_views_differ_between_epochs():
    seen = []

    class Recorded(Noisy):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            seen.append((index, float(item[0].sum())))
            return item

    fitted(Views(DATASET, Recorded()), n_estimators=1, max_epochs=3)
    assert len(seen) == len(set(seen)) == 3 * N_ROWS


def test_reading_never_asks_for_more_than_a_chunk(monkeypatch):
    monkeypatch.setattr("skbdistil._boosting._rows._CHUNK_ROWS", 20)
    held, most = set(), [0]

    def make(index):
        row = X[index].copy()
        held.add(id(row))
        most[0] = max(most[0], len(held))
        return row, Y[index]

    def collate(items):
        rows = np.stack([row for row, _ in items])
        held.clear()
        return rows, [label for _, label in items]

    net = template(iterator_train__collate_fn=collate)
    clf = fitted(Items(make), Y, net=net)
    clf.predict(Items(make))
    assert most[0] <= 20


def test_slice_dataset_fits_as_its_rows():
    rows = SliceDataset(DATASET)
    assert np.array_equal(fitted(rows, Y).predict(rows), fitted(X, Y).predict(X))


def test_collate_fn_of_template_reads_dicts():
    columns = Items(lambda index: {"image": X[index], "label": int(Y[index])})

    def collate(items):
        rows = torch.stack([torch.from_numpy(item["image"]) for item in items])
        return rows, torch.tensor([item["label"] for item in items])

    net = template(iterator_train__collate_fn=collate)
    expected = fitted(X, Y, net=template())
    found = fitted(columns, net=net)
    assert np.array_equal(found.predict_proba(columns), expected.predict_proba(X))


def test_regression_reads_targets_of_dataset():
    targets = X.mean((1, 2, 3))
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(targets))
    reg = BDistilRegressor("precomputed", n_estimators=1, max_epochs=1, random_state=0)
    found = reg.fit(dataset, teacher_scores=targets).predict(dataset)
    assert np.array_equal(found, reg.fit(X, targets, teacher_scores=targets).predict(X))


def test_rows_without_weight_leave_dataset():
    weight = (np.arange(N_ROWS) % 3 > 0).astype(float)
    clf = BDistilClassifier("precomputed", n_estimators=1, max_epochs=1, random_state=0)
    expected = clf.fit(X, Y, weight, teacher_scores=SCORES).predict_proba(X)
    clf.fit(DATASET, Y, weight, teacher_scores=SCORES)
    assert np.array_equal(clf.predict_proba(X), expected)


def test_warm_start_goes_on_with_dataset():
    clf = fitted(DATASET, n_estimators=1).set_params(n_estimators=2, warm_start=True)
    clf.fit(DATASET, teacher_scores=SCORES)
    assert len(clf) == 2


def torch_teacher():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    return TorchTeacher(module, batch_size=7)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_torch_teacher_is_asked_batch_by_batch():
    teacher = torch_teacher()
    scores = teacher.decision_function(X)
    assert np.array_equal(teacher.decision_function(DATASET), scores)
    of_array, of_dataset = fitted(X, Y, teacher), fitted(DATASET, teacher=teacher)
    assert np.array_equal(of_dataset.predict_proba(X), of_array.predict_proba(X))
    assert of_dataset.teacher_costs_.macs == of_array.teacher_costs_.macs


def test_frozen_estimator_is_asked_in_chunks(monkeypatch):
    table = X.reshape(N_ROWS, -1)
    teacher = FrozenEstimator(LogisticRegression().fit(table, Y))
    expected = fitted(table, Y, teacher).predict_proba(table)
    monkeypatch.setattr("skbdistil._boosting._rows._CHUNK_ROWS", 25)
    dataset = TensorDataset(torch.from_numpy(table), torch.from_numpy(Y))
    found = fitted(dataset, teacher=teacher).predict_proba(table)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_teacher_that_is_fitted_to_dataset_raises():
    with pytest.raises(ValueError, match="is fitted to X, and X is a dataset"):
        fitted(DATASET, teacher=LogisticRegression())
    with pytest.raises(ValueError, match="is fitted to X, and X is a dataset"):
        fitted(DATASET, teacher=None)


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_searches_split_datasets_by_index():
    def searches():
        clf = BDistilClassifier(
            torch_teacher_0, n_estimators=1, max_epochs=1, random_state=0
        )
        grid = {"learning_rate": [0.001, 0.01]}
        return StagedSearchCV(clf, grid, cv=2), GridSearchCV(clf, grid, cv=2)

    torch_teacher_0 = torch_teacher()
    for search, rows in zip(searches(), [DATASET, Views(DATASET)], strict=True):
        found = search.fit(rows, None if rows is DATASET else Y).cv_results_
        expected = search.fit(X, Y).cv_results_
        assert np.array_equal(found["mean_test_score"], expected["mean_test_score"])


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_early_exit_calibrates_on_dataset():
    clf = BDistilClassifier(
        torch_teacher(), n_estimators=2, max_epochs=1, random_state=0
    )
    early = EarlyExitClassifier(clf, delta=None, random_state=0)
    expected = early.fit(X, Y).predict(X)
    early.fit(DATASET)
    assert np.array_equal(early.predict(DATASET), expected)
    assert np.array_equal(
        early.exit_path(DATASET, Y).scores, early.exit_path(X, Y).scores
    )


def test_iterable_dataset_raises():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(DATASET)

    with pytest.raises(TypeError, match="Stream, which lacks them: the game weighs"):
        fitted(Stream())


def test_views_of_other_length_raise():
    with pytest.raises(ValueError, match=f"must have the {N_ROWS} rows .* Got 3"):
        Views(DATASET, Items(lambda index: DATASET[index], 3))


def bad(index, value):
    return lambda number: (value if number == index else X[number], Y[number])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad(17, X[0] * np.nan), "Row 17 of the dataset X contains NaN"),
        (bad(18, X[0, :, :5]), r"and \(1, 5, 6\) and float32 in row 18"),
        (bad(19, X[0].astype("float64")), r"and float64 in row 19"),
        (bad(20, "text"), "Row 20 of the dataset X must be an array"),
        (lambda index: {"image": X[index]}, "Got an object of type dict. Set a coll"),
        (lambda index: X[index + 40], "Row 21 .* cannot be read: IndexError: index 61"),
        (lambda index: X[index] + np.random.rand(), "is another one each time"),  # noqa: NPY002
    ],
)
def test_bad_item_raises_with_its_number(make, message):
    with pytest.raises(ValueError, match=message):
        fitted(Items(make), Y)


def test_bad_item_in_worker_raises_with_its_number():
    net = template(iterator_valid__num_workers=1)
    with pytest.raises(ValueError, match="Row 17 of the dataset X contains NaN"):
        fitted(Items(bad(17, X[0] * np.nan)), Y, net=net)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"student_transform": LogisticRegression()}, "'student_transform' parameter"),
        ({"augment": "munge"}, "takes no 'augment' where X is a dataset"),
        ({"net": template(iterator_train=list)}, "does not read the views"),
    ],
)
def test_parameter_that_needs_array_raises(parameters, message):
    with pytest.raises(ValueError, match=message):
        fitted(Views(DATASET, Noisy()), **parameters)


def test_rows_of_other_shape_raise_at_predict():
    clf = fitted(DATASET)
    with pytest.raises(ValueError, match=r"X has rows of shape \(1, 5, 6\)"):
        clf.predict(TensorDataset(torch.from_numpy(X[:, :, :5])))


def test_checkpoint_of_views_is_not_one_of_clean_rows(tmp_path, monkeypatch):
    settings = {"checkpoint": tmp_path}
    fitted(DATASET, **settings)
    of_views = fitted(Views(DATASET, Noisy()), **settings)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(_loop.Boosting, "_play", None)
    again = fitted(Views(DATASET, Noisy()), **settings)
    assert np.array_equal(again.predict_proba(X), of_views.predict_proba(X))


def test_items_of_which_some_have_no_label_raise():
    dataset = Items(lambda i: (X[i], 1) if i < 50 else X[i])
    with pytest.raises(ValueError, match="Some items of the dataset X have a label"):
        fitted(dataset)


def collate(items):
    images, labels = zip(*[item.values() for item in items], strict=True)
    return np.stack(images), list(labels)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda clf: StagedSearchCV(clf, {"learning_rate": [0.01]}, cv=2),
        lambda clf: HalvingStagedSearchCV(clf, {"learning_rate": [0.01]}, cv=2),
        lambda clf: EarlyExitClassifier(clf, cv=0.3, random_state=0),
        lambda clf: EarlyExitClassifier(FrozenEstimator(clf.fit(DICTS))),
    ],
    ids=["staged", "halving", "early", "early_frozen"],
)
def test_labels_are_read_as_the_template_says(wrap):
    layer = torch.nn.Linear(36, 2, bias=False)
    # Of the label, which is the sign of the mean.
    torch.nn.init.constant_(layer.weight[0], -1.0)
    torch.nn.init.constant_(layer.weight[1], 1.0)
    clf = BDistilClassifier(
        TorchTeacher(torch.nn.Sequential(torch.nn.Flatten(), layer)),
        n_estimators=2,
        max_epochs=1,
        edge_tol=np.inf,
        net=template(iterator_train__collate_fn=collate),
        random_state=0,
    )
    assert wrap(clf).fit(DICTS).predict(DICTS).shape == (N_ROWS,)
