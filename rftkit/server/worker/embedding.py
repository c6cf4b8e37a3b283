"""Texts that become vectors, one text after the other, between the turns of chats and training.

A request may have 2,048 long texts, and reading them at once would keep all chats and a job waiting
for minutes. Not here: whose turn it is (`chats.py`), nor the vectors themselves (the engine).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from rftkit.server.engine.base import ServingEngine
from rftkit.server.inference.requests import EmbedRequest
from rftkit.server.worker.prepare import text_tokens
from rftkit.server.worker.running import Chat

__all__ = ["EmbeddingBatch", "RunningEmbedding"]


@dataclass(slots=True)
class RunningEmbedding:
    """A request for vectors, and the vectors that it has so far."""

    chat: Chat
    asked: EmbedRequest
    engine: ServingEngine
    adapter: Path | None
    _tokens: list[list[int]] = field(default_factory=list)
    """The tokens of every text. They are checked before the first vector, so that a request with
    one bad text costs nothing."""
    _vectors: list[list[float]] = field(default_factory=list)

    def read_next(self) -> bool:
        """Read the next text; return whether there is more. A request that fails has ended."""
        texts, number = self.asked.input, len(self._tokens)
        try:
            if number < len(texts):
                self._tokens.append(text_tokens(self.engine, texts[number], number))
                return True
            self._vectors += self.engine.embed([self._tokens[len(self._vectors)]], self.adapter)
        except Exception as error:
            self.chat.fail(error)
            return False
        if len(self._vectors) < len(texts):
            return True
        num_tokens = sum(map(len, self._tokens))
        self.chat.reply(done={"prompt_tokens": num_tokens, "embeddings": self._vectors})
        return False


class EmbeddingBatch:
    """Requests for vectors of one model and adapter: each reads a text in turn."""

    num_keys = 0
    """The number of keys it holds between two texts: none."""

    def __init__(self, engine: ServingEngine, adapter: Path | None) -> None:
        self.engine, self.adapter = engine, adapter
        self._requests: deque[RunningEmbedding] = deque()

    def join(self, request: RunningEmbedding) -> None:
        """Add a request, behind one text of each of the others."""
        self._requests.append(request)

    def drop(self, numbers: Collection[int]) -> None:
        """Read no further for clients that disconnected."""
        self._requests = deque(each for each in self._requests if each.chat.number not in numbers)

    def advance(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Read for about this long, or until `until()`; return False when all have ended."""
        deadline = time.monotonic() + seconds
        while self._requests:
            request = self._requests.popleft()
            if request.read_next():
                self._requests.append(request)
            if time.monotonic() >= deadline or until():
                break
        return bool(self._requests)

    def fail(self, error: Exception) -> None:
        """Send an error to every client."""
        for request in self._requests:
            request.chat.fail(error)
