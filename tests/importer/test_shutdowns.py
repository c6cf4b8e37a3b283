"""Which models go off when: in a dump, and on the platform after the dump was opened there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Served
from importer_calls import save
from importer_stub import Account, Stub, checkpoint, job, small_account

from rftkit.cli import account as account_command
from rftkit.errors import InputError
from rftkit.importer import open_dump, source_of, upload
from rftkit.importer.shutdowns import model_ends

FINAL = "ft:o4-mini:acme::ftjob-rft"
BASE = "o4-mini-2025-04-16"


def listed(name: str, end: Any = None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1, "owned_by": "acme", "shutdown_date": end}


def with_dates(final: Any = "2027-03-01") -> Account:
    """The small account, whose service lists some models: a final one, a base, one without job."""
    account = small_account()
    models = [listed(FINAL, final), listed(BASE, 1798761600), listed("ft:gpt-4o:acme::lost")]
    account.add("/models", *models, listed("gpt-9", "2030-01-01"))
    return account


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    with Stub(with_dates()) as stub:
        save(stub, tmp_path / "dump")
    return tmp_path / "dump"


def again(dump: Path, account: Account, folder: Path) -> Path:
    """The same account, saved once more into another folder."""
    origin = json.loads((dump / "manifest.json").read_bytes())["account"]["origin"]
    with Stub(account, port=urlsplit(origin).port or 0) as stub:
        save(stub, folder)
    return folder


def test_models_of_jobs_and_their_bases_are_in_the_order_of_their_dates(dump: Path) -> None:
    found = {each.model: each for each in model_ends(dump)}
    assert found[FINAL].shutdown_date == "2027-03-01"
    assert (found[FINAL].kind, found[FINAL].job_id) == ("final model", "ftjob-rft")
    steps = [each for each in found.values() if each.kind.startswith("checkpoint of step")]
    assert {each.kind for each in steps} >= {"checkpoint of step 5"}
    assert not any(each.is_listed or each.shutdown_date for each in steps)
    lost = found["ft:gpt-4o:acme::lost"]
    assert (lost.kind, lost.job_id, lost.base_model) == ("fine-tuned model", None, "gpt-4o")
    assert lost.is_listed
    assert "gpt-9" not in found  # nothing of this account was made from it
    dates = [each.first_date for each in found.values()]
    assert dates == sorted(dates)
    frame = open_dump(dump).models()
    assert list(frame["model"]) == list(found)


def test_a_model_without_a_date_is_shown_with_that_of_its_base(tmp_path: Path) -> None:
    account = Account()
    account.add("/fine_tuning/jobs", job("ftjob-1", "reinforcement", "succeeded"))
    base = job("ftjob-1", "reinforcement", "succeeded")["model"]
    account.add("/models", listed(base, "2027-02-01"))
    with Stub(account) as stub:
        save(stub, tmp_path)
    first = model_ends(tmp_path)[0]
    assert {each.base_shutdown_date for each in model_ends(tmp_path) if each.job_id} <= {
        "2027-02-01"
    }
    assert first.first_date == "2027-02-01"


def test_show_has_the_table_and_the_same_by_job(
    dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert account_command.command(show=dump) == 0
    shown = capsys.readouterr().out
    table = shown.partition("Which of your models go off when")[2]
    assert [line for line in table.splitlines() if line.startswith("2027-03-01") and FINAL in line]
    by_job = table.partition("The same by job")[2]
    assert [line for line in by_job.splitlines() if line.startswith("ftjob-rft")]
    account_command.command(show=dump, as_json=True)
    models = json.loads(capsys.readouterr().out)["models"]
    assert {each["model"]: each["shutdown_date"] for each in models}[FINAL] == "2027-03-01"


def test_a_damaged_file_costs_its_own_lines_only(
    dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dump / "jobs/ftjob-old/job.json").write_text("{")
    for used_by in dump.glob("graders/*/used_by.json"):
        used_by.unlink()
    assert account_command.command(show=dump) == 0
    assert FINAL in capsys.readouterr().out
    (page,) = dump.glob("lists/models/*")
    page.write_text("{")
    assert not any(each.is_listed for each in model_ends(dump))
    with pytest.raises(InputError, match="holds no dump"):
        model_ends(dump / "nowhere")


def test_opened_models_keep_their_dates(served: Served, dump: Path, tmp_path: Path) -> None:
    client = served.client
    planned = upload(client, source_of([dump]), dry_run=True)
    done = upload(client, source_of([dump]))
    assert done.is_complete
    assert done.new["model"] == planned.new["model"] == 1
    assert client.models.retrieve(FINAL).to_dict()["shutdown_date"] == "2027-03-01"
    assert "gpt-9" not in [model.id for model in client.models.list()]
    before = list(served.platform.store._db.iterdump())
    once_more = upload(client, source_of([dump]))
    assert not once_more.new
    assert once_more.same["model"] == 1
    assert list(served.platform.store._db.iterdump()) == before
    # The service announces an earlier date, and a job that was running has ended.
    account = with_dates("2026-12-24")
    jobs = account.objects["/fine_tuning/jobs"]
    jobs[-1] = {**jobs[-1], "status": "succeeded", "fine_tuned_model": "ft:new"}
    account.add("/models", listed("ft:new", "2028-01-01"))
    done = upload(client, source_of([again(dump, account, tmp_path / "later")]))
    assert done.is_complete
    dates = {each.id: each.to_dict().get("shutdown_date") for each in client.models.list()}
    assert (dates[FINAL], dates["ft:new"]) == ("2026-12-24", "2028-01-01")


def test_a_job_that_is_imported_again_keeps_the_dates_of_its_models(
    served: Served, tmp_path: Path
) -> None:
    account = Account()
    running = job("ftjob-1", "reinforcement", "running")
    account.add("/fine_tuning/jobs", running)
    step = checkpoint(5, {})
    account.add("/fine_tuning/jobs/ftjob-1/checkpoints", step)
    name = step["fine_tuned_model_checkpoint"]
    account.add("/models", listed(name, "2027-05-01"))
    with Stub(account) as stub:
        save(stub, tmp_path / "dump")
    assert upload(served.client, source_of([tmp_path / "dump"])).new["model"] == 1
    account.objects["/fine_tuning/jobs"][0] = {**running, "status": "succeeded"}
    later = again(tmp_path / "dump", account, tmp_path / "later")
    done = upload(served.client, source_of([later]))
    assert done.updated == {"job": 1}
    assert served.client.models.retrieve(name).to_dict()["shutdown_date"] == "2027-05-01"


def test_a_list_of_models_may_be_a_loose_file(served: Served, tmp_path: Path) -> None:
    made = {**job("ftjob-1", "reinforcement", "succeeded"), "fine_tuned_model": FINAL}
    (tmp_path / "job.json").write_text(json.dumps(made))
    page = {"object": "list", "data": [listed(FINAL, "2027-01-31"), listed("gpt-9", "2030-01-01")]}
    (tmp_path / "models.json").write_text(json.dumps(page))
    done = upload(served.client, source_of([tmp_path]))
    assert done.is_complete
    assert done.new["model"] == 1
    assert served.client.models.retrieve(FINAL).to_dict()["shutdown_date"] == "2027-01-31"
