"""Rows that hold answers: the supervised and the preference form of a dataset row.

A supervised row is a conversation; its assistant messages are trained, unless their `weight` is 0.
A preference row has the messages of a prompt and two answers, the preferred one and the other. Not
here: the reinforcement form (`rftkit.rows`), where a grader judges answers, and how a conversation
becomes tokens. Source: the fine-tuning API's schema of training rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from rftkit.errors import RowError
from rftkit.rows import Row, check_messages, decoded_lines, kind_of, parse_object, read_rows

__all__ = [
    "FUNCTION_NAME", "READERS", "Example", "Form", "Preference", "example_of", "form_of",
    "preference_of", "read_examples", "read_preferences",
]  # fmt: skip

Json = dict[str, Any]
Fail = Callable[..., RowError]
Form = Literal["supervised", "preference", "reinforcement"]

EXAMPLE_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
PREFERENCE_KEYS = frozenset({"input", "preferred_output", "non_preferred_output"})
SPELLINGS = {
    "preferred_completion": "preferred_output",
    "non_preferred_completion": "non_preferred_output",
}
"""Names that an older reference page gives the two outputs."""
FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Example(msgspec.Struct, frozen=True, gc=False):
    """One supervised row."""

    item: Json
    """The whole row."""
    line: int
    """Line in its file, from 1."""

    @property
    def messages(self) -> list[Json]:
        """The conversation, answers included."""
        messages: list[Json] = self.item["messages"]
        return messages

    @property
    def tools(self) -> list[Json] | None:
        """Functions the model may call, or None."""
        return self.item.get("tools")

    @property
    def trained(self) -> list[int]:
        """The indices of the messages that the model is trained on."""
        return trained_messages(self.messages)

    @property
    def extra(self) -> list[str]:
        """Keys that the form does not have; the hosted service refuses them."""
        return sorted(set(self.item) - EXAMPLE_KEYS)

    def as_row(self) -> Row:
        """The row as a grader of answers needs it: without the last trained answer.

        Graders find that answer as `item.reference_answer`, unless the row has the key itself.
        """
        at = self.trained[-1]
        given = {"reference_answer": text_of(self.messages[at]), **self.item}
        return Row({**given, "messages": self.messages[:at]}, self.line)


class Preference(msgspec.Struct, frozen=True, gc=False):
    """One preference row."""

    item: Json
    """The whole row."""
    line: int
    """Line in its file, from 1."""

    @property
    def messages(self) -> list[Json]:
        """The messages before the answer."""
        messages: list[Json] = self.item["input"]["messages"]
        return messages

    @property
    def tools(self) -> list[Json] | None:
        """Functions the model may call, or None."""
        given: Json = self.item["input"]
        return given.get("tools")

    @property
    def preferred(self) -> Json:
        """The assistant's message that is preferred."""
        message: Json = self.item["preferred_output"][0]
        return message

    @property
    def non_preferred(self) -> Json:
        """The other one."""
        message: Json = self.item["non_preferred_output"][0]
        return message

    @property
    def extra(self) -> list[str]:
        """Keys that the form does not have."""
        return sorted(set(self.item) - PREFERENCE_KEYS)

    def as_row(self) -> Row:
        """The prompt as a grader of answers needs it; the reference is the preferred answer."""
        given = {k: v for k, v in self.item.items() if k not in PREFERENCE_KEYS}
        given = {"reference_answer": text_of(self.preferred), **given}
        tools = {"tools": self.tools} if self.tools else {}
        return Row({**given, **tools, "messages": self.messages}, self.line)


def form_of(item: Mapping[str, Any]) -> Form:
    """The form that the keys and the last message of a row suggest."""
    if "input" in item and any(key.startswith(("preferred_", "non_preferred_")) for key in item):
        return "preference"
    messages = item.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    is_answered = isinstance(last, dict) and last.get("role") == "assistant"
    return "supervised" if is_answered else "reinforcement"


