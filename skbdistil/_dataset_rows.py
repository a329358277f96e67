"""Rows of a map-style dataset of torch, read when they are needed."""

from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from skbdistil._arrays import (
    READY_DTYPES,
    LazyRows,
    as_tensor,
    from_torch,
    native_dtype,
    row_chunks,
)
from skbdistil._seeding import seed_generators, seeded
from skbdistil.datasets import Columns, Views

__all__ = [
    "DatasetRows",
    "as_views",
    "dataset_rows",
    "is_dataset",
    "whole_chunks",
    "with_labels",
]

# Rows that are read twice to see that they are the same.
_COMPARED_ROWS = 4

# Rows that are read at once for their labels.
_LABEL_ROWS = 256

# What a template says of reading that is decided here.
_NOT_READING = ("shuffle", "batch_size", "sampler", "batch_sampler", "drop_last")


def is_dataset(X):
    """Whether rows are a dataset: of torch, skorch, or indexed as these are.

    Parameters
    ----------
    X : object

    Returns
    -------
    answer : bool
    """
    # Without being a torch Dataset, those of Hugging Face have what a DataLoader calls
    # for several items, and skorch's SliceDataset holds one.
    return (
        isinstance(X, Dataset)
        or hasattr(X, "__getitems__")
        or isinstance(getattr(X, "dataset", None), Dataset)
    )


def as_views(X):
    """A dataset as one of which rows can be taken; anything else as it is.

    Parameters
    ----------
    X : object

    Returns
    -------
    X : Views or object
    """
    return Views(X) if is_dataset(X) and not isinstance(X, Views) else X


def with_labels(X, y, net=None):
    """A dataset as :class:`Views`, and the labels that its items hold.

    Parameters
    ----------
    X : object
        What is no dataset is returned as it is.
    y : array-like or None
        Goes before the labels of the dataset.
    net : skorch.NeuralNet or None
        Template that says how items are read.

    Returns
    -------
    X : object
    y : array-like or None
        None where items hold no labels.
    """
    X = as_views(X)
    if not isinstance(X, Views) or y is not None:
        return X, y
    rows = DatasetRows(X, **_reading(net))
    if not rows.labelled:
        return X, None
    keys = _ordered_keys(len(rows), _LABEL_ROWS)
    found = []
    for positions, _, labels in rows.loader(keys):
        if labels is None:
            raise ValueError(
                "Some items of the dataset X have a label and some have none, among "
                f"them one of the rows {positions[0]} to {positions[-1]}. Pass y."
            )
        found.append(labels)
    return X, np.concatenate(found)


def dataset_rows(X, net=None):
    """Rows of a dataset by index; what is no dataset is returned as it is.

    Parameters
    ----------
    X : object
    net : skorch.NeuralNet or None
        Template that says how items are read.

    Returns
    -------
    x : DatasetRows or object
    """
    X = as_views(X)
    return DatasetRows(X, **_reading(net)) if isinstance(X, Views) else X


def whole_chunks(x, n_rows):
    """Yield all rows in order as a teacher reads them: a slice, and these rows.

    Parameters
    ----------
    x : ndarray, LazyRows
    n_rows : int
        Rows of a chunk.

    Yields
    ------
    rows : slice
    batch : ndarray, or dict of ndarray
        A dict where a dataset has items that are dicts.
    """
    if isinstance(x, ViewRows):
        for rows, _ in row_chunks(x, n_rows):
            yield rows, {name: values[rows] for name, values in x.entries.items()}
        return
    if not isinstance(x, DatasetRows) or columns_of(x.views) is None:
        yield from row_chunks(x, n_rows)
        return
    for positions, batch, _ in x.loader(_ordered_keys(len(x), n_rows), whole=True):
        rows = slice(positions[0], positions[-1] + 1)
        yield rows, {name: values.numpy() for name, values in batch.items()}


def columns_of(views):
    """What :class:`~skbdistil.datasets.Columns` says of the items; None if nothing."""
    return views.clean if isinstance(views.clean, Columns) else None


