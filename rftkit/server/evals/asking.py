"""The model's answer to an item of an eval run: its prompt, how it is sampled, what graders see.

With tools an item is an episode (`episodes`). Not here: grading and storing items (`runner`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from rftkit.errors import RequestError, RftkitError
from rftkit.graders import Sample
from rftkit.graders.calls import Abandoned
from rftkit.graders.outcome import Fault
from rftkit.graders.template import compile_template, look_up, paths
from rftkit.jsontext import parse_json
from rftkit.rows import Row
from rftkit.server.evals.episodes import Diary, is_server, play, run_tools, trace_of
from rftkit.server.inference.body import check_messages, kind_of
from rftkit.server.inference.chat_request import ChatBody, chat_request
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.inference.response_items import chat_tools, response_format_from
from rftkit.server.store.records import EvalRun
from rftkit.server.training import transcripts
from rftkit.server.training.eval_records import finish_reason
from rftkit.server.training.rollout import sample_of
from rftkit.tools import Tools, open_tools

__all__ = ["Asking", "chat_options", "messages_for"]

Json = dict[str, Any]
Answered = tuple[Sample | None, Json]
"""The answer, or None and the reason in the facts, which an output item shows."""


class Asking:
    """Asks the model of a run."""

    def __init__(
        self,
        platform: Platform,
        run: EvalRun,
        call: Callable[..., Awaitable[Any]],
        diary: Diary,
        is_running: Callable[[], bool],
    ) -> None:
        """`call` calls a function in a thread; `is_running` says that the run is not canceled."""
        self._platform, self._run, self._call = platform, run, call
        self._diary, self._is_running = diary, is_running
        given = run.data_source.get("sampling_params") or {}
        self._sampling = {key: value for key, value in given.items() if value is not None}
        self._run_tools = run_tools(platform.store, run.model, self._sampling)
        self._tools: Tools | None = None

    def open(self) -> None:
        """Reach the tools of the run, if it has any.

        Raises:
            ToolFailed: one cannot be reached.
            InputError, MissingExtraError: as from `open_tools`.
        """
        if self._run_tools is not None:
            private = self._platform.private_tools
            self._tools = open_tools(self._run_tools.entries, private=private)

    def close(self) -> None:
        """Abandon the calls in progress."""
        if self._tools is not None:
            self._tools.close()

    async def answer(self, number: int, item: Json) -> Answered:
        """Return the model's answer to the item of this number."""
        facts: Json = {"model": self._run.model, "sampling": self._sampling}
        try:
            facts["input"] = messages_for(self._run.data_source, item)
            check_messages(facts["input"])
            if row := self._row_with_tools(number, item, facts["input"]):
                return await self._episode(row, facts)
            return await self._one_turn(facts)
        except (RftkitError, Fault, ValueError, Abandoned) as error:
            facts["error"] = {"code": "sampling_failed", "message": str(error)}
            return None, facts

    async def _one_turn(self, facts: Json) -> Answered:
        asked = await self._call(self._request, facts["input"])
        done = await self._surely(asked)
        [answer] = done["completions"]
        calls = answer.get("tool_calls")
        facts |= {
            "text": answer["text"],
            "tool_calls": calls,
            "finish_reason": finish_reason(answer["stop_reason"], calls),
            "prompt_tokens": done["prompt_tokens"],
            "completion_tokens": answer["tokens"],
            "reasoning": answer.get("reasoning") or "",
            "reasoning_tokens": answer.get("reasoning_tokens", 0),
        }
        sample = Sample.from_text(
            answer["text"],
            response_format=asked.response_format,
            truncated=answer["stop_reason"] == "length",
            tool_calls=calls,
            model=self._run.model,
        )
        return sample, facts

    def _row_with_tools(self, number: int, item: Json, messages: list[Json]) -> Row | None:
        """The item as a row with the tools that the model is shown; None: it has none.

        Raises:
            InputError: a function has no server.
        """
        if self._tools is None or self._run_tools is None:
            return None
        given = item if self._run_tools.functions is None else {"tools": self._run_tools.functions}
        if not isinstance(given.get("tools") or [], list):
            raise RequestError(f"`item.tools` must be a list, found {kind_of(given['tools'])}")
        functions = self._tools.definitions(given)
        if not functions:
            return None
        row = Row({**item, "messages": messages, "tools": functions}, number)
        self._tools.check_rows([row])
        return row

    async def _episode(self, row: Row, facts: Json) -> Answered:
        """Let the model call tools until it answers."""
        assert self._tools is not None
        assert self._run_tools is not None
        own = {key: row.item[key] for key in ("tools", "parallel_tool_calls") if key in row.item}
        asked = await self._call(partial(self._request, row.messages, **own))
        trace = trace_of(self._run, row.line)
        played = await play(
            self._tools, row, dataclasses.replace(asked, is_turn=True), self._surely, self._diary,
            trace, self._run_tools.max_steps,
        )  # fmt: skip
        ended = played.completion
        facts |= {
            "prompt_tokens": played.prompt_tokens,
            "completion_tokens": played.completion_tokens,
            "reasoning_tokens": played.reasoning_tokens,
        }
        if ended.failure is not None:
            facts["error"] = {"code": "tool_failed", "message": ended.failure}
            return None, facts
        text, calls = transcripts.said(ended, row)
        facts |= {
            "text": text,
            "tool_calls": calls,
            "finish_reason": finish_reason(ended.stop_reason, calls),
            "reasoning": ended.reasoning,
            "output": transcripts.messages(ended, row) if ended.turns else (),
        }
        sample = sample_of(ended, row, asked.response_format, model=self._run.model)
        return dataclasses.replace(sample, trace_id=trace), facts

    async def _surely(self, asked: ChatRequest) -> Json:
        return await self._platform.complete_surely(asked, lambda _: self._is_running())

    def _request(self, messages: list[Json], **own: Any) -> ChatRequest:
        body = {
            **chat_options(self._sampling), "model": self._run.model, "messages": messages,
            "metadata": self._run.metadata, **own,
        }  # fmt: skip
        return chat_request(self._platform, ChatBody.model_validate(body))