def trained_messages(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The indices of the assistant messages whose weight is not 0."""
    return [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1) != 0
    ]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or its refusal."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or part.get("refusal") or "" for part in content)
    return content or message.get("refusal") or ""


def read_examples(
    lines: Iterable[bytes],
    *,
    path: str | Path | None = None,
    on_error: Callable[[RowError], None] | None = None,
) -> Iterator[Example]:
    """Yield the supervised rows of a JSONL stream; see `rftkit.rows.read_rows`.

    Raises:
        RowError: Without `on_error`, at the first line that is not a usable row.
    """
    return decoded_lines(lines, _parsed(example_of), path=path, on_error=on_error)


def read_preferences(
    lines: Iterable[bytes],
    *,
    path: str | Path | None = None,
    on_error: Callable[[RowError], None] | None = None,
) -> Iterator[Preference]:
    """Yield the preference rows of a JSONL stream; see `rftkit.rows.read_rows`.

    Raises:
        RowError: Without `on_error`, at the first line that is not a usable row.
    """
    return decoded_lines(lines, _parsed(preference_of), path=path, on_error=on_error)


def _parsed(check: Callable[..., Any]) -> Callable[[bytes, int, str | Path | None], Any]:
    def parse(text: bytes, line: int, path: str | Path | None) -> Any:
        return check(parse_object(text, line=line, path=path), line=line, path=path)

    return parse


# ── supervised ───────────────────────────────────────────────────────────────────────────────


def example_of(item: Json, *, line: int = 1, path: str | Path | None = None) -> Example:
    """Check the object of a supervised line; `functions` of old files become `tools`.

    Raises:
        RowError: with file, line and field, when it is not a usable row.
    """
    fail = _failing(line, path)
    if "messages" not in item:
        if form_of(item) == "preference":
            raise fail("this is a preference row, which method dpo trains on", "messages")
        hint = ""
        if {"prompt", "completion"} <= set(item):
            hint = "; write the prompt as a user's message and the completion as the assistant's"
        keys = ", ".join(sorted(item)) or "none"
        raise fail(f"the row has no `messages` (its keys: {keys}){hint}", "messages")
    _check_conversation(item["messages"], "messages", fail)
    _check_tools(item, "", fail)
    item = _modern(item)
    if not trained_messages(item["messages"]):
        if any(message["role"] == "assistant" for message in item["messages"]):
            raise fail(
                "every assistant message has weight 0, so nothing would be trained; give one "
                "weight 1, or leave the row out",
                "messages",
            )
        raise fail(
            "the row has no assistant message to learn from; a row without an answer is for "
            "method reinforcement",
            "messages",
        )
    return Example(item, line)


def _check_conversation(messages: Any, where: str, fail: Fail) -> None:
    check_messages(messages, fail, where=where, roles=("function",), texts=("refusal",))
    for index, message in enumerate(messages):
        _check_answer(message, f"{where}[{index}]", fail)


def _check_answer(message: Json, where: str, fail: Fail) -> None:
    """Check what only conversations with answers have: weights, calls and their results."""
    weight, is_answer = message.get("weight"), message["role"] == "assistant"
    if weight is not None and not is_answer:
        raise fail(
            f"`{where}.weight` is given, and only assistant messages have a weight; the message "
            f"is the {message['role']}'s",
            f"{where}.weight",
        )
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise fail(f"`{where}.weight` must be 0 or 1, found {weight!r}", f"{where}.weight")
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{where}.tool_calls", fail, is_answer=is_answer)
    if message.get("function_call") is not None:
        _check_call(message["function_call"], f"{where}.function_call", fail)
    says = message.get("content") is not None or message.get("refusal")
    if is_answer and not says and not calls and not message.get("function_call"):
        raise fail(f"`{where}` has neither content nor tool calls", f"{where}.content")
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise fail(
            f"`{where}.tool_call_id` must name the call that the message answers, found "
            f"{kind_of(message.get('tool_call_id'))}",
            f"{where}.tool_call_id",
        )


def _check_calls(calls: Any, where: str, fail: Fail, *, is_answer: bool) -> None:
    if not is_answer:
        raise fail(f"`{where}` is given, and only assistant messages have tool calls", where)
    if not isinstance(calls, list) or not calls:
        raise fail(f"`{where}` must be a non-empty list, found {kind_of(calls)}", where)
    for number, call in enumerate(calls):
        at = f"{where}[{number}]"
        if not isinstance(call, dict):
            raise fail(f"`{at}` must be an object, found {kind_of(call)}", at)
        if not isinstance(call.get("id"), str):
            raise fail(f"`{at}.id` must be text, found {kind_of(call.get('id'))}", f"{at}.id")
        if call.get("type", "function") != "function":
            raise fail(f"`{at}.type` must be 'function', found {call['type']!r}", f"{at}.type")
        _check_call(call.get("function"), f"{at}.function", fail)


def _check_call(call: Any, where: str, fail: Fail) -> None:
    if not isinstance(call, dict):
        raise fail(f"`{where}` must be an object, found {kind_of(call)}", where)
    for name in ("name", "arguments"):
        if not isinstance(call.get(name), str):
            hint = " with the JSON of the arguments" if name == "arguments" else ""
            raise fail(
                f"`{where}.{name}` must be text{hint}, found {kind_of(call.get(name))}",
                f"{where}.{name}",
            )


def _check_tools(item: Mapping[str, Any], where: str, fail: Fail) -> None:
    for key in ("tools", "functions"):
        tools, at = item.get(key), f"{where}{key}"
        if tools is None:
            continue
        if not isinstance(tools, list):
            raise fail(f"`{at}` must be a list of functions, found {kind_of(tools)}", at)
        for number, tool in enumerate(tools):
            place = f"{at}[{number}]" + (".function" if key == "tools" else "")
            function = tool.get("function") if key == "tools" and isinstance(tool, dict) else tool
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
                raise fail(
                    f"`{place}.name` must be 1 to 64 letters, digits, _ or -, found {name!r}",
                    f"{place}.name",
                )
    parallel = item.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        at = f"{where}parallel_tool_calls"
        raise fail(f"`{at}` must be true or false, found {kind_of(parallel)}", at)


def _modern(item: Json) -> Json:
    """A row with `tools` in place of the deprecated `functions` and `function_call`."""
    is_old = any(m.get("function_call") or m["role"] == "function" for m in item["messages"])
    if "functions" not in item and not is_old:
        return item
    messages, call_id = [], ""
    for index, message in enumerate(item["messages"]):
        plain = {k: v for k, v in message.items() if k != "function_call"}
        if message.get("function_call"):
            call_id = f"call_{index}"
            call = {"id": call_id, "type": "function", "function": message["function_call"]}
            plain["tool_calls"] = [call]
        if message["role"] == "function":
            plain |= {"role": "tool", "tool_call_id": call_id}
        messages.append(plain)
    rest = {k: v for k, v in item.items() if k not in ("functions", "messages")}
    tools = [{"type": "function", "function": each} for each in item.get("functions") or []]
    return {**rest, "messages": messages, **({"tools": tools} if tools else {})}


# ── preferences ──────────────────────────────────────────────────────────────────────────────


def preference_of(item: Json, *, line: int = 1, path: str | Path | None = None) -> Preference:
    """Check the object of a preference line.

    Raises:
        RowError: with file, line and field, when it is not a usable row.
    """
    fail = _failing(line, path)
    item = {SPELLINGS.get(key, key): value for key, value in item.items()}
    missing = sorted(PREFERENCE_KEYS - set(item))
    if missing:
        hint = "; a row with `messages` is for method supervised" if "messages" in item else ""
        raise fail(f"the row has no `{missing[0]}`{hint}", missing[0])
    given = item["input"]
    if not isinstance(given, dict):
        raise fail(f"`input` must be an object with `messages`, found {kind_of(given)}", "input")
    _check_conversation(given.get("messages"), "input.messages", fail)
    if given["messages"][-1]["role"] == "assistant":
        raise fail(
            "the last message of `input.messages` is the assistant's; the answers are in "
            "`preferred_output` and `non_preferred_output`",
            f"input.messages[{len(given['messages']) - 1}].role",
        )
    _check_tools(given, "input.", fail)
    for side in ("preferred_output", "non_preferred_output"):
        _check_output(item[side], side, fail)
    return Preference({**item, "input": _modern(given)}, line)


def _check_output(messages: Any, where: str, fail: Fail) -> None:
    if isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict):
        if messages[0].get("role") != "assistant":
            raise fail(
                f"`{where}[0].role` must be 'assistant', found {messages[0].get('role')!r}",
                f"{where}[0].role",
            )
        _check_conversation(messages, where, fail)
        return
    found = f"{len(messages)} of them" if isinstance(messages, list) else kind_of(messages)
    raise fail(f"`{where}` must be a list of one assistant message, found {found}", where)


def _failing(line: int, path: str | Path | None) -> Fail:
    def fail(message: str, param: str | None = None) -> RowError:
        return RowError(message, path=path, line=line, param=param)

    return fail


READERS: dict[str, Callable[..., Iterator[Any]]] = {
    "reinforcement": read_rows,
    "supervised": read_examples,
    "dpo": read_preferences,
}
"""Method of a job -> what reads the rows of its files."""
