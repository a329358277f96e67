"""Datasets with views for training, and simulated data for several small networks."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils import shuffle as shuffle_rows
from sklearn.utils.random import sample_without_replacement
from torch.utils.data import Dataset, IterableDataset

from skbdistil._sklearn_compat import Interval, validate_params

__all__ = ["Columns", "Views", "make_cube", "make_ellipsoid"]


class Views(Dataset):
    """A dataset, and the views of its rows that training sees.

    Students train on random views: crops, flips, noise. Everything else reads the clean
    rows: input scaling, the game, early stopping, predictions, and the teacher, which
    may be asked about the views, too.

    Arrays and slices of row numbers give the views of these rows, so that scikit-learn
    can split them. An integer gives an item of `clean`.

    Parameters
    ----------
    clean : torch.utils.data.Dataset
        Map-style: with a length and an index. An item is a row, or a tuple of a row and
        its label. A row is the same each time that it is read.

    train : torch.utils.data.Dataset, default=None
        Views of the rows of `clean`, with the same length, order, shape and dtype. May
        draw from the global generators of torch, NumPy and Python, which are seeded for
        each item by the `random_state` of the fit, the epoch and the number of the row.
        Its labels are not read. `None` trains on the clean rows.

    teacher_on : {"clean", "view"}, default="clean"
        What students learn of a view: the teacher's scores of the clean row, which is
        asked about once, or of the view itself. For ``"view"`` the teacher runs in
        every step of the training, as a patient teacher [1]_ does: a pass of it for
        each view. Needs `train`, and a teacher that can be asked: not
        ``"precomputed"``.

    Raises
    ------
    TypeError
        If a dataset has no length or no index.

    ValueError
        If the lengths differ, or if `teacher_on` is not one of its values or is
        ``"view"`` where there are no views.

    Notes
    -----
    With both values of `teacher_on`, earlier students run on the view, and labels are
    those of the clean row, whose share (`label_mix`) goes into the teacher's scores of
    the view as it does into those of the clean row.

    A generator that the dataset holds, such as ``np.random.default_rng(0)``, is not
    seeded: views then depend on the number of workers.

    References
    ----------
    .. [1] L. Beyer, X. Zhai, A. Royer, L. Markeeva, R. Anil, A. Kolesnikov, "Knowledge
           distillation: A good teacher is patient and consistent", CVPR 2022,
           arXiv:2106.05237.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import Dataset, TensorDataset
    >>> from skbdistil.datasets import Views
    >>> clean = TensorDataset(torch.rand(100, 1, 8, 8), torch.arange(100) % 2)
    >>> class Flipped(Dataset):
    ...     def __len__(self):
    ...         return len(clean)
    ...
    ...     def __getitem__(self, index):
    ...         image, label = clean[index]
    ...         return image.flip(-1) if torch.rand(()) < 0.5 else image, label
    >>> views = Views(clean, Flipped())
    >>> len(views), len(views[:10])
    (100, 10)

    A teacher that is asked about the flipped images:

    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.students import ConvNet2d
    >>> from skbdistil.teachers import TorchTeacher
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> teacher = TorchTeacher(module)
    >>> clf = BDistilClassifier(
    ...     teacher,
    ...     student=ConvNet2d,
    ...     n_estimators=2,
    ...     max_epochs=3,
    ...     edge_tol=float("inf"),
    ...     random_state=0,
    ... )
    >>> views = Views(clean, Flipped(), teacher_on="view")
    >>> clf.fit(views, teacher.predict(clean)).teacher_calls_
    700

    That is 100 clean rows, and as many views in each of 3 epochs of 2 rounds.
    """

    def __init__(self, clean, train=None, *, teacher_on="clean"):
        if teacher_on not in ("clean", "view"):
            raise ValueError(
                "The 'teacher_on' parameter of Views must be 'clean' or 'view'. Got "
                f"{teacher_on!r}."
            )
        if teacher_on == "view" and train is None:
            raise ValueError(
                "The 'teacher_on' parameter of Views is 'view', which needs views: "
                "pass 'train'. Got train=None."
            )
        for dataset in (clean, train):
            if dataset is not None:
                _check_map_style(dataset)
        if train is not None and len(train) != len(clean):
            raise ValueError(
                f"The 'train' parameter of Views must have the {len(clean)} rows of "
                f"'clean'. Got {len(train)}."
            )
        self.clean = clean
        self.train = train
        self.teacher_on = teacher_on
        self.indices = np.arange(len(clean))

    @property
    def shape(self):
        """Number of rows, as a tuple, by which scikit-learn knows what has an index."""
        return (len(self),)

    def __len__(self):
        """Number of rows."""
        return len(self.indices)

    def __getitem__(self, rows):
        """Views of some rows, or an item of the clean dataset."""
        if isinstance(rows, tuple):
            rows = rows[0]  # X[rows, ...] of scikit-learn
        indices = self.indices[rows]
        if np.ndim(indices) == 0:
            return self.clean[int(indices)]
        taken = Views(self.clean, self.train, teacher_on=self.teacher_on)
        taken.indices = indices
        return taken


def _check_map_style(dataset):
    """Refuse a dataset that has no length or no index."""
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            "A dataset needs a length and an index. Got a "
            f"{type(dataset).__name__}, which lacks them: the game weighs every row "
            "anew in each round, and has to find it again. Use a map-style dataset."
        )


class Columns(Dataset):
    """A dataset whose items are dicts, and who reads which of their entries.

    As those of Hugging Face are: ``{"input_ids": ..., "attention_mask": ..., "label":
    ...}``. Students read one entry. A :class:`~skbdistil.teachers.TorchTeacher` is
    called with entries by name, ``module(input_ids=..., attention_mask=...)``; another
    teacher reads what students read.

    Entries of one name have one shape in all rows, unless the `net` template of the
    estimator sets a ``collate_fn``, which makes a dict of arrays of a list of items. It
    fills up rows that are shorter.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Map-style: with a length and an index.

    students : str
        Name of the entry that students read, a row of numbers.

    teacher : list of str, default=None
        Names of the entries that the teacher is called with. `None` for all but
        `label`.

    label : str, default=None
        Name of the entry that holds the label. `None` if there is none.

    Raises
    ------
    TypeError
        If the dataset has no length or no index.

    ValueError
        If `teacher` is a single name.

    See Also
    --------
    Views : A dataset, and the views of its rows that training sees.
    skbdistil.students.EmbeddingNet : Students of token ids.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from functools import partial
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.datasets import Columns
    >>> from skbdistil.students import EmbeddingNet
    >>> from skbdistil.teachers import TorchTeacher
    >>> ids = np.random.default_rng(0).integers(1, 20, size=(100, 6))
    >>> items = [
    ...     {"input_ids": row, "attention_mask": row > 0, "label": int(7 in row)}
    ...     for row in ids
    ... ]
    >>> class Sevens(torch.nn.Module):
    ...     def forward(self, input_ids, attention_mask):
    ...         found = (input_ids == 7) & attention_mask
    ...         return 6.0 * found.any(1) - 3.0
    >>> clf = BDistilClassifier(
    ...     TorchTeacher(Sevens()),
    ...     student=partial(EmbeddingNet, num_embeddings=20),
    ...     input_scaling=None,
    ...     n_estimators=2,
    ...     random_state=0,
    ... )
    >>> clf = clf.fit(Columns(items, students="input_ids", label="label"))
    >>> clf.input_shape_
    (6,)
    """

    def __init__(self, dataset, *, students, teacher=None, label=None):
        _check_map_style(dataset)
        if isinstance(teacher, str):
            raise ValueError(
                "The 'teacher' parameter of Columns must be a list of names or None. "
                f"Got {teacher!r} instead; pass [{teacher!r}]."
            )
        self.dataset = dataset
        self.students = students
        self.teacher = teacher
        self.label = label

    def __len__(self):
        """Number of rows."""
        return len(self.dataset)

    def __getitem__(self, index):
        """Return an item of the dataset, as it is."""
        return self.dataset[index]


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "n_classes": [Interval(Integral, 2, None, closed="left")],
        "axis_ratio": [Interval(Real, 1, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_ellipsoid(
    n_samples=1000,
    n_features=16,
    *,
    n_classes=2,
    axis_ratio=3.0,
    noise=0.2,
    shuffle=True,
    random_state=None,
):
    """Generate points on nested ellipsoids, one for each class.

    In the manner of the simulated sets of section 5.1 of [1]_. The ellipsoids share
    their centre, the origin, their randomly rotated axes and their shape; that of class
    ``k`` is ``k + 1`` times as large as that of class 0. No linear function of the
    features tells the classes apart, but a quadratic form does.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of samples, divided among the classes as equally as possible.

    n_features : int, default=16
        Number of features.

    n_classes : int, default=2
        Number of classes and ellipsoids, at least 2.

    axis_ratio : float, default=3.0
        Length of the longest semi-axis of an ellipsoid in units of the shortest, at
        least 1, which gives spheres. The lengths are a geometric sequence; the shortest
        one of class 0 is 1.

    noise : float, default=0.2
        Standard deviation of the Gaussian noise added to every feature.

    shuffle : bool, default=True
        Whether to shuffle the samples. Without it they are sorted by class.

    random_state : int, RandomState instance or None, default=None
        Determines the samples, the rotation, the noise and the order. Pass an int for
        reproducible output across multiple function calls.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), dtype float64
        The samples.

    y : ndarray of shape (n_samples,), dtype int64
        The class of each sample, from 0 (innermost) to ``n_classes - 1``.

    Raises
    ------
    ValueError
        If there are fewer samples than classes, or a parameter is out of its range.

    See Also
    --------
    make_cube : Clusters at the vertices of a cube.
    sklearn.datasets.make_gaussian_quantiles : Concentric spheres without a gap.

    Notes
    -----
    With the other defaults and ``n_samples=4000``, half of them for testing, a teacher
    with three hidden layers of 64 units
    (``MLPClassifier((64, 64, 64), early_stopping=True)``) and students with one hidden
    layer of 6 units reach these test accuracies with ``random_state`` 0, 1 and 2. The
    ensemble is a :class:`~skbdistil.BDistilClassifier` with its defaults; "labels" is
    an ``MLPClassifier((6,))``, as small as one student and trained without a teacher.

    ======  =======  ======  ===========  ============
    seed    teacher  labels  one student  six students
    ======  =======  ======  ===========  ============
    0       0.985    0.826   0.849        0.972
    1       0.977    0.790   0.852        0.970
    2       0.979    0.830   0.841        0.974
    ======  =======  ======  ===========  ============

    References
    ----------
    .. [1] D. Dennis, A. Shetty, A. Sevekari, K. Koishida, V. Smith, "Progressive
           Ensemble Distillation: Building Ensembles for Efficient Inference", NeurIPS,
           2023, arXiv:2302.10093.

    Examples
    --------
    >>> from skbdistil.datasets import make_ellipsoid
    >>> X, y = make_ellipsoid(n_samples=200, random_state=0)
    >>> X.shape
    (200, 16)
    >>> y.shape
    (200,)
    """
    if n_samples < n_classes:
        raise ValueError(
            f"n_samples={n_samples} must be at least n_classes={n_classes}."
        )
    rng = check_random_state(random_state)
    y = np.sort(np.arange(n_samples, dtype=np.int64) % n_classes)
    X = rng.normal(size=(n_samples, n_features))
    X *= ((y + 1) / np.linalg.norm(X, axis=1))[:, np.newaxis]
    X *= np.geomspace(1, axis_ratio, n_features)
    # The signs of the columns are not uniform, but an ellipsoid does not see them.
    rotation, _ = np.linalg.qr(rng.normal(size=(n_features, n_features)))
    X = X @ rotation.T
    X += rng.normal(scale=noise, size=X.shape)
    return shuffle_rows(X, y, random_state=rng) if shuffle else (X, y)


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "n_informative": [Interval(Integral, 1, None, closed="left")],
        "n_classes": [Interval(Integral, 2, None, closed="left")],
        "n_clusters_per_class": [Interval(Integral, 1, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_cube(
    n_samples=1000,
    n_features=10,
    *,
    n_informative=6,
    n_classes=4,
    n_clusters_per_class=8,
    noise=0.3,
    shuffle=True,
    random_state=None,
):
    """Generate clusters at vertices of a cube, with classes assigned at random.

    In the manner of the simulated sets of section 5.1 of [1]_. Neighbouring vertices
    differ in one feature and often in class, as with a parity.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of samples, divided among the clusters as equally as possible.

    n_features : int, default=10
        Number of features. Those after the first `n_informative` are standard normal
        and say nothing about the class.

    n_informative : int, default=6
        Dimension of the cube, whose vertices have the coordinates -1 and 1. The first
        `n_informative` features are the coordinates.

    n_classes : int, default=4
        Number of classes, at least 2.

    n_clusters_per_class : int, default=8
        Number of vertices of each class. ``n_classes * n_clusters_per_class``, the
        number of clusters, is at most ``2**n_informative``; the vertices are distinct
        and drawn at random.

    noise : float, default=0.3
        Standard deviation of the Gaussian noise around the vertices. A vertex is a
        distance of 2 from its neighbours.

    shuffle : bool, default=True
        Whether to shuffle the samples. Without it they are sorted by cluster.

    random_state : int, RandomState instance or None, default=None
        Determines the vertices, their classes, the noise and the order. Pass an int for
        reproducible output across multiple function calls.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features), dtype float64
        The samples.

    y : ndarray of shape (n_samples,), dtype int64
        The class of each sample.

    Raises
    ------
    ValueError
        If there are more informative features than features, more clusters than
        vertices or samples, or a parameter is out of its range.

    See Also
    --------
    make_ellipsoid : Points on nested ellipsoids.
    sklearn.datasets.make_classification : Clusters at vertices of a cube, each with
        a covariance of its own.

    Notes
    -----
    Two classes of a few clusters in a cube of high dimension can be linearly separable
    by chance. With more than ``2 * (n_informative + 1)`` clusters in all this becomes
    unlikely [2]_.

    With the other defaults and ``n_samples=4000``, half of them for testing, a teacher
    with three hidden layers of 64 units
    (``MLPClassifier((64, 64, 64), early_stopping=True)``) and students with one hidden
    layer of 6 units reach these test accuracies with ``random_state`` 0, 1 and 2. The
    ensemble is a :class:`~skbdistil.BDistilClassifier` with its defaults; "labels" is
    an ``MLPClassifier((6,))``, as small as one student and trained without a teacher.

    ======  =======  ======  ===========  ============
    seed    teacher  labels  one student  six students
    ======  =======  ======  ===========  ============
    0       0.981    0.658   0.768        0.966
    1       0.980    0.666   0.706        0.966
    2       0.961    0.666   0.691        0.934
    ======  =======  ======  ===========  ============

    References
    ----------
    .. [1] D. Dennis, A. Shetty, A. Sevekari, K. Koishida, V. Smith, "Progressive
           Ensemble Distillation: Building Ensembles for Efficient Inference", NeurIPS,
           2023, arXiv:2302.10093.

    .. [2] T. M. Cover, "Geometrical and Statistical Properties of Systems of Linear
           Inequalities with Applications in Pattern Recognition", IEEE Transactions on
           Electronic Computers EC-14(3), 1965.

    Examples
    --------
    >>> from skbdistil.datasets import make_cube
    >>> X, y = make_cube(n_samples=200, random_state=0)
    >>> X.shape
    (200, 10)
    >>> y.shape
    (200,)
    """
    n_clusters = n_classes * n_clusters_per_class
    if n_informative > n_features:
        raise ValueError(
            f"n_informative={n_informative} must be at most n_features={n_features}."
        )
    # Not by 2**n_informative, which overflows where that is a NumPy integer.
    if n_informative < np.log2(n_clusters):
        raise ValueError(
            f"n_classes * n_clusters_per_class={n_clusters} must be at most the number "
            f"of vertices, 2**n_informative={2**n_informative}."
        )
    if n_samples < n_clusters:
        raise ValueError(
            f"n_samples={n_samples} must be at least "
            f"n_classes * n_clusters_per_class={n_clusters}."
        )
    rng = check_random_state(random_state)
    # Distinct in the first coordinates already, and an int holds 2**30.
    n_coded = min(n_informative, 30)
    codes = sample_without_replacement(2**n_coded, n_clusters, random_state=rng)
    rng.shuffle(codes)  # the sample is distinct, its order is not random
    bits = rng.randint(2, size=(n_clusters, n_informative))
    bits[:, :n_coded] = codes[:, np.newaxis] >> np.arange(n_coded) & 1
    cluster = np.sort(np.arange(n_samples, dtype=np.int64) % n_clusters)
    X = rng.normal(size=(n_samples, n_features))
    X[:, :n_informative] *= noise
    X[:, :n_informative] += (2 * bits - 1)[cluster]
    y = cluster % n_classes
    return shuffle_rows(X, y, random_state=rng) if shuffle else (X, y)
