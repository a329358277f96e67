"""Rows as the students see them: whole batches, on the device, by index."""

import math

import numpy as np
import torch
from torch.utils.data import Dataset

from skbdistil._arrays import LazyRows, as_tensor, row_chunks
from skbdistil._boosting._ranks import ONE_RANK
from skbdistil._storage import IN_MEMORY, row_pieces

# Rows, and numbers in them, that are run at once where no gradient is needed. Feature
# maps of more numbers leave the caches of a processor, which then takes up to three
# times as long; an accelerator wants more work at once.
_CHUNK_ROWS = 4096
_CHUNK_SIZE = 2**20
_ACCELERATOR_CHUNK_SIZE = 2**25

# Share of the free memory of an accelerator that numbers of all rows may take. The rest
# is for what is computed with them.
_SHARE_OF_FREE = 0.5

# Free memory, in bytes, of an accelerator that does not say how much it has.
_ASSUMED_FREE = 2**31


def resolve_device(device, dtype, estimator_name):
    """Turn the `device` parameter into a torch device.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` takes CUDA, then MPS (which has no float64), then the CPU.
    dtype : torch.dtype
    estimator_name : str
        For messages.

    Returns
    -------
    device : torch.device
    """
    if device == "cpu":
        return torch.device("cpu")
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"The 'device' parameter of {estimator_name} must be 'auto' or a "
                f"device that torch can use here, such as 'cpu'. Got {device!r}: "
                f"{error}"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available() and dtype != torch.float64:
        return torch.device("mps")
    return torch.device("cpu")


