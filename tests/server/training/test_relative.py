"""Jobs whose grader is a rubric or compares the answers of a group: metrics, anchors, kills."""

from __future__ import annotations

from typing import Any

import in_process
import pytest
from in_process import add_job, messages, metrics
from rubric_judge import RelativeScript, RubricScript

from rftkit.graders import judge as judge_module
from rftkit.jobs import judge_frame, step_frame
from rftkit.reports.summary import summary
from rftkit.server.training.journal import Journal
from rftkit.server.training.metrics import result_csv
from rftkit.server.worker import worker as worker_module
from rftkit.server.worker.worker import Worker
from rftkit.views.headline import verdict

RELATIVE = {
    "type": "relative",
    "name": "better",
    "model": "judge-1",
    "input": [{"role": "user", "content": "{{item.answer}}"}],
}
RUBRIC = {
    "type": "rubric",
    "name": "quality",
    "model": "judge-1",
    "criteria": [
        {"text": "has an a", "required": True},
        {"text": "has a b", "check": "presence", "weight": 2},
    ],
}


def liked(text: str, position: int) -> float:
    """Long answers are liked, and early ones a little more."""
    return len(set(text)) / 10 + 0.02 * (position == 0)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_JUDGE_BASE_URL", "http://elsewhere/v1")
    monkeypatch.setattr(judge_module, "_FIRST_PAUSE_SECONDS", 0.0)


def asks(monkeypatch: pytest.MonkeyPatch, judge: Any) -> Any:
    """Jobs ask this judge."""
    monkeypatch.setattr(worker_module, "judge_call", lambda platform: judge)
    return judge


def events(worker: Worker, job: Any) -> list[dict[str, Any]]:
    found = worker.store.events(job.id, limit=1000)[0][::-1]
    return [{"type": e.type, "message": e.message, "data": e.data} for e in found]


def test_a_job_learns_from_comparisons_within_its_groups(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = asks(monkeypatch, RelativeScript(liked))
    job = in_process.run(worker, add_job(worker, grader=RELATIVE))
    assert job.status == "succeeded", messages(worker, job)
    assert max(map(len, judge.asked)) > 2, "groups are shown side by side"
    first, *steps = metrics(worker, job)
    assert first["full_valid_mean_reward"] == 0.5, "each answer of step 0 is its own anchor"
    assert first["scores"]["is_relative"] is True
    assert "(relative: train within groups" in " ".join(messages(worker, job))
    assert any("says nothing about other steps" in each for each in messages(worker, job))
    line = steps[0]["scores"]["graders"][0]
    assert line["train_position_bias"] > 0
    assert 0 <= line["train_order_disagreement"] < 0.5
    assert steps[0]["learning"]["flat_groups"] < 1
    told = events(worker, job)
    frame = judge_frame(told)
    assert {"position_bias", "order_disagreement"} <= set(frame["figure"])
    assert step_frame(told)["is_relative"].eq(1).all()
    assert "0.5 is as good" in verdict(summary(told))


def test_validations_compare_with_the_answers_of_step_0(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = asks(monkeypatch, RelativeScript(liked))
    job = in_process.run(worker, add_job(worker, grader=RELATIVE))
    journal = Journal(worker.home / "jobs" / job.id)
    start, last = (journal.record("valid", step) for step in (0, 2))
    assert start is not None
    assert last is not None
    for old, new in zip(start["groups"], last["groups"], strict=True):
        [before], [after] = old["rollouts"], new["rollouts"]
        one, other = before["completion"]["text"], after["completion"]["text"]
        assert before["grade"]["reward"] == 0.5
        if other != one and after["grade"]["outcome"] == "graded":
            assert after["grade"]["judged"][""]["anchor"] == one
            both = [(liked(one, 1), liked(other, 0)), (liked(one, 0), liked(other, 1))]
            reward = 0.5 + sum(b - a for a, b in both) / 4
            assert after["grade"]["reward"] == pytest.approx(reward)
    assert judge.asked


class Killed(BaseException):
    """What a SIGKILL is to the story."""


def test_a_kill_between_the_grades_of_a_group_changes_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-kept groups are compared again: the same question, which the judge's cache answers."""
    judge = asks(monkeypatch, RelativeScript(liked))
    whole = in_process.run(worker, add_job(worker, grader=RELATIVE))
    rewards = [each["train_mean_reward"] for each in metrics(worker, whole)[1:]]
    calls = len(judge.asked)
    judge.asked.clear()
    (worker.home / "judge-cache.jsonl").unlink()
    keep, count = Journal.add_grade, iter(range(10_000))

    def kill(journal: Journal, kind: str, *rest: Any) -> None:
        keep(journal, kind, *rest)
        if kind == "steps" and next(count) in (2, 13, 40):
            raise Killed

    monkeypatch.setattr(Journal, "add_grade", kill)
    job = add_job(worker, grader=RELATIVE)
    for _ in range(6):
        try:
            job = in_process.run(worker, job)
            break
        except Killed:
            continue
    assert job.status == "succeeded", messages(worker, job)
    assert [each["train_mean_reward"] for each in metrics(worker, job)[1:]] == rewards
    assert in_process.adapters(worker.home, job) == in_process.adapters(worker.home, whole)
    assert len(judge.asked) == calls, "no question was paid for twice"


def test_a_judge_that_fails_pauses_the_job_and_no_reward_is_zero(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = asks(monkeypatch, RelativeScript(liked))
    job = add_job(worker, grader=RELATIVE)
    judge.fail = True
    job = in_process.run(worker, job)
    assert job.status == "paused"
    [data] = metrics(worker, job)[-1:]
    assert data.get("train_mean_reward") is None
    said = " ".join(messages(worker, job))
    assert "The job pauses" in said
    assert "better" in said


def test_a_rubric_shows_what_was_met(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asks(monkeypatch, RubricScript(lambda *_: "met"))
    spec = RUBRIC | {"criteria": [*RUBRIC["criteria"], "is short"]}  # type: ignore[misc]
    job = in_process.run(worker, add_job(worker, grader=spec))
    assert job.status == "succeeded", messages(worker, job)
    line = metrics(worker, job)[-1]["scores"]["graders"][0]
    assert [each["text"] for each in line["criteria"]] == ["has an a", "has a b", "is short"]
    assert line["train_required_met_mean"] == line["train_presence_met_mean"] == 1.0
    assert line["train_undecided_share"] == 0.0
    frame = judge_frame(events(worker, job))
    assert set(frame.loc[frame["figure"] == "met", "criterion"]) == {
        "has an a", "has a b", "is short"
    }  # fmt: skip
    assert b"required_met_mean" in result_csv(metrics(worker, job))


@pytest.mark.parametrize("guidance", ["references", None])
def test_references_do_not_guide_a_comparison(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, guidance: str | None
) -> None:
    asks(monkeypatch, RelativeScript(liked))
    metadata = {"guidance": guidance} if guidance else {}
    job = in_process.run(worker, add_job(worker, grader=RELATIVE, metadata=metadata))
    said = " ".join(messages(worker, job)) + str(job.error)
    assert job.status == ("failed" if guidance else "succeeded"), said
    assert ("compares the answers of a group, and a reference answer" in said) == bool(guidance)
