"""The rows of a job's files, checked: errors name the file and the line. Not here: whether the
model's chat template takes them (`rftkit.server.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rftkit.errors import InputError, NotFoundError, RowError
from rftkit.examples import READERS, Example, Preference
from rftkit.graders import check_item_paths
from rftkit.rows import Row, read_rows
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store
from rftkit.tools import Tools

__all__ = [
    "FILES",
    "GRADED_ROWS",
    "answers_of",
    "check_file",
    "check_functions",
    "equal_pairs",
    "graded_rows",
    "prompts_of",
]

FILES = ("training_file", "validation_file")
GRADED_ROWS = "grader_rows"
"""The metadata that names the file whose prompts are answered and graded, if not the validation
file's."""

Answered = Example | Preference


def prompts_of(store: Store, job: Job, param: str) -> list[Row]:
    """The rows of a reinforcement job's file.

    Raises:
        RowError: with the file's name and the line; `param` is the parameter on the wire.
    """
    return _read(store, getattr(job, param), param, read_rows)


def answers_of(store: Store, job: Job, param: str) -> list[Answered]:
    """The rows of a supervised or dpo job's file; none when the job has no such file.

    Raises:
        RowError: as from `prompts_of`.
    """
    file_id = getattr(job, param)
    return _read(store, file_id, param, READERS[job.method_type]) if file_id else []


def graded_rows(store: Store, job: Job, valid: Sequence[Answered]) -> list[Row]:
    """The prompts that a supervised or dpo job's grader measures it on.

    Raises:
        RowError: as from `prompts_of`.
    """
    file_id = (job.metadata or {}).get(GRADED_ROWS)
    if file_id is not None:
        return _read(store, file_id, f"metadata.{GRADED_ROWS}", read_rows)
    return [row.as_row() for row in valid]


def check_file(store: Store, job: Job, param: str) -> list[str]:
    """Read a file of a job, and check that its grader finds what it reads in the rows.

    Returns:
        What a client should know about the rows though they can be used.

    Raises:
        RowError: as from `prompts_of`.
    """
    if job.method_type == "reinforcement":
        _check_paths(store, job, param, prompts_of(store, job, param))
        return []
    rows = answers_of(store, job, param)
    if param == "validation_file" and job.grading is not None:
        named = (job.metadata or {}).get(GRADED_ROWS)
        where = param if named is None else f"metadata.{GRADED_ROWS}"
        _check_paths(store, job, where, graded_rows(store, job, rows))
    if not rows:
        return []
    name = store.file(getattr(job, param)).filename
    notes = equal_pairs(rows, name, param)
    extra = sorted({key for row in rows for key in row.extra})
    return (
        notes
        if not extra
        else [
            *notes,
            f"Rows of {name} have the keys {', '.join(extra)}, which {job.method_type} rows of the "
            "hosted service may not have; here only graders read them",
        ]
    )


def equal_pairs(rows: Sequence[Answered], name: str, param: str) -> list[str]:
    """A note about pairs of one answer given twice, which teach nothing.

    Raises:
        RowError: There is no other pair, so that the job would learn nothing.
    """
    same = [row.line for row in rows if isinstance(row, Preference) and _is_equal(row)]
    if not same:
        return []
    if len(same) == len(rows):
        found = RowError(
            "the two answers of every row are the same, so nothing would be trained; give each "
            "row two answers of which one is better",
            path=name,
            line=same[0],
        )
        raise RowError(found.message, param=param)
    return [
        f"{len(same)} of {len(rows)} rows of {name} have the same answer twice, the first in line "
        f"{same[0]}: they teach nothing"
    ]


def _is_equal(row: Preference) -> bool:
    """Whether the two answers of a pair are the same."""
    parts = ("content", "tool_calls")
    return all(row.preferred.get(part) == row.non_preferred.get(part) for part in parts)


def check_functions(store: Store, job: Job, tools: Tools) -> None:
    """Check that the job's tools have every function that its rows show the model.

    Raises:
        RowError: as from `prompts_of`.
    """
    for param in FILES:
        name = store.file(getattr(job, param)).filename
        try:
            tools.check_rows(prompts_of(store, job, param), name)
        except RowError as error:
            raise RowError(error.message, param=param) from None


def _check_paths(store: Store, job: Job, param: str, rows: Sequence[Row]) -> None:
    assert job.grading is not None
    graders = [job.grading["grader"]]
    if param == "training_file" and (watched := job.method.get("held_out")) is not None:
        graders.append(watched)
    for row in rows:
        try:
            for grader in graders:
                check_item_paths(grader, row.item)
        except InputError as error:
            name = store.file(_id_of(job, param)).filename
            found = RowError(error.message, path=name, line=row.line)
            raise RowError(found.message, param=param) from None


def _id_of(job: Job, param: str) -> str:
    name = param.removeprefix("metadata.")
    return str(getattr(job, name) if name in FILES else (job.metadata or {})[name])


def _read(store: Store, file_id: str, param: str, read: Callable[..., Iterator[Any]]) -> list[Any]:
    try:
        name, path = store.file(file_id).filename, store.whole_file(file_id)
    except NotFoundError as error:
        raise RowError(error.message, param=param) from None
    try:
        with path.open("rb") as lines:
            rows = list(read(lines, path=name))
        if not rows:
            raise RowError(f"{name} has no rows", param=param)
    except InputError as error:
        raise RowError(error.message, param=param) from None
    return rows
