"""Checkpoints of a job: the kept ones, the best one, the final model.

The best one is chosen by validation reward, or by loss where there is none; any other choice needs
an eval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rftkit.jobs.jobs import Event
from rftkit.jobs.metrics import step_metrics

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["COLUMNS", "Checkpoint", "best", "checkpoints"]

COLUMNS = {
    "step": "step",
    "valid_reward_mean": "validation reward",
    "train_reward_mean": "train reward",
    "model": "model",
}
"""The columns of a table of checkpoints, with their headings."""


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
    valid_loss: float | None = None
    """Mean loss of the whole validation set, of a supervised or dpo job."""


def checkpoints(client: OpenAI, job_id: str, events: Iterable[Event] = ()) -> list[Checkpoint]:
    """The kept checkpoints of a job, by step: the best three and the last one of a reinforcement
    job, those of the last three epochs of another.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        job_id: `ftjob-…`.
        events: Of the job; they have the training rewards where the checkpoints have none.
    """
    listed = client.fine_tuning.jobs.checkpoints.list(job_id, limit=100)
    found = sorted((_checkpoint(each.to_dict(warnings=False)) for each in listed), key=_step)
    trained = dict(_train_rewards(events))
    return [
        replace(each, train_reward_mean=trained.get(each.step))
        if each.train_reward_mean is None
        else each
        for each in found
    ]


def _train_rewards(events: Iterable[Event]) -> Iterator[tuple[int, float | None]]:
    for event in events:
        data = event.get("data") or {}
        if event.get("type") == "metrics" and data.get("step") is not None:
            yield int(data["step"]), step_metrics(data)["train_reward_mean"]


def best(kept: Iterable[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the highest validation reward, the earliest of a tie; None if nothing was
    measured.

    Where no checkpoint has a reward it is the lowest loss on the whole validation set.
    """
    kept = list(kept)
    measured = [each for each in kept if each.valid_reward_mean is not None]
    if not measured:
        with_loss = [each for each in kept if each.valid_loss is not None]
        return min(with_loss, key=lambda each: (each.valid_loss, each.step), default=None)
    return max(measured, key=lambda each: (each.valid_reward_mean, -each.step), default=None)


def _checkpoint(wire: dict[str, Any]) -> Checkpoint:
    metrics = wire.get("metrics") or {}

    def measured(*spellings: str) -> float | None:
        return next((metrics[key] for key in spellings if metrics.get(key) is not None), None)

    return Checkpoint(
        step=wire["step_number"],
        model=wire["fine_tuned_model_checkpoint"],
        train_reward_mean=measured("train_reward_mean", "train_mean_reward"),
        valid_reward_mean=measured("valid_reward_mean", "full_valid_mean_reward"),
        id=wire["id"],
        valid_loss=measured("full_valid_loss", "valid_loss"),
    )


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.step
