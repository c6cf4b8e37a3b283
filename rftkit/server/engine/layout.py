"""How tokens lie in memory, and which tokens see which: the attention of sampler and trainer.

Every forward pass runs over one flat line of tokens, (1, N), without padding; a *layout* then says
what each token attends to. `Packed` lays `[prompt][c1]…[cG]` for each group, so that a prompt is
computed once for all of its completions (training), and with no completions it is the prefill.
`Decode` has one new token a row, the prompt's keys shared by the rows of its group.

A layout is handed to a transformers model as a keyword argument of its forward; the attention
function registered here finds it there. Not covered: sliding windows, soft-capped or sink
attention; such models are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["ATTENTION_NAME", "Decode", "Packed", "register_attention"]

ATTENTION_NAME = "rftkit"


class Layout(Protocol):
    """Who sees whom, for one forward pass."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention output (N, H, D) of q (H, N, D), k and v (K, N, D)."""
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
    attention_mask: None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert layout is not None, "a model with rftkit attention needs layout="
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name} is not supported by this engine")
    scale = module.head_dim**-0.5 if scaling is None else scaling
    q, k = query[0].to(value.dtype), key[0].to(value.dtype)  # rotation may have widened them
    out = layout.attend(module.layer_idx, q, k, value[0], scale)  # (N, H, D)
    return out.unsqueeze(0), None


