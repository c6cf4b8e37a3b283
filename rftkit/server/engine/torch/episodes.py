"""Episodes: completions of several turns, between which an environment answers.

A row whose turn has ended leaves its wave with the keys it has, and waits for its answer while the
others continue. Rows come back together, in a wave of their own that shares each pass of the model
with the others: their prompts' keys are those that were computed once, theirs are put back, and the
model reads nothing but what was observed.

Which rows come back together, and after which pass, depends on tokens alone and never on how long
an answer takes: so a killed job samples the same again, bit for bit. They come back when at least
half of the rows that have not ended wait, after `LAG` more passes in which their answers may come;
what has not come then is waited for. Not here: what an environment answers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any

import torch

from rftkit.server.engine.base import Environment
from rftkit.server.engine.torch.completions import (
    DROPPED,
    Policy,
    Row,
    append_forced,
    observe,
    report,
)
from rftkit.server.engine.torch.ragged import Ragged
from rftkit.server.engine.torch.waves import (
    Prompts,
    Wave,
    draw_all,
    read_all,
    read_prompts,
    read_together,
)

__all__ = ["Episodes"]

LAG = 8
"""Passes of the model from when enough rows wait until they come back."""
WAIT_SECONDS = 0.005
"""Seconds between two ticks while nothing can be sampled."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row between two turns."""

    row: Row
    history: Any
    """The state that its layout needs to continue: see `Decode.history`."""
    response: Future[Any]


class Episodes:
    """The episodes of rows whose prompts are read together."""

    def __init__(
        self,
        policy: Policy,
        environment: Environment,
        max_keys: int,
        on_tick: Callable[[], None],
    ) -> None:
        """`max_keys` is the most key positions, `on_tick` is called between passes."""
        self._policy, self._environment = policy, environment
        self._max_keys, self._on_tick = max_keys, on_tick
        self._waiting: list[_Waiting] = []
        self._due: list[_Waiting] = []
        self._lag = 0

    def sample(self, rows: list[Row]) -> None:
        """Sample to the end of every episode; listeners get the completions."""
        append_forced(self._policy, rows)
        for row in rows:
            report(self._policy, row)
        rows = [row for row in rows if row.completion is None]
        if not rows:
            return
        with torch.no_grad():
            prompts, hidden = read_prompts(self._policy, rows)
            waves = [Wave(rows, prompts.layout(self._policy, rows), hidden)]
            while waves or self._waiting:
                draw_all(self._policy, waves)
                self._end_turns(waves)
                waves = [wave for wave in waves if wave.shrink()]
                if due := self._take_due(waves):
                    waves += self._resumed(due, prompts)
                waves = read_all(self._policy, waves, read_together)
                self._on_tick()

    def _end_turns(self, waves: Sequence[Wave]) -> None:
        """Take rows whose turn has just ended out of their waves."""
        for wave in waves:
            assert not isinstance(wave.layout, Ragged), "rows share their prompts"
            for place, row in enumerate(wave.rows):
                if row.failure is None and row.completion in (None, DROPPED):
                    continue
                wave.rows[place] = replace(row, completion=DROPPED, failure=None)
                self._end_turn(row, functools.partial(wave.layout.history, place))

    def _end_turn(self, row: Row, history: Callable[[], Any]) -> None:
        """Ask the environment for what follows; without an answer the episode is over."""
        response = None
        ended = row.completion
        if row.failure is None and ended and ended.stop_reason == "stop" and not row.is_full:
            response = self._environment.respond(row.request, row.index, ended)
        if response is None:
            report(self._policy, row)
        else:
            self._waiting.append(_Waiting(row, history(), response))

    def _take_due(self, waves: Sequence[Wave]) -> list[_Waiting]:
        """The rows that come back now."""
        running = [row for wave in waves for row in wave.rows if row.completion is None]
        if not self._due and self._waiting and len(self._waiting) >= len(running):
            self._due, self._lag = list(self._waiting), LAG
        if running and (not self._due or self._lag > 0):
            self._lag -= 1
            return []
        due = self._fitting(self._due if running else self._waiting, running)
        taken = set(map(id, due))
        self._waiting = [each for each in self._waiting if id(each) not in taken]
        self._due = []
        return due

    def _fitting(self, some: Sequence[_Waiting], running: Sequence[Row]) -> list[_Waiting]:
        """As many rows as there is memory for; one if nothing else runs."""
        used = sum(map(_most_keys, running))
        found: list[_Waiting] = []
        for each in some:
            used += _most_keys(each.row)
            if used > self._max_keys and (found or running):
                break
            found.append(each)
        return found

    def _resumed(self, due: Sequence[_Waiting], prompts: Prompts) -> list[Wave]:
        """A wave that continues these rows after they read their observations; None if all have
        ended.
        """
        self._wait_for([each.response for each in due])
        continuing = []
        for each in due:
            row, turn = each.row, each.row.completion
            assert turn is not None, "only a turn that has ended waits"
            found = self._environment.observe(row.request, row.index, turn, each.response.result())
            observe(self._policy, row, found)
            if each.row.completion is None:
                continuing.append(each)
            else:
                report(self._policy, each.row)
        append_forced(self._policy, [each.row for each in continuing])
        for each in continuing:  # a grammar may force a whole turn
            if each.row.completion is not None:
                self._end_turn(each.row, functools.partial(getattr, each, "history"))
        continuing = [each for each in continuing if each.row.completion is None]
        if not continuing:
            return []
        continuing.sort(key=lambda each: (prompts.order.index(each.row.request), each.row.index))
        rows = [each.row for each in continuing]
        layout = prompts.layout(self._policy, rows)
        layout.resume([each.history for each in continuing])
        return [Wave(rows, layout, None, differs=True)]

    def _wait_for(self, responses: Sequence[Future[Any]]) -> None:
        started = time.perf_counter()
        while wait(responses, timeout=0).not_done:
            self._on_tick()
            wait(responses, timeout=WAIT_SECONDS)
        self._environment.waited(time.perf_counter() - started)


def _most_keys(row: Row) -> int:
    left = row.asked.max_tokens - row.num_sampled
    return len(row.asked.prompt_ids) + len(row.tokens) + left
