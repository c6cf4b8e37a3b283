"""What is watched while a job trains: figures from the journal, alarms once, also across kills."""

from __future__ import annotations

import json
from typing import Any

import pytest
from in_process import add_job

from rftkit.graders import Grade
from rftkit.rows import Row
from rftkit.server.engine.values import Completion
from rftkit.server.training import watching
from rftkit.server.training.journal import Journal
from rftkit.server.training.rollout import Group, Rollout, group_from_dict, group_to_dict
from rftkit.server.worker.worker import Worker

SHORT = {"type": "python", "name": "short", "source": "def grade(sample, item):\n    return 0.25"}


def group(line: int, texts: list[str], rewards: list[float | None]) -> Group:
    row = Row({"messages": [{"role": "user", "content": f"Question {line}?"}]}, line)
    outcomes = ["failed" if reward is None else "graded" for reward in rewards]
    rollouts = [
        Rollout(Completion([1] * len(text.split()), text, [0.0], "stop"), Grade(reward, outcome))  # type: ignore[arg-type]
        for text, reward, outcome in zip(texts, rewards, outcomes, strict=True)
    ]
    return Group(row, [1], rollouts)


def by_name(groups: list[Group], references: dict[int, str] | None = None) -> dict[str, Any]:
    return {each["name"]: each for each in watching.figures(groups, references or {})}


def test_figures_by_hand() -> None:
    same = "this is the very same answer to every question"
    own = "the moon is made of rock and a little iron"
    found = by_name([group(1, [same, own], [1.0, 0.0]), group(2, [same, same], [1.0, None])])
    assert found["ungradable"]["mean"] == 0.25
    assert found["template"]["num"] == 3
    assert found["template"]["mean"] == pytest.approx(2 / 3)
    assert found["repeated"]["mean"] == 0.0
    assert found["length"]["by"] == pytest.approx(2 / 3)
    assert found["template"]["cross"] == pytest.approx(2 / 3)  # the two go together
    assert "mentions" not in found
    assert "held_out" not in found


def test_repetition_and_cheats() -> None:
    text = "word for word " * 8
    found = by_name([group(1, [text, ""], [1.0, 0.0])], {1: "No."})
    assert found["repeated"]["mean"] > 0.8
    assert found["cheats"]["mean"] == 1.0
    assert found["cheats"]["shown"] == {"empty": 1, "repetition": 1}


def test_padding_is_a_share_of_the_right_answers_and_shared_labels_are_no_cheat() -> None:
    """A policy that always says much is right more often: that is no padding that grows."""
    long = " ".join(f"w{n}" for n in range(30))
    padded, terse, wrong = f"{long} the red door", "the red door", f"{long} a blue gate"
    found = by_name([group(1, [padded, terse, wrong, wrong], [1.0, 1.0, 0, 0])], {1: terse})
    assert (found["padding"]["mean"], found["padding"]["num"]) == (0.5, 2)
    assert found["cheats"]["mean"] == 0.0
    label, own = "needs a review first", "it was the gardener of course"
    known = {1: "it is not allowed", 2: label, 3: label, 4: own}
    assert by_name([group(1, [label], [0.0])], known)["cheats"]["mean"] == 0.0
    assert by_name([group(1, [own], [0.0])], known)["cheats"]["shown"] == {"other_answer": 1}


def test_the_style_of_right_answers_is_no_template() -> None:
    style = "the answer follows from paragraph two because"
    texts = [f"{style} {name} said so to all of us" for name in ("anna", "ben")]
    groups = [group(line, [text], [1.0]) for line, text in enumerate(texts, start=1)]
    shared = by_name(groups)["template"]["mean"]
    known = {line: f"{style} x{line}" for line in (1, 2)}
    assert by_name(groups, known)["template"]["mean"] < shared
    assert by_name(groups, known)["template"]["mean"] > 0, "what right answers lack still counts"


def test_a_held_out_grade_is_in_the_record_and_older_records_have_none() -> None:
    made = group(1, ["a"], [1.0])
    assert "held_out" not in group_to_dict(made)["rollouts"][0]
    rollout = Rollout(made.rollouts[0].completion, made.rollouts[0].grade, Grade(0.5, "graded"))
    data = json.loads(json.dumps(group_to_dict(Group(made.row, [1], [rollout]))))
    back = group_from_dict(data, {1: made.row})
    assert back.rollouts[0].held_out == Grade(0.5, "graded")


def figures_of(worker: Worker, job: Any) -> list[dict[str, Any]]:
    events = worker.store.events(job.id, limit=1000)[0][::-1]
    data = (event.data or {} for event in events if event.type == "metrics")
    return [each for each in data if each["step"]]


def test_a_held_out_grader_that_fails_is_said_once(worker: Worker) -> None:
    job = add_job(worker, metadata={"held_out_samples": "3", "guidance": "none"})
    fails = {**SHORT, "source": "def grade(sample, item):\n    raise ValueError('it is down')"}
    job = worker.store.update_job(
        job.id, method={**job.method, "held_out": fails}, status="running"
    )
    worker.run_job(job)
    assert worker.store.job(job.id).status == "succeeded"
    events = worker.store.events(job.id, limit=1000)[0]
    [said] = [each for each in events if "held-out grader graded none" in each.message]
    assert said.level == "warn"
    assert "step 1 " in said.message
    assert "it is down" in said.message


def test_a_job_with_a_held_out_grader_is_watched(worker: Worker) -> None:
    job = add_job(worker, metadata={"held_out_samples": "3", "guidance": "none"})
    method = {**job.method, "held_out": SHORT}
    job = worker.store.update_job(job.id, method=method, status="running")
    worker.run_job(job)
    assert worker.store.job(job.id).status == "succeeded"
    for data in figures_of(worker, job):
        named = {each["name"]: each for each in data["watch"]}
        assert named["held_out"]["mean"] == 0.25
        assert named["held_out"]["num"] <= 3
        assert {"length", "ungradable", "cheats"} <= set(named)
    record = Journal(worker.home / "jobs" / job.id).record("steps", 1)
    assert record is not None
    held = [r.get("held_out") for g in record["groups"] for r in g["rollouts"]]
    assert sum(each is not None for each in held) <= 3
