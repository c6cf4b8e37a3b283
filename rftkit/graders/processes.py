"""The processes of the sandbox as the machine sees them: start, what they hold, what they leave.

Starts happen on one thread that lives as long as this process: the kernel ends a grader's process
when the thread that started it ends. Scratch folders are named after the process that made them, so
that those of a killed one can be swept. Not here: what is said to a process (`sandbox`).
"""

from __future__ import annotations

import contextlib
import functools
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

from rftkit.graders.confine import missing

__all__ = ["CONFINE", "can_mount", "remove", "scratch_bytes", "start", "sweep", "weaknesses"]

CONFINE = Path(__file__).with_name("confine.py")
PREFIX = "rftkit-grader-"
OLD_SECONDS = 24 * 3600.0
MAX_FILES = 20_000
"""Files and folders in one scratch folder."""
MAX_DEPTH = 50

Call = tuple[Future["subprocess.Popen[bytes]"], list[str], dict[str, Any]]


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`, from a thread that does not end before this process."""
    future: Future[subprocess.Popen[bytes]] = Future()
    _starts(os.getpid()).put((future, command, options))
    return future.result()


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
    return tempfile.mkdtemp(prefix=f"{PREFIX}{_namespace()}-{os.getpid()}-")


@functools.cache
def sweep_once(pid: int) -> None:
    """`sweep`, the first time that this process needs a scratch folder."""
    sweep()


def sweep() -> None:
    """Remove the scratch folders of processes that are gone."""
    folder = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == os.getuid() and _is_left_over(path):
                    remove(str(path))


def _is_left_over(path: Path) -> bool:
    found = re.fullmatch(rf"{PREFIX}(\d+)-(\d+)-.*", path.name)
    if found is not None and int(found[1]) == _namespace():
        return not _is_alive(int(found[2]))
    return time.time() - path.lstat().st_mtime > OLD_SECONDS  # of another container, or version


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _namespace() -> int:
    """Which process numbers ours is one of; containers that share /tmp have others."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def remove(folder: str) -> None:
    """Remove a folder that somebody may have made hard to remove."""
    try:
        for place, folders, _ in os.walk(folder):
            for path in (os.path.join(place, name) for name in folders):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
    except (OSError, RecursionError):
        pass
    if os.path.lexists(folder):  # folders in folders, to keep us from removing them
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
        except FileNotFoundError:  # removed while we looked
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
            os.rmdir(done.stdout.strip())  # its mount is gone with the process
    return done.returncode == 0


def weaknesses() -> list[str]:
    """Which limits of python graders do not hold on this machine, in words."""
    if (reason := missing()) is not None:
        return [f"Python graders cannot be isolated here: {reason}."]
    if can_mount():
        return []
    return [
        "The limit on scratch files of python graders is checked ten times a second, not enforced: "
        "this kernel lets no unprivileged process mount a folder of its own (user namespaces)."
    ]
