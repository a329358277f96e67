"""Training through skorch, fed with whole batches of tensors.

The only file that trains. skorch brings the loop, callbacks, optimizers, schedulers
and mixed precision. What it does not bring is here: batches that are indexed in one
piece, heads that are centred, and telling an interrupt from early stopping.
"""

import copy
from functools import partial

import torch
from sklearn.base import clone
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from skorch.helper import predefined_split
from torch.utils.data import DataLoader

from skbdistil._boosting._combination import Combination
from skbdistil._boosting._ranks import ONE_RANK
from skbdistil._boosting._rows import BatchIterator, LoadedBatchIterator
from skbdistil._dataset_rows import DatasetRows
from skbdistil._seeding import seeded


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
            means.append(state.mean)
        return means


class _Net(NeuralNet):
    """The net that there is without a template: a step does what is needed here.

    That of skorch also takes optimizers that evaluate the loss several times, module
    arguments of any kind, and callbacks that look at gradients; for small students it
    takes as long as their forward pass.
    """

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        if iterator is None:
            return
        # Once: nothing else changes the mode within an epoch.
        self._set_training(training)
        step = self.train_step if training else self.validation_step
        # Of the callbacks that there are without a template, schedules alone.
        called = [
            callback
            for _, callback in self.callbacks_
            if type(callback).on_batch_end is not Callback.on_batch_end
        ]
        losses = []
        for batch in iterator:
            losses.append(step(batch).detach())
            self.history.new_batch()
            self.history.record_batch(f"{prefix}_batch_size", len(batch[0]["x"]))
            for callback in called:
                callback.on_batch_end(self, training=training)
        # To read a loss is to wait for the device: once, and not after each batch.
        batches = self.history[-1]["batches"][-len(losses) :]
        for recorded, loss in zip(batches, torch.stack(losses).tolist(), strict=True):
            recorded[f"{prefix}_loss"] = loss
        self.history.record(f"{prefix}_batch_count", len(losses))

    def train_step(self, batch):
        inputs, targets = batch
        self.optimizer_.zero_grad()
        # Batches come with their targets on the device.
        loss = self.criterion_(self.module_(**inputs), targets)
        loss.backward()
        self.optimizer_.step()
        return loss

    @torch.no_grad()
    def validation_step(self, batch):
        inputs, targets = batch
        return self.criterion_(self.module_(**inputs), targets)


class _Stop(KeyboardInterrupt):
    """Ends a training: what skorch's callbacks raise, told from Ctrl-C by its class."""


