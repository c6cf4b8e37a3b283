"""Dataset files: read one, upload one, open a folder of them. Not here: whether the rows are good.

A dataset folder holds train.jsonl, valid.jsonl, test.jsonl, grader.json and, where answers are
JSON, response_format.json. `bundled` says where those are that come with rftkit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.bundled import bundled_folder
from rftkit.datasets.rowfile import Rows, open
from rftkit.errors import InputError, NotFoundError
from rftkit.rows import Row
from rftkit.strictjson import read_document

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI
    from openai.types import FileObject

__all__ = [
    "MAX_UPLOAD_BYTES",
    "Dataset",
    "bundled",
    "bundled_names",
    "existing",
    "load",
    "read",
    "read_json",
    "upload",
]

MAX_UPLOAD_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset folder, opened."""

    name: str
    train: Path
    valid: Path
    test: Path
    grader: dict[str, Any]
    """The grader spec, as on the wire."""
    response_format: dict[str, Any] | None
    """What constrains every answer; None for free text."""


def read(source: str | Path | pd.DataFrame) -> list[Row]:
    """Read all rows of a dataset that fits into memory; see `open` for the forms it may have.

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
            raise each.refusal or InputError(f"{rows.name}: row {each.number} cannot be used")
        yield each.row


def _no_rows(rows: Rows) -> InputError:
    return InputError(f"{rows.name} holds no rows; each line must be one JSON object")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object, such as a grader or a response format."""
    value = read_document(existing(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected one JSON object")
    return value


def upload(client: OpenAI, path: str | Path) -> FileObject:
    """Upload a JSONL file for fine-tuning, after every row of it was checked here.

    The rows may have any of the three forms: RFT rows, supervised rows, or preference rows. All
    rows of a file must have the form of its first rows.

    Raises:
        InputError: The file is missing, empty, over 512 MiB or not named `.jsonl`.
        RowError: A line is not a usable row; nothing was sent.
    """
    path = existing(path)
    if path.suffix.lower() != ".jsonl":
        raise InputError(
            f"{path}: fine-tuning takes .jsonl files only, found {path.suffix!r}; "
            f"type: rftkit dataset convert {path} {path.stem}.jsonl"
        )
    if (size := path.stat().st_size) > MAX_UPLOAD_BYTES:
        raise InputError(
            f"{path} has {size / 1024**2:,.0f} MiB; an upload may have "
            f"{MAX_UPLOAD_BYTES // 1024**2} MiB, so split the file: rftkit dataset split"
        )
    with open(path, form=None) as rows:
        if not sum(1 for _ in _usable(rows)):
            raise _no_rows(rows)
    return client.files.create(file=path, purpose="fine-tune")


def load(folder: str | Path) -> Dataset:
    """Open a dataset folder; its rows are not read yet."""
    folder = Path(folder)
    format_path = folder / "response_format.json"
    return Dataset(
        name=folder.resolve().name,
        train=existing(folder / "train.jsonl"),
        valid=existing(folder / "valid.jsonl"),
        test=existing(folder / "test.jsonl"),
        grader=read_json(folder / "grader.json"),
        response_format=read_json(format_path) if format_path.exists() else None,
    )


def bundled(name: str) -> Dataset:
    """Open a dataset that comes with rftkit: security_review, contract_facts or tiny_copy.

    Raises:
        NotFoundError: There is none of that name, or rftkit was installed without them.
    """
    known = bundled_names()
    if name not in known:
        raise NotFoundError(f"there is no dataset {name!r}; there are {', '.join(known)}")
    return load(bundled_folder("datasets") / name)


def bundled_names() -> list[str]:
    """The names that `bundled` takes.

    Raises:
        NotFoundError: rftkit was installed without its datasets.
    """
    return sorted(each.parent.name for each in bundled_folder("datasets").glob("*/grader.json"))


def existing(path: str | Path) -> Path:
    """The path of a file that is there; raises InputError otherwise."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    return path
