"""The routes, one file per resource. Each handler: parse, ask the store or the worker, wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Request
from fastapi.responses import JSONResponse

from rftkit.errors import RequestError
from rftkit.server.platform import Platform

__all__ = ["Here", "Reply", "cut"]


async def _here(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


Here = Annotated[Platform, Depends(_here)]
"""The platform that a handler serves."""


class Reply(JSONResponse):
    """JSON in ASCII, so that any text a model wrote can be sent."""

    def render(self, content: Any) -> bytes:
        """Refuses NaN and infinity, which are not JSON."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class _Listed(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Listed)


def cut(records: Sequence[T], after: str | None, limit: int) -> tuple[Sequence[T], bool]:
    """A page of a short list that is already in order, and whether more follows.

    Raises:
        RequestError: when `after` is not in the list.
    """
    if after is not None:
        ids = [record.id for record in records]
        if after not in ids:
            raise RequestError(f"`after` is {after!r}, which is not in this list", param="after")
        records = records[ids.index(after) + 1 :]
    return records[:limit], len(records) > limit
