"""Low-rank adapters on frozen linear layers: y = x Wᵀ + (alpha/rank) (x Aᵀ) Bᵀ.

A and B are float32 masters; the arithmetic runs in the dtype of the base weight. Saved in the
folder format of the PEFT library, which can load them. No dropout: the policy that samples and the
policy that is trained are the same function (Hu et al. 2021, arXiv:2106.09685).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rftkit.server.engine.base import LoraConfig

__all__ = ["AdapterWeights", "LoraLinear", "add_lora", "load_adapter", "save_adapter"]

AdapterWeights = dict[str, torch.Tensor]
"""Layer name + ".A" / ".B" → float32 tensor."""


class _LoraFunction(torch.autograd.Function):
    """The layer with only x and x Aᵀ kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # (..., in)
        weight: torch.Tensor,  # (out, in), frozen
        bias: torch.Tensor | None,
        a: torch.Tensor,  # (rank, in), float32
        b: torch.Tensor,  # (out, rank), float32
        scale: float,
    ) -> torch.Tensor:
        low_a, low_b = a.to(weight.dtype), (b * scale).to(weight.dtype)
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        hidden = flat @ low_a.T
        y = torch.nn.functional.linear(flat, weight, bias)
        y.addmm_(hidden, low_b.T)
        ctx.save_for_backward(flat, hidden, weight, low_a, low_b)
        ctx.scale, ctx.dtype = scale, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        flat, hidden, weight, low_a, low_b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_hidden = grad @ low_b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_hidden, low_a)
            grad_x = grad_x.view(*grads[0].shape[:-1], -1).to(ctx.dtype)
        grad_a = (grad_hidden.T @ flat).float()
        grad_b = (grad.T @ hidden).float() * ctx.scale
        return grad_x, None, None, grad_a, grad_b, None


class LoraLinear(nn.Module):
    """A frozen linear layer that may carry one adapter at a time."""

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.data, requires_grad=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.data, requires_grad=False)
        self.scale = scale
        self.a: torch.Tensor | None = None
        self.b: torch.Tensor | None = None
        self._low: tuple[torch.Tensor, torch.Tensor] | None = None

    def set_adapter(self, a: torch.Tensor | None, b: torch.Tensor | None) -> None:
        """Use these float32 masters from now on; None, None is the base model."""
        self.a, self.b = a, b
        self._low = None

    def refresh(self) -> None:
        """Forget the low-precision copies after the masters have changed."""
        self._low = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x (..., in)."""
        if self.a is None or self.b is None:
            return torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)
        if torch.is_grad_enabled():
            result = _LoraFunction.apply(x, self.weight, self.bias, self.a, self.b, self.scale)  # type: ignore[no-untyped-call]
            return cast(torch.Tensor, result)
        if self._low is None:
            dtype = self.weight.dtype
            self._low = self.a.to(dtype).T, (self.b * self.scale).to(dtype).T
        flat = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        y = torch.nn.functional.linear(flat, self.weight, self.bias)
        y.addmm_(flat @ self._low[0], self._low[1])
        return y.view(*x.shape[:-1], -1)


def add_lora(model: nn.Module, config: LoraConfig) -> dict[str, LoraLinear]:
    """Replace the linear layers of a decoder by LoraLinear, in place; returns them by name.

    Raises:
        ValueError: when no layer matches `config.targets`.
    """
    layers = {}
    for name, layer in list(_linears(model)):
        short = name.rsplit(".", 1)[-1]
        if short == "lm_head" or (config.targets and short not in config.targets):
            continue
        parent = model.get_submodule(name.rsplit(".", 1)[0]) if "." in name else model
        layers[name] = LoraLinear(layer, config.alpha / config.rank)
        setattr(parent, short, layers[name])
    if not layers:
        raise ValueError(f"no linear layer of the model is named {', '.join(config.targets)}")
    return layers


def fresh_adapter(
    layers: dict[str, LoraLinear], config: LoraConfig, generator: torch.Generator
) -> AdapterWeights:
    """A uniform as PEFT draws it (Kaiming, a = √5), B zero: the policy starts at the base."""
    weights: AdapterWeights = {}
    for name, layer in layers.items():
        out_features, in_features = layer.weight.shape
        bound = math.sqrt(1.0 / in_features)
        a = torch.empty(config.rank, in_features).uniform_(-bound, bound, generator=generator)
        weights[f"{name}.A"] = a.to(layer.weight.device)
        weights[f"{name}.B"] = torch.zeros(out_features, config.rank, device=layer.weight.device)
    return weights


def use_adapter(layers: dict[str, LoraLinear], weights: AdapterWeights | None) -> None:
    """Put one adapter (None = the base model) on the layers."""
    for name, layer in layers.items():
        if weights is None:
            layer.set_adapter(None, None)
        else:
            layer.set_adapter(weights[f"{name}.A"], weights[f"{name}.B"])


def save_adapter(folder: Path, weights: AdapterWeights, config: LoraConfig, base: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name[:-2]}.lora_{name[-1]}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name[:-2].rsplit(".", 1)[-1] for name in weights})
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")


def load_adapter(folder: Path, device: torch.device) -> tuple[AdapterWeights, LoraConfig]:
    """Read what `save_adapter` wrote."""
    description = json.loads((folder / "adapter_config.json").read_text())
    config = LoraConfig(
        rank=description["r"],
        alpha=description["lora_alpha"],
        targets=tuple(description["target_modules"]),
    )
    tensors = load_file(folder / "adapter_model.safetensors", device=str(device))
    weights = {}
    for key, tensor in tensors.items():
        name, letter = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        weights[f"{name}.{letter.removeprefix('lora_')}"] = tensor
    return weights, config


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module
