"""The dataset check: find the problems of a dataset before you spend an hour on a job.

The rows may have any of the three forms (`forms`): the check recognises the form of a file and
reports the method that it fits. Every row is scanned (`scan`), in worker processes when the files
are large. The counts then become findings, each with its rows and what to do. Nothing is changed
and no model runs: `learnability` tests whether a model can learn from the rows. At most
`MAX_REFERENCES` reference answers are graded, spread over the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets import shingles, tokens
from rftkit.datasets.blanks import BLANKS
from rftkit.datasets.findings import Check, FileFacts, Finding, sorted_findings
from rftkit.datasets.forms import METHODS, WORDS, form_for
from rftkit.datasets.io import MAX_UPLOAD_BYTES
from rftkit.datasets.parallel import num_cores, run_tasks
from rftkit.datasets.proposals import command_for
from rftkit.datasets.references import format_needed, reference_findings
from rftkit.datasets.repeats import NO_NEAR, Part, conflicts, near_repeats, repeats
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.scan import KeyTally, ScanTask, Tally, tally
from rftkit.graders import validate
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    Source = str | Path | pd.DataFrame

__all__ = ["check"]

PARALLEL_FROM_BYTES = 32 * 1024**2  # below this, starting processes costs more than it saves
MAX_EXAMPLES = 5  # rows of a finding that a page shows in full
MAX_EXAMPLE_CHARS = 20_000  # a longer line is shown as truncated text
MAX_REFERENCE_BYTES = 64 * 1024**2  # the rows whose references are graded, all in memory
LEAST_ROWS = 10
MOST_ROWS = {"train": 50_000, "valid": 1_000}
UNBALANCED = 0.8


def check(
    train: Source,
    valid: Source | None = None,
    test: Source | None = None,
    *,
    method: str | None = None,
    grader: Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
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
        model: Count tokens with this model's tokenizer and compare them with its context.
        near_duplicates: Also find rows that are nearly the same; this doubles the time.
        processes: Worker processes; by default one per core for large files, none for small ones.
        progress: Called regularly with the rows scanned and the rows found so far.

    Raises:
        InputError: A source is missing or cannot be read to its end, or there is no such method.
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
                rows.name = f"{role} {rows.name}"  # two frames need two names
            rows.wait()
        if form is None and valid is not None:
            opened["valid"].require(opened["train"].form)
        parts = list(_scan(opened, spec, response_format, near, processes, progress))
        findings = [found for part in parts for found in _of_part(part)]
        findings += repeats(parts)
        findings += conflicts(parts)
        if near:
            findings += near_repeats(parts)
        elif near_duplicates:
            findings.append(NO_NEAR)
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


def _of_part(part: Part) -> Iterator[Finding]:
    counts, name = part.tally, part.rows.name
    if counts.refused.count:
        yield Finding(
            "error",
            "invalid_row",
            f"{name}: {counts.refused.count:,} of {counted(counts.num_rows, 'line')} unusable",
            _advice(part),
            counts.refused.count,
            part.places(counts.refused.numbers),
            tuple(counts.refused.messages),
        )
    if not counts.num_rows:
        yield Finding("error", "no_rows", f"{name} holds no rows", "is it the right file?")
    elif counts.num_usable:
        yield Finding("info", "rows", f"{name}: {_fit(part)}", figures={"form": part.rows.form})
    for found in counts.lacking.values():
        yield Finding(
            "error",
            "unresolved_path",
            f"{name}: {counted(found.count, 'row')} without what the grader reads: "
            f"{found.messages[0].removeprefix('the grader needs ')}",
            "add the key to these rows, or correct its name in the grader",
            found.count,
            part.places(found.numbers),
        )
    for kind, blank in sorted(counts.blank.items()):
        what, advice = BLANKS[kind]
        yield Finding(
            "warning",
            kind,
            f"{name}: {counted(blank.count, 'row')} {what}",
            advice,
            blank.count,
            part.places(blank.numbers),
        )
    yield from _sizes(part)
    yield from _keys(part)
    yield from _personal(part)


def _advice(part: Part) -> str:
    command = command_for(part.rows)
    if command is None:
        return "repair or remove these lines; a job refuses the whole file"
    return f"to make rows of this file, type: {command}"


def _fit(part: Part) -> str:
    """What the rows are, and which jobs take them."""
    count, form = part.tally.num_usable, part.rows.form
    rows = counted(count, f"usable {WORDS[form]}")
    return f"{rows}, which {'fits' if count == 1 else 'fit'} method {METHODS[form]}"


def _sizes(part: Part) -> Iterator[Finding]:
    rows, form = part.tally.num_rows, part.rows.form
    most = MOST_ROWS.get(part.role) if form == "reinforcement" else None
    if 0 < rows < LEAST_ROWS:
        is_refused = form != "reinforcement" and part.role == "train"
        yield Finding(
            "warning" if is_refused else "info",
            "few_rows",
            f"{part.rows.name} has {counted(rows, 'row')}; "
            f"{'OpenAI and Azure take' if is_refused else 'Azure takes'} files of at least "
            f"{LEAST_ROWS}",
            "add rows" if is_refused else "",
        )
    if most is not None and rows > most:
        yield Finding(
            "warning",
            "many_rows",
            f"{part.rows.name} has {rows:,} rows; hosted services have stated a limit of {most:,} "
            f"for {part.role}; the local platform has none",
            "draw a sample: rftkit dataset split",
        )
    path = Path(part.rows.name)
    if path.is_file() and path.stat().st_size > MAX_UPLOAD_BYTES:
        yield Finding(
            "warning",
            "large_file",
            f"{path} has {path.stat().st_size / 1024**2:,.0f} MiB; an upload may have "
            f"{MAX_UPLOAD_BYTES // 1024**2}",
            "draw a sample: rftkit dataset split",
        )


def _keys(part: Part) -> Iterator[Finding]:
    usable = part.tally.num_usable
    if part.rows.form == "supervised" and part.tally.keys:
        yield Finding(
            "warning",
            "unknown_keys",
            f"{part.rows.name}: the rows have other keys than `messages` and `tools`: "
            f"{', '.join(sorted(part.tally.keys))}",
            "OpenAI refuses such a file for method supervised; the local platform does not",
        )
    for key, counts in part.tally.keys.items():
        if counts.present < usable:
            yield Finding(
                "info",
                "missing_key",
                f"{part.rows.name}: `{key}` is missing in {usable - counts.present:,} of "
                f"{usable:,} rows",
            )
        if counts.present >= LEAST_ROWS and counts.values:
            yield from _balance(part.rows.name, key, counts)


def _balance(name: str, key: str, counts: KeyTally) -> Iterator[Finding]:
    assert counts.values is not None
    top, often = counts.values.most_common(1)[0]
    share = often / counts.present
    figures = {"key": key, "values": dict(counts.values.most_common())}
    if len(counts.values) == 1:
        yield Finding(
            "info",
            "constant_key",
            f"{name}: `{key}` is {top!r} in every row that has it, so it distinguishes no rows",
            figures=figures,
        )
    elif 2 * len(counts.values) <= counts.present:
        shown = ", ".join(
            f"{value} {rows / counts.present:.0%}" for value, rows in counts.values.most_common(6)
        )
        more = ", …" if len(counts.values) > 6 else ""
        yield Finding(
            "warning" if share > UNBALANCED else "info",
            "label_balance",
            f"{name}: `{key}` has {len(counts.values)} values: {shown}{more}",
            f"one constant answer is right in {share:.0%} of the rows; add rows of the others"
            if share > UNBALANCED
            else "",
            figures=figures,
        )


def _personal(part: Part) -> Iterator[Finding]:
    from rftkit.datasets.pii import KINDS

    for kind, found in sorted(part.tally.personal.items()):
        yield Finding(
            "warning",
            "personal_data",
            f"{part.rows.name}: what looks like {KINDS[kind]} in {counted(found.count, 'row')}",
            "check them before they leave this machine; nothing was changed",
            found.count,
            part.places(found.numbers),
            figures={"kind": kind},
        )


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
