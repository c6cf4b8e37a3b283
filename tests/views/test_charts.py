"""Charts: gaps stay gaps, what is missing is counted, and the picture has words in its unit."""

from __future__ import annotations

import html as markup
import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sample_comparison
from browser import chromium, opened
from sample_job import events, metric_event

from rftkit import evals, views
from rftkit.evals.comparison import Estimate
from rftkit.jobs.branches import Branch
from rftkit.views.compare_charts import _run_axis
from rftkit.views.ladder import ladder_chart
from rftkit.views.plot import Line, Panel, draw
from rftkit.views.svg import WIDE, Axis, Canvas, value_axis, whole_axis

__all__ = ["chromium"]


def alts(shown: str) -> list[str]:
    found = re.findall(r'<svg class="rk-svg"[^>]*aria-label="([^"]*)"', shown)
    return [markup.unescape(each) for each in found]


def points(shown: str) -> list[str]:
    return [markup.unescape(each) for each in re.findall(r"<title>([^<]*)</title>", shown)]


def test_a_missing_value_is_a_gap_with_a_mark():
    panel = Panel("Reward", (Line("validation", [0, 5, 10], [0.2, None, 0.6], strong=True),))
    drawn = draw(panel).markup()

    (path,) = re.findall(r'class="rk-line rk-main" d="(M[^"]*)"/><', drawn.split("rk-svg")[1])
    assert path.count("M") == 2
    assert "L" not in path
    assert drawn.count("rk-gap") == 1
    assert points(drawn) == [
        "validation, step 0: 0.200", "validation, step 5: not measured",
        "validation, step 10: 0.600",
    ]  # fmt: skip


def test_lines_can_be_told_apart_in_grey():
    steps, values = [1, 2], [0.1, 0.2]
    four = tuple(Line(name, steps, values, strong=name == "a") for name in "abcd")
    drawn = draw(Panel("Reward", four)).markup()

    kinds = {"rk-main", "rk-other rk-dash0", "rk-other rk-dash1", "rk-other rk-dash2"}
    assert set(re.findall(r'<path class="rk-line ([^"]*)"', drawn)) == kinds


def test_rewards_have_one_panel_each_with_words_for_it():
    whole, compliant, explanation = alts(views.reward_chart(events()))

    assert whole.startswith("Reward by step: train 0.4")
    assert "validation 0.300 at step 0, 0.792 at step 24" in whole
    assert whole.endswith("1 without a value.")
    assert compliant.startswith("compliant by step")
    assert explanation.startswith("explanation by step")


def test_words_are_in_the_unit_of_the_chart():
    """Shares were described 100 times too small."""
    data = {"step": 1, "scores": {"train_reward_mean": 0.5}, "learning": {"flat_groups": 0.25}}
    shown = views.health_chart([{"data": data}])

    assert alts(shown) == [
        "Groups without signal, % by step: without signal 25 % at step 1, 25 % at step 1, "
        "highest 25 % at step 1."
    ]
    assert "without signal, step 1: 25 %" in points(shown)
    assert ">30</text>" in shown or ">25</text>" in shown


def test_a_flat_zero_is_a_sentence_and_no_chart():
    data = {"scores": {"train_reward_mean": 0.5}, "learning": {"kl": 0.0, "entropy": 1.0}}
    shown = views.health_chart([{"data": data | {"step": step}} for step in (1, 2)])

    assert len(alts(shown)) == 1
    assert "Zero at each step: KL to the base, nats per token." in shown


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.31, 0.37], (0.3, 0.38)),
        ([7.0], (0.0, 15.0)),
        ([0.0], (0.0, 1.0)),
        ([1.0, 1.0], (0.0, 1.0)),
        ([-3.0, 4.0], (-4, 4)),
    ],
)
def test_axes_have_round_ends_around_the_values(values: list[float], ends: Any):
    axis = value_axis(values)

    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert (axis.low, axis.high) == pytest.approx(ends)
    assert 2 <= len(axis.ticks) <= 9


