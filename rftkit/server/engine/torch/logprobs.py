"""The one log-prob function of sampler and trainer.

A token's log-prob is its logit over the temperature, minus the log of the sum over the tokens that
were allowed at that place (all of them, or those of a grammar mask). Logits exist only for the
positions asked for, and in the trainer only a chunk at a time: no full-vocabulary tensor is kept
for the backward pass. Where the head itself learns, that pass computes them again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from rftkit.server.engine.grammar import Masks, unpack
from rftkit.server.engine.torch import passes, products

__all__ = ["most_likely", "scores", "token_logprobs"]

CHUNK_ROWS = 256
HEAD_ROWS = 256  # rows of the head's gradient at a time; each chunk makes one as large as the head
MASKED = -1e30  # finite, so that a row with only masked entries does not give NaN


def scores(
    hidden: torch.Tensor,
    head: torch.Tensor,
    masks: Masks | None,
    temperature: float,
    cap: float | None = None,
) -> torch.Tensor:
    """Logits over the temperature, MASKED where not allowed: (N, V) float32 of hidden (N, width).

    With a `cap` they are cap · tanh(logits / cap), as Gemma 2 has them.
    """
    logits = _project(hidden, head)
    if cap is not None:
        logits = logits.div_(cap).tanh_().mul_(cap)
    if temperature != 1.0:
        logits /= temperature
    if masks is None:
        return logits
    return _forbid(logits, masks)


def token_logprobs(
    hidden: torch.Tensor,  # (N, width)
    head: torch.Tensor,  # (V, width)
    tokens: torch.Tensor,  # (N,)
    masks: Masks | None,
    temperature: float,
    head_back: torch.Tensor | None = None,
    cap: float | None = None,
) -> torch.Tensor:
    """Log-prob of each token, (N,) float32, in nats; `cap` as in `scores`.

    `head_back` is the head in the dtype in which gradients travel, if that is another.
    """
    back = head if head_back is None else head_back
    # Chunks of about the same size: full ones would leave a small rest, a slow product.
    num = math.ceil(len(hidden) / math.ceil(len(hidden) / CHUNK_ROWS)) if len(hidden) else 1
    parts = [hidden.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(hidden), num):
        rows = slice(start, start + num)
        chunk_masks = None if masks is None else masks[rows]
        parts.append(
            _Chunk.apply(
                hidden[rows],
                head,
                back,
                tokens[rows],
                chunk_masks,
                temperature,
                cap,
            )  # type: ignore[no-untyped-call]
        )
    result = torch.cat(parts)
    if torch.is_grad_enabled() and back.requires_grad:
        given = (hidden.detach(), head, tokens, masks, temperature, cap)
        result = _OfHead.apply(result, back, *given)  # type: ignore[no-untyped-call]
    return result


def most_likely(hidden: torch.Tensor, head: torch.Tensor, cap: float | None = None) -> torch.Tensor:
    """The most likely token of each row, (N,)."""
    parts = [
        scores(hidden[start : start + CHUNK_ROWS], head, None, 1.0, cap).argmax(dim=-1)
        for start in range(0, len(hidden), CHUNK_ROWS)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.long)


class _Chunk(torch.autograd.Function):
    """Log-probs of some rows.

    Their gradient, (one-hot − p) · head / temperature, is computed in the forward pass, while p
    exists. The backward pass then only multiplies it by the incoming gradient, without logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        back: torch.Tensor,
        tokens: torch.Tensor,
        masks: Masks | None,
        temperature: float,
        cap: float | None,
    ) -> torch.Tensor:
        values = scores(hidden, head, masks, temperature, cap)
        logits = values.gather(1, tokens[:, None])[:, 0]
        weights, sums, total = passes.exponentials(values, back.dtype)
        if ctx.needs_input_grad[0]:
            # p · head, the mean row of the head under p, is the gradient of the log of the sum.
            mean = _through_cap(weights, values, temperature, cap).to(back.dtype) @ back
            chosen = _through_cap(torch.ones_like(logits), logits, temperature, cap)[:, None]
            grad_hidden = (back[tokens].float() * chosen - mean.float() / sums) / temperature
            ctx.save_for_backward(grad_hidden.to(hidden.dtype))
        return logits - total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad_hidden,) = ctx.saved_tensors
        return (
            (grad_hidden * grads[0][:, None]).to(grad_hidden.dtype),
            None,
            None,
            None,
            None,
            None,
            None,
        )


class _OfHead(torch.autograd.Function):
    """Passes log-probs on; gives the head its gradient, (one-hot − p)ᵀ · hidden / temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        logprobs: torch.Tensor,
        back: torch.Tensor,
        hidden: torch.Tensor,
        head: torch.Tensor,
        tokens: torch.Tensor,
        masks: Masks | None,
        temperature: float,
        cap: float | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, tokens)
        ctx.head, ctx.masks, ctx.temperature, ctx.cap = head, masks, temperature, cap
        return logprobs.view_as(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, tokens = ctx.saved_tensors
        of_head = torch.zeros(ctx.head.shape, device=hidden.device)
        for start in range(0, len(hidden), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            masks = None if ctx.masks is None else ctx.masks[rows]
            values = scores(hidden[rows], ctx.head, masks, ctx.temperature, ctx.cap)
            grad_scores = torch.softmax(values, dim=-1)
            at = torch.arange(len(grad_scores), device=grad_scores.device)
            grad_scores[at, tokens[rows]] -= 1
            grad_scores = _through_cap(grad_scores, values, ctx.temperature, ctx.cap)
            grad_scores *= -grads[0][rows, None] / ctx.temperature
            with _products_in(hidden.dtype):
                of_head.addmm_(grad_scores.T, hidden[rows].float())
        return grads[0], of_head, None, None, None, None, None, None


def _through_cap(
    grad: torch.Tensor, values: torch.Tensor, temperature: float, cap: float | None
) -> torch.Tensor:
    """The gradient of logits before their cap, given that of the capped ones in `values`."""
    if cap is None:
        return grad
    return grad * (1 - (values * (temperature / cap)).clamp(-1, 1) ** 2)


def _forbid(values: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Set to MASKED, in place, what the masks do not allow of (N, V)."""
    forbidden = torch.from_numpy(unpack(~masks, values.shape[1])).to(values.device)
    return values.masked_fill_(forbidden, MASKED)


def _project(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Float32 logits: in bfloat16 those near 30 would be rounded to quarters."""
    if hidden.is_cuda and head.dtype != torch.float32:
        return torch.mm(hidden.to(head.dtype), head.T, out_dtype=torch.float32)
    if hidden.dtype == head.dtype == torch.float32:
        return products.linear(hidden, head)
    with _products_in(hidden.dtype):
        return torch.nn.functional.linear(hidden.to(head.dtype), head).float()


@contextlib.contextmanager
def _products_in(dtype: torch.dtype) -> Iterator[None]:
    """Multiply float32 numbers that hold values of `dtype` in that dtype, where a CPU can.

    A bfloat16 product with a float32 result exists there for float32 operands only.
    """
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if dtype == torch.bfloat16:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