def chunk_rows(input_shape, device=None):
    """Rows to run at once where no gradient is needed: fewer of large ones.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of a row.
    device : torch.device or None
        Where they are run. None is the processor, for what reads them only.

    Returns
    -------
    n_rows : int
    """
    on_processor = device is None or device.type == "cpu"
    size = _CHUNK_SIZE if on_processor else _ACCELERATOR_CHUNK_SIZE
    return max(1, min(_CHUNK_ROWS, size // math.prod(input_shape)))


def fits(n_bytes, device):
    """Whether numbers of all rows may stay on a device.

    Parameters
    ----------
    n_bytes : int
    device : torch.device

    Returns
    -------
    answer : bool
        True for the processor, where they are.
    """
    if device.type == "cpu":
        return True
    return n_bytes <= _SHARE_OF_FREE * _free_bytes(device)


def _free_bytes(device):
    """Memory of an accelerator that nothing uses."""
    try:
        return torch.accelerator.get_memory_info(device)[0]
    except (RuntimeError, ValueError):
        return _ASSUMED_FREE


def to_device(rows, device, dtype):
    """Rows on a device; on the way to CUDA, the processor goes on with its work.

    Parameters
    ----------
    rows : torch.Tensor
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    rows : torch.Tensor
    """
    if device.type == "cpu" or rows.device.type != "cpu":
        return rows.to(device, dtype)
    # Cast before the copy where that makes it smaller, and otherwise after it.
    rows = rows.to(_smaller(dtype, rows.dtype))
    is_cuda = device.type == "cuda"
    if is_cuda:
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=is_cuda).to(dtype)


def _all_to_device(rows, device, dtype):
    """All rows on a device, copied some at a time: they may be a memory map."""
    copy = torch.empty(rows.shape, dtype=dtype, device=device)
    for part, chunk in row_chunks(rows, chunk_rows(rows.shape[1:], device)):
        copy[part] = to_device(chunk, device, dtype)
    return copy


def _smaller(dtype, given):
    """The dtype of fewer bytes, that which is given where both have as many."""
    return dtype if dtype.itemsize < given.itemsize else given


class FeatureCache:
    """What the students so far computed on all rows, as far as later ones read it.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Its connection says what a student reads.
    n_students : int
        Number of students that there will be.
    """

    def __init__(self, ensemble, n_students):
        self._ensemble = ensemble
        self._n_students = n_students
        self.clear()

    def clear(self):
        """Go back to no students."""
        self._held = []

    def wants_next(self):
        """Whether a later student will read the activations of the next one."""
        return len(self._held) in self._read_after(len(self._held) + 1)

    def extend(self, activations):
        """Hold the activations of the next student, and drop what is read no more.

        Parameters
        ----------
        activations : tuple of torch.Tensor of shape (n, ...)
        """
        self._held.append(activations)
        read = self._read_after(len(self._held))
        for position in range(len(self._held)):
            if position not in read:
                self._held[position] = ()

    def take(self, index, device):
        """Activations that the next student reads of some rows.

        Parameters
        ----------
        index : slice, list or torch.Tensor
        device : torch.device

        Returns
        -------
        earlier : list of tuple of torch.Tensor
            One tuple per earlier student, empty where it is not read.
        """
        # All that is held is read by the next student.
        return [
            tuple(to_device(rows[index], device, rows.dtype) for rows in activations)
            for activations in self._held
        ]

    def _read_after(self, position):
        """Positions of the students that are read by that at a position or later."""
        later = range(position, self._n_students)
        return {read for student in later for read in self._ensemble.read_by(student)}


class RowData:
    """The rows of training or of validation, and what students have left on them.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        The students so far.
    x : ndarray or LazyRows of shape (n, ...)
        In the dtype in which the user gave it.
    residuals : Residuals
    game : BoostingGame or None
        Played over these residuals. None for rows that take no part in the game.
    sample_weight : torch.Tensor of shape (n,) or None
        Of mean 1 over the training rows.
    label : torch.Tensor or None
        Class indices (n,) or targets (n, n_outputs), for the label term.
    device : torch.device
        Where students are run.
    resident : bool, default=False
        Whether all that is known of the rows is copied to the device, once, and indexed
        there. Otherwise it is indexed where it is, and copied batch by batch, as
        :class:`~skbdistil._arrays.LazyRows` have to be.
    cache : FeatureCache or None
        None runs earlier students again for every batch.
    view_targets : ViewTargets or None
        What is learnt of views of these rows. None: the same as of the rows. Not with a
        cache.
    ranks : OneRank
        Where the other rows are, if they are not here.
    storage : Storage
        Where scores and features of students are kept.

    Attributes
    ----------
    home : torch.device
        Where rows are indexed.
    """

    def __init__(
        self,
        ensemble,
        x,
        residuals,
        *,
        game=None,
        sample_weight=None,
        label=None,
        device,
        resident=False,
        cache=None,
        view_targets=None,
        ranks=ONE_RANK,
        storage=IN_MEMORY,
    ):
        self.ensemble = ensemble
        self.residuals = residuals
        self.game = game
        self.device = device
        self.home = device if resident else torch.device("cpu")
        self.cache = cache
        self.view_targets = view_targets
        self._ranks = ranks
        self._storage = storage
        # Views, which follow the residuals, where these are at home.
        self._targets = {
            "teacher": as_tensor(residuals.teacher_scores),
            "residual_sum": as_tensor(residuals.total),
        }
        if sample_weight is not None:
            self._targets["sample_weight"] = sample_weight
        if label is not None:
            self._targets["label"] = label
        self.x = x if isinstance(x, LazyRows) else as_tensor(x)
        self._mean = None
        if self.home.type != "cpu":
            dtype = _smaller(self._input_dtype, self.x.dtype)
            self.x = _all_to_device(self.x, device, dtype)
            self._targets = {
                name: _all_to_device(rows, device, rows.dtype)
                for name, rows in self._targets.items()
            }

    def __len__(self):
        """Number of rows."""
        return len(self.x)

    @property
    def dtype(self):
        """Type of the students' weights."""
        return self._targets["teacher"].dtype

    @property
    def view_calls(self):
        """Number of views that the teacher was asked about."""
        return 0 if self.view_targets is None else self.view_targets.n_calls

    @property
    def _input_dtype(self):
        return torch.int64 if self.ensemble.integer_input else self.dtype

    def inputs(self, index, x=None):
        """Some rows on the device, as the ensemble takes them.

        They are read by their index, unless `x` holds them, or views of them.
        """
        rows = as_tensor(self.x[index] if x is None else x)
        return to_device(rows, self.device, self._input_dtype)

    def targets(self, index):
        """What a loss compares with, of some rows: a dict of tensors, at home."""
        return {name: rows[index] for name, rows in self._targets.items()}

    def mean(self, index, targets):
        """Running mean of the students so far, of some rows and their targets."""
        if self._mean is not None:
            return self._mean[index]
        # F_{t-1} = g + S / (t - 1) needs no pass over the earlier students.
        mean = self.residuals.mean_from(
            targets["teacher"].numpy(), targets["residual_sum"].numpy()
        )
        return torch.from_numpy(mean)

    def at_home(self, index):
        """An index of rows as a tensor where it is used; a slice as it is."""
        if self.home.type == "cpu" or isinstance(index, slice):
            return index
        return to_device(torch.as_tensor(index), self.home, torch.int64)

    def on_device(self, targets):
        """Targets where the students are."""
        if self.home == self.device:
            return targets
        return {
            name: to_device(rows, self.device, rows.dtype)
            for name, rows in targets.items()
        }

    def for_round(self):
        """Dataset for the training of the next student."""
        if self.cache is None:
            return RawBatches(self, self._run_earlier)
        return RoundBatches(self)

    def for_joint_training(self):
        """Dataset for the training of all students together."""
        return RawBatches(self)

    @torch.no_grad()
    def run(self, student):
        """Run the next student on all rows, in evaluation mode.

        Parameters
        ----------
        student : torch.nn.Module

        Returns
        -------
        scores : ndarray of shape (n, n_outputs)
            ``f_t = t F_t - (t - 1) F_{t-1}``, the student of the game.
        activations : tuple of torch.Tensor of shape (n, ...)
            Empty where no later student reads them, or they are not held.
        """
        was_training = student.training
        student.eval()
        batches = self.for_round()
        holds = self.cache is not None and self.cache.wants_next()
        number = torch.as_tensor(
            self.residuals.rounds_of_outputs(self.residuals.n_rounds + 1)
        )
        share = number * student.carry.cpu().double() - number + 1
        number, share = (part.to(self.device, self.dtype) for part in (number, share))
        # Filled in place: maps of all rows must not be there twice, and small arrays
        # between large ones that are freed would leave memory in pieces.
        shape = self.residuals.teacher_scores.shape
        scores = self._empty(shape, self.dtype)
        held = ()
        n_rows = chunk_rows(self.x.shape[1:], self.device)
        for rows, x in row_chunks(self.x, n_rows):
            inputs, _ = batches.prepared(batches.batch(rows, x))
            # Of the game, in which the running mean is the mean of the students.
            mean = inputs.pop("mean", None)
            chunk_scores, activations = student(**inputs)
            if mean is not None:
                chunk_scores = number * chunk_scores + share * mean
            scores[rows] = chunk_scores
            if holds:
                held = held or tuple(
                    self._empty((len(self), *part.shape[1:]), part.dtype)
                    for part in activations
                )
                for whole, part in zip(held, activations, strict=True):
                    whole[rows] = part
        student.train(was_training)
        return scores.numpy(force=True), held

    def running_mean(self):
        """Running mean of the students on all rows.

        Returns
        -------
        mean : ndarray of shape (n, n_outputs)
        """
        residuals = self.residuals
        return self._storage.map(
            residuals.mean_from, residuals.teacher_scores, residuals.total
        )

    def all_finite(self, scores):
        """Whether a student's scores are finite, also those of rows elsewhere."""
        pieces = row_pieces(scores)
        return self._ranks.all(all(np.isfinite(scores[rows]).all() for rows in pieces))

    def add(self, scores, activations):
        """Go on to the next student, holding what this one leaves for later ones."""
        if self.game is None:
            self.residuals.add(scores)
        else:
            self.game.update(scores)
        if self.cache is not None:
            self.cache.extend(activations)
        self._follow_residuals()

    def reset(self):
        """Go back to the first student."""
        if self.game is None:
            self.residuals.reset()
        else:
            self.game.reset()
        self.forget_activations()
        self._follow_residuals()

    def forget_activations(self):
        """Free what earlier students left."""
        if self.cache is not None:
            self.cache.clear()

    def _empty(self, shape, dtype):
        """Room for numbers of all rows, at home."""
        if self.home.type == "cpu":
            return self._storage.empty_tensor(shape, dtype)
        return torch.empty(shape, dtype=dtype, device=self.home)

    def _follow_residuals(self):
        """Bring the copies on the device up to date."""
        if self.home.type == "cpu":
            return
        total = as_tensor(self.residuals.total)
        self._targets["residual_sum"] = _all_to_device(total, self.device, total.dtype)
        self._mean = None
        if self.residuals.n_rounds:
            mean = torch.from_numpy(self.running_mean())
            self._mean = _all_to_device(mean, self.device, mean.dtype)

    def _run_earlier(self, inputs, targets):
        """Arguments of the next student, from rows as they come.

        The residual sum of views that the teacher was asked about is added to targets.
        """
        with torch.no_grad():
            state = self.ensemble.start(inputs["x"])
            for _ in self.ensemble.students:
                state.advance()
            arguments = {"x": state.x}
            if any(state.earlier):
                arguments["earlier"] = state.earlier
            if state.mean is not None:
                arguments["mean"] = state.mean
        if "residual_sum" not in targets:
            targets["residual_sum"] = self._residual_sum(state.mean, targets["teacher"])
        return arguments, targets

    def _residual_sum(self, mean, teacher):
        """What the earlier students have left on views."""
        if mean is None:
            return torch.zeros_like(teacher)
        number = self.residuals.rounds_of_outputs(self.residuals.n_rounds)
        # S = (t - 1) (F_{t-1} - g).
        return torch.as_tensor(number).to(mean) * (mean - teacher.to(mean))


class _Batches(Dataset):
    """Batches of rows by index.

    Indexing with an integer, a slice, or a list or tensor of indices gives ``(inputs,
    targets)``: the arguments of the module in training, and what its loss compares
    with.

    Parameters
    ----------
    rows : RowData
    """

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, int):
            return _first_row(self.batch([index]))
        return self.batch(index)

    def prepared(self, batch):
        """A batch that comes from the iterator, as the module takes it."""
        return batch


