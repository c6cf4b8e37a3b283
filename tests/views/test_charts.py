"""Charts: gaps stay gaps, what is missing is counted, and the picture has words."""

from __future__ import annotations

import math
import re

from sample_job import events, metric_event

from rftkit import views
from rftkit.views.plot import Line, Panel, draw


def lines(figure):
    return [line for axes in figure.axes for line in axes.lines if len(line.get_xdata())]


def test_a_missing_value_is_a_gap_with_a_mark():
    panel = Panel("Reward", (Line("validation", [0, 5, 10], [0.2, None, 0.6], strong=True),))
    curve, mark = lines(draw(panel))

    assert [math.isnan(value) for value in curve.get_ydata()] == [False, True, False]
    assert list(mark.get_xdata()) == [5]
    assert mark.get_marker() == "x"


def test_lines_can_be_told_apart_in_grey():
    steps, values = [1, 2], [0.1, 0.2]
    three = tuple(Line(name, steps, values, strong=name == "a") for name in "abc")
    drawn = lines(draw(Panel("Reward", three)))

    assert len({line.get_marker() for line in drawn}) == 3


def alts(html):
    return re.findall(r'alt="([^"]*)"', html)


def test_rewards_have_one_panel_each_with_words_for_it():
    whole, compliant, explanation = alts(views.reward_chart(events()))

    assert whole.startswith("Reward by step: train 0.4")
    assert "validation 0.300 at step 0, 0.792 at step 24" in whole
    assert whole.endswith("1 without a value.")
    assert compliant.startswith("compliant by step")
    assert explanation.startswith("explanation by step")


def test_rewards_between_0_and_1_share_their_scale():
    bounds = Panel("a", (Line("x", [1], [0.5]),), bounds=(0, 1))

    assert draw(bounds).axes[0].get_ylim() == (-0.02, 1.02)


def test_what_is_missing_is_counted_below_the_chart():
    html = views.reward_chart(events())

    assert "24 steps, 4 validations" in html
    assert "1 step without a training reward" in html
    assert "1 validation without a reward" in html
    assert "2 grades failed, left out of the means" in html


def test_a_service_that_reports_no_failures_is_not_said_to_have_none():
    data = metric_event(1)
    del data["learning"]

    assert "failed grades are not reported" in views.reward_chart([{"data": data}])


def test_rewards_alone_are_enough():
    bare = [{"data": {"step": step, "train_mean_reward": 0.1 * step}} for step in (1, 2)]

    (alt,) = alts(views.reward_chart(bare))
    assert alt == (
        "Reward by step: train 0.100 at step 1, 0.200 at step 2, highest 0.200 at step 2."
    )


def test_each_chart_says_when_there_is_nothing_to_show():
    assert "No rewards yet" in views.reward_chart([])
    assert "no tokens" in views.health_chart([])
    assert "no times" in views.time_chart([])


def test_health_shows_only_what_is_reported():
    data = {"step": 1, "scores": {"train_reward_mean": 0.5}, "completion_tokens_mean": 40}
    (alt,) = alts(views.health_chart([{"data": data}]))

    assert alt.startswith("Tokens per completion by step: tokens 40.0 at step 1")


def test_times_add_up():
    html = views.time_chart(events())

    assert "sampling 108.0 s, training 86.4 s, eval 30.5 s" in html


def test_pictures_are_small_and_in_the_markup():
    html = views.reward_chart(events())

    assert html.count("<img") == html.count("data:image/png;base64,") == 3
    assert len(html) < 200_000


def test_a_validation_has_its_interval_and_the_line_below_says_what_it_is():
    told = metric_event(6)
    told["learning"]["valid_reward_stderr"] = 0.05
    panel = Panel("Reward", (Line("validation", [0, 6], [0.2, 0.6], spread=[None, 0.1]),))

    assert "95 % interval over the validation rows" in views.reward_chart([{"data": told}])
    assert "the uncertainty of a validation is not reported" in views.reward_chart(events())
    (bars,) = draw(panel).axes[0].collections
    assert [part.tolist() for part in bars.get_segments() if len(part)][-1] == [[6, 0.5], [6, 0.7]]


def test_a_long_job_has_bars_of_several_steps():
    timing = {"step": {"sampling": 2.0, "training": 1.0, "eval": 0.0, "full_iteration": 3.0}}
    long = [{"data": {"step": step, "timing": timing}} for step in range(1, 1001)]
    html = views.time_chart(long)

    assert "sampling 2,000 s, training 1,000 s" in html


def test_graders_of_one_name_are_told_apart_by_type():
    graders = [
        {"name": "judge", "type": kind, "train_reward_mean": 0.5} for kind in ("python", "multi")
    ]
    data = {"step": 1, "scores": {"train_reward_mean": 0.5, "graders": graders}}

    titles = [alt.partition(" by step")[0] for alt in alts(views.reward_chart([{"data": data}]))]
    assert titles == ["Reward", "judge (python)", "judge (multi)"]
