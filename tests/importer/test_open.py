"""Dumps and loose files in the local platform: whole objects, their own ids, read-only."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from conftest import GRADER, ROW, Served
from importer_calls import save
from importer_stub import (
    RESULT_CSV,
    Account,
    Fault,
    Stub,
    checkpoint,
    event,
    job,
    output_item,
    small_account,
)

from rftkit import evals, jobs
from rftkit.errors import InputError
from rftkit.importer import Origin, Remote, UploadSummary, import_account, source_of, upload
from rftkit.importer.units import DumpSource, LeftOut, Unit
from rftkit.server.store.store import Store
from rftkit.views import events as events_view

USER: Any = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with Stub(small_account()) as stub:
        save(stub, folder)
    return folder


@pytest.fixture
def dump(saved: Path, tmp_path: Path) -> Path:
    """A copy of the small account's dump, to read or to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "dump"))


@pytest.fixture
def opened(served: Served, dump: Path) -> Served:
    done = upload(served.client, source_of([dump]))
    assert done.is_complete
    return served


def given(dump: Path, name: str) -> Any:
    """An object as the dump has it."""
    return json.loads((dump / name).read_bytes())


def shown(wire: Any) -> dict[str, Any]:
    """An object as the platform shows it, without the mark that says where it comes from."""
    plain: dict[str, Any] = wire.to_dict(warnings=False)
    assert plain.pop("imported_from").endswith("(acme-research, proj_1)")
    return plain


def test_every_object_is_there_as_its_service_gave_it(opened: Served, dump: Path) -> None:
    client = opened.client
    found = client.fine_tuning.jobs.retrieve("ftjob-rft")
    expected = given(dump, "jobs/ftjob-rft/job.json")
    expected["method"]["reinforcement"]["grader"]["graders"]["a"]["headers"] = {
        "authorization": "********"
    }
    assert shown(found) == expected
    assert [shown(each) for each in client.fine_tuning.jobs.list_events("ftjob-rft")] == [
        event(number) for number in reversed(range(30))
    ]
    kept = list(client.fine_tuning.jobs.checkpoints.list("ftjob-rft"))
    assert [each.step_number for each in kept] == [10, 5]
    assert shown(client.evals.retrieve("eval_own")) == given(dump, "evals/eval_own/eval.json")
    runs = list(client.evals.runs.list("eval_auto"))
    assert [run.id for run in runs] == ["evalrun_0", "evalrun_5"]
    items = list(client.evals.runs.output_items.list("evalrun_5", eval_id="eval_auto"))
    assert [shown(item) for item in items] == [
        output_item("eval_auto", "evalrun_5", number, 0) for number in range(130)
    ]
    assert shown(client.files.retrieve("file-valid")) == given(dump, "files/file-valid/file.json")
    assert client.files.content("file-result").text == RESULT_CSV


def test_lists_are_in_the_order_of_time_and_older_than_what_is_made_here(opened: Served) -> None:
    made = opened.create_job()
    paged = [each.id for each in opened.client.fine_tuning.jobs.list(limit=1)]
    assert paged == [made.id, "ftjob-now", "ftjob-rft", "ftjob-old"]
    assert [e.id for e in opened.client.evals.list(limit=2)][:2] == ["eval_auto", "eval_own"]
    assert [f.id for f in opened.client.files.list(order="asc")][:3] == [
        "file-train",
        "file-valid",
        "file-result",
    ]


def test_running_it_again_changes_nothing(opened: Served, dump: Path) -> None:
    before = list(opened.platform.store._db.iterdump())
    done = upload(opened.client, source_of([dump]))
    assert not done.new
    assert done.same == {"file": 3, "eval": 2, "run": 3, "job": 3}
    assert done.is_complete
    assert list(opened.platform.store._db.iterdump()) == before


def test_a_dry_run_sends_nothing(served: Served, dump: Path) -> None:
    done = upload(served.client, source_of([dump]), dry_run=True)
    assert done.new == {"file": 3, "eval": 2, "run": 3, "job": 3}
    assert done.parts == {"event": 37, "output_item": 134}
    assert not list(served.client.fine_tuning.jobs.list())


