"""An open dataset of any size: pages, search and frames while its index is still being built.

`open(source)` returns at once. A thread finds where the lines start (`lineindex`); for any form
other than plain JSONL, the same thread first unpacks the source into a cached file of lines
(`unpack`). Rows are decoded on request and not kept in memory. Not here: problems of the rows
(`check`).
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rftkit import settings
from rftkit.datasets.forms import main_form
from rftkit.datasets.lineindex import LineIndex, Stamp, stamp
from rftkit.datasets.places import find, rows_file
from rftkit.datasets.rowlines import NumberedRow, Stretch, lines_in, numbered_rows, picker
from rftkit.datasets.search import needles, rows_with, says
from rftkit.datasets.unpack import Blocks, blocks_of_file, blocks_of_frame, is_plain
from rftkit.errors import InputError
from rftkit.examples import Form
from rftkit.privacy import make_home
from rftkit.rows import BOM

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rows", "open"]

KEEP_FROM_BYTES = 16 * 1024**2  # below this, indexing again is as fast as loading an index
FORM_ROWS = 50  # the first rows, which show the form of a file
STRETCH_BYTES = 4 * 1024**2  # for another process
READ_BYTES = 256 * 1024  # read and decoded here: fits in the processor's cache
KEPT_LINES, KEPT_INDEX = ".3.jsonl", ".3.npy"  # 3: strict about quotation marks
FRAME = "DataFrame"
_TAKEN = re.compile(r"(item\.)*(line|refusal)")  # `item.line` too, so that names stay unique


def open(source: str | Path | pd.DataFrame, *, form: Form | None = "reinforcement") -> Rows:
    """Open a dataset: JSONL (plain, .gz, .zst), CSV, Parquet, a saved Hugging Face one, a frame.

    A folder, or the name of a bundled dataset, means its training rows. `hf://owner/name:split`
    is a dataset of the Hugging Face hub, fetched by the package `datasets`.

    Returns at once and builds the index in the background. Problems of the whole source, such as a
    truncated archive, are raised by `Rows.wait` and by every method that has to wait.

    Args:
        source: A path, or a frame.
        form: The form that its rows must have (see `forms`); None for the form that most of its
            first rows have.

    Raises:
        InputError: There is no such file or folder.
    """
    return Rows(source, form)


class Rows:
    """The rows of a dataset; see `open`. It may be used from several threads."""

    def __init__(
        self, source: str | Path | pd.DataFrame, form: Form | None = "reinforcement"
    ) -> None:
        self._form = form
        self._index = LineIndex()
        self._grew = threading.Condition()
        self._failure: Exception | None = None
        self._is_complete = self._is_closed = False
        self._done_bytes = 0
        self._stamp: Stamp | None = None
        if isinstance(source, str | Path):
            self._open_path(rows_file(find(source)))
        else:
            self.name = FRAME
            """How messages call it: the path as given, or `DataFrame`."""
            self._total_bytes = len(source)
            self._unpack(blocks_of_frame(source), Path(tempfile.gettempdir()))

    def _open_path(self, path: Path) -> None:
        self.name, self._stamp = str(path), stamp(path)
        self._total_bytes = self._stamp.size
        lines_path = path if is_plain(path) else self._stamp.kept(KEPT_LINES)
        kept = LineIndex.load(self._stamp.kept(KEPT_INDEX), lines_path)
        if kept is not None:
            self._index, self._is_complete, self._done_bytes = kept, True, self._total_bytes
            self._attach(lines_path)
        elif is_plain(path):
            self._attach(path)
            self._start(blocks_of_file(path), None)
        else:
            make_home(settings.home())
            self._unpack(blocks_of_file(path), lines_path.parent)

    def _unpack(self, blocks: Blocks, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=folder, prefix=".rows-", suffix=".jsonl")
        self._attach(Path(draft))
        # a saved draft was renamed, and is no longer there
        weakref.finalize(self, Path(draft).unlink, missing_ok=True)
        self._start(blocks, handle)

    def _attach(self, lines_path: Path) -> None:
        self.lines_path = lines_path
        """The file that holds the lines: the source itself, or what it was unpacked to."""
        self._file = os.open(lines_path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def _start(self, blocks: Blocks, copy: int | None) -> None:
        self._thread = threading.Thread(
            target=_follow, args=(weakref.ref(self), blocks, copy), name="rows", daemon=True
        )
        self._thread.start()

    def _take(self, block: bytes, done_bytes: int) -> None:
        with self._grew:
            self._index.feed(block)
            self._done_bytes = done_bytes
            self._grew.notify_all()

    def _finish(self, failure: Exception | None) -> None:
        if failure is None and self._stamp is not None:
            with suppress(OSError):  # without a writable home, it is built again next time
                self._keep(self._stamp)
        with self._grew:
            self._failure, self._is_complete = failure, True
            self._grew.notify_all()

    def _keep(self, state: Stamp) -> None:
        if stamp(state.path) != state:
            return
        make_home(settings.home())
        if self.lines_path != Path(self.name):
            os.replace(self.lines_path, state.kept(KEPT_LINES))
            self.lines_path = state.kept(KEPT_LINES)
        elif state.size < KEEP_FROM_BYTES:
            return
        self._index.save(state.kept(KEPT_INDEX))
        state.drop_older()

    def __len__(self) -> int:
        """Return the number of rows found so far: all of them when `is_complete`."""
        return self._index.num_rows

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[NumberedRow]:
        """Yield every row in order, waiting for the index where necessary.

        Raises:
            InputError: The source cannot be read to its end.
        """
        for first, stop in self._stretches(READ_BYTES):
            yield from self._read(first, stop)

    @property
    def form(self) -> Form:
        """The form that the rows must have; one that was not named is found in the first rows."""
        if self._form is None:
            self._wait_past(FORM_ROWS - 1)
            block, _ = self._block(0, min(FORM_ROWS, len(self))) if len(self) else (b"", None)
            self._form = main_form(map(_decoded, lines_in(block.removeprefix(BOM))))
        return self._form

    def require(self, form: Form) -> None:
        """Read the rows as rows of this form from now on."""
        self._form = form

    @property
    def is_complete(self) -> bool:
        """Whether the whole source was read, successfully or not (see `wait`)."""
        return self._is_complete

    def progress(self) -> tuple[int, int]:
        """Return the bytes read so far and the bytes of the source; for a frame, rows."""
        return self._done_bytes, self._total_bytes

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the index is complete; False when `timeout` seconds were not enough.

        Raises:
            InputError: The source cannot be read to its end; earlier rows can still be read.
        """
        with self._grew:
            done = self._grew.wait_for(lambda: self._is_complete, timeout)
        if self._failure is not None:
            raise self._failure
        return done

    def page(self, start: int, count: int) -> list[NumberedRow]:
        """Return up to `count` rows from number `start` on, usable or refused.

        Waits until they are found; for the first page that takes milliseconds.

        Raises:
            InputError: The source changed, or ends before these rows.
        """
        self._wait_past(start + count - 1)
        if start >= len(self) and self._failure is not None:
            raise self._failure
        return list(self._read(max(0, start), min(start + count, len(self))))

    def line(self, number: int) -> int:
        """Return the line of a row, counted from 1; in Parquet or a frame, the record."""
        return self._index.line(number)

    def search(
        self,
        text: str,
        keys: Sequence[str] | None = None,
        limit: int = 1000,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[int]:
        """Return the numbers of the rows that contain a text, in order, ignoring case.

        Args:
            text: The text, which may be anywhere in the raw line.
            keys: Search only the values of these keys of the row.
            limit: Stop after this many rows.
            progress: Called regularly with the rows searched and the rows found so far.
        """
        wanted, found = needles(text), list[int]()
        for first, stop in self._stretches():
            block, starts = self._block(first, stop)
            hits = [first + each for each in rows_with(block, starts, wanted)]
            if keys is not None:
                hits = [number for number in hits if self._says(number, text, keys)]
            found += hits
            if progress is not None:
                progress(stop, len(self))
            if len(found) >= limit:
                break
        return found[:limit]

    def columns(
        self, keys: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, list[Any]]:
        """Return the values of some keys in every row. Nothing else is decoded or checked.

        Args:
            keys: Keys of the rows.
            progress: Called regularly with the rows read and the rows found so far.

        Returns:
            For each key a list with one entry per row: None where the key is missing or the line
            is not JSON.

        Raises:
            InputError: The source cannot be read to its end.
        """
        pick = picker(keys)
        picked: list[tuple[Any, ...]] = []
        for first, stop in self._stretches(READ_BYTES):
            picked += map(pick, lines_in(self._block(first, stop)[0]))
            if progress is not None:
                progress(stop, len(self))
        columns = map(list, zip(*picked, strict=True)) if picked else ([] for _ in keys)
        return dict(zip(keys, columns, strict=True))

    def rows_at(self, numbers: Sequence[int]) -> list[NumberedRow]:
        """Return rows by their numbers, in the given order, all in memory at once.

        Raises:
            InputError: There is no row with this number.
        """
        return list(self.each_at(numbers))

    def each_at(self, numbers: Iterable[int]) -> Iterator[NumberedRow]:
        """Yield rows by their numbers.

        Raises:
            InputError: There is no row with this number.
        """
        return map(self._one, numbers)

    def lines_at(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """Yield the raw lines of rows by their numbers.

        Raises:
            InputError: There is no row with this number.
        """
        for number in numbers:
            self._check_number(number)
            [line] = lines_in(self._block(number, number + 1)[0])
            yield line if number else line.removeprefix(BOM)

    def frame(self, numbers: Sequence[int]) -> pd.DataFrame:
        """Return rows as a frame: indexed by number, with a column per key, `line` and `refusal`.

        A row's own key with one of these names becomes the column `item.line` or `item.refusal`.

        Raises:
            InputError: There is no row with this number.
        """
        import pandas as pd

        rows = self.rows_at(numbers)
        records = [
            {"line": each.line, "refusal": each.refusal and str(each.refusal)}
            | {_column(key): value for key, value in (each.row.item if each.row else {}).items()}
            for each in rows
        ]
        index = pd.Index(list(numbers), name="row")
        return pd.DataFrame(records, index=index, columns=None if records else ["line", "refusal"])

    def close(self) -> None:
        """Stop reading and close the file."""
        self._is_closed = True
        if hasattr(self, "_thread") and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_past(self, number: int) -> bool:
        """Wait until row `number` is found; return False when there is none."""
        with self._grew:
            self._grew.wait_for(lambda: self._is_complete or len(self) > number)
        return len(self) > number

    def stretches(self) -> Iterator[Stretch]:
        """Yield all rows in runs of a few megabytes, for other processes to read.

        Raises:
            InputError: The source cannot be read to its end.
        """
        self.wait()
        for first, stop in self._stretches():
            start, end = self._index.span(first, stop)
            lines = self._index.lines[first:stop]
            yield Stretch(self.name, self.lines_path, start, end, first, lines, self.form)

    def _stretches(self, target_bytes: int = STRETCH_BYTES) -> Iterator[tuple[int, int]]:
        first = 0
        while self._wait_past(first):
            with self._grew:
                stop = self._index.row_at(int(self._index.starts[first]) + target_bytes, first)
            yield first, stop
            first = stop
        if self._failure is not None:
            raise self._failure

    def _block(self, first: int, stop: int) -> tuple[bytes, Any]:
        """Return the bytes of some rows, and the offset of each row in them."""
        with self._grew:
            start, end = self._index.span(first, stop)
            starts = self._index.starts[first:stop] - start
        block = os.pread(self._file, end - start, start)
        if len(block) < end - start or self._has_changed():
            raise InputError(f"{self.name} changed while it was open; open it again")
        return block, starts

    def _has_changed(self) -> bool:
        if self._stamp is None or self.lines_path != Path(self.name):
            return False
        now = os.fstat(self._file)
        return (now.st_size, now.st_mtime_ns) != (self._stamp.size, self._stamp.mtime_ns)

    def _read(self, first: int, stop: int) -> Iterator[NumberedRow]:
        if first >= stop:
            return
        lines = self._index.lines[first:stop].tolist()
        yield from numbered_rows(self._block(first, stop)[0], first, lines, self.name, self.form)

    def _one(self, number: int) -> NumberedRow:
        self._check_number(number)
        return next(self._read(number, number + 1))

    def _check_number(self, number: int) -> None:
        if number < 0 or not self._wait_past(number):
            raise InputError(f"{self.name} has no row {number}; it has {len(self):,}, from 0")

    def _says(self, number: int, text: str, keys: Sequence[str]) -> bool:
        row = next(self._read(number, number + 1)).row
        return row is not None and any(says(row.item.get(key, ""), text) for key in keys)


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _column(key: str) -> str:
    return f"item.{key}" if _TAKEN.fullmatch(key) else key


def _follow(rows_of: weakref.ref[Rows], blocks: Blocks, copy: int | None) -> None:
    """Run in the thread: feed the index block by block while the rows are in use."""
    failure: Exception | None = None
    try:
        for block, done_bytes in blocks:
            rows = rows_of()
            if rows is None or rows._is_closed:
                break
            if copy is not None:
                _write(copy, block)
            rows._take(block, done_bytes)
            del rows
    except Exception as error:  # raised again in `wait`
        failure = error
    finally:
        if copy is not None:
            os.close(copy)
    if (rows := rows_of()) is not None:
        if rows._is_closed and failure is None:
            failure = InputError(f"{rows.name} was closed before it was read to its end")
        rows._finish(failure)


def _write(file: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]
