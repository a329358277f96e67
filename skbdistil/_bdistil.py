"""The estimators: validate, run the boosting loop, predict stage by stage."""

import copy
import math
import time
import warnings
from contextlib import nullcontext
from numbers import Integral, Real

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    _fit_context,
    is_classifier,
)
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from tqdm.auto import tqdm

from skbdistil import costs
from skbdistil._game import BoostingGame, auto_eta
from skbdistil._random import derive_seed, draw_seeds, torch_seed
from skbdistil._repr_html import visual_block
from skbdistil._search import WeakLearnerSearch
from skbdistil._training import (
    JointStudents,
    RowData,
    Trainer,
    as_tensor,
    check_net,
    chunk_rows,
    resolve_batch_size,
    resolve_device,
    resolve_epochs,
)
from skbdistil.ensemble import ProgressiveEnsemble, auto_connection, check_connection
from skbdistil.exceptions import (
    CostsUnknownWarning,
    FitInterruptedWarning,
    WeakLearnerNotFoundWarning,
)
from skbdistil.metrics import stage_within
from skbdistil.objectives import (
    OBJECTIVES,
    DistillationObjective,
    JointLoss,
    check_objective,
)
from skbdistil.stages import stage_cost
from skbdistil.students import auto_students, check_ladder
from skbdistil.teachers import teacher_response

# Kept as they come, and converted batch by batch; everything else becomes the first.
_INPUT_DTYPES = [np.float32, np.float64, np.float16, np.uint8]
_INPUT_DTYPES += [np.int8, np.int16, np.int32, np.int64]

# Epochs without progress on the validation rows before a student's training ends.
_PATIENCE = 10

# edge_tol="auto", in units of the bound, for students whose objective has a barrier.
_AUTO_TOL = 0.1

# cache_features="auto" holds at most so many bytes.
_AUTO_CACHE = 2**30

# student="auto" aims at this share of the teacher's multiply-accumulates for the whole
# ensemble.
_AUTO_COST_SHARE = 0.5


class _Boosting:
    """The loop of algorithm 1: rounds, refinement, and the replay of the game.

    Parameters
    ----------
    ensemble : ProgressiveEnsemble
        Empty, or fitted before (warm start).
    game : BoostingGame
    rows, valid : RowData
        `valid` may be None.
    search : WeakLearnerSearch
    report : callable or None
        Called with the number of the round, its learner and its seconds.
    """

    def __init__(self, ensemble, game, rows, valid, search, report):
        self.ensemble = ensemble
        self.game = game
        self.rows = rows
        self.valid = valid
        self.search = search
        self.report = report
        self.rungs = []
        self.history = []

    def run(self, seeds, *, refine, refine_epochs, open_bar, estimator_name):
        """Play the rounds that are left and refine where that is asked for."""
        n_before = len(self.ensemble)
        try:
            for number in range(n_before + 1, len(seeds) + 1):
                began = time.perf_counter()
                with open_bar(self.search.max_epochs, number) as bar:
                    learner = self.search.find(
                        self.game,
                        self.rows,
                        self.valid,
                        first_rung=self.rungs[-1] if self.rungs else 0,
                        seed=int(seeds[number - 1]),
                        bar=bar,
                    )
                if learner is None:
                    self._stop(number, len(seeds), estimator_name)
                    break
                self.ensemble.append(learner.student)
                self.rungs.append(learner.rung)
                self.history.append(learner.history)
                self._join(learner.student, learner.scores, learner.kept)
                if refine == "rounds":
                    self._refine(refine_epochs, int(seeds[number - 1]), open_bar)
                self.report(number, self.game, time.perf_counter() - began)
            if refine == "final" and len(self.ensemble) > n_before:
                self._refine(refine_epochs, int(seeds[-1]), open_bar)
        except KeyboardInterrupt:
            if not self.history:
                raise
            # Whatever was under way is dropped, and the game goes back to where the
            # finished students are.
            n_finished = len(self.history)
            del self.ensemble.students[n_finished:], self.rungs[n_finished:]
            self.replay()
            warnings.warn(
                f"{estimator_name}.fit was interrupted; the {len(self.ensemble)} "
                "finished student(s) are kept.",
                FitInterruptedWarning,
                stacklevel=5,  # the caller of fit
            )

    def _stop(self, number, n_rounds, estimator_name):
        message = (
            f"{estimator_name} found no weak learner in round {number} of {n_rounds}: "
            f"the last of {len(self.search.ladder)} hypothesis class(es) has failed. "
            f"{self.search.failure}"
        )
        advice = (
            "Raise 'edge_tol', 'max_attempts' or 'max_edge_scale', or add larger "
            "backbones to 'student'."
        )
        if not len(self.ensemble):
            raise ValueError(f"{message} {advice}")
        warnings.warn(
            f"{message} Boosting stops with {len(self.ensemble)} student(s). {advice}",
            WeakLearnerNotFoundWarning,
            stacklevel=6,  # the caller of fit
        )

    def _join(self, student, scores, kept):
        """Let a student's scores count in the game and its features for later ones."""
        self.game.update(scores)
        self.rows.keep(kept)
        if self.valid is not None:
            scores, kept = self.valid.run(student)
            self.valid.residual_sum += torch.from_numpy(scores) - self.valid.teacher
            self.valid.keep(kept)

    def replay(self):
        """Play the game from the start with the students as they are now."""
        self.game.reset()
        self.rows.forget()
        if self.valid is not None:
            self.valid.residual_sum.zero_()
            self.valid.forget()
        for student in self.ensemble.students:
            scores, kept = self.rows.run(student)
            self._join(student, scores, kept)

    def _refine(self, epochs, seed, open_bar):
        """Train all students together; their earlier state is kept on failure."""
        before = copy.deepcopy(self.ensemble.state_dict())
        data = [self.rows] if self.valid is None else [self.rows, self.valid]
        self.ensemble.unfreeze()
        for rows in data:
            rows.joint = True
            rows.forget()
        finished = False
        try:
            with open_bar(epochs) as bar:
                self.search.trainer.train(
                    JointStudents(self.ensemble),
                    JointLoss(self.search.objective, self.search.regression),
                    self.rows,
                    self.valid,
                    max_epochs=epochs,
                    # Not the seed that the student of this round was trained with.
                    seed=derive_seed(seed, 1),
                    bar=bar,
                )
            finished = all(
                bool(torch.isfinite(p).all()) for p in self.ensemble.parameters()
            )
        finally:
            for rows in data:
                rows.joint = False
            self.ensemble.freeze()
            if not finished:
                self.ensemble.load_state_dict(before)
        if not finished:
            warnings.warn(
                "The refinement diverged to weights that are not finite; the students "
                "stay as they were before it. Lower 'learning_rate'.",
                RuntimeWarning,
                stacklevel=6,  # the caller of fit
            )
        self.replay()