class ViewRows(LazyRows):
    """Some views of rows, with what a teacher reads of them by name.

    Parameters
    ----------
    rows : ndarray of shape (n, ...)
        As students read them.
    entries : dict of ndarray
    """

    def __init__(self, rows, entries):
        self.rows = rows
        self.entries = entries
        self.shape = rows.shape
        self.dtype = rows.dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def take(self, rows):
        """Some rows, in the same form."""
        entries = {name: values[rows] for name, values in self.entries.items()}
        return ViewRows(self.rows[rows], entries)


def _reading(net):
    """Options of a DataLoader in a template, those of `iterator_valid` first."""
    options = {}
    for name in ("iterator_train", "iterator_valid"):
        if net is not None and getattr(net, name) is DataLoader:
            for key, value in vars(net).items():
                option = key.removeprefix(f"{name}__")
                if option != key and option not in _NOT_READING:
                    options[option] = value
    # A pass has one epoch.
    options.pop("persistent_workers", None)
    return options


class DatasetRows(LazyRows):
    """Rows of a dataset, which are read when they are indexed.

    Parameters
    ----------
    views : Views
    collate_fn : callable or None
        Makes a batch of a list of items: rows, or a tuple of rows and labels. None
        stacks the rows.
    **options : dict
        Of the DataLoader with which :meth:`chunks` reads.

    Attributes
    ----------
    shape : tuple of int
        Of all rows.
    dtype : numpy.dtype
    labelled : bool
        Whether items hold labels.
    """

    def __init__(self, views, *, collate_fn=None, **options):
        if not len(views):
            raise ValueError("The dataset X has 0 rows; it needs at least 1.")
        self.views = views
        self.options = options
        self._reader = _Reader(views, collate_fn)
        first = np.arange(min(_COMPARED_ROWS, len(views)))
        _, rows, labels = self._reader[first, None]
        # In another order, since the generators that items draw from start alike.
        _, again, _ = self._reader[first[::-1], None]
        differs = (rows != again[::-1]).reshape(len(rows), -1).any(axis=1)
        if differs.any():
            raise ValueError(
                f"Row {differs.argmax()} of the dataset X is another one each time "
                "that it is read. The game needs rows that stay as they are: pass "
                "skbdistil.datasets.Views(clean, train), where only train is random."
            )
        self.shape = (len(views), *rows.shape[1:])
        self.dtype = rows.dtype
        self.labelled = labels is not None
        self._reader.expected = rows.shape[1:], rows.dtype

    @property
    def changes_rows(self):
        """Whether training sees views of the rows."""
        return self.views.train is not None

    @property
    def asks_about_views(self):
        """Whether the teacher is asked about these views."""
        return self.views.teacher_on == "view"

    def __len__(self):
        return len(self.views)

    def __getitem__(self, index):
        if isinstance(index, torch.Tensor):
            index = index.numpy()
        return self._reader[np.arange(len(self))[index], None][1]

    def take(self, rows):
        """Some rows, in the same form."""
        return DatasetRows(
            self.views[rows], collate_fn=self._reader.collate_fn, **self.options
        )

    def chunks(self, n_rows):
        """Yield all rows in order: a slice, and an array of these rows."""
        for positions, rows, _ in self.loader(_ordered_keys(len(self), n_rows)):
            yield slice(positions[0], positions[-1] + 1), from_torch(rows)

    def loader(self, keys, *, whole=False, asks=False, **options):
        """A DataLoader that reads what the keys say.

        Parameters
        ----------
        keys : iterable of (ndarray, int or None)
            Numbers of rows, and the seed of their views; None for clean rows.
        whole : bool
            Whether to read items that are dicts as a teacher does.
        asks : bool
            Whether to read what a teacher does as well, in the place of labels: a dict,
            or None where it reads the rows.
        **options : dict
            Of the DataLoader, instead of those of the rows.

        Returns
        -------
        loader : DataLoader
            Of tuples of the numbers, the rows, and their labels or None.
        """
        options = options or dict(self.options)
        reader = self._reader
        collate_fn = options.pop("collate_fn", reader.collate_fn)
        if whole or asks or collate_fn is not reader.collate_fn:
            reader = _Reader(
                self.views, collate_fn, reader.expected, whole=whole, asks=asks
            )
        return DataLoader(
            reader,
            batch_size=None,
            sampler=keys,
            collate_fn=_with_tensor,
            # Of its own: it draws a number that nobody uses.
            generator=torch.Generator(),
            **options,
        )


