"""Views of a comparison: every number is said, every count leads to its rows, nothing runs wild."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import sample_comparison
from browser import chromium, opened  # noqa: F401 (a fixture)

from rftkit import evals, views
from rftkit.views.compare_rows import row_verdicts
from rftkit.views.textdiff import difference


@pytest.fixture(scope="module")
def found():
    return sample_comparison.comparison()


def test_the_headline_is_the_recommendation_and_its_doubts(found):
    html = views.compare_headline(found)

    assert "deploy Step 12" in html.plain
    assert "Expected gain of" in html
    assert "left out, not counted as zero" in html


def test_each_run_has_a_line_and_its_counts_lead_to_rows(found):
    html = views.compare_runs(found, jumps=views.jumps_for(found))
    pair = found.pair("Step 12")

    assert html.count("<tr>") == 1 + len(found.runs)
    assert f'data-said="fixed at Step 12" data-all="{pair.num_fixed}"' in html
    assert "▲ better" in html
    assert "? unclear" in html
    assert " here</small>" not in html  # all 60 rows are in the page


def test_without_rows_on_the_page_no_count_offers_to_show_them(found):
    html = views.compare_runs(found)

    assert f">{found.pair('Step 12').num_fixed}<" in html
    assert "Click a row count" in views.compare_runs(found, jumps=views.jumps_for(found))
    assert "Click" not in html
    assert "rk-jump" not in html


def test_the_score_of_the_only_grader_is_not_repeated_beside_the_reward():
    given = sample_comparison.samples()
    scores = [name for name in given.frame if name.startswith("score/")]
    one = replace(given, frame=given.frame.drop(columns=scores[1:]))

    assert len(scores) > 1
    assert f"{scores[0].removeprefix('score/')} " in views.compare_rows(evals.compare(given))
    assert f"{scores[0].removeprefix('score/')} " not in views.compare_rows(evals.compare(one))


def test_a_page_that_holds_some_rows_says_so_at_every_number(found):
    jumps = views.jumps_for(found, 20, elsewhere="; all are in page-rows.csv")
    html = views.compare_runs(found, jumps=jumps)
    pair = found.pair("Step 12")
    here = sum(key in jumps.numbers for key in pair.fixed_rows)

    assert len(jumps.numbers) == 20
    assert f"{here} of these {pair.num_fixed} rows are on this page; all are in page-rows" in html
    assert "This page has 20 of 60 rows" in html
    rows = views.compare_rows(found, jumps=jumps)
    assert rows.count('<details class="rk-card"') == 20
    assert "15 rows that changed most from Step 0 to Step 12, and the 5 most unstable" in rows


def test_the_rows_that_are_kept_are_those_that_changed_most(found):
    changes = found.rows.set_index("row")["change"].abs().sort_values(ascending=False)

    assert set(changes.index[:15]) <= set(views.jumps_for(found, 20).numbers)


def test_a_row_is_followed_through_every_run(found):
    html = views.compare_rows(found)
    card = html.split('<details class="rk-card"')[1]

    assert card.count('class="rk-side"') == 5
    assert "<ins>" in card
    assert "(shown)" in card
    assert "judge: names the rule" in card
    assert "<script>document" not in html
    assert "&lt;script&gt;document" in html


def test_marks_agree_with_the_pair(found):
    marks, pair = row_verdicts(found), found.pair(found.focus)

    assert sum(verdict == "fixed" for verdict, _ in marks.values()) == pair.num_fixed
    assert sum(verdict == "broken" for verdict, _ in marks.values()) == pair.num_broken


def test_the_cards_keep_to_their_bytes(found):
    assert len(views.compare_rows(found, max_bytes=120_000)) < 200_000


def test_plots_say_what_they_show(found):
    noise = evals.JudgeNoise(30, 90, 0.1, 0.14, 60, 0.1, "said")
    for html, words in (
        (views.reward_curve(found, noise), "Step 12 0.582"),
        (views.difference_chart(found), "Step 24 +0.105"),
        (views.slice_chart(found.slices[0]), "backups (20 rows) +0.508"),
        (views.row_paths(found), "the 15 that rose most"),
    ):
        alts = re.findall(r'<svg class="rk-svg"[^>]*aria-label="([^"]*)"', html)
        assert any(words in alt for alt in alts), alts
        assert len(html) < 250_000
    assert "Within the judge&#39;s own noise" in views.reward_curve(found, noise)


def test_slices_with_few_rows_are_said_to_be_small(found):
    html = views.slice_lines(found.slices[1], views.jumps_for(found))

    assert html.count("(few rows)") == 5
    assert "too few for a reliable interval" in html


@pytest.mark.parametrize("steps", [(0,), ()], ids=["one run", "no run"])
def test_too_little_to_compare_is_a_sentence_everywhere(steps):
    found = evals.compare(sample_comparison.samples(steps=steps))
    shown = [
        view(found)
        for view in (views.compare_headline, views.compare_runs, views.reward_curve,
                     views.difference_chart, views.row_paths, views.compare_rows)
    ]  # fmt: skip

    assert "nothing to compare it with" in shown[0] or "no run" in shown[0].lower()
    assert all("nan" not in html.lower() for html in shown[:2])


def test_rewards_that_are_missing_or_equal_do_not_break_a_view(found):
    frame = found.samples.frame.assign(reward=float("nan"), passed=None)
    empty = evals.compare(replace(found.samples, frame=frame))
    assert "not graded" in views.compare_rows(empty)
    assert "No run has a reward" in views.reward_curve(empty)

    equal = evals.compare(replace(found.samples, frame=found.samples.frame.assign(reward=0.5)))
    assert "= same" in views.compare_rows(equal) or "fixed" in views.compare_rows(equal)
    views.difference_chart(equal)


def test_a_change_is_one_change_and_another_text_is_not_marked():
    marked = difference("The policy sets a rule.", "The policy sets no rule at all.")

    assert marked == ("The policy sets <del>a</del><ins>no</ins> rule<ins> at all</ins>.")
    assert difference("one two three", "four five six", least=0.5) == (
        "<em>rewritten:</em> four five six"
    )


def test_agreement_drift_and_regrade_are_said(found):
    samples = found.samples
    line = samples.frame.iloc[0]
    labels = [
        evals.Label(row.row, row.run, row.sample, float(row.reward > 0.6))
        for row in samples.frame.dropna(subset="reward").iloc[:40].itertuples()
    ]
    said = views.agreement(evals.agree(samples, labels), samples)
    assert "Cohen&#39;s kappa" in said
    drift = views.drift_chart(evals.drift(samples))
    assert "Length of answers" in drift
    grader = {"type": "string_check", "name": "yes", "operation": "ilike",
              "input": "{{sample.output_text}}", "reference": "yes"}  # fmt: skip
    small = replace(samples, frame=samples.frame[samples.frame["row"] == line["row"]])
    regraded = views.regrade(evals.regrade(small, grader, keep_runs=False))
    assert "advantages that change sign" in regraded


def test_in_the_browser_a_number_shows_its_rows(found, chromium, tmp_path):  # noqa: F811
    jumps = views.jumps_for(found, 40, elsewhere="; all are in page-rows.csv")
    body = str(views.compare_runs(found, jumps=jumps)) + str(views.compare_rows(found, jumps=jumps))
    page = tmp_path / "page.html"
    page.write_text(views.page("Comparison", body))
    pair = found.pair("Step 12")
    here = sum(key in jumps.numbers for key in pair.fixed_rows)

    with opened(chromium, page) as tab:
        link = tab.locator('a[data-said="fixed at Step 12"]')
        link.focus()
        tab.keyboard.press("Enter")
        said = tab.locator(".rk-only strong").inner_text()
        assert said.startswith(f"{pair.num_fixed} rows fixed at Step 12")
        rows = tab.locator(".rk-list", has=tab.locator(".rk-card"))
        assert f"{here} of 40 rows" in rows.get_by_role("status").inner_text()
        assert "fixed" in tab.locator(".rk-card:visible .rk-mark").first.inner_text()

        tab.get_by_role("button", name="Show all rows").click()
        rows.get_by_label("Order").select_option(label="most broken first")
        assert "−" in tab.locator(".rk-card:visible .rk-mark").first.inner_text()


def test_runs_that_earn_the_same_in_every_row_have_no_flat_chart():
    given = sample_comparison.samples()
    level = replace(given, frame=given.frame.assign(reward=1.0, outcome="graded"))
    found = evals.compare(level, slices=["topic"])
    shown = views.compare_runs(found)

    assert "the same in every row" in shown
    assert "too few rows" not in shown
    assert "No run earns more or less than Step 0 in any row" in views.difference_chart(found)
    assert "No row rose or fell by 0.05 or more from Step 0 to Step 24" in views.row_paths(found)
