"""The rounds of a fit in a file, from which a fit that was killed goes on."""

import hashlib
from pathlib import Path

import joblib
import numpy as np
import torch

from skbdistil import __version__
from skbdistil._arrays import LazyRows, update_digest
from skbdistil._boosting._ranks import ONE_RANK
from skbdistil._files import new_file
from skbdistil.exceptions import InvalidFileError

# Rows of a dataset whose views tell it from others.
_VIEWED_ROWS = 64

# Parameters that change no student, or by what they make of rows and scores only.
_WITHOUT_EFFECT = {
    "augment",
    "checkpoint",
    "class_weight",
    "device",
    "label_mix",
    "n_stages",
    "student_transform",
    "teacher",
    "teacher_cv",
    "verbose",
    # The students that are there before are in the fingerprint.
    "warm_start",
}


class Checkpoint:
    """A file that holds the rounds of one fit, and of no other.

    Its name is a fingerprint of all that the students depend on. So several fits, such
    as those of a search, may share a folder, and one with other rows does not go on
    with what is there.

    Parameters
    ----------
    folder : str or path-like
        Made if it is not there.
    fingerprint : str
    ranks : OneRank, default=ONE_RANK
        The first process reads and writes. The folder need not be there for others.
    """

    def __init__(self, folder, fingerprint, ranks=ONE_RANK):
        self.path = Path(folder) / f"{fingerprint}.rounds"
        self._ranks = ranks
        if ranks.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def read(self):
        """What was written last, or None.

        Returns
        -------
        state : dict or None

        Raises
        ------
        InvalidFileError
            If the file cannot be read.
        """
        state = self._in_file() if self._ranks.rank == 0 else None
        return self._ranks.object_of_first(state)

    def _in_file(self):
        if not self.path.exists():
            return None
        try:
            # Numbers and tensors only: a file runs nothing.
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InvalidFileError(
                f"{self.path}: the checkpoint is damaged. Remove it to begin anew. "
                f"{type(error).__name__}: {error}"
            ) from error

    def write(self, state):
        """Replace the file, at once.

        Parameters
        ----------
        state : dict
            Of numbers, strings, lists, dicts and tensors.
        """
        if self._ranks.rank == 0:
            with new_file(self.path) as temporary:
                torch.save(state, temporary)


def fingerprint(estimator, plan, train, valid, *, earlier, device):
    """What tells a fit from all others.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
    plan : Plan
    train : FitData
    valid : FitData or None
    earlier : list of dict
        States of the students that a warm start goes on with.
    device : torch.device

    Returns
    -------
    digest : str

    Raises
    ------
    ValueError
        If a parameter cannot be pickled.
    """
    params = {
        name: value
        for name, value in estimator.get_params(deep=False).items()
        if name not in _WITHOUT_EFFECT
    }
    numbers = [
        {name: tensor.cpu().numpy() for name, tensor in state.items()}
        for state in earlier
    ]
    try:
        settings = joblib.hash(
            [
                type(estimator).__name__,
                __version__,
                torch.__version__,
                str(device),
                sorted(params.items()),
                sorted(plan._asdict().items()),
                # Of a rung of a search, which plays no further.
                estimator._round_limit,
                numbers,
            ]
        )
    except Exception as error:
        raise ValueError(
            f"With 'checkpoint', the parameters of {type(estimator).__name__} must be "
            "such that pickle can write them: functions and classes that are defined "
            f"at the top level of a module. {type(error).__name__}: {error}"
        ) from error
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for data in (train, valid):
        for part in () if data is None else data:
            _update(digest, part)
    return digest.hexdigest()


def _update(digest, array):
    """Add the numbers of an array, however large, to a digest."""
    if array is None:
        digest.update(b"None")
        return
    digest.update(f"{array.shape} {array.dtype.str}".encode())
    update_digest(digest, array)
    if isinstance(array, LazyRows) and array.changes_rows:
        # Views of some rows stand for those of all.
        if array.asks_about_views:
            digest.update(b"teacher on view")
        numbers = np.arange(min(_VIEWED_ROWS, len(array)))
        for _, views, _ in array.loader([(numbers, 0)]):
            digest.update(views.numpy())
