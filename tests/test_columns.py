"""Datasets whose items are dicts: students read one entry, teachers several."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from skbdistil import BDistilClassifier
from skbdistil.costs import module_costs
from skbdistil.datasets import Columns, Views
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.precomputed import precompute_scores
from skbdistil.students import EmbeddingNet
from skbdistil.teachers import TorchTeacher

N_ROWS, N_STEPS, N_TOKENS = 50, 6, 12
STUDENT = partial(EmbeddingNet, num_embeddings=N_TOKENS, embedding_dim=4, hidden=(3,))
WORKERS = {"iterator_train__num_workers": 2}

IDS = np.random.default_rng(0).integers(1, N_TOKENS, size=(N_ROWS, N_STEPS))
IDS[::3, 4:] = 0
LABELS = (IDS[:, 0] > 5).astype(int)


class Encoder(nn.Module):
    """Called by name only, as the models of the transformers library are."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(N_TOKENS, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, *, input_ids, attention_mask):
        assert attention_mask.dtype == torch.bool
        found = self.words(input_ids) * attention_mask[:, :, None]
        return {"logits": self.head(found.sum(1))}


class Items(Dataset):
    """Items with a text, which is no number, besides."""

    def __init__(self, *, cut=False, dropped=None):
        self.cut, self.dropped = cut, dropped

    def __len__(self):
        return N_ROWS

    def __getitem__(self, index):
        ids = IDS[index]
        ids = ids[ids > 0] if self.cut else ids
        item = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(ids > 0),
            "text": "a row",
            "label": int(LABELS[index]),
        }
        return {k: v for k, v in item.items() if k != self.dropped}


def columns(dataset=None, **parameters):
    parameters = {
        "students": "input_ids",
        "teacher": ["input_ids", "attention_mask"],
        "label": "label",
    } | parameters
    return Columns(Items() if dataset is None else dataset, **parameters)


def filled_up(items):
    """Batch of rows of one length, as collators of the transformers library do."""
    ids = np.zeros((len(items), N_STEPS), int)
    for row, item in zip(ids, items, strict=True):
        row[: len(item["input_ids"])] = item["input_ids"]
    labels = torch.tensor([item["label"] for item in items])
    return {"input_ids": torch.from_numpy(ids), "attention_mask": ids > 0, "y": labels}


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return TorchTeacher(Encoder(), key="logits", batch_size=16)


def fitted(teacher, X, y=None, **options):
    net = NeuralNet(None, criterion=None, optimizer=torch.optim.AdamW, **options)
    return BDistilClassifier(
        teacher,
        student=STUDENT,
        input_scaling=None,
        n_estimators=2,
        max_epochs=2,
        batch_size=16,
        edge_tol=np.inf,
        net=net,
        random_state=0,
    ).fit(X, y)


@pytest.fixture(scope="module")
def of_array(teacher):
    """Fit to an array of the same rows; a transform makes the dict."""

    def by_name(ids):
        return {"input_ids": ids, "attention_mask": ids > 0}

    teacher = TorchTeacher(**teacher.get_params(deep=False) | {"transform": by_name})
    return fitted(teacher, IDS, LABELS)


@pytest.mark.parametrize("options", [{}, WORKERS])
def test_fit_to_columns_equals_fit_to_array(teacher, of_array, options):
    clf = fitted(teacher, columns(), **options)
    expected = of_array.predict_proba(IDS)
    assert np.array_equal(clf.predict_proba(IDS), expected)
    assert np.array_equal(clf.predict_proba(columns()), expected)
    assert clf.teacher_score_ == of_array.teacher_score_
    assert clf.teacher_costs_ == of_array.teacher_costs_
    assert clf.teacher_costs_.macs == 4 * 2


