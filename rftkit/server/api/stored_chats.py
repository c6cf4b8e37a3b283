"""Chat completions that were stored because their request has `store: true`."""

from __future__ import annotations

from typing import Literal

from fastapi import Request

from rftkit.errors import NotFoundError
from rftkit.server.api import Limit, PlatformDep, Reply, Router, cut, metadata_filter
from rftkit.server.inference.body import Body, Metadata
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire
from rftkit.server.store.records import StoredResponse

__all__ = ["router"]

router = Router(prefix="/chat/completions")

Order = Literal["asc", "desc"]


class UpdateBody(Body):
    """`{metadata}`."""

    metadata: Metadata | None


def _chat(platform: Platform, chat_id: str) -> StoredResponse:
    if not chat_id.startswith("chatcmpl-"):
        raise NotFoundError(f"there is no chat completion with id {chat_id!r}", param="id")
    return platform.store.response(chat_id)


@router.get("")
def index(
    platform: PlatformDep,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    model: str | None = None,
) -> Reply:
    """List the stored chat completions."""
    chats, more = platform.store.chats(
        model=model, metadata=metadata_filter(request.query_params), after=after, limit=limit,
        newest_first=order == "desc",
    )  # fmt: skip
    return Reply(wire.page((chat.body for chat in chats), more))


@router.get("/{chat_id}")
def retrieve(platform: PlatformDep, chat_id: str) -> Reply:
    """Retrieve a stored chat completion."""
    return Reply(_chat(platform, chat_id).body)


@router.post("/{chat_id}")
def update(platform: PlatformDep, chat_id: str, body: UpdateBody) -> Reply:
    """Replace a chat completion's metadata."""
    changed = {**_chat(platform, chat_id).body, "metadata": body.metadata or {}}
    return Reply(platform.store.update_response(chat_id, changed).body)


@router.delete("/{chat_id}")
def delete(platform: PlatformDep, chat_id: str) -> Reply:
    """Delete a chat completion."""
    _chat(platform, chat_id)
    platform.store.delete_response(chat_id)
    return Reply(wire.deleted(chat_id, "chat.completion.deleted"))


@router.get("/{chat_id}/messages")
def messages(
    platform: PlatformDep,
    chat_id: str,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Reply:
    """List the messages of a chat completion's request."""
    asked = [
        {**message, "id": f"{chat_id}-{number}"}
        for number, message in enumerate(_chat(platform, chat_id).input)
    ]
    found, more = cut(asked if order == "asc" else asked[::-1], after, limit)
    return Reply(wire.page(found, more))
