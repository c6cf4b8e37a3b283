"""Advantages by hand, what they have in common, and how formulas become weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.graders import Grade, validate
from rftkit.server.training.advantages import ADVANTAGES, Leaf, advantages, weighing

LABEL, TEXT = Leaf("label", 0.0, 1.0, 0.5), Leaf("text", 0.0, 1.0, 0.5)


def grade(label: float | None, text: float | None = 0.0) -> Grade:
    """A grade of half a label and half a text; None: failed."""
    if label is None or text is None:
        return Grade(None, "failed", {"label": label, "text": text})
    return Grade(0.5 * label + 0.5 * text, "graded", {"label": label, "text": text})


def multi(formula: str, **parts: Any) -> dict[str, Any]:
    check = {
        "type": "string_check", "name": "x", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "{{item.a}}",
    }  # fmt: skip
    graders = {key: {**check, "name": key} | parts.get(key, {}) for key in ("a", "b")}
    spec = {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}
    return validate(spec)


def test_mean_by_hand() -> None:
    found = advantages("mean", [grade(1, 1), grade(0, 1), grade(None)], [LABEL, TEXT], 0.1)
    assert found == [0.25, -0.25, None]


def test_std_by_hand() -> None:
    # Rewards 1 and 0.5: deviation 0.25.
    found = advantages("std", [grade(1, 1), grade(0, 1), grade(None)], [LABEL, TEXT], 0.1)
    assert found == pytest.approx([1.0, -1.0, None])


def test_std_has_a_floor() -> None:
    found = advantages("std", [grade(0, 0.02), grade(0, 0.0)], [LABEL, TEXT], 0.1)
    assert found == pytest.approx([0.05, -0.05])  # 0.005 over 0.1, not over 0.005


def test_per_grader_by_hand() -> None:
    # Label 1 0 0 0: mean 1/4, deviation √3/4. Text differs by 0.02: over the floor, 0.1.
    grades = [grade(1, 0.52), grade(0, 0.5), grade(0, 0.5), grade(0, 0.48)]
    deviation = math.sqrt(3) / 4
    found = advantages("per_grader", grades, [LABEL, TEXT], 0.1)
    assert found == pytest.approx(
        [0.5 * 0.75 / deviation + 0.1, *[-0.5 * 0.25 / deviation] * 2, -0.125 / deviation - 0.1]
    )


def test_maxrl_by_hand() -> None:
    # One right of four: (1 − 1/4) / (1/4) = 3, and −1 for the others. A text of 0.02: over 0.1.
    grades = [grade(1, 0.08), grade(0), grade(0), grade(0)]
    found = advantages("maxrl", grades, [LABEL, TEXT], 0.1)
    assert found == pytest.approx([1.5 + 0.3, -0.5 - 0.1, -0.5 - 0.1, -0.5 - 0.1])


def test_a_rare_right_answer_counts_more_only_where_it_is_divided() -> None:
    """The restoring force: one right answer of eight against each of four."""

    grades = {right: [grade(float(g < right)) for g in range(8)] for right in (1, 4)}
    for name in ("std", "per_grader", "maxrl"):
        rare, common = (advantages(name, grades[right], [LABEL, TEXT], 0.1)[0] for right in (1, 4))
        assert rare is not None
        assert common is not None
        assert rare > 2 * common


def test_an_unscorable_answer_has_the_lowest_reward_of_each_part() -> None:
    cut = Grade(0.0, "unscorable", {"label": None, "text": None})
    for name in ("per_grader", "maxrl"):
        found = advantages(name, [grade(1, 1), cut], [LABEL, TEXT], 0.1)
        assert found[0] is not None
        assert found[0] > 0
        assert found[1] == pytest.approx(-found[0])


def test_a_negative_weight_turns_a_part_round() -> None:
    lower_is_better = Leaf("label", 0.0, 1.0, -1.0)
    found = advantages("per_grader", [grade(1), grade(0)], [lower_is_better], 0.1)
    assert found == pytest.approx([-1.0, 1.0])


graded = st.builds(grade, st.sampled_from([0.0, 1.0, None]), st.floats(0, 1, allow_subnormal=False))


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@given(grades=st.lists(graded, min_size=1, max_size=8))
def test_a_groups_advantages_sum_to_zero_and_failures_stay_out(
    name: str, grades: list[Grade]
) -> None:
    found = advantages(name, grades, [LABEL, TEXT], 0.1)
    assert [each is None for each in found] == [each.reward is None for each in grades]
    known = [each for each in found if each is not None]
    assert all(math.isfinite(each) for each in known)
    assert sum(known) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@pytest.mark.parametrize("num", [1, 3])
def test_equal_grades_give_exactly_no_signal(name: str, num: int) -> None:
    assert advantages(name, [grade(1, 0.1)] * num, [LABEL, TEXT], 0.1) == [0.0] * num
    assert advantages(name, [grade(None)] * num, [LABEL, TEXT], 0.1) == [None] * num


@pytest.mark.parametrize(
    ("formula", "weights", "is_exact"),
    [
        ("0.5 * a + 0.5 * b", (0.5, 0.5), True),
        ("a - 0.25 * b + 3", (1.0, -0.25), True),
        ("(a + b) / 2", (0.5, 0.5), True),
        ("a", (1.0, 0.0), True),
        ("a * b", (0.5, 0.5), False),
        ("min(a, b)", (0.5, 0.5), False),
        ("a + 0 * log(a)", (0.5, 0.5), False),  # has no value at 0: equal weights
        ("1", (0.0, 0.0), True),
    ],
)
def test_a_formula_becomes_weights(
    formula: str, weights: tuple[float, float], is_exact: bool
) -> None:
    found = weighing(multi(formula))
    assert tuple(leaf.weight for leaf in found.leaves) == pytest.approx(weights)
    assert found.is_exact is is_exact


def test_a_judges_range_is_part_of_its_weight() -> None:
    judge = {
        "type": "score_model", "name": "b", "model": "m", "range": [0, 10],
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }  # fmt: skip
    judge_spec = multi("a + 0.1 * b")
    judge_spec["graders"]["b"] = validate(judge)
    found = weighing(judge_spec)
    assert [leaf.weight for leaf in found.leaves] == pytest.approx([1.0, 1.0])
    assert found.leaves[1].of(Grade(0.9, "graded", {"a": 0.0, "b": 9.0})) == pytest.approx(0.9)


def test_a_grader_that_is_no_multi_is_its_own_part() -> None:
    spec = multi("a")["graders"]["a"]
    [leaf] = weighing(spec).leaves
    assert (leaf.key, leaf.weight) == ("", 1.0)
    found = advantages("per_grader", [Grade(1.0, "graded"), Grade(0.0, "graded")], [leaf], 0.1)
    assert found == pytest.approx([1.0, -1.0])
