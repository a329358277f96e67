"""Cascades: who answers which row, what it costs, and what is refused."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.stats import binom
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import get_tags, shuffle

from common import SMALL, raises
from skbdistil import BDistilClassifier
from skbdistil.cascade import CascadeClassifier
from skbdistil.exceptions import CostsUnknownWarning, NothingCertifiedWarning
from skbdistil.export import to_onnx
from skbdistil.persistence import load, save

RULES = ["vote", "score", "confidence"]


class Told(ClassifierMixin, BaseEstimator):
    """Reads its probabilities from columns of the rows, and counts the rows."""

    def __init__(self, first=0, classes=("a", "b", "c")):
        self.first = first
        self.classes = classes

    def fit(self, X, y):
        self.classes_ = np.array(self.classes)
        self.seen_ = []
        return self

    def predict_proba(self, X):
        self.seen_.append(np.asarray(X)[:, -1].astype(int).tolist())
        return np.asarray(X)[:, self.first : self.first + len(self.classes_)]

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


# What three members say of three classes, what a last tier says, and the row's number.
TOLD = np.array(
    [
        [0.8, 0.1, 0.1, 0.6, 0.2, 0.2, 0.7, 0.2, 0.1, 0.0, 0.0, 1.0, 0],
        [0.8, 0.1, 0.1, 0.6, 0.2, 0.2, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1],
        [0.1, 0.9, 0.0, 0.0, 0.1, 0.9, 0.4, 0.3, 0.3, 0.0, 0.0, 1.0, 2],
        [0.0, 0.4, 0.6, 0.0, 0.4, 0.6, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 3],
    ]
)


def told(**params):
    tiers = [[Told(0), Told(3), Told(6)], Told(9)]
    return CascadeClassifier(tiers, **params).fit(TOLD, list("abca"))


@pytest.fixture(scope="module")
def digits():
    X, y = shuffle(*load_digits(return_X_y=True), random_state=0)
    return X[:600], y[:600], X[600:1200], y[600:1200], X[1200:], y[1200:]


@pytest.fixture(scope="module")
def tiers(digits):
    """Frozen: three shallow trees, one deeper, a forest."""
    X, y = digits[:2]
    small = [
        DecisionTreeClassifier(max_depth=6, max_features=8, random_state=seed)
        for seed in range(3)
    ]
    middle = RandomForestClassifier(5, random_state=0)
    large = RandomForestClassifier(50, random_state=0)
    return [
        [FrozenEstimator(tree.fit(X, y)) for tree in small],
        [FrozenEstimator(middle.fit(X, y))],
        FrozenEstimator(large.fit(X, y)),
    ]


# Rules


@pytest.mark.parametrize(
    ("rule", "threshold", "labels", "tiers"),
    [
        ("vote", 1.0, "acca", [1, 2, 2, 2]),
        ("vote", 2 / 3, "aacc", [1, 1, 2, 1]),
        ("vote", 1 / 3, "aaac", [1, 1, 1, 1]),
        ("score", 0.6, "acca", [1, 2, 2, 2]),
        ("score", 0.39, "aacc", [1, 1, 2, 1]),
        ("confidence", 0.59, "accb", [1, 2, 2, 1]),
    ],
)
def test_rule_decides_label_and_tier(rule, threshold, labels, tiers):
    cascade = told(rule=rule, threshold=threshold)
    assert_array_equal(cascade.predict(TOLD), list(labels))
    assert_array_equal(cascade.exit_tiers(TOLD), tiers)


def test_probabilities_are_those_of_the_rule():
    vote, confidence = told(threshold=0), told(rule="confidence", threshold=0)
    assert_allclose(vote.predict_proba(TOLD)[1], [2 / 3, 1 / 3, 0])
    assert_allclose(confidence.predict_proba(TOLD)[1], [1.4 / 3, 1.3 / 3, 0.1])
    assert not hasattr(told(rule="score"), "predict_proba")


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, list])
def test_tier_sees_only_rows_that_reach_it_in_their_order(kind):
    cascade = told(threshold=2 / 3)
    X = TOLD.tolist() if kind is list else kind(TOLD)
    cascade.predict(X)
    assert cascade.tiers_[0][2].seen_ == [[0, 1, 2, 3]]
    assert cascade.tiers_[1][0].seen_ == [[2]]


def test_tier_that_no_row_reaches_is_not_called():
    cascade = told(threshold=0)
    cascade.predict(TOLD)
    assert cascade.tiers_[1][0].seen_ == []


# Identities


@pytest.mark.parametrize("rule", RULES)
def test_impossible_threshold_is_the_last_tier(rule, tiers, digits):
    X = digits[4]
    cascade = CascadeClassifier(tiers, rule=rule, threshold=1.1).fit(X)
    assert_array_equal(cascade.predict(X), tiers[-1].predict(X))
    assert_array_equal(cascade.exit_tiers(X), 3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore:Tier 2:UserWarning")
def test_threshold_of_zero_is_the_first_tier(rule, tiers, digits):
    X = digits[4]
    cascade = CascadeClassifier(tiers, rule=rule, threshold=0).fit(X)
    first = CascadeClassifier(tiers[:1], rule=rule).fit(X)
    assert_array_equal(cascade.predict(X), first.predict(X))
    assert_array_equal(cascade.exit_tiers(X), 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore:Tier 2:UserWarning")
def test_row_is_answered_whatever_is_beside_it(rule, tiers, digits):
    X = digits[4]
    cascade = CascadeClassifier(tiers, rule=rule, threshold=0.7).fit(X)
    labels, exits = cascade.predict(X), cascade.exit_tiers(X)
    assert len(np.unique(exits)) > 1
    order = np.random.default_rng(0).permutation(len(X))
    assert_array_equal(cascade.predict(X[order]), labels[order])
    assert_array_equal(cascade.exit_tiers(X[order]), exits[order])
    assert_array_equal([cascade.predict(X[[i]])[0] for i in range(20)], labels[:20])


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.coo_matrix])
def test_sparse_rows_predict_as_dense_ones(kind, tiers, digits):
    X = digits[4]
    cascade = CascadeClassifier(tiers, rule="confidence", threshold=0.7).fit(X)
    assert_array_equal(cascade.predict(kind(X)), cascade.predict(X))


# Costs


@pytest.mark.parametrize(("parallel", "first"), [(True, 5), (False, 9)])
def test_costs_equal_those_counted_by_hand(parallel, first, tiers, digits):
    X = digits[4]
    cascade = CascadeClassifier(
        tiers,
        rule="confidence",
        threshold=0.7,
        costs=[[1, 3, 5], 7.0, 11],
        parallel=parallel,
    ).fit(X)
    assert_array_equal(cascade.tier_costs_, [first, 7, 11])
    assert_array_equal(cascade.costs_, [first, first + 7, first + 18])
    labels, costs = cascade.predict_with_cost(X)
    counted = np.full(len(X), first)
    exits = cascade.exit_tiers(X)
    counted[exits > 1] += 7
    counted[exits > 2] += 11
    assert_array_equal(costs, counted)
    assert_array_equal(labels, cascade.predict(X))


def test_costs_of_distilled_members_are_their_macs(digits):
    X, y = digits[:2]
    clf = BDistilClassifier(**SMALL).fit(X, y)
    cascade = CascadeClassifier(
        [[FrozenEstimator(clf[:2]), FrozenEstimator(clf[:1])], FrozenEstimator(clf)],
        parallel=False,
    ).fit(X)
    macs = clf.stage_costs_.cumulative_macs
    assert_array_equal(cascade.tier_costs_, [macs[0] + macs[1], macs[2]])


def test_unknown_costs_are_nan_with_a_warning():
    cascade = told()
    assert np.isnan(cascade.costs_).all()
    with pytest.warns(CostsUnknownWarning, match="State them by the 'costs'"):
        _, costs = cascade.predict_with_cost(TOLD)
    assert np.isnan(costs).all()


# Calibration


@pytest.mark.parametrize("rule", RULES)
def test_calibrated_threshold_keeps_the_drop_on_its_rows(rule, tiers, digits):
    X, y = digits[2:4]
    cascade = CascadeClassifier(
        [tiers[0], tiers[2]],
        rule=rule,
        threshold="calibrate",
        costs=[1, 50],
        target="accuracy",
        max_drop=0.02,
    ).fit(X, y)
    drop = tiers[2].score(X, y) - cascade.score(X, y)
    assert drop <= 0.02 + 1e-12
    path, point = cascade.path_, cascade.best_index_
    assert path.scores[point] == pytest.approx(cascade.score(X, y))
    assert path.costs[point] == pytest.approx(cascade.predict_with_cost(X)[1].mean())
    assert path.costs[point] < 51
    shares = np.bincount(cascade.exit_tiers(X), minlength=3)[1:] / len(X)
    assert_allclose(path.exits[point], shares)
    for found, known in zip(cascade.exit_path(X, y), path, strict=True):
        assert_allclose(found, known)


def test_max_cost_bounds_the_mean_cost(tiers, digits):
    X, y = digits[2:4]
    cascade = CascadeClassifier(
        tiers,
        rule="confidence",
        threshold="calibrate",
        costs=[1, 5, 50],
        target="accuracy",
        max_cost=20,
    ).fit(X, y)
    assert cascade.predict_with_cost(X)[1].mean() <= 20


def test_guarantee_is_that_of_learn_then_test(tiers, digits):
    X = digits[2]
    cascade = CascadeClassifier(
        [tiers[0], tiers[2]],
        rule="score",
        threshold="calibrate",
        max_drop=0.2,
        delta=0.1,
        random_state=0,
    ).fit(X)  # the costs need not be known
    n_tested = 400
    path, point = cascade.path_, cascade.best_index_
    tails = binom.cdf(np.rint(path.losses * n_tested), n_tested, 0.2)
    assert point > 0
    assert (tails[1 : point + 1] <= 0.1).all()
    assert point + 1 == len(tails) or tails[point + 1] > 0.1


def test_guarantee_of_nothing_warns_and_asks_the_last_tier(tiers, digits):
    X = digits[2]
    cascade = CascadeClassifier(
        [tiers[0][:1], tiers[2]], threshold="calibrate", max_drop=0.01, delta=0.1
    )
    with pytest.warns(NothingCertifiedWarning, match="all rows will go to the last"):
        cascade.fit(X)
    assert_array_equal(cascade.exit_tiers(X), 2)


def test_too_few_rows_for_the_guarantee_raises(tiers, digits):
    cascade = CascadeClassifier(tiers, threshold="calibrate", delta=0.1)
    with raises("max_drop=0.01 with delta=0.1 on 50 calibration rows", "at least 345"):
        cascade.fit(digits[2][:50])


def test_members_are_not_trained_on_calibration_rows(digits):
    X, y = digits[:2]
    cascade = CascadeClassifier(
        [KNeighborsClassifier(1), KNeighborsClassifier(3)],
        rule="confidence",
        threshold="calibrate",
        costs=[1, 2],
        cv=0.25,
        random_state=0,
    ).fit(X, y)
    assert cascade.tiers_[0][0].n_samples_fit_ == 450


# As scikit-learn's meta-estimators


def test_parameters_of_members_have_names():
    cascade = CascadeClassifier([[GaussianNB(), DecisionTreeClassifier()], LinearSVC()])
    cascade.set_params(tier1_2__max_depth=3, tier2_1=LogisticRegression())
    assert cascade.tiers[0][1].max_depth == 3
    assert isinstance(cascade.tiers[1], LogisticRegression)
    cascade.set_params(tiers=[GaussianNB()], tier1_1__var_smoothing=0.1)
    assert cascade.get_params()["tier1_1__var_smoothing"] == 0.1
    assert "tier2_1" not in cascade.get_params()
    with raises("tier3_1"):
        cascade.set_params(tier3_1=GaussianNB())


def test_clone_and_pickle_and_search(digits):
    X, y = digits[:2]
    cascade = CascadeClassifier(
        [[DecisionTreeClassifier(random_state=s) for s in (0, 1)], GaussianNB()]
    )
    pipeline = make_pipeline(StandardScaler(), cascade)
    search = GridSearchCV(
        pipeline,
        {
            "cascadeclassifier__tier1_1__max_depth": [2, 8],
            "cascadeclassifier__threshold": [0.5, 1.0],
        },
        cv=2,
    ).fit(X, y)
    best = search.best_estimator_
    assert best[-1].tiers_[0][0].max_depth == best[-1].tiers[0][0].max_depth
    assert_array_equal(pickle.loads(pickle.dumps(best)).predict(X), best.predict(X))
    assert not hasattr(clone(best)[-1], "tiers_")
    assert "tier1_2" in best._repr_html_()


def test_members_that_are_given_stay_unfitted(digits):
    tree = DecisionTreeClassifier()
    cascade = CascadeClassifier([[tree, tree], tree]).fit(*digits[:2])
    assert not hasattr(tree, "tree_")
    assert len({id(m) for tier in cascade.tiers_ for m in tier}) == 3


def test_sample_weight_reaches_the_members(digits):
    X, y = digits[:2]
    weight = (y < 5).astype(float) + 1e-9
    cascade = CascadeClassifier([GaussianNB(), GaussianNB(var_smoothing=0.1)])
    cascade.set_params(rule="confidence").fit(X, y, sample_weight=weight)
    for tier in cascade.tiers_:
        expected = clone(tier[0]).fit(X, y, sample_weight=weight)
        assert_allclose(tier[0].theta_, expected.theta_)


def test_sample_weight_is_cut_to_the_rows_of_training(digits):
    X, y = digits[:2]
    CascadeClassifier(
        [GaussianNB(), GaussianNB()],
        rule="confidence",
        threshold="calibrate",
        costs=[1, 2],
    ).fit(X, y, sample_weight=np.ones(len(y)))


def test_metadata_is_routed_to_members_that_request_it(digits):
    X, y = digits[:2]
    weight = (y < 5).astype(float) + 1e-9
    with config_context(enable_metadata_routing=True):
        asks = GaussianNB().set_fit_request(sample_weight=True)
        ignores = GaussianNB().set_fit_request(sample_weight=False)
        cascade = CascadeClassifier([[asks, ignores], ignores])
        cascade.fit(X, y, sample_weight=weight)
    first, second = cascade.tiers_[0]
    assert_allclose(second.class_prior_, GaussianNB().fit(X, y).class_prior_)
    assert first.class_prior_[9] < 1e-6


def test_groups_are_trained_or_calibrated_on(digits):
    class Grouped(GaussianNB):
        def fit(self, X, y, groups=None):
            self.groups_ = set(groups)
            return super().fit(X, y)

    X, y = digits[:2]
    with config_context(enable_metadata_routing=True):
        member = Grouped().set_fit_request(groups=True)
        cascade = CascadeClassifier(
            [[member], GaussianNB()],
            rule="confidence",
            threshold="calibrate",
            costs=[1, 2],
        ).fit(X, y, groups=np.arange(600) // 60)
    assert len(cascade.tiers_[0][0].groups_) == 8


def test_metadata_for_frozen_members_raises(tiers, digits):
    with raises("['sample_weight']", "all of these are frozen"):
        CascadeClassifier(tiers).fit(*digits[:2], sample_weight=np.ones(600))


def test_names_of_features_are_kept(digits):
    X = pd.DataFrame(digits[0]).add_prefix("pixel_")
    cascade = CascadeClassifier([GaussianNB()]).fit(X, digits[1])
    assert_array_equal(cascade.feature_names_in_, X.columns)
    assert cascade.n_features_in_ == 64


# Bad input


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"tiers": []}, ["'tiers' parameter of CascadeClassifier", "Got []"]),
        ({"tiers": [[], GaussianNB()]}, ["a list of at least one"]),
        ({"tiers": [GaussianNB]}, ["must be classifiers", "tier1_1"]),
        ({"tiers": [[GaussianNB(), StandardScaler()]]}, ["tier1_2 is StandardScaler"]),
        (
            {"tiers": [LinearSVC()], "rule": "score"},
            ["tier1_1", "no predict_proba", "rule='vote'"],
        ),
        ({"costs": [1]}, ["'costs' parameter", "2 tiers", "Got [1]"]),
        ({"costs": 3}, ["'costs' parameter", "Got 3"]),
        ({"costs": [1, -1]}, ["Item 2 of the 'costs'", "Got -1"]),
        ({"costs": [[1, 2], 3]}, ["Item 1 of the 'costs'", "Got [1, 2]"]),
        ({"costs": ["a", 3]}, ["Item 1 of the 'costs'", "Got 'a'"]),
        ({"threshold": "calibrate"}, ["chooses the threshold", "nan", "'costs'"]),
        (
            {"threshold": "calibrate", "delta": 0.1, "max_cost": 1},
            ["'delta' and 'max_cost'", "exclude each other"],
        ),
        ({"threshold": "sure"}, ["'threshold' parameter", "'sure'"]),
        ({"threshold": -0.1}, ["'threshold' parameter", "-0.1"]),
        ({"rule": "mean"}, ["'rule' parameter", "'mean'"]),
    ],
)
def test_bad_parameter_raises(params, parts, digits):
    tiers = [GaussianNB(), GaussianNB()]
    cascade = CascadeClassifier(**{"tiers": tiers, "rule": "confidence", **params})
    with raises(*parts):
        cascade.fit(digits[0][:100], digits[1][:100])


def test_fitted_member_that_is_not_frozen_raises(digits):
    member = GaussianNB().fit(*digits[:2])
    with raises("tier1_1", "fitted GaussianNB", "FrozenEstimator"):
        CascadeClassifier([member]).fit(*digits[:2])


def test_other_classes_raise(digits):
    X, y = digits[:2]
    tiers = [FrozenEstimator(GaussianNB().fit(X, y % n)) for n in (2, 3)]
    with raises("same classes", "tier1_1 knows [0, 1]", "tier2_1 [0, 1, 2]"):
        CascadeClassifier(tiers, rule="confidence").fit(X)


@pytest.mark.parametrize("target", ["agreement", "accuracy"])
def test_missing_labels_raise(target, tiers, digits):
    members = [GaussianNB()] if target == "agreement" else tiers
    cascade = CascadeClassifier(members, threshold="calibrate", target=target)
    with raises("requires y to be passed, but the target y is None"):
        cascade.fit(digits[0])


def test_sample_weight_that_a_member_does_not_take_raises(digits):
    with raises("tier1_1", "KNeighborsClassifier", "'sample_weight'"):
        CascadeClassifier([KNeighborsClassifier()]).fit(
            *digits[:2], sample_weight=np.ones(600)
        )


def test_other_metadata_without_routing_raises(digits):
    with raises("['colour']", "metadata routing only"):
        CascadeClassifier([GaussianNB()]).fit(*digits[:2], colour=1)


def test_probabilities_that_are_not_finite_raise():
    cascade = told(rule="confidence")
    with raises("Told, a member of", "must give finite", "Got NaN or infinity"):
        cascade.predict(np.where(TOLD == 0.9, np.nan, TOLD))


class Odd(Told):
    """Predicts what no classifier should."""

    def __init__(self, labels, proba=None):
        self.labels = labels
        self.proba = proba

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.array(self.labels)

    def predict_proba(self, X):
        return np.array(self.proba)


@pytest.mark.parametrize(
    ("rule", "member", "parts"),
    [
        ("vote", Odd(["a", "b", "x"]), ["predicted 'x'", "not among its classes"]),
        ("vote", Odd([np.nan] * 3), ["nan, which is not among its classes"]),
        ("vote", Odd(["a"]), ["labels of shape (3,)", "Got shape (1,)"]),
        ("vote", Odd([["a"]] * 3), ["labels of shape (3,)", "Got shape (3, 1)"]),
        ("score", Odd(None, [[0.5, 0.5]] * 3), ["shape (3, 3)", "Got shape (3, 2)"]),
        ("confidence", Odd(None, [[1.0] * 3]), ["shape (3, 3)", "Got shape (1, 3)"]),
    ],
)
@pytest.mark.parametrize("is_last", [False, True])
def test_member_that_answers_what_is_no_answer_raises(rule, member, parts, is_last):
    tiers = [[Told(), member], Told(9)]
    if is_last:
        tiers = [Told(), [Told(9), member]]
    cascade = CascadeClassifier(tiers, rule=rule, threshold=1.1).fit(TOLD, list("abca"))
    with raises("Odd, a member of CascadeClassifier", *parts):
        cascade.predict(TOLD[:3])


def test_lonely_vote_warns_that_later_tiers_are_not_asked(tiers, digits):
    with pytest.warns(UserWarning, match="Tier 2 of this CascadeClassifier has one"):
        CascadeClassifier(tiers).fit(digits[0])


def test_predict_before_fit_raises(digits):
    with pytest.raises(NotFittedError):
        CascadeClassifier([GaussianNB()]).predict(digits[0])


def test_rows_may_be_what_all_members_take():
    trees, bayes = HistGradientBoostingClassifier(), GaussianNB()
    frozen = FrozenEstimator(HistGradientBoostingClassifier())
    assert get_tags(CascadeClassifier([[trees], frozen])).input_tags.allow_nan
    assert not get_tags(CascadeClassifier([trees, bayes])).input_tags.allow_nan


def test_tags_of_members_that_are_none_are_left_out():
    assert is_classifier(CascadeClassifier([GaussianNB, "tree", None]))


def test_no_rows_raise(tiers, digits):
    cascade = CascadeClassifier(tiers[::2]).fit(digits[0])
    with raises("0 sample"):
        cascade.predict(digits[0][:0])


def test_saving_says_what_to_do(tiers, digits, tmp_path):
    cascade = CascadeClassifier(tiers[::2]).fit(digits[0])
    pipeline = make_pipeline(StandardScaler(), cascade)
    for model in (cascade, FrozenEstimator(cascade), pipeline):
        with raises("CascadeClassifier cannot be saved", "Pickle it", error=TypeError):
            save(model, tmp_path / "cascade.skb")
    with raises("Got CascadeClassifier", error=TypeError):
        to_onnx(cascade, tmp_path / "cascade")


def test_pickle_predicts_the_same_with_distilled_members(digits, tmp_path):
    _, _, cascade = changing(digits)
    joblib.dump(cascade, tmp_path / "cascade.joblib")
    loaded = joblib.load(tmp_path / "cascade.joblib")
    X = digits[4]
    assert_array_equal(loaded.predict(X), cascade.predict(X))
    assert_array_equal(loaded.exit_tiers(X), cascade.exit_tiers(X))


def test_skops_takes_a_cascade_whose_members_it_takes(digits):
    skops = pytest.importorskip("skops.io")
    members = [GaussianNB(), GaussianNB(var_smoothing=0.1)]
    cascade = CascadeClassifier([members, GaussianNB()], rule="score")
    data = skops.dumps(cascade.fit(digits[0][:, :8], digits[1]))
    loaded = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    X = digits[4][:, :8]
    assert_array_equal(loaded.predict(X), cascade.predict(X))


def test_members_from_files_make_the_same_cascade(digits, tmp_path):
    clf, tree, cascade = changing(digits)
    save(clf, tmp_path / "clf.skb")
    clf = load(tmp_path / "clf.skb")
    tiers = [[FrozenEstimator(clf), FrozenEstimator(clf[:1])], FrozenEstimator(tree)]
    other = clone(cascade).set_params(tiers=tiers).fit(digits[2])
    assert_array_equal(other.predict(digits[4]), cascade.predict(digits[4]))


def test_several_labels_per_row_raise():
    rng = np.random.RandomState(0)
    X = rng.randn(40, 3)
    Y = (X > 0).astype(int)
    cascade = CascadeClassifier([DecisionTreeClassifier(), LogisticRegression()])
    with pytest.raises(ValueError, match="takes one label per row"):
        cascade.fit(X, Y)
    several = FrozenEstimator(DecisionTreeClassifier().fit(X, Y))
    with pytest.raises(ValueError, match=r"tier1_1, a .* predicts 3 outputs"):
        CascadeClassifier([several, LogisticRegression()]).fit(X, Y[:, 0])


def test_repr_of_a_cascade_without_tiers_is_one():
    assert "CascadeClassifier" in CascadeClassifier([])._repr_html_()


def test_labels_of_another_kind_raise():
    X, y = load_digits(return_X_y=True)
    X, y = X[:200], y[:200]
    cascade = CascadeClassifier(
        [GaussianNB(), DecisionTreeClassifier(random_state=0)],
        rule="confidence",
        threshold="calibrate",
        costs=[1, 2],
        random_state=0,
    ).fit(X, y)
    right = cascade.exit_path(X, y.astype(object))
    assert_array_equal(right.scores, cascade.exit_path(X, y).scores)
    with raises("labels such as", "strings are never equal to numbers"):
        cascade.exit_path(X, y.astype(str))
    # Labels that no member knows may come up: no tier is right about them.
    assert (cascade.exit_path(X, y + 100).scores == 0).all()


# Members that change after the fit


def changing(digits):
    X, y = digits[:2]
    clf = BDistilClassifier(**SMALL).fit(X, y)
    tree = DecisionTreeClassifier(max_depth=5, random_state=0).fit(X, y)
    tiers = [[FrozenEstimator(clf), FrozenEstimator(clf[:1])], FrozenEstimator(tree)]
    cascade = CascadeClassifier(tiers, rule="score", threshold=0.6)
    return clf, tree, cascade.fit(digits[2])


def test_other_number_of_stages_of_a_frozen_member_raises_until_it_is_fitted(digits):
    clf, _, cascade = changing(digits)
    costs = cascade.tier_costs_.copy()
    clf.set_params(n_stages=1)
    for ask in (cascade.predict, cascade.predict_with_cost, cascade.exit_path):
        with raises("another number of stages", error=NotFittedError):
            ask(digits[4])
    cascade.fit(digits[2]).predict(digits[4])
    assert cascade.tier_costs_[0] < costs[0]


@pytest.mark.parametrize("which", ["students", "tree"])
def test_frozen_member_that_is_fitted_again_raises(which, digits):
    clf, tree, cascade = changing(digits)
    before = pickle.loads(pickle.dumps(cascade))
    {"students": clf, "tree": tree}[which].fit(*digits[2:4])
    after = pickle.loads(pickle.dumps(cascade))
    for copy in (cascade, after):
        with raises("has been fitted again or replaced", error=NotFittedError):
            copy.predict(digits[4])
    before.predict(digits[4])
    cascade.fit(digits[2]).predict(digits[4])


def test_members_that_are_no_estimators_raise():
    for odd in ("tree", None, lambda X: X, [GaussianNB()]):
        with raises("members of the 'tiers'", "must be classifiers", "tier1_2 is"):
            CascadeClassifier([[GaussianNB(), odd]]).fit(TOLD, list("abca"))
