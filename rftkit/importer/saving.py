"""Bring one object of an account up to date in the dump: one function for each kind.

Each returns the object's entry in the ledger, or None if the object itself could not be fetched. A
part that the service refuses is recorded, and the other parts continue. Not here: which objects
there are, and in which order they are fetched.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from rftkit.importer.dump import LARGE_BYTES, Dump, safe_name
from rftkit.importer.others import OTHERS
from rftkit.importer.pages import Lists, save_list
from rftkit.importer.remote import Refused, Remote
from rftkit.importer.survey import Grader, Listed
from rftkit.jsontext import parse_json

__all__ = ["HARMLESS", "JOB_ENDS", "RUN_ENDS", "SAVERS", "SaveContext", "save_grader"]

JOB_ENDS = ("succeeded", "failed", "cancelled")
RUN_ENDS = ("completed", "failed", "canceled")

HARMLESS = ("gone", "withheld", "short")
"""Kinds of missing things that no permission and no repetition brings: gone from the service,
never given out (content of files with some purposes), or listed in part by the service itself."""

Entry = dict[str, Any]


@dataclass(slots=True)
class SaveContext:
    """Everything that is needed to save an object; shared by all threads."""

    remote: Remote
    lists: Lists
    dump: Dump
    is_dry: bool = False
    """Read only: nothing is written to disk."""
    missing: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What could not be fetched this time -> `kind`, `reason`, `time`, `status`, `code`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def recording(self, what: str) -> Iterator[None]:
        """Record a refusal of `what` and continue; remove an earlier one on success."""
        try:
            yield
        except Refused as refused:
            self.record_missing(what, refused)
        else:
            had_before = what in self.dump.ledger.not_fetched and what not in self.missing
            if had_before and not self.is_dry:
                self.dump.ledger.append({"not_fetched": what, "why": None})

    def record_missing(self, what: str, refused: Refused, kind: str | None = None) -> None:
        """Record that `what` could not be fetched."""
        why: dict[str, Any] = {"kind": kind or _kind_of(what, refused), "reason": refused.reason}
        why |= {"status": refused.status} if refused.status is not None else {}
        why |= {"code": refused.code} if refused.code else {}
        why |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        with self._lock:
            self.missing[what] = why
        if not self.is_dry:
            self.dump.ledger.append({"not_fetched": what, "why": why})

    def save_object(self, listed: Listed, name: str) -> dict[str, Any] | None:
        """Save the object itself as `<name>` in its folder, and return its content."""
        with self.recording(listed.key):
            answer = self.remote.get(listed.route)
            self.dump.write(f"{listed.key}/{name}", answer.body)
            return answer.data
        return None

    def save_list(self, listed: Listed, kind: str, route: str | None = None) -> int | None:
        """Save a list that belongs to an object; the number of its entries.

        `route` is the last part of its route where that is not the kind.
        """
        folder = f"{listed.key}/{kind}"
        with self.recording(folder):
            place = f"{listed.route}/{route or kind}"
            return save_list(self.dump, self.lists, kind, place, folder)
        return None


def save_file(context: SaveContext, file: Listed) -> Entry | None:
    """`file.json` and the content as `content.<suffix>`."""
    wire = context.save_object(file, "file.json")
    if wire is None:
        return None
    content, num_bytes = f"{file.key}/content", None
    with context.recording(content):
        num_bytes = _save_content(context, file, wire)
    is_final = content not in context.missing or context.missing[content]["kind"] == "withheld"
    return _entry(file, is_final, file_bytes=num_bytes)


def save_job(context: SaveContext, job: Listed) -> Entry | None:
    """`job.json`, every event, every checkpoint. Result files are files of their own."""
    wire = context.save_object(job, "job.json")
    if wire is None:
        return None
    events, checkpoints = context.save_list(job, "events"), context.save_list(job, "checkpoints")
    is_final = wire.get("status") in JOB_ENDS and None not in (events, checkpoints)
    return _entry(job, is_final, events=events, checkpoints=checkpoints)


def save_eval(context: SaveContext, eval_: Listed) -> Entry | None:
    """`eval.json`; its runs are objects of their own."""
    wire = context.save_object(eval_, "eval.json")
    return None if wire is None else _entry(eval_, True)


def save_run(context: SaveContext, run: Listed) -> Entry | None:
    """`run.json` and every output item."""
    wire = context.save_object(run, "run.json")
    if wire is None:
        return None
    items = context.save_list(run, "output_items")
    is_final = wire.get("status") in RUN_ENDS and items is not None
    total = (wire.get("result_counts") or {}).get("total")
    if is_final and isinstance(total, int) and (items or 0) < total:
        short = Refused(f"the service lists {items:,} of {total:,} output items")
        context.record_missing(f"{run.key}/output_items", short, kind="short")
        is_final = False  # items appear with a delay: look again next time
    return _entry(run, is_final, output_items=items)


def save_other(context: SaveContext, listed: Listed) -> Entry | None:
    """The object, the list that belongs to it, and its content."""
    kind = OTHERS[listed.kind]
    wire = context.save_object(listed, f"{kind.file}.json")
    if wire is None:
        return None
    is_final = kind.ends is None or wire.get("status") in kind.ends
    counts: dict[str, int | None] = {}
    if kind.part is not None:
        counts[kind.part] = context.save_list(listed, kind.part, kind.part_route)
        is_final = is_final and counts[kind.part] is not None
    if kind.content is not None and wire.get("status") in (None, "completed"):
        is_final = _save_whole(context, listed, kind.content) and is_final
    return _entry(listed, is_final, **counts)


SAVERS: dict[str, Callable[[SaveContext, Listed], Entry | None]] = {
    "files": save_file,
    "jobs": save_job,
    "evals": save_eval,
    "runs": save_run,
    **dict.fromkeys(OTHERS, save_other),
}


def save_grader(context: SaveContext, digest: str, grader: Grader) -> None:
    """`grader.json` (the spec, ready to be sent again) and `used_by.json`."""
    name = grader.spec.get("name") or grader.spec.get("type") or "grader"
    key = f"graders/{safe_name(str(name))[:60]}-{digest[:12]}"
    used_by = f"{key}/used_by.json"
    uses = parse_json(context.dump.read(used_by)) if context.dump.find(used_by) else []
    uses += [use for use in grader.uses if use not in uses]
    uses.sort(key=lambda use: (use["object"], use["path"]))
    context.dump.write(f"{key}/grader.json", _readable(grader.spec))
    context.dump.write(used_by, _readable(uses))
    entry = {"final": True, "listed": digest, "counts": {}}
    if context.dump.ledger.objects.get(key) != entry:
        context.dump.ledger.append({"object": key, "entry": entry})


def _save_whole(context: SaveContext, listed: Listed, suffix: str) -> bool:
    """Save the content of an object; whether nothing more will come of it."""
    content = f"{listed.key}/content"

    def take(chunks: Iterator[bytes]) -> None:
        with context.dump.writing(f"{content}.{suffix}") as target:
            for chunk in chunks:
                target.write(chunk)

    with context.recording(content):
        context.remote.download(listed.id, take, kind=listed.kind)
        return True
    return context.missing[content]["kind"] in HARMLESS


def _save_content(context: SaveContext, file: Listed, wire: dict[str, Any]) -> int | None:
    suffix = PurePosixPath(str(wire.get("filename") or "")).suffix
    # .gz is reserved for files that we compressed
    is_plain = re.fullmatch(r"[.](?!gz$)[A-Za-z0-9]{1,8}", suffix)
    path = f"{file.key}/content{suffix if is_plain else ''}"
    declared: int | None = wire["bytes"] if isinstance(wire.get("bytes"), int) else None
    saved = context.dump.ledger.objects.get(file.key, {}).get("counts", {}).get("file_bytes")
    if saved is not None and saved == declared and context.dump.find(path):
        return declared
    is_large = declared is None or declared > LARGE_BYTES

    def take(chunks: Iterator[bytes]) -> int:
        num_bytes = 0
        with context.dump.writing(f"{path}.gz" if is_large else path) as target:
            for chunk in chunks:
                num_bytes += target.write(chunk)
        return num_bytes

    try:
        return context.remote.download(file.id, take, num_bytes=declared)
    except Refused as refused:
        if refused.status == 400 and "purpose" in refused.reason.lower():
            context.record_missing(f"{file.key}/content", refused, kind="withheld")
            return None
        if refused.code != "short_body":
            raise
        context.record_missing(f"{file.key}/content", refused, kind="short")
        return context.remote.download(file.id, take)


def _entry(listed: Listed, is_final: bool, **counts: int | None) -> Entry:
    known = {name: number for name, number in counts.items() if number is not None}
    return {"final": is_final, "listed": listed.digest, "counts": known}


def _kind_of(what: str, refused: Refused) -> str:
    # such as evals, which the service has switched off
    is_route = what.startswith("lists/") and what.count("/") == 1
    if refused.status in (404, 410):
        return "refused" if is_route else "gone"
    return "refused" if refused.status in (401, 403) else "failed"


def _readable(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode()
