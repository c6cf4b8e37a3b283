"""The processes of the sandbox as the machine sees them: start, what they hold, what they leave.

Starts happen on one thread that lives as long as this process: the kernel ends a grader's process
when the thread that started it ends. A watchdog, which is a process of its own, ends those that
have turned that off. Scratch folders are named after the process that made them, so that those of a
killed one can be swept. Not here: what is said to a process (`sandbox`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rftkit.graders import cgroups
from rftkit.graders.confine import missing
from rftkit.graders.watchdog import started_at

__all__ = [
    "CONFINE",
    "can_mount",
    "ended",
    "remove",
    "scratch_bytes",
    "start",
    "sweep",
    "weaknesses",
]

CONFINE = Path(__file__).with_name("confine.py")
WATCHDOG = Path(__file__).with_name("watchdog.py")
OLD_SECONDS = 24 * 3600.0
MAX_FILES = 20_000
"""Files and folders in one scratch folder."""
MAX_DEPTH = 50

Call = tuple[Future["subprocess.Popen[bytes]"], list[str], dict[str, Any]]


def start(command: list[str], scratch: str, **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`, from a thread that does not end before this process.

    The process leads a session of its own and is watched until `ended` is called: if this process
    ends first, it is killed and its scratch folder removed.
    """
    future: Future[subprocess.Popen[bytes]] = Future()
    _starts(os.getpid()).put((future, command, options | {"start_new_session": True}))
    process = future.result()
    try:
        _watchdog(os.getpid()).report(process.pid, started_at(process.pid), scratch)
    except BaseException:  # such as too many open files: end the process here
        process.kill()
        process.communicate()
        raise
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    """A process has been waited for: its number may soon be that of another one."""
    _watchdog(os.getpid()).report(process.pid)


class _Watchdog:
    """The process that ends graders when this one is gone; started with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: dict[int, tuple[Any, ...]] = {}
        self._pipe = self._spawned()

    def report(self, pid: int, *rest: str | None) -> None:
        """Say that a process has started, or without more words that it has ended."""
        with self._lock:
            if rest:
                self._alive[pid] = rest
            else:
                self._alive.pop(pid, None)
            try:
                self._write([pid, *rest])
            except BrokenPipeError:  # it was killed; the next watchdog gets the whole list
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.pid, os.WNOHANG)
                os.close(self._pipe)
                self._pipe = self._spawned()
                for alive, known in self._alive.items():
                    self._write([alive, *known])

    def _write(self, message: list[Any]) -> None:
        os.write(self._pipe, json.dumps(message).encode() + b"\n")

    def _spawned(self) -> int:
        """The end of a pipe that closes with this process. Nothing waits for the watchdog."""
        reader, writer = os.pipe()
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        command = [sys.executable, "-I", "-S", "-B", str(WATCHDOG)]
        try:
            actions = [(os.POSIX_SPAWN_DUP2, reader, 0), *null]
            self.pid = os.posix_spawn(
                sys.executable, command, {"PATH": "/usr/bin:/bin"}, file_actions=actions
            )
        finally:
            os.close(reader)
        return writer


@functools.cache
def _watchdog(pid: int) -> _Watchdog:
    """The watchdog of this process; a forked child has another number, and one of its own."""
    return _Watchdog()


@functools.cache
def _starts(pid: int) -> queue.SimpleQueue[Call]:
    """The queue of this process's starting thread; a forked child has another number."""
    calls: queue.SimpleQueue[Call] = queue.SimpleQueue()

    def work() -> None:
        while True:
            future, command, options = calls.get()
            try:
                process: Any = subprocess.Popen(command, **options)
                future.set_result(process)
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=work, name="grader-starts", daemon=True).start()
    return calls


def make_scratch() -> str:
    """An empty folder for one process, named after this one."""
    sweep_once(os.getpid())
    return tempfile.mkdtemp(prefix=f"{cgroups.PREFIX}{_namespace()}-{os.getpid()}-")


@functools.cache
def sweep_once(pid: int) -> None:
    """`sweep`, the first time that this process needs a scratch folder."""
    sweep()


