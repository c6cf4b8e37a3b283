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
from rftkit.server.engine.torch.batches import shared_opening
from rftkit.server.engine.torch.completions import DROPPED, Policy, Row, report, start
from rftkit.server.engine.torch.episodes import Episodes
from rftkit.server.engine.torch.ragged import MOST_TOKENS, shareable
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


_Waiting = tuple[int, SampleRequest, list[int], Listener]
"""Number, request, which of its completions, and who listens."""


class Decoding:
    """Requests that decode together, and may join and leave between two tokens.

    The caller sees to it that gradients are off and the wanted adapter is on at each step.
    """

    def __init__(self, policy: Policy, max_rows: int) -> None:
        self._policy, self._max_rows = policy, max_rows
        self._waiting: deque[_Waiting] = deque()
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
        """Read some new prompts, then take one token of every row; False at the end."""
        self._begin_next()
        self._waves = _step(self._policy, self._waves, read_together)
        return bool(self._waves or self._waiting)

    def _begin_next(self) -> None:
        """Begin the next request, or several short ones of one completion each."""
        if taken := self._next():
            self._begin(taken)

    def _begin(self, taken: Sequence[_Waiting]) -> None:
        """Read the prompts of these requests in one pass; alone when one of them fails."""
        rows: list[Row] = []
        try:
            for number, request, indexes, listener in taken:
                rows += [start(self._policy, number, request, g, listener) for g in indexes]
            begun = begin(self._policy, rows, apart=self._is_apart(taken[0]))
        except Exception as error:  # such as a schema of one request, or too little memory
            if len(taken) > 1 and not any(row.sent for row in rows):
                for each in taken:
                    self._begin([each])
                return
            for number, _, _, listener in taken:
                self.drop(number)
                listener.on_failure(error)
            return
        for wave in begun:
            if not any(other.join(wave) for other in self._waves):
                self._waves.append(wave)

    def _next(self) -> list[_Waiting]:
        """Take the requests whose prompts are read now, out of those that wait."""
        running = {row.request for wave in self._waves for row in wave.rows}
        ready = [each for each in self._waiting if each[0] not in running]
        taken = ready[:1]  # the others are further completions of a request
        if taken and self._is_apart(taken[0]):
            for each in ready[1 : self._max_rows]:
                if not self._is_apart(each) or not _fit([*taken, each]):
                    break
                taken.append(each)
        for each in taken:
            self._waiting.remove(each)
        return taken

    def _is_apart(self, waiting: _Waiting) -> bool:
        """Whether a request has one completion, and so no row that shares its prompt."""
        return len(waiting[1].seeds) == 1 and not self._policy.is_plain


def _fit(requests: Sequence[_Waiting]) -> bool:
    """Whether their prompts are read in one pass, what all of them begin with once."""
    prompts = [request.prompt_ids for _, request, _, _ in requests]
    opening = shareable(shared_opening(prompts))
    num_read = sum(map(len, prompts)) - (len(prompts) - 1) * opening
    return max(map(len, prompts)) <= MOST_TOKENS >= num_read


def _step(policy: Policy, waves: list[Wave], read: Read) -> list[Wave]:
    """Draw a token for every row that has read its last one; then read. The waves that continue."""
    for row in draw_all(policy, waves):
        report(policy, row)
    return read_all(policy, [wave for wave in waves if wave.shrink()], read)
