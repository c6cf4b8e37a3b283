"""Rows with answers: what is a supervised or a preference row, and what is wrong with one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rftkit.errors import RowError
from rftkit.examples import (
    example_of,
    form_of,
    preference_of,
    read_examples,
    read_preferences,
    text_of,
)

ASK = {"role": "user", "content": "a question"}
SAY = {"role": "assistant", "content": "an answer"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TOOL_TURNS = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "found"},
    SAY,
]


def messages(*given: Any) -> dict[str, Any]:
    return {"messages": list(given)}


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "input": messages(ASK),
        "preferred_output": [SAY],
        "non_preferred_output": [{**SAY, "content": "another"}],
        **changes,
    }


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        (messages(ASK, SAY), [1]),
        (messages(ASK, SAY, ASK, SAY), [1, 3]),
        (messages(ASK, {**SAY, "weight": 0}, ASK, {**SAY, "weight": 1}), [3]),
        (messages(ASK, SAY, ASK), [1]),
        ({**messages(*TOOL_TURNS), "tools": [LOOK], "parallel_tool_calls": False}, [1, 3]),
        (messages(ASK, {"role": "assistant", "refusal": "no"}), [1]),
        (messages(ASK, {**SAY, "content": [{"type": "refusal", "refusal": "no"}]}), [1]),
        (messages({"role": "developer", "content": "be brief"}, ASK, SAY), [2]),
    ],
)
def test_the_assistants_messages_are_learnt_unless_they_weigh_nothing(
    row: dict[str, Any], trained: list[int]
) -> None:
    assert example_of(row).trained == trained
    assert form_of(row) in ("supervised", "reinforcement")


def test_functions_of_old_files_become_tools() -> None:
    row = {
        "functions": [LOOK["function"]],
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "look", "content": "found"},
            SAY,
        ],
    }
    found = example_of(row)
    assert found.tools == [LOOK]
    assert found.messages[1]["tool_calls"] == [{**CALL, "id": "call_1"}]
    assert found.messages[2] == {
        "role": "tool", "name": "look", "content": "found", "tool_call_id": "call_1",
    }  # fmt: skip


def test_graders_see_the_prompt_and_the_answer_as_reference() -> None:
    row = example_of({**messages(ASK, SAY, ASK, {**SAY, "content": "last"}), "label": 3}, line=7)
    assert row.as_row().messages == [ASK, SAY, ASK]
    assert row.as_row().item["reference_answer"] == "last"
    assert (row.as_row().item["label"], row.as_row().line, row.extra) == (3, 7, ["label"])
    other = preference_of(pair(reference_answer="mine")).as_row()
    assert (other.messages, other.item["reference_answer"]) == ([ASK], "mine")
    assert text_of({"role": "assistant", "refusal": "no"}) == "no"


SUPERVISED = [
    ({}, "has no `messages`", "messages"),
    ({"prompt": "a", "completion": "b"}, "write the prompt as a user's message", "messages"),
    (pair(), "a preference row, which method dpo trains on", "messages"),
    (messages(ASK), "no assistant message to learn from", "messages"),
    (messages(ASK, {**SAY, "weight": 0}), "every assistant message has weight 0", "messages"),
    (messages(ASK, {**SAY, "weight": 0.5}), "must be 0 or 1, found 0.5", "messages[1].weight"),
    (messages(ASK, {**SAY, "weight": True}), "must be 0 or 1", "messages[1].weight"),
    (messages({**ASK, "weight": 1}, SAY), "the message is the user's", "messages[0].weight"),
    (messages(ASK, {"role": "assistant"}), "neither content nor tool calls", "messages[1].content"),
    (messages(ASK, {"content": "x"}), "role` must be one of", "messages[1].role"),
    (messages(ASK, {**SAY, "tool_calls": {}}), "non-empty list", "messages[1].tool_calls"),
    (messages({**ASK, "tool_calls": [CALL]}, SAY), "only assistant", "messages[0].tool_calls"),
    (messages(ASK, {**SAY, "tool_calls": [{**CALL, "id": 1}]}), "id` must be text",
     "messages[1].tool_calls[0].id"),
    (messages(ASK, {**SAY, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}),
     "with the JSON of the arguments, found an object",
     "messages[1].tool_calls[0].function.arguments"),
    (messages(ASK, {"role": "tool", "content": "x"}, SAY), "must name the call",
     "messages[1].tool_call_id"),
    ({**messages(ASK, SAY), "tools": {}}, "must be a list of functions", "tools"),
    ({**messages(ASK, SAY), "tools": [{"type": "function", "function": {"name": "a b"}}]},
     "letters, digits", "tools[0].function.name"),
    ({**messages(ASK, SAY), "parallel_tool_calls": "no"}, "true or false", "parallel_tool_calls"),
    (messages(ASK, {**SAY, "content": [{"type": "image_url", "image_url": {}}]}), "text only",
     "messages[1].content[0]"),
]  # fmt: skip

PREFERENCES = [
    (messages(ASK, SAY), "a row with `messages` is for method supervised", "input"),
    ({"input": messages(ASK)}, "has no `non_preferred_output`", "non_preferred_output"),
    (pair(input=[ASK]), "an object with `messages`, found a list", "input"),
    (pair(input=messages()), "an empty list", "input.messages"),
    (pair(input=messages(ASK, SAY)), "is the assistant's", "input.messages[1].role"),
    (pair(preferred_output=[SAY, SAY]), "one assistant message, found 2", "preferred_output"),
    (pair(preferred_output=SAY), "found an object", "preferred_output"),
    (pair(non_preferred_output=[ASK]), "'assistant', found 'user'", "non_preferred_output[0].role"),
    (pair(input={**messages(ASK), "tools": 3}), "list of functions", "input.tools"),
]


@pytest.mark.parametrize(
    ("check", "row", "words", "param"),
    [(example_of, *each) for each in SUPERVISED] + [(preference_of, *each) for each in PREFERENCES],
)
def test_what_is_wrong_with_a_row_is_said_with_its_file_line_and_field(
    check: Any, row: dict[str, Any], words: str, param: str
) -> None:
    with pytest.raises(RowError) as caught:
        check(row, line=4, path="rows.jsonl")
    assert str(caught.value).startswith("rows.jsonl:4: ")
    assert words in str(caught.value)
    assert caught.value.param == param


def test_the_other_spelling_of_the_outputs_is_read_too() -> None:
    old = {
        {"preferred_output": "preferred_completion",
         "non_preferred_output": "non_preferred_completion"}.get(key, key): value
        for key, value in pair().items()
    }  # fmt: skip
    assert preference_of(old).preferred == SAY
    assert form_of(old) == "preference"


def test_files_are_read_line_by_line() -> None:
    lines = [b"\xef\xbb\xbf" + json.dumps(messages(ASK, SAY)).encode(), b"\n", b"{}"]
    bad: list[RowError] = []
    assert [row.line for row in read_examples(lines, path="a.jsonl", on_error=bad.append)] == [1]
    assert str(bad[0]).startswith("a.jsonl:3: ")
    assert [row.line for row in read_preferences([json.dumps(pair()).encode()])] == [1]
