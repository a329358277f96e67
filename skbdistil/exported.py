"""Exported stages as fitted estimators, to choose an early exit for them as they are.

Stages of lower precision are no longer those of the estimator that was exported. What
is calibrated here is what runs.
"""

import os
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from skbdistil._exit_rules import as_decision, in_units, label_probabilities
from skbdistil._sklearn_compat import Interval, _fit_context
from skbdistil.costs import StageCosts
from skbdistil.runtime import _SCALED, ProgressiveSession, _State

__all__ = ["ExportedClassifier", "ExportedRegressor"]


class _ExportedStages:
    """What early exit asks of an ensemble of students, of a session.

    Parameters
    ----------
    session : ProgressiveSession
    """

    dtype = torch.float32

    def __init__(self, session):
        self.n_outputs = session._export.n_outputs


class _SessionState:
    """A pass over the stages of a session, as :class:`~skbdistil.ensemble.StageState`.

    Parameters
    ----------
    session : ProgressiveSession
    x : ndarray of shape (n, ...)
    """

    def __init__(self, session, x):
        self._state = _State(session, x)
        self.mean = None

    def advance(self):
        self.mean = torch.from_numpy(self._state.step())

    def select(self, rows):
        self._state.select(rows.numpy())


class _BaseExported(BaseEstimator):
    """Base: open the folder, and predict by its stages."""

    _parameter_constraints = {
        "directory": [str, os.PathLike],
        "n_stages": [Interval(Integral, 1, None, closed="left"), None],
        "n_threads": [Interval(Integral, 1, None, closed="left"), None],
        "transformed": ["boolean"],
    }

    def __init__(self, directory, *, n_stages=None, n_threads=1, transformed=False):
        self.directory = directory
        self.n_stages = n_stages
        self.n_threads = n_threads
        self.transformed = transformed

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X=None, y=None):
        """Open the folder. Nothing is learned.

        Parameters
        ----------
        X : Ignored
            Not used, present for API consistency by convention.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or the folder holds predictions of
            another kind.

        InvalidFileError
            If the folder is damaged.

        ImportError
            If onnxruntime is not installed.
        """
        session = ProgressiveSession(
            self.directory,
            early_exit=False,
            n_threads=self.n_threads,
            transformed=self.transformed,
        )
        kind = session.manifest["kind"]
        if kind != self._kind:
            raise ValueError(
                f"{type(self).__name__} needs the folder of a {self._kind}. "
                f"{self.directory} holds a {kind}."
            )
        self.session_ = session
        self.ensemble_ = _ExportedStages(session)
        stages = session.manifest["stages"]
        self.stage_costs_ = _stage_costs(stages)
        self.precisions_ = [stage.get("precision") for stage in stages]
        self.n_features_in_ = session.input_shape[0]
        names = session._export.feature_names
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        else:
            vars(self).pop("feature_names_in_", None)  # that of an earlier fit
        self._take(session._export)
        return self

    def _take(self, export):
        """Set what the estimators of this kind have."""

    def __len__(self):
        check_is_fitted(self)
        return self.session_.n_stages

    def _n_stages_used(self):
        n_stages = len(self)
        if self.n_stages is None:
            return n_stages
        if not (isinstance(self.n_stages, Integral) and 1 <= self.n_stages <= n_stages):
            raise ValueError(
                f"The 'n_stages' parameter of {type(self).__name__} must be None or an "
                f"int from 1 to {n_stages}, the number of stages in {self.directory}. "
                f"Got {self.n_stages!r} instead."
            )
        return int(self.n_stages)

    def _stage_states(self, X):
        session = self.session_
        for rows, x in session._chunks(session._checked(X)):
            yield rows, _SessionState(session, x)

    def _stage_scores(self, X):
        check_is_fitted(self)
        chunks = []
        for _, state in self._stage_states(X):
            means = []
            for _ in range(self._n_stages_used()):
                state.advance()
                means.append(state.mean.numpy())
            chunks.append(np.stack(means))
        return np.concatenate(chunks, axis=1)

    def predict(self, X):
        """Labels, or targets, after the last stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows as the session of the folder takes them.

        Returns
        -------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        return self._predicted(self._stage_scores(X)[-1])

    def staged_predict(self, X):
        """Labels, or targets, after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows as the session of the folder takes them.

        Yields
        ------
        predictions : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        for scores in self._stage_scores(X):
            yield self._predicted(scores)


