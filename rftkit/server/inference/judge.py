"""The calls for graders: completions, and embeddings for `cosine`. They go to the judge in the
settings, or to a model served here.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rftkit import graders, settings
from rftkit.errors import InputError, NotFoundError, RequestError
from rftkit.graders import Completion, CompletionCall, completion_call
from rftkit.graders.embeddings import LOCAL_EMBEDDING_MODEL, EmbeddingCall
from rftkit.graders.types import parts
from rftkit.server.inference.body import refusal
from rftkit.server.inference.chat_request import ChatBody, chat_request
from rftkit.server.inference.models import check_model
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.requests import EmbedRequest
from rftkit.server.inference.worker_process import ChatError

__all__ = ["check_judges", "embedding_call", "judge_call"]


HINT = "set RFTKIT_JUDGE_BASE_URL where the server starts to ask a judge elsewhere"


def judge_call(platform: Platform) -> CompletionCall:
    """Return the function with which graders in the server call their judge."""
    judge = settings.judge()
    if judge.base_url is not None:
        import openai

        return completion_call(
            openai.OpenAI(base_url=judge.base_url, api_key=judge.api_key or "none", max_retries=0)
        )

    def complete(
        *,
        model: str,
        messages: list[dict[str, Any]],
        response_format: dict[str, Any],
        sampling: dict[str, Any],
    ) -> Completion:
        try:
            body = ChatBody.model_validate(
                {
                    "model": model,
                    "messages": messages,
                    "response_format": response_format,
                    **sampling,
                }
            )
            request = chat_request(platform, body)
        except ValidationError as error:
            raise ChatError(refusal(error.errors()).message, status=400) from None
        except InputError as error:
            raise ChatError(error.message, status=400) from None
        except NotFoundError as error:
            raise ChatError(f"{error.message}; {HINT}", status=404) from None
        done = platform.complete_in_thread(request)
        [answer] = done["completions"]
        return Completion(
            text=answer["text"],
            finish_reason=answer["stop_reason"],
            usage={
                "prompt_tokens": done["prompt_tokens"],
                "completion_tokens": answer["tokens"],
                "total_tokens": done["prompt_tokens"] + answer["tokens"],
                "cached_tokens": 0,
            },
        )

    return complete


def check_judges(platform: Platform, spec: dict[str, Any], where: str, *, param: str = "") -> None:
    """Refuse a grader whose model cannot be called, before anything is trained or sampled for it.

    Args:
        platform: where models are served.
        spec: a normalised grader.
        where: how a request spells the grader.
        param: the request's parameter at fault, when it is not the grader itself.

    Raises:
        RequestError: no judge is set and no such model is here.
    """
    if settings.judge().base_url is not None:
        return
    for key, part in parts(spec).items():
        if not isinstance(model := part.get("model"), str):
            continue
        place = f"{where}.graders.{key}.model" if key else f"{where}.model"
        try:
            check_model(platform, model)
        except (NotFoundError, RequestError) as error:
            raise RequestError(
                f"`{place}`: {error.message}; {HINT}",
                param=param or place,
                code=error.code,
            ) from None


def embedding_call(platform: Platform) -> EmbeddingCall:
    """Return the function with which `cosine` graders in the server get vectors."""
    judge = settings.judge()
    if judge.base_url is not None:
        import openai

        return graders.embedding_call(
            openai.OpenAI(base_url=judge.base_url, api_key=judge.api_key or "none")
        )

    def embed(model: str, texts: list[str]) -> list[list[float]]:
        request = EmbedRequest(LOCAL_EMBEDDING_MODEL, texts)
        vectors: list[list[float]] = platform.complete_in_thread(request)["embeddings"]
        return vectors

    return embed
