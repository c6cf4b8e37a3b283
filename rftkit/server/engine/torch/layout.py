"""Which tokens see which, and how that reaches a transformers model.

Every forward pass runs over one flat line of tokens, without padding; a *layout* decides what each
token attends to: `packed.py` lays out groups (training, prefill), `decode.py` the next tokens of
many rows. The layers of `stack.py` call the layout directly; a model whose layers are transformers'
own gets it as a keyword argument of its forward, and the attention function registered here finds
it there. Not covered: sliding windows, soft-capped or sink attention; such models take the plain
path (`plain.py`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["ATTENTION_NAME", "Layout", "register_attention"]

ATTENTION_NAME = "rftkit"


class Layout(Protocol):
    """Which tokens see which, for one forward pass."""

    @property
    def positions(self) -> torch.Tensor:
        """Position of each token in its own text, (N,)."""
        ...

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """Attention output (N, H·D) of scaled q (N, K, H/K, D), k and v (N, K, D).

        The second value is what a backward pass needs.
        """
        ...


def register_attention() -> None:
    """Make `attn_implementation="rftkit"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attention)


def _attention(
    module: Any,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert layout is not None, "a model with rftkit attention needs layout="
    for name in ("softcap", "s_aux", "sliding_window"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name} is not supported by this engine")
    if attention_mask is not None:
        raise NotImplementedError(
            "attention that brings its own mask is not supported by this engine"
        )
    scale = module.head_dim**-0.5 if scaling is None else scaling
    dtype = value.dtype  # rotation may have turned the others into float32
    q, k, v = ((each[0].to(dtype)).transpose(0, 1) for each in (query * scale, key, value))
    q = q.unflatten(1, (k.shape[1], -1))  # (N, K, H/K, D)
    if torch.is_grad_enabled():
        out = _Attend.apply(q, k, v, layout)  # type: ignore[no-untyped-call]
    else:
        out, _ = layout.attend(module.layer_idx, q, k, v)
    return out.view(1, len(out), query.shape[1], -1), None


class _Attend(torch.autograd.Function):
    """Attention of a packed layout, for models with their own layer code."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Any
    ) -> torch.Tensor:
        out, kept = layout.attend(0, q, k, v)
        # Told to autograd, which drops them where the layer is to be computed again.
        leaves, ctx.form = tree_flatten(kept)
        ctx.save_for_backward(*(leaf for leaf in leaves if torch.is_tensor(leaf)))
        ctx.others = [None if torch.is_tensor(leaf) else (leaf,) for leaf in leaves]
        ctx.layout, ctx.q, ctx.k = layout, q.shape, k.shape
        result: torch.Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        tensors = iter(ctx.saved_tensors)
        leaves = [next(tensors) if other is None else other[0] for other in ctx.others]
        kept = tree_unflatten(leaves, ctx.form)
        of_q, of_k, of_v = (grads[0].new_empty(shape) for shape in (ctx.q, ctx.k, ctx.k))
        ctx.layout.backward(kept, grads[0].reshape(ctx.q), of_q, of_k, of_v)
        return of_q, of_k, of_v, None
