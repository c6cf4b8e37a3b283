"""Episodes of an eval run: items whose model calls tools, reads what they answer and continues.

The calls are those of a job with tools, or of servers that the request names among the tools of its
`sampling_params`. They are made as in a validation (`training.environment`), and the worker gets
the earlier turns of an episode as the tokens that were sampled. A run that a kill interrupted
continues its episodes: what was said, and each call that was answered, is in a file until the run
has ended. Not here: which requests are refused (`api.eval_runs`), and grading (`runner`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import NotFoundError
from rftkit.growing import append_json, json_values
from rftkit.hyperparameters import EPISODE_STEPS
from rftkit.rows import Row
from rftkit.server.engine.values import Completion, Turn
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store.records import EvalRun
from rftkit.server.store.store import Store
from rftkit.server.training.environment import ToolEnvironment, trace_id
from rftkit.server.training.journal import CallPlace
from rftkit.tools import Tools

__all__ = [
    "Diary",
    "Episode",
    "RunTools",
    "is_server",
    "play",
    "run_tools",
    "tools_of_model",
    "trace_of",
]

Json = dict[str, Any]
SendChat = Callable[[ChatRequest], Awaitable[Json]]
"""Sends a request to the worker and returns what it answers in `done`."""

MOST_TOKENS = 1_024
"""Sampled in all turns of an episode, where the request has no limit."""


@dataclass(frozen=True, slots=True)
class RunTools:
    """The tools of a run."""

    entries: list[Json]
    """Where calls are sent: the `tools` of a job."""
    functions: list[Json] | None
    """The functions that the model is shown; None for the tools of each row, or those that MCP
    servers list."""
    max_steps: int
    """Most turns of an episode; calls of the last one are not made."""
    job_id: str | None = None
    """The job whose tools they are; None: the request's."""


def is_server(tool: Json) -> bool:
    """Whether an entry of `sampling_params.tools` says where calls go, and defines no function."""
    return tool.get("type") == "mcp" or "server_url" in tool


def run_tools(store: Store, model: str | None, sampling: Mapping[str, Any]) -> RunTools | None:
    """The tools that answer the calls of a run; None if there are none, and each item is one
    answer.
    """
    given = [each for each in sampling.get("tools") or [] if isinstance(each, dict)]
    entries = [each for each in given if is_server(each)]
    functions = [each for each in given if not is_server(each)] or None
    job_id, job_steps = None, None
    if not entries:
        job_id, entries, job_steps = tools_of_model(store, model)
        known = {each.get("name") for each in entries if each.get("type") != "mcp"}
        if functions and len(known) == len(entries):
            names = {each.get("function", each).get("name") for each in functions}
            # no tool is given for these functions: grade the calls themselves
            if not names & known:
                entries = []
    if not entries:
        return None
    steps = sampling.get("max_episode_steps") or job_steps or EPISODE_STEPS
    return RunTools(entries, functions, steps, job_id)


def tools_of_model(store: Store, model: str | None) -> tuple[str | None, list[Json], int | None]:
    """The job of a fine-tuned model, its tools and its limit of turns."""
    known = store.model(model) if model else None
    if known is None or known.job_id is None:
        return None, [], None
    try:
        method = store.job(known.job_id).method.get("reinforcement") or {}
    except NotFoundError:  # it was deleted in the meantime
        return None, [], None
    return known.job_id, method.get("tools") or [], method.get("max_episode_steps")


def trace_of(run: EvalRun, number: int) -> str:
    """The trace id by which the tools and the grader of an item recognise its episode."""
    return trace_id(run.id, "eval", 0, number, 0)


