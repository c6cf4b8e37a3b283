"""The base models, and how each becomes a Hugging Face folder that can be loaded.

Two come with rftkit: `smollm2-135m-instruct`, whose weights are found or fetched once
(`weights`), and `rftkit-tiny`, made on the fly (`tiny.py`). Others are folders that the operator
named with `rftkit models add`, in `bases.json` of the home: a name in a request is looked up there
and never becomes a path. This module imports no torch until a model is prepared.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from rftkit.errors import NotFoundError, PlatformError, nearest_name
from rftkit.fingerprints import BASES, SUMS, difference
from rftkit.jsontext import parse_json
from rftkit.server.engine import weights
from rftkit.server.engine.tinker.remote import remote_of
from rftkit.wholefile import damage, write_folder

__all__ = [
    "BaseModel",
    "ChangedModelError",
    "end_tokens",
    "find_base",
    "known_bases",
    "prepare",
]

CARD_BYTES = 1 << 16  # read at most this much of a model card; the front matter is much shorter
FORMAT = 1  # increase it when a conversion changes, so that old caches are replaced


class ChangedModelError(PlatformError):
    """The folder of a base model is not what the operator added."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that a job may start from."""

    name: str
    created: int
    """Unix seconds: when the model was published."""
    owned_by: str
    licence: str | None
    """The licence in its model card; None if it names none."""
    folder: Path | None = None
    """The folder of its files, for models that rftkit does not make itself."""


BUNDLED = {
    base.name: base
    for base in (
        BaseModel("smollm2-135m-instruct", 1_730_419_200, "HuggingFaceTB", "apache-2.0"),
        BaseModel("rftkit-tiny", 1_763_683_200, "rftkit", "apache-2.0"),
    )
}


def known_bases(home: Path | None = None) -> list[BaseModel]:
    """The bundled models, and those that the operator of a home added."""
    known = dict(BUNDLED)
    for base in (*_added(home), *_of_tinker(home)):
        known.setdefault(base.name, base)
    return list(known.values())


def find_base(name: str, home: Path | None = None) -> BaseModel:
    """The base model called `name`.

    Raises:
        NotFoundError: when there is none.
    """
    known = {base.name: base for base in known_bases(home)}
    if name not in known:
        hint = nearest_name(name, known)
        raise NotFoundError(
            f"the model {name[:100]!r} does not exist; {hint}{'' if hint[-1] == '?' else '.'} A "
            "folder with "
            "a config.json, or a Hugging Face name in the local hub cache, becomes a model with: "
            "rftkit models add FOLDER",
            param="model",
            code="model_not_found",
        )
    return known[name]


def _of_tinker(home: Path | None) -> list[BaseModel]:
    there = None if home is None else remote_of(home)
    if there is None:
        return []
    return [BaseModel(there.name, 0, "tinker", None, Path(there.tokenizer))]


