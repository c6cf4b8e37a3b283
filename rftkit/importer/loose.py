"""Units made of loose files: the API's JSON and JSONL, result files, other tools' evals.

Objects are recognized by their `object` or their fields. Parts find their owner by the id that they
carry, else by an id in the path of their file, else by being with only one. A result file (Azure's
`results.csv`) gives its job the metric events that the job lacks; one without a job becomes a job
of its own, whose id is made of its content. Not here: dumps (`units`); datasets, which are no
objects of the API.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rftkit.errors import InputError
from rftkit.importer import inspect_logs, promptfoo
from rftkit.importer.foreign import ForeignEval, units_of
from rftkit.importer.frames import csv_text
from rftkit.importer.ledger import JOURNAL, MANIFEST
from rftkit.importer.units import KINDS, DumpSource, Kind, LeftOut, Unit
from rftkit.jsondocuments import read_documents
from rftkit.strictjson import decoded, lines_of, read_lines

__all__ = ["LooseSource", "source_of"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".eval", ".yaml", ".yml")
"""File suffixes, in upper or lower case. The API's objects and tables may be compressed:
`.jsonl.gz`."""
TABLES = (".csv", ".tsv")
CONFIGS = (".yaml", ".yml")
OBJECTS = {
    "file": "file",
    "fine_tuning.job": "job",
    "fine_tuning.job.event": "event",
    "fine_tuning.job.checkpoint": "checkpoint",
    "eval": "eval",
    "eval.run": "run",
    "eval.run.output_item": "output_item",
    "model": "model",
}
FIELDS = {
    "output_item": {"datasource_item", "results"},
    "checkpoint": {"step_number", "metrics"},
    "run": {"eval_id", "data_source"},
    "eval": {"testing_criteria"},
    "job": {"training_file", "model"},
    "event": {"level", "message"},
    "file": {"filename", "purpose"},
}
"""The keys that identify the kind of an object without `object`."""
FOREIGN_MARKS = (b'"evalId"', b'"results"', b'"eval"', b'"prompts"')
"""One of these texts is near the beginning of the JSON that promptfoo and Inspect write."""
OWNERS = {"event": ("job", None), "checkpoint": ("job", "fine_tuning_job_id"),
          "output_item": ("run", "run_id")}  # fmt: skip
"""Kind of part -> the kind of its owner, and the field with the owner's id."""

Json = dict[str, Any]


def source_of(paths: Sequence[str | Path]) -> DumpSource | LooseSource:
    """The source at some paths: one dump, or loose files.

    Raises:
        InputError: neither.
    """
    places = [Path(path) for path in paths]
    if len(places) == 1 and any((places[0] / name).exists() for name in (MANIFEST, JOURNAL)):
        return DumpSource(places[0])
    return LooseSource(places)


