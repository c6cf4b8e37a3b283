"""`rftkit import --dump` against a stub of the service: what is saved, and what is not again."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from importer_stub import (
    KEY,
    Account,
    Fault,
    Stub,
    add_run,
    checkpoint,
    eval_object,
    event,
    file_object,
    job,
    large_account,
    small_account,
)

from rftkit.importer import Origin, Remote, Summary, import_account, verify
from rftkit.importer.dump import Dump


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def save(
    stub: Stub, folder: Path, *, clock: Clock | None = None, said: list[str] | None = None,
    timeout_seconds: float = 5.0, **options: Any,
) -> Summary:  # fmt: skip
    clock, said = clock or Clock(), [] if said is None else said
    remote = Remote(
        Origin(stub.url, KEY),
        say=said.append,
        timeout_seconds=timeout_seconds,
        clock=clock,
        sleep=clock.sleep,
    )
    try:
        return import_account(remote, folder, say=said.append, **options)
    finally:
        remote.close()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, packed or not."""
    with Dump(folder).open(name) as file:
        return [json.loads(line) for line in file]


def ids(folder: Path, name: str) -> list[str]:
    return [entry["id"] for entry in lines(folder, name)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dump but the manifest, which holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_every_object_is_saved_once(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        done = save(stub, tmp_path / "dump")
    assert done.is_complete
    assert not done.missing
    assert done.counts == {
        "evals": 2, "runs": 3, "output_items": 134, "files": 3, "file_bytes": 490363,
        "graders": 3, "jobs": 3, "events": 37, "checkpoints": 2,
    }  # fmt: skip
    assert verify(tmp_path / "dump") == []
    assert ids(tmp_path / "dump", "jobs/ftjob-rft/events.jsonl") == [
        event(number)["id"] for number in range(30)
    ]
    assert (
        len(set(ids(tmp_path / "dump", "evals/eval_auto/runs/evalrun_5/output_items.jsonl"))) == 130
    )


def test_responses_are_kept_byte_for_byte(tmp_path: Path) -> None:
    account = small_account()
    with Stub(account) as stub:
        save(stub, tmp_path)
    kept = {
        gzip.decompress(body) if name.endswith(".gz") else body
        for name, body in contents(tmp_path).items()
    }
    answers = {name: body for name, body in account.bodies.items() if "limit=1&" not in name + "&"}
    assert len(answers) > 25
    assert not [name for name, body in answers.items() if body not in kept]


def test_pages_and_contents_that_are_large_are_packed(tmp_path: Path) -> None:
    account = small_account()
    with Stub(account) as stub:
        save(stub, tmp_path)
    packed = tmp_path / "files/file-valid/content.jsonl.gz"
    assert gzip.decompress(packed.read_bytes()) == account.contents["file-valid"]
    assert (tmp_path / "files/file-train/content.jsonl").exists()


def test_a_second_import_asks_only_for_what_is_new(tmp_path: Path) -> None:
    account = small_account()
    with Stub(account) as stub:
        save(stub, tmp_path)
        before, num_before = contents(tmp_path), len(account.requests)
        save(stub, tmp_path)
        asked = [path.split("?")[0] for path in account.requests[num_before:]]
        assert contents(tmp_path) == before
        assert {
            path for path in asked if "ftjob" in path or "evalrun" in path or "file-" in path
        } == {
            "/fine_tuning/jobs/ftjob-now",
            "/fine_tuning/jobs/ftjob-now/events",
            "/fine_tuning/jobs/ftjob-now/checkpoints",
            "/evals/eval_own/runs/evalrun_x",
            "/evals/eval_own/runs/evalrun_x/output_items",
        }
        account.add("/fine_tuning/jobs", job("ftjob-new", "dpo", "succeeded", created_at=3000))
        account.add("/fine_tuning/jobs/ftjob-now/events", event(4), event(5))
        num_before = len(account.requests)
        done = save(stub, tmp_path)
        assert done.counts["jobs"] == 4
        assert done.num_due == 3
        assert not [path for path in account.requests[num_before:] if "ftjob-rft" in path]
    assert ids(tmp_path, "jobs/ftjob-now/events.jsonl") == [event(n)["id"] for n in range(6)]
    assert verify(tmp_path) == []


def test_a_job_that_ended_since_is_fetched_to_its_end(tmp_path: Path) -> None:
    account = small_account()
    jobs = account.objects["/fine_tuning/jobs"]
    with Stub(account) as stub:
        save(stub, tmp_path)
        jobs[-1] = {**jobs[-1], "status": "succeeded", "result_files": ["file-late"]}
        account.add("/files", file_object("file-late", "fine-tune-results", "m.csv", 4, 5000))
        account.contents["file-late"] = b"a,b\n"
        account.add("/fine_tuning/jobs/ftjob-now/events", *map(event, range(4, 9)))
        save(stub, tmp_path)
        num_before = len(account.requests)
        save(stub, tmp_path)
        assert not [path for path in account.requests[num_before:] if "ftjob-now" in path]
    assert len(ids(tmp_path, "jobs/ftjob-now/events.jsonl")) == 9
    assert (tmp_path / "files/file-late/content.csv").read_bytes() == b"a,b\n"


@pytest.mark.parametrize(
    "status", ["pending", "paused", "pausing", "validating_files", "unheard_of"]
)
def test_a_job_in_any_unfinished_status_is_looked_at_again(tmp_path: Path, status: str) -> None:
    account = Account()
    account.add("/fine_tuning/jobs", job("ftjob-1", "reinforcement", status))
    with Stub(account) as stub:
        save(stub, tmp_path, only=["jobs"])
        num_before = len(account.requests)
        save(stub, tmp_path, only=["jobs"])
    assert [path for path in account.requests[num_before:] if "ftjob-1" in path]


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


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    account = large_account(1500, 3000)
    account.limits["events"] = 100
    process: list[subprocess.Popen[bytes]] = []

    def kill(path: str, _query: dict[str, str]) -> None:
        pages = sum("/output_items" in each for each in account.requests)
        if "/output_items" in path and pages == 7 and process:
            os.kill(process[0].pid, signal.SIGKILL)

    account.before = kill
    folder = tmp_path / "dump"
    with Stub(account) as stub:
        command = "from rftkit.cli import main; main()"
        process.append(
            subprocess.Popen(
                [sys.executable, "-c", command, "import", "--from", stub.url, "--dump", folder],
                env={**os.environ, "OPENAI_API_KEY": KEY},
                stdout=subprocess.DEVNULL,
            )
        )
        assert process[0].wait() == -signal.SIGKILL
        assert verify(folder) == [
            "the last import was interrupted; run it again to complete the dump"
        ]
        num_before = len(account.requests)
        account.before = None
        done = save(stub, folder)
    after = [path for path in account.requests[num_before:] if "/output_items" in path]
    assert len(after) <= 10  # the 15 pages less those of the first import
    assert done.counts["output_items"] == 1500
    assert done.counts["events"] == 3000
    assert len(set(ids(folder, "jobs/ftjob-big/events.jsonl"))) == 3000
    assert len(set(ids(folder, "evals/eval_big/runs/evalrun_big/output_items.jsonl"))) == 1500
    assert not list(folder.rglob("*.part"))
    assert verify(folder) == []


def test_page_sizes_are_asked_for_as_large_as_the_service_allows(tmp_path: Path) -> None:
    account = small_account()
    account.limits |= {"events": 100, "jobs": 20}
    with Stub(account) as stub:
        done = save(stub, tmp_path)
    assert done.is_complete
    events = [path for path in account.requests if "/events" in path]
    assert any("limit=1000" in path for path in events)
    assert "limit=100" in events[-1]


def test_only_and_since_choose(tmp_path: Path) -> None:
    account = small_account()
    with Stub(account) as stub:
        jobs = save(stub, tmp_path / "jobs", only=["jobs"])
        graders = save(stub, tmp_path / "graders", only=["graders"])
        late = save(
            stub, tmp_path / "late", only=["jobs"], since=datetime.fromtimestamp(1999, tz=UTC)
        )
    assert jobs.counts == {"files": 1, "file_bytes": 118, "jobs": 3, "events": 37, "checkpoints": 2}
    assert graders.counts == {"graders": 3}
    assert (late.counts["jobs"], late.counts["events"]) == (1, 4)


def test_a_later_import_of_another_kind_adds_to_the_dump(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path, only=["jobs"])
        done = save(stub, tmp_path, only=["evals"])
    assert (done.counts["jobs"], done.counts["evals"], done.counts["runs"]) == (3, 2, 3)
    assert verify(tmp_path) == []


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    account = small_account()
    with Stub(account) as stub:
        save(stub, tmp_path / "dump", dry_run=True, said=said)
    assert not (tmp_path / "dump").exists()
    assert "11 of 11 objects are to be fetched" in "\n".join(said)
    assert not [path for path in account.requests if "/events" in path or "/content" in path]


def test_graders_are_collected_once_with_their_uses(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path)
    (folder,) = (tmp_path / "graders").glob("both-*")
    spec = json.loads((folder / "grader.json").read_text())
    assert spec["graders"]["a"]["headers"] == {"authorization": "*******"}
    assert json.loads((folder / "used_by.json").read_text()) == [
        {"object": "jobs/ftjob-now", "path": "method.reinforcement.grader"},
        {"object": "jobs/ftjob-rft", "path": "method.reinforcement.grader"},
    ]
    (criterion,) = (tmp_path / "graders").glob("exact-match-*/grader.json")
    assert set(json.loads(criterion.read_text())) == {
        "type", "name", "operation", "input", "reference",
    }  # fmt: skip


def test_supervised_jobs_and_their_missing_fields_are_saved_too(tmp_path: Path) -> None:
    account = Account()
    old = job("ftjob-1", "supervised", "succeeded", hyperparameters={"n_epochs": 3})
    del old["method"]
    account.add("/fine_tuning/jobs", old)
    account.add("/fine_tuning/jobs/ftjob-1/checkpoints", checkpoint(1, {"train_loss": 0.5}))
    with Stub(account) as stub:
        done = save(stub, tmp_path, only=["jobs", "graders"])
    assert done.counts == {"jobs": 1, "events": 0, "checkpoints": 1}


def test_ids_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    account = Account()
    for bad in ("../../escape", "..", "a/b", "x" * 300, "C:\\evil", "ünï"):
        account.add("/fine_tuning/jobs", job(bad, "supervised", "failed"))
    with Stub(account) as stub:
        done = save(stub, tmp_path / "dump", only=["jobs"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump"]
    assert len(list((tmp_path / "dump/jobs").iterdir())) == 6 - len(done.missing)
    assert verify(tmp_path / "dump") == []