def _with_tensor(batch):
    """Rows as tensors, which processes share and for which memory is pinned."""
    positions, rows, labels = batch
    if isinstance(rows, dict):
        rows = _tensors(rows)
    else:
        rows = torch.from_numpy(rows)
    return positions, rows, _tensors(labels) if isinstance(labels, dict) else labels


def _tensors(entries):
    return {name: as_tensor(values) for name, values in entries.items()}


def _ordered_keys(n_samples, n_rows):
    numbers = np.arange(n_samples)
    return [
        (numbers[start : start + n_rows], None) for start in range(0, n_samples, n_rows)
    ]


class _Reader(Dataset):
    """Batches of a dataset: what a worker reads.

    Indexed by ``(positions, seed)``, it gives the positions, an array of the rows, and
    an array of their labels, or None. A seed asks for the views of training. With
    `whole`, it gives a dict of arrays in the place of the rows, and no labels. With
    `asks`, it gives this dict in the place of the labels, or None where there is none.
    """

    def __init__(
        self, views, collate_fn=None, expected=None, *, whole=False, asks=False
    ):
        self.views = views
        self.columns = columns_of(views)
        self.collate_fn = collate_fn
        self.expected = expected
        self.whole = whole
        self.asks = asks

    def __getitem__(self, key):
        positions, seed = key
        # Items may draw from any global generator.
        with seeded(0 if seed is None else seed, torch.device("cpu")):
            items = [self._item(int(number), seed) for number in positions]
        made = None if self.collate_fn is None else self.collate_fn(items)
        if self.whole:
            return positions, self._entries(items, made, positions), None
        rows, labels = self._batch(items, made, positions)
        self._check(rows, positions)
        if self.asks:
            labels = None
            if self.columns is not None:
                labels = self._entries(items, made, positions)
        return positions, rows, labels

    def _item(self, number, seed):
        views = self.views
        index = int(views.indices[number])
        dataset = views.clean if seed is None else views.train
        if seed is not None:
            _seed_view(seed, index)
        try:
            return dataset[index]
        except Exception as error:
            raise ValueError(
                f"Row {number} of the dataset X cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _entries(self, items, made, positions):
        """What the teacher is called with by name."""
        columns = self.columns
        if made is not None:
            names = _names_of_teacher(columns, made, positions[0])
            return {name: _array(made[name], name) for name in names}
        names = _names_of_teacher(columns, items[0], positions[0])
        found = {}
        for name in names:
            rows = [
                _array(_entry(item, name, number), name)
                for item, number in zip(items, positions, strict=True)
            ]
            shapes = {row.shape for row in rows}
            if len(shapes) > 1:
                raise ValueError(
                    f"The entries {name!r} of the dataset X must have one shape. Got "
                    f"{' and '.join(map(str, sorted(shapes)))} among the rows "
                    f"{positions[0]} to {positions[-1]}. Set a collate_fn in the 'net' "
                    "template, which fills them up."
                )
            found[name] = np.stack(rows)
        return found

    def _batch(self, items, rows, positions):
        """Rows and labels of items, or of what `collate_fn` has made of them."""
        columns = self.columns
        if columns is not None and self.collate_fn is None:
            items = [
                _row_and_label(columns, item, number)
                for item, number in zip(items, positions, strict=True)
            ]
        if self.collate_fn is None:
            rows, labels = zip(*map(_split, items, positions.tolist()), strict=True)
            for number, row in zip(positions, rows, strict=True):
                shape, dtype = self.expected or (rows[0].shape, rows[0].dtype)
                if row.shape != shape or row.dtype != dtype:
                    raise ValueError(
                        "The rows of the dataset X must have one shape and dtype. Got "
                        f"{shape} and {dtype}, and {row.shape} and {row.dtype} in row "
                        f"{number}."
                    )
            rows = np.stack(rows)
        else:
            if columns is not None:
                rows, labels = _row_and_label(columns, rows, positions[0])
                rows = rows if labels is None else (rows, labels)
            has_labels = isinstance(rows, tuple | list) and len(rows) == 2
            rows, labels = rows if has_labels else (rows, [None])
            rows = _numbers(rows, f"What collate_fn makes of row {positions[0]}")
            shape, dtype = self.expected or (rows.shape[1:], rows.dtype)
            if rows.shape != (len(items), *shape) or rows.dtype != dtype:
                raise ValueError(
                    f"The collate_fn must make one row of shape {shape} and dtype "
                    f"{dtype} of each of {len(items)} items. Got an array of shape "
                    f"{rows.shape} and dtype {rows.dtype}, the first row of which is "
                    f"number {positions[0]}."
                )
        if any(label is None for label in labels):
            return rows, None
        return rows, np.asarray([from_torch(label) for label in labels])

    def _check(self, rows, positions):
        """Refuse rows that are not finite."""
        if rows.dtype.kind != "f":
            return
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"Row {positions[finite.argmin()]} of the dataset X contains NaN or "
                "infinity."
            )