class Diary:
    """A record of the turns and tool results in the episodes of an unfinished run."""

    def __init__(self, path: Path | None) -> None:
        """Open the record; `path` is None if there is no home to keep it in."""
        self._path = path
        self._said: dict[tuple[int, int], Json] = {}
        self._calls: dict[int, dict[CallPlace, Json]] = {}
        for value in json_values(path) if path else ():
            with contextlib.suppress(ValueError, TypeError):
                number, turn, call, kept = value
                if call is None:
                    self._said[number, turn] = kept
                else:
                    self._calls.setdefault(number, {})[0, 0, turn, call] = kept

    def said(self, number: int, turn: int) -> Json | None:
        """The model's message of an item in a turn, if it is recorded."""
        return self._said.get((number, turn))

    def keep_said(self, number: int, turn: int, said: Json) -> None:
        """Keep it."""
        self._keep([number, turn, None, said])

    def calls(self, number: int) -> dict[CallPlace, Json]:
        """The calls of an item that were answered."""
        return self._calls.get(number, {})

    def keep_call(self, number: int, place: CallPlace, call: Json) -> None:
        """Keep one, from any thread."""
        self._keep([number, *place[2:], call])

    def close(self) -> None:
        """Forget all; the run has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _keep(self, value: Any) -> None:
        if self._path is not None:
            append_json(self._path, value)


@dataclass(frozen=True, slots=True)
class Episode:
    """An item's episode that has ended."""

    completion: Completion
    """The completion of its last turn, with a `failure` if a tool failed."""
    prompt_tokens: int
    completion_tokens: int
    """Sampled ones, of all turns."""
    reasoning_tokens: int


async def play(
    tools: Tools,
    row: Row,
    asked: ChatRequest,
    ask: SendChat,
    diary: Diary,
    trace: str,
    max_steps: int,
) -> Episode:
    """The turns of an item, until the model answers, has no turn or no token left, or a tool fails.

    Args:
        tools: of the run.
        row: the item, with its prompt as `messages` and what the model is shown as `tools`; its
            line is its number in the run.
        asked: the request of the first turn.
        ask: sends requests to the worker.
        diary: of the run.
        trace: see `trace_of`.
        max_steps: most turns.

    Raises:
        ChatError: the worker refused or failed.
        Abandoned: the tools were closed.
    """
    following: list[Json] = []
    """Each turn as tokens, with the messages before it, its calls and their results."""

    def render(_: Row, before: list[Json], replies: list[tuple[Json, str]]) -> list[int]:
        following.append({"before": before, "replies": replies})
        return []  # the worker renders them

    environment = ToolEnvironment(
        tools, [row], max_steps, lambda *_: trace, render,
        known=diary.calls(row.line),
        keep=lambda place, call: diary.keep_call(row.line, place, call),
    )  # fmt: skip
    turns: list[Turn] = []
    tokens, reasoning, prompt = 0, 0, 0
    most = asked.max_tokens or MOST_TOKENS
    while True:
        request = dataclasses.replace(asked, turns=tuple(following), max_tokens=most - tokens)
        try:
            said = await _said(request, row.line, len(turns), ask, diary)
        except ChatError as error:
            if not turns or error.code != "context_length_exceeded":
                raise
            last = dataclasses.replace(turns[-1], num_observed=0)
            ended = Completion([], "", [], "length", turns=[*turns[:-1], last])
            return Episode(ended, prompt, tokens, reasoning)
        prompt = prompt or said["prompt_tokens"]
        tokens += len(said["tokens"])
        reasoning += said["reasoning_tokens"]
        now = Completion(
            said["tokens"], said["text"], [], said["stop_reason"], reasoning=said["reasoning"],
            turns=turns,
        )  # fmt: skip
        has_room = now.stop_reason == "stop" and tokens < most
        answers = environment.respond(0, 0, now) if has_room else None
        if answers is None:
            return Episode(now, prompt, tokens, reasoning)
        found = environment.observe(0, 0, now, await asyncio.wrap_future(answers))
        turns = [
            *turns,
            Turn(
                len(now.tokens), int(found.failure is None), now.text, now.reasoning,
                said["reasoning_tokens"], found.calls,
            ),
        ]  # fmt: skip
        if found.failure is not None:
            ended = Completion([], "", [], "stop", turns=turns, failure=found.failure)
            return Episode(ended, prompt, tokens, reasoning)
        following[-1]["tokens"] = now.tokens


async def _said(request: ChatRequest, number: int, turn: int, ask: SendChat, diary: Diary) -> Json:
    """The model's message in a turn, from the diary or sampled now."""
    known = diary.said(number, turn)
    if known is not None:
        return known
    done = await ask(request)
    [answer] = done["completions"]
    said = {
        "tokens": answer["token_ids"],
        "prompt_tokens": done["prompt_tokens"],
        "reasoning": answer.get("reasoning") or "",
        **{key: answer[key] for key in ("text", "stop_reason", "reasoning_tokens")},
    }
    await asyncio.to_thread(diary.keep_said, number, turn, said)
    return said
