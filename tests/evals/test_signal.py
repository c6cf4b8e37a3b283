"""What a comparison says of the parts of a reward, and of answers that are all the same."""

from __future__ import annotations

import dataclasses

import sample_comparison

from rftkit import evals


def test_the_notes_name_the_graders_that_a_gain_came_from() -> None:
    samples = sample_comparison.samples()
    found = evals.compare(samples)
    assert any(
        f"{found.focus} against {found.baseline}: The reward" in each for each in found.notes
    )


def test_answers_that_are_all_the_same_are_named() -> None:
    samples = sample_comparison.samples()
    frame = samples.frame.copy()
    last = frame["step"] == 24
    frame.loc[last, "answer"] = '{"compliant": "no"}'
    enum = {"type": "string", "enum": list(sample_comparison.LABELS)}
    schema = {"type": "object", "properties": {"compliant": enum}}
    answer_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    changed = dataclasses.replace(samples, frame=frame, response_format=answer_format)
    notes = evals.compare(changed, after="Step 24").notes
    assert any("`compliant` is `no` in 100% of the answers of Step 24" in each for each in notes)
    assert any("Step 24: `needs review`, `yes` were never sampled" in each for each in notes)
    assert not any("never sampled" in each for each in evals.compare(samples).notes)
