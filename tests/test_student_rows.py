"""Rows that the teacher sees in another form: missing, sparse, transformed, new."""

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    StandardScaler,
    TargetEncoder,
)
from sklearn.random_projection import GaussianRandomProjection

from common import SMALL, Embedded, raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor, DistillationObjective
from skbdistil._preprocessing import affine_transforms, leaves
from skbdistil.augmentation import Munge
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.export import to_onnx, to_single_onnx, to_torch
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import MLP

TREES = HistGradientBoostingClassifier(max_iter=5)


@pytest.fixture
def X():
    X = np.random.RandomState(0).randn(80, 4)
    X[np.random.RandomState(1).rand(*X.shape) < 0.2] = np.nan
    X[:, 3] = np.nan_to_num(X[:, 3])
    return X


@pytest.fixture
def y(X):
    return np.where(np.nansum(X, axis=1) > 0, "yes", "no")


@pytest.fixture
def clf(X, y):
    return BDistilClassifier(TREES, **SMALL).fit(X, y)


# Missing numbers


def test_students_see_medians_and_which_numbers_are_missing(clf, X, y):
    transform = clf.student_transform_
    seen = transform.transform(X)
    assert seen.shape == (80, 4 + 3)
    assert clf.input_shape_ == (7,)
    assert clf.n_features_in_ == 4
    plain = BDistilClassifier(
        FrozenEstimator(clone(TREES).fit(X, y)), student_transform=transform, **SMALL
    ).fit(X, y)
    assert_array_equal(plain.predict_proba(X), clf.predict_proba(X))


def test_teacher_sees_what_is_missing(X, y):
    class Refuses(DummyClassifier):
        def predict_proba(self, X):
            assert np.isnan(X).any()
            return super().predict_proba(X)

    teacher = FrozenEstimator(Refuses(strategy="prior").fit(X, y))
    assert BDistilClassifier(teacher, **SMALL).fit(X, None).n_estimators_ == 3


def test_teacher_that_takes_no_missing_numbers_says_so(X, y):
    with raises("LogisticRegression", "BDistilClassifier", "NaN"):
        BDistilClassifier(LogisticRegression(), **SMALL).fit(X, y)


def test_numbers_that_are_missing_in_another_column_are_imputed(clf, X):
    X[:5, 3] = np.nan
    imputed = X.copy()
    imputed[:5, 3] = clf.student_transform_.statistics_[3]
    assert_array_equal(clf.predict_proba(X), clf.predict_proba(imputed))


def test_missing_numbers_of_a_fit_without_any_are_refused(X, y):
    clf = BDistilClassifier(TREES, **SMALL).fit(np.nan_to_num(X), y)
    assert clf.student_transform_ is None
    with raises("BDistilClassifier", "contains NaN", "student_transform=SimpleImputer"):
        clf.predict(X)


def test_frame_that_lacks_numbers_is_predicted_without_a_warning(X, y):
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = BDistilClassifier(TREES, **SMALL).fit(frame, y)
    assert_array_equal(
        clf.predict_proba(frame),
        BDistilClassifier(TREES, **SMALL).fit(X, y).predict_proba(X),
    )


def test_missing_numbers_of_sequences_and_infinity_are_refused(X, y):
    clf = BDistilClassifier(TREES, **SMALL)
    with raises("X", "NaN"):
        clf.fit(X.reshape(80, 2, 2), y)
    X[0, 0] = np.inf
    with raises("X", "infinity"):
        clf.fit(X, y)


def test_missing_numbers_go_the_whole_way(X, y, tmp_path):
    """Search, early exit, files and exports."""
    search = GridSearchCV(
        BDistilClassifier(TREES, **SMALL), {"label_mix": [0.0, 0.5]}, cv=2
    )
    best = search.fit(X, y).best_estimator_
    early = EarlyExitClassifier(BDistilClassifier(TREES, **SMALL), random_state=0)
    early.fit(X, y)
    for number, model in enumerate((best, early)):
        expected = model.predict_proba(X)
        pickled = pickle.loads(pickle.dumps(model))
        assert_array_equal(pickled.predict_proba(X), expected)
        save(model, tmp_path / "model.skb")
        assert_array_equal(load(tmp_path / "model.skb").predict_proba(X), expected)
        to_onnx(model, tmp_path / str(number))
        session = ProgressiveSession(tmp_path / str(number))
        assert_allclose(session.predict_proba(X), expected, atol=1e-5)
    assert np.isfinite(expected).all()


