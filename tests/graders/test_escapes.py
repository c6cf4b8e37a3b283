"""Ways out of the sandbox. Each must end as a flagged failure, and the next grade must work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rftkit.errors import PlatformError
from rftkit.graders import confine, processes
from rftkit.graders.outcome import Fault
from rftkit.graders.sandbox import Limits, Sandbox
from rftkit.graders.source import executes_answers

pytestmark = pytest.mark.skipif(
    confine.missing() is not None, reason=f"cannot isolate here: {confine.missing()}"
)

# `item` holds: secret (a file of ours), folder (its folder), parent (our pid), project, other
# (another grader's scratch folder). A body that returns has escaped.
FILES = {
    "read a system file": "return len(open('/etc/passwd').read())",
    "read a secret": "return len(open(item['secret']).read())",
    "list a folder": "return len(os.listdir(item['folder']))",
    "read the project": "return len(open(item['project'] + '/rftkit/errors.py').read())",
    "read another grader's scratch": "return len(os.listdir(item['other']))",
    "write a file": "return open(item['folder'] + '/new', 'w').write('x')",
    "append to a secret": "return open(item['secret'], 'a').write('x')",
    "remove a secret": "os.remove(item['secret'])",
    "rename a secret": "os.rename(item['secret'], 'mine')",
    "truncate a secret": "os.truncate(item['secret'], 0)",
    "truncate by opening": "os.open(item['secret'], os.O_RDONLY | os.O_TRUNC)",
    "change a mode": "os.chmod(item['secret'], 0o777)",
    "change an owner": "os.chown(item['secret'], 1, 1)",
    "change times": "os.utime(item['secret'], (1, 1))",
    "set an attribute": "os.setxattr(item['secret'], 'user.x', b'1')",
    "symlink": "os.symlink(item['secret'], 'link'); return len(open('link').read())",
    "symlinked folder": "os.symlink(item['folder'], 'd'); return len(os.listdir('d'))",
    "hard link": "os.link(item['secret'], 'hard'); return len(open('hard').read())",
    "dot dot": "return len(os.listdir('../..'))",
    "own environment in /proc": "return len(open('/proc/self/environ', 'rb').read())",
    "environment of the parent": "return len(open(f'/proc/{item[\"parent\"]}/environ').read())",
    "memory of the parent": "open(f'/proc/{item[\"parent\"]}/mem', 'r+b').read(1)",
    "root through /proc": "return len(os.listdir('/proc/self/root/etc'))",
    "memory device": "open('/dev/mem', 'rb').read(1)",
    "terminal": "open('/dev/tty', 'w').write('x')",
    "plant a module": "open(os.__file__.replace('os.py', 'evil.py'), 'w').write('x')",
    "make a device": "os.mknod('dev', 0o20666, os.makedev(1, 1))",
    "change root": "os.chroot('.')",
}
ENVIRONMENT = {
    "keys in the environment": "return float(os.environ['OPENAI_API_KEY'] != '')",
    "home of the user": "return float(os.environ['HOME'] == item['home'] or 1 / 0)",
}
NETWORK = {
    "tcp to loopback": "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
    "tcp without a name": "import socket; socket.socket().connect(('127.0.0.1', 22))",
    "dns": "import socket; socket.getaddrinfo('example.com', 80)",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "datagram pair": "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "listen": "import socket; socket.create_server(('127.0.0.1', 0))",
    "http": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1/')",
}
PROCESSES = {
    "fork bomb": "while True: os.fork()",
    "vfork and exec": "import subprocess; subprocess.run(['/bin/true'])",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "exec": "os.execv('/bin/true', ['true'])",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "probe the parent": "os.kill(item['parent'], 0)",
    "kill the parent": "os.kill(item['parent'], 9)",
    "kill everybody": "os.kill(-1, 9)",
    "kill the group": "os.killpg(0, 9)",
    "signal by pidfd": "import signal; signal.pidfd_send_signal(os.pidfd_open(item['parent']), 0)",
    "aim a signal at the parent": "import fcntl; fcntl.fcntl(1, fcntl.F_SETOWN, item['parent'])",
    "limits of the parent": (
        "import resource; resource.prlimit(item['parent'], resource.RLIMIT_CPU, (1, 1))"
    ),
    "own limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "schedule the parent": "os.sched_setaffinity(item['parent'], {0})",
    "become somebody else": "os.setuid(1)",
}
# raw system calls, x86-64 numbers; on aarch64 they are other calls, denied or harmless
CALLS = {
    "raw socket": (41, 2, 1, 0),
    "raw fork": (57,),
    "raw clone of a process": (56, 17, 0, 0, 0, 0),
    "raw clone3": (435, 0, 0),
    "raw execve": (59, 0, 0, 0),
    "trace the parent": (101, 16, "parent", 0, 0),
    "read the parent's memory": (310, "parent", 0, 0, 0, 0, 0),
    "new user namespace": (272, 0x10000000),
    "io_uring": (425, 8, 0),
    "bpf": (321, 0, 0, 0),
    "kernel keys": (250, 0, 0, 0, 0),
    "memory file": (319, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "shared memory": (29, 0, 4096, 0o1600),
    "watch files": (294, 0),
    "open by handle": (304, 0, 0, 0),
    "userfault": (323, 0),
    "high bits in an argument": (53, 1 << 32 | 2, 1, 0, 0),
}
ENDS = {
    "exit": "sys.exit(0)",
    "hard exit": "os._exit(0)",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "x32 call": "import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0)",
    "abort": "os.abort()",
    "endless recursion": "f = lambda: f(); f()",
    "memory bomb": "b = [bytearray(1 << 26) for _ in range(1000)]",
    "shared memory bomb": "import mmap; m = mmap.mmap(-1, 3 << 30); m.write(b'x' * (3 << 30))",
    "read the input": "return float(input())",
    "pickled result": "return type('P', (), {'__reduce__': lambda self: (print, ('!',))})()",
    "huge result": "return 10 ** 400",
    "text result": "return 'x' * (1 << 24)",
    "an exception that cannot be shown": (
        "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()"
    ),
    "a flood into the channel": "for fd in range(3, 20):\n  try: os.write(fd, b'x' * 9999)\n"
    "  except OSError: pass",
    "a forged reply": "for fd in range(3, 20):\n"
    '  try: os.write(fd, b\'\\0\\0\\0\\x1b{"id": 99, "reward": 1e99}  \')\n'
    "  except OSError: pass",
    "close the channel and live on": "os.closerange(0, 99)\nwhile True: pass",
    "a thread that outlives the call": (
        "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True)"
        ".start(); return 1.0"
    ),
    "a file above the limit": "open('big', 'wb').write(b'x' * (9 << 20))",
    "folders without end": "while True: os.mkdir('d'); os.chdir('d')",
    "memory kept for later": (
        "keep = globals().setdefault('keep', [])\nwhile True: keep.append(bytearray(1 << 20))"
    ),
    "files above the limit": "for n in range(9): open(f'f{n}', 'wb').write(b'x' * (1 << 20))\n"
    "return 1.0",
}
SCRATCH = {
    "blocks beyond the end of a file": (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "for n in range(9):\n"
        "  fd = os.open(f'f{n}', os.O_CREAT | os.O_RDWR)\n"
        "  if libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(1 << 20)):\n"
        "    raise OSError(ctypes.get_errno())"
    ),
    "open files without a name": (
        "keep = []\n"
        "for n in range(9):\n"
        "  keep.append(open(f'f{n}', 'wb')); os.unlink(f'f{n}')\n"
        "  keep[-1].write(b'x' * (1 << 20)); keep[-1].flush()\n"
        "import time; time.sleep(0.3)"
    ),
    "mapped files without a name": (
        "import mmap, time; keep = []\n"
        "for n in range(9):\n"
        "  f = open(f'f{n}', 'w+b'); f.write(b'x' * (1 << 20)); f.flush()\n"
        "  keep.append(mmap.mmap(f.fileno(), 4096)); f.close(); os.unlink(f'f{n}')\n"
        "time.sleep(0.3)"
    ),
    "a folder that cannot be read": (
        "import time\n"
        "for n in range(9):\n"
        "  os.mkdir(f'd{n}', 0o300); open(f'd{n}/f', 'wb').write(b'x' * (1 << 20))\n"
        "time.sleep(0.3)"
    ),
    "many small files": "for n in range(30_000): open(f'f{n}', 'w').close()",
    "an error that is hidden": (
        "import time\n"
        "for n in range(9):\n"
        "  try: open(f'f{n}', 'wb').write(b'x' * (1 << 20))\n"
        "  except OSError: pass\n"
        "time.sleep(0.3)"
    ),
}
HANGS = {
    "hang": "while True: pass",
    "sleep": "import time; time.sleep(99)",
    "hang and ignore signals": "import signal\nfor s in range(1, 32):\n"
    "  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\n"
    "signal.alarm(0)\nwhile True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "hang in C": "import re; re.match('(a+)+b', 'a' * 40)",
    "stop itself": "import signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "a reply that comes byte by byte": (
        "import time\nfor data in [b'\\0\\0\\x99\\0'] + [b' '] * 9999:\n"
        "  for fd in range(3, 20):\n    try: os.write(fd, data)\n    except OSError: pass\n"
        "  time.sleep(0.01)"
    ),
    "flood the output": "while True: print('x' * 1000)",
    "thread bomb": "import threading, time\nthreading.stack_size(32768)\n"
    "while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
}


def escape(body: str, item: dict, tmp_path: Path, per_grade: bool = False, **limits: float) -> str:
    """Run a body, check that a call after it works, return the details of its failure."""
    body = body.replace("\n", "\n        ")
    source = (
        "import os, sys\n"
        "def grade(sample, item):\n"
        "    if item.get('escape'):\n"
        f"        {body}\n"
        "        return 1.0\n"
        "    return 0.5\n"
    )
    box = Sandbox(
        source,
        workers=1,
        per_grade=per_grade,
        limits=Limits(
            **({"scratch_bytes": 4 << 20, "memory_bytes": 1 << 29, "seconds": 20} | limits)
        ),
    )
    try:
        with pytest.raises(Fault) as caught:
            box.grade({"output_text": ""}, item | {"escape": True})
        assert caught.value.flag == "python_grader_runtime_error"
        assert box.grade({"output_text": ""}, {}) == 0.5
    finally:
        box.close()
    return caught.value.details


@pytest.fixture
def item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    secret, other = tmp_path / "secret", tmp_path / "other-scratch"
    secret.write_text("secret")
    secret.chmod(0o666)
    tmp_path.chmod(0o777)
    other.mkdir()
    return {
        "secret": str(secret),
        "folder": str(tmp_path),
        "other": str(other),
        "project": str(Path(__file__).parents[2]),
        "parent": os.getpid(),
        "home": os.environ.get("HOME", "/root"),
    }


@pytest.mark.parametrize("name", FILES | ENVIRONMENT | NETWORK | PROCESSES)
def test_denied(name: str, item: dict, tmp_path: Path) -> None:
    body = (FILES | ENVIRONMENT | NETWORK | PROCESSES)[name]
    details = escape(body, item, tmp_path)
    assert 'File "grader.py", line 4' in details
    assert Path(item["secret"]).read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other-scratch", "secret"]


@pytest.mark.parametrize("name", CALLS)
def test_denied_system_call(name: str, item: dict, tmp_path: Path) -> None:
    args = ", ".join("item['parent']" if a == "parent" else f"c_long({a})" for a in CALLS[name])
    body = (
        "from ctypes import CDLL, c_long, get_errno; libc = CDLL(None, use_errno=True)\n"
        f"result = libc.syscall({args})\n"
        "if result == -1: raise OSError(get_errno(), os.strerror(get_errno()))"
    )
    details = escape(body, item, tmp_path)
    if os.uname().machine == "x86_64":
        wanted = "Function not implemented" if name == "raw clone3" else "Operation not permitted"
        assert wanted in details


@pytest.mark.parametrize("name", ENDS)
def test_ends_only_itself(name: str, item: dict, tmp_path: Path) -> None:
    assert escape(ENDS[name], item, tmp_path)


@pytest.fixture(params=[True, False], ids=["mounted", "counted"])
def mounted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to limit the scratch folder, where this machine has both."""
    can_mount: bool = processes.can_mount()
    if request.param and not can_mount:
        pytest.skip("no mount namespace here")
    monkeypatch.setattr(processes, "can_mount", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("per_grade", [False, True], ids=["shared", "per_grade"])
@pytest.mark.parametrize("name", SCRATCH)
def test_the_scratch_folder_has_an_end(
    name: str, per_grade: bool, mounted: bool, item: dict, tmp_path: Path
) -> None:
    assert escape(SCRATCH[name], item, tmp_path, per_grade=per_grade)


def test_nothing_runs_between_two_grades() -> None:
    source = (
        "import threading, time\n"
        "ticks = []\n"
        "def tick():\n"
        "    while True: ticks.append(time.monotonic()); time.sleep(0.005)\n"
        "threading.Thread(target=tick, daemon=True).start()\n"
        "def grade(sample, item):\n"
        "    return max(b - a for a, b in zip(ticks, ticks[1:] + [time.monotonic()]))\n"
    )
    box = Sandbox(source, workers=1)
    box.grade({}, {})
    time.sleep(1.0)
    assert box.grade({}, {}) > 0.8
    box.close()


@pytest.mark.parametrize("per_grade", [False, True], ids=["shared", "per_grade"])
@pytest.mark.parametrize("confined", [True, False], ids=["confined", "unconfined"])
def test_a_grader_does_not_outlive_a_killed_platform(
    per_grade: bool, confined: bool, tmp_path: Path
) -> None:
    source = (
        "import signal\n"
        "def grade(sample, item):\n"
        "    signal.alarm(0)\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n"
        "    while True: pass\n"
    )
    program = (
        "from rftkit.graders.sandbox import Sandbox\n"
        f"box = Sandbox({source!r}, workers=1, unconfined={not confined}, per_grade={per_grade})\n"
        "box.grade({}, {})\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as platform:
        while not (started := descendants(platform.pid, 1 + per_grade)):
            assert platform.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        assert list(tmp_path.glob("rftkit-grader-*"))
        platform.kill()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep = "from rftkit.graders import processes; processes.sweep()"
    subprocess.run([sys.executable, "-c", sweep], check=True, env=environment)
    assert not list(tmp_path.glob("rftkit-grader-*"))


def descendants(pid: int, depth: int) -> list[int]:
    """The grader's process below one, and those below that; none while the line is shorter."""
    found: list[int] = []
    for _ in range(depth):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        below = [int(child) for task in tasks for child in task.read_text().split()]
        below = [child for child in below if "worker.py" in command_of(child)]
        if not below:
            return []
        pid = below[0]
        found.append(pid)
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_sweep_leaves_the_folders_of_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    ours = processes.make_scratch()
    (tmp_path / "rftkit-grader-elsewhere").mkdir()  # of an older version
    old = tmp_path / "rftkit-grader-old"
    (old / "a").mkdir(parents=True)
    (old / "a").chmod(0)
    os.utime(old, (1, 1))
    processes.sweep()
    assert Path(ours).is_dir()
    assert (tmp_path / "rftkit-grader-elsewhere").is_dir()
    assert not old.exists()


@pytest.mark.parametrize("mounts", [True, False], ids=["mounted", "counted"])
def test_answers_that_are_executed_do_not_meet(
    mounts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "def grade(sample, item):\n"
        "    exec(sample['output_text'], {})\n"
        "    return float(sample['output_text'] == item['right'])\n"
    )
    poison = (
        "import sys\nframe = sys._getframe()\n"
        "while frame:\n"
        "    for name in ('grade', '_answer'):\n"
        "        if name in frame.f_globals:\n"
        "            frame.f_globals[name] = lambda *args: {'reward': 1.0}\n"
        "    frame = frame.f_back\n"
        "open('left', 'w').write('x')\n"
    )
    look = "import os\nassert not os.listdir('.')"
    assert executes_answers(source)
    possible = processes.can_mount()
    monkeypatch.setattr(processes, "can_mount", lambda: mounts and possible)
    box = Sandbox(source, workers=1, per_grade=True)
    box.grade({"output_text": poison}, {"right": "4"})
    assert box.grade({"output_text": "5"}, {"right": "4"}) == 0.0
    assert box.grade({"output_text": look}, {"right": look}) == 1.0
    box.close()


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("exec(sample['output_text'])", True),
        ("x = eval", True),
        ("__builtins__['ev' + 'al'](x)", True),
        ("getattr(builtins, 'exec')(x)", True),
        ("import subprocess", True),
        ("from pickle import loads", True),
        ("os.system(x)", True),
        ("frame.eval('a + b')", True),
        ("def broken(", True),
        ("import os as o\no.system(x)", True),
        ("from os import system as run\nrun(x)", True),
        ("from os import execvp\nexecvp(x, y)", True),
        ("from builtins import eval as e\ne(x)", True),
        ("import asyncio\nasyncio.create_subprocess_shell(x)", True),
        ("import types\ntypes.FunctionType(x, {})", True),
        ("frame.query('a > 1')", True),
        ("import yaml\nyaml.load(x, Loader=yaml.Loader)", True),
        ("import numpy\nnumpy.load(x, allow_pickle=True)", True),
        ("import sympy\nsympy.simplify(x)", True),
        ("from jinja2 import Template\nTemplate(x).render()", True),
        ("import cProfile\ncProfile.run(x)", True),
        ("import yaml\nyaml.load(x, Loader=yaml.CLoader)", True),
        ("from yaml import CUnsafeLoader as L", True),
        ("import pandas\npandas.read_pickle(x)", True),
        ("import sqlite3\nbase = sqlite3.connect(':memory:')", True),
        ("import duckdb\nduckdb.sql(x)", True),
        ("import quickjs", True),
        ("import yaml\nyaml.safe_load(x)", False),
        ("system = [m for m in x if m['role'] == 'system']", False),
        ("import platform\nplatform.system()", False),
        ("cursor.execute(x)", False),
        ("import re\nre.compile('a')", False),
        ("import ast\nast.literal_eval('1')", False),
        ("import json, math", False),
    ],
)
def test_sources_that_may_execute_answers_are_known(source: str, wanted: bool) -> None:
    assert executes_answers(source) is wanted


