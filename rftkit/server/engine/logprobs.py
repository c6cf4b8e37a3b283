"""The one log-prob function of sampler and trainer.

A token's log-prob is its logit over the temperature, minus the log of the sum over the tokens that
were allowed at that place (all of them, or those of a grammar mask). Logits exist only for the
positions asked for, and in the trainer only a chunk at a time: no full-vocabulary tensor is kept
for the backward pass. On a CPU in bfloat16 the trainer's are never written down at all: with the
head as keys and as values, attention gives the log of the sum, and the gradient, in one pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from rftkit.server.engine.grammar import Masks, unpack

__all__ = ["scores", "token_logprobs"]

CHUNK_ROWS = 128
FUSED_ROWS = 1_024
FUSED_FROM = 512  # fewer rows take longer than logits would: the head is packed anew in each pass
NEVER = -1e30  # finite, so that a row of nothing but this is still a number


def scores(
    hidden: torch.Tensor, head: torch.Tensor, masks: Masks | None, temperature: float
) -> torch.Tensor:
    """Logits over the temperature, NEVER where not allowed: (N, V) float32 of hidden (N, width)."""
    logits = _project(hidden, head)
    if temperature != 1.0:
        logits /= temperature
    if masks is None:
        return logits
    forbidden = torch.from_numpy(unpack(~masks, head.shape[0])).to(hidden.device)
    return logits.masked_fill_(forbidden, NEVER)


def shares(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of each row, and the log of the sum of exp(values), (N,)."""
    powers = torch.softmax(values, dim=-1)
    # The largest share is 1 / Σ exp(value − top): no second pass of exponentials.
    return powers, values.amax(dim=-1) - torch.log(powers.amax(dim=-1))


def token_logprobs(
    hidden: torch.Tensor,  # (N, width)
    head: torch.Tensor,  # (V, width)
    tokens: torch.Tensor,  # (N,)
    masks: Masks | None,
    temperature: float,
    head_back: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-prob of each token, (N,) float32, in nats.

    `head_back` is the head in the dtype in which gradients travel, if that is another.
    """
    back = head if head_back is None else head_back
    is_fused = (
        back.dtype == torch.bfloat16 and back.device.type == "cpu" and len(hidden) >= FUSED_FROM
    )
    chunk, most = (_Fused, FUSED_ROWS) if is_fused else (_Chunk, CHUNK_ROWS)
    num = math.ceil(len(hidden) / math.ceil(len(hidden) / most)) if len(hidden) else 1
    parts = [hidden.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(hidden), num):
        rows = slice(start, start + num)
        chunk_masks = None if masks is None else masks[rows]
        parts.append(chunk.apply(hidden[rows], head, back, tokens[rows], chunk_masks, temperature))  # type: ignore[no-untyped-call]
    return torch.cat(parts)


class _Chunk(torch.autograd.Function):
    """Log-probs of some rows.

    Their gradient, (one-hot − p) · head / temperature, is worked out while p exists, so that the
    backward pass has one product with the incoming gradient and no logits.
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
    ) -> torch.Tensor:
        values = scores(hidden, head, masks, temperature)
        chosen = values.gather(1, tokens[:, None])[:, 0]
        powers, total = shares(values)
        if ctx.needs_input_grad[0]:
            mean = (powers.to(back.dtype) @ back).float()
            slope = (back[tokens].float() - mean) / temperature
            ctx.save_for_backward(slope.to(hidden.dtype))
        return chosen - total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return (slope * grads[0][:, None]).to(slope.dtype), None, None, None, None, None


class _Fused(_Chunk):
    """The same of many rows, without logits: p · head is attention of the rows on the head.

    torch's public attention does not hand out the log of the sum; the operator below it does.
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
    ) -> torch.Tensor:
        rows, chosen = hidden.to(back.dtype), back[tokens]
        bias = None
        if masks is not None:
            forbidden = torch.from_numpy(unpack(~masks, len(back)))
            bias = torch.zeros(forbidden.shape, dtype=back.dtype).masked_fill_(forbidden, NEVER)
        keys = back[None, None]
        mean, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows[None, None], keys, keys, attn_mask=bias, scale=1 / temperature
        )
        if ctx.needs_input_grad[0]:
            slope = (chosen.float() - mean[0, 0].float()) / temperature
            ctx.save_for_backward(slope.to(hidden.dtype))
        logits = (rows.float() * chosen.float()).sum(-1) / temperature
        return logits.sub_(total.flatten())


def _project(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Float32 logits: in bfloat16 those near 30 would be rounded to quarters."""
    if hidden.is_cuda and head.dtype != torch.float32:
        return torch.mm(hidden.to(head.dtype), head.T, out_dtype=torch.float32)
    return torch.nn.functional.linear(hidden.to(head.dtype), head).float()