def chat_options(sampling: Json) -> Json:
    """Sampling parameters of either kind of run, as chat completions spell them.

    Raises:
        RequestError: for what has no meaning in a chat, naming the parameter.
    """
    options = {k: v for k, v in sampling.items() if k not in ("text", "max_episode_steps")}
    tools = options.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RequestError(
                f"`tools` must be a list of objects, found {kind_of(tools)}", param="tools"
            )
        functions = [tool for tool in tools if not is_server(tool)]
        is_chats = any("function" in tool for tool in functions)
        options["tools"] = functions if is_chats else chat_tools(functions)
    text = sampling.get("text")
    if text is not None and not isinstance(text, dict):
        raise RequestError(f"`text` must be an object, found {kind_of(text)}", param="text")
    format_ = (text or {}).get("format")
    if format_ is not None:
        options["response_format"] = response_format_from(format_)
    return options


def messages_for(source: Json, item: Json) -> list[Json]:
    """Return the prompt of one item: a filled template, or the item's own messages.

    Raises:
        InputError: when the template or the reference does not fit the item.
    """
    given = source["input_messages"]
    if given["type"] == "item_reference":
        path = given["item_reference"].strip()
        rendered = compile_template("{{" + path + "}}")(Sample(output_text=""), item)
        messages: list[Json] = parse_json(rendered)
        if not isinstance(messages, list):
            raise ValueError(f"{path} must be a list of messages")
        return messages
    return [
        {"role": message["role"], "content": _filled(message["content"], item)}
        for message in given["template"]
    ]


def _filled(content: Any, item: Json) -> str:
    if isinstance(content, list):
        return "".join(_filled(part, item) for part in content)
    text = content.get("text", "") if isinstance(content, dict) else content
    for path in paths(text):
        if path.namespace == "item" and look_up(path, Sample(output_text=""), item) is None:
            raise Fault("invalid_variable_error", f"`{path}` is null, so the prompt is empty")
    return compile_template(text)(Sample(output_text=""), item)
