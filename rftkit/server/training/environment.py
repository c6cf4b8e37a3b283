"""The tools of a job as the environment of its episodes: they answer the calls of each turn.

All calls of a turn are made at once, in threads of their own. What a call brought is kept in the
journal as soon as it is there, and is not asked for again: a killed job samples the same turns,
and finds their answers. A call that cannot be read, or of a function that does not exist, is
answered with an error that the model reads. A server that fails, fails the rollout. Not here: how a
call reaches its server (`rftkit.tools`), and when a turn is continued (the engine).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rftkit.rows import Row
from rftkit.server.engine.call_forms import attempted_calls_in
from rftkit.server.engine.values import Completion, Observation
from rftkit.server.training.journal import CallPlace
from rftkit.server.training.transcripts import answered
from rftkit.tools import ToolCall, ToolFailed, ToolReply, Tools

__all__ = ["ToolEnvironment", "trace_id", "with_functions"]

Json = dict[str, Any]
MOST_CALLS = 16
"""Most calls of one turn that are made."""
UNREADABLE = "Error: the call cannot be read. Write it exactly as you were told to."
ONE_AT_A_TIME = "Error: this call was not made. Make one call at a time."
TOO_MANY = f"Error: this call was not made. At most {MOST_CALLS} calls can be made at once."

Render = Callable[[Row, list[Json], list[tuple[Json, str]]], list[int]]
"""From a row, the messages after its prompt, and calls with their results, to the tokens that
follow the calls."""


def trace_id(job: str, kind: str, step: int, line: int, index: int) -> str:
    """The trace id of a rollout: the same for its tool calls and its grader, and also after a
    restart.
    """
    name = f"{job} {kind} {step} {line} {index}"
    return "trace_" + hashlib.sha256(name.encode()).hexdigest()[:32]


def with_functions(rows: Sequence[Row], tools: Tools | None) -> list[Row]:
    """The rows with the functions that their model is shown, of servers that list them."""
    if tools is None:
        return list(rows)
    found = []
    for row in rows:
        functions = tools.definitions(row.item)
        is_same = functions == row.tools
        found.append(row if is_same else Row({**row.item, "tools": functions or []}, row.line))
    return found


@dataclass
class ToolEnvironment:
    """See engine.base.Environment; for the rows of one sampling."""

    tools: Tools
    rows: Sequence[Row]
    max_steps: int
    """Most turns of an episode; calls of the last one are not made."""
    trace: Callable[[int, int], str]
    """The trace id of a row's completion, by their numbers."""
    render: Render
    known: Mapping[CallPlace, Json]
    """Calls that were answered already."""
    keep: Callable[[CallPlace, Json], None]
    """Gets each call that was answered, from any thread."""
    idle_seconds: float = 0.0
    """How long sampling waited because nothing could be sampled."""

    def respond(
        self, request: int, index: int, completion: Completion
    ) -> Future[list[Json]] | None:
        """See base.Environment."""
        row, turn = self.rows[request], len(completion.turns)
        if not row.tools or turn + 1 >= self.max_steps:
            return None
        calls = attempted_calls_in(completion.text, row.tools)
        if not calls:
            return None
        most = 1 if row.item.get("parallel_tool_calls") is False else MOST_CALLS
        why = ONE_AT_A_TIME if most == 1 else TOO_MANY
        asked: list[Future[Json]] = []
        for number, call in enumerate(calls):
            made = {"id": call["id"], **call["function"]}
            if not made["name"]:
                asked.append(_done({**made, **_error(UNREADABLE)}))
            elif number >= most:
                asked.append(_done({**made, **_error(why)}))
            else:
                asked.append(self._ask((request, index, turn, number), made, row))
        return _all(asked)

    def observe(
        self, request: int, index: int, completion: Completion, answer: list[Json]
    ) -> Observation:
        """See base.Environment."""
        row = self.rows[request]
        for each in answer:
            if each["kind"] == "failed":
                name = each["name"]
                return Observation([], answer, f"the tool {name!r} failed: {each['text']}")
        before = [message for turn in completion.turns for message in answered(turn, row)]
        replies = [
            ({"id": each["id"], "function": {"name": each["name"] or "unknown"}}, each["text"])
            for each in answer
        ]
        return Observation(self.render(row, before, replies), answer)

    def waited(self, seconds: float) -> None:
        """See base.Environment."""
        self.idle_seconds += seconds

    def _ask(self, place: CallPlace, made: Json, row: Row) -> Future[Json]:
        """The result of one call, from the journal or made now."""
        before = self.known.get(place)
        if before is not None and all(before[key] == made[key] for key in ("name", "arguments")):
            return _done({**before, "id": made["id"]})
        future: Future[Json] = Future()

        def work() -> None:
            try:
                future.set_result(self._call(place, made, row))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="tool-call", daemon=True).start()
        return future

    def _call(self, place: CallPlace, made: Json, row: Row) -> Json:
        call, started = ToolCall(**made), time.monotonic()
        try:
            reply = self.tools.call(call, trace_id=self.trace(*place[:2]), item=row.item)
        except ToolFailed as error:
            seconds = time.monotonic() - started
            return {**made, "text": str(error), "kind": "failed", "seconds": seconds}
        found = {**made, **_entry(reply)}
        self.keep(place, found)
        return found


def _entry(reply: ToolReply) -> Json:
    return {"text": reply.text, "kind": reply.kind, "seconds": reply.seconds}


def _error(text: str) -> Json:
    return {"text": text, "kind": "error", "seconds": 0.0}


def _done(value: Json) -> Future[Json]:
    future: Future[Json] = Future()
    future.set_result(value)
    return future


def _all(futures: Sequence[Future[Json]]) -> Future[list[Json]]:
    """The results of all, in order, when the last one is there; or the first error."""
    whole: Future[list[Json]] = Future()
    lock, left = threading.Lock(), len(futures)

    def count(done: Future[Json]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if not is_last:
            return
        try:
            whole.set_result([each.result() for each in futures])
        except BaseException as error:
            whole.set_exception(error)

    for each in futures:
        each.add_done_callback(count)
    return whole
