"""The next tokens of many rows: a prompt's keys precede those of the rows that share them.

Rows of one prompt are laid in blocks of up to eight. A block has one line of keys: the prompt's,
then each row's own, token by token with the rows side by side; a mask hides from a row what is
another's. Attention is then one product for all rows of a block, large enough for the units that
multiply matrices, where each row's own keys alone would not be; eight is where that pays most. All
rows of a layout have the same number of own tokens, and take the same number in each pass (usually
one; several when a grammar leaves no choice for a while). Rows sit in a grid of (block, slot)
cells; when some have left, the empty cells compute with a copy of another row.

Rows of episodes come back after a while, with the keys they had, and differ in how many. Then
`real` says which own tokens there are, and a pass may take more of one row than of another; the
line of tokens has none in the place of those that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from rftkit.server.engine.torch import passes
from rftkit.server.engine.torch.packed import Packed

__all__ = ["BLOCK_ROWS", "Decode", "Keys"]

Keys = list[tuple[torch.Tensor, torch.Tensor]]
"""The keys and values of a row's own tokens, (K, T, D) in each layer."""

BLOCK_ROWS = 8  # rows that share one line of keys
ROOM = 32  # space for own tokens that is added at a time


class Decode:
    """The layout of rows that decode together."""

    def __init__(self, prefill: Packed, prompt_lengths: Sequence[int], groups: list[int]) -> None:
        """`groups[r]` is the group of row r; rows of one group are neighbours.

        A group may have no row.
        """
        assert prefill.keys is not None
        self.device = prefill.device
        blocks, of_group = _blocks(groups)
        lengths = torch.tensor(prompt_lengths, device=self.device)
        opening = prefill.opening
        own = lengths - opening
        before = torch.cumsum(own, 0) - own  # where each prompt would begin without sharing
        wanted = torch.tensor(of_group, device=self.device)
        self.lengths = lengths[wanted]  # of each block's prompt
        self.longest = max(prompt_lengths[group] for group in of_group)
        steps = torch.arange(self.longest, device=self.device)
        # A shorter prompt is filled up with its last token, which the mask hides. The opening is on
        # the line of the prefill once, before the rest of the first prompt.
        place = torch.minimum(steps[None], self.lengths[:, None] - 1)
        index = torch.where(place < opening, place, before[wanted, None] + place)
        self.length = 0  # own tokens a row already has
        self.num = 1  # tokens a row takes in this pass, at most
        self.real: torch.Tensor | None = None  # which own tokens there are, (R, length); None: all
        self._taken: list[int] | None = None  # tokens each row takes in this pass; None: `num`
        self._place(blocks)
        # One a layer, (B, K, P + own tokens · S, D).
        self.keys = [self._with_room(k[index].transpose(1, 2)) for k in prefill.keys]
        self.values = [self._with_room(v[index].transpose(1, 2)) for v in prefill.values]
        self._mask: torch.Tensor | None = None

    def _place(self, blocks: list[int]) -> None:
        """Work out where each row sits in the grid."""
        self.blocks = blocks
        counts = [0] * len(self.lengths)
        places = []
        for block in blocks:
            places.append((block, counts[block]))
            counts[block] += 1
        self.slots = max(counts)
        flat = [block * self.slots + slot for block, slot in places]
        self.is_full = len(blocks) == len(counts) * self.slots
        rows = [0] * (len(counts) * self.slots)
        for row, where in enumerate(flat):
            rows[where] = row
        self.row_to_cell = torch.tensor(flat, device=self.device)
        self.cell_to_row = torch.tensor(rows, device=self.device)
        self.row_lengths = self.lengths[torch.tensor(blocks, device=self.device)]  # (R,)

    def _with_room(self, line: torch.Tensor, num: int = ROOM) -> torch.Tensor:
        """Keys or values (B, K, …, D), with room for this number of further tokens of their own."""
        longer: torch.Tensor = pad(line, (0, 0, 0, num * self.slots))
        return longer

    def _end(self, tokens: int) -> int:
        """The position on a line at which the keys end when rows have this many tokens of their
        own.
        """
        return self.longest + tokens * self.slots

    def take(self, num: int) -> None:
        """Set how many tokens each row takes in the next pass."""
        self.num = num
        self._taken = self._mask = None
        self._make_room()

    def take_each(self, nums: Sequence[int]) -> None:
        """Set how many tokens each row takes in the next pass."""
        self.take(max(nums))
        if min(nums) == self.num:
            return
        self._taken = list(nums)
        if self.real is None:
            self.real = self._all_real(self.length)
        cells = self.row_to_cell.tolist()
        self._at = torch.tensor(  # where in the grid each token of the line is; rows end together
            [
                cell * self.num + self.num - num + i
                for cell, num in zip(cells, nums, strict=True)
                for i in range(num)
            ],
            device=self.device,
        )

    def _all_real(self, num: int) -> torch.Tensor:
        return torch.ones(len(self.blocks), num, dtype=torch.bool, device=self.device)

    def _now_real(self) -> torch.Tensor:
        """Which tokens of this pass there are, (R, n)."""
        if self._taken is None:
            return self._all_real(self.num)
        steps = torch.arange(self.num, device=self.device)
        return steps >= self.num - torch.tensor(self._taken, device=self.device)[:, None]

    def history(self, row: int) -> Keys:
        """The keys of a row's own tokens so far, to continue from later: see `resume`."""
        block, slot = divmod(int(self.row_to_cell[row]), self.slots)
        steps = torch.arange(self.length, device=self.device)
        if self.real is not None:
            steps = steps[self.real[row]]
        places = self.longest + steps * self.slots + slot
        return [(k[block][:, places], v[block][:, places]) for k, v in self._lines()]

    def resume(self, histories: Sequence[Keys]) -> None:
        """Give rows that have no own tokens yet those they once had."""
        lengths = [history[0][0].shape[1] for history in histories]
        self.take(max(lengths))
        places = [divmod(cell, self.slots) for cell in self.row_to_cell.tolist()]
        for layer, line in enumerate(self._lines()):
            for (block, slot), history, length in zip(places, histories, lengths, strict=True):
                start, end = self._end(0) + slot, self._end(length)
                for keys, own in zip(line, history[layer], strict=True):
                    keys[block, :, start : end : self.slots] = own
        self.length = max(lengths)
        if min(lengths) < self.length:
            steps = torch.arange(self.length, device=self.device)
            self.real = steps < torch.tensor(lengths, device=self.device)[:, None]

    def _lines(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(self.keys, self.values, strict=True))

    def _make_room(self) -> None:
        num = self.num
        if self._end(self.length + num) > self.keys[0].shape[2]:
            room = max(ROOM, num)
            self.keys = [self._with_room(k, room) for k in self.keys]
            self.values = [self._with_room(v, room) for v in self.values]

    @property
    def positions(self) -> torch.Tensor:
        """Position of each token of the pass, row by row, (R·n,)."""
        steps = torch.arange(self.num, device=self.device)
        if self.real is None:
            return (self.row_lengths[:, None] + self.length + steps).flatten()
        now = self._now_real()
        before = self.row_lengths + self.real.sum(1)
        places: torch.Tensor = (before[:, None] + now.cumsum(1) - 1)[now]
        return places

    def advance(self) -> None:
        """Count the tokens just computed."""
        if self.real is not None:
            self.real = torch.cat([self.real, self._now_real()], dim=1)
        self.length += self.num

    def keep(self, rows: list[int]) -> None:
        """Forget every row but these, every line none of them needs, and the rest of the longest
        prompt: what follows the end of a shorter one is not a key of a row that is alone.
        """
        alive = sorted({self.blocks[row] for row in rows})
        cells = self.row_to_cell[torch.tensor(rows, device=self.device)]
        wanted = torch.tensor(alive, device=self.device)
        slots, longest, self.lengths = self.slots, self.longest, self.lengths[wanted]
        self.longest = int(self.lengths.max())
        renumber = {block: number for number, block in enumerate(alive)}
        self._place([renumber[self.blocks[row]] for row in rows])
        source = cells[self.cell_to_row]  # the old cell of each new one
        steps = self._keep_real(rows)
        self.keys = [self._moved(k, wanted, source, slots, longest, steps) for k in self.keys]
        self.values = [self._moved(v, wanted, source, slots, longest, steps) for v in self.values]
        self.length = self.length if steps is None else len(steps)

    def _keep_real(self, rows: list[int]) -> torch.Tensor | None:
        """Which own tokens these rows need, where there are some that none of them has."""
        if self.real is None:
            return None
        real = self.real[torch.tensor(rows, device=self.device)]
        steps = real.any(0).nonzero()[:, 0]
        real = real[:, steps]
        self.real = None if real.all() else real
        return steps

    def _moved(
        self,
        line: torch.Tensor,
        wanted: torch.Tensor,
        source: torch.Tensor,
        slots: int,
        longest: int,
        steps: torch.Tensor | None,
    ) -> torch.Tensor:
        """Keys or values without what `keep` drops; `slots` and `longest` are those before it."""
        own = line[:, :, longest : longest + self.length * slots].unflatten(2, (-1, slots))
        own = own if steps is None else own[:, :, steps]
        # (B, K, T, S, D) → (B·S, K, T, D) and back: what belongs to one row moves as one.
        each = own.permute(0, 3, 1, 2, 4).flatten(0, 1)
        kept = each[source].unflatten(0, (-1, self.slots)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        prompts = line[wanted, :, : self.longest]
        return self._with_room(torch.cat([prompts, kept], dim=2))

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """See Layout."""
        if self.num == 1 and self._sees_all:
            return self._attend_one(layer, q, k, v), None
        rep = q.shape[2]
        q, k, v = self._cells(q), self._cells(k), self._cells(v)  # (B, S, n, K, …)
        start, end = self._end(self.length), self._end(self.length + self.num)
        for line, new in ((self.keys[layer], k), (self.values[layer], v)):
            own = line[:, :, start:end].unflatten(2, (self.num, self.slots))
            # (B, S, n, K, D) → (B, K, n, S, D): token by token, the rows of a block side by side.
            own.copy_(new.permute(0, 3, 2, 1, 4))
        if self._mask is None:
            self._mask = self._seen(rep, q.dtype)
        # All rows of a block, and all query heads that share a key head, are rows of one product.
        queries = q.permute(0, 3, 1, 2, 4, 5).flatten(2, 4)  # (B, K, S·n·rep, D)
        keys, values = self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
        out = scaled_dot_product_attention(
            queries, keys, values, attn_mask=self._mask, scale=1.0
        ).unflatten(2, (self.slots, self.num, rep))
        return self._rows(out.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 1)), None

    @property
    def _sees_all(self) -> bool:
        """Whether there is one row, which sees all keys of its line and needs no mask."""
        return self.slots == len(self.blocks) == 1 and self.real is None

    @property
    def fills(self) -> bool:
        """Whether `fill` computes attention of this pass."""
        return self.num == 1 and self._taken is None and passes.has_kernels(self.keys[0])

    def fill(
        self,
        layer: int,
        qk: torch.Tensor,
        v: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        room: torch.Tensor,
    ) -> None:
        """Fill the room (`passes.py`) of the next product with the attention of one token a row.

        It takes queries and keys before they are rotated, (R, H + K, D), and v (R, K, D): what
        `attend` does between two products, in three operations.
        """
        keys, values = self.keys[layer], self.values[layer]
        if self._mask is None and not self._sees_all:
            self._mask = self._seen(qk.shape[1] // v.shape[1] - 1, qk.dtype)
        start, end = self._end(self.length), self._end(self.length + 1)
        queries = passes.place(qk, v, *tables, self.cell_to_row, keys, values, start)
        attended = scaled_dot_product_attention(
            queries, keys[:, :, :end], values[:, :, :end], attn_mask=self._mask, scale=1.0
        )
        passes.collect(attended, self.slots, self.row_to_cell, room)

    def _attend_one(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one token of one row, which sees all keys and needs no mask."""
        place = self._end(self.length)
        keys, values = self.keys[layer], self.values[layer]
        keys[0, :, place], values[0, :, place] = k[0], v[0]
        seen = slice(place + 1)
        out = scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen], scale=1.0)
        return out.flatten(1)

    def _seen(self, rep: int, dtype: torch.dtype) -> torch.Tensor:
        """The mask that is added to the scores: 0 or -infinity, (B or 1, 1, S·n·rep, keys)."""
        slots, steps = (torch.arange(num, device=self.device) for num in (self.slots, self.num))
        own = torch.arange(self._end(self.length + self.num) - self.longest, device=self.device)
        is_mine = own % self.slots == slots[:, None]  # (S, own keys)
        is_past = own // self.slots <= self.length + steps[:, None]  # (n, own keys)
        seen = is_mine[:, None] & is_past  # (S, n, own keys)
        if self.real is not None:
            real = torch.cat([self.real, self._now_real()], dim=1)[self.cell_to_row]
            there = real.unflatten(0, (-1, self.slots))[:, :, own // self.slots]
            seen = seen & there[:, :, None]  # (B, S, n, own keys)
        seen = seen.repeat_interleave(rep, dim=-2).flatten(-3, -2)
        places = torch.arange(self.longest, device=self.device)
        prompts = places < self.lengths[:, None]  # (B, P)
        if prompts.all() and self.real is None:
            prompts = prompts[:1]  # one mask for all
        seen = torch.cat(
            [
                prompts[:, None].expand(-1, seen.shape[-2], -1),
                seen.expand(len(prompts), -1, -1),
            ],
            dim=2,
        )
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~seen, -torch.inf)[:, None]

    def _cells(self, rows: torch.Tensor) -> torch.Tensor:
        """(R·n, …) → (B, S, n, …)."""
        if self._taken is not None:
            sparse = rows.new_zeros(len(self.cell_to_row) * self.num, *rows.shape[1:])
            sparse[self._at] = rows
            return sparse.view(-1, self.slots, self.num, *rows.shape[1:])
        each = rows.unflatten(0, (-1, self.num))
        cells: torch.Tensor = each if self.is_full else each[self.cell_to_row]
        grid: torch.Tensor = cells.unflatten(0, (-1, self.slots))
        return grid

    def _rows(self, cells: torch.Tensor) -> torch.Tensor:
        """(B·S, n, X) → (R·n, X)."""
        if self._taken is not None:
            return cells.flatten(0, 1)[self._at]
        each = cells if self.is_full else cells[self.row_to_cell]
        return each.reshape(-1, each.shape[-1])


def _blocks(groups: Sequence[int]) -> tuple[list[int], list[int]]:
    """The block of each row, and the group of each block."""
    blocks: list[int] = []
    of_group: list[int] = []
    num = 0  # rows in the last block
    for group in groups:
        if not of_group or of_group[-1] != group or num == BLOCK_ROWS:
            of_group.append(group)
            num = 0
        blocks.append(len(of_group) - 1)
        num += 1
    return blocks, of_group
