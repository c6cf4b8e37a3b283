"""What crosses from the HTTP process to the worker process, as JSON: a chat, or texts to embed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ChatRequest", "EmbedRequest", "WorkerRequest", "request_from", "to_json"]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation, and how its completions are drawn."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    """As chat completions spell them."""
    must_call: tuple[str, ...] = ()
    """Names of the functions one of which has to be called; empty: as the model likes."""
    most_calls: int | None = None
    """Most tool calls of an answer; None for no limit."""
    n: int = 1
    """Number of completions."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    max_tokens: int | None = None
    """Most completion tokens; None for the worker's default."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    response_format: dict[str, Any] | None = None
    top_logprobs: int | None = None
    """Log-probs of so many alternatives beside each token's own; None: no log-probs at all."""
    stream: bool = False
    reasoning_effort: str | None = None
    thinking: str | None = None
    """The tag that opens the model's reasoning, `none`, or None for the model's own."""
    task: Literal["chat", "count"] = "chat"
    """`count` answers with the number of prompt tokens and samples nothing."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts, or texts as token ids, to turn into one vector each."""

    model: str
    input: list[str] | list[list[int]]
    task: Literal["embed"] = "embed"


WorkerRequest = ChatRequest | EmbedRequest


def to_json(request: WorkerRequest) -> dict[str, Any]:
    """The request as the worker's line carries it."""
    return dataclasses.asdict(request)


def request_from(given: dict[str, Any]) -> WorkerRequest:
    """The inverse of `to_json`."""
    if given["task"] == "embed":
        return EmbedRequest(**given)
    lists = {name: tuple(given[name]) for name in ("stop", "must_call")}
    return ChatRequest(**{**given, **lists})
