"""A stream that students follow: policy, budget, state."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from skorch import NeuralNet

from common import SMALL, raises, student_bits
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.exceptions import DoubtfulTeacherWarning
from skbdistil.online import OnlineBDistil
from skbdistil.persistence import load, save

X, Y = make_classification(
    700, 8, n_informative=6, n_classes=3, shift=None, random_state=0
)
X = np.float32(X)
# Of which students know nothing at first: the same rows turned round.
STREAM = -X[100:]


@pytest.fixture(scope="module")
def teacher():
    rows = np.concatenate([X, -X])
    forest = RandomForestClassifier(20, random_state=0)
    return FrozenEstimator(forest.fit(rows, np.concatenate([Y, (Y + 1) % 3])))


@pytest.fixture(scope="module")
def clf(teacher):
    return BDistilClassifier(teacher, **SMALL).fit(X[:100])


class Counting:
    """A teacher that is a function, and knows what it was asked."""

    def __init__(self, teacher):
        self.teacher = teacher
        self.n_asked = []

    def __call__(self, X):
        self.n_asked.append(len(X))
        return np.log(self.teacher.predict_proba(X) + 1e-3)


# One update


def test_partial_fit_learns_and_leaves_a_slice_alone(clf, teacher):
    other = pickle.loads(pickle.dumps(clf))
    first = other[:2]
    before = first.predict_proba(STREAM)
    answers = teacher.predict(STREAM)
    agreement = np.mean(other.predict(STREAM) == answers)
    for _ in range(15):
        other.partial_fit(STREAM)
    assert np.mean(other.predict(STREAM) == answers) > agreement + 0.2
    np.testing.assert_array_equal(first.predict_proba(STREAM), before)
    assert len(other[:2]) == 2


def test_partial_fit_forgets_what_the_fit_has_proved(clf):
    other = clf[:].partial_fit(STREAM[:40])
    assert np.isnan(other.student_edges_).all()
    assert np.isnan(other.idle_features_).all()
    assert np.isnan(other.certificate_.bound).all()
    assert np.isfinite(clf.certificate_.mean).all()
    assert np.isnan(other[:1].certificate_.bound).all()


def test_partial_fit_keeps_the_optimizer_between_calls(clf):
    once, restarted = clf[:], clf[:]
    for model in (once, restarted):
        model.partial_fit(STREAM[:40])
    # A slice begins anew.
    restarted = restarted[:]
    for model in (once, restarted):
        model.partial_fit(STREAM[40:80])
    assert student_bits(once) != student_bits(restarted)


def test_partial_fit_with_the_same_seed_gives_the_same_bits(clf):
    models = [clf[:], pickle.loads(pickle.dumps(clf))]
    for model in models:
        for _ in range(2):
            model.partial_fit(STREAM)
    assert student_bits(models[0]) == student_bits(models[1])


def test_partial_fit_after_save_and_load_goes_on(clf, tmp_path):
    model = clf[:].partial_fit(STREAM[:40])
    save(model, tmp_path / "model.zip")
    loaded = load(tmp_path / "model.zip")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert np.isnan(loaded.certificate_.bound).all()
    loaded.partial_fit(STREAM[:40], Y[:40])


def test_early_exit_after_partial_fit_must_be_calibrated_again(clf):
    model = clf[:]
    early = EarlyExitClassifier(FrozenEstimator(model), max_drop=0.1).fit(X[:300])
    early.predict(X)
    model.partial_fit(STREAM[:40])
    with raises("EarlyExitClassifier", "fit"):
        early.predict(X)


def test_partial_fit_first_call_is_a_fit():
    first = BDistilClassifier(**SMALL).partial_fit(X[:100], Y[:100], classes=[0, 1, 2])
    fitted = BDistilClassifier(**SMALL).fit(X[:100], Y[:100])
    assert student_bits(first) == student_bits(fitted)


def test_partial_fit_first_call_without_all_classes_raises():
    clf = BDistilClassifier(**SMALL)
    with raises("classes", "[0, 1, 2, 3]", "Begin with rows of all classes"):
        clf.partial_fit(X[:100], Y[:100], classes=[0, 1, 2, 3])
    assert not hasattr(clf, "classes_")


def test_partial_fit_with_labels_only_learns_these():
    clf = BDistilClassifier(**SMALL).fit(X[:100], Y[:100])
    turned = (Y[100:] + 1) % 3
    for _ in range(15):
        clf.partial_fit(STREAM, turned)
    assert clf.score(STREAM, turned) > 0.5


def test_partial_fit_without_anything_to_learn_raises():
    clf = BDistilClassifier(**SMALL).fit(X[:100], Y[:100])
    before = student_bits(clf)
    with raises("partial_fit", "nothing to learn from", "teacher_scores"):
        clf.partial_fit(X[:20])
    assert student_bits(clf) == before


def test_partial_fit_leaves_out_rows_without_an_answer(clf):
    scores = np.full((40, 3), np.nan)
    scores[:20] = 3 * np.eye(3)[Y[:20]]
    some = clf[:].partial_fit(X[:40], teacher_scores=scores)
    alone = clf[:].partial_fit(X[:20], teacher_scores=scores[:20])
    assert student_bits(some) == student_bits(alone)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((X[:9, :5],), ("features", "8")),
        ((X[:9], [7] * 9), ("y of BDistilClassifier", "[7]", "[0, 1, 2]")),
        ((X[:9], None, np.zeros((9, 4))), ("teacher_scores", "3 columns", "4")),
        ((X[:9], None, np.zeros((8, 3))), ("teacher_scores", "9 rows", "(8, 3)")),
        ((X[:9], None, None, [0, 1]), ("classes=[0, 1]",)),
    ],
)
def test_partial_fit_with_unusable_input_raises(clf, arguments, parts):
    model = clf[:]
    with raises(*parts):
        model.partial_fit(*arguments)
    assert student_bits(model) == student_bits(clf)


def test_partial_fit_with_class_weight_raises_from_the_first_call_on(clf):
    for model in (clf[:], clone(clf)):
        model.set_params(class_weight="balanced")
        with raises("BDistilClassifier.partial_fit", "class_weight"):
            model.partial_fit(X[:20])
    assert not hasattr(model, "ensemble_")


def test_partial_fit_with_another_optimizer_starts_it_anew(clf):
    model = clf[:].set_params(net=NeuralNet(None, None, optimizer=torch.optim.Adam))
    model.partial_fit(STREAM[:40])
    before = student_bits(model)
    model.set_params(net=NeuralNet(None, None, optimizer=torch.optim.RMSprop))
    assert student_bits(model.partial_fit(STREAM[40:80])) != before


def test_partial_fit_that_diverges_keeps_the_students(clf):
    model = clf[:].set_params(learning_rate=1e38)
    with raises("diverged", "learning_rate"):
        for _ in range(9):
            model.partial_fit(X, teacher_scores=1e3 * np.eye(3)[Y])
    assert np.isfinite(model.predict_proba(X)).all()


def test_partial_fit_of_several_labels():
    rows, labels = make_multilabel_classification(150, 6, random_state=0)
    clf = BDistilClassifier(**SMALL).fit(rows, labels)
    before = student_bits(clf)
    clf.partial_fit(rows[:1], labels[:1])
    clf.partial_fit(rows[:9], teacher_scores=np.full((9, labels.shape[1]), 2.0))
    assert student_bits(clf) != before
    with raises("y of BDistilClassifier", "5 columns", "(9, 2)"):
        clf.partial_fit(rows[:9], labels[:9, :2])


def test_partial_fit_of_a_regressor_learns():
    target = X @ np.arange(16.0).reshape(8, 2)
    reg = BDistilRegressor(**SMALL).fit(X[:200], target[:200])
    before = reg.score(STREAM, 100 + target[100:])
    for _ in range(15):
        reg.partial_fit(STREAM, 100 + target[100:])
    assert reg.score(STREAM, 100 + target[100:]) > before
    with raises("y has 1 target(s)", "2"):
        reg.partial_fit(X[:9], target[:9, :1])


def test_partial_fit_with_a_constant_target_learns_the_others():
    target = np.c_[np.ones(len(X)), X @ np.arange(8.0)]
    reg = BDistilRegressor(Ridge(), **SMALL).fit(X[:200], target[:200])
    before = reg.score(X, target)
    scores = target.copy()
    scores[::2] = np.nan
    for _ in range(3):
        reg.partial_fit(X, target)
        reg.partial_fit(X, teacher_scores=scores)
    assert reg.score(X, target) > before
    with raises("constant in the earlier fit"):
        reg.partial_fit(X[:9], target[:9, ::-1])


# The stream


def test_update_predicts_before_it_learns(clf, teacher):
    online = OnlineBDistil(clf, teacher, stride=1, batch_size=50, random_state=0)
    labels = online.update(STREAM[:50])
    np.testing.assert_array_equal(labels, clf.predict(STREAM[:50]))
    expected = np.mean(labels == teacher.predict(STREAM[:50]))
    assert online.agreement_history_ == [expected]
    assert online.n_updates_ > 0


def test_update_learns_and_leaves_the_estimator_alone(clf, teacher):
    before = student_bits(clf)
    online = OnlineBDistil(clf, teacher, stride=4, random_state=0)
    online.update(STREAM)
    assert student_bits(clf) == before
    answers = teacher.predict(STREAM)
    gain = np.mean(online.predict(STREAM) == answers)
    assert gain > np.mean(clf.predict(STREAM) == answers) + 0.1


@pytest.mark.parametrize("committee", [None, 0.5])
def test_update_in_pieces_is_the_same_stream(clf, teacher, committee):
    found = []
    for n_pieces in (1, 37):
        online = OnlineBDistil(
            clf, teacher, committee=committee, max_updates=2, random_state=0
        )
        pieces = np.array_split(STREAM[:300], n_pieces)
        labels = np.concatenate([online.update(piece) for piece in pieces])
        found.append((labels, student_bits(online.estimator_), online.stride_history_))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_stride_doubles_where_the_target_is_met_and_is_halved_elsewhere(clf, teacher):
    online = OnlineBDistil(
        clf, teacher, stride=(1, 8), batch_size=4, max_updates=1, random_state=0
    )
    online.update(np.concatenate([X[:40], STREAM[:100], X[:300]]))
    expected, stride = [], 1
    for agreement in online.agreement_history_:
        # Of four answers none may differ where nine in ten are to be met.
        n_missed = round(4 * (1 - agreement))
        stride = max(stride // 2**n_missed, 1) if n_missed else min(2 * stride, 8)
        expected.append(stride)
    assert online.stride_history_ == expected
    assert len(set(expected)) > 2


def test_update_asks_every_stride_rows(clf, teacher):
    online = OnlineBDistil(clf, teacher, stride=5, batch_size=6)
    online.update(X[:151])
    # The rows 1, 6, ... 151, of which the last waits for a batch.
    assert (online.n_samples_seen_, online.n_teacher_calls_) == (151, 31)
    assert len(online.agreement_history_) == 5
    assert set(online.stride_history_) == {5}


@pytest.mark.parametrize("budget", [0, 7, 40, 0.05, 0.11])
def test_budget_is_never_exceeded(clf, teacher, budget):
    counting = Counting(teacher)
    online = OnlineBDistil(
        clf,
        counting,
        stride=1,
        committee=0.5,
        batch_size=5,
        budget=budget,
        max_updates=1,
    )
    for piece in np.array_split(STREAM[:300], 23):
        online.update(piece)
        n_seen = online.n_samples_seen_
        most = budget if isinstance(budget, int) else budget * n_seen
        assert sum(counting.n_asked) == online.n_teacher_calls_ <= most
    if isinstance(budget, int):
        # All of it is used, though it is no multiple of the batches.
        assert online.n_teacher_calls_ == budget


def test_committee_asks_where_students_disagree(clf, teacher):
    *earlier, last = clf.staged_predict(STREAM)
    doubtful = np.mean(np.array(earlier) != last, axis=0) >= 0.5
    doubtful[0] = True  # the turn of the first row
    counting = Counting(teacher)
    online = OnlineBDistil(clf, counting, stride=600, committee=0.5, batch_size=600)
    online.update(STREAM[:100])
    assert len(counting.n_asked) == doubtful[:100].sum()
    assert 1 < doubtful[:100].sum() < 100


def test_agreement_without_a_row_whose_turn_it_was_is_unknown(clf, teacher):
    online = OnlineBDistil(
        clf, teacher, stride=(600, 900), committee=0.5, batch_size=3, max_updates=1
    )
    online.update(STREAM[:100])
    assert np.isnan(online.agreement_history_[-1])
    assert set(online.stride_history_[1:]) == {600}


def test_memory_holds_an_even_sample_of_the_answers(clf, teacher):
    online = OnlineBDistil(
        clf, teacher, stride=1, max_updates=1, memory_size=50, batch_size=100
    )
    online.update(STREAM[:600])
    rows = np.concatenate([answer.row for answer in online._state.memory])
    assert len(rows) == 50
    places = [np.flatnonzero((STREAM == row).all(axis=1))[0] for row in rows]
    # A mean of 300 and a standard deviation of 173 / sqrt(50).
    assert 200 < np.mean(places) < 400


def test_update_of_which_the_teacher_fails_changes_nothing(clf, teacher):
    def fails(X):
        raise ConnectionError("no line")

    options = {"stride": 4, "max_updates": 2, "random_state": 0}
    online = OnlineBDistil(clf, teacher, **options)
    online.update(STREAM[:100])
    before = pickle.dumps(online._state), student_bits(online.estimator_)
    state = online._rng.get_state()[1].tobytes()
    online.set_params(teacher=fails)
    with pytest.raises(ConnectionError):
        online.update(STREAM[100:200])
    assert (pickle.dumps(online._state), student_bits(online.estimator_)) == before
    assert online._rng.get_state()[1].tobytes() == state
    assert online.n_samples_seen_ == 100
    twin = OnlineBDistil(clf, teacher, **options)
    online.set_params(teacher=teacher).update(STREAM[100:200])
    twin.update(STREAM[:200])
    assert student_bits(online.estimator_) == student_bits(twin.estimator_)


def test_pickled_stream_goes_on(clf, teacher):
    online = OnlineBDistil(clf, teacher, stride=4, max_updates=2, random_state=0)
    online.update(STREAM[:200])
    other = pickle.loads(pickle.dumps(online))
    for stream in (online, other):
        stream.update(STREAM[200:])
    assert student_bits(online.estimator_) == student_bits(other.estimator_)


def test_save_and_load_of_the_updated_students(clf, teacher, tmp_path):
    online = OnlineBDistil(clf, teacher, random_state=0)
    online.update(STREAM)
    save(online.estimator_, tmp_path / "students.zip")
    loaded = load(tmp_path / "students.zip")
    np.testing.assert_array_equal(loaded.predict(X), online.predict(X))


def test_fit_goes_to_the_start_of_the_stream(clf, teacher):
    online = OnlineBDistil(FrozenEstimator(clf), teacher, stride=16, random_state=0)
    first = online.update(STREAM)
    bits = student_bits(online.estimator_)
    online.fit(None)
    assert (online.n_samples_seen_, online.stride_history_) == (0, [])
    np.testing.assert_array_equal(online.update(STREAM), first)
    assert student_bits(online.estimator_) == bits
    np.testing.assert_array_equal(clone(online).update(STREAM), first)


def test_fit_of_students_that_are_not_fitted(teacher):
    online = OnlineBDistil(BDistilClassifier(teacher, **SMALL), teacher)
    with pytest.raises(NotFittedError, match="call fit"):
        online.update(X)
    online.fit(X[:100], Y[:100])
    assert online.update(X[100:]).shape == (600,)


def test_fit_of_fitted_students_raises(clf, teacher):
    with raises("OnlineBDistil", "fitted BDistilClassifier", "FrozenEstimator"):
        OnlineBDistil(clf, teacher).fit(X)


def test_update_asks_a_teacher_once_about_each_row(clf, teacher):
    class Priced(type(teacher.estimator)):
        def predict(self, X):
            raise AssertionError("another call")

    priced = Priced()
    vars(priced).update(vars(teacher.estimator))
    online = OnlineBDistil(clf, FrozenEstimator(priced), stride=4)
    online.update(STREAM[:100])
    assert online.n_teacher_calls_ == 25


def test_update_of_frames_keeps_their_names(teacher):
    names = [f"column {i}" for i in range(8)]
    forest = RandomForestClassifier(5, random_state=0)
    forest.fit(pd.DataFrame(X, columns=names), Y)
    of_frames = FrozenEstimator(forest)
    frame = pd.DataFrame(STREAM, columns=names)
    clf = BDistilClassifier(of_frames, **SMALL).fit(frame[:100])
    online = OnlineBDistil(clf, of_frames, stride=12, max_updates=1)
    labels = online.update(frame)
    assert list(online.feature_names_in_) == names
    assert online.n_updates_ > 0
    assert labels.shape == (600,)


def test_update_of_several_labels(teacher):
    rows, labels = make_multilabel_classification(300, 6, random_state=0)
    forest = FrozenEstimator(
        RandomForestClassifier(10, random_state=0).fit(rows, labels)
    )
    clf = BDistilClassifier(forest, **SMALL).fit(rows[:100], labels[:100])
    online = OnlineBDistil(clf, forest, stride=8, committee=0.5, max_updates=1)
    assert online.update(rows).shape == labels.shape
    assert 0 <= online.agreement_history_[0] <= 1


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"stride": (0, 8)}, ("'stride'", "(0, 8)")),
        ({"stride": (9, 8)}, ("'stride'", "(9, 8)")),
        ({"stride": 2.5}, ("'stride'", "2.5")),
        ({"target": 0}, ("'target'", "Got 0")),
        ({"max_updates": 0}, ("'max_updates'",)),
        ({"replay": -1}, ("'replay'",)),
        ({"committee": 2}, ("'committee'",)),
        ({"budget": 1.5}, ("'budget'",)),
        ({"budget": -1}, ("'budget'",)),
        ({"teacher": LogisticRegression()}, ("'teacher'", "come trained")),
        ({"teacher": "precomputed"}, ("'teacher'", "come trained")),
        ({"estimator": LogisticRegression()}, ("'estimator'", "BDistilClassifier")),
    ],
)
def test_update_with_unusable_parameter_raises(clf, teacher, params, parts):
    online = OnlineBDistil(clf, teacher).set_params(**params)
    with raises("OnlineBDistil", *parts):
        online.update(X)


def test_parameter_that_is_unusable_later_in_the_stream_raises(clf, teacher):
    online = OnlineBDistil(clf, teacher)
    online.update(STREAM[:20])
    for params in ({"target": 5}, {"stride": 0}, {"teacher": None}, {"committee": "x"}):
        name = next(iter(params))
        with raises(f"'{name}'", "OnlineBDistil"):
            copy.deepcopy(online).set_params(**params).update(STREAM[20:40])


@pytest.mark.parametrize("params", [{"budget": 3}, {"batch_size": 2}])
def test_parameter_that_is_lower_later_is_met_at_once(clf, teacher, params):
    online = OnlineBDistil(clf, teacher, stride=1, batch_size=8, max_updates=1)
    online.update(STREAM[:5])
    assert not online.agreement_history_
    online.set_params(**params)
    assert len(online.update(STREAM[5:20])) == 15
    assert online.agreement_history_
    assert online.n_teacher_calls_ == (5 if "budget" in params else 20)


def test_update_of_rows_in_another_form_raises(clf, teacher):
    online = OnlineBDistil(clf, teacher, stride=1, batch_size=4)
    online.update(STREAM[:6])
    with raises("same form", "an array and a sparse matrix"):
        online.update(sparse.csr_array(STREAM[6:12]))
    assert online.n_samples_seen_ == 6
    assert len(online.update(STREAM[6:12].tolist())) == 6


def test_first_update_of_which_the_teacher_fails_leaves_no_stream(clf):
    online = OnlineBDistil(clf, lambda rows: None)
    with raises("'teacher'", "OnlineBDistil", "None"):
        online.update(STREAM[:20])
    with pytest.raises(NotFittedError):
        online.predict(X)


@pytest.mark.parametrize("method", ["decision_function", "predict_proba"])
def test_scores_of_two_classes_are_doubted_in_batches(method):
    answers = LogisticRegression().fit(X, Y > 0)

    def teacher(rows):
        scores = getattr(answers, method)(rows)
        return scores[:, 1] if scores.ndim == 2 else scores

    clf = BDistilClassifier(FrozenEstimator(answers), **SMALL).fit(X[:100])
    online = OnlineBDistil(clf, teacher, stride=2, max_updates=1, random_state=0)
    # Some logits are in the range of probabilities; all of a batch are not.
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        online.update(STREAM[:200])
    assert {note.category for note in found} == (
        {DoubtfulTeacherWarning} if method == "predict_proba" else set()
    )


def test_committee_of_one_raises(clf, teacher):
    with raises("'committee'", "two stages"):
        OnlineBDistil(clf[:1], teacher, committee=0.5).update(X)


def test_teacher_of_other_classes_raises(clf):
    teacher = FrozenEstimator(LogisticRegression().fit(X, Y + 1))
    online = OnlineBDistil(clf, teacher, stride=1)
    with raises("classes", "[1, 2, 3]"):
        online.update(X)
    assert not hasattr(online, "n_teacher_calls_")
