"""What views, frames and the terminal show of where the signal is; and of services without it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import sample_job
from openai.types.fine_tuning import FineTuningJob

from rftkit import jobs, views
from rftkit.diagnosis import Change, findings, gain_sentence, story_of

VALUES = ["yes", "no", "needs review"]


def side(yes: float, so_far: int, never: list[str]) -> dict[str, Any]:
    return {
        "samples": {"yes": yes, "no": 1 - yes, "needs review": 0.0},
        "references": dict.fromkeys(VALUES, 1 / 3),
        "num_samples": 64, "num_references": 9, "num_prompts": 9,
        "num_samples_so_far": so_far, "never_sampled": never,
    }  # fmt: skip


def event(step: int, yes: float = 0.5, **learning: Any) -> dict[str, Any]:
    """A step that both graders have figures for; steps 0 and 4 are validations."""
    leaf = {"type": "python", "train_flat_groups": 0.25, "train_reward_spread": 0.5}
    scores: dict[str, Any] = {"train_reward_mean": 0.5, "graders": []}
    for name, rise in (("compliant", 0.0), ("explanation", 0.1)):
        line = leaf | {"name": name, "train_reward_mean": 0.3}
        if step % 4 == 0:
            line |= {"valid_reward_mean": 0.3 + rise * step, "valid_reward_stderr": 0.03}
            scores["valid_reward_mean"] = 0.3 + 0.05 * step
        scores["graders"].append(line)
    given = {"flat_groups": 0.1, "entropy": 0.5, "truncated_share": 0.0} | learning
    if step % 4 == 0:
        given["valid_reward_stderr"] = 0.02
    answer = {"name": "compliant", "grader": "compliant", "values": VALUES}
    answer |= {"train": side(yes, 64 * step, ["needs review"])}
    data = {"step": step, "total_steps": 4, "scores": scores, "learning": given}
    return {
        "id": f"e{step}", "type": "metrics", "level": "info", "message": "",
        "data": data | ({"answers": [answer]} if step else {}),
    }  # fmt: skip


def codes(events: list[dict[str, Any]]) -> list[str]:
    return [each.key for each in findings(story_of(events))]


def test_a_sub_grader_that_did_not_move_is_named_with_where_the_gain_came_from() -> None:
    found = findings(story_of([event(step) for step in range(5)]))
    assert [each.key for each in found] == ["never_sampled:compliant", "still:compliant"]
    assert "33% of the references have it as `compliant`" in found[0].message
    assert "`guidance`" in found[0].advice
    assert found[1].message == (
        "The validation reward (step 0 to 4) rose by 0.20. It came from `explanation` (+0.40); "
        "`compliant` shows no clear change."
    )


def test_references_that_guide_a_job_are_given_time_and_not_advised_again() -> None:
    assert not codes([event(step, guided=30) for step in (1, 2, 3, 5)])
    started = {"type": "message", "data": {"hyperparameters": {"guidance": "references"}}}
    assert not codes([started, *(event(step) for step in (1, 2, 3, 5))])
    steps = [event(step, guided=30) for step in (1, 2, 3, 5, 6, 7)]
    [found] = findings(story_of(steps))
    assert found.key == "never_sampled:compliant"
    assert "guide this job already" in found.advice


@pytest.mark.parametrize(
    ("learning", "code"),
    [
        ({"truncated_share": 0.95}, "cut_off"),
        ({"flat_groups": 1.0}, "flat"),
        ({"flat_groups": 0.9}, "mostly_flat"),
        ({"flat_groups": 1.0, "no_signal_groups": 0.9}, "mostly_flat"),
        ({"entropy": 0.001}, "low_entropy"),
        ({"reward_min": 0.0, "reward_max": 0.0, "num_graded": 64}, "same_pay"),
    ],
)
def test_each_rule_speaks(learning: dict[str, Any], code: str) -> None:
    assert code in codes([event(step, **learning) for step in range(1, 4)])
    assert code not in codes([event(step) for step in range(1, 4)])


def test_a_model_that_has_learnt_its_task_is_not_warned_of() -> None:
    begun = [event(1, reward_min=0.0, reward_max=0.5, num_graded=64)]
    done = [
        event(step, flat_groups=1.0, entropy=0.001, reward_min=0.5, reward_max=0.5, num_graded=64)
        for step in range(2, 7)
    ]
    assert codes(begun + done) == ["never_sampled:compliant"]


def test_answers_that_collapse_in_training_are_named() -> None:
    assert "collapsed:compliant" in codes([event(step, yes=0.97) for step in range(1, 6)])
    assert "collapsed:compliant" not in codes([event(step, yes=0.97) for step in range(1, 3)])


def validation(step: int, yes: float, total_steps: int = 8) -> dict[str, Any]:
    """A step whose validation answers are `yes` in this share, and whose samples are mixed."""
    found = event(step)
    found["data"]["total_steps"] = total_steps
    found["data"]["scores"]["valid_reward_mean"] = 0.5
    if step:
        found["data"]["answers"][0]["valid"] = side(yes, 0, [])
    return found


def test_one_validation_with_equal_answers_is_no_collapse_before_the_end() -> None:
    """Greedy answers are equal as soon as one value is the most likely one for every prompt."""
    equal = [validation(0, 1), validation(2, 1), event(3)]
    assert "collapsed:compliant" not in codes(equal)
    assert "collapsed:compliant" not in codes([*equal, validation(4, 0.4)])
    assert "collapsed:compliant" in codes([*equal, validation(4, 0.0)]), "another one, again alike"
    branch = {"type": "message", "data": {"hyperparameters": {"branch_step": 2}}}
    assert "collapsed:compliant" not in codes([branch, validation(2, 1), validation(4, 1)])
    assert "collapsed:compliant" in codes([validation(0, 1), validation(8, 1)]), "the end of a job"


def test_what_is_set_already_is_not_advised() -> None:
    collapse = [event(step, yes=0.97) for step in range(1, 6)]
    flat = [event(step) for step in range(1, 6)]
    for each in flat:
        each["data"]["scores"]["graders"][0]["train_flat_groups"] = 1.0
    calm = [event(step, entropy=0.001) for step in range(1, 6)]
    unread = [event(step) for step in range(1, 6)]
    for each in unread:
        each["data"]["mean_unresponsive_rewards"] = 0.9

    def advice(events: list[dict[str, Any]], code: str, **settings: Any) -> str:
        given = settings.pop("response_format", False)
        started = {
            "type": "message",
            "data": {"hyperparameters": settings, "response_format": given},
        }
        return next(f.advice for f in findings(story_of([started, *events])) if f.code == code)

    assert "`per_grader`" in advice(collapse, "collapsed", advantage="mean")
    assert "`per_grader`" not in advice(collapse, "collapsed", advantage="per_grader")
    assert "set metadata `refill`" in advice(flat, "flat_grader", refill=0)
    assert "raise metadata `refill` (8 now)" in advice(flat, "flat_grader", refill=8)
    assert "set metadata `entropy_floor`" in advice(calm, "low_entropy", entropy_floor=0.0)
    assert "raise metadata `entropy_floor` (0.1 now)" in advice(
        calm, "low_entropy", entropy_floor=0.1
    )
    still = [event(step) for step in range(5)]
    guide = "let references guide it (metadata `guidance` = `references`), give it more weight"
    assert guide in advice(still, "still", guidance="none")
    assert "guidance" not in advice(still, "still", guidance="references")
    assert "Give the job a `response_format`" in advice(unread, "unscorable", refill=0)
    assert "Give the job" not in advice(unread, "unscorable", refill=0, response_format=True)


def about(value: float, half: float = 0.1) -> Change:
    return Change(value, value - half, value + half)


def test_no_headline_claims_more_than_its_parts() -> None:
    parts = {"a": about(0.4), "b": about(-0.2), "c": about(0.01)}
    assert gain_sentence(about(0.1, 0.05), parts) == (
        "The reward rose by 0.10. It came from `a` (+0.40); `b` (-0.20) fell; `c` shows no "
        "clear change."
    )
    assert "shows no clear change." in gain_sentence(about(0.1, 0.2), parts)
    assert "the uncertainty is not reported" in gain_sentence(
        Change(0.1), {"a": Change(0.2), "b": Change(0.0)}
    )


def test_charts_tables_and_words_of_a_job_with_signal() -> None:
    events = [event(step) for step in range(5)]
    said = views.signal_chart(events)
    assert "Groups whose completions earned the same, by grader" in said
    assert "compliant: values sampled" in said
    assert "never" in said
    assert "It came from `explanation`" in views.diagnosis(events).plain
    frame = jobs.answer_frame(events)
    assert len(frame) == 4 * 3
    assert set(frame["value"]) == set(VALUES)
    assert frame[frame["value"] == "needs review"]["never_sampled"].eq(1).all()
    assert jobs.grader_frame(events)["train_flat_groups"].max() == 0.25


def test_a_service_without_these_figures_gets_a_sentence() -> None:
    hosted = [event(step) for step in range(5)]
    for each in hosted:
        each["data"] = {"step": each["data"]["step"], "train_mean_reward": 0.4}
    assert "does not report" in views.signal_chart(hosted).plain
    assert codes(hosted) == []
    assert len(jobs.answer_frame(hosted)) == 0


def test_the_terminal_shows_graders_and_answers_at_validations() -> None:
    stream = io.StringIO()
    progress = jobs.Progress(stream)
    job = FineTuningJob.construct(**sample_job.job(status="running"))
    validated = event(4)
    validated["data"]["answers"][0]["valid"] = side(0.5, 64, ["needs review"])
    for events in ([], [event(1)], [validated]):
        progress(jobs.Update(job, events))
    lines = stream.getvalue().splitlines()
    assert "    compliant 0.300 (flat 25%) · explanation 0.700 (flat 25%)" in lines
    assert (
        "    compliant: yes 50%, no 50%, needs review 0% of 64 answers (references 33%, 33%, 33%)"
        in lines
    )
