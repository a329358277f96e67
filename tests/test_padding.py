"""Rows of several lengths: token ids, and sequences that are filled up."""

from functools import partial

import numpy as np
import pytest
import torch

from skbdistil import BDistilClassifier
from skbdistil.costs import stage_costs
from skbdistil.ensemble import Lateral, ProgressiveEnsemble
from skbdistil.export import to_onnx
from skbdistil.persistence import load, save
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import ConvNet1d, EmbeddingNet, RecurrentNet

N_TOKENS, N_STEPS = 20, 9
EMBEDDING = partial(EmbeddingNet, num_embeddings=N_TOKENS, embedding_dim=4, hidden=(3,))
PADDED = {
    "conv": partial(ConvNet1d, channels=(3, 4), padding_value=-1.0),
    "conv of stride 1": partial(ConvNet1d, stride=1, padding_value=-1.0),
    "separable": partial(ConvNet1d, separable=True, padding_value=-1.0),
    "gru": partial(RecurrentNet, hidden=(3, 4), padding_value=-1.0),
    "lstm": partial(RecurrentNet, cell="lstm", padding_value=-1.0),
}


def token_ids(n_rows=40):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, N_TOKENS, size=(n_rows, N_STEPS))
    for row, length in zip(ids, rng.integers(1, N_STEPS + 1, n_rows), strict=True):
        row[length:] = 0
    return ids


def sequences(n_steps=N_STEPS, padding=-1.0):
    """Four sequences of 6, 4, 1 and no steps, the first with a step of padding."""
    x = torch.full((4, n_steps, 2), padding)
    values = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((6, 4, 1, 0)):
        x[row, :length] = values[row, :length]
    x[0, 2] = padding
    return x


def fitted(X, student, **parameters):
    y = (np.arange(len(X)) % 2).astype(int)
    clf = BDistilClassifier(
        "precomputed",
        student=student,
        n_estimators=2,
        max_epochs=2,
        edge_tol=np.inf,
        random_state=0,
        **{"input_scaling": None} | parameters,
    )
    return clf.fit(X, y, teacher_scores=3.0 * np.c_[-y, y])


def test_embedding_net_takes_the_mean_over_tokens():
    backbone = EMBEDDING((4,))
    ids = torch.tensor([[3, 5, 0, 0], [0, 5, 0, 3], [0, 0, 0, 0]])
    means = backbone.blocks[0](ids)
    vectors = backbone.blocks[0].embedding.weight
    torch.testing.assert_close(means[0], (vectors[3] + vectors[5]) / 2)
    assert torch.equal(means[0], means[1])
    assert not means[2].any()
    without = EMBEDDING((4,), padding_idx=None)
    vectors = without.blocks[0].embedding.weight
    expected = (vectors[3] + vectors[5] + 2 * vectors[0]) / 4
    torch.testing.assert_close(without.blocks[0](ids)[0], expected)


def test_costs_of_embedding_net_counted_by_hand():
    ensemble = ProgressiveEnsemble((N_STEPS,), 2, connection=None, integer_input=True)
    ensemble.append(ensemble.new_student(EMBEDDING))
    costs = stage_costs(ensemble, ensemble.example())
    assert costs.macs.tolist() == [4 * 3 + 3 * 2]
    assert costs.parameters.tolist() == [N_TOKENS * 4 + 4 * 3 + 3 + 3 * 2 + 2]


def test_vector_of_the_padding_stays_zero_in_training():
    clf = fitted(token_ids(), EMBEDDING)
    for student in clf.ensemble_.students:
        table = student.backbone.blocks[0].embedding.weight
        assert not table[0].any()
        assert table[1:].any(dim=1).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_embeddings": 0}, "'num_embeddings' parameter of EmbeddingNet"),
        ({"embedding_dim": 1.5}, "'embedding_dim' parameter of EmbeddingNet"),
        ({"padding_idx": N_TOKENS}, r"'padding_idx' .* range \[0, 19\]. Got 20"),
        ({"hidden": ()}, "'hidden' parameter of EmbeddingNet"),
    ],
)
def test_embedding_net_with_bad_parameter_raises(parameters, message):
    with pytest.raises(ValueError, match=message):
        EMBEDDING((4,), **parameters)


def test_embedding_net_for_sequences_of_vectors_raises():
    with pytest.raises(ValueError, match=r"rows of token ids.* Got rows of shape"):
        EMBEDDING((4, 2))


@pytest.mark.parametrize(
    ("X", "parameters"),
    [
        (token_ids(), {"input_scaling": "standard"}),
        (token_ids().astype(float), {}),
        (token_ids(), {"input_scaling": "standard", "connection": "lateral"}),
    ],
)
def test_token_ids_that_are_scaled_or_floats_are_refused(X, parameters):
    with pytest.raises(ValueError, match=r"integer type .* and input_scaling=None"):
        fitted(X, EMBEDDING, **parameters)


@pytest.mark.parametrize("wrong", [N_TOKENS, -1])
def test_token_id_out_of_range_raises(wrong):
    X = token_ids()
    clf = fitted(X, EMBEDDING)
    X[3, 0] = wrong
    for call in (clf.predict, partial(fitted, student=EMBEDDING)):
        with pytest.raises(
            ValueError, match=rf"num_embeddings - 1 = 19\. Got .*{wrong}"
        ):
            call(X)


