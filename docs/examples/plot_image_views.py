"""
=====================================
Augmented images, read from a dataset
=====================================

Images in a folder need not be in memory: a dataset of torch gives them by their number,
when they are needed. Students may train on shifted images, while the boosting game sees
each image as it is. What they learn of a shifted image may be what the teacher says of
the image as it is, or of the shifted one.
"""

# %%
# A dataset
# ---------
# Digits of 8 x 8 pixels stand for the folder. There are few to train on, so that
# students come to know them by heart.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import Dataset

from skbdistil import BDistilClassifier
from skbdistil.datasets import Views
from skbdistil.students import ConvNet2d
from skbdistil.teachers import TorchTeacher

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 1, 8, 8).astype(np.float32)
images, X_test, labels, y_test = train_test_split(
    images, labels, train_size=300, stratify=labels, random_state=0
)


class Digits(Dataset):
    """An item is an image and its label; `shifts` moves it by half a pixel at most."""

    def __init__(self, shifts=False):
        self.shifts = shifts

    def __len__(self):
        return len(images)

    def __getitem__(self, index):
        image = images[index]
        if self.shifts:
            for axis in (1, 2):
                share = float(torch.rand(())) - 0.5
                neighbour = np.roll(image, int(np.sign(share)), axis=axis)
                image = (1 - abs(share)) * image + abs(share) * neighbour
            image = image.astype(np.float32)
        return image, labels[index]


# %%
# A teacher
# ---------
# A convolutional network, trained on the images as they are and asked batch by batch.

torch.manual_seed(0)
teacher = NeuralNetClassifier(
    nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    ),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    max_epochs=15,
    batch_size=32,
    train_split=None,
    verbose=0,
).fit(images, labels)

# %%
# Students with and without views
# -------------------------------
# ``Views`` holds the clean images and those that training sees, under the same numbers.
# With ``teacher_on="view"`` the teacher is asked about the shifted images.

curves = {}
for name, dataset in {
    "clean images": Digits(),
    "shifted, teacher on clean images": Views(Digits(), Digits(shifts=True)),
    "shifted, teacher on these": Views(
        Digits(), Digits(shifts=True), teacher_on="view"
    ),
}.items():
    clf = BDistilClassifier(
        TorchTeacher(teacher.module_),
        student=ConvNet2d,
        n_estimators=3,
        max_epochs=25,
        random_state=0,
    )
    clf.fit(dataset)
    curves[name] = list(clf.staged_score(X_test, y_test))

figure, axes = plt.subplots(layout="constrained")
for name, scores in curves.items():
    axes.plot(range(1, len(scores) + 1), scores, marker="o", label=name)
axes.set(xlabel="stage", ylabel="test accuracy", xticks=[1, 2, 3])
figure.legend(loc="outside upper center")
plt.show()

# %%
# Shifts help most where the teacher is asked about the images as they are. It has not
# seen any shifts in its own training and errs more often about them. A teacher that was
# trained on such views is better asked about these; see :ref:`teacher_on_views`.
#
# The number of workers that read images is an option of the ``net`` template. It
# changes no student; see :doc:`/large_data`.
