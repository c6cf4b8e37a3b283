"""Requests that are slow, hang or are made to be slow keep no other request waiting."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, Served, serving
from hanging import hanging

from rftkit.jsontext import parse_json
from rftkit.server import api
from rftkit.server.evals import item_schema
from rftkit.server.http.app import MAX_JSON_BYTES
from rftkit.server.inference.grader_cache import GraderCache

RUN = "/v1/fine_tuning/alpha/graders/run"


def test_hanging_graders_leave_the_other_routes_alone_and_the_queue_has_an_end(
    served: Served,
) -> None:
    with hanging() as (url, called), ThreadPoolExecutor(60) as clients:
        body = {"grader": {"type": "endpoint", "url": url}, "model_sample": "x", "item": {}}
        answers = [clients.submit(served.http.post, RUN, json=body) for _ in range(60)]
        for _ in range(8):
            assert called.acquire(timeout=60)
        while sum(each.done() for each in answers) < 20:  # what exceeds threads and queue
            time.sleep(0.01)
        refused = [each.result() for each in answers if each.done()]
        assert {each.status_code for each in refused} == {429}
        assert "retry-after" in refused[0].headers
        assert "try again" in refused[0].json()["error"]["message"]
        assert served.http.get("/health").json()["status"] == "ok"
        assert served.client.models.list().data
        served.platform.grading.close()  # as when the server stops
        served.platform.grader_cache.close(now=True)
        found = [each.result(timeout=60) for each in answers]
        left = [each for each in found if each not in refused]
        assert {each.status_code for each in left} == {503}
        assert "the server is stopping" in left[0].json()["error"]["message"]
        assert served.http.post(RUN, json=body).status_code == 503


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"model": "m", "messages": [1] * 300_000}, "messages[0]"),
        ("/v1/embeddings", {"model": "m", "input": [-1] * 300_000}, "input"),
        ("/v1/responses", {"model": "m", "input": [1] * 300_000}, "input"),
    ],
)
def test_a_list_is_read_up_to_its_first_error(
    served: Served, path: str, body: dict[str, Any], param: str
) -> None:
    from rftkit.server.inference import body as bodies

    seen: list[int] = []
    original = bodies.refusal

    def counted(errors: Any) -> Any:
        seen.append(len(errors))
        return original(errors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rftkit.server.http.app.refusal", counted)
        answer = served.http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)
    assert seen[0] < 10


def test_an_object_of_a_million_keys_is_refused_as_one(served: Served) -> None:
    body = {"model": "m", "messages": [], **{f"k{number}": 1 for number in range(2_000)}}
    answer = served.http.post("/v1/chat/completions", json=body)
    assert "2,002 keys" in answer.json()["error"]["message"]


def test_a_grading_request_has_a_size_limit_of_its_own(served: Served) -> None:
    body = {"grader": GRADER, "model_sample": "x" * 9_000_000, "item": {}}
    answer = served.http.post(RUN, content=json.dumps(body))
    assert answer.status_code == 413
    assert "8 MB" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, "takes longer than"),
        ({"$ref": "#"}, "refers to itself"),
        ({"$ref": "http://127.0.0.1:9/other"}, "does not exist"),
        ({"properties": {"a": {"pattern": "^b+$"}}}, r"source.content\[0\].item"),
    ],
)
def test_an_item_schema_cannot_keep_the_server_busy(
    served: Served, schema: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "longer" in words:
        monkeypatch.setattr(item_schema, "SLOW_SECONDS", 2)
    made = served.client.evals.create(
        data_source_config={"type": "custom", "item_schema": schema},  # type: ignore[typeddict-item]
        testing_criteria=[{**GRADER, "input": "{{item.a}}"}],  # type: ignore[list-item]
    )
    source = {"type": "file_content", "content": [{"item": {"a": "a" * 40 + "b", "answer": "x"}}]}
    with pytest.raises(openai.BadRequestError, match=words):
        served.client.evals.runs.create(
            made.id,
            data_source={"type": "jsonl", "source": source},  # type: ignore[arg-type]
        )


def test_a_simple_item_schema_is_checked_only_for_so_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_schema, "DIRECT_SECONDS", 0.0)
    made = served.client.evals.create(
        data_source_config={"type": "custom", "item_schema": {"enum": [{"a": "x"}]}},
        testing_criteria=[{**GRADER, "input": "{{item.a}}"}],  # type: ignore[list-item]
    )
    source: Any = {"type": "file_content", "content": [{"item": {"a": "x"}}] * 9}
    with pytest.raises(openai.BadRequestError, match="takes longer than 0 s"):
        served.client.evals.runs.create(made.id, data_source={"type": "jsonl", "source": source})


def test_a_canceled_run_leaves_a_hanging_judge_and_the_queue_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge: Any = {
        "type": "score_model",
        "name": "judge",
        "model": "judge",
        "input": [{"role": "user", "content": "{{item.answer}}"}],
        "pass_threshold": 0.5,
    }
    config: Any = {
        "type": "custom",
        "item_schema": {"type": "object"},
        "include_sample_schema": True,
    }
    rows = [{"item": {"answer": "x"}, "sample": {"output_text": "x"}}] * 20
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    with hanging() as (url, called):
        monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", f"{url}/v1")
        with serving() as served:
            evals = served.client.evals
            asked = evals.create(data_source_config=config, testing_criteria=[judge])
            plain = evals.create(data_source_config=config, testing_criteria=[GRADER])  # type: ignore[list-item]
            first = evals.runs.create(asked.id, data_source=source)
            second = evals.runs.create(plain.id, data_source=source)
            assert called.acquire(timeout=60)
            evals.runs.cancel(first.id, eval_id=asked.id)
            while (last := evals.runs.retrieve(second.id, eval_id=plain.id)).status != "completed":
                assert last.status in ("queued", "in_progress"), last.error
                time.sleep(0.05)
            assert evals.runs.retrieve(first.id, eval_id=asked.id).status == "canceled"


def test_a_large_body_is_parsed_beside_the_other_requests(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []

    def pause(found: dict[str, Any]) -> dict[str, Any]:
        places.append(threading.current_thread().name)
        return found

    monkeypatch.setattr(api, "_pause", pause)
    messages = [
        {"role": "user", "content": "x" * api.LARGE_BYTES},
        {"role": "user", "content": "y"},
    ]
    body = {"model": "rftkit-tiny", "messages": messages}
    path = "/v1/chat/completions"
    assert served.http.post(path, json=body).status_code == 200
    assert served.link.requests[0]["messages"] == messages
    assert len(places) == 3  # one for each object, in a thread of the pool
    assert all(name.startswith("asyncio") for name in places)
    azure = "/openai/deployments/rftkit-tiny/chat/completions"
    assert served.http.post(azure, json={"messages": messages}).json()["model"] == "rftkit-tiny"
    broken = json.dumps(body).encode()[:-1]
    assert served.http.post(path, content=broken).status_code == 400
    deep = b'{"model": ' + b"[" * api.LARGE_BYTES + b"}"
    assert served.http.post(path, content=deep).status_code == 400


def test_a_body_of_one_text_is_parsed_beside_the_other_requests_and_has_a_limit(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser reads one text without a pause, so its length has to have an end."""
    in_threads: list[Any] = []
    to_thread = asyncio.to_thread

    async def noted(work: Any, *args: Any, **options: Any) -> Any:
        in_threads.append(work)
        return await to_thread(work, *args, **options)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    path = "/v1/chat/completions"
    text = json.dumps("x" * api.LARGE_BYTES)
    assert served.http.post(path, content=text).status_code == 400
    assert parse_json in in_threads
    for each in (path, "/v1/responses", "/v1/evals", "/v1/fine_tuning/jobs", "/v1/embeddings"):
        answer = served.http.post(each, content=b'"' + b"x" * MAX_JSON_BYTES + b'"')
        assert answer.status_code == 413
        assert "larger than 16 MB; put rows into a file" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.OperationalError("database is locked"), "another program has locked it"),
        (sqlite3.OperationalError("database or disk is full"), "is the disk full"),
        (sqlite3.DatabaseError("database disk image is malformed"), "restore platform.sqlite"),
    ],
)
def test_why_the_database_cannot_be_used_is_told_apart(
    served: Served, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(served.platform.store, "jobs", broken)
    answer = served.http.get("/v1/fine_tuning/jobs")
    assert answer.status_code == 503
    assert words in answer.json()["error"]["message"]


def test_health_tells_of_a_full_disk(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.platform.home = tmp_path
    assert served.http.get("/health").json()["status"] == "ok"
    monkeypatch.setattr("rftkit.server.http.app.has_no_room", lambda home: True)
    health = served.http.get("/health").json()
    assert health["status"] == "degraded"
    assert "disk of the home folder is full" in health["problems"][0]


@pytest.mark.parametrize("where", ["keep_answer", "add_response"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["chat", "responses"])
def test_an_answer_that_cannot_be_stored_says_so(
    served: Served, route: str, stream: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may fill while an answer is made: a stream that has begun must not just break."""

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(served.platform.store, where, full)
    options: Any = {"stream": stream, "extra_headers": {"Idempotency-Key": "mine"}}
    words = r"could not be stored\. The disk is full"
    if route == "responses":
        ask = partial(served.client.responses.create, model="rftkit-tiny", input="hi", **options)
    else:
        messages: Any = [{"role": "user", "content": "hi"}]
        ask = partial(
            served.client.chat.completions.create, model="rftkit-tiny", messages=messages,
            store=True, **options,
        )  # fmt: skip
    if stream and route == "responses":
        [*_, last] = ask()
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert re.search(words, last.response.error.message)
        return
    with pytest.raises(openai.APIError, match=words):
        list(ask())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), r"\(TMPDIR\) is full"),
        (OSError(24, "Too many open files"), "too many open files; raise the limit"),
    ],
)
def test_an_upload_that_cannot_be_stored_says_so(
    served: Served, error: OSError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of a form are stored before any route is called: it is no fault of the body."""

    async def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    with pytest.raises(openai.InternalServerError, match=words) as caught:
        served.upload()
    assert caught.value.status_code == 503
    assert caught.value.code == "platform_unavailable"


def test_graders_that_are_kept_have_few_processes() -> None:
    """Four multi graders of 32 python graders each would keep 128 processes, and 2 GB."""

    def multi(name: str, size: int) -> dict[str, Any]:
        python = {"type": "python", "source": "def grade(sample, item):\n    return 1.0\n"}
        parts = {f"{name}{number}": python for number in range(size)}
        return {"type": "multi", "graders": parts, "calculate_output": "+".join(parts)}

    cache = GraderCache()
    for name, size, kept in (("a", 3, 3), ("b", 3, 6), ("c", 32, 32), ("d", 5, 5), ("e", 3, 8)):
        first = cache.get(multi(name, size))
        assert cache.get(multi(name, size)) is first
        assert cache.num_processes == kept
    for name in "fghij":
        cache.get({**GRADER, "name": name})
    assert len(cache) == 4
    cache.close()
