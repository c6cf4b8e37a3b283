"""Which saved adapters a job keeps: the best three, the last one, and what others still use.

A dropped checkpoint is forgotten by name first and deleted from disk after; a kill in between
leaves a folder that the next drop finds. Not here: what a state holds (`rft.save_state`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rftkit.server.store.store import Store
from rftkit.server.training import budgets, metrics
from rftkit.server.training.context import Run
from rftkit.server.training.plan import KEPT_CHECKPOINTS
from rftkit.server.training.rollout import Group

__all__ = ["keep_adapter", "keep_checkpoint", "list_checkpoint", "name_model", "sweep"]


def keep_checkpoint(run: Run, step: int, valid: Sequence[Group]) -> None:
    """Save and list the checkpoint of a validated step, once; then only its metrics may change."""
    if run.store.has_event(run.job.id, f"checkpoint-{step}"):  # dropped or deleted since, perhaps
        run.store.replace_checkpoint_metrics(run.job.id, step, _measured(run, step, valid))
        return
    folder = keep_adapter(run, step)
    with run.store.transaction():
        list_checkpoint(run, step, valid, folder)
    sweep(run.store, run.journal.folder / "checkpoints")


def keep_adapter(run: Run, step: int) -> Path:
    """Save the adapter of a step, before anything refers to it; its folder."""
    return run.journal.write_checkpoint(step, run.engine.save_adapter)


def name_model(run: Run, step: int, folder: Path, *, is_final: bool = False) -> str:
    """Make a saved adapter a model that can be asked; its name."""
    name = run.model_name(None if is_final else step)
    run.store.add_model(
        name, run.model_base, run.job.id, str(folder), step, thinking=run.plan.thinking
    )
    return name


def list_checkpoint(run: Run, step: int, valid: Sequence[Group], folder: Path) -> None:
    """List a checkpoint and forget the worst of too many; the caller's transaction is around it."""
    is_last = step == run.plan.total_steps
    name = name_model(run, step, folder, is_final=is_last)
    measured = _measured(run, step, valid)
    checkpoint = run.store.add_checkpoint(run.job.id, step, name, measured, str(folder))
    run.store.add_event(
        run.job.id,
        f"Checkpoint created at step {step} with snapshot ID: {checkpoint}",
        key=f"checkpoint-{step}",
    )
    _drop_worst(run, step, is_last)


def _measured(run: Run, step: int, valid: Sequence[Group]) -> dict[str, Any]:
    measured = {"step": step, "full_valid_mean_reward": metrics.mean_reward(valid)}
    if budgets.is_over_budget(run, [metrics.failure(valid)[:2]]):
        measured["over_error_budget"] = True  # cannot be called best
    return measured


def sweep(store: Store, folder: Path) -> None:
    """Delete the checkpoints of a job's folder that no model and no checkpoint refers to.

    Only for the worker that trains the job: nobody else knows what is being written.
    """
    used = store.used_folders()
    for each in folder.iterdir() if folder.is_dir() else ():
        if str(each) not in used:
            shutil.rmtree(each, ignore_errors=True)


def _drop_worst(run: Run, step: int, is_last: bool) -> None:
    kept = run.store.checkpoints(run.job.id)
    others = [each for each in kept if each.step != run.plan.total_steps]
    others.sort(key=lambda each: (_goodness(each.metrics), -each.step), reverse=True)
    for worse in others[KEPT_CHECKPOINTS:]:
        if (worse.step != step or is_last) and not run.store.users_of_model(worse.model_name):
            with run.store.transaction():
                run.store.drop_checkpoint(worse.id)
                if run.store.model(worse.model_name) is not None:  # a client may have deleted it
                    run.store.delete_model(worse.model_name)


def _goodness(metrics: dict[str, Any]) -> float:
    reward = metrics.get("full_valid_mean_reward")
    return float("-inf") if reward is None or metrics.get("over_error_budget") else float(reward)
