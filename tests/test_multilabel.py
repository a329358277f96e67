"""Several labels per row: independent sigmoids, from the teacher to the export."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit, log_expit, logit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import make_multilabel_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from common import SMALL, raises, student_bits
from skbdistil import BDistilClassifier, DistillationObjective, TorchTeacher, distil
from skbdistil._decoding import LABELS, as_pairs, of_pairs, sigmoid
from skbdistil._label_scores import label_columns, label_logits
from skbdistil._teacher_scores import teacher_response
from skbdistil._teacher_targets import (
    mixed_with_labels,
    scores_of_labels,
    teacher_targets,
)
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import DoubtfulTeacherWarning, InvalidFileError
from skbdistil.inspection import AccuracyCostDisplay
from skbdistil.metrics import calibration_error
from skbdistil.model_selection import StagedSearchCV
from skbdistil.objectives import _binary_cross_entropy, _binary_kl, _JointLoss, _kl
from skbdistil.persistence import load, save
from skbdistil.students import MLP

L = 4


@pytest.fixture(scope="module")
def data():
    X, y = make_multilabel_classification(120, 6, n_classes=L, random_state=0)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def X(data):
    return data[0]


@pytest.fixture(scope="module")
def y(data):
    return data[1]


@pytest.fixture(scope="module")
def clf(X, y):
    return small(one_vs_rest()).fit(X, y)


def small(teacher=None, **params):
    return BDistilClassifier(teacher, **{**SMALL, **params})


def one_vs_rest():
    return OneVsRestClassifier(LogisticRegression())


def ask(teacher, X, y, **options):
    return teacher_response(
        teacher,
        X,
        y,
        regression=False,
        multilabel=True,
        dtype=np.float64,
        estimator_name="Owner",
        **options,
    )


# Predictions


def test_predictions_agree_with_the_scores(clf, X, y):
    scores = clf.decision_function(X)
    assert scores.shape == (len(X), L)
    assert_allclose(clf.predict_proba(X), expit(scores), rtol=1e-6)
    assert_allclose(clf.predict_log_proba(X), log_expit(scores), rtol=1e-6)
    assert_array_equal(clf.predict(X), clf.predict_proba(X) > 0.5)
    assert clf.predict(X).dtype.kind == "i"
    assert clf.score(X, y) == accuracy_score(y, clf.predict(X))


def test_two_labels_have_two_columns_of_scores(X, y):
    clf = small(one_vs_rest()).fit(X, y[:, :2])
    assert clf.decision_function(X).shape == clf.predict_proba(X).shape == (len(X), 2)


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "decision_function", "score"]
)
def test_last_stage_is_the_prediction(clf, X, y, method):
    rows = (X, y) if method == "score" else (X,)
    stages = list(getattr(clf, f"staged_{method}")(*rows))
    assert len(stages) == len(clf)
    assert_array_equal(stages[-1], getattr(clf, method)(*rows))
    first = clone(clf).set_params(n_stages=1)
    vars(first).update({k: v for k, v in vars(clf).items() if k.endswith("_")})
    assert_array_equal(stages[0], getattr(first, method)(*rows))


def test_fitted_attributes(clf):
    assert clf.multilabel_ is True
    assert_array_equal(clf.classes_, np.arange(L))
    assert clf.objective_.distillation == "bce"
    assert clf.student_edges_.shape == (len(clf), L)
    assert clf.__sklearn_tags__().classifier_tags.multi_label


def test_sigmoid_of_large_scores():
    scores = np.array([[-2000.0, -1.0, 0.0, 1.0, 2000.0]])
    assert_allclose(sigmoid(scores), expit(scores))
    assert_array_equal(LABELS.predict(scores, None), [[0, 0, 0, 1, 1]])


def test_pairs_are_two_classes_and_back(X):
    scores = X[:, :L]
    pairs = as_pairs(scores)
    assert_allclose(softmax(pairs, axis=1)[:, 1].reshape(-1, L), expit(scores))
    assert_allclose(of_pairs(pairs, L), scores)


# Labels


@pytest.mark.parametrize(
    "form", [np.ndarray.tolist, sparse.csr_matrix, np.float64, np.bool_]
)
def test_indicators_of_any_form(clf, X, y, form):
    assert student_bits(small(one_vs_rest()).fit(X, form(y))) == student_bits(clf)


@pytest.mark.parametrize(
    "values", [lambda y: y + 1, lambda y: 2 * y - 1, lambda y: y * 2 + np.arange(L)]
)
def test_fit_with_columns_that_are_no_indicators_raises(X, y, values):
    parts = "BDistilClassifier", "indicator matrix", str(y.shape), "MultiOutputClass"
    with raises(*parts):
        small().fit(X, values(y))


def test_fit_with_nan_in_y_raises(X, y):
    with raises("y contains NaN"):
        small().fit(X, np.where(y == 1, np.nan, 0.0))


def test_warm_start_with_another_kind_of_y_raises(X, y):
    clf = small(one_vs_rest(), warm_start=True).fit(X, y)
    bits = student_bits(clf)
    for other, message in [
        (y[:, 0], "With warm_start=True"),
        (y[:, :2], "the classes of the earlier fit"),
    ]:
        with raises(message):
            clf.set_params(n_estimators=4).fit(X, other)
        assert student_bits(clf) == bits
    assert len(clf.fit(X, y)) == 4


def test_warm_start_goes_on_as_one_longer_fit(X, y):
    clf = small(one_vs_rest(), warm_start=True, n_estimators=2, eta=0.01).fit(X, y)
    clf.set_params(n_estimators=3).fit(X, y)
    longer = small(one_vs_rest(), eta=0.01).fit(X, y)
    assert_allclose(clf.decision_function(X), longer.decision_function(X), rtol=1e-4)


# Teachers


@pytest.mark.parametrize(
    "teacher",
    [
        RandomForestClassifier(5, min_samples_leaf=5),
        DecisionTreeClassifier(max_depth=2),
        KNeighborsClassifier(7),
        MLPClassifier((4,), max_iter=40, early_stopping=True),
        one_vs_rest(),
        MultiOutputClassifier(LogisticRegression()),
        ClassifierChain(LogisticRegression()),
        make_pipeline(StandardScaler(), one_vs_rest()),
    ],
    ids=lambda teacher: type(teacher).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scores_of_teachers_are_those_of_their_probabilities(teacher, X, y):
    teacher = teacher.fit(X, y)
    proba = teacher.predict_proba(X)
    if isinstance(proba, list):
        proba = np.stack([of_label[:, 1] for of_label in proba], axis=1)
    response = ask(FrozenEstimator(teacher), X, y)
    assert_allclose(expit(response.scores), 0.999 * proba + 0.0005)
    assert_array_equal(response.classes, np.arange(L))


@pytest.mark.parametrize(
    "teacher", [RidgeClassifier(), OneVsRestClassifier(LinearSVC())]
)
def test_scores_of_teachers_without_probabilities(teacher, X, y):
    teacher = teacher.fit(X, y)
    response = ask(FrozenEstimator(teacher), X, y)
    assert_allclose(response.scores, teacher.decision_function(X))


def test_teacher_that_says_labels_only(X, y):
    teacher = MultiOutputClassifier(LinearSVC()).fit(X, y)
    scores = ask(FrozenEstimator(teacher), X, y).scores
    assert_array_equal(scores > 0, teacher.predict(X))
    assert_allclose(np.abs(scores), logit(1.05 / 1.1))


def test_kinds_of_teachers_with_equal_scores_give_equal_students(X, y):
    module = nn.Linear(X.shape[1], L).double()
    fitted = one_vs_rest().fit(X, y).estimators_
    with torch.no_grad():
        for name, value in (("coef_", module.weight), ("intercept_", module.bias)):
            values = np.concatenate([getattr(label, name) for label in fitted])
            value.copy_(torch.from_numpy(values))
        scores = module(torch.from_numpy(X)).numpy()
    params = {"dtype": "float64"}
    fitted = [
        small(module, **params).fit(X, y),
        small("precomputed", **params).fit(X, y, teacher_scores=scores),
        small(TorchTeacher(module), **params).fit(X, y),
    ]
    assert len({student_bits(clf) for clf in fitted}) == 1
    proba = TorchTeacher(nn.Sequential(module, nn.Sigmoid()), output="proba")
    smoothed = ask(proba, X, y).scores
    assert_allclose(expit(smoothed), 0.999 * expit(scores) + 0.0005)


def test_label_that_a_teacher_has_not_seen_is_improbable(X, y):
    never = y.copy()
    never[:, 1], never[:, 2] = 0, 1
    teacher = RandomForestClassifier(3, random_state=0).fit(X, never)
    proba = expit(ask(FrozenEstimator(teacher), X, y).scores)
    assert_allclose(proba[:, 1], 0.0005)
    assert_allclose(proba[:, 2], 0.9995)
    assert_array_equal(label_columns([np.ones((3, 1))], [np.array([0])]), 0)


def test_teacher_with_another_number_of_labels_raises(X, y):
    with raises("Owner", "each of the 4 labels", "2 columns", "teacher_scores"):
        ask("precomputed", X, y, teacher_scores=np.zeros((len(X), 2)))


def test_teacher_of_classes_raises(X, y):
    teacher = LogisticRegression().fit(X, y[:, 0] + 2 * y[:, 1])
    with raises("Owner", "indicator matrix of the 4 labels", "LogisticRegression"):
        ask(FrozenEstimator(teacher), X, y)


def test_teacher_whose_scores_are_not_what_it_predicts_raises(X, y):
    class Swapped(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.arange(y.shape[1])
            return self

        def decision_function(self, X):
            return np.ones((len(X), L))

        def predict(self, X):
            return np.zeros((len(X), L), int)

    with raises("Owner", "positive for the labels", "Swapped", "400 of 400 labels"):
        ask(Swapped(), X, y)


def test_values_that_are_no_probabilities_raise(X):
    values = X[:, :L]
    with raises("Owner", "range [0, 1]", "Net", 'output="logits"'):
        label_logits(
            values, proba=True, smoothing=1e-3, name="Net", estimator_name="Owner"
        )


def test_logits_that_look_like_probabilities_warn(X, y):
    with pytest.warns(DoubtfulTeacherWarning, match=r"teacher_scores.*range \[0, 1\]"):
        small("precomputed").fit(X, y, teacher_scores=0.2 + 0.6 * y)


def test_trained_teacher_that_tells_nothing_warns(X, y):
    with pytest.warns(DoubtfulTeacherWarning, match="no higher for the labels"):
        small("precomputed").fit(X, y, teacher_scores=1.0 - 2 * y)


def test_teacher_score_is_subset_accuracy(X, y):
    teacher = one_vs_rest().fit(X, y)
    clf = small(FrozenEstimator(teacher)).fit(X, y)
    assert clf.teacher_score_ == teacher.score(X, y)
    assert clf.teacher_score_kind_ == "unknown"


def test_teacher_out_of_fold_has_not_seen_the_row(X, y):
    cv = GroupKFold(3)
    groups = np.arange(len(X)) // 40
    options = {"regression": False, "multilabel": True, "estimator_name": "Owner"}
    response, _ = teacher_targets(
        one_vs_rest(), X, y, cv=cv, groups=groups, random_state=0, **options
    )
    assert response.kind == "out-of-fold"
    for train, test in cv.split(X, y, groups):
        teacher = one_vs_rest().fit(X[train], y[train])
        proba = 0.999 * teacher.predict_proba(X[test]) + 0.0005
        assert_allclose(expit(response.scores[test]), proba, rtol=1e-4)


def test_teacher_that_knows_rows_by_heart_is_asked_out_of_fold(X, y):
    with pytest.warns(DoubtfulTeacherWarning, match="out of 5 folds"):
        clf = small(KNeighborsClassifier(1)).fit(X, y)
    assert clf.teacher_score_kind_ == "out-of-fold"
    assert clf.label_mix_ in (0.5, 1.0)


def test_several_teachers_are_averaged(X, y):
    teachers = [one_vs_rest().fit(X, y), KNeighborsClassifier(7).fit(X, y)]
    scores, mean = [], 0
    for teacher in teachers:
        scores.append(expit(ask(FrozenEstimator(teacher), X, y).scores))
        mean = mean + scores[-1] / 2
    options = {"regression": False, "multilabel": True, "estimator_name": "Owner"}
    response, _ = teacher_targets(
        [FrozenEstimator(teacher) for teacher in teachers],
        X,
        y,
        cv=None,
        random_state=0,
        **options,
    )
    assert_allclose(expit(response.scores), mean, rtol=1e-4)


# Objectives


def test_binary_kl_is_that_of_two_classes_for_each_label(X, y):
    teacher, scores = torch.from_numpy(X[:, :L]), torch.from_numpy(X[:, 1 : L + 1])
    rows, gradient = _binary_kl(teacher, scores, 2.0)
    of_pairs_, _ = _kl(
        *(torch.from_numpy(as_pairs(part.numpy())) for part in (teacher, scores)), 2.0
    )
    assert_allclose(rows, of_pairs_.reshape(-1, L).mean(1), atol=1e-12)
    scores.requires_grad_()
    _binary_kl(teacher, scores, 2.0)[0].sum().backward()
    assert_allclose(gradient, scores.grad, atol=1e-12)
    at_teacher, none = _binary_kl(teacher, teacher, 2.0)
    assert_allclose(at_teacher, 0, atol=1e-12)
    assert_allclose(none, 0, atol=1e-12)


def test_label_term_is_the_log_loss_of_known_labels(X, y):
    scores, label = torch.from_numpy(X[:, :L]).requires_grad_(), torch.from_numpy(y)
    rows, gradient = _binary_cross_entropy(label, scores)
    expected = log_loss(y.ravel(), expit(X[:, :L]).ravel())
    assert_allclose(rows.mean().item(), expected)
    rows.sum().backward()
    assert_allclose(gradient.detach(), scores.grad)
    unknown = torch.full_like(label, -1)
    for part in _binary_cross_entropy(unknown, scores):
        assert not part.any()


def test_loss_held_out_is_that_of_the_best_temperature(X, y):
    loss = _JointLoss(DistillationObjective("bce"), False, multilabel=True)
    target = {"label": torch.from_numpy(y)}
    scores = torch.from_numpy(X[:, :L] + 2 * y)
    assert_allclose(
        loss.held_out(scores, target), loss.held_out(5 * scores, target), rtol=1e-3
    )


@pytest.mark.parametrize(
    "objective",
    [
        "bce",
        "squared_error+barrier",
        "barrier",
        DistillationObjective("bce", on="student", temperature=2.0, alpha=0.5),
    ],
)
def test_objectives(X, y, objective):
    scores = small(one_vs_rest(), objective=objective).fit(X, y).decision_function(X)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(("name", "n_labels"), [("kl", L), ("bce", 1)])
def test_objective_of_the_other_kind_raises(X, y, name, n_labels):
    labels = y if n_labels > 1 else y[:, 0]
    with raises("'objective'", "BDistilClassifier", f"distillation='{name}'"):
        small(objective=name).fit(X, labels)


def test_students_follow_the_teacher(X, y):
    params = {"student": partial(MLP, hidden=(16,)), "max_epochs": 60}
    clf = small(one_vs_rest(), **params).fit(X, y)
    teacher = one_vs_rest().fit(X, y)
    assert np.mean(clf.predict(X) == teacher.predict(X)) > 0.95


# Labels in what is learnt


def test_mixture_is_that_of_probabilities(X, y):
    mixed = mixed_with_labels(X[:, :L], y, 0.25)
    assert_allclose(expit(mixed), 0.75 * expit(X[:, :L]) + 0.25 * y)


def test_scores_of_labels_are_no_larger_than_those_of_the_teacher(X, y):
    scores = scores_of_labels(y, X[:, :L])
    assert_array_equal(scores > 0, y == 1)
    assert np.abs(scores).max() <= np.abs(X[:, :L]).max() * (1 + 1e-12)


def test_rows_that_the_teacher_was_not_asked_about_teach_their_labels(X, y):
    scores = np.where(np.arange(len(X))[:, None] % 2, 4.0 * y - 2, np.nan)
    clf = small("precomputed").fit(X, y, teacher_scores=scores)
    every = small("precomputed").fit(X, y, teacher_scores=4.0 * y - 2)
    assert clf.teacher_calls_ == len(X) // 2
    assert_allclose(clf.predict_proba(X), every.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {"refine": "final"},
        {"refine": "only"},
        {"early_stopping": True, "label_mix": 0.5},
        {"augment": "munge", "objective": DistillationObjective("bce", alpha=1.0)},
        {"class_weight": "balanced"},
    ],
    ids=str,
)
def test_parameters_of_the_fit(X, y, params):
    clf = small(one_vs_rest(), **params).fit(X, y)
    assert_array_equal(clf.predict(X), clf.predict_proba(X) > 0.5)


def test_class_weight_is_a_product_over_labels(X, y):
    sample_weight = np.prod(
        [np.where(c == 1, 0.5 / c.mean(), 0.5 / (1 - c.mean())) for c in y.T], axis=0
    )
    teacher = FrozenEstimator(one_vs_rest().fit(X, y))
    balanced = small(teacher, class_weight="balanced").fit(X, y)
    weighted = small(teacher).fit(X, y, sample_weight=sample_weight)
    assert_allclose(balanced.predict_proba(X), weighted.predict_proba(X), rtol=1e-4)


def test_class_weight_of_classes_raises(X, y):
    with raises("'class_weight'", "BDistilClassifier", "'balanced' or None", "{1: 2}"):
        small(class_weight={1: 2}).fit(X, y)


# Around the estimator


def test_multi_output_classifier_has_an_ensemble_for_each_label(X, y):
    clf = small(LogisticRegression(), max_epochs=20)
    several = MultiOutputClassifier(clf).fit(X, y)
    assert len(several.estimators_) == L
    assert several.score(X, y) > 0.3


def test_search_and_cross_validation(X, y):
    clf = small(one_vs_rest())
    search = StagedSearchCV(clf, {"learning_rate": [0.01, 0.02]}, cv=2).fit(X, y)
    assert search.predict(X).shape == y.shape
    assert search.score(X, y) == accuracy_score(y, search.predict(X))
    assert len(cross_val_score(clf, X, y, cv=2, scoring="f1_macro")) == 2


def test_curve_is_of_the_scores_of_the_stages(clf, X, y):
    pytest.importorskip("matplotlib").use("Agg")
    display = AccuracyCostDisplay.from_estimator(clf, X, y)
    assert_allclose(np.ravel(display.scores), list(clf.staged_score(X, y)))


def test_saved_and_loaded(clf, X, tmp_path):
    save(clf, tmp_path / "clf.skb")
    loaded = load(tmp_path / "clf.skb")
    assert loaded.multilabel_ is True
    assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert_array_equal(loaded.predict(X), clf.predict(X))


@pytest.fixture(scope="module")
def exported(clf, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from skbdistil.export import to_onnx

    folder = tmp_path_factory.mktemp("exported") / "clf"
    to_onnx(clf, folder, fixed_stage=len(clf))
    return folder


@pytest.mark.parametrize("n_stages", [None, 2])
def test_session_is_the_estimator(clf, X, exported, n_stages):
    from skbdistil.runtime import ProgressiveSession

    session = ProgressiveSession(exported, n_stages=n_stages)
    stage = len(clf) if n_stages is None else n_stages
    fitted = clf[:stage]
    x = X.astype(np.float32)
    assert session.manifest["kind"] == "multilabel_classifier"
    assert_array_equal(session.classes_, clf.classes_)
    assert_array_equal(session.predict(x), fitted.predict(x))
    for method in ("predict_proba", "decision_function"):
        expected = getattr(fitted, method)(x)
        assert_allclose(getattr(session, method)(x), expected, atol=1e-5)
    for found, expected in zip(
        session.staged_predict_proba(x), fitted.staged_predict_proba(x), strict=True
    ):
        assert_allclose(found, expected, atol=1e-5)


def test_manifest_of_labels_with_a_rule_of_exit_is_refused(exported, tmp_path):
    import json
    import shutil

    from skbdistil.runtime import ProgressiveSession

    folder = shutil.copytree(exported, tmp_path / "edited")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["early_exit"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with raises("rule of exit", "multilabel_classifier", error=InvalidFileError):
        ProgressiveSession(folder)


# What needs one label per row


def test_early_exit_raises(clf, X, y):
    parts = "EarlyExitClassifier takes one label per row", "n_stages", "MultiOutput"
    with raises(*parts):
        EarlyExitClassifier(small()).fit(X, y)
    with raises(*parts):
        EarlyExitClassifier(FrozenEstimator(clf)).fit(X, y[:, 0])


def test_distil_raises(X, y):
    with raises("distil takes one label per row", "indicator matrix", str(y.shape)):
        distil(one_vs_rest(), X, y)


def test_calibration_error_raises(clf, X, y):
    with raises("several labels per row", "np.c_[1 - p, p]"):
        calibration_error(y, clf.predict_proba(X))
