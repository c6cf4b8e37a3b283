"""Bring units to the local platform: say what is known there, send what is new, tell the rest.

Everything goes through one private route of the platform (`/rftkit/imports`), in requests of a few
thousand lines: the parts of an object first, the object last, so a unit arrives whole or not at
all. Running it again sends nothing that is there. Not here: where units come from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin

from rftkit.errors import InputError
from rftkit.importer.dump import digest_of
from rftkit.importer.units import KINDS, Kind, LeftOut, Unit

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Source", "UploadSummary", "upload"]

MOST_LINES = 2_000
MOST_BYTES = 4 << 20
"""Of one request: the platform keeps it in one transaction of some milliseconds."""
PART_KIND: dict[Kind, str] = {"job": "event", "run": "output_item"}
MOST_UNITS = 50
"""Objects held in memory at a time: a run may carry its whole data set inline."""
REFERENCES: dict[str, Kind] = {
    "training_file": "file",
    "validation_file": "file",
    "eval_id": "eval",
}
"""Fields of a job that name other objects."""
ROUTE = "/rftkit/imports"
MAX_ID = 512
"""Characters of an id that the platform takes."""
UNUSABLE = (400, 413)
"""No usable JSON, or too large: of a line, not of the platform."""

Json = dict[str, Any]


class Source(Protocol):
    """Where units come from."""

    origin: str
    """Service and account, or the name of what was read."""

    def read(self) -> Iterator[Unit | LeftOut]:
        """Everything, what is referred to before what refers to it."""


@dataclass(slots=True)
class UploadSummary:
    """What one import did."""

    origin: str
    new: Counter[str] = field(default_factory=Counter)
    """Objects that were brought now, by kind; in a dry run, that would be."""
    parts: Counter[str] = field(default_factory=Counter)
    """Events and output items that came with them."""
    updated: Counter[str] = field(default_factory=Counter)
    """Of `new`: those that had not ended when they were imported before."""
    same: Counter[str] = field(default_factory=Counter)
    """Objects that were there already, just so."""
    refused: dict[str, str] = field(default_factory=dict)
    """`job ftjob-…` -> why: its id is there with other content, or it cannot be kept."""
    left_out: list[LeftOut] = field(default_factory=list)
    """What the source holds and not whole."""
    notes: list[str] = field(default_factory=list)
    """References to objects that are neither in the source nor on the platform."""

    @property
    def is_complete(self) -> bool:
        """Nothing was refused, and nothing is missing that could be had."""
        return not self.refused and all(each.is_harmless for each in self.left_out)

    def to_dict(self) -> Json:
        """Plain JSON, for programs."""
        return {
            "origin": self.origin,
            "complete": self.is_complete,
            **{name: dict(getattr(self, name)) for name in ("new", "parts", "updated", "same")},
            "refused": self.refused,
            "left_out": [asdict(each) for each in self.left_out],
            "notes": self.notes,
        }


def upload(client: OpenAI, source: Source, *, dry_run: bool = False) -> UploadSummary:
    """Make the objects of a source appear on the local platform, under their own ids, read-only.

    Args:
        client: From `rftkit.connect()`: an rftkit platform.
        source: A dump (`DumpSource`) or loose files (`LooseSource`).
        dry_run: Find out what would be brought; send nothing.

    Raises:
        InputError: the service is not a platform that takes imports.
    """
    platform, done = _Platform(client, source.origin), UploadSummary(source.origin)
    seen: set[tuple[Kind, str]] = set()
    sent: dict[tuple[Kind, str], int] = {}
    named: dict[str, tuple[Kind, str]] = {}
    found = source.read()
    with _bar(dry_run) as bar:
        while batch := list(islice(found, MOST_UNITS)):
            units = [each for each in batch if isinstance(each, Unit)]
            done.left_out += [each for each in batch if isinstance(each, LeftOut)]
            known = platform.known((unit.kind, unit.id) for unit in units)
            for unit in units:
                seen.add((unit.kind, unit.id))
                named |= _references(unit)
                if not _is_here(unit, known[unit.kind].get(unit.id), source.origin, done):
                    num_parts = platform.send(unit, dry_run=dry_run)
                    _tally(unit.kind, num_parts, done)
                    sent[unit.kind, unit.id] = num_parts
                bar.update()
    for (kind, object_id), reason in platform.finish().items():
        done.refused[f"{kind} {object_id}"] = reason
        _tally(kind, sent[kind, object_id], done, by=-1)
    missing = {words: each for words, each in named.items() if each not in seen}
    there = platform.known(missing.values())
    done.notes = [
        f"{words}, which is neither in the import nor here"
        for words, (kind, object_id) in missing.items()
        if object_id not in there[kind]
    ]
    return done


def _references(unit: Unit) -> dict[str, tuple[Kind, str]]:
    """What an object names, in words -> kind and id. It is whole without them."""
    found: dict[str, tuple[Kind, str]] = {}
    for name, kind in REFERENCES.items() if unit.kind == "job" else ():
        if (value := unit.wire.get(name)) and isinstance(value, str):
            found[f"job {unit.id} names {name} {value}"] = (kind, value)
    return found


def _is_here(unit: Unit, found: Json | None, origin: str, done: UploadSummary) -> bool:
    """Whether there is nothing to send; notes why."""
    name = f"{unit.kind} {unit.id}"
    if not _is_usable(unit.id):
        done.refused[name] = f"its id is not one of 1 to {MAX_ID} letters"
    elif found is None:
        return False
    elif found["origin"] is None:
        done.refused[name] = "an object with this id was made here"
    elif found["digest"] == _digest(unit):
        done.same[unit.kind] += 1
    elif found["origin"] != origin:
        done.refused[name] = f"it is here with other content, imported from {found['origin']}"
    elif found["is_final"]:
        done.refused[name] = "it is here with other content"
    else:
        done.updated[unit.kind] += 1
        return False
    return True


def _is_usable(object_id: str) -> bool:
    return 0 < len(object_id) <= MAX_ID and object_id.isprintable()


def _tally(kind: Kind, num_parts: int, done: UploadSummary, by: int = 1) -> None:
    """Count an object that was sent, or take one back that was refused."""
    done.new[kind] += by
    if kind in PART_KIND:
        done.parts[PART_KIND[kind]] += by * num_parts


class _Platform:
    """Lines on their way to the platform."""

    def __init__(self, client: OpenAI, origin: str) -> None:
        from rftkit.jobs import abilities

        if "imports" not in abilities(client):
            raise InputError(
                f"{client.base_url} is not an rftkit platform that takes imports; unset "
                "OPENAI_BASE_URL to import into the local one"
            )
        self._client, self._origin = client, origin
        self._lines: list[tuple[Kind, str, bytes]] = []
        self._num_bytes = 0
        self._refused: dict[tuple[Kind, str], str] = {}

    def known(self, wanted: Iterable[tuple[Kind, str]]) -> dict[str, dict[str, Json]]:
        """Kind -> id -> `origin`, `digest` and `is_final` of what is there."""
        ids: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for kind, object_id in wanted:
            ids[kind] += [object_id] if _is_usable(object_id) else []
        found: dict[str, dict[str, Json]] = self._post(f"{ROUTE}/known", body=ids)
        return found

    def send(self, unit: Unit, *, dry_run: bool) -> int:
        """Send a unit; returns the number of its parts."""
        if dry_run:
            return sum(1 for _ in unit.parts())
        digest, num_parts = _Digest(unit), 0
        line: Json = {"kind": unit.kind, "object": unit.wire, "is_final": unit.is_final}
        if unit.content is not None:
            line["content"] = self._upload(unit.content)
            digest.add(line["content"].encode())
        if unit.kind in PART_KIND:
            head = json.dumps({"kind": PART_KIND[unit.kind], "parent": unit.id})[:-1].encode()
            for part in unit.parts():
                digest.add(part)
                num_parts += 1
                self._append(unit, b'%s,"object":%s}' % (head, part))
            line |= {"num_parts": num_parts, "checkpoints": unit.checkpoints}
        self._append(unit, json.dumps({**line, "digest": digest.text()}).encode())
        return num_parts

    def finish(self) -> dict[tuple[Kind, str], str]:
        """Send what is left; what was refused, kind and id, and the first reason, its cause."""
        self._flush()
        return self._refused

    def _append(self, unit: Unit, line: bytes) -> None:
        self._lines.append((unit.kind, unit.id, line))
        self._num_bytes += len(line)
        if len(self._lines) >= MOST_LINES or self._num_bytes >= MOST_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            self._send_lines(self._lines)
        self._lines, self._num_bytes = [], 0

    def _send_lines(self, lines: list[tuple[Kind, str, bytes]]) -> None:
        """Send lines; one that cannot be used spoils its request, so it is looked for."""
        from openai import APIStatusError

        try:
            answer = self._post(
                ROUTE,
                content=b"\n".join(line for _, _, line in lines),
                options={
                    "params": {"origin": self._origin},
                    "headers": {"content-type": "application/x-ndjson"},
                },
            )
        except APIStatusError as error:
            if error.status_code not in UNUSABLE:
                raise
            half = len(lines) // 2
            if half:
                self._send_lines(lines[:half])
                self._send_lines(lines[half:])
            else:
                kind, object_id, _ = lines[0]
                said = error.body.get("message") if isinstance(error.body, dict) else error.message
                self._refused.setdefault((kind, object_id), str(said))
        else:
            for each in answer["refused"]:
                self._refused.setdefault((each["kind"], each["id"]), each["reason"])

    def _upload(self, content: Callable[[], IO[bytes]]) -> str:
        with tempfile.TemporaryFile() as plain:  # a packed file would tell its packed length
            with content() as packed:
                shutil.copyfileobj(packed, plain)
            plain.seek(0)
            files = [("file", ("content", plain, "application/octet-stream"))]
            headers = {"content-type": "multipart/form-data"}
            route = f"{ROUTE}/content"
            answer = self._post(route, files=files, options={"headers": headers}, body={})
        return str(answer["content"])

    def _post(self, path: str, **request: Any) -> Any:
        url = urljoin(str(self._client.base_url), path)
        return self._client.post(url, cast_to=object, **request)


class _Digest:
    """The content of a unit as one text: the same for the same object and parts."""

    def __init__(self, unit: Unit) -> None:
        self._hash = hashlib.sha256(digest_of([unit.wire, unit.checkpoints]).encode())

    def add(self, part: bytes) -> None:
        self._hash.update(part + b"\n")

    def text(self) -> str:
        return self._hash.hexdigest()


def _digest(unit: Unit) -> str:
    digest = _Digest(unit)
    if unit.content is not None:
        with unit.content() as content:
            whole = hashlib.sha256()
            while chunk := content.read(1 << 20):
                whole.update(chunk)
            digest.add(whole.hexdigest().encode())
    for part in unit.parts():
        digest.add(part)
    return digest.text()


def _bar(dry_run: bool) -> Any:
    from tqdm import tqdm

    bar_format = "{n_fmt} objects brought [{elapsed}]"
    return tqdm(bar_format=bar_format, disable=True if dry_run else None)
