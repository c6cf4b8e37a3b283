"""Answers that were made elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from rftkit.graders import given_sample


def test_a_rollout_with_tools_keeps_all_that_was_said() -> None:
    call = {
        "id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"},
    }  # fmt: skip
    last = {"role": "assistant", "content": "yes", "tool_calls": [call]}
    said = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "found"},
        {"role": "assistant", "content": "yes"},
    ]
    sample = given_sample({"choices": [{"index": 0, "message": last, "messages": said}]})
    assert sample.output_text == "yes"
    assert sample.output_tools == [call]
    assert sample.to_dict()["choices"][0]["messages"] == said
    assert "messages" not in given_sample({"choices": [{"message": last}]}).to_dict()["choices"][0]


ITEM = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}


@pytest.mark.parametrize(
    ("said", "is_cut"),
    [
        ("hi", False),
        ({"output_text": "hi"}, False),
        ({"output_text": "hi", "finish_reason": "length"}, True),
        ({"output_text": "hi", "truncated": True}, True),
        ({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}, False),
        ({"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}, True),
        ({"output": [ITEM], "incomplete_details": None}, False),
        ({"output": [ITEM], "incomplete_details": {"reason": "content_filter"}}, False),
        ({"output": [ITEM], "incomplete_details": {"reason": "max_output_tokens"}}, True),
        ([ITEM], False),
        ([{**ITEM, "status": "incomplete"}], True),
    ],
)
def test_an_answer_says_whether_it_was_cut(said: Any, is_cut: bool) -> None:
    sample = given_sample(said)
    assert (sample.output_text, sample.truncated) == ("hi", is_cut)
