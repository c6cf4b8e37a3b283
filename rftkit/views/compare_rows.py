"""Rows followed through all checkpoints: one card per row, with the changes of its answers.

Links from numbers to rows are in `jumps`, statistics in `rftkit.evals`. A card shows one answer
for each run: of several samples, the one whose reward is nearest to their mean. Its words are
compared with the previous answer of its job, and runs that answer alike share one. Where many rows
and runs would make a page too large, all answers are cut to the same length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rftkit.views.answers import change_verdict
from rftkit.views.conversation import prompt, readable, reference, titles
from rftkit.views.jumps import ROWS_ID, Jumps
from rftkit.views.listing import disclosure, listing
from rftkit.views.markup import Html, html, join, missing, note, number, signed, text
from rftkit.views.textdiff import difference
from rftkit.wording import cut_counting

if TYPE_CHECKING:
    from rftkit.evals.comparison import Comparison

__all__ = ["MOST_ROWS", "SORTS", "compare_rows", "jumps_for", "row_cards", "row_verdicts"]

MOST_ROWS = 200
"""Rows on a page by default."""
UNSTABLE_SHARE = 4
"""One row in this many is on the page because its rewards are unstable, not because it changed."""
MAX_BYTES = 3_200_000
"""Approximate limit on the cards of a page."""
SIDE_BYTES, MARKED = 330, 1.4
"""Approximate bytes of markup around one answer, and the factor by which diff markup grows it."""
MIN_ANSWER, MAX_ANSWER = 120, 20_000
"""Characters of an answer that are shown, at least and at most."""
STAYED = 0.5
"""Share of words that two answers must share for their difference to be shown."""

Json = dict[str, Any]
SORTS = {
    "-change": "most fixed first",
    "change": "most broken first",
    "-swing": "most unstable first",
    "final": "lowest reward first",
    "number": "dataset order",
}
"""Sort key of a card (`-` for descending) -> its label."""
ALONE = ("final", "number")
"""Columns that also mean something when there is only one run."""


def compare_rows(
    comparison: Comparison,
    *,
    jumps: Jumps | None = None,
    max_bytes: int = MAX_BYTES,
) -> Html:
    """The rows of a comparison as cards that filter, sort and open.

    Args:
        comparison: from `evals.compare`.
        jumps: which rows to show, from `jumps_for`; default the 200 that changed most.
        max_bytes: about how large the cards may be; long answers are cut to keep to it.
    """
    jumps = jumps or jumps_for(comparison)
    if not jumps.numbers:
        return note("No rows to show. No run has a sample.")
    several = bool(comparison.pairs)
    cards = row_cards(comparison, list(jumps.numbers), max_bytes=max_bytes)
    listed = listing(
        cards,
        lambda body: html('<div class="rk-items" id="{}">{}</div>', ROWS_ID, body),
        total=jumps.total,
        page=10,
        max_bytes=2 * max_bytes,
        sorts=[(key, label) for key, label in SORTS.items() if several or key in ALONE],
        order="most changed first" if several else "lowest reward first",
        elsewhere=jumps.elsewhere,
    )
    return join([_which(comparison, jumps), listed], plain=listed.plain)


def jumps_for(comparison: Comparison, most: int = MOST_ROWS, *, elsewhere: str = "") -> Jumps:
    """Choose the rows of a page: those that changed most, and the most unstable of the others.

    Args:
        comparison: from `evals.compare`.
        most: how many rows; a quarter of them are the unstable ones.
        elsewhere: where to find all rows, as the end of a sentence.
    """
    rows = comparison.rows
    if not comparison.pairs and comparison.baseline:
        rows = rows.sort_values(f"reward/{comparison.baseline}", kind="stable")
    change = rows["change"].abs().fillna(-1)
    by_change = rows.assign(by=change).sort_values("by", ascending=False, kind="stable")
    changed = by_change.head(most if len(rows) <= most else most - most // UNSTABLE_SHARE)
    others = rows.drop(changed.index).sort_values("swing", ascending=False, kind="stable")
    chosen = [changed, others.head(most - len(changed))]
    pairs = [pair for part in chosen for pair in zip(part["row"], part["number"], strict=True)]
    numbers = {key: int(at) for key, at in pairs}
    return Jumps(numbers, len(rows), elsewhere)


def row_verdicts(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Row key -> its verdict (fixed, broken, better, worse, same, not graded) and a mark for it.

    Of one run alone: passed, failed or graded, as its grader says.
    """
    if not comparison.pairs and comparison.baseline:
        label = comparison.baseline
        columns = ("row", f"reward/{label}", f"passed/{label}")
        lines = zip(*(comparison.rows[name] for name in columns), strict=True)
        return {key: _graded(reward, passed) for key, reward, passed in lines}
    fixed: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    if comparison.focus and comparison.pairs:
        pair = comparison.pair(comparison.focus)
        fixed, broken = frozenset(pair.fixed_rows), frozenset(pair.broken_rows)
    return {
        key: _verdict(change, key in fixed, key in broken)
        for key, change in zip(comparison.rows["row"], comparison.rows["change"], strict=True)
    }


