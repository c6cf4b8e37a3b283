"""The tokens between a turn that calls tools and the next turn, as the chat template writes them.

The turn itself stays as it was sampled: it is never decoded and encoded again. What follows its end
token (the rest of its line, the results, the head of the next turn) is taken from the template's
text of the whole conversation, in which an empty call stands for the turn. A template that cannot
be continued in this way is refused. Not here: who answers the calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rftkit.chattemplates import rendered
from rftkit.errors import InputError
from rftkit.server.engine.prompts import opened, token_ids

__all__ = ["check_observed", "observed"]

Json = dict[str, Any]

PROBE = "rftkit-probe"
ID_LENGTH = 9
"""The length of a call's id in the text; Mistral's templates accept no other."""


def observed(
    tokenizer: Any,
    messages: list[Json],
    replies: Sequence[tuple[Json, str]],
    tools: list[Json] | None = None,
    thinking: str | None = None,
    *,
    end_ids: Collection[int],
) -> list[int]:
    """What is appended to a turn, up to and including the head of the next one.

    A control token in a result is written with a space in it, so that it is text.

    Args:
        tokenizer: with its chat template.
        messages: the conversation before the turn.
        replies: the calls of the turn, as chat completions spell them, with the text of each
            result.
        tools: functions the model may call.
        thinking: the tag that opens the model's reasoning; see `prompts.encode`.
        end_ids: tokens that end a turn; the turn has ended with one.

    Raises:
        InputError: the template does not take the messages, or it cannot be found where the turn
            ends in its text.
    """
    calls = [
        {
            "id": call["id"][-ID_LENGTH:],
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": "{}"},
        }
        for call, _ in replies
    ]
    results = [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "name": call["function"]["name"],
            "content": _without_control(tokenizer, text),
        }
        for call, (_, text) in zip(calls, replies, strict=True)
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    before = rendered(tokenizer, messages, tools, opens=False)
    whole = rendered(tokenizer, [*messages, turn, *results], tools, opens=True)
    ids = token_ids(tokenizer, opened(whole, thinking))
    ends = [place for place, token in enumerate(ids) if token in end_ids]
    ended = sum(token in end_ids for token in token_ids(tokenizer, before))
    if not whole.startswith(before.rstrip()) or len(ends) <= ended:
        raise InputError(
            "the model's chat template writes a conversation with tool results so that it cannot "
            "be found where a turn ends, so a turn that was sampled cannot be continued; choose "
            "another model, or a template that only appends"
        )
    return ids[ends[ended] + 1 :]


def check_observed(
    tokenizer: Any,
    messages: list[Json],
    tools: list[Json] | None = None,
    thinking: str | None = None,
    *,
    end_ids: Collection[int],
) -> None:
    """Find out whether the model gets to read the results of calls after these messages.

    Raises:
        InputError: as from `observed`, or the template leaves results out.
    """
    function = (tools or [{}])[0].get("function", {})
    call = {"id": "call_00000000", "function": {"name": function.get("name", "tool")}}
    tokens = observed(tokenizer, messages, [(call, PROBE)], tools, thinking, end_ids=end_ids)
    if PROBE not in tokenizer.decode(tokens):
        raise InputError(
            "the model's chat template leaves out the results of tool calls; choose another model"
        )


def _control(tokenizer: Any) -> set[str]:
    """The control tokens, as a template writes them; the two lists of a tokenizer differ."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in added | set(tokenizer.all_special_tokens) if token}


def _without_control(tokenizer: Any, text: str) -> str:
    for token in _control(tokenizer):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