def test_exported_rows_may_lack_what_is_imputed_and_nothing_else(clf, X, tmp_path):
    clf = BDistilClassifier(
        TREES,
        student_transform=make_column_transformer(
            (SimpleImputer(add_indicator=True), [0, 1]), ("passthrough", [2, 3])
        ),
        **SMALL,
    )
    X[:, 2] = np.nan_to_num(X[:, 2])
    clf.fit(X, X[:, 3] > 0)
    to_onnx(clf, tmp_path / "exported")
    session = ProgressiveSession(tmp_path / "exported")
    assert_allclose(session.predict_proba(X), clf.predict_proba(X), atol=1e-5)
    X[0, 2] = np.nan
    with raises("NaN"):
        session.predict_proba(X)


@pytest.mark.filterwarnings("ignore:Skipping features without any observed values")
@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
@pytest.mark.parametrize("keep", [False, True])
def test_imputers_and_scalers_are_one_affine_map(X, strategy, keep):
    X = np.column_stack([X, np.full(80, np.nan)])
    imputer = SimpleImputer(
        strategy=strategy, add_indicator=True, keep_empty_features=keep
    )
    pipeline = make_pipeline(imputer, StandardScaler()).fit(X)
    affine = affine_transforms(list(leaves(pipeline.steps)), pipeline.transform, X)
    assert_allclose(affine(X), pipeline.transform(X), rtol=1e-12, atol=1e-15)
    assert set(affine.imputes) >= {0, 1, 2, 3}


@pytest.mark.parametrize(
    "steps",
    [
        (StandardScaler(), SimpleImputer()),
        (SimpleImputer(missing_values=0.0), StandardScaler()),
    ],
)
def test_imputers_that_are_no_affine_map_are_left_to_others(X, steps):
    X = np.nan_to_num(X) if steps[0].get_params().get("missing_values") == 0 else X
    pipeline = make_pipeline(*steps).fit(X)
    assert (
        affine_transforms(list(leaves(pipeline.steps)), pipeline.transform, X) is None
    )


# Transforms of the user's


@pytest.fixture
def frame(X):
    kinds = pd.Categorical(np.where(X[:, 3] > 0, "u", "v"))
    return pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "kind": kinds})


@pytest.fixture
def encoded():
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return make_column_transformer((OneHotEncoder(), ["kind"]), (numbers, ["a", "b"]))


def test_teacher_reads_the_frame_and_students_its_columns(frame, y, encoded, tmp_path):
    teacher = HistGradientBoostingClassifier(
        max_iter=5, categorical_features="from_dtype"
    )
    clf = BDistilClassifier(teacher, student_transform=encoded, **SMALL).fit(frame, y)
    assert_array_equal(clf.feature_names_in_, ["a", "b", "kind"])
    assert clf.input_shape_ == (4,)
    assert not hasattr(encoded, "transformers_")  # cloned
    save(clf, tmp_path / "model.skb")
    loaded = load(tmp_path / "model.skb")
    assert_array_equal(loaded.predict_proba(frame), clf.predict_proba(frame))
    assert_array_equal(loaded.feature_names_in_, clf.feature_names_in_)
    assert_array_equal(clf[:2].predict(frame), list(clf.staged_predict(frame))[1])
    with raises("feature names"):
        clf.predict(frame.rename(columns={"a": "z"}))
    with raises("unknown categories"):
        clf.predict(frame.assign(kind="w"))


def test_transform_outside_of_an_export_is_applied_by_the_caller(frame, y, encoded):
    clf = BDistilClassifier(
        make_pipeline(clone(encoded), LogisticRegression()),
        student_transform=encoded,
        **SMALL,
    ).fit(frame, y)
    with raises("cannot export", "transformed=True"):
        to_torch(clf)
    module = to_torch(clf, transformed=True)
    rows = torch.tensor(clf.student_transform_.transform(frame), dtype=torch.float32)
    assert_allclose(
        module(rows).detach().numpy().argmax(axis=1),
        np.searchsorted(clf.classes_, clf.predict(frame)),
    )


