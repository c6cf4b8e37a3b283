"""One GGUF file of a merged model, written with the `gguf` package's own writer.

For the architectures that llama.cpp calls llama, qwen2 and qwen3 (Llama, SmolLM, Mistral, Qwen2,
Qwen3). Weights are merged in float32 and quantized once. `gguf` quantizes to q8_0, q5_0, q5_1, q4_0
and q4_1; the k-quants are llama.cpp's own (`llama_cpp`). Another architecture is refused, with the
way that works. Not here: tokenizers (`gguf_tokens`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rftkit.errors import InputError, RftkitError
from rftkit.server.worker.exports.folders import end_tokens_of, merged_model, tokenizer_of
from rftkit.server.worker.exports.gguf_tokens import add_tokenizer
from rftkit.server.worker.exports.llama_cpp import PACKAGE, has_llama_cpp, quantize
from rftkit.server.worker.exports.source import Source

__all__ = ["DEFAULT", "QUANTIZATIONS", "check_quantization", "write_gguf"]

DEFAULT = "f16"
PLAIN = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""The number formats that the package `gguf` writes itself."""
K_QUANTS = {"q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q4_k_m": 15, "q4_k_s": 14}
"""The number formats that llama.cpp writes, with its numbers for them (`llama_ftype`)."""
QUANTIZATIONS = (*PLAIN, *K_QUANTS)
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""transformers' `model_type` → the name in `gguf.MODEL_ARCH`."""


def check_quantization(name: str) -> None:
    """Refuse a quantization before anything is computed.

    Raises:
        InputError: there is none of this name, or it needs a package that is not installed.
    """
    if name not in QUANTIZATIONS:
        raise InputError(
            f"there is no quantization {name!r}; there are {', '.join(QUANTIZATIONS)}",
            param="quantize",
        )
    if name in K_QUANTS and not has_llama_cpp():
        raise InputError(
            f"{name} is made by llama.cpp itself; type: pip install {PACKAGE}, or take one of "
            f"{', '.join(PLAIN)}",
            param="quantize",
        )


def write_gguf(source: Source, out: Path, quantization: str) -> Path:
    """Write `out`/model-QUANTIZATION.gguf; its path.

    Raises:
        RftkitError: llama.cpp has no such architecture or tokenizer, or rftkit does not write it.
    """
    model = merged_model(source, _float32())
    path = out / f"model-{quantization}.gguf"
    if quantization in PLAIN:
        _write(source, model, path, quantization)
        return path
    whole = out / ".model-f32.gguf"
    try:
        _write(source, model, whole, "f32")
        del model
        quantize(whole, path, K_QUANTS[quantization])
    finally:
        whole.unlink(missing_ok=True)
    return path


def _float32() -> Any:
    import torch

    return torch.float32


def _write(source: Source, model: Any, path: Path, quantization: str) -> None:
    import gguf

    config = model.config
    kind = ARCHITECTURES.get(config.model_type)
    if kind is None or (reason := _unfit(config)):
        what = reason if kind else f"architecture {config.model_type}"
        raise RftkitError(
            f"rftkit writes no GGUF file of {source.base.name} ({what}); it writes "
            f"{', '.join(ARCHITECTURES)}. Export it with --format merged, and convert that folder "
            "with llama.cpp's convert_hf_to_gguf.py"
        )
    arch = gguf.MODEL_ARCH[kind]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(source.name)
    writer.add_file_type(gguf.LlamaFileType[_file_type(quantization)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    tokenizer = tokenizer_of(source.base_folder)
    add_tokenizer(writer, tokenizer, config.vocab_size, adds_bos=_begins_with_bos(tokenizer))
    ends = end_tokens_of(source.base_folder)
    if ends and tokenizer.eos_token_id is None:
        writer.add_eos_token_id(ends[0])
    if others := [end for end in ends if end != tokenizer.eos_token_id]:
        writer.add_eot_token_id(others[0])
    _add_tensors(writer, model, arch, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _unfit(config: Any) -> str | None:
    """Why a model of a known architecture cannot be written."""
    rope = _rope(config)
    if (kind := rope.get("rope_type", "default")) not in ("default", "linear"):
        return f"positions of type {kind}"
    if getattr(config, "mlp_bias", False):
        return "biases in its feed-forward layers"
    if getattr(config, "use_sliding_window", False) or (
        config.model_type == "mistral" and getattr(config, "sliding_window", None)
    ):
        return "a sliding window"
    return None


def _rope(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _add_shape(writer: Any, config: Any) -> None:
    """The sizes that llama.cpp builds the model from."""
    import gguf

    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = _rope(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tensors(writer: Any, model: Any, arch: Any, quantization: str) -> None:
    """Every weight under llama.cpp's name; matrices quantized, vectors in float32."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings where there is no head
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise RftkitError(f"GGUF has no name for the weight {name} of this architecture")
        data = tensor.float()
        if arch == gguf.MODEL_ARCH.LLAMA and (heads := _heads_of(name, config)):
            data = _interleaved(data, heads)
        array = data.numpy()
        kind = _type_of(array, quantization)
        writer.add_tensor(known, gguf.quants.quantize(array, kind), raw_dtype=kind)


def _heads_of(name: str, config: Any) -> int | None:
    """How many heads a query or key projection has; None for other weights."""
    part = name.split(".")[-2]
    if part == "q_proj":
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if part == "k_proj" else None


def _interleaved(weight: Any, heads: int) -> Any:
    """The rows of a projection in the order of llama.cpp's rotation, which pairs neighbours.

    transformers pairs the first half of a head with its second. Qwen's form in llama.cpp does so
    too, and is not changed.
    """
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .transpose(1, 2)
        .reshape(weight.shape)
        .contiguous()
    )


def _type_of(array: Any, quantization: str) -> Any:
    """The number format of one tensor: vectors stay float32; rows that no block divides are
    float16.
    """
    import gguf

    if array.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType[quantization.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if array.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _file_type(quantization: str) -> str:
    return "ALL_F32" if quantization == "f32" else f"MOSTLY_{quantization.upper()}"


def _begins_with_bos(tokenizer: Any) -> bool:
    """Whether the chat template begins a chat with the token that begins texts."""
    if not tokenizer.bos_token or not tokenizer.chat_template:
        return False
    chat = [{"role": "user", "content": "Hello"}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception:  # a model's own template can raise anything
        return False
    return bool(text.startswith(tokenizer.bos_token))
