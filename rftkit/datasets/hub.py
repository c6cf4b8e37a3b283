"""Datasets of the Hugging Face hub by their name: `hf://owner/name[/config][:split]`.

They are fetched by the `datasets` package, with the login and the cache that it has, and saved in
`RFTKIT_HOME/hub`: a folder for each state of the data, read as any other saved one. Without a split
the training rows are meant. Not here: reading rows.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rftkit import settings
from rftkit.errors import InputError, MissingExtraError
from rftkit.privacy import make_home

__all__ = ["fetched", "is_hub_name"]

NAME = re.compile(
    r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.\[\]:%+-]+))?"
)


def is_hub_name(source: str | Path) -> bool:
    """Whether a dataset of the hub is meant."""
    return str(source).startswith("hf:")


def fetched(source: str | Path) -> Path:
    """The folder with the rows of a dataset of the hub, fetched if they are not here yet.

    Raises:
        InputError: it is no such name, there is no such dataset or split, or it cannot be fetched.
        MissingExtraError: the package `datasets` is not installed.
    """
    source = re.sub("^hf:/*", "hf://", str(source))  # a Path makes one slash of two
    given = NAME.fullmatch(source)
    if given is None:
        raise InputError(
            f"{source}: expected hf://OWNER/NAME, hf://OWNER/NAME:SPLIT or "
            "hf://OWNER/NAME/CONFIG:SPLIT"
        )
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError("datasets", "hub") from None
    try:
        found = library.load_dataset(given["name"], given["config"], split=given["split"])
    except Exception as error:  # the package raises many types: no such name, no login, no network
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise InputError(f"{source}: cannot be fetched: {reason}") from error
    data = found if given["split"] else _training_rows(found, source)
    return _saved(data, given["name"])


def _training_rows(splits: Any, source: str) -> Any:
    names: Sequence[str] = list(splits)
    if "train" in names:
        return splits["train"]
    if len(names) == 1:
        return splits[names[0]]
    raise InputError(f"{source}: name one of its splits {', '.join(names)}: {source}:{names[0]}")


def _saved(data: Any, name: str) -> Path:
    """The folder of these rows, written whole or not at all."""
    parent = make_home(settings.home()) / "hub" / name.replace("/", "--")
    folder = parent / str(data._fingerprint)
    if not (folder / "state.json").is_file():
        parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=parent, prefix=".making-"))
        try:
            data.save_to_disk(str(draft))
            os.replace(draft, folder)
        except OSError:
            if not (folder / "state.json").is_file():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder
