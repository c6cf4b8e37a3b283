"""Eval runs whose model calls tools: the platform makes the calls, the model reads the results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, Served
from eval_calls import MODEL, finished, make_eval
from fake_tools import definition, fails, fake_tools

from rftkit import tools as rftkit_tools
from rftkit.graders import posting
from rftkit.rows import Row
from rftkit.server.evals.episodes import Diary, play
from rftkit.server.inference.requests import ChatRequest

SEARCH = definition("search", "query")
ROW = {"messages": [{"role": "user", "content": "capital?"}], "answer": "Paris", "tools": [SEARCH]}
CALLS_MADE = {
    "type": "python", "name": "calls", "pass_threshold": 1.0,
    "source": "def grade(sample, item):\n    return float(len(sample['output_tools']))\n",
}  # fmt: skip


def called(query: str, name: str = "search") -> str:
    given = json.dumps({"name": name, "arguments": {"query": query}})
    return f"<tool_call>\n{given}\n</tool_call>"


def turn(text: str, stop_reason: str = "stop") -> dict[str, Any]:
    return {"text": text, "token_ids": [ord(c) for c in text], "stop_reason": stop_reason}


def asks_once(request: dict[str, Any]) -> Any:
    """A call, and then the last word of its result."""
    if not request["turns"]:
        return turn(called("capital of France"))
    [[_, result]] = request["turns"][-1]["replies"]
    return turn(result.split()[-1])


class Index:
    """What the tool was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, query: str) -> str:
        """Search.

        Args:
            query: what for
        """
        self.asked.append(query)
        if query == "broken":
            raise RuntimeError("no index")
        return "it is Paris"


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def entries(index: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 0.0)
    with rftkit_tools.serve([index.search]) as server:
        yield server.entries


def source(*rows: Any, model: str = MODEL, **sampling: Any) -> Any:
    return {
        "type": "completions", "model": model,
        "source": {"type": "file_content", "content": [{"item": row} for row in rows or [ROW]]},
        "input_messages": {"type": "item_reference", "item_reference": "item.messages"},
        "sampling_params": sampling,
    }  # fmt: skip


def run(served: Served, given: Any, *criteria: Any) -> Any:
    record = make_eval(served, *(criteria or [GRADER]))
    return finished(served, served.client.evals.runs.create(record.id, data_source=given))


def items(served: Served, run: Any) -> list[dict[str, Any]]:
    found = served.client.evals.runs.output_items.list(run.id, eval_id=run.eval_id)
    return [each.to_dict(warnings=False) for each in found]


def trained(served: Served, entries: list[Any], **method: Any) -> str:
    """A model of a job with tools."""
    inner = {"grader": GRADER, "tools": entries, **method}
    job = served.create_job(method={"type": "reinforcement", "reinforcement": inner})
    name = f"ft:rftkit-tiny:local::{job.id[-8:]}"
    served.platform.store.add_model(name, MODEL, job.id, "/f", 1)
    return name


def test_calls_are_made_and_the_item_has_the_whole_episode(
    served: Served, index: Index, entries: list[Any]
) -> None:
    served.link.say = asks_once
    done = run(served, source(tools=entries), GRADER, CALLS_MADE)
    assert done.status == "completed", done.error
    assert done.result_counts.passed == 1
    assert index.asked == ["capital of France"]
    [item] = items(served, done)
    output = item["sample"]["output"]
    assert [message["role"] for message in output] == ["assistant", "tool", "assistant"]
    [call] = output[0]["tool_calls"]
    assert call["function"]["name"] == "search"
    assert output[1]["tool_call_id"] == call["id"]
    assert output[1]["content"] == "it is Paris"
    assert output[2]["content"] == "Paris"
    first, second = served.link.requests
    assert first["tools"] == [SEARCH]
    said = called("capital of France")
    assert second["turns"][0]["tokens"] == [ord(c) for c in said]
    assert item["sample"]["usage"]["completion_tokens"] == len(said) + len("Paris")


def test_no_secret_of_a_server_is_shown(served: Served, entries: list[Any]) -> None:
    served.link.say = asks_once
    record = make_eval(served, GRADER)
    made = served.client.evals.runs.create(record.id, data_source=source(tools=entries))
    token = entries[0]["headers"]["Authorization"].split()[1]
    shown = [made, finished(served, made), *served.client.evals.runs.list(record.id)]
    assert token not in json.dumps([each.to_dict(warnings=False) for each in shown])
    assert made.data_source.to_dict()["sampling_params"]["tools"][0]["name"] == "search"


