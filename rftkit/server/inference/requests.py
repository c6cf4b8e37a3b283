"""The requests that the HTTP process sends to the worker as JSON: a chat, or texts to embed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ChatRequest", "EmbedRequest", "WorkerRequest", "request_from", "to_json"]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One conversation, and how its completions are sampled."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    """Messages in the form of chat completions."""
    must_call: tuple[str, ...] = ()
    """Functions of which one must be called; if empty, the model decides."""
    most_calls: int | None = None
    """Most tool calls of an answer; None for no limit."""
    n: int = 1
    """Number of completions."""
    temperature: float = 1.0
    """0 always takes the most likely token."""
    top_p: float = 1.0
    max_tokens: int | None = None
    """Most completion tokens; None for the worker's default."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    response_format: dict[str, Any] | None = None
    top_logprobs: int | None = None
    """How many alternatives get log-probs for each token; None for no log-probs at all."""
    stream: bool = False
    reasoning_effort: str | None = None
    thinking: str | None = None
    """The tag that opens the model's reasoning, `none`, or None for the model's own."""
    task: Literal["chat", "count"] = "chat"
    """`count` answers with the number of prompt tokens and samples nothing."""
    is_turn: bool = False
    """Whether it is a turn of an episode: its answer has its token ids, and calls stay text."""
    turns: tuple[dict[str, Any], ...] = ()
    """The turns before it: `tokens` as they were sampled, the messages `before` them, and
    `replies`, their calls with the texts of the results."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts, or lists of token ids, each of which becomes one vector."""

    model: str
    input: list[str] | list[list[int]]
    task: Literal["embed"] = "embed"


WorkerRequest = ChatRequest | EmbedRequest


def to_json(request: WorkerRequest) -> dict[str, Any]:
    """Return the request as a JSON object for the worker."""
    return dataclasses.asdict(request)


def request_from(given: dict[str, Any]) -> WorkerRequest:
    """Return the request of a JSON object; the inverse of `to_json`."""
    if given["task"] == "embed":
        return EmbedRequest(**given)
    lists = {name: tuple(given[name]) for name in ("stop", "must_call", "turns")}
    return ChatRequest(**{**given, **lists})
