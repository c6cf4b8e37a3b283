"""Sample completions: one prefill for each prompt, shared by its completions; no padding rows.

A *wave* is a set of rows (completions) that started together and share one layout. Tokens that a
grammar forces are appended at once, and the model reads them later, several in one pass where every
row of the wave has some; what all completions must begin with is read with the prompt. Rows that
end leave the wave. `sample` takes all requests of a training step, one wave after the other; which
rows share a wave depends on the requests and the row budget alone, so the same requests give the
same text. `Decoding` lets requests join between two tokens: its waves share each pass of the model.
Not here: which adapter is on the model, and what the completions are for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rftkit.server.engine.base import Listener
from rftkit.server.engine.torch.batches import shared_opening
from rftkit.server.engine.torch.completions import (
    DROPPED,
    Layout,
    Policy,
    Row,
    append_forced,
    report,
    start,
)
from rftkit.server.engine.torch.decode import BLOCK_ROWS, Decode
from rftkit.server.engine.torch.draw import draw
from rftkit.server.engine.torch.packed import Packed
from rftkit.server.engine.torch.together import Together
from rftkit.server.engine.values import Completion, SampleRequest

__all__ = ["Decoding", "sample"]

SHRINK_BELOW = 0.8  # rows are moved together when fewer than this share is alive

Read = Callable[[Policy, list[list[int]], Sequence[Layout]], Sequence[torch.Tensor]]
"""How some layouts read their next tokens: the last states of each, (R·n, width)."""


def sample(
    policy: Policy,
    requests: Sequence[SampleRequest],
    *,
    max_rows: int,
    max_keys: int,
    on_tick: Callable[[], None] | None = None,
    on_text: Callable[[int, int, str], None] | None = None,
    on_completion: Callable[[int, int, Completion], None] | None = None,
) -> list[list[Completion]]:
    """Completions of every request, in order.

    Args:
        policy: the model, with the wanted adapter on it.
        requests: prompts and how to draw from them.
        max_rows: most completions that decode together.
        max_keys: most key positions a wave may hold (a prompt once for each block of its
            completions, completions at full length).
        on_tick: called between token steps.
        on_text: called with (request, completion index, new text) as text appears.
        on_completion: called with (request, completion index, completion) as each ends.

    Raises:
        RequestError: when a schema cannot be followed.
    """
    kept = [_Kept(number, on_text, on_completion) for number in range(len(requests))]
    with torch.no_grad():
        for wave in _waves(requests, max_rows, max_keys):
            waves = _begin(policy, [start(policy, i, requests[i], g, kept[i]) for i, g in wave])
            while waves := _step(policy, waves, _read_each):
                if on_tick is not None:
                    on_tick()
    return [[each.found[index] for index in sorted(each.found)] for each in kept]


class _Kept:
    """The completions of one request; see base.Listener."""

    def __init__(
        self,
        number: int,
        on_text: Callable[[int, int, str], None] | None,
        on_completion: Callable[[int, int, Completion], None] | None,
    ) -> None:
        self.found: dict[int, Completion] = {}
        self.streams = on_text is not None
        self._number, self._on_text, self._on_completion = number, on_text, on_completion

    def on_text(self, index: int, text: str) -> None:
        if self._on_text is not None:
            self._on_text(self._number, index, text)

    def on_completion(self, index: int, completion: Completion) -> None:
        self.found[index] = completion
        if self._on_completion is not None:
            self._on_completion(self._number, index, completion)

    def on_failure(self, error: Exception) -> None:
        raise error


class Decoding:
    """Requests that decode together, and may join and leave between two tokens.

    The caller sees to it that gradients are off and the wanted adapter is on at each step.
    """

    def __init__(self, policy: Policy, max_rows: int) -> None:
        self._policy, self._max_rows = policy, max_rows
        self._waiting: deque[tuple[int, SampleRequest, list[int], Listener]] = deque()
        self._waves: list[_Wave] = []

    def join(self, number: int, request: SampleRequest, listener: Listener, max_keys: int) -> None:
        """Sample a request from the next step on.

        A request with more completions than fit at once has them in several waves.
        """
        for wave in _waves([request], self._max_rows, max_keys):
            self._waiting.append((number, request, [index for _, index in wave], listener))

    def drop(self, number: int) -> None:
        """Sample a request no further; its rows are not in the next pass."""
        self._waiting = deque(each for each in self._waiting if each[0] != number)
        for wave in self._waves:
            for row in wave.rows:
                if row.request == number and row.completion is None:
                    row.completion = DROPPED

    def step(self) -> bool:
        """Read at most one new prompt, then take one token of every row; False at the end."""
        self._begin_next()
        self._waves = _step(self._policy, self._waves, _read_together)
        return bool(self._waves or self._waiting)

    def _begin_next(self) -> None:
        running = {row.request for wave in self._waves for row in wave.rows}
        for place, (number, request, indexes, listener) in enumerate(self._waiting):
            if number in running:  # the rest of its completions
                continue
            del self._waiting[place]
            try:
                policy = self._policy
                rows = [start(policy, number, request, index, listener) for index in indexes]
                self._waves += _begin(policy, rows)
            except Exception as error:  # of this request, for instance too little memory
                self.drop(number)
                listener.on_failure(error)
            return


def _waves(
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
            cost = request.max_tokens + (0 if shares else len(request.prompt_ids))
            if wave and (len(wave) >= max_rows or keys + cost > max_keys):
                yield wave
                wave, keys, num = [], 0, 0
                cost = request.max_tokens + len(request.prompt_ids)
            wave.append((i, index))
            keys, num = keys + cost, num + 1
    if wave:
        yield wave


@dataclass(slots=True)
class _Wave:
    """Rows of one layout; some may have ended."""

    rows: list[Row]
    layout: Layout
    hidden: torch.Tensor
    """The state of the last token that each row has read, (R, width)."""

    def ready(self) -> list[int]:
        """The rows that have read all of their tokens, and draw one."""
        return [
            r
            for r, row in enumerate(self.rows)
            if row.completion is None and row.read == len(row.tokens)
        ]

    def shrink(self) -> bool:
        """Forget rows that have ended, when they are many; False when all have."""
        running = [r for r, row in enumerate(self.rows) if row.completion is None]
        if running and len(running) < SHRINK_BELOW * len(self.rows):
            self.layout.keep(running)
            self.rows = [self.rows[r] for r in running]
        return bool(running)

    def take(self) -> list[int]:
        """The tokens of the next pass: as many of each row as every row has.

        Rows that have ended and are still in the layout read anything.
        """
        running = [row for row in self.rows if row.completion is None]
        num = min(len(row.tokens) - row.read for row in running)
        self.layout.take(num)
        tokens: list[int] = []
        for row in self.rows:
            if row.completion is None:
                tokens += row.tokens[row.read : row.read + num]
                row.read += num
            else:
                tokens += [(row.tokens or [0])[-1]] * num
        return tokens

    def took(self, hidden: torch.Tensor) -> None:
        """Keep the states of those tokens, (R·n, width)."""
        self.layout.advance()
        self.hidden = hidden.unflatten(0, (len(self.rows), -1))[:, -1]


def _begin(policy: Policy, rows: list[Row]) -> list[_Wave]:
    """Read the prompts of these rows; a wave, or none when all rows ended without a choice.

    Rows of one prompt have the same tokens so far, because they had no choice: these are read once.
    """
    append_forced(policy, rows)
    for row in rows:
        report(policy, row)
    rows = [row for row in rows if row.completion is None]
    if not rows:
        return []
    first = {row.request: row for row in reversed(rows)}
    order = list(dict.fromkeys(row.request for row in rows))
    texts = [[*first[i].asked.prompt_ids, *first[i].tokens] for i in order]
    for row in rows:
        row.read = len(row.tokens)
    lengths = [len(text) for text in texts]
    opening = shared_opening(texts)
    packed = Packed(lengths, [[] for _ in texts], policy.device, opening=opening, keep_keys=True)
    line = [*texts[0][:opening], *(token for text in texts for token in text[opening:])]
    hidden = policy.hidden(torch.tensor(line, device=policy.device), packed)
    ends = opening + np.cumsum([length - opening for length in lengths]) - 1
    groups = [order.index(row.request) for row in rows]
    last = torch.from_numpy(ends[groups]).to(policy.device)
    return [_Wave(rows, policy.decode(packed, texts, groups), hidden[last])]


def _step(policy: Policy, waves: list[_Wave], read: Read) -> list[_Wave]:
    """Draw a token for every row that has read its last one; then read. The waves that continue."""
    ready = [(wave, wave.ready()) for wave in waves]
    drawn = [wave.rows[r] for wave, places in ready for r in places]
    if drawn:
        states = [wave.hidden[torch.tensor(r, device=policy.device)] for wave, r in ready if r]
        draw(policy, drawn, torch.cat(states))
        append_forced(policy, drawn)
        for row in drawn:
            report(policy, row)
    going_on = [wave for wave in waves if wave.shrink()]
    tokens = [wave.take() for wave in going_on]
    found = read(policy, tokens, [wave.layout for wave in going_on])
    for wave, hidden in zip(going_on, found, strict=True):
        wave.took(hidden)
    return going_on


def _read_each(
    policy: Policy, tokens: list[list[int]], layouts: Sequence[Layout]
) -> Sequence[torch.Tensor]:
    """The last states of each layout's tokens, in a pass of its own."""
    lines = (torch.tensor(each, device=policy.device) for each in tokens)
    return [policy.hidden(*each) for each in zip(lines, layouts, strict=True)]


def _read_together(
    policy: Policy, tokens: list[list[int]], layouts: Sequence[Layout]
) -> Sequence[torch.Tensor]:
    """The same in one pass.

    On the plain path a pass computes whole texts, and nothing is saved by another's.
    """
    decodes = [layout for layout in layouts if isinstance(layout, Decode)]
    if not layouts or len(decodes) < len(layouts):
        return _read_each(policy, tokens, layouts)
    layout = Together(decodes)
    line = [*(token for each in tokens for token in each), *[0] * layout.padding]
    hidden = policy.hidden(torch.tensor(line, device=policy.device), layout)
    return torch.split(hidden, [*layout.sizes, layout.padding])[: len(layouts)]
