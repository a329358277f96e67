"""The estimators: validate, call the boosting loop, predict stage by stage."""

import copy
import warnings
from contextlib import nullcontext
from functools import partial
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.special import log_expit, log_softmax, softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    is_classifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)
from torch.utils.data import DataLoader

from skbdistil import _forms, costs
from skbdistil._arrays import (
    READY_DTYPES,
    as_tensor,
    from_torch,
    in_form_of,
    row_chunks,
    stack_rows,
    take_rows,
    take_samples,
)
from skbdistil._boosting._checkpoint import Checkpoint, fingerprint
from skbdistil._boosting._group import ranks_of
from skbdistil._boosting._idle import idle_features
from skbdistil._boosting._loop import Round
from skbdistil._boosting._plan import (
    FitData,
    auto_connection,
    first_rounds,
    make_plan,
    set_up,
    split_rows,
)
from skbdistil._boosting._progress import FitTasks, Progress
from skbdistil._boosting._random import derive_seed, draw_seeds
from skbdistil._boosting._ranks import ONE_RANK
from skbdistil._boosting._rows import chunk_rows, fits, resolve_device, to_device
from skbdistil._boosting._scaling import (
    all_finite,
    check_in_range,
    check_scores,
    input_scaling,
    target_scaling,
)
from skbdistil._boosting._training import check_net
from skbdistil._boosting._update import Updates, updated_ensemble
from skbdistil._boosting._view_targets import ViewTargets
from skbdistil._dataset_rows import DatasetRows, is_dataset, with_labels
from skbdistil._decoding import CLASSES, LABELS
from skbdistil._exit_rules import in_units
from skbdistil._protocol import shallow_copy
from skbdistil._repr_html import visual_block
from skbdistil._seeding import seeded
from skbdistil._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    _check_sample_weight,
    _check_y,
    _fit_context,
    _num_samples,
    _safe_indexing,
)
from skbdistil._storage import IN_MEMORY, Storage, row_pieces
from skbdistil._student_rows import (
    check_rows,
    fit_transform_rows,
    rows_like,
)
from skbdistil._teacher_scores import teacher_score_warning
from skbdistil._teacher_targets import (
    all_trained,
    at_hand,
    further_answers,
    mixed_with_labels,
    r2_of_targets,
    scores_of_labels,
    teacher_targets,
)
from skbdistil._warm_start import begins_with_another, n_played, take_over
from skbdistil.augmentation import Munge, Spunge
from skbdistil.ensemble import ProgressiveEnsemble, _check_connection
from skbdistil.exceptions import CostsUnknownWarning, DoubtfulTeacherWarning
from skbdistil.metrics import _stage_within
from skbdistil.objectives import _OBJECTIVES, DistillationObjective, _check_objective
from skbdistil.stages import stage_cost

# label_mix="auto" where the scores are out of fold, and the share of the rows on which
# it is compared with labels alone.
_AUTO_LABEL_MIX = 0.5
_JUDGED_SHARE = 0.2

# By scipy, and so to the bit what these have been since the first version.
_CLASSES = CLASSES._replace(probabilities=partial(softmax, axis=1))

_AUGMENTATIONS = {"munge": Munge, "spunge": Spunge}


