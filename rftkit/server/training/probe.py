"""A probe: a job that takes two steps to find out what the whole job would take, and keeps nothing.

A job is a probe when its metadata has `probe: "true"`. It has the plan of the real job, so its
first event states what every `auto` becomes; it validates a few rows and takes two steps through
the same functions as `loop.train`; its last event holds what only the trainer can measure. It makes
no eval, no checkpoint and no model, and lists leave it out unless they filter by that metadata. Not
here: the sum (`rftkit.jobs.estimate`), which a client makes from these events.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import psutil

from rftkit.server.training.context import AnyRun
from rftkit.server.training.loop import Method, load_policy

__all__ = ["STEPS", "probe"]

STEPS = 2
"""Two: the first step includes warming up; the second takes as long as the others will."""


def probe(run: AnyRun, method: Method) -> None:
    """Take two steps of a job and report their time.

    Raises:
        Stopped: when it was cancelled.
        FloatingPointError: when an update is not a number.
    """
    memory = _Peak(run.on_tick)
    few = run.plan.batch_size
    run = dataclasses.replace(
        run,
        on_tick=memory.on_tick,
        valid_rows=run.valid_rows[:few],
        valid_examples=run.valid_examples[:few],
    )
    try:
        load_policy(run)
        method.baseline(run)
        for step in range(1, min(STEPS, run.plan.total_steps) + 1):
            batch = method.gather(run, step)
            stats = method.update(run, step, batch)
            method.report(run, step, batch, stats, None)
    finally:
        shutil.rmtree(run.journal.folder, ignore_errors=True)
    found = {
        "validated_rows": len(run.valid_examples or run.valid_rows),
        "host_memory_bytes": memory.host_bytes,
        "device_memory_bytes": _device_bytes(run.engine.facts),
    }
    run.store.add_event(run.job.id, "The probe is complete", data={"probe": found}, key="probe")
    run.store.update_job(run.job.id, status="succeeded")


class _Peak:
    """The most memory that this process held, measured at every tick of the trainer."""

    def __init__(self, on_tick: Callable[[], None]) -> None:
        self.host_bytes = 0
        self._on_tick, self._process = on_tick, psutil.Process()

    def on_tick(self) -> None:
        """Measure, then call the next function."""
        self.host_bytes = max(self.host_bytes, self._process.memory_info().rss)
        self._on_tick()


def _device_bytes(facts: Any) -> int | None:
    """The most memory torch reserved on a GPU since the worker began; None on a CPU."""
    if not str(facts.get("device")).startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_reserved())
