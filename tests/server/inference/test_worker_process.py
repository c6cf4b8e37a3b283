"""The connection to the worker process: a small script takes the place of the worker."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rftkit.server.inference import platform as platform_module
from rftkit.server.inference import worker_process
from rftkit.server.inference.platform import CRASHES, Platform
from rftkit.server.inference.worker_process import ChatError, Hung, WorkerProcess
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store, new_id, now
from rftkit.server.training.journal import Journal

WORKER = r"""
import json, os, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
for line in sys.stdin:
    got = json.loads(line)
    print("got", line.strip(), file=sys.stderr, flush=True)
    if got["kind"] != "chat":
        continue
    n, word = got["id"], got["request"]["word"]
    if word == "die":
        print("out of memory, says the worker", file=sys.stderr, flush=True)
        os._exit(9)
    elif word == "refuse":
        say(id=n, error={"status": 400, "message": "no", "type": "t", "param": "p", "code": "c"})
    elif word == "babble":
        print("this is not the protocol", flush=True)
        say(id=n, done={"word": word})
    elif word == "hang":
        print(json.dumps({"at": {"what": "loading it", "seconds": 0.2, "job": None}}), flush=True)
    elif word == "load":
        for at in ({"what": "loading it", "seconds": 0.2, "job": None}, None):
            print(json.dumps({"at": at}), flush=True)
        time.sleep(0.4)
        say(id=n, done={"word": word})
    elif word != "wait":
        say(id=n, delta={"index": 0, "text": "x" * int(got["request"].get("size", 1))})
        say(id=n, done={"word": word, "pid": os.getpid()})