def test_transform_makes_rows_of_another_shape(y):
    X = np.random.RandomState(0).randn(80, 12)
    to_steps = FunctionTransformer(partial(np.reshape, shape=(-1, 6, 2)))
    clf = BDistilClassifier(
        LogisticRegression(),
        student_transform=to_steps,
        n_estimators=2,
        max_epochs=1,
        random_state=0,
    ).fit(X, y)
    assert clf.input_shape_ == (6, 2)
    assert clf.predict(X[:3]).shape == (3,)


class Shorter(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.is_fitted_ = True
        return self

    def transform(self, X):
        return X[1:]


class Broken(Shorter):
    def transform(self, X):
        return np.full((len(X), 2), np.nan)


@pytest.mark.parametrize(
    ("transform", "parts", "error"),
    [
        (Shorter(), ["inconsistent numbers of samples"], ValueError),
        (Broken(), ["Broken", "student_transform", "NaN"], ValueError),
        (LogisticRegression(), ["'student_transform'", "transformer"], TypeError),
        ("scale", ["'student_transform'", "transformer", "'scale'"], TypeError),
    ],
)
def test_bad_transform_is_refused_by_name(y, transform, parts, error):
    X = np.random.RandomState(0).randn(80, 4)
    clf = BDistilClassifier(LogisticRegression(), student_transform=transform, **SMALL)
    with raises(*parts, error=error):
        clf.fit(X, y)


def test_warm_start_keeps_the_transform(X, y):
    clf = BDistilClassifier(TREES, eta=0.1, **SMALL)
    longer = clone(clf).fit(X, y)
    grown = clone(clf).set_params(warm_start=True, n_estimators=1).fit(X, y)
    transform = grown.student_transform_
    grown.set_params(n_estimators=3).fit(X, y)
    assert grown.student_transform_ is transform
    assert student_bits(grown) == student_bits(longer)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, StandardScaler()),
        (StandardScaler(), None),
        (StandardScaler(), MinMaxScaler()),
    ],
)
def test_warm_start_with_another_transform_is_refused(y, first, second):
    X = np.random.RandomState(0).randn(80, 4)
    clf = BDistilClassifier(LogisticRegression(), student_transform=first, **SMALL)
    before = clf.fit(X, y).predict_proba(X)
    clf.set_params(student_transform=second, warm_start=True, n_estimators=4)
    with raises("warm_start", "'student_transform'"):
        clf.fit(X, y)
    clf.set_params(student_transform=first)
    assert_array_equal(clf.predict_proba(X), before)


def test_transform_without_a_seed_gets_one_and_may_go_on(y):
    X = np.random.RandomState(0).randn(80, 4)
    clf = BDistilClassifier(
        LogisticRegression(), student_transform=GaussianRandomProjection(3), **SMALL
    )
    fitted = clone(clf).fit(X, y)
    assert student_bits(clone(clf).fit(X, y)) == student_bits(fitted)
    fitted.set_params(warm_start=True, n_estimators=4)
    assert fitted.fit(X, y).n_estimators_ == 4


def test_students_train_on_what_fit_transform_gives():
    """An encoder of targets would give their labels away."""
    rng = np.random.RandomState(0)
    X, y = rng.randint(100, size=(200, 1)), rng.randint(2, size=200)
    scores = np.where(y == 1, 1.0, -1.0)
    clf = BDistilClassifier(
        "precomputed", student_transform=TargetEncoder(), **SMALL
    ).fit(X, y, teacher_scores=scores)
    # Of further rows it gives away the labels of these.
    told = clf.student_transform_.transform(X)
    assert np.corrcoef(told[:, 0], y)[0, 1] > 0.5
    other = BDistilClassifier("precomputed", **SMALL)
    other.fit(told, y, teacher_scores=scores)
    assert clf.score(X, y) < other.score(told, y)


def test_held_out_rows_and_rows_without_weight_fit_no_transform(y):
    X = np.random.RandomState(0).randn(80, 4)
    weight = np.ones(80)
    weight[:10] = 0
    X[:10] = 1e6
    clf = BDistilClassifier(
        LogisticRegression(),
        student_transform=StandardScaler(),
        early_stopping=True,
        **SMALL,
    ).fit(X, y, sample_weight=weight)
    assert clf.student_transform_.n_samples_seen_ == 63
    assert np.abs(clf.student_transform_.mean_).max() < 1


def test_missing_numbers_of_rows_without_weight_are_not_imputed(X, y):
    weight = np.isfinite(X).all(axis=1).astype(float)
    clf = BDistilClassifier(TREES, **SMALL).fit(X, y, sample_weight=weight)
    assert clf.student_transform_ is None