class _BaseBDistil(CallbackSupportMixin, BaseEstimator):
    """What the classifier and the regressor share."""

    _parameter_constraints = {
        # Teacher, student, connection and net have messages of their own.
        "teacher": "no_validation",
        "teacher_cv": [StrOptions({"auto"}), "cv_object", None],
        "label_mix": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left")],
        "augment": [StrOptions(set(_AUGMENTATIONS)), callable, None],
        "student": "no_validation",
        "student_transform": "no_validation",
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "connection": "no_validation",
        "combine": [StrOptions({"auto", "mean", "sum", "learned"})],
        "objective": [StrOptions({"auto", *_OBJECTIVES}), DistillationObjective],
        "eta": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "edge_tol": [StrOptions({"auto"}), Interval(Real, 0, None, closed="both")],
        "max_attempts": [Interval(Integral, 1, None, closed="left")],
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
        "refine": [StrOptions({"final", "rounds", "only"}), None],
        "refine_epochs": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "input_scaling": [StrOptions({"standard"}), None],
        "n_stages": [Interval(Integral, 1, None, closed="left"), None],
        "warm_start": ["boolean", FrozenEstimator],
        "checkpoint": [str, PathLike, None],
        "temp_folder": [str, PathLike, None],
        "dtype": [StrOptions({"float32", "float64"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        teacher=None,
        *,
        teacher_cv="auto",
        label_mix="auto",
        augment=None,
        student="auto",
        student_transform=None,
        n_estimators=6,
        connection="auto",
        combine="auto",
        objective="auto",
        eta="auto",
        edge_tol="auto",
        max_attempts=1,
        net=None,
        max_epochs="auto",
        batch_size="auto",
        learning_rate=0.01,
        refine=None,
        refine_epochs="auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        input_scaling="standard",
        n_stages=None,
        warm_start=False,
        checkpoint=None,
        temp_folder=None,
        dtype="float32",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.teacher = teacher
        self.teacher_cv = teacher_cv
        self.label_mix = label_mix
        self.augment = augment
        self.student = student
        self.student_transform = student_transform
        self.n_estimators = n_estimators
        self.connection = connection
        self.combine = combine
        self.objective = objective
        self.eta = eta
        self.edge_tol = edge_tol
        self.max_attempts = max_attempts
        self.net = net
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.refine = refine
        self.refine_epochs = refine_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.input_scaling = input_scaling
        self.n_stages = n_stages
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.temp_folder = temp_folder
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # Fitting

    # Those of a search or of an early exit, where metadata are routed.
    __metadata_request__fit = {"groups": True}

    # Rounds after which a fit stops, for a search that goes on with it by a warm start.
    # What depends on n_estimators is planned for all rounds. None plays all of them.
    _round_limit = None

    # Whether the labels of a row do not exclude each other.
    _multilabel = False

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X,
        y=None,
        sample_weight=None,
        teacher_scores=None,
        X_unlabelled=None,
        groups=None,
    ):
        """Distil the teacher into students.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features) or \
                (n_samples, ...)
            Training rows: a table, sequences (n_samples, steps, channels) or images
            (n_samples, channels, height, width). Read-only memory maps and the dtypes
            float16, float32, float64, uint8, int8, int16, int32 and int64 are used as
            they are; other dtypes are converted to `dtype`. Sparse rows become dense
            batch by batch. A table may hold NaN where the teacher takes it; see
            `student_transform`. Or a map-style :class:`torch.utils.data.Dataset`, whose
            rows are read when they are needed, or :class:`~skbdistil.datasets.Views` of
            one, to train on augmented rows, about which the teacher may be asked, too.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or targets. Several labels per row are an indicator matrix of 0 and
            1, dense or sparse. None takes those of a dataset whose items hold some,
            which are read in one pass. Otherwise it is allowed where the teacher needs
            none to be fitted and, in classification, brings its classes; rows then have
            one label.

        sample_weight : array-like of shape (n_samples,), default=None
            Not negative. Weighs rows in the loss, and gives the initial distribution
            of the game; rows of weight 0 are left out. Passed on to a teacher that is
            fitted here and takes it.

        teacher_scores : array-like of shape (n_samples, n_outputs), default=None
            With ``teacher="precomputed"``: logits, or values for regression. Rows of
            NaN are those that the teacher was not asked about: students learn their
            labels, and without y these rows are left out. Columns are in the order of
            the sorted labels; without y, classes are the numbers of the columns. Where
            rows have several labels, log-odds in the order of the columns of y. Rows of
            `X_unlabelled` follow those of `X`.

        X_unlabelled : array-like of shape (n_unlabelled, ...), default=None
            Further training rows, like those of `X`, of which y says nothing. The
            teacher that is fitted to all of `X` is asked about them. In a pipeline they
            do not go through the steps before, unless its `transform_input` names
            them. Searches of scikit-learn cut whatever has as many rows as `X`.

        groups : array-like of shape (n_samples,), default=None
            With folds (`teacher_cv`): rows of a group are in one fold. Searches of
            scikit-learn pass theirs on with metadata routing only.

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
            If boosting stops before `n_estimators` rounds since no weak learner was
            found. Rows held out (`early_stopping`) end it without a warning.

        FitInterruptedWarning
            If it was interrupted after a student had been finished in a round.

        CostsUnknownWarning
            If the operations of the teacher or of a student could not be counted.

        DoubtfulTeacherWarning
            If the scores of the teacher look like something else than is said, or if
            it knows the rows by heart.
        """
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        tasks = FitTasks(self, self._n_tasks(), X=X, y=y, metadata=metadata)
        before = dict(vars(self))
        # What the user should be told is collected on the way and said here, so that
        # the warning points at the line that called fit.
        notes = []
        try:
            take_over(self)
            with ranks_of(self.net, type(self).__name__) as ranks:
                self._fit(
                    X,
                    y,
                    sample_weight,
                    teacher_scores,
                    X_unlabelled,
                    groups,
                    notes,
                    tasks,
                    ranks,
                )
        except BaseException:
            # Neither a half-made fit nor the loss of an earlier one.
            vars(self).clear()
            vars(self).update(before)
            raise
        finally:
            # Otherwise a cycle of references, from the boosting to `tasks` and back,
            # keeps the rows in memory until the garbage collector runs.
            tasks.prefix = None
            for note in notes:
                warnings.warn(note, stacklevel=3)
        # Not above: a callback that fails here takes nothing from what is fitted.
        tasks.finish()
        return self

    def _fit(
        self,
        X,
        y,
        sample_weight,
        teacher_scores,
        X_unlabelled,
        groups,
        notes,
        tasks,
        ranks,
    ):
        estimator_name = type(self).__name__
        regression = not is_classifier(self)
        earlier = self if self._goes_on() else None
        connection = _check_connection(self.connection, estimator_name, auto=True)
        check_net(self.net, estimator_name)
        X, y = with_labels(X, y, self.net)
        y = self._validate_y(y)
        objective = _check_objective(
            self._default_objective if self.objective == "auto" else self.objective,
            regression=regression,
            multilabel=self._multilabel,
            has_labels=y is not None,
            estimator_name=estimator_name,
        )
        self._check_n_stages()
        self._check_checkpoint()
        storage = Storage(self.temp_folder, estimator_name)
        first_stages = self._first_stages(earlier)

        # The rows, and what the teacher says of them.
        X = _indexable(from_torch(X))
        checked = check_rows(self, X, reset=earlier is None)
        if ranks is not ONE_RANK:
            self._check_shared_rows(checked, tasks)
        if isinstance(checked, DatasetRows):
            self._check_dataset_goes_with(X_unlabelled, checked)
            X = checked
        if y is not None:
            check_consistent_length(checked, y)
        if earlier is not None:
            self._check_warm_start(connection, notes)
        cv = self._folds()
        X, checked, y, sample_weight, teacher_scores, groups, cv = (
            self._drop_weightless_rows(
                X, checked, y, sample_weight, teacher_scores, groups, cv, storage
            )
        )
        random_state = check_random_state(self.random_state)
        drawn = draw_seeds(random_state, 2)
        teacher_seed, split_seed = ranks.of_first(drawn).tolist()
        seeds = ranks.of_first(draw_seeds(random_state, self.n_estimators))
        train_rows, valid_rows = self._split_rows(_num_samples(checked), y, split_seed)
        device = resolve_device(self.device, getattr(torch, self.dtype), estimator_name)
        # For what draws without a seed of its own: a module with noise, user code.
        with seeded(teacher_seed, device):
            x, self.student_transform_ = fit_transform_rows(
                self,
                checked,
                y,
                train_rows=train_rows,
                valid_rows=valid_rows,
                fitted=None if earlier is None else earlier.student_transform_,
                goes_on=earlier is not None,
                random_state=split_seed,
            )
            input_shape = x.shape[1:]
            self._check_input_shape(input_shape, earlier, notes)
            transfers, x_transfers = self._transfer_rows(
                X, X_unlabelled, x, split_seed, train_rows
            )
            data, transfer_scores, teacher_costs = self._ask_teacher(
                X,
                x,
                y,
                transfers,
                cv=cv,
                groups=groups,
                sample_weight=sample_weight,
                teacher_scores=teacher_scores,
                random_state=teacher_seed,
                notes=notes,
                ranks=ranks,
                storage=storage,
            )

            # What is left open is decided, once.
            train, valid = self._split(data, train_rows, valid_rows, storage)
            if transfers:
                train = train.extended(x_transfers, transfer_scores, storage)
            first_stages = self._checked_stages(first_stages, data.scores.shape[1])
            if earlier is None:
                if connection == "auto":
                    connection = auto_connection(
                        self.student,
                        input_shape,
                        data.scores.shape[1],
                        estimator_name,
                        # What student 1 learns for its outputs may not do for others.
                        shared_blocks=int(first_stages is None),
                    )
                ensemble = self._new_ensemble(train, connection, device, notes)
            else:
                ensemble = copy.deepcopy(self.ensemble_)
                ensemble.to(device, getattr(torch, self.dtype))
            ensemble.first_stages = first_stages
            ranks.check_same("The training rows", train.chunks())
            if valid is not None:
                ranks.check_same("The rows held out", valid.chunks())
            self._check_in_range(x, ensemble)
            if transfers:
                self._check_in_range(x_transfers, ensemble)
            plan = make_plan(
                self,
                objective,
                ensemble,
                train,
                teacher_macs=None if teacher_costs is None else teacher_costs.macs,
                earlier=earlier,
                notes=notes,
            )

            # The rounds are played.
            view_targets = self._view_targets(train, teacher_seed)
            boosting = set_up(
                self,
                plan,
                ensemble,
                train,
                valid,
                device=device,
                progress=self._progress(tasks, ranks),
                view_targets=view_targets,
                ranks=ranks,
                storage=storage,
            )
            if earlier is not None:
                played = zip(
                    list(ensemble.students),
                    self.ladder_positions_,
                    self.training_history_,
                    strict=True,
                )
                boosting.rounds.extend(map(Round._make, played))
                boosting.replay()
            checkpoint = None
            if self.checkpoint is not None:
                earlier_states = [
                    played.student.state_dict() for played in boosting.rounds
                ]
                checkpoint = Checkpoint(
                    self.checkpoint,
                    fingerprint(
                        self, plan, train, valid, earlier=earlier_states, device=device
                    ),
                    ranks,
                )
            tasks.prefix = lambda: self._prefix_attributes(
                boosting, plan, x, teacher_costs
            )
            with nullcontext() if view_targets is None else at_hand(self.teacher):
                boosting.run(
                    seeds[: self._round_limit],
                    refine=self.refine,
                    refine_epochs=plan.refine_epochs,
                    checkpoint=checkpoint,
                )
            notes += boosting.notes

            fitted, problem = self._fitted_attributes(
                ensemble.eval(), boosting, plan, x, teacher_costs
            )
            vars(self).update(fitted)
            vars(self).pop("_updates", None)
            notes += self._idle_note()
            notes += self._untrained_note()
            if problem:
                notes.append(CostsUnknownWarning(problem))

    def _fitted_attributes(self, ensemble, boosting, plan, x, teacher_costs):
        """What the rounds so far give, and what is not known of the costs, or None."""
        stage_costs, problem = costs._count_stages(ensemble, ensemble.example())
        return {
            "ensemble_": ensemble,
            "n_estimators_": len(ensemble),
            "input_shape_": ensemble.input_shape,
            "interrupted_": boosting.interrupted,
            "ladder_positions_": [played.position for played in boosting.rounds],
            "training_history_": [played.history for played in boosting.rounds],
            "student_edges_": boosting.game.student_edges,
            "certificate_": self._certificate(boosting.game),
            **{f"{name}_": value for name, value in plan._asdict().items()},
            "idle_features_": idle_features(ensemble, x),
            "stage_costs_": stage_costs,
            "teacher_costs_": teacher_costs,
            "teacher_calls_": self.teacher_calls_ + boosting.rows.view_calls,
        }, problem

    def _prefix_attributes(self, boosting, plan, x, teacher_costs):
        """Fitted attributes of the students so far, for callbacks to keep."""
        ensemble = copy.deepcopy(boosting.ensemble).eval()
        return self._fitted_attributes(ensemble, boosting, plan, x, teacher_costs)[0]

    def _n_tasks(self):
        """Largest number of rounds that a fit plays, and of refinements at the end."""
        n_rounds = self.n_estimators
        if self._round_limit is not None:
            n_rounds = min(n_rounds, self._round_limit)
        n_rounds = max(0, n_rounds - n_played(self))
        if self.refine == "only":
            return min(n_rounds, 1)
        return n_rounds + (self.refine == "final" and n_rounds > 0)

    def _check_dataset_goes_with(self, X_unlabelled, rows):
        """Refuse what needs all rows of a dataset in memory, or a teacher to ask."""
        given = {"augment": self.augment, "X_unlabelled": X_unlabelled}
        for name in [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"{type(self).__name__} takes no {name!r} where X is a dataset. Pass "
                "skbdistil.datasets.Views(clean, train) for augmented rows, and a "
                "dataset that holds all rows."
            )
        if rows.asks_about_views and not all_trained(self.teacher):
            raise ValueError(
                f"The 'teacher' parameter of {type(self).__name__} must be one that "
                "can be asked where X is Views with teacher_on='view', since views "
                "are not known before they are seen: a TorchTeacher, a "
                "FrozenEstimator, a torch.nn.Module or a list of these. Got "
                f"{self.teacher!r}. Pass it, or Views with teacher_on='clean'."
            )

    def _student_weights(self, y, sample_weight):
        """Weights of the rows for the students, of mean 1, or None."""
        return None if sample_weight is None else _mean_1(sample_weight)

    def _check_checkpoint(self):
        """Refuse fits that could not go on with the same numbers."""
        if self.checkpoint is None:
            return
        name = type(self).__name__
        if not isinstance(self.random_state, Integral):
            raise ValueError(
                f"With 'checkpoint', the 'random_state' of {name} must be an int: a "
                "fit that goes on draws the numbers again. Got "
                f"{self.random_state!r}."
            )
        if Path(self.checkpoint).exists() and not Path(self.checkpoint).is_dir():
            raise ValueError(
                f"The 'checkpoint' of {name} must be a folder, which need not be there "
                f"yet. Got {self.checkpoint!r}, a file."
            )
        if self.refine == "only":
            raise ValueError(
                f"With refine='only', {name} has no rounds, and 'checkpoint' nothing "
                "to write."
            )

    def _check_shared_rows(self, checked, tasks):
        """Refuse what is not supported where rows are shared among processes."""
        iterators = [
            name
            for name, value in vars(self.net).items()
            if name.startswith("iterator_") and value is not DataLoader
        ]
        refused = {
            "callbacks of scikit-learn": tasks.any_callbacks,
            "a dataset as X": isinstance(checked, DatasetRows),
            "the optimizer LBFGS": issubclass(self.net.optimizer, torch.optim.LBFGS),
            **{f"{name} in the template": True for name in iterators},
        }
        for what in [what for what, given in refused.items() if given]:
            raise ValueError(
                f"The 'net' parameter of {type(self).__name__} is a DataParallelNet, "
                f"which does not support {what}."
            )

    def _folds(self):
        """The parameter `teacher_cv`, with folds that can be read more than once."""
        cv = self.teacher_cv
        if cv is None or isinstance(cv, str | Integral) or hasattr(cv, "split"):
            return cv
        return [tuple(map(np.asarray, fold)) for fold in cv]

    def _transfer_rows(self, X, X_unlabelled, x, seed, train_rows):
        """Rows without labels, for the teacher a list; for the students, or None."""
        sources = {}
        if X_unlabelled is not None:
            sources["X_unlabelled"] = _indexable(from_torch(X_unlabelled))
        if self.augment is not None:
            # Rows that are held out are not augmented.
            known = X if train_rows is None else take_samples(X, train_rows)
            sources["The rows of 'augment'"] = self._augmented(known, seed)
        seen = []
        for name, rows in sources.items():
            try:
                seen.append(
                    rows_like(
                        self,
                        rows,
                        transform=self.student_transform_,
                        input_shape=x.shape[1:],
                        dtype=self.dtype,
                    )
                )
            except ValueError as error:
                raise ValueError(
                    f"{name} cannot be used by {type(self).__name__}: {error}"
                ) from error
        if not sources:
            return [], None
        seen = in_form_of(x, stack_rows(seen))
        keeps_integers = self.input_scaling is None and x.dtype.kind in "iu"
        if keeps_integers and seen.dtype.kind not in "iu":
            raise ValueError(
                f"{' and '.join(sources)} must hold integers, as X does: without "
                f"'input_scaling', students of {type(self).__name__} take integers."
            )
        return list(sources.values()), seen

    def _augmented(self, X, seed):
        """Rows that `augment` makes of others."""
        augment, estimator_name = self.augment, type(self).__name__
        if isinstance(augment, str):
            augment = _AUGMENTATIONS[augment]()
        try:
            made = _indexable(from_torch(augment(X, seed)))
        except Exception as error:
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(
                f"The 'augment' of {estimator_name} raised {type(error).__name__}: "
                f"{error}"
            ) from error
        shape = getattr(made, "shape", None) or np.shape(made)
        expected = getattr(X, "shape", None) or np.shape(X)
        if shape[1:] != expected[1:] or not shape[0]:
            raise ValueError(
                f"The 'augment' of {estimator_name} must return rows, at least one, of "
                f"the shape of those of X, {expected[1:]}. Got {shape[0]} of shape "
                f"{shape[1:]}."
            )
        return made

    def _ask_teacher(
        self,
        X,
        x,
        y,
        transfers,
        *,
        cv,
        groups,
        sample_weight,
        notes,
        ranks,
        storage,
        **options,
    ):
        """Rows with what is to be learnt of them, scores of `transfers`, and costs."""
        regression = not is_classifier(self)
        weight = self._student_weights(y, sample_weight)
        response, doubts = teacher_targets(
            self.teacher,
            X,
            y,
            cv=cv,
            groups=groups,
            regression=regression,
            multilabel=self._multilabel,
            # A teacher of the user's is fitted as the user would fit it.
            sample_weight=weight if self.teacher is None else sample_weight,
            transfers=transfers,
            # Targets may lie far from 0: they are standardised before they are cast.
            dtype=np.float64 if regression else np.dtype(self.dtype),
            storage=storage,
            estimator_name=type(self).__name__,
            **options,
        )
        notes += doubts
        if ranks is not ONE_RANK:
            # A teacher that computes in threads may differ in the last bits.
            shared = {"scores": storage.map(ranks.of_first, response.scores)}
            if transfers:
                shared["transfer_scores"] = storage.map(
                    ranks.of_first, response.transfer_scores
                )
            response = response._replace(**shared)
        scores, transfer_scores, label = self._encode(
            response, y, weight, goes_on=self._goes_on(), storage=storage
        )
        # The others are NaN throughout. All of them need no copy.
        was_asked = ~np.isnan(scores[:, 0])
        known, known_scores = slice(None), scores
        if not was_asked.all():
            known = np.flatnonzero(was_asked)
            known_scores = storage.take(scores, known)
        self.teacher_score_ = None
        if y is not None:
            # Without weights of classes.
            own_weight = (
                None if sample_weight is None else _mean_1(sample_weight)[known]
            )
            self.teacher_score_ = self._teacher_score(
                known_scores, y[known], own_weight, storage
            )
            doubt = teacher_score_warning(
                response,
                self.teacher_score_,
                y[known],
                own_weight,
                scores=known_scores,
                estimator_name=type(self).__name__,
            )
            notes += [] if doubt is None else [doubt]
        self.teacher_score_kind_ = response.kind
        self.teacher_calls_ = response.n_calls
        self.label_mix_ = self._label_mix(
            response,
            X,
            scores,
            label,
            weight,
            options["random_state"],
            notes,
            has_transfers=bool(transfers),
            storage=storage,
        )
        if self.label_mix_ == 1:
            scores = scores_of_labels(label, scores, storage)
        elif self.label_mix_:
            known_scores = mixed_with_labels(
                known_scores, label[known], self.label_mix_, storage
            )
            scores[known] = known_scores
        if label is not None and not was_asked.all():
            scores[~was_asked] = scores_of_labels(
                label[~was_asked], known_scores, storage
            )
        data = FitData(x, scores, label, weight)
        if response.module is None:
            return data, transfer_scores, None
        teacher_costs, problem = costs._count_module(
            response.module, response.module_input, macs=response.macs
        )
        if problem:
            notes.append(CostsUnknownWarning(problem))
        return data, transfer_scores, teacher_costs

    def _view_targets(self, train, seed):
        """What asks the teacher about views of the training rows, or None."""
        # A warm start may go on with labels alone.
        is_asked = getattr(train.x, "asks_about_views", False)
        if not is_asked or self.label_mix_ == 1:
            return None
        n_outputs, dtype = train.scores.shape[1], train.scores.dtype

        def ask(rows, label, seed):
            try:
                response, _ = self._further_answers(
                    rows, seed, n_outputs=n_outputs, dtype=dtype
                )
                scores, _, _ = self._encode(response, None, None, goes_on=True)
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"On a batch of views of X: {error}") from error
            if self.label_mix_:
                scores = mixed_with_labels(scores, label, self.label_mix_)
            return scores.astype(dtype, copy=False), response.n_calls

        return ViewTargets(ask, train.label, seed)

    def _further_answers(self, X, seed, *, teacher_scores=None, n_outputs, dtype):
        """What a teacher that comes trained says of rows that it was not asked about.

        Returns the response and warnings.
        """
        regression = not is_classifier(self)
        return further_answers(
            self.teacher if teacher_scores is None else "precomputed",
            X,
            teacher_scores=teacher_scores,
            classes=None if regression else self.classes_,
            n_outputs=n_outputs,
            multilabel=self._multilabel,
            dtype=np.float64 if regression else dtype,
            random_state=seed,
            estimator_name=type(self).__name__,
        )

    def _label_mix(
        self,
        response,
        X,
        scores,
        label,
        weight,
        random_state,
        notes,
        *,
        has_transfers,
        storage,
    ):
        """Share of the labels in what students learn."""
        estimator_name = type(self).__name__
        if self.label_mix == "auto":
            if self._goes_on():
                return self.label_mix_
            if response.kind != "out-of-fold":
                return 0.0
            mixed, alone = self._losses_held_out(
                X, scores, label, weight, random_state, storage
            )
            if mixed <= alone:
                return _AUTO_LABEL_MIX
            notes.append(
                DoubtfulTeacherWarning(
                    f"On rows held out, students that learn from {response.name}, the "
                    f"teacher of {estimator_name}, have a loss of {mixed:.3g}, and "
                    f"{alone:.3g} if they learn the labels alone. So they learn the "
                    "labels. Distil a better teacher, or pass "
                    f"label_mix={_AUTO_LABEL_MIX} to learn from this one, too."
                    + (
                        " Of the rows of 'augment' and 'X_unlabelled' they learn what "
                        "this teacher says: they may be better off without these rows."
                        if has_transfers
                        else ""
                    )
                )
            )
            return 1.0
        if self.label_mix and label is None:
            raise ValueError(
                f"The 'label_mix' parameter of {estimator_name} is "
                f"{self.label_mix}, which requires y, but the target y is None."
            )
        return float(self.label_mix)

    def _losses_held_out(self, X, scores, label, weight, random_state, storage):
        """Mean loss over the stages with half of the labels, and with labels alone.

        On a fifth of the rows, by students of the others. They cost what the fit does.
        Infinite where no student could be trained.
        """
        regression = not is_classifier(self)
        train, test = split_rows(
            len(label),
            None if regression or self._multilabel else label,
            _JUDGED_SHARE,
            random_state,
            type(self).__name__,
        )
        params = self.get_params(deep=False) | {
            "teacher": "precomputed",
            "teacher_cv": None,
            "label_mix": 0.0,
            "augment": None,
            "n_stages": None,
            "early_stopping": False,
            "warm_start": False,
            "checkpoint": None,
            "random_state": random_state,
            "verbose": 0,
        }
        if not regression:
            # In the weights that are passed, and by labels, which are numbers here.
            params["class_weight"] = None
        method = "staged_predict" if regression else "staged_predict_proba"
        losses = []
        for made in (
            partial(mixed_with_labels, scores, label, _AUTO_LABEL_MIX, storage),
            partial(scores_of_labels, label, scores, storage),
        ):
            students = type(self)(**params)
            try:
                with warnings.catch_warnings():
                    # What there is to say is said of the fit itself.
                    warnings.simplefilter("ignore")
                    students.fit(
                        _safe_indexing(X, train),
                        label[train],
                        None if weight is None else weight[train],
                        teacher_scores=storage.take(made(), train),
                    )
            except ValueError:
                losses.append(np.inf)
                continue
            if students.interrupted_:
                raise KeyboardInterrupt
            found = getattr(students, method)(_safe_indexing(X, test))
            truth = label[test]
            if regression:
                of_stages = [
                    np.mean((values.reshape(truth.shape) - truth) ** 2)
                    for values in found
                ]
            else:
                of_stages = [self._log_loss(truth, p) for p in found]
            losses.append(float(np.mean(of_stages)))
        return losses

    def _split_rows(self, n_samples, y, seed):
        """Numbers of the rows to train on and of those held out, or two None."""
        if not self.early_stopping:
            return None, None
        label = None
        if y is not None and is_classifier(self) and not self._multilabel:
            _, label = np.unique(y, return_inverse=True)
        return split_rows(
            n_samples, label, self.validation_fraction, seed, type(self).__name__
        )

    def _split(self, data, train_rows, valid_rows, storage):
        """Data to train on, and to stop the training by, or None.

        Without the rows of which nothing is known.
        """
        known = ~np.isnan(data.scores[:, 0])
        if train_rows is None:
            if not known.all():
                data = data.take(np.flatnonzero(known), storage)
            return data, None
        train, valid = (
            data.take(rows[known[rows]], storage) for rows in (train_rows, valid_rows)
        )
        for part, name in ((train, "train on"), (valid, "hold out")):
            if not len(part.scores):
                raise ValueError(
                    f"With early_stopping, {type(self).__name__} has no rows to "
                    f"{name}: the teacher was asked about none of them, and there is "
                    "no y."
                )
        if data.sample_weight is not None:
            # Their mean over the training rows is 1.
            mean = train.sample_weight.mean()
            train, valid = (
                part._replace(sample_weight=part.sample_weight / mean)
                for part in (train, valid)
            )
        return train, valid

    def _idle_note(self):
        """A warning where students consist mostly of features that do nothing."""
        idle = (np.flatnonzero(self.idle_features_ > 0.5) + 1).tolist()
        if not idle:
            return []
        return [
            UserWarning(
                "More than half of the features are the same for all rows, and so do "
                f"nothing, in the student(s) {idle}; see idle_features_. Lower "
                "'learning_rate', or normalise the features of the backbone."
            )
        ]

    def _first_stages(self, earlier):
        """Stage from which each output is trained; None without a schedule."""
        return None

    def _checked_stages(self, first_stages, n_outputs):
        """The same for the outputs that there are; None where all are of stage 1."""
        if first_stages is None:
            return None
        if len(first_stages) != n_outputs:
            raise ValueError(
                f"The 'output_schedule' parameter of {type(self).__name__} names "
                f"{len(first_stages)} output(s), and the teacher has {n_outputs}. Each "
                "output must be in one group."
            )
        return first_stages if (first_stages > 1).any() else None

    def _untrained_note(self):
        """A warning where boosting has ended before the round of some outputs."""
        first_stages = self.ensemble_.first_stages
        n_planned = self._round_limit or self.n_estimators
        if first_stages is None or self.n_estimators_ >= n_planned:
            return []
        outputs = np.flatnonzero(first_stages > self.n_estimators_).tolist()
        if not outputs:
            return []
        return [
            UserWarning(
                f"{type(self).__name__} has not trained the output(s) {outputs}: it "
                f"ended with {self.n_estimators_} student(s), and their round comes "
                "later. They are predicted as the mean of the teacher's values."
            )
        ]

    def _goes_on(self):
        """Whether the fit adds to an earlier one."""
        return self.warm_start and hasattr(self, "ensemble_")

    def _check_n_stages(self):
        if self.n_stages is not None and self.n_stages > self.n_estimators:
            raise ValueError(
                f"The 'n_stages' parameter of {type(self).__name__} must be at most "
                f"n_estimators={self.n_estimators}. Got {self.n_stages} instead."
            )

    def _check_input_shape(self, input_shape, earlier, notes):
        if earlier is not None and input_shape != self.input_shape_:
            raise ValueError(
                f"With warm_start=True, the rows of X must have the shape that "
                f"{type(self).__name__} was fitted with, {self.input_shape_}. Got "
                f"{input_shape}."
            )
        if len(input_shape) == 3 and input_shape[0] == input_shape[1] > 4:
            if input_shape[2] in (1, 3, 4):
                notes.append(
                    UserWarning(
                        f"Rows of shape {input_shape} are read as (channels, height, "
                        "width). If the channels are the last axis, pass "
                        "np.moveaxis(X, -1, 1)."
                    )
                )

    def _check_warm_start(self, connection, notes):
        estimator_name = type(self).__name__
        if connection != "auto" and repr(connection) != repr(self.connection_):
            raise ValueError(
                f"With warm_start=True, the 'connection' parameter of {estimator_name} "
                f"must be that of the earlier fit, {self.connection_!r}. Got "
                f"{connection!r}."
            )
        if self.combine not in ("auto", self.combine_):
            raise ValueError(
                f"With warm_start=True, the 'combine' parameter of {estimator_name} "
                f"must be 'auto' or that of the earlier fit, {self.combine_!r}. Got "
                f"{self.combine!r}."
            )
        if (self.input_scaling is None) != (self.ensemble_.input_factor is None):
            raise ValueError(
                "With warm_start=True, the 'input_scaling' parameter of "
                f"{estimator_name} must be that of the earlier fit. Got "
                f"{self.input_scaling!r}."
            )
        if self.n_estimators < self.n_estimators_:
            raise ValueError(
                f"n_estimators={self.n_estimators} must be larger or equal to "
                f"n_estimators_={self.n_estimators_} when warm_start=True."
            )
        if self.n_estimators == self.n_estimators_:
            notes.append(
                UserWarning(
                    "Warm-start fitting without increasing n_estimators does not fit "
                    "new students."
                )
            )

    def _drop_weightless_rows(
        self, X, checked, y, sample_weight, teacher_scores, groups, cv, storage
    ):
        """Check the sample weights; rows of weight 0 leave the fit as a whole."""
        if groups is not None:
            groups = column_or_1d(groups)
            check_consistent_length(checked, groups)
        if sample_weight is None:
            return X, checked, y, None, teacher_scores, groups, cv
        sample_weight = _check_sample_weight(
            sample_weight, checked, dtype=np.float64, ensure_non_negative=True
        )
        if not sample_weight.any():
            raise ValueError("sample_weight is zero for all rows; some must count.")

        def taken(part, rows):
            if isinstance(part, np.ndarray):
                return storage.take(part, rows)
            return take_samples(part, rows)

        used = np.flatnonzero(sample_weight)
        n_samples = _num_samples(checked)
        if len(used) == n_samples:
            return X, checked, y, sample_weight, teacher_scores, groups, cv
        if teacher_scores is not None:
            n_scores = _num_samples(teacher_scores)
            if n_scores < n_samples:
                check_consistent_length(checked, teacher_scores)
            # Those of X_unlabelled are the last.
            kept = np.concatenate([used, np.arange(n_samples, n_scores)])
            teacher_scores = taken(teacher_scores, kept)
        if isinstance(cv, list):
            # Folds are given by the numbers of rows.
            is_used = sample_weight > 0
            positions = np.cumsum(is_used) - 1
            cv = [tuple(positions[rows[is_used[rows]]] for rows in fold) for fold in cv]
        X, checked, y, sample_weight, groups = (
            None if part is None else taken(part, used)
            for part in (X, checked, y, sample_weight, groups)
        )
        return X, checked, y, sample_weight, teacher_scores, groups, cv

    def _new_ensemble(self, data, connection, device, notes):
        """An ensemble without students, for rows and scores of these shapes."""
        mean = scale = None
        if self.input_scaling is not None:
            mean, scale, found = input_scaling(
                data.x, data.sample_weight, np.dtype(self.dtype), type(self).__name__
            )
            mean, scale = torch.from_numpy(mean), torch.from_numpy(scale)
            notes += found
        return ProgressiveEnsemble(
            data.x.shape[1:],
            data.scores.shape[1],
            # Not the parameter itself, which may be changed after the fit.
            connection=copy.copy(connection),
            input_mean=mean,
            input_scale=scale,
            integer_input=mean is None and data.x.dtype.kind in "iu",
            dtype=getattr(torch, self.dtype),
            **self._output_scaling(),
        ).to(device, getattr(torch, self.dtype))

    def _check_in_range(self, x, ensemble):
        """Refuse rows that the students could not compute with."""
        n_rows = chunk_rows(x.shape[1:], ensemble.device)
        for _, rows in row_chunks(x, n_rows):
            rows = self._as_input(rows, ensemble)
            check_in_range(ensemble.scale(rows), type(self).__name__)

    def _progress(self, tasks, ranks):
        return Progress(
            self.verbose if ranks.rank == 0 else 0,
            type(self).__name__,
            self.n_estimators,
            self._agreement,
            self._agreement_name,
            tasks,
        )

    # Further rows

    def _partial_fit(self, X, y, teacher_scores):
        """Fit, or update what is fitted."""
        self._check_updatable(X)
        if not hasattr(self, "ensemble_"):
            return self.fit(X, y, teacher_scores=teacher_scores)
        notes = []
        try:
            vars(self).update(self._updated(X, y, teacher_scores, notes))
        finally:
            for note in notes:
                warnings.warn(note, stacklevel=4)
        return self

    def _updated(self, X, y, teacher_scores, notes):
        """Attributes after an update of the students."""
        estimator_name = type(self).__name__
        check_net(self.net, estimator_name)
        X = _indexable(from_torch(X))
        x = self._validated(X)
        if y is not None:
            y = self._checked_y(y)
            check_consistent_length(x, y)
        updates = getattr(self, "_updates", Updates())
        # One draw each time, and other numbers each time where that is a constant.
        drawn = draw_seeds(check_random_state(self.random_state), 1).tolist()
        seed = derive_seed(*drawn, updates.n_updates)
        scores, label = self._update_targets(X, x, y, teacher_scores, seed, notes)
        known = np.flatnonzero(~np.isnan(scores).any(axis=1))
        if len(known) < len(scores):
            x, scores = take_rows(x, known), scores[known]
            label = None if label is None else label[known]
        device = resolve_device(self.device, self.ensemble_.dtype, estimator_name)
        self._check_in_range(x, self._ready_ensemble())
        if label is not None and label.dtype.kind == "f":
            label = label.astype(scores.dtype)
        ensemble, optimizer_state = updated_ensemble(
            self,
            x,
            scores,
            None if label is None else torch.as_tensor(label),
            device=device,
            seed=seed,
            optimizer_state=updates.optimizer_state,
        )
        return {
            "ensemble_": ensemble,
            "certificate_": self.certificate_.forgotten(),
            "student_edges_": np.full_like(self.student_edges_, np.nan),
            "idle_features_": np.full_like(self.idle_features_, np.nan),
            "_updates": Updates(updates.n_updates + 1, optimizer_state),
        }

    def _check_updatable(self, X):
        """Refuse what an update does not take into account."""
        refused = {
            "a dataset as X": is_dataset(X),
            "a DataParallelNet as 'net'": getattr(self.net, "shares_rows", False),
            "a 'class_weight'": getattr(self, "class_weight", None) is not None,
        }
        for what in [what for what, given in refused.items() if given]:
            raise ValueError(
                f"{type(self).__name__}.partial_fit does not support {what}."
            )

    def _update_targets(self, X, x, y, teacher_scores, seed, notes):
        """What is learnt of further rows, NaN where that is nothing, and labels."""
        estimator_name = type(self).__name__
        regression, multilabel = not is_classifier(self), self._multilabel
        n_samples, n_outputs = len(x), self.ensemble_.n_outputs
        dtype = np.dtype(str(self.ensemble_.dtype).removeprefix("torch."))
        if teacher_scores is not None or all_trained(self.teacher):
            response, doubts = self._further_answers(
                X, seed, teacher_scores=teacher_scores, n_outputs=n_outputs, dtype=dtype
            )
            notes += doubts
        elif y is None:
            raise ValueError(
                f"{estimator_name}.partial_fit has nothing to learn from: its teacher "
                f"{self.teacher!r} does not come trained, and there are neither "
                "teacher_scores nor y. Pass one of these."
            )
        else:
            response = _NoAnswers(
                np.full((n_samples, n_outputs), np.nan),
                None if regression else self.classes_,
            )
        if y is not None and multilabel and y.shape[1] != n_outputs:
            raise ValueError(
                f"The y of {estimator_name} must have the {n_outputs} columns of the "
                f"fit. Got shape {y.shape}."
            )
        if y is not None and not (regression or multilabel):
            unknown = np.setdiff1d(y, self.classes_)
            if len(unknown):
                raise ValueError(
                    f"The y of {estimator_name} holds {unknown.tolist()}, and the "
                    f"classes of the fit are {self.classes_.tolist()}."
                )
        scores, _, label = self._encode(response, y, None, goes_on=True)
        scores = scores.astype(dtype)
        if label is not None:
            known = ~np.isnan(scores).any(axis=1) & (self.label_mix_ < 1)
            if self.label_mix_ and known.any():
                scores[known] = mixed_with_labels(
                    scores[known], label[known], self.label_mix_
                )
            # As large as those of the fit.
            largest = np.full((1, n_outputs), self.teacher_bound_, dtype)
            if not known.all():
                scores[~known] = scores_of_labels(label[~known], largest)
        return scores, label

    # Predicting

    def _stage_scores(self, X):
        """Running means of all stages, of shape (n_stages, n_samples, n_outputs).

        In the units of the game: those of a regression target need not fit the dtype.
        """
        n_stages = self._n_stages_used()
        return self._scores(X, range(1, n_stages + 1))

    def _last_scores(self, X):
        """Running mean of the stages that are used, shape (n_samples, n_outputs)."""
        return self._scores(X, [self._n_stages_used()])[0]

    def _scores(self, X, stages):
        """Running means after some stages, in one pass over the students."""
        chunks = []
        n_bytes = 0
        with torch.inference_mode():
            for _, state in self._stage_states(X, n_ahead=stages[-1]):
                means = []
                for stage in range(1, stages[-1] + 1):
                    state.advance()
                    if stage in stages:
                        means.append(state.mean)
                chunk = means[0][None] if len(means) == 1 else torch.stack(means)
                if chunks:
                    # They leave the device together, unless they would fill it.
                    n_bytes += chunk.nbytes
                    if not fits(n_bytes, chunk.device):
                        chunk = chunk.cpu()
                chunks.append(chunk)
            if chunks[-1].device != chunks[0].device:
                chunks = [chunk.cpu() for chunk in chunks]
            scores = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)
            check_scores(scores, type(self).__name__)
        return scores.numpy(force=True)

    def _stage_states(self, X, n_ahead=0):
        """Begin a pass over the students for each chunk of rows.

        Yields the rows, a slice, and the :class:`~skbdistil.ensemble.StageState`, of
        which `n_ahead` stages will be run on all rows, 0 where that is not known.
        """
        X = from_torch(X)
        is_ready = self._is_ready(X)
        x = X if is_ready else self._validated(X)
        ensemble = self._ready_ensemble()
        n_rows = chunk_rows(self.input_shape_, ensemble.device)
        for rows, chunk in row_chunks(x, n_rows):
            # Not around the yield: the mode would leak to the caller.
            with torch.inference_mode():
                inputs = self._as_input(chunk, ensemble)
                state = _forms.start(ensemble, inputs, n_ahead)
                if not all_finite(state.x):
                    if is_ready:
                        # NaN and infinity stay so when rows are scaled.
                        self._validated(X)
                    check_in_range(state.x, type(self).__name__)
            yield rows, state

    def _is_ready(self, X):
        """Whether validation would leave X as it is, if all of it is finite.

        For a single row that takes longer than the students.
        """
        return (
            type(X) is np.ndarray
            and X.dtype in READY_DTYPES
            and X.shape[1:] == self.input_shape_
            and len(X) > 0
            and X.flags.c_contiguous
            and self.student_transform_ is None
            and not hasattr(self, "feature_names_in_")
        )

    def _validated(self, X):
        """Rows as an array of the shape seen in fit."""
        return rows_like(
            self,
            X,
            transform=self.student_transform_,
            input_shape=self.input_shape_,
            dtype=str(self.ensemble_.dtype).removeprefix("torch."),
        )

    def _as_input(self, x, ensemble):
        """Rows as the ensemble takes them."""
        given = as_tensor(x)
        like = ensemble.like()
        dtype = torch.int64 if ensemble.integer_input else like.dtype
        rows = to_device(given, like.device, dtype)
        if ensemble.integer_input and not torch.equal(rows.to(given), given):
            raise ValueError(
                f"{type(self).__name__} was fitted on integers without input scaling, "
                "and X holds numbers that are not integers."
            )
        return rows

    def _n_stages_used(self):
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
        ensemble = self.ensemble_
        like = ensemble.like()
        device = resolve_device(self.device, like.dtype, type(self).__name__)
        same_index = device.index in (None, like.device.index)
        if device.type != like.device.type or not same_index:
            ensemble.to(device)
        return ensemble

    @property
    def connection_(self):
        """How the students are connected: a class, an object that says it, or None."""
        return self.ensemble_.connection

    def staged_score(self, X, y=None, sample_weight=None):
        """Score of the ensemble after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or targets. `None` takes those that the items of a dataset hold.

        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Yields
        ------
        score : float
            Accuracy for a classifier, of whole rows where these have several labels;
            R^2 for a regressor.
        """
        check_is_fitted(self)
        X, y = _labelled(self, X, y)
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
        return _stage_within(stage_cost(self, unit, X=X), budget)

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
        other = shallow_copy(self)
        other.ensemble_ = copy.deepcopy(self.ensemble_.truncated(n_stages))
        other.n_estimators_ = n_stages
        other.student_edges_ = self.student_edges_[first].copy()
        other.certificate_ = self.certificate_[first]
        other.idle_features_ = self.idle_features_[first].copy()
        other.ladder_positions_ = self.ladder_positions_[first]
        other.training_history_ = self.training_history_[first]
        other.stage_costs_ = self.stage_costs_[first]
        # An optimizer is that of all students.
        vars(other).pop("_updates", None)
        if self.n_stages is not None and self.n_stages > n_stages:
            other.n_stages = None
        return other

    # Students are no items: later ones read what earlier ones computed.
    __iter__ = None
    __contains__ = None

    def __getstate__(self):
        # A copy: what scikit-learn returns may be the attributes themselves.
        state = dict(super().__getstate__())
        ensemble = state.get("ensemble_")
        if ensemble is not None and next(ensemble.parameters()).device.type != "cpu":
            # So that what was fitted on a GPU can be loaded without one.
            state["ensemble_"] = copy.deepcopy(ensemble).cpu()
        return state

    def _sk_visual_block_(self):
        return visual_block(self)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "ensemble_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.sparse = True
        # Where the teacher takes it.
        tags.input_tags.allow_nan = True
        return tags


class BDistilClassifier(ClassifierMixin, _BaseBDistil):
    """Distil a classifier into a sequence of small students.

    The students' running mean approaches the teacher's logits. Any prefix of the
    students predicts, so that accuracy can be traded for inference cost at run time.
    Each student is a small torch network that is trained, by way of skorch, against the
    weights of a boosting game which grow where the mean of the earlier students is
    off [1]_.

    Parameters
    ----------
    teacher : estimator, :class:`~skbdistil.teachers.TorchTeacher`, \
            torch.nn.Module, "precomputed", list of these or None, default=None
        What is distilled.

        - an unfitted scikit-learn classifier is cloned and fitted inside `fit`, and not
          kept;
        - ``FrozenEstimator(fitted)`` is used as it is; a fitted estimator that is not
          frozen is an error;
        - :class:`~skbdistil.teachers.TorchTeacher` or a bare module is used as it is;
        - ``"precomputed"``: `fit` takes the scores as `teacher_scores`;
        - None fits extremely randomized trees, at least two rows a leaf;
        - a list of teachers, whose probabilities are averaged: by how much better than
          a constant they are where all are asked out of fold, else alike.

        Its `predict_proba` is preferred to its `decision_function`. Where rows have
        several labels, it must say something of each of them: probabilities of shape
        (n_samples, n_labels), a list of arrays as forests return it, or log-odds.

    teacher_cv : None, int, splitter, iterable or "auto", default="auto"
        Whether students learn what a teacher that is fitted here says of rows that it
        has not seen. A teacher that knows its training rows by heart, such as nearest
        neighbours, only repeats y, and so would the students.

        - None: the scores of the rows that it is fitted to;
        - int, splitter or iterable: scores out of fold, as of
          :func:`~sklearn.model_selection.cross_val_predict`, at the price of one fit a
          fold. An int shuffles the rows, since they may come sorted;
        - ``"auto"``: where the teacher leaves no doubt about nine in ten of its own
          rows, and about a fifth fewer of those of a fold that it has not seen, scores
          out of five folds, with a warning; else like None. It leaves no doubt where a
          label has a probability of 1, or a target is met, but for 1e-6. Teachers that
          are less sure of rows that they have seen are not found.

    label_mix : float or "auto", default="auto"
        Share m of y in what students learn, in [0, 1): probabilities of classes, or
        values of a regression, are ``(1 - m) g + m y``. Rows without labels are learnt
        from the teacher alone. The certificate, the edges and the barrier are about
        this mixture. ``"auto"`` is 0 with scores in sample. Out of fold it is 0.5, or
        1, with a warning, where students that learn labels alone have a smaller mean
        loss over the stages. That is tried on a fifth of the rows and takes two fits to
        the others. To change the loss instead, see `alpha` of
        :class:`~skbdistil.objectives.DistillationObjective`.

    augment : {"munge", "spunge"}, callable or None, default=None
        Makes further training rows, about which the teacher is asked:
        :class:`~skbdistil.augmentation.Munge` or
        :class:`~skbdistil.augmentation.Spunge` as by default, or a function of the rows
        and an int, the seed, that returns rows of the same kind. They have no labels.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, all positive, by which those of the rows are multiplied
        for the students, as of
        :func:`~sklearn.utils.class_weight.compute_sample_weight`. A teacher has its
        own; that of ``teacher=None`` gets these, too. Rows without labels have a weight
        of 1. Where rows have several labels, no dict: ``"balanced"`` is the product
        over them.

    student : "auto", type, callable or list of these, default="auto"
        Backbone of the students: a class or factory called with the shape of a row,
        for example :class:`~skbdistil.students.MLP` or
        ``functools.partial(MLP, hidden=(16,))``; never an instance. Students see rows
        that `input_scaling` has standardised. A list is the ladder of hypothesis
        classes: the search moves on to the next one when no student of a class is a
        weak learner. ``"auto"`` suits the shape of a row:
        :class:`~skbdistil.students.MLP` for tables,
        :class:`~skbdistil.students.ConvNet1d` for (steps, channels),
        :class:`~skbdistil.students.ConvNet2d` for (channels, height, width), and is
        sized so that all students together cost at most half of a torch teacher's
        multiply-accumulates, or the smallest where none does; behind it in the ladder
        comes one of about twice the width.

    student_transform : transformer or None, default=None
        Cloned, fitted to `X`, and applied to rows before students see them; the teacher
        sees rows as they are. It is kept, saved and exported with the students. None:
        nothing, but for a table that holds NaN. There, numbers that are missing become
        the median of their column, and students get a further column of 0 and 1 for
        each column that may lack numbers.

    n_estimators : int, default=6
        Number of students T; boosting may stop with fewer.

    connection : {"auto", "dense", "last", "wide", "lateral", "recurrent"}, None, \
            :class:`~skbdistil.ensemble.Window`, \
            :class:`~skbdistil.ensemble.Lateral`, \
            :class:`~skbdistil.ensemble.Recurrent` or \
            :class:`~skbdistil.ensemble.Connection` subclass, default="auto"
        How students use what earlier ones computed; None for independent students.
        ``"auto"`` is ``Lateral(shared_blocks=1)`` for the convolutional backbones of
        the package that have a block between the first and the last. For all others it
        is ``"wide"`` where there are at most two outputs, else ``"dense"``.

    combine : {"auto", "mean", "sum", "learned"}, default="auto"
        How the head of a new student changes the ensemble, ``F_t = a F_{t-1} + b
        head_t``. ``"mean"``: ``a = (t - 1) / t`` and ``b = 1 / t``, so that heads
        predict on their own and the ensemble is their mean; ``"sum"``: ``a = b = 1``,
        and heads that start at 0 make up for what the ensemble lacks; ``"learned"``:
        a and b are trained with the student and start as for ``"mean"``. ``"auto"`` is
        ``"mean"`` for students that are composed block by block
        (:class:`~skbdistil.ensemble.Lateral`), where the objective looks at the student
        alone, and with ``refine="only"``; else ``"learned"``.

    objective : {"auto", "kl+barrier", "kl", "bce+barrier", "bce", \
            "squared_error+barrier", "squared_error", "barrier"} or \
            :class:`~skbdistil.objectives.DistillationObjective`, default="auto"
        What a student minimises. ``"auto"`` is ``kl+barrier``, and ``bce+barrier``
        where rows have several labels; ``kl`` is not for these, ``bce`` for no others.

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

    net : skorch.NeuralNet or None, default=None
        Template for the training of the students, for example
        ``NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)``. Its optimizer,
        callbacks, mixed precision and iterators are used, and can be searched as
        ``net__optimizer__weight_decay``; module, criterion, epochs, batch size,
        learning rate and device are set by the parameters here. None takes AdamW. A
        one-cycle schedule is added unless the template has an ``LRScheduler``. A class
        of iterators that changes rows (augmentation) has an attribute ``changes_rows =
        True``; what earlier students compute is then computed from the changed rows. A
        :class:`~skbdistil.parallel.DataParallelNet` shares the rows among processes.

    max_epochs : int or "auto", default="auto"
        Epochs per student. ``"auto"``: at least 8, and at least 1000 optimizer steps.

    batch_size : int or "auto", default="auto"
        Rows per optimizer step. A number above that of the training rows is clipped,
        with a warning. ``"auto"``: 32 to 256, growing with the number of rows.

    learning_rate : float, default=0.01
        Peak of the one-cycle schedule, or the rate of the template's own scheduler.

    refine : {"final", "rounds", "only"} or None, default=None
        Joint training of all students, the loss being the mean over all stages: after
        the last round, after every round, or in place of the rounds. It changes earlier
        students, so it is for a first release, not for devices that already carry some.
        ``"only"`` trains fresh students of the first class of the ladder, which need
        not be weak learners.

    refine_epochs : int or "auto", default="auto"
        Epochs of each refinement. ``"auto"`` is those of a student, and with
        ``refine="only"`` (n_estimators + 1) / 2 times as many.

    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows. The training of a student
        ends when its loss there has not improved for `n_iter_no_change` epochs, and its
        best state is kept. Boosting ends when two rounds in a row have not lowered the
        loss of the ensemble there, which is that of the labels where they are known,
        and students after the best stage are dropped. The rows held out take no part in
        the game.

    validation_fraction : float, default=0.1
        Share of the rows held out, between 0 and 1.

    n_iter_no_change : int, default=10
        Epochs without a better loss on the rows held out before the training of a
        student ends. Only with `early_stopping`.

    input_scaling : {"standard"} or None, default="standard"
        What is done to the rows before students see them. ``"standard"``: each feature,
        or each channel of rows of more than one axis, is centred and scaled to unit
        variance over the training rows. None: nothing, so that integer rows reach the
        students as int64, for example for an embedding.

    n_stages : int or None, default=None
        Number of students that predict, at most `n_estimators`; None for all. Can be
        set after `fit`. Where boosting stopped early, all there are.

    warm_start : bool or :class:`~sklearn.frozen.FrozenEstimator`, default=False
        Whether `fit` adds rounds to the fitted ensemble. Parameters that are ``"auto"``
        stay what the first fit made of them. Without refinement and with an int for
        `random_state`, more rounds on the same data give the students of one longer
        fit with these values. ``FrozenEstimator(fitted[:k])``: each fit adds its rounds
        to copies of the first `k` students of another fit. ``clone`` keeps it, so that
        a search can train the last stages only.

    checkpoint : str, path-like or None, default=None
        Folder in which the rounds of a fit are kept, in one file that is replaced
        after each round. A fit that was killed, when it is begun again with the same
        data and parameters, goes on after the last finished round and gives the same
        bits. The teacher is asked again, and `random_state` must be an int. Other fits
        have other files, so that those of a search may share the folder; remove it
        when all is done. Each fit reads all of its rows once for it. The file holds no
        code, and its path is not saved with the estimator.

    temp_folder : str, path-like or None, default=None
        Folder, which must be there, for what `fit` keeps of all rows: scores of the
        teacher, residuals, what students compute. Arrays of more than 16 MB are memory
        maps of files there, whose space is free again when the fit ends, however it
        ends. The students are the same to the bit. Several fits may share the folder,
        and its path is not saved with the estimator. None keeps all in memory.

    dtype : {"float32", "float64"}, default="float32"
        Type of the students' weights and of what is predicted.

    device : str or torch.device, default="auto"
        Where students are trained and run. ``"auto"``: CUDA, else MPS, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of a teacher fitted here, of the initial weights and of the order of rows.
        An int gives the same bits on the same machine, unless several fits share a
        process in threads. The global generators of torch, NumPy and Python are left as
        they were.

    verbose : int, default=0
        If positive, shows a progress bar per round and prints one line about each.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; those of the teacher where it brings its own. The numbers of the
        columns of y where rows have several labels.

    multilabel_ : bool
        Whether y was an indicator matrix of several labels per row.

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
        round on in which this exceeds 1.7932. ``potential``, of the shape of ``bound``:
        a bound on the same error that needs no condition on the steps.

    eta_ : float
        Step of the game.

    combine_ : {"mean", "sum", "learned"}
        How students are combined.

    idle_features_ : ndarray of shape (n_students,)
        Share of the features of each student that are the same for all rows, at most
        2**12 of which are looked at. Such features do nothing. Where it exceeds 0.5,
        `fit` warns.

    teacher_bound_ : float
        Largest absolute teacher score ``B`` on the training rows.

    teacher_scale_ : float
        The largest absolute score of a row, ``Q``, that all rows but one in a thousand
        stay below: what the barrier is relative to.

    ladder_ : list of callable
        Backbones of the hypothesis classes, in the order in which they are tried.

    ladder_positions_ : list of int
        Position in `ladder_` of the class of each student.

    connection_ : type, :class:`~skbdistil.ensemble.Window`, \
            :class:`~skbdistil.ensemble.Lateral`, \
            :class:`~skbdistil.ensemble.Recurrent` or None
        How the students are connected.

    objective_ : :class:`~skbdistil.objectives.DistillationObjective`
        What the students minimised.

    edge_tol_ : float
        Tolerance of the weak-learning condition, in units of `teacher_bound_`.

    batch_size_, max_epochs_, refine_epochs_ : int
        Rows per step, and largest numbers of epochs.

    interrupted_ : bool
        Whether the fit was interrupted after a student had been finished.

    training_history_ : list of list of dict
        Losses of each student by epoch: ``epoch``, ``train_loss``, ``valid_loss``.

    stage_costs_ : :class:`~skbdistil.costs.StageCosts`
        Multiply-accumulates, parameters and bytes of each stage. Multiply-accumulates
        are NaN where they could not be counted.

    teacher_costs_ : :class:`~skbdistil.costs.Costs` or None
        The same of a torch teacher, whose multiply-accumulates are None where they
        could not be counted. None for any other teacher.

    teacher_score_ : float or None
        Accuracy of the teacher on the training rows that it was asked about; None
        without y. Where rows have several labels, the share of rows of which all are
        right, as of `score`. Out of fold where `teacher_score_kind_` says so.

    teacher_score_kind_ : {"in-sample", "out-of-fold", "unknown", "mixed"}
        Whether the teacher had seen these rows when it was fitted. ``"unknown"`` for
        one that came trained, ``"mixed"`` for several teachers of different kinds.

    teacher_calls_ : int
        Number of rows that the teacher was asked about, those of folds, those without
        labels, and each view of :class:`~skbdistil.datasets.Views` among them.

    label_mix_ : float
        Share of y in what the students learnt.

    student_transform_ : transformer or None
        Fitted; what makes of rows what students get.

    See Also
    --------
    BDistilRegressor : The same for regression.
    sklearn.frozen.FrozenEstimator : Wraps a fitted teacher.

    Notes
    -----
    The classification of two classes has two outputs, like any other number of them.

    With an indicator matrix as y, of shape (n_samples, n_labels) and values 0 and 1,
    rows have several labels. Scores are then the log-odds of each label, their
    probabilities are independent sigmoids, and n_classes below is the number of labels.

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
    array([ 88, 184])
    >>> clf[:1].predict(X[:2]).shape
    (2,)
    """

    _parameter_constraints = {
        **_BaseBDistil._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    _agreement_name = "agreement with the teacher"

    @property
    def _multilabel(self):
        return getattr(self, "multilabel_", False)

    @property
    def _decoding(self):
        return LABELS if self.multilabel_ else _CLASSES

    @property
    def _default_objective(self):
        return "bce+barrier" if self.multilabel_ else "kl+barrier"

    def __init__(
        self,
        teacher=None,
        *,
        teacher_cv="auto",
        label_mix="auto",
        augment=None,
        class_weight=None,
        student="auto",
        student_transform=None,
        n_estimators=6,
        connection="auto",
        combine="auto",
        objective="auto",
        eta="auto",
        edge_tol="auto",
        max_attempts=1,
        net=None,
        max_epochs="auto",
        batch_size="auto",
        learning_rate=0.01,
        refine=None,
        refine_epochs="auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        input_scaling="standard",
        n_stages=None,
        warm_start=False,
        checkpoint=None,
        temp_folder=None,
        dtype="float32",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            teacher,
            teacher_cv=teacher_cv,
            label_mix=label_mix,
            augment=augment,
            student=student,
            student_transform=student_transform,
            n_estimators=n_estimators,
            connection=connection,
            combine=combine,
            objective=objective,
            eta=eta,
            edge_tol=edge_tol,
            max_attempts=max_attempts,
            net=net,
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            refine=refine,
            refine_epochs=refine_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            input_scaling=input_scaling,
            n_stages=n_stages,
            warm_start=warm_start,
            checkpoint=checkpoint,
            temp_folder=temp_folder,
            dtype=dtype,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def _validate_y(self, y):
        estimator_name = type(self).__name__
        goes_on, multilabel = self._goes_on(), _has_columns(y)
        if goes_on and multilabel != self.multilabel_:
            raise ValueError(
                f"With warm_start=True, the y of {estimator_name} must be of the kind "
                "of the earlier fit, with one label per row or an indicator matrix of "
                f"several. Got y of shape {np.shape(y)}."
            )
        self.multilabel_ = multilabel
        return None if y is None else self._checked_y(y)

    def _checked_y(self, y):
        """Labels of the kind that `multilabel_` says."""
        estimator_name = type(self).__name__
        if not self.multilabel_:
            y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
            check_classification_targets(y)
            return column_or_1d(y)
        y = _check_y(y, multi_output=True, y_numeric=False, estimator=self)
        y = y.toarray() if sparse.issparse(y) else y
        kind = type_of_target(y, input_name="y")
        if kind != "multilabel-indicator" or not np.isin(y, [0, 1]).all():
            raise ValueError(
                f"{estimator_name} takes one label per row, or for several an "
                "indicator matrix of 0 and 1, as of sklearn.preprocessing."
                f"MultiLabelBinarizer. Got y of shape {y.shape} with other values "
                f"({kind}). Several columns of classes are several problems: use "
                "sklearn.multioutput.MultiOutputClassifier around it."
            )
        return y.astype(np.int64)

    def _encode(self, response, y, sample_weight, *, goes_on, storage=IN_MEMORY):
        """Scores in the order of the classes, those of transfers, labels as indices.

        With several labels per row, these are 0 and 1.
        """
        classes, order = np.unique(response.classes, return_index=True)
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"To go on with a fitted {type(self).__name__}, the teacher must have "
                f"the classes of the earlier fit, {self.classes_}. Got {classes}."
            )
        self.classes_ = classes
        scores, transfer_scores = response.scores, response.transfer_scores
        if not np.array_equal(order, np.arange(len(order))):

            def ordered(some):
                return np.ascontiguousarray(some[:, order])

            scores = storage.map(ordered, scores)
            if transfer_scores is not None:
                transfer_scores = storage.map(ordered, transfer_scores)
        if y is None or self.multilabel_:
            label = y
        else:
            label = np.searchsorted(classes, y)
        return scores, transfer_scores, label

    def _output_scaling(self):
        return {}

    def _student_weights(self, y, sample_weight):
        if self.class_weight is not None:
            if y is None:
                raise ValueError(
                    "The 'class_weight' parameter of BDistilClassifier requires y, but "
                    "the target y is None."
                )
            if self.multilabel_ and isinstance(self.class_weight, dict):
                raise ValueError(
                    "The 'class_weight' parameter of BDistilClassifier must be "
                    "'balanced' or None where rows have several labels. Got "
                    f"{self.class_weight!r}."
                )
            of_classes = compute_sample_weight(self.class_weight, y)
            if not (np.isfinite(of_classes) & (of_classes > 0)).all():
                raise ValueError(
                    "The 'class_weight' parameter of BDistilClassifier must hold "
                    f"positive numbers. Got {self.class_weight!r}."
                )
            sample_weight = (1 if sample_weight is None else sample_weight) * of_classes
        return super()._student_weights(y, sample_weight)

    def _certificate(self, game):
        return game.certificate()

    def _agreement(self, teacher, mean):
        def shares(*scores):
            first, second = map(self._predicted, scores)
            return np.reshape(first == second, (len(first), -1)).mean(axis=1)

        return IN_MEMORY.map(shares, teacher, mean).mean()

    def _teacher_score(self, scores, y, sample_weight, storage):
        if not self.multilabel_:
            return accuracy_score(
                y, self._predicted(scores), sample_weight=sample_weight
            )

        def are_right(some, true):
            return (self._predicted(some) == true).all(axis=1)

        right = IN_MEMORY.map(are_right, scores, y)
        return float(np.average(right, weights=sample_weight))

    def _log_loss(self, label, proba):
        """Mean cross-entropy of labels as numbers; of several, of each of them."""
        if self.multilabel_:
            return log_loss(label.ravel(), proba.ravel(), labels=[0, 1])
        return log_loss(label, proba, labels=np.arange(proba.shape[1]))

    def _predicted(self, scores):
        return self._decoding.predict(scores, self.classes_)

    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X, y=None, teacher_scores=None, classes=None):
        """Train all students together on further rows, in one pass.

        They minimise the mean over the stages of the distillation term, in batches of
        `batch_size_` rows and at a constant rate, 0.3 times `learning_rate`. The state
        of the optimizer is kept from call to call. The first call, without a fit
        before, is a `fit` to these rows.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, ...)
            Rows of the shape seen in fit. No dataset.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels. They are learnt where there is no other answer, mixed with the
            teacher's by `label_mix_`, and in the label term of the objective.

        teacher_scores : array-like of shape (n_samples, n_classes), default=None
            What a teacher says of these rows, whichever one has been distilled: logits
            in the order of `classes_`. Rows of NaN have no answer, and without y they
            are left out. None asks the parameter `teacher` where it comes trained. One
            that was fitted in fit has not been kept.

        classes : array-like of shape (n_classes,), default=None
            All labels, which must be those of the first call, or of its teacher. Only
            compared: rows of the first call hold all labels, or the teacher brings
            them.

        Returns
        -------
        self : object
            Updated estimator.

        Raises
        ------
        ValueError
            If the input is unusable, if there is nothing to learn from, or if weights
            become infinite or NaN. What was fitted before stays in place.

        See Also
        --------
        skbdistil.online.OnlineBDistil : Follows a stream, and says when to ask.

        Notes
        -----
        The students of the fit are replaced. Copies, ``clf[:k]`` and files from before
        have other weights, and no later stage fits onto them. What was calibrated on
        the students, such as an early exit, must be calibrated again, and says so.
        `certificate_`, `student_edges_` and `idle_features_` become NaN: they are about
        students that are no more. `class_weight` must be None; `sample_weight` and
        `augment` have no part in it, nor have callbacks and schedules of `net`.

        :func:`skbdistil.persistence.save` does not keep the state of the optimizer;
        pickles do.
        """
        if hasattr(self, "ensemble_"):
            self._check_classes(classes)
            return self._partial_fit(X, y, teacher_scores)
        other = shallow_copy(self)._partial_fit(X, y, teacher_scores)
        other._check_classes(classes)
        vars(self).update(vars(other))
        return self

    def _check_classes(self, classes):
        """Compare what is passed to `partial_fit` with the classes of the fit."""
        if classes is None or np.array_equal(np.unique(classes), self.classes_):
            return
        raise ValueError(
            f"The classes of {type(self).__name__} are {self.classes_.tolist()}, those "
            "of the rows or of the teacher of its first fit, and partial_fit was "
            f"passed classes={np.asarray(classes).tolist()}. Begin with rows of all "
            "classes, or with a teacher that comes trained."
        )

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
            classes, the log-odds of the second one. Where rows have several labels,
            the log-odds of each, also of two.
        """
        check_is_fitted(self)
        return self._decoding.decision(self._last_scores(X))

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
        decision = self._decoding.decision
        for scores in self._stage_scores(X):
            yield decision(scores)

    def predict(self, X):
        """Most likely class of each row, or all labels that are more likely than not.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Where rows have several labels, an indicator matrix (n_samples, n_labels).
        """
        check_is_fitted(self)
        return self._predicted(self._last_scores(X))

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
            As of :meth:`predict`.
        """
        check_is_fitted(self)
        # Of this fit, should another one come in between.
        predict, classes = self._decoding.predict, self.classes_
        for scores in self._stage_scores(X):
            yield predict(scores, classes)

    def predict_proba(self, X):
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`. Where rows have several labels, the probability
            of each of them; their sum is not 1.
        """
        check_is_fitted(self)
        return self._decoding.probabilities(self._last_scores(X))

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
        probabilities = self._decoding.probabilities
        for scores in self._stage_scores(X):
            yield probabilities(scores)

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
        scores = self._last_scores(X)
        return log_expit(scores) if self.multilabel_ else log_softmax(scores, axis=1)

    def score(self, X, y=None, sample_weight=None):
        """Accuracy, of whole rows where these have several labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels. `None` takes those that the items of a dataset hold.

        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        score : float
        """
        check_is_fitted(self)
        X, y = _labelled(self, X, y)
        # Not of super(), since a view of a stage scores by this function, too.
        return ClassifierMixin.score(self, X, y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class BDistilRegressor(RegressorMixin, _BaseBDistil):
    """Distil a regressor into a sequence of small students.

    The students' running mean approaches the teacher ``g: X -> R^L``. Any prefix of
    the students predicts, so that accuracy can be traded for inference cost.
    Targets are standardised inside, so that one bound and one step of the game serve
    all of them; predictions and the certificate are in the units of the targets [1]_.

    Parameters
    ----------
    teacher : estimator, :class:`~skbdistil.teachers.TorchTeacher`, \
            torch.nn.Module, "precomputed", list of these or None, default=None
        What is distilled.

        - an unfitted scikit-learn regressor is cloned and fitted inside `fit`, and not
          kept;
        - ``FrozenEstimator(fitted)`` is used as it is; a fitted estimator that is not
          frozen is an error;
        - :class:`~skbdistil.teachers.TorchTeacher` or a bare module is used as it is;
        - ``"precomputed"``: `fit` takes the scores as `teacher_scores`;
        - None fits extremely randomized trees, at least five rows a leaf;
        - a list of teachers, whose values are averaged: by how much better than a
          constant they are where all are asked out of fold, else alike.

        Its `predict` gives one or several targets; a torch teacher's outputs are taken
        as they are.

    teacher_cv : None, int, splitter, iterable or "auto", default="auto"
        Whether students learn what a teacher that is fitted here says of rows that it
        has not seen. A teacher that knows its training rows by heart, such as nearest
        neighbours, only repeats y, and so would the students.

        - None: the scores of the rows that it is fitted to;
        - int, splitter or iterable: scores out of fold, as of
          :func:`~sklearn.model_selection.cross_val_predict`, at the price of one fit a
          fold. An int shuffles the rows, since they may come sorted;
        - ``"auto"``: where the teacher leaves no doubt about nine in ten of its own
          rows, and about a fifth fewer of those of a fold that it has not seen, scores
          out of five folds, with a warning; else like None. It leaves no doubt where a
          label has a probability of 1, or a target is met, but for 1e-6. Teachers that
          are less sure of rows that they have seen are not found.

    label_mix : float or "auto", default="auto"
        Share m of y in what students learn, in [0, 1): probabilities of classes, or
        values of a regression, are ``(1 - m) g + m y``. Rows without labels are learnt
        from the teacher alone. The certificate, the edges and the barrier are about
        this mixture. ``"auto"`` is 0 with scores in sample. Out of fold it is 0.5, or
        1, with a warning, where students that learn labels alone have a smaller mean
        loss over the stages. That is tried on a fifth of the rows and takes two fits to
        the others. To change the loss instead, see `alpha` of
        :class:`~skbdistil.objectives.DistillationObjective`.

    augment : {"munge", "spunge"}, callable or None, default=None
        Makes further training rows, about which the teacher is asked:
        :class:`~skbdistil.augmentation.Munge` or
        :class:`~skbdistil.augmentation.Spunge` as by default, or a function of the rows
        and an int, the seed, that returns rows of the same kind. They have no labels.

    student : "auto", type, callable or list of these, default="auto"
        Backbone of the students: a class or factory called with the shape of a row,
        for example :class:`~skbdistil.students.MLP` or
        ``functools.partial(MLP, hidden=(16,))``; never an instance. Students see rows
        that `input_scaling` has standardised. A list is the ladder of hypothesis
        classes: the search moves on to the next one when no student of a class is a
        weak learner. ``"auto"`` suits the shape of a row:
        :class:`~skbdistil.students.MLP` for tables,
        :class:`~skbdistil.students.ConvNet1d` for (steps, channels),
        :class:`~skbdistil.students.ConvNet2d` for (channels, height, width), and is
        sized so that all students together cost at most half of a torch teacher's
        multiply-accumulates, or the smallest where none does; behind it in the ladder
        comes one of about twice the width.

    student_transform : transformer or None, default=None
        Cloned, fitted to `X`, and applied to rows before students see them; the teacher
        sees rows as they are. It is kept, saved and exported with the students. None:
        nothing, but for a table that holds NaN. There, numbers that are missing become
        the median of their column, and students get a further column of 0 and 1 for
        each column that may lack numbers.

    n_estimators : int, default=6
        Number of students T; boosting may stop with fewer.

    output_schedule : list of list of int or None, default=None
        Groups of outputs, by their numbers from 0 on, of which each round adds one:
        round r trains the outputs of the groups 1 to r, and the rounds after the last
        group train all outputs. Before its first round an output is predicted as the
        mean of the teacher's values; the t of `combine`, the game and the certificate
        count from there, so that its first student is all there is of it. Each output
        must be in one group. More groups than `n_estimators` are allowed with
        `warm_start` only, for later fits to train. ``connection="auto"`` then shares no
        first block, which would be trained for the first group alone. None: all outputs
        from the first round on.

    connection : {"auto", "dense", "last", "wide", "lateral", "recurrent"}, None, \
            :class:`~skbdistil.ensemble.Window`, \
            :class:`~skbdistil.ensemble.Lateral`, \
            :class:`~skbdistil.ensemble.Recurrent` or \
            :class:`~skbdistil.ensemble.Connection` subclass, default="auto"
        How students use what earlier ones computed; None for independent students.
        ``"auto"`` is ``Lateral(shared_blocks=1)`` for the convolutional backbones of
        the package that have a block between the first and the last. For all others it
        is ``"wide"`` where there are at most two outputs, else ``"dense"``.

    combine : {"auto", "mean", "sum", "learned"}, default="auto"
        How the head of a new student changes the ensemble, ``F_t = a F_{t-1} + b
        head_t``. ``"mean"``: ``a = (t - 1) / t`` and ``b = 1 / t``, so that heads
        predict on their own and the ensemble is their mean; ``"sum"``: ``a = b = 1``,
        and heads that start at 0 make up for what the ensemble lacks; ``"learned"``:
        a and b are trained with the student and start as for ``"mean"``. ``"auto"`` is
        ``"mean"`` for students that are composed block by block
        (:class:`~skbdistil.ensemble.Lateral`), where the objective looks at the student
        alone, and with ``refine="only"``; else ``"learned"``.

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

    net : skorch.NeuralNet or None, default=None
        Template for the training of the students, for example
        ``NeuralNet(None, criterion=None, optimizer=torch.optim.SGD)``. Its optimizer,
        callbacks, mixed precision and iterators are used, and can be searched as
        ``net__optimizer__weight_decay``; module, criterion, epochs, batch size,
        learning rate and device are set by the parameters here. None takes AdamW. A
        one-cycle schedule is added unless the template has an ``LRScheduler``. A class
        of iterators that changes rows (augmentation) has an attribute ``changes_rows =
        True``; what earlier students compute is then computed from the changed rows. A
        :class:`~skbdistil.parallel.DataParallelNet` shares the rows among processes.

    max_epochs : int or "auto", default="auto"
        Epochs per student. ``"auto"``: at least 8, and at least 1000 optimizer steps.

    batch_size : int or "auto", default="auto"
        Rows per optimizer step. A number above that of the training rows is clipped,
        with a warning. ``"auto"``: 32 to 256, growing with the number of rows.

    learning_rate : float, default=0.01
        Peak of the one-cycle schedule, or the rate of the template's own scheduler.

    refine : {"final", "rounds", "only"} or None, default=None
        Joint training of all students, the loss being the mean over all stages: after
        the last round, after every round, or in place of the rounds. It changes earlier
        students, so it is for a first release, not for devices that already carry some.
        ``"only"`` trains fresh students of the first class of the ladder, which need
        not be weak learners.

    refine_epochs : int or "auto", default="auto"
        Epochs of each refinement. ``"auto"`` is those of a student, and with
        ``refine="only"`` (n_estimators + 1) / 2 times as many.

    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows. The training of a student
        ends when its loss there has not improved for `n_iter_no_change` epochs, and its
        best state is kept. Boosting ends when two rounds in a row have not lowered the
        loss of the ensemble there, which is that of the labels where they are known,
        and students after the best stage are dropped. The rows held out take no part in
        the game.

    validation_fraction : float, default=0.1
        Share of the rows held out, between 0 and 1.

    n_iter_no_change : int, default=10
        Epochs without a better loss on the rows held out before the training of a
        student ends. Only with `early_stopping`.

    input_scaling : {"standard"} or None, default="standard"
        What is done to the rows before students see them. ``"standard"``: each feature,
        or each channel of rows of more than one axis, is centred and scaled to unit
        variance over the training rows. None: nothing, so that integer rows reach the
        students as int64, for example for an embedding.

    n_stages : int or None, default=None
        Number of students that predict, at most `n_estimators`; None for all. Can be
        set after `fit`. Where boosting stopped early, all there are.

    warm_start : bool or :class:`~sklearn.frozen.FrozenEstimator`, default=False
        Whether `fit` adds rounds to the fitted ensemble. Parameters that are ``"auto"``
        stay what the first fit made of them. Without refinement and with an int for
        `random_state`, more rounds on the same data give the students of one longer
        fit with these values. ``FrozenEstimator(fitted[:k])``: each fit adds its rounds
        to copies of the first `k` students of another fit. ``clone`` keeps it, so that
        a search can train the last stages only.

    checkpoint : str, path-like or None, default=None
        Folder in which the rounds of a fit are kept, in one file that is replaced
        after each round. A fit that was killed, when it is begun again with the same
        data and parameters, goes on after the last finished round and gives the same
        bits. The teacher is asked again, and `random_state` must be an int. Other fits
        have other files, so that those of a search may share the folder; remove it
        when all is done. Each fit reads all of its rows once for it. The file holds no
        code, and its path is not saved with the estimator.

    temp_folder : str, path-like or None, default=None
        Folder, which must be there, for what `fit` keeps of all rows: scores of the
        teacher, residuals, what students compute. Arrays of more than 16 MB are memory
        maps of files there, whose space is free again when the fit ends, however it
        ends. The students are the same to the bit. Several fits may share the folder,
        and its path is not saved with the estimator. None keeps all in memory.

    dtype : {"float32", "float64"}, default="float32"
        Type of the students' weights; predictions are float64 in any case.

    device : str or torch.device, default="auto"
        Where students are trained and run. ``"auto"``: CUDA, else MPS, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of a teacher fitted here, of the initial weights and of the order of rows.
        An int gives the same bits on the same machine, unless several fits share a
        process in threads. The global generators of torch, NumPy and Python are left as
        they were.

    verbose : int, default=0
        If positive, shows a progress bar per round and prints one line about each.

    Attributes
    ----------
    target_mean_, target_scale_ : ndarray of shape (n_outputs,)
        Mean and standard deviation of the teacher's values on the training rows; 0 for
        a target that is constant but for rounding.

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
        round, of standardised targets. 0 for outputs that the round does not train.

    certificate_ : Certificate
        ``bound``, ``actual`` and ``mean``, of shape (n_students, n_outputs): the bound
        on the largest error ``|F_t - g|`` over the training rows that the game gives
        after each stage, that error itself, and the mean error, in units of the
        targets. ``step``, of shape (n_students,): ``eta * max |f_t - g|``; the bound is
        infinite from the round on in which this exceeds 1.7932. ``potential``, of the
        shape of ``bound``: a bound on the same error that needs no condition on the
        steps. Of an output that no round has trained yet, both bounds are infinite, and
        the errors are those of the mean of the teacher's values.

    first_stages_ : ndarray of int of shape (n_outputs,)
        Stage from which each output is trained, from 1 on; see `output_schedule`.

    eta_ : float
        Step of the game.

    combine_ : {"mean", "sum", "learned"}
        How students are combined.

    idle_features_ : ndarray of shape (n_students,)
        Share of the features of each student that are the same for all rows, at most
        2**12 of which are looked at. Such features do nothing. Where it exceeds 0.5,
        `fit` warns.

    teacher_bound_ : float
        Largest absolute teacher score ``B`` on the training rows, of
        standardised targets.

    teacher_scale_ : float
        The largest absolute score of a row, ``Q``, that all rows but one in a thousand
        stay below: what the barrier is relative to.

    ladder_ : list of callable
        Backbones of the hypothesis classes, in the order in which they are tried.

    ladder_positions_ : list of int
        Position in `ladder_` of the class of each student.

    connection_ : type, :class:`~skbdistil.ensemble.Window`, \
            :class:`~skbdistil.ensemble.Lateral`, \
            :class:`~skbdistil.ensemble.Recurrent` or None
        How the students are connected.

    objective_ : :class:`~skbdistil.objectives.DistillationObjective`
        What the students minimised.

    edge_tol_ : float
        Tolerance of the weak-learning condition, in units of `teacher_bound_`.

    batch_size_, max_epochs_, refine_epochs_ : int
        Rows per step, and largest numbers of epochs.

    interrupted_ : bool
        Whether the fit was interrupted after a student had been finished.

    training_history_ : list of list of dict
        Losses of each student by epoch: ``epoch``, ``train_loss``, ``valid_loss``.

    stage_costs_ : :class:`~skbdistil.costs.StageCosts`
        Multiply-accumulates, parameters and bytes of each stage. Multiply-accumulates
        are NaN where they could not be counted.

    teacher_costs_ : :class:`~skbdistil.costs.Costs` or None
        The same of a torch teacher, whose multiply-accumulates are None where they
        could not be counted. None for any other teacher.

    teacher_score_ : float or None
        R^2 of the teacher on the training rows that it was asked about; None without
        y. Out of fold where `teacher_score_kind_` says so.

    teacher_score_kind_ : {"in-sample", "out-of-fold", "unknown", "mixed"}
        Whether the teacher had seen these rows when it was fitted. ``"unknown"`` for
        one that came trained, ``"mixed"`` for several teachers of different kinds.

    teacher_calls_ : int
        Number of rows that the teacher was asked about, those of folds, those without
        labels, and each view of :class:`~skbdistil.datasets.Views` among them.

    label_mix_ : float
        Share of y in what the students learnt.

    student_transform_ : transformer or None
        Fitted; what makes of rows what students get.

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

    _parameter_constraints = {
        **_BaseBDistil._parameter_constraints,
        "output_schedule": [list, tuple, None],
    }

    _agreement_name = "R^2 against the teacher"
    _default_objective = "squared_error+barrier"

    def __init__(
        self,
        teacher=None,
        *,
        teacher_cv="auto",
        label_mix="auto",
        augment=None,
        student="auto",
        student_transform=None,
        n_estimators=6,
        output_schedule=None,
        connection="auto",
        combine="auto",
        objective="auto",
        eta="auto",
        edge_tol="auto",
        max_attempts=1,
        net=None,
        max_epochs="auto",
        batch_size="auto",
        learning_rate=0.01,
        refine=None,
        refine_epochs="auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        input_scaling="standard",
        n_stages=None,
        warm_start=False,
        checkpoint=None,
        temp_folder=None,
        dtype="float32",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            teacher,
            teacher_cv=teacher_cv,
            label_mix=label_mix,
            augment=augment,
            student=student,
            student_transform=student_transform,
            n_estimators=n_estimators,
            connection=connection,
            combine=combine,
            objective=objective,
            eta=eta,
            edge_tol=edge_tol,
            max_attempts=max_attempts,
            net=net,
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            refine=refine,
            refine_epochs=refine_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            input_scaling=input_scaling,
            n_stages=n_stages,
            warm_start=warm_start,
            checkpoint=checkpoint,
            temp_folder=temp_folder,
            dtype=dtype,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.output_schedule = output_schedule

    def _validate_y(self, y):
        return None if y is None else self._checked_y(y)

    def _checked_y(self, y):
        if np.asarray(y).dtype.kind in "SU":
            raise ValueError(
                f"{type(self).__name__} needs targets that are numbers. Got y of "
                f"strings, such as {np.ravel(y)[0]!r}; for labels, use "
                "BDistilClassifier."
            )
        return _check_y(y, multi_output=True, y_numeric=True, estimator=self)

    def _encode(self, response, y, sample_weight, *, goes_on, storage=IN_MEMORY):
        """Standardised scores, those of transfers, and targets in the same units."""
        values = response.scores
        known = ~IN_MEMORY.map(lambda some: np.isnan(some).any(axis=1), values)
        learnt = values
        if not known.all():
            learnt = storage.take(values, np.flatnonzero(known))
        if y is not None:
            y = y.reshape(len(y), -1)
            if y.shape[1] != values.shape[1]:
                raise ValueError(
                    f"y has {y.shape[1]} target(s), and the teacher gives "
                    f"{values.shape[1]}."
                )
        if not goes_on:
            self.target_mean_, self.target_scale_ = target_scaling(
                learnt,
                None if sample_weight is None else sample_weight[known],
                type(self).__name__,
            )
            self.single_output_ = response.single_output
        elif len(self.target_mean_) != values.shape[1]:
            raise ValueError(
                f"To go on with a fitted {type(self).__name__}, the teacher must have "
                f"the targets of the earlier fit, {len(self.target_mean_)}. Got "
                f"{values.shape[1]}."
            )
        constant = self.target_scale_ == 0
        others = [y[~known]] if goes_on and y is not None else []
        if any(
            (part[rows, constant] != self.target_mean_[constant]).any()
            for part in (learnt, *others)
            for rows in row_pieces(part)
        ):
            raise ValueError(
                f"To go on with a fitted {type(self).__name__}, targets that were "
                "constant in the earlier fit must be so again: the students give "
                "constants for them."
            )

        def standardised(targets):
            centred = targets - self.target_mean_
            varies = self.target_scale_ > 0
            scaled = np.divide(
                centred, self.target_scale_, out=np.zeros_like(centred), where=varies
            )
            return scaled.astype(self.dtype)

        others = [response.transfer_scores, y]
        return storage.map(standardised, values), *(
            None if part is None else storage.map(standardised, part) for part in others
        )

    def _first_stages(self, earlier):
        first_stages = first_rounds(
            self.output_schedule,
            self.n_estimators,
            type(self).__name__,
            goes_on=self.warm_start and not begins_with_another(self),
        )
        if earlier is not None:
            self._check_schedule_goes_on(first_stages)
        return first_stages

    def _check_schedule_goes_on(self, first_stages):
        """Refuse a schedule with another past than that of the earlier fit."""
        n_played, before = self.n_estimators_, self.first_stages_
        after = np.ones_like(before) if first_stages is None else first_stages
        if len(after) == len(before):
            is_past = before <= n_played
            if np.all(np.where(is_past, after == before, after > n_played)):
                return
        groups = [
            np.flatnonzero(before == stage).tolist() for stage in range(1, n_played + 1)
        ]
        raise ValueError(
            f"With warm_start=True, the 'output_schedule' parameter of "
            f"{type(self).__name__} must begin with the groups of the earlier fit, "
            f"{[group for group in groups if group]}, and other outputs may follow "
            f"from round {n_played + 1} on. Got {self.output_schedule!r}."
        )

    @property
    def first_stages_(self):
        """Stage from which each output is trained, from 1 on: shape (n_outputs,)."""
        first_stages = self.ensemble_.first_stages
        if first_stages is None:
            return np.ones(self.ensemble_.n_outputs, dtype=np.int64)
        return first_stages.copy()

    def _output_scaling(self):
        return {
            "output_mean": torch.from_numpy(self.target_mean_),
            "output_scale": torch.from_numpy(self.target_scale_),
        }

    def _certificate(self, game):
        return game.certificate().scaled(self.target_scale_)

    @staticmethod
    def _agreement(teacher, mean):
        return r2_of_targets(teacher, mean)

    def _teacher_score(self, scores, y, sample_weight, storage):
        values = storage.map(
            lambda some: some * self.target_scale_ + self.target_mean_, scores
        )
        return r2_of_targets(y.reshape(len(y), -1), values, sample_weight)

    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X, y=None, teacher_scores=None):
        """Train all students together on further rows, in one pass.

        They minimise the mean over the stages of the distillation term, in batches of
        `batch_size_` rows and at a constant rate, 0.3 times `learning_rate`. The state
        of the optimizer is kept from call to call. The first call, without a fit
        before, is a `fit` to these rows.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, ...)
            Rows of the shape seen in fit. No dataset.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets. They are learnt where there is no other answer, mixed
            with the teacher's by `label_mix_`, and in the label term of the objective.

        teacher_scores : array-like of shape (n_samples, n_outputs), default=None
            Values that a teacher gives for these rows, whichever one has been
            distilled. Rows of NaN have no answer, and without y they are left out. None
            asks the parameter `teacher` where it comes trained. One that was fitted in
            fit has not been kept.

        Returns
        -------
        self : object
            Updated estimator.

        Raises
        ------
        ValueError
            If the input is unusable, if there is nothing to learn from, or if weights
            become infinite or NaN. What was fitted before stays in place.

        See Also
        --------
        skbdistil.online.OnlineBDistil : Follows a stream, and says when to ask.

        Notes
        -----
        The students of the fit are replaced. Copies, ``clf[:k]`` and files from before
        have other weights, and no later stage fits onto them. What was calibrated on
        the students, such as an early exit, must be calibrated again, and says so.
        `certificate_`, `student_edges_` and `idle_features_` become NaN: they are about
        students that are no more. `sample_weight` and `augment` have no part in it, nor
        have callbacks and schedules of `net`. With an `output_schedule`, each student
        learns the outputs that it has learnt in the fit.

        :func:`skbdistil.persistence.save` does not keep the state of the optimizer;
        pickles do.
        """
        return self._partial_fit(X, y, teacher_scores)

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
        scores = self._last_scores(X)
        return in_units(
            scores, self.target_mean_, self.target_scale_, self.single_output_
        )

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
        units = self.target_mean_, self.target_scale_, self.single_output_
        for scores in self._stage_scores(X):
            yield in_units(scores, *units)

    def score(self, X, y=None, sample_weight=None):
        """R^2, the coefficient of determination.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape seen in fit.

        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets. `None` takes those that the items of a dataset hold.

        sample_weight : array-like of shape (n_samples,), default=None
            Sample weights.

        Returns
        -------
        score : float
        """
        check_is_fitted(self)
        X, y = _labelled(self, X, y)
        # Not of super(), since a view of a stage scores by this function, too.
        return RegressorMixin.score(self, X, y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class _NoAnswers(NamedTuple):
    """In place of a teacher's response, where there is none."""

    scores: np.ndarray
    classes: np.ndarray | None
    transfer_scores: None = None


def _labelled(scored, X, y):
    """Rows, and what is true of them: `y`, or what the items of a dataset hold.

    What is scored may be a view of a stage, and of a pipeline, which has no `net`.
    """
    X, y = with_labels(X, y, getattr(scored, "net", None))
    if y is None:
        raise ValueError(
            f"{type(scored).__name__} is scored by y, but the target y is None, and "
            "X is no dataset whose items hold labels."
        )
    return X, y


def _has_columns(y):
    """Whether y has several columns, so that a row has several labels."""
    shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def _indexable(X):
    """Rows of which some can be taken, which not all sparse formats allow."""
    return X.tocsr() if sparse.issparse(X) else X


def _mean_1(sample_weight):
    """Weights with a mean of 1, however large or small they were."""
    # By a power of 2 first, which is exact, so that their sum is in range.
    sample_weight = np.ldexp(sample_weight, -np.frexp(sample_weight.max())[1])
    return sample_weight / sample_weight.mean()
