"""`rftkit import` against faults: lists that grow, broken answers, kills; nothing lost or twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from importer_calls import Clock, contents, ids, save
from importer_stub import (
    KEY,
    Account,
    Fault,
    Stub,
    add_run,
    eval_object,
    event,
    job,
    large_account,
    small_account,
)

from rftkit.importer import verify
from rftkit.importer.dump import Dump

RFTKIT = "from rftkit.cli.app import main; main()"


def test_lists_that_grow_while_they_are_read(tmp_path: Path) -> None:
    """Newest first in front of the reader, oldest first behind it; 57 events come meanwhile."""
    account = Account(limits={"events": 20})
    account.add("/fine_tuning/jobs", job("ftjob-1", "reinforcement", "running"))
    events = "/fine_tuning/jobs/ftjob-1/events"
    account.add(events, *map(event, range(100)))
    account.add("/evals", eval_object("eval_1"))
    add_run(account, "eval_1", "evalrun_1", 250, status="in_progress")
    items = "/evals/eval_1/runs/evalrun_1/output_items"
    late = account.objects[items][200:]
    del account.objects[items][200:]

    def grow(path: str, _query: dict[str, str]) -> None:
        num_events = len(account.objects[events])
        if path == events and num_events < 157:
            account.add(events, *map(event, range(num_events, min(num_events + 7, 157))))
        if path == items and late:
            account.add(items, *late)
            late.clear()

    account.before = grow
    with Stub(account) as stub:
        save(stub, tmp_path)
    assert ids(tmp_path, "jobs/ftjob-1/events.jsonl") == [event(n)["id"] for n in range(157)]
    saved = ids(tmp_path, "evals/eval_1/runs/evalrun_1/output_items.jsonl")
    assert saved == [entry["id"] for entry in account.objects[items]]
    assert len(saved) == 250


def test_an_object_on_two_pages_is_kept_once(tmp_path: Path) -> None:
    account = Account()
    account.add("/fine_tuning/jobs", job("ftjob-1", "reinforcement", "succeeded"))
    twice = [*map(event, range(1200)), *map(event, range(190, 210))]
    account.add("/fine_tuning/jobs/ftjob-1/events", *sorted(twice, key=lambda each: each["id"]))
    with Stub(account) as stub:
        done = save(stub, tmp_path, only=["jobs"])
    assert done.counts["events"] == 1200
    assert ids(tmp_path, "jobs/ftjob-1/events.jsonl") == [event(n)["id"] for n in range(1200)]


def test_faults_of_every_kind_lose_nothing(tmp_path: Path) -> None:
    account = large_account(450, 3000)
    account.limits["events"] = 100
    account.faults = [
        Fault("/events", "status", 429, times=2, headers={"retry-after": "7"}),
        Fault("/events", "status", 500, times=3, skip=4),
        Fault("/events", "drop", times=2, skip=9),
        Fault("/output_items", "hang", 700, times=1, skip=1),
        Fault("/output_items", "garbage", times=2, skip=2),
        Fault("/output_items", "status", 503, times=2),
        Fault("/runs?", "drop"),
        Fault("/fine_tuning/jobs?", "status", 429, headers={"retry-after-ms": "20"}, skip=1),
    ]
    clock = Clock()
    with Stub(account) as stub:
        done = save(stub, tmp_path, clock=clock, timeout_seconds=0.4)
    assert done.is_complete
    assert done.counts["events"] == 3000
    assert len(set(ids(tmp_path, "jobs/ftjob-big/events.jsonl"))) == 3000
    assert len(set(ids(tmp_path, "evals/eval_big/runs/evalrun_big/output_items.jsonl"))) == 450
    assert all(fault.times == 0 for fault in account.faults)
    assert verify(tmp_path) == []


def test_retry_after_is_obeyed_and_said_even_when_long(tmp_path: Path) -> None:
    account, clock, said = small_account(), Clock(), []
    account.faults = [Fault("/files?", "status", 429, headers={"retry-after": "600"})]
    with Stub(account) as stub:
        done = save(stub, tmp_path, clock=clock, said=said)
    assert done.is_complete
    assert sum(clock.waits) == pytest.approx(600)
    assert [line for line in said if "waiting 600 s as the service asks" in line]


def test_retry_after_may_be_a_date(tmp_path: Path) -> None:
    account, clock = small_account(), Clock()
    date = formatdate(time.time() + 300, usegmt=True)
    account.faults = [Fault("/files?", "status", 429, headers={"retry-after": date})]
    with Stub(account) as stub:
        save(stub, tmp_path, clock=clock)
    assert sum(clock.waits) == pytest.approx(300, abs=30)


def test_an_import_that_breaks_off_anywhere_goes_on(tmp_path: Path) -> None:
    """Cut at each request in turn and gone on with: in the end the same bytes as in one go."""
    account = small_account()
    account.limits |= {"events": 10, "output_items": 50}
    with Stub(account) as stub:
        save(stub, tmp_path / "whole")
        num_requests = len(account.requests)
        for cut in range(4, num_requests - 6, 4):
            folder = tmp_path / f"cut-{cut}"
            account.faults = [Fault("", "status", 401, times=float("inf"), skip=cut)]
            with pytest.raises(Exception, match="refuses the key"):
                save(stub, folder)
            account.faults = []
            save(stub, folder)
            assert {name: Dump(folder).read(name) for name in contents(folder)} == {
                name: Dump(tmp_path / "whole").read(name) for name in contents(tmp_path / "whole")
            }, f"cut after {cut} requests"
            assert verify(folder) == []


def start(stub: Stub, folder: Path) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RFTKIT, "import", "--from", stub.url, "--dump", folder],
        env={**os.environ, "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )


def signal_at(account: Account, page: int, number: signal.Signals) -> list[subprocess.Popen[str]]:
    """Send `number` to the process put into the list when it asks for that page of items."""
    processes: list[subprocess.Popen[str]] = []

    def send(path: str, _query: dict[str, str]) -> None:
        pages = sum("/output_items" in each for each in account.requests)
        if "/output_items" in path and pages == page and processes:
            processes.pop().send_signal(number)

    account.before = send
    return processes


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_killed_import_goes_on(tmp_path: Path, number: signal.Signals, status: int) -> None:
    account = large_account(1500, 3000)
    account.limits["events"] = 100
    folder = tmp_path / "dump"
    with Stub(account) as stub:
        processes = signal_at(account, 7, number)
        process = start(stub, folder)
        processes.append(process)
        said = process.communicate()[0]
        assert process.returncode == status
        assert ("run the same command again" in said) == (status == 130)
        assert verify(folder) == [
            "the last import was interrupted; run it again to complete the dump"
        ]
        num_before = len(account.requests)
        account.before = None
        done = save(stub, folder)
    after = [path for path in account.requests[num_before:] if "/output_items" in path]
    assert len(after) <= 10  # the 15 pages less those of the first import
    assert (done.counts["output_items"], done.counts["events"]) == (1500, 3000)
    assert len(set(ids(folder, "jobs/ftjob-big/events.jsonl"))) == 3000
    assert len(set(ids(folder, "evals/eval_big/runs/evalrun_big/output_items.jsonl"))) == 1500
    assert not list(folder.rglob("*.part"))
    assert verify(folder) == []


def high_water_kb(pid: int) -> int:
    """Peak memory of a program itself; `ru_maxrss` also counts what pytest held at the fork."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