def test_what_was_imported_cannot_be_changed(opened: Served) -> None:
    client, model = opened.client, "ft:o4-mini:acme::ftjob-rft"
    rows: Any = {"type": "file_content", "content": [{"item": {"answer": "a"}}]}
    permissions = client.fine_tuning.checkpoints.permissions
    calls: list[Callable[[], Any]] = [
        lambda: client.fine_tuning.jobs.cancel("ftjob-now"),
        lambda: client.fine_tuning.jobs.pause("ftjob-now"),
        lambda: client.fine_tuning.jobs.resume("ftjob-now"),
        lambda: client.files.delete("file-train"),
        lambda: client.evals.update("eval_auto", name="mine"),
        lambda: client.evals.delete("eval_auto"),
        lambda: client.evals.runs.cancel("evalrun_x", eval_id="eval_own"),
        lambda: client.evals.runs.delete("evalrun_0", eval_id="eval_auto"),
        lambda: client.evals.runs.create("eval_own", data_source={"type": "jsonl", "source": rows}),
        lambda: client.models.delete(model),
        lambda: permissions.create(model, project_ids=["p"]),
    ]
    before = list(opened.platform.store._db.iterdump())
    for call in calls:
        with pytest.raises(openai.BadRequestError, match="rftkit job rerun") as refused:
            call()
        assert refused.value.code in ("imported_object", "model_imported")
        assert refused.value.type == "invalid_request_error"
    assert list(opened.platform.store._db.iterdump()) == before


def test_unfinished_work_of_others_is_nobodys_work_here(opened: Served) -> None:
    store: Store = opened.platform.store
    assert opened.client.fine_tuning.jobs.retrieve("ftjob-now").status == "running"
    assert store.claim_job() is None
    assert store.unfinished_jobs() == store.unfinished_runs() == []
    assert store.users_of_model("o4-mini-2025-04-16") == []
    own = opened.create_job()
    claimed = store.claim_job()
    assert claimed is not None
    assert claimed.id == own.id


def test_models_are_listed_and_say_why_they_cannot_be_asked(opened: Served) -> None:
    client, name = opened.client, "ft:o4-mini:acme::rft:ckpt-step-10"
    assert name in [model.id for model in client.models.list()]
    assert client.models.retrieve(name).to_dict()["imported_from"]
    asked: list[Callable[[], Any]] = [
        lambda: client.chat.completions.create(model=name, messages=USER),
        lambda: client.responses.create(model=name, input="x"),
        lambda: opened.create_job(model=name),
    ]
    for ask in asked:
        with pytest.raises(openai.BadRequestError) as refused:
            ask()
        assert "rftkit job rerun ftjob-rft --model" in refused.value.message
        assert refused.value.param == "model"
    assert opened.link.requests == []


def test_an_imported_file_trains_a_job_here(opened: Served) -> None:
    made = opened.create_job(training_file="file-train", validation_file="file-valid")
    assert made.training_file == "file-train"


def test_rooms_of_the_notebook_read_imported_jobs_and_runs(opened: Served) -> None:
    assert jobs.wait(opened.client, "ftjob-now").status == "running"  # as it stands: no waiting
    told = jobs.events(opened.client, "ftjob-rft")
    assert jobs.step_frame(told)["valid_reward_mean"].tolist()[:3] == [0.0, 0.02, 0.04]
    assert jobs.best(jobs.checkpoints(opened.client, "ftjob-rft")).step == 10  # type: ignore[union-attr]
    assert "Step 7/100" in events_view(told, metrics=True)
    samples = evals.fetch(opened.client, "eval_auto")
    assert len(samples.frame) == 133
    assert samples.frame["answer"][2] == "answer 2"


