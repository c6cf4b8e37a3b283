"""The rows of each step as cards: what a job learned from, and what it answered at a validation.

Points of charts lead here (`jumps.StepJumps`). Answers are cut to the same length where all of them
would make a page too large. Not here: the newest rollouts, in full (`watch`), and rows followed
through all validations (`compare_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rftkit.views.answers import reward_of
from rftkit.views.conversation import readable
from rftkit.views.jumps import STEPS_ID
from rftkit.views.listing import disclosure, listing
from rftkit.views.markup import Html, html, html_each, join, missing, note, number
from rftkit.views.rows import cells
from rftkit.wording import counted, cut_counting

if TYPE_CHECKING:
    from rftkit.evals.samples import Samples

__all__ = ["learned_rows", "training_steps", "validation_steps"]

MAX_BYTES = 1_500_000
"""Approximate limit on the bytes of all cards."""
LINE_BYTES = 420
"""Approximate bytes of the markup of a line, without its answer."""
MIN_ANSWER, MAX_ANSWER = 120, 6_000
"""Characters of an answer that are shown, at least and at most."""

Json = dict[str, Any]


def training_steps(
    found: Sequence[Json], *, list_id: str = STEPS_ID, max_bytes: int = MAX_BYTES
) -> Html:
    """A card for each step with its rows, and with each completion and its reward.

    Args:
        found: From `rftkit.jobs.step_rollouts`.
        list_id: Element id of the list.
        max_bytes: About how large the cards may be; long answers are cut to keep to it.
    """
    if not found:
        return note("This service does not return what its jobs learn from, step by step.")
    num = sum(max(1, len(group["rollouts"])) for step in found for group in step["groups"])
    most = _most(max_bytes, num)
    cards = [_training_card(step, most) for step in found]
    last = max(step["num_steps"] for step in found)
    some = note(f"This page has {len(found):,} of {last:,} steps, evenly spread.")
    listed = _listed(cards, list_id, max_bytes)
    return join([some, listed] if len(found) < last else [listed], plain=listed.plain)


def validation_steps(
    samples: Samples, second: Samples | None = None, *, list_id: str, second_name: str = ""
) -> Html:
    """A card for each validation with its answers, the lowest reward first.

    Args:
        samples: The validations of one job.
        second: The same samples under a second grader.
        list_id: Element id of the list.
        second_name: The name of that grader.
    """
    frame = samples.frame
    if second is not None:
        ours = ["run", "row", "sample"]
        watched = second.frame[[*ours, "reward"]].rename(columns={"reward": "second"})
        frame = frame.merge(watched, on=ours, how="left")
    most = _most(MAX_BYTES, len(frame))
    cards = []
    for run in samples.runs:
        lines: list[Any] = frame[frame["run"] == run.label].to_dict("records")
        lines.sort(key=lambda line: (missing(line["reward"]), line["reward"]))
        headings = ["row", "prompt", "reward", *([second_name] if second is not None else [])]
        body = [_answer_line(samples, line, most, has_second=second is not None) for line in lines]
        mean = _mean([line["reward"] for line in lines])
        cards.append(_card(run.step or 0, counted(len(lines), "answer"), mean, "",
                           _table([*headings, "tokens", "answer"], body)))  # fmt: skip
    return _listed(cards, list_id, MAX_BYTES)


def _listed(cards: Sequence[Html], list_id: str, max_bytes: int) -> Html:
    return listing(
        cards,
        lambda body: html('<div class="rk-items" id="{}">{}</div>', list_id, body),
        noun="step",
        page=10,
        max_bytes=2 * max_bytes,
        sorts=[("mean", "lowest mean first")],
        order="in order",
    )


def _card(step: int, title: str, mean: float | None, mark: str, body: Html) -> Html:
    rounded = "" if mean is None else f"{mean:.6f}"
    return html(
        '<details class="rk-card" data-row="{}" data-mean="{}">'
        '<summary data-lm-suppress-shortcuts="true"><span>{}</span>'
        '<span class="rk-title">{}</span><span class="rk-move">{}</span>'
        '<span class="rk-mark">{}</span></summary>'
        '<div class="rk-body">{}</div></details>',
        step,
        rounded,
        step,
        title,
        "" if mean is None else f"mean {number(mean, 2)}",
        mark,
        body,
    )


def _training_card(step: Json, most: int) -> Html:
    groups: list[Json] = step["groups"]
    rollouts = [each for group in groups for each in group["rollouts"]]
    rows = counted(len(groups), "row")
    if not rollouts:
        return _card(step["step"], rows, None, "", learned_rows(groups, most))
    pairs = list(zip(groups, _cells(groups), strict=True))
    graders = dict.fromkeys(name for each in rollouts for name in _parts(each))
    lines = [
        _rollout_line(group["line"], str(each.get("prompt", "")), rollout, list(graders), most)
        for group, each in pairs
        for rollout in sorted(group["rollouts"], key=_order, reverse=True)
    ]
    flat = sum(len({reward_of(each) for each in group["rollouts"]}) < 2 for group in groups)
    title = f"{rows}, {counted(len(rollouts), 'completion')}"
    headings = ["line", "prompt", "reward", *graders, "completion"]
    mark = f"{flat} flat" if flat else ""
    return _card(step["step"], title, _mean([reward_of(each) for each in rollouts]), mark,
                 _table(headings, lines))  # fmt: skip


def learned_rows(groups: Sequence[Json], most: int = MAX_ANSWER) -> Html:
    """The markup of rows whose own answers were learned, as supervised and dpo jobs do."""
    shown = _cells(groups)
    names = ("prompt", "answer to learn", "preferred", "not preferred")
    kept = [name for name in names if any(name in each for each in shown)]
    lines = [
        [_number(group["line"]), *(_words(str(each.get(name, "")), most) for name in kept)]
        for group, each in zip(groups, shown, strict=True)
    ]
    return _table(["line", *kept], lines)


def _cells(groups: Sequence[Json]) -> list[Json]:
    return cells([group["item"] or {"prompt": "(the file was deleted)"} for group in groups])


def _rollout_line(
    line: int, prompt: str, rollout: Json, graders: Sequence[str], most: int
) -> list[Html]:
    outcome = (rollout["grade"] or {}).get("outcome")
    said = readable(rollout["text"])
    marks = {"failed": "! the grader failed", "unscorable": "! not scorable"}
    wrong = [marks[outcome]] if outcome in marks else []
    wrong += ["! cut off"] if rollout["stop_reason"] == "length" else []
    parts = _parts(rollout)
    return [
        _number(line), _words(prompt, most), _number(reward_of(rollout)),
        *(_number(parts.get(name)) for name in graders),
        _words(" · ".join([*wrong, said]), most),
    ]  # fmt: skip


def _answer_line(samples: Samples, line: Json, most: int, *, has_second: bool) -> list[Html]:
    answer = line["answer"] if isinstance(line["answer"], str) else None
    return [
        _number(samples.numbers.get(line["row"])), _words(samples.prompt(line["row"]), most),
        _number(line["reward"]), *([_number(line["second"])] if has_second else []),
        _number(line["tokens"]), _words(readable(answer), most),
    ]  # fmt: skip


def _table(headings: Sequence[str], lines: Sequence[Sequence[Html]]) -> Html:
    head = html_each('<th scope="col">{}</th>', headings)
    body = html_each("<tr>{}</tr>", map(join, lines))
    return html(
        '<div class="rk-scroll" tabindex="0"><table class="rk-rows"><thead>'
        "<tr>{}</tr></thead><tbody>{}</tbody></table></div>",
        head,
        body,
    )


def _number(value: float | None) -> Html:
    shown = number(int(value) if value is not None and not missing(value) and value % 1 == 0
                   and abs(value) > 1 else value, 2)  # fmt: skip
    return html('<td class="rk-number">{}</td>', shown)


def _words(words: str, most: int) -> Html:
    return html("<td>{}</td>", disclosure(cut_counting(words, most)))


def _parts(rollout: Json) -> Mapping[str, float | None]:
    return (rollout["grade"] or {}).get("sub_rewards") or {}


def _order(rollout: Json) -> float:
    reward = reward_of(rollout)
    return float("-inf") if reward is None else reward


def _mean(rewards: Sequence[float | None]) -> float | None:
    known = [reward for reward in rewards if reward is not None and not missing(reward)]
    return sum(known) / len(known) if known else None


def _most(max_bytes: int, num: int) -> int:
    """Characters of one answer, so that all fit."""
    return max(MIN_ANSWER, min(MAX_ANSWER, max_bytes // max(1, num) - LINE_BYTES))
