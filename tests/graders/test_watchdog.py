"""What ends and limits graders from outside: the watchdog, and control groups."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rftkit.graders import cgroups, processes
from rftkit.graders import sandbox as sandbox_module
from rftkit.graders.outcome import Fault
from rftkit.graders.sandbox import Limits, Sandbox
from rftkit.graders.watchdog import started_at

STUBBORN = """
import ctypes, os, signal, time
signal.alarm(0)
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # the kernel is not to end it with its parent
def grade(sample, item):
    with open(item["file"], "w") as file:
        file.write(f"{os.getpid()} {os.getcwd()}")
    while True:
        signal.alarm(0)
        time.sleep(0.01)
"""
PLATFORM = """
import sys
from rftkit.graders.sandbox import Sandbox
source, file, per_grade = sys.argv[1:]
Sandbox(source, unconfined=True, per_grade=per_grade == "yes").grade({}, {"file": file})
"""
PATIENCE = 60.0


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="sandboxes need POSIX")
@pytest.mark.parametrize("per_grade", ["no", "yes"])
def test_a_grader_that_turned_off_its_alarm_does_not_outlive_a_killed_platform(
    per_grade: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    command = [sys.executable, "-c", PLATFORM, STUBBORN, str(file), per_grade]
    with subprocess.Popen(command) as platform:
        until(lambda: file.exists() and file.read_text())
        pid, scratch = file.read_text().split()
        assert started_at(int(pid)) is not None
        platform.send_signal(signal.SIGKILL)
        until(lambda: not _is_running(int(pid)))
        until(lambda: not Path(scratch).exists())


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_watchdog_ends_what_is_left_and_nothing_else(tmp_path: Path) -> None:
    """Not a process whose number is that of one that ended, nor one that ended in order."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    three = [subprocess.Popen(sleep, start_new_session=True) for _ in range(3)]
    left, reused, ended = three
    lines = [
        [left.pid, started_at(left.pid), str(scratch)],
        [reused.pid, "12345", str(tmp_path / "other")],
        [ended.pid, started_at(ended.pid), str(tmp_path / "third")],
        [ended.pid],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '["cut o'
    try:
        command = [sys.executable, "-I", "-S", str(processes.WATCHDOG)]
        subprocess.run(command, input=text.encode(), check=True)
        assert left.wait(PATIENCE) == -signal.SIGKILL
        assert not scratch.exists()
        assert [reused.poll(), ended.poll()] == [None, None]
    finally:
        for each in three:
            each.kill()
            each.wait()


def test_a_watchdog_that_was_ended_is_replaced_and_told_of_all(tmp_path: Path) -> None:
    watchdog = processes._Watchdog()
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    ) as alive:
        watchdog.report(alive.pid, started_at(alive.pid), str(tmp_path / "scratch"))
        first = watchdog.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: not _is_running(first))
        watchdog.report(1 << 22, "0", str(tmp_path / "another"))
        assert watchdog.pid != first
        assert alive.poll() is None
        os.close(watchdog._pipe)  # as the end of this process does
        assert alive.wait(PATIENCE) == -signal.SIGKILL


# ── control groups ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that looks like our own group, delegated and with nobody else in it."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "cgroup.controllers").write_text("cpu memory pids\n")
    (own / "cgroup.subtree_control").write_text("\n")
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(cgroups, "_own_group", lambda: own)
    cgroups.base.cache_clear()
    yield own
    cgroups.base.cache_clear()


def enable(own: Path) -> None:
    """What the kernel makes of `+memory +pids`."""
    (own / "cgroup.subtree_control").write_text("memory pids\n")
    cgroups.base.cache_clear()


