"""Upload units to the local platform: ask what it has, send what is new, report the rest.

Everything goes through one private route of the platform (`/rftkit/imports`), in requests of a few
thousand lines. The parts of an object come first and the object last, so a unit arrives complete or
not at all. A second upload sends only what is new. `units` and `loose` read the units.
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
from rftkit.importer.units import KINDS, Kind, LeftOut, Unit
from rftkit.jsontext import digest_of

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Source", "UploadSummary", "upload"]

MOST_LINES = 2_000
MOST_BYTES = 4 << 20
"""Limit of one request: the platform stores it in one transaction of some milliseconds."""
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
"""Characters of an id that the platform accepts."""
UNUSABLE = (400, 413)
"""Status codes for a line that is not usable JSON or is too large."""

Json = dict[str, Any]


class Source(Protocol):
    """A source of units."""

    origin: str
    """Service and account, or the name of what was read."""

    def read(self) -> Iterator[Unit | LeftOut]:
        """Yield everything; an object comes before those that refer to it."""

    def models(self) -> list[Json]:
        """What the service's list says about each model; called after `read` has ended."""


@dataclass(slots=True)
class UploadSummary:
    """What one upload did."""

    origin: str
    new: Counter[str] = field(default_factory=Counter)
    """Objects that were uploaded, by kind; in a dry run, those that would be."""
    parts: Counter[str] = field(default_factory=Counter)
    """Events and output items that were uploaded with them."""
    updated: Counter[str] = field(default_factory=Counter)
    """Objects of `new` that were unfinished at an earlier import."""
    same: Counter[str] = field(default_factory=Counter)
    """Objects that were on the platform already, unchanged."""
    refused: dict[str, str] = field(default_factory=dict)
    """`job ftjob-…` -> why, such as an id that the platform has with other content."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Incomplete objects of the source."""
    notes: list[str] = field(default_factory=list)
    """References to objects that are neither in the source nor on the platform."""

    @property
    def is_complete(self) -> bool:
        """Nothing was refused, and nothing that the service gives out is missing."""
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
    """Upload the objects of a source to the local platform, read-only, under their own ids.

    Args:
        client: From `rftkit.connect()`: an rftkit platform.
        source: A dump (`DumpSource`) or loose files (`LooseSource`).
        dry_run: Find out what would be uploaded; send nothing.

    Raises:
        InputError: The service is not a platform that accepts imports.
    """
    platform, done = _Platform(client, source.origin), UploadSummary(source.origin)
    seen: set[tuple[Kind, str]] = set()
    sent: dict[tuple[Kind, str], int] = {}
    made: set[str] = set()
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
                made |= _models_of(unit)
                if not _is_here(unit, known[unit.kind].get(unit.id), source.origin, done):
                    num_parts = platform.send(unit, dry_run=dry_run)
                    _tally(unit.kind, num_parts, done)
                    sent[unit.kind, unit.id] = num_parts
                bar.update()
    for (kind, object_id), reason in platform.finish().items():
        done.refused[f"{kind} {object_id}"] = reason
        _tally(kind, sent[kind, object_id], done, by=-1)
    _send_models(platform, source.models(), made, done, dry_run=dry_run)
    missing = {text: each for text, each in named.items() if each not in seen}
    known = platform.known(missing.values())
    done.notes = [
        f"{text}, which is neither in the import nor here"
        for text, (kind, object_id) in missing.items()
        if object_id not in known[kind]
    ]
    return done


def _references(unit: Unit) -> dict[str, tuple[Kind, str]]:
    """The objects that an object refers to: text -> kind and id. It is complete without them."""
    found: dict[str, tuple[Kind, str]] = {}
    for name, kind in REFERENCES.items() if unit.kind == "job" else ():
        if (value := unit.wire.get(name)) and isinstance(value, str):
            found[f"job {unit.id} names {name} {value}"] = (kind, value)
    return found


def _models_of(unit: Unit) -> set[str]:
    """Names that a job gave to models."""
    if unit.kind != "job":
        return set()
    names = [each.get("fine_tuned_model_checkpoint") for each in unit.checkpoints]
    return {each for each in (unit.wire.get("fine_tuned_model"), *names) if isinstance(each, str)}


