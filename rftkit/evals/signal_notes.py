"""Which graders a difference came from, and answers that collapsed: notes on one pair of runs.

The rules and the words are those of `rftkit.diagnosis`. Not here: the difference itself (`table`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from rftkit.diagnosis import Change, collapsed, gain_sentence, never_sampled
from rftkit.evals import stats
from rftkit.evals.comparison import Estimate, PairSummary
from rftkit.evals.samples import Samples
from rftkit.evals.table import Table
from rftkit.graders import Sample
from rftkit.graders.closed import AnswerField, answer_fields, shares

__all__ = ["signal_notes"]


def signal_notes(table: Table, pair: PairSummary) -> Iterator[str]:
    """What the runs of a pair gained in each grader, and what the later one's answers are."""
    total = _change(pair.together)
    before, after = (table.cells.labels.index(label) for label in (pair.before, pair.after))
    parts = {
        name: change
        for name, means in table.graders.items()
        if (change := _change(stats.difference_interval(means[:, after] - means[:, before])))
    }
    if total and total.half_width is not None and (sentence := gain_sentence(total, parts)):
        yield f"{pair.after} against {pair.before}: {sentence}"
    samples = table.samples
    for field in answer_fields(None, samples.response_format, list(samples.items.values())):
        if field.values:
            yield from _answers(samples, field, pair.after)


def _answers(samples: Samples, field: AnswerField, label: str) -> Iterator[str]:
    """Of one run: its answers are nearly all the same, or never have a value that rows want."""
    frame = samples.frame[samples.frame["run"] == label]
    texts = frame["answer"].fillna("")
    rows = list(dict.fromkeys(frame["row"]))
    found = shares(
        field,
        (Sample.from_text(text, response_format=samples.response_format) for text in texts if text),
        [samples.items[row] for row in rows],
    )
    yield from map(
        str, collapsed(field.name, asdict(found) | {"num_prompts": len(rows)}, f"of {label}")
    )
    missing = {
        value: share
        for value, share in found.references.items()
        if share and value in field.values and not found.samples.get(value)
    }
    yield from (
        f"{label}: {each.message}" for each in never_sampled(field.name, missing, found.num_samples)
    )


def _change(found: Estimate) -> Change | None:
    return None if found.value is None else Change(found.value, found.half_width)
