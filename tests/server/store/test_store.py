"""The store: concurrent writers, the queue, idempotent writes, pages, blobs, keys."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_writers import write_events

from rftkit.errors import NotFoundError, PlatformError, RequestError
from rftkit.server.store import trash
from rftkit.server.store.migrations import MIGRATIONS, _relative_folders
from rftkit.server.store.records import Job
from rftkit.server.store.store import Store, new_id, now
from rftkit.server.store.trash import discard
from rftkit.server.training.journal import is_full


def add_job(store: Store, **fields: Any) -> Job:
    file_id = fields.pop("file_id", "file-1")
    fields.setdefault("method", {"type": "reinforcement"})
    return store.add_job(
        Job(
            id=new_id("ftjob-"), created_at=now(), model="m", seed=1, training_file=file_id,
            validation_file=file_id, **fields,
        )
    )  # fmt: skip


def test_others_read_while_another_program_locks_the_database(home: Path) -> None:
    store, waits = Store.open(home), threading.Event()
    store.on_wait = waits.set
    with contextlib.closing(sqlite3.connect(home / "platform.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=add_job, args=(store,))
        writer.start()
        assert waits.wait(30)
        assert store.jobs() == ([], False)
        other.rollback()
    writer.join(60)
    assert len(store.jobs()[0]) == 1
    store.close()


@pytest.fixture
def store() -> Any:
    store = Store.open(None)
    yield store
    store.close()


def test_processes_and_threads_write_at_once_and_nothing_is_lost(home: Path) -> None:
    store = Store.open(home)
    job = add_job(store)
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_events, args=(home, job.id, 0, 25)),
        context.Process(target=write_events, args=(home, job.id, 1, 25)),
        threading.Thread(target=write_events, args=(home, job.id, 2, 25)),
        threading.Thread(target=write_events, args=(home, job.id, 3, 25)),
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        store.events(job.id)
        store.update_job(job.id, trained_tokens=1)
    for writer in writers:
        writer.join()
    events, more = store.events(job.id, limit=1000)
    messages = [event.message for event in events]
    assert sorted(m for m in messages if m != "once") == sorted(
        f"{writer}/{number}" for writer in range(4) for number in range(25)
    )
    assert messages.count("once") == 25
    assert not more
    files, _ = store.files()
    assert len(files) == 100
    assert all(store.file_path(file.id).read_bytes().isdigit() for file in files)
    store.close()


def test_many_claimers_one_job_each(home: Path) -> None:
    store = Store.open(home)
    job = add_job(store, status="queued")
    claims: list[Any] = []

    def claim() -> None:
        own = Store.open(home)
        with own.transaction():
            before = own.job(job.id).status
            claims.append((before, own.claim_job()))
        own.close()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [before for before, _ in claims].count("queued") == 1
    assert {claimed.id for _, claimed in claims} == {job.id}
    store.close()


def test_the_queue_is_fair_and_a_dead_workers_job_comes_first(store: Store) -> None:
    assert store.claim_job() is None
    first, second, third = (add_job(store) for _ in range(3))
    assert store.claim_job() == first
    for job in (first, second, third):
        store.update_job(job.id, status="queued")
    claimed = store.claim_job()
    assert claimed is not None
    assert (claimed.id, claimed.status) == (first.id, "running")
    again = store.claim_job()
    assert again is not None
    assert again.id == first.id
    store.pause_job(first.id)
    assert store.claim_job() == store.job(first.id)
    store.update_job(first.id, status="paused")
    store.resume_job(first.id)
    order = []
    while (job := store.claim_job()) is not None:
        order.append(job.id)
        store.update_job(job.id, status="succeeded")
    assert order == [second.id, third.id, first.id]


def test_a_job_that_ended_stays_ended(store: Store) -> None:
    job = add_job(store, status="running")
    cancelled = store.cancel_job(job.id)
    assert cancelled.cancel_requested
    assert cancelled.finished_at is not None
    late = store.update_job(job.id, status="succeeded", trained_tokens=7)
    assert (late.status, late.trained_tokens) == ("cancelled", 7)
    with pytest.raises(RequestError, match="is cancelled"):
        store.cancel_job(job.id)


@pytest.mark.parametrize("status", ["validating_files", "queued", "pausing", "paused", "failed"])
def test_only_a_running_job_can_be_paused(store: Store, status: str) -> None:
    job = add_job(store, status=status)
    with pytest.raises(RequestError, match=f"is {status}; only a job that is running"):
        store.pause_job(job.id)


def test_events_and_checkpoints_with_the_same_key_are_one(store: Store) -> None:
    job = add_job(store)
    event = store.add_event(job.id, "first", key="k")
    assert store.add_event(job.id, "replayed", key="k") == event
    assert store.add_event(job.id, "no key") != store.add_event(job.id, "no key")
    checkpoint = store.add_checkpoint(job.id, 3, "ft:m", {"r": 0.5}, "/x")
    assert store.add_checkpoint(job.id, 3, "ft:m", {"r": 0.1}, "/y") == checkpoint
    low = store.add_checkpoint(job.id, 1, "ft:m", {}, "/x")
    assert [c.id for c in store.checkpoints(job.id)] == [checkpoint, low]
    store.drop_checkpoint(low)
    assert [c.metrics for c in store.checkpoints(job.id)] == [{"r": 0.5}]


def test_order_does_not_depend_on_the_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(2_000_000_000, 0, -1_000_000))
    for module in ("store.jobs", "store.files"):
        monkeypatch.setattr(f"rftkit.server.{module}.now", lambda: next(clock))
    job = add_job(store)
    for number in range(5):
        store.add_event(job.id, str(number))
    events, _ = store.events(job.id)
    assert [event.message for event in events] == list("43210")


@given(count=st.integers(0, 30), limit=st.integers(1, 12))
def test_pages_hold_every_event_once(count: int, limit: int) -> None:
    store = Store.open(None)
    job = add_job(store)
    other = add_job(store)
    ids = []
    for number in range(count):
        ids.append(store.add_event(job.id, str(number)).id)
        store.add_event(other.id, "noise")
    seen: list[str] = []
    more, after = True, None
    while more:
        events, more = store.events(job.id, after=after, limit=limit)
        seen += [event.id for event in events]
        after = seen[-1] if seen else None
    assert seen == ids[::-1]
    store.close()


def test_a_cursor_of_another_list_is_refused(store: Store) -> None:
    event = store.add_event(add_job(store).id, "x")
    with pytest.raises(RequestError, match="not in this list"):
        store.events(add_job(store).id, after=event.id)


def test_files_with_the_same_content_share_a_blob(store: Store) -> None:
    first = store.add_file(b"same", "a.jsonl", "fine-tune")
    second = store.add_file(b"same", "../../etc/passwd", "fine-tune")
    path = store.file_path(first.id)
    assert store.file_path(second.id) == path
    assert second.filename not in str(path)
    store.delete_file(first.id)
    assert store.file_path(second.id).read_bytes() == b"same"
    store.delete_file(second.id)
    assert not path.exists()
    with pytest.raises(NotFoundError, match=second.id):
        store.file(second.id)


def test_a_file_in_use_cannot_be_deleted(store: Store) -> None:
    file = store.add_file(b"x", "a.jsonl", "fine-tune")
    job = add_job(store, file_id=file.id, status="paused")
    with pytest.raises(RequestError, match=f"used by {job.id}"):
        store.delete_file(file.id)
    store.cancel_job(job.id)
    source = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    run = store.add_run(store.add_eval([], {"type": "custom"}).id, source)
    with pytest.raises(RequestError, match=f"used by {run.id}"):
        store.delete_file(file.id)
    store.update_run(run.id, status="canceled")
    store.delete_file(file.id)


def test_what_a_job_writes_to_or_starts_from_is_in_use(store: Store) -> None:
    record = store.add_eval([], {"type": "custom"})
    job = add_job(store, status="running", eval_id=record.id)
    with pytest.raises(RequestError, match=f"validations of job {job.id}"):
        store.delete_eval(record.id)
    run = store.add_run(record.id, {"source": {}}, model="m")
    assert store.users_of_model("m") == [job.id, run.id]
    store.update_run(run.id, status="failed")
    store.cancel_job(job.id)
    assert store.users_of_model("m") == []
    store.delete_eval(record.id)


def test_a_model_that_grades_unfinished_work_is_in_use(store: Store) -> None:
    judge = {"type": "score_model", "name": "j", "model": "judge", "input": []}
    multi = {"type": "multi", "graders": {"a": judge}, "calculate_output": "a"}
    trained = add_job(store, method={"type": "reinforcement", "reinforcement": {"grader": multi}})
    watched = add_job(store, method={"type": "reinforcement", "held_out": judge})
    measured = add_job(store, method={"type": "dpo", "measure": {"grader": judge}})
    run = store.add_run(store.add_eval([judge], {"type": "custom"}).id, {"source": {}}, model="m")
    assert store.users_of_model("judge") == [trained.id, watched.id, measured.id, run.id]
    for job in (trained, watched, measured):
        store.cancel_job(job.id)
    store.update_run(run.id, status="canceled")
    assert store.users_of_model("judge") == []


def test_a_sweep_drops_leftovers_and_what_expired(home: Path) -> None:
    store = Store.open(home)
    kept = store.add_file(b"kept", "a.jsonl", "fine-tune")
    used = store.add_file(b"used", "a.jsonl", "fine-tune", expires_at=1)
    over = store.add_file(b"over", "a.jsonl", "fine-tune", expires_at=1)
    add_job(store, file_id=used.id)
    (home / "files" / "half-made.part").write_bytes(b"ov")
    assert [file.id for file in store.files()[0]] == [kept.id]
    store.sweep()
    assert sorted(p.read_bytes() for p in (home / "files").rglob("*") if p.is_file()) == [
        b"kept",
        b"used",
    ]
    with pytest.raises(NotFoundError):
        store.file(over.id)
    store.close()


def test_no_database_makes_a_server_delete_what_it_does_not_know(home: Path) -> None:
    store = Store.open(home)
    path = store.file_path(store.add_file(b"precious", "a.jsonl", "fine-tune").id)
    store.close()
    (home / "platform.sqlite").rename(home / "moved-away.sqlite")
    (home / "jobs" / "ftjob-1").mkdir(parents=True)
    for _ in range(2):  # the second start finds a database that knows a file
        store = Store.open(home)
        store.sweep()
        assert path.read_bytes() == b"precious"
        blobs, jobs = store.unlisted_contents()
        assert "1 uploaded files" in blobs
        assert "ftjob-1" in jobs
        store.add_file(b"another", "a.jsonl", "fine-tune")
        store.close()


def test_what_was_deleted_is_kept_for_a_week(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash, "LEAST_FREE_BYTES", 0)
    store = Store.open(home)
    file = store.add_file(b"bytes", "a.jsonl", "fine-tune")
    store.delete_file(file.id)
    [kept] = store.trash.iterdir()
    assert kept.name.endswith(file.digest)
    store.sweep()
    assert kept.read_bytes() == b"bytes"
    monkeypatch.setattr(trash, "KEPT_SECONDS", 0)
    store.sweep()
    assert not kept.exists()
    monkeypatch.setattr(trash, "LEAST_FREE_BYTES", 1 << 62)
    store.delete_file(store.add_file(b"more", "a.jsonl", "fine-tune").id)
    assert list(store.trash.iterdir()) == []  # whoever deletes on a full disk wants the space
    store.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.OperationalError("database or disk is full"), "is full"),
        (sqlite3.OperationalError("database is locked"), "cannot be opened now"),
        (sqlite3.OperationalError("unable to open database file"), "cannot be opened now"),
        (OSError(28, "No space left on device"), "is full"),
        (OSError(24, "Too many open files"), "ulimit"),
        (sqlite3.DatabaseError("file is not a database"), "restore it from a backup"),
    ],
)
def test_why_a_database_cannot_be_opened_is_told_apart(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(path: str) -> Any:
        raise error

    monkeypatch.setattr("rftkit.server.store.store.connect", fail)
    with pytest.raises(PlatformError, match=words) as caught:
        Store.open(home)
    assert ("move it away" in str(caught.value)) == (type(error) is sqlite3.DatabaseError)


def test_a_damaged_blob_is_named(store: Store) -> None:
    file = store.add_file(b"whole", "rows.jsonl", "fine-tune")
    store.file_path(file.id).write_bytes(b"wh")
    with pytest.raises(PlatformError, match=r"rows\.jsonl\) is damaged"):
        store.file_path(file.id)


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    job = add_job(store)

    def break_off() -> None:
        with store.transaction():
            store.add_event(job.id, "never")
            store.update_job(job.id, status="failed")
            store.update_job("ftjob-none")

    with pytest.raises(NotFoundError):
        break_off()
    assert store.events(job.id) == ([], False)
    assert store.job(job.id) == job


def test_jobs_are_found_by_metadata(store: Store) -> None:
    plain = add_job(store)
    blue = add_job(store, metadata={"team": "blue", "x": "1"})
    red = add_job(store, metadata={"team": "red"})
    assert store.jobs()[0] == [red, blue, plain]
    assert store.jobs(metadata={"team": "blue"})[0] == [blue]
    assert store.jobs(metadata={"team": "blue", "x": "2"})[0] == []
    assert store.jobs(without_metadata=True)[0] == [plain]


def test_reopening_keeps_everything(home: Path) -> None:
    store = Store.open(home)
    job = add_job(store, metadata={"ü": "😀"}, extra={"k": [1, None, 0.5]})
    model = store.add_model("ft:m:local::1", "m", job.id, "/f", 4)
    store.close()
    store = Store.open(home)
    assert store.job(job.id) == job
    assert store.models() == [model]
    store.delete_model(model.name)
    assert store.model(model.name) is None
    store.close()


def test_a_home_can_be_moved_and_a_copy_is_its_own(home: Path, tmp_path: Path) -> None:
    store = Store.open(home)
    job = add_job(store)
    for step in (1, 2):
        folder = home / "jobs" / job.id / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        store.add_model(f"ft:m:{step}", "m", job.id, str(folder), step)
        store.add_checkpoint(job.id, step, f"ft:m:{step}", {}, str(folder))
    # as older versions wrote it, in a home that was somewhere else
    store._db.execute("UPDATE models SET folder = '/old/home/' || folder WHERE step = 1")
    store._db.execute("UPDATE checkpoints SET folder = '/old/home/' || folder WHERE step = 1")
    for table in ("answers", "batch_results", "batches"):
        store._db.execute(f"DROP TABLE {table}")
    store._db.execute(f"PRAGMA user_version = {MIGRATIONS.index(_relative_folders)}")
    store.close()
    for other in (tmp_path / "copy", tmp_path / "deep" / "moved"):
        shutil.copytree(home, other)
        store = Store.open(other)
        folders = [model.folder for model in store.models()]
        assert folders == [str(other / "jobs" / job.id / "checkpoints" / f"step-{n}") for n in "12"]
        assert store.used_folders() == set(folders)
        assert {each.folder for each in store.checkpoints(job.id)} == set(folders)
        texts = store._rows("SELECT folder FROM models UNION SELECT folder FROM checkpoints")
        assert [row[0].partition("/")[0] for row in texts] == ["jobs", "jobs"]
        store.close()


def test_a_newer_database_is_refused(home: Path) -> None:
    Store.open(home).close()
    db = sqlite3.connect(home / "platform.sqlite")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(PlatformError, match="upgrade rftkit"):
        Store.open(home)


def test_something_else_in_place_of_the_database_is_named(home: Path) -> None:
    home.mkdir()
    (home / "platform.sqlite").write_text("not a database at all, but long enough to look" * 50)
    with pytest.raises(PlatformError, match=r"platform\.sqlite cannot be used"):
        Store.open(home)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "another program's"])
def test_what_is_no_database_of_ours_is_named(home: Path, kind: str) -> None:
    home.mkdir()
    path = home / "platform.sqlite"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("/nonexistent/platform.sqlite")
    else:
        db = sqlite3.connect(path)
        db.executescript("CREATE TABLE jobs (a); CREATE TABLE files (b);")
        db.close()
    words = "is not a file|is the database of another program"
    with pytest.raises(PlatformError, match=words) as caught:
        Store.open(home)
    assert "locked" not in str(caught.value)


def test_the_api_key_is_kept_as_a_hash(home: Path) -> None:
    store = Store.open(home)
    assert not store.check_api_key("secret-of-mine")
    store.set_api_key("secret-of-mine")
    assert store.check_api_key("secret-of-mine")
    assert not store.check_api_key("secret-of-yours")
    store.close()
    assert b"secret-of-mine" not in (home / "platform.sqlite").read_bytes()


def test_a_resent_request_is_recognised_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter("abcdef")

    def once(is_resent: bool) -> str:
        return store.once("jobs", "digest", lambda: next(made), is_resent=is_resent)

    assert [once(True), once(True), once(False), once(True)] == ["a", "a", "b", "b"]
    later = now() + 601
    monkeypatch.setattr("rftkit.server.store.store.now", lambda: later)
    assert once(True) == "c"


def test_unknown_fields_are_a_programming_error(store: Store) -> None:
    with pytest.raises(TypeError, match="no field colour"):
        store.update_job(add_job(store).id, colour="red")


def test_a_full_disk_leaves_the_store_usable(home: Path) -> None:
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(home)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        store = Store.open(home)
        job = add_job(store)
        ballast = home / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        for number in range(20):
            with pytest.raises(sqlite3.OperationalError) as caught:
                store.add_event(job.id, "y" * 2000, key=str(number))
            assert is_full(caught.value)
        ballast.unlink()
        event = store.add_event(job.id, "there is room again")
        store.close()
        store = Store.open(home)  # what is listed is what lies on the disk
        assert store.events(job.id)[0] == [event]
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(home)], check=False)


def test_nothing_outside_the_home_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "files", elsewhere):
        folder.mkdir(parents=True)
        (folder / "kept").write_text("x")
    monkeypatch.chdir(elsewhere)
    (home / "link").symlink_to(elsewhere)
    for path in (
        Path(),
        Path("kept"),
        elsewhere,
        home,
        home / "link" / "kept",
        home / ".." / "elsewhere",
    ):
        discard(path, home / "trash")
    assert (elsewhere / "kept").exists()
    assert (home / "files" / "kept").exists()
    discard(home / "files" / "kept", home / "trash")
    assert not (home / "files" / "kept").exists()


def test_no_event_holds_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret-key")
    store = Store.open(None)
    job = store.add_job(
        Job(
            id=new_id("ftjob-"), created_at=now(), status="running", model="m", seed=1,
            training_file="f", validation_file="f", method={},
        )
    )  # fmt: skip
    event = store.add_event(job.id, "the server said: tml-secret-key is not a key")
    assert event.message == "the server said: ******** is not a key"
    store.close()
