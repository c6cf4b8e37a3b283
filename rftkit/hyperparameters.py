"""Every setting of a job: its name, its bounds and default, and what to say about a wrong name.

Hyperparameters are fields of the protocol. Settings that the protocol has no field for are
metadata, as text: `KNOBS` are those that the local platform reads. Commands, panels, sweeps, the
server and the trainer all use these tables. Not here: what `auto` means, which depends on the data
and is decided by `rftkit.server.training.plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rftkit.errors import InputError, RequestError, nearest_name

__all__ = [
    "BASE_LEARNING_RATES", "COMPLETIONS", "DPO_SHARE", "ENGINES", "EVERY", "HELD_OUT",
    "HYPERPARAMETERS", "KNOBS", "METHODS", "Number", "Text", "Words", "check_names", "misplaced",
    "refuse_misspelt",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """A setting that is a number within bounds; a hyperparameter may also be "auto"."""

    low: float
    high: float
    default: float = 0.0
    """The default of metadata; the default of a hyperparameter is `auto`."""
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """A setting with a fixed set of values."""

    words: tuple[str, ...]
    default: str


@dataclass(frozen=True, slots=True)
class Text:
    """A setting that only the trainer can interpret."""


_COMMON = {
    "batch_size": Number(1, 256, is_whole=True),
    "n_epochs": Number(1, 50, is_whole=True),
    "learning_rate_multiplier": Number(1e-9, 1e9),
}
HYPERPARAMETERS: Mapping[str, Number | Words] = {
    **_COMMON,
    "compute_multiplier": Number(0.00001, 10),
    "eval_interval": Number(1, 1_000_000, is_whole=True),
    "eval_samples": Number(1, 1_000, is_whole=True),
    "reasoning_effort": Words(("default", "low", "medium", "high"), "default"),
}
"""The hyperparameters of a reinforcement job."""
METHODS: Mapping[str, Mapping[str, Number | Words]] = {
    "reinforcement": HYPERPARAMETERS,
    "supervised": _COMMON,
    "dpo": {**_COMMON, "beta": Number(1e-9, 2)},
}
"""Method -> the hyperparameters that it takes."""
EVERY = tuple(dict.fromkeys(name for names in METHODS.values() for name in names))
"""Hyperparameters of any method."""

BASE_LEARNING_RATES = {"lora": 1e-3, "full": 1e-4}
"""The learning rate that a `learning_rate_multiplier` of 1 stands for, by `tuning`."""
DPO_SHARE = 0.1
"""A dpo job learns at this share of that learning rate."""
COMPLETIONS = 8
"""Completions per prompt that a `compute_multiplier` of 1 stands for."""
EPISODE_STEPS = 10
"""Default limit on the turns of an answer with tools."""

ENGINES = ("torch", "tinker")
"""Where a job trains: on this machine, or on the operator's Tinker server."""

HELD_OUT = "held_out_grader"
"""Metadata of a reinforcement job: a second grader, which it never learns from. JSON, or the id of
a file that holds it."""

KNOBS: Mapping[str, Number | Words | Text] = {
    "advantage": Words(("mean", "std", "per_grader", "maxrl"), "per_grader"),
    "advantage_floor": Number(1e-3, 1.0, 0.1),
    "alarm_rate": Number(1e-4, 0.5, 0.01),
    "branch_from": Text(),
    "calibration_floor": Number(-1.0, 1.0, 0.0),
    "clip_high": Number(0.0, 100.0, 0.2),
    "clip_low": Number(0.0, 1.0, 0.2),
    "credit": Words(("answer", "fields"), "fields"),
    "engine": Words(ENGINES, "torch"),
    "entropy_floor": Number(0.0, 20.0, 0.0),
    "error_budget": Number(0.0, 1.0, 0.05),
    "floor_reward": Text(),
    "guidance": Words(("none", "references"), "references"),
    "held_out_samples": Number(1, 4096, 32, is_whole=True),
    "kl_coef": Number(0.0, 100.0, 0.0),
    "lora_alpha": Number(1e-3, 1e5, 32.0),
    "lora_rank": Number(1, 1024, 16, is_whole=True),
    "loss": Words(("clipped", "importance_sampling", "reinforce"), "clipped"),
    "max_completion_tokens": Number(1, 100_000, 256, is_whole=True),
    "max_core_seconds": Text(),
    "max_staleness": Number(0, 1, 0, is_whole=True),
    "minibatch_size": Number(1, 256, 8, is_whole=True),
    "on_alarm": Words(("warn", "pause"), "warn"),
    "refill": Number(0, 1024, 0, is_whole=True),
    "require_calibration": Words(("none", "mark", "refuse"), "none"),
    "schedule": Words(("constant", "linear", "cosine"), "cosine"),
    "stratify": Text(),
    "thinking": Text(),
    "tuning": Words(("lora", "full"), "lora"),
    "unscorable_budget": Number(0.0, 1.0, 0.9),
    "updates_per_batch": Number(1, 16, 1, is_whole=True),
    "warmup_steps": Number(0, 10_000, 2, is_whole=True),
}
"""Metadata that the trainer of the local platform reads; other metadata is kept with the job.

The defaults are those of reinforcement jobs (the study is `tests/benchmarks/learning.py`)."""


def check_names(
    hyperparameters: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None = None,
    method: str = "reinforcement",
) -> None:
    """Check the names of settings before a job is created with them.

    Raises:
        InputError: one is no hyperparameter, or is given where it has no effect.
    """
    known = METHODS.get(method, HYPERPARAMETERS)
    for name in hyperparameters or {}:
        if name not in known:
            of = f" of {method} jobs" if name in EVERY else ""
            raise InputError(
                f"there is no hyperparameter {name!r}{of}; {_hint(name, known)}",
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
    given: Iterable[str], known: Iterable[str], where: str, *, cutoff: float = 0.6, home: str = ""
) -> None:
    """Refuse the keys of a body that are almost a known one; services may know others.

    Args:
        given: The keys.
        known: Those that mean something there.
        where: The path of the object that has them.
        cutoff: How alike they must be, from 0 to 1: high where services have keys of their own.
        home: The path of the job's hyperparameters, where `given` are keys around it.

    Raises:
        RequestError: names the parameter, and the one that was probably meant.
    """
    names = list(known)
    for name in given:
        if name in names:
            continue
        is_outside = bool(home) and name in EVERY
        hint = f"it is a hyperparameter: `{home}.{name}`" if is_outside else ""
        hint = hint or _hint(name, names, cutoff)
        if hint.startswith(("did", "it is")):
            param = f"{where}.{name}".lstrip(".")
            raise RequestError(f"`{param}` is not a parameter; {hint}", param=param)


def _hint(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    if name in KNOBS:
        return f"it is metadata: --metadata {name}=…, or metadata.{name} in a sweep"
    if name in EVERY:
        owners = [method for method, names in METHODS.items() if name in names]
        return f"{' and '.join(owners)} jobs have it"
    return nearest_name(name, known, cutoff=cutoff)
