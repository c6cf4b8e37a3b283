"""What judges decided by step: a row and a chart for each criterion, and steady comparisons."""

from __future__ import annotations

from typing import Any

from rftkit import views
from rftkit.jobs import judge_frame


def criterion(text: str, check: str, train: float | None, **more: Any) -> dict[str, Any]:
    return {"text": text, "check": check, "required": False, "train_met_mean": train, **more}


def event(step: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    data = {"step": step, "total_steps": 3, "scores": {"graders": lines}}
    return {"id": f"e{step}", "type": "metrics", "data": data}


def rubric(step: int, criteria: list[dict[str, Any]]) -> dict[str, Any]:
    line = {
        "name": "quality", "type": "rubric", "train_presence_met_mean": 0.5 + 0.1 * step,
        "train_correctness_met_mean": 0.25, "train_undecided_share": 0.0, "criteria": criteria,
    }  # fmt: skip
    return event(step, [line])


def test_each_criterion_has_a_row_and_a_chart_also_where_a_text_is_checked_in_both_ways() -> None:
    events = [
        rubric(
            step,
            [
                criterion("names <the> law", "presence", step / 4, valid_met_mean=0.75),
                criterion("names <the> law", "correctness", 0.25, required=True),
                criterion("is kind", "correctness", None),
            ],
        )
        for step in (1, 2, 3)
    ]
    shown = str(views.criteria(events))
    assert "names &lt;the&gt; law (presence)" in shown
    assert "names &lt;the&gt; law (correctness)" in shown
    assert "<the>" not in shown
    assert "is kind" not in shown, "what was never decided has no share"
    assert shown.count("<svg") >= 3
    assert "presence 60 % at step 1, 80 % at step 3" in shown
    frame = judge_frame(events)
    met = frame[frame["figure"] == "met"]
    assert set(met["criterion"]) == {"names <the> law (presence)", "names <the> law (correctness)"}
    assert met.groupby("criterion")["required"].first().to_dict() == {
        "names <the> law (presence)": 0.0, "names <the> law (correctness)": 1.0
    }  # fmt: skip


def test_more_criteria_than_charts_are_all_in_the_table() -> None:
    many = [criterion(f"point {n}" + " and more" * 20, "presence", 0.5) for n in range(20)]
    shown = str(views.criteria([rubric(1, many), rubric(2, many)]))
    assert "8 more criteria are in the table only." in shown
    assert all(f"point {n} and more" in shown for n in range(20))


def test_a_relative_grader_shows_how_steady_it_is_and_other_jobs_say_that_there_is_nothing() -> (
    None
):
    line = {"name": "better", "type": "relative", "train_position_bias": 0.1}
    events = [event(n, [line | {"train_order_disagreement": 0.2 * n}]) for n in (1, 2)]
    shown = str(views.criteria(events))
    assert "better: two orders of the answers" in shown
    assert "orders disagree 0.200 at step 1" in shown
    plain = event(1, [{"name": "exact", "type": "string_check", "train_reward_mean": 1.0}])
    for none in ([plain], []):
        assert "No judge of this job" in str(views.criteria(none))
