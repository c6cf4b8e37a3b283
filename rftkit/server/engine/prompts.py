"""From chat messages to token ids, for sampling and for training.

The model's own chat template decides what a prompt looks like. Only two things are added where the
template lacks them: tools, as the common `<tools>` list in the system message, and the tag that
opens the reasoning. Tool calls in an answer are read in `call_forms`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from rftkit.errors import InputError
from rftkit.examples import text_of
from rftkit.jsontext import parse_json
from rftkit.server.engine.values import Text

__all__ = [
    "closing",
    "conversation",
    "encode",
    "most_characters",
    "opened",
    "plain_message",
    "rendered",
    "thinking_mark",
    "token_ids",
    "tokens_until",
]

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


def encode(
    tokenizer: Any,
    messages: list[Json],
    tools: list[Json] | None = None,
    thinking: str | None = None,
    context_tokens: int | None = None,
) -> list[int]:
    """Token ids of a prompt under the tokenizer's template, ready for an answer.

    The template is applied unchanged, so that training and chat see the same tokens. It handles
    unknown roles itself; `developer` messages become `system` messages.

    Raises:
        InputError: the model has no template, its template refuses the messages, or it makes more
            text of them than a context of `context_tokens` could hold.
    """
    text = opened(rendered(tokenizer, messages, tools, opens=True), thinking)
    if context_tokens is not None and len(text) > most_characters(tokenizer, context_tokens):
        raise InputError(
            f"the model's chat template makes {len(text):,} characters of these messages; the "
            f"model's context holds {context_tokens:,} tokens",
            code="context_length_exceeded",
        )
    return token_ids(tokenizer, text)


def conversation(
    tokenizer: Any,
    messages: list[Json],
    trained: Sequence[int],
    tools: list[Json] | None = None,
    thinking: str | None = None,
    *,
    end_ids: Collection[int],
) -> list[Text]:
    """The tokens of a conversation; only the answers to learn are trained.

    An answer is the text that the template writes after the prompt that a chat would have at that
    place, up to and including the token that ends the turn. So the trained tokens are exactly those
    that would be sampled. Most conversations are one text. Where a template renders a past answer
    differently from the last one (some drop its reasoning), each answer has its own text.

    Args:
        tokenizer: with its chat template.
        messages: the conversation.
        trained: indices of the assistant messages to learn, in order.
        tools: functions the model may call.
        thinking: the tag that opens the model's reasoning; see `encode`.
        end_ids: tokens that end a turn.

    Raises:
        InputError: the template refuses the messages, or it cannot be found where an answer begins.
    """
    _check_control_tokens(tokenizer, messages)
    texts: list[Text] = []
    for index in trained:
        prompt, answer = _turn(tokenizer, messages, index, tools, thinking, end_ids)
        mask = [False] * len(prompt)
        if texts and prompt[: len(texts[-1].tokens)] == texts[-1].tokens:
            before = texts.pop().trained
            mask[: len(before)] = before
        texts.append(Text(prompt + answer, mask + [True] * len(answer)))
    return texts


def _turn(
    tokenizer: Any,
    messages: list[Json],
    index: int,
    tools: list[Json] | None,
    thinking: str | None,
    end_ids: Collection[int],
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt of an answer, and of the answer."""
    if index == 0:
        raise InputError(
            "the first message is the assistant's, and there is no prompt to answer; give it "
            "weight 0, or put a message before it"
        )
    plain = rendered(tokenizer, messages[:index], tools, opens=True)
    whole = rendered(tokenizer, messages[: index + 1], tools, opens=False)
    before = opened(plain, thinking)
    if not whole.startswith(before):
        before = plain  # the template writes no reasoning before this answer
    if not whole.startswith(before):
        raise InputError(
            f"cannot find where the answer in message {index + 1} begins: the model's chat "
            f"template ends the prompt with {before[-20:]!r}, and does not begin the answer so "
            "when it is part of a conversation; choose another model, or a template that writes "
            "both alike"
        )
    prompt = token_ids(tokenizer, before)
    answer = _behind(tokenizer, prompt, before, whole, index)
    ends = [place for place, token in enumerate(answer) if token in end_ids]
    if ends:
        return prompt, answer[: ends[0] + 1]
    # The template leaves the end to the next message, or has none; a sampled answer ends.
    answer = _behind(tokenizer, prompt, before, whole.rstrip(), index)
    return prompt, [*answer, _end(tokenizer, end_ids)]


def _behind(tokenizer: Any, prompt: list[int], before: str, whole: str, index: int) -> list[int]:
    """The tokens of `whole` after the prompt, as a model that has read the prompt would sample
    them.

    A token that spans the boundary (one line break merged with the next) could not be sampled; then
    the answer is tokenized separately.
    """
    ids = token_ids(tokenizer, whole)
    if ids[: len(prompt)] == prompt:
        return ids[len(prompt) :]
    text = whole[len(before) :]
    ids = token_ids(tokenizer, text)
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back != text:
        raise InputError(
            f"cannot find where the answer in message {index + 1} begins: its first token "
            "spans the end of the prompt, and this tokenizer does not split it there; choose "
            "another model"
        )
    return ids


def _end(tokenizer: Any, end_ids: Collection[int]) -> int:
    end = tokenizer.eos_token_id
    return int(end) if end in end_ids else min(end_ids)


def _check_control_tokens(tokenizer: Any, messages: Sequence[Json]) -> None:
    """Refuse texts in which the tokenizer would read a control token, such as the end of a turn."""
    for number, message in enumerate(messages, start=1):
        text = plain_message(message)["content"]
        found = next((token for token in tokenizer.all_special_tokens if token in text), None)
        if found is not None:
            raise InputError(
                f"the text of message {number} has {found!r}, a control token of the model's "
                "tokenizer; remove it"
            )


def rendered(tokenizer: Any, messages: list[Json], tools: list[Json] | None, *, opens: bool) -> str:
    """The text of messages under the template, ready for an answer if it `opens` one.

    A template that refuses the results of tool calls gets them as the user's, as Hermes writes
    them.

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


def opened(text: str, thinking: str | None) -> str:
    """Return a prompt that also opens the model's reasoning, if it has any."""
    if thinking is not None and not text.rstrip().endswith(thinking):
        text += f"{thinking}\n"
    return text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that a template wrote."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(token) for token in ids]


def most_characters(tokenizer: Any, context_tokens: int) -> int:
    """Length of a text that cannot fit into a context, found without tokenizing it.

    Four times a context full of the longest token, because spaces may be stripped.
    """
    return 4 * context_tokens * _longest_token(tokenizer)


@functools.lru_cache(maxsize=8)
def _longest_token(tokenizer: Any) -> int:
    """The length of the longest token of a vocabulary, in characters."""
    return max(map(len, tokenizer.get_vocab()), default=1)


def thinking_mark(tokenizer: Any) -> str | None:
    """Return the tag that opens the reasoning, if the chat template contains one."""
    return "<think>" if re.search(r"</?think>", str(tokenizer.chat_template)) else None


def closing(mark: str) -> str:
    """Return the end tag of a tag: `<think>` gives `</think>`, `[THINK]` gives `[/THINK]`."""
    return f"{mark[0]}/{mark[1:]}"


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


def tokens_until(tokenizer: Any, tokens: list[int], text: str) -> int | None:
    """Return how many of the tokens contain `text`; None when they do not."""
    if text not in tokenizer.decode(tokens):
        return None
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        has = text in tokenizer.decode(tokens[:middle])
        low, high = (low, middle) if has else (middle + 1, high)
    return low
