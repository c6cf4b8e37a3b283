"""Every form of a dataset as blocks of JSONL: gz, zst, CSV, TSV, Parquet, Hugging Face, pandas.

All forms become lines, so that there is one reader, one index and one form of row. A record that
cannot be written as JSON becomes a line that starts with `REFUSED` and the reason: nothing is
dropped. In a table, text that looks like JSON is parsed in the columns `messages` and `tools`, and
for preference rows in `input` and the two outputs. Parquet, zst and saved Hugging Face datasets
need pyarrow: `pip install 'rftkit[data]'`. Not here: making rows from other shapes (`convert`), and
the meaning of a line (`rftkit.rows`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import shlex
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from rftkit.datasets.forms import KEYS
from rftkit.errors import InputError, MissingExtraError, RowError
from rftkit.graders.template import plain_value
from rftkit.jsondocuments import FORM_BYTES, document_form
from rftkit.jsontext import NestedTooDeeply, parse_json
from rftkit.strictjson import decoded, other_form, read_value
from rftkit.wording import counted

__all__ = ["REFUSED", "blocks_of_file", "blocks_of_frame", "is_document", "is_plain", "text_of"]

REFUSED = b"\x1e"
"""Starts the line of a record that cannot be JSON; not valid JSON itself."""

FIRST_BLOCK_BYTES = 128 * 1024  # small, so that the first page appears at once
BLOCK_BYTES = 4 * 1024**2
BLOCK_ROWS = 2000

ROWS_IN_A_CELL = 4
"""From so many lines on, a record whose lines all have as many cells as there are names is refused.
Two or three lines of text have so many commas by chance."""

TABLES = (".csv", ".tsv", ".parquet")
PACKINGS = (".gz", ".zst")
"""Endings of names, in any case, that are not plain lines; a table may be packed: `.csv.gz`."""

JSON_COLUMNS = KEYS["reinforcement"]
PREFERENCE_COLUMNS = KEYS["preference"]

Blocks = Iterator[tuple[bytes, int]]
"""Whole lines, and the bytes of the source read so far."""


def is_plain(path: Path) -> bool:
    """Whether the file itself has the lines."""
    return path.is_file() and not _endings(path)[0]


def blocks_of_file(path: Path) -> Blocks:
    """Yield the lines of a dataset file or folder.

    Raises:
        InputError: It cannot be read to its end; MissingExtraError: it needs pyarrow.
    """
    try:
        yield from _reader(path)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        if isinstance(error, InputError | MissingExtraError):
            raise
        raise InputError(f"{path}: cannot be read to its end: {error}") from error


def blocks_of_frame(frame: Any) -> Blocks:
    """Yield the rows of a pandas DataFrame; the position counts rows."""
    if len(set(map(str, frame.columns))) < len(frame.columns):
        raise InputError(f"two columns have the same name; found {', '.join(map(str, frame))}")
    for first in range(0, len(frame), BLOCK_ROWS):
        records = frame.iloc[first : first + BLOCK_ROWS].to_dict("records")
        end = first + len(records)
        yield from _joined(map(_line, records), lambda end=end: end)  # type: ignore[misc]


def is_document(path: Path) -> bool:
    """Whether a file is JSON over several lines, or one array, instead of one object per line."""
    packed, table = _endings(path)
    if table or not path.is_file():
        return False
    with _opened(path, packed) as (content, _):
        return document_form(content.read(FORM_BYTES)) is not None


def text_of(path: Path) -> str:
    """Return the whole text of a file, unpacked.

    Raises:
        InputError: it is not UTF-8.
    """
    with _opened(path, _endings(path)[0]) as (content, _):
        raw = b"".join(iter(lambda: content.read(BLOCK_BYTES), b""))
    return decoded(raw, path)


def _reader(path: Path) -> Blocks:
    if path.is_dir():
        return _folder(path)
    packed, table = _endings(path)
    if table == ".parquet":
        if packed != table:
            raise InputError(f"{path}: a Parquet file is compressed already; unpack it first")
        return _parquet(path)
    if table:
        return _table(path, packed, "\t" if table == ".tsv" else "")
    return _lines(path, packed)


def _endings(path: Path) -> tuple[str, str]:
    """Return the endings of a name that decide how to read it: packing (or table), and table.

    `.CSV.gz` is (.gz, .csv), `.tsv` is (.tsv, .tsv), `.jsonl.zst` is (.zst, "").
    """
    last = path.suffix.lower()
    if last in TABLES:
        return last, last
    if last not in PACKINGS:
        return "", ""
    inner = Path(path.stem).suffix.lower()
    return last, inner if inner in TABLES else ""


@contextmanager
def _opened(path: Path, packed: str) -> Iterator[tuple[Any, Callable[[], int]]]:
    """Open the unpacked content, and count the bytes read of the file itself."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb", buffering=0 if not packed else -1))
        content: Any = file
        if packed == ".gz":
            content = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif packed == ".zst":
            content = stack.enter_context(_pyarrow().CompressedInputStream(file, "zstd"))
        yield content, file.tell


