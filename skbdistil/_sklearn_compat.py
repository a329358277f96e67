"""Private names of scikit-learn that the package uses, all imported here.

None of them has a public path from scikit-learn 1.6 on. They may move or change with
any release, and what it takes to follow is done here.
"""

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

__all__ = [
    "BaseSearchCV",
    "HasMethods",
    "Interval",
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