def test_a_run_made_here_pairs_with_an_imported_one(opened: Served) -> None:
    theirs = list(opened.client.evals.runs.output_items.list("evalrun_5", eval_id="eval_auto"))
    schema: Any = {
        "type": "custom",
        "item_schema": {"type": "object"},
        "include_sample_schema": True,
    }
    criterion: Any = {**GRADER, "operation": "like", "input": "{{sample.output_text}}"}
    mine = opened.client.evals.create(data_source_config=schema, testing_criteria=[criterion])
    content: Any = [
        {"item": item.datasource_item, "sample": {"output_text": "a"}} for item in theirs[:10]
    ]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    run = opened.client.evals.runs.create(mine.id, data_source=source, name="Step 5")
    while opened.client.evals.runs.retrieve(run.id, eval_id=mine.id).status != "completed":
        pass
    both = evals.fetch(opened.client, "eval_auto/evalrun_5", f"{mine.id}/{run.id}")
    assert len(set(both.frame["row"])) == len({json.dumps(i.datasource_item) for i in theirs})
    found = evals.compare(both)
    assert [pair.num_rows for pair in found.pairs] == [1]  # all rows of the stub are the same row


# -- what is refused ---------------------------------------------------------------------------


def reasons(done: UploadSummary) -> dict[str, str]:
    return done.refused | {each.what: each.reason for each in done.left_out}


def test_ids_with_other_content_are_refused_and_stay(
    opened: Served, dump: Path, tmp_path: Path
) -> None:
    account = small_account()
    account.objects["/fine_tuning/jobs"][1]["trained_tokens"] = 13  # ended: it cannot have changed
    account.objects["/evals/eval_auto/runs/evalrun_0/output_items"][0]["status"] = "fail"
    account.contents["file-train"] = b"other"
    with Stub(account) as stub:
        save(stub, tmp_path / "other")
        done = upload(opened.client, source_of([tmp_path / "other"]))
    assert set(done.refused) >= {"job ftjob-rft", "run evalrun_0", "file file-train"}
    assert not done.is_complete
    assert opened.client.fine_tuning.jobs.retrieve("ftjob-rft").trained_tokens == 12
    assert opened.client.files.content("file-train").read().startswith(b'{"messages"')


def test_what_was_made_here_is_never_replaced(served: Served, tmp_path: Path) -> None:
    made = served.create_job()
    account = Account()
    account.add("/fine_tuning/jobs", job(made.id, "reinforcement", "succeeded"))
    with Stub(account) as stub:
        save(stub, tmp_path)
        done = upload(served.client, source_of([tmp_path]))
    assert done.refused == {f"job {made.id}": "an object with this id was made here"}
    assert served.client.fine_tuning.jobs.retrieve(made.id).model == "rftkit-tiny"


def test_a_job_that_continued_since_is_updated(opened: Served, dump: Path) -> None:
    account = small_account()
    jobs_there = account.objects["/fine_tuning/jobs"]
    jobs_there[-1] = {**jobs_there[-1], "status": "succeeded", "fine_tuned_model": "ft:new"}
    account.add("/fine_tuning/jobs/ftjob-now/events", event(204), event(205))
    origin = given(dump, "manifest.json")["account"]["origin"]
    with Stub(account, port=urlsplit(origin).port or 0) as again:  # the same account
        save(again, dump.parent / "later")
        done = upload(opened.client, source_of([dump.parent / "later"]))
    assert done.updated == {"job": 1}
    assert opened.client.fine_tuning.jobs.retrieve("ftjob-now").status == "succeeded"
    assert len(jobs.events(opened.client, "ftjob-now")) == 6
    assert "ft:new" in [model.id for model in opened.client.models.list()]


def test_a_damaged_dump_gives_what_is_whole(served: Served, dump: Path) -> None:
    path = next(dump.glob("evals/eval_auto/runs/evalrun_5/output_items.jsonl*"))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-40]))
    (dump / "jobs/ftjob-old/job.json").write_text("{")
    (dump / "files/file-train/content.jsonl").unlink()
    done = upload(served.client, source_of([dump]))
    assert set(reasons(done)) == {
        "evals/eval_auto/runs/evalrun_5",
        "jobs/ftjob-old",
        "files/file-train",
    }
    assert done.new == {"file": 2, "eval": 2, "run": 2, "job": 2}
    assert any("training_file file-train" in note for note in done.notes)
    assert [run.id for run in served.client.evals.runs.list("eval_auto")] == ["evalrun_0"]


