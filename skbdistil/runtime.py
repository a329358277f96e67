"""Predictions of exported stages with NumPy and onnxruntime, and nothing else.

Neither torch nor scikit-learn is imported here.
"""

import hashlib
import json
import math
import re
import sys
import time
from functools import lru_cache, partial
from numbers import Integral, Real
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from skbdistil._conformal import around, conformal_rank, half_widths
from skbdistil._decoding import CLASSES, LABELS, Decoding
from skbdistil._deferral import audited, check_final, rows_of, with_final
from skbdistil._exit_rules import REGRESSION_RULES, RULES, in_units
from skbdistil._exit_runs import ExitRun, run_within
from skbdistil._optional import required
from skbdistil._threads import max_threads
from skbdistil._untrusted import (
    ArrayReader,
    brief,
    check_row_shape,
    parse_json,
    read_file,
)
from skbdistil.exceptions import InvalidFileError

__all__ = ["ProgressiveSession"]

#: Of manifests whose rows may be deferred, and the newest that are read. Others are of
#: version 1.
_DEFERRING_SCHEMA = 2

# Rows, and numbers in them, that run at once: feature maps of more numbers leave the
# caches of a processor, and take memory that a device may not have.
_CHUNK_ROWS = 4096
_CHUNK_SIZE = 2**20

# A graph is one message of protobuf, which is no larger.
_MAX_FILE_SIZE = 2**31

# Version of onnxruntime from which on a graph cannot make it read a file at an absolute
# path. Python 3.10 has no release of it.
_CONFINED_ONNXRUNTIME = (1, 24)

_METHODS = ("predict", "predict_proba", "decision_function")

# Kinds of classifiers in manifests. One that was written for labels must not be read as
# one of classes, so it has a name that older versions refuse.
_DECODINGS = {"classifier": CLASSES, "multilabel_classifier": LABELS}

# Name of the rows as the students see them.
_SCALED = "scaled"

_TENSOR_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


