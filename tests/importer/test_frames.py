"""`open_dump`: frames from a dump, and the quirks of live responses, one test each."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from importer_calls import save
from importer_stub import (
    RESULT_CSV,
    Account,
    Stub,
    checkpoint,
    event,
    file_object,
    job,
    small_account,
)

from rftkit.errors import InputError, NotFoundError
from rftkit.importer import OpenDump, open_dump


def dump_of(account: Account, folder: Path) -> OpenDump:
    with Stub(account) as stub:
        save(stub, folder)
    return open_dump(folder)


def one_job(folder: Path, wire: dict[str, Any], content: bytes | None = None) -> OpenDump:
    account = Account()
    account.add("/fine_tuning/jobs", wire)
    if content is not None:
        account.add("/files", file_object("file-r", "fine-tune-results", "r.csv", len(content)))
        account.contents["file-r"] = content
    return dump_of(account, folder)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenDump:
    return dump_of(small_account(), tmp_path_factory.mktemp("dump"))


def test_an_empty_error_object_is_no_error(tmp_path: Path) -> None:
    account = Account()
    error = {"code": "invalid_file", "message": "bad row", "param": "training_file"}
    account.add("/fine_tuning/jobs", job("ftjob-1", "dpo", "succeeded", error={}))
    account.add("/fine_tuning/jobs", job("ftjob-2", "dpo", "failed", error=error))
    account.add("/fine_tuning/jobs", job("ftjob-3", "dpo", "failed", error=None))
    jobs = dump_of(account, tmp_path).jobs().set_index("id")
    assert jobs["error"].isna().to_dict() == {"ftjob-1": True, "ftjob-2": False, "ftjob-3": True}
    assert jobs.loc["ftjob-2", "error"] == "bad row"


def test_missing_hyperparameters_are_empty_cells(tmp_path: Path) -> None:
    wire = job("ftjob-1", "reinforcement", "succeeded")
    del wire["method"]["reinforcement"]["hyperparameters"]
    jobs = one_job(tmp_path, wire).jobs()
    assert jobs["n_epochs"].isna().all()
    assert jobs["method"].tolist() == ["reinforcement"]


def test_hyperparameters_of_old_jobs_stand_on_top(tmp_path: Path) -> None:
    wire = job("ftjob-1", "supervised", "succeeded", hyperparameters={"n_epochs": 4})
    wire["method"] = None
    jobs = one_job(tmp_path, wire).jobs()
    assert jobs.loc[0, ["method", "n_epochs"]].tolist() == ["supervised", 4]


def test_the_uuid_behind_result_names_is_cut_off(opened: OpenDump) -> None:
    items = opened.output_items("evalrun_5")
    assert set(items["grader"]) == {"exact-match"}
    assert len(items) == 130
    assert items.loc[7, "output_text"] == "answer 7"
    assert items.loc[7, "item"]["answer"] == "a"
    assert items["error"].isna().all()


def test_output_items_come_by_row(tmp_path: Path) -> None:
    account = small_account()
    account.objects["/evals/eval_auto/runs/evalrun_5/output_items"].reverse()
    items = dump_of(account, tmp_path).output_items("evalrun_5")
    assert items["datasource_item_id"].tolist() == list(range(130))


def test_both_spellings_of_metrics_end_in_one_column(opened: OpenDump) -> None:
    metrics = opened.metrics("ftjob-rft").set_index("step")
    assert metrics.loc[[6, 7], "train_reward_mean"].tolist() == [0.06, 0.07]
    assert metrics.loc[[6, 7], "valid_reward_mean"].tolist() == [0.12, 0.14]
    kept = opened.checkpoints("ftjob-rft")
    assert kept["step"].tolist() == [5, 10]
    assert kept["valid_reward_mean"].tolist() == [0.5, 0.7]
    assert kept["train_reward_mean"].tolist() == [0.4, 0.6]


@pytest.mark.parametrize(
    "content",
    [
        RESULT_CSV.encode(),
        b"\xef\xbb\xbf" + RESULT_CSV.encode(),
        base64.b64encode(RESULT_CSV.encode()),
        base64.encodebytes(RESULT_CSV.encode()),
    ],
    ids=["plain", "with a BOM", "base64", "base64 in lines"],
)
def test_result_files_come_as_csv_or_as_base64(tmp_path: Path, content: bytes) -> None:
    wire = job("ftjob-1", "reinforcement", "succeeded", result_files=["file-r"])
    dump = one_job(tmp_path, wire, content)
    assert dump.result_file("ftjob-1")["step"].tolist() == [1, 2]
    assert dump.metrics("ftjob-1")["valid_reward_mean"].tolist()[1] == 0.75  # it has no events
    assert dump.read_file("file-r") == content


@pytest.mark.parametrize("status", ["pending", "paused"])
def test_statuses_that_no_type_knows_are_kept(tmp_path: Path, status: str) -> None:
    jobs = one_job(tmp_path, job("ftjob-1", "reinforcement", status)).jobs()
    assert jobs["status"].tolist() == [status]


def test_fields_that_no_sdk_knows_are_kept(opened: OpenDump) -> None:
    assert opened.read_job("ftjob-rft")["future_field"] == {"kept": 1.5}


def test_events_are_a_frame_in_time_order(opened: OpenDump) -> None:
    events = opened.events("ftjob-rft")
    assert events["id"].tolist() == [event(number)["id"] for number in range(30)]
    assert events["created_at"].is_monotonic_increasing
    assert str(events["created_at"].dt.tz) == "UTC"
    assert events.loc[3, "data"]["train_mean_reward"] == 0.03


def test_other_metrics_of_checkpoints_are_columns(tmp_path: Path) -> None:
    account = Account()
    account.add("/fine_tuning/jobs", job("ftjob-1", "supervised", "succeeded"))
    kept = [checkpoint(step, {"step": step, "train_loss": 1 / step}) for step in (1, 2)]
    account.add("/fine_tuning/jobs/ftjob-1/checkpoints", *kept)
    frame = dump_of(account, tmp_path).checkpoints("ftjob-1")
    assert frame["train_loss"].tolist() == [1.0, 0.5]
    assert frame["valid_reward_mean"].isna().all()


def test_evals_runs_and_graders_are_frames(opened: OpenDump) -> None:
    assert opened.evals()["graders"].tolist() == [["exact-match"], ["label"]]
    assert opened.runs("eval_auto")["total"].tolist() == [3, 130]
    assert sorted(opened.graders()["type"]) == ["multi", "string_check", "string_check"]


def test_frames_without_rows_have_their_columns(tmp_path: Path) -> None:
    dump = one_job(tmp_path, job("ftjob-1", "reinforcement", "running"))
    assert list(dump.events("ftjob-1"))[:3] == ["id", "created_at", "level"]
    assert "valid_reward_mean" in dump.checkpoints("ftjob-1")
    assert len(dump.metrics("ftjob-1")) == 0
    assert len(dump.evals()) == len(dump.graders()) - 1 == 0


def test_what_is_not_there_is_named(opened: OpenDump, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no job ftjob-nope"):
        opened.events("ftjob-nope")
    with pytest.raises(NotFoundError, match="no run evalrun_nope"):
        opened.output_items("evalrun_nope")
    with pytest.raises(NotFoundError, match="no result file of ftjob-old"):
        opened.result_file("ftjob-old")
    with pytest.raises(InputError, match="holds no dump"):
        open_dump(tmp_path)
