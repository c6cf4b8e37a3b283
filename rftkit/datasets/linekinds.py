"""What a line of a file is, by its keys: an eval item, a preference row, a chat, a prompt. Pure.

A chat that ends with the assistant gives its last message as the answer; so does a preference row
with its preferred answer. The `conversations` of ShareGPT, turns of `from` and `value`, are chats.
A prompt (or question, input, instruction) with an answer (or completion, output, response, ideal)
becomes one user message; the `input`, `context` or `passage` of an instruction or question and its
choices are added to it, its `history` goes before it. A `system` text becomes the first message. An
eval's `item` becomes the row, and a `sample` beside it is dropped.
Every other key is kept. Values that are not text are written as JSON, and a missing value never
becomes a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rftkit.datasets.choices import ANSWER_KEYS, choice_lines, labelled, named_answer
from rftkit.datasets.columns import PROMPTS
from rftkit.datasets.forms import KEYS, answers_in, row_in
from rftkit.errors import InputError
from rftkit.examples import form_of
from rftkit.jsontext import as_text

__all__ = ["ANSWERS", "KINDS", "Item"]

ABOUT_SOMETHING = ("instruction", "question", "query")
"""Prompts whose subject may be under another key."""
SUBJECTS = ("input", "context", "passage", "article")
ANSWERS = ("reference_answer", "answer", "completion", "output", "response", "ideal", "target")
"""Keys of an answer, the likeliest first."""
TURNS = ("conversations", "conversation", "turns", "dialogue")
"""Keys under which ShareGPT's form and its relatives have their turns."""
SPEAKERS = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant",
}  # fmt: skip
"""The speaker of a turn in other formats -> the role of a message."""
Item = dict[str, Any]
Found = tuple[Item, Item | None] | None
"""A row without the answer, and the assistant message with it, if the line has one."""


def _from_chat(item: Item) -> Found:
    messages = item.get("messages")
    if not isinstance(messages, list) or len(messages) < 2 or not isinstance(messages[-1], dict):
        return None
    if messages[-1].get("role") != "assistant":
        return None
    if messages[-1].get("weight") == 0:
        raise InputError("the last assistant message has weight 0, so it is no reference answer")
    return _with_system({**item, "messages": _unweighted(messages[:-1])}), messages[-1]


def _from_turns(item: Item) -> Found:
    """ShareGPT: `conversations` (or another key) with turns of `from` and `value`."""
    key = next((key for key in TURNS if _are_turns(item.get(key))), None)
    if key is None or "messages" in item:
        return None
    messages = [
        {"role": _role(turn["from"]), "content": _turn(turn["value"])} for turn in item[key]
    ]
    rest = {name: value for name, value in item.items() if name != key}
    chat = _with_system({"messages": messages, **rest})
    return _from_chat(chat) or (chat, None)


def _turn(value: Any) -> str:
    if value is None:
        raise InputError("a turn has the value null; fill it in, or remove the line")
    return _written(value)


def _with_system(item: Item) -> Item:
    """The same with the text under `system` as first message, where other formats keep it."""
    messages, system = item["messages"], item.get("system")
    has_one = any(isinstance(each, dict) and each.get("role") == "system" for each in messages)
    if has_one or not isinstance(system, str):
        return item
    rest = {name: value for name, value in item.items() if name != "system"}
    first = [{"role": "system", "content": system}] if system.strip() else []
    return {**rest, "messages": [*first, *messages]}


def _are_turns(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(
        isinstance(each, dict) and {"from", "value"} <= set(each) for each in value
    )


def _role(speaker: Any) -> str:
    if role := SPEAKERS.get(str(speaker).lower()):
        return role
    raise InputError(f"a turn is from {speaker!r}; known are {', '.join(SPEAKERS)}")


def _from_preference(item: Item) -> Found:
    if "messages" in item or form_of(item) != "preference":
        return None
    row = row_in("preference", item, line=0, path=None)
    rest = {k: v for k, v in item.items() if k not in KEYS["preference"]}
    prompt = {**row.item["input"], "messages": _unweighted(row.messages)}
    return {**prompt, **rest}, answers_in(row)[0]


def _unweighted(messages: list[Any]) -> list[Any]:
    """Messages of a prompt, in which a weight has no meaning."""
    return [
        {key: value for key, value in each.items() if key != "weight"}
        if isinstance(each, dict)
        else each
        for each in messages
    ]


def _from_pair(item: Item) -> Found:
    prompt = next((key for key in PROMPTS if key in item), None)
    if prompt is None or "messages" in item:
        return None
    beside = _beside(prompt, item)
    given, earlier, choices = item[prompt], [], labelled(item) if prompt in ABOUT_SOMETHING else []
    if isinstance(given, list) and any(isinstance(each, dict) and "role" in each for each in given):
        messages, choices = given, []
    else:
        parts = [_written(item[key]) for key in (prompt, *beside)]
        text = "\n\n".join(part for part in parts if part.strip())
        if not text:
            found = "null" if given is None else "empty"
            raise InputError(f"the prompt (`{prompt}`) is {found}; fill it in, or remove the line")
        if choices:
            text = f"{text}\n\n{choice_lines(choices)}"
        earlier = _earlier(item.get("history"))
        messages = [*earlier, {"role": "user", "content": text}]
    answers = (*ANSWERS, *(ANSWER_KEYS if choices else ()))
    answer = next((key for key in answers if item.get(key) is not None), None)
    if answer is None:  # a null stays null, and `check` names it
        answer = next((key for key in answers if key in item), None)
    taken = (prompt, *beside, *(["history"] if earlier else []), answer)
    rest = {key: value for key, value in item.items() if key not in taken}
    reference = {"reference_answer": named_answer(choices, item[answer])} if answer else {}
    return _with_system({"messages": messages} | reference | rest), None


def _are_pairs(value: Any) -> bool:
    """Whether it is the history of an instruction: questions with their answers."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(each, list) and len(each) == 2 for each in value)


def _earlier(history: Any) -> list[Item]:
    if not _are_pairs(history):
        return []
    roles = ("user", "assistant")
    return [
        {"role": role, "content": _turn(text)}
        for pair in history
        for role, text in zip(roles, pair, strict=True)
    ]


def _beside(prompt: str, item: Item) -> list[str]:
    """Keys whose text belongs to the prompt: what an instruction or a question is about."""
    if prompt not in ABOUT_SOMETHING:
        return []
    keys = [key for key in SUBJECTS if key in item and key != prompt]
    return [key for key in keys if _is_subject(key, item[key])]


def _is_subject(key: str, value: Any) -> bool:
    """Whether it is what a question is about; the number of a context is an id."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or isinstance(value, str | dict | list) or (is_number and key == "input")


def _written(value: Any) -> str:
    """A value as the text of a prompt: what is no text as JSON, and what is missing as nothing."""
    return "" if value is None else as_text(value)


def _from_eval(item: Item) -> Found:
    inner = item.get("item")
    if not isinstance(inner, Mapping):
        return None
    inner = dict(inner)
    if _ends_with_user(inner.get("messages")):
        return inner, None
    return _from_chat(inner) or _from_pair(inner)


def _ends_with_user(messages: Any) -> bool:
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return messages[-1].get("role") == "user"


KINDS: Mapping[str, Callable[[Item], Found]] = {
    "eval items": _from_eval,
    "preference rows": _from_preference,
    "chats with an answer": _from_chat,
    "ShareGPT conversations": _from_turns,
    "prompts with an answer": _from_pair,
}
"""Kind of line -> its row and the message with its answer; None when it is not of that kind."""
