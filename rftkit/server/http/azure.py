"""Azure's spelling of the same routes, so that its users change one address.

`/openai/v1/…`, `/openai/…` and `/openai/deployments/NAME/…` are `/v1/…`; a deployment's name is the
model of the request; the key may be in `api-key`; `api-version` changes nothing.
"""

from __future__ import annotations

import json
import re

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope

__all__ = ["as_openai", "with_model"]

ROOT = re.compile(r"/openai(?:/v1)?(?=/)")
ASKS = r"chat/completions|completions|embeddings|responses"
DEPLOYMENT = re.compile(rf"/openai/deployments/(?P<model>.+?)/(?P<route>{ASKS})$")
ANY_DEPLOYMENT = re.compile(r"/openai/deployments/[^/]+(?=/)")


def as_openai(scope: Scope) -> str | None:
    """Give the request OpenAI's path and key; the model of its deployment, if it calls one."""
    path, model = scope["path"], None
    if not path.startswith("/openai/"):
        return None
    if found := DEPLOYMENT.match(path):
        model, path = found["model"], f"/v1/{found['route']}"
    else:
        path = "/v1" + ROOT.sub("", ANY_DEPLOYMENT.sub("/openai", path, count=1), count=1)
    scope["path"], scope["raw_path"] = path, path.encode()
    headers = MutableHeaders(scope=scope)
    if "api-key" in headers and "authorization" not in headers:
        headers["authorization"] = f"Bearer {headers['api-key']}"
    return model


def with_model(receive: Receive, model: str) -> Receive:
    """The body of a request with the model that its address names."""
    is_read = False

    async def named() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read, body, more = True, b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body, more = body + message.get("body", b""), message.get("more_body", False)
        return {"type": "http.request", "body": _named(body, model), "more_body": False}

    return named


def _named(body: bytes, model: str) -> bytes:
    """Append the model to a JSON object: the last of two equal keys counts. Nothing is parsed."""
    inner = body.strip().removesuffix(b"}").rstrip()
    if not inner.startswith(b"{") or not body.rstrip().endswith(b"}"):
        return body  # let the route report the error
    comma = b"" if inner == b"{" else b", "
    return inner + comma + b'"model": ' + json.dumps(model).encode() + b"}"
