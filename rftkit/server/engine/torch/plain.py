"""The plain path, for models whose attention does not support our layouts: every text separately.

Here transformers handles sliding windows, soft-capped scores and attention sinks. Each completion
is computed with its whole prompt, in training and again for every token it samples. That is correct
and slow; `layout.py` has the fast path, and a job's events state which one it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from rftkit.server.engine.torch.full import embedded

__all__ = ["PlainDecode", "longest_text", "plain_hidden"]

TOKENS = 4_096  # of the texts that are computed together, padding included


class Whole(Protocol):
    """A layout that can lay its texts out one by one."""

    def whole(self, tokens: list[int]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """The texts, and where in them (text, place) each token of the line is."""
        ...


class PlainDecode:
    """Rows that decode together, each with its whole text; used in the place of `Decode`."""

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts = texts
        self._nums = [1] * len(texts)

    @property
    def longest(self) -> int:
        """Tokens of the longest text when the next pass is done."""
        each = zip(self._texts, self._nums, strict=True)
        return max((len(text) + num for text, num in each), default=0)

    def take(self, num: int) -> None:
        """Set how many tokens each row takes in the next pass."""
        self._nums = [num] * len(self._texts)

    def take_each(self, nums: Sequence[int]) -> None:
        """Set how many tokens each row takes in the next pass."""
        self._nums = list(nums)

    def whole(self, tokens: list[int]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """See Whole; the new tokens belong to the texts from now on."""
        places, start = [], 0
        for row, (text, num) in enumerate(zip(self._texts, self._nums, strict=True)):
            places += [(row, len(text) + i) for i in range(num)]
            text += tokens[start : start + num]
            start += num
        return self._texts, places

    def advance(self) -> None:
        """Count the tokens just computed: `whole` has."""

    def history(self, row: int) -> list[int]:
        """The whole text of a row, to continue from later: see `resume`."""
        return list(self._texts[row])

    def resume(self, histories: Sequence[list[int]]) -> None:
        """Give rows the texts they once had."""
        self._texts = [list(text) for text in histories]

    def keep(self, rows: list[int]) -> None:
        """Forget every row but these."""
        self._texts = [self._texts[row] for row in rows]
        self._nums = [self._nums[row] for row in rows]


def longest_text(layout: Any) -> int:
    """Tokens of the longest text of a layout, this pass included."""
    if isinstance(layout, PlainDecode):
        return layout.longest
    return int(layout.positions.max()) + 1


def plain_hidden(
    decoder: Any, tokens: torch.Tensor, layout: Whole, *, by_ids: bool = False
) -> torch.Tensor:
    """Last hidden states (N, width) of tokens (N,): what a layout's forward pass gives.

    A decoder that looks its tokens up again in its layers is given them, `by_ids`; others get
    their embeddings in float32.
    """
    texts, places = layout.whole(tokens.tolist())
    per_pass = max(1, TOKENS // max(map(len, texts)))
    parts = []
    for start in range(0, len(texts), per_pass):
        some = texts[start : start + per_pass]
        longest = max(map(len, some))
        # After its end a text may be padded with any token, because no token sees later ones.
        grid = torch.tensor([[*text, *[0] * (longest - len(text))] for text in some])
        grid = grid.to(tokens.device)
        if by_ids:
            states = decoder(input_ids=grid, use_cache=False).last_hidden_state
        else:
            inputs = embedded(decoder.get_input_embeddings(), grid)
            states = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
        wanted = [(row - start, i) for row, i in places if start <= row < start + len(some)]
        rows, columns = zip(*wanted, strict=True)
        parts.append(states[list(rows), list(columns)])
    return torch.cat(parts)
