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
LONG_PROMPT = 256  # tokens


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
    for name in ("softcap", "s_aux", "sliding_window"):
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
        positions: list[int] = []
        self._groups: list[_Group] = []
        for p, lengths in zip(prompt_lengths, completion_lengths, strict=True):
            self._groups.append(_Group(len(positions), p, lengths, device))
            positions += range(p)
            for length in lengths:
                positions += range(p, p + length)
        self.positions = torch.tensor(positions, device=device)  # (N,)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Layout."""
        if self.keys is not None:
            self.keys.append(k)
            self.values.append(v)
        heads, kv, size = q.shape[0], k.shape[0], q.shape[2]
        queries = (q.transpose(0, 1) * scale).view(-1, kv, heads // kv, size)  # (N, K, rep, D)
        keys, values = k.transpose(0, 1), v.transpose(0, 1)  # (N, K, D)
        # One group at a time: its score matrices stay in the processor's cache.
        parts = [part for group in self._groups for part in group.attend(queries, keys, values)]
        return torch.cat(parts)


class _Group:
    """One group on the flat line."""

    def __init__(
        self, start: int, prompt: int, lengths: Sequence[int], device: torch.device
    ) -> None:
        self.prompt = slice(start, start + prompt)
        kept = [length for length in lengths if length]  # one-token answers add no input
        self.own = slice(start + prompt, start + prompt + sum(kept))
        self.shape = (len(kept), max(kept, default=0))  # G, T
        longest = self.shape[1]
        starts = [sum(kept[:g]) for g in range(len(kept))]
        gather = [
            s + min(i, n - 1) for s, n in zip(starts, kept, strict=True) for i in range(longest)
        ]
        scatter = [g * longest + i for g, n in enumerate(kept) for i in range(n)]
        self.gather = torch.tensor(gather, device=device, dtype=torch.long)  # (G·T,) into `own`
        self.scatter = torch.tensor(scatter, device=device, dtype=torch.long)  # (own,) into G·T
        self.later = _later(longest, device)
        self.later_prompt = _later(prompt, device) if prompt <= LONG_PROMPT else None

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        """Rows of this group's tokens, (P, H, D) and (own, H, D), in order."""
        kp, vp = k[self.prompt].transpose(0, 1), v[self.prompt].transpose(0, 1)  # (K, P, D)
        parts = [self._prompt_rows(q[self.prompt], kp, vp)]
        if self.shape[1]:
            qo, ko, vo = (each[self.own].index_select(0, self.gather) for each in (q, k, v))
            parts.append(self._own_rows(qo, ko, vo, kp, vp))
        return parts

    def _prompt_rows(self, q: torch.Tensor, kp: torch.Tensor, vp: torch.Tensor) -> torch.Tensor:
        length, kv, rep, size = q.shape
        q = q.permute(1, 2, 0, 3)  # (K, rep, P, D)
        if self.later_prompt is None:  # keeps no P² matrix, but has a slow backward pass
            out = scaled_dot_product_attention(
                q.reshape(1, kv * rep, length, size),
                kp[None], vp[None], is_causal=True, scale=1.0, enable_gqa=True,
            )[0]  # fmt: skip
            return out.transpose(0, 1)
        scores = (q.reshape(kv, rep * length, size) @ kp.transpose(1, 2)).float()
        scores = scores.view(kv, rep, length, length).masked_fill_(self.later_prompt, -torch.inf)
        weights = torch.softmax(scores, dim=-1).to(vp.dtype)
        out = (weights.view(kv, rep * length, length) @ vp).view(kv, rep, length, size)
        return out.permute(2, 0, 1, 3).reshape(length, kv * rep, size)

    def _own_rows(
        self,
        q: torch.Tensor,  # (G·T, K, rep, D)
        k: torch.Tensor,  # (G·T, K, D)
        v: torch.Tensor,
        kp: torch.Tensor,  # (K, P, D)
        vp: torch.Tensor,
    ) -> torch.Tensor:
        num, longest = self.shape
        _, kv, rep, size = q.shape
        length = kp.shape[1]
        q = q.view(num, longest, kv, rep, size).permute(2, 0, 3, 1, 4).contiguous()
        k, v = (each.view(num, longest, kv, size).permute(2, 0, 1, 3) for each in (k, v))
        wide = (kv, num, rep, longest, -1)
        shared = q.view(kv, num * rep * longest, size) @ kp.transpose(1, 2)  # (K, G·rep·T, P)
        own = q.view(kv, num, rep * longest, size) @ k.transpose(2, 3)  # (K, G, rep·T, T)
        own = own.view(wide).masked_fill(self.later, -torch.inf)
        scores = torch.cat([shared.view(wide), own], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(vp.dtype)
        on_prompt = weights[..., :length].reshape(kv, -1, length) @ vp
        on_own = weights[..., length:].reshape(kv, num, -1, longest) @ v
        out = on_prompt.view(*wide[:4], size) + on_own.view(*wide[:4], size)
        rows = out.permute(1, 3, 0, 2, 4).reshape(num * longest, kv * rep, size)
        return rows.index_select(0, self.scatter)


def _later(length: int, device: torch.device) -> torch.Tensor:
    """True where a token would see a later one, (T, T)."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


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
