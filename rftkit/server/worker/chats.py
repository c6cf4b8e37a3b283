"""The chat queue: collect waiting chats, batch them by model, and sample the answers.

The worker calls it between the parts of a training step, or when no job is training. `worker.py`
receives the requests; `api/` has the HTTP.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import queue
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit import settings
from rftkit.errors import (
    InputError,
    MissingExtraError,
    NotFoundError,
    PlatformError,
    RequestError,
    RftkitError,
)
from rftkit.graders.calls import if_abandoned
from rftkit.server.engine import models
from rftkit.server.engine.base import Completion, SampleRequest, ServingEngine, Thinking
from rftkit.server.engine.prompts import most_characters, tool_calls_in
from rftkit.server.engine.tinker import remote
from rftkit.server.engine.tool_calls import calls_schema, forced_calls_in
from rftkit.server.inference.requests import ChatRequest, EmbedRequest, WorkerRequest
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store.records import Model
from rftkit.server.store.store import Store
from rftkit.server.training.journal import damage
from rftkit.server.training.plan import thinking_tokens, thoughts
from rftkit.server.training.rollout import schema_of

__all__ = ["ChatQueue", "Engines", "kind_of_model"]

GATHER_SECONDS = 0.02
"""How long the first of several concurrent chats waits for others to join its batch."""
TURN_SECONDS = 0.05
"""How long a batch is sampled before the next batch has its turn."""
DEFAULT_MAX_TOKENS = 1_024

LOAD_SECONDS = 180.0
"""How long loading a small model may take, even on a busy machine."""
LOAD_BYTES_PER_SECOND = 20e6
"""Speed of the slowest disk that loading waits for."""
PROMPT_SECONDS = 120.0
"""How long a chat template and a tokenizer may take for one prompt."""

Send = Callable[[dict[str, Any]], None]
Watch = Callable[[str, float, str | None], contextlib.AbstractContextManager[None]]
"""(what, seconds, job): wraps work that may hang; after the time limit the process is replaced."""


def _unwatched(
    what: str, seconds: float, job: str | None
) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class Engines:
    """The base models in memory; each is loaded on first use."""

    def __init__(self, home: Path, watch: Watch = _unwatched) -> None:
        self._home = home
        self.watch = watch
        self._loaded: dict[tuple[str, str], ServingEngine] = {}

    def get(
        self,
        base: str,
        on_progress: Callable[[str], None] = lambda _: None,
        kind: str | None = None,
        job: str | None = None,
    ) -> ServingEngine:
        """Return the engine of a base model.

        Args:
            base: name of the model.
            on_progress: gets a message before a slow part, such as a conversion.
            kind: "torch" for this machine, "tinker" for the operator's server; None for the
                operator's choice.
            job: id of the job that needs it.

        Raises:
            NotFoundError: when there is no such model.
            MissingExtraError: when the packages that run it are not installed.
            EngineLostError: when the server does not answer.
        """
        key = (base, remote.kind_of(base, self._home, kind))
        if key not in self._loaded:
            make = self._make_tinker if key[1] == "tinker" else self._make_torch
            self._loaded[key] = make(base, on_progress, job)
        return self._loaded[key]

    def forget(self, engine: ServingEngine) -> None:
        """Close an engine; it is loaded again on its next use."""
        self._loaded = {key: each for key, each in self._loaded.items() if each is not engine}
        engine.close()

    def _make_torch(
        self, base: str, on_progress: Callable[[str], None], job: str | None
    ) -> ServingEngine:
        folder = models.prepare(models.find_base(base, self._home), self._home, on_progress)
        try:
            from rftkit.server.engine.torch.engine import TorchEngine
        except ImportError as error:
            raise MissingExtraError(error.name or "torch", "local") from error
        # loading may hang: the folder's config decides what runs, and its chat template is code
        with self.watch(f"loading {base}", _load_seconds(folder), job):
            engine = TorchEngine(folder, name=base)
            with contextlib.suppress(Exception):  # a refusal is reported when a chat needs it
                engine.encode([{"role": "user", "content": "Hello"}], None, None)
        return engine

    def _make_tinker(
        self, base: str, on_progress: Callable[[str], None], job: str | None
    ) -> ServingEngine:
        from rftkit.server.engine.tinker.engine import TinkerEngine

        there = remote.remote_of(self._home)
        assert there is not None  # `remote.kind_of` found it
        return TinkerEngine(there, name=base, api_key=settings.tinker_api_key())


def _load_seconds(folder: Path) -> float:
    """Return how long loading a folder may take; large weights get more time."""
    sizes = (file.stat().st_size for file in folder.glob("*") if file.is_file())
    return LOAD_SECONDS + sum(sizes) / LOAD_BYTES_PER_SECOND


def kind_of_model(model: Model) -> str | None:
    """Return the engine that a fine-tuned model needs; None if the operator's choice works."""
    return remote.kind_of_folder(Path(model.folder))


