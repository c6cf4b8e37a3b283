"""Run a function over tasks in worker processes, from any program.

joblib starts the workers as fresh interpreters. They do not run the caller's script again, as
`multiprocessing` does, and they are not forked from a process with threads, which can deadlock.
Results come in the order of the tasks. Only a few tasks are in progress at once, so that memory
stays small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rftkit.errors import RftkitError

__all__ = ["num_cores", "run_tasks"]


def num_cores() -> int:
    """Return how many cores this process may use: of the machine, its affinity and its cgroup."""
    from joblib import cpu_count

    return int(cpu_count())


def run_tasks(
    function: Callable[[Any], Any], tasks: Iterable[Any], *, processes: int
) -> Iterator[Any]:
    """Yield `function(task)` for each task, in order.

    Args:
        function: A function at the top level of a module.
        tasks: Picklable values; the next one is taken when a worker is idle.
        processes: Worker processes; 0 and 1 run the function in this process.

    Raises:
        RftkitError: A worker was killed.
    """
    if processes < 2:
        yield from map(function, tasks)
        return
    from joblib import Parallel, delayed

    pool = Parallel(processes, backend="loky", batch_size=1, return_as="generator")
    try:  # a worker may be killed while tasks are still being sent
        results = pool(delayed(function)(task) for task in tasks)
        try:
            for result in results:  # noqa: UP028 (`yield from` would close it with a warning)
                yield result
        finally:
            with warnings.catch_warnings(action="ignore"):  # about tasks that nobody waits for
                results.close()
    except BrokenProcessPool as error:
        raise RftkitError(
            "a worker process was killed, most likely because the machine ran out of memory; "
            "close other programs, or use fewer processes"
        ) from error
