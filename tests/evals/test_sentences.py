"""No sentence contradicts the interval beside it, nor another sentence of the same comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from eval_study import samples_from

from rftkit import evals
from rftkit.diagnosis import Alarms, Change, gain_sentence
from rftkit.evals import Label
from rftkit.evals.exchange import exchange_p
from rftkit.evals.samples import Samples
from rftkit.graders import calibrations
from rftkit.reports.index import best_setting


def world(seed: int) -> Samples:
    """Runs of different quality; grades are missing at random, or where rewards are low."""
    rng = np.random.default_rng(seed)
    rows, runs = int(rng.integers(4, 40)), int(rng.integers(2, 7))
    times = rng.integers(1, 6, (rows, runs)) if seed % 3 == 0 else np.ones((rows, runs), int)
    row, run = (np.repeat(index.ravel(), times.ravel()) for index in np.indices((rows, runs)))
    gains = rng.choice([0, 0.1, 0.3]) * rng.uniform(-1, 1, runs)
    chance = np.clip(rng.beta(0.6, 0.6, rows)[row] + gains[run], 0, 1)
    rewards = (rng.random(len(chance)) < chance) * 1.0
    if seed % 2:
        rewards = np.clip(chance + rng.normal(0, 0.15, len(chance)), 0, 1)
    share = [0.0, 0.3, 0.5 * (rewards < 0.5), 0.6 * ((rewards < 0.5) & (run == runs - 1))][seed % 4]
    rewards[rng.random(len(rewards)) < share] = np.nan
    return samples_from(row, run, rewards)


@pytest.mark.parametrize("seed", range(60))
def test_verdicts_intervals_and_the_recommendation_agree(seed: int) -> None:
    samples = world(seed)
    found = evals.compare(samples)
    verdicts = {pair.after: pair.verdict for pair in found.pairs}
    for pair in found.pairs:
        low, high = pair.difference.low, pair.difference.high
        if low is None or high is None:
            continue
        assert low <= (pair.difference.value or 0.0) <= high
        assert (pair.verdict == "better") == (low > 0)
        assert (pair.verdict == "worse") == (high < 0)
    if (choice := found.choice) is None:
        return
    assert {choice.best, choice.deploy} <= set(choice.tied), choice.sentence
    assert verdicts.get(choice.best) != "worse"
    is_shown = any(verdicts[each] == "better" for each in verdicts if each not in choice.left_out)
    assert (choice.deploy != choice.baseline) == is_shown
    assert (choice.best != choice.baseline) or not is_shown
    for label in choice.tied:  # what is not ruled out as the best is not shown to earn less
        if label != choice.best:
            assert evals.compare(samples, baseline=label).pair(choice.best).verdict != "better"


def test_one_row_gives_no_warning() -> None:
    rewards = np.array([0.4, 0.5, np.nan, 0.5, 0.6, 0.7])
    found = evals.compare(samples_from(np.arange(6) // 3, np.arange(6) % 3, rewards))
    assert [pair.num_rows for pair in found.pairs] == [2, 1]


def test_a_small_gain_that_is_shown_is_no_unclear_one() -> None:
    small = Change(0.003, 0.001, 0.005)
    said = gain_sentence(small, {"a": small, "b": Change(0.0, -0.1, 0.1)})
    assert said == (
        "The reward rose by 0.003. It came from `a` (+0.003); `b` shows no clear change."
    )


@pytest.mark.parametrize(
    ("name", "figure", "raised"),
    [("length", 4.0, False), ("length", 4.0 + 0.3, True), ("template", 0.3, False)],
)
def test_a_reward_that_falls_is_no_reason_for_an_alarm(
    name: str, figure: float, raised: bool
) -> None:
    """Answers as long as before are not said to have grown, although the reward explains less."""
    alarms, rng = Alarms(), np.random.default_rng(1)
    for step in range(1, 81):
        late = step > 20
        reward = 0.8 - 0.5 * late + rng.normal(0, 0.01)
        mean = (figure if late else min(figure, 4.0)) + rng.normal(0, 0.003)
        within = {"by": reward, "cross": 2.0, "by_square": 2.0, "square": 4.0}
        alarms.add(step, 80, [{"name": name, "num": 64, "mean": mean, **within}])
    assert bool(alarms.raised) is raised


def labelled(rewards: list[float], labels: list[float], kind: Any = "verdict") -> evals.Agreement:
    rows = np.arange(len(rewards))
    samples = samples_from(rows, np.zeros(len(rows), int), np.array(rewards))
    return evals.agree(
        samples, [Label(str(at), "0", 0, value, kind) for at, value in enumerate(labels)]
    )


def test_one_wrong_of_many_is_not_rounded_away() -> None:
    said = labelled([1.0] * 200 + [0.0] * 100, [1.0] * 201 + [0.0] * 99).sentence
    assert said.startswith("Agrees with people on 99.7% of 300 labels")
    assert "harsh in 1." in said
    assert labelled([1.0, 0.0] * 20, [1.0, 0.0] * 20).sentence.startswith(
        "Agrees with people on 100%"
    )


def test_a_bias_is_not_said_to_be_more_when_it_is_less_or_unclear() -> None:
    rng = np.random.default_rng(1)
    people = rng.random(30)
    said = labelled(list(people - 0.1), list(people), "number").sentence
    assert "the grader minus people is -0.100" in said
    assert "more than people" not in said


def test_a_lower_end_is_not_rounded_to_the_floor_that_it_misses() -> None:
    judge = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "x"}]}
    known = calibrations.Calibration(
        digest=calibrations.digest(judge), name="j", model="m", statistic="kappa", value=0.8,
        low=0.5996, high=0.9, num_labels=50,
    )  # fmt: skip
    [found] = calibrations.calibration_statuses(judge, [known], 0.6)
    assert (found.state, "(0.5996 to 0.9000)" in found.message) == ("poor", True)
    [found] = calibrations.calibration_statuses(judge, [known], 0.5)
    assert (found.state, "(0.60 to 0.90)" in found.message) == ("calibrated", True)


def test_settings_that_are_level_have_no_best() -> None:
    runs = [{"settings": {"lr": lr}, "figures": {"valid": {"final": 0.5}}} for lr in (1, 3)]
    assert best_setting(runs) == "lr 1 and lr 3 are level: final validation reward 0.500."


@pytest.mark.parametrize("more", ["before", "after"])
def test_ten_answers_against_one_are_no_reason_for_a_verdict(more: str) -> None:
    """Of 20 rows nine in ten answers pass in all runs; one of the two runs has ten of each row."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(40):
        chance = rng.beta(4.5, 0.5, 20)
        times = np.ones((20, 4), int)
        times[:, 0 if more == "before" else slice(1, None)] = 10
        row, run = (np.repeat(at.ravel(), times.ravel()) for at in np.indices(times.shape))
        rewards = (rng.random(len(row)) < chance[row]) * 1.0
        found = evals.compare(samples_from(row, run, rewards))
        wrong += any(pair.verdict != "unclear" for pair in found.pairs)
    assert wrong <= 5  # 5 % are 2


