"""Files of a dump folder: written whole or not at all, compressed when large, with their hashes.

`LAYOUT` describes the files, and is written into each dump. Not here: requests; what belongs into
which file.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote

from rftkit.errors import InputError
from rftkit.importer.ledger import MANIFEST, Ledger, disk_errors
from rftkit.wholefile import replacing, sha256

__all__ = [
    "INTERRUPTED",
    "LARGE_BYTES",
    "LAYOUT",
    "Dump",
    "Sink",
    "page_number",
    "safe_name",
    "saved_dump",
    "verify",
]

INTERRUPTED = "the last import was interrupted; run it again to complete the dump"
"""What `verify` returns for an unfinished dump; the part that was saved may be sound."""

LAYOUT = """\
A dump of a hosted fine-tuning account, written by `rftkit import`.

  manifest.json                          counts, hashes, origin, times, what is missing and why
  lists/<kind>/1-000001.json             the lists as the service gave them
  files/<id>/file.json, content.jsonl    a file and its content
  jobs/<id>/job.json                     a fine-tuning job, as the service gave it
  jobs/<id>/events/1-000001.json         its events, page by page as given: <reading>-<page>
  jobs/<id>/events.jsonl                 every event once, oldest first, made of those pages
  jobs/<id>/checkpoints/, checkpoints.jsonl
  evals/<id>/eval.json                   an eval with its graders
  evals/<id>/runs/<id>/run.json, output_items/, output_items.jsonl
  graders/<name>-<hash>/grader.json      each different grader found in jobs and evals
  graders/<name>-<hash>/used_by.json     where it is used
  chats/<id>/chat.json, messages.jsonl   a stored chat completion and what was asked
  vector_stores/<id>/vector_store.json, store_files.jsonl
  batches/<id>/batch.json                a batch; its files are under files/
  assistants/, agents/, chatkit_threads/, containers/, skills/, videos/, voice_consents/
                                         likewise, with a skill's content.zip, a video's content.mp4

Files that end in .gz are packed with gzip. In Python:

  from rftkit.importer import open_dump
  dump = open_dump("this folder")
  dump.jobs(), dump.metrics("ftjob-..."), dump.output_items("evalrun_...")
"""

LARGE_BYTES = 1 << 16
"""Files above this are packed with gzip."""


class Sink(Protocol):
    """What can be written to."""

    def write(self, data: bytes, /) -> int:
        """Take all of `data`."""


class Dump:
    """A dump folder and its ledger. Safe to write different paths from many threads."""

    def __init__(self, folder: str | Path) -> None:
        """Open what is there, to read; `ledger.open` makes it writable."""
        self.folder = Path(folder)
        self.ledger = Ledger(self.folder)

    def find(self, path: str) -> str | None:
        """`path` or its packed twin, whichever is saved; None if neither is."""
        for name in (path, f"{path}.gz"):
            if name in self.ledger.files and (self.folder / name).exists():
                return name
        return None

    def read(self, path: str) -> bytes:
        """The content of a saved file, unpacked.

        Raises:
            FileNotFoundError: it is not in the dump.
        """
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> IO[bytes]:
        """A saved file to read from, unpacked."""
        name = self.find(path)
        if name is None:
            raise FileNotFoundError(f"{path} is not in the dump {self.folder}")
        target = self.folder / name
        return gzip.open(target) if name.endswith(".gz") else target.open("rb")  # type: ignore[return-value]

    def pages(self, folder: str) -> list[str]:
        """Saved pages of a list, in the order in which they were read, without `.gz`."""
        place = self.folder / folder
        names = sorted(each.name for each in place.iterdir()) if place.is_dir() else []
        saved = [f"{folder}/{name}" for name in names if f"{folder}/{name}" in self.ledger.files]
        return sorted((each.removesuffix(".gz") for each in saved), key=page_number)

    def write(self, path: str, body: bytes) -> None:
        """Save `body` under `path`, packed if large; a file that has this content stays."""
        name = f"{path}.gz" if len(body) > LARGE_BYTES else path
        if self.find(path) == name and self.read(path) == body:
            return
        with self.writing(name) as file:
            file.write(body)

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        """Write a file piece by piece; a name that ends in `.gz` is packed."""
        target = self.folder / name
        with disk_errors(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                tally = _Tally(file)
                if name.endswith(".gz"):
                    with gzip.GzipFile("", "wb", 6, tally, mtime=0) as packed:
                        yield packed
                else:
                    yield tally
        digest = tally.digest.hexdigest()
        self.ledger.append({"file": name, "bytes": tally.num_bytes, "sha256": digest})
        self._drop(name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz")

    def wrong(self, path: str) -> str | None:
        """What is wrong with a saved file, compressed or not; None if it is unchanged."""
        saved = [name for name in (path, f"{path}.gz") if name in self.ledger.files]
        if not saved:
            return f"{path}: not in the dump"
        name, entry = saved[0], self.ledger.files[saved[0]]
        target = self.folder / name
        if not target.is_file():
            return f"{name}: missing"
        if target.stat().st_size != entry["bytes"]:
            return f"{name}: {target.stat().st_size} bytes, expected {entry['bytes']}"
        if sha256(target) != entry["sha256"]:
            return f"{name}: its content has changed (sha256 differs)"
        return None

    def damaged(self) -> set[str]:
        """Objects with a saved file that is missing now, by key."""
        lost = [name for name in self.ledger.files if not (self.folder / name).exists()]
        owners = {"/".join(name.split("/")[:depth]) for name in lost for depth in (2, 4)}
        return owners & self.ledger.objects.keys()

    def drop_pages(self, folder: str, *, after: int) -> None:
        """Forget pages of a list that got shorter."""
        for path in self.pages(folder)[after:]:
            self._drop(self.find(path) or path)

    def _drop(self, name: str) -> None:
        if name in self.ledger.files:
            (self.folder / name).unlink(missing_ok=True)
            self.ledger.append({"dropped": name})


def page_number(path: str) -> tuple[int, int]:
    """Reading and page of `…/2-000013.json`."""
    reading, page = path.rsplit("/", 1)[-1].split(".")[0].split("-")
    return int(reading), int(page)


def safe_name(identifier: str) -> str:
    """An id as the name of one folder. Whatever a service sends, the name cannot lead elsewhere."""
    name = quote(identifier, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > 120:
        name = f"{name[:100]}-{hashlib.sha256(identifier.encode()).hexdigest()[:16]}"
    return name


def saved_dump(folder: str | Path) -> Dump:
    """Open a dump that an import has written.

    Raises:
        InputError: there is none.
    """
    dump = Dump(folder)
    if dump.ledger.is_new:
        what = f"there is no {MANIFEST} in it" if dump.folder.is_dir() else "it is no folder"
        raise InputError(
            f"{folder} holds no dump ({what}); name the folder that rftkit import --dump wrote"
        )
    return dump


def verify(folder: str | Path) -> list[str]:
    """Check a dump against its manifest; one line for each thing that is wrong.

    Raises:
        InputError: there is no dump.
    """
    dump = saved_dump(folder)
    wrong = []
    if dump.ledger.is_unfinished:
        wrong.append(INTERRUPTED)
    return wrong + [found for name in sorted(dump.ledger.files) if (found := dump.wrong(name))]


class _Tally:
    """Counts and hashes what passes on its way to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.num_bytes = 0
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, data: bytes, /) -> int:
        view = memoryview(data)
        self.num_bytes += view.nbytes
        self.digest.update(view)
        return self._file.write(view)

    def flush(self) -> None:
        self._file.flush()