def test_a_server_alone_in_its_group_moves_down_and_limits_its_children(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cgroups.base() is None
    cgroups.take_over()
    assert (tree / cgroups.PLATFORM / "cgroup.procs").read_text() == str(os.getpid())
    assert set((tree / "cgroup.subtree_control").read_text().split()) == {"+memory", "+pids"}
    enable(tree)
    assert cgroups.base() == tree
    inner = tree / cgroups.PLATFORM  # where the server's worker process finds itself
    monkeypatch.setattr(cgroups, "_own_group", lambda: inner)
    cgroups.base.cache_clear()
    assert cgroups.base() == tree


@pytest.mark.parametrize("change", ["others", "controllers", "none"])
def test_a_group_that_is_not_ours_alone_is_left_as_it_is(
    tree: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "others":
        (tree / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    elif change == "controllers":
        (tree / "cgroup.controllers").write_text("cpu pids\n")
    else:
        monkeypatch.setattr(cgroups, "_own_group", lambda: None)
    cgroups.take_over()
    assert not (tree / cgroups.PLATFORM).exists()
    assert cgroups.make(1, 1) is None
    assert any("control group" in each for each in processes.weaknesses()) or processes.missing()


def test_each_grader_process_has_a_group_with_its_limits(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enable(tree)
    removed: list[Path] = []
    monkeypatch.setattr(cgroups.Group, "remove", lambda self: removed.append(self._folder))
    sandbox = Sandbox(
        "def grade(sample, item):\n    return 1.0\n",
        limits=Limits(memory_bytes=1 << 30, scratch_bytes=1 << 20),
        unconfined=True,
    )
    assert sandbox.grade({}, {}) == 1.0
    [folder] = tree.glob(f"{cgroups.PREFIX}*")
    assert (folder / "memory.max").read_text() == str((1 << 30) + (1 << 20))
    assert (folder / "pids.max").read_text() == "66"
    sandbox.close()
    assert removed == [folder]
    assert not _is_running(int((folder / "cgroup.procs").read_text()))


def test_groups_of_processes_that_are_gone_are_swept(tree: Path) -> None:
    enable(tree)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left = tree / f"{cgroups.PREFIX}{gone.pid}-0"
    ours = tree / f"{cgroups.PREFIX}{os.getpid()}-99"
    left.mkdir()
    ours.mkdir()
    cgroups.sweep()
    assert [left.exists(), ours.exists()] == [False, True]


def test_memory_that_ran_out_is_said(tree: Path) -> None:
    group = cgroups.Group(tree)
    (tree / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not group.ran_out_of_memory()
    (tree / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert group.ran_out_of_memory()


@pytest.mark.skipif(os.name != "posix", reason="sandboxes need POSIX")
@pytest.mark.parametrize("step", ["start", "watch"])
def test_a_process_that_cannot_be_started_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a machine has too many open files: the grade fails, and the next one is given."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real_start, real_watch = processes.subprocess.Popen, processes._watchdog
    started: list[Any] = []
    troubles = iter([OSError(errno.EMFILE, "Too many open files")])

    def popen(*given: Any, **options: Any) -> Any:
        if step == "start" and (error := next(troubles, None)):
            raise error
        started.append(real_start(*given, **options))
        return started[-1]

    def watchdog(pid: int) -> Any:
        if step == "watch" and (error := next(troubles, None)):
            raise error
        return real_watch(pid)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    monkeypatch.setattr(processes, "_watchdog", watchdog)
    sandbox = Sandbox("def grade(sample, item):\n    return 1.0\n", workers=1, unconfined=True)
    with pytest.raises(Fault, match=r"python_grader_server_error.*Too many open files"):
        sandbox.grade({}, {})
    assert list(tmp_path.glob(f"{cgroups.PREFIX}*")) == []
    assert all(process.returncode is not None for process in started)
    assert sandbox.grade({}, {}) == 1.0
    sandbox.close()


def test_a_full_disk_of_temporary_files_is_not_taken_for_a_full_scratch_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that starts still sees the disk outside; its own folder is mounted later."""
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_blocks=1, f_frsize=1, f_bavail=0, f_ffree=0)
    )
    starting = SimpleNamespace(_running=os.getpid, _scratch=str(tmp_path), _limits=Limits())
    assert sandbox_module._Worker._quota_is_spent(starting) is None  # type: ignore[arg-type]
