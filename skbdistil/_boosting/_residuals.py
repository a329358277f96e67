"""The state of boosting: by how much the students are off, summed up. NumPy only."""

import numpy as np


class Residuals:
    """Sum over the students of their deviations from the teacher.

    With ``f_s`` the scores of student s and ``g`` those of the teacher, the sum is
    ``S = sum over s <= t of (f_s - g)``, and the running mean of the students is
    ``F_t = g + S / t``.

    Outputs may start in different rounds. Then ``t`` is the number of rounds that have
    trained the output, the sum is over these rounds, and ``F = 0`` before the first.

    Parameters
    ----------
    teacher_scores : ndarray or memmap of shape (n_samples, n_outputs)
        Scores of the teacher, float32 or float64. Read, never copied or written.

    total : ndarray or memmap of shape (n_samples, n_outputs), default=None
        Storage for the sum, set to 0 here and updated in place. None allocates an
        array of the dtype of `teacher_scores`.

    chunk_size : int, default=1024
        Number of rows handled at a time, at least 1. Temporary memory is proportional
        to ``chunk_size * n_outputs``.

    first_rounds : ndarray of int of shape (n_outputs,), default=None
        Round that trains an output for the first time, from 1 on. None: round 1.

    Attributes
    ----------
    teacher_scores : ndarray or memmap of shape (n_samples, n_outputs)

    total : ndarray or memmap of shape (n_samples, n_outputs)
        The sum ``S``.

    n_rounds : int
        Number of students in it.

    Raises
    ------
    ValueError
        If `total` has another shape than `teacher_scores`.

    Examples
    --------
    >>> import numpy as np
    >>> from skbdistil._boosting._residuals import Residuals
    >>> residuals = Residuals(np.array([[1.0], [-1.0]]))
    >>> residuals.add(np.array([[0.0], [-1.0]]))
    >>> residuals.total
    array([[-1.],
           [ 0.]])
    >>> residuals.mean()
    array([[ 0.],
           [-1.]])
    """

    def __init__(
        self, teacher_scores, *, total=None, chunk_size=1024, first_rounds=None
    ):
        if total is None:
            total = np.empty(teacher_scores.shape, teacher_scores.dtype)
        elif total.shape != teacher_scores.shape:
            raise ValueError(
                "total must have the shape of teacher_scores, "
                f"{teacher_scores.shape}, got {total.shape}."
            )
        self.teacher_scores = teacher_scores
        self.total = total
        self.chunk_size = chunk_size
        self.first_rounds = first_rounds
        self.reset()

    def __len__(self):
        """Number of rows."""
        return len(self.teacher_scores)

    def add(self, scores):
        """Add a student.

        Parameters
        ----------
        scores : ndarray or memmap of shape (n_samples, n_outputs)

        Raises
        ------
        ValueError
            If `scores` has another shape than the teacher's scores.
        """
        for rows, deviations in self.deviations(scores):
            self.total[rows] += deviations
        self.n_rounds += 1

    def reset(self):
        """Go back to no students."""
        self.total[...] = 0
        self.n_rounds = 0

    def mean(self):
        """Running mean ``F_t`` of the students.

        Returns
        -------
        mean : ndarray of shape (n_samples, n_outputs)
        """
        return self.mean_from(self.teacher_scores, self.total)

    def mean_from(self, teacher_scores, total):
        """Running mean of some rows, from their scores and sums.

        Parameters
        ----------
        teacher_scores, total : ndarray of shape (n_rows, n_outputs)

        Returns
        -------
        mean : ndarray of shape (n_rows, n_outputs)
        """
        number = self.rounds_of_outputs(self.n_rounds)
        if self.first_rounds is None:
            return teacher_scores + total / number
        number = number.astype(total.dtype)
        mean = teacher_scores + total / np.maximum(number, 1)
        mean[:, number == 0] = 0
        return mean

    def rounds_of_outputs(self, n_rounds):
        """How many of the first rounds train each output.

        Parameters
        ----------
        n_rounds : int

        Returns
        -------
        number : int or ndarray of int of shape (n_outputs,)
            `n_rounds` itself without `first_rounds`.
        """
        if self.first_rounds is None:
            return n_rounds
        return np.maximum(n_rounds + 1 - self.first_rounds, 0)

    def deviations(self, scores):
        """Deviations of a student from the teacher, chunk by chunk.

        Parameters
        ----------
        scores : ndarray or memmap of shape (n_samples, n_outputs)

        Yields
        ------
        rows : slice
        deviations : ndarray of shape (n_rows, n_outputs)
            ``f - g`` in float64; 0 for outputs that the next round does not train.
        """
        if scores.shape != self.teacher_scores.shape:
            raise ValueError(
                "scores must have the shape of teacher_scores, "
                f"{self.teacher_scores.shape}, got {scores.shape}."
            )
        for rows in self.chunks():
            teacher = self.teacher_scores[rows]
            deviations = np.subtract(scores[rows], teacher, dtype=np.float64)
            if self.first_rounds is not None:
                deviations[:, self.first_rounds > self.n_rounds + 1] = 0
            yield rows, deviations

    def chunks(self):
        """Slices that cover all rows."""
        for start in range(0, len(self), self.chunk_size):
            yield slice(start, start + self.chunk_size)
