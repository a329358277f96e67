"""Scores in and out of fold, of one teacher or several, and labels mixed into them."""

import warnings
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.datasets import make_classification
from sklearn.ensemble import ExtraTreesRegressor, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from common import SMALL, raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil._teacher_targets import (
    mixed_with_labels,
    scores_of_labels,
    teacher_targets,
)
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.students import MLP
from skbdistil.teachers import scores_from_labels

ByHeart = KNeighborsClassifier(5, weights="distance")


@pytest.fixture
def X():
    return np.random.RandomState(0).randn(90, 3)


@pytest.fixture
def y(X):
    noise = np.random.RandomState(1).randn(90)
    return np.array(["a", "b", "c"])[np.digitize(X[:, 0] + noise, [-0.7, 0.7])]


def asked(teacher, X, y, cv="auto", **options):
    """Response and warnings."""
    options = {"regression": False, "random_state": 0, **options}
    return teacher_targets(teacher, X, y, cv=cv, estimator_name="Distiller", **options)


def proba(response):
    return softmax(response.scores.astype(np.float64), axis=1)


# Out of fold


@pytest.mark.parametrize("cv", [KFold(4), StratifiedKFold(3)])
def test_scores_out_of_fold_are_those_of_cross_val_predict(X, y, cv):
    teacher = LogisticRegression()
    response, notes = asked(teacher, X, y, cv=cv)
    expected = cross_val_predict(teacher, X, y, cv=cv, method="predict_proba")
    assert_allclose(proba(response), expected, atol=1e-3)
    assert_array_equal(response.classes, ["a", "b", "c"])
    assert response.kind == "out-of-fold"
    assert response.n_calls == len(X)
    assert notes == []


def test_values_out_of_fold_are_those_of_cross_val_predict(X):
    y = X[:, :2] @ [[1.0, 2.0], [3.0, 4.0]]
    response, _ = asked(Ridge(), X, y, cv=KFold(3), regression=True, dtype=float)
    expected = cross_val_predict(Ridge(), X, y, cv=KFold(3))
    assert_allclose(response.scores, expected)
    assert not response.single_output


def test_folds_of_an_int_are_shuffled_and_stratified(X, y):
    order = np.argsort(y)
    X, y = X[order], y[order]
    response, _ = asked(LogisticRegression(), X, y, cv=3)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    expected = cross_val_predict(
        LogisticRegression(), X, y, cv=folds, method="predict_proba"
    )
    assert_allclose(proba(response), expected, atol=1e-3)


def test_sample_weights_go_with_the_rows_of_a_fold(X, y):
    weight = np.random.RandomState(2).rand(len(X))
    folds = list(KFold(3).split(X))
    response, _ = asked(LogisticRegression(), X, y, cv=folds, sample_weight=weight)
    for train, test in folds:
        model = LogisticRegression().fit(
            X[train], y[train], sample_weight=weight[train]
        )
        assert_allclose(proba(response)[test], model.predict_proba(X[test]), atol=1e-3)


@pytest.mark.parametrize("cv", [3, GroupKFold(3)])
def test_rows_of_a_group_are_in_one_fold(X, y, cv):
    groups = np.arange(len(X)) % 9

    class Seen(ClassifierMixin, BaseEstimator):
        """Says whether it has seen the group of a row, which is its last column."""

        def fit(self, X, y):
            self.classes_ = np.unique(y)
            self.groups_ = set(X[:, -1])
            return self

        def predict_proba(self, X):
            seen = np.array([group in self.groups_ for group in X[:, -1]])
            return np.column_stack([seen, ~seen, np.zeros(len(X))]).astype(float)

    rows = np.column_stack([X, groups])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response, _ = asked(Seen(), rows, y, cv=cv, groups=groups)
    assert (response.scores.argmax(axis=1) == 1).all()


def test_transfer_rows_are_answered_by_the_teacher_of_all_rows(X, y):
    others = np.random.RandomState(3).randn(7, 3)
    response, _ = asked(
        LogisticRegression(), X, y, cv=3, transfers=[others, others[:2]]
    )
    expected = LogisticRegression().fit(X, y).predict_proba(others)
    found = softmax(response.transfer_scores, axis=1)
    assert_allclose(found, np.concatenate([expected, expected[:2]]), atol=1e-3)
    assert response.n_calls == len(X) + 9


# Automatic


