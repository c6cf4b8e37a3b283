"""The layers of a decoder of Llama's form as one function, forward and backward written out.

    x += attention(norm(x));  x += down(silu(gate(norm(x))) · up(norm(x)))

with rotated queries and keys, optional biases and per-head norms: Llama, SmolLM, Qwen2, Qwen3,
Mistral. Weights get a gradient only where they learn, the float32 residual and its gradient live
in one tensor each, and what a backward pass needs is kept in the dtype of the weights. Whether a
model has this form is tested: if a layer gives another result than transformers' own, the whole
model runs through transformers (`find_stack` returns None).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rftkit.server.engine.torch import passes
from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.layout import Layout
from rftkit.server.engine.torch.lora import Block
from rftkit.server.engine.torch.packed import Packed

__all__ = ["Stack", "find_stack"]

Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines, and sines with the sign of the rotation, (N, H + K, D) each; those of q carry scale."""


class Norm:
    """x / rms(x) · weight over the last axis: float32 inside, the model's dtype outside."""

    def __init__(self, module: Any) -> None:
        self.weight: torch.Tensor = module.weight  # the module's own: it may change, and learn
        epsilon = getattr(module, "variance_epsilon", None)
        epsilon = float(module.epsilon if epsilon is None else epsilon)
        self.epsilon = torch.full((1,), epsilon, device=self.weight.device)

    def fill(self, x: torch.Tensor, room: torch.Tensor, **options: Any) -> Any:
        """See `passes.norm`."""
        return passes.norm(x, self.weight, self.epsilon, room, **options)

    def of_heads(self, x: torch.Tensor, out: torch.Tensor) -> Tables:
        """See `passes.unit_norm`."""
        return passes.unit_norm(x, self.weight, self.epsilon, out)

    def add_gradient(
        self, into: torch.Tensor, grad: torch.Tensor, kept: Tables
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Add the gradient of x to `into` (float32), given that of the result.

        Returns:
            `into` in the dtype of `grad`; the gradient of the weight, no tensor when it is frozen.
        """
        unit, _ = kept
        of_weight = [(grad * unit).flatten(0, -2).sum(0)] if self.weight.requires_grad else []
        return passes.norm_gradient(into, grad, self.weight, *kept), of_weight


class Layer:
    """One layer of the decoder; its linear layers are already blocks."""

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
        self.attention_norm = Norm(module.input_layernorm)
        self.mlp_norm = Norm(module.post_attention_layernorm)
        self.q_norm = Norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.k_norm = Norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.blocks: tuple[Block, ...] = (self.qkv, self.out, self.gate_up, self.down)

    @property
    def trained(self) -> list[torch.Tensor]:
        """The tensors that learn, in the order in which `backward` returns their gradients."""
        norms = (self.attention_norm, self.q_norm, self.k_norm, self.mlp_norm)
        weights = [norm.weight for norm in norms if norm is not None]
        return [
            *(tensor for block in self.blocks for tensor in block.trained),
            *(weight for weight in weights if weight.requires_grad),
        ]

    def forward(
        self,
        x: torch.Tensor,
        before: torch.Tensor | None,
        tables: Tables,
        layout: Layout,
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, tuple[Any, ...]]:
        """Change x (N, width) in place, first by what the layer before has left to be added.

        Returns:
            What is left to be added after this layer; and with `keep`, what `backward` needs.
        """
        # Attention. Inputs are written straight into the block's own buffer (`room`), which leaves
        # space after them for x Aᵀ, so that W and the adapter are one matrix product.
        num = len(x)
        qkv_input = self.qkv.room(num)
        attention_normed = self.attention_norm.fill(x, qkv_input, change=before, keep=keep)
        qkv, lora_qkv = self.qkv.product(qkv_input)
        qk, v, head_norms = self._heads(qkv)
        out_input, attention = self.out.room(num), None
        if isinstance(layout, Decode) and layout.fills:
            layout.fill(self.index, qk, v, tables, out_input)
        else:
            rotated = passes.rotate(qk, *tables)
            q, k = rotated.split([self.heads, self.kv], dim=1)
            attended, attention = layout.attend(self.index, q.unflatten(1, (self.kv, -1)), k, v)
            # Copied, because attention fills a tensor that has no room for x Aᵀ after its rows.
            passes.copy(attended, out_input)
        change, lora_out = self.out.product(out_input)

        # MLP. The residual is float32: adding in bfloat16 would lose small changes.
        gate_up_input = self.gate_up.room(num)
        mlp_normed = self.mlp_norm.fill(x, gate_up_input, change=change, keep=keep)
        gate_up, lora_gate_up = self.gate_up.product(gate_up_input)
        down_input = self.down.room(num)
        passes.gate(gate_up, down_input, keep=keep)
        change, lora_down = self.down.product(down_input)
        if not keep:
            return change, ()
        mlp_derivatives = gate_up
        return change, (
            attention_normed, lora_qkv, head_norms, attention, out_input, lora_out,
            mlp_normed, mlp_derivatives, lora_gate_up, down_input, lora_down,
        )  # fmt: skip

    def backward(
        self,
        grad: torch.Tensor,
        narrow: torch.Tensor,
        tables: Tables,
        layout: Packed,
        kept: tuple[Any, ...],
        *,
        of_input: bool,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Turn the gradient of the result into that of x, in place.

        `grad` is the gradient of the residual and stays float32: each branch adds to it. `narrow`
        is the same in the dtype of the weights, in which products run. Without `of_input`, because
        nothing below learns, its last value has no meaning.

        Returns:
            The gradient of x in the dtype of the weights, and the gradients of `trained`.
        """
        (
            attention_normed, lora_qkv, head_norms, attention, out_input, lora_out,
            mlp_normed, mlp_derivatives, lora_gate_up, down_input, lora_down,
        ) = kept  # fmt: skip
        # x + branch(x): the residual passes `grad` on as it is, and each branch, from the last to
        # the first, adds what flows through it.
        # MLP: down projection, then gate and up together, then the norm before them.
        grad_down_input, down_grads = self.down.gradients(
            narrow, down_input, lora_down, of_input=True
        )
        assert grad_down_input is not None
        grad_gate_up = passes.gate_gradient(grad_down_input, mlp_derivatives)
        # The normed input was not kept: it is the unit vector, which was, times the weight.
        normed = mlp_normed[0] * self.mlp_norm.weight
        grad_normed, gate_up_grads = self.gate_up.gradients(
            grad_gate_up, normed, lora_gate_up, of_input=True
        )
        assert grad_normed is not None
        narrow, mlp_norm_grads = self.mlp_norm.add_gradient(grad, grad_normed, mlp_normed)

        # Attention: output projection, attention itself, rotation, then q, k and v together.
        grad_attended, out_grads = self.out.gradients(narrow, out_input, lora_out, of_input=True)
        assert grad_attended is not None
        grad_qkv = mlp_derivatives.new_empty(len(grad), self.heads + 2 * self.kv, self.size)
        # v is not rotated: attention writes its gradient straight into grad_qkv.
        grad_rotated = torch.empty_like(grad_qkv[:, : self.heads + self.kv])
        layout.backward(
            attention,
            grad_attended.view(len(grad), self.kv, -1, self.size),
            grad_rotated[:, : self.heads].unflatten(1, (self.kv, -1)),
            grad_rotated[:, self.heads :],
            grad_qkv[:, self.heads + self.kv :],
        )
        head_norm_grads = self._unrotate(grad_rotated, tables, head_norms, grad_qkv[:, : -self.kv])
        normed = attention_normed[0] * self.attention_norm.weight
        grad_normed, qkv_grads = self.qkv.gradients(
            grad_qkv.flatten(1), normed, lora_qkv, of_input=of_input
        )
        attention_norm_grads: list[torch.Tensor] = []
        if grad_normed is not None:
            narrow, attention_norm_grads = self.attention_norm.add_gradient(
                grad, grad_normed, attention_normed
            )
        # In the order of `trained`.
        norm_grads = [*attention_norm_grads, *head_norm_grads, *mlp_norm_grads]
        return narrow, [*qkv_grads, *out_grads, *gate_up_grads, *down_grads, *norm_grads]

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Queries and keys (N, H + K, D) before rotation, v (N, K, D), and what head norms keep."""
        each = qkv.view(len(qkv), -1, self.size)
        qk, v = each[:, : self.heads + self.kv], each[:, self.heads + self.kv :]
        if self.q_norm is None or self.k_norm is None:
            return qk, v, None
        given, qk = qk, qk.new_empty(qk.shape)
        q, k = slice(self.heads), slice(self.heads, None)
        norms = (
            self.q_norm.of_heads(given[:, q], qk[:, q]),
            self.k_norm.of_heads(given[:, k], qk[:, k]),
        )
        return qk, v, norms

    def _unrotate(
        self, grad: torch.Tensor, tables: Tables, norms: Any, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """Fill `out` with the gradient of q and k before rotation, given that after it.

        A rotation is undone by the opposite angle: the sines change their sign, and the scale of
        attention, which the tables carry, applies to the gradient as it did to the value. Returns
        the gradients of the head norms.
        """
        if self.q_norm is None or self.k_norm is None:
            passes.rotate(grad, *tables, out, back=True)
            return []
        unrotated = passes.rotate(grad, *tables, back=True)
        wide = torch.zeros(unrotated.shape, device=unrotated.device)
        weight_grads = []
        parts = (slice(self.heads), slice(self.heads, None))
        for norm, part, kept in zip((self.q_norm, self.k_norm), parts, norms, strict=True):
            out[:, part], of_weight = norm.add_gradient(wide[:, part], unrotated[:, part], kept)
            weight_grads += of_weight
        return weight_grads


class Stack:
    """All layers of a decoder."""

    def __init__(self, layers: Sequence[Layer], rotary: Any) -> None:
        self.layers = layers
        self._rotary = rotary

    def hidden(
        self, x: torch.Tensor, layout: Layout, memory_bytes: int | None = None
    ) -> torch.Tensor:
        """States after the last layer, before the last norm; x (N, width) float32 is overwritten.

        `memory_bytes` is the most that may be kept for the backward pass.
        """
        tables = self._tables(x, layout)
        if torch.is_grad_enabled():
            trained = [tensor for layer in self.layers for tensor in layer.trained]
            result: torch.Tensor = _StackFunction.apply(
                x, self, tables, layout, memory_bytes, *trained
            )  # type: ignore[no-untyped-call]
            return result
        change = None
        for layer in self.layers:
            change, _ = layer.forward(x, change, tables, layout, keep=False)
        assert change is not None
        passes.add(x, change)
        return x

    def forward(
        self, x: torch.Tensor, tables: Tables, layout: Packed, memory_bytes: int | None
    ) -> list[Any]:
        """Change x in place; return what each layer needs for its backward pass.

        Where that would be more than `memory_bytes`, a layer's input is kept instead, and the
        layer computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174), with the
        same numbers.
        """
        # Every layer keeps as much as the first one, so that one tells whether all of it fits.
        first, *others = self.layers
        change: torch.Tensor | None
        change, result = first.forward(x, None, tables, layout, keep=True)
        kept: list[Any] = [result]
        each = _num_bytes(kept[0])
        recompute = memory_bytes is not None and each * len(self.layers) > memory_bytes
        for layer in others:
            if recompute:
                passes.add(x, change)
                change = None
                kept.append(x.clone())
            change, result = layer.forward(x, change, tables, layout, keep=not recompute)
            if not recompute:
                kept.append(result)
        passes.add(x, change)
        return kept

    def _tables(self, x: torch.Tensor, layout: Layout) -> Tables:
        """Cosines and sines for every position, the same for all layers.

        The scale of attention is folded into those of q, and the sign of the rotation into the
        sines, so that a rotation is one multiply-add.
        """
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
        *trained: Any,
    ) -> torch.Tensor:
        x = x.clone()  # layers change it in place, and autograd may need the caller's tensor
        ctx.kept = stack.forward(x, tables, layout, memory_bytes)
        ctx.stack, ctx.tables, ctx.layout = stack, tables, layout
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad = grads[0].clone()
        narrow = grad.to(ctx.tables[0].dtype)
        trained_grads: list[torch.Tensor] = []
        grad_of_x = ctx.needs_input_grad[0]
        for layer in reversed(ctx.stack.layers):
            kept = ctx.kept.pop()  # popped: what a layer kept is free once its gradients are known
            if torch.is_tensor(kept):  # only its input was kept: compute the layer again
                _, kept = layer.forward(kept, None, ctx.tables, ctx.layout, keep=True)
            of_input = grad_of_x or layer is not ctx.stack.layers[0]
            narrow, layer_grads = layer.backward(
                grad, narrow, ctx.tables, ctx.layout, kept, of_input=of_input
            )
            trained_grads = layer_grads + trained_grads
        return grad if grad_of_x else None, None, None, None, None, *trained_grads


def _num_bytes(kept: Any) -> int:
    """Bytes of all tensors in nested tuples and lists."""
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
    # One prompt with two completions: masks and shared keys are compared as well.
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
    # check that nothing runs before the first layer or after the last
    around = ((seen[0][0], x), (decoder.norm(seen[-1][1]), plain))
    if not all(torch.equal(a, b) for a, b in around):
        return False
    if decoder.rotary_emb(x[None], layout.positions[None])[0].shape[-1] != stack.layers[0].size:
        return False
    tables = stack._tables(x, layout)
    bound = 0.03 if weight.dtype == torch.bfloat16 else 1e-4
    return all(
        _is_close(layer, given, result, tables, layout, bound)
        for layer, (given, result) in zip(stack.layers, seen, strict=True)
    )


def _is_close(
    layer: Layer,
    given: torch.Tensor,
    result: torch.Tensor,
    tables: Tables,
    layout: Packed,
    bound: float,
) -> bool:
    """Whether a layer changes its input as `result` did, up to this share of the change."""
    with torch.no_grad():
        ours = given.clone()
        change, _ = layer.forward(ours, None, tables, layout, keep=False)
        passes.add(ours, change)
        return bool((ours - result).norm() <= bound * (result - given).norm())


def _block(owner: nn.Module, *names: str) -> Block:
    """The block that replaces these linear layers of one module.

    Raises:
        AttributeError: when there is no such block.
    """
    blocks = [getattr(owner, name).block for name in names]
    if any(block is not blocks[0] for block in blocks) or len(blocks[0].sizes) != len(names):
        raise AttributeError(f"{names} are not one block")
    block: Block = blocks[0]
    return block
