"""`/fine_tuning/alpha/tool/run`: call a tool once, as a rollout would, before a job does.

The body is the call, with `server_url` and `headers`; ours: `tool`, a whole entry of a job's
`tools`, in their place (MCP, and servers that come with rftkit). The answer is the tool's own
object. What a tool answers with 4xx, which a model would read, is an error with that status; a tool
that fails, as a rollout would, is an error with status 502.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from functools import partial
from typing import Any, Literal

from fastapi import Request

from rftkit.errors import MissingExtraError, RequestError
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.api.chat import until_disconnected
from rftkit.server.inference.body import Open
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire
from rftkit.tools import ToolCall, ToolFailed, check_tools, try_tool

__all__ = ["router"]

router = Router(prefix="/fine_tuning/alpha/tool")


NO_RETRY = {"x-should-retry": "false"}
"""The header that tells the SDK not to try the call again."""


class RunBody(Open):
    """A `function_call`, and where it goes."""

    type: Literal["function_call"] = "function_call"
    name: str
    arguments: str | dict[str, Any] = "{}"
    item: dict[str, Any] | None = None
    trace_id: str | None = None
    id: str | None = None
    """The id of the call; without one it is derived from `call_id`."""
    call_id: str | None = None
    server_url: str | None = None
    headers: dict[str, Any] | None = None
    tool: dict[str, Any] | None = None


@router.post("/run")
async def run(platform: PlatformDep, request: Request, body: RunBody) -> Reply:
    """Call the tool; a client that hangs up ends the call."""
    entry = await asyncio.to_thread(_entry, platform, body)  # it looks names up
    work = platform.grading.run(partial(_tried, platform, body, entry))
    try:
        status, found = await until_disconnected(request, work)
    except ToolFailed as error:
        refused = wire.error_body(str(error), type="server_error", code="tool_failed")
        return Reply(refused, status_code=502, headers=NO_RETRY)
    except MissingExtraError as error:
        raise RequestError(str(error), param="tool") from None
    if isinstance(found, str):
        refused = wire.error_body(found, code="tool_error")
        return Reply(refused, status_code=status, headers=NO_RETRY)
    return Reply(found)


def _entry(platform: Platform, body: RunBody) -> dict[str, Any]:
    if (body.tool is None) == (body.server_url is None):
        raise RequestError(
            "give `server_url`, or `tool` with an entry of a job's `tools`", param="server_url"
        )
    given = {"name": body.name, "server_url": body.server_url, "headers": body.headers}
    try:
        return check_tools([body.tool or given], "tool", private=platform.private_tools)[0]
    except RequestError as error:
        param = (error.param or "").replace("tool[0]", "tool")
        message = error.message.replace("tool[0]", "tool")
        if body.tool is None:
            message, param = message.replace("`tool.", "`"), param.removeprefix("tool.")
        raise RequestError(message, param=param) from None


def _tried(
    platform: Platform, body: RunBody, entry: dict[str, Any]
) -> tuple[int, dict[str, Any] | str]:
    given = body.arguments
    arguments = given if isinstance(given, str) else json.dumps(given)
    call = ToolCall(body.call_id or f"call_{uuid.uuid4().hex[:24]}", body.name, arguments)
    trace = body.trace_id or f"trace_{uuid.uuid4().hex}"
    item, private = body.item or {}, platform.private_tools
    return try_tool(entry, call, trace, item, private=private, item_id=body.id)