@pytest.mark.slow
def test_ten_thousand_items_and_a_hundred_thousand_events(tmp_path: Path) -> None:
    """All of it at once: faults, growth, two kills; memory as the kernel counted it."""
    account = large_account(10_000, 100_000)
    events = "/fine_tuning/jobs/ftjob-big/events"
    late = account.objects[events][99_000:]
    del account.objects[events][99_000:]
    account.objects["/fine_tuning/jobs"][0]["status"] = "running"
    account.faults = [
        Fault("/events", "status", 500, times=3, skip=10),
        Fault("/events", "drop", times=3, skip=30),
        Fault("/output_items", "status", 429, times=3, headers={"retry-after-ms": "300"}, skip=5),
        Fault("/output_items", "garbage", times=2, skip=9),
        Fault("/output_items", "drop", times=2, skip=40),
    ]
    with Stub(account) as stub:
        for page in (25, 60, None):
            processes = signal_at(account, page or -1, signal.SIGKILL)
            send = account.before

            def grow(path: str, query: dict[str, str], send: Any = send) -> None:
                send(path, query)
                if path == events and late:
                    account.add(events, *late[:20])
                    del late[:20]

            account.before = grow
            process = start(stub, tmp_path)
            processes.append(process)
            peak_kb = 0
            while process.poll() is None:
                peak_kb = max(peak_kb, high_water_kb(process.pid))
                time.sleep(0.02)
            assert (process.returncode == -signal.SIGKILL) == (page is not None)
            assert 0 < peak_kb < 500_000
        account.before = None
        account.add(events, *late)
        account.objects["/fine_tuning/jobs"][0] = {
            **account.objects["/fine_tuning/jobs"][0], "status": "succeeded",
        }  # fmt: skip
        done = save(stub, tmp_path)
    assert (done.counts["output_items"], done.counts["events"]) == (10_000, 100_000)
    saved = ids(tmp_path, "jobs/ftjob-big/events.jsonl")
    assert saved == [event(number)["id"] for number in range(100_000)]
    items = ids(tmp_path, "evals/eval_big/runs/evalrun_big/output_items.jsonl")
    assert len(items) == len(set(items)) == 10_000
    assert verify(tmp_path) == []
