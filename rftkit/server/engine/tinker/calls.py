"""A policy in a Tinker server's memory, and how calls to the server are awaited.

The client answers with futures. We wait for them in short polls, so that `on_tick` runs and a
cancelled job stops soon. What the client's versions do differently is in `clients`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from rftkit.server.engine.tinker.clients import client_of, unload

__all__ = ["Policy", "end_sessions", "in_flight", "wait_for"]

IN_FLIGHT = 256
"""Most prompts that wait for the server at once."""
POLL_SECONDS = 0.02


class Policy:
    """A policy in the server's memory, in its own session: ending the session frees its slot."""

    def __init__(self, service: Any, training: Any) -> None:
        self.training = training
        self._service = service
        self._sampler: Any = None

    def sampler(self) -> Any:
        """A client that samples from the present policy."""
        if self._sampler is None:
            asked = self.training.save_weights_and_get_sampling_client()
            self._sampler = client_of(asked)
        return self._sampler

    def changed(self) -> None:
        """Note that an update was sent: sampling needs the new weights."""
        self._sampler = None

    def end(self) -> None:
        """Free its memory on the server, and end its session."""
        unload(self.training)
        end_sessions(self._service)


def end_sessions(service: Any) -> None:
    """End a client's sessions, which otherwise send heartbeats indefinitely."""
    # The public properties would open a session that does not exist yet.
    for holder in (service._session_holder, service._rest_holder):
        if holder is not None:
            holder.close()


def in_flight(
    asks: Iterator[Callable[[], Future[Any]]], on_tick: Callable[[], None] | None
) -> Iterator[tuple[int, Any]]:
    """Yield (place, answer) as answers come, with at most IN_FLIGHT requests at once."""
    numbered = enumerate(asks)
    under_way: dict[Future[Any], int] = {}
    try:
        while True:
            for i, ask in itertools.islice(numbered, IN_FLIGHT - len(under_way)):
                under_way[ask()] = i
            if not under_way:
                return
            done, _ = wait(under_way, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield under_way.pop(future), future.result()
            if on_tick is not None:
                on_tick()
    finally:
        for future in under_way:
            future.cancel()


def wait_for(futures: Sequence[Future[Any]], on_tick: Callable[[], None] | None) -> None:
    """Wait for all of them, and call `on_tick` regularly; it may raise."""
    while wait(futures, timeout=POLL_SECONDS).not_done:
        if on_tick is not None:
            on_tick()
