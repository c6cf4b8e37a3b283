"""Where a dataset is: a file, a folder with its parts, the name of a bundled dataset, or `hf://…`.

Every command, panel, notebook and sweep finds datasets here, so that all take the same four. A
folder has `train` and perhaps `valid` and `test`, in any form that `open` reads, `grader.json` and
`response_format.json`; a folder with one data file has only training rows. Not here: reading them.
"""

from __future__ import annotations

from pathlib import Path

from rftkit.bundled import bundled_folder
from rftkit.datasets.hub import fetched, is_hub_name
from rftkit.datasets.unpack import PACKINGS, TABLES
from rftkit.errors import InputError, NotFoundError, nearest_name

__all__ = [
    "NAMES", "STREAM", "bundled_names", "find", "is_saved_by_huggingface", "parts_of", "rows_file",
]  # fmt: skip

NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}
"""Part -> what its file may be called, before the first dot."""
LINES = (".jsonl", ".ndjson")
STREAM = "{}: is a pipe or a device, and files are read more than once; write its lines to a file"


def find(source: str | Path) -> Path:
    """The file or folder that is meant: a path that exists, else a bundled dataset of that name.

    `hf://owner/name:split` is fetched from the Hugging Face hub (`hub`).

    Raises:
        InputError: There is neither, or it is a pipe.
    """
    if is_hub_name(source):
        return fetched(source)
    path, name = Path(source).expanduser(), str(source)
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        raise InputError(STREAM.format(path))
    try:
        known = bundled_names()
    except NotFoundError:  # installed without its datasets: paths still work
        known = []
    if name in known:
        return bundled_folder("datasets") / name
    message = f"{source}: there is no such file"
    if path.name == name and not path.suffix:
        hint = nearest_name(name, known)
        message += f" or folder, and no dataset of that name comes with rftkit; {hint}"
    raise InputError(message)


def bundled_names() -> list[str]:
    """The names of the datasets that come with rftkit.

    Raises:
        NotFoundError: rftkit was installed without its datasets.
    """
    return sorted(each.parent.name for each in bundled_folder("datasets").glob("*/grader.json"))


def rows_file(path: Path) -> Path:
    """The file to read rows from: the file itself, or the training rows of a folder.

    Raises:
        InputError: A folder holds no training rows.
    """
    if not path.is_dir() or is_saved_by_huggingface(path):
        return path
    return parts_of(path)["train"]


def parts_of(folder: Path) -> dict[str, Path]:
    """The files of a folder: `train`, and `valid` and `test` where they are there.

    Raises:
        InputError: There are no training rows, or two files could be one part.
    """
    if is_saved_by_huggingface(folder):
        return {"train": folder}
    files = sorted(each for each in folder.iterdir() if _is_data(each))
    found = {part: _of_part(part, files, folder) for part in NAMES}
    parts = {part: path for part, path in found.items() if path is not None}
    if "train" not in parts:
        if len(files) != 1 or parts:
            raise _no_train(folder, files)
        parts = {"train": files[0]}
    return parts


def is_saved_by_huggingface(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder, or the folders of its splits."""
    return (folder / "state.json").is_file() or any(folder.glob("*/state.json"))


def _of_part(part: str, files: list[Path], folder: Path) -> Path | None:
    found = [each for each in files if each.name.split(".")[0].lower() in NAMES[part]]
    lines = [each for each in found if each.suffix.lower() in LINES]
    if len(found) > 1 and len(lines) != 1:
        names = ", ".join(each.name for each in found)
        raise InputError(f"{folder}: {names} could all be the {part} rows; keep one of them")
    return next(iter([*lines, *found]), None)


def _is_data(path: Path) -> bool:
    ends = [end.lower() for end in path.suffixes[-2:]]
    if ends and ends[-1] in PACKINGS:
        ends.pop()
    return path.is_file() and bool(ends) and ends[-1] in (*TABLES, *LINES)


def _no_train(folder: Path, files: list[Path]) -> InputError:
    names = ", ".join(each.name for each in files) or "no data file"
    return InputError(
        f"{folder}: a dataset folder needs train.jsonl (or .csv, .parquet), found {names}; "
        "name one of them train, give the file itself, or a folder that Hugging Face "
        "`save_to_disk` wrote"
    )
