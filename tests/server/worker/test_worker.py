"""The worker without its process: caps, accounts, final checks, damage, a full disk, tools."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_process
import pytest
from in_process import add_job, messages, metrics, run

from rftkit.errors import EngineLostError
from rftkit.graders import Sample
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.inference.requests import ChatRequest
from rftkit.server.training import journal as journal_module
from rftkit.server.training import rft, sampling
from rftkit.server.training.accounts import JudgeAccount
from rftkit.server.training.rft_plan import make_plan
from rftkit.server.worker.worker import Worker

JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "rftkit-tiny",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
}


def again(worker: Worker) -> Worker:
    """What follows a killed worker."""
    worker.store.close()
    return Worker(worker.home, lambda message: None)


def test_a_jobs_judge_is_not_asked_twice(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        completion = {"text": '{"steps": [], "result": 0.5}', "stop_reason": "stop", "tokens": 3}
        return {"prompt_tokens": 2, "completions": [completion]}

    job = add_job(worker, grader=JUDGE)
    for _ in range(2):  # the second worker follows a killed one
        worker = again(worker)
        monkeypatch.setattr(worker.chats, "ask", ask)
        account = JudgeAccount(worker.home / "judges.jsonl")
        with worker._grader(job, make_plan(job, 4), account) as grader:
            assert [grader.grade(Sample("same"), {}).reward for _ in range(2)] == [0.5, 0.5]
        assert account.totals["rftkit-tiny"]["total_tokens"] == 5  # after the kill, too
    assert len(asked) == 1


def test_every_call_of_a_judge_is_in_the_account_whatever_became_of_its_grade(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grades that fail are tried twice, and again after a repair: all of that was paid."""
    is_broken, asked = True, 0

    def ask(request: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        text = "not JSON" if is_broken else '{"steps": [], "result": 0.5}'
        completion = {"text": text, "stop_reason": "stop", "tokens": 3}
        return {"prompt_tokens": 2, "completions": [completion]}

    monkeypatch.setattr(worker.chats, "ask", ask)
    judge = {
        **JUDGE,
        "input": [{"role": "user", "content": "{{item.answer}} {{sample.output_text}}"}],
    }
    job = run(worker, add_job(worker, grader=judge))
    assert job.status == "paused"
    assert job.usage_metrics is not None
    assert job.usage_metrics["model_graders"]["rftkit-tiny"]["total_tokens"] == 5 * asked
    assert asked >= 2 * len(in_process.ROWS)
    is_broken = False
    worker.store.resume_job(job.id)
    job = run(worker, job)
    assert job.status == "succeeded", job.error
    assert job.usage_metrics is not None
    assert job.usage_metrics["model_graders"] == {
        "rftkit-tiny": {
            "prompt_tokens": 2 * asked,
            "completion_tokens": 3 * asked,
            "total_tokens": 5 * asked,
            "cached_tokens": 0,
        }
    }


def test_an_account_that_an_older_rftkit_began_goes_on(tmp_path: Path) -> None:
    before = {"judge": {"prompt_tokens": 7}}
    path = tmp_path / "judges.jsonl"
    assert JudgeAccount(path, before).totals == before
    assert JudgeAccount(path, {"judge": {"prompt_tokens": 100}}).totals == before
    path.write_bytes(path.read_bytes() + b'[1]\n{"judge": 5}\n{"judge": {"prompt_tokens": "x"}}')
    path.write_bytes(path.read_bytes() + b'\n{"cut off')
    assert JudgeAccount(path).totals == before


def test_the_account_is_kept_step_by_step(worker: Worker) -> None:
    job = run(worker, add_job(worker))
    assert job.status == "succeeded", job.error
    used = job.usage_metrics
    assert used is not None
    steps = metrics(worker, job)
    seconds = sum(step["timing"]["step"]["full_iteration"] for step in steps)
    assert used["core_seconds"] == pytest.approx(seconds)
    tokens = used["tokens"]
    per_step = sum(step.get("completion_tokens_mean", 0) * 4 * 8 for step in steps)
    assert tokens["sampling"]["completion_tokens"] == pytest.approx(per_step)
    assert tokens["validation"]["prompt_tokens"] > tokens["sampling"]["prompt_tokens"] > 0
    assert tokens["training"] == used["trained_tokens"] == job.trained_tokens
    assert used["model_graders"] == {}
    assert messages(worker, job)[-4].startswith("Final checks: none ran")


def test_a_cap_on_core_seconds_pauses_once(worker: Worker) -> None:
    job = run(worker, add_job(worker, metadata={"max_core_seconds": "0.001"}))
    assert job.status == "paused"
    assert [data["step"] for data in metrics(worker, job)] == [0]
    [said] = [m for m in messages(worker, job) if "max_core_seconds" in m and "pauses" in m]
    assert "allows 0.001" in said
    worker.store.resume_job(job.id)
    assert run(worker, job).status == "succeeded"
    bad = run(worker, add_job(worker, metadata={"max_core_seconds": "soon"}))
    assert bad.error is not None
    assert bad.error["param"] == "metadata.max_core_seconds"


CHECK: dict[str, Any] = {"grader": {**in_process.COPY, "name": "repeats"}, "pass_threshold": 0.0}
BROKEN = {"type": "python", "name": "broken", "source": "def grade(sample, item):\n    return 1/0"}


def test_a_model_that_passes_the_final_checks(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []
    sampled = sampling.sampled
    monkeypatch.setattr(
        sampling, "sampled", lambda *given: (kinds.append(given[1]), sampled(*given))[1]
    )
    rows = worker.home / "other.jsonl"
    rows.write_text(json.dumps(in_process.ROWS[0]) + "\n")
    checks = {"repeats": CHECK, "other": {**CHECK, "rows": "other.jsonl"}}
    (worker.home / "checks.json").write_text(json.dumps(checks))
    job = run(worker, add_job(worker))
    assert job.status == "succeeded", job.error
    events = worker.store.events(job.id, limit=100)[0]
    [event] = [event for event in events if event.type == "moderation_checks"]
    assert event.data is not None
    found = event.data["checks"]
    assert {name: result["samples"] for name, result in found.items()} == {"repeats": 8, "other": 1}
    assert all(result["passed"] for result in found.values())
    assert [kind for kind in kinds if kind.startswith("checks")] == [
        "checks repeats",
        "checks other",
    ]


def test_a_model_that_does_not_pass_gets_no_name(worker: Worker) -> None:
    checks = {"perfect": {**CHECK, "pass_threshold": 2.0}}
    (worker.home / "checks.json").write_text(json.dumps(checks))
    job = run(worker, add_job(worker))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "final_checks_failed"
    assert "perfect" in job.error["message"]
    names = [model.name for model in worker.store.models()]
    assert [name.rpartition(":")[2] for name in names] == ["ckpt-step-1"]


def test_a_check_whose_grader_breaks_pauses_the_job(worker: Worker) -> None:
    path = worker.home / "checks.json"
    path.write_text(json.dumps({"odd": {"grader": BROKEN, "pass_threshold": 0.5}}))
    job = run(worker, add_job(worker))
    assert job.status == "paused"
    assert "graders of the final checks failed (odd)" in messages(worker, job)[-1]
    path.unlink()
    worker.store.resume_job(job.id)
    assert run(worker, job).status == "succeeded"


def test_dropped_checkpoints_leave_the_disk(worker: Worker) -> None:
    job = run(worker, add_job(worker, rows=in_process.ROWS * 3))  # six steps, six checkpoints
    assert job.status == "succeeded", job.error
    kept = {Path(each.folder).name for each in worker.store.checkpoints(job.id)}
    assert len(kept) == 4
    folder = worker.home / "jobs" / job.id / "checkpoints"
    assert {path.name for path in folder.iterdir()} == kept
    assert len(worker.store.models()) == 4


def test_a_checkpoint_that_another_job_starts_from_is_kept(worker: Worker) -> None:
    first = add_job(worker, rows=in_process.ROWS * 3)
    record = worker.store.add_checkpoint

    def add_checkpoint(job_id: str, step: int, name: str, metrics: Any, folder: str) -> str:
        worst = {**metrics, "full_valid_mean_reward": float(step)}  # the first is the worst
        made = record(job_id, step, name, worst, folder)
        if step == 1:
            add_job(worker, model=name)
        return made

    worker.store.add_checkpoint = add_checkpoint  # type: ignore[method-assign]
    first = run(worker, first)
    assert [each.step for each in worker.store.checkpoints(first.id)] == [6, 5, 4, 3, 1]
    [second] = [job for job in worker.store.jobs()[0] if job.id != first.id]
    assert run(worker, second).status == "succeeded"


def _flip(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _break_off(folder: Path) -> None:
    """Leave what a copy leaves that was broken off."""
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "named"),
    [(_flip, "states/000001/adapter_model.safetensors"), (_empty, "states/000001 is not whole"),
     (_break_off, "states/000001 is not whole")],
)  # fmt: skip
def test_a_damaged_state_is_named_and_passed_over(
    worker: Worker, harm: Callable[[Path], None], named: str
) -> None:
    calm = run(worker, add_job(worker))
    job = add_job(worker, metadata={"max_core_seconds": "0.001"})
    worker.store.update_job(job.id, seed=calm.seed)
    run(worker, job)
    worker.store.resume_job(job.id)
    saved = worker.home / "jobs" / job.id / "states"
    real = journal_module.Journal.write_state

    def and_damage(self: Any, step: int, save: Any, **more: Any) -> None:
        real(self, step, save, **more)
        if step == 1:
            harm(saved / "000001")
            raise KeyboardInterrupt  # as a kill would

    journal_module.Journal.write_state = and_damage  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            run(worker, job)
    finally:
        journal_module.Journal.write_state = real  # type: ignore[method-assign]
    worker = again(worker)
    done = run(worker, job)
    assert done.status == "succeeded", done.error
    [said] = [m for m in messages(worker, job) if "damaged" in m]
    assert named in said
    assert in_process.adapters(worker.home, job) == in_process.adapters(worker.home, calm)
    worker.store.close()


def test_a_checkpoint_of_which_files_are_lost_is_written_again(tmp_path: Path) -> None:
    journal = journal_module.Journal(tmp_path)

    def save(folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "weights").write_text("1")

    folder = journal.write_checkpoint(1, save)
    for harm in (_empty, lambda folder: (folder / "weights").unlink()):
        harm(folder)
        assert journal.write_checkpoint(1, save) == folder
        assert (folder / "weights").read_text() == "1"


@pytest.mark.parametrize("name", ["valid/000000.json.gz", "steps/000001.json.gz", "plan.json"])
@pytest.mark.parametrize(
    "damage", [b"", b"not gzip", gzip.compress(b"[]"), None], ids=["empty", "text", "list", "cut"]
)
def test_a_damaged_record_is_named_and_made_again(
    worker: Worker, name: str, damage: bytes | None
) -> None:
    calm = run(worker, add_job(worker, eval_interval=2))
    job = add_job(worker, eval_interval=2)
    save = journal_module.Journal.write_record

    def and_damage(self: Any, kind: str, step: int, data: Any) -> None:
        save(self, kind, step, data)
        path = self.folder / name
        if path.is_file():
            harmed = b"[]" if damage and name == "plan.json" else damage
            path.write_bytes(path.read_bytes()[:-9] if harmed is None else harmed)
            raise KeyboardInterrupt  # as a kill would

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module.Journal, "write_record", and_damage)
        with pytest.raises(KeyboardInterrupt):
            run(worker, job)
    done = run(worker, job)
    assert done.status == "succeeded", done.error
    [said] = [m for m in messages(worker, job) if "is damaged" in m]
    assert name in said
    assert (worker.home / "jobs" / job.id / f"{name}.damaged").is_file()
    assert in_process.adapters(worker.home, job) == in_process.adapters(worker.home, calm)


def test_grades_that_this_version_cannot_read_are_given_again(worker: Worker) -> None:
    calm = run(worker, add_job(worker, eval_interval=2))
    job = add_job(worker, eval_interval=2)

    def kill(self: Any, kind: str, step: int, data: Any) -> None:
        if kind == "steps":
            raise KeyboardInterrupt
        save(self, kind, step, data)

    save = journal_module.Journal.write_record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module.Journal, "write_record", kill)
        with pytest.raises(KeyboardInterrupt):
            run(worker, job)
    [kept] = (worker.home / "jobs" / job.id / "drafts").glob("steps-*.grades")
    lines = [json.loads(line) for line in kept.read_text().split("\n") if line]
    assert lines
    kept.write_text("".join(f"{json.dumps([*line[:2], {'of': 'another'}])}\n" for line in lines))
    assert run(worker, job).status == "succeeded"
    assert in_process.adapters(worker.home, job) == in_process.adapters(worker.home, calm)


@pytest.mark.parametrize("name", ["steps/000002", "steps/000003", "drafts/steps-000003"])
def test_a_damaged_record_of_a_step_that_was_sampled_ahead_is_made_again_the_same(
    worker: Worker, name: str
) -> None:
    """Such a step was sampled before the last update, so a later state would not do."""
    options: dict[str, Any] = {"n_epochs": 2, "metadata": {"max_staleness": "1"}}
    calm = run(worker, add_job(worker, **options))
    job = add_job(worker, **options)
    writer = "write_record" if name.startswith("steps") else "write_state"
    write = getattr(journal_module.Journal, writer)

    def and_damage(self: Any, *arguments: Any, **more: Any) -> None:
        write(self, *arguments, **more)
        path = self.folder / f"{name}.json.gz"
        if path.is_file() and (writer == "write_record" or arguments[0] == 2):
            path.write_bytes(b"")
            raise KeyboardInterrupt  # as a kill would

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module.Journal, writer, and_damage)
        with pytest.raises(KeyboardInterrupt):
            run(worker, job)
    states = worker.home / "jobs" / job.id / "states"
    assert f"00000{int(name[-1]) - 1}" in {path.name for path in states.iterdir()}
    done = run(worker, job)
    assert done.status == "succeeded", done.error
    assert in_process.adapters(worker.home, job) == in_process.adapters(worker.home, calm)


