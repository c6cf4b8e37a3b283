"""Answers that were made elsewhere."""

from __future__ import annotations

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
