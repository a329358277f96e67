"""Model cards: what is known of a fitted estimator."""

import hashlib
import re
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import SMALL, raises
from skbdistil import BDistilClassifier, BDistilRegressor
from skbdistil.cascade import CascadeClassifier
from skbdistil.early_exit import EarlyExitClassifier, EarlyExitRegressor
from skbdistil.early_time import EarlyTimeClassifier
from skbdistil.export import to_onnx
from skbdistil.exported import ExportedClassifier
from skbdistil.intervals import SplitConformalRegressor
from skbdistil.metrics import calibration_error
from skbdistil.model_card import ModelCard, Section, model_card
from skbdistil.runtime import ProgressiveSession
from skbdistil.students import RecurrentNet

# Whether the students have a good teacher does not matter here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::skbdistil.exceptions.DoubtfulTeacherWarning"
)

X = np.random.RandomState(0).randn(240, 3)
Y = np.where(X[:, 0] + X[:, 1] ** 2 > 0.5, "yes", "no")


@pytest.fixture(scope="module")
def clf():
    return BDistilClassifier(LogisticRegression(), **SMALL).fit(X[:80], Y[:80])


@pytest.fixture(scope="module")
def early(clf):
    return EarlyExitClassifier(FrozenEstimator(clf), max_drop=0.3, delta=0.2).fit(
        X[80:160]
    )


def section(card, title):
    (found,) = [part for part in card.sections if part.title == title]
    return found


def facts(card, title):
    return dict(section(card, title).rows)


def test_accuracy_and_calibration_are_those_of_the_estimator(clf):
    card = model_card(clf, X[160:], Y[160:])
    rows = section(card, "Measured: stages").rows
    scores = clf.staged_score(X[160:], Y[160:])
    probas = clf.staged_predict_proba(X[160:])
    for row, score, proba in zip(rows, scores, probas, strict=True):
        assert row[1].startswith(f"{score:.4f} +- ")
        assert row[2] == f"{calibration_error(Y[160:], proba):.4f}"


def test_costs_are_those_of_the_stages(clf):
    rows = section(model_card(clf), "Stages").rows
    assert [row[3] for row in rows] == [
        f"{macs:,}" for macs in clf.stage_costs_.cumulative_macs
    ]
    assert rows[0][1] == "MLP(hidden=(4,))"


def test_what_is_not_known_is_said_to_be(clf):
    card = model_card(clf)
    assert section(card, "Data").rows == [
        ("Training", *["unknown"] * 3),
        ("Measured", *["unknown"] * 3),
    ]
    assert not [part for part in card.sections if part.title.startswith("Measured")]
    assert facts(card, "Teacher")["Cost"].startswith("unknown")
    assert facts(card, "Versions")["torch"] == version("torch")


def test_teacher_without_labels():
    scores = np.c_[X[:80, 0], -X[:80, 0]]
    clf = BDistilClassifier("precomputed", **SMALL).fit(X[:80], teacher_scores=scores)
    found = facts(model_card(clf), "Teacher")
    assert found["Teacher"].startswith("unknown")
    assert found["Accuracy on the training rows"].startswith("unknown")


def test_hash_of_rows_is_that_of_their_bytes(clf):
    rows = section(model_card(clf, X_train=X[:80]), "Data").rows
    expected = hashlib.sha256(np.ascontiguousarray(X[:80])).hexdigest()
    training = ("Training", "(80, 3)", "float64", expected)
    assert training in rows


@pytest.mark.parametrize("change", ["value", "name", "order"])
def test_hash_of_a_frame_depends_on_all_of_it(clf, change):
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    other = frame.copy()
    if change == "value":
        other.loc[1, "b"] = "z"
    elif change == "name":
        other.columns = ["a", "c"]
    else:
        other = other.iloc[::-1]
    hashes = {
        section(model_card(clf, X_train=rows), "Data").rows[1][-1]
        for rows in (frame, frame.copy(), other)
    }
    assert len(hashes) == 2


def test_early_exit_says_what_it_promises(early):
    card = model_card(early, X[160:], Y[160:])
    (promise,) = section(card, "Early exit").notes
    stages = early.exit_stages(X[160:])
    left = facts(card, "Measured: early exit")["Share that left at stage 1"]
    assert left == f"{np.mean(stages == 1):.1%}"
    if early.best_index_:
        assert "is promised" in promise
        assert "0.3" in promise
        assert "0.2" in promise
    else:
        assert "could not be promised" in promise


def test_early_exit_without_delta_promises_nothing(clf):
    early = EarlyExitClassifier(FrozenEstimator(clf)).fit(X[80:160])
    (promise,) = section(model_card(early), "Early exit").notes
    assert "Nothing is promised" in promise


def test_rows_go_through_the_transforms_of_a_pipeline():
    pipeline = make_pipeline(
        StandardScaler(), BDistilClassifier(LogisticRegression(), **SMALL)
    ).fit(X[:80], Y[:80])
    rows = section(model_card(pipeline, X[80:], Y[80:]), "Measured: stages").rows
    assert rows[-1][1].startswith(f"{pipeline.score(X[80:], Y[80:]):.4f} ")


def test_pipeline_of_one_step(clf):
    card = model_card(make_pipeline(clf), X[160:], Y[160:])
    expected = section(model_card(clf, X[160:], Y[160:]), "Measured: stages")
    assert section(card, "Measured: stages") == expected


