"""Imported jobs and graders checked on this platform, and jobs run again with a local model."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, ROW, Served
from importer_calls import save
from importer_stub import (
    KEY,
    Account,
    Stub,
    add_run,
    eval_object,
    event,
    file_object,
    job,
    small_account,
)

from rftkit import client, views
from rftkit.cli import app as cli
from rftkit.errors import InputError, NotFoundError
from rftkit.evals import step_pairs
from rftkit.importer import check_all, plan_rerun, source_of, start_rerun, upload
from rftkit.importer.differences import check_grader
from rftkit.importer.place import place

JUDGE = {
    "type": "score_model",
    "name": "quality",
    "model": "gpt-4o-2024-08-06",
    "input": [{"role": "user", "content": "How good is {{sample.output_text}}?"}],
}
PYTHON = {
    "type": "python",
    "name": "code",
    "source": "import nosuchpackage\ndef grade(s, i):\n  return 1",
}


def reinforcement(job_id: str, grader: Any, **changes: Any) -> dict[str, Any]:
    """A hosted job with this grader."""
    settings = {
        "grader": grader,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        "hyperparameters": {"n_epochs": 2, "batch_size": "auto", "compute_multiplier": 1.5,
                            "reasoning_effort": "medium"},
    }  # fmt: skip
    method = {"type": "reinforcement", "reinforcement": settings | changes.pop("settings", {})}
    return {**job(job_id, "reinforcement", "succeeded", **changes), "method": method}


@pytest.fixture
def account() -> Account:
    found = Account()
    found.add("/evals")  # there are none; the route answers
    for name in ("file-train", "file-valid"):
        found.add("/files", file_object(name, "fine-tune", f"{name}.jsonl", len(ROW), 1000))
        found.contents[name] = ROW
    return found


@pytest.fixture
def imported(served: Served, account: Account, tmp_path: Path) -> Callable[..., openai.OpenAI]:
    """Import an account with these jobs; returns the local platform's client."""

    def imported(*jobs: dict[str, Any]) -> openai.OpenAI:
        account.add("/fine_tuning/jobs", *jobs)
        with Stub(account) as stub:
            save(stub, tmp_path / "dump")
        assert not upload(served.client, source_of([tmp_path / "dump"])).refused
        return served.client

    return imported


def told(client: openai.OpenAI, job_id: str) -> dict[str, tuple[str, bool]]:
    """What differs for a job: about -> words, whether it stops."""
    [check] = [each for each in check_all(client) if each.id == job_id]
    return {each.about: (f"{each.here} → {each.change}", each.stops) for each in check.differences}


GRADERS: list[tuple[Any, str | None, str, bool]] = [
    (GRADER, None, "", False),
    (JUDGE, "grader", "gpt-4o-2024-08-06 is not available here.*RFTKIT_JUDGE_BASE_URL", True),
    (JUDGE | {"model": "smollm2-135m-instruct"}, None, "", False),
    (PYTHON, "grader", "nosuchpackage.*pip install", True),
    ({**PYTHON, "source": "def grade(s, i): return 1", "image_tag": "2025-05-08"}, "grader",
     "image_tag 2025-05-08 is ignored", False),
    ({"type": "multi", "name": "m", "calculate_output": "a + q",
      "graders": {"a": GRADER, "q": JUDGE}}, "grader.q", "not available", True),
    ({"type": "text_similarity", "name": "t", "evaluation_metric": "cosine", "input": "a",
      "reference": "b"}, "grader", "embeddings|evals only", True),
    ({"type": "endpoint", "name": "e", "url": "https://x.invalid",
      "headers": {"authorization": "*******"}}, "grader", "masked its secret headers", True),
    ({**JUDGE, "model": "rftkit-tiny", "input": [{"role": "user", "content": {
        "type": "input_image", "image_url": "https://x.invalid/a.png"}}]}, "grader",
     "images or audio", True),
    ({"type": "from_the_future", "name": "f"}, "grader", "must be one of", True),
]  # fmt: skip
"""Grader, what of it differs, in which words, and whether that stops it."""


