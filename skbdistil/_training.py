"""Training through skorch, fed with whole batches of tensors.

The only file that trains. skorch brings the loop, callbacks, optimizers, schedulers
and mixed precision; what it does not bring is here: batches that are indexed from
tensors in one piece, the features of earlier students computed once per round, and
telling an interrupt from early stopping.
"""

import dis
import math
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.base import clone
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from skorch.helper import predefined_split
from torch.utils.data import DataLoader, Dataset

from skbdistil._random import torch_seed

# Rows, and numbers in them, that are run at once where no gradient is needed.
_CHUNK_ROWS = 4096
_CHUNK_SIZE = 2**25

# Optimizer steps that max_epochs="auto" guarantees, and epochs it takes at least.
_MIN_STEPS = 1000
_MIN_EPOCHS = 8


def resolve_device(device, dtype, estimator_name):
    """Turn the `device` parameter into a torch device.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` takes CUDA, then MPS (which has no float64), then the CPU.
    dtype : torch.dtype
    estimator_name : str
        Name of the estimator, for messages.

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


def chunk_rows(input_shape):
    """Rows to run at once where no gradient is needed: fewer of large ones.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of a row.

    Returns
    -------
    n_rows : int
    """
    return max(1, min(_CHUNK_ROWS, _CHUNK_SIZE // math.prod(input_shape)))


def as_tensor(array):
    """View a NumPy array as a tensor without copying, read-only ones included.

    Nothing in the package writes to the tensors it gets from here.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)


class RowData(Dataset):
    """Rows as the students of the current round need them.

    Indexing with an integer, a slice or a list or tensor of indices gives
    ``(inputs, targets)``: the arguments of the module in training, and what its loss
    compares with.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    x : torch.Tensor of shape (n, ...)
        In the dtype in which the user gave it.
    teacher : torch.Tensor of shape (n, n_outputs)
    residual_sum : torch.Tensor of shape (n, n_outputs)
        Shares its memory with the game.
    sample_weight : torch.Tensor of shape (n,) or None
        Of mean 1.
    label : torch.Tensor or None
        Class indices (n,) or targets (n, n_outputs), for the label term.
    device : torch.device
    n_students : int
        Number of students that there will be: what the last of them keeps is not held.
    cache_features : bool
        Whether to hold what earlier students keep for later ones, for all rows, or to
        run them again for every batch.

    Attributes
    ----------
    n_previous : int
        Number of earlier students.
    joint : bool
        Whether all students are trained together: the inputs are then the rows as the
        user gave them, and the residual sum is left out.
    """

    def __init__(
        self,
        ensemble,
        x,
        teacher,
        residual_sum,
        *,
        n_students,
        sample_weight=None,
        label=None,
        device,
        cache_features=True,
    ):
        self.ensemble = ensemble
        self.x = x
        self.residual_sum = residual_sum
        self.device = device
        self.n_students = n_students
        self.cache_features = cache_features
        self._targets = {"teacher": teacher}
        if sample_weight is not None:
            self._targets["sample_weight"] = sample_weight
        if label is not None:
            self._targets["label"] = label
        self.joint = False
        self.forget()

    @property
    def teacher(self):
        """Scores of the teacher, of shape (n, n_outputs)."""
        return self._targets["teacher"]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if isinstance(index, int):
            return _first_row(self[[index]])
        targets = {name: rows[index] for name, rows in self._targets.items()}
        if self.joint:
            return {"x": self._input(index)}, targets
        targets["residual_sum"] = self.residual_sum[index]
        return self._inputs(index, targets), targets

    def _input(self, index):
        return self.x[index].to(self.device, self.teacher.dtype)

    def _inputs(self, index, targets):
        """Arguments of the next student."""
        inputs = {"x": self.ensemble.scale(self._input(index))}
        if self.n_previous == 0:
            return inputs
        if self.cache_features:
            read = self.ensemble.read_by(self.n_previous)
            earlier = [
                tuple(rows[index].to(self.device) for rows in kept)
                if position in read
                else ()
                for position, kept in enumerate(self._cache)
            ]
        else:
            with torch.no_grad():
                earlier = self._run_earlier(index)
        if any(earlier):
            inputs["earlier"] = earlier
        # F_{t-1} = g + S / (t - 1) needs no pass over the earlier students.
        mean = targets["teacher"] + targets["residual_sum"] / self.n_previous
        inputs["mean"] = mean.to(self.device)
        return inputs

    def _run_earlier(self, index):
        state = self.ensemble.start(self._input(index))
        for _ in range(self.n_previous):
            state.advance()
        return state.earlier

    @torch.no_grad()
    def run(self, student):
        """Scores of the next student on all rows, and what it keeps.

        Parameters
        ----------
        student : torch.nn.Module

        Returns
        -------
        scores : ndarray of shape (n, n_outputs)
        kept : tuple of torch.Tensor
            Empty where features are not cached, or no later student reads them.
        """
        was_training = student.training
        student.eval()
        scores, kept = [], ()
        n_rows = chunk_rows(self.x.shape[1:])
        for start in range(0, len(self), n_rows):
            inputs, _ = self[start : start + n_rows]
            chunk_scores, chunk_kept = student(**inputs)
            scores.append(chunk_scores.cpu())
            if self.cache_features and self.n_previous + 1 < self.n_students:
                # Filled in place: whole maps of all rows must not be there twice.
                kept = kept or tuple(
                    torch.empty((len(self), *rows.shape[1:]), dtype=rows.dtype)
                    for rows in chunk_kept
                )
                for held, rows in zip(kept, chunk_kept, strict=True):
                    held[start : start + n_rows] = rows
        student.train(was_training)
        return torch.cat(scores).numpy(), kept

    def keep(self, kept):
        """Go on to the next student, holding what this one keeps for later ones."""
        if self.cache_features:
            self._cache.append(kept)
        self.n_previous += 1

    def forget(self):
        """Go back to the first student."""
        self._cache = []
        self.n_previous = 0


