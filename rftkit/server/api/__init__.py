"""The routes, one file per resource. A handler parses, calls the store or worker, and answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import QueryParams

from rftkit.errors import RequestError
from rftkit.server.inference.platform import Platform

__all__ = ["Here", "Limit", "Reply", "cut", "metadata_filter", "repeated"]

Limit = Annotated[int, Query(ge=1, le=1000)]
"""How many objects a page may have."""


async def _here(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


Here = Annotated[Platform, Depends(_here)]
"""The platform of a request."""


class Reply(JSONResponse):
    """JSON in ASCII, so that any text a model wrote can be sent."""

    def render(self, content: Any) -> bytes:
        """Refuses NaN and infinity, which are not JSON."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def repeated(request: Request) -> dict[str, Any]:
    """How a create may be a former one again: what `Store.once` needs to know.

    The SDK counts its retries; other clients send an `Idempotency-Key` of their own.
    """
    return {
        "is_resent": request.headers.get("x-stainless-retry-count", "0") not in ("", "0"),
        "key": request.headers.get("idempotency-key"),
    }


def cut(
    objects: Sequence[dict[str, Any]], after: str | None, limit: int
) -> tuple[Sequence[dict[str, Any]], bool]:
    """A page of a short list of wire objects, and whether more follows.

    Raises:
        RequestError: when `after` is not in the list.
    """
    if after is not None:
        ids = [each["id"] for each in objects]
        if after not in ids:
            raise RequestError(f"`after` is {after!r}, which is not in this list", param="after")
        objects = objects[ids.index(after) + 1 :]
    return objects[:limit], len(objects) > limit


def metadata_filter(query: QueryParams) -> dict[str, str] | None:
    """`metadata[key]=value` pairs; `metadata=null` gives {}, no filter None."""
    if query.get("metadata") == "null":
        return {}
    pairs = {
        key[len("metadata[") : -1]: value
        for key, value in query.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    return pairs or None
