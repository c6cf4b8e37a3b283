"""Messages as text under a model's own chat template, for training, chats and token counts.

The template decides what a prompt looks like. Only tools are added where the template lacks them,
as the common `<tools>` list in the system message. Not here: tokens
(`rftkit.server.engine.prompts`, `rftkit.datasets.tokens`).
"""

from __future__ import annotations

import json
from typing import Any

from rftkit.errors import InputError
from rftkit.examples import text_of
from rftkit.jsontext import parse_json

__all__ = ["plain_message", "rendered"]

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


def rendered(tokenizer: Any, messages: list[Json], tools: list[Json] | None, *, opens: bool) -> str:
    """The text of messages under the template, ready for an answer if it `opens` one.

    A template that refuses messages of tools gets their results as user messages, in the form of
    Hermes.

    Raises:
        InputError: there is no template, or it refuses the messages.
    """
    plain = [plain_message(message) for message in messages]
    if "tools" not in str(tokenizer.chat_template):
        plain, tools = _with_tools_as_text(plain, tools), None
    if not tokenizer.chat_template:
        raise InputError(
            "the model has no chat template, so a prompt has no form; add chat_template.jinja to "
            "its folder, or choose an instruction-tuned model"
        )
    forms = [plain]
    if any(message["role"] == "tool" for message in plain):
        forms.append(_with_results_as_users(plain))
    why = ""
    for form in forms:
        try:
            text: str = tokenizer.apply_chat_template(
                form, tools=tools or None, add_generation_prompt=opens, tokenize=False
            )
        except Exception as error:  # a model's own template can raise anything
            why = str(error) or type(error).__name__
        else:
            return text
    roles = ", ".join(str(message.get("role")) for message in messages)
    raise InputError(
        f"the model's chat template refuses these messages ({roles}): {why}; put a system message "
        "into the user's message, or choose another model"
    )


def plain_message(message: Json) -> Json:
    """A message as chat templates take it: its content is one text, a developer is the system."""
    role = "system" if message["role"] == "developer" else message["role"]
    plain = {**message, "role": role, "content": text_of(message)}
    plain.pop("weight", None)
    if message.get("tool_calls"):
        plain["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return plain


def _with_object(call: Json) -> Json:
    """Return a call with its arguments as an object, as templates expect."""
    function = call["function"]
    try:
        arguments = parse_json(function["arguments"])
    except (ValueError, TypeError):
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _with_tools_as_text(messages: list[Json], tools: list[Json] | None) -> list[Json]:
    """Write tools and former calls as text, for a template without tools."""
    texts = [_with_calls_as_text(message) for message in messages]
    if not tools:
        return texts
    shown = TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if texts[0]["role"] == "system":
        first = {**texts[0], "content": f"{texts[0]['content']}\n\n{shown}"}
        return [first, *texts[1:]]
    return [{"role": "system", "content": shown}, *texts]


def _with_calls_as_text(message: Json) -> Json:
    if not message.get("tool_calls"):
        return message
    blocks = []
    for call in message["tool_calls"]:
        function = {name: call["function"][name] for name in ("name", "arguments")}
        blocks.append(f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>")
    return {**message, "content": "\n".join([*filter(None, [message["content"]]), *blocks])}


def _with_results_as_users(messages: list[Json]) -> list[Json]:
    """Write the results of tool calls as messages of the user, those in a row as one."""
    found: list[Json] = []
    for message in messages:
        if message["role"] != "tool":
            found.append(message)
            continue
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        if found and found[-1].get("is_result"):
            found[-1]["content"] += f"\n{text}"
        else:
            found.append({"role": "user", "content": text, "is_result": True})
    return found