def _first_row(item):
    """First row of tensors in nested dicts, lists and tuples."""
    if isinstance(item, dict):
        return {name: _first_row(value) for name, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(map(_first_row, item))
    return item[0]


class JointStudents(torch.nn.Module):
    """All students as one module that returns the running means of all stages.

    In the units of the game, whatever those of the ensemble's output are.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
    """

    def __init__(self, ensemble):
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x):
        state = self.ensemble.start(x)
        means = []
        for _ in self.ensemble.students:
            state.advance()
            means.append(state.total / state.n_stages)
        return means


class _BatchIterator:
    """Random batches of a :class:`RowData`, each indexed in one piece.

    A trailing batch of a single row joins the one before it: batch normalisation has
    no variance for one row.
    """

    def __init__(self, dataset, batch_size, shuffle=True):
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle

    def __len__(self):
        return n_batches(len(self.dataset), self.batch_size)

    def __iter__(self):
        n_rows = len(self.dataset)
        order = torch.randperm(n_rows) if self.shuffle else torch.arange(n_rows)
        last = (len(self) - 1) * self.batch_size
        for start in range(0, last, self.batch_size):
            yield self.dataset[order[start : start + self.batch_size]]
        yield self.dataset[order[last:]]


def n_batches(n_rows, batch_size):
    """Number of batches of one epoch."""
    full, rest = divmod(n_rows, batch_size)
    return max(full + (rest > 1), 1)


def resolve_batch_size(batch_size, n_rows, estimator_name):
    """Batch size in rows; ``"auto"`` grows from 32 to 256 with the number of rows.

    Parameters
    ----------
    batch_size : int or "auto"
    n_rows : int
    estimator_name : str
        Name of the estimator, for messages.

    Returns
    -------
    batch_size : int
        At most `n_rows`.
    """
    if batch_size == "auto":
        return min(n_rows, 256, max(32, 2 ** int(np.log2(n_rows / 32 + 1))))
    if batch_size > n_rows:
        raise ValueError(
            f"The 'batch_size' parameter of {estimator_name} is {batch_size}, but "
            f"there are only {n_rows} training rows. Use at most {n_rows}, or 'auto'."
        )
    return batch_size