class LooseSource:
    """The units in some files and folders."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Find the files; they are read by `read`.

        Raises:
            InputError: one is not there, or there is nothing to read.
        """
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} does not exist")
        self._paths = sorted(
            each
            for path in paths
            for each in (path.rglob("*") if path.is_dir() else [path])
            if each.is_file() and _is_wanted(each, given=each == path)
        )
        if not self._paths:
            raise InputError(
                f"{', '.join(map(str, paths))}: neither a dump (there is no manifest.json) nor "
                f"files that end in {', '.join(SUFFIXES)}"
            )
        self.origin = ", ".join(str(path.resolve()) for path in paths)[:500]
        """The paths."""
        self._objects: dict[Kind, dict[str, tuple[Json, Path]]] = {kind: {} for kind in KINDS}
        self._parts: dict[tuple[str, str], dict[str, Json]] = {}
        self._models: dict[str, Json] = {}
        self._foreign: list[tuple[ForeignEval, Path]] = []
        self._left_out: list[LeftOut] = []
        self._contents: set[str] = set()

    def read(self) -> Iterator[Unit | LeftOut]:
        """Everything, files first, then evals, their runs, and jobs; last, what is not whole."""
        loose: list[tuple[str, Json, Path]] = []
        for path in self._paths:
            if _form(path) not in TABLES and not self._take_foreign(path):
                loose += self._sorted_in(path)
        for kind, part, path in loose:
            self._give(kind, part, path)
        for path in self._paths:
            if _form(path) in TABLES:
                self._take_table(path)
        for kind in KINDS:
            for wire, path in self._objects[kind].values():
                yield self._unit(kind, wire, path)
        for found, path in self._foreign:
            yield from units_of(found, str(path))
        yield from (each for each in self._left_out if each.what not in self._contents)

    def models(self) -> list[Json]:
        """What lists of models in the files say about each model; known after `read`."""
        return list(self._models.values())

    def _take_foreign(self, path: Path) -> bool:
        """Keep the eval of another tool; whether the file is that tool's."""
        try:
            found = _foreign_eval(path)
        except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
            self._leave(str(path), f"it cannot be read: {error}")
            return True
        if found is not None:
            self._foreign.append((found, path))
        return found is not None

    def _sorted_in(self, path: Path) -> Iterator[tuple[str, Json, Path]]:
        """Keep the objects of a file; give back its parts, whose owners may come later."""
        try:
            found = list(_objects_in(path))
        except ValueError as error:
            self._leave(str(path), f"it cannot be read as JSON: {error}")
            return
        unknown = 0
        for wire in found:
            kind = _kind_of(wire)
            if kind is None or not isinstance(wire.get("id"), str) or not wire["id"]:
                unknown += 1
            elif kind == "model":
                self._models[wire["id"]] = wire
            elif kind in OWNERS:
                yield kind, wire, path
            else:
                self._keep(kind, wire, path)  # type: ignore[arg-type]
        if unknown:
            self._leave(
                str(path),
                f"not an object of the API with an id: {unknown:,} of {len(found):,} entries",
            )

    def _keep(self, kind: Kind, wire: Json, path: Path) -> None:
        known = self._objects[kind].setdefault(wire["id"], (wire, path))
        if known[0] != wire:
            self._leave(f"{kind} {wire['id']}", f"{known[1]} and {path} hold it with other content")

    def _give(self, kind: str, part: Json, path: Path) -> None:
        owner, name = OWNERS[kind]
        owner_id = part.get(name) if name else None
        if owner_id:
            found = owner_id if owner_id in self._objects[owner] else None  # type: ignore[index]
        else:
            found = self._near(owner, path)
        if found is None:
            wanted = f"its {owner} {owner_id}" if owner_id else f"the {owner} that it belongs to"
            self._leave(str(path), f"{kind} {part['id']}: {wanted} is not there")
            return
        self._parts.setdefault((kind, found), {}).setdefault(part["id"], part)

    def _near(self, kind: Any, path: Path) -> str | None:
        """The object that a file belongs to: named in its path, or alone with it, or alone."""
        objects: dict[str, tuple[Json, Path]] = self._objects[kind]
        if named := [each for each in objects if each in str(path)]:
            return max(named, key=len)
        beside = [each for each, (_, where) in objects.items() if where.parent == path.parent]
        for group in (beside, list(objects)):
            if len(group) == 1:
                return group[0]
        return None

    def _take_table(self, path: Path) -> None:
        """A result file: for the job it belongs to, or for one that is made of it."""
        try:
            content = _content(path)
            events = _metric_events(csv_text(content))
        except (ValueError, KeyError, csv.Error) as error:
            self._leave(str(path), f"it is no result file with a column `step`: {error}")
            return
        digest = _digest(content.decode("utf-8", "replace"))
        job_id = self._near("job", path)
        if job_id is None:
            made = _job_of(path.name, digest, events)
            job_id = made["id"]
            self._objects["job"][job_id] = (made, path)
        wire = self._objects["job"][job_id][0]
        for file_id in wire.get("result_files") or []:
            if file_id not in self._objects["file"]:
                self._objects["file"][file_id] = (_file_of(file_id, path, content), path)
                break
        own = self._parts.setdefault(("event", job_id), {})
        if not any((event.get("data") or {}).get("step") is not None for event in own.values()):
            for event in events:
                step = event["data"]["step"]
                event["id"] = f"ftevent-{_digest(job_id, digest)[:16]}-{step}"
                own.setdefault(event["id"], event)

    def _unit(self, kind: Kind, wire: Json, path: Path) -> Unit | LeftOut:
        object_id = wire["id"]
        if kind == "file":
            content = self._content(wire, path)
            if content is None:
                return LeftOut(f"file {object_id}", f"there is no {wire.get('filename')} beside it")
            self._contents.add(str(content))
            return Unit(kind, object_id, wire, content=lambda: _opened(content))
        part = "event" if kind == "job" else "output_item"
        parts = list(self._parts.get((part, object_id), {}).values())
        parts.sort(key=lambda part: part.get("created_at") or 0)
        total = (wire.get("result_counts") or {}).get("total")
        if kind == "run" and isinstance(total, int) and len(parts) < total:
            there = f"{len(parts):,} of its {total:,} output items are there"
            return LeftOut(f"run {object_id}", there)
        kept = list(self._parts.get(("checkpoint", object_id), {}).values())
        return Unit(kind, object_id, wire, lambda: map(_line, parts), kept)

    def _content(self, wire: Json, path: Path) -> Path | None:
        if _form(path) in TABLES:
            return path
        names = {Path(str(wire.get("filename"))).name, wire["id"]}
        beside = sorted(each for each in path.parent.iterdir() if each.is_file() and each != path)
        found = [each for each in beside if each.name in names or each.stem == wire["id"]]
        fitting = [each for each in found if each.stat().st_size == wire.get("bytes")]
        return next(iter(fitting or found), None)

    def _leave(self, what: str, reason: str) -> None:
        self._left_out.append(LeftOut(what, reason))


