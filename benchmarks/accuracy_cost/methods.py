"""What a method does with one data set, teacher and seed: it returns its stages."""

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.accuracy_cost.data import Split
from benchmarks.accuracy_cost.networks import (
    LabelLoss,
    Stage,
    add_students,
    empty_ensemble,
    ensemble_macs,
    ensemble_stages,
    nearest_width,
    one_hot,
    train,
)
from benchmarks.accuracy_cost.teachers import Response
from skbdistil import BDistilClassifier
from skbdistil._boosting._combination import settle_as_mean
from skbdistil._boosting._game import auto_eta


@dataclass(frozen=True)
class Task:
    """One data set, teacher and seed.

    Parameters
    ----------
    data : DataSet
        The settings that all methods share.
    split : Split
        Without the training rows that students do not see.
    teacher : Response
        To these rows.
    epochs : int
        Of every training: those of the data set times the factor of the method.
    seed : int
    device : str
    """

    data: object
    split: Split
    teacher: Response
    epochs: int
    seed: int
    device: str

    @property
    def training(self):
        """What the trainings of all torch methods have in common."""
        return {
            "max_epochs": self.epochs,
            "batch_size": self.data.batch_size,
            "learning_rate": self.data.learning_rate,
            "device": self.device,
        }

    def macs(self, factory, n_students=1, connection="auto"):
        """Cumulative multiply-accumulates of students of one backbone, by stage."""
        return ensemble_macs(
            self.split.X_train.shape[1:],
            self.teacher.train.shape[1],
            factory,
            n_students,
            connection,
        )

    def spent(self):
        """Cumulative multiply-accumulates of `bdistil`, by stage."""
        return self.macs(self.data.student(self.data.width), self.data.n_estimators)

    def singles(self, costs):
        """Backbones of single networks that have the given costs."""
        shape = self.data.single or self.data.student
        for wanted in costs:
            width = nearest_width(wanted, lambda width: self.macs(shape(width))[-1])
            yield shape(width)


def teacher(task):
    """The teacher itself."""
    labels = task.teacher.test.argmax(axis=1)
    return [Stage(labels, task.teacher.macs, task.teacher.parameters)]


def distil(
    task,
    *,
    same_cost=False,
    teacher_share=None,
    eta_factor=None,
    refine_factor=None,
    **settings,
):
    """B-DISTIL, as the package has it but for `settings`.

    Parameters
    ----------
    task : Task
    same_cost : bool
        Whether the students are as wide as makes all of them cost what they do with
        the connection of the package.
    teacher_share : float or None
        Cost of all students in units of that of the teacher.
    eta_factor : float or None
        Step of the game in units of the automatic one.
    refine_factor : float or None
        Epochs of the refinement in units of those of a student.
    **settings : dict
        Parameters of the estimator.
    """
    width, n_students = task.data.width, task.data.n_estimators
    wanted = task.spent()[-1] if same_cost else None
    if teacher_share is not None:
        wanted = teacher_share * task.teacher.macs
    if wanted is not None:
        connection = settings.get("connection", "auto")

        def cost(width):
            return task.macs(task.data.student(width), n_students, connection)[-1]

        width = nearest_width(wanted, cost)
    if eta_factor is not None:
        scores = task.teacher.train
        eta = auto_eta(float(np.abs(scores).max()), len(scores), n_students)
        settings = settings | {"eta": eta_factor * eta}
    if refine_factor is not None:
        settings = settings | {"refine_epochs": round(refine_factor * task.epochs)}
    ensemble = _distil(task, task.data.student(width), n_students, **settings)
    return ensemble_stages(ensemble, task.split.X_test, task.device)


def _distil(task, factory, n_students, **settings):
    """Students distilled by the package, as an ensemble."""
    clf = BDistilClassifier(
        "precomputed",
        student=factory,
        n_estimators=n_students,
        random_state=task.seed,
        **(task.training | settings),
    )
    clf.fit(task.split.X_train, task.split.y_train, teacher_scores=task.teacher.train)
    return clf.ensemble_


def single_students(task, **settings):
    """NO-RESCHED: for each stage one student, of the cost of `bdistil` by then."""
    ensembles = [
        _distil(task, factory, 1, **settings) for factory in task.singles(task.spent())
    ]
    return [
        stage
        for ensemble in ensembles
        for stage in ensemble_stages(ensemble, task.split.X_test, task.device)
    ]


def independent_students(task, **settings):
    """RESCHED: the mean of students that each cost what a stage of `bdistil` does."""
    costs = np.diff(task.spent(), prepend=0)
    ensemble = None
    for position, factory in enumerate(task.singles(costs)):
        # Students of one width must not start from the same weights; the first one has
        # the seed of those it is compared with.
        one = replace(task, seed=task.seed + 1000 * position)
        found = _distil(one, factory, 1, connection=None, **settings)
        (student,) = found.students
        settle_as_mean(student, position + 1)
        if ensemble is None:
            ensemble = found
        else:
            ensemble.append(student)
    return ensemble_stages(ensemble, task.split.X_test, task.device)


def single_networks(task):
    """Networks like those of :func:`single_students` that see labels only."""
    labels = one_hot(task.split.y_train)
    X = task.split.X_train
    stages = []
    for factory in task.singles(task.spent()):
        network = empty_ensemble(X, labels.shape[1])
        add_students(network, factory, 1, task.seed)
        train(network, X, labels, LabelLoss(), seed=task.seed, **task.training)
        stages += ensemble_stages(network, task.split.X_test, task.device)
    return stages
