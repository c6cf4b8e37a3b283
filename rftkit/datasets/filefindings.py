"""From the counts of one file to findings, each with its rows and what to do. Pure.

Not here: counting (`scan`), and findings about several files together (`repeats`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rftkit.datasets.blanks import BLANKS
from rftkit.datasets.findings import Finding
from rftkit.datasets.forms import METHODS, WORDS
from rftkit.datasets.io import MAX_UPLOAD_BYTES
from rftkit.datasets.proposals import command_for, encoding_command
from rftkit.datasets.repeats import Part
from rftkit.datasets.scan import KeyTally
from rftkit.wording import counted

__all__ = ["file_findings"]

LEAST_ROWS = 10
MOST_ROWS = {"train": 50_000, "valid": 1_000}
UNBALANCED = 0.8
"""Share of the rows with the same value of a key, above which a constant answer pays."""


def file_findings(part: Part) -> Iterator[Finding]:
    """Everything that the counts of a file show: unusable lines, missing keys, sizes, balance."""
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
    if command := command_for(part.rows):
        return f"to make rows of this file, type: {command}"
    if command := encoding_command(part.rows):
        return f"save the file as UTF-8, for example with: {command}"
    return "fix or remove these lines; a job refuses the whole file"


def _fit(part: Part) -> str:
    """Which rows the file has, and which jobs take them."""
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
