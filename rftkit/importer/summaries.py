"""The summaries that are printed after an account was saved, a dump was opened, or for a dump.

Pure text: nothing here reads from a network. The overview before an import is in `overview`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rftkit.importer.account import Summary
from rftkit.importer.dump import Dump, saved_dump
from rftkit.importer.ledger import MANIFEST, Ledger, account_name
from rftkit.importer.origins import is_openai
from rftkit.importer.others import OTHERS
from rftkit.importer.overview import (
    EVALS_END,
    counts_text,
    human_bytes,
    not_requested,
    shutdown_lines,
)
from rftkit.importer.saving import HARMLESS
from rftkit.importer.shutdowns import listed_models
from rftkit.importer.survey import KINDS
from rftkit.importer.uploads import UploadSummary
from rftkit.jsontext import parse_json
from rftkit.wording import counted

__all__ = ["describe_dump", "save_summary", "upload_summary"]

MOST_LINES = 40
"""Objects of one kind that are listed one by one."""


def save_summary(
    summary: Summary,
    folder: str | Path,
    *,
    origin: str,
    only: Sequence[str] = KINDS,
    dry_run: bool = False,
    today: date | None = None,
) -> str:
    """What was saved, what is missing, what was not requested, and what to type next."""
    today = today or datetime.now(UTC).date()
    lines = ["Dry run: nothing was written."] if dry_run else []
    if not dry_run:
        lines.append(f"{folder} holds {counts_text(summary.counts)}.")
    lines += _missing(summary.missing)
    over = {what for what in summary.missing if _is_over(what, origin, today)}
    if over:
        lines.append(
            f"Evals were shut down on {EVALS_END.day} {EVALS_END:%B %Y}: their missing parts "
            "can no longer be fetched."
        )
    if any(
        why["kind"] not in HARMLESS for what, why in summary.missing.items() if what not in over
    ):
        lines.append(
            "Not everything could be fetched. Once the cause is gone (a permission, a broken "
            "service), run the same command again to fetch the rest."
        )
    since = dict.fromkeys(only, summary.since) if summary.since else {}
    lines.append(not_requested(only, since, summary.unlisted))
    if summary.is_complete and not dry_run:
        lines.append(f"Check it with: rftkit import --verify {folder}")
    return "\n".join(lines)


def _is_over(what: str, origin: str, today: date) -> bool:
    """Whether the service has switched off what is missing."""
    is_eval = what.removeprefix("lists/").split("/")[0] == "evals"
    return is_eval and is_openai(origin) and today > EVALS_END


def upload_summary(done: UploadSummary, *, dry_run: bool = False) -> str:
    """What was uploaded to the local platform, what was not, and why."""
    nouns = {"file": "file", "eval": "eval", "run": "eval run", "job": "job", "event": "event"}
    nouns |= {"output_item": "output item", "model": "model"}

    def tally(counts: Mapping[str, int]) -> str:
        found = [counted(counts[kind], noun) for kind, noun in nouns.items() if counts.get(kind)]
        return ", ".join(found) or "nothing"

    lines = [f"From {done.origin}"]
    lines.append(f"  {'would be new' if dry_run else 'new':13}{tally(done.new + done.parts)}")
    if done.updated:
        lines.append(f"  {'of these':13}{tally(done.updated)} were here already, unfinished")
    if done.same:
        lines.append(f"  {'here already':13}{tally(done.same)}")
    lines += _listed("Refused", [f"{what}: {why}" for what, why in done.refused.items()])
    titles = {
        "Incomplete, left out": [each for each in done.left_out if not each.is_harmless],
        "Without a counterpart here": [each for each in done.left_out if each.is_unfit],
        "Withheld by the service": [
            each for each in done.left_out if each.is_harmless and not each.is_unfit
        ],
    }
    for title, found in titles.items():
        lines += _listed(title, [f"{each.what}: {each.reason}" for each in found])
    lines += _listed("Notes", done.notes)
    return "\n".join(lines)


def _listed(title: str, entries: list[str]) -> list[str]:
    lines = [f"{title} ({len(entries):,}):"] if entries else []
    lines += [f"  {each}" for each in entries[:MOST_LINES]]
    more = len(entries) - MOST_LINES
    return [*lines, f"  … and {more:,} more, all with --json"] if more > 0 else lines


def describe_dump(folder: str | Path) -> str:
    """Describe a dump: its account, the dates of its imports, every object, what is missing.

    Raises:
        InputError: there is no dump.
    """
    dump = saved_dump(folder)
    ledger = dump.ledger
    lines = [f"Dump of {account_name(ledger.account)}"]
    lines += [f"imported {each['finished']} ({', '.join(each['only'])})" for each in ledger.imports]
    if ledger.is_unfinished:
        lines.append("The last import was interrupted; run it again to complete the dump.")
    lines.append(f"Holds {counts_text(ledger.counts())}.")
    for title, describe in _DESCRIBED.items():
        keys = [key for key in ledger.objects if _kind(key) == title]
        if keys:
            lines += ["", f"{title} ({len(keys):,})"]
            lines += [f"  {describe(dump, key)}" for key in keys[:MOST_LINES]]
        if len(keys) > MOST_LINES:
            lines.append(f"  … and {len(keys) - MOST_LINES:,} more in {dump.folder / title}")
    lines += ["", *_missing(ledger.not_fetched)] if ledger.not_fetched else []
    models = listed_models(dump)
    lines += ["", _left_out(ledger), *shutdown_lines(models, ledger.account["origin"])]
    return "\n".join(lines)


def _left_out(ledger: Ledger) -> str:
    """What no import into a dump has requested."""
    moments: dict[str, list[str | None]] = {}
    unlisted: dict[str, bool] = {}
    for each in ledger.imports:  # entries of an older rftkit have fewer keys
        for kind in each["only"]:
            moments.setdefault(kind, []).append(each.get("since"))
            unlisted[kind] = kind in each.get("unlisted", ())
    since = {kind: min(filter(None, found)) for kind, found in moments.items() if all(found)}
    return not_requested(sorted(moments), since, [kind for kind in unlisted if unlisted[kind]])


def _chat_line(dump: Dump, key: str) -> str:
    chat, counts = _read(dump, f"{key}/chat.json"), dump.ledger.objects[key]["counts"]
    return f"{chat.get('id')}  {chat.get('model')}  {_day(chat)}  {counts_text(counts)}"


def _other_line(dump: Dump, key: str) -> str:
    """One line for an object of `OTHERS`: its id, name, state, date and parts."""
    kind = OTHERS[_kind(key)]
    wire, counts = _read(dump, f"{key}/{kind.file}.json"), dump.ledger.objects[key]["counts"]
    names = ("name", "title", "endpoint", "prompt", "model", "status")
    facts = [str(wire[name])[:60] for name in names if isinstance(wire.get(name), str)][:2]
    tail = [counts_text(counts)] if counts else []
    return "  ".join([str(wire.get("id")), *facts, _day(wire), *tail])


def _file_line(dump: Dump, key: str) -> str:
    file = _read(dump, f"{key}/file.json")
    size = human_bytes(file.get("bytes") or 0)
    return f"{file.get('id')}  {file.get('filename')}  {size}  {file.get('purpose')}  {_day(file)}"


def _job_line(dump: Dump, key: str) -> str:
    job, counts = _read(dump, f"{key}/job.json"), dump.ledger.objects[key]["counts"]
    method = (job.get("method") or {}).get("type") or "supervised"
    model = job.get("fine_tuned_model") or f"from {job.get('model')}"
    state = f"{job.get('id')}  {method}  {job.get('status')}"
    return f"{state}  {model}  {_day(job)}  {counts_text(counts)}"


def _eval_line(dump: Dump, key: str) -> str:
    eval_ = _read(dump, f"{key}/eval.json")
    runs = [entry for name, entry in dump.ledger.objects.items() if name.startswith(f"{key}/runs/")]
    items = sum(run["counts"].get("output_items", 0) for run in runs)
    return (
        f"{eval_.get('id')}  {eval_.get('name')}  {_day(eval_)}  "
        f"{counted(len(runs), 'run')}, {counted(items, 'output item')}"
    )


def _grader_line(dump: Dump, key: str) -> str:
    spec = _read(dump, f"{key}/grader.json")
    uses = _read(dump, f"{key}/used_by.json") or []
    used = ", ".join(use["object"] for use in uses[:3]) + (", …" if len(uses) > 3 else "")
    return f"{spec.get('name') or '(no name)'}  {spec.get('type')}  used by {used}"


_DESCRIBED = {
    "files": _file_line,
    "jobs": _job_line,
    "evals": _eval_line,
    "graders": _grader_line,
    **dict.fromkeys(OTHERS, _other_line),
    "chats": _chat_line,
}


def _kind(key: str) -> str:
    return "runs" if "/runs/" in key else key.split("/")[0]


def _read(dump: Dump, path: str) -> Any:
    """An object of the dump; empty if its file is lost or damaged (`--verify` reports that)."""
    return parse_json(dump.read(path)) if dump.wrong(path) is None else {}


def _missing(missing: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    if not missing:
        return
    yield f"Not fetched ({len(missing):,}):"
    for what, why in list(missing.items())[:MOST_LINES]:
        yield f"  {what.removeprefix('lists/')}: {why['kind']}: {why['reason']}"
    if len(missing) > MOST_LINES:
        yield f"  … and {len(missing) - MOST_LINES:,} more, all in {MANIFEST}"


def _day(wire: Mapping[str, Any]) -> str:
    created_at = wire.get("created_at", wire.get("created"))
    return datetime.fromtimestamp(created_at, UTC).date().isoformat() if created_at else "-"
