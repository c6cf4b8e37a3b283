"""How fast `rftkit import` saves and opens an account, how much memory it takes, who has to wait.

    python tests/benchmarks/importer.py [--items 10000] [--events 100000] [--delay-ms 0]

The stub account, the importer and the platform are processes of their own; a time is that of the
whole command, start-up and final manifest included. `--delay-ms` is the remote's time to answer.
While the dump is opened, `GET /v1/models` is asked twenty times a second; CPU seconds tell what a
busy machine hides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
RFTKIT = "from rftkit.cli.app import main; main()"
sys.path.insert(0, str(TESTS))

from importer_stub import KEY  # noqa: E402


def main() -> None:
    """Save twice, open twice; print seconds, objects a second and peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--delay-ms", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "dump"
        os.environ["RFTKIT_HOME"] = str(Path(folder) / "home")
        _save(given, dump)
        _open(given, dump)


def _save(given: argparse.Namespace, dump: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items()]
    stub = subprocess.Popen(
        [sys.executable, TESTS / "importer_stub.py", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert stub.stdout is not None
        url = stub.stdout.readline().strip()
        for title in ("saved", "saved again"):
            seconds, done, used = _rftkit("import", "--from", url, "--dump", dump)
            assert done["complete"]
            _tell(title, seconds, given, used)
    finally:
        stub.terminate()
        stub.wait()


def _open(given: argparse.Namespace, dump: Path) -> None:
    from rftkit.client import connect, start_server, stop_server

    server = start_server()
    client, waits, is_done = connect(), [], threading.Event()

    def ask() -> None:
        while not is_done.is_set():
            started = time.perf_counter()
            client.models.list()
            waits.append((time.perf_counter() - started) * 1000)
            time.sleep(0.05)

    try:
        for title in ("opened", "opened again"):
            waits.clear()
            is_done.clear()
            thread = threading.Thread(target=ask)
            before = _cpu_seconds(server.pid)
            thread.start()
            seconds, _, used = _rftkit("import", dump)
            is_done.set()
            thread.join()
            _tell(title, seconds, given, used)
            waits.sort()
            print(
                f"  platform: {_cpu_seconds(server.pid) - before:.1f} CPU s, peak "
                f"{_peak_mb(server.pid):,.0f} MB; GET /v1/models meanwhile: median "
                f"{waits[len(waits) // 2]:.0f} ms, 95 % {waits[int(len(waits) * 0.95)]:.0f} ms, "
                f"longest {waits[-1]:.0f} ms of {len(waits)}"
            )
    finally:
        stop_server()


def _rftkit(*words: Any) -> tuple[float, dict[str, Any], resource.struct_rusage]:
    """Seconds of a command, what it printed, and what it used."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", RFTKIT, *map(str, words), "--json"],
        env={**os.environ, "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # of this child alone
    assert status == 0
    return time.perf_counter() - started, json.loads(printed), used


def _tell(
    title: str, seconds: float, given: argparse.Namespace, used: resource.struct_rusage
) -> None:
    total = given.items + given.events
    print(
        f"{title}: {seconds:.1f} s, {total / seconds:,.0f}/s ({given.items:,} output items, "
        f"{given.events:,} events), {used.ru_utime + used.ru_stime:.1f} CPU s, "
        f"peak {used.ru_maxrss / 1000:,.0f} MB"
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


if __name__ == "__main__":
    main()