def row_cards(
    comparison: Comparison,
    keys: Sequence[str],
    *,
    max_bytes: int = MAX_BYTES,
) -> list[Html]:
    """The markup of each row."""
    samples = comparison.samples
    found = samples.frame[samples.frame["row"].isin(keys)]
    answers: dict[str, dict[str, list[Json]]] = {}
    lines: list[Any] = found.to_dict("records")
    for line in lines:
        answers.setdefault(line["row"], {}).setdefault(line["run"], []).append(line)
    num_answers = sum(len(runs) for runs in answers.values())
    room = int((max_bytes / max(1, num_answers) - SIDE_BYTES) / MARKED)
    style = _Style(
        jobs={run.label: run.job_id or "" for run in samples.runs},
        graders=samples.graders if len(samples.graders) > 1 else (),  # of one, it is the reward
        most=max(MIN_ANSWER, min(MAX_ANSWER, room)),
    )
    facts: dict[Any, Any] = comparison.rows.set_index("row").to_dict("index")
    marks, names = row_verdicts(comparison), _titles([samples.items.get(key) or {} for key in keys])
    return [
        _card(comparison, key, name, facts[key], marks[key], answers.get(key, {}), style)
        for key, name in zip(keys, names, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Style:
    """What all cards of a page have in common."""

    jobs: Mapping[str, str]
    """Label of each run, in order -> its job; "" for a run without one, as a base that jobs share.
    """
    graders: Sequence[str]
    most: int
    """Characters of an answer that are shown."""


def _which(comparison: Comparison, jumps: Jumps) -> Html:
    before, after = comparison.baseline, comparison.focus
    if len(jumps.numbers) == jumps.total or not after:
        return Html("")
    unstable = len(jumps.numbers) // UNSTABLE_SHARE
    return note(
        f"This page shows the {len(jumps.numbers) - unstable:,} rows that changed most "
        f"from {before} to {after}, and the {unstable:,} most unstable of the others."
    )


def _graded(reward: float | None, passed: float | None) -> tuple[str, str]:
    """The verdict on a row of one run; of several samples, whether most passed."""
    if missing(reward) or reward is None:
        return "not graded", "? not graded"
    if missing(passed) or passed is None:
        return "graded", f"reward {number(reward, 2)}"
    return ("passed", "✓ passed") if passed >= 0.5 else ("failed", "✗ failed")


def _verdict(change: float | None, fixed: bool, broken: bool) -> tuple[str, str]:
    if change is None or missing(change) or not (fixed or broken):
        return change_verdict(change)
    name, mark = ("fixed", "▲") if fixed else ("broken", "▼")
    return name, f"{mark} {name} {signed(change, 2)}"


_TONE = {
    **dict.fromkeys(("better", "fixed", "passed"), "rk-good"),
    **dict.fromkeys(("worse", "broken", "failed"), "rk-bad"),
}


def _card(
    comparison: Comparison,
    key: str,
    title: str,
    facts: Mapping[str, Any],
    mark: tuple[str, str],
    answers: Mapping[str, Sequence[Json]],
    style: _Style,
) -> Html:
    rewards = {label: facts.get(f"reward/{label}") for label in style.jobs}
    first = facts.get(f"reward/{comparison.baseline}")
    last = facts.get(f"reward/{comparison.focus}", first)
    item = comparison.samples.items.get(key) or {}
    keys = {"row": facts["number"], "number": facts["number"], "change": facts["change"],
            "swing": facts["swing"], "final": last}  # fmt: skip
    data = join(
        html(' data-{}="{}"', name, "" if missing(value) else round(value, 6))
        for name, value in keys.items()
    )
    move = f"{number(first, 2)} → {number(last, 2)}" if comparison.focus else number(first, 2)
    verdict, words = mark
    return html(
        '<details class="rk-card" data-group="{}"{}>'
        '<summary data-lm-suppress-shortcuts="true"><span>{}</span>'
        '<span class="rk-title">{}</span><span class="rk-move">{} {}</span>'
        '<span class="rk-mark {}">{}</span></summary><div class="rk-body">{}{}'
        '<div class="rk-sides">{}</div></div></details>',
        verdict,
        data,
        facts["number"],
        title,
        _spark(rewards, style.jobs),
        move,
        _TONE.get(verdict, ""),
        words,
        prompt(item.get("messages") or []),
        reference(dict(item)),
        join(_sides(answers, style)),
    )


@dataclass(slots=True)
class _Shown:
    """One answer, and the runs that gave it with the same grades."""

    labels: list[str]
    words: str
    head: Html
    """Rewards and notes."""
    judge: str
    """The reasons that a judge gave; empty without a judge."""
    body: Html


def _sides(answers: Mapping[str, Sequence[Json]], style: _Style) -> list[Html]:
    """The answers of the runs, each compared with the one before it in its job."""
    shown: list[_Shown] = []
    newest: dict[str, _Shown] = {}
    for label, job in style.jobs.items():
        if not (given := answers.get(label)):
            continue
        chosen = _nearest(given)
        words = readable(chosen["answer"] if isinstance(chosen["answer"], str) else None)
        judge = chosen["judge"] if isinstance(chosen.get("judge"), str) else ""
        head, before = _head(given, chosen, style), newest.get(job) or newest.get("")
        is_alike = before and (before.words, before.head, before.judge) == (words, head, judge)
        if before and is_alike and before is newest.get(job):
            before.labels.append(label)
            continue
        each = _Shown([label], words, head, judge, _body(words, before, style))
        newest[job] = each
        shown.append(each)
    return [_side(each, style) for each in shown]


def _body(words: str, before: _Shown | None, style: _Style) -> Html:
    """The answer, or how it differs from the one before it."""
    if before is None:
        return text(cut_counting(words, style.most))
    if words == before.words:
        return html("<em>the same text as {}</em>", before.labels[-1])
    return difference(
        cut_counting(before.words, style.most), cut_counting(words, style.most), least=STAYED
    )


def _head(given: Sequence[Json], chosen: Json, style: _Style) -> Html:
    known = [each["reward"] for each in given if not missing(each["reward"])]
    mean = number(sum(known) / len(known), 2) if known else "not graded"
    lines = [_samples(given, chosen), _notes(chosen, style.graders)]
    small = Html("<br>").join(line for line in lines if line)
    return html(
        "<span>{}</span></div>{}", mean, html("<small>{}</small>", small) if small else Html()
    )


def _side(shown: _Shown, style: _Style) -> Html:
    steps = disclosure(f"judge: {shown.judge}"[: style.most]) if shown.judge else Html()
    return html(
        '<div class="rk-side"><div class="rk-who"><span{}>{}</span>{}'
        '<div class="rk-text">{}</div>{}</div>',
        Html(' class="rk-many"') if len(shown.labels) > 1 else Html(),
        _names(shown.labels),
        shown.head,
        shown.body,
        html("<small>{}</small>", steps) if steps else Html(),
    )


def _names(labels: Sequence[str]) -> str:
    """`Step 4, Step 8, Step 12`; of several jobs `Step 4, Step 8 · lr ×5`."""
    steps, jobs = zip(
        *((s, j) for s, _, j in (each.partition(" · ") for each in labels)), strict=True
    )
    if len(set(jobs)) == 1 and jobs[0]:
        return f"{', '.join(steps)} · {jobs[0]}"
    return ", ".join(labels)


def _samples(given: Sequence[Json], chosen: Json) -> str:
    """The rewards of all samples, and which one is shown."""
    if len(given) < 2:
        return ""
    return " · ".join(
        number(each["reward"], 2) + (" (shown)" if each is chosen else "") for each in given
    )


def _notes(sample: Json, graders: Sequence[str]) -> str:
    """Scores of the graders, and what went wrong, in one line."""
    scores = [
        f"{name} {number(value, 2)}"
        for name in graders
        if not missing(value := sample.get(f"score/{name}"))
    ]
    wrong = []
    if sample["outcome"] == "failed":
        error = sample.get("error")
        wrong.append(f"! no grade: {error if isinstance(error, str) else 'the grader failed'}")
    if sample["outcome"] == "unscorable":
        wrong.append("! not scorable")
    if sample.get("truncated") is True:
        wrong.append("! cut off")
    return " · ".join([*scores, *wrong])


def _nearest(given: Sequence[Json]) -> Json:
    """The sample whose reward is nearest to the mean; the first one when none is graded."""
    graded = [each for each in given if not missing(each["reward"])]
    if not graded:
        return given[0]
    mean = sum(each["reward"] for each in graded) / len(graded)
    return min(graded, key=lambda each: abs(each["reward"] - mean))


def _spark(rewards: Mapping[str, float | None], jobs: Mapping[str, str]) -> Html:
    """The rewards of all runs as a row of small bars, with a gap between jobs."""
    if len(rewards) < 3:
        return Html()
    known = [each for each in rewards.values() if each is not None and not missing(each)]
    low, high = (min(*known, 0.0), max(*known, 1.0)) if known else (0.0, 1.0)
    bars, before = "", ""
    for label, reward in rewards.items():
        bars += " " if before and jobs[label] != before else ""
        before = jobs[label]
        bars += (
            "·" if reward is None or missing(reward)
            else "▁▂▃▄▅▆▇█"[min(7, int(8 * (reward - low) / (high - low)))]
        )  # fmt: skip
    return html('<span class="rk-spark" aria-hidden="true">{}</span>', bars)


def _titles(items: Sequence[Mapping[str, Any]]) -> list[str]:
    chats = [dict(item) for item in items if item.get("messages")]
    names = iter(titles(chats))
    return [
        next(names) if item.get("messages") else json.dumps(item, ensure_ascii=False)[:200]
        for item in items
    ]
