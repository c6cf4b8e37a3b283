"""Small real models for the tests of the engine: random weights, the real architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rftkit.server.engine.tiny import _tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


SUFFIX = {"Gemma3": "Text"}
"""Where the text model's configuration has another name than its class."""


def write(folder: Path, architecture: str, **sizes: Any) -> Path:
    """A Hugging Face folder of a random model with the character tokenizer."""
    import transformers

    tokenizer = _tokenizer()
    config = getattr(transformers, f"{architecture}{SUFFIX.get(architecture, '')}Config")(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **(SIZES | sizes),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = getattr(transformers, f"{architecture}ForCausalLM")(config)
        if architecture == "Qwen2":
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
