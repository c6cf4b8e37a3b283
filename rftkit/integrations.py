"""The `integrations` of a job: to which experiment trackers its metrics are sent.

`[{"type": "wandb", "wandb": {"project": "…"}}]` is the hosted service's form; trackio, mlflow and
tensorboard have the same one here. Not here: sending anything (`rftkit.jobs.trackers`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.errors import InputError

__all__ = ["NOTE", "TYPES", "Kind", "check_integrations", "integration"]

Json = dict[str, Any]

NOTE = "rftkit tracker: "
"""Begins each line of a follower's standard error that the platform makes an event of the job."""


@dataclass(frozen=True)
class Kind:
    """One kind of tracker."""

    module: str
    """The module that must be importable; the package has the same name."""
    options: tuple[str, ...]
    """The options that its object may hold."""
    local: tuple[str, ...] = ()
    """Further options where the user of this machine types them: places and addresses, which no
    request to a server may choose."""


TYPES = {
    "wandb": Kind("wandb", ("project", "name", "entity", "tags")),
    "trackio": Kind("trackio", ("project", "name"), ("space_id",)),
    "mlflow": Kind("mlflow", ("experiment", "name"), ("tracking_uri",)),
    "tensorboard": Kind("tensorboardX", (), ("folder", "name")),
}


def integration(kind: str, options: Mapping[str, Any] | None = None) -> Json:
    """One entry of `integrations`, made from what the user of this machine typed.

    Raises:
        InputError: there is no such kind or option, or its package is not installed.
    """
    entry = {"type": kind, kind: dict(options or {})}
    return _checked(entry, "--track", is_local=True)


def check_integrations(given: Sequence[Any]) -> list[Json]:
    """The entries as they are stored, each with its options as an object.

    Raises:
        InputError: naming the entry at fault by `param`.
    """
    return [
        _checked(entry, f"integrations[{place}]", is_local=False)
        for place, entry in enumerate(given)
    ]


def _checked(entry: Any, param: str, *, is_local: bool) -> Json:
    name = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in TYPES:
        raise InputError(
            f"`{param}.type` must be one of {', '.join(TYPES)}, found {name!r}",
            param=f"{param}.type",
        )
    kind, options = TYPES[name], entry.get(name) or {}
    if not isinstance(options, dict):
        raise InputError(f"`{param}.{name}` must be an object", param=f"{param}.{name}")
    known = kind.options + (kind.local if is_local else ())
    for key, value in options.items():
        if key not in known:
            raise InputError(
                f"`{param}.{name}` has no {key!r}; it takes {', '.join(known) or 'nothing'}",
                param=f"{param}.{name}.{key}",
            )
        if value is not None and not _fits(key, value):
            wanted = "a list of texts" if key == "tags" else "a text"
            raise InputError(
                f"`{param}.{name}.{key}` must be {wanted}", param=f"{param}.{name}.{key}"
            )
    if importlib.util.find_spec(kind.module) is None:
        raise InputError(
            f"`{param}`: the package {kind.module!r} is not installed where this runs; type: pip "
            f"install {kind.module}",
            param=param,
        )
    return {"type": name, name: {key: value for key, value in options.items() if value is not None}}


def _fits(key: str, value: Any) -> bool:
    if key == "tags":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, str) and bool(value)
