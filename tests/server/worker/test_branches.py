"""Branches of a job: from a kept step, optimizer included, through the front door."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from conftest import Served
from in_process import COPY, ROWS
from typer.testing import CliRunner

from rftkit import client as rftkit_client
from rftkit import jobs
from rftkit.cli import app as cli
from rftkit.errors import InputError, RequestError
from rftkit.server.api.branches import link_state
from rftkit.server.training.journal import Journal
from rftkit.views import job_tree
from rftkit.views.branches import tree_text
from rftkit.wholefile import damage

LENGTH = {
    "type": "python",
    "name": "long",
    "source": "def grade(sample, item):\n    return min(1.0, len(sample['output_text']) / 6)",
}


@pytest.fixture(scope="module")
def parent(platform: openai.OpenAI) -> Any:
    """A finished job of six steps, validated after every second one."""
    content = "\n".join(map(json.dumps, ROWS)).encode()
    file = platform.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
    job = jobs.create(
        platform,
        model="rftkit-tiny",
        training_file=file,
        validation_file=file,
        grader=COPY,
        hyperparameters={
            "batch_size": 4, "n_epochs": 3, "eval_interval": 2, "learning_rate_multiplier": 5,
        },
        metadata={"max_completion_tokens": "6", "lora_rank": "4"},
        seed=3,
    )  # fmt: skip
    return jobs.wait(platform, job.id, poll_seconds=0.2)


def validated(client: openai.OpenAI, job: Any) -> dict[int, float]:
    frame = jobs.step_frame(jobs.events(client, job.id))
    known = frame[["step", "valid_reward_mean"]].dropna()
    return dict(zip(known["step"].astype(int), known["valid_reward_mean"], strict=True))


def test_a_branch_that_changes_nothing_goes_where_the_job_went(
    platform: openai.OpenAI, parent: Any
) -> None:
    same = jobs.wait(platform, jobs.branch(platform, f"{parent.id}@4").id, poll_seconds=0.2)
    assert same.status == "succeeded"
    assert same.seed == parent.seed
    assert same.metadata["branch_from"] == f"{parent.id}@4"
    before, after = validated(platform, parent), validated(platform, same)
    assert set(after) == {4, 6}
    assert after == {step: before[step] for step in after}
    models = [
        {run.name: run.model for run in platform.evals.runs.list(job.eval_id)}
        for job in (parent, same)
    ]
    assert models[1]["Step 4"] == models[0]["Step 4"], "the weights are the other job's"
    assert models[1]["Step 6"] != models[0]["Step 6"]
    losses = [
        {data["step"]: data["learning"]["loss"]
         for event in jobs.events(platform, each.id)
         if event["type"] == "metrics"
         and "loss" in (data := event["data"]).get("learning", {})}
        for each in (parent, same)
    ]  # fmt: skip
    assert losses[1] == {step: losses[0][step] for step in losses[1]}


def test_a_branch_with_another_grader_and_setting_and_its_tree(
    platform: openai.OpenAI, parent: Any
) -> None:
    made = jobs.branch(
        platform, f"{parent.id}@2", grader=LENGTH, metadata={"kl_coef": "0.1"}, suffix="longer"
    )
    ended = jobs.wait(platform, made.id, poll_seconds=0.2)
    assert ended.status == "succeeded"
    again = jobs.branch(platform, f"{made.id}@4", hyperparameters={"learning_rate_multiplier": 1})
    jobs.wait(platform, again.id, poll_seconds=0.2)
    tree = jobs.family(platform, again.id)
    names = {each.id: each for each in tree}
    assert tree[0].id == parent.id
    assert names[made.id].depth == 1
    assert names[made.id].changes[0] == "grader"
    assert "kl_coef: default → 0.1" in names[made.id].changes
    assert names[again.id].depth == 2
    assert names[again.id].changes == ("learning_rate_multiplier: 5 → 1",)
    assert names[made.id].rewards[0][0] == 2
    text = tree_text(tree)
    assert f"└─ @2 {made.id}" in text
    html = str(job_tree(tree))
    assert "longer" in html
    assert "kl_coef" in html
    first = jobs.events(platform, made.id)
    assert any("Continues from" in each["message"] for each in first)


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        ("{id}@1", {}, "it can be branched from steps 2, 4 and 6"),
        ("{id}@6", {}, "its plan ends after step 6"),
        ("ftjob-none@2", {}, "ftjob-none"),
        ("{id}@4", {"metadata": {"lora_rank": "8"}}, "`lora_rank` = 4"),
        ("{id}@4", {"metadata": {"tuning": "full"}}, "`tuning` = lora"),
    ],
)
def test_what_cannot_be_branched_is_refused_with_what_can(
    platform: openai.OpenAI, parent: Any, source: str, changes: Any, said: str
) -> None:
    def try_it() -> None:
        job = jobs.branch(platform, source.format(id=parent.id), **changes)
        jobs.wait(platform, job.id, poll_seconds=0.2)

    with pytest.raises(Exception, match=said):
        try_it()


def test_a_cancelled_job_is_branched_from_what_it_kept(platform: openai.OpenAI) -> None:
    content = "\n".join(map(json.dumps, ROWS)).encode()
    file = platform.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
    long = jobs.create(
        platform, model="rftkit-tiny", training_file=file, validation_file=file, grader=COPY,
        hyperparameters={"batch_size": 4, "n_epochs": 50, "eval_interval": 2},
        metadata={"max_completion_tokens": "6"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not jobs.checkpoints(platform, long.id) and time.monotonic() < deadline:
        time.sleep(0.05)
    platform.fine_tuning.jobs.cancel(long.id)
    step = jobs.checkpoints(platform, long.id)[0].step
    changed = {"hyperparameters": {"n_epochs": step // 2 + 1}}
    made = jobs.branch(platform, f"{long.id}@{step}", **changed)  # type: ignore[arg-type]
    assert jobs.wait(platform, made.id, poll_seconds=0.2).status == "succeeded"
    waiting = jobs.branch(platform, f"{long.id}@{step}")
    platform.fine_tuning.jobs.cancel(waiting.id)
    with pytest.raises(openai.BadRequestError, match=r"kept no state yet|branched from step"):
        jobs.branch(platform, f"{waiting.id}@999")


def test_supervised_and_imported_jobs_are_not_branched_and_the_way_out_is_named(
    served: Served,
) -> None:
    job = served.create_job()
    supervised = served.platform.store.job(job.id).method["reinforcement"]["hyperparameters"]
    method = {"type": "supervised", "supervised": {"hyperparameters": supervised}}
    served.platform.store.update_job(job.id, method=method)
    with pytest.raises(openai.BadRequestError, match="is a supervised job; only reinforcement"):
        jobs.branch(served.client, f"{job.id}@2")
    imported = dataclasses.replace(
        served.platform.store.job(served.create_job().id), id="ftjob-imported", origin="import-1"
    )
    served.platform.store.add_job(imported)
    with pytest.raises(openai.BadRequestError, match="rftkit job rerun ftjob-imported"):
        jobs.branch(served.client, "ftjob-imported@2")


def test_a_damaged_state_is_refused_and_its_sums_are_not_made_anew(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "adapter.bin").write_bytes(b"as it was written")

    parent = Journal(tmp_path / "jobs" / "ftjob-a")
    for step in (2, 4):
        parent.write_state(step, save)
    (tmp_path / "jobs" / "ftjob-a" / "states" / "000004" / "adapter.bin").write_bytes(b"damaged")
    here: Any = SimpleNamespace(home=tmp_path)

    def link(step: int) -> Journal:
        job: Any = SimpleNamespace(id="ftjob-b", metadata={"branch_from": f"ftjob-a@{step}"})
        link_state(here, job)
        return Journal(tmp_path / "jobs" / "ftjob-b")

    with pytest.raises(RequestError, match=r"states/000004/adapter\.bin does not have the bytes"):
        link(4)
    assert Journal(tmp_path / "jobs" / "ftjob-b").branch is None
    sound = link(2).branch
    assert sound is not None
    assert damage(sound) is None


@pytest.mark.parametrize("source", ["ftjob-x", "@12", "ftjob-x@", "ftjob-x@²"])
def test_a_source_without_job_and_step_is_refused_before_anything_is_sent(source: str) -> None:
    with pytest.raises(InputError, match="JOB@STEP"):
        jobs.branch(None, source)  # type: ignore[arg-type]


def test_a_hosted_service_keeps_no_states_and_is_not_asked() -> None:
    """It would start a new job, which costs money."""
    for url in ("https://api.openai.com/v1", "https://mine.openai.azure.com/openai/v1"):
        hosted = openai.OpenAI(base_url=url, api_key="x")
        with pytest.raises(InputError, match="only rftkit platforms keep the states"):
            jobs.branch(hosted, "ftjob-x@2")


def test_the_command_sends_tools_and_turns_of_a_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    job_id = f"ftjob-{'a' * 24}"
    parent = {"id": job_id, "model": "m", "training_file": "file-a", "validation_file": "file-b"}

    def answer(**body: Any) -> Any:
        sent.append(body)
        return SimpleNamespace(id=job_id, to_dict=lambda **_: parent)

    routes = SimpleNamespace(
        retrieve=lambda _: answer(), create=answer, list_events=lambda *_, **__: []
    )
    fake = SimpleNamespace(fine_tuning=SimpleNamespace(jobs=routes))
    monkeypatch.setattr(rftkit_client, "connect", lambda *_: fake)
    entries = [{"name": "look_up", "server_url": "http://tools.test"}]
    (tmp_path / "tools.json").write_text(json.dumps(entries))
    words = ["--max-episode-steps", "20", "--tools", str(tmp_path / "tools.json")]
    done = CliRunner().invoke(cli.app, ["job", "create", "--from", f"{job_id}@8", *words])
    assert done.exit_code == 0, done.output
    inner = sent[-1]["method"]["reinforcement"]
    assert inner["max_episode_steps"] == 20
    assert [each["server_url"] for each in inner["tools"]] == ["http://tools.test"]


def test_the_commands(
    platform: openai.OpenAI,
    parent: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rftkit_client, "connect", lambda *_: platform)
    (tmp_path / "grader.json").write_text(json.dumps(LENGTH))

    def rftkit(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rftkit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    status, out, _ = rftkit(
        "job", "create", "--from", f"{parent.id}@4", "-g", tmp_path / "grader.json"
    )
    assert status == 0
    job = jobs.wait(platform, out.strip(), poll_seconds=0.2)
    assert job.metadata["branch_from"] == f"{parent.id}@4"
    status, out, _ = rftkit("job", "tree", job.id)
    assert status == 0
    assert parent.id in out
    assert f"@4 {job.id}" in out
    status, _, err = rftkit("job", "create", "--from", f"{parent.id}@4", "-m", "rftkit-tiny")
    assert (status, "leave out --model" in err) == (2, True)
    status, _, err = rftkit("job", "create", "--train", "x.jsonl")
    assert (status, "--from JOB@STEP" in err) == (2, True)