def test_graders_are_checked_against_the_platform(app_client: openai.OpenAI) -> None:
    here = place(app_client)
    for grader, about, words, stops in GRADERS:
        found = check_grader(grader, here)
        text = " ".join(f"{each.here} → {each.change}" for each in found if each.about == about)
        assert re.search(words, text), (grader, found)
        assert any(each.stops for each in found) == stops
        assert bool(found) == (about is not None)


def test_a_judge_elsewhere_is_a_difference_and_no_obstacle(
    app_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "https://judge.invalid/v1")
    [found] = check_grader(JUDGE, place(app_client))
    assert "runs at https://judge.invalid/v1" in found.here
    assert not found.stops


def test_jobs_that_do_not_run_here_name_the_reason(imported: Callable[..., openai.OpenAI]) -> None:
    client = imported(
        job("ftjob-new", "magic", "succeeded"),
        reinforcement("ftjob-tools", GRADER, settings={"tools": [{"name": "t"}]}),
        reinforcement("ftjob-nodata", GRADER, training_file="file-gone", validation_file=None),
        reinforcement("ftjob-rows", {**GRADER, "reference": "{{item.label}}"}),
        reinforcement("ftjob-good", GRADER),
    )
    assert "only reinforcement, supervised, dpo" in told(client, "ftjob-new")["method"][0]
    assert told(client, "ftjob-tools")["tools.t"][1]
    gone = told(client, "ftjob-nodata")
    assert "file-gone is not on this platform" in gone["training_file"][0]
    assert gone["validation_file"][1]
    assert "file-train.jsonl:1" in told(client, "ftjob-rows")["training_file"][0]
    good = told(client, "ftjob-good")
    assert set(good) == {
        "model",
        "hyperparameters",
        "hyperparameters.compute_multiplier",
        "hyperparameters.reasoning_effort",
    }
    assert not any(stops for _, stops in good.values())


def test_a_job_with_tools_runs_again_with_those_whose_secrets_are_there(
    imported: Callable[..., openai.OpenAI],
) -> None:
    plain = {"name": "find", "server_url": "http://127.0.0.1:9/"}
    masked = {**plain, "headers": {"Authorization": "********"}}
    client = imported(
        reinforcement("ftjob-open", GRADER, settings={"tools": [plain], "max_episode_steps": 4}),
        reinforcement("ftjob-key", GRADER, settings={"tools": [masked], "max_episode_steps": 4}),
        job("ftjob-sft", "supervised", "succeeded"),
    )
    planned = plan_rerun(client, "ftjob-open", model="rftkit-tiny")
    assert "must be reachable from here" in told(client, "ftjob-open")["tools.find"][0]
    rerun = start_rerun(client, planned)
    found = rerun.method.reinforcement.model_extra  # type: ignore[union-attr]
    assert found is not None
    assert found["tools"][0]["server_url"] == plain["server_url"]
    assert found["max_episode_steps"] == 4
    planned = plan_rerun(client, "ftjob-key", model="rftkit-tiny")
    with pytest.raises(InputError, match=r"tools.find: the service masked its secrets.*--tools"):
        start_rerun(client, planned)
    given = {**plain, "headers": {"Authorization": "Bearer of-mine"}}
    planned = plan_rerun(client, "ftjob-key", model="rftkit-tiny", tools=[given])
    assert planned.request["tools"] == [given]
    assert start_rerun(client, planned).id
    with pytest.raises(InputError, match="only rollouts call tools"):
        plan_rerun(client, "ftjob-sft", model="rftkit-tiny", tools=[given])


def test_every_grader_is_told_once_with_its_users(served: Served, tmp_path: Path) -> None:
    with Stub(small_account()) as stub:
        save(stub, tmp_path)
    upload(served.client, source_of([tmp_path]))
    found = {each.name: each for each in check_all(served.client) if each.kind == "grader"}
    assert {name: each.verdict for name, each in found.items()} == {
        "both": "stops",
        "exact-match": "runs",
        "label": "runs",
    }
    assert set(found["both"].used_by) == {"ftjob-rft", "ftjob-now"}