@pytest.mark.parametrize("name", HANGS)
def test_killed(name: str, item: dict, tmp_path: Path) -> None:
    said = escape(HANGS[name], item, tmp_path, seconds=0.4)
    # A bomb of threads may meet the limit on their number before the one on time.
    assert "killed" in said or (name == "thread bomb" and "threads were still running" in said)


def test_an_interrupt_costs_the_process_not_the_next_grade() -> None:
    box = Sandbox("def grade(sample, item):\n    while item: pass\n    return 1.0", workers=1)
    assert box.grade({}, 0) == 1.0

    def interrupt() -> None:
        while not box._busy:
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        box.grade({}, 1)
    thread.join()
    assert box.grade({}, 0) == 1.0
    box.close()


def test_every_process_hashes_alike() -> None:
    source = "def grade(sample, item):\n    return hash('abc') % 1000"
    boxes = [Sandbox(source), Sandbox(source)]
    assert len({box.grade({}, {}) for box in boxes}) == 1
    for box in boxes:
        box.close()


def test_closing_now_does_not_wait() -> None:
    box = Sandbox("def grade(sample, item):\n    while True: pass")
    failures: list[Fault] = []

    def grade() -> None:
        try:
            box.grade({}, {})
        except Fault as fault:
            failures.append(fault)

    thread = threading.Thread(target=grade)
    thread.start()
    while not box._busy:
        time.sleep(0.01)
    box.close(now=True)
    thread.join(30)
    assert [fault.flag for fault in failures] == ["python_grader_runtime_error"]