def _lines(path: Path, packed: str) -> Blocks:
    with _opened(path, packed) as (content, position):
        is_first = True
        for block, done in _whole_lines(content, position):
            if is_first:
                _refuse_other_forms(block, path)
            is_first = False
            yield block, done


def _refuse_other_forms(block: bytes, path: Path) -> None:
    """Raise one error for a file that is not JSONL at all, instead of one per line."""
    _refuse_other_files(block, path, "JSONL")
    found = document_form(block)
    if found is None:
        return
    target = f"{path.name.split('.')[0] or 'rows'}-rows.jsonl"
    raise InputError(
        f"{path}: {found}, and each line must hold one object; "
        f"type: rftkit dataset convert {shlex.quote(str(path))} {shlex.quote(target)}"
    )


def _refuse_other_files(start: bytes, path: Path, wanted: str) -> None:
    """Raise one error for a file that is not text in UTF-8."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RowError("not valid UTF-8 (UTF-16); save the file as UTF-8", path=path, line=1)
    if what := other_form(start):
        raise InputError(f"{path}: not {wanted}: this is {what}")


def _whole_lines(file: Any, position: Callable[[], int]) -> Blocks:
    begun, size = list[bytes](), FIRST_BLOCK_BYTES  # the pieces of an unfinished line
    while block := file.read(size):
        size = min(2 * size, BLOCK_BYTES)
        if end := block.rfind(b"\n") + 1:
            begun, whole = [block[end:]], b"".join([*begun, block[:end]])
            yield whole, position()
            del whole
        else:
            begun.append(block)
    if rest := b"".join(begun):
        yield rest, position()


def _joined(lines: Iterable[bytes], position: Callable[[], int]) -> Blocks:
    """Join lines to blocks that end at a number of rows or at `BLOCK_BYTES`."""
    block, size = list[bytes](), 0
    for line in lines:
        block.append(line)
        size += len(line)
        if len(block) == BLOCK_ROWS or size >= BLOCK_BYTES:
            yield b"".join(block), position()
            block, size = [], 0
    yield b"".join(block), position()


def _table(path: Path, packed: str, delimiter: str) -> Blocks:
    """The records of a table; without a delimiter, the line of names shows which it is."""
    csv.field_size_limit(2**31 - 1)
    with _opened(path, packed if packed in PACKINGS else "") as (content, position):
        text = io.TextIOWrapper(
            io.BufferedReader(content) if isinstance(content, io.RawIOBase) else content,
            "utf-8-sig",
            "surrogateescape",
            newline="",
        )
        first = text.readline()
        _refuse_other_files(first.encode("utf-8", "surrogateescape"), path, "a table")
        if given := _SEPARATOR.fullmatch(first):
            delimiter, first = given[1], text.readline()
        delimiter = delimiter or _delimiter(first)
        lines = _RecordLines(chain([first], text), delimiter)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(records, [])
        except csv.Error as error:
            raise InputError(
                f"{path}:1: {lines.problem(error)}; it is in the line of names"
            ) from None
        lines.num_names = len(names)
        named = [name for name in names if name.strip()]
        if len(set(named)) < len(named):
            raise InputError(f"{path}: two columns have the same name; found {', '.join(named)}")
        yield from _joined(_csv_lines(names, records, lines, skipped=bool(given)), position)


_SEPARATOR = re.compile(r"sep=(.)\r?\n")
"""The first line of a table that Excel wrote for itself."""


def _delimiter(first: str) -> str:
    """The separator in the first line: a comma, unless another character is more frequent."""
    outside = "".join(first.split('"')[::2])
    return max(",;\t", key=outside.count)


class _RecordLines:
    """The lines of a table, and whether those of the record under way look like rows themselves.

    Where an opening quotation mark is too many, the next one closes its cell, many rows later. The
    rows in between are then text in one cell, and nothing else shows it.
    """

    def __init__(self, lines: Iterable[str], delimiter: str) -> None:
        self._lines, self._delimiter = iter(lines), delimiter
        self.num_names = 0
        self.begin()

    def begin(self) -> None:
        """Start on the next record."""
        self._num_lines, self._are_rows, self._are_over = 0, True, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._are_over = True
        line = next(self._lines)
        self._are_over = False
        self._num_lines += 1
        self._are_rows &= line.count(self._delimiter) == self.num_names - 1
        return line

    @property
    def hold_rows(self) -> bool:
        return self.num_names > 1 and self._are_rows and self._num_lines >= ROWS_IN_A_CELL

    def problem(self, error: csv.Error | None = None) -> str:
        """Why the record is not one: what the parser found, or else that its lines are rows."""
        others = self._num_lines - 1
        after = f"the {counted(others, 'line')} after this one" if others else ""
        if error is None:
            return (
                f"a quotation mark opens a cell, and the next one is {others} lines below, but "
                "each of these lines has as many cells as there are names: they look like rows. "
                "Remove the marks or write them twice; if the cell is right, save the table as "
                "JSON lines or Parquet"
            )
        if self._are_over:
            unread = f", so that {after} cannot be read" if after else ""
            return f"a quotation mark opens a cell and is never closed{unread}"
        if "expected after" not in str(error):
            return str(error)
        where = f" {counted(others, 'line')} below" if after else ""
        unread = f". With it, {after} cannot be read" if after else ""
        return (
            "a quotation mark opens a cell, and text follows the one that closes it"
            f"{where}; in a quoted cell, write each quotation mark twice{unread}"
        )


def _csv_lines(
    names: list[str], records: Any, lines: _RecordLines, *, skipped: int = 0
) -> Iterator[bytes]:
    """Records as lines with the same numbers; names and broken cells become blank lines.

    `skipped` lines are before those that `records` counts.
    """
    line = records.line_num
    yield b"\n" * (line + skipped)
    while True:
        lines.begin()
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield _refusal(lines.problem(error))
        else:
            yield _refusal(lines.problem()) if lines.hold_rows else _csv_line(names, cells)
        yield b"\n" * (records.line_num - line - 1)
        line = records.line_num


def _csv_line(names: list[str], cells: list[str]) -> bytes:
    if not cells:
        return b"\n"
    if len(cells) != len(names):
        found, wanted = counted(len(cells), "cell"), counted(len(names), "name")
        return _refusal(f"the record has {found}, the first line {wanted}")
    pairs = enumerate(zip(names, cells, strict=True), 1)
    return _line(
        {
            name if name.strip() else f"unnamed {at}": cell
            for at, (name, cell) in pairs
            if name.strip() or cell.strip()  # spreadsheets write empty columns without a name
        }
    )


def _parquet(path: Path) -> Blocks:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    with _arrow_errors(path, pyarrow), parquet.ParquetFile(path) as file:
        size, total, done = path.stat().st_size, max(1, file.metadata.num_rows), 0
        groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
        at_once = _rows_at_once(total, sum(group.total_byte_size for group in groups))
        for batch in file.iter_batches(batch_size=at_once):
            done += len(batch)
            yield b"".join(map(_line, batch.to_pylist())), size * done // total


def _folder(path: Path) -> Blocks:
    """Read a folder that `Dataset.save_to_disk` of Hugging Face `datasets` wrote."""
    pyarrow = _pyarrow()
    state_path = path / "state.json"
    if not state_path.is_file():
        splits = ", ".join(sorted(each.parent.name for each in path.glob("*/state.json")))
        raise InputError(
            f"{path} holds the splits {splits}; open one of them, such as {path}/…"
            if splits
            else f"{path}: a folder must be a dataset saved by Hugging Face `save_to_disk`"
        )
    done = 0
    for entry in parse_json(state_path.read_bytes())["_data_files"]:
        data = path / entry["filename"]
        with _arrow_errors(data, pyarrow), pyarrow.OSFile(str(data)) as file:
            for batch in pyarrow.ipc.open_stream(file):
                for part in _slices(batch):
                    yield b"".join(map(_line, part.to_pylist())), done + file.tell()
        done += data.stat().st_size


def _slices(batch: Any) -> Iterator[Any]:
    at_once = _rows_at_once(len(batch), batch.nbytes)
    return (batch.slice(first, at_once) for first in range(0, len(batch), at_once))


def _rows_at_once(num_rows: int, num_bytes: int) -> int:
    """Estimate how many rows of a table have `BLOCK_BYTES`."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES * num_rows // max(1, num_bytes)))


