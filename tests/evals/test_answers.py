"""Asking, grading and adding up; a request that fails is never a zero."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import openai
import pytest
from conftest import GRADER, Served
from typer.testing import CliRunner

from rftkit import Sample, compile_grader, datasets, evals, tools
from rftkit.cli import app as cli
from rftkit.errors import InputError
from rftkit.graders import Grade
from rftkit.rows import Row
from rftkit.server.inference.worker_process import ChatError
from rftkit.views import answers as answers_view

ROWS = [
    Row({"messages": [{"role": "user", "content": f"say {word}"}], "answer": word}, line)
    for line, word in enumerate(("hi", "ho", "broken"), start=1)
]


ASKED = [datasets.NumberedRow(place, each.line, b"", each, None) for place, each in enumerate(ROWS)]


@pytest.fixture
def answers(served: Served) -> list[evals.Answer]:
    def say(request: dict[str, Any]) -> Any:
        word = request["messages"][-1]["content"].removeprefix("say ")
        return ChatError("no such thing", status=400) if word == "broken" else word

    served.link.say = say
    return evals.ask(served.client, "rftkit-tiny", ROWS, temperature=0)


def test_answers_come_in_order_and_failures_are_kept(answers: list[evals.Answer]) -> None:
    assert [answer.text for answer in answers] == ["hi", "ho", ""]
    assert [answer.error is None for answer in answers] == [True, True, False]
    assert "no such thing" in str(answers[2].error)


def test_a_failed_request_is_a_failed_grade(answers: list[evals.Answer]) -> None:
    with compile_grader(GRADER) as grader:
        grades = evals.grade(grader, answers, ROWS)
    assert [grade.reward for grade in grades] == [1.0, 1.0, None]
    assert grades[2].outcome == "failed"
    assert evals.score(grades) == {"reward": 1.0, "unscorable": 0, "failed": 1}
    record = evals.side_by_side(ROWS, {"base": answers}, {"base": grades})
    assert record[1]["answers"]["base"]["text"] == "ho"
    assert "no such thing" in answers_view({"dataset": "d", "rows": record})


def test_the_token_limit_makes_an_answer_unscorable(served: Served) -> None:
    served.link.say = lambda request: {"text": "hi", "stop_reason": "length"}
    [answer] = evals.ask(served.client, "rftkit-tiny", ROWS[:1])
    assert answer.truncated
    with compile_grader(GRADER) as grader:
        assert evals.grade(grader, [answer], ROWS[:1])[0].outcome == "unscorable"


def test_evals_grade_what_there_is_of_a_cut_answer_and_count_it(served: Served) -> None:
    served.link.say = lambda request: {"text": "hi", "stop_reason": "length"}
    answers = evals.ask(served.client, "rftkit-tiny", ROWS[:1])
    with compile_grader(GRADER, purpose="eval") as grader:
        grades = evals.grade(grader, answers, ROWS[:1])
    assert evals.score(grades, answers) == {
        "reward": 1.0, "unscorable": 0, "failed": 0, "truncated": 1,
    }  # fmt: skip
    record = evals.side_by_side(ROWS[:1], {"base": answers}, {"base": grades})
    assert "cut off at the token limit" in answers_view({"dataset": "d", "rows": record})


def test_a_lost_connection_is_an_answer_that_never_came() -> None:
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0)
    [answer] = evals.ask(client, "m", ROWS[:1])
    assert answer.sample is None
    assert answer.error


INTERRUPTED = {
    "ask": lambda client, stop: evals.ask(client, "m", ROWS, on_answer=stop),
    "preview": lambda client, stop: datasets.preview(
        client, "m", ASKED, grader=GRADER, completions=2, progress=stop
    ),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_waits_for_no_answer_under_way(name: str) -> None:
    over, waited = threading.Event(), list[bool]()
    before = set(threading.enumerate())

    def handle(request: httpx.Request) -> httpx.Response:
        if b"say hi" not in request.content:
            waited.append(over.wait(20))
        return httpx.Response(500, json={"error": {"message": "no"}})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    http = httpx.Client(transport=httpx.MockTransport(handle))
    client = openai.OpenAI(base_url="http://x/v1", api_key="x", max_retries=0, http_client=http)
    try:
        with pytest.raises(KeyboardInterrupt):
            INTERRUPTED[name](client, interrupt)
        assert not waited  # the others have not come
        left = set(threading.enumerate()) - before
        assert all(each.daemon for each in left), "a command would wait for them when it ends"
    finally:
        over.set()


def test_the_command_limits_answers_and_says_how_many_came(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = list[Any]()

    def say(request: dict[str, Any]) -> str:
        limits.append(request["max_tokens"])
        return "a"

    served.link.say = say
    monkeypatch.setattr("rftkit.client.connect", lambda *_: served.client)
    arguments = ["eval", "run", "tiny_copy", "-m", "rftkit-tiny", "--max-tokens", "3"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exception is None, done.output
    assert set(limits) == {3}


def test_scores_count_unscorable_and_leave_out_failed() -> None:
    grades = [
        Grade(0.8, "graded", {"a": 1.0, "b": 0.6}),
        Grade(0.0, "unscorable", {"a": None, "b": None}),
        Grade(None, "failed", {"a": 1.0, "b": None}),
    ]
    expected = {"reward": 0.4, "a": 2 / 3, "b": 0.3, "unscorable": 1, "failed": 1}
    assert evals.score(grades) == pytest.approx(expected), "the part that worked has its number"
    alone = {"reward": None, "a": 1.0, "b": None, "unscorable": 0, "failed": 1}
    assert evals.score(grades[2:]) == alone
    assert evals.score([])["reward"] is None


def test_the_best_constant_answer() -> None:
    rows = [Row({"messages": [], "answer": word}, 1) for word in ("a", "b", "b", "c")]
    with compile_grader(GRADER) as grader:
        assert evals.best_constant(grader, rows, ["a", "b", "c"]) == "b"
        assert evals.best_constant(grader, rows, []) is None
        sample = Sample.from_text("b")
        assert grader.grade(sample, rows[0].item).reward == 0.0


SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


def test_calls_are_made_where_a_run_has_tools(served: Served) -> None:
    """The model reads the results and goes on; the grader sees the last answer and every call."""
    asked: list[str] = []

    def search(query: str) -> str:
        """Search."""
        asked.append(query)
        if query == "broken":
            raise RuntimeError("no index")
        return f"found {query}"

    def say(request: dict[str, Any]) -> Any:
        last = request["messages"][-1]
        if last["role"] == "tool":
            return last["content"]
        queries = ["broken"] if last["content"] == "break" else ["a", "b"]
        calls = [
            {"id": f"call_{query}", "type": "function", "function": {
                "name": "search", "arguments": json.dumps({"query": query})}}
            for query in queries
        ]  # fmt: skip
        return {"text": "", "tool_calls": calls}

    served.link.say = say
    rows = [
        Row({"messages": [{"role": "user", "content": text}], "tools": [SEARCH]}, n)
        for n, text in enumerate(("look", "break"), start=1)
    ]
    grader = {
        "type": "python", "name": "calls",
        "source": "def grade(sample, item):\n    return float(len(sample['output_tools']))\n",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, tools.serve([search]) as server:
        patch.setattr("rftkit.graders.posting.FIRST_PAUSE_SECONDS", 0.0)
        made = evals.run(
            served.client, "rftkit-tiny", rows, grader, tools=server.entries, keep_run=False
        )
    assert sorted(set(asked)) == ["a", "b", "broken"]
    frame = made.frame.sort_values("row")
    assert list(frame["outcome"]) == ["graded", "failed"]
    assert frame["reward"].iloc[0] == 2
    with pytest.raises(InputError, match="cannot be reached"):
        evals.run(served.client, "rftkit-tiny", rows, grader,
                  tools=[{"name": "search", "server_url": "http://127.0.0.1:9/"}])  # fmt: skip
