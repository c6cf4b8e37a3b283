"""How soon panels show something, what they send, and what watching costs the platform.

    python tests/benchmarks/panels.py                          # minutes; makes a file of 1 GB
    python tests/benchmarks/panels.py --rows 10000 --steps 100     # to try it

Cells are run in a real Jupyter kernel and timed from outside: from the request to execute until the
panel's view has arrived. What a browser then needs to paint it is not in the figures. Bytes are
those of all messages of the cell on the channel to the browser, the buffers included. The platform
is asked by a `Follow`, as each look of a JobMonitor does, and its processor time is read from it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pollers
import psutil
import rowfiles
from jupyter_client.manager import start_new_kernel

from rftkit import client, jobs
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store, now

FRAME = """
import os; os.environ["RFTKIT_MODE"] = "live"
import numpy as np, pandas as pd
from rftkit.widgets import RowBrowser
words = np.array("policy access token review data export privacy rotate key audit".split())
rng = np.random.default_rng(0)
frame = pd.DataFrame({
    "prompt": [" ".join(some) for some in words[rng.integers(0, 10, (ROWS, 12))]],
    "answer": words[rng.integers(0, 10, ROWS)], "topic": words[rng.integers(0, 8, ROWS)],
    "split": np.where(rng.random(ROWS) > 0.1, "train", "valid"),
    "score": rng.random(ROWS), "tokens": rng.integers(5, 500, ROWS),
    "passed": rng.random(ROWS) > 0.5, "step": rng.integers(0, 100, ROWS),
})
frame.loc[ROWS // 2, "prompt"] = "zzyzx is here"
print(f"{frame.memory_usage(deep=True).sum() / 1e6:,.0f} MB")
"""
FILE = """
import os; os.environ["RFTKIT_MODE"] = "live"
from rftkit.widgets import RowBrowser
"""
WATCH = """
import os; os.environ["RFTKIT_MODE"] = "live"
import rftkit
from rftkit.widgets import JobMonitor
client = rftkit.connect()
"""
DRAWN = """
import time
while panel._drawn.news[:2] != (len(panel.events), True):
    time.sleep(0.01)
"""
JOB_ID = "ftjob-long"


class Cells:
    """A kernel that runs cells and says how long they took and what they sent."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def run(self, code: str, words: str = "") -> str:
        """Run a cell, and print what it took if there are `words` for it; what it printed."""
        start, sent, shown, out = time.perf_counter(), 0, None, ""
        request = self._kernel.execute(code, allow_stdin=True)
        while True:
            message = self._kernel.get_iopub_msg(timeout=600)
            kind, content = message["msg_type"], message["content"]
            if kind == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            if kind.startswith(("comm_", "display_", "update_", "execute_result")):
                sent += sum(map(len, message["buffers"])) + len(self._kernel.session.pack(content))
            if kind == "display_data":
                shown = time.perf_counter() - start
            out += content.get("text", "") if kind == "stream" else ""
            is_ours = message["parent_header"].get("msg_id") == request
            if is_ours and kind == "status" and content["execution_state"] == "idle":
                break
        took = time.perf_counter() - start
        if words:
            print(f"{words}: {took if shown is None else shown:.3f} s, {sent / 1000:,.0f} kB sent")
        return out


@contextmanager
def cells() -> Iterator[Cells]:
    """A kernel of its own."""
    manager, kernel = start_new_kernel(stderr=subprocess.DEVNULL)
    try:
        yield Cells(kernel)
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)


def in_memory(folder: Path, options: Any) -> None:
    """RowBrowser over a frame: the first page, then searches."""
    with cells() as kernel:
        print(
            f"a frame of {options.rows:,} rows,",
            kernel.run(FRAME.replace("ROWS", str(options.rows))).strip(),
        )
        kernel.run("panel = RowBrowser(frame)\npanel", "first page")
        kernel.run("panel.query = 'zzyzx'; panel.wait()", "first search, at once")
        searches(kernel, {"'rotate key'": "answer=audit"})