def _send_models(
    platform: _Platform, listed: Iterable[Json], made: set[str], done: UploadSummary, *,
    dry_run: bool,
) -> None:  # fmt: skip
    """Send what the service's list says of the models that imported jobs made.

    Models are here by the jobs that made them; the list adds what a job does not know, such as the
    date on which the service shuts the model down. It may say something new each time.
    """
    here = platform.models()
    for wire in listed:
        name = str(wire.get("id"))
        if name not in here and not (dry_run and name in made):
            continue  # a base model of the service, or its job is not here
        if here.get(name) == wire:
            done.same["model"] += 1
            continue
        platform.send_model(wire, dry_run=dry_run)
        done.new["model"] += 1
    for (kind, name), reason in platform.finish().items():
        if kind == "model":
            done.refused[f"model {name}"] = reason
            done.new["model"] -= 1


def _is_here(unit: Unit, found: Json | None, origin: str, done: UploadSummary) -> bool:
    """Whether there is nothing to send; records the reason in `done`."""
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
    """Count an object that was sent, or subtract one that was refused."""
    done.new[kind] += by
    if kind in PART_KIND:
        done.parts[PART_KIND[kind]] += by * num_parts


class _Platform:
    """Collects lines and sends them to the platform."""

    def __init__(self, client: OpenAI, origin: str) -> None:
        from rftkit.jobs import abilities

        if "imports" not in abilities(client):
            raise InputError(
                f"{client.base_url} is not an rftkit platform that accepts imports; unset "
                "OPENAI_BASE_URL to import into the local one"
            )
        self._client, self._origin = client, origin
        self._lines: list[tuple[Kind, str, bytes]] = []
        self._num_bytes = 0
        self._refused: dict[tuple[Kind, str], str] = {}

    def known(self, wanted: Iterable[tuple[Kind, str]]) -> dict[str, dict[str, Json]]:
        """Kind -> id -> `origin`, `digest` and `is_final` of what the platform has."""
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
                self._append(unit.kind, unit.id, b'%s,"object":%s}' % (head, part))
            line |= {"num_parts": num_parts, "checkpoints": unit.checkpoints}
        self._append(unit.kind, unit.id, json.dumps({**line, "digest": digest.text()}).encode())
        return num_parts

    def models(self) -> dict[str, Json]:
        """Name -> what the platform shows of each model that was imported."""
        found = [each.to_dict(warnings=False) for each in self._client.models.list()]
        return {
            str(each["id"]): {name: each[name] for name in each if name != "imported_from"}
            for each in found
            if "imported_from" in each
        }

    def send_model(self, wire: Json, *, dry_run: bool) -> None:
        """Send what a list says of a model."""
        if not dry_run:
            line = json.dumps({"kind": "model", "object": wire}).encode()
            self._append("model", str(wire["id"]), line)

    def finish(self) -> dict[tuple[Kind, str], str]:
        """Send the remaining lines; returns what was refused: kind and id -> the first reason."""
        self._flush()
        return self._refused

    def _append(self, kind: Kind, object_id: str, line: bytes) -> None:
        self._lines.append((kind, object_id, line))
        self._num_bytes += len(line)
        if len(self._lines) >= MOST_LINES or self._num_bytes >= MOST_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            self._send_lines(self._lines)
        self._lines, self._num_bytes = [], 0

    def _send_lines(self, lines: list[tuple[Kind, str, bytes]]) -> None:
        """Send lines. One unusable line fails its request, so halve it until the line is found."""
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
                reason = (
                    error.body.get("message") if isinstance(error.body, dict) else error.message
                )
                self._refused.setdefault((kind, object_id), str(reason))
        else:
            for each in answer["refused"]:
                self._refused.setdefault((each["kind"], each["id"]), each["reason"])

    def _upload(self, content: Callable[[], IO[bytes]]) -> str:
        with (
            tempfile.TemporaryFile() as plain
        ):  # a compressed file would report its compressed length
            with content() as compressed:
                shutil.copyfileobj(compressed, plain)
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
    """A digest of a unit's content: the same for the same object and parts."""

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

    bar_format = "{n_fmt} objects uploaded [{elapsed}]"
    return tqdm(bar_format=bar_format, disable=True if dry_run else None)