@dataclass(frozen=True, slots=True)
class _Chat:
    """A waiting chat."""

    number: int
    request: WorkerRequest
    send: Send


@dataclass(frozen=True, slots=True)
class _Ready:
    """A chat with its request for the engine."""

    chat: _Chat
    asked: ChatRequest
    sample: SampleRequest

    @property
    def streams(self) -> bool:
        """Whether text is sent while it is sampled; reasoning and tool calls come whole."""
        return self.asked.stream and not self.asked.tools and self.sample.thinking is None


class _Batch:
    """Chats of one model that arrived together: sampled in parallel, each answered when done."""

    def __init__(
        self, engine: ServingEngine, adapter: Path | None, ready: list[_Ready], reply: Any
    ) -> None:
        self.chats = [each.chat for each in ready]
        self.num_keys = sum(
            len(each.sample.seeds) * (len(each.sample.prompt_ids) + each.sample.max_tokens)
            for each in ready
        )
        """Largest number of token positions that the batch can fill."""
        self.engine = engine
        self._ready, self._reply = ready, reply
        self._completions: list[dict[int, Completion]] = [{} for _ in ready]
        streams = any(each.streams for each in ready)
        self._sampling = engine.begin(
            [each.sample for each in ready],
            adapter,
            self._on_completion,
            self._on_text if streams else None,
        )

    def sample_for(self, seconds: float) -> bool:
        """Sample for about this long; return False when all completions have ended."""
        return bool(self._sampling.go_on(seconds))

    def drop(self, numbers: Collection[int]) -> None:
        """Stop sampling for clients that disconnected."""
        for place, chat in enumerate(self.chats):
            if chat.number in numbers:
                self._sampling.drop(place)

    def _on_text(self, place: int, index: int, text: str) -> None:
        if self._ready[place].streams:
            self._reply(self.chats[place], delta={"index": index, "text": text})

    def _on_completion(self, place: int, index: int, completion: Completion) -> None:
        ready, found = self._ready[place], self._completions[place]
        found[index] = completion
        if len(found) < len(ready.sample.seeds):
            return
        done = _done(self.engine, ready, [found[number] for number in sorted(found)])
        if ready.asked.stream and not ready.streams:
            for answer in done["completions"]:
                delta = {name: answer[name] for name in ("index", "text", "reasoning")}
                self._reply(ready.chat, delta=delta)
        self._reply(ready.chat, done=done)


