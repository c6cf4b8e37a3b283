"""Checkpoints of a job: the kept ones, the best one, the final model.

The best one is chosen by validation reward only; any other choice needs an eval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Checkpoint", "best", "checkpoints"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model saved while training."""

    step: int
    """Optimizer steps taken when it was saved."""
    model: str
    """What to pass as `model`; the last step's has the name of the job's fine-tuned model."""
    train_reward_mean: float | None
    """Mean reward of that step's own batch; not comparable between steps."""
    valid_reward_mean: float | None
    """Mean reward of the whole validation set; None if too many grades failed."""
    id: str


def checkpoints(client: OpenAI, job_id: str) -> list[Checkpoint]:
    """The kept checkpoints of a job, by step: the best three and the last."""
    listed = client.fine_tuning.jobs.checkpoints.list(job_id, limit=100)
    return sorted((_checkpoint(each.to_dict(warnings=False)) for each in listed), key=_step)


def best(kept: Iterable[Checkpoint]) -> Checkpoint | None:
    """The highest validation reward, the earliest of equals; None if none has one."""
    measured = [each for each in kept if each.valid_reward_mean is not None]
    return max(measured, key=lambda each: (each.valid_reward_mean, -each.step), default=None)


def _checkpoint(wire: dict[str, Any]) -> Checkpoint:
    metrics = wire.get("metrics") or {}

    def reward(*spellings: str) -> float | None:
        return next((metrics[key] for key in spellings if metrics.get(key) is not None), None)

    return Checkpoint(
        step=wire["step_number"],
        model=wire["fine_tuned_model_checkpoint"],
        train_reward_mean=reward("train_reward_mean", "train_mean_reward"),
        valid_reward_mean=reward("valid_reward_mean", "full_valid_mean_reward"),
        id=wire["id"],
    )


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.step