def test_a_partial_dump_gives_what_is_whole(served: Served, tmp_path: Path) -> None:
    account = small_account()
    account.faults = [
        Fault("ftjob-rft/events", "status", 403, times=float("inf")),
        Fault("eval_own", "status", 403, times=float("inf")),
        Fault("file-result/content", "status", 404, times=float("inf")),
    ]
    with Stub(account) as stub:
        save(stub, tmp_path)
        done = upload(served.client, source_of([tmp_path]))
    told = reasons(done)
    assert "the dump lacks its events" in told["jobs/ftjob-rft"]
    assert "the dump lacks its content" in told["files/file-result"]
    assert any("eval_own" in what for what in told)
    assert [each.id for each in served.client.fine_tuning.jobs.list()] == ["ftjob-now", "ftjob-old"]
    assert not done.is_complete


def test_a_run_without_its_eval_is_named(served: Served, dump: Path) -> None:
    source = DumpSource(dump)
    source.read = lambda: (  # type: ignore[method-assign]
        each for each in DumpSource(dump).read() if isinstance(each, LeftOut) or each.kind != "eval"
    )
    done = upload(served.client, source)
    assert done.refused["run evalrun_0"] == "its eval eval_auto does not exist"
    assert any("eval_id eval_auto" in note for note in done.notes)
    assert done.new["run"] == 0


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b'{"format": "rftkit-dump/2", "objects": []}', "rftkit-dump/2.*update rftkit"),
        (b"{", "cannot be read as a manifest"),
        (b'{"format": "rftkit-dump/1"}', "cannot be read as a manifest"),
        (b'{"format": "rftkit-dump/1", "account": {"origin": "x"}, "files": {"a": 1},'
         b' "objects": {}, "not_fetched": {}, "imports": []}', "cannot be read as a manifest"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_read_is_refused(
    tmp_path: Path, manifest: bytes, words: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(InputError, match=words):
        source_of([tmp_path])


def test_parts_that_are_not_usable_leave_their_object_out(served: Served) -> None:
    class Source:
        origin = "https://x.invalid/v1"

        def models(self) -> list[dict[str, Any]]:
            return []

        def read(self) -> Any:
            wires = {name: job(name, "dpo", "failed") for name in ("ftjob-a", "ftjob-b", "ftjob-c")}
            good = [json.dumps(event(number)).encode() for number in range(3)]
            yield Unit("job", "ftjob-a", wires["ftjob-a"], lambda: iter([*good, b'{"id": NaN}']))
            yield Unit("job", "ftjob-b", wires["ftjob-b"], lambda: iter([b'{"no": "id"}']))
            yield Unit("job", "ftjob-c", wires["ftjob-c"], lambda: iter([good[0], good[0]]))

    done = upload(served.client, Source())
    assert set(done.refused) == {"job ftjob-a", "job ftjob-b", "job ftjob-c"}
    assert "NaN" in done.refused["job ftjob-a"]
    assert not done.new["job"]
    assert not done.parts["event"]
    assert not list(served.client.fine_tuning.jobs.list())


def test_a_killed_import_leaves_nothing_that_can_be_seen(home: Path) -> None:
    store = Store.open(home)
    store.imports.add_parts("event", "ftjob-1", [event(0), event(1)], "x")
    store.imports.add_parts("output_item", "run", [output_item("e", "run", 0, 0)], "x")
    store.close()
    store = Store.open(home)
    store.sweep()
    store.close()
    with sqlite3.connect(home / "platform.sqlite") as db:
        counts = [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0]
                  for t in ("events", "output_items")]  # fmt: skip
    db.close()
    assert counts == [0, 0]


def test_a_service_that_takes_no_imports_gets_nothing(dump: Path) -> None:
    with Stub(Account()) as stub:
        client = openai.OpenAI(base_url=stub.url, api_key="sk-stub-0123456789abcdefghij")
        with pytest.raises(InputError, match="unset OPENAI_BASE_URL"), client:
            upload(client, source_of([dump]))


# -- loose files -------------------------------------------------------------------------------


def test_a_result_file_alone_becomes_a_job(served: Served, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(RESULT_CSV)
    done = upload(served.client, source_of([tmp_path / "results.csv"]))
    assert done.is_complete
    [found] = served.client.fine_tuning.jobs.list()
    frame = jobs.step_frame(jobs.events(served.client, found.id))
    assert frame["train_reward_mean"].tolist() == [0.25, 0.5]
    assert frame["valid_reward_mean"].isna().tolist() == [True, False]
    assert served.client.files.content(found.result_files[0]).text == RESULT_CSV
    assert upload(served.client, source_of([tmp_path])).same == {"file": 1, "job": 1}


def test_loose_json_of_the_api(served: Served, tmp_path: Path) -> None:
    account = small_account()
    page = {"object": "list", "data": account.objects["/evals"], "has_more": False}
    (tmp_path / "evals.json").write_text(json.dumps(page))
    (tmp_path / "job.json").write_text(json.dumps(job("ftjob-1", "reinforcement", "succeeded")))
    kept = {**checkpoint(5, {}), "fine_tuning_job_id": "ftjob-1"}
    (tmp_path / "checkpoints.json").write_text(json.dumps([kept]))
    lines = [{k: v for k, v in event(n).items() if k != "object"} for n in (1, 0)]
    (tmp_path / "ftjob-1-events.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "runs.json").write_text(json.dumps(account.objects["/evals/eval_auto/runs"]))
    items = account.objects["/evals/eval_auto/runs/evalrun_0/output_items"]
    orphan = {**items[0], "id": "outputitem_z", "run_id": "evalrun_gone"}
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, [*items, orphan])))
    (tmp_path / "file.json").write_text(json.dumps(account.objects["/files"][0]))
    (tmp_path / "train.jsonl").write_bytes(account.contents["file-train"])
    (tmp_path / "broken.json").write_text("{")
    done = upload(served.client, source_of([tmp_path]))
    assert done.new == {"file": 1, "eval": 2, "run": 1, "job": 1}
    assert [e["id"] for e in jobs.events(served.client, "ftjob-1")] == [
        event(0)["id"],
        event(1)["id"],
    ]
    found = served.client.evals.runs.output_items.list("evalrun_0", eval_id="eval_auto")
    assert len(list(found)) == 3
    told = reasons(done)
    assert "run evalrun_gone is not there" in told[str(tmp_path / "items.jsonl")]
    assert told["run evalrun_5"] == "0 of its 130 output items are there"
    assert str(tmp_path / "train.jsonl") not in told  # it is the content of a file
    assert "cannot be read" in told[str(tmp_path / "broken.json")]