def test_steps_are_whole_and_the_axis_ends_with_them():
    axis = whole_axis(0, 24)

    assert (axis.low, axis.high) == (0, 24)
    assert [label for _, label in axis.ticks] == ["0", "5", "10", "15", "20", "24"]


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

    assert len(alts(html)) == 3
    assert len(html) < 100_000
    long = [
        {"data": {"step": step, "train_mean_reward": 0.5 + step % 7 / 20}}
        for step in range(1, 10_001)
    ]
    shown = views.reward_chart(long)
    (chart,) = re.findall(r'<svg class="rk-svg".*?</svg>', shown, re.DOTALL)
    assert len(chart) < 60_000
    assert "highest 0.800 at step 6" in chart


def test_a_validation_has_its_interval_within_the_rewards():
    told = metric_event(0)
    told["learning"] = {"valid_reward_stderr": 0.05}
    told["scores"]["valid_reward_mean"] = 0.02
    shown = views.reward_chart([{"data": told}])

    assert "95 % interval over the validation rows" in shown
    assert "validation, step 0: 0.020 (0.000 to 0.118)" in points(shown)
    assert "the uncertainty of a validation is not reported" in views.reward_chart(events())


def test_the_interval_of_a_validation_is_that_of_the_comparison():
    found = evals.compare(sample_comparison.samples())
    jumps = views.jumps_for(found)
    shown = views.reward_chart(events(), found, jumps=jumps)
    reward = found.summary("Step 24").reward

    assert any(
        each.startswith("validation, step 24:")
        and f"({reward.low:.3f} to {reward.high:.3f})" in each
        for each in points(shown)
    )
    assert 'data-said="whose reward changed from Step 0 to Step 24"' in shown
    grader = found.summary("Step 24").graders["compliant"]
    assert any(  # the job's own mean leaves out what nothing could score: outside of its interval
        each.startswith("validation, step 24:")
        and f"{grader.value:.3f}" in each
        and f"({grader.low:.3f} to {grader.high:.3f})" in each
        for each in points(shown)
    )


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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = evals.compare(sample_comparison.samples())
    jumps = views.jumps_for(found)
    parts = [
        views.difference_chart(found, jumps=jumps),
        views.row_paths(found, jumps=jumps),
        views.compare_runs(found, jumps=jumps),
        views.compare_rows(found, jumps=jumps),
    ]
    path = tmp_path_factory.mktemp("charts") / "page.html"
    path.write_text(views.page("Charts", "<h1>Charts</h1>" + "".join(map(str, parts))))
    return path


def test_points_speak_to_mouse_and_keyboard_and_open_their_rows(page: Path, chromium: Any) -> None:
    with opened(chromium, page, viewport={"width": 1280, "height": 900}) as tab:
        chart = tab.locator(".rk-svg").first
        tip = tab.locator(".rk-tip")
        chart.locator(".rk-pt").nth(2).hover()
        assert tip.inner_text().startswith("Step 18 +0.149")
        chart.locator('.rk-pt[tabindex="0"]').focus()
        assert tip.inner_text().startswith("Step 6 +")
        tab.keyboard.press("ArrowRight")
        assert tip.inner_text().startswith("Step 12 +0.183")
        tab.keyboard.press("Enter")
        only = tab.locator(".rk-only")
        assert "rows whose reward changed from Step 0 to Step 12" in only.inner_text()
        assert tab.evaluate("document.querySelectorAll('.rk-svg [tabindex=\"0\"]').length") == 2


def test_filter_order_and_the_open_row_are_in_the_address(page: Path, chromium: Any) -> None:
    with opened(chromium, page) as tab:
        rows = tab.locator(".rk-list", has=tab.locator(".rk-card"))
        rows.get_by_label("Filter rows").fill("backups")
        rows.get_by_label("Order").select_option(label="lowest reward first")
        rows.locator(".rk-card:visible summary").nth(1).click()
        title = rows.locator(".rk-card[open] .rk-title").inner_text()
        address = tab.evaluate("location.hash")
    with chromium.new_context(offline=True) as context:
        tab = context.new_page()
        tab.goto(page.as_uri() + address)
        rows = tab.locator(".rk-list", has=tab.locator(".rk-card"))
        assert rows.get_by_label("Filter rows").input_value() == "backups"
        assert rows.locator(".rk-card[open] .rk-title").inner_text() == title
        assert rows.get_by_role("status").inner_text() == "1 to 10 of 20 of 60 rows"