def test_teacher_that_knows_its_rows_by_heart_is_asked_out_of_fold(X, y):
    response, (note,) = asked(ByHeart, X, y)
    assert response.kind == "out-of-fold"
    assert isinstance(note, DoubtfulTeacherWarning)
    assert "KNeighborsClassifier" in str(note)
    explicit, notes = asked(ByHeart, X, y, cv=5)
    assert_array_equal(response.scores, explicit.scores)
    assert notes == []
    # Its own rows, and each row by the fold that has not seen it.
    assert (explicit.n_calls, response.n_calls) == (len(X), 2 * len(X))


def test_regressor_that_knows_its_rows_by_heart_is_asked_out_of_fold(X):
    y = X[:, 0] + np.random.RandomState(1).randn(len(X))
    teacher = KNeighborsRegressor(5, weights="distance")
    response, (note,) = asked(teacher, X, y, regression=True)
    assert response.kind == "out-of-fold"
    assert isinstance(note, DoubtfulTeacherWarning)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_teacher_that_is_as_sure_of_other_rows_is_asked_in_sample(order):
    X = np.random.RandomState(0).randn(100, 1)
    X = np.sort(X, axis=0) if order == "sorted" else X
    y = (X[:, 0] > 0).astype(int)
    X[:, 0] += np.where(y, 5, -5)
    response, notes = asked(ByHeart, X, y)
    assert response.kind == "in-sample"
    assert notes == []


def test_teacher_that_doubts_its_own_rows_is_asked_once(X, y):
    response, notes = asked(LogisticRegression(), X, y)
    assert (response.kind, response.n_calls) == ("in-sample", len(X))
    assert notes == []


def test_default_regressor_of_sorted_duplicates_is_asked_in_sample():
    X = np.repeat(np.arange(4.0), 10)[:, None]
    response, notes = asked(None, X, X[:, 0], regression=True)
    assert response.kind == "in-sample"
    assert notes == []


def test_class_of_one_row_leaves_the_scores_in_sample_with_a_warning(X, y):
    y = y.astype("<U4")
    y[0] = "rare"
    response, (note,) = asked(ByHeart, X, y)
    assert response.kind == "in-sample"
    assert "rare" in str(note)
    with raises("teacher_cv", "Distiller", "none of rare in fold"):
        asked(ByHeart, X, y, cv=3)


def test_fewer_rows_of_a_class_than_folds_make_fewer_folds(X, y):
    y = y.astype("<U4")
    y[:3] = "rare"
    response, _ = asked(LogisticRegression(), X, y, cv=5)
    assert response.kind == "out-of-fold"
    assert np.isfinite(response.scores).all()


# Teachers that came trained


def test_trained_teacher_that_is_sure_of_all_rows_is_doubted(X, y):
    teacher = FrozenEstimator(clone(ByHeart).fit(X, y))
    response, (note,) = asked(teacher, X, y)
    assert response.kind == "unknown"
    assert isinstance(note, DoubtfulTeacherWarning)
    assert "no more than y does" in str(note)
    _, notes = asked(teacher, X + 0.5, y)
    assert notes == []


def test_folds_for_a_teacher_that_came_trained_are_refused(X, y):
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    with raises("teacher_cv", "Distiller", "'auto' or None", "Got 3"):
        asked(teacher, X, y, cv=3)
    with raises("teacher_cv"):
        asked("precomputed", X, y, cv=3, teacher_scores=np.zeros((len(X), 3)))


# Bad folds


def test_folds_that_hold_some_labels_only_are_no_questions_of_yes_and_no():
    rng = np.random.RandomState(0)
    X = np.concatenate([rng.normal(mean, 0.1, (20, 1)) for mean in (0, 10, 0, 5, 10)])
    y = np.repeat([0, 1, 0, 1, 2], 20)
    X, y = np.r_[X, X[40:]], np.r_[y, y[40:]]
    groups = np.repeat([0, 1, 2], [40, 60, 60])
    response, _ = asked(LogisticRegression(), X, y, cv=GroupKFold(3), groups=groups)
    assert response.kind == "out-of-fold"


@pytest.mark.parametrize("n_samples", [3, 4])
def test_too_few_rows_for_the_automatic_folds_leave_the_scores_in_sample(n_samples):
    X = np.arange(float(n_samples))[:, None]
    teacher = KNeighborsRegressor(1)
    response, (note,) = asked(teacher, X, X[:, 0] ** 2, regression=True)
    assert response.kind == "in-sample"
    assert f"cannot be made of {n_samples} rows" in str(note)


