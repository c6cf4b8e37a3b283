"""Several jobs compared: their names, one base model, and which setting won."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rftkit import evals, views
from rftkit.cli.evals import _comparison_text
from rftkit.evals.job_names import named_jobs, unique_labels
from rftkit.evals.samples import COLUMNS, Run, Samples
from rftkit.reports.comparing import comparison_sources
from rftkit.views.compare_rows import row_cards

STEPS = (0, 8, 16)


def jobs(ends: dict[tuple[float, int], float], rows: int = 80, steps: Any = STEPS) -> Samples:
    """Jobs of a sweep: (learning rate, seed) -> mean reward of its last step; the base has 0.3."""
    rng = np.random.default_rng(3)
    ease = rng.normal(0, 0.1, rows)
    runs, lines = [], []
    for at, (rate, seed) in enumerate(ends):
        own = steps[at] if isinstance(steps, list) else steps
        for step in own:
            facts = {"lr ×": rate, "seed": seed, "model": "tiny"}
            runs.append(Run(f"Step {step}", f"e{at}-{step}", step, None, f"ftjob-{at:024}", facts))
    labels = unique_labels(runs)
    for run, label in zip(runs, labels, strict=True):
        facts = run.job_facts or {}
        last = max(each.step or 0 for each in runs if each.job_id == run.job_id)
        mean = 0.3 + (ends[facts["lr ×"], facts["seed"]] - 0.3) * (run.step or 0) / last
        rewards = np.clip(mean + ease + rng.normal(0, 0.1, rows), 0, 1)
        lines += [
            {"run": label, "row": f"row{at}", "sample": 0, "reward": reward, "outcome": "graded",
             "truncated": False, "answer": "a"}
            for at, reward in enumerate(rewards)
        ]  # fmt: skip
    frame = pd.DataFrame(lines, columns=list(COLUMNS)).astype({"passed": "boolean"})
    keys = [f"row{at}" for at in range(rows)]
    named = [Run(label, r.id, r.step, None, r.job_id, r.job_facts)
             for r, label in zip(runs, labels, strict=True)]  # fmt: skip
    return Samples(
        tuple(named),
        frame,
        {key: {"n": key} for key in keys},
        {key: at for at, key in enumerate(keys)},
    )


SWEEP = {(1.0, 1): 0.5, (1.0, 2): 0.52, (5.0, 1): 0.7, (5.0, 2): 0.72}


def test_the_headline_of_a_sweep_says_which_setting_won_and_whether_seeds_agree() -> None:
    found = evals.compare(jobs(SWEEP))
    assert found.jobs
    said = found.jobs.sentence
    assert said.startswith("lr ×5 won: 0.")
    assert "above lr ×1; both seeds agree" in said
    assert "lr ×5 gains +0." in said
    assert len(said) < 250
    assert "ftjob" not in views.compare_headline(found)


def test_no_setting_wins_where_the_rows_do_not_show_it() -> None:
    close = {(1.0, 1): 0.6, (1.0, 2): 0.65, (5.0, 1): 0.645, (5.0, 2): 0.61}
    found = evals.compare(jobs(close, rows=30))
    assert found.jobs
    assert found.jobs.sentence.startswith("No setting is shown to win. ")
    assert "1 of 2 seeds agree (not seed" in found.jobs.sentence


def test_settings_that_end_alike_are_level() -> None:
    """None is ahead by 0.000, and none is -0.000 above another."""
    samples = jobs({(1.0, 1): 0.6, (5.0, 1): 0.6}, rows=12)
    found = evals.compare(replace(samples, frame=samples.frame.assign(reward=0.0)))
    assert found.jobs
    assert found.jobs.sentence == (
        "No setting is ahead: lr ×1 and lr ×5 both end at a reward of 0.000. "
        "lr ×1 shows no change against the base model."
    )


def test_settings_without_a_shared_row_are_no_seeds_of_one_setting() -> None:
    samples = jobs({(1.0, 1): 0.6, (5.0, 1): 0.6}, rows=12)
    other = samples.frame["run"].str.endswith("lr ×5")
    rows = samples.frame["row"].where(~other, samples.frame["row"] + "b")
    keys = rows.unique()
    moved = replace(samples, frame=samples.frame.assign(row=rows), items={k: {} for k in keys},
                    numbers={k: at for at, k in enumerate(keys)})  # fmt: skip
    assert evals.compare(moved).jobs is None


def test_a_setting_that_is_not_given_is_auto() -> None:
    runs = [Run("Step 8", str(at), step=8, job_id=f"ftjob-{at}", job_facts=facts)
            for at, facts in enumerate(({"lr ×": 5.0, "seed": 1}, {"seed": 1}))]  # fmt: skip
    assert unique_labels(runs) == ["Step 8 · lr ×5", "Step 8 · lr auto"]


def test_seeds_alone_are_one_setting() -> None:
    found = evals.compare(jobs({(1.0, 1): 0.5, (1.0, 2): 0.7}))
    assert found.jobs
    assert found.jobs.lead is None
    assert found.jobs.sentence.startswith("2 seeds of one setting end at a reward of 0.")


def test_the_base_model_counts_once() -> None:
    found = evals.compare(jobs(SWEEP))
    assert [run.label for run in found.runs if run.step == 0] == ["Step 0"]
    assert found.summary("Step 0").num_samples == 4 * 80
    assert found.baseline == "Step 0"
    assert len(found.pairs) == 8
    assert evals.compare(found.samples).to_dict() == found.to_dict()
    old = evals.compare(jobs(SWEEP), baseline="Step 0 · lr ×1, seed 2")
    assert old.baseline == "Step 0"


def test_a_job_has_one_name_whatever_steps_the_others_have() -> None:
    three = {(1.0, 1): 0.5, (2.0, 1): 0.5, (3.0, 1): 0.5}
    labels = jobs(three, steps=[(0, 8), (0, 8, 16), (0, 16)]).labels
    assert labels == [
        "Step 0 · lr ×1", "Step 8 · lr ×1",
        "Step 0 · lr ×2", "Step 8 · lr ×2", "Step 16 · lr ×2",
        "Step 0 · lr ×3", "Step 16 · lr ×3",
    ]  # fmt: skip


@pytest.mark.parametrize("show", [views.reward_curve, views.difference_chart, views.compare_runs])
def test_no_view_of_several_jobs_shows_an_id(show: Any) -> None:
    assert "ftjob-" not in show(evals.compare(jobs(SWEEP)))


def test_no_line_of_a_row_leads_from_one_job_to_the_next() -> None:
    two = {(1.0, 1): 0.5, (5.0, 1): 0.7}
    chart = views.row_paths(evals.compare(jobs(two)))
    assert chart.count("rk-mean") >= 1
    svg = chart.partition('<svg class="rk-svg"')[2]
    lines = re.findall(r'<path class="rk-line rk-(?:up|down|mean)[^"]*" d="([^"]*)"', svg)
    assert lines
    assert {line.count("M") for line in lines} == {2}  # the base and the first job; the second job


def test_a_card_compares_an_answer_with_the_one_before_it_in_its_job() -> None:
    samples = jobs({(1.0, 1): 0.5, (5.0, 1): 0.7}, rows=4)
    words = {"Step 0": "one", "Step 8 · lr ×1": "one two", "Step 16 · lr ×1": "one two",
             "Step 8 · lr ×5": "one", "Step 16 · lr ×5": "one five"}  # fmt: skip
    own = samples.frame["run"].str.replace(r"^Step 0.*", "Step 0", regex=True)
    frame = samples.frame.assign(answer=own.map(words), reward=0.5)
    card = row_cards(evals.compare(replace(samples, frame=frame)), ["row0"])[0]
    whos = re.findall(r'rk-who"><span[^>]*>([^<]*)</span>', card)
    assert whos == ["Step 0", "Step 8, Step 16 · lr ×1", "Step 8 · lr ×5", "Step 16 · lr ×5"]
    assert card.count("the same text as Step 0") == 1
    assert "<ins> two</ins>" in card
    assert "<ins> five</ins>" in card
    assert "<del>two</del>" not in card  # the other job's


def test_a_name_leads_to_its_job() -> None:
    samples = jobs({(1.0, 1): 0.5, (5.0, 1): 0.7}, rows=4)
    ids = list(dict.fromkeys(run.job_id for run in samples.runs))
    assert named_jobs(samples.runs) == {"lr ×1": ids[0], "lr ×5": ids[1]}
    assert comparison_sources(samples)["jobs"] == f"lr ×1: {ids[0]}, lr ×5: {ids[1]}"
    assert f"lr ×5: {ids[1]}" in _comparison_text(evals.compare(samples))
    assert named_jobs(samples.select(samples.labels[:3]).runs) == {}


def test_jobs_with_different_graders_are_not_ranked() -> None:
    """Each earns what its own grader gives: neither the jobs nor their steps can be compared."""
    samples = jobs({(1.0, 1): 0.5, (5.0, 1): 0.9})
    graders = {run.job_id: f"digest{at}" for at, run in enumerate(samples.runs)}
    other = tuple(replace(r, grader="g", grader_digest=graders[r.job_id]) for r in samples.runs)
    found = evals.compare(replace(samples, runs=other))
    assert found.jobs is None
    assert found.choice
    assert {run.label for run in found.runs if run.step == 0} == {
        "Step 0 · lr ×1", "Step 0 · lr ×5"
    }  # fmt: skip
    assert found.choice.deploy == "Step 16 · lr ×1"
    assert "Step 16 · lr ×5 is left out: it has another grader" in found.choice.sentence
    pair = found.pair("Step 16 · lr ×5")
    assert (pair.difference.value, pair.verdict, pair.num_fixed) == (None, "unclear", 0)
    assert "have different graders" in pair.sentence
    assert any("2 versions of g: rewards of different graders" in note for note in found.notes)
    one = tuple(replace(run, grader="g", grader_digest="same") for run in samples.runs)
    again = evals.compare(replace(samples, runs=one))
    assert again.jobs
    assert not any("different graders" in note for note in again.notes)


def test_each_job_of_a_sweep_has_a_line_of_its_own_kind() -> None:
    nine = {(float(rate), 1): 0.5 for rate in range(1, 10)}
    chart = views.reward_curve(evals.compare(jobs(nine, rows=10)))
    kinds = re.findall(r'<path class="rk-line ([^"]*)"', chart.partition("rk-svg")[2])
    assert len(set(kinds)) == 9


def test_a_branch_is_called_one() -> None:
    runs = [
        Run("Step 8", "a", step=8, job_id="ftjob-1", job_facts={"seed": 1}),
        Run("Step 8", "b", step=8, job_id="ftjob-2",
            job_facts={"seed": 1, "branch_from": "ftjob-0d66cb2f40d66cb2@8"}),
    ]  # fmt: skip
    assert unique_labels(runs) == ["Step 8 · no branch", "Step 8 · branch of 40d66cb2@8"]
