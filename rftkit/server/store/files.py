"""The store's files: rows in a table, bytes beside it under `HOME/files`, named by their digest.

A blob is written, synced and renamed before its file is listed, so a kill or a full disk at any
moment leaves a `.part`, which the next server sweeps away, or a blob without a file, which stays.
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
from rftkit.server.store.database import Database, new_id, now, sql_list
from rftkit.server.store.records import TERMINAL, File
from rftkit.server.store.trash import discard, empty_trash
from rftkit.wholefile import sync

__all__ = ["Files"]


class Files(Database):
    """The part of the store that keeps files."""

    def __init__(self, db: sqlite3.Connection, root: Path) -> None:
        """`root` is the folder of the blobs."""
        super().__init__(db, root.parent)
        self._root = root
        self.trash = root.parent / "trash"
        """Where deleted files and weights are kept for a while."""

    def add_file(
        self,
        data: bytes | BinaryIO,
        filename: str,
        purpose: str,
        *,
        expires_at: int | None = None,
    ) -> File:
        """Keep a file: written beside its place, synced, renamed, then listed."""
        with self._writing(data, filename) as (digest, size, place):
            file = File(
                id=new_id("file-"), created_at=now(), filename=filename, purpose=purpose,
                bytes=size, digest=digest, expires_at=expires_at,
            )  # fmt: skip
            with self.transaction():
                place()
                return self._insert(file)

    def add_blob(self, data: BinaryIO, filename: str) -> str:
        """Keep bytes whose file will be listed in a moment; the digest names them."""
        with self._writing(data, filename) as (digest, _, place), self.transaction():
            place()
            return digest

    def blob_size(self, digest: str) -> int | None:
        """Bytes of a blob; None when it is not there."""
        path = self._blob(digest)
        return path.stat().st_size if path.is_file() else None

    @contextlib.contextmanager
    def _writing(
        self, data: bytes | BinaryIO, filename: str
    ) -> Iterator[tuple[str, int, Callable[[], None]]]:
        """Write beside the place: digest, size, and what moves it there."""
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
                f"the file {filename!r} could not be kept in {self._root} "
                f"({error.strerror or error}); nothing was stored"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def file(self, file_id: str) -> File:
        """One file, expired or not.

        Raises:
            NotFoundError: when there is none.
        """
        return self._one(File, "id = ?", file_id, missing=file_id)

    def file_path(self, file_id: str) -> Path:
        """Where the file's bytes lie.

        Raises:
            NotFoundError: when there is no such file.
            PlatformError: when its blob is missing or was changed in size.
        """
        file = self.file(file_id)
        path = self._blob(file.digest)
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise PlatformError(
                f"the content of {file_id} ({file.filename}) is damaged: {path} should hold "
                f"{file.bytes} bytes; upload the file again"
            )
        return path

    def whole_file(self, file_id: str) -> Path:
        """Where the file's bytes lie, after reading all of them.

        Raises:
            NotFoundError: when there is no such file.
            PlatformError: when they are not the bytes that were uploaded.
        """
        path, file = self.file_path(file_id), self.file(file_id)
        with path.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.digest:
                raise PlatformError(
                    f"the content of {file_id} ({file.filename}) is damaged: {path} does not have "
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
        """A page of the files that have not expired."""
        where, values = "(expires_at IS NULL OR expires_at > ?)", (now(),)
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", (*values, purpose)  # type: ignore[assignment]
        return self._page(File, where, values, after=after, limit=limit, newest_first=newest_first)

    def delete_file(self, file_id: str) -> None:
        """Forget a file, and its bytes when no other file has the same.

        Raises:
            NotFoundError: when there is none.
            RequestError: when a job or an eval run that has not ended uses it.
        """
        with self.transaction() as db:
            file = self.file(file_id)
            self._check_own(file, f"file {file_id}")
            users = self._unfinished_users(file_id)
            if users:
                raise RequestError(
                    f"file {file_id} is used by {users[0]}, which has not ended; cancel that or "
                    "wait for it",
                    param="file_id", code="file_in_use",
                )  # fmt: skip
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        with self.transaction():  # another one: bytes go after their file is durably forgotten
            if not self._rows("SELECT 1 FROM files WHERE digest = ? LIMIT 1", file.digest):
                discard(self._blob(file.digest), self.trash)

    def sweep(self) -> None:
        """Drop expired files that no unfinished job uses, and the leftovers of a killed process.

        Only for a server that has its home to itself and no worker yet. A blob that the database
        does not know stays: the database may be a new or an older one (`unknown_blobs`).
        """
        for file in self._find(File, "expires_at <= ?", now()):
            with contextlib.suppress(RequestError):
                self.delete_file(file.id)
        for path in self._root.glob("*.part"):
            path.unlink(missing_ok=True)
        empty_trash(self.trash)

    def unknown_blobs(self) -> list[Path]:
        """Bytes that no file of the database refers to."""
        known = {row["digest"] for row in self._rows("SELECT digest FROM files")}
        return [path for path in self._root.glob("??/*") if path.name not in known]

    def _blob(self, digest: str) -> Path:
        return self._root / digest[:2] / digest

    def _unfinished_users(self, file_id: str) -> list[str]:
        rows = self._rows(
            f"SELECT id FROM jobs WHERE (training_file = ? OR validation_file = ?) "
            f"AND origin IS NULL AND status NOT IN {sql_list(TERMINAL)} "
            "UNION ALL SELECT id FROM eval_runs WHERE status IN ('queued', 'in_progress') "
            "AND json_extract(data_source, '$.source.id') = ?",
            file_id, file_id, file_id,
        )  # fmt: skip
        return [row["id"] for row in rows]


def _write_blob(path: Path, data: bytes | BinaryIO) -> tuple[str, int]:
    """Write and sync; returns the SHA-256 and the number of bytes."""
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
