"""The routes, one file per resource. A handler parses, calls the store or worker, and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.responses import Response

from rftkit.errors import RequestError
from rftkit.jsontext import parse_json
from rftkit.server.inference.answering import Turn
from rftkit.server.inference.platform import Platform

__all__ = [
    "Limit",
    "PlatformDep",
    "Reply",
    "Router",
    "cut",
    "metadata_filter",
    "repeated",
    "turn_of",
]

LARGE_BYTES = 256 * 1024
"""A JSON body from this size on is parsed in a thread."""

Limit = Annotated[int, Query(ge=1, le=1000)]
"""How many objects a page may have."""


async def _here(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


PlatformDep = Annotated[Platform, Depends(_here)]
"""The platform of a request."""


class _LargeBody(Request):
    """A request whose JSON body does not keep others waiting, however large it is."""

    async def json(self) -> Any:
        """Return the parsed body."""
        if not hasattr(self, "_json"):
            body = await self.body()
            if len(body) < LARGE_BYTES:
                self._json = parse_json(body)
            else:
                self._json = await asyncio.to_thread(parse_json, body, object_hook=_pause)
        return self._json


def _pause(found: dict[str, Any]) -> dict[str, Any]:
    """Let other threads run: the parser is C code, which holds them up between two such calls."""
    return found


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_LargeBody(request.scope, request.receive))

        return handle


class Router(APIRouter):
    """The routes of one resource."""

    def __init__(self, **options: Any) -> None:
        """`options` are those of APIRouter."""
        super().__init__(route_class=_Route, **options)


def turn_of(
    platform: Platform, request: Request, body: BaseModel
) -> AbstractAsyncContextManager[Turn]:
    """The turn of a request to a model, whose `Idempotency-Key` may say that it is a former one."""
    return platform.answering.turn(platform.store, request.url.path, _key(request), body)


def _key(request: Request) -> str | None:
    """The `Idempotency-Key`; one that is blank names no request."""
    return request.headers.get("idempotency-key", "").strip() or None


class Reply(JSONResponse):
    """JSON in ASCII, so that any text a model wrote can be sent."""

    def render(self, content: Any) -> bytes:
        """Refuses NaN and infinity, which are not JSON."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def repeated(request: Request) -> dict[str, Any]:
    """How to recognise a create request that was sent before: the arguments of `Store.once`.

    The SDK counts its retries; other clients send an `Idempotency-Key` of their own.
    """
    return {
        "is_resent": request.headers.get("x-stainless-retry-count", "0") not in ("", "0"),
        "key": _key(request),
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
