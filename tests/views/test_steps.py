"""Points of charts lead to the rows of their step: training, drift, and rows with answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sample_comparison
from browser import chromium, opened
from sample_job import STEPS, events

from rftkit import evals, views
from rftkit.views import StepJumps, steps

__all__ = ["chromium"]

REWARDS = (1.0, 0.0, None)


def step(number: int, num_groups: int = 4, *, text: str = "yes") -> dict[str, Any]:
    """A training step as the platform returns it."""
    groups = [
        {
            "line": 10 * number + at,
            "item": {"messages": [{"role": "user", "content": f"Question {number}.{at}?"}]},
            "rollouts": [
                {
                    "text": f"{text} {reward}", "stop_reason": "stop", "tokens": 3,
                    "grade": {"reward": reward, "sub_rewards": {"label": reward},
                              "outcome": "failed" if reward is None else "graded"},
                }
                for reward in REWARDS
            ],
        }
        for at in range(num_groups)
    ]  # fmt: skip
    return {"step": number, "num_steps": STEPS, "groups": groups}


TRAINED = [step(number) for number in range(1, STEPS + 1)]
PLACE = StepJumps(frozenset(range(1, STEPS + 1)))


def links(shown: str) -> list[str]:
    return re.findall(r'<a class="rk-pt rk-jump"[^>]*data-rows="([^"]*)"', shown)


def test_every_training_point_of_a_job_leads_to_its_step() -> None:
    rewards = links(views.reward_chart(events(), training=PLACE))
    health = links(views.health_chart(events(), training=PLACE))

    assert set(rewards) == {str(each) for each in range(1, STEPS + 1)}
    assert "1" in health
    assert str(STEPS) in health


def test_a_point_without_rows_is_no_link() -> None:
    few = StepJumps(frozenset({1, 2}))

    assert set(links(views.reward_chart(events(), training=few))) == {"1", "2"}
    assert links(views.reward_chart(events())) == []


def test_a_card_has_the_rows_the_completions_and_their_rewards() -> None:
    shown = views.training_steps(TRAINED[:1])

    assert "4 rows, 12 completions" in shown
    assert "mean 0.50" in shown  # a failed grade is no zero
    assert ">10</td>" in shown  # the line of the training file
    assert "Question 1.0?" in shown
    assert "! the grader failed" in shown


def test_long_answers_are_cut_so_that_every_step_is_there() -> None:
    long = [step(number, text="word " * 4000) for number in range(1, STEPS + 1)]
    shown = views.training_steps(long, max_bytes=200_000)

    assert len(shown) < 500_000
    assert len(re.findall('class="rk-card"', shown)) == STEPS
    assert "more characters)" in shown


def test_steps_that_were_not_read_are_counted() -> None:
    assert f"2 of {STEPS} steps" in views.training_steps([TRAINED[0], TRAINED[-1]])
    assert "does not return what" in views.training_steps([])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho"}]},
         ["answer to learn", "Hi?", "Ho"]),
        ({"input": {"messages": [{"role": "user", "content": "Hi?"}]},
          "preferred_output": [{"role": "assistant", "content": "good"}],
          "non_preferred_output": [{"role": "assistant", "content": "bad"}]},
         ["not preferred", "Hi?", "good", "bad"]),
        (None, ["the file was deleted"]),
    ],
)  # fmt: skip
def test_rows_that_were_learned_without_sampling(item: Any, said: list[str]) -> None:
    found = {"step": 1, "num_steps": 1, "groups": [{"line": 7, "item": item, "rollouts": []}]}

    for shown in (views.training_steps([found]), views.rollouts(found)):
        assert all(word in shown for word in said)
        assert ">7</td>" in shown


def test_points_of_the_drift_chart_lead_to_answers_and_to_steps() -> None:
    drifts = evals.drift_of_jobs(sample_comparison.samples(), lambda _: events())
    (job,) = drifts
    shown = views.drift_chart(drifts, {job: TRAINED})

    found = links(shown)
    assert {"0", "6", "12", "18", "24"} <= set(found)
    assert "1 2 3 4 5 6" in found  # training since the validation before
    assert shown.count('id="rk-drift0"') == 1
    assert shown.count('id="rk-drift0-training"') == 1
    assert "180 answers" in shown


def test_the_drift_of_several_jobs_has_lists_of_its_own() -> None:
    one = evals.drift(sample_comparison.samples())
    shown = views.drift_chart({"a": one, "b": one})

    assert 'href="#rk-drift1"' in shown or shown.count('id="rk-drift0"') == 1


def test_what_a_panel_shows_is_an_action_and_no_address() -> None:
    shown = views.reward_chart(
        events(), training=StepJumps(frozenset({3}), act="step"),
        validated=StepJumps(frozenset({6}), act="validation"),
    )  # fmt: skip

    assert 'data-act="step 3"' in shown
    assert 'data-act="validation 6"' in shown
    assert "href" not in shown


def test_a_click_and_enter_open_the_card_of_the_step(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    charts = views.reward_chart(events(), training=PLACE)
    path.write_text(views.page("Job", f"{charts}{views.training_steps(TRAINED)}"))
    with opened(chromium, path) as tab:
        point = tab.locator('a.rk-pt[aria-label^="train, step 3:"]').first
        point.click()
        card = tab.locator('details.rk-card[data-row="3"]')
        assert card.evaluate("card => card.open")
        assert card.get_by_text("Question 3.0?").first.is_visible()
        assert card.locator("th button").count() == 0  # the list of cards has no columns to sort by
        assert tab.locator("details.rk-card:visible").count() == 1

        tab.locator('a.rk-pt[aria-label^="train, step 4:"]').first.focus()
        tab.keyboard.press("Enter")
        assert tab.get_by_text("Question 4.0?").first.is_visible()
        assert not card.is_visible()


def test_cards_are_small_enough_for_a_page() -> None:
    assert steps._most(1_000_000, 10) == steps.MAX_ANSWER
    assert steps._most(1_000_000, 10**6) == steps.MIN_ANSWER