def _form(path: Path) -> str:
    """The ending that says what a file holds; that of a packed one is before the `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _opened(path: Path) -> IO[bytes]:
    """A file as it is, or a compressed table decompressed."""
    is_packed = path.suffix.lower() == ".gz" and _form(path) in TABLES
    return gzip.open(path) if is_packed else path.open("rb")  # type: ignore[return-value]


def _content(path: Path) -> bytes:
    """The unpacked content of a file.

    Raises:
        ValueError: it is damaged, or cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"it cannot be unpacked: {error}") from None
    except OSError as error:
        raise ValueError(f"{error.strerror or error}") from None


def _is_wanted(path: Path, *, given: bool) -> bool:
    """Whether to read a file; of a folder's YAML files only those called promptfoo something."""
    suffix = _form(path)
    is_config = given or "promptfoo" in path.name.lower()
    return suffix in SUFFIXES and (suffix not in CONFIGS or is_config)


def _foreign_eval(path: Path) -> ForeignEval | None:
    """The eval in a file of promptfoo or Inspect; None for other files.

    Raises:
        ValueError: it has such a name and no such content.
        MissingExtraError: see `inspect_logs.read_log`.
    """
    suffix = path.suffix.lower()
    if suffix == ".eval":
        return inspect_logs.read_log(path)
    if suffix in CONFIGS:
        config = promptfoo.read_config(path)
        if not promptfoo.is_config(config):
            raise ValueError("it is no config of promptfoo: there are no prompts with tests")
        return promptfoo.eval_of_config(config, path.stem)
    if suffix != ".json":
        return None
    with path.open("rb") as file:
        start = file.read(4096)
    if not any(mark in start for mark in FOREIGN_MARKS):
        return None
    value = inspect_logs.parse(path.read_bytes())
    if inspect_logs.is_log(value):
        return inspect_logs.eval_of_log(value, path.stem)
    if promptfoo.is_results(value):
        return promptfoo.eval_of_results(value, path.stem)
    return promptfoo.eval_of_config(value, path.stem) if promptfoo.is_config(value) else None


def _objects_in(path: Path) -> Iterator[Json]:
    """Every object in a file: alone, in an array, in a page of a list, or one a line."""
    text = decoded(_content(path), path)
    values = read_lines([line.encode() for _, line in lines_of(text)])
    if values is None:  # not exactly one value a line
        values = read_documents(text, path)
    for value in values:
        inner = value.get("data") if isinstance(value, dict) and "data" in value else value
        for each in inner if isinstance(inner, list) else [value]:
            yield each if isinstance(each, dict) else {}


def _kind_of(wire: Json) -> str | None:
    if isinstance(wire.get("object"), str):
        return OBJECTS.get(wire["object"])
    return next((kind for kind, names in FIELDS.items() if names <= wire.keys()), None)


def _metric_events(text: str) -> list[Json]:
    from rftkit.jobs.metrics import events_from_csv

    events = events_from_csv(text)
    if not events or any("step" not in event["data"] for event in events):
        raise ValueError("there is no column `step`, or it has empty cells")
    return [
        {
            "object": "fine_tuning.job.event",
            "id": "",
            "created_at": 0,
            "level": "info",
            "type": "metrics",
            "message": f"Step {event['data']['step']}, from the job's result file",
            "data": event["data"],
        }
        for event in events
    ]


def _job_of(name: str, digest: str, events: list[Json]) -> Json:
    """A job that is known by its result file only; what the file does not contain is null."""
    is_rft = "reward" in json.dumps(events[0]["data"])
    method = "reinforcement" if is_rft else "supervised"
    return {
        "object": "fine_tuning.job",
        "id": f"ftjob-csv-{digest[:16]}",
        "created_at": 0,
        "finished_at": None,
        "status": "succeeded",
        "model": "unknown",
        "fine_tuned_model": None,
        "organization_id": "",
        "training_file": "",
        "validation_file": None,
        "result_files": [f"file-csv-{digest[:16]}"],
        "trained_tokens": None,
        "seed": None,
        "error": None,
        "method": {"type": method, method: {}},
        "metadata": {"made_of": name},
        "user_provided_suffix": None,
        "eval_id": None,
    }


def _file_of(file_id: str, path: Path, content: bytes) -> Json:
    return {
        "object": "file",
        "id": file_id,
        "bytes": len(content),
        "created_at": 0,
        "expires_at": None,
        "filename": path.stem if path.suffix.lower() == ".gz" else path.name,
        "purpose": "fine-tune-results",
        "status": "processed",
        "status_details": None,
    }


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _line(part: Json) -> bytes:
    return json.dumps(part, separators=(",", ":")).encode()