def test_a_database_that_is_locked_for_long_makes_a_job_wait(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.server.worker.worker.FULL_SECONDS", 0.0)
    errors = [
        sqlite3.OperationalError("database is locked"),
        sqlite3.OperationalError("unable to open database file"),
        OSError(24, "Too many open files"),
    ]
    report = rft.report

    def hindered(*arguments: Any) -> None:
        if errors:
            raise errors.pop()
        report(*arguments)

    monkeypatch.setattr(rft, "report", hindered)
    job = run(worker, add_job(worker))
    assert job.status == "succeeded", job.error
    assert [data["step"] for data in metrics(worker, job)] == [0, 1, 2]
    assert (
        sum("The job continues when the problem is solved" in m for m in messages(worker, job)) == 2
    )


def test_a_plan_of_a_newer_version_pauses_its_job(worker: Worker) -> None:
    job = add_job(worker, metadata={"max_core_seconds": "0.001"})
    assert run(worker, job).status == "paused"
    path = worker.home / "jobs" / job.id / "plan.json"
    mine = json.loads(path.read_bytes())
    for newer in ({**mine, "version": 99}, {**mine, "warmth": 0.5}):
        path.write_text(json.dumps(newer))
        worker.store.resume_job(job.id)
        assert run(worker, job).status == "paused"
        assert "this job was started by a newer rftkit" in messages(worker, job)[-1]
    path.write_text(json.dumps({key: mine[key] for key in mine if key != "version"}))  # older
    worker.store.resume_job(job.id)
    assert run(worker, job).status == "succeeded"


def test_a_prompt_that_fills_the_context_is_refused_and_one_that_nearly_does_is_reported(
    worker: Worker,
) -> None:
    engine = worker.engines.get("rftkit-tiny")
    empty = len(engine.encode([{"role": "user", "content": ""}]))

    def row(tokens: int) -> dict[str, Any]:
        content = "a" * (tokens - empty)
        return {"messages": [{"role": "user", "content": content}], "answer": "a"}

    full = engine.context_tokens
    failed = run(worker, add_job(worker, rows=[*in_process.ROWS, row(full)]))
    assert failed.error is not None
    assert f"rows.jsonl:{len(in_process.ROWS) + 1}: the prompt has {full:,} tokens" in str(
        failed.error["message"]
    )
    job = run(worker, add_job(worker, rows=[*in_process.ROWS[:3], row(full - 2)]))
    assert job.status == "succeeded", job.error
    assert any("leave less than max_completion_tokens=6" in m for m in messages(worker, job))


def test_a_job_whose_base_model_is_away_waits_for_it(worker: Worker, tiny: Path) -> None:
    folder, away = tiny.with_name("mine"), tiny.with_name("away")
    shutil.copytree(tiny, folder)
    (worker.home / "bases.json").write_text(json.dumps({"mine": str(folder)}))
    job = run(worker, add_job(worker, model="mine", metadata={"max_core_seconds": "0.001"}))
    assert job.status == "paused"
    folder.rename(away)
    worker = again(worker)
    worker.store.resume_job(job.id)
    assert run(worker, job).status == "paused"
    assert "has no config.json now" in messages(worker, job)[-1]
    away.rename(folder)
    worker.store.resume_job(job.id)
    assert run(worker, job).status == "succeeded"
    worker.store.close()


def test_damaged_data_and_weights_are_named(worker: Worker) -> None:
    job = run(worker, add_job(worker))
    answers: list[dict[str, Any]] = []
    worker.chats._send = answers.append
    adapter = next((worker.home / "jobs" / job.id / "checkpoints").glob("*/adapter_model*"))
    model = next(m for m in worker.store.models() if m.folder == str(adapter.parent))
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"?")
    request = ChatRequest(
        model.name, in_process.ROWS[0]["messages"], temperature=0.0, max_tokens=3, seed=1
    )
    worker.chats.put(1, request)
    worker.chats.serve()
    assert f"the weights of {model.name} are damaged" in answers[-1]["error"]["message"]
    other = add_job(worker)
    path = worker.store.file_path(other.training_file)
    path.write_bytes(path.read_bytes()[:-2] + b" \n")
    failed = run(worker, other)
    assert failed.error is not None
    assert "is damaged" in failed.error["message"]


