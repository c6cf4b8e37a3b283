"""Every form of a dataset as blocks of JSONL: gz, zst, CSV, Parquet, Hugging Face, pandas.

Whatever comes in leaves as lines, so that there is one reader, one index and one row form. A record
that cannot be written as a line becomes a line that starts with `REFUSED` and says why: nothing is
dropped. In a table, a text in the columns `messages` or `tools` that looks like JSON is read as it.
Parquet, zst and saved Hugging Face datasets need pyarrow: `pip install 'rftkit[data]'`.
Not here: making rows out of other shapes (`convert`), and the meaning of a line (`rftkit.rows`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from rftkit.errors import InputError, MissingExtraError

__all__ = ["REFUSED", "SUFFIXES", "blocks_of_file", "blocks_of_frame", "is_plain"]

REFUSED = b"\x1e"
"""Starts a line that stands for a record which has no JSON; never valid in JSON itself."""

FIRST_BLOCK_BYTES = 128 * 1024  # small, so that the first page is there at once
BLOCK_BYTES = 4 * 1024**2
BLOCK_ROWS = 2000

Blocks = Iterator[tuple[bytes, int]]
"""Whole lines, and the bytes of the source that were read for all blocks so far."""


def is_plain(path: Path) -> bool:
    """Whether the file itself holds the lines."""
    return path.is_file() and path.suffix not in SUFFIXES


def blocks_of_file(path: Path) -> Blocks:
    """The lines of a dataset file or folder.

    Raises:
        InputError: It cannot be read to its end; MissingExtraError: it needs pyarrow.
    """
    reader = _folder if path.is_dir() else SUFFIXES.get(path.suffix, _plain)
    try:
        yield from reader(path)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        if isinstance(error, InputError | MissingExtraError):
            raise
        raise InputError(f"{path}: cannot be read to its end: {error}") from error


def blocks_of_frame(frame: Any) -> Blocks:
    """The rows of a pandas DataFrame; the position counts rows."""
    if len(set(map(str, frame.columns))) < len(frame.columns):
        raise InputError(f"two columns have the same name; found {', '.join(map(str, frame))}")
    for first in range(0, len(frame), BLOCK_ROWS):
        records = frame.iloc[first : first + BLOCK_ROWS].to_dict("records")
        yield b"".join(map(_line, records)), first + len(records)


def _plain(path: Path) -> Blocks:
    with path.open("rb", buffering=0) as file:
        yield from _whole_lines(file, file.tell)


def _gzip(path: Path) -> Blocks:
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as content:
        yield from _whole_lines(content, file.tell)


def _zstd(path: Path) -> Blocks:
    pyarrow = _pyarrow()
    with path.open("rb") as file, pyarrow.CompressedInputStream(file, "zstd") as content:
        yield from _whole_lines(content, file.tell)


def _whole_lines(file: Any, position: Callable[[], int]) -> Blocks:
    rest, size = b"", FIRST_BLOCK_BYTES
    while block := file.read(size):
        size = min(2 * size, BLOCK_BYTES)
        if end := block.rfind(b"\n") + 1:
            yield rest + block[:end], position()
            rest = block[end:]
        else:
            rest += block
    if rest:
        yield rest, position()


def _csv(path: Path) -> Blocks:
    csv.field_size_limit(2**31 - 1)
    with path.open("rb") as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        records = csv.reader(text)
        names = next(records, [])
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two columns have the same name; found {', '.join(names)}")
        lines: list[bytes] = []
        for cells in records:
            lines.append(_csv_line(names, cells))
            if len(lines) == BLOCK_ROWS:
                yield b"".join(lines), file.tell()
                lines = []
        yield b"".join(lines), file.tell()


def _csv_line(names: list[str], cells: list[str]) -> bytes:
    if not cells:
        return b"\n"
    if len(cells) != len(names):
        return _refusal(f"the record has {len(cells)} cells, the first line {len(names)} names")
    return _line(dict(zip(names, cells, strict=True)))


def _parquet(path: Path) -> Blocks:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    with _arrow_errors(path, pyarrow), parquet.ParquetFile(path) as file:
        size, total, done = path.stat().st_size, max(1, file.metadata.num_rows), 0
        for batch in file.iter_batches(batch_size=BLOCK_ROWS):
            done += len(batch)
            yield b"".join(map(_line, batch.to_pylist())), size * done // total


def _folder(path: Path) -> Blocks:
    """What `Dataset.save_to_disk` of Hugging Face `datasets` wrote."""
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
    for entry in json.loads(state_path.read_bytes())["_data_files"]:
        data = path / entry["filename"]
        with _arrow_errors(data, pyarrow), pyarrow.OSFile(str(data)) as file:
            for batch in pyarrow.ipc.open_stream(file):
                for part in _slices(batch):
                    yield b"".join(map(_line, part.to_pylist())), done + file.tell()
        done += data.stat().st_size


def _slices(batch: Any) -> Iterator[Any]:
    return (batch.slice(first, BLOCK_ROWS) for first in range(0, len(batch), BLOCK_ROWS))


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


SUFFIXES: Mapping[str, Callable[[Path], Blocks]] = {
    ".gz": _gzip,
    ".zst": _zstd,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Readers by the end of the name; everything else is plain lines."""


def _line(record: Mapping[Any, Any]) -> bytes:
    values = {str(key): _cell(key, value) for key, value in record.items()}
    try:
        return bytes(_encode(values)) + b"\n"
    except UnicodeEncodeError:  # bytes that are no UTF-8: written as they were, refused when read
        raw = json.dumps(values, ensure_ascii=False, default=_plain_value)
        return raw.encode("utf-8", "surrogatepass") + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return _refusal(f"the record cannot be written as JSON: {error}")


def _cell(key: Any, value: Any) -> Any:
    if key in ("messages", "tools") and isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _plain_value(value: Any) -> Any:
    """What is not JSON as what is: numpy and pandas values, moments; a missing value as null."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    for name in ("tolist", "isoformat"):  # numpy's arrays and scalars; pandas' moments
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"a value of type {type(value).__name__} has no JSON")


_encode = msgspec.json.Encoder(enc_hook=_plain_value).encode


def _refusal(reason: str) -> bytes:
    return REFUSED + " ".join(reason.split()).encode("utf-8", "replace") + b"\n"
