"""The complete objects of a dump, each with all its parts, or the reason why one is incomplete.

A file comes with its content, a job with its events and checkpoints, a run with its output items.
Every saved file is checked against its hash before it is read, so a unit is either exactly what the
service sent or it is left out. `loose` reads loose files, and `uploads` sends the units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from rftkit.importer.dump import safe_name, saved_dump
from rftkit.importer.ledger import account_name
from rftkit.importer.saving import HARMLESS, JOB_ENDS, RUN_ENDS
from rftkit.importer.shutdowns import listed_models
from rftkit.jsontext import parse_json

__all__ = ["KINDS", "DumpSource", "Kind", "LeftOut", "Unit", "has_ended"]

Kind = Literal["file", "eval", "run", "job", "model"]
KINDS: tuple[Kind, ...] = ("file", "eval", "run", "job")
"""Kinds in the order of the upload: an object comes before those that refer to it. Models come
last, and only as the lists describe the models that jobs made."""
PART = {"job": "events", "run": "output_items"}
"""Name of the list of parts, for kinds that have one."""
NAME = {"file": "file.json", "eval": "eval.json", "run": "run.json", "job": "job.json"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unit:
    """One object with all its parts."""

    kind: Kind
    id: str
    wire: Json
    """The object as its service sent it."""
    parts: Callable[[], Iterator[bytes]] = lambda: iter(())
    """Events or output items, oldest first, one JSON object each; every call reads them again."""
    checkpoints: list[Json] = field(default_factory=list)
    """The checkpoints of a job."""
    content: Callable[[], IO[bytes]] | None = None
    """The content of a file."""

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return has_ended(self.kind, self.wire)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An object that the source holds incompletely."""

    what: str
    """`job ftjob-…`, or the path of a file."""
    reason: str
    is_harmless: bool = False
    """No permission and no retry would fetch it: the service never gives it out."""
    is_unfit: bool = False
    """A part of another tool's eval that has no counterpart here."""


