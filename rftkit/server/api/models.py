"""`/models`: base models and what was fine-tuned here."""

from __future__ import annotations

from fastapi import APIRouter

from rftkit.errors import NotFoundError, RequestError
from rftkit.server import wire
from rftkit.server.api import Here, Reply
from rftkit.server.engine.models import find_base, known_bases
from rftkit.server.platform import Platform

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
    try:
        base = find_base(name)
    except (OSError, ValueError, RuntimeError):  # not a name that a file system knows
        raise NotFoundError(
            f"the model {name[:100]!r} does not exist", param="model", code="model_not_found"
        ) from None
    return wire.model_object(base.name, base.created, base.owned_by)


@router.get("/models")
def index(here: Here) -> Reply:
    """List all models."""
    bases = [wire.model_object(base.name, base.created, base.owned_by) for base in known_bases()]
    tuned = [wire.tuned_model_object(model) for model in here.store.models()]
    return Reply({"object": "list", "data": bases + tuned})


@router.get("/models/{model:path}")
def retrieve(here: Here, model: str) -> Reply:
    """One model."""
    return Reply(_model_object(here, model))


@router.delete("/models/{model:path}")
def delete(here: Here, model: str) -> Reply:
    """Forget a fine-tuned model."""
    if here.store.model(model) is None:
        _model_object(here, model)
        raise RequestError(
            f"{model!r} is a base model; only fine-tuned models can be deleted", param="model"
        )
    users = here.store.jobs_from(model)
    if users:
        raise RequestError(
            f"job {users[0].id} starts from {model!r}; cancel it first", param="model"
        )
    here.store.delete_model(model)
    return Reply(wire.deleted(model, "model"))
