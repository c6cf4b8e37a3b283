"""The dataset check: find the problems of a dataset before you spend an hour on a job.

The rows may have any of the three forms (`forms`): the check recognises the form of a file and
reports the method that it fits. Every row is scanned (`scan`), in worker processes when the files
are large. The counts then become findings (`filefindings`), each with its rows and what to do. At
most `MAX_REFERENCES` reference answers are graded, spread over the files. Nothing is changed and no
model runs: `learnability` tests whether a model can learn from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets import shingles, tokens
from rftkit.datasets.filefindings import file_findings
from rftkit.datasets.findings import Check, FileFacts, Finding, sorted_findings
from rftkit.datasets.forms import form_for
from rftkit.datasets.parallel import num_cores, run_tasks
from rftkit.datasets.references import format_is_open, format_needed, reference_findings
from rftkit.datasets.repeats import NO_NEAR, Part, conflicts, folded_leaks, near_repeats, repeats
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.scan import ScanTask, Tally, tally
from rftkit.datasets.toolrows import tool_findings
from rftkit.graders import validate

if TYPE_CHECKING:
    import pandas as pd

    Source = str | Path | pd.DataFrame

__all__ = ["check"]

PARALLEL_FROM_BYTES = 32 * 1024**2  # below this, starting processes costs more than it saves
MAX_EXAMPLES = 5  # rows of a finding that a page shows in full
MAX_EXAMPLE_CHARS = 20_000  # a longer line is shown as truncated text
MAX_REFERENCE_BYTES = 64 * 1024**2  # the rows whose references are graded, all in memory


def check(
    train: Source,
    valid: Source | None = None,
    test: Source | None = None,
    *,
    method: str | None = None,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    model: str | None = None,
    near_duplicates: bool = True,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Check datasets, and a grader against their rows.

    Args:
        train: A file, folder or frame, as for `open`.
        valid: The validation rows, of the same form as `train`.
        test: Rows held out for a final evaluation.
        method: reinforcement, supervised or dpo, if the rows must fit it; by default the method
            that the form of most rows in `train` fits.
        grader: Grader spec, as on the wire; a malformed one raises GraderSpecError.
        response_format: The response format of the job.
        tools: The tools of the job, whose names must match the functions of the rows.
        model: Count tokens with this model's tokenizer and compare them with its context.
        near_duplicates: Also find rows that are nearly the same; this doubles the time.
        processes: Worker processes; by default one per core for large files, none for small ones.
        progress: Called regularly with the rows scanned and the rows found so far.

    Raises:
        InputError: A source is missing or cannot be read to its end, there is no such method, or
            an entry of `tools` is malformed.
    """
    form = None if method is None else form_for(method)
    spec = validate(grader) if grader is not None else None
    near = near_duplicates and shingles.is_available()
    sources = {"train": train, "valid": valid, "test": test}
    with ExitStack() as stack:
        opened = {
            role: stack.enter_context(open(source, form=form))
            for role, source in sources.items()
            if source is not None
        }
        for role, rows in opened.items():
            if not isinstance(sources[role], str | Path):
                rows.name = f"{role} {rows.name}"  # the two tables need different names
            rows.wait()
        if form is None and valid is not None:
            opened["valid"].require(opened["train"].form)
        parts = list(_scan(opened, spec, response_format, near, processes, progress))
        findings = [found for part in parts for found in file_findings(part)]
        findings += repeats(parts)
        findings += conflicts(parts)
        findings += near_repeats(parts) if near else folded_leaks(parts)
        if near_duplicates and not near:
            findings.append(NO_NEAR)
        findings += tool_findings(parts, tools)
        findings += format_is_open(response_format)
        if spec is not None:
            findings += format_needed(spec, response_format)
            findings += _ungraded(opened)
            graded = [part for part in parts if part.rows.form == "reinforcement"]
            if graded and not any(part.tally.lacking for part in graded):
                items = [(part.place(n), item) for part, n, item in _spread(graded)]
                findings += reference_findings(spec, response_format, items)
        if model is not None:
            findings += tokens.length_findings(model, {p.role: p.rows for p in parts})
        ordered = sorted_findings(findings)
        return Check(ordered, tuple(map(_facts, parts)), _examples(parts, ordered))


def _ungraded(opened: Mapping[str, Rows]) -> Iterator[Finding]:
    names = [rows.name for rows in opened.values() if rows.form != "reinforcement"]
    if names:
        yield Finding(
            "info",
            "rows_without_grading",
            f"the grader was not tested on {', '.join(names)}: it reads RFT rows, which "
            "rftkit dataset convert makes",
        )


def _scan(
    opened: Mapping[str, Rows],
    spec: Mapping[str, Any] | None,
    response_format: Mapping[str, Any] | None,
    near: bool,
    processes: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Part]:
    total, done = sum(map(len, opened.values())), 0
    if processes is None:
        size = sum(rows.lines_path.stat().st_size for rows in opened.values())
        processes = num_cores() if size >= PARALLEL_FROM_BYTES else 0
    for role, rows in opened.items():
        counts = Tally()
        tasks = (ScanTask(each, spec, response_format, near) for each in rows.stretches())
        for part in run_tasks(tally, tasks, processes=processes):
            counts.add(part)
            done += part.num_rows
            if progress is not None:
                progress(done, total)
        yield Part(role, rows, counts)


def _facts(part: Part) -> FileFacts:
    refused, size = part.tally.refused.count, part.rows.progress()[1]
    rows = part.rows
    return FileFacts(part.role, rows.name, part.tally.num_rows, refused, size, rows.form)


def _spread(parts: list[Part]) -> Iterator[tuple[Part, int, Mapping[str, Any]]]:
    """Return usable rows spread over all files, at most `MAX_REFERENCE_BYTES` of them."""
    from rftkit.datasets.references import MAX_REFERENCES

    total, room = sum(part.tally.num_usable for part in parts), MAX_REFERENCE_BYTES
    stride = max(1, -(-total // MAX_REFERENCES))
    for part in parts:
        for number in part.tally.array("numbers")[::stride]:
            [found] = part.rows.page(int(number), 1)
            assert found.row is not None
            yield part, int(number), found.row.item
            room -= len(found.raw)
            if room <= 0:
                return


def _examples(parts: list[Part], findings: tuple[Finding, ...]) -> dict[str, Any]:
    by_name = {part.rows.name: part.rows for part in parts}
    shown: dict[str, Any] = {}
    for place in (place for each in findings for place in each.places[:MAX_EXAMPLES]):
        if str(place) not in shown:
            [found] = by_name[place.file].page(place.number, 1)
            text = found.raw[:MAX_EXAMPLE_CHARS].decode("utf-8", "replace")
            is_whole = len(found.raw) <= MAX_EXAMPLE_CHARS
            shown[str(place)] = found.row.item if found.row and is_whole else text
    return shown