@pytest.mark.parametrize("options", [{}, WORKERS])
def test_rows_of_several_lengths_are_filled_up_by_collate_fn(
    teacher, of_array, options
):
    rows = columns(Items(cut=True), label="y")
    clf = fitted(teacher, rows, iterator_train__collate_fn=filled_up, **options)
    expected = of_array.predict_proba(IDS)
    assert np.array_equal(clf.predict_proba(IDS), expected)


def test_teacher_is_called_with_all_entries_but_the_label(teacher, of_array):
    clf = fitted(teacher, columns(Items(dropped="text"), teacher=None))
    assert np.array_equal(clf.predict_proba(IDS), of_array.predict_proba(IDS))


def test_labels_may_be_passed(teacher, of_array):
    clf = fitted(teacher, columns(label=None), LABELS)
    assert np.array_equal(clf.predict_proba(IDS), of_array.predict_proba(IDS))


def test_transform_gets_a_dict_of_arrays(teacher):
    seen = []

    def transform(batch):
        seen.append({name: values.dtype.kind for name, values in batch.items()})
        return batch

    changed = TorchTeacher(**teacher.get_params() | {"transform": transform})
    expected = teacher.decision_function(columns())
    assert np.array_equal(changed.decision_function(columns()), expected)
    assert seen == 4 * [{"input_ids": "i", "attention_mask": "b"}]


def test_columns_in_views_early_exit_and_precomputed_scores(teacher):
    views = Views(columns(), Items())
    clf = fitted(teacher, views)
    early = EarlyExitClassifier(FrozenEstimator(clf)).fit(views[:30])
    assert early.predict(views[30:]).shape == (20,)
    scores = precompute_scores(teacher, views)
    np.testing.assert_allclose(
        scores[:, 1] - scores[:, 0],
        np.diff(teacher.decision_function(columns()), axis=1).ravel(),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (columns(students="ids"), r"entry 'ids'.* Got \['input_ids', 'attention_mask'"),
        (columns(label="y"), "with the entry 'y'"),
        (columns(teacher=["mask"]), "with the entry 'mask'"),
        (columns(teacher=None), "'text' .* no numbers .* 'teacher' parameter of Col"),
        (columns(Items(cut=True)), "rows of the dataset X must have one shape"),
        (columns(TensorDataset(torch.zeros(9, 2))), "Got tuple for row 0"),
    ],
)
def test_entry_that_is_missing_or_unfit_raises(teacher, rows, message):
    with pytest.raises(ValueError, match=message):
        fitted(teacher, rows)


def test_single_name_of_the_teacher_raises():
    with pytest.raises(ValueError, match=r"list of names or None\. Got 'mask'"):
        columns(teacher="mask")


def test_entries_of_the_teacher_of_several_lengths_raise(teacher):
    class Ragged(Items):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"extra": np.zeros(1 + index % 2)}

    rows = columns(Ragged(), teacher=["extra"])
    with pytest.raises(
        ValueError, match=r"'extra' .* one shape. Got \(1,\) and \(2,\)"
    ):
        fitted(teacher, rows)


def test_items_that_are_dicts_without_columns_name_columns(teacher):
    with pytest.raises(ValueError, match=r"pass skbdistil\.datasets\.Columns"):
        fitted(teacher, Items())


def test_transform_may_return_a_tuple_for_several_arguments():
    class Pair(nn.Module):
        def forward(self, a, b):
            assert a.dtype == torch.float32
            return a + b

    X = np.arange(6.0).reshape(3, 2)
    more = np.array([[1], [2], [3]])
    teacher = TorchTeacher(Pair(), transform=lambda x: (x, more))
    assert np.array_equal(teacher.decision_function(X), X + more)
    assert teacher.costs(X[:1]).macs == 0


def test_module_costs_of_named_inputs():
    module = Encoder()
    ids = torch.zeros(1, N_STEPS, dtype=torch.int64)
    costs = module_costs(module, {"input_ids": ids, "attention_mask": ids > 0})
    assert costs.macs == 4 * 2
