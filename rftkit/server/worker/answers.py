"""Completions and errors as messages to the server: plain JSON objects.

Not here: the shapes of the wire (`api/`).
"""

from __future__ import annotations

from typing import Any

from rftkit.errors import InputError, NotFoundError
from rftkit.server.engine.base import ServingEngine
from rftkit.server.engine.call_forms import tool_calls_in
from rftkit.server.engine.tool_calls import forced_calls_in
from rftkit.server.engine.values import Completion
from rftkit.server.inference.requests import ChatRequest

__all__ = ["done_message", "error_message"]


def done_message(
    engine: ServingEngine, request: ChatRequest, prompt_tokens: int, completions: list[Completion]
) -> dict[str, Any]:
    """Return the answer of a chat: each completion with its tool calls and log-probs."""
    return {
        "prompt_tokens": prompt_tokens,
        "completions": [
            {
                "index": index,
                "stop_reason": each.stop_reason,
                "tokens": len(each.tokens),
                "reasoning": each.reasoning,
                "reasoning_tokens": each.reasoning_tokens,
                "logprobs": _logprobs(engine, each),
                **_read(each, request),
            }
            for index, each in enumerate(completions)
        ],
    }


def _read(completion: Completion, request: ChatRequest) -> dict[str, Any]:
    """Return the answer without its tool calls, and the calls; of a turn its tokens and text."""
    calls: list[dict[str, Any]] = []
    text = completion.text
    if request.is_turn:
        return {"text": text, "token_ids": completion.tokens}
    if request.must_call:  # all of it is calls, even if it was cut before the first had a name
        text, calls = "", forced_calls_in(text)
    else:
        text, calls = tool_calls_in(text, request.tools)
    return {"text": text, "tool_calls": calls[: request.most_calls] or None}


def _logprobs(engine: ServingEngine, completion: Completion) -> list[dict[str, Any]]:
    """Return the answer's tokens with their log-probs, without reasoning and end token."""

    def text(token: int) -> str:
        return str(engine.tokenizer.decode([token]))

    tops = completion.top_logprobs or [()] * len(completion.tokens)
    entries = zip(completion.tokens, completion.sampling_logprobs, tops, strict=True)
    return [
        {
            "token": text(token),
            "logprob": logprob,
            "top": [{"token": text(other), "logprob": value} for other, value in top],
        }
        for token, logprob, top in list(entries)[completion.reasoning_tokens :]
        if token not in engine.eos_ids
    ]


def error_message(error: Exception) -> dict[str, Any]:
    """Return an error as the server passes it on; `status` is that of its HTTP answer."""
    is_input = isinstance(error, InputError)
    status = 400 if is_input else 404 if isinstance(error, NotFoundError) else 500
    return {
        "status": status,
        "message": str(error) or type(error).__name__,
        "type": "server_error" if status == 500 else "invalid_request_error",
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }
