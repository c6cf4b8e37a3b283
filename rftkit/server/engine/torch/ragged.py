"""Rows that each have a prompt of their own, and may join between two tokens: chats.

Whom a chat shares a pass with must not change its answer, to the last bit. A product of matrices
rounds a row in the same way whatever other rows are there; the attention kernel rounds by its
shapes. So `Prefill` has a call for each prompt, of whole blocks. In `Ragged` each
row has a line of keys: its prompt's, then its own, filled up to whole vectors, and a mask hides
what is not there yet. All rows that take one token are in one call, which sums a row's keys in the
same order whether others are longer or not; rows that take several, because a grammar leaves no
choice, have calls of their own. Not here: completions that share a prompt (`packed`, `decode`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from rftkit.server.engine.torch.packed import check_layer

__all__ = ["MOST_TOKENS", "Prefill", "Ragged", "shareable"]

VECTORS = 64
"""Keys by which a line grows: whole vectors."""
KEY_BLOCK, QUERY_BLOCK, LONG_BLOCK = 512, 64, 256
"""Block sizes of the fused kernel: of keys, and of queries for a prompt of less and of at least
`LONG` tokens. How it rounds blocks that are not full depends on their size."""
LONG = 768
MOST_TOKENS = 1_024
"""Most tokens of prompts that are read in one pass. A longer prompt is read alone, without filling
up blocks."""
SHORT = 512
"""Places up to which a line may be longer than its row needs."""


def shareable(opening: int) -> int:
    """How much of an opening several prompts can share: whole blocks of queries."""
    return opening // QUERY_BLOCK * QUERY_BLOCK


class Prefill:
    """The layout of prompts that are read in one pass. See layout.Layout.

    The line begins with an opening that all of them have, perhaps of no token; then comes the rest
    of each.
    """

    def __init__(self, lengths: Sequence[int], opening: int, device: torch.device) -> None:
        """Lengths in tokens of whole prompts, each longer than the opening."""
        self.device, self.opening, self.lengths = device, opening, list(lengths)
        self.keys: list[torch.Tensor] = []
        """The keys of the line for each layer, (N, K, D); `values` likewise."""
        self.values: list[torch.Tensor] = []
        self._where: list[torch.Tensor] = []  # on the line, the tokens of each prompt
        before = 0
        for length in lengths:
            steps = torch.arange(length, device=device)
            self._where.append(torch.where(steps < opening, steps, before + steps))
            before += length - opening
        own = [torch.arange(opening, length, device=device) for length in lengths]
        self.positions = torch.cat([torch.arange(opening, device=device), *own])  # (N,)

    def place(self, prompt: int, longest: int) -> torch.Tensor:
        """The positions of a prompt's tokens on the line, (longest,), padded with the last one."""
        where = self._where[prompt]
        return torch.cat([where, where[-1:].expand(longest - len(where))])

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """See Layout."""
        check_layer(layer, len(self.keys))
        self.keys.append(k)
        self.values.append(v)
        out = q.new_empty(len(q), q.shape[1] * q.shape[2] * q.shape[3])
        for number, where in enumerate(self._where):
            # all prompts share the opening of the first
            own = where[self.opening if number else 0 :]
            out[own] = _prompt_rows(q[own], k[where], v[where])
        return out, None


class Ragged:
    """The layout of rows with prompts of their own. See layout.Layout."""

    def __init__(self, prefill: Prefill) -> None:
        """Make one row for each prompt that was read."""
        self._device = prefill.device
        self._lengths = list(prefill.lengths)  # of each row's line so far
        self._nums = [1] * len(self._lengths)  # tokens each row takes in this pass
        self._ended: Collection[int] = ()
        longest = max(self._lengths)
        where = torch.stack([prefill.place(row, longest) for row in range(len(self._lengths))])
        room = _filled(longest + 1) - longest
        # One a layer, (R, K, places, D).
        self._keys = [pad(k[where].transpose(1, 2), (0, 0, 0, room)) for k in prefill.keys]
        self._values = [pad(v[where].transpose(1, 2), (0, 0, 0, room)) for v in prefill.values]

    @property
    def places(self) -> int:
        """The number of keys that each line has space for."""
        return self._keys[0].shape[2]

    def is_near(self, other: Ragged) -> bool:
        """Whether the lines of both, made equally long, take little more memory."""
        longest = max(self.places, other.places)
        return longest <= max(SHORT, 2 * min(self.places, other.places))

    def join(self, other: Ragged) -> None:
        """Add the rows of another layout, after these."""
        places = max(self.places, other.places)
        self._make_room(places)
        other._make_room(places)
        self._keys = [torch.cat(both) for both in zip(self._keys, other._keys, strict=True)]
        self._values = [torch.cat(both) for both in zip(self._values, other._values, strict=True)]
        self._lengths += other._lengths
        self._nums += other._nums

    def keep(self, rows: Sequence[int]) -> None:
        """Forget every row but these, and the places that none of them needs."""
        self._lengths = [self._lengths[row] for row in rows]
        self._nums = [self._nums[row] for row in rows]
        wanted = torch.tensor(rows, device=self._device)
        places = _filled(max(self._lengths) + 1)
        self._keys = [k[wanted, :, :places] for k in self._keys]
        self._values = [v[wanted, :, :places] for v in self._values]

    def take_each(self, nums: Sequence[int], ended: Collection[int] = ()) -> None:
        """Set how many tokens each row takes in the next pass; rows that ended keep
        none of them.
        """
        self._nums = list(nums)
        self._ended = ended
        ends = [length + num for length, num in zip(self._lengths, nums, strict=True)]
        self._make_room(_filled(max(ends)))
        starts = [0]
        for num in nums:
            starts.append(starts[-1] + num)
        self._starts = starts  # where on the line of tokens each row's begin
        rows = [row for row, num in enumerate(nums) for _ in range(num)]
        places = [end - num + i for end, num in zip(ends, nums, strict=True) for i in range(num)]
        self._row = torch.tensor(rows, device=self._device)
        self.positions = torch.tensor(places, device=self._device)  # (N,)
        self._several = [row for row, num in enumerate(nums) if num > 1]
        self._first = torch.tensor(starts[:-1], device=self._device)
        self._mask: torch.Tensor | None = None

    def advance(self) -> None:
        """Count the tokens just computed."""
        for row, num in enumerate(self._nums):
            if row not in self._ended:
                self._lengths[row] += num

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """See Layout."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._row, :, self.positions] = k
        values[self._row, :, self.positions] = v
        end = _filled(max(n + num for n, num in zip(self._lengths, self._nums, strict=True)))
        if self._mask is None:
            self._mask = _hidden(self.positions[self._first, None], end, q.shape[2], q.dtype)
        # Rows that take several tokens are in this product too, and what it says of them is unread.
        firsts = q if not self._several else q[self._first]
        out = _attention(firsts, keys[:, :, :end], values[:, :, :end], self._mask).flatten(1)
        if not self._several:
            return out, None
        line = out[self._row]
        for row in self._several:
            of_row = slice(self._starts[row], self._starts[row + 1])
            line[of_row] = self._alone(row, q[of_row], keys[row], values[row])
        return line, None

    def _alone(
        self, row: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Several tokens of one row: (n, K · H/K · D) of q (n, K, H/K, D) and its lines."""
        num, _, rep, _ = q.shape
        places = torch.arange(self._lengths[row], self._lengths[row] + num, device=self._device)
        end = _filled(self._lengths[row] + num)
        queries = q.transpose(0, 1).flatten(1, 2)[None]  # (1, K, n · H/K, D)
        mask = _hidden(places[None], end, rep, q.dtype)
        out = _attention(queries, keys[None, :, :end], values[None, :, :end], mask)[0]
        tokens: torch.Tensor = out.unflatten(1, (num, rep)).transpose(0, 1).flatten(1)
        return tokens

    def _make_room(self, places: int) -> None:
        more = places - self.places
        if more > 0:
            self._keys = [pad(k, (0, 0, 0, more)) for k in self._keys]
            self._values = [pad(v, (0, 0, 0, more)) for v in self._values]


def _prompt_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention (n, H·D) of a prompt's last n queries (n, K, H/K, D) to its k and v (P, K, D).

    Only whole blocks are computed, of queries and of keys: those the kernel rounds alike.
    """
    num, seen = len(q), len(k)
    mask, more_queries, more_keys = None, 0, 0
    if num < seen or seen <= MOST_TOKENS:
        more_queries = _filled(num, QUERY_BLOCK if num < LONG else LONG_BLOCK) - num
        more_keys = _filled(seen, KEY_BLOCK) - seen
        mask = torch.ones(num + more_queries, seen + more_keys, dtype=torch.bool, device=q.device)
        mask = mask.tril(seen - num)
    keys, values = (
        pad(each.transpose(0, 1), (0, 0, 0, more_keys))[:, None].expand(-1, q.shape[2], -1, -1)
        for each in (k, v)
    )
    rows = scaled_dot_product_attention(
        pad(q.permute(1, 2, 0, 3), (0, 0, 0, more_queries)),
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=1.0,
    )  # (K, H/K, n, D)
    tokens: torch.Tensor = rows[:, :, :num].permute(2, 0, 1, 3).flatten(1)
    return tokens


def _attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention (R, K, n, D) of q (R, K, n, D) to keys and values (R, K, S, D).

    Two plain products: the fused kernel of a CPU rounds a row in a few of ten thousand cases
    differently by its place among the others, and for so few queries it is slower.
    """
    weights = torch.softmax(q @ keys.transpose(2, 3) + mask, dim=-1, dtype=torch.float32)
    out: torch.Tensor = weights.to(values.dtype) @ values
    return out


def _filled(places: int, step: int = VECTORS) -> int:
    """So many places, filled up to whole steps."""
    return -(-places // step) * step


def _hidden(places: torch.Tensor, end: int, rep: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask that is added to the scores of tokens at places (R, n): 0 or -inf, (R, 1, n·rep,
    end).
    """
    later = torch.arange(end, device=places.device) > places[:, :, None]
    mask = torch.zeros(later.shape, dtype=dtype, device=places.device)
    mask.masked_fill_(later, -torch.inf)
    return mask.repeat_interleave(rep, dim=1)[:, None]
