"""The body of a chat completion, and its checks before it goes to the worker.

A `ChatBody` that passes its checks becomes a `ChatRequest` (`requests.py`). Each parameter has an
effect or is refused by name. Parameters that concern only the hosted service, such as `user`, are
accepted and ignored. `metadata.thinking` names the tag that opens a model's reasoning (`<think>`,
or `none`) if its chat template does not show it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rftkit.errors import RequestError
from rftkit.server.inference.body import (
    Body,
    Metadata,
    check_messages,
    check_neutral,
    check_response_format,
)
from rftkit.server.inference.models import check_model
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.inference.tool_choice import tool_use
from rftkit.server.training.plan import EFFORTS

__all__ = ["ChatBody", "Stop", "chat_request"]

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Stop = str | list[str]
LEAST_TOP_P = 1e-9
"""What `top_p` 0 means: only the likeliest token, which is the first one and has more than this."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "verbosity": ("low", "medium", "high"),  # as in responses: clients send one unasked
    "audio": (),
    "functions": ([],),
    "function_call": ("none",),
    "moderation": (),
    "web_search_options": (),
}
"""Parameters that are accepted only with a value that has no effect."""


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatBody(Body):
    """The body of a chat completion."""

    model: str
    messages: list[dict[str, Any]]
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    verbosity: str | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    moderation: Any = None
    web_search_options: Any = None
    prediction: Any = None
    metadata: Metadata | None = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


def chat_request(platform: Platform, body: ChatBody) -> ChatRequest:
    """Check a body and turn it into the worker's request.

    Raises:
        RequestError: for an unsupported parameter, naming it.
        NotFoundError: for an unknown model.
    """
    check_model(platform, body.model)
    check_messages(body.messages)
    check_neutral(body, NEUTRAL)
    if body.response_format is not None:
        check_response_format(body.response_format)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
    if body.reasoning_effort not in (None, *EFFORTS):
        raise RequestError(
            f"`reasoning_effort` must be one of {', '.join(EFFORTS)}, found "
            f"{body.reasoning_effort!r}",
            param="reasoning_effort",
        )
    use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > 4 or not all(stop):
        raise RequestError("`stop` must have one to four texts, none of them empty", param="stop")
    return ChatRequest(
        model=body.model,
        messages=body.messages,
        tools=use.tools,
        must_call=use.must_call,
        most_calls=use.most_calls,
        n=body.n or 1,
        temperature=1.0 if body.temperature is None else float(body.temperature),
        top_p=1.0 if body.top_p is None else max(float(body.top_p), LEAST_TOP_P),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        seed=body.seed,
        stop=tuple(stop),
        response_format=body.response_format,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        stream=bool(body.stream),
        reasoning_effort=body.reasoning_effort,
        thinking=(body.metadata or {}).get("thinking"),
    )