def in_file(folder: Path, options: Any) -> None:
    """RowBrowser straight from a file."""
    path, _ = rowfiles.made(folder, options.rows)
    with cells() as kernel:
        print(f"a file of {options.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB")
        kernel.run(FILE)
        kernel.run(f"panel = RowBrowser({str(path)!r})\npanel", "first page")
        kernel.run("panel.wait()", "the whole index")
        searches(kernel, {"'topic 77'": "compliant=no"})


def searches(kernel: Cells, asked: dict[str, str]) -> None:
    """Later searches, filters and pages."""
    for query, where in asked.items():
        for text in ("'qqqqqqqq'", query):
            kernel.run(f"panel.query = {text}; panel.wait()", f"search {text}")
        kernel.run(f"panel.set(query='', where={where!r}); panel.wait()", f"first filter {where}")
        kernel.run(f"panel.set(query={query}, page=0); panel.wait()", "search and filter")
        kernel.run("panel.page = 3", "another page")


def watched(folder: Path, options: Any) -> None:
    """JobMonitor on a job with a long history; what its looks cost the platform."""
    home = Path(os.environ["RFTKIT_HOME"])
    event = real_event(home)
    seed(home, options.steps, event)
    platform = client.start_server(home, idle_minutes=None)
    try:
        with cells() as kernel:
            kernel.run(WATCH)
            kernel.run(f"panel = JobMonitor({JOB_ID!r}, client=client)\npanel", "JobMonitor")
            kernel.run(DRAWN, "the whole history, drawn")
        polled(psutil.Process(platform.pid))
    finally:
        client.stop_server(home)


def polled(platform: psutil.Process, looks: int = 200) -> None:
    """Processor time of the platform for looks as JobMonitor takes them every two seconds."""
    follow = jobs.Follow(client.connect(), JOB_ID)
    before = sum(platform.cpu_times()[:2])
    for _ in range(looks):
        follow.poll()
    each = (sum(platform.cpu_times()[:2]) - before) / looks
    print(f"one look: {1000 * each:.1f} ms of the platform; every 2 s: {each / 2:.2%} of a core")


def real_event(home: Path) -> dict[str, Any]:
    """What a short real job said about a step."""
    platform = client.start_server(home, idle_minutes=None)
    try:
        local = pollers.connect(platform.address)
        job_id = pollers.create(local, "rftkit-tiny", 4)
        pollers.seconds_of_steps(local, job_id)
        events = local.fine_tuning.jobs.list_events(job_id)
        return next(dict(each.data) for each in events if each.type == "metrics")
    finally:
        client.stop_server(home)


def seed(home: Path, num_steps: int, event: dict[str, Any]) -> None:
    """A paused job with so many steps behind it, so that looks at it go on."""
    print(f"a job of {num_steps:,} steps, {len(json.dumps(event)):,} bytes an event")
    store = Store.open(home)
    job = store.add_job(
        Job(
            id=JOB_ID, created_at=now(), status="paused", model="rftkit-tiny", seed=1,
            training_file="f", validation_file="f", method={"reinforcement": {"grader": {}}},
        )
    )  # fmt: skip
    with store.transaction():
        for step in range(num_steps + 1):
            data = event | {"step": step, "total_steps": num_steps}
            store.add_event(job.id, f"Step {step}", type="metrics", data=data)
    store.close()


PARTS: dict[str, Callable[[Path, Any], None]] = {
    "memory": in_memory,
    "file": in_file,
    "monitor": watched,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the made file here, for the next run")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="default: all")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no platform is left behind
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RFTKIT_HOME"] = f"{folder}/home"
        os.environ["no_proxy"] = "*"
        for name in options.parts or PARTS:
            PARTS[name](options.folder or Path(folder), options)


if __name__ == "__main__":
    main()
