"""Attention that also gives the log of its sums, so that rows can take it in parts.

A row that sees two sets of keys attends to each by itself, and `join` puts the results together
(Dao et al. 2022, arXiv:2205.14135): nothing of the size rows × keys is written down on a CPU. For
sampling only: training keeps its weights for the way back (`packed.py`), which is faster there
than working them out again.
"""

from __future__ import annotations

import torch

__all__ = ["attend", "join"]


def attend(
    q: torch.Tensor,  # (B, H, L, D), scaled
    k: torch.Tensor,  # (B, H, S, D)
    v: torch.Tensor,
    bias: torch.Tensor | None = None,  # added to the scores, (B, 1, L, S)
    *,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, H, L, D), and the log of the sum of exponentials (B, H, L) in float32."""
    if q.device.type == "cpu":
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=1.0
        )
        return out, total
    scores = (q @ k.transpose(2, 3)).float()
    if bias is not None:
        scores += bias
    if causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v, torch.logsumexp(scores, dim=-1)


def join(
    out: torch.Tensor, total: torch.Tensor, more: torch.Tensor, of_more: torch.Tensor
) -> torch.Tensor:
    """Output of rows that attend to two sets of keys; out (…, D), total (…)."""
    share = torch.sigmoid(of_more - total)[..., None]
    return torch.lerp(out.float(), more.float(), share).to(out.dtype)