class RawBatches(_Batches):
    """Rows as the user gave them.

    Parameters
    ----------
    rows : RowData
    prepare : callable, default=None
        Turns inputs and targets into what the module takes, after an iterator may have
        changed the rows. None leaves them as they are.
    """

    def __init__(self, rows, prepare=None):
        super().__init__(rows)
        self.prepare = prepare

    def batch(self, index, x=None):
        rows = self.rows
        index = rows.at_home(index)
        targets = rows.on_device(rows.targets(index))
        return {"x": rows.inputs(index, x)}, targets

    def prepared(self, batch):
        return batch if self.prepare is None else self.prepare(*batch)


class RoundBatches(_Batches):
    """Scaled rows, and what the next student reads of the earlier ones.

    Parameters
    ----------
    rows : RowData
        With a cache.
    """

    def batch(self, index, x=None):
        rows = self.rows
        index = rows.at_home(index)
        targets = rows.targets(index)
        inputs = {"x": rows.ensemble.scale(rows.inputs(index, x))}
        earlier = rows.cache.take(index, rows.device)
        if any(earlier):
            inputs["earlier"] = earlier
        if rows.residuals.n_rounds:
            mean = rows.mean(index, targets)
            inputs["mean"] = to_device(mean, rows.device, mean.dtype)
        return inputs, rows.on_device(targets)