"""


def with_link(
    tmp_path: Path, body: Callable[[WorkerProcess, Path], Coroutine[Any, Any, None]], **options: Any
) -> None:
    script, log = tmp_path / "worker.py", tmp_path / "logs" / "worker.log"
    script.write_text(WORKER)

    async def run() -> None:
        link = WorkerProcess([sys.executable, str(script)], log, **options)
        await link.start()
        try:
            await body(link, log)
        finally:
            await link.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


async def ask(link: WorkerProcess, word: str, **rest: Any) -> list[dict[str, Any]]:
    return [message async for message in link.chat({"word": word, **rest})]


def test_answers_find_their_askers(tmp_path: Path) -> None:
    async def body(link: WorkerProcess, log: Path) -> None:
        answers = await asyncio.gather(*(ask(link, f"w{n}") for n in range(20)))
        assert [answer[-1]["done"]["word"] for answer in answers] == [f"w{n}" for n in range(20)]
        big = await ask(link, "big", size=2_000_000)
        assert len(big[0]["delta"]["text"]) == 2_000_000

    with_link(tmp_path, body)


def test_a_refusal_is_raised(tmp_path: Path) -> None:
    async def body(link: WorkerProcess, log: Path) -> None:
        with pytest.raises(ChatError) as caught:
            await ask(link, "refuse")
        error = caught.value
        assert (error.status, error.type, error.param, error.code) == (400, "t", "p", "c")

    with_link(tmp_path, body)


def test_a_worker_that_dies_is_replaced_and_its_askers_are_told(tmp_path: Path) -> None:
    deaths: list[int] = []

    async def body(link: WorkerProcess, log: Path) -> None:
        waiting = asyncio.create_task(ask(link, "wait"))
        await asyncio.sleep(0)
        for task in (asyncio.create_task(ask(link, "die")), waiting):
            with pytest.raises(ChatError, match="out of memory, says the worker") as caught:
                await task
            assert caught.value.status == 503
        await comes_back(link)

    with_link(tmp_path, body, on_death=deaths.append)
    assert deaths == [9]


async def comes_back(link: WorkerProcess) -> None:
    while True:
        with contextlib.suppress(ChatError):
            assert (await ask(link, "back"))[-1]["done"]["word"] == "back"
            return
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("fault", ["no log folder", "a full disk", "no descriptors", "on_death"])
def test_the_watcher_outlives_every_fault_and_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(worker_process, "PAUSES", (0.01,))
    has_fault = False
    spawn = asyncio.create_subprocess_exec

    async def no_descriptors(*command: Any, **options: Any) -> Any:
        if has_fault:
            raise OSError(24, "Too many open files")
        return await spawn(*command, **options)

    def cannot_record(status: int) -> None:
        raise sqlite3.OperationalError("database is locked")

    async def body(link: WorkerProcess, log: Path) -> None:
        nonlocal has_fault
        assert link.trouble() is None
        if fault == "no log folder":
            shutil.rmtree(log.parent)
        elif fault == "a full disk":
            shutil.rmtree(log.parent)
            log.parent.write_text("a file where the folder should be")
        has_fault = fault == "no descriptors"
        with pytest.raises(ChatError) as caught:
            await ask(link, "die")
        assert caught.value.code == "worker_died"
        if has_fault:
            while "Too many open files" not in (link.trouble() or ""):
                await asyncio.sleep(0.01)
            with pytest.raises(ChatError, match=r"did not start: .*Too many open files"):
                await ask(link, "back")
            has_fault = False
        await comes_back(link)
        assert link.trouble() is None

    if fault == "no descriptors":
        monkeypatch.setattr(asyncio, "create_subprocess_exec", no_descriptors)
    options = {"on_death": cannot_record} if fault == "on_death" else {}
    with_link(tmp_path, body, **options)


def test_a_question_is_asked_again_when_the_worker_dies_and_the_one_to_blame_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "PAUSES", (0.01,))
    monkeypatch.setattr(platform_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(platform_module, "to_json", lambda request: request)

    async def body(link: WorkerProcess, log: Path) -> None:
        platform = Platform(store=Store.open(None), worker=link)
        words: list[Any] = [{"word": f"w{n}"} for n in range(6)] + [{"word": "die"}]
        asked = [platform.complete_surely(word, lambda _: True) for word in words]
        *good, bad = await asyncio.gather(*asked, return_exceptions=True)
        assert [answer["word"] for answer in good] == [word["word"] for word in words[:-1]]
        assert isinstance(bad, ChatError)
        with pytest.raises(ChatError):
            await platform.complete_surely({"word": "die"}, lambda _: False)  # type: ignore[arg-type]
        platform.store.close()

    with_link(tmp_path, body)


def test_a_question_outlives_several_deaths_that_it_did_not_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Something outside kills the worker again and again, five times while this one is asked."""
    monkeypatch.setattr(platform_module, "RETRY_SECONDS", 0.0)
    deaths = iter([worker_process.DIED] * 5)
    platform = Platform(store=Store.open(None), worker=None)  # type: ignore[arg-type]

    async def complete(request: Any) -> Any:
        if (code := next(deaths, None)) is not None:
            raise ChatError("gone", code=code)
        return "answer"

    monkeypatch.setattr(platform, "complete", complete)
    request: Any = None
    assert asyncio.run(platform.complete_surely(request, lambda _: True)) == "answer"
    platform.store.close()


def test_a_server_that_stops_ends_chats_in_words(tmp_path: Path) -> None:
    async def body(link: WorkerProcess, log: Path) -> None:
        waiting = asyncio.create_task(ask(link, "wait"))
        await asyncio.sleep(0)
        link.end_chats("the server is stopping")
        with pytest.raises(ChatError, match="the server is stopping") as caught:
            await waiting
        assert caught.value.status == 503

    with_link(tmp_path, body)


