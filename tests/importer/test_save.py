"""`rftkit import --dump` against a stub of the service: what is saved, and what is not again."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from importer_calls import contents, ids, save
from importer_stub import (
    KEY,
    Account,
    Stub,
    checkpoint,
    event,
    file_object,
    job,
    small_account,
)

from rftkit.importer import Summary, summaries, verify
from rftkit.importer.origins import OPENAI_URL


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
        account.add("/fine_tuning/jobs/ftjob-now/events", event(204), event(205))
        num_before = len(account.requests)
        done = save(stub, tmp_path)
        assert done.counts["jobs"] == 4
        assert done.num_due == 3
        assert not [path for path in account.requests[num_before:] if "ftjob-rft" in path]
    assert ids(tmp_path, "jobs/ftjob-now/events.jsonl") == [event(n)["id"] for n in range(200, 206)]
    assert verify(tmp_path) == []


def test_a_job_that_ended_since_is_fetched_to_its_end(tmp_path: Path) -> None:
    account = small_account()
    jobs = account.objects["/fine_tuning/jobs"]
    with Stub(account) as stub:
        save(stub, tmp_path)
        jobs[-1] = {**jobs[-1], "status": "succeeded", "result_files": ["file-late"]}
        account.add("/files", file_object("file-late", "fine-tune-results", "m.csv", 4, 5000))
        account.contents["file-late"] = b"a,b\n"
        account.add("/fine_tuning/jobs/ftjob-now/events", *map(event, range(204, 209)))
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
        done = save(stub, tmp_path / "dump", dry_run=True, said=said)
    assert (done.counts, done.num_due) == ({}, 11)
    assert done.seen == {
        "files": 3, "file_bytes": 490363, "jobs": 3, "evals": 2, "runs": 3, "output_items": 134,
        "graders": 3,
    }  # fmt: skip
    assert not (tmp_path / "dump").exists()
    assert "11 of 11 objects will be fetched" in "\n".join(said)
    assert not [path for path in account.requests if "/events" in path or "/content" in path]


def with_the_rest() -> Account:
    """The small account with what else has a list."""
    account = small_account()
    chat = {"object": "chat.completion", "model": "gpt-4o", "created": 1700, "choices": []}
    account.add("/chat/completions", *({"id": f"chatcmpl-{n}", **chat} for n in range(3)))
    account.add("/chat/completions/chatcmpl-1/messages", {"id": "msg_1", "role": "user"})
    account.add("/chat/completions/chatcmpl-0/messages")
    account.add("/chat/completions/chatcmpl-2/messages")
    account.add("/vector_stores", {"id": "vs_1", "object": "vector_store", "name": "manuals",
                "created_at": 1700, "status": "completed"})  # fmt: skip
    account.add("/vector_stores/vs_1/files", {"id": "file-train", "object": "vector_store.file"})
    account.add("/batches", {"id": "batch_1", "object": "batch", "status": "completed",
                "endpoint": "/v1/chat/completions", "created_at": 1700})  # fmt: skip
    account.add("/assistants", {"id": "asst_1", "object": "assistant", "name": "helper",
                "created_at": 1700, "model": "gpt-4o"})  # fmt: skip
    account.add("/agents", {"id": "agent_1", "created_at": 1700, "name": "mover"})
    account.add("/chatkit/threads", {"id": "cthr_1", "created_at": 1700, "title": "Hello"})
    account.add("/chatkit/threads/cthr_1/items", {"id": "cthi_1"}, {"id": "cthi_2"})
    account.add("/containers", {"id": "cntr_1", "created_at": 1700, "name": "box"})
    account.add("/containers/cntr_1/files", {"id": "cfile_1", "path": "/mnt/data/a.txt"})
    account.add("/skills", {"id": "skill_1", "created_at": 1700, "name": "sort"})
    account.add("/skills/skill_1/versions", {"id": "skillver_1", "version": "1"})
    account.add("/videos", {"id": "video_1", "created_at": 1700, "status": "completed"},
                {"id": "video_2", "created_at": 1700, "status": "completed"})  # fmt: skip
    account.contents |= {"skill_1": b"PK", "video_1": b"frames"}  # video_2 has expired
    account.add("/audio/voice_consents", {"id": "cons_1", "created_at": 1700, "name": "me"})
    ends = {"ft:o4-mini:acme::1": 1798761600, "gpt-4o": "2027-03-01", "gpt-9": None}
    for name, end in ends.items():
        model = {"id": name, "object": "model", "created": 1, "shutdown_date": end}
        account.add("/models", model)
    return account


def test_chats_vector_stores_batches_and_models_are_saved_too(tmp_path: Path) -> None:
    account, said = with_the_rest(), list[str]()
    with Stub(account) as stub:
        done = save(stub, tmp_path, said=said)
        assert done.is_complete
        num_before = len(account.requests)
        save(stub, tmp_path)
        again = account.requests[num_before:]
    fetched = ("chatcmpl", "vs_1", "batch_1", "asst_1", "cthr_1", "cntr_1", "skill_1", "video_")
    assert not [path for path in again if any(name in path for name in fetched)]
    betas = {
        path.split("?")[0]: headers.get("openai-beta")
        for path, headers in zip(account.requests, account.seen_headers, strict=True)
    }
    assert betas["/assistants"] == betas["/vector_stores/vs_1"] == "assistants=v2"
    assert (betas["/agents"], betas["/batches"]) == ("agents=v1", None)
    counts = {name: done.counts[name] for name in ("chats", "messages", "vector_stores", "batches")}
    assert counts == {"chats": 3, "messages": 1, "vector_stores": 1, "batches": 1}
    assert ids(tmp_path, "chats/chatcmpl-1/messages.jsonl") == ["msg_1"]
    assert ids(tmp_path, "vector_stores/vs_1/store_files.jsonl") == ["file-train"]
    assert ids(tmp_path, "chatkit_threads/cthr_1/thread_items.jsonl") == ["cthi_1", "cthi_2"]
    assert ids(tmp_path, "containers/cntr_1/container_files.jsonl") == ["cfile_1"]
    assert ids(tmp_path, "skills/skill_1/skill_versions.jsonl") == ["skillver_1"]
    assert (tmp_path / "skills/skill_1/content.zip").read_bytes() == b"PK"
    assert (tmp_path / "videos/video_1/content.mp4").read_bytes() == b"frames"
    assert done.missing["videos/video_2/content"]["kind"] == "gone"
    for place in ("assistants/asst_1/assistant", "agents/agent_1/agent",
                  "voice_consents/cons_1/voice_consent"):  # fmt: skip
        assert json.loads((tmp_path / f"{place}.json").read_text())["created_at"] == 1700
    assert verify(tmp_path) == []
    text = "\n".join(said)
    assert "stored chat completions: 3" in text
    shown = summaries.describe_dump(tmp_path)
    for each in (text, shown):
        assert "Shuts down on 2027-01-01: ft:o4-mini:acme::1" in each
        assert "Shuts down on 2027-03-01: gpt-4o" in each
        assert "gpt-9" not in each
    assert "vs_1  manuals" in shown
    assert "asst_1  helper  gpt-4o" in shown
    assert "videos: 2" in text
    assert "Not requested: responses, conversations" in shown


def test_what_was_not_asked_for_is_named_in_the_end(tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        done = save(stub, tmp_path, only=["jobs"])
    told = summaries.save_summary(done, tmp_path, origin=stub.url, only=["jobs"])
    assert "Not requested: files, evals, graders, stored chat completions" in told
    assert "(left out by --only); responses, conversations" in told
    assert "rftkit import --verify" in told


def test_what_is_too_old_or_has_no_list_is_named_in_the_end_and_in_show(tmp_path: Path) -> None:
    moment = datetime.fromtimestamp(1999, tz=UTC)
    wanted = ["jobs", "files", "videos", "models"]
    with Stub(small_account()) as stub:
        done = save(stub, tmp_path, only=wanted, since=moment)
        told = summaries.save_summary(done, tmp_path, origin=stub.url, only=wanted)
        for text in (told, summaries.describe_dump(tmp_path)):
            assert "everything created before 1970-01-01 (left out by --since)" in text
            assert "The service has no list of videos, models, so nothing of them is saved." in text
        save(stub, tmp_path, only=["jobs"])
    shown = summaries.describe_dump(tmp_path)
    assert "files, videos, models created before 1970-01-01 (left out by --since)" in shown
    assert done.is_complete


def test_after_the_end_of_evals_nobody_is_told_to_try_again(tmp_path: Path) -> None:
    gone = {"lists/evals": {"kind": "refused", "reason": "HTTP 404: no such route", "status": 404}}
    failed = {"jobs/ftjob-1": {"kind": "failed", "reason": "HTTP 500: x", "status": 500}}
    later, sooner = date(2026, 12, 1), date(2026, 11, 30)

    def told(missing: dict[str, Any], today: date, origin: str = OPENAI_URL) -> str:
        done = Summary({}, {}, 0, 0, missing)
        return summaries.save_summary(done, tmp_path, origin=origin, today=today)

    assert "run the same command again" in told(gone, sooner)
    assert "run the same command again" in told(gone, later, "https://other.invalid/v1")
    assert "run the same command again" in told(gone, later, "https://api.openai.com.invalid/v1")
    for origin in (OPENAI_URL, f"{OPENAI_URL}/", "https://eu.api.openai.com/v1"):
        assert "run the same command again" not in told(gone, later, origin)
    assert "Evals were shut down on 30 November 2026" in told(gone, later)
    assert "run the same command again" in told(gone | failed, later)


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


def test_the_client_is_all_it_needs(tmp_path: Path) -> None:
    """No platform, no torch, no notebook stack, not even pandas."""
    code = (
        "import sys\n"
        "from rftkit.cli.account import command\n"
        "from pathlib import Path\n"
        "command(source=sys.argv[1], dump=Path(sys.argv[2]))\n"
        "heavy = {'torch', 'pandas', 'numpy', 'fastapi', 'papermill', 'IPython', 'rftkit.server'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)\n"
    )
    with Stub(small_account()) as stub:
        done = subprocess.run(
            [sys.executable, "-c", code, stub.url, tmp_path],
            env={**os.environ, "OPENAI_API_KEY": KEY},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