def test_a_model_of_a_job_with_tools_calls_those_of_its_job(
    served: Served, index: Index, entries: list[Any]
) -> None:
    served.link.say = asks_once
    model = trained(served, entries)
    assert run(served, source(model=model)).result_counts.passed == 1
    plain = {**ROW, "tools": []}
    given = source(plain, model=model, tools=[SEARCH])  # the same functions, from the request
    assert run(served, given).result_counts.passed == 1
    assert len(index.asked) == 2
    served.link.say = lambda request: "Paris"
    assert run(served, source(plain, model=model)).result_counts.passed == 1
    assert len(index.asked) == 2


def test_functions_that_nobody_serves_are_graded_as_they_are_called(
    served: Served, entries: list[Any]
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "other", "arguments": "{}"}}
    served.link.say = lambda request: {"text": "", "tool_calls": [call]}
    for model in (MODEL, trained(served, entries)):
        given = source({**ROW, "tools": []}, model=model, tools=[definition("other")])
        done = run(served, given, CALLS_MADE)
        assert done.result_counts.passed == 1
        [item] = items(served, done)
        assert item["sample"]["finish_reason"] == "tool_calls"


def test_a_limit_of_turns_and_calls_that_cannot_be_read(
    served: Served, index: Index, entries: list[Any]
) -> None:
    served.link.say = lambda request: turn(called(str(len(request["turns"]))))
    done = run(served, source(tools=entries, max_episode_steps=3), CALLS_MADE)
    assert index.asked == ["0", "1"]
    [item] = items(served, done)
    assert item["sample"]["finish_reason"] == "tool_calls"
    assert item["results"][0]["score"] == 3

    def malformed(request: dict[str, Any]) -> Any:
        return turn("Paris" if request["turns"] else called("x", "find") + "<tool_call>{")

    served.link.say = malformed
    done = run(served, source(tools=entries))
    assert done.result_counts.passed == 1
    [item] = items(served, done)
    told = [each["content"] for each in item["sample"]["output"] if each["role"] == "tool"]
    assert "there is no function 'find'" in told[0]
    assert "cannot be read" in told[1]


def test_a_tool_that_fails_is_an_error_of_its_item_and_never_a_score(
    served: Served, entries: list[Any]
) -> None:
    def say(request: dict[str, Any]) -> Any:
        is_broken = request["messages"][-1]["content"] == "break"
        return turn(called("broken")) if is_broken else asks_once(request)

    served.link.say = say
    broken = {**ROW, "messages": [{"role": "user", "content": "break"}]}
    done = run(served, source(ROW, broken, tools=entries))
    assert done.status == "completed"
    assert done.result_counts.to_dict() == {"total": 2, "errored": 1, "failed": 0, "passed": 1}
    [item] = [each for each in items(served, done) if each["sample"]["error"]]
    assert item["sample"]["error"]["code"] == "tool_failed"
    assert "no index" in item["sample"]["error"]["message"]
    assert item["results"] == []


def test_a_server_that_is_not_there_fails_the_run_before_it_asks(served: Served) -> None:
    gone = [{"name": "search", "server_url": "http://127.0.0.1:9/"}]
    done = run(served, source(tools=gone))
    assert done.status == "failed"
    assert done.error.code == "tool_failed"
    assert "the tool search cannot be reached" in done.error.message
    assert not served.link.requests


@pytest.mark.parametrize(
    ("sampling", "param", "why"),
    [
        ({"tools": [{"name": "search"}, {"name": "find", "server_url": "http://127.0.0.1:9/"}]},
         "tools[0]", "has the function 'search'"),
        ({"tools": [{"name": "search", "server_url": "ftp://127.0.0.1/"}]},
         "tools[0].server_url", "http"),
        ({"tools": [{"type": "mcp", "server_label": "shop"}]}, "tools[0].server_url", "operator"),
        ({"tools": [SEARCH, {"name": "find", "server_url": "http://127.0.0.1:9/"}]},
         "tools[0]", "has the function 'search', and the servers of the run are find"),
        ({"max_episode_steps": 3}, "max_episode_steps", "can call no tool of this run"),
        ({"tools": [{"name": "search", "server_url": "http://127.0.0.1:9/"}],
          "max_episode_steps": 0}, "max_episode_steps", "whole number from 1"),
    ],
)  # fmt: skip
def test_tools_that_cannot_run_are_refused(
    served: Served, sampling: dict[str, Any], param: str, why: str
) -> None:
    record = make_eval(served, GRADER)
    with pytest.raises(openai.BadRequestError, match=why) as caught:
        served.client.evals.runs.create(record.id, data_source=source(**sampling))
    assert caught.value.param == f"data_source.sampling_params.{param}"


