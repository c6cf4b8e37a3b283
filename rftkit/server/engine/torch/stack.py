"""The layers of a decoder of Llama's form as one function, forward and backward written out.

    x += attention(norm(x));  x += down(silu(gate(norm(x))) · up(norm(x)))

with rotated queries and keys, optional biases and per-head norms: Llama, SmolLM, Qwen2, Qwen3,
Mistral. Weights get a gradient only where they learn, the float32 residual and its gradient live
in one tensor each, and what a backward pass needs is kept in the dtype of the weights. Whether a
model has this form is asked by trying: a layer that does not give what transformers' own gives
stays as it is, and then the whole model runs through transformers (`find_stack` returns None).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu

from rftkit.server.engine.torch.layout import Layout
from rftkit.server.engine.torch.lora import Block
from rftkit.server.engine.torch.packed import Packed

__all__ = ["Stack", "find_stack"]

Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines, and sines with the sign of the rotation, (N, H + K, D) each; those of q carry scale."""

CACHED_ROWS = 256  # float32 states that a processor's cache holds a few times


class Norm:
    """x / rms(x) · weight over the last axis: float32 inside, the model's dtype outside."""

    def __init__(self, module: Any) -> None:
        self.weight: torch.Tensor = module.weight  # the module's own: it may change, and learn
        epsilon = getattr(module, "variance_epsilon", None)
        epsilon = float(module.epsilon if epsilon is None else epsilon)
        self._epsilon = torch.full((1,), epsilon, device=self.weight.device)

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> Tables:
        """Fill `out`; x / rms and 1 / rms, for the way back."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.addcmul(self._epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
        unit = (wide * inverse).to(self.weight.dtype)
        torch.mul(unit, self.weight, out=out)
        return unit, inverse

    def add_gradient(
        self, into: torch.Tensor, grad: torch.Tensor, kept: Tables
    ) -> list[torch.Tensor]:
        """Add the gradient of x to `into` (float32), given that of the result.

        What comes back is the gradient of the weight, if it learns.
        """
        unit, inverse = kept
        of_weight = [(grad * unit).flatten(0, -2).sum(0)] if self.weight.requires_grad else []
        weight = self.weight.detach().float()
        for start in range(0, len(grad), CACHED_ROWS):
            some = slice(start, start + CACHED_ROWS)
            wide, line = grad[some].float().mul_(weight), unit[some].float()
            wide.addcmul_(line, (wide * line).mean(-1, keepdim=True), value=-1)
            into[some].addcmul_(wide, inverse[some])
        return of_weight


class Layer:
    """One layer; its linear layers are blocks already."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.index: int = attention.layer_idx
        self.qkv = _block(attention, "q_proj", "k_proj", "v_proj")
        self.out = _block(attention, "o_proj")
        self.gate_up, self.down = _block(mlp, "gate_proj", "up_proj"), _block(mlp, "down_proj")
        self.size: int = attention.head_dim
        self.scale: float = attention.scaling
        self.kv = self.qkv.sizes[1] // self.size
        self.heads = self.qkv.sizes[0] // self.size
        self.before = Norm(module.input_layernorm)
        self.between = Norm(module.post_attention_layernorm)
        self.of_q = Norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.of_k = Norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.blocks: tuple[Block, ...] = (self.qkv, self.out, self.gate_up, self.down)

    @property
    def learnt(self) -> list[torch.Tensor]:
        """What has a gradient, in the order in which `backward` returns them."""
        norms = (self.before, self.of_q, self.of_k, self.between)
        weights = [norm.weight for norm in norms if norm is not None]
        return [
            *(tensor for block in self.blocks for tensor in block.learnt),
            *(weight for weight in weights if weight.requires_grad),
        ]

    def forward(
        self, x: torch.Tensor, tables: Tables, layout: Layout, *, back: bool
    ) -> tuple[Any, ...]:
        """Change x (N, width) in place; what `backward` needs, if there is to be a way back."""
        num, width = x.shape
        rows = self.qkv.room(num)
        norm_1 = self.before.forward(x, rows[:, :width])
        qkv, low_1 = self.qkv.product(rows)
        q, k, v, norm_heads = self._heads(qkv, tables)
        attended, attention = layout.attend(self.index, q, k, v)
        of_out = self.out.room(num)
        of_out[:, : attended.shape[1]] = attended
        y, low_2 = self.out.product(of_out)
        x.add_(y)
        rows = self.gate_up.room(num)
        norm_2 = self.between.forward(x, rows[:, :width])
        slopes, low_3 = self.gate_up.product(rows)
        gate, up = slopes.chunk(2, dim=-1)
        active = silu(gate)
        of_down = self.down.room(num)
        torch.mul(active, up, out=of_down[:, : gate.shape[1]])
        y, low_4 = self.down.product(of_down)
        x.add_(y)
        if not back:
            return ()
        # In place of gate and up, the slopes of silu(gate) · up: what came out is not needed.
        torch.ops.aten.silu_backward.grad_input(up, gate, grad_input=gate)
        up.copy_(active)
        return (
            norm_1, low_1, norm_heads, attention, of_out, low_2,
            norm_2, slopes, low_3, of_down, low_4,
        )  # fmt: skip

    def backward(
        self,
        grad: torch.Tensor,
        tables: Tables,
        layout: Packed,
        kept: tuple[Any, ...],
        *,
        of_input: bool,
    ) -> list[torch.Tensor]:
        """Turn the gradient of the result into that of x, in place; the gradients of `learnt`.

        Without `of_input`, because nothing below learns, what is in place is of no use.
        """
        (
            norm_1, low_1, norm_heads, attention, of_out, low_2,
            norm_2, slopes, low_3, of_down, low_4,
        ) = kept  # fmt: skip
        dtype = slopes.dtype
        of_y, in_down = self.down.gradients(grad.to(dtype), of_down, low_4, of_input=True)
        assert of_y is not None
        of_both = (of_y[:, None] * slopes.unflatten(1, (2, -1))).flatten(1)
        normed = norm_2[0] * self.between.weight
        of_normed, in_gate_up = self.gate_up.gradients(of_both, normed, low_3, of_input=True)
        assert of_normed is not None
        in_between = self.between.add_gradient(grad, of_normed, norm_2)

        of_attended, in_out = self.out.gradients(grad.to(dtype), of_out, low_2, of_input=True)
        assert of_attended is not None
        of_qkv = slopes.new_empty(len(grad), self.heads + 2 * self.kv, self.size)
        of_turned = torch.empty_like(of_qkv[:, : self.heads + self.kv])
        layout.backward(
            attention,
            of_attended.view(len(grad), self.kv, -1, self.size),
            of_turned[:, : self.heads].unflatten(1, (self.kv, -1)),
            of_turned[:, self.heads :],
            of_qkv[:, self.heads + self.kv :],
        )
        in_heads = self._turn_back(of_turned, tables, norm_heads, of_qkv[:, : -self.kv])
        normed = norm_1[0] * self.before.weight
        of_normed, in_qkv = self.qkv.gradients(of_qkv.flatten(1), normed, low_1, of_input=of_input)
        in_before = []
        if of_normed is not None:
            in_before = self.before.add_gradient(grad, of_normed, norm_1)
        in_norms = [*in_before, *in_heads, *in_between]
        return [*in_qkv, *in_out, *in_gate_up, *in_down, *in_norms]

    def _heads(
        self, qkv: torch.Tensor, tables: Tables
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        """Q (N, K, H/K, D), k and v (N, K, D), rotated and scaled."""
        each = qkv.view(len(qkv), -1, self.size)
        turning, v = each[:, : self.heads + self.kv], each[:, self.heads + self.kv :]
        norms = None
        if self.of_q is not None and self.of_k is not None:
            given, turning = turning, turning.new_empty(turning.shape)
            q, k = slice(self.heads), slice(self.heads, None)
            norms = (
                self.of_q.forward(given[:, q], turning[:, q]),
                self.of_k.forward(given[:, k], turning[:, k]),
            )
        turned = rotate(turning, *tables)
        queries = turned[:, : self.heads].unflatten(1, (self.kv, -1))
        return queries, turned[:, self.heads :], v, norms

    def _turn_back(
        self, grad: torch.Tensor, tables: Tables, norms: Any, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """Fill `out`, for q and k as they came from `qkv`, given the gradient of rotated ones.

        What comes back are the gradients of the norms of heads.
        """
        cos, sin = tables
        if self.of_q is None or self.of_k is None:
            rotate(grad, cos, -sin, out)
            return []
        turning = rotate(grad, cos, -sin)
        wide = torch.zeros(turning.shape, device=turning.device)
        q, k = slice(self.heads), slice(self.heads, None)
        in_q = self.of_q.add_gradient(wide[:, q], turning[:, q], norms[0])
        in_k = self.of_k.add_gradient(wide[:, k], turning[:, k], norms[1])
        out.copy_(wide)
        return in_q + in_k


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Turn pairs (i, i + D/2) of the last axis by their angles: x·cos + swapped x·sin."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin, out=out)


class Stack:
    """All layers of a decoder."""

    def __init__(self, layers: Sequence[Layer], rotary: Any) -> None:
        self.layers = layers
        self._rotary = rotary

    def hidden(
        self, x: torch.Tensor, layout: Layout, memory_bytes: int | None = None
    ) -> torch.Tensor:
        """States behind the last layer, before the last norm; x (N, width) float32 is used up.

        `memory_bytes` is the most that may be kept for a way back.
        """
        tables = self._tables(x, layout)
        if torch.is_grad_enabled():
            learnt = [tensor for layer in self.layers for tensor in layer.learnt]
            result: torch.Tensor = _StackFunction.apply(
                x, self, tables, layout, memory_bytes, *learnt
            )  # type: ignore[no-untyped-call]
            return result
        for layer in self.layers:
            layer.forward(x, tables, layout, back=False)
        return x

    def forward(
        self, x: torch.Tensor, tables: Tables, layout: Packed, memory_bytes: int | None
    ) -> list[Any]:
        """Change x in place; what each layer needs on the way back.

        Where that would be more than `memory_bytes`, a layer's input is kept instead, and the
        layer computed again on the way back (Chen et al. 2016, arXiv:1604.06174): same numbers.
        """
        first, *others = self.layers
        kept: list[Any] = [first.forward(x, tables, layout, back=True)]
        each = _num_bytes(kept[0])
        again = memory_bytes is not None and each * len(self.layers) > memory_bytes
        for layer in others:
            if again:
                kept.append(x.clone())
            result = layer.forward(x, tables, layout, back=not again)
            if not again:
                kept.append(result)
        return kept

    def _tables(self, x: torch.Tensor, layout: Layout) -> Tables:
        """Shared by the layers, which differ in nothing that matters here."""
        first = self.layers[0]
        cos, sin = (part[0][:, None] for part in self._rotary(x[None], layout.positions[None]))
        scales = torch.ones(first.heads + first.kv, 1, device=x.device)
        scales[: first.heads] = first.scale
        signs = torch.ones(first.size, device=x.device)
        signs[: first.size // 2] = -1
        dtype = first.qkv.weight.dtype
        return (cos * scales).to(dtype), (sin * scales * signs).to(dtype)


class _StackFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        stack: Stack,
        tables: Tables,
        layout: Packed,
        memory_bytes: int | None,
        *learnt: Any,
    ) -> torch.Tensor:
        x = x.clone()
        ctx.kept = stack.forward(x, tables, layout, memory_bytes)
        ctx.stack, ctx.tables, ctx.layout = stack, tables, layout
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad = grads[0].clone()
        of_learnt: list[torch.Tensor] = []
        of_x = ctx.needs_input_grad[0]
        for layer in reversed(ctx.stack.layers):
            kept = ctx.kept.pop()
            if torch.is_tensor(kept):
                kept = layer.forward(kept, ctx.tables, ctx.layout, back=True)
            of_input = of_x or layer is not ctx.stack.layers[0]
            of_layer = layer.backward(grad, ctx.tables, ctx.layout, kept, of_input=of_input)
            of_learnt = of_layer + of_learnt
        return grad if of_x else None, None, None, None, None, *of_learnt


def _num_bytes(kept: Any) -> int:
    """Of all tensors in nested tuples and lists."""
    if torch.is_tensor(kept):
        return kept.nbytes
    return sum(map(_num_bytes, kept)) if isinstance(kept, tuple | list) else 0


def find_stack(decoder: Any) -> Stack | None:
    """The stack of a transformers decoder whose linear layers are blocks, or None."""
    try:
        layers = [Layer(module) for module in decoder.layers]
        stack = Stack(layers, decoder.rotary_emb)
        return stack if _agrees(stack, decoder) else None
    except (AttributeError, NotImplementedError):
        return None


def _agrees(stack: Stack, decoder: Any) -> bool:
    """Whether each layer adds what transformers' own adds to the same input, up to rounding.

    Layer by layer: over a whole decoder the rounding of bfloat16 grows to tens of percents, and
    another formula could hide in that.
    """
    weight = stack.layers[0].qkv.weight
    tokens = torch.arange(9, device=weight.device)
    x = decoder.get_input_embeddings()(tokens).detach().float()
    layout = Packed([4], [[3, 2]], weight.device)
    options = {"position_ids": layout.positions[None], "use_cache": False, "layout": layout}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # input and output of each layer

    def keep(_module: Any, inputs: Any, output: Any) -> None:
        seen.append((inputs[0][0].clone(), (output if torch.is_tensor(output) else output[0])[0]))

    hooks = [module.register_forward_hook(keep) for module in decoder.layers]
    try:
        with torch.no_grad():
            plain = decoder(inputs_embeds=x[None], **options).last_hidden_state[0]
    finally:
        for hook in hooks:
            hook.remove()
    around = ((seen[0][0], x), (decoder.norm(seen[-1][1]), plain))  # nothing before, nothing after
    if not all(torch.equal(a, b) for a, b in around):
        return False
    if decoder.rotary_emb(x[None], layout.positions[None])[0].shape[-1] != stack.layers[0].size:
        return False
    tables = stack._tables(x, layout)
    bound = 0.03 if weight.dtype == torch.bfloat16 else 1e-4
    return all(
        _is_near(layer, given, result, tables, layout, bound)
        for layer, (given, result) in zip(stack.layers, seen, strict=True)
    )


def _is_near(
    layer: Layer,
    given: torch.Tensor,
    result: torch.Tensor,
    tables: Tables,
    layout: Packed,
    bound: float,
) -> bool:
    """Whether a layer adds to its input what `result` did, but for this share."""
    with torch.no_grad():
        ours = given.clone()
        layer.forward(ours, tables, layout, back=False)
        return bool((ours - result).norm() <= bound * (result - given).norm())


def _block(owner: nn.Module, *names: str) -> Block:
    """The block that stands for these linear layers of one module.

    Raises:
        AttributeError: when there is no such block.
    """
    blocks = [getattr(owner, name).block for name in names]
    if any(block is not blocks[0] for block in blocks) or len(blocks[0].sizes) != len(names):
        raise AttributeError(f"{names} are not one block")
    block: Block = blocks[0]
    return block
