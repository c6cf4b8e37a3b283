"""The names of a job's settings, and what to say about one that is misspelt or misplaced.

Hyperparameters are fields of the protocol. Settings without a field there are metadata, as text:
`KNOBS` are those that the local platform reads. One list for commands, panels, sweeps and the
server. Not here: ranges and defaults, which the server has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rftkit.errors import InputError, RequestError, nearest_name

__all__ = ["HYPERPARAMETERS", "KNOBS", "METHODS", "check_names", "misplaced", "refuse_misspelt"]

HYPERPARAMETERS = (
    "batch_size",
    "n_epochs",
    "learning_rate_multiplier",
    "compute_multiplier",
    "eval_interval",
    "eval_samples",
    "reasoning_effort",
)
"""Of a reinforcement job."""
METHODS: Mapping[str, tuple[str, ...]] = {
    "reinforcement": HYPERPARAMETERS,
    "supervised": ("batch_size", "n_epochs", "learning_rate_multiplier"),
    "dpo": ("batch_size", "n_epochs", "learning_rate_multiplier", "beta"),
}
"""Method -> the hyperparameters that it takes."""
KNOBS = (
    "advantage",
    "advantage_floor",
    "clip_high",
    "clip_low",
    "credit",
    "engine",
    "entropy_floor",
    "error_budget",
    "floor_reward",
    "guidance",
    "kl_coef",
    "lora_alpha",
    "lora_rank",
    "loss",
    "max_completion_tokens",
    "max_core_seconds",
    "max_staleness",
    "refill",
    "schedule",
    "stratify",
    "thinking",
    "tuning",
    "updates_per_batch",
    "warmup_steps",
)
"""Metadata that the trainer of the local platform reads; other metadata is kept with the job."""


def check_names(
    hyperparameters: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None = None,
    method: str = "reinforcement",
) -> None:
    """Check the names of settings before a job is created with them.

    Raises:
        InputError: one is no hyperparameter, or stands where it has no effect.
    """
    known = METHODS.get(method, HYPERPARAMETERS)
    for name in hyperparameters or {}:
        if name not in known:
            raise InputError(
                f"there is no hyperparameter {name!r}; {_hint(name, known)}",
                param=f"hyperparameters.{name}",
            )
    for name in metadata or {}:
        if why := misplaced(name, known):
            raise InputError(why, param=f"metadata.{name}")


def misplaced(name: str, hyperparameters: Iterable[str] = HYPERPARAMETERS) -> str | None:
    """Why a key of metadata has no effect, although it was meant to have one; None if it is free.

    Metadata is anybody's, so only names that are almost those of a setting are named.
    """
    if name in KNOBS:
        return None
    if name in hyperparameters:
        return f"metadata {name!r} has no effect: it is a hyperparameter"
    hint = nearest_name(name, KNOBS, cutoff=0.85)
    return f"metadata {name!r} has no effect; {hint}" if hint.startswith("did") else None


def refuse_misspelt(
    given: Iterable[str], known: Iterable[str], where: str, *, cutoff: float = 0.6
) -> None:
    """Refuse the keys of a body that are almost a known one; services may know others.

    `cutoff` is how alike they must be, from 0 to 1: high where services have keys of their own.

    Raises:
        RequestError: names the parameter, and the one that was probably meant.
    """
    names = list(known)
    for name in given:
        if name not in names and (hint := _hint(name, names, cutoff)).startswith(("did", "it is")):
            param = f"{where}.{name}".lstrip(".")
            raise RequestError(f"`{param}` is not a parameter; {hint}", param=param)


def _hint(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    if name in KNOBS:
        return f"it is metadata: --metadata {name}=…, or metadata.{name} in a sweep"
    return nearest_name(name, known, cutoff=cutoff)
