"""The chat queue: chats of one model and adapter are sampled together, and join between two tokens.

The worker calls it between the parts of a training step, or when no job is training. `prepare.py`
makes the engine's requests, `answers.py` the messages of the answers, and `running.py` has a chat
and a batch of them. `worker.py` receives the requests; `api/` has the HTTP.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

from rftkit.errors import PlatformError
from rftkit.graders.calls import if_abandoned
from rftkit.server.engine.base import ServingEngine
from rftkit.server.inference.requests import EmbedRequest, WorkerRequest
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store.records import Model
from rftkit.server.store.store import Store
from rftkit.server.training.journal import damage
from rftkit.server.worker.embedding import EmbeddingBatch, RunningEmbedding
from rftkit.server.worker.engines import Engines, kind_of_model
from rftkit.server.worker.prepare import sample_request
from rftkit.server.worker.running import Batch, Chat, RunningChat, Send

__all__ = ["ChatQueue"]

TURN_SECONDS = 0.05
"""How long a batch is sampled before the next batch has its turn."""
PROMPT_SECONDS = 120.0
"""How long a chat template and a tokenizer may take for one prompt."""


class ChatQueue:
    """Waiting chats, and how they are answered. Any thread may call `put` and `abort`.

    Chats of one model and adapter are one batch: a new chat joins it, and one whose client has
    disconnected leaves it, at the next token. Batches of other models or adapters take turns of
    `TURN_SECONDS`, so a new chat waits for one turn of each, however long their answers are, and
    for the prompts of chats that came before it. While a job trains, chats get as much time as the
    job had since they were last served (`share`). If both have work, each gets at least half of the
    time. Each waits only for what the other cannot interrupt: one token of all rows, the reading of
    a prompt, or one micro-batch of an update. An embedding of many texts reads one text at a time
    (`embedding.py`). Chats are also served while a job waits for a database that another program
    has locked.
    """

    def __init__(self, store: Store, engines: Engines, send: Send) -> None:
        self._store = store
        self._engines = engines
        self._send = send
        self._waiting: queue.SimpleQueue[Chat] = queue.SimpleQueue()
        self._aborted: set[int] = set()
        self._own_numbers = itertools.count(-1, -1)
        self._serving = threading.Lock()
        self._whole: set[str] = set()
        self._batches: deque[Batch | EmbeddingBatch] = deque()
        self._held: deque[RunningChat] = deque()
        self._balance = 0.0
        self._served_at = time.monotonic()

    def put(self, number: int, request: WorkerRequest) -> None:
        """Add a chat to the queue."""
        self._waiting.put(Chat(number, request, self._send))

    def ask(self, request: WorkerRequest) -> dict[str, Any]:
        """Answer a chat of this process itself. The thread that serves chats must not call it.

        Raises:
            ChatError: when it is refused or fails, or the grade that needs it is abandoned.
        """
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        number = next(self._own_numbers)

        def abandon() -> None:
            self.abort(number)
            answer.put({"error": {"message": "the request was abandoned"}})

        with if_abandoned(abandon):
            self._waiting.put(Chat(number, request, answer.put))
            message = answer.get()
        if "error" in message:
            raise ChatError(**message["error"])
        done: dict[str, Any] = message["done"]
        return done

    def abort(self, number: int) -> None:
        """Stop sampling a chat whose client disconnected."""
        self._aborted.add(number)

    def share(self) -> None:
        """Serve chats for as long as they were not served; called between parts of a step."""
        now = time.monotonic()
        has_work = bool(self._batches or self._held) or self._has_news()
        self._balance = self._balance + now - self._served_at if has_work else 0.0
        if has_work and self._balance > 0:
            self.serve(self._balance)
            self._balance -= time.monotonic() - now
        self._served_at = time.monotonic()

    def serve(self, seconds: float | None = None) -> bool:
        """Answer waiting chats, for about `seconds` or until all are answered.

        Returns whether there were any. It never raises; a nested call returns at once.
        """
        if not self._serving.acquire(blocking=False):
            return False
        try:
            return self._serve(seconds)
        finally:
            self._served_at = time.monotonic()
            self._serving.release()

    def _serve(self, seconds: float | None) -> bool:
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        has_served = False
        while True:
            self._take_in()
            if not self._batches:
                return has_served
            has_served = True
            left = max(0.0, deadline - time.monotonic())
            self._turn(self._batches.popleft(), min(TURN_SECONDS, left))
            if time.monotonic() >= deadline:
                return True

    def _turn(self, batch: Batch | EmbeddingBatch, seconds: float) -> None:
        try:
            if batch.advance(seconds, self._has_news):
                self._batches.append(batch)
        except Exception as error:
            traceback.print_exc()
            batch.fail(error)

    def _has_news(self) -> bool:
        """Whether a chat has come, or a client has disconnected."""
        return bool(self._aborted) or not self._waiting.empty()

    def _take_in(self) -> None:
        """Let new chats join as far as there is room, and drop those whose clients disconnected."""
        gone, self._aborted = self._aborted, set()
        self._held = deque(each for each in self._held if each.chat.number not in gone)
        for batch in self._batches:
            batch.drop(gone)
        deadline = time.monotonic() + TURN_SECONDS
        while not self._waiting.empty():
            if (self._batches or self._held) and time.monotonic() >= deadline:
                self._aborted |= gone  # some of them may be waiting still
                break
            chat = self._waiting.get()
            if chat.number not in gone:
                self._prepare(chat)
        while self._held and self._has_room(self._held[0]):
            self._join(self._held.popleft())

    def _has_room(self, chat: RunningChat) -> bool:
        running = sum(each.num_keys for each in self._batches if each.engine is chat.engine)
        return not running or running + chat.num_keys <= chat.engine.max_keys

    def _join(self, chat: RunningChat | RunningEmbedding) -> None:
        """Put a chat into the batch of its model and adapter; a new batch is next in line."""
        kind = EmbeddingBatch if isinstance(chat, RunningEmbedding) else Batch
        for batch in self._batches:
            if type(batch) is kind and (batch.engine, batch.adapter) == (chat.engine, chat.adapter):
                break
        else:
            batch = kind(chat.engine, chat.adapter)
            self._batches.appendleft(batch)
        batch.join(chat)  # type: ignore[arg-type]

    def _prepare(self, chat: Chat) -> None:
        """Prepare a chat for sampling; answer it at once if it needs none, or is refused."""
        asked = chat.request
        try:
            known = self._store.model(asked.model)
            adapter = self._adapter(known)
            base, kind = (
                (asked.model, None) if known is None else (known.base, kind_of_model(known))
            )
            since = time.monotonic()
            engine = self._engines.get(base, kind=kind)
            self._balance += time.monotonic() - since  # loading time counts for neither side
            if isinstance(asked, EmbedRequest):
                self._join(RunningEmbedding(chat, asked, engine, adapter))
                return
            with self._watched(engine):
                sample = sample_request(engine, known, asked)
            if asked.task == "count":
                chat.reply(done={"prompt_tokens": len(sample.prompt_ids)})
            else:
                self._held.append(RunningChat(chat, asked, sample, engine, adapter))
        except Exception as error:
            chat.fail(error)

    def _adapter(self, known: Model | None) -> Path | None:
        """Return the folder of a fine-tuned model; check its digests on first use.

        Raises:
            PlatformError: when a file is damaged; the message names it.
        """
        if known is None:
            return None
        if known.folder not in self._whole:
            if wrong := damage(Path(known.folder)):
                raise PlatformError(f"the weights of {known.name} are damaged: {wrong}")
            self._whole.add(known.folder)
        return Path(known.folder)

    def _watched(self, engine: ServingEngine) -> contextlib.AbstractContextManager[None]:
        return self._engines.watch(f"the chat template of {engine.name}", PROMPT_SECONDS, None)