def test_early_time_names_students_and_steps():
    series = X[:, :, np.newaxis]
    params = {**SMALL, "student": RecurrentNet}
    clf = BDistilClassifier("precomputed", **params)
    clf.fit(series[:80], Y[:80], teacher_scores=4 * np.eye(2)[(Y[:80] == "yes") * 1])
    early = EarlyTimeClassifier(FrozenEstimator(clf), [1, 2], max_drop=0.3)
    early.fit(series[80:160])
    card = model_card(early, series[160:], Y[160:])
    names = [f"{k}, after {steps} steps" for k, steps in early.stages_]
    assert [row[0] for row in section(card, "Exits").rows] == names
    (note,) = section(card, "Early exit").notes
    assert "is not that of all students after 2 steps is at most 0.3" in note
    read = facts(card, "Early exit")["Share of a series that is read, on these rows"]
    assert read == f"{early.earliness_:.1%}"
    assert f"Share that left at stage {names[-1]}" in facts(
        card, "Measured: early exit"
    )


def test_exported_stages_are_refused(clf, tmp_path):
    to_onnx(clf, tmp_path / "stages")
    exported = ExportedClassifier(tmp_path / "stages").fit()
    around = EarlyExitClassifier(FrozenEstimator(exported), max_drop=0.3)
    for estimator in (exported, around.fit(X[80:160])):
        with raises("before it is exported, and pass it to to_onnx", error=TypeError):
            model_card(estimator)


def test_deferral_names_the_final_model(clf):
    final = FrozenEstimator(LogisticRegression().fit(X[:80], Y[:80]))
    early = EarlyExitClassifier(
        FrozenEstimator(clf), final=final, final_cost=1e3, max_drop=0.2
    ).fit(X[80:160])
    card = model_card(early, X[160:], Y[160:])
    assert (
        facts(card, "Early exit")["Final model"] == "LogisticRegression, used as it was"
    )
    assert section(card, "Exits").rows[-1][0] == "final model"
    assert "Share that went to the final model" in facts(card, "Measured: early exit")


def test_cascade(clf):
    last = LogisticRegression().fit(X[:80], Y[:80])
    cascade = CascadeClassifier(
        [FrozenEstimator(clf), FrozenEstimator(last)], rule="confidence", threshold=0.7
    ).fit(X[80:160])
    card = model_card(cascade, X[160:], Y[160:])
    assert section(card, "Tiers").rows[1][3] == "unknown"
    accuracy = cascade.score(X[160:], Y[160:])
    assert facts(card, "Measured: cascade")["Accuracy"].startswith(f"{accuracy:.4f} ")


def test_regressor_with_early_exit_and_intervals():
    y = X[:, 0] + X[:, 1]
    reg = BDistilRegressor(LinearRegression(), **SMALL).fit(X[:80], y[:80])
    early = EarlyExitRegressor(FrozenEstimator(reg), tolerance=1.0).fit(X[80:160])
    conformal = SplitConformalRegressor(FrozenEstimator(early)).fit(X[160:], y[160:])
    card = model_card(conformal, X[:80], y[:80])
    widths = facts(card, "Intervals")["Half widths for alpha=0.1"]
    assert widths == f"{conformal.half_widths(0.1)[0]:.4g}"
    last = section(card, "Measured: stages").rows[-1]
    assert last[1] == f"{reg.score(X[:80], y[:80]):.4f}"


def test_several_labels_have_no_calibration_error():
    several = np.c_[X[:, 0] > 0, X[:, 1] > 0].astype(int)
    clf = BDistilClassifier(**SMALL).fit(X[:80], several[:80])
    card = model_card(clf, X[80:], several[80:])
    assert section(card, "Measured: stages").header == ("stage", "accuracy")


def test_same_card_twice(clf):
    first, second = (model_card(clf, X, Y, X_train=X) for _ in range(2))
    assert first.to_markdown() == second.to_markdown()
    assert first.to_html() == second.to_html()


def test_text_of_others_is_escaped():
    evil = "<script>alert('x')</script>|[a](b) `c`\n# d"
    card = ModelCard(evil, [Section(evil, (evil,), [(evil,)], [evil])])
    html = card.to_html()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    markdown = card.to_markdown()
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)[`\[]", markdown)
    assert len(markdown.splitlines()) == 9  # none was added


def test_card_of_a_hostile_label_has_no_tags(clf):
    y = np.where(X[:, 0] > 0, "<b>yes</b>", "no")
    card = model_card(BDistilClassifier(**SMALL).fit(X, y))
    assert "<b>" not in card._repr_html_()
    assert "<b>" not in card.to_markdown()


def test_export_has_the_card_beside_it(early, tmp_path):
    card = model_card(early, X[160:], Y[160:])
    to_onnx(early, tmp_path / "exported", card=card)
    text = (tmp_path / "exported" / "model_card.md").read_text(encoding="utf-8")
    assert text == card.to_markdown()
    session = ProgressiveSession(tmp_path / "exported")
    assert (session.predict(X) == early.predict(X)).all()


def test_export_refuses_what_is_no_card(clf, tmp_path):
    with raises("'card'", "model_card", "str", error=TypeError):
        to_onnx(clf, tmp_path / "exported", card="# Model")
    assert not list(tmp_path.iterdir())


def test_unusable_input_raises(clf):
    with raises("'X' and 'y' are given together"):
        model_card(clf, X)
    with raises("LogisticRegression", error=TypeError):
        model_card(LogisticRegression().fit(X, Y))
    with pytest.raises(NotFittedError):
        model_card(BDistilClassifier())
