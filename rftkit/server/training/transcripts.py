"""Episodes as messages: what the model said in each turn, and what its calls brought.

A turn's calls are as `environment` made them: `{id, name, arguments, text, kind, seconds}`, where
the kind is answer, error or failed. Not here: making calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.graders import Sample
from rftkit.rows import Row
from rftkit.server.engine.call_forms import tool_calls_in
from rftkit.server.engine.values import Completion, Turn

__all__ = ["answered", "messages", "said", "with_transcript"]

Json = dict[str, Any]


def said(completion: Completion, row: Row) -> tuple[str, list[Json]]:
    """The last answer without its tool calls, and these calls, which were not answered."""
    return tool_calls_in(completion.text, row.tools)


def answered(turn: Turn, row: Row) -> list[Json]:
    """The messages of a turn: the assistant's, and the results of its calls."""
    text, calls = tool_calls_in(turn.text, row.tools)
    message: Json = {"role": "assistant", "content": text}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if named := [_call(each) for each in turn.calls if each["name"]]:
        message |= {"content": text if calls else turn.text, "tool_calls": named}
    return [message, *_results(turn.calls)]


def _results(calls: Sequence[Json]) -> list[Json]:
    """The results of calls; one that failed has none."""
    return [
        {"role": "tool", "tool_call_id": each["id"], "content": each["text"]}
        for each in calls
        if each["kind"] != "failed"
    ]


def _call(made: Json) -> Json:
    function = {"name": made["name"], "arguments": made["arguments"]}
    return {"id": made["id"], "type": "function", "function": function}


def messages(completion: Completion, row: Row) -> list[Json]:
    """Everything after the prompt."""
    found = [message for turn in completion.turns for message in answered(turn, row)]
    if completion.turns and not completion.turns[-1].num_observed:
        return found  # it ended before there was another turn
    text, calls = said(completion, row)
    last: Json = {"role": "assistant", "content": text}
    if completion.reasoning:
        last["reasoning_content"] = completion.reasoning
    if calls:
        last["tool_calls"] = calls
    return [*found, last]


def with_transcript(sample: Sample, completion: Completion, row: Row) -> Sample:
    """The sample of an episode, given the sample of its last answer."""
    before = [_call(each) for turn in completion.turns for each in turn.calls if each["name"]]
    return sample.of_episode(before, messages(completion, row))
