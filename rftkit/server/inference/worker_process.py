"""The line to the worker process: start it, keep it alive, speak JSON lines with it.

One request or answer a line over the worker's stdin and stdout; its stderr goes to a log file. A
worker that dies is started again with growing pauses, and whoever waited for it is told. What may
hang, such as loading a model folder, it announces with a time limit; when that is over it is killed
and replaced. Not here: what a chat request means, and jobs, which the worker finds in the store
when it is woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rftkit.errors import RftkitError

__all__ = ["ChatError", "Hung", "Link", "WorkerLink"]

LINE_BYTES = 1 << 28
"""Longest line a worker may send."""
PAUSES = (0.2, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before each restart in a row."""
EOF_SECONDS = 2.0
STOP_SECONDS = 5.0
STABLE_SECONDS = 60.0
"""A worker that lived this long starts the pauses anew."""


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
        """`status` is the HTTP status to answer with."""
        super().__init__(message)
        self.message = message
        self.status = self.status_code = status
        self.type = type
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Hung:
    """Work that a worker announced because it may take for ever."""

    what: str
    """As `loading NAME`."""
    seconds: float
    """How long it may take."""
    job: str | None = None
    """The job that it is done for."""

    def __str__(self) -> str:
        return f"{self.what} took longer than {self.seconds:.0f} seconds"


class Link(Protocol):
    """What the routes need of a worker."""

    def wake(self) -> None:
        """Tell it that the store holds news. May be called from any thread."""
        ...

    def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield `{"delta": …}` messages and, last, one `{"done": …}`. Raises ChatError."""
        ...

    async def start(self) -> None:
        """Begin."""
        ...

    async def stop(self) -> None:
        """End, the worker too."""
        ...


class WorkerLink:
    """A `Link` to a worker process of our own."""

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        on_death: Callable[[int], None] = lambda status: None,
    ) -> None:
        """`on_death` gets the exit status, in a thread, before the next start."""
        self._command = list(command)
        self._log_path = log_path
        self._environment = dict(environment) if environment is not None else None
        self.on_death = on_death
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self.hung: Hung | None = None
        """What the last worker was killed over; None when it died of something else."""
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Start the worker and watch over it."""
        self._loop = asyncio.get_running_loop()
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        await self._spawn()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close the worker's stdin, which ends it; kill it when it does not end."""
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
        """Tell the worker to look into the store. A dead one will look when it starts."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._send, {"kind": "wake"})

    async def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the worker's messages for one chat; leaving early aborts it.

        Raises:
            ChatError: when the worker refuses the request, is not there, or dies over it.
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
        """Whether there was a worker to write to."""
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None:
            return False
        if process.stdin.is_closing():
            return False
        process.stdin.write(json.dumps(message).encode() + b"\n")
        return True

    async def _spawn(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                limit=LINE_BYTES,
                env=self._environment,
            )

    async def _watch(self) -> None:
        """Read answers until the worker dies; then start it again, for ever."""
        deaths = 0
        while True:
            assert self._process is not None
            started = time.monotonic()
            await self._read_answers(self._process)
            status = await self._process.wait()
            self._expect(None)
            for queue in self._waiting.values():
                queue.put_nowait({"error": {"message": self._gone().message}})
            if time.monotonic() - started > STABLE_SECONDS:
                deaths = 0
            await asyncio.to_thread(self.on_death, status)
            await asyncio.sleep(PAUSES[min(deaths, len(PAUSES) - 1)])
            deaths += 1
            self.hung = None
            await self._spawn()

    async def _read_answers(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, ConnectionError):  # a line beyond LINE_BYTES
            while line := await process.stdout.readline():
                self._deliver(line)
        await _ended(process, EOF_SECONDS)  # one that only closed its stdout is of no use

    def _deliver(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if "at" in message:
                self._expect(None if message["at"] is None else Hung(**message["at"]))
                return
            queue = self._waiting.get(message["id"])
        except (ValueError, KeyError, TypeError):
            with self._log_path.open("ab") as log:
                log.write(b"not an answer: " + line)
            return
        if queue is not None:
            queue.put_nowait(message)

    def _expect(self, work: Hung | None) -> None:
        """Kill the worker when `work` is not done in time; None: it is done."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if work is not None and self._loop is not None:
            self._deadline = self._loop.call_later(work.seconds, self._kill, work)

    def _kill(self, work: Hung) -> None:
        self.hung = work
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        with contextlib.suppress(OSError), self._log_path.open("ab") as log:
            log.write(f"the worker is killed: {work}\n".encode())

    def _gone(self) -> ChatError:
        if self.hung is not None:
            return ChatError(f"{self.hung}; the model worker was replaced", code="worker_hung")
        status = self._process.returncode if self._process is not None else None
        return ChatError(
            f"the model worker is not running (exit status {status}); it is started again by "
            f"itself, so try again in a moment. Last words: {_last_line(self._log_path)}",
            code="worker_unavailable",
        )


async def _ended(process: asyncio.subprocess.Process, patience: float) -> None:
    """Wait for a process to end; kill it when it takes longer than `patience` seconds."""
    try:
        await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        process.kill()
        await process.wait()


def _chat_error(error: dict[str, Any]) -> ChatError:
    return ChatError(
        error["message"],
        status=error.get("status") or 503,
        type=error.get("type") or "server_error",
        param=error.get("param"),
        code=error.get("code"),
    )


def _last_line(path: Path) -> str:
    """The last line of a log, or a word that there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 2000))
            lines = log.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return repr(lines[-1][:300]) if lines else f"none, {path} is empty"
