"""The next tokens of many rows: the prompt's keys exist once a group, each row has its own after.

All rows of a layout have the same number of own tokens, and take the same number in each pass
(usually one; several when a grammar leaves no choice for a while), so nothing is masked but the
diagonal of a pass and the padding of prompts of other lengths. Rows sit in a grid of (group, slot)
cells; when some have left, the empty cells compute with a copy of another row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rftkit.server.engine.packed import Packed

__all__ = ["Decode"]

ROOM = 32  # own tokens by which a cache grows


class Decode:
    """The layout of rows that decode together."""

    def __init__(self, prefill: Packed, prompt_lengths: Sequence[int], groups: list[int]) -> None:
        """`groups[r]` is the group of row r; rows of one group are neighbours."""
        assert prefill.keys is not None
        self.device = prefill.device
        lengths = torch.tensor(prompt_lengths, device=self.device)
        longest = int(lengths.max())
        starts = torch.cumsum(lengths, 0) - lengths
        steps = torch.arange(longest, device=self.device)
        index = starts[:, None] + torch.minimum(steps[None], lengths[:, None] - 1)  # (B, P)
        self.prompt_keys = [k[index].transpose(1, 2).contiguous() for k in prefill.keys]
        self.prompt_values = [v[index].transpose(1, 2).contiguous() for v in prefill.values]
        hidden = steps[None] >= lengths[:, None]  # (B, P)
        dtype = prefill.keys[0].dtype
        bias = torch.zeros(hidden.shape, device=self.device, dtype=dtype)
        self.bias = bias.masked_fill(hidden, -torch.inf)
        self.lengths = lengths
        self.length = 0  # own tokens a row already has
        self.num = 1  # tokens a row takes in this pass
        self.keys: list[torch.Tensor] = []  # one a layer, (B, K, S, capacity, D)
        self.values: list[torch.Tensor] = []
        self._place(groups)

    def _place(self, groups: list[int]) -> None:
        """Work out where each row sits in the grid."""
        self.groups = groups
        counts = [0] * len(self.lengths)
        places = []
        for group in groups:
            places.append((group, counts[group]))
            counts[group] += 1
        self.slots = max(counts)
        flat = [group * self.slots + slot for group, slot in places]
        self.is_full = len(groups) == len(counts) * self.slots
        rows = [0] * (len(counts) * self.slots)
        for row, where in enumerate(flat):
            rows[where] = row
        self.row_to_cell = torch.tensor(flat, device=self.device)
        self.cell_to_row = torch.tensor(rows, device=self.device)
        self.row_lengths = self.lengths[torch.tensor(groups, device=self.device)]  # (R,)
        kv = self.prompt_keys[0].shape[1]
        self._wide_bias = self.bias.repeat_interleave(kv, dim=0)[:, None]  # (B·K, 1, P)

    def take(self, num: int) -> None:
        """Say how many tokens each row takes in the next pass."""
        self.num = num
        if self.keys and self.length + num > self.keys[0].shape[3]:
            room = max(ROOM, num)
            self.keys = [torch.cat([k, k.new_empty(*k.shape[:3], room, k.shape[4])], 3)
                         for k in self.keys]  # fmt: skip
            self.values = [torch.cat([v, v.new_empty(*v.shape[:3], room, v.shape[4])], 3)
                           for v in self.values]  # fmt: skip

    @property
    def positions(self) -> torch.Tensor:
        """Position of each token of the pass, row by row, (R·n,)."""
        steps = torch.arange(self.num, device=self.device)
        return (self.row_lengths[:, None] + self.length + steps).flatten()

    def advance(self) -> None:
        """Count the tokens just computed."""
        self.length += self.num

    def keep(self, rows: list[int]) -> None:
        """Forget every row but these, and every prompt none of them needs."""
        alive = sorted({self.groups[row] for row in rows})
        cells = self.row_to_cell[torch.tensor(rows, device=self.device)]
        if len(alive) < len(self.lengths):
            wanted = torch.tensor(alive, device=self.device)
            self.prompt_keys = [k[wanted] for k in self.prompt_keys]
            self.prompt_values = [v[wanted] for v in self.prompt_values]
            self.bias, self.lengths = self.bias[wanted], self.lengths[wanted]
        renumber = {group: number for number, group in enumerate(alive)}
        self._place([renumber[self.groups[row]] for row in rows])
        source = cells[self.cell_to_row]  # the old cell of each new one
        self.keys = [self._move(k, source) for k in self.keys]
        self.values = [self._move(v, source) for v in self.values]

    def _move(self, cache: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        cells = cache.transpose(1, 2).flatten(0, 1)[source]  # (B·S, K, capacity, D)
        moved: torch.Tensor = cells.unflatten(0, (-1, self.slots)).transpose(1, 2).contiguous()
        return moved

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """See Layout."""
        _, kv, rep, size = q.shape
        q, k, v = self._cells(q), self._cells(k), self._cells(v)  # (B, S, n, K, …)
        grid = (len(q), kv, self.slots)
        queries = q.permute(0, 3, 1, 4, 2, 5).reshape(grid[0] * kv, -1, size)  # (B·K, S·rep·n, D)
        own_keys, own_values = self._append(layer, k, v)  # (B·K·S, t, D)
        per_cell = (grid[0] * kv * self.slots, -1, size)

        keys, values = (
            self.prompt_keys[layer].flatten(0, 1),
            self.prompt_values[layer].flatten(0, 1),
        )
        shared = torch.baddbmm(self._wide_bias, queries, keys.transpose(1, 2))  # (B·K, S·rep·n, P)
        own = queries.view(per_cell) @ own_keys.transpose(1, 2)  # (B·K·S, rep·n, t)
        self._hide_later(own)
        scores = torch.cat([shared.view(*own.shape[:2], -1), own], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        longest = keys.shape[1]
        out = weights[..., longest:] @ own_values  # (B·K·S, rep·n, D)
        flat = weights.view(len(keys), -1, weights.shape[-1])[..., :longest]
        out = out.view(len(keys), -1, size).baddbmm_(flat, values)
        out = out.view(*grid, rep, self.num, size).permute(0, 2, 4, 1, 3, 5)
        return self._rows(out.reshape(grid[0] * self.slots, self.num, -1)), None

    def _hide_later(self, own: torch.Tensor) -> None:
        """Mask the diagonal of a pass of several tokens, in place."""
        if self.num > 1:
            later = torch.ones(self.num, self.num, dtype=torch.bool, device=self.device).triu(1)
            last = own.view(len(own), -1, self.num, own.shape[-1])[..., self.length :]
            last.masked_fill_(later, -torch.inf)

    def _append(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the pass's keys and values, (B, S, n, K, D), behind those of before."""
        groups, slots, num, kv, size = k.shape
        if layer == len(self.keys):
            self.keys.append(k.new_empty(groups, kv, slots, max(ROOM, num), size))
            self.values.append(torch.empty_like(self.keys[-1]))
        end = self.length + num
        result = []
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            cache[:, :, :, self.length : end] = new.permute(0, 3, 1, 2, 4)
            result.append(cache.view(-1, cache.shape[3], size)[:, :end])
        return result[0], result[1]

    def _cells(self, rows: torch.Tensor) -> torch.Tensor:
        """(R·n, …) → (B, S, n, …)."""
        each = rows.unflatten(0, (-1, self.num))
        cells: torch.Tensor = each if self.is_full else each[self.cell_to_row]
        grid: torch.Tensor = cells.unflatten(0, (-1, self.slots))
        return grid

    def _rows(self, cells: torch.Tensor) -> torch.Tensor:
        """(B·S, n, X) → (R·n, X)."""
        each = cells if self.is_full else cells[self.row_to_cell]
        return each.reshape(-1, each.shape[-1])