# Sparse rows


@pytest.fixture
def S():
    return sparse.random_array((90, 40), density=0.1, rng=np.random.default_rng(0))


@pytest.fixture
def of_S(S):
    return np.asarray(S.sum(axis=1) > 2).astype(int)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "dok"])
def test_sparse_rows_give_the_students_of_dense_ones(S, of_S, kind):
    clf = BDistilClassifier(LogisticRegression(), early_stopping=True, **SMALL)
    weight = np.arange(90) % 3
    found = clone(clf).fit(S.asformat(kind), of_S, sample_weight=weight)
    dense = clone(clf).fit(S.toarray(), of_S, sample_weight=weight)
    assert student_bits(found) == student_bits(dense)
    assert_array_equal(found.idle_features_, dense.idle_features_)
    assert_array_equal(
        found.predict_proba(S.asformat(kind)), dense.predict_proba(S.toarray())
    )


def test_sparse_rows_of_a_regressor_with_a_connection(S):
    target = np.asarray(S.sum(axis=1), dtype=float)
    reg = BDistilRegressor(Ridge(), connection="dense", **SMALL)
    found = clone(reg).fit(S, target, X_unlabelled=S[:9])
    dense = S.toarray()
    other = clone(reg).fit(dense, target, X_unlabelled=dense[:9])
    # The teacher rounds differently.
    assert_allclose(found.predict(S), other.predict(dense), rtol=1e-4)


def test_text_goes_through_a_pipeline_and_early_exit():
    words = np.array(["red", "green", "blue", "sun", "rain", "snow"])
    rng = np.random.RandomState(0)
    y = np.repeat([0, 1], 60)
    text = [" ".join(rng.choice(words[3 * label :][:3], 4)) for label in y]
    clf = BDistilClassifier(LogisticRegression(), **{**SMALL, "max_epochs": 20})
    model = make_pipeline(TfidfVectorizer(), EarlyExitClassifier(clf, random_state=0))
    assert model.fit(text, y).score(text, y) > 0.95


def test_sparse_rows_that_are_not_finite_are_refused(S, of_S):
    S = S.tocsr()
    S.data[3] = np.nan
    with raises("X", "NaN"):
        BDistilClassifier(LogisticRegression(), **SMALL).fit(S, of_S)


# Rows without labels


def test_rows_without_labels_are_learnt_from_the_teacher():
    rng = np.random.RandomState(0)
    X, others = rng.randn(30, 2), rng.randn(200, 2)
    y = X[:, 0] * 2
    reg = BDistilRegressor(Ridge(1e-6), teacher_cv=None, **SMALL)
    both = np.concatenate([X, others])
    found = clone(reg).fit(X, y, X_unlabelled=others)
    whole = clone(reg).fit(both, both[:, 0] * 2)
    assert found.batch_size_ == whole.batch_size_
    assert found.teacher_calls_ == 230
    assert found.certificate_.actual.shape == (3, 1)
    # The rows that the game is played on.
    mean = np.abs(found.predict(both) - both[:, 0] * 2).mean()
    assert_allclose(found.certificate_.mean[-1], mean, rtol=1e-3)


@pytest.mark.parametrize("estimator", [BDistilClassifier, BDistilRegressor])
def test_label_term_ignores_rows_without_labels(estimator):
    rng = np.random.RandomState(0)
    X, y = rng.randn(40, 3), np.arange(40) % 2
    base = LogisticRegression() if estimator is BDistilClassifier else Ridge()
    name = "kl" if estimator is BDistilClassifier else "squared_error"
    objective = DistillationObjective(name, alpha=0.5)
    model = estimator(base, objective=objective, refine="final", **SMALL)
    model.fit(X, y, X_unlabelled=rng.randn(25, 3), sample_weight=np.ones(40))
    for rounds in model.training_history_:
        assert np.isfinite([epoch["train_loss"] for epoch in rounds]).all()
    assert np.isfinite(model.predict(X)).all()


def test_held_out_rows_are_among_those_with_labels():
    rng = np.random.RandomState(0)
    X, y = rng.randn(40, 3), np.arange(40) % 2
    clf = BDistilClassifier(LogisticRegression(), early_stopping=True, **SMALL)
    clf.fit(X, y, X_unlabelled=rng.randn(100, 3))
    assert all(
        np.isfinite(epoch["valid_loss"])
        for rounds in clf.training_history_
        for epoch in rounds
    )