class _Progress(Callback):
    """Tell those who look at the fit of its epochs, and stop when one of them asks."""

    def __init__(self, bar):
        self.bar = bar

    def on_epoch_begin(self, net, **kwargs):
        self.bar.begin_epoch()

    def on_epoch_end(self, net, **kwargs):
        if self.bar.end_epoch():
            raise _Stop


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
    if hasattr(net, "accelerator"):
        raise ValueError(
            f"The 'net' parameter of {estimator_name} has an accelerator, which would "
            "share the rows a second time. Use skbdistil.parallel.DataParallelNet."
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
    """Trains students through skorch.

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
    centres : bool
        Whether the scores of a trained student are shifted to a mean of 0 in every
        row, as the teacher's are. Softmax does not see a shift that all logits share,
        so a distillation term leaves it undetermined; the game does see it.
    combine : {"mean", "sum", "learned"}
        How a student is combined with the earlier ones.
    ranks : OneRank
        Where the rows are.
    """

    def __init__(
        self,
        net,
        *,
        batch_size,
        learning_rate,
        device,
        patience,
        centres,
        combine,
        ranks=ONE_RANK,
    ):
        self.net = net
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.device = device
        self.patience = patience
        self.centres = centres
        self.combine = combine
        self.ranks = ranks

    @property
    def changes_rows(self):
        """Whether the template's iterator says that it changes rows."""
        iterator = None if self.net is None else self.net.iterator_train
        while isinstance(iterator, partial):
            iterator = iterator.func
        return getattr(iterator, "changes_rows", False)

    def train_student(self, student, criterion, rows, valid, **options):
        """Train the student of a round in place; see :meth:`train_jointly`."""
        data = [None if part is None else part.for_round() for part in (rows, valid)]
        residuals = rows.residuals
        number = residuals.rounds_of_outputs(residuals.n_rounds + 1)
        combination = Combination(student, number, self.combine)
        history = self._train(combination, [student], criterion, *data, **options)
        combination.settle()
        return history

    def train_jointly(self, ensemble, criterion, rows, valid, **options):
        """Train all students of an ensemble in place.

        Parameters
        ----------
        ensemble : ProgressiveEnsemble
            Not frozen.
        criterion : torch.nn.Module
        rows : RowData
        valid : RowData or None
            Rows that are only looked at.
        max_epochs : int
        seed : int
        bar : Epochs or None
            Told of each epoch.

        Returns
        -------
        history : list of dict
            One item an epoch: ``epoch``, ``train_loss``, and ``valid_loss`` where
            there are validation rows.
        """
        data = [
            None if part is None else part.for_joint_training()
            for part in (rows, valid)
        ]
        students = list(ensemble.students)
        return self._train(
            JointStudents(ensemble), students, criterion, *data, **options
        )

    def update_jointly(self, ensemble, criterion, rows, *, optimizer_state, seed):
        """Train all students in one pass over further rows, at a constant rate.

        Callbacks of the template, such as schedules, belong to whole trainings and have
        no part in this.

        Parameters
        ----------
        ensemble : ProgressiveEnsemble
            Not frozen.
        criterion : torch.nn.Module
        rows : RowData
        optimizer_state : dict or None
            What the last update of these students has returned.
        seed : int

        Returns
        -------
        optimizer_state : dict
        """
        data = rows.for_joint_training()
        net = self._net()
        net.callbacks = "disable"
        net = self._prepared_net(net, JointStudents(ensemble), criterion, data)
        self._run(net, list(ensemble.students), data, seed, optimizer_state)
        return {
            "optimizer": type(net.optimizer_).__name__,
            # On the CPU: what is pickled can then be loaded without a GPU.
            "state": {
                number: {
                    name: value.cpu() if torch.is_tensor(value) else value
                    for name, value in of_weight.items()
                }
                for number, of_weight in net.optimizer_.state_dict()["state"].items()
            },
        }

    def _train(
        self, module, students, criterion, data, valid, *, max_epochs, seed, bar=None
    ):
        net = self._prepared_net(
            self._net(), module, criterion, data, valid, max_epochs, bar
        )
        self._run(net, students, data, seed)
        return [
            {"epoch": row["epoch"]}
            | {
                key: float(row[key])
                for key in ("train_loss", "valid_loss")
                if key in row
            }
            for row in net.history
        ]

    def _run(self, net, students, data, seed, optimizer_state=None):
        """Train students in place by a net that is prepared."""
        with seeded(seed, self.device):
            net.initialize()
            name = type(net.optimizer_).__name__
            # Another optimizer than that of the update before starts anew.
            if optimizer_state is not None and optimizer_state["optimizer"] == name:
                # A copy, since steps are made in place; with the rate of now.
                state = {"state": copy.deepcopy(optimizer_state["state"])}
                net.optimizer_.load_state_dict(net.optimizer_.state_dict() | state)
            net.notify("on_train_begin", X=data, y=None)
            try:
                net.fit_loop(data)
            except KeyboardInterrupt as stop:
                # skorch's callbacks end training with the same exception as Ctrl-C.
                if not _raised_by_callback(stop):
                    raise
            except ValueError as error:
                # As torch words it.
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    "Batch normalisation cannot be trained in batches of one row. Set "
                    "'batch_size' to 2 or more, for at least two training rows."
                ) from error
            net.notify("on_train_end", X=data, y=None)
        if self.centres:
            for student in students:
                _centre(student.head)

    def _net(self):
        """The template, or what there is without one."""
        if self.net is not None:
            return clone(self.net)
        # The fused step is one kernel for all parameters; not every device has it.
        fused = self.device.type in ("cpu", "cuda")
        return _Net(
            None, criterion=None, optimizer=torch.optim.AdamW, optimizer__fused=fused
        )

    def _prepared_net(
        self, net, module, criterion, data, valid=None, max_epochs=1, bar=None
    ):
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
        x = data.rows.x
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
            iterator_train=_iterator(
                net, "iterator_train", x, self.ranks, shuffle=True
            ),
            # All rows that are held out are here.
            iterator_valid=_iterator(net, "iterator_valid", x, ONE_RANK, shuffle=False),
        )
        if self.ranks is not ONE_RANK:
            net.ranks_ = self.ranks
        if not scheduled:
            # An iterator of the template may give another number of batches.
            steps = len(net.get_iterator(data, training=True))
            schedule = LRScheduler(
                _one_cycle,
                max_lr=self.learning_rate,
                total_steps=max_epochs * steps,
                step_every="batch",
                event_name=None,
            )
            net.callbacks = [*callbacks, schedule]
        # Printing and timing would only cost; the losses are what we report.
        unused = ["print_log", "epoch_timer"] + ["valid_loss"] * (valid is None)
        return net.set_params(**{f"callbacks__{name}": None for name in unused})


