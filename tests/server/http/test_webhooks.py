"""Webhooks: signed as the SDK checks it, sent until they arrive; and what is not supported."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import openai
import pytest
from conftest import FakeLink, Served
from hanging import hanging
from starlette.testclient import TestClient

from rftkit.graders.calls import Calls
from rftkit.server.http import webhooks
from rftkit.server.http.app import create_app
from rftkit.server.http.webhooks import signed_headers
from rftkit.server.inference import backlog
from rftkit.server.inference.platform import Platform
from rftkit.server.store.records import Delivery, Job
from rftkit.server.store.store import Store, new_id, now

SECRET = "whsec_c2VjcmV0IG9mIG1pbmU="


class Endpoint:
    """A receiver that refuses the first `refusals` deliveries."""

    def __init__(self, refusals: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        endpoint = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                endpoint.got.append((dict(self.headers), body))
                self.send_response(500 if len(endpoint.got) <= refusals else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.got) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    endpoint = Endpoint(refusals=1)
    monkeypatch.setenv("RFTKIT_WEBHOOK_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", SECRET)
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(webhooks, "LONGEST_PAUSE_SECONDS", 0)
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_ends_are_told_until_they_arrive_and_then_no_more(endpoint: Endpoint) -> None:
    store = Store.open(None)
    job = store.add_job(
        Job(
            id=new_id("ftjob-"), created_at=now(), model="m", seed=1, training_file="f",
            validation_file="f", method={},
        )
    )  # fmt: skip
    store.update_job(job.id, status="running")
    store.update_job(job.id, status="succeeded")
    store.update_job(job.id, status="failed")
    with TestClient(create_app(Platform(store=store, worker=FakeLink()))):
        endpoint.wait_for(2)
        while store.due_deliveries():
            time.sleep(0.01)
    assert len(endpoint.got) == 2
    client = openai.OpenAI(api_key="x")
    first, second = (
        client.webhooks.unwrap(body.decode(), headers, secret=SECRET)
        for headers, body in endpoint.got
    )
    assert first == second  # one event, delivered again after a refusal
    assert first.type == "fine_tuning.job.succeeded"
    assert first.data.id == job.id
    store.close()


def test_an_endpoint_that_hangs_does_not_keep_the_server_from_ending(
    served_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging() as (url, called):
        monkeypatch.setenv("RFTKIT_WEBHOOK_URL", f"{url}/hook")
        job = served_store.add_job(
            Job(
                id=new_id("ftjob-"), created_at=now(), model="m", seed=1, training_file="f",
                validation_file="f", method={},
            )
        )  # fmt: skip
        served_store.cancel_job(job.id)

        async def until_called() -> None:
            task = asyncio.create_task(webhooks.deliver_events(served_store))
            assert await asyncio.to_thread(called.acquire, timeout=30)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(until_called())  # waits for the threads of its loop
        assert called.acquire(blocking=False) is False
    assert len(served_store.due_deliveries()) == 1  # the next server sends it


@pytest.fixture
def served_store() -> Iterator[Store]:
    store = Store.open(None)
    yield store
    store.close()


@pytest.mark.parametrize("trouble", ["locked", "babble", "secret"])
def test_no_error_ends_the_delivery_of_events(
    endpoint: Endpoint, served: Served, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(backlog, "RETRY_SECONDS", 0.01)
    store = served.platform.store
    store.cancel_job(served.create_job().id)
    troubles = iter([1, 1])

    def failing(real: Any, error: Exception) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            if next(troubles, None):
                raise error
            return real(*given, **options)

        return call

    if trouble == "locked":
        error: Exception = sqlite3.OperationalError("database is locked")
        monkeypatch.setattr(store, "update_delivery", failing(store.update_delivery, error))
    elif trouble == "babble":
        error = RuntimeError("220 is no status line")
        monkeypatch.setattr(webhooks, "post", failing(webhooks.post, error))
    else:
        monkeypatch.setattr(webhooks, "signed_headers", failing(signed_headers, ValueError("pad")))

    async def deliver() -> None:
        task = asyncio.create_task(webhooks.deliver_events(store))
        while store._find(Delivery, "due_at IS NOT NULL"):
            assert not task.done()
            await asyncio.sleep(0.02)
        task.cancel()

    asyncio.run(asyncio.wait_for(deliver(), 60))
    assert next(troubles, None) is None
    assert endpoint.got


def test_the_end_of_a_run_is_news(served: Served) -> None:
    store = served.platform.store
    record = store.add_eval([], {"type": "custom"})
    run = store.add_run(record.id, {}, status="in_progress")
    store.update_run(run.id, status="completed")
    store.update_run(run.id, status="failed")
    assert [(d.type, d.object_id) for d in store.due_deliveries()] == [
        ("eval.run.succeeded", run.id)
    ]


def test_an_undeliverable_event_waits_longer_and_longer(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setenv("RFTKIT_WEBHOOK_URL", "http://127.0.0.1:9/none")
    store = served.platform.store
    store.cancel_job(served.create_job().id)
    [delivery] = store.due_deliveries()
    for attempt, pause in ((1, 2), (2, 4), (3, 8)):
        webhooks._deliver(store, delivery, Calls())
        delivery = store.update_delivery(delivery.id)
        assert delivery.attempts == attempt
        assert delivery.due_at is not None
        assert 0 <= now() + pause - delivery.due_at <= 1
    store.update_delivery(delivery.id, attempts=webhooks.ATTEMPTS - 1)
    webhooks._deliver(store, store.update_delivery(delivery.id), Calls())
    assert store.update_delivery(delivery.id).due_at is None


UNSUPPORTED: Any = [
    lambda c: c.moderations.create(input="x"),
    lambda c: c.completions.create(model="x", prompt="y"),
]


@pytest.mark.parametrize("call", UNSUPPORTED)
def test_what_is_not_supported_says_so(app_client: openai.OpenAI, call: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="is not supported by the local platform"):
        call(app_client)


@contextmanager
def answering(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that does this with each connection, once it has the request."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                say(connection)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    listener.close()


def delivered(store: Store) -> Delivery:
    """The one event after an attempt to deliver it."""
    [delivery] = store.due_deliveries()
    webhooks._deliver(store, delivery, Calls())
    return store.update_delivery(delivery.id)


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_an_endpoint_that_trickles_is_hung_up_on(
    start: bytes, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte every moment keeps a read alive for hours, and each attempt would keep a thread."""
    hung_up = threading.Event()

    def trickle(connection: socket.socket) -> None:
        try:
            connection.sendall(start)
            while True:
                connection.sendall(b"x")
                time.sleep(0.02)
        except OSError:
            hung_up.set()

    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 0.3)
    store = served.platform.store
    store.cancel_job(served.create_job().id)
    with answering(trickle) as url:
        monkeypatch.setenv("RFTKIT_WEBHOOK_URL", url)
        delivery = delivered(store)
        assert hung_up.wait(30)
    assert (delivery.attempts, delivery.due_at is not None) == (1, True)


def test_a_redirect_is_no_delivery(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever follows one asks for the new place without the event."""
    asked = []

    def redirect(connection: socket.socket) -> None:
        asked.append(1)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")

    store = served.platform.store
    store.cancel_job(served.create_job().id)
    with answering(redirect) as url:
        monkeypatch.setenv("RFTKIT_WEBHOOK_URL", url)
        delivery = delivered(store)
    assert delivery.due_at is not None
    assert len(asked) == 1
    assert "HTTP 302: redirects are not followed; set the final RFTKIT_WEBHOOK_URL" in caplog.text


def test_an_endpoint_may_ask_to_wait(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 300\r\nContent-Length: 0\r\n\r\n"
    store = served.platform.store
    store.cancel_job(served.create_job().id)
    with answering(lambda connection: connection.sendall(answer)) as url:
        monkeypatch.setenv("RFTKIT_WEBHOOK_URL", url)
        delivery = delivered(store)
    assert delivery.due_at is not None
    assert 295 <= delivery.due_at - now() <= 300
