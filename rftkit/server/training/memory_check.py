"""Whether full fine-tuning fits this machine, checked before a job starts and not when memory has
run out. Memory and disk are measured; the engine knows how much of them a model needs. Not here:
jobs that train adapters, which need little in addition to the model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rftkit.errors import InputError
from rftkit.server.engine.base import Engine
from rftkit.server.training.checkpoints import KEPT_CHECKPOINTS
from rftkit.server.training.journal import KEPT_STATES

__all__ = ["full_budget"]

LEAST_BYTES = 2**30
"""Memory for sampling and training, in addition to the weights."""


def full_budget(engine: Engine, folder: Path) -> int:
    """Memory in bytes that a job which trains every weight may use to sample and learn.

    Args:
        engine: with the base model.
        folder: where the job will write.

    Raises:
        InputError: memory or disk is too small for it.
    """
    needs = engine.full_needs()
    # The last states and one that is being written; the best checkpoints, the last, and one more.
    disk = (KEPT_STATES + 1) * needs.state + (KEPT_CHECKPOINTS + 2) * needs.checkpoint
    for what, needed, free in (
        ("memory", needs.memory + LEAST_BYTES, needs.free),
        ("disk", disk, shutil.disk_usage(folder).free),
    ):
        if needed > free:
            raise InputError(
                f"training all {needs.num_parameters:,} weights of this model needs "
                f"{needed / 1e9:.1f} GB of {what} in addition to the model, and "
                f"{free / 1e9:.1f} GB are free here; train adapters instead (metadata `tuning` = "
                "lora, the default)",
                param="metadata.tuning",
            )
    half = (needs.free - needs.memory) // 2  # as the engine measures its own
    return min(half, engine.memory_bytes or half)