class _PreparedBatches:
    """Batches of any iterator, as the module takes them.

    Parameters
    ----------
    dataset : RawBatches or RoundBatches
    iterator : callable
        Called with the dataset and the options.
    **options : dict
    """

    def __init__(self, dataset, *, iterator, **options):
        self.dataset = dataset
        self.batches = iterator(dataset, **options)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return map(self.dataset.prepared, self.batches)


def _iterator(net, name, x, ranks, *, shuffle):
    """The iterator of a template, or ours where it leaves skorch's as it is."""
    iterator = getattr(net, name)
    options = [key for key in vars(net) if key.startswith(f"{name}__")]
    samples = iterator is not DataLoader or any(
        key.endswith("sampler") for key in options
    )
    if isinstance(x, DatasetRows) and not samples:
        iterator = partial(
            LoadedBatchIterator, shuffle=shuffle, views=name == "iterator_train"
        )
    elif name == "iterator_train" and getattr(x, "changes_rows", False):
        raise ValueError(
            "The 'net' parameter sets an iterator_train or a sampler of its own, which "
            "does not read the views of a dataset. Leave both at skorch's default, or "
            "pass the clean dataset alone."
        )
    elif iterator is DataLoader:
        if set(options) <= {f"{name}__shuffle"}:
            iterator = partial(BatchIterator, shuffle=shuffle, ranks=ranks)
        elif not samples:
            # With workers, pinned memory and the like, which only a DataLoader knows.
            iterator = partial(DataLoader, shuffle=shuffle)
    return partial(_PreparedBatches, iterator=iterator)


def _one_cycle(optimizer, **options):
    """One-cycle schedule, of the momentum too where the optimizer has one."""
    cycles = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cycle_momentum=cycles, **options
    )


@torch.no_grad()
def _centre(head):
    """Shift the outputs of a linear map to a mean of 0."""
    head.weight -= head.weight.mean(0)
    head.bias -= head.bias.mean()


def _is_scheduler(callback):
    if isinstance(callback, tuple):
        callback = callback[1]
    kind = callback if isinstance(callback, type) else type(callback)
    return issubclass(kind, LRScheduler)


def _raised_by_callback(stop):
    """Whether a callback raised this, rather than Ctrl-C."""
    if isinstance(stop, _Stop):
        return True
    # One that can: those that are always there only compute.
    trace = stop.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    raised_by = trace.tb_frame.f_locals.get("self")
    return isinstance(raised_by, Callback) and not isinstance(
        raised_by, LRScheduler | _Progress
    )
