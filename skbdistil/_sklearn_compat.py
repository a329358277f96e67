"""Names of scikit-learn that are not the same in all of its releases.

Most are private: none of these has a public path from scikit-learn 1.6 on. They may
move or change with any release, and what it takes to follow is done here. Callbacks are
public, and new in 1.9; on older releases the stand-ins do nothing.
"""

from contextlib import nullcontext

from sklearn.base import _fit_context
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._validation import (
    _fit_and_score,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils import _safe_indexing
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    RealNotInt,
    StrOptions,
    validate_params,
)
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import (
    _check_method_params,
    _check_sample_weight,
    _check_y,
    _is_fitted,
    _num_samples,
)

try:
    from sklearn.utils._repr_html.estimator import _VisualBlock
except ImportError:  # scikit-learn 1.6
    from sklearn.utils._estimator_html_repr import _VisualBlock

try:
    from sklearn.callback import CallbackSupportMixin, ProgressBar
except ImportError:  # scikit-learn 1.6 to 1.8
    _fit_and_score_without_callbacks = _fit_and_score

    def _fit_and_score(*args, caller, callback_ctx, **options):
        return _fit_and_score_without_callbacks(*args, **options)

    class CallbackSupportMixin:
        """Gives a context without callbacks, and no `set_callbacks`."""

        def _init_callback_context(self, **options):
            return _NoCallbackContext()

    class ProgressBar:
        """Has no instances."""

    class _NoCallbackContext:
        def subcontext(self, **options):
            return self

        def call_on_fit_task_begin(self, **options):
            return self

        def call_on_fit_task_end(self, **options):
            return False

        def propagate_callback_context(self, sub_estimator):
            return nullcontext()


__all__ = [
    "BaseSearchCV",
    "CallbackSupportMixin",
    "HasMethods",
    "Interval",
    "ProgressBar",
    "RealNotInt",
    "StrOptions",
    "_BaseComposition",
    "_MultimetricScorer",
    "_VisualBlock",
    "_check_method_params",
    "_check_sample_weight",
    "_check_y",
    "_fit_and_score",
    "_fit_context",
    "_is_fitted",
    "_num_samples",
    "_safe_indexing",
    "_warn_or_raise_about_fit_failures",
    "check_matplotlib_support",
    "validate_params",
]