def test_folds_of_a_generator_serve_several_teachers_and_no_second_fit(X, y):
    folds = KFold(3, shuffle=True, random_state=0).split(X)
    clf = BDistilClassifier([ByHeart, LogisticRegression()], teacher_cv=folds, **SMALL)
    assert clf.fit(X, y).teacher_score_kind_ == "out-of-fold"
    with raises("teacher_cv", "Got 0 in 0 folds"):
        clf.fit(X, y)


def test_given_folds_are_those_of_the_rows_with_weight(X, y):
    weight = np.ones(len(X))
    weight[:10] = 0
    folds = list(KFold(3, shuffle=True, random_state=0).split(X))
    left = [tuple(rows[rows >= 10] - 10 for rows in fold) for fold in folds]
    clf = BDistilClassifier(LogisticRegression(), teacher_cv=folds, **SMALL)
    found = clone(clf).fit(X, y, sample_weight=weight)
    other = clone(clf).set_params(teacher_cv=left)
    other.fit(X[10:], y[10:], sample_weight=weight[10:])
    assert student_bits(found) == student_bits(other)


def test_folds_that_do_not_hold_each_row_once_are_refused(X, y):
    with raises("teacher_cv", "each of the 90 rows once", "Got 18 in 2 folds"):
        asked(LogisticRegression(), X, y, cv=ShuffleSplit(2, random_state=0))


def test_folds_without_rows_of_a_class_are_refused(X, y):
    order = np.argsort(y)
    with raises("teacher_cv", "none of a in fold 1"):
        asked(LogisticRegression(), X[order], y[order], cv=KFold(3))


def test_teacher_that_fails_in_one_fold_says_in_which(X, y):
    class Picky(LogisticRegression):
        def fit(self, X, y, sample_weight=None):
            if 99 not in X:
                raise ValueError("there is no 99")
            return super().fit(X, y, sample_weight)

    X[40, 0] = 99
    with raises("In fold 2 of 'teacher_cv'", "Picky", "there is no 99"):
        asked(Picky(), X, y, cv=KFold(3))


# Several teachers


def test_teachers_are_averaged_by_their_probabilities(X, y):
    models = [LogisticRegression(C=C).fit(X, y) for C in (0.01, 100)]
    response, _ = asked([FrozenEstimator(model) for model in models], X, y)
    expected = np.mean([model.predict_proba(X) for model in models], axis=0)
    assert_allclose(proba(response), expected, atol=1e-3)
    assert response.n_calls == 2 * len(X)
    assert response.name == "LogisticRegression and LogisticRegression"