def test_without_scripts_and_on_paper_every_row_is_there(page: Path, chromium: Any) -> None:
    with opened(chromium, page, java_script_enabled=False) as tab:
        assert tab.locator(".rk-card:visible").count() == 60
        assert tab.get_by_text("60 rows", exact=True).is_visible()
    with opened(chromium, page) as tab:
        assert tab.locator(".rk-card:visible").count() == 10
        tab.emulate_media(media="print")
        assert tab.locator(".rk-card:visible").count() == 60
        assert tab.locator(".rk-card .rk-body").nth(40).is_visible()


def test_a_branch_has_no_training_before_its_first_step() -> None:
    started = {"id": "s", "data": {"hyperparameters": {"branch_step": 6}}}
    own = [each for each in events() if ((each.get("data") or {}).get("step") or 0) >= 6]
    base = next(each for each in own if each["data"]["step"] == 6)
    del base["data"]["scores"]["train_reward_mean"]
    for key in ("completion_tokens_mean", "learning"):
        del base["data"][key]
    shown = views.reward_chart([started, *own])
    assert shown.plain.rstrip().splitlines()[-1].startswith("18 steps, ")
    assert "2 steps without a training reward" not in shown
    health = views.health_chart([started, *own])
    assert ">6</td>" not in health.partition("Show the numbers")[2]


def test_a_table_can_be_copied_and_saved(page: Path, chromium: Any) -> None:
    with opened(chromium, page) as tab:
        with tab.expect_download() as saved:
            tab.get_by_role("button", name="Save this table as CSV").first.click()
        lines = Path(saved.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].startswith("run,reward,pass rate")
    assert len(lines) == 6
    assert lines[3].startswith("Step 12 ★,0.58")


def test_names_in_the_chart_of_a_ladder_stay_inside_and_apart() -> None:
    """As large as on a phone: the name of the last rung was cut off there."""
    means = {"base": 0.43, "prompt": 0.38, "supervised": 0.67, "RFT from supervised": 0.72}
    spent = {"base": 0.0, "prompt": 8.0, "supervised": 18.0, "RFT from supervised": 24.0}
    runs = [
        SimpleNamespace(label=label, reward=Estimate(mean, None, None, 64))
        for label, mean in means.items()
    ]
    ladder: Any = SimpleNamespace(
        comparison=SimpleNamespace(runs=runs), seconds=spent.get, worth="supervised", best=None
    )
    words = re.findall(
        r'rk-word" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)', ladder_chart(ladder)
    )
    assert [name for *_, name in words] == list(means)
    boxes = []
    for x, y, anchor, name in words:
        left = float(x) - (10 * len(name) if anchor == "end" else 0)
        assert 0 <= left <= left + 10 * len(name) <= WIDE
        boxes.append((left, left + 10 * len(name), float(y)))
    for one, other in itertools.combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= 19


def test_a_branch_has_no_gap_where_it_had_not_begun() -> None:
    """Crosses on the axis say that nothing could be measured there."""
    first = Branch("a", "a", 0, None, (), "succeeded", ((0, 0.2), (4, 0.5), (8, 0.6)), ())
    later = replace(first, id="b", name="b", depth=1, rewards=((4, 0.5), (8, 0.7)))
    shown = views.job_tree([first, later])
    assert "b, step 8: 0.700" in points(shown)
    assert not any("not measured" in each for each in points(shown))


def test_words_at_the_ends_of_an_axis_stay_inside() -> None:
    """Names of runs below the last point were cut off on a phone."""
    ticks = ((0.0, "Step 0 · first"), (1.0, "Step 8"), (2.0, "Step 16 · second"))
    drawn = Canvas(Axis(0.0, 2.0, ticks), None, is_wide=True).svg("")
    found = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)">(Step[^<]*)', drawn)
    assert [(x, anchor) for x, anchor, _ in found] == [
        ("0", "start"), ("340", "middle"), (str(WIDE), "end"),
    ]  # fmt: skip


def test_names_of_runs_below_a_chart_are_numbers_where_they_would_overlap() -> None:
    steps = ["Step 0", "Step 6", "Step 12", "Step 18", "Step 24"]
    rungs = ["base", "prompt", "supervised", "RFT from base", "RFT from supervised"]
    assert [name for _, name in _run_axis(steps).ticks] == steps
    assert [name for _, name in _run_axis(rungs).ticks] == ["1", "2", "3", "4", "5"]
