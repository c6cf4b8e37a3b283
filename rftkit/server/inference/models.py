"""Which models can be sampled or trained, by name."""

from __future__ import annotations

from rftkit.errors import RequestError
from rftkit.server.engine.models import find_base
from rftkit.server.inference.platform import Platform
from rftkit.server.store import wire

__all__ = ["check_model", "model_object"]


def check_model(platform: Platform, name: str) -> None:
    """Refuse a model that cannot be sampled or trained.

    Raises:
        NotFoundError: with the code that clients know.
        RequestError: the model was imported; its weights are elsewhere.
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
    model_object(platform, name)


def model_object(platform: Platform, name: str) -> wire.Json:
    """Return a model's wire object.

    Raises:
        NotFoundError: with the code that clients know.
    """
    tuned = platform.store.model(name)
    if tuned is not None:
        return wire.tuned_model_object(tuned)
    base = find_base(name, platform.home)
    return wire.model_object(base.name, base.created, base.owned_by)
