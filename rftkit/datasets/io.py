"""Dataset files: read one, upload one, open a folder of them. Not here: checking the rows.

A dataset folder holds train.jsonl and, where they exist, valid.jsonl, test.jsonl, grader.json and,
where answers are JSON, response_format.json; where rows have tools, tools.json. `places` says which
file is which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rftkit.bundled import bundled_folder
from rftkit.datasets.places import NAMES, STREAM, bundled_names, find, parts_of
from rftkit.datasets.proposals import command_for, target_for
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.rowlines import NumberedRow
from rftkit.errors import InputError, NotFoundError, RowError, nearest_name
from rftkit.jsondocuments import read_document
from rftkit.rows import Row

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI
    from openai.types import FileObject

__all__ = [
    "MAX_UPLOAD_BYTES",
    "Complete",
    "Dataset",
    "bundled",
    "existing",
    "load",
    "read",
    "read_json",
    "read_tools",
    "upload",
    "upload_name",
]

MAX_UPLOAD_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset that was opened: a folder with its parts, or one file of rows. A part that is
    missing is None.
    """

    name: str
    train: Path
    valid: Path | None = None
    test: Path | None = None
    grader: dict[str, Any] | None = None
    """The grader spec, as on the wire."""
    response_format: dict[str, Any] | None = None
    """The format of every answer; None for free text."""
    tools: list[dict[str, Any]] | None = None
    """`tools` of a job: where the calls of the rows' functions go; None without tools."""

    files: tuple[Path, ...] = ()
    """All files that were read: nothing may be written over them."""

    @property
    def missing(self) -> list[str]:
        """The names of the parts that are not there; a response format is never missing."""
        return [part for part in ("valid", "test", "grader") if getattr(self, part) is None]

    def need(self, *parts: str) -> Self:
        """This dataset, if it has these parts.

        Raises:
            InputError: Names those that are not there, and what makes them.
        """
        if absent := [part for part in parts if getattr(self, part) is None]:
            advice = [_MAKE[part].format(train=self.train) for part in absent]
            raise InputError(
                f"{self.name} has no {' and no '.join(absent)}; " + "; ".join(dict.fromkeys(advice))
            )
        return self


class Complete(Dataset):
    """A dataset with all its parts; only the types differ."""

    if TYPE_CHECKING:
        valid: Path
        test: Path
        grader: dict[str, Any]


_SPLIT = "to make valid.jsonl and test.jsonl, type: rftkit dataset split {train} FOLDER"
_MAKE = {
    "valid": _SPLIT,
    "test": _SPLIT,
    "grader": "write one as grader.json, for example in the notebook 01_author_grader",
    "response_format": "write one as response_format.json",
}


def read(source: str | Path | pd.DataFrame) -> list[Row]:
    """Read all rows of a dataset that fits into memory; `open` lists the forms it may have.

    Raises:
        RowError: At the first line that is not a usable row, with file and line.
        InputError: The source is missing, cannot be read to its end, or holds no rows.
    """
    with open(source) as rows:
        found = list(_usable(rows))
    if not found:
        raise _no_rows(rows)
    return found


def _usable(rows: Rows) -> Iterator[Row]:
    for each in rows:
        if each.row is None:
            raise _unusable(each, rows)
        yield each.row


def _unusable(each: NumberedRow, rows: Rows) -> InputError:
    """Why a row cannot be used, and the command that would make rows of the file."""
    refusal = each.refusal or RowError("the row cannot be used", path=rows.name, line=each.line)
    command = command_for(rows) if (refusal.param or "").startswith("messages") else None
    if command is None:
        return refusal
    words = refusal.message.removeprefix(f"{rows.name}:{each.line}: ")
    words += f"; to make rows of the file, type: {command}"
    return RowError(words, path=rows.name, line=each.line, param=refusal.param)


def _no_rows(rows: Rows) -> InputError:
    return InputError(f"{rows.name} holds no rows; each line must be one JSON object")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object, such as a grader or a response format."""
    value = read_document(existing(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected one JSON object")
    return value


def read_tools(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON file that holds a list of objects: `tools` of a job."""
    value = read_document(existing(path))
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InputError(f"{path}: expected a JSON list of {{name, server_url, headers}}")
    return value


def upload(client: OpenAI, path: str | Path, *, name: str | None = None) -> FileObject:
    """Check every row of a JSONL file, then upload it for fine-tuning.

    The rows may have any of the three forms: RFT rows, supervised rows, or preference rows. All
    rows of a file must have the form of its first rows.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        path: The file.
        name: Its name on the service; default `upload_name(path)`.

    Raises:
        InputError: The file is missing, empty, over 512 MiB or not named `.jsonl`.
        RowError: A line is not a usable row; nothing was uploaded.
    """
    path = existing(path)
    if path.suffix.lower() != ".jsonl":
        raise InputError(
            f"{path}: fine-tuning takes .jsonl files only, found {path.suffix!r}; "
            f"type: {_conversion(path)}"
        )
    if (size := path.stat().st_size) > MAX_UPLOAD_BYTES:
        raise InputError(
            f"{path} has {size / 1024**2:,.0f} MiB; an upload may have "
            f"{MAX_UPLOAD_BYTES // 1024**2} MiB, so split the file: rftkit dataset split"
        )
    with open(path, form=None) as rows:
        if not sum(1 for _ in _usable(rows)):
            raise _no_rows(rows)
    with path.open("rb") as content:
        named = (name or upload_name(path), content)
        return client.files.create(file=named, purpose="fine-tune")


def upload_name(path: str | Path) -> str:
    """`tickets-train.jsonl` for `tickets/train.jsonl`: a list of jobs names data by its files.

    A file with a name of its own keeps it.
    """
    path = Path(path)
    folder = path.absolute().parent
    stem = path.name.partition(".")[0].lower()
    is_part = any(stem in names for names in NAMES.values())
    return f"{folder.name}-{path.name}" if is_part and folder != Path.home() else path.name


def _conversion(path: Path) -> str:
    with open(path) as rows:
        return command_for(rows) or f"rftkit dataset convert {path} {target_for(str(path))}"


def load(source: str | Path) -> Dataset:
    """Open a dataset: a folder, one file of rows, or a bundled one; its rows are not read yet.

    What a folder lacks is None, see `Dataset.missing`; only training rows have to be there.

    Raises:
        InputError: There is no such dataset, or a part of it cannot be read.
    """
    path = find(source)
    if not path.is_dir():
        return Dataset(path.name.split(".")[0], path, files=(path,))
    specs = {name: path / f"{name}.json" for name in ("grader", "response_format")}
    read: dict[str, Any] = {name: read_json(file) for name, file in specs.items() if file.exists()}
    specs["tools"] = path / "tools.json"
    if specs["tools"].exists():
        read["tools"] = read_tools(specs["tools"])
    parts = parts_of(path)
    files = (*filter(None, parts.values()), *(specs[name] for name in read))
    return Dataset(path.resolve().name, **parts, **read, files=files)  # type: ignore[arg-type]


def bundled(name: str) -> Dataset:
    """Open a dataset that comes with rftkit, such as security_review or tiny_copy.

    Raises:
        NotFoundError: There is none of that name, or rftkit was installed without them.
    """
    known = bundled_names()
    if name not in known:
        raise NotFoundError(f"there is no dataset {name!r}; {nearest_name(name, known)}")
    return load(bundled_folder("datasets") / name)


def existing(path: str | Path) -> Path:
    """Return the path of an existing file; raise InputError if there is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        if path.exists() and not path.is_dir():
            raise InputError(STREAM.format(path))
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    return path
