"""The two folders for Hugging Face's libraries: a PEFT adapter, and a whole model.

Tokenizers are written by transformers' own `save_pretrained`, never copied by a list of names, and
what was written must load as the same tokenizer. Not here: GGUF (`gguf_file`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rftkit.errors import RftkitError
from rftkit.server.engine import models
from rftkit.server.engine.values import FULL_FILE, is_whole
from rftkit.server.worker.exports.source import Source

__all__ = ["end_tokens_of", "merged_model", "tokenizer_of", "write_adapter", "write_merged"]

PROBE = "Hello, world!\n  1 + 2 = 3; naïve café 你好"
"""Text that an exported tokenizer must encode as the base's own does."""


def write_adapter(source: Source, out: Path) -> None:
    """Write the adapter, with the name of its base resolved: the hub's, or a folder here."""
    assert source.saved is not None
    shutil.copyfile(source.saved / "adapter_model.safetensors", out / "adapter_model.safetensors")
    description = json.loads((source.saved / "adapter_config.json").read_text())
    description["base_model_name_or_path"] = source.hub_name or str(source.base_folder.resolve())
    (out / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")
    _write_tokenizer(source.base_folder, out)
    _generation_config(source.base_folder).save_pretrained(out)


def write_merged(source: Source, out: Path) -> None:
    """Write a whole model in the dtype of its base; its generation config has every end token."""
    model = merged_model(source, "auto")
    model.generation_config = _generation_config(source.base_folder)
    model.save_pretrained(out)
    _write_tokenizer(source.base_folder, out)


def merged_model(source: Source, dtype: Any) -> Any:
    """Load W + alpha/rank · B A, added in float32 and rounded once to `dtype` ("auto": the base's).

    Weights that were trained in full are taken as they are, with "auto" in their own dtype.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from rftkit.server.engine.torch.lora import load_adapter

    saved = source.saved
    whole = load_file(saved / FULL_FILE) if saved is not None and is_whole(saved) else {}
    if dtype == "auto":
        dtype = next((tensor.dtype for tensor in whole.values()), dtype)
    model = AutoModelForCausalLM.from_pretrained(
        source.base_folder, dtype=dtype, trust_remote_code=False
    )
    for name, tensor in whole.items():
        model.get_parameter(name).data = tensor.to(dtype)
    if saved is not None and not whole:
        weights, config = load_adapter(saved, torch.device("cpu"))
        scale = config.alpha / config.rank
        for name in {key.rpartition(".")[0] for key in weights}:
            layer: Any = model.get_submodule(name)
            change = scale * (weights[f"{name}.B"] @ weights[f"{name}.A"])
            layer.weight.data = (layer.weight.data.float() + change).to(layer.weight.dtype)
    return model.eval()


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        RftkitError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a model's own files can make the library raise anything
        raise RftkitError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def end_tokens_of(folder: Path) -> list[int]:
    """Every token that ends an answer on the platform."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(folder)
    except OSError:  # there is no such file
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = GenerationConfig.from_model_config(found)
    return sorted(models.end_tokens(tokenizer_of(folder), config))


def _generation_config(base: Path) -> Any:
    """The base's generation config, in which every token ends an answer that does so here."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(base)
    except OSError:  # there is no such file
        config = GenerationConfig()
    ends = end_tokens_of(base)
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if config.pad_token_id is None:
        config.pad_token_id = ends[0] if ends else None
    return config


def _write_tokenizer(base: Path, out: Path) -> None:
    """The tokenizer and chat template of a base, whatever files it keeps them in.

    Raises:
        RftkitError: transformers cannot load it, or gets another one from what was written.
    """
    tokenizer = tokenizer_of(base)
    tokenizer.save_pretrained(out)
    again = tokenizer_of(out)
    ids, written = (each(PROBE)["input_ids"] for each in (tokenizer, again))
    if ids != written or tokenizer.get_vocab() != again.get_vocab():
        raise RftkitError(
            f"the tokenizer in {base} cannot be exported: transformers saves another one than it "
            f"loads; copy the tokenizer files from {base} by hand"
        )
    if tokenizer.chat_template != again.chat_template:
        raise RftkitError(
            f"the chat template in {base} cannot be exported: it is not the same when loaded again"
        )
