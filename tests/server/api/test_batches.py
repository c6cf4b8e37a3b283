"""`/batches` through the official client: files in, files out, mistakes by line, kills."""

from __future__ import annotations

import errno
import json
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import FakeLink, Served

from rftkit.errors import PlatformError
from rftkit.server.api import batch_lines, batch_runner, chat
from rftkit.server.api.batch_lines import mistakes
from rftkit.server.inference import backlog
from rftkit.server.inference.worker_process import ChatError
from rftkit.server.store.store import Store

CHATS, RESPONSES = "/v1/chat/completions", "/v1/responses"
ENDED = {"completed", "failed", "expired", "cancelled"}


def line(number: int, url: str = CHATS, **changes: Any) -> dict[str, Any]:
    """A request that asks for nothing unusual."""
    key = "input" if url == RESPONSES else "messages"
    said = f"say {number}"
    content = said if url == RESPONSES else [{"role": "user", "content": said}]
    body = {"model": "rftkit-tiny", key: content, **changes.pop("body", {})}
    return {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": body, **changes}


def upload(client: openai.OpenAI, lines: list[Any], purpose: str = "batch") -> str:
    content = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = client.files.create(file=("in.jsonl", content.encode()), purpose=purpose)  # type: ignore[arg-type]
    return file.id


def create(client: openai.OpenAI, lines: list[Any], endpoint: Any = CHATS, **options: Any) -> Any:
    return client.batches.create(
        input_file_id=upload(client, lines),
        endpoint=endpoint,
        completion_window="24h",
        **options,
    )


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    """The batch when it has ended."""
    for _ in range(2000):
        batch = client.batches.retrieve(batch_id)
        if batch.status in ENDED:
            return batch
        time.sleep(0.01)
    raise AssertionError(f"still {batch.status}")


def results(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def echo(request: dict[str, Any]) -> str:
    return f"said {request['messages'][-1]['content']}"


@pytest.mark.parametrize("endpoint", [CHATS, RESPONSES])
def test_every_request_is_answered_by_its_endpoint(served: Served, endpoint: Any) -> None:
    served.link.say = echo
    batch = create(
        served.client, [line(n, endpoint) for n in range(40)], endpoint, metadata={"a": "b"}
    )
    assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", endpoint)
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = ended(served.client, batch.id)
    assert done.status == "completed"
    assert done.request_counts.to_dict() == {"total": 40, "completed": 40, "failed": 0}
    assert (done.model, done.metadata, done.error_file_id) == ("rftkit-tiny", {"a": "b"}, None)
    assert done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 40 * 3
    found = results(served.client, done.output_file_id)
    assert [each["custom_id"] for each in found] == [f"row-{n}" for n in range(40)]
    for number, each in enumerate(found):
        assert each["id"].startswith("batch_req_")
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        body = each["response"]["body"]
        text = (
            openai.types.responses.Response.model_validate(body).output_text
            if endpoint == RESPONSES
            else openai.types.chat.ChatCompletion.model_validate(body).choices[0].message.content
        )
        assert text == f"said say {number}"
    file = served.client.files.retrieve(done.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_a_refused_request_is_in_the_error_file_as_its_endpoint_says(served: Served) -> None:
    lines = [line(0), line(1, body={"temperature": 9}), line(2, body={"messages": []})]
    done = ended(served.client, create(served.client, lines).id)
    assert done.status == "completed"
    assert done.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}
    found = results(served.client, done.error_file_id)
    assert [each["custom_id"] for each in found] == ["row-1", "row-2"]
    assert found[0]["error"] is None
    assert found[0]["response"]["status_code"] == 400
    assert found[0]["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database is locked"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        PlatformError("the platform is not ready"),
        ChatError("the queue is full", status=429),
        ChatError("the model worker ended the chat without an answer"),
    ],
    ids=str,
)
def test_a_request_that_was_turned_away_is_sent_again(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(batch_runner, "RETRY_SECONDS", (0.01, 0.02))
    served.link.say = echo
    asked, troubles = chat.chat_request, iter(range(7))

    def failing(*given: Any) -> Any:
        if next(troubles, None) is not None:
            raise error
        return asked(*given)

    monkeypatch.setattr(chat, "chat_request", failing)
    done = ended(served.client, create(served.client, [line(n) for n in range(3)]).id)
    assert done.status == "completed"
    assert done.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}


def test_a_batch_of_failures_has_no_output_file(served: Served) -> None:
    batch = create(served.client, [line(0, body={"model": "none"})])
    done = ended(served.client, batch.id)
    assert (done.status, done.output_file_id) == ("completed", None)
    [found] = results(served.client, done.error_file_id)
    assert found["response"]["status_code"] == 404
    assert found["response"]["body"]["error"]["code"] == "model_not_found"


MISTAKES: list[tuple[Any, str, str | None]] = [
    ("{", "invalid_json_line", None),
    ("[1]", "invalid_json_line", None),
    ('{"custom_id": "a", "custom_id": "b"}', "invalid_json_line", None),
    ('{"custom_id": "a", "body": {"temperature": NaN}}', "invalid_json_line", None),
    ({"method": "POST", "url": CHATS, "body": {}}, "missing_required_parameter", "custom_id"),
    (line(9, custom_id=3), "invalid_type", "custom_id"),
    (line(9, method="GET"), "invalid_method", "method"),
    (line(9, url=RESPONSES), "url_mismatch", "url"),
    (line(9, body={"model": "other"}), "model_mismatch", "body.model"),
    (line(9, body={"model": None}), "missing_required_parameter", "body.model"),
    (line(9, body={"stream": True}), "invalid_value", "body.stream"),
    (line(0), "duplicate_custom_id", "custom_id"),
]


@pytest.mark.parametrize(("wrong", "code", "param"), MISTAKES)
def test_a_line_that_is_no_request_fails_the_batch_before_anything_is_answered(
    served: Served, wrong: Any, code: str, param: str | None
) -> None:
    done = ended(served.client, create(served.client, [line(0), wrong, line(2)]).id)
    assert done.status == "failed"
    assert done.failed_at is not None
    [error] = done.errors.data
    assert (error.code, error.line, error.param) == (code, 2, param)
    assert served.link.requests == []


def test_a_file_without_requests_and_one_with_too_many_fail(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "MAX_REQUESTS", 2)
    for lines, code in (
        (["", "  "], "empty_file"),
        ([line(n) for n in range(3)], "too_many_tasks"),
    ):
        done = ended(served.client, create(served.client, lines).id)
        assert [(each.code, each.line) for each in done.errors.data] == [(code, None)]


def test_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line(0)).encode() + b"\n\n\n")
    assert mistakes(path, CHATS) == ([], 1, "rftkit-tiny")