class ChatQueue:
    """Waiting chats, and how they are answered. Any thread may call `put` and `abort`.

    Chats that arrive together form a batch. Batches take turns of `TURN_SECONDS`, so a new chat
    waits for one turn of each, however long their answers are. While a job trains, chats get as
    much time as the job had since they were last served (`share`). If both have work, each gets at
    least half of the time. Each waits only for what the other cannot interrupt: one token of all
    rows, the reading of a prompt, or one micro-batch of an update.
    """

    def __init__(self, store: Store, engines: Engines, send: Send) -> None:
        self._store = store
        self._engines = engines
        self._send = send
        self._waiting: queue.SimpleQueue[_Chat] = queue.SimpleQueue()
        self._aborted: set[int] = set()
        self._own_numbers = itertools.count(-1, -1)
        self._serving = threading.Lock()
        self._whole: set[str] = set()
        self._batches: deque[_Batch] = deque()
        self._held: deque[_Batch] = deque()
        self._balance = 0.0
        self._served_at = time.monotonic()

    def put(self, number: int, request: WorkerRequest) -> None:
        """Add a chat to the queue."""
        self._waiting.put(_Chat(number, request, self._send))

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
            self._waiting.put(_Chat(number, request, answer.put))
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
        has_work = bool(self._batches or self._held) or not self._waiting.empty()
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

    def _turn(self, batch: _Batch, seconds: float) -> None:
        try:
            if batch.sample_for(seconds):
                self._batches.append(batch)
        except Exception as error:
            traceback.print_exc()
            for chat in batch.chats:
                self._reply(chat, error=_error(error))

    def _take_in(self) -> None:
        """Start new chats as far as there is room, and drop those whose clients disconnected."""
        gone, self._aborted = self._aborted, set()
        for batch in (*self._batches, *self._held):
            batch.drop(gone)
        if not (self._waiting.empty() or self._batches or self._held):
            time.sleep(GATHER_SECONDS)
        by_model: dict[str, list[_Chat]] = {}
        while not self._waiting.empty():
            chat = self._waiting.get()
            if chat.number not in gone:
                by_model.setdefault(chat.request.model, []).append(chat)
        for model, chats in by_model.items():
            self._prepare(model, chats)
        while self._held and self._has_room(self._held[0]):
            self._batches.appendleft(self._held.popleft())  # a new batch has the next turn

    def _has_room(self, batch: _Batch) -> bool:
        running = [each.num_keys for each in self._batches if each.engine is batch.engine]
        return not running or sum(running) + batch.num_keys <= batch.engine.max_keys

    def _prepare(self, model: str, chats: list[_Chat]) -> None:
        """Prepare a batch of these chats; answer at once those that need no sampling."""
        try:
            known = self._store.model(model)
            adapter = self._adapter(known)
            base, kind = (model, None) if known is None else (known.base, kind_of_model(known))
            since = time.monotonic()
            engine = self._engines.get(base, kind=kind)
            self._balance += time.monotonic() - since  # loading time counts for neither side
            ready = []
            for chat in chats:
                asked = chat.request
                if isinstance(asked, ChatRequest) and asked.task == "chat":
                    ready += self._prepared(engine, known, chat, asked)
                else:
                    self._measure(engine, adapter, known, chat)
            if ready:
                self._held.append(_Batch(engine, adapter, ready, self._reply))
        except Exception as error:
            traceback.print_exc()
            for chat in chats:
                self._reply(chat, error=_error(error))

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

    def _measure(
        self, engine: ServingEngine, adapter: Path | None, known: Model | None, chat: _Chat
    ) -> None:
        """Answer a request that needs no sampling: the length of a prompt, or embeddings."""
        try:
            if isinstance(chat.request, EmbedRequest):
                self._reply(chat, done=_embedded(engine, adapter, chat.request))
            else:
                with self._watched(engine):
                    sample = _sample_request(engine, known, chat.request)
                self._reply(chat, done={"prompt_tokens": len(sample.prompt_ids)})
        except (RftkitError, ValueError) as error:
            self._reply(chat, error=_error(error))

    def _watched(self, engine: ServingEngine) -> contextlib.AbstractContextManager[None]:
        return self._engines.watch(f"the chat template of {engine.name}", PROMPT_SECONDS, None)

    def _reply(self, chat: _Chat, **message: Any) -> None:
        chat.send({"id": chat.number, **message})

    def _prepared(
        self, engine: ServingEngine, known: Model | None, chat: _Chat, asked: ChatRequest
    ) -> list[_Ready]:
        """Return the prepared chat, or nothing if it is refused; the refusal is sent."""
        try:
            with self._watched(engine):
                return [_Ready(chat, asked, _sample_request(engine, known, asked))]
        except (RftkitError, ValueError) as error:
            self._reply(chat, error=_error(error))
            return []


def _sample_request(
    engine: ServingEngine, known: Model | None, request: ChatRequest
) -> SampleRequest:
    mark = request.thinking or (known and known.thinking) or engine.thinking
    mark = None if mark == "none" else mark
    _check_length(engine, json.dumps(request.messages, ensure_ascii=False), "messages")
    try:
        prompt = engine.encode(request.messages, request.tools, mark)
    except Exception as error:  # a chat template is code, which may fail in any way
        raise InputError(
            f"the model's chat template cannot take these messages: {error}", param="messages"
        ) from error
    room = engine.context_tokens - len(prompt)
    if room < 1:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, but the model's context holds "
            f"{engine.context_tokens}, including the answer",
            param="messages",
            code="context_length_exceeded",
        )
    most = min(request.max_tokens or DEFAULT_MAX_TOKENS, room)
    thinking = thoughts(mark, thinking_tokens(request.reasoning_effort, most))
    schema = _schema(engine, request, thinking)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    return SampleRequest(
        prompt_ids=prompt,
        seeds=[(seed, index) for index in range(request.n)],
        max_tokens=most,
        temperature=request.temperature,
        top_p=request.top_p,
        schema=schema,
        thinking=thinking,
        stop=request.stop,
        num_top_logprobs=request.top_logprobs or 0,
    )


