"""The inside of the sandbox: confine this process, load one source, grade until the pipe closes.

Run by path as `python -P -s -S worker.py`, with requests on its stdin and replies on its stdout,
each a JSON text after four bytes with its length. It may import the standard library only, and
`confine.py` beside it. Nothing here is trusted by the other side (`sandbox.py`): the source that
runs in this process can do to it what it likes, and a reply is only ever parsed as JSON.
"""

from __future__ import annotations

import contextlib
import decimal
import json
import linecache
import math
import numbers
import os
import runpy
import signal
import struct
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, BinaryIO

FILE_NAME = "grader.py"
_MAX_DETAILS = 8_000


def _number(result: Any) -> float | None:
    """The number that a grader returned, or None when it returned something else.

    Scalars of numpy and torch, and their arrays without dimensions, hold a number of Python.
    """
    if getattr(result, "shape", None) == () and hasattr(result, "item"):
        result = result.item()
    return float(result) if isinstance(result, (numbers.Real, decimal.Decimal)) else None


def main() -> None:
    """Serve one source; ends when the requests end."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    config = _read(requests)
    sys.path += config["packages"]
    rules = runpy.run_path(os.path.join(os.path.dirname(__file__), "confine.py"))
    serve = _serve_forks if config["per_grade"] else _serve
    serve(config, rules, requests, replies)


def _confine(config: dict[str, Any], rules: dict[str, Any], parent: int) -> None:
    """Confine this process. Even an unconfined process dies with its parent."""
    if config["confine"]:
        rules["confine"](**config["confine"], parent=parent)
    else:
        rules["die_with_parent"](parent)
    os.chdir(config["scratch"])


def _serve_forks(
    config: dict[str, Any], rules: dict[str, Any], requests: BinaryIO, replies: int
) -> None:
    """Start a new process for each grade, so that no answer can affect another.

    The source never runs in this process, so it can be trusted to fork and to tidy up. The child
    writes its own reply; that it has ended is said after it.
    """
    _confine(config | {"confine": None}, rules, config["parent"])
    nursery, quota = os.getpid(), bool((config["confine"] or {}).get("scratch_files"))
    _write(replies, {"ready": True})
    _write(replies, {"loaded": True})
    while (request := _read(requests)) is not None:
        child = os.fork()
        if not child:
            try:
                requests.close()
                _confine(config, rules, nursery)
                signal.alarm(config["alarm_seconds"])
                answer = _answer(_load(config["source"]), request)
                if quota and not os.statvfs(".").f_bavail:  # also if the source catches the error
                    answer = {"error": "the scratch folder is full"}
                _write(replies, answer | {"id": request["id"]})
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if not quota:
            _empty(config["scratch"])
        _write(replies, {"ended": request["id"], "status": os.waitstatus_to_exitcode(status)})


def _empty(folder: str) -> None:
    """Remove the contents of a folder, whatever their modes."""
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                _empty(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)


def _serve(config: dict[str, Any], rules: dict[str, Any], requests: BinaryIO, replies: int) -> None:
    _confine(config, rules, config["parent"])
    _write(replies, {"ready": True})
    signal.alarm(config["alarm_seconds"])
    grade = _load(config["source"])
    _write(replies, {"loaded": True})
    while (request := _read(requests)) is not None:
        # a backstop for the case that the other side, which keeps the time, was itself killed
        signal.alarm(config["alarm_seconds"])
        answer = _answer(grade, request)
        signal.alarm(0)
        _write(replies, answer | {"id": request["id"]})


def _load(source: str) -> Callable[[Any, Any], Any]:
    """Return the user's function, or one that raises the error of loading it."""
    linecache.cache[FILE_NAME] = (len(source), None, source.splitlines(True), FILE_NAME)
    # a module like any other: dataclasses, pydantic and pickle look theirs up by name
    module = sys.modules["grader"] = types.ModuleType("grader")
    module.__file__ = FILE_NAME
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
        grade = module.grade
    except BaseException as error:
        failure = error

        def grade(sample: Any, item: Any) -> Any:
            raise failure

    return grade  # type: ignore[no-any-return]


def _answer(grade: Callable[[Any, Any], Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        result = grade(request["sample"], request["item"])
        reward = _number(result)
    except BaseException as error:
        # the memory may still be held, for instance by a global
        return {"error": _describe(error), "retire": isinstance(error, MemoryError)}
    if reward is not None and math.isfinite(reward):
        return {"reward": reward}
    line = getattr(getattr(grade, "__code__", None), "co_firstlineno", 1)
    what = f"a {type(result).__name__}" if reward is None else repr(reward)
    problem = f"{'TypeError' if reward is None else 'ValueError'}: grade returned {what}"
    return {"error": f'File "{FILE_NAME}", line {line}, in grade\n{problem}, expected a number'}


def _describe(error: BaseException) -> str:
    """Return the traceback from the first frame of the user's source."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename != FILE_NAME:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace)).strip()
    except BaseException:
        text = type(error).__name__
    return text if len(text) <= _MAX_DETAILS else "…" + text[-_MAX_DETAILS:]


def _read(stream: BinaryIO) -> Any:
    header = stream.read(4)
    return json.loads(stream.read(struct.unpack("!I", header)[0])) if len(header) == 4 else None


def _write(fd: int, reply: dict[str, Any]) -> None:
    body = json.dumps(reply).encode()
    data = memoryview(struct.pack("!I", len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