def test_rows_with_images_are_named(
    imported: Callable[..., openai.OpenAI], account: Account
) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x.invalid/a.png"}}
    row = {"messages": [{"role": "user", "content": [part]}], "answer": "x"}
    account.contents["file-train"] = json.dumps(row).encode()
    account.objects["/files"][0]["bytes"] = len(account.contents["file-train"])
    words, stops = told(imported(reinforcement("ftjob-1", GRADER)), "ftjob-1")["training_file"]
    assert stops
    assert "image" in words


def test_the_same_job_again(imported: Callable[..., openai.OpenAI], served: Served) -> None:
    client = imported(
        reinforcement("ftjob-1", GRADER, user_provided_suffix="policy", metadata={"team": "blue"})
    )
    planned = plan_rerun(client, "ftjob-1", model="rftkit-tiny")
    assert planned.check.verdict == "differs"
    assert planned.resolved["completions_per_prompt"] == 12
    made = start_rerun(client, planned).to_dict(warnings=False)
    first = client.fine_tuning.jobs.retrieve("ftjob-1").to_dict(warnings=False)
    for name in ("training_file", "validation_file", "seed", "user_provided_suffix"):
        assert made[name] == first[name]
    theirs, mine = (each["method"]["reinforcement"] for each in (first, made))
    assert mine["grader"] == theirs["grader"]
    assert mine["response_format"] == theirs["response_format"]
    assert mine["hyperparameters"].items() >= theirs["hyperparameters"].items()
    assert made["metadata"] == {"team": "blue", "rerun_of": "ftjob-1"}
    assert made["model"] == "rftkit-tiny"
    assert served.platform.store.claim_job().id == made["id"]
    again = plan_rerun(client, made["id"], model="smollm2-135m-instruct")  # a job of our own
    assert again.request["model"] == "smollm2-135m-instruct"


def test_what_stops_a_rerun_is_reported_and_can_be_replaced(
    imported: Callable[..., openai.OpenAI],
) -> None:
    client = imported(reinforcement("ftjob-1", JUDGE))
    planned = plan_rerun(client, "ftjob-1", model="rftkit-tiny")
    with pytest.raises(InputError, match="RFTKIT_JUDGE_BASE_URL"):
        start_rerun(client, planned)
    corrected = plan_rerun(client, "ftjob-1", model="rftkit-tiny", grader=GRADER)
    assert "replaces the job's own" in corrected.check.differences[0].here
    assert start_rerun(client, corrected).id.startswith("ftjob-")
    with pytest.raises(NotFoundError, match="nosuchmodel"):
        plan_rerun(client, "ftjob-1", model="nosuchmodel")


def test_the_hosted_steps_beside_the_local_ones(served: Served, tmp_path: Path) -> None:
    first = account_with_validations("ftjob-1", "eval_1", scores={0: 0.25, 5: 0.5})
    second = account_with_validations("ftjob-2", "eval_2", scores={0: 0.25, 5: 0.75, 10: 1.0})
    for name, each in (("a", first), ("b", second)):
        with Stub(each) as stub:
            save(stub, tmp_path / name)
        assert not upload(served.client, source_of([tmp_path / name])).refused
    pairs = step_pairs(served.client, "ftjob-1", "ftjob-2")
    assert [(step, pair.num_rows, pair.difference.value) for step, pair in pairs] == [
        (0, 20, 0.0),
        (5, 20, 0.25),
    ]


def account_with_validations(job_id: str, eval_id: str, scores: dict[int, float]) -> Account:
    """A job whose validations gave every one of 20 rows this score."""
    account = Account()
    account.add("/fine_tuning/jobs", job(job_id, "reinforcement", "succeeded", eval_id=eval_id))
    account.add(f"/fine_tuning/jobs/{job_id}/events", event(1) | {"id": f"ftevent-{job_id}"})
    account.add("/evals", eval_object(eval_id))
    for step, score in scores.items():
        run_id = f"evalrun_{job_id}_{step}"
        add_run(account, eval_id, run_id, 20)
        account.objects[f"/evals/{eval_id}/runs"][-1]["name"] = f"Step {step}"
        for number, item in enumerate(
            account.objects[f"/evals/{eval_id}/runs/{run_id}/output_items"]
        ):
            item["datasource_item"] = {"messages": [{"role": "user", "content": f"row {number}"}]}
            item["results"][0]["score"] = score
    return account