class _BaseBDistil(BaseEstimator):
    """What the classifier and the regressor share."""

    _parameter_constraints = {
        # Teacher, student, connection and net have messages of their own.
        "teacher": "no_validation",
        "student": "no_validation",
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "connection": "no_validation",
        "objective": [StrOptions({"auto", *OBJECTIVES}), DistillationObjective],
        "eta": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "edge_tol": [StrOptions({"auto"}), Interval(Real, 0, None, closed="both")],
        "max_attempts": [Interval(Integral, 1, None, closed="left")],
        "max_edge_scale": [Interval(Real, 1, None, closed="left")],
        "net": "no_validation",
        "max_epochs": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "refine": [StrOptions({"final", "rounds"}), None],
        "refine_epochs": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "cache_features": ["boolean", StrOptions({"auto"})],
        "n_stages": [Interval(Integral, 1, None, closed="left"), None],
        "warm_start": ["boolean"],
        "dtype": [StrOptions({"float32", "float64"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        teacher=None,
        *,
        student="auto",
        n_estimators=6,
        connection="auto",
        objective="auto",
        eta="auto",
        edge_tol="auto",
        max_attempts=1,
        max_edge_scale=1.0,
        net=None,
        max_epochs="auto",
        batch_size="auto",
        learning_rate=0.01,
        refine=None,
        refine_epochs="auto",
        early_stopping=False,
        validation_fraction=0.1,
        cache_features="auto",
        n_stages=None,
        warm_start=False,
        dtype="float32",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.teacher = teacher
        self.student = student
        self.n_estimators = n_estimators
        self.connection = connection
        self.objective = objective
        self.eta = eta
        self.edge_tol = edge_tol
        self.max_attempts = max_attempts
        self.max_edge_scale = max_edge_scale
        self.net = net
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.refine = refine
        self.refine_epochs = refine_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.cache_features = cache_features
        self.n_stages = n_stages
        self.warm_start = warm_start
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # Fitting

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, sample_weight=None, teacher_scores=None):
        """Distil the teacher into students.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training rows: a table, sequences (n_samples, steps, channels) or images
            (n_samples, channels, height, width). Read-only memory maps and the dtypes
            float16, float32, float64, uint8, int8, int16, int32 and int64 are used as
            they are; other dtypes are converted to float32.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or targets. None is allowed where the teacher needs none to be
            fitted and, in classification, brings its classes.

        sample_weight : array-like of shape (n_samples,), default=None
            Not negative. Weighs rows in the loss, and gives the initial distribution
            of the game; rows of weight 0 are left out. Passed on to a teacher that is
            fitted here and takes it.

        teacher_scores : array-like of shape (n_samples, n_outputs), default=None
            With ``teacher="precomputed"``: logits, or values for regression.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If the input, the teacher or a parameter is unusable, or no student could
            be trained. What was fitted before stays in place.

        Warns
        -----
        WeakLearnerNotFoundWarning
            If boosting stops before `n_estimators` rounds.

        FitInterruptedWarning
            If it was interrupted after a student had been finished.

        CostsUnknownWarning
            If the operations of the teacher or of a student could not be counted.
        """
        before = dict(vars(self))
        try:
            return self._fit(X, y, sample_weight, teacher_scores)
        except BaseException:
            # Neither a half-made fit nor the loss of an earlier one.
            vars(self).clear()
            vars(self).update(before)
            raise

    def _fit(self, X, y, sample_weight, teacher_scores):
        estimator_name = type(self).__name__
        regression = not is_classifier(self)
        previous = self.ensemble_ if self.warm_start and _is_fitted(self) else None
        objective = check_objective(
            self._default_objective if self.objective == "auto" else self.objective,
            regression=regression,
            has_labels=y is not None,
            estimator_name=estimator_name,
        )
        connection = check_connection(self.connection, estimator_name, auto=True)
        check_net(self.net, estimator_name)
        if self.n_stages is not None and self.n_stages > self.n_estimators:
            raise ValueError(
                f"The 'n_stages' parameter of {estimator_name} must be at most "
                f"n_estimators={self.n_estimators}. Got {self.n_stages} instead."
            )

        x, y = self._validate_fit(X, y, reset=previous is None)
        input_shape = tuple(x.shape[1:])
        if previous is not None:
            if connection == "auto":
                connection = previous.connection
            self._check_warm_start(input_shape, connection)
        elif connection == "auto":
            # The weights of what it tries would use up random numbers.
            with torch_seed(0, torch.device("cpu")):
                connection = auto_connection(self._factories(input_shape), input_shape)
        X, x, y, sample_weight, teacher_scores = self._drop_weightless_rows(
            X, x, y, sample_weight, teacher_scores
        )
        dtype = np.dtype(self.dtype)
        random_state = check_random_state(self.random_state)
        teacher_seed, split_seed = draw_seeds(random_state, 2)
        response = teacher_response(
            self.teacher,
            X,
            y,
            regression=regression,
            sample_weight=sample_weight,
            teacher_scores=teacher_scores,
            random_state=int(teacher_seed),
            # Targets may lie far from 0: they are standardised before they are cast.
            dtype=np.float64 if regression else dtype,
            estimator_name=estimator_name,
        )
        scores, label = self._encode(response, y, sample_weight, previous)
        seeds = draw_seeds(random_state, self.n_estimators)

        torch_dtype = getattr(torch, self.dtype)
        device = resolve_device(self.device, torch_dtype, estimator_name)
        if sample_weight is not None:
            sample_weight = sample_weight / sample_weight.mean()
        teacher_costs, problem = _teacher_costs(response)
        if problem:
            warnings.warn(problem, CostsUnknownWarning, stacklevel=4)
        if previous is None:
            mean, scale = _input_scaling(x, sample_weight, dtype, estimator_name)
            ensemble = ProgressiveEnsemble(
                input_shape,
                scores.shape[1],
                # Not the parameter itself, which may be changed after the fit.
                connection=copy.copy(connection),
                input_mean=torch.from_numpy(mean),
                input_scale=torch.from_numpy(scale),
                **self._output_scaling(),
            ).to(device, torch_dtype)
        else:
            ensemble = copy.deepcopy(previous).to(device, torch_dtype)
        ladder, sample = self._ladder(ensemble, teacher_costs)
        boosting = self._boosting(
            ensemble,
            x,
            scores,
            label=label,
            sample_weight=sample_weight,
            objective=objective,
            ladder=ladder,
            cache_features=self._caches_features(len(x), sample),
            split_seed=int(split_seed),
            device=device,
        )
        if previous is not None:
            boosting.rungs = list(self.ladder_positions_)
            boosting.history = list(self.training_history_)
            boosting.replay()
        boosting.run(
            seeds,
            refine=self.refine,
            refine_epochs=(
                boosting.search.max_epochs
                if self.refine_epochs == "auto"
                else self.refine_epochs
            ),
            open_bar=self._open_bar,
            estimator_name=estimator_name,
        )

        self.ensemble_ = ensemble.eval()
        self.n_estimators_ = len(ensemble)
        self.input_shape_ = input_shape
        self.eta_ = boosting.game.eta
        self.teacher_bound_ = boosting.search.bound
        self.student_edges_ = boosting.game.student_edges
        self.certificate_ = self._certificate(boosting.game)
        self.ladder_positions_ = boosting.rungs
        self.training_history_ = boosting.history
        self.stage_costs_, problem = costs.count_stages(ensemble, ensemble.example())
        if problem:
            warnings.warn(problem, CostsUnknownWarning, stacklevel=4)
        self.teacher_costs_ = teacher_costs
        self.teacher_score_ = self._teacher_score(scores, y, sample_weight)
        return self

    def _boosting(
        self,
        ensemble,
        x,
        scores,
        *,
        label,
        sample_weight,
        objective,
        ladder,
        cache_features,
        split_seed,
        device,
    ):
        """The boosting loop, with its game, rows and search, ready to run."""
        estimator_name = type(self).__name__
        regression = not is_classifier(self)
        dtype = getattr(torch, self.dtype)
        train, valid = self._split(len(x), label, split_seed)
        train_scores = _take(scores, train)
        train_weight = _take(sample_weight, train)
        n_samples = len(train_scores)
        batch_size = resolve_batch_size(self.batch_size, n_samples, estimator_name)
        max_epochs = resolve_epochs(self.max_epochs, n_samples, batch_size)
        bound = float(np.abs(train_scores).max())
        eta = (
            auto_eta(bound, n_samples, self.n_estimators)
            if self.eta == "auto"
            else float(self.eta)
        )
        game = BoostingGame(train_scores, eta=eta, sample_weight=train_weight)

        def row_data(rows, scores, weight, residual_sum):
            used_label = _take(label, rows) if objective.alpha else None
            return RowData(
                ensemble,
                as_tensor(_take(x, rows)),
                torch.from_numpy(scores),
                residual_sum,
                sample_weight=_to_tensor(weight, dtype),
                label=_to_tensor(used_label, dtype if regression else None),
                n_students=self.n_estimators,
                device=device,
                cache_features=cache_features,
            )

        return _Boosting(
            ensemble,
            game,
            row_data(
                train, train_scores, train_weight, torch.from_numpy(game.residual_sum)
            ),
            None
            if valid is None
            else row_data(
                valid,
                scores[valid],
                _take(sample_weight, valid),
                torch.zeros((len(valid), scores.shape[1]), dtype=dtype),
            ),
            WeakLearnerSearch(
                ladder=ladder,
                trainer=Trainer(
                    self.net,
                    batch_size=batch_size,
                    learning_rate=self.learning_rate,
                    device=device,
                    patience=_PATIENCE if self.early_stopping else None,
                ),
                objective=objective,
                regression=regression,
                max_epochs=max_epochs,
                max_attempts=self.max_attempts,
                edge_tol=self._tolerance(objective),
                max_edge_scale=self.max_edge_scale,
                bound=bound,
            ),
            self._report,
        )

    def _validate_fit(self, X, y, *, reset):
        options = {"dtype": _INPUT_DTYPES, "order": "C", "allow_nd": True}
        if y is None:
            return validate_data(self, X, reset=reset, **options), None
        regression = not is_classifier(self)
        x, y = validate_data(
            self,
            X,
            y,
            reset=reset,
            multi_output=regression,
            y_numeric=regression,
            **options,
        )
        if not regression:
            check_classification_targets(y)
            y = column_or_1d(y)
        return x, y

    def _check_warm_start(self, input_shape, connection):
        estimator_name = type(self).__name__
        if repr(connection) != repr(self.ensemble_.connection):
            raise ValueError(
                f"With warm_start=True, the 'connection' parameter of {estimator_name} "
                f"must be that of the earlier fit, {self.ensemble_.connection!r}. Got "
                f"{connection!r}."
            )
        if input_shape != self.input_shape_:
            raise ValueError(
                "With warm_start=True, the rows of X must have the shape that "
                f"{estimator_name} was fitted with, {self.input_shape_}. Got "
                f"{input_shape}."
            )
        if self.n_estimators < self.n_estimators_:
            raise ValueError(
                f"n_estimators={self.n_estimators} must be larger or equal to "
                f"n_estimators_={self.n_estimators_} when warm_start=True."
            )
        if self.n_estimators == self.n_estimators_:
            warnings.warn(
                "Warm-start fitting without increasing n_estimators does not fit new "
                "students.",
                UserWarning,
                stacklevel=5,
            )

    def _drop_weightless_rows(self, X, x, y, sample_weight, teacher_scores):
        """Check the sample weights; rows of weight 0 leave the fit as a whole."""
        if sample_weight is None:
            return X, x, y, None, teacher_scores
        sample_weight = _check_sample_weight(
            sample_weight, x, dtype=np.float64, ensure_non_negative=True
        )
        if not sample_weight.any():
            raise ValueError("sample_weight is zero for all rows; some must count.")
        used = np.flatnonzero(sample_weight)
        if len(used) == len(x):
            return X, x, y, sample_weight, teacher_scores
        if teacher_scores is not None:
            check_consistent_length(x, teacher_scores)
            teacher_scores = _safe_indexing(teacher_scores, used)
        return (
            _safe_indexing(X, used),
            x[used],
            None if y is None else y[used],
            sample_weight[used],
            teacher_scores,
        )

    def _factories(self, input_shape):
        """Backbones of the ladder, or all that "auto" chooses from."""
        if isinstance(self.student, str) and self.student == "auto":
            return auto_students(input_shape)[0]
        return check_ladder(self.student, type(self).__name__)

    def _ladder(self, ensemble, teacher_costs):
        """Hypothesis classes, and the costs of up to two students of the first.

        "auto" is sized by the cost of the whole ensemble.
        """
        # Two of them, for the connection.
        n_sampled = min(2, self.n_estimators)

        def sample_costs(factory, n_students):
            sample = ProgressiveEnsemble(
                ensemble.input_shape,
                ensemble.n_outputs,
                connection=ensemble.connection,
            )
            # Only their costs count, but their weights would use up random numbers.
            with torch_seed(0, torch.device("cpu")):
                for _ in range(n_students):
                    sample.append(sample.new_student(factory))
            return costs.count_stages(sample, sample.example())[0]

        factories = self._factories(ensemble.input_shape)
        if not (isinstance(self.student, str) and self.student == "auto"):
            # What cannot be built is found here, not after the training of others.
            samples = [sample_costs(factory, n_sampled) for factory in factories]
            if len(ensemble) and self.ladder_positions_[-1] >= len(factories):
                raise ValueError(
                    f"With warm_start=True, the ladder in the 'student' parameter of "
                    f"{type(self).__name__} must reach the class of the last student, "
                    f"number {self.ladder_positions_[-1] + 1}. Got {len(factories)} "
                    "class(es)."
                )
            return factories, samples[0]
        _, default = auto_students(ensemble.input_shape)
        chosen = default
        if teacher_costs is not None and teacher_costs.macs is not None:
            chosen = 0
            allowed = _AUTO_COST_SHARE * teacher_costs.macs
            for position, factory in enumerate(factories):
                spent = sample_costs(factory, self.n_estimators).cumulative_macs[-1]
                if np.isnan(spent):
                    chosen = default
                if not spent <= allowed:
                    break
                chosen = position
        # The wider class behind it has about twice the width.
        wider = min(chosen + 2, len(factories) - 1)
        ladder = [factories[chosen]] + [factories[wider]] * (wider > chosen)
        return ladder, sample_costs(factories[chosen], n_sampled)

    def _caches_features(self, n_rows, sample):
        """Whether what students keep is held for all rows, given two of them."""
        if self.cache_features != "auto":
            return self.cache_features
        kept = sample.activation_bytes
        n_later = max(self.n_estimators - len(kept), 0)
        n_bytes = n_rows * (kept.sum() + n_later * kept[-1])
        return n_bytes * np.dtype(self.dtype).itemsize <= _AUTO_CACHE * 4

    def _tolerance(self, objective):
        if self.edge_tol == "auto":
            return np.inf if objective.barrier is None else _AUTO_TOL
        return self.edge_tol

    def _split(self, n_samples, label, seed):
        """Row numbers for training and validation; None for all and none."""
        if not self.early_stopping:
            return None, None
        stratify = None
        if is_classifier(self) and label is not None:
            n_valid = math.ceil(self.validation_fraction * n_samples)
            counts = np.bincount(label)
            counts = counts[counts > 0]
            # Where classes are too rare to be on both sides, chance decides.
            if counts.min() > 1 and len(counts) <= min(n_valid, n_samples - n_valid):
                stratify = label
        return train_test_split(
            np.arange(n_samples),
            test_size=self.validation_fraction,
            random_state=seed,
            stratify=stratify,
        )

    def _open_bar(self, n_epochs, number=None):
        """Progress bar over the epochs of a round, or of a refinement."""
        if not self.verbose:
            return nullcontext()
        what = f"round {number} of {self.n_estimators}" if number else "refinement"
        return tqdm(
            total=n_epochs,
            desc=f"[{type(self).__name__}] {what}",
            unit="epoch",
            leave=False,
        )

    def _report(self, number, game, seconds):
        """Print one line about a round."""
        if not self.verbose:
            return
        mean = game.teacher_scores + game.residual_sum / game.n_rounds
        fit = np.sqrt(np.mean((mean - game.teacher_scores) ** 2))
        tqdm.write(
            f"[{type(self).__name__}] round {number} of {self.n_estimators}: "
            f"min edge {game.student_edges[-1].min():+.3f}, "
            f"RMSE against the teacher {fit:.3f}, "
            f"{self._agreement_name} {self._agreement(game.teacher_scores, mean):.4f}, "
            f"{seconds:.1f} s"
        )

    # Predicting

    def _staged_scores(self, X, *, all_stages):
        """Running means of shape (n_stages or 1, n_samples, n_outputs).

        In the units of the game: those of a regression target need not fit the dtype.
        """
        n_stages = self._n_stages()
        chunks = []
        for _, state in self._chunk_states(X):
            means = []
            with torch.inference_mode():
                for stage in range(1, n_stages + 1):
                    state.advance()
                    if all_stages or stage == n_stages:
                        means.append(state.total / stage)
                chunks.append(torch.stack(means))
        with torch.inference_mode():
            scores = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)
        return scores.cpu().numpy()

    def _chunk_states(self, X):
        """Begin a pass over the students for each chunk of rows.

        Yields the rows, a slice, and the :class:`~skbdistil.ensemble.StageState`.
        """
        x = validate_data(
            self, X, reset=False, dtype=_INPUT_DTYPES, order="C", allow_nd=True
        )
        if x.shape[1:] != self.input_shape_:
            raise ValueError(
                f"{type(self).__name__} was fitted on rows of shape "
                f"{self.input_shape_}, and X has rows of shape {x.shape[1:]}."
            )
        ensemble, device, dtype = self._ready_ensemble()
        x = as_tensor(x)
        n_rows = chunk_rows(self.input_shape_)
        for start in range(0, len(x), n_rows):
            rows = slice(start, min(start + n_rows, len(x)))
            # Not around the yield: the mode would leak to the caller.
            with torch.inference_mode():
                state = ensemble.start(x[rows].to(device, dtype))
            yield rows, state

    def _n_stages(self):
        if self.n_stages is None:
            return self.n_estimators_
        estimator_name = type(self).__name__
        if not (isinstance(self.n_stages, Integral) and self.n_stages >= 1):
            raise ValueError(
                f"The 'n_stages' parameter of {estimator_name} must be None or an int "
                f"of at least 1. Got {self.n_stages!r} instead."
            )
        if self.n_stages > max(self.n_estimators, self.n_estimators_):
            raise ValueError(
                f"The 'n_stages' parameter of {estimator_name} is {self.n_stages}, but "
                f"the fitted ensemble has only {self.n_estimators_} student(s)."
            )
        # Fewer where boosting has stopped early.
        return min(int(self.n_stages), self.n_estimators_)

    def _ready_ensemble(self):
        """Ensemble on the device asked for: it may come from another machine."""
        like = self.ensemble_.input_factor
        device = resolve_device(self.device, like.dtype, type(self).__name__)
        same_index = device.index in (None, like.device.index)
        if device.type != like.device.type or not same_index:
            self.ensemble_.to(device)
        return self.ensemble_, self.ensemble_.input_factor.device, like.dtype

    def staged_score(self, X, y, sample_weight=None):
        """Score of the ensemble after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Labels or targets.

        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Yields
        ------
        score : float
            Accuracy for a classifier, R^2 for a regressor.
        """
        check_is_fitted(self)
        metric = accuracy_score if is_classifier(self) else r2_score
        for predicted in self.staged_predict(X):
            yield metric(y, predicted, sample_weight=sample_weight)

    # A fitted ensemble as a sequence of stages

    def stage_for(self, budget, unit="macs", X=None):
        """Largest stage within a budget.

        To predict with it: ``clf.set_params(n_stages=clf.stage_for(budget))``, or
        ``clf[:clf.stage_for(budget)]`` for a copy without the later students.

        Parameters
        ----------
        budget : float
            Largest cost of a prediction, in the unit.

        unit : {"macs", "parameters", "weight_bytes", "activation_bytes", \
                "latency"} or callable, default="macs"
            Unit of the cost, as for :func:`skbdistil.stages.stage_cost`: what is
            counted in :attr:`stage_costs_`, the seconds of a prediction of one row
            measured on `X`, or a function of the fitted estimator that returns the
            cumulative costs of its stages.

        X : array-like of shape (n_samples, ...), default=None
            Rows to measure the latency on.

        Returns
        -------
        stage : int
            From 1 to the number of students.

        Raises
        ------
        ValueError
            If not even the first stage is within the budget, the unit is none of
            these, or the costs in this unit are not known.
        """
        check_is_fitted(self)
        return stage_within(stage_cost(self, unit, X=X), budget)

    def __len__(self):
        """Return the number of students of the fitted ensemble."""
        check_is_fitted(self)
        return self.n_estimators_

    def __getitem__(self, stages):
        """Return a fitted copy with the first students only.

        Parameters
        ----------
        stages : slice
            ``[:k]``: students are a prefix of the ensemble, since later ones read
            what earlier ones computed.

        Returns
        -------
        estimator : object
            Its weights are its own.
        """
        check_is_fitted(self)
        if not isinstance(stages, slice):
            raise TypeError(
                f"{type(self).__name__} is cut by a slice [:k]. Got {stages!r}."
            )
        is_prefix = stages.start in (None, 0) and stages.step in (None, 1)
        n_stages = stages.indices(self.n_estimators_)[1] if is_prefix else 0
        if n_stages < 1:
            raise ValueError(
                f"{type(self).__name__} can be cut to its first students with [:k], "
                f"k at least 1. Got {stages!r}."
            )
        first = slice(n_stages)
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        other.ensemble_ = copy.deepcopy(self.ensemble_.truncated(n_stages))
        other.n_estimators_ = n_stages
        other.student_edges_ = self.student_edges_[first].copy()
        other.certificate_ = self.certificate_[first]
        other.ladder_positions_ = self.ladder_positions_[first]
        other.training_history_ = self.training_history_[first]
        other.stage_costs_ = self.stage_costs_[first]
        if self.n_stages is not None and self.n_stages > n_stages:
            other.n_stages = None
        return other

    # Students are no items: later ones read what earlier ones computed.
    __iter__ = None
    __contains__ = None

    def __getstate__(self):
        state = super().__getstate__()
        ensemble = state.get("ensemble_")
        if ensemble is not None and next(ensemble.parameters()).device.type != "cpu":
            # So that what was fitted on a GPU can be loaded without one.
            state["ensemble_"] = copy.deepcopy(ensemble).cpu()
        return state

    def _sk_visual_block_(self):
        return visual_block(self)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class BDistilClassifier(ClassifierMixin, _BaseBDistil):
    """Distil a classifier into a sequence of small students.

    The students' running mean approaches the teacher's logits, so that accuracy is
    bought with inference cost at run time: any prefix of the students predicts. Each
    student is a small torch network that is trained, by way of skorch, against the
    weights of a boosting game which grow where the mean of the earlier students is
    off [1]_.

    Parameters
    ----------
    teacher : estimator, :class:`~skbdistil.teachers.TorchTeacher`, \
            torch.nn.Module, "precomputed" or None, default=None
        What is distilled.

        - an unfitted scikit-learn classifier is cloned and fitted inside `fit`, and not
          kept;
        - ``FrozenEstimator(fitted)`` is used as it is; a fitted estimator that is not
          frozen is an error;
        - :class:`~skbdistil.teachers.TorchTeacher` or a bare module is used as it is;
        - ``"precomputed"``: `fit` takes the scores as `teacher_scores`;
        - None fits extremely randomized trees, at least two rows a leaf.

        Its `predict_proba` is preferred to its `decision_function`.

    student : "auto", type, callable or list of these, default="auto"
        Backbone of the students: a class or factory called with the shape of a row,
        for example :class:`~skbdistil.students.MLP` or
        ``functools.partial(MLP, hidden=(16,))``; never an instance. A list is the
        ladder of hypothesis classes: the search moves on to the next one when no
        student of a class is a weak learner. ``"auto"`` suits the shape of a row:
        :class:`~skbdistil.students.MLP` for tables,
        :class:`~skbdistil.students.ConvNet1d` for (steps, channels),
        :class:`~skbdistil.students.ConvNet2d` for (channels, height, width), and is
        sized so that all students together cost at most half of a torch teacher's
        multiply-accumulates, or the smallest where none does; behind it in the ladder
        comes one of about twice the width.

    n_estimators : int, default=6
        Number of students T; boosting may stop with fewer.

    connection : {"auto", "dense", "residual", "last", "lateral"}, None, \
            :class:`~skbdistil.ensemble.Lateral` or \
            :class:`~skbdistil.ensemble.Connection` subclass, default="auto"
        How students use what earlier ones computed; None for independent students.
        ``"auto"`` is ``Lateral(shared_blocks=1)`` for the convolutional backbones of
        the package that have a block between the first and the last, else
        ``"dense"``.

    objective : {"auto", "kl+barrier", "kl", "squared_error+barrier", \
            "squared_error", "barrier"} or \
            :class:`~skbdistil.objectives.DistillationObjective`, default="auto"
        What a student minimises. ``"auto"`` is ``kl+barrier``.

    eta : float or "auto", default="auto"
        Step of the boosting game, not negative. ``"auto"`` is
        ``min(sqrt(ln(2 n) / T), 1) / (2 B)``; 0 leaves all weights equal.

    edge_tol : float or "auto", default="auto"
        A student is accepted when every edge is at least ``-edge_tol * B``. ``"auto"``
        is 0.1, and infinity where the objective has no barrier, since such students do
        not play the game.

    max_attempts : int, default=1
        Fresh initialisations per hypothesis class and round. The search ends at the
        first one without a negative edge, and takes the one with the largest
        minimum edge.

    max_edge_scale : float, default=1.0
        Largest factor, at least 1, by which an output of a new student may be scaled
        to make its edge non-negative; 1 for no such calibration.

    net : skorch.NeuralNet or None, default=None
        Template for the training of the students, for example
        ``NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)``. Its optimizer,
        callbacks, mixed precision and iterators are used, and can be searched as
        ``net__optimizer__weight_decay``; module, criterion, epochs, batch size,
        learning rate and device are set by the parameters here. None takes AdamW. A
        one-cycle schedule is added unless the template has an ``LRScheduler``.

    max_epochs : int or "auto", default="auto"
        Epochs per student. ``"auto"``: at least 8, and at least 1000 optimizer steps.

    batch_size : int or "auto", default="auto"
        Rows per optimizer step, at most the number of training rows. ``"auto"``: 32
        to 256, growing with the number of rows.

    learning_rate : float, default=0.01
        Peak of the one-cycle schedule, or the rate of the template's own scheduler.

    refine : {"final", "rounds"} or None, default=None
        Joint training of all students, the loss being the mean over all stages: after
        the last round, or after every round. It changes earlier students, so it is
        for a first release, not for devices that already carry some.

    refine_epochs : int or "auto", default="auto"
        Epochs of each refinement; ``"auto"`` is those of a student.

    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows, to end the training of
        a student when its loss there has not improved for 10 epochs, and to keep its
        best state. The rows held out take no part in the game.

    validation_fraction : float, default=0.1
        Share of the rows held out, between 0 and 1.

    cache_features : bool or "auto", default="auto"
        Whether what earlier students computed is held in memory for all rows while
        `fit` runs: ``stage_costs_.activation_bytes`` of every stage but the last, for
        each row. These are a few numbers where last features are joined, and whole maps
        with :class:`~skbdistil.ensemble.Lateral`. If False it is computed again for
        every batch: less memory, the same students up to rounding, and a time that
        grows with the square of `n_estimators`. ``"auto"`` holds up to 1 GiB. False is
        also for iterators that change the rows (augmentation).

    n_stages : int or None, default=None
        Number of students that predict, at most `n_estimators`; None for all. Can be
        set after `fit`. Where boosting stopped early, all there are.

    warm_start : bool, default=False
        Whether `fit` adds rounds to the fitted ensemble. Without refinement, with a
        number for `eta` and an int for `random_state`, more rounds on the same data
        give the students of one longer fit.

    dtype : {"float32", "float64"}, default="float32"
        Type of the students' weights and of what is predicted.

    device : str or torch.device, default="auto"
        Where students are trained and run. ``"auto"``: CUDA, else MPS, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of a teacher fitted here, of the initial weights and of the order of rows.
        An int gives the same bits on the same machine, unless several fits share a
        process in threads; torch's and NumPy's global generators are left alone.

    verbose : int, default=0
        If positive, shows a progress bar per round and prints one line about each.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; those of the teacher where it brings its own.

    n_features_in_ : int
        Number of features seen in `fit`; for rows of more than one axis, the length
        of the first.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where all of them are strings.

    input_shape_ : tuple of int
        Shape of a row.

    ensemble_ : :class:`~skbdistil.ensemble.ProgressiveEnsemble`
        The students, a plain torch module in evaluation mode.

    n_estimators_ : int
        Number of students found.

    student_edges_ : ndarray of shape (n_students, n_outputs)
        Edges ``sum_i (K+ - K-)(f - g)`` of each student under the weights of its
        round, in logits.

    certificate_ : Certificate
        ``bound``, ``actual`` and ``mean``, of shape (n_students, n_outputs): the bound
        on the largest error ``|F_t - g|`` over the training rows that the game gives
        after each stage, that error itself, and the mean error, in logits. ``step``, of
        shape (n_students,): ``eta * max |f_t - g|``; the bound is infinite from the
        round on in which this exceeds 1.

    eta_ : float
        Step of the game.

    teacher_bound_ : float
        Largest absolute teacher score ``B`` on the training rows.

    ladder_positions_ : list of int
        Position in the class ladder of each student.

    training_history_ : list of list of dict
        Losses of each student by epoch: ``epoch``, ``train_loss``, ``valid_loss``.

    stage_costs_ : :class:`~skbdistil.costs.StageCosts`
        Multiply-accumulates, parameters and bytes of each stage. Multiply-accumulates
        are NaN where they could not be counted.

    teacher_costs_ : :class:`~skbdistil.costs.Costs` or None
        The same of a torch teacher, whose multiply-accumulates are None where they
        could not be counted. None for any other teacher.

    teacher_score_ : float or None
        Accuracy of the teacher on the training rows; None without y.

    See Also
    --------
    BDistilRegressor : The same for regression.
    sklearn.frozen.FrozenEstimator : Wraps a fitted teacher.

    Notes
    -----
    The classification of two classes has two outputs, like any other number of them.

    References
    ----------
    .. [1] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference",
       NeurIPS 2023, arXiv:2302.10093.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.students import MLP
    >>> X, y = make_classification(n_samples=200, random_state=0)
    >>> teacher = RandomForestClassifier(random_state=0).fit(X, y)
    >>> clf = BDistilClassifier(
    ...     FrozenEstimator(teacher),
    ...     student=partial(MLP, hidden=(4,)),
    ...     n_estimators=2,
    ...     random_state=0,
    ... ).fit(X, y)
    >>> clf.stage_costs_.cumulative_macs
    array([ 88, 208])
    >>> clf[:1].predict(X[:2]).shape
    (2,)
    """

    _agreement_name = "agreement with the teacher"
    _default_objective = "kl+barrier"

    def _encode(self, response, y, sample_weight, previous):
        """Teacher scores in the order of the classes, and labels as indices."""
        classes, order = np.unique(response.classes, return_index=True)
        if previous is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "With warm_start=True, the teacher must have the classes of the "
                f"earlier fit, {self.classes_}. Got {classes}."
            )
        self.classes_ = classes
        scores = response.scores
        if not np.array_equal(order, np.arange(len(order))):
            scores = np.ascontiguousarray(scores[:, order])
        label = None if y is None else np.searchsorted(classes, y)
        return scores, label

    def _output_scaling(self):
        return {}

    def _certificate(self, game):
        return game.certificate()

    @staticmethod
    def _agreement(teacher, mean):
        return np.mean(teacher.argmax(1) == mean.argmax(1))

    def _teacher_score(self, scores, y, sample_weight):
        if y is None:
            return None
        return accuracy_score(
            y, self.classes_[scores.argmax(1)], sample_weight=sample_weight
        )

    def _as_decision(self, scores):
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def decision_function(self, X):
        """Logits of the ensemble.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            Centred logits like the teacher's, in the order of `classes_`; for two
            classes, the log-odds of the second one.
        """
        check_is_fitted(self)
        return self._as_decision(self._staged_scores(X, all_stages=False)[0])

    def staged_decision_function(self, X):
        """Logits after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Yields
        ------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            As of :meth:`decision_function`.
        """
        check_is_fitted(self)
        for scores in self._staged_scores(X, all_stages=True):
            yield self._as_decision(scores)

    def predict(self, X):
        """Most likely class of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        scores = self._staged_scores(X, all_stages=False)[0]
        return self.classes_[scores.argmax(axis=1)]

    def staged_predict(self, X):
        """Most likely class of each row after each stage.

        All stages are computed in one pass over the students.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Yields
        ------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        for scores in self._staged_scores(X, all_stages=True):
            yield self.classes_[scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        check_is_fitted(self)
        return softmax(self._staged_scores(X, all_stages=False)[0], axis=1)

    def staged_predict_proba(self, X):
        """Probabilities of the classes after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Yields
        ------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        for scores in self._staged_scores(X, all_stages=True):
            yield softmax(scores, axis=1)

    def predict_log_proba(self, X):
        """Logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return log_softmax(self._staged_scores(X, all_stages=False)[0], axis=1)


class BDistilRegressor(RegressorMixin, _BaseBDistil):
    """Distil a regressor into a sequence of small students.

    The students' running mean approaches the teacher ``g: X -> R^L``, so that accuracy
    is bought with inference cost at run time: any prefix of the students predicts.
    Targets are standardised inside, so that one bound and one step of the game serve
    all of them; predictions and the certificate are in the units of the targets [1]_.

    Parameters
    ----------
    teacher : estimator, :class:`~skbdistil.teachers.TorchTeacher`, \
            torch.nn.Module, "precomputed" or None, default=None
        What is distilled.

        - an unfitted scikit-learn regressor is cloned and fitted inside `fit`, and not
          kept;
        - ``FrozenEstimator(fitted)`` is used as it is; a fitted estimator that is not
          frozen is an error;
        - :class:`~skbdistil.teachers.TorchTeacher` or a bare module is used as it is;
        - ``"precomputed"``: `fit` takes the scores as `teacher_scores`;
        - None fits extremely randomized trees, at least five rows a leaf.

        Its `predict` gives one or several targets; a torch teacher's outputs are taken
        as they are.

    student : "auto", type, callable or list of these, default="auto"
        Backbone of the students: a class or factory called with the shape of a row,
        for example :class:`~skbdistil.students.MLP` or
        ``functools.partial(MLP, hidden=(16,))``; never an instance. A list is the
        ladder of hypothesis classes: the search moves on to the next one when no
        student of a class is a weak learner. ``"auto"`` suits the shape of a row:
        :class:`~skbdistil.students.MLP` for tables,
        :class:`~skbdistil.students.ConvNet1d` for (steps, channels),
        :class:`~skbdistil.students.ConvNet2d` for (channels, height, width), and is
        sized so that all students together cost at most half of a torch teacher's
        multiply-accumulates, or the smallest where none does; behind it in the ladder
        comes one of about twice the width.

    n_estimators : int, default=6
        Number of students T; boosting may stop with fewer.

    connection : {"auto", "dense", "residual", "last", "lateral"}, None, \
            :class:`~skbdistil.ensemble.Lateral` or \
            :class:`~skbdistil.ensemble.Connection` subclass, default="auto"
        How students use what earlier ones computed; None for independent students.
        ``"auto"`` is ``Lateral(shared_blocks=1)`` for the convolutional backbones of
        the package that have a block between the first and the last, else
        ``"dense"``.

    objective : {"auto", "kl+barrier", "kl", "squared_error+barrier", \
            "squared_error", "barrier"} or \
            :class:`~skbdistil.objectives.DistillationObjective`, default="auto"
        What a student minimises. ``"auto"`` is ``squared_error+barrier``; the two
        with ``kl`` are for classification only.

    eta : float or "auto", default="auto"
        Step of the boosting game, not negative. ``"auto"`` is
        ``min(sqrt(ln(2 n) / T), 1) / (2 B)``; 0 leaves all weights equal.

    edge_tol : float or "auto", default="auto"
        A student is accepted when every edge is at least ``-edge_tol * B``. ``"auto"``
        is 0.1, and infinity where the objective has no barrier, since such students do
        not play the game.

    max_attempts : int, default=1
        Fresh initialisations per hypothesis class and round. The search ends at the
        first one without a negative edge, and takes the one with the largest
        minimum edge.

    max_edge_scale : float, default=1.0
        Largest factor, at least 1, by which an output of a new student may be scaled
        to make its edge non-negative; 1 for no such calibration.

    net : skorch.NeuralNet or None, default=None
        Template for the training of the students, for example
        ``NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)``. Its optimizer,
        callbacks, mixed precision and iterators are used, and can be searched as
        ``net__optimizer__weight_decay``; module, criterion, epochs, batch size,
        learning rate and device are set by the parameters here. None takes AdamW. A
        one-cycle schedule is added unless the template has an ``LRScheduler``.

    max_epochs : int or "auto", default="auto"
        Epochs per student. ``"auto"``: at least 8, and at least 1000 optimizer steps.

    batch_size : int or "auto", default="auto"
        Rows per optimizer step, at most the number of training rows. ``"auto"``: 32
        to 256, growing with the number of rows.

    learning_rate : float, default=0.01
        Peak of the one-cycle schedule, or the rate of the template's own scheduler.

    refine : {"final", "rounds"} or None, default=None
        Joint training of all students, the loss being the mean over all stages: after
        the last round, or after every round. It changes earlier students, so it is
        for a first release, not for devices that already carry some.

    refine_epochs : int or "auto", default="auto"
        Epochs of each refinement; ``"auto"`` is those of a student.

    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows, to end the training of
        a student when its loss there has not improved for 10 epochs, and to keep its
        best state. The rows held out take no part in the game.

    validation_fraction : float, default=0.1
        Share of the rows held out, between 0 and 1.

    cache_features : bool or "auto", default="auto"
        Whether what earlier students computed is held in memory for all rows while
        `fit` runs: ``stage_costs_.activation_bytes`` of every stage but the last, for
        each row. These are a few numbers where last features are joined, and whole maps
        with :class:`~skbdistil.ensemble.Lateral`. If False it is computed again for
        every batch: less memory, the same students up to rounding, and a time that
        grows with the square of `n_estimators`. ``"auto"`` holds up to 1 GiB. False is
        also for iterators that change the rows (augmentation).

    n_stages : int or None, default=None
        Number of students that predict, at most `n_estimators`; None for all. Can be
        set after `fit`. Where boosting stopped early, all there are.

    warm_start : bool, default=False
        Whether `fit` adds rounds to the fitted ensemble. Without refinement, with a
        number for `eta` and an int for `random_state`, more rounds on the same data
        give the students of one longer fit.

    dtype : {"float32", "float64"}, default="float32"
        Type of the students' weights; predictions are float64 in any case.

    device : str or torch.device, default="auto"
        Where students are trained and run. ``"auto"``: CUDA, else MPS, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of a teacher fitted here, of the initial weights and of the order of rows.
        An int gives the same bits on the same machine, unless several fits share a
        process in threads; torch's and NumPy's global generators are left alone.

    verbose : int, default=0
        If positive, shows a progress bar per round and prints one line about each.

    Attributes
    ----------
    target_mean_, target_scale_ : ndarray of shape (n_outputs,)
        Mean and standard deviation of the teacher's values on the training rows.

    single_output_ : bool
        Whether `predict` returns one axis.

    n_features_in_ : int
        Number of features seen in `fit`; for rows of more than one axis, the length
        of the first.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where all of them are strings.

    input_shape_ : tuple of int
        Shape of a row.

    ensemble_ : :class:`~skbdistil.ensemble.ProgressiveEnsemble`
        The students, a plain torch module in evaluation mode.

    n_estimators_ : int
        Number of students found.

    student_edges_ : ndarray of shape (n_students, n_outputs)
        Edges ``sum_i (K+ - K-)(f - g)`` of each student under the weights of its
        round, of standardised targets.

    certificate_ : Certificate
        ``bound``, ``actual`` and ``mean``, of shape (n_students, n_outputs): the bound
        on the largest error ``|F_t - g|`` over the training rows that the game gives
        after each stage, that error itself, and the mean error, in units of the
        targets. ``step``, of shape (n_students,): ``eta * max |f_t - g|``; the bound is
        infinite from the round on in which this exceeds 1.

    eta_ : float
        Step of the game.

    teacher_bound_ : float
        Largest absolute teacher score ``B`` on the training rows, of
        standardised targets.

    ladder_positions_ : list of int
        Position in the class ladder of each student.

    training_history_ : list of list of dict
        Losses of each student by epoch: ``epoch``, ``train_loss``, ``valid_loss``.

    stage_costs_ : :class:`~skbdistil.costs.StageCosts`
        Multiply-accumulates, parameters and bytes of each stage. Multiply-accumulates
        are NaN where they could not be counted.

    teacher_costs_ : :class:`~skbdistil.costs.Costs` or None
        The same of a torch teacher, whose multiply-accumulates are None where they
        could not be counted. None for any other teacher.

    teacher_score_ : float or None
        R^2 of the teacher on the training rows; None without y.

    See Also
    --------
    BDistilClassifier : The same for classification.
    sklearn.frozen.FrozenEstimator : Wraps a fitted teacher.

    References
    ----------
    .. [1] D. K. Dennis, A. Shetty, A. P. Sevekari, K. Koishida, V. Smith, "Progressive
       Ensemble Distillation: Building Ensembles for Efficient Inference",
       NeurIPS 2023, arXiv:2302.10093.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.datasets import make_regression
    >>> from sklearn.linear_model import Ridge
    >>> from skbdistil import BDistilRegressor
    >>> from skbdistil.students import MLP
    >>> X, y = make_regression(n_samples=200, n_features=8, random_state=0)
    >>> reg = BDistilRegressor(
    ...     Ridge(), student=partial(MLP, hidden=(8,)), n_estimators=2, random_state=0
    ... ).fit(X, y)
    >>> len(reg), reg.predict(X[:2]).shape
    (2, (2,))
    """

    _agreement_name = "R^2 against the teacher"
    _default_objective = "squared_error+barrier"

    def _encode(self, response, y, sample_weight, previous):
        """Standardised teacher scores, and targets in the same units."""
        values = response.scores
        if y is not None:
            y = y.reshape(len(y), -1)
            if y.shape[1] != values.shape[1]:
                raise ValueError(
                    f"y has {y.shape[1]} target(s), and the teacher gives "
                    f"{values.shape[1]}."
                )
        if previous is None:
            scaler = StandardScaler().fit(values, sample_weight=sample_weight)
            self.target_mean_ = scaler.mean_
            self.target_scale_ = scaler.scale_
            self.single_output_ = response.single_output
        elif len(self.target_mean_) != values.shape[1]:
            raise ValueError(
                "With warm_start=True, the teacher must have the targets of the "
                f"earlier fit, {len(self.target_mean_)}. Got {values.shape[1]}."
            )

        def standardised(targets):
            return ((targets - self.target_mean_) / self.target_scale_).astype(
                self.dtype
            )

        return standardised(values), None if y is None else standardised(y)

    def _output_scaling(self):
        return {
            "output_mean": torch.from_numpy(self.target_mean_),
            "output_scale": torch.from_numpy(self.target_scale_),
        }

    def _certificate(self, game):
        return game.certificate().scaled(self.target_scale_)

    @staticmethod
    def _agreement(teacher, mean):
        return r2_score(teacher, mean)

    def _teacher_score(self, scores, y, sample_weight):
        if y is None:
            return None
        values = scores * self.target_scale_ + self.target_mean_
        return r2_score(y.reshape(len(y), -1), values, sample_weight=sample_weight)

    def _as_targets(self, scores):
        targets = scores.astype(np.float64) * self.target_scale_ + self.target_mean_
        return targets[:, 0] if self.single_output_ else targets

    def predict(self, X):
        """Targets of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        targets : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        check_is_fitted(self)
        return self._as_targets(self._staged_scores(X, all_stages=False)[0])

    def staged_predict(self, X):
        """Targets of each row after each stage.

        All stages are computed in one pass over the students.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Yields
        ------
        targets : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        check_is_fitted(self)
        for scores in self._staged_scores(X, all_stages=True):
            yield self._as_targets(scores)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _is_fitted(estimator):
    return hasattr(estimator, "ensemble_")


def _input_scaling(x, sample_weight, dtype, estimator_name):
    """Mean and standard deviation per feature or channel, to broadcast against a row.

    Chunk by chunk in float64, so that a memory map stays one.
    """
    channels_last = x.ndim <= 3
    scaler = StandardScaler()
    n_rows = chunk_rows(x.shape[1:])
    for start in range(0, len(x), n_rows):
        chunk = x[start : start + n_rows].astype(np.float64)
        weight = None
        if not channels_last:
            chunk = np.moveaxis(chunk, 1, -1)
        if sample_weight is not None:
            n_values = chunk[0].size // chunk.shape[-1]
            weight = np.repeat(sample_weight[start : start + n_rows], n_values)
        # What overflows is found below.
        with np.errstate(over="ignore", invalid="ignore"):
            scaler.partial_fit(chunk.reshape(-1, chunk.shape[-1]), sample_weight=weight)
    mean, scale = scaler.mean_, scaler.scale_
    advice = f"Scale them before {estimator_name}, or use dtype='float64'."
    with np.errstate(over="ignore"):
        cast = np.array([mean, scale, 1 / scale]).astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(
            f"X holds values whose mean or spread is out of the range of {dtype}. "
            f"{advice}"
        )
    # Rows are cast before they are centred; a hundredth of the spread has to be left.
    lost = (scaler.var_ > 0) & (np.abs(mean) * np.finfo(dtype).eps > scale / 100)
    if lost.any():
        warnings.warn(
            f"{lost.sum()} feature(s) of X, the first at position {lost.argmax()}, "
            f"vary too little around a large mean for {dtype}, which loses most of "
            f"what they say. {advice}",
            UserWarning,
            stacklevel=5,
        )
    shape = (-1,) if channels_last else (-1,) + (1,) * (x.ndim - 2)
    return mean.reshape(shape), scale.reshape(shape)


def _teacher_costs(response):
    """Costs of a torch teacher, None for another one, and what is not known of them."""
    if response.module is None:
        return None, None
    return costs.count_module(
        response.module, response.module_input, macs=response.macs
    )


def _take(array, rows):
    """Rows of an array; all of them where `rows` is None."""
    return array if array is None or rows is None else array[rows]


def _to_tensor(array, dtype):
    return None if array is None else torch.as_tensor(array, dtype=dtype)
