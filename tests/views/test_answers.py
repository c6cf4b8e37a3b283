"""Answers before and after: what changed, what it earned, and what was never graded."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from sample_job import answers

from rftkit import views
from rftkit.views.answers import reward_of
from rftkit.views.textdiff import difference


def card(data, index=0):
    found = re.findall(r"<details class=\"rk-card\".*?(?=<details class=\"rk-card\"|$)", data, re.S)
    return found[index]


def one_row(base, final):
    item = {"messages": [{"role": "user", "content": "Say yes."}]}
    return {"rows": [{"item": item, "answers": {"base": base, "final": final}}]}


def answer(text, reward, outcome="graded", **grade):
    return {"model": text, "text": text, "grade": {"reward": reward, "outcome": outcome, **grade}}


def test_each_row_says_in_words_whether_it_got_better():
    def verdict(before, after):
        return card(views.answers(one_row(answer("a", before), answer("b", after))))

    assert "▲ better +0.50" in verdict(0.25, 0.75)
    assert "▼ worse −0.50" in verdict(0.75, 0.25)
    assert "= same" in verdict(0.5, 0.501)


def test_a_failed_grade_is_not_a_zero():
    failed = answer("b", 0.0, "failed", errors={"python_grader_runtime_error": True})
    shown = card(views.answers(one_row(answer("a", 0.5), failed)))

    assert reward_of(failed) is None
    assert "? not graded" in shown
    assert 'data-change=""' in shown
    assert "the grader failed, so this answer has no reward" in shown
    assert "python grader runtime error" in shown


def test_an_unscorable_sample_keeps_its_reward_and_says_why():
    shown = card(views.answers(one_row(answer('{"a', 0.0, "unscorable"), answer("b", 1.0))))

    assert "not scorable: the answer was cut off" in shown
    assert "reward 0.00" in shown


def test_an_answer_that_never_came_is_shown_as_such():
    never = {"model": "base", "text": None, "grade": None, "error": "timed out"}

    assert "(no answer)" in card(views.answers(one_row(never, answer("b", 1.0))))


def test_best_and_final_are_shown_once_when_they_are_one_model():
    data = one_row(answer("a", 0.1), answer("b", 0.9))
    given_answers = data["rows"][0]["answers"]
    given_answers["best"] = dict(given_answers["final"])

    assert ">final and best<" in views.answers(data)


def test_json_answers_are_compared_by_their_content():
    shown = card(views.answers(one_row(answer('{"a":"x"}', 1.0), answer('{ "a": "x" }', 1.0))))

    assert "The same text." in shown


def test_rows_are_named_by_what_they_do_not_share():
    data = answers(6)
    for row in data["rows"]:
        row["item"]["messages"][-1]["content"] += "\nAnswer yes or no."

    assert "Do you have a written rule for backups" in card(views.answers(data)).split("</span>")[1]


def test_an_instruction_that_all_rows_share_is_shown_once():
    assert views.answers(answers(6)).count("Answer from the policy only") == 1


def test_rows_beyond_the_bytes_are_left_out_and_counted():
    html = views.answers(answers(100), max_bytes=100_000)

    assert len(html.encode()) < 102_000
    assert re.search(r"\d+ of 100 rows are on this page", html)


def test_no_rows_is_a_sentence():
    assert "No answers to show" in views.answers({"rows": []})


words = st.text(alphabet="ab <&.\n", max_size=30)


@given(words, words)
def test_the_difference_holds_both_texts(before, after):
    marked = difference(before, after)

    def without(tag):
        return html.unescape(
            re.sub(r"</?\w+>", "", re.sub(f"<{tag}>.*?</{tag}>", "", marked, flags=re.S))
        )

    assert without("del") == after
    assert without("ins") == before


def test_very_long_texts_are_not_compared():
    assert "too long" in difference("a " * 6000, "b " * 6000)