def test_teachers_out_of_fold_weigh_what_they_are_better_than_a_constant(X, y):
    class Constant(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_, counts = np.unique(y, return_counts=True)
            self.shares_ = counts / len(y)
            return self

        def predict_proba(self, X):
            return np.tile(self.shares_, (len(X), 1))

    alone, _ = asked(LogisticRegression(), X, y, cv=KFold(3))
    both, _ = asked([Constant(), LogisticRegression()], X, y, cv=KFold(3))
    assert_allclose(proba(both), proba(alone), atol=1e-5)


def test_regressors_are_averaged_with_their_transfer_rows(X):
    y = X[:, 0]
    models = [FrozenEstimator(Ridge(alpha).fit(X, y)) for alpha in (0.1, 100)]
    response, _ = asked(models, X, y, regression=True, transfers=[X[:4]], dtype=float)
    expected = np.mean([model.predict(X) for model in models], axis=0)
    assert_allclose(response.scores[:, 0], expected)
    assert_allclose(response.transfer_scores[:, 0], expected[:4])


@pytest.mark.parametrize("teachers", [[], [LogisticRegression(), "precomputed"]])
def test_list_that_is_none_of_teachers_is_refused(X, y, teachers):
    with raises("'teacher'", "Distiller", "list of teachers"):
        asked(teachers, X, y)


def test_teachers_of_other_classes_are_refused(X, y):
    other = FrozenEstimator(LogisticRegression().fit(X, np.char.add(y, "!")))
    with raises("must have the same classes", "Distiller"):
        asked([FrozenEstimator(LogisticRegression().fit(X, y)), other], X, None)


def test_teachers_of_one_kind_have_seeds_of_their_own(X, y):
    forest = RandomForestClassifier(5)
    alone, _ = asked([forest], X, y)
    several, _ = asked([forest] * 3, X, y)
    assert np.abs(alone.scores - several.scores).max() > 0.1


def test_weights_of_teachers_are_of_the_weighted_rows():
    X = np.random.RandomState(0).randn(400, 2)
    counts = np.arange(400) % 4 == 0
    y = np.where(counts, X[:, 0] > 0, X[:, 1] > 0).astype(int)
    weight = np.where(counts, 1000.0, 1.0)
    reads = [
        make_pipeline(
            FunctionTransformer(partial(np.take, indices=[column], axis=1)),
            LogisticRegression(),
        )
        for column in (0, 1)
    ]
    first, _ = asked(reads[0], X, y, cv=3, sample_weight=weight)
    both, _ = asked(reads, X, y, cv=3, sample_weight=weight)
    assert np.abs(proba(both) - proba(first)).max() < 0.05


def test_trained_teachers_go_with_others_that_are_asked_out_of_fold(X, y):
    trained = FrozenEstimator(LogisticRegression().fit(X, y))
    response, _ = asked([trained, LogisticRegression()], X, y, cv=3)
    assert response.kind == "mixed"


# Labels mixed in


def test_mixed_probabilities_are_between_teacher_and_label():
    scores = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    mixed = mixed_with_labels(scores, np.array([1, 2]), 0.25)
    expected = [[0.525, 0.4, 0.075], [0.075, 0.075, 0.85]]
    assert_allclose(softmax(mixed, axis=1), expected)
    assert_allclose(mixed.sum(axis=1), 0, atol=1e-12)


def test_mixed_values_are_between_teacher_and_target():
    mixed = mixed_with_labels(np.array([[1.0, 2.0]]), np.array([[3.0, 2.0]]), 0.25)
    assert_allclose(mixed, [[1.5, 2.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mixing_labels_keeps_the_dtype_and_is_finite_for_a_sure_teacher(dtype):
    scores = np.array([[300.0, -300.0]], dtype)
    mixed = mixed_with_labels(scores, np.array([1]), 0.5)
    assert mixed.dtype == dtype
    assert_allclose(softmax(mixed, axis=1), [[0.5, 0.5]])


def test_scores_of_labels_are_those_of_a_sure_teacher(X, y):
    class Sure(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, X):
            return np.eye(3)[np.arange(len(X)) % 3]

    response, _ = asked(FrozenEstimator(Sure().fit(X, y)), X, None)
    found = scores_of_labels(np.arange(len(X)) % 3, response.scores)
    assert_allclose(found, response.scores, rtol=1e-4)


def test_scores_of_labels_are_no_larger_than_those_of_the_teacher():
    known = np.array([[0.1, -0.1], [0.05, -0.05]])
    assert_allclose(
        scores_of_labels(np.array([1, 0]), known), [[-0.1, 0.1], [0.1, -0.1]]
    )


# In the estimators


def test_students_of_a_teacher_that_knows_its_rows_are_better_than_it():
    """The nearest neighbours of the docs: mixed with labels, out of fold."""
    X, y = make_classification(
        1600, 20, n_informative=8, n_classes=3, class_sep=0.7, random_state=0
    )
    X, X_test, y, y_test = X[:800], X[800:], y[:800], y[800:]
    teacher = KNeighborsClassifier(25, weights="distance")
    clf = BDistilClassifier(teacher, n_estimators=2, max_epochs=10, random_state=0)
    with pytest.warns(DoubtfulTeacherWarning, match="by heart"):
        clf.fit(X, y)
    assert clf.teacher_score_kind_ == "out-of-fold"
    assert clf.label_mix_ == 0.5
    honest = clone(teacher).fit(X, y).score(X_test, y_test)
    assert abs(clf.teacher_score_ - honest) < 0.05
    losses = [log_loss(y_test, proba) for proba in clf.staged_predict_proba(X_test)]
    assert max(losses) < log_loss(
        y_test, clone(teacher).fit(X, y).predict_proba(X_test)
    )


# Teacher and labels differ so much that a student may fit neither.
@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.WeakLearnerNotFoundWarning")
@pytest.mark.parametrize("augment", [None, "spunge"])
def test_students_of_a_teacher_that_is_worse_than_labels_learn_labels(augment):
    X = np.random.RandomState(0).randn(400, 40)
    y = (X[:, 0] > 0).astype(int)
    clf = BDistilClassifier(
        ByHeart,
        augment=augment,
        student=partial(MLP, hidden=(4,)),
        n_estimators=2,
        max_epochs=10,
        random_state=0,
    )
    with pytest.warns(DoubtfulTeacherWarning) as notes:
        clf.fit(X, y)
    said = "".join(str(note.message) for note in notes)
    assert "by heart" in said
    assert "So they learn the labels" in said
    assert ("better off without these rows" in said) == (augment is not None)
    assert (clf.label_mix_, clf.teacher_score_kind_) == (1.0, "out-of-fold")
    assert clf.teacher_score_ < 0.8
    # The scores of labels are as large as those of the teacher are, out of fold.
    scores, _ = asked(ByHeart, X, y, cv=5, random_state=0)
    assert clf.teacher_bound_ <= np.abs(scores.scores).max() + 1e-3


def by_heart(**params):
    return BDistilClassifier(ByHeart, **{**SMALL, **params})


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_weights_of_classes_go_with_labels_of_any_kind(X, y):
    weight = {"a": 3.0, "b": 1.0, "c": 2.0}
    clf = by_heart(class_weight=weight).fit(X, y)
    other = by_heart().fit(X, y, sample_weight=[weight[label] for label in y])
    # Neighbours take no weights, so that only students could differ.
    assert student_bits(clf) == student_bits(other)
    assert clf.label_mix_ == other.label_mix_


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_interruption_while_labels_are_tried_is_one_of_the_fit(X, y, monkeypatch):
    clf = by_heart()
    fit = BDistilClassifier.fit

    def interrupted(self, *args, **kwargs):
        fitted = fit(self, *args, **kwargs)
        fitted.interrupted_ = self is not clf
        return fitted

    monkeypatch.setattr(BDistilClassifier, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert not hasattr(clf, "ensemble_")


@pytest.mark.filterwarnings("ignore::skbdistil.exceptions.DoubtfulTeacherWarning")
def test_labels_for_which_no_student_can_be_trained_are_not_learnt(X, y, monkeypatch):
    clf = by_heart()
    fit = BDistilClassifier.fit

    def fails_for_labels(self, X, y, sample_weight=None, teacher_scores=None, **kwargs):
        if self is not clf and len(np.unique(teacher_scores.round(4))) == 2:
            raise ValueError("no weak learner in round 1")
        return fit(self, X, y, sample_weight, teacher_scores, **kwargs)

    monkeypatch.setattr(BDistilClassifier, "fit", fails_for_labels)
    assert clf.fit(X, y).label_mix_ == 0.5


def test_warm_start_keeps_the_share_of_labels(X, y):
    clf = BDistilClassifier(LogisticRegression(), label_mix=0.25, eta=0.1, **SMALL)
    clf.fit(X, y).set_params(label_mix="auto", warm_start=True, n_estimators=4)
    assert clf.fit(X, y).label_mix_ == 0.25


def test_teacher_score_is_of_scores_before_labels_are_mixed_in(X, y):
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    plain = clone(clf).fit(X, y)
    mixed = clone(clf).set_params(label_mix=0.9).fit(X, y)
    assert mixed.teacher_score_ == plain.teacher_score_
    model = LogisticRegression().fit(X, y)
    assert plain.teacher_score_ == accuracy_score(y, model.predict(X))
    assert (plain.teacher_score_kind_, plain.label_mix_) == ("in-sample", 0.0)
    assert student_bits(mixed) != student_bits(plain)


def test_label_mix_without_labels_is_refused(X, y):
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    with raises("label_mix", "BDistilClassifier", "requires y"):
        BDistilClassifier(teacher, label_mix=0.5, **SMALL).fit(X)


@pytest.mark.parametrize("label_mix", [1, -0.1, "some"])
def test_bad_label_mix_is_refused(X, y, label_mix):
    with raises("label_mix", "[0.0, 1.0)"):
        BDistilClassifier(LogisticRegression(), label_mix=label_mix).fit(X, y)


def test_rows_that_the_teacher_was_not_asked_about_are_learnt_from_labels(X, y):
    scores = LogisticRegression().fit(X, y).decision_function(X)
    scores[::2] = np.nan
    clf = BDistilClassifier("precomputed", **SMALL).fit(X, y, teacher_scores=scores)
    filled = scores.copy()
    label = np.searchsorted(clf.classes_, y)
    filled[::2] = scores_of_labels(label[::2], scores[1::2])
    other = clone(clf).fit(X, y, teacher_scores=filled)
    assert_allclose(clf.predict_proba(X), other.predict_proba(X), atol=1e-5)
    assert clf.teacher_calls_ == len(X) // 2
    known = ~np.isnan(scores[:, 0])
    found = clf.classes_[scores[known].argmax(axis=1)]
    assert clf.teacher_score_ == accuracy_score(y[known], found)


def test_answers_without_any_labels_are_distilled_to_numbers_of_columns(X, y):
    answers = np.where(np.arange(len(X)) % 5 == 0, None, y.astype(object))
    scores = scores_from_labels(answers, ["c", "b", "a"])
    clf = BDistilClassifier("precomputed", **{**SMALL, "max_epochs": 60})
    clf.fit(X, teacher_scores=scores)
    assert_array_equal(clf.classes_, [0, 1, 2])
    assert (clf.teacher_score_, clf.teacher_calls_) == (None, 72)
    assert np.mean(np.array(["a", "b", "c"])[clf.predict(X)] == y) > 0.6


def test_rows_without_score_and_label_are_left_out(X):
    values = X[:, 0].copy()
    values[::3] = np.nan
    known = ~np.isnan(values)
    reg = BDistilRegressor("precomputed", **SMALL).fit(X, teacher_scores=values)
    other = clone(reg).fit(X[known], teacher_scores=values[known])
    assert student_bits(reg) == student_bits(other)


def test_row_of_which_some_scores_are_missing_is_refused(X, y):
    scores = np.zeros((len(X), 3))
    scores[4, 1] = np.nan
    with raises("must return finite scores", "first at position 4"):
        BDistilClassifier("precomputed", **SMALL).fit(X, y, teacher_scores=scores)


def test_scores_that_are_all_missing_are_refused(X, y):
    scores = np.full((len(X), 3), np.nan)
    with raises("teacher_scores", "NaN"):
        BDistilClassifier("precomputed", **SMALL).fit(X, y, teacher_scores=scores)


def test_teacher_that_predicts_labels_only_is_distilled(X, y):
    class Labels(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.model_ = LogisticRegression().fit(X, y)
            self.classes_ = self.model_.classes_
            return self

        def predict(self, X):
            return self.model_.predict(X)

    clf = BDistilClassifier(
        Labels(), n_estimators=2, max_epochs=60, random_state=0
    ).fit(X, y)
    model = LogisticRegression().fit(X, y)
    assert clf.teacher_score_ == model.score(X, y)
    assert np.mean(clf.predict(X) == model.predict(X)) > 0.9


def test_teacher_parameters_can_be_searched_and_cloned(X, y):
    clf = BDistilClassifier(
        [LogisticRegression(), LogisticRegression(C=0.1)],
        teacher_cv=KFold(3, shuffle=True, random_state=0),
        label_mix=0.25,
        **SMALL,
    )
    again = clone(clf)
    assert again.fit(X, y).n_estimators_ == 3
    assert_array_equal(again.predict(X), clf.fit(X, y).predict(X))


def test_regression_out_of_fold_mixes_half_of_the_targets(X):
    y = X[:, 0] + 0.1 * np.random.RandomState(1).randn(len(X))
    reg = BDistilRegressor(ExtraTreesRegressor(10), teacher_cv=3, **SMALL).fit(X, y)
    assert (reg.teacher_score_kind_, reg.label_mix_) == ("out-of-fold", 0.5)
    assert 0 < reg.teacher_score_ < 1


class Doubler(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        self.is_fitted_ = True
        return self

    def predict(self, X):
        return 2 * X[:, 0]


def test_warm_start_goes_on_with_the_same_targets(X):
    reg = BDistilRegressor(
        Doubler(), teacher_cv=3, label_mix=0.5, eta=0.1, augment="spunge", **SMALL
    )
    longer = clone(reg).fit(X, X[:, 0])
    grown = clone(reg).set_params(warm_start=True, n_estimators=2).fit(X, X[:, 0])
    grown.set_params(n_estimators=3).fit(X, X[:, 0])
    assert student_bits(grown) == student_bits(longer)