@contextmanager
def _arrow_errors(path: Path, pyarrow: Any) -> Iterator[None]:
    try:
        yield
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: cannot be read to its end: {error}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    return pyarrow


def _line(record: Mapping[Any, Any]) -> bytes:
    is_preference = "preferred_output" in record or "preferred_completion" in record
    in_json = PREFERENCE_COLUMNS if is_preference else JSON_COLUMNS
    try:
        values = {str(key): _cell(key, value, in_json) for key, value in record.items()}
    except _FlawedCell as error:
        return _refusal(str(error))
    except RecursionError as error:
        return _refusal(f"the record cannot be written as JSON: {error}")
    try:
        return bytes(_encode(values)) + b"\n"
    except UnicodeEncodeError:  # not UTF-8: written unchanged, and refused when read
        raw = json.dumps(values, ensure_ascii=False, default=plain_value)
        return _unchanged(raw) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return _refusal(f"the record cannot be written as JSON: {error}")


def _unchanged(text: str) -> bytes:
    """The original bytes of a text that was decoded with `surrogateescape`; other
    values unchanged.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _cell(key: Any, value: Any, in_json: Collection[str]) -> Any:
    if not isinstance(value, str):
        value = _as_json(key, value)
    if key not in in_json or not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = parse_json(value)
    except NestedTooDeeply as error:
        raise _FlawedCell(f"the cell `{key}`: {error}") from None
    except ValueError:
        return value
    try:
        return read_value(value.encode(), lambda why: _FlawedCell(f"the cell `{key}` is {why}"))
    except UnicodeEncodeError:  # the file is not UTF-8; the error for the line says so
        return found


def _as_json(key: Any, value: Any) -> Any:
    """A value with its bytes as text; the encoder would write base64, and null for infinity."""
    match value:
        case bytes() | bytearray():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                raise _FlawedCell(f"the cell `{key}` has bytes that are not text (UTF-8)") from None
        case Decimal() if value.is_nan():
            return None
        case float() | Decimal() if math.isinf(value):
            raise _FlawedCell(f"the cell `{key}` has an infinite number, which JSON cannot write")
        case dict():
            return {name: _as_json(key, each) for name, each in value.items()}
        case list() | tuple():
            return [_as_json(key, each) for each in value]
    return value


class _FlawedCell(Exception):
    """A cell has JSON on which readers do not agree."""


_encode = msgspec.json.Encoder(enc_hook=plain_value).encode


def _refusal(reason: str) -> bytes:
    return REFUSED + " ".join(reason.split()).encode("utf-8", "replace") + b"\n"
