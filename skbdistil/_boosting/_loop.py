"""Algorithm 1 of B-DISTIL: rounds, refinement, and the replay of the game."""

import copy
import sys
import time
from typing import NamedTuple

import numpy as np
import torch

from skbdistil._boosting._combination import settle_as_mean
from skbdistil._boosting._random import derive_seed
from skbdistil._boosting._ranks import ONE_RANK
from skbdistil._seeding import seeded
from skbdistil.exceptions import FitInterruptedWarning, WeakLearnerNotFoundWarning

# Rounds without a lower loss on the rows held out before boosting ends.
_PATIENCE = 2

# Rows on which a student that is built again must give the same scores.
_CHECKED_ROWS = 64


class Round(NamedTuple):
    """A round that has been won.

    Attributes
    ----------
    student : torch.nn.Module
    position : int
        Of its hypothesis class in the ladder.
    history : list of dict
        Losses by epoch.
    """

    student: torch.nn.Module
    position: int
    history: list


class Boosting:
    """The loop of algorithm 1.

    The list of rounds says which students there are. Ensemble, game and rows follow it:
    :meth:`_join` adds the student of a new round to all of them, and :meth:`replay`
    builds them anew from the list, after an interrupt as after a change of weights.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Filled here.
    game : BoostingGame
    rows : RowData
    valid : RowData or None
    search : WeakLearnerSearch
    trainer : Trainer
    joint_loss : _JointLoss
        What refinement minimises.
    progress : Progress
    estimator_name : str
        For messages.
    ranks : OneRank
        Where the rows are.

    Attributes
    ----------
    rounds : list of Round
    notes : list of Warning
        What the user should be told.
    interrupted : bool
        Whether Ctrl-C has ended the loop early.
    """

    def __init__(
        self,
        ensemble,
        game,
        rows,
        valid,
        *,
        search,
        trainer,
        joint_loss,
        progress,
        estimator_name,
        ranks=ONE_RANK,
    ):
        self.ensemble = ensemble
        self.game = game
        self.rows = rows
        self.valid = valid
        self.search = search
        self.trainer = trainer
        self.joint_loss = joint_loss
        self.progress = progress
        self.estimator_name = estimator_name
        self.ranks = ranks
        self.rounds = []
        self.notes = []
        self.interrupted = False

    def run(self, seeds, *, refine, refine_epochs, checkpoint=None):
        """Play the rounds that are left, and refine where that is asked for.

        Parameters
        ----------
        seeds : ndarray of int
            One for each round, those played before included.
        refine : {"final", "rounds", "only"} or None
        refine_epochs : int
        checkpoint : Checkpoint or None
            Where the rounds are written, and found that were played before. Not with
            ``refine="only"``.
        """
        if refine == "only":
            self._train_together(seeds, refine_epochs)
            return
        n_before = len(self.rounds)
        self.progress.start(n_before)
        tasks = self.progress.tasks
        failed = None
        try:
            losses = self._losses_held_out()
            best = self._states() if losses else []
            if checkpoint is not None and (state := checkpoint.read()) is not None:
                self._go_on(state)
                losses, best = state["losses"], state["best"]
                self.progress.go_on(len(self.rounds), checkpoint.path)
            for seed in seeds[len(self.rounds) :].tolist():
                if _since_lowest(losses) >= _PATIENCE:
                    break
                began = time.perf_counter()
                number = len(self.rounds) + 1
                tasks.begin("round", self._n_trainings(refine))
                reason = self._play(number, seed)
                if reason is not None:
                    tasks.end()
                    failed = number, reason
                    break
                if checkpoint is not None:
                    self._check_built_again()
                if refine == "rounds":
                    self._refine(refine_epochs, seed)
                self.progress.report(self.game, time.perf_counter() - began)
                stops = tasks.end(usable=True)
                losses += self._losses_held_out()
                if losses and _since_lowest(losses) == 0:
                    best = self._states()
                if checkpoint is not None and (stops or tasks.stopped):
                    # The file is also that of fits without this callback.
                    self.notes.append(
                        RuntimeWarning(
                            f"A callback has cut round {number} of "
                            f"{self.estimator_name} short. The checkpoint keeps the "
                            "rounds before it only."
                        )
                    )
                    checkpoint = None
                if checkpoint is not None:
                    checkpoint.write(self._state(losses, best))
                if stops:
                    break
            if late := _since_lowest(losses):
                del self.rounds[-late:]
                # Refinement has changed them since.
                self._load(best)
                self.replay()
            if failed is not None:
                self._fail(*failed, len(seeds))
            if refine == "final" and len(self.rounds) > n_before:
                self._refine(refine_epochs, int(seeds[-1]))
        except KeyboardInterrupt:
            # Of a loop over many fits, each of which would otherwise end like this one.
            # Other processes may have finished fewer students, or more.
            is_alone = self.ranks.size == 1 and not _is_one_of_many()
            if not (self.rounds and is_alone):
                raise
            # What was under way is dropped.
            self.replay()
            self.interrupted = True
            self.notes.append(
                FitInterruptedWarning(
                    f"{self.estimator_name}.fit was interrupted; the "
                    f"{len(self.rounds)} finished student(s) are kept."
                )
            )

    def _n_trainings(self, refine):
        """Number of trainings in the next round; None where that is not known."""
        n_classes = len(self.search.ladder)
        if self.rounds:
            n_classes -= self.rounds[-1].position
        n_attempts = n_classes * self.search.max_attempts
        return n_attempts + (refine == "rounds") if n_attempts == 1 else None

    def _state(self, losses, best):
        """What a fit that is killed after this needs to go on."""
        rounds = zip(self.rounds, self._states(), strict=True)
        return {
            "rounds": [
                {"state": state, "position": played.position, "history": played.history}
                for played, state in rounds
            ],
            "losses": losses,
            "best": best,
            "view_calls": self.rows.view_calls,
        }

    def _go_on(self, state):
        """Take over the rounds of a fit that was killed."""
        if self.rows.view_targets is not None:
            self.rows.view_targets.n_calls = state["view_calls"]
        rounds = []
        for number, played in enumerate(state["rounds"]):
            if number < len(self.rounds):
                # That of a warm start, which refinement may have changed.
                student = copy.deepcopy(self.rounds[number].student)
                student.load_state_dict(played["state"])
            else:
                student = self._built_again(
                    self.ensemble, played["position"], played["state"]
                )
                self.ensemble.append(student)
            rounds.append(Round(student, played["position"], played["history"]))
        # At once: Ctrl-C keeps what is in the list.
        self.rounds[:] = rounds
        self.replay()

    def _built_again(self, ensemble, position, state):
        """The next student of an ensemble, with weights that are known."""
        with seeded(0, self.trainer.device):
            student = ensemble.new_student(self.search.ladder[position])
        student.to(self.rows.device, self.rows.dtype)
        student.load_state_dict(state)
        return student

    @torch.no_grad()
    def _check_built_again(self):
        """Refuse a student that is another one when its weights are loaded."""
        other = copy.deepcopy(self.ensemble)
        del other.students[-1]
        student, position, _ = self.rounds[-1]
        other.append(self._built_again(other, position, student.state_dict()))
        x = self.rows.inputs(slice(_CHECKED_ROWS))
        if not torch.allclose(self.ensemble(x), other(x), rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"With 'checkpoint', the students of {self.estimator_name} must keep "
                "what they compute with in parameters and persistent buffers. One of "
                f"{self.search.ladder[position]!r} gave other scores when it was built "
                "again with its weights."
            )

    def _play(self, number, seed):
        """Play one round; returns why no weak learner was found, if none was."""
        epochs = self.search.max_epochs
        with self.progress.bar(epochs, self.progress.name_of(number)) as bar:
            learner, failure = self.search.find(
                self.ensemble,
                self.game,
                self.rows,
                self.valid,
                # Classes that have failed before are not tried again.
                first=self.rounds[-1].position if self.rounds else 0,
                seed=seed,
                bar=bar,
            )
        if learner is None:
            return failure
        self.rounds.append(Round(learner.student, learner.position, learner.history))
        self._join(learner.student, learner.scores, learner.activations)
        return None

    def _train_together(self, seeds, epochs):
        """Train students that no round has trained, and the earlier ones with them."""
        n_before = len(self.rounds)
        if n_before == len(seeds):
            return
        began = time.perf_counter()
        self.progress.start(n_before)
        position = self.rounds[-1].position if self.rounds else 0
        history = []
        try:
            for number, seed in enumerate(seeds[n_before:].tolist(), n_before + 1):
                with seeded(seed, self.trainer.device):
                    student = self.ensemble.new_student(self.search.ladder[position])
                student.to(self.rows.device, self.rows.dtype)
                settle_as_mean(student, self.rows.residuals.rounds_of_outputs(number))
                self.rounds.append(Round(student, position, history))
                self.ensemble.append(student)
            if not self._refine(epochs, int(seeds[-1]), history):
                raise ValueError(
                    f"{self.estimator_name} could not train the students together: "
                    "their scores are not finite. Lower 'learning_rate'."
                )
        except BaseException:
            # Students that are not trained are no students.
            del self.rounds[n_before:]
            raise
        self.progress.report(self.game, time.perf_counter() - began)

    def _fail(self, number, reason, n_rounds):
        message = (
            f"{self.estimator_name} found no weak learner in round {number} of "
            f"{n_rounds}: the last of {len(self.search.ladder)} hypothesis class(es) "
            f"has failed. {reason}"
        )
        advice = (
            "Train the students for longer or at another rate ('max_epochs', "
            "'learning_rate'), raise 'edge_tol' or 'max_attempts', or add larger "
            "backbones to 'student'."
        )
        if not self.rounds:
            raise ValueError(f"{message} {advice}")
        self.notes.append(
            WeakLearnerNotFoundWarning(
                f"{message} Boosting stops with {len(self.rounds)} student(s). {advice}"
            )
        )

    def _losses_held_out(self):
        """Loss of the ensemble on the rows held out, in a list.

        Empty without any, and as long as there are outputs that no round has trained.
        """
        if self.valid is None:
            return []
        n_trained = self.rows.residuals.rounds_of_outputs(len(self.rounds))
        if not np.all(n_trained > 0):
            return []
        scores = torch.from_numpy(self.valid.residuals.mean())
        targets = self.valid.targets(slice(None))
        targets = {name: rows.cpu() for name, rows in targets.items()}
        loss = self.joint_loss.held_out(scores, targets).numpy()
        # Processes that differ in the last bit would not stop after the same round.
        return [float(self.ranks.of_first(loss))]

    def _join(self, student, scores, activations):
        """Add a student, with what it gives on the training rows."""
        state = student.state_dict().values()
        self.ranks.check_same(
            "The students", (weights.numpy(force=True) for weights in state)
        )
        if self.valid is not None:
            # Before the student is one of those that run before it.
            self.valid.add(*self.valid.run(student))
        self.rows.add(scores, activations)
        self.ensemble.append(student)

    def replay(self):
        """Play the game from the start with the students as they are now.

        Returns
        -------
        finite : bool
            False where a student gives scores that are not finite. The game ends
            there.
        """
        del self.ensemble.students[:]
        self.rows.reset()
        if self.valid is not None:
            self.valid.reset()
        for played in self.rounds:
            scores, activations = self.rows.run(played.student)
            if not self.rows.all_finite(scores):
                return False
            self._join(played.student, scores, activations)
        return True

    def _states(self):
        """Copies of the weights of all students, one dict for each."""
        return [copy.deepcopy(played.student.state_dict()) for played in self.rounds]

    def _load(self, states):
        for played, state in zip(self.rounds, states, strict=True):
            played.student.load_state_dict(state)

    def _refine(self, epochs, seed, history=None):
        """Train all students together; a failure leaves them as they were.

        Returns whether they were trained; `history`, a list, is extended.
        """
        self.progress.tasks.begin("refinement", epochs)
        before = self._states()
        self.ensemble.unfreeze()
        # What is held is about to be out of date.
        self.rows.forget_activations()
        if self.valid is not None:
            self.valid.forget_activations()
        finished = False
        try:
            with self.progress.bar(epochs, "refinement") as bar:
                losses = self.trainer.train_jointly(
                    self.ensemble,
                    self.joint_loss,
                    self.rows,
                    self.valid,
                    max_epochs=epochs,
                    # Not the seed that the student of this round was trained with.
                    seed=derive_seed(seed, 1),
                    bar=bar,
                )
            self.ensemble.freeze()
            finished = self.replay()
            if history is not None:
                history += losses
        finally:
            self.ensemble.freeze()
            if not finished:
                self._load(before)
        if not finished:
            self.replay()
            self.notes.append(
                RuntimeWarning(
                    "The refinement diverged to scores that are not finite; the "
                    "students stay as they were before it. Lower 'learning_rate'."
                )
            )
        self.progress.tasks.end(usable=finished)
        return finished


def _since_lowest(losses):
    """Number of items after the first lowest one; NaN is not low."""
    losses = np.nan_to_num(losses, nan=np.inf, posinf=np.inf)
    return len(losses) - 1 - int(losses.argmin()) if len(losses) else 0


def _is_one_of_many():
    """Whether the fit is part of a search, a cross-validation or a calibration."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] == "joblib" or module == "skbdistil.early_exit":
            return True
        frame = frame.f_back
    return False
