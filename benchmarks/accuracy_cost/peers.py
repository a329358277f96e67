"""What a user would try instead: other ensembles, trained on the labels."""

import copy
import io
from contextlib import redirect_stdout

import torch
from sklearn.base import clone
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.accuracy_cost.networks import (
    Stage,
    empty_ensemble,
    module_stage,
    torch_device,
)
from skbdistil._seeding import seeded
from skbdistil.stages import _cut

# Iterations of scikit-learn's boosting that are stages here; the last ones are the same
# where it stopped early.
ITERATIONS = (1, 3, 10, 30, 100)


def sklearn_boosting(task, *, estimator):
    """A boosting of scikit-learn."""
    split = task.split
    fitted = clone(estimator).set_params(random_state=task.seed)
    fitted.fit(split.X_train, split.y_train)
    parts = [_cut(fitted, n_iterations) for n_iterations in ITERATIONS]
    return [Stage(part.predict(split.X_test), predict=part.predict) for part in parts]


class _Network(nn.Module):
    """A student that stands alone; a class, since TorchEnsemble copies instances."""

    def __init__(self, empty, factory):
        super().__init__()
        self.network = copy.deepcopy(empty)
        self.network.append(self.network.new_student(factory))
        self.network.unfreeze()

    def forward(self, x):
        return self.network(x)


def torch_ensemble(task, *, name):
    """An ensemble of the package TorchEnsemble, of the students of `bdistil`.

    Parameters
    ----------
    task : Task
    name : str
        Of the class.
    """
    import torchensemble

    X, y = task.split.X_train, task.split.y_train
    rows = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(y).long())
    # Batches are indexed in one piece; the last one may be too small to normalise.
    batches = BatchSampler(RandomSampler(rows), task.data.batch_size, drop_last=True)
    loader = DataLoader(rows, sampler=batches, batch_size=None)
    device = torch_device(task.device)
    model = getattr(torchensemble, name)(
        estimator=_Network,
        estimator_args={
            "empty": empty_ensemble(X, task.teacher.train.shape[1]),
            "factory": task.data.student(task.data.width),
        },
        n_estimators=task.data.n_estimators,
        cuda=device.type == "cuda",
    )
    model.set_optimizer("AdamW", lr=task.data.learning_rate)
    model.set_scheduler("CosineAnnealingLR", T_max=task.epochs)
    with seeded(task.seed, device), redirect_stdout(io.StringIO()):
        model.fit(loader, epochs=task.epochs, save_model=False)
    stages = []
    for stage in range(1, task.data.n_estimators + 1):
        part = copy.deepcopy(model)
        part.estimators_ = part.estimators_[:stage]
        stages.append(module_stage(part, task.split.X_test, task.device))
    return stages