def test_what_is_no_import_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        source_of([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no manifest\.json"):
        source_of([tmp_path])


# -- a platform as the remote ------------------------------------------------------------------


def test_another_platform_is_a_remote_like_any(
    served: Served, platform: openai.OpenAI, tmp_path: Path
) -> None:
    file = platform.files.create(file=("rows.jsonl", ROW), purpose="fine-tune")
    schema: Any = {
        "type": "custom",
        "item_schema": {"type": "object"},
        "include_sample_schema": True,
    }
    record = platform.evals.create(data_source_config=schema, testing_criteria=[GRADER], name="own")  # type: ignore[list-item]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": [
        {"item": {"answer": "hi"}, "sample": {"output_text": "hi"}}]}}  # fmt: skip
    run = platform.evals.runs.create(record.id, data_source=source)
    while platform.evals.runs.retrieve(run.id, eval_id=record.id).status != "completed":
        pass
    remote = Remote(Origin(str(platform.base_url).rstrip("/"), "local"), on_progress=print)
    kinds = ("files", "evals")
    assert import_account(remote, tmp_path, only=kinds, on_progress=lambda _: None).is_complete
    remote.close()
    assert upload(served.client, source_of([tmp_path])).is_complete
    there = platform.evals.runs.output_items.list(run.id, eval_id=record.id).data[0]
    here = served.client.evals.runs.output_items.list(run.id, eval_id=record.id).data[0]
    plain = here.to_dict()
    assert str(plain.pop("imported_from")).startswith(remote.origin.base_url)
    assert plain == there.to_dict()
    assert served.client.files.content(file.id).read() == ROW
