"""Rows that decode together, and the passes of the model that they share.

A *wave* is a set of rows (completions) that share one layout. Tokens that a grammar forces are
appended at once, and the model reads them later, several in one pass where every row of the wave
has some; what all completions must begin with is read with the prompt. Rows that end leave the
wave. Not here: which waves there are, and when (`sampler`, `episodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rftkit.server.engine.torch.batches import shared_opening
from rftkit.server.engine.torch.completions import Layout, Policy, Row, append_forced, report
from rftkit.server.engine.torch.decode import BLOCK_ROWS, Decode
from rftkit.server.engine.torch.draw import draw
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.plain import PlainDecode
from rftkit.server.engine.torch.ragged import Prefill, Ragged, shareable
from rftkit.server.engine.torch.together import Together
from rftkit.server.engine.values import SampleRequest

__all__ = [
    "Prompts",
    "Read",
    "Wave",
    "begin",
    "draw_all",
    "fitting",
    "read_all",
    "read_each",
    "read_prompts",
    "read_together",
]

MOST_READ = 32  # tokens of a row in a pass, where rows differ in how many they have to read
SHRINK_BELOW = 0.8  # rows are moved together when fewer than this share is alive

Read = Callable[[Policy, list[list[int]], Sequence[Layout]], Sequence[torch.Tensor]]
"""A function by which some layouts read their next tokens: the last states of each, (R·n, width).
"""


def fitting(
    requests: Sequence[SampleRequest], max_rows: int, max_keys: int
) -> Iterator[list[tuple[int, int]]]:
    """(request, completion index) pairs that decode together; long and short prompts apart."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), i))
    wave: list[tuple[int, int]] = []
    keys = 0
    for i in order:
        request = requests[i]
        num = 0  # completions of this prompt in the wave
        for index in range(len(request.seeds)):
            shares = num % BLOCK_ROWS > 0  # the prompt's keys with those before it
            own = _own_tokens(request)
            cost = own + (0 if shares else len(request.prompt_ids))
            if wave and (len(wave) >= max_rows or keys + cost > max_keys):
                yield wave
                wave, keys, num = [], 0, 0
                cost = own + len(request.prompt_ids)
            wave.append((i, index))
            keys, num = keys + cost, num + 1
    if wave:
        yield wave


