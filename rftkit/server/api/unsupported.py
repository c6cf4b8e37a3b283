"""Routes of the hosted service that a client may know and this platform does not have.

Each answers 400 with an explanation, which a client can distinguish from a mistyped URL.
"""

from __future__ import annotations

from fastapi import Request

from rftkit.errors import RequestError
from rftkit.server.api import Router

__all__ = ["router"]

router = Router()

ROOTS = (
    "assistants",
    "audio",
    "completions",
    "containers",
    "conversations",
    "images",
    "moderations",
    "organization",
    "realtime",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
    "webhooks",
)
PATHS = ("responses/compact",)
"""POST routes that are missing from a resource that otherwise exists."""
METHODS = ["GET", "POST", "DELETE"]
WHY = {
    "webhooks": "set RFTKIT_WEBHOOK_URL (and OPENAI_WEBHOOK_SECRET) in the server's environment",
    "completions": "use /chat/completions",
    "uploads": "use /files",
}


def _refuse(request: Request) -> None:
    path = request.url.path.removeprefix("/v1")
    root = path.split("/")[1]
    why = f": {WHY[root]}" if root in WHY else ""
    raise RequestError(f"{path} is not supported by the local platform{why}", code="unsupported")


for _root in ROOTS:
    router.add_api_route(f"/{_root}", _refuse, methods=METHODS, include_in_schema=False)
    router.add_api_route(
        f"/{_root}/{{rest:path}}", _refuse, methods=METHODS, include_in_schema=False
    )
for _path in PATHS:
    router.add_api_route(f"/{_path}", _refuse, methods=["POST"], include_in_schema=False)