class Packed:
    """Groups laid end to end: a prompt, then its completions, each seeing the prompt and itself."""

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        completion_lengths: Sequence[Sequence[int]],
        device: torch.device,
        *,
        keep_keys: bool = False,
    ) -> None:
        """Lengths in tokens. With `keep_keys`, `keys` and `values` collect what prefill needs."""
        self.device = device
        self.keys: list[torch.Tensor] | None = [] if keep_keys else None
        self.values: list[torch.Tensor] = []
        self.positions = torch.tensor(
            [
                position
                for p, lengths in zip(prompt_lengths, completion_lengths, strict=True)
                for span in (range(p), *(range(p, p + t) for t in lengths))
                for position in span
            ],
            device=device,
        )  # (N,)
        self._groups = []
        start = 0
        for p, lengths in zip(prompt_lengths, completion_lengths, strict=True):
            self._groups.append(_Group(start, p, list(lengths), device))
            start += p + sum(lengths)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Layout."""
        if self.keys is not None:
            self.keys.append(k)
            self.values.append(v)
        parts = [part for group in self._groups for part in group.attend(q, k, v, scale)]
        return torch.cat(parts)


class _Group:
    """The indices of one group on the flat line."""

    def __init__(self, start: int, prompt: int, lengths: list[int], device: torch.device) -> None:
        self.prompt = slice(start, start + prompt)
        self.total = sum(lengths)
        self.own = slice(start + prompt, start + prompt + self.total)
        if not self.total:
            return
        longest = max(lengths)
        offsets, rows = 0, []
        for length in lengths:  # pads repeat the row's first token; nothing real attends to them
            rows.append([offsets + min(i, max(length - 1, 0)) for i in range(longest)])
            offsets += length
        rows = [row for row, length in zip(rows, lengths, strict=True) if length]
        kept = [length for length in lengths if length]
        self.gather = torch.tensor(rows, device=device)  # (G, T) into `own`
        flat = [g * longest + i for g, length in enumerate(kept) for i in range(length)]
        self.scatter = torch.tensor(flat, device=device)  # (own,) into (G·T)
        see_prompt = torch.ones(longest, prompt, dtype=torch.bool, device=device)
        see_own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        self.mask = torch.cat([see_prompt, see_own], dim=1)  # (T, P + T)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> list[torch.Tensor]:
        kp, vp = k[:, self.prompt], v[:, self.prompt]  # (K, P, D)
        out = scaled_dot_product_attention(
            q[None, :, self.prompt], kp[None], vp[None], is_causal=True, scale=scale, enable_gqa=True
        )[0].transpose(0, 1)  # (P, H, D)
        if not self.total:
            return [out]
        num = self.gather.shape[0]
        qc = q[:, self.own][:, self.gather].transpose(0, 1)  # (G, H, T, D)
        kc = k[:, self.own][:, self.gather].transpose(0, 1)
        vc = v[:, self.own][:, self.gather].transpose(0, 1)
        kc = torch.cat([kp.expand(num, -1, -1, -1), kc], dim=2)  # (G, K, P + T, D)
        vc = torch.cat([vp.expand(num, -1, -1, -1), vc], dim=2)
        own = scaled_dot_product_attention(
            qc, kc, vc, attn_mask=self.mask, scale=scale, enable_gqa=True
        )  # (G, H, T, D)
        own = own.transpose(1, 2).reshape(-1, *own.shape[1::2])  # (G·T, H, D)
        return [out, own[self.scatter]]


class Decode:
    """One new token a row. The prompt's keys exist once a group; each row has its own after it."""

    def __init__(self, prefill: Packed, prompt_lengths: Sequence[int], groups: list[int]) -> None:
        """`groups[r]` is the group of row r; rows of one group are neighbours."""
        assert prefill.keys is not None
        self.device = prefill.device
        lengths = torch.tensor(prompt_lengths, device=self.device)
        longest = int(lengths.max())
        starts = torch.cumsum(lengths, 0) - lengths
        steps = torch.arange(longest, device=self.device)
        index = starts[:, None] + torch.minimum(steps[None], lengths[:, None] - 1)  # (B, P)
        self.prompt_keys = [k[:, index].transpose(0, 1).contiguous() for k in prefill.keys]
        self.prompt_values = [v[:, index].transpose(0, 1).contiguous() for v in prefill.values]
        hidden = steps[None] >= lengths[:, None]  # (B, P)
        self.bias = torch.zeros(hidden.shape, device=self.device).masked_fill(hidden, -torch.inf)
        self.lengths = lengths
        self.length = 0  # own tokens a row already has
        self.keys: list[torch.Tensor] = []  # one a layer, (R, K, capacity, D)
        self.values: list[torch.Tensor] = []
        self._place(groups)

    def _place(self, groups: list[int]) -> None:
        """Work out where each row sits in the (group, slot) grid of the prompt attention."""
        self.groups = groups
        counts = [0] * len(self.lengths)
        slots = []
        for group in groups:
            slots.append(counts[group])
            counts[group] += 1
        self.slots = max(counts)
        place = [g * self.slots + s for g, s in zip(groups, slots, strict=True)]
        self.is_full = place == list(range(len(self.lengths) * self.slots))
        self.row_to_place = torch.tensor(place, device=self.device)
        place_to_row = [0] * (len(self.lengths) * self.slots)
        for row, where in enumerate(place):
            place_to_row[where] = row
        self.place_to_row = torch.tensor(place_to_row, device=self.device)
        self.row_lengths = self.lengths[torch.tensor(groups, device=self.device)]  # (R,)

    @property
    def positions(self) -> torch.Tensor:
        """Position of each row's new token, (R,)."""
        return self.row_lengths + self.length

    def keep(self, rows: list[int]) -> None:
        """Forget every row but these, and every prompt none of them needs."""
        index = torch.tensor(rows, device=self.device)
        self.keys = [k[index] for k in self.keys]
        self.values = [v[index] for v in self.values]
        alive = sorted({self.groups[row] for row in rows})
        if len(alive) < len(self.lengths):
            wanted = torch.tensor(alive, device=self.device)
            self.prompt_keys = [k[wanted] for k in self.prompt_keys]
            self.prompt_values = [v[wanted] for v in self.prompt_values]
            self.bias, self.lengths = self.bias[wanted], self.lengths[wanted]
        renumber = {group: number for number, group in enumerate(alive)}
        self._place([renumber[self.groups[row]] for row in rows])

    def advance(self) -> None:
        """Count the token just computed."""
        self.length += 1

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Layout. q (H, R, D), k and v (K, R, D)."""
        num_rows, heads, kv, size = q.shape[1], q.shape[0], k.shape[0], q.shape[2]
        rep = heads // kv
        own_k, own_v = self._append(layer, k, v)  # (R, K, t, D)
        qr = (q.transpose(0, 1) * scale).reshape(num_rows, kv, rep, size)  # (R, K, rep, D)
        own = qr @ own_k.transpose(-1, -2)  # (R, K, rep, t)

        shared_k, shared_v = self.prompt_keys[layer], self.prompt_values[layer]  # (B, K, P, D)
        shared = self._to_grid(qr) @ shared_k.transpose(-1, -2)  # (B, K, S·rep, P)
        scores = torch.cat(
            [self._to_rows(shared.float() + self.bias[:, None, None], rep), own.float()], dim=-1
        )
        weights = torch.softmax(scores, dim=-1).to(q.dtype)  # (R, K, rep, P + t)
        longest = shared_k.shape[2]
        out = weights[..., longest:] @ own_v  # (R, K, rep, D)
        out = out + self._to_rows(self._to_grid(weights[..., :longest]) @ shared_v, rep)
        return out.reshape(num_rows, heads, size)

    def _append(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer == len(self.keys):
            self.keys.append(k.new_empty(k.shape[1], k.shape[0], 32, k.shape[2]))
            self.values.append(torch.empty_like(self.keys[-1]))
        if self.length == self.keys[layer].shape[2]:
            room = torch.empty_like(self.keys[layer])
            self.keys[layer] = torch.cat([self.keys[layer], room], dim=2)
            self.values[layer] = torch.cat([self.values[layer], room], dim=2)
        self.keys[layer][:, :, self.length] = k.transpose(0, 1)
        self.values[layer][:, :, self.length] = v.transpose(0, 1)
        end = self.length + 1
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def _to_grid(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, K, rep, X) → (B, K, S·rep, X)."""
        _, kv, rep, size = rows.shape
        grid = rows if self.is_full else rows[self.place_to_row]
        grid = grid.view(-1, self.slots, kv, rep, size).transpose(1, 2)
        return grid.reshape(-1, kv, self.slots * rep, size)

    def _to_rows(self, grid: torch.Tensor, rep: int) -> torch.Tensor:
        """(B, K, S·rep, X) → (R, K, rep, X)."""
        groups, kv, _, size = grid.shape
        rows = grid.view(groups, kv, self.slots, rep, size).transpose(1, 2)
        rows = rows.reshape(-1, kv, rep, size)
        return rows if self.is_full else rows[self.row_to_place]
