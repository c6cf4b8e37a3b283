"""Checkpoints have the training reward of their step, wherever it is reported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rftkit import jobs


def test_the_training_reward_of_a_checkpoint_is_filled_from_the_events() -> None:
    wire = {
        "id": "ckpt",
        "step_number": 4,
        "fine_tuned_model_checkpoint": "ft:m:ckpt-step-4",
        "metrics": {"step": 4, "full_valid_mean_reward": 0.5},
    }
    listed = [SimpleNamespace(to_dict=lambda **_: wire)]
    routes = SimpleNamespace(list=lambda *_, **__: listed)
    client: Any = SimpleNamespace(
        fine_tuning=SimpleNamespace(jobs=SimpleNamespace(checkpoints=routes))
    )
    events = [
        {"type": "metrics", "data": {"step": step, "scores": {"train_reward_mean": step / 10}}}
        for step in (3, 4)
    ]
    assert jobs.checkpoints(client, "ftjob-1")[0].train_reward_mean is None
    [kept] = jobs.checkpoints(client, "ftjob-1", events)
    assert (kept.train_reward_mean, kept.valid_reward_mean) == (0.4, 0.5)
