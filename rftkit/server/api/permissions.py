"""`/fine_tuning/checkpoints/{name}/permissions`: kept for clients that manage them.

One home has one owner, so a permission changes nothing about who may use a checkpoint here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rftkit.errors import NotFoundError
from rftkit.server.api import Limit, PlatformDep, Reply, Router
from rftkit.server.inference.body import Body
from rftkit.server.inference.models import check_model
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire

__all__ = ["router"]

router = Router(prefix="/fine_tuning/checkpoints/{checkpoint:path}/permissions")


class PermissionBody(Body):
    """`{project_ids}`."""

    project_ids: Annotated[list[str], Field(min_length=1)]


def _known(platform: Platform, checkpoint: str) -> None:
    if platform.store.model(checkpoint) is None:
        raise NotFoundError(
            f"there is no checkpoint {checkpoint!r}", param="fine_tuned_model_checkpoint"
        )


@router.post("")
def create(platform: PlatformDep, checkpoint: str, body: PermissionBody) -> Reply:
    """Let projects use a checkpoint."""
    _known(platform, checkpoint)
    check_model(platform, checkpoint)
    made = [platform.store.add_permission(checkpoint, project) for project in body.project_ids]
    return Reply(wire.page(map(wire.permission_object, made), False))


@router.get("")
def index(
    platform: PlatformDep,
    checkpoint: str,
    after: str | None = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> Reply:
    """List a checkpoint's permissions."""
    _known(platform, checkpoint)
    found, more = platform.store.permissions(
        checkpoint, project_id=project_id, after=after, limit=limit,
        newest_first=order == "descending",
    )  # fmt: skip
    return Reply(wire.page(map(wire.permission_object, found), more))


@router.delete("/{permission_id}")
def delete(platform: PlatformDep, checkpoint: str, permission_id: str) -> Reply:
    """Delete a permission."""
    platform.store.delete_permission(permission_id, checkpoint)
    return Reply(wire.deleted(permission_id, "checkpoint.permission"))
