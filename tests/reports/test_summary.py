"""A job in a few numbers: by hand, and honest about what was not measured."""

from __future__ import annotations

import pytest
import sample_comparison
from sample_job import answers, events

from rftkit import evals
from rftkit.reports import summary
from rftkit.views.headline import headline, verdict


def row(before: float | None, after: float | None) -> dict:
    def answer(reward):
        outcome = "failed" if reward is None else "graded"
        return {"model": "m", "text": "t", "grade": {"reward": reward, "outcome": outcome}}

    return {"item": {}, "answers": {"base": answer(before), "final": answer(after)}}


def test_validations_start_best_and_last():
    valid = summary(events())["valid"]

    assert (valid["best_step"], valid["final_step"]) == (24, 24)
    assert (valid["start"], valid["final"]) == (0.3, 0.7925)


def test_only_rows_graded_on_both_sides_are_compared():
    test = summary([], {"rows": [row(0.2, 0.6), row(None, 1.0), row(0.4, 0.4)]})["test"]

    assert (test["rows"], test["pairs"], test["failed"]) == (3, 2, 1)
    assert test["base"] == pytest.approx(0.3)
    assert test["difference"] == pytest.approx(0.2)
    assert (test["better"], test["worse"], test["same"]) == (1, 0, 1)
    low, high = test["interval"]
    assert -1 <= low <= 0 <= high <= 1  # two rows show nothing


def test_the_interval_is_that_of_a_comparison():
    changes = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    low, high = summary([], {"rows": [row(0.0, change) for change in changes]})["test"]["interval"]

    # mean 0.45, deviation 0.30277, t(9) at 97.5 % = 2.2622
    assert (low, high) == pytest.approx((0.45 - 0.21659, 0.45 + 0.21659), abs=5e-4)


@pytest.mark.parametrize("num_rows", [3, 5, 8, 19])
def test_few_rows_promise_no_more_than_they_show(num_rows):
    """Rows that all rise by different amounts: five of them are luck in 1 of 16 cases."""
    rows = [row(0.1, 0.3 + 0.03 * at) for at in range(num_rows)]
    test = summary([], {"rows": rows})["test"]

    assert test["verdict"] == ("better" if num_rows >= 6 else "unclear")
    assert verdict({"test": test}).startswith(
        "The final model is better" if num_rows >= 6 else "No clear change"
    )


def test_nothing_measured_is_none_and_said():
    figures = summary([])

    assert figures["valid"] is None
    assert figures["test"] is None
    assert figures["training"]["failed_grades"] is None
    assert verdict(figures).startswith("No verdict yet")


def test_the_sentence_claims_no_more_than_the_interval_holds():
    def said(rows):
        return verdict(summary([], {"rows": rows}))

    mixed = [row(0.5, 0.9), row(0.5, 0.2)] * 10
    assert said(mixed).startswith("No clear change: 0.50 → 0.55 on the same 20 test rows")
    assert said([row(0.2, 0.4), row(0.2, 0.5)] * 10).startswith("The final model is better")
    assert said([row(0.6, 0.4), row(0.6, 0.5)] * 10).startswith("The final model is worse")
    assert said([row(0.5, 0.5)] * 20).startswith("No clear change")
    assert said([row(0.2, 0.4)]).startswith(
        "Too few rows to tell: 0.20 → 0.40 on the same 1 test row ("
    )
    assert said([row(None, 0.4)]).startswith("No verdict yet")


def test_without_an_interval_the_validation_is_no_verdict():
    said = verdict(summary(events()))

    assert "was 0.30 before training and 0.79 at step 24 (+0.49)" in said
    assert "Its uncertainty is not known" in said
    assert "rose" not in said


@pytest.mark.parametrize(("error", "word"), [(0.01, "rose from 0.30 before"), (0.4, "No clear")])
def test_without_answers_the_validation_speaks(error, word):
    told = events()
    for event in told:
        if "scores" in (event["data"] or {}):
            event["data"].setdefault("learning", {})["valid_reward_stderr"] = error

    assert word in verdict(summary(told))


def test_the_headline_has_the_interval_of_the_comparison_of_the_validations():
    compared = evals.compare(sample_comparison.samples())
    last = compared.pairs[-1]
    valid = summary(events(), validations=compared)["valid"]

    assert valid["interval"] == [last.difference.low, last.difference.high]
    assert valid["verdict"] == last.verdict


def test_what_could_not_be_graded_is_counted():
    test = summary(events(), answers())["test"]

    assert (test["failed"], test["unscorable"], test["unanswered"]) == (1, 2, 0)


def test_a_branch_begins_where_it_was_branched():
    def metric(step, reward):
        data = {"step": step, "scores": {"valid_reward_mean": reward}}
        return {"type": "metrics", "data": data}

    started = {"data": {"hyperparameters": {"branch_step": 12}}}
    valid = summary([started, metric(12, 0.4), metric(18, 0.6)])["valid"]
    shown = headline(summary([]) | {"valid": valid})

    assert (valid["start"], valid["start_step"]) == (0.4, 12)
    assert "0.40 at step 12, where the branch starts" in shown
    assert "Validation, step 12" in shown
    assert "step 0" not in shown
    assert "before training" not in shown
    alone = summary([started, metric(12, 0.4)])
    assert verdict(alone).startswith("No verdict yet")


def test_the_interval_of_a_branch_is_that_of_its_own_validations():
    own = sample_comparison.samples(steps=(6, 12, 18))
    compared = evals.compare(own)
    started = {"data": {"hyperparameters": {"branch_step": 6}}}
    said = [each for each in events() if (each.get("data") or {}).get("step") in (6, 12, 18)]
    valid = summary([started, *said], validations=compared)["valid"]

    assert compared.baseline == "Step 6"
    assert valid["interval"] == [
        compared.pairs[-1].difference.low, compared.pairs[-1].difference.high
    ]  # fmt: skip


def test_a_validation_reward_that_did_not_change_is_said_once():
    valid = {"start": 1.0, "best": 1.0, "best_step": 0, "final": 1.0, "final_step": 24,
             "difference": 0.0, "interval": None, "verdict": "unclear", "rows": 64,
             "is_relative": False}  # fmt: skip
    shown = headline(summary([]) | {"valid": valid})

    assert "did not change: 1.00 before training, 1.00 at step 24." in shown
    assert shown.count("Validation, step 0") == 1
    assert "before training, best" in shown