def resolve_epochs(max_epochs, n_rows, batch_size):
    """Epochs per student; ``"auto"`` guarantees a number of optimizer steps."""
    if max_epochs == "auto":
        steps = n_batches(n_rows, batch_size)
        return max(_MIN_EPOCHS, -(-_MIN_STEPS // steps))
    return max_epochs


class _Progress(Callback):
    """Tell a progress bar that an epoch is over."""

    def __init__(self, bar):
        self.bar = bar

    def on_epoch_end(self, net, **kwargs):
        self.bar.update()


_OWN_PARAMETERS = {
    "max_epochs": "max_epochs",
    "lr": "learning_rate",
    "batch_size": "batch_size",
    "device": "device",
    "module": "student",
    "criterion": "objective",
}

_NOT_OF_THE_TEMPLATE = (
    "module__",
    "criterion__",
    "iterator_train__batch_size",
    "iterator_valid__batch_size",
)


def check_net(net, estimator_name):
    """Refuse a template whose settings would be overwritten without a word.

    Parameters
    ----------
    net : skorch.NeuralNet or None
    estimator_name : str
        Name of the estimator, for messages.
    """
    if net is None:
        return
    if not isinstance(net, NeuralNet):
        raise ValueError(
            f"The 'net' parameter of {estimator_name} must be None or a skorch "
            f"NeuralNet, for example NeuralNet(None, criterion=None, ...). Got {net!r} "
            "instead."
        )
    blank = NeuralNet(None, criterion=None)
    for name, ours in _OWN_PARAMETERS.items():
        if getattr(net, name) != getattr(blank, name):
            raise ValueError(
                f"The 'net' parameter of {estimator_name} sets "
                f"{name}={getattr(net, name)!r}; this is set by the parameter '{ours}' "
                f"of {estimator_name}. Leave it at skorch's default "
                f"({getattr(blank, name)!r}) in the template."
            )
    for name in vars(net):
        if name.startswith(_NOT_OF_THE_TEMPLATE):
            raise ValueError(
                f"The 'net' parameter of {estimator_name} sets {name}, which has no "
                "effect here: student, objective and batches are those of "
                f"{estimator_name}."
            )


class Trainer:
    """Trains a module on a :class:`RowData` through skorch.

    Parameters
    ----------
    net : skorch.NeuralNet or None
        Template; None takes AdamW. A one-cycle schedule is added unless the template
        has a scheduler of its own or its callbacks are disabled.
    batch_size : int
    learning_rate : float
        Peak of the schedule.
    device : torch.device
    patience : int or None
        Epochs without progress on the validation rows before a student's training
        ends, its best state being kept; None never stops early.
    """

    def __init__(self, net, *, batch_size, learning_rate, device, patience):
        self.net = net
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.device = device
        self.patience = patience

    def train(self, module, criterion, rows, valid, *, max_epochs, seed, bar=None):
        """Train in place.

        Parameters
        ----------
        module, criterion : torch.nn.Module
        rows : RowData
        valid : RowData or None
            Rows that are only looked at.
        max_epochs : int
        seed : int
        bar : tqdm or None
            Progress bar, updated once an epoch.

        Returns
        -------
        history : list of dict
            One item an epoch: ``epoch``, ``train_loss``, and ``valid_loss`` where
            there are validation rows.
        """
        net = self._prepared_net(module, criterion, rows, valid, max_epochs, bar)
        with torch_seed(seed, self.device):
            net.initialize()
            net.notify("on_train_begin", X=rows, y=None)
            try:
                net.fit_loop(rows)
            except KeyboardInterrupt as stop:
                # skorch's callbacks end training with the same exception as Ctrl-C.
                if not _raised_by_callback(stop):
                    raise
            net.notify("on_train_end", X=rows, y=None)
        return [
            {"epoch": row["epoch"]}
            | {
                key: float(row[key])
                for key in ("train_loss", "valid_loss")
                if key in row
            }
            for row in net.history
        ]

    def _prepared_net(self, module, criterion, rows, valid, max_epochs, bar):
        if self.net is None:
            # The fused step is one kernel for all parameters; not every device has it.
            fused = self.device.type in ("cpu", "cuda")
            net = NeuralNet(
                None,
                criterion=None,
                optimizer=torch.optim.AdamW,
                optimizer__fused=fused,
            )
        else:
            net = clone(self.net)
        disabled = isinstance(net.callbacks, str)
        # Without names of ours, which might be names of the template's.
        callbacks = [] if disabled else list(net.callbacks or [])
        scheduled = disabled or any(map(_is_scheduler, callbacks))
        if self.patience is not None:
            stopping = EarlyStopping(
                patience=self.patience,
                # A loss with a barrier may be negative: no relative threshold.
                threshold_mode="abs",
                load_best=True,
            )
            callbacks.append(stopping)
        if bar is not None:
            callbacks.append(_Progress(bar))
        # Not by set_params: skorch cannot replace callbacks that are disabled.
        net.callbacks = callbacks
        net.set_params(
            # skorch takes what makes a module; these are made, and trained in place.
            module=lambda: module,
            criterion=lambda: criterion,
            train_split=None if valid is None else predefined_split(valid),
            max_epochs=max_epochs,
            lr=self.learning_rate,
            batch_size=self.batch_size,
            device=str(self.device),
            verbose=0,
            warm_start=False,
        )
        if net.iterator_train is DataLoader:
            net.set_params(iterator_train=_BatchIterator)
        if net.iterator_valid is DataLoader:
            net.set_params(iterator_valid=partial(_BatchIterator, shuffle=False))
        if not scheduled:
            # An iterator of the template may give another number of batches.
            steps = len(net.get_iterator(rows, training=True))
            schedule = LRScheduler(
                torch.optim.lr_scheduler.OneCycleLR,
                max_lr=self.learning_rate,
                total_steps=max_epochs * steps,
                step_every="batch",
                event_name=None,
            )
            net.callbacks = [*callbacks, schedule]
        # Printing and timing would only cost; the losses are what we report.
        unused = ["print_log", "epoch_timer"] + ["valid_loss"] * (valid is None)
        return net.set_params(**{f"callbacks__{name}": None for name in unused})


def _is_scheduler(callback):
    if isinstance(callback, tuple):
        callback = callback[1]
    kind = callback if isinstance(callback, type) else type(callback)
    return issubclass(kind, LRScheduler)


def _raised_by_callback(stop):
    """Whether a callback raised this on purpose, rather than Ctrl-C."""
    trace = stop.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    # Ctrl-C may hit a callback too, but then at any other instruction.
    instruction = dis.opname[frame.f_code.co_code[trace.tb_lasti]]
    return instruction == "RAISE_VARARGS" and isinstance(
        frame.f_locals.get("self"), Callback
    )
