"""What a dump holds, so that a killed import can resume and a finished one can be checked.

`manifest.json` is the state after the last finished import; `journal.jsonl` holds what happened
since, one line for each file that reached the disk, and is gone once folded into the manifest.
Whatever is not in one of the two does not count as saved. Not here: the saved objects themselves.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rftkit.errors import InputError, RftkitError
from rftkit.growing import json_values
from rftkit.jsontext import parse_json
from rftkit.wholefile import replacing

__all__ = ["FORMAT", "JOURNAL", "MANIFEST", "Ledger", "account_name", "disk_errors"]

FORMAT = "rftkit-dump/1"
MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"


class Ledger:
    """The contents of one dump folder; every change is on disk before the call returns."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; nothing is written before `open`.

        Raises:
            InputError: the folder holds a newer kind of dump, or one that cannot be read.
        """
        self.folder = folder
        self.account: dict[str, str] = {}
        """`origin` and, as far as known, `organization`, `organization_id`, `project`."""
        self.files: dict[str, dict[str, Any]] = {}
        """Relative path -> `bytes` and `sha256` of the file on disk."""
        self.objects: dict[str, dict[str, Any]] = {}
        """`jobs/ftjob-1` -> `final`, `listed` (digest of its entry in the list) and counts."""
        self.not_fetched: dict[str, dict[str, Any]] = {}
        """What is missing -> `kind`, `reason`, `time`, and `status`, `code` if there are any."""
        self.imports: list[dict[str, Any]] = []
        """One entry for each finished import, oldest first."""
        self.is_of_others = False
        """The folder holds something that is no dump, or is no folder."""
        self.is_unfinished = False
        """An import was interrupted; `journal.jsonl` holds what it saved."""
        self._lock = threading.Lock()
        self._journal: IO[bytes] | None = None
        self._read_manifest()
        self._read_journal()

    @property
    def is_new(self) -> bool:
        """Nothing was ever saved here."""
        return not self.account

    def refuse_others(self) -> None:
        """Refuse to write into what is no dump.

        Raises:
            InputError: it is none.
        """
        if self.is_of_others:
            raise InputError(
                f"{self.folder} is not a dump (it has no {MANIFEST}) and not empty; "
                "name a new or an empty folder"
            )

    def open(self, account: dict[str, str]) -> None:
        """Take the folder for one import.

        Raises:
            InputError: another import is at work in it.
            RftkitError: it cannot be written.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = (self.folder / JOURNAL).open("ab")
            _lock_file(self._journal, self.folder)
            self._journal.write(b"\n")  # ends a line that a kill cut off
            for stale in self.folder.rglob("*.part"):
                stale.unlink()
        self.is_unfinished = True
        self.append({"account": account})

    def append(self, line: dict[str, Any]) -> None:
        """Take one fact in: `account`, `file`, `dropped`, `object` or `not_fetched`."""
        assert self._journal is not None, "the ledger is not open"
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
        with self._lock, disk_errors(self.folder):
            self._journal.write(text.encode())
            self._journal.flush()
            self._apply(line)

    def close(self, finished: dict[str, Any] | None = None) -> None:
        """Fold the journal into the manifest if the import `finished`; keep it otherwise."""
        if self._journal is None:
            return
        if finished is not None:
            self.imports.append(finished)
            with disk_errors(self.folder), replacing(self.folder / MANIFEST) as file:
                file.write(json.dumps(self.manifest(), indent=1, ensure_ascii=False).encode())
                file.write(b"\n")
            (self.folder / JOURNAL).unlink()
            self.is_unfinished = False
        self._journal.close()
        self._journal = None

    def counts(self) -> dict[str, int]:
        """The number of objects by kind, and of their events, output_items and bytes."""
        total: dict[str, int] = {}
        for key, entry in sorted(self.objects.items()):
            kind = "runs" if "/runs/" in key else key.split("/")[0]
            total[kind] = total.get(kind, 0) + 1
            for name, number in entry.get("counts", {}).items():
                total[name] = total.get(name, 0) + number
        return total

    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format": FORMAT,
            "account": self.account,
            "counts": self.counts(),
            "not_fetched": dict(sorted(self.not_fetched.items())),
            "imports": self.imports,
            "objects": dict(sorted(self.objects.items())),
            "files": dict(sorted(self.files.items())),
        }

    def _read_manifest(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            if not self.folder.exists() or (self.folder / JOURNAL).exists():
                return
            self.is_of_others = not self.folder.is_dir() or any(self.folder.iterdir())
            return
        try:
            said = parse_json(path.read_bytes())
            found = said["format"]
        except (ValueError, TypeError, KeyError):
            found = said = None
        if isinstance(found, str) and found != FORMAT:
            raise InputError(f"{path} has format {found!r}, expected {FORMAT!r}; update rftkit")
        if found is None or not _is_manifest(said):
            raise InputError(f"{path} cannot be read as a manifest; restore it or use a new folder")
        for name in ("account", "files", "objects", "not_fetched", "imports"):
            setattr(self, name, said[name])

    def _read_journal(self) -> None:
        path = self.folder / JOURNAL
        self.is_unfinished = path.exists()
        for line in json_values(path):
            with suppress(TypeError, KeyError):  # no such object: damaged, so ignore its file
                self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        if "file" in line:
            self.files[line["file"]] = {"bytes": line["bytes"], "sha256": line["sha256"]}
        elif "dropped" in line:
            self.files.pop(line["dropped"], None)
        elif "object" in line:
            self.objects[line["object"]] = line["entry"]
        elif "not_fetched" in line:
            if line["why"] is None:
                self.not_fetched.pop(line["not_fetched"], None)
            else:
                self.not_fetched[line["not_fetched"]] = line["why"]
        elif "account" in line:
            self.account.update(line["account"])


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Report in one line that the disk is full or the folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise RftkitError(
            f"cannot write to {folder}: {error.strerror or error}; what was saved is safe: make "
            "room (or name another folder) and run the same command again to resume"
        ) from error


def account_name(account: Mapping[str, str]) -> str:
    """`https://api.openai.com/v1 (acme-research, proj_1)`."""
    names = [account[name] for name in ("organization", "organization_id") if name in account][:1]
    names += [account["project"]] if "project" in account else []
    return account["origin"] + (f" ({', '.join(names)})" if names else "")


def _is_manifest(said: dict[str, Any]) -> bool:
    """Whether everything that is read from a manifest is there and of its kind."""
    maps = [said.get(name) for name in ("files", "objects", "not_fetched")]
    return (
        all(isinstance(entries, dict) for entries in maps)
        and all(isinstance(entry, dict) for entries in maps for entry in (entries or {}).values())
        and all({"bytes", "sha256"} <= entry.keys() for entry in said["files"].values())
        and all({"kind", "reason"} <= entry.keys() for entry in said["not_fetched"].values())
        and isinstance(said.get("account"), dict)
        and "origin" in said["account"]
        and isinstance(said.get("imports"), list)
    )


def _lock_file(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two imports into one folder are not kept apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"another import is at work in {folder}; wait for it to end") from None