@pytest.mark.parametrize(
    ("augment", "parts", "error"),
    [
        (lambda X, seed: X[:0], ["'augment'", "at least one"], ValueError),
        (Munge(0.001), ["'augment'"], ValueError),
        (Munge, ["'augment'", "TypeError"], RuntimeError),
    ],
)
def test_augmentation_that_makes_no_rows_is_refused(y, augment, parts, error):
    X = np.random.RandomState(0).randn(80, 4)
    clf = BDistilClassifier(LogisticRegression(), augment=augment, **SMALL)
    with raises(*parts, "BDistilClassifier", error=error):
        clf.fit(X, y)


@pytest.mark.parametrize("kind", ["munge", "spunge"])
def test_augmented_rows_are_asked_about_and_depend_on_the_seed(kind):
    rng = np.random.RandomState(0)
    X, y = rng.randn(40, 3), np.arange(40) % 2
    clf = BDistilClassifier(LogisticRegression(), augment=kind, **SMALL).fit(X, y)
    assert clf.teacher_calls_ == 80
    assert student_bits(clone(clf).fit(X, y)) == student_bits(clf)
    other = clone(clf).set_params(augment=None).fit(X, y)
    assert student_bits(other) != student_bits(clf)


def test_rows_held_out_are_not_augmented():
    X = np.random.RandomState(0).randn(60, 2)
    seen = []

    def augment(X, seed):
        seen.append(X)
        return X[:1]

    clf = BDistilClassifier(
        LogisticRegression(), augment=augment, early_stopping=True, **SMALL
    ).fit(X, X[:, 0] > 0)
    assert len(seen[0]) == 54
    assert clf.teacher_calls_ == 61


def test_integers_without_labels_stay_integers():
    X = np.random.RandomState(0).randint(10, size=(40, 3)).astype(np.uint8)
    y = np.arange(40) % 2
    clf = BDistilClassifier(
        LogisticRegression(),
        **{**SMALL, "student": Embedded},
        input_scaling=None,
    )
    found = clone(clf).fit(X, y, X_unlabelled=X.astype(float))
    assert found.ensemble_.integer_input
    with raises("X_unlabelled", "integers"):
        clone(clf).fit(X, y, X_unlabelled=X + 0.5)


def test_rows_without_labels_take_the_form_of_the_others(S, of_S):
    clf = BDistilClassifier(LogisticRegression(), **SMALL)
    dense = S.toarray()
    models = [
        clone(clf).fit(rows, of_S, X_unlabelled=others)
        for rows in (S, dense)
        for others in (S.tocsr()[:9].tocoo(), dense[:9])
    ]
    assert len({student_bits(model) for model in models}) == 1


def test_augmented_frames_reach_the_teacher_as_frames(frame, y, encoded):
    frame = frame.fillna(0.0)
    clf = BDistilClassifier(
        make_pipeline(clone(encoded), LogisticRegression()),
        augment="munge",
        student_transform=encoded,
        **SMALL,
    ).fit(frame, y)
    assert clf.teacher_calls_ == 160


def test_augmentation_of_another_shape_is_refused(y):
    X = np.random.RandomState(0).randn(80, 4)
    clf = BDistilClassifier(
        LogisticRegression(), augment=lambda X, seed: X[:, :2], **SMALL
    )
    with raises("'augment'", "BDistilClassifier", "(4,)", "(2,)"):
        clf.fit(X, y)


def test_augmentation_with_unknown_categories_is_refused(frame, y, encoded):
    clf = BDistilClassifier(
        make_pipeline(clone(encoded), LogisticRegression()),
        augment=lambda X, seed: X.assign(kind="w"),
        student_transform=encoded,
        **SMALL,
    )
    with raises("unknown categories", "w"):
        clf.fit(frame, y)


def test_rows_without_labels_of_other_features_are_refused(y):
    X = np.random.RandomState(0).randn(80, 4)
    with raises("X_unlabelled cannot be used", "3 features", "expecting 4"):
        BDistilClassifier(LogisticRegression(), **SMALL).fit(
            X, y, X_unlabelled=X[:, :3]
        )


