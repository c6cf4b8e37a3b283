"""`/models`: base models and what was fine-tuned here."""

from __future__ import annotations

from pathlib import Path

from rftkit.errors import RequestError
from rftkit.server.api import PlatformDep, Reply, Router
from rftkit.server.engine.models import known_bases
from rftkit.server.inference.models import model_object
from rftkit.server.store import wire
from rftkit.server.store.trash import discard

__all__ = ["router"]

router = Router()


@router.get("/models")
def index(platform: PlatformDep) -> Reply:
    """List all models."""
    bases = [
        wire.model_object(base.name, base.created, base.owned_by)
        for base in known_bases(platform.home)
    ]
    tuned = [wire.tuned_model_object(model) for model in platform.store.models()]
    return Reply({"object": "list", "data": bases + tuned})


@router.get("/models/{model:path}")
def retrieve(platform: PlatformDep, model: str) -> Reply:
    """Return one model."""
    return Reply(model_object(platform, model))


@router.delete("/models/{model:path}")
def delete(platform: PlatformDep, model: str) -> Reply:
    """Delete a fine-tuned model, its checkpoint and its weights."""
    known = platform.store.model(model)
    if known is None:
        model_object(platform, model)
        raise RequestError(
            f"{model!r} is a base model; only fine-tuned models can be deleted (to remove a "
            "model that you added: rftkit models remove NAME)",
            param="model",
        )
    users = platform.store.users_of_model(model)
    if users:
        raise RequestError(
            f"{users[0]} uses {model!r} and has not ended; cancel it first", param="model"
        )
    with platform.store.transaction():
        platform.store.delete_model(model)
        platform.store.drop_model_checkpoints(model)
    if known.folder not in platform.store.used_folders():
        discard(Path(known.folder), platform.store.trash)
    return Reply(wire.deleted(model, "model"))