def test_what_is_refused_at_once(served: Served) -> None:
    client, good = served.client, upload(served.client, [line(0)])
    options: dict[str, Any] = {"endpoint": CHATS, "completion_window": "24h"}
    for changes, param in (
        ({"endpoint": "/v1/images/edits"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": served.upload()}, "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}},
         "output_expires_after.seconds"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**{"input_file_id": good, **options, **changes})
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-none", **options)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_batches_are_listed_newest_first(served: Served) -> None:
    ids = [create(served.client, [line(0)]).id for _ in range(3)]
    for each in ids:
        ended(served.client, each)
    assert [each.id for each in served.client.batches.list(limit=2)] == ids[::-1]


def test_a_cancelled_batch_keeps_what_was_answered(served: Served) -> None:
    gate = threading.Event()

    def say(request: dict[str, Any]) -> Any:
        if request["messages"][-1]["content"] == "say 0":
            return "first"
        gate.set()
        return ChatError("no worker", code="worker_unavailable", status=503)

    served.link.say = say
    batch = create(served.client, [line(n) for n in range(3)])
    assert gate.wait(20)
    for _ in range(1000):
        if served.client.batches.retrieve(batch.id).request_counts.completed:
            break
        time.sleep(0.01)
    assert served.client.batches.cancel(batch.id).status == "cancelling"
    with pytest.raises(openai.BadRequestError, match="used by batch_"):
        served.client.files.delete(batch.input_file_id)
    done = ended(served.client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelling_at <= done.cancelled_at
    assert [each["custom_id"] for each in results(served.client, done.output_file_id)] == ["row-0"]
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with status"):
        served.client.batches.cancel(batch.id)
    served.client.files.delete(batch.input_file_id)


def test_a_request_is_sent_again_while_the_worker_is_away(served: Served) -> None:
    answers = iter([ChatError("busy", status=429), "at last"])
    served.link.say = lambda request: next(answers)
    done = ended(served.client, create(served.client, [line(0)]).id)
    [found] = results(served.client, done.output_file_id)
    assert found["response"]["body"]["choices"][0]["message"]["content"] == "at last"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EMFILE])
