"""`rftkit import` into the local platform, and the migration check.

`rftkit.cli.account` saves an account.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.cli.console import print_json, show, table
from rftkit.errors import InputError

if TYPE_CHECKING:
    from rftkit.importer import Check

__all__ = ["check", "checks_text", "fetch_and_open", "leave", "open_here"]

MOST_LINES = 40
"""Lines of a table of checks."""
NEXT_STEPS = """
Check what runs here:  rftkit import --check
Run a job again:       rftkit job rerun ID --model smollm2-135m-instruct"""


def open_here(paths: Sequence[Path], *, dry_run: bool = False, as_json: bool = False) -> int:
    """Open a dump, or loose files, in the local platform; returns 1 if something was left out."""
    status, result = _open(paths, dry_run, as_json)
    if as_json:
        print_json(result)
    return status


def fetch_and_open(source: str, *, as_json: bool = False, **options: Any) -> int:
    """Save an account into the home folder, then open it in the local platform."""
    from rftkit.cli.account import save

    status, saved = save(source, None, to_stderr=as_json, **options)
    if not saved:
        return status
    opened, result = _open([Path(saved["dump"])], False, as_json)
    if as_json:
        print_json({"saved": saved, "opened": result})
    return max(status, opened)


def check(as_json: bool = False) -> int:
    """Print whether each imported job and grader runs here, and what to change."""
    from rftkit import client
    from rftkit.importer import migration

    found = migration.check_all(client.connect())
    show([each.to_dict() for each in found], checks_text(found), as_json)
    return 0


def leave(paths: Sequence[Path], as_json: bool = False) -> int:
    """Write the evals of a dump as promptfoo configs.

    Raises:
        InputError: there are not two paths, no dump, or OUT holds something.
    """
    from dataclasses import asdict

    from rftkit.importer.leaving import write_promptfoo

    if len(paths) != 2:
        raise InputError("expected a dump and a new folder: rftkit import --to promptfoo DUMP OUT")
    written = write_promptfoo(*paths)
    lines = [
        {"eval": each.eval_id, "tests": each.num_tests, "saved answers": each.num_answers,
         "assertions": len(each.assertions), "without counterpart": len(each.unfit)}
        for each in written
    ]  # fmt: skip
    text = table(lines) if lines else "the dump holds no evals"
    for each in written:
        text += "".join(f"\n{each.eval_id}: {sentence}" for sentence in each.unfit)
    if written:
        text += f"\nCheck them with: npx promptfoo validate -c {written[0].folder}/*.yaml"
    show([asdict(each) for each in written], text, as_json)
    return 0


def checks_text(checks: Sequence[Check]) -> str:
    """A table of verdicts on jobs and graders, then each difference with the ids it affects."""
    if not checks:
        return "nothing was imported yet; type: rftkit import DIR"
    lines = [
        {
            "kind": each.kind,
            "id": each.id,
            "name": each.name,
            "type": each.type,
            "here": each.sentence,
        }
        for each in checks[:MOST_LINES]
    ]
    text = table(lines)
    if len(checks) > MOST_LINES:
        text += f"\n… and {len(checks) - MOST_LINES:,} more, all with --json"
    found: dict[tuple[str, str, bool], list[str]] = {}
    for each in checks:
        for difference in each.differences:
            key = (f"{difference.about}: {difference.here}", difference.change, difference.stops)
            found.setdefault(key, []).append(each.id)
    for (here, change, stops), ids in sorted(found.items(), key=lambda pair: not pair[0][2]):
        affected = ", ".join(ids[:3]) + (f" and {len(ids) - 3:,} more" if len(ids) > 3 else "")
        text += f"\n\n{'STOPS' if stops else 'differs'}  {affected}\n  {here}"
        text += f"\n  → {change}" if change else ""
    return text


def _open(paths: Sequence[Path], dry_run: bool, as_json: bool) -> tuple[int, dict[str, Any]]:
    from rftkit import client
    from rftkit.importer import source_of, summaries, upload

    source = source_of(paths)
    platform = client.connect()
    done = upload(platform, source, dry_run=dry_run)
    result, out = done.to_dict(), sys.stderr if as_json else sys.stdout
    print(summaries.upload_summary(done, dry_run=dry_run), file=out)
    if not dry_run and not as_json and (done.new["job"] or done.new["eval"]):
        print(NEXT_STEPS)
    return (0 if done.is_complete else 1), result
