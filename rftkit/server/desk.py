"""Answer chats with the engines of this process: collect what waits, batch it by model, sample.

Called between the micro-steps of a training job or when nothing trains. Not here: HTTP (`api/`),
and the pipe the requests come through (`worker.py`).
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import InputError, MissingExtraError, NotFoundError, RftkitError
from rftkit.server.engine import models
from rftkit.server.engine.base import Completion, SampleRequest
from rftkit.server.link import ChatError
from rftkit.server.rollout import schema_of
from rftkit.server.store import Store

__all__ = ["Desk", "Engines"]

GATHER_SECONDS = 0.02
"""How long the first of several concurrent chats waits for the others."""
DEFAULT_MAX_TOKENS = 1_024

Send = Callable[[dict[str, Any]], None]


class Engines:
    """The base models in memory, loaded when first needed."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._loaded: dict[str, Any] = {}

    def get(self, base: str, say: Callable[[str], None] = lambda _: None) -> Any:
        """The engine of a base model.

        Raises:
            NotFoundError: when there is no such model.
            MissingExtraError: when the packages that run it are not installed.
        """
        if base not in self._loaded:
            folder = models.prepare(models.find_base(base), self._home, say)
            try:
                from rftkit.server.engine.torch import TorchEngine
            except ImportError as error:
                raise MissingExtraError(error.name or "torch", "local") from error
            self._loaded[base] = TorchEngine(folder, name=base)
        return self._loaded[base]


@dataclass(frozen=True, slots=True)
class _Chat:
    """One chat that waits."""

    number: int
    request: dict[str, Any]
    send: Send


@dataclass(frozen=True, slots=True)
class _Ready:
    """A chat turned into what an engine samples."""

    chat: _Chat
    sample: SampleRequest


class Desk:
    """Chats that wait, and how they are answered. `put` and `abort` from any thread."""

    def __init__(self, store: Store, engines: Engines, send: Send) -> None:
        self._store = store
        self._engines = engines
        self._send = send
        self._waiting: queue.SimpleQueue[_Chat] = queue.SimpleQueue()
        self._aborted: set[int] = set()
        self._serving = threading.Lock()

    def put(self, number: int, request: dict[str, Any]) -> None:
        """Let a chat wait."""
        self._waiting.put(_Chat(number, request, self._send))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a chat of this process's own; from any thread but the one that serves.

        Raises:
            ChatError: when it is refused or fails.
        """
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waiting.put(_Chat(-1, {**request, "stream": False}, answer.put))
        message = answer.get()
        if "error" in message:
            raise ChatError(**message["error"])
        done: dict[str, Any] = message["done"]
        return done

    def abort(self, number: int) -> None:
        """The client went away: do not begin its chat."""
        self._aborted.add(number)

    def serve(self) -> bool:
        """Answer what waits; whether there was anything. Never raises, and never nests."""
        if self._waiting.empty() or not self._serving.acquire(blocking=False):
            return False
        try:
            time.sleep(GATHER_SECONDS)
            by_model: dict[str, list[_Chat]] = {}
            while not self._waiting.empty():
                chat = self._waiting.get()
                if chat.number not in self._aborted:
                    by_model.setdefault(chat.request["model"], []).append(chat)
            self._aborted.clear()
            for model, chats in by_model.items():
                self._answer(model, chats)
        finally:
            self._serving.release()
        return True

    def _answer(self, model: str, chats: list[_Chat]) -> None:
        try:
            known = self._store.model(model)
            engine = self._engines.get(known.base if known else model)
            ready = [each for chat in chats if (each := self._prepared(engine, chat)) is not None]
            if not ready:
                return

            def on_text(row: int, index: int, text: str) -> None:
                if ready[row].chat.request["stream"]:
                    delta = {"index": index, "text": text}
                    self._reply(ready[row].chat, delta=delta)

            streams = any(each.chat.request["stream"] for each in ready)
            answers = engine.sample(
                [each.sample for each in ready],
                Path(known.folder) if known else None,
                on_text=on_text if streams else None,
            )
            for each, completions in zip(ready, answers, strict=True):
                self._reply(each.chat, done=_done(engine, each.sample, completions))
        except Exception as error:
            traceback.print_exc()
            for chat in chats:
                self._reply(chat, error=_error(error))

    def _reply(self, chat: _Chat, **message: Any) -> None:
        chat.send({"id": chat.number, **message})

    def _prepared(self, engine: Any, chat: _Chat) -> _Ready | None:
        """The request, or None when it is refused (and that has been said)."""
        try:
            return _Ready(chat, _sample_request(engine, chat.request))
        except (RftkitError, ValueError) as error:
            self._reply(chat, error=_error(error))
            return None


def _sample_request(engine: Any, request: dict[str, Any]) -> SampleRequest:
    try:
        prompt = engine.encode(request["messages"], request["tools"])
    except Exception as error:  # a chat template is a program of its own
        raise InputError(
            f"the model's chat template cannot take these messages: {error}", param="messages"
        ) from error
    room = engine.context_tokens - len(prompt)
    if room < 1:
        raise InputError(
            f"the prompt has {len(prompt)} tokens; the model's context holds "
            f"{engine.context_tokens}, the answer included",
            param="messages",
            code="context_length_exceeded",
        )
    schema = schema_of(request["response_format"])
    if schema is not None:
        engine.grammars.matcher(schema)  # refuses what cannot be compiled
    seed = secrets.randbits(32) if request["seed"] is None else request["seed"]
    wanted = request["max_tokens"] or DEFAULT_MAX_TOKENS
    return SampleRequest(
        prompt_ids=prompt,
        seeds=[(seed, index) for index in range(request["n"])],
        max_tokens=min(wanted, room),
        temperature=request["temperature"],
        top_p=request["top_p"],
        schema=schema,
        stop=tuple(request["stop"]),
        num_top_logprobs=request["top_logprobs"] if request["logprobs"] else 0,
    )


def _done(engine: Any, sample: SampleRequest, completions: list[Completion]) -> dict[str, Any]:
    def text(token: int) -> str:
        return str(engine.tokenizer.decode([token]))

    def logprobs(completion: Completion) -> list[dict[str, Any]]:
        tops = completion.top_logprobs or [()] * len(completion.tokens)
        return [
            {
                "token": text(token),
                "logprob": logprob,
                "top": [{"token": text(other), "logprob": value} for other, value in top],
            }
            for token, logprob, top in zip(
                completion.tokens, completion.sampling_logprobs, tops, strict=True
            )
            if token not in engine.eos_ids
        ]

    return {
        "prompt_tokens": len(sample.prompt_ids),
        "completions": [
            {
                "index": index,
                "text": completion.text,
                "stop_reason": completion.stop_reason,
                "tokens": len(completion.tokens),
                "reasoning_tokens": 0,
                "tool_calls": None,
                "logprobs": logprobs(completion),
            }
            for index, completion in enumerate(completions)
        ],
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