class DumpSource:
    """The units of a dump, in the order in which the service listed them."""

    def __init__(self, folder: str | Path) -> None:
        """Open a dump.

        Raises:
            InputError: there is none, or it was made by a newer rftkit.
        """
        self.folder = Path(folder)
        self._dump = saved_dump(folder)
        self.origin = account_name(self._dump.ledger.account)
        """Service and account."""

    def read(self) -> Iterator[Unit | LeftOut]:
        """Yield files first, then evals, their runs and jobs; last, what is missing."""
        ledger, left_out = self._dump.ledger, set()
        for kind in KINDS:
            for key in self._keys(kind):
                found = self._unit(kind, key)
                if isinstance(found, LeftOut):
                    left_out.add(key)
                yield found
        for key in sorted({*map(_key_of, ledger.files)} - ledger.objects.keys() - {""}):
            left_out.add(key)
            yield LeftOut(key, "its download was interrupted")
        for what, why in ledger.not_fetched.items():
            if _key_of(f"{what}/") not in left_out:
                is_harmless = why["kind"] in HARMLESS
                yield LeftOut(what.removeprefix("lists/"), why["reason"], is_harmless)

    def models(self) -> list[Json]:
        """What the service's list says about each model, such as its `shutdown_date`."""
        return listed_models(self._dump)

    def _unit(self, kind: Kind, key: str) -> Unit | LeftOut:
        """One object, or the reason why it is left out."""
        try:
            wire = parse_json(self._checked(f"{key}/{NAME[kind]}"))
            if not isinstance(wire, dict) or not isinstance(wire.get("id"), str):
                return LeftOut(key, f"its {NAME[kind]} holds no object with an id")
            if kind == "file":
                return self._file(key, wire)
            if kind in PART:
                return self._parted(kind, key, wire)
            return Unit(kind, wire["id"], wire)
        except _Incomplete as fault:
            return LeftOut(key, str(fault), fault.is_harmless)
        except ValueError as error:
            return LeftOut(key, f"it cannot be read: {error}")

    def _file(self, key: str, wire: Json) -> Unit:
        found = [name for name in self._dump.ledger.files if name.startswith(f"{key}/content")]
        if not found:
            raise self._missing(f"{key}/content")
        path = found[0].removesuffix(".gz")
        self._check(path)
        return Unit("file", wire["id"], wire, content=lambda: self._dump.open(path))

    def _parted(self, kind: Kind, key: str, wire: Json) -> Unit:
        path = f"{key}/{PART[kind]}"
        if PART[kind] not in self._dump.ledger.objects[key].get("counts", {}):
            raise self._missing(path)
        self._check(f"{path}.jsonl")
        kept = self._checkpoints(key) if kind == "job" else []
        return Unit(kind, wire["id"], wire, lambda: self._lines(f"{path}.jsonl"), kept)

    def _checkpoints(self, key: str) -> list[Json]:
        path = f"{key}/checkpoints.jsonl"
        if path in self._dump.ledger.files or f"{path}.gz" in self._dump.ledger.files:
            return [parse_json(line) for line in self._checked(path).splitlines() if line.strip()]
        missing = self._missing(f"{key}/checkpoints")
        if not missing.is_harmless:
            raise missing
        return []

    def _lines(self, path: str) -> Iterator[bytes]:
        with self._dump.open(path) as file:
            for line in file:
                if line.strip():
                    yield line.strip()

    def _checked(self, path: str) -> bytes:
        self._check(path)
        return self._dump.read(path)

    def _check(self, path: str) -> None:
        if wrong := self._dump.wrong(path):
            raise _Incomplete(wrong)

    def _missing(self, what: str) -> _Incomplete:
        part = what.rsplit("/", 1)[-1].replace("_", " ")
        why = self._dump.ledger.not_fetched.get(what)
        if why is None:
            return _Incomplete(f"the dump lacks its {part}")
        return _Incomplete(f"the dump lacks its {part}: {why['reason']}", why["kind"] in HARMLESS)

    def _keys(self, kind: Kind) -> list[str]:
        """Folders of one kind, in the order of the service's lists, oldest first."""
        keys = [key for key in self._dump.ledger.objects if _kind_of(key) == kind]
        order = self._listed(keys)
        return sorted(keys, key=lambda key: (order.get(key, len(order)), key))

    def _listed(self, keys: list[str]) -> dict[str, int]:
        """Key -> place in the lists; jobs are listed newest first."""
        order: dict[str, int] = {}
        for place in dict.fromkeys(key.rsplit("/", 1)[0] for key in keys):
            found = []
            for page in self._dump.pages(f"lists/{place}"):
                try:
                    data = parse_json(self._dump.read(page))["data"]
                    found += [f"{place}/{safe_name(each['id'])}" for each in data]
                except (ValueError, KeyError, TypeError, OSError):
                    continue  # only the order suffers
            for key in reversed(found) if place == "jobs" else found:
                order.setdefault(key, len(order))
        return order


class _Incomplete(Exception):
    """Why an object is incomplete."""

    def __init__(self, reason: str, is_harmless: bool = False) -> None:
        super().__init__(reason)
        self.is_harmless = is_harmless


def has_ended(kind: Kind, wire: Mapping[str, Any]) -> bool:
    """Whether this object will not change any more."""
    ends = {"job": JOB_ENDS, "run": RUN_ENDS}.get(kind)
    return ends is None or wire.get("status") in ends


def _kind_of(key: str) -> Kind | None:
    parts = key.split("/")
    if len(parts) == 4 and parts[0] == "evals" and parts[2] == "runs":
        return "run"
    kinds: dict[str, Kind] = {"files": "file", "evals": "eval", "jobs": "job"}
    return kinds.get(parts[0]) if len(parts) == 2 else None


def _key_of(path: str) -> str:
    """The key of the object that a file of a dump belongs to; empty for lists and graders."""
    parts = path.split("/")
    if parts[0] not in ("files", "jobs", "evals") or len(parts) < 3:
        return ""
    return "/".join(parts[: 4 if parts[0] == "evals" and parts[2] == "runs" else 2])
