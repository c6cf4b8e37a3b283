"""What a transformers configuration says about a model: attention, positions, size of its keys."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["key_bytes", "not_covered", "stable_lengths"]


def not_covered(config: Any) -> str | None:
    """Why the configuration shows that a layout is not enough; None when it does not show that."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - {"full_attention", "attention", "sliding_attention"}:
        return f"layers of the kind {', '.join(sorted(others))} take no layout"
    return None


def stable_lengths(config: Any) -> list[int]:
    """In some models rotary angles change with the length of the text, beyond a number of tokens.
    Then a token was sampled with other angles than it has once the text is longer.
    """
    given = getattr(config, "rope_parameters", None) or {}
    each = [given, *(value for value in given.values() if isinstance(value, dict))]
    return [
        int(rope["original_max_position_embeddings"])
        for rope in each
        if str(rope.get("rope_type")) in ("dynamic", "longrope")
        and rope.get("original_max_position_embeddings")
    ]


def key_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    num = _widest(config, "num_attention_heads")
    if not num:  # no attention: a state of the model's width
        return int(2 * config.num_hidden_layers * config.hidden_size * dtype.itemsize)
    size = _widest(config, "head_dim") or config.hidden_size // num
    heads = _widest(config, "num_key_value_heads") or num
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def _widest(config: Any, name: str) -> Any:
    """A number of a configuration; the largest where each layer has its own (Gemma 4)."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers refuses: one number for all layers would be ambiguous
        layers = (config.per_layer_config[i] for i in range(config.num_hidden_layers))
        return max(getattr(layer, name, None) or 0 for layer in layers)
