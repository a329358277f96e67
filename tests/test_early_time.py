"""Early prediction in time: stages of students and steps, streams, what is refused."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from skorch import NeuralNet

from skbdistil import BDistilClassifier, _prefixes
from skbdistil.early_exit import EarlyExitClassifier
from skbdistil.early_time import EarlyTimeClassifier, PrefixBatches
from skbdistil.ensemble import ProgressiveEnsemble
from skbdistil.export import to_onnx
from skbdistil.metrics import earliness, earliness_harmonic_mean
from skbdistil.persistence import load, save
from skbdistil.students import MLP, ConvNet1d, RecurrentNet

N_STEPS, N_STUDENTS = 12, 3
STEPS = [3, 7, 12]
SMALL = {
    "student": partial(RecurrentNet, hidden=(6, 5)),
    "n_estimators": N_STUDENTS,
    "max_epochs": 3,
    "learning_rate": 0.02,
    "edge_tol": np.inf,
    "random_state": 0,
}


def make_series(n_samples=300):
    """Series whose class shows more and more."""
    rng = np.random.default_rng(0)
    y = np.arange(n_samples) % 3
    means = (y - 1)[:, None, None] * np.linspace(0, 1, N_STEPS)[:, None] * [1.0, -0.5]
    return (means + rng.normal(size=means.shape)).astype(np.float32), y


def scores_of(y):
    return 4 * np.eye(3, dtype=np.float32)[y]


def distilled(**params):
    X, y = make_series()
    clf = BDistilClassifier("precomputed", **{**SMALL, **params})
    return clf.fit(X[:150], y[:150], teacher_scores=scores_of(y[:150]))


@pytest.fixture(scope="module")
def data():
    X, y = make_series()
    return X[150:], y[150:]


@pytest.fixture(scope="module")
def clf():
    return distilled()


@pytest.fixture(scope="module")
def early(clf, data):
    frozen = FrozenEstimator(clf)
    return EarlyTimeClassifier(frozen, STEPS, target="accuracy", max_drop=0.05).fit(
        *data
    )


def never(early):
    """The same, but no row leaves before the last stage."""
    early = pickle.loads(pickle.dumps(early))
    early.thresholds_[:] = np.inf
    return early


# What a stage is


def test_stages_are_all_students_at_each_number_of_steps(early):
    expected = [[k, s] for s in STEPS for k in range(1, N_STUDENTS + 1)]
    assert_array_equal(early.stages_, expected)
    assert early.thresholds_.shape == (len(expected) - 1,)


@pytest.mark.parametrize("connection", [None, "dense", "last", "wide"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_stage_gives_what_students_alone_give_on_the_prefix(data, connection, cell):
    student = partial(RecurrentNet, hidden=(4,), cell=cell)
    clf = distilled(student=student, connection=connection, max_epochs=1)
    X, _ = data
    early = EarlyTimeClassifier(FrozenEstimator(clf), STEPS).fit(X)
    path_scores = early._stage_scores(clf, X, fitted=True)
    for (k, s), found in zip(early.stages_, path_scores, strict=True):
        with torch.inference_mode():
            *_, mean = clf.ensemble_.truncated(k).stages(torch.from_numpy(X[:, :s]))
        assert_allclose(found, mean.numpy(), rtol=1e-5, atol=1e-6)


def test_last_stage_is_the_estimator_but_for_rounding(early, clf, data):
    X, _ = data
    # The estimator may run all backbones as one layer, in which sums round otherwise.
    assert_allclose(never(early).predict_proba(X), clf.predict_proba(X), rtol=1e-5)


def test_students_with_padding_raise(data):
    student = partial(RecurrentNet, padding_value=0.0)
    clf = distilled(student=student, input_scaling=None, max_epochs=1)
    with pytest.raises(ValueError, match="RecurrentNet without padding_value"):
        EarlyTimeClassifier(FrozenEstimator(clf), STEPS).fit(*data)


def test_estimator_without_early_rows_is_early_exit_in_depth(clf, data):
    X, _ = data
    frozen = FrozenEstimator(clf)
    in_time = EarlyTimeClassifier(frozen, [N_STEPS]).fit(X)
    in_depth = EarlyExitClassifier(frozen, thresholds="stage").fit(X)
    assert_allclose(in_time.thresholds_, in_depth.thresholds_)
    assert_array_equal(in_time.predict(X), in_depth.predict(X))


def test_no_step_is_read_twice(early, data, monkeypatch):
    read = []
    advance = RecurrentNet.advance

    def counted(backbone, x, states=None):
        read.append(len(x) * x.shape[1])
        return advance(backbone, x, states)

    monkeypatch.setattr(RecurrentNet, "advance", counted)
    X, _ = data
    never(early).predict(X)
    assert sum(read) == N_STUDENTS * N_STEPS * len(X)
    read.clear()
    _, stages, _ = early.predict_with_stages(X)
    # Before the last number of steps, all students have read all steps.
    before = np.array([0, *STEPS])[np.searchsorted(STEPS, stages[:, 1])]
    further = stages[:, 0] * (stages[:, 1] - before)
    assert sum(read) == (N_STUDENTS * before + further).sum()


# What it costs


def test_cost_grows_by_the_steps_read(early, clf):
    whole = clf.stage_costs_.macs
    with_one_answer = np.cumsum(np.diff(early.costs_, prepend=0)[-N_STUDENTS:])
    assert (np.diff(early.costs_) > 0).all()
    # Heads and connections run at each number of steps, recurrent layers once a step.
    two_more = early.costs_[-1] - whole.sum()
    heads = two_more / (len(STEPS) - 1)
    per_step = (whole.sum() - heads) / N_STEPS
    assert_allclose(with_one_answer[-1], heads + per_step * (STEPS[2] - STEPS[1]))
    assert 0 < heads < per_step


def test_costs_of_rows_are_those_of_their_stages(early, data):
    labels, stages, costs = early.predict_with_stages(data[0])
    at = early.exit_stages(data[0]) - 1
    assert_array_equal(stages, early.stages_[at])
    assert_array_equal(costs, early.costs_[at])
    assert_array_equal(labels, early.predict(data[0]))
    assert len(np.unique(stages[:, 1])) > 1


def test_expected_share_and_cost_are_those_of_the_calibration_rows(early, data):
    _, stages, costs = early.predict_with_stages(data[0])
    assert early.earliness_ == pytest.approx(earliness(stages[:, 1], N_STEPS))
    assert early.mean_cost_ == pytest.approx(costs.mean())


def test_cost_in_steps_and_of_your_own(clf, data):
    frozen = FrozenEstimator(clf)
    steps = EarlyTimeClassifier(frozen, STEPS, cost="steps", max_cost=6).fit(*data)
    assert_array_equal(steps.costs_, steps.stages_[:, 1])
    assert steps.mean_cost_ <= 6
    own = EarlyTimeClassifier(frozen, STEPS, cost=lambda s: s[:, 1] * 10.0).fit(*data)
    assert_array_equal(own.costs_, 10 * steps.costs_)


def test_drop_is_within_what_is_allowed(early, data):
    X, y = data
    assert early.score(X, y) >= never(early).score(X, y) - 0.05


def test_guarantee_needs_rows(clf, data):
    early = EarlyTimeClassifier(FrozenEstimator(clf), STEPS, delta=0.1, max_drop=0.01)
    with pytest.raises(ValueError, match=r"cannot guarantee max_drop=0\.01"):
        early.fit(*data)


# Streams


@pytest.mark.parametrize("length", [1, 2, 5, 12, 20])
def test_stream_is_predict_to_the_bit(early, data, length):
    X, _ = data
    stream = early.stream(len(X))
    for start in range(0, N_STEPS, length):
        decided = stream.update(X[:, start : start + length])
    labels, stages, costs = early.predict_with_stages(X)
    assert decided.all()
    assert_array_equal(stream.predict(), labels)
    assert_array_equal(stream.stages, stages)
    assert_array_equal(stream.costs, costs)
    assert_array_equal(stream.predict_proba(), early.predict_proba(X))


def test_stream_of_one_series_is_predict_but_for_rounding(early, data):
    X, _ = data
    expected = early.predict_proba(X[:20])
    _, stages, _ = early.predict_with_stages(X[:20])
    for row in range(20):
        stream = early.stream()
        for step in range(N_STEPS):
            if stream.update(X[row : row + 1, step : step + 1]).all():
                break
        assert stream.n_steps == stages[row, 1]
        assert_allclose(stream.predict_proba()[0], expected[row], rtol=1e-5, atol=1e-6)


def test_stream_has_an_answer_for_all_once_there_is_one(early, data):
    X, _ = data
    stream = early.stream(len(X))
    assert not stream.update(X[:, :2]).any()
    assert_array_equal(stream.stages, 0)
    with pytest.raises(ValueError, match="needs 3 steps, and 2 have come in"):
        stream.predict()
    decided = stream.update(X[:, 2:6])
    assert_array_equal(decided, early.predict_with_stages(X)[1][:, 1] == 3)
    assert (stream.stages[~decided] == [N_STUDENTS, 3]).all()
    assert stream.predict().shape == (len(X),)


def test_stream_goes_on_with_the_fit_that_it_began_with(clf, data):
    X, y = data
    early = EarlyTimeClassifier(FrozenEstimator(clf), STEPS).fit(X, y)
    expected, stream = early.predict_proba(X), early.stream(len(X))
    early.set_params(steps=[2], max_drop=0.3).fit(X, y)
    stream.update(X)
    assert_array_equal(stream.predict_proba(), expected)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((1, 4, 3)), r"chunks of shape \(2, n_steps, 2\). Got shape \(1, 4,"),
        (np.zeros((2, 2)), "Got shape"),
        (np.full((2, 4, 2), np.nan), "chunk contains NaN"),
    ],
)
def test_bad_chunk_is_refused_and_not_read(early, data, chunk, message):
    X, _ = data
    stream = early.stream(2)
    with pytest.raises(ValueError, match=message):
        stream.update(chunk)
    stream.update(X[:2])
    assert_allclose(stream.predict_proba(), early.predict_proba(X[:2]), rtol=1e-5)


@pytest.mark.parametrize("n_samples", [0, 1.5, None])
def test_stream_of_no_series_raises(early, n_samples):
    with pytest.raises(ValueError, match="'n_samples' must be a positive int"):
        early.stream(n_samples)


def test_stream_with_a_final_model_raises(clf, data):
    X, y = data
    early = EarlyTimeClassifier(
        FrozenEstimator(clf),
        STEPS,
        final=lambda rows: np.zeros(len(rows), dtype=int),
        final_cost=10**6,
        target="agreement",
        max_drop=0.3,
    ).fit(X, y)
    _, stages, costs = early.predict_with_stages(X)
    assert_array_equal(stages[costs > 10**6][:, 1], N_STEPS)
    with pytest.raises(ValueError, match="a stream does not keep them"):
        early.stream()


# The estimator


@pytest.mark.parametrize("cv", [0.3, 2])
def test_estimator_that_is_fitted_inside(cv):
    X, y = make_series(120)
    clf = BDistilClassifier("precomputed", **{**SMALL, "max_epochs": 1})
    early = EarlyTimeClassifier(clf, STEPS, cv=cv, random_state=0)
    early.fit(X, y, teacher_scores=scores_of(y))
    assert early.path_.exits.shape[1] == len(STEPS) * N_STUDENTS
    assert early.predict(X).shape == y.shape


def test_folds_with_fewer_students_are_aligned_by_steps(early, clf):
    scores = np.arange(len(STEPS) * 2.0).reshape(-1, 1, 1)  # of two students
    found = early._as_long(scores, clf)[:, 0, 0]
    assert_array_equal(found, [0, 1, 1, 2, 3, 3, 4, 5, 5])


def test_fewer_students_in_use(clf, data):
    short = FrozenEstimator(clf[:2])
    early = EarlyTimeClassifier(short, STEPS).fit(*data)
    assert early.stages_[:, 0].max() == 2
    short.estimator.n_stages = 1
    with pytest.raises(NotFittedError, match="calibrated with 2 students"):
        early.predict(data[0])


def test_steps_that_are_set_later_change_nothing_before_a_fit(clf, data):
    X, y = data
    early = EarlyTimeClassifier(FrozenEstimator(clf), STEPS).fit(X, y)
    expected = early.predict_proba(X), early.exit_path(X).costs
    early.set_params(steps=[500])
    assert_array_equal(early.predict_proba(X), expected[0])
    assert_array_equal(early.exit_path(X).costs, expected[1])


def test_clone_pipeline_and_search(clf, data):
    X, y = data
    early = clone(EarlyTimeClassifier(FrozenEstimator(clf), (3, 12)))
    assert early.steps == (3, 12)
    tags = get_tags(early).input_tags
    assert tags.three_d_array
    assert not tags.two_d_array
    pipeline = make_pipeline(FunctionTransformer(lambda rows: 2 * rows - rows), early)
    search = GridSearchCV(
        pipeline,
        {"earlytimeclassifier__steps": [(3, 12), (5,)]},
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.predict(X).shape == y.shape


def test_other_entrances_of_early_exit(early, data):
    X, y = data
    *_, last = early.anytime(X)
    assert_array_equal(last, early.predict(X))
    assert_array_equal(early.predict_within(X, 1000), early.predict(X))
    path = early.exit_path(X, y)
    assert path.costs[early.best_index_] == pytest.approx(early.mean_cost_)


def test_chunks_of_rows_do_not_show(early, data, monkeypatch):
    X, _ = data
    expected = early.predict_proba(X)
    monkeypatch.setattr("skbdistil._bdistil.chunk_rows", lambda *_: 40)
    assert_allclose(early.predict_proba(X), expected, rtol=1e-5, atol=1e-6)


def test_training_on_prefixes_sees_all_of_the_lengths_and_no_other():
    X, y = make_series(64)
    seen = set()

    class Watched(PrefixBatches):
        def __iter__(self):
            for inputs, targets in super().__iter__():
                seen.add(inputs["x"].shape[1])
                yield inputs, targets

    net = NeuralNet(
        None,
        criterion=None,
        optimizer=torch.optim.AdamW,
        iterator_train=Watched,
        iterator_train__steps=STEPS,
    )
    params = {**SMALL, "batch_size": 8, "max_epochs": 2, "net": net}
    clf = BDistilClassifier("precomputed", **params)
    clf.fit(X, y, teacher_scores=scores_of(y))
    assert seen == set(STEPS)


@pytest.mark.parametrize("steps", [[], [0], [4, 2], 3, [1.5]])
def test_prefixes_of_impossible_steps_raise(steps):
    with pytest.raises(ValueError, match="'steps' of PrefixBatches"):
        PrefixBatches(range(8), 4, steps)


@pytest.mark.parametrize(("shape", "steps"), [((5,), [2]), ((5, 2), [2, 6])])
def test_batches_that_are_no_series_or_too_short_raise(shape, steps):
    net = NeuralNet(
        None,
        criterion=None,
        optimizer=torch.optim.AdamW,
        iterator_train=PrefixBatches,
        iterator_train__steps=steps,
    )
    _, y = make_series(30)
    params = {**SMALL, "student": MLP if len(shape) == 1 else RecurrentNet}
    clf = BDistilClassifier("precomputed", net=net, **params)
    with pytest.raises(ValueError, match="PrefixBatches cuts series"):
        clf.fit(np.ones((30, *shape)), y, teacher_scores=scores_of(y))


# Files


def test_save_and_load(early, data, tmp_path):
    X, _ = data
    save(early, tmp_path / "early.skb")
    loaded = load(tmp_path / "early.skb")
    assert loaded.steps == STEPS
    assert_array_equal(loaded.stages_, early.stages_)
    assert_array_equal(loaded.predict_proba(X), early.predict_proba(X))
    stream = loaded.stream(len(X))
    stream.update(X)
    assert_array_equal(stream.predict(), early.predict(X))


def test_pickle_remembers_the_fit(early, data):
    copy = pickle.loads(pickle.dumps(early))
    assert_array_equal(copy.predict_proba(data[0]), early.predict_proba(data[0]))


def test_stages_of_a_file_that_are_not_those_of_the_ensemble_are_none(clf):
    ensemble = clf.ensemble_
    stages = _prefixes.prefix_stages(N_STUDENTS, STEPS)
    assert _prefixes.is_of_ensemble(stages, ensemble)
    for other in (
        stages[:0],
        stages[::-1],
        stages * 2,
        stages - 1,
        _prefixes.prefix_stages(N_STUDENTS + 1, STEPS),
        _prefixes.prefix_stages(N_STUDENTS, [N_STEPS + 1]),
    ):
        assert not _prefixes.is_of_ensemble(other, ensemble)


def test_export_is_refused_by_name(early, data, tmp_path):
    with pytest.raises(TypeError, match="EarlyTimeClassifier cannot be exported"):
        to_onnx(early, tmp_path / "stages")


# What is refused


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [3, 3],
        [5, 2],
        [0, 4],
        [2.5, 4.0],
        [[3, 5]],
        [[3], [5, 7]],
        [-1],
        [True, False],
    ],
)
def test_steps_that_do_not_increase_raise(clf, data, steps):
    with pytest.raises(ValueError, match="'steps' parameter of EarlyTimeClassifier"):
        EarlyTimeClassifier(FrozenEstimator(clf), steps).fit(*data)


def test_steps_beyond_the_series_raise(clf, data):
    with pytest.raises(ValueError, match=r"at most the length of the series, 12\. Got"):
        EarlyTimeClassifier(FrozenEstimator(clf), [5, 13]).fit(*data)


@pytest.mark.parametrize("shape", [(20, 4), (20, 3, 4, 4)])
def test_rows_that_are_no_series_raise(clf, shape):
    with pytest.raises(ValueError, match="needs series: X of shape"):
        EarlyTimeClassifier(FrozenEstimator(clf), STEPS).fit(np.zeros(shape))


@pytest.mark.parametrize(
    "params",
    [
        {"student": ConvNet1d},
        {"student": "auto"},
        {"student": [RecurrentNet, ConvNet1d]},
        {"connection": "lateral"},
    ],
)
def test_students_that_cannot_read_on_are_refused_before_training(params, monkeypatch):
    X, y = make_series(60)
    monkeypatch.setattr(BDistilClassifier, "fit", lambda *_: pytest.fail("trains"))
    before = torch.get_rng_state()
    clf = BDistilClassifier(**{**SMALL, **params})
    with pytest.raises(ValueError, match="must read on step by step"):
        EarlyTimeClassifier(clf, STEPS).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_fitted_students_that_cannot_read_on_are_refused(data):
    convolutional = distilled(student=ConvNet1d, max_epochs=1, n_estimators=1)
    with pytest.raises(ValueError, match="Got ConvNet1d in"):
        EarlyTimeClassifier(FrozenEstimator(convolutional), STEPS).fit(*data)


def test_transform_that_sees_later_steps_raises(clf, data):
    pipeline = make_pipeline(FunctionTransformer(), clone(clf))
    with pytest.raises(ValueError, match="a transform sees whole series"):
        EarlyTimeClassifier(pipeline, STEPS).fit(*data)
    frozen = FrozenEstimator(make_pipeline(FunctionTransformer().fit(data[0]), clf))
    with pytest.raises(ValueError, match="a transform sees whole series"):
        EarlyTimeClassifier(frozen, STEPS).fit(*data)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rule": "agreement"}, "cannot be 'agreement'"),
        ({"rule": "soonest"}, "'rule' parameter of EarlyTimeClassifier"),
        ({"cost": "latency"}, "'cost' parameter of EarlyTimeClassifier"),
        ({"max_drop": 2}, "'max_drop' parameter of EarlyTimeClassifier"),
        ({"delta": 0.1, "max_cost": 5.0}, "exclude each other"),
    ],
)
def test_bad_parameters_raise(clf, data, params, message):
    with pytest.raises(ValueError, match=message):
        EarlyTimeClassifier(FrozenEstimator(clf), STEPS, **params).fit(*data)


def test_unfitted_raises(data):
    early = EarlyTimeClassifier(BDistilClassifier(student=RecurrentNet), STEPS)
    for call in (early.predict, early.predict_with_stages):
        with pytest.raises(NotFittedError):
            call(data[0])
    with pytest.raises(NotFittedError):
        early.stream()


def test_unfitted_and_frozen_raises(data):
    frozen = FrozenEstimator(BDistilClassifier(student=RecurrentNet))
    with pytest.raises(NotFittedError):
        EarlyTimeClassifier(frozen, STEPS).fit(*data)


# Reading on, and the scores


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_backbone_that_reads_on_is_one_that_reads_at_once(cell):
    backbone = RecurrentNet((9, 2), hidden=(4, 3), cell=cell).eval()
    x, states = torch.randn(5, 9, 2), None
    with torch.no_grad():
        for part in x.split([2, 1, 6], dim=1):
            features, states = backbone.advance(part, states)
        assert_allclose(features, backbone(x), rtol=1e-5, atol=1e-6)


def test_cost_of_a_stage_is_that_of_its_steps_and_its_head():
    ensemble = ProgressiveEnsemble((9, 2), 3)
    ensemble.append(ensemble.new_student(RecurrentNet))
    stages = _prefixes.prefix_stages(1, [4, 9])
    first, second = _prefixes.prefix_macs(ensemble, stages)
    head = 16 * 3
    assert (first - head) / 4 == (second - head) / 5


def test_earliness():
    assert earliness([5, 10], [10, 10]) == 0.75
    assert earliness_harmonic_mean(1.0, 1.0) == 0
    assert earliness_harmonic_mean(0.0, 1.0) == 0
    assert earliness_harmonic_mean(0.8, 0.2) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("read", "n_steps"), [([], 5), ([6], 5), ([1, 2], [5]), ([np.nan], 5), ([0], 0)]
)
def test_earliness_of_impossible_steps_raises(read, n_steps):
    with pytest.raises(ValueError, match="'n_steps'"):
        earliness(read, n_steps)


@pytest.mark.parametrize("pair", [(1.1, 0.5), (0.5, -0.1), ("a", 0.5)])
def test_harmonic_mean_of_no_shares_raises(pair):
    with pytest.raises(ValueError, match="must be a number between 0 and 1"):
        earliness_harmonic_mean(*pair)
