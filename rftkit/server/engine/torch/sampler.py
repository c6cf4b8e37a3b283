"""Sample completions: one prefill for each prompt, shared by its completions; no padding rows.

`sample` takes all requests of a training step, one wave (`waves`) after the other; which rows share
a wave depends on the requests and the row budget alone, so the same requests give the same text.
`Decoding` lets requests join between two tokens: its waves share each pass of the model. Not here:
episodes (`episodes`), which adapter is on the model, and what the completions are for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from rftkit.server.engine.base import Environment, Listener
from rftkit.server.engine.torch.completions import DROPPED, Policy, report, start
from rftkit.server.engine.torch.episodes import Episodes
from rftkit.server.engine.torch.waves import (
    Read,
    Wave,
    begin,
    draw_all,
    fitting,
    read_all,
    read_each,
    read_together,
)
from rftkit.server.engine.values import Completion, SampleRequest

__all__ = ["Decoding", "sample"]


def sample(
    policy: Policy,
    requests: Sequence[SampleRequest],
    *,
    max_rows: int,
    max_keys: int,
    on_tick: Callable[[], None] | None = None,
    on_text: Callable[[int, int, str], None] | None = None,
    on_completion: Callable[[int, int, Completion], None] | None = None,
    environment: Environment | None = None,
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
        environment: answers turns, which makes each completion an episode.

    Raises:
        RequestError: when a schema cannot be followed.
    """
    kept = [_Kept(number, on_text, on_completion) for number in range(len(requests))]
    with torch.no_grad():
        for wave in fitting(requests, max_rows, max_keys):
            rows = [start(policy, i, requests[i], g, kept[i]) for i, g in wave]
            if environment is not None:
                Episodes(policy, environment, max_keys, on_tick or (lambda: None)).sample(rows)
                continue
            waves = begin(policy, rows)
            while waves := _step(policy, waves, read_each):
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
        self._waves: list[Wave] = []

    def join(self, number: int, request: SampleRequest, listener: Listener, max_keys: int) -> None:
        """Sample a request from the next step on.

        A request with more completions than fit at once has them in several waves.
        """
        for wave in fitting([request], self._max_rows, max_keys):
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
        self._waves = _step(self._policy, self._waves, read_together)
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
                self._waves += begin(policy, rows)
            except Exception as error:  # of this request, for instance too little memory
                self.drop(number)
                listener.on_failure(error)
            return


def _step(policy: Policy, waves: list[Wave], read: Read) -> list[Wave]:
    """Draw a token for every row that has read its last one; then read. The waves that continue."""
    for row in draw_all(policy, waves):
        report(policy, row)
    return read_all(policy, [wave for wave in waves if wave.shrink()], read)
