"""Which graders a difference came from, and answers that collapsed: notes on one pair of runs.

The rules and the words are those of `rftkit.diagnosis`. Not here: the difference itself (`table`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from rftkit.diagnosis import Change, collapsed, gain_sentence, never_sampled
from rftkit.evals.comparison import Estimate, PairSummary
from rftkit.evals.samples import Samples
from rftkit.evals.table import Table
from rftkit.graders import Sample
from rftkit.graders.closed import AnswerField, answer_fields, shares

__all__ = ["gain_of", "signal_notes"]


def signal_notes(table: Table, pair: PairSummary) -> Iterator[str]:
    """What the runs of a pair gained in each grader, and what the later one's answers are."""
    if sentence := gain_of(pair):
        yield f"{pair.after} against {pair.before}: {sentence}"
    samples = table.samples
    for field in answer_fields(None, samples.response_format, list(samples.items.values())):
        if field.values:
            yield from _answers(samples, field, pair.after)


def gain_of(pair: PairSummary, what: str = "reward") -> str:
    """Which graders the difference of a pair came from; empty with one grader.

    Args:
        pair: From `compare`; its interval decides what rose.
        what: Name of the reward in the sentence.
    """
    total = _change(pair.difference)
    if total is None or not total.is_known:
        return ""
    changes = {name: _change(each) for name, each in pair.graders.items()}
    parts = {name: change for name, change in changes.items() if change}
    return gain_sentence(total, parts, what)


def _change(found: Estimate) -> Change | None:
    return None if found.value is None else Change(found.value, found.low, found.high)


def _answers(samples: Samples, field: AnswerField, label: str) -> Iterator[str]:
    """Notes on one run: whether its answers are nearly all the same, or never have a value that
    rows expect.
    """
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
