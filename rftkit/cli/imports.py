"""`rftkit import` into the local platform, the migration check and `rftkit job rerun`.

See `rftkit.cli`; saving an account is `rftkit.cli.account`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rftkit.cli.console import print_json, show, table
from rftkit.errors import InputError

if TYPE_CHECKING:
    from rftkit.importer import Check, Rerun

__all__ = ["check", "checks_text", "fetch_and_open", "open_here", "rerun"]

MOST_LINES = 40
"""Lines of a table of checks."""
SHOWN = ("total_steps", "batch_size", "completions_per_prompt", "learning_rate", "eval_interval")
"""Resolved settings that are told before a job starts."""


def open_here(paths: Sequence[Path], *, dry_run: bool = False, as_json: bool = False) -> int:
    """Bring a dump, or loose files, into the local platform; 1 if something was not brought."""
    status, told = _open(paths, dry_run, as_json)
    if as_json:
        print_json(told)
    return status


def fetch_and_open(source: str, *, as_json: bool = False, **options: Any) -> int:
    """Save an account into the home folder, then bring it into the local platform."""
    from rftkit.cli.account import save

    status, saved = save(source, None, to_stderr=as_json, **options)
    if not saved:
        return status
    opened, told = _open([Path(saved["dump"])], False, as_json)
    if as_json:
        print_json({"saved": saved, "opened": told})
    return max(status, opened)


def check(as_json: bool = False) -> int:
    """Print what every imported job and grader needs to run here."""
    from rftkit import client
    from rftkit.importer import migration

    found = migration.check_all(client.connect())
    show([each.to_dict() for each in found], checks_text(found), as_json)
    return 0


def rerun(
    job_id: str,
    model: str,
    *,
    grader: Path | None,
    suffix: str | None,
    is_agreed: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Start a job again here, after its differences were named and agreed to."""
    from rftkit import client, datasets
    from rftkit.importer import plan_rerun, start_rerun

    if as_json and not (is_agreed or dry_run):
        raise InputError("--json asks no questions: add --yes to start, or --dry-run to look")
    platform = client.connect()
    spec = datasets.read_json(grader) if grader else None
    planned = plan_rerun(platform, job_id, model=model, grader=spec, suffix=suffix)
    if not as_json:
        print(_rerun_text(planned))
    is_possible = planned.check.verdict != "stops"
    if dry_run:
        if as_json:
            print_json(planned.to_dict())
        return 0 if is_possible else 1
    if is_possible and not is_agreed:
        _ask_to_start()
    job = start_rerun(platform, planned)
    show({**planned.to_dict(), "job": job.to_dict(warnings=False)}, job.id, as_json)
    return 0


def checks_text(checks: Sequence[Check]) -> str:
    """Jobs and graders as a table: verdicts, then each difference once with those it concerns."""
    if not checks:
        return "nothing was imported yet: rftkit import DIR"
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
    met: dict[tuple[str, str, bool], list[str]] = {}
    for each in checks:
        for difference in each.differences:
            key = (f"{difference.about}: {difference.here}", difference.change, difference.stops)
            met.setdefault(key, []).append(each.id)
    for (here, change, stops), ids in sorted(met.items(), key=lambda pair: not pair[0][2]):
        whose = ", ".join(ids[:3]) + (f" and {len(ids) - 3:,} more" if len(ids) > 3 else "")
        text += f"\n\n{'STOPS' if stops else 'differs'}  {whose}\n  {here}"
        text += f"\n  → {change}" if change else ""
    return text


def _rerun_text(planned: Rerun) -> str:
    request, job = planned.request, planned.job
    origin = f" of {job['imported_from']}" if job.get("imported_from") else ""
    grader = request["grader"] or {}
    lines = [
        f"{job['id']}{origin}, which trained {job.get('model')}, again on {request['model']}",
        f"  data             {request['training_file']}, {request['validation_file']}",
        f"  grader           {grader.get('name')} ({grader.get('type')})",
        f"  response format  {(request['response_format'] or {}).get('type') or 'text'}",
        f"  seed             {request['seed']}",
    ]
    for name, value in (request["hyperparameters"] or {}).items():
        lines.append(f"  {name:<16} {value}")
    if planned.resolved:
        told = ", ".join(f"{name} {planned.resolved[name]}" for name in SHOWN)
        lines.append(f"  which means here {told}")
    if planned.check.differences:
        rows = [
            {
                "": "STOPS" if each.stops else "",
                "what": each.about,
                "here": each.here,
                "to change": each.change,
            }
            for each in planned.check.differences
        ]
        lines += ["", table(rows)]
    return "\n".join([*lines, "", f"It {planned.check.sentence}."])


def _ask_to_start() -> None:
    if not sys.stdin.isatty():
        raise InputError("nobody is there to ask: add --yes to start, or --dry-run to look")
    typer.confirm("Start it?", abort=True)


def _open(paths: Sequence[Path], dry_run: bool, as_json: bool) -> tuple[int, dict[str, Any]]:
    from rftkit import client
    from rftkit.importer import bring, source_of, words

    source = source_of(paths)
    platform = client.connect()
    done = bring(platform, source, dry_run=dry_run)
    told, out = done.to_dict(), sys.stderr if as_json else sys.stdout
    print(words.brought(done, dry_run=dry_run), file=out)
    if not dry_run and not as_json and (done.new["job"] or done.new["eval"]):
        print("\nDoes it run here?  rftkit import --check\nTrain a job again:  rftkit job rerun ID "
              "--model smollm2-135m-instruct")  # fmt: skip
    return (0 if done.is_complete else 1), told
