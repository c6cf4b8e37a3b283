"""Model answers to requests with an `Idempotency-Key`: whole, as streams, failed, at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from conftest import ROW, Served
from eval_calls import content, make_eval

from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store.answers import KEY_SECONDS

MODEL: Any = "rftkit-tiny"
KEY = {"Idempotency-Key": "mine"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
Ask = Callable[..., Any]


def chat(client: openai.OpenAI, text: str = "hi", key: Any = KEY, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model=MODEL, messages=messages, extra_headers=key, **options
    )


def respond(client: openai.OpenAI, text: str = "hi", key: Any = KEY, **options: Any) -> Any:
    return client.responses.create(model=MODEL, input=text, extra_headers=key, **options)


@pytest.mark.parametrize("ask", [chat, respond])
def test_the_same_request_gets_the_same_answer(served: Served, ask: Ask) -> None:
    first = ask(served.client)
    assert ask(served.client).to_dict() == first.to_dict()
    assert len(served.link.requests) == 1
    assert ask(served.client, key={"Idempotency-Key": "other"}).id != first.id
    assert ask(served.client, key={}).id != first.id
    with pytest.raises(openai.BadRequestError, match="'mine' was used for another") as caught:
        ask(served.client, "ho")
    assert caught.value.code == "idempotency_key_in_use"


def test_a_blank_key_names_no_request(served: Served) -> None:
    for blank in ("", " "):
        key = {"Idempotency-Key": blank}
        assert chat(served.client, "hi", key).id != chat(served.client, "ho", key).id
        create: Any = served.client.files.create
        files = [
            create(file=("f.jsonl", content), purpose="evals", extra_headers=key)
            for content in (b'{"a": 1}\n', b'{"a": 2}\n')
        ]
        assert files[0].id != files[1].id


def test_each_route_has_keys_of_its_own(served: Served) -> None:
    assert chat(served.client).object == "chat.completion"
    assert respond(served.client).object == "response"


def test_azure_clients_send_keys_too(served: Served) -> None:
    azure = openai.AzureOpenAI(
        azure_endpoint="http://localhost", azure_deployment="rftkit-tiny", api_version="1",
        api_key="local", http_client=served.http, max_retries=0,
    )  # fmt: skip
    assert chat(azure).id == chat(azure).id
    assert respond(azure).id == respond(azure).id


@pytest.mark.parametrize("said", ["one", {"text": "", "tool_calls": [CALL]}])
def test_a_streamed_chat_is_streamed_again(served: Served, said: Any) -> None:
    served.link.say = lambda request: said

    def streamed() -> Any:
        chunks = list(chat(served.client, n=2, stream=True, stream_options={"include_usage": True}))
        deltas = [choice for chunk in chunks for choice in chunk.choices]
        text = ["".join(d.delta.content or "" for d in deltas if d.index == n) for n in (0, 1)]
        calls = [call.to_dict() for d in deltas for call in d.delta.tool_calls or []]
        ends = [d.finish_reason for d in deltas if d.finish_reason]
        return {chunk.id for chunk in chunks}, text, calls, ends, chunks[-1].usage

    first = streamed()
    assert streamed() == first
    assert len(served.link.requests) == 1


def test_a_streamed_response_is_streamed_again(served: Served) -> None:
    first = list(respond(served.client, stream=True))[-1].response
    again = list(respond(served.client, stream=True))
    assert again[-1].response.to_dict() == first.to_dict()
    deltas = [event.delta for event in again if event.type == "response.output_text.delta"]
    assert "".join(deltas) == first.output_text
    assert len(served.link.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [chat, respond])
def test_a_failure_is_not_kept(served: Served, ask: Ask, stream: bool) -> None:
    served.link.say = lambda request: ChatError("not now", status=503)
    for _ in range(2):
        with pytest.raises(openai.APIStatusError, match="not now"):
            ask(served.client, stream=stream)
    served.link.say = lambda request: "hello"
    assert list(ask(served.client, stream=stream))
    assert not served.platform.answering._under_way


@pytest.mark.parametrize("ask", [chat, respond])
def test_a_request_waits_for_the_same_one_under_way(served: Served, ask: Ask) -> None:
    ends, asked = threading.Event(), []

    async def slow(request: Any) -> Any:
        asked.append(request)
        await asyncio.to_thread(ends.wait, 30)
        done = {"index": 0, "text": "hello", "stop_reason": "stop", "tokens": 1}
        yield {"done": {"prompt_tokens": 1, "completions": [done]}}

    served.link.chat = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, served.client) for _ in range(2)]
        while not asked:
            time.sleep(0.01)
        with pytest.raises(openai.BadRequestError, match="used for another"):
            ask(served.client, "ho")
        ends.set()
        first, second = (answer.result(30) for answer in answers)
    assert first.id == second.id
    assert len(asked) == 1


def test_a_key_is_forgotten_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from rftkit.server.store import answers

    first = chat(served.client)
    later = answers.now() + KEY_SECONDS + 1
    monkeypatch.setattr(answers, "now", lambda: later)
    assert chat(served.client).id != first.id


CREATES: dict[str, Callable[[Served, Any], Any]] = {
    "files": lambda s, key: s.client.files.create(
        file=("f.jsonl", b'{"a": 1}\n'), purpose="evals", extra_headers=key
    ),
    "jobs": lambda s, key: s.create_job(extra_headers=key, **s.files),  # type: ignore[attr-defined]
    "evals": lambda s, key: make_eval(s, extra_headers=key),
    "runs": lambda s, key: s.client.evals.runs.create(
        s.eval.id, data_source={"type": "jsonl", "source": content("a", sample="a")},  # type: ignore[attr-defined, arg-type]
        extra_headers=key,
    ),
    "batches": lambda s, key: s.client.batches.create(
        input_file_id=s.file, endpoint="/v1/chat/completions", completion_window="24h",  # type: ignore[attr-defined]
        extra_headers=key,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CREATES)
def test_creates_with_one_key_at_the_same_time_make_one(served: Served, what: str) -> None:
    made: Any = served
    made.eval = make_eval(served)
    purpose = "batch" if what == "batches" else "fine-tune"
    made.file = served.client.files.create(file=("b.jsonl", ROW), purpose=purpose).id  # type: ignore[arg-type]
    made.files = {"training_file": made.file, "validation_file": made.file}
    start = threading.Barrier(8)

    def create(_: int) -> str:
        start.wait(30)
        return str(CREATES[what](made, KEY).id)

    before = {each.id for each in served.client.files.list()}
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 1
    if what == "files":
        assert len({each.id for each in served.client.files.list()} - before) == 1


def test_a_file_that_is_refused_for_its_key_is_not_kept(served: Served) -> None:
    create: Any = served.client.files.create
    first = create(file=("f.jsonl", b'{"a": 1}\n'), purpose="evals", extra_headers=KEY)
    with pytest.raises(openai.BadRequestError, match="used for another"):
        create(file=("f.jsonl", b'{"a": 2}\n'), purpose="evals", extra_headers=KEY)
    assert [each.id for each in served.client.files.list()] == [first.id]
