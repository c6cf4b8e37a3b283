"""Rows in, graded groups out, by way of the journal: nothing that it holds is made twice.

Completions are kept before they are graded, each grade as soon as it is given, and the step's
record when all are. A kill repeats at most the sampling call or the grades under way. Not here:
what a grade means (`rollout`), and files (`journal`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rftkit.graders import Grade
from rftkit.rows import Row
from rftkit.server import rollout
from rftkit.server.engine.base import Completion, SampleRequest
from rftkit.server.rollout import Group
from rftkit.server.run import Run

__all__ = ["CHECKS", "VALIDATION", "drafted", "graded", "sampled", "while_breathing"]

R = TypeVar("R")

VALIDATION = 2**31
"""Stands for the step in the seed of a validation answer: the same draw at every validation."""
CHECKS = 2**31 + 1
"""The same for answers to final checks."""


def graded(
    run: Run,
    kind: str,
    step: int,
    rows: Sequence[Row],
    draw: int,
    num: int,
    temperature: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[list[Group], float]:
    """`num` graded completions of each row, and the seconds they took.

    What the journal has is not made again: the finished record; else the completions; else, of
    their grades, those that were given before a kill. `meanwhile` is called once, while graders
    work.
    """
    journal = run.journal
    record = journal.record(kind, step)
    if record is None:
        draft = drafted(run, kind, step, rows, draw, num, temperature)
        groups, seconds = while_breathing(
            run, lambda: _grades_of(run, kind, step, rows, draft), meanwhile
        )
        record = {
            "groups": [rollout.group_to_dict(group) for group in groups],
            "seconds": draft["seconds"] + seconds,
        }
        journal.write_record(kind, step, record)
        return groups, record["seconds"]
    meanwhile()
    by_line = {row.line: row for row in rows}
    return [rollout.group_from_dict(each, by_line) for each in record["groups"]], record["seconds"]


def drafted(
    run: Run, kind: str, step: int, rows: Sequence[Row], draw: int, num: int, temperature: float
) -> dict[str, Any]:
    """The completions of a step and the seconds they took, from the journal or drawn now."""
    known = run.journal.draft(kind, step)
    if known is not None:
        return known
    started = time.perf_counter()
    prompts, completions = sampled(run, rows, draw, num, temperature)
    draft = {
        "prompts": prompts,
        "completions": [[dataclasses.asdict(each) for each in group] for group in completions],
        "seconds": time.perf_counter() - started,
    }
    run.journal.write_draft(kind, step, draft)
    return draft


def sampled(
    run: Run, rows: Sequence[Row], draw: int, num: int, temperature: float
) -> tuple[list[list[int]], list[list[Completion]]]:
    """The prompts of some rows, and `num` completions of each under the policy."""
    prompts = [run.engine.encode(row.messages, row.tools, run.plan.thinking) for row in rows]
    requests = [
        SampleRequest(
            prompt_ids=prompt,
            seeds=[(run.plan.seed, draw, row.line, index) for index in range(num)],
            max_tokens=run.plan.max_completion_tokens,
            temperature=temperature,
            schema=rollout.schema_of(run.response_format, row.tools),
            thinking=run.plan.thoughts,
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    return prompts, run.engine.sample(requests, breathe=run.breathe)


def _grades_of(
    run: Run, kind: str, step: int, rows: Sequence[Row], draft: dict[str, Any]
) -> tuple[list[Group], float]:
    """The groups, and the seconds that grading took."""
    started = time.perf_counter()

    def keep(index: int, grade: Grade) -> None:
        run.journal.add_grade(kind, step, index, dataclasses.asdict(grade))

    known = run.journal.grades(kind, step)
    groups = rollout.grade_groups(
        run.grader,
        rows,
        draft["prompts"],
        [[Completion(**each) for each in group] for group in draft["completions"]],
        run.response_format,
        known={index: Grade(**grade) for index, grade in known.items()},
        keep=keep,
    )
    return groups, time.perf_counter() - started


def while_breathing(
    run: Run, work: Callable[[], R], meanwhile: Callable[[], None] = lambda: None
) -> R:
    """Grade in another thread, so that chats, and judges that ask this engine, are served."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        meanwhile()
        while not future.done():
            run.breathe()
            time.sleep(0.002)
        return future.result()
