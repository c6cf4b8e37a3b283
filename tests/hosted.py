"""The habits of hosted services, put between the client and the local application.

Seen in published answers of OpenAI and Azure (`error` is `{}`, headers come back as asterisks,
`pending` before anything else, names end in a uuid) or asked for by them (`/openai/v1` as base URL,
no `system` role). What is ours alone is taken away: routes under `/rftkit`, our own figures.
"""

from __future__ import annotations

import json
from typing import Any

PATH = "/openai/v1"
OURS = ("learning",)
"""Keys of a metric event that no hosted service sends."""


class Hosted:
    """An ASGI application that makes another one look hosted."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._looks: dict[str, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not path.startswith(f"{PATH}/"):
            await _answer(send, 404, {"error": {"message": "Resource not found", "code": "404"}})
            return
        inner = {**scope, "path": "/v1" + path.removeprefix(PATH), "raw_path": None}
        body = await _whole(receive)
        if _has_system_message(path, body):
            message = "messages: role 'system' is not supported by this model; use 'developer'"
            await _answer(send, 400, {"error": {"message": message, "param": "messages"}})
            return
        if path.endswith("/content") or _streams(body):
            await self._app(inner, _replay(body), send)
            return
        started: dict[str, Any] = {}
        content = b""

        async def collect(message: Any) -> None:
            nonlocal content
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                content += message.get("body", b"")

        await self._app(inner, _replay(body), collect)
        if content[:1] == b"{":
            content = json.dumps(self._changed(json.loads(content))).encode()
        headers = [(k, v) for k, v in started["headers"] if k != b"content-length"]
        length = (b"content-length", str(len(content)).encode())
        await send({**started, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": content})

    def _changed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._changed(each) for each in value]
        if not isinstance(value, dict):
            return value
        value = {key: self._changed(each) for key, each in value.items()}
        match value.get("object"):
            case "fine_tuning.job":
                value["error"] = value["error"] or {}
                value["usage_metrics"] = None
                looks = self._looks[value["id"]] = self._looks.get(value["id"], 0) + 1
                if looks == 1:
                    value["status"] = "pending"
            case "fine_tuning.job.event" if isinstance(value.get("data"), dict):
                value["data"] = {k: v for k, v in value["data"].items() if k not in OURS}
        return value


def _has_system_message(path: str, body: bytes) -> bool:
    if not path.endswith(("/chat/completions", "/responses")) or body[:1] != b"{":
        return False
    asked = json.loads(body)
    messages = asked.get("messages", asked.get("input"))
    return isinstance(messages, list) and any(
        isinstance(message, dict) and message.get("role") == "system" for message in messages
    )


def _streams(body: bytes) -> bool:
    return body[:1] == b"{" and json.loads(body).get("stream") is True


async def _whole(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes) -> Any:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        import asyncio

        message = next(messages, None)
        if message is None:
            await asyncio.sleep(3600)  # the client is still there
        return message

    return receive


async def _answer(send: Any, status: int, body: Any) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
