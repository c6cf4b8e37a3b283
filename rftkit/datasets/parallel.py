"""Run a function of a module over tasks in worker processes, from any program.

`multiprocessing` runs the caller's script again in every worker, which breaks scripts without a
guard, and forking a process that has threads can deadlock. So a worker here is a plain new Python
that reads pickled tasks and writes pickled results. Results come in the order of the tasks. Only
a few tasks are in progress at once, so that memory stays small.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any

__all__ = ["num_cores", "run_tasks"]


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Any], Any], tasks: Iterable[Any], *, processes: int
) -> Iterator[Any]:
    """Yield `function(task)` for each task, in order.

    Args:
        function: A function at the top level of a module of this package.
        tasks: Picklable values; the next one is taken when a worker is idle.
        processes: Worker processes; 0 runs the function in this process.
    """
    if processes == 0:
        yield from map(function, tasks)
        return
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(_worker(function)))
        waiting: deque[Future[Any]] = deque()
        for task in tasks:
            waiting.append(pool.submit(_ask, idle, task))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _worker(function: Callable[[Any], Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that runs one function; kill it at the end, even during a task."""
    where = f"{function.__module__!r}, {function.__qualname__!r}"
    command = [sys.executable, "-c", f"from {__name__} import _serve; _serve({where})"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _ask(idle: SimpleQueue[subprocess.Popen[bytes]], task: Any) -> Any:
    worker = idle.get()
    try:
        assert worker.stdin
        assert worker.stdout
        pickle.dump(task, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
        is_good, value = pickle.load(worker.stdout)
    finally:
        idle.put(worker)
    if not is_good:
        raise value
    return value


def _serve(module: str, name: str) -> None:
    """Run in the worker: read tasks from stdin, write results to stdout; prints go to stderr."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function = getattr(importlib.import_module(module), name)
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, function(task))
        except Exception as error:  # raised again in the caller
            answer = (False, error)
        pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
        results.flush()