def _own_tokens(request: SampleRequest) -> int:
    """Most tokens after the prompt. An episode is planned to observe as many tokens as
    it samples.
    """
    if request.room is None:
        return request.max_tokens
    return min(request.room, 2 * request.max_tokens)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that have been read, once for all of their completions."""

    packed: Packed
    order: list[int]
    """The request of each."""
    texts: list[list[int]]

    def groups(self, rows: Sequence[Row]) -> list[int]:
        """Which prompt each row has."""
        return [self.order.index(row.request) for row in rows]

    def layout(self, policy: Policy, rows: Sequence[Row]) -> Decode | PlainDecode:
        """The layout of rows that have no tokens after their prompts; neighbours share one."""
        return policy.decode(self.packed, self.texts, self.groups(rows))


@dataclass(slots=True)
class Wave:
    """Rows of one layout; some may have ended."""

    rows: list[Row]
    layout: Layout
    hidden: torch.Tensor | None
    """The state of the last token that each row has read, (R, width); None: they are to read."""
    differs: bool = False
    """Whether its rows have different numbers of tokens to read."""
    _nums: list[int] = field(default_factory=list)
    """How many tokens each row reads in the current pass."""

    def ready(self) -> list[int]:
        """The rows that have read all of their tokens, and draw one."""
        return [
            r
            for r, row in enumerate(self.rows)
            if row.completion is None and row.read == len(row.tokens)
        ]

    def states(self, places: list[int]) -> torch.Tensor:
        """The last states of some rows."""
        assert self.hidden is not None, "nothing has been read"
        return self.hidden[torch.tensor(places, device=self.hidden.device)]

    def join(self, other: Wave) -> bool:
        """Add the rows of a wave that has just begun; False where they cannot be together."""
        if not isinstance(self.layout, Ragged) or not isinstance(other.layout, Ragged):
            return False
        if not self.layout.is_near(other.layout):
            return False
        assert self.hidden is not None, "it has read its prompts"
        assert other.hidden is not None, "likewise"
        self.layout.join(other.layout)
        self.rows += other.rows
        self.hidden = torch.cat([self.hidden, other.hidden])
        return True

    def shrink(self) -> bool:
        """Forget rows that have ended, when they are many; False when all have."""
        running = [r for r, row in enumerate(self.rows) if row.completion is None]
        if running and len(running) < SHRINK_BELOW * len(self.rows):
            self.layout.keep(running)
            self.rows = [self.rows[r] for r in running]
        return bool(running)

    def take(self) -> list[int]:
        """The tokens of the next pass: as many of each row as every row has, or of each its own.

        Rows that have ended and are still in the layout read anything.
        """
        running = [row for row in self.rows if row.completion is None]
        num = min(len(row.tokens) - row.read for row in running)
        self._nums = [num] * len(self.rows)
        if self.differs:
            self._nums = [min(MOST_READ, max(1, len(r.tokens) - r.read)) for r in self.rows]
        if isinstance(self.layout, Ragged):
            ended = {r for r, row in enumerate(self.rows) if row.completion is not None}
            self.layout.take_each(self._nums, ended)
        elif self.differs:
            self.layout.take_each(self._nums)
        else:
            self.layout.take(num)
        tokens: list[int] = []
        for row, num in zip(self.rows, self._nums, strict=True):
            if row.completion is None:
                tokens += row.tokens[row.read : row.read + num]
                row.read += num
            else:
                tokens += [(row.tokens or [0])[-1]] * num
        return tokens

    def took(self, hidden: torch.Tensor) -> None:
        """Keep the states of those tokens, (R·n, width)."""
        self.layout.advance()
        if len(set(self._nums)) == 1:
            self.hidden = hidden.unflatten(0, (len(self.rows), -1))[:, -1]
        else:
            ends = torch.tensor(self._nums, device=hidden.device).cumsum(0) - 1
            self.hidden = hidden[ends]


def begin(policy: Policy, rows: list[Row], *, apart: bool = False) -> list[Wave]:
    """Read the prompts of these rows; a wave, or none when all rows ended without a choice.

    With `apart` each row has a prompt of its own, and neither its prompt nor its tokens are rounded
    differently because of the others.
    """
    append_forced(policy, rows)
    for row in rows:
        report(policy, row)
    rows = [row for row in rows if row.completion is None]
    if not rows:
        return []
    if apart:
        return [_begin_apart(policy, rows)]
    prompts, hidden = read_prompts(policy, rows)
    return [Wave(rows, prompts.layout(policy, rows), hidden)]


def _begin_apart(policy: Policy, rows: list[Row]) -> Wave:
    texts = [[*row.asked.prompt_ids, *row.tokens] for row in rows]
    for row in rows:
        row.read = len(row.tokens)
    prefill = Prefill(
        [len(text) for text in texts], shareable(shared_opening(texts)), policy.device
    )
    hidden = _read(policy, texts, prefill.opening, prefill)
    return Wave(rows, Ragged(prefill), hidden, differs=True)


def read_prompts(policy: Policy, rows: Sequence[Row]) -> tuple[Prompts, torch.Tensor]:
    """The prompts, and the last state of that of each row, (R, width).

    Rows of one prompt have the same tokens so far, because they had no choice: these are read once.
    """
    first = {row.request: row for row in reversed(rows)}
    order = list(dict.fromkeys(row.request for row in rows))
    texts = [[*first[i].asked.prompt_ids, *first[i].tokens] for i in order]
    for row in rows:
        row.read = len(row.tokens)
    lengths = [len(text) for text in texts]
    opening = shared_opening(texts)
    packed = Packed(lengths, [[] for _ in texts], policy.device, opening=opening, keep_keys=True)
    hidden = _read(policy, texts, opening, packed)
    prompts = Prompts(packed, order, texts)
    return prompts, hidden[torch.tensor(prompts.groups(rows), device=policy.device)]


def _read(
    policy: Policy, texts: Sequence[list[int]], opening: int, layout: Packed | Prefill
) -> torch.Tensor:
    """Read texts in one pass; the last state of each, (B, width)."""
    line = [*texts[0][:opening], *(token for text in texts for token in text[opening:])]
    hidden = policy.hidden(torch.tensor(line, device=policy.device), layout)
    ends = opening + np.cumsum([len(text) - opening for text in texts]) - 1
    return hidden[torch.from_numpy(ends).to(policy.device)]


def draw_all(policy: Policy, waves: Sequence[Wave]) -> list[Row]:
    """Draw a token for every row that has read its last one, and what is forced after it."""
    ready = [(wave, wave.ready()) for wave in waves]
    drawn = [wave.rows[r] for wave, places in ready for r in places]
    if drawn:
        states = [wave.states(places) for wave, places in ready if places]
        draw(policy, drawn, torch.cat(states))
        append_forced(policy, drawn)
    return drawn


def read_all(policy: Policy, waves: list[Wave], read: Read) -> list[Wave]:
    """Read the next tokens of the waves, and return these."""
    tokens = [wave.take() for wave in waves]
    found = read(policy, tokens, [wave.layout for wave in waves])
    for wave, hidden in zip(waves, found, strict=True):
        wave.took(hidden)
    return waves


def read_each(
    policy: Policy, tokens: list[list[int]], layouts: Sequence[Layout]
) -> Sequence[torch.Tensor]:
    """The last states of each layout's tokens, in a pass of its own."""
    lines = (torch.tensor(each, device=policy.device) for each in tokens)
    return [policy.hidden(*each) for each in zip(lines, layouts, strict=True)]


def read_together(
    policy: Policy, tokens: list[list[int]], layouts: Sequence[Layout]
) -> Sequence[torch.Tensor]:
    """Let several waves read their tokens in one pass.

    On the plain path a pass computes whole texts, and nothing is saved by another's.
    """
    decodes = [layout for layout in layouts if isinstance(layout, Decode | Ragged)]
    if not layouts or len(decodes) < len(layouts):
        return read_each(policy, tokens, layouts)
    layout = Together(decodes)
    line = [*(token for each in tokens for token in each), *[0] * layout.padding]
    hidden = policy.hidden(torch.tensor(line, device=policy.device), layout)
    return torch.split(hidden, [*layout.sizes, layout.padding])[: len(layouts)]