def test_a_full_disk_makes_a_job_wait_not_fail(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run(worker, add_job(worker))
    monkeypatch.setattr("rftkit.server.worker.worker.FULL_SECONDS", 0.0)
    chance = iter([False, True, False, False, True, True, False, True] + [False] * 1000)
    write, save = journal_module.write_whole, TorchEngine.save_adapter

    def maybe_full(*arguments: Any) -> None:
        if next(chance):
            raise OSError(28, "No space left on device")
        write(*arguments)

    def maybe_wrapped(*arguments: Any) -> None:
        if next(chance):  # as safetensors says it
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        save(*arguments)

    monkeypatch.setattr(journal_module, "write_whole", maybe_full)
    monkeypatch.setattr(TorchEngine, "save_adapter", maybe_wrapped)
    job = run(worker, add_job(worker))
    assert job.status == "succeeded", job.error
    assert any("The disk is full" in said for said in messages(worker, job))
    assert [data["step"] for data in metrics(worker, job)] == [0, 1, 2]
    assert in_process.adapters(worker.home, job) == in_process.adapters(worker.home, calm)


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "enum": ["a", "b"]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}
CALLED = {
    "type": "string_check",
    "name": "called",
    "operation": "like",
    "input": "{{sample.output_tools[0].function.arguments}}",
    "reference": "{{item.answer}}",
}


