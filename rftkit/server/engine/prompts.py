"""From chat messages to token ids, for sampling and for training.

`rftkit.chattemplates` writes the text of messages; here it becomes tokens, with the tag that opens
the reasoning if the template lacks it. Tool calls in an answer are read in `call_forms`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from typing import Any

from rftkit.chattemplates import plain_message, rendered
from rftkit.errors import InputError
from rftkit.server.engine.values import Text

__all__ = [
    "closing",
    "conversation",
    "encode",
    "most_characters",
    "opened",
    "thinking_mark",
    "token_ids",
    "tokens_until",
]

Json = dict[str, Any]


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