def test_the_p_of_answers_that_could_be_exchanged() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])  # one answer after, two before, in two rows
    rows, is_after = np.repeat([0, 1], 3), np.tile([True, False, False], 2)
    p = exchange_p(rows, is_after, rewards)
    assert p == pytest.approx(1 / 9, abs=0.03)
    assert exchange_p(rows, is_after, np.ones(6)) == 1.0
    assert exchange_p(np.repeat([0, 1], 2), np.tile([True, False], 2), rewards[:4]) is None
    assert exchange_p(rows[:0], is_after[:0], rewards[:0]) is None
    some = evals.compare(samples_from(rows, is_after * 1, rewards), slices={"all": lambda _: "x"})
    assert some.slices[0].slices[0].p == pytest.approx(some.pairs[0].p, abs=0.4)


def test_a_gain_is_seen_with_different_numbers_of_answers() -> None:
    rng = np.random.default_rng(6)
    row, run = np.repeat(np.arange(60), 4), np.tile([0, 0, 0, 1], 60)
    rewards = (rng.random(240) < 0.4 + 0.4 * run) * 1.0
    assert evals.compare(samples_from(row, run, rewards)).pairs[0].verdict == "better"


def test_no_threshold_is_better_for_a_grader_that_knows_nothing() -> None:
    """Labels that are nearly all alike, and a threshold that hardly any answer passes."""
    claims = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        samples = samples_from(np.arange(10), np.zeros(10, int), rng.random(10))
        labels = [Label(str(row), "0", 0, float(rng.random() < 0.95)) for row in range(10)]
        claims += evals.agree(samples, labels, threshold=0.95).suggested is not None
    assert claims <= 5  # without the exchange of labels, in half of the worlds


def test_a_threshold_that_is_better_in_every_row_is_suggested() -> None:
    """Each row has its right answer first: exchanging whole rows would say nothing."""
    rows, is_right = np.repeat(np.arange(30), 3), np.tile([True, False, False], 30)
    samples = samples_from(rows, np.zeros(90, int), np.where(is_right, 0.9, 0.7))
    labels = [
        Label(str(row), "0", number % 3, float(right))
        for number, (row, right) in enumerate(zip(rows, is_right, strict=True))
    ]
    assert evals.agree(samples, labels, threshold=0.5).suggested is not None
