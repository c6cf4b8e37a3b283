"""Python graders: `grade(sample, item)` in isolated processes that are reused.

A sandbox serves one source. It keeps up to `workers` processes, each of which confines itself
before it sees the source (`confine`), and hands a call to an idle one. A call that takes too long,
fills its scratch folder, leaves threads behind or ends the process costs that one grade and the
process, never the job; the next call starts a fresh one. Replies are JSON, never pickles.

Not covered: a grader can spend both its time limit and a core on every call, and the calls that
one process serves share its globals.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import json
import math
import os
import queue
import select
import shutil
import signal
import site
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import GraderSpecError
from rftkit.graders.outcome import Fault

__all__ = ["Limits", "Sandbox", "check_source"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use; the defaults are the hosted service's."""

    seconds: float = 120.0
    """Wall time of one grade; the first of a process includes loading the source."""
    memory_bytes: int = 2 << 30
    """Address space of a process."""
    scratch_bytes: int = 1 << 30
    """Files in the scratch folder, which is also the working directory."""


class _Gone(Exception):
    """The process is of no further use; the message says why."""


class Sandbox:
    """Runs one source. Safe to call from several threads; close it when done."""

    def __init__(self, source: str, *, workers: int = 2, limits: Limits | None = None) -> None:
        self._source, self._limits = source, limits or Limits()
        # LIFO keeps few processes warm; None stands for one that is yet to be started
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._workers = max(1, workers)
        for _ in range(self._workers):
            self._idle.put(None)

    def grade(self, sample: dict[str, Any], item: Any) -> float:
        """The reward of one sample.

        Raises:
            Fault: `python_grader_runtime_error` with the user's traceback, or
                `python_grader_server_error` when no process could be started.
        """
        try:
            request = json.dumps({"id": 0, "sample": sample, "item": item}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Fault("other_error", f"the row cannot be written as JSON: {error}") from None
        worker = self._idle.get()
        try:
            worker = worker or self._start()
            return worker.grade(request)
        except _Gone as gone:
            if worker:
                worker.kill()
            worker = None
            raise Fault("python_grader_runtime_error", str(gone)) from None
        except OSError as error:
            if worker:
                worker.kill()
            worker = None
            raise Fault("python_grader_server_error", f"sandbox_error: {error}") from None
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes; waits for calls that are under way."""
        for _ in range(self._workers):
            if worker := self._idle.get():
                worker.kill()
        for _ in range(self._workers):
            self._idle.put(None)

    def _start(self) -> _Worker:
        return _Worker(self._source, self._limits)


class _Worker:
    """One process and its scratch folder."""

    def __init__(self, source: str, limits: Limits) -> None:
        self._limits = limits
        self._scratch = tempfile.mkdtemp(prefix="rftkit-grader-")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(self._scratch),
            cwd=self._scratch,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        packages = _package_dirs()
        config = {
            "source": source,
            "packages": packages,
            "scratch": self._scratch,
            "alarm_seconds": math.ceil(limits.seconds) + 5,
            "confine": None,
        }
        self._send(json.dumps(config).encode(), time.monotonic() + limits.seconds)

    def grade(self, request: bytes) -> float:
        deadline = time.monotonic() + self._limits.seconds
        self._send(request, deadline)
        reply = self._receive(deadline)
        if isinstance(reply.get("error"), str):
            raise Fault("python_grader_runtime_error", reply["error"])
        reward = reply.get("reward")
        if not isinstance(reward, float) or not math.isfinite(reward):
            raise _Gone("the grader wrote into the sandbox's own channel")
        return reward

    def kill(self) -> None:
        """End the process and remove its files."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _send(self, body: bytes, deadline: float) -> None:
        data = memoryview(struct.pack("!I", len(body)) + body)
        while data:
            try:
                data = data[os.write(self._to, data) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise _Gone(self._epitaph()) from None

    def _receive(self, deadline: float) -> dict[str, Any]:
        (length,) = struct.unpack("!I", self._read(4, deadline))
        if length > 1 << 20:
            raise _Gone("the grader wrote into the sandbox's own channel")
        try:
            reply = json.loads(self._read(length, deadline))
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise _Gone("the grader wrote into the sandbox's own channel")
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
        poll = select.poll()
        poll.register(fd, event)
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Gone(f"killed: no result within {self._limits.seconds:g} s")
        poll.poll(min(left, 0.5) * 1000)

    def _epitaph(self) -> str:
        status = self._process.wait()
        if status >= 0:
            return f"the grader ended its process with exit status {status}"
        with contextlib.suppress(ValueError):
            return f"the grader's process died of {signal.Signals(-status).name}"
        return f"the grader's process died of signal {-status}"


def check_source(source: str, *, param: str | None = None) -> None:
    """Find what can be found without running the source.

    Raises:
        GraderSpecError: a syntax error with its line, no usable `grade(sample, item)`, or an
            import of a package that is not installed. Imports inside `try` may fail.
    """

    def refuse(what: str) -> GraderSpecError:
        return GraderSpecError(f"`{param or 'source'}`: {what}", param=param)

    try:
        tree = ast.parse(source, "grader.py")
        compile(tree, "grader.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise refuse(f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise refuse(f"cannot be compiled: {error}") from None
    _check_signature(tree, refuse)
    for line, package in _imports(tree):
        if not _is_installed(package):
            raise refuse(
                f"line {line} imports {package!r}, which is not installed here; "
                f"type: pip install {package} (the hosted image's packages: "
                "pip install 'rftkit[grader-image]')"
            )


def _check_signature(tree: ast.Module, refuse: Any) -> None:
    functions = [node for node in ast.walk(tree) if getattr(node, "name", None) == "grade"]
    if not functions:
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        aliases = {
            a.asname or a.name
            for n in ast.walk(tree)
            if hasattr(n, "names")
            for a in n.names
            if isinstance(a, ast.alias)
        }
        if "grade" not in names | aliases:
            raise refuse("it must define grade(sample, item)")
        return
    last = functions[-1]
    if isinstance(last, ast.AsyncFunctionDef):
        raise refuse(f"line {last.lineno}: grade must be a plain function, not async")
    if isinstance(last, ast.FunctionDef):
        given = last.args
        places = len(given.posonlyargs) + len(given.args)
        required = places - len(given.defaults)
        needs_keywords = any(default is None for default in given.kw_defaults)
        if required > 2 or (places < 2 and not given.vararg) or needs_keywords:
            raise refuse(f"line {last.lineno}: grade must take exactly (sample, item)")


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]
        yield from _imports(node)


def _is_installed(package: str) -> bool:
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return True
    return importlib.machinery.PathFinder.find_spec(package, _package_dirs()) is not None


def _package_dirs() -> list[str]:
    """Where installed packages live; not the project, even when it is installed editable."""
    dirs = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        dirs.append(site.getusersitepackages())
    return [path for path in dict.fromkeys(dirs) if os.path.isdir(path)]


def _environment(scratch: str) -> dict[str, str]:
    """A clean one: no keys, a fixed hash seed, one thread for numeric libraries."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
        "PYTHONHASHSEED": "0",
    } | dict.fromkeys(threads, "1")
