"""Fits that share their rows among processes."""

import torch
from skorch import NeuralNet

from skbdistil._boosting._shared_norm import batch_norms, shared_statistics

if torch.distributed.is_available():
    # Defaults of its functions hold the group that is there when it is imported, which
    # optimizers do on the way: destroy_process_group would not end the group's threads,
    # and the process may abort at its end. Here, there is no group yet.
    import torch.distributed.nn

__all__ = ["DataParallelNet"]


class DataParallelNet(NeuralNet):
    """Template for a fit whose rows are shared among processes.

    As the parameter `net` of an estimator, it makes all processes of
    ``torch.distributed`` fit one ensemble together. Each process calls `fit` with the
    same rows and parameters. It trains on a part of each batch, and keeps the state of
    the boosting game and the features of earlier students for its part of the rows.
    All processes get the same ensemble, that of one process but for rounding. See
    :doc:`/data_parallel` for how to start them, and for what is not supported.

    Parameters
    ----------
    module : None, default=None
        The estimator sets it.

    criterion : None, default=None
        The estimator sets it.

    optimizer : type, default=torch.optim.AdamW
        Subclass of ``torch.optim.Optimizer``. One that evaluates the loss several
        times a step, such as ``torch.optim.LBFGS``, is an error in `fit`.

    **settings : dict
        Callbacks and options of the optimizer, as for ``skorch.NeuralNet``. Callbacks
        are run in each process.

    See Also
    --------
    skbdistil.precomputed.precompute_scores : Asks the teacher once for all processes.

    Examples
    --------
    One process is a group, too. ``torchrun`` starts several, and sets what
    ``init_process_group`` is told here.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from torch import distributed
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.parallel import DataParallelNet
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(
    ...     net=DataParallelNet(), n_estimators=2, max_epochs=2, random_state=0
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     distributed.init_process_group(
    ...         "gloo",
    ...         init_method=(Path(folder) / "store").as_uri(),
    ...         rank=0,
    ...         world_size=1,
    ...     )
    ...     clf.fit(X, y).predict(X[:2]).tolist()
    ...     distributed.destroy_process_group()
    [0, 0]
    """

    # The estimator looks for it.
    shares_rows = True

    def __init__(
        self, module=None, criterion=None, *, optimizer=torch.optim.AdamW, **settings
    ):
        super().__init__(module, criterion, optimizer=optimizer, **settings)

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train as skorch does, with batch normalisation over all rows of a batch.

        Parameters
        ----------
        X : torch.utils.data.Dataset
            The rows that are here.

        y : None
            Not used.

        epochs : int or None, default=None
            None takes `max_epochs`.

        **fit_params : dict
            Not used.

        Returns
        -------
        net : DataParallelNet
        """
        with shared_statistics(self.module_, self.ranks_):
            return super().fit_loop(X, y, epochs, **fit_params)

    def validation_step(self, batch, **fit_params):
        """Loss of a batch of rows held out, which are all in each process.

        Parameters
        ----------
        batch : tuple of dict
            Inputs and targets.

        **fit_params : dict
            Not used.

        Returns
        -------
        step : dict
            ``loss``, as the first process finds it, and ``y_pred``.
        """
        step = super().validation_step(batch, **fit_params)
        # Processes that differ in the last bit would not stop after the same epoch.
        loss = self.ranks_.of_first(step["loss"].numpy(force=True))
        return step | {"loss": torch.from_numpy(loss)}

    def train_step(self, batch, **fit_params):
        """Make one step with the gradient over all rows of a batch.

        Parameters
        ----------
        batch : tuple of dict
            Inputs and targets of the rows that are here; there may be none.

        **fit_params : dict
            Not used.

        Returns
        -------
        step : dict
            ``loss``, the mean over all rows, and ``n_rows``, their number.
        """
        inputs, targets = batch
        self._set_training(True)
        self.optimizer_.zero_grad()
        n_rows = len(targets["teacher"])
        loss = None
        if n_rows or batch_norms(self.module_):
            # A sum, so that rows count alike wherever they are.
            mean = self.get_loss(self.module_(**inputs), targets, training=True)
            loss = mean * n_rows
            loss.backward()
        loss, n_rows = self._share_gradients(loss, n_rows)
        self.notify(
            "on_grad_computed",
            named_parameters=list(self.get_all_learnable_params()),
            batch=batch,
            training=True,
        )
        self.optimizer_.step()
        return {"loss": loss, "n_rows": n_rows}

    def on_batch_end(self, net, batch=None, training=False, n_rows=None, **kwargs):
        """Record how many rows the loss is the mean of."""
        super().on_batch_end(net, batch=batch, training=training, **kwargs)
        if training:
            self.history.record_batch("train_batch_size", n_rows)

    @torch.no_grad()
    def _share_gradients(self, loss, n_rows):
        """Gradient of the mean over all rows, in all processes, in one exchange."""
        parameters = [
            parameter
            for group in self.optimizer_.param_groups
            for parameter in group["params"]
        ]
        # A parameter that the loss does not reach gets no gradient, not one of 0: an
        # optimizer leaves it alone.
        reached = [parameter.grad is not None for parameter in parameters]
        head = parameters[0].new_tensor([n_rows, 0.0, *reached])
        # Without rows, there is no mean.
        if n_rows:
            head[1] = loss
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        flat = torch.cat([head, *(gradient.flatten() for gradient in gradients)])
        total = self.ranks_.sum_tensor(flat)
        n_rows, loss, *reached = total[: len(head)].tolist()
        start = len(head)
        for parameter, is_reached in zip(parameters, reached, strict=True):
            end = start + parameter.numel()
            gradient = total[start:end].view_as(parameter) / n_rows
            parameter.grad = gradient if is_reached else None
            start = end
        return total.new_tensor(loss / n_rows), int(n_rows)