def _added(home: Path | None) -> list[BaseModel]:
    path = None if home is None else home / BASES
    if path is None or not path.is_file():
        return []
    try:
        given = parse_json(path.read_bytes())
        return [_base(name, path.parent / folder) for name, folder in given.items()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PlatformError(
            f"{path} cannot be read ({error}); it must hold {{name: folder}}"
        ) from error


def _base(name: str, folder: Path) -> BaseModel:
    config = folder / "config.json"
    created = int(config.stat().st_mtime) if config.is_file() else 0
    return BaseModel(name, created, "local", _licence(folder), folder)


def _licence(folder: Path) -> str | None:
    """The front matter of a model card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    # read for each list of models, so a huge or broken file must not stop it
    with card.open("rb") as file:
        text = file.read(CARD_BYTES).decode(errors="replace").replace("\r\n", "\n")
    front, closed, _ = text.partition("\n---\n")
    if not (closed and text.startswith("---\n")):
        return None
    matches = (re.fullmatch(r"license: *(\S+)", line) for line in front.split("\n"))
    return next((found[1] for found in matches if found), None)


def prepare(
    base: BaseModel,
    home: Path,
    on_progress: Callable[[str], None] = lambda _: None,
    progress: weights.Progress = lambda _: None,
) -> Path:
    """The Hugging Face folder of a base model, made once and kept under `home`/models.

    Args:
        base: the model.
        home: of the platform.
        on_progress: gets a message before slow work.
        progress: gets the bytes of the weights that have arrived, when they are fetched.

    Raises:
        NotFoundError: the folder of a model that was added holds none.
        ChangedModelError: its files are not those that were added.
        PlatformError: the weights cannot be fetched.
    """
    if base.folder is not None:
        if not (base.folder / "config.json").is_file():
            raise NotFoundError(
                f"the model {base.name!r} was added as {base.folder}, which has no config.json now",
                param="model",
                code="model_not_found",
            )
        _check_added(base.name, base.folder, home)
        return base.folder
    folder = home / "models" / f"{base.name}-v{FORMAT}"
    if _wrong(folder) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / ".making.lock"):  # one process at a time converts
        for left in folder.parent.glob(".making-*"):  # left by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        if folder.is_dir() and (wrong := _wrong(folder)):
            on_progress(
                f"The converted weights of {base.name} are damaged ({wrong}); they are made again"
            )
            shutil.rmtree(folder)
        if not folder.is_dir():
            made_from = _MAKERS[base.name]
            source = _weights(home, on_progress, progress) if made_from is _make_smollm2 else home
            on_progress(f"Converting {base.name} (once)")
            write_folder(folder, partial(made_from, source), scratch_prefix=".making-")
    return folder


def _wrong(folder: Path) -> str | None:
    """What is wrong with converted weights, such as a copy that was broken off; None if nothing."""
    has_config = (folder / "config.json").is_file()
    return damage(folder) or (None if has_config else f"{folder} has no config.json")


def _check_added(name: str, folder: Path, home: Path) -> None:
    """Compare a folder with its fingerprint; one that was added by an older rftkit has none.

    Raises:
        ChangedModelError: they differ, or the folder cannot be read.
    """
    try:
        known = parse_json((home / SUMS).read_bytes())[name]
        if (home / known["folder"]).resolve() != folder.resolve():
            return  # the fingerprint is of another folder with this name
        changed = difference(folder, known["files"])
    except (KeyError, FileNotFoundError):
        return
    except (OSError, ValueError, AttributeError, TypeError) as error:
        changed = f"they cannot be compared ({error})"
    if changed is not None:
        raise ChangedModelError(
            f"the files of the model {name!r} in {folder} are not those that were added: {changed}."
            f" Restore them; or, if you changed them, type: rftkit models add {folder} "
            f"--name {name}"
        )


def end_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Every token that ends an answer."""
    ids: set[int] = set()
    for value in (tokenizer.eos_token_id, getattr(generation_config, "eos_token_id", None)):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _weights(home: Path, on_progress: Callable[[str], None], progress: weights.Progress) -> Path:
    if found := weights.find(home):
        return found
    on_progress("Fetching the weights of smollm2-135m-instruct (93 MB, once)")
    return weights.fetch(home, progress)


def _make_smollm2(gguf_path: Path, folder: Path) -> None:
    """Unpack 4-bit GGUF weights to bfloat16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, file = str(gguf_path.parent), gguf_path.name
    with _gguf_read_once():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=file,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Cache what transformers requests from `gguf`: the file's table thrice, names for each module.

    Each read takes seconds; together they are half of the wait before a first job.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    before = {name: getattr(gguf, name) for name in names}
    try:
        for name, plain in before.items():
            setattr(gguf, name, functools.cache(plain))
        yield
    finally:
        for name, plain in before.items():
            setattr(gguf, name, plain)


def _make_tiny(_: Path, folder: Path) -> None:
    from rftkit.server.engine.tiny import make

    make(folder)


_MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "smollm2-135m-instruct": _make_smollm2,
    "rftkit-tiny": _make_tiny,
}