def test_tokens_and_padded_sequences_survive_saving_and_export(tmp_path):
    X = token_ids()
    student = partial(EMBEDDING, hidden=(3, 3))
    clf = fitted(X, student, connection=Lateral(shared_blocks=1))
    save(clf, tmp_path / "tokens.skb")
    expected = clf.predict_proba(X)
    assert np.array_equal(load(tmp_path / "tokens.skb").predict_proba(X), expected)
    to_onnx(clf, tmp_path / "tokens")
    session = ProgressiveSession(tmp_path / "tokens")
    np.testing.assert_allclose(session.predict_proba(X), expected, rtol=0, atol=1e-6)
    # Numbers below 0 do not count from the end.
    for wrong in (N_TOKENS, -1):
        with pytest.raises(ValueError, match="cannot run it"):
            session.predict(np.full((1, N_STEPS), wrong))
    x = sequences().repeat(5, 1, 1).numpy()
    clf = fitted(x, PADDED["gru"], connection="lateral")
    save(clf, tmp_path / "gru.skb")
    expected = clf.predict_proba(x)
    assert np.array_equal(load(tmp_path / "gru.skb").predict_proba(x), expected)
    clf = fitted(x, PADDED["conv"])
    to_onnx(clf, tmp_path / "conv")
    session = ProgressiveSession(tmp_path / "conv")
    expected = clf.predict_proba(x)
    np.testing.assert_allclose(session.predict_proba(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", PADDED)
def test_amount_of_padding_changes_no_feature(kind):
    short, long = (PADDED[kind]((n_steps, 2)).eval() for n_steps in (7, 20))
    long.load_state_dict(short.state_dict())
    expected = short(sequences(7))
    torch.testing.assert_close(long(sequences(20)), expected)
    # Nor does its value.
    other = PADDED[kind]((7, 2), padding_value=5.0).eval()
    other.load_state_dict(short.state_dict())
    x = sequences(7, padding=5.0)
    x[0, 2] = -1.0
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, "0"])
@pytest.mark.parametrize("student", [ConvNet1d, RecurrentNet])
def test_padding_value_that_no_row_can_hold_raises(student, value):
    with pytest.raises(ValueError, match="must be a finite number or None"):
        student((N_STEPS, 2), padding_value=value)


def test_features_of_padded_gru_are_the_last_hidden_state():
    backbone = RecurrentNet((N_STEPS, 2), hidden=(4,), padding_value=-1.0)
    x = sequences()
    layer = backbone.blocks[0].block
    features = backbone(x)
    torch.testing.assert_close(features[0], layer(x[:1, :6])[0, -1])
    torch.testing.assert_close(features[2], layer(x[2:3, :1])[0, -1])
    assert not features[3].any()


def test_rows_without_padding_give_the_convolutions_of_a_backbone_without_mask():
    masked = ConvNet1d((N_STEPS, 2), padding_value=-1.0).eval()
    plain = ConvNet1d((N_STEPS, 2)).eval()
    x = torch.randn(3, N_STEPS, 2)
    maps, expected = masked.prepare(x), plain.prepare(x)
    for ours, theirs in zip(masked.blocks[:-1], plain.blocks[:-1], strict=True):
        theirs.load_state_dict(ours.block.state_dict())
        maps, expected = ours(maps), theirs(expected)
        torch.testing.assert_close(maps[:, 1:], expected)
        assert (maps[:, 0] == 1).all()


@pytest.mark.parametrize("kind", ["conv", "gru"])
@pytest.mark.parametrize("connection", ["auto", "lateral"])
def test_scores_of_padded_students_know_lengths_only(kind, connection):
    x = sequences().repeat(5, 1, 1).numpy()
    clf = fitted(x, PADDED[kind], connection=connection)
    single = clf.predict_proba(x[:4])
    shuffled = clf.predict_proba(x[[3, 1, 0, 2]])
    np.testing.assert_allclose(shuffled, single[[3, 1, 0, 2]], rtol=1e-5)
    assert np.isfinite(single).all()


def test_padded_gru_that_reads_on_raises():
    with pytest.raises(ValueError, match=r"padding_value.*cannot read rows"):
        PADDED["gru"]((N_STEPS, 2)).advance(sequences())


def test_padded_gru_with_recurrent_connection_raises():
    with pytest.raises(ValueError, match=r"know of no padding.*connection='dense'"):
        fitted(
            sequences().repeat(5, 1, 1).numpy(), PADDED["gru"], connection="recurrent"
        )


def test_padding_value_with_input_scaling_raises():
    with pytest.raises(ValueError, match=r"padding_value=-1\.0.* input_scaling=None"):
        fitted(
            sequences().repeat(5, 1, 1).numpy(), PADDED["gru"], input_scaling="standard"
        )


@pytest.mark.parametrize("backbone", [ConvNet1d, RecurrentNet])
def test_padding_value_that_is_no_number_raises(backbone):
    with pytest.raises(ValueError, match=rf"'padding_value' .*{backbone.__name__}"):
        backbone((N_STEPS, 2), padding_value="zero")
