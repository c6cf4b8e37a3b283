"""The server's side of the worker process: start it, restart it, exchange JSON lines with it.

Each line over the worker's stdin and stdout is one request or answer; its stderr goes to a log
file. A worker that dies is restarted after growing pauses, and its unfinished chats fail with an
error. The worker announces work that may hang, such as loading a model folder, with a time limit;
after that limit it is killed and replaced. Jobs are not sent over the pipe: the worker finds them
in the store when it is woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from rftkit.errors import RftkitError

__all__ = [
    "DIED",
    "HUNG",
    "STOPPING",
    "UNAVAILABLE",
    "ChatError",
    "Hung",
    "WorkerClient",
    "WorkerProcess",
]

log = logging.getLogger("rftkit.server")

LINE_BYTES = 1 << 28
"""Longest line that a worker may send, in bytes."""
PAUSES = (0.2, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before the first, second, … restart in a row."""
EOF_SECONDS = 2.0
STOP_SECONDS = 5.0
STOPPING = "the server is stopping; send the request again when it runs"
UNAVAILABLE, DIED, HUNG = "worker_unavailable", "worker_died", "worker_hung"
"""Error codes: there was no worker; the worker of the chat died; it was killed because it hung."""
STABLE_SECONDS = 60.0
"""After a worker has run this long, the pauses start again from the first."""


class ChatError(RftkitError):
    """The worker refused or failed a chat; fields as in the OpenAI error body."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 503,
        type: str = "server_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        """`status` is the HTTP status of the answer."""
        super().__init__(message)
        self.message = message
        self.status = self.status_code = status
        self.type = type
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Hung:
    """Work that a worker announced because it may hang."""

    what: str
    """The work under way, such as `loading NAME`."""
    seconds: float
    """The time limit of the work."""
    job: str | None = None
    """The id of the job that needs it, if any."""

    def __str__(self) -> str:
        return f"{self.what} took longer than {self.seconds:.0f} seconds"


class WorkerClient(Protocol):
    """What the routes need from the worker process."""

    def wake(self) -> None:
        """Make the worker check the store for new jobs. Any thread may call it."""
        ...

    def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield `{"delta": …}` messages and, last, one `{"done": …}`. Raises ChatError."""
        ...

    def end_chats(self, reason: str) -> None:
        """Let every chat under way raise a ChatError with this reason."""
        ...

    async def start(self) -> None:
        """Begin."""
        ...

    async def stop(self) -> None:
        """Stop the worker."""
        ...