def _split(item, number):
    """Row and label of an item; None where it has no label."""
    row, label = item, None
    if isinstance(item, tuple) and len(item) in (1, 2):
        row, label = (*item, None)[:2]
    return _numbers(row, f"Row {number} of the dataset X"), label


def _row_and_label(columns, entries, number):
    """What students read of an item, or of several, and its label or None."""
    row = _entry(entries, columns.students, number)
    if columns.label is None:
        return row, None
    return row, _entry(entries, columns.label, number)


def _names_of_teacher(columns, entries, number):
    if columns.teacher is None:
        return [name for name in entries if name != columns.label]
    for name in columns.teacher:
        _entry(entries, name, number)
    return columns.teacher


def _entry(entries, name, number):
    """An entry of a dict, which is to be there."""
    if not isinstance(entries, Mapping) or name not in entries:
        what = list(entries) if isinstance(entries, Mapping) else type(entries).__name__
        raise ValueError(
            f"Columns needs items, or what a collate_fn makes of them, that are dicts "
            f"with the entry {name!r}. Got {what} for row {number} of the dataset X."
        )
    return entries[name]


def _array(values, name):
    """An entry that a teacher reads, in its own dtype."""
    array = from_torch(values)
    array = None if isinstance(array, str | Mapping) else np.asarray(array)
    if array is None or array.dtype.kind not in "fiub":
        raise ValueError(
            f"The entry {name!r} of the dataset X holds no numbers but an object of "
            f"type {type(values).__name__}. Name those that the teacher reads in the "
            "'teacher' parameter of Columns."
        )
    return array


def _numbers(row, name):
    """A row, or several, as an array of a dtype that students take."""
    kind = type(row).__name__
    row = from_torch(row)
    row = None if isinstance(row, dict | str | tuple) else np.asarray(row)
    if row is None or row.dtype.kind not in "fiub" or not row.ndim or not row.size:
        raise ValueError(
            f"{name} must be an array or tensor of numbers, or such a row with its "
            f"label. Got an object of type {kind}. Set a collate_fn in the 'net' "
            "template (iterator_train__collate_fn), which makes rows of a list of "
            "items, or for items that are dicts pass skbdistil.datasets.Columns."
        )
    dtype = native_dtype(row.dtype)
    return row.astype(dtype if dtype in READY_DTYPES else np.float32, copy=False)


def _seed_view(seed, index):
    """Make what a view draws depend on the epoch and the row, and not on a worker."""
    state = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
    seed_generators(state)
