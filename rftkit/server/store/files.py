"""The store's files: one row per file in a table, and its bytes (the blob) in `HOME/files`.

A blob is named by its digest. It is written, synced and renamed before its file is listed. A kill
or a full disk therefore leaves either a `.part`, which the next server deletes, or a blob without a
file, which stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from rftkit.errors import PlatformError, RequestError
from rftkit.server.store.batches import ENDED
from rftkit.server.store.database import Database, new_id, now, sql_list
from rftkit.server.store.records import TERMINAL, File
from rftkit.server.store.trash import discard, empty_trash
from rftkit.wholefile import sync

__all__ = ["Files"]


class Files(Database):
    """The part of the store that holds files."""

    def __init__(self, db: sqlite3.Connection, root: Path) -> None:
        """`root` is the folder that holds the blobs."""
        super().__init__(db, root.parent)
        self._root = root
        self.trash = root.parent / "trash"
        """Folder that keeps deleted files and weights for a week."""

    def add_file(
        self,
        data: bytes | BinaryIO,
        filename: str,
        purpose: str,
        *,
        expires_at: int | None = None,
    ) -> File:
        """Store a file: write its bytes to a temporary name, sync, rename, then list it."""
        with self._writing(data, filename) as (digest, size, place):
            file = File(
                id=new_id("file-"), created_at=now(), filename=filename, purpose=purpose,
                bytes=size, digest=digest, expires_at=expires_at,
            )  # fmt: skip
            with self.transaction():
                place()
                return self._insert(file)

    def add_blob(self, data: BinaryIO, filename: str) -> str:
        """Store the bytes of a file that the caller lists next; return their digest."""
        with self._writing(data, filename) as (digest, _, place), self.transaction():
            place()
            return digest

    def blob_size(self, digest: str) -> int | None:
        """Size of a blob in bytes; None if it does not exist."""
        path = self._blob(digest)
        return path.stat().st_size if path.is_file() else None

    @contextlib.contextmanager
    def _writing(
        self, data: bytes | BinaryIO, filename: str
    ) -> Iterator[tuple[str, int, Callable[[], None]]]:
        """Write to a temporary name; yield the digest, the size, and a function that renames it."""
        part = self._root / f"{secrets.token_hex(8)}.part"

        def place() -> None:
            blob = self._blob(digest)
            blob.parent.mkdir(exist_ok=True)
            os.replace(part, blob)
            sync(blob.parent)

        try:
            digest, size = _write_blob(part, data)
            yield digest, size, place
        except OSError as error:
            raise PlatformError(
                f"cannot store the file {filename!r} in {self._root} "
                f"({error.strerror or error}); nothing was stored"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def file(self, file_id: str) -> File:
        """Return one file, expired or not.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(File, "id = ?", file_id, missing=file_id)

    def file_path(self, file_id: str) -> Path:
        """Return the path of the file's bytes, after checking their size.

        Raises:
            NotFoundError: when there is no such file.
            PlatformError: when the bytes are missing or have a different size.
        """
        file = self.file(file_id)
        path = self._blob(file.digest)
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise PlatformError(
                f"the content of {file_id} ({file.filename}) is damaged: {path} must have "
                f"{file.bytes} bytes; upload the file again"
            )
        return path

    def whole_file(self, file_id: str) -> Path:
        """Return the path of the file's bytes, after checking their digest.

        Raises:
            NotFoundError: when there is no such file.
            PlatformError: when the bytes differ from those that were uploaded.
        """
        path, file = self.file_path(file_id), self.file(file_id)
        with path.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.digest:
                raise PlatformError(
                    f"the content of {file_id} ({file.filename}) is damaged: {path} differs from "
                    "the bytes that were uploaded; upload the file again"
                )
        return path

    def files(
        self,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        newest_first: bool = True,
    ) -> tuple[list[File], bool]:
        """Return a page of unexpired files."""
        where, values = "(expires_at IS NULL OR expires_at > ?)", (now(),)
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", (*values, purpose)  # type: ignore[assignment]
        return self._page(File, where, values, after=after, limit=limit, newest_first=newest_first)

    def delete_file(self, file_id: str) -> None:
        """Delete a file; its bytes move to the trash if no other file has them.

        Raises:
            NotFoundError: when there is none.
            RequestError: when a job, an eval run or a batch that has not ended uses it.
        """
        with self.transaction() as db:
            file = self.file(file_id)
            self._check_not_imported(file, f"file {file_id}")
            users = self._unfinished_users(file_id)
            if users:
                raise RequestError(
                    f"file {file_id} is used by {users[0]}, which has not ended; cancel that or "
                    "wait for it",
                    param="file_id", code="file_in_use",
                )  # fmt: skip
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        with self.transaction():  # in a second transaction: bytes go after the row is durably gone
            if not self._rows("SELECT 1 FROM files WHERE digest = ? LIMIT 1", file.digest):
                discard(self._blob(file.digest), self.trash)

    def sweep(self) -> None:
        """Delete expired files that no unfinished job uses, and `.part` files of killed processes.

        Call it only before the worker starts, and with the home locked. Blobs that the database
        does not list stay, because the database may be an older copy (`unknown_blobs`).
        """
        for file in self._find(File, "expires_at <= ?", now()):
            with contextlib.suppress(RequestError):
                self.delete_file(file.id)
        for path in self._root.glob("*.part"):
            path.unlink(missing_ok=True)
        empty_trash(self.trash)

    def unknown_blobs(self) -> list[Path]:
        """Return the blobs that no file in the database refers to."""
        known = {row["digest"] for row in self._rows("SELECT digest FROM files")}
        return [path for path in self._root.glob("??/*") if path.name not in known]

    def _blob(self, digest: str) -> Path:
        return self._root / digest[:2] / digest

    def _unfinished_users(self, file_id: str) -> list[str]:
        rows = self._rows(
            f"SELECT id FROM jobs WHERE (training_file = ? OR validation_file = ? "
            "OR json_extract(metadata, '$.grader_rows') = ?) "
            f"AND origin IS NULL AND status NOT IN {sql_list(TERMINAL)} "
            "UNION ALL SELECT id FROM eval_runs WHERE status IN ('queued', 'in_progress') "
            "AND json_extract(data_source, '$.source.id') = ? "
            f"UNION ALL SELECT id FROM batches WHERE status NOT IN {sql_list(ENDED)} "
            "AND input_file_id = ?",
            file_id, file_id, file_id, file_id, file_id,
        )  # fmt: skip
        return [row["id"] for row in rows]


def _write_blob(path: Path, data: bytes | BinaryIO) -> tuple[str, int]:
    """Write and sync the data; return its SHA-256 and size in bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        if isinstance(data, bytes):
            digest.update(data)
            size = out.write(data)
        else:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
                size += out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest(), size