def _check_length(engine: ServingEngine, text: str, param: str) -> None:
    """Refuse a text that cannot fit before it is tokenized, which would delay other chats.

    Raises:
        InputError: the text is longer than a context full of the longest token.
    """
    if len(text) > most_characters(engine.tokenizer, engine.context_tokens):
        raise InputError(
            f"the text has {len(text):,} characters; the model's context holds "
            f"{engine.context_tokens:,} tokens",
            param=param,
            code="context_length_exceeded",
        )


def _schema(engine: ServingEngine, request: ChatRequest, thinking: Thinking | None) -> str | None:
    """Return the schema of the answer: of forced tool calls, else of the response format.

    Raises:
        RequestError: the schema cannot be compiled; the error names its parameter.
    """
    param = "tools" if request.must_call else None
    schema: str | None
    try:
        if request.must_call:
            schema = calls_schema(request.tools or [], request.must_call, most=request.most_calls)
        else:
            schema = schema_of(request.response_format, request.tools)
        if schema is not None:
            engine.grammars.start(schema, thinking)
    except RequestError as error:
        raise RequestError(error.message, param=param or error.param) from None
    except RecursionError:
        message = "the JSON schema is nested too deeply"
        raise RequestError(message, param=param or "response_format") from None
    return schema


def _read(text: str, request: ChatRequest) -> tuple[str, list[dict[str, Any]]]:
    """Return the answer without its tool calls, and the calls."""
    if request.must_call and (calls := forced_calls_in(text)):
        return "", calls
    return tool_calls_in(text, request.tools)


def _embedded(engine: ServingEngine, adapter: Path | None, request: EmbedRequest) -> dict[str, Any]:
    for text in request.input:
        if isinstance(text, str):
            _check_length(engine, text, "input")
    inputs = [
        engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        if isinstance(text, str)
        else text
        for text in request.input
    ]
    for number, tokens in enumerate(inputs):
        if not 0 < len(tokens) <= engine.context_tokens:
            raise InputError(
                f"input {number} has {len(tokens)} tokens; the model takes 1 to "
                f"{engine.context_tokens}",
                param="input",
            )
        if not all(0 <= token < engine.num_tokens for token in tokens):
            raise InputError(f"input {number} has unknown token ids", param="input")
    return {
        "prompt_tokens": sum(map(len, inputs)),
        "embeddings": engine.embed(inputs, adapter),
    }


def _done(engine: ServingEngine, ready: _Ready, completions: list[Completion]) -> dict[str, Any]:
    def text(token: int) -> str:
        return str(engine.tokenizer.decode([token]))

    def logprobs(completion: Completion) -> list[dict[str, Any]]:
        tops = completion.top_logprobs or [()] * len(completion.tokens)
        entries = [
            {
                "token": text(token),
                "logprob": logprob,
                "top": [{"token": text(other), "logprob": value} for other, value in top],
            }
            for token, logprob, top in zip(
                completion.tokens, completion.sampling_logprobs, tops, strict=True
            )
        ]
        ends = [token in engine.eos_ids for token in completion.tokens]
        answer = slice(completion.reasoning_tokens, None)
        pairs = zip(entries[answer], ends[answer], strict=True)
        return [entry for entry, is_end in pairs if not is_end]

    def answer(index: int, completion: Completion) -> dict[str, Any]:
        answer, calls = _read(completion.text, ready.asked)
        return {
            "index": index,
            "text": answer,
            "stop_reason": completion.stop_reason,
            "tokens": len(completion.tokens),
            "reasoning": completion.reasoning,
            "reasoning_tokens": completion.reasoning_tokens,
            "tool_calls": calls[: ready.asked.most_calls] or None,
            "logprobs": logprobs(completion),
        }

    return {
        "prompt_tokens": len(ready.sample.prompt_ids),
        "completions": [answer(index, each) for index, each in enumerate(completions)],
    }


def _error(error: Exception) -> dict[str, Any]:
    is_input = isinstance(error, InputError)
    status = 400 if is_input else 404 if isinstance(error, NotFoundError) else 500
    return {
        "status": status,
        "message": str(error) or type(error).__name__,
        "type": "server_error" if status == 500 else "invalid_request_error",
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }
