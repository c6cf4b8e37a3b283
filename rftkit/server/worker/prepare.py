"""From a chat to the engine's request: prompt, limits, schema and seeds; and texts to be embedded.

What the model cannot take is refused here, before it is sampled. Not here: the order in which chats
are served (`chats.py`).
"""

from __future__ import annotations

import json
import secrets

from rftkit.errors import InputError, RequestError
from rftkit.formats import closed_format
from rftkit.server.engine.base import ServingEngine
from rftkit.server.engine.prompts import most_characters
from rftkit.server.engine.tool_calls import calls_schema, marks_calls, optional_calls
from rftkit.server.engine.values import SampleRequest, Thinking
from rftkit.server.engine.written_calls import JSON_CALL
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.store.records import Model
from rftkit.server.training.plan import reasoning, reasoning_tokens
from rftkit.server.training.rollout import schema_of

__all__ = ["sample_request", "text_tokens"]

DEFAULT_MAX_TOKENS = 1_024


def sample_request(
    engine: ServingEngine, known: Model | None, request: ChatRequest
) -> SampleRequest:
    """Return the engine's request for a chat.

    Raises:
        InputError: when the model cannot take the prompt, or a schema; it names the parameter.
    """
    tag = request.thinking or (known and known.thinking) or engine.thinking
    tag = None if tag == "none" else tag
    _check_length(engine, json.dumps(request.messages, ensure_ascii=False), "messages")
    try:
        prompt = engine.encode(request.messages, request.tools, tag)
        for turn in request.turns:
            messages = [*request.messages, *turn["before"]]
            prompt += turn["tokens"]
            prompt += engine.observed(messages, turn["replies"], request.tools, tag)
    except Exception as error:  # a chat template is code, which may fail in any way
        raise InputError(
            f"the model's chat template cannot take these messages: {error}", param="messages"
        ) from error
    room = engine.context_tokens - len(prompt)
    if room < 1:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, but the model's context holds "
            f"{engine.context_tokens}, including the answer",
            param="messages",
            code="context_length_exceeded",
        )
    most = min(request.max_tokens or DEFAULT_MAX_TOKENS, room)
    thinking = reasoning(tag, reasoning_tokens(request.reasoning_effort, most))
    schema = _schema(engine, request, thinking)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    return SampleRequest(
        prompt_ids=prompt,
        seeds=[(seed, index) for index in range(request.n)],
        max_tokens=most,
        temperature=request.temperature,
        top_p=request.top_p,
        schema=schema,
        thinking=thinking,
        stop=() if request.must_call else request.stop,  # a stop text could cut a call
        num_top_logprobs=request.top_logprobs or 0,
    )


def _check_length(engine: ServingEngine, text: str, param: str) -> None:
    """Refuse a text that cannot fit before it is tokenized, which would delay other chats.

    Raises:
        InputError: the text is longer than a context full of the longest token.
    """
    if len(text) > most_characters(engine.tokenizer, engine.context_tokens):
        raise InputError(
            f"the text has {len(text):,} characters; the model's context holds "
            f"{engine.context_tokens:,} tokens",
            param=param,
            code="context_length_exceeded",
        )


def _schema(engine: ServingEngine, request: ChatRequest, thinking: Thinking | None) -> str | None:
    """Return what the answer must follow: the form of tool calls, or the response format.

    Raises:
        RequestError: the schema cannot be compiled; the error names its parameter.
    """
    tools, most = request.tools or [], request.most_calls
    param = "tools" if request.must_call else None
    try:
        form = closed_format(request.response_format)
        if request.must_call:
            schema: str | None = calls_schema(tools, request.must_call, most=most)
        else:
            calls = engine.call_form if tools else JSON_CALL
            schema = schema_of(form, tools, calls, most_calls=most)
        if schema is None and tools and not request.is_turn:
            param = "tools"
            schema = optional_calls(tools, most=most) if marks_calls(engine.tokenizer) else None
        if schema is not None:
            engine.grammars.start(schema, thinking)
    except RequestError as error:
        raise RequestError(error.message, param=param or error.param) from None
    except RecursionError:
        message = "the JSON schema is nested too deeply"
        raise RequestError(message, param=param or "response_format") from None
    return schema


def text_tokens(engine: ServingEngine, text: str | list[int], number: int) -> list[int]:
    """Return the tokens of a text to embed, which may be given as tokens; `number` is its place.

    Raises:
        InputError: when it is too long, or has tokens that the model does not know.
    """
    if isinstance(text, str):
        _check_length(engine, text, "input")
        tokens: list[int] = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        tokens = text
    if not 0 < len(tokens) <= engine.context_tokens:
        raise InputError(
            f"input {number} has {len(tokens)} tokens; the model takes 1 to "
            f"{engine.context_tokens}",
            param="input",
        )
    if not all(0 <= token < engine.num_tokens for token in tokens):
        raise InputError(f"input {number} has unknown token ids", param="input")
    return tokens
