"""The table of what is run: data sets, their teachers and students, and methods.

Whatever changes a number here changes the fingerprint of its results, so that they are
measured again.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
)
from sklearn.tree import DecisionTreeClassifier

from benchmarks.accuracy_cost import data, methods, peers
from benchmarks.accuracy_cost.teachers import PooledConvNet, Teacher
from skbdistil import BDistilClassifier, DistillationObjective
from skbdistil.students import MLP, ConvNet1d, ConvNet2d, RecurrentNet


@dataclass(frozen=True)
class Student:
    """A backbone whose layers have given multiples of a width."""

    backbone: type
    keyword: str
    multiples: tuple

    def __call__(self, width):
        """Backbone factory of this width."""
        widths = tuple(width * multiple for multiple in self.multiples)
        return partial(self.backbone, **{self.keyword: widths})


@dataclass(frozen=True)
class DataSet:
    """Rows, teacher, and the settings that all methods share.

    Parameters
    ----------
    name, label : str
    load : callable
        A function of :mod:`~benchmarks.accuracy_cost.data`.
    teacher : Teacher
    student : Student
    width : int
    n_estimators : int
        Students of an ensemble, T.
    max_epochs : int
        Of each student, E.
    batch_size : int
    learning_rate : float
        Peak of the one-cycle schedule.
    single : Student or None
        Shape of single networks, where it is not that of `student`.
    n_train : int or None
        Training rows that students see, the first ones; None for all.
    files : tuple of str
        In the folder of the data.
    traits : frozenset of {"quick", "tabular", "convolutional", "network_teacher"}
        Methods that need one of these run on data sets that have it.
    """

    name: str
    label: str
    load: Callable
    teacher: Teacher
    student: Student
    width: int
    n_estimators: int
    max_epochs: int
    batch_size: int = 128
    learning_rate: float = 0.01
    single: Student | None = None
    n_train: int | None = None
    files: tuple = ()
    traits: frozenset = frozenset()


@dataclass(frozen=True)
class Method:
    """What is compared.

    Parameters
    ----------
    name, label : str
    run : callable
        Takes a :class:`~benchmarks.accuracy_cost.methods.Task` and `settings`, and
        returns a list of stages.
    settings : dict
    epochs : float or None
        Factor of the epochs of the data set; None for methods that have none.
    needs : frozenset
        Traits of the data sets that it runs on.
    ablation : bool
        Whether it is B-DISTIL with one part changed.
    quick : bool
        Whether ``--quick`` runs it.
    """

    name: str
    label: str
    run: Callable
    settings: dict = field(default_factory=dict)
    epochs: float | None = 1
    needs: frozenset = frozenset()
    ablation: bool = False
    quick: bool = False

    def fits(self, dataset):
        """Whether it runs on a data set."""
        return self.needs <= dataset.traits


def fingerprint(dataset, method):
    """Short hash of all settings that the numbers depend on, defaults included.

    Code is not part of it: delete the lines of what a change of code makes stale.
    """
    shown = ("label", "traits", "needs", "ablation", "quick")
    settings = [
        {key: value for key, value in asdict(part).items() if key not in shown}
        for part in (dataset, method)
    ]
    settings += [BDistilClassifier(), DistillationObjective()]
    text = json.dumps(settings, default=_as_text, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# Parameters that came after the results, with the values that change none of them.
_CHANGES_NOTHING = {
    "teacher_cv": "auto",
    "label_mix": "auto",
    "augment": None,
    "class_weight": None,
    "student_transform": None,
    "checkpoint": None,
    "temp_folder": None,
}


def _as_text(value):
    if isinstance(value, BaseEstimator):
        # Its repr leaves out what is as by default.
        params = value.get_params(deep=False)
        if isinstance(value, BDistilClassifier):
            for name, unchanged in _CHANGES_NOTHING.items():
                if name in params and params[name] == unchanged:
                    del params[name]
        return type(value).__qualname__, params
    # The repr of a function holds its address.
    return getattr(value, "__qualname__", None) or repr(value)


def _traits(*names):
    return frozenset(names)


mlp = Student(MLP, "hidden", (1,))
gru = Student(RecurrentNet, "hidden", (1,))
conv1d = Student(ConvNet1d, "channels", (1, 2))
conv2d = Student(ConvNet2d, "channels", (1, 2))
deep_conv2d = Student(ConvNet2d, "channels", (1, 2, 4))
# More channels in the first block, which all students of an ensemble share.
stem_conv2d = Student(ConvNet2d, "channels", (4, 3, 6))

wide_mlp = partial(MLP, hidden=(128, 128))
lstm = partial(RecurrentNet, hidden=(128,), cell="lstm")
wide_conv1d = partial(ConvNet1d, channels=(64, 128, 128))
boosted_trees = HistGradientBoostingClassifier(random_state=0)
trees = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=0)

fashion_teacher = Teacher("fashion_mnist", PooledConvNet, 6, 0.002)

# fmt: off
DATA_SETS = [
    # Name, label, loader, teacher (name, model, epochs, learning rate); student and its
    # width, number of students, epochs.
    DataSet("digits", "Digits", data.digits,
            Teacher("digits", wide_mlp, 60, 0.005), mlp, 8, 6, 40,
            batch_size=32, traits=_traits("quick", "tabular", "network_teacher")),
    DataSet("ellipsoid", "Ellipsoid", data.ellipsoid,
            Teacher("ellipsoid", wide_mlp, 30, 0.005), mlp, 8, 6, 30,
            traits=_traits("quick", "tabular", "network_teacher")),
    DataSet("cube", "Cube", data.cube,
            Teacher("cube", wide_mlp, 30, 0.005), mlp, 8, 6, 30,
            traits=_traits("quick", "tabular", "network_teacher")),
    DataSet("letter_hgb", "Letter, boosted trees", data.letter,
            Teacher("letter_hgb", boosted_trees), mlp, 16, 6, 8,
            files=("letter.npz",), traits=_traits("tabular")),
    DataSet("letter_trees", "Letter, randomized trees", data.letter,
            Teacher("letter_trees", trees), mlp, 16, 6, 8,
            files=("letter.npz",), traits=_traits("tabular")),
    DataSet("fashion_mnist", "Fashion-MNIST", data.fashion_mnist,
            fashion_teacher, mlp, 16, 6, 8, n_train=20000,
            files=("fashion_mnist.npz",), traits=_traits("network_teacher")),
    DataSet("fashion_mnist_conv", "Fashion-MNIST, convolutional",
            data.fashion_mnist_images,
            fashion_teacher, conv2d, 8, 4, 6, learning_rate=0.02, n_train=20000,
            files=("fashion_mnist.npz",),
            traits=_traits("convolutional", "network_teacher")),
    DataSet("cifar10", "CIFAR-10", data.cifar10,
            Teacher("cifar10", "cifar10_teacher.npz"), stem_conv2d, 4, 4, 4,
            learning_rate=0.02, single=deep_conv2d, n_train=25000,
            files=("cifar10_jpeg.npz", "cifar10_teacher.npz"),
            traits=_traits("convolutional", "network_teacher")),
    DataSet("dsa19", "DSA-19", data.dsa19,
            Teacher("dsa19", lstm, 15, 0.005), gru, 8, 4, 6,
            files=("dsa19.npz",), traits=_traits("network_teacher")),
    DataSet("fsdd", "Spoken digits", data.fsdd,
            Teacher("fsdd", wide_conv1d, 20, 0.005), conv1d, 8, 4, 20,
            learning_rate=0.02, files=("fsdd_logmel.npz",),
            traits=_traits("convolutional", "network_teacher")),
]


def _ablation(name, label, *needs, **settings):
    return Method(name, label, distil, settings, needs=_traits(*needs), ablation=True)


def _connection(name, label, connection, *needs):
    settings = {"connection": connection, "same_cost": True}
    return _ablation(f"connection_{name}", label, *needs, **settings)


distil = methods.distil
alone = DistillationObjective("kl", on="student", barrier=None)
boosted_mid_trees = AdaBoostClassifier(
    DecisionTreeClassifier(max_depth=6), n_estimators=100
)

METHODS = [
    # Name, label, function and its settings.
    Method("teacher", "Teacher", methods.teacher, epochs=None, quick=True),
    Method("bdistil", "B-DISTIL", distil, quick=True),
    # As much training as B-DISTIL: half of it in rounds, half of it together.
    Method("refine_final", "B-DISTIL, refined", distil,
           {"refine": "final", "refine_factor": 1}, epochs=0.5, quick=True),
    Method("refine_rounds", "B-DISTIL, refined each round", distil,
           {"refine": "rounds", "refine_factor": 1}, epochs=0.5),
    Method("multi_exit", "Trained jointly", distil,
           {"refine": "only", "refine_factor": 1}, quick=True),
    Method("together", "Trained jointly, cost of single students", distil,
           {"refine": "only"}),
    Method("barrier", "Barrier only", distil, {"objective": "barrier"}),
    Method("no_resched", "Single students", methods.single_students, quick=True),
    Method("resched", "Independent students", methods.independent_students,
           {"objective": alone}, quick=True),
    Method("resched_barrier", "Independent students, with barrier",
           methods.independent_students, quick=True),
    Method("plain", "Labels only", methods.single_networks),
    Method("bdistil_long", "B-DISTIL, three times the epochs", distil, epochs=3),
    Method("no_resched_long", "Single students, three times the epochs",
           methods.single_students, epochs=3),
    Method("together_long", "Trained jointly, cost of single students, three times",
           distil, {"refine": "only"}, epochs=3),
    Method("quarter", "B-DISTIL, a quarter of the teacher's cost", distil,
           {"teacher_share": 0.25}, needs=_traits("network_teacher")),
    Method("torchensemble_voting", "TorchEnsemble, voting", peers.torch_ensemble,
           {"name": "VotingClassifier"}),
    Method("torchensemble_gb", "TorchEnsemble, boosting", peers.torch_ensemble,
           {"name": "GradientBoostingClassifier"}),
    Method("adaboost", "AdaBoost", peers.sklearn_boosting,
           {"estimator": boosted_mid_trees}, epochs=None, needs=_traits("tabular")),
    Method("hist_gradient_boosting", "Boosted trees", peers.sklearn_boosting,
           {"estimator": HistGradientBoostingClassifier(max_iter=100)},
           epochs=None, needs=_traits("tabular")),
    _ablation("combine_mean", "Mean of the heads", combine="mean"),
    _ablation("combine_sum", "Sum of the heads", combine="sum"),
    _ablation("combine_learned", "Learned combination", combine="learned"),
    _connection("none", "No connection", None),
    _connection("dense", "Dense", "dense", "convolutional"),
    _connection("last", "Last", "last"),
    _connection("lateral", "Lateral, no shared block", "lateral", "convolutional"),
    _ablation("no_boosting", "eta = 0", eta=0),
    _ablation("no_barrier", "No barrier", objective="kl"),
]
# fmt: on
