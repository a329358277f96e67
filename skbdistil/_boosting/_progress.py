"""What a fit tells while it goes on: to callbacks, and on the screen by `verbose`."""

import sys
import time
from contextlib import nullcontext

import numpy as np
from tqdm.auto import tqdm

from skbdistil._sklearn_compat import ProgressBar
from skbdistil._storage import row_pieces


class FitTasks:
    """Tasks of a fit, as the callbacks of scikit-learn see them.

    A fit has a task for each round and one for a refinement at the end. A round has one
    for each attempt, and one for the refinement after it. Attempts and refinements have
    one for each epoch. Without callbacks nothing happens here.

    Parameters
    ----------
    estimator : BDistilClassifier or BDistilRegressor
    max_subtasks : int
        Largest number of rounds, and of refinements at the end.
    **data : dict
        `X`, `y` and `metadata` of the fit, for the callbacks.

    Attributes
    ----------
    any_callbacks : bool
    has_bar : bool
        Whether one of them draws progress bars.
    stopped : bool
        Whether one of them has ended the training of a student.
    prefix : callable
        Gives the fitted attributes of an estimator that has the students so far.
    """

    def __init__(self, estimator, max_subtasks, **data):
        self._estimator = estimator
        self._data = data
        self._root = estimator._init_callback_context(max_subtasks=max_subtasks)
        callbacks = getattr(estimator, "_skl_callbacks", [])
        self.any_callbacks = len(callbacks) > 0
        self.has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        self._root.call_on_fit_task_begin(estimator=estimator, **data)
        # Those under way, from the outermost one.
        self._open = [self._root]
        self.stopped = False
        self.prefix = None

    def begin(self, name, max_subtasks=0):
        """Begin a task within the last one that has not ended.

        Parameters
        ----------
        name : str
        max_subtasks : int or None, default=0
            None where that is not known.
        """
        if self.any_callbacks:
            task = self._open[-1].subcontext(task_name=name, max_subtasks=max_subtasks)
            self._open.append(task)
            task.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end(self, *, usable=False):
        """End the last task that has begun.

        Parameters
        ----------
        usable : bool, default=False
            Whether the students so far are a prefix that callbacks may predict with.

        Returns
        -------
        stop : bool
            Whether a callback wants no further task of this kind.
        """
        if not self.any_callbacks:
            return False
        return self._open.pop().call_on_fit_task_end(
            estimator=self._estimator,
            **self._data,
            reconstruction_attributes=self.prefix if usable else None,
        )

    def finish(self):
        """End the fit. The estimator has its fitted attributes."""
        self._root.call_on_fit_task_end(
            estimator=self._estimator, **self._data, reconstruction_attributes={}
        )


class Epochs:
    """Epochs of the attempts of a round, or of a refinement.

    Parameters
    ----------
    tasks : FitTasks
    bar : tqdm or None
    n_epochs : int
        Of an attempt.
    """

    def __init__(self, tasks, bar, n_epochs):
        self._tasks = tasks
        self._bar = bar
        self._n_epochs = n_epochs

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self._bar is not None:
            self._bar.close()

    def begin_attempt(self):
        if self._bar is not None:
            self._bar.reset()
        self._tasks.begin("attempt", self._n_epochs)

    def end_attempt(self):
        self._tasks.end()

    def begin_epoch(self):
        self._tasks.begin("epoch")

    def end_epoch(self):
        """End an epoch; returns whether a callback wants no further one."""
        if self._bar is not None:
            self._bar.update()
        stop = self._tasks.end()
        self._tasks.stopped = self._tasks.stopped or bool(stop)
        return stop


class Progress:
    """Bars over the epochs on a terminal, and one line about each round.

    Parameters
    ----------
    verbose : bool
        False shows nothing.
    estimator_name : str
    n_rounds : int
        Number of rounds, those of an earlier fit included.
    agreement : callable
        Called with the scores of the teacher and those of the ensemble.
    agreement_name : str
    tasks : FitTasks
    """

    def __init__(
        self, verbose, estimator_name, n_rounds, agreement, agreement_name, tasks
    ):
        self.verbose = verbose
        self.estimator_name = estimator_name
        self.n_rounds = n_rounds
        self.agreement = agreement
        self.agreement_name = agreement_name
        self.tasks = tasks

    def start(self, n_done):
        """Begin with the rounds after those that are done."""
        self._began = time.perf_counter()
        self._n_before = n_done

    def go_on(self, n_done, path):
        """Begin after the rounds that were found in a file."""
        self.start(n_done)
        if self.verbose:
            tqdm.write(
                f"[{self.estimator_name}] {n_done} round(s) of {self.n_rounds} found "
                f"in {path}"
            )

    def bar(self, n_epochs, what):
        """Epochs of a round or of a refinement; None within, where nobody looks."""
        bar = None
        # In a file, a bar would leave a line every time it is drawn.
        if self.verbose and sys.stderr.isatty() and not self.tasks.has_bar:
            bar = tqdm(
                total=n_epochs,
                desc=f"[{self.estimator_name}] {what}",
                unit="epoch",
                leave=False,
            )
        if bar is None and not self.tasks.any_callbacks:
            return nullcontext()
        return Epochs(self.tasks, bar, n_epochs)

    def name_of(self, number):
        """Words for a round."""
        return f"round {number} of {self.n_rounds}"

    def report(self, rows, seconds):
        """Print one line about the last round.

        Parameters
        ----------
        rows : RowData
            Of training.
        seconds : float
            Time of the round.
        """
        if not self.verbose:
            return
        number = rows.residuals.n_rounds
        teacher, mean = rows.residuals.teacher_scores, rows.running_mean()
        squares = [
            np.sum((mean[some] - teacher[some]) ** 2, dtype=np.float64)
            for some in row_pieces(mean)
        ]
        error = np.sqrt(sum(squares) / mean.size)
        line = (
            f"[{self.estimator_name}] {self.name_of(number)}: "
            f"min edge {rows.game.student_edges[-1].min():+.3f}, "
            f"RMSE against the teacher {error:.3f}, "
            f"{self.agreement_name} {self.agreement(teacher, mean):.4f}, "
            f"{seconds:.1f} s"
        )
        if number < self.n_rounds:
            per_round = (time.perf_counter() - self._began) / (number - self._n_before)
            left = per_round * (self.n_rounds - number)
            line += f", about {left:.0f} s left"
        tqdm.write(line)
