"""The watchdog of the sandbox: a separate process that ends graders when the platform is gone.

Run by path with a pipe as its stdin. Each line is JSON: `[pid, start, scratch]` when a process has
been started, `[pid]` when it has ended. The pipe ends when the platform does, however it ended:
then every process that is left is killed with its group, and its scratch folder removed. It has no
timer, so that it also ends a process that has turned off its alarm, or the signal by which the
kernel ends children. Uses the standard library only and imports nothing of rftkit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from typing import Any

__all__ = ["main", "started_at"]


def started_at(pid: int) -> str | None:
    """When a process started, in clock ticks of the kernel; None where this cannot be found out.

    The number of a process is given to another one some time after its end; the two differ here.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def main() -> None:
    """Watch until the platform is gone, then end what it left."""
    with contextlib.suppress(OSError):
        os.setsid()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.chdir("/")
    watched: dict[int, tuple[str | None, str]] = {}
    for line in sys.stdin.buffer:
        with contextlib.suppress(ValueError):  # the platform was killed while it wrote a line
            _take(json.loads(line), watched)
    for pid, (start, scratch) in watched.items():
        if started_at(pid) == start:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


def _take(message: list[Any], watched: dict[int, tuple[str | None, str]]) -> None:
    if len(message) == 1:
        watched.pop(message[0], None)
    else:
        pid, start, scratch = message
        watched[pid] = (start, scratch)


if __name__ == "__main__":
    main()
