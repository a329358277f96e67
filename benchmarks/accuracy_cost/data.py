"""Data sets as the students see them, each by a function of the same form.

Every function takes the folder of the data and that of the cache, and returns a
:class:`Split` with labels from 0 on.
"""

import io
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.accuracy_cost.results import replacing
from skbdistil.datasets import make_cube, make_ellipsoid


class Split(NamedTuple):
    """Rows to train on and rows to test on.

    `groups` says which training rows belong together, such as those of one person; None
    where each stands for itself.
    """

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    groups: np.ndarray | None = None


def digits(folder, cache):
    return _half(*load_digits(return_X_y=True))


def ellipsoid(folder, cache):
    return _half(*make_ellipsoid(n_samples=8000, n_features=32, random_state=0))


def cube(folder, cache):
    return _half(*make_cube(n_samples=8000, n_features=32, random_state=0))


def letter(folder, cache):
    return _stored(folder / "letter.npz")


def fashion_mnist(folder, cache):
    split = _stored(folder / "fashion_mnist.npz")
    return split._replace(
        X_train=split.X_train.reshape(-1, 784), X_test=split.X_test.reshape(-1, 784)
    )


def fashion_mnist_images(folder, cache):
    split = _stored(folder / "fashion_mnist.npz")
    return split._replace(X_train=split.X_train[:, None], X_test=split.X_test[:, None])


def cifar10(folder, cache):
    """Images as uint8, decoded once."""
    with np.load(folder / "cifar10_jpeg.npz") as file:
        images = []
        for part in ("train", "test"):
            decoded = cache / f"cifar10_{part}.npy"
            if not decoded.exists():
                pixels = _decode(file[f"jpeg_{part}"], file[f"offsets_{part}"])
                with replacing(decoded) as temporary:
                    np.save(temporary, pixels)
            images.append(np.load(decoded, mmap_mode="r"))
        return Split(images[0], file["y_train"], images[1], file["y_test"])


def dsa19(folder, cache):
    """Activities of people who are not in the training rows."""
    with np.load(folder / "dsa19.npz") as file:
        X, y, subject = (
            np.concatenate([file[f"{name}_train"], file[f"{name}_test"]])
            for name in ("X", "y", "subject")
        )
        X = np.sinh(X * (file["asinh_max"] / 127)) * file["scale"] + file["center"]
    X = X.astype(np.float32)
    test = subject >= 7
    return Split(X[~test], y[~test], X[test], y[test], subject[~test])


def fsdd(folder, cache):
    return _stored(folder / "fsdd_logmel.npz")


def _half(X, y):
    X_train, X_test, y_train, y_test = train_test_split(
        X.astype(np.float32), y, test_size=0.5, random_state=0, stratify=y
    )
    return Split(X_train, y_train, X_test, y_test)


def _stored(path):
    with np.load(path) as file:
        return Split(*(file[name] for name in Split._fields if name in file))


def _decode(jpeg, offsets):
    from PIL import Image

    jpeg = jpeg.tobytes()
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(jpeg[start:stop]))).transpose(2, 0, 1)
            for start, stop in pairwise(offsets)
        ]
    )
