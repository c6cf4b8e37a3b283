"""A chat while it is sampled, and the batch of chats of one model and adapter.

Not here: whose turn it is (`chats.py`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.errors import RftkitError
from rftkit.server.engine.base import ServingEngine
from rftkit.server.engine.values import Completion, SampleRequest
from rftkit.server.inference.requests import ChatRequest, WorkerRequest
from rftkit.server.worker.answers import done_message, error_message

__all__ = ["Batch", "Chat", "RunningChat", "Send"]

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Chat:
    """A request and where its answer goes."""

    number: int
    request: WorkerRequest
    send: Send

    def reply(self, **message: Any) -> None:
        """Send a message: `delta`, `done` or `error`."""
        self.send({"id": self.number, **message})

    def fail(self, error: Exception) -> None:
        """Send an error; an error that the caller did not cause is logged too."""
        if not isinstance(error, RftkitError):
            traceback.print_exception(error)
        self.reply(error=error_message(error))


@dataclass(slots=True)
class RunningChat:
    """A chat with its request for the engine; the `base.Listener` of its completions."""

    chat: Chat
    asked: ChatRequest
    sample: SampleRequest
    engine: ServingEngine
    adapter: Path | None
    has_ended: bool = False
    _completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def num_keys(self) -> int:
        """Largest number of token positions that it can fill."""
        each = len(self.sample.prompt_ids) + self.sample.max_tokens
        return len(self.sample.seeds) * each

    @property
    def streams(self) -> bool:
        """Whether text is sent while it is sampled; reasoning and tool calls come whole."""
        return self.asked.stream and not self.asked.tools and self.sample.thinking is None

    def on_text(self, index: int, text: str) -> None:
        """See base.Listener."""
        if not self.has_ended:
            self.chat.reply(delta={"index": index, "text": text})

    def on_completion(self, index: int, completion: Completion) -> None:
        """See base.Listener: the last one is followed by the answer."""
        self._completions[index] = completion
        if self.has_ended or len(self._completions) < len(self.sample.seeds):
            return
        found = [self._completions[number] for number in sorted(self._completions)]
        try:
            done = done_message(self.engine, self.asked, len(self.sample.prompt_ids), found)
        except Exception as error:  # a tokenizer's own code can raise anything
            self.on_failure(error)
            return
        self.has_ended = True
        if self.asked.stream and not self.streams:
            for answer in done["completions"]:
                delta = {name: answer[name] for name in ("index", "text", "reasoning")}
                self.chat.reply(delta=delta)
        self.chat.reply(done=done)

    def on_failure(self, error: Exception) -> None:
        """See base.Listener."""
        if not self.has_ended:
            self.has_ended = True
            self.chat.fail(error)


class Batch:
    """Chats of one model and adapter: each token is sampled for all of them together."""

    def __init__(self, engine: ServingEngine, adapter: Path | None) -> None:
        self.engine, self.adapter = engine, adapter
        self._chats: dict[int, RunningChat] = {}
        self._sampling = engine.begin(adapter)

    @property
    def num_keys(self) -> int:
        """Largest number of token positions that its chats can fill."""
        return sum(each.num_keys for each in self._chats.values())

    def join(self, chat: RunningChat) -> None:
        """Add a chat, from the next token on."""
        self._chats[chat.chat.number] = chat
        self._sampling.join(chat.chat.number, chat.sample, chat)

    def drop(self, numbers: Collection[int]) -> None:
        """Stop sampling for clients that disconnected."""
        for number in self._chats.keys() & set(numbers):
            self._chats.pop(number).has_ended = True
            self._sampling.drop(number)

    def advance(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Sample for about this long, or until `until()`; return False when all have ended."""
        is_running = self._sampling.advance(seconds, until)
        self.drop([number for number, chat in self._chats.items() if chat.has_ended])
        return is_running

    def fail(self, error: Exception) -> None:
        """Send an error to every chat."""
        for chat in self._chats.values():
            chat.on_failure(error)
