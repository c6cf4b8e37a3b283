"""Control groups for the processes of the sandbox, where this machine lets us make them.

This is cgroup v2 with the controllers `memory` and `pids`: in a service or scope of systemd with
`Delegate=yes`, or in a container whose cgroup folder can be written. Each grader process then has a
group of its own, in which the kernel limits its memory, files in memory included, and the number of
its threads. Elsewhere address space (`confine`) and ten checks a second (`sandbox`) have to do, and
`processes.weaknesses` says so. Version 1 is not used: an unprivileged process cannot have it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Group", "base", "make", "sweep", "take_over"]

CONTROLLERS = frozenset({"memory", "pids"})
PLATFORM = "rftkit-platform"
"""Where a server moves itself: a group with limited children may hold no process itself."""
PREFIX = "rftkit-grader-"
"""Names of our control groups and scratch folders begin with this."""
_NUMBERS = itertools.count()


class Group:
    """The control group of one grader process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int) -> None:
        """Move a process into the group."""
        _write(self._folder / "cgroup.procs", str(pid))

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel ended a process of the group because its memory was used up."""
        with contextlib.suppress(OSError, ValueError):
            lines = (self._folder / "memory.events").read_text().splitlines()
            counts = dict(line.split() for line in lines)
            return int(counts.get("oom_kill", 0)) > 0
        return False

    def remove(self) -> None:
        """End what is left in the group, and remove it."""
        if (kill := self._folder / "cgroup.kill").exists():  # from Linux 5.14 on
            with contextlib.suppress(OSError):
                _write(kill, "1")
        for _ in range(20):  # a killed process takes a moment to disappear
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.005)
            else:
                return


@functools.cache
def base() -> Path | None:
    """The control group in which this process may create and limit children, or None."""
    own = _own_group()
    if own is None:
        return None
    parent = own.parent if own.name == PLATFORM else own
    is_ours = os.access(parent, os.W_OK) and os.access(parent / "cgroup.procs", os.W_OK)
    return parent if is_ours and _words(parent / "cgroup.subtree_control") >= CONTROLLERS else None


def take_over() -> None:
    """Let the children of our own group be limited, where this process is alone in it.

    For a server that has just started. It moves itself one group down, since the kernel allows
    limits only below a group without processes.
    """
    own = _own_group()
    if own is None or base() is not None or not os.access(own, os.W_OK):
        return
    if not _words(own / "cgroup.controllers") >= CONTROLLERS:
        return
    if _words(own / "cgroup.procs") != {str(os.getpid())}:
        return  # the group of a login session, which holds other processes too
    with contextlib.suppress(OSError):
        (own / PLATFORM).mkdir(exist_ok=True)
        _write(own / PLATFORM / "cgroup.procs", str(os.getpid()))
        _write(own / "cgroup.subtree_control", " ".join(f"+{each}" for each in CONTROLLERS))
    base.cache_clear()


def make(memory_bytes: int, most_threads: int) -> Group | None:
    """A group with these limits; None where this machine lets us make none."""
    if (parent := base()) is None:
        return None
    folder = parent / f"{PREFIX}{os.getpid()}-{next(_NUMBERS)}"
    try:
        folder.mkdir()
        _write(folder / "memory.max", str(memory_bytes))
        _write(folder / "pids.max", str(most_threads))
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            if (folder / name).exists():  # not where the kernel has no swap
                _write(folder / name, value)
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return Group(folder)


def sweep() -> None:
    """Remove the groups of processes that are gone."""
    for folder in _left_over():
        Group(folder).remove()


def _left_over() -> Iterator[Path]:
    if (parent := base()) is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(ValueError):
            maker = int(folder.name.removeprefix(PREFIX).partition("-")[0])
            if not Path(f"/proc/{maker}").exists():
                yield folder


def _own_group() -> Path | None:
    """The folder of our own group in cgroup v2; None where it is not mounted."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return None
    place = next((line[3:] for line in lines if line.startswith("0::")), None)
    # mount point and the part of the tree that it shows, of the mount whose type is cgroup2
    found = [(m[4], m[3]) for m in mounts if m[m.index("-") + 1] == "cgroup2"]
    if place is None or not found:
        return None
    point, root = found[0]
    if root != "/" and not f"{place}/".startswith(f"{root}/"):
        return None  # the mount does not show our group
    below = place if root == "/" else place[len(root) :]
    return Path(point + below.rstrip("/"))


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
