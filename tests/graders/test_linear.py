"""Hostile input of any size costs time in proportion to it, or is refused: counted, not timed."""

from __future__ import annotations

import pytest

from rftkit import graders
from rftkit.errors import GraderSpecError
from rftkit.graders import comparison
from rftkit.graders.template import compile_template, lone_path, paths
from rftkit.server.engine.call_forms import tool_calls_in


@pytest.mark.parametrize(
    "text",
    [
        "{{" * 1_000_000,
        '{{ "' * 500_000,
        "{{ '\"" * 500_000,
        "{{ " + " " * 1_000_000,
        "a" * 1_000_000,
    ],
)
def test_a_template_without_a_closed_slot_is_plain_text_at_any_length(text: str) -> None:
    assert paths(text) == []
    assert lone_path(text) is None
    assert compile_template(text)(graders.Sample.from_text("x"), {}) == text


def test_a_long_path_is_named_in_short() -> None:
    long = "{{item" + ".a" * 100_000 + "}}"
    grade = graders.grade(
        {"type": "string_check", "input": long, "reference": "x", "operation": "eq"}, "x", {"a": 1}
    )
    assert grade.outcome == "failed"
    assert len(str(grade.errors)) < 2_000


def test_a_tool_call_of_blanks_that_never_ends_is_text() -> None:
    text = "<tool_call>" + " " * 1_000_000
    assert tool_calls_in(text, [{"function": {"name": "f"}}]) == (text, [])


def test_a_formula_too_deep_to_be_written_out_is_refused_in_words() -> None:
    part = {"type": "string_check", "input": "x", "reference": "x", "operation": "eq"}
    spec = {"type": "multi", "graders": {"a": part}, "calculate_output": "not " * 2_000 + "a"}
    with pytest.raises(GraderSpecError, match="not allowed"):
        graders.validate(spec)


def similarity(metric: str, answer: str, reference: str) -> graders.Grade:
    spec = {
        "type": "text_similarity",
        "evaluation_metric": metric,
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
    }
    return graders.grade(spec, answer, {"answer": reference})


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "rouge_l"])
def test_long_texts_are_compared_in_a_process_of_their_own(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, reference = "a b c d e é" * 20, "a b x d e" * 20
    here = similarity(metric, answer, reference)
    monkeypatch.setattr(comparison, "ALONE_SECONDS", 0.0)
    monkeypatch.setattr("rftkit.graders.similarity.metric", lambda name: None)
    assert similarity(metric, answer, reference).reward == here.reward


@pytest.mark.parametrize("metric", ["fuzzy_match", "rouge_l", "meteor"])
def test_texts_that_would_take_more_than_a_minute_are_refused_in_words(metric: str) -> None:
    grade = similarity(metric, "a" * 40_000_000, "b" * 1_000_000)
    assert grade.outcome == "failed"
    assert "compare shorter texts" in str(grade.errors["other_error_details"])
