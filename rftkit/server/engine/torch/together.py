"""Several decoding layouts in one pass of the model: linear layers over all rows at once.

Chats begin at different times, so their rows differ in how many tokens they have. Reading the
weights is what a token of few rows costs, and that is shared here; attention is computed for each
layout separately, with the same operations as alone. On a CPU a matrix product rounds one row
differently from two or more, which all agree. So a row that is alone gets a second row that nobody
reads, and a chat has the same answer alone and among others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rftkit.server.engine.torch.decode import Decode
from rftkit.server.engine.torch.ragged import Ragged

__all__ = ["LEAST_TOKENS", "Together"]

LEAST_TOKENS = 2
"""A pass with fewer tokens is filled up with tokens whose results are ignored."""


class Together:
    """See layout.Layout: the tokens of each part, one part after the other, then the padding."""

    def __init__(self, parts: Sequence[Decode | Ragged]) -> None:
        self._parts = parts
        positions = [part.positions for part in parts]
        self.sizes = [len(each) for each in positions]
        """Tokens of each part."""
        self.padding = max(0, LEAST_TOKENS - sum(self.sizes))
        """Tokens after those of the parts."""
        self.positions = torch.cat([*positions, positions[0][:1].expand(self.padding)])

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """See Layout."""
        sizes = [*self.sizes, self.padding]
        each = zip(
            self._parts, *(x.split(sizes)[: len(self._parts)] for x in (q, k, v)), strict=True
        )
        outputs = [part.attend(layer, *given)[0] for part, *given in each]
        return torch.cat([*outputs, outputs[0][:1].expand(self.padding, -1)]), None
