"""Rules of early exit as functions of the scores so far."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from scipy.stats import entropy

from skbdistil._exit_rules import (
    RULES,
    check_rule,
    exit_stages,
    label_probabilities,
    rule_values,
)


def running_means(n_stages=4, n_rows=50, n_classes=3, seed=0):
    rng = np.random.RandomState(seed)
    students = 3 * rng.randn(n_stages, n_rows, n_classes)
    counts = np.arange(1, n_stages + 1).reshape(-1, 1, 1)
    return students, students.cumsum(axis=0) / counts


STUDENTS, STAGES = running_means()
PROBA = softmax(STAGES[-1], axis=1)


def test_probabilities():
    assert_allclose(label_probabilities(STAGES[-1]), PROBA)
    # Far logits neither overflow nor lose the rest.
    assert_allclose(label_probabilities(np.array([[1e4, 1e4, -1e4]])), [[0.5, 0.5, 0]])


def test_probabilistic_rules():
    first, second = np.sort(PROBA, axis=1)[:, [-1, -2]].T
    assert_allclose(rule_values("confidence", STAGES), first)
    assert_allclose(rule_values("margin", STAGES), first - second)
    expected = 1 - entropy(PROBA, axis=1) / np.log(3)
    assert_allclose(rule_values("entropy", STAGES), expected)


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
def test_temperature(rule):
    values = rule_values(rule, STAGES, temperature=4.0)
    assert_allclose(values, rule_values(rule, STAGES / 4))
    # The higher, the less sure.
    assert (values < rule_values(rule, STAGES)).all()


@pytest.mark.parametrize("rule", ["patience", "agreement"])
def test_labels_have_no_temperature(rule):
    values = rule_values(rule, STAGES, temperature=4.0)
    assert_array_equal(values, rule_values(rule, STAGES))


@pytest.mark.parametrize("rule", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_range(rule, n_classes):
    sure = np.zeros((1, 1, n_classes))
    sure[..., 1] = 1e3
    assert rule_values(rule, sure) == pytest.approx(1)
    unsure = rule_values(rule, np.zeros((1, 1, n_classes)))
    assert unsure == pytest.approx(1 / n_classes if rule == "confidence" else 0)


def labels_to_stages(labels):
    """Running means whose labels are these, of shape (t, n)."""
    return np.eye(3)[np.asarray(labels)]


def test_patience():
    stages = labels_to_stages([[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1]])
    assert_array_equal(rule_values("patience", stages), [3, 2, 3, 1])
    assert_array_equal(rule_values("patience", stages[:1]), [1, 1, 1, 1])


@pytest.mark.parametrize("t", [2, 3, 4])
def test_agreement(t):
    votes = STUDENTS[:t].argmax(axis=2) == STAGES[t - 1].argmax(axis=1)
    assert_allclose(rule_values("agreement", STAGES[:t]), votes.mean(axis=0))


def test_a_single_student_agrees_with_nobody():
    assert_array_equal(rule_values("agreement", STAGES[:1]), np.zeros(50))


def test_rules_leave_the_scores_alone():
    before = STAGES.copy()
    for rule in RULES:
        rule_values(rule, STAGES, temperature=2.0)
    assert_array_equal(STAGES, before)


def test_rows_do_not_matter_to_each_other():
    for rule in RULES:
        one_by_one = [rule_values(rule, STAGES[:, [row]])[0] for row in range(50)]
        assert_allclose(rule_values(rule, STAGES), one_by_one)


def test_callable():
    values = rule_values(lambda stages: stages[-1].max(axis=1), STAGES)
    assert_array_equal(values, STAGES[-1].max(axis=1))


def test_callable_of_the_wrong_shape():
    message = "one value per row, of shape (50,). Got shape (4, 50)"
    with pytest.raises(ValueError, match=re.escape(message)):
        rule_values(lambda stages: stages.max(axis=2), STAGES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_callable_of_what_is_not_finite(value):
    values = np.ones(50)
    values[7] = value
    with pytest.raises(ValueError, match="'rule' callable returned NaN or infinity"):
        rule_values(lambda stages: values, STAGES)


def test_unknown_rule():
    with pytest.raises(ValueError, match=r"'rule' parameter of X must be one of \['ag"):
        check_rule("luck", RULES, "X")
    check_rule("margin", RULES, "X")
    check_rule(len, RULES, "X")


def test_exit_stages():
    values = np.array([[0.9, 0.1, 0.5, 0.1], [0.1, 0.9, 0.5, 0.1]])
    assert_array_equal(exit_stages(values, [0.5, 0.6]), [1, 2, 1, 3])
    assert_array_equal(exit_stages(values, [np.inf, np.inf]), [3, 3, 3, 3])
    assert_array_equal(exit_stages(values, [-np.inf, np.inf]), [1, 1, 1, 1])
    # A single stage has no threshold.
    assert_array_equal(exit_stages(np.empty((0, 2)), []), [1, 1])
