"""The routes, one file per resource. Each handler: parse, ask the store or the worker, wire."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse

from rftkit.server.platform import Platform

__all__ = ["Here", "Reply"]


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