def test_scratch_is_usable_and_removed() -> None:
    source = (
        "import tempfile, os, shutil\n"
        "def grade(sample, item):\n"
        "    os.makedirs('a/b', exist_ok=True); open('a/b/c', 'w').write('hello')\n"
        "    os.rename('a/b/c', 'a/d'); shutil.rmtree('a/b')\n"
        "    with tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').write('y')\n"
        "    return float(open('a/d').read() == 'hello' and os.getcwd() == os.environ['HOME'])\n"
    )
    before = set(Path(processes.tempfile.gettempdir()).glob("rftkit-grader-*"))
    box = Sandbox(source, workers=1)
    assert box.grade({}, {}) == 1.0
    box.close()
    assert set(Path(processes.tempfile.gettempdir()).glob("rftkit-grader-*")) <= before


def test_ordinary_libraries_work() -> None:
    source = (
        "import asyncio, collections, datetime, decimal, json, re, statistics, zoneinfo\n"
        "import concurrent.futures, numpy, rapidfuzz\n"
        "async def half(): return 0.5\n"
        "def grade(sample, item):\n"
        "    with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
        "        total = sum(pool.map(float, range(4)))\n"
        "    matrix = numpy.ones((50, 50)) @ numpy.ones((50, 50))\n"
        "    print('hello')\n"
        "    return asyncio.run(half()) + total + matrix[0, 0]\n"
    )
    box = Sandbox(source, workers=1)
    assert [box.grade({}, {}) for _ in range(3)] == [56.5] * 3
    box.close()


def test_a_process_that_cannot_start_is_a_server_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    box = Sandbox("def grade(sample, item): return 1.0")
    with pytest.raises(Fault) as caught:
        box.grade({}, {})
    assert caught.value.flag == "python_grader_server_error"
    assert "exit status 1" in caught.value.errors["python_grader_server_error_type"]


def test_no_isolation_no_grader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rftkit.graders.sandbox.missing", lambda: "this test says so")
    with pytest.raises(PlatformError, match="RFTKIT_UNCONFINED_GRADERS=1"):
        Sandbox("def grade(sample, item): return 1.0")
    box = Sandbox("def grade(sample, item): return 1.0", unconfined=True)
    assert box.grade({}, {}) == 1.0
    box.close()


def test_filter_has_room_and_every_architecture() -> None:
    for machine in ("x86_64", "aarch64"):
        program = confine._program(machine, 1)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096
