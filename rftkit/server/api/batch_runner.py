"""The batch runner: answers the requests of a batch as its endpoint does, and makes its files.

Each request goes through the very routes that a client calls, in this process and without a socket,
so that an answer, a refusal and its status are the same. Each result is stored at once; after a
kill the batch resumes with the rest. The worker samples chats of clients first come, first served,
and a batch has at most `AT_ONCE` of them. Requests that a dying worker, a full queue, a locked
database or a full disk turned away are sent again, until the batch expires. `api.batches` checks
what a client asks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI

from rftkit.backoff import backoff_seconds
from rftkit.errors import RftkitError
from rftkit.server.api.batch_lines import Line, mistakes, read_lines
from rftkit.server.inference.backlog import Backlog
from rftkit.server.inference.platform import CRASHES, DEATHS, Platform
from rftkit.server.store import wire
from rftkit.server.store.batches import ENDED
from rftkit.server.store.records import Batch
from rftkit.server.store.store import new_id, now
from rftkit.wholefile import temporary_problem

__all__ = ["BatchRunner"]

log = logging.getLogger("rftkit.server")

AT_ONCE = 16
"""Requests of a batch that are answered at the same time; the worker batches their sampling."""
RETRY_SECONDS = (0.5, 2.0)
"""First and longest pause before a request that was turned away is sent again."""
TURNED_AWAY = frozenset({429, 503})
"""Statuses that say nothing about the request itself."""
POLL_SECONDS = 0.5
"""How often a running batch checks whether it was cancelled and whether its window has passed."""

Json = dict[str, Any]


class BatchRunner(Backlog[Batch]):
    """Works on unfinished batches, one after the other, oldest first."""

    def __init__(self, platform: Platform, routes: FastAPI) -> None:
        """`routes` answers the requests; it has no gate for strangers."""
        super().__init__(platform, "batches", platform.store.unfinished_batches, self._run)
        self._routes = routes

    async def _run(self, batch: Batch) -> None:
        try:
            await _Pass(self._platform, self._routes, batch).run()
        except Exception as error:
            if temporary_problem(error):
                raise  # it is tried again
            known = isinstance(error, RftkitError)
            if not known:
                log.exception("batch %s failed", batch.id)
            code, message = ("invalid_input_file", str(error)) if known else ("server_error", "")
            message = message or f"{type(error).__name__}: {error}"
            errors = [{"code": code, "line": None, "message": message, "param": None}]
            move = partial(self._platform.store.move_batch, batch.id, "failed", errors=errors)
            await asyncio.to_thread(move)


class _Pass:
    """One batch, from its input file to its output files."""

    def __init__(self, platform: Platform, routes: FastAPI, batch: Batch) -> None:
        self._platform, self._routes, self._batch = platform, routes, batch
        self._store = platform.store

    async def run(self) -> None:
        """Validate, answer what is not answered yet, and end the batch."""
        if self._batch.status == "validating" and not await asyncio.to_thread(self._validated):
            return
        ending = await self._answered()
        if ending is not None:
            await asyncio.to_thread(self._end, ending)

    def _validated(self) -> bool:
        path = self._store.whole_file(self._batch.input_file_id)
        found, num, model = mistakes(path, self._batch.endpoint)
        counts = {"total": num, "completed": 0, "failed": 0}
        if not found:
            self._store.move_batch(
                self._batch.id, "in_progress", request_counts=counts, model=model
            )
            return True
        counts["total"] = 0
        self._store.move_batch(self._batch.id, "failed", errors=found, request_counts=counts)
        return False

    async def _answered(self) -> str | None:
        """Answer requests until all are answered, or the batch must end; None if it has ended in
        the meantime.
        """
        done = await asyncio.to_thread(self._store.answered_lines, self._batch.id)
        path = await asyncio.to_thread(self._store.file_path, self._batch.input_file_id)
        lines = (line for line in read_lines(path) if line.number not in done)
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                batch = await asyncio.to_thread(self._store.count_batch, self._batch.id)
                if batch.status in ENDED:
                    return None
                if batch.status == "cancelling" or now() > batch.expires_at:
                    return "cancelled" if batch.status == "cancelling" else "expired"
                fresh = await asyncio.to_thread(_take, lines, AT_ONCE - len(running))
                running |= {asyncio.create_task(self._one(line)) for line in fresh}
                if not running:
                    return "completed"
                ended, running = await asyncio.wait(
                    running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, line: Line) -> None:
        status, body, request_id = await self._asked(line)
        result = {
            "id": new_id("batch_req_"),
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": request_id, "body": body},
            "error": None,
        }
        keep = partial(
            self._store.add_result,
            self._batch.id,
            line.number,
            failed=status >= 400,
            body=result,
        )
        await asyncio.to_thread(keep)

    async def _asked(self, line: Line) -> tuple[int, Json, str]:
        """Send a request until it is answered or refused for itself: status, body, its id."""
        request_id, deaths, attempt = new_id("req_"), 0, 0
        while True:
            status, body = await ask(self._routes, self._batch.endpoint, line.body)
            code = (body.get("error") or {}).get("code") if status >= 400 else None
            deaths += DEATHS.get(code or "", 0)
            if (status not in TURNED_AWAY and code not in DEATHS) or deaths >= CRASHES:
                return status, body, request_id
            await asyncio.sleep(backoff_seconds(attempt, *RETRY_SECONDS, jitter=0.25))
            attempt += 1

    def _end(self, ending: str) -> None:
        """Make the files and end the batch, in one transaction."""
        if ending == "completed":
            self._store.move_batch(self._batch.id, "finalizing")
        elif ending == "expired":
            self._expire()
        store = self._store
        with store.transaction():
            batch = store.count_batch(self._batch.id)
            counts = batch.request_counts
            store.move_batch(
                batch.id,
                "cancelled" if batch.status == "cancelling" else ending,
                output_file_id=self._file("output", failed=False) if counts["completed"] else None,
                error_file_id=self._file("error", failed=True) if counts["failed"] else None,
                usage=_usage(store.results(batch.id, failed=False)),
            )
            store.drop_results(batch.id)

    def _expire(self) -> None:
        """Give every request without an answer the error of the hosted service."""
        done = self._store.answered_lines(self._batch.id)
        message = "This request could not be executed before the completion window expired."
        for line in read_lines(self._store.file_path(self._batch.input_file_id)):
            if line.number not in done:
                body = {
                    "id": new_id("batch_req_"),
                    "custom_id": line.custom_id,
                    "response": None,
                    "error": {"code": "batch_expired", "message": message},
                }
                self._store.add_result(self._batch.id, line.number, failed=True, body=body)

    def _file(self, kind: str, *, failed: bool) -> str:
        batch = self._batch
        life = batch.output_expires_after
        with tempfile.TemporaryFile() as file:
            for result in self._store.results(batch.id, failed=failed):
                file.write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
            file.seek(0)
            return self._store.add_file(
                file,
                f"{batch.id}_{kind}.jsonl",
                "batch_output",
                expires_at=None if life is None else now() + life,
            ).id


def _take(lines: Any, num: int) -> list[Line]:
    found: list[Line] = []
    while len(found) < num and (line := next(lines, None)) is not None:
        found.append(line)
    return found


def _usage(results: Any) -> Json:
    """Tokens of all answers, in the words of batches, whatever the endpoint's own words."""
    total: Counter[str] = Counter()
    for result in results:
        usage = result["response"]["body"].get("usage") or {}
        total["input"] += usage.get("input_tokens", usage.get("prompt_tokens", 0))
        total["output"] += usage.get("output_tokens", usage.get("completion_tokens", 0))
        details = usage.get("output_tokens_details") or usage.get("completion_tokens_details") or {}
        total["reasoning"] += details.get("reasoning_tokens", 0)
    return {
        "input_tokens": total["input"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": total["output"],
        "output_tokens_details": {"reasoning_tokens": total["reasoning"]},
        "total_tokens": total["input"] + total["output"],
    }


async def ask(routes: Callable[..., Any], path: str, body: Json) -> tuple[int, Json]:
    """POST a body to an application in this process; status and body of its answer."""
    content = json.dumps(body).encode()
    sent = False
    status, answer = 500, bytearray()

    async def receive() -> Json:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # an internal client, which never disconnects
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            answer.extend(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": headers, "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
    }  # fmt: skip
    try:
        await routes(scope, receive, send)
        found: Json = json.loads(bytes(answer))
    except Exception as error:
        if temporary_problem(error):
            raise
        log.exception("a request of a batch failed")  # this line fails, the others continue
        return 500, wire.error_body("the platform failed on this request", type="server_error")
    return status, found
