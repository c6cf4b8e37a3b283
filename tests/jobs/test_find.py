"""A job by its id, the beginning of it, its suffix, or the newest."""

from __future__ import annotations

import io

import pytest
from conftest import Served
from typer.testing import CliRunner

from rftkit import client, jobs
from rftkit.cli import app as cli
from rftkit.errors import InputError, NotFoundError
from rftkit.widgets import JobMonitor


def test_a_job_is_found_by_what_people_type(served: Served) -> None:
    with pytest.raises(NotFoundError, match="there is no job yet"):
        jobs.find(served.client)
    first = served.create_job(suffix="tickets").id
    second = served.create_job().id
    assert jobs.find(served.client) == second
    assert jobs.find(served.client, first) == first
    short = first.removeprefix("ftjob-")[:12]
    assert jobs.find(served.client, short) == first
    assert jobs.find(served.client, f"ftjob-{short}") == first
    assert jobs.find(served.client, "tickets") == first
    with pytest.raises(NotFoundError, match="there is no job zz"):
        jobs.find(served.client, "zz")
    with pytest.raises(InputError, match="2 jobs begin with"):
        jobs.find(served.client, "ftjob-")


def test_a_job_that_waits_says_for_which(served: Served) -> None:
    first, second = served.create_job().id, served.create_job().id
    served.create_job()
    said = [event.message for event in served.client.fine_tuning.jobs.list_events(second)]
    assert f"Waiting for {first}: only one job trains at a time" in said


def test_a_job_that_waits_says_so_wherever_it_is_watched(served: Served) -> None:
    first, second, third = (served.create_job().id for _ in range(3))
    store = served.platform.store

    def shown(job_id: str) -> str:
        told, job = (
            jobs.events(served.client, job_id),
            served.client.fine_tuning.jobs.retrieve(job_id),
        )
        out = io.StringIO()
        jobs.Progress(out)(jobs.Update(job, told))
        header = JobMonitor(job_id, client=served.client).to_html(max_bytes=0).plain
        assert out.getvalue().strip() in header
        return out.getvalue().strip()

    assert shown(third) == f"waiting for {first} and 1 more: only one job trains at a time"
    store.cancel_job(first)
    store.claim_job()
    store.add_event(second, "Validating training file")  # as the worker does
    assert shown(third) == f"waiting for {second}: only one job trains at a time"
    assert shown(second) == "checking the files"
    store.update_job(second, status="running")
    store.update_job(third, status="paused")
    store.resume_job(third)
    assert shown(third) == f"waiting for {second}: only one job trains at a time"
    store.cancel_job(second)
    store.add_event(third, "Loading rftkit-tiny")
    assert jobs.waits_for(jobs.events(served.client, third)) == ""


def test_commands_take_the_newest_job(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    served.create_job()
    newest = served.create_job().id
    assert newest in CliRunner().invoke(cli.app, ["job", "show"]).stdout
    done = CliRunner().invoke(cli.app, ["job", "cancel", newest[:20]])
    assert f"{newest} is cancelled" in done.stdout


def test_a_grader_whose_answers_cannot_be_scored_is_named_when_the_job_is_created(
    served: Served,
) -> None:
    grader = {
        "type": "string_check",
        "name": "c",
        "operation": "eq",
        "input": "{{sample.output_json.categry}}",
        "reference": "{{item.answer}}",
    }
    closed = {
        "type": "json_schema",
        "json_schema": {
            "name": "n",
            "schema": {"additionalProperties": False, "properties": {"category": {}}},
        },
    }
    for format_, message in (
        (None, "which a job fills only under a response format"),
        (closed, "no answer has a field `categry`; did you mean category?"),
    ):
        given = {"grader": grader} | ({"response_format": format_} if format_ else {})
        job = served.create_job(method={"type": "reinforcement", "reinforcement": given})
        said = [event.message for event in served.client.fine_tuning.jobs.list_events(job.id)]
        assert any(message in each for each in said), said


def test_a_model_that_does_not_exist_is_named(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    done = CliRunner().invoke(cli.app, ["eval", "run", "tiny_copy", "-m", "rftkit-tin"])
    assert "there is no model 'rftkit-tin'; did you mean rftkit-tiny?" in str(done.exception)
