"""`/models`: base models and what was fine-tuned here."""

from __future__ import annotations

import shutil

from fastapi import APIRouter

from rftkit.errors import RequestError
from rftkit.server.api import Here, Reply
from rftkit.server.engine.models import find_base, known_bases
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire

__all__ = ["check_model", "router"]

router = APIRouter()


def check_model(platform: Platform, name: str) -> None:
    """Refuse a model that cannot be asked or trained.

    Raises:
        NotFoundError: with the code that clients know.
        RequestError: it is known by an import only; its weights are elsewhere.
    """
    tuned = platform.store.model(name)
    if tuned is not None and tuned.origin is not None:
        raise RequestError(
            f"the model {name} was trained at {tuned.origin}; its job was imported, its weights "
            "were not (no service hands them out). Train the same job on a model you own: "
            f"rftkit job rerun {tuned.job_id} --model smollm2-135m-instruct",
            param="model",
            code="model_imported",
        )
    _model_object(platform, name)


def _model_object(platform: Platform, name: str) -> wire.Json:
    tuned = platform.store.model(name)
    if tuned is not None:
        return wire.tuned_model_object(tuned)
    base = find_base(name, platform.home)
    return wire.model_object(base.name, base.created, base.owned_by)


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
    """One model."""
    return Reply(_model_object(here, model))


@router.delete("/models/{model:path}")
def delete(here: Here, model: str) -> Reply:
    """Forget a fine-tuned model, its checkpoint and its weights."""
    known = here.store.model(model)
    if known is None:
        _model_object(here, model)
        raise RequestError(
            f"{model!r} is a base model; only fine-tuned models can be deleted (one that was "
            "added: rftkit models remove NAME)",
            param="model",
        )
    users = here.store.users_of_model(model)
    if users:
        raise RequestError(
            f"{users[0]} uses {model!r} and has not ended; cancel it first", param="model"
        )
    with here.store.transaction():
        here.store.delete_model(model)
        here.store.drop_checkpoint_of(model)
    if known.folder not in here.store.used_folders():
        shutil.rmtree(known.folder, ignore_errors=True)
    return Reply(wire.deleted(model, "model"))
