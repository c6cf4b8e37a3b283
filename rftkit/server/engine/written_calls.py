"""How a model's chat template writes a call: the form that supervised training teaches.

Where a response format constrains decoding, a call has to be sampled in that same form, or a
supervised start would be of no use to a job with tools. The form is found by letting the template
write calls of made-up functions, and reading where their names and arguments are. Not here: the
rules that follow from it (`tool_calls`), and reading the calls of an answer (`call_forms`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rftkit.errors import InputError
from rftkit.jsontext import parse_json
from rftkit.server.engine.call_forms import answer_text, attempted_calls_in
from rftkit.server.engine.prompts import closing, conversation, thinking_mark

__all__ = ["JSON_CALL", "CallForm", "call_form"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallForm:
    """The text around a function's name and its arguments."""

    before: str
    """The text from the start of the answer to the name."""
    between: str | None
    """The text from the name to the arguments, which are JSON; None if the arguments are not
    written as JSON."""
    after: str = ""
    """The text from the arguments to the end of the answer."""
    again: str | None = None
    """The text from the arguments to the name of another call; None if an answer has only one call.
    """
    control: tuple[tuple[str, int], ...] = ()
    """Control tokens of the model that the text may have, with their ids."""


JSON_CALL = CallForm('{"name": "', '", "arguments": ', "}")
"""The form for a template that writes no calls, or none that can be parsed again."""

PROBES = (
    ("rftkit_first", {"rftkit_key": "rftkit_one"}),
    ("rftkit_second", {"rftkit_key": "rftkit_two"}),
)
TOOLS: list[Json] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {
        "type": "object", "properties": {key: {"type": "string"} for key in given}}}}
    for name, given in PROBES
]  # fmt: skip
IDS = ("rftkitid1", "rftkitid2")
"""Ids of nine letters and digits; Mistral's templates accept no others."""


@functools.lru_cache(maxsize=8)
def call_form(tokenizer: Any, end_ids: Collection[int]) -> CallForm:
    """How the model's template writes a call.

    Args:
        tokenizer: with its chat template.
        end_ids: tokens that end a turn.
    """
    one = _written(tokenizer, end_ids, 1)
    name, arguments = PROBES[0][0], json.dumps(PROBES[0][1])
    if one is None or one.count(name) != 1:
        return JSON_CALL
    before, rest = one.split(name)
    control = tuple((text, id_) for text, id_ in _control(tokenizer) if text in one)
    if rest.count(arguments) != 1 or any(each in one for each in IDS):
        return CallForm(before, None, control=control)
    between, after = rest.split(arguments)
    form = CallForm(before, between, after, control=control)
    again = _again(form, _written(tokenizer, end_ids, 2))
    return CallForm(before, between, after, again, control)


def _written(tokenizer: Any, end_ids: Collection[int], num: int) -> str | None:
    """The text that a model would sample for so many calls, without the end of the turn and
    reasoning.

    None when the template refuses them, or they cannot be read again.
    """
    calls = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for id_, (name, given) in zip(IDS[:num], PROBES, strict=False)
    ]
    messages: list[Json] = [
        {"role": "user", "content": "call"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    try:
        [text] = conversation(tokenizer, messages, [1], TOOLS, end_ids=end_ids)
    except InputError:
        return None
    own = [token for token, is_own in zip(text.tokens, text.trained, strict=True) if is_own][:-1]
    read = attempted_calls_in(answer_text(tokenizer, own), TOOLS)
    if [_plain(each) for each in read] != [_plain(each) for each in calls]:
        return None
    shown = tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    mark = thinking_mark(tokenizer)
    return str(shown.rpartition(closing(mark))[2].lstrip() if mark else shown)


def _plain(call: Json) -> Json:
    function = call["function"]
    return {**function, "arguments": parse_json(function["arguments"])}


def _again(form: CallForm, two: str | None) -> str | None:
    """The text between two calls; None if the template does not write it consistently."""
    assert form.between is not None
    (name, given), (other, also_given) = PROBES
    head = f"{form.before}{name}{form.between}{json.dumps(given)}"
    tail = f"{other}{form.between}{json.dumps(also_given)}{form.after}"
    if two is None or not (two.startswith(head) and two.endswith(tail)):
        return None
    return two[len(head) : -len(tail)]


def _control(tokenizer: Any) -> list[tuple[str, int]]:
    """The control tokens, which constrained decoding never takes for text."""
    added = {str(token): n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return sorted({**dict(known), **added}.items())
