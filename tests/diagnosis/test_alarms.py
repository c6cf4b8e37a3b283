"""Alarms: the test keeps its rate, planted signs are found, and equal figures never alarm."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from rftkit.diagnosis import ALARMS, Alarms, findings, story_of
from rftkit.diagnosis import trend as trend_module
from rftkit.diagnosis.alarms import explained, threshold
from rftkit.diagnosis.trend import Trend


def figure(name: str, mean: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "num": 64, "mean": mean, **more}


def test_the_capital_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rising values: each is the largest so far, so p is a share of 1, 1/2, 1/3."""
    monkeypatch.setattr(trend_module, "_uniform", lambda number: 0.5)
    trend = Trend(horizon=1)
    for value in (1.0, 2.0, 3.0):
        trend.add(value)
    bets = ((k, math.prod((0.5 / n) ** (k - 1) for n in (1, 2, 3))) for k in trend_module.POWERS)
    assert trend.capital == pytest.approx(sum(k**3 * paid for k, paid in bets) / 3)
    assert trend.num == 3


def test_luck_reaches_a_capital_of_c_in_at_most_one_of_c_series() -> None:
    chance = random.Random(4)
    reached = 0
    for _ in range(600):
        trend = Trend(60)
        for _ in range(60):
            trend.add(chance.random())
        reached += trend.peak >= 20
    assert reached <= 600 / 20 + 3 * math.sqrt(600 / 20)


@pytest.mark.parametrize("values", [[0.0] * 1000, [float(-n) for n in range(1000)]])
def test_equal_and_falling_values_earn_little(values: list[float]) -> None:
    trend = Trend(len(values))
    for value in values:
        trend.add(value)
    assert trend.peak < 3


def test_a_figure_that_jumps_and_stays_is_found_although_all_values_are_equal() -> None:
    trend = Trend(60)
    for step in range(60):
        trend.add(float(step >= 25))
    assert trend.peak > threshold(0.01)


def test_what_the_reward_explains_is_no_alarm_and_what_it_does_not_is() -> None:
    chance = random.Random(2)
    raised = {}
    for slope in (1.0, 4.0):  # log tokens for each unit of reward, where answers explain 1
        alarms = Alarms()
        for step in range(1, 101):
            reward = 0.3 + 0.4 * min(1, step / 60) + chance.gauss(0, 0.01)
            within = {"by": reward, "cross": 2.0, "by_square": 2.0, "square": 4.0}
            alarms.add(step, 100, [figure("length", 3 + slope * reward, **within)])
        raised[slope] = alarms.raised
    assert raised[1.0] == []
    [alarm] = raised[4.0]
    assert alarm.code == "alarm_length"
    assert alarm.alarm is not None
    assert alarm.alarm["evidence"] >= threshold(0.01)
    assert "tokens" in alarm.message


def test_a_held_out_grader_that_stops_following_is_an_alarm() -> None:
    def run(follows: bool) -> list[Any]:
        chance, alarms = random.Random(3), Alarms()
        for step in range(1, 81):
            reward = 0.3 + 0.5 * step / 80 + chance.gauss(0, 0.02)
            second = 0.2 + 0.8 * (reward if follows else 0.3) + chance.gauss(0, 0.02)
            within = {"by": reward, "cross": 1.6, "by_square": 2.0, "square": 2.0}
            alarms.add(step, 80, [figure("held_out", second, **within)])
        return alarms.raised

    assert run(follows=True) == []
    [alarm] = run(follows=False)
    assert "no longer follows" in alarm.message


def test_mentions_that_become_right_are_no_alarm() -> None:
    """Presence is learnt first: its lead may grow by half of what correctness gains."""

    def run(correct: float) -> list[Any]:
        chance, alarms = random.Random(5), Alarms()
        for step in range(1, 81):
            grown = min(1.0, step / 60)
            right = 0.2 + correct * grown + chance.gauss(0, 0.01)
            present = 0.3 + 0.5 * grown + chance.gauss(0, 0.01)
            alarms.add(step, 80, [figure("mentions", present - right, by=right)])
        return alarms.raised

    assert run(correct=0.35) == []
    [alarm] = run(correct=-0.1)
    assert alarm.code == "alarm_mentions"


def test_the_slope_is_the_end_that_explains_most() -> None:
    first = [figure("length", 0, cross=1.0, by_square=2.0, square=2.0)] * 5
    assert explained(first) > 0.5
    against = [figure("length", 0, cross=-2.0, by_square=2.0, square=2.1)] * 5
    assert explained(against) == 0.0
    follows = [figure("held_out", 0, cross=1.0, by_square=2.0, square=2.0)] * 5
    assert -0.5 < explained(follows, falls=True) < 0.0
    assert explained(against, falls=True) == 0.0


def test_alarms_are_findings_of_the_story_and_stay() -> None:
    """The same from the events of a finished job; a newer kind of figure is passed over."""
    events = [{"data": {"hyperparameters": {"alarm_rate": 0.05}}}]
    for step in range(1, 61):
        share = 0.0 if step < 20 else 0.5
        watch = [figure("ungradable", share if step < 50 else 0.0), figure("unknown", 1.0)]
        data = {"step": step, "total_steps": 60, "watch": watch}
        events.append({"type": "metrics", "data": data})  # type: ignore[dict-item]
    story = story_of(events)
    assert story.alarms.rate == 0.05
    found = [each for each in findings(story) if each.alarm]
    assert [each.key for each in found] == ["alarm_ungradable"]
    assert found[0].alarm is not None
    assert 20 < found[0].alarm["step"] < 40
    [status] = story.alarms.statuses
    assert status.raised_at == found[0].alarm["step"]
    assert set(ALARMS) >= {
        "held_out",
        "length",
        "repeated",
        "template",
        "mentions",
        "cheats",
        "padding",
    }
