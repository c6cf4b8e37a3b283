"""The data of a ladder: a dataset folder, a bundled dataset by its name, or files with their specs.

Not here: whether the rows are any good (`datasets.check`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rftkit import datasets
from rftkit.datasets.io import Complete, existing
from rftkit.errors import InputError
from rftkit.rows import Row

__all__ = ["open_data", "rows_of"]


def open_data(
    source: str | Path,
    *,
    grader: str | Path | None = None,
    response_format: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    needs_test: bool = True,
) -> Complete:
    """Open what a command names as its data; rows are not read yet.

    Args:
        source: A dataset folder, the name of a bundled dataset, or a file of training rows.
        grader: A JSON file; default the folder's own.
        response_format: A JSON file; default the folder's own.
        valid: A file of validation rows; default the folder's own.
        test: A file of test rows; default the folder's own.
        needs_test: Whether test rows must be there.

    Raises:
        InputError: Something is missing; the message names the option.
    """
    folder = datasets.load(source)
    parts = ("valid", "test", "grader", "response_format")
    found: dict[str, Any] = {name: getattr(folder, name) for name in parts}
    named = tuple(Path(each) for each in (grader, response_format, valid, test) if each is not None)
    for option, given in (("grader", grader), ("response_format", response_format)):
        if given is not None:
            found[option] = datasets.read_json(given)
    for option, given in (("valid", valid), ("test", test)):
        if given is not None:
            found[option] = existing(given)
    needed = ("grader", "valid", "test") if needs_test else ("grader", "valid")
    if absent := [f"--{option}" for option in needed if found[option] is None]:
        raise InputError(f"{source} is not complete; also give {', '.join(absent)}")
    if found["test"] is None:
        found["test"] = found["valid"]
    return Complete(name=folder.name, train=folder.train, files=(*folder.files, *named), **found)


def rows_of(path: str | Path) -> list[Row]:
    """The RFT rows of a file; supervised rows and preference rows are refused by name."""
    return datasets.read(path)
