"""A job's folder: the plan, every step's rollouts, and the trainer's state. Nothing else writes it.

    plan.json                the resolved plan, written once
    drafts/steps-000007.*    completions of a step, and so far their grades and the calls that tools
                             have answered, until all are graded
    steps/000007.json.gz     what a step learns from, graded rollouts or the lines of its rows,
                             durable before the update that uses it
    valid/000008.json.gz     graded answers of the validation after a step
    reference/000000.json.gz what the model at the start gives the validation pairs of a dpo job
    states/000008/           adapters, optimizer and what the story needs, saved after a step
    branch/                  the state of another job that this one continues from, if it does
    checkpoints/step-8/      the adapter alone, for inference
    judges.jsonl             tokens of each call of a judge (`accounts`)

A killed job loads the newest state and replays the journalled steps behind it: same rollouts, same
updates, same weights, nothing sampled or graded twice. Every file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rftkit.growing import append_json, json_line, json_values
from rftkit.wholefile import damage, is_full, write_whole
from rftkit.wholefile import write_folder as _write_folder

__all__ = ["CallPlace", "Journal", "Kept", "damage", "is_full", "progress"]

KEPT_STATES = 2
PARTS = {"steps": ("refill", "guided")}
"""Drafts that end up in the record of another kind."""
CallPlace = tuple[int, int, int, int]
"""The place of a call in its step: numbers of the row, the completion, the turn, and the call."""
Kept = tuple[list[int], dict[str, Any]]
"""The tokens that a grade was given for, and the grade: they may be drawn again, and be others."""


class Journal:
    """The folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_damage: Callable[[str], None] = lambda text: None
        """Called for each damaged file that is set aside."""
        for name in ("drafts", "steps", "valid", "reference", "states", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Delete what a killed worker left half-written; for the worker that takes the job up."""
        for path in self.folder.glob("*/.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    # ── records ──────────────────────────────────────────────────────────────────────────────

    def plan(self) -> dict[str, Any] | None:
        """The plan, if the job began before. A damaged file is set aside, and the plan made again
        from the job.
        """
        return self._read(self.folder / "plan.json", "the plan is made again from the job")

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Keep the plan."""
        write_whole(self.folder / "plan.json", json.dumps(plan, indent=1).encode())

    def record(self, kind: str, step: int) -> dict[str, Any] | None:
        """What was written for a step (`kind` is "steps", "valid" or "reference"), or None.

        A damaged file is set aside, and the step is repeated from the records before it.
        """
        return self._read(self._record_path(kind, step))

    def write_record(self, kind: str, step: int, data: dict[str, Any]) -> None:
        """Keep a step's record, durably; its draft is no longer needed."""
        write_whole(self._record_path(kind, step), _packed(data))
        for part in (kind, *PARTS.get(kind, ())):
            self._grades_path(part, step).unlink(missing_ok=True)
            self._calls_path(part, step).unlink(missing_ok=True)
            self._draft_path(part, step).unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """The steps whose rollouts are kept, in order."""
        names = (path.name.partition(".")[0] for path in (self.folder / "steps").glob("*.json.gz"))
        return sorted(int(name) for name in names if name.isdigit())

    def _record_path(self, kind: str, step: int) -> Path:
        return self.folder / kind / f"{step:06d}.json.gz"

    # ── drafts ───────────────────────────────────────────────────────────────────────────────

    def draft(self, kind: str, step: int) -> dict[str, Any] | None:
        """The completions of a step that is not graded yet, or None; see `record` for damage."""
        return self._read(self._draft_path(kind, step))

    def write_draft(self, kind: str, step: int, data: dict[str, Any]) -> None:
        """Keep completions, durably; grades of them may be kept already."""
        write_whole(self._draft_path(kind, step), _packed(data))

    def grades(self, kind: str, step: int) -> dict[tuple[int, int], Kept]:
        """Grades so far by the place of their completion; a line cut off is passed over."""
        return _grades_in(self._grades_path(kind, step))

    def add_grade(self, kind: str, step: int, place: tuple[int, int], kept: Kept) -> None:
        """Store one grade. It outlives a kill at once, a power cut when the record is stored."""
        append_json(self._grades_path(kind, step), [place, *kept])

    def calls(self, kind: str, step: int) -> dict[CallPlace, dict[str, Any]]:
        """The calls of tools that were answered so far, by their place."""
        return dict(_calls_in(self._calls_path(kind, step)))

    def add_call(self, kind: str, step: int, place: CallPlace, call: dict[str, Any]) -> None:
        """Store one call with its answer; see `add_grade`."""
        append_json(self._calls_path(kind, step), [place, call])

    def drop_record(self, kind: str, step: int) -> None:
        """Forget the record of a step and its completions, so that they are sampled again."""
        self._draft_path(kind, step).unlink(missing_ok=True)
        self._record_path(kind, step).unlink(missing_ok=True)

    def reopen(
        self, kind: str, step: int, draft: dict[str, Any], grades: dict[tuple[int, int], Kept]
    ) -> None:
        """Replace a step's record by a draft with these grades, the record going last."""
        lines = b"".join(json_line([place, *kept]) for place, kept in grades.items())
        write_whole(self._grades_path(kind, step), lines)
        self.write_draft(kind, step, draft)
        self._record_path(kind, step).unlink(missing_ok=True)

    def _read(
        self, path: Path, remedy: str = "the job repeats the step from the records before it"
    ) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            return _record_in(path)
        except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
            aside = path.with_name(f"{path.name}.damaged")
            os.replace(path, aside)
            self.on_damage(
                f"A record of the job is damaged: {path} cannot be read ({error}). It was "
                f"renamed to {aside.name}; {remedy}."
            )
            return None

    def _draft_path(self, kind: str, step: int) -> Path:
        return self.folder / "drafts" / f"{kind}-{step:06d}.json.gz"

    def _grades_path(self, kind: str, step: int) -> Path:
        return self.folder / "drafts" / f"{kind}-{step:06d}.grades"

    def _calls_path(self, kind: str, step: int) -> Path:
        return self.folder / "drafts" / f"{kind}-{step:06d}.calls"

    # ── states and checkpoints ───────────────────────────────────────────────────────────────

    def states(self) -> list[tuple[int, Path]]:
        """Step and folder of each kept state, newest first."""
        found = (path for path in (self.folder / "states").iterdir() if path.name.isdigit())
        return [(int(path.name), path) for path in sorted(found, reverse=True)]

    def drop_state(self, step: int) -> None:
        """Forget a state."""
        shutil.rmtree(self.folder / "states" / f"{step:06d}", ignore_errors=True)

    @property
    def branch(self) -> Path | None:
        """The state of another job that this one continues; None if it continues none."""
        folder = self.folder / "branch"
        return folder if folder.is_dir() else None

    def write_branch(self, save: Callable[[Path], None]) -> None:
        """Keep the state that the job starts from."""
        _write_folder(self.folder / "branch", save)

    def write_state(
        self, step: int, save: Callable[[Path], None], keep: Collection[int] = ()
    ) -> None:
        """Keep the trainer's state after a step; the last two are kept, and those in `keep`."""
        target = self.folder / "states" / f"{step:06d}"
        if not target.is_dir():
            _write_folder(target, save)
        for old, folder in self.states()[KEPT_STATES:]:
            if old not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def write_checkpoint(self, step: int, save: Callable[[Path], None]) -> Path:
        """Keep an adapter for inference; returns its folder. A damaged one is written again."""
        target = self.folder / "checkpoints" / f"step-{step}"
        if damage(target) is not None:
            shutil.rmtree(target, ignore_errors=True)
            _write_folder(target, save)
        return target


def progress(folder: Path) -> tuple[frozenset[str], int]:
    """A value that changes whenever the job has made progress, even within a step: the names of its
    durable records, and how many single grades and answered calls there are.
    """
    there = [path for path in folder.glob("*/*") if not path.name.startswith(".")]
    given = sum(len(_grades_in(path)) for path in there if path.suffix == ".grades")
    given += sum(len(_calls_in(path)) for path in there if path.suffix == ".calls")
    return frozenset(f"{path.parent.name}/{path.name}" for path in there), given


def _grades_in(path: Path) -> dict[tuple[int, int], Kept]:
    """Whole lines of a file of grades; others were cut off by a kill, or damaged since."""
    found: dict[tuple[int, int], Kept] = {}
    for entry in json_values(path):
        with contextlib.suppress(ValueError, TypeError):
            place, tokens, grade = entry
            row, index = place
            found[int(row), int(index)] = (tokens, grade)
    return found


def _calls_in(path: Path) -> list[tuple[CallPlace, dict[str, Any]]]:
    """The same for a file of calls."""
    found: list[tuple[CallPlace, dict[str, Any]]] = []
    for entry in json_values(path):
        with contextlib.suppress(ValueError, TypeError):
            (row, index, turn, number), call = entry
            found.append(((int(row), int(index), int(turn), int(number)), dict(call)))
    return found


def _record_in(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    data = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    if not isinstance(data, dict) or not data:
        raise ValueError("it is no record")
    return data


def _packed(data: dict[str, Any]) -> bytes:
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 3, mtime=0)
