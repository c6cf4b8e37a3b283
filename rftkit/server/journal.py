"""A job's folder: the plan, every step's rollouts, and the trainer's state. Nothing else writes it.

    plan.json                the resolved plan, written once
    steps/000007.json.gz     graded rollouts of a step, durable before the update that uses them
    valid/000008.json.gz     graded answers of the validation after a step
    states/000008/           adapters, optimizer and what the story needs, saved after a step
    checkpoints/step-8/      the adapter alone, for inference

A killed job loads the newest state and replays the journalled steps behind it: same rollouts, same
updates, same weights, nothing sampled or graded twice. Every file appears whole or not at all.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit.errors import PlatformError

__all__ = ["Journal"]

KEPT_STATES = 2


class Journal:
    """The folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("steps", "valid", "states", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    # ── records ──────────────────────────────────────────────────────────────────────────────

    def plan(self) -> dict[str, Any] | None:
        """The plan, if the job began before."""
        path = self.folder / "plan.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Keep the plan."""
        _write(self.folder / "plan.json", json.dumps(plan, indent=1).encode())

    def record(self, kind: str, step: int) -> dict[str, Any] | None:
        """What was written for a step (`kind` is "steps" or "valid"), or None.

        Raises:
            PlatformError: when the file is damaged; it names the file.
        """
        path = self._record_path(kind, step)
        if not path.is_file():
            return None
        try:
            data: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise PlatformError(
                f"the job's journal is damaged: {path} cannot be read ({error}); restore the file "
                "from a backup, or start the job again"
            ) from error
        return data

    def write_record(self, kind: str, step: int, data: dict[str, Any]) -> None:
        """Keep a step's record, durably."""
        content = json.dumps(data, separators=(",", ":")).encode()
        _write(self._record_path(kind, step), gzip.compress(content, 3, mtime=0))

    def steps(self) -> list[int]:
        """The steps whose rollouts are kept, in order."""
        names = (path.name.partition(".")[0] for path in (self.folder / "steps").glob("*.json.gz"))
        return sorted(int(name) for name in names if name.isdigit())

    def _record_path(self, kind: str, step: int) -> Path:
        return self.folder / kind / f"{step:06d}.json.gz"

    # ── states and checkpoints ───────────────────────────────────────────────────────────────

    def newest_state(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole state."""
        states = sorted(path for path in (self.folder / "states").iterdir() if path.name.isdigit())
        return (int(states[-1].name), states[-1]) if states else None

    def write_state(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep the trainer's state after a step; the last two are kept."""
        target = self.folder / "states" / f"{step:06d}"
        if not target.is_dir():
            _write_folder(target, save)
        for old in sorted((self.folder / "states").iterdir())[:-KEPT_STATES]:
            shutil.rmtree(old, ignore_errors=True)

    def write_checkpoint(self, step: int, save: Callable[[Path], None]) -> Path:
        """Keep an adapter for inference; returns its folder."""
        target = self.folder / "checkpoints" / f"step-{step}"
        if not target.is_dir():
            _write_folder(target, save)
        return target


def _write(path: Path, content: bytes) -> None:
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _write_folder(target: Path, save: Callable[[Path], None]) -> None:
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".writing-"))
    try:
        save(scratch)
        for path in scratch.rglob("*"):
            if path.is_file():
                _sync(path)
        _sync(scratch)
        os.replace(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