@pytest.mark.parametrize(("refused", "ends"), [(True, "failed"), (False, "running")])
def test_a_server_that_refuses_time_after_time_fails_the_job_one_that_is_away_does_not(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, refused: bool, ends: str
) -> None:
    def lose(*_: Any) -> None:
        error = EngineLostError("the Tinker server said: rank 64 is above 32")
        error.refused = refused
        raise error

    monkeypatch.setattr("rftkit.server.worker.worker.AWAY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("rftkit.server.training.loop.train", lose)
    job = add_job(worker)
    worker.run_job(job)  # validates
    for _ in range(5):
        assert worker.store.job(job.id).status != "failed"
        worker.run_job(worker.store.update_job(job.id, status="running"))
    found = worker.store.job(job.id)
    assert found.status == ends
    if refused:
        assert "rank 64 is above 32. It refused the step 5 times in a row" in found.error["message"]


def test_a_job_has_the_budget_of_its_plan_and_leaves_the_engines_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def look(given: Any, method: Any) -> None:
        seen.append((given.engine.memory_bytes, given.plan.memory_bytes))

    monkeypatch.setattr("rftkit.server.training.loop.train", look)
    jobs = [add_job(worker), add_job(worker)]
    for job in jobs:
        worker.run_job(job)  # validates
    planned = dataclasses.replace(make_plan(jobs[0], 4), memory_bytes=12_345_678)
    journal_module.Journal(worker.home / "jobs" / jobs[0].id).write_plan(planned.to_dict())
    for job in jobs:
        worker.run_job(worker.store.update_job(job.id, status="running"))
    (of_plan, _), (measured, as_planned) = seen
    assert of_plan == 12_345_678
    assert measured == as_planned > 50_000_000


def test_tools_of_a_row_are_called_and_graded(worker: Worker) -> None:
    rows = [{**row, "answer": row["answer"][0], "tools": [LOOK]} for row in in_process.ROWS]
    never = {"type": "object", "properties": {"z": {"const": 1}}, "required": ["z"],
             "additionalProperties": False}  # fmt: skip
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": never}}
    # The tools fill most of the tiny model's context, and answers would be cut at its end.
    worker.engines.get("rftkit-tiny").context_tokens = 2_048
    job = add_job(
        worker, rows=rows, grader=CALLED, response_format=format_, eval_samples=4,
        metadata={"max_completion_tokens": "80"},
    )  # fmt: skip
    job = run(worker, job)
    assert job.status in ("succeeded", "paused"), job.error
    assert job.eval_id is not None
    [first, *_] = worker.store.runs(job.eval_id)[0]
    samples = [item.sample for item in worker.store.items(first.id, limit=100)[0]]
    calls = [call for each in samples for call in each["output"][0].get("tool_calls", [])]
    assert {call["function"]["name"] for call in calls} <= {"look"}
    assert calls
    assert {each["finish_reason"] for each in samples} >= {"tool_calls"}
    scores = [data["scores"]["valid_reward_mean"] for data in metrics(worker, job)]
    assert scores[0] is None or 0 <= scores[0] <= 1


def test_a_job_of_a_model_that_thinks(worker: Worker) -> None:
    letters = {"type": "object", "properties": {"is": {"type": "string", "enum": ["ab", "cd"]}},
               "required": ["is"], "additionalProperties": False}  # fmt: skip
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": letters}}
    seen = {
        "type": "python",
        "name": "seen",
        "source": "def grade(sample, item):\n"
        "    thought = sample['choices'][0]['message'].get('reasoning_content', '')\n"
        "    assert '</think>' not in sample['output_text']\n"
        "    return len(thought) / 100 + (sample['output_json']['is'] == 'ab')\n",
    }
    job = run(
        worker,
        add_job(
            worker, grader=seen, response_format=format_, reasoning_effort="low",
            metadata={"max_completion_tokens": "60", "thinking": "<think>"},
        ),
    )  # fmt: skip
    assert job.status == "succeeded", job.error
    for data in metrics(worker, job):
        samples = data["usage"]["samples"]
        budget = 15 + len("\n</think>") + 3  # the rest of a character comes first
        assert 0 < samples["valid_reasoning_tokens_mean"] <= budget
        assert data["learning"].get("logprob_gap_max", 0.0) < 1e-4
    assert job.usage_metrics is not None
    assert job.usage_metrics["tokens"]["sampling"]["reasoning_tokens"] > 0
    assert job.eval_id is not None
    [first, *_] = worker.store.runs(job.eval_id)[0]
    sample = worker.store.items(first.id)[0][0].sample
    assert json.loads(sample["output"][0]["content"])["is"] in ("ab", "cd")
    assert sample["output"][0]["reasoning_content"]
    assert sample["usage"]["reasoning_tokens"] <= sample["usage"]["completion_tokens"]
    assert {model.thinking for model in worker.store.models()} == {"<think>"}


def test_a_worker_whose_server_was_killed_ends_and_fails_no_job(worker: Worker) -> None:
    """It says that it loads a model, and nobody reads: that is no fault of the job."""
    job = add_job(worker)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "rftkit.server.worker", "--home", str(worker.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writer) as process:
        os.close(writer)
        os.close(reader)
        assert process.wait(120) == 0
    assert worker.store.job(job.id).status == "running"
