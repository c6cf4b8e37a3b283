"""Which tokens learn from which sub-grader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.errors import RequestError
from rftkit.graders import Grade, validate
from rftkit.server.engine.values import Completion
from rftkit.server.store.records import Job
from rftkit.server.training.advantages import PER_GRADER_NAMES, by_leaf, weighing
from rftkit.server.training.credit import field_ends, fields_read, token_advantages
from rftkit.server.training.plan import Plan
from rftkit.server.training.rft_plan import make_plan

VERDICT = {
    "type": "string_check", "name": "verdict", "operation": "eq",
    "input": "{{sample.output_json.verdict}}", "reference": "{{item.verdict}}",
}  # fmt: skip
REASON = {
    "type": "text_similarity", "name": "reason", "evaluation_metric": "fuzzy_match",
    "input": "{{sample.output_json.reason}}", "reference": "{{item.reason}}",
}  # fmt: skip
BOTH = {
    "type": "multi", "name": "both", "graders": {"verdict": VERDICT, "reason": REASON},
    "calculate_output": "0.5 * verdict + 0.5 * reason",
}  # fmt: skip


class Letters:
    """An engine whose tokens are letters."""

    def tokens_until(self, tokens: list[int], text: str) -> int | None:
        said = "".join(map(chr, tokens))
        return said.index(text) + len(text) if text in said else None


def completion(text: str, stop_reason: Any = "stop", thoughts: str = "") -> Completion:
    tokens = list(map(ord, thoughts + text))
    return Completion(tokens, text, [0.0] * len(tokens), stop_reason)


def grade(verdict: float, reason: float, outcome: Any = "graded") -> Grade:
    parts = {"verdict": verdict, "reason": reason}
    return Grade(reward=(verdict + reason) / 2, outcome=outcome, sub_rewards=parts)


def rows(completions: list[Completion], grades: list[Grade]) -> list[list[float]]:
    spec = validate(BOTH)
    leaves = weighing(spec).leaves
    parts = by_leaf("per_grader", grades, leaves, 0.1)
    engine: Any = Letters()
    return token_advantages(engine, completions, grades, parts, fields_read(spec, leaves))


def test_a_verdict_is_not_credited_to_the_explanation_behind_it() -> None:
    texts = ['{"verdict": "yes", "reason": "because"}', '{"verdict": "no", "reason": "because"}']
    right, wrong = rows([completion(each) for each in texts], [grade(1, 0.5), grade(0, 0.5)])
    for text, row, advantage in zip(texts, (right, wrong), (0.5, -0.5), strict=True):
        end = text.index(",")
        assert row[:end] == pytest.approx([advantage] * end)
        assert not any(row[end:])


def test_what_stands_before_a_field_has_its_advantage_too() -> None:
    """A reason may follow from the verdict before it, so that the verdict is credited with both."""
    texts = ['{"verdict": "yes", "reason": "a"}', '{"verdict": "no", "reason": "b"}']
    first, _ = rows([completion(each) for each in texts], [grade(1, 1), grade(0, 0)])
    assert first[0] == pytest.approx(1.0)
    assert first[texts[0].index(",")] == pytest.approx(0.5)
    assert first[-1] == 0.0  # the closing brace


def test_an_answer_that_was_cut_off_has_it_on_all_tokens() -> None:
    cut = completion('{"verdict": "no", "reas', "length")
    whole = completion('{"verdict": "yes", "reason": "a"}')
    of_cut, _ = rows([cut, whole], [grade(0, 0), grade(1, 0)])
    assert of_cut == pytest.approx([-0.5] * len(cut.tokens))


def test_thoughts_before_an_answer_have_all_of_it() -> None:
    thoughts = "<think>hm, {</think>"
    text = '{"verdict": "yes", "reason": "a"}'
    row, _ = rows(
        [completion(text, thoughts=thoughts), completion(text)], [grade(1, 0), grade(0, 0)]
    )
    assert all(row[: len(thoughts) + text.index(",")])
    assert not any(row[len(thoughts) + text.index(",") :])


def test_code_and_whole_answers_may_read_anything() -> None:
    python = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}
    text = {**VERDICT, "input": "{{sample.output_text}}"}
    mixed = {**REASON, "input": "{{sample.output_json.reason}} {{sample.output_json}}"}
    for spec in (python, text, mixed):
        spec = validate(spec)
        assert fields_read(spec, weighing(spec).leaves) == [None]
    two = {**REASON, "input": "{{sample.output_json.a.b}} {{sample.output_json.c}}"}
    spec = validate(two)
    assert fields_read(spec, weighing(spec).leaves) == [frozenset({"a", "c"})]


KEYS = st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from([None, 1]))
def test_a_field_ends_where_its_value_does(fields: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(fields, indent=indent)
    ends = field_ends(text)
    assert list(ends) == list(fields)
    for key, value in fields.items():
        assert text[: ends[key]].endswith(json.dumps(value, indent=indent)[-1])
        before = {k: v for k, v in fields.items() if ends[k] <= ends[key]}
        assert json.loads(text[: ends[key]] + "}") == before


@pytest.mark.parametrize(
    "text", ["", "[1]", '"a"', '{"a": 1', "{'a': 1}", '{"a": 1} x', "{" * 9999]
)
def test_what_is_no_object_has_no_fields(text: str) -> None:
    assert field_ends(text) == {}


def plan_of(metadata: dict[str, str]) -> Plan:
    job = Job(
        id="ftjob-1", created_at=0, model="m", seed=1, training_file="f", validation_file="v",
        method={"type": "reinforcement", "reinforcement": {"grader": BOTH, "hyperparameters": {}}},
        metadata=metadata,
    )  # fmt: skip
    return make_plan(job, 5)


def test_fields_need_an_advantage_of_each_sub_grader() -> None:
    for name in PER_GRADER_NAMES:
        assert plan_of({"advantage": name}).credit == "fields"
    assert plan_of({"advantage": "mean"}).credit == "answer"
    assert plan_of({"credit": "answer"}).credit == "answer"
    with pytest.raises(RequestError, match="make that per_grader or maxrl"):
        plan_of({"advantage": "std", "credit": "fields"})
