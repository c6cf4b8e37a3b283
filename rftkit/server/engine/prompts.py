"""From chat messages to token ids, and from a completion's text back to tool calls.

The model's own chat template decides what a prompt looks like. Two things are added only where it
has no word for them: tools, shown in the widespread form of a `<tools>` list in the system message,
and the mark that opens thoughts. Not here: sampling, and which requests are allowed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from rftkit.errors import InputError

__all__ = ["call_id", "closing", "encode", "thinking_mark", "tokens_until", "tool_calls_in"]

Json = dict[str, Any]

TOOLS = """\
You may call functions to help with the user's request. Their signatures are within <tools></tools>:
<tools>
{tools}
</tools>
For each call, answer with a JSON object within <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <arguments-object>}}
</tool_call>"""
"""The form of Hermes and Qwen2.5."""
CALL_START, CALL_END = "<tool_call>", "</tool_call>"


def encode(
    tokenizer: Any,
    messages: list[Json],
    tools: list[Json] | None = None,
    thinking: str | None = None,
) -> list[int]:
    """Token ids of a prompt under the tokenizer's template, ready for an answer.

    The template is applied as it stands, so that training and chat see the same tokens. Roles a
    template does not know are its own business; `developer` is what was once called `system`.

    Raises:
        InputError: the model has no template, or its template refuses the messages.
    """
    plain = [_plain(message) for message in messages]
    if "tools" not in str(tokenizer.chat_template):
        plain, tools = _with_tools_as_text(plain, tools), None
    if not tokenizer.chat_template:
        raise InputError(
            "the model has no chat template, so a prompt has no form; add chat_template.jinja to "
            "its folder, or choose an instruction-tuned model"
        )
    try:
        text: str = tokenizer.apply_chat_template(
            plain, tools=tools or None, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # whatever a model's own template raises
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InputError(
            f"the model's chat template refuses these messages ({roles}): {error}; put a system "
            "message into the user's message, or choose another model"
        ) from None
    if thinking is not None and not text.rstrip().endswith(thinking):
        text += f"{thinking}\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(token) for token in ids]


def thinking_mark(tokenizer: Any) -> str | None:
    """The mark that opens thoughts, if the chat template speaks of one."""
    return "<think>" if re.search(r"</?think>", str(tokenizer.chat_template)) else None


def closing(mark: str) -> str:
    """The end mark of an opening one: `<think>` gives `</think>`, `[THINK]` gives `[/THINK]`."""
    return f"{mark[0]}/{mark[1:]}"


def tool_calls_in(text: str, tools: list[Json] | None) -> tuple[str, list[Json]]:
    """An answer without its tool calls, and the calls as chat completions spell them.

    Read are `<tool_call>` blocks (Hermes, Qwen), and an answer that is nothing but a call or a list
    of calls as JSON (Llama, Mistral). What names no given tool, or is not JSON, stays text.
    """
    names = {tool.get("function", tool).get("name") for tool in tools or []}
    if not names:
        return text, []
    calls: list[Json] = []

    def take(found: str) -> bool:
        read = list(_calls(found, names))
        calls.extend({**call, "id": call_id(text, len(calls) + i)} for i, call in enumerate(read))
        return bool(read)

    rest, end = [], 0
    while (start := text.find(CALL_START, end)) >= 0:
        inside = start + len(CALL_START)
        close = text.find(CALL_END, inside)
        if close < 0:
            break
        after = close + len(CALL_END)
        rest.append(text[end : start if take(text[inside:close].strip()) else after])
        end = after
    rest.append(text[end:])
    if not calls and take(text):
        rest = []
    return ("".join(rest).strip() if calls else text), calls


def _calls(found: str, names: set[str | None]) -> Iterator[Json]:
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("name") not in names:
            return
    for entry in entries:
        given = entry.get("arguments", entry.get("parameters", {}))
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        yield {"type": "function", "function": {"name": entry["name"], "arguments": text}}


def call_id(text: str, number: int) -> str:
    """The same for the same answer, so that a job that is run again gives its grader the same."""
    return "call_" + hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:24]


def _plain(message: Json) -> Json:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    plain = {**message, "role": role, "content": content or ""}
    if message.get("tool_calls"):
        plain["tool_calls"] = [_opened(call) for call in message["tool_calls"]]
    return plain


def _opened(call: Json) -> Json:
    """A call with its arguments as an object, which is what templates write as JSON."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, TypeError):
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _with_tools_as_text(messages: list[Json], tools: list[Json] | None) -> list[Json]:
    """Messages for a template that knows no tools: the list, and former calls, as text."""
    said = [_with_calls_as_text(message) for message in messages]
    if not tools:
        return said
    shown = TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if said[0]["role"] == "system":
        first = {**said[0], "content": f"{said[0]['content']}\n\n{shown}"}
        return [first, *said[1:]]
    return [{"role": "system", "content": shown}, *said]


def _with_calls_as_text(message: Json) -> Json:
    if not message.get("tool_calls"):
        return message
    blocks = []
    for call in message["tool_calls"]:
        said = {name: call["function"][name] for name in ("name", "arguments")}
        blocks.append(f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>")
    return {**message, "content": "\n".join([*filter(None, [message["content"]]), *blocks])}


def tokens_until(tokenizer: Any, tokens: list[int], text: str) -> int | None:
    """How many of the tokens it takes to say `text`; None when they do not."""
    if text not in tokenizer.decode(tokens):
        return None
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        has = text in tokenizer.decode(tokens[:middle])
        low, high = (low, middle) if has else (middle + 1, high)
    return low