def sweep() -> None:
    """Remove the scratch folders and control groups of processes that are gone."""
    cgroups.sweep()
    folder = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{cgroups.PREFIX}*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == os.getuid() and _is_left_over(path):
                    remove(str(path))


def _is_left_over(path: Path) -> bool:
    found = re.fullmatch(rf"{cgroups.PREFIX}(\d+)-(\d+)-.*", path.name)
    if found is not None and int(found[1]) == _namespace():
        return not _is_alive(int(found[2]))
    # from another container or an older version
    return time.time() - path.lstat().st_mtime > OLD_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _namespace() -> int:
    """The namespace of our process numbers; containers that share /tmp have different ones."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def remove(folder: str) -> None:
    """Remove a folder, even if a grader made it hard to remove."""
    try:
        for place, folders, _ in os.walk(folder):
            for path in (os.path.join(place, name) for name in folders):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
    except (OSError, RecursionError):
        pass
    if os.path.lexists(folder):  # nested too deeply for rmtree, perhaps on purpose
        subprocess.run(["rm", "-rf", "--", folder], check=False, stderr=subprocess.DEVNULL)


def scratch_bytes(pid: int, scratch: str, most: int) -> str | None:
    """Why a process holds too much on disk; None when it does not.

    For machines where the kernel does not limit the folder itself: files with the blocks they
    take, those that are open or mapped and have no name any more, and how many there are.
    """
    used, count = 0, 0
    try:
        for status in _files(scratch):
            used += max(status.st_size, status.st_blocks * 512)
            count += 1
        used += sum(_nameless(pid, os.stat(scratch).st_dev))
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            if any(scratch in line and line.rstrip().endswith("(deleted)") for line in maps):
                return "it maps a file that has no name any more"
    except PermissionError:
        return "a folder in its scratch folder cannot be read"
    except RecursionError:
        return f"folders are more than {MAX_DEPTH} deep"
    if used > most:
        return f"more than {most} bytes of scratch files"
    return f"more than {MAX_FILES} scratch files" if count > MAX_FILES else None


def _files(scratch: str) -> Iterator[os.stat_result]:
    folders = [(scratch, 0)]
    while folders:
        folder, depth = folders.pop()
        if depth > MAX_DEPTH:
            raise RecursionError
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            folders.append((entry.path, depth + 1))
        except FileNotFoundError:  # removed in the meantime
            continue


def _nameless(pid: int, device: int) -> Iterator[int]:
    """Bytes of the open files of a process that have no name any more."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = os.stat(entry.path)
                is_nameless = stat.S_ISREG(status.st_mode) and not status.st_nlink
                if is_nameless and status.st_dev == device:
                    yield max(status.st_size, status.st_blocks * 512)


@functools.cache
def can_mount() -> bool:
    """Whether a process here may mount a folder of a limited size for itself alone."""
    if missing() is not None:
        return False
    program = (
        "import runpy, sys, tempfile, os; folder = tempfile.mkdtemp(); "
        "mount = runpy.run_path(sys.argv[1])['mount_scratch']\n"
        "try: mount(folder, 1 << 20, 100)\n"
        "finally: os.path.ismount(folder) or os.rmdir(folder)\n"
        "print(folder)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(CONFINE)],
        capture_output=True,
        text=True,
        check=False,
    )
    with contextlib.suppress(OSError):
        if done.returncode == 0:
            os.rmdir(done.stdout.strip())  # its mount disappeared with the process
    return done.returncode == 0


def weaknesses() -> list[str]:
    """Which limits of python graders do not hold on this machine, in words."""
    if (reason := missing()) is not None:
        return [f"Python graders cannot be isolated here: {reason}."]
    found = []
    if not can_mount():
        found.append(
            "The limit on scratch files of python graders is checked ten times a second, not "
            "enforced: this kernel lets no unprivileged process mount a folder of its own (user "
            "namespaces)."
        )
    if cgroups.base() is None:
        found.append(
            "The memory of a python grader is limited by its address space, its threads are "
            "counted ten times a second: this process has no control group of its own. `systemd-run"
            " --user --scope -p Delegate=yes rftkit serve` gives it one."
        )
    return found
