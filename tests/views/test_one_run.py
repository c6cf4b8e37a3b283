"""One run alone: its rows as they were graded, and its mean."""

from __future__ import annotations

import re

import sample_comparison

from rftkit import evals, views
from rftkit.widgets import RunCompare


def test_one_run_alone_shows_its_rows_as_graded():
    found = evals.compare(sample_comparison.samples(steps=(12,)))
    html = views.compare_rows(found)
    groups = re.findall(r'<details class="rk-card" data-group="([^"]*)"', html)

    assert set(groups) >= {"passed", "failed"}
    assert groups.count("not graded") == found.rows["reward/Step 12"].isna().sum()
    assert "most fixed first" not in html
    assert "lowest reward first" in html
    assert "Step 12 earns 0.58 (0.5" in views.compare_headline(found)
    runs = views.compare_runs(found)
    for words in ("difference", "verdict", "fixed", "baseline", "0 comparisons"):
        assert words not in runs
    panel = RunCompare(found)
    rewards = panel.data()["reward/Step 12"].dropna()
    assert panel.sort == "final"
    assert rewards.is_monotonic_increasing


def test_without_verdicts_the_reward_stands_there():
    samples = sample_comparison.samples(steps=(12,))
    samples.frame["passed"] = samples.frame["passed"].mask(samples.frame["step"].notna())
    html = views.compare_rows(evals.compare(samples))

    assert set(re.findall(r'data-group="([^"]*)"', html)) <= {"graded", "not graded"}
    assert re.search(r"reward 0\.\d\d</span>", html)
