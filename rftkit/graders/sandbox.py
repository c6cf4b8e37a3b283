"""Python graders: `grade(sample, item)` in isolated processes that are reused.

A sandbox serves one source. It keeps up to `workers` processes, each of which confines itself
before it sees the source (`confine`), and hands a call to an idle one. A call that takes too long,
fills its scratch folder, leaves threads behind or ends the process costs that one grade and the
process, never the job; the next call starts a fresh one. Replies are JSON, never pickles.

Between two calls a process is stopped, so nothing of the source runs then. Calls that one process
serves share its globals; a source that executes answers (`executes_answers`) gets a new process for
each call instead, a fork that costs some milliseconds and the imports of the source.

Not covered: a grader can spend both its time limit and a core on every call.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import PlatformError
from rftkit.graders import cgroups, processes
from rftkit.graders.calls import if_abandoned
from rftkit.graders.confine import missing
from rftkit.graders.outcome import Fault
from rftkit.graders.source import library_paths, nltk_dirs, package_dirs
from rftkit.graders.template import plain_value
from rftkit.jsontext import parse_json

__all__ = ["Limits", "Sandbox"]


_START_SECONDS = 30.0
_TICK_SECONDS = 0.1
_MAX_THREADS = 64
_OWN_THREADS = 2
"""Processes of the sandbox itself in a control group: the one that forks, and its child."""
_MAX_REPLY_BYTES = 1 << 20
_TAMPERED = "the grader wrote into the sandbox's own channel"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use; the defaults are the hosted service's."""

    seconds: float = 120.0
    """Wall time of one grade; the first of a process includes loading the source."""
    memory_bytes: int = 2 << 30
    """Address space of a process."""
    scratch_bytes: int = 1 << 30
    """Files in the scratch folder, which is also the working directory; they take memory where the
    kernel holds the limit."""


class _Gone(Exception):
    """The process cannot be used again; the message says why."""