def test_leaving_early_aborts(tmp_path: Path) -> None:
    async def body(link: WorkerProcess, log: Path) -> None:
        task = asyncio.create_task(ask(link, "wait"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        link.wake()
        await asyncio.sleep(0)
        await ask(link, "done")
        said = log.read_text()
        assert '{"kind": "abort", "id": 1}' in said
        assert '{"kind": "wake"}' in said

    with_link(tmp_path, body)


def test_babble_on_stdout_is_logged_and_harmless(tmp_path: Path) -> None:
    async def body(link: WorkerProcess, log: Path) -> None:
        assert (await ask(link, "babble"))[-1]["done"]["word"] == "babble"
        assert "not an answer: this is not the protocol" in log.read_text()

    with_link(tmp_path, body)


def test_grades_within_one_step_are_progress(home: Path) -> None:
    store = Store.open(home)
    job = add_job(store)
    platform = Platform(store=store, worker=None, home=home)  # type: ignore[arg-type]
    journal = Journal(home / "jobs" / job.id)
    for number in range(3 * CRASHES):
        journal.add_grade("steps", 1, (number, 0), ([1], {"reward": 1.0}))
        platform.worker_died(-9)
    for number in range(CRASHES - 2):  # given again: the same grades are no progress
        journal.add_grade("steps", 1, (number, 0), ([1], {"reward": 1.0}))
        platform.worker_died(-9)
    assert store.job(job.id).status == "running"
    platform.worker_died(-9)
    assert store.job(job.id).status == "paused"
    store.close()


def test_a_job_with_records_that_keeps_killing_the_worker_is_paused(home: Path) -> None:
    """Its records would be lost for good if it failed, and the cause may be another program."""
    store = Store.open(home)
    job = add_job(store)
    platform = Platform(store=store, worker=None, home=home)  # type: ignore[arg-type]
    Journal(home / "jobs" / job.id).add_grade("steps", 1, (0, 0), ([1], {"reward": 1.0}))
    for _ in range(2):
        for _ in range(CRASHES):
            assert store.job(job.id).status == "running"
            platform.worker_died(-9)
        assert store.job(job.id).status == "paused"
        [event, *_], _ = store.events(job.id, limit=1)
        assert "died 5 times in a row" in event.message
        assert "The job is paused, and its records are kept" in event.message
        store.resume_job(job.id)
        store.update_job(job.id, status="running")
    store.close()


def add_job(store: Store) -> Job:
    return store.add_job(
        Job(
            id=new_id("ftjob-"), created_at=now(), status="running", model="m", seed=1,
            training_file="f", validation_file="f", method={},
        )
    )  # fmt: skip


def test_a_job_that_keeps_killing_the_worker_fails() -> None:
    store = Store.open(None)
    job = add_job(store)
    platform = Platform(store=store, worker=None)  # type: ignore[arg-type]
    for _ in range(CRASHES - 1):
        platform.worker_died(-9)
    store.add_event(job.id, "progress")
    for _ in range(CRASHES - 1):
        platform.worker_died(-9)
    assert store.job(job.id).status == "running"
    platform.worker_died(-9)
    failed = store.job(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "worker_crashed"
    assert f"rftkit job rerun {job.id}" in failed.error["message"]
    store.close()


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    async def body(link: WorkerProcess, log: Path) -> None:
        assert await ask(link, "load")  # work that was done in time
        with pytest.raises(ChatError, match="loading it took longer than 0 seconds"):
            await ask(link, "hang")
        while True:
            with contextlib.suppress(ChatError):
                if await ask(link, "again"):
                    break
            await asyncio.sleep(0.05)
        assert link.hung is None

    with_link(tmp_path, body)


def test_only_the_job_that_hangs_the_worker_fails(tmp_path: Path) -> None:
    store = Store.open(None)
    jobs = [add_job(store), add_job(store)]
    link = WorkerProcess([], tmp_path / "log")
    platform = Platform(store=store, worker=link)
    link.hung = Hung("loading hostile", 1.0, job=jobs[0].id)
    platform.worker_died(-9)
    assert [store.job(job.id).status for job in jobs] == ["failed", "running"]
    error = store.job(jobs[0].id).error
    assert error is not None
    assert "loading hostile took longer than 1 seconds" in error["message"]
    store.close()
