"""Tiny folders of any architecture that a user may bring: random weights, few of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rftkit.server.engine.tiny import _tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "n_embd": 48,
    "d_model": 48,
    "word_embed_proj_dim": 48,
    "intermediate_size": 80,
    "ffn_dim": 80,
    "n_inner": 80,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "num_layers": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "attention_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_seq_len": 512,
    "initializer_range": 0.2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 24,
    "mamba_d_ssm": 96,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "sliding_window": 16,
    "attention_window": 16,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 12,
    "ffn_hidden_size": 80,
    "expert_ffn_hidden_size": 32,
    "zero_expert_num": 2,
    "router_hidden_size": 16,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 48,
    "vision_output_dim": 48,
    "projector_input_dim": 48,
    "projector_output_dim": 48,
}
"""Of the part of a model that sees; only its text part is used here."""


def write_any(folder: Path, model_type: str, *, std: float = 0.2, **sizes: Any) -> Path:
    """A Hugging Face folder of a random model of this type with the character tokenizer."""
    tokenizer = _tokenizer()
    config = AutoConfig.for_model(model_type, **_settings(model_type, tokenizer, sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
            else:
                parameter.data.add_(torch.randn_like(parameter), alpha=std / 2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _settings(model_type: str, tokenizer: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a tiny model; those of its text part where it also sees and hears."""
    known = AutoConfig.for_model(model_type)
    text = known.get_text_config()
    if text is not known:
        vision = getattr(known, "vision_config", None)
        names = vision.to_dict() if vision is not None else {}
        seen = {name: value for name, value in VISION.items() if name in names}
        return {
            "text_config": _settings(text.model_type, tokenizer, sizes),
            **({"vision_config": seen} if seen else {}),
            **OPTIONS.get(model_type, {}),
        }
    names = known.to_dict()
    common = {name: value for name, value in SIZES.items() if name in names}
    if "vocab_size_per_layer_input" in names:
        common["vocab_size_per_layer_input"] = len(tokenizer)
    options = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.eos_token_id,
    }
    return options | common | OPTIONS.get(model_type, {}) | sizes


OPTIONS: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 8, "num_key_value_heads": 4},
    "axk2": {"head_dim": 8, "num_key_value_heads": 4},
    "cwm": {"bos_token_id": 0},
    "deepseek_v2": {"head_dim": 8, "num_key_value_heads": 4},
    "deepseek_v3": {"head_dim": 8, "num_key_value_heads": 4},
    "deepseek_v32": {"head_dim": 8, "num_key_value_heads": 4},
    "glm4_moe_lite": {"head_dim": 8, "num_key_value_heads": 4},
    "glm_moe_dsa": {"head_dim": 8, "num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "gemma4_text": {"global_head_dim": 12},
    "gemma4_unified_text": {"global_head_dim": 12},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4, "num_layers": 2},
    "sarvam_mla": {"head_dim": 8, "num_key_value_heads": 4},
    "stablelm": {"partial_rotary_factor": 0.5},
    "youtu": {"head_dim": 8, "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 4, "head_dim": 24},
    "minicpm3": {"head_dim": 8, "num_key_value_heads": 4},
    "modernbert-decoder": {"bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
}
"""What a type needs beside the common sizes."""
