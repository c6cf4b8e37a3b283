"""Draw the next token of many rows from the model's last states.

Each row draws with the numbers of its own key, so which rows are drawn together changes nothing
but rounding. Not here: which tokens a grammar forces (`completions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rftkit.server.engine.grammar import Masks
from rftkit.server.engine.torch.completions import Policy, Row, append
from rftkit.server.engine.torch.logprobs import scores

__all__ = ["draw"]

STRETCH = 256  # tokens whose weights are summed first


def draw(policy: Policy, rows: list[Row], hidden: torch.Tensor) -> None:
    """Append one token to every row, each of which has a choice; `hidden` is (R, width)."""
    by_temperature: dict[float, list[int]] = {}
    for r, row in enumerate(rows):
        by_temperature.setdefault(row.asked.temperature, []).append(r)
    for temperature, members in sorted(by_temperature.items()):
        index = torch.tensor(members, device=hidden.device)
        some = [rows[r] for r in members]
        _draw_at(policy, some, hidden[index], _masks(some), temperature)


def _masks(rows: Sequence[Row]) -> Masks | None:
    """Masks of the tokens that may come next, or None when every row may have any token."""
    words = next((len(row.mask) for row in rows if row.mask is not None), None)
    if words is None:
        return None
    anything = np.full(words, -1, np.int32)
    return np.stack([anything if row.mask is None else row.mask for row in rows])


def _draw_at(
    policy: Policy,
    rows: list[Row],
    hidden: torch.Tensor,
    masks: Masks | None,
    temperature: float,
) -> None:
    """Rows of one temperature."""
    values = scores(hidden, policy.head, masks, temperature or 1.0, policy.cap)  # (R, V)
    wanted = max(row.asked.num_top_logprobs for row in rows)
    top = torch.topk(values, wanted) if wanted else None
    greedy = values.argmax(dim=-1) if temperature == 0 else None
    probs = torch.softmax(values, dim=-1)
    if greedy is not None:
        tokens = greedy
    else:
        top_p = [row.asked.top_p for row in rows]
        uniforms = torch.tensor(
            [row.uniforms[row.num_sampled] for row in rows], device=hidden.device
        )
        tokens = _inverse_cdf(_nucleus(probs, top_p), uniforms)
    chosen = tokens.tolist()
    of_chosen = torch.log(probs.gather(1, tokens[:, None])[:, 0])
    total = values.gather(1, tokens[:, None])[:, 0] - of_chosen  # the log of the sum
    logprobs = of_chosen.tolist()
    for r, row in enumerate(rows):
        count = row.asked.num_top_logprobs
        if count and top is not None:
            values_of_row = (top.values[r, :count] - total[r]).tolist()
            row.top.append(tuple(zip(top.indices[r, :count].tolist(), values_of_row, strict=True)))
        append(row, chosen[r], logprobs[r])


def _inverse_cdf(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which the running share of weights (R, V) passes each uniform (R,).

    First the stretch of tokens in which it does, then the token: a running sum over a whole
    vocabulary takes longer than all else that is done to the weights.
    """
    padding = -probs.shape[-1] % STRETCH
    stretches = torch.nn.functional.pad(probs, (0, padding)) if padding else probs
    stretches = stretches.unflatten(-1, (-1, STRETCH))  # (R, V / STRETCH, STRETCH)
    at, rest = _first_above(stretches.sum(-1), uniforms.to(torch.float32)[:, None], share=True)
    rows = torch.arange(len(probs), device=probs.device)
    token, _ = _first_above(stretches[rows, at[:, 0]], rest)
    return (at * STRETCH + token)[:, 0]


def _first_above(
    weights: torch.Tensor, target: torch.Tensor, *, share: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The position at which the running sum of weights (R, N) first exceeds the target (R, 1), and
    the rest of the target.

    With `share` the target is one of the whole sum.
    """
    running = torch.cumsum(weights, dim=-1)
    total = running[:, -1:]
    # Strictly below the total, so that what is found has a weight.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(target * total if share else target, below)
    at = torch.searchsorted(running, target, right=True)
    # Rounding can put an edge above its target: less than nothing would find what has no weight.
    return at, (target - (running - weights).gather(1, at)).clamp_(min=0)


def _nucleus(probs: torch.Tensor, top_p: list[float]) -> torch.Tensor:
    """Set probs to 0 outside the smallest set of tokens that sums to top_p (Holtzman 2019)."""
    if all(p >= 1.0 for p in top_p):
        return probs
    total = probs.sum(dim=-1, keepdim=True)
    bound = torch.tensor(top_p, device=probs.device)[:, None]
    ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = (torch.cumsum(ordered, dim=-1) - ordered) / total
    kept = torch.where((before < bound) | (bound >= 1.0), ordered, 0.0)
    return torch.zeros_like(probs).scatter_(1, order, kept)