def test_a_row_with_a_function_that_no_server_has_is_refused(
    served: Served, entries: list[Any]
) -> None:
    row = {**ROW, "tools": [definition("browse", "url")]}
    record = make_eval(served, GRADER)
    with pytest.raises(openai.BadRequestError, match="'browse'") as caught:
        served.client.evals.runs.create(record.id, data_source=source(ROW, row, tools=entries))
    assert caught.value.param == "data_source.source.content[1].item.tools[0]"
    content = "\n".join(map(json.dumps, [ROW, row])).encode()
    file = served.client.files.create(file=("rows.jsonl", content), purpose="evals")
    served.link.say = asks_once
    given = {**source(tools=entries), "source": {"type": "file_id", "id": file.id}}
    done = run(served, given)
    assert done.result_counts.errored == done.result_counts.passed == 1


@pytest.mark.parametrize("dies_at", range(5))
def test_an_interrupted_episode_repeats_no_answer_and_no_call(tmp_path: Path, dies_at: int) -> None:
    """Whichever request or call was under way when the server died."""

    class Killed(BaseException):
        pass

    made: list[str] = []
    sampled: list[int] = []

    def die() -> None:
        if len(made) + len(sampled) == dies_at and not died:
            died.append(True)
            raise Killed

    def search(query: str) -> str:
        die()
        made.append(query)
        return f"found {query}"

    async def ask(request: ChatRequest) -> Any:
        die()
        number = len(request.turns)
        sampled.append(number)
        text = called(f"q{number}") if number < 2 else "done"
        return {"completions": [{**turn(text), "reasoning_tokens": 0}], "prompt_tokens": 5}

    died: list[bool] = []
    row = Row({"messages": ROW["messages"], "tools": [SEARCH]}, 0)
    asked = ChatRequest(MODEL, [], [SEARCH], is_turn=True)
    path = tmp_path / "run.jsonl"

    def attempt() -> Any:
        tools = fake_tools(search=search)
        return asyncio.run(play(tools, row, asked, ask, Diary(path), "trace", 10))

    with pytest.raises(Killed):
        attempt()
    ended = attempt()
    assert sampled == [0, 1, 2]
    assert made == ["q0", "q1"]
    assert ended.completion.text == "done"
    assert [call["text"] for each in ended.completion.turns for call in each.calls] == [
        "found q0", "found q1",
    ]  # fmt: skip
    Diary(path).close()
    assert not path.exists()


def test_an_episode_that_fills_the_context_ends_there() -> None:
    from rftkit.server.inference.worker_process import ChatError

    async def ask(request: ChatRequest) -> Any:
        if request.turns:
            raise ChatError("too long", code="context_length_exceeded")
        return {"completions": [{**turn(called("x")), "reasoning_tokens": 0}], "prompt_tokens": 5}

    tools = fake_tools(search=lambda query: "long")
    row = Row({"messages": ROW["messages"], "tools": [SEARCH]}, 0)
    asked = ChatRequest(MODEL, [], [SEARCH], is_turn=True)
    ended = asyncio.run(play(tools, row, asked, ask, Diary(None), "trace", 10)).completion
    assert (ended.stop_reason, ended.text) == ("length", "")


def test_a_failed_tool_ends_its_episode() -> None:
    async def ask(request: ChatRequest) -> Any:
        return {"completions": [{**turn(called("x")), "reasoning_tokens": 0}], "prompt_tokens": 5}

    row = Row({"messages": ROW["messages"], "tools": [SEARCH]}, 0)
    asked = ChatRequest(MODEL, [], [SEARCH], is_turn=True)
    ended = asyncio.run(play(fake_tools(search=fails), row, asked, ask, Diary(None), "t", 10))
    assert "status 500" in str(ended.completion.failure)


def test_a_real_worker_reads_what_it_sampled(
    platform: openai.OpenAI, index: Index, entries: list[Any]
) -> None:
    """The tiny model under a response format: it calls or answers by chance."""
    query = {"const": {"query": "a"}}
    tool = {"type": "function", "function": {"name": "search", "parameters": query}}
    answer = {"type": "json_schema", "json_schema": {"name": "a", "schema": {
        "type": "object", "properties": {"name": {"enum": ["a", "b"]}}, "required": ["name"],
        "additionalProperties": False}}}  # fmt: skip
    rows = [
        {"messages": [{"role": "user", "content": f"copy: {a}"}], "tools": [tool]} for a in "abcdef"
    ]
    record = platform.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[CALLS_MADE],  # type: ignore[list-item]
    )
    given = source(
        *rows, tools=entries, response_format=answer, seed=1, max_episode_steps=3,
        max_completion_tokens=300,
    )  # fmt: skip
    found = platform.evals.runs.create(record.id, data_source=given)
    deadline = time.monotonic() + 60
    while found.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = platform.evals.runs.retrieve(found.id, eval_id=record.id)
    assert found.status == "completed", found.error
    assert found.result_counts.errored == 0
    assert index.asked
    listed = platform.evals.runs.output_items.list(found.id, eval_id=record.id)
    roles = [[m.role for m in each.sample.output] for each in listed]
    assert ["assistant", "tool"] in [each[:2] for each in roles]