def test_precomputed_scores_of_too_few_rows_without_labels_raise(y):
    X = np.random.RandomState(0).randn(80, 4)
    clf = BDistilClassifier("precomputed", **SMALL)
    with raises("precomputed", "X_unlabelled", "teacher_scores", "160 rows", "Got 80"):
        clf.fit(X, y, teacher_scores=np.zeros((80, 2)), X_unlabelled=X)


@pytest.mark.parametrize("weight", [None, np.arange(80) % 3])
def test_precomputed_scores_of_rows_without_labels_are_as_if_asked(y, weight):
    X = np.random.RandomState(0).randn(160, 4)
    teacher = LogisticRegression().fit(X[:80], y)
    proba = 0.999 * teacher.predict_proba(X) + 5e-4
    fitted = [
        BDistilClassifier(taught_by, **SMALL).fit(
            X[:80], y, weight, teacher_scores=scores, X_unlabelled=X[80:]
        )
        for taught_by, scores in (
            (FrozenEstimator(teacher), None),
            ("precomputed", np.log(proba)),
        )
    ]
    asked, given = (clf.predict_proba(X) for clf in fitted)
    assert_allclose(given, asked, atol=1e-4)


# Weights of classes


def test_class_weights_are_sample_weights_of_the_students():
    rng = np.random.RandomState(0)
    X = rng.randn(60, 3)
    y = np.where(rng.rand(60) < 0.2, "rare", "often")
    weight = {"rare": 4.0, "often": 1.0}
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    clf = BDistilClassifier(teacher, **SMALL)
    found = clone(clf).set_params(class_weight=weight).fit(X, y)
    expected = clone(clf).fit(X, y, sample_weight=[weight[label] for label in y])
    assert student_bits(found) == student_bits(expected)


def test_balanced_classes_find_more_of_the_rare_one():
    rng = np.random.RandomState(0)
    X = rng.randn(300, 2)
    y = (X[:, 0] + rng.randn(300) > 1.8).astype(int)
    clf = BDistilClassifier(
        LogisticRegression(class_weight="balanced"),
        student=partial(MLP, hidden=(1,)),
        n_estimators=1,
        max_epochs=60,
        label_mix=0.9,
        random_state=0,
    )
    plain = clone(clf).fit(X, y).predict(X)
    balanced = clone(clf).set_params(class_weight="balanced").fit(X, y).predict(X)
    assert balanced.sum() > plain.sum()


def test_class_weights_are_saved_and_leave_the_score_of_the_teacher_alone(tmp_path):
    rng = np.random.RandomState(0)
    X = rng.randn(100, 3)
    y = (X[:, 0] + rng.randn(100) > 1).astype(int)
    clf = BDistilClassifier(LogisticRegression(), class_weight={0: 1, 1: 3}, **SMALL)
    clf.fit(X, y)
    assert clf.teacher_score_ == LogisticRegression().fit(X, y).score(X, y)
    save(clf, tmp_path / "model.skb")
    loaded = load(tmp_path / "model.skb")
    assert loaded.class_weight == {0: 1, 1: 3}
    assert (loaded.teacher, loaded.teacher_cv) == ("precomputed", "auto")


def test_augmentation_is_saved_but_for_functions(tmp_path):
    X = np.random.RandomState(0).randn(40, 3)
    clf = BDistilClassifier(LogisticRegression(), augment=Munge(2.0), **SMALL)
    clf.fit(X, X[:, 0] > 0)
    for augment, expected in (
        (Munge(2.0), "Munge(factor=2.0)"),
        (lambda X, _: X, "None"),
    ):
        save(clf.set_params(augment=augment), tmp_path / "model.skb")
        assert repr(load(tmp_path / "model.skb").augment) == expected


def test_class_weights_need_labels_and_are_positive():
    X = np.random.RandomState(0).randn(20, 2)
    y = np.arange(20) % 2
    teacher = FrozenEstimator(LogisticRegression().fit(X, y))
    with raises("class_weight", "requires y"):
        BDistilClassifier(teacher, class_weight="balanced", **SMALL).fit(X)
    with raises("class_weight", "positive", "{0: 0, 1: 1}"):
        BDistilClassifier(teacher, class_weight={0: 0, 1: 1}, **SMALL).fit(X, y)


def test_single_onnx_file_holds_the_imputer(clf, X, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    to_single_onnx(clf, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (x,) = session.get_inputs()
    scores = session.run(None, {x.name: X.astype(np.float64)})[-1]
    assert_array_equal(clf.classes_[scores.argmax(axis=1)], clf.predict(X))
