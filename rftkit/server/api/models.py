"""`/models`: base models and what was fine-tuned here."""

from __future__ import annotations

from pathlib import Path

from rftkit.errors import RequestError
from rftkit.server.api import Here, Reply, Router
from rftkit.server.engine.models import known_bases
from rftkit.server.inference.models import model_object
from rftkit.server.store import wire
from rftkit.server.store.trash import discard

__all__ = ["router"]

router = Router()


@router.get("/models")
def index(here: Here) -> Reply:
    """List all models."""
    bases = [
        wire.model_object(base.name, base.created, base.owned_by) for base in known_bases(here.home)
    ]
    tuned = [wire.tuned_model_object(model) for model in here.store.models()]
    return Reply({"object": "list", "data": bases + tuned})


@router.get("/models/{model:path}")
def retrieve(here: Here, model: str) -> Reply:
    """Return one model."""
    return Reply(model_object(here, model))


@router.delete("/models/{model:path}")
def delete(here: Here, model: str) -> Reply:
    """Delete a fine-tuned model, its checkpoint and its weights."""
    known = here.store.model(model)
    if known is None:
        model_object(here, model)
        raise RequestError(
            f"{model!r} is a base model; only fine-tuned models can be deleted (to remove a "
            "model that you added: rftkit models remove NAME)",
            param="model",
        )
    users = here.store.users_of_model(model)
    if users:
        raise RequestError(
            f"{users[0]} uses {model!r} and has not ended; cancel it first", param="model"
        )
    with here.store.transaction():
        here.store.delete_model(model)
        here.store.drop_model_checkpoints(model)
    if known.folder not in here.store.used_folders():
        discard(Path(known.folder), here.store.trash)
    return Reply(wire.deleted(model, "model"))