class ExportedClassifier(ClassifierMixin, _BaseExported):
    """Classifier that predicts from a folder of exported stages.

    An early exit for the folder as it is, such as one of lower precision, is chosen by
    :class:`~skbdistil.early_exit.EarlyExitClassifier` around it, with the guarantees
    that this has, and is written by :func:`~skbdistil.export.to_onnx`.

    Parameters
    ----------
    directory : str or path-like
        Folder that :func:`~skbdistil.export.to_onnx` or
        :func:`~skbdistil.precision.lower_precision` has written. An early exit that it
        has is not used.

    n_stages : int or None, default=None
        Number of stages that predict, from 1 to those there are; None for all.

    n_threads : int or None, default=1
        Threads that a stage may use; None leaves it to onnxruntime.

    transformed : bool, default=False
        As for :class:`~skbdistil.runtime.ProgressiveSession`.

    Attributes
    ----------
    session_ : ProgressiveSession
        What predicts.

    classes_ : ndarray of shape (n_classes,)
        Labels.

    precisions_ : list of str
        Precision of each stage.

    stage_costs_ : :class:`~skbdistil.costs.StageCosts`
        What the manifest says of the stages, NaN where it does not.
        Multiply-accumulates count alike in all precisions, bytes of weights do not:
        ``cost="weight_bytes"`` is the unit in which stages of lower precision are
        cheaper. Other costs, such as operations weighted by `precisions_`, are stated
        by a callable.

    n_features_in_ : int
        First entry of the shape of a row.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where the folder has them.

    See Also
    --------
    skbdistil.precision.lower_precision : Writes folders of lower precision.
    skbdistil.runtime.ProgressiveSession : Predicts where there is no scikit-learn.

    Notes
    -----
    `fit` opens the folder and learns nothing, so that a clone has to be fitted as well.
    It cannot be saved by :func:`skbdistil.persistence.save`, being a folder already. A
    pickle holds the path.

    A folder does not say how its students are combined, so that the rule "agreement" is
    not available.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skbdistil import BDistilClassifier
    >>> from skbdistil.early_exit import EarlyExitClassifier
    >>> from skbdistil.export import to_onnx
    >>> from skbdistil.exported import ExportedClassifier
    >>> from skbdistil.precision import lower_precision
    >>> from skbdistil.runtime import ProgressiveSession
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = BDistilClassifier(n_estimators=2, max_epochs=20, random_state=0)
    >>> clf = clf.fit(X[:900], y[:900])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, lower, early = (Path(folder, name) for name in "abc")
    ...     to_onnx(clf, source)
    ...     report = lower_precision(source, lower, "int4")
    ...     exported = FrozenEstimator(ExportedClassifier(lower).fit())
    ...     to_onnx(
    ...         EarlyExitClassifier(exported, max_drop=0.05, delta=0.1).fit(X[900:]),
    ...         early,
    ...     )
    ...     stages = ProgressiveSession(early).exit_stages(X)
    >>> bool(stages.min() == 1)
    True
    """

    _kind = "classifier"

    # Not known, so that no rule may rely on it.
    combine_ = "unknown"

    def _take(self, export):
        self.classes_ = export.classes

    def _predicted(self, scores):
        return self.classes_[scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes after the last stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows as the session of the folder takes them.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        return label_probabilities(self._stage_scores(X)[-1])

    def decision_function(self, X):
        """Logits after the last stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows as the session of the folder takes them.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            For two classes, the log-odds of the second one.
        """
        return as_decision(self._stage_scores(X)[-1])

    def staged_predict_proba(self, X):
        """Probabilities of the classes after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows as the session of the folder takes them.

        Yields
        ------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        for scores in self._stage_scores(X):
            yield label_probabilities(scores)

    def staged_decision_function(self, X):
        """Logits after each stage.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows as the session of the folder takes them.

        Yields
        ------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
        """
        for scores in self._stage_scores(X):
            yield as_decision(scores)


class ExportedRegressor(RegressorMixin, _BaseExported):
    """Regressor that predicts from a folder of exported stages.

    As :class:`ExportedClassifier`, for
    :class:`~skbdistil.early_exit.EarlyExitRegressor`.

    Parameters
    ----------
    directory : str or path-like
        Folder that :func:`~skbdistil.export.to_onnx` or
        :func:`~skbdistil.precision.lower_precision` has written. An early exit that it
        has is not used.

    n_stages : int or None, default=None
        Number of stages that predict, from 1 to those there are; None for all.

    n_threads : int or None, default=1
        Threads that a stage may use; None leaves it to onnxruntime.

    transformed : bool, default=False
        As for :class:`~skbdistil.runtime.ProgressiveSession`.

    Attributes
    ----------
    session_ : ProgressiveSession
        What predicts.

    precisions_ : list of str
        Precision of each stage.

    stage_costs_ : :class:`~skbdistil.costs.StageCosts`
        As of :class:`ExportedClassifier`.

    target_mean_, target_scale_ : ndarray of shape (n_outputs,)
        What brings scores to the units of the targets.

    single_output_ : bool
        Whether predictions have one axis.

    n_features_in_ : int
        First entry of the shape of a row.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where the folder has them.

    See Also
    --------
    skbdistil.precision.lower_precision : Writes folders of lower precision.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_diabetes
    >>> from skbdistil import BDistilRegressor
    >>> from skbdistil.export import to_onnx
    >>> from skbdistil.exported import ExportedRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = BDistilRegressor(n_estimators=2, max_epochs=5, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(reg, Path(folder) / "diabetes")
    ...     exported = ExportedRegressor(Path(folder) / "diabetes").fit()
    ...     targets = exported.predict(X)
    >>> bool(abs(targets - reg.predict(X)).max() < 1e-2)
    True
    """

    _kind = "regressor"

    def _take(self, export):
        self.target_mean_ = export.target_mean
        self.target_scale_ = export.target_scale
        self.single_output_ = export.single_output

    def _predicted(self, scores):
        units = self.target_mean_, self.target_scale_, self.single_output_
        return in_units(scores, *units)


def _stage_costs(stages):
    """Costs of stages as their manifest states them."""

    def numbers(key):
        # What could not be counted is None there. Nobody else has checked the others.
        found = [stage.get(key) for stage in stages]
        return np.array([n if isinstance(n, Real) else np.nan for n in found])

    return StageCosts(
        macs=numbers("macs"),
        parameters=numbers("parameters"),
        weight_bytes=numbers("weight_bytes"),
        activation_bytes=np.array([_kept_bytes(stage) for stage in stages]),
    )


def _kept_bytes(stage):
    """Bytes per row of what later stages read beside the rows and the scores."""
    return sum(
        np.dtype(tensor["dtype"]).itemsize * int(np.prod(tensor["shape"]))
        for tensor in stage["outputs"][1:]
        if tensor["name"] != _SCALED
    )
