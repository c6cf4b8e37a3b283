"""Imported supervised and dpo jobs: what differs here, and the same job again on a local model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, Served
from importer_calls import save
from importer_stub import Account, Stub, file_object, job

from rftkit import client as client_module
from rftkit.cli import app as cli
from rftkit.errors import InputError
from rftkit.importer import check_all, plan_rerun, source_of, start_rerun, upload

ASK = [{"role": "user", "content": "a"}]
SAY = {"role": "assistant", "content": "b"}
ROWS = {
    "file-chats": {"messages": [*ASK, SAY]},
    "file-pairs": {
        "input": {"messages": ASK},
        "preferred_output": [SAY],
        "non_preferred_output": [{**SAY, "content": "c"}],
    },
    "file-prompts": {"messages": ASK, "answer": "b"},
}


def supervised(job_id: str, **changes: Any) -> dict[str, Any]:
    """A hosted supervised job, as the service shows one that has run."""
    values = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}
    method = {"type": "supervised", "supervised": {"hyperparameters": values}}
    given = {"training_file": "file-chats", "validation_file": None, "hyperparameters": values}
    return {**job(job_id, "supervised", "succeeded"), "method": method, **given, **changes}


def dpo(job_id: str, **changes: Any) -> dict[str, Any]:
    """A hosted dpo job."""
    values = {"n_epochs": 2, "batch_size": "auto", "beta": 0.2, "learning_rate_multiplier": -1}
    method = {"type": "dpo", "dpo": {"hyperparameters": values}}
    given = {"training_file": "file-pairs", "validation_file": "file-pairs"}
    return {**job(job_id, "dpo", "succeeded"), "method": method, **given, **changes}


@pytest.fixture
def imported(served: Served, tmp_path: Path) -> Callable[..., openai.OpenAI]:
    """Import an account with these jobs; returns the local platform's client."""

    def imported(*jobs: dict[str, Any]) -> openai.OpenAI:
        account = Account()
        account.add("/evals")
        for name, row in ROWS.items():
            content = json.dumps(row).encode() + b"\n"
            account.add(
                "/files", file_object(name, "fine-tune", f"{name}.jsonl", len(content), 1000)
            )
            account.contents[name] = content
        account.add("/fine_tuning/jobs", *jobs)
        for each in jobs:
            account.add(f"/fine_tuning/jobs/{each['id']}/events")
        with Stub(account) as stub:
            save(stub, tmp_path / "dump")
        assert not upload(served.client, source_of([tmp_path / "dump"])).refused
        return served.client

    return imported


def told(client: openai.OpenAI, job_id: str) -> dict[str, str]:
    [check] = [each for each in check_all(client) if each.id == job_id]
    return {each.about: each.here for each in check.differences}


def test_a_supervised_job_again(imported: Callable[..., openai.OpenAI], served: Served) -> None:
    client = imported(supervised("ftjob-1", user_provided_suffix="mine", metadata={"team": "b"}))
    assert set(told(client, "ftjob-1")) == {"model", "hyperparameters.learning_rate_multiplier"}
    planned = plan_rerun(client, "ftjob-1", model="rftkit-tiny")
    assert planned.check.verdict == "differs"
    assert planned.resolved["total_steps"] == 3
    made = start_rerun(client, planned).to_dict(warnings=False)
    assert made["method"] == supervised("ftjob-1")["method"]
    assert (made["validation_file"], made["user_provided_suffix"]) == (None, "mine")
    assert made["metadata"] == {"team": "b", "rerun_of": "ftjob-1"}
    assert served.platform.store.claim_job().id == made["id"]
    assert plan_rerun(client, made["id"], model="rftkit-tiny").request["method"] == "supervised"


def test_a_supervised_job_of_before_there_were_methods(
    imported: Callable[..., openai.OpenAI],
) -> None:
    old = supervised("ftjob-1", hyperparameters={"n_epochs": 4})
    del old["method"]
    planned = plan_rerun(imported(old), "ftjob-1", model="rftkit-tiny")
    assert planned.request["method"] == "supervised"
    assert planned.request["hyperparameters"] == {"n_epochs": 4}


def test_a_dpo_job_again_and_minus_one_is_auto(imported: Callable[..., openai.OpenAI]) -> None:
    client = imported(dpo("ftjob-1"))
    found = told(client, "ftjob-1")
    assert "batch_size, learning_rate_multiplier" in found["hyperparameters"]
    planned = plan_rerun(client, "ftjob-1", model="rftkit-tiny")
    made = start_rerun(client, planned).to_dict(warnings=False)
    assert made["method"]["dpo"]["hyperparameters"] == {
        "n_epochs": 2, "batch_size": "auto", "beta": 0.2, "learning_rate_multiplier": "auto",
    }  # fmt: skip


def test_a_given_grader_measures_it(imported: Callable[..., openai.OpenAI]) -> None:
    client = imported(dpo("ftjob-1"))
    planned = plan_rerun(client, "ftjob-1", model="rftkit-tiny", grader=GRADER)
    assert "measures every checkpoint" in planned.check.differences[0].here
    made = start_rerun(client, planned).to_dict(warnings=False)
    assert made["measured_by"]["grader"]["type"] == GRADER["type"]


def test_rows_of_another_form_stop_it_with_their_line(
    imported: Callable[..., openai.OpenAI],
) -> None:
    client = imported(
        supervised("ftjob-1", training_file="file-prompts"),
        dpo("ftjob-2", training_file="file-chats"),
    )
    found = told(client, "ftjob-1")["training_file"]
    assert "file-prompts.jsonl:1: the row has no assistant" in found
    assert "file-chats.jsonl:1: " in told(client, "ftjob-2")["training_file"]
    with pytest.raises(InputError, match="no assistant message to learn from"):
        start_rerun(client, plan_rerun(client, "ftjob-1", model="rftkit-tiny"))


def test_the_command_line(
    imported: Callable[..., openai.OpenAI],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = imported(supervised("ftjob-1"))
    monkeypatch.setattr(client_module, "connect", lambda *_: client)
    words = ["rftkit", "job", "rerun", "ftjob-1", "-m", "rftkit-tiny", "--dry-run"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "method           supervised" in out
    assert "grader" not in out
    assert "resolved here    total_steps 3, batch_size 1, learning_rate 0.0018" in out