class ProgressiveSession:
    """Predict from a folder that :func:`skbdistil.export.to_onnx` has written.

    It needs NumPy and onnxruntime only: on the device, install the package with
    ``pip install --no-deps skbdistil``. Stages are loaded when the first row reaches
    them. Where all rows leave at the stage that was exported as `fixed_stage`, they run
    its graph, in one call.

    Parameters
    ----------
    directory : str or path-like
        Folder with ``manifest.json`` and one ONNX file per stage. The checksums of all
        files are verified, here and when a stage is loaded.

    n_stages : int or None, default=None
        Number of stages that predict, from 1 to those there are; None for all.

    early_exit : bool, default=True
        Whether rows leave by the rule that was exported, if there is one.

    n_threads : int or None, default=None
        Threads that a stage may use, up to 64, or the number of processors where there
        are more; None leaves it to onnxruntime.

    transformed : bool, default=False
        Whether rows have been through the transforms that are not exported. Has to be
        True if there are such, which ``manifest["preprocessing"]`` names.

    final : callable or None, default=None
        ``final(rows)`` returns the labels of rows that are deferred, as of
        :class:`~skbdistil.early_exit.EarlyExitClassifier`; what has a `predict` is
        asked by that. It gets them as they were given, frames as frames. Needed if the
        export defers rows, but for ``early_exit=False``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        Labels, in the order of the probabilities; with several labels per row, their
        numbers. None for a regressor.

    input_shape : tuple of int
        Shape of a row.

    n_stages : int
        Number of stages that predict.

    manifest : dict
        What the folder says about itself, as described in
        :func:`skbdistil.export.to_onnx`.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or `transformed` is not what the export
        needs.

    InvalidFileError
        If a file is missing, damaged or not what the manifest says, or was written by a
        newer version of the package; also later, when a stage is loaded or run.

    OSError
        If a file cannot be read.

    ImportError
        If onnxruntime is not installed.

    See Also
    --------
    skbdistil.export.to_onnx : Writes the folder.

    Notes
    -----
    Several threads may use one session. A pickle holds the path of the folder, and no
    file of it: another process opens it there, once for all copies that it gets, if it
    holds the same export. The arithmetic is
    float32, also of an estimator with ``dtype="float64"``. Rows run in chunks, so that
    the memory for what stages keep does not grow with their number, but for
    `predict_within`, which keeps it of all rows.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.export import to_onnx
    >>> from skbdistil.runtime import ProgressiveSession
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=50, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(clf.fit(X, y), Path(folder) / "iris")
    ...     session = ProgressiveSession(Path(folder) / "iris")
    ...     labels = session.predict(X)
    >>> bool((labels == clf.predict(X)).all())
    True
    """

    def __init__(
        self,
        directory,
        *,
        n_stages=None,
        early_exit=True,
        n_threads=None,
        transformed=False,
        final=None,
    ):
        self._runtime = required("ProgressiveSession", "onnxruntime")
        if n_threads is not None and not (
            _is_count(n_threads) and n_threads <= max_threads()
        ):
            raise ValueError(
                f"'n_threads' must be None or an int from 1 to {max_threads()}. Got "
                f"{n_threads!r} instead."
            )
        self._params = {
            "n_stages": n_stages,
            "early_exit": early_exit,
            "n_threads": n_threads,
            "transformed": transformed,
        }
        # The folder itself, even if a link to it is set to another one meanwhile.
        self._directory = Path(directory).resolve()
        self.manifest, export = _read_manifest(self._directory)
        n_exported = len(export.stages)
        if n_stages is None:
            n_stages = n_exported
        elif not (_is_count(n_stages) and n_stages <= n_exported):
            raise ValueError(
                f"'n_stages' must be None or an int from 1 to {n_exported}, the number "
                f"of stages in {self._directory}. Got {n_stages!r} instead."
            )
        self._check_transforms(export, transformed)
        self.n_stages = int(n_stages)
        self.classes_ = export.classes
        self.input_shape = export.input.shape
        self._export = export
        self._dtype = np.dtype(export.input.dtype)
        self._max_rows = max(1, _CHUNK_SIZE // math.prod(self.input_shape))
        self._stages = export.stages[:n_stages]
        self._rule = export.rule
        self._deferral = export.deferral if early_exit else None
        self._final = final
        self._check_deferral()
        self._exits_early = early_exit and export.rule is not None
        if self._exits_early:
            self._thresholds = export.thresholds[: n_stages - 1]
            if self._deferral is not None:
                self._thresholds = np.append(self._thresholds, self._deferral.threshold)
            self._temperatures = export.temperatures[:n_stages]
        else:
            self._thresholds = np.full(n_stages - 1, np.inf)
            self._temperatures = np.ones(n_stages)
        self._has_temperatures = bool((self._temperatures != 1).any())
        # The last stage that reads a tensor, up to which it is held; and what each
        # stage is asked for, the scores first.
        self._last_readers = {
            tensor.name: number
            for number, stage in enumerate(self._stages)
            for tensor in stage.inputs
        }
        self._graphs = [
            _Graph(
                stage,
                [
                    stage.outputs[0],
                    *(
                        tensor
                        for tensor in stage.outputs[1:]
                        if tensor.name == _SCALED or self._is_held(tensor.name, number)
                    ),
                ],
            )
            for number, stage in enumerate(self._stages)
        ]
        # Whether what is not finite in the rows is found in the scaled rows as well,
        # which are looked at in any case: transforms may drop or replace it.
        gives_scaled = self._graphs[0].scaled is not None
        self._scaled_shows = gives_scaled and not export.inside
        # Of the stage at which all rows leave, if that is exported.
        self._fixed_graph = None
        fixed = export.fixed
        if (
            fixed is not None
            and export.fixed_stage == n_stages
            and self._deferral is None
            and np.isinf(self._thresholds).all()
        ):
            self._fixed_graph = _Graph(fixed, fixed.outputs)
        self._options = self._runtime.SessionOptions()
        self._options.log_severity_level = 4  # errors are raised anyway
        self._options.intra_op_num_threads = int(n_threads or 0)
        # Weights in other files would not be those that were verified: there are none
        # below what is no folder.
        self._options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path",
            str(self._directory / "manifest.json"),
        )
        self._lock = Lock()
        for stage in self._stages:
            self._verified(stage)
        if self._fixed_graph is not None:
            self._verified(fixed)

    def __reduce__(self):
        params = tuple(self._params.items())
        args = (type(self), str(self._directory), params, self._digest())
        if self._final is None:
            return _reopened, args
        return _reopened_with, (self._final, *args)

    def _digest(self):
        """What tells the manifest from others."""
        text = json.dumps(self.manifest, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    # Predicting

    def predict(self, X):
        """Labels, or targets, of the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        Returns
        -------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            With several labels per row, an indicator matrix.

        Raises
        ------
        skbdistil.exceptions.DeferralError
            If the final model fails; it holds the local answers.
        """
        scores, stages = self._exits(X)
        labels = self._response(scores, stages, "predict")
        if self._deferral is None:
            return labels
        take = partial(rows_of, X)
        is_deferred = stages > self.n_stages
        return with_final(self._final, take, labels, is_deferred, self.classes_)

    def audit(self, X, monitor, y=None):
        """Labels of the rows, and whether the promise of the deferral still holds.

        As :meth:`skbdistil.early_exit.EarlyExitClassifier.audit`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        monitor : :class:`~skbdistil.monitoring.DeferralMonitor`
            Of the `risk` in ``manifest["early_exit"]["deferral"]``.

        y : array-like of shape (n_samples,), default=None
            Labels, needed where the `target` there is "accuracy" or "error".

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Those of the final model for all rows that it was asked about.

        Raises
        ------
        ValueError
            If no rows are deferred, the monitor is for another risk, or labels are
            needed.

        skbdistil.exceptions.DeferralError
            If the final model fails; the monitor counts none of the rows.
        """
        deferral = self._deferral
        if deferral is None:
            raise ValueError(
                f"This {type(self).__name__} has no final model to audit with."
            )

        def passed():
            scores, stages = self._exits(X)
            return self._as_labels(scores), stages > self.n_stages

        return audited(
            monitor,
            passed,
            self._final,
            partial(rows_of, X),
            self.classes_,
            n_rows=len(X),
            target=deferral.target,
            risk=deferral.risk,
            y=y,
        )

    def predict_interval(self, X, alpha=0.1):
        """Intervals that hold the targets with a probability of at least 1 - alpha.

        As :meth:`skbdistil.intervals.SplitConformalRegressor.predict_interval`: each
        stage that predicts all rows has its intervals, and so has the exit.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        alpha : float, default=0.1
            Probability with which an interval may miss the target, between 0 and 1.

        Returns
        -------
        intervals : ndarray of shape (n_samples, 2) or (n_samples, n_outputs, 2)
            Lower and upper ends around `predict`, in the units of the targets.

        Raises
        ------
        AttributeError
            If the export has no intervals.

        ValueError
            If `alpha` is out of its range, or rows leave early within fewer stages than
            were calibrated.

        Warns
        -----
        InfiniteIntervalWarning
            If there are too few calibration rows for this `alpha`.
        """
        name = type(self).__name__
        residuals = self._export.residuals
        if residuals is None:
            raise AttributeError(
                f"{self._directory} holds no intervals: export a "
                "SplitConformalRegressor."
            )
        if not self._exits_early:
            residuals = self._export.stage_residuals[self.n_stages - 1]
        elif self.n_stages != len(self._export.stages):
            raise ValueError(
                f"The intervals in {self._directory} are those of rows that leave "
                f"within {len(self._export.stages)} stages. Got n_stages="
                f"{self.n_stages}; with early_exit=False each stage has its own."
            )
        rank = conformal_rank(len(residuals), alpha, name, stacklevel=2)
        return around(self.predict(X), half_widths(residuals, rank))

    def predict_proba(self, X):
        """Probabilities of the classes, at the stage where each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`; with several labels per row, of having each of
            them. With early exit, the temperatures of the stages are applied.
        """
        self._check_classifier("predict_proba")
        self._check_scores("predict_proba")
        return self._response(*self._exits(X), "predict_proba")

    def decision_function(self, X):
        """Logits at the stage where each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            For two classes, the log-odds of the second one. With several labels per
            row, the log-odds of each.
        """
        self._check_classifier("decision_function")
        self._check_scores("decision_function")
        return self._response(*self._exits(X), "decision_function")

    def exit_stages(self, X):
        """Stage at which each row leaves.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        Returns
        -------
        stages : ndarray of shape (n_samples,)
            From 1 to `n_stages`, which it is for all rows without early exit, and one
            more for rows that are deferred; the final model is not asked about them.
        """
        scores, stages = self._exits(X)
        return np.full(len(scores), stages)

    def staged_predict(self, X):
        """Labels, or targets, of the rows after each stage.

        All rows run through all stages, in one pass.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        Yields
        ------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        for scores in self._staged_scores(X):
            yield self._as_labels(scores)

    def staged_predict_proba(self, X):
        """Probabilities of the classes after each stage.

        All rows run through all stages, in one pass; no temperature is applied.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        Yields
        ------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        self._check_classifier("staged_predict_proba")
        for scores in self._staged_scores(X):
            yield self._export.decoding.probabilities(scores)

    def predict_within(self, X, seconds, method="predict"):
        """Predictions as good as the time allows.

        All rows get the first stage, however long it takes. Further stages are run
        chunk by chunk of the rows, as long as the time of the next one, expected from
        the last, is left. A stage that no row has reached before is loaded in this
        time, for some milliseconds that are not foreseen. A final model is not asked:
        its rows are answered locally, and there is no promise about them.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows of the shape `input_shape`.

        seconds : float
            Time for the whole call, positive.

        method : {"predict", "predict_proba", "decision_function"}, default="predict"
            What is predicted.

        Returns
        -------
        predictions : ndarray
            Of `method`.

        Raises
        ------
        ValueError
            If `seconds` is not positive, or `method` is none of these.
        """
        began = time.perf_counter()
        if method not in _METHODS:
            raise ValueError(
                f"'method' must be one of {list(_METHODS)}. Got {method!r} instead."
            )
        if method != "predict":
            self._check_classifier(method)
        if not isinstance(seconds, Real) or not seconds > 0:
            raise ValueError(f"'seconds' must be positive. Got {seconds!r} instead.")
        scores, stages, runs = self._begin(X)
        macs = [np.nan if stage.macs is None else stage.macs for stage in self._stages]
        run_within(list(runs), macs, seconds, began)
        return self._response(scores, stages, method)

    def _begin(self, X):
        """Arrays of scores and stages, and the passes, by chunk, that fill them."""
        X = self._checked(X)
        scores = np.empty((len(X), self._export.n_outputs), dtype=np.float32)
        stages = np.empty(len(X), dtype=np.intp)
        return (
            scores,
            stages,
            (
                ExitRun(
                    _State(self, x),
                    rows,
                    scores,
                    stages,
                    rule=self._rule,
                    thresholds=self._thresholds,
                    temperatures=self._temperatures,
                )
                for rows, x in self._chunks(X)
            ),
        )

    def _exits(self, X):
        """Scores of the rows, and the stage of each or of all of them."""
        if self._fixed_graph is not None:
            found = []
            for _, x in self._chunks(self._checked(X)):
                found.append(self._outputs(self._fixed_graph, {"x": x})[0])
            # A copy would take a good part of the time of one row.
            return found[0] if len(found) == 1 else np.concatenate(found), self.n_stages
        scores, stages, runs = self._begin(X)
        for run in runs:
            while run.n_left:
                run.step()
        return scores, stages

    def _staged_scores(self, X):
        X = self._checked(X)
        scores = np.empty(
            (self.n_stages, len(X), self._export.n_outputs), dtype=np.float32
        )
        for rows, x in self._chunks(X):
            state = _State(self, x)
            for stage in range(self.n_stages):
                scores[stage, rows] = state.step()
        return scores

    def _feeds(self, X, stage):
        """What a stage, numbered from 0, reads for the rows, chunk by chunk."""
        for _, x in self._chunks(self._checked(X)):
            state = _State(self, x)
            for _ in range(stage):
                state.step()
            yield state.feed()

    def _response(self, scores, stages, method):
        if method == "predict":
            return self._as_labels(scores)
        if method == "predict_proba":
            if self._has_temperatures:
                # Rows that would be deferred have the scores of the last stage.
                stages = np.minimum(stages, self.n_stages)
                temperatures = self._temperatures[stages - 1].astype(scores.dtype)
                scores = scores / temperatures.reshape(-1, 1)
            return self._export.decoding.probabilities(scores)
        return self._export.decoding.decision(scores)

    def _as_labels(self, scores):
        if self.classes_ is not None:
            return self._export.decoding.predict(scores, self.classes_)
        export = self._export
        return in_units(
            scores, export.target_mean, export.target_scale, export.single_output
        )

    def _check_classifier(self, method):
        if self.classes_ is None:
            raise AttributeError(
                f"{self._directory} holds a regressor, which has no {method!r}."
            )

    def _check_deferral(self):
        """Refuse a final model that is missing, or that nothing is deferred to."""
        name = type(self).__name__
        if self._deferral is None:
            if self._final is not None:
                raise ValueError(
                    f"The 'final' parameter of {name} is for rows that are deferred, "
                    f"and {self._directory}, as it is used here, defers none."
                )
            return
        if self._final is None:
            raise ValueError(
                f"{self._directory} defers rows to a final model, which is no part of "
                f"it: pass {name}(..., final=...). With early_exit=False all rows are "
                "answered by all stages, without what was promised."
            )
        check_final(self._final, name)
        if self.n_stages != len(self._export.stages):
            raise ValueError(
                f"{self._directory} defers rows by what all its "
                f"{len(self._export.stages)} stages say. Got n_stages={self.n_stages}; "
                "with early_exit=False fewer can be used."
            )

    def _check_scores(self, method):
        if self._deferral is not None:
            raise AttributeError(
                f"{self._directory} defers rows to a final model, whose answers are "
                f"labels only: there is no {method!r}."
            )

    # Rows

    def _check_transforms(self, export, transformed):
        if export.outside and not transformed:
            raise ValueError(
                f"{self._directory} was exported without the transforms of its "
                f"pipeline: {', '.join(export.outside)}. Rows have to go through them "
                f"before; say that they have by {type(self).__name__}(..., "
                "transformed=True)."
            )
        if export.inside and transformed:
            raise ValueError(
                f"The stages in {self._directory} apply the transforms of the pipeline "
                f"themselves: {', '.join(export.inside)}. Pass rows as the pipeline "
                "gets them, and leave out transformed=True."
            )

    def _checked(self, X):
        """Rows as an array of the right shape."""
        estimator_name = type(self).__name__
        names = self._export.feature_names
        if names is not None:
            columns = getattr(X, "columns", None)
            if columns is not None and list(columns) != names:
                raise ValueError(
                    "The columns of X must be those that the estimator was fitted "
                    f"with, in their order: {names}. Got {list(columns)}."
                )
        X = np.asarray(X)
        if X.dtype.kind not in "biufO":
            raise ValueError(
                f"{estimator_name} needs numbers. Got X of dtype {X.dtype}."
            )
        if X.ndim == 0 or X.shape[1:] != self.input_shape:
            raise ValueError(
                f"{estimator_name} needs rows of shape {self.input_shape}: X of shape "
                f"{('n_samples', *self.input_shape)}. Got X of shape {X.shape}."
            )
        if len(X) == 0:
            raise ValueError(
                f"{estimator_name} needs at least one row. Got X of shape {X.shape}."
            )
        return X

    def _chunks(self, X):
        """Positions of some rows, and these as the first stage takes them."""
        n_rows = min(_CHUNK_ROWS, self._max_rows)
        if len(X) <= n_rows:
            return [(slice(0, len(X)), self._as_input(X))]
        chunks = (
            slice(start, min(start + n_rows, len(X)))
            for start in range(0, len(X), n_rows)
        )
        return ((rows, self._as_input(X[rows])) for rows in chunks)

    def _as_input(self, X):
        """Rows as the first stage takes them."""
        if X.dtype != self._dtype:
            with np.errstate(over="ignore"):
                X = X.astype(self._dtype)
        X = np.ascontiguousarray(X)
        if not self._scaled_shows:
            self._check_finite(X, self._export.missing)
        return X

    def _check_finite(self, values, missing=()):
        """Refuse rows by what has become of them: large values overflow on the way."""
        finite = np.isfinite(values)
        if missing:
            finite[:, missing] |= np.isnan(values[:, missing])
        # As `not finite.all()`, which takes several times as long for one row.
        if b"\0" in finite.tobytes():
            raise ValueError(
                f"{type(self).__name__} needs finite numbers. X contains NaN, infinity "
                "or a value too large for float32."
            )

    # Stages

    def _is_held(self, name, number):
        """Whether a stage after this one, numbered from 0, reads a tensor."""
        return self._last_readers.get(name, -1) > number

    def _verified(self, stage):
        """Content of the file of a stage, if it is what was exported."""
        content = _read(self._directory, stage.file)
        if hashlib.sha256(content).hexdigest() != stage.sha256:
            raise InvalidFileError(
                f"{self._directory / stage.file}: the checksum is not that of the "
                "manifest. The file has been changed or damaged."
            )
        return content

    def _session(self, graph):
        """The onnxruntime session of a graph, created when it is needed."""
        with self._lock:
            if graph.session is None:
                graph.session = self._open(graph.stage)
            return graph.session

    def _open(self, stage):
        path = self._directory / stage.file
        # What is verified is what runs, whatever happens to the file.
        content = self._verified(stage)
        version = self._runtime.__version__
        release = tuple(int(part) for part in version.split(".")[:2])
        # A graph that names another file holds this word, however it is encoded.
        if release < _CONFINED_ONNXRUNTIME and b"location" in content:
            raise InvalidFileError(
                f"{path}: onnxruntime cannot load it safely. The graph may name other "
                f"files, and onnxruntime {version} would read them; 1.24 does not."
            )
        try:
            session = self._runtime.InferenceSession(
                content, self._options, providers=["CPUExecutionProvider"]
            )
        # The errors of onnxruntime have no base class of their own.
        except Exception as error:
            raise InvalidFileError(
                f"{path}: onnxruntime cannot load it: {error}"
            ) from error
        for kind, found, expected in (
            ("inputs", session.get_inputs(), stage.inputs),
            ("outputs", session.get_outputs(), stage.outputs),
        ):
            found = [_signature(value) for value in found]
            if found != list(expected):
                raise InvalidFileError(
                    f"{path}: the {kind} are not those of the manifest: {found}."
                )
        return session

    def _outputs(self, graph, feed):
        """What a graph gives, in the order of `graph.gives`, the scores first."""
        session = graph.session or self._session(graph)
        try:
            found = session.run(graph.gives, feed)
        # The errors of onnxruntime have no base class of their own.
        except Exception as error:
            path = self._directory / graph.stage.file
            raise InvalidFileError(
                f"{path}: onnxruntime cannot run it: {error}"
            ) from error
        n_rows = len(next(iter(feed.values())))
        for (tensor, dtype), value in zip(graph.wanted, found, strict=True):
            # What a graph says of its outputs is not what it has to give.
            if value.shape != (n_rows, *tensor.shape) or value.dtype != dtype:
                raise InvalidFileError(
                    f"{self._directory / graph.stage.file}: for {n_rows} rows it gives "
                    f"{tensor.name!r} of shape {value.shape} and dtype {value.dtype}, "
                    f"and not {tensor}."
                )
        self._check_finite(found[0])
        # Scores may hide it: what saturates is finite. Only graphs that scale give it.
        if graph.scaled is not None:
            self._check_finite(found[graph.scaled])
        return found


@lru_cache(maxsize=8)
def _reopened(cls, directory, params, digest):
    """The session of a pickle: the tasks of a process share one."""
    try:
        session = cls(directory, **dict(params))
    except (InvalidFileError, OSError) as error:
        raise type(error)(
            f"The pickle of a {cls.__name__} holds the path of its folder, which must "
            f"be there where it is loaded: {error}"
        ) from error
    if session._digest() != digest:
        raise InvalidFileError(
            f"{directory} holds another export than when this {cls.__name__} was "
            "pickled. Make a new session."
        )
    return session


def _reopened_with(final, cls, directory, params, digest):
    """As :func:`_reopened`, with a final model, which no two pickles share."""
    params = (*params, ("final", final))
    return _reopened.__wrapped__(cls, directory, params, digest)


class _Graph:
    """A file of the folder, and what is asked of it.

    Parameters
    ----------
    stage : _Stage
    wanted : sequence of _Tensor
        Outputs to compute, the scores first.

    Attributes
    ----------
    session : onnxruntime.InferenceSession or None
        None until it is needed.
    reads, gives : list of str
    scaled : int or None
        Position of the scaled rows in `gives`, if they are there.
    """

    def __init__(self, stage, wanted):
        self.stage = stage
        self.session = None
        self.reads = [tensor.name for tensor in stage.inputs]
        self.gives = [tensor.name for tensor in wanted]
        # Comparing a dtype with its name takes as long as a small layer.
        self.wanted = [(tensor, np.dtype(tensor.dtype)) for tensor in wanted]
        self.scaled = self.gives.index(_SCALED) if _SCALED in self.gives else None


class _State:
    """What a pass over the stages has computed so far.

    Parameters
    ----------
    session : ProgressiveSession
    x : ndarray of shape (n, ...)
    """

    def __init__(self, session, x):
        self._session = session
        self._tensors = {"x": x}
        self.n_stages = 0

    def feed(self):
        """What the next stage reads, by name."""
        reads = self._session._graphs[self.n_stages].reads
        return {name: self._tensors[name] for name in reads}

    def step(self):
        """Run the next stage and return its scores, of shape (n, n_outputs)."""
        session, number = self._session, self.n_stages
        graph = session._graphs[number]
        found = session._outputs(graph, self.feed())
        self._tensors.update(zip(graph.gives, found, strict=True))
        self._tensors = {
            name: value
            for name, value in self._tensors.items()
            if session._is_held(name, number)
        }
        self.n_stages += 1
        return found[0]

    def select(self, rows):
        """Drop all rows but those at these positions."""
        self._tensors = {name: value[rows] for name, value in self._tensors.items()}


# The folder


class _Tensor(NamedTuple):
    """An input or output of a stage; `shape` is that of one row."""

    name: str
    shape: tuple
    dtype: str


class _Stage(NamedTuple):
    file: str
    sha256: str
    inputs: tuple
    outputs: tuple
    macs: int | None


class _Deferral(NamedTuple):
    """When rows go to a final model, and what was promised of the others."""

    threshold: float
    target: str
    risk: str


class _Export(NamedTuple):
    """The manifest, checked."""

    input: _Tensor
    n_outputs: int
    feature_names: list | None
    missing: list
    inside: list
    outside: list
    stages: tuple
    fixed_stage: int | None
    fixed: _Stage | None
    classes: np.ndarray | None
    decoding: Decoding | None
    target_mean: np.ndarray | None
    target_scale: np.ndarray | None
    single_output: bool
    rule: str | None
    thresholds: np.ndarray | None
    temperatures: np.ndarray | None
    deferral: _Deferral | None
    residuals: np.ndarray | None
    stage_residuals: np.ndarray | None


def _read_manifest(directory):
    """The manifest as it is, and what is needed of it."""
    content = _read(directory, "manifest.json")
    path = directory / "manifest.json"
    try:
        manifest = parse_json(content)
    except InvalidFileError as error:
        raise InvalidFileError(f"{path}: {error}") from error.__cause__
    return manifest, _parse(_Entry(path, "the manifest", manifest))


def _read(directory, name):
    """Content of a file that lies in the folder itself."""
    path = directory / name
    if not path.is_file():
        raise InvalidFileError(f"{path}: there is no such file.")
    if path.resolve().parent != directory.resolve():
        raise InvalidFileError(f"{path}: it is a link that leaves the folder.")
    if path.stat().st_size > _MAX_FILE_SIZE:
        raise InvalidFileError(f"{path}: it is larger than a graph can be.")
    return read_file(path)


def _parse(manifest):
    schema = manifest.get("schema_version", "a positive int")
    if schema > _DEFERRING_SCHEMA:
        manifest.fail(
            f"has schema version {schema}, and this version of skbdistil reads up to "
            f"{_DEFERRING_SCHEMA}. Install a newer one"
        )
    x = manifest.entry("input")
    row = _Tensor("x", tuple(x.get("shape", "a list of positive ints")), _dtype(x))
    x.must(check_row_shape, row.shape)
    stages = _parse_stages(manifest, row)
    fixed = _parse_fixed(manifest, row, stages)
    (n_outputs,) = stages[0].outputs[0].shape
    targets, intervals = (None, None, False), (None, None)
    classes = decoding = rule = thresholds = temperatures = deferral = None
    kind = manifest.get("kind", "a string")
    if kind in _DECODINGS:
        decoding = _DECODINGS[kind]
        classes = _parse_classes(manifest.entry("classes"), n_outputs)
        rules = RULES if decoding is CLASSES else None
    elif kind == "regressor":
        targets = _parse_targets(manifest.entry("targets"), n_outputs)
        rules = REGRESSION_RULES
    else:
        manifest.fail(f"is of unknown kind {kind!r}")
    if manifest.get("early_exit", "an object or null") is not None:
        entry = manifest.entry("early_exit")
        if rules is None or ("deferral" in entry and rules is not RULES):
            manifest.fail(f"has a rule of exit, and is of kind {kind!r}")
        rule, thresholds, temperatures = _parse_rule(entry, rules, len(stages))
        deferral = _parse_deferral(entry)
    if "intervals" in manifest:
        if kind != "regressor":
            manifest.fail(f"has intervals, and is of kind {kind!r}")
        entry = manifest.entry("intervals")
        intervals = _parse_intervals(entry, len(stages), n_outputs)
    return _Export(
        row,
        n_outputs,
        x.get("feature_names", "a list of strings or null"),
        _parse_missing(x, row),
        _parse_steps(x, "transforms") if "transforms" in x else [],
        _parse_steps(manifest, "preprocessing"),
        stages,
        *fixed,
        classes,
        decoding,
        *targets,
        rule,
        thresholds,
        temperatures,
        deferral,
        *intervals,
    )


def _parse_missing(entry, row):
    """Columns that may hold NaN."""
    if "missing" not in entry:
        return []
    missing = entry.get("missing", "a list of ints from 0 on")
    if missing and not (len(row.shape) == 1 and max(missing) < row.shape[0]):
        entry.fail(f"has 'missing' columns that rows of shape {row.shape} do not have")
    return missing


def _parse_steps(entry, key):
    """Transforms, in the words of a message."""
    return [
        f"{step.get('name', 'a string')!r} ({step.get('type', 'a string')})"
        for step in entry.entries(key)
    ]


def _parse_stages(manifest, x):
    """Stages, each of which reads what those before it give."""
    known = {"x": x}
    files = set()
    stages = []
    for entry in manifest.filled_entries("stages"):
        file = _parse_file(entry)
        if file in files:
            entry.fail(f"has the file {file!r}, which is that of an earlier stage")
        files.add(file)
        inputs = _parse_tensors(entry.filled_entries("inputs"))
        outputs = _parse_tensors(entry.filled_entries("outputs"))
        for tensor in inputs:
            if known.get(tensor.name) != tensor:
                entry.fail(f"reads {tensor}, which no earlier stage gives")
        for tensor in outputs:
            if known.setdefault(tensor.name, tensor) is not tensor:
                entry.fail(f"gives {tensor.name!r}, which is there already")
        scores = outputs[0]
        if len(scores.shape) != 1 or (
            stages and scores.shape != stages[0].outputs[0].shape
        ):
            entry.fail(f"has scores of shape {scores.shape}, its first output")
        stages.append(
            _Stage(
                file,
                entry.get("sha256", "a string"),
                inputs,
                outputs,
                entry.get("macs", "a positive int or null"),
            )
        )
    return tuple(stages)


def _parse_file(entry):
    file = entry.get("file", "a string")
    # No separator, no drive, no parent.
    if not re.fullmatch(r"\w[\w.-]{0,99}", file, flags=re.ASCII):
        entry.fail(f"has the file {file!r}, which is not a plain name")
    return file


def _parse_fixed(manifest, x, stages):
    """Number of the stage that has a graph of its own, and that graph, or None twice.

    It is run in place of the stages up to it, and gives what they do.
    """
    # Older manifests lack it.
    if (
        "fixed_stage" not in manifest
        or manifest.get("fixed_stage", "an object or null") is None
    ):
        return None, None
    entry = manifest.entry("fixed_stage")
    number = entry.get("stage", "a positive int")
    if number > len(stages):
        entry.fail(f"is stage {number}, and there are {len(stages)}")
    file = _parse_file(entry)
    if file in {stage.file for stage in stages}:
        entry.fail(f"has the file {file!r}, which is that of a stage")
    scaled = [tensor for tensor in stages[0].outputs[1:] if tensor.name == _SCALED]
    return number, _Stage(
        file,
        entry.get("sha256", "a string"),
        (x,),
        (stages[number - 1].outputs[0], *scaled),
        None,
    )


def _parse_tensors(entries):
    return tuple(
        _Tensor(
            entry.get("name", "a string"),
            tuple(entry.get("shape", "a list of positive ints")),
            _dtype(entry),
        )
        for entry in entries
    )


def _dtype(entry):
    dtype = entry.get("dtype", "a string")
    if dtype not in _TENSOR_TYPES.values():
        entry.fail(f"has the dtype {dtype!r}, which is not float32 or float64")
    return dtype


def _parse_classes(entry, n_outputs):
    values = entry.get("values", "a list")
    dtype = entry.get("dtype", "a string")
    if len(values) != n_outputs:
        entry.fail(f"are {len(values)}, and there are {n_outputs} outputs")
    classes = entry.must(ArrayReader().read, dtype, values)
    if classes.tolist() != values:
        entry.fail(f"are not values of the dtype {dtype}")
    return classes


def _parse_targets(entry, n_outputs):
    single_output = entry.get("single_output", "true or false")
    if single_output and n_outputs > 1:
        entry.fail(f"have a single output, and there are {n_outputs}")
    return (
        entry.numbers("mean", "a list of finite numbers", n_outputs),
        entry.numbers("scale", "a list of finite numbers", n_outputs),
        single_output,
    )


def _parse_rule(entry, rules, n_stages):
    rule = entry.get("rule", "a string")
    if rule not in rules:
        entry.fail(f"has the rule {rule!r}, which is not one of {sorted(rules)}")
    thresholds = entry.numbers(
        "thresholds", "a list of finite numbers and nulls", n_stages - 1
    )
    # None is NaN by now: no row leaves.
    thresholds[np.isnan(thresholds)] = np.inf
    return (
        rule,
        thresholds,
        entry.numbers("temperatures", "a list of positive numbers", n_stages),
    )


def _parse_deferral(rule):
    if "deferral" not in rule:
        return None
    entry = rule.entry("deferral")
    threshold = entry.get("threshold", "a finite number or null")
    for key, known in (
        ("target", ("agreement", "accuracy", "error")),
        ("risk", ("marginal", "selective")),
    ):
        if entry.get(key, "a string") not in known:
            entry.fail(f"has {key!r} that is not one of {list(known)}")
    return _Deferral(
        np.inf if threshold is None else threshold,
        entry.get("target", "a string"),
        entry.get("risk", "a string"),
    )


def _parse_intervals(entry, n_stages, n_outputs):
    """Absolute errors of `predict` and of each stage, rising along the rows."""
    found = [
        entry.must(partial(np.array, dtype=float), entry.get(key, "a list"))
        for key in ("residuals", "stage_residuals")
    ]
    of_rows = len(found[0]), n_outputs
    if found[0].shape != of_rows or found[1].shape != (n_stages, *of_rows):
        entry.fail("has not one absolute error per row and target")
    for errors in found:
        # Infinite ones, and NaN, compare false.
        is_usable = (errors >= 0) & (errors <= sys.float_info.max)
        if (
            not errors.size
            or not is_usable.all()
            or (np.diff(errors, axis=-2) < 0).any()
        ):
            entry.fail("has no absolute errors that rise")
    return found


def _is_count(value):
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def _is_number(value):
    # NaN, infinity and ints beyond floats compare false.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _list_of(test):
    return lambda value: isinstance(value, list) and all(map(test, value))


# What the manifest may hold, in the words of the messages.
_KINDS = {
    "a string": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a positive int": _is_count,
    "a positive int or null": lambda value: value is None or _is_count(value),
    "a list": lambda value: isinstance(value, list),
    "a list of positive ints": _list_of(_is_count),
    "a list of ints from 0 on": _list_of(
        lambda value: type(value) is int and value >= 0
    ),
    "a finite number or null": lambda value: value is None or _is_number(value),
    "a list of finite numbers": _list_of(_is_number),
    "a list of finite numbers and nulls": _list_of(
        lambda value: value is None or _is_number(value)
    ),
    "a list of positive numbers": _list_of(
        lambda value: _is_number(value) and value > 0
    ),
    "a list of strings or null": lambda value: (
        value is None or _list_of(lambda item: isinstance(item, str))(value)
    ),
    "an object": lambda value: isinstance(value, dict),
    "an object or null": lambda value: value is None or isinstance(value, dict),
    "a list of objects": _list_of(lambda value: isinstance(value, dict)),
}


class _Entry:
    """An object of the manifest, whose values are checked when they are read.

    Parameters
    ----------
    path : Path
    where : str
        What it is, for messages.
    content : dict
    """

    def __init__(self, path, where, content):
        self._path = path
        self._where = where
        if not isinstance(content, dict):
            self.fail("is not an object")
        self._content = content

    def fail(self, reason):
        raise InvalidFileError(f"{self._path}: {self._where} {brief(reason)}.")

    def must(self, read, *values):
        """What a function makes of values, if it can."""
        try:
            return read(*values)
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise InvalidFileError(
                f"{self._path}: {self._where}: {brief(str(error))}"
            ) from error

    def __contains__(self, key):
        return key in self._content

    def get(self, key, kind):
        if key not in self._content:
            self.fail(f"lacks {key!r}")
        value = self._content[key]
        if not _KINDS[kind](value):
            self.fail(f"has {key!r} that is not {kind}")
        return value

    def entry(self, key):
        return _Entry(self._path, f"{key!r}", self.get(key, "an object"))

    def entries(self, key):
        return [
            _Entry(self._path, f"number {number} of {key!r} in {self._where}", value)
            for number, value in enumerate(self.get(key, "a list of objects"), start=1)
        ]

    def filled_entries(self, key):
        entries = self.entries(key)
        if not entries:
            self.fail(f"has no {key}")
        return entries

    def numbers(self, key, kind, length):
        values = self.get(key, kind)
        if len(values) != length:
            self.fail(f"has {len(values)} {key}, and needs {length}")
        return np.array(values, dtype=float)


def _signature(value):
    """An input or output of a session as the manifest describes it."""
    batch, *shape = value.shape or [0]
    # A batch of one size only is not what was exported.
    name = value.name if not isinstance(batch, int) else f"{value.name} of {batch} rows"
    return _Tensor(name, tuple(shape), _TENSOR_TYPES.get(value.type, value.type))