class WorkerProcess:
    """A worker that runs as a child process."""

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        on_death: Callable[[int], None] = lambda status: None,
    ) -> None:
        """`on_death` gets the exit status, in a thread, before the restart."""
        self._command = list(command)
        self._log_path = log_path
        self._environment = dict(environment) if environment is not None else None
        self.on_death = on_death
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._announced: Hung | None = None
        self.hung: Hung | None = None
        """The work that hung when the last worker was killed; None if the worker ended for another
        reason."""
        self.died_at: Hung | None = None
        """The announced work that the last worker left unfinished when it died, if any."""
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: str | None = None

    async def start(self) -> None:
        """Start the worker, and restart it whenever it dies."""
        self._loop = asyncio.get_running_loop()
        await self._try_spawn()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close the worker's stdin, which ends it; kill it if it does not end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        await _ended(process, STOP_SECONDS)

    def wake(self) -> None:
        """Make the worker check the store; a dead worker does so when it starts."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._send, {"kind": "wake"})

    def end_chats(self, reason: str) -> None:
        """Let every chat under way raise a ChatError with this reason."""
        for queue in self._waiting.values():
            queue.put_nowait({"error": {"message": reason, "code": UNAVAILABLE}})

    async def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the worker's messages for one chat; leaving early aborts it.

        Raises:
            ChatError: when the worker refuses the request, is not running, or dies.
        """
        number = next(self._numbers)
        queue = self._waiting[number] = asyncio.Queue()
        finished = False
        try:
            if not self._send({"kind": "chat", "id": number, "request": request}):
                raise self._gone()
            while not finished:
                message = await queue.get()
                finished = "delta" not in message
                if "error" in message:
                    raise _chat_error(message["error"])
                yield message
        finally:
            self._waiting.pop(number, None)
            if not finished:
                self._send({"kind": "abort", "id": number})

    def _send(self, message: dict[str, Any]) -> bool:
        """Write a message; return False if there is no worker."""
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None:
            return False
        if process.stdin.is_closing():
            return False
        process.stdin.write(json.dumps(message).encode() + b"\n")
        return True

    def trouble(self) -> str | None:
        """Explain why no worker is running; None if one is."""
        process = self._process
        is_there = process is not None and process.returncode is None
        return None if is_there else self._gone().message

    async def _try_spawn(self) -> bool:
        """Start a worker; return whether it started. Without a log file it runs all the same."""
        try:
            with _log(self._log_path) as log_file:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    limit=LINE_BYTES,
                    env=self._environment,
                )
        except Exception as error:  # no file descriptors, no memory, or no such program
            log.exception("cannot start the model worker")
            self._problem = f"it did not start: {error}"
            return False
        self._problem = None
        return True

    async def _watch(self) -> None:
        """Read answers until the worker dies, then restart it; no error ends this loop."""
        deaths = 0
        while True:
            started, process = time.monotonic(), self._process
            if process is not None and self._problem is None:
                await self._follow(process)
            if time.monotonic() - started > STABLE_SECONDS:
                deaths = 0
            await asyncio.sleep(PAUSES[min(deaths, len(PAUSES) - 1)])
            deaths += 1
            self.hung = None
            await self._try_spawn()

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Pass on a worker's answers until it has ended; then fail the unfinished chats."""
        try:
            await self._read_answers(process)
        except Exception:
            log.exception("cannot read the answers of the model worker; replacing it")
            await _ended(process, 0.0)
        status = await process.wait()
        self.died_at = self._announced
        self._expect(None)
        code = DIED if self.hung is None else HUNG
        for queue in self._waiting.values():
            queue.put_nowait({"error": {"message": self._gone().message, "code": code}})
        try:
            await asyncio.to_thread(self.on_death, status)
        except Exception:  # the database may be locked, or its disk full
            log.exception("cannot record that the model worker died")

    async def _read_answers(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, ConnectionError):  # a line beyond LINE_BYTES
            while line := await process.stdout.readline():
                self._deliver(line)
        await _ended(process, EOF_SECONDS)  # a worker that only closed its stdout is useless

    def _deliver(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if "at" in message:
                self._expect(None if message["at"] is None else Hung(**message["at"]))
                return
            queue = self._waiting.get(message["id"])
        except (ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError), self._log_path.open("ab") as log_file:
                log_file.write(b"not an answer: " + line)
            return
        if queue is not None:
            queue.put_nowait(message)

    def _expect(self, work: Hung | None) -> None:
        """Kill the worker if `work` is not done in time; None means that it is done."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline, self._announced = None, work
        if work is not None and self._loop is not None:
            self._deadline = self._loop.call_later(work.seconds, self._kill, work)

    def _kill(self, work: Hung) -> None:
        self.hung = work
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        log.error("killed the worker: %s", work)
        with contextlib.suppress(OSError), self._log_path.open("ab") as log_file:
            log_file.write(f"killed the worker: {work}\n".encode())

    def _gone(self) -> ChatError:
        if self.hung is not None:
            return ChatError(f"{self.hung}; the model worker was replaced", code=UNAVAILABLE)
        status = self._process.returncode if self._process is not None else None
        why = self._problem or f"exit status {status}"
        return ChatError(
            f"the model worker is not running ({why}); the server keeps trying to start it, so "
            f"try again in a moment. Its last output: {_last_line(self._log_path)}",
            code=UNAVAILABLE,
        )


async def _ended(process: asyncio.subprocess.Process, patience: float) -> None:
    """Wait for a process to end; kill it after `patience` seconds."""
    try:
        await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        process.kill()
        await process.wait()


@contextlib.contextmanager
def _log(path: Path) -> Iterator[IO[bytes] | int]:
    """Open the log file, recreating its folder if needed; else yield the null device."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError:
        yield subprocess.DEVNULL
        return
    with file:
        yield file


def _chat_error(error: dict[str, Any]) -> ChatError:
    return ChatError(
        error["message"],
        status=error.get("status") or 503,
        type=error.get("type") or "server_error",
        param=error.get("param"),
        code=error.get("code"),
    )


def _last_line(path: Path) -> str:
    """Return the last line of a log, or state that there is none, or that it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 2000))
            lines = log.read().decode(errors="replace").strip().splitlines()
    except OSError as error:
        return f"none, {path} cannot be read ({error.strerror})"
    return repr(lines[-1][:300]) if lines else f"none, {path} is empty"