def _first_row(item):
    """First row of tensors in nested dicts, lists and tuples."""
    if isinstance(item, dict):
        return {name: _first_row(value) for name, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(map(_first_row, item))
    return item[0]


class BatchIterator:
    """Random batches of a dataset of this file, each indexed in one piece.

    A trailing batch of a single row joins the one before it: batch normalisation has
    no variance for one row.

    Parameters
    ----------
    dataset : RawBatches or RoundBatches
    batch_size : int
    shuffle : bool, default=True
    ranks : OneRank
        Where the other rows are. Batches are cut from an order of all rows, and what is
        here of a batch is taken.
    """

    def __init__(self, dataset, batch_size, shuffle=True, ranks=ONE_RANK):
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self._ranks = ranks
        self._start, self._n_rows = ranks.place(len(dataset))

    def __len__(self):
        return n_batches(self._n_rows, self.batch_size)

    def __iter__(self):
        return map(self.dataset.__getitem__, self.indices())

    def indices(self):
        """Yield the numbers of the rows of each batch of an epoch, as tensors."""
        n_rows = self._n_rows
        order = torch.randperm(n_rows) if self.shuffle else torch.arange(n_rows)
        # Students may draw numbers too, which leaves the generators in other states.
        order = torch.from_numpy(self._ranks.of_first(order.numpy()))
        last = (len(self) - 1) * self.batch_size
        for start in range(0, last, self.batch_size):
            yield self._here(order[start : start + self.batch_size])
        yield self._here(order[last:])

    def _here(self, rows):
        """Those of some rows that are here, by their number here."""
        n_here = len(self.dataset)
        if n_here == self._n_rows:
            return rows
        rows = rows - self._start
        return rows[(rows >= 0) & (rows < n_here)]


class LoadedBatchIterator(BatchIterator):
    """Random batches of the rows of a dataset, which a DataLoader reads.

    Its workers read rows and nothing else: the order is that of
    :class:`BatchIterator`, whatever their number.

    Parameters
    ----------
    dataset : RawBatches or RoundBatches
        Over :class:`~skbdistil._dataset_rows.DatasetRows`.
    batch_size : int
    shuffle : bool, default=True
    views : bool, default=False
        Whether to read the views that are meant for training.
    **options : dict
        Of the DataLoader.
    """

    def __init__(self, dataset, batch_size, shuffle=True, views=False, **options):
        super().__init__(dataset, batch_size, shuffle)
        x = dataset.rows.x
        # Not of `self`: workers of an epoch end with the last reference to the loader,
        # which must be in no circle. Held, so that they may live on between epochs.
        order = BatchIterator(dataset, batch_size, shuffle)
        keys = _Keys(order, views and x.changes_rows)
        self.view_targets = dataset.rows.view_targets if views else None
        asks = self.view_targets is not None
        self.loader = x.loader(keys, asks=asks, **options)

    def __iter__(self):
        for index, x, entries in self.loader:
            index = torch.as_tensor(index)
            inputs, targets = self.dataset.batch(index, x)
            if self.view_targets is not None:
                # Here, and not in workers: its scores are the same for any number.
                scores = self.view_targets.of(index, x, entries)
                device = self.dataset.rows.device
                targets["teacher"] = to_device(scores, device, scores.dtype)
                # It is that of the clean rows. The batch computes that of the views.
                del targets["residual_sum"]
            yield inputs, targets


class _Keys:
    """What a DataLoader is to read in an epoch: rows, and the seed of their views."""

    def __init__(self, batches, views):
        self.batches = batches
        self.views = views

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        # Drawn here, and not in workers: of the training's generator.
        seed = int(torch.randint(2**31, ())) if self.views else None
        for index in self.batches.indices():
            yield index.numpy(), seed


def n_batches(n_rows, batch_size):
    """Number of batches of one epoch."""
    full, rest = divmod(n_rows, batch_size)
    return max(full + (rest > 1), 1)