def test_a_batch_outlives_a_full_disk_and_a_lack_of_file_descriptors(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(backlog, "RETRY_SECONDS", 0.01)
    real, failures = tempfile.TemporaryFile, iter([1, 1])

    def file(*given: Any, **options: Any) -> Any:
        if next(failures, None):
            raise OSError(error, "no room")
        return real(*given, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", file)
    done = ended(served.client, create(served.client, [line(n) for n in range(3)]).id)
    assert next(failures, None) is None
    assert (done.status, done.request_counts.completed) == ("completed", 3)
    assert len(served.link.requests) == 3  # nothing was asked twice


def test_a_request_that_breaks_its_route_costs_no_other(served: Served) -> None:
    def say(request: Any) -> Any:
        if "say 1" in request["messages"][-1]["content"]:
            raise ZeroDivisionError
        return "fine"

    served.link.say = say
    done = ended(served.client, create(served.client, [line(n) for n in range(3)]).id)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == (
        "completed", 2, 1,
    )  # fmt: skip
    [found] = results(served.client, done.error_file_id)
    assert (found["custom_id"], found["response"]["status_code"]) == ("row-1", 500)


def test_an_expired_batch_says_so_of_every_request_without_an_answer(served: Served) -> None:
    served.link.say = lambda request: ChatError("busy", status=429)
    batch = create(served.client, [line(n) for n in range(2)])
    while not served.link.requests:
        time.sleep(0.01)
    served.platform.store._db.execute("UPDATE batches SET expires_at = 1")
    done = ended(served.client, batch.id)
    assert (done.status, done.request_counts.failed) == ("expired", 2)
    for found in results(served.client, done.error_file_id):
        assert (found["response"], found["error"]["code"]) == (None, "batch_expired")


def test_a_batch_resumes_after_a_kill_with_the_rest(tmp_path: Path) -> None:
    """What an earlier server had answered is not asked again."""
    from starlette.testclient import TestClient

    from rftkit.server.http.app import create_app
    from rftkit.server.inference.platform import Platform

    store = Store.open(tmp_path / "rk")
    content = "\n".join(json.dumps(line(n)) for n in range(4)).encode()
    file = store.add_file(content, "in.jsonl", "batch")
    batch = store.add_batch(
        endpoint=CHATS, input_file_id=file.id, completion_window="24h",
        request_counts={"total": 4, "completed": 1, "failed": 0},
    )  # fmt: skip
    store.move_batch(batch.id, "in_progress")
    kept = {"custom_id": "row-1", "response": {"status_code": 200, "body": {}}, "error": None}
    store.add_result(batch.id, 2, failed=False, body=kept)
    link = FakeLink(say=echo)
    platform = Platform(store=store, worker=link, home=tmp_path / "rk")
    with TestClient(create_app(platform), base_url="http://localhost") as http:
        client = openai.OpenAI(base_url="http://localhost/v1", api_key="x", http_client=http)
        done = ended(client, batch.id)
        found = results(client, done.output_file_id)
    store.close()
    assert [each["custom_id"] for each in found] == [f"row-{n}" for n in range(4)]
    assert found[1] == kept
    assert sorted(each["messages"][-1]["content"] for each in link.requests) == [
        "say 0", "say 2", "say 3",
    ]  # fmt: skip
