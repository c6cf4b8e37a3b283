"""`/embeddings`: one vector for a text, from any served model.

The mean of the last hidden states, scaled to length 1. No model here was trained for embeddings:
the vectors only tell texts with different words apart. A platform that depends on `cosine` graders
should set RFTKIT_JUDGE_BASE_URL.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import Field

from rftkit.errors import RequestError
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.api.chat import until_disconnected
from rftkit.server.inference.body import Body
from rftkit.server.inference.models import check_model
from rftkit.server.inference.requests import EmbedRequest

__all__ = ["router"]

router = Router()

Token = Annotated[int, Field(ge=0, lt=2**31)]
MAX_INPUTS = 2048


class EmbeddingBody(Body):
    """The body of `POST /embeddings`."""

    model: str
    input: str | list[str] | list[Token] | list[list[Token]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Any = None


@router.post("/embeddings")
async def create(platform: PlatformDep, request: Request, body: EmbeddingBody) -> Reply:
    """Embed texts, or texts as tokens."""
    if body.dimensions is not None:
        raise RequestError(
            "`dimensions` is not supported: a vector always has the model's hidden size",
            param="dimensions",
        )
    await asyncio.to_thread(check_model, platform, body.model)
    asked = EmbedRequest(body.model, _inputs(body.input))
    done = await until_disconnected(request, platform.complete(asked))
    is_text = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _packed(vector) if is_text else vector,
        }
        for index, vector in enumerate(done["embeddings"])
    ]
    usage = {"prompt_tokens": done["prompt_tokens"], "total_tokens": done["prompt_tokens"]}
    return Reply({"object": "list", "data": data, "model": body.model, "usage": usage})


def _inputs(given: Any) -> list[Any]:
    """A list of texts or of token lists.

    Raises:
        RequestError: it is empty or too long.
    """
    inputs = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not 0 < len(inputs) <= MAX_INPUTS or not all(inputs):
        raise RequestError(
            f"`input` must hold one to {MAX_INPUTS} texts, none of them empty", param="input"
        )
    return list(inputs)


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