def test_the_report_of_an_import_reads_all_of_it(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    first = account_with_validations("ftjob-1", "eval_1", scores={0: 0.25})
    second = account_with_validations("ftjob-2", "eval_2", scores={0: 0.75})
    for name, each in (("a", first), ("b", second)):
        with Stub(each) as stub:
            save(stub, tmp_path / name)
        upload(served.client, source_of([tmp_path / name]))
    notebook = json.loads((Path(__file__).parents[2] / "notebooks/report_import.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
        if cell["id"] == "parameters":
            names |= {"job_id": "ftjob-1", "again_id": "ftjob-2"}
    assert [each["id"] for each in names["imported"]] == ["ftjob-2", "ftjob-1"]
    verdicts = [each.verdict for each in names["checks"]]
    assert verdicts == ["stops", "stops", "stops", "runs"]  # both jobs, their endpoint, the eval's
    assert [row["here minus there"] for row in names["rows"]] == [0.5]


# -- the command line --------------------------------------------------------------------------


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rftkit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    return run


def test_commands_from_an_account_to_a_job_here(
    run: Any, served: Served, account: Account, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.add(
        "/fine_tuning/jobs", reinforcement("ftjob-1", GRADER), reinforcement("ftjob-2", JUDGE)
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Stub(account) as stub:
        status, out, _ = run("import", "--from", stub.url)
        assert status == 0, out
        assert "2 files, 2 jobs" in out
        [folder] = (home / "dumps").iterdir()
        status, out, _ = run("import", "--from", stub.url, "--json")
        assert json.loads(out)["opened"]["same"] == {"file": 2, "job": 2}
    assert "acme-research-proj_1" in folder.name
    status, out, _ = run("import", folder, "--json")
    assert (status, json.loads(out)["new"]) == (0, {})

    status, out, _ = run("import", "--check")
    assert status == 0
    assert "runs, with differences" in out
    assert "does not run as it is" in out
    assert "→ set RFTKIT_JUDGE_BASE_URL" in out
    status, out, _ = run("import", "--check", "--json")
    assert {each["id"]: each["verdict"] for each in json.loads(out) if each["kind"] == "job"} == {
        "ftjob-1": "differs",
        "ftjob-2": "stops",
    }

    status, out, _ = run("job", "rerun", "ftjob-1", "-m", "rftkit-tiny", "--dry-run")
    assert status == 0
    assert "rftkit-tiny in place of o4-mini-2025-04-16" in out
    assert "resolved here    total_steps" in out
    status, out, err = run("job", "rerun", "ftjob-1", "-m", "rftkit-tiny")
    assert status == 2
    assert "--yes" in err
    assert run("job", "rerun", "ftjob-1", "-m", "rftkit-tiny", "--json")[0] == 2
    assert run("job", "rerun", "ftjob-2", "-m", "rftkit-tiny", "--dry-run")[0] == 1
    assert run("job", "rerun", "ftjob-2", "-m", "rftkit-tiny", "--yes")[0] == 2
    assert not served.platform.store.unfinished_jobs()
    status, out, _ = run("job", "rerun", "ftjob-1", "-m", "rftkit-tiny", "--yes", "--json")
    [started] = served.platform.store.unfinished_jobs()
    assert (status, json.loads(out)["job"]["id"]) == (0, started.id)


def test_import_says_what_it_cannot_do(run: Any, tmp_path: Path) -> None:
    assert run("import", tmp_path / "nowhere")[0] == 2
    status, _, err = run("import", tmp_path, "--dump", tmp_path / "x")
    assert status == 2
    assert "not both" in err
    assert "nothing was imported yet" in run("import", "--check")[1]


def test_the_table_in_notebook_and_report(
    imported: Callable[..., openai.OpenAI],
) -> None:
    client = imported(reinforcement("ftjob-1", JUDGE | {"name": "<b>judge</b>"}))
    page = views.migration(check_all(client))
    assert "does not run as it is" in page
    assert "RFTKIT_JUDGE_BASE_URL" in page
    assert "<b>judge" not in page
    assert page.plain == "1 job and 1 grader: 2 do not run until something is changed."
    assert "rftkit import DIR" in views.migration([])
