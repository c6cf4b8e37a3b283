"""What an import says: the overview before it starts, its end, and a dump described.

Pure text; not here: anything that is read from a network.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.errors import InputError
from rftkit.importer.dump import Dump
from rftkit.importer.ledger import MANIFEST
from rftkit.importer.origins import OPENAI_URL
from rftkit.importer.pages import items_of
from rftkit.importer.saving import HARMLESS
from rftkit.importer.survey import KINDS

if TYPE_CHECKING:
    from rftkit.importer.account import Summary
    from rftkit.importer.bringing import Brought
    from rftkit.importer.survey import Survey

__all__ = ["brought", "count_of", "ending", "human_bytes", "overview", "show", "whose"]

EVALS_END, JOBS_END = date(2026, 11, 30), date(2027, 1, 6)
"""When OpenAI ends evals, and the creation of fine-tuning jobs."""
MOST_NAMES = 8
"""Models that are named for one date."""
MOST_LINES = 40
"""Objects of one kind that are listed one by one."""

NAMES = {
    "files": "files",
    "file_bytes": "bytes in files",
    "jobs": "jobs",
    "events": "events",
    "checkpoints": "checkpoints",
    "evals": "evals",
    "runs": "eval runs",
    "output_items": "output items",
    "graders": "graders",
    "chats": "stored chat completions",
    "messages": "messages",
    "vector_stores": "vector stores",
    "store_files": "files in vector stores",
    "batches": "batches",
}
NOT_ASKED = (
    "responses, conversations and uploads (the service has no list of them), assistants, agents, "
    "containers, videos, voices, skills, fine-tuned weights (never given out), and the settings of "
    "the organization"
)
"""What an account may hold and no import asks for."""


def overview(found: Survey, account: Mapping[str, str], num_due: int) -> str:
    """What is there and how much, before anything is fetched."""
    seen = found.counts()
    methods = Counter(f"{job.facts['method']}" for job in found.jobs)
    statuses = Counter(str(job.facts["status"]) for job in found.jobs)
    more = {
        "files": human_bytes(seen["file_bytes"]),
        "jobs": f"{_tally(methods)}; {_tally(statuses)}",
        "evals": f"{count_of(seen['runs'], 'runs')} with "
        + count_of(seen["output_items"], "output items"),
        "graders": "different specs, found in jobs and evals",
    }
    lines = [f"{whose(account)} holds:"]
    lines += [
        f"  {name:8}{seen[name]:>8,}  {told if seen[name] else ''}".rstrip()
        for name, told in more.items()
    ]
    lines += [f"  {NAMES[kind]}: {len(each):,}" for kind, each in found.others.items() if each]
    lines += _going_off(found.models, account["origin"])
    lines.append(f"{num_due:,} of {len(found.objects):,} objects are to be fetched.")
    return "\n".join(lines)


def ending(
    summary: Summary,
    folder: str | Path,
    *,
    origin: str,
    only: Sequence[str] = KINDS,
    dry_run: bool = False,
    today: date | None = None,
) -> str:
    """What was done, what is missing, what was not asked for, and what to type next."""
    today = today or datetime.now(UTC).date()
    lines = ["Dry run: nothing was written."] if dry_run else []
    if not dry_run:
        lines.append(f"{folder} holds {_counts(summary.counts)}.")
    lines += _missing(summary.missing)
    over = {what for what in summary.missing if _is_over(what, origin, today)}
    if over:
        lines.append(
            f"Evals went off on {EVALS_END.day} {EVALS_END:%B %Y}: what is missing of them can no "
            "longer be fetched."
        )
    if any(
        why["kind"] not in HARMLESS for what, why in summary.missing.items() if what not in over
    ):
        lines.append(
            "Not everything could be fetched. Once the cause is gone (a permission, a broken "
            "service), run the same command again: it fetches the rest."
        )
    lines.append(not_asked(only))
    if summary.is_complete and not dry_run:
        lines.append(f"Check it with: rftkit import --verify {folder}")
    return "\n".join(lines)


def not_asked(only: Sequence[str]) -> str:
    """What an import of these kinds does not ask for."""
    left_out = [NAMES.get(kind, kind) for kind in KINDS if kind not in only]
    chosen = f"{', '.join(left_out)} (left out by --only); " if left_out else ""
    return f"Not asked for: {chosen}{NOT_ASKED}."


def _is_over(what: str, origin: str, today: date) -> bool:
    """Whether the service has switched off what is missing."""
    is_eval = what.removeprefix("lists/").split("/")[0] == "evals"
    return is_eval and origin == OPENAI_URL and today > EVALS_END


def _going_off(models: Iterable[Mapping[str, Any]], origin: str) -> list[str]:
    """When which part of the account goes off, a line each, the first to go first."""
    dates: dict[str, list[str]] = {}
    if origin == OPENAI_URL:
        dates[f"{EVALS_END}"] = ["evals with their runs"]
        dates[f"{JOBS_END}"] = ["creating fine-tuning jobs"]
    for model in models:
        if (end := _day_of(model.get("shutdown_date"))) is not None:
            dates.setdefault(end, []).append(str(model.get("id")))
    return [
        f"Goes off on {end}: {', '.join(names[:MOST_NAMES])}"
        + (f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else "")
        for end, names in sorted(dates.items())
    ]


def _day_of(moment: Any) -> str | None:
    """A date from Unix seconds or from text that begins with one."""
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        try:
            return datetime.fromtimestamp(moment, UTC).date().isoformat()
        except (OverflowError, OSError, ValueError):
            return None
    return moment[:10] if isinstance(moment, str) and moment else None


def brought(done: Brought, *, dry_run: bool = False) -> str:
    """What was brought into the local platform, what was not, and why."""
    plural = {"file": "files", "eval": "evals", "run": "eval runs", "job": "jobs"}
    plural |= {"event": "events", "output_item": "output items"}

    def tally(counts: Mapping[str, int]) -> str:
        told = [count_of(counts[kind], plural[kind]) for kind in plural if counts.get(kind)]
        return ", ".join(told) or "nothing"

    lines = [f"From {done.origin}"]
    lines.append(f"  {'would be new' if dry_run else 'new':13}{tally(done.new + done.parts)}")
    if done.updated:
        lines.append(f"  {'of these':13}{tally(done.updated)} were here, not yet ended")
    if done.same:
        lines.append(f"  {'here already':13}{tally(done.same)}")
    lines += _listed("Refused", [f"{what}: {why}" for what, why in done.refused.items()])
    harmless = [f"{each.what}: {each.reason}" for each in done.left_out if each.is_harmless]
    missing = [f"{each.what}: {each.reason}" for each in done.left_out if not each.is_harmless]
    lines += _listed("Not whole, left out", missing)
    lines += _listed("Never given out by the service", harmless)
    lines += _listed("Good to know", done.notes)
    return "\n".join(lines)


def _listed(title: str, entries: list[str]) -> list[str]:
    lines = [f"{title} ({len(entries):,}):"] if entries else []
    lines += [f"  {each}" for each in entries[:MOST_LINES]]
    more = len(entries) - MOST_LINES
    return [*lines, f"  … and {more:,} more, all with --json"] if more > 0 else lines


def show(folder: str | Path) -> str:
    """A dump in words: whose it is, when it was made, every object, what is missing.

    Raises:
        InputError: there is no dump.
    """
    dump = Dump(folder)
    ledger = dump.ledger
    if ledger.is_new:
        raise InputError(f"{folder} holds no dump (there is no {MANIFEST})")
    lines = [f"Dump of {whose(ledger.account)}"]
    lines += [f"imported {each['finished']} ({', '.join(each['only'])})" for each in ledger.imports]
    if ledger.is_unfinished:
        lines.append("The last import was interrupted; run it again to complete the dump.")
    lines.append(f"Holds {_counts(ledger.counts())}.")
    for title, describe in _DESCRIBED.items():
        keys = [key for key in ledger.objects if _kind(key) == title]
        if keys:
            lines += ["", f"{title} ({len(keys):,})"]
            lines += [f"  {describe(dump, key)}" for key in keys[:MOST_LINES]]
        if len(keys) > MOST_LINES:
            lines.append(f"  … and {len(keys) - MOST_LINES:,} more in {dump.folder / title}")
    lines += ["", *_missing(ledger.not_fetched)] if ledger.not_fetched else []
    asked = {kind for each in ledger.imports for kind in each["only"]}
    models = [
        model for path in dump.pages("lists/models")
        for model in items_of(json.loads(dump.read(path)))
    ]  # fmt: skip
    lines += ["", not_asked(sorted(asked)), *_going_off(models, ledger.account["origin"])]
    return "\n".join(lines)


def count_of(number: int, plural: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {plural if number != 1 else plural.removesuffix('s')}"


def human_bytes(number: float) -> str:
    """`34.5 MB`."""
    if number < 1000:
        return f"{number:,.0f} bytes"
    power = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**power:,.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def whose(account: Mapping[str, str]) -> str:
    """`https://api.openai.com/v1 (acme-research, proj_1)`."""
    names = [account[name] for name in ("organization", "organization_id") if name in account][:1]
    names += [account["project"]] if "project" in account else []
    return account["origin"] + (f" ({', '.join(names)})" if names else "")


def _chat_line(dump: Dump, key: str) -> str:
    chat, counts = _read(dump, f"{key}/chat.json"), dump.ledger.objects[key]["counts"]
    return f"{chat.get('id')}  {chat.get('model')}  {_day(chat)}  {_counts(counts)}"


def _store_line(dump: Dump, key: str) -> str:
    store, counts = _read(dump, f"{key}/vector_store.json"), dump.ledger.objects[key]["counts"]
    return f"{store.get('id')}  {store.get('name')}  {_day(store)}  {_counts(counts)}"


def _batch_line(dump: Dump, key: str) -> str:
    batch = _read(dump, f"{key}/batch.json")
    return f"{batch.get('id')}  {batch.get('endpoint')}  {batch.get('status')}  {_day(batch)}"


def _file_line(dump: Dump, key: str) -> str:
    file = _read(dump, f"{key}/file.json")
    size = human_bytes(file.get("bytes") or 0)
    return f"{file.get('id')}  {file.get('filename')}  {size}  {file.get('purpose')}  {_day(file)}"


def _job_line(dump: Dump, key: str) -> str:
    job, counts = _read(dump, f"{key}/job.json"), dump.ledger.objects[key]["counts"]
    method = (job.get("method") or {}).get("type") or "supervised"
    model = job.get("fine_tuned_model") or f"from {job.get('model')}"
    return (
        f"{job.get('id')}  {method}  {job.get('status')}  {model}  {_day(job)}  {_counts(counts)}"
    )


def _eval_line(dump: Dump, key: str) -> str:
    eval_ = _read(dump, f"{key}/eval.json")
    runs = [entry for name, entry in dump.ledger.objects.items() if name.startswith(f"{key}/runs/")]
    items = sum(run["counts"].get("output_items", 0) for run in runs)
    return (
        f"{eval_.get('id')}  {eval_.get('name')}  {_day(eval_)}  "
        f"{count_of(len(runs), 'runs')}, {count_of(items, 'output items')}"
    )


def _grader_line(dump: Dump, key: str) -> str:
    spec = _read(dump, f"{key}/grader.json")
    uses = _read(dump, f"{key}/used_by.json")
    used = ", ".join(use["object"] for use in uses[:3]) + (", …" if len(uses) > 3 else "")
    return f"{spec.get('name') or '(no name)'}  {spec.get('type')}  used by {used}"


_DESCRIBED = {
    "files": _file_line,
    "jobs": _job_line,
    "evals": _eval_line,
    "graders": _grader_line,
    "chats": _chat_line,
    "vector_stores": _store_line,
    "batches": _batch_line,
}


def _kind(key: str) -> str:
    return "runs" if "/runs/" in key else key.split("/")[0]


def _read(dump: Dump, path: str) -> Any:
    return json.loads(dump.read(path)) if dump.find(path) else {}  # --verify names what is lost


def _counts(counts: Mapping[str, int]) -> str:
    told = [
        human_bytes(number) + " in files" if name == "file_bytes" else count_of(number, NAMES[name])
        for name in NAMES
        if (number := counts.get(name)) is not None
    ]
    return ", ".join(told) or "nothing"


def _tally(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counter.most_common())


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