class Sandbox:
    """Runs one source. Safe to call from several threads; close it when done."""

    def __init__(
        self,
        source: str,
        *,
        workers: int = 2,
        limits: Limits | None = None,
        unconfined: bool = False,
        per_grade: bool = False,
    ) -> None:
        """`unconfined` runs the source without isolation: only for sources you trust.

        `per_grade` gives every call its own process.

        Raises:
            PlatformError: this machine cannot isolate, and `unconfined` is not set.
        """
        if not unconfined and (reason := missing()):
            raise PlatformError(
                f"python graders cannot be isolated here: {reason}. If you trust their source with "
                "your files and network, set RFTKIT_UNCONFINED_GRADERS=1 (or pass unconfined=True)"
            )
        self._source, self._limits = source, limits or Limits()
        self._confined, self._per_grade = not unconfined, per_grade
        # LIFO keeps few processes warm; None stands for one that is yet to be started
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._workers = max(1, workers)
        for _ in range(self._workers):
            self._idle.put(None)
        self._busy: set[_Worker] = set()
        self._is_closed = threading.Event()

    def grade(self, sample: dict[str, Any], item: Any) -> float:
        """The reward of one sample.

        Raises:
            Fault: `python_grader_runtime_error` with the user's traceback, or
                `python_grader_server_error` when no process could be started.
        """
        try:
            body = json.dumps({"sample": sample, "item": item}, default=plain_value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Fault("other_error", f"the row cannot be written as JSON: {error}") from None
        worker, is_reusable = self._take_idle(), False
        try:
            worker = worker or _Worker(self._source, self._limits, self._confined, self._per_grade)
            self._busy.add(worker)
            with if_abandoned(worker.stop):
                reward = worker.grade(body)
            is_reusable = True
        except Fault:
            is_reusable = True
            raise
        except (_Gone, OSError) as error:
            raise _fault(error) from None
        else:
            return reward
        finally:
            if worker:
                self._busy.discard(worker)
                if not is_reusable:  # after an interrupt, too, a call is still running
                    worker.kill()
            self._idle.put(worker if is_reusable else None)

    def close(self, *, now: bool = False) -> None:
        """End all processes: after the calls in progress, or `now`, which fails those.

        After `now` no further call starts.
        """
        if now:
            self._is_closed.set()
            for worker in list(self._busy):
                worker.stop()
        for _ in range(self._workers):
            if idle := self._idle.get():
                idle.kill()
        for _ in range(self._workers):
            self._idle.put(None)

    def _take_idle(self) -> _Worker | None:
        """Return an idle process, or None if a new one may be started.

        Raises:
            Fault: the work of this thread was abandoned while all processes were busy.
        """
        is_abandoned = threading.Event()
        with if_abandoned(is_abandoned.set):
            while True:
                if is_abandoned.is_set() or self._is_closed.is_set():
                    raise _fault(_Gone("the grade was given up before it began"))
                with contextlib.suppress(queue.Empty):
                    return self._idle.get(timeout=_TICK_SECONDS)


class _Worker:
    """One process and its scratch folder."""

    def __init__(self, source: str, limits: Limits, confined: bool, per_grade: bool) -> None:
        self._limits, self._calls, self._per_grade = limits, 0, per_grade
        self._threads: int | None = None  # after loading; None before
        self._has_quota = confined and processes.can_mount()
        self._scratch = processes.make_scratch()
        try:
            self._process = processes.start(
                [
                    *(sys.executable, "-P", "-s", "-S", "-B"),
                    str(Path(__file__).with_name("worker.py")),
                ],
                self._scratch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(self._scratch),
                cwd=self._scratch,
                bufsize=0,
            )
        except BaseException:
            processes.remove(self._scratch)
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._group = cgroups.make(
            limits.memory_bytes + limits.scratch_bytes, _MAX_THREADS + _OWN_THREADS
        )
        try:
            if self._group is not None:
                self._group.add(self._process.pid)
            self._set_up(source, confined)
        except BaseException:
            self.kill()
            raise

    def grade(self, body: bytes) -> float:
        """Send `{"sample": …, "item": …}`, return the reward; a Fault leaves the process usable."""
        deadline = time.monotonic() + self._limits.seconds
        self._signal(signal.SIGCONT)
        if self._threads is None:
            self._expect({"loaded": True}, deadline)
            self._threads = self._count_threads()
        self._calls += 1
        self._send(b'{"id": %d, %s' % (self._calls, body[1:]), deadline)
        reply = self._receive(deadline)
        if self._per_grade:
            self._check_end(reply, deadline)
        else:
            self._check_leftovers()
            self._signal(signal.SIGSTOP)  # the grader's threads stand still between calls
        error, reward = reply.get("error"), reply.get("reward")
        if reply.get("id") == self._calls:
            if isinstance(error, str) and reply.get("retire"):
                raise _Gone(error)
            if isinstance(error, str):
                raise Fault("python_grader_runtime_error", error)
            if isinstance(reward, float) and math.isfinite(reward):
                return reward
        raise _Gone(_TAMPERED)

    def stop(self) -> None:
        """End the process; a waiting call fails."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process and remove its files."""
        self.stop()
        self._process.wait()
        processes.ended(self._process)
        if self._group is not None:
            self._group.remove()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        processes.remove(self._scratch)

    def _set_up(self, source: str, confined: bool) -> None:
        packages = package_dirs()
        confinement = {
            "readable": [*packages, *library_paths()],
            "scratch": self._scratch,
            "memory_bytes": self._limits.memory_bytes,
            "scratch_bytes": self._limits.scratch_bytes,
            "scratch_files": processes.MAX_FILES if self._has_quota else None,
        }
        config = {
            "source": source,
            "packages": packages,
            "scratch": self._scratch,
            "per_grade": self._per_grade,
            "parent": os.getpid(),
            "alarm_seconds": math.ceil(self._limits.seconds) + 5,
            "confine": confinement if confined else None,
        }
        deadline = time.monotonic() + _START_SECONDS
        try:
            self._send(json.dumps(config).encode(), deadline)
            self._expect({"ready": True}, deadline)
        except _Gone as gone:
            raise OSError(f"a sandbox process did not start: {gone}") from None

    def _send(self, body: bytes, deadline: float) -> None:
        data = memoryview(struct.pack("!I", len(body)) + body)
        while data:
            try:
                data = data[os.write(self._to, data) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise _Gone(self._epitaph()) from None

    def _expect(self, reply: dict[str, Any], deadline: float) -> None:
        if self._receive(deadline) != reply:
            raise _Gone(_TAMPERED)

    def _receive(self, deadline: float) -> dict[str, Any]:
        (length,) = struct.unpack("!I", self._read(4, deadline))
        if length > _MAX_REPLY_BYTES:
            raise _Gone(_TAMPERED)
        try:
            reply = parse_json(self._read(length, deadline))
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise _Gone(_TAMPERED)
        return reply

    def _read(self, length: int, deadline: float) -> bytes:
        data = b""
        while len(data) < length:
            try:
                chunk = os.read(self._from, length - len(data))
            except BlockingIOError:
                self._wait(self._from, select.POLLIN, deadline)
                continue
            if not chunk:
                raise _Gone(self._epitaph())
            data += chunk
        return data

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        """Wait until the pipe is ready, and check the process regularly."""
        poll = select.poll()
        poll.register(fd, event)
        while True:
            # checked first: a reply that comes byte by byte would never time out
            if time.monotonic() > deadline:
                raise _Gone(f"killed: no result within {self._limits.seconds:g} s")
            if poll.poll(_TICK_SECONDS * 1000):
                return
            if self._count_threads() > _MAX_THREADS:
                raise _Gone(f"killed: more than {_MAX_THREADS} threads")
            self._check_scratch()

    def _check_end(self, reply: dict[str, Any], deadline: float) -> None:
        """With a process for each grade: read the reply, then the end of the output, which may come
        without one.
        """
        end = reply if "ended" in reply else self._receive(deadline)
        if end.get("ended") != self._calls or not isinstance(end.get("status"), int):
            raise _Gone(_TAMPERED)
        if end is reply:
            raise Fault("python_grader_runtime_error", _ending(end["status"]))

    def _check_leftovers(self) -> None:
        patience = 20  # the kernel may still list a thread that was just joined
        while self._count_threads() > (self._threads or 1):
            patience -= 1
            if not patience:
                raise _Gone("threads were still running when grade returned; join them in grade")
            time.sleep(0.001)
        self._check_scratch()

    def _count_threads(self) -> int:
        try:
            return os.stat(f"/proc/{self._running()}/task").st_nlink - 2
        except OSError:
            return 1

    def _running(self) -> int:
        """The process in which the source runs."""
        pid = self._process.pid
        if not self._per_grade:
            return pid
        try:
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return pid

    def _check_scratch(self) -> None:
        if self._has_quota:
            why = self._quota_is_spent()
        else:
            why = processes.scratch_bytes(
                self._running(), self._scratch, self._limits.scratch_bytes
            )
        if why is not None:
            raise _Gone(f"killed: {why}")

    def _quota_is_spent(self) -> str | None:
        """Report a full scratch folder, even when the source hides the kernel's refusal."""
        with contextlib.suppress(OSError):
            place = f"/proc/{self._running()}/root{self._scratch}"
            space = os.statvfs(place)
            # a process that starts has not mounted its folder yet, and sees the disk of TMPDIR
            if os.stat(place).st_dev != os.stat(self._scratch).st_dev:
                if not space.f_bavail:
                    return f"more than {self._limits.scratch_bytes} bytes of scratch files"
                if not space.f_ffree:
                    return f"more than {processes.MAX_FILES} scratch files"
        return None

    def _epitaph(self) -> str:
        """Return why the pipe ended; the process may have closed it and still run."""
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return _TAMPERED
        if self._group is not None and self._group.ran_out_of_memory():
            return f"killed: more than {self._limits.memory_bytes} bytes of memory"
        return _ending(status)


def _ending(status: int) -> str:
    """Describe an exit status of `subprocess`."""
    if status >= 0:
        return f"the grader ended its process with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"the grader's process died of {signal.Signals(-status).name}"
    return f"the grader's process died of signal {-status}"


def _fault(error: _Gone | OSError) -> Fault:
    if isinstance(error, _Gone):
        return Fault("python_grader_runtime_error", str(error))
    return Fault("python_grader_server_error", f"sandbox_error: {error}")


def _environment(scratch: str) -> dict[str, str]:
    """A clean environment: no keys, a fixed hash seed, one thread for numeric libraries."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
        "PYTHONHASHSEED": "0",
        "NLTK_DATA": os.pathsep.join(nltk_dirs()),
    } | dict.fromkeys(threads, "1")
