"""Faster forms of what transformers computes element by element, put in only where they agree.

A root-mean-square norm of Llama's form becomes one function with a short backward pass; rotary
angles are handed out in the model's dtype. A model whose norm is of another form keeps its own; one
that torch will not mix with a float32 residual stream (layer norm) is made float32.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["speed_up"]


def speed_up(decoder: nn.Module, dtype: torch.dtype) -> None:
    """Replace what can be replaced without changing the result, in place."""
    for name, module in list(decoder.named_modules()):
        if _is_plain_norm(module):
            parent = decoder.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _Norm(module, dtype))
        elif isinstance(module, nn.LayerNorm):
            module.float()
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is not None:
        rotary.register_forward_hook(lambda _module, _inputs, output: _in_dtype(output, dtype))


def _in_dtype(angles: Any, dtype: torch.dtype) -> Any:
    """Cosines and sines in a dtype; complex angles are left as they are."""
    if isinstance(angles, tuple) and all(torch.is_tensor(part) for part in angles):
        return tuple(part.to(dtype) for part in angles)
    return angles


class _Norm(nn.Module):
    """x / rms(x) · weight, float32 inside, the model's dtype outside."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        weight: Any = norm.weight
        epsilon: Any = norm.variance_epsilon
        self.weight = nn.Parameter(weight.data.to(dtype), requires_grad=False)
        self.epsilon = float(epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of x."""
        result: torch.Tensor = _NormFunction.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return result


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.rsqrt(length * length / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(weight.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        grad = grads[0].float() * weight.float()
        inner = (grad * wide).sum(-1, keepdim=True)
        grad.mul_(inverse).addcmul_(wide, inverse**3 * inner / x.shape[-1], value=-1)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grads[0].float() * wide * inverse).flatten(0, -2).sum(0)
        return grad.to(x.dtype), of_weight, None


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether a module computes x / rms(x) · weight, tested with an input."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if weight is None or epsilon is None or weight.dim() != 1:
        return False
    # the forward pass takes more than its input, such as a gate
    if len(inspect.signature(module.forward).parameters) != 1:
        return False
    with torch.no_grad():
        x = torch.linspace(-2.0, 3.0, weight.shape[0], device=weight.device)[None]
        plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float()
        return torch.allclose(module(x).float(), plain, rtol=1e-3, atol=1e-5)
