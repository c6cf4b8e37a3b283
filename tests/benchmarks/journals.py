"""Answers of real jobs, from the journals of a platform: drawn again, they are further jobs.

The database of a home is copied first, so that nothing there changes. Not here: how alarms are
counted (`healthy`).
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rftkit.graders import reference_answer
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.server.training import watching
from rftkit.server.training.rollout import Group, group_from_dict
from rftkit.server.worker.job_files import prompts_of

LEAST_STEPS = 18

Steps = Sequence[tuple[Sequence[Group], dict[int, str]]]
"""Of each step: its groups, and the right answers of the rows."""


def journals(homes: Iterable[Path]) -> Iterator[tuple[str, Steps]]:
    """The name and the steps of each reinforcement job of some length."""
    for home in homes:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "home"
            copy.mkdir(mode=0o700)
            shutil.copy2(home / "platform.sqlite", copy)
            (copy / "files").symlink_to(home / "files")
            store = Store.open(copy)
            for job in store.jobs(limit=100)[0]:
                if job.method_type == "reinforcement":
                    steps = _steps(home, store, job)
                    if len(steps) >= LEAST_STEPS:
                        yield f"{home.name} {job.id[-6:]} ({len(steps)} steps)", steps
            store.close()


def redrawn(steps: Steps, rng: Any) -> Iterator[list[dict[str, Any]]]:
    """The figures of each step; with a generator, of as many groups drawn with replacement."""
    for groups, right in steps:
        chosen = range(len(groups)) if rng is None else rng.integers(len(groups), size=len(groups))
        drawn = [groups[at] for at in chosen]
        yield watching.figures([Group(g.row, g.prompt_ids, g.rollouts) for g in drawn], right)


def _steps(home: Path, store: Store, job: Job) -> Steps:
    rows = {row.line: row for row in prompts_of(store, job, "training_file")}
    grading = job.grading or {}
    known = (
        (
            line,
            reference_answer(
                row.item, grading.get("response_format"), grader=grading.get("grader")
            ),
        )
        for line, row in rows.items()
    )
    right = {line: answer for line, answer in known if answer is not None}
    paths = sorted((home / "jobs" / job.id / "steps").glob("*.json.gz"))
    records = (json.loads(gzip.decompress(path.read_bytes())) for path in paths)
    return [([group_from_dict(g, rows) for g in record["groups"]], right) for record in records]
