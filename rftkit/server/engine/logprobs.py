"""The one log-prob function of sampler and trainer.

A token's log-prob is its logit over the temperature, minus the log of the sum over the tokens that
were allowed at that place (all of them, or those of a grammar mask). Logits exist only for the
positions asked for, and in the trainer only a chunk at a time: no full-vocabulary tensor is kept
for the backward pass, it is computed again there.
"""

from __future__ import annotations

from typing import Any

import torch

from rftkit.server.engine.grammar import Masks, unpack

__all__ = ["scores", "token_logprobs"]

CHUNK_ROWS = 256
NEVER = -1e30  # finite, so that 0 · NEVER is 0 in the entropy


def scores(
    hidden: torch.Tensor, head: torch.Tensor, masks: Masks | None, temperature: float
) -> torch.Tensor:
    """Logits over the temperature, NEVER where not allowed: (N, V) float32 of hidden (N, width)."""
    logits = _project(hidden, head)
    if temperature != 1.0:
        logits /= temperature
    if masks is None:
        return logits
    allowed = torch.from_numpy(unpack(masks, head.shape[0])).to(hidden.device)
    return logits.masked_fill_(~allowed, NEVER)


def token_logprobs(
    hidden: torch.Tensor,  # (N, width)
    head: torch.Tensor,  # (V, width)
    tokens: torch.Tensor,  # (N,)
    masks: Masks | None,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each token and entropy of each place, (N,) and (N,) float32, in nats."""
    parts = [hidden.new_zeros(2, 0, dtype=torch.float32)]
    for start in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        chunk_masks = None if masks is None else masks[rows]
        chunk = _Chunk.apply(hidden[rows], head, tokens[rows], chunk_masks, temperature)  # type: ignore[no-untyped-call]
        parts.append(torch.stack(chunk))
    logprobs, entropy = torch.cat(parts, dim=1)
    return logprobs, entropy.detach()


class _Chunk(torch.autograd.Function):
    """Log-probs and entropies of some rows; the gradient of a log-prob is (one-hot − p) · head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        tokens: torch.Tensor,
        masks: Masks | None,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = scores(hidden, head, masks, temperature)
        total = torch.logsumexp(values, dim=-1)
        logprobs = values.gather(1, tokens[:, None])[:, 0] - total
        probabilities = torch.exp(values - total[:, None])
        entropy = total - torch.einsum("nv,nv->n", probabilities, values)
        ctx.save_for_backward(hidden, head, tokens, total)
        ctx.masks, ctx.temperature = masks, temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, head, tokens, total = ctx.saved_tensors
        grad = (grads[0] / ctx.temperature)[:, None]  # (N, 1)
        values = scores(hidden, head, ctx.masks, ctx.temperature)
        values.sub_(total[:, None]).exp_().mul_(-grad)
        values.scatter_add_(1, tokens[:, None], grad)
        return (values.to(head.dtype) @ head).to(hidden.dtype), None, None, None, None


def _project(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Float32 logits: in bfloat16 those near 30 would be rounded to quarters."""
    if hidden.is_cuda and head.dtype != torch.float32:
        return torch.mm(hidden.to(head.dtype), head.T, out_dtype=torch.float32)
    return torch.nn.functional.linear(hidden.to(head.dtype), head).float()
